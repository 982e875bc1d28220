"""What five folds can and can't say: mean and spread, the test of two arms, and Holm's for many of
them.

Which test of two arms is right depends on what the folds are tested on. Folds with test patches of
their own differ by these patches too, so that their spread holds the choice of what was tested
(Nadeau and Bengio). Folds that are all tested on the same patches (out of domain; the authors' own
division) differ by their training alone: what other cases would have shown must be drawn
(Obuchowski and Rockette). Draws of cases, and intervals over them: `mfcore.measures.resampling`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from scipy import special

LEVEL = 0.95
MIN_FOLDS = 3  # with two, t is 12.7: nothing that an AUROC can differ by would be clear


class StatisticsError(ValueError):
    """Values from which the quantity can't be computed; the message says why."""


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) of ``n`` finite values; NaN where there are too
    few.
    """

    mean: float
    sd: float
    n: int


@dataclass(frozen=True)
class Interval:
    """An estimate between ``low`` and ``high``, 95 %; ``n`` is the number of folds, or of slides or
    cases (``unit``).
    """

    estimate: float
    low: float
    high: float
    n: int
    unit: str = "slide"


@dataclass(frozen=True)
class Test:
    """A difference with its interval over ``interval.n`` folds, and the two-sided p of no
    difference; NaN for too few folds.

    drawn: what was drawn to tell what other tests would have shown, as "31 cases"; "" where the
    folds' spread tells it.
    """

    __test__ = False  # no test of pytest's

    interval: Interval
    p: float
    drawn: str = ""


@dataclass(frozen=True)
class Folds:
    """A score by fold; where all folds are tested on the same patches, also how far each draw of
    the tested cases moves it.

    values: by fold. moved: a row a fold, a column a draw, the score under the draw less ``values``;
    the draws are the same for all folds and arms; no columns where nothing was drawn.
    has_own_patches: whether each fold is tested on patches of its own; folds with neither own
    patches nor draws can't be tested. units: how many slides or cases were drawn of each test set
    (domain); unit: "slide" or "case".
    """

    values: pd.Series
    moved: pd.DataFrame = field(default_factory=pd.DataFrame)
    has_own_patches: bool = True
    units: Mapping[str, int] = field(default_factory=dict)
    unit: str = "slide"

    def __len__(self) -> int:
        return len(self.values)

    def at(self, folds: pd.Index) -> "Folds":
        """The folds with these names, NaN where there is none."""
        return replace(self, values=self.values.reindex(folds), moved=self.moved.reindex(folds))

    def defined(self) -> "Folds":
        """The folds that have a score."""
        return self.at(self.values.dropna().index)

    def __add__(self, amount: float) -> "Folds":
        return replace(self, values=self.values + amount)

    def __sub__(self, other: "Folds | float") -> "Folds":
        """First less second, over the folds that both have."""
        if not isinstance(other, Folds):
            return self + -other
        folds = self.values.index.intersection(other.values.index)
        first, second = self.at(folds), other.at(folds)
        # what can't be drawn
        if not all(part.units or part.has_own_patches for part in (first, second)):
            return Folds(first.values - second.values, has_own_patches=False)
        moved = (
            first.moved - second.moved
            if first.units and second.units
            else first.moved
            if first.units
            else -second.moved
        )
        has_own = first.has_own_patches or second.has_own_patches
        units = {**first.units, **second.units}
        return Folds(
            first.values - second.values,
            moved,
            has_own,
            units,
            first.unit if first.units else second.unit,
        )


def mean_of(parts: Sequence[Folds]) -> Folds:
    """Mean of several scores by fold, as over pairs of domains; a fold's mean is of those that it
    has.

    parts: alike in whether folds have patches of their own. Each test set is drawn by itself: the
    domains stay as they are.
    """
    values, moved = (
        pd.concat(tables).groupby(level=0).mean()
        for tables in zip(*((part.values, part.moved) for part in parts), strict=True)
    )
    if not all(part.units for part in parts):
        return Folds(values, has_own_patches=parts[0].has_own_patches)
    units = {name: n for part in parts for name, n in part.units.items()}
    return Folds(values, moved, parts[0].has_own_patches, units, parts[0].unit)


def spread(values: np.ndarray | pd.Series) -> Spread:
    """Mean and sample standard deviation of what is no NaN in ``values`` (n,): a fold without both
    classes has no AUROC.
    """
    values = pd.Series(values, dtype=np.float64)
    return Spread(float(values.mean()), float(values.std()), int(values.count()))


def paired_test(first: Folds, second: Folds | float, n_train: float, n_test: float) -> Test:
    """Mean of ``first - second`` over folds, with the t test and interval that what the folds are
    tested on asks for.

    Folds with test patches of their own, as in Monte Carlo cross-validation, share training
    patches, so that the variance of their mean is larger than s^2 / k; the correction takes (1 / k
    + n_test / n_train) s^2, with k - 1 degrees of freedom (Nadeau and Bengio 2003, Inference for
    the Generalization Error, Machine Learning 52, section 5.2).

    Folds that are all tested on the same patches are readers of the same cases: s^2 / k for the
    training, and what draws of the cases change in all folds alike, the covariance of two folds'
    differences under the draws, for the cases (Obuchowski and Rockette 1995, Communications in
    Statistics B 24; degrees of freedom after Satterthwaite, as Hillis 2007 has them, of folds and
    cases). This holds for other cases and another draw of the training patches, not for other
    training slides than all folds drew from. A loss out of domain has both parts: of the home
    patches the first, of the other domains' the second.

    n_train, n_test: patches in one fold's training and test set; they count for folds with patches
    of their own only. Folds that one lacks are left out. Interval and p are NaN for fewer than
    MIN_FOLDS folds, where nothing was drawn for folds that share their patches, and where all
    differ by the same amount, which gives no spread to judge by; arms that are equal in every fold
    differ by 0 to 0, p 1.
    """
    difference = (first - second).defined()
    return _t_test(float(difference.values.mean()), [difference], n_test / n_train)


def unpaired_test(first: Folds, second: Folds, n_train: float, n_test: float) -> Test:
    """Difference of two arms' means over folds that they don't share, each variance as in
    `paired_test`.

    Welch's t, with his degrees of freedom. The interval's ``n`` is the smaller number of folds. NaN
    as `paired_test`.
    """
    parts = [first.defined(), second.defined()]
    return _t_test(float(parts[0].values.mean() - parts[1].values.mean()), parts, n_test / n_train)


def _t_test(mean: float, parts: list[Folds], overlap: float) -> Test:
    """Test of a mean difference, whose variance is the sum of its parts'."""
    n = min(len(part) for part in parts)
    drawn = next((f"{sum(part.units.values())} {part.unit}s" for part in parts if part.units), "")
    variances = (
        [one for part in parts for one in _variances(part, overlap)]
        if n >= MIN_FOLDS
        else [(math.nan, 1)]
    )
    total = sum(variance for variance, _ in variances)
    if mean == 0 and total == 0:
        return Test(Interval(0.0, 0.0, 0.0, n), 1.0, drawn)
    if not total > 1e-24:  # a spread of rounding is none
        return Test(Interval(mean, math.nan, math.nan, n), math.nan, drawn)
    freedom, error = (
        total**2 / sum(variance**2 / of for variance, of in variances),
        math.sqrt(total),
    )
    half = float(special.stdtrit(freedom, (1 + LEVEL) / 2)) * error
    return Test(
        Interval(mean, mean - half, mean + half, n),
        float(2 * special.stdtr(freedom, -abs(mean) / error)),
        drawn,
    )


