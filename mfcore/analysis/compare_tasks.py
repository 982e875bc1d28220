"""Encoders beside one another on downstream tasks: every score computed again from what heads and decoders predicted.

Two intervals. Runs differ by their seed alone (the head's start, the order of the items; for few-shot tasks the training items
too): their spread says how much of a score is the seed's, and nothing about other patients. The bootstrap draws the tested
slides or patients anew, or items where a set names none: it holds the choice of what was tested, not that of what was learned
from, nor that the best of a training was selected on the same items where a set has no test split.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from mfcore import encoders, store
from mfcore.encoders.card import cards
from mfcore.measures import binary, masks
from mfcore.measures.resampling import MIN_SLIDES, N_RESAMPLES, interval_of
from mfcore.measures.statistics import LEVEL, Interval, spread
from mfcore.streams import generator
from mfcore.study import encoders as study_encoders, pretrained, tasks as study_tasks
from mfcore.study.config import Settings, TaskOptions
from mfcore.tasks import protocol as tasks_protocol, registry

STAGES = {"classification": "judge", "segmentation": "segment"}
METRICS = {"classification": "balanced_accuracy", "segmentation": "dice"}
TITLES = {"balanced_accuracy": "balanced accuracy", "dice": "Dice without background"}
FILES = {"classification": "predictions.parquet", "segmentation": "dice.parquet"}
MAX_DRAWN = 6  # encoders side by side in one class
COLUMNS = [
    "task", "kind", "encoder", "step", "split", "metric", "mean", "sd", "low", "high", "runs_low", "runs_high", "n_runs",
    "n_items", "n_clusters", "published", "published_by", "difference",
]  # fmt: skip


@dataclass(frozen=True)
class Scored:
    """What one encoder's runs scored on one split of a task.

    values: the score of each run (n_runs,). clusters: of each tested slide or patient, or item, the sums of which ``score``
    makes the mean over runs, float64 (n_clusters, n_sums); in the order of their names, which is every encoder's.
    """

    values: np.ndarray
    clusters: np.ndarray
    n_items: int
    score: Callable[[np.ndarray], np.ndarray]


def runs(study: Settings, results: str | Path) -> dict[tuple[str, str], store.Run]:
    """The current run of each task and encoder, by their names, made by the study's protocol with today's card."""
    records = {kind: store.runs(results, stage) for kind, stage in STAGES.items()}
    return {
        (task.name, encoder): run
        for task in study.tasks
        for encoder in study_tasks.encoders_of(study, task)
        if (run := _find(study, task, encoder, Path(results), records[tasks_protocol.of(task).kind])) is not None
    }


def _find(study: Settings, task: TaskOptions, encoder: str, results: Path, there: list[store.Run]) -> store.Run | None:
    try:
        config = study_tasks.config_of(study, task.name, _card(study, encoder, results))
        if config["card"] is None:  # what another machine knows of it decides nothing here
            del config["card"]
    except (store.StoreError, encoders.EncoderError):
        return None

    def known(run: store.Run) -> dict:
        return {key: run.identity["config"][key] for key in config}

    found = [run for run in there if run.identity["name"] == f"{task.name}.{encoder}" and not store.changes(known(run), config)]
    return store.current(found, known) if found else None


def _card(study: Settings, encoder: str, results: Path) -> dict | None:
    """Today's card, as a run's config has it, of encoders whose card can be known here without asking elsewhere; else None."""
    described = encoder in [own.name for own in study.own_encoders]
    if not (described or encoder in cards() or pretrained.is_of(study, encoder)):
        return None
    try:
        return study_encoders.card_of(study, encoder, results).identity()
    except encoders.EncoderError:
        if described:  # by a file that lies where it was judged
            return None
        raise


def missing(study: Settings, results: str | Path) -> pd.DataFrame:
    """Whom tasks haven't judged, and why: ``task, encoder, reason``."""
    there, rows = runs(study, results), []
    for task in study.tasks:
        told = study_tasks.refusals(results, task.name)
        rows += [
            (task.name, encoder, told.get(encoder, "not run yet"))
            for encoder in study_tasks.encoders_of(study, task)
            if (task.name, encoder) not in there
        ]
    return pd.DataFrame(rows, columns=["task", "encoder", "reason"])


