"""Reading in batches: whatever the threads and whenever the kill, the same array, and nothing finished read again."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from running import HANG_S

from mfcore import store
from mfcore.data import patches, patches_read
from mfcore.data.patches import PatchError
from mfcore.data.slides.tiff import TiffReader
from mfcore.study import data as study_data
from mfcore.study.config import Data, Patches, Settings

STUDY = Settings(name="tiny", title="t", data=Data(source="midog", um_per_px=0.25), patches=Patches(size_px=24, um_per_px=0.25))
N_PATCHES = 200
SIZES = {"001.tiff": (300, 260), "002.tiff": (280, 300), "003.png": (200, 220), "004.tif": (240, 240)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tiled TIFFs, one of them to be resampled, a PNG and a striped TIFF; annotations in no order."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        if name.endswith(".png"):
            Image.fromarray(image).save(folder / name)
            continue
        tiled = {} if name == "004.tif" else {"tile": (32, 32), "compression": "jpeg"}
        um_per_px = 0.226 if name == "002.tiff" else 0.25
        scan = {"resolution": (1e4 / um_per_px,) * 2, "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(folder / name, image, photometric="rgb", **tiled, **scan)
    annotations = []
    for i in range(N_PATCHES):
        slide = int(rng.integers(len(SIZES)))
        x, y = (int(rng.integers(0, side)) for side in list(SIZES.values())[slide])
        annotations.append({"id": i, "image_id": slide, "bbox": [x - 25, y - 25, x + 25, y + 25], "category_id": 1 + i % 2})
    images = [
        {"id": i, "file_name": name, "width": width, "height": height, "tumor_type": "a"}
        for i, (name, (width, height)) in enumerate(SIZES.items())
    ]
    (folder / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder


@pytest.fixture(scope="module")
def expected(folder, tmp_path_factory):
    """The array, each patch read by itself."""
    table, array = patches.load(study_data.extract(STUDY, folder, tmp_path_factory.mktemp("expected")))
    for row in table.itertuples():
        with patches_read.open_slide(folder / row.file, 0.25) as slide:
            np.testing.assert_array_equal(array[row.patch_id], slide.read(row.x_l0_px, row.y_l0_px, 24, 0.25))
    return array


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(patches_read, "BATCH_PATCHES", 5)


@pytest.mark.parametrize("n_workers", [1, 2, 16])
def test_threads_give_the_same_array(folder, tmp_path, expected, small_batches, n_workers):
    found = patches.load(study_data.extract(STUDY, folder, tmp_path, n_workers=n_workers))[1]
    np.testing.assert_array_equal(found, expected)


def test_a_slide_read_in_one_batch_decodes_each_tile_once(folder, tmp_path, monkeypatch):
    decode, keys = TiffReader.decode, []
    monkeypatch.setattr(TiffReader, "decode", lambda reader, key: keys.append((reader._path, key)) or decode(reader, key))
    study_data.extract(STUDY, folder, tmp_path, n_workers=4)
    assert len(keys) == len(set(keys)) > 100, "a slide has fewer patches than a batch"


@pytest.mark.parametrize(("um_per_px", "n"), [(0.21, 3), (0.2, 4)])
def test_slides_that_would_be_enlarged_are_named_together_before_any_px_is_read(folder, tmp_path, monkeypatch, um_per_px, n):
    finer = dataclasses.replace(STUDY, patches=Patches(size_px=24, um_per_px=um_per_px))
    monkeypatch.setattr(patches_read, "_read", None)
    with pytest.raises(PatchError, match=rf"um_per_px is {um_per_px}; {n} of 4 slides are coarser, .* 0\.25 um/px, .*enlarged"):
        study_data.extract(finer, folder, tmp_path)


def test_slides_a_little_coarser_than_the_study_are_read(folder, tmp_path):
    finer = dataclasses.replace(STUDY, patches=Patches(size_px=24, um_per_px=0.23))
    assert study_data.extract(finer, folder, tmp_path).done


class Stopped(Exception):
    """Stands for whatever ends an extraction."""


def interrupted(folder, results, monkeypatch, after):
    """Extract, stopped after that many batches; returns the run's folder."""
    read, n_read = patches_read._read, iter(range(10**6))

    def stop(*batch):
        if next(n_read) == after:
            raise Stopped
        return read(*batch)

    with monkeypatch.context() as patched:
        patched.setattr(patches_read, "_read", stop)
        with pytest.raises(Stopped):
            study_data.extract(STUDY, folder, results)
    return next(results.glob("patches-*"))


def rows_recorded(run):
    """The rows that progress.bin holds."""
    return np.flatnonzero(np.fromfile(run / "progress.bin", np.uint8)[1:]).tolist()


def rows_read(monkeypatch):
    """A list that fills with the rows that are read from now on."""
    read, rows = patches_read._read, []

    def noting(batch, *rest):
        rows.extend(batch["patch_id"].tolist())
        return read(batch, *rest)

    monkeypatch.setattr(patches_read, "_read", noting)
    return rows


def test_what_is_recorded_is_not_read_again(folder, tmp_path, monkeypatch, expected, small_batches):
    run = interrupted(folder, tmp_path, monkeypatch, after=9)
    assert {file.name for file in run.iterdir()} == {"begun.json", "patches.partial.npy", "progress.bin"}
    with pytest.raises(store.StoreError, match="no finished 'patches' run"):
        study_data.find_patches(STUDY, tmp_path)
    recorded = rows_recorded(run)
    assert 25 <= len(recorded) < N_PATCHES  # other batches may have got done meanwhile
    rows = rows_read(monkeypatch)
    monkeypatch.setattr(patches_read, "BATCH_PATCHES", 7)  # batches may be cut otherwise by then
    resumed = study_data.extract(STUDY, folder, tmp_path, n_workers=2)
    assert sorted(rows) == sorted(set(range(N_PATCHES)) - set(recorded))
    np.testing.assert_array_equal(patches.load(resumed)[1], expected)
    assert not resumed.path("progress.bin").exists()


