"""Does an embedding lie by biology or by where a slide was made? RI and CRoMa, of nearest
neighbours.

Of a patch's neighbours (cosine distance; none of its own case) two kinds tell: SO has the same
biology and another origin, OS another biology and the same origin. RI (Kömen et al. 2025, PathoROB)
counts them among the k nearest. CRoMa (Grisi et al. 2026) compares how near the nearest of each
are.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BLOCK = 512  # patches whose distances to all others are held at once
N_NEAREST = 5  # of each kind, as the authors of CRoMa advise
TAIL = 0.1  # share of patches of the lower tail's mean


@dataclass(frozen=True)
class Neighbours:
    """The nearest patches of each patch.

    n_so, n_os: among the k nearest, int (n,). margins: CRoMa of each patch, float64 (n,) in -1..1,
    above 0 where SO lie nearer; NaN where a patch has fewer than N_NEAREST of a kind.
    """

    n_so: np.ndarray
    n_os: np.ndarray
    margins: np.ndarray

    @property
    def robustness_index(self) -> float:
        """Share of SO among SO and OS of the k nearest: 1 is robust, NaN where there are none."""
        total = self.n_so.sum() + self.n_os.sum()
        return float(self.n_so.sum() / total) if total else float("nan")

    @property
    def croma(self) -> float:
        """The median margin, above 0 biology counts for more; NaN where no patch has a margin."""
        return (
            float(np.nanmedian(self.margins)) if np.isfinite(self.margins).any() else float("nan")
        )

    @property
    def croma_tail(self) -> float:
        """Mean margin of the TAIL of patches with the lowest; NaN where no patch has a margin."""
        known = self.margins[np.isfinite(self.margins)]
        return (
            float(known[known <= np.quantile(known, TAIL)].mean()) if len(known) else float("nan")
        )


def neighbours(
    features: np.ndarray, biology: np.ndarray, origin: np.ndarray, case: np.ndarray, k: int = 11
) -> Neighbours:
    """Look for the nearest neighbours of each patch; see `Neighbours`.

    features: float (n, n_dims), not all 0 in a row. biology, origin, case: of any kind, (n,); a
    case has one origin. Raises ValueError for arrays of other lengths, and k below 1.
    """
    lengths = [len(values) for values in (features, biology, origin, case)]
    if k < 1 or len(set(lengths)) > 1:
        raise ValueError(
            f"k is {k} and features, biology, origin and case have {lengths} rows; k must be 1 or"
            " more, and each have one row a patch"
        )
    biology, origin, case = (
        np.unique(values, return_inverse=True)[1] for values in (biology, origin, case)
    )
    n_so, n_os, margins = (np.zeros(len(features), kind) for kind in (int, int, float))
    for rows, distances in _distances(features):
        distances[case[rows, None] == case] = np.inf
        is_alike, is_here = biology[rows, None] == biology, origin[rows, None] == origin
        so, os = is_alike & ~is_here, ~is_alike & is_here
        # (n_rows, k)
        nearest = np.argpartition(distances, min(k, len(features)) - 1, axis=1)[:, :k]
        is_known = np.isfinite(np.take_along_axis(distances, nearest, axis=1))
        n_so[rows] = (np.take_along_axis(so, nearest, axis=1) & is_known).sum(axis=1)
        n_os[rows] = (np.take_along_axis(os, nearest, axis=1) & is_known).sum(axis=1)
        so_distance, os_distance = (_mean_of_nearest(distances, kind) for kind in (so, os))
        total = so_distance + os_distance
        with np.errstate(invalid="ignore", divide="ignore"):
            margin = (os_distance - so_distance) / total
        margins[rows] = np.where(np.isfinite(total), margin, np.nan)
    return Neighbours(n_so, n_os, margins)


def _distances(features: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and their cosine distances to all patches, float64 (n_rows, n), a block at a time."""
    features = np.asarray(features, dtype=np.float64)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for first in range(0, len(unit), BLOCK):
        rows = np.arange(first, min(first + BLOCK, len(unit)))
        yield rows, 1 - unit[rows] @ unit.T


def _mean_of_nearest(distances: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """Mean distance to the N_NEAREST of a kind, (n_rows,); infinite where there are fewer."""
    of_kind = np.where(kind, distances, np.inf)
    if of_kind.shape[1] < N_NEAREST:
        return np.full(len(distances), np.inf)
    return np.partition(of_kind, N_NEAREST - 1, axis=1)[:, :N_NEAREST].mean(axis=1)
