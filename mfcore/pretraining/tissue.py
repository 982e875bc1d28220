"""Where a slide carries tissue, and where patches may lie: masks and places small enough for thousands of slides.

**The rule for tissue**, on a thumbnail. Stain absorbs some colours more than others; glass, borders and dust absorb all alike.
Evidence for tissue is therefore the spread of a px's optical densities, max - min of -log10(value / 255), averaged over 20 um.
Otsu's threshold separates stained from unstained px. It is held between the spread of noise and the spread of pale stain:
a slide of glass alone has no tissue, and a slide of tissue alone isn't divided. Nearly black px (borders), and px that absorb
red far more than green (blue, green and black ink; no common stain of tissue does), count as unstained. Specks are removed,
small holes are filled. Red ink and coloured dirt pass as tissue.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mfcore.data.slides.slide import SAME_RESOLUTION, Slide

SMOOTH_UM = 20.0  # evidence is averaged over squares of this side, however fine the thumbnail
MIN_SPREAD, MAX_SPREAD = 0.04, 0.06  # optical density; JPEG's noise on glass stays below the first, pale eosin has the second
BLACK = 60  # of 255: no channel reaches it
INK = (1.1, 0.08)  # red density above that many times the green one, plus as much; haematoxylin's is 0.93 of it
MIN_SPECK_UM2 = 50.0**2  # smaller islands are dirt
MAX_HOLE_UM2 = 100.0**2  # smaller holes belong to the tissue: vessels, ducts
N_CELLS = 1024  # at most, on a side: 128 KiB a slide
FINEST_UM = 4.0  # side of a cell, at least
BLOCK_PX = 2048  # of the level that is read, at once
VERSION = 2  # raised by any change of the rule, or of how thumbnails are read, that the numbers here don't show
MAX_ENLARGED = 1.5  # a slide of 0.5 um/px has nothing to show at 0.25
N_LOOKED_AT = 1024  # cells in which a place for a patch is searched
DENSITY = -np.log10(np.maximum(np.arange(256), 1) / 255.0).astype(np.float32)


class TissueError(ValueError):
    """A slide shows no tissue; the message says what was looked at."""


@dataclass(frozen=True)
class Mask:
    """Which cells of a grid over the slide are tissue.

    bits: uint8 (n_rows, ceil(n_columns / 8)), a bit a cell, as `numpy.packbits` has it. cell_l0_px: side of a cell.
    um_per_px: of level 0.
    """

    bits: np.ndarray
    n_columns: int
    cell_l0_px: float
    um_per_px: float

    @property
    def cells(self) -> np.ndarray:
        """The mask, bool (n_rows, n_columns)."""
        return np.unpackbits(self.bits, axis=1, count=self.n_columns).astype(bool)

    @property
    def area_mm2(self) -> float:
        """Area of the tissue."""
        return int(np.bitwise_count(self.bits).sum()) * (self.cell_l0_px * self.um_per_px / 1000) ** 2

    @property
    def share_of_slide(self) -> float:
        """Share of the cells that is tissue."""
        return int(np.bitwise_count(self.bits).sum()) / (len(self.bits) * self.n_columns)

    def share(self, x_l0_px: float, y_l0_px: float, side_l0_px: float) -> float:
        """Share of a square, given by its centre, that is tissue: exact, cells at its edges count by the part inside."""
        half = side_l0_px / 2
        top, rows = _overlaps((y_l0_px - half) / self.cell_l0_px, (y_l0_px + half) / self.cell_l0_px, len(self.bits))
        left, columns = _overlaps((x_l0_px - half) / self.cell_l0_px, (x_l0_px + half) / self.cell_l0_px, self.n_columns)
        if not len(rows) or not len(columns):
            return 0.0
        first = left // 8
        bits = self.bits[top : top + len(rows), first : (left + len(columns) + 7) // 8]
        window = np.unpackbits(bits, axis=1)[:, left - 8 * first : left - 8 * first + len(columns)]
        return float(rows @ window @ columns) * (self.cell_l0_px / side_l0_px) ** 2


def _overlaps(start: float, stop: float, n: int) -> tuple[int, np.ndarray]:
    """The first of the cells 0 to n that [start, stop) touches, and how much of each it covers, float (n_touched,)."""
    first, last = max(math.floor(start), 0), min(math.ceil(stop), n)
    cells = np.arange(first, max(last, first))
    return first, np.minimum(cells + 1, stop) - np.maximum(cells, start)


def find(thumbnail: np.ndarray, um_per_px: float) -> np.ndarray:
    """Where a thumbnail, uint8 (H, W, 3), shows tissue, bool (H, W): the rule above."""
    red, green, blue = (DENSITY[thumbnail[..., channel]] for channel in range(3))
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)  # (H, W)
    unstained = (thumbnail.max(axis=2) < BLACK) | (red > INK[0] * green + INK[1])
    spread[unstained] = 0
    side = 2 * round(SMOOTH_UM / um_per_px / 2) + 1  # loose tissue is tissue, too: its fibres and the gaps between them
    spread = ndimage.uniform_filter(spread, side, mode="nearest")
    threshold = np.clip(otsu(spread[~unstained]), MIN_SPREAD, MAX_SPREAD)
    tissue = _without_small(spread > threshold, MIN_SPECK_UM2 / um_per_px**2)
    return ~_without_small(~tissue, MAX_HOLE_UM2 / um_per_px**2, keep=unstained)


def rule() -> list:
    """The rule's version and numbers: masks made with other numbers may differ."""
    return [VERSION, SMOOTH_UM, MIN_SPREAD, MAX_SPREAD, BLACK, INK, MIN_SPECK_UM2, MAX_HOLE_UM2, N_CELLS, FINEST_UM, BLOCK_PX]


