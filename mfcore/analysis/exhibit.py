"""An exhibit: what a notebook shows and the supplement prints of one subject, a table or a figure with its caption."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mfcore import store
from mfcore.analysis import captions, figures
from mfcore.analysis.captions import of_what as of_what
from mfcore.analysis.compare import HOME_MADE as HOME_MADE
from mfcore.analysis.figures import (
    CHANCE,
    COLOURS as COLOURS,
    MARKERS as MARKERS,
    WIDTH_INCH as WIDTH_INCH,
    look as look,
)
from mfcore.study.study import Study

STYLE = "mfcore.analysis.mfcore"  # as matplotlib names a style that lies in a package
in_style = plt.style.context(STYLE)  # of a function that draws: a decorator
LIVE_SHARE = 0.05  # of the time, at most, that redrawing a live figure takes


@dataclass(frozen=True)
class Exhibit:
    """A table, the figure that is drawn from it, if any, and a caption.

    name: of the files, as "05_data_scaling". caption: at most three sentences, in markdown: what is shown; data, n and what the
    bars are; the finding. section: the supplement's heading that it belongs under. table: every number, as its CSV has it.
    readable: the table as a notebook shows it, below the figure where there is one; None: ``table``, rounded.
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
        return f"**{self.title}.** {self.caption}"

    def save(self, folder: str | Path) -> "Exhibit":
        """Write ``name``.csv, .json and, of a figure, .png and .pdf into ``folder``; returns itself.

        The JSON has title, caption, section and, as text, ``readable``: null where that is None.

        Each file appears whole or not at all.
        """
        folder = Path(folder)
        if self.figure is None:
            store.write_csv(folder / f"{self.name}.csv", self.table)
        else:
            figures.save(self.figure, self.table, folder, self.name)
        shown = self.readable
        readable = None if shown is None else shown.astype(object).where(shown.notna(), "–").map(str).to_dict("records")
        content = {"title": self.title, "caption": self.caption, "section": self.section, "readable": readable}
        store.write_json(folder / f"{self.name}.json", content)
        return self

    def _ipython_display_(self) -> None:
        from IPython.display import display

        table = self.table.round(3) if self.readable is None else self.readable
        if self.figure is not None:
            display(self.figure)
        if len(table) and (self.figure is None or self.readable is not None):
            display(captions.show(table))
        display(captions.show(self.text))


def load(folder: str | Path, name: str) -> dict:
    """``title, caption, section, readable`` of a saved exhibit; raises StoreError where there is none."""
    return store.read_json(Path(folder) / f"{name}.json")


def finished(study: Study, figure: Figure, text: str = "", n_columns: int = 2) -> Figure:
    """A figure with the study's title above all panels and one legend below them.

    The title says where the data are synthetic. Pyplot forgets the figure.
    """
    entries = {}
    for legend in list(figure.legends):
        names = [text.get_text() for text in legend.get_texts()]
        entries |= dict(zip(names, legend.legend_handles, strict=True))
        legend.remove()
    for axis in figure.axes:
        handles, names = axis.get_legend_handles_labels()
        entries = dict(zip(names, handles, strict=True)) | entries
    entries = dict(sorted(entries.items(), key=lambda entry: entry[0] == CHANCE["label"]))
    figure.set_layout_engine("constrained")
    if entries:
        figure.legend(entries.values(), entries, loc="outside lower center", ncols=n_columns)
    title = study.settings.title + ", synthetic data" * study.settings.synthetic
    figure.suptitle(f"{title}\n{text}".strip(), fontsize=9, x=0.01, ha="left", fontweight="bold")
    plt.close(figure)
    return figure


def widely(axes: Axes, which: str, values: pd.Series) -> None:
    """Make an axis, "x" or "y", logarithmic where its positive values span more than a factor of ten."""
    if values.max() > 10 * values.min():
        axes.set(**{f"{which}scale": "log"})
        axis = getattr(axes, f"{which}axis")
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")


class Live:
    """Called with the history of a training whenever that grew, it redraws ``draw(history)`` in one place of the cell's output.

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
    """Whether somebody may look on: in a kernel that a notebook server, VS Code or Colab started, not papermill."""
    try:
        import IPython
    except ImportError:
        return False
    shell = IPython.get_ipython()
    if not hasattr(shell, "kernel"):
        return False
    return "JPY_SESSION_NAME" in os.environ or "__vsc_ipynb_file__" in shell.user_ns or "COLAB_RELEASE_TAG" in os.environ
