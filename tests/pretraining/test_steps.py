"""Whole steps of DINO and DINOv2 against the papers' algorithms written out: one crop, one parameter at a time.

What is drawn (crops, masks) is taken as it is drawn; forward passes, targets, losses, clipping, AdamW, schedules, the teacher's
moving average and the order of it all are written here anew.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import distributed, multiprocessing

from mfcore import streams as rng
from mfcore.pretraining import crops, loop, networks
from mfcore.pretraining.method import in_full
from mfcore.study.config import Crops, OnlinePatches, Pretraining
from mfcore.training import processes

SIZE_PX, N_STEPS, BATCH = 40, 5, 3
DINO = in_full(
    Pretraining(
        "tiny",
        method="dino",
        architecture="test_vit",
        arguments={"patch_size": 8, "depth": 2},
        patches=OnlinePatches(size_px=SIZE_PX),
        crops=Crops(global_px=32, local_px=16, n_local=3),
        n_steps=N_STEPS,
        batch_size=BATCH,
        n_prototypes=24,
        head_hidden=32,
        head_bottleneck=16,
        drop_path=0.0,
        base_lr=0.001 * 256 / BATCH,  # so that the peak is 0.001
        warmup=0.4,
        n_frozen_last=0.4,
        clip_norm=0.05,
        teacher_temperature=(0.04, 0.07),
        temperature_warmup=0.6,
        centring="mean",
        koleo_weight=0.0,
    )
)
DINOV2 = in_full(
    dataclasses.replace(
        DINO,
        method="dinov2",
        arguments={**DINO.arguments, "init_values": 1.0},  # at 1e-5, blocks' gradients are near to rounding alone
        base_lr=0.001 * (1024 / BATCH) ** 0.5,
        centring="sinkhorn_knopp",
        ibot_weight=1.0,
        koleo_weight=0.1,
        mask_probability=0.75,
        mask_ratio=(0.2, 0.5),
        layer_decay=0.7,
    )
)
CASES = {
    "dino": DINO,
    "dinov2": DINOV2,
    "dinov2, mean centring": dataclasses.replace(DINOV2, centring="mean"),
    "no local crops": dataclasses.replace(DINO, crops=dataclasses.replace(DINO.crops, n_local=0)),
}


def batches(size: int = BATCH) -> list[SimpleNamespace]:
    images = np.random.default_rng(1).integers(0, 256, (N_STEPS, size, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    place = {"slide_id": "s", "um_per_px": 1.0, "x_l0_px": 0, "y_l0_px": 0, "tissue": 1.0}
    return [
        SimpleNamespace(images=images[n], drawn=pd.DataFrame({"number": np.arange(n * size, (n + 1) * size), **place}))
        for n in range(N_STEPS)
    ]


def by_loop(settings: Pretraining, pair: networks.Networks, folder: Path) -> list[dict]:
    size, ranks = settings.batch_size, processes.here()

    def read(first: int, n_batches: int) -> Iterator[SimpleNamespace]:
        for batch in batches(size)[first // size :][:n_batches]:
            mine = ranks.share(slice(0, size))
            yield SimpleNamespace(images=batch.images[mine], drawn=batch.drawn[mine])

    card = networks.card(pair, settings, SimpleNamespace(size_px=SIZE_PX, um_per_px=1.0), "made")
    watched = np.concatenate([batch.images for batch in batches()])
    task = loop.Task(settings, read, watched, card, lambda step: None, ())
    return loop.train(task, pair, folder, torch.device("cpu"))


# ---- the same, written out ----


def softmax(x: torch.Tensor) -> torch.Tensor:
    powers = (x - x.max()).exp()
    return powers / powers.sum()


def sinkhorn(rows: list[torch.Tensor], temperature: float) -> list[torch.Tensor]:
    q = torch.stack([(row.double() / temperature).exp() for row in rows])
    for _ in range(3):
        for k in range(q.shape[1]):
            q[:, k] /= q[:, k].sum() * q.shape[1]
        for i in range(len(q)):
            q[i] /= q[i].sum() * len(q)
    return [(row * len(q)).float() for row in q]


def one(encoder: torch.nn.Module, image: torch.Tensor, mask=None, token=None) -> torch.Tensor:
    """All tokens of one image; masked ones are replaced where they leave the patch embedding, before positions are added."""

    def replace(module, given, patches):
        return torch.where(mask.view(*patches.shape[:-1], 1), token.view(-1), patches)

    hook = None if mask is None else encoder.patch_embed.register_forward_hook(replace)
    tokens = encoder.forward_features(image[None])[0]
    if hook is not None:
        hook.remove()
    return tokens


def cross_entropy(target: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return -(target * softmax(logits / 0.1).log()).sum()


def cosine(first: float, last: float, step: int, n_steps: int) -> float:
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * step / n_steps))


def factor_of(name: str, settings: Pretraining) -> float:
    if settings.method == "dino" or name.startswith("head.") or name.startswith("encoder.norm."):
        return 1.0
    if name.startswith("encoder.blocks."):
        return settings.layer_decay ** (2 - int(name.split(".")[2]))
    return settings.layer_decay**3 * (0.2 if "patch_embed" in name else 1.0)


class Reference:
    """Algorithm 1 of Caron et al. 2021, and what Oquab et al. 2023 add to it."""

    def __init__(self, settings: Pretraining, pair: networks.Networks):
        self.settings, self.student, self.teacher = settings, pair.student, pair.teacher
        self.norms = pair.mean, pair.std
        self.centres = [torch.zeros(settings.n_prototypes), torch.zeros(settings.n_prototypes)]
        self.moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in self.student.named_parameters()}

    def targets(self, rows: list[torch.Tensor], temperature: float, number: int) -> list[torch.Tensor]:
        if self.settings.centring == "sinkhorn_knopp":
            return sinkhorn(rows, temperature)
        found = [softmax((row - self.centres[number]) / temperature) for row in rows]
        self.centres[number] = 0.9 * self.centres[number] + 0.1 * sum(rows) / len(rows)
        return found

    def losses(self, batch: SimpleNamespace, n: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        settings, student, teacher = self.settings, self.student, self.teacher
        drawn = crops.draw(settings.crops, BATCH, SIZE_PX, settings.seed, "pretraining", "crops", n)
        images = torch.from_numpy(batch.images).permute(0, 3, 1, 2)
        groups = crops.make(images, drawn, settings.crops, *self.norms)
        views = [crop for group in groups for crop in group]  # C of (B, 3, side, side)
        masked = np.zeros((2 * BATCH, 16), bool)
        if settings.ibot_weight:
            stream = rng.generator(settings.seed, "pretraining", "masks", n)
            masked = crops.draw_masks(2 * BATCH, (4, 4), settings.mask_probability, settings.mask_ratio, stream)
        masked = torch.from_numpy(masked).view(2, BATCH, 16)
        seen = [[one(teacher.encoder, views[g][b]).detach() for b in range(BATCH)] for g in range(2)]
        given = [
            [one(student.encoder, view[b], masked[c, b] if c < 2 else None, student.mask_token) for b in range(BATCH)]
            if settings.ibot_weight and c < 2
            else [one(student.encoder, view[b]) for b in range(BATCH)]
            for c, view in enumerate(views)
        ]
        rows = [teacher.head(seen[g][b][0]).detach() for g in range(2) for b in range(BATCH)]
        targets = self.targets(rows, temperature, 0)
        terms = [
            cross_entropy(targets[g * BATCH + b], student.head(given[c][b][0]))
            for g in range(2)
            for c in range(len(views))
            for b in range(BATCH)
            if g != c
        ]
        parts = [sum(terms) / len(terms), torch.zeros(()), torch.zeros(())]
        prefix = len(given[0][0]) - 16
        if settings.ibot_weight:
            places = [(c, b, t) for c in range(2) for b in range(BATCH) for t in range(16) if masked[c, b, t]]
            assert len(places) > 4
            rows = [teacher.head(seen[c][b][prefix + t]).detach() for c, b, t in places]
            per_token = [
                cross_entropy(target, student.head(given[c][b][prefix + t])) / masked[c, b].sum()
                for target, (c, b, t) in zip(self.targets(rows, temperature, 1), places, strict=True)
            ]
            parts[1] = sum(per_token) / (2 * BATCH)
        if settings.koleo_weight:
            for c in range(2):
                unit = [given[c][b][0] / given[c][b][0].norm() for b in range(BATCH)]
                nearest = [min((unit[b] - unit[a]).norm() for a in range(BATCH) if a != b) for b in range(BATCH)]
                parts[2] = parts[2] - sum(distance.log() for distance in nearest) / BATCH
        return tuple(parts)

    def step(self, batch: SimpleNamespace, n: int) -> list[float]:
        settings = self.settings
        temperature = 0.04 + 0.03 * n / 2 if n < 3 else 0.07  # from 0.04 to 0.07 in three of five steps
        parts = self.losses(batch, n, temperature)
        loss = parts[0] + settings.ibot_weight * parts[1] + settings.koleo_weight * parts[2]
        names, parameters = zip(*self.student.named_parameters(), strict=True)
        gradients = self.clipped(dict(zip(names, torch.autograd.grad(loss, parameters), strict=True)))
        rate = [0.0, 0.001][n] if n < 2 else cosine(0.001, 1e-6, n - 2, 3)
        decay, momentum = cosine(0.04, 0.4, n, N_STEPS), cosine(settings.momentum, 1.0, n, N_STEPS)
        with torch.no_grad():
            for name, parameter in zip(names, parameters, strict=True):
                first, second = self.moments[name]
                first.mul_(0.9).add_(0.1 * gradients[name])
                second.mul_(0.999).add_(0.001 * gradients[name] ** 2)
                own = rate * factor_of(name, settings)
                if name == "head.last.weight" and n < 2:
                    own = 0.0  # stays as drawn
                if parameter.ndim > 1:
                    parameter -= own * decay * parameter
                up = first / (1 - 0.9 ** (n + 1))
                parameter -= own * up / ((second / (1 - 0.999 ** (n + 1))).sqrt() + 1e-8)
            moved = dict(self.student.named_parameters())
            for name, parameter in self.teacher.named_parameters():
                parameter.copy_(momentum * parameter + (1 - momentum) * moved[name])
        return [loss.item(), *(part.item() for part in parts)]

    def clipped(self, gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """DINO bounds each parameter's norm, DINOv2 that of the encoder's (the mask token is its own) and of the head's."""
        if self.settings.method == "dino":
            groups = [[name] for name in gradients]
        else:
            groups = [[name for name in gradients if name.startswith("head.") == is_head] for is_head in (True, False)]
        factors = {}
        for group in groups:
            norm = math.sqrt(sum((gradients[name].double() ** 2).sum().item() for name in group))
            factors |= dict.fromkeys(group, min(1.0, 0.05 / (norm + 1e-6)))
        self.n_clipped = sum(factor < 1 for factor in factors.values())
        return {name: gradient * factors[name] for name, gradient in gradients.items()}


