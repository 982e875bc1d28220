"""TIFF read by its own tiles or strips, each decoded once for all reads that were announced.

Of a tiled TIFF that OpenSlide opens, geometry and resolution are OpenSlide's; px are decoded here where that gives the same,
which is tried on the tile with the most bytes. A striped TIFF, which OpenSlide doesn't open, is read here altogether.
"""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mfcore.slides_openslide import OpenSlideReader
from mfcore.slides_reader import CONVERT, Reader, SlideError, Window, overlap, stated_resolution
from mfcore.slides_tiles import Key, Memory, Tiles

if TYPE_CHECKING:
    import tifffile

JPEG = 7
LOSSLESS = (1, 5, 8, 32773, 32946, 50000)  # none, LZW, deflate, PackBits, deflate's old number, Zstandard
RGB, YCBCR = 2, 6  # photometric interpretations
ALPHA = {0: None, 1: "premultiplied", 2: "straight"}  # by the tag ExtraSamples
VENDORS = ("generic-tiff", "aperio")  # of OpenSlide's TIFF formats, those whose tiles lie on a grid, without overlap
LARGE_TILE_BYTES = 32 << 20  # from here on a tile is counted like a whole image
MAX_TILE_BYTES = 512 << 20


@dataclass(frozen=True)
class Page:
    """One image of a TIFF. ``decode`` makes a tile from its bytes and number; ``unusual`` says why there is none, else ""."""

    width: int
    height: int
    is_tiled: bool
    is_reduced: bool
    tile_width: int
    tile_height: int
    offsets: np.ndarray  # (n_tiles,)
    n_bytes: np.ndarray  # (n_tiles,)
    decode: Callable[[bytes, int], np.ndarray] | None
    unusual: str
    um_per_px: tuple[float, ...]  # of the resolution tags, x and y
    decode_reduced: Callable[..., np.ndarray] | None = None  # the same, and (height, width) that it shall have

    @property
    def n_across(self) -> int:
        """Tiles in a row."""
        return -(-self.width // self.tile_width)

    @property
    def n_bytes_tile(self) -> int:
        """Bytes of a decoded tile."""
        return 3 * self.tile_width * min(self.tile_height, self.height)


@dataclass(frozen=True)
class Index:
    """What a TIFF's index says: its kind in words, its pages."""

    kind: str
    pages: tuple[Page, ...]


def look_into(path: Path) -> Index | None:
    """Read a TIFF's index, None for any other file; raises SlideError where it points beyond the end of the file.

    OpenSlide opens a file that was cut short if the index is whole, and then fails at the first patch that isn't there.
    """
    import tifffile

    n_bytes = path.stat().st_size
    try:
        with tifffile.TiffFile(path) as tiff:
            pages = tuple(_page(page) for page in tiff.pages if isinstance(page, tifffile.TiffPage))
            end = max(int((page.offsets + page.n_bytes).max(initial=0)) for page in pages)
    except tifffile.TiffFileError:
        return None
    except (ValueError, IndexError, OSError):
        return Index("a TIFF with a damaged index", ())  # or one of a maker's own, which OpenSlide may know
    if end > n_bytes:
        raise SlideError(f"{path}: cut short: {n_bytes:,} of {end:,} bytes or more are there; fetch the file again")
    return Index("a tiled TIFF, cut short or of an unusual kind" if pages[0].is_tiled else "a striped TIFF", pages)


def _page(page: "tifffile.TiffPage") -> Page:
    """What reading needs of a page; the file may be closed then."""
    n_known = min(len(page.dataoffsets), len(page.databytecounts))
    unusual = _unusual(page)
    return Page(
        width=page.imagewidth,
        height=page.imagelength,
        is_tiled=page.is_tiled,
        is_reduced=bool(page.subfiletype & 1),
        tile_width=page.tilewidth if page.is_tiled else page.imagewidth,
        tile_height=page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength),
        offsets=np.array(page.dataoffsets[:n_known], dtype=np.int64),
        n_bytes=np.array(page.databytecounts[:n_known], dtype=np.int64),
        decode=None if unusual else _decoder(page),
        unusual=unusual,
        um_per_px=_um_per_px(page),
        decode_reduced=None
        if unusual or page.compression != JPEG
        else _jpeg_decoder(page.jpegtables, page.photometric == YCBCR),
    )


def _unusual(page: "tifffile.TiffPage") -> str:
    """Why the px of a page aren't decoded here, "" where they are."""
    alphas = [ALPHA.get(int(extra)) for extra in page.extrasamples]
    if page.dtype != np.uint8 or page.bitspersample != 8:
        return f"{page.bitspersample} bits a channel"
    if page.photometric not in (RGB, YCBCR) or page.samplesperpixel - len(alphas) != 3:
        return f"{getattr(page.photometric, 'name', page.photometric)} colours"
    if alphas and (alphas not in (["straight"], ["premultiplied"]) or page.compression == JPEG or page.is_tiled):
        return f"{page.samplesperpixel} channels"
    if page.planarconfig != 1:
        return "channels stored apart"
    if page.compression != JPEG and (page.compression not in LOSSLESS or page.photometric != RGB):
        return f"{getattr(page.compression, 'name', page.compression)} compression"
    if getattr(page, "imagedepth", 1) != 1:
        return "more than one plane"
    return ""


