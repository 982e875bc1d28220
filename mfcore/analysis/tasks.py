"""Encoders on downstream tasks: scores computed again from what heads and decoders predicted, by class, and masks (Fig. 3).

Two intervals. Runs differ by their seed alone (the head's start, the order of the items; for few-shot
tasks the training items too): their spread is what the seed does, and says nothing about other patients.
The bootstrap draws the tested slides or patients anew, or items where a set names none: it holds neither the
choice of training items nor that weights were selected on the same items where a set has no test split.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy import stats

from mfcore import encoders, store
from mfcore.analysis.exhibit import WIDTH_INCH, Exhibit, finished, in_style, look, of_what
from mfcore.encoders.card import cards
from mfcore.measures import masks, task_scores
from mfcore.measures.resampling import coverage_said
from mfcore.measures.statistics import LEVEL, Interval, spread
from mfcore.study import pretrained, tasks as study_tasks
from mfcore.study.config import Settings, TaskOptions, as_dict
from mfcore.study.predictions import PROBE
from mfcore.study.study import Study
from mfcore.tasks import protocol as tasks_protocol, registry

SECTION = "Downstream tasks"
STAGES = {"classification": "judge", "segmentation": "segment"}
METRICS = {"classification": "balanced_accuracy", "segmentation": "dice"}
TITLES = {"balanced_accuracy": "balanced accuracy", "dice": "Dice without background"}
FILES = {"classification": "predictions.parquet", "segmentation": "dice.parquet"}
MAX_BY_CLASS, MAX_MASKS = 6, 3  # encoders side by side
# Okabe and Ito's colours, the first four differ in grey too; the background is white
OF_CLASSES = ("#0072b2", "#e69f00", "#d55e00", "#f0e442", "#009e73", "#56b4e9", "#cc79a7")
IGNORED_GREY = "0.75"
COLUMNS = [
    "task", "kind", "encoder", "step", "split", "metric", "mean", "sd", "low", "high", "runs_low", "runs_high", "n_runs",
    "n_items", "n_clusters", "published", "published_by", "difference",
]  # fmt: skip
MASK_COLUMNS = ["item_id", "encoder", "class", "n_px", "dice"]


# ---- runs ----


@cache
def runs(study: Study) -> dict[tuple[str, str], store.Run]:
    """The current run of each task and encoder, by their names, made by the study's protocol with today's card."""
    records = {kind: store.runs(study.folder, stage) for kind, stage in STAGES.items()}
    return {
        (task.name, encoder): run
        for task in study.settings.tasks
        for encoder in study_tasks.encoders_of(study.settings, task)
        if (run := _find(study, task, encoder, records[tasks_protocol.of(task).kind])) is not None
    }


def _find(study: Study, task: TaskOptions, encoder: str, stored: list[store.Run]) -> store.Run | None:
    try:
        config = study_tasks.config_of(study.settings, task.name, _card(study, encoder))
        if config["card"] is None:  # what another machine knows of it decides nothing here
            del config["card"]
    except (store.StoreError, encoders.EncoderError):
        return None

    def known(run: store.Run) -> dict:
        return {key: run.identity["config"][key] for key in config}

    name = f"{task.name}.{encoder}"
    alike = [run for run in stored if run.identity["name"] == name and not store.changes(known(run), config)]
    return store.current(alike, known) if alike else None


def _card(study: Study, encoder: str) -> dict | None:
    """Today's card, as a run's config has it, of encoders whose card can be known here without asking elsewhere; else None."""
    described = encoder in [own.name for own in study.settings.own_encoders]
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


def notes(study: Study) -> dict[str, str]:
    """By task, what is to be known of its data, as where some are missing; tasks without such a note are left out."""
    of_task = {task: run.record["facts"].get("notes", []) for (task, _), run in runs(study).items()}
    return {task: "; ".join(each) for task, each in of_task.items() if each}


def step_of(settings: Settings, encoder: str) -> float:
    """After which step an encoder or snapshot of the study's own was taken; NaN for one that it doesn't pretrain."""
    name, _, step = encoder.partition("@")
    return float(step or settings.pretraining_of(name).n_steps) if pretrained.is_of(settings, name) else math.nan


def control_of(settings: Settings, name: str) -> str:
    """The encoder of the study with the same network and no training at all, which a pretraining must beat; "" without one."""
    one = settings.pretraining_of(name)
    for own in settings.own_encoders:
        if own.weights == "random" and (own.architecture, own.arguments or {}) == (one.architecture, one.arguments):
            return own.name
    return ""


# ---- scores ----


def scored(run: store.Run, kind: str) -> dict[str, task_scores.Scored]:
    """What a finished run scored, by split; ``kind``: the task's."""
    predictions = store.read_parquet(run.path(FILES[kind]))
    of_split = task_scores.of_labels if kind == "classification" else task_scores.of_masks
    return {split: of_split(part) for split in ("val", "test") if len(part := predictions[predictions["split"] == split])}


