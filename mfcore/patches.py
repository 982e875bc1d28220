"""The patch store: every annotation's patch, row for row with the label table, in one memory-mappable array.

Reads are planned slide by slide. A slide's patches are written and synced before its name enters ``progress.txt``, so that a
kill at any moment loses the slides in hand and no more.
"""

import contextlib
import json
import math
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from mfcore import downloads, labels, store
from mfcore.config import Study, as_dict, digest
from mfcore.slides import SAME_RESOLUTION, SlideError, open_slide

T = TypeVar("T")


class PatchError(ValueError):
    """Patches can't be read, or aren't what they should be; the message names every slide or file concerned."""


def prepare(study: Study, folder: str | Path, n_workers: int = 1, host: str = downloads.GITHUB) -> Path:
    """The study's data folder: made (synthetic), fetched unless it is there (amibr), or found (midog).

    Raises LabelError or DownloadError where it can't be had, saying what is expected.
    """
    folder = Path(folder)
    if study.data.source == "synthetic":
        from mfcore import synthetic

        data = study.data
        synthetic.make_dataset(
            folder, seed=data.seed, n_slides=data.n_slides, n_annotations=data.n_annotations, n_workers=n_workers
        )
    elif study.data.source == "amibr":
        downloads.amibr(folder, host)
    elif not folder.is_dir():
        raise labels.LabelError(
            f"{folder}: no such folder; it must hold a label file ({', '.join(labels.MAIN_FILES[study.data.source])}) and the "
            f"slides it names, beside it or in images/; data that are published are fetched by: make data STUDY={study.name}"
        )
    labels.files_of(study, folder)
    return folder


def config_of(study: Study) -> dict:
    """What decides the patches, and enters the hash: everything of data and patches but the names of the classes."""
    data = {key: value for key, value in as_dict(study.data).items() if key not in ("positive", "negative")}
    patches = {**as_dict(study.patches), "stored_px": study.stored_px}
    return {"data": data, "patches": patches, "resolution": study.switches.resolution}


def find(study: Study, results: str | Path) -> store.Run:
    """The study's finished patches; raises StoreError where there are none."""
    return store.find_run(results, "patches", study.name, config_of(study))


def load(run: store.Run) -> tuple[pd.DataFrame, np.memmap]:
    """Label table and patches, uint8 (n_patches, stored_px, stored_px, 3), read from disk as they are used."""
    if not run.done:
        raise store.StoreError(f"{run.folder} is not finished; run the extraction again, it goes on where it stopped")
    return pd.read_parquet(run.path("labels.parquet")), np.load(run.path("patches.npy"), mmap_mode="r")


def centre_crop(patches: np.ndarray, size_px: int) -> np.ndarray:
    """View of the central ``size_px`` of patches (..., H, W, 3); an odd margin leaves the extra px on the right and below."""
    height, width = patches.shape[-3:-1]
    if size_px > min(height, width):
        raise PatchError(f"a crop of {size_px} px doesn't fit into patches of {height} x {width} px")
    top, left = (height - size_px) // 2, (width - size_px) // 2
    return patches[..., top : top + size_px, left : left + size_px, :]


def counts(table: pd.DataFrame) -> pd.DataFrame:
    """A row a domain: n_slides, n_positive, n_negative, positive_share."""
    by_domain = table.groupby("domain", sort=True)
    positive = by_domain["label"].sum().astype(int)
    n = by_domain["label"].size()
    columns = {"n_slides": by_domain["slide_id"].nunique(), "n_positive": positive, "n_negative": n - positive}
    return pd.DataFrame({**columns, "positive_share": positive / n}).reset_index()


def check(patches: np.ndarray, table: pd.DataFrame, n_looked_at: int = 256) -> None:
    """Refuse patches that don't stand row for row with the table, and, among some looked at, patches of a single colour."""
    if patches.ndim != 4 or patches.dtype != np.uint8 or patches.shape[1] != patches.shape[2] or patches.shape[3] != 3:
        raise PatchError(f"patches are {patches.dtype} {patches.shape}, expected uint8 (n_patches, side, side, 3)")
    if len(patches) != len(table) or not np.array_equal(table["patch_id"], np.arange(len(table))):
        raise PatchError(f"{len(patches)} patches and {len(table)} labels don't stand row for row; extract the patches again")
    rows = np.unique(np.linspace(0, len(patches) - 1, min(n_looked_at, len(patches))).astype(int))
    empty = [int(row) for row in rows if (patches[row] == patches[row, 0, 0]).all()]
    if empty:
        where = table.loc[empty[:5], ["slide_id", "x_l0_px", "y_l0_px"]].to_dict("records")
        raise PatchError(f"{len(empty)} of {len(rows)} patches looked at are of a single colour, the first: {where}")


