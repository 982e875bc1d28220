"""Captions of RankMe and ODCorr, with every number computed."""

import math

import numpy as np
import pandas as pd

from mfcore.analysis import captions
from mfcore.analysis.compare_representation import EXPECTED, TITLES
from mfcore.study.config import Settings

EACH = " (each p by itself, uncorrected for their number)"
FEW = 10  # encoders below which a correlation over them says next to nothing


def one(study: Settings, row: pd.Series) -> str:
    """One encoder's RankMe and ODCorr beside its probe; ``row``: of `compare_representation.table`."""
    reaches = f", and its probe's AUROC is {row['auroc']:.2f} with all the data" if math.isfinite(row["auroc"]) else ""
    return (
        f"**What the embedding is worth without a label.** Over {row['n']:,} patches {row['encoder']} has RankMe "
        f"{row['rankme']:.1f} (at most {min(row['n'], row['n_dims']):,}), ODCorr {_both(row)}{reaches} "
        f"({captions.of_what(study)}).{_constant(row)}"
    )


def _both(row: pd.Series) -> str:
    if not math.isfinite(row["odcorr_abs"]):
        return "none, as fewer than two dimensions vary"
    return f"{row['odcorr_abs']:.3f} (mean |r|) and {row['odcorr_sq']:.3f} (mean r²)"


def _constant(row: pd.Series) -> str:
    return f" {row['n_constant']} constant dimensions are left out of ODCorr." if row["n_constant"] else ""


def all_encoders(study: Settings, table: pd.DataFrame) -> str:
    """Caption of the table of all encoders; ``table`` as `compare_representation.table` returns it."""
    if not len(table):
        return f"**Representations.** No encoder of the study has embeddings to measure ({captions.of_what(study)})."
    constant = [f"{row.encoder} {row.n_constant}" for row in table.itertuples() if row.n_constant]
    left_out = f" Constant dimensions, left out of ODCorr: {', '.join(constant)}." if constant else ""
    return (
        f"**Representations.** RankMe (of singular values, neither centred nor normalised) and ODCorr in both readings, mean "
        f"|r| and mean r² between different dimensions, as it isn't known which one kaiko 2024 mean; of each encoder's "
        f"embeddings of all patches ({captions.of_what(study)}), beside the AUROC of its probe with all the data, mean ± SD "
        f"over folds.{left_out}{_widths(table)}{captions.home_made(study, table['encoder'])}"
    )


def against_probes(study: Settings, table: pd.DataFrame, related: pd.DataFrame) -> str:
    """Caption of kaiko's Fig. 5 for this study; arguments as `figures_representation.against_probes` takes them."""
    parts = [_related(row) for row in related.itertuples() if math.isfinite(row.rho)]
    said = f" Spearman's ρ over encoders: {'; '.join(parts)}{EACH}." if parts else ""
    return (
        f"**Metric against accuracy.** AUROC of each encoder's probe (mean ± SD over folds) against its RankMe and ODCorr, as "
        f"kaiko 2024, Fig. 5, set ODCorr against accuracy on natural images ({captions.of_what(study)}).{said}"
        f"{_widths(table[table['auroc'].notna()])} {what_encoders_show(related)}{captions.home_made(study, table['encoder'])}"
    )


def against_tasks(study: Settings, table: pd.DataFrame, related: pd.DataFrame) -> str:
    """Caption of kaiko's Fig. 5 with the study's tasks; arguments as `figures_representation.against_tasks` takes them."""
    if not len(table):
        return f"**Metric against a task's score.** No task of patches has judged an encoder yet ({captions.of_what(study)})."
    parts = []
    for task, part in related.groupby("task", sort=False):
        told = [_related(row) for row in part.itertuples() if math.isfinite(row.rho)]
        parts.append(f"{task}: {'; '.join(told) or 'too few'}")
    final = table[~table["encoder"].str.contains("@", regex=False)].drop_duplicates("encoder")
    n_home = int((final["origin"] != "").sum())
    alike = f" {n_home} of them were pretrained here, and are variants of few recipes." if n_home > 1 else ""
    return (
        f"**Metric against a task's score.** What each encoder scores with a linear head (mean ± SD over "
        f"{table['n_runs'].max()} seeded runs) against RankMe and ODCorr of the same images ({captions.of_what(study)}). "
        f"Spearman's ρ over encoders, {'. '.join(parts)}{EACH}.{_widths(final)} {what_encoders_show(related)}{alike}"
    )


