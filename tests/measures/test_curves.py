"""Learning curves: planted ones are found, as scipy finds them, and what the data can't determine is said to be so."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import curve_fit

from mfcore.measures import curves

SEED = 0
LAW = ["asymptote", "scale", "exponent"]
SIZES = (0.001, 0.01, 0.1, 1.0)
N_FULL = 10_000


def law(n, asymptote, scale, exponent):
    return asymptote - scale * np.asarray(n, dtype=float) ** -exponent


def made(of_arm, sizes=SIZES, noise=0.0005, n_folds=5, seed=0):
    """Scores of arms whose AUROC is a function of the patches, with a little noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for arm, of_n in of_arm.items():
        for size in sizes:
            for fold in range(n_folds):
                n = round(size * N_FULL)
                base = {"arm": arm, "kind": "probe", "domain": "all", "n_train": n, "n_test": 3000}
                rows.append(
                    base
                    | {
                        "train_domain": "all",
                        "fold": fold,
                        "size": size,
                        "tested": fold,
                        "auroc": of_n(n) + rng.normal(0, noise),
                    }
                )
                rows.append(base | {"train_domain": "x", "fold": fold, "size": size, "tested": fold, "auroc": 0.1})
    return pd.DataFrame(rows)


BEST = {"net": lambda n: law(n, 0.9, 0.6, 0.4)}


def row_of(arm, table):
    return table.set_index("arm").loc[arm]


def test_a_planted_curve_is_found_and_holds_its_asymptote():
    table = curves.fit(made(BEST | {"a": lambda n: law(n, 0.85, 0.7, 0.3)}, noise=0.002), SEED)
    assert table.columns.tolist() == curves.COLUMNS and table["arm"].tolist() == ["net", "a"]
    row = row_of("a", table)
    assert row["why_not"] == "" and row["low"] < 0.85 < row["high"]
    assert row["asymptote"] == pytest.approx(0.85, abs=0.01) and row["exponent"] == pytest.approx(0.3, abs=0.05)
    assert math.isinf(row["n_needed"]), "the asymptote is below what the network has"


def test_the_fit_is_scipys():
    scores = made(BEST, noise=0.003, seed=3)
    means = scores[scores["train_domain"] == "all"].groupby("n_train")["auroc"].mean()
    expected, _ = curve_fit(law, means.index.to_numpy(float), means.to_numpy(), p0=(0.9, 0.5, 0.5))
    row = curves.fit(scores, SEED).iloc[0]
    assert [row["asymptote"], row["scale"], row["exponent"]] == pytest.approx(expected, rel=1e-4)
    assert law(means.index, *row[LAW]) == pytest.approx(law(means.index, *expected), abs=1e-6)


def test_three_sizes_are_passed_through():
    scores = made(BEST, sizes=SIZES[1:], noise=0.001)
    row = curves.fit(scores, SEED).iloc[0]
    means = scores[scores["train_domain"] == "all"].groupby("n_train")["auroc"].mean()
    assert row["n_sizes"] == 3 and law(means.index, *row[LAW]) == pytest.approx(means.to_numpy(), abs=1e-5)


def test_the_patches_that_close_the_gap_are_where_the_curve_meets_the_best_arm():
    slow = {"a": lambda n: law(n, 0.92, 1.2, 0.25)}
    table = curves.fit(made(BEST | slow, seed=1), SEED)
    row, best = row_of("a", table), row_of("net", table)
    target = law(N_FULL, 0.9, 0.6, 0.4)
    truth = (1.2 / (0.92 - target)) ** (1 / 0.25)
    assert row["n_needed_low"] < truth < row["n_needed_high"] and row["n_needed"] == pytest.approx(truth, rel=0.2)
    assert row["n_needed"] > N_FULL
    assert law(row["n_needed"], *row[LAW]) == pytest.approx(target, abs=0.001)
    assert (best["n_needed"], best["n_needed_low"], best["n_needed_high"]) == (N_FULL, N_FULL, N_FULL)


@pytest.mark.parametrize(
    ("of_n", "sizes", "noise", "n_folds", "reason"),
    [
        (lambda n: 0.5 + 0.05 * math.log10(n), SIZES, 0.0005, 5, "no bend"),
        (lambda n: 0.7 - 0.02 * math.log10(n), SIZES, 0.0005, 5, "doesn't rise"),
        (lambda n: 0.5 if n <= 10 else 0.7, SIZES, 1e-6, 5, "stopped rising by the second size"),
        (lambda n: law(n, 0.7, 0.3, 0.4), SIZES, 0.05, 5, "noise"),
        (lambda n: law(n, 0.7, 0.3, 0.4), SIZES[2:], 0.001, 5, "2 sizes"),
        (lambda n: law(n, 0.7, 0.3, 0.4), SIZES[3:], 0.001, 5, "1 size;"),
        (lambda n: law(n, 0.7, 0.3, 0.4), SIZES, 0.001, 2, "2 folds"),
    ],
)
def test_what_the_data_do_not_determine_is_said(of_n, sizes, noise, n_folds, reason):
    row = curves.fit(made({"a": of_n}, sizes, noise, n_folds), SEED).iloc[0]
    assert reason in row["why_not"]
    of_curve = ["asymptote", "low", "high", "scale", "exponent", "n_needed", "n_needed_low", "n_needed_high"]
    assert row[of_curve].isna().all()


