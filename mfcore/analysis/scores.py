"""What several subjects need: arms in order, means, differences, raters, published values."""

from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib import resources
from itertools import combinations

import pandas as pd

from mfcore.analysis.exhibit import Exhibit, bounds, cells, of_what
from mfcore.data.splits import percent
from mfcore.measures import binary, raters
from mfcore.measures.resampling import bootstrap, by_fold
from mfcore.measures.statistics import StatisticsError, holm, paired_test, unpaired_test
from mfcore.study import predictions as of_arms
from mfcore.study.config import Settings
from mfcore.study.predictions import ALL, PROBE
from mfcore.study.study import Study

OVER_FOLDS = "folds"
DIFFERENCES = [
    "first",
    "second",
    "difference",
    "low",
    "high",
    "p",
    "p_holm",
    "n_folds",
    "paired",
    "over",
]
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


def common(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `full_size` of the folds that every arm has: what arms are compared by.

    All rows where no fold is every arm's.
    """
    full = full_size(table)
    shared = set.intersection(*full.groupby("arm")["fold"].agg(set))
    return full[full["fold"].isin(shared)] if shared else full


def in_order(table: pd.DataFrame, settings: Settings, *then: str) -> pd.DataFrame:
    """A table's rows by ``arm``, networks first, as the study names them, then by ``then``."""
    names = [*(network.name for network in settings.networks), *settings.encoders]
    names += [f"{name} {m}" for name in settings.encoders for m in settings.probe.also]
    place = table["arm"].map({name: i for i, name in enumerate(names)})
    order = table.assign(arm=place).sort_values(["arm", *then], kind="stable").index
    return table.loc[order].reset_index(drop=True)


def mean_sd(
    table: pd.DataFrame, by: list[str], values: Iterable[str], patches: str = ""
) -> pd.DataFrame:
    """Mean and sample SD of columns over the rows of each group of ``by``, those that are defined.

    Columns: ``by``, ``n_folds`` (defined values of the last column), and each value with its
    ``_sd``. With ``patches``, a column that counts patches, its rounded mean comes first and
    ``n_folds`` counts all rows.
    """
    groups, values = table.groupby(by, sort=False), list(values)
    means = groups[values].agg(["mean", "std"])
    means.columns = [name + "_sd" * (statistic == "std") for name, statistic in means.columns]
    means.insert(0, "n_folds", groups.size() if patches else groups[values[-1]].count())
    if patches:
        means.insert(0, patches, groups[patches].mean().round().astype(int))
    return means.reset_index()


def scaling_table(scores: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Mean and sample SD over folds of every metric, a row an arm and size (Fig. 1).

    scores: as `mfcore.study.predictions.scores`. Columns: ``arm, kind, size, n_train`` (mean over
    folds), ``n_folds``, ``auroc, auroc_sd`` and so on.
    """
    mixed = scores[scores["train_domain"] == ALL]
    table = mean_sd(mixed, ["arm", "kind", "size"], binary.METRICS, "n_train")
    return in_order(table, settings, "size")


def across_sizes(table: pd.DataFrame) -> pd.DataFrame:
    """AUROC of `scaling_table` for the eye: arms down, sizes across, "mean ± SD" in the cells."""
    arms = pd.MultiIndex.from_frame(table[["arm", "kind"]].drop_duplicates())
    shown = table.assign(cell=cells(table, "auroc"))
    shown = shown.pivot(index=["arm", "kind"], columns="size", values="cell").loc[arms].fillna("–")
    return (
        shown.rename(columns=lambda size: f"{percent(size)} %")
        .rename_axis(columns=None)
        .reset_index()
    )


@once
def by_size(study: Study) -> pd.DataFrame:
    """The study's `scaling_table`."""
    return scaling_table(study.scores, study.settings)


@once
def human(study: Study) -> pd.DataFrame:
    """How far the study's raters agree (`mfcore.measures.raters.table`); no row without votes."""
    return raters.table(study.labels, study.seed)


def rater_lines(line: Callable, span: Callable, table: pd.DataFrame, domain: str = ALL) -> None:
    """Mark what raters reach in balanced accuracy: against one another, against the consensus.

    line, span: ``axhline, axhspan`` of an axis, or the vertical ones. table: as `human`.
    """
    one = raters.reference(table, domain)
    upper = raters.against_consensus(table, domain)
    if one:
        span(one.low, one.high, color="0.87", linewidth=0, zorder=0.5)
        dashes = (0, (7, 3))
        line(
            one.estimate,
            color="black",
            linewidth=1.2,
            linestyle=dashes,
            label="one rater against another",
        )
    if upper:
        label = "a rater against the consensus, own vote counted"
        line(upper, color="0.45", linewidth=1.1, linestyle="-.", label=label)


def differences_table(predictions: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """AUROC of every pair of arms with all the data: columns DIFFERENCES.

    ``difference``: mean over folds of first less second, with the 95 % interval and p of
    `statistics.paired_test`. ``p_holm``: corrected over all pairs, NaN where a pair cannot be
    tested. ``n_folds``: folds that both were tested on. ``over``: "folds" where each fold has test
    patches of its own, or "31 cases", which were drawn, where all folds are tested on the same
    patches. ``paired``: whether on the same folds. Arms with folds of their own
    (``switches.shared_splits`` false: networks against probes) are compared by
    `statistics.unpaired_test`, but where all folds share their patches.

    predictions: as `Study.predictions`. Raises StatisticsError where no arm learned from all
    domains.
    """
    part = full_size(predictions)
    if part.empty:
        raise StatisticsError("no arm has scores with all the data")
    arms, seed = in_order(part[["arm", "kind"]].drop_duplicates(), settings), settings.splits.seed
    folds = {
        arm: by_fold(part[part["arm"] == arm], "auroc", seed, ALL).defined() for arm in arms["arm"]
    }
    is_probe = dict(zip(arms["arm"], arms["kind"] == PROBE, strict=True))
    counts = pd.DataFrame({"train": part.groupby("arm")["n_train"].mean()})  # patches of a fold
    counts["test"] = part.groupby(["arm", "fold"]).size().groupby("arm").mean()
    rows = []
    for pair in combinations(folds, 2):
        first, second = (folds[arm] for arm in pair)
        is_paired = settings.switches.shared_splits or is_probe[pair[0]] == is_probe[pair[1]]
        is_paired = is_paired or not (first.has_own_patches or second.has_own_patches)
        test = (paired_test if is_paired else unpaired_test)(
            first, second, *counts.loc[[*pair]].mean()
        )
        one = test.interval
        rows.append(
            (
                *pair,
                one.estimate,
                one.low,
                one.high,
                test.p,
                one.n,
                is_paired,
                test.drawn or OVER_FOLDS,
            )
        )
    columns = [name for name in DIFFERENCES if name != "p_holm"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(p_holm=holm(table["p"].astype(float)))[DIFFERENCES]


@once
def pairs(study: Study) -> pd.DataFrame:
    """The `differences_table` of a study, which takes seconds."""
    return differences_table(study.predictions, study.settings)


def constant(predictions: pd.DataFrame) -> dict[str, int]:
    """The arms that give all test patches of a fold one score, and in how many folds they do so.

    With all the data. Their AUROC is 0.5 and says nothing of the encoder.
    """
    n_scores = full_size(predictions).groupby(["arm", "fold"], sort=False)["score"].nunique()
    n_folds = (n_scores == 1).groupby("arm", sort=False).sum()
    return n_folds[n_folds > 0].to_dict()


def intervals(predictions: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Mean AUROC of each arm with all the data, with its bootstrap over test slides: INTERVALS.

    ``n`` slides are drawn, or cases where a case has several slides; ``unit`` says which. All arms
    are resampled by the same draws (`resampling.bootstrap`).
    """
    rows = []
    for arm, group in full_size(predictions).groupby(["arm", "kind"], sort=False):
        one = bootstrap(group, "auroc", settings.splits.seed, "intervals")
        rows.append((*arm, one.estimate, one.low, one.high, one.n, one.unit))
    return in_order(pd.DataFrame(rows, columns=INTERVALS), settings)


# ---- external test sets ----


def external_scores(study: Study) -> pd.DataFrame:
    """AUROC of every fit on every external set: ``arm, kind, tested_on, size, fold, n_test,
    auroc``.
    """
    columns = ["arm", "kind", "tested_on", "size", "fold"]
    table = study.external_predictions
    if table.empty:
        return pd.DataFrame(columns=[*columns, "n_test", "auroc"])
    rows = [
        (*of, len(part), binary.auroc(part["label"].to_numpy(), part["score"].to_numpy()))
        for of, part in table.groupby(columns, sort=False)
    ]
    return pd.DataFrame(rows, columns=[*columns, "n_test", "auroc"])


def on_external_sets(study: Study) -> Exhibit:
    """AUROC of every arm and size on external sets, with intervals over the tested cases."""
    table, settings = study.external_predictions, study.settings
    rows = []
    for of, part in table.groupby(["tested_on", "arm", "kind", "size"]) if len(table) else ():
        interval = bootstrap(part, "auroc", study.seed, "external", *of[:2])
        rows.append((*of, len(part[part["fold"] == part["fold"].min()]), *vars(interval).values()))
    columns = [
        "tested_on",
        "arm",
        "kind",
        "size",
        "n_test",
        "auroc",
        "low",
        "high",
        "n_units",
        "unit",
    ]
    summary = in_order(pd.DataFrame(rows, columns=columns), settings, "tested_on", "size")
    dropped = [
        f"{name}: {len(facts['shared_cases'])} shared cases and {len(facts['identical'])} patches "
        "with the pixels of one here are left out"
        for name, facts in of_arms.shared_with_external(settings, study.folder).items()
        if facts["shared_cases"] or facts["identical"]
    ]
    caption = (
        "AUROC of every arm on all patches of other data, which it has not learned from: the mean "
        f"over folds, with a 95 % interval over the tested cases ({of_what(settings)})."
    )
    caption += f" {'; '.join(dropped)}." if dropped else ""
    if not settings.test_on:
        caption = f"Study `{settings.name}` names no other data to test on (`test_on`)."
    intervals = [
        bounds(low, high, ".2f") or "–" for low, high in summary[["low", "high"]].to_numpy()
    ]
    readable = summary.assign(
        auroc=[f"{mean:.3f} ({of})" for mean, of in zip(summary["auroc"], intervals, strict=True)],
        n_units=[f"{row.n_units:,} {row.unit}s" for row in summary.itertuples()],
    )
    readable = readable.drop(columns=["low", "high", "unit"])
    name, title = "13_external", "Tested on other data"
    return Exhibit(name, title, caption, summary, None, "External tests", readable)
