"""The downstream tasks by which encoders are judged, as in kaiko-ai/eva: their facts, folders, data and published scores.

Data lie in ``data_folder/tasks/<name>``, as their authors pack them; `prepare` makes the synthetic ones, unpacks what is
compressed, and says of the others what is missing and where to get it. Nothing is downloaded: some need a signed agreement.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from mfcore.tasks import classification, segmentation, synthetic
from mfcore.tasks.task import Task, TaskData, TaskError

TASKS: Mapping[str, Task] = {task.name: task for module in (classification, segmentation, synthetic) for task in module.TASKS}
PUBLISHED = Path(__file__).resolve().parents[2] / "data"
PUBLISHED_FILES = {"kaiko": "published_kaiko.csv", "eva": "published_eva.csv"}


def get(name: str) -> Task:
    """The task of that name; raises TaskError for a name that there isn't."""
    if name not in TASKS:
        raise TaskError(f"{name!r} is no task; there are {list(TASKS)}")
    return TASKS[name]


def folder_of(name: str, data_folder: str | Path) -> Path:
    """Where the data of the task ``name`` lie."""
    return Path(data_folder) / "tasks" / (get(name).folder or name)


def prepare(name: str, data_folder: str | Path) -> Path:
    """Unpack or draw the task's data where that is needed, and return their folder.

    Raises TaskError where the data aren't there as published, with what is missing and where to get it.
    """
    task, folder = get(name), folder_of(name, data_folder)
    if task.prepare is not None:
        task.prepare(task, folder)
    load(name, folder)
    return folder


def absent(names: Iterable[str], data_folder: str | Path) -> dict[str, Path]:
    """Those of some tasks whose folder is empty or missing, and that folder; whether the others are whole isn't checked."""
    folders = {name: folder_of(name, data_folder) for name in names if get(name).where}
    return {name: folder for name, folder in folders.items() if not folder.is_dir() or not any(folder.iterdir())}


def load(name: str, folder: str | Path) -> TaskData:
    """The task's data in ``folder``; images are read when asked for.

    Raises TaskError where they aren't there as published, with what is missing and where to get it.
    """
    task = get(name)
    return task.read(task, Path(folder))


def published() -> pd.DataFrame:
    """Published scores: ``source, arm, encoder, task, split, metric, value, where``; encoder is a card's name, or "".

    source "kaiko": the README of the models of kaiko.ai 2024 (arXiv 2404.15217); "eva": eva's leaderboard, whose protocol
    changed since: the two differ for the same model. Split as in `TaskData.table`. Second-hand: read in notes, not in those
    pages.
    """
    tables = [pd.read_csv(PUBLISHED / file, keep_default_na=False).assign(source=key) for key, file in PUBLISHED_FILES.items()]
    table = pd.concat(tables, ignore_index=True)
    return table[["source", *(name for name in table if name != "source")]]
