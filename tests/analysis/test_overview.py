"""Exhibits on data, arms, audit and provenance: what a reader must know, with the numbers of the runs."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mfcore import store
from mfcore.analysis import first_look, overview
from mfcore.data import splits, splits_audit
from mfcore.data.splits_draw import Placing
from mfcore.store import machine
from mfcore.study import data as study_data
from mfcore.study.config import MODES, Data, Settings, Splits
from mfcore.study.study import Study

SETTINGS = Settings(
    "t", "A <test>", Data("synthetic", um_per_px=0.3), splits=Splits(sizes=(1.0,), n_folds=2), encoders=("good", "broken")
)


@pytest.fixture
def study(tmp_path) -> Study:
    """A study with two folds of made-up predictions by one arm, and another arm that failed."""
    rng, n = np.random.default_rng(0), 60
    label, domain = np.tile([0, 1], n // 2), np.repeat(["a", "b"], n // 2)
    labels = pd.DataFrame({"patch_id": np.arange(n), "slide_id": domain, "case_id": domain, "label": label, "um_per_px": 0.25})
    labels = labels.assign(domain=domain, votes=[np.array([0, 1], np.int8)] * n)
    labels = labels.assign(x_l0_px=rng.uniform(0, 999, n), y_l0_px=0.0)
    patches_run = store.open_run(tmp_path, "patches", "t", study_data.patches_config(SETTINGS), {"annotations": "x"})
    store.write_parquet(patches_run.path("labels.parquet"), labels)
    said = [{"slide_id": "odd slide", "scanner": "S1", "um_per_px": 0.3}]
    facts = {"um_per_px_said_by_study": said, "n_patches_over_edge": 7, "n_patches_shifted": 3}
    areas = [{"slide_id": "odd slide", "x_l0_px": 30, "y_l0_px": 20}]
    patches_run.finish(["labels.parquet"], **facts, scanned_areas=areas)
    scheme, inputs = SETTINGS.switches.scheme, {"patches": patches_run.key}
    splits_run = store.open_run(tmp_path, "splits", scheme, study_data.splits_config(SETTINGS), inputs)
    units, predictions = [], []
    for fold in (0, 1):
        for train_domain in ("all", "a", "b"):
            parts = {"train": np.arange(0, n, 2), "val": np.arange(0, n, 2), "test": np.arange(n)}
            units += [splits._rows(train_domain, fold, 1.0, role, ids) for role, ids in parts.items()]
            unit = splits.Unit(train_domain, fold, 1.0)
            predictions.append(splits.predictions(labels.set_index("patch_id"), unit, parts["test"], rng.random(n)))
    store.write_parquet(splits_run.path("splits.parquet"), pd.concat(units))
    splits_run.finish(["splits.parquet"])
    audit = splits_audit.audit(pd.concat(units), labels, Placing())
    run = store.open_run(tmp_path, *study_data._audit(SETTINGS, tmp_path))
    store.write_csv(run.path("audit.csv"), audit)
    mixed = audit[audit["train_domain"] == "all"].drop(columns="train_domain")
    store.write_csv(run.path("schemes.csv"), pd.concat([mixed.assign(scheme=s) for s in ("released", "slide")]))
    twin = np.where(np.arange(n) == 2, 1, np.arange(n))  # patches 1 and 2, of two classes
    store.write_csv(run.path("twins.csv"), splits_audit.twins(labels.assign(twin=twin, file="<f>.svs")))
    files, not_drawn = ["audit.csv", "schemes.csv", "twins.csv"], {"official": "no official test slides"}
    run.finish(files, not_drawn=not_drawn, remarks=["Something can't be seen."])
    config, inputs = SETTINGS.probe.linear, {"splits": splits_run.key}
    probe = store.open_run(tmp_path, "probe", "good", config, inputs, config | inputs)
    store.write_parquet(probe.path("predictions.parquet"), pd.concat(predictions))
    probe.finish(["predictions.parquet"])
    return Study(SETTINGS, tmp_path)


def test_data_are_counted_and_what_is_special_of_them_is_said(study):
    exhibit = overview.data(study)
    assert exhibit.table.iloc[-1].tolist() == ["sum", 2, 30, 30, "50 %"]
    assert exhibit.table.columns.tolist() == ["domain", "slides", "mitotic figure", "look-alike", "positive_share"]
    for words in (
        "synthetic data",
        "Patches of 224 px at 0.25 µm/px, stored with",
        "3 patches near a border, moved inward",
        "reached by 7 patches as stored: white.",
        "The scanned area of 1 slide begins off the corner; labels count from the corner of the slide.",
        "1 slide without µm/px in the file, which the study gives: odd slide 0.3.",
    ):
        assert words in exhibit.caption, words


def test_what_a_study_of_chosen_slides_leaves_out_is_said(study):
    settings = replace(SETTINGS, data=Data("synthetic", um_per_px=0.3, slides=("a", "b")))
    whole = store.read_json(study.patches.path("run.json"))["facts"]
    run = store.open_run(study.folder, "patches", "t", study_data.patches_config(settings), {"annotations": "x"})
    store.write_parquet(run.path("labels.parquet"), study.labels)
    run.finish(["labels.parquet"], **whole, left_out={"n_slides": 482, "n_positive": 9600, "n_negative": 12420})
    caption = overview.data(Study(settings, study.folder)).caption
    assert "(study `t`, synthetic data, 2 chosen slides)" in caption
    assert "leaves out 482 slides, with 9,600 of class mitotic figure and 12,420 of class look-alike. Chosen" in caption
    assert "Chosen slides estimate nothing" in caption


@pytest.mark.parametrize(("mode", "filled"), [("strict", "white"), ("paper", "black")])
def test_what_lies_over_a_border_is_as_the_study_fills_it(study, mode, filled):
    settings = replace(SETTINGS, switches=MODES[mode])
    file = study.patches.path("run.json")
    store.write_json(file, store.read_json(file) | {"config": study_data.patches_config(settings)})
    assert f"as stored: {filled}." in overview.data(study).caption


def test_arms_have_what_was_found_in_three_sentences(study):
    exhibit = overview.arms(study)
    assert exhibit.table[["arm", "kind"]].to_numpy().tolist() == [["good", "probe"]] and "100 %" in exhibit.table
    assert exhibit.caption.startswith("With about 30 training patches (synthetic data), good (probe) separates")
    assert " best" not in exhibit.caption and " on others. 1 run failed or missing." in exhibit.caption
    assert exhibit.caption.count(". ") == 2


def test_the_audit_has_every_fold_and_what_could_not_be_drawn(study):
    schemes, folds, own, twins = first_look.audit(study)
    assert "by the authors' split (no official test slides)" in schemes.caption
    assert "Something can't be seen." in schemes.caption and "splits by slide" in schemes.caption
    assert folds.table["scheme"].tolist() == ["by slide"] * 2 + ["by annotation, as released"] * 2
    assert folds.table["fold"].tolist() == [0, 1, 0, 1] and (folds.table["size"] == "100 %").all()
    assert set(own.table["trained on"]) == {"all", "a", "b"} and "test_on_train_cases" in own.table
    assert "2 patches have the same pixels as another one, 2 of them with contradicting labels" in twins.caption
    assert set(twins.table["file"]) == {"<f>.svs"}
    assert {one.section for one in (schemes, folds, own, twins)} == {first_look.AUDIT}


def test_provenance_has_commit_seeds_threads_and_every_setting(study):
    for file in study.folder.glob("probe-*/run.json"):
        record = store.read_json(file)
        store.write_json(file, {**record, "environment": {**record["environment"], "n_threads": 7}})
    for file in study.folder.glob("audit-*/run.json"):
        record = store.read_json(file)
        del record["environment"]["n_threads"]
        store.write_json(file, record)
    rows = overview.provenance(study).table.set_index("what")["value"]
    assert "audit not recorded;" in rows["threads"] and "probe 7" in rows["threads"]
    assert f"splits {machine.n_threads()}" in rows["threads"] and rows["seeds"].endswith("splits 42")
    assert rows["runs"].startswith("4 finished") and rows["setting title"].startswith("A <test>")


def test_every_exhibit_is_saved_for_the_supplement(study):
    overview.save(study)
    saved = {file.stem for file in study.figures.glob("*.json")}
    assert saved == {"05_arms", "05_data", "05_encoders", "05_provenance", "05_switches", "10_representations"}
