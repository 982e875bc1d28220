"""TIFF and PNG read by their own tiles or strips, which stay decoded for further reads while memory
lasts.

Of a tiled TIFF that OpenSlide opens, OpenSlide gives geometry and resolution, and px are decoded
here. OpenSlide doesn't open striped TIFF or PNG, which are read here altogether; a PNG is one tile.
"""

import dataclasses
import os
import threading
from pathlib import Path

import numpy as np

from mfcore.data.slides.openslide import OpenSlideReader
from mfcore.data.slides.reader import (
    CONVERT,
    Reader,
    SlideError,
    Window,
    overlap,
    stated_resolution,
)
from mfcore.data.slides.tiff_index import REMEDY, Page, refuse_unusual
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
        self._path = path
        self._levels = levels
        self.level_sizes_px = tuple((level.width, level.height) for level in levels)
        self.size_px = self.level_sizes_px[0]
        self.downsamples = downsamples
        self.stated_um_per_px, self.tag = um_per_px
        self._memory = memory
        self._lock = threading.Lock()
        self._file = -1

    def add_reduced(self) -> None:
        """Add virtual levels: JPEG tiles decoded at 1/2, 1/4 or 1/8 size, where the file has no
        coarser level already.

        A px of them is the mean of px of the level, as JPEG's own transform gives it, at less cost
        than the level.
        """
        coarser = (*self.downsamples[1:], float("inf"))
        for page, downsample, next_downsample in zip(
            self._levels, self.downsamples, coarser, strict=True
        ):
            for factor in (2, 4, 8):
                # Tiles of other sides wouldn't join without a seam.
                can_join = (
                    page.is_jpeg
                    and page.is_tiled
                    and page.tile_width % factor == page.tile_height % factor == 0
                )
                if can_join and downsample * factor * 1.001 < next_downsample:
                    self._levels += (_reduced(page, factor),)
                    self.downsamples += (downsample * factor,)
        self.level_sizes_px = tuple((level.width, level.height) for level in self._levels)

    def region(self, window: Window) -> np.ndarray:
        """See `mfcore.data.slides.reader.Reader`."""
        page = self._levels[window.level]
        left, right = overlap(window.x_px, window.width, page.width)
        top, bottom = overlap(window.y_px, window.height, page.height)
        pixels = np.full((window.height, window.width, 3), 255, np.uint8)
        if left == right or top == bottom:
            return pixels
        for row in range(top // page.tile_height, (bottom - 1) // page.tile_height + 1):
            for column in range(left // page.tile_width, (right - 1) // page.tile_width + 1):
                key = window.level, row * page.n_across + column
                tile = self._memory.tile((self, *key), lambda key=key: self.decode(key))
                x, y = column * page.tile_width, row * page.tile_height
                x0, x1 = max(left, x), min(right, x + page.tile_width)
                y0, y1 = max(top, y), min(bottom, y + page.tile_height)
                part = pixels[
                    y0 - window.y_px : y1 - window.y_px, x0 - window.x_px : x1 - window.x_px
                ]
                part[:] = tile[y0 - y : y1 - y, x0 - x : x1 - x]
        return pixels

    def decode(self, key: tuple[int, int]) -> np.ndarray:
        """A level's tile by number, uint8 (height, width, 3); raises SlideError for damage."""
        level, k = key
        page = self._levels[level]
        row, column = divmod(k, page.n_across)
        height = (
            page.tile_height
            if page.is_tiled
            else min(page.tile_height, page.height - row * page.tile_height)
        )
        shape = (page.tile_height, page.tile_width) if page.reduction > 1 else (0, 0)
        try:
            data = os.pread(self._opened(), int(page.n_bytes[k]), int(page.offsets[k]))
            tile = page.decode(data, k, shape)
            if tile.shape != (height, page.tile_width, 3):
                raise ValueError(f"{tile.shape} instead of {(height, page.tile_width, 3)}")
        except Exception as error:  # each codec has its own
            x, y = (
                round(at * self.downsamples[level])
                for at in (column * page.tile_width, row * page.tile_height)
            )
            raise SlideError(
                f"{self._path}: damaged near level-0 px ({x}, {y}), level {level} ({error}); fetch"
                " the file again"
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
        """Give file and memory back, but keep the index: a later read opens the file again. No
        thread may be reading.
        """
        self._memory.close(self)
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


def tiled(reader: OpenSlideReader, path: Path, pages: list[Page], memory: Memory) -> Reader:
    """A reader of the file's own tiles with OpenSlide's geometry; ``reader`` where OpenSlide must
    decode the px.

    Raises SlideError for px that neither reads as the tags say.
    """
    levels = [
        [page for page in pages if page.is_tiled and (page.width, page.height) == size_px]
        for size_px in reader.level_sizes_px
    ]
    refuse_unusual(path, [page for level in levels for page in level])
    for level in levels:
        # OpenSlide fills tiles without bytes.
        is_read_here = (
            len(level) == 1 and level[0].is_complete and level[0].n_bytes_tile <= MAX_TILE_BYTES
        )
        if not is_read_here or level[0].is_openslides or reader.vendor not in VENDORS:
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
    if first.is_tiled:
        raise SlideError(
            f"{path}: {first.kind}, cut short or of an unusual kind, which OpenSlide doesn't read;"
            f" {REMEDY}"
        )
    if any(
        not page.is_thumbnail and page.width * page.height >= first.width * first.height
        for page in others
    ):
        raise SlideError(
            f"{path}: {first.kind} of {len(pages)} images; keep the one that is meant, and {REMEDY}"
        )
    if not first.is_complete:
        raise SlideError(
            f"{path}: {first.kind} that lacks some of its strips; fetch the file again"
        )
    if first.n_bytes_tile > MAX_TILE_BYTES:
        raise SlideError(
            f"{path}: {first.width:,} x {first.height:,} px in parts of {first.n_bytes_tile:,}"
            f" bytes, each decoded whole, up to {MAX_TILE_BYTES:,}; make it a tiled TIFF: {CONVERT}"
        )
    return TiffReader(path, (first,), (1.0,), stated_resolution(path, first.um_per_px), memory)
