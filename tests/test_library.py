"""mfcore as a library: the examples of its docstring run, and importing it loads nothing else."""

import doctest
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

import mfcore


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Four images and a slide, in the current folder."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i, name in enumerate("abcd"):
        noise = rng.integers(0, 80, (96, 96, 3)) + 120 * (i % 2)
        Image.fromarray(noise.astype(np.uint8)).save(tmp_path / "images" / f"{name}.png")
    pixels = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    said = {"resolution": (4e4,) * 2, "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "slide.tiff", pixels, tile=(64, 64), photometric="rgb", **said)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_examples_give_what_they_say(folder):
    result = doctest.testmod(mfcore, optionflags=doctest.ELLIPSIS)
    assert result.attempted >= 7 and not result.failed


def test_importing_mfcore_loads_neither_torch_nor_pandas():
    code = "import sys, mfcore; assert not {'torch', 'pandas', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_files_and_images_of_several_sizes_are_embedded_in_their_order(folder):
    small = np.asarray(Image.open(folder / "images" / "a.png"))[:50, :50]
    Image.fromarray(small).save(folder / "small.png")
    files = [folder / "images" / "b.png", folder / "small.png", folder / "images" / "a.png"]
    features, found = mfcore.embed(files, "vit_tiny_random", "cpu")
    assert found == files and features.shape == (3, 192)
    alone = np.concatenate([mfcore.embed([file], "vit_tiny_random", "cpu")[0] for file in files])
    np.testing.assert_allclose(features, alone, atol=1e-4)


def test_what_cannot_be_embedded_is_named(folder):
    Image.new("L", (9, 9)).save(folder / "grey.png")
    with pytest.raises(ValueError, match=r"grey\.png: L, 1 frames; save it as one image of 8 bit RGB"):
        mfcore.embed([folder / "grey.png"], "vit_tiny_random", "cpu")
    (folder / "none").mkdir()
    with pytest.raises(ValueError, match=r"no images .* in this folder"):
        mfcore.embed(folder / "none", "vit_tiny_random", "cpu")


@pytest.mark.parametrize(
    ("images", "batch_size", "message"),
    [
        ([], 16, "there are no images to embed"),
        (np.zeros((0, 32, 32, 3), np.uint8), 16, "there are no images to embed"),
        (np.zeros((2, 32, 32, 3), np.uint8), 0, "batch_size is 0; it must be 1 or more"),
    ],
)
def test_no_images_and_no_batch_are_refused(images, batch_size, message):
    with pytest.raises(ValueError, match=message):
        mfcore.embed(images, "vit_tiny_random", "cpu", batch_size)


def test_points_are_read_as_the_patch_store_reads_them(folder):
    pixels = tifffile.imread("slide.tiff")
    (patch,) = mfcore.read_patches("slide.tiff", [(100, 80)], size_px=64, um_per_px=0.25)
    np.testing.assert_array_equal(patch, pixels[48:112, 68:132])


@pytest.mark.parametrize(
    ("points", "um_per_px", "message"),
    [
        ([(0, 0, 9, 9), (5, 5, 14, 14)], 0.25, r"points are \(2, 4\); expected"),
        ([(100, 80), (1e6, 80)], 0.25, "a point isn't on the slide"),
        ([(100, 80)], 0, "um_per_px is 0; it must be positive"),
        ([(100, 80)], 0.2, "has 0.25 um/px and would be enlarged to 0.2"),
    ],
)
def test_points_that_cannot_be_read_are_refused(folder, points, um_per_px, message):
    with pytest.raises(ValueError, match=message):
        mfcore.read_patches("slide.tiff", points, size_px=64, um_per_px=um_per_px)


def test_a_probe_takes_lists_and_refuses_a_column_of_labels():
    features = [[0.0, 1.0], [1.0, 0.0], [0.1, 0.9], [0.9, 0.2]]
    assert mfcore.fit_probe(features, [0, 1, 0, 1], cost=1e4).predict(np.array(features)).shape == (4,)
    with pytest.raises(ValueError, match=r"expected \(n, n_dims\) and \(n,\)"):
        mfcore.fit_probe(np.array(features), [[0], [1], [0], [1]])


def test_an_unknown_name_is_told_with_those_there_are():
    with pytest.raises(AttributeError, match=r"no attribute 'embedd'; it has \['embed', 'fit_probe', 'open_study'"):
        _ = mfcore.embedd
