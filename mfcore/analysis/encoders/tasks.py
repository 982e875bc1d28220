"""Encoders on downstream tasks: scores computed again from what heads and decoders predicted.

Two intervals. Runs differ by their seed alone (the head's start, the order of the items; for
few-shot tasks the training items too): their spread is what the seed does, and says nothing about
other patients. The bootstrap draws the tested slides or patients anew, or items where a set names
none: it holds neither the choice of training items nor that weights were selected on the same items
where a set has no test split.
"""

import math
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from mfcore import encoders, store
from mfcore.analysis.exhibit import (
    WIDTH_INCH,
    Exhibit,
    cells,
    finished,
    in_style,
    of_what,
    rounded,
)
from mfcore.encoders.card import cards
from mfcore.measures import task_scores
from mfcore.measures.resampling import coverage_note
from mfcore.measures.statistics import Interval, spread
from mfcore.study import pretrained, tasks as study_tasks
from mfcore.study.config import Settings, TaskOptions, as_dict
from mfcore.study.study import Study
from mfcore.tasks import protocol as tasks_protocol, registry

SECTION = "Downstream tasks"
STAGES = {"classification": "judge", "segmentation": "segment"}
METRICS = {"classification": "balanced_accuracy", "segmentation": "dice"}
TITLES = {"balanced_accuracy": "balanced accuracy", "dice": "Dice without background"}
FILES = {"classification": "predictions.parquet", "segmentation": "dice.parquet"}
COLUMNS = [
    "task", "kind", "encoder", "step", "split", "metric", "mean", "sd", "low", "high", "n_runs",
    "n_items", "n_clusters", "published", "published_by", "difference",
]  # fmt: skip


# ---- runs ----


@cache
def runs(study: Study) -> dict[tuple[str, str], store.Run]:
    """The current run of each task and encoder, by the study's protocol and today's card.

    Of a task, those on the data of the run that was finished last.
    """
    found = {
        (task.name, encoder): run
        for task in study.settings.tasks
        for encoder in study_tasks.encoders_of(study.settings, task)
        if (run := _find(study, task, encoder)) is not None
    }
    items = {}  # of each task, those that its last run was on
    for (task, _), run in sorted(found.items(), key=lambda item: item[1].ended):
        items[task] = run.identity["inputs"]["items"]
    return {of: run for of, run in found.items() if run.identity["inputs"]["items"] == items[of[0]]}


def _find(study: Study, task: TaskOptions, encoder: str) -> store.Run | None:
    try:
        config = study_tasks.config_of(study.settings, task.name, _card(study, encoder))
    except (store.StoreError, encoders.EncoderError):
        return None
    if config["card"] is None:  # what another machine knows of it decides nothing here
        del config["card"]
    stage = STAGES[tasks_protocol.of(task).kind]
    return store.last_opened(study.folder, stage, f"{task.name}.{encoder}", config)


def _card(study: Study, encoder: str) -> dict | None:
    """Today's card, as a run's config has it, where it can be known without asking elsewhere."""
    described = encoder in [entry.name for entry in study.settings.own_encoders]
    if not (described or encoder in cards() or pretrained.is_of(study.settings, encoder)):
        return None
    try:
        return study.card(encoder).identity()
    except encoders.EncoderError:
        if described:  # by a file that lies where it was judged
            return None
        raise


def missing_table(study: Study) -> pd.DataFrame:
    """Whom tasks haven't judged, and why: ``task, encoder, reason``."""
    rows = []
    for task in study.settings.tasks:
        reasons = study_tasks.refusals(study.folder, task.name)
        rows += [
            (task.name, encoder, reasons.get(encoder, "not run yet"))
            for encoder in study_tasks.encoders_of(study.settings, task)
            if (task.name, encoder) not in runs(study)
        ]
    return pd.DataFrame(rows, columns=["task", "encoder", "reason"])