@pytest.mark.parametrize("case", CASES)
def test_steps_are_those_of_the_papers(case, tmp_path):
    settings = CASES[case]
    pair = networks.build(settings)
    start, reference = copy.deepcopy(pair), Reference(settings, copy.deepcopy(pair))
    expected = [reference.step(batch, n) for n, batch in enumerate(batches())]
    assert reference.n_clipped > 0
    history = by_loop(settings, pair, tmp_path)
    found = [[line[key] for key in ("loss", "loss_dino", "loss_ibot", "loss_koleo")] for line in history]
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)
    for part in ("student", "teacher"):
        before = dict(getattr(start, part).named_parameters())
        ours, theirs = (dict(getattr(of, part).named_parameters()) for of in (pair, reference))
        assert list(ours) == list(theirs)
        for name in ours:
            moved, should = (values[name].detach() - before[name].detach() for values in (ours, theirs))
            assert should.any(), name
            # Adam divides by the gradient's size: where that is rounding alone, so is its direction (keys' biases cancel).
            if not name.endswith("qkv.bias"):
                apart = ((moved - should).norm() / should.norm()).item()
                assert apart < 0.05, (part, name, apart)
    assert not any(parameter.requires_grad for parameter in pair.teacher.parameters())


def test_a_training_that_was_killed_after_its_last_step_has_nothing_left_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(processes, "CHECKPOINT_SHARE", 1e9)  # a checkpoint after every step
    history = by_loop(DINO, networks.build(DINO), tmp_path)
    again = networks.build(DINO)
    assert by_loop(DINO, again, tmp_path) == history and len(history) == N_STEPS
    kept = torch.load(tmp_path / "checkpoint.pt")["teacher"]
    assert all(torch.equal(kept[name], value) for name, value in again.teacher.state_dict().items())


