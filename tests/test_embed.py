"""Embeddings: what the file holds, what a kill costs, and what is refused."""

import dataclasses
import json

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from tiny_encoders import tiny_card, use

from mfcore import canary, cards, config, embed, encoders, patches, store

N_PATCHES = 23
NAME = "tiny"


@pytest.fixture
def study() -> config.Study:
    return config.Study(
        name="little",
        title="a study small for testing",
        data=config.Data(source="synthetic", n_annotations=N_PATCHES),
        patches=config.Patches(size_px=32, um_per_px=0.25, stored_px=40),
        encoders=(NAME,),
    )


@pytest.fixture
def results(study, tmp_path):
    """A results folder with finished patches: noise, from two slides of 0.25 and 0.5 um/px."""
    run = store.open_run(tmp_path, "patches", study.name, patches.config_of(study), {"made": "for a test"})
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
    store.write_parquet(run.path("labels.parquet"), table)
    noise = np.random.default_rng(0).integers(0, 256, (N_PATCHES, 40, 40, 3), dtype=np.uint8)
    np.save(run.path("patches.npy"), noise)
    run.finish(["labels.parquet", "patches.npy"])
    return tmp_path


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> cards.EncoderCard:
    """The encoder "tiny", and shards of five patches."""
    card = tiny_card()
    assert use(monkeypatch, card) == NAME
    monkeypatch.setattr(embed, "SHARD", 5)
    return card


def test_every_patchs_centre_is_embedded_row_for_row(study, results, tiny):
    run = embed.embed(study, NAME, results)
    features, patch_ids = embed.load(run)
    assert features.dtype == np.float32 and features.shape == (N_PATCHES, 24)
    np.testing.assert_array_equal(patch_ids, np.arange(N_PATCHES))
    _, stored = patches.load(patches.find(study, results))
    centre = np.asarray(stored)[:, 4:36, 4:36]
    expected = np.concatenate([encoders.load(NAME).embed(centre[i : i + 1]) for i in range(N_PATCHES)])
    np.testing.assert_allclose(features, expected, atol=1e-5)
    assert run.done and run.record["facts"]["n_patches"] == N_PATCHES
    assert not run.path("units").exists()


def test_the_file_is_what_the_fields_tools_read_and_says_where_it_is_from(study, results, tiny):
    run = embed.embed(study, NAME, results)
    with h5py.File(run.path("embeddings.h5")) as content:
        assert set(content) == {"features", "coords", "patch_id", "slide_id"}
        coords = content["coords"][:]
        assert coords.dtype == np.int64 and content["coords"].attrs["patch_size"] == 32
        assert coords[3].tolist() == [103 - 16, 204 - 16]  # 203.5 - 16, rounded up
        assert coords[12].tolist() == [112 - 8, 205]  # 32 px of 0.25 um are 16 px of 0.5 um; 212.5 - 8, rounded up
        assert content["slide_id"].asstr()[[9, 10]].tolist() == ["one", "two"]
        card = json.loads(content.attrs["card"])
        assert card["name"] == NAME and card["n_dims"] == 24 and content.attrs["weights"] == "seed 0"
        assert canary.check(encoders.load(NAME), content.attrs["canary"]) < 1e-6


def test_native_resolution_and_unknown_um_per_px_leave_the_crop_as_wide_as_it_is(study, results):
    table, _ = patches.load(patches.find(study, results))
    native = dataclasses.replace(study, switches=dataclasses.replace(study.switches, resolution="native"))
    assert embed._top_left(table, native)[12].tolist() == [112 - 16, 213 - 16]
    assert embed._top_left(table.assign(um_per_px=np.nan), study)[12].tolist() == [112 - 16, 213 - 16]


class Killed(BaseException):
    """As unexpected as a kill."""


