"""Pages of the book that are made of files beside the notebooks: kinds of runs, claims, exhibits, encoders."""

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from mfcore import store
from mfcore.sweep.book import markdown
from mfcore.sweep.book.markdown import text
from mfcore.sweep.book.notebooks import Run, failure, links, safe

MAX_ROWS = 300  # of a table on a page; its CSV has all
SIGNS = {"reproduced": "✓", "not reproduced": "✗", "unclear": "?", "not testable here": "–"}
ON_SYNTHETIC = "On synthetic data this shows that the method works, not that the claim holds."


def rows_of(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file as text; none where there is no file."""
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


# ---- exhibits ----


def exhibit(figures: Path, name: str, up: str = "../") -> str:
    """An exhibit as its notebook saved it: title, figure or table, caption, links.

    up: what leads from the page to the top of the book.
    """
    saved = store.read_json(figures / f"{name}.json")
    title, words = f"## {text(saved['title'])}\n\n", markdown.caption(saved["caption"])
    is_figure, rows = (figures / f"{name}.png").is_file(), saved.get("readable") or []
    rows = rows if is_figure or rows else rows_of(figures / f"{name}.csv")
    table = markdown.table(rows[:MAX_ROWS]) if rows else ""
    if len(rows) > MAX_ROWS:
        words += f" The first {MAX_ROWS} of {len(rows):,} rows."
    if not is_figure:
        return f"{title}{words} {links(name, 'csv', up=up)}\n\n{table}"
    words += f" {links(name, 'pdf', 'csv', up=up)}"
    path = f"{up}figures/{safe(name)}.png"
    return f"{title}{markdown.figure(path, words, markdown.first_sentence(saved['caption']))}\n{table}"


def encoders(figures: Path) -> str:
    """Every encoder by group: where its weights are and what is with it here; the rest on a click."""
    rows = rows_of(figures / "05_encoders.csv")
    for row in rows:
        row["weights"] = f"[{text(row['weights'])}](<{row['page']}>)" if _is_address(row["page"]) else text(row["weights"])
    body = [markdown.caption(store.read_json(figures / "05_encoders.json")["caption"]) + "\n"]
    for group in dict.fromkeys(row["group"] for row in rows):
        members = [row for row in rows if row["group"] == group]
        rest = [name for name in rows[0] if name not in ("group", "weights", "page", "here")]
        facts = f"::::{{dropdown}} Terms, input, embedding, resolution\n{markdown.table(members, rest)}::::\n"
        body += [f"## {text(group)}\n", markdown.table(members, ["encoder", "weights", "here"], ["weights"]), facts]
    return "\n".join(body)


def _is_address(page: str) -> bool:
    return page.startswith(("https://", "http://")) and not set(page) & set("<>\\ \n")


# ---- runs ----


def stage(name: str, title: str, runs: Sequence[Run], source: Path) -> None:
    """The page of a notebook that ran several times; of folds, a table of links and a page a network."""
    folder, lacking = source / "runs", [run for run in runs if run.state != "done"]
    body = [f"# {text(title)}\n", f"{len(runs) - len(lacking)} of {len(runs)} runs are done.\n", *map(failure, lacking)]
    if all("fold" in run.parameters for run in runs):
        networks: dict[str, list[Run]] = {}
        for run in runs:
            networks.setdefault(run.name.rpartition(".fold")[0], []).append(run)
        rows, tree = [], []
        for page, members in networks.items():
            network = members[0].parameters["network"]
            folds = {f"fold {run.parameters['fold']}": _linked(run) for run in members}
            rows.append({"network": f"[{text(network)}](<{page}.md>)"} | folds)
            tree.append((network, page))
            content = [f"# {text(network)}\n", *[failure(run) for run in members if run.state != "done"]]
            content += [_cards(members, source, lambda run: f"fold {run.parameters['fold']}")]
            content.append(markdown.toctree((f"fold {r.parameters['fold']}", r.name) for r in members if r.has_page))
            (folder / f"{page}.md").write_text("\n".join(content), encoding="utf-8")
        columns = list(dict.fromkeys(column for row in rows for column in row))
        body += [markdown.table(rows, columns, ready=columns), markdown.toctree(tree)]
    else:
        body.append(_cards(runs, source, lambda run: run.title))
        body.append(markdown.toctree((run.title, run.name) for run in runs if run.has_page))
    (folder / f"{name}.md").write_text("\n".join(body), encoding="utf-8")


def _linked(run: Run) -> str:
    return f"[{text(run.summary)}](<{run.name}.ipynb>)" if run.has_page else text(run.summary)


def _cards(runs: Sequence[Run], source: Path, label: Callable[[Run], str]) -> str:
    """A card a run: its last picture, small, state and time; a link where there is a notebook."""
    cards = ["::::{grid} 2 2 3 3", ":gutter: 2"]
    for run in runs:
        picture = _thumbnail(run, source)
        cards += [f":::{{grid-item-card}} {text(label(run))}"]
        cards += [f":link: {run.name}", ":link-type: doc"] if run.has_page else []
        cards += [f":img-top: {picture}", ":img-alt: Last figure of this run"] if picture else []
        cards += ["", text(run.summary), ":::"]
    return "\n".join([*cards, "::::", ""])


def _thumbnail(run: Run, source: Path) -> str:
    """The last figure that a run wrote, small; its path from the page of the run, or "" without one."""
    from PIL import Image

    files = [source / "figures" / f"{safe(name)}.png" for name in run.figures]
    files = [file for file in files if file.is_file()]
    if not files:
        return ""
    small = source / "pictures" / f"{safe(run.name)}.jpg"
    small.parent.mkdir(exist_ok=True)
    with Image.open(files[-1]) as picture:
        picture.draft("RGB", (960, 960))
        picture = picture.convert("RGB")
        picture.thumbnail((480, 480))
        picture.save(small, quality=80)
    return f"../pictures/{small.name}"


# ---- claims ----


def claims(figures: Path, is_synthetic: bool) -> str:
    """The ledger: a line a claim with its verdict, what was expected and what was found; more on a click."""
    rows = rows_of(figures / "claims.csv") + rows_of(figures / "10_claims_kaiko.csv")
    body = [markdown.box("warning", ON_SYNTHETIC)] if is_synthetic else []
    parts: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        parts.setdefault((row["paper"], row["subject"]), []).append(row)
    counts = []
    for (paper, subject), mine in parts.items():
        found = Counter(row["verdict"] for row in mine)
        counts.append({"claims": f"{paper}: {subject}"} | {f"{sign} {name}": found[name] for name, sign in SIGNS.items()})
    body += [markdown.table(counts), f"The ledger as a file: {links('claims', 'csv')}\n"]
    if (figures / "claims_rule.json").is_file():
        rule = "\n".join(f"- {text(line)}" for line in store.read_json(figures / "claims_rule.json"))
        body.append(f"::::{{dropdown}} How a verdict is reached\n{rule}\n::::\n")
    for (paper, subject), mine in parts.items():
        body.append(f"## {text(paper)}: {text(subject)}\n")
        body += [_claim(row, is_synthetic) for verdict in SIGNS for row in mine if row["verdict"] == verdict]
    return "\n".join(body)


def _claim(row: dict[str, str], is_synthetic: bool) -> str:
    verdict = row["verdict"]
    said = [f"“{row['claim']}”", f"expected {row['expected'] or '–'}", f"found {row['found'] or '–'}"]
    title = f"{SIGNS[verdict]} **{text(verdict)}** {text(' · '.join(said))}"
    row |= {"difference": f"{float(row['difference']):+,g}"} if row["difference"] else {}
    lines = [{"": key, " ": row[key]} for key in ("where", "test", "tolerance", "difference", "here", "why") if row[key]]
    note = f"{text(ON_SYNTHETIC)}\n\n" if is_synthetic and verdict != "not testable here" else ""
    classes = f":class-container: verdict-{verdict.replace(' ', '-')}"
    return f"::::{{dropdown}} {title}\n{classes}\n\n{note}{markdown.table(lines, ['', ' '])}::::\n"
