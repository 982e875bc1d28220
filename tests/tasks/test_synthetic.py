"""The synthetic downstream tasks: whole, split by slide, the same from the same seed, and harder than their colours."""

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import balanced_accuracy_score

from mfcore.data.synthetic import cells, fields
from mfcore.data.synthetic.canvas import Canvas, noise
from mfcore.data.synthetic.slides import make_dataset
from mfcore.tasks import synthetic
from mfcore.tasks.task import COLUMNS, SPLITS, TaskError

N_SLIDES = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    return {task.name: make(N_SLIDES, task, folder / task.name) for task in (synthetic.TISSUE, synthetic.NUCLEI)}


def make(n_slides, task, folder):
    """The task's data, drawn in a folder."""
    synthetic.make(n_slides, task, folder, synthetic.draw_patches)
    return task.load(folder)


def test_synthetic_slides_can_be_made_beside_tasks_that_are_there(tmp_path):
    (tmp_path / "tasks" / "bach").mkdir(parents=True)
    make_dataset(tmp_path, seed=1, n_slides=1, n_annotations=0)
    assert (tmp_path / "made.json").is_file()


@pytest.mark.parametrize("name", ["synthetic_tissue", "synthetic_nuclei"])
def test_a_stand_in_is_split_by_slide_and_whole(made, name):
    data = made[name]
    assert tuple(data.table) == COLUMNS and data.table["item_id"].is_unique
    assert (data.table.groupby("group")["split"].nunique() == 1).all()
    assert set(data.table["split"]) == set(SPLITS) and data.selected_on == "val"
    for i in range(len(data)):
        row, image = data.table.iloc[i], data.image(i)
        assert image.shape == (row["height_px"], row["width_px"], 3) and image.dtype == np.uint8


def test_every_slide_has_each_tissue_equally_often(made):
    data = made["synthetic_tissue"]
    counts = data.table.groupby(["group", "label"]).size()
    assert len(data.task.classes) == 4 and len(counts) == 4 * N_SLIDES and set(counts) == {synthetic.PER_FIELD**2}


def test_masks_name_every_class_and_lie_on_the_dark_nuclei(made):
    data = made["synthetic_nuclei"]
    assert set(data.table["label"]) == {-1} and data.task.classes[0] == "background"
    masks = np.stack([data.mask(i) for i in range(len(data))])
    grey = np.stack([data.image(i).mean(axis=2) for i in range(len(data))])
    assert masks.dtype == np.uint8 and set(np.unique(masks)) == set(range(len(data.task.classes)))
    for slide in data.table["group"].unique():
        mine = (data.table["group"] == slide).to_numpy()
        inside = masks[mine] > 0
        assert 0.05 < inside.mean() < 0.6
        assert grey[mine][inside].mean() < grey[mine][~inside].mean() - 10
        # the mask fits where it lies: moved by a nucleus's radius, it fits worse
        moved = np.roll(inside, 8, axis=2)
        assert grey[mine][inside].mean() < grey[mine][moved].mean() - 5


@pytest.mark.parametrize(
    ("kind", "value"), [("tumour", 1), ("lymphocyte", 2), ("spindle", 3), ("apoptotic", 0), ("pyknotic", 0)]
)
def test_a_mask_is_what_was_painted(kind, value):
    """Read off the eosin, which every nucleus dims by one factor: half dimmed or more is the nucleus's."""
    for seed in range(5):
        truth = np.full((64, 64), 9, np.uint8)
        layers = np.full((64, 64), 0.05, np.float32), np.ones((64, 64), np.float32)
        canvas = Canvas(*layers, 0.5, noise(1, 0.5), truth)
        look = fields.slide_look(1, seed).look
        cells.draw(canvas, (30.0, 34.0), kind, np.random.default_rng(seed), look, angle=0.4, hard=0.3)
        share = (1 - canvas.e) / (1 - canvas.e).max()
        clear = np.abs(share - 0.5) > 1e-3
        expected = np.where(share >= 0.5, value, 9) if value else np.full((64, 64), 9)
        np.testing.assert_array_equal(truth[clear], expected[clear])
        assert not value or 20 < (truth == value).sum() < 800


def test_the_same_seed_makes_the_same_patches_and_another_others(made, tmp_path, monkeypatch):
    again, first = make(N_SLIDES, synthetic.NUCLEI, tmp_path / "again").folder, made["synthetic_nuclei"].folder
    files = sorted(path.relative_to(again) for path in again.rglob("*.png"))
    assert len(files) == 2 * 4 * N_SLIDES
    assert all((again / file).read_bytes() == (first / file).read_bytes() for file in files)
    monkeypatch.setattr(synthetic, "SEED", 1)
    other = make(3, synthetic.NUCLEI, tmp_path / "other").folder
    assert (other / files[0]).read_bytes() != (again / files[0]).read_bytes()


def test_what_is_there_is_kept_what_differs_is_made_anew_what_is_foreign_is_refused(tmp_path):
    folder = make(3, synthetic.NUCLEI, tmp_path / "a").folder
    patch = folder / "images" / "0000.png"
    before = patch.stat().st_mtime_ns
    make(3, synthetic.NUCLEI, folder)
    assert patch.stat().st_mtime_ns == before
    assert len(make(4, synthetic.NUCLEI, folder)) == 16
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("mine")
    with pytest.raises(TaskError, match="isn't empty"):
        make(3, synthetic.NUCLEI, tmp_path / "b")
    assert (tmp_path / "b" / "mine.txt").is_file()


def test_a_making_that_was_killed_is_begun_again(tmp_path, monkeypatch):
    true, calls = synthetic._write_png, []

    def killed(path, pixels):
        calls.append(path)
        if len(calls) == 9:
            raise KeyboardInterrupt
        true(path, pixels)

    monkeypatch.setattr(synthetic, "_write_png", killed)
    with pytest.raises(KeyboardInterrupt):
        make(3, synthetic.NUCLEI, tmp_path / "a")
    assert len(make(3, synthetic.NUCLEI, tmp_path / "a")) == 12


def test_slides_differ_in_stain_and_tissues_do_not():
    """Amounts and hues of both stains, and the scanner, change from slide to slide by more than a tissue could."""
    looks = [fields.slide_look(1, i) for i in range(40)]
    for stain in ("haematoxylin", "eosin"):
        amounts = np.log([getattr(look, stain) for look in looks])  # (40, 3)
        assert amounts.mean(axis=1).std() > 0.25
        assert (amounts - amounts.mean(axis=1, keepdims=True)).std(axis=0).min() > 0.1
    assert len({look.scanner for look in looks}) == 4 and len({look.white for look in looks}) == 40
    assert fields.slide_look(1, 3) == looks[3] != fields.slide_look(2, 3)


def test_colour_alone_does_not_tell_the_tissues_apart(made):
    """A forest on the channels' histograms, means and spreads stays far below 1 on other slides."""
    data = made["synthetic_tissue"]
    images = np.stack([data.image(i) for i in range(len(data))]).reshape(len(data), -1, 3)
    spread = [images.mean(axis=1), images.std(axis=1)]
    counts = [np.stack([np.bincount(image[:, c] // 8, minlength=32) for image in images]) for c in range(3)]
    features = np.concatenate([*counts, *spread], axis=1)  # (N, 102)
    train = (data.table["split"] == "train").to_numpy()
    label = data.table["label"].to_numpy()
    forest = RandomForestClassifier(200, random_state=0).fit(features[train], label[train])
    assert balanced_accuracy_score(label[~train], forest.predict(features[~train])) < 0.8
