"""A patch shows what lies around its centre: by every reader, in every kind of pyramid, at every resolution, up to the edge."""

import functools

import numpy as np
import pytest
import tifffile
from made_slides import UM_PER_PX, off_by, pattern, smaller, write_dicom, write_scn, write_tiff
from PIL import Image

from mfcore.data.slides.openslide import OpenSlideReader
from mfcore.data.slides.reader import whole_downsample
from mfcore.data.slides.slide import SlideError, open_slide
from mfcore.data.slides.tiff import TiffReader
from mfcore.pretraining.slides import SlideFile
from mfcore.pretraining.source import Source
from mfcore.study.config import OnlinePatches

SIZE_PX = 64
RESOLUTIONS = (0.25, 0.3, 0.5, 0.77, 1.0, 1.7, 2.0, 4.0)  # um/px
READERS = {"tiles": TiffReader, "strips": TiffReader, "dicom": OpenSlideReader, "png": TiffReader}
PYRAMIDS = {
    "halves, exact": ((1536, 1280), (2, 4, 8), "down"),
    "halves, rounded down": ((1511, 1207), (2, 4, 8, 16), "down"),
    "halves, rounded up": ((1511, 1207), (2, 4, 8, 16), "up"),
    "quarters, rounded down": ((1511, 1207), (4, 16), "down"),
    "thirds, rounded down": ((1511, 1207), (3, 9), "down"),
    "thirds, rounded up": ((1511, 1207), (3, 9), "up"),
    "fives and sevens": ((1511, 1207), (5, 7), "down"),
}
ONE_LEVEL = {"one level": ((1511, 1207), (), "down")}
KINDS = [(reader, name) for reader in ("tiles", "dicom") for name in PYRAMIDS]
KINDS += [(reader, "one level") for reader in ("strips", "png")]


@functools.cache
def levels_of(name):
    """A pattern, and what a pyramid of that name has of it."""
    (width, height), factors, rounded = (PYRAMIDS | ONE_LEVEL)[name]
    image = pattern(width, height)
    return [image, *(smaller(image, factor, rounded) for factor in factors)]


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def kind(request, tmp_path_factory):
    """The name of a reader, and a file of it."""
    (reader, name), folder = request.param, tmp_path_factory.mktemp("kind")
    levels = levels_of(name)
    if reader == "tiles":
        return reader, write_tiff(folder / "a.tif", levels, compression="jpeg", compressionargs={"level": 95})
    if reader == "dicom":
        return reader, write_dicom(folder, levels)
    if reader == "strips":
        return reader, write_tiff(folder / "a.tif", levels, tile=None, rowsperstrip=64)
    Image.fromarray(levels[0]).save(folder / "a.png", dpi=(25400 / UM_PER_PX,) * 2)
    return reader, folder / "a.png"


def assert_in_place(patch, centre, um_per_px):
    """To a tenth of a level-0 px, and a fiftieth of a px of the patch."""
    scale = um_per_px / UM_PER_PX
    assert np.abs(off_by(patch, centre, scale)).max() < 0.1 + 0.02 * (scale > 1) * scale, (centre, um_per_px)


def test_a_patch_lies_around_its_centre(kind):
    reader, file = kind
    with open_slide(file) as slide:
        assert type(slide.reader) is READERS[reader]
        width, height = slide.size_px
        wanted = np.array([(0, height), (width, height), (700.5, 600.5), (801.3, 0)])
        for um_per_px in RESOLUTIONS:
            for x, y in slide.inside(wanted, SIZE_PX, um_per_px):
                patch = slide.read(x, y, SIZE_PX, um_per_px)
                if um_per_px == UM_PER_PX:  # cut on the grid
                    x, y = np.floor(np.array([x, y]) + 0.5)
                assert_in_place(patch, (x, y), um_per_px)


