"""Encoders on downstream tasks: scores computed again from what heads and decoders predicted.

Two intervals. Runs differ by their seed alone (the head's start, the order of the items; for
few-shot tasks the training items too): their spread is what the seed does, and says nothing about
other patients. The bootstrap draws the tested slides or patients anew, or items where a set names
none: it holds neither the choice of training items nor that weights were selected on the same items
where a set has no test split.
"""

import math
from collections.abc import Iterator
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from mfcore import store
from mfcore.analysis.exhibit import (
    WIDTH_INCH,
    Exhibit,
    cells,
    finished,
    in_style,
    of_what,
    rounded,
)
from mfcore.encoders.card import EncoderError
from mfcore.measures import task_scores
from mfcore.measures.resampling import coverage_note
from mfcore.measures.statistics import Interval, spread
from mfcore.study import encoders as study_encoders, pretrained, tasks as study_tasks
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
    by_age = sorted(found.items(), key=lambda item: item[1].ended)
    items = {task: run.identity["inputs"]["items"] for (task, _), run in by_age}
    return {of: run for of, run in found.items() if run.identity["inputs"]["items"] == items[of[0]]}


def _find(study: Study, task: TaskOptions, encoder: str) -> store.Run | None:
    """The current run, by today's card where it can be known without asking elsewhere."""
    settings, card = study.settings, None
    is_described = encoder in [entry.name for entry in settings.own_encoders]
    try:
        if is_described or study_encoders.has_card_here(settings, encoder):
            card = study.card(encoder).identity()
    except (store.StoreError, EncoderError):
        if not is_described:  # else by a file that lies where it was judged
            return None
    config = study_tasks.config_of(settings, task.name, card)
    if card is None:  # what another machine knows of it decides nothing here
        del config["card"]
    stage = STAGES[tasks_protocol.of(task).kind]
    return store.last_opened(study.folder, stage, f"{task.name}.{encoder}", config)


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
    for entry in settings.own_encoders:
        if (entry.weights, entry.architecture, entry.arguments or {}) == network:
            return entry.name
    return ""


# ---- scores ----


def scored(run: store.Run, kind: str) -> dict[str, task_scores.Scored]:
    """What a finished run scored, by split; ``kind``: the task's."""
    predictions = store.read_parquet(run.path(FILES[kind]))
    of_split = task_scores.of_labels if kind == "classification" else task_scores.of_masks
    by_split = dict(list(predictions.groupby("split")))
    return {split: of_split(by_split[split]) for split in ("val", "test") if split in by_split}


def _summary(study: Study, task: str, split: str, one: task_scores.Scored) -> dict[str, float]:
    """Mean and SD over runs, and the bootstrap over what was tested."""
    over = spread(one.values)
    span = task_scores.bootstrap(one.clusters, one.score, study.seed, task, split)
    row = {"mean": over.mean, "sd": over.sd, "low": span.low, "high": span.high}
    return row | {"n_runs": over.n, "n_items": one.n_items, "n_clusters": span.n}


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
        row = {"task": task, "kind": kind, "encoder": encoder, "step": step}
        row["metric"] = METRICS[kind]
        for split, one in scored(run, kind).items():
            rows.append(row | {"split": split} | _summary(study, task, split, one))
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
    has_test = table["task"].isin(table.loc[table["split"] == "test", "task"])
    return table[has_test == (table["split"] == "test")].reset_index(drop=True)


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
    split = [*a][-1]
    return task_scores.difference(a[split], b[split], study.seed, task, split)


def _tested(study: Study, task: str) -> Iterator[tuple[str, store.Run, pd.DataFrame]]:
    """Each encoder that a task judged, its run, and its predictions on the split reported."""
    kind = tasks_protocol.of(study.settings.task(task)).kind
    for (name, encoder), run in runs(study).items():
        if name == task and "@" not in encoder:
            rows = store.read_parquet(run.path(FILES[kind]))
            yield encoder, run, rows[rows["split"] == tasks_protocol.reported_split(rows["split"])]


