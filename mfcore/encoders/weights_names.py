"""Tensors' names: from those of the libraries that weights were saved by to those of timm, which builds the networks."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]


def _renamed(state: "Tensors", rules: Sequence[tuple[str, str]]) -> "Tensors":
    """``state`` with each key rewritten by the first rule (pattern, replacement) that matches all of it; others stay."""
    renamed = {}
    for key, tensor in state.items():
        pattern, replacement = next((rule for rule in rules if re.fullmatch(rule[0], key)), (re.escape(key), key))
        renamed[re.sub(pattern, replacement, key)] = tensor
    return renamed


_LITE0_DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks in each of timm's stages; efficientnet_pytorch numbers them through


def from_efficientnet_pytorch(state: "Tensors") -> "Tensors":
    """EfficientNet-Lite0's tensors from efficientnet_pytorch's names to timm's."""
    rules = [
        (r"_conv_stem\.(.*)", r"conv_stem.\1"),
        (r"_bn0\.(.*)", r"bn1.\1"),
        (r"_conv_head\.(.*)", r"conv_head.\1"),
        (r"_bn1\.(.*)", r"bn2.\1"),
        (r"_fc\.(.*)", r"classifier.\1"),
    ]
    number = 0
    for stage, depth in enumerate(_LITE0_DEPTHS):
        for index in range(depth):
            # the first stage doesn't expand, so its names are one step behind
            parts = ("depthwise", "project") if stage == 0 else ("expand", "depthwise", "project")
            names = ("conv_dw", "conv_pw") if stage == 0 else ("conv_pw", "conv_dw", "conv_pwl")
            for place, (part, name) in enumerate(zip(parts, names, strict=True), start=1):
                here = rf"_blocks\.{number}\."
                rules.append((rf"{here}_{part}_conv\.(.*)", rf"blocks.{stage}.{index}.{name}.\1"))
                rules.append((rf"{here}_bn{3 - len(parts) + place - 1}\.(.*)", rf"blocks.{stage}.{index}.bn{place}.\1"))
            number += 1
    return _renamed(state, rules)


_FROM_TRANSFORMERS = [
    (r"embeddings\.cls_token", r"cls_token"),
    (r"embeddings\.register_tokens", r"reg_token"),
    (r"embeddings\.position_embeddings", r"pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(.*)", r"patch_embed.proj.\1"),
    (r"encoder\.layer\.(\d+)\.(?:layernorm_before|norm1)\.(.*)", r"blocks.\1.norm1.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(.*)", r"blocks.\1.attn.\2.\3"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(.*)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.(\d+)\.(?:layernorm_after|norm2)\.(.*)", r"blocks.\1.norm2.\2"),
    (r"encoder\.layer\.(\d+)\.(?:intermediate\.dense|mlp\.fc1|mlp\.weights_in)\.(.*)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layer\.(\d+)\.(?:output\.dense|mlp\.fc2|mlp\.weights_out)\.(.*)", r"blocks.\1.mlp.fc2.\2"),
    (r"layernorm\.(.*)", r"norm.\1"),
]


def from_transformers(state: "Tensors") -> "Tensors":
    """A vision transformer's tensors from transformers' names (ViTModel, Dinov2Model, Dinov2WithRegistersModel) to timm's.

    Query, key and value become one. Where there are registers, timm's class token has its position added already, and the
    position embedding is that of the patches alone.
    """
    import torch

    needless = r"(pooler|classifier)\..*|embeddings\.mask_token"  # no part of the embedding
    bare = {re.sub(r"^(vit|dinov2)\.", "", key): tensor for key, tensor in state.items()}
    renamed = _renamed({key: tensor for key, tensor in bare.items() if not re.fullmatch(needless, key)}, _FROM_TRANSFORMERS)
    for key in [key for key in renamed if ".attn.query." in key]:
        parts = [renamed.pop(key.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        renamed[key.replace(".query.", ".qkv.")] = torch.cat(parts)
    if "reg_token" in renamed:
        positions = renamed["pos_embed"]  # (1, 1 + n_patches, width)
        renamed |= {"cls_token": renamed["cls_token"] + positions[:, :1], "pos_embed": positions[:, 1:]}
    return renamed
