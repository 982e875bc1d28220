"""Switches: each flipped alone changes what it should and nothing else, and is measured once however many ask at a time."""

import dataclasses
import json
import re
import shutil
import threading

import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml

from mfcore import encoders, store
from mfcore.analysis import compare_defects, compare_effects, effects
from mfcore.data import patches, splits
from mfcore.data.downloads import DownloadError
from mfcore.data.patches_read import DiskError
from mfcore.encoders import embed
from mfcore.study.config import MODES, Data, Effects, Lora, Network, Patches, Settings, Splits, Switches, as_dict
from mfcore.sweep import switches as measuring

STUDY = Settings(
    "tiny",
    "Tiny",
    Data("midog"),
    patches=Patches(size_px=48),
    splits=Splits(sizes=(0.5, 1.0), n_folds=3, by_domain=True),
    encoders=("random:test_vit", "random:test_resnet"),
    networks=(
        Network("net", "random:test_resnet", input_px=32, n_epochs=2, patches_per_epoch=32, shift_px=2, clip_norm=0.1),
        Network("wide", "random:test_resnet", input_px=40),
    ),
    effects=Effects("random:test_vit", "net", ("border", "split_by", "clipping", "encoder_input"), 2),
)
NETWORK, PROBE = effects.Arm("net", True), effects.Arm("random:test_vit", False)


# ---- the study with one switch flipped ----


def test_the_base_is_the_study_at_the_full_size_on_two_arms():
    base = effects.derived(STUDY, effects.BASE)
    assert base.switches == STUDY.switches
    assert base.encoders == ("random:test_vit",) and [network.name for network in base.networks] == ["net"]
    assert base.splits == dataclasses.replace(STUDY.splits, sizes=(1.0,), by_domain=False, n_folds=2)
    assert (base.networks[0].sizes, base.networks[0].by_domain) == ((1.0,), False)
    assert patches.config_of(base) == patches.config_of(STUDY), "as wide as the other network asks: the same patches"
    assert STUDY.stored_px > base.networks[0].needed_px


@pytest.mark.parametrize("switch", Switches.CHOICES)
def test_a_switch_is_flipped_alone_and_paper_flips_all(switch):
    base, flipped = effects.derived(STUDY, effects.BASE), effects.derived(STUDY, switch)
    assert store.differences(as_dict(base), as_dict(flipped)) == [f"switches.{switch}"]
    assert getattr(flipped.switches, switch) == getattr(MODES["paper"], switch)
    assert effects.config_of(STUDY, switch) != effects.config_of(STUDY, effects.BASE)
    assert effects.derived(STUDY, effects.PAPER).switches == MODES["paper"]


def test_measurements_made_before_a_switch_came_are_found_again():
    """A switch at its default is no part of a measurement's key, a flipped one is."""
    before = effects.config_of(STUDY, effects.BASE)["switches"]
    assert not {"sampler", "augmentation"} & set(before) and set(before) < set(Switches.CHOICES)
    assert effects.config_of(STUDY, "sampler")["switches"] == before | {"sampler": "released"}


def test_an_unknown_switch_is_refused_by_name():
    with pytest.raises(ValueError, match="switch 'epochs' is not one of"):
        effects.derived(STUDY, "epochs")


# what each switch changes of what is made, for a study that it can change
CHANGES = {
    "split_by": {"splits", "network_splits"},
    "stratified": {"splits", "network_splits"},
    "resolution": {"patches"},
    "border": {"patches"},
    "shared_splits": {"network_splits"},
    "encoder_input": {"embeddings", "network"},
    "epoch": set(),
    "training_label": set(),
    "validation": set(),
    "clipping": set(),
    "sampler": set(),
    "augmentation": set(),
}


