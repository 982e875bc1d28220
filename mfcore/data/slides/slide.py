"""One reader for slides: it reads a patch by its centre (level-0 px), its side (px) and its
resolution (um/px).

Planes: ``_l0_px`` is in px of the slide as scanned. Px ``i`` covers [i, i + 1): a slide ``w`` px
wide reaches from 0 to ``w``, and the centre of its first px is 0.5.

Rule for the grid. At the slide's own resolution a patch is cut on the grid of px, never
interpolated: its first column is ``floor(x_l0_px - size_px / 2 + 0.5)``, so a half px goes to the
right (and down). At any other resolution the patch is resampled around the exact centre: from the
coarsest level that is fine enough, by bicubic interpolation, which averages where it makes smaller.
Resolutions that differ by less than 0.1 % count as the same.

Rule for levels. A px of a level is a square of whole level-0 px where one number of them explains
the level's size, rounded up or down; else the ratio of the sides counts.

`Slide.plan` gives the best order of many reads: a tile of the file is then seldom decoded twice.
"""

import itertools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from PIL import Image

from mfcore.data.labels.schema import MAX_OFF_SLIDE_PX, off_slide_px
from mfcore.data.slides import tiff
from mfcore.data.slides.openslide import OpenSlideReader
from mfcore.data.slides.reader import Reader, SlideError, Window
from mfcore.data.slides.tiff_index import page_of_png, pages_of, refuse_unusual
from mfcore.data.slides.tiles import Memory

__all__ = [
    "SAME_RESOLUTION",
    "Memory",
    "Slide",
    "SlideError",
    "UnstatedResolution",
    "open_slide",
    "read_patches",
]

SAME_RESOLUTION = 1e-3  # relative; 0.11 px at the edge of a patch of 224 px
MAX_ENLARGED = 1.1  # ours: 40x scanners differ less, from 0.23 to 0.27 um/px
BICUBIC_REACH_PX = 2.0  # reach of the filter to either side, in px of the coarser of the two grids
# squares of a level that show how it was made: side, places in x and y
PROBE_PX = 64
PROBE_SHARES = (0.3, 0.6, 0.95)
BAND_PX = 512  # height of the bands that planned reads follow: two tiles or so


class UnstatedResolution(SlideError):
    """Neither the file nor the caller states the um/px of a slide."""


