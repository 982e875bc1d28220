"""TIFF by its own tiles: the px that OpenSlide reads, each tile decoded once, and nothing unusual read wrongly."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings, strategies as st
from PIL import Image
from running import HANG_S

from mfcore.data.slides import tiff as slides_tiff
from mfcore.data.slides.openslide import OpenSlideReader
from mfcore.data.slides.reader import Window
from mfcore.data.slides.slide import Memory, SlideError, UnstatedResolution, open_slide
from mfcore.data.slides.tiff import TiffReader
from mfcore.data.synthetic.slides import write_pyramid

REAL = Path(__file__).parents[3].parent / "shared" / "data" / "slides"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real slides of ../shared/data are not here")
SCAN = {"resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}
WIDTH, HEIGHT = 700, 500


def texture(width=WIDTH, height=HEIGHT, seed=0):
    """Something to see at every scale."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 20 + 1, width // 20 + 1, 3), dtype=np.uint8))
    fine = rng.integers(-40, 41, (height, width, 3))
    return np.clip(np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int) + fine, 0, 255).astype(
        np.uint8
    )


def write(path, image=None, **options):
    options = {"tile": (64, 64), "photometric": "rgb", **SCAN, **options}
    tifffile.imwrite(path, texture() if image is None else image, **options)
    return path


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiff") / "pyramid.tif"
    write_pyramid(path, texture(1500, 1200), 0.25)
    return path


@pytest.fixture
def decoded(monkeypatch):
    """The tiles decoded, in order."""
    decode, keys = TiffReader.decode, []
    monkeypatch.setattr(TiffReader, "decode", lambda reader, key: keys.append(key) or decode(reader, key))
    return keys


def both(path):
    """A slide read by its tiles, and by OpenSlide."""
    by_tiles, by_openslide = open_slide(path), open_slide(path)
    assert isinstance(by_tiles.reader, TiffReader)
    by_openslide.reader.close()
    by_openslide.reader = OpenSlideReader(path)
    return by_tiles, by_openslide


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "jpeg"},
        {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (2, 2)},
        {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (2, 1)},
        {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (1, 1)},
        {"compression": "lzw", "predictor": True},
        {"compression": "deflate"},
        {"compression": "zstd"},
        {"compression": "packbits"},
        {},
        {"bigtiff": True},
        {"tile": (128, 64)},
    ],
)
def test_every_kind_of_tile_gives_openslides_px(tmp_path, options):
    by_tiles, by_openslide = both(write(tmp_path / "a.tif", **options))
    rng = np.random.default_rng(1)
    for x, y in rng.uniform(-20, 720, (25, 2)):
        np.testing.assert_array_equal(by_tiles.read(x, y, 100), by_openslide.read(x, y, 100))
        np.testing.assert_array_equal(by_tiles.read(x, y, 60, 0.4), by_openslide.read(x, y, 60, 0.4))
    by_tiles.close()
    by_openslide.close()


def test_levels_of_a_pyramid_give_openslides_px(pyramid):
    by_tiles, by_openslide = both(pyramid)
    for um_per_px in (None, 0.226, 0.3, 0.5, 0.7, 1.0, 1.7):
        for x, y in np.random.default_rng(2).uniform(-20, 1500, (12, 2)):
            np.testing.assert_array_equal(by_tiles.read(x, y, 90, um_per_px), by_openslide.read(x, y, 90, um_per_px))


@needs_real
@pytest.mark.parametrize("name", ["canine_strip.tif", "CMU-1-Small-Region.svs"])
def test_real_slides_give_openslides_px(name):
    by_tiles, by_openslide = both(REAL / name)
    width, height = by_tiles.size_px
    for x, y in np.random.default_rng(3).uniform(0, 1, (40, 2)) * (width, height):
        np.testing.assert_array_equal(by_tiles.read(x, y, 224), by_openslide.read(x, y, 224))
        scale = by_tiles.um_per_px * 1.1  # from level 0; a coarser one of the strip lies on no grid that OpenSlide reads
        np.testing.assert_array_equal(by_tiles.read(x, y, 224, scale), by_openslide.read(x, y, 224, scale))


