"""Downstream tasks by which encoders are judged, as kaiko-ai/eva has them: one way in, whatever form a set is published in.

Data lie in ``data_folder/tasks/<name>``, as their authors pack them; `prepare` makes the synthetic stand-ins, unpacks what is
compressed, and says of the others what is missing and where to get it. Nothing is downloaded: some need a signed agreement.
"""

from functools import partial
from pathlib import Path

import pandas as pd

from mfcore import store
from mfcore.study.config import Study
from mfcore.study.config_pretraining import TASKS
from mfcore.tasks import (
    classification as tasks_classification,
    segmentation as tasks_segmentation,
    synthetic as tasks_synthetic,
)
from mfcore.tasks.schema import COLUMNS, IGNORED, SPLITS, TaskData, TaskError, TaskWarning

__all__ = [
    "COLUMNS",
    "IGNORED",
    "SPLITS",
    "TaskData",
    "TaskError",
    "TaskWarning",
    "absent",
    "drift",
    "folder_of",
    "load",
    "prepare",
    "published",
]

PUBLISHED = Path(__file__).resolve().parents[2] / "data"
PUBLISHED_FILES = {"kaiko": "published_kaiko.csv", "eva": "published_eva.csv"}
LOADERS = {
    "bach": tasks_classification.load_bach,
    "crc": tasks_classification.load_crc,
    "mhist": tasks_classification.load_mhist,
    "pcam": tasks_classification.load_pcam,
    "pcam_10shot": partial(tasks_classification.load_pcam, name="pcam_10shot"),
    "consep": tasks_segmentation.load_consep,
    "monusac": tasks_segmentation.load_monusac,
}
SHARED = {"pcam_10shot": "pcam"}  # the same data; the few shots are drawn by whoever trains on them


def folder_of(name: str, data_folder: str | Path) -> Path:
    """Where the data of the task ``name`` lie."""
    return Path(data_folder) / "tasks" / SHARED.get(name, name)


def state_name(name: str) -> str:
    """What the file is called that keeps the state of the task's data among a study's results."""
    return f"task_{SHARED.get(name, name)}"


def prepare(study: Study, name: str, data_folder: str | Path) -> Path:
    """Bring the task's data in order and return their folder: make a stand-in, check a real set.

    Raises TaskError where they aren't there as published, with what is missing and where to get it, and ConfigError for a
    task that isn't the study's.
    """
    study.task(name)
    folder = folder_of(name, data_folder)
    if name in tasks_synthetic.N_SLIDES:
        with store.in_turn(folder.parent, name):
            return tasks_synthetic.make(name, folder)
    if name in ("pcam", "pcam_10shot"):
        tasks_classification.unpack_pcam(folder)
    load(name, folder)
    return folder


def absent(study: Study, data_folder: str | Path) -> dict[str, Path]:
    """The study's tasks for which nothing has been laid in yet, and where their data go; not whether what is there is whole."""
    folders = {task.name: folder_of(task.name, data_folder) for task in study.tasks if task.name in LOADERS}
    return {name: folder for name, folder in folders.items() if not folder.is_dir() or not any(folder.iterdir())}


def load(name: str, folder: str | Path) -> TaskData:
    """The task's data in ``folder``; images are read when asked for.

    Raises TaskError where they aren't there as published, with what is missing and where to get it.
    """
    if name not in TASKS:
        raise TaskError(f"{name!r} is no task; there are {list(TASKS)}")
    if name in tasks_synthetic.N_SLIDES:
        return tasks_synthetic.load(name, Path(folder))
    return LOADERS[name](Path(folder))


def published() -> pd.DataFrame:
    """Published scores: ``source, arm, encoder, task, split, metric, value, where``; encoder is a card's name, or "".

    source "kaiko": the README of the models of kaiko.ai 2024 (arXiv 2404.15217); "eva": eva's leaderboard, whose protocol
    changed since, so that the two differ for the same model (see `drift`). Split as in `TaskData.table`. Second-hand: read in
    notes, not in those pages.
    """
    tables = [pd.read_csv(PUBLISHED / file, keep_default_na=False).assign(source=key) for key, file in PUBLISHED_FILES.items()]
    table = pd.concat(tables, ignore_index=True)
    return table[["source", *(name for name in table if name != "source")]]


def drift() -> pd.DataFrame:
    """What eva's leaderboard says more than kaiko's README of the same encoder: ``encoder, task, split, kaiko, eva, drift``."""
    table = published()
    keys = ["encoder", "task", "split"]
    named = table[table["encoder"] != ""]
    first, second = (named[named["source"] == key].set_index(keys)["value"].rename(key) for key in PUBLISHED_FILES)
    both = pd.concat([first, second], axis=1, join="inner").reset_index()
    return both.assign(drift=both["eva"] - both["kaiko"])
