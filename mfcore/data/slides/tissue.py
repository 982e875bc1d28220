"""Where a slide carries tissue, and where patches may lie.

Masks and places are small enough for thousands of slides.

**The rule for tissue**, on a thumbnail. Stain absorbs some colours more than others; glass, borders
and dust absorb all alike. Evidence for tissue is therefore the spread of a px's optical densities,
max - min of -log10(value / 255), averaged over 20 um. Otsu's threshold separates stained from
unstained px. It is held between the spread of noise and the spread of pale stain: a slide of glass
alone has no tissue, and a slide of tissue alone isn't divided. Nearly black px (borders), and px
that absorb red far more than green (blue, green and black ink; no common stain of tissue does),
count as unstained. Specks are removed, small holes are filled. Red ink and coloured dirt pass as
tissue.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mfcore.data.slides.slide import SAME_RESOLUTION, Slide

SMOOTH_UM = 20.0  # evidence is averaged over squares of this side, however fine the thumbnail
# Optical density; JPEG's noise on glass stays below the first, pale eosin has the second.
MIN_SPREAD, MAX_SPREAD = 0.04, 0.06
BLACK = 60  # of 255: no channel reaches it
# Red density above that many times the green one, plus as much; haematoxylin's is 0.93 of it.
INK = 1.1, 0.08
MIN_SPECK_UM2 = 50.0**2  # smaller islands are dirt
MAX_HOLE_UM2 = 100.0**2  # smaller holes belong to the tissue: vessels, ducts
N_CELLS = 1024  # at most, on a side: 128 KiB a slide
FINEST_UM = 4.0  # side of a cell, at least
BLOCK_PX = 2048  # of the level that is read, at once
MAX_ENLARGED = 1.5  # a slide of 0.5 um/px has nothing to show at 0.25
N_TRIED = 10_000  # draws in which a place for a patch is searched
DENSITY = -np.log10(np.maximum(np.arange(256), 1) / 255.0).astype(np.float32)


class TissueError(ValueError):
    """A slide shows no tissue; the message says what was looked at."""


@dataclass(frozen=True)
class Look:
    """What a look at a slide found: which cells of a grid over the slide are tissue.

    bits: uint8 (n_rows, ceil(n_columns / 8)), a bit a cell, as `numpy.packbits` has it.
    cell_l0_px: side of a cell. um_per_px: of level 0. size_px: (width, height) of level 0.
    downsamples: of the levels of the slide's reader.
    """

    bits: np.ndarray
    n_columns: int
    cell_l0_px: float
    um_per_px: float
    size_px: tuple[int, int]
    downsamples: tuple[float, ...]

    @property
    def cells(self) -> np.ndarray:
        """The mask, bool (n_rows, n_columns)."""
        return np.unpackbits(self.bits, axis=1, count=self.n_columns).astype(bool)

    def share(self, x_l0_px: float, y_l0_px: float, side_l0_px: float) -> float:
        """Share of a square, given by its centre, that is tissue.

        Cells at its edges count in part.
        """
        half, firsts, covered = side_l0_px / 2, [], []
        for centre, n in ((y_l0_px, len(self.bits)), (x_l0_px, self.n_columns)):
            start, stop = (centre - half) / self.cell_l0_px, (centre + half) / self.cell_l0_px
            firsts.append(max(math.floor(start), 0))
            cells = np.arange(firsts[-1], min(math.ceil(stop), n))
            covered.append(np.minimum(cells + 1, stop) - np.maximum(cells, start))
        (top, left), (rows, columns) = firsts, covered
        window = np.unpackbits(self.bits[top : top + len(rows)], axis=1)
        window = window[:, left : left + len(columns)]
        return float(rows @ window @ columns) * (self.cell_l0_px / side_l0_px) ** 2


def find(thumbnail: np.ndarray, um_per_px: float) -> np.ndarray:
    """Where a thumbnail, uint8 (H, W, 3), shows tissue, bool (H, W): the rule above."""
    density = DENSITY[thumbnail]  # (H, W, 3)
    spread = np.ptp(density, axis=2)
    is_ink = density[..., 0] > INK[0] * density[..., 1] + INK[1]
    unstained = (thumbnail.max(axis=2) < BLACK) | is_ink
    spread[unstained] = 0
    # loose tissue is tissue, too: its fibres and the gaps between them
    side = 2 * round(SMOOTH_UM / um_per_px / 2) + 1
    spread = ndimage.uniform_filter(spread, side, mode="nearest")
    threshold = np.clip(otsu(spread[~unstained]), MIN_SPREAD, MAX_SPREAD)
    tissue = _without_small(spread > threshold, MIN_SPECK_UM2 / um_per_px**2)
    return ~_without_small(~tissue, MAX_HOLE_UM2 / um_per_px**2, keep=unstained)


def otsu(values: np.ndarray) -> float:
    """Otsu's threshold of values in [0, 3).

    It parts the values with the greatest variance between the parts (Otsu 1979, eq. 18).
    """
    counts, edges = np.histogram(values, bins=300, range=(0, 3))
    centres = (edges[:-1] + edges[1:]) / 2
    below = counts.cumsum()  # (n_bins,)
    above = below[-1] - below
    sums = (counts * centres).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1:][np.nanargmax(between)]) if np.isfinite(between).any() else 0.0


def _without_small(cells: np.ndarray, n_least: float, keep: np.ndarray | None = None) -> np.ndarray:
    """The cells, bool (H, W), without islands of fewer than ``n_least``.

    Islands that touch ``keep`` stay.
    """
    labels, n = ndimage.label(cells)
    stays = np.bincount(labels.ravel(), minlength=n + 1) >= n_least
    if keep is not None:
        stays[np.unique(labels[keep])] = True
    stays[0] = False
    return stays[labels]


def look_at(slide: Slide) -> Look:
    """The tissue of an open slide.

    Raises TissueError where the slide shows none, SlideError where the slide can't be read.
    """
    cell_um = max(FINEST_UM, max(slide.size_px) * slide.um_per_px / N_CELLS)
    tissue = find(thumbnail_of(slide, cell_um), cell_um)
    if not tissue.any():
        raise TissueError(
            f"{slide.path}: no tissue in a thumbnail of {cell_um:.3g} um/px; leave the slide out"
        )
    return Look(
        bits=np.packbits(tissue, axis=1),
        n_columns=tissue.shape[1],
        cell_l0_px=cell_um / slide.um_per_px,
        um_per_px=slide.um_per_px,
        size_px=slide.size_px,
        downsamples=slide.reader.downsamples,
    )


def thumbnail_of(slide: Slide, um_per_px: float) -> np.ndarray:
    """The whole slide at a coarse resolution, uint8 (H, W, 3), white outside.

    It is read block by block, in bounded memory.
    """
    scale = um_per_px / slide.um_per_px  # level-0 px a px of the thumbnail
    n_columns, n_rows = (max(1, math.ceil(side / scale - 1e-6)) for side in slide.size_px)
    finer = max((d for d in slide.reader.downsamples if d <= scale * 1.001), default=1.0)
    side = min(max(int(BLOCK_PX * finer / scale), 8), max(n_rows, n_columns))
    thumbnail = np.full((n_rows, n_columns, 3), 255, np.uint8)
    for y, x in itertools.product(range(0, n_rows, side), range(0, n_columns, side)):
        centre = (x + side / 2) * scale, (y + side / 2) * scale
        block = slide.read(*centre, side, um_per_px)
        thumbnail[y : y + side, x : x + side] = block[: n_rows - y, : n_columns - x]
    return thumbnail


# ---- places for patches ----


@dataclass(frozen=True)
class Places:
    """Cells of a mask in which a patch's centre may lie, as runs along the mask's rows.

    A few of the cells hold no such centre: `propose` tells. side_l0_px: side of the patch. grid:
    the patch's px, and the downsample of the level that has the patch's resolution; None without
    such a level. starts: int32 (n_runs,), the first cell of each run, counted row by row; ends:
    int32 (1 + n_runs,), number of cells up to the end of each run, 0 first.
    """

    look: Look
    side_l0_px: float
    min_tissue: float
    grid: tuple[int, float] | None
    starts: np.ndarray
    ends: np.ndarray

    @property
    def area_um2(self) -> float:
        """Area of the cells."""
        return int(self.ends[-1]) * (self.look.cell_l0_px * self.look.um_per_px) ** 2

    def propose(self, rng: np.random.Generator) -> tuple[float, float, float] | None:
        """A centre (x, y) in level-0 px, uniform over the cells, and its patch's share of tissue.

        None where the share is too small, or the patch reaches over the slide's border.
        """
        chosen, *inside = rng.random(3)
        k = min(int(chosen * self.ends[-1]), int(self.ends[-1]) - 1)
        run = np.searchsorted(self.ends, k, side="right") - 1
        row, column = divmod(int(self.starts[run]) + k - int(self.ends[run]), self.look.n_columns)
        centre = (np.array([column, row]) + inside) * self.look.cell_l0_px
        if self.grid is not None:
            # at most half a px of the level further, so that a patch cut there has whole px
            size_px, downsample = self.grid
            corner_px = np.floor(centre / downsample - size_px / 2 + 0.5)
            centre = (corner_px + size_px / 2) * downsample
        half = self.side_l0_px / 2
        if ((centre < half) | (centre > np.array(self.look.size_px) - half)).any():
            return None
        x, y = centre.tolist()
        share = self.look.share(x, y, self.side_l0_px)
        return (x, y, share) if share >= self.min_tissue - 1e-9 else None


def level_of(downsamples: Sequence[float], scale: float) -> tuple[int, float] | None:
    """The level that is ``scale`` times as coarse as level 0, and its downsample; None for none."""
    level, downsample = min(enumerate(downsamples), key=lambda pair: abs(pair[1] / scale - 1))
    return (level, downsample) if abs(downsample / scale - 1) < SAME_RESOLUTION else None


def places_at(look: Look, um_per_px: float, size_px: int, min_tissue: float) -> Places | None:
    """Where patches of ``size_px`` at a resolution may lie on a slide; None for nowhere.

    A cell is in if a patch centred anywhere in the cell could hold enough tissue: by the tissue
    in reach of the whole cell. A slide more than MAX_ENLARGED times as coarse as the resolution
    has no places, nor has a slide of which N_TRIED draws give none.
    """
    scale = um_per_px / look.um_per_px
    if um_per_px * MAX_ENLARGED < look.um_per_px:
        return None
    level = level_of(look.downsamples, scale)
    side_l0_px = size_px * (level[1] if level else scale)
    if side_l0_px > min(look.size_px):
        return None
    half, cells = side_l0_px / 2 / look.cell_l0_px, look.cells  # half: in cells
    width = 2 * math.ceil(half) + 1
    reach = ndimage.uniform_filter(cells.astype(float), width, mode="constant") * width**2
    may = reach.round() >= min_tissue * (2 * half) ** 2 - 1e-3
    for axis, size in enumerate(look.size_px[::-1]):
        first = np.arange(cells.shape[axis]) * look.cell_l0_px
        fits = (first + look.cell_l0_px >= side_l0_px / 2) & (first <= size - side_l0_px / 2)
        may &= fits if axis else fits[:, None]
    edges = np.flatnonzero(np.diff(may.ravel(), prepend=False, append=False)).astype(np.int32)
    starts, stops = edges[::2], edges[1::2]
    ends = np.cumsum(np.append(0, stops - starts), dtype=np.int32)
    grid = (size_px, level[1]) if level else None
    places, rng = Places(look, side_l0_px, min_tissue, grid, starts, ends), np.random.default_rng(0)
    has_any = len(starts) and any(places.propose(rng) for _ in range(N_TRIED))
    return places if has_any else None
