"""The same predictions a part at a time: by domain, by scanner, by whether the raters agreed."""

import numpy as np
import pandas as pd

from mfcore.analysis import compare
from mfcore.measures import binary, raters
from mfcore.measures.resampling import N_RESAMPLES, bootstrap, resample
from mfcore.measures.statistics import spread
from mfcore.study.config import Settings

STRATA = ("domain", "scanner", "agreement")
COLUMNS = ["arm", "kind", "stratum", "value", "auroc", "low", "high", "balanced_accuracy"]
COLUMNS += ["n", "n_positive", "n_slides", "n_units", "unit"]


def by_stratum(
    predictions: pd.DataFrame, labels: pd.DataFrame, study: Settings, n_resamples: int = N_RESAMPLES
) -> pd.DataFrame:
    """AUROC of every arm with all the data, within each value of each of STRATA: a row an arm, stratum and value.

    ``auroc``, with ``low`` to ``high``, its 95 % interval over ``n_units`` resampled slides or cases (``unit``), and
    ``balanced_accuracy`` are means over folds, each fold among its own test patches. ``n, n_positive, n_slides`` count
    different annotations and slides tested in any fold. NaN where every fold lacks a class. A value that labels leave empty
    (no scanner said, fewer than two votes) has no row, and a stratum with one value none at all: it is the whole. A domain or
    scanner is compared with another only with care, as their annotations differ too.

    labels: the study's stored label table. Raises StoreError where it lacks a patch that was predicted.
    """
    part = compare.full_size(predictions)
    compare.refuse_lost(part, labels)
    of_patch = labels[["patch_id", "scanner"]].assign(agreement=raters.stratum(labels))
    part = part.merge(of_patch, on="patch_id", validate="many_to_one")
    rows = []
    for stratum in STRATA:
        known = part[part[stratum] != ""]
        if known[stratum].nunique() < 2:
            continue
        for (arm, kind, value), group in known.groupby(["arm", "kind", stratum]):
            auroc = bootstrap(group, "auroc", study.splits.seed, "strata", value, n_resamples=n_resamples)
            balanced = float(resample(group, "balanced_accuracy", study.splits.seed, n_resamples=0)[0])
            tested = group.drop_duplicates("patch_id")
            counts = (len(tested), int(tested["label"].sum()), tested["slide_id"].nunique(), auroc.n)
            rows.append((arm, kind, stratum, value, auroc.estimate, auroc.low, auroc.high, balanced, *counts, auroc.unit))
    table = compare.in_order(pd.DataFrame(rows, columns=COLUMNS), study)
    return table.sort_values("stratum", key=lambda c: c.map(STRATA.index), kind="stable", ignore_index=True)


def by_agreement(predictions: pd.DataFrame, labels: pd.DataFrame, study: Settings) -> pd.DataFrame:
    """Every metric of every arm with all the data, apart by whether the raters were of one mind (`mfcore.measures.raters`).

    Mean and sample SD over folds (``auroc``, ``auroc_sd`` and so on), a row an arm and part of the test annotations that
    have two or more votes: ``annotations`` "all", "unanimous" and "contested", ``against`` "consensus"; and "all" ``against``
    "one rater", the mean over raters, which is what one rater against another is to be compared with. ``n_test``:
    annotations tested, mean over folds; ``n_folds``: folds that have any. NaN where every fold lacks a class.

    labels: the study's stored label table. Raises StoreError where it lacks a patch that was predicted.
    """
    part = compare.full_size(predictions)
    compare.refuse_lost(part, labels)
    voted, votes = raters.votes(labels)
    judged = voted[["patch_id"]].assign(stratum=raters.stratum(voted), vote=list(votes))
    part = part.merge(judged, on="patch_id", validate="many_to_one")
    rows = []
    for (arm, kind), group in part.groupby(["arm", "kind"], sort=False):
        for stratum in ("all", raters.UNANIMOUS, raters.CONTESTED):
            chosen = group if stratum == "all" else group[group["stratum"] == stratum]
            row = {"arm": arm, "kind": kind, "annotations": stratum}
            rows.append(row | {"against": "consensus"} | _over_folds(chosen, chosen[["label"]].to_numpy()))
            if stratum == "all":
                rows.append(row | {"against": "one rater"} | _over_folds(chosen, np.stack(chosen["vote"])))
    table = pd.DataFrame(rows, columns=["arm", "kind", "annotations", "against", "n_test", "n_folds", *_WITH_SD])
    return compare.in_order(table, study)


_WITH_SD = [f"{name}{end}" for name in binary.METRICS for end in ("", "_sd")]


def _over_folds(predictions: pd.DataFrame, references: np.ndarray) -> dict[str, float]:
    """Mean and SD over folds of every metric against each column of ``references`` (n, n_references), averaged over these."""
    folds = predictions["fold"].to_numpy()
    found: dict[str, list] = {name: [] for name in binary.METRICS}
    for fold in np.unique(folds):
        score = predictions["score"].to_numpy()[folds == fold]
        each = [binary.evaluate(reference, score) for reference in references[folds == fold].T]
        for name, values in found.items():
            values.append(np.mean([one[name] for one in each]))
    n_folds = len(np.unique(folds))
    row: dict[str, float] = {"n_test": round(len(folds) / n_folds) if n_folds else 0, "n_folds": n_folds}
    for name, values in found.items():
        over = spread(np.array(values))
        row |= {name: over.mean, f"{name}_sd": over.sd}
    return row


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table of metrics for the eye: one column a metric, "mean ± SD" in its cells."""
    cells = {
        title: [compare.plus_minus(mean, sd) for mean, sd in zip(table[name], table[f"{name}_sd"], strict=True)]
        for name, title in binary.TITLES.items()
    }
    return table.drop(columns=_WITH_SD).assign(**cells)
