"""Intervals of any metric over test slides, by a bootstrap that ranks nothing twice.

The slide is the unit, or the case where a case has several slides (`units_of`): patches of one slide or case resemble one
another, so that patches drawn singly promise too narrow an interval. Below, a slide is such a unit. Every metric is a function
of sums over slides, so that a resample of slides needs these sums alone, weighted by how often it has each slide: one product
of matrices for all resamples.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from mfcore import metrics
from mfcore.rng import generator
from mfcore.statistics import LEVEL, Interval, StatisticsError

N_RESAMPLES = 2000
MIN_SLIDES = 5  # fewer clusters, resampled, give intervals that are far too narrow


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
    """Percentile bootstrap interval of the mean over folds of a metric, slides or cases being drawn with replacement.

    It covers the choice of test slides, not that of training slides. The percentile method, with whole clusters resampled:
    Davison and Hinkley 1997, sections 3.8 and 5.3. A resample has fewer different patches than the sample, and so more
    calibration error by chance: for that metric the percentiles are shifted by how much the resamples' mean exceeds the
    estimate, so that the interval is its spread about the estimate.

    Arguments and errors as `resample`, StatisticsError for a level that is none. NaN where no fold has both classes; bounds
    NaN where fewer than half of the resamples do, and for fewer than MIN_SLIDES slides or cases. ``n`` counts what is drawn,
    ``unit`` says what that is.
    """
    if not 0 < level < 1:
        raise StatisticsError(f"level is {level}; it must lie between 0 and 1")
    units, unit = units_of(predictions)
    n_units = units.nunique()
    if n_units < MIN_SLIDES:
        alone = resample(predictions, metric, seed, *names, n_resamples=0)[0]
        return Interval(float(alone), math.nan, math.nan, level, n_units, unit)
    values = resample(predictions, metric, seed, *names, n_resamples=n_resamples)
    if metric == "ece":
        values[1:] = np.maximum(values[1:] - (np.mean(values[1:]) - values[0]), 0)
    return percentile_interval(values, n_units, level, unit)


def resample(predictions: pd.DataFrame, metric: str, seed: int, *names: object, n_resamples: int = N_RESAMPLES) -> np.ndarray:
    """Mean over folds of a metric in the sample and in resamples of its slides or cases, float64 (1 + n_resamples,).

    A resample draws as many slides as there are, for all folds at once, since one slide may be tested in several; each
    fold's metric is then computed among its own test patches, and averaged over the folds where it is defined: scores of
    different fits aren't pooled, they have no common scale. NaN where no fold has both classes.

    predictions: one arm at one size, with ``slide_id, label, score, fold`` and, where known, ``case_id``. metric: one of
    `metrics.METRICS`. ``seed`` and ``names`` name the stream. Raises MetricError for labels and scores that are none and for
    an unknown metric.
    """
    if metric not in _OF_SLIDES:
        raise metrics.MetricError(f"metric {metric!r} is not known; known ones: {sorted(_OF_SLIDES)}")
    label, score = metrics.check(predictions["label"].to_numpy(), predictions["score"].to_numpy())
    slide, weights = resampled_slides(units_of(predictions)[0], seed, *names, n_resamples=n_resamples)
    fold = predictions["fold"].to_numpy()
    values = []
    for which in np.unique(fold):
        of_fold = fold == which
        here, within = np.unique(slide[of_fold], return_inverse=True)  # a fold tests few of the slides
        values.append(_OF_SLIDES[metric](label[of_fold], score[of_fold], within, weights[:, here]))
    defined = np.isfinite(values)  # (n_folds, 1 + n_resamples)
    total = np.where(defined, values, 0).sum(axis=0)
    return np.divide(total, defined.sum(axis=0), out=np.full(len(weights), np.nan), where=defined.any(axis=0))


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


def percentile_interval(values: np.ndarray, n: int, level: float = LEVEL, unit: str = "slide") -> Interval:
    """Percentile interval of ``values``, (1 + n_resamples,): the estimate, then what each resample gave, NaN where undefined.

    NaN bounds where the estimate is undefined, or more than half of the resamples are.
    """
    resampled = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or 2 * len(resampled) < len(values) - 1:
        return Interval(float(values[0]), math.nan, math.nan, level, n, unit)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values[0]), float(low), float(high), level, n, unit)


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
    n_slides, positive = weights.shape[1], label == 1
    wins = np.zeros((n_slides, n_slides))
    for t in np.unique(slide[~positive]):
        below = np.sort(score[~positive & (slide == t)])
        rank = np.searchsorted(below, score[positive], "left") + np.searchsorted(below, score[positive], "right")
        wins[:, t] = np.bincount(slide[positive], weights=rank / 2, minlength=n_slides)
    n_positive, n_negative = (weights @ np.bincount(slide[of], minlength=n_slides) for of in (positive, ~positive))
    return _share(((weights @ wins) * weights).sum(axis=1), n_positive * n_negative)


def _average_precision(label: np.ndarray, score: np.ndarray, slide: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sensitivity grows at the scores of positives only: how many rows of each class a slide has from each such score up."""
    n_slides, positive = weights.shape[1], label == 1
    thresholds = np.unique(score[positive])[::-1]
    passed = np.searchsorted(-thresholds, -score, "left")  # the first threshold that the row reaches
    from_score_up = [
        weights @ np.cumsum(sums_by_slide(slide, passed, n_slides, len(thresholds) + 1, label == of)[:, :-1], axis=1)
        for of in (1, 0)
    ]
    true, false = from_score_up  # (n_resamples, n_thresholds)
    found = (np.diff(true, axis=1, prepend=0) * _share(true, true + false, empty=0)).sum(axis=1)
    n_negative = weights @ np.bincount(slide[~positive], minlength=n_slides)
    n_positive = weights @ np.bincount(slide[positive], minlength=n_slides)
    return np.where(n_negative > 0, _share(found, n_positive), np.nan)


