"""The loop of a pretraining: steps of student and teacher, the history, snapshots, and checkpoints.

DINO as Caron et al. 2021, algorithm 1; DINOv2 as Oquab et al. 2023, section 4: the same with masked
tokens, Sinkhorn-Knopp and KoLeo. Every draw is named by its step and purpose, and a checkpoint
holds no generator: a training that was killed goes on to the losses that it would have had, on a
CPU to the last bit.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from mfcore import encoders, store, streams as rng
from mfcore.data import augment
from mfcore.encoders import preprocess
from mfcore.encoders.card import EncoderCard
from mfcore.measures import representation
from mfcore.pretraining import crops, networks, objective
from mfcore.pretraining.method import Pretraining, method_of
from mfcore.pretraining.objective import PretrainingError
from mfcore.training import processes

N_LINES = 1000  # of the history, about
N_RANKME = 25  # times that RankMe is measured, at most, besides at snapshots
EVALUATION_BATCH = 128
# Averaged over the steps of a line.
AVERAGED = ("loss", "loss_dino", "loss_ibot", "loss_koleo", "teacher_entropy")
PARTS = ("student", "teacher", "optimizer", "centres")  # of a checkpoint, with a state each
COUNTS = ("n_done", "history", "sums", "mean_target", "seconds")  # of a checkpoint, as they are


@dataclass(frozen=True)
class Task:
    """What a pretraining learns from.

    settings: without None. batches: called with (first, n_batches), gives this process's share of
    batches of patches with ``images`` uint8 (n, size_px, size_px, 3) and ``drawn``, a table with
    the ``number`` of each patch. watched: patches uint8 (n, size_px, size_px, 3) by which RankMe is
    measured, in the first process alone; card: how the encoder sees them. export: called with a
    step after which a snapshot is kept, one of ``snapshots``.
    """

    settings: Pretraining
    batches: Callable[[int, int], Iterator]
    watched: np.ndarray | None
    card: EncoderCard
    export: Callable[[int], None]
    snapshots: tuple[int, ...]


def train(
    task: Task,
    pair: networks.Networks,
    folder: Path,
    device: torch.device,
    watch: Callable[[pd.DataFrame], None] | None = None,
) -> list[dict]:
    """Pretrain ``pair`` on ``device``; returns the history, one dict a line.

    Writes into ``folder``: ``history.jsonl`` and, from time to time, ``checkpoint.pt``. Goes on
    from a checkpoint in ``folder``. ``watch`` is called with the history when it has a new line.
    Where processes were joined (`processes`), all call this alike and the first writes.
    Raises PretrainingError where the loss isn't finite and where the teacher collapsed
    (`objective.check_history`), StoreError for a checkpoint that can't be read.
    """
    training, settings = _Training(task, pair, folder, device), task.settings
    training.resume()
    n_done, is_first, size = training.n_done, training.ranks.is_first, settings.batch_size
    batches = task.batches(n_done * size, settings.n_steps - n_done)
    counts = {"total": settings.n_steps * size, "initial": n_done * size, "unit": "patch"}
    bar = tqdm(desc=f"pretrain {settings.name}", disable=not is_first, **counts)
    own_gpu = [device] if device.type == "cuda" else []
    try:
        with bar, contextlib.closing(batches), torch.random.fork_rng(devices=own_gpu):
            for batch in batches:
                line = training.run_step(batch)
                bar.update(size)
                if not is_first:
                    continue
                if line is not None:
                    bar.set_postfix(loss=f"{line['loss']:.3f}", refresh=False)
                    if watch is not None:
                        watch(pd.DataFrame(training.history))
                if training.n_done in task.snapshots:
                    task.export(training.n_done)
                if training.checkpoint.is_due:
                    training.save()
    finally:
        training.write_history()
    return training.history


def check_share(settings: Pretraining) -> None:
    """Raise PretrainingError where the processes at work can't share a batch."""
    n, place = processes.here().n, f"pretraining[{settings.name}].batch_size"
    if settings.batch_size % n:
        raise PretrainingError(
            f"{place}: {settings.batch_size} patches can't be shared evenly by {n} processes; "
            "start another number, or change batch_size"
        )
    if settings.batch_size == n and settings.koleo_weight:
        raise PretrainingError(
            f"{place}: {n} patches over {n} processes leave KoLeo no neighbours, one patch each; "
            "start fewer, raise batch_size, or set koleo_weight: 0"
        )


