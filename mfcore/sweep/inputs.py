"""What a study's jobs read that no other job makes, as state files in ``inputs/``.

Each is rewritten only when what it says changes. Snakemake compares their times with those of the
jobs' records. A state stands for content: of the data, of the study, of the code. What isn't there
(data that a job will make or fetch, a disk that is away) is no change.
"""

import ast
import os
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from mfcore import store
from mfcore.store import files as store_files
from mfcore.store.files import Fingerprints
from mfcore.store.records import digest
from mfcore.study import (
    data as study_data,
    encoders as study_encoders,
    external,
    predictions,
    tasks as study_tasks,
)
from mfcore.study.config import Pretraining, Settings, as_dict
from mfcore.sweep import ROOT
from mfcore.sweep.jobs import MEASURE, SHARE, STAGES, SUPPLEMENT, Job

FOLDER = "inputs"  # in the study's results
PACKAGE = ROOT / "mfcore"
SOURCES = {  # where a rule's code begins
    **{notebook[3:]: ROOT / "notebooks" / f"{notebook}.py" for notebook in STAGES.values()},
    SHARE: PACKAGE / "study" / "encoders.py",
    MEASURE: PACKAGE / "sweep" / "switches.py",
    SUPPLEMENT: PACKAGE / "sweep" / "book" / "book.py",
}
FACTS = ("**/*.yaml", "*.css", "*.js", "conf.py")  # files of a package that nothing imports
READ_WEIGHTS = ("embed", SHARE, "train_end_to_end", "pretrain", "downstream_tasks", MEASURE)


def states_of(study: Settings, job: Job) -> tuple[str, ...]:
    """Names of the states that a job depends on; each is the file ``inputs/<name>.json``."""
    names = ["study", f"code_{job.rule}"]
    if job.stage == STAGES["08"]:
        names += _slides(study.pretraining_of(str(job.parameters["encoder"]))) or ["data"]
    elif job.stage == STAGES["01"]:
        names.append("data")
    elif job.stage == STAGES["07"]:
        names += ["data", *_slides(*study.pretraining)]
    elif job.stage == STAGES["13"]:
        names += [f"external_{name}" for name in predictions.external_sets(study)]
    elif job.stage == STAGES["09"]:
        names.append(f"task_{study_tasks.data_name(str(job.parameters['task']))}")
    if job.rule in READ_WEIGHTS and _own_files(study):
        names.append("encoders")
    if job.stage in (STAGES["02"], STAGES["13"]) and study_encoders.feature_files(study):
        names.append("features")
    return tuple(names)


def write(
    study: Settings,
    results: Path,
    data: Path,
    jobs: Iterable[Job],
    trusts: bool = True,
    anew: bool = True,
) -> None:
    """Bring the states of some jobs up to date.

    trusts: a file of known size and time isn't read again. anew: False for what a job itself made
    or fetched: only states that weren't complete are written.
    """
    for name in sorted({name for job in jobs for name in states_of(study, job)}):
        file = results / FOLDER / f"{name}.json"
        was = store.read_json(file) if file.is_file() else {}
        if not anew and was.get("complete", True):
            continue
        known = Fingerprints(results / FOLDER / f".{name}.json", trusts)
        now = _now(name, study, data, was, known)
        known.write()
        if now != was:
            time_ns = None if not was or was["complete"] else file.stat().st_mtime_ns
            store.write_json(file, now)
            if time_ns is not None:  # what was made since by those who depend on it is no change
                os.utime(file, ns=(time_ns, time_ns))


def _now(name: str, study: Settings, data: Path, was: dict, known: Fingerprints) -> dict:
    """The state of that name as things are."""
    kind, _, of = name.partition("_")
    if kind == "study":
        return {"complete": True, "study": as_dict(study)}
    if kind == "code":
        return {"complete": True, "code": code_of(SOURCES[of])}
    if kind == "data":
        return _data(study, data, was, known)
    if kind == "external":
        other = predictions.external_sets(study)[of]
        return _data(other, external.folder_of(of, data), was, known)
    if kind == "features":
        of_studies = map(
            study_encoders.feature_files, (study, *predictions.external_sets(study).values())
        )
        found = {str(path): known.of(path, True) for files in of_studies for path in files}
    elif kind == "encoders":
        found = {
            str(path): known.of(path, whole=True) if path.is_file() else None
            for path in _own_files(study)
        }
    elif kind == "slides":
        found = _below(data / Path(_slides(*study.pretraining)[name]).expanduser(), known)
    else:
        found = study_tasks.data_fingerprints(of, data, known)
    before = was.get("files", {})
    files = {path: content or before.get(path) for path, content in found.items()} or before
    return {"complete": bool(files) and None not in files.values(), "files": files}


