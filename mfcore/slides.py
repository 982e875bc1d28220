"""One reader for slides: a patch is asked for by its centre (level-0 px), its side (px) and its resolution (um/px).

Planes: ``_l0_px`` is in px of the slide as scanned; px ``i`` covers [i, i + 1), so that a slide ``w`` px wide reaches from 0
to ``w`` and the centre of its first px is 0.5.

Rule for the grid. At the slide's own resolution a patch is cut on the grid of px, never interpolated: its first column is
``floor(x_l0_px - size_px / 2 + 0.5)``, so a half px goes to the right (and down). At any other resolution the patch is
resampled around the exact centre: from the coarsest level that is at least as fine as asked, by bicubic interpolation, which
averages where it makes smaller. Resolutions that differ by less than 0.1 % count as the same.
"""

import math
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
from PIL import Image

SAME_RESOLUTION = 1e-3  # relative; 0.11 px at the edge of a patch of 224 px
PLAUSIBLE_UM_PER_PX = (0.01, 20.0)  # outside, a TIFF's resolution tag speaks of a screen or a printer (72 dpi = 352.8 um/px)
CONVERT = "vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg --Q 90"
BICUBIC_REACH_PX = 2.0  # how far the filter looks to either side, in px of the coarser of the two grids


class SlideError(ValueError):
    """A slide can't be opened or read; the message names the file and the remedy."""


class Reader(Protocol):
    """What `Slide` needs of a file format: its geometry, and the px of a rectangle of one level."""

    size_px: tuple[int, int]
    downsamples: tuple[float, ...]
    stated_um_per_px: float | None

    def region(self, x_l0_px: int, y_l0_px: int, level: int, size_px: tuple[int, int]) -> Image.Image:
        """RGB image of ``size_px`` (w, h) px of ``level``, its corner at a level-0 px; white outside the slide."""
        ...

    def close(self) -> None: ...


