"""Slides read into the patch store: each slide is checked first, then threads read it in batches.

A batch is a part of one slide's annotations, in the order of `mfcore.data.slides.slide.Slide.plan`; the batches of one slide
share the open slide. A batch's patches are on disk before its rows enter ``progress.txt``: a kill at any moment loses the
batches in hand and no more. The next run plans the missing rows anew.
"""

import contextlib
import json
import math
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm
from tqdm.contrib.concurrent import thread_map

from mfcore.data.labels.table import MAX_OFF_SLIDE_PX
from mfcore.data.slides.slide import Memory, Slide, SlideError, UnstatedResolution, open_slide
from mfcore.store import replacing

RULE = 3
"""Raise it when the same slides would give other px: a store that was begun by an earlier rule is then begun anew."""
BATCH_PATCHES = (16, 256)  # least and largest number in a batch; between them, eight batches a thread


class PatchError(ValueError):
    """Patches can't be read, or are wrong; the message names every slide or file concerned."""


class DiskError(RuntimeError):
    """The store can't be written; the message says why and what to do."""


@dataclass(frozen=True)
class Job:
    """The reads of one slide.

    files: the slide, or a patch image for each row. rows: of the store, int (n,). centres: float (n, 2) of x, y in level-0 px.
    um_per_px: of the patches, None native. slide_um_per_px: of a slide whose file doesn't state it.
    inside_px: the side, in px of the patches, that is moved to lie inside the slide; None moves nothing.
    outside: grey level, 0 to 255, of what lies outside the slide.
    from_scanned_area: whether the centres count from the corner of the slide's scanned area.
    """

    slide_id: str
    scanner: str
    files: tuple[Path, ...]
    rows: np.ndarray
    centres: np.ndarray
    are_images: bool
    size_px: int
    um_per_px: float | None
    slide_um_per_px: float | None
    inside_px: int | None
    outside: int = 255
    from_scanned_area: bool = False


@dataclass(frozen=True)
class Found:
    """The facts of a slide, or its problems, as known before its px are read.

    centres: float (n, 2), where the patches are read, in level-0 px. n_over_edge: stored patches that reach over the border.
    scanned_at_px: corner (x, y) of the scanned area in level-0 px.
    in_one_go: whether the slide is decoded whole, so that one thread reads it from beginning to end.
    """

    problems: tuple[str, ...] = ()
    um_per_px: float = math.nan
    is_stated: bool = False
    centres: np.ndarray = field(default_factory=lambda: np.empty((0, 2)))
    n_over_edge: int = 0
    scanned_at_px: tuple[int, int] = (0, 0)
    in_one_go: bool = False


def look(jobs: list[Job], n_workers: int) -> list[Found]:
    """Open every slide before any px are read; raises one PatchError that lists all problems."""
    found = thread_map(_look_at, jobs, max_workers=n_workers, desc="slides checked", unit="slide", leave=False)
    _refuse([problem for each in found for problem in each.problems])
    return found


def _refuse(problems: list[str]) -> None:
    """Raise one PatchError for all ``problems``."""
    if problems:
        more = f"\n  ... and {len(problems) - 50} more" if len(problems) > 50 else ""
        raise PatchError(f"{len(problems)} files can't be used:\n  " + "\n  ".join(problems[:50]) + more)


def _look_at(job: Job) -> Found:
    """Open a slide, or a slide's patch images, without reading px."""
    if job.are_images:
        problems = tuple(problem for file in job.files if (problem := _image_problem(file, job.size_px)))
        return Found(problems, math.nan if job.slide_um_per_px is None else job.slide_um_per_px, centres=job.centres)
    try:
        with open_slide(job.files[0], job.slide_um_per_px, scanner=job.scanner) as slide:
            scanned_at_px = slide.reader.scanned_at_px
            centres = job.centres + scanned_at_px if job.from_scanned_area else job.centres
            off = np.maximum(-centres, centres - slide.size_px).max(axis=1)  # (n,) > 0: outside
            if off.max() > MAX_OFF_SLIDE_PX:
                (x, y), (width, height) = centres[off.argmax()], slide.size_px
                counted = f", counted from the scanned area's corner {scanned_at_px}" if job.from_scanned_area else ""
                return Found(
                    problems=(
                        f"{job.files[0]}: is {width} x {height} px, a label lies at ({x:g}, {y:g}){counted}; these labels are "
                        "of another image",
                    )
                )
            centres = centres if job.inside_px is None else slide.inside(centres, job.inside_px, job.um_per_px)
            n_over_edge = int(slide.reaches_over(centres, job.size_px, job.um_per_px).sum())
            in_one_go = slide.reader.n_bytes_whole > 0
            return Found((), slide.um_per_px, slide.states_um_per_px, centres, n_over_edge, scanned_at_px, in_one_go)
    except UnstatedResolution as error:
        return Found(problems=(f"{error} (slide {job.slide_id}, scanner {job.scanner or 'unknown'})",))
    except SlideError as error:
        return Found(problems=(str(error),))


