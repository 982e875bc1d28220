"""The supplement's page on conventions: the same weights as five libraries use them, and what that does to the numbers."""

from pathlib import Path

import pandas as pd

from mfcore.analysis import estimators
from mfcore.study.config import Settings
from mfcore.study.study import Study
from mfcore.sweep import report_html
from mfcore.sweep.report_html import table


def page(study: Settings, results: Path) -> str:
    """The page, from the embeddings and probes that notebooks 02 and 03 made under the variants of one encoder."""
    rows = estimators.conventions_table(Study(study, results))
    otherwise = estimators.embeds_otherwise(Study(study, results))
    lacking = set(rows.loc[rows["auroc"].isna(), "card"]) - ({study.conventions} if otherwise else set())
    return report_html.render(
        "conventions.html",
        study=study,
        rows=table(estimators.conventions_readable(rows)),
        said=said(rows),
        missing=", ".join(sorted(lacking)),
        otherwise=otherwise,
    )


def said(rows: pd.DataFrame) -> str:
    """What the table shows, in a sentence computed from it; empty while fewer than two ways have run."""
    others = rows[rows["difference"].notna() & (rows["library"] != estimators.AUTHORS)]
    if not len(others):
        return ""
    sure = others[(others["low"] > 0) | (others["high"] < 0)]
    far = others.loc[others["difference"].abs().idxmax()]
    text = f"The AUROC of the same weights lies between {rows['auroc'].min():.3f} and {rows['auroc'].max():.3f}"
    text += f", most apart from the authors' card by {far['library']}'s way ({far['difference']:+.3f}). "
    if len(sure):
        return text + f"The interval leaves out zero for {', '.join(sure['library'])}."
    return text + "No interval leaves out zero: with these folds the ways can't be told apart by what the probe scores."
