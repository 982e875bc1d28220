"""Student and teacher: a timm ViT with a projection head each; the teacher is the student's moving average and never learns.

DINO takes any network of timm's that pools, too, as its authors took a ResNet50 (Caron et al. 2021, section 4); DINOv2 needs
a ViT's tokens.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mfcore import encoders, streams as rng
from mfcore.encoders import EncoderError, architecture
from mfcore.encoders.card import EncoderCard
from mfcore.encoders.readout import READOUTS
from mfcore.pretraining import heads, schedules
from mfcore.study.config import Pretraining, Study
from mfcore.study.config_pretraining import LAYER_SCALE, MASK_TOKEN_SD

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def is_vit(encoder: nn.Module) -> bool:
    """Whether a network is one of timm's ViTs, with tokens that can be masked."""
    import timm

    return isinstance(encoder, timm.models.VisionTransformer)


def readout(encoder: nn.Module) -> str:
    """What of a network is its embedding, as cards call it: a ViT's class token, any other's pooled features."""
    return "class" if is_vit(encoder) else "pooled"


def embed(encoder: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Embeddings (n, D) of images (n, 3, side, side): what the head gets, and what the encoder is used for later."""
    return encoder.forward_head(encoder.forward_features(images), pre_logits=True)


class Student(nn.Module):
    """A network that sees all crops, its head, and the token that stands for masked patches.

    ``encoder`` is timm's network without classifier, for any size of image (of a ViT, a multiple of its patch); ``head`` serves
    class tokens and masked patch tokens alike, as in Oquab et al. 2023's configuration for small models.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, masks: bool):
        super().__init__()
        self.encoder, self.head = encoder, head
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.embed_dim)) if masks else None

    def forward(
        self, global_crops: torch.Tensor, local_crops: torch.Tensor, masked: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Logits of embeddings (C, B, K), embeddings of the global crops (2, B, D), logits of masked tokens (N, K).

        global_crops: (2, B, 3, g, g); local_crops: (n_local, B, 3, l, l), maybe none; masked: bool (2 * B, n_tokens) of the
        global crops' patch tokens, in the order of the crops, or None: then the third is None.
        """
        n_images = global_crops.shape[1]
        images, of_masked = global_crops.flatten(0, 1), None
        if masked is None:
            seen = embed(self.encoder, images)  # (2 * B, D)
        else:
            tokens = self._tokens(images, masked)  # (2 * B, prefix + n_tokens, D)
            seen, of_masked = tokens[:, 0], self.head(tokens[:, self.encoder.num_prefix_tokens :][masked])  # ..., (N, K)
        all_seen = torch.cat([seen, embed(self.encoder, local_crops.flatten(0, 1))]) if len(local_crops) else seen
        logits = self.head(all_seen).unflatten(0, (-1, n_images))  # (C, B, K)
        return logits, seen.unflatten(0, (2, n_images)), of_masked

    def _tokens(self, images: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """All tokens (n, prefix + n_tokens, D) of images (n, 3, side, side), of which ``masked`` (n, n_tokens) aren't seen."""
        vit = self.encoder
        patches = vit.patch_embed(images)  # (n, rows, columns, D)
        token = self.mask_token[:, None].to(patches.dtype)
        patches = torch.where(masked.view(*patches.shape[:3], 1), token, patches)
        return vit.norm(vit.blocks(vit.norm_pre(vit._pos_embed(patches))))


class Teacher(nn.Module):
    """The student's moving average: sees whole global crops, without drop path, and gives what the student is to give.

    In training, batch norms alone train: they normalise by the batch, as its authors' do, and note running means for later use.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, head
        self.requires_grad_(False).train()

    def train(self, mode: bool = True) -> "Teacher":
        """Set batch norms to the batch's means, or to the running ones; all else always is as in use."""
        super().train(False)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(mode)
        return self

    @torch.no_grad()
    def forward(
        self, global_crops: torch.Tensor, masked: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits of embeddings (2, B, K) of crops (2, B, 3, g, g), and of the tokens (N, K) masked for the student."""
        features = self.encoder.forward_features(global_crops.flatten(0, 1))  # of a ViT: (2 * B, prefix + n_tokens, D)
        logits = self.head(self.encoder.forward_head(features, pre_logits=True)).unflatten(0, (2, -1))  # (2, B, K)
        return logits, None if masked is None else self.head(features[:, self.encoder.num_prefix_tokens :][masked])

    @torch.no_grad()
    def follow(self, student: Student, momentum: float) -> None:
        """Move every weight towards the student's: momentum * teacher + (1 - momentum) * student (Caron et al. 2021)."""
        for part in ("encoder", "head"):
            mine, its = (list(getattr(of, part).parameters()) for of in (self, student))
            torch._foreach_lerp_(mine, [parameter.detach() for parameter in its], 1 - momentum)


@dataclass(frozen=True)
class Networks:
    """Student and teacher; what timm got for their network besides its name; mean and std of their input."""

    student: Student
    teacher: Teacher
    arguments: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def build(which: Pretraining, study: Study, results: str | Path) -> Networks:
    """Student and teacher, equal at first, on the CPU: drawn by the seed, or with the weights of the encoder ``which.start``.

    which: with nothing left None (`config_pretraining.in_full`). Raises EncoderError where timm has no such network, where it
    can't take the crops or the method, and where the encoder to start from can't be had or has another architecture.
    """
    card = start_of(which, study, results)
    arguments = _arguments(which, card)
    if not _takes(which, {**arguments, "dynamic_img_size": True}):
        del arguments["img_size"]
    scaled = {"init_values": LAYER_SCALE.get(which.method), **arguments}
    if card is None and which.method in LAYER_SCALE and _takes(which, scaled):  # a start's blocks are as they were taught
        arguments = scaled
    has_masks = which.ibot_weight > 0 and which.mask_probability > 0
    with architecture.seeded(rng.stream_seed(which.seed, "pretraining", "start"), which.architecture):
        both = [_encoder(which, arguments, drop_path) for drop_path in (which.drop_path, 0.0)]
        n_dims = READOUTS[readout(both[0])].width(both[0])
        sizes = (n_dims, which.n_prototypes, which.head_hidden, which.head_bottleneck)
        student = Student(both[0], heads.Head(*sizes), has_masks)
        teacher = Teacher(both[1], heads.Head(*sizes))
        if has_masks:
            nn.init.normal_(student.mask_token, std=MASK_TOKEN_SD[which.method])
    if card is not None:
        _start_from(student.encoder, card, which)
    for part in ("encoder", "head"):
        getattr(teacher, part).load_state_dict(getattr(student, part).state_dict())
    if not is_vit(student.encoder):
        for part in (student, teacher):
            part.encoder.to(memory_format=torch.channels_last)  # convolutions take half the time
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if card is None else (card.mean, card.std)
    return Networks(student, teacher, arguments, mean, std)


def start_of(which: Pretraining, study: Study, results: str | Path) -> EncoderCard | None:
    """The card of the encoder whose weights it starts from, None at random; raises EncoderError where that can't be had."""
    if which.start == "random":
        return None
    try:
        return encoders.of(study, which.start, results)
    except EncoderError as error:
        raise EncoderError(f"pretraining[{which.name}].start: {error}") from error


def _arguments(which: Pretraining, start: EncoderCard | None) -> dict[str, Any]:
    """What timm gets besides the architecture: that of the encoder to start from, the study's own, and the crops' size."""
    place, side_px = f"pretraining[{which.name}]", which.crops.global_px
    if start is not None and start.architecture != which.architecture:
        raise EncoderError(
            f"{place}.start: {start.name!r} is a {start.architecture}, architecture says {which.architecture}; make them one"
        )
    if which.arguments.get("img_size", side_px) != side_px:
        raise EncoderError(
            f"{place}.arguments.img_size: {which.arguments['img_size']}, crops.global_px is {side_px}; leave img_size out"
        )
    return {**({} if start is None else start.arguments), **which.arguments, "img_size": side_px}


def _takes(which: Pretraining, arguments: dict[str, Any]) -> bool:
    """Whether the architecture knows all of ``arguments``; other networks than ViTs know neither sizes nor LayerScale."""
    try:
        with torch.device("meta"):
            architecture.create(which.architecture, arguments)
    except TypeError:
        return False
    except (AttributeError, AssertionError, RuntimeError, ValueError):  # to be said by who builds it
        pass
    return True


def _encoder(which: Pretraining, arguments: dict[str, Any], drop_path: float) -> nn.Module:
    """timm's network, for crops of both sizes; raises EncoderError where it can't take them, or not by this method."""
    place = f"pretraining[{which.name}]"
    of_any_size = {"dynamic_img_size": True} if "img_size" in arguments else {}
    try:
        encoder = architecture.create(which.architecture, {**arguments, "drop_path_rate": drop_path, **of_any_size})
    except (TypeError, AttributeError, AssertionError, RuntimeError, ValueError) as error:
        said = json.dumps(which.arguments)
        raise EncoderError(
            f"{place}: {which.architecture} can't be built with arguments {said}: {error}; name one of timm's ViTs in "
            "architecture, and what it takes in arguments"
        ) from error
    return _as_vit(which, encoder, drop_path) if is_vit(encoder) else _as_other(which, encoder)


def _as_other(which: Pretraining, encoder: nn.Module) -> nn.Module:
    """A network that pools, tried with the crops; raises EncoderError for what needs a ViT."""
    place = f"pretraining[{which.name}]"
    needs = {"method": which.method == "dinov2", "ibot_weight": which.ibot_weight > 0, "layer_decay": which.layer_decay < 1}
    if key := next((key for key, is_so in needs.items() if is_so), ""):
        raise EncoderError(
            f"{place}.{key}: {getattr(which, key)} is for ViTs, by their tokens and blocks, and {which.architecture} is none; "
            "name one of timm's ViTs in architecture, or pretrain by method: dino with its own defaults"
        )
    return _tried(which, encoder)


def _tried(which: Pretraining, encoder: nn.Module) -> nn.Module:
    """A network that gives an embedding for crops of both sizes; raises EncoderError for one that doesn't."""
    for key in ("global_px", "local_px") if which.crops.n_local else ("global_px",):
        side_px = getattr(which.crops, key)
        try:
            with torch.no_grad():
                shape = tuple(embed(encoder.eval(), torch.zeros(1, 3, side_px, side_px)).shape)
        except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError) as error:
            shape, why = (), f" ({' '.join(str(error).split())[:200]})"
        else:
            why = f", but gives {shape}"
        if len(shape) != 2:
            raise EncoderError(
                f"pretraining[{which.name}].crops.{key}: {which.architecture} doesn't pool images of {side_px} px into an "
                f"embedding{why}; name one of timm's ViTs or convolutional networks in architecture"
            )
    return encoder.train()


def _as_vit(which: Pretraining, vit: nn.Module, drop_path: float) -> nn.Module:
    """A ViT as the method has it; raises EncoderError where it has no class token, or crops aren't multiples of its patches."""
    import timm

    place = f"pretraining[{which.name}]"
    if not vit.has_class_token:
        raise EncoderError(f"{place}.architecture: {which.architecture} isn't a ViT with a class token, which DINO needs")
    if vit.global_pool != "token":
        raise EncoderError(
            f"{place}: {which.architecture} pools {vit.global_pool!r}, and so never normalises the class token that DINO "
            "learns by; say global_pool: token in arguments"
        )
    if hasattr(vit, "dist_token"):
        raise EncoderError(
            f"{place}.architecture: {which.architecture} has two tokens for the image, and an encoder is used by one; name "
            "one without distillation"
        )
    patch_px = vit.patch_embed.patch_size[0]
    for key in ("global_px", "local_px"):
        if getattr(which.crops, key) % patch_px and (key == "global_px" or which.crops.n_local):
            raise EncoderError(
                f"{place}.crops.{key}: {getattr(which.crops, key)} is no multiple of the ViT's patches of {patch_px} px"
            )
    if vit.patch_embed.grid_size != (which.crops.global_px // patch_px,) * 2:  # convolutions come first
        if which.ibot_weight:
            raise EncoderError(
                f"{place}.architecture: {which.architecture} has no token for each patch, which iBOT's masks need; name one of "
                "timm's ViTs without convolutions, or say ibot_weight: 0"
            )
        vit = _tried(which, vit)
    if which.method == "dinov2" and drop_path:  # as its authors have it: the same in every block
        for block in vit.blocks:
            block.drop_path1, block.drop_path2 = (timm.layers.DropPath(drop_path) for _ in range(2))
    return vit


def _start_from(encoder: nn.Module, card: EncoderCard, which: Pretraining) -> None:
    """Give the network the weights of an encoder, a ViT's position embedding resized to the crops' grid."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    state = encoders.load(card).model.state_dict()
    try:
        encoder.load_state_dict(checkpoint_filter_fn(state, encoder) if is_vit(encoder) else state, strict=True)
    except RuntimeError as error:
        what = " ".join(str(error).split())[:300]
        raise EncoderError(
            f"pretraining[{which.name}].start: the weights of {card.name!r} don't fit; say no arguments but that encoder's, "
            f"{json.dumps(card.arguments)}, or none: {what} ..."
        ) from error


def parameter_groups(student: Student, which: Pretraining) -> list[dict[str, Any]]:
    """Groups for AdamW, each with ``factor`` (of the learning rate), ``decays`` and ``is_last`` (the head's last layer).

    Biases and norms don't decay, as in both methods' code; factors by layer as `schedules.layer_factors`.
    """
    n_blocks, groups = len(student.encoder.blocks) if is_vit(student.encoder) else 0, {}
    names = [name for name, _ in student.encoder.named_parameters()]
    factors = {f"encoder.{name}": value for name, value in schedules.layer_factors(which, names, n_blocks).items()}
    if student.mask_token is not None:
        factors["mask_token"] = schedules.layer_factors(which, ["mask_token"], n_blocks)["mask_token"]
    for name, parameter in student.named_parameters():
        decays = not name.endswith(".bias") and parameter.ndim > 1
        key = (factors.get(name, 1.0), decays, name.startswith("head.last."))
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "factor": factor, "decays": decays, "is_last": is_last}
        for (factor, decays, is_last), parameters in groups.items()
    ]
