"""Arms against one another: which differences the folds can show, which places in a ranking, and what no fold can say."""

import math
from collections.abc import Iterable
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from mfcore import compare, metrics, splits
from mfcore.config import Study
from mfcore.statistics import LEVEL, StatisticsError, clear_difference, holm, paired_test, spread, unpaired_test
from mfcore.statistics_bootstrap import N_RESAMPLES, bootstrap

COLUMNS = ["first", "second", "difference", "low", "high", "p", "p_holm", "n_folds", "paired"]


def differences(scores: pd.DataFrame, study: Study, metric: str = "auroc", size: float | None = None) -> pd.DataFrame:
    """Every pair of arms that learned from all domains, at one size: ``first, second, difference, low, high, p, p_holm``.

    difference: mean over folds of first less second, with the corrected 95 % interval and p of `statistics.paired_test`, by
    itself; ``p_holm`` is corrected over all pairs of the table, NaN where a pair can't be tested. ``n_folds``: folds that
    both were tested on. ``paired``: whether on the same folds; arms with folds of their own (``switches.shared_splits``
    false: networks against probes) are compared by `statistics.unpaired_test`.

    scores: as `compare.scores`. size: None for the largest. Raises MetricError for an unknown metric, StatisticsError where
    no arm has that size.
    """
    part = _at_size(scores, metric, size)
    rows = []
    for first, second in combinations(_arms(part, study), 2):
        a, b = (part[part["arm"] == arm].set_index("fold") for arm in (first, second))
        shared = study.switches.shared_splits or (a["kind"].iloc[0] == compare.PROBE) == (b["kind"].iloc[0] == compare.PROBE)
        if shared:
            folds = a.index.intersection(b.index)
            a, b = a.loc[folds], b.loc[folds]
        counts = pd.concat([a, b])[["n_train", "n_test"]].mean()
        if len(counts.dropna()) and len(a) and len(b):
            found = (paired_test if shared else unpaired_test)(a[metric], b[metric], counts["n_train"], counts["n_test"])
            interval, p = found.interval, found.p
            row = (interval.estimate, interval.low, interval.high, p, interval.n)
        else:
            row = (math.nan, math.nan, math.nan, math.nan, 0)
        rows.append((first, second, *row, shared))
    table = pd.DataFrame(rows, columns=[name for name in COLUMNS if name != "p_holm"])
    return table.assign(p_holm=holm(table["p"].astype(float)))[COLUMNS]


def ranking(scores: pd.DataFrame, study: Study, metric: str = "auroc", size: float | None = None) -> pd.DataFrame:
    """The arms from best to worst, with the places that each can hold: ``arm, kind, mean, sd, n_folds, rank_low, rank_high``.

    rank_low: the best place, one more than there are arms clearly better; rank_high: the worst, as many as there are arms
    less those clearly worse. Clear is a difference whose ``p_holm`` is below 0.05, and what follows from several such: where
    one arm is clear of a second and that of a third, the first is clear of the third. Arms whose places overlap are tied;
    ``tied_with`` names them, separated by ", ". ``mean`` and sample ``sd`` over folds. Arguments as `differences`.
    """
    part = _at_size(scores, metric, size)
    arms = _arms(part, study)
    place = {arm: i for i, arm in enumerate(arms)}
    better = np.zeros((len(arms), len(arms)), dtype=bool)  # [i, j]: arm i is clearly better than arm j
    sign = 1 if metric in metrics.HIGHER_IS_BETTER else -1
    for row in differences(scores, study, metric, size).itertuples():
        if row.p_holm < 1 - LEVEL:
            i, j = place[row.first], place[row.second]
            better[(i, j) if sign * row.difference > 0 else (j, i)] = True
    for via in range(len(arms)):
        better |= better[:, [via]] & better[[via], :]
    rows = []
    for i, arm in enumerate(arms):
        mine = part[part["arm"] == arm]
        over = spread(mine[metric])
        tied = [other for j, other in enumerate(arms) if j != i and not better[i, j] and not better[j, i]]
        places = {"rank_low": 1 + int(better[:, i].sum()), "rank_high": len(arms) - int(better[i].sum())}
        row = {"arm": arm, "kind": mine["kind"].iloc[0], "mean": over.mean, "sd": over.sd, "n_folds": over.n}
        rows.append(row | places | {"tied_with": ", ".join(tied)})
    table = pd.DataFrame(rows)
    return table.sort_values("mean", ascending=sign < 0, kind="stable", na_position="last", ignore_index=True)


