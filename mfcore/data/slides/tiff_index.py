"""The index of a TIFF: its pages, how their tiles are decoded, and what is unusual in their px."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mfcore.data.slides.reader import SlideError

if TYPE_CHECKING:
    import tifffile

JPEG = 7
LOSSLESS = (1, 5, 8, 32773, 32946, 50000)  # none, LZW, deflate, PackBits, the old number of deflate, Zstandard
APERIOS = (33003, 33005)  # JPEG 2000, which OpenSlide decodes
RGB, YCBCR = 2, 6  # photometric interpretations
OTHER_COLOURS = (0, 1, 3, 5)  # grey from white and from black, palette, CMYK: OpenSlide converts them to RGB

Decode = Callable[[bytes, int, tuple[int, int]], np.ndarray]
"""Makes a tile, uint8 (height, width, 3), of its bytes and its number.

The last argument is (height, width) of a tile that JPEG decodes smaller, else (0, 0). Each codec raises its own errors.
"""


@dataclass(frozen=True)
class Page:
    """One image of a TIFF.

    unusual: why its px aren't decoded here, "" where they are. is_openslides: whether OpenSlide reads the px of a tiled
    page as its tags say, where it opens the file. um_per_px: of the resolution tags, x and y. reduction: how many times
    smaller than in the file its tiles are decoded.
    """

    width: int
    height: int
    is_tiled: bool
    is_thumbnail: bool
    tile_width: int
    tile_height: int
    offsets: np.ndarray  # (n_tiles,)
    n_bytes: np.ndarray  # (n_tiles,)
    decode: Decode
    unusual: str
    is_openslides: bool
    is_jpeg: bool
    um_per_px: tuple[float, ...]
    reduction: int = 1

    @property
    def n_across(self) -> int:
        """Tiles in a row."""
        return -(-self.width // self.tile_width)

    @property
    def n_bytes_tile(self) -> int:
        """Bytes of a decoded tile."""
        return 3 * self.tile_width * min(self.tile_height, self.height)

    @property
    def is_complete(self) -> bool:
        """Whether the file has bytes for every tile."""
        return len(self.offsets) == self.n_across * -(-self.height // self.tile_height) and bool(self.n_bytes.all())


@dataclass(frozen=True)
class Index:
    """The pages of a TIFF, and its kind in words."""

    kind: str
    pages: tuple[Page, ...]


def look_into(path: Path) -> Index | None:
    """Read the index of a TIFF, None for any other file; raises SlideError where it points beyond the end of the file.

    OpenSlide opens a file that was cut short if the index is whole, and fails at the first patch that is missing.
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
        return Index("a TIFF with a damaged index", ())  # or one of a vendor, which OpenSlide may know
    if end > n_bytes:
        raise SlideError(f"{path}: cut short: {n_bytes:,} of {end:,} bytes or more are there; fetch the file again")
    return Index("a tiled TIFF" if pages[0].is_tiled else "a striped TIFF", pages)


def _page(page: "tifffile.TiffPage") -> Page:
    """What reading needs of a page; the file may be closed then."""
    n_tiles = min(len(page.dataoffsets), len(page.databytecounts))
    unusual, is_openslides = _unusual(page)
    return Page(
        width=page.imagewidth,
        height=page.imagelength,
        is_tiled=page.is_tiled,
        is_thumbnail=bool(page.subfiletype & 1),
        tile_width=page.tilewidth if page.is_tiled else page.imagewidth,
        tile_height=page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength),
        offsets=np.array(page.dataoffsets[:n_tiles], dtype=np.int64),
        n_bytes=np.array(page.databytecounts[:n_tiles], dtype=np.int64),
        decode=_decoder(page),
        unusual=unusual,
        is_openslides=is_openslides,
        is_jpeg=page.compression == JPEG,
        um_per_px=_um_per_px(page),
    )


def _unusual(page: "tifffile.TiffPage") -> tuple[str, bool]:
    """Why the px of a page aren't decoded here, "" where they are; and whether OpenSlide reads them as the tags say."""
    orientation = page.tags.valueof("Orientation", 1)
    is_ycbcr_known = page.photometric == YCBCR and page.compression in (JPEG, *APERIOS)
    has_three = page.photometric not in (RGB, YCBCR) or page.samplesperpixel - len(page.extrasamples) == 3
    colours, compression = (str(getattr(tag, "name", tag)) for tag in (page.photometric, page.compression))
    refused = {
        f"orientation {orientation}, turned or mirrored when shown": orientation in range(2, 9),
        "the bits of each byte in reverse": page.fillorder != 1,
        "more than one plane": getattr(page, "imagedepth", 1) != 1,
        f"px that aren't unsigned whole numbers ({page.dtype})": page.dtype is None or page.dtype.kind != "u",
        f"{page.bitspersample} bits a channel": page.bitspersample not in (8, 16),
        f"{compression} compression": page.compression not in (JPEG, *LOSSLESS, *APERIOS),
        f"{colours} colours": page.photometric not in (RGB, *OTHER_COLOURS) and not is_ycbcr_known,
        f"{page.samplesperpixel} channels": tuple(page.extrasamples) not in ((), (1,), (2,)) or not has_three,
    }
    left_to_openslide = {
        "16 bits a channel": page.bitspersample == 16,
        f"{colours} colours": page.photometric not in (RGB, YCBCR),
        "transparency": len(page.extrasamples) > 0,
        "channels stored apart": page.planarconfig != 1,
        f"{compression} compression": page.compression in APERIOS,
    }
    for reasons in (refused, left_to_openslide):
        for reason, holds in reasons.items():
            if holds:
                return reason, reasons is left_to_openslide
    return "", True


def _um_per_px(page: "tifffile.TiffPage") -> tuple[float, ...]:
    """The um/px of the resolution tags, x and y; empty where the file has none."""
    um = {2: 25400.0, 3: 10000.0}.get(int(page.tags.valueof("ResolutionUnit", 2)))
    pairs = [page.tags.valueof(f"{axis}Resolution") for axis in "XY"]
    if um is None or not all(isinstance(pair, tuple) and len(pair) == 2 and all(pair) for pair in pairs):
        return ()
    return tuple(um * below / above for above, below in pairs)


def _decoder(page: "tifffile.TiffPage") -> Decode:
    """The decoder of a page.

    simplejpeg refuses what libjpeg only warns of, as OpenSlide does; the JPEG of tifffile fills damaged parts with grey.
    """
    if page.compression != JPEG:
        decode = page.decode
        return lambda data, k, shape: decode(data, k)[0][0]
    import simplejpeg

    # The tag of the TIFF, not the tile, says which colours these are; the segment of Adobe tells the decoder.
    colours = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([page.photometric == YCBCR])
    start = b"\xff\xd8" + colours + (page.jpegtables[2:-2] if page.jpegtables else b"")

    def decode_jpeg(data: bytes, k: int, shape: tuple[int, int]) -> np.ndarray:
        if data[:2] != b"\xff\xd8":
            raise ValueError("not a JPEG image")
        at = 2
        while data[at] == 0xFF and 0xE0 <= data[at + 1] <= 0xEF:  # skip segments of applications, which may state colours
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        jpeg, options = start + data[at:], {"min_height": shape[0], "min_width": shape[1]}
        try:
            return simplejpeg.decode_jpeg(jpeg, strict=True, **options)
        except ValueError as error:
            if "extraneous bytes before marker" not in str(error):  # some writers leave bytes at the end of a tile
                raise
            return simplejpeg.decode_jpeg(jpeg, strict=False, **options)

    return decode_jpeg
