"""Arms against one another: planted differences are found, equal arms are tied, and every number has a second way to it."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mfcore import compare, compare_models, metrics, statistics
from mfcore.config import Data, Network, Splits, Study, Switches

STUDY = Study(
    "t",
    "A test",
    Data("midog"),
    splits=Splits(sizes=(0.5, 1.0), n_folds=5),
    encoders=("good", "same", "poor"),
    networks=(Network("net"),),
)
MEANS = {"net": 0.9, "good": 0.8, "same": 0.801, "poor": 0.6}


def made_scores(means=MEANS, noise=0.004, n_folds=5, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for arm, mean in means.items():
        for size in (0.5, 1.0):
            for fold in range(n_folds):
                kind = compare.END_TO_END if arm == "net" else compare.PROBE
                row = {"arm": arm, "kind": kind, "train_domain": "all", "fold": fold, "size": size, "domain": "all"}
                value = mean * size + rng.normal(0, noise)
                rows.append(row | {"n_train": 640 * size, "n_test": 200, "auroc": value, "brier": 1 - value})
    crossed = [row | {"train_domain": "a", "domain": "b", "auroc": 0.0} for row in rows]
    return pd.DataFrame(rows + crossed)


def test_every_pair_is_tested_once_and_corrected_over_all():
    table = compare_models.differences(made_scores(), STUDY)
    assert table.columns.tolist() == ["first", "second", "difference", "low", "high", "p", "p_holm", "n_folds", "paired"]
    assert list(zip(table["first"], table["second"], strict=True)) == [
        ("net", "good"), ("net", "same"), ("net", "poor"), ("good", "same"), ("good", "poor"), ("same", "poor")
    ]  # fmt: skip
    part = made_scores().query("train_domain == 'all' and size == 1.0")
    for row in table.itertuples():
        a, b = (part.loc[part["arm"] == arm, "auroc"].to_numpy() for arm in (row.first, row.second))
        test = statistics.paired_test(a, b, 640, 200)
        assert (row.difference, row.low, row.high, row.p) == pytest.approx(
            (test.interval.estimate, test.interval.low, test.interval.high, test.p)
        )
    assert table["p_holm"].tolist() == statistics.holm(table["p"]).tolist()
    assert table["p_holm"].max() == table.loc[3, "p_holm"] and (table["p_holm"].drop(3) < 0.05).all()


def test_the_size_is_chosen_and_must_be_there():
    small = compare_models.differences(made_scores(), STUDY, size=0.5)
    assert small.loc[0, "difference"] == pytest.approx(0.05, abs=0.01)
    with pytest.raises(statistics.StatisticsError, match=r"no arm has scores at size 0.3; there are \[0.5, 1.0\]"):
        compare_models.differences(made_scores(), STUDY, size=0.3)
    with pytest.raises(metrics.MetricError, match="'auc' is not known"):
        compare_models.ranking(made_scores(), STUDY, "auc")


def test_folds_are_paired_by_number_and_missing_ones_left_out():
    scores = made_scores()
    lost = scores[~((scores["arm"] == "good") & (scores["fold"] == 2))].sample(frac=1, random_state=0)
    row = compare_models.differences(lost, STUDY).iloc[0]
    part = scores.query("train_domain == 'all' and size == 1.0 and fold != 2").set_index("fold")["auroc"]
    arm = scores.query("train_domain == 'all' and size == 1.0 and fold != 2").set_index("fold")["arm"]
    assert row["n_folds"] == 4
    assert row["difference"] == pytest.approx((part[arm == "net"] - part[arm == "good"]).mean())


def test_arms_with_splits_of_their_own_are_not_paired():
    own = replace(STUDY, switches=Switches(shared_splits=False))
    table = compare_models.differences(made_scores(), own)
    assert table["paired"].tolist() == [False, False, False, True, True, True]
    part = made_scores().query("train_domain == 'all' and size == 1.0")
    a, b = (part.loc[part["arm"] == arm, "auroc"] for arm in ("net", "good"))
    assert table.loc[0, "p"] == pytest.approx(statistics.unpaired_test(a, b, 640, 200).p)


def test_what_cannot_be_tested_is_nan_and_counts_for_nothing():
    scores = made_scores()
    scores.loc[scores["arm"] == "poor", "auroc"] = np.nan
    scores = scores[~((scores["arm"] == "same") & (scores["fold"] > 0))]
    table = compare_models.differences(scores, STUDY)
    assert table["p"].notna().tolist() == [True, False, False, False, False, False]
    assert table.loc[0, "p_holm"] == table.loc[0, "p"], "tests that weren't made were corrected for"
    disjoint = scores[(scores["arm"] != "net") | (scores["fold"] > 2)].query("arm != 'good' or fold < 2")
    assert compare_models.differences(disjoint, STUDY).loc[0, "n_folds"] == 0


@pytest.mark.parametrize("metric", ["auroc", "brier"])
def test_ties_share_their_places(metric):
    table = compare_models.ranking(made_scores(), STUDY, metric).set_index("arm")
    assert table.index[0] == "net" and table.index[-1] == "poor"
    assert table[["rank_low", "rank_high"]].to_dict("index") == {
        "net": {"rank_low": 1, "rank_high": 1},
        "good": {"rank_low": 2, "rank_high": 3},
        "same": {"rank_low": 2, "rank_high": 3},
        "poor": {"rank_low": 4, "rank_high": 4},
    }
    assert table["tied_with"].to_dict() == {"net": "", "good": "same", "same": "good", "poor": ""}
    part = made_scores().query("train_domain == 'all' and size == 1.0 and arm == 'good'")[metric]
    assert table.loc["good", "mean"] == pytest.approx(part.mean()) and table.loc["good", "sd"] == pytest.approx(part.std())


@pytest.mark.parametrize("seed", range(8))
def test_places_and_ties_say_the_same(seed):
    """Whatever is clear: places hold the arm's rank, tied arms' places overlap, clear ones' order is that of the means."""
    rng = np.random.default_rng(seed)
    means = dict(zip(["net", "good", "same", "poor"], rng.uniform(0.6, 0.7, 4), strict=True))
    table = compare_models.ranking(made_scores(means, noise=0.01, seed=seed), STUDY)
    for i, row in enumerate(table.itertuples()):
        assert row.rank_low <= i + 1 <= row.rank_high
        tied = set(row.tied_with.split(", ")) - {""}
        for other in table[table["arm"] != row.arm].itertuples():
            overlap = row.rank_low <= other.rank_high and other.rank_low <= row.rank_high
            assert overlap or other.arm not in tied
            assert (row.arm in other.tied_with.split(", ")) == (other.arm in tied)


