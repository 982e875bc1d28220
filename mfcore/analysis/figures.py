"""The figures of patches, embeddings and trainings, and what figures that are drawn axis by axis share.

One style: units on the axes, n, what the bars are, readable in grey and by the colour-blind. A function returns a figure;
`save` writes it as PNG and PDF with the CSV behind it. Where the data are synthetic the figure says so.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from mfcore.analysis.exhibit import (
    COLOURS as COLOURS,
    MARKERS as MARKERS,
    STYLE as STYLE,
    WIDTH_INCH as WIDTH_INCH,
    look as look,
    save_figure as save,
)
from mfcore.data import splits
from mfcore.streams import generator
from mfcore.study.config import Settings

N_ACROSS = 6  # patches of a class in a contact sheet's row
LEGEND_ROW_INCH = 0.175
MAX_TITLE = 28  # characters in a line above a small panel
SHOWN_PX = 96  # of each patch there: the cell and its neighbours


@contextlib.contextmanager
def drawing(study: Settings, n_rows: int, n_columns: int, size_inch: tuple[float, float], **options: object) -> Iterator[tuple]:
    """Yield figure and axes (n_rows, n_columns) in the house style; the figure doesn't stay in pyplot's memory."""
    import matplotlib.pyplot as plt

    with plt.style.context(STYLE):
        figure, axes = plt.subplots(n_rows, n_columns, figsize=size_inch, layout="constrained", squeeze=False, **options)
        plt.close(figure)
        if study.synthetic:
            title(figure, " ")  # keeps a line free for the word
            figure.text(
                0.995, 1 - 0.04 / size_inch[1], "synthetic data", ha="right", va="top", fontsize=8, style="italic", color="0.35"
            )
        yield figure, axes


def saved(figure: Figure, table: pd.DataFrame, folder: str | Path, name: str) -> Figure:
    """`save` the figure, and return it for the notebook's cell to show."""
    save(figure, table, folder, name)
    return figure


def title(figure: Figure, text: str) -> None:
    """A figure's own line at its top left."""
    figure.suptitle(text, fontsize=9, x=0.01, ha="left", fontweight="bold")


def nothing(study: Settings, why: str) -> Figure:
    """A figure that says why it shows nothing."""
    with drawing(study, 1, 1, (WIDTH_INCH, 0.9)) as (figure, axes):
        axes[0, 0].set_axis_off()
        axes[0, 0].text(0, 0.5, why, va="center", transform=axes[0, 0].transAxes)
        title(figure, study.title)
    return figure


