"""Executed notebooks as pages: code folded, no progress bars, exhibits with links to files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat.v4 import new_markdown_cell

from mfcore import store
from mfcore.sweep.book import markdown
from mfcore.sweep.book.exhibits import exhibit

ARMS = ("encoder", "network", "task")  # parameters that need no name beside them
WIDGET = "application/vnd.jupyter.widget-view+json"
# a line of tqdm: with a total or without one, and what takes away a bar below another one
BAR = re.compile(r"\d+%\||\[\d+:\d\d[<,]|\x1b\[A")
# of a notebook's text: whose outputs it has, its title, the table of costs
FILES = "files written:"  # what follows helps only who runs a notebook
NOT_SHOWN = re.compile(
    r"\A\*The (committed )?outputs are .*\*\n*|^# .*\n*|^\| reads .*\n(\|.*\n?)*", re.MULTILINE
)


@dataclass(frozen=True)
class Run:
    """A job with a notebook, and what the job left.

    state: "done", "failed" or "not run". reason: why the run failed or is missing. figures: names
    of the figures that the run wrote and that are there. files: all that it wrote beside them.
    notebook: the executed one, which may not be there.
    """

    name: str
    stage: str
    parameters: Mapping
    state: str
    reason: str
    seconds: float | None
    figures: tuple[str, ...]
    files: tuple[Path, ...]
    notebook: Path

    @property
    def title(self) -> str:
        """The parameters in words, as "resnet50, fold 3"; empty without parameters."""
        words = {key: f"{key} {value}" for key, value in self.parameters.items()}
        words |= {key: str(self.parameters[key]) for key in ARMS if key in words}
        return ", ".join(words.values())

    @property
    def has_page(self) -> bool:
        return self.notebook.is_file()

    @property
    def summary(self) -> str:
        """State and time, as "done, 21 s"."""
        return f"{self.state}, {self.seconds:,.0f} s" if self.seconds else self.state

    @property
    def failure(self) -> str:
        """A box with the reason why the run failed or is missing."""
        title = f"{self.title or self.name}: {self.state}"
        return markdown.box("error", title, markdown.text(self.reason))


def run_of(job, results: Path) -> Run:
    """What a job (`mfcore.sweep.jobs.Job`) left in the study's results."""

    def content(folder: str) -> dict:
        file = results / folder / f"{job.name}.json"
        return store.read_json(file) if file.is_file() else {}

    record, failure = content("jobs"), content("failures")
    notebook = results / "notebooks" / f"{job.name}.ipynb"
    state, reason = "done", ""
    if failure:
        state, reason = "failed", failure["reason"]
    elif not notebook.is_file():
        state = "not run"
        reason = content("running").get("reason", "the sweep didn't come to this run")
    files = [results / file for file in record.get("files", {}) if file.startswith("figures/")]
    files = tuple(file for file in files if file.is_file())
    figures = [file for file in files if file.suffix == ".png"]
    shown = tuple(file.stem for file in figures if file.with_suffix(".json") in files)
    seconds = record.get("seconds")
    return Run(job.name, job.stage, job.parameters, state, reason, seconds, shown, files, notebook)


def without_progress(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without progress bars: widgets, and a bar's lines on stderr."""
    notebook.metadata.pop("widgets", None)  # with it a page would fetch the code that draws them
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                lines = re.split(r"(?<=[\r\n])", output.text)
                output.text = "".join(line for line in lines if not BAR.search(line))
        if cell.cell_type == "code":
            outputs = [each for each in cell.outputs if WIDGET not in each.get("data", {})]
            cell.outputs = [each for each in outputs if each.get("text", "text").strip()]
    return notebook


def page(run: Run, title: str, figures: Path, exhibits: Mapping[str, str]) -> nbformat.NotebookNode:
    """A run's notebook as a page of the book.

    title: of the page; a notebook that runs once has its own question as title. exhibits: the names
    of those in ``figures``, by the text that a notebook shows with them.
    """
    notebook = without_progress(nbformat.read(run.notebook, as_version=4))
    question = re.search(r"^# (?:\d\d )?(.+)", notebook.cells[0].source, re.MULTILINE)
    if question and not run.title:
        title = question[1]
    cells = [new_markdown_cell(f"# {markdown.text(title)}")]
    cells += [new_markdown_cell(run.failure)] if run.state == "failed" else []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            words = NOT_SHOWN.sub("", cell.source).strip()
            cells += [new_markdown_cell(words)] if words else []
        elif "parameters" not in cell.metadata.get("tags", []):  # the run's are in the cell after
            if cells[-1].cell_type == "code" and not cells[-1].outputs:
                cell.source = f"{cells.pop().source}\n\n{cell.source}"
            cells.append(cell)
            cells += map(new_markdown_cell, _taken(cell, figures, exhibits))
            cell.metadata["mystnb"] = {"image": {"alt": f"A figure of {title}."}}
    return nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})


def _taken(cell: nbformat.NotebookNode, figures: Path, exhibits: Mapping[str, str]) -> list[str]:
    """Fold a cell's code and take exhibits and texts off its outputs; returns them in MyST."""
    outputs, taken = [], []
    for output in cell.outputs:
        words = output.get("data", {}).get("text/markdown")
        if words in exhibits:  # its figure and table came before
            outputs = [each for each in outputs if each.output_type == "stream"]
            taken.append(exhibit(figures, exhibits[words], title="**{}**"))
        elif words:
            taken.append("\n\n".join(markdown.caption(each) for each in words.split("\n\n")))
        else:
            if output.output_type == "stream":
                output.text = output.text.partition(FILES)[0]
            outputs += [output] if output.get("text", FILES) else []
    cell.outputs, cell.metadata = outputs, {"tags": ["hide-input"]}
    return taken
