"""What a study's jobs read that no other job makes: state files in ``inputs/``, each rewritten only when what it says changes.

Snakemake compares their times with those of the jobs' records. A state stands for content: of the data, of the study, of the
code. What isn't there (data that a job will make or fetch, a disk that is away) is no change.
"""

import ast
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from mfcore import store
from mfcore.data.labels import table as labels
from mfcore.store import files as store_files
from mfcore.store.files import Fingerprints
from mfcore.store.records import digest
from mfcore.study import data as study_data
from mfcore.study.config import Pretraining, Settings, as_dict
from mfcore.sweep.jobs import MEASURE, ROOT, SHARE, STAGES, SUM_UP, Job
from mfcore.tasks import registry, task

FOLDER = "inputs"  # in the study's results
WITHOUT_NOTEBOOK = {SHARE: "study/encoders", MEASURE: "sweep/switches", "supplement": "sweep/book/book"}  # its module


def states_of(study: Settings, job: Job) -> tuple[str, ...]:
    """Names of the states that a job depends on; each is the file ``inputs/<name>.json``."""
    names = ["study", f"code_{job.rule}"]
    if job.stage == STAGES["08"]:
        names += _slides(study.pretraining_of(str(job.parameters["encoder"]))) or ["data"]
    elif job.stage == STAGES["01"]:
        names.append("data")
    elif job.stage == STAGES["07"]:
        names += ["data", *_slides(*study.pretraining)]
    elif job.stage == STAGES["09"]:
        names.append(registry.state_name(str(job.parameters["task"])))
    if job.rule in ("embed", SHARE, "train_end_to_end", "pretrain", "downstream_tasks", MEASURE) and _own_files(study):
        names.append("encoders")
    return tuple(names)


def write(study: Settings, results: Path, data: Path, jobs: Iterable[Job], trusts: bool = True, anew: bool = True) -> None:
    """Bring the states of some jobs up to date. trusts: a file of known size and time isn't read again.

    anew: False for what a job itself made or fetched: only states that weren't complete are written.
    """
    for name in sorted({name for job in jobs for name in states_of(study, job)}):
        file = results / FOLDER / f"{name}.json"
        try:
            was = store.read_json(file)
        except store.StoreError:
            was = {}
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
        return {"complete": True, "code": code_of(_source(of), reads_published=_sums_up(of))}
    if kind == "data":
        return _data(study, data, was, known)
    if kind == "encoders":
        found = {str(path): known.of(path, whole=True) if path.is_file() else None for path in _own_files(study)}
    elif kind == "slides":
        place = _slides(*study.pretraining)[name]
        found = {} if "://" in place else _below(data / Path(place).expanduser(), known)
    else:
        found = task.fingerprints(registry.folder_of(of, data), known)
    found = {path: was.get("files", {}).get(path) if one is None else one for path, one in found.items()}
    found = found or was.get("files", {})
    return {"complete": bool(found) and None not in found.values(), "files": found}


def _below(place: Path, known: Fingerprints) -> dict[str, list[int | str]]:
    """Fingerprints of all files below a folder, or of the file that it is, by name."""
    if place.is_file():
        return {place.name: known.of_slide(place)}
    return known.of_all(store_files.below(place), place)


def _data(study: Settings, folder: Path, was: dict, known: Fingerprints) -> dict:
    """The state of the study's data: checksums of its label files, fingerprints of the slides that they name."""
    try:
        files = labels.files_of(study.source, folder)
    except labels.LabelError:
        return was if was.get("labels") else {"complete": False}
    said = {file.relative_to(folder).as_posix(): known.of(file, whole=True)[1] for file in files}
    before, source, is_read = was.get("slides", {}), digest(as_dict(study.data)), True
    if (was.get("labels"), was.get("source")) == (said, source) and all((folder / name).exists() for name in before):
        names = list(before)
    else:
        try:
            names = sorted(set(study_data.load_labels(study, folder, check_files=False)["file"]))
        except Exception:  # whatever is wrong with the labels, the job that reads them says it
            names, is_read = list(before), False
    slides = {name: known.of_slide(folder / name) if (folder / name).exists() else before.get(name) for name in names}
    is_complete = is_read and bool(slides) and None not in slides.values()
    return {"complete": is_complete, "source": source, "labels": said, "slides": slides}


