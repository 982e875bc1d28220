"""What embeddings are worth without a label: RankMe and ODCorr, in bounded memory, with numpy
alone.

RankMe (Garrido et al. 2022, arXiv 2210.02885, section 3) is of the singular values of the features
as they are, neither centred nor squared to eigenvalues of a covariance, and is not divided by
anything: it lies between 1 and min(n, n_dims).

ODCorr (kaiko 2024) is the correlation between different dimensions. Its equation isn't known here,
so that both of its natural readings stand here by their names: the mean absolute and the mean
squared off-diagonal Pearson correlation. A dimension that is constant correlates with nothing; it
is left out, and `constant_dims` says which ones are.
"""

import math

import numpy as np

EPS = 1e-7  # added to each singular value's share; the paper's for float32
PIECE_ROWS = 4096  # added at once; with 1536 dimensions 50 MB in float64


class RepresentationError(ValueError):
    """Features from which nothing can be computed; the message names the rows."""


def rankme(features: np.ndarray) -> float:
    """RankMe of features (n, n_dims): exp of the entropy of the singular values' shares p = s /
    sum(s) + EPS.

    By a singular value decomposition in float64. The EPS lets it pass min(n, n_dims) by about a
    thousandth. Features that are all zero give 1. Raises RepresentationError for another shape, no
    row, what is no number, NaN or infinity.
    """
    features = _checked(np.asarray(features))
    return effective_rank(np.linalg.svd(features.astype(np.float64), compute_uv=False))


def effective_rank(singular_values: np.ndarray) -> float:
    """exp of the entropy of singular values (k,): RankMe's equation."""
    total = singular_values.sum()
    share = (singular_values / total if total > 0 else np.zeros_like(singular_values)) + EPS
    return float(np.exp(-(share * np.log(share)).sum()))


def odcorr_abs_by_chance(n: int) -> float:
    """The mean of `Streaming.odcorr_abs` for ``n`` rows of independent normal dimensions, sqrt(2 /
    (pi n)) for many rows.

    The mean of abs(r) under the density of a sample correlation of zero, (1 - r^2)^((n - 4) / 2) /
    B(1/2, (n - 2) / 2). NaN for fewer than 3 rows.
    """
    return (
        math.exp(math.lgamma((n - 1) / 2) - math.lgamma(n / 2)) / math.sqrt(math.pi)
        if n > 2
        else math.nan
    )


def odcorr_sq_by_chance(n: int) -> float:
    """The mean of `Streaming.odcorr_sq` for ``n`` rows of independent dimensions; NaN for fewer
    than 3.
    """
    return 1 / (n - 1) if n > 2 else math.nan


class Streaming:
    """RankMe and ODCorr of rows that come in chunks, in memory that grows with n_dims squared and
    not with the rows.

    Kept in float64: the mean, and the sums of products about it, merged chunk by chunk (Chan, Golub
    and LeVeque 1983), so that a large mean costs the correlations no digits. Singular values are
    roots of the eigenvalues of the matrix of products about zero. Those below some 1e-8 of the
    largest are lost in rounding; RankMe adds 1e-7 to every share, so that the loss stays below a
    thousandth even where most of them are zero. Sums in float32 would lose all below 3e-4 of the
    largest.
    """

    def __init__(self, n_dims: int):
        self.n_dims = n_dims
        self.n = 0
        self._mean = np.zeros(n_dims)
        self._products = np.zeros((n_dims, n_dims))  # about the mean
        self._low, self._high = np.full(n_dims, np.inf), np.full(n_dims, -np.inf)

    def add(self, chunk: np.ndarray) -> "Streaming":
        """Add rows (n, n_dims), none for n = 0; returns itself.

        Raises RepresentationError for NaN or infinity, naming rows by their place in the whole
        stream; of such a chunk the rows before the piece that holds it are added.
        """
        for first in range(0, len(chunk), PIECE_ROWS):
            self._add(_checked(chunk[first : first + PIECE_ROWS], self.n).astype(np.float64))
        return self

    def _add(self, piece: np.ndarray) -> None:
        self._low = np.minimum(self._low, piece.min(axis=0))
        self._high = np.maximum(self._high, piece.max(axis=0))
        mean = piece.mean(axis=0)
        piece -= mean
        total = self.n + len(piece)
        apart = (mean - self._mean) * math.sqrt(self.n * len(piece) / total)
        self._products += piece.T @ piece
        self._products += np.outer(apart, apart)
        self._mean += (mean - self._mean) * (len(piece) / total)
        self.n = total

    def rankme(self) -> float:
        """`rankme` of all rows so far; raises RepresentationError where there is none."""
        self._refuse_none()
        gram = self._products + self.n * np.outer(self._mean, self._mean)
        squares = np.linalg.eigvalsh(gram)[::-1][: min(self.n, self.n_dims)]
        return effective_rank(np.sqrt(np.maximum(squares, 0)))

    def odcorr_abs(self) -> float:
        """Mean absolute Pearson correlation between different dimensions of all rows so far.

        NaN with fewer than two dimensions that vary. Raises RepresentationError where there is no
        row.
        """
        return _off_diagonal_mean(np.abs(self._correlations()))

    def odcorr_sq(self) -> float:
        """Mean squared Pearson correlation between different dimensions; NaN, raises as
        `odcorr_abs`.
        """
        return _off_diagonal_mean(self._correlations() ** 2)

    def constant_dims(self) -> np.ndarray:
        """Which dimensions hold one value only, bool (n_dims,); raises RepresentationError where
        there is no row.
        """
        self._refuse_none()
        return self._low == self._high

    def _correlations(self) -> np.ndarray:
        varies = ~self.constant_dims()
        products = self._products[np.ix_(varies, varies)]
        scale = np.sqrt(np.diag(products))
        return (products / scale[:, None] / scale).clip(-1, 1)  # which rounding may pass

    def _refuse_none(self) -> None:
        if not self.n:
            raise RepresentationError("no rows were added yet: there is nothing to measure")


def _checked(features: np.ndarray, first: int = 0) -> np.ndarray:
    """Features as they are; ``first``: the place of their first row, for the message."""
    if features.ndim != 2 or 0 in features.shape:
        raise RepresentationError(
            f"features have shape {features.shape}; they must be (n, n_dims), with a row at least"
        )
    if features.dtype.kind not in "fiub":
        raise RepresentationError(
            f"features hold {features.dtype}, no numbers; leave out what is none, "
            "as a column of names"
        )
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        places = [first + int(row) for row in bad[:5]]
        raise RepresentationError(
            f"{len(bad)} rows hold NaN or infinity, the first {places}; embed these patches again"
        )
    return features


def _off_diagonal_mean(values: np.ndarray) -> float:
    k = len(values)
    return float(values[~np.eye(k, dtype=bool)].mean()) if k > 1 else math.nan
