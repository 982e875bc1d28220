"""The downstream tasks by which encoders are judged, as in kaiko-ai/eva: their facts, folders, data
and published scores.

Data lie in ``data_folder/tasks/<name>``, as their authors pack them; `load` makes the synthetic
ones, unpacks what is compressed, and says of the others what is missing and where to get it.
Nothing is downloaded: some need a signed agreement.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from mfcore.tasks import classification, segmentation, slides, synthetic
from mfcore.tasks.task import Task, TaskData, TaskError

TASKS: Mapping[str, Task] = {
    task.name: task
    for module in (classification, segmentation, slides, synthetic)
    for task in module.TASKS
}
PUBLISHED = Path(__file__).resolve().parents[2] / "data"
SOURCES = ("kaiko", "eva")


def get(name: str) -> Task:
    """The task of that name; raises TaskError for a name that there isn't."""
    if name not in TASKS:
        raise TaskError(f"{name!r} is no task; there are {list(TASKS)}")
    return TASKS[name]


def folder_of(name: str, data_folder: str | Path) -> Path:
    """Where the data of the task ``name`` lie."""
    return Path(data_folder) / "tasks" / (get(name).folder or name)


def load(name: str, data_folder: str | Path) -> TaskData:
    """The task's data, unpacked or drawn first where needed; images are read when asked for.

    Raises TaskError where they aren't there as published, with what is missing and where to get it.
    """
    task, folder = get(name), folder_of(name, data_folder)
    if task.prepare is not None:
        task.prepare(task, folder)
    return task.load(folder)


def absent(names: Iterable[str], data_folder: str | Path) -> dict[str, Path]:
    """Tasks whose folder is empty or missing, with that folder; the others may still lack files."""
    folders = {name: folder_of(name, data_folder) for name in names if get(name).where}
    return {name: folder for name, folder in folders.items() if not any(folder.glob("*"))}


def published() -> pd.DataFrame:
    """Published scores: ``source, arm, encoder, task, split, metric, value, where``; encoder is a
    card's name, or "".

    source "kaiko": the README of the models of kaiko.ai 2024 (arXiv 2404.15217); "eva": eva's
    leaderboard, whose protocol changed since: the two differ for the same model. Split as in
    `TaskData.table`. Second-hand: read in notes, not in those pages.
    """
    files = {source: PUBLISHED / f"published_{source}.csv" for source in SOURCES}
    tables = {source: pd.read_csv(file, keep_default_na=False) for source, file in files.items()}
    return pd.concat(tables, names=["source"]).reset_index("source").reset_index(drop=True)
