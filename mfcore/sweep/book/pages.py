"""Pages of the book that are made of files beside the notebooks: runs, claims, encoders."""

import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from mfcore import store
from mfcore.sweep.book import markdown
from mfcore.sweep.book.exhibits import links, rows_of
from mfcore.sweep.book.markdown import text
from mfcore.sweep.book.notebooks import Run

SIGNS = {"reproduced": "✓", "not reproduced": "✗", "unclear": "?", "not testable here": "–"}
CLAIMS = "Claims of the papers"  # the title of the ledger's page
LEDGERS = {"claims": "networks and probes", "10_claims_kaiko": "RankMe and ODCorr"}
# Kinds of claims about what data, networks and designs are: facts, not results
FACTS = ("data", "networks", "method")
EVIDENCE = {  # by kind of claim, the page of a notebook or of reference that has the evidence
    "data": "data/01_extract_patches",
    "networks": "reference/encoders",
    "method": "reference/provenance",
    "data scaling": "results/05_data_scaling",
    "domain shift": "results/06_cross_domain_analysis",
    "pretraining": "results/11_pretraining_studies",
    "later work": "results/05_data_scaling",
}
ON_SYNTHETIC = "On synthetic data a verdict shows that the method works, not that the claim holds."


def document(title: str) -> str:
    """The document of a page of reference."""
    return "reference/" + re.sub(r"\W", "_", title).lower()


def encoders(figures: Path) -> str:
    """Every encoder by group: where its weights are, what is with it here; the rest on a click."""
    rows = rows_of(figures / "05_encoders.csv")
    for row in rows:
        row["weights"] = text(row["weights"])
        if row["page"].startswith("https://"):
            row["weights"] = f"[{row['weights']}](<{row['page']}>)"
    body = [markdown.caption(store.read_json(figures / "05_encoders.json")["caption"]) + "\n"]
    for group in dict.fromkeys(row["group"] for row in rows):
        members = [row for row in rows if row["group"] == group]
        rest = [name for name in rows[0] if name not in ("group", "weights", "page", "here")]
        facts = ""
        if any(row[name] for row in members for name in rest if name != "encoder"):
            facts = markdown.table(members, rest)
            facts = f"::::{{dropdown}} Terms, input, embedding, resolution\n{facts}::::\n"
        places = markdown.table(members, ["encoder", "weights", "here"], ["weights"])
        body += [f"## {text(group)}\n", places, facts]
    return "\n".join(body)


def lacking(runs: Sequence[Run]) -> str:
    """A box with the runs that failed or are missing, by the reason; empty where all are done."""
    missing = [run for run in runs if run.state != "done"]
    alike: dict[tuple[str, str, str], list[str]] = {}
    for run in missing:
        alike.setdefault((run.stage, run.state, run.reason), []).append(run.title)
    lines = [
        f"- **{text(stage)}** {text('; '.join(titles))} **{state}:** {text(reason)}"
        for (stage, state, reason), titles in alike.items()
    ]
    title = f"{len(missing)} of {len(runs)} runs failed or are missing"
    return markdown.box("error", title, "\n".join(lines)) if missing else ""


def stage(name: str, title: str, runs: Sequence[Run], figures: Path) -> dict[str, str]:
    """The pages of a notebook that ran several times, by document: what is missing, a card a run.

    Runs of networks and folds: a table of links, and a page with the cards of each network.
    """
    n_done = sum(run.state == "done" for run in runs)
    body = [f"# {text(title)}\n", f"{n_done} of {len(runs)} runs are done.\n", lacking(runs)]
    if not all("fold" in run.parameters for run in runs):
        return {name: "\n".join([*body, *_cards(runs, figures)])}
    networks: dict[str, list[Run]] = {}
    for run in runs:
        networks.setdefault(str(run.parameters["network"]), []).append(run)
    documents = {network: f"{name}-{store.file_name(network)}" for network in networks}
    rows = [
        {"network": f"[{text(network)}](<{documents[network]}.md>)"}
        | {f"fold {run.parameters['fold']}": _link(run) for run in members}
        for network, members in networks.items()
    ]
    pages = {
        documents[network]: "\n".join([f"# {text(network)}\n", *_cards(members, figures)])
        for network, members in networks.items()
    }
    body += [markdown.table(rows, ready=list(rows[0])), markdown.toctree(documents.items())]
    return {name: "\n".join(body)} | pages


def _link(run: Run) -> str:
    summary = text(run.summary)
    return f"[{summary}](<{run.name}.ipynb>)" if run.has_page else summary


