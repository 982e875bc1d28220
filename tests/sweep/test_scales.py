"""Scales: the same annotations at several fields of view and resolutions, as derived studies; their table and figure."""

import dataclasses
import re

import made_study
import made_sweep
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

import mfcore
from mfcore import cli, store
from mfcore.analysis.encoders import scales
from mfcore.data import patches
from mfcore.encoders import embed
from mfcore.measures.binary import auroc
from mfcore.study import arms, data as study_data, encoders, predictions
from mfcore.study.config import ConfigError, Scales, load_study
from mfcore.sweep import ROOT, jobs, switches as measuring

SCALES = """
scales:
  encoders: [tiny]
  network: net
  patches:
    - {um_per_px: 0.25, size_px: [32, 64], network_px: [32]}
    - {um_per_px: 0.5, size_px: [32]}
"""
FILE = made_study.FILE.replace("n_folds: 2", "n_folds: 3") + SCALES
EMBEDDED = ("efficientnet_lite0", "vit_tiny_random")
NAMES = ["32px_0.25um", "64px_0.25um", "32px_0.5um"]
BY_HAND = (
    made_study.FILE.replace("size_px: 32, um_per_px: 0.25, stored_px: 48", "size_px: 32, um_per_px: 0.5")
    .replace("n_folds: 2, sizes: [0.5, 1.0]", "n_folds: 3, sizes: [1.0]")
    .partition("  - {name: lora")[0]
    .replace("sizes: [1.0]}\n", "sizes: [1.0], by_domain: false}\n")
)


