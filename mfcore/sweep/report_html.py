"""What the supplement's pages are made of: tables, figures and captions as HTML, in one template."""

import html
import re
import textwrap
from numbers import Integral
from pathlib import Path

import pandas as pd

from mfcore.analysis import exhibit
from mfcore.study.config import Settings

TEMPLATES = Path(__file__).parent / "templates"
BADGE = "display: inline-block; padding: .1rem .6rem; border: 1px solid #b3541e; border-radius: 1rem; color: #8a3d12"
UNBROKEN = 26  # characters of a cell with a number, at most, that stand in one line
HEADING = (11, 16)  # characters of a column's name before it goes on in the next line: as its cells, between these


def render(template: str, study: Settings, **content: object) -> str:
    """A page of the supplement; a name that the template uses and ``content`` lacks is an error.

    No line of it breaks between a number and its per cent sign.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, autoescape=True)
    page = environment.get_template(template).render(study=study, badge=BADGE, **content)
    return re.sub(r"(?<=\d)\s%", "\N{NO-BREAK SPACE}%", page)


def table(content: pd.DataFrame, escape: bool = True) -> str:
    """A table; underscores in its columns' names and breaks in its texts become spaces, missing values a dash.

    Whole numbers get their commas, short cells with numbers stay in one line, and long names of columns take several: a wide
    table fits the page.
    """
    named = content.rename(columns=lambda name: str(name).replace("_", " ")).map(_cell)
    written = named.to_html(index=False, border=0, escape=escape, na_rep="–")
    longest = iter([max((len(str(value)) for value in named.iloc[:, i]), default=0) for i in range(named.shape[1])])

    def heading(found: re.Match) -> str:
        width = min(max(HEADING[0], next(longest)), HEADING[1])
        return f"<th>{'<br>'.join(textwrap.wrap(found[1], width, break_long_words=False))}</th>"

    return re.sub(r"<th>(.*?)</th>", heading, written)


def _cell(value: object) -> object:
    if isinstance(value, Integral) and not isinstance(value, bool):
        return f"{value:,}"
    if not isinstance(value, str):
        return value
    text = " ".join(value.split())  # pandas would write \\n
    text = re.sub(r"(?<=\de)-(?=\d)", "\N{NON-BREAKING HYPHEN}", text)  # of 5e-5
    if len(text) > UNBROKEN or "<" in text or not re.search(r"\d", text):
        return text
    return re.sub(r" (?![\[(])", "\N{NO-BREAK SPACE}", text)  # an interval in brackets may go on in the next line


def figure(results: Path, name: str, caption: str = "") -> str:
    """A figure of ``results/figures`` with its caption and links; a sentence where its notebook failed.

    caption: "" for that of the exhibit which the notebook saved.
    """
    needed = ("png",) if caption else ("png", "json")
    if not all((results / "figures" / f"{name}.{suffix}").is_file() for suffix in needed):
        return "<p class='failed'>The figure is missing: its notebook failed.</p>"
    if not caption:
        saved = exhibit.load(results / "figures", name)
        caption = f"**{saved['title']}.** {saved['caption']}"
    links = " · ".join(f'<a href="figures/{name}.{suffix}">{suffix.upper()}</a>' for suffix in ("pdf", "csv"))
    plain = caption.replace("**", "").replace("`", "")
    image = f'<a href="figures/{name}.png"><img src="figures/{name}.png" alt="{html.escape(plain)}"></a>'
    return f"<figure>{image}<figcaption>{rich(caption)} {links}</figcaption></figure>"


def rich(caption: str) -> str:
    """A caption's bold beginning as HTML; nothing else of markdown occurs in captions."""
    parts = html.escape(caption.replace("`", "")).split("**")
    return "".join(f"<b>{part}</b>" if i % 2 else part for i, part in enumerate(parts))
