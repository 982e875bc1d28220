"""Who may import whom, by room: read off the syntax trees, so that an import inside a function counts too."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mfcore"

# A room of the package, and the rooms that it may import besides itself. A new room names itself here.
ROOMS = {
    "store": set(),
    "streams": set(),
    "measures": {"store", "streams"},
    "data": {"store", "streams", "measures"},
    "encoders": {"store", "streams", "data"},
    "training": {"store", "streams", "measures", "data", "encoders"},
    "pretraining": {"store", "streams", "measures", "data", "encoders", "training"},
    "tasks": {"store", "streams", "measures", "data", "encoders", "training"},
    "study": {"store", "streams", "measures", "data", "encoders", "training", "pretraining", "tasks"},
    "analysis": {"store", "streams", "measures", "data", "encoders", "tasks", "study"},
    "claims": {"store", "streams", "measures", "encoders", "study", "analysis"},
    "sweep": {"store", "streams", "study", "analysis", "claims"},
}
FACE = {"__init__", "__main__", "cli", "predict"}  # may import every room; no room imports them
CORE = {"measures", "data", "encoders", "training", "pretraining", "tasks"}  # know no study and no results folder

# Seconds to import, or a library of the system that may lack: imported by the functions that use them.
HEAVY = {"torch", "torchvision", "timm", "transformers", "peft", "openslide", "tifffile"}
WITH_TORCH = {"encoders", "training", "pretraining", "tasks"}  # where a module may load torch as it is imported
WITHOUT_TORCH = {"store", "streams", "measures", "study", "analysis", "claims", "sweep"}  # not even inside a function
TORCH_PACKAGES = {"torch", "torchvision", "timm", "transformers", "safetensors.torch"}
READERS = {"analysis", "claims", "sweep"}  # of other rooms they import only what loads nothing heavy


def modules() -> dict[str, Path]:
    """Every module by its dotted name below mfcore, e.g. "streams" or "data.labels.midog"; packages by their own name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name or "__init__"] = path
    return found


MODULES = modules()


def room_of(module: str) -> str:
    """The room of a module; raises KeyError where it has none."""
    first = module.split(".")[0]
    if first in ROOMS or first in FACE:
        return first
    raise KeyError(f"mfcore.{module} has no room; name it in ROOMS of {Path(__file__).name}")


