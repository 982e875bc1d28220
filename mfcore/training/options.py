"""Options of trainings: a network and how it is trained, low-rank adaptation, the linear probe."""

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator

from mfcore.store.options import (
    Count,
    Distinct,
    Flag,
    Number,
    Positive,
    PositiveShare,
    Share,
    Whole,
    options,
)

MAX_HUE_TURNS = 0.5  # half a turn of the colour circle reaches every hue


@options
class Lora:
    """Low-rank adaptation (Hu et al. 2021) of a frozen transformer: small matrices are trained, and
    the head.

    Defaults: Ammeling et al. 2025, as released. targets: ends of the names of the layers that get a
    pair of matrices.
    """

    rank: Count = 16
    alpha: Positive = 16.0
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.1
    targets: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] = (
        "qkv",
        "proj",
        "fc1",
        "fc2",
    )


@options
class Network:
    """A network trained end to end, or by LoRA, and how.

    name: what tables and figures call the arm.
    architecture: an encoder's name, built with one logit.
    input_px: side of the central crop that the network sees, in px of the stored patch.
    patches_per_epoch: patches drawn with replacement each epoch, uniform over slides, then over the
        two classes; None means every training patch once.
    max_lr: peak of the one-cycle schedule.
    shift_px: largest random shift of the crop.
    colour_jitter: largest change of brightness, contrast and saturation, as a share, and of the
        hue, in turns of the colour circle.
    colour_probability, blur_probability, rotation_probability: how often a patch is changed so. A
        rotation is by any angle; the stored patch must be wide enough for it.
    pretrained: begin from the encoder's weights, not from drawn ones.
    lora: train only low-rank matrices and the head; None trains every weight.
    accumulate: batches whose gradients are added up for one step.
    clip_norm: largest norm of a step's gradient; None: any.
    patience: epochs without a lower validation loss after which training ends; None: all of
        ``n_epochs``.
    sizes, by_domain: at which of the study's sizes it is trained (None: all), and whether on single
        domains too.
    """

    name: str
    architecture: str = "resnet50"
    lora: Lora | None = None
    input_px: Count = 224
    n_epochs: Count = 100
    patches_per_epoch: Count | None = 1280
    batch_size: Annotated[Whole, Field(ge=2)] = 16  # batch norm needs two patches or more
    max_lr: Positive = 1e-4
    shift_px: Annotated[Whole, Field(ge=0)] = 0
    colour_jitter: Annotated[Number, Field(ge=0, le=MAX_HUE_TURNS)] = 0.1
    colour_probability: Share = 0.5
    blur_probability: Share = 0.1
    rotation_probability: Share = 0.5
    pretrained: Flag = True
    accumulate: Count = 1
    clip_norm: Positive | None = None
    patience: Count | None = None
    sizes: Annotated[tuple[PositiveShare, ...], Field(min_length=1)] | None = None
    by_domain: Flag = True

    @field_validator("name")
    @classmethod
    def _has_a_name(cls, name: str) -> str:
        if not name.strip():
            raise ValueError("an arm needs one")
        return name

    @property
    def needed_px(self) -> int:
        """Side of the stored patch, in px, from which any rotation and shift of the crop has no
        corner without image.
        """
        diagonal_px = math.ceil(math.sqrt(2) * self.input_px)
        return (diagonal_px if self.rotation_probability else self.input_px) + 2 * self.shift_px


@options
class Probe:
    """UNI's linear probe: cost None means D * K / 100.

    also: further probes of each encoder, arms of their own, named "ENCODER METHOD": "knn" (20
    nearest neighbours), "simpleshot" (nearest centroid), "mlp" (one hidden layer);
    `training.probe.METHODS`.
    """

    cost: Positive | None = None
    max_iter: Count = 1000
    also: Annotated[tuple[Literal["knn", "simpleshot", "mlp"], ...], Distinct] = ()

    @property
    def linear(self) -> dict:
        """What decides the linear probe, as plain data."""
        return {"cost": self.cost, "max_iter": self.max_iter}
