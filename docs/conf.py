"""How Sphinx makes the documentation; its source is the repository, so that links work there too.

`sphinx -c docs . TARGET`, which `make docs` calls. The look is that of the supplement.
"""

import inspect
import os
from itertools import groupby

from mfcore.sweep.book.conf import *  # noqa: F403

extensions = ["myst_nb", "sphinx.ext.apidoc", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = [
    *("README.md", "REPRODUCING.md", "CLUSTER.md", "CONTRIBUTING.md"),
    *("notebooks/README.md", "data/README.md", "benchmarks/README.md"),
    *("docs/*.md", "docs/api/*.rst", "notebooks/*.ipynb"),
]
exclude_patterns = ["docs/build", ".venv", ".git", "results", "data/*/**"]
html_title = "mfcore"
html_static_path = ["../mfcore/sweep/book/supplement.css", "phone.css"]
html_css_files, html_js_files = ["supplement.css", "phone.css"], []

myst_disable_syntax = []  # nothing here was written by a stranger
myst_heading_anchors = 3

apidoc_modules = [
    {
        "path": "../mfcore",
        "destination": "docs/api",
        "exclude_patterns": ["../mfcore/sweep/book/conf.py", "../mfcore/**/__main__.py"],
        "module_first": True,
    }
]
os.environ["SPHINX_APIDOC_OPTIONS"] = "members,show-inheritance"  # Sphinx 9.0 takes no setting
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
default_role = "py:obj"  # `name` of a docstring: a link where there is one


def items(app, what, name, obj, options, lines):
    """Make a list of each paragraph whose lines hang, as docstrings have their parameters."""
    text = []
    for is_blank, paragraph in groupby(lines, key=lambda line: not line.strip()):
        paragraph = list(paragraph)
        is_list = not is_blank and any(line.startswith("    ") for line in paragraph[1:])
        if is_list and not paragraph[0].startswith(" "):
            paragraph = [line if line.startswith(" ") else f"* {line}" for line in paragraph]
            paragraph = ["  " + line.strip() if line[0] == " " else line for line in paragraph]
        text += paragraph
    lines[:] = text


def signature(app, what, name, obj, options, arguments, returns):
    """Name the options of a class whose fields are checked, without the checks."""
    if what == "class" and "Annotated" in (arguments or ""):
        return f"({', '.join(inspect.signature(obj).parameters)})", returns


def setup(app):
    """Connect `items` and `signature`."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", items)
    app.connect("autodoc-process-signature", signature)