# ---- two processes ----


def on_a_rank(rank: int, folder: Path, settings: Pretraining, told) -> None:
    torch.set_num_threads(1)  # a forked process hasn't its parent's threads
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        pair = networks.build(settings)
        history = by_loop(settings, pair, folder)
        told[rank] = history, {name: p.detach().numpy() for name, p in pair.teacher.named_parameters()}
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("centring", ["mean", "sinkhorn_knopp"])
def test_two_processes_share_a_batch_as_one_has_it(centring, tmp_path):
    """Targets, losses, gradients and what is logged; but for KoLeo, which knows its own process's neighbours only."""
    settings = dataclasses.replace(DINOV2, batch_size=4, koleo_weight=0.0, centring=centring)
    (tmp_path / "alone").mkdir()
    pair = networks.build(settings)
    start = {name: p.detach().clone() for name, p in pair.teacher.named_parameters()}
    alone = by_loop(settings, pair, tmp_path / "alone")
    with multiprocessing.get_context("fork").Manager() as manager:
        told = manager.dict()
        multiprocessing.start_processes(on_a_rank, (tmp_path, settings, told), nprocs=2, start_method="fork")
        found = [told[rank] for rank in range(2)]
    keys = ("loss", "loss_dino", "loss_ibot", "teacher_entropy", "target_entropy", "rankme")
    for history, weights in found:
        assert len(history) == N_STEPS
        for line, expected in zip(history, alone, strict=True):
            assert [line[key] for key in keys] == pytest.approx([expected[key] for key in keys], rel=2e-3)
        for name, parameter in pair.teacher.named_parameters():
            moved, should = weights[name] - start[name].numpy(), (parameter.detach() - start[name]).numpy()
            if not name.endswith("qkv.bias"):
                assert np.linalg.norm(moved - should) < 0.05 * np.linalg.norm(should), name
