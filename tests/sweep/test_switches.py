"""Measuring switches: what flipping changes is made, once however many ask at a time, and nothing else."""

import dataclasses
import json
import shutil
import threading

import numpy as np
import pytest
import tifffile
import yaml

from mfcore import cli as face
from mfcore.analysis.switches import BASE, NOT_YET, PAPER, derived, table
from mfcore.data.downloads import DownloadError
from mfcore.encoders import EncoderError
from mfcore.study import arms as study_arms
from mfcore.study.config import Data, Effects, Network, Patches, Settings, Splits, as_dict
from mfcore.study.study import Study
from mfcore.sweep import switches as measuring
from mfcore.training.task import TrainingError

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


def made(results):
    """Every finished run's folder."""
    return {file.parent.name for file in results.glob("*/run.json")}


def stages(folders):
    return sorted(name.split("-")[0] for name in folders)


pytestmark = pytest.mark.filterwarnings("ignore:.*the penalty leaves no weight")  # of embeddings of few dimensions


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
    with pytest.warns(UserWarning, match="leaves no weight"):
        assert not measuring.measure(Study(STUDY, folder / "results"), BASE, folder / "data", n_workers=2)
    return folder


def test_measuring_makes_what_a_switch_changes_and_nothing_twice(base):
    results = base / "results"
    study, before = Study(STUDY, results), made(results)
    assert stages(before) == ["embeddings", "patches", "probe", "splits", "train", "train", "twins"]
    measuring.measure(study, BASE, base / "data")
    measuring.measure(study, "encoder_input", base / "data")
    assert made(results) == before, "nothing changed, and a switch that touches no arm makes nothing"
    measuring.measure(study, "clipping", base / "nowhere")
    clipped = made(results) - before
    assert stages(clipped) == ["train", "train"]
    measuring.measure(study, "border", base / "data")
    expected = ["embeddings", "patches", "probe", "splits", "train", "train", "twins"]
    assert stages(made(results) - before - clipped) == expected
    row = table(study, ("clipping",)).iloc[0]
    assert row["n_folds"] == 2 and row["why"] == "too few folds for an interval" and np.isfinite(row["difference"])


@pytest.mark.parametrize("switch", ["epoch", "training_label", "validation", "sampler", "augmentation", PAPER])
def test_training_takes_each_switch_and_all_at_once(base, switch):
    """How each changes the loop is tested with the loop; here, that a study with it set is trained and compared."""
    results = base / "results"
    study, before = Study(STUDY, results), made(results)
    measuring.measure(study, switch, base / "data", n_workers=2)
    row, of_probe = table(study, (switch,)).to_dict("records")
    assert row["n_folds"] == 2 and np.isfinite(row["difference"])
    assert np.isfinite(of_probe["difference"]) == (switch == PAPER)
    assert ("unpaired" in row["why"]) == (switch == PAPER)
    assert switch not in ("sampler", "augmentation") or "the same predictions" not in row["why"]
    if switch != PAPER:
        assert stages(made(results) - before) == ["train", "train"]


def test_random_places_are_read_from_the_slides_that_patches_were_cut_from(base, tmp_path):
    """Without the data folder, or with another's, nothing is trained."""
    results, this = base / "results", derived(Study(STUDY, base), "sampler").settings
    fresh = dataclasses.replace(this, networks=(dataclasses.replace(this.networks[0], max_lr=0.003),))
    with pytest.raises(TrainingError, match=r"draws random places of slides without class 0; .*data_folder in notebook 04"):
        study_arms.train(fresh, "net", 0, results)
    with pytest.raises(ValueError, match="slides that the patches were cut from 12 aren't there"):
        study_arms.train(fresh, "net", 0, results, data_folder=tmp_path)
    shutil.copytree(base / "data", tmp_path / "data")
    turned = tifffile.imread(base / "data" / "images" / "3.tiff")[::-1]
    said = {"resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "data" / "images" / "3.tiff", turned, tile=(32, 32), photometric="rgb", **said)
    with pytest.raises(ValueError, match="other slides lie here than those"):
        study_arms.train(fresh, "net", 0, results, data_folder=tmp_path / "data")


def test_an_arm_that_fails_stops_not_the_other(base, monkeypatch):
    def refuse(*_):
        raise EncoderError("accept its licence")

    study = dataclasses.replace(STUDY, probe=dataclasses.replace(STUDY.probe, max_iter=7))
    monkeypatch.setattr(study_arms, "fit_probe", refuse)
    study = Study(study, base / "results")
    assert measuring.measure(study, BASE, base / "data") == ["random:test_vit: accept its licence"]
    network, probe = table(study, (BASE,)).to_dict("records")
    assert network["n_folds"] == 2 and probe["why"] == NOT_YET


def test_several_at_once_on_one_folder_make_each_thing_once(base, monkeypatch):
    """Two processes would do as two threads do here: the locks are of open files, not of processes."""
    begun, train = [], measuring.study_arms.train
    lock = threading.Lock()

    def counted(study, name, fold, results, device, data_folder):
        with lock:
            begun.append((study.switches.stratified, fold, f"{name}-fold{fold}" in Study(study, results).runs))
        return train(study, name, fold, results, device, data_folder=data_folder)

    monkeypatch.setattr(measuring.study_arms, "train", counted)
    failed = []

    def measure():
        try:
            measuring.measure(Study(STUDY, base / "results"), "stratified", base / "data")
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
    assert face.main(["measure", *how, "--switch", "shared_splits"]) == 0
    network, probe = capsys.readouterr().out.splitlines()
    assert network.startswith("net (end-to-end): ") and "unpaired" in network
    assert probe == "random:test_vit (probe): of training alone; a probe has none of it"
    file.write_text(yaml.safe_dump(as_dict(dataclasses.replace(STUDY, effects=Effects()))))
    assert face.main(["measure", *how, "--switch", "base"]) == 1
    assert "effects name neither an encoder nor a network" in capsys.readouterr().err


def told(tmp_path, capsys, switch="border"):
    """What the command line says of a study file in ``tmp_path``, line by line."""
    file = tmp_path / "tiny.yaml"
    if not file.exists():
        file.write_text(yaml.safe_dump(as_dict(STUDY)))
    assert face.main(["measure", "--study", str(file), "--results", str(tmp_path / "results"), "--switch", switch]) == 1
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
        return ["net: 2 problems:\n  no patches\n  one class", "probe: no weights"] if switch == BASE else []

    monkeypatch.setattr(measuring, "measure", fails)
    assert told(tmp_path, capsys, "base") == [
        "mfcore: net: 2 problems:",
        "  no patches",
        "  one class",
        "mfcore: probe: no weights",
    ]


@pytest.mark.parametrize("error", [DownloadError("gone: 404"), OSError("no disk")])
def test_what_the_data_or_the_disk_refuse_is_told_without_a_traceback(tmp_path, capsys, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(measuring, "measure", fails)
    assert told(tmp_path, capsys) == [f"mfcore: {error}"]


def test_a_switch_that_there_is_not_is_told_at_the_command_line(base, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measuring, "measure", lambda study, name, *_: derived(study, name) and [])
    assert told(tmp_path, capsys, "epochs")[0].startswith("mfcore: switch 'epochs' is not one of ['split_by'")
