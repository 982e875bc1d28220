"""Executed notebooks as pages: code folded, progress bars gone, a picture and its caption as one figure."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nbformat

from mfcore import store
from mfcore.sweep.book import markdown

WIDGET, PICTURE = "application/vnd.jupyter.widget-view+json", "image/png"


@dataclass(frozen=True)
class Run:
    """A job with a notebook, and what the job left.

    state: "done", "failed" or "not run". reason: why the run failed or is missing. figures: names of
    the figures that the run wrote. notebook: the executed one, which may not be there.
    """

    name: str
    stage: str
    parameters: Mapping
    state: str
    reason: str
    seconds: float | None
    figures: tuple[str, ...]
    notebook: Path

    @property
    def title(self) -> str:
        """The parameters in words, as "resnet50, fold 3"; empty without parameters."""
        said = {key: f"{key} {value}" for key, value in self.parameters.items()}
        names = ("encoder", "network", "task")
        return ", ".join(str(self.parameters[key]) if key in names else said[key] for key in said)

    @property
    def has_page(self) -> bool:
        return self.notebook.is_file()

    @property
    def summary(self) -> str:
        """State and time, as "done, 21 s"."""
        return f"{self.state}, {self.seconds:,.0f} s" if self.seconds else self.state


def run_of(job, results: Path) -> Run:
    """What a job (`mfcore.sweep.jobs.Job`) left in the study's results."""

    def said(folder: str) -> dict:
        file = results / folder / f"{job.name}.json"
        return store.read_json(file) if file.is_file() else {}

    record, failure, notebook = said("jobs"), said("failures"), results / "notebooks" / f"{job.name}.ipynb"
    state = "failed" if failure or record.get("failed") else "done" if notebook.is_file() else "not run"
    reasons = {"done": "", "failed": failure.get("reason", "no reason was kept")}
    reason = reasons.get(state, said("running").get("reason", "the sweep didn't come to this run"))
    figures = [Path(file).stem for file in record.get("files", {}) if re.fullmatch(r"figures/.*\.png", file)]
    seconds = record.get("seconds")
    return Run(job.name, job.notebook, job.parameters, state, reason, seconds, tuple(figures), notebook)


def without_progress(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without progress bars: widgets, and a bar's lines on stderr. Other lines stay."""
    notebook.metadata.pop("widgets", None)  # with their state, a page would fetch the code that draws them
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                lines = re.split(r"(?<=[\r\n])", output.text)
                output.text = "".join(line for line in lines if not re.search(r"\d+%\|", line))
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_empty(output)]
    return notebook


def _is_empty(output: nbformat.NotebookNode) -> bool:
    if output.output_type == "stream":
        return not output.text.strip()
    return WIDGET in output.get("data", {})


def page(run: Run, title: str, source: Path, exhibits: Mapping[str, str]) -> nbformat.NotebookNode:
    """A run's notebook as a page of the book; pictures that are no exhibit are written below ``source``.

    title: of the page; a notebook that runs once has its own question as title. exhibits: the names
    of the figures' files, by title and caption as a notebook shows them.
    """
    notebook = without_progress(nbformat.read(run.notebook, as_version=4))
    if not run.title and (question := re.match(r"(?:\*.*\*\n+)?# (?:\d\d )?(.+)", notebook.cells[0].source)):
        title = question[1]
    cells = [nbformat.v4.new_markdown_cell(f"# {markdown.text(title)}")]
    if run.state == "failed":
        cells.append(nbformat.v4.new_markdown_cell(failure(run)))
    parts, linked = _parts(notebook), set()
    while parts:
        kind, content = parts.pop(0)
        if kind == "markdown":
            cells.append(nbformat.v4.new_markdown_cell(content))
        elif kind == "code":
            _add_code(cells, content)
        elif PICTURE in content.get("data", {}):
            caption = _take_caption(parts, cells)
            name = exhibits.get(caption, "")
            path = f"../figures/{safe(name)}.png" if name else _written(content, run, source, len(cells))
            words = markdown.caption(caption) + (f" {links(name, 'pdf', 'csv')}" if name else "")
            figure = markdown.figure(path, words, markdown.first_sentence(caption) or run.title or title)
            cells.append(nbformat.v4.new_markdown_cell(figure))
            linked.add(name)
        elif "text/markdown" in content.get("data", {}):
            said = content.data["text/markdown"]
            paragraphs = [markdown.caption(each) for each in said.split("\n\n")]
            if name := exhibits.get(said, ""):
                paragraphs[-1] += f" {links(name, 'csv')}"
                linked.add(name)
            cells.append(nbformat.v4.new_markdown_cell("\n\n".join(paragraphs)))
        else:
            _add_output(cells, content)
    if rest := [f"- {markdown.text(name)} {links(name, 'png', 'pdf', 'csv')}" for name in run.figures if name not in linked]:
        cells.append(nbformat.v4.new_markdown_cell("## Figures as files\n\n" + "\n".join(rest)))
    return nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})


