"""Captions of the figures that set arms beside one another: ranking, calibration, fitted curves, strata."""

import math

import pandas as pd

from mfcore.analysis import captions, captions_domains, compare, compare_models, figures_models
from mfcore.measures import binary
from mfcore.measures.resampling import coverage_said
from mfcore.measures.statistics import Interval
from mfcore.study.config import Study

STRATA = {"domain": "domain", "scanner": "scanner", "agreement": "the raters' agreement"}


def told_apart(order: pd.DataFrame) -> str:
    """Which arms the folds can't tell apart, in a sentence; ``order`` as `compare_models.ranking` returns it."""
    over = _over(order)
    folds, groups = f"draws of {over}" if over else compare.folds(order), figures_models.ties(order)
    if len(order) < 2:
        return "There is one arm only."
    if not groups:
        return f"{'' if over else 'The '}{folds} tell {'the two' if len(order) == 2 else f'all {len(order)}'} arms apart."
    if len(groups[0]) == len(order):
        who = "The two" if len(order) == 2 else f"No two of the {len(order)}"
        return f"{who} arms can{'' if who[0] == 'N' else chr(39) + 't'} be told apart by {folds}."
    parts = [captions.listed(order["arm"].iloc[list(group)]) for group in groups]
    return f"Not to be told apart by {folds}: {'; '.join(parts)}."


def _over(order: pd.DataFrame) -> str:
    """The cases whose draws the ranking's tests are over, as "31 cases"; empty where they are over folds."""
    over = order["over"].iloc[0]
    return "" if over == compare_models.OVER_FOLDS else over


def ranking(study: Study, order: pd.DataFrame, interval: Interval, folds_show: str, metric: str = "auroc") -> str:
    """Caption of the ranking; ``order`` as `compare_models.ranking`, the sentence as `.what_folds_show` returns it.

    interval: as `compare.best_interval` returns it: over how many slides or cases the figure's intervals are.
    """
    n_pairs = len(order) * (len(order) - 1) // 2
    chance = " Dotted: chance." if figures_models.shows_chance(order) else ""
    own = "" if study.switches.shared_splits else ", a network and a probe unpaired, as they have folds of their own"
    test = f"paired over folds{own}, corrected for their overlap after Nadeau and Bengio"
    if over := _over(order):
        test = f"all folds being tested on the same {over}, over draws of these, after Obuchowski and Rockette"
    return (
        f"**Ranking.** {binary.TITLES[metric]} with all the data: mean, SD over {compare.folds(order)} (wide) and "
        f"95 % interval over the {interval.n} {interval.unit}s tested (thin; bootstrap of {interval.unit}s), "
        f"{captions.of_what(study)}.{coverage_said(interval.n, interval.unit)}{chance} "
        f"After each name: the places that it can hold, given which differences are clear of zero ({test}, and over {n_pairs} "
        f"pairs after Holm). {told_apart(order)} {folds_show}"
    )


def _held(table: pd.DataFrame) -> str:
    """How often a table's intervals hold the truth, for the one over the fewest slides or cases; empty without any."""
    bounded = table[table["low"].notna()]
    return coverage_said(int(bounded["n_units"].min()), bounded["unit"].iloc[0]) if len(bounded) else ""


def reliability(study: Study, table: pd.DataFrame, summary: pd.DataFrame) -> str:
    """Caption of the reliability diagrams; tables as `compare_calibration.reliability` and `.summary` return them."""
    best, worst = summary.loc[summary["ece"].idxmin()], summary.loc[summary["ece"].idxmax()]
    leans = [f"{row.arm} {row.mean_score:.2f}" for row in summary.itertuples()]
    useless = list(summary.loc[summary["brier"] >= summary["brier_of_share"], "arm"])
    brier = f" The Brier score of {captions.listed(useless)} is no better than that of a constant." if useless else ""
    bare = int(table["low"].isna().sum())
    held = _held(table)
    left_out = (
        f" {bare} bin{'s have' if bare > 1 else ' has'} too few {compare.unit(table)}, or one class only, for an interval."
        if bare
        else ""
    )
    return (
        f"**Calibration.** Share of {study.data.positive}s among test patches by their score, {binary.N_BINS} bins of equal "
        f"width, scores of all folds with all the data; on the dotted line a score is the share that it promises. Bars: 95 % "
        f"intervals over {compare.unit(table)}; grey: how many scores a bin has ({captions.of_what(study)}).{left_out}{held} "
        f"Expected calibration error (ECE, mean of {compare.folds(summary)}) from {best['ece']:.2f} ({best['arm']}) to "
        f"{worst['ece']:.2f} ({worst['arm']}). {summary['share_positive'].mean():.2f} of the patches are of class 1; the mean "
        f"score is {', '.join(leans)}.{brier}"
    )


