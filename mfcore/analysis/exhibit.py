"""An exhibit: what a notebook shows and the supplement prints of one subject.

The style of all figures and the words that captions share stand here too.
"""

import io
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.text import Text
from seaborn import FacetGrid

from mfcore import store
from mfcore.study import pretrained
from mfcore.study.config import Settings
from mfcore.study.predictions import END_TO_END, LORA, PROBE
from mfcore.study.study import Study

STYLE = "mfcore.analysis.mfcore"  # as matplotlib names a style that lies in a package
in_style = plt.style.context(STYLE)  # of a function that draws: a decorator
LIVE_SHARE = 0.05  # of the time, at most, that redrawing a live figure takes
WIDTH_INCH = 7.2  # of every figure, so that letters have one size on a page
MAX_LINES = 9  # in colour in one panel
LABEL_GAP = 0.09  # between the labels of two lines, share of a panel's height
PALE = {"color": "0.78", "marker": ".", "linestyle": "-"}  # lines beyond
MARKERS = "osD^vPX<>hp"
HOME_MARKERS = ("*", (4, 1, 0), (6, 1, 0), (3, 1, 0), (8, 1, 0))  # of encoders pretrained here
LINES = {END_TO_END: "-", PROBE: "--", LORA: ":"}
CHANCE = {"color": "0.55", "linewidth": 0.9, "linestyle": ":", "label": "chance"}
HOME_MADE = "pretrained here"


@dataclass(frozen=True)
class Exhibit:
    """A table, the figure that is drawn from it, if any, and a caption.

    name: of the files, as "05_data_scaling". caption: at most three sentences, in markdown: what is
    shown, which is the figure's alt text too; data, n and what the bars are; the finding. section:
    the supplement's heading that it belongs under. table: every number, as its CSV has it.
    readable: the table as a notebook shows it, below the figure where there is one; None:
    ``table``, rounded.
    """

    name: str
    title: str
    caption: str
    table: pd.DataFrame
    figure: Figure | None = None
    section: str = ""
    readable: pd.DataFrame | None = None

    @property
    def text(self) -> str:
        """Title and caption, in markdown."""
        return f"**{self.title}.** {true_minus(self.caption)}"

    @in_style
    def save(self, folder: str | Path) -> "Exhibit":
        """Write ``name``.csv, .json and, of a figure, .png and .pdf.

        The JSON has title, caption, section and, as text, ``readable``: null where that is None.

        Each file appears in ``folder`` whole or not at all. Returns the exhibit.
        """
        folder = Path(folder)
        store.write_csv(folder / f"{self.name}.csv", self.table)
        if self.figure is not None:
            undated = {
                "png": {"Software": None},
                "pdf": dict.fromkeys(("CreationDate", "Producer", "Creator")),
            }
            for form, metadata in undated.items():
                with store.replacing(folder / f"{self.name}.{form}") as aside:
                    self.figure.savefig(aside, format=form, metadata=metadata)
        shown = self.readable
        readable = (
            None
            if shown is None
            else shown.astype(object)
            .where(shown.notna(), "–")
            .map(lambda cell: true_minus(str(cell)))
            .to_dict("records")
        )
        content = {"title": self.title, "caption": true_minus(self.caption)}
        content |= {"section": self.section, "readable": readable}
        store.write_json(folder / f"{self.name}.json", content)
        return self

    @in_style
    def _ipython_display_(self) -> None:
        from IPython.display import display

        table = rounded(self.table) if self.readable is None else self.readable
        if self.figure is not None:
            display(_jpeg(self.figure) if _has_pictures(self.figure) else self.figure)
        if len(table) and (self.figure is None or self.readable is not None):
            display(show(table))
        display(show(self.text))


def _has_pictures(figure: Figure) -> bool:
    """Whether a figure shows tissue, which as PNG would make a notebook several MB."""
    return any(image.get_array().ndim == 3 for axis in figure.axes for image in axis.images)