def test_a_killed_run_goes_on_where_it_stopped_and_ends_the_same(study, results, monkeypatch):
    whole = embed.embed(study, NAME, results)
    expected, checksum = embed.load(whole)[0], whole.record["files"]["embeddings.h5"]["sha256"]
    for file in whole.folder.iterdir():
        file.unlink()
    whole.folder.rmdir()

    calls, original = [], encoders.Encoder.embed

    def dying(self, batch, patch_ids=None):
        if patch_ids is not None:
            calls.append(list(patch_ids))
            if len(calls) == 8:  # in the middle of the third shard
                raise Killed
        return original(self, batch, patch_ids)

    monkeypatch.setattr(encoders.Encoder, "embed", dying)
    with pytest.raises(Killed):
        embed.embed(study, NAME, results, batch_size=2)
    with pytest.raises(store.StoreError):
        embed.find(study, NAME, results)
    run = embed.embed(study, NAME, results, batch_size=2)
    assert calls[8] == [10, 11]  # the two finished shards aren't made again
    np.testing.assert_allclose(embed.load(run)[0], expected, atol=1e-6)

    monkeypatch.setattr(encoders.Encoder, "embed", original)
    for file in run.folder.iterdir():
        file.unlink()
    run.folder.rmdir()
    assert embed.embed(study, NAME, results).record["files"]["embeddings.h5"]["sha256"] == checksum


def test_a_finished_run_is_taken_as_it_is(study, results, monkeypatch):
    run = embed.embed(study, NAME, results)
    monkeypatch.setattr(encoders, "load", lambda *_: pytest.fail("loaded a model for nothing"))
    assert embed.embed(study, NAME, results).key == run.key
    assert embed.find(study, NAME, results).folder == run.folder


def test_shards_of_another_network_are_refused(study, results, monkeypatch):
    original = encoders.Encoder.embed

    def dying(self, batch, patch_ids=None):
        if patch_ids is not None and patch_ids[0] >= 10:
            raise Killed
        return original(self, batch, patch_ids)

    monkeypatch.setattr(encoders.Encoder, "embed", dying)
    with pytest.raises(Killed):
        embed.embed(study, NAME, results)
    monkeypatch.setattr(encoders.Encoder, "embed", original)
    load = encoders.load

    def other_weights(name, device="cpu"):
        encoder = load(name, device)
        with torch.no_grad():
            encoder.model.blocks[0].mlp.fc1.weight.mul_(1.5)
        return encoder

    monkeypatch.setattr(encoders, "load", other_weights)
    with pytest.raises(encoders.EncoderError, match="isn't the one of before"):
        embed.embed(study, NAME, results)


def test_nan_is_refused_with_the_patches_names_and_nothing_is_finished(study, results, monkeypatch):
    original = encoders.read_out

    def broken(model, card, images):
        features = original(model, card, images)
        features[:, 0] = torch.where(images[:, 0, 0, 0] > 0.9, torch.nan, features[:, 0])
        return features

    _, stored = patches.load(patches.find(study, results))
    bad = np.flatnonzero(stored[:, 4, 4, 0] > 0.95 * 255)
    assert len(bad)
    monkeypatch.setattr(encoders, "read_out", broken)
    with pytest.raises(encoders.EncoderError, match=rf"'tiny' gives NaN or infinity for patches \[{bad[0]}"):
        embed.embed(study, NAME, results)
    with pytest.raises(store.StoreError, match="embeddings"):
        embed.find(study, NAME, results)


def test_what_isnt_there_is_said(study, results, tmp_path):
    with pytest.raises(store.StoreError, match="no finished 'patches' run 'little'"):
        embed.embed(study, NAME, tmp_path / "empty")
    with pytest.raises(store.StoreError, match="no finished 'embeddings' run 'random:vit_tiny_patch16_224'"):
        embed.find(study, "random:vit_tiny_patch16_224", results)
    run = store.open_run(results, "embeddings", "x", {}, {})
    with pytest.raises(store.StoreError, match="not finished"):
        embed.load(run)


def test_an_encoder_without_a_card_of_its_own_is_found_by_name_without_asking_anyone(study, results, monkeypatch):
    run = embed.embed(study, "random:resnet10t", results)
    assert embed.load(run)[0].shape == (N_PATCHES, 512)
    monkeypatch.setattr(encoders, "card", lambda name: pytest.fail("asked for the card"))
    assert embed.find(study, "random:resnet10t", results).folder == run.folder
    wider = dataclasses.replace(study, patches=dataclasses.replace(study.patches, size_px=40))
    with pytest.raises(store.StoreError):
        embed.find(wider, "random:resnet10t", results)


def test_another_card_or_crop_is_another_run(study, results, tiny, monkeypatch):
    first = embed.embed(study, NAME, results)
    monkeypatch.setitem(cards.CARDS, NAME, dataclasses.replace(tiny, mean=(0.4, 0.5, 0.5)))
    with pytest.raises(store.StoreError, match=r"card\.mean"):
        embed.find(study, NAME, results)
    assert embed.embed(study, NAME, results).folder != first.folder
