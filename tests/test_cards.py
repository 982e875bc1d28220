"""Every card against the facts of each model's page, by building its architecture without weights."""

import dataclasses
import json

import pytest
import torch
from tiny_encoders import tiny_card, use

from mfcore import encoders
from mfcore.cards import CARDS
from mfcore.encoders import EncoderError

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
    "dinov2_vitl14": (304_367_616, 257, 1024),
}


@pytest.mark.parametrize("name", CARDS)
def test_card_is_what_its_architecture_builds(name):
    card = encoders.card(name)
    n_parameters, n_tokens, n_dims = FACTS[name]
    assert (card.n_parameters, card.n_dims) == (n_parameters, n_dims)
    with torch.device("meta"):
        model = encoders._create(card.architecture, card.arguments).eval()
        encoders._check_card(card, model)
        images = torch.zeros(1, 3, card.crop_px, card.crop_px)
        if n_tokens:
            assert model.forward_features(images).shape[:2] == (1, n_tokens)
        else:
            assert model(images).shape == (1, n_dims)


def test_every_hub_card_is_pinned_to_a_commit():
    unpinned = [card.name for card in CARDS.values() if card.source.startswith("hub") and len(card.revision) != 40]
    assert unpinned == ["h0_mini"]


def test_a_card_refuses_what_no_encoder_can_be():
    for changes, word in (
        ({"readout": "mean"}, "readout"),
        ({"interpolation": "nearest"}, "interpolation"),
        ({"std": (0.5, 0.5)}, "std"),
        ({"std": (0.5, 0.0, 0.5)}, "std"),
        ({"crop_px": 64}, "crop_px"),
        ({"n_prefix_tokens": 0}, "class token"),
    ):
        with pytest.raises(ValueError, match=word):
            tiny_card(**changes)


def test_a_cards_identity_is_what_decides_an_embedding_and_nothing_else():
    card = tiny_card()
    for changes in ({"name": "other"}, {"facts": "other", "licence": "other"}, {"um_per_px": (1.0,)}, {"gated": True}):
        assert dataclasses.replace(card, **changes).identity() == card.identity()
    for changes in ({"interpolation": "bilinear"}, {"mean": (0.5, 0.5, 0.6)}, {"precision": "float16"}, {"revision": "seed 1"}):
        assert dataclasses.replace(card, **changes).identity() != card.identity()
    here, there = (dataclasses.replace(card, source="folder", identifier=folder, sha256="1") for folder in ("/here", "/there"))
    assert here.identity() == there.identity() != dataclasses.replace(here, sha256="2").identity()
    json.dumps(card.identity())


@pytest.mark.parametrize(("key", "value"), [("n_parameters", 25_969), ("n_prefix_tokens", 1), ("n_dims", 192)])
def test_a_network_that_isnt_what_its_card_says_is_refused(monkeypatch, key, value):
    with pytest.raises(EncoderError, match=f"{key} is .* the card says {value}"):
        encoders.load(use(monkeypatch, tiny_card(**{key: value})))
