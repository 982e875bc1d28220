"""Where patches may lie: the centres on a slide whose patch holds enough tissue, kept small, drawn from evenly."""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from mfcore.pretraining.tissue import Mask

N_LOOKED_AT = 1024  # cells


@dataclass(frozen=True)
class Places:
    """Cells of a mask in which a patch's centre may lie, as runs along its rows; a superset of where it may.

    size_l0_px: the slide's (width, height); side_l0_px: the patch's. grid: its px and the downsample of the level that it is
    cut from, where one has its resolution. starts: int32 (n_runs,), the first cell of each run, counted row by row; ends:
    int32 (n_runs,), cells up to each one's end.
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
        """Number of cells, the draw's sample space."""
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
    """For each cell the sum of ``values`` that lie within ``half`` of it along one axis, whole cells, int32."""
    n = values.shape[axis]
    reach = min(math.ceil(half), n)
    total = np.zeros([n + 1 + 2 * reach if i == axis else side for i, side in enumerate(values.shape)], np.int32)
    along = total if axis == 0 else total.T  # what lies before a place, which goes on for ``reach`` at both ends
    if axis == 1:
        np.cumsum(values, 1, out=total[:, reach + 1 : reach + 1 + n])
    else:  # a tenth of what cumsum takes down columns
        for above, row, below in zip(total[reach:], values, total[reach + 1 :], strict=False):
            np.add(above, row, out=below)
    along[reach + 1 + n :] = along[reach + n]
    within = along[2 * reach + 1 :] - along[:n]
    return within if axis == 0 else within.T


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
