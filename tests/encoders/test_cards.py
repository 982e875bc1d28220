"""Every card against the facts of each model's page, by building its architecture without weights."""

import dataclasses
import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from tiny_encoders import tiny_card, use

from mfcore import encoders
from mfcore.encoders import EncoderError, architecture, network
from mfcore.encoders.card import TABLE_1, cards, unavailable
from mfcore.encoders.readout import READOUTS

# parameters without classifier, tokens at the card's crop (0: a convolutional network), dimensions; the tokens are the
# patches, (crop / patch)^2, and the class and register tokens that each model's page tells of
FACTS = {
    "efficientnet_lite0": (3_371_008, 0, 1280),
    "vit_tiny_random": (5_524_416, 196 + 1, 192),
    "gigapath": (1_134_953_984, 196 + 1, 1536),
    "h_optimus_0": (1_134_774_272, 256 + 5, 1536),
    "h_optimus_1": (1_134_774_272, 256 + 5, 1536),
    "h0_mini": (85_739_520, 261, 768),
    "virchow": (631_229_184, 257, 2560),
    "virchow2": (631_239_424, 261, 2560),
    "uni": (303_350_784, 197, 1024),
    "uni2_h": (681_394_176, 256 + 9, 1536),
    "phikon": (85_798_656, 197, 768),
    "phikon_v2": (303_350_784, 197, 1024),
    "midnight": (1_134_769_664, 257, 3072),
    "vit_huge_in21k": (630_764_800, 257, 1280),
    "resnet50": (23_508_032, 0, 2048),
    "kaiko_vits16": (21_665_664, 197, 384),
    "kaiko_vits8": (21_670_272, 785, 384),
    "kaiko_vitb16": (85_798_656, 197, 768),
    "kaiko_vitb8": (85_807_872, 785, 768),
    "kaiko_vitl14": (304_370_688, 261, 1024),
    "dinov2_vits14": (22_056_192, 257, 384),
    "dinov2_vits14_focus": (21_628_800, 257, 384),  # 22,056,192 less the position embedding of 518 px beyond that of 224 px
    "dinov2_vitb14": (86_579_712, 257, 768),
    "dinov2_vitl14": (304_367_616, 257, 1024),
    "dinov2_vitg14": (1_136_479_232, 257, 1536),
    "dinov3_vits16": (21_586_944, 256 + 5, 384),
    "dinov3_vitb16": (85_641_216, 261, 768),
    "dinov3_vitl16": (303_079_424, 261, 1024),
    "dinov3_vits16plus": (28_683_264, 261, 384),
    "dinov3_vith16plus": (840_509_440, 261, 1280),
    "dinov3_vit7b16": (6_716_030_976, 261, 4096),
    "gigapath_flash": (21_681_024, 197, 384),
    "gpfm": (303_227_904, 257, 1024),
    "openmidnight": (1_134_774_272, 256 + 5, 1536),
    "openpath": (1_134_774_272, 256 + 5, 1536),
    "sp22m": (21_665_664, 197, 384),
    "plip_tower": (87_456_000, 49 + 1, 768),
    "mstar": (303_350_784, 197, 1024),
    "path_orchestra": (303_350_784, 197, 1024),
    "lunit_dino16": (21_665_664, 197, 384),
    "lunit_dino16_mirror_norm": (21_665_664, 197, 384),
    "lunit_dino8": (21_670_272, 785, 384),
    "lunit_dino8_imagenet_norm": (21_670_272, 785, 384),
    "lunit_dino8_crop": (21_670_272, 785, 384),
    "hibou_b": (85_739_520, 261, 768),
    "hibou_l": (303_657_216, 261, 1024),
    "ctranspath": (27_520_038, 0, 768),
    "virchow2_registers_in_mean": (631_239_424, 261, 2560),
    "virchow2_class": (631_239_424, 261, 1280),
    "gigapath_resize_224": (1_134_953_984, 197, 1536),
    "vit_huge_in21k_bilinear": (630_764_800, 257, 1280),
    "vit_huge_in21k_imagenet_norm": (630_764_800, 257, 1280),
    "midnight_class": (1_134_769_664, 257, 1536),
    "h0_mini_class_mean": (85_739_520, 261, 1536),
    "resnet50_layer3": (23_508_032, 0, 1024),
    "dinov2_vits14_focus_bilinear": (21_628_800, 257, 384),
    "dinov2_vits14_focus_crop": (21_628_800, 257, 384),
}


@pytest.mark.parametrize("name", cards())
def test_card_is_what_its_architecture_builds(name):
    card = encoders.card_of(name)
    n_parameters, n_tokens, n_dims = FACTS[name]
    assert (card.n_parameters, card.n_dims) == (n_parameters, n_dims)
    with torch.device("meta"):
        model = architecture.create(card.architecture, card.arguments).eval()
        network.check_card(card, model)
        images = torch.zeros(1, 3, card.crop_px, card.crop_px)
        assert encoders.read_out(model, card, images).shape == (1, n_dims)
        if n_tokens:
            assert model.forward_features(images).shape[:2] == (1, n_tokens)


