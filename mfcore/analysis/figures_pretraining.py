"""Pretrainings beside one another: how each went, what its snapshots are worth on tasks, which value of one thing is best."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mfcore.analysis import compare
from mfcore.analysis.compare_pretraining import Comparison, apart, last
from mfcore.analysis.figures import COLOURS, LEGEND_ROW_INCH, MARKERS, WIDTH_INCH, drawing, legend_below, nothing, title, widely
from mfcore.study.config import Settings

AXES = {
    "balanced_accuracy": "balanced accuracy",
    "dice": "Dice",
    "odcorr_abs": "ODCorr (mean |r|)",
    "odcorr_sq": "ODCorr (mean r²)",
    "rankme": "RankMe",
}
LINES = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (9, 2)))
NOTED = {"loss": "loss", "target_entropy": "entropy of the mean target (nats)", "rankme": "RankMe of the teacher"}
NUDGE = 0.012  # of the last step, between lines, so that bars at one step stay apart
MAX_NUDGE = 0.4  # of the least distance of steps, over all lines, so that each stays at its own step
MAX_PANELS = 3  # in a row; four leave no room for a legend below one


def histories(study: Settings, history: pd.DataFrame) -> Figure:
    """Loss, entropy of the mean target and RankMe over steps, a line a pretraining; ``history`` as `histories` returns it."""
    names, shown = list(dict.fromkeys(history["name"])), [key for key in NOTED if key in history and history[key].notna().any()]
    height = 2.5 + LEGEND_ROW_INCH * (-(-len(names) // 3))
    with drawing(study, 1, max(1, len(shown)), (WIDTH_INCH, height)) as (figure, axes):
        for axis, key in zip(axes[0], shown, strict=False):
            for i, name in enumerate(names):
                part = history[(history["name"] == name) & history[key].notna()]
                axis.plot(part["step"], part[key], **_look(i) | {"marker": ""}, linewidth=1.2, label=name)
            axis.set(xlabel="step", ylabel=NOTED[key])
            if key == "rankme":  # of networks of different width
                widely(axis, "y", history[key])
        legend_below(figure, list(axes[0]), 3)
        title(figure, compare.counted(len(names), "pretraining"))
    return figure


def over_steps(study: Settings, parts: Sequence[tuple[Comparison, pd.DataFrame]], controls: pd.DataFrame) -> Figure:
    """What snapshots score, rows of panels a comparison, a panel a task or measure, a line a pretraining.

    Comparisons of one panel each stand side by side. parts: each comparison with its rows of `compare_pretraining.over_steps`;
    bars: SD over the heads' runs. controls: as `compare_pretraining.controls` gives them, dotted. Without any part the figure
    says that there is none.
    """
    if not any(len(table) for _, table in parts):
        return nothing(study, "no snapshot of these pretrainings has a score")
    rows = _in_rows(study, [(comparison, followed(table)) for comparison, table in parts if len(table)], may_join=True)
    n_below = [max((len(panel.comparison.names) for panel in row if panel.is_labelled), default=0) for row in rows]
    heights = [2.35 + LEGEND_ROW_INCH * n for n in n_below]
    size_inch = (WIDTH_INCH, sum(heights) + 0.3)
    with drawing(study, len(rows), max(map(len, rows)), size_inch, height_ratios=heights) as (figure, axes):
        for line, row in zip(axes, rows, strict=True):
            for axis, panel in zip(line, row, strict=False):
                comparison, part = panel.comparison, panel.table
                beside = _beside(part["step"], len(comparison.names))
                for i, (name, value) in enumerate(zip(comparison.names, comparison.values, strict=True)):
                    _line(axis, part[part["name"] == name].sort_values("step"), _look(i), f"{value} ({name})", beside[i])
                for value in _untrained(controls, panel):
                    axis.axhline(value, color="0.45", linewidth=0.9, linestyle=":", label="untrained network")
                axis.set(xlabel="step", ylabel=AXES[panel.metric])
                axis.set_xlim(left=0)
                axis.set_title(panel.title, fontsize=7.5)
                if panel.is_labelled:
                    axis.legend(loc="upper left", bbox_to_anchor=(0, -0.24), fontsize=6.5)
            for axis in line[len(row) :]:
                axis.set_axis_off()
        title(figure, study.title.partition(":")[0])
        figure.draw_without_rendering()  # the legends change the panels' height, that their ticks, and these where labels stand
    return figure


def by_value(study: Settings, parts: Sequence[tuple[Comparison, pd.DataFrame]], controls: pd.DataFrame) -> Figure:
    """The last score of each pretraining, rows of panels a comparison, a panel a task; parts, controls as for `over_steps`."""
    parts = [(comparison, last(table)) for comparison, table in parts if len(table)]
    if not parts:
        return nothing(study, "none of these pretrainings has a score")
    rows = _in_rows(study, parts)
    heights = [0.32 * len(row[0].comparison.names) + 0.9 for row in rows]
    size_inch = (WIDTH_INCH, sum(heights) + 0.3)
    with drawing(study, len(rows), max(map(len, rows)), size_inch, sharey="row", height_ratios=heights) as (figure, axes):
        for line, row in zip(axes, rows, strict=True):
            names = list(row[0].comparison.names)
            for axis, panel in zip(line, row, strict=False):
                part = panel.table.set_index("name").reindex(names)
                for i, name in enumerate(names):
                    bar = np.nan_to_num(part["sd"][name])
                    axis.errorbar(part["mean"][name], i, xerr=bar, capsize=2, **_look(i) | {"linestyle": "none"})
                for value in _untrained(controls, panel):
                    axis.axvline(value, color="0.45", linewidth=0.9, linestyle=":")
                axis.set_xlabel(AXES[panel.metric])
                axis.set_title(panel.title, fontsize=7.5)
            for axis in line[len(row) :]:
                axis.set_axis_off()
            line[0].set_yticks(range(len(names)), row[0].comparison.values)
            line[0].set_ylim(len(names) - 0.5, -0.5)
        title(figure, study.title.partition(":")[0])
    return figure


@dataclass(frozen=True)
class Panel:
    """A comparison on one task by one metric, with its rows of scores; ``is_labelled``: whether the legend stands below it.

    apart: as `compare_pretraining.apart` has it.
    """

    comparison: Comparison
    task: str
    metric: str
    table: pd.DataFrame
    is_labelled: bool
    apart: str

    @property
    def title(self) -> str:
        """The task, and what of the network or the settings tells this comparison from others of the same thing."""
        return f"{self.task}\n{self.apart}" if self.apart else self.task


def _in_rows(study: Settings, parts: Sequence[tuple[Comparison, pd.DataFrame]], may_join: bool = False) -> list[list[Panel]]:
    """Each comparison's panels, up to MAX_PANELS a row; where each has one and ``may_join``, all in rows together."""
    rows: list[list[Panel]] = []
    told = apart(study, [comparison for comparison, _ in parts])
    for (comparison, table), words in zip(parts, told, strict=True):
        groups = list(table.groupby(["task", "metric"], sort=False))
        n_before = (len(groups) - 1) // MAX_PANELS * MAX_PANELS  # of its last row, below which its legend stands
        panels = [Panel(comparison, *key, part, i == n_before, words) for i, (key, part) in enumerate(groups)]
        rows += [panels[i : i + MAX_PANELS] for i in range(0, len(panels), MAX_PANELS)]
    if may_join and all(len(row) == 1 for row in rows):
        panels = [row[0] for row in rows]
        rows = [panels[i : i + MAX_PANELS] for i in range(0, len(panels), MAX_PANELS)]
    return rows


