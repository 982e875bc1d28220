"""Downstream tasks' exhibits: drawn with few and many, saying what the tables say."""

import dataclasses

import made_tasks
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from tiny_encoders import tiny_card, use

from mfcore import store
from mfcore.analysis.encoders import segmentations, tasks
from mfcore.measures import masks
from mfcore.study import tasks as study_tasks
from mfcore.study.config import OwnEncoder, Pretraining, TaskOptions
from mfcore.study.study import Study
from mfcore.tasks import registry

STUDY = made_tasks.study(
    TaskOptions("synthetic_tissue", n_steps=100),
    TaskOptions("synthetic_nuclei", n_runs=1, n_steps=4, batch_size=8, size_px=16),
    TaskOptions("bach"),
    encoders=("tiny", "other"),
    pretraining=(Pretraining("home", n_steps=40, n_snapshots=2),),
)


def rows(task="synthetic_tissue", kind="classification", splits=("val", "test"), encoders=("tiny", "other", "home@20", "home")):
    found = []
    for i, encoder in enumerate(encoders):
        for split in splits:
            mean = 0.5 + 0.1 * i
            row = {"task": task, "kind": kind, "encoder": encoder, "step": np.nan, "split": split, "mean": mean, "sd": 0.02}
            row |= {"metric": tasks.METRICS[kind], "low": mean - 0.05, "high": mean + 0.05}
            row |= {"n_runs": 5, "n_items": 96, "n_clusters": 6, "published": np.nan}
            found.append(row | {"published_by": "", "difference": np.nan})
    return pd.DataFrame(found)[tasks.COLUMNS]


def texts(figure) -> str:
    figure.draw_without_rendering()
    return " | ".join(text.get_text() for text in figure.findobj(Text))


@pytest.fixture
def scored(monkeypatch, tmp_path):
    """Let a study's scores be those of a made-up table; returns the exhibit of one task's scores."""

    def exhibit(table, task="synthetic_tissue"):
        monkeypatch.setattr(tasks, "scores_table", lambda study: table)
        return tasks.scores(Study(STUDY, tmp_path), task)

    return exhibit


def test_dots_show_every_encoder_of_a_task_but_no_snapshot(scored, tmp_path):
    table = pd.concat([rows(), rows("synthetic_nuclei", "segmentation", encoders=("tiny",))], ignore_index=True)
    exhibit = scored(table)
    shown = texts(exhibit.figure)
    for said in ("synthetic data", "synthetic_tissue", "balanced accuracy", "home", "other", "96 items"):
        assert said in shown
    assert "home@20" not in shown and "published" not in shown
    assert set(exhibit.table["task"]) == {"synthetic_tissue"} and "home@20" in set(exhibit.table["encoder"])
    assert "Dice without background" in texts(scored(table, "synthetic_nuclei").figure)
    for name in ("one", "two"):
        scored(table).save(tmp_path / name)
    files = sorted((tmp_path / "one").iterdir())
    assert len(files) == 4 and all(file.read_bytes() == (tmp_path / "two" / file.name).read_bytes() for file in files)


def test_published_scores_are_open_diamonds(scored):
    table = rows()
    table.loc[table["encoder"] == "tiny", ["published", "published_by", "difference"]] = [0.6, "eva, a board", -0.1]
    figure = scored(table).figure
    (marks,) = [line for line in figure.axes[0].lines if line.get_marker() == "D"]
    assert marks.get_markerfacecolor() == "none" and np.nanmax(marks.get_xdata()) == 0.6 and "published" in texts(figure)


def test_the_caption_says_who_is_best_and_what_the_bars_are(scored):
    caption = scored(rows()).caption
    assert "Of 3 encoders home is highest: 0.800" in caption and "synthetic data" in caption and "seed alone" in caption
    assert "95 % bootstrap over 6 slides, patients or items, which in a simulation, over 5 slides" in caption
    assert "simulation" not in scored(rows().assign(n_clusters=50)).caption
    assert "also chose the weights and flatters all" in scored(rows("bach", splits=("val",)), "bach").caption


def test_what_a_protocol_leaves_open_stands_below_it(tmp_path):
    study = made_tasks.study(TaskOptions("food101"))
    table = tasks.protocol(Study(study, tmp_path), "food101").table.set_index("setting")
    assert list(table.loc["unsettled", "here"]) == list(registry.get("food101").unsettled)


