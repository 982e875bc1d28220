"""Embeddings: every stored patch through one frozen encoder, kept with the encoder's card.

The result is ``embeddings.h5``, row for row the label table: ``features`` float32 (n_patches,
n_dims), ``coords`` int64 (n_patches, 2), the patch's top left corner in level-0 px as the field's
tools read it, ``patch_id``, ``slide_id`` and ``canary`` float32 (8, n_dims), with the versions of
torch and timm that made it. The file's attributes hold the card as JSON and the revision of the
weights.
"""

import contextlib
import itertools
import json
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from mfcore import store
from mfcore.data import patches
from mfcore.data.splits_draw import Placing
from mfcore.encoders import canary, network, weights
from mfcore.encoders.card import EncoderCard, EncoderError
from mfcore.encoders.features.files import write_rows
from mfcore.store.options import as_dict

load = store.read_embeddings
SHARD = 256  # patches that are read, embedded and kept together; a kill loses one such part
FULL = "(?i)MemoryError|can't allocate memory|out of memory"  # what torch says where memory ends
BATCH_SIZES = {"cpu": 16, "cuda": 128}  # patches at once, where the caller doesn't say


def embed(
    file: Path,
    table: pd.DataFrame,
    card: EncoderCard,
    run: store.Run,
    placing: Placing,
    device: str = "cpu",
    batch_size: int = 0,
) -> store.Run:
    """Embed the central ``placing.size_px`` of stored patches; fills and finishes ``run``.

    It goes on where an earlier call stopped. file: the stored patches, as `patches.extract` writes
    ``patches.npy``; table: their labels, row for row. device: as for `network.choose_device`.
    batch_size: 0 for that of BATCH_SIZES; halved where memory ends. Raises EncoderError where the
    encoder is missing, gives NaN or infinity (naming the first patches), or isn't any more the
    one that the run was begun with.
    """
    embed_share(file, card, run, 0, 1, placing.size_px, device, batch_size)
    with _until_done(run):
        _assemble(run, card, table, file, placing)
    return run