def _variances(folds: Folds, overlap: float) -> list[tuple[float, float]]:
    """Variances that add up to that of the mean over folds, each with its degrees of freedom."""
    n = len(folds)
    of_folds = (
        float(folds.values.var()) * (1 / n + (overlap if folds.has_own_patches else 0)),
        n - 1,
    )
    if not folds.units:
        return [of_folds] if folds.has_own_patches else [(math.nan, 1)]
    moved = folds.moved.dropna(axis="columns")
    if 2 * moved.shape[1] < folds.moved.shape[1]:
        return [(math.nan, 1)]
    # covariance of two folds
    of_cases = (n**2 * moved.mean().var() - moved.var(axis="columns").sum()) / (n * (n - 1))
    return [
        of_folds,
        (max(float(of_cases), 0), max(sum(folds.units.values()) - len(folds.units), 1)),
    ]


def clear_difference(n_folds: int, n_train: float, n_test: float, n_tests: int = 1) -> float:
    """How many SDs (of the folds' differences) a mean difference must have for `paired_test` to
    find it clear of zero.

    n_tests: of how many tests it is the one with the smallest p, as `holm` asks of it. It is for
    folds with test patches of their own. NaN for fewer than MIN_FOLDS folds, with which none is
    clear.
    """
    if n_folds < MIN_FOLDS:
        return math.nan
    return -float(special.stdtrit(n_folds - 1, (1 - LEVEL) / n_tests / 2)) * math.sqrt(
        1 / n_folds + n_test / n_train
    )


def holm(p: pd.Series) -> pd.Series:
    """p values corrected for being several, by Holm's step-down method; NaN stay NaN and count for
    no test.

    The i-th smallest of m becomes the largest of (m - j + 1) p_j over j <= i, at most 1 (Holm 1979,
    A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6).
    It holds whatever the tests share.
    """
    ordered = p.dropna().sort_values()
    return (ordered * np.arange(len(ordered), 0, -1)).cummax().clip(upper=1).reindex(p.index)


def p_value(p: float) -> str:
    """A p value for a reader: "p = 0.012", or "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
