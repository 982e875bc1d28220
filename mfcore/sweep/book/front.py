"""The front page: the question, what was found, failures, key figures, data, arms, how to cite."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from mfcore import store
from mfcore.study.config import MODES, Settings, as_dict
from mfcore.sweep.book import markdown
from mfcore.sweep.book.exhibits import exhibit, rows_of
from mfcore.sweep.book.markdown import text
from mfcore.sweep.book.notebooks import Run

CITATION = Path(__file__).parents[3] / "CITATION.cff"
SHOWN = ("05_data_scaling", "05_ranking", "06_cross_domain", "05_data")  # exhibits; 05_arms besides


def page(study: Settings, results: Path, runs: Sequence[Run]) -> str:
    """The front page, without its navigation."""
    figures = results / "figures"
    arms = rows_of(figures / "05_arms.csv")
    there = [name for name in SHOWN if (figures / f"{name}.json").is_file()]
    shown = [exhibit(figures, name, up="") for name in there]
    body = [f"# {text(study.title)}\n", _badges(study)]
    if arms:
        body.append(markdown.caption(store.read_json(figures / "05_arms.json")["caption"]) + "\n")
        shown.append(f"## Arms\n\n{markdown.table(arms)}")
    return "\n".join([*body, _lacking(runs), *shown, _citation(study)])


def _badges(study: Settings) -> str:
    """The mode, and every switch with its value; those that depart from the mode stand out."""
    usual, badges = MODES[study.mode], [f"{{bdg-primary}}`{study.mode} mode`"]
    badges += ["{bdg-warning}`synthetic data`"] * study.synthetic
    for name, value in as_dict(study.switches).items():
        kind = "bdg-muted-line" if value == getattr(usual, name) else "bdg-warning"
        shown = str(value).lower() if isinstance(value, bool) else value
        badges.append(f"{{{kind}}}`{name}: {shown}`")
    return " ".join(badges) + "\n"


def _lacking(runs: Sequence[Run]) -> str:
    """A box with every run that failed or is missing, and why; empty where all are done."""
    lacking = [run for run in runs if run.state != "done"]
    rows = [{"run": run.name, "state": run.state, "reason": run.reason} for run in lacking]
    if not rows:
        return ""
    words = f"**{len(rows)} of {len(runs)} runs failed or are missing.**"
    return markdown.box("error", f"{words}\n\n{markdown.table(rows)}")


def _citation(study: Settings) -> str:
    """How to cite, from CITATION.cff, and how to make the numbers again."""
    lines = ["## How to cite\n"]
    if CITATION.is_file():
        this = yaml.safe_load(CITATION.read_text(encoding="utf-8"))
        works = [this | {"doi": f"version {this['version']}"}, *this.get("references", [])]
        lines += [f"- {text(_reference(work))}" for work in works]
    command = f"make paper STUDY={' '.join(study.name.split())}"
    return "\n".join([*lines, f"\nTo compute every number again:\n\n    {command}\n"])


def _reference(work: dict) -> str:
    """A work in one line: authors, year, title, where it is."""
    authors = []
    for one in work["authors"]:
        authors.append(one.get("name") or f"{one['family-names']} {one['given-names'][0]}")
    where = work.get("doi") or ", ".join(one["value"] for one in work.get("identifiers", []))
    year = f" ({work['year']})" if "year" in work else ""
    return f"{', '.join(authors)}{year}: {work['title']}. {where}".strip()
