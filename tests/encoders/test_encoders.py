"""Encoders: names, readouts, evaluation mode, the networks made of them for training, and encoders of one's own."""

import dataclasses

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_encoders import some_patches, tiny_card, use

from mfcore import encoders
from mfcore.encoders import EncoderError, architecture, catalogue, weights
from mfcore.encoders.card import EncoderCard, released_cards
from mfcore.store import file_sha256
from mfcore.study import encoders as study_encoders
from mfcore.study.config import Data, OwnEncoder, Settings, Switches, as_dict, load_study


@pytest.fixture(scope="module")
def lite0() -> encoders.Encoder:
    return encoders.load("efficientnet_lite0")


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(EncoderError, match="virchow2"):
        encoders.card_of("virchow_2")
    with pytest.raises(EncoderError, match="resnet18"):
        encoders.card_of("timm:resnet18x")
    with pytest.raises(EncoderError, match="a1_in1k"):
        encoders.card_of("timm:resnet18.none")


def test_the_card_of_any_timm_model_is_timms_own_configuration():
    card = encoders.card_of("timm:resnet18.a1_in1k")
    assert (card.identifier, card.crop_px, card.n_dims, card.n_parameters) == ("timm/resnet18.a1_in1k", 224, 512, 11_176_512)
    assert card.mean == (0.485, 0.456, 0.406)
    card = encoders.card_of("timm:vit_small_patch14_dinov2")
    assert (card.identifier, card.crop_px, card.n_prefix_tokens) == ("timm/vit_small_patch14_dinov2.lvd142m", 518, 1)


def test_every_card_can_be_read_as_a_table_with_units():
    for name in encoders.names():
        table = encoders.card_table(encoders.card_of(name)).set_index("fact")["value"]
        assert f"{encoders.card_of(name).n_dims} dimensions" in table["embedding"] and "px" in table["input"]
    table = encoders.card_table(encoders.card_of("virchow2")).set_index("fact")["value"]
    assert table["trained at"] == "0.25 / 0.5 / 1 / 2 µm/px" and "to be accepted" in table["licence"]
    assert "3158645804b69e3f3bc4439d4116edddf0840a72" in table["weights"]


def test_a_device_that_isnt_there_is_said(monkeypatch):
    with pytest.raises(EncoderError, match="device 'quantum'"):
        encoders.load(use(monkeypatch, tiny_card()), device="quantum")


# ---- readouts and evaluation ----


