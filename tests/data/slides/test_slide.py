"""The reader: what it reads is where it was asked for, to the px and to the fraction; what it can't read, it says."""

import math
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings, strategies as st
from PIL import Image

from mfcore.data.slides.slide import Slide, SlideError, UnstatedResolution, open_slide
from mfcore.data.slides.tiff import TiffReader

REAL = Path(__file__).parents[3].parent / "shared" / "data" / "slides"
WIDTH, HEIGHT = 150, 90
TISSUE = {"canine_strip.tif": (4500, 4000), "CMU-1-Small-Region.svs": (1000, 1500)}  # level-0 px
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real slides of ../shared/data are not here")


def write(path, image, um_per_px=0.25, tile=(32, 32), levels=0, **options):
    """A small tiled TIFF; each further level averages 2 x 2 px."""
    resolution = {} if um_per_px is None else {"resolution": (1e4 / um_per_px,) * 2, "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as tiff:
        for level in range(levels + 1):
            tiff.write(image, tile=tile, photometric="rgb", subfiletype=int(level > 0), **{**resolution, **options})
            h, w = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
            image = image[:h, :w].reshape(h // 2, 2, w // 2, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8)
    return path


def ramps(width, height):
    """Red grows to the right, green downwards, both by a known step a px; blue is flat."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.stack([20 + 200 * x / width, 20 + 200 * y / height, np.full_like(x, 128)], axis=-1).round().astype(np.uint8)


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return image, write(tmp_path_factory.mktemp("noise") / "noise.tif", image)


@pytest.fixture(scope="module")
def ramp_file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("ramp") / "ramp.tif", ramps(256, 240), um_per_px=0.2, tile=(64, 64), levels=2)


def cut(image, x, y, size):
    """The rule, written a second time: px whose centre lies in [centre - size / 2, centre + size / 2), white elsewhere."""
    patch = np.full((size, size, 3), 255, np.uint8)
    first_column = min(i for i in range(-400, 600) if i + 0.5 > x - size / 2)
    first_row = min(i for i in range(-400, 600) if i + 0.5 > y - size / 2)
    for row in range(size):
        for column in range(size):
            if 0 <= first_row + row < image.shape[0] and 0 <= first_column + column < image.shape[1]:
                patch[row, column] = image[first_row + row, first_column + column]
    return patch


halves = st.integers(-120, 400).map(lambda n: n / 2)


@settings(deadline=None, max_examples=150)
@given(x=halves | st.floats(-60, WIDTH + 60), y=halves | st.floats(-60, HEIGHT + 60), size=st.integers(1, 40))
def test_native_reading_is_slicing_with_white_outside(noise, x, y, size):
    image, path = noise
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(x, y, size), cut(image, x, y, size))


def test_a_half_px_goes_right_and_down(noise):
    image, path = noise
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(50.5, 40.5, 20), image[31:51, 41:61])  # floor(40.5 + 0.5) = 41
        np.testing.assert_array_equal(slide.read(50.0, 40.0, 20), image[30:50, 40:60])
        np.testing.assert_array_equal(slide.read(50.0, 40.0, 21), image[30:51, 40:61])  # floor(39.5 + 0.5) = 40


def test_resolutions_within_a_thousandth_are_read_on_the_grid(noise):
    _, path = noise
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(60, 40, 30, 0.25), slide.read(60, 40, 30))
        np.testing.assert_array_equal(slide.read(60, 40, 30, 0.25 * 1.0009), slide.read(60, 40, 30))
        assert (slide.read(60, 40, 30, 0.25 * 1.002) != slide.read(60, 40, 30)).any()


@pytest.mark.parametrize("um_per_px", [0.1, 0.19, 0.226, 0.25, 0.31, 0.4, 0.5, 0.8, 1.3])
@pytest.mark.parametrize("centre", [(128.0, 120.0), (122.5, 131.25), (133.7, 115.1)])
def test_resampling_keeps_the_exact_centre_and_scale(ramp_file, um_per_px, centre):
    """A filter that is symmetric leaves a straight ramp straight, so every px must show the ramp's value at its own centre."""
    size, scale = 24, um_per_px / 0.2
    with open_slide(ramp_file) as slide:
        patch = slide.read(*centre, size, um_per_px).astype(float)
    at = (np.arange(size) + 0.5 - size / 2) * scale
    expected_red = 20 + 200 * (centre[0] + at) / 256
    expected_green = 20 + 200 * (centre[1] + at) / 240
    assert np.abs(patch[..., 0] - expected_red).max() <= 2  # each level is rounded, and so is the patch
    assert np.abs(patch[..., 1] - expected_green[:, None]).max() <= 2
    assert abs((patch[..., 0] - expected_red).mean()) < 0.3  # of rounding; a level-0 px is 0.8
    assert abs((patch[..., 1] - expected_green[:, None]).mean()) < 0.3
    assert (patch[..., 2] == 128).all()


@pytest.mark.parametrize(
    ("um_per_px", "level"), [(0.2, 0), (0.25, 0), (0.49, 0), (0.4999, 1), (0.5, 1), (0.9, 1), (1.1, 2), (4.0, 2)]
)
def test_the_coarsest_level_that_is_fine_enough_is_read(um_per_px, level):
    class Recorder:
        size_px, downsamples, stated_um_per_px = (9000, 9000), (1.0, 2.0, 4.0), 0.25

        def corner_l0_px(self, at_px, level):
            return at_px * self.downsamples[level]

        def region(self, window):
            self.asked = window
            return np.zeros((window.height, window.width, 3), np.uint8)

    recorder = Recorder()
    Slide(Path("a.tif"), recorder, 0.25).read(4000, 3000, 100, um_per_px)
    asked = recorder.asked
    downsample = recorder.downsamples[level]
    assert asked.level == level
    for corner, n_px, centre in ((asked.x_px, asked.width, 4000), (asked.y_px, asked.height, 3000)):
        assert corner * downsample <= centre - 50 * um_per_px / 0.25
        assert (corner + n_px) * downsample >= centre + 50 * um_per_px / 0.25
    assert asked.width < 100 * um_per_px / 0.25 / downsample * 1.2 + 8  # no more than is needed


def test_neighbours_meet_without_a_seam(ramp_file, tmp_path):
    image = np.random.default_rng(1).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    with open_slide(write(tmp_path / "n.tif", image, um_per_px=0.2)) as slide:
        whole = slide.read(200, 200, 64, 0.25).astype(int)
        right = slide.read(200 + 16 * 1.25, 200, 32, 0.25).astype(int)
    assert np.abs(whole[16:48, 32:] - right).max() <= 1  # rounding alone


def test_shrinking_averages(tmp_path):
    """Single-px stripes must come out grey, not as a pattern that isn't there."""
    image = np.zeros((256, 256, 3), np.uint8)
    image[:, ::2] = 255
    with open_slide(write(tmp_path / "stripes.tif", image, um_per_px=0.2)) as slide:
        patch = slide.read(128, 128, 40, 0.6)
    assert np.abs(patch.astype(int) - 127).max() <= 12


def test_resampled_reading_is_white_outside(ramp_file):
    with open_slide(ramp_file) as slide:
        assert (slide.read(-500, -500, 32, 0.25) == 255).all()
        corner = slide.read(0, 0, 32, 0.25)
    assert (corner[:13, :13] == 255).all()
    assert (corner[19:, 19:, 0] < 60).all()


def kinds(folder, image):
    """The same px in tiles, in strips and in a PNG."""
    said = {"photometric": "rgb", "resolution": (50000, 50000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(folder / "tiled.tif", image, tile=(32, 32), **said)
    tifffile.imwrite(folder / "strips.tif", image, rowsperstrip=16, **said)
    Image.fromarray(image).save(folder / "whole.png", dpi=(127000, 127000))
    return {"tiled": TiffReader, "strips": TiffReader, "whole": TiffReader}


@pytest.mark.parametrize("um_per_px", [None, 0.15, 0.31])
def test_what_lies_outside_is_black_where_asked_by_every_reader(tmp_path, um_per_px):
    """Inside and where the slide itself is white nothing changes; resampled, black and slide meet within the filter's reach."""
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[:40] = 255
    readers = kinds(tmp_path, image)
    for file in sorted(tmp_path.iterdir()):
        with open_slide(file) as white, open_slide(file, outside=0) as black:
            assert type(black.reader) is readers[file.stem]
            for x, y in ((WIDTH / 2, HEIGHT / 2), (3, 4), (WIDTH - 2.5, HEIGHT - 1.5), (-500, 0)):
                before, after = (slide.read(x, y, 24, um_per_px) for slide in (white, black))
                scale = 1 if um_per_px is None else um_per_px / 0.2
                at = (np.arange(24) + 0.5 - 12) * scale  # level-0 px from the centre
                beyond_x, beyond_y = (np.maximum(-(c + at), c + at - size) for c, size in ((x, WIDTH), (y, HEIGHT)))
                beyond = np.maximum(beyond_y[:, None], beyond_x[None, :])  # (24, 24), level-0 px outside
                reach = 0 if um_per_px is None else 2.5 * max(scale, 1)
                assert (after[beyond > reach] == 0).all() and (before[beyond > reach] == 255).all()
                np.testing.assert_array_equal(after[beyond < -reach], before[beyond < -reach])
                assert not (beyond > reach).all() or x < -100


def test_black_reaches_the_border_of_a_coarser_level(ramp_file):
    with open_slide(ramp_file, outside=0) as slide:
        corner = slide.read(0, 0, 32, 0.8)
    assert (corner[:13, :13] == 0).all() and (corner[19:, 19:] > 15).all()


@given(
    x=st.floats(-60, WIDTH + 60), y=st.floats(-60, HEIGHT + 60), size=st.integers(1, 60), um_per_px=st.sampled_from([None, 0.3])
)
def test_a_patch_moved_inward_shows_no_border_and_moves_no_further(noise, x, y, size, um_per_px):
    with open_slide(noise[1]) as slide:
        ((moved_x, moved_y),) = slide.inside(np.array([[x, y]]), size, um_per_px)
        is_over = slide.reaches_over(np.array([[x, y]]), size, um_per_px)[0]
    half = size * (um_per_px or 0.25) / 0.25 / 2
    for centre, moved, side in ((x, moved_x, WIDTH), (y, moved_y, HEIGHT)):
        assert half - 1e-9 <= moved <= side - half + 1e-9
        assert moved == centre or moved == pytest.approx(half if centre < moved else side - half)
    assert is_over == ((moved_x, moved_y) != (x, y))


def test_what_was_moved_inward_holds_px_of_the_slide_alone(noise):
    """Native px are cut on the grid: half a px at the border must not reach over it."""
    image, path = noise
    with open_slide(path) as slide:
        for size in (20, 21):
            for centre in ((0, 0), (WIDTH, HEIGHT), (10.5, HEIGHT - 10.5), (-3.5, 200)):
                ((x, y),) = slide.inside(np.array([centre]), size)
                left, top = math.floor(x - size / 2 + 0.5), math.floor(y - size / 2 + 0.5)
                np.testing.assert_array_equal(slide.read(x, y, size), image[top : top + size, left : left + size])


def test_a_slide_smaller_than_the_patch_stands_in_its_middle(noise):
    image, path = noise
    with open_slide(path) as slide:
        ((x, y),) = slide.inside(np.array([[3.0, 3.0]]), 200)
        patch = slide.read(x, y, 200)
        assert slide.reaches_over(np.array([[x, y]]), 200).all()
    np.testing.assert_array_equal(patch[55:145, 25:175], image)
    assert (patch[:55] == 255).all()


def test_what_the_file_states_goes_before_what_the_user_says(noise, tmp_path):
    image, path = noise
    with open_slide(path, um_per_px=0.5) as slide:
        assert slide.um_per_px == pytest.approx(0.25)
        assert slide.states_um_per_px
        assert slide.size_px == (WIDTH, HEIGHT)
    with open_slide(write(tmp_path / "unsaid.tif", image, um_per_px=None), um_per_px=0.5) as slide:
        assert slide.um_per_px == 0.5
        assert not slide.states_um_per_px


def test_no_resolution_is_refused(tmp_path):
    path = write(tmp_path / "unsaid.tif", ramps(64, 64), um_per_px=None)
    with pytest.raises(
        UnstatedResolution, match=r"unsaid\.tif.*doesn't state its um/px; say it in .*: data: \{um_per_px:"
    ) as bare:
        open_slide(path)
    assert "by_scanner" not in str(bare.value), "a slide of no scanner has no such remedy"
    with pytest.raises(UnstatedResolution, match=r'data: \{um_per_px_by_scanner: \{"XR": \.\.\.\}\}, or data: \{um_per_px:'):
        open_slide(path, scanner="XR")


def test_a_screens_resolution_is_not_a_scans(tmp_path):
    path = write(tmp_path / "screen.tif", ramps(64, 64), um_per_px=None, resolution=(72, 72), resolutionunit="INCH")
    with pytest.raises(SlideError, match=r"tag says 352\.8 x 352\.8 um/px"):
        open_slide(path)
    with open_slide(path, um_per_px=0.25) as slide:
        assert slide.um_per_px == 0.25


def test_oblong_px_are_refused(tmp_path):
    path = write(tmp_path / "oblong.tif", ramps(64, 64), um_per_px=None, resolution=(40000, 20000), resolutionunit="CENTIMETER")
    with pytest.raises(SlideError, match=r"oblong\.tif.*aren't square \(0\.25 x 0\.5 um/px\)"):
        open_slide(path)


def test_a_slide_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    path, opened = write(tmp_path / "a.tif", ramps(64, 64)), Path.open

    def refused(self, *arguments, **options):
        if self == path:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(SlideError, match=r"a\.tif: .*may not be read \(Permission denied\); check"):
        open_slide(path)


def test_a_missing_slide_is_named(tmp_path):
    with pytest.raises(SlideError, match=r"003\.tiff: no such slide"):
        open_slide(tmp_path / "003.tiff")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.74, 0.745, 0.76, 0.9, 0.99, 0.9999])
def test_a_slide_cut_short_is_refused_when_opened(tmp_path, share):
    whole = write(tmp_path / "whole.tif", np.random.default_rng(2).integers(0, 256, (256, 256, 3), dtype=np.uint8), levels=2)
    content = whole.read_bytes()
    short = tmp_path / "short.tif"
    short.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(
        SlideError, match=r"short\.tif: (cut short|damaged|a tiled TIFF, cut short|a TIFF with a damaged index)"
    ):
        open_slide(short)


def test_a_slide_that_openslide_opens_though_px_are_missing_is_refused(tmp_path):
    """As in a transfer that stopped in a file that keeps its overviews first: OpenSlide looks at no more than these."""
    path = write(tmp_path / "late.tif", ramps(256, 256), levels=1)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        offsets = list(tiff.pages[0].dataoffsets)
        offsets[-1] = path.stat().st_size - 100
        tiff.pages[0].tags["TileOffsets"].overwrite(offsets)
    openslide.OpenSlide(path).close()
    with pytest.raises(SlideError, match=r"late\.tif: cut short: [\d,]+ of [\d,]+ bytes"):
        open_slide(path)


@pytest.mark.parametrize(
    ("name", "content", "word"), [("a.jpg", b"\xff\xd8\xff" + bytes(64), r"\.jpg"), ("b.tif", b"", "empty")]
)
def test_another_format_is_refused(tmp_path, name, content, word):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SlideError, match=rf"{name}: .*{word}.*vips tiffsave IN OUT\.tif --tile"):
        open_slide(tmp_path / name)


def test_px_damaged_inside_are_an_error_that_names_the_slide(tmp_path):
    path = write(tmp_path / "hole.tif", ramps(256, 256), tile=(64, 64), compression="jpeg")
    with tifffile.TiffFile(path) as tiff:
        offset, length = tiff.pages[0].dataoffsets[9], tiff.pages[0].databytecounts[9]
    with path.open("r+b") as content:
        content.seek(offset)
        content.write(bytes(length))
    with open_slide(path) as slide:
        slide.read(20, 20, 16)
        with pytest.raises(SlideError, match=r"hole\.tif: damaged near level-0 px \(64, 128\), level 0"):
            slide.read(84, 148, 16)


@needs_real
@pytest.mark.parametrize(("name", "um_per_px"), [("canine_strip.tif", 0.25), ("CMU-1-Small-Region.svs", 0.499)])
def test_real_slides_read_as_openslide_reads_them(name, um_per_px):
    with open_slide(REAL / name) as slide, openslide.OpenSlide(REAL / name) as reference:
        assert slide.um_per_px == pytest.approx(um_per_px)
        x, y = TISSUE[name]
        patch = slide.read(x, y, 224)
        np.testing.assert_array_equal(patch, np.asarray(reference.read_region((x - 112, y - 112), 0, (224, 224)))[..., :3])
        assert patch.std() > 10  # tissue, not background


@needs_real
def test_real_slides_at_half_the_resolution_are_block_averages():
    for name in ("canine_strip.tif", "CMU-1-Small-Region.svs"):  # with and without a level of that resolution
        with open_slide(REAL / name) as slide:
            fine = slide.read(*TISSUE[name], 256).astype(float)
            coarse = slide.read(*TISSUE[name], 128, slide.um_per_px * 2).astype(float)
        blocks = fine.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
        assert np.corrcoef(blocks.ravel(), coarse.ravel())[0, 1] > 0.98
        assert abs(blocks.mean() - coarse.mean()) < 1
        shifted = np.corrcoef(blocks[:, 1:].ravel(), coarse[:, :-1].ravel())[0, 1]
        assert shifted < np.corrcoef(blocks.ravel(), coarse.ravel())[0, 1] - 0.01  # one px off is seen


@needs_real
def test_a_real_coarse_slide_is_enlarged_to_what_is_asked():
    name = "CMU-1-Small-Region.svs"
    with open_slide(REAL / name) as slide:
        patch = slide.read(*TISSUE[name], 224, 0.25)
        native = slide.read(*TISSUE[name], math.ceil(224 * 0.25 / 0.499))
    assert patch.shape == (224, 224, 3)
    assert abs(patch.mean() - native.mean()) < 1.5