@pytest.mark.parametrize("switch", Switches.CHOICES)
def test_flipping_changes_the_keys_of_what_it_touches_and_no_others(switch):
    """What stays equal is found in the store; the switches of the training loop enter the training's own key."""
    from mfcore.training import train

    study = dataclasses.replace(
        STUDY,
        encoders=("vit_huge_in21k",),
        networks=(dataclasses.replace(STUDY.networks[0], architecture="vit_huge_in21k"),),
        effects=dataclasses.replace(STUDY.effects, encoder="vit_huge_in21k"),
    )

    def keys(of):
        return {
            "patches": patches.config_of(of),
            "splits": splits.config_of(of),
            "network_splits": splits.config_of(of, networks=True),
            "embeddings": embed.config_of(of, "vit_huge_in21k", "results"),
            "network": encoders.of_network(of, "vit_huge_in21k").identity(),
        }

    base, flipped = effects.derived(study, effects.BASE), effects.derived(study, switch)
    was, now = keys(base), keys(flipped)
    assert {name for name in was if was[name] != now[name]} == CHANGES[switch]
    of_loop = switch in ("epoch", "training_label", "validation", "clipping", "sampler", "augmentation", "encoder_input")
    changed = train.config_of(base, base.networks[0], 0) != train.config_of(flipped, flipped.networks[0], 0)
    assert changed == of_loop


def with_network(**changes):
    return dataclasses.replace(STUDY, networks=(dataclasses.replace(STUDY.networks[0], **changes),))


def as_it_is(**flipped):
    return dataclasses.replace(STUDY, switches=dataclasses.replace(STUDY.switches, **flipped))


@pytest.mark.parametrize(
    ("study", "switch", "arm", "why"),
    [
        (STUDY, "epoch", PROBE, "of training alone"),
        (STUDY, "shared_splits", PROBE, "of training alone"),
        (STUDY, "encoder_input", PROBE, "embeds virchow2, gigapath, vit_huge_in21k in a way .*not random:test_vit"),
        (STUDY, "encoder_input", NETWORK, "trains vit_huge_in21k in a way .*not random:test_resnet"),
        (with_network(clip_norm=None), "clipping", NETWORK, "no clip_norm"),
        (STUDY, "sampler", PROBE, "of training alone"),
        (with_network(patches_per_epoch=None), "sampler", NETWORK, "shown every patch once: none is drawn"),
        (with_network(blur_probability=0.0, rotation_probability=0.0), "augmentation", NETWORK, "neither blurred nor turned"),
        (dataclasses.replace(STUDY, data=Data("amibr")), "sampler", NETWORK, "images: there is no slide"),
        (as_it_is(epoch="last"), "epoch", NETWORK, "the study itself does as the released code"),
        (as_it_is(epoch="last"), "validation", NETWORK, "the last epoch, whatever validation says"),
        (dataclasses.replace(STUDY, data=Data("amibr")), "resolution", PROBE, "images, cut before"),
        (dataclasses.replace(STUDY, data=Data("amibr")), "border", NETWORK, "images, cut before"),
    ],
)
def test_what_a_study_cannot_show_says_why(study, switch, arm, why):
    assert re.search(why, effects.why_not(study, switch, arm))


def test_what_a_study_can_show_gives_no_excuse():
    of_probe = {"split_by", "stratified", "resolution", "border"}
    assert {name for name in Switches.CHOICES if not effects.why_not(STUDY, name, PROBE)} == of_probe
    of_network = set(Switches.CHOICES) - {"encoder_input"}
    assert {name for name in Switches.CHOICES if not effects.why_not(STUDY, name, NETWORK)} == of_network
    assert not effects.why_not(STUDY, effects.PAPER, PROBE) and not effects.why_not(STUDY, effects.BASE, NETWORK)


def patches_run(results, um_per_px=0.25, over_edge=3, far_px=17.5):
    """Four patches on one slide: a negative with a positive ``far_px`` beside it, and two alone."""
    table = pd.DataFrame({"patch_id": range(4), "slide_id": list("aaab"), "label": [0, 1, 0, 0], "um_per_px": um_per_px})
    table = table.assign(x_l0_px=[100.0, 100 + far_px, 500, 100], y_l0_px=100.0)
    run = store.open_run(results, "patches", "tiny", patches.config_of(STUDY), {})
    store.write_parquet(run.path("labels.parquet"), table)
    return run.finish(["labels.parquet"], n_patches=4, n_patches_over_edge=over_edge, n_patches_shifted=0)


