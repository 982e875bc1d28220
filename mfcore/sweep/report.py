"""The supplement: one folder of HTML with an index, built from what the runs left in files; no number is typed."""

import datetime
import functools
import html
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nbformat
import pandas as pd
import yaml

from mfcore import store
from mfcore.analysis import arms, captions, compare, domains, scaling
from mfcore.claims import ledger as claims
from mfcore.data import patches, splits_audit
from mfcore.data.labels import schema as labels_schema
from mfcore.measures import binary
from mfcore.study.config import Settings, as_dict
from mfcore.study.study import Study
from mfcore.sweep import (
    report_audit,
    report_claims,
    report_conventions,
    report_encoders,
    report_html,
    report_pretraining,
    report_probes,
    report_switches,
)
from mfcore.sweep.report_html import rich, table

ANALYSES = {
    "05_data_scaling": "learning curves, calibration, domains, scanners and the raters' agreement",
    "06_cross_domain_analysis": "asymmetry, tumour against scanner, balanced accuracy by test domain",
    "10_representations": "RankMe and ODCorr of the encoders beside their AUROCs",
}
PAGES = {
    "audit": "Audit of the splits",
    "encoders": "Encoders",
    "conventions": "One encoder, five libraries",
    "probes": "Audit of the probe",
    "pretraining": "Pretraining and tasks",
    "claims": "The papers' claims",
    "switches": "What each switch is worth",
}
# What the index shows of `arms.by_agreement`: decisions, as raters make them, and the ranking
BY_AGREEMENT = ["arm", "annotations", "against", "n_test"]
BY_AGREEMENT += [binary.TITLES[name] for name in ("accuracy", "balanced_accuracy", "weighted_f1", "quadratic_kappa", "auroc")]
MORE_BY_AGREEMENT = ' All metrics are in <a href="figures/05_by_agreement.csv">05_by_agreement.csv</a>.'


def build(study: Settings, results: str | Path) -> Path:
    """Build ``results/supplement`` from the study's finished runs, aside and renamed; returns the path of its index.html.

    Arms that failed or are missing are listed with their reasons. Raises StoreError where patches, splits or every
    prediction are missing.
    """
    results = Path(results)
    if edited := [str(file) for run in store.runs(results) for file in run.examined()[1]]:
        raise store.StoreError(
            f"not as they were made: {', '.join(edited)}; remove the folders of these runs and run them again"
        )
    aside, target, old = results / f".supplement.{os.getpid()}", results / "supplement", results / ".supplement.old"
    for leftover in results.glob(".supplement.*"):
        shutil.rmtree(leftover)
    try:
        (aside / "notebooks").mkdir(parents=True)
        shutil.copytree(results / "figures", aside / "figures", dirs_exist_ok=True)
        notebooks = _notebooks(study, results, aside / "notebooks")
        ledger = report_claims.ledger(study, results)
        (aside / "index.html").write_text(_index(study, results, notebooks, ledger), encoding="utf-8")
        for name, page in _pages(study, ledger).items():
            (aside / f"{name}.html").write_text(page(study, results), encoding="utf-8")
        if target.exists():
            target.rename(old)
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return target / "index.html"


def _pages(study: Settings, ledger: pd.DataFrame) -> dict[str, Callable[[Settings, Path], str]]:
    """The supplement's further pages, by the name of their file: those that the study asks for."""
    pages = {"audit": report_audit.page, "encoders": report_encoders.page}
    if study.conventions:
        pages["conventions"] = report_conventions.page
    if study.probe_audit:
        pages["probes"] = report_probes.page
    if study.pretraining or study.tasks:
        pages["pretraining"] = report_pretraining.page
    pages["claims"] = functools.partial(report_claims.page, rows=ledger)
    if study.effects.switches:
        pages["switches"] = report_switches.page
    return pages


