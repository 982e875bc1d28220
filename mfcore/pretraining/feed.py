"""Batches of patches in the stream's order, read ahead by slide and place.

A tile that several patches share is decoded once.
"""

import itertools
import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mfcore.pretraining.source import Source

WINDOW_BYTES, WINDOW_PATCHES = 384 << 20, 2048  # of the patches that are read together, at most
FIRST_PATCHES = 256  # a training begins soon; every window is four times as long as the one before
TASK_PATCHES = 32  # read by one thread
BAND_L0_PX = 1024  # height, for each um/px, of the bands in which a slide is read: a row of tiles


@dataclass(frozen=True)
class Batch:
    """One step's patches of one process.

    images: uint8 (B, size_px, size_px, 3). drawn: a row a patch, with number, slide_id,
    um_per_px, x_l0_px, y_l0_px (centre) and tissue (share of the patch).
    """

    images: np.ndarray
    drawn: pd.DataFrame


def batches(
    source: Source,
    first: int,
    n_batches: int,
    batch_size: int,
    rank: int = 0,
    n_ranks: int = 1,
    n_workers: int = 1,
) -> Iterator[Batch]:
    """Yield a process's share of ``n_batches`` batches of ``batch_size`` patches.

    first: number of the first patch. ``n_workers`` threads read ahead. Close the iterator where
    it isn't used up (`contextlib.closing`), and the threads end. Raises PatchingError as
    `Source.read` does.
    """
    share, patch_bytes = batch_size // n_ranks, 3 * source.settings.size_px**2
    most = max(1, min(WINDOW_PATCHES, WINDOW_BYTES // patch_bytes) // share)  # batches
    starts = [first + k * batch_size + rank * share for k in range(n_batches)]
    pool = ThreadPoolExecutor(n_workers, "patches")

    def windows() -> Iterator[_Window | None]:
        at, n = 0, max(1, min(most, FIRST_PATCHES // share))
        while at < n_batches:
            numbers = [start + i for start in starts[at : at + n] for i in range(share)]
            yield _Window(source, pool, numbers)
            at, n = at + n, min(4 * n, most)
        yield None

    try:
        for window, _ in itertools.pairwise(windows()):  # the next is read meanwhile
            for done in window.done:
                done.result()
            for at in range(0, len(window.drawn), share):
                part = slice(at, at + share)
                yield Batch(window.images[part], source.table_of(window.drawn[part]))
    finally:
        pool.shutdown(cancel_futures=True)


class _Window:
    """Patches that are read together; reading begins at once, and is over when all is ``done``."""

    def __init__(self, source: Source, pool: ThreadPoolExecutor, numbers: list[int]):
        self.source, size_px = source, source.settings.size_px
        self.candidates = [source.candidates(number) for number in numbers]
        self.drawn = [next(candidates) for candidates in self.candidates]
        self.images = np.empty((len(numbers), size_px, size_px, 3), np.uint8)
        self.done: list[Future[None]] = []
        ordered = sorted(range(len(numbers)), key=self._order)
        for _, group in itertools.groupby(ordered, key=lambda i: self.drawn[i].slide):
            places = list(group)
            for at in range(0, len(places), TASK_PATCHES):
                self.done.append(pool.submit(self._read, places[at : at + TASK_PATCHES]))

    def _order(self, i: int) -> tuple:
        """What sorts patches as they are read fastest."""
        drawn = self.drawn[i]
        band = math.floor(drawn.y_l0_px / (BAND_L0_PX * drawn.um_per_px))
        return drawn.slide, drawn.um_per_px, band, drawn.x_l0_px

    def _read(self, part: list[int]) -> None:
        """Read places of one slide; where a place fails, the patch's next candidate, anywhere."""
        for i in part:
            candidates = itertools.chain([self.drawn[i]], self.candidates[i])
            self.drawn[i] = self.source.read_one(candidates, self.images[i])