def test_what_follows_from_clear_differences_is_clear(monkeypatch):
    """a over b and b over c are clear, a over c by itself is not: the first two say it."""
    pairs = pd.DataFrame(
        [("net", "good", 0.1, 0.01), ("good", "poor", 0.1, 0.01), ("net", "poor", 0.2, 0.2)],
        columns=["first", "second", "difference", "p_holm"],
    )
    monkeypatch.setattr(compare_models, "differences", lambda *a, **k: pairs)
    three = {arm: MEANS[arm] for arm in ("net", "good", "poor")}
    table = compare_models.ranking(made_scores(three), STUDY)
    assert table["rank_low"].tolist() == table["rank_high"].tolist() == [1, 2, 3]


def test_equal_arms_are_seldom_told_apart():
    """Twelve sets of four equal arms whose folds share patches as Monte Carlo folds do: hardly any pair is clear."""
    clear = 0
    for seed in range(12):
        scores = made_scores(dict.fromkeys(MEANS, 0.8), noise=0.02, seed=seed)
        clear += (compare_models.ranking(scores, STUDY)["tied_with"].str.count(",") < 2).any()
    assert clear <= 1


def test_what_the_folds_show_is_where_a_difference_becomes_clear():
    scores = made_scores(noise=0.02)
    text = compare_models.what_folds_show(STUDY, scores)
    part = scores.query("train_domain == 'all' and size == 1.0").pivot(index="fold", columns="arm", values="auroc")
    sds = [(part[a] - part[b]).std() for i, a in enumerate(part) for b in list(part)[i + 1 :]]
    bound = statistics.clear_difference(5, 640, 200) * np.median(sds)
    assert f"With 5 overlapping folds, two arms must differ by {bound:.3f} in AUROC" in text
    assert "the first of 6 pairs" in text and text.endswith(f"below {1.96 * np.sqrt(200 / 640) * np.median(sds):.3f}.")
    in_sds = compare_models.what_folds_show(STUDY)
    assert f"differ by {statistics.clear_difference(5, 0.64, 0.2):.1f} SDs" in in_sds
    one_arm = compare_models.what_folds_show(STUDY, scores[scores["arm"] == "net"])
    assert "SDs" in one_arm and "Holm" not in one_arm
    assert "no spread" in compare_models.what_folds_show(STUDY, scores[scores["fold"] == 0])