class _Training:
    """A pretraining: its networks, optimiser and history."""

    def __init__(self, task: Task, pair: networks.Networks, folder: Path, device: torch.device):
        settings = self.settings = task.settings
        self.task, self.device, self.folder, self.ranks = task, device, folder, processes.here()
        self.mean, self.std = pair.mean, pair.std
        self.student = pair.student.to(device).train()
        self.teacher = self.ranks.synced(pair.teacher.to(device), device).train()
        self.shared = self.ranks.wrap(self.student, device)
        self.schedule = objective.schedules(settings)
        groups = networks.parameter_groups(self.student, settings)
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
        of_classes, of_masked = (objective.Centre(settings.n_prototypes) for _ in range(2))
        self.centres = nn.ModuleList([of_classes, of_masked]).to(device)
        is_mixed = encoders.computes_bfloat16(device)
        self.autocast = partial(torch.autocast, device.type, torch.bfloat16, is_mixed)
        self.n_done, self.seconds, self.history = 0, 0.0, []
        self.sums = torch.zeros(len(AVERAGED), dtype=torch.float64, device=device)
        self.mean_target = torch.zeros(settings.n_prototypes, device=device)
        self.checkpoint = processes.Checkpoint(folder / "checkpoint.pt")
        self.line_steps = max(1, settings.n_steps // N_LINES)  # of a line of the history
        self.begun = time.monotonic()

    def run_step(self, batch: object) -> dict | None:
        """One step; returns the history's new line where one is due."""
        values, mean_target = self._learn(batch)
        if self.ranks.n > 1:
            values, mean_target = (
                self.ranks.add(each) / self.ranks.n for each in (values, mean_target)
            )
        self.sums += values
        keep = min(objective.MEMORY, self.n_done / (self.n_done + 1))  # at first the plain mean
        self.mean_target.mul_(keep).add_(mean_target, alpha=1 - keep)
        self.n_done += 1
        last = self.n_done == self.settings.n_steps
        return self._line() if last or self.n_done % self.line_steps == 0 else None

    def _learn(self, batch: object) -> tuple[torch.Tensor, torch.Tensor]:
        """A step of the optimiser and of the teacher.

        Returns AVERAGED, float64, and the mean target (K,) of this process.
        """
        settings, n = self.settings, self.n_done
        now = self.schedule.iloc[n].to_dict()
        seed = rng.stream_seed(settings.seed, "pretraining", "drop path", n, self.ranks.rank)
        torch.manual_seed(seed)
        losses, targets = self._losses(batch, now["teacher_temperature"])
        self.optimizer.zero_grad()
        losses[0].backward()
        method_of(settings).clip(self.student, settings.clip_norm)
        for group in self.optimizer.param_groups:
            frozen = now["last_layer"] if group["is_last"] else 1.0
            group["lr"] = now["learning_rate"] * group["factor"] * frozen
            group["weight_decay"] = now["weight_decay"] if group["decays"] else 0.0
        self.optimizer.step()
        self.teacher.follow(self.student, now["momentum"])
        values = torch.stack([*losses, objective.entropies(targets).mean()]).detach().double()
        return values, targets.mean(dim=(0, 1))

    def _losses(self, batch: object, temperature: float) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The loss and its parts, as in AVERAGED, and the teacher's targets (2, B, K)."""
        settings, sharp = self.settings, self.settings.student_temperature
        global_crops, local_crops, masked, weight = self._views(batch, self.n_done)
        with self.autocast():
            teacher, teacher_masked = self.teacher(global_crops, masked)  # (2, B, K), (N, K)
            # (C, B, K), (2, B, D), (N, K)
            student, classes, student_masked = self.shared(global_crops, local_crops, masked)
        of_classes, of_masked = self.centres
        if settings.centring == "sinkhorn_knopp":
            of_classes = of_masked = objective.sinkhorn_knopp
        targets = of_classes(teacher, temperature)
        dino = objective.dino(student, targets, sharp)
        ibot = koleo = dino.new_zeros(())
        if masked is not None:
            targets_masked = of_masked(teacher_masked, temperature)
            ibot = objective.ibot(student_masked, targets_masked, weight, len(masked), sharp)
        if settings.koleo_weight:
            koleo = torch.stack([objective.koleo(crop) for crop in classes]).sum()
        loss = dino + settings.ibot_weight * ibot + settings.koleo_weight * koleo
        return [loss, dino, ibot, koleo], targets

    def _views(self, batch: object, n: int) -> tuple[torch.Tensor | None, ...]:
        """Global crops, local crops, masks, and the masked tokens' weights, of one's share.

        Masks: bool (2 * B, n_tokens); None, as are the weights, where nothing is masked.
        """
        settings, size = self.settings, self.settings.batch_size
        rows = batch.drawn["number"].to_numpy() - n * size
        images = augment.on_device(np.ascontiguousarray(batch.images), self.device)
        drawn, images = crops_of(settings, n)[rows], images.permute(0, 3, 1, 2)
        views = crops.make(images, drawn, settings.crops, self.mean, self.std)
        if self.student.mask_token is None:
            return *views, None, None
        side = settings.crops.global_px // self.student.encoder.patch_embed.patch_size[0]
        masked = crops.draw_masks(
            2 * size,
            (side, side),
            settings.mask_probability,
            settings.mask_ratio,
            rng.generator(settings.seed, "pretraining", "masks", n),
        )[np.concatenate([rows, size + rows])]
        of_masked = masked, crops.mask_weights(masked)
        return *views, *(augment.on_device(values, self.device) for values in of_masked)

    # ---- history ----

    def _line(self) -> dict:
        """A new line of the history, judged by `objective.check_history`."""
        n, n_steps = self.n_done, self.settings.n_steps
        before = self.history[-1] if self.history else {"step": 0, "seconds": 0.0}
        n_new, seconds = n - before["step"], self.seconds + time.monotonic() - self.begun
        is_measured = n % math.ceil(n_steps / N_RANKME) < self.line_steps
        rankme = None
        if is_measured or n == n_steps or n in self.task.snapshots:
            rankme = self.ranks.as_first(self._rankme() if self.ranks.is_first else None)
        line = {
            "step": n,
            **dict(zip(AVERAGED, (self.sums / n_new).tolist(), strict=True)),
            "target_entropy": objective.entropies(self.mean_target).item(),
            **self.schedule.drop(columns="last_layer").iloc[n - 1].to_dict(),
            "rankme": rankme,
            "patches_per_second": (
                n_new * self.settings.batch_size / max(seconds - before["seconds"], 1e-9)
            ),
            "seconds": seconds,
        }
        self.sums.zero_()
        self.history.append(line)
        objective.check_history(self.history, self.settings)
        return line

    @torch.no_grad()
    def _rankme(self) -> float | None:
        """RankMe of the teacher's embeddings of the watched patches; None for infinite ones."""
        features, watched = [], self.task.watched
        self.teacher.eval()
        for at in range(0, len(watched), EVALUATION_BATCH):
            part = watched[at : at + EVALUATION_BATCH]
            images = preprocess.transform(part, self.task.card, self.device)
            with self.autocast():
                features.append(networks.embed(self.teacher.encoder, images).float().cpu())
        self.teacher.train()
        features = torch.cat(features).numpy()
        return representation.rankme(features) if np.isfinite(features).all() else None

    def write_history(self) -> None:
        """Write the history as far as it goes; what isn't finite is null."""
        if not self.ranks.is_first:
            return
        with store.replacing(self.folder / "history.jsonl") as aside, aside.open("w") as out:
            for line in self.history:
                finite = {k: v for k, v in line.items() if v is not None and math.isfinite(v)}
                out.write(json.dumps(dict.fromkeys(line) | finite) + "\n")

    # ---- checkpoints ----

    def save(self) -> None:
        """Write a checkpoint, and the history as far as it goes."""
        seconds = self.seconds + time.monotonic() - self.begun
        self.write_history()
        state = {name: getattr(self, name).state_dict() for name in PARTS}
        state |= {name: getattr(self, name) for name in COUNTS}
        self.checkpoint.write({**state, "seconds": seconds})

    def resume(self) -> None:
        """Go back to the checkpoint, if there is one."""
        if (state := self.checkpoint.read(self.device)) is None:
            return
        for name in PARTS:
            getattr(self, name).load_state_dict(state[name])
        for name in COUNTS:
            setattr(self, name, state[name])


def crops_of(settings: Pretraining, n: int) -> np.recarray:
    """How all patches of batch ``n`` are cropped."""
    sizes = settings.batch_size, settings.patches.size_px
    return crops.draw(settings.crops, *sizes, settings.seed, "pretraining", "crops", n)
