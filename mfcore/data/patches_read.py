"""Slides read into the patch store: each slide is checked first, then threads read it in batches.

A batch is a part of one slide's annotations, in the order of `mfcore.data.slides.slide.Slide.plan`.
A batch's patches are on disk before its rows enter ``progress.txt``: a kill at any moment loses the
batches not yet written and no more.
"""

import json
import math
import os
import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from tqdm.auto import tqdm
from tqdm.contrib.concurrent import thread_map

from mfcore.data.labels.table import MAX_OFF_SLIDE_PX
from mfcore.data.slides.reader import colour_problem
from mfcore.data.slides.slide import MAX_ENLARGED, SAME_RESOLUTION, Slide, SlideError, open_slide
from mfcore.store import replacing

RULE = 3
"""Raise it when the same slides would give other px: a store begun by an earlier rule is begun
anew.
"""
MAX_RESAMPLED = 20  # times the study's um/px, or a part of it: more is a wrong unit
BATCH_PATCHES = 128  # at most; 20 MB of patches of 224 px


class PatchError(ValueError):
    """Patches can't be read, or are wrong; the message names every slide or file concerned."""


class DiskError(RuntimeError):
    """The store can't be written; the message says why and what to do."""


@dataclass(frozen=True)
class Reading:
    """How patches are read.

    stored_px: side of a patch in px. size_px: side of its central part that encoders see.
    um_per_px: resolution to which slides are resampled; None: as scanned. outside: grey value of
    what lies outside a slide. shifts_inward: move a patch inward at its slide's border until its
    central part fits. are_images: the files are patch images. fit: how these become ``stored_px``
    square, as `mfcore.data.options.Patches`. slide_um_per_px, um_per_px_by_scanner: resolution of
    slides that don't state their own; that of the scanner goes first, and before it the label
    table's, where it has one. origin: where labels count px
    from, one of `mfcore.data.options.ORIGINS`; None counts from the slide's corner, and warns.
    """

    stored_px: int = 224
    size_px: int = 224
    um_per_px: float | None = 0.25
    outside: int = 255
    shifts_inward: bool = False
    are_images: bool = False
    fit: str | None = None
    slide_um_per_px: float | None = None
    um_per_px_by_scanner: Mapping[str, float] = field(default_factory=dict)
    origin: str | None = None

    def open(self, folder: Path, rows: pd.DataFrame) -> Slide:
        """The slide of some rows of a label table; raises SlideError."""
        file, scanner = rows["file"].iloc[0], str(rows["scanner"].iloc[0])
        um_per_px = self.um_per_px_by_scanner.get(scanner, self.slide_um_per_px)
        if "um_per_px" in rows and np.isfinite(stated := rows["um_per_px"].iloc[0]):
            um_per_px = float(stated)
        return open_slide(folder / file, um_per_px, outside=self.outside, scanner=scanner)

    def moved(self, slide: Slide, centres: np.ndarray) -> np.ndarray:
        """Centres, float (n, 2) of x, y in level-0 px, moved inward where patches are."""
        return (
            slide.inside(centres, self.size_px, self.um_per_px) if self.shifts_inward else centres
        )


@dataclass(frozen=True)
class Job:
    """The patches of one slide, as known before px are read; or all patch images.

    rows: of the label table. centres: float (n, 2) of x, y in level-0 px, where the patches are
    read. order: int (n,), in which they are read. um_per_px: of the slide; of images float (n,),
    NaN if unknown. n_over_edge: stored patches that reach over the border of the slide, or of their
    image. scanned_at_px: corner
    (x, y) of the scanned area in level-0 px.
    """

    rows: pd.DataFrame
    centres: np.ndarray
    order: np.ndarray
    um_per_px: float | np.ndarray
    is_stated: bool | np.ndarray = False
    n_over_edge: int = 0
    scanned_at_px: tuple[int, int] = (0, 0)


