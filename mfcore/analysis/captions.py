"""Captions and the abstract, with every number computed from the tables they describe; none is typed."""

import math
from collections.abc import Iterable

import pandas as pd

from mfcore.analysis import compare
from mfcore.data import splits_audit
from mfcore.measures import binary, raters
from mfcore.measures.resampling import coverage_said
from mfcore.measures.statistics import Interval
from mfcore.study import pretrained
from mfcore.study.config import Study
from mfcore.study.config_pretraining import METHODS


def show(content: str | pd.DataFrame) -> object:
    """A caption, or a table in full, as a notebook shows it."""
    from IPython.display import HTML, Markdown

    if isinstance(content, str):
        return Markdown(content)
    with pd.option_context("display.max_colwidth", None):
        table = content.to_html(index=False, border=0, na_rep="–", justify="left")
    return HTML(table.replace("<td>", '<td style="text-align: left">'))  # Jupyter's own style would set them right


def of_what(study: Study) -> str:
    """What the numbers were measured on, with the word "synthetic" where they were, and the mode where it isn't all said."""
    return in_full(study) if study.switched else _named(study)


def in_full(study: Study) -> str:
    """What the numbers were measured on, and in which mode."""
    return f"{_named(study)}, {study.mode_title}"


def _named(study: Study) -> str:
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
        f"**Embeddings of {encoder}.** First two principal components, {100 * share:.0f} % of the variance ({of_what(study)}, "
        f"n = {len(table):,}). In this plane the domain explains {100 * between['domain']:.0f} % of the variance, the class "
        f"{100 * between['label']:.1f} %."
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
        f"{compare.plus_minus(full['balanced_accuracy'], full['balanced_accuracy_sd'])} (mean ± SD of {compare.folds(full)}, "
        f"{of_what(study)})."
    )


def history(study: Study, table: pd.DataFrame, network: str) -> str:
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


def data_scaling(
    study: Study,
    table: pd.DataFrame,
    interval: Interval,
    human: pd.DataFrame | None = None,
    agreement: pd.DataFrame | None = None,
    beside: pd.DataFrame | None = None,
) -> str:
    """Caption of Fig. 1; ``table`` as `compare.scaling_table`, ``interval`` as `compare.best_interval` returns it.

    human, agreement: as `raters.table` and `compare_strata.by_agreement` return them, for a figure with the raters' lines;
    beside: as `figures_scaling.published` does, for one with published values.
    """
    full, least = table[table["size"] == table["size"].max()], table[table["size"] == table["size"].min()]
    best, first = full.loc[full["auroc"].idxmax()], least.loc[least["auroc"].idxmax()]
    over = (
        f"{100 * interval.level:.0f} % interval [{interval.low:.2f}, {interval.high:.2f}] over the {interval.n} "
        f"{interval.unit}s tested (bootstrap of {interval.unit}s)"
        if math.isfinite(interval.low)
        else f"no {100 * interval.level:.0f} % interval over the {interval.n} {interval.unit}s tested, which are too few"
    )
    shared = "the same for every arm" if study.switches.shared_splits else "networks and probes on folds of their own"
    return (
        f"**Fig. 1. Data scaling.** AUROC (left) and balanced accuracy (right) on held-out {held_out(study)} against the "
        f"number of training patches; mean and sample SD of {compare.folds(table, 'Monte Carlo fold')}, {shared} "
        f"({of_what(study)}). With all the data {best['arm']} is highest with "
        f"{compare.plus_minus(best['auroc'], best['auroc_sd'])}, {over}; with {100 * first['size']:g} % "
        f"({first['n_train']:,} patches) {first['arm']} with {compare.plus_minus(first['auroc'], first['auroc_sd'])}. The bars "
        f"are the spread over folds, no confidence interval.{coverage_said(interval.n, interval.unit)}"
        f"{_of_one_score(study, full)}{home_made(study, full['arm'])}"
        f"{_people(study, human, agreement)}{_published(study, beside)}"
    )


def _of_one_score(study: Study, full: pd.DataFrame) -> str:
    """Which probes with all the data give every patch the same score, and so chance in every fold; empty without any."""
    found = full[(full["kind"] == compare.PROBE) & (full["auroc"] == 0.5) & (full["auroc_sd"] == 0)]["arm"].tolist()
    if not found:
        return ""
    text = f" {listed(found)} with all the data {'gives' if len(found) == 1 else 'give'} every patch one score: what varies so "
    text += "little in an embedding, this probe's penalty leaves unused"
    return f"{text}; for other estimators see the audit of the probe." if set(found) & set(study.probe_audit) else f"{text}."


