"""The front page: question, what was found, figures, arms, failures, data, mode, how to cite."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from mfcore import store
from mfcore.study.config import MODES, Settings, as_dict
from mfcore.sweep.book import markdown, pages
from mfcore.sweep.book.exhibits import exhibit, links, rows_of
from mfcore.sweep.book.markdown import text
from mfcore.sweep.book.notebooks import Run

CITATION = Path(__file__).parents[3] / "CITATION.cff"
KEY_FIGURES = ("05_data_scaling", "05_ranking", "06_cross_domain")  # exhibits
QUESTION = (
    "Does a linear probe on a frozen encoder separate the classes {positive} and {negative} better "
    "than a network trained end to end, with few and with many training patches{elsewhere}?"
)


def page(study: Settings, figures: Path, runs: Sequence[Run]) -> str:
    """The front page, without its navigation."""
    elsewhere = ", and in domains that training did not see" * study.splits.by_domain
    classes = {"positive": study.data.positive, "negative": study.data.negative}
    asked = QUESTION.format(**classes, elsewhere=elsewhere)
    body = [f"# {text(study.title)}\n", f"**{text(asked)}**\n"]
    arms, there = rows_of(figures / "05_arms.csv"), {file.stem for file in figures.glob("*.json")}
    if arms:
        body.append(markdown.caption(store.read_json(figures / "05_arms.json")["caption"]) + "\n")
    body.append(pages.verdicts(figures, study.synthetic))
    shown = [exhibit(figures, name, "### {}", "") for name in KEY_FIGURES if name in there]
    body += ["## Key figures\n", *shown] if shown else []
    if arms:
        words = f"AUROC by share of the training patches. {links('05_arms', 'csv', up='')}"
        body.append(f"## Arms\n\n{words}\n\n{markdown.table(arms)}")
    if lacking := pages.lacking(runs):
        body.append(f"## Failed and missing runs\n\n{lacking}")
    body += [exhibit(figures, "05_data", up="")] if "05_data" in there else []
    body.append(f"## Mode\n\n{_badges(study)}")
    if "05_switches" in there:
        place = pages.document("Switches")
        body.append(f"What each switch is worth on these data: {{doc}}`/{place}`.\n")
    return "\n".join([*body, _citation(study)])


def _badges(study: Settings) -> str:
    """The mode, and every switch with its value; those that depart from the mode stand out."""
    usual, badges = MODES[study.mode], [f"{{bdg-primary}}`{study.mode} mode`"]
    badges += ["{bdg-warning}`synthetic data`"] * study.synthetic
    for name, value in as_dict(study.switches).items():
        kind = "bdg-muted-line" if value == getattr(usual, name) else "bdg-warning"
        shown = str(value).lower() if isinstance(value, bool) else value
        badges.append(f"{{{kind}}}`{name}: {shown}`")
    return " ".join(badges) + "\n"


def _citation(study: Settings) -> str:
    """How to cite, from CITATION.cff, and how to make the numbers again."""
    lines = ["## How to cite\n"]
    if CITATION.is_file():
        this = yaml.safe_load(CITATION.read_text(encoding="utf-8"))
        works = [this | {"doi": f"version {this['version']}"}, *this.get("references", [])]
        lines += [f"- {_reference(work)}" for work in works]
    command = f"make paper STUDY={' '.join(study.name.split())}"
    return "\n".join([*lines, f"\nTo compute every number again:\n\n    {command}\n"])


def _reference(work: dict) -> str:
    """A work in one line of Markdown: authors, year, title, and where it is; a DOI is a link."""
    authors = []
    for one in work["authors"]:
        authors.append(one.get("name") or f"{one['family-names']} {one['given-names'][0]}")
    where = work.get("doi") or ", ".join(one["value"] for one in work.get("identifiers", []))
    year = f" ({work['year']})" if "year" in work else ""
    place = (
        f"[{text(where)}](<https://doi.org/{where}>)" if where.startswith("10.") else text(where)
    )
    words = f"{', '.join(authors)}{year}: {work['title']}."
    return f"{text(words)} {place}".strip()
