"""The exhibit on encoders: a row for every card, in the right group, with what is here; and a gated encoder's way to it."""

import dataclasses
import json

import h5py
import hub_server
import numpy as np
import pandas as pd
import pytest
from hub_server import Repository

from mfcore import store
from mfcore.analysis.encoders import cards as of_cards
from mfcore.encoders import weights
from mfcore.encoders.card import TABLE_1, cards, unavailable
from mfcore.study import config, data as study_data
from mfcore.study.study import Study
from mfcore.sweep import run as sweep_run

STUDY = """
title: a study small for testing
name: little
data: {source: synthetic, n_annotations: 6}
patches: {size_px: 32, um_per_px: 0.25, stored_px: 40}
encoders:
  - vit_tiny_random
  - uni
  - resnet50
  - "hf-hub:me/mine"
  - "timm:resnet18.a1_in1k"
  - {name: lite0_bilinear, like: efficientnet_lite0, interpolation: bilinear}
  - {name: broken, like: no_such_encoder}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "little.yaml"
    path.write_text(STUDY)
    return path


@pytest.fixture
def study(file) -> config.Settings:
    return config.load_study(file)


@pytest.fixture
def results(study, tmp_path):
    """A study's results with finished patches, of noise."""
    folder = tmp_path / "results" / study.name
    run = store.open_run(folder, "patches", study.name, study_data.patches_config(study), {"made": "for a test"})
    ids = np.arange(6)
    columns = {"slide_id": "one", "domain": "lung", "label": ids % 2, "x_l0_px": 100.0, "y_l0_px": 200.0, "um_per_px": 0.25}
    store.write_parquet(run.path("labels.parquet"), pd.DataFrame({"patch_id": ids, **columns}))
    np.save(run.path("patches.npy"), np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8))
    run.finish(["labels.parquet", "patches.npy"])
    return folder


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A hub that must not be asked, an empty cache and no login."""
    with hub_server.serving() as server:
        hub_server.use(monkeypatch, server.url, tmp_path / "cache")
        yield server
        assert not server.asked


def embedded(study: config.Settings, results, name: str, card: dict, key: str = "") -> None:
    """Leave a finished run of embeddings behind, as by ``card``."""
    inputs = {"patches": key or study_data.find_patches(study, results).key}
    known = {"size_px": 32, **inputs}
    run = store.open_run(results, "embeddings", name, {"card": card, "size_px": 32}, inputs, known)
    run.path("embeddings.h5").write_bytes(b"")
    run.finish(["embeddings.h5"], weights="0123456789abcdef")


def row(study: config.Settings, results, name: str) -> dict:
    table = of_cards.encoders_table(Study(study, results)).set_index("encoder")
    return table.loc[name].to_dict()


def test_every_card_has_its_row_in_one_group(study, results, nowhere):
    opened = Study(study, results)
    table = of_cards.encoders_table(opened)
    described = ["hf-hub:me/mine", "timm:resnet18.a1_in1k", "lite0_bilinear", "broken"]
    assert table["encoder"].tolist() == [*cards(), *described, *unavailable()]
    groups = table.set_index("encoder")["group"]
    assert set(groups) <= set(of_cards.GROUPS)
    assert set(groups[groups == "paper"].index) == set(TABLE_1)
    expected = {"dinov2_vits14_focus": "anywhere", "midnight": "newer", "dinov2_vits14": "photographs", "hf-hub:me/mine": "own"}
    expected |= {"openmidnight": "newer", "plip_tower": "photographs", "conch": "none", "virchow2g": "none"}
    assert groups[list(expected)].to_dict() == expected
    exhibit = of_cards.encoders(opened)
    assert exhibit.caption.startswith(f"There are {len(cards()) + len(described)} cards, ")
    titles = [title for key, title in of_cards.GROUPS.items() if key in set(groups)]
    assert set(exhibit.table["encoder"]) == set(table["encoder"]) and list(exhibit.table["group"].unique()) == titles


def test_a_row_says_what_the_card_says(study, results, nowhere):
    found = row(study, results, "virchow2")
    assert found["page"] == f"{nowhere.url}/paige-ai/Virchow2"
    assert found["weights"] == "paige-ai/Virchow2" and found["revision"] == cards()["virchow2"].revision
    assert found["licence"] == "CC-BY-NC-ND-4.0, to be accepted on the hub"
    assert found["input"] == "resized to 224 px (bicubic), central 224 px"
    assert found["embedding"] == "2,560 dimensions: class token and mean of the patch tokens"
    assert "631.2 million parameters" in found["architecture"]
    assert found["precision on a GPU"] == "float16"
    assert found["trained at"].startswith("0.25 / 0.5 / 1 / 2 µm/px (")
    assert row(study, results, "gigapath")["input"].startswith("resized to 256 px")
    mean_std = row(study, results, "h_optimus_0")["mean, std"]
    assert mean_std == "0.7072, 0.5787, 0.7036; 0.2119, 0.2301, 0.1775"
    assert row(study, results, "resnet50")["trained at"] == "no µm/px is known"
    assert row(study, results, "vit_tiny_random")["weights"] == "random weights"


def test_a_variant_says_what_it_departs_from_and_how_um_per_px_is_known(study, results, nowhere, monkeypatch):
    changed = {"name": "virchow2_other", "variant_of": "virchow2", "departs": "in the readout", "evidence": "magnification"}
    monkeypatch.setitem(cards(), "virchow2_other", dataclasses.replace(cards()["virchow2"], **changed))
    found = row(study, results, "virchow2_other")
    assert (found["group"], found["departs"]) == ("variants", "of virchow2; in the readout")
    assert found["trained at"] == "0.25 / 0.5 / 1 / 2 µm/px (from a magnification)"


def test_the_state_of_an_encoder_of_the_study(study, results, nowhere):
    waiting = row(study, results, "resnet50")
    assert waiting["is"] == "not here"
    assert waiting["state"].startswith("not embedded yet; fetched at first use, about 0.094 GB")
    embedded(study, results, "resnet50", cards()["resnet50"].identity(), key="other-patches")
    assert row(study, results, "resnet50")["is"] == "not here"  # of patches that the study no longer has
    embedded(study, results, "resnet50", cards()["resnet50"].identity() | {"interpolation": "bicubic"})
    found = row(study, results, "resnet50")
    assert found["is"] == "not here" and found["state"].startswith("not embedded yet")  # by another card
    store.write_json(
        results / "failures" / "02_embed.resnet50.json",
        {"parameters": {"encoder": "resnet50"}, "reason": "EncoderError: <no> `hf auth login`"},
    )
    assert row(study, results, "resnet50")["state"] == "failed here: <no> `hf auth login`"
    assert "1 failed here" in of_cards.encoders(Study(study, results)).caption
    embedded(study, results, "resnet50", cards()["resnet50"].identity())
    found = row(study, results, "resnet50")
    assert (found["is"], found["state"]) == ("embedded", "embedded in this study (weights 0123456789ab)")
    assert row(study, results, "vit_tiny_random")["is"] == "here"


def test_an_encoder_named_by_where_it_is_has_the_card_that_it_ran_with(study, results, nowhere):
    before = row(study, results, "timm:resnet18.a1_in1k")
    assert before["input"] == "" and before["state"] == "not embedded yet; its card is read when it is embedded"
    card = cards()["resnet50"].identity() | {"identifier": "timm/resnet18.a1_in1k", "n_dims": 512}
    embedded(study, results, "timm:resnet18.a1_in1k", card)
    found = row(study, results, "timm:resnet18.a1_in1k")
    assert found["is"] == "embedded" and found["embedding"].startswith("512 dimensions") and found["group"] == "own"


def test_a_record_of_the_study_is_a_row_like_any_other(study, results, nowhere):
    found = row(study, results, "lite0_bilinear")
    assert (found["group"], found["is"]) == ("own", "here") and "(bilinear)" in found["input"]
    assert found["departs"] == "of efficientnet_lite0; the study's own: interpolation bilinear"
    found = row(study, results, "broken")
    assert found["group"] == "own" and "no_such_encoder" in found["state"]


def test_what_has_no_card_is_a_row_with_the_reason_until_its_embeddings_are_here(study, results, nowhere, tmp_path):
    found = row(study, results, "conch")
    assert (found["is"], found["weights"], found["state"]) == ("not here", "", unavailable()["conch"])
    asked = dataclasses.replace(study, encoders=(*study.encoders, "conch"))
    found = row(asked, results, "conch")
    assert found["state"].startswith("not embedded yet; encoder 'conch' has no card: ")
    assert "{name: conch, features: ./FOLDER}" in found["state"] and found["group"] == "none"
    file = tmp_path / "conch.h5"
    with h5py.File(file, "w") as out:
        out["features"], out["coords"] = np.zeros((2, 512), np.float32), np.zeros((2, 2), int)
    record = config.OwnEncoder("conch", features=str(file))
    found = row(dataclasses.replace(asked, own_encoders=(*study.own_encoders, record)), results, "conch")
    assert found["group"] == "own" and found["embedding"].startswith("512 dimensions") and "made elsewhere" in found["weights"]


def test_others_say_what_is_on_this_machine(study, results, nowhere):
    assert row(study, results, "efficientnet_lite0")["state"] == weights.state(cards()["efficientnet_lite0"]).text
    found = row(study, results, "virchow")
    assert found["is"] == "not here" and "no token is here" in found["state"]
    assert row(study, results, "uni")["state"].startswith("not embedded yet; gated, ")


def test_a_gated_encoder_is_a_row_with_the_remedy_and_the_sweep_goes_on(study, file, results, monkeypatch, tmp_path):
    """The real notebook 02 against a hub that says no: what the sweep records is what the exhibit shows."""
    with hub_server.serving() as server:
        server.repositories["MahmoodLab/uni"] = Repository({}, is_gated=True)
        for name, value in {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "*"}.items():
            monkeypatch.setenv(name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        assert not sweep_run.run_job(file, "02_embed.uni", results, "", 1)
        failure = store.read_json(results / "failures" / "02_embed.uni.json")
        assert failure["reason"].startswith(f"EncoderError: {server.url}/MahmoodLab/uni didn't give ")
        assert "; accept its licence there, and use a token" in failure["reason"]
        assert not sweep_run.run_job(file, "03_linear_probe.uni", results, "", 1)
        found = row(study, results, "uni")
        assert found["is"] == "failed" and found["state"] == "failed here: " + failure["reason"].removeprefix("EncoderError: ")
    assert "Traceback" not in json.dumps(failure)
