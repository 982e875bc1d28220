"""What training learns from: fair draws, whole batches, labels by window, and what is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st
from made_training import N_PATCHES, NETWORK, network, task

from mfcore.data import augment, splits
from mfcore.data.splits_draw import Placing
from mfcore.study import data as study_data
from mfcore.study.config import MODES, Data, Settings, Splits
from mfcore.training import task as train_task
from mfcore.training.task import Places, Recipe

WINDOW = Recipe(training_label="window")
RELEASED = Recipe(sampler="released")
NOWHERE = Places(*[np.full((N_PATCHES, 2), np.nan)] * 2, np.ones(N_PATCHES))
LABELS = Path(__file__).parents[2].parent / "shared" / "data" / "labels"
needs_real = pytest.mark.skipif(not LABELS.is_dir(), reason="the real labels of ../shared/data are not here")

# ---- draws and batches ----


def test_draw_is_uniform_over_slides_then_classes():
    """A big slide weighs what a small one does; a slide without one class gives what it has, each patch as likely."""
    slides = np.array(["big"] * 80 + ["small"] * 3 + ["all 0"] * 10 + ["all 1"] * 7)
    labels = np.array([1] * 10 + [0] * 70 + [1, 0, 0] + [0] * 10 + [1] * 7, dtype=np.int8)
    roles = {"train": np.arange(100) + 20, "val": np.arange(20), "test": np.arange(120, 125)}
    everywhere = np.concatenate([np.full(20, "elsewhere"), slides, np.full(5, "elsewhere")])
    truth = np.concatenate([np.zeros(20, np.int8), labels, np.arange(5, dtype=np.int8) % 2])
    the_task = task(
        network=network(patches_per_epoch=30_000),
        roles=roles,
        slide_ids=everywhere,
        labels=truth,
        patches=np.zeros((125, NETWORK.needed_px, NETWORK.needed_px, 3), np.uint8),
    )
    rows = train_task.epoch_of(the_task, 1).rows
    assert len(rows) == 30_000 and np.isin(rows, roles["train"]).all()
    shares = pd.Series(rows).groupby([everywhere[rows], truth[rows]]).size() / 30_000
    of_small = {("small", 0): 1 / 8, ("small", 1): 1 / 8}
    expected = {("big", 0): 1 / 8, ("big", 1): 1 / 8, **of_small, ("all 0", 0): 1 / 4, ("all 1", 1): 1 / 4}
    assert shares.to_dict() == pytest.approx(expected, abs=0.01)
    per_patch = np.bincount(rows, minlength=125)[20:120] / 30_000
    each = [1 / 80] * 10 + [1 / 560] * 70 + [1 / 8, 1 / 16, 1 / 16] + [1 / 40] * 10 + [1 / 28] * 7
    np.testing.assert_allclose(train_task.chances(the_task), each)
    np.testing.assert_allclose(per_patch, each, rtol=0.6)
    np.testing.assert_allclose(per_patch[80:], each[80:], rtol=0.2)
    np.testing.assert_array_equal(rows, train_task.epoch_of(the_task, 1).rows)
    assert not np.array_equal(rows, train_task.epoch_of(the_task, 2).rows)


def test_every_training_patch_once():
    the_task = task(network=network(patches_per_epoch=None))
    rows = train_task.epoch_of(the_task, 1).rows
    np.testing.assert_array_equal(np.sort(rows), the_task.roles["train"])
    assert not np.array_equal(rows, the_task.roles["train"])
    assert not np.array_equal(rows, train_task.epoch_of(the_task, 2).rows)


def lacking(**changed):
    """A task whose training has, on slide "p" of three, patches of class 1 only; its reader gives patches of one colour."""
    asked = []

    def read(slide_ids, shares):
        asked.append((slide_ids, shares))
        grey = (255 * shares[:, 0]).astype(np.uint8)[:, None, None, None]
        return 1e5 + 1000 * shares, np.broadcast_to(grey, (len(shares), *[NETWORK.needed_px] * 2, 3))

    truth = np.tile([0, 1], N_PATCHES // 2).astype(np.int8)
    slides = np.array(["p", "b", "n"], object)[np.arange(N_PATCHES) % 3]
    truth[slides == "p"], truth[slides == "n"] = 1, 0
    truth[90:] = np.arange(30) % 2
    given = {
        "labels": truth,
        "slide_ids": slides,
        "recipe": RELEASED,
        "read": read,
        "network": network(patches_per_epoch=6000),
    }
    return task(**(given | changed)), asked


def test_the_released_sampler_draws_random_places_where_a_slide_lacks_class_0():
    """Half the draws of such a slide; a slide without class 1 gives what it has, as ever."""
    the_task, asked = lacking()
    assert train_task.slides_at_random(the_task, "train").tolist() == ["p"]
    examples = train_task.epoch_of(the_task, 1)
    random = examples.rows >= N_PATCHES
    assert random.mean() == pytest.approx(1 / 6, abs=0.02)
    shares = pd.Series(the_task.slide_ids[examples.rows[~random]]).value_counts() / 6000
    assert shares.to_dict() == pytest.approx({"p": 1 / 6, "b": 1 / 3, "n": 1 / 3}, abs=0.02)
    ((slide_ids, drawn),) = asked
    assert set(slide_ids) == {"p"} and len(drawn) == random.sum() == len(np.unique(drawn[:, 0]))
    np.testing.assert_array_equal(np.sort(examples.rows[random]) - N_PATCHES, np.arange(len(drawn)))
    again = train_task.epoch_of(the_task, 1)
    np.testing.assert_array_equal(again.rows, examples.rows)
    np.testing.assert_array_equal(again.elsewhere.centres_l0_px, examples.elsewhere.centres_l0_px)
    assert not np.array_equal(asked[-1][1][:5], train_task.epoch_of(the_task, 2).elsewhere.centres_l0_px[:5])
    own = lacking(recipe=Recipe())[0]
    assert not len(train_task.slides_at_random(own, "train")) and train_task.epoch_of(own, 1).rows.max() < N_PATCHES


def test_a_random_place_is_positive_where_a_mitotic_figure_lies_in_its_window():
    """Whatever the rule for annotations: it has none of its own."""
    for rule in ("annotation", "window"):
        recipe = Recipe(sampler="released", training_label=rule)
        the_task, _ = lacking(recipe=recipe)
        places = the_task.places
        centres = places.annotation_l0_px.copy()
        centres[np.flatnonzero((the_task.slide_ids == "p") & (np.arange(N_PATCHES) < 60))[0]] = 1e5 + 500
        the_task, _ = lacking(recipe=recipe, places=Places(centres, places.patch_l0_px, places.l0_px_per_px))
        examples = train_task.epoch_of(the_task, 1)
        random = np.flatnonzero(examples.rows >= N_PATCHES)
        at = examples.elsewhere.centres_l0_px[examples.rows[random] - N_PATCHES]
        shifts = np.stack([examples.drawn.shift_x_px, examples.drawn.shift_y_px], axis=1)[random]
        expected = (np.abs(at + shifts - (1e5 + 500)) < NETWORK.input_px / 2).all(axis=1)
        np.testing.assert_array_equal(examples.labels[random] == 1, expected)
        assert rule == "window" or (examples.labels[examples.rows < N_PATCHES] == 1).any()


def test_drawn_validation_has_random_places_too():
    the_task, asked = lacking(recipe=Recipe(sampler="released", validation="drawn"))
    found = train_task.validation_of(the_task)
    random = found.rows >= N_PATCHES
    assert 0 < random.sum() < 30 and not found.labels[random].any()
    shown = train_task.crops(the_task, found)
    grey = (255 * asked[0][1][:, 0]).astype(np.uint8)
    assert (shown[random] == grey[found.rows[random] - N_PATCHES][:, None, None, None]).all()
    stored = train_task.crops(the_task, found[~random])
    np.testing.assert_array_equal(shown[~random], stored)


def test_random_places_need_the_slides_and_the_annotations_places():
    (problem,) = lacking(read=None)[0].problems()
    assert "draws random places" in problem and problem.endswith("--data of python -m mfcore train")
    (problem,) = lacking(places=NOWHERE)[0].problems()
    assert "by the places of annotations, which some labels don't have" in problem
    for this in (lacking()[0], lacking(read=None, recipe=Recipe())[0]):
        assert this.problems() == []
    assert lacking(read=None, network=network(patches_per_epoch=None))[0].problems() == []


def drawn_by_the_rule(slides: list[tuple[int, int]], n: int) -> tuple[float, float]:
    """Shares of ``n`` draws at random places and at mitotic figures, of slides with (mitotic figures, look-alikes).

    The rule in words: a slide is drawn, then a class, each as likely. Without a mitotic figure it is a look-alike's turn;
    without a look-alike, when it is its turn, a random place's.
    """
    draws, found = np.random.default_rng(5), {"place": 0, "figure": 0, "look-alike": 0}
    for slide, coin in zip(draws.integers(0, len(slides), n), draws.random(n), strict=True):
        n_figures, n_look_alikes = slides[slide]
        if coin < 0.5 and n_figures:
            found["figure"] += 1
        elif n_look_alikes:
            found["look-alike"] += 1
        else:
            found["place"] += 1
    return found["place"] / n, found["figure"] / n


@needs_real
@pytest.mark.parametrize(("source", "first", "last"), [("midog22", 0.226, 0.005), ("ccmct", 0.156, 0.0)])
def test_the_released_sampler_draws_as_the_rule_says_on_the_real_labels(source, first, last):
    """Each size and fold as the released training script draws them. ``first``, ``last``: random places, mean of folds."""
    study = Settings("s", "S", Data(source), splits=Splits(by_domain=False), mode="paper", switches=MODES["paper"])
    table = study_data.load_labels(study, LABELS, check_files=False)
    folds = splits.make(table, study_data.scheme_of(study, networks=True))
    truth, slide_ids = table["label"].to_numpy(), table["slide_id"].to_numpy()
    centres = table[["x_l0_px", "y_l0_px"]].to_numpy()
    shares = {}
    for unit in splits.units(folds):
        the_task = task(
            unit=unit.name,
            network=network(input_px=2, shift_px=0, rotation_probability=0.0, patches_per_epoch=40_000),
            patches=np.broadcast_to(np.uint8(0), (len(table), 2, 2, 3)),
            labels=truth,
            slide_ids=slide_ids,
            roles=splits.select(folds, unit),
            places=Places(centres, centres, np.ones(len(table))),
            recipe=RELEASED,
            read=lambda slides, shares: (shares, np.zeros((len(slides), 2, 2, 3), np.uint8)),
        )
        rows = train_task.epoch_of(the_task, 1).rows
        random = rows >= len(table)
        train = the_task.roles["train"]
        counts = pd.crosstab(slide_ids[train], truth[train]).reindex(columns=[1, 0], fill_value=0)
        expected = drawn_by_the_rule(list(counts.itertuples(index=False, name=None)), 40_000)
        found = random.mean(), truth[rows[~random]].sum() / len(rows)
        assert found == pytest.approx(expected, abs=0.015), unit.name
        shares.setdefault(unit.size, []).append(random.mean())
    means = [np.mean(shares[size]) for size in sorted(shares)]
    assert means == sorted(means, reverse=True)
    assert (means[0], means[-1]) == pytest.approx((first, last), abs=0.004)


@pytest.mark.parametrize(
    ("n", "size", "expected"), [(16, 8, [8, 8]), (17, 8, [8, 9]), (18, 8, [8, 8, 2]), (2, 8, [2]), (9, 8, [9]), (3, 2, [3])]
)
def test_no_batch_of_one(n, size, expected):
    parts = train_task.batches(n, size)
    assert [part.stop - part.start for part in parts] == expected
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(n))


@given(n=st.integers(2, 200), size=st.integers(2, 20), accumulate=st.integers(1, 7))
def test_steps_hold_every_batch_once(n, size, accumulate):
    found = train_task.steps(n, network(batch_size=size, accumulate=accumulate))
    assert [part for step in found for part in step] == train_task.batches(n, size)
    assert all(len(step) == accumulate for step in found[:-1]) and 1 <= len(found[-1]) <= accumulate


# ---- labels ----


def labelled(annotations: list[tuple[float, float, int]], slides: list[str], shifts: list[tuple[int, int]], **changed) -> list:
    """Labels by window of training patches about ``annotations`` (x, y, label), each shifted."""
    n = len(annotations)
    centres = np.array([entry[:2] for entry in annotations], float)
    given = {
        "patches": np.zeros((n + 4, 60, 60, 3), np.uint8),
        "labels": np.array([entry[2] for entry in annotations] + [0, 1, 0, 1], np.int8),
        "slide_ids": np.array([*slides, "v", "v", "t", "t"], object),
        "roles": {"train": np.arange(n), "val": np.arange(n, n + 2), "test": np.arange(n + 2, n + 4)},
        "places": Places(*[np.concatenate([centres, np.full((4, 2), 1e6)])] * 2, np.ones(n + 4)),  # the others lie far away
        "recipe": WINDOW,
        "network": network(input_px=20, shift_px=4),
    }
    the_task = task(**{**given, **changed})
    return train_task.labels_of(the_task, "train", np.arange(n), np.array(shifts), train_task.nowhere(the_task)).tolist()


def test_a_positive_annotation_in_the_window_makes_a_patch_positive():
    """The window is 20 px wide: 10 px to each side of the shifted centre."""
    annotations = [(100, 100, 1), (109, 100, 0), (111, 100, 0), (100, 111, 0), (500, 500, 0)]
    slides = ["a"] * 5
    assert labelled(annotations, slides, [(0, 0)] * 5) == [1, 1, 0, 0, 0]
    assert labelled(annotations, slides, [(0, 0), (0, 0), (-2, 0), (-2, 0), (0, 0)]) == [1, 1, 1, 0, 0]
    assert labelled(annotations, slides, [(0, 0), (2, 0), (0, 0), (0, -2), (0, 0)]) == [1, 0, 0, 1, 0]
    own = Recipe()
    assert labelled(annotations, slides, [(0, 0)] * 5, recipe=own) == [1, 0, 0, 0, 0]


def test_the_window_keeps_to_its_slide_and_its_role():
    annotations = [(100, 100, 1), (101, 100, 0), (300, 300, 0)]
    assert labelled(annotations, ["a", "b", "a"], [(0, 0)] * 3) == [1, 0, 0]
    places = Places(*[np.array([(100, 100), (105, 100), (900, 900), (106, 100), (0, 0), (107, 100.0)])] * 2, np.ones(6))
    of_others = {
        "labels": np.array([1, 0, 0, 1, 0, 1]),
        "slide_ids": np.array(["b", "a", "a", "a", "a", "a"]),
        "roles": {"train": np.arange(2), "val": np.array([2, 3]), "test": np.array([4, 5])},
        "patches": np.zeros((6, 60, 60, 3), np.uint8),
    }
    found = labelled([(0, 0, 0)] * 2, ["a"] * 2, [(0, 0)] * 2, places=places, **of_others)
    assert found == [1, 0], "validation's and test's positive annotations on the slide aren't training's to know"


def test_the_window_is_measured_where_the_patch_was_read_in_level_0_px():
    """A patch px that spans two level-0 px doubles window and shift; a patch moved at a border has its window there."""
    annotations = [(100, 100, 1), (118, 100, 0), (125, 100, 0)]
    there = np.concatenate([[entry[:2] for entry in annotations], np.full((4, 2), 1e6)]).astype(float)
    doubled = Places(there, there, np.full(7, 2.0))
    assert labelled(annotations, ["a"] * 3, [(0, 0)] * 3, places=doubled) == [1, 1, 0]
    assert labelled(annotations, ["a"] * 3, [(0, 0), (2, 0), (-3, 0)], places=doubled) == [1, 0, 1]
    moved = Places(there, there + np.array([[30, 0], [0, 0], [-20, 0]] + 4 * [[0, 0]]), np.ones(7))
    assert labelled(annotations, ["a"] * 3, [(0, 0)] * 3, places=moved) == [0, 0, 1]


def test_places_are_those_of_the_placing():
    table = pd.DataFrame({"x_l0_px": [5.0, 7], "y_l0_px": [6.0, 8], "um_per_px": [0.25, 0.5]})
    places = train_task.places_of(table, Placing(16, 0.5))
    np.testing.assert_array_equal(places.patch_l0_px, [[5, 6], [7, 8]])
    np.testing.assert_array_equal(places.l0_px_per_px, [2, 1])
    moved = train_task.places_of(table.assign(patch_x_l0_px=9.0, patch_y_l0_px=[6.0, 8]), Placing(16, 0.5))
    np.testing.assert_array_equal(moved.patch_l0_px, [[9, 6], [9, 8]])
    np.testing.assert_array_equal(moved.annotation_l0_px, [[5, 6], [7, 8]])


def test_an_epoch_is_labelled_by_its_own_shifts():
    close = task(recipe=WINDOW, slide_ids=np.full(N_PATCHES, "s"), network=network(patches_per_epoch=2000))
    places = Places(*[close.places.patch_l0_px * [0.3, 1]] * 2, np.ones(N_PATCHES))  # 6 px apart, the window's half
    close = task(**{**vars(close), "places": places})
    examples = train_task.epoch_of(close, 1)
    assert len(examples) == len(examples.labels) == 2000
    left = examples.drawn.shift_x_px == -1
    neighbour = (close.labels[np.maximum(examples.rows - 1, 0)] == 1) & (examples.rows > 0)
    own = close.labels[examples.rows] == 1
    np.testing.assert_array_equal(examples.labels[left] == 1, (own | neighbour)[left])
    np.testing.assert_array_equal(examples.labels[examples.drawn.shift_x_px == 0] == 1, own[examples.drawn.shift_x_px == 0])


# ---- validation ----


def test_validation_is_the_centre_crops_unless_drawn():
    plain = train_task.validation_of(task())
    np.testing.assert_array_equal(plain.rows, np.arange(60, 90))
    assert not plain.shifts_px.any()
    drawn = task(recipe=Recipe(validation="drawn"))
    found = train_task.validation_of(drawn)
    assert len(found.rows) == 30 and np.isin(found.rows, np.arange(60, 90)).all() and len(np.unique(found.rows)) < 30
    assert set(np.unique(found.shifts_px)) == {-1, 0, 1}
    np.testing.assert_array_equal(found.labels, drawn.labels[found.rows])
    again = train_task.validation_of(drawn)
    np.testing.assert_array_equal(found.rows, again.rows)
    np.testing.assert_array_equal(found.shifts_px, again.shifts_px)
    once = train_task.validation_of(task(network=network(patches_per_epoch=None), recipe=Recipe(validation="drawn")))
    np.testing.assert_array_equal(once.rows, np.arange(60, 90))


def test_drawn_validation_is_drawn_as_training():
    """Classes are as likely on a slide, however rare one of them is."""
    labels = task().labels.copy()
    labels[60:90], labels[60] = 0, 1
    rare = task(recipe=Recipe(validation="drawn"), labels=labels, slide_ids=np.full(N_PATCHES, "s"))
    assert 8 <= train_task.validation_of(rare).labels.sum() <= 22


def test_drawn_validation_is_labelled_as_training():
    near = Places(*[np.zeros((N_PATCHES, 2))] * 2, np.ones(N_PATCHES))
    both = Recipe(validation="drawn", training_label="window")
    assert train_task.validation_of(task(recipe=both, places=near, slide_ids=np.full(N_PATCHES, "s"))).labels.all()


def test_a_shifted_crop_is_what_augmentation_shows():
    """Shifted and nothing else, a patch looks the same to validation as to training."""
    the_task = task(network=network(shift_px=2), patches=np.random.default_rng(0).integers(0, 256, (120, 23, 23, 3), np.uint8))
    shifts = np.array([[-2, 1], [0, 0], [2, 2], [1, -2]])
    found = train_task.crops(the_task, dataclasses.replace(train_task.centred(the_task, "train")[:4], shifts_px=shifts))
    nothing = {name: np.zeros(4) for name in ("angle", "hue", "blur_px", "last_angle")} | {
        n: np.zeros(4, bool) for n in ("flip_x", "flip_y")
    }
    same = {name: np.ones(4) for name in ("brightness", "contrast", "saturation")}
    fields = {"shift_x_px": shifts[:, 0] * 1.0, "shift_y_px": shifts[:, 1] * 1.0, **nothing, **same}
    drawn = np.rec.fromarrays(list(fields.values()), names=list(fields))
    images = torch.from_numpy(the_task.patches[:4]).permute(0, 3, 1, 2)
    shown = augment.augment(images, drawn, 12).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found / 255, shown, atol=1e-4)


# ---- refusals ----


def test_too_few_patches_for_a_batch_are_refused():
    few = {**task().roles, "train": np.arange(7)}
    for this in (task(roles=few, network=network(patches_per_epoch=None)), task(network=network(patches_per_epoch=7))):
        (problem,) = this.problems()
        assert problem.startswith("the 7 patches of an epoch are too few for a batch of 8; raise networks[tiny].patches_per")
    this = task(roles=few)
    assert this.n_per_epoch == 33 and this.problems() == [], "a draw with replacement fills any batch"
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        network(batch_size=1)


def test_labels_by_window_need_places():
    (problem,) = task(recipe=WINDOW, places=NOWHERE).problems()
    assert "window needs the place of every annotation" in problem


def test_a_validation_of_one_class_is_known():
    labels = np.where((np.arange(N_PATCHES) >= 60) & (np.arange(N_PATCHES) < 90), 0, task().labels)
    assert task(labels=labels).validates_one_class and not task().validates_one_class
    assert not task(labels=labels, recipe=Recipe(epoch="last")).validates_one_class
