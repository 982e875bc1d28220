"""The claims ledger: each checkable sentence of the papers, asked of a study, is a row with its
verdict and the reason.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pandas as pd

from mfcore import store
from mfcore.analysis.exhibit import Exhibit
from mfcore.claims import arms, checks, kaiko, reasons, rules
from mfcore.claims.material import DOMAIN_TITLES, Material, Untestable
from mfcore.claims.rows import ANYWHERE, DIRECTION, Row, load
from mfcore.claims.rules import (
    NOT_REPRODUCED,
    NOT_TESTABLE,
    REPRODUCED,
    RULES,
    UNCLEAR,
    VERDICTS,
    Finding,
)
from mfcore.study.config import SOURCES, Settings
from mfcore.study.study import Study

HERE = dict(zip(VERDICTS, ("as stated", "not as stated", "unclear", ""), strict=True))
WORST_FIRST = (NOT_TESTABLE, NOT_REPRODUCED, UNCLEAR, REPRODUCED)
GANZ = "Ganz et al. 2024"
# The kinds of evidence, so that counts of verdicts do not mix what any study can confirm with what
# only results can.
EVIDENCE = ("data", "networks", "method", "data scaling", "domain shift", "later work")
PRETRAINING = "pretraining"
QUESTION = ("mitotic figure", "look-alike")
RULE = (
    (
        "A printed number is judged only on the data set that it was printed for. Reproduced: the "
        "mean over folds is within the tolerance, and its 95 % interval is at most four tolerances "
        "wide. Not reproduced: the whole interval is outside. Otherwise unclear."
    ),
    (
        "A direction (above, not above, alike) is judged on any real data that ask the paper's"
        " question, mitotic figure against look-alike. “Above” needs every difference above zero"
        " with p below 0.05; one difference clearly below zero refutes. “Not above” and “alike”"
        " need every interval inside a margin that was set beforehand."
    ),
    (
        "Synthetic data, and data that ask another question, judge neither. The page shows what was"
        " found, and whether the result is as stated."
    ),
    (
        "A statement about all of the paper's models can be refuted by some of them, and is unclear"
        " while one is missing. Where the study has none of them, other encoders stand in: their"
        " results are shown and not judged."
    ),
    (
        "What networks are, and how a study was made, is judged in every study. The row says"
        " whether this study's runs were made as the paper says."
    ),
    (
        "Where each fold has its own test patches, intervals and p values are those of the"
        " corrected paired t test over folds (Nadeau and Bengio 2003), which counts a fit's"
        " training and test patches."
    ),
    (
        "Where all folds test the same patches (out of domain, or the authors' own division),"
        " intervals are over draws of the tested cases of each domain, the same for both arms, with"
        " the spread over folds for the training (Obuchowski and Rockette 1995). A loss out of"
        " domain has both parts. p values are after Holm over all comparisons of the row."
    ),
)
PRETRAINING_RULE = (
    "kaiko 2024's statements are about ways to pretrain. Pretrainings that differ in one thing "
    "are compared on each task over seeds, paired by seed, by Student's t. Of three seeds the "
    "95 % interval is 4.3 standard errors to each side, so that only steady differences are "
    "clear. “Above” needs every difference above zero with p below 0.05 after Holm; one clearly "
    "below zero refutes. All seeds are tested on the same items: other items are not in the "
    "interval. Where a way has fewer than three seeds, the verdict is unclear."
)


def judge(study: Study, evidence: Iterable[str] = EVIDENCE) -> pd.DataFrame:
    """The claims on some kinds of evidence, asked of a study: a row each, as `answer` makes it.

    ``claim`` is the quote, ``where`` its place, ``test`` what would show it, ``found`` the numbers
    of this study, ``difference`` found less expected, or the comparison that decides (NaN where
    there is none), ``verdict`` one of `rules.VERDICTS`, ``why`` at most two reasons, ``data`` what
    was measured; ``here``, of a comparison that cannot be judged, whether the data are as stated;
    ``subject`` the kind of evidence. What the results lack makes rows that say so.
    """
    material = Material(study)
    return pd.DataFrame([answer(row, material) for row in load() if row.evidence in evidence])


def answer(row: Row, material: Material) -> dict:
    """One claim's row: the verdict is the outcome, unless the study's data or arms cannot settle
    the claim.
    """
    finding = measure(row, material)
    scope = out_of_scope(material.settings, row.about)
    found, against = finding.found or "nothing measured", scope + finding.barred
    if finding.outcome == NOT_TESTABLE and not against:
        against = [found]
    verdict = NOT_TESTABLE if against else finding.outcome
    # a count's distance from other data's count has none
    has_meaning = verdict != NOT_TESTABLE or finding.is_comparison
    why = against + (finding.why if has_meaning or not scope else [])
    return {
        "claim": row.quote,
        "where": row.place,
        "test": row.test,
        "expected": _expected(row),
        "tolerance": _tolerance(row),
        "found": found,
        "difference": finding.difference if has_meaning else math.nan,
        "verdict": verdict,
        "why": "; ".join(list(dict.fromkeys(why))[:2]),
        "data": material.settings.in_full.replace("`", ""),
        "here": HERE[finding.outcome] if verdict == NOT_TESTABLE and finding.is_comparison else "",
        "paper": row.paper,
        "subject": row.evidence,
    }


def measure(row: Row, material: Material) -> Finding:
    """What the study has to say about one claim, whatever data can settle the claim."""
    try:
        barred = arms.no_domains(row, material)
        if row.first and row.rule != "within":
            finding = _comparison(row, material, barred)
        elif barred or not row.rule:
            finding = Finding(barred=barred)
        elif row.check:
            check = getattr(kaiko if row.evidence == PRETRAINING else checks, row.check)
            finding = rules.by_value(row, check(material, **row.arguments))
        else:
            finding = _numbers(row, material)
    except (Untestable, store.StoreError) as reason:
        finding = Finding(barred=[str(reason)])
    barred, why = [*finding.barred, row.barred], [*finding.why, row.note]
    return replace(finding, barred=list(filter(None, barred)), why=list(filter(None, why)))


def _comparison(row: Row, material: Material, barred: list[str]) -> Finding:
    """Arms, sizes or domains compared in pairs."""
    first, second = (
        arms.choose(material, named, row.stand_in) for named in (row.first, row.second)
    )
    sizes, of_sizes = arms.trained_sizes(row, material, first.names + second.names)
    pairs = arms.pairs(row, material, first.names, second.names, sizes)
    finding = Finding(row.lacking)
    if pairs:
        finding = rules.by_pairs(row.rule, material, pairs, row.tolerance)
    if finding.outcome != NOT_REPRODUCED:
        finding = replace(finding, barred=barred)
    return _bound(finding, first + second + of_sizes)


def _numbers(row: Row, material: Material) -> Finding:
    """The mean over folds of each arm (or the best arm) and a printed number: the worst of the
    arms' outcomes.
    """
    choice = arms.choose(material, row.first)
    places = arms.places_of(material, row.at, material.sizes)
    values = {arm: material.at(arm, place, row.metric) for place in places for arm in choice.names}
    values = {arm: folds for arm, folds in values.items() if len(folds)}
    if row.only == "best":
        values = dict(sorted(values.items(), key=lambda item: -item[1].values.mean())[:1])
    is_crossed = row.at in DOMAIN_TITLES
    each = {
        arm: rules.by_folds(material, folds, row.expected, row.tolerance, is_crossed)
        for arm, folds in values.items()
    }
    if not each:
        return _bound(Finding(), choice)
    arm = min(each, key=lambda arm: WORST_FIRST.index(each[arm].outcome))
    finding = replace(
        each[arm],
        found="; ".join(f"{name} {one.found}" for name, one in each.items()),
        difference=max((one.difference for one in each.values()), key=abs),
    )
    if row.explain and finding.outcome != REPRODUCED:
        finding = replace(finding, why=getattr(reasons, row.explain)(material, arm))
    return _bound(finding, choice)


def _bound(finding: Finding, choice: arms.Choice) -> Finding:
    """A finding within what its arms can settle."""
    is_open = choice.partial and finding.outcome == REPRODUCED
    return replace(
        finding,
        outcome=UNCLEAR if is_open else finding.outcome,
        barred=finding.barred + choice.barred,
        why=choice.partial + finding.why,
    )


def out_of_scope(settings: Settings, about: Sequence[str]) -> list[str]:
    """Why this study's data cannot settle a claim about ``about``; empty where they can."""
    asked = settings.data.positive, settings.data.negative
    if ANYWHERE in about or (settings.data.source in about and not settings.data.slides):
        return []
    if settings.caveat:
        return [f"{settings.caveat} cannot settle it"]
    if DIRECTION in about:
        return [] if asked == QUESTION else [f"another question: {asked[0]} against {asked[1]}"]
    titles = " and ".join(SOURCES[name].title for name in about)
    return [f"it is about {titles}, and this study is {settings.source.title}"]


