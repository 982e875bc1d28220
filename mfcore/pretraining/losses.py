"""What DINO, iBOT and DINOv2 minimise, and how a teacher's logits become targets.

Everything is computed in float32, inside autocast too. Targets depend on the batches of all processes (torch.distributed,
where it is initialised); losses are means over this process's images, as gradients are averaged over the processes.
"""

import torch
from torch import distributed, nn
from torch.nn import functional

KOLEO_EPS = 1e-8


def dino(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean cross-entropy, a scalar, between the teacher's and the student's views of an image, equal views left out.

    student: logits (C, B, K) of C crops, the global ones first; teacher: probabilities (G, B, K) of the global ones, without
    gradient. Caron et al. 2021, equation 3, as a mean over pairs of crops and images. Raises ValueError where there is no
    pair of different crops.
    """
    log_p = functional.log_softmax(student.float() / temperature, dim=-1)  # (C, B, K)
    pairs = [(g, c) for g in range(len(teacher)) for c in range(len(student)) if g != c]
    if not pairs:
        raise ValueError(f"{len(student)} crops of the student and {len(teacher)} of the teacher make no pair; two are needed")
    teacher = teacher.detach()
    return torch.stack([-(teacher[g] * log_p[c]).sum(-1).mean() for g, c in pairs]).mean()


def ibot(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor, n_images: int, temperature: float) -> torch.Tensor:
    """Mean over images, a scalar, of the mean cross-entropy of an image's masked tokens; 0 where nothing is masked.

    student: logits (N, K) of the N tokens that were masked for it; teacher: probabilities (N, K) of the same tokens, which
    it saw, without gradient; weight: 1 / (masked tokens of the token's image), (N,), see `masks.weights`; n_images: global
    crops, those without a mask included. Zhou et al. 2021, section 3 (masked image modelling).
    """
    log_p = functional.log_softmax(student.float() / temperature, dim=-1)  # (N, K)
    return -((teacher.detach() * log_p).sum(-1) * weight).sum() / n_images


def koleo(x: torch.Tensor) -> torch.Tensor:
    """Kozachenko-Leonenko regulariser, a scalar, of embeddings (B, D): -mean(log distance to the nearest neighbour).

    The rows are normalised to length 1 first; 0 for a single one, which has no neighbour. Sablayrolles et al. 2018,
    section 3, as in Oquab et al. 2023, section 4: within this process's batch, and among the same crop of different images.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = functional.normalize(x.float(), dim=-1, eps=KOLEO_EPS)
        if len(x) < 2:
            return x.sum() * 0
        with torch.no_grad():
            nearest = (x @ x.T).fill_diagonal_(-2).argmax(dim=1)  # (B,)
        distance = functional.pairwise_distance(x, x[nearest], eps=KOLEO_EPS)  # (B,)
        return -torch.log(distance + KOLEO_EPS).mean()


class Centre(nn.Module):
    """The running mean of a teacher's logits, a buffer (n_prototypes,), which is taken from them before the softmax.

    Caron et al. 2021, equation 4: after a step, centre = momentum * centre + (1 - momentum) * mean of the step's logits.
    """

    def __init__(self, n_prototypes: int, momentum: float = 0.9):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(n_prototypes))

    @torch.no_grad()
    def probabilities(self, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        """Targets, float32 (..., K), of a teacher's logits (..., K), centred and sharpened."""
        return functional.softmax((logits.float() - self.centre) / temperature, dim=-1)

    @torch.no_grad()
    def update(self, logits: torch.Tensor) -> None:
        """Move the centre towards the mean of logits (..., K), over all processes; no logits at all leave it where it is."""
        rows = logits.float().flatten(0, -2)  # (N, K)
        summed = _over_ranks(torch.cat([rows.sum(0), rows.new_tensor([len(rows)])]))  # (K + 1,)
        if summed[-1] > 0:
            self.centre.lerp_(summed[:-1] / summed[-1], 1 - self.momentum)


@torch.no_grad()
def sinkhorn_knopp(logits: torch.Tensor, temperature: float, n_iterations: int = 3) -> torch.Tensor:
    """Targets, float32 (N, K), of a teacher's logits (N, K): each row sums to 1, each prototype gets about as much as others.

    Prototypes and rows of exp(logits / temperature) are scaled to equal sums in turn, over the rows of all processes, rows
    last (Caron et al. 2020, section 3.1; Oquab et al. 2023, section 4). In logarithms, as the exponential of a temperature of
    0.04 leaves float32. A process without rows gets none, but has to call this where the others do.
    """
    log_q = logits.float() / temperature  # (N, K)
    for _ in range(n_iterations):
        log_q -= _logsumexp_over_ranks(log_q)  # in place: of iBOT's tokens and 65,536 prototypes it is gigabytes
        log_q -= torch.logsumexp(log_q, dim=1, keepdim=True)
    return log_q.exp_()


def _logsumexp_over_ranks(rows: torch.Tensor) -> torch.Tensor:
    """log(sum(exp(rows))) over the rows (N, K) of all processes, (K,)."""
    highest = rows.amax(0) if len(rows) else rows.new_full(rows.shape[1:], -torch.inf)
    highest = _over_ranks(highest, distributed.ReduceOp.MAX) if _several() else highest  # (K,)
    return _over_ranks((rows - highest).exp_().sum(0)).log() + highest


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _over_ranks(values: torch.Tensor, how: "distributed.ReduceOp | None" = None) -> torch.Tensor:
    """The sum of every process's ``values``, in place, or what ``how`` says."""
    if _several():
        distributed.all_reduce(values, op=how or distributed.ReduceOp.SUM)
    return values
