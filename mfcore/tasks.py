"""Downstream tasks by which encoders are judged, as kaiko-ai/eva has them: one way in, whatever form a set is published in.

Data lie in ``data_folder/tasks/<name>``, as their authors pack them; `prepare` makes the synthetic stand-ins, unpacks what is
compressed, and says of the others what is missing and where to get it. Nothing is downloaded: some need a signed agreement.
"""

from pathlib import Path

from mfcore import tasks_synthetic
from mfcore.config import Study
from mfcore.config_pretraining import TASKS
from mfcore.tasks_schema import COLUMNS, IGNORED, SPLITS, TaskData, TaskError, TaskWarning

__all__ = ["COLUMNS", "IGNORED", "SPLITS", "TaskData", "TaskError", "TaskWarning", "folder_of", "load", "prepare"]

SHARED = {"pcam_10shot": "pcam"}  # the same data; the few shots are drawn by whoever trains on them


def folder_of(name: str, data_folder: str | Path) -> Path:
    """Where the data of the task ``name`` lie."""
    return Path(data_folder) / "tasks" / SHARED.get(name, name)


def prepare(study: Study, name: str, data_folder: str | Path) -> Path:
    """Bring the task's data in order and return their folder: make a stand-in, check a real set.

    Raises TaskError where they aren't there as published, with what is missing and where to get it, and ConfigError for a
    task that isn't the study's.
    """
    study.task(name)
    folder = folder_of(name, data_folder)
    if name in tasks_synthetic.N_SLIDES:
        return tasks_synthetic.make(name, folder)
    load(name, folder)
    return folder


def load(name: str, folder: str | Path) -> TaskData:
    """The task's data in ``folder``; images are read when asked for.

    Raises TaskError where they aren't there as published, with what is missing and where to get it.
    """
    if name not in TASKS:
        raise TaskError(f"{name!r} is no task; there are {list(TASKS)}")
    if name in tasks_synthetic.N_SLIDES:
        return tasks_synthetic.load(name, Path(folder))
    raise TaskError(f"{name}: no loader")