class Slide(AbstractContextManager):
    """An open slide; made by `open_slide`, closed by leaving its ``with`` block. Several threads
    may read at once.

    um_per_px: of level 0. states_um_per_px: whether the file states it. size_px: (width, height) of
    level 0. outside: grey level, 0 to 255, of what lies outside the slide. reader: of the file,
    with its levels.
    """

    def __init__(self, path: Path, reader: Reader, um_per_px: float, outside: int = 255):
        self.path = path
        self.um_per_px = um_per_px
        self.states_um_per_px = reader.stated_um_per_px is not None
        self.size_px = reader.size_px
        self.reader = reader
        self._outside = outside

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give file and memory back."""
        self.reader.close()

    def read(
        self, x_l0_px: float, y_l0_px: float, size_px: int, um_per_px: float | None = None
    ) -> np.ndarray:
        """The patch around a centre, uint8 (size_px, size_px, 3).

        White where the slide is transparent; outside it, white or the grey that it was opened with.
        ``um_per_px`` None reads the slide's own px. Raises SlideError where the file is damaged.
        """
        window, box = self.window(x_l0_px, y_l0_px, size_px, um_per_px)
        region = self.reader.region(window)
        if self._outside != 255:
            width, height = self.reader.level_sizes_px[window.level]
            x, y = window.x_px + np.arange(window.width), window.y_px + np.arange(window.height)
            is_inside = ((y >= 0) & (y < height))[:, None] & (x >= 0) & (x < width)
            region = np.where(is_inside[..., None], region, np.uint8(self._outside))
        if box is None:
            return region
        return np.asarray(
            Image.fromarray(region).resize((size_px, size_px), Image.Resampling.BICUBIC, box=box)
        )

    def plan(
        self, centres_l0_px: np.ndarray, size_px: int, um_per_px: float | None = None
    ) -> np.ndarray:
        """The best order, int (n,), to `read` at the centres, float (n, 2) of x, y.

        The order follows bands of rows from top to bottom, each from left to right.
        """
        windows = [self.window(x, y, size_px, um_per_px)[0] for x, y in centres_l0_px]
        return np.lexsort([[one.x_px for one in windows], [one.y_px // BAND_PX for one in windows]])

    def read_many(
        self, centres_l0_px: np.ndarray, size_px: int, um_per_px: float | None = None
    ) -> np.ndarray:
        """The patches around centres, float (n, 2) of x, y, uint8 (n, size_px, size_px, 3)."""
        patches = np.empty((len(centres_l0_px), size_px, size_px, 3), np.uint8)
        for i in self.plan(centres_l0_px, size_px, um_per_px):
            patches[i] = self.read(*centres_l0_px[i], size_px, um_per_px)
        return patches

    def inside(
        self, centres_l0_px: np.ndarray, size_px: int, um_per_px: float | None = None
    ) -> np.ndarray:
        """The centres, float (n, 2) of x, y, each moved as little as possible to bring its patch
        inside the slide.

        Where the slide is smaller than the patch, the centre of the slide.
        """
        half = size_px * self._scale(um_per_px) / 2
        size = np.array(self.size_px, dtype=float)
        low, high = np.minimum(half, size / 2), np.maximum(size - half, size / 2)
        return np.clip(centres_l0_px, low, high)

    def reaches_over(
        self, centres_l0_px: np.ndarray, size_px: int, um_per_px: float | None = None
    ) -> np.ndarray:
        """Whether the patches at the centres, float (n, 2) of x, y, reach over the slide's border,
        bool (n,).
        """
        half = size_px * self._scale(um_per_px) / 2
        return ((centres_l0_px < half) | (centres_l0_px > np.array(self.size_px) - half)).any(
            axis=1
        )

    def _scale(self, um_per_px: float | None) -> float:
        """Level-0 px a patch px; exactly 1 where the patch is cut and not resampled."""
        scale = 1.0 if um_per_px is None else um_per_px / self.um_per_px
        return 1.0 if abs(scale - 1) < SAME_RESOLUTION else scale

    def window(
        self, x_l0_px: float, y_l0_px: float, size_px: int, um_per_px: float | None
    ) -> tuple[Window, tuple[float, float, float, float] | None]:
        """The window to read for a patch, and the box in it, in fractions of a px, to resample;
        None to keep the px.
        """
        scale = self._scale(um_per_px)
        if scale == 1.0:
            left, top = (math.floor(centre - size_px / 2 + 0.5) for centre in (x_l0_px, y_l0_px))
            return Window(0, left, top, size_px, size_px), None
        fine = [
            (downsample, level)
            for level, downsample in enumerate(self.reader.downsamples)
            if downsample <= scale * (1 + SAME_RESOLUTION)
        ]
        downsample, level = max(fine, default=(1.0, 0))
        # The window of whole px that the filter needs; the patch is the box inside it.
        reach = BICUBIC_REACH_PX * max(1.0, scale / downsample) + 1
        side = size_px * scale / downsample  # px of this level
        starts = [centre - size_px * scale / 2 for centre in (x_l0_px, y_l0_px)]
        corner = [math.floor(start / downsample - reach) for start in starts]
        near = [
            (start - self.reader.corner_l0_px(at, level)) / downsample
            for start, at in zip(starts, corner, strict=True)
        ]
        width, height = (math.ceil(start + side + reach) for start in near)
        box = near[0], near[1], near[0] + side, near[1] + side
        return Window(level, *corner, width, height), box


def open_slide(
    path: str | Path,
    um_per_px: float | None = None,
    memory: Memory | None = None,
    outside: int = 255,
    with_reduced: bool = False,
    scanner: str = "",
) -> Slide:
    """Open a slide; ``um_per_px`` is its resolution where the file doesn't state one.

    outside: grey level of what lies outside the slide. Slides opened with one ``memory`` share it;
    without, a slide has its own. with_reduced: add virtual levels that JPEG decodes smaller at less
    cost (`slides.tiff.TiffReader.add_reduced`). scanner: named in the remedy for a slide without a
    resolution. Raises SlideError, with the remedy, for a file that is missing, cut short, of
    another format or too large to decode whole, and UnstatedResolution for a file without a
    resolution.
    """
    path = Path(path)
    try:
        path.open("rb").close()
    except OSError as error:  # the readers would call it damage
        raise SlideError(
            f"{path}: no such slide, or it may not be read ({error.strerror}); check the data"
            " folder and its rights, or fetch the file again"
        ) from None
    reader = _reader(path, memory or Memory())
    stated = reader.stated_um_per_px or um_per_px
    if stated is None:
        reader.close()
        tag = f" (its resolution tag says {reader.tag})" if reader.tag else ""
        by_scanner = f'data: {{um_per_px_by_scanner: {{"{scanner}": ...}}}}, or ' if scanner else ""
        raise UnstatedResolution(
            f"{path}: the file doesn't state its um/px{tag}; say it in the study: {by_scanner}data:"
            " {um_per_px: ...} for all slides that don't"
        )
    if with_reduced and isinstance(reader, tiff.TiffReader):
        reader.add_reduced()
    return Slide(path, reader, stated, outside)


def read_patches(
    file: str | Path,
    points: Sequence[tuple[float, float]] | np.ndarray,
    size_px: int = 224,
    um_per_px: float | None = 0.25,
    slide_um_per_px: float | None = None,
) -> np.ndarray:
    """The patches around points of a slide, uint8 (n, size_px, size_px, 3), white outside the
    slide.

    points: centres x, y in level-0 px, counted from OpenSlide's corner. um_per_px: resolution of
    the patches; None for the slide's own. slide_um_per_px: of a slide that doesn't state its own.
    Raises SlideError for a slide that can't be read, lacks um/px or would be enlarged by more than
    MAX_ENLARGED.
    """
    centres = np.asarray(points, dtype=float)
    if centres.ndim != 2 or centres.shape[1] != 2 or not np.isfinite(centres).all():
        raise SlideError(f"points are {centres.shape}; expected finite x, y of each: (n, 2)")
    if um_per_px is not None and not um_per_px > 0:
        raise SlideError(f"um_per_px is {um_per_px}; it must be positive, or None")
    with open_slide(Path(file), slide_um_per_px) as slide:
        if um_per_px is not None and slide.um_per_px > MAX_ENLARGED * um_per_px:
            raise SlideError(
                f"{file}: has {slide.um_per_px:g} um/px and would be enlarged to {um_per_px:g}; ask"
                " for a coarser resolution, or None for its own"
            )
        off_px = [off_slide_px(x, y, *slide.size_px) for x, y in centres]
        if max(off_px, default=0) > MAX_OFF_SLIDE_PX:
            x, y = centres[int(np.argmax(off_px))]
            raise SlideError(f"{file}: a point isn't on the slide: ({x:g}, {y:g})")
        return slide.read_many(centres, size_px, um_per_px)


def _reader(path: Path, memory: Memory) -> Reader:
    """The reader for a file: OpenSlide's formats first, then striped TIFF, then PNG."""
    import openslide

    pages = pages_of(path)
    try:
        by_openslide = OpenSlideReader(path)
    except openslide.OpenSlideUnsupportedFormatError:
        return tiff.untiled(path, pages or [page_of_png(path)], memory)
    except SlideError:
        # Perhaps OpenSlide doesn't know the px
        refuse_unusual(path, [page for page in pages if page.is_tiled])
        raise
    key = path, path.stat().st_mtime_ns
    if key not in _settled:
        _settle(path, by_openslide)
        _settled[key] = by_openslide.downsamples
    by_openslide.downsamples = _settled[key]
    return tiff.tiled(by_openslide, path, pages, memory)


