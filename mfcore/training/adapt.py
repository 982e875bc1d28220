"""Low-rank adaptation (LoRA, Hu et al. 2021): a frozen transformer learns by pairs of small
matrices, one pair a layer.

A layer that computes W x + b computes W x + b + alpha / rank B A x, where A (rank, n_in) is drawn
and B (n_out, rank) begins at zero: before the first step, the network is the frozen one.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from mfcore import encoders, store
from mfcore.encoders import EncoderError, architecture
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
    """The network of an encoder, by name or card, to be trained: whole, or its head and ``lora``
    alone; ``.card`` is its card.

    Takes float32 (n, 3, side, side), normalised by the card's mean and std, and gives logits (n,
    n_classes). ``side`` may be another than the card's where the architecture can: a transformer's
    position embedding is then resized. It is tried with ``input_px`` (None: the card's crop). The
    rest as `encoders.build_network`; A is drawn by ``seed`` and the name, too. Raises EncoderError
    where weights are missing, where the network can't take ``input_px``, for a target that matches
    no layer, or a layer in which LoRA would do nothing.
    """
    card = encoders.card_of(card) if isinstance(card, str) else card
    model = encoders.build_network(_of_any_size(card), n_classes, pretrained, seed)
    model.card = card
    if lora is not None:
        with architecture.seeded(seed, "lora", card.name):
            _inject(model, lora)
    _try(model, input_px or card.crop_px)
    return model.train()


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """What training changes, by name: the network's state without its frozen weights.

    Batch norm's running means are among it. As in ``state_dict``, the tensors are the model's own:
    copy what is to outlast the next step.
    """
    frozen = {name for name, weights in model.named_parameters() if not weights.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def write_weights(
    file: Path, weights: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write weights as safetensors, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with store.replacing(file) as aside:
        safetensors.torch.save_file(tensors, aside, metadata)


def _of_any_size(card: EncoderCard) -> EncoderCard:
    """The card of a network that takes images of other sizes than its own, too."""
    arguments = {**card.arguments, "dynamic_img_size": True}
    if not architecture.takes(card.architecture, arguments):
        return card  # a convolutional network, which takes any size anyway, or one that can't
    return dataclasses.replace(card, arguments=arguments)


def _inject(model: nn.Module, lora: Lora) -> None:
    """Freeze a network but for its head, and give the layers that ``lora`` names their matrices."""
    import peft

    place, head = f"encoder {model.card.name!r}", set(model.get_classifier().modules())
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and module not in head
    }
    if not any(isinstance(module, nn.Linear) for module in layers.values()):
        raise EncoderError(
            f"{place} is a convolutional network: it has no layers for LoRA; leave lora out"
        )
    targets = {
        target: [name for name in layers if f".{name}".endswith(f".{target}")]
        for target in lora.targets
    }
    if missing := [target for target, names in targets.items() if not names]:
        ends = sorted({name.rpartition(".")[2] for name in layers})
        raise EncoderError(
            f"{place} has no layers called {', '.join(missing)}, which lora.targets names; its "
            f"layers' names end in {', '.join(ends)}"
        )
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=sorted({name for names in targets.values() for name in names}),
    )
    peft.inject_adapter_in_model(settings, model, ADAPTER)
    model.get_classifier().requires_grad_(True)


def _try(model: nn.Module, input_px: int) -> None:
    """Show a network one black image: whether it takes that size, and calls every layer with LoRA.

    Some networks take a layer's weights without calling it: LoRA would then train, and do nothing.
    """
    place = f"encoder {model.card.name!r}"
    unused = {module for module in model.modules() if hasattr(module, "lora_A")}
    hooks = [
        module.register_forward_hook(lambda module, *_: unused.discard(module)) for module in unused
    ]
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, input_px, input_px, device=device))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise EncoderError(f"{place} can't take input_px {input_px}: {reason}") from error
    finally:
        for hook in hooks:
            hook.remove()
    if unused:
        names = [name for name, module in model.named_modules() if module in unused]
        ends = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
        raise EncoderError(
            f"LoRA would do nothing in {len(unused)} layers of {place}: its code takes their "
            f"weights without calling them; leave {ends} out of lora.targets"
        )
