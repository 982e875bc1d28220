"""Learning curves: a power law through an arm's means over folds, or the last step alone, and what
they ask of more data.

Values of an arm come with those of resampled folds: in the first row the means over folds, below it
a row a resample.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mfcore.measures.binary import share
from mfcore.measures.raters import ALL
from mfcore.measures.statistics import LEVEL, MIN_FOLDS
from mfcore.streams import generator

# below, the curve is a straight line over log n; above, a step
EXPONENTS = np.geomspace(0.05, 3.0, 120)
FAR = 1e6  # times the patches there are: from here on as good as never
MAX_UNDETERMINED = 0.1  # share of resamples
N_RESAMPLES = 500
BOUNDS = (1 - LEVEL) / 2, (1 + LEVEL) / 2
AHEAD, N_POINTS = 10, 41
COLUMNS = ["arm", "kind", "asymptote", "low", "high", "scale", "exponent"]
COLUMNS += ["n_needed", "n_needed_low", "n_needed_high", "why_not", "n_train", "n_sizes", "n_folds"]
COLUMNS += [
    "per_tenfold",
    "per_tenfold_low",
    "per_tenfold_high",
    "n_straight",
    "n_straight_low",
    "n_straight_high",
]


@dataclass(frozen=True)
class PowerLaws:
    """``asymptote - scale * x ** -exponent``, x = n / largest n, and ``why_not``: why data
    determine none; (n_fits,) each.
    """

    asymptote: np.ndarray
    scale: np.ndarray
    exponent: np.ndarray
    why_not: np.ndarray

    def at(self, x: np.ndarray) -> np.ndarray:
        """Values at x (n_points,), float64 (n_fits, n_points)."""
        return self.asymptote[:, None] - self.scale[:, None] * x ** -self.exponent[:, None]

    def reaches(self, target: np.ndarray) -> np.ndarray:
        """The x where each curve reaches ``target``, (n_fits,); inf where it never does."""
        with np.errstate(over="ignore"):
            return share(self.scale, self.asymptote - target, empty=math.inf) ** (1 / self.exponent)


@dataclass(frozen=True)
class Arm:
    """One arm's means over folds by size, and what resampled folds make of them.

    n_train: training patches of each size (n_sizes,), growing. values: (1 + n_resamples, n_sizes),
    None for fewer than two sizes or folds. target: (1 + n_resamples,), what the best arm has with
    all the data. has_bounds: whether folds have test patches of their own.
    """

    name: str
    kind: str
    n_folds: int
    n_train: np.ndarray
    values: np.ndarray | None
    target: np.ndarray | None
    is_best: bool
    has_bounds: bool

    def curve(self) -> tuple[PowerLaws | None, str]:
        """The curves through the rows of ``values``, and why the data determine none, empty where
        they do.
        """
        if (n := len(self.n_train)) < 3:
            return None, f"{n} {'size' if n == 1 else 'sizes'}; three parameters need three or more"
        if self.n_folds < MIN_FOLDS:
            return (
                None,
                f"{self.n_folds} folds with every size; their spread needs {MIN_FOLDS} or more",
            )
        fits = power_laws(self.n_train / self.n_train[-1], self.values)
        undetermined = np.mean(fits.why_not[1:] != "")
        if fits.why_not[0] or undetermined <= MAX_UNDETERMINED:
            return fits, fits.why_not[0]
        return (
            fits,
            f"the folds' noise: {100 * undetermined:.0f} % of their resamples have no such curve",
        )

    def per_tenfold(self) -> np.ndarray:
        """What tenfold patches brought in the last step, (1 + n_resamples,)."""
        return (self.values[:, -1] - self.values[:, -2]) / math.log10(
            self.n_train[-1] / self.n_train[-2]
        )

    def straight(self) -> np.ndarray:
        """How many times its patches the arm would need for the target at the rate of its last
        step, (1 + n_resamples,).
        """
        gap = np.maximum(self.target - self.values[:, -1], 0)
        with np.errstate(over="ignore"):
            return np.where(gap > 0, 10 ** share(gap, self.per_tenfold(), empty=math.inf), 1)

    def ends(self, name: str, values: np.ndarray) -> dict[str, float]:
        """The estimate, first of ``values``, and the percentiles of the rest, which may be
        infinite.
        """
        low, high = (
            np.quantile(values[1:], BOUNDS, method="inverted_cdf")
            if self.has_bounds
            else (math.nan, math.nan)
        )
        return {name: float(values[0]), f"{name}_low": float(low), f"{name}_high": float(high)}

    def needed(self, name: str, times: np.ndarray) -> dict[str, float]:
        """The `ends` of ``times`` its patches; the best arm has what it needs."""
        times = np.ones_like(times) if self.is_best else np.where(times < FAR, times, np.inf)
        return self.ends(name, self.n_train[-1] * times)


def fit(scores: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Fit AUROC = asymptote - scale * n_train ** -exponent to each arm's means over folds: a row an
    arm (`power_laws`).

    ``low`` to ``high``: 95 % percentile interval of the asymptote over resampled folds, the same
    for every arm, as `resampled_means` has them. ``n_needed``: patches at which the curve reaches
    what the best arm has with all the data, ``n_train``; inf where it ends below, or would need a
    million times the data; that arm's own are those it has. ``n_needed_low`` to ``n_needed_high``:
    over the same resamples. All bounds are NaN where all folds are tested on the same patches:
    their spread is that of the training alone.

    ``why_not``: why data don't determine the curve, and all of these numbers are NaN: fewer than
    three sizes or folds, no growth, no bend, or more than a tenth of the resamples with such a
    fault. With three sizes (``n_sizes``) the curve passes through its means, so that nothing is
    left to tell whether a power law it is.

    ``per_tenfold`` needs no curve: what tenfold patches brought from the second largest size to the
    largest; ``n_straight``: patches that the best arm's AUROC would take at that rate, the least
    where growth slows down; inf where nothing was gained. Both with their interval over the same
    resamples; NaN with one size, one fold, or none that both sizes have. Folds that the best arm
    lacks are left out.

    scores: a row an arm, size and fold with ``arm, kind, size, fold, n_train, n_test, train_domain,
    tested, auroc``; only fits on all domains count. seed: of the resamples.
    """
    rows = []
    for arm in _arms(scores, seed):
        fits, why_not = arm.curve()
        row = {
            "arm": arm.name,
            "kind": arm.kind,
            "why_not": why_not,
            "n_sizes": len(arm.n_train),
            "n_folds": arm.n_folds,
        }
        row["n_train"] = arm.n_train[-1] if len(arm.n_train) else math.nan
        if arm.values is not None:
            row |= arm.ends("per_tenfold", arm.per_tenfold()) | arm.needed(
                "n_straight", arm.straight()
            )
        if not why_not:
            row |= arm.ends("asymptote", fits.asymptote) | arm.needed(
                "n_needed", fits.reaches(arm.target)
            )
            row |= {
                "scale": fits.scale[0] * arm.n_train[-1] ** fits.exponent[0],
                "exponent": fits.exponent[0],
            }
        rows.append(row)
    return (
        pd.DataFrame(rows)
        .rename(columns={"asymptote_low": "low", "asymptote_high": "high"})
        .reindex(columns=COLUMNS)
    )


