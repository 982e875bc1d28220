"""Intervals of a metric over tested cases, by a bootstrap that ranks nothing twice, and draws of
cases for tests.

The case is the unit where cases are known, else the slide: patches of one case resemble one
another, so that patches drawn singly promise too narrow an interval. A metric of RESAMPLED is a
function of sums over units, so that a resample of units needs these sums alone, weighted by how
often it has each unit: one product of matrices for all resamples.
"""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import special

from mfcore.measures import binary
from mfcore.measures.statistics import LEVEL, Folds, Interval
from mfcore.streams import generator

N_RESAMPLES = 2000
N_DRAWS = 1000  # of a test, which needs their variance only
MIN_SLIDES = 5  # fewer units, resampled, say too little of how others would differ
# folds are tested on the same patches where all of them test this share or more of what any tests
SAME_PATCHES = 0.9
COVERAGE = {5: 0.95, 8: 0.96, 20: 0.93, 50: 0.95}
"""Of 95 % intervals of the AUROC, by slides: tests/measures/test_statistics_simulated.py."""


def units_of(table: pd.DataFrame) -> tuple[pd.Series, str]:
    """What a bootstrap draws: the case of each row where a case has several slides, else its slide;
    and "case" or "slide".

    table: with ``slide_id`` and, where cases are known, ``case_id``.
    """
    if "case_id" in table and table["case_id"].nunique() < table["slide_id"].nunique():
        return table["case_id"], "case"
    return table["slide_id"], "slide"


def bootstrap(
    predictions: pd.DataFrame,
    metric: str,
    seed: int,
    *names: object,
    n_resamples: int = N_RESAMPLES,
) -> Interval:
    """Interval of the mean over folds of a metric, by a bootstrap of the units of `units_of`
    (`interval_of`).

    It covers the choice of tested units, not that of training slides. Whole clusters are resampled:
    Davison and Hinkley 1997, section 3.8. Arguments and errors as `resample`. NaN where no fold has
    both classes; bounds NaN as `interval_of` has them. ``n`` counts units.
    """
    units, unit = units_of(predictions)
    values = resample(predictions, metric, seed, *names, n_resamples=n_resamples)
    return replace(interval_of(values, units.nunique()), unit=unit)


def resample(
    predictions: pd.DataFrame,
    metric: str,
    seed: int,
    *names: object,
    n_resamples: int = N_RESAMPLES,
) -> np.ndarray:
    """Mean over folds of a metric in the sample and in resamples of its units, float64 (1 +
    n_resamples,).

    A resample draws as many units as there are, for all folds at once, since one unit may be tested
    in several; each fold's metric is then computed among its own test patches, and averaged over
    the folds where it is defined: scores of different fits aren't pooled, they have no common
    scale. NaN where no fold has both classes.

    predictions: one arm at one size, with ``slide_id, label, score, fold``, and ``case_id`` where
    cases are known. metric: one of RESAMPLED, or of `binary.METRICS` without resamples. ``seed``
    and ``names`` name the stream. Raises MetricError for bad labels or scores and for another
    metric.
    """
    return _in_folds(predictions, metric, seed, *names, n_resamples=n_resamples).mean().to_numpy()


def by_fold(
    predictions: pd.DataFrame, metric: str, seed: int, test_set: str, n_draws: int = N_DRAWS
) -> Folds:
    """A metric by fold, with draws of the tested units where all folds are tested on the same
    patches, as a test needs them.

    predictions: as `resample`, with ``patch_id``. test_set: the name of what is tested, such as the
    domain, which names the stream: arms tested on the same units get the same draws. The draws'
    moves are stretched by n / (n - 1) in variance, as a resample of n units varies less than n
    other units would. Raises as `resample`.
    """
    is_same = same_patches(predictions)
    values = _in_folds(
        predictions, metric, seed, "cases", test_set, n_resamples=n_draws if is_same else 0
    )
    units, unit = units_of(predictions)
    n = units.nunique()
    if not is_same or n < 2:
        return Folds(values[0], has_own_patches=not is_same)
    moved = values.drop(columns=0).sub(values[0], axis="index") * math.sqrt(n / (n - 1))
    return Folds(values[0], moved, False, {test_set: n}, unit)


def same_patches(predictions: pd.DataFrame) -> bool:
    """Whether all folds are tested on the same patches, but for a few (SAME_PATCHES); False for one
    fold.
    """
    n_folds, n_times = predictions["fold"].nunique(), predictions["patch_id"].value_counts()
    return n_folds > 1 and bool((n_times == n_folds).mean() >= SAME_PATCHES)


def _in_folds(
    predictions: pd.DataFrame, metric: str, seed: int, *names: object, n_resamples: int
) -> pd.DataFrame:
    """A metric by fold: a row a fold, column 0 the sample, the others resamples of its units."""
    if metric not in (known := RESAMPLED if n_resamples else binary.METRICS):
        raise binary.MetricError(
            f"metric {metric!r} is not known or can't be resampled; give one of {sorted(known)}"
        )
    label, score = binary.check(predictions["label"].to_numpy(), predictions["score"].to_numpy())
    unit, weights = resampled_slides(
        units_of(predictions)[0], seed, *names, n_resamples=n_resamples
    )
    values = {}
    for fold, rows in predictions.groupby("fold").indices.items():
        tested, within = np.unique(unit[rows], return_inverse=True)  # a fold tests few of the units
        if metric in RESAMPLED:
            values[fold] = RESAMPLED[metric](label[rows], score[rows], within, weights[:, tested])
        else:
            values[fold] = [binary.METRICS[metric](label[rows], score[rows])]
    return pd.DataFrame(values).T


