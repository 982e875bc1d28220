"""Dice of masks, from arrays.

Dice is counted a mask and class at a time, and has no value where the true mask lacks the class: a
mean over masks is over those that have it. The background counts for nothing (MONAI's DiceMetric,
as eva uses it).
"""

import numpy as np
import pandas as pd

from mfcore.measures.binary import share

IGNORED = 255  # in a mask: pixels that count neither for nor against anything


def overlaps(true: np.ndarray, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """Pixels that have each class, that are given it, and both: int64 (n, n_classes, 3).

    true, predicted: class indices (n, height, width); pixels that are IGNORED in ``true`` aren't
    counted.
    """
    classes = np.arange(n_classes)[:, None, None]
    has = true[:, None] == classes  # (n, n_classes, height, width)
    given = (predicted[:, None] == classes) & (true[:, None] != IGNORED)
    return np.stack([pixels.sum(axis=(2, 3)) for pixels in (has, given, has & given)], axis=2)


def dice(n_true: np.ndarray, n_predicted: np.ndarray, n_both: np.ndarray) -> np.ndarray:
    """Twice the pixels in both masks over the sum of each, float64; NaN where the true mask is
    empty.
    """
    return np.where(n_true > 0, share(2 * n_both, n_true + n_predicted), np.nan)


def mean_dice(counts: np.ndarray) -> float:
    """Dice of `overlaps`' counts, without the background: mean over the classes of each mask, then
    over masks.
    """
    by_class = dice(*np.moveaxis(counts[:, 1:], -1, 0))  # (n, n_classes - 1)
    return float(pd.DataFrame(by_class).mean(axis="columns").mean())
