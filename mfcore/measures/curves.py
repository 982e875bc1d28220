"""Learning curves: a power law through an arm's means over folds, or the last step alone, and what they ask of more data.

Of one arm, values are (1 + n_resamples, n_sizes): in the first row the means over folds, below it those of resampled folds.
Sizes count training patches, ``n_train`` (n_sizes,), and grow.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mfcore.measures.raters import ALL
from mfcore.measures.statistics import LEVEL
from mfcore.streams import generator

MIN_FOLDS = 3
EXPONENTS = np.geomspace(0.05, 3.0, 120)  # below, the curve is a straight line over log n; above, a step
FAR = 1e6  # times the patches there are: from here on as good as never
MAX_UNDETERMINED = 0.1  # share of resamples
N_RESAMPLES = 500
AHEAD, N_POINTS = 10, 41
COLUMNS = ["arm", "kind", "asymptote", "low", "high", "scale", "exponent"]
COLUMNS += ["n_needed", "n_needed_low", "n_needed_high", "why_not", "n_train", "n_sizes", "n_folds"]
COLUMNS += ["per_tenfold", "per_tenfold_low", "per_tenfold_high", "n_straight", "n_straight_low", "n_straight_high"]


@dataclass(frozen=True)
class PowerLaws:
    """``asymptote - scale * x ** -exponent``, x = n / largest n, and ``why_not``: why data determine none; (n_fits,) each."""

    asymptote: np.ndarray
    scale: np.ndarray
    exponent: np.ndarray
    why_not: np.ndarray

    def at(self, x: np.ndarray) -> np.ndarray:
        """Values at x (n_points,), float64 (n_fits, n_points)."""
        return self.asymptote[:, None] - self.scale[:, None] * x ** -self.exponent[:, None]

    def n_needed(self, target: np.ndarray, n_train: float) -> np.ndarray:
        """Patches at which each curve reaches ``target`` (n_fits,); inf where it never does. n_train: the largest n."""
        gap = self.asymptote - target
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return _or_never(np.where(gap > 0, n_train * (self.scale / gap) ** (1 / self.exponent), np.inf), n_train)


def fit(scores: pd.DataFrame, seed: int, metric: str = "auroc") -> pd.DataFrame:
    """Fit AUROC = asymptote - scale * n_train ** -exponent to each arm's means over folds: a row an arm (`power_laws`).

    ``low`` to ``high``: 95 % percentile interval of the asymptote over resampled folds, the same for every arm, as
    `resampled_means` has them. ``n_needed``: patches at which the curve reaches what the best arm has with all the
    data, ``n_train``; inf where it ends below, or would need a million times the data; that arm's own are those it has.
    ``n_needed_low`` to ``n_needed_high``: over the same resamples. All bounds are NaN where all folds are tested on the same
    patches: their spread is that of the training alone.

    ``why_not``: why data don't determine the curve, and all of these numbers are NaN: fewer than three sizes or folds, no
    growth, no bend, or more than a tenth of the resamples with such a fault. With three sizes (``n_sizes``) the curve passes
    through its means, so that nothing is left to tell whether a power law it is.

    ``per_tenfold`` needs no curve: what tenfold patches brought from the second largest size to the largest; ``n_straight``:
    patches that the best arm's AUROC would take at that rate, the least where growth slows down; inf where nothing was
    gained. Both with their interval over the same resamples; NaN with one size, one fold, or none that both sizes have.
    Folds that the best arm lacks are left out.

    scores: a row an arm, size and fold with ``arm, kind, size, fold, n_train, n_test, train_domain``, and the metric; only
    fits on all domains count. metric: one that grows towards 1 at best. seed: of the resamples.
    """
    rows = []
    for arm, table, n_train, means, has_own_patches in _arms(scores, seed, metric):
        row = dict.fromkeys(COLUMNS, math.nan) | arm | {"n_sizes": len(n_train), "n_folds": len(table)}
        row |= {"n_train": n_train[-1] if len(n_train) else math.nan, "why_not": too_few(*table.shape)}
        if means:
            row |= by_last_step(n_train, *means)
            if not row["why_not"]:
                row |= by_curve(n_train, *means)
        if not has_own_patches:
            row |= {name: math.nan for name in row if name.endswith(("low", "high"))}
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def ahead(scores: pd.DataFrame, seed: int, metric: str = "auroc") -> pd.DataFrame:
    """What each arm is to expect of up to AHEAD times its patches: ``arm, kind, how, n_train, expected, low, high``.

    how: "curve" where data determine one (`fit`), from its smallest size on; else "straight", the last step drawn on over
    log n from the largest size on. ``expected`` stays within 0 and 1. ``low`` to ``high``: 95 % percentiles over the resampled
    folds of `fit`, those without a curve left out. No row for an arm with one size, one fold, or none that both sizes have.
    Arguments as `fit`.
    """
    tables = []
    for arm, table, n_train, means, has_own_patches in _arms(scores, seed, metric):
        if not means:
            continue
        is_straight = bool(too_few(*table.shape) or by_curve(n_train, *means).get("why_not"))
        last, values = n_train[-1], means[0]
        x = np.geomspace(last if is_straight else n_train[0], last * AHEAD, N_POINTS)
        if is_straight:
            expected = values[:, [-1]] + gain_per_tenfold(n_train, values)[:, None] * np.log10(x / last)
        else:
            fits = power_laws(n_train / last, values)
            expected = fits.at(x / last)[fits.why_not == ""]
        expected = np.clip(expected, 0, 1)  # a straight line leaves the range of a score
        bounds = np.quantile(expected[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        low, high = bounds if has_own_patches else np.full(bounds.shape, np.nan)
        points = {
            "how": "straight" if is_straight else "curve",
            "n_train": x,
            "expected": expected[0],
            "low": low,
            "high": high,
        }
        tables.append(pd.DataFrame(arm | points))
    columns = ["arm", "kind", "how", "n_train", "expected", "low", "high"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def _arms(scores: pd.DataFrame, seed: int, metric: str) -> Iterator[tuple]:
    """Each arm's name and kind, its scores (folds by sizes), n_train by size, and whether folds have test patches of their own.

    Before the last: the values, targets and "is best" of `by_curve`; empty for too small a table. Folds are resampled
    alike for every arm.
    """
    part = scores[scores["train_domain"] == ALL]
    by_fold = part.groupby(["arm", "fold", "size"])[metric].mean().unstack("size")  # with the folds that have none
    full = part[part["size"] == part["size"].max()].groupby("arm", sort=False)[metric].mean()
    best, folds = full.idxmax(), np.sort(part["fold"].unique())
    target = by_fold.loc[best].iloc[:, -1].dropna()
    draws = generator(seed, "curve").multinomial(len(folds), np.full(len(folds), 1 / len(folds)), N_RESAMPLES)
    for (name, kind), group in part.groupby(["arm", "kind"], sort=False):
        table = by_fold.loc[name].dropna(axis="columns", how="all").dropna()
        table = table[table.index.isin(target.index)]
        n_train, means = group.groupby("size")["n_train"].mean()[table.columns].to_numpy(), ()
        if len(table) > 1 and table.shape[1] > 1:
            at, overlap = np.searchsorted(folds, table.index), group["n_test"].mean() / n_train[-1]
            of_best = target.loc[table.index].to_numpy()[:, None]
            values, targets = (resampled_means(of, draws[:, at], overlap) for of in (table.to_numpy(), of_best))
            means = values, targets[:, 0], name == best
        n_sets = group.groupby("size")["tested"].nunique() if "tested" in group else pd.Series([len(table)])
        yield {"arm": name, "kind": kind}, table, n_train, means, len(table) < 2 or bool((n_sets > 1).any())


def too_few(n_folds: int, n_sizes: int) -> str:
    """Why a table of folds by sizes is too small for a curve; empty where it isn't."""
    if n_sizes < 3:
        return f"{n_sizes} {'size' if n_sizes == 1 else 'sizes'}; three parameters need three or more"
    return f"{n_folds} folds with every size; their spread needs {MIN_FOLDS} or more" if n_folds < MIN_FOLDS else ""


