"""What another way to split would have promised: one encoder's probe under each scheme, beside what each scheme leaks."""

from pathlib import Path

import pandas as pd

from mfcore import store
from mfcore.analysis import compare
from mfcore.data import splits, splits_audit
from mfcore.study.config import SCHEMES, Study

BASE = "slide"  # the scheme that the others are measured against


def inflation(study: Study, results: str | Path) -> pd.DataFrame:
    """A row a scheme of ``study.inflation`` and size: what the probe scores under it, and how much that is above by slide.

    ``scheme, size, n_train, n_folds, auroc, auroc_sd, balanced_accuracy, balanced_accuracy_sd``, the leaks of
    `splits_audit.LEAKS` (means over folds; sample SD over folds), ``auroc_inflation`` and ``balanced_accuracy_inflation``: the
    mean less that of splitting by slide at the same size, NaN where that is not run. Schemes not run yet have no row; without
    an encoder there is none at all. Raises StoreError where the splits have no audit.
    """
    results, encoder = Path(results), study.inflation.encoder
    if not encoder:
        return pd.DataFrame()
    leaks = splits_audit.load_schemes(splits_audit.find(study, results)).drop(columns="fold")
    leaks = leaks.groupby(["scheme", "size"])[list(splits_audit.LEAKS)].mean()
    tables = []
    for scheme in SCHEMES:
        if scheme not in (*study.inflation.schemes, study.switches.scheme):
            continue
        other = splits.under(study, scheme)
        try:
            run = compare.current_runs(other, results).get(encoder)
        except store.StoreError:  # no splits of that scheme yet
            run = None
        if run is not None:
            scores = compare.scores(compare.load_arm(run, encoder, compare.PROBE))
            tables.append(compare.scaling_table(scores, other).assign(scheme=scheme))
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables, ignore_index=True).join(leaks, on=["scheme", "size"])
    for name in ("auroc", "balanced_accuracy"):
        base = table[table["scheme"] == BASE].set_index("size")[name]
        table[f"{name}_inflation"] = table[name] - table["size"].map(base)
    kept = ["scheme", "size", "n_train", "n_folds", "auroc", "auroc_sd", "balanced_accuracy", "balanced_accuracy_sd"]
    kept += [*splits_audit.LEAKS, "auroc_inflation", "balanced_accuracy_inflation"]
    return table[kept]


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """`inflation` for the eye: a row a scheme and size, scores as "mean ± SD", shares in per cent, inflation signed."""
    return pd.DataFrame(
        {
            "scheme": table["scheme"].map(splits_audit.scheme_title),
            "size": [f"{splits.percent(size)}\u00a0%" for size in table["size"]],
            "n_train": table["n_train"],
            **{leak: splits_audit.per_cent(table[leak]) for leak in splits_audit.LEAKS},
            "AUROC": [compare.plus_minus(m, sd) for m, sd in zip(table["auroc"], table["auroc_sd"], strict=True)],
            "above_by_slide": [f"{value:+.3f}" if pd.notna(value) else "–" for value in table["auroc_inflation"]],
        }
    )
