"""What heads and decoders score, and the bootstrap of the slides, patients or items tested."""

import math

import numpy as np
import pandas as pd
import pytest

from mfcore.measures import task_scores


def test_the_bootstrap_is_a_plain_one_over_clusters():
    """As drawing slides one by one and scoring their patches anew, for unequal slides and a class that some lack."""
    rng = np.random.default_rng(0)
    n = 240
    predictions = pd.DataFrame({"run": np.repeat([0, 1], n), "item_id": np.tile(np.arange(n), 2).astype(str)})
    slide = rng.integers(0, 20, n)
    predictions["group"], label = np.tile(slide, 2).astype(str), (rng.random(n) < 0.2 + 0.03 * slide).astype(int)
    predictions["label"], noise = np.tile(label, 2), rng.random((2 * n, 2))
    predictions["score_0"], predictions["score_1"] = noise[:, 0] + 0.3 * (1 - predictions["label"]), noise[:, 1]
    found = task_scores.of_labels(predictions)
    interval = task_scores.bootstrap(found.clusters, found.score, 0, "test")
    called = predictions[["score_0", "score_1"]].to_numpy().argmax(axis=1).reshape(2, n)
    values = []
    for _ in range(1500):
        rows = np.concatenate([np.flatnonzero(slide == s) for s in rng.choice(np.unique(slide), 20)])
        right, here = called[:, rows] == label[rows], label[rows]
        values.append(np.mean([right[:, here == c].mean() for c in (0, 1)]))
    assert interval.estimate == pytest.approx(found.values.mean()) and interval.n == 20
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=0.012)


def test_few_slides_give_no_interval():
    clusters = np.array([[2.0, 1, 1, 1], [1, 2, 1, 0], [3, 1, 2, 1]])
    interval = task_scores.bootstrap(clusters, task_scores.recall_of_sums, 0)
    assert interval.estimate == pytest.approx((4 / 6 + 2 / 4) / 2) and math.isnan(interval.low)


def test_patients_are_scored_by_the_mean_probability_of_their_patches():
    """By hand: of run 0 p1 is right by 0.6 in the mean, though one of its patches isn't; p3 is wrong in both runs."""
    rows = [
        (0, "p1", 1, 0.9), (0, "p1", 1, 0.3), (0, "p2", 0, 0.1), (0, "p3", 1, 0.4),
        (1, "p1", 1, 0.2), (1, "p1", 1, 0.3), (1, "p2", 0, 0.1), (1, "p3", 1, 0.4),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["run", "group", "label", "score_1"]).assign(score_0=lambda one: 1 - one["score_1"])
    table["item_id"] = [f"patch {i % 4}" for i in range(8)]
    found = task_scores.of_groups(table)
    assert found.values.tolist() == [0.75, 0.5] and found.n_items == 3 and len(found.clusters) == 3
    assert task_scores.of_labels(table).values == pytest.approx([(1 + 1 / 3) / 2, 0.5])
