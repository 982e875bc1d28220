"""Dice of masks, from arrays.

Dice is counted a mask and class at a time, and has no value where the true mask lacks the class: a mean over masks is over
those that have it. The background counts for nothing (MONAI's DiceMetric, as eva uses it).
"""

import numpy as np

from mfcore.measures.binary import MetricError

IGNORED = 255  # in a mask: pixels that count neither for nor against anything


def overlaps(true: np.ndarray, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """Pixels that have each class, that are given it, and both: int64 (n, n_classes, 3).

    true, predicted: class indices (n, height, width); pixels that are IGNORED in ``true`` aren't counted. Raises MetricError
    for shapes that differ and for classes that there aren't.
    """
    true, predicted = np.asarray(true), np.asarray(predicted)
    if true.shape != predicted.shape or true.ndim != 3:
        raise MetricError(f"masks must both be (n, height, width); they are {true.shape} and {predicted.shape}")
    counted = true != IGNORED
    highest = max((int(mask[counted].max()) for mask in (true, predicted) if counted.any()), default=0)
    if highest >= n_classes:
        raise MetricError(f"a mask holds class {highest}; there are {n_classes}, from 0, and {IGNORED} for what is ignored")
    image = np.broadcast_to(np.arange(len(true))[:, None, None], true.shape)
    cell = (image.astype(np.int64) * n_classes + true) * n_classes + predicted
    table = np.bincount(cell[counted], minlength=len(true) * n_classes**2).reshape(len(true), n_classes, n_classes)
    return np.stack([table.sum(axis=2), table.sum(axis=1), np.diagonal(table, axis1=1, axis2=2)], axis=2)


def dice(n_true: np.ndarray, n_predicted: np.ndarray, n_both: np.ndarray) -> np.ndarray:
    """Twice the pixels in both masks over the sum of each, float64; NaN where the true mask is empty."""
    n_true, total = np.asarray(n_true), np.asarray(n_true) + np.asarray(n_predicted)
    return np.divide(2.0 * np.asarray(n_both), total, out=np.full(np.shape(total), np.nan), where=n_true > 0)


def mean_of_present(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is no NaN; NaN where nothing is."""
    there = np.isfinite(values)
    n = there.sum(axis=-1)
    return np.divide(np.where(there, values, 0.0).sum(axis=-1), n, out=np.full(n.shape, np.nan), where=n > 0)


def mean_dice(counts: np.ndarray) -> float:
    """Dice of `overlaps`' counts, without the background: mean over the classes of each mask, then over masks."""
    by_class = dice(*np.moveaxis(counts[:, 1:], -1, 0))  # (n, n_classes - 1)
    return float(mean_of_present(mean_of_present(by_class)))
