"""The committed notebooks: each .py (percent) is the source, the .ipynb beside it is built, executed on the study demo.

What was built carries a fingerprint of what decides it (its source, the demo study, the mfcore modules it reaches), so that
an output from older code shows itself as stale.
"""

import re
import shutil
import sys
import tempfile
from pathlib import Path

import jupytext
import nbformat

from mfcore import store
from mfcore.analysis import domains
from mfcore.store.records import digest
from mfcore.study.config import as_dict, load_study
from mfcore.study.study import Study
from mfcore.sweep.book.notebooks import without_progress
from mfcore.sweep.inputs import code_of
from mfcore.sweep.jobs import ROOT
from mfcore.sweep.run import execute

OF_WHAT = "*The committed outputs are those of the study `demo`: synthetic data.*"  # the built .ipynb begin so, no .py does
MAX_BYTES = 1_500_000
MAX_CODE_LINES = 60


def sources(folder: Path) -> list[Path]:
    """The numbered notebooks' .py files, in order."""
    return sorted(folder.glob("[0-9][0-9]_*.py"))


def build(folder: Path) -> int:
    """Execute every notebook on its own defaults and write the .ipynb beside it; returns the exit status."""
    for source in sources(folder):
        print(f"building {source.stem}", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            executed = Path(scratch) / "executed.ipynb"
            execute(source, executed, {}, n_threads=1, of_what=OF_WHAT)
            notebook = cleaned(nbformat.read(executed, as_version=4))
        notebook.metadata["mfcore"] = {"fingerprint": fingerprint(source)}
        with store.replacing(source.with_suffix(".ipynb")) as aside:
            nbformat.write(notebook, aside)
    if folder == ROOT / "notebooks":
        print("README: found", *update_readme(ROOT / "README.md", ROOT / "results", folder / "figures"))
    found = problems(folder)
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


def update_readme(readme: Path, results: Path, figures: Path) -> list[str]:
    """Put what each study found, and its Fig. 1, between README's ``<!-- found NAME -->`` and ``<!-- end -->``.

    The text is computed from the study's finished runs in ``results``; a study without any keeps the text it has. Returns
    the names of the studies written.
    """
    text, written = readme.read_text(encoding="utf-8"), []
    for name in re.findall(r"<!-- found (\w+) -->", text):
        study, folder = load_study(ROOT / "studies" / f"{name}.yaml"), results / name
        picture = folder / "figures" / "05_data_scaling.png"
        if not picture.is_file():
            continue
        found = domains.abstract(Study(study, folder))
        figures.mkdir(exist_ok=True)
        with store.replacing(figures / f"{name}_data_scaling.png") as aside:
            shutil.copyfile(picture, aside)
        image = (figures / f"{name}_data_scaling.png").relative_to(readme.parent)
        block = f"<!-- found {name} -->\n![{study.title}: AUROC against training patches]({image})\n\n{found}\n<!-- end -->"
        text = re.sub(rf"<!-- found {name} -->.*?<!-- end -->", lambda _, block=block: block, text, flags=re.DOTALL)
        written.append(name)
    with store.replacing(readme) as aside:
        aside.write_text(text, encoding="utf-8")
    return written


def cleaned(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with what a reader needs and no more: fixed cell ids, no versions, times or progress bars."""
    cells = []
    for index, cell in enumerate(without_progress(notebook).cells):
        kept = {"id": f"c{index:02d}", "cell_type": cell.cell_type, "source": cell.source, "metadata": {}}
        if cell.metadata.get("tags"):
            kept["metadata"] = {"tags": list(cell.metadata["tags"])}
        if cell.cell_type == "code":
            kept |= {"execution_count": cell.execution_count, "outputs": cell.outputs}
        cells.append(nbformat.from_dict(kept))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.from_dict({"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": cells})


def fingerprint(source: Path) -> str:
    """Hash of what decides a notebook's outputs: its text, the demo study, the code that it reaches."""
    return digest([code_of(source), as_dict(load_study(ROOT / "studies" / "demo.yaml"))])


def problems(folder: Path) -> list[str]:
    """What is wrong with the committed notebooks: pairs that drifted, stale or missing outputs, errors, size, thickness."""
    found = []
    for source in sources(folder):
        target = source.with_suffix(".ipynb")
        if not target.is_file():
            found.append(f"{target.name} is missing; run `make notebooks`")
            continue
        built, written = nbformat.read(target, as_version=4), jupytext.read(source)
        code = [cell for cell in built.cells if cell.cell_type == "code"]
        of_what, _, built.cells[0].source = built.cells[0].source.partition("\n\n")
        if of_what != OF_WHAT:
            found.append(f"{target.name} doesn't begin with {OF_WHAT!r}; run `make notebooks`")
        if [(c.cell_type, c.source) for c in built.cells] != [(c.cell_type, c.source) for c in written.cells]:
            found.append(f"{target.name} and {source.name} have drifted apart; keep the right one, then run `make notebooks`")
        if built.metadata.get("mfcore", {}).get("fingerprint") != fingerprint(source):
            found.append(f"{target.name} is stale: its source, mfcore or the demo study changed since; run `make notebooks`")
        if any(output.output_type == "error" for cell in code for output in cell.outputs):
            found.append(f"{target.name} holds an error")
        if not any(cell.outputs for cell in code):
            found.append(f"{target.name} holds no outputs; run `make notebooks`")
        if target.stat().st_size > MAX_BYTES:
            found.append(f"{target.name} has {target.stat().st_size:,} bytes, over {MAX_BYTES:,}; show smaller figures")
        text = "\n".join(cell.source for cell in written.cells if cell.cell_type == "code")
        n_lines = sum(1 for line in text.splitlines() if line.strip() and not line.strip().startswith("#"))
        if n_lines > MAX_CODE_LINES or re.search(r"^\s*(def|class) ", text, re.MULTILINE):
            found.append(f"{source.name} has {n_lines} lines of code or defines something; that belongs in mfcore")
    return found