def _untrained(controls: pd.DataFrame, panel: Panel) -> pd.Series:
    """What the network of a comparison's base scores on a task as it was drawn."""
    here = (controls["of"] == panel.comparison.base) & (controls["task"] == panel.task) & (controls["metric"] == panel.metric)
    return controls.loc[here, "mean"]


def followed(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of tasks that judged several steps of some pretraining; all rows where none did."""
    n_steps = table.groupby(["task", "metric", "name"])["step"].nunique().groupby(["task", "metric"]).max()
    several = set(n_steps.index[n_steps > 1])
    kept = [pair in several for pair in zip(table["task"], table["metric"], strict=True)]
    return table[kept] if several else table


def _look(i: int) -> dict[str, object]:
    """Colour, marker and dashes of the i-th line; those of one colour have other dashes."""
    dashes = LINES[(i + i // len(COLOURS)) % len(LINES)]
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "linestyle": dashes}


def _beside(steps: pd.Series, n_lines: int) -> np.ndarray:
    """How far each line is set aside, in steps, float64 (n_lines,): NUDGE from the next, and all at their own step."""
    distance = min(NUDGE * steps.max(), MAX_NUDGE * np.diff(np.unique([0, *steps])).min() / n_lines)
    return distance * (np.arange(n_lines) - (n_lines - 1) / 2)


def _line(axis: Axes, part: pd.DataFrame, style: dict[str, object], label: str, aside: float) -> None:
    """A line a pretraining, ``aside`` steps beside where it was judged; none without scores."""
    if len(part):
        bars = np.nan_to_num(part["sd"].to_numpy(dtype=float))
        axis.errorbar(
            part["step"] + aside, part["mean"], bars, capsize=1.5, markersize=3.5, linewidth=1.2, label=label, **style
        )
