"""What five folds can and can't say: mean and spread, the corrected test of two arms, and Holm's for many of them.

Intervals over slides: `mfcore.statistics_bootstrap`.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.95


class StatisticsError(ValueError):
    """Values from which the quantity can't be computed; the message says why."""


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) of ``n`` finite values; NaN where there are too few."""

    mean: float
    sd: float
    n: int


@dataclass(frozen=True)
class Interval:
    """An estimate between ``low`` and ``high`` at ``level``; ``n`` is the number of slides, cases or folds it rests on.

    unit: "slide" or "case", what a bootstrap drew.
    """

    estimate: float
    low: float
    high: float
    level: float
    n: int
    unit: str = "slide"


@dataclass(frozen=True)
class Test:
    """A difference with its interval, and the two-sided p of no difference; NaN where the folds can't say."""

    __test__ = False  # no test of pytest's

    interval: Interval
    p: float


def spread(values: np.ndarray | pd.Series) -> Spread:
    """Mean and sample standard deviation of the finite among ``values`` (n,): a fold without both classes has no AUROC."""
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    n = len(finite)
    return Spread(float(finite.mean()) if n else math.nan, float(finite.std(ddof=1)) if n > 1 else math.nan, n)


def paired_test(
    first: np.ndarray | pd.Series, second: np.ndarray | pd.Series, n_train: float, n_test: float, level: float = LEVEL
) -> Test:
    """Mean of ``first - second`` over folds with the corrected t test and interval of Nadeau and Bengio.

    Folds of Monte Carlo cross-validation share training patches, so that the variance of their mean is larger than
    s^2 / k; the correction takes (1 / k + n_test / n_train) s^2, with k - 1 degrees of freedom (Nadeau and Bengio 2003,
    Inference for the Generalization Error, Machine Learning 52, section 5.2).

    first, second: (n_folds,), the same folds in the same order; pairs with a NaN are left out. n_train, n_test: patches
    in one fold's training and test set. Interval and p are NaN for fewer than two pairs, and where all differ by the same
    amount, which gives no spread to judge by; arms that are equal in every fold differ by 0 to 0, p 1. Raises
    StatisticsError where lengths differ or a count isn't positive.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise StatisticsError(f"folds must be paired: shapes {first.shape} and {second.shape} differ")
    _refuse_counts(n_train, n_test)
    found = spread(first - second)
    return _t_test(found.mean, found.sd * math.sqrt(1 / max(found.n, 1) + n_test / n_train), found.n - 1, level, found.n)


def unpaired_test(
    first: np.ndarray | pd.Series, second: np.ndarray | pd.Series, n_train: float, n_test: float, level: float = LEVEL
) -> Test:
    """Difference of two arms' means over folds that they don't share, each variance corrected as in `paired_test`.

    Welch's t with (1 / k + n_test / n_train) s^2 for each arm, and his degrees of freedom. first, second: (n_folds,) each,
    NaN left out. The interval's ``n`` is the smaller number of folds. NaN and raises as `paired_test`.
    """
    _refuse_counts(n_train, n_test)
    parts = [spread(first), spread(second)]
    means, n = parts[0].mean - parts[1].mean, min(part.n for part in parts)
    variances = [part.sd**2 * (1 / max(part.n, 1) + n_test / n_train) for part in parts]
    total = sum(variances)
    below = sum(variance**2 / max(part.n - 1, 1) for variance, part in zip(variances, parts, strict=True))
    return _t_test(means, math.sqrt(total), total**2 / below if below > 0 else 1.0, level, n)


def paired_difference(
    first: np.ndarray | pd.Series, second: np.ndarray | pd.Series, n_train: float, n_test: float, level: float = LEVEL
) -> Interval:
    """The interval of `paired_test`."""
    return paired_test(first, second, n_train, n_test, level).interval


def clear_difference(n_folds: int, n_train: float, n_test: float, level: float = LEVEL, n_tests: int = 1) -> float:
    """How many SDs (of the folds' differences) a mean difference must have for `paired_test` to find it clear of zero.

    n_tests: of how many tests it is the one with the smallest p, as `holm` asks of it. NaN for fewer than two folds.
    """
    _refuse_counts(n_train, n_test)
    if n_folds < 2:
        return math.nan
    quantile = float(stats.t.isf((1 - level) / n_tests / 2, n_folds - 1))
    return quantile * math.sqrt(1 / n_folds + n_test / n_train)


def holm(p: pd.Series) -> pd.Series:
    """p values corrected for being several, by Holm's step-down method; NaN stay NaN and count for no test.

    The i-th smallest of m becomes the largest of (m - j + 1) p_j over j <= i, at most 1 (Holm 1979, A Simple Sequentially
    Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6). It holds whatever the tests share. Raises
    StatisticsError for a p outside 0 to 1.
    """
    values = p.to_numpy(dtype=np.float64)
    if (bad := values[(values < 0) | (values > 1)]).size:
        raise StatisticsError(f"p values must lie between 0 and 1; the first that doesn't is {bad[0]}")
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    corrected = np.full(len(values), np.nan)
    corrected[order] = np.minimum(1, np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)))
    return pd.Series(corrected, index=p.index, name=p.name)


def _refuse_counts(n_train: float, n_test: float) -> None:
    if not (n_train > 0 and n_test > 0):
        raise StatisticsError(f"n_train ({n_train}) and n_test ({n_test}) must be positive")


def _t_test(mean: float, error: float, freedom: float, level: float, n: int) -> Test:
    """Test of a mean difference with standard error ``error``."""
    if n > 1 and mean == 0 and error == 0:
        return Test(Interval(0.0, 0.0, 0.0, level, n), 1.0)
    if n < 2 or not error > 1e-12:  # a spread of rounding is none
        return Test(Interval(mean, math.nan, math.nan, level, n), math.nan)
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    return Test(Interval(mean, mean - half, mean + half, level, n), float(2 * stats.t.sf(abs(mean) / error, freedom)))
