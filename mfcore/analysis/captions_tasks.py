"""Captions of the downstream tasks, with every number computed from the tables they describe."""

import pandas as pd

from mfcore.analysis.captions import listed, of_what
from mfcore.analysis.compare_masks import MAX_SHOWN, Shown
from mfcore.analysis.compare_tasks import TITLES, encoders_only, few, reported
from mfcore.measures.resampling import coverage_said
from mfcore.study.config import Settings
from mfcore.tasks import protocol as tasks_protocol, registry


def protocol(study: Settings, task: str) -> pd.DataFrame:
    """How a task is judged, and eva's number where the study says another: ``setting, here, eva``."""
    here, evas = tasks_protocol.of(study.task(task)), registry.get(task).protocol
    names = {
        "n_runs": "runs",
        "n_steps": "steps, at most",
        "batch_size": "items a step",
        "max_lr": "learning rate (AdamW)",
        "weight_decay": "weight decay",
        "n_per_class": "training items a class",
        "size_px": "side of a patch, px",
    }
    words = {"n_per_class": "all", "size_px": "the encoder's"}
    rows = [
        (title, *(words.get(key) if getattr(which, key) is None else f"{getattr(which, key):g}" for which in (here, evas)))
        for key, title in names.items()
    ]
    return pd.DataFrame(rows, columns=["setting", "here", "eva"])


def scores(study: Settings, table: pd.DataFrame) -> str:
    """Caption of the tasks' dots; ``table`` as `compare_tasks.table` returns it."""
    table = encoders_only(reported(table))
    if not len(table):
        return f"**Downstream tasks.** No encoder has been judged by any task yet ({of_what(study)})."
    parts = [_of_task(study, task, part) for task, part in table.groupby("task", sort=False)]
    return (
        f"**Downstream tasks.** Encoders judged by eva's protocol, frozen ({of_what(study)}). {' '.join(parts)} Runs differ by "
        "their seed alone, so the wide bar says what a score owes to it and nothing about other patients; the thin one holds "
        "neither the choice of training items nor the encoder's own training: it is a 95 % bootstrap of slides "
        f"or patients where the set names them, else of items{coverage_said(_fewest(table))}.{_published(table)}"
    )


def _fewest(table: pd.DataFrame) -> int:
    """Over how few slides, patients or items an interval is."""
    return int(table["n_clusters"].min())


def _of_task(study: Settings, task: str, part: pd.DataFrame) -> str:
    best = part.loc[part["mean"].idxmax()]
    clusters = f" of {best['n_clusters']:,} slides or patients" if best["n_clusters"] < best["n_items"] else ""
    interval = f", 95 % [{best['low']:.2f}, {best['high']:.2f}]" if best["low"] == best["low"] else ""
    chosen = "" if best["split"] == "test" else ", on the split that also chose the weights, as in eva, which flatters all"
    text = (
        f"{task}, {TITLES[best['metric']]} on {best['n_items']:,} items{clusters}{chosen}: of {len(part)} encoders "
        f"{best['encoder']} is highest with {_with_sd(best)}{interval}"
    )
    if len(part) > 1:
        worst = part.loc[part["mean"].idxmin()]
        text += f", {worst['encoder']} lowest with {_with_sd(worst)}" if worst["mean"] < best["mean"] else ", and none is lower"
    here, evas = tasks_protocol.of(study.task(task)), registry.get(task).protocol
    if here.n_steps != evas.n_steps:
        text += f" (heads of {here.n_steps:,} steps; eva's have {evas.n_steps:,})"
    return text + "."


def _with_sd(row: pd.Series) -> str:
    return f"{row['mean']:.3f}" + (f" ± {row['sd']:.3f}" if row["sd"] == row["sd"] else "")


def _published(table: pd.DataFrame) -> str:
    beside = table[table["published"].notna()]
    if not len(beside):
        return ""
    gap, drift = beside["difference"].abs(), registry.drift()["drift"].abs()
    return (
        f" Open diamonds: published by {listed(sorted({by.split(',')[0] for by in beside['published_by']}))} (second-hand) for "
        f"{len(beside)} of these, which ours miss by {gap.mean():.3f} on average and {gap.max():.3f} at most; "
        f"the same encoders' scores moved by up to {drift.max():.3f} between kaiko's README and eva's leaderboard."
    )


def by_class(study: Settings, table: pd.DataFrame, task: str) -> str:
    """Caption of what is found of each class; ``table`` as `compare_tasks.by_class` returns it."""
    if table.empty:
        return f"**{task}, by class.** No encoder has been judged by it yet ({of_what(study)})."
    means = table.groupby("class", sort=False)["mean"].mean()
    spans = table.groupby("class", sort=False)["mean"].agg(["min", "max"])
    widest = (spans["max"] - spans["min"]).idxmax()
    n, n_drawn = table["encoder"].nunique(), len(few(study, table))
    drawn = f" Drawn are {n_drawn} of {n} encoders; the numbers are of all." if n_drawn < n else ""
    return (
        f"**{task}, by class.** What each encoder finds of each class, mean and SD over runs ({of_what(study)}). Over encoders "
        f"{means.idxmax()} is found best ({means.max():.2f}) and {means.idxmin()} least ({means.min():.2f}); encoders "
        f"differ most on {widest}, from {spans.loc[widest, 'min']:.2f} to {spans.loc[widest, 'max']:.2f}.{drawn}"
    )


def segmentations(study: Settings, shown: Shown | None) -> str:
    """Caption of Fig. 3; ``shown`` as `compare_masks.shown` returns it."""
    if shown is None:
        return f"**Segmentations.** A task of classification has no masks to lay over its patches ({of_what(study)})."
    dice = shown.table.groupby("encoder", sort=False)["dice"].mean()
    values = listed([f"{encoder} {value:.2f}" for encoder, value in dice.items()])
    return (
        f"**Segmentations (kaiko 2024, Fig. 3).** Tested patches of {shown.task}, drawn at random among those with nuclei "
        "and the same for every encoder; their true masks, and over the patches what the first run's decoder on an encoder's "
        f"frozen features made of them ({of_what(study)}). Encoders, at most {MAX_SHOWN}, in this order: the best, one "
        "pretrained here, the same network untrained, the worst. "
        f"Mean Dice of these {len(shown.images)} patches: {values}; so few are no measurement, the table is."
    )
