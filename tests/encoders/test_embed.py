"""Embeddings: what the file holds, what a kill costs, and what is refused."""

import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
import yaml
from running import HANG_S
from tiny_encoders import tiny_card, use

from mfcore import cli as command, encoders, store
from mfcore.data import patches
from mfcore.encoders import canary, embed, network, weights
from mfcore.encoders.card import EncoderCard, cards
from mfcore.study import config, data as study_data, encoders as study_encoders

N_PATCHES = 23
NAME = "tiny"


@pytest.fixture
def study() -> config.Settings:
    return config.Settings(
        name="little",
        title="a study small for testing",
        data=config.Data(source="synthetic", n_annotations=N_PATCHES),
        patches=config.Patches(size_px=32, um_per_px=0.25, stored_px=40),
        encoders=(NAME,),
    )


@pytest.fixture
def results(study, tmp_path):
    """A results folder with finished patches: noise, from two slides of 0.25 and 0.5 um/px."""
    run = store.open_run(tmp_path, "patches", study.name, study_data.patches_config(study), {"made": "for a test"})
    ids = np.arange(N_PATCHES)
    table = pd.DataFrame(
        {
            "patch_id": ids,
            "slide_id": np.where(ids < 10, "one", "two"),
            "x_l0_px": 100.0 + ids,
            "y_l0_px": 200.5 + ids,
            "um_per_px": np.where(ids < 10, 0.25, 0.5),
        }
    )
    table["patch_x_l0_px"], table["patch_y_l0_px"] = table["x_l0_px"], table["y_l0_px"]
    store.write_parquet(run.path("labels.parquet"), table)
    noise = np.random.default_rng(0).integers(0, 256, (N_PATCHES, 40, 40, 3), dtype=np.uint8)
    np.save(run.path("patches.npy"), noise)
    run.finish(["labels.parquet", "patches.npy"])
    return tmp_path


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> EncoderCard:
    """The encoder "tiny", and shards of five patches."""
    card = tiny_card()
    assert use(monkeypatch, card) == NAME
    monkeypatch.setattr(embed, "SHARD", 5)
    return card


def test_every_patchs_centre_is_embedded_row_for_row(study, results, tiny):
    run = study_encoders.embed(study, NAME, results)
    features, patch_ids = embed.load(run)
    assert features.dtype == np.float32 and features.shape == (N_PATCHES, 24)
    np.testing.assert_array_equal(patch_ids, np.arange(N_PATCHES))
    _, stored = patches.load(study_data.find_patches(study, results))
    centre = np.asarray(stored)[:, 4:36, 4:36]
    expected = np.concatenate([encoders.load(NAME).embed(centre[i : i + 1]) for i in range(N_PATCHES)])
    np.testing.assert_allclose(features, expected, atol=1e-5)
    assert run.done and run.record["facts"]["n_patches"] == N_PATCHES
    assert not run.path("units").exists()


def test_the_file_is_what_the_fields_tools_read_and_says_where_it_is_from(study, results, tiny):
    run = study_encoders.embed(study, NAME, results)
    with h5py.File(run.path("embeddings.h5")) as content:
        assert set(content) == {"features", "coords", "patch_id", "slide_id", "canary"}
        coords = content["coords"][:]
        assert coords.dtype == np.int64 and content["coords"].attrs["patch_size"] == 32
        assert coords[3].tolist() == [103 - 16, 204 - 16]  # 203.5 - 16, rounded up
        assert coords[12].tolist() == [112 - 8, 205]  # 32 px of 0.25 um are 16 px of 0.5 um; 212.5 - 8, rounded up
        assert content["slide_id"].asstr()[[9, 10]].tolist() == ["one", "two"]
        card = json.loads(content.attrs["card"])
        assert card["name"] == NAME and card["n_dims"] == 24 and content.attrs["weights"] == "seed 0"
        encoder = encoders.load(NAME)
        assert canary.compare(encoder, canary.embed(encoder), content["canary"][:], canary.versions()) < 1e-6
        assert dict(content["canary"].attrs) == {"weights": "seed 0", **canary.versions()}