def test_every_entry_stands_once_in_the_files_and_has_its_row_here():
    files = resources.files("mfcore.encoders").joinpath("cards").iterdir()
    entries = [name for file in files for name in re.findall(r"^(\w+):", file.read_text(encoding="utf-8"), re.MULTILINE)]
    assert sorted(entries) == sorted(cards()) == sorted(FACTS)


def test_cards_are_read_at_first_use_not_at_import():
    counts = "cards.cache_info().misses, conventions.cache_info().misses"
    code = f"from mfcore.encoders.card import cards, conventions; print({counts})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "0"]


NEW = {
    "identifier": "me/vit_small_patch16_224.mine",
    "architecture": "vit_small_patch16_224",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "n_dims": 384,
    "n_parameters": 21_665_664,
    "um_per_px": [0.5],
    "licence": "MIT",
    "facts": "made for a test",
}


def read_from(monkeypatch, folder: Path, entries: dict) -> dict:
    """The cards that a folder with these entries gives."""
    (folder / "cards").mkdir(exist_ok=True)
    (folder / "cards" / "mine.yaml").write_text(yaml.safe_dump(entries))
    monkeypatch.setattr("mfcore.encoders.card._data", folder.joinpath)
    return cards.__wrapped__()


def test_an_encoder_in_timms_format_is_one_entry_and_a_variant_says_only_what_differs(monkeypatch, tmp_path):
    variant = {"variant_of": "mine", "departs": "another's: bilinear", "interpolation": "bilinear"}
    found = read_from(monkeypatch, tmp_path, {"other_way": variant, "mine": NEW})
    own = found["mine"]
    assert (own.source, own.readout, own.mean, own.um_per_px) == ("hub", "class", (0.5, 0.5, 0.5), (0.5,))
    assert found["other_way"] == dataclasses.replace(own, name="other_way", **variant)


def test_an_entry_that_cant_be_a_card_is_named(monkeypatch, tmp_path):
    lacking = {key: value for key, value in NEW.items() if key != "std"}
    for entry, words in ((lacking, "mine: key std is missing"), ({**NEW, "sharpness": 1}, "mine: unknown key sharpness")):
        with pytest.raises(EncoderError, match=words):
            read_from(monkeypatch, tmp_path, {"mine": entry})


def test_every_hub_card_is_pinned_to_a_commit_or_says_that_it_isnt():
    unpinned = {card.name for card in cards().values() if card.source.startswith("hub") and not card.revision}
    assert all("the revision isn't pinned" in cards()[name].facts for name in unpinned)
    kaiko = {"kaiko_vits16", "kaiko_vits8", "kaiko_vitb16", "kaiko_vitb8"}
    huge = {"vit_huge_in21k", "vit_huge_in21k_bilinear", "vit_huge_in21k_imagenet_norm"}
    dinov3 = {"dinov3_vits16plus", "dinov3_vith16plus", "dinov3_vit7b16"}
    assert unpinned == {"dinov2_vitg14", "resnet50", *huge, *kaiko, *dinov3}
    assert all(cards()[name].revision for name in TABLE_1 if cards()[name].um_per_px)  # every foundation model of the paper


def test_what_has_no_card_says_why_and_what_to_do():
    reasons = unavailable()
    assert not set(reasons) & set(cards()) and {"conch", "musk", "virchow2g", "plip"} <= set(reasons)
    for name, reason in reasons.items():
        with pytest.raises(EncoderError) as caught:
            encoders.card_of(name)
        text = str(caught.value)
        assert text.startswith(f"encoder {name!r} has no card: ") and reason in text and "\n" not in text
        assert f"{{name: {name}, features: ./FOLDER}}" in text
    with pytest.raises(EncoderError, match="unknown encoder 'conch_v15'; did you mean conch_v1_5"):
        encoders.card_of("conch_v15")


def test_every_card_says_on_what_evidence_its_resolution_rests():
    assert all(bool(card.um_per_px) == bool(card.evidence) for card in cards().values())
    assert {cards()[name].evidence for name in ("gigapath", "uni", "uni2_h")} == {"stated", "magnification", "convention"}


def test_a_variant_is_the_same_weights_under_another_convention():
    variants = [card for card in cards().values() if card.variant_of]
    assert len(variants) == 13 and all(card.departs for card in variants)
    for card in variants:
        own = cards()[card.variant_of]
        assert not own.variant_of and card.identity() != own.identity()
        if card.name != "resnet50_layer3":  # TRIDENT takes other weights
            assert (card.identifier, card.revision, card.n_parameters) == (own.identifier, own.revision, own.n_parameters)


