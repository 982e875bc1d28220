"""Slides read into the patch store: each slide is checked first, then threads read it in batches.

A batch is a part of one slide's annotations, in the order of `mfcore.data.slides.slide.Slide.plan`.
A batch's patches are on disk before ``progress.bin`` says so: a kill at any moment loses the
batches not yet written and no more.
"""

import math
import os
import shutil
import threading
from collections.abc import Iterable, Mapping, Sequence
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

RULE = 3
"""Raise it when the same slides would give other px: a store begun by an earlier rule is begun
anew.
"""
MAX_RESAMPLED = 20  # times the study's um/px, or a part of it: more is a wrong unit
BATCH_PATCHES = 128  # at most; 20 MB of patches of 224 px
PLACED_AT = ["patch_x_l0_px", "patch_y_l0_px"]
SCANNED_AT = ["scanned_x_l0_px", "scanned_y_l0_px"]


class PatchError(ValueError):
    """Patches can't be read, or are wrong; the message names every slide or file concerned."""


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


def look(table: pd.DataFrame, folder: Path, reading: Reading, n_workers: int) -> pd.DataFrame:
    """The rows of a label table in the order of reading, with what is known before px are read;
    raises one PatchError for all slides that can't be used.

    um_per_px: filled; is_stated: whether the file or the table states it. PLACED_AT: centre of the
    patch in level-0 px, counted from the slide's corner. SCANNED_AT: corner of the scanned area.
    is_over_edge: whether the stored patch reaches over the border of the slide, or of its image.
    """
    shown = {"max_workers": n_workers, "desc": "slides checked", "unit": "slide", "leave": False}
    if reading.are_images:
        looked = _look_at_images(table, folder, reading, shown)
    else:
        rows = [rows for _, rows in table.groupby("slide_id", sort=False)]
        looks = thread_map(lambda rows: _look_at(rows, folder, reading), rows, **shown)
        _refuse(look for look in looks if isinstance(look, str))
        looked = pd.concat(looks)
    if reading.um_per_px and (coarse := enlarged(looked, reading.um_per_px)):
        raise PatchError(
            f"{folder}: patches.um_per_px is {reading.um_per_px:g}; {coarse}; set"
            " patches.um_per_px to the coarsest slides', or leave these slides out"
        )
    return looked


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


def _look_at(rows: pd.DataFrame, folder: Path, reading: Reading) -> pd.DataFrame | str:
    """What `look` says of a slide's rows, without reading px; a text where it can't be used, or
    labels lie far outside it.
    """
    try:
        with reading.open(folder, rows) as slide:
            area_px, is_from_area = slide.reader.scanned_at_px, reading.origin == "scanned_area"
            centres = (
                rows[["x_l0_px", "y_l0_px"]].to_numpy(float) + np.array(area_px) * is_from_area
            )
            off = np.maximum(-centres, centres - slide.size_px).max(axis=1)  # (n,) > 0: outside
            if off.max() > MAX_OFF_SLIDE_PX:
                (x, y), (width, height) = centres[off.argmax()], slide.size_px
                counted = f", counted from the scanned area's corner {area_px}" * is_from_area
                return (
                    f"{slide.path}: is {width} x {height} px, a label lies at ({x:g}, {y:g})"
                    f"{counted}; these labels are of another image"
                )
            centres, how = reading.moved(slide, centres), (reading.stored_px, reading.um_per_px)
            rows = rows.assign(
                um_per_px=slide.um_per_px,
                is_stated=slide.states_um_per_px,
                is_over_edge=slide.reaches_over(centres, *how),
                **dict(zip(PLACED_AT, centres.T, strict=True)),
                **dict(zip(SCANNED_AT, area_px, strict=True)),
            )
            return rows.iloc[slide.plan(centres, *how)]
    except SlideError as error:
        return str(error)


def _refuse(problems: Iterable[str]) -> None:
    """Raise one PatchError for all ``problems`` that aren't empty."""
    if problems := [problem for problem in problems if problem]:
        more = f"\n  ... and {len(problems) - 50} more" * (len(problems) > 50)
        raise PatchError(
            f"{len(problems)} files can't be used:\n  " + "\n  ".join(problems[:50]) + more
        )


