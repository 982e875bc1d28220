"""The registry of downstream tasks: each task's facts in one object, its way in, and the published scores."""

import dataclasses
from functools import partial

import pandas as pd
import pytest

from mfcore import encoders
from mfcore.tasks import registry, synthetic
from mfcore.tasks.task import CLASSIFICATION, SPLITS, Task, TaskError


def test_every_task_has_a_way_in(tmp_path):
    for task in registry.TASKS.values():
        if task.where:
            with pytest.raises(TaskError, match=f"not {task.title} as published:(.|\\n)*Where to get it"):
                registry.load(task.name, tmp_path)
    with pytest.raises(TaskError, match="is no task; there are"):
        registry.load("camelyon", tmp_path)


def test_a_task_is_one_entry(monkeypatch, tmp_path):
    """Whoever adds a task adds an object: its folder, its notes on counts and where to get it follow."""

    def read(task, folder):
        task.refuse(folder, [] if folder.is_dir() else ["no folder"])
        return pd.DataFrame({"split": ["train", "val"], "group": ["p1", "p1"]})

    task = Task("new", "A New Set", CLASSIFICATION, ("a", "b"), read, where="a place", counts={"train": 1, "val": 2})
    monkeypatch.setitem(registry.TASKS, "new", task)
    assert registry.absent(["new"], tmp_path) == {"new": tmp_path / "tasks" / "new"}
    with pytest.raises(TaskError, match="not A New Set as published:\n  no folder\nWhere to get it: a place"):
        registry.load("new", tmp_path)
    (tmp_path / "tasks" / "new").mkdir(parents=True)
    with pytest.warns(match="val: 1 there, 2 published"):
        data = registry.load("new", tmp_path)
    shared = "1 patients or slides are in several splits: p1"
    assert data.task is task and data.notes == ("val: 1 there, 2 published", shared)
    assert data.selected_on == "val, which is also the split that is reported"


def test_what_nobody_has_laid_in_yet_is_known_without_reading(tmp_path):
    """Nothing for one, an empty folder for another; stand-ins are made, and a file says no more than that somebody began."""
    wanted = ["bach", "mhist", "crc", "pcam_10shot", "synthetic_tissue"]
    (tmp_path / "tasks" / "mhist").mkdir(parents=True)
    (tmp_path / "tasks" / "pcam").mkdir()
    (tmp_path / "tasks" / "pcam" / "any.h5").write_bytes(b"")
    assert registry.absent(wanted, tmp_path) == {name: tmp_path / "tasks" / name for name in ("bach", "mhist", "crc")}


def test_a_stand_in_is_made_where_it_is_read(tmp_path, monkeypatch):
    task = dataclasses.replace(synthetic.NUCLEI, prepare=partial(synthetic.make, 3, draw=synthetic.draw_patches))
    monkeypatch.setitem(registry.TASKS, "synthetic_nuclei", task)
    assert len(registry.load("synthetic_nuclei", tmp_path)) == 12
    assert (registry.folder_of("synthetic_nuclei", tmp_path) / "made.json").is_file()


def test_published_scores_are_as_noted_and_their_encoders_have_cards():
    table = registry.published()
    assert table["value"].between(0.5, 1).all() and not table.duplicated(["source", "arm", "task", "split"]).any()
    assert set(table["task"]) <= set(registry.TASKS) and set(table["split"]) <= set(SPLITS)
    assert set(table["encoder"]) - {""} <= set(encoders.names())
    metrics = {True: "dice", False: "balanced_accuracy"}
    assert (table["metric"] == table["task"].map(lambda name: metrics[registry.get(name).is_segmentation])).all()

    def value(source, arm, task, split="val"):
        (found,) = table.query("source == @source and arm == @arm and task == @task and split == @split")["value"]
        return found

    assert value("kaiko", "ViT-S/16", "pcam", "test") == 0.893
    assert value("kaiko", "ViT-L/14", "bach") == 0.870
    assert value("eva", "kaiko B/8", "consep") == 0.646
    assert value("eva", "H-optimus-0", "monusac") == 0.685
    assert value("eva", "Lunit S/16", "mhist") == 0.781
    assert value("eva", "kaiko B/8", "pcam_10shot", "test") == 0.799
