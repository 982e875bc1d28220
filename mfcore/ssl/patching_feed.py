"""Batches of patches in the stream's order, read ahead in another: by slide and place, so that a tile is decoded once."""

import collections
import itertools
import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mfcore.slides import SlideError
from mfcore.ssl.patching_slides import PatchingError
from mfcore.ssl.patching_source import Drawn, Source

WINDOW_BYTES, WINDOW_PATCHES = 96 << 20, 1024  # read ahead at once, at most; two windows are under way
TASK_PATCHES = 32  # read by one thread, one after another
BAND_L0_PX = 1024  # a slide is read along bands of this height for each um/px: a row of tiles of a level or so


@dataclass(frozen=True)
class Batch:
    """One step's patches of one process. images: uint8 (B, size_px, size_px, 3). drawn: a row a patch, number, slide_id,
    um_per_px, x_l0_px, y_l0_px (centre), tissue (share)."""

    images: np.ndarray
    drawn: pd.DataFrame


def batches(
    source: Source, first: int, n_batches: int, batch_size: int, rank: int = 0, n_ranks: int = 1, n_workers: int = 1
) -> Iterator[Batch]:
    """Yield a process's share of ``n_batches`` batches: of each batch_size numbers from ``first`` on, the rank's part of them.

    ``n_workers`` threads read ahead. Close the iterator where it isn't used up (`contextlib.closing`), and the threads end.
    Raises PatchingError where a batch can't be shared evenly, for no workers, and as `Source.read` does.
    """
    if batch_size % n_ranks or not 0 <= rank < n_ranks:
        raise PatchingError(f"a batch of {batch_size} can't be shared by {n_ranks} processes (this one is {rank}); change it")
    if n_workers < 1:
        raise PatchingError(f"n_workers: {n_workers} must be 1 or more; patches are read by threads of their own")
    share, size_px = batch_size // n_ranks, source.settings.size_px
    n_in_window = max(1, min(WINDOW_PATCHES, WINDOW_BYTES // (3 * size_px**2)) // share)  # batches
    if source.settings.uniform_over == "tissue":
        source.survey(n_workers)
    starts = [first + k * batch_size + rank * share for k in range(n_batches)]
    parts = iter([starts[at : at + n_in_window] for at in range(0, n_batches, n_in_window)])
    pool = ThreadPoolExecutor(n_workers, "patches")
    waiting = collections.deque[_Window]()
    try:
        for part in itertools.islice(parts, 2):
            waiting.append(_Window(source, part, share, pool))
        while waiting:
            window = waiting.popleft()
            yield from window.batches()
            if part := next(parts, None):
                waiting.append(_Window(source, part, share, pool))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Window:
    """Some batches that are read together."""

    def __init__(self, source: Source, starts: list[int], share: int, pool: ThreadPoolExecutor):
        self._source, self._share = source, share
        numbers = [start + i for start in starts for i in range(share)]
        size_px = source.settings.size_px
        self._images = np.empty((len(starts), share, size_px, size_px, 3), np.uint8)
        self._flat = self._images.reshape(-1, size_px, size_px, 3)
        self._candidates = [source.candidates(number) for number in numbers]
        self._drawn = [next(candidates) for candidates in self._candidates]
        self._done: list[Future[None]] = []
        for places in self._by_slide():
            announced = self._announce(places, opens=False)  # those of the window before are still being read: both may share
            for at in range(0, len(places), TASK_PATCHES):
                part = places[at : at + TASK_PATCHES]
                self._done.append(pool.submit(self._read, part, announced))

    def batches(self) -> Iterator[Batch]:
        """The batches, once all are read."""
        for done in self._done:
            done.result()
        ids = [file.slide_id for file in self._source.slides]
        for k, images in enumerate(self._images):
            table = pd.DataFrame(self._drawn[k * self._share : (k + 1) * self._share], columns=Drawn._fields)
            table.insert(1, "slide_id", [ids[i] for i in table.pop("slide")])
            yield Batch(images, table)

    def _by_slide(self) -> list[list[int]]:
        """Places in the window, of each slide by themselves, in the order in which they are best read."""

        def order(i: int) -> tuple:
            drawn = self._drawn[i]
            band = math.floor(drawn.y_l0_px / (BAND_L0_PX * drawn.um_per_px))
            return drawn.slide, drawn.um_per_px, band, drawn.x_l0_px

        ordered = sorted(range(len(self._drawn)), key=order)
        return [list(group) for _, group in itertools.groupby(ordered, key=lambda i: self._drawn[i].slide)]

    def _announce(self, places: list[int], opens: bool) -> bool:
        """Tell a slide what will be read of it, if it is open or shall be opened; returns whether that was done."""
        file = self._source.slides[self._drawn[places[0]].slide]
        if not opens and not self._source.open.is_open(file):
            return False
        try:
            with self._source.open.use(file) as slide:
                self._source.announce(slide, [self._drawn[i] for i in places])
        except (SlideError, OSError):
            return False
        return True

    def _read(self, places: list[int], announced: bool) -> None:
        """Read some places of one slide; where one fails, its next candidate, wherever that is."""
        if not announced and len(places) > 1:
            self._announce(places, opens=True)
        for i in places:
            first = itertools.chain([self._drawn[i]], self._candidates[i])
            self._drawn[i], self._flat[i] = self._source.read_one(first)
