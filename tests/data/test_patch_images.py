"""Patch images as patches: which are taken as they are, how others are made to fit, which are refused."""

import numpy as np
import pytest
from PIL import Image

from mfcore import store
from mfcore.data import patches
from mfcore.data.labels import table as labels
from mfcore.data.labels.source import SOURCES
from mfcore.data.patches import PatchError, Reading

RNG = np.random.default_rng(1)


def image(height, width):
    return RNG.integers(0, 255, (height, width, 3), np.uint8)


def extract(tmp_path, images, columns="", **reading):
    """The patches of some images; columns: the table's header and cells besides file and label, by image."""
    header, *cells = columns.split(";") if columns else ["", *[""] * len(images)]
    lines = [f"file,label{header}"]
    for i, (pixels, cell) in enumerate(zip(images, cells, strict=True)):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{i % 2}{cell}")
    (tmp_path / "images.csv").write_text("\n".join(lines) + "\n")
    table = labels.load(SOURCES["images"], tmp_path)
    run = store.open_run(tmp_path / "results", "patches", "images", {"reading": repr(reading)}, {})
    how = Reading(**{"stored_px": 16, "size_px": 16, "um_per_px": None, "are_images": True, **reading})
    return patches.load(patches.extract(table, tmp_path, run, how))


def test_images_of_the_stored_side_are_taken_to_the_last_pixel(tmp_path):
    images = [image(16, 16) for _ in range(3)]
    table, stored = extract(tmp_path, images)
    np.testing.assert_array_equal(stored, images)
    assert table["um_per_px"].isna().all()


def test_crop_takes_the_centre_and_fills_what_is_missing_with_white(tmp_path):
    large, small = image(20, 31), image(10, 16)
    _, stored = extract(tmp_path, [large, small], fit="crop")
    np.testing.assert_array_equal(stored[0], large[2:18, 7:23])
    np.testing.assert_array_equal(stored[1, 3:13], small)
    assert (stored[1, :3] == 255).all() and (stored[1, 13:] == 255).all()


def test_crop_brings_images_to_the_studys_resolution(tmp_path):
    """A disc of 4 um radius has 16 px at 0.25 and 8 px at 0.5 um/px; it ends with 8 px in both."""

    def disc(side, radius):
        y, x = np.mgrid[:side, :side] - (side - 1) / 2
        return np.repeat(np.where(x**2 + y**2 < radius**2, 0, 255).astype(np.uint8)[..., None], 3, axis=2)

    table, stored = extract(
        tmp_path, [disc(64, 16), disc(32, 8)], ",um_per_px;,0.25;,0.5", fit="crop", um_per_px=0.5, stored_px=32, size_px=32
    )
    areas = (stored[..., 0] < 128).sum(axis=(1, 2))
    assert areas == pytest.approx(np.pi * 64, rel=0.05)
    np.testing.assert_array_equal(table["um_per_px"], [0.25, 0.5])  # of the images themselves


def test_crop_enlarges_no_image_by_more_than_a_tenth(tmp_path):
    with pytest.raises(PatchError, match=r"1 of 2 slides are coarser, such as .* with 0\.5 um/px, and would be enlarged"):
        extract(tmp_path, [image(32, 32)] * 2, ",um_per_px;,0.27;,0.5", fit="crop", um_per_px=0.25)


def test_resize_shows_the_whole_image(tmp_path):
    flat = np.zeros((32, 64, 3), np.uint8)
    flat[:, 32:] = 255
    _, stored = extract(tmp_path, [flat, image(16, 16)], fit="resize")
    assert stored.shape == (2, 16, 16, 3) and (stored[0, :, :7] < 20).all() and (stored[0, :, 9:] > 235).all()


