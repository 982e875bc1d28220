"""Arms with all the data: their ranking, their calibration, where they do well; and the raters, apart and beside them."""

import numpy as np
import pandas as pd

from mfcore.analysis import captions, compare, compare_models, compare_strata
from mfcore.analysis.exhibit import Exhibit
from mfcore.analysis.figures import CHANCE, WIDTH_INCH, drawing, few, legend_below, look, nothing, title, two_lines
from mfcore.measures import binary, raters
from mfcore.measures.resampling import coverage_said
from mfcore.study.config import Settings

SECTION = "Arms"
N_ACROSS = 3  # panels in a row
STRATA = {"domain": "by domain", "scanner": "by scanner", "agreement": "by the raters' agreement"}


def ranking(study: Settings, order: pd.DataFrame, intervals: pd.DataFrame, metric: str = "auroc") -> Exhibit:
    """Arms from best to worst, each with its interval over slides or cases and the places that it can hold.

    order, intervals: as `compare_models.ranking` and `compare_models.intervals` return them.
    """
    full = intervals[(intervals["metric"] == metric) & (intervals["size"] == intervals["size"].max())]
    bounds = order[["arm"]].merge(full, on="arm", how="left")
    with drawing(study, 1, 1, (WIDTH_INCH, 0.27 * len(order) + 1.15)) as (figure, axes):
        axis = axes[0][0]
        for place, (row, bound) in enumerate(zip(order.itertuples(), bounds.itertuples(), strict=True)):
            style = look(study, row.arm, row.kind) | {"linestyle": "none"}
            axis.plot([bound.low, bound.high], [place] * 2, color=style["color"], linewidth=1.4, marker="|", markersize=7)
            axis.errorbar(row.mean, place, xerr=np.nan_to_num(row.sd), linewidth=4.5, alpha=0.35, color=style["color"])
            axis.plot(row.mean, place, markersize=6, **style)
        if (order["mean"] - order["sd"].fillna(0)).min() < 0.55:
            axis.axvline(0.5, **CHANCE)
        rows = zip(order["arm"], order["kind"], order["rank_low"], order["rank_high"], strict=True)
        names = [f"{compare.shown_name(study, arm, kind)}   {_places(low, high)}" for arm, kind, low, high in rows]
        axis.set_yticks(range(len(order)), names)
        axis.set_ylim(len(order) - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
        n_units = f", {full['n'].max():.0f} {compare.unit(full)}" if len(full) else ""
        axis.set_xlabel(f"{binary.TITLES[metric]}: mean, SD over {compare.folds(order)} (wide), 95 % interval (thin{n_units})")
        title(figure, f"{study.title}; after each name the places it can hold")
    caption = _ranking_caption(study, order, full, metric)
    return Exhibit("05_ranking", "Ranking", caption, order, figure, SECTION)


def _places(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"


def _ranking_caption(study: Settings, order: pd.DataFrame, full: pd.DataFrame, metric: str) -> str:
    best, over = order.iloc[0], order["over"].iloc[0]
    test = "paired over folds, corrected for their overlap after Nadeau and Bengio"
    if over != compare_models.OVER_FOLDS:
        test = f"over draws of the {over} that all folds test, after Obuchowski and Rockette"
    elif not study.switches.shared_splits:
        test += "; a network and a probe unpaired, as they have folds of their own"
    tied = best["tied_with"].split(", ") if best["tied_with"] else []
    found = f"{captions.listed(tied)} can't be told from it" if tied else "every other arm is clearly below it"
    n_units, unit = (int(full["n"].max()), full["unit"].iloc[0]) if len(full) else (0, "slide")
    return (
        f"{binary.TITLES[metric]} of every arm with all the data ({captions.of_what(study)}), and the places that each can "
        f"hold, given which differences are clear of zero ({test}; over {len(order) * (len(order) - 1) // 2} pairs after "
        f"Holm). Wide bars: SD over {compare.folds(order)}; thin: 95 % interval over the {n_units} {unit}s tested (bootstrap)"
        f"{coverage_said(n_units, unit)}. {best['arm']} is first"
        f"{f'; {found}' if len(order) > 1 else ', and the only arm'}."
    )


def differences(study: Settings, predictions: pd.DataFrame) -> Exhibit:
    """Every pair of arms with all the data (`compare_models.differences`)."""
    table = compare_models.differences(predictions, study)
    n_clear = int((table["p_holm"] < 0.05).sum())
    caption = (
        f"First less second arm, AUROC with all the data, mean over folds ({captions.of_what(study)}). Interval and p: of the "
        "pair by itself; p_holm: corrected for all pairs; over: whether folds or draws of the tested cases tell how another "
        f"test would have come out. {n_clear} of {compare.counted(len(table), 'pair')} differ by p_holm below 0.05."
    )
    return Exhibit("05_differences", "Differences", caption, table, None, SECTION, table.round(3))


def reliability(study: Settings, table: pd.DataFrame, summary: pd.DataFrame) -> Exhibit:
    """How often a patch of each score is of class 1, a panel an arm; bars are intervals, below lies how many scores there are.

    table, summary: as `compare_calibration.reliability` and `compare_calibration.summary` return them.
    """
    arms = list(dict.fromkeys(table["arm"]))
    n_columns = min(N_ACROSS, len(arms))
    n_rows = -(-len(arms) // n_columns)
    scores = summary.set_index("arm")
    size_inch = (WIDTH_INCH, 2.25 * n_rows + 0.6)
    with drawing(study, n_rows, n_columns, size_inch, sharex=True, sharey=True) as (figure, axes):
        for axis, arm in zip(axes.flat, arms, strict=False):
            part = table[(table["arm"] == arm) & (table["n"] > 0)]
            style = look(study, arm, part["kind"].iloc[0]) | {"markersize": 4, "linewidth": 1, "capsize": 1.5}
            axis.plot([0, 1], [0, 1], color="0.55", linewidth=0.9, linestyle=":")
            bars = np.clip([part["share_positive"] - part["low"], part["high"] - part["share_positive"]], 0, None)
            axis.errorbar(part["mean_score"], part["share_positive"], bars, **style)
            grey = {"align": "edge", "color": "0.82", "edgecolor": "0.6", "linewidth": 0.4, "zorder": 0}
            axis.bar(part["bin_low"], 0.22 * part["n"] / part["n"].max(), part["bin_high"] - part["bin_low"], **grey)
            said = f"ECE {scores.loc[arm, 'ece']:.2f}, Brier {scores.loc[arm, 'brier']:.2f}"
            axis.set_title(f"{arm}\n({part['kind'].iloc[0]}, n = {part['n'].sum():,})\n{said}", fontsize=7.5)
            axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="mean score in the bin")
            axis.tick_params(labelbottom=True)
        for axis in axes.flat[len(arms) :]:
            axis.set_axis_off()
        for line in axes:
            line[0].set_ylabel("share of class 1 in the bin")
        bars = f"bars: 95 % intervals over {compare.unit(table)}"
        title(figure, f"{study.title.partition(':')[0]}: class 1 is {study.data.positive}s; {bars}")
    best, worst = summary.loc[summary["ece"].idxmin()], summary.loc[summary["ece"].idxmax()]
    caption = (
        f"Share of {study.data.positive}s among test patches by their score, {binary.N_BINS} bins of equal width, all the "
        f"data; on the dotted line a score is the share that it promises ({captions.of_what(study)}). Scores of all folds; "
        f"bars: 95 % intervals over {compare.unit(table)}{_coverage(table)}, none for too few of them; grey: how many scores a "
        f"bin has. The expected calibration error (ECE, mean of {compare.folds(summary)}) lies between {best['ece']:.2f} "
        f"({best['arm']}) and {worst['ece']:.2f} ({worst['arm']})."
    )
    return Exhibit("05_reliability", "Calibration", caption, table, figure, SECTION)


def _coverage(table: pd.DataFrame) -> str:
    """How often a table's intervals hold the truth, for the one over the fewest slides or cases; empty without any."""
    bounded = table[table["low"].notna()]
    return coverage_said(int(bounded["n_units"].min()), bounded["unit"].iloc[0]) if len(bounded) else ""


def strata(study: Settings, table: pd.DataFrame) -> Exhibit:
    """AUROC with all the data in each domain, of each scanner, and where the raters agreed or not; bars 95 % intervals.

    table: as `compare_strata.by_stratum` returns it; without a row the figure says that there is nothing to set apart. Of many
    arms, the best of each kind (`figures.few`).
    """
    name, heading = "05_strata", "Strata"
    if table.empty:
        why = "one stratum only: these data name one domain, no two scanners and no two votes"
        caption = f"Nothing to set apart: {why} ({captions.of_what(study)})."
        return Exhibit(name, heading, caption, table, nothing(study, why), SECTION)
    arms, n_arms = few(table, "auroc"), table["arm"].nunique()
    shown = {stratum: list(dict.fromkeys(part["value"])) for stratum, part in table.groupby("stratum", sort=False)}
    heights = [max(0.42, 0.1 * len(arms) + 0.12) * len(values) + 0.3 for values in shown.values()]
    size_inch = (WIDTH_INCH, sum(heights) + 1.9)
    with drawing(study, len(shown), 1, size_inch, sharex=True, height_ratios=heights) as (figure, axes):
        for axis, (stratum, values) in zip(axes[:, 0], shown.items(), strict=True):
            here = table[table["stratum"] == stratum]
            for index, arm in enumerate(arms):
                part = here[here["arm"] == arm].set_index("value").reindex(values)
                at = np.arange(len(part)) + 0.8 / len(arms) * (index - (len(arms) - 1) / 2)
                bars = np.clip([part["auroc"] - part["low"], part["high"] - part["auroc"]], 0, None)
                kind = str(part["kind"].dropna().iloc[0])
                style = look(study, arm, kind) | {"linestyle": "none", "markersize": 4.5, "elinewidth": 1.1, "capsize": 1.5}
                axis.errorbar(part["auroc"], at, xerr=bars, label=compare.shown_name(study, arm, kind), **style)
            counts = here.groupby("value", sort=False)[["n", "n_slides"]].max()
            counted = [f"n = {counts.loc[value, 'n']:,.0f}, {counts.loc[value, 'n_slides']:,.0f} slides" for value in values]
            names = [f"{two_lines(str(value))}\n{n}" for value, n in zip(values, counted, strict=True)]
            axis.set_yticks(range(len(values)), names, fontsize=7)
            axis.set_ylim(len(values) - 0.5, -0.5)
            axis.axvline(0.5, **CHANCE)
            axis.set_title(STRATA[stratum])
            axis.grid(axis="y", visible=False)
            for edge in range(1, len(values)):
                axis.axhline(edge - 0.5, color="0.85", linewidth=0.6)
        axes[-1, 0].set_xlabel(f"AUROC, 95 % interval over {compare.unit(table)}")
        legend_below(figure, axes[:, 0])
        title(figure, f"{study.title}, all the data" + ("" if len(arms) == n_arms else ", best arm of each kind"))
    drawn = "every arm" if len(arms) == n_arms else f"the best arm of each kind (of {n_arms})"
    caption = (
        f"AUROC of {drawn} with all the data on parts of the test patches ({captions.of_what(study)}). Points: means over "
        f"folds; bars: 95 % intervals over {compare.unit(table)} (bootstrap){_coverage(table)}. Strata differ in more than "
        "their name: tumour, scanner and laboratory go together in most data sets."
    )
    return Exhibit(name, heading, caption, table, figure, SECTION)


def raters_table(study: Settings, human: pd.DataFrame) -> Exhibit:
    """How far the raters agree with one another; ``human`` as `raters.table` returns it."""
    caption = f"No votes on these annotations are published ({captions.of_what(study)}): there is no human reference."
    if len(human):
        total, one = human[human["domain"] == compare.ALL].iloc[0], raters.reference(human, "balanced_accuracy")
        reached = f"one rater reaches a balanced accuracy of {captions.with_interval(one)} against another" if one else ""
        caption = (
            f"One rater against another, {captions.whose(study)} ({captions.of_what(study)}), and each against the consensus, "
            f"which flatters, as it counts the rater's own vote. In brackets: 95 % intervals (bootstrap of {total['n_units']} "
            f"{total['unit']}s); a rater is a position in the list of votes, not one person throughout. On {total['n']:,} "
            f"annotations, {100 * total['contested_share']:.1f} % of them contested, "
            f"{reached or 'a rater gave one class only, so that a balanced accuracy has no meaning'}."
        )
    readable = raters.wide(human) if len(human) else None
    return Exhibit("05_raters", "Raters", caption, human, None, "Raters", readable)


def by_agreement(study: Settings, table: pd.DataFrame) -> Exhibit:
    """Every metric apart by the raters' agreement; ``table`` as `compare_strata.by_agreement` returns it."""
    caption = f"Without votes unanimous and contested labels can't be told apart ({captions.of_what(study)})."
    if len(table):
        chosen = table[table["against"] == "consensus"].set_index(["annotations", "arm"])
        best = chosen.loc["all"]["balanced_accuracy"].idxmax()
        plain, contested = (
            compare.plus_minus(*chosen.loc[(stratum, best), ["balanced_accuracy", "balanced_accuracy_sd"]])
            for stratum in (raters.UNANIMOUS, raters.CONTESTED)
        )
        caption = (
            f"Every arm with all the data, apart by whether the raters of an annotation agreed ({captions.of_what(study)}, "
            f'{captions.whose(study)}). Mean ± sample SD over folds; "against one rater" takes each rater\'s votes for the '
            "truth in turn, as the human reference does, since the consensus on a contested label is itself in doubt. "
            f"{best} has a balanced accuracy of {plain} on unanimous labels and {contested} on contested ones."
        )
    readable = compare_strata.readable(table) if len(table) else None
    return Exhibit("05_by_agreement", "By agreement", caption, table, None, "Raters", readable)