def _um_per_px(page: "tifffile.TiffPage") -> tuple[float, ...]:
    """What the resolution tags say; empty where they say nothing."""
    um = {2: 25400.0, 3: 10000.0}.get(int(page.tags.valueof("ResolutionUnit", 2)))
    pairs = [page.tags.valueof(f"{axis}Resolution") for axis in "XY"]
    if um is None or not all(isinstance(pair, tuple) and len(pair) == 2 and all(pair) for pair in pairs):
        return ()
    return tuple(um * below / above for above, below in pairs)


def _decoder(page: "tifffile.TiffPage") -> Callable[[bytes, int], np.ndarray]:
    """What makes a tile, uint8 (height, width, 3), from its bytes and number; raises whatever its codec raises."""
    if page.compression == JPEG:
        return _jpeg_decoder(page.jpegtables, page.photometric == YCBCR)
    decode, alphas = page.decode, [ALPHA[int(extra)] for extra in page.extrasamples]

    def decode_lossless(data: bytes, k: int, scratch: bytearray | None) -> np.ndarray:
        tile = decode(data, k)[0][0]
        if not alphas:
            return tile
        opacity = tile[..., 3:].astype(np.uint16)
        colour = tile[..., :3] if alphas == ["premultiplied"] else (tile[..., :3] * opacity + 127) // 255
        return np.minimum(colour + (255 - opacity), 255).astype(np.uint8)

    return decode_lossless


def _jpeg_decoder(tables: bytes | None, is_ycbcr: bool) -> Callable[..., np.ndarray]:
    """The same for JPEG, whose tables may stand once for all tiles; asked for half, a quarter
    or an eighth of a tile's (height, width), it makes it that small.

    simplejpeg refuses what libjpeg only warns of, as OpenSlide does; imagecodecs, tifffile's, fills damaged parts with grey.
    """
    import simplejpeg

    # TIFF says in a tag of its own which colours these are; Adobe's segment tells the decoder.
    colours = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([is_ycbcr])
    start = b"\xff\xd8" + colours + (tables[2:-2] if tables else b"")

    def decode_jpeg(data: bytes, k: int, scratch: bytearray | None, shape: tuple[int, int] = (0, 0)) -> np.ndarray:
        if data[:2] != b"\xff\xd8":
            raise ValueError("not a JPEG image")
        return simplejpeg.decode_jpeg(start + data[2:], min_height=shape[0], min_width=shape[1], buffer=scratch, strict=True)

    return decode_jpeg


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
        """See `mfcore.slides_reader.Reader`."""
        return at_px * self.downsamples[level]

    def expect(self, windows: Iterable[Window]) -> None:
        """See `mfcore.slides_reader.Reader`; waits for memory where a single tile needs much."""
        if self.n_bytes_whole and not self._is_reserved:
            self._memory.wait_and_add(self.n_bytes_whole)
            self._is_reserved = True
        self._tiles.expect(self._keys(window) for window in windows)

    def region(self, window: Window, out: np.ndarray | None = None) -> np.ndarray:
        """See `mfcore.slides_reader.Reader`."""
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
    """A reader of the file's own tiles with OpenSlide's geometry, or OpenSlide's where that wouldn't give the same px."""
    if reader.vendor not in VENDORS:
        return reader
    levels = []
    for size_px in reader.level_sizes_px:
        fitting = [page for page in index.pages if page.is_tiled and (page.width, page.height) == size_px]
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


def plain(path: Path, index: Index, memory: Memory) -> TiffReader:
    """A reader of a striped TIFF of one image, level 0 alone; raises SlideError for what isn't 8-bit RGB in one image."""
    remedy = f"if the file is whole, make it a tiled TIFF: {CONVERT}"
    if not index.pages or index.pages[0].is_tiled:
        raise SlideError(f"{path}: {index.kind}, which OpenSlide doesn't read; {remedy}")
    first, *others = index.pages
    if first.unusual:
        raise SlideError(f"{path}: {index.kind} with {first.unusual}, expected 8 bits a channel, RGB; {remedy}")
    if any(not page.is_reduced and page.width * page.height >= first.width * first.height for page in others):
        raise SlideError(f"{path}: {index.kind} of {len(index.pages)} images; keep the one that is meant, and {remedy}")
    n_tiles = -(-first.height // first.tile_height)
    if len(first.offsets) != n_tiles or not first.n_bytes.all():
        raise SlideError(f"{path}: {index.kind} that lacks some of its {n_tiles} strips; fetch the file again")
    if first.n_bytes_tile > MAX_TILE_BYTES:
        raise SlideError(
            f"{path}: {first.width:,} x {first.height:,} px in strips of {first.n_bytes_tile:,} bytes, each decoded whole, "
            f"which is done up to {MAX_TILE_BYTES:,}; make it a tiled TIFF: {CONVERT}"
        )
    return TiffReader(path, (first,), (1.0,), stated_resolution(path, first.um_per_px), memory)
