"""What runs of heads and decoders score on a downstream task, from their predictions, with a
bootstrap of what was tested.

Predictions have a row a tested item and run: ``run, item_id, group`` (slide or patient, "" where a
set names none) and, of patches, ``label, score_0, ...``; of masks, a row a class that has ``n_px,
n_predicted_px, n_both_px``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mfcore.measures import binary, masks
from mfcore.measures.resampling import N_RESAMPLES, interval_of
from mfcore.measures.statistics import Interval
from mfcore.streams import generator


@dataclass(frozen=True)
class Scored:
    """What one encoder's runs scored on one split of a task.

    values: the score of each run (n_runs,). clusters: of each tested slide or patient, or item, the
    sums of which ``score`` makes the mean over runs, float64 (n_clusters, n_sums); in the order of
    their names, which is every encoder's.
    """

    values: np.ndarray
    clusters: np.ndarray
    n_items: int
    score: Callable[[np.ndarray], np.ndarray]


def of_labels(predictions: pd.DataFrame) -> Scored:
    """Balanced accuracy: sums are the items of each class, then those of them that the mean run
    gives their class.
    """
    scores = predictions[
        sorted((c for c in predictions if c.startswith("score_")), key=lambda c: int(c[6:]))
    ].to_numpy()
    table = predictions.assign(
        is_right=scores.argmax(axis=1) == predictions["label"], cluster=_clusters(predictions)
    )
    values = table.groupby(["run", "label"])["is_right"].mean().groupby("run").mean()
    counts = table.pivot_table(
        "is_right", "cluster", "label", ["count", "sum"], fill_value=0
    ) / len(values)
    return Scored(
        values.to_numpy(), counts.to_numpy(float), table["item_id"].nunique(), recall_of_sums
    )


def of_groups(predictions: pd.DataFrame) -> Scored:
    """`of_labels` of slides or patients whose items all have one label: by the mean probability of
    each class over a group's items.
    """
    scores = [name for name in predictions if name.startswith("score_")]
    groups = predictions.groupby(["run", "group", "label"], as_index=False)[scores].mean()
    return of_labels(groups.assign(item_id=groups["group"]))


def recall_of_sums(sums: np.ndarray) -> np.ndarray:
    """Mean recall of the classes (m,), from sums (m, 2 n_classes); NaN where one has no item."""
    n, right = np.split(sums, 2, axis=1)
    return binary.mean_recall_of(right, n)


def of_masks(dice: pd.DataFrame) -> Scored:
    """Dice: the sums are the mean run's Dice of masks with nuclei, and how many there are."""
    value = masks.dice(dice["n_px"], dice["n_predicted_px"], dice["n_both_px"])
    table = dice[["run", "item_id"]].assign(value=value, cluster=_clusters(dice))
    # over a mask's classes
    by_item = table.groupby(["cluster", "item_id", "run"])["value"].mean().unstack("run").dropna()
    clusters = by_item.mean(axis=1).groupby("cluster").agg(["sum", "size"])
    return Scored(
        by_item.mean(axis=0).to_numpy(),
        clusters.to_numpy(float),
        len(by_item),
        lambda sums: sums[:, 0] / sums[:, 1],
    )


def _clusters(table: pd.DataFrame) -> pd.Series:
    """Each row's slide or patient, or its item where the set names none."""
    return table["group"].mask(table["group"] == "", table["item_id"])


def difference(first: Scored, second: Scored, seed: int, *names: object) -> Interval:
    """How much more ``first`` scores than ``second``, with the `bootstrap` of both on the same
    resampled clusters.
    """
    n = first.clusters.shape[1]

    def less(sums: np.ndarray) -> np.ndarray:
        return first.score(sums[:, :n]) - second.score(sums[:, n:])

    return bootstrap(
        np.hstack([first.clusters, second.clusters]),
        less,
        seed,
        *names,
        least=-math.inf,
        most=math.inf,
    )


def bootstrap(
    clusters: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    seed: int,
    *names: object,
    least: float = 0.0,
    most: float = 1.0,
) -> Interval:
    """95 % interval of ``score`` of the clusters' summed columns, clusters being drawn with
    replacement.

    clusters: float64 (n_clusters, n_sums); score: of sums (m, n_sums), the sample's first, gives
    (m,), NaN where undefined. Clusters with the same numbers are one kind, and how often each kind
    is drawn is drawn at once. Bounds are NaN for fewer than MIN_SLIDES clusters. least, most: as
    `resampling.interval_of`.
    """
    kinds, n = np.unique(clusters, axis=0, return_counts=True)
    total = int(n.sum())
    drawn = generator(seed, "bootstrap", "tasks", *names).multinomial(total, n / total, N_RESAMPLES)
    return interval_of(score(np.vstack([n, drawn]) @ kinds), total, least=least, most=most)
