"""pyproject.toml says what mfcore works with, pins.txt what it is reproduced with; everything else reads these two."""

import ast
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from test_notebooks import TINY

from mfcore.encoders.card import cards

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

READERS = ("Makefile", "pyproject.toml", "environment.yml", "binder/environment.yml", "Dockerfile", ".ci/run")


def requirements(*extras: str) -> dict[str, Requirement]:
    """The project's direct dependencies and those of its extras, by canonical name."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def alone() -> set[str]:
    """What `make env` installs without its dependencies, as only a file in it is read; no requirement can say that."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return {canonicalize_name(name) for name in re.findall(r"pip install --constraint pins\.txt --no-deps (\S+)", text)}


def pins() -> dict[str, str]:
    """pins.txt: exact version by canonical name; refuses a line that is neither a comment nor ``name==version``."""
    found = {}
    for number, line in enumerate((ROOT / "pins.txt").read_text(encoding="utf-8").splitlines(), start=1):
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)", line)
            assert match, f"pins.txt, line {number}: {line!r} is not name==version"
            assert match[1] not in found, f"pins.txt, line {number}: {match[1]} stands there twice"
            found[match[1]] = match[2]
    return found


def test_every_direct_dependency_is_pinned_within_its_range():
    """A pin that pyproject.toml forbids would make the install fail, a missing one would make it drift."""
    versions = pins()
    for name, requirement in requirements(*PROJECT["optional-dependencies"]).items():
        assert name in versions, f"{name} is a dependency but has no version in pins.txt"
        assert requirement.specifier.contains(versions[name]), f"pins.txt: {name}=={versions[name]} is outside {requirement}"


def test_packages_of_weights_are_pinned_at_the_version_of_their_card():
    """So that what `make env` installs is what the encoder's card names, whose error says the version to install."""
    versions = pins()
    named = {canonicalize_name(card.identifier): card.revision for card in cards().values() if card.source == "package"}
    assert named == {name: versions[name] for name in named}
    assert alone() == set(named) - set(requirements())


def test_ranges_bound_from_below_only():
    """pyproject.toml doesn't stop anybody's newer versions; exact ones stand in pins.txt alone."""
    for requirement in requirements(*PROJECT["optional-dependencies"]).values():
        assert {part.operator for part in requirement.specifier} <= {">="}, str(requirement)


def test_pins_are_sorted_and_leave_the_accelerator_open():
    """No local version such as +cpu and no CUDA package, so that the same list serves CPU and GPU builds of torch."""
    names = list(pins())
    assert names == sorted(names)
    assert not [name for name in names if name.startswith(("nvidia-", "cuda-"))]


def test_installed_versions_are_the_pinned_ones():
    """The environment that `make env` made is the one that the list describes."""
    if not (Path(sys.prefix) / "ready").is_file():
        pytest.skip(f"{sys.prefix} was not made by `make env`")
    assert not alone() - {canonicalize_name(d.metadata["Name"]) for d in importlib.metadata.distributions()}
    versions, wrong = pins(), []
    for distribution in importlib.metadata.distributions():
        name = canonicalize_name(distribution.metadata["Name"])
        if name in versions and Version(distribution.version).public != versions[name]:
            wrong.append(f"{name}: {distribution.version} installed, {versions[name]} pinned")
    assert not wrong, "\n".join(wrong)


def test_nothing_unpinned_is_installed():
    """What the direct dependencies bring is in the list too, so that an install next year is the same."""
    if not (Path(sys.prefix) / "ready").is_file():
        pytest.skip(f"{sys.prefix} was not made by `make env`")
    installed, pending = set(), [*requirements("notebooks", "test")]
    while pending:
        name = pending.pop()
        if name in installed:
            continue
        installed.add(name)
        for line in importlib.metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                pending.append(canonicalize_name(needed.name))
    by_torch = {name for name in installed if name.startswith(("nvidia-", "cuda-")) or name == "triton"}
    assert not installed - set(pins()) - by_torch


def test_conda_reads_the_same_list():
    """environment.yml installs the project with its tests from pins.txt, and gives no version but Python's."""
    content = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, *others, by_pip = content["dependencies"]
    assert by_pip == {"pip": ["--constraint pins.txt", "--editable .[notebooks,test]"]}
    assert others == ["pip", "make"]
    assert Version(python.removeprefix("python=")) in SpecifierSet(PROJECT["requires-python"])


def test_binder_reads_the_same_list():
    """binder/environment.yml is the other one, with paths as seen from its folder."""
    one = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    two = yaml.safe_load((ROOT / "binder" / "environment.yml").read_text(encoding="utf-8"))
    assert two["dependencies"][-1] == {"pip": ["--constraint ../pins.txt", "--editable ..[notebooks,test]"]}
    assert two | {"dependencies": two["dependencies"][:-1]} == one | {"dependencies": one["dependencies"][:-1]}