@needs_real
def test_a_level_is_read_on_its_own_grid():
    """The strip's second level is 2.0001 times smaller; OpenSlide, asked in level-0 px, blurs it by a fraction of a px."""
    path = REAL / "canine_strip.tif"
    by_tiles, by_openslide = both(path)
    level = tifffile.imread(path, key=1)
    np.testing.assert_array_equal(by_tiles.reader.region(Window(1, 1500, 1300, 99, 77)), level[1300:1377, 1500:1599])
    mean = [np.mean([s.read(3000 + 31 * i, 2600, 224, 0.55).astype(float) for i in range(9)]) for s in (by_tiles, by_openslide)]
    one, two = (s.read(3000, 2600, 224, 0.55).astype(int) for s in (by_tiles, by_openslide))
    assert mean[0] == pytest.approx(mean[1], abs=0.2)
    assert np.abs(one - two).mean() < 3


centres = st.lists(
    st.tuples(st.integers(-200, 3200).map(lambda n: n / 2) | st.floats(-100, 1600), st.floats(-100, 1300)),
    min_size=1,
    max_size=25,
)


@settings(deadline=None, max_examples=60)
@given(
    centres=centres,
    size=st.integers(1, 300),
    um_per_px=st.sampled_from([None, 0.2, 0.25, 0.26, 0.5, 1.3]),
    n_threads=st.sampled_from([0, 4]),
)
def test_planned_reads_are_single_reads_and_decode_each_tile_once(pyramid, centres, size, um_per_px, n_threads):
    decode, keys = TiffReader.decode, []
    with pytest.MonkeyPatch.context() as patched, open_slide(pyramid) as single, open_slide(pyramid) as planned:
        expected = [single.read(x, y, size, um_per_px) for x, y in centres]
        patched.setattr(TiffReader, "decode", lambda reader, key: keys.append(key) or decode(reader, key))
        order = planned.plan(np.array(centres), size, um_per_px)
        assert sorted(order) == list(range(len(centres)))
        if n_threads:
            with ThreadPoolExecutor(n_threads) as pool:
                found = list(pool.map(lambda i: planned.read(*centres[i], size, um_per_px), order))
        else:
            found = [planned.read(*centres[i], size, um_per_px) for i in order]
        assert len(keys) == len(set(keys))
    for i, patch in zip(order, found, strict=True):
        np.testing.assert_array_equal(patch, expected[i])


def test_little_memory_gives_the_same_px(pyramid):
    """Room for six tiles: reads that come back to a place decode again, and no more than six are held."""
    memory = Memory(6 * 256 * 256 * 3)
    rng = np.random.default_rng(5)
    places = np.concatenate([rng.uniform(100, 1400, (40, 2)), rng.uniform(100, 1100, (40, 2))])
    with open_slide(pyramid) as single, open_slide(pyramid, memory=memory) as planned:
        order = planned.plan(places, 200)
        for i in rng.permutation(order):  # the worst order
            np.testing.assert_array_equal(planned.read(*places[i], 200), single.read(*places[i], 200))
            assert memory.n_bytes <= memory.limit_bytes
    assert memory.n_bytes == 0


SMOOTH = np.empty((320, 448, 3), np.uint8)
SMOOTH[..., 0], SMOOTH[..., 1], SMOOTH[..., 2] = np.arange(448) * 255 // 448, np.arange(320)[:, None] * 255 // 320, 128
GREY = SMOOTH[..., 0]
HALF = np.where(np.arange(448) < 224, 255, 0).astype(np.uint8) * np.ones((320, 1), np.uint8)  # opacity
YCC = np.asarray(Image.fromarray(SMOOTH).convert("YCbCr"))


def with_tag(code, value):
    """Set a tag of a written file's first page; 266, which tifffile doesn't write, takes the place of its orientation."""

    def change(path):
        with tifffile.TiffFile(path, mode="r+b") as tiff:
            tag = tiff.pages[0].tags[274 if code == 266 else code]
            tag.overwrite(value)
            place = tag.offset
        if code == 266:
            content = bytearray(path.read_bytes())
            content[place : place + 2] = code.to_bytes(2, "little")
            path.write_bytes(content)

    return change