@cache
def scores_table(study: Study) -> pd.DataFrame:
    """A row a task, encoder or snapshot, and split: columns COLUMNS, in the study's order.

    mean, sd: over runs; runs_low, runs_high: 95 % interval of that mean, by Student's t; low, high: 95 %
    bootstrap over slides, patients or items. step: after which a pretrained encoder was taken, NaN for others.
    published: eva's leaderboard, or else kaiko's README; NaN where neither has the encoder, or where heads
    learn from other numbers of items than eva's; difference: mean less that.
    """
    known, rows = _published(), []
    for (task, encoder), run in runs(study).items():
        protocol = tasks_protocol.of(study.settings.task(task))
        kind, as_published = protocol.kind, protocol.n_per_class == registry.get(task).protocol.n_per_class
        for split, one in scored(run, kind).items():
            over = spread(one.values)
            half = float(stats.t.ppf((1 + LEVEL) / 2, over.n - 1)) * over.sd / math.sqrt(over.n) if over.n > 1 else math.nan
            interval = task_scores.bootstrap(one.clusters, one.score, study.seed, task, split)
            published, by = known.get((encoder, task, split) if as_published else None, (math.nan, ""))
            row = {"task": task, "kind": kind, "encoder": encoder, "step": step_of(study.settings, encoder), "split": split}
            row |= {"metric": METRICS[kind], "mean": over.mean, "sd": over.sd, "low": interval.low, "high": interval.high}
            row |= {"runs_low": over.mean - half, "runs_high": over.mean + half, "n_runs": over.n, "n_items": one.n_items}
            row |= {"n_clusters": interval.n, "published": published, "published_by": by, "difference": over.mean - published}
            rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def _published() -> Mapping[tuple[str, str, str], tuple[float, str]]:
    """Published scores by encoder, task and split; eva's leaderboard goes before kaiko's README, whose protocol was another."""
    table = registry.published()
    table = table[table["encoder"] != ""].sort_values("source", ascending=False, kind="stable")  # kaiko, then eva
    keys = zip(table["encoder"], table["task"], table["split"], strict=True)
    return dict(zip(keys, zip(table["value"], table["source"] + ", " + table["where"], strict=True), strict=True))


def reported(table: pd.DataFrame) -> pd.DataFrame:
    """Of `scores_table` the rows that are a task's result: its test split, or validation where it has no other."""
    split = table.groupby("task")["split"].transform(tasks_protocol.reported_split) if len(table) else table["split"]
    return table[table["split"] == split].reset_index(drop=True)


