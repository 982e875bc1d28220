"""Downstream tasks' figures: encoders on each task as dots, what they find of each class, and masks over patches (Fig. 3)."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mfcore.analysis import compare, compare_tasks
from mfcore.analysis.compare_masks import Shown
from mfcore.analysis.figures import LEGEND_ROW_INCH, WIDTH_INCH, drawing, look, nothing, title, two_lines
from mfcore.measures import masks
from mfcore.study.config import Settings
from mfcore.tasks import registry

N_ACROSS = 2  # tasks in a row
# Okabe and Ito's, which the colour-blind tell apart, the first four in grey too; the background is white, what is ignored grey
OF_CLASSES = ("#0072b2", "#e69f00", "#d55e00", "#f0e442", "#009e73", "#56b4e9", "#cc79a7")
IGNORED_GREY = "0.75"


def scores(study: Settings, table: pd.DataFrame) -> Figure:
    """What each task reports of each encoder, a panel a task: mean over runs, their SD, and the interval over what was tested.

    table: as `compare_tasks.table`; snapshots and other splits are left out. An open diamond is what is published.
    """
    table = compare_tasks.encoders_only(compare_tasks.reported(table))
    tasks = list(dict.fromkeys(table["task"]))
    if not tasks:
        return nothing(study, "no encoder has been judged by any task yet")
    order = table.groupby("encoder", sort=False)["mean"].mean().sort_values(ascending=False, kind="stable").index.tolist()
    n_columns = min(N_ACROSS, len(tasks))
    n_rows = -(-len(tasks) // n_columns)
    size_inch = (WIDTH_INCH, n_rows * (0.25 * len(order) + 0.75) + 0.35)
    with drawing(study, n_rows, n_columns, size_inch, sharey=True) as (figure, axes):
        for axis, task in zip(axes.flat, tasks, strict=False):
            part = table[table["task"] == task].set_index("encoder")
            for place, encoder in enumerate(order):
                if encoder in part.index:
                    _dot(axis, place, part.loc[encoder], look(study, encoder, compare.PROBE))
            first = part.iloc[0]
            axis.set_xlabel(compare_tasks.TITLES[first["metric"]])
            tested, runs = compare.counted(first["n_items"], "item"), compare.counted(part["n_runs"].max(), "run")
            axis.set_title(f"{task}\n{first['split']}: {tested}, {runs}", fontsize=7.5)
            axis.grid(axis="y", visible=False)
        for axis in axes.flat[len(tasks) :]:
            axis.set_axis_off()
        for line in axes:
            line[0].set_yticks(range(len(order)), order)
            line[0].set_ylim(len(order) - 0.4, -0.6)
        marks = [
            Line2D([], [], color="0.3", marker="o", linestyle="none", label="mean over runs"),
            Line2D([], [], color="0.3", linewidth=4.5, alpha=0.35, label="SD over runs"),
            Line2D([], [], color="0.3", linewidth=1.2, marker="|", label="95 % over what was tested"),
        ]
        if table["published"].notna().any():
            marks.append(Line2D([], [], color="0.3", marker="D", markerfacecolor="none", linestyle="none", label="published"))
        figure.legend(handles=marks, loc="outside lower center", ncols=len(marks))
        title(figure, study.title)
    return figure


def _dot(axis: Axes, place: int, row: pd.Series, style: dict) -> None:
    style = {**style, "linestyle": "none"}
    if np.isfinite(row["low"]):
        axis.plot([row["low"], row["high"]], [place] * 2, color=style["color"], linewidth=1.2, marker="|", markersize=6)
    axis.errorbar(row["mean"], place, xerr=np.nan_to_num(row["sd"]), linewidth=4.5, alpha=0.35, color=style["color"])
    axis.plot(row["mean"], place, markersize=6, **style)
    if np.isfinite(row["published"]):
        axis.plot(row["published"], place, marker="D", markersize=6, markerfacecolor="none", markeredgecolor="0.2")


def by_class(study: Settings, table: pd.DataFrame, task: str) -> Figure:
    """What each encoder finds of each class of a task, mean and SD over runs; ``table``: as `compare_tasks.by_class`.

    Of many encoders those that `compare_tasks.few` names.
    """
    if table.empty:
        return nothing(study, f"no encoder has been judged by {task} yet")
    classes, encoders = list(dict.fromkeys(table["class"])), compare_tasks.few(study, table)
    n_legend = -(-len(encoders) // 3)
    size_inch = (WIDTH_INCH, max(0.5, 0.09 * len(encoders) + 0.15) * len(classes) + 0.9 + LEGEND_ROW_INCH * n_legend)
    with drawing(study, 1, 1, size_inch) as (figure, axes):
        axis = axes[0][0]
        for index, encoder in enumerate(encoders):
            part = table[table["encoder"] == encoder].set_index("class").reindex(classes)
            at = np.arange(len(classes)) + 0.8 / len(encoders) * (index - (len(encoders) - 1) / 2)
            style = look(study, encoder, compare.PROBE) | {"linestyle": "none", "markersize": 4.5, "elinewidth": 1.1}
            axis.errorbar(part["mean"], at, xerr=np.nan_to_num(part["sd"]), capsize=1.5, label=encoder, **style)
        n = table.groupby("class", sort=False)["n"].max()
        axis.set_yticks(range(len(classes)), [f"{two_lines(name)}\nn = {n[name]:,}" for name in classes], fontsize=7)
        axis.set_ylim(len(classes) - 0.5, -0.5)
        for edge in np.arange(len(classes) - 1) + 0.5:
            axis.axhline(edge, color="0.85", linewidth=0.6)
        axis.grid(axis="y", visible=False)
        axis.set_xlabel(f"{'Dice' if registry.get(task).is_segmentation else 'share found'}, mean and SD over runs")
        figure.legend(loc="outside lower center", ncols=3)
        title(figure, f"{task}, by class")
    return figure


def segmentations(study: Settings, shown: Shown | None) -> Figure:
    """Tested patches in rows; in columns the patch, its true mask, and over the patch what each encoder's decoder made of it.

    A line over a predicted mask is the true one's edge; below it stands the patch's Dice, mean over its classes. ``shown``:
    as `compare_masks.shown`; None gives a figure that says so.
    """
    if shown is None:
        return nothing(study, "a task of classification has no masks")
    n, n_columns = len(shown.images), 2 + len(shown.predicted)
    dice = shown.table.groupby(["encoder", "item_id"], sort=False)["dice"].mean()
    items = list(dict.fromkeys(shown.table["item_id"]))
    side = min(1.45, WIDTH_INCH / n_columns)
    with drawing(study, n, n_columns, (side * n_columns, side * 1.06 * n + 0.75)) as (figure, axes):
        for row, line in enumerate(axes):
            for axis in line:
                axis.set(xticks=[], yticks=[])
                axis.grid(visible=False)
                axis.spines[:].set_visible(True)
                axis.spines[:].set(color="0.6", linewidth=0.5)
            line[0].imshow(shown.images[row], interpolation="nearest")
            _mask(line[1], shown.true[row], len(shown.classes))
            for axis, (encoder, predicted) in zip(line[2:], shown.predicted.items(), strict=True):
                axis.imshow(128 + shown.images[row].mean(axis=2) / 2, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                _mask(axis, np.ma.masked_equal(predicted[row], 0), len(shown.classes), alpha=0.75)
                inside = (shown.true[row] > 0) & (shown.true[row] != masks.IGNORED)
                if inside.any() and not inside.all():
                    axis.contour(inside, levels=[0.5], colors="black", linewidths=0.6)
                axis.set_xlabel(f"Dice {dice[encoder, items[row]]:.2f}", fontsize=6.5, labelpad=1.5)
        for axis, name in zip(axes[0], ["patch", "true mask", *shown.predicted], strict=True):
            axis.set_title(name, fontsize=7)
        marks = [
            Patch(facecolor=colour, edgecolor="0.3", linewidth=0.5, label=name)
            for name, colour in zip(shown.classes[1:], OF_CLASSES, strict=False)
        ]
        if (shown.true == masks.IGNORED).any():
            marks.append(Patch(facecolor=IGNORED_GREY, edgecolor="0.3", linewidth=0.5, label="not judged"))
        marks.append(Line2D([], [], color="black", linewidth=0.8, label="true edge"))
        figure.legend(handles=marks, loc="outside lower center", ncols=min(len(marks), 4), fontsize=7)
        title(figure, shown.task)
    return figure


def _mask(axis: Axes, mask: np.ndarray, n_classes: int, alpha: float = 1.0) -> None:
    colours = ["white", *(OF_CLASSES[i % len(OF_CLASSES)] for i in range(n_classes - 1)), IGNORED_GREY]
    at = np.ma.where(mask == masks.IGNORED, n_classes, mask)
    axis.imshow(at, cmap=ListedColormap(colours), vmin=-0.5, vmax=n_classes + 0.5, interpolation="nearest", alpha=alpha)
