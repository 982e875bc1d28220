"""Slides at addresses: copied while they are open, told by their address, and nothing left for good by a kill."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tifffile

from mfcore.data.slides.slide import SlideError
from mfcore.pretraining import patching, patching_fetched
from mfcore.pretraining.patching_open import OpenSlides
from mfcore.study.config_pretraining import OnlinePatches

HOLDS = """
import sys
from mfcore.pretraining.patching_fetched import Fetched
fetched = Fetched(sys.argv[1])
print(fetched.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def tmpdir(tmp_path, monkeypatch) -> Path:
    """The folder that stands for TMPDIR."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def address_of(tmp_path: Path, name: str, content: bytes) -> str:
    (tmp_path / name).write_bytes(content)
    return f"file://{tmp_path / name}"


def test_what_a_killed_process_left_goes_when_the_next_slide_is_fetched(tmp_path, tmpdir, started):
    """But nothing of one that lives."""
    address = address_of(tmp_path, "a.tif", b"px")
    pipes, env = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}, os.environ | {"TMPDIR": str(tmpdir)}
    child = started([sys.executable, "-c", HOLDS, address], env=env, **pipes)
    theirs = Path(child.stdout.readline().strip())
    ours = patching_fetched.Fetched(address)
    assert theirs.read_bytes() == ours.path.read_bytes() == b"px" and theirs != ours.path
    child.kill()
    child.wait()
    patching_fetched.Fetched(address).close()
    assert not theirs.exists() and ours.path.read_bytes() == b"px", "a process doesn't take its own for left behind, either"
    assert len(list(tmpdir.iterdir())) == 1
    ours.close()
    assert not list(tmpdir.iterdir())


def test_folders_that_are_not_known_to_be_left_behind_stay(tmpdir):
    """One whose process is about to lock it; another's, of the same name."""
    (tmpdir / "mfcore-slide-new").mkdir()
    (tmpdir / "mfcore-slide-file").touch()
    (tmpdir / "other").mkdir()
    (tmpdir / "other" / ".lock").touch()
    patching_fetched.sweep()
    assert len(list(tmpdir.iterdir())) == 3


def test_where_files_can_not_be_locked_slides_are_fetched_and_nothing_is_swept(tmp_path, tmpdir, monkeypatch):
    def refused(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(patching_fetched.fcntl, "flock", refused)
    first, second = (patching_fetched.Fetched(address_of(tmp_path, name, b"px")) for name in ("a.tif", "b.tif"))
    assert first.path.read_bytes() == second.path.read_bytes() == b"px"
    for each in (first, second):
        each.close()
    assert not list(tmpdir.iterdir())


def test_a_full_disk_is_told_with_the_folder_and_leaves_nothing(tmp_path, tmpdir, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fsspec.implementations.local.LocalFileSystem, "get_file", full)
    with pytest.raises(SlideError, match=rf"a\.tif: can't be fetched .*make room in {tmpdir}, or name a larger .* TMPDIR"):
        patching_fetched.Fetched(address_of(tmp_path, "a.tif", b"px"))
    assert not list(tmpdir.iterdir())


@pytest.mark.parametrize("name", ["a.mrxs", "a.VMS"])
def test_a_slide_of_several_files_is_not_fetched(tmpdir, name):
    with pytest.raises(SlideError, match=rf"memory://bucket/{name}: lies in several files.*copy all to a folder"):
        patching_fetched.Fetched(f"memory://bucket/{name}")
    assert not list(tmpdir.iterdir())


def test_a_slide_that_was_fetched_is_told_by_its_address(tmp_path, tmpdir):
    """When it can't be opened, when its px can't be read, and when it shows no tissue: the copy will be gone."""
    rng = np.random.default_rng(0)
    bare, unsaid = tmp_path / "bare.tif", tmp_path / "unsaid.tif"
    said = {"photometric": "rgb", "tile": (64, 64), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(bare, np.full((512, 512, 3), 245, np.uint8), resolution=(40000, 40000), **said)
    tifffile.imwrite(unsaid, rng.integers(0, 256, (256, 256, 3), np.uint8), **said)
    address_of(tmp_path, "text.svs", b"no slide")
    names = ["bare.tif", "text.svs", "unsaid.tif"]
    slides = [patching.SlideFile(name, f"file://{tmp_path / name}") for name in names]
    source = patching.Source(slides, OnlinePatches(40, (0.25,)), 0)
    with pytest.raises(patching.PatchingError, match="no patch can be drawn"):
        source.survey()
    assert {name: source.failures[name].split(": ")[0] for name in names} == {
        name: f"file://{tmp_path / name}" for name in names
    }
    assert source.failures["unsaid.tif"].endswith("say it in the study: data: {um_per_px: ...} for all slides that don't")
    with pytest.raises(SlideError, match=rf"^file://{bare}: gone"), source.open.use(slides[0]) as slide:
        raise SlideError(f"{slide.path}: gone")
    source.close()
    assert not list(tmpdir.iterdir())


def test_a_slide_that_two_threads_can_not_open_is_fetched_once_and_leaves_nothing(tmp_path, tmpdir):
    slide = patching.SlideFile("text.svs", address_of(tmp_path, "text.svs", b"no slide"))
    opened, failed = OpenSlides(1, 1 << 20), []

    def use():
        try:
            with opened.use(slide):
                pass
        except SlideError as error:
            failed.append(error)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failed) == 8 and not list(tmpdir.iterdir())