@pytest.mark.parametrize(("n_folds", "noise"), [(2, 0.05), (2, 0.3), (3, 0.3), (3, 0.1), (5, 0.4), (5, 0.02)])
def test_no_sentence_asks_for_more_than_arms_can_differ_by(n_folds, noise):
    scores = made_scores(noise=noise)
    scores = scores[scores["fold"] < n_folds].assign(auroc=lambda table: table["auroc"].clip(0, 1))
    text = compare_models.what_folds_show(replace(STUDY, splits=replace(STUDY.splits, n_folds=n_folds)), scores)
    asked = [float(value) for value in re.findall(r"by (\d+\.\d+)", text)]
    full = scores.query("train_domain == 'all' and size == 1.0")
    assert max(asked, default=0) <= 1 - full.groupby("arm")["auroc"].mean().min(), text
    if n_folds == 2:
        assert text == "Two folds say too little of their spread for a word on how far two arms must differ."
        assert compare_models.what_folds_show(replace(STUDY, splits=replace(STUDY.splits, n_folds=2))) == text
    if (n_folds, noise) == (3, 0.1):
        assert "which can't be enough as the first of 6 pairs" in text and len(asked) == 1
    if noise >= 0.3 and n_folds > 2:
        assert "than the worst arm does from a perfect one" in text
    assert bool(asked) == (noise <= 0.1 and n_folds > 2)


def test_intervals_are_those_of_the_bootstrap_for_every_arm_and_size():
    rng = np.random.default_rng(0)
    n = 400
    table = pd.DataFrame({"slide_id": rng.integers(0, 9, n).astype(str), "label": rng.integers(0, 2, n)})
    table = table.assign(score=np.clip(0.3 * table["label"] + rng.random(n), 0, 1), fold=rng.integers(0, 2, n))
    table = pd.concat([table.assign(arm=arm, size=size) for arm in ("good", "net") for size in (1.0, 0.5)])
    table = table.assign(kind="probe", train_domain="all")
    found = compare_models.intervals(table, STUDY, metrics=("auroc", "ece"), n_resamples=60)
    assert found.columns.tolist() == ["arm", "kind", "size", "metric", "estimate", "low", "high", "n_slides"]
    assert found["arm"].tolist() == ["net"] * 4 + ["good"] * 4 and found["size"].tolist() == [0.5, 0.5, 1, 1] * 2
    assert set(found["n_slides"]) == {9}
    by_arm = found.groupby("metric")[["estimate", "low", "high"]].nunique()
    assert (by_arm == 1).all(axis=None), "the same scores were given other draws in another arm"
    row = found.query("metric == 'auroc'").iloc[0]
    part = table[(table["arm"] == "net") & (table["size"] == 0.5)]
    folds = [metrics.auroc(f["label"], f["score"]) for _, f in part.groupby("fold")]
    assert row["low"] < row["estimate"] < row["high"] and row["estimate"] == pytest.approx(np.mean(folds))
