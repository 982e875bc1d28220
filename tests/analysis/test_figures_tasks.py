"""Downstream tasks' figures and captions: drawn with few and many, saying what the tables say."""

import dataclasses

import made_tasks
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from tiny_encoders import tiny_card, use

from mfcore import store
from mfcore.analysis import captions_tasks, compare_masks, compare_tasks, figures, figures_tasks
from mfcore.measures import masks
from mfcore.study import tasks as study_tasks
from mfcore.study.config import OwnEncoder, Pretraining, TaskOptions

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
            row |= {"metric": compare_tasks.METRICS[kind], "low": mean - 0.05, "high": mean + 0.05, "runs_low": mean - 0.01}
            row |= {"runs_high": mean + 0.01, "n_runs": 5, "n_items": 96, "n_clusters": 6, "published": np.nan}
            found.append(row | {"published_by": "", "difference": np.nan})
    return pd.DataFrame(found)[compare_tasks.COLUMNS]


def texts(figure) -> str:
    figure.canvas.draw()
    return " | ".join(text.get_text() for text in figure.findobj(Text))


def test_dots_show_every_task_and_encoder_but_no_snapshot(tmp_path):
    table = pd.concat([rows(), rows("synthetic_nuclei", "segmentation", encoders=("tiny",))], ignore_index=True)
    figure = figures_tasks.scores(STUDY, table)
    shown = texts(figure)
    for said in (
        "synthetic data",
        "synthetic_tissue",
        "Dice without background",
        "balanced accuracy",
        "home",
        "other",
        "96 items",
    ):
        assert said in shown
    assert "home@20" not in shown and "published" not in shown
    paths = figures.save(figure, table, tmp_path, "one")
    again = figures.save(figures_tasks.scores(STUDY, table), table, tmp_path, "two")
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]


def test_one_run_is_called_one():
    assert ": 96 items, 1 run |" in texts(figures_tasks.scores(STUDY, rows().assign(n_runs=1)))


def test_published_scores_are_open_diamonds():
    table = rows()
    table.loc[table["encoder"] == "tiny", ["published", "published_by", "difference"]] = [0.6, "eva, a board", -0.1]
    figure = figures_tasks.scores(STUDY, table)
    open_ones = [line for line in figure.axes[0].lines if line.get_marker() == "D" and line.get_markerfacecolor() == "none"]
    assert [line.get_xdata()[0] for line in open_ones] == [0.6] and "published" in texts(figure)
    said = captions_tasks.scores(STUDY, table)
    assert "published by eva (second-hand) for 1 of these, which ours miss by 0.100" in said
    assert "the same encoders' scores moved by up to 0.032 between kaiko's README and eva's leaderboard" in said


def test_the_caption_says_who_is_best_and_what_the_interval_holds():
    said = captions_tasks.scores(STUDY, rows())
    assert "of 3 encoders home is highest with 0.800 ± 0.020, 95 % [0.75, 0.85], tiny lowest with 0.500 ± 0.020" in said
    assert (
        "bootstrap of slides or patients where the set names them, else of items, which in a simulation, over 5 slides" in said
        and "simulation" not in captions_tasks.scores(STUDY, rows().assign(n_clusters=50))
    )
    assert "96 items of 6 slides or patients" in said and "synthetic data" in said
    assert "heads of 100 steps; eva's have 12,500" in said and "seed alone" in said and "home@20" not in said
    on_val = captions_tasks.scores(STUDY, rows("bach", splits=("val",)))
    assert "which flatters all" in on_val and "eva's have" not in on_val
    alike = captions_tasks.scores(STUDY, rows().assign(mean=0.25))
    assert "and none is lower" in alike and "lowest" not in alike
    assert "No encoder has been judged" in captions_tasks.scores(STUDY, rows()[:0])


def test_the_protocol_stands_beside_evas():
    table = captions_tasks.protocol(STUDY, "synthetic_nuclei").set_index("setting")
    assert table.loc["steps, at most"].tolist() == ["4", "2000"] and table.loc["runs"].tolist() == ["1", "5"]
    assert table.loc["side of a patch, px"].tolist() == ["16", "the encoder's"]
    for n_runs, here in ((None, "50"), (7, "7")):
        few = made_tasks.study(TaskOptions("pcam_10shot", n_runs=n_runs))
        assert captions_tasks.protocol(few, "pcam_10shot").set_index("setting").loc["runs"].tolist() == [here, "50"]


def test_nothing_judged_is_said():
    assert "no encoder has been judged" in texts(figures_tasks.scores(STUDY, rows()[:0]))
    assert "no encoder has been judged" in texts(figures_tasks.by_class(STUDY, pd.DataFrame(columns=["encoder"]), "bach"))
    assert "has no masks" in texts(figures_tasks.segmentations(STUDY, None))
    assert "no masks" in captions_tasks.segmentations(STUDY, None) and compare_masks.dice_of(None).empty


def test_classes_are_found_or_not():
    table = pd.DataFrame(
        [("tiny", "stroma", 0.9, 0.01, 20), ("tiny", "tumour", 0.5, 0.02, 20), ("other", "tumour", 0.7, np.nan, 20)],
        columns=["encoder", "class", "mean", "sd", "n"],
    )
    shown = texts(figures_tasks.by_class(STUDY, table, "synthetic_tissue"))
    assert "share found" in shown and "n = 20" in shown and "Dice" in texts(figures_tasks.by_class(STUDY, table, "consep"))
    said = captions_tasks.by_class(STUDY, table, "synthetic_tissue")
    assert "stroma is found best (0.90) and tumour least (0.60); encoders differ most on tumour, from 0.50 to 0.70" in said


