"""Tasks whose labels are of slides: patches in tissue, from a table of slides; a signal is found where there is one."""

import dataclasses
import os
from functools import partial

import numpy as np
import pandas as pd
import pytest
from tiny_encoders import tiny_card

from mfcore import store
from mfcore.data.slides.slide import open_slide
from mfcore.data.slides.tissue import look_at
from mfcore.data.synthetic.slides import write_pyramid
from mfcore.measures import task_scores
from mfcore.store.files import Fingerprints
from mfcore.store.options import as_dict
from mfcore.study.config import TaskOptions
from mfcore.tasks import judge, protocol, slides, synthetic
from mfcore.tasks.task import COLUMNS, TaskError, TaskWarning, fingerprints

UM, SIDE, N = 0.5, 64, 5
SMALL = slides.Drawing(SIDE, UM, min_tissue=0.4, n_patches=N)
TASK = dataclasses.replace(slides.TP53, read=partial(slides.load, SMALL), counts={})
HEAD = "slide,patient,mutated,split\n"
GLASS = 245


def write_slide(path, seed: int, tissue: bool = True) -> None:
    """Glass, with stained noise in the right half."""
    pixels = np.full((400, 600, 3), GLASS, np.uint8)
    if tissue:
        pixels[:, 300:] = np.array([150, 80, 160]) + np.random.default_rng(seed).integers(-30, 30, (400, 300, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pyramid(path, pixels, UM)


@pytest.fixture
def folder(tmp_path):
    """Three slides of two patients, two of them deeper down, one by its name without an ending."""
    for seed, name in enumerate(("a.tiff", "deep/b.tiff", "deep/c.tiff")):
        write_slide(tmp_path / "slides" / name, seed)
    write(tmp_path, "c.tiff,p2,1,val\na,p1,0,train\nb.tiff,p2,1,val\n")
    return tmp_path


def write(folder, lines: str, head: str = HEAD) -> None:
    (folder / slides.TABLE).write_text(head + lines)


def test_each_slide_gives_patches_of_tissue_with_its_label_and_patient(folder, recwarn):
    data = TASK.load(folder)
    assert not recwarn.list and tuple(data.table) == COLUMNS and data.table["item_id"].is_unique
    by_file = data.table.groupby("file")[["label", "group", "split"]].agg(["first", "nunique"])
    assert by_file.loc["slides/deep/c.tiff"].tolist() == [1, 1, "p2", 1, "val", 1]
    assert by_file.loc["slides/a.tiff"].tolist() == [0, 1, "p1", 1, "train", 1]
    for i, row in data.table.iterrows():
        with open_slide(folder / row["file"]) as slide:
            expected = slide.read(row["x_px"], row["y_px"], SIDE, UM)
            assert look_at(slide).share(row["x_px"], row["y_px"], SIDE) >= 0.4
        np.testing.assert_array_equal(data.image(i), expected)
        assert (expected[..., 1] < 150).mean() > 0.3, "in the stained half"
    assert data.table["x_px"].nunique() > N, "each slide has its own places"


def test_places_are_drawn_once_and_a_slide_more_leaves_the_others_as_they_are(folder, monkeypatch):
    before = TASK.load(folder).table
    write_slide(folder / "slides" / "d.tiff", 9)
    write(folder, "d,p3,0,train\na,p1,0,train\n")
    after = TASK.load(folder).table
    of_a = [table[table["file"] == "slides/a.tiff"].reset_index(drop=True) for table in (before, after)]
    pd.testing.assert_frame_equal(*of_a)
    monkeypatch.setattr(slides, "open_slide", lambda path: pytest.fail("a slide was opened again"))
    pd.testing.assert_frame_equal(TASK.load(folder).table, after)


def test_what_was_drawn_is_no_input_and_of_a_large_slide_parts_are_read(folder):
    TASK.load(folder)
    slide = folder / "slides" / "large.svs"
    slide.write_bytes(b"")
    os.truncate(slide, 64 << 20)
    names = fingerprints(folder, Fingerprints())
    assert set(names) == {"slides.csv", *(f"slides/{name}" for name in ("a.tiff", "deep/b.tiff", "deep/c.tiff", "large.svs"))}
    assert names["slides/large.svs"] == Fingerprints().of(slide) != Fingerprints().of(slide, whole=True)


def test_a_slide_without_tissue_and_a_damaged_one_are_left_out_and_named(folder):
    write_slide(folder / "slides" / "glass.tiff", 0, tissue=False)
    (folder / "slides" / "torn.tiff").write_bytes(b"torn")
    write(folder, "glass,p1,0,train\na,p1,0,train\ntorn,p2,1,val\n")
    with pytest.warns(TaskWarning, match=r"2 slides give no patch: glass: .*no tissue.*; torn: "):
        assert set(TASK.load(folder).table["file"]) == {"slides/a.tiff"}
    write(folder, "glass,p1,0,train\n")
    with pytest.warns(TaskWarning), pytest.raises(TaskError, match=r"no slide gives a patch; glass: (.|\n)*GDC portal"):
        TASK.load(folder)


def test_a_wrong_table_is_refused_with_every_problem(folder):
    write(folder, "a,p1,wild,training\na,,1,val\nb,p2,0,val\nc,p2,1,val\n")
    with pytest.raises(TaskError) as refused:
        TASK.load(folder)
    for told in (
        "mutated 'wild' is none of ('0', '1')",
        "split 'training' is none of ('train', 'val', 'test')",
        "slide 'a' stands twice",
        "a line without a patient",
        "patient 'p2' is mutated and isn't",
        "kaczmarj/pancancer-tp53-mut.tcga",
    ):
        assert told in str(refused.value)
    write(folder, "a,p1,1,val\nnowhere,p2,0,train\n")
    with pytest.raises(TaskError, match="slides/nowhere: not there"):
        TASK.load(folder)
    write(folder, "", head="slide,mutated\n")
    with pytest.raises(TaskError, match=r"slides\.csv: no table with columns"):
        TASK.load(folder)
    write(folder, "")
    with pytest.raises(TaskError, match=r"slides\.csv: no line"):
        TASK.load(folder)


def test_a_patient_in_two_splits_is_noted(folder):
    write(folder, "a,p1,0,train\nb,p2,1,val\nc,p2,1,train\n")
    assert any("1 patients or slides are in several splits: p2" in note for note in TASK.load(folder).notes)


def test_a_slide_damaged_since_is_refused_by_name(folder):
    data = TASK.load(folder)
    (folder / data.table["file"].iloc[0]).write_bytes(b"torn")
    with pytest.raises(TaskError, match=r"c\.tiff: a patch can't be read"):
        data.image(0)


# ---- a stand-in with a signal ----

RANDOM_RESNET = {
    "architecture": "resnet10t", "arguments": {}, "n_prefix_tokens": 0, "readout": "pooled", "n_dims": 512,
    "n_parameters": 4_922_488, "resize_px": 96, "crop_px": 96,
}  # fmt: skip


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Judge a small random network by the stand-in: scores by patch and by patient, of true labels or of permuted ones."""
    folder, results = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("results")
    synthetic.make(40, synthetic.MUTATION, folder, synthetic.draw_slides, slides.TABLE)
    true, card = synthetic.MUTATION.load(folder), tiny_card(**RANDOM_RESNET)
    how = protocol.of(TaskOptions("synthetic_mutation", n_runs=2, n_steps=600, max_lr=0.01))

    def score(permutation: int) -> tuple[float, float]:
        data = permuted(true, permutation) if permutation else true
        config = {"card": card.identity(), "protocol": as_dict(how), "permutation": permutation}
        run = store.open_run(results, "judge", "synthetic_mutation.tiny", config, {"items": "the same"})
        judge.judge(data, card, how, run, seed=0)
        predictions = store.read_parquet(run.path("predictions.parquet"))
        tested = predictions[predictions["split"] == "test"]  # which chose no weights
        return task_scores.of_labels(tested).values.mean(), task_scores.of_groups(tested).values.mean()

    return true, score


def permuted(data, seed: int):
    """The same patches, with labels drawn anew among the patients of each split."""
    patients = data.table.drop_duplicates("group").set_index("group")
    rng = np.random.default_rng(seed)
    labels = patients.groupby("split")["label"].transform(rng.permutation)
    return dataclasses.replace(data, table=data.table.assign(label=data.table["group"].map(labels)))


def test_the_stand_in_is_a_task_of_slides_with_patients_in_one_split(judged):
    data, _ = judged
    assert data.notes == () and len(data) == 40 * synthetic.FROM_SLIDES.n_patches
    assert (data.table.groupby("group")["split"].nunique() == 1).all()
    assert (data.table.groupby("split")["label"].mean() == 0.5).all()


def test_a_signal_of_slides_is_found_by_patch_and_by_patient(judged):
    by_patch, by_patient = judged[1](0)
    assert by_patch > 0.6 and by_patient > 0.7 and by_patient > by_patch


def test_permuted_labels_give_chance(judged):
    """Over permutations, as patients are few; none of them is as good as the true labels."""
    _, score = judged
    by_chance = np.array([score(permutation) for permutation in range(1, 13)])  # (12, 2)
    assert np.abs(by_chance.mean(axis=0) - 0.5).max() < 0.1
    assert (by_chance.max(axis=0) < score(0)).all()
