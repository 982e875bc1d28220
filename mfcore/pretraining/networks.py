"""Student and teacher: a timm network with a projection head each.

The teacher is the student's moving average. DINO takes any of timm's networks that pool, as its
authors took a ResNet50 (Caron et al. 2021, section 4); DINOv2 needs the tokens of a ViT. The
teacher's network, without its head, becomes an encoder: a folder with ``card.json`` and weights.
"""

import collections
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mfcore import encoders, store, streams as rng
from mfcore.data.options import Patches
from mfcore.encoders import EncoderError, architecture
from mfcore.encoders.card import EncoderCard
from mfcore.pretraining import objective
from mfcore.pretraining.method import Pretraining, method_of
from mfcore.training import adapt

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What timm raises for arguments or images.
UNUSABLE = (TypeError, AttributeError, AssertionError, RuntimeError, ValueError)


def is_vit(encoder: nn.Module) -> bool:
    """Whether a network is one of timm's ViTs, with tokens that can be masked."""
    import timm

    return isinstance(encoder, timm.models.VisionTransformer)


def embed(encoder: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Embeddings (n, D) of images (n, 3, side, side), as the exported encoder gives them."""
    return encoder.forward_head(encoder.forward_features(images), pre_logits=True)


def of_tokens(
    network: "Student | Teacher", features: torch.Tensor, masked: torch.Tensor | None
) -> torch.Tensor | None:
    """Logits (N, K) of the N tokens ``masked``, bool (n, n_tokens), in a ViT's features."""
    if masked is None:
        return None
    return network.head(features[:, network.encoder.num_prefix_tokens :][masked])


class Head(nn.Module):
    """Embeddings (..., n_dims) to logits, float32 (..., n_prototypes).

    The logits are cosines between a bottleneck and the prototypes. A perceptron of three layers
    with GELU ends in the bottleneck, which is normalised to length 1; the last layer is weight-
    normalised with its lengths fixed at 1, and has no bias (Caron et al. 2021, section 3.1 and
    appendix C). Its prototypes are ``last.weight`` (n_prototypes, bottleneck), of which only the
    directions count. The head isn't part of the encoder.
    """

    def __init__(self, n_dims: int, n_prototypes: int, hidden: int = 2048, bottleneck: int = 256):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(n_dims, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        for layer in self.mlp[::2]:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.last = nn.Linear(bottleneck, n_prototypes, bias=False)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Logits, float32 (..., n_prototypes), inside autocast too.

        A temperature of 0.04 would magnify bfloat16's steps.
        """
        inner = self.mlp(embeddings)  # (..., bottleneck)
        with torch.autocast(inner.device.type, enabled=False):
            inner = functional.normalize(inner.float(), dim=-1)
            prototypes = functional.normalize(self.last.weight.float(), dim=-1)
            return functional.linear(inner, prototypes)  # (..., n_prototypes)


class Student(nn.Module):
    """A network that sees all crops, its head, and the token that stands for masked patches.

    ``encoder`` is timm's network without classifier, for any size of image (a multiple of a ViT's
    patch); ``head`` serves class tokens and masked patch tokens alike, as in Oquab et al. 2023's
    configuration for small models.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, masks: bool):
        super().__init__()
        self.encoder, self.head = encoder, head
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.embed_dim)) if masks else None

    def forward(
        self,
        global_crops: torch.Tensor,
        local_crops: torch.Tensor,
        masked: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Logits of embeddings (C, B, K), embeddings of the global crops (2, B, D).

        Third come the logits of masked tokens (N, K). global_crops: (2, B, 3, g, g); local_crops:
        (n_local, B, 3, l, l), maybe none; masked: bool (2 * B, n_tokens) of the global crops' patch
        tokens, in the order of the crops, or None: then the third is None.
        """
        images = global_crops.flatten(0, 1)
        features = self._features(images, masked)
        of_masked = of_tokens(self, features, masked)  # (N, K)
        seen = self.encoder.forward_head(features, pre_logits=True)  # (2 * B, D)
        every = seen
        if len(local_crops):
            every = torch.cat([seen, embed(self.encoder, local_crops.flatten(0, 1))])
        logits = self.head(every).unflatten(0, (-1, global_crops.shape[1]))  # (C, B, K)
        return logits, seen.unflatten(0, (2, -1)), of_masked

    def _features(self, images: torch.Tensor, masked: torch.Tensor | None) -> torch.Tensor:
        """The encoder's features of images (n, 3, side, side); of a ViT all tokens (n, prefix +
        n_tokens, D), the tokens ``masked`` (n, n_tokens) replaced by the mask token.
        """
        vit = self.encoder
        if masked is None:
            return vit.forward_features(images)
        patches = vit.patch_embed(images)  # (n, rows, columns, D)
        token = self.mask_token[:, None].to(patches.dtype)
        patches = torch.where(masked.view(*patches.shape[:3], 1), token, patches)
        return vit.norm(vit.blocks(vit.norm_pre(vit._pos_embed(patches))))


class Teacher(nn.Module):
    """The student's moving average: it sees whole global crops, without drop path.

    Its logits become the student's targets. In training, batch norms alone train: they normalise by
    the batch, as its authors' do, and note running means for later use.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, head
        self.requires_grad_(False).train()

    def train(self, mode: bool = True) -> "Teacher":
        """Set batch norms to the batch's means, or to the running ones; all else is as in use."""
        super().train(False)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(mode)
        return self

    @torch.no_grad()
    def forward(
        self, global_crops: torch.Tensor, masked: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits of embeddings (2, B, K) of crops (2, B, 3, g, g), and of the masked tokens.

        The second are (N, K): of the tokens that are masked for the student.
        """
        features = self.encoder.forward_features(global_crops.flatten(0, 1))
        logits = self.head(self.encoder.forward_head(features, pre_logits=True))
        return logits.unflatten(0, (2, -1)), of_tokens(self, features, masked)

    @torch.no_grad()
    def follow(self, student: Student, momentum: float) -> None:
        """Move every weight towards the student's.

        A weight becomes momentum * teacher + (1 - momentum) * student (Caron et al. 2021).
        """
        for part in ("encoder", "head"):
            ours = list(getattr(self, part).parameters())
            theirs = [parameter.detach() for parameter in getattr(student, part).parameters()]
            torch._foreach_lerp_(ours, theirs, 1 - momentum)


@dataclass(frozen=True)
class Networks:
    """Student and teacher; timm's arguments of their network; mean and std of its input."""

    student: Student
    teacher: Teacher
    arguments: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def build(settings: Pretraining, start: EncoderCard | None = None) -> Networks:
    """Student and teacher, equal at first, on the CPU, with the weights of the encoder ``start``.

    None for random weights, by the seed. settings: without None (`method.in_full`). Raises
    EncoderError where timm has no such network, where the network can't take the crops or the
    method, and where the start's weights don't fit.
    """
    method = method_of(settings)
    has_masks = settings.ibot_weight > 0 and settings.mask_probability > 0
    seed = rng.stream_seed(settings.seed, "pretraining", "start")
    with architecture.seeded(seed, settings.architecture):
        try:
            arguments = _arguments(settings, start)
            both = [_encoder(settings, arguments, rate) for rate in (settings.drop_path, 0.0)]
            n_dims = _tried(both[0], settings)
        except UNUSABLE as error:
            raise EncoderError(
                f"pretraining[{settings.name}]: {settings.architecture} can't be pretrained with "
                f"arguments {json.dumps(settings.arguments)} on crops of "
                f"{settings.crops.global_px} and {settings.crops.local_px} px: "
                f"{' '.join(str(error).split())[:300]}; name one of timm's ViTs in architecture, "
                "and what it takes in arguments"
            ) from error
        sizes = n_dims, settings.n_prototypes, settings.head_hidden, settings.head_bottleneck
        student = Student(both[0], Head(*sizes), has_masks)
        teacher = Teacher(both[1], Head(*sizes))
        if has_masks:
            nn.init.normal_(student.mask_token, std=method.mask_token_sd)
    if start is not None:
        _start_from(student.encoder, start, settings)
    for part in ("encoder", "head"):
        getattr(teacher, part).load_state_dict(getattr(student, part).state_dict())
    if not is_vit(student.encoder):
        for encoder in both:
            encoder.to(memory_format=torch.channels_last)  # convolutions take half the time
    mean, std = (start.mean, start.std) if start else (IMAGENET_MEAN, IMAGENET_STD)
    return Networks(student, teacher, arguments, mean, std)


def _arguments(settings: Pretraining, start: EncoderCard | None) -> dict[str, Any]:
    """timm's arguments: those asked for, and what the architecture knows of size and LayerScale.

    A start keeps its blocks as they were taught.
    """
    arguments = {**(start.arguments if start else {}), **settings.arguments}
    sized = {**arguments, "img_size": settings.crops.global_px}
    if not architecture.takes(settings.architecture, {**sized, "dynamic_img_size": True}):
        return arguments
    layer_scale = None if start else method_of(settings).layer_scale
    return sized if layer_scale is None else {"init_values": layer_scale, **sized}


def _encoder(settings: Pretraining, arguments: dict[str, Any], drop_path: float) -> nn.Module:
    """timm's network; raises ValueError where it can't learn by the method."""
    import timm

    method = method_of(settings)
    more = {"dynamic_img_size": True} if "img_size" in arguments else {}
    encoder = architecture.create(
        settings.architecture, {**arguments, "drop_path_rate": drop_path, **more}
    )
    if not is_vit(encoder):
        if method.needs_tokens or settings.ibot_weight > 0 or settings.layer_decay < 1:
            raise ValueError(
                f"it is no ViT, whose tokens and blocks {method.title}, ibot_weight and "
                "layer_decay are for"
            )
    elif drop_path and method.even_drop_path:
        for block in encoder.blocks:
            block.drop_path1, block.drop_path2 = (timm.layers.DropPath(drop_path) for _ in range(2))
    return encoder


@torch.no_grad()
def _tried(encoder: nn.Module, settings: Pretraining) -> int:
    """Dimensions of a network's embedding; raises where it can't take the crops, or where the
    embedding isn't what its card will say."""
    crops = settings.crops
    encoder.eval()
    for side_px in {crops.global_px, crops.local_px if crops.n_local else crops.global_px}:
        features = encoder.forward_features(torch.zeros(1, 3, side_px, side_px))
        embedding = encoder.forward_head(features, pre_logits=True)
    if embedding.ndim != 2 or (is_vit(encoder) and not torch.equal(embedding, features[:, 0])):
        raise ValueError("its embedding isn't its class token; say global_pool: token")
    encoder.train()
    return embedding.shape[1]


def _start_from(encoder: nn.Module, start: EncoderCard, settings: Pretraining) -> None:
    """Give the network an encoder's weights, a ViT's positions resized to the crops' grid."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    state = encoders.load(start).model.state_dict()
    try:
        encoder.load_state_dict(checkpoint_filter_fn(state, encoder) if is_vit(encoder) else state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise EncoderError(
            f"pretraining[{settings.name}].start: the weights of {start.name!r}, a "
            f"{start.architecture}, don't fit {settings.architecture}; say no arguments but "
            f"{json.dumps(start.arguments)}, or none: {reason} ..."
        ) from error


def parameter_groups(student: Student, settings: Pretraining) -> list[dict[str, Any]]:
    """Groups for AdamW, each with ``factor``, ``decays`` and ``is_last``.

    factor: of the learning rate; is_last: whether the group is the head's last layer. Biases and
    norms don't decay, as in both methods' code; factors as `objective.layer_factor`.
    """
    n_blocks = len(student.encoder.blocks) if is_vit(student.encoder) else 0
    groups = collections.defaultdict(list)
    for name, parameter in student.named_parameters():
        factor = objective.layer_factor(settings, name.removeprefix("encoder."), n_blocks)
        decays = not name.endswith(".bias") and parameter.ndim > 1
        groups[factor, decays, name.startswith("head.last.")].append(parameter)
    return [
        {"params": parameters, "factor": factor, "decays": decays, "is_last": is_last}
        for (factor, decays, is_last), parameters in groups.items()
    ]


# ---- export ----


def input_px(settings: Pretraining, stored: Patches) -> tuple[int, int]:
    """Sides in px to which stored patches are resized, and then cropped.

    They are those of an encoder pretrained with these settings. The encoder sees what it was
    trained on: the central ``crops.global_px`` of a patch, at the trained resolution nearest to the
    stored patches' (by ratio); a patch that is too small is enlarged. stored: size and resolution
    of the stored patches.
    """
    trained = settings.patches.um_per_px
    ratios = (um_per_px / (stored.um_per_px or um_per_px) for um_per_px in trained)
    ratio = min(ratios, key=lambda ratio: max(ratio, 1 / ratio))
    return max(settings.crops.global_px, round(stored.size_px / ratio)), settings.crops.global_px


def card(networks: Networks, settings: Pretraining, stored: Patches, facts: str) -> EncoderCard:
    """The card of the teacher's encoder.

    stored: the patches that it will embed. facts: where it comes from, in words.
    """
    encoder = networks.teacher.encoder
    resize_px, crop_px = input_px(settings, stored)
    return EncoderCard(
        name=settings.name,
        source="folder",
        identifier="",
        architecture=settings.architecture,
        arguments=networks.arguments,
        n_dims=networks.student.head.mlp[0].in_features,
        n_parameters=architecture.n_parameters(encoder),
        n_prefix_tokens=int(getattr(encoder, "num_prefix_tokens", 0)),
        readout="class" if is_vit(encoder) else "pooled",
        mean=tuple(networks.mean),
        std=tuple(networks.std),
        resize_px=resize_px,
        crop_px=crop_px,
        interpolation="bicubic",
        um_per_px=tuple(sorted(set(settings.patches.um_per_px))),
        evidence="stated",
        licence="its owner's",
        facts=facts,
    )


def export(networks: Networks, this: EncoderCard, folder: Path) -> None:
    """Write the teacher's encoder into ``folder``, its card last, for `mfcore.encoders.load`."""
    left_out = {"name", "source", "identifier", "files", "sha256"}  # `folder_card` adds these
    adapt.write_weights(folder / "weights.safetensors", networks.teacher.encoder.state_dict())
    content = {key: value for key, value in asdict(this).items() if key not in left_out}
    store.write_json(folder / "card.json", content)
