"""TIFF and PNG read by their own tiles or strips, which stay decoded for further reads while memory
lasts.

Of a tiled TIFF that OpenSlide opens, OpenSlide gives geometry and resolution, and px are decoded
here. OpenSlide doesn't open striped TIFF or PNG, which are read here altogether; a PNG is one tile.
"""

import itertools
import os
from pathlib import Path

import numpy as np

from mfcore.data.slides.openslide import OpenSlideReader
from mfcore.data.slides.reader import CONVERT, Reader, SlideError, Window, stated_resolution
from mfcore.data.slides.tiff_index import APERIOS, JPEG, REMEDY, Page, refuse_unusual
from mfcore.data.slides.tiles import Memory

# OpenSlide's TIFF formats whose tiles lie on a grid, without overlap
VENDORS = ("generic-tiff", "aperio")
MAX_TILE_BYTES = 256 << 20


class TiffReader(Reader):
    """Levels of a TIFF, each a `Page`; geometry and resolution (um/px and text) are given."""

    def __init__(
        self,
        path: Path,
        levels: tuple[Page, ...],
        downsamples: tuple[float, ...],
        um_per_px: tuple[float | None, str],
        memory: Memory,
    ):
        self._path, self._memory, self._levels = path, memory, levels
        self.size_px = levels[0].width, levels[0].height
        self.downsamples = downsamples
        self.stated_um_per_px, self.tag = um_per_px
        self._file = path.open("rb", buffering=0)

    @property
    def level_sizes_px(self) -> tuple[tuple[int, int], ...]:
        """See `mfcore.data.slides.reader.Reader`."""
        return tuple((level.width, level.height) for level in self._levels)

    def add_reduced(self) -> None:
        """Add virtual levels: JPEG tiles decoded at 1/2, 1/4 or 1/8 size, where the file has no
        coarser level already.

        A px of them is the mean of px of the level, as JPEG's own transform gives it, at less cost
        than the level.
        """
        levels = zip(self._levels, self.downsamples, (*self.downsamples[1:], np.inf), strict=True)
        for (page, downsample, coarser), factor in itertools.product(levels, (2, 4, 8)):
            # Tiles of other sides wouldn't join without a seam.
            joins = page.tile_width % factor == page.tile_height % factor == 0
            is_new = downsample * factor * 1.001 < coarser
            if page.compression == JPEG and page.is_tiled and joins and is_new:
                self._levels += (page.reduced(factor),)
                self.downsamples += (downsample * factor,)

    def region(self, window: Window) -> np.ndarray:
        """See `mfcore.data.slides.reader.Reader`."""
        page = self._levels[window.level]
        pixels = np.full((window.height, window.width, 3), 255, np.uint8)
        bottom = min(window.y_px + window.height, page.height)
        right = min(window.x_px + window.width, page.width)
        for row, column in itertools.product(
            range(max(window.y_px, 0) // page.tile_height, -(-bottom // page.tile_height)),
            range(max(window.x_px, 0) // page.tile_width, -(-right // page.tile_width)),
        ):
            key = window.level, row * page.n_across + column
            tile = self._memory.tile((self, *key), lambda key=key: self.decode(key))
            # where in the window the tile begins
            y, x = row * page.tile_height - window.y_px, column * page.tile_width - window.x_px
            top, left = max(y, 0), max(x, 0)
            part = pixels[top : max(y + len(tile), 0), left : max(x + tile.shape[1], 0)]
            part[:] = tile[top - y :, left - x :][: part.shape[0], : part.shape[1]]
        return pixels

    def decode(self, key: tuple[int, int]) -> np.ndarray:
        """A level's tile by number, uint8 (height, width, 3), as far as it lies on the slide;
        raises SlideError for damage.
        """
        level, k = key
        page = self._levels[level]
        row, column = divmod(k, page.n_across)
        y, x = row * page.tile_height, column * page.tile_width
        shape = (page.tile_height, page.tile_width)
        try:
            data = os.pread(self._file.fileno(), int(page.n_bytes[k]), int(page.offsets[k]))
            whole = page.decode(data, k, shape if page.reduction > 1 else (0, 0))
            if len(whole) not in (shape[0], page.height - y) or whole.shape[1:] != (shape[1], 3):
                raise ValueError(f"{whole.shape} instead of {(*shape, 3)}")
            return whole[: page.height - y, : page.width - x]
        except Exception as error:  # each codec has its own
            x, y = (round(at * self.downsamples[level]) for at in (x, y))
            raise SlideError(
                f"{self._path}: damaged near level-0 px ({x}, {y}), level {level} ({error}); fetch"
                " the file again"
            ) from None

    def close(self) -> None:
        """Give file and memory back; no thread may be reading."""
        self._memory.close(self)
        self._file.close()


def tiled(reader: OpenSlideReader, path: Path, pages: list[Page], memory: Memory) -> Reader:
    """A reader of the file's own tiles with OpenSlide's geometry; ``reader`` where OpenSlide must
    decode the px.

    Raises SlideError for px that neither reads as the tags say.
    """
    levels = [
        [page for page in pages if page.is_tiled and (page.width, page.height) == size_px]
        for size_px in reader.level_sizes_px
    ]
    refuse_unusual(path, itertools.chain(*levels))
    # OpenSlide fills tiles without bytes.
    if reader.vendor not in VENDORS or not all(
        len(level) == 1
        and level[0].is_complete
        and level[0].n_bytes_tile <= MAX_TILE_BYTES
        and level[0].compression not in APERIOS
        for level in levels
    ):
        return reader
    reader.close()
    stated = reader.stated_um_per_px, reader.tag
    return TiffReader(path, tuple(page for (page,) in levels), reader.downsamples, stated, memory)


def untiled(path: Path, pages: list[Page], memory: Memory) -> TiffReader:
    """A reader of a striped TIFF of one image, or of a PNG: of level 0 alone.

    Raises SlideError for what isn't 8-bit RGB in one image, or is too large to decode.
    """
    first, *others = pages
    refuse_unusual(path, [first])
    n_px = first.width * first.height
    if first.is_tiled:
        problem = f", cut short or of an unusual kind, which OpenSlide doesn't read; {REMEDY}"
    elif any(not page.is_thumbnail and page.width * page.height >= n_px for page in others):
        problem = f" of {len(pages)} images; keep the one that is meant, and {REMEDY}"
    elif first.n_bytes_tile > MAX_TILE_BYTES:
        problem = (
            f" of {first.width:,} x {first.height:,} px in parts of {first.n_bytes_tile:,} bytes,"
            f" each decoded whole, up to {MAX_TILE_BYTES:,}; make it a tiled TIFF: {CONVERT}"
        )
    else:
        stated = stated_resolution(path, first.um_per_px)
        return TiffReader(path, (first,), (1.0,), stated, memory)
    raise SlideError(f"{path}: {first.kind}{problem}")
