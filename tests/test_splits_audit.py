"""The audit of splits: what was planted is found, and what the released split leaks on the real labels, as golden numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mfcore import labels as label_files
from mfcore import splits, splits_audit
from mfcore.config import MODES, SCHEMES, Data, Patches, Splits, Study, Switches

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
STUDY = Study("t", "t", Data("midog"), splits=Splits(sizes=(0.1, 1.0), by_domain=False))
needs_real = pytest.mark.skipif(not SHARED.is_dir(), reason="the real label files are not on this machine")


def planted():
    """Six patches, three of them tested: one far from all, one on px that training sees, one that shares half a px."""
    labels = pd.DataFrame(
        {
            "patch_id": range(6),
            "slide_id": ["a", "a", "b", "b", "c", "a"],
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
    found = splits_audit.audit(STUDY, table, labels)
    assert found["test_on_train_slides"].item() == pytest.approx(2 / 3)
    assert found["test_overlapping_train"].item() == pytest.approx(2 / 3)  # 3 with 2, and 5 with 0 by half a pixel
    assert found["positives_train"].item() == pytest.approx(1 / 3)
    summary = splits_audit.summary(found).iloc[0]
    assert summary["test_overlapping_train"] == "66.7 %" and summary["n_train"] == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"patches": Patches(um_per_px=0.2)},  # 179.2 px
        {"patches": Patches(size_px=223)},
        {"patches": Patches(um_per_px=0.5, size_px=223), "switches": Switches(resolution="native")},
    ],
)
def test_a_smaller_patch_reaches_less_far(changes):
    table, labels = planted()
    assert splits_audit.audit(replace(STUDY, **changes), table, labels)["test_overlapping_train"].item() == pytest.approx(1 / 3)


def test_a_patch_moved_inward_lies_where_it_was_read():
    table, labels = planted()
    moved = labels.assign(patch_x_l0_px=labels["x_l0_px"], patch_y_l0_px=labels["y_l0_px"])
    moved.loc[5, "patch_x_l0_px"] = 224.0
    assert splits_audit.audit(STUDY, table, moved)["test_overlapping_train"].item() == pytest.approx(1 / 3)


def test_every_scheme_is_audited_and_one_that_cannot_be_drawn_says_why():
    rng = np.random.default_rng(0)
    slide = np.repeat(np.arange(12), 40)
    labels = pd.DataFrame({"patch_id": np.arange(480), "slide_id": slide.astype(str), "case_id": slide.astype(str)})
    labels = labels.assign(domain="d", label=rng.integers(0, 2, 480), um_per_px=0.25, official_split="")
    labels[["x_l0_px", "y_l0_px"]] = rng.uniform(0, 3000, (480, 2))
    found, reasons = splits_audit.audit_schemes(STUDY, labels)
    assert list(reasons) == ["official"] and "no official test slides" in reasons["official"]
    worst = found[found["size"] == 1.0].groupby("scheme")[["test_on_train_slides", "test_overlapping_train"]].max()
    assert worst.loc["slide"].tolist() == [0, 0]
    assert worst.loc["annotation_buffered"].tolist() == [1, 0]
    assert (worst.loc[["annotation", "released"], "test_overlapping_train"] > 0.05).all()
    assert set(found["fold"]) == set(range(5)) and len(found) == 4 * 5 * 2
    assert splits_audit.summary(found)["scheme"].nunique() == 4
    official = labels.assign(official_split=np.where(slide % 3 == 0, "test", "train"))
    assert splits_audit.audit_schemes(STUDY, official)[1] == {}
    assert {splits_audit.scheme_title(scheme) for scheme in SCHEMES} >= set(splits_audit.summary(found)["scheme"])
    assert splits_audit.scheme_title(Switches(stratified=False).scheme) == "by slide unstratified"


@needs_real
@pytest.mark.parametrize(
    ("source", "n_train", "on_train_slides", "overlapping_percent"),
    [("midog22", [12, 131, 1315, 13153], 0.999, {38, 39}), ("ccmct", [46, 465, 4661, 46620], 1.0, {27})],
)
def test_released_split_leaks_as_counted_on_the_real_labels(source, n_train, on_train_slides, overlapping_percent):
    study = Study(
        "t", "t", Data(source), splits=Splits(by_domain=False), mode="paper", switches=MODES["paper"], encoders=("e",)
    )
    labels = label_files.load(study, SHARED / "labels", check_files=False)
    table = splits.make(study, labels)
    assert [len(splits.select(table, unit)["train"]) for unit in splits.units(table) if unit.fold == 0] == n_train
    found = splits_audit.audit(study, table[table["size"] == 1.0], labels)
    assert found["fold"].tolist() == [0, 1, 2, 3, 4]  # seeds 42 to 46
    assert found["test_on_train_slides"].min() >= on_train_slides
    assert set((100 * found["test_overlapping_train"]).round().astype(int)) <= overlapping_percent


@needs_real
@pytest.mark.parametrize("source", ["midog22", "midogpp", "ccmct"])
def test_the_remedies_share_nothing_on_the_real_labels(source):
    study = Study("t", "t", Data(source), splits=Splits(by_domain=False, sizes=(1.0,), n_folds=1), encoders=("e",))
    labels = label_files.load(study, SHARED / "labels", check_files=False)
    found, reasons = splits_audit.audit_schemes(study, labels)
    found = found.set_index("scheme")
    assert not reasons
    assert (found.loc[["slide", "official"], ["test_on_train_slides", "test_overlapping_train"]] == 0).all(axis=None)
    assert found.loc["annotation_buffered", "test_overlapping_train"] == 0
    assert found.loc["annotation", "test_overlapping_train"] > 0.2
    assert abs(found["positives_test"] - labels["label"].mean()).max() < 0.02
