"""One encoder as five libraries use it: every way has its card, and differences are measured against the authors'."""

from dataclasses import replace

import h5py
import jupytext
import numpy as np
import pandas as pd
import pytest
from tiny_encoders import tiny_card, use

import mfcore
from mfcore import encoders, store
from mfcore.analysis import estimators
from mfcore.data import patches, splits
from mfcore.encoders.card import Convention, conventions, released_cards, variants_of
from mfcore.study import data as study_data
from mfcore.study.config import Data, Settings, Splits
from mfcore.study.study import Study
from mfcore.sweep import ROOT

STUDY = Settings(
    "t", "t", Data("midog"), encoders=("tiny",), conventions="tiny", splits=Splits(n_folds=3, sizes=(0.5, 1.0), by_domain=False)
)  # fmt: skip


@pytest.fixture(autouse=True)
def ways(monkeypatch):
    """An encoder that one library uses as its authors do, one with another resize, one with the mean of the patch tokens."""
    use(monkeypatch, tiny_card())
    use(monkeypatch, tiny_card(name="tiny_bilinear", interpolation="bilinear", variant_of="tiny", departs="B's"))
    use(monkeypatch, tiny_card(name="tiny_mean", readout="class+mean", n_dims=48, variant_of="tiny", departs="C's"))
    ways = (Convention("A", "tiny"), Convention("B", "tiny_bilinear", "its way with another"), Convention("C", "tiny_mean"))
    monkeypatch.setitem(conventions(), "tiny", ways)


@pytest.fixture
def results(tmp_path):
    rng, slide = np.random.default_rng(0), np.repeat(np.arange(12), 20)
    labels = pd.DataFrame({"patch_id": np.arange(240), "slide_id": slide.astype(str), "case_id": slide.astype(str)})
    labels = labels.assign(domain="d", label=np.tile([0, 1], 120), um_per_px=0.25, official_split="")
    labels[["x_l0_px", "y_l0_px"]] = rng.uniform(0, 2000, (240, 2))
    run = store.open_run(tmp_path, "patches", "t", study_data.patches_config(STUDY), {"annotations": "x"})
    store.write_parquet(run.path("labels.parquet"), labels)
    np.save(run.path("patches.npy"), np.zeros((240, 2, 2, 3), dtype=np.uint8))
    run.finish(["labels.parquet", "patches.npy"])
    study_data.write_splits(STUDY, tmp_path)
    return tmp_path


def embedded(results, card, features):
    """Finished embeddings of ``card``."""
    source = {"patches": study_data.find_patches(STUDY, results).key}
    run = store.open_run(results, "embeddings", card, {"card": encoders.card_of(card).identity(), "size_px": 224}, source)
    with store.replacing(run.path("embeddings.h5")) as aside, h5py.File(aside, "w") as out:
        out["features"], out["patch_id"] = features.astype(np.float32), np.arange(len(features))
    return run.finish(["embeddings.h5"])


def ran(results, card, features, quality):
    """Finished embeddings of ``card`` and a probe on them whose scores are right by ``quality``."""
    run = embedded(results, card, features)
    labels = patches.load(study_data.find_patches(STUDY, results))[0].set_index("patch_id")
    splits_run = study_data.find_splits(STUDY, results)
    table, rng = splits.load(splits_run), np.random.default_rng(1)
    scores = []
    for unit in splits.units(table):
        ids = splits.select(table, unit)["test"]
        right = labels.loc[ids, "label"].to_numpy()
        score = np.where(rng.random(len(ids)) < quality, right, 1 - right) * 0.5 + 0.25 + 0.1 * rng.random(len(ids))
        scores.append(splits.predictions(labels, unit, ids, score))
    config, inputs = STUDY.probe.linear, {"splits": splits_run.key}
    probe = store.open_run(results, "probe", card, config, inputs | {"embeddings": run.key}, config | inputs)
    store.write_parquet(probe.path("predictions.parquet"), pd.concat(scores))
    probe.finish(["predictions.parquet"])


