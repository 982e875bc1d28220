"""How five libraries make an embedding of the same encoder: for each, the card that does what it does.

Where a library's entry for an encoder departs from the authors' own card, its way is a card of its own, a variant. The
libraries' ways were read from their code: the released code of Ganz et al. (DeepMicroscopy/FoundationModelComparison,
src/utils.py), eva (kaiko-ai/eva: one transform for all, CLS unless configured), TRIDENT (mahmoodlab/TRIDENT,
patch_encoder_models/load.py), THUNDER (MICS-Lab/thunder, models/pretrained_models.py), raw2features
(CraigMyles/raw2features, embedders/registry.yaml).
"""

from collections.abc import Mapping
from dataclasses import dataclass

RELEASED, EVA, TRIDENT, THUNDER, RAW2FEATURES = "released code", "eva", "TRIDENT", "THUNDER", "raw2features"


@dataclass(frozen=True)
class Convention:
    """One library's way with one encoder.

    library: whose. card: name of the card that does the same. note: what the library has an entry for, where it is not
    this very encoder, or what of its way no card can show.
    """

    library: str
    card: str
    note: str = ""


_FLOAT16 = "under float16 autocast, which matters on a GPU only"
_SMALL = "dinov2_vits14_focus"

CONVENTIONS: Mapping[str, tuple[Convention, ...]] = {
    "gigapath": (
        Convention(RELEASED, "gigapath_resize_224", _FLOAT16),
        Convention(TRIDENT, "gigapath"),
        Convention(RAW2FEATURES, "gigapath"),
    ),
    "virchow2": (
        Convention(RELEASED, "virchow2_registers_in_mean", _FLOAT16),
        Convention(EVA, "virchow2_class"),
        Convention(TRIDENT, "virchow2"),
        Convention(THUNDER, "virchow2"),
        Convention(RAW2FEATURES, "virchow2"),
    ),
    "midnight": (
        Convention(EVA, "midnight_class"),
        Convention(TRIDENT, "midnight_class"),
        Convention(THUNDER, "midnight"),
        Convention(RAW2FEATURES, "midnight"),
    ),
    "h0_mini": (
        Convention(EVA, "h0_mini"),
        Convention(TRIDENT, "h0_mini"),
        Convention(THUNDER, "h0_mini_class_mean"),
        Convention(RAW2FEATURES, "h0_mini"),
    ),
    "resnet50": (
        Convention(RELEASED, "resnet50", _FLOAT16),
        Convention(TRIDENT, "resnet50_layer3"),
        Convention(RAW2FEATURES, "resnet50"),
    ),
    _SMALL: (
        Convention(RELEASED, f"{_SMALL}_bilinear", f"its way with the other ImageNet transformer, ViT-H/14; {_FLOAT16}"),
        Convention(EVA, f"{_SMALL}_bilinear", "its transform for every encoder"),
        Convention(TRIDENT, f"{_SMALL}_bilinear", "its way with kaiko's ViT-S; it has no DINOv2"),
        Convention(THUNDER, f"{_SMALL}_crop", "its DINOv2-B, by the processor of transformers"),
        Convention(RAW2FEATURES, _SMALL, "its DINOv2-L"),
    ),
}


# How the released code embeds, and how it normalises for training, where it departs from an encoder's own authors: name of
# the card that does the same (src/utils.py, src/classifier.py).
RELEASED_EMBEDDING: Mapping[str, str] = {
    "virchow2": "virchow2_registers_in_mean",
    "gigapath": "gigapath_resize_224",
    "vit_huge_in21k": "vit_huge_in21k_bilinear",
}
RELEASED_TRAINING: Mapping[str, str] = {"vit_huge_in21k": "vit_huge_in21k_imagenet_norm"}


def variants_of(encoder: str) -> tuple[str, ...]:
    """Names of the cards, besides ``encoder``'s own, that some library's way with it needs; each once, in order."""
    cards = (convention.card for convention in CONVENTIONS.get(encoder, ()))
    return tuple(dict.fromkeys(card for card in cards if card != encoder))
