"""The committed notebooks: of each .py (percent) the .ipynb beside it, run on the study demo_full.

What was built carries a fingerprint of what decides it (its source, the study, the mfcore modules
it reaches), so that an output from older code shows itself as stale.
"""

import os
import re
import shutil
import tempfile
from pathlib import Path

import nbformat

from mfcore import store
from mfcore.analysis import overview
from mfcore.store.records import digest
from mfcore.study.config import as_dict, load_study
from mfcore.study.study import Study
from mfcore.sweep import ROOT
from mfcore.sweep.book.notebooks import without_progress
from mfcore.sweep.inputs import code_of
from mfcore.sweep.run import execute

STUDY = ROOT / "studies" / "demo_full.yaml"
# the built .ipynb begin so, no .py does
OF_WHAT = "*The committed outputs are those of the study `demo_full`: synthetic data.*"


def sources(folder: Path) -> list[Path]:
    """The numbered notebooks' .py files, in order."""
    return sorted(folder.glob("[0-9][0-9]_*.py"))


def build(folder: Path) -> None:
    """Execute every notebook on `STUDY` and write the .ipynb; raises as `execute`.

    All other parameters are the notebook's own, and what sets the study isn't kept: by hand a
    notebook runs the small study that it names.
    """
    for source in sources(folder):
        print(f"building {source.stem}", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            executed = Path(scratch) / "executed.ipynb"
            execute(source, executed, {"study_file": str(STUDY)}, of_what=OF_WHAT)
            notebook = cleaned(nbformat.read(executed, as_version=4))
        notebook.metadata["mfcore"] = {"fingerprint": fingerprint(source)}
        with store.replacing(source.with_suffix(".ipynb")) as aside:
            nbformat.write(notebook, aside)


def update_page(page: Path, results: Path, figures: Path) -> list[str]:
    """Put what each study found, and its Fig. 1, between a page's ``<!-- found NAME -->`` and end.

    The text is computed from the study's finished runs in ``results``; a study without any keeps
    the text it has. Returns the names of the studies written.
    """
    text, written = page.read_text(encoding="utf-8"), []
    for name in re.findall(r"<!-- found (\w+) -->", text):
        study, folder = load_study(ROOT / "studies" / f"{name}.yaml"), results / name
        picture = folder / "figures" / "05_data_scaling.png"
        if not picture.is_file():
            continue
        found = overview.abstract(Study(study, folder))
        figures.mkdir(exist_ok=True)
        with store.replacing(figures / f"{name}_data_scaling.png") as aside:
            shutil.copyfile(picture, aside)
        image = os.path.relpath(figures / f"{name}_data_scaling.png", page.parent)
        figure = f"![{study.title}: AUROC against training patches]({image})"
        block = f"<!-- found {name} -->\n{figure}\n\n{found}\n<!-- end -->"
        before, _, rest = text.partition(f"<!-- found {name} -->")
        text = before + block + rest.partition("<!-- end -->")[2]
        written.append(name)
    with store.replacing(page) as aside:
        aside.write_text(text, encoding="utf-8")
    return written


def cleaned(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook as its source has it: fixed ids and counts, no versions, times or progress."""
    without_progress(notebook)
    tagged = [(cell, cell.metadata.get("tags", [])) for cell in notebook.cells]
    notebook.cells = [cell for cell, tags in tagged if "injected-parameters" not in tags]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, start=1):
        for counted in (cell, *(each for each in cell.outputs if "execution_count" in each)):
            counted.execution_count = count
    for index, cell in enumerate(notebook.cells):
        cell.id, tags = f"c{index:02d}", cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = {"kernelspec": kernel}
    return notebook


def fingerprint(source: Path) -> str:
    """Hash of what decides a notebook's outputs: its text, `STUDY`, the code it reaches."""
    return digest([code_of(source), as_dict(load_study(STUDY))])