def _jpeg(figure: Figure) -> object:
    from IPython.display import Image

    content = io.BytesIO()
    quality = {"quality": 85}
    figure.savefig(content, format="jpeg", bbox_inches="tight", dpi="figure", pil_kwargs=quality)
    return Image(content.getvalue(), format="jpeg")


def show(content: str | pd.DataFrame) -> object:
    """A caption, or a table in full, as a notebook shows it."""
    from IPython.display import HTML, Markdown

    if isinstance(content, str):
        return Markdown(content)
    with pd.option_context("display.max_colwidth", None):
        table = content.to_html(index=False, border=0, na_rep="–", justify="left")
    table = table.replace("<td>", '<td style="text-align: left">')  # Jupyter would set them right
    return HTML(true_minus(table))


# ---- figures ----


def image_rows(rows: Mapping[str, np.ndarray], n_across: int, side_inch: float = 1.1) -> Figure:
    """A row of images, uint8 (n, H, W, 3), for each name: the first ``n_across`` of them.

    side_inch: of an image, where the page is wide enough.
    """
    side_inch = min(side_inch, (WIDTH_INCH - 1.4) / n_across)
    size_inch = (WIDTH_INCH, side_inch * len(rows) + 0.6)
    figure, axes = plt.subplots(len(rows), n_across, squeeze=False, figsize=size_inch)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        line[0].text(-0.08, 0.5, name, transform=line[0].transAxes, ha="right", va="center", size=7)
        for axis in line:
            axis.set_axis_off()
        for axis, image in zip(line, images, strict=False):
            axis.imshow(image)
    return figure


def finished(study: Study, figure: Figure, text: str = "", n_columns: int = 2) -> Figure:
    """A figure with the study's title above all panels and one legend below them.

    A panel that has a legend keeps it. The title says what limits the data. Every figure
    without pictures gets the page's width. Numbers get true minus signs. Pyplot forgets the figure.
    """
    entries = {}
    for legend in list(figure.legends):
        names = [text.get_text() for text in legend.get_texts()]
        entries |= dict(zip(names, legend.legend_handles, strict=True))
        legend.remove()
    for axis in figure.axes:
        if axis.get_legend():  # a legend of its own
            continue
        handles, names = axis.get_legend_handles_labels()
        entries = dict(zip(names, handles, strict=True)) | entries
    entries = dict(sorted(entries.items(), key=lambda entry: entry[0] == CHANCE["label"]))
    n_lines = max(0, math.ceil(len(entries) / n_columns) - 2) + text.count("\n")
    figure.set_figheight(figure.get_figheight() + 0.17 * n_lines)  # so that panels keep theirs
    figure.set_layout_engine("constrained")
    if entries:
        figure.legend(entries.values(), entries, loc="outside lower center", ncols=n_columns)
    title = ", ".join(filter(None, [study.settings.title, study.settings.caveat]))
    figure.suptitle(f"{title}\n{text}".strip(), fontsize=9, x=0.01, ha="left", fontweight="bold")
    if not _has_pictures(figure):
        figure.set_figwidth(WIDTH_INCH)
    for words in figure.findobj(Text):
        words.set_text(true_minus(words.get_text()))
    plt.close(figure)
    return figure


def widely(axes: Axes, which: str, values: pd.Series) -> None:
    """Make an axis, "x" or "y", logarithmic where its values span more than a factor of ten."""
    if values.max() > 10 * values.min():
        axes.set(**{f"{which}scale": "log"})
        axis = getattr(axes, f"{which}axis")
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")


class Live:
    """Redraws ``draw(history)`` in one place whenever the history of a training has grown.

    Outside a notebook it does nothing, nor in a notebook that runs unattended (papermill).
    """

    def __init__(self, draw: Callable[[pd.DataFrame], Figure]):
        self.draw, self.is_live = draw, is_watched()
        self._display, self._not_before = None, -float("inf")

    def __call__(self, history: pd.DataFrame) -> None:
        """Show a history of any number of rows."""
        begun = time.monotonic()
        if not self.is_live or history.empty or begun < self._not_before:
            return
        from IPython import display

        figure = self.draw(history)
        if self._display is None:
            self._display = display.display(figure, display_id=True)
        else:
            self._display.update(figure)
        ended = time.monotonic()
        self._not_before = ended + (ended - begun) / LIVE_SHARE