def test_the_protocol_stands_beside_evas(tmp_path):
    table = tasks.protocol(Study(STUDY, tmp_path), "synthetic_nuclei").table.set_index("setting")
    assert table.loc["n_steps"].tolist() == [4, 2000] and table.loc["n_runs"].tolist() == [1, 5]
    assert table.loc["size_px"].tolist() == [16, None]
    for n_runs, here in ((None, 50), (7, 7)):
        few = Study(made_tasks.study(TaskOptions("pcam_10shot", n_runs=n_runs)), tmp_path)
        assert tasks.protocol(few, "pcam_10shot").table.set_index("setting").loc["n_runs"].tolist() == [here, 50]


def test_patients_stand_beside_their_patches_where_labels_are_theirs(tmp_path, monkeypatch):
    study = Study(made_tasks.study(TaskOptions("synthetic_mutation"), encoders=("tiny", "other")), tmp_path)
    assert "No encoder has been judged" in tasks.by_patient(study, "synthetic_mutation").caption
    runs = {}
    for encoder, p in (("tiny", 0.9), ("tiny@5", 0.9), ("other", 0.2)):
        run = runs["synthetic_mutation", encoder] = store.open_run(tmp_path, "judge", store.file_name(encoder), {}, {})
        rows = [(split, f"p{i}", i % 2, f"{split}{i}.{j}") for split in ("val", "test") for i in range(6) for j in (0, 1)]
        table = pd.DataFrame(rows, columns=["split", "group", "label", "item_id"])
        right = np.where(table["item_id"].str.endswith(".0") & (table["split"] == "test"), 0.4, p)
        score_1 = np.where(table["label"] == 1, right, 1 - right)
        store.write_parquet(run.path("predictions.parquet"), table.assign(run=0, score_0=1 - score_1, score_1=score_1))
    monkeypatch.setattr(tasks, "runs", lambda study: runs)
    table = tasks.by_patient(study, "synthetic_mutation").table.set_index(["encoder", "by"])
    assert table["mean"].to_dict() == {
        ("tiny", "patch"): 0.5, ("tiny", "patient"): 1.0, ("other", "patch"): 0.0, ("other", "patient"): 0.0,
    }  # fmt: skip
    assert table["n"].tolist() == [12, 6, 12, 6]
    other = tasks.by_patient(study, "synthetic_tissue")
    assert "are of items, not of patients" in other.caption and other.table.empty


def test_nothing_judged_is_said(scored, tmp_path):
    study = Study(STUDY, tmp_path)
    for exhibit in (scored(rows()[:0]), tasks.by_class(study, "bach")):
        assert exhibit.figure is None and "No encoder has been judged" in exhibit.caption
    masks_of_patches = segmentations.over_patches(study, "synthetic_tissue")
    assert "no masks" in masks_of_patches.caption and masks_of_patches.table.empty


@pytest.fixture
def found(monkeypatch, tmp_path):
    """Let runs find of each class what a list of ``encoder, class, value`` says; returns the exhibit."""

    def exhibit(values, task="synthetic_tissue"):
        made = [(encoder, of, run, value + run / 50, 20) for encoder, of, value in values for run in (0, 1)]
        table = pd.DataFrame(made, columns=["encoder", "class", "run", "value", "n"])
        monkeypatch.setattr(tasks, "class_runs", lambda study, task: table)
        return tasks.by_class(Study(STUDY, tmp_path), task)

    return exhibit


def test_classes_are_found_or_not(found):
    values = [("tiny", "stroma", 0.9), ("tiny", "tumour", 0.5), ("other", "stroma", 0.9), ("other", "tumour", 0.7)]
    exhibit = found(values)
    assert exhibit.table.loc[0, ["mean", "sd", "n"]].tolist() == pytest.approx([0.91, 0.02 / np.sqrt(2), 20])
    shown = exhibit.readable.set_index("encoder")
    assert shown.loc["tiny"].tolist() == ["0.91\xa0±\xa00.01", "0.51\xa0±\xa00.01"] and len(shown) == 2
    assert "share of the items found" in exhibit.caption
    assert "Dice of the masks" in found(values, "consep").caption


