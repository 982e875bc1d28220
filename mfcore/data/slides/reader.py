"""What all readers of slides share: the interface, the error, and the rules for resolution and
downsample.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

# Outside, a resolution tag speaks of a screen or a printer (72 dpi = 352.8 um/px)
PLAUSIBLE_UM_PER_PX = (0.01, 20.0)
ORIENTATION = 274  # the tag of TIFF and Exif
CONVERT = "vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg --Q 90"
TURN = "turn it upright: vips autorot IN 'OUT.tif[tile,pyramid,compression=jpeg,Q=90]'"


class SlideError(ValueError):
    """A slide can't be opened or read; the message names the file and the remedy."""


class Window(NamedTuple):
    """A rectangle of whole px of one level; it may reach over the slide's border."""

    level: int
    x_px: int
    y_px: int
    width: int
    height: int


class Reader:
    """The geometry of a slide's file, and the px of its windows: what every reader has.

    size_px: (width, height) of level 0; level_sizes_px: of each level. downsamples: level-0 px a px
    of each level. stated_um_per_px: the resolution that the file states, and ``tag`` the same in
    words. scanned_at_px: corner (x, y) of the scanned area in level-0 px, (0, 0) where the file
    doesn't state it.
    """

    size_px: tuple[int, int]
    level_sizes_px: tuple[tuple[int, int], ...]
    downsamples: tuple[float, ...]
    stated_um_per_px: float | None
    tag: str
    scanned_at_px: tuple[int, int] = (0, 0)

    def corner_l0_px(self, at_px: int, level: int) -> float:
        """The level-0 px where a window that begins at px ``at_px`` of a level is read; the same
        for x and y.
        """
        return at_px * self.downsamples[level]

    def region(self, window: Window) -> np.ndarray:
        """The px of a window, uint8 (height, width, 3), white outside the slide; several threads
        may call it at once.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Give the file back."""
        raise NotImplementedError


def stated_resolution(path: Path, um_per_px: Sequence[float]) -> tuple[float | None, str]:
    """The resolution that a file states, from the um/px of x and y: um/px and text; None where no
    microscope has it.

    Raises SlideError for px that aren't square.
    """
    if not um_per_px:
        return None, ""
    tag = " x ".join(f"{value:.4g}" for value in um_per_px) + " um/px"
    low, high = PLAUSIBLE_UM_PER_PX
    if not all(low <= value <= high for value in um_per_px):
        return None, tag
    if max(um_per_px) > 1.01 * min(um_per_px):
        raise SlideError(
            f"{path}: px that aren't square ({tag}) are not supported; resample the slide first"
        )
    return sum(um_per_px) / len(um_per_px), tag


def whole_downsample(
    size_px: tuple[int, int], level_size_px: tuple[int, int], ratio: float
) -> float:
    """The whole number that explains both sides of a level by rounding up or down; ``ratio`` where
    none does.

    ratio: of the sides, as OpenSlide gives it. Where several numbers explain a small level:
    ``ratio`` if it is one of them, else a power of two, else the nearest to ``ratio``.
    """
    sides = list(zip(size_px, level_size_px, strict=True))
    first = max(1, *(whole // (level + 1) for whole, level in sides))
    last = min(whole // max(level - 1, 1) for whole, level in sides)
    explain = [
        k
        for k in range(first, last + 1)
        if all(level in (whole // k, -(-whole // k)) for whole, level in sides)
    ]
    return float(
        min(explain, key=lambda k: (k != ratio, k & (k - 1) != 0, abs(k - ratio)), default=ratio)
    )


def colour_problem(image: Image.Image, modes: Sequence[str] = ("RGB",)) -> str:
    """What an image is, other than one upright image of 8 bits a channel in one of Pillow's
    ``modes``; "" if nothing. px must not be loaded.
    """
    n_frames, is_16_bit = getattr(image, "n_frames", 1), ";16" in str(image.tile)
    has_exif = image.format in ("JPEG", "MPO", "TIFF") or "exif" in image.info
    if has_exif and (turned := image.getexif().get(ORIENTATION, 1)) != 1:
        return f"orientation {turned}, turned or mirrored when shown; save it turned"
    is_transparent = "transparency" in image.info
    if image.mode in modes and n_frames == 1 and not (is_16_bit or is_transparent):
        return ""
    more = " of 16 bit, of which 8 would be lost" * is_16_bit
    more += ", a transparent colour" * is_transparent
    return f"{image.mode}{more}, {n_frames} frames; save it as one image of 8 bit RGB"