def _image_problem(file: Path, size_px: int) -> str | None:
    """The problem of a patch image, None without one."""
    try:
        with Image.open(file) as image:
            shape, mode = image.size, image.mode
    except OSError as error:
        return f"{file}: not an image that can be read ({error}); fetch it again"
    if shape != (size_px, size_px) or mode != "RGB":
        return (
            f"{file}: {shape[0]} x {shape[1]} px, {mode}; the study stores {size_px} px, RGB (set patches.size_px to the "
            "images' side, and each network's input_px so that its rotated crop fits)"
        )
    return None


def read_all(target: Path, progress: Path, jobs: list[Job], found: list[Found], size_px: int, n_workers: int) -> None:
    """Fill the rows of the array ``target``, uint8 (n_patches, size_px, size_px, 3), that ``progress`` doesn't list.

    Raises one PatchError for all slides that can't be read, after all other slides were read.
    """
    shape = (sum(len(job.rows) for job in jobs), size_px, size_px, 3)
    is_done = _begin(target, progress, shape)
    work = _Work(target, Memory())
    fewest, most = BATCH_PATCHES
    n_in_batch = min(max(math.ceil((~is_done).sum() / (8 * n_workers)), fewest), most)
    sources, batches = [], []
    for job, each in zip(jobs, found, strict=True):
        left = np.flatnonzero(~is_done[job.rows])
        n_batches = min(len(left), 1) if each.in_one_go else math.ceil(len(left) / n_in_batch)
        sources.append(_Source(job, each.centres, left, n_batches, work.memory))
        batches += [(sources[-1], number) for number in range(n_batches)]
    problems: dict[str, None] = {}  # in order, each once
    bar = tqdm(total=shape[0], initial=int(is_done.sum()), desc="patches", unit="patch")
    with bar, work, progress.open("a", encoding="utf-8") as finished:
        try:
            for done in _read_each(work, batches, n_workers):
                work.sync()  # while the threads go on
                for rows, problem in done:
                    if problem:
                        problems[problem] = None
                    else:
                        finished.write(json.dumps(rows) + "\n")
                        bar.update(len(rows))
                finished.flush()
                os.fsync(finished.fileno())
        finally:
            for source in sources:
                source.close()
    _refuse(list(problems))


