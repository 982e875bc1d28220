"""The loop that trains a network: steps, validation, which weights are kept, and checkpoints from which it goes on.

The recipe is that of Ganz et al. 2024, section 3: augmentation, Adam, the one-cycle learning rate, binary cross-entropy,
the best epoch chosen afterwards by its validation loss. Drawn patches have names (`training.task`), the only generator with a
state is dropout's, and checkpoints hold it: a training that was killed goes on to the result that it would have had (on a
CPU, to the last bit).
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from scipy.special import expit
from torch.nn import functional
from tqdm.auto import tqdm

from mfcore import encoders, store, streams as rng
from mfcore.measures import binary
from mfcore.training import adapt, feed as train_feed, processes
from mfcore.training.task import Elsewhere, Examples, Task, TrainingError, crops, epoch_of, steps, validation_of

EVALUATION_BATCH = 32
CHECKPOINT_SECONDS = 30.0  # three times the weights go to disk; a short training isn't worth it
CHECKPOINT_SHARE = 0.05  # of the time, at most, goes into checkpoints; a large network's take seconds each


def train_network(
    task: Task,
    model: torch.nn.Module,
    folder: Path,
    device: str = "cpu",
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: tqdm | None = None,
    after_epoch: Callable[[], None] | None = None,
) -> np.ndarray:
    """Train ``model``, which gives one logit, and return its scores of the test patches: probabilities, float64 (n_test,).

    ``model`` is as `adapt.build_network` gives it. The epoch with the lowest validation loss (the first of equals) is
    tested, or the last, as ``task.recipe.epoch`` says; tests see the centre crop under the annotation's own label. Writes
    into ``folder``, named by the unit: the tested weights as safetensors (of a network with LoRA, what it learnt), the
    history as JSON lines, and every ``checkpoint_seconds`` a checkpoint. Where there is a checkpoint, training goes on from
    it. ``after_epoch`` is called when the history has a new line. Where processes were joined (`processes`), all call this
    alike, and the first writes. Raises TrainingError where the loss stops being finite, where a batch has fewer than two
    patches for each process, and where a GPU's memory is too small.
    """
    training = _Training(task, model, encoders.choose_device(device), folder, checkpoint_seconds)
    progress = tqdm(disable=True) if progress is None else progress
    history_file = folder / f"{task.unit}.jsonl"
    training.resume()
    progress.update(training.n_shown)
    if training.ranks.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        history_file.write_text("".join(json.dumps(line) + "\n" for line in training.history), encoding="utf-8")
    try:
        while not training.ended:
            line = training.run_epoch(progress)
            if training.ranks.is_first:
                with history_file.open("a", encoding="utf-8") as history:
                    history.write(json.dumps(line) + "\n")
                if after_epoch is not None:
                    after_epoch()
            training.save_in_time()
        return training.test()
    except torch.OutOfMemoryError as error:
        name, size = task.network.name, task.network.batch_size
        raise TrainingError(
            f"{task.unit}: {device} has too little memory for networks[{name}] with batches of {size}; lower its batch_size "
            f"and raise accumulate, which keeps the size of a step ({str(error).splitlines()[0][:200]})"
        ) from error


@dataclass
class _Kept:
    """The weights to be tested: copies, which further training doesn't reach."""

    epoch: int = 0
    val_loss: float = math.inf
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass
class _Position:
    """How far an epoch has come: steps done, summed loss of their patches, seconds, and the state of dropout's generators."""

    n_steps: int = 0
    loss: float = 0.0
    rate: float = math.nan
    seconds: float = 0.0
    generators: list[torch.Tensor] = field(default_factory=list)