def test_what_the_data_give_a_switch_to_touch_is_counted(tmp_path):
    run = patches_run(tmp_path / "some", [0.25, 0.25, 0.25, 0.5])
    assert effects.reach(STUDY, "border", run).words == "3 of 4 patches, as stored, reach over a slide's border"
    found = effects.reach(STUDY, "resolution", run)
    assert (found.n, found.n_all) == (1, 2) and found.words == (
        "1 of 2 slides are scanned at another resolution than 0.25 µm/px"
    )
    label = effects.reach(STUDY, "training_label", run)
    assert (label.n, label.n_all) == (1, 3) and "32 px that training sees" in label.words
    none = patches_run(tmp_path / "none", over_edge=0, far_px=18.5)  # half of 32 px, and a shift of 2
    for switch in ("border", "resolution", "training_label"):
        assert not effects.reach(STUDY, switch, run).is_nothing and effects.reach(STUDY, switch, none).is_nothing
    assert not effects.reach(STUDY, "epoch", none).is_nothing


# ---- the table ----


def fitted(results, stage, name, shift, patch_ids, fold=0):
    """A finished arm whose positives score ``shift`` above its negatives, and the splits it was tested on."""
    rng = np.random.default_rng(fold)
    labels = np.arange(len(patch_ids)) % 2
    inputs = {"tested": store.digest([int(i) for i in patch_ids])}
    drawn = store.open_run(results, "splits", "slide", {}, inputs)
    roles = {"patch_id": range(50), "train_domain": "all", "fold": fold, "size": 1.0, "role": "train"}
    store.write_parquet(drawn.path("splits.parquet"), pd.DataFrame(roles))
    drawn.finish(["splits.parquet"])
    run = store.open_run(results, stage, name, {"shift": shift}, {"splits": drawn.key})
    predicted = {"patch_id": patch_ids, "slide_id": "a", "domain": "d", "label": labels, "fold": fold, "size": 1.0}
    scores = rng.normal(size=len(patch_ids)) + shift * labels
    table = pd.DataFrame(predicted | {"score": 1 / (1 + np.exp(-scores)), "train_domain": "all"})
    store.write_parquet(run.path("predictions.parquet"), table)
    return run.finish(["predictions.parquet"]).key


def record(results, switch, **keys):
    inputs = {"patches": patches.find(STUDY, results).key, **keys}
    run = store.open_run(results, "effect", effects.record_name(switch), effects.config_of(STUDY, switch), inputs)
    run.finish([])


@pytest.fixture
def measured(tmp_path):
    """The base, and two of three switches on the network: one tested on the same patches, one on others."""
    patches_run(tmp_path)
    for switch, shift, first in (("", 2.0, 0), ("clipping", 1.0, 0), ("split_by", 2.0, 200)):
        keys = {}
        for fold in (0, 1, 2):
            ids = first + 40 * fold + np.arange(40)
            keys[f"train-fold{fold}"] = fitted(tmp_path, "train", f"net-fold{fold}", shift, ids, fold)
        record(tmp_path, switch, **keys)
    reason = {"name": "measure_switch.border", "reason": "SweepError: no such weights", "parameters": {}}
    store.write_json(tmp_path / "failures" / "measure_switch.border.json", reason)
    return tmp_path