def step_of(settings: Settings, encoder: str) -> float:
    """After which step a pretrained encoder or snapshot was taken; NaN for other encoders."""
    name, _, step = encoder.partition("@")
    return (
        float(step or settings.pretraining_of(name).n_steps)
        if pretrained.is_of(settings, name)
        else math.nan
    )


def control_of(settings: Settings, name: str) -> str:
    """The same network without any training, which a pretraining must beat; "" without one."""
    one = settings.pretraining_of(name)
    network = "random", one.architecture, one.arguments
    alike = [
        entry.name
        for entry in settings.own_encoders
        if (entry.weights, entry.architecture, entry.arguments or {}) == network
    ]
    return alike[0] if alike else ""


# ---- scores ----


def scored(run: store.Run, kind: str) -> dict[str, task_scores.Scored]:
    """What a finished run scored, by split; ``kind``: the task's."""
    predictions = store.read_parquet(run.path(FILES[kind]))
    of_split = task_scores.of_labels if kind == "classification" else task_scores.of_masks
    return {
        split: of_split(part)
        for split in ("val", "test")
        if len(part := predictions[predictions["split"] == split])
    }


@cache
def scores_table(study: Study) -> pd.DataFrame:
    """A row a task, encoder or snapshot, and split: columns COLUMNS, in the study's order.

    mean, sd: over runs. low, high: 95 % bootstrap over slides, patients or items. step: after which
    a pretrained encoder was taken, NaN for others. published: eva's leaderboard, or else kaiko's
    README; NaN where neither has the encoder, or where heads learn from other numbers of items than
    eva's. difference: mean less published.
    """
    rows, as_published = [], set()
    for (task, encoder), run in runs(study).items():
        protocol = tasks_protocol.of(study.settings.task(task))
        kind, step = protocol.kind, step_of(study.settings, encoder)
        if protocol.n_per_class == registry.get(task).protocol.n_per_class:
            as_published.add(task)
        for split, one in scored(run, kind).items():
            over = spread(one.values)
            span = task_scores.bootstrap(one.clusters, one.score, study.seed, task, split)
            row = (task, kind, encoder, step, split, METRICS[kind], over.mean, over.sd)
            rows.append((*row, span.low, span.high, over.n, one.n_items, span.n))
    table = pd.DataFrame(rows, columns=COLUMNS[:-3])
    table = table.merge(published(), "left", ["encoder", "task", "split"])
    table["published"] = table["published"].where(table["task"].isin(as_published)).astype(float)
    table["published_by"] = table["published_by"].where(table["published"].notna(), "")
    return table.assign(difference=table["mean"] - table["published"])


def published() -> pd.DataFrame:
    """Published scores: ``encoder, task, split, published, published_by``.

    Where two sources have one, eva's leaderboard counts; kaiko's README has an earlier protocol.
    """
    table = registry.published()
    table = table[table["encoder"] != ""].sort_values("source", ascending=False, kind="stable")
    table = table.drop_duplicates(["encoder", "task", "split"], keep="last")  # kaiko, then eva
    table = table.assign(published_by=table["source"] + ", " + table["where"])
    columns = ["encoder", "task", "split", "published", "published_by"]
    return table.rename(columns={"value": "published"})[columns]


