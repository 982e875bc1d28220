"""Arms against one another: which differences the folds can show, which places in a ranking, and what no fold can say."""

import math
from collections.abc import Iterable
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from mfcore.analysis import compare
from mfcore.data import splits
from mfcore.measures import binary
from mfcore.measures.resampling import N_RESAMPLES, bootstrap, by_fold
from mfcore.measures.statistics import (
    LEVEL,
    MIN_FOLDS,
    Folds,
    StatisticsError,
    clear_difference,
    holm,
    paired_test,
    spread,
    unpaired_test,
)
from mfcore.study.config import Settings

COLUMNS = ["first", "second", "difference", "low", "high", "p", "p_holm", "n_folds", "paired", "over"]
OVER_FOLDS = "folds"


def differences(predictions: pd.DataFrame, study: Settings, metric: str = "auroc", size: float | None = None) -> pd.DataFrame:
    """Every pair of arms that learned from all domains, at one size: ``first, second, difference, low, high, p, p_holm``.

    difference: mean over folds of first less second, with the 95 % interval and p of `statistics.paired_test`, by itself;
    ``p_holm`` is corrected over all pairs of the table, NaN where a pair can't be tested. ``n_folds``: folds that both were
    tested on. ``over``: what tells how another test would have come out: "folds", each of which has test patches of its own, or
    the "31 cases" that were drawn where all folds are tested on the same patches. ``paired``: whether on the same folds; arms
    with folds of their own (``switches.shared_splits`` false: networks against probes) are compared by
    `statistics.unpaired_test`, but where all folds share their patches.

    predictions: as `compare.collect`. size: None for the largest. Raises MetricError for an unknown metric, StatisticsError
    where no arm has that size.
    """
    part = _at_size(predictions, metric, size)
    scores, rows = _by_arm(part, study, metric), []
    kinds, n_train = part.groupby("arm")["kind"].first(), part.groupby("arm")["n_train"].mean()
    n_test = part.groupby(["arm", "fold"]).size().groupby("arm").mean()
    for first, second in combinations(scores, 2):
        a, b = scores[first], scores[second]
        same_kind = (kinds[first] == compare.PROBE) == (kinds[second] == compare.PROBE)
        is_paired = study.switches.shared_splits or same_kind or not (a.has_own_patches or b.has_own_patches)
        counts = [of[[first, second]].mean() for of in (n_train, n_test)]
        found = (paired_test if is_paired else unpaired_test)(a, b, *counts)
        interval, over = found.interval, found.drawn or OVER_FOLDS
        rows.append((first, second, interval.estimate, interval.low, interval.high, found.p, interval.n, is_paired, over))
    table = pd.DataFrame(rows, columns=[name for name in COLUMNS if name != "p_holm"])
    return table.assign(p_holm=holm(table["p"].astype(float)))[COLUMNS]


def ranking(predictions: pd.DataFrame, study: Settings, metric: str = "auroc", size: float | None = None) -> pd.DataFrame:
    """The arms from best to worst, with the places that each can hold: ``arm, kind, mean, sd, n_folds, rank_low, rank_high``.

    rank_low: the best place, one more than there are arms clearly better; rank_high: the worst, as many as there are arms
    less those clearly worse. Clear is a difference whose ``p_holm`` is below 0.05, and what follows from several such: where
    one arm is clear of a second and that of a third, the first is clear of the third. Arms whose places overlap are tied;
    ``tied_with`` names them, separated by ", ". ``mean`` and sample ``sd`` over folds; ``over`` as `differences` has it.
    Arguments as `differences`.
    """
    part = _at_size(predictions, metric, size)
    scores, kinds = _by_arm(part, study, metric), part.groupby("arm")["kind"].first()
    arms = list(scores)
    place = {arm: i for i, arm in enumerate(arms)}
    better = np.zeros((len(arms), len(arms)), dtype=bool)  # [i, j]: arm i is clearly better than arm j
    sign = 1 if metric in binary.HIGHER_IS_BETTER else -1
    pairs = differences(predictions, study, metric, size)
    for row in pairs.itertuples():
        if row.p_holm < 1 - LEVEL:
            i, j = place[row.first], place[row.second]
            better[(i, j) if sign * row.difference > 0 else (j, i)] = True
    for via in range(len(arms)):
        better |= better[:, [via]] & better[[via], :]
    rows = []
    for i, arm in enumerate(arms):
        over = spread(scores[arm].values)
        tied = [other for j, other in enumerate(arms) if j != i and not better[i, j] and not better[j, i]]
        places = {"rank_low": 1 + int(better[:, i].sum()), "rank_high": len(arms) - int(better[i].sum())}
        row = {"arm": arm, "kind": kinds[arm], "mean": over.mean, "sd": over.sd, "n_folds": over.n}
        rows.append(row | places | {"tied_with": ", ".join(tied)})
    table = pd.DataFrame(rows).assign(over=pairs["over"].max() if len(pairs) else OVER_FOLDS)
    return table.sort_values("mean", ascending=sign < 0, kind="stable", na_position="last", ignore_index=True)


