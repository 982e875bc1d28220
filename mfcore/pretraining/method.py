"""What the methods of pretraining differ in, besides settings that a study may change: one object for each method.

This module needs no torch to be imported.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mfcore.study.config_pretraining import LAYER_SCALE, MASK_TOKEN_SD, Pretraining

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Method:
    """A method of pretraining, as its authors' code has it.

    name: in study files. lr_factor: called with the number of patches in a batch of all processes; gives the factor of
    ``base_lr``. clip: called with a network that has gradients, and the largest norm that they may have.
    patch_embedding_lr: factor of the learning rate of a ViT's patch embedding. layer_scale: first value of the LayerScale
    in each block; None for blocks without LayerScale. mask_token_sd: standard deviation of the mask token at first.
    needs_tokens: whether only ViTs can learn by the method. even_drop_path: whether all blocks drop paths with the same
    probability; else the probability grows with depth.
    """

    name: str
    lr_factor: Callable[[int], float]
    clip: Callable[["torch.nn.Module", float], None]
    patch_embedding_lr: float
    layer_scale: float | None
    mask_token_sd: float
    needs_tokens: bool
    even_drop_path: bool


def clip_parameters(network: "torch.nn.Module", norm: float) -> None:
    """Bound the norm of each parameter's gradient."""
    import torch

    gradients = [parameter.grad for parameter in network.parameters()]
    factors = norm / (torch.stack(torch._foreach_norm(gradients)) + 1e-6)
    torch._foreach_mul_(gradients, list(factors.clamp_(max=1.0)))


def clip_parts(network: "torch.nn.Module", norm: float) -> None:
    """Bound the norm of the head's gradient, and the norm of all other gradients."""
    from torch.nn.utils import clip_grad_norm_

    for is_head in (False, True):
        part = [parameter for name, parameter in network.named_parameters() if name.startswith("head.") == is_head]
        clip_grad_norm_(part, norm)


DINO = Method(
    name="dino",
    lr_factor=lambda batch_size: batch_size / 256,
    clip=clip_parameters,
    patch_embedding_lr=1.0,
    layer_scale=LAYER_SCALE.get("dino"),
    mask_token_sd=MASK_TOKEN_SD["dino"],
    needs_tokens=False,
    even_drop_path=False,
)
DINOV2 = Method(
    name="dinov2",
    lr_factor=lambda batch_size: math.sqrt(batch_size / 1024),
    clip=clip_parts,
    patch_embedding_lr=0.2,
    layer_scale=LAYER_SCALE.get("dinov2"),
    mask_token_sd=MASK_TOKEN_SD["dinov2"],
    needs_tokens=True,
    even_drop_path=True,
)
METHODS = {method.name: method for method in (DINO, DINOV2)}


def method_of(settings: Pretraining) -> Method:
    """The method that a pretraining learns by."""
    return METHODS[settings.method]
