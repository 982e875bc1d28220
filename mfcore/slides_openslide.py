"""The formats that OpenSlide reads."""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mfcore.slides_reader import SlideError, Window, given, stated_resolution, whole_downsample

if TYPE_CHECKING:
    import openslide

CACHE_BYTES = 128 << 20


@functools.cache
def _cache() -> "openslide.OpenSlideCache":
    """OpenSlide's decoded tiles, one memory for all open slides."""
    import openslide

    return openslide.OpenSlideCache(CACHE_BYTES)


class OpenSlideReader:
    """Any format of OpenSlide; raises SlideError for a damaged file and `Unknown` for another format.

    Once OpenSlide has come upon damage, it reads no more of that slide.
    """

    n_bytes_whole = 0

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
        self.size_px = self._slide.dimensions
        self.level_sizes_px = self._slide.level_dimensions
        self._asked = self._slide.level_downsamples  # the ratio of sides, by which OpenSlide finds a level's px
        self.downsamples = tuple(
            whole_downsample(self.size_px, *level) for level in zip(self.level_sizes_px, self._asked, strict=True)
        )
        self.vendor = self._slide.properties.get("openslide.vendor", "")
        found = (self._slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy")
        try:
            self.stated_um_per_px, self.tag = stated_resolution(path, [float(value) for value in found if value])
        except SlideError:
            self.close()
            raise

    def corner_l0_px(self, at_px: int, level: int) -> float:
        """OpenSlide takes whole level-0 px; between px of a level it interpolates, so the nearest is asked for."""
        asked = round(max(at_px, 0) * self._asked[level]) / self._asked[level]  # px of the level
        return (asked + min(at_px, 0)) * self.downsamples[level]

    def expect(self, windows: Iterable[Window]) -> None:
        """Nothing to prepare: OpenSlide keeps what it decoded last, and reads that come in order find it there."""

    def region(self, window: Window, out: np.ndarray | None = None) -> np.ndarray:
        """See `mfcore.slides_reader.Reader`."""
        # From the border on: left of it and above, OpenSlide may be off by a px of the level.
        x_px, y_px = max(window.x_px, 0), max(window.y_px, 0)
        left, top = x_px - window.x_px, y_px - window.y_px
        opaque = Image.new("RGB", (window.width, window.height), "white")
        if left < window.width and top < window.height:
            x_l0_px, y_l0_px = (round(at_px * self._asked[window.level]) for at_px in (x_px, y_px))
            size = window.width - left, window.height - top
            try:
                pixels = self._slide.read_region((x_l0_px, y_l0_px), window.level, size)
            except self._error as error:
                raise SlideError(
                    f"{self._path}: damaged near level-0 px ({x_l0_px}, {y_l0_px}), level {window.level} ({error}); fetch the "
                    "file again"
                ) from None
            opaque.paste(pixels, (left, top), pixels.getchannel("A"))
        return given(np.asarray(opaque), out)

    def close(self) -> None:
        """Give the file back."""
        self._slide.close()
