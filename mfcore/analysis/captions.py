"""Captions and the abstract, with every number computed from the tables they describe; none is typed."""

import math
from collections.abc import Iterable

import pandas as pd

from mfcore.analysis import compare
from mfcore.data import splits_audit
from mfcore.measures.statistics import Interval
from mfcore.study import pretrained
from mfcore.study.config import Settings
from mfcore.study.pretrained import METHODS


def show(content: str | pd.DataFrame) -> object:
    """A caption, or a table in full, as a notebook shows it."""
    from IPython.display import HTML, Markdown

    if isinstance(content, str):
        return Markdown(content)
    with pd.option_context("display.max_colwidth", None):
        table = content.to_html(index=False, border=0, na_rep="–", justify="left")
    return HTML(table.replace("<td>", '<td style="text-align: left">'))  # Jupyter's own style would set them right


def of_what(study: Settings) -> str:
    """What the numbers were measured on, with the word "synthetic" where they were, and the mode where it isn't all said."""
    return in_full(study) if study.switched else _named(study)


def in_full(study: Settings) -> str:
    """What the numbers were measured on, and in which mode."""
    return f"{_named(study)}, {study.mode_title}"


def _named(study: Settings) -> str:
    return f"study `{study.name}`, synthetic data" if study.synthetic else f"study `{study.name}`"


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


def scores(study: Settings, table: pd.DataFrame, arm: str) -> str:
    """Caption of one arm's scores by size; ``table`` as `compare.scaling_table` returns it."""
    full = table.loc[table["size"].idxmax()]
    return (
        f"**{arm}.** Scores of the two classes at the full training set of about {full['n_train']:,} patches: AUROC "
        f"{compare.plus_minus(full['auroc'], full['auroc_sd'])}, balanced accuracy "
        f"{compare.plus_minus(full['balanced_accuracy'], full['balanced_accuracy_sd'])} (mean ± SD of {compare.folds(full)}, "
        f"{of_what(study)})."
    )


def history(study: Settings, table: pd.DataFrame, network: str) -> str:
    """Caption of the training histories; ``table`` as `mfcore.training.train.load_history` returns it."""
    best = table.loc[table.groupby("unit")["val_loss"].idxmin(), "epoch"]
    tested = "the last epoch" if study.switches.epoch == "last" else "the epoch with the lowest validation loss"
    trainings = compare.counted(table["unit"].nunique(), "training")
    came = f"{best.min()}" if best.nunique() == 1 else f"{best.min()} to {best.max()}"
    return (
        f"**{network}.** Loss by epoch of {trainings}; tested is {tested} (ring). The lowest "
        f"validation loss came in epoch {came} of {table['epoch'].max()} ({of_what(study)}; "
        f"{table['seconds'].sum() / 60:.1f} minutes of training)."
    )


def stars(study: Settings, arms: Iterable[str]) -> str:
    """What the stars of encoders pretrained here are, as a part of a sentence; empty without any among the arms."""
    found = [study.pretraining_of(arm.partition("@")[0]) for arm in dict.fromkeys(arms) if pretrained.is_of(study, arm)]
    seen = ", also on the slides tested, without labels" if any(one.slides == "" for one in found) else ""
    return f"; stars: pretrained here{seen}" if found else ""


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


def listed(names: Iterable[str]) -> str:
    """ "A, B and C"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def held_out(study: Settings) -> str:
    """What no training of the study's has seen."""
    return "slides" if study.switches.split_by in ("slide", "official") else "annotations"


def whose(study: Settings) -> str:
    """Whose votes they are."""
    return "synthetic raters" if study.synthetic else "the data set's own raters"


def with_interval(interval: Interval) -> str:
    """ "0.78 [0.76, 0.80]"; without the second where too few resamples have a value."""
    bounds = f" [{interval.low:.2f}, {interval.high:.2f}]" if math.isfinite(interval.low) else ""
    return f"{interval.estimate:.2f}{bounds}"


def not_drawn(reasons: dict[str, str]) -> str:
    """The ways to split that the data don't allow, and why; ``reasons``: errors, of which the remedy is left out."""
    lines = [f"Not drawn: {splits_audit.scheme_title(name)} ({why.partition(';')[0]})." for name, why in reasons.items()]
    return " ".join(lines) or "These data can be split in every way."


def abstract(study: Settings, scaling: pd.DataFrame, crossed: pd.DataFrame, n_failed: int) -> str:
    """What the study found, in a few sentences."""
    full = scaling[scaling["size"] == scaling["size"].max()].sort_values("auroc", ascending=False)
    parts = [
        f"{compare.counted(len(full), 'arm')} {'was' if len(full) == 1 else 'were'} trained on up to about "
        f"{full['n_train'].max():,} patches of {study.data.positive}s and "
        f"{study.data.negative}s, in {compare.folds(scaling, 'Monte Carlo fold')} divided "
        f"{splits_audit.scheme_title(study.switches.scheme)} ({in_full(study)})."
    ]
    values = [
        f"{compare.shown_name(study, row.arm, row.kind)} {compare.plus_minus(row.auroc, row.auroc_sd)}"
        for row in full.itertuples(index=False)
    ]
    parts.append(f"AUROC with all the data: {', '.join(values)}.")
    for kind, part in scaling.groupby("kind", sort=False):
        best = part.loc[part[part["size"] == part["size"].max()]["auroc"].idxmax(), "arm"]
        curve = part[part["arm"] == best].sort_values("size")
        steps = ", ".join(f"{row.auroc:.2f} with {row.n_train:,}" for row in curve.itertuples(index=False))
        verb = "went" if len(curve) > 1 else "reached"
        parts.append(f"The best {kind} arm, {best}, {verb} {steps} patches.")
    if len(crossed):
        drops = [f"{row.arm} {row.in_domain:.2f} → {row.out_of_domain:.2f}" for row in crossed.itertuples(index=False)]
        parts.append(f"AUROC from in domain to out of domain: {', '.join(drops)}.")
    if n_failed:
        are = "is missing; it is" if n_failed == 1 else "are missing; they are"
        parts.append(f"{compare.counted(n_failed, 'run')} failed or {are} listed below.")
    return " ".join(parts)
