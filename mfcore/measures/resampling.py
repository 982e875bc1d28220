"""Intervals of a metric over tested cases, by a bootstrap that ranks nothing twice, and draws of cases for tests.

The case is the unit where cases are known, else the slide: patches of one case resemble one another, so that patches drawn
singly promise too narrow an interval. A metric of RESAMPLED is a function of sums over units, so that a resample of units
needs these sums alone, weighted by how often it has each unit: one product of matrices for all resamples.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import special, stats

from mfcore.measures import binary
from mfcore.measures.statistics import LEVEL, Folds, Interval, StatisticsError
from mfcore.streams import generator

N_RESAMPLES = 2000
N_DRAWS = 1000  # of a test, which needs their variance only
MIN_SLIDES = 5  # fewer units, resampled, say too little of how others would differ
BLOCK = 64  # slides
SAME_PATCHES = 0.9  # folds are tested on the same patches where all of them test this share or more of what any tests
COVERAGE = {
    5: 0.95,
    8: 0.96,
    20: 0.93,
    50: 0.95,
}  # of 95 % intervals of the AUROC, by slides: tests/measures/test_statistics_simulated.py


def units_of(table: pd.DataFrame) -> tuple[pd.Series, str]:
    """What a bootstrap draws: the case of each row where a case has several slides, else its slide; and "case" or "slide".

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
    level: float = LEVEL,
) -> Interval:
    """Interval of the mean over folds of a metric, by a bootstrap of the units of `units_of` (`interval_of`).

    It covers the choice of tested units, not that of training slides. Whole clusters are resampled: Davison and Hinkley 1997,
    section 3.8. Arguments and errors as `resample`, StatisticsError for a level that is none. NaN where no fold has both
    classes; bounds NaN as `interval_of` has them. ``n`` counts units.
    """
    if not 0 < level < 1:
        raise StatisticsError(f"level is {level}; it must lie between 0 and 1")
    units, unit = units_of(predictions)
    n_units = units.nunique()
    values = resample(predictions, metric, seed, *names, n_resamples=n_resamples if n_units >= MIN_SLIDES else 0)
    return replace(interval_of(values, n_units, level), unit=unit)


def resample(predictions: pd.DataFrame, metric: str, seed: int, *names: object, n_resamples: int = N_RESAMPLES) -> np.ndarray:
    """Mean over folds of a metric in the sample and in resamples of its units, float64 (1 + n_resamples,).

    A resample draws as many units as there are, for all folds at once, since one unit may be tested in several; each
    fold's metric is then computed among its own test patches, and averaged over the folds where it is defined: scores of
    different fits aren't pooled, they have no common scale. NaN where no fold has both classes.

    predictions: one arm at one size, with ``slide_id, label, score, fold``, and ``case_id`` where cases are known. metric: one
    of RESAMPLED, or of `binary.METRICS` without resamples. ``seed`` and ``names`` name the stream. Raises MetricError for bad
    labels or scores and for another metric.
    """
    _, values = _in_folds(predictions, metric, seed, *names, n_resamples=n_resamples)
    defined = np.isfinite(values)  # (n_folds, 1 + n_resamples)
    total = np.where(defined, values, 0).sum(axis=0)
    return np.divide(total, defined.sum(axis=0), out=np.full(values.shape[1], np.nan), where=defined.any(axis=0))


def by_fold(predictions: pd.DataFrame, metric: str, seed: int, test_set: str, n_draws: int = N_DRAWS) -> Folds:
    """A metric by fold, with draws of the tested units where all folds are tested on the same patches, as a test needs them.

    predictions: as `resample`, with ``patch_id``. test_set: the name of what is tested, such as the domain, which names the
    stream: arms tested on the same units get the same draws. The draws' moves are stretched by n / (n - 1) in variance, as a
    resample of n units varies less than n other units would. Raises as `resample`.
    """
    is_same = same_patches(predictions)
    folds, values = _in_folds(predictions, metric, seed, "cases", test_set, n_resamples=n_draws if is_same else 0)
    found = Folds(pd.Series(values[:, 0], index=folds), has_own_patches=not is_same)
    units, unit = units_of(predictions)
    n = units.nunique()
    if not is_same or n < 2:
        return found
    moved = (values[:, 1:] - values[:, [0]]) * math.sqrt(n / (n - 1))
    return Folds(found.values, moved, False, {test_set: n}, unit)


