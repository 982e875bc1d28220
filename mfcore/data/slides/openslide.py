"""The formats that OpenSlide reads."""

import functools
import itertools
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mfcore.data.slides.reader import (
    Reader,
    SlideError,
    Window,
    stated_resolution,
    whole_downsample,
)

if TYPE_CHECKING:
    import openslide

CACHE_BYTES = 128 << 20
# squares of a level that show how it was made: side, places in x and y
PROBE_PX = 64
PROBE_SHARES = (0.3, 0.6, 0.95)

# DICOM: a slide is a series of files, which OpenSlide finds in the folder. An element begins with
# its tag of four bytes, and four bytes more of type and length. The series follows the study in
# every file; in lists of other series it doesn't.
# ImageType's third value where an image is no level of a slide
NO_VOLUME = ("LABEL", "OVERVIEW", "THUMBNAIL", "LOCALIZER")
HEADER_BYTES = 1 << 20  # in which the elements lie
IMAGE_TYPE = re.compile(rb"\x08\x00\x08\x00.{4}[\w ]*\\[\w ]*\\(\w*)", re.DOTALL)
SERIES = re.compile(rb"\x20\x00\x0d\x00.{4}[\d. \x00]*\x20\x00\x0e\x00.{4}([\d.]+)", re.DOTALL)


@functools.cache
def _cache() -> "openslide.OpenSlideCache":
    """OpenSlide's decoded tiles, one memory for all open slides."""
    import openslide

    return openslide.OpenSlideCache(CACHE_BYTES)


# results of `OpenSlideReader._is_stretched`: file, its time, level
_stretched: dict[tuple[Path, int, int], bool] = {}


class OpenSlideReader(Reader):
    """Any format of OpenSlide; raises SlideError for a damaged file and `Unknown` for another
    format.

    OpenSlide reads nothing more of a slide after it has met damage in it.
    """

    class Unknown(Exception):
        """OpenSlide doesn't know this format."""

    def __init__(self, path: Path):
        import openslide

        self._path = path
        self._error = openslide.OpenSlideError
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideUnsupportedFormatError:
            raise self.Unknown from None
        except openslide.OpenSlideError as error:
            raise SlideError(f"{path}: damaged ({error}); fetch the file again") from None
        self._slide.set_cache(_cache())
        properties = dict(self._slide.properties)
        self.size_px = self._slide.dimensions
        self.level_sizes_px = self._slide.level_dimensions
        # of sides; by the ratio OpenSlide finds the px of a level
        self._ratios = self._slide.level_downsamples
        self.downsamples: tuple[float, ...] = ()
        for level, (size_px, ratio) in enumerate(
            zip(self.level_sizes_px, self._ratios, strict=True)
        ):
            self.downsamples += (whole_downsample(self.size_px, size_px, ratio),)
            if self.downsamples[level] != ratio:
                key = path, path.stat().st_mtime_ns, level
                if key not in _stretched:
                    _stretched[key] = self._is_stretched(level)
                if _stretched[key]:
                    self.downsamples = (*self.downsamples[:level], ratio)
        self.vendor = properties.get("openslide.vendor", "")
        self.scanned_at_px = tuple(
            int(properties.get(f"openslide.bounds-{axis}", 0)) for axis in "xy"
        )
        um_per_px = [
            float(value) for axis in "xy" if (value := properties.get(f"openslide.mpp-{axis}"))
        ]
        try:
            self.stated_um_per_px, self.tag = stated_resolution(path, um_per_px)
        except SlideError:
            self.close()
            raise

    def _is_stretched(self, level: int) -> bool:
        """Whether a level whose size was rounded shows the whole slide, resized to fit, and not
        squares of whole px.

        Squares of the level are compared with the next finer level: the difference follows the
        shift of a resized level or not.
        """
        whole = self.downsamples[level]
        finer = self.downsamples[level - 1]
        n_px = min(PROBE_PX, *self.level_sizes_px[level])
        stretch = [
            side / (small * whole) - 1
            for side, small in zip(self.size_px, self.level_sizes_px[level], strict=True)
        ]
        projected = squared = 0.0
        for shares in itertools.product(PROBE_SHARES, repeat=2):
            at = [
                int(share * (side - n_px))
                for share, side in zip(shares, self.level_sizes_px[level], strict=True)
            ]
            start = [self.corner_l0_px(px, level) / finer for px in at]  # px of the finer level
            corner, side = [math.floor(px) - 4 for px in start], n_px * whole / finer
            near = [
                px - self.corner_l0_px(first, level - 1) / finer
                for px, first in zip(start, corner, strict=True)
            ]
            try:
                fine = self.region(
                    Window(level - 1, *corner, math.ceil(side) + 10, math.ceil(side) + 10)
                )
                coarse = self.region(Window(level, *at, n_px, n_px)).mean(axis=2)
            # the read that needs these px will raise it, of a slide that OpenSlide opens anew
            except SlideError:
                self._slide = type(self._slide)(self._path)
                self._slide.set_cache(_cache())
                return False
            box = near[0], near[1], near[0] + side, near[1] + side
            expected = np.asarray(
                Image.fromarray(fine).resize((n_px, n_px), Image.Resampling.BICUBIC, box=box)
            ).mean(axis=2)
            down, along = np.gradient(expected)
            x, y = (px + np.arange(n_px) for px in at)
            # of px, if the level is stretched
            change = along * x * stretch[0] + down * y[:, None] * stretch[1]
            change -= change.mean()
            projected += (change * (coarse - expected)).sum()
            squared += (change**2).sum()
        return projected > squared / 2

    def corner_l0_px(self, at_px: int, level: int) -> float:
        """OpenSlide takes whole level-0 px and interpolates between px of a level; `region` asks
        for the nearest.
        """
        # px of the level
        nearest = round(max(at_px, 0) * self._ratios[level]) / self._ratios[level]
        return (nearest + min(at_px, 0)) * self.downsamples[level]

    def region(self, window: Window) -> np.ndarray:
        """See `mfcore.data.slides.reader.Reader`."""
        # Left of the border and above, OpenSlide may be off by a px of the level.
        x_px, y_px = max(window.x_px, 0), max(window.y_px, 0)
        left, top = x_px - window.x_px, y_px - window.y_px
        opaque = Image.new("RGB", (window.width, window.height), "white")
        if left < window.width and top < window.height:
            x_l0_px, y_l0_px = (round(at_px * self._ratios[window.level]) for at_px in (x_px, y_px))
            size = window.width - left, window.height - top
            try:
                pixels = self._slide.read_region((x_l0_px, y_l0_px), window.level, size)
            except self._error as error:
                raise SlideError(
                    f"{self._path}: damaged near level-0 px ({x_l0_px}, {y_l0_px}), level"
                    f" {window.level} ({error}); fetch the file again"
                ) from None
            opaque.paste(pixels, (left, top), pixels.getchannel("A"))
        return np.asarray(opaque)

    def close(self) -> None:
        """Give the file back."""
        self._slide.close()


def series_of(path: Path) -> tuple[str, str] | None:
    """The series of a DICOM file and ImageType's third value ("VOLUME" for a level of a slide);
    None for any other file.
    """
    try:
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES) if file.read(132).endswith(b"DICM") else b""
    except OSError:
        return None
    series, kind = SERIES.search(header), IMAGE_TYPE.search(header)
    return (series[1].decode(), kind[1].decode() if kind else "") if series else None