def what_folds_show(study: Study, scores: pd.DataFrame | None = None, metric: str = "auroc", size: float | None = None) -> str:
    """One sentence on the smallest difference between two arms that the study's folds could show, or that they show none.

    It is `statistics.clear_difference` times the SD over folds of the difference of two arms: their median over all pairs of
    ``scores``, which are as for `differences`; without them, or with one arm or fold only, the sentence counts in SDs.
    """
    if scores is None:
        n_folds, n_arms, sd = study.splits.n_folds, len(study.encoders) + len(study.networks), math.nan
        room = math.nan
        n_train = (1 - study.splits.test_fraction) * (1 - study.splits.val_fraction)
        n_test = study.splits.test_fraction
    else:
        part = _at_size(scores, metric, size)
        n_folds, n_arms = int(part.groupby("arm")[metric].count().max()), part["arm"].nunique()
        n_train, n_test = part["n_train"].mean(), part["n_test"].mean()
        by_fold = part.pivot(index="fold", columns="arm", values=metric)
        means = by_fold.mean()
        room = 1 - means.min() if metric in metrics.HIGHER_IS_BETTER else means.max()  # from the worst arm to a perfect one
        sds = [spread(by_fold[first] - by_fold[second]).sd for first, second in combinations(by_fold, 2)]
        sd = float(np.nanmedian(sds)) if np.isfinite(sds).any() else math.nan
    if n_folds < 2:
        return "One fold has no spread, so that it can't tell any two arms apart."
    if n_folds == 2:
        return "Two folds say too little of their spread for a word on how far two arms must differ."
    n_pairs = n_arms * (n_arms - 1) // 2
    alone, endless = clear_difference(n_folds, n_train, n_test), stats.norm.isf((1 - LEVEL) / 2) * math.sqrt(n_test / n_train)
    of_all = clear_difference(n_folds, n_train, n_test, n_tests=max(n_pairs, 1))
    one, all_pairs, least = (f"{x * sd:.3f}" if math.isfinite(sd) else f"{x:.1f} SDs" for x in (alone, of_all, endless))
    given = f", the differences' SD over folds being {sd:.3f} (median over pairs)" if math.isfinite(sd) else ""
    if alone * sd > room:  # never where either isn't known
        return (
            f"With {n_folds} overlapping folds, whose differences have an SD of {sd:.3f} (median over pairs), two arms would "
            f"have to differ by more in {metrics.TITLES[metric]} than the worst arm does from a perfect one."
        )
    corrected = f", and by {all_pairs} to be so as the first of {n_pairs} pairs by Holm's correction" if n_pairs > 1 else ""
    if of_all * sd > room:
        corrected = f", which can't be enough as the first of {n_pairs} pairs by Holm's correction"
    return (
        f"With {n_folds} overlapping folds, two arms must differ by {one} in {metrics.TITLES[metric]} to be told apart by "
        f"themselves{corrected}{given}; no number of folds drawn from the same slides would bring {one} below {least}."
    )


def intervals(
    predictions: pd.DataFrame, study: Study, metrics: Iterable[str] = ("auroc",), n_resamples: int = N_RESAMPLES
) -> pd.DataFrame:
    """Bootstrap over test slides, a row an arm, size and metric: ``estimate, low, high`` (95 %) and ``n_slides``.

    predictions: as `compare.collect`; only fits on all domains count. The estimate is the mean over folds. All arms are
    resampled by the same draws (`statistics_bootstrap.bootstrap`).
    """
    part, rows = predictions[predictions["train_domain"] == splits.ALL], []
    for (arm, kind, size), group in part.groupby(["arm", "kind", "size"], sort=False):
        for metric in metrics:
            found = bootstrap(group, metric, study.splits.seed, "intervals", n_resamples=n_resamples)
            rows.append((arm, kind, size, metric, found.estimate, found.low, found.high, found.n))
    table = pd.DataFrame(rows, columns=["arm", "kind", "size", "metric", "estimate", "low", "high", "n_slides"])
    return compare.in_order(table, study, "size")


def _at_size(scores: pd.DataFrame, metric: str, size: float | None) -> pd.DataFrame:
    """Scores of fits on all domains, at one size, the largest for None."""
    if metric not in metrics.METRICS:
        raise metrics.MetricError(f"metric {metric!r} is not known; known ones: {sorted(metrics.METRICS)}")
    part = scores[scores["train_domain"] == splits.ALL]
    size = part["size"].max() if size is None else size
    part = part[part["size"] == size]
    if part.empty:
        sizes = sorted(set(scores.loc[scores["train_domain"] == splits.ALL, "size"].tolist()))
        raise StatisticsError(f"no arm has scores at size {size}; there are {sizes}")
    return part


def _arms(part: pd.DataFrame, study: Study) -> list[str]:
    return list(compare.in_order(part[["arm"]].drop_duplicates(), study)["arm"])