def _begin(target: Path, progress: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Make the array, or continue an earlier one; returns whether each row is filled, bool (n_patches,)."""
    begun = json.dumps({"rule": RULE, "shape": shape}) + "\n"
    with contextlib.suppress(OSError, ValueError, IndexError):
        return _take_up(target, progress, shape, begun)
    progress.unlink(missing_ok=True)
    target.unlink(missing_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < math.prod(shape):
        raise PatchError(f"{target.parent}: the patches need {math.prod(shape):,} bytes, {free:,} are free; make room")
    np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=shape)
    progress.write_text(begun, encoding="utf-8")
    return np.zeros(shape[0], dtype=bool)


def _take_up(target: Path, progress: Path, shape: tuple[int, ...], begun: str) -> np.ndarray:
    """The rows that an earlier run filled; raises OSError, ValueError or IndexError where its files can't be continued."""
    array = np.load(target, mmap_mode="r")  # refuses a header or a length that the kill left unfinished
    first, *lines = progress.read_text(encoding="utf-8").splitlines(keepends=True)
    if array.shape != shape or array.dtype != np.uint8 or first != begun:
        raise ValueError("begun in another way")
    lines = [line for line in lines if line.endswith("\n")]  # one without was being written at the kill
    is_done = np.zeros(shape[0], dtype=bool)
    for line in lines:
        is_done[np.array(json.loads(line), dtype=np.int64)] = True
    with replacing(progress) as aside:
        aside.write_text("".join([first, *lines]), encoding="utf-8")
    return is_done


class _Source:
    """A slide, or its patch images: the first batch opens it, the last one closes it.

    left: the annotations still to read, as places in the job. A slide that failed once is read no further.
    """

    def __init__(self, job: Job, centres: np.ndarray, left: np.ndarray, n_batches: int, memory: Memory):
        self.job = job
        self.problem = ""
        self._centres = centres
        self._left = left
        self._n_batches = n_batches
        self._n_waiting = n_batches
        self._memory = memory
        self._slide: Slide | None = None
        self._order = np.arange(len(left))
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def batch(self, number: int) -> Iterator[np.ndarray]:
        """The annotations of batch ``number``, as places in the job, while the slide is open."""
        try:
            with self._lock:
                if self._slide is None and not self.job.are_images and not self.problem:
                    job = self.job
                    self._slide = open_slide(job.files[0], job.slide_um_per_px, self._memory, job.outside)
                    self._order = self._slide.plan(self._centres[self._left], self.job.size_px, self.job.um_per_px)
            yield self._left[np.array_split(self._order, self._n_batches)[number]]
        finally:
            with self._lock:
                self._n_waiting -= 1
            if self._n_waiting == 0:
                self.close()

    def close(self) -> None:
        """Close the slide if it is open."""
        with self._lock:
            if self._slide is not None:
                self._slide.close()
                self._slide = None

    def patch(self, place: int) -> np.ndarray:
        """One patch, uint8 (size_px, size_px, 3)."""
        if self._slide is not None:
            return self._slide.read(*self._centres[place], self.job.size_px, self.job.um_per_px)
        file = self.job.files[place]
        try:
            with Image.open(file) as image:
                return np.asarray(image)
        except OSError as error:
            raise PatchError(f"{file}: damaged ({error}); fetch it again") from None


class _Work:
    """The open array, and the state that its writing threads share."""

    def __init__(self, target: Path, memory: Memory):
        self.memory = memory
        self._target = target
        self._offset = int(np.load(target, mmap_mode="r").offset)  # of row 0
        self._is_given_up = False

    def __enter__(self) -> "_Work":
        self._array = os.open(self._target, os.O_WRONLY)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._array)

    def give_up(self) -> None:
        """Let the current batches end early."""
        self._is_given_up = True
        self.memory.lift()

    def read(self, batch: tuple[_Source, int]) -> tuple[list[int], str]:
        """Write one batch into its rows; returns the rows, or the problem of the slide.

        Written by ``pwrite``, not through the map: a full disk is then an error with a name, not a crash.
        """
        source, number = batch
        rows = []
        try:
            with source.batch(number) as places:
                for place in places:
                    if source.problem or self._is_given_up:
                        return [], source.problem
                    patch = source.patch(place)
                    rows.append(int(source.job.rows[place]))
                    self._write(patch, rows[-1])
        except (SlideError, PatchError) as error:
            source.problem = source.problem or str(error)
            return [], source.problem
        return rows, ""

    def sync(self) -> None:
        """Wait until all written rows are on disk."""
        with self._disk():
            os.fsync(self._array)

    def _write(self, patch: np.ndarray, row: int) -> None:
        """Write a whole patch, of which the system may take parts."""
        rest, offset = memoryview(np.ascontiguousarray(patch)).cast("B"), self._offset + row * patch.nbytes
        while rest:
            with self._disk():
                n_bytes = os.pwrite(self._array, rest, offset)
            rest, offset = rest[n_bytes:], offset + n_bytes

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        """Turn an OSError into DiskError with the file's name."""
        try:
            yield
        except OSError as error:
            raise DiskError(f"{self._target}: {error}; make room and run again, it goes on where it stopped") from None


def _read_each(work: _Work, batches: list[tuple[_Source, int]], n_workers: int) -> Iterator[list[tuple[list[int], str]]]:
    """Read every batch in ``n_workers`` threads; yields lists of new results of `_Work.read` until all are done.

    After an error, the batches in work end early and those that wait are dropped.
    """
    pool = ThreadPoolExecutor(n_workers)
    try:
        waiting = {pool.submit(work.read, batch) for batch in batches}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            failed = [each for each in done if each.exception()]
            yield [each.result() for each in done if each not in failed]
            for each in failed:
                each.result()  # raises
    except BaseException:
        work.give_up()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