ORIENTED = {"extratags": [(274, 3, 1, 1, True)]}
# What is written, how, what of it is changed then, and the px that are right; None: refused, whoever reads.
UNUSUAL = {
    **{f"orientation {k}": (SMOOTH, {"extratags": [(274, 3, 1, k, True)]}, None, None) for k in range(2, 9)},
    "orientation 3, JPEG": (SMOOTH, {"extratags": [(274, 3, 1, 3, True)], "compression": "jpeg"}, None, None),
    "orientation 1": (SMOOTH, ORIENTED, None, SMOOTH),
    "bits in reverse": (SMOOTH, ORIENTED, with_tag(266, 2), None),
    "channels apart": (np.moveaxis(SMOOTH, -1, 0), {"planarconfig": "separate"}, None, None),
    "16 bits": (SMOOTH.astype(np.uint16) * 257, {}, None, None),
    "signed": (SMOOTH.astype(np.int8), {}, None, None),
    "floating-point": (SMOOTH.astype(np.float32) / 255, {}, None, None),
    "1 bit": (GREY > 100, {"photometric": "minisblack"}, None, None),
    "grey": (GREY, {"photometric": "minisblack"}, None, None),
    "grey from white": (255 - GREY, {"photometric": "miniswhite"}, None, None),
    "a palette": (GREY, {"photometric": "palette", "colormap": np.stack([np.arange(256)] * 3) * 257}, None, None),
    "CMYK": (np.dstack([255 - SMOOTH, 0 * GREY]), {"photometric": "separated"}, None, None),
    "CIELAB": (SMOOTH, {"photometric": "cielab"}, None, None),
    "YCbCr, not JPEG": (YCC, {}, with_tag(262, 6), None),
    "YCbCr in JPEG": (YCC, {"photometric": "ycbcr", "subsampling": (1, 1), "compression": "jpeg"}, None, SMOOTH),
    "YCbCr in JPEG, halved": (YCC, {"photometric": "ycbcr", "subsampling": (2, 2), "compression": "jpeg"}, None, SMOOTH),
    "JPEG that says YCbCr, a tag that says RGB": (
        SMOOTH,
        {"photometric": "ycbcr", "subsampling": (1, 1), "compression": "jpeg"},
        with_tag(262, 2),
        SMOOTH,
    ),
    "alpha": (np.dstack([SMOOTH, HALF]), {"extrasamples": ["unassalpha"]}, None, None),
    "alpha, multiplied": (np.dstack([SMOOTH * (HALF[..., None] > 0), HALF]), {"extrasamples": ["assocalpha"]}, None, None),
    "a fourth channel": (np.dstack([SMOOTH, HALF // 2]), {"extrasamples": ["unspecified"]}, None, None),
    "five channels": (np.dstack([SMOOTH, HALF, HALF]), {"extrasamples": ["unspecified"] * 2}, None, None),
    "a predictor": (SMOOTH, {"compression": "lzw", "predictor": True}, None, SMOOTH),
    "a stack in depth": (np.stack([SMOOTH, SMOOTH]), {"volumetric": True}, None, None),
    **{f"{codec}": (SMOOTH, {"compression": codec}, None, None) for codec in ("jpeg2000", "webp", "lzma")},
}


@pytest.mark.parametrize("is_tiled", [True, False], ids=["tiled", "striped"])
@pytest.mark.parametrize("kind", UNUSUAL)
def test_an_unusual_tiff_is_read_as_its_tags_say_or_refused(tmp_path, kind, is_tiled):
    """Never other px: what neither OpenSlide nor tiles read rightly is refused by name, in tiles as in strips."""
    image, options, change, right = UNUSUAL[kind]
    tile = (1, 64, 64) if "volumetric" in options else (64, 64)
    layout = {"tile": tile} if is_tiled else {"tile": None, "rowsperstrip": None if "volumetric" in options else 16}
    path = write(tmp_path / "a.tif", image, **{"metadata": None, **layout, **options})
    if change:
        change(path)
    try:
        with open_slide(path) as slide:
            px = slide.read(224, 160, 448)[64:384]
    except SlideError as error:
        assert right is None, "upright 8-bit RGB is read"
        named = {"orient": "orientation", "bits in": "fillorder", "signed": "sampleformat INT", "floating": "IEEEFP"}
        named |= {"1 bit": "bitspersample 1"}
        word = next((word for start, word in named.items() if kind.startswith(start)), "")
        remedy = "vips autorot IN 'OUT.tif" if "orientation" in kind else "vips tiffsave IN OUT.tif --tile"
        assert f"a.tif: a {'tiled' if is_tiled else 'striped'} TIFF with " in str(error)
        assert word in str(error) and remedy in str(error) and "damaged" not in str(error)
    else:
        assert right is not None, "px that nobody reads rightly"
        difference = np.abs(px.astype(int) - right)
        assert difference.max() <= (8 if "JPEG" in kind else 0)


def test_a_level_that_is_turned_is_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(SMOOTH, tile=(64, 64), photometric="rgb", **SCAN)
        turned = [(274, 3, 1, 3, True)]
        tiff.write(SMOOTH[::2, ::2].copy(), tile=(64, 64), photometric="rgb", subfiletype=1, extratags=turned, **SCAN)
    with pytest.raises(SlideError, match=r"a\.tif: a tiled TIFF with orientation 3, turned or mirrored when shown; turn it"):
        open_slide(tmp_path / "a.tif")


def test_a_tile_without_bytes_is_openslides_to_fill(tmp_path):
    path = write(tmp_path / "a.tif")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        n_bytes = list(tiff.pages[0].databytecounts)
        n_bytes[3] = 0
        tiff.pages[0].tags["TileByteCounts"].overwrite(n_bytes)
    with open_slide(path) as slide:
        assert isinstance(slide.reader, OpenSlideReader)


def damage(path, k, change):
    with tifffile.TiffFile(path) as tiff:
        offset, length = tiff.pages[0].dataoffsets[k], tiff.pages[0].databytecounts[k]
    content = bytearray(path.read_bytes())
    content[offset : offset + length] = change(content[offset : offset + length])
    path.write_bytes(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: bytes(len(data)),
        lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),  # a hole that a transfer left
    ],
)
def test_damaged_jpeg_is_an_error_with_its_place(tmp_path, change):
    path = write(tmp_path / "bad.tif", compression="jpeg", tile=(128, 128))
    with open_slide(path) as slide:
        k = int(np.argsort(slide.reader._levels[0].n_bytes)[0])
    damage(path, k, change)
    row, column = divmod(k, -(-WIDTH // 128))
    with open_slide(path) as slide:
        assert isinstance(slide.reader, TiffReader)
        with pytest.raises(SlideError, match=rf"bad\.tif: damaged near level-0 px \({column * 128}, {row * 128}\)"):
            slide.read(column * 128 + 64, row * 128 + 60, 20)


def test_damaged_jpeg_is_refused_where_openslide_refuses_it(tmp_path):
    """A decoder that fills what it can't read with grey would put patches into the store that no slide shows."""
    whole = write(tmp_path / "whole.tif", compression="jpeg", tile=(128, 128)).read_bytes()
    rng, verdicts = np.random.default_rng(0), set()
    for i in range(40):
        path = tmp_path / f"{i}.tif"
        path.write_bytes(whole)
        place, bit = int(rng.integers(700, 4000)), 1 << int(rng.integers(8))
        damage(path, 7, lambda data, at=place, bit=bit: data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
        try:
            with openslide.OpenSlide(path) as reference:
                expected = np.asarray(reference.read_region((128, 128), 0, (128, 128)).convert("RGB"))
        except openslide.OpenSlideError:
            expected = None
        with open_slide(path) as slide:
            if expected is None:
                with pytest.raises(SlideError, match="damaged"):
                    slide.read(192, 192, 128)
            else:
                np.testing.assert_array_equal(slide.read(192, 192, 128), expected)
        verdicts.add(expected is None)
    assert verdicts == {True, False}


def test_threads_that_want_a_damaged_tile_all_hear_of_it(tmp_path):
    path = write(tmp_path / "bad.tif", compression="jpeg")
    with open_slide(path) as slide:
        k = int(np.argsort(slide.reader._levels[0].n_bytes)[0])
    damage(path, k, lambda data: bytes(len(data)))
    row, column = divmod(k, -(-WIDTH // 64))
    with open_slide(path) as slide, ThreadPoolExecutor(8) as pool:
        slide.plan(np.full((32, 2), [column * 64 + 30, row * 64 + 30]), 10)
        reads = [pool.submit(slide.read, column * 64 + 30, row * 64 + 30, 10) for _ in range(32)]
        assert all("damaged near" in str(read.exception(timeout=HANG_S)) for read in reads)


@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "jpeg"}, {"compression": "lzw"}, {"rowsperstrip": HEIGHT}, {"rowsperstrip": 7}, {"bigtiff": True}],
)
def test_a_striped_tiff_is_read_by_its_strips(tmp_path, decoded, options):
    image = texture()
    path = write(tmp_path / "striped.tif", image, tile=None, **{"rowsperstrip": 16, **options})
    image = tifffile.imread(path) if "compression" in options else image
    places = np.random.default_rng(0).uniform(-10, 500, (30, 2))
    with open_slide(path) as slide:
        assert slide.um_per_px == pytest.approx(0.25)
        assert slide.size_px == (WIDTH, HEIGHT)
        canvas = np.full((HEIGHT + 200, WIDTH + 200, 3), 255, np.uint8)
        canvas[100:-100, 100:-100] = image
        for i in slide.plan(places, 40):
            left, top = np.floor(places[i] - 20 + 0.5).astype(int) + 100
            np.testing.assert_array_equal(slide.read(*places[i], 40), canvas[top : top + 40, left : left + 40])
    assert len(decoded) == len(set(decoded))


@pytest.mark.parametrize(
    ("image", "options", "word"),
    [
        (np.zeros((64, 64, 3), np.uint16), {}, "bitspersample 16"),
        (np.zeros((64, 64, 4), np.uint8), {"photometric": "separated"}, "photometric SEPARATED"),
        (np.zeros((64, 64), np.uint8), {"photometric": "minisblack"}, "photometric MINISBLACK"),
        (np.zeros((3, 64, 64), np.uint8), {"planarconfig": "separate"}, "planarconfig SEPARATE"),
        (np.zeros((64, 64, 3), np.uint8), {"compression": "webp"}, "compression WEBP"),
        (np.zeros((64, 64, 4), np.uint8), {"extrasamples": ["unassalpha"]}, "samplesperpixel 4"),
    ],
)
def test_a_striped_tiff_that_isnt_8_bit_rgb_is_refused_with_the_way_to_convert_it(tmp_path, image, options, word):
    path = write(tmp_path / "odd.tif", image, tile=None, **options)
    with pytest.raises(SlideError, match=rf"odd\.tif: a striped TIFF with .*{word}.*vips tiffsave IN OUT\.tif --tile"):
        open_slide(path)


def test_a_stack_of_images_is_refused_and_a_thumbnail_is_not(tmp_path):
    image = texture(64, 64)
    with tifffile.TiffWriter(tmp_path / "stack.tif") as tiff:
        for _ in range(3):
            tiff.write(image, photometric="rgb", **SCAN)
    with pytest.raises(SlideError, match=r"stack\.tif: a striped TIFF of 3 images; keep the one"):
        open_slide(tmp_path / "stack.tif")
    with tifffile.TiffWriter(tmp_path / "thumbnail.tif") as tiff:
        tiff.write(image, photometric="rgb", **SCAN)
        tiff.write(image[::4, ::4], photometric="rgb", subfiletype=1)
    with open_slide(tmp_path / "thumbnail.tif") as slide:
        np.testing.assert_array_equal(slide.read(32, 32, 64), image)


def test_a_striped_tiff_without_resolution_needs_the_studys(tmp_path):
    path = write(tmp_path / "unsaid.tif", tile=None, resolution=(72, 72), resolutionunit="INCH")
    with pytest.raises(UnstatedResolution, match=r"unsaid\.tif.*352\.8 x 352\.8 um/px"):
        open_slide(path)
    with open_slide(path, 0.5) as slide:
        assert (slide.um_per_px, slide.states_um_per_px) == (0.5, False)


def test_a_striped_tiff_cut_short_is_refused(tmp_path):
    path = write(tmp_path / "short.tif", tile=None)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(SlideError, match=r"short\.tif: cut short"):
        open_slide(path)


def test_strips_too_large_to_decode_whole_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(slides_tiff, "MAX_TILE_BYTES", 1000)
    path = write(tmp_path / "one_strip.tif", tile=None, rowsperstrip=HEIGHT)
    with pytest.raises(SlideError, match=r"700 x 500 px in parts of 1,050,000 bytes.*vips"):
        open_slide(path)


def test_a_closed_slide_gives_its_memory_back(pyramid):
    memory = Memory()
    with open_slide(pyramid, memory=memory) as slide:
        slide.read(100, 100, 50)
        assert memory.n_bytes > 0
    assert memory.n_bytes == 0


def test_aperios_description_is_openslides_to_read(tmp_path):
    """Geometry, levels and um/px stay OpenSlide's where tiles are decoded here."""
    description = "Aperio Image Library v11\n700x500|AppMag = 20|MPP = 0.4990"
    path = write(tmp_path / "a.svs", description=description, resolution=None, resolutionunit=None, metadata=None)
    with open_slide(path) as slide:
        assert slide.um_per_px == 0.499
        assert isinstance(slide.reader, TiffReader)
        assert json.dumps(slide.reader.downsamples) == "[1.0]"