def home_made(study: Study, arms: Iterable[str]) -> str:
    """Which of the arms are encoders that the study pretrained, from what and on what; empty without any.

    A sentence with a space before it, and that such an encoder may have seen the slides it is tested on.
    """
    found = [arm for arm in dict.fromkeys(arms) if pretrained.is_of(study, arm)]
    if not found:
        return ""
    which = [study.pretrained(arm.partition("@")[0]) for arm in found]
    what = "is the home-made foundation model" if len(found) == 1 else "are home-made foundation models"
    parts = dict.fromkeys(
        f"by {METHODS[one.method]} from {'random weights' if one.start == 'random' else one.start}, {one.n_steps:,} steps of "
        f"{one.batch_size:,} patches"
        for one in which
    )
    own = [one.slides == "" for one in which]
    where = "the study's own slides" if all(own) else "slides of its own" if not any(own) else "the study's and other slides"
    seen = " The slides that it is tested on are among them, seen without any label." if any(own) else ""
    return f" {listed(found)} (star) {what}: pretrained here, {'; '.join(parts)} drawn from {where}.{seen}"


def _published(study: Study, beside: pd.DataFrame | None) -> str:
    """What the open markers of Fig. 1 are; empty without any."""
    if beside is None or not len(beside):
        return ""
    parts = []
    for (kind, data_set, where, metric), part in beside.groupby(["kind", "data_set", "where", "metric"], sort=False):
        span = f"{part['value'].min():.2f}" + (f" to {part['value'].max():.2f}" if len(part) > 1 else "")
        parts.append(f"{kind}, {data_set}, {binary.TITLES[metric]} {span} ({where})")
    splits = "on patches and folds of their own" + (", on real data" if study.synthetic else "")
    return f" Open markers: published with all the data, {splits}, for orientation: {'; '.join(parts)}."


def listed(names: Iterable[str]) -> str:
    """ "A, B and C"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def held_out(study: Study) -> str:
    """What no training of the study's has seen."""
    return "slides" if study.switches.split_by in ("slide", "official") else "annotations"


def _people(study: Study, human: pd.DataFrame | None, agreement: pd.DataFrame | None = None) -> str:
    """What the raters' lines are, and how an arm compares when it is measured as they are; empty without raters."""
    line = raters.reference(human, "balanced_accuracy")
    if line is None:
        return ""
    total = human[human["domain"] == compare.ALL].iloc[0]
    text = (
        f" Dashed: one rater against another, balanced accuracy {with_interval(line)} ({100 * line.level:.0f} % bootstrap of "
        f"{line.n} {line.unit}s, shaded) on {total['n']:,} annotations, {whose(study)}."
    )
    if upper := raters.against_consensus(human):
        text += (
            f" Dash-dotted: a rater against the consensus, {upper:.2f}, flattered, as it counts the rater's own vote. The arms "
            "are scored against the consensus and had no vote; a person without one would most likely lie between the two."
        )
    if agreement is not None and len(agreement):
        against = agreement[agreement["annotations"] == "all"].set_index(["against", "arm"])["balanced_accuracy"]
        arm = against["consensus"].idxmax()
        by_rater, by_consensus = f"{against['one rater', arm]:.2f}", f"{against['consensus', arm]:.2f}"
        text += (
            f" Measured as the dashed line is, against one rater instead of the consensus, {arm} with all the data has "
            f"{by_rater} {'too' if by_rater == by_consensus else f'instead of {by_consensus}'}."
        )
    return text


def whose(study: Study) -> str:
    """Whose votes they are."""
    return "synthetic raters" if study.synthetic else "the data set's own raters"


def with_interval(interval: Interval) -> str:
    """ "0.78 [0.76, 0.80]"; without the second where too few resamples have a value."""
    bounds = f" [{interval.low:.2f}, {interval.high:.2f}]" if math.isfinite(interval.low) else ""
    return f"{interval.estimate:.2f}{bounds}"


