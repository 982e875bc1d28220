"""Losses and targets against values written out from the papers' equations, by loops; over two processes, and at the edges."""

import math

import numpy as np
import pytest
import torch
from torch import multiprocessing

from mfcore.pretraining import objective


def made(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def softmax(row: np.ndarray) -> np.ndarray:
    powers = [math.exp(value - max(row)) for value in row]
    return np.array([power / sum(powers) for power in powers])


def cross_entropy(target: np.ndarray, logits: np.ndarray, temperature: float) -> float:
    """-sum p log q of one image and one pair of views."""
    q = softmax(np.asarray(logits, float) / temperature)
    return -sum(float(p) * math.log(value) for p, value in zip(target, q, strict=True))


# ---- DINO ----


@pytest.mark.parametrize("n_crops", [2, 3, 6])
def test_dino_is_the_mean_over_pairs_of_different_views(n_crops):
    student, teacher = made(n_crops, 5, 7), made(2, 5, 7, seed=1).softmax(-1)
    terms = [
        np.mean([cross_entropy(teacher[g, b].numpy(), student[c, b].numpy(), 0.1) for b in range(5)])
        for c in range(n_crops)
        for g in range(2)
        if c != g
    ]
    assert len(terms) == 2 * n_crops - 2
    np.testing.assert_allclose(objective.dino(student, teacher, 0.1).item(), np.mean(terms), rtol=1e-5)


def test_dino_leaves_equal_views_out():
    """With two crops, the first one's target has no influence on the first crop's gradient."""
    student, teacher = made(2, 3, 4).requires_grad_(), made(2, 3, 4, seed=1).softmax(-1)
    objective.dino(student, teacher, 0.5).backward()
    first = student.grad[0].clone()
    student.grad = None
    objective.dino(student, torch.stack([made(3, 4, seed=2).softmax(-1), teacher[1]]), 0.5).backward()
    assert torch.equal(student.grad[0], first)
    # d/ds of the cross-entropy of a pair: (q - p) / temperature, over 2 pairs and 3 images
    torch.testing.assert_close(first, ((student[0] / 0.5).softmax(-1) - teacher[1]).detach() / (0.5 * 2 * 3))


def test_no_gradient_reaches_the_teacher():
    teacher = made(2, 3, 4).softmax(-1).requires_grad_()
    objective.dino(made(4, 3, 4).requires_grad_(), teacher, 0.1).backward()
    objective.ibot(made(6, 4).requires_grad_(), teacher.flatten(0, 1), torch.ones(6), 2, 0.1).backward()
    assert teacher.grad is None


def test_losses_stay_finite_where_a_temperature_magnifies():
    student = torch.tensor([[[1e4, -1e4, 0.0]]]).repeat(2, 1, 1).requires_grad_()
    loss = objective.dino(student, torch.tensor([[[0.0, 1.0, 0.0]]]).repeat(2, 1, 1), 0.04)
    loss.backward()
    assert loss.item() == pytest.approx(2e4 / 0.04) and student.grad.isfinite().all()


# ---- iBOT ----


def test_ibot_is_the_mean_over_images_of_the_mean_over_masked_tokens():
    per_image = [3, 1, 0, 4]  # the third image isn't masked, yet counts
    student, teacher = made(8, 6), made(8, 6, seed=1).softmax(-1)
    weight = torch.tensor([1 / n for n in per_image for _ in range(n)])
    total, at = 0.0, 0
    for n in per_image:
        tokens = [cross_entropy(teacher[i].numpy(), student[i].numpy(), 0.1) for i in range(at, at + n)]
        total, at = total + (np.mean(tokens) if n else 0.0), at + n
    np.testing.assert_allclose(objective.ibot(student, teacher, weight, 4, 0.1).item(), total / 4, rtol=1e-5)


def test_ibot_without_a_masked_token_is_zero_with_a_gradient():
    student = torch.empty(0, 5, requires_grad=True)
    loss = objective.ibot(student, torch.empty(0, 5), torch.empty(0), 4, 0.1)
    loss.backward()  # DDP waits for every parameter's gradient
    assert loss.item() == 0 and student.grad.shape == (0, 5)


# ---- KoLeo ----


def test_koleo_is_minus_the_mean_log_distance_to_the_nearest_neighbour():
    x = made(7, 3).numpy().astype(float)
    unit = [row / math.sqrt(sum(value**2 for value in row)) for row in x]
    nearest = [min(math.dist(a, b) for j, b in enumerate(unit) if j != i) for i, a in enumerate(unit)]
    expected = -np.mean([math.log(distance) for distance in nearest])
    np.testing.assert_allclose(objective.koleo(torch.from_numpy(x)).item(), expected, rtol=1e-5)


def test_koleo_ignores_lengths_and_pushes_neighbours_apart():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]], requires_grad=True)
    loss = objective.koleo(x)
    torch.testing.assert_close(objective.koleo(x * torch.tensor([[1.0], [5.0], [0.2]])), loss)
    loss.backward()
    moved = (x - 0.01 * x.grad).detach()
    assert math.dist(*moved[:2].tolist()) > math.dist(*x[:2].tolist())