def otsu(values: np.ndarray) -> float:
    """Otsu's threshold of values in [0, 3): the one that parts them with the greatest variance between (Otsu 1979, eq. 18)."""
    counts, edges = np.histogram(values, bins=300, range=(0, 3))
    centres = (edges[:-1] + edges[1:]) / 2
    below = counts.cumsum()  # (n_bins,)
    above = below[-1] - below
    sums = (counts * centres).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1:][np.nanargmax(between)]) if np.isfinite(between).any() else 0.0


def _without_small(cells: np.ndarray, n_least: float, keep: np.ndarray | None = None) -> np.ndarray:
    """The cells, bool (H, W), without islands of fewer than ``n_least``; islands that touch ``keep`` stay."""
    labels, n = ndimage.label(cells)
    stays = np.bincount(labels.ravel(), minlength=n + 1) >= n_least
    if keep is not None:
        stays[np.unique(labels[keep])] = True
    stays[0] = False
    return stays[labels]


def of_slide(slide: Slide) -> Mask:
    """The mask of an open slide; raises TissueError where it shows none, SlideError where it can't be read."""
    cell_um = max(FINEST_UM, max(slide.size_px) * slide.um_per_px / N_CELLS)
    thumbnail = thumbnail_of(slide, cell_um)
    tissue = find(thumbnail, cell_um)
    if not tissue.any():
        raise TissueError(f"{slide.path}: no tissue in a thumbnail of {cell_um:.3g} um/px; leave the slide out")
    return Mask(np.packbits(tissue, axis=1), tissue.shape[1], cell_um / slide.um_per_px, slide.um_per_px)


