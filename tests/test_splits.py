"""Splits: every rule that makes them fair, as properties; the released draws and their leak as golden numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfcore import splits
from mfcore.config import MODES, Data, Splits, Study, Switches

SHARED = Path(__file__).parents[1].parent / "shared" / "data"


def study(mode="strict", **changes):
    return Study("t", "t", Data("midog"), splits=replace(Splits(sizes=(0.1, 1.0)), **changes), mode=mode, switches=MODES[mode])


def label_table(rng, n_domains=3, n_slides=8, n_per_slide=20):
    rows = []
    for domain in range(n_domains):
        for slide in range(n_slides):
            for _ in range(int(rng.integers(n_per_slide // 2, n_per_slide * 2))):
                rows.append((f"d{domain}", f"d{domain}s{slide}", int(rng.random() < 0.2 + 0.1 * (slide % 5))))
    table = pd.DataFrame(rows, columns=["domain", "slide_id", "label"])
    table["patch_id"] = np.arange(len(table))
    table["case_id"] = table["slide_id"]
    table["x_l0_px"], table["y_l0_px"] = rng.uniform(0, 5000, (2, len(table)))
    table["um_per_px"] = 0.25
    return table


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n_domains=st.integers(2, 4),
    n_slides=st.integers(4, 9),
    mode=st.sampled_from(["strict", "paper"]),
)
def test_no_patch_has_two_roles_and_strict_keeps_slides_apart(seed, n_domains, n_slides, mode):
    labels = label_table(np.random.default_rng(seed), n_domains, n_slides)
    table = splits.make(study(mode, n_folds=2, sizes=(0.2, 1.0)), labels)
    slide = labels.set_index("patch_id")["slide_id"]
    for unit in splits.units(table):
        ids = splits.select(table, unit)
        everything = np.concatenate(list(ids.values()))
        assert len(everything) == len(set(everything))
        assert all(len(ids[role]) for role in splits.ROLES)
        if mode == "strict":
            slides = [set(slide.loc[ids[role]]) for role in splits.ROLES]
            assert not (slides[0] & slides[1] or slides[0] & slides[2] or slides[1] & slides[2])
        if unit.train_domain != splits.ALL:
            trained = labels.set_index("patch_id").loc[np.concatenate([ids["train"], ids["val"]]), "domain"]
            assert set(trained) == {unit.train_domain}
            elsewhere = labels.loc[labels["domain"] != unit.train_domain, "patch_id"]
            assert set(elsewhere) <= set(ids["test"])


def test_sizes_are_nested_and_keep_the_class_balance():
    labels = label_table(np.random.default_rng(1))
    table = splits.make(study(sizes=(0.05, 0.3, 1.0), n_folds=1, by_domain=False), labels)
    label = labels.set_index("patch_id")["label"]
    small, middle, full = (splits.select(table, unit) for unit in splits.units(table))
    assert set(small["train"]) < set(middle["train"]) < set(full["train"])
    assert np.array_equal(small["test"], full["test"])
    for ids, share in ((small, 0.05), (middle, 0.3)):
        for c in (0, 1):
            assert abs((label.loc[ids["train"]] == c).sum() - share * (label.loc[full["train"]] == c).sum()) <= 0.5


def test_stratified_slides_hold_the_share_of_each_class_better_than_plain_ones():
    labels = label_table(np.random.default_rng(2), n_slides=12)

    def worst(stratified):
        asked = replace(study(n_folds=5, by_domain=False), switches=Switches(stratified=stratified))
        table = splits.make(asked, labels).merge(labels, on="patch_id")
        test = table[(table["role"] == "test") & (table["size"] == 1.0)]
        return (test.groupby(["fold", "domain", "label"]).size() / labels.groupby(["domain", "label"]).size() - 0.2).abs().max()

    assert worst(True) < 0.1 < worst(False)


def test_slides_of_one_case_stay_together():
    labels = label_table(np.random.default_rng(6), n_slides=12)
    labels["case_id"] = labels["slide_id"].str.replace(r"s(\d+)$", lambda m: f"c{int(m[1]) // 2}", regex=True)
    table = splits.make(study(n_folds=3, by_domain=False), labels).merge(labels, on="patch_id")
    assert labels["case_id"].nunique() == 18
    assert table.groupby(["fold", "case_id"])["role"].nunique().max() == 1


def test_folds_differ_and_don_t_depend_on_the_other_folds_or_sizes():
    labels = label_table(np.random.default_rng(3))
    few = splits.make(study(n_folds=1, sizes=(1.0,)), labels)
    many = splits.make(study(n_folds=3, sizes=(0.1, 0.5, 1.0)), labels)
    for unit in splits.units(few):
        assert all(
            np.array_equal(a, b)
            for a, b in zip(splits.select(few, unit).values(), splits.select(many, unit).values(), strict=True)
        )
    tests = [set(splits.select(many, splits.Unit("all", fold, 1.0))["test"]) for fold in range(3)]
    assert tests[0] != tests[1] != tests[2]


def test_a_size_that_leaves_a_class_empty_is_refused_with_a_remedy():
    labels = label_table(np.random.default_rng(4))
    with pytest.raises(splits.SplitError, match=r"size 0\.001 leaves no 'mitotic figure' in the train set .*splits\.sizes"):
        splits.make(study(sizes=(0.001, 1.0)), labels)


def test_one_domain_cannot_be_crossed_and_two_slides_cannot_be_split():
    labels = label_table(np.random.default_rng(5), n_domains=1)
    with pytest.raises(splits.SplitError, match="by_domain: false"):
        splits.make(study(), labels)
    labels = label_table(np.random.default_rng(5), n_domains=2, n_slides=2)
    with pytest.raises(splits.SplitError, match="split_by: annotation"):
        splits.make(study(), labels)


def test_audit_finds_what_was_planted():
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
    found = splits.audit(table, labels, 224, 0.25).iloc[0]
    assert found["test_on_train_slides"] == pytest.approx(2 / 3)
    assert found["test_overlapping_train"] == pytest.approx(2 / 3)  # 3 with 2, and 5 with 0 by half a pixel
    summary = splits.audit_summary(splits.audit(table, labels, 224, 0.25)).iloc[0]
    assert summary["test_overlapping_train"] == "66.7%" and summary["n_train"] == 3
    finer = splits.audit(table, labels, 224, 0.2).iloc[0]  # 179.2 px: 5 no longer reaches 0
    assert finer["test_overlapping_train"] == pytest.approx(1 / 3)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real label files are not on this machine")
@pytest.mark.parametrize(
    ("file", "n_train", "on_train_slides", "overlapping_percent"),
    [
        ("MIDOG2022_training_tiff.csv", [12, 131, 1315, 13153], 0.999, {38, 39}),
        ("MITOS_WSI_CCMCT_ODAEL_binary_labels.csv", [46, 465, 4661, 46620], 1.0, {27}),
    ],
)
def test_released_split_leaks_as_counted_on_the_real_labels(file, n_train, on_train_slides, overlapping_percent):
    raw = pd.read_csv(SHARED / "labels" / file)
    labels = raw.rename(columns={"x": "x_l0_px", "y": "y_l0_px", "filename": "slide_id"})
    labels = labels.assign(patch_id=np.arange(len(raw)), um_per_px=0.25, domain="any")
    table = splits.make(study("paper", sizes=(0.001, 0.01, 0.1, 1.0), by_domain=False), labels)
    assert [len(splits.select(table, unit)["train"]) for unit in splits.units(table) if unit.fold == 0] == n_train
    found = splits.audit(table[table["size"] == 1.0], labels, 224, None)
    assert found["test_on_train_slides"].min() >= on_train_slides
    assert set((100 * found["test_overlapping_train"]).round().astype(int)) <= overlapping_percent
