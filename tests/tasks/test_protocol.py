"""What runs of both kinds of task share: what is done stays done, what was broken off isn't; how the whole is put together."""

import types

import made_tasks
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from mfcore import store
from mfcore.encoders import preprocess
from mfcore.store.files import Fingerprints
from mfcore.tasks import protocol

DATA = types.SimpleNamespace(
    table=pd.DataFrame({"item_id": ["a", "b"]}),
    selected_on="val",
    notes=("a note",),
    task=types.SimpleNamespace(classes=("x", "y")),
)


@pytest.fixture
def run(tmp_path):
    return store.open_run(tmp_path, "judge", "task.encoder", {}, {})


def test_other_images_or_masks_are_other_data():
    data = made_tasks.nuclei()
    same, other_mask, other_image = made_tasks.nuclei(), made_tasks.nuclei(), made_tasks.nuclei()
    other_mask.masks[0][3, 3] ^= 1
    other_image.pixels[0][3, 3, 0] ^= 1
    told = [protocol.fingerprint(each, Fingerprints()) for each in (data, same, other_mask, other_image)]
    assert told[0] == told[1] and len(set(told)) == 3


def keep(run, number):
    protocol.keep(run, number, pd.DataFrame({"run": [number] * 2, "item_id": ["a", "b"]}), {"n_train": 5, "ended": "early"})


def test_a_training_is_done_when_all_of_it_is_kept(run):
    """A kill between its two files leaves it to be done again."""
    keep(run, 1)
    assert protocol.missing(run, 3) == [0, 2]
    (mark,) = run.path("units").glob("*.json")
    mark.unlink()
    assert protocol.missing(run, 3) == [0, 1, 2]


def test_a_kill_while_the_table_is_kept_leaves_no_mark(run, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        keep(run, 0)
    assert protocol.missing(run, 1) == [0]


def test_runs_are_put_together_in_their_order_and_described(run):
    """Whatever the order in which they were trained."""
    for number in (2, 0, 1):
        keep(run, number)
    run.path("masks.npz").write_bytes(b"masks")
    done = protocol.finish(run, DATA, 3, "told.parquet", ["masks.npz"], n_dims=7)
    assert pd.read_parquet(done.path("told.parquet"))["run"].tolist() == [0, 0, 1, 1, 2, 2]
    fits = pd.read_csv(done.path("fits.csv"))
    assert list(fits) == ["run", "n_train", "ended"] and fits["run"].tolist() == [0, 1, 2]
    assert set(done.verify().record["files"]) == {"told.parquet", "fits.csv", "masks.npz"}
    facts = {"n_items": 2, "n_dims": 7, "selected_on": "val", "notes": ["a note"], "classes": ["x", "y"]}
    assert done.record["facts"] == facts


@pytest.mark.parametrize(("height", "width"), [(113, 81), (227, 224), (225, 512), (96, 96), (1398, 1956)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_an_image_becomes_the_square_that_eva_s_transform_makes_of_it(height, width, interpolation):
    """Its ResizeAndCrop is torchvision's Resize and CenterCrop; sides as MoNuSAC's images have them."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    steps = [v2.Resize(224, InterpolationMode[interpolation.upper()]), v2.CenterCrop(224)]
    expected = np.asarray(v2.Compose(steps)(Image.fromarray(pixels)))
    np.testing.assert_array_equal(preprocess.square(pixels, 224, interpolation), expected)


def test_a_mask_becomes_the_square_of_its_image():
    """By the nearest pixel, and cut to the central square where a patch isn't one."""
    mask = np.repeat(np.arange(6, dtype=np.uint8), 2)[None].repeat(4, axis=0)  # (4, 12)
    assert preprocess.square(mask, 2, "nearest").tolist() == [[2, 3], [2, 3]]
