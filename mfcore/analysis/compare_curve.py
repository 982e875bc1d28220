"""How AUROC grows with training patches, where that is heading, and how much more data would close the gap to the best arm."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mfcore.analysis import compare
from mfcore.measures.statistics import LEVEL
from mfcore.streams import generator
from mfcore.study.config import Study

N_RESAMPLES = 500
MIN_FOLDS = 3
EXPONENTS = np.geomspace(0.05, 3.0, 120)  # below, the curve is a straight line over log n; above, a step
FAR = 1e6  # times the patches there are: from here on as good as never
MAX_UNDETERMINED = 0.1  # share of resamples
COLUMNS = ["arm", "kind", "asymptote", "low", "high", "scale", "exponent"]
COLUMNS += ["n_needed", "n_needed_low", "n_needed_high", "why_not", "n_train", "n_sizes", "n_folds"]
COLUMNS += ["per_tenfold", "per_tenfold_low", "per_tenfold_high", "n_straight", "n_straight_low", "n_straight_high"]
AHEAD, N_POINTS = 10, 41


@dataclass(frozen=True)
class _Arm:
    """``table`` folds by sizes, ``n_train`` (n_sizes,), ``values`` (1 + n_resamples, n_sizes): means, first those measured.

    ``targets`` (1 + n_resamples,): what the best arm has with all the data in the same folds. Both empty for too small a table.
    ``has_own_patches``: whether folds are tested on patches of their own.
    """

    name: str
    kind: str
    table: pd.DataFrame
    n_train: np.ndarray
    values: np.ndarray
    targets: np.ndarray
    is_best: bool
    has_own_patches: bool


@dataclass(frozen=True)
class _Fits:
    """``asymptote``, ``scale`` (of x = n / largest n), ``exponent`` and ``why_not``, (n_fits,) each."""

    asymptote: np.ndarray
    scale: np.ndarray
    exponent: np.ndarray
    why_not: np.ndarray

    def n_needed(self, target: np.ndarray, n_train: float) -> np.ndarray:
        """Patches at which each curve reaches ``target`` (n_fits,); inf where it never does."""
        gap = self.asymptote - target
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return _or_never(np.where(gap > 0, n_train * (self.scale / gap) ** (1 / self.exponent), np.inf), n_train)


def fit(scores: pd.DataFrame, study: Study, metric: str = "auroc") -> pd.DataFrame:
    """Fit AUROC = asymptote - scale * n_train ** -exponent to each arm's means over folds: a row an arm.

    The power law of Cortes et al. 1994 (Learning Curves: Asymptotic Values and Rate of Convergence), by least squares, with
    an asymptote of at most 1. ``low`` to ``high``: 95 % percentile interval of the asymptote over resampled folds, the same
    for every arm, whose means are stretched to the corrected variance of `statistics.paired_test`, as folds overlap.
    ``n_needed``: patches at which the curve reaches what the best arm has with all the data, ``n_train``; inf where it ends
    below, or would need a million times the data; that arm's own are those it has. ``n_needed_low`` to ``n_needed_high``:
    over the same resamples. All bounds are NaN where all folds are tested on the same patches: their spread is that of the
    training alone.

    ``why_not``: why data don't determine the curve, and all of these numbers are NaN: fewer than three sizes or folds, no
    growth, no bend, or more than a tenth of the resamples with such a fault. With three sizes (``n_sizes``) the curve passes
    through its means, so that nothing is left to tell whether a power law it is.

    ``per_tenfold`` needs no curve: what tenfold patches brought from the second largest size to the largest; ``n_straight``:
    patches that the best arm's AUROC would take at that rate, the least where growth slows down; inf where nothing was
    gained. Both with their interval over the same resamples; NaN with one size, one fold, or none that both sizes have.
    Folds that the best arm lacks are left out.

    scores: as `compare.scores`; only fits on all domains count. metric: one that grows towards 1 at best.
    """
    rows = []
    for arm in _arms(scores, study, metric):
        n_sizes, n_train = arm.table.shape[1], arm.n_train
        row = dict.fromkeys(COLUMNS, math.nan) | {"arm": arm.name, "kind": arm.kind, "n_sizes": n_sizes}
        row |= {"n_folds": len(arm.table), "n_train": n_train[-1] if n_sizes else math.nan, "why_not": _too_few(arm.table)}
        if len(arm.values):
            row |= _straight(n_train, arm.values, arm.targets, arm.is_best)
            if not row["why_not"]:
                row |= _bent(n_train, arm.values, arm.targets, arm.is_best)
        if not arm.has_own_patches:
            row |= {name: math.nan for name in row if name.endswith(("low", "high"))}
        rows.append(row)
    return compare.in_order(pd.DataFrame(rows, columns=COLUMNS), study)


def ahead(scores: pd.DataFrame, study: Study, metric: str = "auroc") -> pd.DataFrame:
    """What each arm is to expect of up to AHEAD times its patches: ``arm, kind, how, n_train, expected, low, high``.

    how: "curve" where data determine one (`fit`), from its smallest size on; else "straight", the last step drawn on over
    log n from the largest size on. ``low`` to ``high``: 95 % percentiles over the resampled folds of `fit`, those without a
    curve left out. No row for an arm with one size, one fold, or none that both sizes have. Arguments as `fit`.
    """
    rows = []
    for arm in _arms(scores, study, metric):
        if not len(arm.values):
            continue
        why_not = _too_few(arm.table) or _bent(arm.n_train, arm.values, arm.targets, arm.is_best).get("why_not")
        last = arm.n_train[-1]
        n_train = np.geomspace(last if why_not else arm.n_train[0], last * AHEAD, N_POINTS)
        if why_not:
            gain = (arm.values[:, -1] - arm.values[:, -2]) / math.log10(last / arm.n_train[-2])
            expected = arm.values[:, [-1]] + gain[:, None] * np.log10(n_train / last)
        else:
            fits = _fit(arm.n_train / last, arm.values)
            expected = fits.asymptote[:, None] - fits.scale[:, None] * (n_train / last) ** -fits.exponent[:, None]
            expected = expected[fits.why_not == ""]
        low, high = np.quantile(expected[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        if not arm.has_own_patches:
            low, high = np.full((2, len(n_train)), np.nan)
        how = "straight" if why_not else "curve"
        rows += [(arm.name, arm.kind, how, *point) for point in zip(n_train, expected[0], low, high, strict=True)]
    table = pd.DataFrame(rows, columns=["arm", "kind", "how", "n_train", "expected", "low", "high"])
    return compare.in_order(table, study, "n_train")


def _arms(scores: pd.DataFrame, study: Study, metric: str) -> Iterator[_Arm]:
    """Each arm's scores by fold and size, and their means over resampled folds, the same folds for every arm."""
    part = scores[scores["train_domain"] == compare.ALL]
    means = part.groupby(["arm", "fold", "size"])[metric].mean().unstack("size")  # with the folds that have none
    full = part[part["size"] == part["size"].max()].groupby("arm", sort=False)[metric].mean()
    best, folds = full.idxmax(), np.sort(part["fold"].unique())
    target = means.loc[best].iloc[:, -1].dropna()
    draws = generator(study.splits.seed, "curve").multinomial(len(folds), np.full(len(folds), 1 / len(folds)), N_RESAMPLES)
    for (name, kind), group in part.groupby(["arm", "kind"], sort=False):
        table = means.loc[name].dropna(axis="columns", how="all").dropna()
        table = table[table.index.isin(target.index)]
        n_train = group.groupby("size")["n_train"].mean()[table.columns].to_numpy()
        values, targets = np.empty((0, table.shape[1])), np.empty(0)
        if len(table) > 1 and table.shape[1] > 1:
            at, overlap = np.searchsorted(folds, table.index), group["n_test"].mean() / n_train[-1]
            of_best = target.loc[table.index].to_numpy()[:, None]
            values, targets = (_stretched(of, draws[:, at], overlap) for of in (table.to_numpy(), of_best))
            targets = targets[:, 0]
        n_sets = group.groupby("size")["tested"].nunique() if "tested" in group else pd.Series([len(table)])
        yield _Arm(name, kind, table, n_train, values, targets, name == best, len(table) < 2 or bool((n_sets > 1).any()))