def notes(study: Settings, results: str | Path) -> dict[str, str]:
    """By task, what is to be known of its data, as where some are missing; tasks without such a note are left out."""
    said = {task: run.record["facts"].get("notes", []) for (task, _), run in runs(study, results).items()}
    return {task: "; ".join(each) for task, each in said.items() if each}


def scored(run: store.Run, kind: str) -> dict[str, Scored]:
    """What a finished run scored, by split; ``kind``: the task's."""
    predictions = store.read_parquet(run.path(FILES[kind]))
    of_split = _of_labels if kind == "classification" else _of_masks
    return {split: of_split(part) for split in ("val", "test") if len(part := predictions[predictions["split"] == split])}


def _of_labels(predictions: pd.DataFrame) -> Scored:
    """Balanced accuracy: sums are the items of each class, then those of them that the mean run gives their class."""
    scores = predictions[sorted((c for c in predictions if c.startswith("score_")), key=lambda c: int(c[6:]))].to_numpy()
    table = predictions[["run", "item_id", "label"]].assign(called=scores.argmax(axis=1), cluster=_clusters(predictions))
    values = [binary.mean_recall(part["label"], part["called"]) for _, part in table.groupby("run")]
    n_runs, n_classes = table["run"].nunique(), scores.shape[1]
    cluster, n_clusters = table["cluster"].to_numpy(), table["cluster"].max() + 1
    cell, right = cluster * n_classes + table["label"].to_numpy(), (table["label"] == table["called"]).to_numpy()
    sums = [
        np.bincount(cell, weights=weights, minlength=n_clusters * n_classes).reshape(n_clusters, n_classes) / n_runs
        for weights in (np.ones(len(cell)), right)
    ]
    return Scored(np.array(values), np.hstack(sums), table["item_id"].nunique(), _mean_recall)


def _mean_recall(sums: np.ndarray) -> np.ndarray:
    """From sums (m, 2 n_classes) the mean share found of the classes that the sample, its first row, has; NaN without one."""
    n, right = np.split(sums, 2, axis=1)
    there = n[0] > 0
    return binary.mean_recall_of(right[:, there], n[:, there])


def _of_masks(dice: pd.DataFrame) -> Scored:
    """Dice: the sums are the mean run's Dice of masks with nuclei, and how many there are."""
    value = masks.dice(dice["n_px"], dice["n_predicted_px"], dice["n_both_px"])
    table = dice[["run", "item_id"]].assign(value=value, cluster=_clusters(dice))
    by_item = table.groupby(["cluster", "item_id", "run"])["value"].mean().unstack("run").dropna()  # over a mask's classes
    clusters = by_item.mean(axis=1).groupby("cluster").agg(["sum", "size"])
    return Scored(by_item.mean(axis=0).to_numpy(), clusters.to_numpy(float), len(by_item), lambda sums: sums[:, 0] / sums[:, 1])


def _clusters(table: pd.DataFrame) -> np.ndarray:
    """Number of each row's slide or patient, or of its item where the set names none."""
    named = table["group"] != ""
    return np.unique(np.where(named, table["group"], table["item_id"]).astype(str), return_inverse=True)[1]


