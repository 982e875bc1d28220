"""What changes from step to step of a pretraining: learning rate, weight decay, temperature, momentum; and from layer to layer.

All are written out beforehand, one value a step, so that a training that goes on from a checkpoint needs its step alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mfcore.pretraining.method import method_of
from mfcore.study.config_pretraining import Pretraining, in_full

BEFORE_BLOCKS = ("patch_embed", "pos_embed", "cls_token", "reg_token", "mask_token", "norm_pre")


@dataclass(frozen=True)
class Schedules:
    """Values of every step, float64 (n_steps,) each.

    last_layer: what the learning rate of the heads' last layer is multiplied by, 0 while that stays as drawn and 1 after.
    """

    learning_rate: np.ndarray
    weight_decay: np.ndarray
    momentum: np.ndarray
    teacher_temperature: np.ndarray
    last_layer: np.ndarray

    def __len__(self) -> int:
        return len(self.learning_rate)


def of(p: Pretraining) -> Schedules:
    """The schedules of a pretraining, what is None in it as `in_full`.

    The learning rate rises from 0 and falls by a cosine to ``final_lr``, weight decay and momentum go by a cosine from
    their first value to their last (1 for momentum), the teacher's temperature rises and stays (Caron et al. 2021, section 3.2;
    Oquab et al. 2023, its authors' configuration).
    """
    p, n_steps = in_full(p), p.n_steps
    n_warm, n_frozen = (round(share * n_steps) for share in (p.warmup, p.n_frozen_last))
    peak = learning_rate(p)
    first, last = p.teacher_temperature
    n_cool = round(p.temperature_warmup * n_steps)
    return Schedules(
        learning_rate=np.concatenate([np.linspace(0, peak, n_warm), cosine(peak, p.final_lr, n_steps - n_warm)]),
        weight_decay=cosine(*p.weight_decay, n_steps),
        momentum=cosine(p.momentum, 1.0, n_steps),
        teacher_temperature=np.concatenate([np.linspace(first, last, n_cool), np.full(n_steps - n_cool, last)]),
        last_layer=(np.arange(n_steps) >= n_frozen).astype(np.float64),
    )


def learning_rate(p: Pretraining) -> float:
    """The highest learning rate, scaled to the batch of all processes as the method has it."""
    return in_full(p).base_lr * method_of(p).lr_factor(p.batch_size)


def cosine(first: float, last: float, n_steps: int) -> np.ndarray:
    """Half a cosine from ``first`` towards ``last``, float64 (n_steps,); ``last`` would be step n_steps' own, as in BYOL."""
    return last + (first - last) * (1 + np.cos(np.pi * np.arange(n_steps) / max(n_steps, 1))) / 2


def layer_factors(p: Pretraining, names: Iterable[str], n_blocks: int) -> dict[str, float]:
    """What each parameter's learning rate is multiplied by, by its name in timm's ViT of ``n_blocks`` blocks.

    Layer-wise decay (Bao et al. 2022, as in DINOv2's configuration): ``layer_decay`` to the number of layers between the
    parameter and the output; embeddings count as layer 0, what comes after the blocks isn't decayed. The patch embedding's
    factor of its own, which the method has, is in it.
    """
    decay, factors = in_full(p).layer_decay, {}
    for name in names:
        layer = n_blocks + 1
        parts = name.split(".")
        if parts[0] in BEFORE_BLOCKS:
            layer = 0
        elif parts[0] == "blocks":
            layer = int(parts[1]) + 1
        own = method_of(p).patch_embedding_lr if parts[0] == "patch_embed" else 1.0
        factors[name] = own * decay ** (n_blocks + 1 - layer)
    return factors
