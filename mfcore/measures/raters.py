"""The human reference: how far the raters who labelled the annotations agree with one another and
with their consensus.

Two warnings go with every number. The consensus is what the raters voted for, so that a rater
measured against it is flattered; one rater against another is not. And a rater here is a position
in the list of votes, which need not be the same person on every slide: what is said of two raters
is therefore the mean of both ways round, and differences between positions are not read as
differences between people.
"""

from itertools import combinations

import numpy as np
import pandas as pd

from mfcore.measures.binary import balanced_accuracy, mean_recall_of
from mfcore.measures.resampling import interval_of, resampled_slides, sums_by_slide, units_of
from mfcore.measures.statistics import Interval

ALL = "all"  # every domain together; no domain may have this name
UNANIMOUS, CONTESTED = "unanimous", "contested"
MEASURES = ("agreement", "kappa", "balanced_accuracy")
EACH = "each rater against the consensus, balanced accuracy"  # a column of `as_text`


def votes(labels: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """The annotations with two or more votes, and the votes of every rater who saw them all, int8
    (n, n_raters).

    A rater is a position that each of these annotations has filled: two of MIDOG++, whose third saw
    only a part, chosen for being disputed; three of AMi-Br. Without any votes, n and n_raters are
    0.
    """
    n_votes = labels["votes"].map(len)
    voted = labels[n_votes > 1]
    n_raters = int(n_votes[n_votes > 1].min()) if len(voted) else 0
    given = np.array([vote[:n_raters] for vote in voted["votes"]], dtype=np.int8)
    return voted, given.reshape(len(voted), n_raters)


def table(labels: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Rater statistics, a row a domain and "all" last; without a row where no annotation has two
    votes.

    labels: with ``slide_id, case_id, domain, label, votes``; ``label`` is the consensus. ``seed``
    draws the intervals.

    ``n`` annotations with two or more votes, on ``n_slides``, of which ``n_units`` slides or cases
    are drawn (``unit``). One rater against another: ``agreement`` (share of equal votes), ``kappa``
    (Cohen 1960) and ``balanced_accuracy`` (mean of both ways round: each rater in turn is the
    reference), each the mean over pairs of raters, and with ``_low`` and ``_high``, the 95 %
    interval of a bootstrap over these. ``rater1_vs_consensus`` and so on: balanced accuracy of each
    rater against ``label``, for which that rater voted. ``third_share``: annotations with a third
    vote; ``contested_share``: those with differing votes.

    Kappa and balanced accuracies are NaN where a rater or the consensus knows one class only,
    everything where a domain has no votes.
    """
    voted, given = votes(labels)
    columns = ["domain", "n", "n_slides", "n_units", "unit"]
    columns += [f"{measure}{end}" for measure in MEASURES for end in ("", "_low", "_high")]
    columns += [
        *(f"rater{i + 1}_vs_consensus" for i in range(given.shape[1])),
        "third_share",
        "contested_share",
    ]
    parts = {
        domain: (voted["domain"] == domain).to_numpy()
        for domain in sorted(labels["domain"].unique())
    }
    parts[ALL] = np.ones(len(voted), dtype=bool)
    rows = (
        [_row(voted[part], given[part], seed, domain) for domain, part in parts.items()]
        if len(voted)
        else []
    )
    return pd.DataFrame(rows, columns=columns)


def _row(voted: pd.DataFrame, given: np.ndarray, seed: int, domain: str) -> dict:
    """Statistics of one domain's annotations, whose full raters' votes are ``given``, int8 (n,
    n_raters).
    """
    units, unit = units_of(voted)
    row: dict = {"domain": domain, "n": len(voted), "n_slides": voted["slide_id"].nunique()}
    row |= {"n_units": units.nunique(), "unit": unit}
    if not len(voted):
        return row
    slide, weights = resampled_slides(units, seed, "raters", domain)
    pairs = []
    for first, second in combinations(given.T.astype(np.int64), 2):
        counts = sums_by_slide(slide, 2 * first + second, weights.shape[1], 4, np.ones(len(voted)))
        pairs.append(_measures((weights @ counts).reshape(-1, 2, 2)))
    for measure, values in zip(MEASURES, np.mean(pairs, axis=0), strict=True):
        interval = interval_of(values, weights.shape[1], least=-1 if measure == "kappa" else 0)
        row |= {
            measure: interval.estimate,
            f"{measure}_low": interval.low,
            f"{measure}_high": interval.high,
        }
    row |= {
        f"rater{i + 1}_vs_consensus": balanced_accuracy(voted["label"], vote)
        for i, vote in enumerate(given.T)
    }
    row["third_share"] = float((voted["votes"].map(len) > 2).mean())
    row["contested_share"] = float((stratum(voted) == CONTESTED).mean())
    return row


def _measures(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MEASURES of two raters, (n,) each, from counts of annotations by the first's and the second's
    vote (n, 2, 2).
    """
    # (n, 2) each
    same = np.diagonal(counts, axis1=1, axis2=2)
    first = counts.sum(axis=2)
    second = counts.sum(axis=1)
    n = first.sum(axis=1)
    agreement, by_chance = same.sum(axis=1) / n, (first * second).sum(axis=1) / n**2
    balanced = (mean_recall_of(same, first) + mean_recall_of(same, second)) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        kappa = np.where(np.isfinite(balanced), (agreement - by_chance) / (1 - by_chance), np.nan)
    return agreement, kappa, balanced


def reference(human: pd.DataFrame, domain: str = ALL) -> Interval | None:
    """Balanced accuracy of one rater against another, with its interval over ``n`` slides or cases;
    None where there is none.

    human: as `table` returns it.
    """
    rows = human[human["domain"] == domain].dropna(subset="balanced_accuracy")
    if rows.empty:
        return None
    row = rows.iloc[0]
    estimate, low, high = (float(row[f"balanced_accuracy{end}"]) for end in ("", "_low", "_high"))
    return Interval(estimate, low, high, int(row["n_units"]), row["unit"])


def against_consensus(human: pd.DataFrame, domain: str = ALL) -> float | None:
    """Balanced accuracy of a rater against the consensus that counts the rater's own vote
    (flattered), mean over raters.
    """
    means = (
        human[human["domain"] == domain]
        .filter(like="_vs_consensus")
        .mean(axis="columns", skipna=False)
        .dropna()
    )
    return None if means.empty else float(means.iloc[0])


def stratum(labels: pd.DataFrame) -> pd.Series:
    """Whether each annotation's raters were of one mind: "unanimous", "contested", or "" with fewer
    than two votes.
    """
    kinds = [
        ("" if len(vote) < 2 else UNANIMOUS if len(set(vote)) == 1 else CONTESTED)
        for vote in labels["votes"]
    ]
    return pd.Series(kinds, index=labels.index, name="stratum", dtype=object)


def as_text(human: pd.DataFrame) -> pd.DataFrame:
    """`table` for the eye: values with their interval, shares in per cent, a dash for what can't be
    said.
    """
    numbers = human.select_dtypes("number")
    text = numbers.map("{:.2f}".format).mask(numbers.isna(), "–")
    shown = human[["domain", "n", "n_slides"]].rename(
        columns={"n": "annotations", "n_slides": "slides"}
    )
    if (human["unit"] == "case").any():
        shown["cases"] = human["n_units"]
    for measure in MEASURES:
        span = " [" + text[f"{measure}_low"] + ", " + text[f"{measure}_high"] + "]"
        shown[measure.replace("_", " ")] = text[measure] + span.mask(
            human[f"{measure}_low"].isna(), ""
        )
    shown[EACH] = text.filter(like="_vs_consensus").agg(" / ".join, axis="columns")
    for title, name in {"third vote": "third_share", "contested": "contested_share"}.items():
        shown[title] = (
            human[name].map("{:.1%}".format).str.replace("%", " %").mask(human["n"] == 0, "–")
        )
    return shown