@pytest.mark.parametrize(
    ("sides", "columns", "reading", "message"),
    [
        ((16, 20), "", {}, r"1\.png: 20 x 20 px, the study stores 16 px; .*patches\.fit: crop"),
        ((16, 16), "", {"um_per_px": 0.25}, "2 of 2 images don't state their um/px; say data.um_per_px, .*um_per_px: null"),
        ((16, 16), ",um_per_px;,0.5;,", {"um_per_px": 0.25, "fit": "crop"}, "1 of 2 images don't state their um/px"),
        ((16, 16), ",um_per_px;,0.5;,0.25", {"um_per_px": 0.25}, r"images have 0\.5 um/px, patches\.um_per_px is 0\.25"),
        ((16, 20), ",x,y,downsample;,1,2,1;,3,4,1", {"fit": "resize"}, "x and y say where .* set fit: crop"),
    ],
)
def test_what_would_have_an_unknown_scale_is_refused(tmp_path, sides, columns, reading, message):
    with pytest.raises(PatchError, match=message):
        extract(tmp_path, [image(side, side) for side in sides], columns, **reading)


def test_images_that_are_no_8_bit_rgb_are_named_together(tmp_path):
    extract(tmp_path, [image(16, 16)] * 3)
    Image.new("L", (16, 16)).save(tmp_path / "0.png")
    Image.new("RGBA", (16, 16)).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    table = labels.load(SOURCES["images"], tmp_path)
    run = store.open_run(tmp_path / "results", "patches", "images", {}, {})
    with pytest.raises(PatchError, match=r"(?s)3 files can't be used.*0\.png: L.*1\.png: RGBA.*2\.png: not an image"):
        patches.extract(table, tmp_path, run, Reading(stored_px=16, size_px=16, um_per_px=None, are_images=True))


def test_resized_images_have_the_um_per_px_of_what_is_stored(tmp_path):
    table, _ = extract(tmp_path, [image(32, 32), image(8, 12)], ",um_per_px;,0.25;,0.5", fit="resize")
    assert table["um_per_px"].tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("fit", "message"),
    [("resize", "resized to 16 px, have 0.5 um/px"), ("crop", "have 250 um/px, .*correct the images' um/px")],
)
def test_images_that_come_out_at_another_resolution_are_refused(tmp_path, fit, message):
    um_per_px = {"resize": 0.25, "crop": 250}[fit]
    with pytest.raises(PatchError, match=message):
        extract(tmp_path, [image(32, 32)] * 2, f",um_per_px;,{um_per_px};,{um_per_px}", fit=fit, um_per_px=0.25)


def test_16_bit_rgb_is_refused_which_pillow_opens_as_8_bit(tmp_path):
    import tifffile

    Image.fromarray(image(16, 16)).save(tmp_path / "0.png")
    tifffile.imwrite(tmp_path / "a.tif", np.full((16, 16, 3), 4095, np.uint16), photometric="rgb")
    (tmp_path / "images.csv").write_text("file,label\n0.png,0\na.tif,1\n")
    reading = Reading(stored_px=16, size_px=16, um_per_px=None, are_images=True)
    run = store.open_run(tmp_path / "results", "patches", "deep", {}, {})
    with pytest.raises(PatchError, match=r"a\.tif: RGB of 16 bit, of which 8 would be lost"):
        patches.extract(labels.load(SOURCES["images"], tmp_path), tmp_path, run, reading)


@pytest.mark.parametrize("name", ["a.jpg", "a.tif", "a.png"])
def test_images_that_a_tag_turns_are_refused(tmp_path, name):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(image(16, 16)).save(tmp_path / name, exif=exif)
    Image.fromarray(image(16, 16)).save(tmp_path / "0.png")
    (tmp_path / "images.csv").write_text(f"file,label\n0.png,0\n{name},1\n")
    run = store.open_run(tmp_path / "results", "patches", "turned", {}, {})
    reading = Reading(stored_px=16, size_px=16, um_per_px=None, are_images=True)
    with pytest.raises(PatchError, match=rf"{name}: orientation 6, turned or mirrored when shown; save it turned"):
        patches.extract(labels.load(SOURCES["images"], tmp_path), tmp_path, run, reading)


def test_images_that_a_crop_fills_up_are_counted(tmp_path):
    extract(tmp_path, [image(20, 31), image(10, 16), image(16, 16)], fit="crop")
    (run,) = (tmp_path / "results").glob("patches-*")
    assert store.run_at(run).record["facts"]["n_patches_over_edge"] == 1