def _expected(row: Row) -> str:
    if isinstance(row.expected, list):
        return " to ".join(f"{end:.3f}" for end in row.expected)
    if isinstance(row.expected, str):
        return row.expected or (RULES[row.rule].expected if row.rule in RULES else "")
    if row.unit == "%":
        return f"{100 * row.expected:g} %"
    return f"{row.expected:,}" + (
        f" (printed ± {row.printed_sd:g})" if row.printed_sd is not None else ""
    )


def _tolerance(row: Row) -> str:
    if row.rule in RULES:
        return RULES[row.rule].tolerance.format(row.tolerance)
    if row.unit == "%":
        return f"± {100 * row.tolerance:g} percentage points"
    return f"± {row.tolerance:,}" if row.tolerance else "none"


# ---- the ledger as files and tables ----


def exhibit(study: Study) -> Exhibit:
    """The first paper's claims, asked of a study: those that were judged, and the comparisons that
    were only shown.

    The whole ledger is kept among the study's figures as ``claims.csv`` and ``claims.json`` (no
    number: null), and how a verdict is reached as ``claims_rule.json``.
    """
    ledger = judge(study)
    store.write_csv(study.figures / "claims.csv", ledger)
    store.write_json(
        study.figures / "claims.json",
        ledger.astype(object).where(ledger.notna(), None).to_dict("records"),
    )
    store.write_json(study.figures / "claims_rule.json", [*RULE, PRETRAINING_RULE])
    is_shown = (ledger["paper"] == GANZ) & (
        (ledger["verdict"] != NOT_TESTABLE) | (ledger["here"] != "")
    )
    table = ledger.loc[is_shown, ["claim", "where", "verdict", "here", "found"]].reset_index(
        drop=True
    )
    caption = (
        f"What {GANZ} state, asked of these data ({study.settings.in_full}): the claims that were "
        "judged, and comparisons that are only shown. `claims.csv` has every claim, with the "
        "reason of its verdict."
    )
    return Exhibit("05_claims", "Claims", caption, table, None, "Claims")
