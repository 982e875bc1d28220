"""Arms with all the data: ranking, differences, calibration, and where each arm does well."""

import math
import textwrap
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from scipy import stats

from mfcore.analysis.exhibit import (
    CHANCE,
    WIDTH_INCH,
    Exhibit,
    counted,
    finished,
    folds,
    in_panels,
    in_style,
    named,
    of_what,
    rounded,
    unit,
)
from mfcore.analysis.scores import (
    OVER_FOLDS,
    common,
    full_size,
    in_order,
    intervals,
    mean_sd,
    pairs,
)
from mfcore.measures import binary, raters
from mfcore.measures.resampling import (
    bootstrap,
    coverage_note,
    interval_of,
    resample,
    resampled_slides,
    sums_by_slide,
    units_of,
)
from mfcore.measures.statistics import LEVEL, MIN_FOLDS, clear_difference
from mfcore.study.config import Settings
from mfcore.study.predictions import refuse_lost, scores as scores_of
from mfcore.study.study import Study

SECTION = "Arms"
BINS = ["arm", "kind", "bin_low", "bin_high", "mean_score", "share_positive", "low", "high"]
BINS += ["n", "n_units", "unit"]
STRATA = ("domain", "scanner", "agreement")
BY_STRATUM = ["arm", "kind", "stratum", "value", "auroc", "low", "high", "balanced_accuracy"]
BY_STRATUM += ["n", "n_positive", "n_slides", "n_units", "unit"]
BY_AGREEMENT = ["arm", "kind", "annotations", "against"]


def missing(study: Study) -> Exhibit:
    """The runs of the study that failed or are missing, and why."""
    table = study.failures
    caption = "Every run of the study is here."
    if len(table):
        caption = f"{counted(len(table), 'run')} failed or missing ({of_what(study.settings)})."
    return Exhibit("05_missing", "Missing runs", caption, table, None, SECTION)


# ---- which arms differ ----


def differences(study: Study) -> Exhibit:
    """Every pair of arms with all the data (`differences_table`)."""
    table = pairs(study)
    n_clear = int((table["p_holm"] < 1 - LEVEL).sum())
    caption = (
        "First less second arm, AUROC with all the data, mean over folds "
        f"({of_what(study.settings)}). Interval and p are of the pair by itself, p_holm is "
        f"corrected for all pairs; over: what the interval is over. {n_clear} of "
        f"{counted(len(table), 'pair')} differ by p_holm below 0.05."
    )
    return Exhibit("05_differences", "Differences", caption, table, None, SECTION, rounded(table))