# Downsamples of files that were looked at, by file and its time
_settled: dict[tuple[Path, int], tuple[float, ...]] = {}


def _settle(path: Path, reader: OpenSlideReader) -> None:
    """Of a level whose size was rounded, take the ratio of the sides for its downsample where the
    level shows the whole slide, resized to fit, and not squares of whole px.

    Squares of the level are compared with what the next finer level shows there in either case.
    """
    settled, slide = list(reader.downsamples), Slide(path, reader, um_per_px=1.0)
    for level, (size_px, ratio) in enumerate(
        zip(reader.level_sizes_px, reader.ratios, strict=True)
    ):
        reader.downsamples = tuple(settled[:level])  # so that the finer level is read
        side, misfits = min(PROBE_PX, *size_px), {settled[level]: 0.0, ratio: 0.0}
        if len(misfits) == 1:
            continue
        try:
            for shares in itertools.product(PROBE_SHARES, repeat=2):
                at = [int(share * (n - side)) for share, n in zip(shares, size_px, strict=True)]
                seen = reader.region(Window(level, *at, side, side)).mean(axis=2)
                for downsample in misfits:
                    # OpenSlide reads from whole level-0 px
                    centre = [(round(px * ratio) / ratio + side / 2) * downsample for px in at]
                    expected = slide.read(*centre, side, downsample).mean(axis=2)
                    misfits[downsample] += ((seen - expected) ** 2).sum()
        except SlideError:
            break  # the read that needs these px will raise it
        settled[level] = min(misfits, key=misfits.get)
    reader.downsamples = tuple(settled)
