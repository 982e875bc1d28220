"""The claims ledger: each checkable sentence of Ganz et al. 2024 a row with its verdict, and, second-hand, of later work."""

import math
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from mfcore import store
from mfcore.analysis import captions
from mfcore.claims import (
    adapted as claims_adapted,
    amibr as claims_amibr,
    domains as claims_domains,
    materials as claims_materials,
    methods as claims_methods,
    results as claims_results,
)
from mfcore.claims.judge import ANYWHERE, GANZ, NOT_TESTABLE, VERDICTS, Claim, Finding, Material, out_of_scope
from mfcore.study.config import Study

COLUMNS = (
    "claim",
    "where",
    "test",
    "expected",
    "tolerance",
    "found",
    "difference",
    "verdict",
    "why",
    "data",
    "here",
    "paper",
    "subject",
)
HERE = dict(zip(VERDICTS, ("as stated", "not as stated", "can't be told", ""), strict=True))
SECTIONS = ("abstract", "section 2", "Tab. 1", "section 3", "section 4", "Tab. 2", "section 5")
# What a claim is of, so that counts of verdicts don't mix what any study can confirm with what only results can.
DATA, MODELS, METHOD, AMOUNT, DOMAINS, LATER = (
    "data",
    "networks",
    "method",
    "results by amount of data",
    "results across domains",
    "later work",
)
CLAIMS: tuple[tuple[str, Claim], ...] = (
    *((MODELS if claim.about == (ANYWHERE,) else DATA, claim) for claim in claims_materials.CLAIMS),
    *((METHOD, claim) for claim in claims_methods.CLAIMS),
    *((AMOUNT, claim) for claim in claims_results.CLAIMS),
    *((DOMAINS, claim) for claim in claims_domains.CLAIMS),
    *((LATER, claim) for claim in (*claims_adapted.CLAIMS, *claims_amibr.CLAIMS)),
)
RULE = (
    "A printed number is judged on the data set that it was printed for, and on no other: reproduced where the mean over folds "
    "lies within the tolerance, and the folds leave no more than twice that open; not reproduced where the whole interval lies "
    "outside it; unclear else.",
    "A direction (more, less, no better, alike) is judged on any real data that ask the paper's question, mitotic figure "
    "against look-alike. “More” needs every difference above zero, p below 0.05; one clearly below it refutes. “No better” "
    "and “alike” need every interval inside a margin set beforehand: that no difference was seen shows nothing.",
    "On synthetic data neither is judged: they were made for this study and can't tell. What was found is shown all the same, "
    "and whether it is as stated. The same holds on data that ask another question.",
    "A statement about all of the paper's models can be refuted by some of them, and is at best unclear while one is missing. "
    "Where none of them is there, others stand in: shown, not judged.",
    "What networks are, and how a study was made, is judged in every study, synthetic ones too: there the row says whether "
    "this study's own runs were made as the paper says.",
    "Where each fold has test patches of its own, intervals and p values are those of the corrected paired t test over folds "
    "(Nadeau and Bengio 2003), which counts a fit's training and test patches (at smaller sizes as at the largest).",
    "Where all folds are tested on the same patches (out of domain; the authors' own division), they are over draws of the "
    "tested cases of each domain, the same for both arms, with the spread over folds for the training (Obuchowski and "
    "Rockette 1995); the row says how many cases. A loss out of domain has both parts. p values are after Holm over all "
    "comparisons of the row. Expected values are the papers'; tolerances and margins are the same for all studies.",
)


def check(study: Study, scores: pd.DataFrame, results: str | Path) -> pd.DataFrame:
    """Every claim asked of a study, a row each, columns COLUMNS.

    ``claim`` the quote, ``where`` in its paper, ``test`` what would show it, ``expected`` and ``tolerance``, ``found`` in this
    study, ``difference`` (found less expected, or the comparison that decides; NaN where there is none), ``verdict`` one of
    `claims.judge.VERDICTS`, ``why``, ``data`` what it was measured on; ``here``, of a comparison that can't be judged, whether
    it is as stated in these data; ``paper`` whose claim it is, ``subject`` what it is of.

    scores: as `mfcore.analysis.compare.scores` returns it. results: the study's folder; what it lacks makes rows that say so.
    """
    return asked(CLAIMS, Material(study, scores, Path(results)))


def asked(claims: Iterable[tuple[str, Claim]], material: Material) -> pd.DataFrame:
    """Claims with their subjects, asked of a study: a row each, columns COLUMNS, as `check` has them."""
    rows = [_row(material.study, claim, claim.measure(material)) | {"subject": subject} for subject, claim in claims]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(study: Study, claim: Claim, finding: Finding) -> dict:
    """A claim's row: the verdict is what was found, unless the study's data or arms can't settle the claim."""
    against = [reason for reason in (out_of_scope(study, claim.about), finding.barred) if reason]
    if finding.outcome == NOT_TESTABLE and not against:
        against = [finding.found]
    verdict = NOT_TESTABLE if against else finding.outcome
    has_meaning = verdict != NOT_TESTABLE or finding.is_comparison  # a count's distance from that of other data has none
    said = [*against, finding.why] if finding.why and (has_meaning or not out_of_scope(study, claim.about)) else against
    return {
        "claim": claim.quote,
        "where": claim.where,
        "test": claim.test,
        "expected": claim.expected,
        "tolerance": claim.tolerance,
        "found": finding.found,
        "difference": finding.difference if has_meaning else math.nan,
        "verdict": verdict,
        "why": "; ".join(said),
        "data": captions.in_full(study).replace("`", ""),
        "here": HERE[finding.outcome] if verdict == NOT_TESTABLE and finding.is_comparison else "",
        "paper": claim.paper,
    }


def write(ledger: pd.DataFrame, folder: str | Path) -> pd.DataFrame:
    """Keep the ledger as ``claims.csv`` and ``claims.json`` (no number: null) in ``folder``; returns it."""
    store.write_csv(Path(folder) / "claims.csv", ledger)
    rows = [
        {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in row.items()}
        for row in ledger.to_dict("records")
    ]
    store.write_json(Path(folder) / "claims.json", rows)
    return ledger


def counts(ledger: pd.DataFrame) -> pd.DataFrame:
    """How many claims got which verdict: a row a paper and subject, in the ledger's order, a column a verdict of VERDICTS."""
    table = pd.crosstab([ledger["paper"], ledger["subject"]], ledger["verdict"]).reindex(columns=list(VERDICTS), fill_value=0)
    order = ledger[["paper", "subject"]].drop_duplicates()
    return table.loc[list(order.itertuples(index=False, name=None))].rename_axis(columns=None).reset_index()


def brief(ledger: pd.DataFrame) -> pd.DataFrame:
    """The paper's own claims for a notebook: those that were judged, and the comparisons that were only shown."""
    own = ledger[(ledger["paper"] == GANZ) & ((ledger["verdict"] != NOT_TESTABLE) | (ledger["here"] != ""))]
    return own[["claim", "where", "verdict", "here", "found"]].reset_index(drop=True)


def sections(ledger: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The ledger in parts to be read: the paper's by section, in its order, then each other paper's."""
    own = ledger[ledger["paper"] == GANZ]
    part = own["where"].str.split(",").str[0]
    found = [(f"{GANZ}, {name}", own[part == name]) for name in SECTIONS if (part == name).any()]
    return found + [(paper, rows) for paper, rows in ledger[ledger["paper"] != GANZ].groupby("paper", sort=False)]