def of_another_rule(run):
    content = (run / "progress.bin").read_bytes()
    (run / "progress.bin").write_bytes(bytes([content[0] - 1]) + content[1:])


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: (run / "progress.bin").unlink(),
        lambda run: (run / "progress.bin").write_bytes(b""),
        lambda run: (run / "progress.bin").write_bytes((run / "progress.bin").read_bytes()[:-1]),
        of_another_rule,
        lambda run: (run / "patches.partial.npy").unlink(),
        lambda run: (run / "patches.partial.npy").write_bytes(b"\x93NUMPY"),
        lambda run: np.save(run / "patches.partial.npy", np.zeros((N_PATCHES, 23, 23, 3), np.uint8)),
    ],
)
def test_a_store_that_cant_be_gone_on_with_is_begun_anew(folder, tmp_path, monkeypatch, expected, small_batches, damage):
    damage(interrupted(folder, tmp_path, monkeypatch, after=9))
    rows = rows_read(monkeypatch)
    np.testing.assert_array_equal(patches.load(study_data.extract(STUDY, folder, tmp_path))[1], expected)
    assert sorted(rows) == list(range(N_PATCHES))


KILLS_ITSELF = """
import os, sys
from pathlib import Path
sys.path[:0] = {tests!r}
from mfcore.data import patches_read
from mfcore.study import data as study_data
from test_patches_read import STUDY
patches_read.BATCH_PATCHES = 5
read = patches_read._read
n_read = iter(range(10**6))

def noting(batch, *rest):
    with Path({log!r}).open("a") as log:
        log.write("".join(f"{{i}}\\n" for i in batch["patch_id"]))
    if next(n_read) == int(sys.argv[1]):
        os.kill(os.getpid(), 9)
    return read(batch, *rest)

patches_read._read = noting
study_data.extract(STUDY, {folder!r}, {results!r}, n_workers=2)
"""


def test_killed_at_any_moment_and_gone_on_with_nothing_is_lost(folder, tmp_path, expected, started):
    """A process killed several times, without warning, after numbers of batches drawn by chance, another thread at work."""
    log, results, rng = tmp_path / "log.txt", tmp_path / "results", random.Random(1)
    tests = [str(folder) for folder in Path(__file__).parents[:2]]
    script = KILLS_ITSELF.format(tests=tests, log=str(log), folder=str(folder), results=str(results))
    recorded = set()
    for attempt in range(4):
        log.unlink(missing_ok=True)
        last = rng.randrange(N_PATCHES // 20) if attempt < 3 else -1
        command = [sys.executable, "-c", script, str(last)]
        process = started(command, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2])
        _, errors = process.communicate(timeout=HANG_S)
        read = set(map(int, log.read_text().splitlines())) if log.is_file() else set()
        assert not read & recorded, "a row on record was read again"
        assert process.returncode == (-signal.SIGKILL if attempt < 3 else 0), errors.decode()
        runs = list(results.glob("*/progress.bin"))
        recorded = set(rows_recorded(runs[0].parent)) if runs else recorded
    found = patches.load(study_data.find_patches(STUDY, results))[1]
    np.testing.assert_array_equal(found, expected)


def test_a_full_disk_loses_nothing(folder, tmp_path, monkeypatch, expected, small_batches):
    """When there is room again, it goes on."""
    sync, n_written = os.fsync, iter(range(10**6))

    def full(file):
        if next(n_written) == 12:
            raise OSError(28, "No space left on device")
        return sync(file)

    with monkeypatch.context() as patched:
        patched.setattr(patches_read.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            study_data.extract(STUDY, folder, tmp_path, n_workers=4)
    np.testing.assert_array_equal(patches.load(study_data.extract(STUDY, folder, tmp_path))[1], expected)


def test_slides_that_turn_out_damaged_are_named_together_once_each(folder, tmp_path, small_batches):
    data = tmp_path / "data"
    data.mkdir()
    for file in folder.iterdir():
        (data / file.name).write_bytes(file.read_bytes())
    for name in ("001.tiff", "002.tiff"):
        with tifffile.TiffFile(data / name) as tiff:
            holes = list(zip(tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts, strict=True))
        with (data / name).open("r+b") as slide:
            for offset, length in holes[1:]:  # OpenSlide looks at the first when it opens
                slide.seek(offset)
                slide.write(bytes(length))
    with pytest.raises(PatchError, match=r"(?s)^\d files can't be used") as error:
        study_data.extract(STUDY, data, tmp_path / "results", n_workers=4)
    assert "001.tiff: damaged near" in str(error.value)
    assert "002.tiff: damaged near" in str(error.value)
    run = next((tmp_path / "results").glob("patches-*"))
    table = study_data.load_labels(STUDY, data)
    there = set(table.loc[table["slide_id"].isin(["003.png", "004.tif"]), "patch_id"])
    assert there <= set(rows_recorded(run))  # the others are in


def test_native_and_resampled_are_two_stores(folder, tmp_path, expected):
    study = dataclasses.replace(STUDY, switches=dataclasses.replace(STUDY.switches, resolution="native"))
    table, native = patches.load(study_data.extract(study, folder, tmp_path))
    same = (native == expected).all(axis=(1, 2, 3))
    assert same[(table["slide_id"] != "002.tiff").to_numpy()].all()
    assert not same[(table["slide_id"] == "002.tiff").to_numpy()].any()