def _slides(*pretrainings: Pretraining) -> dict[str, str]:
    """Where slides of their own lie, by the name of the state; without those that read the study's."""
    return {f"slides_{digest(which.slides)}": which.slides for which in pretrainings if which.slides}


def _own_files(study: Settings) -> list[Path]:
    """Files on this machine that weights are read from: of encoders, networks, and what pretrainings start from."""
    named = [own.weights_path for own in study.own_encoders]
    names = [*study.encoders, *(one.architecture for one in study.networks), *(one.start for one in study.pretraining)]
    named += [Path(name.partition(":")[2]) for name in dict.fromkeys(names) if name.startswith("folder:")]
    found = [sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path] for path in named if path]
    return [file for files in found for file in files]


# ---- code ----


def _source(rule: str) -> Path:
    """Where a rule's code begins: its notebook, or its module."""
    if rule in WITHOUT_NOTEBOOK:
        return ROOT / "mfcore" / f"{WITHOUT_NOTEBOOK[rule]}.py"
    return ROOT / "notebooks" / f"{next(notebook for notebook in STAGES.values() if notebook[3:] == rule)}.py"


def _sums_up(rule: str) -> bool:
    return rule in [stage[3:] for stage in SUM_UP]


def code_of(source: Path, reads_published: bool = True) -> str:
    """Digest of what decides a notebook's or module's results: its own code and that of the mfcore modules it reaches.

    Comments, docstrings, blank lines, imports and the modules' names don't count; all of a notebook's text does. YAML in
    the modules' packages, the style of figures and of the supplement and, with ``reads_published``, published values count too.
    """
    own, code = store.file_sha256(source) if ROOT / "mfcore" not in source.parents else "", reached(source)
    modules = sorted({_module(path, path.stat().st_mtime_ns)[0] for path in code})
    packages = {path.parent for path in code} - {ROOT / "mfcore"}
    files = sorted({file for package in packages for file in package.rglob("*.yaml")})
    files += sorted(file for package in packages for kind in ("*.css", "conf.py") for file in package.glob(kind))
    files.append(ROOT / "mfcore" / "analysis" / "mfcore.mplstyle")
    if reads_published:
        files += sorted((ROOT / "data").glob("published_*.csv"))
        files += sorted((ROOT / "mfcore" / "analysis" / "published").glob("*.csv"))
    return digest([own, modules, [store.file_sha256(file) for file in files]])


def reached(source: Path) -> set[Path]:
    """Files of the mfcore modules that ``source`` imports, directly or through others; itself where it is one."""
    waiting, found = [source], {source} if (ROOT / "mfcore") in source.parents else set()
    while waiting:
        path = waiting.pop()
        new = set(_module(path, path.stat().st_mtime_ns)[1]) - found
        found |= new
        waiting += new
    return found


class _Code(ast.NodeTransformer):
    """Leaves of a module what decides results: no imports, and no strings that stand alone, as docstrings do."""

    def visit_Import(self, _: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, _: ast.ImportFrom) -> None:
        return None

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node


def _lazy() -> dict[str, str]:
    """What ``from mfcore import ...`` takes from a module at first use, by name: ``LAZY`` of the package itself."""
    for node in ast.parse((ROOT / "mfcore" / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAZY":
            return ast.literal_eval(node.value)
    return {}


@lru_cache(maxsize=1024)
def _module(path: Path, _changed_ns: int) -> tuple[str, tuple[Path, ...]]:
    """Digest of a module's code, and the files of the mfcore modules that it imports itself."""
    tree, imported = ast.parse(path.read_text(encoding="utf-8")), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mfcore":
            package, names = ROOT / node.module.replace(".", "/"), [alias.name for alias in node.names]
            lazy = [ROOT / module.partition(":")[0].replace(".", "/") for name, module in _lazy().items() if name in names]
            for place in (package, *(package / name for name in names), *(lazy if node.module == "mfcore" else [])):
                imported |= {file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()}
    return digest(ast.dump(_Code().visit(tree))), tuple(sorted(imported - {ROOT / "mfcore" / "__init__.py"}))
