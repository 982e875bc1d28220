"""The loop of a pretraining: steps of student and teacher, the history, snapshots, and checkpoints.

DINO as Caron et al. 2021, algorithm 1; DINOv2 as Oquab et al. 2023, section 4: the same with masked tokens, Sinkhorn-Knopp and
KoLeo. Every draw is named by its step and purpose, and a checkpoint holds no generator: a training that was killed goes on to
the losses that it would have had, on a CPU to the last bit.
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

from mfcore import encoders, store, streams as rng
from mfcore.data import augment
from mfcore.encoders import preprocess
from mfcore.encoders.card import EncoderCard
from mfcore.measures import representation
from mfcore.pretraining import crops, networks, objective
from mfcore.pretraining.method import Pretraining, method_of
from mfcore.pretraining.objective import PretrainingError
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

    settings: without None. batches: called with (first, n_batches), gives this process's share of batches of patches
    with ``images`` uint8 (n, size_px, size_px, 3) and ``drawn``, a table with the ``number`` of each patch. watched: patches
    uint8 (n, size_px, size_px, 3) by which RankMe is measured, in the first process alone; card: how the encoder sees them.
    export: called with a step after which a snapshot is kept, one of ``snapshots``.
    """

    settings: Pretraining
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
    ``checkpoint_seconds``, ``checkpoint.pt``. Goes on from a checkpoint in ``folder``. ``after_line`` is called with the
    history when it has a new line. Where processes were joined (`processes`), all call this alike and the first writes.
    Raises PretrainingError where a batch can't be shared, where the loss isn't finite, where the teacher collapsed
    (`objective.check_history`), and where a GPU's memory is too small.
    """
    with _memory(task.settings, device):
        training = _Training(task, pair, folder, device, checkpoint_seconds)
        training.resume()
    progress = tqdm(disable=True) if progress is None else progress
    progress.initial = progress.n = progress.last_print_n = training.n_done * task.settings.batch_size
    progress.refresh()
    to_do = task.settings.n_steps - training.n_done
    if not to_do:  # killed after its last step
        return training.history
    batches = task.batches(training.n_done * task.settings.batch_size, to_do)
    own_gpu = [device] if device.type == "cuda" else []
    try:
        with _memory(task.settings, device), contextlib.closing(batches), torch.random.fork_rng(devices=own_gpu):
            for batch in batches:
                line = training.run_step(batch)
                progress.update(task.settings.batch_size)
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


def check_share(settings: Pretraining) -> None:
    """Raise PretrainingError where the processes at work can't share a batch."""
    n = processes.here().n
    if settings.batch_size % n:
        raise PretrainingError(
            f"pretraining[{settings.name}].batch_size: {settings.batch_size} patches can't be shared evenly by {n} "
            "processes; start another number, or change batch_size"
        )
    if settings.batch_size == n and settings.koleo_weight:
        raise PretrainingError(
            f"pretraining[{settings.name}].batch_size: {settings.batch_size} patches over {n} processes leave KoLeo "
            "no neighbours, one patch each; start fewer, raise batch_size, or set koleo_weight: 0"
        )