def look(table: pd.DataFrame, folder: Path, reading: Reading, n_workers: int) -> list[Job]:
    """One job a slide, in the table's order; raises one PatchError for all slides that can't be
    used.
    """
    shown = {"max_workers": n_workers, "desc": "slides checked", "unit": "slide", "leave": False}
    if reading.are_images:
        return [_look_at_images(table, folder, reading, shown)]

    def look_at(rows: pd.DataFrame) -> Job | str:
        try:
            return _look_at(rows, folder, reading)
        except SlideError as error:
            return str(error)

    looks = thread_map(
        look_at, [rows for _, rows in table.groupby("slide_id", sort=False)], **shown
    )
    _refuse([problem for problem in looks if isinstance(problem, str)])
    rows = [(job.rows["slide_id"].iloc[0], job.um_per_px) for job in looks]
    _refuse_enlarged(folder, pd.DataFrame(rows, columns=["slide_id", "um_per_px"]), reading)
    return looks


def enlarged(table: pd.DataFrame, um_per_px: float) -> str:
    """Which slides would be enlarged to this resolution by more than MAX_ENLARGED; "" if none.

    table: ``slide_id`` and the slide's ``um_per_px``.
    """
    slides = table.groupby("slide_id")["um_per_px"].max()
    coarse = slides[slides > MAX_ENLARGED * um_per_px].sort_values(ascending=False)
    if coarse.empty:
        return ""
    return (
        f"{len(coarse)} of {len(slides)} slides are coarser, such as {coarse.index[0]} with"
        f" {coarse.iloc[0]:g} um/px, and would be enlarged"
    )


def _refuse_enlarged(folder: Path, table: pd.DataFrame, reading: Reading) -> None:
    """Raise PatchError for slides or images that would be `enlarged`, whose ``table`` this is."""
    if reading.um_per_px and (coarse := enlarged(table, reading.um_per_px)):
        raise PatchError(
            f"{folder}: patches.um_per_px is {reading.um_per_px:g}; {coarse}; set"
            " patches.um_per_px to the coarsest slides', or leave these slides out"
        )


def _look_at(rows: pd.DataFrame, folder: Path, reading: Reading) -> Job:
    """Open a slide without reading px; raises SlideError for labels that lie far outside it."""
    with reading.open(folder, rows) as slide:
        at_px, is_from_area = slide.reader.scanned_at_px, reading.origin == "scanned_area"
        centres = rows[["x_l0_px", "y_l0_px"]].to_numpy(float) + (at_px if is_from_area else (0, 0))
        off = np.maximum(-centres, centres - slide.size_px).max(axis=1)  # (n,) > 0: outside
        if off.max() > MAX_OFF_SLIDE_PX:
            (x, y), (width, height) = centres[off.argmax()], slide.size_px
            counted = f", counted from the scanned area's corner {at_px}" if is_from_area else ""
            raise SlideError(
                f"{slide.path}: is {width} x {height} px, a label lies at ({x:g}, {y:g}){counted};"
                " these labels are of another image"
            )
        centres = reading.moved(slide, centres)
        order = slide.plan(centres, reading.stored_px, reading.um_per_px)
        n_over_edge = int(slide.reaches_over(centres, reading.stored_px, reading.um_per_px).sum())
        return Job(
            rows, centres, order, slide.um_per_px, slide.states_um_per_px, n_over_edge, at_px
        )


def _refuse(problems: list[str]) -> None:
    """Raise one PatchError for all ``problems`` that aren't empty."""
    problems = [problem for problem in problems if problem]
    if problems:
        more = f"\n  ... and {len(problems) - 50} more" if len(problems) > 50 else ""
        raise PatchError(
            f"{len(problems)} files can't be used:\n  " + "\n  ".join(problems[:50]) + more
        )