def class_runs(study: Study, task: str) -> pd.DataFrame:
    """What of each class an encoder finds in each run: ``encoder, class, run, value, n``.

    value: of a classification the share of a class's items that get their class, of a segmentation
    the mean Dice of the masks that have the class; n: items or masks. Of the split that is
    reported.
    """
    columns = ["encoder", "class", "run", "value", "n"]
    tables = [pd.DataFrame(columns=columns)]
    for encoder, run, rows in _tested(study, task):
        if "dice" not in rows:
            classes = np.array(run.record["facts"]["classes"])
            called = rows.filter(regex=r"^score_\d+$").to_numpy().argmax(axis=1)
            rows = rows.assign(dice=1.0 * (called == rows["label"]))
            rows["class"] = classes[rows["label"]]
        groups = rows.dropna(subset="dice").groupby(["class", "run"])["dice"]
        found = groups.agg(value="mean", n="size").reset_index().assign(encoder=encoder)
        tables.append(found[columns])
    return pd.concat(tables[1:] or tables, ignore_index=True)


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


def exhibit(
    study: Study,
    task: str,
    name: str,
    title: str,
    table: pd.DataFrame,
    caption: str,
    **shown: object,
) -> Exhibit:
    """An exhibit of a task; of an empty table, that the task has judged no encoder."""
    if table.empty:
        shown, caption = {}, f"No encoder has been judged by {task} yet"
        caption += f" ({of_what(study.settings)})."
    return Exhibit(f"09_{task}{name}", title, caption, table, section=SECTION, **shown)


@in_style
def scores(study: Study, task: str) -> Exhibit:
    """What a task reports of each encoder: mean, SD, interval, and published scores."""
    table = scores_table(study)
    table = table[table["task"] == task].reset_index(drop=True)
    rows = encoders_only(reported(table)).sort_values("mean", ascending=False, kind="stable")
    title = f"Encoders on {task}"
    if rows.empty:
        return exhibit(study, task, "", title, rows, "")
    best, names = rows.iloc[0], rows["encoder"]
    figure, axis = plt.subplots(figsize=(WIDTH_INCH, 0.25 * len(rows) + 1.5))
    axis.hlines(names, rows["low"], rows["high"], color="0.35", label="95 % over what was tested")
    style = {"fmt": "o", "elinewidth": 4.5, "label": "mean ± SD over runs"}
    axis.errorbar(rows["mean"], names, xerr=rows["sd"], **style)
    if rows["published"].notna().any():
        axis.plot(rows["published"], names, "D", color="0.2", mfc="none", label="published")
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
    shown = {"figure": figure, "readable": rounded(table[columns])}
    return exhibit(study, task, "", title, table, caption, **shown)


def by_class(study: Study, task: str) -> Exhibit:
    """What encoders find of each class, mean and SD over runs: ``encoder, class, mean, sd, n``."""
    groups = class_runs(study, task).groupby(["encoder", "class"], sort=False)
    table = groups.agg(mean=("value", "mean"), sd=("value", "std"), n=("n", "first")).reset_index()
    what = "Dice of the masks" if registry.get(task).is_segmentation else "share of the items found"
    caption = (
        f"What encoders find of each class: {what}, mean and SD over runs "
        f"({of_what(study.settings)})."
    )
    shown = table.assign(cell=cells(table.rename(columns={"sd": "mean_sd"}), "mean"))
    shown = shown.pivot(index="encoder", columns="class", values="cell").reset_index()
    title = f"{task}, by class"
    return exhibit(study, task, "_by_class", title, table, caption, readable=shown)


def by_patient(study: Study, task: str) -> Exhibit:
    """Balanced accuracy of patients beside that of their patches, of a task whose labels are of
    patients: ``encoder, by, mean, sd, low, high, n``; otherwise no row.
    """
    rows, title, name = [], f"{task}, by patient", "_by_patient"
    columns = ["encoder", "by", "mean", "sd", "low", "high", "n"]
    if not registry.get(task).labels_groups:
        caption = f"Labels of {task} are of items, not of patients ({of_what(study.settings)})."
        nothing = pd.DataFrame(columns=columns)
        return Exhibit(f"09_{task}{name}", title, caption, nothing, section=SECTION)
    ways = {"patch": task_scores.of_labels, "patient": task_scores.of_groups}
    for encoder, _, tested in _tested(study, task):
        for by, score in ways.items():
            row = _summary(study, task, tested["split"].iloc[0], score(tested))
            rows.append({"encoder": encoder, "by": by, "n": row["n_items"]} | row)
    caption = (
        "Balanced accuracy of patches, each with its patient's label, and of patients, by the mean "
        f"probability over a patient's patches ({of_what(study.settings)}). Mean and SD over runs; "
        "95 % bootstrap over patients."
    )
    return exhibit(study, task, name, title, pd.DataFrame(rows, columns=columns), caption)