def _widths(table: pd.DataFrame) -> str:
    """Of encoders whose dimensions differ, what that does to RankMe; "" where they are as wide as one another."""
    least, most = table["n_dims"].min(), table["n_dims"].max()
    if not least < most:
        return ""
    return (
        f" The encoders' dimensions differ ({least:,} to {most:,}), and RankMe can't exceed them: it ranks encoders of "
        "one width."
    )


def _related(row: tuple) -> str:
    """ "RankMe +0.80 [-0.10, +0.99], p = 0.33, in the direction that the papers saw"."""
    span = f" [{row.low:+.2f}, {row.high:+.2f}]" if math.isfinite(row.low) else " (no interval)"
    way = "in" if np.sign(row.rho) == EXPECTED[row.metric] else "not in"
    return f"{TITLES[row.metric]} {row.rho:+.2f}{span}, p = {row.p:.2g}, {way} the direction that the papers saw"


def what_encoders_show(related: pd.DataFrame) -> str:
    """One plain sentence on what a correlation over so few encoders can show; ``related`` as `correlations` returns it."""
    n, least = int(related["n"].max()), float(related["least_p"].min())
    if n < 3:
        return f"With {n} encoder{'s' * (n != 1)} there is nothing to correlate{': two always lie on a line' * (n == 2)}."
    if n == 3:
        return (
            f"With 3 encoders even a perfect order has p = {least:.2f} and no interval: the figure is an illustration, "
            "and shows nothing of whether the metric foretells accuracy."
        )
    if least > 0.05:
        return f"With {n} encoders even a perfect order has p = {least:.2f}, so that no correlation can be told from chance."
    wide = [f"{row.high - row.low:.1f}" for row in related.itertuples() if math.isfinite(row.low)]
    span = f"; the intervals here are {captions.listed(dict.fromkeys(wide))} wide" if wide else ""
    if n < FEW:
        return f"{n} encoders that share architectures or training data are few: only a nearly perfect order stands{span}."
    return f"The {n} encoders share architectures and training data, so that they count for fewer than they are{span}."


def by_sample_size(study: Settings, subsamples: pd.DataFrame) -> str:
    """Caption of the dependence on the number of patches; as `figures_representation.by_sample_size` takes it."""
    parts = []
    for encoder, part in subsamples.groupby("encoder", sort=False):
        means = part.groupby("n")[list(TITLES)].mean()
        first, before, last = means.iloc[0], means.iloc[-2 if len(means) > 1 else -1], means.iloc[-1]
        parts.append(
            f"{encoder} RankMe {first['rankme']:.1f} → {before['rankme']:.1f} → {last['rankme']:.1f}, mean |r| "
            f"{first['odcorr_abs']:.3f} → {before['odcorr_abs']:.3f} → {last['odcorr_abs']:.3f}"
        )
    sizes = sorted(subsamples["n"].unique())
    shown = [sizes[0], sizes[-2 if len(sizes) > 1 else -1], sizes[-1]]
    return (
        f"**By sample size.** RankMe and ODCorr of seeded, nested subsamples, the same patches for every encoder: mean and "
        f"range of {subsamples['draw'].nunique()} draws ({captions.of_what(study)}). From {shown[0]:,} over {shown[1]:,} to "
        f"{shown[2]:,} patches: {'; '.join(parts)}. RankMe can't exceed the number of patches, and ODCorr of few patches holds "
        "what chance correlates (dotted): values of different numbers of patches are not to be compared."
    )
