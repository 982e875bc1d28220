"""The supplement's page on probes: what a score owes to how the linear head was fitted, encoder and splits being the same."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.analysis import compare, estimators
from mfcore.data import splits
from mfcore.measures.statistics import Folds
from mfcore.study.config import Settings
from mfcore.study.study import Study
from mfcore.sweep import report_html
from mfcore.sweep.report_html import table


def page(study: Settings, results: Path) -> str:
    """The page, from the audits that notebook 03 made of ``study.probe_audit``; encoders without one are named."""
    sections, missing, described = [], [], {}
    for encoder in study.probe_audit:
        try:
            run = estimators.find(Study(study, results), encoder)
        except store.StoreError:
            missing.append(encoder)
            continue
        described = run.identity["config"]["estimators"]
        titles = estimators.titles_of(run)
        found = estimators.scores(run)
        rows = estimators.table(found)
        figure = f"03_{run.folder.name}"
        drawn = (Path(results) / "figures" / f"{figure}.png").is_file()
        sections.append(
            {
                "encoder": encoder,
                "said": said(found, titles, estimators.folds(run, study.splits.seed)),
                "full": table(estimators.wide(rows, titles)),
                "by_size": [
                    (estimators.TITLES[metric], table(estimators.by_size(rows, titles, metric)))
                    for metric in ("auroc", "balanced_accuracy")
                ],
                "figure": report_html.figure(results, figure) if drawn else "",
                "sklearn_c": said_of_c(rows),
            }
        )
    return report_html.render(
        "probes.html",
        study=study,
        estimators=table(definitions(described)) if described else "",
        sections=sections,
        missing=", ".join(missing),
        published=table(published()) if "amibr_probes.csv" in study.source.published and sections else "",
    )


def definitions(described: dict[str, dict]) -> pd.DataFrame:
    """What each estimator is, as the audit's record has it, for the eye."""
    shown = pd.DataFrame(list(described.values()))
    shown["weighs_classes"] = np.where(shown["weighs_classes"], "both alike", "no")
    shown["uses_validation"] = np.where(shown["uses_validation"], "training, and validation for stopping", "training only")
    scaled = shown["features"] != "as they are"
    shown["objective"] += np.where(scaled, "; features " + shown["features"], "")
    order = ["title", "objective", "optimiser", "weighs_classes", "uses_validation", "source"]
    return shown[order].rename(columns={"title": "estimator", "uses_validation": "patches used", "source": "after"})


def said(found: pd.DataFrame, titles: dict[str, str], by_estimator: Mapping[str, Folds]) -> str:
    """How far apart the estimators lie beside the SD over folds, in sentences computed from the scores."""
    rows = estimators.table(found)
    full = rows[rows["size"] == rows["size"].max()].set_index("estimator")
    sentences = ["With all the data, " + _apart(full, "auroc", titles), "Their " + _apart(full, "balanced_accuracy", titles)]
    at_share = full[estimators.AT_SHARE]
    sentences.append(
        "With the threshold at the share of class 1 in training wherever classes aren't weighed, balanced accuracy lies "
        f"between {at_share.min():.3f} and {at_share.max():.3f}."
    )
    against = estimators.differences(found, by_estimator).dropna()
    if len(against):
        far = against.loc[against["difference"].abs().idxmax()]
        span = compare.bounds(far["low"], far["high"]) or "no interval"
        n_sure = int(((against["low"] > 0) | (against["high"] < 0)).sum())
        sentences.append(
            f"Fold by fold, the AUROC farthest from this study's own probe's is that of “{titles[far['estimator']]}”, "
            f"{far['difference']:+.3f} ({span}); of {len(against)} such intervals "
            f"{n_sure or 'none'} leave{'s' if n_sure == 1 else ''} out zero."
        )
    stopped = found[found["n_epochs"].notna()]
    n_limit = int(stopped["ended"].str.startswith("limit").sum())
    sentences.append(f"Of {len(stopped)} fits that validation could stop, at all sizes, {n_limit or 'none'} ran to the limit.")
    return " ".join([*sentences, *_far_enough(found, full, by_estimator)])


def _far_enough(found: pd.DataFrame, full: pd.DataFrame, by_estimator: Mapping[str, Folds]) -> list[str]:
    """Whether the early stopped Adam gets as far at its own learning rate as at a higher one."""
    slow, fast = estimators.SLOW, estimators.FAST
    if not {slow, fast} <= set(full.index):
        return []
    one = estimators.differences(found, by_estimator, slow).set_index("estimator").loc[fast]
    span = compare.bounds(one["low"], one["high"])
    if not span:  # too few folds
        return []
    text = (
        f"Twenty times the learning rate moves the early stopped Adam's AUROC by {one['difference']:+.3f} "
        f"({span}), and on its own training patches from "
        f"{full.loc[slow, 'train_auroc']:.2f} to {full.loc[fast, 'train_auroc']:.2f}"
    )
    if one["low"] > 0:
        return [f"{text}: at 5e-5 it is stopped before it has learnt what these embeddings hold."]
    return [f"{text}; {'the interval holds zero' if one['high'] >= 0 else 'more training makes it worse'}."]


def _apart(full: pd.DataFrame, metric: str, titles: dict[str, str]) -> str:
    mean, sd = full[metric], full[f"{metric}_sd"].median()
    apart = mean.max() - mean.min()
    text = (
        f"mean {estimators.TITLES[metric]} lies between {mean.min():.3f} (“{titles[mean.idxmin()]}”) "
        f"and {mean.max():.3f} (“{titles[mean.idxmax()]}”), {apart:.3f} apart"
    )
    if not np.isfinite(sd):
        return text + "; with one fold there is no SD to hold against it."
    return text + f": {'more' if apart > sd else 'no more'} than one SD over folds ({sd:.3f}, the median over estimators)."


def said_of_c(rows: pd.DataFrame) -> str:
    """With which C scikit-learn's estimator would have the minimum of this study's own, by size."""
    own = rows[rows["estimator"] == estimators.OWN]
    named = rows[(rows["estimator"] == "sklearn_unis_c") & (rows["size"] == rows["size"].max())]["sklearn_c"]
    cells = ", ".join(
        f"{c:.3g} at {splits.percent(size)} %{'' if c else ' (all its weights are 0)'}"
        for size, c in zip(own["size"], own["sklearn_c"], strict=True)
    )
    wrong = f", not {named.iloc[0]:.3g}" if len(named) else ""
    return f"scikit-learn's minimum, without scaling, would be that of this study's probe with C = {cells}{wrong}."


def published() -> pd.DataFrame:
    """The published scores on AMi-Br for the eye."""
    rows = estimators.published()
    shown = rows[["arm", "kind"]].copy()
    shown["balanced accuracy"] = [
        compare.plus_minus(m, sd) for m, sd in zip(rows["balanced_accuracy"], rows["balanced_accuracy_sd"], strict=True)
    ]
    shown["AUROC"] = [compare.plus_minus(m, np.nan) for m in rows["auroc"]]
    return shown