def curve(fit_row: pd.Series, n_train: np.ndarray) -> np.ndarray:
    """AUROC that a row of `fit` expects of ``n_train`` patches, float64, shaped as these; NaN where the row has no curve."""
    return fit_row["asymptote"] - fit_row["scale"] * np.asarray(n_train, dtype=np.float64) ** -fit_row["exponent"]


def _too_few(table: pd.DataFrame) -> str:
    """Why a table of folds by sizes is too small for a curve; empty where it isn't."""
    n_folds, n_sizes = table.shape
    if n_sizes < 3:
        return f"{n_sizes} {'size' if n_sizes == 1 else 'sizes'}; three parameters need three or more"
    return f"{n_folds} folds with every size; their spread needs {MIN_FOLDS} or more" if n_folds < MIN_FOLDS else ""


def _stretched(values: np.ndarray, draws: np.ndarray, overlap: float) -> np.ndarray:
    """Means of ``values`` (n_folds, n_sizes) over the folds, then over each draw of them, (1 + n_draws, n_sizes).

    A draw's mean varies by (k - 1) / k^2 of the folds' variance s^2; the corrected variance is (1 / k + n_test / n_train) s^2.
    """
    k, mean = len(values), values.mean(axis=0)
    counts = draws.sum(axis=1, keepdims=True)
    drawn = np.divide(draws, counts, out=np.full(draws.shape, 1 / k), where=counts > 0) @ values
    return np.vstack([mean, mean + (drawn - mean) * math.sqrt((1 / k + overlap) * k**2 / (k - 1))])