class Slide:
    """An open slide; made by `open_slide`, closed by leaving its ``with`` block.

    um_per_px: of level 0. states_um_per_px: whether the file says so itself. size_px: (width, height) of level 0.
    """

    def __init__(self, path: Path, reader: Reader, um_per_px: float):
        self.path = path
        self.um_per_px = um_per_px
        self.states_um_per_px = reader.stated_um_per_px is not None
        self.size_px = reader.size_px
        self._reader = reader

    def __enter__(self) -> "Slide":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back."""
        self._reader.close()

    def read(self, x_l0_px: float, y_l0_px: float, size_px: int, um_per_px: float | None = None) -> np.ndarray:
        """The patch around a centre, uint8 (size_px, size_px, 3); white outside the slide and where it is transparent.

        ``um_per_px`` None reads the slide's own px. Raises SlideError where the file is damaged.
        """
        scale = 1.0 if um_per_px is None else um_per_px / self.um_per_px  # level-0 px a patch px
        if abs(scale - 1) < SAME_RESOLUTION:
            left, top = (math.floor(centre - size_px / 2 + 0.5) for centre in (x_l0_px, y_l0_px))
            return np.asarray(self._reader.region(left, top, 0, (size_px, size_px)))
        level, downsample = max(
            (pair for pair in enumerate(self._reader.downsamples) if pair[1] <= scale * (1 + SAME_RESOLUTION)),
            key=lambda pair: pair[1],
            default=(0, 1.0),
        )
        # The rectangle of whole px that the filter looks at; what it centres on is the box inside it, in fractions of a px.
        reach = BICUBIC_REACH_PX * max(1.0, scale / downsample) + 1
        side = size_px * scale / downsample  # px of this level
        # On a px of the level, as near as whole level-0 px come to it: between px OpenSlide interpolates, and truncates.
        corner = [
            round(math.floor((centre - size_px * scale / 2) / downsample - reach) * downsample) for centre in (x_l0_px, y_l0_px)
        ]
        near = [(centre - size_px * scale / 2 - at) / downsample for centre, at in zip((x_l0_px, y_l0_px), corner, strict=True)]
        width, height = (math.ceil(start + side + reach) for start in near)
        region = self._reader.region(*corner, level, (width, height))
        box = (near[0], near[1], near[0] + side, near[1] + side)
        return np.asarray(region.resize((size_px, size_px), Image.Resampling.BICUBIC, box=box))


def open_slide(path: str | Path, um_per_px: float | None = None) -> Slide:
    """Open a slide; ``um_per_px`` is its resolution where the file doesn't state one (what the file states goes first).

    Raises SlideError, with the remedy, for a file that is missing, cut short, striped instead of tiled, of another format,
    or without a resolution.
    """
    path = Path(path)
    if not path.is_file():
        raise SlideError(f"{path}: no such slide; check the data folder, or fetch the file again")
    kind = _check_tiff(path)
    reader = _OpenSlide(path, kind)
    stated = reader.stated_um_per_px or um_per_px
    if stated is None:
        reader.close()
        found = f" (its resolution tag says {reader.tag})" if reader.tag else ""
        raise SlideError(f"{path}: the file doesn't state its um/px{found}; say it in the study: data: {{um_per_px: ...}}")
    return Slide(path, reader, stated)


class _OpenSlide:
    """The formats that OpenSlide reads."""

    def __init__(self, path: Path, kind: str):
        import openslide

        self._path = path
        self._error = openslide.OpenSlideError
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideUnsupportedFormatError:
            raise SlideError(
                f"{path}: {kind}, which OpenSlide doesn't read; if the file is whole, make it a tiled TIFF: {CONVERT}"
            ) from None
        except openslide.OpenSlideError as error:
            raise SlideError(f"{path}: damaged ({error}); fetch the file again") from None
        self.size_px = self._slide.dimensions
        self.downsamples = self._slide.level_downsamples
        self.tag = ""
        try:
            self.stated_um_per_px = self._stated()
        except SlideError:
            self.close()
            raise

    def _stated(self) -> float | None:
        """um/px as the file states it, None where it doesn't or where no microscope has it."""
        keys = ("openslide.mpp-x", "openslide.mpp-y")
        stated = [float(self._slide.properties[key]) for key in keys if self._slide.properties.get(key)]
        if not stated:
            return None
        self.tag = " x ".join(f"{value:.4g}" for value in stated) + " um/px"
        low, high = PLAUSIBLE_UM_PER_PX
        if not all(low <= value <= high for value in stated):
            return None
        if max(stated) > 1.01 * min(stated):
            raise SlideError(f"{self._path}: px that aren't square ({self.tag}) are not supported; resample the slide first")
        return sum(stated) / len(stated)

    def region(self, x_l0_px: int, y_l0_px: int, level: int, size_px: tuple[int, int]) -> Image.Image:
        try:
            pixels = self._slide.read_region((x_l0_px, y_l0_px), level, size_px)
        except self._error as error:
            raise SlideError(
                f"{self._path}: damaged near level-0 px ({x_l0_px}, {y_l0_px}), level {level} ({error}); fetch the file again"
            ) from None
        opaque = Image.new("RGB", pixels.size, "white")
        opaque.paste(pixels, mask=pixels.getchannel("A"))
        return opaque

    def close(self) -> None:
        self._slide.close()


def _check_tiff(path: Path) -> str:
    """Refuse a TIFF whose index points beyond the end of the file; returns in words what kind of file this is.

    OpenSlide opens a file that was cut short if the index is whole, and then fails at the first patch that isn't there.
    """
    import tifffile

    size_bytes = path.stat().st_size
    try:
        with tifffile.TiffFile(path) as tiff:
            pages = list(tiff.pages)
            end = max(o + n for page in pages for o, n in zip(page.dataoffsets, page.databytecounts, strict=False))
            tiled = pages[0].is_tiled
    except tifffile.TiffFileError:
        return f"{path.suffix or 'no suffix'}, not a TIFF" if size_bytes else "an empty file"
    except (ValueError, IndexError, OSError):
        return "a TIFF with a damaged index"  # or one of a maker's own, which OpenSlide may know
    if end > size_bytes:
        raise SlideError(f"{path}: cut short: {size_bytes:,} of {end:,} bytes or more are there; fetch the file again")
    return "a tiled TIFF, cut short or of an unusual kind" if tiled else "a striped TIFF"
