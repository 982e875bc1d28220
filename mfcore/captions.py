"""Captions and the abstract, with every number computed from the tables they describe; none is typed."""

import pandas as pd

from mfcore import compare, splits_audit
from mfcore.config import Study
from mfcore.statistics import Interval


def show(content: str | pd.DataFrame) -> object:
    """A caption, or a table in full, as a notebook shows it."""
    from IPython.display import HTML, Markdown

    if isinstance(content, str):
        return Markdown(content)
    with pd.option_context("display.max_colwidth", None):
        table = content.to_html(index=False, border=0, na_rep="–", justify="left")
    return HTML(table.replace("<td>", '<td style="text-align: left">'))  # Jupyter's own style would set them right


def of_what(study: Study) -> str:
    """What the numbers were measured on, with the word "synthetic" where they were."""
    return f"study `{study.name}`, synthetic data" if study.synthetic else f"study `{study.name}`"


def contact_sheet(study: Study, labels: pd.DataFrame) -> str:
    """Caption of the contact sheet."""
    n_positive = int(labels["label"].sum())
    return (
        f"**Patches.** Random {study.data.positive}s and {study.data.negative}s of each domain, their centre enlarged "
        f"({of_what(study)}). In all {n_positive:,} and {len(labels) - n_positive:,}, on {labels['slide_id'].nunique()} "
        f"slides of {labels['domain'].nunique()} domains."
    )


def embedding(study: Study, table: pd.DataFrame, encoder: str) -> str:
    """Caption of the two components of an encoder's embeddings."""
    share = table["share1"].iloc[0] + table["share2"].iloc[0]
    between = {column: _share_between(table, column) for column in ("domain", "label")}
    return (
        f"**Embeddings of {encoder}.** First two principal components, {share:.0%} of the variance ({of_what(study)}, "
        f"n = {len(table):,}). In this plane the domain explains {between['domain']:.0%} of the variance, the class "
        f"{between['label']:.1%}."
    )


def _share_between(table: pd.DataFrame, column: str) -> float:
    """Share of the variance of both components that lies between groups (R squared of a one-way analysis of variance)."""
    points = table[["pc1", "pc2"]]
    between = table.groupby(column)[["pc1", "pc2"]].transform("mean").var(ddof=0).sum()
    return float(between / points.var(ddof=0).sum())


def scores(study: Study, table: pd.DataFrame, arm: str) -> str:
    """Caption of one arm's scores by size; ``table`` as `compare.scaling_table` returns it."""
    full = table.loc[table["size"].idxmax()]
    return (
        f"**{arm}.** Scores of the two classes at the full training set of about {full['n_train']:,} patches: AUROC "
        f"{compare.plus_minus(full['auroc'], full['auroc_sd'])}, balanced accuracy "
        f"{compare.plus_minus(full['balanced_accuracy'], full['balanced_accuracy_sd'])} (mean ± SD of {full['n_folds']} folds, "
        f"{of_what(study)})."
    )


def history(study: Study, table: pd.DataFrame, network: str) -> str:
    """Caption of the training histories; ``table`` as `mfcore.train.load_history` returns it."""
    best = table.loc[table.groupby("unit")["val_loss"].idxmin(), "epoch"]
    tested = "the last epoch" if study.switches.epoch == "last" else "the epoch with the lowest validation loss"
    return (
        f"**{network}.** Loss by epoch of {table['unit'].nunique()} trainings; tested is {tested} (ring). The lowest "
        f"validation loss came in epoch {best.min()} to {best.max()} of {table['epoch'].max()} ({of_what(study)}; "
        f"{table['seconds'].sum() / 60:.1f} minutes of training)."
    )


def data_scaling(study: Study, table: pd.DataFrame, interval: Interval) -> str:
    """Caption of Fig. 1; ``table`` as `compare.scaling_table`, ``interval`` as `compare.best_interval` returns it."""
    full, least = table[table["size"] == table["size"].max()], table[table["size"] == table["size"].min()]
    best, first = full.loc[full["auroc"].idxmax()], least.loc[least["auroc"].idxmax()]
    held_out = "slides" if study.switches.split_by == "slide" else "annotations"
    return (
        f"**Fig. 1. Data scaling.** AUROC on held-out {held_out} against the number of training patches; mean and sample SD of "
        f"{table['n_folds'].max()} Monte Carlo folds, the same for every arm ({of_what(study)}). With all the data "
        f"{best['arm']} is highest with {compare.plus_minus(best['auroc'], best['auroc_sd'])}, {interval.level:.0%} interval "
        f"[{interval.low:.2f}, {interval.high:.2f}] over the {interval.n} slides tested (bootstrap of slides); with "
        f"{100 * first['size']:g} % ({first['n_train']} patches) {first['arm']} with "
        f"{compare.plus_minus(first['auroc'], first['auroc_sd'])}. The bars are the spread over folds, no confidence interval."
    )