def _fit(x: np.ndarray, y: np.ndarray) -> _Fits:
    """Least squares of y (n_fits, n_sizes) at x = n / largest n (n_sizes,), by looking ever closer around the best exponent."""
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
    return _Fits(a, b, c, np.select([where for where, _ in reasons], [text for _, text in reasons], ""))


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


def _bent(n_train: np.ndarray, values: np.ndarray, targets: np.ndarray, is_best: bool) -> dict[str, object]:
    """What the curve through an arm's means (first row of ``values``) and through its resamples' say."""
    fits = _fit(n_train / n_train[-1], values)
    undetermined = float(np.mean(fits.why_not[1:] != ""))
    if fits.why_not[0]:
        return {"why_not": fits.why_not[0]}
    if undetermined > MAX_UNDETERMINED:
        return {"why_not": f"the folds' noise: {100 * undetermined:.0f} % of their resamples have no such curve"}
    n_needed = np.full(len(values), n_train[-1]) if is_best else fits.n_needed(targets, n_train[-1])
    row = _ends(fits.asymptote, "asymptote", "low", "high") | _ends(n_needed, "n_needed", "n_needed_low", "n_needed_high")
    return row | {"scale": float(fits.scale[0] * n_train[-1] ** fits.exponent[0]), "exponent": float(fits.exponent[0])}


def _straight(n_train: np.ndarray, values: np.ndarray, targets: np.ndarray, is_best: bool) -> dict[str, float]:
    """What the last step alone says, drawn on over log n."""
    gain = (values[:, -1] - values[:, -2]) / math.log10(n_train[-1] / n_train[-2])
    gap = np.maximum(targets - values[:, -1], 0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        needed = np.where(gain > 0, n_train[-1] * 10 ** (gap / gain), np.where(gap > 0, np.inf, n_train[-1]))
    needed = np.full(len(values), n_train[-1]) if is_best else _or_never(needed, n_train[-1])
    names = [(name, f"{name}_low", f"{name}_high") for name in ("per_tenfold", "n_straight")]
    return _ends(gain, *names[0]) | _ends(needed, *names[1])


def _or_never(n_needed: np.ndarray, n_train: float) -> np.ndarray:
    return np.where(n_needed < FAR * n_train, n_needed, np.inf)


def _ends(values: np.ndarray, estimate: str, low: str, high: str) -> dict[str, float]:
    """The estimate, first of ``values``, and the percentiles of the rest, which may be infinite."""
    ends = np.quantile(values[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    return {estimate: float(values[0]), low: float(ends[0]), high: float(ends[1])}
