"""The loop of a pretraining: a step of student and teacher, the history, snapshots, and checkpoints from which it goes on.

DINO as Caron et al. 2021, algorithm 1; DINOv2 as Oquab et al. 2023, section 4: the same with masked tokens, Sinkhorn-Knopp and
KoLeo. Every draw has a name (the step, and what for), so that a checkpoint holds no generator: a training that was killed goes
on to the losses that it would have had, on a CPU to the last bit.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from mfcore import store, streams as rng
from mfcore.data import augment
from mfcore.encoders import encoders, preprocess
from mfcore.encoders.cards import EncoderCard
from mfcore.measures import representation
from mfcore.pretraining import collapse, crops, losses, masks, networks, schedules
from mfcore.pretraining.collapse import PretrainingError
from mfcore.study.config import Pretraining
from mfcore.training import processes

CHECKPOINT_SECONDS = 30.0
CHECKPOINT_SHARE = 0.05  # of the time, at most, goes into checkpoints
N_LINES = 1000  # of the history, about
N_RANKME = 25  # times that RankMe is measured, at most, besides at snapshots
N_RECORDED = 100_000  # patches whose positions are kept
AVERAGED = ("loss", "loss_dino", "loss_ibot", "loss_koleo", "teacher_entropy")  # over the steps of a line
EVALUATION_BATCH = 128


@dataclass(frozen=True)
class Task:
    """What a pretraining learns from.

    which: with nothing left None. batches: called with (first, n_batches), gives this process's share of batches of patches
    with ``images`` uint8 (n, size_px, size_px, 3) and ``drawn``, a table with each one's ``number``. watched: patches uint8
    (n, size_px, size_px, 3) of which RankMe is measured, in the first process alone, and the card by which the encoder sees
    them. export: called with a step after which a snapshot is kept.
    """

    which: Pretraining
    batches: Callable[[int, int], Iterator]
    watched: np.ndarray | None
    card: EncoderCard
    export: Callable[[int], None]
    snapshots: tuple[int, ...]


def train(
    task: Task,
    pair: "networks.Networks",
    folder: Path,
    device: torch.device,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    after_line: Callable[[list[dict]], None] | None = None,
    progress: tqdm | None = None,
) -> list[dict]:
    """Pretrain ``pair`` on ``device``; returns the history, one dict a line.

    Writes into ``folder``: ``history.jsonl``, ``drawn.parquet`` (where the first N_RECORDED patches lay) and, every
    ``checkpoint_seconds``, ``checkpoint.pt``, from which it goes on where there is one. ``after_line`` is called with the
    history when it has a new line. Where processes were joined (`processes`), all call this alike and the first writes.
    Raises PretrainingError where a batch can't be shared, where the loss isn't finite, where the teacher collapsed
    (`collapse.check`), and where a GPU's memory is too small.
    """
    with _memory(task.which, device):
        training = _Training(task, pair, folder, device, checkpoint_seconds)
        training.resume()
    progress = tqdm(disable=True) if progress is None else progress
    progress.initial = progress.n = progress.last_print_n = training.n_done * task.which.batch_size
    progress.refresh()
    to_do = task.which.n_steps - training.n_done
    if not to_do:  # killed after its last step
        return training.history
    batches = task.batches(training.n_done * task.which.batch_size, to_do)
    own_gpu = [device] if device.type == "cuda" else []
    try:
        with _memory(task.which, device), contextlib.closing(batches), torch.random.fork_rng(devices=own_gpu):
            for batch in batches:
                line = training.run_step(batch)
                progress.update(task.which.batch_size)
                if line is not None and training.ranks.is_first:
                    progress.set_postfix(loss=f"{line['loss']:.3f}", refresh=False)
                    if after_line is not None:
                        after_line(training.history)
                if training.n_done in task.snapshots and training.ranks.is_first:
                    task.export(training.n_done)
                training.save_in_time()
    finally:
        training.write_tables()
    return training.history


def check_share(which: Pretraining) -> None:
    """Raise PretrainingError where the processes at work can't share a batch."""
    n = processes.here().n
    if which.batch_size % n:
        raise PretrainingError(
            f"pretraining[{which.name}].batch_size: {which.batch_size} patches can't be shared evenly by {n} "
            "processes; start another number, or change it"
        )
    if which.batch_size == n and which.koleo_weight:
        raise PretrainingError(
            f"pretraining[{which.name}].batch_size: {which.batch_size} patches over {n} processes leave KoLeo "
            "no neighbours, one patch each; start fewer, raise it, or set koleo_weight: 0"
        )


