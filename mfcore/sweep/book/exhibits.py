"""Exhibits as their notebooks saved them, in MyST: figure or table, caption, links to files."""

import csv
from pathlib import Path

from mfcore import store
from mfcore.sweep.book import markdown

MAX_ROWS = 300  # of a table on a page; its CSV has all


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
        words = markdown.figure(f"{up}figures/{name}.png", words, alt)
    table = markdown.table(rows[:MAX_ROWS]) if rows else ""
    return f"{title.format(markdown.text(saved['title']))}\n\n{words}\n\n{table}"