@dataclass(frozen=True)
class _Job:
    """One slide's reads: where the px are, which rows they fill."""

    slide_id: str
    files: tuple[Path, ...]  # the slide, or a patch image for each row
    rows: np.ndarray  # (n,) rows of the store
    centres: np.ndarray  # (n, 2) level-0 px
    are_images: bool
    size_px: int
    um_per_px: float | None  # of the patches, None native
    slide_um_per_px: float | None  # where the slide doesn't say
    target: Path


@dataclass(frozen=True)
class _Found:
    """What looking at a slide, without reading its px, has shown."""

    problems: tuple[str, ...] = ()
    um_per_px: float = math.nan
    stated: bool = False
    n_over_edge: int = 0


def extract(study: Study, folder: str | Path, results: str | Path, n_workers: int = 1) -> store.Run:
    """Read every annotation's patch: ``patches.npy``, uint8 (n_patches, stored_px, stored_px, 3), and ``labels.parquet``.

    Goes on where it stopped. Raises LabelError for bad labels and PatchError, naming every bad slide at once and before
    anything is read, for slides that are damaged or without um/px.
    """
    folder = Path(folder)
    table = labels.load(study, folder)
    run = store.open_run(results, "patches", study.name, config_of(study), _fingerprint(study, folder, table))
    if run.done:
        return run
    jobs = _plan(study, folder, table, run.path("patches.partial.npy"))
    with _pool(n_workers, len(jobs)) as pool:
        found = _look(jobs, pool)
        if not run.path("patches.npy").is_file():
            _read_all(run, jobs, (len(table), study.stored_px, study.stored_px, 3), pool)
            run.path("patches.partial.npy").replace(run.path("patches.npy"))
    table["um_per_px"] = table["slide_id"].map({slide_id: each.um_per_px for slide_id, each in found.items()})
    store.write_parquet(run.path("labels.parquet"), table)
    run.finish(
        ["labels.parquet", "patches.npy"],
        n_patches=len(table),
        domains=counts(table).to_dict("records"),
        um_per_px_said_by_study=[slide_id for slide_id, each in found.items() if not each.stated and each.um_per_px > 0],
        n_patches_over_edge=sum(each.n_over_edge for each in found.values()),
    )
    run.path("progress.txt").unlink(missing_ok=True)
    return run


def _fingerprint(study: Study, folder: Path, table: pd.DataFrame) -> dict[str, str]:
    """Stands for the data: the label file's checksum; names and sizes of the files its rows name."""
    sizes = {file: (folder / file).stat().st_size for file in sorted(table["file"].unique())}
    return {**{file.name: store.file_sha256(file) for file in labels.files_of(study, folder)}, "files": digest(sizes)}


def _plan(study: Study, folder: Path, table: pd.DataFrame, target: Path) -> list[_Job]:
    """One job a slide, in the table's order."""
    are_images = study.data.source == "amibr"
    native = are_images or study.switches.resolution == "native"
    jobs = []
    for slide_id, rows in table.groupby("slide_id", sort=False):
        jobs.append(
            _Job(
                slide_id=str(slide_id),
                files=tuple(folder / file for file in (rows["file"] if are_images else rows["file"].unique())),
                rows=rows["patch_id"].to_numpy(),
                centres=rows[["x_l0_px", "y_l0_px"]].to_numpy(),
                are_images=are_images,
                size_px=study.stored_px,
                um_per_px=None if native else study.patches.um_per_px,
                slide_um_per_px=study.data.um_per_px,
                target=target,
            )
        )
    said = study.data.um_per_px, study.patches.um_per_px
    if (
        are_images
        and None not in said
        and abs(said[0] / said[1] - 1) > SAME_RESOLUTION
        and study.switches.resolution == "target"
    ):
        raise PatchError(
            f"patch images are not resampled: data.um_per_px is {said[0]}, patches.um_per_px {said[1]}; make them equal"
        )
    return jobs


def _look(jobs: list[_Job], pool: ProcessPoolExecutor | None) -> dict[str, _Found]:
    """Look at every slide before anything is read; raises one PatchError that lists all that is wrong."""
    found = {}
    bar = tqdm(total=len(jobs), desc="slides checked", unit="slide", leave=False)
    with bar:
        for job, result in _each(_look_at, jobs, pool):
            found[job.slide_id] = result
            bar.update()
    _refuse([problem for job in jobs for problem in found[job.slide_id].problems])
    return {job.slide_id: found[job.slide_id] for job in jobs}


def _refuse(problems: list[str]) -> None:
    """Raise one PatchError for all ``problems``."""
    if problems:
        more = f"\n  ... and {len(problems) - 50} more" if len(problems) > 50 else ""
        raise PatchError(f"{len(problems)} files can't be used:\n  " + "\n  ".join(problems[:50]) + more)


