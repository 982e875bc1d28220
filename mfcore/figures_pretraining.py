"""Pretrainings beside one another: how each went, what its snapshots are worth on tasks, which value of one thing is best."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mfcore.compare_pretraining import Comparison, last
from mfcore.config import Study
from mfcore.figures import COLOURS, LEGEND_ROW_INCH, MARKERS, WIDTH_INCH, drawing, legend_below, title

AXES = {
    "balanced_accuracy": "balanced accuracy",
    "dice": "Dice",
    "odcorr_abs": "ODCorr (mean |r|)",
    "odcorr_sq": "ODCorr (mean r²)",
    "rankme": "RankMe",
}
LINES = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (9, 2)))
NOTED = {"loss": "loss", "target_entropy": "entropy of the mean target (nats)", "rankme": "RankMe of the teacher"}
MAX_PANELS = 4  # in a row


def histories(study: Study, history: pd.DataFrame) -> Figure:
    """Loss, entropy of the mean target and RankMe over steps, a line a pretraining; ``history`` as `histories` returns it."""
    names, shown = list(dict.fromkeys(history["name"])), [key for key in NOTED if key in history and history[key].notna().any()]
    height = 2.5 + LEGEND_ROW_INCH * (-(-len(names) // 3))
    with drawing(study, 1, max(1, len(shown)), (WIDTH_INCH, height)) as (figure, axes):
        for axis, key in zip(axes[0], shown, strict=False):
            for i, name in enumerate(names):
                part = history[(history["name"] == name) & history[key].notna()]
                axis.plot(part["step"], part[key], **_look(i) | {"marker": ""}, linewidth=1.2, label=name)
            axis.set(xlabel="step", ylabel=NOTED[key])
        legend_below(figure, list(axes[0]), 3)
        title(figure, f"{len(names)} pretraining{'s' * (len(names) != 1)}")
    return figure


def over_steps(study: Study, parts: Sequence[tuple[Comparison, pd.DataFrame]], controls: pd.DataFrame) -> Figure:
    """What snapshots score, a row of panels a comparison, a panel a task or measure, a line a pretraining.

    Comparisons of one panel each stand side by side. parts: each comparison with its rows of `compare_pretraining.over_steps`;
    bars: SD over the heads' runs. controls: as `compare_pretraining.controls` gives them, dotted. Without any part the figure
    says that there is none.
    """
    if not any(len(table) for _, table in parts):
        return nothing(study, "no snapshot of these pretrainings has a score")
    parts = [(comparison, table) for comparison, table in parts if len(table)]
    panels = [_panels(followed(table)) for _, table in parts]
    side_by_side = all(len(one) == 1 for one in panels) and len(parts) <= MAX_PANELS
    n_rows = 1 if side_by_side else len(parts)
    n_columns = len(parts) if side_by_side else min(MAX_PANELS, max(len(one) for one in panels))
    n_lines = max(len(comparison.names) for comparison, _ in parts)
    height = n_rows * (2.35 + LEGEND_ROW_INCH * n_lines) + 0.3
    with drawing(study, n_rows, n_columns, (WIDTH_INCH, height)) as (figure, axes):
        rows = axes.T if side_by_side else axes
        for row, (comparison, table), wanted in zip(rows, parts, panels, strict=True):
            for axis, (task, metric) in zip(row, wanted, strict=False):
                part = table[(table["task"] == task) & (table["metric"] == metric)]
                for i, (name, value) in enumerate(zip(comparison.names, comparison.values, strict=True)):
                    _line(axis, part[part["name"] == name].sort_values("step"), _look(i), f"{value} ({name})")
                for value in _untrained(controls, comparison, task, metric):
                    axis.axhline(value, color="0.45", linewidth=0.9, linestyle=":", label="untrained network")
                axis.set(xlabel="step", ylabel=AXES[metric])
                axis.set_xlim(left=0)
                axis.set_title(task, fontsize=7.5)
            for axis in row[len(wanted) :]:
                axis.set_axis_off()
            row[0].legend(loc="upper left", bbox_to_anchor=(0, -0.24), fontsize=6.5)
        title(figure, study.title.partition(":")[0])
        figure.draw_without_rendering()  # the legends change the panels' height, that their ticks, and these where labels stand
    return figure


def by_value(study: Study, parts: Sequence[tuple[Comparison, pd.DataFrame]], controls: pd.DataFrame) -> Figure:
    """The last score of each pretraining, a row of panels a comparison, a panel a task; parts, controls as for `over_steps`."""
    parts = [(comparison, last(table)) for comparison, table in parts if len(table)]
    if not parts:
        return nothing(study, "none of these pretrainings has a score")
    panels = [_panels(table)[:MAX_PANELS] for _, table in parts]
    heights = [0.32 * len(comparison.names) + 0.9 for comparison, _ in parts]
    size_inch = (WIDTH_INCH, sum(heights) + 0.3)
    with drawing(study, len(parts), max(map(len, panels)), size_inch, sharey="row", height_ratios=heights) as (figure, axes):
        for row, (comparison, table), wanted in zip(axes, parts, panels, strict=True):
            names = list(comparison.names)
            for axis, (task, metric) in zip(row, wanted, strict=False):
                part = table[(table["task"] == task) & (table["metric"] == metric)].set_index("name").reindex(names)
                for i, name in enumerate(names):
                    bar = np.nan_to_num(part["sd"][name])
                    axis.errorbar(part["mean"][name], i, xerr=bar, capsize=2, **_look(i) | {"linestyle": "none"})
                for value in _untrained(controls, comparison, task, metric):
                    axis.axvline(value, color="0.45", linewidth=0.9, linestyle=":")
                axis.set_xlabel(AXES[metric])
                axis.set_title(task, fontsize=7.5)
            for axis in row[len(wanted) :]:
                axis.set_axis_off()
            row[0].set_yticks(range(len(names)), comparison.values)
            row[0].set_ylim(len(names) - 0.5, -0.5)
        title(figure, study.title.partition(":")[0])
    return figure


def _untrained(controls: pd.DataFrame, comparison: Comparison, task: str, metric: str) -> pd.Series:
    """What the network of a comparison's base scores on a task as it was drawn."""
    here = (controls["of"] == comparison.base) & (controls["task"] == task) & (controls["metric"] == metric)
    return controls.loc[here, "mean"]


