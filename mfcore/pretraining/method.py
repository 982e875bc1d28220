"""What decides a pretraining: its method, one object for each, and its settings (kaiko 2024).

This module needs no torch to be imported.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import yaml
from pydantic import Field, ValidationInfo, field_validator, model_validator

from mfcore.encoders.card import Arguments
from mfcore.encoders.catalogue import encoder_name
from mfcore.store.options import (
    Count,
    NotNegative,
    Positive,
    PositiveShare,
    Rising,
    Share,
    Two,
    UmPerPx,
    Whole,
    among,
    options,
    refuse,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Method:
    """A method of pretraining, as its authors' code has it.

    name: in study files. title: in texts. lr_factor: called with the number of patches in a batch
    of all processes; gives the factor of ``base_lr``. clip: called with a network that has
    gradients, and the largest norm that they may have. patch_embedding_lr: factor of the learning
    rate of a ViT's patch embedding. layer_scale: first value of the LayerScale in each block; None
    for blocks without LayerScale. mask_token_sd: standard deviation of the mask token at first.
    needs_tokens: whether only ViTs can learn by the method. even_drop_path: whether all blocks
    drop paths with the same probability; else the probability grows with depth.
    """

    name: str
    title: str
    lr_factor: Callable[[int], float]
    clip: Callable[["torch.nn.Module", float], None]
    patch_embedding_lr: float = 1.0
    layer_scale: float | None = None
    mask_token_sd: float = 0.02
    needs_tokens: bool = False
    even_drop_path: bool = False

    @cached_property
    def published(self) -> dict[str, object]:
        """Settings of the paper and of the authors' configuration, by key of `Pretraining`.

        Lengths are shares of a training of 100 epochs.
        """
        file = resources.files("mfcore.pretraining") / "published.yaml"
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))[self.name]
        return {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}


def clip_parameters(network: "torch.nn.Module", norm: float) -> None:
    """Bound the norm of each parameter's gradient."""
    from torch.nn.utils import clip_grad_norm_

    for parameter in network.parameters():
        clip_grad_norm_(parameter, norm)


def clip_parts(network: "torch.nn.Module", norm: float) -> None:
    """Bound the norm of the head's gradient, and the norm of all other gradients."""
    from torch.nn.utils import clip_grad_norm_

    for is_head in (False, True):
        part = [
            parameter
            for name, parameter in network.named_parameters()
            if name.startswith("head.") == is_head
        ]
        clip_grad_norm_(part, norm)


DINO = Method("dino", "DINO", lambda batch_size: batch_size / 256, clip_parameters)
DINOV2 = Method(
    "dinov2",
    "DINOv2",
    lambda batch_size: math.sqrt(batch_size / 1024),
    clip_parts,
    patch_embedding_lr=0.2,
    layer_scale=1e-5,
    mask_token_sd=0.0,  # the authors begin with zeros
    needs_tokens=True,
    even_drop_path=True,
)
METHODS = {method.name: method for method in (DINO, DINOV2)}

# ---- settings ----

MAX_PATCH_PX = 4096

Side = Annotated[Whole, Field(ge=8, le=MAX_PATCH_PX)]  # of a patch or a crop, in px
Scale = Annotated[tuple[PositiveShare, ...], Two, Rising]  # shares of a patch's area


@options
class OnlinePatches:
    """Patches drawn from slides while a network learns.

    None is stored (kaiko 2024, Online Patching). size_px: side of a patch. um_per_px: resolutions,
    each drawn as often as it stands here. min_tissue: least share of tissue in a patch.
    uniform_over: "tissue" draws positions uniform over the slides' tissue area, "slides" draws a
    slide first. slide_fraction: share of the slides that patches are drawn from; the slides of a
    smaller share are among those of a larger. n_distinct: so many patches are drawn, and then drawn
    from; None: every patch is new.
    """

    size_px: Side = 256
    um_per_px: Annotated[tuple[UmPerPx, ...], Field(min_length=1)] = (0.25, 0.5, 1.0, 2.0)
    min_tissue: Share = 0.4
    uniform_over: Literal["tissue", "slides"] = "tissue"
    slide_fraction: PositiveShare = 1.0
    n_distinct: Count | None = None


