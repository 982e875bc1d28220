"""Whether a score of 0.8 means 8 of 10: reliability with all the data, with the spread of the test slides."""

import numpy as np
import pandas as pd

from mfcore.analysis import compare
from mfcore.measures import binary
from mfcore.measures.resampling import N_RESAMPLES, interval_of, resampled_slides, sums_by_slide, units_of
from mfcore.measures.statistics import spread
from mfcore.study.config import Settings

BINS = ["arm", "kind", "bin_low", "bin_high", "mean_score", "share_positive", "low", "high", "n", "n_units", "unit"]
SUMMARY = ["brier", "ece", "mean_score", "share_positive"]


def reliability(predictions: pd.DataFrame, n_bins: int = binary.N_BINS, n_resamples: int = N_RESAMPLES) -> pd.DataFrame:
    """Share of class 1 by score, a row an arm and bin of equal width that has a patch (`binary.bin_of`).

    All folds together, since a probability has a common scale: ``mean_score`` and ``share_positive`` of the bin's ``n``
    tested patches (one patch may be tested in several folds), and ``low`` to ``high``, the 95 % interval of that share over
    ``n_units`` resampled slides or cases (``unit`` says which). NaN for a bin of fewer than MIN_SLIDES of them or of one
    class, whose resamples are too much alike to say what other slides would have shown.

    predictions: as `compare.collect`; only fits on all domains at the largest size count. Raises MetricError for labels and
    scores that are none.
    """
    rows = []
    for (arm, kind), group in compare.full_size(predictions).groupby(["arm", "kind"], sort=False):
        label, score = binary.check(group["label"].to_numpy(), group["score"].to_numpy())
        column = binary.bin_of(score, n_bins)
        units, unit = units_of(group)
        slide, weights = resampled_slides(units, 0, "reliability", n_resamples=n_resamples)
        sums = {
            name: sums_by_slide(slide, column, weights.shape[1], n_bins, amount)
            for name, amount in {"n": np.ones(len(label)), "positive": label, "score": score}.items()
        }
        n, positive = weights @ sums["n"], weights @ sums["positive"]  # (1 + n_resamples, n_bins)
        shares = np.divide(positive, n, out=np.full(n.shape, np.nan), where=n > 0)
        for i in np.flatnonzero(n[0]):
            found = interval_of(shares[:, i], int(np.count_nonzero(sums["n"][:, i])))
            mean_score = sums["score"][:, i].sum() / n[0, i]
            edges = (i / n_bins, (i + 1) / n_bins)
            rows.append((arm, kind, *edges, mean_score, shares[0, i], found.low, found.high, int(n[0, i]), found.n, unit))
    return pd.DataFrame(rows, columns=BINS)


def summary(predictions: pd.DataFrame, study: Settings) -> pd.DataFrame:
    """How far each arm's probabilities can be taken at their word, a row an arm with all the data.

    ``brier, ece`` (`mfcore.measures.binary`), ``mean_score`` and ``share_positive``, mean and sample SD (``_sd``) over
    ``n_folds``. An arm whose mean score lies above the share of class 1 gives class 1 too readily. ``brier_of_share``: the
    Brier score of a constant, each fold's own share of class 1, which an arm must be below to have said anything.
    """
    rows = []
    for (arm, kind), group in compare.full_size(predictions).groupby(["arm", "kind"], sort=False):
        folds = pd.DataFrame([_of_fold(fold) for _, fold in group.groupby("fold")])
        row: dict = {"arm": arm, "kind": kind}
        for name in SUMMARY:
            over = spread(folds[name])
            row |= {name: over.mean, f"{name}_sd": over.sd}
        constant = folds["share_positive"] * (1 - folds["share_positive"])
        rows.append(row | {"brier_of_share": constant.mean(), "n_folds": len(folds)})
    return compare.in_order(pd.DataFrame(rows), study)


def _of_fold(fold: pd.DataFrame) -> dict[str, float]:
    label, score = fold["label"].to_numpy(), fold["score"].to_numpy()
    measured = {name: binary.compute(name, label, score) for name in ("brier", "ece")}
    return measured | {"mean_score": score.mean(), "share_positive": label.mean()}
