"""A TIFF's index: its pages, how their tiles are decoded, and what is unusual of their px, tiled and striped alike."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mfcore.data.slides.reader import SlideError

if TYPE_CHECKING:
    import tifffile

JPEG = 7
LOSSLESS = (1, 5, 8, 32773, 32946, 50000)  # none, LZW, deflate, PackBits, deflate's old number, Zstandard
APERIOS = (33003, 33005)  # JPEG 2000, which OpenSlide decodes
RGB, YCBCR = 2, 6  # photometric interpretations
OTHER_COLOURS = (0, 1, 3, 5)  # grey from white and from black, a palette, CMYK: OpenSlide makes RGB of them
ALPHA = {0: None, 1: "premultiplied", 2: "straight"}  # by the tag ExtraSamples
TURN = "turn it upright: vips autorot IN 'OUT.tif[tile,pyramid,compression=jpeg,Q=90]'"


@dataclass(frozen=True)
class Page:
    """One image of a TIFF. ``decode`` makes a tile from its bytes and number; ``unusual`` says why there is none, else "".

    is_openslides: whether OpenSlide, where it opens the file, reads the px of a tiled page as the tags say.
    """

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
    is_openslides: bool
    um_per_px: tuple[float, ...]  # of the resolution tags, x and y
    decode_reduced: Callable[..., np.ndarray] | None = None  # the same, and (height, width) that it shall have

    @property
    def remedy(self) -> str:
        """What to do about an unusual page where another way than to convert it is needed, else ""."""
        return TURN if self.unusual.startswith("orientation") else ""

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
    return Index("a tiled TIFF" if pages[0].is_tiled else "a striped TIFF", pages)


def _page(page: "tifffile.TiffPage") -> Page:
    """What reading needs of a page; the file may be closed then."""
    n_known = min(len(page.dataoffsets), len(page.databytecounts))
    unusual, is_openslides = _unusual(page)
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
        is_openslides=is_openslides,
        um_per_px=_um_per_px(page),
        decode_reduced=None
        if unusual or page.compression != JPEG
        else _jpeg_decoder(page.jpegtables, page.photometric == YCBCR),
    )


def _unusual(page: "tifffile.TiffPage") -> tuple[str, bool]:
    """Why the px of a page aren't decoded here, "" where they are; and whether OpenSlide reads them as the tags say."""
    alphas = [ALPHA.get(int(extra)) for extra in page.extrasamples]
    orientation = page.tags.valueof("Orientation", 1)
    has_openslides_colours = page.photometric in (RGB, *OTHER_COLOURS) or (
        page.photometric == YCBCR and page.compression in (JPEG, *APERIOS)
    )
    for is_so, what, is_openslides in (
        (orientation in range(2, 9), f"orientation {orientation}, turned or mirrored when shown", False),
        (page.fillorder != 1, "the bits of each byte in reverse", False),
        (getattr(page, "imagedepth", 1) != 1, "more than one plane", False),
        (page.dtype is None or page.dtype.kind != "u", f"px that aren't unsigned whole numbers ({page.dtype})", False),
        (page.bitspersample != 8, f"{page.bitspersample} bits a channel", page.bitspersample == 16),
        (page.compression not in (JPEG, *LOSSLESS, *APERIOS), f"{_name(page.compression)} compression", False),
        (not has_openslides_colours, f"{_name(page.photometric)} colours", False),
        (
            alphas not in ([], ["straight"], ["premultiplied"]),
            f"{page.samplesperpixel} channels, not all of a known use",
            False,
        ),
        (page.photometric not in (RGB, YCBCR), f"{_name(page.photometric)} colours", True),
        (page.samplesperpixel - len(alphas) != 3, f"{page.samplesperpixel} channels", False),
        (bool(alphas) and (page.compression == JPEG or page.is_tiled), f"{page.samplesperpixel} channels", True),
        (page.planarconfig != 1, "channels stored apart", True),
        (page.compression not in (JPEG, *LOSSLESS), f"{_name(page.compression)} compression", True),
    ):
        if is_so:
            return what, is_openslides
    return "", True


def _name(value: object) -> str:
    """A tag's value in words, or as the number that it is."""
    return str(getattr(value, "name", value))


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
        at = 2
        while data[at] == 0xFF and 0xE0 <= data[at + 1] <= 0xEF:  # of applications: what they say of colours isn't the tag's
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        return simplejpeg.decode_jpeg(start + data[at:], min_height=shape[0], min_width=shape[1], buffer=scratch, strict=True)

    return decode_jpeg
