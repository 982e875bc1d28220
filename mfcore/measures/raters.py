"""The human reference: how far the raters who labelled the annotations agree with one another and with their consensus.

Two warnings go with every number. The consensus is what the raters voted for, so that a rater measured against it is
flattered; one rater against another is not. And a rater here is a position in the list of votes, which need not be the same
person on every slide: what is said of two raters is therefore the mean of both ways round, and differences between
positions are not read as differences between people.
"""

import math
from itertools import combinations

import numpy as np
import pandas as pd

from mfcore.measures.binary import mean_recall_of
from mfcore.measures.resampling import interval_of, resampled_slides, units_of
from mfcore.measures.statistics import LEVEL, Interval

ALL = "all"  # every domain together; no domain may have this name
UNANIMOUS, CONTESTED = "unanimous", "contested"
MEASURES = ("agreement", "kappa", "balanced_accuracy")
AS_METRIC = {
    "accuracy": "agreement",
    "balanced_accuracy": "balanced_accuracy",
    "weighted_f1": "agreement",  # of two raters, the mean of both ways round is their agreement exactly
    "quadratic_kappa": "kappa",  # with two classes the weights change nothing
}
EACH = "each rater against the consensus, balanced accuracy"  # a column of `wide`


def votes(labels: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """The annotations with two or more votes, and the votes of every rater who saw them all, int8 (n, n_raters).

    A rater is a position that each of these annotations has filled: two of MIDOG++, whose third saw only a part, chosen
    for being disputed; three of AMi-Br. Without any votes, n and n_raters are 0.
    """
    n_votes = labels["votes"].map(len)
    voted = labels[n_votes > 1]
    n_raters = int(n_votes[n_votes > 1].min()) if len(voted) else 0
    given = [np.asarray(vote[:n_raters], dtype=np.int8) for vote in voted["votes"]]
    return voted, np.stack(given) if given else np.zeros((0, 0), dtype=np.int8)


def table(labels: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Rater statistics, a row a domain and "all" last; without a row where no annotation has two votes.

    labels: with ``slide_id, case_id, domain, label, votes``; ``label`` is the consensus. ``seed`` draws the intervals.

    ``n`` annotations with two or more votes, on ``n_slides``, of which ``n_units`` slides or cases are drawn (``unit``). One
    rater against another: ``agreement`` (share of equal votes), ``kappa`` (Cohen 1960) and ``balanced_accuracy`` (mean of both
    ways round: each rater in turn is the reference), each the mean over pairs of raters, and with ``_low`` and ``_high``, the
    95 % interval of a bootstrap over these. ``rater1_vs_consensus`` and so on: balanced accuracy of each rater
    against ``label``, for which that rater voted. ``third_share``: annotations with a third vote; ``contested_share``: those
    with differing votes.

    Kappa and balanced accuracies are NaN where a rater or the consensus knows one class only, everything where a domain has
    no votes.
    """
    voted, given = votes(labels)
    if not len(voted):
        return pd.DataFrame(columns=["domain", "n", "n_slides", "n_units", "unit", *_columns(0)])
    parts = [(domain, (voted["domain"] == domain).to_numpy()) for domain in sorted(labels["domain"].unique())]
    parts.append((ALL, np.ones(len(voted), dtype=bool)))
    return pd.DataFrame([{"domain": domain, **_row(voted[mask], given[mask], seed, domain)} for domain, mask in parts])


def _columns(n_raters: int) -> list[str]:
    intervals = [f"{measure}{end}" for measure in MEASURES for end in ("", "_low", "_high")]
    return [*intervals, *(f"rater{i + 1}_vs_consensus" for i in range(n_raters)), "third_share", "contested_share"]


def _row(voted: pd.DataFrame, given: np.ndarray, seed: int, domain: str) -> dict:
    """Statistics of one domain's annotations, whose full raters' votes are ``given``, int8 (n, n_raters)."""
    n_raters = given.shape[1]
    units, unit = units_of(voted)
    row: dict = {"n": len(voted), "n_slides": voted["slide_id"].nunique(), "n_units": units.nunique(), "unit": unit}
    row |= dict.fromkeys(_columns(n_raters), math.nan)
    if not len(voted):
        return row
    slide, weights = resampled_slides(units, seed, "raters", domain)
    pairs = [
        _measures(weights @ _cells(given[:, i], given[:, j], slide, weights.shape[1]))
        for i, j in combinations(range(n_raters), 2)
    ]
    for measure in MEASURES:
        values = np.mean([pair[measure] for pair in pairs], axis=0)
        found = interval_of(values, weights.shape[1], least=-1 if measure == "kappa" else 0)
        row |= {measure: found.estimate, f"{measure}_low": found.low, f"{measure}_high": found.high}
    consensus = voted["label"].to_numpy()
    for i in range(n_raters):
        cells = _cells(consensus, given[:, i], np.zeros(len(voted), dtype=int), 1)
        row[f"rater{i + 1}_vs_consensus"] = float(_one_way(cells)[0])
    row["third_share"] = float((voted["votes"].map(len) > 2).mean())
    row["contested_share"] = float((stratum(voted) == CONTESTED).mean())
    return row


def _cells(first: np.ndarray, second: np.ndarray, slide: np.ndarray, n_slides: int) -> np.ndarray:
    """Each slide's table of two raters' votes, float64 (n_slides, 4): votes 0 and 0, 0 and 1, 1 and 0, 1 and 1."""
    flat = 4 * slide + 2 * first.astype(np.int64) + second
    return np.bincount(flat, minlength=4 * n_slides).reshape(n_slides, 4).astype(np.float64)


def _one_way(cells: np.ndarray) -> np.ndarray:
    """Balanced accuracy of the second against the first of `_cells` (..., 4), (...,); NaN where the first has one class."""
    return mean_recall_of(cells[..., [0, 3]], cells[..., [0, 2]] + cells[..., [1, 3]])


def _measures(cells: np.ndarray) -> dict[str, np.ndarray]:
    """MEASURES of two raters from `_cells` (..., 4), (...,) each; the tests compute them again with scikit-learn."""
    neither, only_second, only_first, both = np.moveaxis(cells, -1, 0)
    with np.errstate(invalid="ignore"):
        expected = (both + only_first) * (neither + only_first) + (both + only_second) * (neither + only_second)
        balanced = (_one_way(cells) + _one_way(cells[..., [0, 2, 1, 3]])) / 2
        kappa = np.where(np.isfinite(balanced), 2 * (both * neither - only_first * only_second) / expected, np.nan)
        agreement = (both + neither) / cells.sum(axis=-1)
    return {"agreement": agreement, "kappa": kappa, "balanced_accuracy": balanced}


def reference(human: pd.DataFrame | None, metric: str, domain: str = ALL) -> Interval | None:
    """What one rater reaches against another in a metric of `mfcore.measures.binary`, with its interval over ``n`` slides or
    cases.

    human: as `table` returns it, or None. None where there are no votes, and for metrics that raters have none of: a vote
    is one operating point, neither a ranking nor a probability. The area under its two straight lines equals the balanced
    accuracy, which is not what a score's AUROC measures.
    """
    row = human[human["domain"] == domain] if human is not None and metric in AS_METRIC else ()
    if not len(row) or not math.isfinite(row[AS_METRIC[metric]].iloc[0]):
        return None
    low, high = (float(row[f"{AS_METRIC[metric]}_{end}"].iloc[0]) for end in ("low", "high"))
    return Interval(float(row[AS_METRIC[metric]].iloc[0]), low, high, LEVEL, int(row["n_units"].iloc[0]), row["unit"].iloc[0])


def against_consensus(human: pd.DataFrame | None, domain: str = ALL) -> float | None:
    """Balanced accuracy of a rater against the consensus that counts the rater's own vote (flattered), mean over raters."""
    row = human[human["domain"] == domain].filter(regex="^rater[0-9]+_vs_consensus$") if human is not None else ()
    value = float(row.iloc[0].mean(skipna=False)) if len(row) else math.nan
    return value if math.isfinite(value) else None


def stratum(labels: pd.DataFrame) -> pd.Series:
    """Whether each annotation's raters were of one mind: "unanimous", "contested", or "" with fewer than two votes."""
    kinds = [("" if len(vote) < 2 else UNANIMOUS if len(set(vote)) == 1 else CONTESTED) for vote in labels["votes"]]
    return pd.Series(kinds, index=labels.index, name="stratum", dtype=object)


def wide(human: pd.DataFrame) -> pd.DataFrame:
    """`table` for the eye: values with their interval, shares in per cent, a dash for what can't be said."""

    def cell(row: dict, name: str) -> str:
        if not math.isfinite(row[name]):
            return "–"
        low, high = row.get(f"{name}_low", math.nan), row.get(f"{name}_high", math.nan)
        return f"{row[name]:.2f}" + (f" [{low:.2f}, {high:.2f}]" if math.isfinite(low) else "")

    titles = {measure: measure.replace("_", " ") for measure in MEASURES}
    flattered = [name for name in human if name.endswith("_vs_consensus")]
    rows = human.to_dict("records")
    shown = human[["domain", "n", "n_slides"]].rename(columns={"n": "annotations", "n_slides": "slides"})
    if (human["unit"] == "case").any():
        shown["cases"] = human["n_units"]
    shown = shown.assign(**{title: [cell(row, name) for row in rows] for name, title in titles.items()})
    shown[EACH] = [" / ".join(cell(row, name) for name in flattered) for row in rows]
    shares = {"third vote": "third_share", "contested": "contested_share"}
    in_per_cent = {title: [f"{100 * row[name]:.1f} %" if row["n"] else "–" for row in rows] for title, name in shares.items()}
    return shown.assign(**in_per_cent)
