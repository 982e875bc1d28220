"""What five folds can and can't say: mean and spread, an interval over slides, and the corrected paired difference.

The slide is the unit: patches of one slide resemble one another, so that patches drawn singly promise too narrow an interval.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from mfcore import metrics
from mfcore.rng import generator

N_RESAMPLES = 2000
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
    """An estimate between ``low`` and ``high`` at ``level``; ``n`` is the number of slides or of folds it rests on."""

    estimate: float
    low: float
    high: float
    level: float
    n: int


def spread(values: np.ndarray | pd.Series) -> Spread:
    """Mean and sample standard deviation of the finite among ``values`` (n,): a fold without both classes has no AUROC."""
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    n = len(finite)
    return Spread(float(finite.mean()) if n else math.nan, float(finite.std(ddof=1)) if n > 1 else math.nan, n)


def bootstrap_auroc(
    predictions: pd.DataFrame, seed: int, *names: object, n_resamples: int = N_RESAMPLES, level: float = LEVEL
) -> Interval:
    """Percentile bootstrap interval of the mean AUROC over folds, slides being drawn with replacement.

    A resample draws as many slides as there are, for all folds at once, since one slide may be tested in several; each
    fold's AUROC is then computed among its own test patches, and averaged: scores of different fits aren't pooled, they
    have no common scale. It covers the choice of test slides, not that of training slides. The percentile method, with
    whole clusters resampled: Davison and Hinkley 1997, sections 3.8 and 5.3.

    predictions: one arm at one size, with ``slide_id, label, score, fold``. ``seed`` and ``names`` name the stream.
    NaN where no fold has both classes, or where fewer than half of the resamples do.
    """
    metrics.check(predictions["label"].to_numpy(), predictions["score"].to_numpy())
    if not 0 < level < 1:
        raise StatisticsError(f"level is {level}; it must lie between 0 and 1")
    slide, weights = resampled_slides(predictions["slide_id"], seed, *names, n_resamples=n_resamples)
    aurocs = []
    for _, rows in predictions.assign(slide=slide).groupby("fold"):
        wins, n_positive, n_negative = _wins_by_slide(rows, weights.shape[1])
        pairs = (weights @ n_positive) * (weights @ n_negative)
        won = np.einsum("bs,st,bt->b", weights, wins, weights, optimize=True)
        aurocs.append(np.divide(won, pairs, out=np.full(len(weights), np.nan), where=pairs > 0))
    defined = np.isfinite(aurocs)  # (n_folds, 1 + n_resamples)
    total = np.where(defined, aurocs, 0).sum(axis=0)
    means = np.divide(total, defined.sum(axis=0), out=np.full(len(weights), np.nan), where=defined.any(axis=0))
    return percentile_interval(means, weights.shape[1], level)


def resampled_slides(
    slide_ids: np.ndarray | pd.Series, seed: int, *names: object, n_resamples: int = N_RESAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """Number each row's slide, and draw as many slides as there are, with replacement, ``n_resamples`` times.

    Returns the rows' slides, int (n,), and how often each resample has each slide, float64 (1 + n_resamples, n_slides);
    row 0 is the sample itself. ``seed`` and ``names`` name the stream; the order of the rows doesn't matter.
    """
    slides, slide = np.unique(np.asarray(slide_ids, dtype=str), return_inverse=True)
    drawn = generator(seed, "bootstrap", *names).multinomial(len(slides), np.full(len(slides), 1 / len(slides)), n_resamples)
    return slide, np.vstack([np.ones(len(slides)), drawn])


def percentile_interval(values: np.ndarray, n: int, level: float = LEVEL) -> Interval:
    """Percentile interval of ``values``, (1 + n_resamples,): the estimate, then what each resample gave, NaN where undefined.

    NaN bounds where the estimate is undefined, or more than half of the resamples are.
    """
    resampled = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or 2 * len(resampled) < len(values) - 1:
        return Interval(float(values[0]), math.nan, math.nan, level, n)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values[0]), float(low), float(high), level, n)


def _wins_by_slide(rows: pd.DataFrame, n_slides: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often a positive of slide s scores above a negative of slide t, ties half; and each slide's class counts.

    Returns (n_slides, n_slides), (n_slides,), (n_slides,), float64. AUROC is a share of such pairs, so that a resample
    of slides needs no new ranking: with the slides' multiplicities w, it is w' wins w / (w' positives * w' negatives).
    """
    label, slide, score = (rows[name].to_numpy() for name in ("label", "slide", "score"))
    positive = label == 1
    wins = np.zeros((n_slides, n_slides))
    for t in np.unique(slide[~positive]):
        below = np.sort(score[~positive & (slide == t)])
        rank = np.searchsorted(below, score[positive], "left") + np.searchsorted(below, score[positive], "right")
        wins[:, t] = np.bincount(slide[positive], weights=rank / 2, minlength=n_slides)
    return wins, *(np.bincount(slide[mask], minlength=n_slides).astype(np.float64) for mask in (positive, ~positive))


def paired_difference(first: np.ndarray, second: np.ndarray, n_train: float, n_test: float, level: float = LEVEL) -> Interval:
    """Mean of ``first - second`` over folds with the corrected t interval of Nadeau and Bengio.

    Folds of Monte Carlo cross-validation share training patches, so that the variance of their mean is larger than
    s^2 / k; the correction takes (1 / k + n_test / n_train) s^2, with k - 1 degrees of freedom (Nadeau and Bengio 2003,
    Inference for the Generalization Error, Machine Learning 52, section 5.2).

    first, second: (n_folds,), the same folds in the same order; pairs with a NaN are left out. n_train, n_test: patches
    in one fold's training and test set. The interval is NaN for fewer than two pairs. Raises StatisticsError where
    lengths differ or a count isn't positive.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise StatisticsError(f"folds must be paired: shapes {first.shape} and {second.shape} differ")
    if not (n_train > 0 and n_test > 0):
        raise StatisticsError(f"n_train ({n_train}) and n_test ({n_test}) must be positive")
    found = spread(first - second)
    if found.n < 2:
        return Interval(found.mean, math.nan, math.nan, level, found.n)
    half = float(stats.t.ppf((1 + level) / 2, found.n - 1)) * found.sd * math.sqrt(1 / found.n + n_test / n_train)
    return Interval(found.mean, found.mean - half, found.mean + half, level, found.n)
