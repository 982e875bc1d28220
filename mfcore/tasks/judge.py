"""An encoder judged by a task of patch classification, as eva does: linear heads on its frozen features, several seeded runs.

A run's folder keeps ``predictions.parquet`` (run, step, item_id, split, label, group and ``score_0, score_1, ...``, a
probability a class), from which every metric is computed again; ``fits.csv`` (how each head ended) and ``features.h5`` (what
they learned from).
"""

from pathlib import Path

import numpy as np

from mfcore import encoders, store
from mfcore.streams import generator
from mfcore.study.config import Study
from mfcore.tasks import judge_features, judge_heads, protocol as tasks_protocol, runs as tasks_runs
from mfcore.tasks.protocol import Protocol
from mfcore.tasks.schema import TaskData

STAGE = "judge"
AT_ONCE = 5  # heads trained together; as many are lost by a kill


def judge(
    study: Study, task: str, encoder: str, data_folder: str | Path, results: str | Path, device: str = "cpu"
) -> store.Run:
    """Judge ``encoder``, which may be a snapshot ``NAME@STEP``, by ``task``; takes up again where an earlier call stopped.

    Raises TaskError, with all that is wrong, for a task whose data can't be judged by, and EncoderError where the encoder can't
    be had.
    """
    protocol = tasks_protocol.of(study.task(task))
    card = encoders.of(study, encoder, results)
    run, data = tasks_runs.begin(STAGE, study, task, encoder, card.identity(), data_folder, results)
    if run.done:
        return run
    features = judge_features.features_of(run, data, card, device, protocol.size_px)
    missing = tasks_runs.missing(run, protocol.n_runs)
    for first in range(0, len(missing), AT_ONCE):
        _train(run, study, data, features, protocol, missing[first : first + AT_ONCE])
    n_dims = features.shape[1]
    return tasks_runs.finish(run, data, protocol.n_runs, "predictions.parquet", [judge_features.FILE], n_dims=n_dims)


def _train(run: store.Run, study: Study, data: TaskData, features: np.ndarray, protocol: Protocol, numbers: list[int]) -> None:
    """Train the heads of some runs together, and keep what each says of the items that none learned from."""
    table, n_classes = data.table.reset_index(drop=True), len(data.classes)
    labels = table["label"].to_numpy(np.int64)
    rows = np.flatnonzero(table["split"] == "train")
    validation = np.flatnonzero(table["split"] == tasks_protocol.SELECTION)
    heads = [
        judge_heads.Head(
            _drawn(rows, labels, protocol.n_per_class, study.splits.seed, data.name, number),
            generator(study.splits.seed, "judge", data.name, "head", number),
        )
        for number in numbers
    ]
    title = f"{run.identity['name']}, runs {numbers[0]} to {numbers[-1]}"
    judge_heads.train(features, labels, n_classes, heads, validation, protocol, title)
    tested = table[table["split"] != "train"]
    for number, head in zip(numbers, heads, strict=True):
        scores = head.scores(features[tested.index])
        told = tested[["item_id", "split", "label"]].assign(run=number, step=head.best_step)
        told = told[["run", "step", "item_id", "split", "label"]].assign(group=tested["group"].astype(str))
        told = told.assign(**{f"score_{i}": scores[:, i] for i in range(n_classes)})
        fit = {"n_train": len(head.train), "n_steps": head.n_steps, "best_step": head.best_step}
        tasks_runs.keep(run, number, told, fit | {"validation": head.best, "ended": head.ended})


def _drawn(rows: np.ndarray, labels: np.ndarray, n_per_class: int | None, seed: int, *names: object) -> np.ndarray:
    """The rows that a run learns from: all, or ``n_per_class`` of each class, drawn for this run."""
    if n_per_class is None:
        return rows
    draw = generator(seed, "judge", "items", *names)
    of_class = [rows[labels[rows] == label] for label in np.unique(labels[rows])]
    return np.sort(np.concatenate([draw.choice(part, n_per_class, replace=False) for part in of_class]))
