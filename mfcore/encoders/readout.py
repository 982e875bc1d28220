"""Readouts: the ways to read an embedding off a network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Readout:
    """One way to read an embedding off a network of timm's.

    title: in words.
    width: gives the length of a network's embedding.
    read: gives the embedding (n, width) for a network, its number of prefix tokens and normalised
        images float32 (n, 3, height, width).
    begins_with_class_token: whether the embedding's first part is the class token; such a network
        needs one.
    maps: the feature maps of the embedding, as ``indices`` of timm's ``forward_intermediates``.
    """

    title: str
    width: Callable[[Any], int]
    read: Callable[[Any, int, "torch.Tensor"], "torch.Tensor"]
    begins_with_class_token: bool = False
    maps: int | list[int] = 1


LAYER_3 = [3]


def _class_token(model: Any, _n_prefix: int, images: "torch.Tensor") -> "torch.Tensor":
    return model.forward_features(images)[:, 0]


def _class_and_mean(model: Any, n_prefix: int, images: "torch.Tensor") -> "torch.Tensor":
    import torch

    tokens = model.forward_features(images)  # (n, n_tokens, width), prefix tokens first
    return torch.cat([tokens[:, 0], tokens[:, n_prefix:].mean(dim=1)], dim=1)


def _layer_3(model: Any, _n_prefix: int, images: "torch.Tensor") -> "torch.Tensor":
    return model.forward_intermediates(images, indices=LAYER_3, intermediates_only=True)[0].mean(
        dim=(2, 3)
    )


READOUTS = {
    "pooled": Readout(
        "as the network pools",
        lambda model: model.head_hidden_size,
        lambda model, _, images: model(images),
    ),
    "class": Readout("class token", lambda model: model.num_features, _class_token, True),
    "class+mean": Readout(
        "class token and mean of the patch tokens",
        lambda model: 2 * model.num_features,
        _class_and_mean,
        True,
    ),
    # registers hold no place in the image; the released code of Ganz et al. averages Virchow2's in
    "class+rest": Readout(
        "class token and mean of all other tokens, registers too",
        lambda model: 2 * model.num_features,
        lambda model, _, images: _class_and_mean(model, 1, images),
        True,
    ),
    "layer3": Readout(
        "mean over the last feature map but one",
        lambda model: model.feature_info[-2]["num_chs"],
        _layer_3,
        maps=LAYER_3,
    ),
}
