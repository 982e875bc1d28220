"""Arms against one another: planted differences are found, equal arms are tied, and every number has a second way to it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mfcore.analysis import arms, scores as of_scores
from mfcore.measures import binary, statistics
from mfcore.measures.statistics import Folds
from mfcore.study.config import Data, Network, Settings, Splits, Switches
from mfcore.study.predictions import END_TO_END, PROBE, scores

STUDY = Settings(
    "t",
    "A test",
    Data("midog"),
    splits=Splits(sizes=(0.5, 1.0), n_folds=5),
    encoders=("good", "same", "poor"),
    networks=(Network("net"),),
)
MEANS = {"net": 0.9, "good": 0.8, "same": 0.801, "poor": 0.6}


def made_predictions(means=MEANS, noise=0.004, n_folds=5, seed=0, same_patches=False, n=800, n_slides=20):
    """Predictions whose AUROC is each arm's mean, plus noise by fold: that share of positives scores above all negatives.

    same_patches: all folds are tested on the same patches. A slide's patches stand side by side.
    """
    rng = np.random.default_rng(seed)
    tables = []
    label = np.arange(n) % 2
    for arm, mean in means.items():
        for size in (0.5, 1.0):
            for fold in range(n_folds):
                n_above = round(n / 2 * np.clip(mean * size + rng.normal(0, noise), 0, 1))
                score = np.full(n, 0.5)
                score[label == 1] = rng.permutation(np.where(np.arange(n // 2) < n_above, 0.9, 0.1))
                patch_id = np.arange(n) + (0 if same_patches else n * fold)
                table = pd.DataFrame({"patch_id": patch_id, "label": label, "score": score, "fold": fold, "size": size})
                kind = END_TO_END if arm == "net" else PROBE
                slide = patch_id // (n // n_slides)
                tables.append(table.assign(arm=arm, kind=kind, slide_id=slide.astype(str), n_train=round(4 * n * 0.8 * size)))
    predictions = pd.concat(tables, ignore_index=True).assign(domain="a", train_domain="all")
    return pd.concat([predictions, predictions.assign(train_domain="a", domain="b", score=0.5)], ignore_index=True)


N_TRAIN, N_TEST = 2560, 800


@pytest.fixture(scope="module")
def predictions():
    return made_predictions()


def ranking(predictions, study):
    """The ranking from predictions alone."""
    return arms.ranking_table(scores(predictions), of_scores.differences_table(predictions, study), study)


def least(predictions, study=STUDY):
    """What the folds can show, from predictions alone, by question."""
    pairs = of_scores.differences_table(predictions, study)
    return arms.least_differences(scores(predictions), pairs).set_index("question")


def by_fold(predictions):
    """AUROC of every arm with all the data, arms across."""
    part = predictions.query("train_domain == 'all' and size == 1.0")
    return scores(part).pivot(index="fold", columns="arm", values="auroc")


def test_every_pair_is_tested_once_and_corrected_over_all(predictions):
    table = of_scores.differences_table(predictions, STUDY)
    expected = ["first", "second", "difference", "low", "high", "p", "p_holm", "n_folds", "paired", "over"]
    assert table.columns.tolist() == expected and set(table["over"]) == {"folds"}
    assert list(zip(table["first"], table["second"], strict=True)) == [
        ("net", "good"), ("net", "same"), ("net", "poor"), ("good", "same"), ("good", "poor"), ("same", "poor")
    ]  # fmt: skip
    part = by_fold(predictions)
    for row in table.itertuples():
        test = statistics.paired_test(Folds(part[row.first]), Folds(part[row.second]), N_TRAIN, N_TEST)
        assert (row.difference, row.low, row.high, row.p) == pytest.approx(
            (test.interval.estimate, test.interval.low, test.interval.high, test.p)
        )
    assert table["p_holm"].tolist() == statistics.holm(table["p"]).tolist()
    assert table["p_holm"].max() == table.loc[3, "p_holm"] and (table["p_holm"].drop(3) < 0.05).all()


def test_scores_must_be_there(predictions):
    with pytest.raises(statistics.StatisticsError, match="no arm has scores with all the data"):
        of_scores.differences_table(predictions[predictions["train_domain"] != "all"], STUDY)


def test_folds_are_paired_by_number_and_missing_ones_left_out(predictions):
    lost = predictions[~((predictions["arm"] == "good") & (predictions["fold"] == 2))].sample(frac=1, random_state=0)
    row = of_scores.differences_table(lost, STUDY).iloc[0]
    part = by_fold(predictions).drop(2)
    assert row["n_folds"] == 4 and row["difference"] == pytest.approx((part["net"] - part["good"]).mean())


def test_arms_with_splits_of_their_own_are_not_paired(predictions):
    own = replace(STUDY, switches=Switches(shared_splits=False))
    table = of_scores.differences_table(predictions, own)
    assert table["paired"].tolist() == [False, False, False, True, True, True]
    part = by_fold(predictions)
    assert table.loc[0, "p"] == pytest.approx(
        statistics.unpaired_test(Folds(part["net"]), Folds(part["good"]), N_TRAIN, N_TEST).p
    )


def test_what_cannot_be_tested_is_nan_and_counts_for_nothing(predictions):
    kept = predictions[(predictions["arm"] != "poor") | (predictions["label"] == 0)]
    kept = kept[~((kept["arm"] == "same") & (kept["fold"] > 1))]
    table = of_scores.differences_table(kept, STUDY)
    assert table["p"].notna().tolist() == [True, False, False, False, False, False], "two folds say too little"
    assert table.loc[0, "p_holm"] == table.loc[0, "p"], "tests that weren't made were corrected for"
    disjoint = predictions[(predictions["arm"] != "net") | (predictions["fold"] > 2)].query("arm != 'good' or fold < 2")
    assert of_scores.differences_table(disjoint, STUDY).loc[0, "n_folds"] == 0


def test_folds_that_are_tested_on_the_same_patches_are_compared_by_draws_of_cases():
    """As by the authors' own division: five folds that agree closely say nothing of other slides, which draws of few do."""
    few = made_predictions({"net": 0.5, "good": 0.5}, same_patches=True, n=160, n_slides=8)
    for arm, right in (("net", {"0", "1", "2", "3", "4"}), ("good", {"0", "1", "6", "7"})):  # slides, all but a tenth of them
        rows = (few["arm"] == arm) & (few["label"] == 1) & ((few["patch_id"] + few["fold"]) % 11 > 0)
        few.loc[rows, "score"] = np.where(few.loc[rows, "slide_id"].isin(right), 0.9, 0.1)
    row = of_scores.differences_table(few, STUDY).iloc[0]
    part = by_fold(few)
    assert row["over"] == "8 slides" and row["difference"] == pytest.approx((part["net"] - part["good"]).mean())
    by_spread = statistics.paired_test(Folds(part["net"]), Folds(part["good"]), 512, 160)
    assert by_spread.p < 0.05 and row["p"] > 0.3
    assert row["high"] - row["low"] > 3 * (by_spread.interval.high - by_spread.interval.low)
    order = ranking(few, STUDY)
    assert set(order["over"]) == {"8 slides"} and (order["tied_with"] != "").all()
    (shown,) = least(few).itertuples()
    assert shown.auroc == pytest.approx((row["high"] - row["low"]) / 2) and not shown.possible
    assert shown.Index == "one pair, by draws of 8 slides" and np.isnan(shown.sds)
    many = made_predictions(same_patches=True)
    pairs = of_scores.differences_table(many, STUDY)
    half = (pairs["high"] - pairs["low"]).median() / 2
    assert least(many)["auroc"].tolist() == pytest.approx([half]) and least(many)["possible"].all()
    cases = few.assign(case_id=(few["slide_id"].astype(int) // 2).astype(str))
    assert of_scores.differences_table(cases, STUDY).iloc[0]["over"] == "4 cases"


def test_ties_share_their_places(predictions):
    table = ranking(predictions, STUDY).set_index("arm")
    assert table.index[0] == "net" and table.index[-1] == "poor"
    assert table[["rank_low", "rank_high"]].to_dict("index") == {
        "net": {"rank_low": 1, "rank_high": 1},
        "good": {"rank_low": 2, "rank_high": 3},
        "same": {"rank_low": 2, "rank_high": 3},
        "poor": {"rank_low": 4, "rank_high": 4},
    }
    assert table["tied_with"].to_dict() == {"net": "", "good": "same", "same": "good", "poor": ""}
    part = by_fold(predictions)["good"]
    assert table.loc["good", "mean"] == pytest.approx(part.mean()) and table.loc["good", "sd"] == pytest.approx(part.std())


@pytest.mark.parametrize("seed", range(8))
def test_places_and_ties_say_the_same(seed):
    """Whatever is clear: places hold the arm's rank, tied arms' places overlap, clear ones' order is that of the means."""
    rng = np.random.default_rng(seed)
    means = dict(zip(["net", "good", "same", "poor"], rng.uniform(0.6, 0.7, 4), strict=True))
    table = ranking(made_predictions(means, noise=0.01, seed=seed), STUDY)
    for i, row in enumerate(table.itertuples()):
        assert row.rank_low <= i + 1 <= row.rank_high
        tied = set(row.tied_with.split(", ")) - {""}
        for other in table[table["arm"] != row.arm].itertuples():
            overlap = row.rank_low <= other.rank_high and other.rank_low <= row.rank_high
            assert overlap or other.arm not in tied
            assert (row.arm in other.tied_with.split(", ")) == (other.arm in tied)


def test_what_follows_from_clear_differences_is_clear(predictions):
    """a over b and b over c are clear, a over c by itself is not: the first two say it."""
    pairs = pd.DataFrame(
        [("net", "good", 0.1, 0.01), ("good", "poor", 0.1, 0.01), ("net", "poor", 0.2, 0.2)],
        columns=["first", "second", "difference", "p_holm"],
    ).assign(over="folds")
    table = arms.ranking_table(scores(predictions[predictions["arm"] != "same"]), pairs, STUDY)
    assert table["rank_low"].tolist() == table["rank_high"].tolist() == [1, 2, 3]


def test_equal_arms_are_seldom_told_apart():
    """Twelve sets of four equal arms whose folds share patches as Monte Carlo folds do: hardly any pair is clear."""
    clear = 0
    for seed in range(12):
        equal = made_predictions(dict.fromkeys(MEANS, 0.8), noise=0.02, seed=seed)
        clear += (ranking(equal, STUDY)["tied_with"].str.count(",") < 2).any()
    assert clear <= 1


def test_what_the_folds_show_is_where_a_difference_becomes_clear():
    noisy = made_predictions(noise=0.02)
    shown, part = least(noisy), by_fold(noisy)
    sds = [(part[a] - part[b]).std() for i, a in enumerate(part) for b in list(part)[i + 1 :]]
    one, holm, endless = shown.index
    assert shown.loc[one, "sds"] == pytest.approx(statistics.clear_difference(5, N_TRAIN, N_TEST))
    assert shown.loc[holm, "sds"] == pytest.approx(statistics.clear_difference(5, N_TRAIN, N_TEST, n_tests=6))
    assert holm == "first of 6 pairs, after Holm"
    assert shown.loc[endless, "sds"] == pytest.approx(1.96 * np.sqrt(N_TEST / N_TRAIN), abs=1e-3)
    assert shown["auroc"].tolist() == pytest.approx((shown["sds"] * np.median(sds)).tolist())
    assert least(noisy[noisy["arm"] == "net"])["auroc"].isna().all(), "one arm differs from none"
    assert least(noisy[noisy["fold"] < 2]).empty, "two folds say too little of their spread"


@pytest.mark.parametrize(("n_folds", "noise"), [(3, 0.3), (3, 0.1), (5, 0.4), (5, 0.02)])
def test_no_difference_is_possible_that_arms_cannot_have(n_folds, noise):
    predictions = made_predictions(noise=noise, n_folds=n_folds)
    shown, room = least(predictions), 1 - by_fold(predictions).mean().min()
    assert (shown.loc[shown["possible"], "auroc"] <= room).all()
    assert shown["possible"].iloc[0] == (noise <= 0.1)


def test_intervals_are_those_of_the_bootstrap_for_every_arm():
    rng = np.random.default_rng(0)
    n = 400
    table = pd.DataFrame({"slide_id": rng.integers(0, 9, n).astype(str), "label": rng.integers(0, 2, n)})
    table = table.assign(score=np.clip(0.3 * table["label"] + rng.random(n), 0, 1), fold=rng.integers(0, 2, n))
    table = pd.concat([table.assign(arm=arm, size=size) for arm in ("good", "net") for size in (1.0, 0.5)])
    table = table.assign(kind="probe", train_domain="all")
    found = of_scores.intervals(table, STUDY)
    assert found.columns.tolist() == of_scores.INTERVALS and found["arm"].tolist() == ["net", "good"]
    assert set(found["n"]) == {9} and set(found["unit"]) == {"slide"}
    alike = found[["estimate", "low", "high"]].nunique()
    assert (alike == 1).all(), "the same scores were given other draws in another arm"
    row = found.iloc[0]
    part = table[(table["arm"] == "net") & (table["size"] == 1.0)]
    folds = [binary.auroc(f["label"], f["score"]) for _, f in part.groupby("fold")]
    assert row["low"] < row["estimate"] < row["high"] and row["estimate"] == pytest.approx(np.mean(folds))