def raters_table(study: Study, human: pd.DataFrame) -> str:
    """Caption of the rater statistics; ``human`` as `raters.table` returns it."""
    if not len(human):
        return f"**Raters.** No votes on these annotations are published ({of_what(study)}): there is no human reference."
    total = human[human["domain"] == compare.ALL].iloc[0]
    n_raters = sum(column.endswith("_vs_consensus") for column in human)
    found = {
        "agreement": raters.reference(human, "accuracy"),
        "Cohen's kappa": raters.reference(human, "quadratic_kappa"),
        "balanced accuracy, each in turn the reference,": raters.reference(human, "balanced_accuracy"),
    }
    parts = ", ".join(f"{name} {with_interval(value)}" for name, value in found.items() if value)
    return (
        f"**Raters.** One rater against another, {whose(study)} ({of_what(study)}): {parts} on {total['n']:,} annotations, in "
        f"brackets 95 % intervals (bootstrap of {total['n_units']} {total['unit']}s). Compared are the {n_raters} raters who "
        f"saw them all; {100 * total['third_share']:.1f} % have a third vote, {100 * total['contested_share']:.1f} % are "
        "contested. Against the consensus raters are flattered, as they voted for it."
        f"{coverage_said(int(total['n_units']), total['unit'])} A rater is a position in the list of votes, which need not be "
        "one person throughout: differences between positions are no differences between people."
    )


def by_agreement(study: Study, table: pd.DataFrame) -> str:
    """Caption of the metrics by the raters' agreement; ``table`` as `compare_strata.by_agreement` returns it."""
    if not len(table):
        return f"**By agreement.** Without votes unanimous and contested labels can't be told apart ({of_what(study)})."
    chosen = table[table["against"] == "consensus"].set_index(["annotations", "arm"])
    mine = chosen.xs(chosen.loc["all"]["balanced_accuracy"].idxmax(), level="arm")
    parts = [
        f"{stratum} labels ({mine.loc[stratum, 'n_test']:,} tested a fold) "
        f"{compare.plus_minus(mine.loc[stratum, 'balanced_accuracy'], mine.loc[stratum, 'balanced_accuracy_sd'])}"
        for stratum in (raters.UNANIMOUS, raters.CONTESTED)
    ]
    return (
        f"**By agreement.** Every arm with all the data, apart by whether the raters of an annotation were of one mind "
        f"({of_what(study)}, {whose(study)}); mean ± sample SD over folds. Balanced accuracy of "
        f"{chosen.loc['all']['balanced_accuracy'].idxmax()}: {', '.join(parts)}. Of a contested label the consensus is itself "
        'in doubt. "Against one rater" takes each rater\'s votes for the truth in turn, as the human reference does.'
    )


def not_drawn(reasons: dict[str, str]) -> str:
    """The ways to split that the data don't allow, and why; ``reasons``: errors, of which the remedy is left out."""
    lines = [f"Not drawn: {splits_audit.scheme_title(name)} ({why.partition(';')[0]})." for name, why in reasons.items()]
    return " ".join(lines) or "These data can be split in every way."


def inflation(study: Study, table: pd.DataFrame) -> str:
    """Caption of what other ways to split promise; ``table`` as `compare_schemes.inflation` returns it."""
    if not len(table):
        return f"**What the split is worth.** The study names no encoder to probe under other ways to split ({of_what(study)})."
    full = table[table["size"] == table["size"].max()].set_index("scheme")

    def share(row: pd.Series, leak: str) -> str:
        return f"{100 * row[leak]:.0f} %" if pd.notna(row[leak]) else "unknown how many"

    parts = [
        f"{splits_audit.scheme_title(scheme)} {compare.plus_minus(row['auroc'], row['auroc_sd'])} "
        f"({row['n_train']:,.0f} training patches; {share(row, 'test_on_train_cases')} of the test patches are of cases that "
        f"training sees, {share(row, 'test_overlapping_train')} share pixels with its patches)"
        for scheme, row in full.iterrows()
    ]
    return (
        f"**What the split is worth.** AUROC of the probe on {study.inflation.encoder} with all the data, under each way to "
        f"split ({of_what(study)}): {'; '.join(parts)}. Mean ± sample SD of {compare.folds(full)}; what a way "
        "scores above splitting by slide is its inflation, for a probe, where as many patches train; a network that can learn "
        "slides by heart may gain more."
    )


def abstract(study: Study, scaling: pd.DataFrame, crossed: pd.DataFrame, n_failed: int) -> str:
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