def _of_cells(formula: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> _Resampled:
    """A metric of the four counts: true negatives, false positives, false negatives, true positives."""

    def resampled(label: np.ndarray, score: np.ndarray, slide: np.ndarray, weights: np.ndarray) -> np.ndarray:
        cell = 2 * label.astype(np.int64) + metrics.classify(score)
        counts = weights @ sums_by_slide(slide, cell, weights.shape[1], 4, np.ones(len(label)))
        return formula(*counts.T)

    return resampled


def _balanced_accuracy(tn: np.ndarray, fp: np.ndarray, fn: np.ndarray, tp: np.ndarray) -> np.ndarray:
    return (_share(tp, tp + fn) + _share(tn, tn + fp)) / 2


def _f1(tn: np.ndarray, fp: np.ndarray, fn: np.ndarray, tp: np.ndarray) -> np.ndarray:
    return np.where(tp + fn > 0, _share(2 * tp, 2 * tp + fp + fn), np.nan)


def _weighted_f1(tn: np.ndarray, fp: np.ndarray, fn: np.ndarray, tp: np.ndarray) -> np.ndarray:
    of_1, of_0 = (_share(2 * hits, 2 * hits + fp + fn, empty=0) for hits in (tp, tn))
    return _share((tp + fn) * of_1 + (tn + fp) * of_0, tn + fp + fn + tp)


def _kappa(tn: np.ndarray, fp: np.ndarray, fn: np.ndarray, tp: np.ndarray) -> np.ndarray:
    both = (tp + fn > 0) & (tn + fp > 0)
    expected = (tp + fn) * (fn + tn) + (tp + fp) * (fp + tn)
    return np.where(both, _share(2 * (tp * tn - fn * fp), expected), np.nan)


def _brier(label: np.ndarray, score: np.ndarray, slide: np.ndarray, weights: np.ndarray) -> np.ndarray:
    squares, n = (np.bincount(slide, weights=of, minlength=weights.shape[1]) for of in ((score - label) ** 2, None))
    return _share(weights @ squares, weights @ n)


def _ece(label: np.ndarray, score: np.ndarray, slide: np.ndarray, weights: np.ndarray) -> np.ndarray:
    gaps = sums_by_slide(slide, metrics.bin_of(score), weights.shape[1], metrics.N_BINS, score - label)
    return _share(np.abs(weights @ gaps).sum(axis=1), weights @ np.bincount(slide, minlength=weights.shape[1]))


def _share(part: np.ndarray, of: np.ndarray, empty: float = math.nan) -> np.ndarray:
    return np.divide(part, of, out=np.full(np.shape(of), empty, dtype=np.float64), where=of > 0)


_OF_SLIDES: Mapping[str, _Resampled] = {
    "accuracy": _of_cells(lambda tn, fp, fn, tp: _share(tn + tp, tn + fp + fn + tp)),
    "balanced_accuracy": _of_cells(_balanced_accuracy),
    "weighted_f1": _of_cells(_weighted_f1),
    "quadratic_kappa": _of_cells(_kappa),
    "auroc": _auroc,
    "average_precision": _average_precision,
    "f1": _of_cells(_f1),
    "brier": _brier,
    "ece": _ece,
}