def _look_at(job: _Job) -> _Found:
    """Open a slide, or a slide's patch images, without reading px."""
    if job.are_images:
        problems = tuple(problem for file in job.files if (problem := _image_problem(file, job.size_px)))
        return _Found(problems, math.nan if job.slide_um_per_px is None else job.slide_um_per_px)
    try:
        with open_slide(job.files[0], job.slide_um_per_px) as slide:
            side = job.size_px * (1.0 if job.um_per_px is None else job.um_per_px / slide.um_per_px)
            off = np.maximum(-job.centres, job.centres - slide.size_px).max(axis=1)  # (n,) > 0: outside
            found = _Found((), slide.um_per_px, slide.states_um_per_px, int((off > -side / 2).sum()))
            width, height = slide.size_px
    except SlideError as error:
        return _Found(problems=(str(error),))
    if off.max() > labels.MAX_OFF_SLIDE_PX:
        x, y = job.centres[off.argmax()]
        problem = f"{job.files[0]}: is {width} x {height} px, a label lies at ({x:g}, {y:g}); these labels are of another image"
        return _Found(problems=(problem,))
    return found


def _image_problem(file: Path, size_px: int) -> str | None:
    """What is wrong with a patch image, None if nothing."""
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


def _read_all(run: store.Run, jobs: list[_Job], shape: tuple[int, ...], pool: ProcessPoolExecutor | None) -> None:
    """Fill the partial array with what isn't in it yet; slides that fail to be read are named together at the end."""
    partial, progress = run.path("patches.partial.npy"), run.path("progress.txt")
    done = _begin(partial, progress, shape)
    waiting = [job for job in jobs if job.slide_id not in done]
    problems = []
    n_done = shape[0] - sum(len(job.rows) for job in waiting)
    bar = tqdm(total=shape[0], initial=n_done, desc="patches", unit="patch")
    with bar, progress.open("a", encoding="utf-8") as finished:
        for job, problem in _each(_read_into, waiting, pool):
            if problem:
                problems.append(problem)
                continue
            finished.write(json.dumps(job.slide_id) + "\n")
            finished.flush()
            os.fsync(finished.fileno())
            bar.update(len(job.rows))
    _refuse(problems)


def _begin(partial: Path, progress: Path, shape: tuple[int, ...]) -> set[str]:
    """Make the partial array, or take up the one there is; returns the slides that are in it."""
    try:
        np.load(partial, mmap_mode="r")  # refuses a header or a length that the kill left unfinished
        resumed = progress.is_file()
    except (OSError, ValueError):
        resumed = False
    if resumed:
        # A line without its end was being written at the kill; its slide is read again.
        lines = [line for line in progress.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        progress.write_text("".join(lines), encoding="utf-8")
        return {json.loads(line) for line in lines}
    progress.unlink(missing_ok=True)
    partial.unlink(missing_ok=True)
    free = shutil.disk_usage(partial.parent).free
    if free < math.prod(shape):
        raise PatchError(f"{partial.parent}: the patches need {math.prod(shape):,} bytes, {free:,} are free; make room")
    np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
    return set()


def _read_into(job: _Job) -> str | None:
    """Read one slide's patches into their rows, synced to disk; returns what is wrong with the slide, None if nothing.

    Written with ``write``, not through the map: a full disk is then an error with a name, not a crash.
    """
    array = np.load(job.target, mmap_mode="r")
    with job.target.open("r+b") as target:
        try:
            for row, patch in zip(job.rows, _patches_of(job), strict=True):
                target.seek(array.offset + int(row) * patch.nbytes)
                target.write(patch.tobytes())
        except (SlideError, PatchError) as error:
            return str(error)
        target.flush()
        os.fsync(target.fileno())
    return None


def _patches_of(job: _Job) -> Iterator[np.ndarray]:
    """The patches of one job, uint8 (size_px, size_px, 3) each, in the order of its rows."""
    if job.are_images:
        for file in job.files:
            try:
                with Image.open(file) as image:
                    yield np.asarray(image)
            except OSError as error:
                raise PatchError(f"{file}: damaged ({error}); fetch it again") from None
        return
    with open_slide(job.files[0], job.slide_um_per_px) as slide:
        for x_l0_px, y_l0_px in job.centres:
            yield slide.read(x_l0_px, y_l0_px, job.size_px, job.um_per_px)


@contextlib.contextmanager
def _pool(n_workers: int, n_jobs: int) -> Iterator[ProcessPoolExecutor | None]:
    """New processes to work in, or None for this one; what waits when the block is left by an error is dropped."""
    if n_workers <= 1 or n_jobs <= 1:
        yield None
        return
    pool = ProcessPoolExecutor(min(n_workers, n_jobs), mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _each(work: Callable[[_Job], T], jobs: list[_Job], pool: ProcessPoolExecutor | None) -> Iterator[tuple[_Job, T]]:
    """``work`` on every job, as each gets done."""
    if pool is None:
        for job in jobs:
            yield job, work(job)
        return
    waiting = {pool.submit(work, job): job for job in jobs}
    try:
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    except BrokenProcessPool:
        raise PatchError(
            "a worker process died (out of memory?); run again with fewer workers: it goes on where it stopped"
        ) from None