def encoders_only(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table that are of encoders, without the snapshots on their way."""
    return table[~table["encoder"].str.contains("@", regex=False)].reset_index(drop=True)


def difference(study: Study, task: str, first: str, second: str) -> Interval:
    """How much more ``first`` scores than ``second`` on what a task reports, both on the same resampled slides or items.

    Raises StoreError where one of them isn't judged.
    """
    stored, kind = runs(study), tasks_protocol.of(study.settings.task(task)).kind
    if lacking := [encoder for encoder in (first, second) if (task, encoder) not in stored]:
        raise store.StoreError(f"task {task!r} hasn't judged {lacking}; run notebook 09 for it")
    both = [scored(stored[task, encoder], kind) for encoder in (first, second)]
    split = tasks_protocol.reported_split(pd.Series(list(both[0])))
    a, b = (one[split] for one in both)
    if a.clusters.shape != b.clusters.shape:
        raise store.StoreError(f"task {task!r}: {first} and {second} were tested on other items; remove the older run")
    return task_scores.difference(a, b, study.seed, task, split)


def class_runs(study: Study, task: str) -> pd.DataFrame:
    """What of each class an encoder finds in each run, of what the task reports: ``encoder, class, run, value, n``.

    value: of a classification the share of a class's items that get their class, of a segmentation the mean
    Dice of the masks that have it; n: items or masks.
    """
    kind, tables = tasks_protocol.of(study.settings.task(task)).kind, []
    for (name, encoder), run in runs(study).items():
        if name != task or "@" in encoder:
            continue
        rows, classes = store.read_parquet(run.path(FILES[kind])), run.record["facts"]["classes"]
        rows = rows[rows["split"] == tasks_protocol.reported_split(rows["split"])]
        if kind == "classification":
            called = rows[[f"score_{i}" for i in range(len(classes))]].to_numpy().argmax(axis=1)
            rows = rows[["run"]].assign(value=1.0 * (called == rows["label"]), of=[classes[i] for i in rows["label"]])
        else:
            rows = rows[["run"]].assign(value=rows["dice"], of=rows["class"]).dropna()
        by_run = rows.groupby([pd.Categorical(rows["of"], classes), "run"], observed=True)["value"].agg(["mean", "size"])
        by_run = by_run.rename_axis(["class", "run"]).reset_index().rename(columns={"mean": "value", "size": "n"})
        tables.append(by_run.assign(encoder=encoder, **{"class": by_run["class"].astype(str)}))
    columns = ["encoder", "class", "run", "value", "n"]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


# ---- exhibits ----


def protocol(study: Study, task: str) -> Exhibit:
    """How a task is judged, and eva's number where the study says another: ``setting, here, eva``."""
    both = {"here": tasks_protocol.of(study.settings.task(task)), "eva": registry.get(task).protocol}
    table = pd.DataFrame({of: as_dict(one) for of, one in both.items()}, dtype=object).rename_axis("setting").reset_index()
    caption = (
        f"How encoders are judged by {task} here and by eva ({of_what(study.settings)}); a dash: all, or the encoder's own."
    )
    return Exhibit(f"09_{task}_protocol", f"Protocol of {task}", caption, table, None, SECTION)


@in_style
def scores(study: Study, task: str) -> Exhibit:
    """What a task reports of each encoder: mean and SD over runs, the interval over what was tested, published scores."""
    table = scores_table(study)
    table = table[table["task"] == task].reset_index(drop=True)
    rows = encoders_only(reported(table)).sort_values("mean", ascending=False, kind="stable")
    name, heading = f"09_{task}", f"Encoders on {task}"
    if rows.empty:
        return Exhibit(name, heading, _nobody(study, task), table, None, SECTION)
    best, mean = rows.iloc[0], rows["mean"]
    figure, axis = plt.subplots(figsize=(WIDTH_INCH, 0.25 * len(rows) + 1.5))
    half = [(mean - rows["low"]).clip(lower=0), (rows["high"] - mean).clip(lower=0)]
    axis.errorbar(mean, rows["encoder"], xerr=half, fmt="none", ecolor="0.35", capsize=3, label="95 % over what was tested")
    axis.errorbar(mean, rows["encoder"], xerr=rows["sd"], fmt="o", elinewidth=4.5, label="mean ± SD over runs")
    if rows["published"].notna().any():
        axis.plot(rows["published"], rows["encoder"], "D", color="0.2", mfc="none", label="published")
    axis.invert_yaxis()
    axis.set_xlabel(TITLES[best["metric"]])
    text = f"{task}, {best['split']}: {best['n_items']:,} items, {rows['n_runs'].max()} runs"
    figure = finished(study, figure, text, 3)
    flattered = "" if best["split"] == "test" else ", which also chose the weights and flatters all"
    caption = (
        f"What frozen encoders reach by eva's protocol on the {best['split']} split of {task}{flattered} "
        f"({of_what(study.settings)}). Points and wide bars: mean and SD over runs that differ by their seed alone; thin bars: "
        f"95 % bootstrap over {best['n_clusters']:,} slides, patients or items{coverage_said(int(rows['n_clusters'].min()))}; "
        "diamonds, if any: published, known second-hand. "
        f"Of {len(rows)} encoders {best['encoder']} is highest: {best['mean']:.3f}."
    )
    shown = table[["encoder", "split", "mean", "sd", "low", "high", "n_runs", "published", "difference"]].round(3)
    return Exhibit(name, heading, caption, table, figure, SECTION, shown)


def _nobody(study: Study, task: str) -> str:
    return f"No encoder has been judged by {task} yet ({of_what(study.settings)})."


@in_style
def by_class(study: Study, task: str) -> Exhibit:
    """What encoders find of each class, mean and SD over runs: ``encoder, class, mean, sd, n``.

    Drawn are all encoders; of more than MAX_BY_CLASS those of the study's list, or the first MAX_BY_CLASS.
    """
    rows, name, heading = class_runs(study, task), f"09_{task}_by_class", f"{task}, by class"
    keys = {"mean": ("value", "mean"), "sd": ("value", "std"), "n": ("n", "first")}
    table = rows.groupby(["encoder", "class"], sort=False).agg(**keys).reset_index()
    if rows.empty:
        return Exhibit(name, heading, _nobody(study, task), table, None, SECTION)
    names = list(dict.fromkeys(rows["encoder"]))
    if len(names) > MAX_BY_CLASS:
        names = [one for one in names if one in study.settings.encoders] or names[:MAX_BY_CLASS]
    looks = pd.DataFrame([look(study.settings, one, PROBE) for one in names])
    classes = table.groupby("class", sort=False).agg(mean=("mean", "mean"), n=("n", "max"))
    style = {"errorbar": "sd", "linestyle": "none", "markersize": 4.5, "err_kws": {"linewidth": 1.1}}
    style |= {"hue_order": names, "palette": list(looks["color"]), "markers": list(looks["marker"])}
    figure, axis = plt.subplots(figsize=(WIDTH_INCH, 0.5 * len(classes) + 1.7))
    sns.pointplot(
        rows, x="value", y="class", order=classes.index, hue="encoder", dodge=0.5 * (len(names) > 1), ax=axis, **style
    )
    axis.set(xlabel="Dice" if registry.get(task).is_segmentation else "share found", ylabel="")
    axis.set_yticks(range(len(classes)), [f"{each}\nn = {n:,}" for each, n in classes["n"].items()])
    axis.get_legend().remove()
    least = classes["mean"].idxmin()
    caption = (
        f"What encoders find of each class ({of_what(study.settings)}; n: items or masks of the class). Points and bars: mean "
        f"and SD over runs; {len(names)} of {table['encoder'].nunique()} encoders are drawn, the table has all. Over encoders "
        f"{least} is found least: {classes['mean'][least]:.2f}."
    )
    return Exhibit(name, heading, caption, table, finished(study, figure, heading, 3), SECTION)


# ---- masks over patches ----


@dataclass(frozen=True)
class Segmented:
    """Patches uint8 (n, H, W, 3) with their true masks uint8 (n, H, W) and, by encoder, what its first run's decoder made.

    table: MASK_COLUMNS, a row a patch, encoder and class that is not the background.
    """

    classes: tuple[str, ...]
    images: np.ndarray
    true: np.ndarray
    predicted: Mapping[str, np.ndarray]
    table: pd.DataFrame


def segmented(study: Study, task: str) -> Segmented:
    """Some of a task's tested patches, segmented by the encoders that `chosen` names; raises StoreError without any."""
    table = encoders_only(reported(scores_table(study)))
    order = table[table["task"] == task].sort_values("mean", ascending=False, kind="stable")["encoder"].tolist()
    if not order:
        raise store.StoreError(f"{study.folder}: no encoder has been judged by {task!r} yet; run notebook 09 with it")
    classes = tuple(runs(study)[task, order[0]].record["facts"]["classes"])
    first, predicted, tables = None, {}, []
    for encoder in chosen(study.settings, order):
        with np.load(runs(study)[task, encoder].path("masks.npz")) as content:
            one = {name: content[name] for name in ("item_id", "image", "true", "predicted")}
        first = first or one
        if np.array_equal(one["item_id"], first["item_id"]) and one["true"].shape == first["true"].shape:
            predicted[encoder] = one["predicted"]
            tables.append(mask_table(one["item_id"], one["true"], one["predicted"], classes, encoder))
    return Segmented(classes, first["image"], first["true"], predicted, pd.concat(tables, ignore_index=True))


def chosen(settings: Settings, order: Sequence[str]) -> list[str]:
    """At most MAX_MASKS of some encoders, the best first in ``order``: the best, one pretrained here, its control, the worst.

    The one pretrained here is the first of the study's encoders that it pretrained, or else the best that it pretrained; the
    control is the same network untrained.
    """
    own = [encoder for encoder in order if pretrained.is_of(settings, encoder)]
    home = [encoder for encoder in settings.encoders if encoder in own][:1] or own[:1]
    controls = [name for encoder in home if (name := control_of(settings, encoder)) in order]
    return list(dict.fromkeys([order[0], *home, *controls, order[-1]]))[:MAX_MASKS]


def mask_table(
    item_id: np.ndarray, true: np.ndarray, predicted: np.ndarray, classes: tuple[str, ...], encoder: str
) -> pd.DataFrame:
    """Dice of each patch and class, columns MASK_COLUMNS; true, predicted: masks uint8 (n, H, W)."""
    n_true, n_predicted, n_both = np.moveaxis(masks.overlaps(true, predicted, len(classes))[:, 1:], -1, 0).reshape(3, -1)
    rows = {"item_id": np.repeat(item_id, len(classes) - 1), "encoder": encoder, "class": list(classes[1:]) * len(item_id)}
    return pd.DataFrame(rows | {"n_px": n_true, "dice": masks.dice(n_true, n_predicted, n_both)})


def segmentations(study: Study, task: str) -> Exhibit:
    """Fig. 3 of kaiko 2024: tested patches with their true masks and what decoders on some encoders made of them."""
    name, heading = f"09_{task}_masks", "Segmentations (kaiko 2024, Fig. 3)"
    if not registry.get(task).is_segmentation:
        caption = f"A task of classification has no masks ({of_what(study.settings)})."
        return Exhibit(name, heading, caption, pd.DataFrame(columns=MASK_COLUMNS), None, SECTION)
    shown = segmented(study, task)
    caption = (
        f"Tested patches of {task}, drawn at random among those with nuclei, their true masks, and what the first run's "
        f"decoder on frozen features made of them ({of_what(study.settings)}). Encoders, at most {MAX_MASKS}: the best, one "
        f"pretrained here, the same network untrained, the worst. So few patches ({len(shown.images)}) are no measurement."
    )
    return Exhibit(name, heading, caption, shown.table, draw_masks(study, shown, task), SECTION)


@in_style
def draw_masks(study: Study, shown: Segmented, task: str) -> Figure:
    """A row a patch: the patch, and over it its true mask and each encoder's, with the patch's Dice, mean over its classes."""
    dice = shown.table.groupby(["encoder", "item_id"], sort=False)["dice"].mean()
    columns = {"patch": np.zeros_like(shown.true), "true mask": shown.true, **shown.predicted}
    colours = dict(zip(shown.classes[1:], OF_CLASSES, strict=False))
    palette = ListedColormap([*colours.values(), IGNORED_GREY])
    size_inch = (max(5, 1.4 * len(columns)), 1.5 * len(shown.images) + 0.9)
    figure, axes = plt.subplots(len(shown.images), len(columns), squeeze=False, figsize=size_inch)
    for line, (name, mask) in zip(axes.T, columns.items(), strict=True):
        line[0].set_title(name, fontsize=7)
        for i, (axis, image) in enumerate(zip(line, shown.images, strict=True)):
            axis.imshow(image if name == "patch" else 128 + image.mean(axis=2) / 2, cmap="gray", vmin=0, vmax=255)
            at = np.where(mask[i] == masks.IGNORED, len(colours) + 1, mask[i])
            limits = {"vmin": 0.5, "vmax": len(colours) + 1.5}
            axis.imshow(np.ma.masked_equal(at, 0), cmap=palette, interpolation="nearest", alpha=0.75, **limits)
            axis.set(xticks=[], yticks=[])
            axis.grid(visible=False)
            if name in shown.predicted:
                axis.set_xlabel(f"Dice {dice[name].iloc[i]:.2f}", fontsize=6.5)
    colours |= {"not judged": IGNORED_GREY} if (shown.true == masks.IGNORED).any() else {}
    figure.legend(handles=[Patch(facecolor=colour, edgecolor="0.3", label=name) for name, colour in colours.items()])
    return finished(study, figure, task, 4)