def is_watched() -> bool:
    """Whether somebody may look on: in a kernel of a notebook server, VS Code or Colab."""
    import IPython

    shell = IPython.get_ipython()
    if not hasattr(shell, "kernel"):
        return False
    return (
        "JPY_SESSION_NAME" in os.environ
        or "__vsc_ipynb_file__" in shell.user_ns
        or "COLAB_RELEASE_TAG" in os.environ
    )


def look(settings: Settings, arm: str, kind: str) -> dict[str, object]:
    """Colour, marker and line of an arm, the same in every figure.

    An encoder that the study pretrained, or a snapshot of one, has a star. A further probe has its
    encoder's colour.
    """
    further = [m for m in settings.probe.also if arm.endswith(f" {m}")]
    if further:
        known = look(settings, arm.removesuffix(f" {further[0]}"), kind)
        shape = MARKERS[-1 - settings.probe.also.index(further[0])]
        return known | {"marker": shape, "linestyle": (0, (1, 2))}
    own, name = [one.name for one in settings.pretraining], arm.partition("@")[0]
    names = [*(network.name for network in settings.networks), *settings.encoders, *own]
    index = names.index(name) if name in names else len(names)
    marker = MARKERS[index % len(MARKERS)]
    if pretrained.is_of(settings, arm):  # a star is drawn larger, to look as large
        marker = MarkerStyle(HOME_MARKERS[own.index(name) % len(HOME_MARKERS)]).scaled(1.7)
    return {"color": f"C{index}", "marker": marker, "linestyle": LINES[kind]}


def looks_of(settings: Settings, arms: pd.DataFrame) -> pd.DataFrame:
    """`look` of a table's arms, a row each: PALE beyond the first MAX_LINES."""
    looks = [look(settings, row.arm, row.kind) for row in arms.itertuples()]
    return pd.DataFrame(looks[:MAX_LINES] + [PALE] * len(looks[MAX_LINES:]))


def colours(n: int) -> list[str]:
    """Colours of ``n`` lines of a panel: pale beyond the first MAX_LINES."""
    return [f"C{i}" if i < MAX_LINES else PALE["color"] for i in range(n)]


def share_name(grid: FacetGrid, names: Sequence[str], name: str) -> None:
    """Name all pale lines ``name`` in the legend that `finished` sets; names: of all lines."""
    pale = names[MAX_LINES:]
    for text in grid.legend.get_texts():
        if text.get_text() in pale:
            text.set_text(name)
    for axis in grid.axes.flat:
        for handle, known in zip(*axis.get_legend_handles_labels(), strict=True):
            if known in pale:
                handle.set_label(name)


def label_ends(axes: Axes) -> None:
    """Write each line's name beside its right end, names apart, in the place of the legend."""
    legend, ends = axes.get_legend(), []
    for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True):
        drawn = [one for one in axes.lines if one.get_color() == handle.get_color()]
        line = max(drawn, key=lambda one: len(one.get_xdata()))
        x, y = axes.transAxes.inverted().transform(
            axes.transData.transform((line.get_xdata()[-1], line.get_ydata()[-1]))
        )
        ends.append((y, x, text.get_text(), line.get_color()))
    place = -math.inf
    for y, x, name, color in sorted(ends):
        place = max(y, place + LABEL_GAP)
        stroke = {"arrowstyle": "-", "color": color, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 0}
        axes.annotate(
            name, (x, y), (1.04, place), "axes fraction", va="center", size=7, arrowprops=stroke
        )
    legend.remove()
    for line in axes.lines:
        line.set_label("_")  # else `finished` sets a legend of them


# ---- words ----


def true_minus(text: str) -> str:
    """A text whose negative numbers begin with a minus sign instead of a hyphen."""
    return re.sub(r"(?<![^\s(\[=|>])-(?=\d)", "\N{MINUS SIGN}", text)


def of_what(settings: Settings) -> str:
    """The data: study, what limits them, and how the study departs from its mode."""
    return settings.of_what


