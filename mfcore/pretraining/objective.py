"""What DINO, iBOT and DINOv2 minimise, how it changes, and what a collapse is.

**Losses.** All is computed in float32, inside autocast too. Targets depend on the batches of all
processes (torch.distributed, where it is initialised); losses are means over this process's images,
because gradients are averaged over the processes.

**Schedules** are arrays with one value a step: a training that goes on from a checkpoint needs the
number of its step alone.

**Collapse.** A target is a distribution over prototypes. The mean entropy of targets, and the
entropy of the mean target, show what goes wrong (Caron et al. 2021, section 5.3 and figure 7): both
are 0 where all images get one prototype; both are log K where every target is uniform. In either
case they are equal, and their difference, the information in nats that a target has on its image,
is 0. RankMe (Garrido et al. 2022) of the teacher's embeddings shows a third case: embeddings lie on
a line.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from mfcore.pretraining.method import Pretraining, method_of
from mfcore.training import processes

KOLEO_EPS = 1e-8
N_SINKHORN = 3  # iterations
CENTRE_MEMORY = 0.9  # of the centre: about the last ten batches
BEFORE_BLOCKS = ("patch_embed", "pos_embed", "cls_token", "reg_token", "mask_token", "norm_pre")
MEMORY = 0.95  # of the running mean of targets: about the last twenty batches
LEAST_INFORMATION = 0.01  # of log K; with less, targets count as the same for all images
LEAST_RANKME = 1.1  # 1 is a line; RankMe is not centred, so a common mean counts
# Networks begin with much the same target for every image, and large ones stay so for a thousand
# steps and more.
GRACE = 0.15, 1000  # share of the steps before a training is stopped, and the least number
PATIENCE = 0.05, 100  # share that a collapse lasts before it counts, and the least number


class PretrainingError(RuntimeError):
    """A pretraining is impossible, diverged or collapsed.

    The message says which one, where, and what to change first.
    """


# ---- losses ----


def dino(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean cross-entropy, a scalar, between the teacher's and the student's views of an image.

    student: logits (C, B, K) of C crops, the global ones first; teacher: probabilities (G, B, K)
    of the global ones, without gradient. Caron et al. 2021, equation 3, as a mean over images and
    pairs of different crops.
    """
    log_p, teacher = functional.log_softmax(student.float() / temperature, dim=-1), teacher.detach()
    pairs = [(g, c) for g in range(len(teacher)) for c in range(len(student)) if g != c]
    return torch.stack([-(teacher[g] * log_p[c]).sum(-1).mean() for g, c in pairs]).mean()


def ibot(
    student: torch.Tensor,
    teacher: torch.Tensor,
    weight: torch.Tensor,
    n_images: int,
    temperature: float,
) -> torch.Tensor:
    """Mean over images, a scalar, of the mean cross-entropy of an image's masked tokens.

    The mean is 0 where nothing is masked. student: logits (N, K) of the N tokens that the student
    didn't see; teacher: probabilities (N, K) of the same tokens, which the teacher saw, without
    gradient; weight: 1 / (masked tokens of the token's image), (N,), see `crops.mask_weights`;
    n_images: global crops, crops without a mask included. Zhou et al. 2021, section 3 (masked image
    modelling).
    """
    log_p = functional.log_softmax(student.float() / temperature, dim=-1)  # (N, K)
    return -((teacher.detach() * log_p).sum(-1) * weight).sum() / n_images