@options
class Crops:
    """Multi-crop: two global crops and ``n_local`` local ones of a patch, sides in px.

    Scales are shares of the patch's area. None: as the method's authors have it, see `in_full`.
    """

    global_px: Side = 224
    local_px: Side = 96
    n_local: Annotated[Whole, Field(ge=0)] = 8
    global_scale: Scale | None = None
    local_scale: Scale | None = None

    @model_validator(mode="after")
    def _local_is_smaller(self) -> "Crops":
        if self.n_local and self.local_px > self.global_px:
            refuse({"local_px": f"{self.local_px} px is more than global_px {self.global_px}"})
        return self


@options
class Pretraining:
    """An encoder pretrained without labels, by DINO or DINOv2.

    Caron et al. 2021; Oquab et al. 2023. name: the name of the encoder, by which ``encoders`` may
    list it. architecture, arguments: timm's ViT. start: "random", or an encoder with the same
    architecture whose weights it starts from. slides: a folder of slides, from the data folder
    where it isn't absolute (links to folders are followed), or an address that fsspec lists; empty
    for the study's own. n_steps, batch_size: steps of so many patches, over all processes. Lengths
    of warm-ups, and ``n_frozen_last``, the steps in which the head's last layer stays as drawn, are
    shares of n_steps. base_lr: scaled to the batch as ``method`` has it. teacher_temperature: from
    the first value to the second during its warm-up. momentum: the teacher's at first; it ends at
    1. n_snapshots: encoders kept on the way, evenly, the last one included. Fields that are None:
    see `in_full`.
    """

    name: Annotated[str, encoder_name(":@/")]
    method: Annotated[str, among(METHODS)] = "dino"
    architecture: str = "vit_small_patch16_224"
    arguments: Arguments = Field(default_factory=dict)
    start: str = "random"
    slides: str = ""
    patches: OnlinePatches = OnlinePatches()
    crops: Crops = Crops()
    n_steps: Count = 125_000
    batch_size: Count = 256
    seed: Whole = 0
    base_lr: Positive | None = None
    final_lr: NotNegative | None = None
    warmup: Share | None = None
    weight_decay: Annotated[tuple[NotNegative, ...], Two] | None = None
    clip_norm: Positive | None = None
    momentum: Share | None = None
    student_temperature: Positive = 0.1
    teacher_temperature: Annotated[tuple[Positive, ...], Two] | None = None
    temperature_warmup: Share | None = None
    n_frozen_last: Share | None = None
    layer_decay: PositiveShare | None = None
    drop_path: Share | None = None
    centring: Literal["mean", "sinkhorn_knopp"] | None = None
    n_prototypes: Annotated[Whole, Field(ge=2)] | None = None
    head_hidden: Count = 2048
    head_bottleneck: Count = 256
    mask_probability: Share = 0.5
    mask_ratio: Annotated[tuple[Share, ...], Two, Rising] = (0.1, 0.5)
    ibot_weight: NotNegative | None = None
    koleo_weight: NotNegative | None = None
    n_snapshots: Count = 1

    # Checks of a field against the fields before it; ``info.data`` holds those that are right.

    @field_validator("crops")
    @classmethod
    def _fit(cls, crops: Crops, info: ValidationInfo) -> Crops:
        arguments, patches = info.data.get("arguments", {}), info.data.get("patches")
        named = re.search(r"_patch(\d+)", info.data.get("architecture", ""))
        token_px = arguments.get("patch_size", int(named[1]) if named else 1)
        problems = {}
        for key in ("global_px", "local_px")[: 2 if crops.n_local else 1]:
            px = getattr(crops, key)
            if isinstance(token_px, int) and px % max(token_px, 1):
                problems[key] = f"{px} px is no multiple of the ViT's patches of {token_px} px"
        if (img_size := arguments.get("img_size", crops.global_px)) != crops.global_px:
            problems["global_px"] = (
                f"{crops.global_px} px, but arguments.img_size is {img_size} px; they are one size"
            )
        if patches and crops.global_px > patches.size_px:
            problems["global_px"] = (
                f"{crops.global_px} px from patches of {patches.size_px} px would only be "
                "enlarged; lower global_px, or raise patches.size_px"
            )
        refuse(problems)
        return crops

    @field_validator("start")
    @classmethod
    def _is_another(cls, start: str, info: ValidationInfo) -> str:
        if start != "random" and start.partition("@")[0] == info.data.get("name"):
            raise ValueError(f"{start!r} is the encoder itself; start at random, or from another")
        return start

    @field_validator("koleo_weight")
    @classmethod
    def _has_neighbours(cls, weight: float | None, info: ValidationInfo) -> float | None:
        if info.data.get("batch_size") == 1 and weight != 0:
            raise ValueError(
                "KoLeo needs neighbours; say batch_size: 2 or more, or koleo_weight: 0"
            )
        return weight

    @field_validator("n_snapshots")
    @classmethod
    def _at_most_one_a_step(cls, n_snapshots: int, info: ValidationInfo) -> int:
        if n_snapshots > info.data.get("n_steps", n_snapshots):
            raise ValueError(f"{n_snapshots} is more than n_steps {info.data['n_steps']}")
        return n_snapshots


