"""Training batches: read from the patch store ahead of the step, augmented on the device, in the
order of the epoch's draw."""

import collections
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from mfcore.data import augment

N_AHEAD = 2  # batches that are read, or being read, while the network learns from one


def batches(
    patches: np.ndarray,
    rows: np.ndarray,
    drawn: np.recarray,
    slices: list[slice],
    device: torch.device,
    input_px: int,
    elsewhere: Sequence[np.ndarray] = (),
) -> Iterator[torch.Tensor]:
    """Yield augmented batches, float32 (B, 3, input_px, input_px) in 0..1 on ``device``, one for
    each of ``slices``, in order.

    patches: uint8 (n, stored_px, stored_px, 3), memory-mapped or not. rows: the epoch's patches,
    int64 (n_epoch,); drawn: what is done to each of them. elsewhere: patches that aren't stored,
    which rows from n on count. A thread of its own reads, so that the step doesn't wait for the
    disk. Between two steps the caller's thread augments, on the cores that torch gives it: threads
    of the feed's own would take these from the step. Close the iterator where it isn't used up
    (`contextlib.closing`), and the thread ends. Raises ValueError as `augment.augment` does,
    IndexError for rows that there aren't.
    """
    # A memory map as an array: each of its slices would be a memory map, slower to make.
    stored, waiting, todo = np.asarray(patches), collections.deque(), iter(slices)
    reader = ThreadPoolExecutor(1, "read")

    def ask() -> None:
        if (part := next(todo, None)) is not None:
            # A GPU copies from pinned memory by itself. It's had in the caller's thread, as a new
            # one is on the first GPU.
            shape, pinned = (len(rows[part]), *stored.shape[1:]), device.type == "cuda"
            images = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
            done = reader.submit(_read, stored, rows[part], images.numpy(), elsewhere)
            waiting.append((part, images, done))

    try:
        for _ in range(N_AHEAD):
            ask()
        while waiting:
            part, images, done = waiting.popleft()
            done.result()
            ask()
            images = images.to(device, non_blocking=True).permute(0, 3, 1, 2)
            yield augment.augment(images, drawn[part], input_px)
    finally:
        reader.shutdown(cancel_futures=True)


def _read(
    stored: np.ndarray, rows: np.ndarray, into: np.ndarray, elsewhere: Sequence[np.ndarray]
) -> None:
    """Copy patches into ``into``, uint8 (B, stored_px, stored_px, 3); numpy lets other threads run
    meanwhile."""
    n = len(stored)
    for patch, row in zip(into, rows, strict=True):
        patch[...] = stored[row] if row < n else elsewhere[row - n]