def docker_steps() -> list[list[str]]:
    """The Dockerfile's instructions, in order: the word that each begins with, and the rest."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]


def test_docker_makes_the_environment_as_everyone_does():
    """The Dockerfile installs Python packages by `make env` alone, with every file that this reads copied before."""
    steps = docker_steps()
    assert not re.search(r"\bpip3? install\b|\bconda\b", str(steps))
    (env,) = [n for n, (kind, rest) in enumerate(steps) if kind == "RUN" and re.search(r"\bmake env\b", rest)]
    copied = {name for kind, rest in steps[:env] if kind == "COPY" for name in rest.split()[1:]}
    assert {"Makefile", "pyproject.toml", "pins.txt", PROJECT["readme"], *PROJECT["license-files"]} <= copied
    assert "mfcore/__init__.py" in copied
    assert all((ROOT / name).exists() for name in copied)
    installed = next(rest for kind, rest in steps if kind == "RUN" and "apt-get install" in rest)
    assert {"ca-certificates", "git", "make", "python3", "python3-venv"} <= set(installed.split())


@pytest.mark.parametrize("file", READERS)
def test_exact_versions_stand_in_the_list_only(file):
    """No second place to forget when a version moves."""
    text = (ROOT / file).read_text(encoding="utf-8")
    names = "|".join(map(re.escape, pins()))
    assert not re.findall(rf"(?<![\w-])(?:{names})\s*={{1,2}}\s*v?\d[\w.]*", text, flags=re.IGNORECASE)


def test_docker_leaves_out_what_git_ignores():
    """Neither an environment nor results get into an image, and nothing that git tracks is kept out of it."""

    def patterns(file: str) -> set[str]:
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line and not line.startswith("#")]
        return {re.sub(r"^(!?)(\*\*)?/|/$", r"\1", line) for line in kept}

    assert patterns(".dockerignore") == patterns(".gitignore")


COMPARED = {"wsistream"}  # what a benchmark compares with where its user has it


def third_party(folder: str) -> set[str]:
    """Top-level names that the Python files of a folder import, less the standard library's and the project's own."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    own = {"mfcore", *(path.stem for path in (ROOT / folder).rglob("*.py"))}
    return found - set(sys.stdlib_module_names) - own - (COMPARED if folder == "benchmarks" else set())


@pytest.mark.parametrize(
    ("folder", "extra"),
    [
        ("mfcore", ["notebooks"]),
        ("notebooks", []),
        ("tests", ["notebooks", "test"]),
        ("benchmarks", ["notebooks", "test"]),
    ],
)
def test_every_import_is_declared(folder, extra):
    """What is imported is a direct dependency, not something that another package happens to bring."""
    distributions = importlib.metadata.packages_distributions()
    declared = set(requirements(*extra))
    undeclared = {
        name
        for name in third_party(folder)
        if not declared & {canonicalize_name(distribution) for distribution in distributions.get(name, [name])}
    }
    assert not undeclared, (
        f"{folder}/ imports {sorted(undeclared)}; declare them in pyproject.toml, pins.txt, docs/installation.md"
    )


def test_the_docs_give_a_reason_for_every_dependency():
    """Its table has one row for each direct dependency, each package of weights and no other, each with its reason."""
    text = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    section = text.split("## Dependencies", 1)[1].split("\n## ", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| `")]
    named = [canonicalize_name(name) for cell, _ in rows for name in re.findall(r"`([^`]+)`", cell)]
    assert sorted(named) == sorted([*requirements(*PROJECT["optional-dependencies"]), *alone()])
    assert all(reason for _, reason in rows)


def test_the_notebooks_find_their_kernel():
    """papermill starts the kernel python3 of this environment, which ipykernel leaves there when it is installed."""
    kernel = json.loads((Path(sys.prefix) / "share" / "jupyter" / "kernels" / "python3" / "kernel.json").read_text())
    assert Path(kernel["argv"][0]).name.startswith("python")
    assert "ipykernel_launcher" in kernel["argv"]


def test_an_installed_package_has_its_data_files():
    """Every file of the package that isn't Python is named in pyproject.toml, or a wheel would lack it."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, several in content["tool"]["setuptools"]["package-data"].items()
        for pattern in several
    ]
    files = [
        file.relative_to(ROOT) for file in (ROOT / "mfcore").rglob("*") if file.is_file() and "__pycache__" not in file.parts
    ]
    data = [file for file in files if file.suffix != ".py"]
    assert data and not [str(file) for file in data if not any(file.match(pattern) for pattern in patterns)]


def copied(names: list[str], folder: Path) -> None:
    """Copy files of the project, by their paths in it, into a folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)


def installed(way: str, folder: Path, how: dict) -> Path:
    """Install what environment.yml or the Dockerfile lists, in a copy of the project; returns the Python that has it."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    if way == "Dockerfile":
        for kind, rest in docker_steps():
            if kind == "COPY" and "." not in rest.split()[1:]:
                copied([name for name in rest.split()[1:-1] if (ROOT / name).is_file()], folder)
            elif kind == "RUN" and "make env" in rest:
                subprocess.run(rest, shell=True, check=True, **how)
        copied(tracked, folder)
        return folder / ".venv" / "bin" / "python"
    copied(tracked, folder)
    by_pip = yaml.safe_load((folder / way).read_text(encoding="utf-8"))["dependencies"][-1]["pip"]
    subprocess.run([sys.executable, "-m", "venv", folder / "fresh"], check=True, **how)
    python = folder / "fresh" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", *shlex.split(" ".join(by_pip))], check=True, **how)
    return python


@pytest.mark.parametrize("way", ["environment.yml", "Dockerfile"])
def test_what_is_listed_is_enough_for_a_study(way, started):
    """A tiny study runs to its supplement in an environment that holds what the file lists, and nothing else."""
    if "FRESH_ENVIRONMENT" not in os.environ:
        pytest.skip("installs gigabytes from PyPI and runs a study: set FRESH_ENVIRONMENT=1 to run it")
    study = yaml.safe_load(TINY)  # without what fails there on purpose
    study |= {"encoders": ["random:test_vit", "own"], "pretraining": study["pretraining"][:1]}
    study["tasks"] = [task | {"encoders": ["own"]} for task in study["tasks"]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
        how = {"cwd": folder, "env": clean}
        python = installed(way, folder, how)
        (folder / "studies" / "tiny.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
        command = [python, "-m", "mfcore.sweep", "paper", "--study", "tiny", "--cores", "2"]
        assert started(command, **how).wait() == 0
        assert (folder / "results" / "tiny" / "supplement" / "index.html").is_file()