@contextlib.contextmanager
def _memory(which: Pretraining, device: torch.device) -> Iterator[None]:
    """Say what to change where a GPU's memory is too small for what is done."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise PretrainingError(
            f"pretraining[{which.name}]: {device} has too little memory for batches of {which.batch_size} over "
            f"{processes.here().n} processes; lower batch_size, crops.n_local or n_prototypes (now {which.n_prototypes}), or "
            f"start more processes ({str(error).splitlines()[0][:200]})"
        ) from error


class _Training:
    """A pretraining on its way."""

    def __init__(self, task: Task, pair: "networks.Networks", folder: Path, device: torch.device, checkpoint_seconds: float):
        which = task.which
        self.task, self.which, self.device, self.folder, self.ranks = task, which, device, folder, processes.here()
        check_share(which)
        self.mean, self.std = pair.mean, pair.std
        self.student = pair.student.to(device).train()
        self.teacher = self.ranks.synced(pair.teacher.to(device), device).train()
        self.shared = self.ranks.wrap(self.student, device)
        self.schedule = schedules.of(which)
        self.optimizer = torch.optim.AdamW(networks.parameter_groups(self.student, which), lr=0.0, fused=True)
        self.centres = nn.ModuleList([losses.Centre(which.n_prototypes) for _ in range(2)]).to(device)  # of class, of masked
        self.precision = torch.bfloat16 if encoders.computes_bfloat16(device) else None
        self.n_done, self.seconds, self.history = 0, 0.0, []
        self.sums = torch.zeros(len(AVERAGED), dtype=torch.float64, device=device)
        self.mean_target = torch.zeros(which.n_prototypes, device=device)
        self.drawn: list[pd.DataFrame] = []
        self.n_recorded = 0
        self.checkpoint, self.checkpoint_seconds = folder / "checkpoint.pt", checkpoint_seconds
        self.saved = self.begun = time.monotonic()
        self.saving_seconds = 0.0

    @property
    def line_steps(self) -> int:
        """Steps that a line of the history stands for."""
        return max(1, self.which.n_steps // N_LINES)

    def run_step(self, batch: object) -> dict | None:
        """One step; returns the history's new line where one is due."""
        values, mean_target = self._learn(batch)
        self._record(batch.drawn)
        if self.ranks.n > 1:
            values, mean_target = (self.ranks.add(value) / self.ranks.n for value in (values, mean_target))
        self.sums += values
        keep = min(collapse.MEMORY, self.n_done / (self.n_done + 1))  # the plain mean, until there are enough
        self.mean_target.mul_(keep).add_(mean_target, alpha=1 - keep)
        self.n_done += 1
        last = self.n_done == self.which.n_steps
        return self._line() if last or self.n_done % self.line_steps == 0 else None

    def _learn(self, batch: object) -> tuple[torch.Tensor, torch.Tensor]:
        """A step of the optimiser and of the teacher; returns AVERAGED, float64, and the mean target (K,) of this process."""
        which, at, n = self.which, self.schedule, self.n_done
        global_crops, local_crops, masked, weight = self._views(batch, n)
        torch.manual_seed(rng.stream_seed(which.seed, "pretraining", "drop path", n, self.ranks.rank))
        with self._autocast():
            teacher, teacher_masked = self.teacher(global_crops, masked)  # (2, B, K), (N, K)
            student, classes, student_masked = self.shared(global_crops, local_crops, masked)  # (C, B, K), (2, B, D), (N, K)
        temperature = float(at.teacher_temperature[n])
        targets = self._targets(teacher, temperature, self.centres[0])
        parts = [losses.dino(student, targets, which.student_temperature)]
        parts += [parts[0].new_zeros(()), parts[0].new_zeros(())]
        if masked is not None:
            of_masked = self._targets(teacher_masked, temperature, self.centres[1])
            parts[1] = losses.ibot(student_masked, of_masked, weight, len(masked), which.student_temperature)
        if which.koleo_weight:
            parts[2] = torch.stack([losses.koleo(crop) for crop in classes]).sum()
        loss = parts[0] + which.ibot_weight * parts[1] + which.koleo_weight * parts[2]
        self.optimizer.zero_grad()
        loss.backward()
        self._clip()
        for group in self.optimizer.param_groups:
            group["lr"] = float(at.learning_rate[n]) * group["factor"] * (float(at.last_layer[n]) if group["is_last"] else 1.0)
            group["weight_decay"] = float(at.weight_decay[n]) if group["decays"] else 0.0
        self.optimizer.step()
        self.teacher.follow(self.student, float(at.momentum[n]))
        values = torch.stack([loss, *parts, collapse.entropies(targets).mean()]).detach().double()
        return values, targets.mean(dim=(0, 1))

    def _views(self, batch: object, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Global crops, local crops, masks, bool (2 * B, n_tokens) or None, and their tokens' weights, of one's share."""
        which = self.which
        rows = batch.drawn["number"].to_numpy() - n * which.batch_size
        drawn = crops_of(which, n)
        images = augment.on_device(np.ascontiguousarray(batch.images), self.device).permute(0, 3, 1, 2)
        global_crops, local_crops = crops.make(images, drawn[rows], self.mean, self.std)
        if self.student.mask_token is None:
            return global_crops, local_crops, None, None
        side = which.crops.global_px // self.student.encoder.patch_embed.patch_size[0]
        stream = rng.generator(which.seed, "pretraining", "masks", n)
        masked = masks.draw(2 * which.batch_size, (side, side), which.mask_probability, which.mask_ratio, stream)
        masked = masked[np.concatenate([rows, which.batch_size + rows])]
        of_masked = (augment.on_device(values, self.device) for values in (masked, masks.weights(masked)))
        return global_crops, local_crops, *of_masked

    def _targets(self, logits: torch.Tensor, temperature: float, centre: losses.Centre) -> torch.Tensor:
        """Targets of a teacher's logits (..., K), as the pretraining centres them."""
        if self.which.centring == "sinkhorn_knopp":
            return losses.sinkhorn_knopp(logits.flatten(0, -2), temperature).view_as(logits)
        targets = centre.probabilities(logits, temperature)
        centre.update(logits)
        return targets

    def _clip(self) -> None:
        """Bound the gradient's norm: DINO each parameter's own, DINOv2 the encoder's and the head's, as their authors' code."""
        if self.which.method == "dinov2":
            for is_head in (False, True):
                part = [p for name, p in self.student.named_parameters() if name.startswith("head.") == is_head]
                nn.utils.clip_grad_norm_(part, self.which.clip_norm)
            return
        gradients = [parameter.grad for parameter in self.student.parameters()]
        factors = self.which.clip_norm / (torch.stack(torch._foreach_norm(gradients)) + 1e-6)
        torch._foreach_mul_(gradients, list(factors.clamp_(max=1.0)))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision is not None)

    # ---- history ----

    def _line(self) -> dict:
        """A new line of the history, judged by `collapse.check`."""
        n, at, which = self.n_done, self.schedule, self.which
        n_steps = n - (self.history[-1]["step"] if self.history else 0)
        before = self.history[-1]["seconds"] if self.history else 0.0
        seconds = self.seconds + time.monotonic() - self.begun
        measured = n == which.n_steps or n in self.task.snapshots or n % math.ceil(which.n_steps / N_RANKME) < self.line_steps
        line = {
            "step": n,
            **dict(zip(AVERAGED, (self.sums / n_steps).tolist(), strict=True)),
            "target_entropy": collapse.entropies(self.mean_target).item(),
            "learning_rate": float(at.learning_rate[n - 1]),
            "weight_decay": float(at.weight_decay[n - 1]),
            "momentum": float(at.momentum[n - 1]),
            "teacher_temperature": float(at.teacher_temperature[n - 1]),
            "rankme": self.ranks.as_first(self._rankme() if self.ranks.is_first else None) if measured else None,
            "patches_per_second": n_steps * which.batch_size / max(seconds - before, 1e-9),
            "seconds": seconds,
        }
        self.sums.zero_()
        self.history.append(line)
        collapse.check(self.history, which)
        return line

    @torch.no_grad()
    def _rankme(self) -> float | None:
        """RankMe of the teacher's embeddings of the watched patches; None where they aren't finite."""
        features = []
        self.teacher.eval()
        for start in range(0, len(self.task.watched), EVALUATION_BATCH):
            images = preprocess.transform(self.task.watched[start : start + EVALUATION_BATCH], self.task.card, self.device)
            with self._autocast():
                features.append(networks.embed(self.teacher.encoder, images).float().cpu().numpy())
        self.teacher.train()
        found = np.concatenate(features)
        return representation.rankme(found) if np.isfinite(found).all() else None

    def _record(self, drawn: pd.DataFrame) -> None:
        """Keep where patches lay, those of all processes, in order of their number, until there are enough."""
        if self.n_recorded >= N_RECORDED:
            return
        if self.ranks.n > 1:
            columns = {name: self.ranks.join(drawn[name].to_numpy()) for name in drawn}
            drawn = pd.DataFrame(columns).sort_values("number", ignore_index=True)
        self.drawn.append(drawn.iloc[: N_RECORDED - self.n_recorded])
        self.n_recorded += len(self.drawn[-1])

    def write_tables(self) -> None:
        """Write the history and the positions as far as they go."""
        if self.ranks.is_first:
            write_history(self.folder, self.history)
            if self.drawn:
                self.drawn = [pd.concat(self.drawn, ignore_index=True)]
                store.write_parquet(self.folder / "drawn.parquet", self.drawn[0])

    # ---- checkpoints ----

    def save_in_time(self) -> None:
        """Write a checkpoint where one is due."""
        due = max(self.checkpoint_seconds, self.saving_seconds / CHECKPOINT_SHARE)
        if self.ranks.is_first and time.monotonic() - self.saved >= due:
            self.save()

    def save(self) -> None:
        """Write a checkpoint, whole or not at all."""
        begun = time.monotonic()
        self.write_tables()
        state = {name: getattr(self, name).state_dict() for name in ("student", "teacher", "optimizer", "centres")}
        rest = {name: getattr(self, name) for name in ("n_done", "history", "sums", "mean_target")}
        with store.replacing(self.checkpoint) as aside:
            torch.save({**state, **rest, "seconds": self.seconds + begun - self.begun}, aside)
        self.saved = time.monotonic()
        self.saving_seconds = self.saved - begun

    def resume(self) -> None:
        """Go back to the checkpoint, where there is one; raises PretrainingError where that can't be read."""
        if not self.ranks.as_first(self.checkpoint.is_file()):
            return
        try:
            state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
            for name in ("student", "teacher", "optimizer", "centres"):
                getattr(self, name).load_state_dict(state[name])
            for name in ("n_done", "history", "sums", "mean_target", "seconds"):
                setattr(self, name, state[name])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a damaged file, or one of another version, leads its reader to
            what = " ".join(str(error).split())[:200]
            raise PretrainingError(
                f"{self.checkpoint}: can't be gone on from ({type(error).__name__}: {what}); remove it to begin anew"
            ) from error
        table = self.folder / "drawn.parquet"
        if table.is_file():
            drawn = pd.read_parquet(table)
            self.drawn = [drawn[drawn["number"] < self.n_done * self.which.batch_size]]
            self.n_recorded = len(self.drawn[0])


def crops_of(which: Pretraining, n: int) -> crops.Drawn:
    """How all patches of batch ``n`` are cropped."""
    return crops.draw(which.crops, which.batch_size, which.patches.size_px, which.seed, "pretraining", "crops", n)


def write_history(folder: Path, history: list[dict]) -> None:
    """Write ``history.jsonl``, whole or not at all; a number that isn't finite becomes null."""
    lines = [{key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in line.items()} for line in history]
    with store.replacing(folder / "history.jsonl") as aside:
        aside.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