@pytest.mark.parametrize("encoder", ["tiny", "tiny_bilinear"])
def test_the_notebook_of_the_probe_runs_also_for_another_library_s_way(encoder, results, monkeypatch):
    """It isn't one of the study's arms, so the tables of arms don't have it."""
    for card in ("tiny", encoder):
        embedded(results, card, 100 * np.random.default_rng(2).normal(size=(240, 24)))
    monkeypatch.setattr(mfcore, "open_study", lambda *_, **__: Study(STUDY, results))
    cells = [cell for cell in jupytext.read(ROOT / "notebooks" / "03_linear_probe.py").cells if cell.cell_type == "code"]
    code = "\n".join(cell.source for cell in cells)
    exec(code.replace('encoder = "efficientnet_lite0"', f'encoder = "{encoder}"'), {})
    shown = (results / "figures").glob("03_representation-*.json")
    assert len(list(results.glob("probe-*"))) == 1 and len(list(shown)) == (encoder == "tiny")


def test_distances_and_differences_are_from_the_authors_way(results):
    base = np.random.default_rng(2).normal(size=(240, 24))
    ran(results, "tiny", base, 0.6)
    ran(results, "tiny_bilinear", base * 1.25, 0.9)
    ran(results, "tiny_mean", np.hstack([base, base + 5]), 0.6)
    rows = estimators.conventions_table(Study(STUDY, results)).set_index("library")
    assert list(rows.index) == [estimators.AUTHORS, "A", "B", "C"]
    assert rows.loc["A", ["distance_max", "difference", "departs"]].tolist() == [0, 0, ""]
    assert (
        rows.loc["B", "distance_median"] == pytest.approx(0.25)
        and rows.loc["B", "departs"] == "interpolation bilinear; its way with another"
    )
    assert (
        rows.loc["C", "distance_max"] == pytest.approx(0, abs=1e-6) and rows.loc["C", "n_dims"] == 48
    )  # the class token's part
    assert rows.loc["C", "departs"] == "readout class token and mean of the patch tokens"
    assert rows.loc["B", "low"] < rows.loc["B", "difference"] == pytest.approx(rows.loc["B", "auroc"] - rows.loc["A", "auroc"])
    assert rows.loc["B", "difference"] > 0.2 and rows.loc["C", "difference"] == 0
    shown = estimators.conventions(Study(STUDY, results)).readable
    assert shown["distance_median"].tolist() == ["0.000", "0.000", "0.250", "0.000"] and "±" in shown["auroc"].iloc[1]


def test_what_has_not_run_is_a_dash(results):
    ran(results, "tiny", np.ones((240, 24)), 0.6)
    rows = estimators.conventions_table(Study(STUDY, results)).set_index("library")
    assert np.isnan(rows.loc["B", ["distance_median", "auroc", "difference"]].to_numpy(float)).all()
    assert "a dash: not run here" in estimators.conventions(Study(STUDY, results)).caption
    assert estimators.conventions(Study(STUDY, results)).readable["distance_max"].tolist() == ["0", "0", "–", "–"]
    assert estimators.conventions_table(Study(replace(STUDY, conventions=""), results)).empty


def test_where_the_study_embeds_as_released_nothing_is_passed_off_as_the_authors_way(results, monkeypatch):
    monkeypatch.setitem(released_cards("embedding"), "tiny", "tiny_mean")
    study = replace(STUDY, switches=replace(STUDY.switches, encoder_input="released"))
    exhibit = estimators.conventions(Study(study, results))
    assert exhibit.table.empty and "embeds tiny otherwise than its authors" in exhibit.caption
    assert "`switches.encoder_input`" in exhibit.caption


def test_every_way_is_a_card_of_the_same_weights():
    for name, ways in conventions().items():
        own = encoders.card_of(name)
        assert len({way.library for way in ways}) == len(ways) and name not in variants_of(name)
        for way in ways:
            card = encoders.card_of(way.card)
            assert card.variant_of == (name if way.card != name else ""), way
            assert way.card == name or (estimators.differs(own, card) and card.departs), way


def test_sides_are_said_with_their_unit():
    own = encoders.card_of("dinov2_vits14")
    other = replace(own, resize_px=256, readout="class+mean", n_dims=2 * own.n_dims)
    assert estimators.differs(own, other) == "resized to 256 px, readout class token and mean of the patch tokens"
    assert estimators.differs(own, own) == ""