def test_each_switch_and_arm_has_a_row_with_its_worth_or_the_reason(measured):
    table = compare_effects.table(STUDY, measured)
    assert table.columns.tolist() == compare_effects.COLUMNS
    rows = table.set_index(["switch", "arm"])
    assert len(table) == 2 * 14 + sum(bool(defect.why_no_switch) for defect in compare_defects.DEFECTS)
    base, clipped = rows.loc[("", "net")], rows.loc[("clipping", "net")]
    assert (base["n_folds"], base["kind"]) == (3, "end-to-end") and np.isnan(base["difference"])
    assert clipped["difference"] == pytest.approx(clipped["auroc"] - base["auroc"]) and clipped["difference"] < 0
    assert clipped["low"] < clipped["difference"] < clipped["high"] and clipped["why"] == ""
    assert (clipped["as_released"], clipped["default"]) == ("before_backward", "after_backward")
    apart = rows.loc[("split_by", "net")]
    assert apart["why"] == "unpaired: the two are tested on different patches" and np.isfinite(apart["low"])
    assert rows.loc[("border", "net"), "why"] == "failed: SweepError: no such weights"
    assert rows.loc[("paper", "net"), "why"] == rows.loc[("", PROBE.name), "why"] == compare_effects.NOT_YET
    assert rows.loc[("stratified", "net"), "why"] == "the study doesn't ask for it (effects.switches)"
    assert rows.loc[("resolution", "net"), "why"].startswith("the study doesn't ask")
    assert not rows.loc["encoder_input", "applies"].any() and not rows.loc["labels", "applies"].any()
    assert rows.loc[("stratified", "net"), ["as_released", "default"]].tolist() == ["no", "yes"]


def test_a_switch_that_changes_no_prediction_says_so(measured):
    keys = effects.find(STUDY, "", measured).identity["inputs"]
    study = dataclasses.replace(STUDY, effects=dataclasses.replace(STUDY.effects, switches=("epoch",)))
    record(measured, "epoch", **{name: key for name, key in keys.items() if name.startswith("train")})
    row = compare_effects.rows_of(study, "epoch", measured)[0]
    assert row["why"] == "the same predictions in every fold; the best epoch was the last" and row["difference"] == 0


def test_data_with_nothing_to_touch_are_the_reason(tmp_path):
    patches_run(tmp_path, over_edge=0)
    rows = compare_effects.rows_of(STUDY, "border", tmp_path)
    assert [row["applies"] for row in rows] == [False, False]
    assert rows[0]["why"] == "nothing here to change: 0 of 4 patches, as stored, reach over a slide's border"


def test_a_measurement_on_other_patches_or_of_another_study_does_not_count(measured):
    other = dataclasses.replace(STUDY, probe=dataclasses.replace(STUDY.probe, cost=3.0))
    assert compare_effects.rows_of(other, "clipping", measured)[0]["why"] == compare_effects.NOT_YET
    later = store.open_run(measured, "patches", "tiny", patches.config_of(STUDY), {"labels": "corrected"})
    store.write_parquet(later.path("labels.parquet"), pd.read_parquet(next(measured.glob("patches-*/labels.parquet"))))
    later.finish(["labels.parquet"], n_patches=4, n_patches_over_edge=3, n_patches_shifted=0)
    with pytest.raises(store.StoreError, match="measured on other patches"):
        effects.find(STUDY, "clipping", measured)


def test_a_study_that_asks_for_no_effects_has_no_table(tmp_path):
    none = dataclasses.replace(STUDY, effects=Effects())
    assert effects.asked(none) == () and not len(compare_effects.table(none, tmp_path))


def test_every_switch_is_a_departure_that_is_told_once():
    names = [defect.name for defect in compare_defects.DEFECTS]
    assert len(set(names)) == len(names) and set(Switches.CHOICES) <= set(names)
    assert all(bool(defect.why_no_switch) != (defect.name in Switches.CHOICES) for defect in compare_defects.DEFECTS)


def test_a_lora_arm_is_called_one():
    study = with_network(lora=Lora())
    assert compare_effects._kind(study, NETWORK) == "LoRA" and compare_effects._kind(study, PROBE) == "probe"


# ---- measuring ----


def made(results):
    """Every finished run's folder."""
    return {file.parent.name for file in results.glob("*/run.json")}


