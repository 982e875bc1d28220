"""The supplement's page on splits: what each way to split shares between training and test, and what it promises."""

from pathlib import Path

import pandas as pd

from mfcore import store
from mfcore.analysis import captions, scaling
from mfcore.data import splits, splits_audit
from mfcore.study.config import SCHEMES, Settings
from mfcore.study.study import Study
from mfcore.sweep import report_html
from mfcore.sweep.report_html import rich, table

MAX_ROWS = 100  # of patches with contradicting labels on the page


def page(study: Settings, results: Path) -> str:
    """The page, from the audit of notebook 01 and the probes that notebook 03 ran under other schemes."""
    run = splits_audit.find(study, results)
    schemes, own, twins = splits_audit.load_schemes(run), splits_audit.load(run), splits_audit.load_twins(run)
    contradictions = twins[twins["contradicts"]]
    inflation = scaling.inflation_table(Study(study, results))
    return report_html.render(
        "audit.html",
        study=study,
        own=splits_audit.scheme_title(study.switches.scheme),
        summary=table(splits_audit.summary(schemes)),
        networks=splits_audit.networks_sentence(run),
        remarks=run.record["facts"]["remarks"],
        twins=splits_audit.twins_sentence(twins, own),
        contradictions=table(contradictions.head(MAX_ROWS).drop(columns="contradicts")) if len(contradictions) else "",
        n_more=max(0, len(contradictions) - MAX_ROWS),
        not_drawn=rich(captions.not_drawn(run.record["facts"]["not_drawn"])),
        inflation=table(scaling.inflation_readable(inflation)) if len(inflation) else "",
        missing=_missing(study, results, inflation),
        figure=report_html.figure(results, "05_inflation") if len(inflation) else "",
        folds=[
            (splits_audit.scheme_title(s), table(_by_fold(schemes[schemes["scheme"] == s])))
            for s in SCHEMES
            if s in set(schemes["scheme"])
        ],
        by_domain=table(_by_fold(own)),
    )


def _missing(study: Settings, results: Path, inflation: pd.DataFrame) -> str:
    """Which of the probes under other schemes failed or didn't run, and why."""
    found = set(inflation["scheme"]) if len(inflation) else set()
    reasons = {}
    for file in sorted(results.glob("failures/*.json")):
        failure = store.read_json(file)
        if failure["parameters"].get("encoder") == study.inflation.encoder:
            reasons[failure["parameters"].get("scheme", study.switches.scheme)] = failure["reason"]
    lines = [
        f"{splits_audit.scheme_title(scheme)}: {reasons.get(scheme, 'not run yet')}"
        for scheme in study.inflation.schemes
        if study.inflation.encoder and scheme not in found
    ]
    return "; ".join(lines)


def _by_fold(audit: pd.DataFrame) -> pd.DataFrame:
    """An audit a fold at a time, shares in per cent."""
    shares = ("positives_train", "positives_val", "positives_test", *splits_audit.LEAKS)
    shown = audit.drop(columns="scheme", errors="ignore").copy()
    shown["size"] = [f"{splits.percent(size)}\u00a0%" for size in shown["size"]]
    for name in shares:
        shown[name] = splits_audit.per_cent(shown[name])
    return shown.rename(columns={"train_domain": "trained on"})
