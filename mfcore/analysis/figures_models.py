"""Arms beside one another with all the data: their order with its ties, their calibration, and where they do well."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mfcore.analysis import compare
from mfcore.analysis.figures import LEGEND_ROW_INCH, WIDTH_INCH, drawing, few, legend_below, look, nothing, title, two_lines
from mfcore.analysis.figures_scaling import CHANCE
from mfcore.measures import binary
from mfcore.study.config import Study

N_CALIBRATIONS = 3  # panels in a row
STRATA = {"domain": "by domain", "scanner": "by scanner", "agreement": "by the raters' agreement"}


def ties(order: pd.DataFrame) -> list[tuple[int, ...]]:
    """The largest groups of arms of which no two can be told apart, as rows of ``order``; arms that tie with none have none.

    order: as `compare_models.ranking` returns it; ``tied_with`` names the arms that each isn't told apart from.
    """
    names = list(order["arm"])
    tied = {i: {names.index(arm) for arm in others.split(", ") if arm} for i, others in enumerate(order["tied_with"])}
    found: list[tuple[int, ...]] = []

    def grow(group: set[int], may: set[int], seen: set[int]) -> None:
        if not may and not seen and len(group) > 1:
            found.append(tuple(sorted(group)))
        for i in sorted(may):
            grow(group | {i}, may & tied[i], seen & tied[i])
            may, seen = may - {i}, seen | {i}

    grow(set(), set(tied), set())
    return sorted(found)


def ranking(study: Study, order: pd.DataFrame, intervals: pd.DataFrame, metric: str = "auroc") -> Figure:
    """Arms from best to worst, each with its interval over slides or cases; brackets join arms that the folds can't tell apart.

    order, intervals: as `compare_models.ranking` and `compare_models.intervals` return them.
    """
    groups = ties(order)
    full = intervals[(intervals["metric"] == metric) & (intervals["size"] == intervals["size"].max())].set_index("arm")
    with drawing(
        study, 1, 2, (WIDTH_INCH, 0.27 * len(order) + 1.15), sharey=True, width_ratios=(12, 0.6 + 0.45 * len(groups))
    ) as (
        figure,
        axes,
    ):
        axis, brackets = axes[0]
        for place, row in enumerate(order.itertuples()):
            style = {**look(study, row.arm, row.kind), "linestyle": "none"}
            if row.arm in full.index:
                line = full.loc[row.arm]
                axis.plot(
                    [line["low"], line["high"]], [place] * 2, color=style["color"], linewidth=1.4, marker="|", markersize=7
                )
            axis.errorbar(row.mean, place, xerr=np.nan_to_num(row.sd), linewidth=4.5, alpha=0.35, color=style["color"])
            axis.plot(row.mean, place, markersize=6, **style)
        if shows_chance(order):
            axis.axvline(0.5, **CHANCE)
        places = [
            f"{low:g}" if low == high else f"{low:g}–{high:g}"
            for low, high in zip(order["rank_low"], order["rank_high"], strict=True)
        ]
        widest = max(len(place) for place in places)
        places = [place.rjust(widest, "\u2007") for place in places]  # spaces as wide as a digit
        names = [
            f"{compare.shown_name(study, row.arm, row.kind)}   {place}"
            for place, row in zip(places, order.itertuples(), strict=True)
        ]
        axis.set_yticks(range(len(order)), names)
        axis.set_ylim(len(order) - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
        n_units = f", {int(full['n'].max())} {compare.unit(full)}" if len(full) else ""
        axis.set_xlabel(f"{binary.TITLES[metric]}: mean, SD over {compare.folds(order)} (wide), 95 % interval (thin{n_units})")
        _brackets(brackets, groups)
        title(figure, f"{study.title}; after each name the places it can hold")
    return figure


def shows_chance(order: pd.DataFrame) -> bool:
    """Whether arms come so near to 0.5 that the ranking has a line there."""
    return bool((order["mean"] - order["sd"].fillna(0)).min() < 0.55)


def _brackets(axis: Axes, groups: list[tuple[int, ...]]) -> None:
    """A line a group of tied arms, with a dot at each of its arms."""
    axis.set_axis_off()
    for x, group in enumerate(groups):
        axis.plot([x, x], [group[0], group[-1]], color="0.25", linewidth=1.2)
        axis.plot([x] * len(group), group, "o", color="0.25", markersize=3.5)
    axis.set_xlim(-0.6, max(1, len(groups)) - 0.4)
    axis.text(0.5, 1.0, "not told\napart", ha="center", va="bottom", fontsize=7, transform=axis.transAxes) if groups else None


def reliability(study: Study, table: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """How often a patch of each score is of class 1, a panel an arm; bars are intervals, below lies how many scores there are.

    table, summary: as `compare_calibration.reliability` and `compare_calibration.summary` return them.
    """
    arms = list(dict.fromkeys(table["arm"]))
    n_columns = 2 if len(arms) in (2, 4) else min(N_CALIBRATIONS, len(arms))
    n_rows = -(-len(arms) // n_columns)
    size_inch = (WIDTH_INCH, 2.25 * n_rows + 0.6)
    said = summary.set_index("arm")
    with drawing(study, n_rows, n_columns, size_inch, sharex=True, sharey=True) as (figure, axes):
        for axis, arm in zip(axes.flat, arms, strict=False):
            part = table[(table["arm"] == arm) & (table["n"] > 0)]
            style = look(study, arm, part["kind"].iloc[0])
            axis.plot([0, 1], [0, 1], color="0.55", linewidth=0.9, linestyle=":")
            below, above = part["share_positive"] - part["low"], part["high"] - part["share_positive"]
            bars = np.clip([below, above], 0, None)
            axis.errorbar(
                part["mean_score"], part["share_positive"], bars, capsize=1.5, **style | {"markersize": 4, "linewidth": 1}
            )
            width = part["bin_high"] - part["bin_low"]
            axis.bar(
                part["bin_low"],
                0.22 * part["n"] / part["n"].max(),
                width,
                align="edge",
                color="0.82",
                edgecolor="0.6",
                linewidth=0.4,
                zorder=0,
            )
            found = said.loc[arm]
            axis.set_title(
                f"{arm}\n({part['kind'].iloc[0]}, n = {part['n'].sum():,})\nECE {found['ece']:.2f}, Brier {found['brier']:.2f}",
                fontsize=7.5,
            )
            axis.set(xlim=(0, 1), ylim=(0, 1))
        for axis in axes.flat[len(arms) :]:
            axis.set_axis_off()
        for axis in axes.flat[max(0, len(arms) - n_columns) : len(arms)]:
            axis.set_xlabel("mean score in the bin")
            axis.tick_params(labelbottom=True)
        for line in axes:
            line[0].set_ylabel("share of class 1 in the bin")
        bars = f"bars: 95 % intervals over {compare.unit(table)}"
        title(figure, f"{study.title.partition(':')[0]}: class 1 is {study.data.positive}s; {bars}")
    return figure


def strata(study: Study, table: pd.DataFrame) -> Figure:
    """AUROC with all the data in each domain, of each scanner, and where the raters agreed or not; bars 95 % intervals.

    table: as `compare_strata.by_stratum` returns it; without a row the figure says that there is nothing to set apart. Of many
    arms, the best of each kind (`figures.few`).
    """
    if table.empty:
        return nothing(study, "one stratum only: these data name one domain, no two scanners and no two votes")
    shown = [name for name in STRATA if (table["stratum"] == name).any()]
    arms = few(table, "auroc")
    values = {name: list(dict.fromkeys(table.loc[table["stratum"] == name, "value"])) for name in shown}
    row = max(0.42, 0.1 * len(arms) + 0.12)
    heights = [row * len(values[name]) + 0.3 for name in shown]
    size_inch = (WIDTH_INCH, sum(heights) + 0.7 + LEGEND_ROW_INCH * (-(-len(arms) // 2) + 1))
    with drawing(study, len(shown), 1, size_inch, sharex=True, height_ratios=heights) as (figure, axes):
        for axis, name in zip(axes[:, 0], shown, strict=True):
            for index, arm in enumerate(arms):
                part = table[(table["arm"] == arm) & (table["stratum"] == name)].set_index("value").reindex(values[name])
                at = np.arange(len(part)) + 0.8 / len(arms) * (index - (len(arms) - 1) / 2)
                bars = np.clip([part["auroc"] - part["low"], part["high"] - part["auroc"]], 0, None)
                kind = str(part["kind"].dropna().iloc[0])
                style = look(study, arm, kind) | {"linestyle": "none", "markersize": 4.5, "elinewidth": 1.1}
                axis.errorbar(part["auroc"], at, xerr=bars, capsize=1.5, label=compare.shown_name(study, arm, kind), **style)
            counts = table[table["stratum"] == name].groupby("value", sort=False)[["n", "n_positive", "n_slides"]].max()
            said = [
                f"{two_lines(str(value))}\nn = {counts.loc[value, 'n']:,.0f}, {counts.loc[value, 'n_slides']:,.0f} slides"
                for value in values[name]
            ]
            axis.set_yticks(range(len(said)), said, fontsize=7)
            axis.set_ylim(len(said) - 0.5, -0.5)
            axis.axvline(0.5, **CHANCE)
            axis.set_title(STRATA[name])
            axis.grid(axis="y", visible=False)
            for edge in np.arange(len(said) - 1) + 0.5:
                axis.axhline(edge, color="0.85", linewidth=0.6)
        axes[-1, 0].set_xlabel(f"AUROC, 95 % interval over {compare.unit(table)}")
        legend_below(figure, axes[:, 0])
        title(
            figure, f"{study.title}, all the data" + ("" if len(arms) == table["arm"].nunique() else ", best arm of each kind")
        )
    return figure
