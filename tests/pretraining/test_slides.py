"""Folders of slides for pretraining; a place without slides is refused by its key."""

import struct

import pytest
from made_slides import pattern, smaller, write_dicom

from mfcore.data.slides.openslide import series_of
from mfcore.data.slides.slide import SlideError, open_slide
from mfcore.pretraining import slides as slide_files
from mfcore.pretraining.slides import PatchingError
from mfcore.study import arms as study_arms
from mfcore.study.config import Data, Pretraining, Settings

STUDY = Settings(name="s", title="s", data=Data(source="csv"))


@pytest.fixture
def folder(tmp_path):
    """Files with a slide's ending; nothing here opens them."""
    place = tmp_path / "slides"
    place.mkdir()
    for name in "abc":
        (place / f"{name}.tif").write_bytes(name.encode() * 100)
    return place


def slides_of(place, data_folder):
    return study_arms.slides_of(STUDY, Pretraining("p", slides=place), data_folder)


def test_links_to_folders_are_followed_and_each_folder_is_seen_once(folder, tmp_path, monkeypatch):
    """As cohorts are often laid together; a link that leads back up doesn't lead round and round."""
    cohorts = tmp_path / "cohorts"
    (cohorts / "own").mkdir(parents=True)
    (cohorts / "own" / "d.tif").write_bytes(b"d")
    (cohorts / "linked").symlink_to(folder)
    (cohorts / "twice").symlink_to(folder)
    (cohorts / "own" / "up").symlink_to(cohorts)
    expected = ["linked/a.tif", "linked/b.tif", "linked/c.tif", "own/d.tif"]
    for place in (str(cohorts), "cohorts/", "~/cohorts"):
        monkeypatch.setenv("HOME", str(tmp_path))
        slides = slides_of(place, tmp_path)
        assert [(file.slide_id, file.path) for file in slides] == [(name, str(cohorts / name)) for name in expected]


def test_a_folder_that_may_not_be_read_is_said(folder, tmp_path, monkeypatch):
    """Not left out: its slides would silently be missing in the pretraining."""

    def refused(at):
        raise PermissionError(13, "Permission denied", str(at))

    monkeypatch.setattr(slide_files.os, "scandir", refused)
    with pytest.raises(PatchingError, match=r"slides: .*slides: can't be listed .*denied.*; give this user the right"):
        slides_of("slides", tmp_path)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nowhere/", r"pretraining\[p\]\.slides: .*nowhere: there is no such folder; .* in the data folder"),
        ("s3://bucket/", r"pretraining\[p\]\.slides: .*bucket: there is no such folder"),
        ("empty", r"pretraining\[p\]\.slides: .*empty: no slide below it; one ends in \.svs"),
    ],
)
def test_a_place_without_slides_is_refused_by_its_key(tmp_path, place, said):
    (tmp_path / "empty").mkdir()
    with pytest.raises(PatchingError, match=said):
        slides_of(place, tmp_path)


def test_a_slide_of_several_dicom_files_is_one_slide(tmp_path):
    """However many levels it has; its label and its overview are none."""
    image = pattern(512, 512)
    write_dicom(tmp_path / "slides" / "one", [image, smaller(image, 2), smaller(image, 4)], name="{}.dcm", series="1.2.3.4")
    write_dicom(tmp_path / "slides" / "two", [image], name="{}.dcm", series="1.2.3.5")
    write_dicom(tmp_path / "slides" / "two", [image], name="label{}.dcm", series="1.2.3.5", kinds=("LABEL",))
    write_dicom(tmp_path / "slides" / "two", [image], name="!{}.dcm", series="1.2.3.6", kinds=("OVERVIEW",))
    slides = slides_of("slides", tmp_path)
    assert [slide.slide_id for slide in slides] == ["one/0.dcm", "two/0.dcm"]
    with open_slide(slides[0].path) as slide:
        assert slide.size_px == (512, 512) and slide.reader.downsamples == (1, 2, 4)


def test_a_damaged_dicom_file_is_listed_and_said_when_it_is_opened(tmp_path):
    write_dicom(tmp_path / "slides", [pattern(256, 256)], name="a.dcm")
    whole = (tmp_path / "slides" / "a.dcm").read_bytes()
    for n_bytes in (100, 150, 300, 500):
        (tmp_path / "slides" / "a.dcm").write_bytes(whole[:n_bytes])
        (slide,) = slides_of("slides", tmp_path)
        with pytest.raises(SlideError):
            open_slide(slide.path)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
def test_a_dicom_series_is_found_behind_sequences_of_unsaid_length(tmp_path, syntax):
    """Explicit and implicit; items and sequences that end where they say so."""

    def element(group, number, kind, value, unsaid=False):
        length = b"\xff\xff\xff\xff" if unsaid else struct.pack("<I", len(value))
        if group != 2 and syntax == "1.2.840.10008.1.2":
            return struct.pack("<HH", group, number) + length + value
        length = b"\0\0" + length if kind == b"SQ" else length[:2]
        return struct.pack("<HH2s", group, number, kind) + length + value

    inner = element(0x0008, 0x0100, b"SH", b"code") + element(0x0020, 0x000E, b"UI", b"9.9.9.9\0")
    item, item_end, end = (
        struct.pack("<HHI", 0xFFFE, number, n) for number, n in ((0xE000, 0xFFFFFFFF), (0xE00D, 0), (0xE0DD, 0))
    )
    nested = element(0x0008, 0x1140, b"SQ", item + inner + item_end + end, unsaid=True)
    said = struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner
    content = element(0x0002, 0x0010, b"UI", syntax.encode() + b"\0" * (len(syntax) % 2))
    content += element(0x0008, 0x0008, b"CS", b"DERIVED\\PRIMARY\\LABEL\\NONE ")
    content += element(0x0008, 0x1115, b"SQ", item + nested + inner + item_end + said + end, unsaid=True)
    content += element(0x0020, 0x000D, b"UI", b"1.2.3\0") + element(0x0020, 0x000E, b"UI", b"1.2.3.4\0")
    content += element(0x0028, 0x0010, b"US", b"\0\1")
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + content)
    assert series_of(tmp_path / "a.dcm") == ("1.2.3.4", "LABEL")


def test_data_files_of_a_slide_are_no_slides(tmp_path):
    """Of 3DHistech's and Hamamatsu's formats, each with an index and a folder or files of data."""
    names = "a.mrxs a/Slidedat.ini a/Data0001.dat b.vms b.jpg b(1,0).jpg b.opt c.vmu c.ngr d.ndpi"
    (tmp_path / "slides" / "a").mkdir(parents=True)
    for name in names.split():
        (tmp_path / "slides" / name).write_bytes(b"x")
    assert [slide.slide_id for slide in slides_of("slides", tmp_path)] == ["a.mrxs", "b.vms", "c.vmu", "d.ndpi"]
