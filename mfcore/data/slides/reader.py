"""What the readers of slides have in common: their interface, their error, and what counts as a scan's resolution."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

PLAUSIBLE_UM_PER_PX = (0.01, 20.0)  # outside, a resolution tag speaks of a screen or a printer (72 dpi = 352.8 um/px)
CONVERT = "vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg --Q 90"


class SlideError(ValueError):
    """A slide can't be opened or read; the message names the file and the remedy."""


class Window(NamedTuple):
    """A rectangle of whole px of one level; it may reach over the slide's border."""

    level: int
    x_px: int
    y_px: int
    width: int
    height: int


class Reader(Protocol):
    """What `mfcore.data.slides.slide.Slide` needs of a file format: its geometry, and the px of a window.

    size_px: (width, height) of level 0; level_sizes_px: of each level. downsamples: level-0 px a px of each level.
    tag: the file's resolution in words.
    n_bytes_whole: what is held in memory at once whatever is read; 0 where that is no more than some tiles.
    scanned_at_px: corner (x, y) of the scanned area in level-0 px, (0, 0) where the file doesn't say.
    """

    size_px: tuple[int, int]
    level_sizes_px: tuple[tuple[int, int], ...]
    downsamples: tuple[float, ...]
    stated_um_per_px: float | None
    tag: str
    n_bytes_whole: int
    scanned_at_px: tuple[int, int]

    def corner_l0_px(self, at_px: int, level: int) -> float:
        """Where a window that begins at px ``at_px`` of a level is really read, in level-0 px; the same for x and y."""
        ...

    def expect(self, windows: Iterable[Window]) -> None:
        """Announce reads, in the order in which they come, so that what they share is decoded once."""
        ...

    def region(self, window: Window, out: np.ndarray | None = None) -> np.ndarray:
        """The px of a window, uint8 (height, width, 3), white outside the slide; may be called from several threads.

        They are written into ``out``, where one is given.
        """
        ...

    def close(self) -> None:
        """Give the file back."""
        ...


def stated_resolution(path: Path, um_per_px: Sequence[float]) -> tuple[float | None, str]:
    """A file's own resolution: um/px, None where no microscope has it, and the same in words; ``um_per_px`` is x and y.

    Raises SlideError for px that aren't square.
    """
    if not um_per_px:
        return None, ""
    tag = " x ".join(f"{value:.4g}" for value in um_per_px) + " um/px"
    low, high = PLAUSIBLE_UM_PER_PX
    if not all(low <= value <= high for value in um_per_px):
        return None, tag
    if max(um_per_px) > 1.01 * min(um_per_px):
        raise SlideError(f"{path}: px that aren't square ({tag}) are not supported; resample the slide first")
    return sum(um_per_px) / len(um_per_px), tag


def whole_downsample(size_px: tuple[int, int], level_size_px: tuple[int, int], said: float) -> float:
    """The whole number that explains both sides of a level by rounding up or down; ``said`` where none does.

    Where a level is so small that several do: ``said`` if it is one, else a power of two, else the nearest to ``said``.
    """
    sides = list(zip(size_px, level_size_px, strict=True))
    first = max(1, *(whole // (level + 1) for whole, level in sides))
    last = min(whole // max(level - 1, 1) for whole, level in sides)
    explain = [k for k in range(first, last + 1) if all(level in (whole // k, -(-whole // k)) for whole, level in sides)]
    return float(min(explain, key=lambda k: (k != said, k & (k - 1) != 0, abs(k - said)), default=said))


def given(pixels: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    """The px as `Reader.region` gives them: written into ``out``, where there is one."""
    if out is None:
        return pixels
    out[:] = pixels
    return out


def overlap(start: int, length: int, size: int) -> tuple[int, int]:
    """The part [first, last) of [start, start + length) that lies in [0, size); empty as (0, 0)."""
    first, last = max(start, 0), min(start + length, size)
    return (first, last) if first < last else (0, 0)