def embed_share(
    file: Path,
    card: EncoderCard,
    run: store.Run,
    share: int,
    n_shares: int,
    size_px: int = 224,
    device: str = "cpu",
    batch_size: int = 0,
) -> store.Run:
    """Embed the ``share``-th (from 0) of ``n_shares`` equal parts of the patches; see `embed`.

    The run isn't finished. Shares may run at the same time, on one machine or on several that see
    the same folder. Raises ValueError for a share that there isn't, and what `embed` raises.
    """
    if not 0 <= share < n_shares:
        raise ValueError(
            f"share {share} of {n_shares}: there must be one share or more, counted from 0"
        )
    if batch_size < 0:
        raise ValueError(
            f"batch_size is {batch_size}; it must be 1 or more, or 0 for {BATCH_SIZES}"
        )
    shards = _shards(run, len(_stored(file)))
    first, last = (len(shards) * i // n_shares for i in (share, share + 1))
    shards = dict(list(shards.items())[first:last])
    missing = [rows for rows, shard in shards.items() if not shard.is_file()]
    if run.done or not missing:
        return run

    def read(rows: range) -> torch.Tensor:
        stored = _stored(file)[rows.start : rows.stop]
        return torch.from_numpy(np.array(patches.centre_crop(stored, size_px)))

    with _until_done(run):
        encoder = network.load(card, device)
        _settle_canary(run, encoder)
        usual = BATCH_SIZES.get(encoder.device.type, BATCH_SIZES["cpu"])
        batches, begun_s = Batches(encoder, batch_size or usual), time.perf_counter()
        if n_done := write_shards(run, batches, read, shards, card.name):
            facts = {
                "device": str(encoder.device),
                "batch_size": batches.size,
                "precision": encoder.precision,
                "n_patches": n_done,
                "patches_per_s": round(n_done / max(time.perf_counter() - begun_s, 1e-9), 2),
            }
            job = f"done-{missing[0].start:09d}-{missing[-1].stop:09d}"
            store.write_json(run.unit_file(job, ".json"), facts)
    return run


def _stored(file: Path) -> np.ndarray:
    """The stored patches, uint8 (n_patches, stored_px, stored_px, 3).

    The file is mapped anew, so that pages once read don't stay in memory.
    """
    return np.load(file, mmap_mode="r")


@contextlib.contextmanager
def _until_done(run: store.Run) -> Iterator[None]:
    """Within it, another job may finish the run and remove its units; then nothing is to do."""
    try:
        yield
    except (FileNotFoundError, store.StoreError):
        if not run.done:
            raise
    if run.done:
        shutil.rmtree(run.path("units"), ignore_errors=True)


def _shards(run: store.Run, n_patches: int) -> dict[range, Path]:
    """The rows of every shard, and its file."""
    return {
        rows: run.unit_file(f"rows-{rows.start:09d}-{rows.stop:09d}", ".npy")
        for rows in pieces(n_patches, SHARD)
    }


def pieces(n: int, size: int) -> list[range]:
    """Rows 0 to n, at most ``size`` at a time."""
    return [range(first, min(first + size, n)) for first in range(0, n, size)]


def check_finished(run: store.Run, card: EncoderCard, device: str) -> None:
    """Refuse embeddings that today's encoder doesn't give; warn where its weights aren't here."""
    with h5py.File(run.path("embeddings.h5")) as content:
        expected, made_with = content["canary"][:], dict(content["canary"].attrs)
    state = weights.state(card)
    if not state.is_here:
        warnings.warn(
            f"{run.folder.name} is taken as it is: without the weights of {card.name!r} nobody can "
            f"see whether it still gives the same ({state.text})",
            stacklevel=3,
        )
        return
    try:
        encoder = network.load(card, device)
        canary.compare(encoder, canary.embed(encoder), expected, made_with)
    except EncoderError as error:
        raise EncoderError(f"{run.folder}: {error}") from error


# ---- filling shards ----


@dataclass
class Batches:
    """An encoder and how many patches it gets at once; halved for good where memory ends."""

    encoder: network.Encoder
    size: int

    def compute(self, crops: torch.Tensor, progress: tqdm) -> np.ndarray:
        """Embed uint8 (n, height, width, 3); gives float32 (n, n_dims).

        Raises EncoderError where not even one patch fits into memory.
        """
        parts = []
        while len(crops):
            batch = crops[: self.size]
            try:
                parts.append(self.encoder.compute(batch))
            except (RuntimeError, MemoryError) as error:
                if not re.search(FULL, repr(error)):
                    raise
                if len(batch) == 1:
                    name, device = self.encoder.card.name, self.encoder.device
                    raise EncoderError(
                        f"encoder {name!r}: not even one patch fits into the memory of {device} "
                        f"({str(error)[:200]}); free some, or use another device or encoder"
                    ) from error
                self.size = len(batch) // 2
                continue
            crops = crops[len(batch) :]
            progress.update(len(batch))
        return torch.cat(parts).cpu().numpy()


def embedded(
    batches: Batches, read: Callable[[range], torch.Tensor], shards: Iterable[range], progress: tqdm
) -> Iterator[tuple[range, np.ndarray]]:
    """Embed the rows of each shard; yields (rows, features float32 (n, n_dims)).

    read: gives the patches of some rows, uint8 (n, height, width, 3), and is called in a thread of
    its own, one shard ahead. Raises EncoderError as `Batches.compute` and `network.Encoder.checked`
    do.
    """
    with ThreadPoolExecutor(1, "read") as reader:
        ahead = None
        for following in itertools.chain(shards, [None]):
            current, ahead = ahead, following and (following, reader.submit(read, following))
            if current:
                rows, crops = current
                yield rows, batches.encoder.checked(batches.compute(crops.result(), progress), rows)


def write_shards(
    run: store.Run,
    batches: Batches,
    read: Callable[[range], torch.Tensor],
    shards: Mapping[range, Path],
    title: str,
) -> int:
    """Embed the rows of those ``shards`` that have no file yet; gives the number of new patches.

    read: as for `embedded`. Nothing is made that another job makes in the meantime.
    """
    missing = [rows for rows, file in shards.items() if not file.is_file()]
    todo = (rows for rows in missing if not (shards[rows].is_file() or run.done))
    n, n_missing, n_done = sum(map(len, shards)), sum(map(len, missing)), 0
    with tqdm(total=n, initial=n - n_missing, desc=f"embed {title}", unit=" patches") as bar:
        for rows, features in embedded(batches, read, todo, bar):
            with store.replacing(shards[rows]) as aside, aside.open("wb") as out:
                np.save(out, features)  # (n_patches of the shard, n_dims)
            n_done += len(rows)
    return n_done


def join_shards(out: h5py.File, shards: Mapping[range, Path], n_dims: int) -> None:
    """Write ``features`` from the shards one by one; raises StoreError for a damaged shard."""
    features = out.create_dataset("features", (sum(map(len, shards)), n_dims), np.float32)
    for rows, file in shards.items():
        try:
            features[rows.start : rows.stop] = np.load(file)
        except (ValueError, TypeError, EOFError) as error:
            remedy = "remove it and embed again"
            raise store.StoreError(f"{file}: damaged ({error}); {remedy}") from None


def _settle_canary(run: store.Run, encoder: network.Encoder) -> None:
    """Keep the first job's canary of a new run; compare the encoder with the one that is kept."""
    file, answer = run.unit_file("canary", ".npz"), canary.embed(encoder)
    with store.in_turn(file.parent, "canary"):
        if not file.is_file():
            about = json.dumps({"weights": encoder.revision, **canary.versions()})
            with store.replacing(file) as aside, aside.open("wb") as out:
                np.savez(out, features=answer, about=about)
    canary.compare(encoder, answer, *_canary_of(run))


def _canary_of(run: store.Run) -> tuple[np.ndarray, dict[str, str]]:
    """Features float32 (8, n_dims) of a begun run's canary, and what they were made with."""
    with np.load(run.unit_file("canary", ".npz")) as content:
        return content["features"], json.loads(str(content["about"]))


# ---- putting together ----


def _assemble(
    run: store.Run, card: EncoderCard, table: pd.DataFrame, file: Path, placing: Placing
) -> None:
    """Write ``embeddings.h5`` from the shards, one after another, and finish the run."""
    corners_l0_px = patches.corners(table, _stored(file).shape[1], placing)
    expected, about = _canary_of(run)
    with store.replacing(run.path("embeddings.h5")) as aside, h5py.File(aside, "w") as out:
        join_shards(out, _shards(run, len(table)), card.n_dims)
        place = {"name": "top left corner of the patch in level-0 px, x and y"}
        write_rows(out, table, corners_l0_px, {**place, "patch_size": placing.size_px})
        kept = out.create_dataset("canary", data=expected)  # too large for an attribute
        kept.attrs.update(about)
        out.attrs["card"] = json.dumps(as_dict(card))
        out.attrs["weights"] = about["weights"]
    jobs = [store.read_json(file) for file in sorted(run.path("units").glob("done-*.json"))]
    if not run.done:
        run.finish(["embeddings.h5"], weights=about["weights"], n_patches=len(table), jobs=jobs)