def named(table: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """A table with ``arm, kind`` for the eye, with the ``name`` that figures give each arm.

    The kind of an encoder that the study pretrained says so.
    """
    is_own = table["arm"].map(lambda arm: pretrained.is_of(settings, arm)).astype(bool)
    kind = table["kind"].where(~is_own, table["kind"] + f", {HOME_MADE}")
    return table.assign(kind=kind, name=table["arm"] + " (" + kind + ")")


def in_panels(grid: FacetGrid, x: str, y: str) -> None:
    """Name the panels of a grid by their value, "arm" above "(kind)", and the axes."""
    grid.set_axis_labels(x, y)
    places = [axis.get_subplotspec() for axis in grid.axes.flat]
    lowest = {place.colspan.start: place.rowspan.start for place in places}
    for name, axis in grid.axes_dict.items():
        axis.set_title(str(name).replace(" (", "\n("), fontsize=7.5)
        place = axis.get_subplotspec()
        is_lowest = place.rowspan.start == lowest[place.colspan.start]
        axis.set_xlabel(x if is_lowest else "")
        axis.xaxis.set_tick_params(labelbottom=is_lowest)
        if place.colspan.start and axis.get_shared_y_axes().joined(axis, grid.axes.flat[0]):
            axis.yaxis.set_tick_params(labelleft=False)


def unit(table: pd.DataFrame) -> str:
    """What intervals are over: cases where any row of the column ``unit`` says so, else slides."""
    return "cases" if (table["unit"] == "case").any() else "slides"


def counted(n: int, what: str, several: str = "") -> str:
    """ "1 fold", "1,200 folds"; ``several``: of a word whose plural isn't made with an s."""
    return f"{n:,} {what if n == 1 else several or f'{what}s'}"


def folds(table: pd.DataFrame | Mapping, what: str = "fold") -> str:
    """Over how many folds the means of a table (or row) with ``n_folds`` are: "3 to 5 folds"."""
    low, high = int(np.min(table["n_folds"])), int(np.max(table["n_folds"]))
    return f"{low} to " * (low < high) + counted(high, what)


def listed(names: Iterable[str]) -> str:
    """ "A, B and C"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def bounds(low: float, high: float, form: str = "+.3f", between: str = " to ") -> str:
    """The interval of a difference of two scores, as "+0.010 to +0.020".

    Empty where there is none, or where it reaches beyond what two scores from 0 to 1 can differ by.
    """
    return f"{low:{form}}{between}{high:{form}}" if -1 <= low <= high <= 1 else ""


def plus_minus(mean: float, sd: float) -> str:
    """ "0.84 ± 0.02"; without the second where there is no SD, a dash where there is no mean."""
    if not math.isfinite(mean):
        return "–"
    return f"{mean:z.2f}" + (f" ± {sd:.2f}" if math.isfinite(sd) else "")


def cells(table: pd.DataFrame, value: str) -> list[str]:
    """Columns ``value`` and its ``_sd`` as `plus_minus` writes them, a cell a row, in one line."""
    pairs = zip(table[value], table[f"{value}_sd"], strict=True)
    return [plus_minus(mean, sd).replace(" ", "\u00a0") for mean, sd in pairs]


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """A table for the eye: columns with their ``_sd`` as "mean ± SD", a dash for no value, numbers
    with three decimals or three digits that count, and none where a column's are all whole.
    """
    shown = table.astype(object).where(table.notna(), "–")
    for name in table.select_dtypes("float"):
        whole = ",.0f" if (table[name].dropna() % 1 == 0).all() else ""
        forms = [whole or (".3g" if 0 < abs(value) < 0.001 else ".3f") for value in table[name]]
        texts = [true_minus(f"{v:{form}}") for v, form in zip(table[name], forms, strict=True)]
        shown[name] = np.where(table[name].isna(), "–", texts)
    for name in [name for name in table if f"{name}_sd" in table]:
        shown[name] = cells(table, name)
    return shown.drop(columns=[f"{name}_sd" for name in table if f"{name}_sd" in table])
