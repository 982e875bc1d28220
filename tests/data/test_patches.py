"""The patch store without a study: patches of a label table, their crops, twins and counts."""

import numpy as np
import pandas as pd
import pytest
import tifffile

from mfcore import store
from mfcore.data import patches, splits_draw
from mfcore.data.labels import table as labels
from mfcore.data.labels.source import SOURCES
from mfcore.data.patches import PatchError, Reading
from mfcore.data.splits_draw import Placing


def test_patches_of_a_table_are_read_into_a_run(tmp_path):
    """What a library user does: a label file and slides in a folder, and a run to fill."""
    image = np.random.default_rng(1).integers(0, 256, (90, 100, 3), dtype=np.uint8)
    said = {"resolution": (1e4 / 0.5,) * 2, "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "a.tiff", image, tile=(32, 32), photometric="rgb", **said)
    (tmp_path / "annotations.csv").write_text("file,x,y,label\na.tiff,30,40,1\na.tiff,60,50,0\n")
    table = labels.load(SOURCES["csv"], tmp_path)
    run = store.open_run(tmp_path / "results", "patches", "mine", {}, {})
    stored, pixels = patches.load(patches.extract(table, tmp_path, run, Reading(16, 12, um_per_px=None)))
    np.testing.assert_array_equal(pixels, [image[32:48, 22:38], image[42:58, 52:68]])
    assert stored["um_per_px"].tolist() == [0.5, 0.5] and table["um_per_px"].isna().all(), "the given table is left as it is"


def test_the_label_tables_resolution_is_that_of_a_slide_that_states_none(tmp_path):
    tifffile.imwrite(tmp_path / "a.tiff", np.zeros((90, 100, 3), np.uint8), tile=(32, 32), photometric="rgb")
    (tmp_path / "annotations.csv").write_text("file,x,y,label\na.tiff,30,40,1\na.tiff,60,50,0\n")
    table = labels.load(SOURCES["csv"], tmp_path).assign(um_per_px=0.25)
    reading = Reading(16, 12, um_per_px=0.5, slide_um_per_px=0.5)
    run = store.open_run(tmp_path / "results", "patches", "mine", {}, {})
    assert patches.load(patches.extract(table, tmp_path, run, reading))[0]["um_per_px"].tolist() == [0.25, 0.25]


def test_a_patch_of_a_smaller_level_covers_more_of_its_slide():
    """Images of 32 px at 0.5 um/px of a slide of 0.25 um/px, 40 level-0 px apart, share px."""
    table = pd.DataFrame({"patch_x_l0_px": [32.0, 72.0, 132.0], "patch_y_l0_px": 32.0, "um_per_px": 0.5, "downsample": 2.0})
    table = table.assign(slide_id="s", x_l0_px=table["patch_x_l0_px"], y_l0_px=32.0)
    placing = Placing(32, 0.5)
    assert patches.corners(table, 32, placing).tolist() == [[0, 0], [40, 0], [100, 0]]
    placed = splits_draw.with_places(table, placing)
    assert placed["side_l0_px"].tolist() == [64, 64, 64]
    assert splits_draw.overlapping(placed.iloc[:1], placed.iloc[1:]).tolist() == [True, False]


def test_counts():
    table = pd.DataFrame(
        {
            "domain": ["b", "a", "a", "b", "b"],
            "slide_id": ["1", "2", "3", "1", "1"],
            "label": np.array([1, 0, 1, 0, 0], np.int8),
        }
    )
    expected = [["a", 2, 1, 1, 0.5], ["b", 1, 1, 2, 1 / 3]]
    counted = patches.counts(table)
    assert counted.columns.tolist() == ["domain", "n_slides", "n_positive", "n_negative", "positive_share"]
    assert counted.to_numpy().tolist() == expected


@pytest.mark.parametrize(("side", "size", "first"), [(8, 4, 2), (9, 4, 2), (9, 5, 2), (8, 8, 0), (8, 5, 1)])
def test_centre_crop_is_a_view_of_the_middle(side, size, first):
    stored = np.arange(2 * side * side * 3).reshape(2, side, side, 3)
    crop = patches.centre_crop(stored, size)
    np.testing.assert_array_equal(crop, stored[:, first : first + size, first : first + size])
    assert np.shares_memory(crop, stored)
    assert patches.centre_crop(stored[0], size).shape == (size, size, 3)
    with pytest.raises(PatchError, match=f"crop of {side + 1} px"):
        patches.centre_crop(stored, side + 1)


def test_an_unfinished_run_is_not_loaded(tmp_path):
    with pytest.raises(store.StoreError, match="not finished"):
        patches.load(store.open_run(tmp_path, "patches", "tiny", {}, {}))


def test_twins_are_patches_of_the_same_pixels_and_padding_has_none():
    made = np.random.default_rng(0).integers(0, 256, (9, 6, 6, 3), dtype=np.uint8)
    made[4] = made[7] = made[1]
    made[8] = made[2]
    made[5] = made[0]
    made[5, 0, 0, 0] ^= 1  # one level of one px, far from the middle row that is looked at first
    made[3] = made[6] = 255
    assert patches.twins(made).tolist() == [0, 1, 2, 3, 1, 5, 6, 1, 2]
