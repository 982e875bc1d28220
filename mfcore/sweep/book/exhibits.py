"""Exhibits as their notebooks saved them, in MyST: figure or table, caption, links to files."""

import csv
from pathlib import Path

from mfcore import store
from mfcore.sweep.book import markdown

MAX_ROWS = 300  # of a table on a page; its CSV has all
DOTS_PER_INCH, PX_PER_INCH = 300, 96  # of figures, as mfcore.mplstyle saves them, and of pages


def rows_of(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file as text; none where there is no file."""
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def links(name: str, *kinds: str, up: str = "../") -> str:
    """Links to an exhibit's files; ``up`` leads from the page to the top of the book."""
    return " · ".join(f"{{download}}`{kind.upper()} <{up}figures/{name}.{kind}>`" for kind in kinds)


def exhibit(figures: Path, name: str, title: str = "## {}", up: str = "../") -> str:
    """An exhibit under its ``title``; ``up`` leads from the page to the top of the book."""
    saved = store.read_json(figures / f"{name}.json")
    is_figure, rows = (figures / f"{name}.png").is_file(), saved["readable"] or []
    rows = rows if is_figure or rows else rows_of(figures / f"{name}.csv")
    words = markdown.caption(saved["caption"])
    if len(rows) > MAX_ROWS:
        words += f" The first {MAX_ROWS} of {len(rows):,} rows."
    words += " " + links(name, *(["pdf"] if is_figure else []), "csv", up=up)
    if is_figure:
        alt = markdown.first_sentence(saved["caption"])
        width = f"{_width_px(figures / f'{name}.png')}px"
        words = markdown.figure(f"{up}figures/{name}.png", words, alt, width)
    table = markdown.table(rows[:MAX_ROWS]) if rows else ""
    return f"{title.format(markdown.text(saved['title']))}\n\n{words}\n\n{table}"


def _width_px(png: Path) -> int:
    """The width on a page of a figure in its printed size; a page that is narrower shrinks it."""
    with png.open("rb") as content:
        n_dots = int.from_bytes(content.read(20)[16:], "big")
    return round(n_dots * PX_PER_INCH / DOTS_PER_INCH)