def stages(folders):
    return sorted(name.split("-")[0] for name in folders)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The base measured, and its data: small slides of noise, some annotations at their borders, two slides without class 0."""
    folder, rng = tmp_path_factory.mktemp("measured"), np.random.default_rng(0)
    (folder / "data" / "images").mkdir(parents=True)
    images, annotations = [], []
    for i in range(12):
        px = rng.integers(0, 256, (140, 160, 3), dtype=np.uint8)
        said = {"resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(folder / "data" / "images" / f"{i}.tiff", px, tile=(32, 32), photometric="rgb", **said)
        images.append({"id": i, "file_name": f"{i}.tiff", "width": 160, "height": 140, "tumor_type": "ab"[i % 2]})
        for k, (x, y) in enumerate(rng.integers(5, 135, (8, 2)).tolist()):
            box = [x - 25, y - 25, x + 25, y + 25]
            annotations.append({"id": 8 * i + k, "image_id": i, "bbox": box, "category_id": 1 + (k % 2 if i < 10 else 0)})
    (folder / "data" / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    measuring.measure(STUDY, effects.BASE, folder / "data", folder / "results", n_workers=2)
    return folder


def test_measuring_makes_what_a_switch_changes_and_nothing_twice(base):
    results = base / "results"
    before = made(results)
    assert stages(before) == ["effect", "embeddings", "patches", "probe", "splits", "train", "train", "twins"]
    measuring.measure(STUDY, effects.BASE, base / "data", results)
    measuring.measure(STUDY, "encoder_input", base / "data", results)
    assert made(results) == before, "nothing changed, and a switch that touches no arm makes nothing"
    measuring.measure(STUDY, "clipping", base / "nowhere", results)
    clipped = made(results) - before
    assert stages(clipped) == ["effect", "train", "train"]
    measuring.measure(STUDY, "border", base / "data", results)
    expected = ["effect", "embeddings", "patches", "probe", "splits", "train", "train", "twins"]
    assert stages(made(results) - before - clipped) == expected
    row = compare_effects.rows_of(STUDY, "clipping", results)[0]
    assert (
        row["applies"]
        and row["n_folds"] == 2
        and row["why"] == "too few folds for an interval"
        and np.isfinite(row["difference"])
    )


@pytest.mark.parametrize("switch", ["epoch", "training_label", "validation", "sampler", "augmentation", effects.PAPER])
def test_training_takes_each_switch_and_all_at_once(base, switch):
    """How each changes the loop is tested with the loop; here, that a study with it set is trained and compared."""
    results = base / "results"
    before = made(results)
    measuring.measure(STUDY, switch, base / "data", results, n_workers=2)
    study = dataclasses.replace(STUDY, effects=dataclasses.replace(STUDY.effects, switches=tuple(Switches.CHOICES)))
    row, of_probe = compare_effects.rows_of(study, switch, results)
    assert row["n_folds"] == 2 and np.isfinite(row["difference"])
    assert of_probe["applies"] == (switch == effects.PAPER)
    assert ("unpaired" in row["why"]) == (switch == effects.PAPER)
    assert switch not in ("sampler", "augmentation") or "the same predictions" not in row["why"]
    if switch != effects.PAPER:
        assert stages(made(results) - before) == ["effect", "train", "train"]


def test_random_places_are_read_from_the_slides_that_patches_were_cut_from(base, tmp_path):
    """Without the data folder, or with another's, nothing is trained."""
    results, this = base / "results", effects.derived(STUDY, "sampler")
    train = measuring.train
    fresh = dataclasses.replace(this, networks=(dataclasses.replace(this.networks[0], max_lr=0.003),))
    with pytest.raises(train.TrainingError, match=r"draws random places of . training slides.*data_folder in notebook 04"):
        train.train_study(fresh, "net", 0, results)
    with pytest.raises(ValueError, match="slides that the patches were cut from 12 aren't there"):
        train.train_study(fresh, "net", 0, results, data=tmp_path)
    shutil.copytree(base / "data", tmp_path / "data")
    turned = tifffile.imread(base / "data" / "images" / "3.tiff")[::-1]
    said = {"resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "data" / "images" / "3.tiff", turned, tile=(32, 32), photometric="rgb", **said)
    with pytest.raises(ValueError, match="other slides lie here than those"):
        train.train_study(fresh, "net", 0, results, data=tmp_path / "data")


def test_an_arm_that_fails_stops_not_the_other(base, monkeypatch):
    def refuse(*_):
        raise measuring.encoders.EncoderError("accept its licence")

    study = dataclasses.replace(STUDY, probe=dataclasses.replace(STUDY.probe, max_iter=7))
    monkeypatch.setattr(measuring.probe, "fit_study", refuse)
    with pytest.raises(measuring.SwitchError, match="random:test_vit: accept its licence"):
        measuring.measure(study, effects.BASE, base / "data", base / "results")
    network, probe = compare_effects.rows_of(study, effects.BASE, base / "results")
    assert network["n_folds"] == 2 and probe["why"] == compare_effects.NOT_YET


def test_several_at_once_on_one_folder_make_each_thing_once(base, monkeypatch):
    """Two processes would do as two threads do here: the locks are of open files, not of processes."""
    begun, train_study = [], measuring.train.train_study
    lock = threading.Lock()

    def counted(study, name, fold, results, device, data):
        with lock:
            begun.append((study.switches.stratified, fold, bool(made_training(results, study, name, fold))))
        return train_study(study, name, fold, results, device, data=data)

    def made_training(results, study, name, fold):
        try:
            return measuring.train.find(study, name, fold, results)
        except store.StoreError:
            return None

    monkeypatch.setattr(measuring.train, "train_study", counted)
    failed = []

    def measure():
        try:
            measuring.measure(STUDY, "stratified", base / "data", base / "results")
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=measure) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    for fold in (0, 1):
        assert sorted(there for _, f, there in begun if f == fold) == [False, True, True]


