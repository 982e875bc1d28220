"""Pages of the book that are made of files beside the notebooks: runs, claims, encoders."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mfcore import store
from mfcore.sweep.book import markdown
from mfcore.sweep.book.exhibits import links, rows_of
from mfcore.sweep.book.markdown import text
from mfcore.sweep.book.notebooks import Run

SIGNS = {"reproduced": "✓", "not reproduced": "✗", "unclear": "?", "not testable here": "–"}
ON_SYNTHETIC = "On synthetic data this shows that the method works, not that the claim holds."


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


def stage(title: str, runs: Sequence[Run]) -> str:
    """The page of a notebook that ran several times: what is missing, and a card a run."""
    missing = [run.failure for run in runs if run.state != "done"]
    n_done = len(runs) - len(missing)
    body = [f"# {text(title)}\n", f"{n_done} of {len(runs)} runs are done.\n", *missing]
    networks: dict[str, list[Run]] = {}
    for run in runs:
        networks.setdefault(run.parameters.get("network", ""), []).append(run)
    for network, members in networks.items():
        body += [f"## {text(network)}\n"] if network else []
        body += ["::::{grid} 2 2 3 3", ":gutter: 2", *map(_card, members), "::::\n"]
    body.append(markdown.toctree((run.title, run.name) for run in runs if run.has_page))
    return "\n".join(body)


def _card(run: Run) -> str:
    """A run's last figure, state and time; a link where there is a notebook."""
    lines = [f":::{{grid-item-card}} {text(run.title)}"]
    lines += [f":link: {run.name}", ":link-type: doc"] if run.has_page else []
    if run.figures:
        picture = f"../figures/{run.figures[-1]}.png"
        lines += [f":img-top: {picture}", ":img-alt: Last figure of this run"]
    return "\n".join([*lines, "", text(run.summary), ":::"])


def claims(figures: Path, is_synthetic: bool) -> str:
    """The ledger: a line a claim: verdict, what was expected, what was found; more on a click."""
    rows = rows_of(figures / "claims.csv") + rows_of(figures / "10_claims_kaiko.csv")
    parts: dict[str, list[dict]] = {}
    for row in rows:
        parts.setdefault(f"{row['paper']}: {row['subject']}", []).append(row)
    counts = []
    for part, members in parts.items():
        found = Counter(row["verdict"] for row in members)
        columns = {f"{sign} {verdict}": found[verdict] for verdict, sign in SIGNS.items()}
        counts.append({"claims": part} | columns)
    body = [markdown.box("warning", ON_SYNTHETIC)] if is_synthetic else []
    body += [markdown.table(counts), f"The ledger as a file: {links('claims', 'csv')}\n"]
    if (figures / "claims_rule.json").is_file():
        lines = store.read_json(figures / "claims_rule.json")
        rule = "\n".join(f"- {text(line)}" for line in lines)
        body.append(f"::::{{dropdown}} How a verdict is reached\n{rule}\n::::\n")
    for part, members in parts.items():
        body.append(f"## {text(part)}\n")
        members.sort(key=lambda row: list(SIGNS).index(row["verdict"]))
        body += [_claim(row, is_synthetic) for row in members]
    return "\n".join(body)


def _claim(row: dict[str, str], is_synthetic: bool) -> str:
    verdict = row["verdict"]
    words = f"“{row['claim']}” · expected {row['expected'] or '–'} · found {row['found'] or '–'}"
    title = f"{SIGNS[verdict]} **{text(verdict)}** {text(words)}"
    row |= {"difference": f"{float(row['difference']):+,g}"} if row["difference"] else {}
    facts = ("where", "test", "tolerance", "difference", "here", "why")
    lines = [{"": key, " ": row[key]} for key in facts if row[key]]
    note = f"{text(ON_SYNTHETIC)}\n\n" if is_synthetic and verdict != "not testable here" else ""
    classes = f":class-container: verdict-{verdict.replace(' ', '-')}"
    return f"::::{{dropdown}} {title}\n{classes}\n\n{note}{markdown.table(lines, ['', ' '])}::::\n"