def cross_domain(study: Study, table: pd.DataFrame) -> str:
    """Caption of Fig. 2; ``table`` as `compare.cross_domain_table` returns it."""
    drops = "; ".join(
        f"{row.arm} {row.in_domain:.2f} in domain, {row.out_of_domain:.2f} out of domain"
        for row in table.itertuples(index=False)
    )
    return (
        f"**Fig. 2. Cross-domain.** Mean AUROC over {table['n_folds'].max()} folds, by the domain trained on and that tested "
        f"on; bold: in domain, on held-out slides ({of_what(study)}). Means: {drops}."
    )


def cross_domain_means(study: Study) -> str:
    """What the columns of Tab. 2 are."""
    return (
        f"**Tab. 2.** AUROC, mean ± sample SD over folds of the mean over training domains (and, out of domain, over the other "
        f"domains), {of_what(study)}. In brackets: the SD over all folds and domains, which the published ± most likely is."
    )


def not_drawn(reasons: dict[str, str]) -> str:
    """The ways to split that the data don't allow, and why."""
    lines = [f"Not drawn: {splits_audit.scheme_title(scheme)} ({reason})." for scheme, reason in reasons.items()]
    return " ".join(lines) or "These data can be split in every way."


def inflation(study: Study, table: pd.DataFrame) -> str:
    """Caption of what other ways to split promise; ``table`` as `compare_schemes.inflation` returns it."""
    full = table[table["size"] == table["size"].max()].set_index("scheme")
    parts = [
        f"{splits_audit.scheme_title(scheme)} {compare.plus_minus(row['auroc'], row['auroc_sd'])} "
        f"({row['test_overlapping_train']:.0%} of test patches share pixels with training)"
        for scheme, row in full.iterrows()
    ]
    return (
        f"**What the split is worth.** AUROC of the probe on {study.inflation.encoder} with all the data, under each way to "
        f"split ({of_what(study)}): {'; '.join(parts)}. Mean ± sample SD of {full['n_folds'].max()} folds; what a way "
        "scores above splitting by slide is its inflation, for a probe; a network that can learn slides by heart may gain more."
    )


def abstract(study: Study, scaling: pd.DataFrame, crossed: pd.DataFrame, n_failed: int) -> str:
    """What the study found, in a few sentences."""
    full = scaling[scaling["size"] == scaling["size"].max()].sort_values("auroc", ascending=False)
    parts = [
        f"{len(full)} arms were trained on up to about {full['n_train'].max():,} patches of {study.data.positive}s and "
        f"{study.data.negative}s, in {scaling['n_folds'].max()} Monte Carlo folds split by {study.switches.split_by} "
        f"({of_what(study)}, {study.mode} mode)."
    ]
    values = [f"{row.arm} ({row.kind}) {compare.plus_minus(row.auroc, row.auroc_sd)}" for row in full.itertuples(index=False)]
    parts.append(f"AUROC with all the data: {', '.join(values)}.")
    for kind, part in scaling.groupby("kind", sort=False):
        best = part.loc[part[part["size"] == part["size"].max()]["auroc"].idxmax(), "arm"]
        curve = part[part["arm"] == best].sort_values("size")
        steps = ", ".join(f"{row.auroc:.2f} with {row.n_train:,}" for row in curve.itertuples(index=False))
        parts.append(f"The best {kind} arm, {best}, went {steps} patches.")
    if len(crossed):
        drops = [f"{row.arm} {row.in_domain:.2f} → {row.out_of_domain:.2f}" for row in crossed.itertuples(index=False)]
        parts.append(f"From in domain to out of domain: {', '.join(drops)}.")
    if n_failed:
        parts.append(f"{n_failed} runs failed or are missing; they are listed below.")
    return " ".join(parts)
