"""PNG behind the same interface: the px that are in it, white where there are none, and no file half read."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from mfcore.data.slides.slide import SlideError, UnstatedResolution, open_slide
from mfcore.data.slides.tiff import TiffReader

WIDTH, HEIGHT = 150, 90


def colours(mode="RGB"):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).convert(mode)


def save(path, image=None, **options):
    (image or colours()).save(path, **options)
    return path


def header_only(path, width, height, bit_depth=8, colour_type=2):
    """A PNG that says a size and holds no px."""

    def chunk(kind, data=b""):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    ihdr = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND"))
    return path


@pytest.mark.parametrize("um_per_px", [None, 0.2, 0.25, 0.31, 0.5])
def test_a_png_reads_as_the_tiff_of_the_same_px(tmp_path, um_per_px):
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", np.asarray(colours()), tile=(32, 32), photometric="rgb")
    with open_slide(save(tmp_path / "a.png"), 0.25) as png, open_slide(tmp_path / "a.tif", 0.25) as tiff:
        assert isinstance(tiff.reader, TiffReader)
        assert png.size_px == (WIDTH, HEIGHT)
        places = np.random.default_rng(1).uniform(-30, 180, (40, 2))
        for i in png.plan(places, 33, um_per_px):
            np.testing.assert_array_equal(png.read(*places[i], 33, um_per_px), tiff.read(*places[i], 33, um_per_px))


def test_grey_is_read_as_colour(tmp_path):
    image = colours("L")
    with open_slide(save(tmp_path / "a.png", image), 0.25) as slide:
        np.testing.assert_array_equal(slide.read(40, 40, 60), np.asarray(image.convert("RGB"))[10:70, 10:70])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1"])
def test_transparency_and_palettes_are_refused(tmp_path, mode):
    with pytest.raises(SlideError, match=r"a\.png: a PNG with .*; save it as one image of 8 bit RGB"):
        open_slide(save(tmp_path / "a.png", colours(mode)), 0.25)


def test_a_transparent_colour_is_refused(tmp_path):
    """Its px would be read as that colour, not as white."""
    colours().save(tmp_path / "a.png", transparency=(255, 0, 0))
    with pytest.raises(
        SlideError, match=r"a\.png: a PNG with RGB, a transparent colour, .*; save it as one image of 8 bit RGB"
    ):
        open_slide(tmp_path / "a.png", 0.25)


def test_the_image_is_decoded_once(tmp_path, monkeypatch):
    loads = []
    load = PngImageFile.load_prepare
    monkeypatch.setattr(PngImageFile, "load_prepare", lambda image: loads.append(1) or load(image))
    with open_slide(save(tmp_path / "a.png"), 0.25) as slide:
        assert not loads, "looking at it costs nothing"
        for x in (20, 60, 100):
            slide.read(x, 40, 30)
    assert len(loads) == 1


def test_the_resolution_is_the_files_where_a_microscope_can_have_it(tmp_path):
    with open_slide(save(tmp_path / "said.png", dpi=(25400 / 0.25,) * 2), 0.5) as slide:
        assert slide.um_per_px == pytest.approx(0.25, rel=1e-4)
        assert slide.states_um_per_px
    screen = save(tmp_path / "screen.png", dpi=(72, 72))
    with pytest.raises(UnstatedResolution, match=r"screen\.png.*352\.7 x 352\.7"):
        open_slide(screen)
    with pytest.raises(UnstatedResolution, match=r"unsaid\.png: the file doesn't state its um/px; say it"):
        open_slide(save(tmp_path / "unsaid.png"))
    with open_slide(screen, 0.5) as slide:
        assert slide.um_per_px == 0.5


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9])
def test_a_png_cut_short_is_refused(tmp_path, share):
    path = save(tmp_path / "short.png")
    content = path.read_bytes()
    path.write_bytes(content[: max(8, int(len(content) * share))])
    with pytest.raises(SlideError, match=r"short\.png: damaged .*fetch"), open_slide(path, 0.25) as slide:
        slide.read(40, 40, 30)


@pytest.mark.parametrize("at", [0.2, 0.5, 0.8, 0.98])
def test_px_damaged_inside_are_an_error_that_names_the_file(tmp_path, at):
    path = save(tmp_path / "bad.png")
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(SlideError, match=r"bad\.png: damaged .*fetch the file again"), open_slide(path, 0.25) as slide:
        slide.read(40, 40, 30)


def test_a_damaged_header_is_refused(tmp_path):
    path = save(tmp_path / "bad.png")
    content = bytearray(path.read_bytes())
    content[20] ^= 0xFF  # in IHDR, which has a checksum
    path.write_bytes(content)
    with pytest.raises(SlideError, match=r"bad\.png: damaged"):
        open_slide(path, 0.25)


def test_a_png_too_large_to_decode_whole_is_refused_with_the_way_to_convert_it(tmp_path, recwarn):
    path = header_only(tmp_path / "huge.png", 200_000, 100_000)
    with pytest.raises(SlideError, match=r"huge\.png: a PNG of 200,000 x 100,000 px .*vips tiffsave IN OUT\.tif --tile"):
        open_slide(path, 0.25)
    open_slide(header_only(tmp_path / "large.png", 11_000, 8_000), 0.25).close()  # above Pillow's limit, below ours
    assert not recwarn.list


@pytest.mark.parametrize("colour_type", [0, 2, 6])
def test_16_bits_a_channel_are_refused_and_not_cut_to_8(tmp_path, colour_type):
    path = header_only(tmp_path / "deep.png", 100, 100, bit_depth=16, colour_type=colour_type)
    with pytest.raises(SlideError, match=r"deep\.png: a PNG with .*; save it as one image of 8 bit RGB"):
        open_slide(path, 0.25)


def test_text_in_the_file_doesnt_matter(tmp_path):
    info = PngInfo()
    info.add_text("Comment", "x" * 9000, zip=False)
    path = save(tmp_path / "a.png", pnginfo=info)
    path.write_bytes(path.read_bytes() + b"behind the end")
    with open_slide(path, 0.25) as slide:
        np.testing.assert_array_equal(slide.read(75, 45, 60), np.asarray(colours())[15:75, 45:105])


def test_a_png_that_is_turned_when_shown_is_refused(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    with pytest.raises(
        SlideError,
        match=r"a\.png: a PNG with orientation 6, turned or mirrored when shown; save it turned; turn it upright: vips autorot",
    ):
        open_slide(save(tmp_path / "a.png", exif=exif), 0.25)
    exif[274] = 1
    with open_slide(save(tmp_path / "b.png", exif=exif), 0.25) as slide:
        np.testing.assert_array_equal(slide.read(75, 45, 60), np.asarray(colours())[15:75, 45:105])