def test_koleo_of_equal_rows_is_finite():
    equal = torch.ones(3, 4, requires_grad=True)
    loss = objective.koleo(equal)
    loss.backward()
    assert loss.isfinite() and equal.grad.isfinite().all()


def test_losses_are_float32_inside_autocast():
    """bfloat16 has 8 bits: the nearest neighbours of close rows, and a mean over them, would be others."""
    x, student, teacher = made(6, 4, scale=1e-3) + 1, made(4, 3, 9, scale=10), made(2, 3, 9, seed=1).softmax(-1)

    def all_of_them() -> list[torch.Tensor]:
        return [
            objective.koleo(x),
            objective.dino(student, teacher, 0.1),
            objective.ibot(student[0], teacher[0], torch.ones(3), 3, 0.1),
            objective.Centre(9)(student, 0.04),
            objective.sinkhorn_knopp(student[0], 0.04),
        ]

    plain = all_of_them()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = all_of_them()
    for a, b in zip(plain, inside, strict=True):
        assert b.dtype == torch.float32 and torch.equal(a, b)


# ---- centring ----


def test_the_centre_is_the_running_mean_of_the_logits():
    centre, expected = objective.Centre(4), np.zeros(4)
    for step in range(3):
        logits = made(2, 5, 4, seed=step)
        centre(logits, 0.04)
        mean = np.array([np.mean([logits[g, b, k].item() for g in range(2) for b in range(5)]) for k in range(4)])
        expected = 0.9 * expected + 0.1 * mean
    np.testing.assert_allclose(centre.centre.numpy(), expected, rtol=1e-5)
    logits = made(3, 4, seed=9)
    rows = [softmax((row - expected) / 0.04) for row in logits.numpy().astype(float)]
    np.testing.assert_allclose(centre(logits, 0.04).numpy(), rows, rtol=1e-4, atol=1e-7)


def test_the_centre_travels_with_a_checkpoint_and_stays_without_logits():
    centre, other = objective.Centre(4), objective.Centre(4)
    centre(made(5, 4), 0.04)
    other.load_state_dict(centre.state_dict())
    other(torch.empty(0, 4), 0.04)
    assert torch.equal(other.centre, centre.centre) and other.centre.any()


# ---- Sinkhorn-Knopp ----


def sinkhorn(logits: np.ndarray, temperature: float, n_iterations: int) -> np.ndarray:
    """SwAV's algorithm, written out: Q (K, N); rows to 1/K, columns to 1/N, in turn; columns then to 1."""
    q = np.exp(logits.astype(np.longdouble) / temperature).T
    q /= q.sum()
    n_prototypes, n_rows = q.shape
    for _ in range(n_iterations):
        for k in range(n_prototypes):
            q[k] /= sum(q[k]) * n_prototypes
        for n in range(n_rows):
            q[:, n] /= sum(q[:, n]) * n_rows
    return (q * n_rows).T.astype(float)