def bootstrap(
    clusters: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    seed: int,
    *names: object,
    least: float = 0.0,
    most: float = 1.0,
) -> Interval:
    """95 % interval of ``score`` of the clusters' summed columns, clusters being drawn with replacement.

    clusters: float64 (n_clusters, n_sums); score: of sums (m, n_sums), the sample's first, gives (m,), NaN where undefined.
    Clusters with the same numbers are one kind, and how often each kind is drawn is drawn at once. Bounds are NaN for fewer
    than MIN_SLIDES clusters. least, most: as `resampling.interval_of`.
    """
    kinds, n = np.unique(clusters, axis=0, return_counts=True)
    total = int(n.sum())
    if total < MIN_SLIDES:
        return Interval(float(score(n[None] @ kinds)[0]), math.nan, math.nan, LEVEL, total)
    drawn = generator(seed, "bootstrap", "tasks", *names).multinomial(total, n / total, N_RESAMPLES)
    return interval_of(score(np.vstack([n, drawn]) @ kinds), total, least=least, most=most)


def table(study: Settings, results: str | Path) -> pd.DataFrame:
    """A row a task, encoder or snapshot, and split: columns COLUMNS, in the study's order.

    mean, sd: over runs; runs_low, runs_high: 95 % interval of that mean, by Student's t; low, high: 95 % bootstrap over slides,
    patients or items. step: after which a pretrained encoder was taken, NaN for others. published: what eva's leaderboard, or
    else kaiko's README, has for the encoder, NaN where neither, or where heads learn from other numbers of items than eva's;
    difference: mean less that.
    """
    known, rows = _published(), []
    for (task, encoder), run in runs(study, results).items():
        protocol = tasks_protocol.of(study.task(task))
        kind, as_published = protocol.kind, protocol.n_per_class == registry.get(task).protocol.n_per_class
        for split, found in scored(run, kind).items():
            over = spread(found.values)
            half = float(stats.t.ppf((1 + LEVEL) / 2, over.n - 1)) * over.sd / math.sqrt(over.n) if over.n > 1 else math.nan
            interval = bootstrap(found.clusters, found.score, study.splits.seed, task, split)
            published, by = known.get((encoder, task, split) if as_published else None, (math.nan, ""))
            row = {"task": task, "kind": kind, "encoder": encoder, "step": step_of(study, encoder), "split": split}
            row |= {"metric": METRICS[kind], "mean": over.mean, "sd": over.sd, "low": interval.low, "high": interval.high}
            row |= {"runs_low": over.mean - half, "runs_high": over.mean + half, "n_runs": over.n, "n_items": found.n_items}
            row |= {"n_clusters": interval.n, "published": published, "published_by": by, "difference": over.mean - published}
            rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def step_of(study: Settings, encoder: str) -> float:
    """After which step an encoder or snapshot of the study's own was taken; NaN for one that it doesn't pretrain."""
    name, _, step = encoder.partition("@")
    return float(step or study.pretraining_of(name).n_steps) if pretrained.is_of(study, name) else math.nan


def _published() -> Mapping[tuple[str, str, str], tuple[float, str]]:
    """Published scores by encoder, task and split; eva's leaderboard goes before kaiko's README, whose protocol was another."""
    found = registry.published()
    found = found[found["encoder"] != ""].sort_values("source", ascending=False, kind="stable")  # kaiko, then eva
    keys = zip(found["encoder"], found["task"], found["split"], strict=True)
    return dict(zip(keys, zip(found["value"], found["source"] + ", " + found["where"], strict=True), strict=True))


def reported(table: pd.DataFrame) -> pd.DataFrame:
    """Of `table` the rows that are a task's result: its test split, or validation where it has no other."""
    if not len(table):
        return table
    return table[table["split"] == table.groupby("task")["split"].transform(tasks_protocol.reported_split)].reset_index(
        drop=True
    )


def encoders_only(table: pd.DataFrame) -> pd.DataFrame:
    """Of `table` the rows of encoders, without the snapshots on their way."""
    return table[~table["encoder"].str.contains("@")].reset_index(drop=True)