def _cards(runs: Sequence[Run], figures: Path) -> list[str]:
    """A card a run (its last figure, state and time), and their part of the navigation."""
    lines = ["::::{grid} 1 2 3 3", ":gutter: 2"]
    for run in runs:
        lines.append(f":::{{grid-item-card}} {text(run.title)}")
        lines += [f":link: {run.name}", ":link-type: doc"] if run.has_page else []
        for name in run.figures[-1:]:
            caption = store.read_json(figures / f"{name}.json")["caption"]
            alt = json.dumps(markdown.first_sentence(caption))
            lines += [f":img-top: ../figures/{name}.png", f":img-alt: {alt}"]
        lines += ["", text(run.summary), ":::"]
    tree = markdown.toctree((run.title, run.name) for run in runs if run.has_page)
    return [*lines, "::::\n", tree]


def ledger(figures: Path) -> list[dict[str, str]]:
    """The rows of the ledger; none where no claim was judged."""
    return [row for name in LEDGERS for row in rows_of(figures / f"{name}.csv")]


def verdicts(figures: Path, is_synthetic: bool) -> str:
    """How many results and facts have each verdict, in a sentence; empty where none was judged."""
    found = Counter((row["subject"] in FACTS, row["verdict"]) for row in ledger(figures))
    parts = {"results": False, "facts about data, networks and designs": True}
    counts = []
    for words, kind in parts.items():
        shown = [f"{found[kind, each]} {each}" for each in SIGNS if found[kind, each]]
        counts += [f"{words}: {', '.join(shown)}"] if shown else []
    note = f" {text(ON_SYNTHETIC)}" * is_synthetic
    return f"[{CLAIMS}](<{document(CLAIMS)}.md>), {'; '.join(counts)}.{note}\n" if found else ""


def claims(figures: Path, is_synthetic: bool, there: Collection[str] = ()) -> str:
    """The ledger: a line a claim: verdict, what was expected, what was found; more on a click.

    Parts with a claim that was judged come first. there: the documents that a part can refer to.
    """
    parts: dict[str, list[dict]] = {}
    for row in ledger(figures):
        subject = "" if row["subject"] == "later work" else f": {row['subject']}"
        parts.setdefault(row["paper"] + subject, []).append(row)
    counts = []
    for part, members in parts.items():
        found = Counter(row["verdict"] for row in members)
        columns = {f"{sign} {verdict}": found[verdict] for verdict, sign in SIGNS.items()}
        counts.append({"claims": part} | columns)
    body = [markdown.box("warning", "Synthetic data", ON_SYNTHETIC)] if is_synthetic else []
    files = [
        f"{words} {links(name, 'csv')}"
        for name, words in LEDGERS.items()
        if (figures / f"{name}.csv").is_file()
    ]
    body += [markdown.table(counts), f"The ledgers as files: {', '.join(files)}\n"]
    if (figures / "claims_rule.json").is_file():
        lines = store.read_json(figures / "claims_rule.json")
        rule = "\n".join(f"- {text(line)}" for line in lines)
        body.append(f"::::{{dropdown}} How a verdict is reached\n{rule}\n::::\n")
    untestable = [*SIGNS][-1]
    order = sorted(parts.items(), key=lambda part: all(r["verdict"] == untestable for r in part[1]))
    for part, members in order:
        body.append(f"## {text(part)}\n")
        place = EVIDENCE.get(members[0]["subject"])
        body += [f"The evidence: {{doc}}`/{place}`.\n"] if place in there else []
        members.sort(key=lambda row: list(SIGNS).index(row["verdict"]))
        body += [_claim(row, is_synthetic) for row in members]
    return "\n".join(body)


def _claim(row: dict[str, str], is_synthetic: bool) -> str:
    verdict = row["verdict"]
    words = f"“{row['claim']}” · expected {row['expected'] or '–'} · found {row['found'] or '–'}"
    is_judged = verdict != "not testable here" and row["subject"] not in FACTS
    on = " on synthetic data" * (is_synthetic and is_judged)
    title = f"{SIGNS[verdict]} **{text(verdict)}{on}** {text(words)}"
    row |= {"difference": f"{float(row['difference']):+,g}"} if row["difference"] else {}
    facts = ("where", "test", "tolerance", "difference", "here", "why")
    lines = [{"": key, " ": row[key]} for key in facts if row[key]]
    note = f"{text(ON_SYNTHETIC)}\n\n" if on else ""
    classes = f":class-container: verdict-{verdict.replace(' ', '-')}"
    return f"::::{{dropdown}} {title}\n{classes}\n\n{note}{markdown.table(lines, ['', ' '])}::::\n"