def ahead(scores: pd.DataFrame, seed: int) -> pd.DataFrame:
    """What each arm is to expect of up to AHEAD times its patches: ``arm, kind, how, n_train,
    expected, low, high``.

    how: "curve" where data determine one (`fit`), from its smallest size on; else "straight", the
    last step drawn on over log n from the largest size on. ``expected`` stays within 0 and 1.
    ``low`` to ``high``: 95 % percentiles over the resampled folds of `fit`, those without a curve
    left out. No row for an arm with one size, one fold, or none that both sizes have. Arguments as
    `fit`.
    """
    tables = []
    for arm in _arms(scores, seed):
        if arm.values is None:
            continue
        fits, why_not = arm.curve()
        first, last = arm.n_train[[-1 if why_not else 0, -1]]
        n_train = np.geomspace(first, last * AHEAD, N_POINTS)
        if why_not:
            expected = arm.values[:, [-1]] + arm.per_tenfold()[:, None] * np.log10(n_train / last)
        else:
            expected = fits.at(n_train / last)[fits.why_not == ""]
        expected = np.clip(expected, 0, 1)  # a straight line leaves the range of a score
        points = {
            "arm": arm.name,
            "kind": arm.kind,
            "how": "straight" if why_not else "curve",
            "n_train": n_train,
        }
        low, high = (
            np.quantile(expected[1:], BOUNDS, axis=0) if arm.has_bounds else (math.nan, math.nan)
        )
        tables.append(pd.DataFrame(points | {"expected": expected[0], "low": low, "high": high}))
    columns = ["arm", "kind", "how", "n_train", "expected", "low", "high"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def _arms(scores: pd.DataFrame, seed: int) -> Iterator[Arm]:
    """Every arm; folds are resampled alike for all."""
    part = scores[scores["train_domain"] == ALL]
    # with the folds that have none
    by_fold = part.groupby(["arm", "fold", "size"])["auroc"].mean().unstack("size")
    best = (
        part[part["size"] == part["size"].max()].groupby("arm", sort=False)["auroc"].mean().idxmax()
    )
    folds, target = np.sort(part["fold"].unique()), by_fold.loc[best].iloc[:, -1].dropna()
    draws = generator(seed, "curve").multinomial(
        len(folds), np.full(len(folds), 1 / len(folds)), N_RESAMPLES
    )
    for (name, kind), group in part.groupby(["arm", "kind"], sort=False):
        table = by_fold.loc[name].dropna(axis="columns", how="all").dropna()
        table = table[table.index.isin(target.index)]
        n_train = group.groupby("size")["n_train"].mean()[table.columns].to_numpy()
        values = of_best = None
        if min(table.shape) > 1:
            drawn = draws[:, np.searchsorted(folds, table.index)]
            overlap = group["n_test"].mean() / n_train[-1]
            values = resampled_means(table.to_numpy(), drawn, overlap)
            of_best = resampled_means(target[table.index].to_numpy(), drawn, overlap)
        has_bounds = bool((group.groupby("size")["tested"].nunique() > 1).any())
        yield Arm(name, kind, len(table), n_train, values, of_best, name == best, has_bounds)


def resampled_means(values: np.ndarray, draws: np.ndarray, overlap: float) -> np.ndarray:
    """Means of ``values`` (n_folds, ...) over the folds, then over each draw of them, (1 + n_draws,
    ...).

    draws: how often each fold is drawn, (n_draws, n_folds). overlap: n_test / n_train. A draw's
    mean varies by (k - 1) / k^2 of the folds' variance s^2; it is stretched to the corrected
    variance of `statistics.paired_test`, (1 / k + overlap) s^2.
    """
    k, mean = len(values), values.mean(axis=0, keepdims=True)
    draws = np.where(draws.any(axis=1, keepdims=True), draws, 1)  # none of these folds: each once
    drawn = draws / draws.sum(axis=1, keepdims=True) @ values
    return np.concatenate(
        [mean, mean + (drawn - mean) * math.sqrt((1 / k + overlap) * k**2 / (k - 1))]
    )


def power_laws(x: np.ndarray, y: np.ndarray) -> PowerLaws:
    """Least squares of y (n_fits, n_sizes) at x = n / largest n (n_sizes,), by looking ever closer
    around the best exponent.

    The asymptote is at most 1 (Cortes et al. 1994, Learning Curves: Asymptotic Values and Rate of
    Convergence).
    """
    every = np.arange(len(y))
    log_c = np.broadcast_to(np.log(EXPONENTS), (len(y), len(EXPONENTS)))
    asymptote, scale, error = _given_exponents(x, y, log_c)
    chosen = first = error.argmin(axis=1)
    for _ in range(6):  # each a fifth of the last step
        below, above = (log_c[every, np.clip(chosen + by, 0, log_c.shape[1] - 1)] for by in (-1, 1))
        log_c = np.linspace(below, above, 11, axis=1)
        asymptote, scale, error = _given_exponents(x, y, log_c)
        chosen = error.argmin(axis=1)
    a, b, c = asymptote[every, chosen], scale[every, chosen], np.exp(log_c[every, chosen])
    reasons = [
        (b <= 0, "it doesn't rise with the patches"),
        ((a >= 1) | (first == 0), "it rises with no bend, so that where it ends isn't in sight"),
        (
            first == len(EXPONENTS) - 1,
            "it has stopped rising by the second size, so that how it rose isn't seen",
        ),
    ]
    return PowerLaws(
        a, b, c, np.select([where for where, _ in reasons], [text for _, text in reasons], "")
    )


def _given_exponents(
    x: np.ndarray, y: np.ndarray, log_c: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best asymptote (at most 1) and scale (at least 0) for each exponent, and the squared error:
    (n_fits, n_exponents).
    """
    z = x[:, None, None] ** -np.exp(log_c)  # (n_sizes, n_fits, n_exponents)
    y = y.T[:, :, None]  # (n_sizes, n_fits, 1)
    z_off, y_mean = z - z.mean(axis=0), y.mean(axis=0)
    b = -((y - y_mean) * z_off).sum(axis=0) / (z_off**2).sum(axis=0)
    a = y_mean + b * z.mean(axis=0)
    b = np.where(a > 1, ((1 - y) * z).sum(axis=0) / (z**2).sum(axis=0), b)
    a = np.minimum(a, 1)
    a, b = np.where(b < 0, np.minimum(y_mean, 1), a), np.maximum(b, 0)
    return a, b, ((a - b * z - y) ** 2).sum(axis=0)