def _notebooks(study: Settings, results: Path, folder: Path) -> pd.DataFrame:
    """Render every executed notebook into ``folder``; returns a row each: name, run, state, seconds.

    A page has a badge where the study departs from its mode.
    """
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(embed_images=True, exclude_anchor_links=True)
    exporter.mathjax_url = exporter.require_js_url = exporter.jquery_url = ""  # nothing is fetched to read a page
    badge = f'<p style="{report_html.BADGE}">{html.escape(study.mode_title)}</p>' if study.switched else ""
    rows = []
    for path in sorted(results.glob("notebooks/*.ipynb")):
        notebook = without_progress(nbformat.read(path, as_version=4))
        notebook.metadata["title"] = path.stem
        page, _ = exporter.from_notebook_node(notebook)
        page = re.sub(r"<body[^>]*>", lambda found: found[0] + badge, page, count=1)
        (folder / f"{path.stem}.html").write_text(page, encoding="utf-8")
        record = results / "jobs" / f"{path.stem}.json"
        job = store.read_json(record) if record.is_file() else {"failed": False, "seconds": float("nan")}
        link = f'<a href="notebooks/{html.escape(path.stem)}.html">{html.escape(path.stem)}</a>'
        rows.append({"name": path.stem, "run": link, "state": "failed" if job["failed"] else "done", "seconds": job["seconds"]})
    return pd.DataFrame(rows, columns=["name", "run", "state", "seconds"])