def failure(run: Run) -> str:
    """A box with the reason why a run failed or is missing."""
    name = f"{markdown.text(run.title or run.name)}, {run.state}"
    return markdown.box("error", f"**{name}**: {markdown.caption(run.reason)}")


def links(name: str, *kinds: str, up: str = "../") -> str:
    """Links to a figure's files; ``up`` leads from the page to the top."""
    return " · ".join(f"{{download}}`{kind.upper()} <{up}figures/{safe(name)}.{kind}>`" for kind in kinds)


def safe(name: str) -> str:
    """A name of a file that is no markup."""
    return re.sub(r"[^\w.-]", "_", name)


def _parts(notebook: nbformat.NotebookNode) -> list[tuple[str, object]]:
    """Texts, code and outputs in order, without titles, tables of costs and overwritten defaults."""
    parts: list[tuple[str, object]] = []
    tags = [set(cell.metadata.get("tags", [])) for cell in notebook.cells]
    is_injected = any("injected-parameters" in each for each in tags)
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            text = re.sub(r"\A\*The (committed )?outputs are .*\*\n*|^# .*\n*", "", cell.source, flags=re.M)
            text = re.sub(r"^\| reads .*\n(\|.*\n?)*", "", text, flags=re.M)  # of use to who runs it
            parts += [("markdown", text.strip())] if text.strip() else []
        elif not (is_injected and "parameters" in tags[i]):
            parts += [("code", cell.source)] + [("output", output) for output in cell.outputs]
    return parts


def _add_code(cells: list, source: str) -> None:
    """Add code, to the cell before where that shows nothing."""
    if cells[-1].cell_type == "code" and not cells[-1].outputs:
        cells[-1].source += f"\n\n{source}"
    elif source.strip():
        cells.append(nbformat.v4.new_code_cell(source, metadata={"tags": ["hide-input"]}))


def _add_output(cells: list, output: nbformat.NotebookNode) -> None:
    """Add a table or a text below its code, or below a figure, as a cell without code."""
    if "text/html" in output.get("data", {}):
        output.data["text/html"] = _numbers_right(output.data["text/html"])
    if cells[-1].cell_type != "code":
        source = "# MyST-NB leaves out the output of a cell without code"
        cells.append(nbformat.v4.new_code_cell(source, metadata={"tags": ["remove-input"]}))
    cells[-1].outputs.append(output)


def _take_caption(parts: list, cells: list) -> str:
    """The caption that follows a picture, taken off ``parts``; code between the two goes before the figure."""
    after = [i for i, (kind, _) in enumerate(parts[:2]) if kind == "output"]
    if not after or "text/markdown" not in parts[after[0]][1].get("data", {}):
        return ""
    for kind, content in parts[: after[0]]:
        if kind != "code":
            return ""
        _add_code(cells, content)
    caption = parts[after[0]][1].data["text/markdown"]
    del parts[: after[0] + 1]
    return caption


def _written(output: nbformat.NotebookNode, run: Run, source: Path, number: int) -> str:
    """Write a picture that a notebook shows; returns its path from the page."""
    file = source / "pictures" / f"{safe(run.name)}.{number}.png"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(base64.b64decode(output.data[PICTURE]))
    return f"../pictures/{file.name}"


def _numbers_right(html: str) -> str:
    """Tables with their columns of numbers set to the right."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(html, "html.parser")
    for table in soup.find_all("table"):
        rows = [row.find_all(["th", "td"]) for row in table.find_all("tr")]
        for head, *cells in zip(*rows, strict=False):
            if cells and all(markdown.is_number(cell.get_text()) for cell in cells):
                for cell in (head, *cells):
                    cell["class"] = "number"
    return str(soup)
