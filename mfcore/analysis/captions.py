"""Captions of the figures of patches, embeddings and trainings; every number is computed from the table described."""

from collections.abc import Iterable

import pandas as pd

from mfcore.analysis.exhibit import counted, in_full as in_full, listed as listed, of_what as of_what, show as show
from mfcore.data import splits_audit
from mfcore.study import pretrained
from mfcore.study.config import Settings
from mfcore.study.pretrained import METHODS


def contact_sheet(study: Settings, labels: pd.DataFrame) -> str:
    """Caption of the contact sheet."""
    n_positive = int(labels["label"].sum())
    return (
        f"**Patches.** Random {study.data.positive}s and {study.data.negative}s of each domain, their centre enlarged "
        f"({of_what(study)}). In all {n_positive:,} and {len(labels) - n_positive:,}, on {labels['slide_id'].nunique()} "
        f"slides of {labels['domain'].nunique()} domains."
    )


def embedding(study: Settings, table: pd.DataFrame, encoder: str) -> str:
    """Caption of the two components of an encoder's embeddings."""
    share = table["share1"].iloc[0] + table["share2"].iloc[0]
    between = {column: _share_between(table, column) for column in ("domain", "label")}
    return (
        f"**Embeddings of {encoder}.** First two principal components, {100 * share:.0f} % of the variance ({of_what(study)}, "
        f"n = {len(table):,}). In this plane the domain explains {100 * between['domain']:.0f} % of the variance, the class "
        f"{100 * between['label']:.1f} %."
    )


def _share_between(table: pd.DataFrame, column: str) -> float:
    """Share of the variance of both components that lies between groups (R squared of a one-way analysis of variance)."""
    points = table[["pc1", "pc2"]]
    between = table.groupby(column)[["pc1", "pc2"]].transform("mean").var(ddof=0).sum()
    return float(between / points.var(ddof=0).sum())


def history(study: Settings, table: pd.DataFrame, network: str) -> str:
    """Caption of the training histories; ``table`` as `mfcore.training.train.load_history` returns it."""
    best = table.loc[table.groupby("unit")["val_loss"].idxmin(), "epoch"]
    tested = "the last epoch" if study.switches.epoch == "last" else "the epoch with the lowest validation loss"
    trainings = counted(table["unit"].nunique(), "training")
    came = f"{best.min()}" if best.nunique() == 1 else f"{best.min()} to {best.max()}"
    return (
        f"**{network}.** Loss by epoch of {trainings}; tested is {tested} (ring). The lowest "
        f"validation loss came in epoch {came} of {table['epoch'].max()} ({of_what(study)}; "
        f"{table['seconds'].sum() / 60:.1f} minutes of training)."
    )


def home_made(study: Settings, arms: Iterable[str]) -> str:
    """Which of the arms are encoders that the study pretrained, from what and on what; empty without any.

    A sentence with a space before it, and that such an encoder may have seen the slides it is tested on.
    """
    found = [arm for arm in dict.fromkeys(arms) if pretrained.is_of(study, arm)]
    if not found:
        return ""
    which = [study.pretraining_of(arm.partition("@")[0]) for arm in found]
    what = "is the home-made foundation model" if len(found) == 1 else "are home-made foundation models"
    parts = dict.fromkeys(
        f"by {METHODS[one.method].title} from {'random weights' if one.start == 'random' else one.start}, {one.n_steps:,} "
        f"steps of {one.batch_size:,} patches"
        for one in which
    )
    own = [one.slides == "" for one in which]
    where = "the study's own slides" if all(own) else "slides of its own" if not any(own) else "the study's and other slides"
    seen = " The slides that it is tested on are among them, seen without any label." if any(own) else ""
    return f" {listed(found)} (star) {what}: pretrained here, {'; '.join(parts)} drawn from {where}.{seen}"


def not_drawn(reasons: dict[str, str]) -> str:
    """The ways to split that the data don't allow, and why; ``reasons``: errors, of which the remedy is left out."""
    lines = [f"Not drawn: {splits_audit.scheme_title(name)} ({why.partition(';')[0]})." for name, why in reasons.items()]
    return " ".join(lines) or "These data can be split in every way."