def without_progress(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without its progress bars: widgets, and a bar's lines on stderr; what else stands there stays."""
    notebook.metadata.pop("widgets", None)  # with their state, a page would fetch the code that draws them
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for output in cell.outputs:
                if output.output_type == "stream" and output.name == "stderr":
                    lines = re.split(r"(?<=[\r\n])", output.text)
                    output.text = "".join(line for line in lines if not re.search(r"\d+%\|", line))
            cell.outputs = [output for output in cell.outputs if not _is_empty(output)]
    return notebook


def _is_empty(output: nbformat.NotebookNode) -> bool:
    if output.output_type == "stream":
        return not output.text.strip()
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def _index(study: Settings, results: Path, notebooks: pd.DataFrame, ledger: pd.DataFrame) -> str:
    patches_run = patches.find(study, results)
    annotations = store.read_parquet(patches_run.path("labels.parquet"))
    opened = Study(study, results)
    crossed = domains.means_table(opened.scores, study)
    votes, agreement = scaling.raters(opened), arms.by_agreement(opened)
    texts = {
        "raters": rich(votes.text),
        "by_agreement": rich(agreement.text) + MORE_BY_AGREEMENT,
        "contact_sheet": captions.contact_sheet(study, annotations),
        "tab_2": rich(domains.means(opened).text) if len(crossed) else "",
    }

    def figure(name: str, caption: str = "") -> str:
        return report_html.figure(results, name, caption)

    sections = [
        ("abstract", "Abstract"),
        ("data", "Data"),
        ("scaling", "Data scaling"),
        ("domains", "Across domains"),
        ("raters", "Raters"),
    ]
    sections += [("claims", "Claims"), ("notebooks", "Notebooks"), ("provenance", "Provenance"), ("again", "Recompute")]
    return report_html.render(
        "supplement.html",
        study=study,
        sections=[s for s in sections if s[0] != "domains" or len(crossed)],
        abstract=domains.abstract(opened).replace("`", ""),
        failures=table(opened.failures) if len(opened.failures) else "",
        counts=table(_counts(study, annotations)),
        data_notes=_data_notes(study, patches_run, annotations),
        resolutions=_resolutions(patches_run),
        captions=texts,
        figure=figure,
        audit=table(splits_audit.summary(splits_audit.load(splits_audit.find(study, results)))),
        scaling=table(scaling.scores(opened).readable),
        crossed=table(domains.means_readable(compare.marked(crossed, study))) if len(crossed) else "",
        published=table(_published()),
        raters="" if votes.readable is None else table(votes.readable),
        by_agreement="" if agreement.readable is None else table(agreement.readable[BY_AGREEMENT]),
        claims=table(claims.counts(ledger)),
        said=report_claims.said(ledger),
        n_published=len(domains.published(study)),
        analyses=[(f"notebooks/{name}.html", title) for name, title in ANALYSES.items() if name in set(notebooks["name"])],
        notebooks=table(notebooks.drop(columns="name"), escape=False),
        pages=[(f"{name}.html", PAGES[name]) for name in _pages(study, ledger)],
        provenance=table(_provenance(study, results), escape=False),
        command=f"make paper STUDY={study.name}",
    )


def _counts(study: Settings, annotations: pd.DataFrame) -> pd.DataFrame:
    table = patches.counts(annotations)
    total = {
        "domain": labels_schema.SUM,
        "n_slides": annotations["slide_id"].nunique(),
        "n_positive": int(annotations["label"].sum()),
    }
    total |= {"n_negative": int((annotations["label"] == 0).sum()), "positive_share": annotations["label"].mean()}
    table = pd.concat([table, pd.DataFrame([total])], ignore_index=True)
    table["positive_share"] = [f"{100 * share:.0f} %" for share in table["positive_share"]]
    names = {"n_slides": "slides", "n_positive": study.data.positive + "s", "n_negative": study.data.negative + "s"}
    return table.rename(columns=names)


def _data_notes(study: Settings, run: store.Run, annotations: pd.DataFrame) -> list[str]:
    """What a reader must know of the patches: side and resolution, what the border did, what was published wrongly of them."""
    facts, config = run.record["facts"], patches.config_of(study)
    at = "each slide's own µm/px" if config["resolution"] == "native" else f"{study.patches.um_per_px:g} µm/px"
    notes = [f"Patches of {study.patches.size_px} px at {at}, stored with {study.stored_px} px."]
    if n_shifted := facts["n_patches_shifted"]:
        notes.append(f"{compare.counted(n_shifted, 'patch', 'patches')} near a border, moved inward.")
    if n_over := facts["n_patches_over_edge"]:
        reach = f"{compare.counted(n_over, 'patch', 'patches')} as stored reach{'es' * (n_over == 1)} over the border"
        notes.append(f"{reach} of {'its' if n_over == 1 else 'their'} slide: {config.get('border', 'white')} there.")
    if areas := facts.get("scanned_areas"):
        begin = f"{compare.counted(len(areas), 'slide')} whose scanned area begins off the slide's corner"
        corner = "scanned area" if study.data.origin == "scanned_area" else "slide"
        notes.append(f"{begin}; labels count from the corner of the {corner}.")
    notes.append(study.source.note(annotations))
    return [note for note in notes if note]


def _resolutions(run: store.Run) -> list[tuple[str, str]]:
    """Slides whose µm/px is the study's word, not the file's: what was said of how many, and their names."""
    found: dict[tuple[str, float], list[str]] = {}
    for slide in run.record["facts"]["um_per_px_said_by_study"]:
        found.setdefault((slide["scanner"], slide["um_per_px"]), []).append(slide["slide_id"])
    return [
        (
            f"{compare.counted(len(slides), 'slide')}{f' of {scanner}' if scanner else ''} without µm/px in the file: "
            f"the study's {um_per_px}",
            ", ".join(slides),
        )
        for (scanner, um_per_px), slides in found.items()
    ]


def _published() -> pd.DataFrame:
    table = domains.published_means()
    return pd.DataFrame(
        {
            "arm": table["arm"],
            **{
                name: [compare.plus_minus(m, sd) for m, sd in zip(table[name], table[f"{name}_sd"], strict=True)]
                for name in ("in_domain", "out_of_domain")
            },
        }
    )


def _provenance(study: Settings, results: Path) -> pd.DataFrame:
    """What made these numbers: code, environment, seeds, time; and the study file's content."""
    records = [store.read_json(path) for path in sorted(results.glob("*/run.json"))]
    environments = [record["environment"] for record in records]
    commits = sorted(
        {f"{e['commit'] or 'unknown'}{' with uncommitted changes' if e['uncommitted_changes'] else ''}" for e in environments}
    )
    newest = max(records, key=lambda record: record["finished"])["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in newest["packages"].items())
    minutes = sum(record["seconds"] for record in records) / 60
    threads: dict[str, set[int]] = {}
    for record in records:
        threads.setdefault(record["stage"], set()).add(record["environment"].get("n_threads", 0))  # 0: of an older version
    rows = {
        "commit": "; ".join(commits),
        "machine": f"Python {newest['python']}, {newest['system']} {newest['machine']}, {newest['n_cores']} cores",
        "packages": versions,
        "seeds": f"data {study.data.seed}, splits {study.splits.seed}" if study.synthetic else f"splits {study.splits.seed}",
        "runs": f"{len(records)} finished, {minutes:.1f} minutes in all",
        "threads": "; ".join(
            f"{stage} {' or '.join(str(n) if n else 'not recorded' for n in sorted(those))}" for stage, those in threads.items()
        ),
        "built": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    content = yaml.safe_dump(as_dict(study), sort_keys=False, default_flow_style=True, width=10**6).strip()
    values = [html.escape(value) for value in rows.values()]
    values.append(f"<details><summary>every setting, as read</summary>{html.escape(content)}</details>")
    return pd.DataFrame({"what": [*rows, "study"], "value": values})