def thumbnail_of(slide: Slide, um_per_px: float) -> np.ndarray:
    """The whole slide at a coarse resolution, uint8 (H, W, 3), white outside; read block by block, in bounded memory."""
    scale = um_per_px / slide.um_per_px  # level-0 px a px of the thumbnail
    n_columns, n_rows = (max(1, math.ceil(side / scale - 1e-6)) for side in slide.size_px)
    finer = max((d for d in slide.reader.downsamples if d <= scale * 1.001), default=1.0)
    side = min(max(int(BLOCK_PX * finer / scale), 8), max(n_rows, n_columns))
    blocks = [(x, y) for y in range(0, n_rows, side) for x in range(0, n_columns, side)]
    centres = (np.array(blocks) + side / 2) * scale
    thumbnail = np.full((n_rows, n_columns, 3), 255, np.uint8)
    for i in slide.plan(centres, side, um_per_px):
        x, y = blocks[i]
        block = slide.read(*centres[i], side, um_per_px)
        thumbnail[y : y + side, x : x + side] = block[: n_rows - y, : n_columns - x]
    return thumbnail


@dataclass(frozen=True)
class Look:
    """The result of a look at a slide. size_px: (width, height) of level 0. downsamples: of the levels of its reader."""

    mask: Mask
    size_px: tuple[int, int]
    downsamples: tuple[float, ...]


def look_at(slide: Slide) -> Look:
    """The tissue, the size and the levels of an open slide; raises as `of_slide`."""
    return Look(of_slide(slide), slide.size_px, tuple(slide.reader.downsamples))


# ---- places for patches ----


@dataclass(frozen=True)
class Places:
    """Cells of a mask in which a patch's centre may lie, as runs along the mask's rows; a few cells too many.

    size_l0_px: (width, height) of the slide; side_l0_px: side of the patch. grid: the patch's px, and the downsample of the
    level that has the patch's resolution; None without such a level. starts: int32 (n_runs,), the first cell of each run,
    counted row by row; ends: int32 (n_runs,), number of cells up to the end of each run.
    """

    mask: Mask
    size_l0_px: tuple[int, int]
    side_l0_px: float
    min_tissue: float
    grid: tuple[int, float] | None
    starts: np.ndarray
    ends: np.ndarray

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def area_um2(self) -> float:
        """Area of the cells."""
        return self.n_cells * (self.mask.cell_l0_px * self.mask.um_per_px) ** 2

    def propose(self, rng: np.random.Generator) -> tuple[float, float, float] | None:
        """A centre in level-0 px, uniform over the cells, and its patch's share of tissue; None where that is too little."""
        chosen, dx, dy = rng.random(3)
        k = min(int(chosen * self.n_cells), self.n_cells - 1)
        run = int(np.searchsorted(self.ends, k, side="right"))
        cell = int(self.starts[run]) + k - (int(self.ends[run - 1]) if run else 0)
        row, column = divmod(cell, self.mask.n_columns)
        x, y = (column + dx) * self.mask.cell_l0_px, (row + dy) * self.mask.cell_l0_px
        return self.judge(x, y) if self.grid is None else self.judge(*(whole_px(centre, *self.grid) for centre in (x, y)))

    def judge(self, x_l0_px: float, y_l0_px: float) -> tuple[float, float, float] | None:
        """The centre with its patch's share of tissue, where that is enough and the patch lies on the slide; else None."""
        half = self.side_l0_px / 2
        inside = half <= x_l0_px <= self.size_l0_px[0] - half and half <= y_l0_px <= self.size_l0_px[1] - half
        share = self.mask.share(x_l0_px, y_l0_px, self.side_l0_px) if inside else 0.0
        return (x_l0_px, y_l0_px, share) if inside and share >= self.min_tissue - 1e-9 else None


def level_of(downsamples: Sequence[float], scale: float) -> tuple[int, float] | None:
    """The level that is ``scale`` times as coarse as level 0, and its downsample; None without such a level."""
    difference, level, downsample = min((abs(each / scale - 1), level, each) for level, each in enumerate(downsamples))
    return (level, downsample) if difference < SAME_RESOLUTION else None