def _below(place: Path, known: Fingerprints) -> dict[str, list[int | str]]:
    """Fingerprints of all files below a folder, or of the file that it is, by name."""
    if place.is_file():
        return {place.name: known.of_slide(place)}
    return known.of_all(store_files.below(place), place)


def _data(study: Settings, folder: Path, was: dict, known: Fingerprints) -> dict:
    """The state of the data: checksums of label files, fingerprints of the slides they name."""
    try:
        files = study_data.label_files(study, folder)
    except ValueError:  # they aren't there
        return was if was.get("slides") else {"complete": False}
    labels = {file.relative_to(folder).as_posix(): known.of(file, whole=True)[1] for file in files}
    before, source = was.get("slides", {}), digest(as_dict(study.data))
    names, is_read = list(before), True
    is_same = bool(labels) and (was.get("labels"), was.get("source")) == (labels, source)
    if not is_same or not all((folder / name).exists() for name in before):
        try:
            names = sorted(set(study_data.load_labels(study, folder, check_files=False)["file"]))
        except Exception:  # whatever is wrong with the labels, the job that reads them says it
            is_read = False
    slides = {
        name: known.of_slide(folder / name) if (folder / name).exists() else before.get(name)
        for name in names
    }
    is_complete = is_read and bool(slides) and None not in slides.values()
    return {"complete": is_complete, "source": source, "labels": labels, "slides": slides}


def _slides(*pretrainings: Pretraining) -> dict[str, str]:
    """Where the slides of pretrainings lie that don't read the study's, by the state's name."""
    places = [pretraining.slides for pretraining in pretrainings if pretraining.slides]
    return {f"slides_{digest(place)}": place for place in places}


def _own_files(study: Settings) -> list[Path]:
    """Files on this machine that encoders, networks and starts of pretrainings are read from."""
    names = [*study.encoders, *(network.architecture for network in study.networks)]
    names += [pretraining.start for pretraining in study.pretraining]
    described = [own for own in study.own_encoders if not own.features]
    places = {own.weights_path for own in described if own.weights_path}
    places |= {Path(name.removeprefix("folder:")) for name in names if name.startswith("folder:")}
    files = set()
    for place in places:
        files |= set(filter(Path.is_file, place.iterdir())) if place.is_dir() else {place}
    return sorted(files)


# ---- code ----


def code_of(source: Path) -> str:
    """Digest of what decides a notebook's or module's results: its code, and what that reaches.

    Comments, docstrings, blank lines, imports and the modules' names don't count; all of a
    notebook's text does. YAML in the modules' packages, the style of figures and of the supplement,
    and published values count too.
    """
    own = _module(source)[0] if PACKAGE in source.parents else store.file_sha256(source)
    code = reached(source)
    files = {PACKAGE / "analysis" / "mfcore.mplstyle", *ROOT.glob("data/published_*.csv")}
    files |= set(PACKAGE.glob("analysis/published/*.csv"))
    for package in {path.parent for path in code} - {PACKAGE}:
        files |= {file for form in FACTS for file in package.glob(form)}
    modules = sorted({_module(path)[0] for path in code})
    return digest([own, modules, [store.file_sha256(file) for file in sorted(files)]])


def reached(source: Path) -> set[Path]:
    """Files of the mfcore modules that ``source`` imports, directly or through others."""
    waiting, found = [source], set()
    while waiting:
        new = _module(waiting.pop())[1] - found
        found |= new
        waiting += new
    return found


class _Code(ast.NodeTransformer):
    """Leaves of a module what decides results: no imports, and no strings that stand alone."""

    def visit_Import(self, _: ast.Import | ast.ImportFrom) -> None:
        return None

    visit_ImportFrom = visit_Import

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node


@cache
def _module(path: Path) -> tuple[str, set[Path]]:
    """Digest of a module's code, and the files of the mfcore modules that it imports itself."""
    face = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    lazy = dict(re.findall(r'"(\w+)": "(mfcore[\w.]*)', face))  # what `mfcore` gives at first use
    tree, names = ast.parse(path.read_text(encoding="utf-8")), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            asked = [alias.name for alias in node.names] if node.module == "mfcore" else []
            names += [lazy[name] for name in asked if name in lazy]
    own = [name.replace(".", "/") for name in names if name.split(".")[0] == "mfcore"]
    files = {ROOT / file for name in own for file in (f"{name}.py", f"{name}/__init__.py")}
    return digest(ast.dump(_Code().visit(tree))), set(filter(Path.is_file, files))