def what_folds_show(
    study: Settings, predictions: pd.DataFrame | None = None, metric: str = "auroc", size: float | None = None
) -> str:
    """One sentence on the smallest difference between two arms that the study's folds could show.

    It is `statistics.clear_difference` times the SD over folds of the difference of two arms: their median over all pairs of
    ``predictions``, which are as for `differences`; without them, or with one arm only, the sentence counts in SDs. Where all
    folds are tested on the same patches it is the median half width of the pairs' intervals.
    """
    if predictions is None:
        n_folds, n_arms, sd = study.splits.n_folds, len(study.encoders) + len(study.networks), math.nan
        room = math.nan
        n_train = (1 - study.splits.test_fraction) * (1 - study.splits.val_fraction)
        n_test = study.splits.test_fraction
    else:
        part = _at_size(predictions, metric, size)
        scores = _by_arm(part, study, metric)
        n_folds, n_arms = max(len(of) for of in scores.values()), len(scores)
        n_train, n_test = part["n_train"].mean(), part.groupby(["arm", "fold"]).size().mean()
        means = [np.nanmean(of.values) for of in scores.values()]
        room = 1 - min(means) if metric in binary.HIGHER_IS_BETTER else max(means)  # from the worst arm to a perfect one
        sds = [spread((scores[first] - scores[second]).values).sd for first, second in combinations(scores, 2)]
        sd = float(np.nanmedian(sds)) if np.isfinite(sds).any() else math.nan
    if n_folds < MIN_FOLDS:
        return f"{compare.counted(n_folds, 'fold').capitalize()} can't tell any two arms apart: " + (
            "one has no spread." if n_folds < 2 else "two say too little of their spread."
        )
    n_pairs = n_arms * (n_arms - 1) // 2
    if predictions is not None and not any(of.has_own_patches for of in scores.values()):
        pairs = differences(predictions, study, metric, size)
        half = (pairs["high"] - pairs["low"]).median() / 2
        if not math.isfinite(half):
            return ""
        least = f"by {half:.3f} in {binary.TITLES[metric]} (median over pairs) to be told apart"
        if half > room:
            least = f"by more in {binary.TITLES[metric]} than the worst arm does from a perfect one"
        same = f"All {n_folds} folds are tested on the same {pairs['over'].max()}"
        return f"{same}: by draws of these, two arms must differ {least}."
    alone, endless = clear_difference(n_folds, n_train, n_test), stats.norm.isf((1 - LEVEL) / 2) * math.sqrt(n_test / n_train)
    of_all = clear_difference(n_folds, n_train, n_test, n_tests=max(n_pairs, 1))
    one, all_pairs, least = (f"{x * sd:.3f}" if math.isfinite(sd) else f"{x:.1f} SDs" for x in (alone, of_all, endless))
    given = f", the differences' SD over folds being {sd:.3f} (median over pairs)" if math.isfinite(sd) else ""
    if alone * sd > room:  # never where either isn't known
        return (
            f"With {n_folds} overlapping folds, whose differences have an SD of {sd:.3f} (median over pairs), two arms would "
            f"have to differ by more in {binary.TITLES[metric]} than the worst arm does from a perfect one."
        )
    corrected = f", and by {all_pairs} to be so as the first of {n_pairs} pairs by Holm's correction" if n_pairs > 1 else ""
    if of_all * sd > room:
        corrected = f", which can't be enough as the first of {n_pairs} pairs by Holm's correction"
    return (
        f"With {n_folds} overlapping folds, two arms must differ by {one} in {binary.TITLES[metric]} to be told apart by "
        f"themselves{corrected}{given}; no number of folds drawn from the same slides would bring {one} below {least}."
    )


def intervals(
    predictions: pd.DataFrame, study: Settings, metrics: Iterable[str] = ("auroc",), n_resamples: int = N_RESAMPLES
) -> pd.DataFrame:
    """Bootstrap over test slides, a row an arm, size and metric: ``estimate, low, high`` (95 %), ``n`` and ``unit``.

    ``n`` slides are drawn, or cases where a case has several slides; ``unit`` says which.

    predictions: as `compare.collect`; only fits on all domains count. The estimate is the mean over folds. All arms are
    resampled by the same draws (`resampling.bootstrap`).
    """
    part, rows = predictions[predictions["train_domain"] == splits.ALL], []
    for (arm, kind, size), group in part.groupby(["arm", "kind", "size"], sort=False):
        for metric in metrics:
            found = bootstrap(group, metric, study.splits.seed, "intervals", n_resamples=n_resamples)
            rows.append((arm, kind, size, metric, found.estimate, found.low, found.high, found.n, found.unit))
    table = pd.DataFrame(rows, columns=["arm", "kind", "size", "metric", "estimate", "low", "high", "n", "unit"])
    return compare.in_order(table, study, "size")


def _at_size(predictions: pd.DataFrame, metric: str, size: float | None) -> pd.DataFrame:
    """Predictions of fits on all domains, at one size, the largest for None."""
    if metric not in binary.METRICS:
        raise binary.MetricError(f"metric {metric!r} is not known; known ones: {sorted(binary.METRICS)}")
    mixed = predictions[predictions["train_domain"] == splits.ALL]
    part = mixed[mixed["size"] == (mixed["size"].max() if size is None else size)]
    if part.empty:
        raise StatisticsError(f"no arm has scores at size {size}; there are {sorted(set(mixed['size'].tolist()))}")
    return part


def _by_arm(part: pd.DataFrame, study: Settings, metric: str) -> dict[str, Folds]:
    """Each arm's metric by fold, in the study's order."""
    arms = compare.in_order(part[["arm"]].drop_duplicates(), study)["arm"]
    return {arm: by_fold(part[part["arm"] == arm], metric, study.splits.seed, splits.ALL).defined() for arm in arms}
