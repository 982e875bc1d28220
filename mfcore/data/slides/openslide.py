"""The formats that OpenSlide reads."""

import functools
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


class OpenSlideReader(Reader):
    """Any format of OpenSlide; raises SlideError for a damaged file and OpenSlide's own
    OpenSlideUnsupportedFormatError for another format.

    ratios: of the sides of level 0 and of each level; by them OpenSlide finds the px of a level.
    OpenSlide reads nothing more of a slide after it has met damage in it.
    """

    def __init__(self, path: Path):
        import openslide

        self._path = path
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideUnsupportedFormatError:
            raise
        except openslide.OpenSlideError as error:
            raise SlideError(f"{path}: damaged ({error}); fetch the file again") from None
        self._slide.set_cache(_cache())
        self.size_px = self._slide.dimensions
        self.level_sizes_px = self._slide.level_dimensions
        self.ratios = self._slide.level_downsamples
        self.downsamples = tuple(
            whole_downsample(self.size_px, size_px, ratio)
            for size_px, ratio in zip(self.level_sizes_px, self.ratios, strict=True)
        )
        properties = self._slide.properties
        self.vendor = properties.get("openslide.vendor", "")
        self.scanned_at_px = tuple(
            int(properties.get(f"openslide.bounds-{axis}", 0)) for axis in "xy"
        )
        stated = [properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
        try:
            self.stated_um_per_px, self.tag = stated_resolution(
                path, [float(value) for value in stated if value]
            )
        except SlideError:
            self.close()
            raise

    def corner_l0_px(self, at_px: int, level: int) -> float:
        """OpenSlide takes whole level-0 px and interpolates between px of a level; `region` asks
        for the nearest.
        """
        # px of the level
        nearest = round(max(at_px, 0) * self.ratios[level]) / self.ratios[level]
        return (nearest + min(at_px, 0)) * self.downsamples[level]

    def region(self, window: Window) -> np.ndarray:
        """See `mfcore.data.slides.reader.Reader`."""
        # Left of the border and above, OpenSlide may be off by a px of the level.
        x_px, y_px = max(window.x_px, 0), max(window.y_px, 0)
        left, top = x_px - window.x_px, y_px - window.y_px
        opaque = Image.new("RGB", (window.width, window.height), "white")
        if left < window.width and top < window.height:
            import openslide

            corner = tuple(round(at_px * self.ratios[window.level]) for at_px in (x_px, y_px))
            size = window.width - left, window.height - top
            try:
                pixels = self._slide.read_region(corner, window.level, size)
            except openslide.OpenSlideError as error:
                raise SlideError(
                    f"{self._path}: damaged near level-0 px {corner}, level {window.level}"
                    f" ({error}); fetch the file again"
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