@pytest.mark.parametrize("n_iterations", [1, objective.N_SINKHORN])
def test_sinkhorn_knopp_is_the_alternate_scaling(monkeypatch, n_iterations):
    monkeypatch.setattr(objective, "N_SINKHORN", n_iterations)
    logits = made(9, 4, scale=0.3)
    expected = sinkhorn(logits.numpy(), 0.07, n_iterations)
    np.testing.assert_allclose(objective.sinkhorn_knopp(logits, 0.07).numpy(), expected, rtol=1e-4, atol=1e-7)


def test_sinkhorn_knopp_gives_rows_one_and_prototypes_their_share(monkeypatch):
    q = objective.sinkhorn_knopp(made(60, 5, scale=0.1), 0.05)
    np.testing.assert_allclose(q.sum(1).numpy(), np.ones(60), rtol=1e-5)
    np.testing.assert_allclose(q.sum(0).numpy(), np.full(5, 12.0), rtol=0.15)
    monkeypatch.setattr(objective, "N_SINKHORN", 200)
    balanced = objective.sinkhorn_knopp(made(60, 5, scale=0.1), 0.05)
    np.testing.assert_allclose(balanced.sum(0).numpy(), np.full(5, 12.0), rtol=1e-3)


def test_sinkhorn_knopp_is_finite_where_the_exponential_is_not():
    """One row's logits far below another's: its exponentials are 0 in float32, and 0 / 0 would be its share."""
    logits = torch.tensor([[40.0, 0.0, -5.0], [-40.0, -41.0, -40.5], [1.0, 1.0, 1.0]])
    q = objective.sinkhorn_knopp(logits, 0.04)
    assert q.isfinite().all()
    np.testing.assert_allclose(q.sum(1).numpy(), np.ones(3), rtol=1e-5)


def test_sinkhorn_knopp_of_one_row_and_of_none():
    np.testing.assert_allclose(objective.sinkhorn_knopp(made(1, 4), 0.05).numpy(), np.full((1, 4), 0.25), rtol=1e-5)
    assert objective.sinkhorn_knopp(torch.empty(0, 4), 0.05).shape == (0, 4)


# ---- several processes ----


def on_a_rank(rank: int, n_ranks: int, address: str, shares: list[slice], logits: torch.Tensor, told) -> None:
    torch.set_num_threads(1)  # a forked process hasn't its parent's threads
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=n_ranks)
    try:
        mine, centre = logits[shares[rank]], objective.Centre(logits.shape[1])
        centre(mine, 0.05)
        told[rank] = (objective.sinkhorn_knopp(mine, 0.05).numpy(), centre.centre.numpy())
    finally:
        torch.distributed.destroy_process_group()


def test_processes_that_share_a_batch_have_its_targets(tmp_path):
    """Uneven shares, and one process that has none of the rows."""
    logits, shares = made(7, 4, scale=0.2), [slice(0, 5), slice(5, 7), slice(7, 7)]
    with multiprocessing.get_context("fork").Manager() as manager:
        told = manager.dict()
        arguments = (3, f"file://{tmp_path}/meet", shares, logits, told)
        multiprocessing.start_processes(on_a_rank, arguments, nprocs=3, start_method="fork")
        found = [told[rank] for rank in range(3)]
    alone = objective.Centre(4)
    alone(logits, 0.05)
    np.testing.assert_allclose(
        np.concatenate([targets for targets, _ in found]), objective.sinkhorn_knopp(logits, 0.05).numpy(), rtol=1e-5
    )
    for _, centre in found:
        np.testing.assert_allclose(centre, alone.centre.numpy(), rtol=1e-5)
