"""What the supplement's pages are made of: tables, figures and captions as HTML, in one template."""

import html
from pathlib import Path

import pandas as pd

from mfcore.config import Study

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, study: Study, **content: object) -> str:
    """A page of the supplement; a name that the template uses and ``content`` lacks is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, autoescape=True)
    return environment.get_template(template).render(study=study, **content)


def table(content: pd.DataFrame, escape: bool = True) -> str:
    """A table; underscores in its columns' names and breaks in its texts become spaces, missing values a dash."""
    named = content.rename(columns=lambda name: str(name).replace("_", " "))
    named = named.map(lambda value: " ".join(value.split()) if isinstance(value, str) else value)  # pandas would write \\n
    return named.to_html(index=False, border=0, escape=escape, na_rep="–")


def figure(results: Path, name: str, caption: str) -> str:
    """A figure of ``results/figures`` with its caption and links; a sentence where its notebook failed."""
    if not (results / "figures" / f"{name}.png").is_file():
        return "<p class='failed'>The figure is missing: its notebook failed.</p>"
    links = " · ".join(f'<a href="figures/{name}.{suffix}">{suffix.upper()}</a>' for suffix in ("pdf", "csv"))
    plain = caption.replace("**", "").replace("`", "")
    image = f'<a href="figures/{name}.png"><img src="figures/{name}.png" alt="{html.escape(plain)}"></a>'
    return f"<figure>{image}<figcaption>{rich(caption)} {links}</figcaption></figure>"


def rich(caption: str) -> str:
    """A caption's bold beginning as HTML; nothing else of markdown occurs in captions."""
    parts = html.escape(caption.replace("`", "")).split("**")
    return "".join(f"<b>{part}</b>" if i % 2 else part for i, part in enumerate(parts))