def reported(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `scores_table` on a task's test split, or validation where it has no other."""
    split = (
        table.groupby("task")["split"].transform(tasks_protocol.reported_split)
        if len(table)
        else table["split"]
    )
    return table[table["split"] == split].reset_index(drop=True)


def encoders_only(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table that are of encoders, without the snapshots on their way."""
    return table[~table["encoder"].str.contains("@", regex=False)].reset_index(drop=True)


def difference(study: Study, task: str, first: str, second: str) -> Interval:
    """How much more ``first`` scores than ``second`` on what a task reports, on the same resamples.

    Resampled are slides or items. Raises StoreError where one of them isn't judged.
    """
    stored, kind = runs(study), tasks_protocol.of(study.settings.task(task)).kind
    if lacking := [encoder for encoder in (first, second) if (task, encoder) not in stored]:
        raise store.StoreError(f"task {task!r} hasn't judged {lacking}; run notebook 09 for it")
    a, b = (scored(stored[task, encoder], kind) for encoder in (first, second))
    split = tasks_protocol.reported_split(pd.Series(list(a)))
    if a[split].clusters.shape != b[split].clusters.shape:
        raise store.StoreError(
            f"task {task!r}: {first} and {second} were tested on other items; remove the older run"
        )
    return task_scores.difference(a[split], b[split], study.seed, task, split)


def class_runs(study: Study, task: str) -> pd.DataFrame:
    """What of each class an encoder finds in each run: ``encoder, class, run, value, n``.

    value: of a classification the share of a class's items that get their class, of a segmentation
    the mean Dice of the masks that have the class; n: items or masks. Of the split that is
    reported.
    """
    kind, tables = tasks_protocol.of(study.settings.task(task)).kind, []
    columns = ["encoder", "class", "run", "value", "n"]
    for (name, encoder), run in runs(study).items():
        if name != task or "@" in encoder:
            continue
        rows, classes = store.read_parquet(run.path(FILES[kind])), run.record["facts"]["classes"]
        rows = rows[rows["split"] == tasks_protocol.reported_split(rows["split"])]
        if kind == "classification":
            called = rows.filter(regex=r"^score_\d+$").to_numpy().argmax(axis=1)
            right = 1.0 * (called == rows["label"])
            rows = rows.assign(dice=right, **{"class": np.array(classes)[rows["label"]]})
        rows = rows.assign(encoder=encoder, **{"class": pd.Categorical(rows["class"], classes)})
        groups = rows.dropna(subset="dice").groupby(columns[:3], observed=True)["dice"]
        tables.append(groups.agg(value="mean", n="size").reset_index().astype({"class": str}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


# ---- exhibits ----


def protocol(study: Study, task: str) -> Exhibit:
    """How a task is judged, here and by eva: ``setting, here, eva``."""
    both = {
        "here": tasks_protocol.of(study.settings.task(task)),
        "eva": registry.get(task).protocol,
    }
    table = pd.DataFrame({of: as_dict(one) for of, one in both.items()}, dtype=object)
    table = table.rename_axis("setting").reset_index()
    for note in registry.get(task).unsettled:
        table.loc[len(table)] = ["unsettled", note, None]
    caption = (
        f"How encoders are judged by {task} here and by eva ({of_what(study.settings)}); a dash: "
        "all, or the encoder's own."
    )
    return Exhibit(f"09_{task}_protocol", f"Protocol of {task}", caption, table, None, SECTION)


@in_style
def scores(study: Study, task: str) -> Exhibit:
    """What a task reports of each encoder: mean, SD, interval, and published scores."""
    table = scores_table(study)
    table = table[table["task"] == task].reset_index(drop=True)
    rows = encoders_only(reported(table)).sort_values("mean", ascending=False, kind="stable")
    name, heading = f"09_{task}", f"Encoders on {task}"
    if rows.empty:
        return Exhibit(name, heading, nobody(study, task), table, None, SECTION)
    best, at = rows.iloc[0], (rows["mean"], rows["encoder"])
    figure, axis = plt.subplots(figsize=(WIDTH_INCH, 0.25 * len(rows) + 1.5))
    axis.hlines(
        rows["encoder"], rows["low"], rows["high"], color="0.35", label="95 % over what was tested"
    )
    axis.errorbar(*at, xerr=rows["sd"], fmt="o", elinewidth=4.5, label="mean ± SD over runs")
    if rows["published"].notna().any():
        axis.plot(
            rows["published"], rows["encoder"], "D", color="0.2", mfc="none", label="published"
        )
    axis.invert_yaxis()
    axis.set_xlabel(TITLES[best["metric"]])
    text = f"{task}, {best['split']}: {best['n_items']:,} items, {rows['n_runs'].max()} runs"
    chose = "" if best["split"] == "test" else ", which also chose the weights and flatters all"
    caption = (
        f"What frozen encoders reach by eva's protocol on the {best['split']} split of "
        f"{task}{chose} ({of_what(study.settings)}). Points and wide bars: mean and SD over runs "
        f"that differ by their seed alone; thin bars: 95 % bootstrap over {best['n_clusters']:,} "
        f"slides, patients or items{coverage_note(int(rows['n_clusters'].min()))}; diamonds, if "
        f"any: published, known second-hand. Of {len(rows)} encoders {best['encoder']} is highest: "
        f"{best['mean']:.3f}."
    )
    columns = ["encoder", "split", "mean", "sd", "low", "high", "n_runs", "published", "difference"]
    figure = finished(study, figure, text, 3)
    return Exhibit(name, heading, caption, table, figure, SECTION, rounded(table[columns]))


def nobody(study: Study, task: str) -> str:
    """The caption where a task has judged no encoder."""
    return f"No encoder has been judged by {task} yet ({of_what(study.settings)})."


def by_class(study: Study, task: str) -> Exhibit:
    """What encoders find of each class, mean and SD over runs: ``encoder, class, mean, sd, n``."""
    rows, name, heading = class_runs(study, task), f"09_{task}_by_class", f"{task}, by class"
    groups = rows.groupby(["encoder", "class"], sort=False)
    table = groups.agg(mean=("value", "mean"), sd=("value", "std"), n=("n", "first")).reset_index()
    if rows.empty:
        return Exhibit(name, heading, nobody(study, task), table, None, SECTION)
    shown = table.assign(cell=cells(table.rename(columns={"sd": "mean_sd"}), "mean"))
    shown = shown.pivot(index="encoder", columns="class", values="cell").reset_index()
    means = table.groupby("class", sort=False)["mean"].mean()
    what = "Dice of the masks" if registry.get(task).is_segmentation else "share of the items found"
    caption = (
        f"What encoders find of each class: {what}, mean and SD over runs "
        f"({of_what(study.settings)}). Over encoders {means.idxmin()} is found least: "
        f"{means.min():.2f}."
    )
    return Exhibit(name, heading, caption, table, None, SECTION, shown)


def by_patient(study: Study, task: str) -> Exhibit:
    """Balanced accuracy of patients beside that of their patches, of a task whose labels are of
    patients: ``encoder, by, mean, sd, low, high, n``; otherwise no row.
    """
    rows, has_groups = [], registry.get(task).labels_groups
    ways = {"patch": task_scores.of_labels, "patient": task_scores.of_groups}
    for (name, encoder), run in runs(study).items() if has_groups else ():
        if name != task or "@" in encoder:
            continue
        tested = store.read_parquet(run.path(FILES["classification"]))
        split = tasks_protocol.reported_split(tested["split"])
        for by, score in ways.items():
            one = score(tested[tested["split"] == split])
            over = spread(one.values)
            span = task_scores.bootstrap(one.clusters, one.score, study.seed, task, split)
            rows.append((encoder, by, over.mean, over.sd, span.low, span.high, one.n_items))
    table = pd.DataFrame(rows, columns=["encoder", "by", "mean", "sd", "low", "high", "n"])
    name, heading = f"09_{task}_by_patient", f"{task}, by patient"
    caption = (
        "Balanced accuracy of patches, each with its patient's label, and of patients, by the mean "
        f"probability over a patient's patches ({of_what(study.settings)}). Mean and SD over runs; "
        "95 % bootstrap over patients."
    )
    if not has_groups:
        caption = f"Labels of {task} are of items, not of patients ({of_what(study.settings)})."
    elif not rows:
        caption = nobody(study, task)
    return Exhibit(name, heading, caption, table, None, SECTION)
