"""The pages of a TIFF or a PNG: where their tiles lie, how these are decoded, and what is unusual
in their px.
"""

import dataclasses
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL.PngImagePlugin import PngImageFile  # Image.open has another limit on px

from mfcore.data.slides.reader import CONVERT, ORIENTATION, TURN, SlideError, colour_problem

if TYPE_CHECKING:
    import tifffile

JPEG = 7
APERIOS = (33003, 33005)  # JPEG 2000, which OpenSlide decodes
# None, LZW, deflate, PackBits, the old deflate, Zstandard
LOSSLESS = (1, 5, 8, 32773, 32946, 50000)
RGB, YCBCR = 2, 6  # photometric interpretations
# Tags of px that are read, as tifffile calls them; codec and colours depend on one another.
USUAL = {
    "fillorder": (1,),
    "imagedepth": (1,),
    "bitspersample": (8,),
    "sampleformat": (1,),
    "samplesperpixel": (3,),
    "planarconfig": (1,),
}
PNG = b"\x89PNG\r\n\x1a\n"
REMEDY = f"if the file is whole, make it a tiled TIFF: {CONVERT}"

Decode = Callable[[bytes, int, tuple[int, int]], np.ndarray]
"""Makes a tile, uint8 (height, width, 3), of its bytes and its number.

The last argument is (height, width) of a tile that JPEG decodes smaller, else (0, 0).
Each codec raises its own errors.
"""


