"""Training batches: read from the patch store ahead of the step, augmented on the device, in the order of the epoch's draw."""

import collections
import contextlib
import threading
import typing
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from mfcore import augment

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
) -> "Iterator[torch.Tensor]":
    """Yield augmented batches, float32 (B, 3, input_px, input_px) in 0..1 on ``device``, one for each of ``slices``, in order.

    patches: uint8 (n, stored_px, stored_px, 3), memory-mapped or not. rows: the epoch's patches, int64 (n_epoch,); drawn:
    what is done to each of them. A thread of its own reads, so that the step doesn't wait for the disk. A CPU augments between
    two steps, each core some images; a GPU between two steps, all at once. Close the iterator where it isn't used up
    (`contextlib.closing`), and the threads end. Raises ValueError as `augment.augment` does, IndexError for rows that
    ``patches`` hasn't.
    """
    import torch

    stored = np.asarray(patches)  # a memory map as an array: each of its slices would be a memory map, slower to make
    waiting, todo = collections.deque[tuple[slice, torch.Tensor, Future[None]]](), iter(slices)

    def ask() -> None:
        if (part := next(todo, None)) is not None:
            # A GPU copies from pinned memory by itself. It's had in the caller's thread, as a new one is on the first GPU.
            there = torch.empty((len(rows[part]), *stored.shape[1:]), dtype=torch.uint8, pin_memory=device.type == "cuda")
            waiting.append((part, there, reader.submit(_read, stored, rows[part], there.numpy())))

    with _threads(1, "read") as reader, _single_threads(torch.get_num_threads() if device.type == "cpu" else 1) as cores:
        for _ in range(N_AHEAD):
            ask()
        while waiting:
            part, images, done = waiting.popleft()
            done.result()
            ask()
            yield _augment(images.to(device, non_blocking=True).permute(0, 3, 1, 2), drawn[part], input_px, cores)


@contextlib.contextmanager
def _threads(n: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """A pool of n threads; what is under way at the end is waited for, what isn't begun is dropped."""
    pool = ThreadPoolExecutor(n, name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _single_threads(n: int) -> Iterator[ThreadPoolExecutor | None]:
    """A pool of n threads in which torch starts no others, or None for one; the caller's torch has as many as before.

    A whole image a thread scales with the cores. Torch's own way, every operation on all cores, would have them wait for each
    other at each of a hundred short ones, for long where other processes are at work.
    """
    import torch

    if n == 1:
        yield None
        return
    started, before = threading.Barrier(n), torch.get_num_threads()

    def start(_: int) -> None:
        torch.set_num_threads(1)
        started.wait()  # so that each of the threads does this once

    with _threads(n, "augment") as pool:
        try:
            list(pool.map(start, range(n)))
        finally:
            torch.set_num_threads(before)  # threads that others start take after the last setting
        yield pool


def _augment(
    images: "torch.Tensor", parameters: augment.Parameters, input_px: int, cores: ThreadPoolExecutor | None
) -> "torch.Tensor":
    """`augment.augment`, to the last bit, with the images shared out among the threads of ``cores``."""
    import torch

    if cores is None:
        return augment.augment(images, parameters, input_px)
    crops = torch.empty((len(images), 3, input_px, input_px))
    n_each = -(-len(images) // torch.get_num_threads())
    parts = [slice(start, start + n_each) for start in range(0, len(images), n_each)]
    list(cores.map(lambda part: augment.augment(images[part], parameters[part], input_px, crops[part]), parts))
    return crops


def _read(stored: np.ndarray, rows: np.ndarray, into: np.ndarray) -> None:
    """Copy patches into ``into``, uint8 (B, stored_px, stored_px, 3); numpy lets other threads run meanwhile."""
    for patch, row in zip(into, rows, strict=True):
        patch[...] = stored[row]


def as_images(patches_hwc: np.ndarray, device: "torch.device") -> "torch.Tensor":
    """Patches uint8 (B, H, W, 3) as a tensor (B, 3, H, W) on ``device``."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(patches_hwc)).to(device).permute(0, 3, 1, 2)