def test_ctranspaths_weights_arrive_in_the_mirrors_layout(tmp_path):
    """It has what joins two stages at the end of the first, not at the start of the second, and the masks of attention."""
    card = cards()["ctranspath"]
    built = architecture.create(card.architecture, card.arguments).state_dict()
    drawn = torch.Generator().manual_seed(0)
    expected = {
        key: torch.randn(tensor.shape, generator=drawn) if tensor.is_floating_point() else tensor
        for key, tensor in built.items()
    }
    assert sum("downsample" in key for key in expected) == 9
    earlier = {f"layers.{stage}.downsample": f"layers.{stage - 1}.downsample" for stage in (1, 2, 3)}
    stored = {
        next((key.replace(new, old) for new, old in earlier.items() if key.startswith(new)), key): tensor
        for key, tensor in expected.items()
    }
    stored |= {"layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49)}
    save_file(stored, tmp_path / "model.safetensors")
    here = dataclasses.replace(card, source="folder", identifier=str(tmp_path), revision="")
    found = encoders.load(here).model.state_dict()
    assert set(found) == set(expected) and all(torch.equal(found[key], expected[key]) for key in found)


def test_virchow2_as_released_averages_its_registers_in():
    model = architecture.create("vit_tiny_patch16_224", {"img_size": 32, "reg_tokens": 4}).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    released = tiny_card(readout=cards()["virchow2_registers_in_mean"].readout, n_prefix_tokens=5)
    with torch.inference_mode():
        tokens = model.forward_features(images)
        torch.testing.assert_close(encoders.read_out(model, released, images)[:, 192:], tokens[:, 1:].mean(1))


def test_layer3_is_the_mean_of_a_resnets_last_map_but_one():
    model = architecture.create("resnet10t", {}).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps = model.layer3(model.layer2(model.layer1(model.maxpool(model.act1(model.bn1(model.conv1(images)))))))
        found = encoders.read_out(model, tiny_card(readout="layer3", n_prefix_tokens=0), images)
    torch.testing.assert_close(found, maps.mean((2, 3)))
    assert READOUTS["layer3"].width(model) == found.shape[1]


def test_a_card_refuses_what_no_encoder_can_be():
    for changes, word in (
        ({"readout": "mean"}, "readout"),
        ({"interpolation": "nearest"}, "interpolation"),
        ({"std": (0.5, 0.5)}, "std"),
        ({"std": (0.5, 0.0, 0.5)}, "std"),
        ({"crop_px": 64}, "crop_px"),
        ({"n_prefix_tokens": 0}, "class token"),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean"),
        ({"n_dims": 0}, "n_dims"),
        ({"source": "hub", "revision": "main"}, r"revision\n  Value error, 'main' must be a commit"),
        ({"source": "hub", "revision": "5b5cc05"}, "40 digits"),
        ({"sha256": "abc"}, "sha256"),
        ({"um_per_px": (0.5, 500)}, "um_per_px"),
        ({"evidence": "rumour", "um_per_px": (0.5,)}, "evidence"),
    ):
        with pytest.raises(ValueError, match=word):
            tiny_card(**changes)


def test_a_cards_identity_is_what_decides_an_embedding_and_nothing_else():
    card = tiny_card()
    for changes in (
        {"name": "other"},
        {"facts": "other", "licence": "other"},
        {"um_per_px": (1.0,)},
        {"gated": True},
        {"variant_of": "x", "departs": "y"},
    ):
        assert dataclasses.replace(card, **changes).identity() == card.identity()
    for changes in ({"interpolation": "bilinear"}, {"mean": (0.5, 0.5, 0.6)}, {"precision": "float16"}, {"revision": "seed 1"}):
        assert dataclasses.replace(card, **changes).identity() != card.identity()
    here, there = (
        dataclasses.replace(card, source="folder", identifier=folder, sha256="1" * 64) for folder in ("/here", "/there")
    )
    assert here.identity() == there.identity() != dataclasses.replace(here, sha256="2" * 64).identity()
    files = (dataclasses.replace(here, source="file", identifier=name, files=(name,)) for name in ("/a.pth", "/b.pth"))
    assert len({str(file.identity()) for file in files}) == 1
    without = [dataclasses.replace(here, source="file", identifier=name, sha256="") for name in ("/a.pth", "/b.pth")]
    assert without[0].identity() != without[1].identity()  # nothing but its place says which file it is
    json.dumps(card.identity())


@pytest.mark.parametrize(("key", "value"), [("n_parameters", 25_969), ("n_prefix_tokens", 1), ("n_dims", 192)])
def test_a_network_that_isnt_what_its_card_says_is_refused(monkeypatch, key, value):
    with pytest.raises(EncoderError, match=f"{key} is .* the card says {value}"):
        encoders.load(use(monkeypatch, tiny_card(**{key: value})))
