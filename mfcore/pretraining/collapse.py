"""Whether a pretraining still learns: its loss is a number, and the teacher's targets tell images apart.

A target is a distribution over prototypes. The mean entropy of single targets, and the entropy of their mean, say what goes
wrong (Caron et al. 2021, section 5.3 and figure 7): both 0, all images get one prototype; both log K, every target is uniform.
In either case they are equal, and their difference, the information that a target has on its image in nats, is 0.
RankMe (Garrido et al. 2022) of the teacher's embeddings tells the third case: targets differ along a line only.
"""

import math
from collections.abc import Sequence

import torch

from mfcore.study.config import Pretraining

MEMORY = 0.95  # of the running mean of targets: about the last twenty batches
LEAST_INFORMATION = 0.01  # of log K, below which targets are taken to be the same for all images
LEAST_RANKME = 1.1  # 1 is a line; RankMe is not centred, so that a common mean counts
# Networks begin with much the same target for every image, and large ones stay so for a thousand steps and more.
GRACE = 0.15, 1000  # share of the steps before a training is stopped, and at least so many
LOW_TEMPERATURE = 0.02  # of the teacher; lower ones make targets of one prototype each
PATIENCE = 0.05, 100  # share of the steps that it may last, and at least so many: a collapse doesn't pass


class PretrainingError(RuntimeError):
    """A pretraining can't be, diverged or collapsed; the message says which, where, and what to change first."""


def entropies(targets: torch.Tensor) -> torch.Tensor:
    """Entropy in nats (...) of targets (..., K)."""
    return torch.special.entr(targets).sum(-1)


def check(history: Sequence[dict], which: Pretraining) -> None:
    """Raise PretrainingError where the loss isn't finite, or where the teacher has collapsed, by the history's last lines.

    history: lines with ``step``, ``loss``, ``teacher_entropy``, ``target_entropy`` and ``rankme`` (None where it wasn't
    measured). A collapse stops a training where it lasted for PATIENCE of all steps, after GRACE of them; `state` says of any
    training how it ended. which: as `in_full`.
    """
    last, place = history[-1], f"pretraining[{which.name}]"
    wrong = [key for key in ("loss", "teacher_entropy", "target_entropy") if not math.isfinite(last[key])]
    if wrong:
        raise PretrainingError(
            f"{place}: {', '.join(wrong)} became {last[wrong[0]]} by step {last['step']} of {which.n_steps}, at a rate "
            f"of {last['learning_rate']:.3g}; lower base_lr (now {which.base_lr:g}), then clip_norm (now {which.clip_norm:g}), "
            "or lengthen warmup"
        )
    grace, patience = (max(share * which.n_steps, n_steps) for share, n_steps in (GRACE, PATIENCE))
    if last["step"] < grace + patience:
        return
    recent = [line for line in history if line["step"] > last["step"] - patience]
    if reason := state(recent, which):
        raise PretrainingError(f"{place} collapsed by step {last['step']} of {which.n_steps}: {reason}. {remedy(which)}")


def state(lines: Sequence[dict], which: Pretraining) -> str:
    """In words how the teacher collapsed, if in each of some lines of the history it is so; "" where it isn't.

    A mean of entropy well below that of single targets is of earlier ones, which were sharper, and tells nothing of these.
    """
    least = LEAST_INFORMATION * math.log(which.n_prototypes)
    ranks = [line["rankme"] for line in lines if line["rankme"] is not None]
    if all(abs(line["target_entropy"] - line["teacher_entropy"]) < least for line in lines):
        return _kind(lines[-1], which)
    if ranks and max(ranks) < LEAST_RANKME:
        return f"embeddings lie on a line (RankMe {ranks[-1]:.2f})"
    return ""


def _kind(line: dict, which: Pretraining) -> str:
    """In words, where the teacher went whose targets are the same for all images."""
    highest = math.log(which.n_prototypes)
    numbers = f"entropy of the teacher {line['teacher_entropy']:.2f}, of its mean {line['target_entropy']:.2f} nats"
    if line["target_entropy"] < highest / 2:
        return f"all images get the same few prototypes ({numbers}; spread would be {highest:.2f})"
    return f"all images get the same target, spread over the prototypes ({numbers}; uniform is {highest:.2f})"


def remedy(which: Pretraining) -> str:
    """What to change first, in this order, for a pretraining with these settings."""
    n_targets, todo = 2 * which.batch_size, []
    if which.teacher_temperature[1] > LOW_TEMPERATURE:
        todo.append(f"where targets are uniform, lower teacher_temperature (now {list(which.teacher_temperature)})")
    if which.n_prototypes > 2 * n_targets:
        todo.append(f"lower n_prototypes (now {which.n_prototypes}; a batch has {n_targets} targets to fill them with)")
    if not which.koleo_weight:
        todo.append("set koleo_weight: 0.1, which keeps embeddings apart")
    if which.centring == "mean":
        todo.append("set centring: sinkhorn_knopp, which gives every prototype its share, with no more of them than targets")
    todo += [
        f"where few prototypes get all images, raise momentum towards 0.9995 (now {which.momentum:g})",
        f"lower base_lr (now {which.base_lr:g})",
    ]
    return f"Change, one at a time: {'; '.join(todo)}"
