"""What a switch is worth: derived studies that differ in that switch alone, the table of their scores, the exhibit."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest

from mfcore import store
from mfcore.analysis import switches
from mfcore.analysis.switches import BASE, PAPER
from mfcore.study import arms as study_arms, data as study_data, encoders as study_encoders
from mfcore.study.config import MODES, Data, Effects, Lora, Network, Patches, Settings, Splits, Switches, as_dict
from mfcore.study.study import Study

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
NETWORK, PROBE = "net", "random:test_vit"


def derived(study, switch):
    return switches.derived(Study(study, "nowhere"), switch).settings


def why_not(study, switch, arm):
    return switches.why_not(Study(study, "nowhere"), switch, arm)


# ---- the study with one switch flipped ----


def test_the_base_is_the_study_at_the_full_size_on_two_arms():
    base = derived(STUDY, BASE)
    assert base.switches == STUDY.switches
    assert base.encoders == ("random:test_vit",) and [network.name for network in base.networks] == ["net"]
    assert base.splits == dataclasses.replace(STUDY.splits, sizes=(1.0,), by_domain=False, n_folds=2)
    assert (base.networks[0].sizes, base.networks[0].by_domain) == ((1.0,), False)
    assert study_data.patches_config(base) == study_data.patches_config(STUDY), (
        "as wide as the other network asks: the same patches"
    )
    assert STUDY.stored_px > base.networks[0].needed_px


@pytest.mark.parametrize("switch", Switches.CHOICES)
def test_a_switch_is_flipped_alone_and_paper_flips_all(switch):
    base, flipped = derived(STUDY, BASE), derived(STUDY, switch)
    assert [name for name, *_ in store.differences(as_dict(base), as_dict(flipped))] == [f"switches.{switch}"]
    assert getattr(flipped.switches, switch) == getattr(MODES["paper"], switch)
    assert derived(STUDY, PAPER).switches == MODES["paper"]


def test_an_unknown_switch_is_refused_by_name():
    with pytest.raises(ValueError, match="switch 'epochs' is not one of"):
        derived(STUDY, "epochs")


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

    study = dataclasses.replace(
        STUDY,
        encoders=("vit_huge_in21k",),
        networks=(dataclasses.replace(STUDY.networks[0], architecture="vit_huge_in21k"),),
        effects=dataclasses.replace(STUDY.effects, encoder="vit_huge_in21k"),
    )

    def keys(of):
        return {
            "patches": study_data.patches_config(of),
            "splits": study_data.splits_config(of),
            "network_splits": study_data.splits_config(of, networks=True),
            "embeddings": study_encoders.embeddings_config(of, "vit_huge_in21k", "results"),
            "network": study_encoders.training_card_of(of, "vit_huge_in21k").identity(),
        }

    base, flipped = derived(study, BASE), derived(study, switch)
    was, now = keys(base), keys(flipped)
    assert {name for name in was if was[name] != now[name]} == CHANGES[switch]
    of_loop = switch in ("epoch", "training_label", "validation", "clipping", "sampler", "augmentation", "encoder_input")
    changed = study_arms.training_config(base, base.networks[0], 0) != study_arms.training_config(
        flipped, flipped.networks[0], 0
    )
    assert changed == of_loop
    arms = {"vit_huge_in21k": {"patches", "splits", "embeddings"}, "net": {"patches", "network_splits", "network"}}
    for arm, made_of in arms.items():
        is_other = switches.made_from(base, arm) != switches.made_from(flipped, arm)
        assert is_other == bool(CHANGES[switch] & made_of or (arm == "net" and of_loop)), "as the keys of the arm's runs"


def with_network(**changes):
    return dataclasses.replace(STUDY, networks=(dataclasses.replace(STUDY.networks[0], **changes),))


def as_it_is(**flipped):
    return dataclasses.replace(STUDY, switches=dataclasses.replace(STUDY.switches, **flipped))


@pytest.mark.parametrize(
    ("study", "switch", "arm", "why"),
    [
        (STUDY, "epoch", PROBE, "of training alone"),
        (STUDY, "shared_splits", PROBE, "of training alone"),
        (STUDY, "encoder_input", PROBE, "embeds Virchow2, Prov-GigaPath and ViT-H in a way of its own.*not this encoder"),
        (STUDY, "encoder_input", NETWORK, "trains ViT-H so, but not this encoder"),
        (with_network(clip_norm=None), "clipping", NETWORK, "without it there is no clipping"),
        (STUDY, "sampler", PROBE, "of training alone"),
        (with_network(patches_per_epoch=None), "sampler", NETWORK, "shown every patch once draws none"),
        (with_network(blur_probability=0.0, rotation_probability=0.0), "augmentation", NETWORK, "crops are blurred or turned"),
        (dataclasses.replace(STUDY, data=Data("amibr")), "sampler", NETWORK, "images have no slide"),
        (as_it_is(epoch="last"), "epoch", NETWORK, "the study itself does as the released code"),
        (as_it_is(epoch="last"), "validation", NETWORK, "where validation chooses the epoch that is tested"),
        (dataclasses.replace(STUDY, data=Data("amibr")), "resolution", PROBE, "images, cut before"),
        (dataclasses.replace(STUDY, data=Data("amibr")), "border", NETWORK, "images, cut before"),
    ],
)
def test_what_a_study_cannot_show_says_why(study, switch, arm, why):
    assert re.search(why, why_not(study, switch, arm))


def test_what_a_study_can_show_gives_no_excuse():
    of_probe = {"split_by", "stratified", "resolution", "border"}
    assert {name for name in Switches.CHOICES if not why_not(STUDY, name, PROBE)} == of_probe
    of_network = set(Switches.CHOICES) - {"encoder_input"}
    assert {name for name in Switches.CHOICES if not why_not(STUDY, name, NETWORK)} == of_network
    assert not why_not(STUDY, PAPER, PROBE) and not why_not(STUDY, BASE, NETWORK)


def patches_run(results, um_per_px=0.25, over_edge=3, far_px=17.5, labels="first"):
    """Four patches that count: a negative with a positive ``far_px`` beside it on one slide, and two alone; then 400 more."""
    table = pd.DataFrame({"patch_id": range(4), "slide_id": list("aaab"), "label": [0, 1, 0, 0], "um_per_px": um_per_px})
    table = table.assign(x_l0_px=[100.0, 100 + far_px, 500, 100], y_l0_px=100.0, case_id=table["slide_id"], domain="d")
    more = pd.concat([table.iloc[[1]]] * 400).assign(patch_id=range(4, 404), x_l0_px=9e4)
    run = store.open_run(results, "patches", "tiny", study_data.patches_config(STUDY), {"labels": labels})
    store.write_parquet(run.path("labels.parquet"), pd.concat([table, more], ignore_index=True))
    run.finish(["labels.parquet"], n_patches=4, n_patches_over_edge=over_edge, n_patches_shifted=0)
    return Study(STUDY, results)


def test_what_the_data_give_a_switch_to_touch_is_counted(tmp_path):
    some = patches_run(tmp_path / "some", [0.25, 0.25, 0.25, 0.5])
    none = patches_run(tmp_path / "none", over_edge=0, far_px=18.5)  # half of 32 px, and a shift of 2
    counts = {"border": (3, 4), "resolution": (1, 2), "training_label": (1, 3)}
    for switch, (n, n_all) in counts.items():
        assert switches.counted(some, switch).startswith(f"{n} of {n_all} ")
        assert not switches.why_not(some, switch, NETWORK)
        assert switches.why_not(none, switch, NETWORK).startswith(f"nothing here to change: 0 of {n_all} ")
    assert switches.counted(some, "epoch") == "" and not switches.why_not(none, "epoch", NETWORK)
    assert switches.counted(Study(STUDY, tmp_path), "border") == "", "without patches nothing is counted"


# ---- the table ----

THREE = dataclasses.replace(STUDY, effects=dataclasses.replace(STUDY.effects, n_folds=3))


def fit(study, switch, shift, first=0, n_folds=3):
    """Finished trainings of the network with a switch flipped, whose positives score ``shift`` above its negatives."""

    settings = switches.derived(study, switch).settings
    inputs = {"patches": study.patches.key}
    drawn = store.open_run(study.folder, "splits", settings.switches.scheme, study_data.splits_config(settings), inputs)
    if not drawn.done:
        roles = {"patch_id": range(50), "train_domain": "all", "size": 1.0, "role": "train"}
        table = pd.concat([pd.DataFrame(roles | {"fold": fold}) for fold in range(3)])
        store.write_parquet(drawn.path("splits.parquet"), table)
        drawn.finish(["splits.parquet"])
    for fold in range(n_folds):
        config = study_arms.training_config(settings, settings.networks[0], fold)
        made_of = inputs | {"splits": drawn.key}
        known = {key: value for key, value in config.items() if key != "card"} | made_of
        run = store.open_run(study.folder, "train", f"net-fold{fold}", config, made_of, known)
        rng, labels = np.random.default_rng(fold), np.arange(40) % 2
        predicted = {"patch_id": first + 40 * fold + np.arange(40), "slide_id": "a", "domain": "d", "label": labels}
        scores = 1 / (1 + np.exp(-rng.normal(size=40) - shift * labels))
        table = pd.DataFrame(predicted | {"fold": fold, "size": 1.0, "score": scores, "train_domain": "all"})
        store.write_parquet(run.path("predictions.parquet"), table)
        run.finish(["predictions.parquet"])


@pytest.fixture
def measured(tmp_path):
    """The base, and two of three switches on the network: one tested on the same patches, one on others."""
    patches_run(tmp_path)
    study = Study(THREE, tmp_path)
    for switch, shift, first in ((BASE, 2.0, 0), ("clipping", 1.0, 0), ("split_by", 2.0, 200)):
        fit(study, switch, shift, first)
    reason = {"name": "measure.border", "stage": "x", "reason": "SweepError: no such weights", "parameters": {}}
    store.write_json(tmp_path / "failures" / "measure.border.json", reason)
    return study


def asking(study, *names):
    """The study, asking for other switches."""
    return Study(dataclasses.replace(THREE, effects=dataclasses.replace(THREE.effects, switches=names)), study.folder)


def test_each_departure_and_arm_has_a_row_with_its_worth_or_the_reason(measured):
    table = switches.table(measured)
    assert table.columns.tolist() == switches.COLUMNS and len(table) == 2 * len(switches.departures())
    rows = table.set_index(["switch", "arm"])
    base, clipped = rows.loc[(BASE, "net")], rows.loc[("clipping", "net")]
    assert (base["n_folds"], base["kind"]) == (3, "end-to-end") and np.isnan(base["difference"])
    assert clipped["difference"] == pytest.approx(clipped["auroc"] - base["auroc"]) and clipped["difference"] < 0
    assert clipped["low"] < clipped["difference"] < clipped["high"] and clipped["why"] == ""
    assert (clipped["as_released"], clipped["default"]) == ("before_backward", "after_backward")
    apart = rows.loc[("split_by", "net")]
    assert apart["why"] == "unpaired: the two are tested on different patches" and np.isfinite(apart["low"])
    assert rows.loc[("border", "net"), "why"] == "failed: SweepError: no such weights"
    assert rows.loc[(PAPER, "net"), "why"] == rows.loc[(BASE, PROBE), "why"] == switches.NOT_YET
    assert rows.loc[("stratified", "net"), "why"] == "the study doesn't ask for it (effects.switches)"
    assert rows.loc["encoder_input", "why"].str.startswith("the released code embeds").all()
    assert (rows.loc["labels", "why"] == "the released code stops there: no number comes of it").all()
    assert rows.loc[("stratified", "net"), ["as_released", "default"]].tolist() == ["no", "yes"]


def test_the_table_of_one_switch_has_its_rows_alone_also_where_the_study_does_not_ask(measured):
    fit(measured, "epoch", 1.5)
    network, probe = switches.table(measured, ("epoch",)).to_dict("records")
    assert np.isfinite(network["difference"]) and probe["why"].startswith("of training alone")


def test_a_switch_that_changes_no_prediction_says_so(measured):
    study = asking(measured, "epoch")
    fit(study, "epoch", 2.0)
    row = switches.table(study, ("epoch",)).iloc[0]
    assert row["why"] == "the same predictions in every fold" and row["difference"] == 0


def test_a_switch_of_which_a_fold_is_missing_is_not_measured_yet(measured):
    study = asking(measured, "epoch")
    fit(study, "epoch", 1.5, n_folds=2)
    assert switches.table(study, ("epoch",)).iloc[0]["why"] == switches.NOT_YET


def test_data_with_nothing_to_touch_are_the_reason(tmp_path):
    table = switches.table(patches_run(tmp_path, over_edge=0), ("border",))
    assert (table["why"] == "nothing here to change: 0 of 4 patches, as stored, reach over a slide's border").all()


def test_a_measurement_on_other_patches_or_of_another_study_does_not_count(measured):
    network = dataclasses.replace(THREE.networks[0], max_lr=3.0)
    other = Study(dataclasses.replace(THREE, networks=(network, THREE.networks[1])), measured.folder)
    assert switches.table(other, ("clipping",))["why"][0] == switches.NOT_YET
    assert switches.table(measured, ("clipping",))["why"][0] == ""
    patches_run(measured.folder, labels="corrected")
    assert switches.table(Study(THREE, measured.folder), ("clipping",))["why"][0] == switches.NOT_YET


# ---- the exhibit ----


def test_a_study_that_asks_for_no_effects_has_no_table(tmp_path):
    exhibit = switches.worth(Study(dataclasses.replace(STUDY, effects=Effects()), tmp_path))
    assert not len(exhibit.table) and exhibit.figure is None
    assert "No switch is measured here" in exhibit.caption


def test_the_exhibit_says_of_every_departure_what_is_done_and_what_it_is_worth(measured, tmp_path):
    exhibit = switches.worth(measured).save(tmp_path / "figures")
    assert {file.name for file in (tmp_path / "figures").iterdir()} == {
        f"05_switches.{end}" for end in ["csv", "json", "pdf", "png"]
    }
    shown = exhibit.readable.set_index("departure")
    assert len(shown) == len(switches.departures())
    clipped = shown.loc["Clipping before there is a gradient"]
    assert clipped[["as_released", "default"]].tolist() == ["before_backward", "after_backward"]
    assert clipped["where"] == "train_one_epoch" and clipped["without the switch"].startswith("clips after")
    assert re.fullmatch(r"-0\.\d{3} \(.* to .*\), AUROC 0\.\d\d ± 0\.\d\d over 3 folds", clipped["net (end-to-end)"])
    words = exhibit.readable.to_string()
    for text in ("failed: SweepError: no such weights", "the released code stops there: no number comes of it"):
        assert text in words, text
    assert "Of 2 switches measured, the interval excludes zero for " in exhibit.caption


def test_a_measured_switch_says_how_much_of_the_data_it_changes(measured):
    fit(measured, "training_label", 1.5)
    network = switches.table(measured, ("training_label",)).to_dict("records")[0]
    assert network["why"].startswith("1 of 3 patches of the negative class have")
    assert switches.sentence(network).endswith(network["why"])


def test_a_study_in_paper_mode_is_said_to_do_as_the_released_code(tmp_path):
    study = Study(dataclasses.replace(STUDY, switches=MODES["paper"]), tmp_path)
    assert "itself does as the released code" in switches.why_not(study, PAPER, NETWORK)
    exhibit = switches.worth(study)
    assert "No switch is measured here" in exhibit.caption
    shown = exhibit.readable.set_index("departure").loc["Split by annotation"]
    assert shown["as_released"] == shown["default"] == "annotation"
    assert shown["net (end-to-end)"] == "the study itself does as the released code"


def test_every_switch_is_a_departure_that_is_told_once():
    told = switches.departures()
    assert {BASE, PAPER, *Switches.CHOICES} <= set(told)
    for name, entry in told.items():
        is_switch = name in (BASE, PAPER, *Switches.CHOICES)
        assert ("no_switch" in entry) != is_switch and "title" in entry, name
        assert name in (BASE, PAPER) or {"released", "where", "ours"} <= set(entry), name
        assert name not in Switches.CHOICES or name in ("split_by", "stratified") or "untouched" in entry, name


def test_a_lora_arm_is_called_one(tmp_path):
    table = switches.table(Study(with_network(lora=Lora()), tmp_path), (BASE,))
    assert table["kind"].tolist() == ["LoRA", "probe"]