def _look_at_images(
    table: pd.DataFrame, folder: Path, reading: Reading, shown: dict
) -> pd.DataFrame:
    """What `look` says of patch images; raises one PatchError for all that can't be used."""
    by_scanner = table["scanner"].astype(str).map(dict(reading.um_per_px_by_scanner))
    stated = table["um_per_px"].fillna(by_scanner.fillna(reading.slide_um_per_px or np.nan))
    um_per_px, wanted = stated.to_numpy(float), reading.um_per_px
    if wanted and (n_unknown := np.isnan(um_per_px).sum()):
        raise PatchError(
            f"{folder}: {n_unknown:,} of {len(table):,} images don't state their um/px; say"
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
    _refuse(problem for problem, _ in looks)
    side_px = np.array([side for _, side in looks])
    if reading.fit == "resize":
        um_per_px = um_per_px * (side_px / reading.stored_px)
    if wanted:
        _refuse_um_per_px(folder, um_per_px, reading)
        side_px = (side_px * (um_per_px / wanted)).round()
    return table.assign(
        um_per_px=um_per_px,
        is_stated=table["um_per_px"].notna(),
        is_over_edge=(reading.fit == "crop") & (side_px < reading.stored_px),
        **dict(zip(PLACED_AT, table[["x_l0_px", "y_l0_px"]].to_numpy(float).T, strict=True)),
        **dict.fromkeys(SCANNED_AT, 0),
    )


def _refuse_um_per_px(folder: Path, um_per_px: np.ndarray, reading: Reading) -> None:
    """Raise PatchError for images, as they are or resized, that don't have the study's um/px."""
    wanted = reading.um_per_px
    largest = MAX_RESAMPLED if reading.fit == "crop" else 1 + SAME_RESOLUTION
    ratio = np.maximum(um_per_px / wanted, wanted / um_per_px)
    if other := [f"{one:g}" for one in np.unique(um_per_px[ratio > largest])[:5]]:
        resized = f", resized to {reading.stored_px} px," * (reading.fit == "resize")
        raise PatchError(
            f"{folder}: images{resized} have {', '.join(other)} um/px, patches.um_per_px is"
            f" {wanted}; correct the images' um/px, resample the images by patches: {{fit: crop}},"
            " or keep them by patches: {um_per_px: null}"
        )


def _look_at_image(file: Path, reading: Reading) -> tuple[str, int]:
    """The problem of a patch image, "" without one, and its shorter side in px."""
    try:
        with Image.open(file) as image:
            size, problem = image.size, colour_problem(image)
    except (OSError, Image.DecompressionBombError) as error:
        return f"{file}: not an image that can be read ({error}); fetch it again", 0
    side = reading.stored_px
    if not problem and not reading.fit and size != (side, side):
        problem = (
            f"{size[0]} x {size[1]} px, the study stores {side} px; set patches.size_px to the"
            " images' side (and each network's input_px so that its rotated crop fits), or"
            " patches.fit: crop (the centre) or resize (the whole image)"
        )
    return problem and f"{file}: {problem}", min(size)


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
    target: Path,
    progress: Path,
    looked: pd.DataFrame,
    folder: Path,
    reading: Reading,
    n_workers: int,
) -> None:
    """Fill the rows of the array ``target`` that ``progress`` doesn't have.

    looked: as `look` returns it. target: uint8 (n_patches, stored_px, stored_px, 3). Raises one
    PatchError for all slides that can't be read, after all other slides were read.
    """
    shape = (len(looked), reading.stored_px, reading.stored_px, 3)
    is_done = _begin(target, progress, shape)
    left = looked[~is_done[looked["patch_id"]]]
    by = [0] * len(left) if reading.are_images else "slide_id"
    batches = [
        rows.iloc[at : at + BATCH_PATCHES]
        for _, rows in left.groupby(by, sort=False)
        for at in range(0, len(rows), BATCH_PATCHES)
    ]
    first = int(np.load(target, mmap_mode="r").offset)  # of row 0
    problems: dict[str, str] = {}  # the first of each slide
    writing = threading.Lock()
    bar = tqdm(total=shape[0], initial=int(is_done.sum()), desc="patches", unit="patch")
    with bar, target.open("r+b") as array, ThreadPoolExecutor(n_workers) as pool:

        def work(rows: pd.DataFrame) -> int:
            try:
                patches = _read(rows, folder, reading)
            except (SlideError, PatchError) as error:
                problems.setdefault(rows["file"].iloc[0], str(error))
                return 0
            with writing:
                for patch_id, patch in zip(rows["patch_id"], patches, strict=True):
                    array.seek(first + patch_id * math.prod(shape[1:]))
                    array.write(patch.tobytes())
                array.flush()
                os.fsync(array.fileno())
                is_done[rows["patch_id"]] = True
                is_done.flush()
            return len(rows)

        for n_read in pool.map(work, batches):
            bar.update(n_read)
    _refuse(problems.values())


def _read(rows: pd.DataFrame, folder: Path, reading: Reading) -> Sequence[np.ndarray]:
    """The patches of some rows of `look`, uint8 (stored_px, stored_px, 3) each."""
    if not reading.are_images:
        with reading.open(folder, rows) as slide:
            centres = rows[PLACED_AT].to_numpy()
            return slide.read_many(centres, reading.stored_px, reading.um_per_px)
    patches = []
    for file, um_per_px in zip(rows["file"], rows["um_per_px"], strict=True):
        try:
            with Image.open(folder / file) as image:
                fitted = _fitted(image, um_per_px, reading) if reading.fit else image
                patches.append(np.asarray(fitted))
        except OSError as error:
            raise PatchError(f"{folder / file}: damaged ({error}); fetch it again") from None
    return patches


def _begin(target: Path, progress: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Make the array, or continue an earlier one; returns whether each row is filled, bool
    (n_patches,), mapped to the file ``progress``, where the rule precedes it.
    """
    try:
        # Refuses a header or a length that the kill left unfinished
        array, kept = np.load(target, mmap_mode="r"), np.memmap(progress, np.uint8, "r+")
        is_same = (array.shape, array.dtype, len(kept)) == (shape, np.uint8, 1 + shape[0])
        if is_same and kept[0] == RULE:
            return kept[1:].view(bool)
    except (OSError, ValueError):  # nothing to continue
        pass
    for begun in (progress, target):
        begun.unlink(missing_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < math.prod(shape):
        raise PatchError(
            f"{target.parent}: the patches need {math.prod(shape):,} bytes, {free:,} are free; make"
            " room"
        )
    np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=shape)
    kept = np.memmap(progress, np.uint8, "w+", shape=1 + shape[0])
    kept[0] = RULE
    return kept[1:].view(bool)
