"""Scores of a binary classifier from two arrays: the labels (0 or 1) and the scores (probability of class 1).

The five metrics are those of UNI's evaluation, which Ganz et al. used: accuracy, balanced accuracy, weighted F1,
quadratic-weighted kappa and AUROC. The first four look at the class; a patch is given class 1 where its score is above
0.5, so that 0.5 itself is class 0, as in an argmax over the two probabilities.

Where only one class is present, AUROC, balanced accuracy and kappa have no meaning and are NaN; nothing is guessed.
"""

from collections.abc import Callable, Mapping

import numpy as np
from sklearn.metrics import accuracy_score, balanced_accuracy_score, cohen_kappa_score, f1_score, roc_auc_score

THRESHOLD = 0.5


class MetricError(ValueError):
    """Labels or scores from which nothing can be computed; the message names the rows."""


def check(label: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels as int8 and scores as float64, both of shape (n,).

    Raises MetricError for shapes that differ, no rows, a label other than 0 and 1, a score that is NaN or outside [0, 1].
    """
    label, score = np.asarray(label), np.asarray(score, dtype=np.float64)
    if label.ndim != 1 or label.shape != score.shape:
        raise MetricError(f"labels have shape {label.shape}, scores {score.shape}; both must be (n,), row for row")
    if not len(label):
        raise MetricError("no rows: there is nothing to score; check the selection that made these arrays")
    _refuse(~np.isin(label, (0, 1)), label, "label", "must be 0 or 1")
    _refuse(np.isnan(score), score, "score", "is no number; look for a diverged training or a NaN embedding")
    _refuse((score < 0) | (score > 1), score, "score", "must be a probability in [0, 1]; pass logits through a sigmoid")
    return label.astype(np.int8), score


def _refuse(wrong: np.ndarray, values: np.ndarray, what: str, why: str) -> None:
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise MetricError(f"{what} {values[row]} in row {row} {why} ({int(wrong.sum())} of {len(values)} rows)")


def classify(score: np.ndarray) -> np.ndarray:
    """Class of each score, int8 (n,): 1 above 0.5, else 0."""
    return (np.asarray(score) > THRESHOLD).astype(np.int8)


def accuracy(label: np.ndarray, score: np.ndarray) -> float:
    """Share of patches given their own class."""
    label, score = check(label, score)
    return float(accuracy_score(label, classify(score)))


def balanced_accuracy(label: np.ndarray, score: np.ndarray) -> float:
    """Mean of sensitivity and specificity; NaN where one class is missing."""
    label, score = check(label, score)
    return float(balanced_accuracy_score(label, classify(score))) if _both(label) else float("nan")


def weighted_f1(label: np.ndarray, score: np.ndarray) -> float:
    """F1 of each class, weighted by how many patches have it; a class that is never given has F1 0."""
    label, score = check(label, score)
    return float(f1_score(label, classify(score), average="weighted", zero_division=0))


def quadratic_kappa(label: np.ndarray, score: np.ndarray) -> float:
    """Cohen's kappa with quadratic weights (for two classes the same as without weights); NaN where one class is missing."""
    label, score = check(label, score)
    return float(cohen_kappa_score(label, classify(score), weights="quadratic")) if _both(label) else float("nan")


def auroc(label: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve: how often a patch of class 1 scores above one of class 0, ties counting half.

    NaN where one class is missing.
    """
    label, score = check(label, score)
    return float(roc_auc_score(label, score)) if _both(label) else float("nan")


def _both(label: np.ndarray) -> bool:
    return bool(label.min() != label.max())


METRICS: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "weighted_f1": weighted_f1,
    "quadratic_kappa": quadratic_kappa,
    "auroc": auroc,
}

TITLES: Mapping[str, str] = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "weighted_f1": "weighted F1",
    "quadratic_kappa": "quadratic-weighted kappa",
    "auroc": "AUROC",
}


def compute(name: str, label: np.ndarray, score: np.ndarray) -> float:
    """The metric called ``name``, one of METRICS; raises MetricError for any other name."""
    if name not in METRICS:
        raise MetricError(f"metric {name!r} is not known; known ones: {sorted(METRICS)}")
    return METRICS[name](label, score)


def evaluate(label: np.ndarray, score: np.ndarray) -> dict[str, float]:
    """All metrics of one test set, by name."""
    return {name: metric(label, score) for name, metric in METRICS.items()}