def opened(folder, text=FILE, results="results"):
    (folder / "little.yaml").write_text(text)
    return mfcore.open_study(folder / "little.yaml", folder / results)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder with slides of noise at 0.25 um/px and all scales measured on them."""
    folder = tmp_path_factory.mktemp("scales")
    made_sweep.write_data(folder / "data")
    for name in NAMES:
        assert not measuring.measure(opened(folder), name, folder / "data")
    return folder


def test_a_scale_is_what_a_study_written_by_hand_for_it_gives(measured):
    study, folder = opened(measured, BY_HAND, "by_hand"), measured / "by_hand" / "little"
    study_data.extract(study.settings, measured / "data", folder)
    study_data.write_splits(study.settings, folder)
    arms.fit_probe(study.settings, encoders.embed(study.settings, "tiny", folder), folder)
    for fold in range(3):
        arms.train(study.settings, "net", fold, folder)
    by_hand = mfcore.open_study(measured / "little.yaml", measured / "by_hand")
    settings = study_data.at_scales(opened(measured).settings)["32px_0.5um"]
    derived = type(study)(settings, measured / "results" / "little")
    for find in (lambda of: of.patches, lambda of: of.embeddings("tiny"), lambda of: of.runs["net-fold1"]):
        assert find(derived).key == find(by_hand).key and find(derived).folder != find(by_hand).folder
    features = [embed.load(of.embeddings("tiny"))[0] for of in (derived, by_hand)]
    np.testing.assert_array_equal(*features)
    pd.testing.assert_frame_equal(derived.predictions, by_hand.predictions)
    assert set(derived.predictions["arm"]) == {"tiny", "net"} and len(derived.failures) == 0


def test_the_table_has_each_scale_with_its_field_and_the_cost_at_the_same_field(measured):
    study = opened(measured)
    table = scales.table(study).set_index(["scale", "arm"])
    assert list(table.columns) == [name for name in scales.COLUMNS if name not in ("scale", "arm")]
    assert table["field_um"].to_dict() == {
        ("32px_0.25um", "net"): 8, ("32px_0.5um", "net"): 16,
        ("32px_0.25um", "tiny"): 8, ("64px_0.25um", "tiny"): 16, ("32px_0.5um", "tiny"): 16,
    }  # fmt: skip
    coarse, fine = table.loc[("32px_0.5um", "tiny")], table.loc[("64px_0.25um", "tiny")]
    assert coarse["than"] == 0.25 and table["than"].notna().sum() == 1, "the network has no field twice"
    assert coarse["difference"] == pytest.approx(coarse["auroc"] - fine["auroc"], abs=1e-12)
    assert coarse["low"] < coarse["difference"] < coarse["high"] and coarse["n_folds"] == 3
    assert (fine["seen_um"], fine["seen_um_per_px"]) == (16, 0.5), "the encoder's input has 32 px"
    predicted = measuring.derived(study, "64px_0.25um").predictions
    folds = [auroc(part["label"].to_numpy(), part["score"].to_numpy()) for _, part in predicted.groupby("fold")]
    assert fine["auroc"] == pytest.approx(np.mean(folds)) and fine["auroc_sd"] == pytest.approx(np.std(folds, ddof=1))
    assert fine["auroc_low"] < fine["auroc"] < fine["auroc_high"]


def test_the_figure_has_a_line_a_resolution_and_arm_and_the_table_what_the_coarser_changes(measured, tmp_path):
    study = opened(measured)
    exhibit = scales.field_of_view(study).save(tmp_path)
    assert {file.suffix for file in tmp_path.glob("06_field_of_view.*")} == {".png", ".pdf", ".csv", ".json"}
    (axis,) = exhibit.figure.axes
    _, lines = axis.get_legend_handles_labels()
    arms_ = ["net (end-to-end)", "tiny (probe)"]
    assert set(lines) == {"chance", *(f"{arm}, {um} µm/px" for arm in arms_ for um in ("0.25", "0.5"))}
    assert axis.get_xscale() == "log" and [text.get_text() for text in axis.get_xticklabels()] == ["8", "16"]
    row = exhibit.table.dropna(subset=["difference"]).iloc[0]
    assert f"{row['difference']:+.3f}".lstrip("+-") in "".join(exhibit.readable["difference"])
    assert exhibit.caption.count(". ") == 2, "three sentences"


def test_chance_is_drawn_where_the_legend_names_it(tmp_path):
    """Also where every AUROC lies far above 0.5."""
    row = {"arm": "tiny", "kind": "probe", "size": 1.0, "um_per_px": 0.25, "auroc": 0.9, "auroc_low": 0.85, "auroc_high": 0.95}
    figure = scales._figure(opened(tmp_path), pd.DataFrame([row | {"field_um": field} for field in (8, 16)]))
    assert "chance" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert figure.axes[0].get_ylim()[0] < 0.5


def test_a_scale_not_measured_says_why(tmp_path):
    study = opened(tmp_path)
    reason = {"name": "x", "stage": "x", "reason": "SweepError: no slides", "parameters": {}}
    store.write_json(study.folder / "failures" / "measure.64px_0.25um.json", reason)
    table = scales.table(study).set_index(["scale", "arm"])["why"]
    assert table["64px_0.25um", "tiny"] == "failed: SweepError: no slides" and table["32px_0.5um", "net"] == "not measured yet"
    exhibit = scales.field_of_view(study)
    assert exhibit.figure is None and "failed: SweepError: no slides and not measured yet" in exhibit.caption
    none = scales.field_of_view(opened(tmp_path, made_study.FILE))
    assert "No scale is measured here (study `little`): the study names none." in none.caption


def test_the_command_line_measures_one_scale_and_says_its_worth(measured, capsys):
    opened(measured)
    command = ["measure", "--study", str(measured / "little.yaml"), "--results", str(measured / "results")]
    command += ["--data", str(measured / "data"), "--device", "cpu", "--scale", "32px_0.5um"]
    before = {file.parent.name for file in measured.glob("results/little/*/run.json")}
    assert cli.main(command) == 0
    network, probe = capsys.readouterr().out.splitlines()
    assert network.startswith("net (end-to-end): AUROC 0.") and re.match(r"tiny \(probe\): [+-]0\.\d{3} \(.*\), AUROC", probe)
    assert {file.parent.name for file in measured.glob("results/little/*/run.json")} == before, "nothing is made twice"


def test_each_scale_is_a_job_that_notebook_06_waits_for(measured):
    study = opened(measured).settings
    assert not study.splits.by_domain, "so that nothing but the scales asks for notebook 06"
    all_jobs = jobs.jobs_of(study)
    names = [f"measure.{name}" for name in NAMES]
    assert [name for name in all_jobs if name.startswith("measure")] == names
    assert set(names) <= set(all_jobs["06_cross_domain_analysis"].needs)
    assert not set(names) & set(all_jobs["05_data_scaling"].needs)
    assert dict(all_jobs[names[0]].parameters) == {"switch": NAMES[0]} and "01_extract_patches" in all_jobs[names[0]].needs


# ---- the field of view, checked on px that say where they come from ----


def ruler(side):
    """An image whose red is the column and whose green the row, in px."""
    rows, columns = np.mgrid[:side, :side].astype(np.uint8)
    return np.stack([columns, rows, np.zeros_like(rows)], axis=2)


@pytest.mark.parametrize(("um_per_px", "size_px"), [(0.25, 32), (0.25, 64), (0.5, 32), (0.5, 64), (1.0, 16)])
def test_a_patch_shows_the_field_of_its_scale(tmp_path, um_per_px, size_px):
    """On a slide of 0.25 um/px the outermost px are centred (field - um/px) / 2 from the annotation."""
    folder = made_sweep.write_data(tmp_path / "data", n_slides=4, n_annotations=4)
    for file in (folder / "images").glob("*.tiff"):
        said = {"resolution": (4e4,) * 2, "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(file, ruler(240), tile=(32, 32), photometric="rgb", **said)
    labels = (folder / "annotations.json").read_text()
    labels = labels.replace('"category_id": 1', '"category_id": 2', 1).replace(
        '"width": 80, "height": 80', '"width": 240, "height": 240'
    )
    (folder / "annotations.json").write_text(re.sub(r'"bbox": \[[^]]*\]', '"bbox": [95, 85, 145, 135]', labels))
    text = made_study.FILE + f"scales: {{encoders: [tiny], patches: [{{um_per_px: {um_per_px}, size_px: [{size_px}]}}]}}\n"
    (settings,) = study_data.at_scales(opened(tmp_path, text).settings).values()
    _, images = patches.load(study_data.extract(settings, folder, tmp_path / "results"))
    field_l0_px = size_px * um_per_px / 0.25
    middle = images[:, size_px // 2, size_px // 2 - 1 : size_px // 2 + 1].mean(axis=(0, 1))
    assert images.shape[1:3] == (size_px, size_px) and middle[0] == pytest.approx(119.5, abs=1)
    seen = images[0, size_px // 2, :, 0].astype(float)
    inner = seen[2:-2]  # the bicubic kernel reaches over the slide's px, not over its end
    assert np.diff(inner).mean() == pytest.approx(um_per_px / 0.25, abs=0.02), "level-0 px a px"
    assert (seen[-1] - seen[0]) + um_per_px / 0.25 == pytest.approx(field_l0_px, abs=1.01)


@pytest.mark.parametrize(("um_per_px", "size_px", "span"), [(0.25, 128, 128), (0.25, 32, 32), (0.5, 64, 128), (0.5, 32, 64)])
def test_a_patch_image_is_cropped_at_its_centre_and_only_made_coarser(tmp_path, um_per_px, size_px, span):
    folder = tmp_path / "data"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(ruler(128)).save(folder / name / f"{i}.png")
    text = (
        "name: little\ntitle: t\ndata: {source: images, positive: a, negative: b, um_per_px: 0.25}\n"
        "patches: {size_px: 128, um_per_px: 0.25}\nencoders: [vit_tiny_random]\n"
        f"scales: {{encoders: [vit_tiny_random], patches: [{{um_per_px: {um_per_px}, size_px: [{size_px}]}}]}}\n"
    )
    (settings,) = study_data.at_scales(opened(tmp_path, text).settings).values()
    _, images = patches.load(study_data.extract(settings, folder, tmp_path / "results"))
    seen = patches.centre_crop(images, size_px)[0, size_px // 2, :, 0].astype(float)  # as encoders and networks see it
    assert len(seen) == size_px and (seen[0] + seen[-1]) / 2 == pytest.approx(63.5, abs=0.51), "the image's centre"
    assert seen[-1] - seen[0] + um_per_px / 0.25 == pytest.approx(span, abs=1.01)


def test_slides_coarser_than_a_scale_are_refused_by_check_and_before_anything_is_cut(measured, tmp_path, capsys):
    text = FILE.replace("um_per_px: 0.5, size_px: [32]", "um_per_px: 0.2, size_px: [32]").replace(
        "- {um_per_px: 0.25, size_px: [32, 64]", "- {um_per_px: 0.125, size_px: [32, 64]"
    )
    study = opened(tmp_path, text)
    assert cli.main(["study", "check", str(tmp_path / "little.yaml"), "--data", str(measured / "data")]) == 1
    said = capsys.readouterr().err
    for um_per_px in ("0.125", "0.2"):
        assert f"scales.patches[{um_per_px} um/px]: um_per_px is {um_per_px}; 10 of 10 slides are coarser, such as" in said
    with pytest.raises(ConfigError, match="ask for a coarser resolution"):
        measuring.measure(study, "32px_0.2um", measured / "data")
    assert not list(study.folder.glob("patches-*"))


def test_slides_a_little_coarser_are_enlarged_and_the_table_says_by_how_much(measured):
    text = FILE.replace("um_per_px: 0.5, size_px: [32]", "um_per_px: 0.24, size_px: [32]").replace("  network: net\n", "")
    text = text.replace(", network_px: [32]", "")
    study = opened(measured, text)
    assert not measuring.measure(study, "32px_0.24um", measured / "data")
    assert scales.table(study, "32px_0.24um")["why"].tolist() == ["10 of 10 slides enlarged, by up to 4.2%"]


@pytest.mark.parametrize("name", ["amibr", "demo_full"])
def test_scales_change_no_key_of_the_study_itself(name):
    with_scales = load_study(ROOT / "studies" / f"{name}.yaml")
    without = dataclasses.replace(with_scales, scales=Scales())
    assert with_scales != without

    def decide(study):
        networks = [predictions.training_settings(study, network, 0) for network in study.networks]
        cards = [encoders.embeddings_config(study, one, ROOT) for one in study.encoders if one in EMBEDDED]
        return study_data.patches_config(study), study_data.splits_config(study), networks, cards, study.probe.linear

    assert decide(with_scales) == decide(without) and decide(without)[3]