def test_a_patch_drawn_online_lies_around_its_centre(kind):
    asked, slide = RESOLUTIONS[:-1], SlideFile("a", str(kind[1]))
    with Source([slide], OnlinePatches(um_per_px=asked, size_px=SIZE_PX, min_tissue=0.5), 0) as source:
        drawn = [source.read(number) for number in range(24)]
    assert len({patch.um_per_px for patch in drawn}) > 4
    for patch in drawn:
        assert_in_place(patch.image, (patch.x_l0_px, patch.y_l0_px), patch.um_per_px)


@pytest.mark.parametrize("um_per_px", RESOLUTIONS[:-1])
def test_a_patch_of_an_area_within_the_plane_lies_around_its_centre(tmp_path, um_per_px):
    image, _, quarter, _ = levels_of("halves, exact")
    path = write_scn(tmp_path / "a.scn", [image, quarter], at=(1000, 800))
    with open_slide(path) as slide:
        for x, y in ((768, 640), (500, 900)):
            assert_in_place(slide.read(x + 1000, y + 800, SIZE_PX, um_per_px), (x, y), um_per_px)


def test_damage_where_a_level_is_looked_at_is_said_by_the_read_that_meets_it(tmp_path):
    levels = levels_of("halves, rounded down")
    path = write_tiff(tmp_path / "a.tif", levels, compression="jpeg", compressionargs={"level": 95})
    with tifffile.TiffFile(path) as tiff:
        holes = list(zip(tiff.pages[1].dataoffsets, tiff.pages[1].databytecounts, strict=True))
    with path.open("r+b") as content:
        for offset, n_bytes in holes:
            content.seek(offset)
            content.write(bytes(n_bytes))
    with open_slide(path) as slide:
        assert slide.reader.downsamples == (1, 2, 4, 8, 16)
        assert_in_place(slide.read(700, 600, SIZE_PX), (700, 600), UM_PER_PX)
        with pytest.raises(SlideError, match="damaged near level-0 px"):
            slide.read(700, 600, SIZE_PX, 0.5)


def test_a_jpeg_is_no_slide(tmp_path):
    Image.fromarray(pattern(200, 100)).save(tmp_path / "a.jpg")
    with pytest.raises(SlideError, match=r"a\.jpg: \.jpg, not a format"):
        open_slide(tmp_path / "a.jpg", UM_PER_PX)


def test_how_a_pattern_is_read_sees_a_tenth_of_a_px():
    """What the tests here rely on; the long wave tells a mistake of more than a fine one."""
    for shift in ((0, 0), (0.1, 0), (-0.25, 0.5), (3, -5), (70.05, 1), (-1, 130)):
        patch = pattern(SIZE_PX, SIZE_PX, 400 + shift[0], 300 + shift[1])
        assert np.abs(off_by(patch, (400 + SIZE_PX / 2, 300 + SIZE_PX / 2), 1) - shift).max() < 0.03


@pytest.mark.parametrize(
    ("size_px", "level_size_px", "said", "expected"),
    [
        ((100_015, 80_003), (6250, 5000), 16.0015, 16),
        ((100_015, 80_003), (6251, 5001), 15.998, 16),
        ((100_015, 80_003), (6250, 5001), 16.0, 16),
        ((7215, 5412), (901, 676), 8.0068, 8),
        ((1501, 1203), (500, 401), 3.001, 3),
        ((45_056, 45_056), (3072, 3072), 16.0, 16),  # padded: its reader knows better
        ((45_056, 45_056), (3072, 3072), 14.667, 14.667),
        ((1000, 800), (400, 320), 2.5, 2.5),
        ((1500, 1200), (23, 18), 65.94, 64),  # 64, 65 and 66 explain both sides
        ((1500, 1200), (23, 18), 65.0, 65),
        ((100, 100), (1, 1), 100.0, 100),
        ((100, 3), (100, 3), 1.0, 1),
    ],
)
def test_a_level_is_a_whole_number_of_times_smaller_where_one_explains_both_sides(size_px, level_size_px, said, expected):
    assert whole_downsample(size_px, level_size_px, said) == expected
