"""An exhibit: what a notebook shows and the supplement prints of one subject, a table or a figure with its caption."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from mfcore import store
from mfcore.analysis import captions, figures


@dataclass(frozen=True)
class Exhibit:
    """A table, the figure that is drawn from it, if any, and a caption.

    name: of the files, as "05_data_scaling". caption: at most three sentences, in markdown: what is shown; data, n and what the
    bars are; the finding. section: the supplement's heading that it belongs under. table: every number, as its CSV has it.
    readable: the table as a notebook shows it; None where that is ``table``.
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

        table = self.table if self.readable is None else self.readable
        if self.figure is not None:
            display(self.figure)
        elif len(table):
            display(captions.show(table))
        display(captions.show(self.text))


def load(folder: str | Path, name: str) -> dict:
    """``title, caption, section, readable`` of a saved exhibit; raises StoreError where there is none."""
    return store.read_json(Path(folder) / f"{name}.json")