def test_anything_but_rgb_bytes_is_refused(monkeypatch):
    encoder = encoders.load(use(monkeypatch, tiny_card()))
    for wrong in (np.zeros((2, 32, 32, 3), np.float32), np.zeros((2, 3, 32, 32), np.uint8), np.zeros((32, 32, 3), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            encoder.embed(wrong)
    assert encoder.embed(np.zeros((0, 32, 32, 3), np.uint8)).shape == (0, 24)


def test_the_patch_mean_leaves_class_and_register_tokens_out(monkeypatch):
    card = tiny_card(readout="class+mean", n_dims=48)
    encoder = encoders.load(use(monkeypatch, card))
    patches = some_patches(3, 32)
    with torch.inference_mode():
        tokens = encoder.model.forward_features(encoder.transform(patches)).numpy()  # (3, 1 + 2 + 4, 24)
    assert tokens.shape == (3, 7, 24)
    features = encoder.embed(patches)
    np.testing.assert_allclose(features[:, :24], tokens[:, 0], rtol=1e-5)
    np.testing.assert_allclose(
        features[:, 24:], (tokens[:, 3] + tokens[:, 4] + tokens[:, 5] + tokens[:, 6]) / 4, rtol=1e-4, atol=1e-6
    )
    assert np.abs(features[:, 24:] - tokens[:, 1:].mean(1)).max() > 0.05  # what the released code of Ganz et al. computes


def test_an_encoder_is_frozen_and_in_evaluation_mode(lite0, monkeypatch):
    dropping = encoders.load(use(monkeypatch, tiny_card(arguments={**tiny_card().arguments, "proj_drop_rate": 0.9})))
    patches = some_patches(2, 32)
    np.testing.assert_array_equal(dropping.embed(patches), dropping.embed(patches))
    before = {key: tensor.clone() for key, tensor in lite0.model.state_dict().items()}
    patches = some_patches(4, 64)
    together, alone = lite0.embed(patches), np.concatenate([lite0.embed(patches[i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(together, alone, atol=1e-4)  # batch norm would mix the neighbours in
    assert all(torch.equal(before[key], tensor) for key, tensor in lite0.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in lite0.model.parameters())
    assert together.dtype == np.float32 and together.shape == (4, 1280)


def test_nan_is_refused_naming_encoder_and_patches(monkeypatch):
    encoder = encoders.load(use(monkeypatch, tiny_card()))
    with torch.no_grad():
        encoder.model.norm.bias[3] = float("nan")
    with pytest.raises(EncoderError, match=r"'tiny' gives NaN or infinity for patches \[0, 1\]"):
        encoder.embed(some_patches(2, 32))


# ---- networks to be trained ----


def test_a_network_has_one_logit_and_a_head_from_its_seed_on_the_encoders_weights(lite0):
    network = encoders.build_network("efficientnet_lite0", n_classes=1, seed=3)
    assert network.training and network.card == lite0.card
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 1)
    again, other = (encoders.build_network("efficientnet_lite0", seed=seed) for seed in (3, 4))
    assert torch.equal(network.classifier.weight, again.classifier.weight)
    assert not torch.equal(network.classifier.weight, other.classifier.weight)
    assert torch.equal(network.conv_stem.weight, lite0.model.conv_stem.weight)
    scratch = encoders.build_network("efficientnet_lite0", pretrained=False, seed=3)
    assert not torch.equal(network.conv_stem.weight, scratch.conv_stem.weight)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_head_of_a_transformer_sits_on_its_class_token(monkeypatch):
    name = use(monkeypatch, tiny_card(readout="class+mean", n_dims=48, arguments={**tiny_card().arguments, "global_pool": ""}))
    network = encoders.build_network(name, n_classes=2).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        tokens = network.forward_features(images)
        np.testing.assert_allclose(network(images), network.head(tokens[:, 0]), atol=1e-6)


def test_without_a_seed_a_network_follows_the_callers_generator(monkeypatch):
    name = use(monkeypatch, tiny_card())
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(encoders.build_network(name, pretrained=False).head.weight)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_devices():
    assert encoders.choose_device("cpu").type == "cpu"
    if torch.cuda.is_available():
        assert encoders.choose_device("auto").type == "cuda"
    else:
        assert encoders.choose_device("auto").type == "cpu"
        with pytest.raises(encoders.EncoderError, match="device 'cuda' can't be used"):
            encoders.choose_device("cuda")


# ---- as the released code does ----


def test_released_input_is_the_released_codes_way_and_others_stay():
    """Registers in Virchow2's mean, Prov-GigaPath resized and not cropped, ViT-H normalised by 0.5 in the probe alone."""
    ours = Settings("t", "t", Data("midog"))
    released = dataclasses.replace(ours, switches=Switches(encoder_input="released"))

    def changed(of, name):
        was, now = of(ours, name).identity(), of(released, name).identity()
        return {key: (was[key], now[key]) for key in was if was[key] != now[key]}

    assert changed(study_encoders.card_of, "virchow2") == {"readout": ("class+mean", "class+rest")}
    assert changed(study_encoders.card_of, "gigapath") == {"resize_px": (256, 224)}
    assert changed(study_encoders.card_of, "vit_huge_in21k") == {"interpolation": ("bicubic", "bilinear")}
    probed = study_encoders.card_of(released, "vit_huge_in21k")
    assert (probed.readout, probed.n_dims, probed.mean) == ("class", 1280, (0.5, 0.5, 0.5))
    assert set(changed(study_encoders.training_card_of, "vit_huge_in21k")) == {"mean", "std"}
    assert changed(study_encoders.training_card_of, "virchow2") == changed(study_encoders.training_card_of, "gigapath") == {}
    for name in set(encoders.names()) - {*released_cards("embedding")}:
        assert study_encoders.card_of(released, name) == encoders.card_of(name)
    for released_ways in (released_cards("embedding"), released_cards("training")):
        for name, way in released_ways.items():
            card = encoders.card_of(way)
            assert card.variant_of == name and card.departs.startswith("released code of Ganz et al. 2024")


# ---- encoders of one's own ----

CENTRE = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
OWN = """
name: mine
title: t
data: {source: csv}
encoders:
  - vit_tiny_random
  - name: our_vit
    architecture: vit_tiny_patch16_224
    weights: ./our_vit.safetensors
    mean: [0.4, 0.5, 0.6]
    std: [0.2, 0.2, 0.2]
  - name: lite0_bicubic_256
    like: efficientnet_lite0
    resize_px: 256
"""


@pytest.fixture
def study_file(tmp_path):
    """A study with two encoders of its own, one of them new, its weights beside it."""
    model = architecture.create("vit_tiny_patch16_224", {})
    save_file(model.state_dict(), tmp_path / "our_vit.safetensors")
    (tmp_path / "mine.yaml").write_text(OWN)
    return tmp_path / "mine.yaml"


def test_five_lines_make_an_encoder(study_file):
    study = load_study(study_file)
    assert study.encoders == ("vit_tiny_random", "our_vit", "lite0_bicubic_256")
    card = study_encoders.card_of(study, "our_vit")
    assert (card.source, card.n_dims, card.n_parameters, card.readout) == ("file", 192, 5_524_416, "class")
    assert card.mean == (0.4, 0.5, 0.6) and card.sha256 == file_sha256(study_file.parent / "our_vit.safetensors")
    encoder, patches = encoders.load(card), some_patches(2, 224)
    state = load_file(study_file.parent / "our_vit.safetensors")
    assert torch.equal(encoder.model.state_dict()["norm.weight"], state["norm.weight"])
    with torch.inference_mode():
        expected = encoder.model.forward_features(encoder.transform(patches))[:, 0]
    np.testing.assert_allclose(encoder.embed(patches), expected, atol=1e-5)
    assert study_encoders.card_of(study, "vit_tiny_random") == encoders.card_of("vit_tiny_random")
    assert yaml.safe_load(yaml.safe_dump(as_dict(study)))["own_encoders"][0]["name"] == "our_vit"


def test_a_known_encoder_under_other_conventions_is_a_variant_of_it(study_file):
    card, own = study_encoders.card_of(load_study(study_file), "lite0_bicubic_256"), encoders.card_of("efficientnet_lite0")
    assert card == dataclasses.replace(
        own, name="lite0_bicubic_256", resize_px=256, variant_of="efficientnet_lite0", departs="the study's own: resize_px 256"
    )
    assert encoders.load(card).embed(some_patches(1, 64)).shape == (1, 1280)


def test_where_the_weights_lie_decides_nothing(study_file, tmp_path):
    card = study_encoders.card_of(load_study(study_file), "our_vit")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.safetensors").write_bytes((tmp_path / "our_vit.safetensors").read_bytes())
    other = OwnEncoder("our_vit", "", str(tmp_path / "elsewhere" / "x.safetensors"), "vit_tiny_patch16_224")
    other = dataclasses.replace(other, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2))
    assert (
        study_encoders.card_of(Settings("t", "t", Data("csv"), own_encoders=(other,)), "our_vit").identity() == card.identity()
    )


def own(**said) -> EncoderCard:
    """The card of a study's own encoder."""
    record = OwnEncoder("mine", **{"weights": "random", "architecture": "vit_tiny_patch16_224", **CENTRE, **said})
    return study_encoders.card_of(Settings("t", "t", Data("csv"), encoders=("mine",), own_encoders=(record,)), "mine")


def test_a_record_may_say_whatever_a_card_says():
    """But for what comes from ``weights`` and ``like``."""
    known = {field.name for field in dataclasses.fields(EncoderCard)} - {"identifier", "revision", "variant_of"}
    assert {field.name for field in dataclasses.fields(OwnEncoder)} == known | {"like", "weights", "features", "tolerance_px"}
    assert own(gated=True).gated and own(weights="me/mine", files=("a.bin",)).files == ("a.bin",)


def test_weights_known_by_checksum_need_not_be_here(monkeypatch, tmp_path):
    """So that what was made with them can be read anywhere, without building the network if the record says all of it."""
    said = {"weights": str(tmp_path / "x.pth"), "sha256": "1" * 64, "n_dims": 192, "n_parameters": 5_524_416}
    monkeypatch.setattr(catalogue, "create", None)
    card = own(**said, n_prefix_tokens=1, readout="class")
    assert (card.sha256, weights.state(card).is_here) == ("1" * 64, False)
    with pytest.raises(EncoderError, match=r"x\.pth isn't there"):
        encoders.load(card)


def test_a_weights_file_that_changes_is_another_encoder(tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"before")
    before = own(weights=str(file))
    file.write_bytes(b"and after")
    assert own(weights=str(file)).identity() != before.identity()


def test_other_weights_of_a_known_architecture():
    commit = "0123456789" * 4
    card = own(like="phikon", weights=f"me/mine@{commit}", architecture=None, mean=None, std=None)
    assert card == dataclasses.replace(
        encoders.card_of("phikon"),
        name="mine",
        identifier="me/mine",
        revision=commit,
        variant_of="phikon",
        departs=f"the study's own: weights me/mine@{commit}",
    )
    card = own(like="efficientnet_lite0", weights="me/mine", architecture=None, mean=None, std=None)
    assert (card.source, card.revision, card.sha256) == ("hub", "", "")
    assert card.files == ("model.safetensors", "pytorch_model.bin")
    assert own(weights="me/mine", source="hub-transformers").source == "hub-transformers"


def test_a_card_made_in_python_is_as_good_as_a_name():
    card = tiny_card()
    assert encoders.load(card).embed(some_patches(2, 32)).shape == (2, 24)
    assert encoders.build_network(card, seed=0).card is card


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": ""}, "'mine' lacks weights"),
        ({"mean": None, "std": None}, "'mine' lacks mean, std; or say 'like: NAME'"),
        ({"weights": "/nowhere/x.pth"}, "/nowhere/x.pth aren't there"),
        ({"weights": "somewhere"}, r"must be OWNER/REPOSITORY\[@REVISION\]"),
        ({"weights": "a/b@main"}, "revision: 'main' must be a commit"),
        ({"architecture": "vit_tiny_patch16_242"}, "timm has no architecture 'vit_tiny_patch16_242'; did you mean vit_tiny"),
        ({"arguments": {"num_heads": 5}}, "can't be built so"),
        ({"interpolation": "lanczos"}, "interpolation: 'lanczos' should be 'bilinear' or 'bicubic'"),
        ({"like": "unni"}, "like 'unni', which has no card; did you mean uni"),
        ({"like": "conch"}, "'mine': like: encoder 'conch' has no card: it ends in .*features: ./FOLDER"),
        ({"crop_px": 300}, "crop_px: 300 is more than resize_px"),
        ({"name": "uni"}, "'uni' of the study has the name of a known one"),
        ({"source": "hub-transformers"}, "source 'hub-transformers' must be one of .*, of weights on the hub"),
        ({"like": "uni", "weights": "", "source": "random"}, "source 'random' must be one of"),
        ({"weights": "a/b", "source": "folder"}, "source 'folder' must be one of"),
    ],
)
def test_a_record_that_cant_be_is_refused_by_name(changes, message):
    record = OwnEncoder("mine", "", "random", "vit_tiny_patch16_224", mean=(0.5,) * 3, std=(0.5,) * 3)
    study = Settings("t", "t", Data("csv"), own_encoders=(dataclasses.replace(record, **changes),))
    with pytest.raises(EncoderError, match=message):
        study_encoders.card_of(study, changes.get("name", "mine"))
