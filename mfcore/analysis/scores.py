"""What several subjects need of a study's scores: arms in order, means, differences, the raters, published values."""

from collections.abc import Callable
from functools import lru_cache
from importlib import resources
from itertools import combinations

import pandas as pd

from mfcore.analysis.exhibit import cells
from mfcore.data.splits import percent
from mfcore.measures import binary, raters
from mfcore.measures.resampling import N_RESAMPLES, bootstrap, by_fold
from mfcore.measures.statistics import StatisticsError, holm, paired_test, spread, unpaired_test
from mfcore.study.config import Settings
from mfcore.study.predictions import ALL, PROBE
from mfcore.study.study import Study

OVER_FOLDS = "folds"
DIFFERENCES = ["first", "second", "difference", "low", "high", "p", "p_holm", "n_folds", "paired", "over"]
INTERVALS = ["arm", "kind", "estimate", "low", "high", "n", "unit"]
once = lru_cache(maxsize=2)  # computes a function of a study once for each of the last two studies


def published(name: str) -> pd.DataFrame:
    """A table of published values, ``published/<name>`` beside this module."""
    file = resources.files("mfcore.analysis").joinpath("published", name)
    with file.open(encoding="utf-8") as opened:
        return pd.read_csv(opened)


def full_size(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of predictions or scores of fits on all domains, at the largest size there is."""
    part = table[table["train_domain"] == ALL]
    return part[part["size"] == part["size"].max()]


def in_order(table: pd.DataFrame, settings: Settings, *then: str) -> pd.DataFrame:
    """A table's rows by ``arm``, networks first, as the study names them, then by ``then``; a stable sort."""
    names = [*(network.name for network in settings.networks), *settings.encoders]
    place = {name: i for i, name in enumerate(names)}
    if not len(table):
        return table
    return table.sort_values(
        ["arm", *then],
        key=lambda column: column.map(place) if column.name == "arm" else column,
        kind="stable",
        ignore_index=True,
    )


def mean_sd(table: pd.DataFrame, by: list[str], values: list[str], count: str = "count") -> pd.DataFrame:
    """Mean and sample SD of columns over the rows of each group of ``by``, those that are defined.

    Columns: ``by``, ``n_folds`` (rows, "size", or defined values of the last column, "count"), and
    each value with its ``_sd``.
    """
    groups = table.groupby(by, sort=False)
    found = {"n_folds": getattr(groups[values[-1]], count)()}
    for name in values:
        found[name] = groups[name].agg(lambda of: spread(of).mean)
        found[f"{name}_sd"] = groups[name].agg(lambda of: spread(of).sd)
    return pd.DataFrame(found).reset_index()


def scaling_table(scores: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Mean and sample SD over folds of every metric, a row an arm and size (Fig. 1).

    scores: as `mfcore.study.predictions.scores`. Columns: ``arm, kind, size, n_train`` (mean over
    folds), ``n_folds``, ``auroc, auroc_sd`` and so on.
    """
    mixed, by = scores[scores["train_domain"] == ALL], ["arm", "kind", "size"]
    table = mean_sd(mixed, by, list(binary.METRICS), "size")
    n_train = mixed.groupby(by, sort=False)["n_train"].mean().round().astype(int)
    table.insert(3, "n_train", n_train.to_numpy())
    return in_order(table, settings, "size")


def wide(table: pd.DataFrame, value: str = "auroc") -> pd.DataFrame:
    """`scaling_table` for the eye: arms down, sizes across, "mean ± SD" in the cells."""
    sizes = [f"{percent(size)} %" for size in sorted(table["size"].unique())]
    shown = table[["arm", "kind"]].assign(size=[f"{percent(size)} %" for size in table["size"]], cell=cells(table, value))
    arms = pd.MultiIndex.from_frame(shown[["arm", "kind"]].drop_duplicates())
    shown = shown.pivot(index=["arm", "kind"], columns="size", values="cell")
    return shown.loc[arms, sizes].rename_axis(columns=None).fillna("–").reset_index()


@once
def by_size(study: Study) -> pd.DataFrame:
    """The study's `scaling_table`."""
    return scaling_table(study.scores, study.settings)


@once
def human(study: Study) -> pd.DataFrame:
    """How far the study's raters agree (`mfcore.measures.raters.table`); no row without votes."""
    return raters.table(study.labels, study.seed)


def rater_lines(line: Callable, span: Callable, table: pd.DataFrame, domain: str = ALL) -> None:
    """Mark what raters reach in balanced accuracy: one against another (95 % interval), and against the consensus.

    line, span: ``axhline, axhspan`` of an axis, or the vertical ones. table: as `human`.
    """
    one = raters.reference(table, domain)
    upper = raters.against_consensus(table, domain)
    if one:
        span(one.low, one.high, color="0.87", linewidth=0, zorder=0.5)
        dashes = (0, (7, 3))
        line(one.estimate, color="black", linewidth=1.2, linestyle=dashes, label="one rater against another")
    if upper:
        label = "a rater against the consensus, own vote counted"
        line(upper, color="0.45", linewidth=1.1, linestyle="-.", label=label)


def differences_table(predictions: pd.DataFrame, settings: Settings, metric: str = "auroc") -> pd.DataFrame:
    """Every pair of arms with all the data: columns DIFFERENCES.

    ``difference``: mean over folds of first less second, with the 95 % interval and p of
    `statistics.paired_test`. ``p_holm``: corrected over all pairs, NaN where a pair cannot be tested.
    ``n_folds``: folds that both were tested on. ``over``: "folds" where each fold has test patches of
    its own, or "31 cases", which were drawn, where all folds are tested on the same patches.
    ``paired``: whether on the same folds. Arms with folds of their own (``switches.shared_splits``
    false: networks against probes) are compared by `statistics.unpaired_test`, but where all folds
    share their patches.

    predictions: as `Study.predictions`. Raises MetricError for an unknown metric, StatisticsError
    where no arm learned from all domains.
    """
    if metric not in binary.METRICS:
        raise binary.MetricError(f"metric {metric!r} is not known; known ones: {sorted(binary.METRICS)}")
    part = full_size(predictions)
    if part.empty:
        raise StatisticsError("no arm has scores with all the data")
    arms, seed = in_order(part[["arm", "kind"]].drop_duplicates(), settings), settings.splits.seed
    scores = {arm: by_fold(part[part["arm"] == arm], metric, seed, ALL).defined() for arm in arms["arm"]}
    is_probe = dict(zip(arms["arm"], arms["kind"] == PROBE, strict=True))
    n_train = part.groupby("arm")["n_train"].mean()
    n_test, rows = part.groupby(["arm", "fold"]).size().groupby("arm").mean(), []
    for first, second in combinations(scores, 2):
        a, b = scores[first], scores[second]
        is_paired = settings.switches.shared_splits or is_probe[first] == is_probe[second]
        is_paired = is_paired or not (a.has_own_patches or b.has_own_patches)
        test = (paired_test if is_paired else unpaired_test)(
            a, b, n_train[[first, second]].mean(), n_test[[first, second]].mean()
        )
        row = {"first": first, "second": second, "difference": test.interval.estimate, "p": test.p}
        row |= {"low": test.interval.low, "high": test.interval.high, "n_folds": test.interval.n}
        rows.append(row | {"paired": is_paired, "over": test.drawn or OVER_FOLDS})
    table = pd.DataFrame(rows, columns=[name for name in DIFFERENCES if name != "p_holm"])
    return table.assign(p_holm=holm(table["p"].astype(float)))[DIFFERENCES]


@once
def pairs(study: Study) -> pd.DataFrame:
    """The `differences_table` of AUROC, which takes seconds."""
    return differences_table(study.predictions, study.settings)


def intervals(
    predictions: pd.DataFrame,
    settings: Settings,
    metric: str = "auroc",
    n_resamples: int = N_RESAMPLES,
) -> pd.DataFrame:
    """Mean over folds of each arm with all the data, with its bootstrap over test slides: INTERVALS.

    ``n`` slides are drawn, or cases where a case has several slides; ``unit`` says which. All arms are
    resampled by the same draws (`resampling.bootstrap`).
    """
    rows = []
    for arm, group in full_size(predictions).groupby(["arm", "kind"], sort=False):
        one = bootstrap(group, metric, settings.splits.seed, "intervals", n_resamples=n_resamples)
        rows.append((*arm, one.estimate, one.low, one.high, one.n, one.unit))
    return in_order(pd.DataFrame(rows, columns=INTERVALS), settings)
