"""Batches of patches in the stream's order, read ahead in another: by slide and place, so that a tile is decoded once."""

import collections
import itertools
import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mfcore.pretraining.slides import PatchingError
from mfcore.pretraining.source import Drawn, Source

WINDOW_BYTES, WINDOW_PATCHES = 768 << 20, 4096  # read ahead, at most
FIRST_WINDOW_PATCHES = 256  # a training begins soon; every window is four times as long as the window before
TASK_PATCHES = 32  # read by one thread
BAND_L0_PX = 1024  # a slide is read along bands of this height for each um/px: a row of tiles of a level or so


@dataclass(frozen=True)
class Batch:
    """One step's patches of one process.

    images: uint8 (B, size_px, size_px, 3). drawn: a row a patch, with number, slide_id, um_per_px, x_l0_px, y_l0_px (centre)
    and tissue (share of the patch).
    """

    images: np.ndarray
    drawn: pd.DataFrame


def batches(
    source: Source, first: int, n_batches: int, batch_size: int, rank: int = 0, n_ranks: int = 1, n_workers: int = 1
) -> Iterator[Batch]:
    """Yield a process's share of ``n_batches`` batches of ``batch_size`` patches, whose numbers begin at ``first``.

    ``n_workers`` threads read ahead. Close the iterator where it isn't used up (`contextlib.closing`), and the threads end.
    Raises PatchingError where a batch can't be shared evenly, for no workers, and as `Source.read` does.
    """
    if batch_size % n_ranks or not 0 <= rank < n_ranks:
        raise PatchingError(f"a batch of {batch_size} can't be shared by {n_ranks} processes (this one is {rank}); change it")
    if n_workers < 1:
        raise PatchingError(f"n_workers: {n_workers} must be 1 or more; patches are read by separate threads")
    share, size_px = batch_size // n_ranks, source.settings.size_px
    if source.settings.uniform_over == "tissue":
        source.survey(n_workers)
    most = max(1, min(WINDOW_PATCHES, WINDOW_BYTES // (3 * size_px**2)) // share)  # batches
    starts = [first + k * batch_size + rank * share for k in range(n_batches)]
    parts = _parts(starts, max(1, min(most, FIRST_WINDOW_PATCHES // share)), most)
    slots = _Slots((min(most, n_batches) + 1) * share, size_px)
    pool = ThreadPoolExecutor(n_workers, "patches")

    def plan() -> "Future[_Window] | None":
        part = next(parts, None)
        return None if part is None else pool.submit(_Window, source, part, share)

    try:
        planned = plan()
        while planned is not None:
            window = planned.result()
            window.start(pool, slots)
            planned = plan()  # once this one is read
            for batch in window.batches(slots):
                if planned is not None and planned.done():
                    planned.result().start(pool, slots)
                yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _parts(starts: list[int], n: int, most: int) -> Iterator[list[int]]:
    """The batches of one window after the other, first ``n``."""
    at = 0
    while at < len(starts):
        yield starts[at : at + n]
        at, n = at + n, min(4 * n, most)


class _Slots:
    """Room for n patches, uint8 (n, size_px, size_px, 3), used again and again: new memory costs a tenth of reading."""

    def __init__(self, n: int, size_px: int):
        self.images = np.empty((n, size_px, size_px, 3), np.uint8)
        self.free = list(range(n))


class _Window:
    """Batches that are read together: planned when the window is made, read from `start` on."""

    def __init__(self, source: Source, starts: list[int], share: int):
        self._source, self._share = source, share
        numbers = [start + i for start in starts for i in range(share)]
        self._candidates = [source.candidates(number) for number in numbers]
        self._drawn = [next(candidates) for candidates in self._candidates]
        self._slots = np.zeros(len(numbers), np.intp)
        self._done: list[Future[None]] = []
        self._waiting = collections.deque[list[int]]()
        for places in self._by_slide():
            self._waiting += (places[at : at + TASK_PATCHES] for at in range(0, len(places), TASK_PATCHES))

    def start(self, pool: ThreadPoolExecutor, slots: _Slots) -> None:
        """Read as many patches as there are free slots."""
        while self._waiting and len(self._waiting[0]) <= len(slots.free):
            places = self._waiting.popleft()
            self._slots[places] = [slots.free.pop() for _ in places]
            self._done.append(pool.submit(self._read, places, slots.images))

    def batches(self, slots: _Slots) -> Iterator[Batch]:
        """The batches, once all are read; a batch's slots are free when it is yielded."""
        for done in self._done:
            done.result()
        ids = [file.slide_id for file in self._source.slides]
        for at in range(0, len(self._drawn), self._share):
            table = pd.DataFrame(self._drawn[at : at + self._share], columns=Drawn._fields)
            table.insert(1, "slide_id", [ids[i] for i in table.pop("slide")])
            used = self._slots[at : at + self._share]
            images = slots.images[used]
            slots.free += used.tolist()
            yield Batch(images, table)

    def _by_slide(self) -> list[list[int]]:
        """Places in the window, a list for each slide, in the order in which they are read fastest."""

        def order(i: int) -> tuple:
            drawn = self._drawn[i]
            band = math.floor(drawn.y_l0_px / (BAND_L0_PX * drawn.um_per_px))
            return drawn.slide, drawn.um_per_px, band, drawn.x_l0_px

        ordered = sorted(range(len(self._drawn)), key=order)
        return [list(group) for _, group in itertools.groupby(ordered, key=lambda i: self._drawn[i].slide)]

    def _read(self, places: list[int], images: np.ndarray) -> None:
        """Read places of one slide; where a place fails, the patch's next candidate, on any slide."""
        for i in places:
            first = itertools.chain([self._drawn[i]], self._candidates[i])
            self._drawn[i] = self._source.read_one(first, images[self._slots[i]])