def test_the_command_line_measures_one_switch_and_says_its_worth(base, tmp_path, capsys):
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(as_dict(STUDY)))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "tiny").symlink_to(base / "results")
    how = ["--study", str(file), "--results", str(tmp_path / "results"), "--data", str(base / "data"), "--device", "cpu"]
    assert measuring.main([*how, "--switch", "shared_splits"]) == 0
    network, probe = capsys.readouterr().out.splitlines()
    assert network.startswith("net (end-to-end): ") and "unpaired" in network
    assert probe == "random:test_vit (probe): of training alone; a probe has none of it"
    file.write_text(yaml.safe_dump(as_dict(dataclasses.replace(STUDY, effects=Effects()))))
    assert measuring.main([*how, "--switch", "base"]) == 1
    assert "effects name neither an encoder nor a network" in capsys.readouterr().err


def told(tmp_path, capsys, switch="border"):
    """What the command line says of a study file in ``tmp_path``, line by line."""
    file = tmp_path / "tiny.yaml"
    if not file.exists():
        file.write_text(yaml.safe_dump(as_dict(STUDY)))
    assert measuring.main(["--study", str(file), "--results", str(tmp_path / "results"), "--switch", switch]) == 1
    return capsys.readouterr().err.splitlines()


def test_several_problems_of_a_study_have_a_line_each(tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text("name: t\ntitle: t\ndata: {source: midog}\nencodrs: [a]\nsplit: {}\n")
    assert [line.strip().split(";")[0] for line in told(tmp_path, capsys)] == [
        f"mfcore: {tmp_path / 'tiny.yaml'}: 2 problems:",
        "unknown key encodrs",
        "unknown key split",
    ]


def test_every_arm_that_fails_begins_a_line_and_keeps_its_own(tmp_path, capsys, monkeypatch):
    def fails(study, switch, *_):
        raise measuring.SwitchError("net: 2 problems:\n  no patches\n  one class", "probe: no weights")

    monkeypatch.setattr(measuring, "measure", fails)
    monkeypatch.setattr(compare_effects, "rows_of", lambda *_: [])
    assert told(tmp_path, capsys, "base") == [
        "mfcore: net: 2 problems:",
        "  no patches",
        "  one class",
        "mfcore: probe: no weights",
    ]


@pytest.mark.parametrize("error", [DownloadError("gone: 404"), DiskError("patches.npy: full"), OSError("no disk")])
def test_what_the_data_or_the_disk_refuse_is_told_without_a_traceback(tmp_path, capsys, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(measuring, "measure", fails)
    assert told(tmp_path, capsys) == [f"mfcore: {error}"]


def test_a_switch_that_there_is_not_is_told_at_the_command_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        measuring.main(["--study", "x", "--results", "y", "--switch", "epochs"])
    assert "invalid choice: 'epochs'" in capsys.readouterr().err