def test_the_last_step_alone_is_drawn_on():
    """0.02 for each tenfold, and 0.04 below the best arm: a hundred times the patches."""
    straight = {"net": lambda n: 0.84, "a": lambda n: 0.8 + 0.02 * math.log10(n / N_FULL), "b": lambda n: 0.7}
    table = curves.fit(made(straight, noise=0.0001), SEED)
    row = row_of("a", table)
    assert row["per_tenfold"] == pytest.approx(0.02, abs=0.001)
    assert row["per_tenfold_low"] < 0.02 < row["per_tenfold_high"]
    assert row["n_straight"] == pytest.approx(100 * N_FULL, rel=0.1)
    assert row["n_straight_low"] < 100 * N_FULL < row["n_straight_high"]
    assert math.isinf(row_of("b", table)["n_straight_high"]) and row_of("net", table)["n_straight"] == N_FULL
    one = curves.fit(made(straight, sizes=(1.0,)), SEED)
    assert one[["per_tenfold", "n_straight"]].isna().all(axis=None)


def test_a_fold_without_every_size_is_left_out_and_an_arm_of_one_size_takes_no_other_with_it():
    scores = made(BEST | {"a": lambda n: law(n, 0.85, 0.7, 0.3), "b": lambda n: 0.95})
    lost = (scores["arm"] == "a") & (scores["fold"] == 1) & (scores["size"] == 0.01)
    scores = scores[~lost & ~((scores["arm"] == "b") & (scores["size"] < 1))]
    table = curves.fit(scores, SEED)
    assert row_of("a", table)["n_folds"] == 4 and row_of("a", table)["why_not"] == ""
    assert row_of("b", table)["why_not"].startswith("1 size;") and math.isinf(row_of("net", table)["n_needed"])
    unfinished = scores[~((scores["arm"] == "b") & (scores["fold"] == 3))]
    assert row_of("net", curves.fit(unfinished, SEED))["n_folds"] == 4, "a fold has no best arm to be compared with"


def test_no_curve_ends_above_one():
    """Least squares under that bound, against a search over scale and exponent with the asymptote held at 1."""
    x, y = np.array([0.01, 0.1, 1.0]), np.array([0.5, 0.7, 0.95])
    found = curves.power_laws(x, y[None])
    assert found.asymptote[0] == 1
    grid = [1 - b * x**-c - y for b in np.linspace(0.02, 0.2, 181) for c in np.linspace(0.05, 1, 191)]
    error = np.sum((1 - found.scale[0] * x ** -found.exponent[0] - y) ** 2)
    assert error <= min(np.sum(np.square(grid), axis=1)) + 1e-9


def test_resampled_means_have_the_corrected_variance():
    values = np.random.default_rng(0).normal(0.8, 0.02, (5, 2))
    draws = np.random.default_rng(1).multinomial(5, np.full(5, 0.2), 20_000)
    found = curves.resampled_means(values, draws, 0.3)
    assert found[0] == pytest.approx(values.mean(axis=0)) and found[1:].mean(axis=0) == pytest.approx(found[0], abs=1e-3)
    assert found[1:].var(axis=0) == pytest.approx(values.var(axis=0, ddof=1) * (1 / 5 + 0.3), rel=0.05)


def test_the_interval_of_the_asymptote_covers_the_truth():
    """Of 40 made-up studies with independent folds, nearly all: the correction makes it wider than these need."""
    held = []
    for seed in range(40):
        row = curves.fit(made({"a": BEST["net"]}, noise=0.004, seed=seed), SEED).iloc[0]
        if not row["why_not"]:
            held.append(row["low"] <= 0.9 <= row["high"])
    assert len(held) > 30 and np.mean(held) > 0.9


def test_what_lies_ahead_follows_the_curve_where_there_is_one_and_the_last_step_where_not():
    straight = {"a": lambda n: 0.5 + 0.05 * math.log10(n)}
    table = curves.ahead(made(BEST | straight), SEED)
    fitted = curves.fit(made(BEST | straight), SEED)
    for arm, how, first in (("net", "curve", 10), ("a", "straight", N_FULL)):
        part = table[table["arm"] == arm]
        assert set(part["how"]) == {how}
        assert part["n_train"].iloc[[0, -1]].tolist() == pytest.approx([first, curves.AHEAD * N_FULL])
        assert (part["low"] <= part["expected"]).all() and (part["expected"] <= part["high"]).all()
    part = table[table["arm"] == "net"]
    assert part["expected"].to_numpy() == pytest.approx(law(part["n_train"], *row_of("net", fitted)[LAW]), abs=1e-9)
    assert table["expected"].iloc[-1] == pytest.approx(0.75, abs=0.005), "0.05 more for tenfold the patches"
    assert curves.ahead(made(BEST, sizes=(1.0,)), SEED).empty, "one size leads nowhere"


def test_an_arm_without_any_score_has_no_curve_and_stops_no_other():
    scores = made(BEST | {"a": lambda n: math.nan})
    table = curves.fit(scores, SEED)
    assert row_of("net", table)["why_not"] == "" and "0 sizes" in row_of("a", table)["why_not"]
    assert set(curves.ahead(scores, SEED)["arm"]) == {"net"}


def test_folds_that_are_tested_on_the_same_patches_give_no_bounds():
    """Their spread is that of the training alone, which would promise far too much."""
    scores = made(BEST | {"a": lambda n: law(n, 0.85, 0.7, 0.3)}, noise=0.002)
    own, same = (curves.fit(scores.assign(tested=tested), SEED) for tested in (scores["fold"], 1))
    bounds = [name for name in own if name.endswith(("low", "high"))]
    assert own[bounds].notna().any(axis=None) and same[bounds].isna().all(axis=None)
    kept = [name for name in own if name not in bounds]
    pd.testing.assert_frame_equal(own[kept], same[kept])
    assert curves.ahead(scores.assign(tested=1), SEED)[["low", "high"]].isna().all(axis=None)