class _Training:
    """One network on its way: weights, optimiser, schedule, history and position, which is what a checkpoint holds."""

    def __init__(self, task: Task, model: torch.nn.Module, device: torch.device, folder: Path, checkpoint_seconds: float):
        network = task.network
        self.task, self.device, self.ranks = task, device, processes.here()
        if network.batch_size < 2 * self.ranks.n:
            raise TrainingError(
                f"{task.unit}: a batch of {network.batch_size} is too few patches for {self.ranks.n} processes; raise "
                f"networks[{network.name}].batch_size to {2 * self.ranks.n}, or start fewer"
            )
        self.model = model.to(device, memory_format=torch.channels_last)
        self.shared = self.ranks.wrap(self.model, device)
        self.mean, self.std = (
            torch.tensor(values, device=device)[:, None, None] for values in (model.card.mean, model.card.std)
        )
        self.autocast = encoders.computes_bfloat16(device)
        n_steps = network.n_epochs * len(steps(task.n_per_epoch, network))
        self.learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(self.learning, lr=network.max_lr, fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, max_lr=network.max_lr, total_steps=n_steps)
        self.validation = validation_of(task)
        self.kept, self.position = _Kept(), _Position()
        self.history: list[dict] = []
        self.checkpoint, self.checkpoint_seconds = folder / f"{task.unit}.checkpoint", checkpoint_seconds
        self.weights_file = folder / f"{task.unit}.safetensors"
        self.saved, self.saving_seconds = time.monotonic(), 0.0

    @property
    def ended(self) -> bool:
        """Whether there's no epoch left to train."""
        return len(self.history) == self.task.network.n_epochs or bool(self.history and self.history[-1]["stopped"])

    @property
    def n_shown(self) -> int:
        """Patches that the network has been shown."""
        done = steps(self.task.n_per_epoch, self.task.network)[: self.position.n_steps]
        return len(self.history) * self.task.n_per_epoch + (done[-1][-1].stop if done else 0)

    def run_epoch(self, progress: tqdm) -> dict:
        """Train for one epoch, validate, keep the weights where they are the best so far; returns the line of history."""
        number, network = len(self.history) + 1, self.task.network
        train_loss = self._train(number, progress)
        begun = time.monotonic()
        val_loss, val_auroc = self._validate() if math.isfinite(train_loss) else (math.nan, None)
        for which, loss in (("training", train_loss), ("validation", val_loss)):
            if not math.isfinite(loss):
                clip = "or set its clip_norm" if network.clip_norm is None else f"or its clip_norm (now {network.clip_norm:g})"
                raise TrainingError(
                    f"{self.task.unit}: the {which} loss became {loss} in epoch {number} of {network.n_epochs}, at a learning "
                    f"rate of {self.position.rate:.3g}; lower networks[{network.name}].max_lr (now {network.max_lr:g}), {clip}"
                )
        if self.task.recipe.epoch == "last" or val_loss < self.kept.val_loss:
            weights = {name: tensor.detach().clone() for name, tensor in adapt.trained(self.model).items()}
            self.kept = _Kept(number, val_loss, weights)
        losses = [*(line["val_loss"] for line in self.history), val_loss]
        n_without_better = len(losses) - 1 - int(np.argmin(losses))
        line = {
            "unit": self.task.title or self.task.unit,
            "epoch": number,
            "train_loss": train_loss,
            "val_loss": val_loss,
            "val_auroc": val_auroc,
            "learning_rate": self.position.rate,
            "seconds": round(self.position.seconds + time.monotonic() - begun, 3),
            "stopped": network.patience is not None and n_without_better >= network.patience and number < network.n_epochs,
        }
        self.history.append(line)
        self.position = _Position()
        return line

    def _train(self, number: int, progress: tqdm) -> float:
        """What is left of a pass over the epoch's draw; returns the mean loss per patch."""
        task, at, before = self.task, self.position, self.position.seconds
        examples, begun = epoch_of(task, number), time.monotonic()
        truth = torch.from_numpy(examples.labels.astype(np.float32)).to(self.device)
        total = torch.tensor(at.loss, dtype=torch.float64, device=self.device)
        to_do = steps(len(examples), task.network)[at.n_steps :]
        self.shared.train()
        with self._dropout(number), contextlib.closing(self._feed(examples, to_do)) as feed:
            for step in to_do:
                total += self._step(step, feed, truth, number)
                at.n_steps += 1
                at.rate, at.seconds = self.schedule.get_last_lr()[0], before + time.monotonic() - begun
                self.schedule.step()
                progress.update(step[-1].stop - step[0].start)
                self.save_in_time(total)
        at.loss, at.seconds = total.item(), before + time.monotonic() - begun
        return at.loss / len(examples)

    def _feed(self, examples: Examples, to_do: list[list[slice]]) -> "Iterator[torch.Tensor]":
        """This process's share of each batch of the steps, augmented, on the device."""
        parts = [self._share(part) for step in to_do for part in step]
        side_px = self.task.network.input_px
        beside = None if examples.elsewhere is None else examples.elsewhere.patches
        yield from train_feed.batches(self.task.patches, examples.rows, examples.drawn, parts, self.device, side_px, beside)

    def _share(self, part: slice) -> slice:
        """This process's share of a batch; where it's an empty one, the batch's first patch, which `_step` doesn't count."""
        share = self.ranks.share(part)
        return share if share.stop > share.start else slice(part.start, part.start + 1)

    def _step(self, step: list[slice], feed: "Iterator[torch.Tensor]", truth: torch.Tensor, number: int) -> torch.Tensor:
        """One step of the optimiser, from the batches whose gradients it adds up; returns the summed loss of their patches."""
        n_patches, network = step[-1].stop - step[0].start, self.task.network
        summed = torch.zeros((), dtype=torch.float64, device=self.device)
        if self.ranks.n > 1:  # so that the first process's checkpoint, without the others' generators, is all that's needed
            torch.manual_seed(self._dropout_seed(number, self.position.n_steps, self.ranks.rank))
        self.optimizer.zero_grad()
        for part in step:
            share, counted = self._share(part), self.ranks.share(part)
            n_counted = counted.stop - counted.start
            only_adds = part is not step[-1] and self.ranks.n > 1
            with self.shared.no_sync() if only_adds else contextlib.nullcontext():
                loss = functional.binary_cross_entropy_with_logits(self._forward(next(feed)), truth[share])
                # Processes' gradients are averaged, a step's patches have the same weight whatever batch they stand in.
                (loss * (n_counted * self.ranks.n / n_patches)).backward()
            summed += loss.detach() * n_counted
        if network.clip_norm is not None and self.task.recipe.clipping == "after_backward":
            torch.nn.utils.clip_grad_norm_(self.learning, network.clip_norm)
        self.optimizer.step()
        return self.ranks.add(summed)

    def _validate(self) -> tuple[float, float | None]:
        """Loss, NaN where a logit isn't finite, and AUROC, None where validation has one class only.

        Each class weighs half, as where training draws: else a rare class makes the first, unsure epochs seem the best.
        Where validation itself is drawn, it has that weight already.
        """
        shown, truth = self.validation, self.validation.labels
        logits = self.logits(shown.rows, shown.shifts_px, shown.elsewhere)
        if not np.isfinite(logits).all():
            return math.nan, None
        losses = np.logaddexp(0, logits) - truth * logits
        by_class = [losses[truth == label].mean() for label in np.unique(truth)]
        by_patch = self.task.network.patches_per_epoch is None or self.task.recipe.validation == "drawn"
        return float(np.mean(losses if by_patch else by_class)), (
            binary.auroc(truth, expit(logits)) if len(by_class) == 2 else None
        )

    def test(self) -> np.ndarray:
        """Write the kept weights, and return the scores that the network has with them, float64 (n_test,)."""
        if self.ranks.is_first:
            facts = {"unit": self.task.unit, "architecture": self.task.network.architecture, "epoch": self.kept.epoch}
            tensors = {name: tensor.cpu().contiguous() for name, tensor in self.kept.weights.items()}
            with store.replacing(self.weights_file) as aside:
                safetensors.torch.save_file(tensors, aside, {"training": json.dumps(facts)})  # one key: several have no order
        adapt.restore(self.model, self.kept.weights)
        rows = self.task.roles["test"]
        return expit(self.logits(rows, np.zeros((len(rows), 2), np.int64)))

    def logits(self, rows: np.ndarray, shifts_px: np.ndarray, elsewhere: Elsewhere | None = None) -> np.ndarray:
        """Logits, float64 (n,), of the crops of patches ``rows``, so shifted (n, 2); the processes share the work."""
        self.ranks.share_buffers(self.model)
        mine, logits = self.ranks.share(slice(0, len(rows))), [np.empty(0)]
        self.model.eval()
        with torch.inference_mode():
            for start in range(mine.start, mine.stop, EVALUATION_BATCH):
                part = slice(start, min(start + EVALUATION_BATCH, mine.stop))
                images = train_feed.as_images(crops(self.task, rows[part], shifts_px[part], elsewhere), self.device)
                logits.append(self._forward(images.to(torch.float32) / 255).cpu().double().numpy())
        return self.ranks.join(np.concatenate(logits))

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits float32 (B,) of images (B, 3, input_px, input_px) in 0..1."""
        images = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            return (self.shared if self.model.training else self.model)(images)[:, 0].float()

    # ---- checkpoints ----

    def _dropout_seed(self, number: int, *more: int) -> int:
        return rng.stream_seed(self.task.seed, *self.task.stream, "dropout", number, *more)

    @contextlib.contextmanager
    def _dropout(self, number: int) -> Iterator[None]:
        """Torch's own draws inside are those of the epoch's dropout, from where the checkpoint left them."""
        with seeded(self._dropout_seed(number), self.device):
            if self.position.generators:
                torch.set_rng_state(self.position.generators[0].cpu())
            if len(self.position.generators) > 1 and self.device.type == "cuda":
                torch.cuda.set_rng_state(self.position.generators[1].cpu(), self.device)
            yield

    def save_in_time(self, loss: torch.Tensor | None = None) -> None:
        """Write a checkpoint where one is due; ``loss``: the epoch's summed so far, None between two epochs."""
        since = time.monotonic() - self.saved
        if not self.ranks.is_first or since < max(self.checkpoint_seconds, self.saving_seconds / CHECKPOINT_SHARE):
            return
        begun = time.monotonic()
        if loss is not None:
            self.position.loss, self.position.generators = loss.item(), [torch.get_rng_state()]
            if self.device.type == "cuda":
                self.position.generators.append(torch.cuda.get_rng_state(self.device))
        self.save()
        self.saved, self.saving_seconds = time.monotonic(), time.monotonic() - begun

    def save(self) -> None:
        """Write a checkpoint, whole or not at all."""
        parts = {name: getattr(self, name).state_dict() for name in ("optimizer", "schedule")}
        state = {"kept": vars(self.kept), "position": vars(self.position), "history": self.history}
        with store.replacing(self.checkpoint) as aside:
            torch.save({"model": adapt.trained(self.model), **parts, **state}, aside)

    def resume(self) -> None:
        """Go back to the checkpoint, where there is one."""
        if not self.ranks.as_first(self.checkpoint.is_file()):
            return
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        adapt.restore(self.model, state["model"])
        for name in ("optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.kept, self.position, self.history = _Kept(**state["kept"]), _Position(**state["position"]), state["history"]


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's own draws inside (dropout), on the CPU and ``device``, follow ``seed``; outside they go on as if none were."""
    own_gpu = [device] if device.type == "cuda" else []  # keeping the draws of all GPUs would leave something on each
    with torch.random.fork_rng(devices=own_gpu):
        torch.manual_seed(seed)
        yield