def _look_at_images(table: pd.DataFrame, folder: Path, reading: Reading, shown: dict) -> Job:
    """All patch images as one job; raises one PatchError for all images that can't be used."""
    scanners = table["scanner"].astype(str).map(dict(reading.um_per_px_by_scanner))
    stated = scanners.fillna(reading.slide_um_per_px or np.nan)
    um_per_px = table["um_per_px"].fillna(stated).to_numpy(float)
    wanted, unknown = reading.um_per_px, np.isnan(um_per_px)
    if wanted and unknown.any():
        raise PatchError(
            f"{folder}: {unknown.sum():,} of {len(table):,} images don't state their um/px; say"
            " data.um_per_px, give the table a column um_per_px, or set patches: {um_per_px:"
            " null}"
        )
    if reading.fit == "resize" and table["x_l0_px"].notna().any():
        raise PatchError(
            f"{folder}: x and y say where images lie on their slides, but with patches.fit: resize"
            " nothing says how far each reaches; leave these columns out, or set fit: crop"
        )
    files = [folder / file for file in table["file"]]
    looks = thread_map(lambda file: _look_at_image(file, reading), files, **shown)
    _refuse([problem for problem, _, _ in looks])
    um_per_px = um_per_px * [scale for _, scale, _ in looks]
    seen = np.array([side for _, _, side in looks]) * (um_per_px / wanted if wanted else 1.0)
    n_over_edge = int((seen.round() < reading.stored_px).sum()) if reading.fit == "crop" else 0
    _refuse_um_per_px(folder, um_per_px, reading)
    _refuse_enlarged(folder, table.assign(um_per_px=um_per_px), reading)
    centres = table[["x_l0_px", "y_l0_px"]].to_numpy(float)
    is_stated = ~table["um_per_px"].isna()
    return Job(table, centres, np.arange(len(table)), um_per_px, is_stated, n_over_edge)


def _refuse_um_per_px(folder: Path, um_per_px: np.ndarray, reading: Reading) -> None:
    """Raise PatchError for images, as they are or resized, that don't have the study's um/px."""
    wanted, is_cropped = reading.um_per_px, reading.fit == "crop"
    largest = MAX_RESAMPLED if is_cropped else 1 + SAME_RESOLUTION
    if not wanted:
        return
    ratio = np.maximum(um_per_px / wanted, wanted / um_per_px)
    other = [f"{one:g}" for one in np.unique(um_per_px[ratio > largest])[:5]]
    if other:
        remedy = (
            "correct the images' um/px"
            if is_cropped
            else (
                "make them equal, resample the images by patches: {fit: crop}, or keep them by"
                " patches: {um_per_px: null}"
            )
        )
        resized = f", resized to {reading.stored_px} px," if reading.fit == "resize" else ""
        raise PatchError(
            f"{folder}: images{resized} have {', '.join(other)} um/px, patches.um_per_px is"
            f" {wanted}; {remedy}"
        )


def _look_at_image(file: Path, reading: Reading) -> tuple[str, float, int]:
    """The problem of a patch image, "" without one, by what ``fit`` scales its um/px, and its
    shorter side in px.
    """
    try:
        with Image.open(file) as image:
            shape, problem = image.size, colour_problem(image)
    except (OSError, Image.DecompressionBombError) as error:
        return f"{file}: not an image that can be read ({error}); fetch it again", 1.0, 0
    side = reading.stored_px
    if problem:
        return f"{file}: {problem}", 1.0, 0
    if reading.fit or shape == (side, side):
        return "", min(shape) / side if reading.fit == "resize" else 1.0, min(shape)
    wrong = (
        f"{file}: {shape[0]} x {shape[1]} px, the study stores {side} px; set patches.size_px to"
        " the images' side (and each network's input_px so that its rotated crop fits), or"
        " patches.fit: crop (the centre) or resize (the whole image)"
    )
    return wrong, 1.0, 0


