"""Embeddings: every stored patch through one frozen encoder, once, kept with the encoder's card and canary.

The result is ``embeddings.h5``, row for row the label table: ``features`` float32 (n_patches, n_dims), ``coords``
int64 (n_patches, 2), the patch's top left corner in level-0 px as the field's tools read it, ``patch_id``, ``slide_id`` and
``canary`` float32 (8, n_dims), with the versions of torch and timm that made it. The file's attributes hold the card as
JSON and the revision of the weights.
"""

import contextlib
import json
import shutil
import time
import warnings
from collections import deque
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
from mfcore.store.options import as_dict

SHARD = 256  # patches that are read, embedded and kept together; a kill loses one such part, on a GPU two
BATCH_SIZES = {"cpu": 16, "cuda": 128}  # patches that are embedded at once, where the caller doesn't say


def embed(
    file: Path,
    table: pd.DataFrame,
    card: EncoderCard,
    run: store.Run,
    placing: Placing,
    device: str = "cpu",
    batch_size: int = 0,
) -> store.Run:
    """Embed the central ``placing.size_px`` of stored patches; fills and finishes ``run``, from where an earlier call stopped.

    file: the stored patches, as `patches.extract` writes ``patches.npy``; table: their labels, row for row. device: as for
    `network.choose_device`. batch_size: 0 for that of BATCH_SIZES; halved where memory ends. Raises EncoderError where the
    encoder can't be had, gives NaN or infinity (naming the first patches), or isn't any more the one that the run was begun
    with.
    """
    with _until_done(run):
        _fill(run, card, file, placing.size_px, _shards(run, len(table)), device, batch_size)
        _assemble(run, card, table, patches.corners(table, _stored(file).shape[1], placing), placing.size_px)
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
    """Embed the ``share``-th (from 0) of ``n_shares`` equal parts of the patches and put nothing together; see `embed`.

    Shares may run at the same time, on one machine or on several that see the same folder. Raises ValueError for a share
    that there isn't, and what `embed` raises.
    """
    if n_shares < 1:
        raise ValueError(f"share {share} of {n_shares}: there must be one share or more")
    if not 0 <= share < n_shares:
        raise ValueError(f"share {share} of {n_shares}: shares are counted from 0 to {n_shares - 1}")
    if not run.done:
        shards = list(_shards(run, len(_stored(file))).items())
        first, last = (len(shards) * i // n_shares for i in (share, share + 1))
        with _until_done(run):
            _fill(run, card, file, size_px, dict(shards[first:last]), device, batch_size)
    return run


def _stored(file: Path) -> np.ndarray:
    """The stored patches, uint8 (n_patches, stored_px, stored_px, 3), mapped anew so that pages once read don't stay."""
    return np.load(file, mmap_mode="r")


def load(run: store.Run) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 (n_patches, n_dims) and patch ids int64 (n_patches,) of a finished run."""
    if not run.done:
        raise store.StoreError(f"{run.folder} is not finished; embed again, it goes on where it stopped")
    return store.read_embeddings(run)


@contextlib.contextmanager
def _until_done(run: store.Run) -> Iterator[None]:
    """Within it another job may finish the run at any moment and take its units away: then there is nothing left to do."""
    try:
        yield
    except (FileNotFoundError, store.StoreError):
        if not run.done:
            raise
    if run.done:
        shutil.rmtree(run.path("units"), ignore_errors=True)


def _shards(run: store.Run, n_patches: int) -> dict[Path, range]:
    """The file of every shard, and its rows."""
    pieces = [range(first, min(first + SHARD, n_patches)) for first in range(0, n_patches, SHARD)]
    return {run.unit_file(f"rows-{rows.start:09d}-{rows.stop:09d}", ".npy"): rows for rows in pieces}


# ---- a finished run ----


def check_finished(run: store.Run, card: EncoderCard, device: str) -> None:
    """Refuse embeddings that today's contract or today's encoder doesn't give; without weights only the contract counts."""
    file = run.path("embeddings.h5")
    with h5py.File(file) as content:
        was = json.loads(content.attrs["card"])
        if "canary" in content:
            expected, made_with = content["canary"][:], dict(content["canary"].attrs)
        else:
            expected, made_with = content.attrs["canary"], {}
    now = json.loads(json.dumps(card.identity()))
    differing = store.changes({"card": {key: was[key] for key in now if key in was}}, {"card": now})
    if differing:
        raise store.StoreError(f"{run.folder} holds embeddings of another contract: {'; '.join(differing)}. Remove it.")
    name, state = run.identity["name"], weights.state(card)
    if not state.is_here:
        warnings.warn(
            f"{run.folder.name} is taken as it is: whether {name!r} still gives the same can't be seen here, without its "
            f"weights ({state.text})",
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
    """An encoder that gets ``size`` patches at once; the size is halved for good where memory ends."""

    encoder: network.Encoder
    size: int

    def compute(self, crops: torch.Tensor, progress: tqdm) -> torch.Tensor:
        """Embed uint8 (n, height, width, 3); gives float32 (n, n_dims) on the encoder's device, maybe still being computed.

        Raises EncoderError where not even one patch fits into memory.
        """
        parts, first = [], 0
        while first < len(crops):
            batch = crops[first : first + self.size]
            features = self._try(batch)
            if features is not None:
                parts.append(features)
                first += len(batch)
                progress.update(len(batch))
        return torch.cat(parts)

    def _try(self, batch: torch.Tensor) -> torch.Tensor | None:
        """The batch's features; None, and a smaller size from now on, where the batch doesn't fit into memory."""
        device = self.encoder.device
        try:
            return self.encoder.compute(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise EncoderError(
                    f"encoder {self.encoder.card.name!r}: not even one patch fits into the memory of {device} "
                    f"({str(error).partition(chr(10))[0][:200]}); free some, or use another device or a smaller encoder"
                ) from error
        # from here on the error, which holds on to the batch's memory, is gone
        self.size = len(batch) // 2
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ended, a GPU's or this machine's."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error).lower()


def embedded(
    batches: Batches, read: Callable[[range], torch.Tensor], shards: Iterable[range], progress: tqdm
) -> Iterator[tuple[range, np.ndarray]]:
    """Embed the rows of each shard; yields (rows, features float32 (n, n_dims)).

    read: gives the patches of some rows, uint8 (n, height, width, 3), and is called in a thread of its own, one shard
    ahead. A GPU computes a shard while the caller keeps the one before. Raises EncoderError as `Batches.compute` and
    `network.Encoder.checked` do.
    """
    is_gpu = batches.encoder.device.type == "cuda"
    n_begun = 1 if is_gpu else 0
    begun: deque[tuple[range, torch.Tensor, torch.cuda.Event | None]] = deque()

    def finish() -> tuple[range, np.ndarray]:
        rows, features, copied = begun.popleft()
        if copied is not None:
            copied.synchronize()
        return rows, batches.encoder.checked(features.numpy(), rows)

    for rows, crops in _read_ahead(read, shards):
        features, copied = batches.compute(crops, progress), None
        if is_gpu:  # the copy waits for this shard alone, not for the one that is begun next
            here = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
            here.copy_(features, non_blocking=True)
            features, copied = here, torch.cuda.current_stream(batches.encoder.device).record_event()
        begun.append((rows, features, copied))
        if len(begun) > n_begun:
            yield finish()
    while begun:
        yield finish()


def _read_ahead(read: Callable[[range], torch.Tensor], shards: Iterable[range]) -> Iterator[tuple[range, torch.Tensor]]:
    """Each shard's rows and patches; a thread reads the next shard's meanwhile."""
    with ThreadPoolExecutor(1, "read") as reader:
        ahead = None
        for rows in shards:
            following = rows, reader.submit(read, rows)
            if ahead is not None:
                yield ahead[0], ahead[1].result()
            ahead = following
        if ahead is not None:
            yield ahead[0], ahead[1].result()


def _fill(
    run: store.Run,
    card: EncoderCard,
    file: Path,
    size_px: int,
    shards: Mapping[Path, range],
    device: str,
    batch_size: int,
) -> None:
    """Make those of ``shards`` that aren't there; records how."""
    if batch_size < 0:
        raise ValueError(f"batch_size is {batch_size}; it must be 1 or more, or 0 for {BATCH_SIZES}")
    file_of = {rows: file for file, rows in shards.items()}
    missing = [rows for rows, file in file_of.items() if not file.is_file()]
    if not missing:
        return
    encoder = network.load(card, device)
    _settle_canary(run, encoder)
    batches = Batches(encoder, batch_size or BATCH_SIZES.get(encoder.device.type, BATCH_SIZES["cpu"]))
    n_patches, n_missing, n_done, begun_s = sum(map(len, file_of)), sum(map(len, missing)), 0, time.perf_counter()
    with tqdm(total=n_patches, initial=n_patches - n_missing, desc=f"embed {card.name}", unit=" patches") as progress:

        def still_missing() -> Iterator[range]:
            for rows in missing:
                if file_of[rows].is_file() or run.done:  # another job was faster
                    progress.update(len(rows))
                else:
                    yield rows

        read = _reader(file, size_px, is_pinned=encoder.device.type == "cuda")
        with contextlib.closing(embedded(batches, read, still_missing(), progress)) as computed:
            for rows, features in computed:
                with store.replacing(file_of[rows]) as aside, aside.open("wb") as out:
                    np.save(out, features)  # (n_patches of the shard, n_dims)
                n_done += len(rows)
    if n_done:
        facts = {
            "device": str(encoder.device),
            "batch_size": batches.size,
            "precision": encoder.precision,
            "n_patches": n_done,
            "patches_per_s": round(n_done / max(time.perf_counter() - begun_s, 1e-9), 2),
        }
        store.write_json(run.unit_file(f"done-{missing[0].start:09d}-{missing[-1].stop:09d}", ".json"), facts)


def _reader(file: Path, size_px: int, is_pinned: bool) -> Callable[[range], torch.Tensor]:
    """Gives the crops of some rows, uint8 (n, size_px, size_px, 3), in memory that a GPU can copy from by itself if asked."""

    def read(rows: range) -> torch.Tensor:
        crops = torch.from_numpy(np.array(patches.centre_crop(_stored(file)[rows.start : rows.stop], size_px)))
        return crops.pin_memory() if is_pinned else crops

    return read


def _settle_canary(run: store.Run, encoder: network.Encoder) -> None:
    """Keep the canary of a new run, the first of several jobs' at once; compare the encoder with the one that is kept."""
    file, answer = run.unit_file("canary", ".npz"), canary.embed(encoder)
    with store.in_turn(file.parent, "canary"):
        if not file.is_file():
            about = json.dumps({"weights": encoder.revision, **canary.versions()})
            with store.replacing(file) as aside, aside.open("wb") as out:
                np.savez(out, features=answer, about=about)
    canary.compare(encoder, answer, *_canary_of(run))


def _canary_of(run: store.Run) -> tuple[np.ndarray, dict[str, str]]:
    """Features float32 (8, n_dims) of a begun run's canary; revision of the weights and versions of torch and timm."""
    with np.load(run.unit_file("canary", ".npz")) as content:
        return content["features"], json.loads(str(content["about"]))


# ---- putting together ----


def _assemble(run: store.Run, card: EncoderCard, table: pd.DataFrame, corners_l0_px: np.ndarray, size_px: int) -> None:
    """Write ``embeddings.h5`` from the shards, one after another, and finish the run."""
    expected, about = _canary_of(run)
    with store.replacing(run.path("embeddings.h5")) as aside, h5py.File(aside, "w") as out:
        features = out.create_dataset("features", (len(table), card.n_dims), np.float32)
        for file, rows in _shards(run, len(table)).items():
            try:
                shard = np.load(file)
            except (ValueError, EOFError) as error:
                raise store.StoreError(f"{file}: damaged ({error}); remove it and embed again") from None
            if shard.shape != (len(rows), card.n_dims):
                raise store.StoreError(
                    f"{file} holds features {shard.shape}, expected {(len(rows), card.n_dims)}; remove it and embed again"
                )
            features[rows.start : rows.stop] = shard
        coords = out.create_dataset("coords", data=corners_l0_px)
        coords.attrs["name"] = "top left corner of the patch in level-0 px, x and y"
        coords.attrs["patch_size"] = size_px
        out.create_dataset("patch_id", data=table["patch_id"].to_numpy())
        out.create_dataset("slide_id", data=table["slide_id"].astype(str).to_list(), dtype=h5py.string_dtype())
        out.create_dataset("canary", data=expected).attrs.update(about)  # too large for an attribute
        out.attrs["card"] = json.dumps(as_dict(card))
        out.attrs["weights"] = about["weights"]
    jobs = [store.read_json(file) for file in sorted(run.path("units").glob("done-*.json"))]
    if not run.done:
        run.finish(["embeddings.h5"], weights=about["weights"], n_patches=len(table), jobs=jobs)