def test_segmentations_lie_over_their_patches_in_colours_that_differ_in_grey():
    data = made_tasks.nuclei()
    true = np.stack(data.masks[:2])
    true[0, 0] = masks.IGNORED
    columns = {"true mask": true, "tiny": true, "other": np.zeros_like(true)}
    rows = [(f"item{i}", name, dice) for name, dice in (("tiny", 1.0), ("other", 0.0)) for i in range(2)]
    table = pd.DataFrame(rows, columns=["item_id", "encoder", "dice"])
    figure = segmentations.draw_masks(np.stack(data.pixels[:2]), columns, table, data.task.classes)
    plt.close(figure)
    assert len(figure.axes) == 8
    red = np.array([int(segmentations.OF_CLASSES[1][i : i + 2], 16) for i in (1, 3, 5)])
    for patch, over, shown in zip(figure.axes[:2], figure.axes[2:4], true, strict=True):
        grey = 128 + patch.images[0].get_array().mean(axis=2) / 2
        expected = np.where(shown[..., None] == 2, 0.25 * grey[..., None] + 0.75 * red, grey[..., None])
        unmarked = np.isin(shown, (0, 2))
        assert np.abs(np.asarray(over.images[0].get_array(), float) - expected)[unmarked].max() <= 1
    shown = texts(figure)
    for said in ("patch", "true mask", "tiny", "other", "dark", "red", "not judged", "Dice 1.00", "Dice 0.00"):
        assert said in shown
    grey = [np.dot([int(c[i : i + 2], 16) for i in (1, 3, 5)], [0.299, 0.587, 0.114]) for c in segmentations.OF_CLASSES]
    assert min(np.diff(sorted(grey[:4]))) > 25, "four classes differ without colour"


def test_the_home_made_encoder_and_its_control_are_among_those_shown():
    """Which the best and the worst might crowd out: what pretraining is worth is seen beside the same network untrained."""
    mine = (Pretraining("mini"), Pretraining("home"))
    control = OwnEncoder("untrained", weights="random", architecture=mine[0].architecture)
    study = dataclasses.replace(STUDY, encoders=("tiny", "home", "untrained"), own_encoders=(control,), pretraining=mine)
    assert segmentations.chosen(study, ["mini", "home", "untrained", "tiny"]) == ["mini", "home", "untrained"]
    assert segmentations.chosen(study, ["home", "untrained", "tiny", "mini"]) == ["home", "untrained", "mini"]
    assert segmentations.chosen(study, ["tiny", "mini", "other"]) == ["tiny", "mini", "other"]
    assert segmentations.chosen(study, ["tiny"]) == ["tiny"]


def test_the_masks_shown_are_those_that_runs_kept(monkeypatch, tmp_path):
    use(monkeypatch, tiny_card())
    use(monkeypatch, tiny_card(name="other", mean=(0.2, 0.2, 0.2)))
    made_tasks.use(monkeypatch, made_tasks.nuclei())
    study = dataclasses.replace(STUDY, tasks=STUDY.tasks[1:2], pretraining=())
    nobody = segmentations.over_patches(Study(study, tmp_path), "synthetic_nuclei")
    assert nobody.figure is None and "No encoder has been judged" in nobody.caption
    for encoder in study.encoders:
        study_tasks.judge(study, "synthetic_nuclei", encoder, tmp_path, tmp_path)
    opened = Study(study, tmp_path)
    exhibit = segmentations.over_patches(opened, "synthetic_nuclei")
    assert "the best, one pretrained here, the same network untrained" in exhibit.caption
    assert {"tiny", "other"} <= {text.get_text() for axis in exhibit.figure.axes for text in axis.texts}
    run = tasks.runs(opened)["synthetic_nuclei", "other"]
    with np.load(run.path("masks.npz")) as content:
        true, made = content["true"], content["predicted"]
    n_true, n_made, n_both = np.moveaxis(masks.overlaps(true, made, 3)[:, 1:], -1, 0).reshape(3, -1)
    mine = exhibit.table[exhibit.table["encoder"] == "other"]
    assert mine["class"].tolist() == ["dark", "red"] * len(true) and mine["n_px"].tolist() == n_true.tolist()
    assert mine["dice"].to_numpy() == pytest.approx(masks.dice(n_true, n_made, n_both), nan_ok=True)
    table = tasks.by_class(opened, "synthetic_nuclei").table
    assert table[["encoder", "class"]].values.tolist() == [[e, c] for e in ("tiny", "other") for c in ("dark", "red")]
    of_test = pd.read_parquet(run.path("dice.parquet")).query("split == 'test' and `class` == 'red'")["dice"]
    assert table["mean"][3] == pytest.approx(of_test.mean())