@contextlib.contextmanager
def _memory(settings: Pretraining, device: torch.device) -> Iterator[None]:
    """Say what to change where a GPU's memory is too small."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise PretrainingError(
            f"pretraining[{settings.name}]: {device} has too little memory for batches of {settings.batch_size} over "
            f"{processes.here().n} processes; lower batch_size, crops.n_local or n_prototypes (now {settings.n_prototypes}), "
            f"or start more processes ({str(error).splitlines()[0][:200]})"
        ) from error


class _Training:
    """A pretraining: its networks, optimiser and history."""

    def __init__(self, task: Task, pair: "networks.Networks", folder: Path, device: torch.device, checkpoint_seconds: float):
        settings = task.settings
        self.task, self.settings, self.device, self.folder, self.ranks = task, settings, device, folder, processes.here()
        check_share(settings)
        self.mean, self.std = pair.mean, pair.std
        self.student = pair.student.to(device).train()
        self.teacher = self.ranks.synced(pair.teacher.to(device), device).train()
        self.shared = self.ranks.wrap(self.student, device)
        self.schedule = objective.schedules(settings)
        self.optimizer = torch.optim.AdamW(networks.parameter_groups(self.student, settings), lr=0.0, fused=True)
        centres = [objective.Centre(settings.n_prototypes) for _ in ("class tokens", "masked tokens")]
        self.centres = nn.ModuleList(centres).to(device)
        self.precision = torch.bfloat16 if encoders.computes_bfloat16(device) else None
        self.n_done, self.seconds, self.history = 0, 0.0, []
        self.sums = torch.zeros(len(AVERAGED), dtype=torch.float64, device=device)
        self.mean_target = torch.zeros(settings.n_prototypes, device=device)
        self.drawn: list[pd.DataFrame] = []
        self.n_recorded = 0
        self.checkpoint, self.checkpoint_seconds = folder / "checkpoint.pt", checkpoint_seconds
        self.saved = self.begun = time.monotonic()
        self.saving_seconds = 0.0

    @property
    def line_steps(self) -> int:
        """Steps that a line of the history stands for."""
        return max(1, self.settings.n_steps // N_LINES)

    def run_step(self, batch: object) -> dict | None:
        """One step; returns the history's new line where one is due."""
        values, mean_target = self._learn(batch)
        self._record(batch.drawn)
        if self.ranks.n > 1:
            values, mean_target = (self.ranks.add(value) / self.ranks.n for value in (values, mean_target))
        self.sums += values
        keep = min(objective.MEMORY, self.n_done / (self.n_done + 1))  # the plain mean, until there are enough
        self.mean_target.mul_(keep).add_(mean_target, alpha=1 - keep)
        self.n_done += 1
        last = self.n_done == self.settings.n_steps
        return self._line() if last or self.n_done % self.line_steps == 0 else None

    def _learn(self, batch: object) -> tuple[torch.Tensor, torch.Tensor]:
        """A step of the optimiser and of the teacher; returns AVERAGED, float64, and the mean target (K,) of this process."""
        settings, at, n = self.settings, self.schedule, self.n_done
        global_crops, local_crops, masked, weight = self._views(batch, n)
        torch.manual_seed(rng.stream_seed(settings.seed, "pretraining", "drop path", n, self.ranks.rank))
        with self._autocast():
            teacher, teacher_masked = self.teacher(global_crops, masked)  # (2, B, K), (N, K)
            student, classes, student_masked = self.shared(global_crops, local_crops, masked)  # (C, B, K), (2, B, D), (N, K)
        temperature = float(at.teacher_temperature[n])
        targets = objective.targets_of(teacher, temperature, settings.centring, self.centres[0])
        parts = [objective.dino(student, targets, settings.student_temperature)]
        parts += [parts[0].new_zeros(()), parts[0].new_zeros(())]
        if masked is not None:
            of_masked = objective.targets_of(teacher_masked, temperature, settings.centring, self.centres[1])
            parts[1] = objective.ibot(student_masked, of_masked, weight, len(masked), settings.student_temperature)
        if settings.koleo_weight:
            parts[2] = torch.stack([objective.koleo(crop) for crop in classes]).sum()
        loss = parts[0] + settings.ibot_weight * parts[1] + settings.koleo_weight * parts[2]
        self.optimizer.zero_grad()
        loss.backward()
        method_of(settings).clip(self.student, settings.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = float(at.learning_rate[n]) * group["factor"] * (float(at.last_layer[n]) if group["is_last"] else 1.0)
            group["weight_decay"] = float(at.weight_decay[n]) if group["decays"] else 0.0
        self.optimizer.step()
        self.teacher.follow(self.student, float(at.momentum[n]))
        values = torch.stack([loss, *parts, objective.entropies(targets).mean()]).detach().double()
        return values, targets.mean(dim=(0, 1))

    def _views(self, batch: object, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Global crops, local crops, masks, bool (2 * B, n_tokens) or None, and their tokens' weights, of one's share."""
        settings = self.settings
        rows = batch.drawn["number"].to_numpy() - n * settings.batch_size
        drawn = crops_of(settings, n)
        images = augment.on_device(np.ascontiguousarray(batch.images), self.device).permute(0, 3, 1, 2)
        global_crops, local_crops = crops.make(images, drawn[rows], self.mean, self.std)
        if self.student.mask_token is None:
            return global_crops, local_crops, None, None
        side = settings.crops.global_px // self.student.encoder.patch_embed.patch_size[0]
        stream = rng.generator(settings.seed, "pretraining", "masks", n)
        masked = crops.draw_masks(2 * settings.batch_size, (side, side), settings.mask_probability, settings.mask_ratio, stream)
        masked = masked[np.concatenate([rows, settings.batch_size + rows])]
        of_masked = (augment.on_device(values, self.device) for values in (masked, crops.mask_weights(masked)))
        return global_crops, local_crops, *of_masked

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision is not None)

    # ---- history ----

    def _line(self) -> dict:
        """A new line of the history, judged by `objective.check_history`."""
        n, at, settings = self.n_done, self.schedule, self.settings
        n_steps = n - (self.history[-1]["step"] if self.history else 0)
        before = self.history[-1]["seconds"] if self.history else 0.0
        seconds = self.seconds + time.monotonic() - self.begun
        every = math.ceil(settings.n_steps / N_RANKME)
        measured = n == settings.n_steps or n in self.task.snapshots or n % every < self.line_steps
        line = {
            "step": n,
            **dict(zip(AVERAGED, (self.sums / n_steps).tolist(), strict=True)),
            "target_entropy": objective.entropies(self.mean_target).item(),
            "learning_rate": float(at.learning_rate[n - 1]),
            "weight_decay": float(at.weight_decay[n - 1]),
            "momentum": float(at.momentum[n - 1]),
            "teacher_temperature": float(at.teacher_temperature[n - 1]),
            "rankme": self.ranks.as_first(self._rankme() if self.ranks.is_first else None) if measured else None,
            "patches_per_second": n_steps * settings.batch_size / max(seconds - before, 1e-9),
            "seconds": seconds,
        }
        self.sums.zero_()
        self.history.append(line)
        objective.check_history(self.history, settings)
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
        features = np.concatenate(features)
        return representation.rankme(features) if np.isfinite(features).all() else None

    def _record(self, drawn: pd.DataFrame) -> None:
        """Keep the positions of the first N_RECORDED patches of all processes, in order of their number."""
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
        """Go back to the checkpoint, if there is one; raises PretrainingError where it can't be read."""
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
        except Exception as error:  # whatever a damaged file, or a file of another version, leads its reader to
            reason = " ".join(str(error).split())[:200]
            raise PretrainingError(
                f"{self.checkpoint}: can't be gone on from ({type(error).__name__}: {reason}); remove it to begin anew"
            ) from error
        table = self.folder / "drawn.parquet"
        if table.is_file():
            drawn = pd.read_parquet(table)
            self.drawn = [drawn[drawn["number"] < self.n_done * self.settings.batch_size]]
            self.n_recorded = len(self.drawn[0])


def crops_of(settings: Pretraining, n: int) -> crops.Drawn:
    """How all patches of batch ``n`` are cropped."""
    return crops.draw(settings.crops, settings.batch_size, settings.patches.size_px, settings.seed, "pretraining", "crops", n)


def write_history(folder: Path, history: list[dict]) -> None:
    """Write ``history.jsonl``, whole or not at all; a number that isn't finite becomes null."""
    lines = [{key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in line.items()} for line in history]
    with store.replacing(folder / "history.jsonl") as aside:
        aside.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
