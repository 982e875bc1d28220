"""The supplement's page on claims: every checkable sentence of the papers with its verdict, the counts of verdicts first."""

import math
from pathlib import Path

import pandas as pd

from mfcore.analysis import compare
from mfcore.claims import ledger as claims
from mfcore.claims.rules import NOT_TESTABLE, VERDICTS
from mfcore.study.config import Settings
from mfcore.sweep import report_html

SIGNS = dict(zip(VERDICTS, ("✓", "✗", "?", "–"), strict=True))


KAIKO_FILE = "10_claims_kaiko"  # as notebook 10 keeps that ledger


def ledger(study: Settings, results: Path) -> pd.DataFrame:
    """Every claim asked of the study, columns `claims.ledger.COLUMNS`; kaiko 2024's where the study pretrains or has tasks."""
    evidence = [*claims.EVIDENCE, claims.PRETRAINING] if study.pretraining or study.tasks else claims.EVIDENCE
    return claims.judge(study, results, compare.scores(compare.collect(study, results).predictions), evidence)


def page(study: Settings, results: Path, rows: pd.DataFrame) -> str:
    """The page, from the study's `ledger`."""
    asks_kaiko = (rows["subject"] == claims.PRETRAINING).any()
    return report_html.render(
        "claims.html",
        study=study,
        counts=report_html.table(claims.counts(rows)),
        rule=(*claims.RULE, claims.PRETRAINING_RULE) if asks_kaiko else claims.RULE,
        said=said(rows),
        kaiko_file=f"figures/{KAIKO_FILE}.csv" if (results / "figures" / f"{KAIKO_FILE}.csv").is_file() else "",
        asks_kaiko=asks_kaiko,
        sections=[section(title, part) for title, part in claims.sections(rows)],
    )


def said(ledger: pd.DataFrame) -> str:
    """How much of the papers this study can settle, in sentences: what any study can confirm apart from results."""
    own, kaiko = ledger[ledger["paper"] == claims.GANZ], ledger[ledger["subject"] == claims.PRETRAINING]
    of_results = own["subject"].isin([claims.SCALING, claims.DOMAINS])
    told = [
        ("Ganz et al. 2024's", "results", own[of_results]),
        ("Ganz et al. 2024's", "data, networks and method", own[~of_results]),
        ("kaiko 2024's", "pretraining and representations", kaiko),
    ]
    parts = []
    for whose, what, rows in told:
        if not len(rows):
            continue
        n = rows["verdict"].value_counts().reindex(list(VERDICTS), fill_value=0)
        judged = ", ".join(f"{n[verdict]} {verdict}" for verdict in VERDICTS if verdict != NOT_TESTABLE)
        n_judged = len(rows) - n[NOT_TESTABLE]
        parts.append(f"Of {whose} {len(rows)} claims on {what} this study can judge {n_judged or 'none'}")
        parts[-1] += f": {judged}." if n_judged else "."
    shown = int((pd.concat([own, kaiko])["here"] != "").sum())
    more = f"It shows {shown} more comparison{'s' * (shown != 1)} that it can't judge."
    return " ".join([*parts, more] if shown else parts)


def section(title: str, rows: pd.DataFrame) -> dict:
    """A part of the ledger for the template: what was judged or shown, and apart from it what this study has nothing on."""
    records = [_record(row) for row in rows.to_dict("records")]
    silent = [record["verdict"] == NOT_TESTABLE and not record["here"] for record in records]
    return {
        "title": title,
        "short": title.removeprefix(f"{claims.GANZ}, "),
        "anchor": "".join(character if character.isalnum() else "-" for character in title.lower()),
        "rows": [record for record, is_silent in zip(records, silent, strict=True) if not is_silent],
        "silent": [record for record, is_silent in zip(records, silent, strict=True) if is_silent],
    }


def _record(row: dict) -> dict:
    """A row of the ledger with what the eye needs: lists for lines, a sign for the verdict."""
    tolerance = "" if row["tolerance"] == "none" else row["tolerance"]
    return row | {
        "where": row["where"][:1].upper() + row["where"][1:],
        "sign": SIGNS[row["verdict"]],
        "kind": row["verdict"].replace(" ", "-"),
        "tolerance": tolerance,
        "found": row["found"].split("; "),
        "why": row["why"].split("; ") if row["why"] else [],
        "difference": signed(row["difference"]),
    }


def signed(value: float) -> str:
    """A difference for the eye: counts in full, millions as such, scores with three digits; empty where there is none."""
    if math.isnan(value):
        return ""
    if abs(value) < 5e-4:
        return "0"
    if abs(value) >= 1e5:
        return f"{value / 1e6:+,.1f}M"
    return f"{value:+,.0f}" if value == round(value) else f"{value:+.3f}"
