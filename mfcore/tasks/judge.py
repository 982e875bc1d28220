"""An encoder judged by a task of patch classification, as eva does: linear heads on its frozen
features, several seeded runs.

A run's folder keeps ``predictions.parquet`` (run, step, item_id, split, label, group and ``score_0,
score_1, ...``, a probability a class), from which every metric is computed again; ``fits.csv`` (how
each head ended) and ``features.h5`` (what they learned from).
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch

from mfcore import encoders, store
from mfcore.encoders.card import EncoderCard
from mfcore.encoders.embed import Batches, join_shards, pieces, write_shards
from mfcore.encoders.preprocess import resized, square
from mfcore.store.options import as_dict
from mfcore.store.records import digest
from mfcore.streams import generator
from mfcore.tasks import protocol as tasks_protocol
from mfcore.tasks.task import SELECTION, Protocol, TaskData
from mfcore.training import heads

STAGE = "judge"
AT_ONCE = 5  # heads trained together; as many are lost by a kill
SHARD, BATCH = 1024, 32  # images; a kill loses at most those not yet written
FILE = "features.h5"


def judge(
    data: TaskData,
    card: EncoderCard,
    protocol: Protocol,
    run: store.Run,
    seed: int,
    device: str = "cpu",
) -> store.Run:
    """Judge the encoder of ``card`` by a task's data; fills and finishes ``run``, from where an
    earlier call stopped.

    data: as `protocol.check` passes them. seed: of the heads. Raises EncoderError where the encoder
    is missing.
    """
    features = features_of(run, data, card, device, protocol.size_px)
    missing = tasks_protocol.missing(run, protocol.n_runs)
    for first in range(0, len(missing), AT_ONCE):
        _train(run, data, features, protocol, seed, missing[first : first + AT_ONCE])
    n_dims = features.shape[1]
    return tasks_protocol.finish(
        run, data, protocol.n_runs, "predictions.parquet", [FILE], n_dims=n_dims
    )


def _train(
    run: store.Run,
    data: TaskData,
    features: np.ndarray,
    protocol: Protocol,
    seed: int,
    numbers: list[int],
) -> None:
    """Train the heads of some runs together, and keep what each says of the items that none learned
    from.
    """
    table, task = data.table.reset_index(drop=True), data.task
    labels = table["label"].to_numpy(np.int64)
    rows, validation = (np.flatnonzero(table["split"] == split) for split in ("train", SELECTION))
    trained = []
    for number in numbers:
        draw = generator(seed, "judge", "items", task.name, number)
        learnt = _drawn(rows, labels, protocol.n_per_class, draw)
        of_head = generator(seed, "judge", task.name, "head", number)
        trained.append(heads.Head(learnt, validation, of_head))
    title = f"{run.identity['name']}, runs {numbers[0]} to {numbers[-1]}"
    heads.train(features, labels, len(task.classes), trained, protocol.schedule, title)
    tested = table.loc[table["split"] != "train", ["item_id", "split", "label", "group"]]
    for number, head in zip(numbers, trained, strict=True):
        scores = pd.DataFrame(head.scores(features[tested.index]), tested.index).add_prefix(
            "score_"
        )
        facts = {"run": number, "step": head.progress.best_step, **tested, **scores}
        fit = {"n_train": len(head.train), **head.progress.facts()}
        tasks_protocol.keep(run, number, pd.DataFrame(facts), fit)


def _drawn(
    rows: np.ndarray, labels: np.ndarray, n_per_class: int | None, draw: np.random.Generator
) -> np.ndarray:
    """The rows that a run learns from: all, or ``n_per_class`` of each class."""
    if n_per_class is None:
        return rows
    of_class = [rows[labels[rows] == label] for label in np.unique(labels[rows])]
    return np.sort(
        np.concatenate([draw.choice(part, n_per_class, replace=False) for part in of_class])
    )


# ---- features ----


def features_of(
    run: store.Run, data: TaskData, card: EncoderCard, device: str, size_px: int | None
) -> np.ndarray:
    """Embeddings of a task's images by the encoder of ``card``, float32 (n_items, n_dims), in the
    order of the task's table.

    Kept in the run's ``features.h5``; of several processes that need the same at once, one makes
    them. Each image goes through the encoder's own transform but for its crop: the shorter side is
    all seen, resized to ``size_px`` before where that is given. Raises EncoderError where the
    encoder is missing or gives NaN or infinity.
    """
    file = run.path(FILE)
    with store.in_turn(run.folder.parent / ".turns", f"features-{digest(_made_of(run.identity))}"):
        if not file.is_file():
            if same := _made_before(run):
                with store.replacing(file) as aside:
                    try:
                        os.link(same, aside)  # of PatchCamelyon half a gigabyte, for two tasks
                    except OSError:  # a file system without links
                        shutil.copyfile(same, aside)
            else:
                _embed(run, data, encoders.load(card, device), size_px)
        for shard in run.path("units").glob("features-*.npy"):
            shard.unlink()
    with h5py.File(file) as content:
        return content["features"][:]


def _made_of(identity: dict) -> list:
    """What decides features: the images, the encoder and the size."""
    return [
        identity["inputs"],
        identity["config"]["card"],
        identity["config"]["protocol"]["size_px"],
    ]


def _made_before(run: store.Run) -> Path | None:
    """The features of another run of the same images, encoder and size, whatever was trained on
    them.
    """
    for file in sorted(run.folder.parent.glob(f"{run.identity['stage']}-*/{FILE}")):
        if _made_of(store.read_json(file.with_name("begun.json"))) == _made_of(run.identity):
            return file
    return None


def _embed(run: store.Run, data: TaskData, encoder: encoders.Encoder, size_px: int | None) -> None:
    """Write the features from shards, one at a time: all of PatchCamelyon's are gigabytes."""
    card = dataclasses.replace(encoder.card, resize_px=encoder.card.crop_px)
    encoder = dataclasses.replace(encoder, card=card)
    shards = {
        rows: run.unit_file(f"features-{rows.start:09d}", ".npy")
        for rows in pieces(len(data.table), SHARD)
    }

    def read(rows: range) -> torch.Tensor:
        return torch.from_numpy(np.stack([_seen(data.image(i), card, size_px) for i in rows]))

    title = f"{data.task.name} by {card.name}"
    write_shards(run, Batches(encoder, BATCH), read, shards, title)
    with store.replacing(run.path(FILE)) as aside, h5py.File(aside, "w") as out:
        join_shards(out, shards, card.n_dims)
        names = data.table["item_id"].astype(str).to_list()
        out.create_dataset("item_id", data=names, dtype=h5py.string_dtype())
        out.attrs["card"], out.attrs["weights"] = json.dumps(as_dict(card)), encoder.revision


def _seen(image: np.ndarray, card: EncoderCard, size_px: int | None) -> np.ndarray:
    """What the encoder sees of an image: the central square, over its whole shorter side."""
    return square(resized(image, size_px, card.interpolation), card.crop_px, card.interpolation)
