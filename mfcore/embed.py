"""Embeddings: every patch of a study through one frozen encoder, once, kept with the encoder's card and canary.

The result is ``embeddings.h5``, row for row the study's label table: ``features`` float32 (n_patches, n_dims), ``coords``
int64 (n_patches, 2), the patch's top left corner in level-0 px as the field's tools read it, ``patch_id`` and
``slide_id``. Its attributes hold the card as JSON, the revision of the weights and the canary.
"""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from mfcore import canary, encoders, patches, store
from mfcore.config import Study, as_dict

SHARD = 512  # patches that a kill loses at most


def config_of(study: Study, encoder_name: str) -> dict:
    """What decides the embeddings, besides the patches: the encoder's card and the crop that it sees."""
    return {"card": encoders.card(encoder_name).identity(), "size_px": study.patches.size_px}


def embed(study: Study, encoder_name: str, results: str | Path, device: str = "cpu", batch_size: int = 32) -> store.Run:
    """Embed the central ``size_px`` of every patch of ``study``; takes up again where an earlier call stopped.

    Raises StoreError where the patches aren't there, EncoderError where the encoder can't be had, gives NaN or infinity
    (naming the first patches), or isn't any more the one that an unfinished run began with.
    """
    source = patches.find(study, results)
    run = store.open_run(results, "embeddings", encoder_name, config_of(study, encoder_name), {"patches": source.key})
    if run.done:
        return run
    table, stored = patches.load(source)
    crops = patches.centre_crop(stored, study.patches.size_px)
    encoder = encoders.load(encoder_name, device)
    _settle_canary(run, encoder)
    shards = {run.unit_file(f"{i:05d}", ".npy"): rows for i, rows in enumerate(_pieces(0, len(table), SHARD))}
    to_do = {file: rows for file, rows in shards.items() if not file.is_file()}
    n_done = len(table) - sum(map(len, to_do.values()))
    ids = table["patch_id"].to_numpy()
    with tqdm(total=len(table), initial=n_done, desc=f"embed {encoder_name}", unit=" patches") as progress:
        for file, rows in to_do.items():
            features = []
            for batch in _pieces(rows.start, rows.stop, batch_size):
                features.append(encoder.embed(crops[batch.start : batch.stop], ids[batch.start : batch.stop]))
                progress.update(len(batch))
            with store.replacing(file) as aside, aside.open("wb") as out:
                np.save(out, np.concatenate(features))  # (n_patches of the shard, n_dims)
    _assemble(run, encoder, table, study)
    run.finish(["embeddings.h5"], device=str(encoder.device), weights=encoder.revision, n_patches=len(table))
    shutil.rmtree(run.path("units"))
    return run


def find(study: Study, encoder_name: str, results: str | Path) -> store.Run:
    """The finished embeddings of the study's patches by ``encoder_name``; raises StoreError where there are none.

    No model and no hub is asked: an encoder without a card of its own is found by its name, the newest run first.
    """
    source = {"patches": patches.find(study, results).key}
    if encoder_name in encoders.names():
        return store.find_run(results, "embeddings", encoder_name, config_of(study, encoder_name), source)
    found = []
    for file in Path(results).glob("embeddings-*/run.json"):
        record = store.read_json(file)
        if (record["name"], record["config"]["size_px"], record["inputs"]) == (encoder_name, study.patches.size_px, source):
            found.append((record["finished"], record["config"]))
    config = max(found, key=lambda item: item[0])[1] if found else {"size_px": study.patches.size_px}
    return store.find_run(results, "embeddings", encoder_name, config, source)


def load(run: store.Run) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 (n_patches, n_dims) and patch ids int64 (n_patches,) of a finished run."""
    if not run.done:
        raise store.StoreError(f"{run.folder} is not finished; embed again, it goes on where it stopped")
    return store.read_embeddings(run)


def _pieces(start: int, stop: int, size: int) -> list[range]:
    """The rows from start to stop in ranges of ``size``, the last maybe shorter."""
    return [range(first, min(first + size, stop)) for first in range(start, stop, size)]


def _settle_canary(run: store.Run, encoder: encoders.Encoder) -> None:
    """Keep the canary of a new run; compare with the one that an unfinished run began with."""
    file = run.unit_file("canary", ".npy")
    if file.is_file():
        canary.check(encoder, np.load(file))
        return
    with store.replacing(file) as aside, aside.open("wb") as out:
        np.save(out, canary.embed(encoder))


def _top_left(table: pd.DataFrame, study: Study) -> np.ndarray:
    """The crops' top left corners, int64 (n_patches, 2), x and y in level-0 px."""
    target = study.patches.um_per_px if study.switches.resolution == "target" else None
    scale = 1.0 if target is None else (target / table["um_per_px"]).fillna(1.0)
    corners = table[["x_l0_px", "y_l0_px"]].sub(study.patches.size_px * scale / 2, axis=0)
    return np.floor(corners.to_numpy() + 0.5).astype(np.int64)


def _assemble(run: store.Run, encoder: encoders.Encoder, table: pd.DataFrame, study: Study) -> None:
    """Write ``embeddings.h5`` from the shards, whole or not at all."""
    shards = [np.load(file) for file in sorted(run.path("units").glob("[0-9]*.npy"))]
    features = np.concatenate(shards)
    if features.shape != (len(table), encoder.card.n_dims):
        raise store.StoreError(
            f"{run.path('units')} holds features {features.shape}, expected {(len(table), encoder.card.n_dims)}"
        )
    with store.replacing(run.path("embeddings.h5")) as aside, h5py.File(aside, "w") as out:
        out.create_dataset("features", data=features)
        coords = out.create_dataset("coords", data=_top_left(table, study))
        coords.attrs["name"] = "top left corner of the patch in level-0 px, x and y"
        coords.attrs["patch_size"] = study.patches.size_px
        out.create_dataset("patch_id", data=table["patch_id"].to_numpy())
        out.create_dataset("slide_id", data=table["slide_id"].astype(str).to_list(), dtype=h5py.string_dtype())
        out.attrs["card"] = json.dumps(as_dict(encoder.card))
        out.attrs["weights"] = encoder.revision
        out.attrs["canary"] = np.load(run.unit_file("canary", ".npy"))