def koleo(x: torch.Tensor) -> torch.Tensor:
    """Kozachenko-Leonenko regulariser, a scalar, of embeddings (B, D).

    It is -mean(log distance to the nearest neighbour). The rows, two or more, are normalised to
    length 1 first. Sablayrolles et al. 2018, section 3, as in Oquab et al. 2023, section 4: within
    this process's batch, and among the same crop of different images.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = functional.normalize(x.float(), dim=-1, eps=KOLEO_EPS)
        with torch.no_grad():
            nearest = (x @ x.T).fill_diagonal_(-2).argmax(dim=1)  # (B,)
        distance = functional.pairwise_distance(x, x[nearest], eps=KOLEO_EPS)  # (B,)
        return -torch.log(distance + KOLEO_EPS).mean()


class Centre(nn.Module):
    """The running mean of a teacher's logits, a buffer (n_prototypes,).

    It is subtracted from logits before the softmax. Caron et al. 2021, equation 4: after a step,
    centre = CENTRE_MEMORY * centre + (1 - CENTRE_MEMORY) * mean of the step's logits.
    """

    def __init__(self, n_prototypes: int):
        super().__init__()
        self.register_buffer("centre", torch.zeros(n_prototypes))

    @torch.no_grad()
    def forward(self, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        """Targets, float32 (..., K), of a teacher's logits (..., K), centred and sharpened.

        Then the centre moves towards the mean of the logits over all processes; without logits it
        stays.
        """
        targets = functional.softmax((logits.float() - self.centre) / temperature, dim=-1)
        rows = logits.float().flatten(0, -2)  # (N, K)
        summed = torch.cat([rows.sum(0), rows.new_tensor([len(rows)])])  # (K + 1,)
        summed = processes.here().add(summed)
        if summed[-1] > 0:
            self.centre.lerp_(summed[:-1] / summed[-1], 1 - CENTRE_MEMORY)
        return targets


@torch.no_grad()
def sinkhorn_knopp(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Targets, float32 (..., K), of a teacher's logits (..., K).

    Each row sums to 1, all prototypes get about the same sum. Prototypes and rows of exp(logits /
    temperature) are scaled to equal sums in turn, over the rows of all processes, rows last (Caron
    et al. 2020, section 3.1; Oquab et al. 2023, section 4). In logarithms, as the exponential of a
    temperature of 0.04 leaves float32. A process without rows gets none, but has to call this where
    the others do.
    """
    log_q = logits.float().flatten(0, -2) / temperature  # (N, K)
    for _ in range(N_SINKHORN):
        # In place: for iBOT's tokens and 65,536 prototypes it is gigabytes.
        log_q -= _logsumexp_over_ranks(log_q)
        log_q -= torch.logsumexp(log_q, dim=1, keepdim=True)
    return log_q.exp_().view_as(logits)


def _logsumexp_over_ranks(rows: torch.Tensor) -> torch.Tensor:
    """log(sum(exp(rows))) over the rows (N, K) of all processes, (K,)."""
    add = processes.here().add
    highest = rows.amax(0) if len(rows) else rows.new_full(rows.shape[1:], -torch.inf)
    highest = add(highest, "MAX")  # (K,)
    return add((rows - highest).exp_().sum(0)).log() + highest


# ---- schedules ----


def schedules(settings: Pretraining) -> pd.DataFrame:
    """The values of every step, a row of float64 for each of n_steps.

    ``learning_rate`` rises from 0 to a peak, which the method scales to the batch, and falls by a
    cosine to ``final_lr``; ``weight_decay`` and ``momentum`` go by a cosine from their first value
    to their last (1 for momentum); ``teacher_temperature`` rises and stays (Caron et al. 2021,
    section 3.2; Oquab et al. 2023, its authors' configuration). ``last_layer``: factor of the
    learning rate of the head's last layer, 0 while the layer stays as drawn and 1 afterwards.
    """
    n_steps = settings.n_steps
    shares = settings.warmup, settings.n_frozen_last, settings.temperature_warmup
    n_warm, n_frozen, n_rise = (round(share * n_steps) for share in shares)
    peak = settings.base_lr * method_of(settings).lr_factor(settings.batch_size)
    falling = cosine(peak, settings.final_lr, n_steps - n_warm)
    first, last = settings.teacher_temperature
    values = {
        "learning_rate": np.concatenate([np.linspace(0, peak, n_warm), falling]),
        "weight_decay": cosine(*settings.weight_decay, n_steps),
        "momentum": cosine(settings.momentum, 1.0, n_steps),
        "teacher_temperature": np.concatenate(
            [np.linspace(first, last, n_rise), np.full(n_steps - n_rise, last)]
        ),
        "last_layer": (np.arange(n_steps) >= n_frozen).astype(np.float64),
    }
    return pd.DataFrame(values)


def cosine(first: float, last: float, n_steps: int) -> np.ndarray:
    """Half a cosine from ``first`` towards ``last``, float64 (n_steps,).

    Step n_steps would have ``last``, as in BYOL.
    """
    return last + (first - last) * (1 + np.cos(np.pi * np.arange(n_steps) / max(n_steps, 1))) / 2


