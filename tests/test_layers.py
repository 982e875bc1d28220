"""Who may import whom: read off the syntax trees, so that an import inside a function counts too."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mfcore"

# A new module names its layer here. `ssl` stands for the whole sub-package, `synthetic` for `synthetic_cells` and its like too.
LAYERS = {
    "base": {"config", "rng", "store", "metrics", "conventions"},
    "data": {"labels", "slides", "splits", "patches", "downloads", "augment", "synthetic", "effects", "pretrained", "tasks"},
    "models": {"cards", "weights", "preprocess", "encoders", "canary", "adapt", "processes"},
    "procedures": {"embed", "probe", "train", "judge", "segment", "ssl"},
    "report": {"compare", "raters", "statistics", "figures", "captions", "claims", "report"},
    "whole": {"switches"},
    "sweep": {"sweep", "pairs"},
}

# A procedure stands alone, and what it made is read from its files, never by importing it; "whole" calls several in turn.
MAY_IMPORT = {
    "base": {"base"},
    "data": {"base", "data"},
    "models": {"base", "data", "models"},
    "procedures": {"base", "data", "models"},
    "report": {"base", "data", "models", "report"},
    "whole": {"base", "data", "models", "procedures", "report", "whole"},
    "sweep": {"base", "data", "report", "sweep"},
}

# Seconds to import, or a library of the system that may lack: imported by the functions that use them.
HEAVY = {"torch", "torchvision", "timm", "transformers", "peft", "openslide", "tifffile"}
WITHOUT_TORCH = {"base", "report", "sweep"}
TORCH_PACKAGES = {"torch", "torchvision", "timm", "transformers", "safetensors.torch"}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below mfcore, e.g. "rng" or "ssl.dino"; packages by their own name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


def subject_of(module: str) -> str:
    """What a module is about: "probe" for probe, probe_solver and probe.parts alike."""
    return module.split(".")[0].split("_")[0]


def layer_of(module: str) -> str:
    """The layer of a module; raises KeyError where it has none."""
    subject = subject_of(module)
    for layer, subjects in LAYERS.items():
        if subject in subjects:
            return layer
    raise KeyError(f"mfcore.{module} has no layer; name it in LAYERS of {Path(__file__).name}")


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


def own_imports(source: str) -> set[str]:
    """Modules below mfcore that the source imports anywhere."""
    return {name.split(".")[1] for name, _, _ in imports(ast.parse(source)) if name.startswith("mfcore.")}


def faults(module: str, source: str) -> list[str]:
    """What is wrong with a module's imports, one line each."""
    layer, subject, found = layer_of(module), subject_of(module), []
    for name, at_import, line in imports(ast.parse(source)):
        here = f"mfcore.{module}, line {line}: imports {name}"
        top = name.split(".")[0]
        if name.startswith("."):
            found.append(f"{here}: written as a relative import")
        elif top == "mfcore" and name.count("."):
            target = name.split(".")[1]
            if target.startswith("__"):
                continue
            if subject_of(target) != subject and layer_of(target) not in MAY_IMPORT[layer]:
                found.append(f"{here}: {layer} may import {sorted(MAY_IMPORT[layer])}, this is {layer_of(target)}")
        elif layer in WITHOUT_TORCH and any(name == p or name.startswith(f"{p}.") for p in TORCH_PACKAGES):
            found.append(f"{here}: {layer} works without torch")
        elif at_import and top in HEAVY and not (top == "torch" and layer in ("models", "procedures")):
            found.append(f"{here}: heavy, to be imported by the function that uses it")
    return found


@pytest.mark.parametrize("module", modules())
def test_module_imports_only_from_the_layers_above(module):
    """Each module keeps to its layer."""
    assert not faults(module, modules()[module].read_text(encoding="utf-8"))


def test_no_two_modules_import_each_other():
    """Within a layer, too, imports go one way."""
    graph = {}
    for name, path in modules().items():
        if "." not in name:
            graph[name] = own_imports(path.read_text(encoding="utf-8")) - {name}
    while leaves := [name for name, targets in graph.items() if not targets & set(graph)]:
        for name in leaves:
            del graph[name]
    assert not graph, f"these import one another in a circle: {sorted(graph)}"


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("rng", "from mfcore import labels", "this is data"),
        ("rng", "from mfcore.labels import load", "this is data"),
        ("rng", "import mfcore.labels", "this is data"),
        ("labels", "def load():\n    from mfcore import encoders", "this is models"),
        ("probe", "from mfcore import train", "this is procedures"),
        ("train", "from mfcore.ssl import dino", "this is procedures"),
        ("report", "from mfcore import probe", "this is procedures"),
        ("sweep", "from mfcore import encoders", "this is models"),
        ("sweep", "from mfcore import switches", "this is whole"),
        ("report", "from mfcore import switches", "this is whole"),
        ("metrics", "def f():\n    import torch", "without torch"),
        ("figures", "def f():\n    from safetensors.torch import load_file", "without torch"),
        ("figures", "from mfcore import __version__\nimport timm.data", "without torch"),
        ("slides", "import openslide", "heavy"),
        ("slides", "try:\n    from openslide import OpenSlide\nexcept OSError:\n    pass", "heavy"),
        ("encoders", "import torchvision", "heavy"),
        ("labels", "from .config import Study", "relative"),
    ],
)
def test_a_broken_rule_is_seen(module, source, fault):
    """The checker can fail: every rule broken once."""
    (found,) = faults(module, source)
    assert fault in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rng", "from mfcore import __version__"),
        ("encoders", "import torch\nfrom mfcore import rng, slides"),
        ("augment", "import typing\nif typing.TYPE_CHECKING:\n    import torch"),
        ("slides", "class A:\n    def read(self):\n        import openslide"),
        ("ssl.dino", "from mfcore.ssl import heads\nfrom mfcore import encoders"),
        ("compare", "from mfcore import statistics, store"),
        ("probe", "from mfcore.probe_solver import solve"),
        ("switches", "from mfcore import compare_effects, embed, probe, train"),
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
    """Importing every module of the layers that need no model loads none of the heavy packages, not even through others."""
    names = [name for name in modules() if layer_of(name) not in ("models", "procedures", "whole")]
    loaded = loaded_after("import " + ", ".join(f"mfcore.{name}" for name in names))
    assert {"mfcore", "pandas"} <= loaded
    assert not loaded & HEAVY
