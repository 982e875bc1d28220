"""The same predictions a part at a time: by domain, by scanner, by whether the raters agreed."""

import pandas as pd

from mfcore import compare, raters
from mfcore.config import Study
from mfcore.statistics_bootstrap import N_RESAMPLES, bootstrap, resample

STRATA = ("domain", "scanner", "agreement")
COLUMNS = ["arm", "kind", "stratum", "value", "auroc", "low", "high", "balanced_accuracy"]
COLUMNS += ["n", "n_positive", "n_slides", "unit"]


def by_stratum(predictions: pd.DataFrame, labels: pd.DataFrame, study: Study, n_resamples: int = N_RESAMPLES) -> pd.DataFrame:
    """AUROC of every arm with all the data, within each value of each of STRATA: a row an arm, stratum and value.

    ``auroc``, with ``low`` to ``high``, its 95 % interval over resampled slides or cases (``unit`` says which), and
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
            counts = (len(tested), int(tested["label"].sum()), tested["slide_id"].nunique())
            rows.append((arm, kind, stratum, value, auroc.estimate, auroc.low, auroc.high, balanced, *counts, auroc.unit))
    table = compare.in_order(pd.DataFrame(rows, columns=COLUMNS), study)
    return table.sort_values("stratum", key=lambda c: c.map(STRATA.index), kind="stable", ignore_index=True)
