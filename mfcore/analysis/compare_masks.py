"""Segmentations to look at: the tested patches that every encoder's run keeps, with true and predicted masks side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.analysis import compare_pretraining, compare_tasks
from mfcore.measures import masks
from mfcore.study import pretrained
from mfcore.study.config import Settings
from mfcore.tasks import registry

MAX_SHOWN = 3  # encoders side by side


@dataclass(frozen=True)
class Shown:
    """Patches uint8 (n, H, W, 3) with their true masks uint8 (n, H, W) and, by encoder, what its first run's decoder made.

    table: ``item_id, encoder, class, n_px, dice``, a row a patch, encoder and class that is not the background.
    """

    task: str
    classes: tuple[str, ...]
    images: np.ndarray
    true: np.ndarray
    predicted: Mapping[str, np.ndarray]
    table: pd.DataFrame


def shown(study: Settings, results: str | Path, task: str) -> Shown | None:
    """Some of a task's tested patches, segmented by the encoders that `chosen` names.

    None for a task without masks. Raises StoreError where no encoder has been judged by it yet.
    """
    if not registry.get(task).is_segmentation:
        return None
    table = compare_tasks.encoders_only(compare_tasks.reported(compare_tasks.table(study, results)))
    order = table[table["task"] == task].sort_values("mean", ascending=False, kind="stable")["encoder"].tolist()
    if not order:
        raise store.StoreError(f"{results}: no encoder has been judged by {task!r} yet; run notebook 09 with it")
    runs = compare_tasks.runs(study, results)
    masks = {encoder: _masks(runs[task, encoder]) for encoder in chosen(study, order)}
    first = masks[order[0]]
    alike = {
        encoder: found
        for encoder, found in masks.items()
        if np.array_equal(found["item_id"], first["item_id"]) and found["true"].shape == first["true"].shape
    }
    classes = tuple(runs[task, order[0]].record["facts"]["classes"])
    predicted = {encoder: found["predicted"] for encoder, found in alike.items()}
    dice = pd.concat(
        [_dice(first["item_id"], first["true"], mask, classes).assign(encoder=encoder) for encoder, mask in predicted.items()],
        ignore_index=True,
    )
    return Shown(task, classes, first["image"], first["true"], predicted, dice[["item_id", "encoder", "class", "n_px", "dice"]])


def chosen(study: Settings, order: Sequence[str]) -> list[str]:
    """At most MAX_SHOWN of some encoders, the best first in ``order``: the best, the home-made, its control, the worst.

    The home-made one is the first of the study's encoders that it pretrained, or the best that it pretrained where its encoders
    have none; the control is the same network untrained.
    """
    own = [encoder for encoder in order if pretrained.is_of(study, encoder)]
    home = [encoder for encoder in study.encoders if encoder in own][:1] or own[:1]
    controls = [name for encoder in home if (name := compare_pretraining.control_of(study, encoder)) in order]
    return list(dict.fromkeys([order[0], *home, *controls, order[-1]]))[:MAX_SHOWN]


def dice_of(shown: Shown | None) -> pd.DataFrame:
    """The table behind a figure of segmentations, empty where there are none."""
    return pd.DataFrame(columns=["item_id", "encoder", "class", "n_px", "dice"]) if shown is None else shown.table


def _masks(run: store.Run) -> dict[str, np.ndarray]:
    with np.load(run.path("masks.npz")) as content:
        return {name: content[name] for name in ("item_id", "image", "true", "predicted")}


def _dice(item_id: np.ndarray, true: np.ndarray, predicted: np.ndarray, classes: tuple[str, ...]) -> pd.DataFrame:
    counts = masks.overlaps(true, predicted, len(classes))[:, 1:]  # (n, n_classes - 1, 3)
    n_true, n_predicted, n_both = (counts[..., i].ravel() for i in range(3))
    rows = {"item_id": np.repeat(item_id, len(classes) - 1), "class": list(classes[1:]) * len(item_id), "n_px": n_true}
    return pd.DataFrame(rows).assign(dice=masks.dice(n_true, n_predicted, n_both))
