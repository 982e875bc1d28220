"""House rules that a reader would otherwise have to check by eye."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_LINES = 400

# Whoever installs chooses where packages come from, so no address of a registry stands here; these may.
HOSTS = {
    "github.com",
    "codeload.github.com",
    "huggingface.co",
    "zenodo.org",
    "figshare.com",
    "api.figshare.com",
    "ndownloader.figshare.com",
    "doi.org",
    "arxiv.org",
    "creativecommons.org",
    "127.0.0.1",
    "localhost",
}
MODULES = sorted((ROOT / "mfcore").rglob("*.py"))


def tracked() -> dict[str, str]:
    """Text of every file that git tracks, by its path; what isn't text is left out."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    texts = {}
    for name in filter(None, listed.stdout.split("\0")):
        content = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        if b"\0" not in content:
            texts[name] = content.decode("utf-8", errors="replace")
    return texts


def test_only_known_hosts_are_named():
    """An address in the code, a text or a notebook's output leads to a data set, a model or a paper."""
    found = {
        f"{name}: {host}"
        for name, text in tracked().items()
        for host in re.findall(r"\b(?:https?|ftp)://([\w.-]+)", text)
        if host.removeprefix("www.") not in HOSTS
    }
    assert not found


def test_no_path_of_one_machine_is_named():
    """Nothing points into the folders of whoever wrote it; outputs of committed notebooks included."""
    home = re.compile(r"(?<![\w.])/(?:root|home/\w+|Users/\w+|work|opt/\w+)/")
    found = {f"{name}: {match}" for name, text in tracked().items() for match in home.findall(text)}
    assert not found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_fits_in_one_sitting(path):
    """One concept a module: short, named after its subject, with nothing left to do later."""
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert not re.search(r"util|helper|misc|common", path.stem)
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_what_is_public_says_what_it_does(path):
    """Modules, and the classes and functions that others import from them, have a docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")]
    assert ast.get_docstring(tree)
    assert not [node.name for node in named if not ast.get_docstring(node)]