def resampled_means(values: np.ndarray, draws: np.ndarray, overlap: float) -> np.ndarray:
    """Means of ``values`` (n_folds, n_sizes) over the folds, then over each draw of them, (1 + n_draws, n_sizes).

    draws: how often each fold is drawn, (n_draws, n_folds). overlap: n_test / n_train. A draw's mean varies by (k - 1) / k^2 of
    the folds' variance s^2; it is stretched to the corrected variance of `statistics.paired_test`, (1 / k + overlap) s^2.
    """
    k, mean = len(values), values.mean(axis=0)
    counts = draws.sum(axis=1, keepdims=True)
    drawn = np.divide(draws, counts, out=np.full(draws.shape, 1 / k), where=counts > 0) @ values
    return np.vstack([mean, mean + (drawn - mean) * math.sqrt((1 / k + overlap) * k**2 / (k - 1))])


def power_laws(x: np.ndarray, y: np.ndarray) -> PowerLaws:
    """Least squares of y (n_fits, n_sizes) at x = n / largest n (n_sizes,), by looking ever closer around the best exponent.

    The asymptote is at most 1 (Cortes et al. 1994, Learning Curves: Asymptotic Values and Rate of Convergence).
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
        (first == len(EXPONENTS) - 1, "it has stopped rising by the second size, so that how it rose isn't seen"),
    ]
    return PowerLaws(a, b, c, np.select([where for where, _ in reasons], [text for _, text in reasons], ""))


def _given_exponents(x: np.ndarray, y: np.ndarray, log_c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best asymptote (at most 1) and scale (at least 0) for each exponent, and the squared error: (n_fits, n_exponents)."""
    z = x[:, None, None] ** -np.exp(log_c)  # (n_sizes, n_fits, n_exponents)
    y = y.T[:, :, None]  # (n_sizes, n_fits, 1)
    z_off, y_mean = z - z.mean(axis=0), y.mean(axis=0)
    b = -((y - y_mean) * z_off).sum(axis=0) / (z_off**2).sum(axis=0)
    a = y_mean + b * z.mean(axis=0)
    b = np.where(a > 1, ((1 - y) * z).sum(axis=0) / (z**2).sum(axis=0), b)
    a = np.minimum(a, 1)
    a, b = np.where(b < 0, np.minimum(y_mean, 1), a), np.maximum(b, 0)
    return a, b, ((a - b * z - y) ** 2).sum(axis=0)