def _fitted(image: Image.Image, um_per_px: float, reading: Reading) -> Image.Image:
    """A patch image as ``reading.fit`` says, RGB, ``stored_px`` square."""
    side = reading.stored_px
    if reading.fit == "resize":
        return ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    if reading.um_per_px and abs(um_per_px / reading.um_per_px - 1) > SAME_RESOLUTION:
        scale = um_per_px / reading.um_per_px
        size = [max(1, round(length * scale)) for length in image.size]
        image = image.resize(size, Image.Resampling.BICUBIC)  # antialiased
    left, top = ((length - side) // 2 for length in image.size)
    fitted = Image.new("RGB", (side, side), (reading.outside,) * 3)
    fitted.paste(image, (-left, -top))
    return fitted


def read_all(
    target: Path, progress: Path, jobs: list[Job], folder: Path, reading: Reading, n_workers: int
) -> None:
    """Fill the rows of the array ``target`` that ``progress`` doesn't list.

    target: uint8 (n_patches, stored_px, stored_px, 3). Raises one PatchError for all slides that
    can't be read, after all other slides were read.
    """
    shape = (sum(len(job.rows) for job in jobs), reading.stored_px, reading.stored_px, 3)
    is_done = _begin(target, progress, shape)
    batches = []
    for job in jobs:
        left = job.order[~is_done[job.rows["patch_id"].to_numpy()[job.order]]]
        batches += [
            (job, left[at : at + BATCH_PATCHES]) for at in range(0, len(left), BATCH_PATCHES)
        ]
    offset = int(np.load(target, mmap_mode="r").offset)  # of row 0
    problems: dict[str, str] = {}  # the first of each slide
    writing = threading.Lock()
    bar = tqdm(total=shape[0], initial=int(is_done.sum()), desc="patches", unit="patch")
    with (
        bar,
        target.open("r+b", buffering=0) as array,
        progress.open("a", encoding="utf-8") as finished,
    ):

        def work(batch: tuple[Job, np.ndarray]) -> int:
            rows = batch[0].rows.iloc[batch[1]]
            try:
                patches = _read(*batch, folder, reading)
            except (SlideError, PatchError) as error:
                problems.setdefault(
                    str(error) if reading.are_images else rows["file"].iloc[0], str(error)
                )
                return 0
            with writing:
                try:
                    for patch_id, patch in zip(rows["patch_id"], patches, strict=True):
                        array.seek(offset + patch_id * math.prod(shape[1:]))
                        rest = memoryview(patch.tobytes())
                        while rest:  # of which the system may take parts
                            rest = rest[array.write(rest) :]
                    os.fsync(array.fileno())
                except OSError as error:
                    raise DiskError(
                        f"{target}: {error}; make room and run again, it goes on where it stopped"
                    ) from None
                finished.write(json.dumps(rows["patch_id"].tolist()) + "\n")
                finished.flush()
            return len(rows)

        with ThreadPoolExecutor(n_workers) as pool:
            for n_read in pool.map(work, batches):
                bar.update(n_read)
    _refuse(list(problems.values()))


def _read(job: Job, places: np.ndarray, folder: Path, reading: Reading) -> list[np.ndarray]:
    """The patches at some places of a job, uint8 (stored_px, stored_px, 3) each."""
    if not reading.are_images:
        with reading.open(folder, job.rows) as slide:
            return [
                slide.read(*job.centres[i], reading.stored_px, reading.um_per_px) for i in places
            ]
    patches = []
    for i in places:
        file = folder / job.rows["file"].iloc[i]
        try:
            with Image.open(file) as image:
                fitted = _fitted(image, job.um_per_px[i], reading) if reading.fit else image
                patches.append(np.asarray(fitted))
        except OSError as error:
            raise PatchError(f"{file}: damaged ({error}); fetch it again") from None
    return patches


def _begin(target: Path, progress: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Make the array, or continue an earlier one; returns whether each row is filled, bool
    (n_patches,).
    """
    begun = json.dumps({"rule": RULE, "shape": shape}) + "\n"
    try:
        # Refuses a header or a length that the kill left unfinished
        array = np.load(target, mmap_mode="r")
        first, *lines = progress.read_text(encoding="utf-8").splitlines(keepends=True)
        if array.shape != shape or array.dtype != np.uint8 or first != begun:
            raise ValueError("begun in another way")
        # One without was being written at the kill
        lines = [line for line in lines if line.endswith("\n")]
        is_done = np.zeros(shape[0], dtype=bool)
        for line in lines:
            is_done[np.array(json.loads(line), dtype=np.int64)] = True
        with replacing(progress) as aside:
            aside.write_text("".join([first, *lines]), encoding="utf-8")
        return is_done
    except (OSError, ValueError, IndexError):  # nothing to continue
        progress.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < math.prod(shape):
        raise PatchError(
            f"{target.parent}: the patches need {math.prod(shape):,} bytes, {free:,} are free; make"
            " room"
        )
    np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=shape)
    progress.write_text(begun, encoding="utf-8")
    return np.zeros(shape[0], dtype=bool)