def places_at(look: Look, um_per_px: float, size_px: int, min_tissue: float) -> Places | None:
    """Where patches of ``size_px`` at a resolution may lie on a slide; None for nowhere.

    A slide more than MAX_ENLARGED times as coarse as the resolution has no places.
    """
    scale = um_per_px / look.mask.um_per_px
    if um_per_px * MAX_ENLARGED < look.mask.um_per_px:
        return None
    level = level_of(look.downsamples, scale)
    side_l0_px = size_px * (level[1] if level else scale)
    grid = None if level is None else (size_px, level[1])
    places = places_of(look.mask, look.size_px, side_l0_px, min_tissue, grid)
    return places if places.n_cells else None


def places_of(
    mask: Mask, size_l0_px: tuple[int, int], side_l0_px: float, min_tissue: float, grid: tuple[int, float] | None = None
) -> Places:
    """Where a patch of that side may be centred; no cells where there's no such place.

    A cell is in if a patch centred anywhere in it could hold enough: by the tissue in reach of any, which is no less.
    """
    cells = mask.cells
    n_rows, n_columns = cells.shape
    half = side_l0_px / 2 / mask.cell_l0_px  # cells
    reach = _sums(_sums(cells, half, 0), half, 1)  # (n_rows, n_columns), cells of tissue
    may = reach >= min_tissue * (2 * half) ** 2 - 1e-3
    for axis, (n, size) in enumerate(((n_rows, size_l0_px[1]), (n_columns, size_l0_px[0]))):
        first = np.arange(n) * mask.cell_l0_px
        fits = (first + mask.cell_l0_px >= side_l0_px / 2) & (first <= size - side_l0_px / 2)
        may &= fits[:, None] if axis == 0 else fits
    none = np.zeros(0, np.int32)
    if side_l0_px > min(size_l0_px) or not _has_any(
        Places(mask, size_l0_px, side_l0_px, min_tissue, grid, none, none), np.where(may, reach, -1)
    ):
        may[:] = False
    edges = np.flatnonzero(np.diff(may.ravel(), prepend=False, append=False))
    starts, stops = edges[::2].astype(np.int32), edges[1::2].astype(np.int32)
    return Places(mask, size_l0_px, side_l0_px, min_tissue, grid, starts, np.cumsum(stops - starts, dtype=np.int32))


def _sums(values: np.ndarray, half: float, axis: int) -> np.ndarray:
    """For each cell the sum of ``values`` (n_rows, n_columns) within ``half`` cells along one axis, whole cells, int32."""
    n = values.shape[axis]
    reach = min(math.ceil(half), n)
    padded = np.pad(np.moveaxis(values, axis, 1), ((0, 0), (reach + 1, reach)))
    total = np.cumsum(padded, axis=1, dtype=np.int32)
    return np.moveaxis(total[:, 2 * reach + 1 :] - total[:, :n], 1, axis)


def _has_any(places: Places, reach: np.ndarray) -> bool:
    """Whether a patch really fits somewhere: looked for at four times four points of a cell, the likeliest cells first."""
    steps = (np.arange(4) + 0.5) / 4

    def fits(cell: int) -> bool:
        row, column = divmod(int(cell), reach.shape[1])
        corners = ((column + dx, row + dy) for dx, dy in itertools.product(steps, steps))
        return any(places.judge(x * places.mask.cell_l0_px, y * places.mask.cell_l0_px) is not None for x, y in corners)

    if reach.max() < 0:
        return False
    if fits(reach.argmax()):
        return True
    cells = np.argsort(-reach, axis=None, kind="stable")[:N_LOOKED_AT]
    return any(fits(cell) for cell in cells[reach.ravel()[cells] >= 0])


def whole_px(centre_l0_px: float, size_px: int, downsample: float) -> float:
    """The centre moved by at most half a px, so that a patch cut from a level with that downsample has whole px."""
    return (math.floor(centre_l0_px / downsample - size_px / 2 + 0.5) + size_px / 2) * downsample