def legend_below(figure: Figure, axes: Sequence[Axes], n_columns: int = 2) -> None:
    """The panels' legend under the figure, where it covers no data: arms first, then lines, each name once."""
    found = [pair for axis in axes for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    found.sort(key=lambda pair: not (isinstance(pair[0], ErrorbarContainer) or _is_marked(pair[0])))
    unique: dict[str, object] = {}
    for handle, name in found:
        unique.setdefault(name, handle)
    if unique:
        figure.legend(list(unique.values()), list(unique), loc="outside lower center", ncols=n_columns)


def _is_marked(handle: object) -> bool:
    """Whether a legend's handle is a line with a marker, as seaborn draws an arm."""
    return isinstance(handle, Line2D) and handle.get_marker() not in ("", "None")


def widely(axes: Axes, which: str, values: pd.Series) -> None:
    """Make an axis, "x" or "y", logarithmic where its positive values span more than a factor of ten."""
    if values.max() > 10 * values.min():
        logarithmic(axes, which)


def logarithmic(axes: Axes, which: str) -> None:
    """Make an axis, "x" or "y", logarithmic, with plain numbers at its powers of ten."""
    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def two_lines(name: str) -> str:
    """A long name broken in the middle, for an axis."""
    words = name.split()
    return name if len(words) < 3 else " ".join(words[: len(words) // 2]) + "\n" + " ".join(words[len(words) // 2 :])


def contact_sheet(study: Settings, patches: np.ndarray, labels: pd.DataFrame) -> Figure:
    """Random patches: a row for each class of each domain, N_ACROSS of them, their centre SHOWN_PX wide, with a scale bar.

    patches: uint8 (n_patches, H, W, 3), row for row with ``labels``.
    """
    rows = [(domain, label) for domain in sorted(labels["domain"].unique()) for label in (1, 0)]
    shown_px = min(SHOWN_PX, patches.shape[1])
    start = (patches.shape[1] - shown_px) // 2
    with drawing(study, len(rows), N_ACROSS, (0.84 * N_ACROSS + 1.7, 0.84 * len(rows) + 0.3)) as (figure, axes):
        for line, (domain, label) in zip(axes, rows, strict=True):
            here = labels.index[(labels["domain"] == domain) & (labels["label"] == label)].to_numpy()
            drawn = generator(study.splits.seed, "contact sheet", domain, label).permutation(here)[:N_ACROSS]
            for axis in line:
                axis.set_axis_off()
            for axis, row in zip(line, drawn, strict=False):
                axis.imshow(patches[row, start : start + shown_px, start : start + shown_px], interpolation="lanczos")
            name = study.data.positive if label else study.data.negative
            line[0].text(-0.08, 0.5, f"{domain}\n{name}", transform=line[0].transAxes, ha="right", va="center", fontsize=7)
        _scale_bar(axes[-1][-1], study, labels, shown_px)
    return figure


def _scale_bar(axis: Axes, study: Settings, labels: pd.DataFrame, shown_px: int) -> None:
    """A bar of 10 um in a patch's corner, where the resolution is known and one for all."""
    um_per_px = study.patches.um_per_px if study.switches.resolution == "target" else labels["um_per_px"].median()
    if um_per_px is None or not np.isfinite(um_per_px):
        return
    scale_bar(axis, 10 / um_per_px, shown_px, "10 µm")


def scale_bar(axis: Axes, length_px: float, side_px: int, text: str) -> None:
    """A bar in a patch's lower right corner with its length above it, edged in white so that it is read on dark tissue."""
    edges = [[withStroke(linewidth=width, foreground="white")] for width in (4.0, 1.6)]
    stop, height = 0.94 * side_px, 0.92 * side_px
    bar = {"color": "black", "linewidth": 2.5, "solid_capstyle": "butt", "path_effects": edges[0]}
    axis.plot([stop - length_px, stop], [height] * 2, **bar)
    axis.text(stop, height - 0.04 * side_px, text, ha="right", va="bottom", fontsize=6, path_effects=edges[1])


def embedding_table(features: np.ndarray, labels: pd.DataFrame) -> pd.DataFrame:
    """First two principal components of features (n, n_dims): ``patch_id, domain, label, pc1, pc2``, and their shares."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    variance, directions = np.linalg.eigh(centred.T @ centred / (len(centred) - 1))  # ascending
    directions = directions[:, [-1, -2]]  # (n_dims, 2)
    directions *= np.sign(directions[np.abs(directions).argmax(axis=0), [0, 1]])  # of the two signs, one for every machine
    components, share = centred @ directions, variance[::-1] / variance.sum()
    table = labels[["patch_id", "domain", "label"]].reset_index(drop=True)
    return table.assign(pc1=components[:, 0], pc2=components[:, 1], share1=share[0], share2=share[1])


def embedding(study: Settings, table: pd.DataFrame, encoder: str) -> Figure:
    """First two principal components of one encoder's embeddings, by domain and by class (``embedding_table``)."""
    with drawing(study, 1, 2, (WIDTH_INCH, 3.5), sharex=True, sharey=True) as (figure, axes):
        names = {1: study.data.positive, 0: study.data.negative}
        groups = [("domain", sorted(table["domain"].unique()), str), ("label", [0, 1], names.__getitem__)]
        for axis, (column, values, name) in zip(axes[0], groups, strict=True):
            for value, marker in zip(values, MARKERS * 4, strict=False):
                part = table[table[column] == value]
                axis.scatter(part["pc1"], part["pc2"], s=6, marker=marker, alpha=0.55, linewidths=0, label=name(value))
            axis.set_xlabel(f"principal component 1 ({100 * table['share1'].iloc[0]:.0f} % of variance)")
            axis.legend(markerscale=2.2, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
            axis.set_title(f"by {'class' if column == 'label' else column}")
        axes[0][0].set_ylabel(f"principal component 2 ({100 * table['share2'].iloc[0]:.0f} %)")
        title(figure, f"{encoder}, n = {len(table):,} patches")
    return figure


def history(study: Settings, table: pd.DataFrame, network: str) -> Figure:
    """Training and validation loss by epoch, a panel a unit; a ring marks the epoch that is tested.

    table: as `mfcore.training.train.load_history` returns it.
    """
    units = list(dict.fromkeys(table["unit"]))
    n_columns = min(4, len(units))
    n_rows = -(-len(units) // n_columns)
    with drawing(study, n_rows, n_columns, (1.95 * n_columns + 0.4, 1.75 * n_rows + 0.5), sharex=True, sharey=True) as (
        figure,
        axes,
    ):
        for axis, unit in zip(axes.flat, units, strict=False):
            part = table[table["unit"] == unit]
            axis.plot(part["epoch"], part["train_loss"], linestyle=(0, (5, 1.6)), label="training")
            axis.plot(part["epoch"], part["val_loss"], label="validation")
            tested = part.iloc[-1] if study.switches.epoch == "last" else part.loc[part["val_loss"].idxmin()]
            axis.plot(
                tested["epoch"], tested["val_loss"], "o", markersize=9, markerfacecolor="none", color="black", label="tested"
            )
            axis.set_title(_unit_title(unit), fontsize=7)
        for axis in axes.flat[len(units) :]:
            axis.set_axis_off()
        for axis in axes.flat[max(0, len(units) - n_columns) : len(units)]:
            axis.set_xlabel("epoch")
        for line in axes:
            line[0].set_ylabel("cross-entropy")
        figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        title(figure, network)
    return figure


def _unit_title(unit: str) -> str:
    """What a unit such as "all-fold0-size0.1" learnt from: the domain, in two lines where it is long, fold and size."""
    domain, _, rest = unit.rpartition("-fold")
    domain = domain.translate(splits.BLANKS)
    fold, _, size = rest.partition("-size")
    return f"{two_lines(domain) if len(domain) > MAX_TITLE else domain}\nfold {fold}, {splits.percent(float(size))} %"
