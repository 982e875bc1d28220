"""The front page: the question, what was found, key figures, arms, failures, data, how to cite."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import yaml

from mfcore import store
from mfcore.study.config import MODES, Settings
from mfcore.sweep.book import markdown, pages
from mfcore.sweep.book.markdown import text
from mfcore.sweep.book.notebooks import Run

CITATION = Path(__file__).parents[3] / "CITATION.cff"
FOUND, DATA = "05_arms", "05_data"  # exhibits of `mfcore.analysis.overview`
KEY_FIGURES = ("05_data_scaling", "05_ranking", "06_cross_domain")


def page(study: Settings, results: Path, runs: Sequence[Run]) -> str:
    """The front page, without its navigation."""
    figures = results / "figures"
    there = {name for name in (FOUND, DATA, *KEY_FIGURES) if (figures / f"{name}.json").is_file()}
    body = [f"# {text(study.title)}\n", _badges(study)]
    if FOUND in there:
        body.append(markdown.caption(store.read_json(figures / f"{FOUND}.json")["caption"]) + "\n")
    body.append(_lacking(runs))
    shown = [name for name in KEY_FIGURES if name in there]
    body += [pages.exhibit(figures, name, up="") for name in shown]
    if FOUND in there:
        body.append(f"## Arms\n\n{markdown.table(pages.rows_of(figures / f'{FOUND}.csv'))}")
    if DATA in there:
        body.append(pages.exhibit(figures, DATA, up=""))
    return "\n".join([*body, _citation(study)])


def _badges(study: Settings) -> str:
    """The mode, and every switch with its value; those that depart from the mode stand out."""
    usual, badges = MODES[study.mode], [f"{{bdg-primary}}`{study.mode} mode`"]
    badges += ["{bdg-warning}`synthetic data`"] * study.synthetic
    for name, value in dataclasses.asdict(study.switches).items():
        kind = "bdg-muted-line" if value == getattr(usual, name) else "bdg-warning"
        shown = str(value).lower() if isinstance(value, bool) else value
        badges.append(f"{{{kind}}}`{name}: {shown}`")
    return " ".join(badges) + "\n"


def _lacking(runs: Sequence[Run]) -> str:
    """A box with every run that failed or is missing, and why; empty where all are done."""
    rows = [{"run": run.name, "state": run.state, "reason": run.reason} for run in runs if run.state != "done"]
    if not rows:
        return ""
    return markdown.box("error", f"**{len(rows)} of {len(runs)} runs failed or are missing.**\n\n{markdown.table(rows)}")


def _citation(study: Settings) -> str:
    """How to cite, from CITATION.cff, and how to make the numbers again."""
    lines = ["## How to cite\n"]
    if CITATION.is_file():
        this = yaml.safe_load(CITATION.read_text(encoding="utf-8"))
        works = [this | {"doi": f"version {this['version']}"}, *this.get("references", [])]
        lines += [f"- {text(_reference(work))}" for work in works]
    lines.append(f"\nTo compute every number again:\n\n    make paper STUDY={' '.join(study.name.split())}\n")
    return "\n".join(lines)


def _reference(work: dict) -> str:
    """A work in one line: authors, year, title, where it is."""
    authors = [one.get("name") or f"{one['family-names']} {one['given-names'][0]}" for one in work["authors"]]
    where = work.get("doi") or ", ".join(one["value"] for one in work.get("identifiers", []))
    year = f" ({work['year']})" if "year" in work else ""
    return f"{', '.join(authors)}{year}: {work['title']}. {where}".strip()