def method_of(settings: Pretraining) -> Method:
    """The method that a pretraining learns by."""
    return METHODS[settings.method]


# ---- defaults ----

# kaiko 2024 pretrained with batches of 256 patches (appendix B). DINO's authors took 1,024, went
# down to 128 without local crops (Caron et al. 2021, table 9), and name a trial of 8 that learnt
# much less.
PUBLISHED_BATCH = 256
# A tenth of DINOv2's hundred epochs of 1,250 steps (DINO's have as many); no shorter training is
# published, as far as we know.
PUBLISHED_STEPS = 12_500
# Defaults of smaller trainings, in batches or in steps. In our trials (one small ViT, batches of 64
# and of 256) the published settings collapsed: all images got the same target. The temperature
# helped most, as DINO's authors advise.
SMALL = {"teacher_temperature": (0.02, 0.02), "centring": "sinkhorn_knopp", "koleo_weight": 0.1}


def defaults(pretraining: Pretraining) -> dict[str, object]:
    """By field, the default of each field that is None.

    The choice of the method's authors; for small trainings our own. SMALL holds for fewer than
    PUBLISHED_BATCH patches or PUBLISHED_STEPS steps. Small batches also have two prototypes a
    patch, as many as there are targets; short trainings keep the published head, so that a trial
    takes the memory of a long one.
    """
    published = method_of(pretraining).published
    if pretraining.batch_size < PUBLISHED_BATCH:
        return {**published, **SMALL, "n_prototypes": max(2, 2 * pretraining.batch_size)}
    return {**published, **SMALL} if pretraining.n_steps < PUBLISHED_STEPS else published


def in_full(pretraining: Pretraining) -> Pretraining:
    """The same with every field that is None as `defaults` has it."""
    default = defaults(pretraining)

    def filled(options: Pretraining | Crops) -> dict[str, object]:
        return {key: default[key] for key, value in vars(options).items() if value is None}

    crops = dataclasses.replace(pretraining.crops, **filled(pretraining.crops))
    return dataclasses.replace(pretraining, **filled(pretraining), crops=crops)


def steps_of(pretraining: Pretraining) -> list[int]:
    """After which steps a snapshot is kept, evenly spread; the last is ``n_steps``."""
    n = pretraining.n_snapshots
    return [pretraining.n_steps * (i + 1) // n for i in range(n)]


def in_order(pretrainings: Sequence[Pretraining]) -> list[str]:
    """Their names, each after the one that it starts from, else as they stand.

    Those of a circle are left out.
    """
    waiting, names = list(pretrainings), []
    all_names = {one.name for one in waiting}
    while ready := [
        one
        for one in waiting
        if (start := one.start.partition("@")[0]) in names or start not in all_names
    ]:
        names += [one.name for one in ready]
        waiting = [one for one in waiting if one not in ready]
    return names


def snapshot_folder(run_folder: Path, step: int) -> Path:
    """The folder of the snapshot after ``step`` steps, in a pretraining's run."""
    return run_folder / "encoders" / f"step{step:07d}"