def nothing(study: Study, why: str) -> Figure:
    """A figure that says why it shows nothing."""
    with drawing(study, 1, 1, (WIDTH_INCH, 0.9)) as (figure, axes):
        axes[0, 0].set_axis_off()
        axes[0, 0].text(0, 0.5, why, va="center", transform=axes[0, 0].transAxes)
        title(figure, study.title)
    return figure


def followed(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of tasks that judged several steps of some pretraining; all rows where none did."""
    n_steps = table.groupby(["task", "metric", "name"])["step"].nunique().groupby(["task", "metric"]).max()
    several = set(n_steps.index[n_steps > 1])
    kept = [pair in several for pair in zip(table["task"], table["metric"], strict=True)]
    return table[kept] if several else table


def _panels(table: pd.DataFrame) -> list[tuple[str, str]]:
    """What has a panel of its own: every task and metric, in their order."""
    return list(dict.fromkeys(zip(table["task"], table["metric"], strict=True)))


def _look(i: int) -> dict[str, object]:
    """Colour, marker and dashes of the i-th line."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "linestyle": LINES[i % len(LINES)]}


def _line(axis: Axes, part: pd.DataFrame, style: dict[str, object], label: str) -> None:
    if len(part):
        bars = np.nan_to_num(part["sd"].to_numpy(dtype=float))
        axis.errorbar(part["step"], part["mean"], bars, capsize=1.5, markersize=3.5, linewidth=1.2, label=label, **style)