def resampled_slides(
    slide_ids: np.ndarray | pd.Series, seed: int, *names: object, n_resamples: int = N_RESAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """Number each row's slide, or what else is drawn, and draw as many as there are, with
    replacement, ``n_resamples`` times.

    Returns the rows' slides, int (n,), and how often each resample has each slide, float64 (1 +
    n_resamples, n_slides); row 0 is the sample itself. ``seed`` and ``names`` name the stream; the
    order of the rows doesn't matter.
    """
    slides, slide = np.unique(np.asarray(slide_ids, dtype=str), return_inverse=True)
    drawn = generator(seed, "bootstrap", *names).multinomial(
        len(slides), np.full(len(slides), 1 / len(slides)), n_resamples
    )
    return slide, np.vstack([np.ones(len(slides)), drawn])


def interval_of(values: np.ndarray, n: int, least: float = 0.0, most: float = 1.0) -> Interval:
    """95 % interval from ``values``, the estimate and then what resamples of ``n`` units gave, NaN
    where undefined.

    Student's t with n - 1 degrees of freedom on the resamples' standard error, which is stretched
    by n / (n - 1) in variance. For a score that lies between ``least`` and ``most`` it is taken on
    the logit scale, so that the bounds lie there too; a difference has infinite ones. Percentiles
    of the resamples cover too seldom where units are few (Hesterberg 2015, The American
    Statistician 69); COVERAGE has how often this does.

    Bounds are NaN for fewer than MIN_SLIDES units, where the estimate or more than half of the
    resamples are undefined, and where resamples are all alike, which is no spread to judge by; a
    difference that is 0 in all of them is 0 to 0.
    """
    estimate, resampled, extent = float(values[0]), pd.Series(values[1:]).dropna(), most - least
    if n < MIN_SLIDES or not np.isfinite(estimate) or 2 * len(resampled) < len(values) - 1:
        return Interval(estimate, math.nan, math.nan, n)
    error = float(resampled.std()) * math.sqrt(n / (n - 1))
    if not error >= 1e-12:
        bound = 0.0 if estimate == 0 and math.isinf(extent) else math.nan
        return Interval(estimate, bound, bound, n)
    half = float(special.stdtrit(n - 1, (1 + LEVEL) / 2)) * error
    if math.isinf(extent) or not least < estimate < most:
        return Interval(estimate, max(estimate - half, least), min(estimate + half, most), n)
    share = (estimate - least) / extent
    half /= extent * share * (1 - share)
    low, high = (least + extent * special.expit(special.logit(share) + by) for by in (-half, half))
    return Interval(estimate, float(low), float(high), n)


def coverage_note(n: int, unit: str = "slide") -> str:
    """How often such an interval over ``n`` units holds the truth, as a part of a sentence; empty
    where there are many.
    """
    if not MIN_SLIDES <= n < max(COVERAGE):
        return ""
    near = max(known for known in COVERAGE if known <= n)
    often = f"{100 * COVERAGE[near]:.0f} times in 100"
    return f", which in a simulation, over {near} {unit}s, held the true AUROC {often}"


def sums_by_slide(
    slide: np.ndarray, column: np.ndarray, n_slides: int, n_columns: int, amount: np.ndarray
) -> np.ndarray:
    """Sum of ``amount`` (n,) by slide and column of the rows, float64 (n_slides, n_columns)."""
    flat = np.bincount(slide * n_columns + column, weights=amount, minlength=n_slides * n_columns)
    return flat.reshape(n_slides, n_columns)


# Each takes labels, scores, slides (n,) and the slides' multiplicities (n_resamples, n_slides),
# and returns (n_resamples,).


def _auroc(
    label: np.ndarray, score: np.ndarray, slide: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """AUROC is a share of pairs: with the multiplicities w, w' wins w / (w' positives * w'
    negatives).

    wins[s, t] is how often a positive of slide s scores above a negative of slide t, ties half.
    """
    order, n_slides = np.argsort(score), weights.shape[1]
    positive, negative = order[label[order] == 1], order[label[order] == 0]
    wins = np.zeros((n_slides, n_slides))
    for other in np.unique(slide[negative]):
        passed = score[negative[slide[negative] == other]]
        n_below, n_upto = (
            np.searchsorted(passed, score[positive], side) for side in ("left", "right")
        )
        wins[:, other] = np.bincount(slide[positive], (n_below + n_upto) / 2, n_slides)
    n_positive, n_negative = (
        weights @ np.bincount(slide[of], minlength=n_slides) for of in (positive, negative)
    )
    return binary.share(((weights @ wins) * weights).sum(axis=1), n_positive * n_negative)


def _counts(
    label: np.ndarray, score: np.ndarray, slide: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """How many rows of each class are given each class, float64 (n_resamples, 2, 2)."""
    cell = 2 * label.astype(np.int64) + binary.classify(score)
    return (weights @ sums_by_slide(slide, cell, weights.shape[1], 4, np.ones(len(label)))).reshape(
        -1, 2, 2
    )


def _balanced_accuracy(*of: np.ndarray) -> np.ndarray:
    counts = _counts(*of)
    return binary.mean_recall_of(np.diagonal(counts, axis1=1, axis2=2), counts.sum(axis=2))


def _weighted_f1(*of: np.ndarray) -> np.ndarray:
    counts = _counts(*of)
    has, given = counts.sum(axis=2), counts.sum(axis=1)  # (n_resamples, 2)
    f1 = binary.share(2 * np.diagonal(counts, axis1=1, axis2=2), has + given, empty=0.0)
    return binary.share((has * f1).sum(axis=1), has.sum(axis=1))


RESAMPLED = {"auroc": _auroc, "balanced_accuracy": _balanced_accuracy, "weighted_f1": _weighted_f1}