def same_patches(predictions: pd.DataFrame) -> bool:
    """Whether all folds are tested on the same patches, but for a few (SAME_PATCHES); False for one fold."""
    n_folds = predictions["fold"].nunique()
    _, times = np.unique(predictions["patch_id"].to_numpy(), return_counts=True)
    return n_folds > 1 and bool((times == n_folds).mean() >= SAME_PATCHES)


def _in_folds(
    predictions: pd.DataFrame, metric: str, seed: int, *names: object, n_resamples: int
) -> tuple[np.ndarray, np.ndarray]:
    """The folds, and the metric in each, in the sample and in resamples of its units: float64 (n_folds, 1 + n_resamples)."""
    if metric not in RESAMPLED and (n_resamples or metric not in binary.METRICS):
        why = "can't be resampled" if metric in binary.METRICS else "is not known"
        raise binary.MetricError(f"metric {metric!r} {why}; known ones: {sorted(RESAMPLED if n_resamples else binary.METRICS)}")
    label, score = binary.check(predictions["label"].to_numpy(), predictions["score"].to_numpy())
    unit, weights = resampled_slides(units_of(predictions)[0], seed, *names, n_resamples=n_resamples)
    fold, values = predictions["fold"].to_numpy(), []
    for which in np.unique(fold):
        of_fold = fold == which
        here, within = np.unique(unit[of_fold], return_inverse=True)  # a fold tests few of the units
        if metric in RESAMPLED:
            values.append(RESAMPLED[metric](label[of_fold], score[of_fold], within, weights[:, here]))
        else:
            values.append([binary.METRICS[metric](label[of_fold], score[of_fold])])
    return np.unique(fold), np.stack(values)


