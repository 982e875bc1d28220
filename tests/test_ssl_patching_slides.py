"""Where slides for pretraining may lie: folders and whatever fsspec opens; a place without any is refused by its key."""

import functools
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest

from mfcore.config import Data, Study
from mfcore.config_pretraining import Pretraining
from mfcore.slides import SlideError
from mfcore.ssl import patching, patching_fetched, patching_slides

STUDY = Study(name="s", title="s", data=Data(source="csv"))


@pytest.fixture
def folder(tmp_path):
    """Files with a slide's ending; nothing here opens them."""
    place = tmp_path / "slides"
    place.mkdir()
    for name in "abc":
        (place / f"{name}.tif").write_bytes(name.encode() * 100)
    return place


def slides_of(place, data_folder):
    return patching.slides_of(STUDY, Pretraining("p", slides=place), data_folder)


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

    monkeypatch.setattr(patching_slides.os, "scandir", refused)
    with pytest.raises(
        patching.PatchingError, match=r"slides: .*slides: can't be listed \(PermissionError.*; give this user the right"
    ):
        slides_of("slides", tmp_path)


@pytest.mark.parametrize("place", ["zip://::{0}", "zip://cohort::file://{0}", "zip://cohort/a.tif::file://{0}"])
def test_slides_come_out_of_an_archive(folder, tmp_path, place):
    """An address within another, as fsspec chains them."""
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.write(folder / "a.tif", "cohort/a.tif")
    (slide,) = slides_of(place.format(tmp_path / "packed.zip"), tmp_path)
    assert slide.slide_id == ("cohort/a.tif" if place.startswith("zip://::") else "a.tif")
    fetched = patching_fetched.fetch(slide.path, tmp_path)
    assert fetched.name == "a.tif" and fetched.read_bytes() == (folder / "a.tif").read_bytes()


@pytest.mark.parametrize("place", ["simplecache::file://{0}/", "simplecache::file://{0}", "file://{0}/"])
def test_slides_come_through_a_cache(folder, tmp_path, place):
    """Of chained addresses the last may be the one that names the folder."""
    slides = slides_of(place.format(folder), tmp_path)
    assert [file.slide_id for file in slides] == ["a.tif", "b.tif", "c.tif"]
    assert slides[1].path == place.format(folder).rstrip("/") + "/b.tif"
    assert patching_fetched.fetch(slides[1].path, tmp_path).read_bytes() == (folder / "b.tif").read_bytes()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # fsspec leaves closing a file to Python
@pytest.mark.parametrize("within", ["", "cohort", "cohort/"])
def test_slides_come_over_http(folder, tmp_path, within):
    """As a web server lists a folder; by fsspec's HTTP of requests, as aiohttp, which its other one needs, may not be here."""
    pytest.importorskip("fsspec.implementations.http_sync", reason="this fsspec is older than its HTTP of requests")
    (tmp_path / "cohort").symlink_to(folder)
    (folder / "notes.txt").write_text("no slide")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            slides = slides_of(f"http://127.0.0.1:{server.server_port}/{within}", tmp_path)
            names = [file.slide_id for file in slides]
            fetched = patching_fetched.fetch(slides[1].path, tmp_path).read_bytes()
            with pytest.raises(SlideError, match=r"gone\.tif: can't be fetched"):
                patching_fetched.fetch(slides[1].path.replace("b.tif", "gone.tif"), tmp_path)
        finally:
            server.shutdown()
            thread.join()
    assert names == [f"{n}.tif" for n in "abc"] if within else {f"cohort/{n}.tif" for n in "abc"} < set(names)
    assert fetched == b"b" * 100


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nowhere/", r"pretraining\[p\]\.slides: .*nowhere: there is no such folder; .* from the data folder"),
        ("memory://nowhere/", r"pretraining\[p\]\.slides: memory://nowhere/: there is no such folder"),
        ("empty", r"pretraining\[p\]\.slides: .*empty: no slide below it; one ends in \.svs"),
        (
            "sss://bucket/",
            r"pretraining\[p\]\.slides: sss://bucket/: can't be listed \(ValueError: Protocol not known: sss\); check",
        ),
    ],
)
def test_a_place_without_slides_is_refused_by_its_key(tmp_path, place, said):
    (tmp_path / "empty").mkdir()
    with pytest.raises(patching.PatchingError, match=said):
        slides_of(place, tmp_path)


def test_a_file_system_whose_package_lacks_says_what_to_install(tmp_path, monkeypatch):
    def lacks(_):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", lacks)
    with pytest.raises(patching.PatchingError, match=r"s3://bucket/: .*Install s3fs.*; install that package beside mfcore"):
        slides_of("s3://bucket/", tmp_path)