@dataclass(frozen=True)
class Page:
    """One image of a TIFF, in tiles or strips; or a PNG, which is one tile.

    kind: of file, in words. unusual: why neither reader may read the px, "" for no reason.
    um_per_px: of the resolution tags, x and y. compression: of a TIFF. reduction: how many times
    smaller than in the file its tiles are decoded.
    """

    kind: str
    width: int
    height: int
    tile_width: int
    tile_height: int
    offsets: np.ndarray  # (n_tiles,)
    n_bytes: np.ndarray  # (n_tiles,)
    decode: Decode
    unusual: str
    um_per_px: tuple[float, ...]
    is_tiled: bool = False
    compression: int = 0
    is_thumbnail: bool = False
    reduction: int = 1

    @property
    def n_across(self) -> int:
        """Tiles in a row."""
        return -(-self.width // self.tile_width)

    @property
    def n_bytes_tile(self) -> int:
        """Bytes of a decoded tile."""
        return 3 * self.tile_width * self.tile_height

    @property
    def is_complete(self) -> bool:
        """Whether the file has bytes for every tile."""
        n_tiles = self.n_across * -(-self.height // self.tile_height)
        return len(self.offsets) == n_tiles and bool(self.n_bytes.all())

    def reduced(self, factor: int) -> "Page":
        """The page with its JPEG tiles decoded ``factor`` times smaller."""
        return dataclasses.replace(
            self,
            width=-(-self.width // factor),
            height=-(-self.height // factor),
            tile_width=self.tile_width // factor,
            tile_height=self.tile_height // factor,
            reduction=factor,
        )


def pages_of(path: Path) -> list[Page]:
    """The pages of a TIFF, [] for any other file; raises SlideError for a damaged index or a file
    cut short.

    OpenSlide opens a file that was cut short if the index is whole, and fails at the first patch
    that is missing.
    """
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            pages = [_page(page) for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
    except tifffile.TiffFileError:
        return []
    except (ValueError, IndexError, OSError) as error:
        raise SlideError(
            f"{path}: a TIFF with a damaged index ({error}); fetch the file again"
        ) from None
    n_bytes = path.stat().st_size
    end = max((int((page.offsets + page.n_bytes).max(initial=0)) for page in pages), default=0)
    if end > n_bytes:
        raise SlideError(
            f"{path}: cut short: {n_bytes:,} of {end:,} bytes or more are there; fetch the file"
            " again"
        )
    return pages


def page_of_png(path: Path) -> Page:
    """A PNG in grey or RGB of 8 bits a channel; raises SlideError for damage, and for another
    format.
    """
    with path.open("rb") as content:
        head = content.read(len(PNG))
    if head != PNG:
        kind = path.suffix or "no suffix" if head else "an empty file"
        raise SlideError(
            f"{path}: {kind}, not a format that OpenSlide reads, nor TIFF or PNG; {REMEDY}"
        )
    try:
        with PngImageFile(path) as image:
            (width, height), unusual = image.size, colour_problem(image, ("L", "RGB"))
            dpi = image.info.get("dpi", ())
    except Exception as error:  # Pillow raises errors of many types
        raise SlideError(f"{path}: damaged ({error}); fetch the file again") from None
    return Page(
        kind="a PNG",
        width=width,
        height=height,
        tile_width=width,
        tile_height=height,
        offsets=np.zeros(1, dtype=np.int64),
        n_bytes=np.array([path.stat().st_size]),
        decode=lambda data, k, shape: np.asarray(PngImageFile(io.BytesIO(data)).convert("RGB")),
        unusual=unusual,
        um_per_px=tuple(25400 / float(value) for value in dpi if value),
    )


def refuse_unusual(path: Path, pages: Iterable[Page]) -> None:
    """Raise SlideError, with the remedy, for the first page whose px no reader reads as the tags
    say.
    """
    for page in pages:
        if page.unusual:
            remedy = TURN if page.unusual.startswith("orientation") else REMEDY
            raise SlideError(f"{path}: {page.kind} with {page.unusual}; {remedy}")


def _page(page: "tifffile.TiffPage") -> Page:
    """What reading needs of a page; the file may be closed then."""
    n_tiles = min(len(page.dataoffsets), len(page.databytecounts))
    return Page(
        kind="a tiled TIFF" if page.is_tiled else "a striped TIFF",
        width=page.imagewidth,
        height=page.imagelength,
        is_tiled=page.is_tiled,
        is_thumbnail=bool(page.subfiletype & 1),
        tile_width=page.tilewidth if page.is_tiled else page.imagewidth,
        tile_height=page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength),
        offsets=np.array(page.dataoffsets[:n_tiles], dtype=np.int64),
        n_bytes=np.array(page.databytecounts[:n_tiles], dtype=np.int64),
        decode=_decoder(page),
        unusual=_unusual(page),
        compression=page.compression,
        um_per_px=_um_per_px(page),
    )


def _unusual(page: "tifffile.TiffPage") -> str:
    """The tag by which a page isn't upright 8-bit RGB, or YCbCr in JPEG, of a known codec; "" for
    none.
    """
    orientation = page.tags.valueof(ORIENTATION, 1)
    if orientation in range(2, 9):
        return f"orientation {orientation}, turned or mirrored when shown"
    jpegs = (JPEG, *APERIOS * page.is_tiled)
    colours = (RGB, YCBCR) if page.compression in jpegs else (RGB,)
    usual = {**USUAL, "compression": (*jpegs, *LOSSLESS), "photometric": colours}
    values = {name: getattr(page, name) for name in usual}
    return ", ".join(
        f"{name} {getattr(value, 'name', value)}"
        for name, value in values.items()
        if value not in usual[name]
    )


def _um_per_px(page: "tifffile.TiffPage") -> tuple[float, ...]:
    """The um/px of the resolution tags, x and y; empty where the file has none."""
    um = {2: 25400.0, 3: 10000.0}.get(int(page.tags.valueof("ResolutionUnit", 2)))
    pairs = [page.tags.valueof(f"{axis}Resolution") for axis in "XY"]
    if um is None or not all(
        isinstance(pair, tuple) and len(pair) == 2 and all(pair) for pair in pairs
    ):
        return ()
    return tuple(um * below / above for above, below in pairs)


def _decoder(page: "tifffile.TiffPage") -> Decode:
    """The decoder of a page.

    simplejpeg refuses what libjpeg only warns of, as OpenSlide does; the JPEG of tifffile fills
    damaged parts with grey.
    """
    if page.compression != JPEG:
        decode = page.decode
        return lambda data, k, shape: decode(data, k)[0][0]
    import simplejpeg

    # The tag of the TIFF, not the tile, says which colours these are; Adobe's segment tells the
    # decoder.
    colours = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([page.photometric == YCBCR])
    start = b"\xff\xd8" + colours + (page.jpegtables[2:-2] if page.jpegtables else b"")

    def decode_jpeg(data: bytes, k: int, shape: tuple[int, int]) -> np.ndarray:
        at = 2
        # segments that may state other colours
        while data[at] == 0xFF and 0xE0 <= data[at + 1] <= 0xEF:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        jpeg, options = start + data[at:], {"min_height": shape[0], "min_width": shape[1]}
        try:
            return simplejpeg.decode_jpeg(jpeg, strict=True, **options)
        except ValueError as error:
            # some writers leave bytes at a tile's end
            if "extraneous bytes before marker" not in str(error):
                raise
            return simplejpeg.decode_jpeg(jpeg, strict=False, **options)

    return decode_jpeg
