"""Training batches: read from the patch store ahead of the step, augmented on the device, in the order of the epoch's draw."""

import collections
import contextlib
import typing
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from mfcore.data import augment

if typing.TYPE_CHECKING:
    import torch

N_AHEAD = 2  # batches that are read, or being read, while the network learns from one


def batches(
    patches: np.ndarray,
    rows: np.ndarray,
    drawn: augment.Parameters,
    slices: list[slice],
    device: "torch.device",
    input_px: int,
    elsewhere: np.ndarray | None = None,
) -> "Iterator[torch.Tensor]":
    """Yield augmented batches, float32 (B, 3, input_px, input_px) in 0..1 on ``device``, one for each of ``slices``, in order.

    patches: uint8 (n, stored_px, stored_px, 3), memory-mapped or not. rows: the epoch's patches, int64 (n_epoch,); drawn:
    what is done to each of them. elsewhere: patches that aren't stored, which rows from n on count. A thread of its own reads,
    so that the step doesn't wait for the disk. Between two steps the caller's thread augments, on the cores that torch gives
    it: threads of the feed's own would take these from the step. Close the iterator where it isn't used up
    (`contextlib.closing`), and the thread ends. Raises ValueError as `augment.augment` does, IndexError for rows that there
    aren't.
    """
    import torch

    stored = np.asarray(patches)  # a memory map as an array: each of its slices would be a memory map, slower to make
    waiting, todo = collections.deque[tuple[slice, torch.Tensor, Future[None]]](), iter(slices)

    def ask() -> None:
        if (part := next(todo, None)) is not None:
            # A GPU copies from pinned memory by itself. It's had in the caller's thread, as a new one is on the first GPU.
            there = torch.empty((len(rows[part]), *stored.shape[1:]), dtype=torch.uint8, pin_memory=device.type == "cuda")
            waiting.append((part, there, reader.submit(_read, stored, rows[part], there.numpy(), elsewhere)))

    with _threads(1, "read") as reader:
        for _ in range(N_AHEAD):
            ask()
        while waiting:
            part, images, done = waiting.popleft()
            done.result()
            ask()
            yield augment.augment(images.to(device, non_blocking=True).permute(0, 3, 1, 2), drawn[part], input_px)


@contextlib.contextmanager
def _threads(n: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """A pool of n threads; what is under way at the end is waited for, what isn't begun is dropped."""
    pool = ThreadPoolExecutor(n, name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(stored: np.ndarray, rows: np.ndarray, into: np.ndarray, elsewhere: np.ndarray | None) -> None:
    """Copy patches into ``into``, uint8 (B, stored_px, stored_px, 3); numpy lets other threads run meanwhile."""
    for patch, row in zip(into, rows, strict=True):
        patch[...] = stored[row] if elsewhere is None or row < len(stored) else elsewhere[row - len(stored)]


def as_images(patches_hwc: np.ndarray, device: "torch.device") -> "torch.Tensor":
    """Patches uint8 (B, H, W, 3) as a tensor (B, 3, H, W) on ``device``."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(patches_hwc)).to(device).permute(0, 3, 1, 2)