def imports(tree: ast.AST, at_import: bool = True, typing_only: bool = False) -> Iterator[tuple[str, bool, int]]:
    """Yield (dotted name, whether importing the module imports it, line) of every import, ``from a import b`` as "a.b"."""
    for node in ast.iter_child_nodes(tree):
        runs = at_import and not typing_only
        if isinstance(node, ast.Import):
            yield from ((alias.name, runs, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            yield from ((f"{prefix}.{alias.name}", runs, node.lineno) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from imports(ast.Module(node.body, []), at_import, True)
            yield from imports(ast.Module(node.orelse, []), at_import, typing_only)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(node, at_import and not inside, typing_only)


def module_in(name: str) -> str:
    """The module that an imported name, "mfcore.store.Run", lies in: "store"; as written where there is no such module."""
    parts = name.split(".")[1:]
    return next((m for n in range(len(parts), 0, -1) if (m := ".".join(parts[:n])) in MODULES), ".".join(parts))


def own_imports(source: str) -> set[str]:
    """Modules below mfcore that the source imports anywhere."""
    return {module_in(name) for name, _, _ in imports(ast.parse(source)) if name.startswith("mfcore.")}


def faults(module: str, source: str) -> list[str]:
    """What is wrong with a module's imports and names, one line each."""
    room, tree, found = room_of(module), ast.parse(source), []
    for name, at_import, line in imports(tree):
        here = f"mfcore.{module}, line {line}: imports {name}"
        top = name.split(".")[0]
        if name.startswith("."):
            found.append(f"{here}: written as a relative import")
        elif top == "mfcore" and name.count("."):
            target = module_in(name)
            if room in FACE or target.startswith("__version__"):
                continue
            other = room_of(target)
            if other not in ROOMS[room] | {room}:
                found.append(f"{here}: {room} may import {sorted(ROOMS[room])}, this is {other}")
        elif room in WITHOUT_TORCH and any(name == p or name.startswith(f"{p}.") for p in TORCH_PACKAGES):
            found.append(f"{here}: {room} works without torch")
        elif at_import and top in HEAVY and not (top == "torch" and room in WITH_TORCH):
            found.append(f"{here}: heavy, to be imported by the function that uses it")
    if room in CORE:
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | {
            n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)
        }
        found += [f"mfcore.{module}: the core speaks of {word!r}" for word in sorted(names & {"Study", "study", "results"})]
    return found


@pytest.mark.parametrize("module", MODULES)
def test_module_keeps_to_its_room(module):
    """Each module imports only from the rooms that the table names, and the core knows no study."""
    assert not faults(module, MODULES[module].read_text(encoding="utf-8"))


def test_what_the_tables_name_is_there():
    """A room that was renamed or removed leaves no name behind."""
    assert set(ROOMS) <= set(MODULES)


def test_the_map_for_contributors_has_this_table():
    rows = re.findall(
        r"^\| `(\w+)` \|[^|]*\|([^|]*)\|$", (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M
    )
    assert {room: set(rooms.split()) for room, rooms in rows} == ROOMS


def test_no_two_modules_import_each_other():
    """Within a room, too, imports go one way."""
    graph = {name: own_imports(path.read_text(encoding="utf-8")) - {name} for name, path in MODULES.items()}
    while leaves := [name for name, targets in graph.items() if not targets & set(graph)]:
        for name in leaves:
            del graph[name]
    assert not graph, f"these import one another in a circle: {sorted(graph)}"


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("streams", "from mfcore.data.labels import table", "this is data"),
        ("streams", "from mfcore.data.labels.table import load", "this is data"),
        ("streams", "import mfcore.data.labels.table", "this is data"),
        ("data.labels.table", "def load():\n    from mfcore import encoders", "this is encoders"),
        ("measures.binary", "from mfcore.study.config import Settings", "this is study"),
        ("encoders.card", "from mfcore.training import adapt", "this is training"),
        ("training.train", "from mfcore.pretraining import objective", "this is pretraining"),
        ("pretraining.pretrain", "from mfcore.study import pretrained", "this is study"),
        ("tasks.judge", "from mfcore.pretraining import method", "this is pretraining"),
        ("study.config", "from mfcore.analysis import compare", "this is analysis"),
        ("study.arms", "from mfcore.__main__ import main", "this is __main__"),
        ("analysis.compare", "from mfcore.training import probe", "this is training"),
        ("sweep.book.book", "from mfcore.training import probe", "this is training"),
        ("analysis.compare", "from mfcore.claims import ledger", "this is claims"),
        ("claims.ledger", "from mfcore.sweep.book import book", "this is sweep"),
        ("measures.binary", "def f():\n    import torch", "without torch"),
        ("analysis.scores", "def f():\n    from safetensors.torch import load_file", "without torch"),
        ("analysis.scores", "from mfcore import __version__\nimport timm.data", "without torch"),
        ("data.slides.slide", "import openslide", "heavy"),
        ("data.slides.slide", "try:\n    from openslide import OpenSlide\nexcept OSError:\n    pass", "heavy"),
        ("data.augment", "import torch", "heavy"),
        ("encoders.network", "import torchvision", "heavy"),
        ("data.labels.table", "from .config import Study", "relative"),
        ("training.train", "def train(study):\n    return 0", "speaks of 'study'"),
        ("data.splits", "results = 0", "speaks of 'results'"),
    ],
)
def test_a_broken_rule_is_seen(module, source, fault):
    """The checker can fail: every rule broken once."""
    (found,) = faults(module, source)
    assert fault in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("streams", "from mfcore import __version__"),
        ("encoders.network", "import torch\nfrom mfcore import streams\nfrom mfcore.data.slides import slide"),
        ("data.augment", "import typing\nif typing.TYPE_CHECKING:\n    import torch"),
        ("data.slides.slide", "class A:\n    def read(self):\n        import openslide"),
        ("pretraining.loop", "from mfcore.pretraining import objective\nfrom mfcore.training import processes"),
        ("study.arms", "def train(study, results):\n    from mfcore.training import train"),
        ("analysis.compare", "from mfcore import store\nfrom mfcore.measures import statistics"),
        ("tasks.judge", "import torch\nfrom mfcore.tasks import registry\nfrom mfcore.training import heads"),
        ("__main__", "def main():\n    from mfcore.sweep import report"),
    ],
)
def test_what_is_allowed_passes(module, source):
    """No false alarm on the allowed neighbours of the rules."""
    assert not faults(module, source)


def test_a_module_without_a_room_is_refused():
    """A new module can't stand outside the table."""
    with pytest.raises(KeyError, match="has no room"):
        faults("helpers", "")


def loaded_after(statement: str) -> set[str]:
    """Top-level names of the modules in a fresh interpreter after ``statement``."""
    code = f"{statement}\nimport sys\nprint('\\n'.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing_else():
    """``import mfcore`` is quick: it brings only what Python itself has loaded."""
    brought = loaded_after("import mfcore") - loaded_after("pass")
    assert brought == {"mfcore"}


def test_studies_and_what_reads_them_import_without_the_heavy_packages():
    """Importing all of ``study`` and of READERS, with what READERS import inside functions, loads no heavy package."""
    names = {name for name in MODULES if room_of(name) in WITHOUT_TORCH}
    for name in [name for name in names if room_of(name) in READERS]:
        names |= own_imports(MODULES[name].read_text(encoding="utf-8")) & set(MODULES)
    loaded = loaded_after("import " + ", ".join(f"mfcore.{name}" for name in sorted(names - FACE)))
    assert {"mfcore", "pandas"} <= loaded
    assert not loaded & HEAVY
