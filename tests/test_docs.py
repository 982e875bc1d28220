"""README and the pages of `docs/`: they build without a warning, and what they name is there."""

import ast
import itertools
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from mfcore.encoders.card import cards

ROOT = Path(__file__).parents[1]
OTHERS = ("README.md", "CONTRIBUTING.md", "REPRODUCING.md", "CLUSTER.md", "notebooks/README.md", "data/README.md")
PAGES = [ROOT / name for name in OTHERS] + sorted((ROOT / "docs").glob("*.md"))
UNCLEAR = ("at hand", "can't be had", "laid in by hand", "told apart", "what testing leaves", "foretell")


def text_of(page):
    """A page without its code blocks."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def sphinx(*options):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def anchors(page):
    """The addresses of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_is_read_in_six_minutes():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1500


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text_of(page)):
        file, _, anchor = target.partition("#")
        place = page.parent / file if file else page
        assert place.is_file(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(place), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_says_it_plainly(page):
    text = " ".join(text_of(page).split())
    assert not [words for words in UNCLEAR if words in text]


def test_what_the_code_says_of_pages_is_there():
    """A page of docs that a message, a comment or a notebook names exists, and README's sections are no longer named."""
    sources = [*(ROOT / "mfcore").rglob("*.py"), *(ROOT / "mfcore").rglob("*.yaml"), *(ROOT / "notebooks").glob("*.py")]
    sources += [ROOT / "Makefile", ROOT / "Snakefile", *PAGES]
    named = {(file.name, name) for file in sources for name in re.findall(r"\bdocs/[\w-]+\.md", file.read_text("utf-8"))}
    assert named and not {(file, name) for file, name in named if not (ROOT / name).is_file()}
    assert not [file.name for file in sources if re.search(r'README(\.md)?,? "', file.read_text("utf-8"))]


def test_readme_has_every_encoder_with_its_licence():
    """A row a licence; cards that depart from another one stand there by that one."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Encoders", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    listed = {name: licence.strip() for names, licence in rows for name in re.findall(r"`(\w+)`", names)}
    own = [card for card in cards().values() if not card.variant_of or card.licence != cards()[card.variant_of].licence]
    assert listed == {card.name: card.licence + ", gated" * card.gated for card in own}


def test_every_page_is_in_the_contents():
    contents = re.findall(r"^(?:.* <)?/([\w/-]+)>?$", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    pages = {page.relative_to(ROOT).with_suffix("").as_posix() for page in PAGES}
    assert set(contents) == pages - {"docs/index"} | {"benchmarks/README", "docs/api/modules"}


def test_the_docs_build_without_a_warning_or_a_foreign_request(tmp_path):
    """All but the API reference, which imports everything: its docstrings are read below."""
    settings = ["extensions=myst_nb", "exclude_patterns=docs/api,docs/build"]
    settings += ["suppress_warnings=mystnb.unknown_mime_type,myst.header,toc.excluded,toc.not_readable"]
    options = itertools.chain.from_iterable(("-D", setting) for setting in settings)
    done = sphinx("-b", "html", "-c", "docs", "-d", tmp_path / "trees", *options, ".", tmp_path / "html")
    assert not done.returncode and not done.stderr, done.stderr
    pages = list((tmp_path / "html").rglob("*.html"))
    assert len(pages) >= len(PAGES)
    for page in pages:
        loaded = re.findall(r'(?:src|<link[^>]* href)="(?:https?:)?//', page.read_text(encoding="utf-8"))
        assert not loaded, page.name


def test_every_docstring_reads_as_the_reference_reads_it(tmp_path):
    items, text = runpy.run_path(str(ROOT / "docs" / "conf.py"))["items"], ["Docstrings", "=========="]
    for file in sorted((ROOT / "mfcore").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and getattr(node, "name", "x")[0] != "_":
                lines = (ast.get_docstring(node) or "").splitlines()
                items(None, "", "", None, None, lines)
                text += ["", f".. in {file.name}: {getattr(node, 'name', 'the module')}", "", *lines]
    (tmp_path / "index.rst").write_text("\n".join(text), encoding="utf-8")
    done = sphinx("-C", "-b", "dummy", "-D", "default_role=py:obj", tmp_path, tmp_path / "out")
    assert not done.returncode and not done.stderr, done.stderr
