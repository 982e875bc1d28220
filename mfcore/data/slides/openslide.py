"""The formats that OpenSlide reads."""

import functools
import itertools
import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import Image

from mfcore.data.slides.reader import SlideError, Window, given, stated_resolution, whole_downsample

if TYPE_CHECKING:
    import openslide

CACHE_BYTES = 128 << 20
PROBE_PX, PROBE_SHARES = 64, (0.3, 0.6, 0.95)  # squares of a level that show how it was made: side, places in x and y

# DICOM: a slide is a series of files, which OpenSlide finds in the folder.
NO_VOLUME = ("LABEL", "OVERVIEW", "THUMBNAIL", "LOCALIZER")  # ImageType's third value where an image is no level of a slide
SYNTAX, IMAGE_TYPE, SERIES = (0x0002, 0x0010), (0x0008, 0x0008), (0x0020, 0x000E)
ITEM, ITEM_END, SEQUENCE_END = ((0xFFFE, element) for element in (0xE000, 0xE00D, 0xE0DD))
LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")  # with four bytes of length
IMPLICIT, UNDEFINED = "1.2.840.10008.1.2", 0xFFFFFFFF


@functools.cache
def _cache() -> "openslide.OpenSlideCache":
    """OpenSlide's decoded tiles, one memory for all open slides."""
    import openslide

    return openslide.OpenSlideCache(CACHE_BYTES)


_stretched: dict[tuple[Path, int, int], bool] = {}  # results of `OpenSlideReader._is_stretched`: file, its time, level


