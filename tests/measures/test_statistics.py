"""Spread, the corrected tests and Holm's correction against other formulas and against their own simulations."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mfcore.measures import statistics

FIRST, SECOND = np.array([0.8, 0.82, 0.79, 0.85, 0.81]), np.array([0.7, 0.75, 0.74, 0.73, 0.78])


def folds(values):
    """Scores of folds with test patches of their own."""
    return statistics.Folds(pd.Series(values, dtype=float))


def paired(first, second, n_train, n_test):
    return statistics.paired_test(folds(first), folds(second), n_train, n_test)


def unpaired(first, second, n_train, n_test):
    return statistics.unpaired_test(folds(first), folds(second), n_train, n_test)


def test_spread_is_mean_and_sample_sd():
    values = [0.7, 0.8, 0.75, 0.9]
    found = statistics.spread(values)
    assert (found.mean, found.sd, found.n) == (pytest.approx(np.mean(values)), pytest.approx(stats.tstd(values)), 4)


def test_spread_leaves_nan_out_and_counts():
    assert statistics.spread([0.5, np.nan, 0.7]).n == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, none = statistics.spread([0.5]), statistics.spread([np.nan])
    assert one.mean == 0.5
    assert np.isnan([one.sd, none.mean, none.sd]).all()
    assert none.n == 0


def test_paired_difference_is_scipys_when_nothing_is_shared():
    """With a vanishing test share the correction vanishes, and the paired t interval remains."""
    found = paired(FIRST, SECOND, 1e12, 1).interval
    expected = stats.ttest_rel(FIRST, SECOND).confidence_interval(0.95)
    assert [found.low, found.high] == pytest.approx([expected.low, expected.high], abs=1e-6)
    assert found.low > 0 or found.high < 0


def test_paired_difference_widens_as_nadeau_and_bengio_say():
    plain = paired(FIRST, SECOND, 1e12, 1).interval
    corrected = paired(FIRST, SECOND, 64, 20).interval
    ratio = (corrected.high - corrected.low) / (plain.high - plain.low)
    assert ratio == pytest.approx(np.sqrt((1 / 5 + 20 / 64) / (1 / 5)), abs=1e-6)
    assert corrected.estimate == pytest.approx(np.mean(FIRST - SECOND))


def test_paired_difference_leaves_unfinished_folds_out():
    found = paired([0.8, np.nan, 0.9], [0.7, 0.7, 0.85], 80, 20).interval
    assert found.n == 2
    assert np.isnan(paired([0.8], [0.7], 80, 20).interval.low)


def test_p_is_scipys_when_nothing_is_shared():
    assert paired(FIRST, SECOND, 1e12, 1).p == pytest.approx(stats.ttest_rel(FIRST, SECOND).pvalue, rel=1e-6)
    welch = unpaired(FIRST, SECOND[:4], 1e12, 1)
    expected = stats.ttest_ind(FIRST, SECOND[:4], equal_var=False)
    assert welch.p == pytest.approx(expected.pvalue, rel=1e-6) and welch.interval.n == 4
    interval = expected.confidence_interval()
    assert [welch.interval.low, welch.interval.high] == pytest.approx([interval.low, interval.high], abs=1e-6)


def test_p_is_that_of_the_corrected_t_by_hand():
    d = FIRST - SECOND
    t = d.mean() / (d.std(ddof=1) * np.sqrt(1 / 5 + 20 / 64))
    assert paired(FIRST, SECOND, 64, 20).p == pytest.approx(2 * (1 - stats.t.cdf(t, 4)))
    assert paired(SECOND, FIRST, 64, 20).p == pytest.approx(2 * (1 - stats.t.cdf(t, 4)))


@pytest.mark.parametrize("shift", np.linspace(-0.12, 0.05, 18))
@pytest.mark.parametrize("test", [paired, unpaired])
def test_the_interval_holds_zero_exactly_where_p_is_above_its_level(test, shift):
    found = test(FIRST + shift, SECOND, 64, 20)
    assert (found.interval.low <= 0 <= found.interval.high) == (found.p >= 0.05)


def test_folds_without_spread_say_nothing_unless_the_arms_are_equal():
    same = paired(FIRST, FIRST, 64, 20)
    assert (same.interval.low, same.interval.high, same.p) == (0.0, 0.0, 1.0)
    shifted = paired(FIRST, FIRST - 0.1, 64, 20)
    assert shifted.interval.estimate == pytest.approx(0.1)
    assert np.isnan([shifted.p, shifted.interval.low, shifted.interval.high]).all()


@pytest.mark.parametrize("test", [paired, unpaired])
def test_one_fold_has_no_p(test):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(test([0.8, np.nan], [0.7, np.nan], 64, 20).p)
        assert np.isnan(test([np.nan], [np.nan], 64, 20).interval.estimate)


def test_a_difference_is_clear_from_where_said():
    """Folds whose SD is 1: just above the bound p is below 0.05 (of one of three tests: 0.05 / 3), just below it above."""
    spread = np.array([-1.0, 0.5, 1.25, -1.25, 0.5])
    spread = spread / spread.std(ddof=1)
    for n_tests in (1, 3):
        bound = statistics.clear_difference(5, 64, 20, n_tests=n_tests)
        above, below = (paired(spread + bound * by, np.zeros(5), 64, 20).p for by in (1.001, 0.999))
        assert above < 0.05 / n_tests < below
    assert np.isnan(statistics.clear_difference(1, 64, 20))


def test_the_corrected_test_keeps_its_level_where_the_plain_one_does_not():
    """Folds that share patches: a common draw makes their differences correlate by test / (test + training) share."""
    rng, n, share = np.random.default_rng(0), 4000, 20 / (20 + 64)
    common, own = rng.normal(size=(n, 1)), rng.normal(size=(n, 5))
    differences = np.sqrt(share) * common + np.sqrt(1 - share) * own
    corrected = [paired(d, np.zeros(5), 64, 20).p < 0.05 for d in differences]
    plain = [paired(d, np.zeros(5), 1e12, 1).p < 0.05 for d in differences]
    assert np.mean(plain) > 0.12 and 0.035 < np.mean(corrected) < 0.065


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 4 * .005; 3 * .01; 2 * .03; then 1 * .04 is raised to .06
        ([0.01, np.nan, 0.02], [0.02, np.nan, 0.02]),  # two tests, not three
        ([0.5, 0.9, 0.6], [1.0, 1.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([np.nan], [np.nan]),
        ([], []),
    ],
)
def test_holm_by_hand(p, expected):
    found = statistics.holm(pd.Series(p, index=[f"pair{i}" for i in range(len(p))], dtype=float))
    assert found.tolist() == pytest.approx(expected, nan_ok=True) and found.index.tolist()[:1] == ["pair0"][: len(p)]


def test_holm_is_its_definition_on_random_p():
    rng = np.random.default_rng(1)
    for _ in range(50):
        p = pd.Series(rng.random(rng.integers(1, 9)) ** 3)
        found, ordered = statistics.holm(p), np.sort(p)
        for value, corrected in zip(p, found, strict=True):
            rejected_at = [(len(p) - j) * ordered[j] for j in range(len(p)) if ordered[j] <= value]
            assert corrected == pytest.approx(min(1, max(rejected_at)))
        assert (found >= p).all() and (found <= p * len(p)).all()


def test_scores_by_fold_are_subtracted_and_averaged_draw_by_draw():
    """Folds that one lacks are left out of a difference, and of a mean for that part only; a score without draws has none."""
    moved = pd.DataFrame(np.arange(12.0).reshape(4, 3))
    first = statistics.Folds(pd.Series([0.9, 0.8, np.nan, 0.7]), moved, False, {"a": 9}).defined()
    second = statistics.Folds(pd.Series([0.5, 0.6], index=[3, 1]), moved[:2].set_axis([3, 1]) / 2, False, {"b": 5})
    less, moved = first - second, moved.to_numpy()
    assert less.values.to_dict() == pytest.approx({1: 0.2, 3: 0.2}) and less.units == {"a": 9, "b": 5}
    assert less.moved.to_numpy().tolist() == (moved[[1, 3]] - moved[[1, 0]] / 2).tolist()
    home = folds([0.9, 0.9, 0.9, 0.9]) - first
    assert home.has_own_patches and home.moved.to_numpy().tolist() == (-moved[[0, 1, 3]]).tolist()
    mean = statistics.mean_of([first, second])
    assert mean.values.to_dict() == pytest.approx({0: 0.9, 1: 0.7, 3: 0.6}) and mean.units == {"a": 9, "b": 5}
    assert mean.moved.loc[1].tolist() == ((moved[1] + moved[1] / 2) / 2).tolist()
    assert mean.moved.loc[0].tolist() == moved[0].tolist()
    alone = statistics.Folds(pd.Series([0.9, 0.8, 0.9, 0.7]), has_own_patches=False)
    assert np.isnan(statistics.paired_test(alone, first, 80, 20).p), "one slide can't be drawn"


def test_a_small_p_is_not_written_out():
    assert [statistics.p_value(p) for p in (0.0534, 0.001, 0.00005)] == ["p = 0.053", "p = 0.001", "p < 0.001"]
