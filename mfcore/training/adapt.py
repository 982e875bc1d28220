"""Low-rank adaptation (LoRA, Hu et al. 2021): a frozen transformer learns by pairs of small matrices beside its layers.

A layer that computes W x + b computes W x + b + alpha / rank B A x, where A (rank, n_in) is drawn and B (n_out, rank) begins
at zero: before the first step, the network is the frozen one.
"""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mfcore import encoders
from mfcore.encoders import EncoderError
from mfcore.encoders.architecture import create, seeded
from mfcore.encoders.card import EncoderCard
from mfcore.training.options import Lora

ADAPTER = "default"  # peft's name of the only pair of matrices that a layer has


def build_network(
    card: str | EncoderCard,
    lora: Lora | None = None,
    n_classes: int = 1,
    pretrained: bool = True,
    seed: int | None = None,
    input_px: int | None = None,
) -> nn.Module:
    """The network of an encoder, by name or card, to be trained: whole, or its head and ``lora`` alone; ``.card`` is its card.

    Takes float32 (n, 3, side, side), normalised by the card's mean and std, and gives logits (n, n_classes). ``side`` may
    be another than the card's where the architecture can: a transformer's position embedding is then resized. It is tried
    with ``input_px`` (None: the card's crop). The rest as `encoders.build_network`; A is drawn by ``seed`` and the name, too.
    Raises EncoderError where weights can't be had, where the network can't take ``input_px``, for a target that matches no
    layer, or a layer in which LoRA would do nothing.
    """
    this = encoders.card_of(card) if isinstance(card, str) else card
    flexible = dataclasses.replace(
        this, arguments={**this.arguments, **_any_size(this.architecture, json.dumps(dict(this.arguments)))}
    )
    model = encoders.build_network(flexible, n_classes, pretrained, seed)
    model.card = this
    if lora is not None:
        with seeded(seed, "lora", this.name):
            _inject(model, lora)
    _try(model, this.crop_px if input_px is None else input_px)
    return model.train()


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """What training changes, by name, detached: of a network with LoRA its matrices and head; else the whole state.

    Batch norm's running means are among it. As in ``state_dict``, the tensors are the model's own: copy what is to outlast
    the next step.
    """
    state = model.state_dict()
    if not _adapted(model):
        return state
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for prefix, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            names |= {f"{prefix}.{name}" for name, _ in module.named_buffers(recurse=False)}
    return {name: tensor for name, tensor in state.items() if name in names}


def restore(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put what `trained` gave back into a network built alike. Raises EncoderError where the names or shapes aren't its own."""
    expected = {name: tuple(tensor.shape) for name, tensor in trained(model).items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != given:
        wrong = sorted(dict(expected.items() ^ given.items()))
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise EncoderError(
            f"these weights aren't of this network ({model.card.name!r}): {', '.join(wrong[:3])}{more} are missing, too many "
            "or of another shape; was it built with the same architecture, rank and targets?"
        )
    model.load_state_dict(tensors, strict=False)


def _layers(model: nn.Module) -> list[str]:
    """The names of the layers that LoRA can change: linear ones and convolutions, without the head."""
    head = next(name for name, module in model.named_modules() if module is model.get_classifier())
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not f"{name}.".startswith(f"{head}.")
    ]


@functools.cache
def _any_size(architecture: str, arguments: str) -> dict[str, Any]:
    """What ``timm.create_model`` is told, so that the network takes images of other sizes than its own."""
    more = {"dynamic_img_size": True}
    try:
        with torch.device("meta"):
            create(architecture, {**json.loads(arguments), **more})
    except TypeError:  # not a transformer of a kind that can, or a convolutional network, which takes any size anyway
        return {}
    return more


def _inject(model: nn.Module, lora: Lora) -> None:
    """Freeze a network but for its head, and give the layers that ``lora`` names their matrices."""
    import peft

    names = _layers(model)
    targets = {target: [n for n in names if f".{n}".endswith(f".{target}")] for target in lora.targets}
    if not any(isinstance(model.get_submodule(name), nn.Linear) for name in names):
        raise EncoderError(f"encoder {model.card.name!r} is a convolutional network: it has no layers for LoRA; leave lora out")
    if missing := [target for target, found in targets.items() if not found]:
        ends = Counter(name.rpartition(".")[2] for name in names)
        there = ", ".join(f"{end} ({n})" for end, n in ends.most_common(12))
        raise EncoderError(
            f"encoder {model.card.name!r} has no layers called {', '.join(missing)}, which lora.targets names; its "
            f"layers' names end in {there}"
        )
    chosen = sorted({name for found in targets.values() for name in found})
    settings = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=chosen)
    peft.inject_adapter_in_model(settings, model, ADAPTER)
    model.get_classifier().requires_grad_(True)


def _adapted(model: nn.Module) -> list[tuple[str, Any]]:
    """The layers with LoRA and their names."""
    return [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")]


def _try(model: nn.Module, input_px: int) -> None:
    """Show a network one black image: whether it takes that size, and calls every layer with LoRA."""
    name = model.card.name
    patch_px = int(np.max(getattr(getattr(model, "patch_embed", None), "patch_size", 1)))  # timm's: one number or two
    if input_px % patch_px:
        below = input_px // patch_px * patch_px
        near = " or ".join(str(px) for px in (below, below + patch_px) if px)
        raise EncoderError(
            f"encoder {name!r} can't take input_px {input_px}: it cuts an image into patches of {patch_px} px; use {near}"
        )
    unused = dict.fromkeys(name for name, _ in _adapted(model))
    hooks = [module.register_forward_hook(lambda *_, layer=layer: unused.pop(layer, None)) for layer, module in _adapted(model)]
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, input_px, input_px, device=next(model.parameters()).device))
    except (RuntimeError, AssertionError, ValueError) as error:
        what = " ".join(str(error).split())[:300]
        raise EncoderError(f"encoder {name!r} can't take input_px {input_px}: {what}") from error
    finally:
        for hook in hooks:
            hook.remove()
    if unused:
        ends = ", ".join(sorted({layer.rpartition(".")[2] for layer in unused}))
        raise EncoderError(
            f"LoRA would do nothing in {len(unused)} layers of encoder {name!r}, the first {next(iter(unused))}: its code "
            f"takes their weights without calling them; leave {ends} out of lora.targets"
        )
