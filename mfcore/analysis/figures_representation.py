"""Metrics of representations drawn: against what the probes reach (as Fig. 5 of kaiko 2024), and by sample size."""

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mfcore.analysis import compare
from mfcore.analysis.compare_representation import BY_CHANCE, TITLES
from mfcore.analysis.figures import LEGEND_ROW_INCH, WIDTH_INCH, drawing, legend_below, logarithmic, look, title, widely
from mfcore.study.config import Settings

SNAPSHOTS = "snapshots on the way"  # by one name: of a sweep's there are dozens


def against_probes(study: Settings, table: pd.DataFrame, related: pd.DataFrame) -> Figure:
    """AUROC of each encoder's probe (mean ± SD over folds) against RankMe and both ODCorr, a panel each (kaiko's Fig. 5).

    table, related: as `compare_representation.table` and `compare_representation.correlations` return them. Encoders without
    a probe aren't drawn.
    """
    known = table[table["auroc"].notna()]
    height = 2.6 + LEGEND_ROW_INCH * -(-len(known) // 2)
    with drawing(study, 1, len(TITLES), (WIDTH_INCH, height), sharey=True) as (figure, axes):
        _panels(study, axes[0], known.rename(columns={"auroc": "score", "auroc_sd": "score_sd"}), related)
        axes[0][0].set_ylabel("AUROC of the probe (mean ± SD)")
        legend_below(figure, axes[0])
        n = int(related["n"].max())
        title(figure, f"{study.title}; n = {compare.counted(n, 'encoder')}")
    return figure


def against_tasks(study: Settings, table: pd.DataFrame, related: pd.DataFrame) -> Figure:
    """What each encoder scores on a task (mean ± SD over runs) against RankMe and both ODCorr of the task's own images.

    A row of panels a task, one at least. table, related: as `compare_representation_tasks.table` and its ``correlations``
    return them.
    """
    tasks = list(dict.fromkeys(table["task"]))
    n_named = len({encoder.partition("@")[0] for encoder in table["encoder"]}) + table["encoder"].str.contains("@").any()
    height = 2.1 * len(tasks) + 0.4 + LEGEND_ROW_INCH * -(-n_named // 2)
    with drawing(study, len(tasks), len(TITLES), (WIDTH_INCH, height), sharey="row", sharex="col") as (figure, axes):
        for line, task in zip(axes, tasks, strict=True):
            part = table[table["task"] == task]
            _panels(study, line, part, related[related["task"] == task])
            line[0].set_ylabel(f"{task}:\n{part['metric_of_task'].iloc[0]} (mean ± SD)")
        legend_below(figure, axes.flat)
        n = int(related["n"].max())
        title(figure, f"{study.title}; n = {compare.counted(n, 'encoder')}")
    return figure


def _panels(study: Settings, line: Sequence[Axes], rows: pd.DataFrame, related: pd.DataFrame) -> None:
    """``score, score_sd`` of each encoder against each metric, a panel a metric; snapshots are small and share a name."""
    rho = related.set_index("metric")["rho"]
    for axis, (metric, name) in zip(line, TITLES.items(), strict=True):
        for row in rows.itertuples():
            style = look(study, row.encoder, compare.PROBE) | {"linestyle": "none", "capsize": 2.5, "elinewidth": 1}
            sd = 0 if math.isnan(row.score_sd) else row.score_sd
            if "@" in row.encoder:
                axis.plot(getattr(row, metric), row.score, ".", color="0.6", markersize=3, zorder=1, label=SNAPSHOTS)
                continue
            label = compare.shown_name(study, row.encoder, compare.PROBE)
            axis.errorbar(getattr(row, metric), row.score, sd, label=label, **style)
        axis.set_xlabel(name)
        if metric not in BY_CHANCE:  # RankMe, of encoders of different width
            widely(axis, "x", rows[metric])
        axis.margins(x=0.15)
        axis.set_title(f"ρ = {rho[metric]:+.2f}" if math.isfinite(rho[metric]) else "ρ: too few", fontweight="normal")


def by_sample_size(study: Settings, subsamples: pd.DataFrame) -> Figure:
    """RankMe and both ODCorr against the number of patches, a line an encoder: mean over draws, shaded least to most.

    Dotted: what so few patches give for dimensions that are independent, by chance. subsamples: as
    `compare_representation.by_sample_size` returns it.
    """
    encoders = list(dict.fromkeys(subsamples["encoder"]))
    height = 2.5 + LEGEND_ROW_INCH * -(-(len(encoders) + 1) // 2)
    with drawing(study, 1, len(TITLES), (WIDTH_INCH, height), sharex=True) as (figure, axes):
        sizes = sorted(subsamples["n"].unique())
        for axis, (metric, name) in zip(axes[0], TITLES.items(), strict=True):
            for encoder in encoders:
                draws = subsamples[subsamples["encoder"] == encoder].groupby("n")[metric].agg(["mean", "min", "max"])
                style = look(study, encoder, compare.PROBE)
                axis.plot(draws.index, draws["mean"], label=compare.shown_name(study, encoder, compare.PROBE), **style)
                axis.fill_between(draws.index, draws["min"], draws["max"], color=style["color"], alpha=0.2, linewidth=0)
            if metric in BY_CHANCE:
                chance = [BY_CHANCE[metric](n) for n in sizes]
                axis.plot(sizes, chance, color="0.35", linewidth=1, linestyle=":", label="independent dimensions, by chance")
            axis.set_title(name)
            _sizes(axis, sizes)
            if metric in BY_CHANCE:
                axis.set_ylim(bottom=0)
            else:
                logarithmic(axis, "y")
        legend_below(figure, axes[0])
        title(figure, f"{study.title}; mean and range of {subsamples['draw'].nunique()} draws")
    return figure


def _sizes(axis: Axes, sizes: list[int]) -> None:
    """A logarithmic axis of patches, named at every other size from the last one backwards."""
    axis.set_xscale("log")
    named = sizes[::-1][:: 2 if len(sizes) > 4 else 1]
    axis.set_xticks(named, [f"{n:,}" for n in named])
    axis.minorticks_off()
    axis.set_xlabel("patches, n")