class OpenSlideReader:
    """Any format of OpenSlide; raises SlideError for a damaged file and `Unknown` for another format.

    OpenSlide reads nothing more of a slide after it has met damage in it.
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
        properties = dict(self._slide.properties)
        self.size_px = self._slide.dimensions
        self.level_sizes_px = self._slide.level_dimensions
        self._ratios = self._slide.level_downsamples  # of sides; by the ratio OpenSlide finds the px of a level
        self.downsamples: tuple[float, ...] = ()
        for level, (size_px, ratio) in enumerate(zip(self.level_sizes_px, self._ratios, strict=True)):
            self.downsamples += (whole_downsample(self.size_px, size_px, ratio),)
            if self.downsamples[level] != ratio:
                key = path, path.stat().st_mtime_ns, level
                if key not in _stretched:
                    _stretched[key] = self._is_stretched(level)
                if _stretched[key]:
                    self.downsamples = (*self.downsamples[:level], ratio)
        self.vendor = properties.get("openslide.vendor", "")
        self.scanned_at_px = tuple(int(properties.get(f"openslide.bounds-{axis}", 0)) for axis in "xy")
        um_per_px = [float(value) for axis in "xy" if (value := properties.get(f"openslide.mpp-{axis}"))]
        try:
            self.stated_um_per_px, self.tag = stated_resolution(path, um_per_px)
        except SlideError:
            self.close()
            raise

    def _is_stretched(self, level: int) -> bool:
        """Whether a level whose size was rounded shows the whole slide, resized to fit, and not squares of whole px.

        Squares of the level are compared with the next finer level: the difference follows the shift of a resized level or not.
        """
        whole, finer, n_px = self.downsamples[level], self.downsamples[level - 1], min(PROBE_PX, *self.level_sizes_px[level])
        stretch = [side / (small * whole) - 1 for side, small in zip(self.size_px, self.level_sizes_px[level], strict=True)]
        projected = squared = 0.0
        for shares in itertools.product(PROBE_SHARES, repeat=2):
            at = [int(share * (side - n_px)) for share, side in zip(shares, self.level_sizes_px[level], strict=True)]
            start = [self.corner_l0_px(px, level) / finer for px in at]  # px of the finer level
            corner, side = [math.floor(px) - 4 for px in start], n_px * whole / finer
            near = [px - self.corner_l0_px(first, level - 1) / finer for px, first in zip(start, corner, strict=True)]
            try:
                fine = self.region(Window(level - 1, *corner, math.ceil(side) + 10, math.ceil(side) + 10))
                coarse = self.region(Window(level, *at, n_px, n_px)).mean(axis=2)
            except SlideError:  # the read that needs these px will raise it, of a slide that OpenSlide opens anew
                self._slide = type(self._slide)(self._path)
                self._slide.set_cache(_cache())
                return False
            box = near[0], near[1], near[0] + side, near[1] + side
            expected = np.asarray(Image.fromarray(fine).resize((n_px, n_px), Image.Resampling.BICUBIC, box=box)).mean(axis=2)
            down, along = np.gradient(expected)
            x, y = (px + np.arange(n_px) for px in at)
            change = along * x * stretch[0] + down * y[:, None] * stretch[1]  # of px, if the level is stretched
            change -= change.mean()
            projected += (change * (coarse - expected)).sum()
            squared += (change**2).sum()
        return projected > squared / 2

    def corner_l0_px(self, at_px: int, level: int) -> float:
        """OpenSlide takes whole level-0 px and interpolates between px of a level; `region` asks for the nearest."""
        nearest = round(max(at_px, 0) * self._ratios[level]) / self._ratios[level]  # px of the level
        return (nearest + min(at_px, 0)) * self.downsamples[level]

    def expect(self, windows: Iterable[Window]) -> None:
        """Nothing to prepare: OpenSlide caches the tiles that it decoded last."""

    def region(self, window: Window, out: np.ndarray | None = None) -> np.ndarray:
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
                    f"{self._path}: damaged near level-0 px ({x_l0_px}, {y_l0_px}), level {window.level} ({error}); fetch the "
                    "file again"
                ) from None
            opaque.paste(pixels, (left, top), pixels.getchannel("A"))
        return given(np.asarray(opaque), out)

    def close(self) -> None:
        """Give the file back."""
        self._slide.close()


def series_of(path: Path) -> tuple[str, str] | None:
    """The series of a DICOM file and ImageType's third value ("VOLUME" for a level of a slide); None for any other file."""
    values = {SYNTAX: "", IMAGE_TYPE: "", SERIES: ""}
    try:
        with path.open("rb") as file:
            if file.read(132)[128:] != b"DICM":
                return None
            tag = (0, 0)
            while tag < SERIES:
                tag, n_bytes = _element(file, values[SYNTAX] == IMPLICIT)
                if tag in values:
                    values[tag] = file.read(n_bytes).decode("ascii", "replace").strip("\0 ")
                else:
                    _skip(file, values[SYNTAX] == IMPLICIT, tag, n_bytes)
    except (OSError, struct.error):
        return None
    kinds = values[IMAGE_TYPE].split("\\")
    return (values[SERIES], kinds[2] if len(kinds) > 2 else "") if values[SERIES] else None


def _element(file: IO[bytes], is_implicit: bool) -> tuple[tuple[int, int], int]:
    """The tag of the next element of a DICOM file, and the length of its value; raises struct.error at the end."""
    group, element, kind = struct.unpack("<HH2s", file.read(6))
    if group == ITEM[0] or (is_implicit and group != SYNTAX[0]):
        return (group, element), int.from_bytes(kind + file.read(2), "little")
    if kind in LONG:
        return (group, element), struct.unpack("<2xI", file.read(6))[0]
    return (group, element), struct.unpack("<H", file.read(2))[0]


def _skip(file: IO[bytes], is_implicit: bool, tag: tuple[int, int], n_bytes: int) -> None:
    """Move behind a value, also one of items of undefined length."""
    if n_bytes != UNDEFINED:
        file.seek(n_bytes, 1)
        return
    end = ITEM_END if tag == ITEM else SEQUENCE_END
    while True:
        tag, n_bytes = _element(file, is_implicit)
        if tag == end:
            return
        _skip(file, is_implicit, tag, n_bytes)