def curves(study: Study, fits: pd.DataFrame, table: pd.DataFrame) -> str:
    """Caption of the learning curves; tables as `compare_curve.fit` and `compare.scaling_table` return them."""
    full = table[table["size"] == table["size"].max()]
    best = full.loc[full["auroc"].idxmax()]
    fitted, loose = fits[fits["asymptote"].notna()], fits[fits["asymptote"].isna()]
    parts = []
    for row in fitted.itertuples():
        parts.append(f"{row.arm} levels off at {row.asymptote:.2f}{_bounds(row.low, row.high)}")
        if row.arm != best["arm"]:
            parts[-1] += f" and would need {_patches(row.n_needed, row.n_needed_low, row.n_needed_high)} to close the gap"
    said = f" {'; '.join(parts)}." if parts else ""
    if len(loose):
        reasons = [f"{captions.listed(part['arm'])} ({why})" for why, part in loose.groupby("why_not", sort=False)]
        said += f" The data determine no curve of {'; '.join(reasons)}."
    rates = loose[loose["per_tenfold"].notna()]
    if len(rates):
        parts = []
        for row in rates.itertuples():
            gain = f"{row.arm} {row.per_tenfold:+.2f}{_bounds(row.per_tenfold_low, row.per_tenfold_high, '+.2f')}"
            needed = _patches(row.n_straight, row.n_straight_low, row.n_straight_high)
            parts.append(gain + (f", at that rate {needed}" if row.arm != best["arm"] else ""))
        said += (
            f" Dotted instead: what the last step brought for each tenfold of patches, drawn on, and how many patches the gap "
            f"would take at that rate, the least where growth slows down: {'; '.join(parts)}."
        )
    bands = "bands and brackets: 95 % over resampled folds"
    if fits["per_tenfold"].notna().any() and fits["per_tenfold_low"].isna().all():
        bands = "no bands, as all folds are tested on the same patches, so that their spread is that of the training alone"
    return (
        f"**Learning curves.** AUROC, mean ± SD of {compare.folds(table)}, by number of training patches n "
        f"({captions.of_what(study)}); curves a - b n^-c; {bands}. Dashed: "
        f"{best['arm']}, {best['auroc']:.2f} with {best['n_train']:,} patches.{said}"
    )


def _bounds(low: float, high: float, form: str = ".2f") -> str:
    return f" [{low:{form}}, {high:{form}}]" if math.isfinite(low) else ""


def _patches(n: float, low: float, high: float) -> str:
    """A number of patches with its interval, two digits each; "no number of patches" where it is infinite."""
    if math.isnan(n):
        return "a number of patches that can't be told"
    bounds = f" [{_two_digits(low)} to {_two_digits(high)}]" if math.isfinite(low) else ""
    return f"{_two_digits(n) if math.isfinite(n) else 'no number of'} patches{bounds}"


def _two_digits(n: float) -> str:
    if not math.isfinite(n):
        return "no end" if n > 0 else "?"
    rounded = round(n, 1 - math.floor(math.log10(n))) if n > 0 else 0
    return f"{rounded / 1e6:,g} million" if rounded >= 1e6 else f"{rounded:,.0f}"


def strata(study: Study, table: pd.DataFrame) -> str:
    """Caption of the strata; ``table`` as `compare_strata.by_stratum` returns it."""
    parts = []
    for name, said in STRATA.items():
        part = table[(table["stratum"] == name) & table["auroc"].notna()]
        if not len(part):
            parts.append(f"By {said}: not to be told from these data.")
            continue
        arm = part.groupby("arm", sort=False)["auroc"].mean().idxmax()
        mine = part[part["arm"] == arm]
        if len(mine) < 2:
            parts.append(f"By {said}: there is {mine['value'].iloc[0]} only.")
            continue
        least, most = mine.loc[mine["auroc"].idxmin()], mine.loc[mine["auroc"].idxmax()]
        overlap = "intervals overlap" if least["high"] >= most["low"] else "intervals apart"
        if math.isnan(least["high"]) or math.isnan(most["low"]):  # too few slides
            overlap = "no intervals to tell whether they differ"
        parts.append(
            f"By {said}: {arm} from {least['auroc']:.2f} ({least['value']}, {least['n']:,} patches) to {most['auroc']:.2f} "
            f"({most['value']}, {most['n']:,}), {overlap}."
        )
    held = _held(table)
    return (
        f"**Strata.** AUROC with all the data on parts of the test patches, with 95 % intervals over {compare.unit(table)} "
        f"(bootstrap; {captions.of_what(study)}).{held}{captions_domains.left_out(table, 'auroc')} {' '.join(parts)} Strata "
        "differ in more than their name: tumour, scanner and laboratory go together in most data sets."
    )


def effects(study: Study, table: pd.DataFrame) -> str:
    """Caption of the table of the switches' effects; ``table`` as `compare_effects.table` returns it."""
    tested = table[table["applies"] & table["low"].notna()]
    clear = tested[(tested["low"] > 0) | (tested["high"] < 0)]
    named = [f"{row.switch} ({row.arm} {row.difference:+.3f})" for row in clear.itertuples()]
    found = f"Clear of zero: {'; '.join(named)}." if named else "None of the differences is clear of zero."
    left_out = table.loc[~table["applies"].astype(bool), "switch"].nunique()
    return (
        f"**What each switch is worth.** AUROC of one arm of each kind with that switch alone as in the released code, less "
        f"that of the study as it stands, with 95 % intervals ({captions.of_what(study)}). {found}"
        + (f" {left_out} can't be measured on these data; the table says why." if left_out else "")
    )