def test_of_many_encoders_the_classes_show_the_study_s_own_list():
    """Twelve encoders by nine classes can't be read; the table beside has them all."""
    names = ["tiny", "other", *(f"home{i}" for i in range(8))]
    table = pd.DataFrame([(name, "tumour", 0.5 + i / 50, 0.01, 20) for i, name in enumerate(names)])
    table.columns = ["encoder", "class", "mean", "sd", "n"]
    shown = texts(figures_tasks.by_class(STUDY, table, "synthetic_tissue"))
    assert "tiny" in shown and "other" in shown and "home1" not in shown
    assert "Drawn are 2 of 10 encoders" in captions_tasks.by_class(STUDY, table, "synthetic_tissue")
    nobody = table[2:].reset_index(drop=True)
    assert "home5" in (shown := texts(figures_tasks.by_class(STUDY, nobody, "bach"))) and "home6" not in shown
    assert "Drawn are" not in captions_tasks.by_class(STUDY, table[:6], "synthetic_tissue")


def made_shown(n=2) -> compare_masks.Shown:
    data = made_tasks.nuclei()
    true = np.stack(data.masks[:n])
    true[0, 0] = masks.IGNORED
    predicted = {"tiny": np.where(true == masks.IGNORED, 0, true), "other": np.zeros_like(true)}
    names = np.array([f"item{i}" for i in range(n)])
    table = pd.concat(
        [compare_masks._dice(names, true, mask, data.classes).assign(encoder=name) for name, mask in predicted.items()]
    )
    return compare_masks.Shown("synthetic_nuclei", data.classes, np.stack(data.pixels[:n]), true, predicted, table)


def test_segmentations_lie_over_their_patches_in_colours_that_differ_in_grey():
    figure = figures_tasks.segmentations(STUDY, made_shown())
    assert [len(axis.images) for axis in figure.axes[:4]] == [1, 1, 2, 2], "below each prediction is its patch"
    shown = texts(figure)
    for said in ("patch", "true mask", "tiny", "other", "dark", "red", "not judged", "true edge", "Dice 1.00", "Dice 0.00"):
        assert said in shown
    assert len(figure.axes) == 8
    grey = [np.dot([int(c[i : i + 2], 16) for i in (1, 3, 5)], [0.299, 0.587, 0.114]) for c in figures_tasks.OF_CLASSES]
    assert min(np.diff(sorted(grey[:4]))) > 25, "four classes differ without colour"
    said = captions_tasks.segmentations(STUDY, made_shown())
    assert "Mean Dice of these 2 patches: tiny 1.00 and other 0.00" in said
    assert "Encoders, at most 3, in this order: the best, one pretrained here, the same network untrained, the worst." in said


def test_the_home_made_encoder_and_its_control_are_among_those_shown():
    """Which the best and the worst might crowd out: what pretraining is worth is seen beside the same network untrained."""
    mine = (Pretraining("mini"), Pretraining("home"))
    control = OwnEncoder("untrained", weights="random", architecture=mine[0].architecture)
    study = dataclasses.replace(STUDY, encoders=("tiny", "home", "untrained"), own_encoders=(control,), pretraining=mine)
    assert compare_masks.chosen(study, ["mini", "home", "untrained", "tiny"]) == ["mini", "home", "untrained"]
    assert compare_masks.chosen(study, ["home", "untrained", "tiny", "mini"]) == ["home", "untrained", "mini"]
    assert compare_masks.chosen(study, ["tiny", "mini", "other"]) == ["tiny", "mini", "other"]
    assert compare_masks.chosen(study, ["tiny"]) == ["tiny"]


def test_the_masks_shown_are_those_that_runs_kept(monkeypatch, tmp_path):
    use(monkeypatch, tiny_card())
    use(monkeypatch, tiny_card(name="other", mean=(0.2, 0.2, 0.2)))
    made_tasks.use(monkeypatch, made_tasks.nuclei())
    study = dataclasses.replace(STUDY, tasks=STUDY.tasks[1:2], pretraining=())
    with pytest.raises(store.StoreError, match="no encoder has been judged by 'synthetic_nuclei' yet"):
        compare_masks.shown(study, tmp_path, "synthetic_nuclei")
    for encoder in study.encoders:
        study_tasks.judge(study, "synthetic_nuclei", encoder, tmp_path, tmp_path)
    shown = compare_masks.shown(study, tmp_path, "synthetic_nuclei")
    assert set(shown.predicted) == {"tiny", "other"} and shown.classes == ("background", "dark", "red")
    run = compare_tasks.runs(study, tmp_path)["synthetic_nuclei", "other"]
    dice = pd.read_parquet(run.path("dice.parquet")).set_index(["item_id", "class"])["dice"]
    mine = shown.table[shown.table["encoder"] == "other"].set_index(["item_id", "class"])["dice"]
    assert mine.to_numpy() == pytest.approx(dice.loc[mine.index].to_numpy(), nan_ok=True)
    table = compare_tasks.by_class(study, tmp_path, "synthetic_nuclei")
    assert table[["encoder", "class"]].values.tolist() == [[e, c] for e in ("tiny", "other") for c in ("dark", "red")]
    of_test = pd.read_parquet(run.path("dice.parquet")).query("split == 'test' and `class` == 'red'")["dice"]
    assert table["mean"][3] == pytest.approx(of_test.mean())
    assert figures_tasks.by_class(study, table, "synthetic_nuclei") is not None
