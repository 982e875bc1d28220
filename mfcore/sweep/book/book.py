"""The supplement: a book of Sphinx made of a study's files. It reads them and computes nothing."""

import html
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import nbformat

from mfcore import store
from mfcore.study.config import Settings
from mfcore.sweep.book import front, markdown, notebooks, pages
from mfcore.sweep.book.exhibits import exhibit
from mfcore.sweep.book.notebooks import Run

HERE = Path(__file__).parent
STAGES = {  # the part of the book that has a notebook's pages, and their title
    "01_extract_patches": ("data", "Patches and splits"),
    "02_embed": ("runs", "Embeddings"),
    "03_linear_probe": ("runs", "Linear probes"),
    "04_train_end_to_end": ("runs", "End-to-end trainings"),
    "05_data_scaling": ("results", "Data scaling"),
    "06_cross_domain_analysis": ("results", "Across domains"),
    "07_online_patching": ("results", "Online patching"),
    "08_pretrain": ("runs", "Pretrainings"),
    "09_downstream_tasks": ("runs", "Downstream tasks"),
    "10_representations": ("results", "Representations"),
    "11_pretraining_studies": ("results", "Pretraining studies"),
    "12_explore": ("results", "Single patches"),
    "13_external_test": ("results", "Tested on other data"),
}
PARTS = {"results": "Results", "data": "Data", "reference": "Reference", "runs": "Every run"}
# Sections of exhibits that have a page of reference; other exhibits stand in their notebooks.
AUDITS = ("Audit of the splits", "Audit of the probe")
REFERENCE = ("Encoders", "Conventions", *AUDITS, "Switches", "Provenance")


class BookError(RuntimeError):
    """The supplement can't be built; the message is that of Sphinx."""


def build(study: Settings, results: Path, jobs: Mapping) -> Path:
    """Build ``results/supplement`` aside and rename it; returns the path of its index.html.

    jobs: the study's, by name (`mfcore.sweep.jobs.jobs_of`). Runs that failed or are missing are
    named with their reasons. Raises BookError where Sphinx fails; the supplement that was there
    then stays.
    """
    aside, target = results / ".supplement", results / "supplement"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        runs = [notebooks.run_of(job, results) for job in jobs.values() if job.notebook]
        write_source(study, runs, aside / "source")
        _sphinx(_settings(study), aside / "source", aside / "html", aside / "doctrees")
        shutil.rmtree(target, ignore_errors=True)
        (aside / "html").rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target / "index.html"


def _settings(study: Settings) -> list[str]:
    """What differs between studies in Sphinx's settings; the theme takes both texts for HTML."""
    banner = ["synthetic data: every number here is of made-up slides"] * study.synthetic
    if study.data.slides:
        banner.append(f"{study.caveat}: they estimate nothing about all of {study.source.title}")
    banner += [study.mode_title] * bool(study.switched)
    title, banner = html.escape(f"Study {study.name}"), html.escape(" · ".join(banner))
    return ["-D", f"html_title={title}", "-D", f"html_theme_options.announcement={banner}"]


def _sphinx(settings: list[str], source: Path, target: Path, doctrees: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-j", "2", *settings]
    command += ["-d", doctrees, source, target]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    sys.stderr.write(done.stderr)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise BookError(next((line.strip() for line in lines if "Error: " in line), lines[-1]))
    shutil.rmtree(target / "_sources", ignore_errors=True)  # of notebooks, whatever conf.py says


def write_source(study: Settings, runs: Sequence[Run], source: Path) -> None:
    """Write what Sphinx reads: pages of notebooks, pages made of other files, and the index."""
    for folder in (*PARTS, "_static"):
        (source / folder).mkdir(parents=True)
    shutil.copy(HERE / "conf.py", source)
    for file in ("supplement.css", "tables.js"):
        shutil.copy(HERE / file, source / "_static")
    figures = source / "figures"  # those that these runs made; others are of an earlier study file
    figures.mkdir()
    for file in sorted({file for run in runs for file in run.files}):
        (figures / file.name).symlink_to(file.resolve())
    records = {file.stem: store.read_json(file) for file in sorted(figures.glob("*.json"))}
    saved = {name: each for name, each in records.items() if "caption" in each}  # the exhibits
    exhibits = {f"**{each['title']}.** {each['caption']}": name for name, each in saved.items()}
    there = {f"{STAGES[run.stage][0]}/{run.name}" for run in runs if run.has_page}
    there |= {pages.document(each["section"]) for each in saved.values()}
    parts = {part: [] for part in PARTS}
    parts["reference"] = _reference(study, figures, saved, source, there)
    for stage, (part, title) in STAGES.items():
        members = [run for run in runs if run.stage == stage]
        for run in members:
            if run.has_page:
                heading = f"{title}: {run.title}" if run.title else title
                page = notebooks.page(run, heading, figures, exhibits)
                nbformat.write(page, source / part / f"{run.name}.ipynb")
        if part == "runs" and members:
            for document, words in pages.stage(stage, title, members, figures).items():
                (source / part / f"{document}.md").write_text(words, encoding="utf-8")
        if (part == "runs" and members) or any(run.has_page for run in members):
            parts[part].append((title, f"{part}/{stage}"))
    index = [front.page(study, figures, runs), markdown.toctree([("Overview", "self")])]
    index += [markdown.toctree(entries, PARTS[part]) for part, entries in parts.items() if entries]
    (source / "index.md").write_text("\n".join(index), encoding="utf-8")


def _reference(
    study: Settings,
    figures: Path,
    saved: Mapping[str, dict],
    source: Path,
    there: Collection[str],
) -> list[tuple[str, str]]:
    """Write the pages of reference that there is something for; returns titles and documents."""
    written = {}
    if pages.ledger(figures):
        written[pages.CLAIMS] = pages.claims(figures, study.synthetic, there)
    for section in REFERENCE:
        names = [name for name, each in saved.items() if each["section"] == section]
        if "05_encoders" in names:
            written[section] = pages.encoders(figures)
        elif names:
            written[section] = "\n".join(exhibit(figures, name) for name in names)
    entries = []
    for title, content in written.items():
        document = pages.document(title)
        (source / f"{document}.md").write_text(f"# {title}\n\n{content}", encoding="utf-8")
        entries.append((title, document))
    return entries