def least_differences(scores: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """The smallest differences of two arms that folds can show: ``question, sds, auroc, possible``.

    ``sds``: in SDs over folds of the difference of two arms (`statistics.clear_difference`).
    ``auroc``: times the median SD of all pairs. Where all folds are tested on the same patches: the
    median half width of the pairs' intervals. ``possible``: whether the worst arm is that far from
    a perfect one. No row with fewer than MIN_FOLDS folds.

    scores: as `Study.scores`. pairs: as `differences_table`.
    """
    full = full_size(scores)
    by_fold = full.pivot(index="fold", columns="arm", values="auroc")
    counts = len(by_fold), full["n_train"].mean(), full["n_test"].mean()
    sds = [(by_fold[first] - by_fold[second]).std() for first, second in combinations(by_fold, 2)]
    sd, n_pairs, least = pd.Series(sds, dtype=float).median(), max(1, len(pairs)), {}
    if len(by_fold) >= MIN_FOLDS and len(pairs) and pairs["over"].iloc[0] != OVER_FOLDS:
        least[f"one pair, by draws of {pairs['over'].max()}"] = np.nan
        sd = (pairs["high"] - pairs["low"]).median() / 2
    elif len(by_fold) >= MIN_FOLDS:
        ever = stats.norm.isf((1 - LEVEL) / 2) * math.sqrt(counts[2] / counts[1])
        least = {
            "one pair": clear_difference(*counts),
            f"first of {n_pairs} pairs, after Holm": clear_difference(*counts, n_tests=n_pairs),
            "one pair, ever more folds of these slides": ever,
        }
    table = pd.DataFrame(least.items(), columns=["question", "sds"]).astype({"sds": float})
    table["auroc"] = table["sds"].fillna(1) * sd
    return table.assign(possible=~(table["auroc"] > 1 - by_fold.mean().min()))


def least_difference(study: Study) -> Exhibit:
    """What difference of two arms this study's folds can show (`least_differences`)."""
    table = least_differences(study.scores, pairs(study))
    caption = (
        "The smallest difference in AUROC between two arms that the folds can show, in SDs over "
        f"folds of such a difference and in AUROC ({of_what(study.settings)}); fewer than "
        f"{MIN_FOLDS} folds show none. A difference that is not possible is larger than the worst "
        "arm's distance from a perfect one."
    )
    name, title = "05_least_difference", "What the folds can show"
    return Exhibit(name, title, caption, table, None, SECTION, rounded(table))


def ranking_table(scores: pd.DataFrame, pairs: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """The arms from best to worst over the folds that all have, with the places that each can hold.

    ``arm, kind, mean, sd, n_folds``; ``rank_low``: the best place, one more than there are arms
    clearly better; ``rank_high``: the worst, as many as there are arms less those clearly worse.
    Clear is a difference whose ``p_holm`` is below 0.05, and what follows from several: where one
    arm is clear of a second and that of a third, the first is clear of the third. ``tied_with``:
    the arms that an arm is not clear of, separated by ", ". ``over``: as in ``pairs``.

    scores: as `Study.scores`. pairs: as `differences_table`.
    """
    table = mean_sd(in_order(common(scores), settings), ["arm", "kind"], ["auroc"])
    table = table.rename(columns={"auroc": "mean", "auroc_sd": "sd"})
    place = {arm: i for i, arm in enumerate(table["arm"])}
    better = np.zeros((len(table), len(table)), dtype=bool)  # [i, j]: i is clearly better than j
    for row in pairs[pairs["p_holm"] < 1 - LEVEL].itertuples():
        i, j = place[row.first], place[row.second]
        better[(i, j) if row.difference > 0 else (j, i)] = True
    for via in range(len(table)):
        better |= better[:, [via]] & better[[via], :]
    is_tied = ~(better | better.T | np.eye(len(table), dtype=bool))
    table["rank_low"] = 1 + better.sum(axis=0)
    table["rank_high"] = len(table) - better.sum(axis=1)
    table["tied_with"] = [", ".join(table["arm"][tied]) for tied in is_tied]
    table["over"] = pairs["over"].max() if len(pairs) else OVER_FOLDS
    return table.sort_values("mean", ascending=False, kind="stable", ignore_index=True)


@in_style
def ranking(study: Study) -> Exhibit:
    """Arms from best to worst, each with its interval over slides or cases and its places."""
    settings = study.settings
    table = ranking_table(study.scores, pairs(study), settings)
    spans = table[["arm"]].merge(intervals(common(study.predictions), settings), on="arm")
    low, high = table["rank_low"].astype(str), table["rank_high"].astype(str)
    names = named(table, settings)["name"] + "   " + low + ("–" + high).where(low != high, "")
    full = common(study.scores)
    full = full.assign(name=full["arm"].map(dict(zip(table["arm"], names, strict=True))))
    figure, axis = plt.subplots(figsize=(WIDTH_INCH, 1.2 + 0.27 * len(table)))
    sns.pointplot(
        full, x="auroc", y="name", order=list(names), color="C0", linestyle="none", errorbar="sd",
        err_kws={"linewidth": 4.5, "alpha": 0.35}, markersize=5, ax=axis,
    )  # fmt: skip
    axis.hlines(list(names), spans["low"], spans["high"], color="C0", linewidth=1.4)
    axis.axvline(0.5, **CHANCE)
    over = f"{spans['n'].max()} {unit(spans)}"
    label = f"AUROC: mean, SD over {folds(table)} (wide), 95 % interval over {over} (thin)"
    axis.set(xlabel=label, ylabel="", ylim=(len(table) - 0.5, -0.5))  # no row on the frame
    figure = finished(study, figure, "after each name the places it can hold")
    coverage = coverage_note(int(spans["n"].max()), unit(spans)[:-1])
    best = table.iloc[0]
    caption = (
        "AUROC of every arm with all the data, and the places that each arm can hold, given which "
        f"differences are clear of zero after Holm ({of_what(settings)}). Wide bars: SD over "
        f"{folds(table)}; thin: 95 % interval over {over} (bootstrap{coverage}); tests are over "
        f"{best['over']}. {best['arm']} is first and ties with {best['tied_with'] or 'no arm'}."
    )
    return Exhibit("05_ranking", "Ranking", caption, table, figure, SECTION)


# ---- calibration ----


def reliability(predictions: pd.DataFrame) -> pd.DataFrame:
    """Share of class 1 by score, a row an arm and bin that has a patch: columns BINS.

    All folds together: ``mean_score`` and ``share_positive`` of the bin's ``n`` tested patches (one
    patch may be tested in several folds), and ``low`` to ``high``, the 95 % interval of that share
    over ``n_units`` resampled slides or cases (``unit``). NaN for a bin of fewer than MIN_SLIDES of
    them or of one class, whose resamples are too much alike.

    predictions: as `Study.predictions`. Raises MetricError for labels and scores that are none.
    """
    n_bins, rows = binary.N_BINS, []
    for arm, group in full_size(predictions).groupby(["arm", "kind"], sort=False):
        label, score = binary.check(group["label"].to_numpy(), group["score"].to_numpy())
        units, what = units_of(group)
        slide, weights = resampled_slides(units, 0, "reliability")
        # (n_units, n_bins)
        counts, positive, total = (
            sums_by_slide(slide, binary.bin_of(score, n_bins), weights.shape[1], n_bins, amount)
            for amount in (np.ones(len(label)), label, score)
        )
        n = weights @ counts  # (1 + n_resamples, n_bins)
        shares = np.divide(weights @ positive, n, out=np.full(n.shape, np.nan), where=n > 0)
        for i in np.flatnonzero(n[0]):
            span = interval_of(shares[:, i], int(np.count_nonzero(counts[:, i])))
            row = (i / n_bins, (i + 1) / n_bins, total[:, i].sum() / n[0, i], shares[0, i])
            rows.append((*arm, *row, span.low, span.high, int(n[0, i]), span.n, what))
    return pd.DataFrame(rows, columns=BINS)


@in_style
def calibration(study: Study) -> Exhibit:
    """How often a patch of each score is of class 1, a panel an arm (`reliability`)."""
    settings, table = study.settings, reliability(study.predictions)
    errors = mean_sd(
        in_order(full_size(study.scores), settings), ["arm", "kind"], ["brier", "ece", "auroc"]
    )
    titles = {
        row.arm: f"{row.name}\nECE {row.ece:.2f}, Brier {row.brier:.2f}"
        for row in named(errors, settings).itertuples(index=False)
    }
    shown = in_order(table, settings)
    shown["title"] = shown["arm"].map(titles)
    grid = sns.FacetGrid(shown, col="title", col_wrap=3, height=2.3, xlim=(0, 1), ylim=(0, 1))
    for title, part in shown.groupby("title"):
        axis, share = grid.axes_dict[title], part["n"] / part["n"].sum()
        axis.bar(
            part["bin_low"], share, 1 / binary.N_BINS, align="edge", color="0.85", edgecolor="0.6",
            linewidth=0.4, label="share of all scores",
        )  # fmt: skip
        axis.plot([0, 1], [0, 1], color="0.55", linestyle=":", label="as the score says")
        below, above = part["share_positive"] - part["low"], part["high"] - part["share_positive"]
        axis.errorbar(
            part["mean_score"], part["share_positive"], np.clip([below, above], 0, None), fmt="o-",
            color="C0", capsize=1.5, markersize=3.5, linewidth=1,
            label="share of class 1, 95 % interval",
        )  # fmt: skip
    in_panels(grid, "mean score in the bin", "share")
    figure = finished(study, grid.figure, f"class 1: {settings.data.positive}", 3)
    best = errors.loc[errors["ece"].idxmin()]
    caption = (
        f"Share of class {settings.data.positive} among test patches by score, {binary.N_BINS} "
        f"bins of equal width, with all the data ({of_what(settings)}). Scores of {folds(errors)} "
        f"together; bars: 95 % intervals over {unit(table)}, none for too few of them. The "
        f"expected calibration error (ECE, mean over folds) is lowest for {best['arm']}: "
        f"{best['ece']:.2f}, at an AUROC of {best['auroc']:.2f}; a score that is the same for all "
        "patches can be calibrated, too."
    )
    return Exhibit("05_reliability", "Calibration", caption, table, figure, SECTION)


# ---- parts of the test patches ----


def by_stratum(predictions: pd.DataFrame, labels: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """AUROC of every arm with all the data within each value of each of STRATA: columns BY_STRATUM.

    ``auroc``, with its 95 % interval over ``n_units`` resampled slides or cases (``unit``), and
    ``balanced_accuracy`` are means over folds, each fold among its own test patches. ``n,
    n_positive, n_slides`` count different annotations and slides tested in any fold. NaN where
    every fold lacks a class. A value that labels leave empty has no row, and a stratum with one
    value none at all.

    labels: as `Study.labels`. Raises StoreError where it lacks a patch that was predicted.
    """
    part, rows, seed = full_size(predictions), [], settings.splits.seed
    refuse_lost(part, labels)
    of_patch = labels[["patch_id", "scanner"]].assign(agreement=raters.stratum(labels))
    part = part.merge(of_patch, on="patch_id", validate="many_to_one")
    for stratum in STRATA:
        known = part[part[stratum] != ""]
        if known[stratum].nunique() < 2:
            continue
        for (arm, kind, value), group in known.groupby(["arm", "kind", stratum]):
            auroc = bootstrap(group, "auroc", seed, "strata", value)
            balanced = float(resample(group, "balanced_accuracy", seed, n_resamples=0)[0])
            tested = group.drop_duplicates("patch_id")
            counts = len(tested), int(tested["label"].sum()), tested["slide_id"].nunique(), auroc.n
            scores = auroc.estimate, auroc.low, auroc.high, balanced
            rows.append((arm, kind, stratum, value, *scores, *counts, auroc.unit))
    table = in_order(pd.DataFrame(rows, columns=BY_STRATUM), settings)
    order = table["stratum"].map(STRATA.index).sort_values(kind="stable").index
    return table.loc[order].reset_index(drop=True)


@in_style
def strata(study: Study) -> Exhibit:
    """AUROC in each domain, of each scanner, and where the raters agreed or not."""
    name, settings = "05_strata", study.settings
    table = by_stratum(study.predictions, study.labels, settings)
    if table.empty:
        caption = (
            f"The labels name one domain, no two scanners and no two votes ({of_what(settings)})."
        )
        return Exhibit(name, "Strata", caption, table, None, SECTION)
    shown = named(table, settings)
    shown["part"] = [
        textwrap.fill(f"{row.stratum}: {row.value}", 24) + f"\nn = {row.n:,}, {row.n_slides} slides"
        for row in table.itertuples()
    ]
    height = 0.9 + 0.18 * table["arm"].nunique()
    grid = sns.FacetGrid(shown, col="part", col_wrap=3, height=height, aspect=3.3 / height)
    grid.map(plt.plot, "auroc", "name", marker="o", linestyle="")
    grid.map(plt.hlines, "name", "low", "high")
    for axis in grid.axes.flat:
        axis.axvline(0.5, **CHANCE)
    grid.axes.flat[0].invert_yaxis()
    in_panels(grid, "AUROC", "")
    figure = finished(study, grid.figure)
    n_units = table.loc[table["low"].notna(), "n_units"].min()
    coverage = coverage_note(int(n_units), unit(table)[:-1]) if n_units > 0 else ""
    caption = (
        f"AUROC of every arm with all the data on parts of the test patches ({of_what(settings)}). "
        f"Points: means over folds; bars: 95 % intervals over {unit(table)} (bootstrap{coverage}). "
        "Strata differ in more than their name: tumour, scanner and laboratory go together in most "
        "data sets."
    )
    return Exhibit(name, "Strata", caption, table, figure, SECTION)


def by_agreement_table(
    predictions: pd.DataFrame, labels: pd.DataFrame, settings: Settings
) -> pd.DataFrame:
    """Every metric of every arm with all the data, apart by whether the raters agreed.

    Mean and sample SD over folds (``auroc``, ``auroc_sd`` and so on), a row an arm and part of the
    test annotations with two or more votes: ``annotations`` "all", "unanimous" and "contested",
    ``against`` "consensus"; and "all" ``against`` "one rater", the mean over raters, which is what
    one rater against another is to be compared with. ``n_test``: annotations tested, mean over
    folds; ``n_folds``: folds that have any. NaN where every fold lacks a class.

    labels: as `Study.labels`. Raises StoreError where it lacks a patch that was predicted.
    """
    part = full_size(predictions)
    refuse_lost(part, labels)
    voted, votes = raters.votes(labels)
    votes = pd.DataFrame(votes, index=voted["patch_id"])  # (n_voted, n_raters)
    part = part[part["patch_id"].isin(voted["patch_id"])]
    if part.empty:
        return pd.DataFrame(columns=[*BY_AGREEMENT, "n_test", "n_folds"])
    agreement = part["patch_id"].map(
        dict(zip(voted["patch_id"], raters.stratum(voted), strict=True))
    )
    fits = [scores_of(part).assign(annotations="all", against="consensus")]
    for rater in votes:
        by_rater = scores_of(part.assign(label=part["patch_id"].map(votes[rater])))
        fits.append(by_rater.assign(annotations="all", against="one rater"))
    for name in (raters.UNANIMOUS, raters.CONTESTED):
        fits.append(
            scores_of(part[agreement == name]).assign(annotations=name, against="consensus")
        )
    of_fold = pd.concat(fits).groupby([*BY_AGREEMENT, "fold"], sort=False)[
        ["n_test", *binary.METRICS]
    ]
    means = of_fold.agg(lambda of: of.mean(skipna=False)).reset_index()
    return in_order(mean_sd(means, BY_AGREEMENT, binary.METRICS, "n_test"), settings)


def by_agreement(study: Study) -> Exhibit:
    """Every metric apart by the raters' agreement (`by_agreement_table`)."""
    name, settings = "05_by_agreement", study.settings
    table = by_agreement_table(study.predictions, study.labels, settings)
    if not len(table):
        caption = f"Without votes, no label is known to be contested ({of_what(settings)})."
        return Exhibit(name, "By agreement", caption, table, None, "Raters")
    caption = (
        "Every arm with all the data, apart by whether the raters of an annotation agreed "
        f"({of_what(settings)}). Mean ± sample SD of {folds(table)}; against one rater: each "
        "rater's votes taken for the truth in turn, as in the table of raters. The consensus on a "
        "contested label is itself in doubt."
    )
    return Exhibit(name, "By agreement", caption, table, None, "Raters", rounded(table))