def resampled_slides(
    slide_ids: np.ndarray | pd.Series, seed: int, *names: object, n_resamples: int = N_RESAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """Number each row's slide, or what else is drawn, and draw as many as there are, with replacement, ``n_resamples`` times.

    Returns the rows' slides, int (n,), and how often each resample has each slide, float64 (1 + n_resamples, n_slides);
    row 0 is the sample itself. ``seed`` and ``names`` name the stream; the order of the rows doesn't matter.
    """
    slides, slide = np.unique(np.asarray(slide_ids, dtype=str), return_inverse=True)
    drawn = generator(seed, "bootstrap", *names).multinomial(len(slides), np.full(len(slides), 1 / len(slides)), n_resamples)
    return slide, np.vstack([np.ones(len(slides)), drawn])


def interval_of(values: np.ndarray, n: int, level: float = LEVEL, least: float = 0.0, most: float = 1.0) -> Interval:
    """Interval from ``values``, (1 + n_resamples,): the estimate, then what resamples of ``n`` units gave, NaN where undefined.

    Student's t with n - 1 degrees of freedom on the resamples' standard error, which is stretched by n / (n - 1) in variance.
    For a score that lies between ``least`` and ``most`` it is taken on the logit scale, so that the bounds lie there too; a
    difference has infinite ones. Percentiles of the resamples cover too seldom where units are few (Hesterberg 2015, The
    American Statistician 69); COVERAGE has how often this does.

    Bounds are NaN for fewer than MIN_SLIDES units, where the estimate or more than half of the resamples are undefined, and
    where resamples are all alike, which is no spread to judge by; a difference that is 0 in all of them is 0 to 0.
    """
    estimate, resampled = float(values[0]), values[1:][np.isfinite(values[1:])]
    error = float(resampled.std(ddof=1)) * math.sqrt(n / (n - 1)) if n >= MIN_SLIDES and len(resampled) > 1 else 0.0
    if estimate == 0 and error < 1e-12 and math.isinf(most - least):
        return Interval(0.0, 0.0, 0.0, level, n)
    if not np.isfinite(estimate) or 2 * len(resampled) < len(values) - 1 or error < 1e-12:
        return Interval(estimate, math.nan, math.nan, level, n)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    share = (estimate - least) / (most - least) if math.isfinite(most - least) else math.nan
    if not 0 < share < 1:
        return Interval(estimate, max(estimate - half, least), min(estimate + half, most), level, n)
    half /= (most - least) * share * (1 - share)
    low, high = (least + (most - least) * special.expit(special.logit(share) + by) for by in (-half, half))
    return Interval(estimate, float(low), float(high), level, n)


def coverage_said(n: int, unit: str = "slide") -> str:
    """How often such an interval over ``n`` units holds the truth, as a part of a sentence; empty where there are many."""
    near = [known for known in COVERAGE if known <= max(n, min(COVERAGE))]
    if n < MIN_SLIDES or n >= max(COVERAGE):
        return ""
    often = f"{100 * COVERAGE[near[-1]]:.0f} times in 100"
    return f", which in a simulation, over {near[-1]} {unit}s, held the true AUROC {often}"


def sums_by_slide(slide: np.ndarray, column: np.ndarray, n_slides: int, n_columns: int, amount: np.ndarray) -> np.ndarray:
    """Sum of ``amount`` (n,) over the rows of each slide and column, float64 (n_slides, n_columns)."""
    flat = np.bincount(slide * n_columns + column, weights=amount, minlength=n_slides * n_columns)
    return flat.reshape(n_slides, n_columns)


# Each takes labels, scores and slides (n,) and the slides' multiplicities (n_resamples, n_slides), and returns (n_resamples,).
_Resampled = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _auroc(label: np.ndarray, score: np.ndarray, slide: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC is a share of pairs: with the multiplicities w, w' wins w / (w' positives * w' negatives).

    wins[s, t] is how often a positive of slide s scores above a negative of slide t, ties half.
    """
    n_slides, positive = weights.shape[1], np.flatnonzero(label == 1)
    positive = positive[np.argsort(slide[positive], kind="stable")]
    negative = np.flatnonzero(label == 0)
    negative = negative[np.argsort(score[negative])]
    below, upto = (np.searchsorted(score[negative], score[positive], side) for side in ("left", "right"))
    wins = np.zeros((n_slides, n_slides))
    there, first = np.unique(slide[positive], return_index=True)
    for start in range(0, n_slides if len(first) else 0, BLOCK):  # by blocks of the negatives' slides, for memory
        block = np.arange(start, min(start + BLOCK, n_slides))
        passed = np.zeros((len(negative) + 1, len(block)), dtype=np.int32)  # negatives of each slide among the lowest
        np.cumsum(slide[negative][:, None] == block, axis=0, out=passed[1:])
        wins[np.ix_(there, block)] = np.add.reduceat(passed[below] + passed[upto], first, axis=0, dtype=np.int64) / 2
    n_positive, n_negative = (weights @ np.bincount(slide[of], minlength=n_slides) for of in (positive, negative))
    return _share(((weights @ wins) * weights).sum(axis=1), n_positive * n_negative)


def _counts(label: np.ndarray, score: np.ndarray, slide: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How many rows of each class are given each class, float64 (n_resamples, 2, 2)."""
    cell = 2 * label.astype(np.int64) + binary.classify(score)
    return (weights @ sums_by_slide(slide, cell, weights.shape[1], 4, np.ones(len(label)))).reshape(-1, 2, 2)


def _balanced_accuracy(label: np.ndarray, score: np.ndarray, slide: np.ndarray, weights: np.ndarray) -> np.ndarray:
    counts = _counts(label, score, slide, weights)
    return binary.mean_recall_of(np.diagonal(counts, axis1=1, axis2=2), counts.sum(axis=2))


def _weighted_f1(label: np.ndarray, score: np.ndarray, slide: np.ndarray, weights: np.ndarray) -> np.ndarray:
    counts = _counts(label, score, slide, weights)
    has, given = counts.sum(axis=2), counts.sum(axis=1)  # (n_resamples, 2)
    f1 = _share(2 * np.diagonal(counts, axis1=1, axis2=2), has + given, empty=0)
    return _share((has * f1).sum(axis=1), has.sum(axis=1))


def _share(part: np.ndarray, of: np.ndarray, empty: float = math.nan) -> np.ndarray:
    return np.divide(part, of, out=np.full(np.shape(of), empty, dtype=np.float64), where=of > 0)


RESAMPLED: Mapping[str, _Resampled] = {"auroc": _auroc, "balanced_accuracy": _balanced_accuracy, "weighted_f1": _weighted_f1}
