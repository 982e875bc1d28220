"""Who may import whom: read off the syntax trees, so that an import inside a function counts too."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mfcore"

# A package, and the packages that it may import besides itself. A new package names itself here.
LAYERS = {
    "base": set(),
    "measures": {"base"},
    "study": {"base", "measures"},
    "data": {"base", "measures", "study"},
    "encoders": {"base", "measures", "study", "data"},
    "training": {"base", "measures", "study", "data", "encoders"},
    "pretraining": {"base", "measures", "study", "data", "encoders"},
    "tasks": {"base", "measures", "study", "data", "encoders", "training"},
    "analysis": {"base", "measures", "study", "data", "encoders", "tasks"},
    "claims": {"base", "measures", "study", "data", "encoders", "tasks", "analysis"},
    "sweep": {"base", "measures", "study", "data", "encoders", "tasks", "analysis", "claims"},
}
BASE = {"store", "streams"}  # the modules outside any package

# Single imports across that order that are meant.
SHARED = {
    "training.processes": {"pretraining"},  # who does what of several processes
    "data.labels.source": {"study"},  # what a study must know of its data source; it knows no study itself
}

# A procedure stands alone: what it made is read from its files, never by importing it. One module calls several in turn.
PROCEDURES = {
    "embed": ("encoders.embed",),
    "probe": (
        "training.probe",
        "training.probe_audit",
        "training.probe_estimators",
    ),
    "train": ("training.train", "training.loop", "training.feed", "training.task"),
    "pretrain": ("pretraining",),
    "judge": ("tasks.judge",),
    "segment": ("tasks.segment", "tasks.segment_decoder"),
}
CALLS_PROCEDURES = {"sweep.switches"}

# Seconds to import, or a library of the system that may lack: imported by the functions that use them.
HEAVY = {"torch", "torchvision", "timm", "transformers", "peft", "openslide", "tifffile"}
WITH_TORCH = {"encoders", "training", "pretraining"}  # as it is imported; procedures too
WITHOUT_TORCH = {"base", "measures", "study", "analysis", "claims", "sweep"}  # not even inside a function
TORCH_PACKAGES = {"torch", "torchvision", "timm", "transformers", "safetensors.torch"}


def modules() -> dict[str, Path]:
    """Every module by its dotted name below mfcore, e.g. "streams" or "data.labels.midog"; packages by their own name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


MODULES = modules()


def layer_of(module: str) -> str:
    """The package of a module; raises KeyError where it has none."""
    first = module.split(".")[0]
    if first in BASE:
        return "base"
    if first in LAYERS:
        return first
    raise KeyError(f"mfcore.{module} has no layer; name it in LAYERS of {Path(__file__).name}")


def procedure_of(module: str) -> str:
    """The procedure that a module is part of; empty for most."""
    for name, parts in PROCEDURES.items():
        if module in parts or module.split(".")[0] in parts:
            return name
    return ""


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
    """What is wrong with a module's imports, one line each."""
    layer, procedure, found = layer_of(module), procedure_of(module), []
    for name, at_import, line in imports(ast.parse(source)):
        here = f"mfcore.{module}, line {line}: imports {name}"
        top = name.split(".")[0]
        if name.startswith("."):
            found.append(f"{here}: written as a relative import")
        elif top == "mfcore" and name.count("."):
            target = module_in(name)
            if target.startswith("__") or layer in SHARED.get(target, ()):
                continue
            is_told = procedure_of(target) in ("", procedure)
            if module in CALLS_PROCEDURES and not is_told:
                continue
            if layer_of(target) not in LAYERS[layer] | {layer}:
                found.append(f"{here}: {layer} may import {sorted(LAYERS[layer])}, this is {layer_of(target)}")
            elif not is_told:
                found.append(f"{here}: part of the procedure {procedure_of(target)}, which is read from its files")
        elif layer in WITHOUT_TORCH and any(name == p or name.startswith(f"{p}.") for p in TORCH_PACKAGES):
            found.append(f"{here}: {layer} works without torch")
        elif at_import and top in HEAVY and not (top == "torch" and (layer in WITH_TORCH or procedure)):
            found.append(f"{here}: heavy, to be imported by the function that uses it")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_from_the_layers_below(module):
    """Each module keeps to its layer."""
    assert not faults(module, MODULES[module].read_text(encoding="utf-8"))


def test_what_the_tables_name_is_there():
    """A module that was renamed or removed leaves no name behind."""
    named = {*BASE, *SHARED, *CALLS_PROCEDURES, *(part for parts in PROCEDURES.values() for part in parts)}
    assert {*named, *LAYERS} - {"base"} <= set(MODULES)


def test_no_two_modules_import_each_other():
    """Within a layer, too, imports go one way."""
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
        ("measures.binary", "from mfcore.study.config import Study", "this is study"),
        ("encoders.card", "from mfcore.training import adapt", "this is training"),
        ("training.probe", "from mfcore.training import train", "the procedure train"),
        ("training.train", "from mfcore.pretraining import objective", "this is pretraining"),
        ("pretraining.loop", "from mfcore.training import adapt", "this is training"),
        ("encoders.network", "from mfcore.encoders import embed", "the procedure embed"),
        ("tasks.registry", "from mfcore.tasks import judge", "the procedure judge"),
        ("analysis.compare", "from mfcore.tasks import segment", "the procedure segment"),
        ("sweep.book.book", "from mfcore.training import probe", "this is training"),
        ("analysis.compare", "from mfcore.claims import ledger", "this is claims"),
        ("claims.ledger", "from mfcore.sweep.book import book", "this is sweep"),
        ("measures.binary", "def f():\n    import torch", "without torch"),
        ("analysis.figures", "def f():\n    from safetensors.torch import load_file", "without torch"),
        ("analysis.figures", "from mfcore import __version__\nimport timm.data", "without torch"),
        ("data.slides.slide", "import openslide", "heavy"),
        ("data.slides.slide", "try:\n    from openslide import OpenSlide\nexcept OSError:\n    pass", "heavy"),
        ("encoders.network", "import torchvision", "heavy"),
        ("tasks.task", "import torch", "heavy"),
        ("data.labels.table", "from .config import Study", "relative"),
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
        ("pretraining.loop", "from mfcore.pretraining import objective\nfrom mfcore import encoders"),
        ("pretraining.loop", "from mfcore.training import processes"),
        ("analysis.compare", "from mfcore import store\nfrom mfcore.measures import statistics"),
        ("training.probe_audit", "from mfcore.training import probe"),
        ("tasks.judge", "import torch\nfrom mfcore.tasks import registry\nfrom mfcore.training import heads"),
        ("sweep.switches", "from mfcore.encoders import embed\nfrom mfcore.training import probe, train"),
    ],
)
def test_what_is_allowed_passes(module, source):
    """No false alarm on the allowed neighbours of the rules."""
    assert not faults(module, source)


def test_a_module_without_a_layer_is_refused():
    """A new module can't stand outside the table."""
    with pytest.raises(KeyError, match="has no layer"):
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


def test_all_modules_import_without_the_heavy_packages():
    """Importing every module that needs no model loads none of the heavy packages, not even through others."""
    light = {"encoders", "encoders.card"}  # its other modules need torch, or bring what does
    names = [
        name
        for name in MODULES
        if (layer_of(name) not in WITH_TORCH or name in light) and not procedure_of(name) and name not in CALLS_PROCEDURES
    ]
    loaded = loaded_after("import " + ", ".join(f"mfcore.{name}" for name in names))
    assert {"mfcore", "pandas"} <= loaded
    assert not loaded & HEAVY
