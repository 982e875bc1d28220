"""The audit of splits: what was planted is found, and what the released split leaks on the real labels, as golden numbers."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mfcore.data import splits, splits_audit
from mfcore.data.labels import table as label_files
from mfcore.data.splits_draw import Placing
from mfcore.study import data as study_data
from mfcore.study.config import MODES, SCHEMES, Data, Settings, Splits, Switches

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
STUDY = Settings("t", "t", Data("midog"), splits=Splits(sizes=(0.1, 1.0), by_domain=False))
needs_real = pytest.mark.skipif(not SHARED.is_dir(), reason="the real label files are not on this machine")


def planted():
    """Six patches, three of them tested: one far from all, one on px that training sees, one that shares half a px."""
    labels = pd.DataFrame(
        {
            "patch_id": range(6),
            "slide_id": ["a", "a", "b", "b", "c", "a"],
            "case_id": ["a", "a", "b", "b", "c", "a"],
            "domain": "d",
            "label": [0, 1, 0, 1, 1, 0],
            "x_l0_px": [0.0, 1000, 0, 50, 0, 223.5],
            "y_l0_px": [0.0, 1000, 0, 50, 0, 223.5],
            "um_per_px": 0.25,
        }
    )
    roles = {"train": [0, 1, 2], "val": [], "test": [3, 4, 5]}
    table = pd.concat([splits._rows("all", 0, 1.0, role, np.array(ids, dtype=int)) for role, ids in roles.items()])
    return table, labels


def test_audit_finds_what_was_planted():
    table, labels = planted()
    found = splits_audit.audit(table, labels, Placing())
    assert found["test_on_train_slides"].item() == pytest.approx(2 / 3)
    assert found["test_overlapping_train"].item() == pytest.approx(2 / 3)  # 3 with 2, and 5 with 0 by half a pixel
    assert found["positives_train"].item() == pytest.approx(1 / 3)
    summary = splits_audit.summary(found.assign(scheme="slide").drop(columns="train_domain")).iloc[0]
    assert summary["test_overlapping_train"] == "66.7 %" and summary["n_train"] == 3


def test_slides_of_one_case_on_both_sides_are_a_leak():
    table, labels = planted()
    found = splits_audit.audit(table, labels.assign(case_id=["P", "P", "Q", "Q", "P", "P"]), Placing()).iloc[0]
    assert found["test_on_train_slides"] == pytest.approx(2 / 3) and found["test_on_train_cases"] == 1
    assert found[["n_train_slides", "n_test_slides", "n_train_cases", "n_test_cases"]].tolist() == [2, 3, 2, 2]
    shown = splits_audit.summary(found.drop("train_domain").to_frame().T.infer_objects().assign(scheme="slide")).iloc[0]
    assert shown["test_on_train_cases"] == "100.0 %" and shown["test_on_train_slides"] == "66.7 %"


def test_what_the_data_cannot_show_is_a_dash_and_said():
    """Crops as slides of their own, with or without cases; patches without a place; slides that are all the labels know."""
    table, labels = planted()
    labels = labels.assign(official_split="", twin=labels["patch_id"])
    crops = labels.assign(slide_id=labels["patch_id"].astype(str), x_l0_px=112.0, y_l0_px=112.0)
    alone = crops.assign(case_id=crops["slide_id"])
    nowhere = labels.assign(x_l0_px=np.nan)
    for of, unseen, said in (
        (labels, [], "No case has several slides"),
        (crops, ["test_on_train_slides", "test_overlapping_train"], "which patches share slides or pixels"),
        (alone, ["test_on_train_slides", "test_on_train_cases", "test_overlapping_train"], "which patches are of one patient"),
        (nowhere, ["test_overlapping_train"], "don't say where 6 of the 6 patches lie"),
    ):
        found = splits_audit.audit(table, of, Placing())
        assert [leak for leak in splits_audit.LEAKS if found[leak].isna().all()] == unseen
        shown = splits_audit.summary(found.assign(scheme="slide").drop(columns="train_domain")).iloc[0]
        assert [leak for leak in splits_audit.LEAKS if shown[leak] == "–"] == unseen
        assert said in " ".join(splits_audit.remarks(of))
    several = labels.assign(case_id=["P", "P", "Q", "Q", "P", "P"])
    assert splits_audit.remarks(several) == []


def test_folds_that_all_test_the_same_patches_are_told():
    table, _ = planted()
    again = pd.concat([table, table.assign(fold=1)])
    assert splits_audit.tests_sentence(again).startswith("All 2 folds test the same patches")
    other = table.assign(fold=1, patch_id=table["patch_id"] + 1)
    assert splits_audit.tests_sentence(pd.concat([table, other])) == splits_audit.tests_sentence(table) == ""


def test_the_authors_split_is_said_to_share_cases_and_twins():
    _, labels = planted()
    labels = labels.assign(official_split=["train", "val", "test", "test", "test", "train"], case_id=list("PPQQPP"))
    said = " ".join(splits_audit.remarks(labels.assign(twin=[0, 1, 2, 0, 4, 5])))
    assert "has patches of 1 cases on both sides; they stay" in said
    assert "1 of the authors' training patches have a twin" in said


def test_twins_are_counted_listed_and_their_contradictions_come_first():
    table, labels = planted()
    labels = labels.assign(file="f.svs", twin=[0, 1, 0, 1, 4, 0])  # 0, 2 and 5 of class 0; 1 and 3 of class 1
    found = splits_audit.audit(table, labels, Placing())
    assert found["test_twin_in_train"].item() == pytest.approx(2 / 3)
    assert np.isnan(splits_audit.audit(table, labels.drop(columns="twin"), Placing())["test_twin_in_train"].item())
    assert not splits_audit.twins(labels)["contradicts"].any()
    labels.loc[3, "label"] = 0
    listed = splits_audit.twins(labels)
    assert listed.columns.tolist() == splits_audit.TWINS and listed["patch_id"].tolist() == [1, 3, 0, 2, 5]
    assert listed["contradicts"].tolist() == [True] * 2 + [False] * 3
    said = splits_audit.twins_sentence(listed)
    assert said.startswith("5 patches have the same pixels as another one, 2 of them with contradicting labels")
    assert splits_audit.twins_sentence(listed.iloc[:0]).startswith("0 patches have the same pixels")


@pytest.mark.parametrize("placing", [Placing(224, 0.2), Placing(223), Placing(223, None)])  # the first: 179.2 px
def test_a_smaller_patch_reaches_less_far(placing):
    table, labels = planted()
    assert splits_audit.audit(table, labels, placing)["test_overlapping_train"].item() == pytest.approx(1 / 3)


def test_a_patch_moved_inward_lies_where_it_was_read():
    table, labels = planted()
    moved = labels.assign(patch_x_l0_px=labels["x_l0_px"], patch_y_l0_px=labels["y_l0_px"])
    moved.loc[5, "patch_x_l0_px"] = 224.0
    assert splits_audit.audit(table, moved, Placing())["test_overlapping_train"].item() == pytest.approx(1 / 3)


def test_every_scheme_is_audited_and_one_that_cannot_be_drawn_says_why():
    rng = np.random.default_rng(0)
    slide = np.repeat(np.arange(12), 40)
    labels = pd.DataFrame({"patch_id": np.arange(480), "slide_id": slide.astype(str), "case_id": slide.astype(str)})
    labels = labels.assign(domain="d", label=rng.integers(0, 2, 480), um_per_px=0.25, official_split="")
    labels[["x_l0_px", "y_l0_px"]] = rng.uniform(0, 3000, (480, 2))
    found, reasons = splits_audit.audit_schemes(labels, study_data.schemes_of(STUDY))
    assert list(reasons) == ["official"] and "no official test slides" in reasons["official"]
    worst = found[found["size"] == 1.0].groupby("scheme")[["test_on_train_slides", "test_overlapping_train"]].max()
    assert worst.loc["slide"].tolist() == [0, 0]
    assert worst.loc["annotation_buffered"].tolist() == [1, 0]
    assert (worst.loc[["annotation", "released"], "test_overlapping_train"] > 0.05).all()
    assert set(found["fold"]) == set(range(5)) and len(found) == 4 * 5 * 2
    assert splits_audit.summary(found)["scheme"].nunique() == 4
    official = labels.assign(official_split=np.where(slide % 3 == 0, "test", "train"))
    assert splits_audit.audit_schemes(official, study_data.schemes_of(STUDY))[1] == {}
    assert {splits_audit.scheme_title(scheme) for scheme in SCHEMES} >= set(splits_audit.summary(found)["scheme"])
    assert splits_audit.scheme_title(Switches(stratified=False).scheme) == "by slide unstratified"


@needs_real
@pytest.mark.parametrize(
    ("source", "n_train", "on_train_slides", "overlapping_percent"),
    [("midog22", [12, 131, 1315, 13153], 0.999, {38, 39}), ("ccmct", [46, 465, 4661, 46620], 1.0, {27})],
)
def test_released_split_leaks_as_counted_on_the_real_labels(source, n_train, on_train_slides, overlapping_percent):
    study = Settings(
        "t", "t", Data(source), splits=Splits(by_domain=False), mode="paper", switches=MODES["paper"], encoders=("e",)
    )
    labels = label_files.load(study.source, SHARED / "labels", check_files=False)
    table = splits.make(labels, study_data.scheme_of(study))
    assert [len(splits.select(table, unit)["train"]) for unit in splits.units(table) if unit.fold == 0] == n_train
    found = splits_audit.audit(table[table["size"] == 1.0], labels, study_data.placing_of(study))
    assert found["fold"].tolist() == [0, 1, 2, 3, 4]  # seeds 42 to 46
    assert found["test_on_train_slides"].min() >= on_train_slides
    assert set((100 * found["test_overlapping_train"]).round().astype(int)) <= overlapping_percent


@needs_real
@pytest.mark.parametrize("source", ["midog22", "midogpp", "ccmct"])
def test_the_remedies_share_nothing_on_the_real_labels(source):
    study = Settings("t", "t", Data(source), splits=Splits(by_domain=False, sizes=(1.0,), n_folds=1), encoders=("e",))
    labels = label_files.load(study.source, SHARED / "labels", check_files=False)
    found, reasons = splits_audit.audit_schemes(labels, study_data.schemes_of(study))
    found = found.set_index("scheme")
    assert not reasons
    assert (found.loc[["slide", "official"], ["test_on_train_slides", "test_overlapping_train"]] == 0).all(axis=None)
    assert found.loc["annotation_buffered", "test_overlapping_train"] == 0
    assert found.loc["annotation", "test_overlapping_train"] > 0.2
    assert abs(found["positives_test"] - labels["label"].mean()).max() < 0.02
