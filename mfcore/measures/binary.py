"""Scores of a binary classifier from two arrays: the labels (0 or 1) and the scores (probability of
class 1).

Five are those of UNI's evaluation, which Ganz et al. used: accuracy, balanced accuracy, weighted
F1, quadratic-weighted kappa and AUROC. Further ones: F1 of class 1, average precision, Brier score
and expected calibration error. What looks at the class gives a patch class 1 where its score is
above 0.5, so that 0.5 itself is class 0, as in an argmax over the two probabilities. Average
precision and F1 grow with the share of class 1: they compare arms on one test set, not test sets.

Where only one class is present, AUROC, average precision, balanced accuracy and kappa have no
meaning and are NaN, as F1 is without class 1; nothing is guessed.
"""

import functools
import math
from collections.abc import Callable
from types import ModuleType

import numpy as np

THRESHOLD = 0.5
N_BINS = 15  # of the expected calibration error, as in Guo et al. 2017

METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {}
TITLES: dict[str, str] = {}


class MetricError(ValueError):
    """Labels or scores from which nothing can be computed; the message names the rows."""


def check(label: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels as int8 and scores as float64, both of shape (n,).

    Raises MetricError for shapes that differ, no rows, a label other than 0 and 1, a score that is
    NaN or outside [0, 1].
    """
    label, score = np.asarray(label), np.asarray(score, dtype=np.float64)
    if label.ndim != 1 or label.shape != score.shape:
        raise MetricError(
            f"labels have shape {label.shape}, scores {score.shape}; both must be (n,), row for row"
        )
    if not len(label):
        raise MetricError(
            "no rows: there is nothing to score; check the selection that made these arrays"
        )
    _refuse(~np.isin(label, (0, 1)), label, "label", "must be 0 or 1")
    _refuse(
        np.isnan(score),
        score,
        "score",
        "is no number; look for a diverged training or a NaN embedding",
    )
    _refuse(
        (score < 0) | (score > 1),
        score,
        "score",
        "must be a probability in [0, 1]; pass logits through a sigmoid",
    )
    return label.astype(np.int8), score


def _refuse(wrong: np.ndarray, values: np.ndarray, what: str, why: str) -> None:
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise MetricError(
            f"{what} {values[row]} in row {row} {why} ({int(wrong.sum())} of {len(values)} rows)"
        )


def classify(score: np.ndarray) -> np.ndarray:
    """Class of each score, int8 (n,): 1 above 0.5, else 0."""
    return (np.asarray(score) > THRESHOLD).astype(np.int8)


def _metric(title: str, *needed: int) -> Callable:
    """Enter a function of checked arrays into METRICS, by its name; NaN where a class of ``needed``
    is missing.
    """

    def enter(compute: Callable) -> Callable[[np.ndarray, np.ndarray], float]:
        @functools.wraps(compute)
        def metric(label: np.ndarray, score: np.ndarray) -> float:
            label, score = check(label, score)
            return float(compute(label, score)) if np.isin(needed, label).all() else math.nan

        METRICS[compute.__name__], TITLES[compute.__name__] = metric, title
        return metric

    return enter


def _scikit() -> ModuleType:
    """scikit-learn's metrics, loaded at first use: loading takes long, and few processes score."""
    from sklearn import metrics

    return metrics


@_metric("accuracy")
def accuracy(label: np.ndarray, score: np.ndarray) -> float:
    """Share of patches given their own class."""
    return _scikit().accuracy_score(label, classify(score))


@_metric("balanced accuracy", 0, 1)
def balanced_accuracy(label: np.ndarray, score: np.ndarray) -> float:
    """Mean of sensitivity and specificity; NaN where one class is missing."""
    return _scikit().balanced_accuracy_score(label, classify(score))


@_metric("weighted F1")
def weighted_f1(label: np.ndarray, score: np.ndarray) -> float:
    """F1 of each class, weighted by its number of patches; a class that is never given has F1 0."""
    return _scikit().f1_score(label, classify(score), average="weighted", zero_division=0)


@_metric("quadratic-weighted kappa", 0, 1)
def quadratic_kappa(label: np.ndarray, score: np.ndarray) -> float:
    """Cohen's kappa with quadratic weights, with two classes the same as without; NaN without both
    classes.
    """
    return _scikit().cohen_kappa_score(label, classify(score), weights="quadratic")


@_metric("AUROC", 0, 1)
def auroc(label: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve: how often a patch of class 1 scores above one of class 0, ties
    counting half.

    NaN where one class is missing.
    """
    return _scikit().roc_auc_score(label, score)


@_metric("average precision", 0, 1)
def average_precision(label: np.ndarray, score: np.ndarray) -> float:
    """Mean precision over patches of class 1, each at its own score as the threshold; NaN where
    one class is missing.

    The sum over thresholds of precision times gain in sensitivity, without interpolation; patches
    of one score enter together.
    """
    return _scikit().average_precision_score(label, score)


@_metric("F1", 1)
def f1(label: np.ndarray, score: np.ndarray) -> float:
    """F1 of class 1: harmonic mean of its precision and sensitivity; NaN where no patch is of class
    1.
    """
    return _scikit().f1_score(label, classify(score), zero_division=0)


@_metric("Brier score")
def brier(label: np.ndarray, score: np.ndarray) -> float:
    """Mean squared difference of score and label: 0 is perfect, 0.25 what a constant score of 0.5
    has (Brier 1950).
    """
    return _scikit().brier_score_loss(label, score, pos_label=1)


@_metric("expected calibration error")
def ece(label: np.ndarray, score: np.ndarray) -> float:
    """Expected calibration error: mean over patches of how far their bin's mean score lies from its
    share of class 1.

    15 bins of equal width, as `bin_of` says. Guo et al. 2017, eq. 3, for the probability of class 1
    instead of that of the class given. Even a calibrated score's is above 0, the more so the fewer
    patches there are.
    """
    return np.abs(np.bincount(bin_of(score), weights=score - label)).sum() / len(label)


def bin_of(score: np.ndarray, n_bins: int = N_BINS) -> np.ndarray:
    """Each score's bin, int (n,) in 0..n_bins - 1: bin i is (i / n_bins, (i + 1) / n_bins], and 0
    is in the first.
    """
    return np.searchsorted(np.arange(1, n_bins) / n_bins, score, side="left")


def evaluate(label: np.ndarray, score: np.ndarray) -> dict[str, float]:
    """All metrics of one test set, by name."""
    return {name: metric(label, score) for name, metric in METRICS.items()}


def mean_recall(label: np.ndarray, predicted: np.ndarray) -> float:
    """Balanced accuracy of any number of classes: the mean over the classes among ``label`` of the
    share that is found.

    label, predicted: classes from 0, int (n,), one row or more.
    """
    n = np.bincount(label)
    right = np.bincount(label[label == predicted], minlength=int(label.max()) + 1)
    return float(mean_recall_of(right[n > 0], n[n > 0]))


def mean_recall_of(right: np.ndarray, n: np.ndarray) -> np.ndarray:
    """`mean_recall` from counts (..., n_classes): patches of each class that are found, and all.
    NaN where a class has none.
    """
    return share(right, n).mean(axis=-1)


def share(part: np.ndarray, of: np.ndarray, empty: float = math.nan) -> np.ndarray:
    """``part / of``, float64; ``empty`` where ``of`` is 0."""
    return np.divide(part, of, out=np.full(np.shape(of), empty), where=of > 0)