def difference(study: Settings, results: str | Path, task: str, first: str, second: str) -> Interval:
    """How much more ``first`` scores than ``second`` on what a task reports, both on the same resampled slides or items.

    Raises StoreError where one of them isn't judged.
    """
    there, kind = runs(study, results), tasks_protocol.of(study.task(task)).kind
    if lacking := [encoder for encoder in (first, second) if (task, encoder) not in there]:
        raise store.StoreError(f"task {task!r} hasn't judged {lacking}; run notebook 09 for it")
    both = [scored(there[task, encoder], kind) for encoder in (first, second)]
    split = tasks_protocol.reported_split(pd.Series(list(both[0])))
    a, b = (found[split] for found in both)
    if a.clusters.shape != b.clusters.shape:
        raise store.StoreError(f"task {task!r}: {first} and {second} were tested on other items; remove the older run")
    n = a.clusters.shape[1]
    together = np.hstack([a.clusters, b.clusters])

    def less(sums: np.ndarray) -> np.ndarray:
        return a.score(sums[:, :n]) - b.score(sums[:, n:])

    return bootstrap(together, less, study.splits.seed, task, split, least=-math.inf, most=math.inf)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """`table` for the eye: "mean ± SD" over runs, the bootstrap's interval, and what is published."""
    pairs = zip(table["mean"], table["sd"], strict=True)
    bounds = zip(table["low"], table["high"], strict=True)
    published = zip(table["published"], table["difference"], strict=True)
    return pd.DataFrame(
        {
            "task": table["task"],
            "encoder": table["encoder"],
            "split": table["split"],
            "score": [f"{mean:.3f}" + (f" ± {sd:.3f}" if math.isfinite(sd) else "") for mean, sd in pairs],
            "95 % over what was tested": [f"{low:.3f} to {high:.3f}" if math.isfinite(low) else "–" for low, high in bounds],
            "runs": table["n_runs"],
            "published": [f"{value:.3f} ({less:+.3f})" if math.isfinite(value) else "–" for value, less in published],
        }
    )


def few(study: Settings, table: pd.DataFrame) -> list[str]:
    """Of a table's encoders those to draw where each needs a mark for every class: all that there are.

    Of more than MAX_DRAWN, those of the study's ``encoders``, or the first MAX_DRAWN where it lists none of them.
    """
    there = list(dict.fromkeys(table["encoder"]))
    if len(there) <= MAX_DRAWN:
        return there
    return [name for name in there if name in study.encoders] or there[:MAX_DRAWN]


def by_class(study: Settings, results: str | Path, task: str) -> pd.DataFrame:
    """What of each class an encoder finds, of what the task reports: ``encoder, class, mean, sd, n``.

    Of a classification the share of a class's items that get their class, of a segmentation the Dice of the masks that have
    it; mean and SD over runs, n items or masks.
    """
    kind, rows = tasks_protocol.of(study.task(task)).kind, []
    for (name, encoder), run in runs(study, results).items():
        if name != task or "@" in encoder:
            continue
        predictions = store.read_parquet(run.path(FILES[kind]))
        predictions = predictions[predictions["split"] == tasks_protocol.reported_split(predictions["split"])]
        classes = run.record["facts"]["classes"]
        if kind == "classification":
            called = predictions[[f"score_{i}" for i in range(len(classes))]].to_numpy().argmax(axis=1)
            value = (called == predictions["label"]).astype(float)
            found = predictions[["run"]].assign(value=value, of=[classes[i] for i in predictions["label"]])
        else:
            found = predictions[["run"]].assign(value=predictions["dice"], of=predictions["class"]).dropna()
        by_run = found.groupby(["of", "run"])["value"].agg(["mean", "size"])
        for of in (name for name in classes if name in by_run.index):
            over = spread(by_run.loc[of, "mean"])
            n = int(by_run.loc[of, "size"].iloc[0])
            rows.append({"encoder": encoder, "class": of, "mean": over.mean, "sd": over.sd, "n": n})
    return pd.DataFrame(rows, columns=["encoder", "class", "mean", "sd", "n"])
