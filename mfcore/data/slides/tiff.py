"""TIFF read by its own tiles or strips, each decoded once for all reads that were announced.

Of a tiled TIFF that OpenSlide opens, geometry and resolution are OpenSlide's; px are decoded here where that gives the same,
which is tried on the tile with the most bytes. A striped TIFF, which OpenSlide doesn't open, is read here altogether. Px that
neither reads as the file's tags say are refused.
"""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mfcore.data.slides.openslide import OpenSlideReader
from mfcore.data.slides.reader import CONVERT, Reader, SlideError, Window, overlap, stated_resolution
from mfcore.data.slides.tiff_index import Index, Page
from mfcore.data.slides.tiles import Key, Memory, Tiles

VENDORS = ("generic-tiff", "aperio")  # of OpenSlide's TIFF formats, those whose tiles lie on a grid, without overlap
LARGE_TILE_BYTES = 32 << 20  # from here on a tile is counted like a whole image
MAX_TILE_BYTES = 512 << 20
REMEDY = f"if the file is whole, make it a tiled TIFF: {CONVERT}"


class TiffReader:
    """Levels of a TIFF, each a `Page`; geometry and resolution are given.

    ``judge``, where there is one, has the last word on tiles that can't be decoded here; it is closed with this reader.
    """

    def __init__(
        self,
        path: Path,
        levels: tuple[Page, ...],
        downsamples: tuple[float, ...],
        um_per_px: tuple[float | None, str],
        memory: Memory,
        judge: OpenSlideReader | None = None,
    ):
        self._path = path
        self._levels = levels
        self.scanned_at_px = (0, 0)  # of the formats that are read here
        self._n_own = len(levels)
        self._judge = judge
        self._dozes = self._lacks_judge = False
        self.level_sizes_px = tuple((level.width, level.height) for level in levels)
        self.size_px = self.level_sizes_px[0]
        self.downsamples = downsamples
        self.stated_um_per_px, self.tag = um_per_px
        largest = max(level.n_bytes_tile for level in levels)
        self.n_bytes_whole = largest if largest > LARGE_TILE_BYTES else 0
        self._memory = memory
        self._is_reserved = False
        self._tiles = Tiles(self.decode, Memory(self.n_bytes_whole) if self.n_bytes_whole else memory)
        self._file = os.open(path, os.O_RDONLY)
        self._lock = threading.Lock()

    def add_reduced(self) -> None:
        """Add a level for every file's level that JPEG can decode 2, 4 or 8 times smaller, without what is coarser in the file.

        A px of it is the mean over its px, in steps of JPEG's own transform; less is computed for it than for the level.
        """
        coarser = (*self.downsamples[1:], float("inf"))
        for page, downsample, next_downsample in zip(self._levels, self.downsamples, coarser, strict=True):
            for factor in (2, 4, 8):
                if downsample * factor * 1.001 < next_downsample and (smaller := _reduced(page, factor)) is not None:
                    self._levels = (*self._levels, smaller)
                    self.downsamples = (*self.downsamples, downsample * factor)
        self.level_sizes_px = tuple((level.width, level.height) for level in self._levels)

    def corner_l0_px(self, at_px: int, level: int) -> float:
        """See `mfcore.data.slides.reader.Reader`."""
        return at_px * self.downsamples[level]

    def expect(self, windows: Iterable[Window]) -> None:
        """See `mfcore.data.slides.reader.Reader`; waits for memory where a single tile needs much."""
        if self.n_bytes_whole and not self._is_reserved:
            self._memory.wait_and_add(self.n_bytes_whole)
            self._is_reserved = True
        self._tiles.expect(self._keys(window) for window in windows)

    def region(self, window: Window, out: np.ndarray | None = None) -> np.ndarray:
        """See `mfcore.data.slides.reader.Reader`."""
        page = self._levels[window.level]
        left, right = overlap(window.x_px, window.width, page.width)
        top, bottom = overlap(window.y_px, window.height, page.height)
        pixels = np.empty((window.height, window.width, 3), np.uint8) if out is None else out
        if (right - left, bottom - top) != (window.width, window.height):
            pixels[:] = 255
        for key in self._keys(window):
            tile = self._tiles.get(key)
            row, column = divmod(key[1], page.n_across)
            x, y = column * page.tile_width, row * page.tile_height
            x0, x1, y0, y1 = max(left, x), min(right, x + page.tile_width), max(top, y), min(bottom, y + page.tile_height)
            there = pixels[y0 - window.y_px : y1 - window.y_px, x0 - window.x_px : x1 - window.x_px]
            there[:] = tile[y0 - y : y1 - y, x0 - x : x1 - x]
        return pixels

    def _keys(self, window: Window) -> list[Key]:
        """The tiles that a window touches, row by row."""
        page = self._levels[window.level]
        left, right = overlap(window.x_px, window.width, page.width)
        top, bottom = overlap(window.y_px, window.height, page.height)
        if left == right or top == bottom:
            return []
        rows = range(top // page.tile_height, (bottom - 1) // page.tile_height + 1)
        columns = range(left // page.tile_width, (right - 1) // page.tile_width + 1)
        return [(window.level, row * page.n_across + column) for row in rows for column in columns]

    @property
    def n_bytes_index(self) -> int:
        """What is held of the file's index."""
        return sum(level.offsets.nbytes + level.n_bytes.nbytes for level in self._levels[: self._n_own])

    def doze(self) -> None:
        """Give file and decoded tiles back, but keep the index: the next read opens the file again. Nobody may be reading."""
        if self._judge is not None:
            self._judge.close()
            self._judge, self._lacks_judge = None, True
        self.release()
        self._dozes = True

    def _wake(self) -> None:
        """Open the file again; raises OSError where it is gone."""
        with self._lock:
            if self._dozes:
                self._file, self._dozes = os.open(self._path, os.O_RDONLY), False

    def _open_judge(self) -> OpenSlideReader | None:
        """The judge, where there is one; after a doze it is opened by whoever needs it first."""
        with self._lock:
            if self._lacks_judge:
                with contextlib.suppress(SlideError, OpenSlideReader.Unknown):
                    self._judge, self._lacks_judge = OpenSlideReader(self._path), False
        return self._judge

    def decode(self, key: Key, scratch: bytearray | None = None) -> np.ndarray:
        """One tile from the file, uint8 (height, width, 3); raises SlideError where it is damaged."""
        level, k = key
        page = self._levels[level]
        row, column = divmod(k, page.n_across)
        height = page.tile_height if page.is_tiled else min(page.tile_height, page.height - row * page.tile_height)
        assert page.decode is not None
        try:
            if self._dozes:
                self._wake()
            data = os.pread(self._file, int(page.n_bytes[k]), int(page.offsets[k]))
            tile = page.decode(data, k, scratch if scratch and page.n_bytes_tile <= len(scratch) else None)
            if tile.shape != (height, page.tile_width, 3):
                raise ValueError(f"{tile.shape} instead of {(height, page.tile_width, 3)}")
        except Exception as error:  # every codec has its own
            x_px, y_px = column * page.tile_width, row * page.tile_height
            # Some writers leave bytes behind a tile's end, which OpenSlide doesn't mind.
            if level < self._n_own and (judge := self._open_judge()) is not None:
                return judge.region(Window(level, x_px, y_px, page.tile_width, height))
            raise SlideError(
                f"{self._path}: damaged near level-0 px ({x_px}, {y_px}), level {level} ({error}); fetch the file again"
            ) from None
        return tile

    def close(self) -> None:
        """Give file and memory back."""
        self.release()
        if self._judge is not None:
            self._judge.close()

    def release(self) -> None:
        """The same, but leave the judge open."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._tiles.close()
        if self._is_reserved:
            self._memory.add(-self.n_bytes_whole)
            self._is_reserved = False


def _reduced(page: Page, factor: int) -> Page | None:
    """A page whose tiles are decoded so many times smaller; None where they aren't JPEG, or wouldn't join without a seam."""
    decode, sides = page.decode_reduced, (page.tile_width, page.tile_height)
    if decode is None or not page.is_tiled or any(side % factor for side in sides):
        return None
    width, height = (side // factor for side in sides)
    return dataclasses.replace(
        page,
        width=-(-page.width // factor),
        height=-(-page.height // factor),
        tile_width=width,
        tile_height=height,
        decode=lambda data, k, scratch: decode(data, k, scratch, (height, width)),
        decode_reduced=None,
    )


def over(reader: OpenSlideReader, path: Path, index: Index, memory: Memory) -> Reader:
    """A reader of the file's own tiles with OpenSlide's geometry, or OpenSlide's where that wouldn't give the same px.

    Raises SlideError, and closes OpenSlide's, for px that neither reads as the tags say.
    """
    tiled = [
        [page for page in index.pages if page.is_tiled and (page.width, page.height) == size_px]
        for size_px in reader.level_sizes_px
    ]
    try:
        refuse_unusual(path, index, [page for pages in tiled for page in pages])
    except SlideError:
        reader.close()
        raise
    if reader.vendor not in VENDORS:
        return reader
    levels = []
    for fitting in tiled:
        if len(fitting) != 1:
            return reader
        (page,) = fitting
        n_tiles = page.n_across * -(-page.height // page.tile_height)
        # A tile without bytes is OpenSlide's to fill.
        if page.unusual or len(page.offsets) != n_tiles or not page.n_bytes.all() or page.n_bytes_tile > MAX_TILE_BYTES:
            return reader
        levels.append(page)
    stated = reader.stated_um_per_px, reader.tag
    tiles = TiffReader(path, tuple(levels), reader.downsamples, stated, memory, judge=reader)
    first, k = levels[0], int(levels[0].n_bytes.argmax())
    row, column = divmod(k, first.n_across)
    x_px, y_px = column * first.tile_width, row * first.tile_height
    width, height = min(first.tile_width, first.width - x_px), min(first.tile_height, first.height - y_px)
    try:
        expected = reader.region(Window(0, x_px, y_px, width, height))
        if np.array_equal(tiles.decode((0, k))[:height, :width], expected):
            return tiles
    except SlideError:  # to be said again by the read that needs this tile
        tiles.close()
        return OpenSlideReader(path)
    tiles.release()
    return reader


def refuse_unusual(path: Path, index: Index, pages: Iterable[Page]) -> None:
    """Raise SlideError, with the remedy, where one of the pages is tiled and its px aren't read as the tags say."""
    for page in pages:
        if page.is_tiled and not page.is_openslides:
            raise SlideError(f"{path}: {index.kind} with {page.unusual}; {page.remedy or REMEDY}")


def plain(path: Path, index: Index, memory: Memory) -> TiffReader:
    """A reader of a striped TIFF of one image, level 0 alone; raises SlideError for what isn't 8-bit RGB in one image."""
    refuse_unusual(path, index, index.pages[:1])
    if not index.pages or index.pages[0].is_tiled:
        kind = f"{index.kind}, cut short or of an unusual kind" if index.pages else index.kind
        raise SlideError(f"{path}: {kind}, which OpenSlide doesn't read; {REMEDY}")
    first, *others = index.pages
    if first.unusual:
        remedy = f"; {first.remedy}" if first.remedy else f", expected 8 bits a channel, RGB; {REMEDY}"
        raise SlideError(f"{path}: {index.kind} with {first.unusual}{remedy}")
    if any(not page.is_reduced and page.width * page.height >= first.width * first.height for page in others):
        raise SlideError(f"{path}: {index.kind} of {len(index.pages)} images; keep the one that is meant, and {REMEDY}")
    n_tiles = -(-first.height // first.tile_height)
    if len(first.offsets) != n_tiles or not first.n_bytes.all():
        raise SlideError(f"{path}: {index.kind} that lacks some of its {n_tiles} strips; fetch the file again")
    if first.n_bytes_tile > MAX_TILE_BYTES:
        raise SlideError(
            f"{path}: {first.width:,} x {first.height:,} px in strips of {first.n_bytes_tile:,} bytes, each decoded whole, "
            f"which is done up to {MAX_TILE_BYTES:,}; make it a tiled TIFF: {CONVERT}"
        )
    return TiffReader(path, (first,), (1.0,), stated_resolution(path, first.um_per_px), memory)
