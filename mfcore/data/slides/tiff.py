"""TIFF read by its own tiles or strips, each decoded once for all announced reads.

Of a tiled TIFF that OpenSlide opens, OpenSlide gives geometry and resolution, and px are decoded here. OpenSlide doesn't
open striped TIFF, which is read here altogether. Px that neither reads as the tags say are refused.
"""

import dataclasses
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mfcore.data.slides.openslide import OpenSlideReader
from mfcore.data.slides.reader import CONVERT, TURN, Reader, SlideError, Window, overlap, stated_resolution
from mfcore.data.slides.tiff_index import Index, Page
from mfcore.data.slides.tiles import Key, Memory, Tiles

VENDORS = ("generic-tiff", "aperio")  # OpenSlide's TIFF formats whose tiles lie on a grid, without overlap
MAX_TILE_BYTES = 256 << 20
REMEDY = f"if the file is whole, make it a tiled TIFF: {CONVERT}"


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
        self._path = path
        self._levels = levels
        self.level_sizes_px = tuple((level.width, level.height) for level in levels)
        self.size_px = self.level_sizes_px[0]
        self.downsamples = downsamples
        self.stated_um_per_px, self.tag = um_per_px
        self._tiles = Tiles(self.decode, memory)
        self._lock = threading.Lock()
        self._file = -1

    def add_reduced(self) -> None:
        """Add virtual levels: JPEG tiles decoded at 1/2, 1/4 or 1/8 size, where the file has no coarser level already.

        A px of them is the mean of px of the level, as JPEG's own transform gives it, at less cost than the level.
        """
        coarser = (*self.downsamples[1:], float("inf"))
        for page, downsample, next_downsample in zip(self._levels, self.downsamples, coarser, strict=True):
            for factor in (2, 4, 8):
                # Tiles of other sides wouldn't join without a seam.
                can_join = page.is_jpeg and page.is_tiled and page.tile_width % factor == page.tile_height % factor == 0
                if can_join and downsample * factor * 1.001 < next_downsample:
                    self._levels += (_reduced(page, factor),)
                    self.downsamples += (downsample * factor,)
        self.level_sizes_px = tuple((level.width, level.height) for level in self._levels)

    def expect(self, windows: Iterable[Window]) -> None:
        """See `mfcore.data.slides.reader.Reader`."""
        self._tiles.expect(self._keys(window) for window in windows)

    def region(self, window: Window) -> np.ndarray:
        """See `mfcore.data.slides.reader.Reader`."""
        page, (left, right), (top, bottom) = self._inside(window)
        pixels = np.full((window.height, window.width, 3), 255, np.uint8)
        for key in self._keys(window):
            tile = self._tiles.get(key)
            row, column = divmod(key[1], page.n_across)
            x, y = column * page.tile_width, row * page.tile_height
            x0, x1, y0, y1 = max(left, x), min(right, x + page.tile_width), max(top, y), min(bottom, y + page.tile_height)
            part = pixels[y0 - window.y_px : y1 - window.y_px, x0 - window.x_px : x1 - window.x_px]
            part[:] = tile[y0 - y : y1 - y, x0 - x : x1 - x]
        return pixels

    def _inside(self, window: Window) -> tuple[Page, tuple[int, int], tuple[int, int]]:
        """The page of a window's level, and the columns and the rows, each [first, last), of the window inside the page."""
        page = self._levels[window.level]
        columns, rows = overlap(window.x_px, window.width, page.width), overlap(window.y_px, window.height, page.height)
        return page, columns, rows

    def _keys(self, window: Window) -> list[Key]:
        """The tiles that a window touches, row by row."""
        page, (left, right), (top, bottom) = self._inside(window)
        if left == right or top == bottom:
            return []
        rows = range(top // page.tile_height, (bottom - 1) // page.tile_height + 1)
        columns = range(left // page.tile_width, (right - 1) // page.tile_width + 1)
        return [(window.level, row * page.n_across + column) for row in rows for column in columns]

    @property
    def n_bytes_index(self) -> int:
        """Bytes of the file's index, which stays in memory when the file is closed."""
        return sum(level.offsets.nbytes + level.n_bytes.nbytes for level in self._levels if level.reduction == 1)

    def decode(self, key: Key) -> np.ndarray:
        """One tile from the file, uint8 (height, width, 3); raises SlideError where it is damaged."""
        level, k = key
        page = self._levels[level]
        row, column = divmod(k, page.n_across)
        height = page.tile_height if page.is_tiled else min(page.tile_height, page.height - row * page.tile_height)
        shape = (page.tile_height, page.tile_width) if page.reduction > 1 else (0, 0)
        try:
            data = os.pread(self._opened(), int(page.n_bytes[k]), int(page.offsets[k]))
            tile = page.decode(data, k, shape)
            if tile.shape != (height, page.tile_width, 3):
                raise ValueError(f"{tile.shape} instead of {(height, page.tile_width, 3)}")
        except Exception as error:  # each codec has its own
            x_l0_px, y_l0_px = (
                round(at_px * self.downsamples[level]) for at_px in (column * page.tile_width, row * page.tile_height)
            )
            raise SlideError(
                f"{self._path}: damaged near level-0 px ({x_l0_px}, {y_l0_px}), level {level} ({error}); fetch the file again"
            ) from None
        return tile

    def _opened(self) -> int:
        """The open file."""
        if self._file < 0:
            with self._lock:
                if self._file < 0:
                    self._file = os.open(self._path, os.O_RDONLY)
        return self._file

    def close(self) -> None:
        """Give file and memory back, but keep the index: a later read opens the file again. No thread may be reading."""
        self._tiles.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _reduced(page: Page, factor: int) -> Page:
    """A page whose JPEG tiles are decoded ``factor`` times smaller."""
    return dataclasses.replace(
        page,
        width=-(-page.width // factor),
        height=-(-page.height // factor),
        tile_width=page.tile_width // factor,
        tile_height=page.tile_height // factor,
        reduction=factor,
    )


def over(reader: OpenSlideReader, path: Path, index: Index, memory: Memory) -> Reader:
    """A reader of the file's own tiles with OpenSlide's geometry; ``reader`` where OpenSlide must decode the px.

    Raises SlideError, and closes ``reader``, for px that neither reads as the tags say.
    """
    levels = [
        [page for page in index.pages if page.is_tiled and (page.width, page.height) == size_px]
        for size_px in reader.level_sizes_px
    ]
    try:
        refuse_unusual(path, index, [page for pages in levels for page in pages])
    except SlideError:
        reader.close()
        raise
    for pages in levels:
        # OpenSlide fills tiles without bytes.
        if len(pages) != 1 or pages[0].unusual or not pages[0].is_complete or pages[0].n_bytes_tile > MAX_TILE_BYTES:
            return reader
    if reader.vendor not in VENDORS:
        return reader
    reader.close()
    stated = reader.stated_um_per_px, reader.tag
    return TiffReader(path, tuple(page for (page,) in levels), reader.downsamples, stated, memory)


def refuse_unusual(path: Path, index: Index, pages: Iterable[Page]) -> None:
    """Raise SlideError, with the remedy, where a page is tiled and neither reader reads its px as the tags say."""
    for page in pages:
        if page.is_tiled and not page.is_openslides:
            raise _unusual(path, index, page)


def _unusual(path: Path, index: Index, page: Page) -> SlideError:
    remedy = TURN if page.unusual.startswith("orientation") else REMEDY
    return SlideError(f"{path}: {index.kind} with {page.unusual}; {remedy}")


def plain(path: Path, index: Index, memory: Memory) -> TiffReader:
    """A reader of a striped TIFF of one image, level 0 alone; raises SlideError for what isn't 8-bit RGB in one image."""
    refuse_unusual(path, index, index.pages[:1])
    if not index.pages or index.pages[0].is_tiled:
        kind = f"{index.kind}, cut short or of an unusual kind" if index.pages else index.kind
        raise SlideError(f"{path}: {kind}, which OpenSlide doesn't read; {REMEDY}")
    first, *others = index.pages
    if first.unusual:
        raise _unusual(path, index, first)
    if any(not page.is_thumbnail and page.width * page.height >= first.width * first.height for page in others):
        raise SlideError(f"{path}: {index.kind} of {len(index.pages)} images; keep the one that is meant, and {REMEDY}")
    if not first.is_complete:
        raise SlideError(f"{path}: {index.kind} that lacks some of its strips; fetch the file again")
    if first.n_bytes_tile > MAX_TILE_BYTES:
        raise SlideError(
            f"{path}: {first.width:,} x {first.height:,} px in strips of {first.n_bytes_tile:,} bytes, each decoded whole, up "
            f"to {MAX_TILE_BYTES:,}; make it a tiled TIFF: {CONVERT}"
        )
    return TiffReader(path, (first,), (1.0,), stated_resolution(path, first.um_per_px), memory)
