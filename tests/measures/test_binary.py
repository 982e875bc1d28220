"""Metrics against formulas written out by hand, and the rules for what is refused and what is NaN."""

import warnings

import numpy as np
import pytest
import sklearn.metrics

from mfcore.measures import binary


@pytest.fixture(params=range(5))
def sample(request):
    rng = np.random.default_rng(request.param)
    label = rng.random(200) < rng.uniform(0.2, 0.8)
    score = np.round(np.clip(rng.normal(0.4 + 0.2 * label, 0.2), 0, 1), 2)  # rounded: ties must count half
    return label.astype(int), score


def confusion(label, score):
    guess = score > 0.5
    return [[int(np.sum((label == i) & (guess == j))) for j in (0, 1)] for i in (0, 1)]


def test_auroc_counts_pairs(sample):
    label, score = sample
    above = score[label == 1][:, None] - score[label == 0][None]
    assert binary.auroc(label, score) == pytest.approx(np.mean((above > 0) + 0.5 * (above == 0)), abs=1e-12)


def test_class_metrics_by_the_confusion_matrix(sample):
    label, score = sample
    (tn, fp), (fn, tp) = confusion(label, score)
    n = tn + fp + fn + tp
    assert binary.accuracy(label, score) == pytest.approx((tp + tn) / n)
    assert binary.balanced_accuracy(label, score) == pytest.approx((tp / (tp + fn) + tn / (tn + fp)) / 2)
    f1_positive, f1_negative = 2 * tp / (2 * tp + fp + fn), 2 * tn / (2 * tn + fp + fn)
    assert binary.weighted_f1(label, score) == pytest.approx(((tp + fn) * f1_positive + (tn + fp) * f1_negative) / n)
    by_chance = ((tp + fn) * (tp + fp) + (tn + fp) * (tn + fn)) / n**2
    assert binary.quadratic_kappa(label, score) == pytest.approx(((tp + tn) / n - by_chance) / (1 - by_chance))


def test_every_metric_is_scikit_learns(sample):
    label, score = sample
    given = binary.classify(score)
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(label, given),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(label, given),
        "weighted_f1": sklearn.metrics.f1_score(label, given, average="weighted"),
        "quadratic_kappa": sklearn.metrics.cohen_kappa_score(label, given, weights="quadratic"),
        "auroc": sklearn.metrics.roc_auc_score(label, score),
        "average_precision": sklearn.metrics.average_precision_score(label, score),
        "f1": sklearn.metrics.f1_score(label, given),
        "brier": sklearn.metrics.brier_score_loss(label, score),
    }
    found = binary.evaluate(label, score)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert set(found) - set(expected) == {"ece"}, "scikit-learn has none"


def test_f1_is_that_of_class_1(sample):
    label, score = sample
    (_, fp), (fn, tp) = confusion(label, score)
    assert binary.f1(label, score) == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert binary.f1(np.array([0, 1]), np.array([0.1, 0.2])) == 0.0


def test_average_precision_is_the_sum_over_thresholds(sample):
    label, score = sample
    total, before = 0.0, 0.0
    for threshold in sorted(set(score), reverse=True):
        above = score >= threshold
        sensitivity = np.sum(label[above]) / np.sum(label)
        total += np.mean(label[above]) * (sensitivity - before)
        before = sensitivity
    assert binary.average_precision(label, score) == pytest.approx(total, abs=1e-12)


def test_brier_and_calibration_error_by_a_loop_over_bins(sample):
    label, score = sample
    assert binary.brier(label, score) == pytest.approx(np.mean((score - label) ** 2))
    total = 0.0
    for i in range(15):
        inside = (score > i / 15) & (score <= (i + 1) / 15) | (score == 0) & (i == 0)
        if inside.any():
            total += inside.mean() * abs(score[inside].mean() - label[inside].mean())
    assert binary.ece(label, score) == pytest.approx(total, abs=1e-12)


def test_bins_hold_their_upper_edge_and_every_score():
    edges = np.arange(16) / 15
    assert binary.bin_of(edges).tolist() == [0, *range(15)]
    assert binary.bin_of(np.nextafter(edges[1:-1], 1)).tolist() == list(range(1, 15))
    assert binary.bin_of(np.array([0.0, 0.5, 0.51, 1.0]), 2).tolist() == [0, 0, 1, 1]


def test_a_calibrated_score_has_a_small_error_and_a_shifted_one_its_shift():
    rng = np.random.default_rng(0)
    score = rng.uniform(0.3, 0.6, 40_000)
    label = (rng.random(40_000) < score).astype(int)
    assert binary.ece(label, score) < 0.02
    assert binary.ece(label, score + 0.2) == pytest.approx(0.2, abs=0.02)


def test_score_of_one_half_is_class_0():
    assert binary.classify(np.array([0.5, np.nextafter(0.5, 1), 0.0, 1.0])).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("present", [0, 1])
def test_one_class_is_nan_without_a_warning(present):
    label, score = np.full(4, present), np.array([0.1, 0.6, 0.7, 0.9])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = binary.evaluate(label, score)
    undefined = {"auroc", "average_precision", "balanced_accuracy", "quadratic_kappa"} | (set() if present else {"f1"})
    assert {name for name, value in found.items() if np.isnan(value)} == undefined
    assert found["accuracy"] == pytest.approx(0.75 if present else 0.25)


def test_perfect_and_reversed_scores():
    label = np.array([0, 0, 1, 1])
    best, worst = binary.evaluate(label, label.astype(float)), binary.evaluate(label, 1.0 - label)
    losses = {"brier", "ece"}
    assert best == {name: float(name not in losses) for name in binary.METRICS}
    assert {name for name in binary.METRICS if worst[name] > best[name]} == losses
    assert all(worst[name] != best[name] for name in binary.METRICS)
    assert binary.auroc(label, 1.0 - label) == 0.0


@pytest.mark.parametrize(
    ("label", "score", "message"),
    [
        ([0, 1, 1], [0.1, 0.2, float("nan")], "score nan in row 2"),
        ([0, 1, 1], [0.1, 1.5, 0.2], "score 1.5 in row 1 must be a probability"),
        ([0, 2, 1], [0.1, 0.5, 0.2], "label 2 in row 1 must be 0 or 1"),
        ([0, 1], [0.1], r"shape \(2,\), scores \(1,\)"),
        ([[0, 1]], [[0.1, 0.2]], r"both must be \(n,\)"),
        ([], [], "no rows"),
    ],
)
@pytest.mark.parametrize("name", binary.METRICS)
def test_bad_input_is_refused_by_every_metric(name, label, score, message):
    with pytest.raises(binary.MetricError, match=message):
        binary.METRICS[name](np.array(label), np.array(score))


def test_every_balanced_accuracy_is_scikit_learns():
    rng = np.random.default_rng(0)
    for n_classes in (2, 5):
        label, called = rng.integers(0, n_classes, (2, 60))
        assert binary.mean_recall(label, called) == pytest.approx(sklearn.metrics.balanced_accuracy_score(label, called))
    label, score = rng.integers(0, 2, 40), rng.random(40)
    assert binary.mean_recall(label, binary.classify(score)) == pytest.approx(binary.balanced_accuracy(label, score))
    assert binary.mean_recall(np.array([0, 0, 3]), np.array([0, 1, 3])) == 0.75, "a class without items is none"
    assert np.isnan(binary.mean_recall_of(np.array([[1, 0], [2, 3]]), np.array([[2, 0], [2, 3]]))).tolist() == [True, False]