def test_a_reader_of_features_and_coords_needs_nothing_else(study, results):
    """As the field's tools for whole slides read a bag of patches."""
    with h5py.File(study_encoders.embed(study, NAME, results).path("embeddings.h5"), "r") as file:
        features, coords = file["features"][:], file["coords"][:]
        patch_size = file["coords"].attrs["patch_size"]
    assert torch.from_numpy(features).dtype == torch.float32 and features.ndim == 2
    assert len(coords) == len(features) and coords.shape[1] == 2 and int(patch_size) == 32
    assert np.issubdtype(coords.dtype, np.integer)


def test_native_resolution_and_unknown_um_per_px_leave_the_crop_as_wide_as_it_is(study, results):
    table, _ = patches.load(study_data.find_patches(study, results))
    native = dataclasses.replace(study, switches=dataclasses.replace(study.switches, resolution="native"))
    assert patches.corners(table, study.stored_px, study_data.placing_of(native))[12].tolist() == [112 - 16, 213 - 16]
    table = table.assign(um_per_px=np.nan)
    assert patches.corners(table, study.stored_px, study_data.placing_of(study))[12].tolist() == [112 - 16, 213 - 16]


@pytest.mark.parametrize("at_border", ["white", "shift"])
@pytest.mark.parametrize("stored_px", [32, 40, 45])
def test_the_slide_at_the_written_corner_shows_what_was_embedded(tmp_path, at_border, stored_px):
    """Also where patches are moved inward, where a centre lies on half a px, and where the margin around a crop is odd."""
    rng = np.random.default_rng(0)
    um_per_px = {"a.tif": 0.25, "b.tif": 0.2502, "c.tif": 0.125}
    images = {name: rng.integers(0, 256, (60, 70, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1) for name in um_per_px}
    for name, image in images.items():
        said = {"resolution": (1e4 / um_per_px[name],) * 2, "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(tmp_path / name, image, tile=(64, 64), photometric="rgb", **said)
    centres = np.concatenate([[(0.5, 3), (279.5, 239), (20, 239.5)], rng.integers(0, 480, (7, 2)) / 2])
    rows = [f"{name},{x},{y},{k % 2}" for name in images for k, (x, y) in enumerate(centres)]
    (tmp_path / "annotations.csv").write_text("file,x,y,label\n" + "\n".join(rows) + "\n")
    study = config.Settings(
        "corners",
        "t",
        config.Data("csv"),
        patches=config.Patches(size_px=32, um_per_px=0.25, stored_px=stored_px, at_border=at_border),
        encoders=(NAME,),
    )
    results = tmp_path / "results"
    table, stored = patches.load(study_data.extract(study, tmp_path, results))
    with h5py.File(study_encoders.embed(study, NAME, results).path("embeddings.h5")) as content:
        coords = content["coords"][:]
    for slide_id, (x, y), seen in zip(table["slide_id"], coords, patches.centre_crop(stored, 32), strict=True):
        side = 64 if slide_id == "c.tif" else 32
        canvas = np.full((440, 480, 3), 255, np.uint8)
        canvas[100:340, 100:380] = images[slide_id]
        there = canvas[y + 100 : y + 100 + side, x + 100 : x + 100 + side]
        if side == 32:
            np.testing.assert_array_equal(there, seen)
        else:  # what is written is rounded to a px, half a px of the patch
            shrunk = there.reshape(32, 2, 32, 2, 3).mean((1, 3))
            assert np.abs(shrunk - seen).mean() < 25
            assert np.corrcoef(shrunk.ravel(), seen.ravel())[0, 1] > 0.85


class Killed(BaseException):
    """As unexpected as a kill."""


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """How many patches each batch had that was embedded; appended to by the encoder."""
    counted, compute = [], encoders.Encoder.compute

    def counting(self, batch):
        counted.append(len(batch))
        return compute(self, batch)

    monkeypatch.setattr(encoders.Encoder, "compute", counting)
    return counted


def dying_at(monkeypatch, n_calls: int) -> None:
    """Let the encoder die when it is asked for the so-manieth batch after the canary."""
    original, count = encoders.Encoder.compute, iter(range(1000))

    def dying(self, batch):
        if next(count) == n_calls:
            raise Killed
        return original(self, batch)

    monkeypatch.setattr(encoders.Encoder, "compute", dying)


def wipe(run: store.Run) -> None:
    shutil.rmtree(run.folder)


def test_a_killed_run_goes_on_where_it_stopped_and_ends_the_same(study, results, monkeypatch, calls):
    whole = study_encoders.embed(study, NAME, results, batch_size=2)
    expected, checksum = embed.load(whole)[0], whole.record["files"]["embeddings.h5"]["sha256"]
    n_batches = len(calls)
    wipe(whole)
    with monkeypatch.context() as patch:
        dying_at(patch, 1 + 7)  # after the canary; in the middle of the third shard
        with pytest.raises(Killed):
            study_encoders.embed(study, NAME, results, batch_size=2)
    with pytest.raises(store.StoreError):
        study_encoders.find_embeddings(study, NAME, results)
    (begun,) = results.glob("embeddings-*/units")
    assert [file.name for file in sorted(begun.glob("*.npy"))] == [
        "rows-000000000-000000005.npy",
        "rows-000000005-000000010.npy",
    ]
    calls.clear()
    run = study_encoders.embed(study, NAME, results, batch_size=2)
    assert len(calls) == n_batches - 6  # the two finished shards aren't made again
    np.testing.assert_allclose(embed.load(run)[0], expected, atol=1e-6)
    wipe(run)
    assert study_encoders.embed(study, NAME, results, batch_size=2).record["files"]["embeddings.h5"]["sha256"] == checksum


def with_other_weights(monkeypatch) -> None:
    """Let every encoder be loaded with a weight that isn't its own."""
    load = network.load

    def other_weights(card, device="cpu"):
        encoder = load(card, device)
        with torch.no_grad():
            encoder.model.blocks[0].mlp.fc1.weight.mul_(1.5)
        return encoder

    monkeypatch.setattr(network, "load", other_weights)


def test_shards_of_another_network_are_refused(study, results, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        dying_at(patch, 3)
        study_encoders.embed(study, NAME, results)
    with_other_weights(monkeypatch)
    with pytest.raises(encoders.EncoderError, match="isn't the one of before"):
        study_encoders.embed(study, NAME, results)


def test_a_finished_run_is_taken_as_it_is_and_nothing_is_embedded_anew(study, results, calls):
    run = study_encoders.embed(study, NAME, results)
    calls.clear()
    again = study_encoders.embed(study, NAME, results)
    assert again.key == run.key and calls == [8]  # the canary
    assert study_encoders.embed_share(study, NAME, results, 0, 2).done and calls == [8]
    assert study_encoders.find_embeddings(study, NAME, results).folder == run.folder


@contextlib.contextmanager
def edited(run):
    """The run's HDF5 file, to be written to, as if it had been made so."""
    with h5py.File(run.path("embeddings.h5"), "a") as content:
        yield content
    run.finish(["embeddings.h5"])


def test_a_finished_run_is_refused_where_its_encoder_gives_something_else(study, results, monkeypatch):
    run = study_encoders.embed(study, NAME, results)
    with edited(run) as content:
        content["canary"].attrs["timm"] = "0.9"
    with_other_weights(monkeypatch)
    with pytest.raises(encoders.EncoderError, match=r"embeddings-tiny-.*tile \d \(.* apart \(relative.*timm was 0\.9, is "):
        study_encoders.embed(study, NAME, results)


def test_a_finished_run_stays_usable_where_its_weights_are_not(study, results, monkeypatch):
    run = study_encoders.embed(study, NAME, results)
    monkeypatch.setattr(weights, "state", lambda card: weights.State(False, "accept its licence"))
    monkeypatch.setattr(network, "load", lambda *_: pytest.fail("loaded a model that isn't here"))
    with pytest.warns(UserWarning, match=r"embeddings-tiny-.* is taken as it is: .*'tiny'.* \(accept its licence\)"):
        assert study_encoders.embed(study, NAME, results).key == run.key


def test_how_it_was_done_is_recorded(study, results):
    (job,) = study_encoders.embed(study, NAME, results, "cpu", batch_size=3).record["facts"]["jobs"]
    assert (job["device"], job["batch_size"], job["n_patches"]) == ("cpu", 3, N_PATCHES)
    assert job["precision"] == "float32" and job["patches_per_s"] > 0


# ---- shares and several jobs at once ----


def test_shares_are_equal_parts_that_one_call_puts_together(study, results, calls):
    expected = embed.load(study_encoders.embed(study, NAME, results))[0]
    wipe(study_encoders.find_embeddings(study, NAME, results))
    for share in (2, 0, 1):
        calls.clear()
        run = study_encoders.embed_share(study, NAME, results, share, 3, batch_size=5)
        assert sum(calls) - 8 == (5, 10, 8)[share] and not run.done
    calls.clear()
    run = study_encoders.embed(study, NAME, results)
    assert calls == [] and len(run.record["facts"]["jobs"]) == 3
    np.testing.assert_allclose(embed.load(run)[0], expected, atol=1e-6)
    for share, n_shares in ((3, 3), (-1, 3), (0, 0)):
        with pytest.raises(ValueError, match=f"share {share} of {n_shares}"):
            study_encoders.embed_share(study, NAME, results, share, n_shares)


def test_a_call_makes_what_the_shares_before_left(study, results, calls):
    study_encoders.embed_share(study, NAME, results, 1, 2, batch_size=5)
    calls.clear()
    run = study_encoders.embed(study, NAME, results, batch_size=5)
    assert sum(calls) - 8 == 10
    assert len(embed.load(run)[0]) == N_PATCHES


def test_a_share_with_other_weights_is_refused(study, results, monkeypatch):
    study_encoders.embed_share(study, NAME, results, 0, 2)
    with_other_weights(monkeypatch)
    with pytest.raises(encoders.EncoderError, match="isn't the one of before"):
        study_encoders.embed_share(study, NAME, results, 1, 2)


JOB = """
import sys, time
sys.path.insert(0, {tests!r})
import pytest
from pathlib import Path
from tiny_encoders import tiny_card, use
from mfcore.cli import main
from mfcore.encoders import embed
use(pytest.MonkeyPatch(), tiny_card())
embed.SHARD = 5
print("ready", flush=True)
sys.stdin.readline()
sys.exit(main(["embed", *{arguments!r}]))
"""


def job(started, *arguments: str) -> subprocess.Popen:
    """The command line in a process of its own, with the encoder "tiny"; it begins when it gets a line."""
    code = JOB.format(tests=str(Path(__file__).parents[1]), arguments=list(arguments))
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return started([sys.executable, "-c", code], text=True, **pipes)


@pytest.fixture
def study_file(study, results, tmp_path) -> Path:
    """The study as a file, with its results in a folder of its name."""
    (tmp_path / "all").mkdir()
    results.joinpath("all", study.name).symlink_to(results)
    said = {
        "name": study.name,
        "title": study.title,
        "data": {"source": "synthetic", "n_annotations": N_PATCHES},
        "patches": {"size_px": 32, "um_per_px": 0.25, "stored_px": 40},
        "encoders": [NAME],
    }
    (tmp_path / "little.yaml").write_text(yaml.safe_dump(said))
    return tmp_path / "little.yaml"


def test_jobs_at_work_on_one_folder_at_once_make_one_result(study, results, study_file, started):
    expected = embed.load(study_encoders.embed(study, NAME, results))[0]
    wipe(study_encoders.find_embeddings(study, NAME, results))
    where = ["--study", str(study_file), "--encoder", NAME, "--results", str(results / "all"), "--batch-size", "2"]
    ways = [[], ["--device", "cpu"], ["--share", "0", "--shares", "2"]]
    jobs = [job(started, *where, *way) for way in ways]
    for each in jobs:
        assert each.stdout.readline() == "ready\n"
    for each in jobs:
        each.stdin.write("\n")
        each.stdin.flush()
    for each in jobs:
        out, err = each.communicate(timeout=HANG_S)
        assert each.returncode == 0, err
        assert "embeddings-tiny-" in out
    run = study_encoders.find_embeddings(study, NAME, results).verify()
    np.testing.assert_allclose(embed.load(run)[0], expected, atol=1e-6)
    assert not [file for file in run.folder.rglob("*") if file.name not in ("begun.json", "run.json", "embeddings.h5")]


def test_the_command_line_says_what_is_wrong(study_file, results, capsys):
    where = ["--study", str(study_file), "--results", str(results / "all"), "--device", "cpu"]
    for arguments, message in (
        (["--encoder", "tinyy"], "unknown encoder 'tinyy'"),
        (["--encoder", NAME, "--share", "2", "--shares", "2"], "share 2 of 2"),
        (["--encoder", NAME, "--share", "0", "--shares", "0"], "share 0 of 0: there must be one share"),
        (["--encoder", NAME, "--batch-size", "-1"], "batch_size is -1"),
    ):
        assert command.main(["embed", *where, *arguments]) == 1
        err = capsys.readouterr().err
        assert message in err and len(err.strip().splitlines()) == 1
    several = study_file.with_name("several.yaml")
    several.write_text("name: t\ntitle: t\ndata: {source: midog}\nencodrs: [a]\nsplit: {}\n")
    assert command.main(["embed", "--study", str(several), "--results", "r", "--encoder", NAME]) == 1
    told = [line.strip().split(";")[0] for line in capsys.readouterr().err.splitlines()]
    assert told == [f"mfcore: {several}: 2 problems:", "unknown key encodrs", "unknown key split"], "a line each"
    assert command.main(["embed", *where, "--encoder", NAME, "--share", "1", "--shares", "2"]) == 0
    assert command.main(["embed", *where, "--encoder", NAME]) == 0


@pytest.mark.parametrize("left", [None, b"", b"\x89HDF\r\n\x1a\n" + bytes(99)])
def test_a_finished_file_that_can_not_be_read_is_told(study, results, left):
    run = study_encoders.embed(study, NAME, results)
    file = run.path("embeddings.h5")
    file.unlink() if left is None else file.write_bytes(left)
    with pytest.raises(store.StoreError, match=rf"embeddings\.h5 is missing or not .*; remove {run.folder} and"):
        study_encoders.embed(study, NAME, results)


def test_a_damaged_shard_is_told(study, results, monkeypatch):
    for share in (0, 1):
        run = study_encoders.embed_share(study, NAME, results, share, 2)
    shard = sorted(run.path("units").glob("rows-*.npy"))[0]
    shard.write_bytes(b"no array")
    with pytest.raises(store.StoreError, match=rf"{shard.name}: damaged .*; remove it and embed again"):
        study_encoders.embed(study, NAME, results)
    shard.unlink()
    assert study_encoders.embed(study, NAME, results).verify().done, "the remedy helps"


def test_a_results_folder_that_refuses_is_told_with_a_remedy(study_file, tmp_path, capsys):
    (tmp_path / "taken").touch()
    how = ["--study", str(study_file), "--encoder", NAME, "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(study_encoders, "embed", lambda *_: (tmp_path / "taken" / "little").mkdir())
        assert command.main(["embed", *how, "--results", str(tmp_path / "taken")]) == 1
    assert capsys.readouterr().err.startswith(f"mfcore: {tmp_path}/taken/little: Not a directory; a file stands where")


def test_any_number_of_patches_takes_the_same_memory(study, results, monkeypatch):
    monkeypatch.setattr(embed, "SHARD", 64)
    source = study_data.find_patches(study, results)
    peaks = []
    for n in (512, 4096):
        table = pd.concat([patches.load(source)[0].iloc[:1]] * n, ignore_index=True).assign(patch_id=range(n))
        np.save(source.path("patches.npy"), np.zeros((n, 40, 40, 3), np.uint8))  # 20 MB of 4,096
        run = store.open_run(results, "embeddings", NAME, {"n": n}, {})
        tracemalloc.start()
        embed.embed(source.path("patches.npy"), table, encoders.card_of(NAME), run, study_data.placing_of(study), "cpu", 32)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert embed.load(run)[0].shape == (n, 24)
    assert peaks[1] < peaks[0] + 2e6  # ids, coordinates and names of slides grow; patches and features don't


def test_nan_is_refused_with_the_patches_names_and_nothing_is_finished(study, results, monkeypatch):
    read_out, canarys = network.read_out, canary.images().shape[0]

    def broken(model, card, images):
        features = read_out(model, card, images)
        if len(images) == canarys:
            return features
        features[:, 0] = torch.where(images[:, 0, 0, 0] > 0.9, torch.nan, features[:, 0])
        return features

    _, stored = patches.load(study_data.find_patches(study, results))
    bad = np.flatnonzero(stored[:, 4, 4, 0] > 0.95 * 255)
    assert len(bad)
    monkeypatch.setattr(network, "read_out", broken)
    with pytest.raises(encoders.EncoderError, match=rf"'tiny' gives NaN or infinity for patches \[{bad[0]}"):
        study_encoders.embed(study, NAME, results, batch_size=5)
    with pytest.raises(store.StoreError, match="embeddings"):
        study_encoders.find_embeddings(study, NAME, results)


def test_what_isnt_there_is_said(study, results, tmp_path):
    with pytest.raises(store.StoreError, match="no finished 'patches' run 'little'"):
        study_encoders.embed(study, NAME, tmp_path / "empty")
    with pytest.raises(store.StoreError, match="no finished 'embeddings' run 'random:vit_tiny_patch16_224'"):
        study_encoders.find_embeddings(study, "random:vit_tiny_patch16_224", results)
    run = store.open_run(results, "embeddings", "x", {}, {})
    with pytest.raises(store.StoreError, match="embed again"):
        embed.load(run)


def test_an_encoder_without_a_card_of_its_own_is_found_by_name_without_asking_anyone(study, results, monkeypatch):
    run = study_encoders.embed(study, "random:resnet10t", results)
    assert embed.load(run)[0].shape == (N_PATCHES, 512)
    monkeypatch.setattr(encoders, "card_of", lambda *_: pytest.fail("asked for the card"))
    assert study_encoders.find_embeddings(study, "random:resnet10t", results).folder == run.folder
    wider = dataclasses.replace(study, patches=dataclasses.replace(study.patches, size_px=40))
    with pytest.raises(store.StoreError):
        study_encoders.find_embeddings(wider, "random:resnet10t", results)


def test_another_card_or_crop_is_another_run(study, results, tiny, monkeypatch):
    first = study_encoders.embed(study, NAME, results)
    monkeypatch.setitem(cards(), NAME, dataclasses.replace(tiny, mean=(0.4, 0.5, 0.5)))
    with pytest.raises(store.StoreError, match=r"card\.mean was \[0\.5, 0\.5, 0\.5\], is \[0\.4, 0\.5, 0\.5\]"):
        study_encoders.find_embeddings(study, NAME, results)
    assert study_encoders.embed(study, NAME, results).folder != first.folder