def by_curve(n_train: np.ndarray, values: np.ndarray, targets: np.ndarray, is_best: bool) -> dict[str, object]:
    """What the curves through the rows of ``values`` say: ``asymptote, scale, exponent, n_needed`` with their bounds.

    Where data determine no curve, ``why_not`` alone. targets: (1 + n_resamples,), what the best arm has with all the data.
    """
    fits = power_laws(n_train / n_train[-1], values)
    undetermined = float(np.mean(fits.why_not[1:] != ""))
    if fits.why_not[0]:
        return {"why_not": fits.why_not[0]}
    if undetermined > MAX_UNDETERMINED:
        return {"why_not": f"the folds' noise: {100 * undetermined:.0f} % of their resamples have no such curve"}
    n_needed = np.full(len(values), n_train[-1]) if is_best else fits.n_needed(targets, n_train[-1])
    row = _ends(fits.asymptote, "asymptote", "low", "high") | _ends(n_needed, "n_needed", "n_needed_low", "n_needed_high")
    return row | {"scale": float(fits.scale[0] * n_train[-1] ** fits.exponent[0]), "exponent": float(fits.exponent[0])}


def by_last_step(n_train: np.ndarray, values: np.ndarray, targets: np.ndarray, is_best: bool) -> dict[str, float]:
    """What the last step alone says, drawn on over log n: ``per_tenfold, n_straight`` with their bounds."""
    gain = gain_per_tenfold(n_train, values)
    gap = np.maximum(targets - values[:, -1], 0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        needed = np.where(gain > 0, n_train[-1] * 10 ** (gap / gain), np.where(gap > 0, np.inf, n_train[-1]))
    needed = np.full(len(values), n_train[-1]) if is_best else _or_never(needed, n_train[-1])
    names = [(name, f"{name}_low", f"{name}_high") for name in ("per_tenfold", "n_straight")]
    return _ends(gain, *names[0]) | _ends(needed, *names[1])


def gain_per_tenfold(n_train: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What tenfold patches brought in the last step, (1 + n_resamples,)."""
    return (values[:, -1] - values[:, -2]) / math.log10(n_train[-1] / n_train[-2])


def _or_never(n_needed: np.ndarray, n_train: float) -> np.ndarray:
    return np.where(n_needed < FAR * n_train, n_needed, np.inf)


def _ends(values: np.ndarray, estimate: str, low: str, high: str) -> dict[str, float]:
    """The estimate, first of ``values``, and the percentiles of the rest, which may be infinite."""
    ends = np.quantile(values[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    return {estimate: float(values[0]), low: float(ends[0]), high: float(ends[1])}
