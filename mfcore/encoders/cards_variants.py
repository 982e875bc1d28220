"""Variants: the same weights under another's convention, each a card like any other, derived from the authors' own.

In what each departs was read from the libraries' code, named in `mfcore.encoders.conventions`.
"""

import dataclasses
from collections.abc import Iterator, Mapping

from mfcore.encoders.cards_schema import EncoderCard

_RELEASED = "released code of Ganz et al. 2024"

# name: the authors' card, whose way it is, and what is otherwise
_VARIANTS: Mapping[str, tuple[str, str, dict]] = {
    "virchow2_registers_in_mean": ("virchow2", f"{_RELEASED}: averages the register tokens in", {"readout": "class+rest"}),
    "virchow2_class": ("virchow2", "eva, unless told otherwise: the class token alone", {"readout": "class", "n_dims": 1280}),
    "gigapath_resize_224": ("gigapath", f"{_RELEASED}: resizes to 224 instead of cropping 224 of 256", {"resize_px": 224}),
    "vit_huge_in21k_bilinear": ("vit_huge_in21k", f"{_RELEASED}, for its probe: bilinear", {"interpolation": "bilinear"}),
    "vit_huge_in21k_imagenet_norm": (
        "vit_huge_in21k",
        f"{_RELEASED}, for its fine-tuning: ImageNet's mean and std",
        {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    ),
    "midnight_class": ("midnight", "eva and TRIDENT: the class token alone", {"readout": "class", "n_dims": 1536}),
    "h0_mini_class_mean": (
        "h0_mini",
        "the model card's second choice, THUNDER: class token beside the mean",
        {"readout": "class+mean", "n_dims": 1536},
    ),
    "resnet50_layer3": (
        "resnet50",
        "TRIDENT: torchvision's first weights, the mean over the last map but one",
        {
            "identifier": "timm/resnet50.tv_in1k",
            "revision": "78f3ecfdb38e06d9b8397f662e7ab8fee96026fa",
            "readout": "layer3",
            "n_dims": 1024,
            "facts": "TRIDENT's default; torchvision's IMAGENET1K_V1",
        },
    ),
    "dinov2_vits14_focus_bilinear": (
        "dinov2_vits14_focus",
        "eva's transform for every encoder, TRIDENT's for a ViT-S, the released code's of Ganz et al. 2024 for a ViT-H",
        {"interpolation": "bilinear"},
    ),
    "dinov2_vits14_focus_crop": (
        "dinov2_vits14_focus",
        "the processor of transformers for DINOv2, THUNDER: the central 224 of 256 px",
        {"resize_px": 256},
    ),
}


def variants(cards: Mapping[str, EncoderCard]) -> Iterator[EncoderCard]:
    """The variants of ``cards``, each a card of its own."""
    for name, (of, departs, otherwise) in _VARIANTS.items():
        yield dataclasses.replace(cards[of], name=name, variant_of=of, departs=departs, **otherwise)