def layer_factor(settings: Pretraining, name: str, n_blocks: int) -> float:
    """Factor of a parameter's learning rate, by its name in timm's ViT of ``n_blocks`` blocks.

    Layer-wise decay (Bao et al. 2022, as in DINOv2's configuration): ``layer_decay`` to the power
    of the number of layers between the parameter and the output. Embeddings are layer 0; what
    comes after the blocks isn't decayed. The method's factor of the patch embedding is included.
    """
    part, _, rest = name.partition(".")
    layer = 0 if part in BEFORE_BLOCKS else n_blocks + 1
    if part == "blocks":
        layer = int(rest.partition(".")[0]) + 1
    factor = method_of(settings).patch_embedding_lr if part == "patch_embed" else 1.0
    return factor * settings.layer_decay ** (n_blocks + 1 - layer)


# ---- collapse ----


def entropies(targets: torch.Tensor) -> torch.Tensor:
    """Entropy in nats (...) of targets (..., K)."""
    return torch.special.entr(targets).sum(-1)


def check_history(history: Sequence[dict], settings: Pretraining) -> None:
    """Raise PretrainingError where the loss isn't finite, or where the teacher has collapsed.

    history: lines with ``step``, ``loss``, ``teacher_entropy``, ``target_entropy``,
    ``learning_rate`` and ``rankme`` (None where it wasn't measured). A collapse stops a training
    where it lasted for PATIENCE of all steps, after GRACE of them; `collapse_of` says how any
    training ended. settings: as `in_full`.
    """
    last, n_steps = history[-1], settings.n_steps
    place = f"step {last['step']} of {n_steps}"
    if not all(math.isfinite(last[key]) for key in ("loss", "teacher_entropy", "target_entropy")):
        raise PretrainingError(
            f"pretraining[{settings.name}]: the loss became {last['loss']} by {place}, at a rate "
            f"of {last['learning_rate']:.3g}; lower base_lr (now {settings.base_lr:g}), then "
            f"clip_norm (now {settings.clip_norm:g}), or lengthen warmup"
        )
    grace, patience = (max(least, round(share * n_steps)) for share, least in (GRACE, PATIENCE))
    if last["step"] < grace + patience:
        return
    recent = [line for line in history if line["step"] > last["step"] - patience]
    if collapse := collapse_of(recent, settings):
        raise PretrainingError(
            f"pretraining[{settings.name}] collapsed by {place}: {collapse}. {remedy(settings)}"
        )


def collapse_of(lines: Sequence[dict], settings: Pretraining) -> str:
    """How the teacher collapsed, in words, if each of the history's ``lines`` shows it; else "".

    A mean target whose entropy is well below the targets' own is made of earlier, sharper targets:
    that is no collapse.
    """
    uniform, last = math.log(settings.n_prototypes), lines[-1]
    target, teacher = last["target_entropy"], last["teacher_entropy"]
    apart = [abs(line["target_entropy"] - line["teacher_entropy"]) for line in lines]
    ranks = [line["rankme"] for line in lines if line["rankme"] is not None]
    if max(apart) < LEAST_INFORMATION * uniform:
        words = "few prototypes" if target < uniform / 2 else "target, spread over the prototypes"
        return (
            f"all images get the same {words} (entropy of the teacher {teacher:.2f}, of its mean "
            f"{target:.2f} nats; uniform is {uniform:.2f})"
        )
    if ranks and max(ranks) < LEAST_RANKME:
        return f"embeddings lie on a line (RankMe {ranks[-1]:.2f})"
    return ""


def remedy(settings: Pretraining) -> str:
    """What to change, in this order, after a collapse with these settings."""
    return (
        "Change, one at a time: where targets are uniform, lower teacher_temperature (now "
        f"{list(settings.teacher_temperature)}) and n_prototypes (now {settings.n_prototypes}; a "
        f"batch has {2 * settings.batch_size} targets to fill them with), set koleo_weight: 0.1 "
        f"(now {settings.koleo_weight:g}) and centring: sinkhorn_knopp (now {settings.centring}); "
        "where few prototypes get all images, raise momentum towards 0.9995 (now "
        f"{settings.momentum:g}); lower base_lr (now {settings.base_lr:g})"
    )
