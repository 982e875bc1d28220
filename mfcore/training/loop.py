"""The loop that trains a network: steps, validation, which weights are kept, and checkpoints from
which it goes on.

The recipe is that of Ganz et al. 2024, section 3: augmentation, Adam, the one-cycle learning rate,
binary cross-entropy, the best epoch chosen afterwards by its validation loss. Drawn patches have
names (`training.task`), the only generator with a state is dropout's, and checkpoints hold it: a
training that was killed goes on to the result that it would have had (on a CPU, to the last bit).
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit
from torch.nn import functional
from tqdm.auto import tqdm

from mfcore import encoders, streams as rng
from mfcore.encoders.card import EncoderCard
from mfcore.measures import binary
from mfcore.training import adapt, feed, processes
from mfcore.training.task import (
    Examples,
    Task,
    TrainingError,
    centred,
    crops,
    epoch_of,
    steps,
    validation_of,
)

EVALUATION_BATCH = 32


def train_network(
    task: Task,
    model: torch.nn.Module,
    folder: Path,
    device: str = "cpu",
    progress: tqdm | None = None,
    after_epoch: Callable[[], None] | None = None,
) -> np.ndarray:
    """Train ``model``, which gives one logit, and return its scores of the test patches:
    probabilities, float64 (n_test,).

    ``model`` is as `adapt.build_network` gives it. The epoch with the lowest validation loss (the
    first of equals) is tested, or the last, as ``task.recipe.epoch`` says; tests see the centre
    crop under the annotation's own label. Writes into ``folder``, named by the unit: the tested
    weights as safetensors (of a network with LoRA, what it learnt), the history as JSON lines, and
    from time to time a checkpoint. Where there is a checkpoint, training goes on from it.
    ``after_epoch`` is called when the history has a new line. Where processes were joined
    (`processes`), all call this alike, and the first writes. Raises TrainingError where the loss
    stops being finite, where a batch has fewer than two patches for each process, and where a GPU's
    memory is too small.
    """
    training = _Training(task, model, encoders.choose_device(device), folder)
    progress = tqdm(disable=True) if progress is None else progress
    training.resume()
    training.write_history()
    progress.update(training.n_shown)
    try:
        while not training.ended:
            training.run_epoch(progress)
            training.write_history()
            if training.ranks.is_first and after_epoch is not None:
                after_epoch()
            training.save_in_time()
        return training.test()
    except torch.OutOfMemoryError as error:
        name, size = task.network.name, task.network.batch_size
        raise TrainingError(
            f"{task.unit}: {device} has too little memory for networks[{name}] with batches of "
            f"{size}; lower its batch_size and raise accumulate, which keeps the size of a step "
            f"({str(error).splitlines()[0][:200]})"
        ) from error


class Forward:
    """How a network is called: on images normalised by its card, in bfloat16 where a GPU has it."""

    def __init__(self, card: EncoderCard, device: torch.device):
        self.device, self.is_mixed = device, encoders.computes_bfloat16(device)
        self.mean, self.std = (
            torch.tensor(values, device=device)[:, None, None] for values in (card.mean, card.std)
        )

    def __call__(self, model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Logits float32 (B,) of images (B, 3, input_px, input_px) in 0..1."""
        images = (images - self.mean) / self.std
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.is_mixed):
            return model(images)[:, 0].float()

    def evaluate(self, model: torch.nn.Module, batches: Iterable[np.ndarray]) -> np.ndarray:
        """Logits, float64 (n,), of batches of crops, uint8 (B, input_px, input_px, 3)."""
        logits = [np.empty(0)]
        model.eval()
        with torch.inference_mode():
            for batch in batches:
                images = torch.from_numpy(batch).to(self.device).permute(0, 3, 1, 2)
                logits.append(self(model, images.float() / 255).cpu().double().numpy())
        return np.concatenate(logits)


@dataclass
class _Kept:
    """The weights to be tested: copies, which further training doesn't reach."""

    epoch: int = 0
    val_loss: float = math.inf
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass
class _Position:
    """How far an epoch has come: steps done, summed loss of their patches, seconds, and the states
    of dropout's generators, the CPU's and the GPU's."""

    n_steps: int = 0
    loss: float = 0.0
    rate: float = math.nan
    seconds: float = 0.0
    generators: list[torch.Tensor] = field(default_factory=list)


class _Training:
    """One network on its way: weights, optimiser, schedule, history and position, which is what a
    checkpoint holds."""

    def __init__(self, task: Task, model: torch.nn.Module, device: torch.device, folder: Path):
        network = task.network
        self.task, self.device, self.ranks = task, device, processes.here()
        if network.batch_size < 2 * self.ranks.n:
            raise TrainingError(
                f"{task.unit}: a batch of {network.batch_size} is too few patches for "
                f"{self.ranks.n} processes; raise networks[{network.name}].batch_size to "
                f"{2 * self.ranks.n}, or start fewer"
            )
        self.model = model.to(device, memory_format=torch.channels_last)
        self.shared = self.ranks.wrap(self.model, device)
        self.forward = Forward(model.card, device)
        self.own_gpu = [device] if device.type == "cuda" else []
        n_steps = network.n_epochs * len(steps(task.n_per_epoch, network))
        self.learning = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.learning, lr=network.max_lr, fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=network.max_lr, total_steps=n_steps
        )
        self.validation = validation_of(task)
        self.kept, self.position = _Kept(), _Position()
        self.history: list[dict] = []
        self.folder = folder
        self.checkpoint = processes.Checkpoint(folder / f"{task.unit}.checkpoint")

    @property
    def ended(self) -> bool:
        """Whether there's no epoch left to train."""
        is_stopped = bool(self.history) and self.history[-1]["stopped"]
        return is_stopped or len(self.history) == self.task.network.n_epochs

    @property
    def n_shown(self) -> int:
        """Patches that the network has been shown."""
        done = steps(self.task.n_per_epoch, self.task.network)[: self.position.n_steps]
        return len(self.history) * self.task.n_per_epoch + (done[-1][-1].stop if done else 0)

    def run_epoch(self, progress: tqdm) -> None:
        """Train for one epoch, validate, keep the weights where they are the best so far, and add a
        line to the history."""
        number, network = len(self.history) + 1, self.task.network
        train_loss = self._train(number, progress)
        begun = time.monotonic()
        self._refuse_infinite("training", train_loss)
        val_loss, val_auroc = self._validate()
        self._refuse_infinite("validation", val_loss)
        if self.task.recipe.epoch == "last" or val_loss < self.kept.val_loss:
            learnt = adapt.trained(self.model)
            weights = {name: tensor.detach().clone() for name, tensor in learnt.items()}
            self.kept = _Kept(number, val_loss, weights)
        losses = [*(line["val_loss"] for line in self.history), val_loss]
        n_without_better = len(losses) - 1 - int(np.argmin(losses))
        is_patient = network.patience is None or n_without_better < network.patience
        self.history.append(
            {
                "unit": self.task.title or self.task.unit,
                "epoch": number,
                "train_loss": train_loss,
                "val_loss": val_loss,
                "val_auroc": val_auroc,
                "learning_rate": self.position.rate,
                "seconds": round(self.position.seconds + time.monotonic() - begun, 3),
                "stopped": not is_patient and number < network.n_epochs,
            }
        )
        self.position = _Position()

    def _refuse_infinite(self, part: str, loss: float) -> None:
        network = self.task.network
        if not math.isfinite(loss):
            raise TrainingError(
                f"{self.task.unit}: the {part} loss became {loss} in epoch "
                f"{len(self.history) + 1} of {network.n_epochs}, at a learning rate of "
                f"{self.position.rate:.3g}; lower networks[{network.name}].max_lr (now "
                f"{network.max_lr:g}), or bound gradients by clip_norm (now {network.clip_norm})"
            )

    def _train(self, number: int, progress: tqdm) -> float:
        """What is left of a pass over the epoch's draw; returns the mean loss per patch."""
        task, at, before = self.task, self.position, self.position.seconds
        examples, begun = epoch_of(task, number), time.monotonic()
        truth = torch.from_numpy(examples.labels.astype(np.float32)).to(self.device)
        total = torch.tensor(at.loss, dtype=torch.float64, device=self.device)
        to_do = steps(len(examples), task.network)[at.n_steps :]
        batches = feed.batches(
            task.patches,
            examples.rows,
            examples.drawn,
            [self._share(part) for step in to_do for part in step],
            self.device,
            task.network.input_px,
            examples.elsewhere.patches,
        )
        self.shared.train()
        with self._dropout(number), contextlib.closing(batches):
            for step in to_do:
                total += self._step(step, batches, truth, number)
                at.n_steps += 1
                at.rate = self.schedule.get_last_lr()[0]
                at.seconds = before + time.monotonic() - begun
                self.schedule.step()
                progress.update(step[-1].stop - step[0].start)
                self.save_in_time(total)
        at.loss, at.seconds = total.item(), before + time.monotonic() - begun
        return at.loss / len(examples)

    def _share(self, part: slice) -> slice:
        """This process's share of a batch; where it's an empty one, the batch's first patch, which
        `_step` doesn't count."""
        share = self.ranks.share(part)
        return share if share.stop > share.start else slice(part.start, part.start + 1)

    def _step(
        self, step: list[slice], batches: Iterator[torch.Tensor], truth: torch.Tensor, number: int
    ) -> torch.Tensor:
        """One step of the optimiser, from the batches whose gradients it adds up; returns the
        summed loss of their patches."""
        n_patches, network, ranks = step[-1].stop - step[0].start, self.task.network, self.ranks
        summed = torch.zeros((), dtype=torch.float64, device=self.device)
        if ranks.n > 1:  # the first process's checkpoint doesn't hold the others' generators
            torch.manual_seed(self._dropout_seed(number, self.position.n_steps, ranks.rank))
        self.optimizer.zero_grad()
        for part in step:
            counted = ranks.share(part)
            n_counted = counted.stop - counted.start
            only_adds = part is not step[-1] and ranks.n > 1
            with self.shared.no_sync() if only_adds else contextlib.nullcontext():
                logits = self.forward(self.shared, next(batches))
                labels = truth[self._share(part)]
                loss = functional.binary_cross_entropy_with_logits(logits, labels)
                # Processes' gradients are averaged; a step's patches have the same weight whatever
                # batch they stand in.
                (loss * (n_counted * ranks.n / n_patches)).backward()
            summed += loss.detach() * n_counted
        if network.clip_norm is not None and self.task.recipe.clipping == "after_backward":
            torch.nn.utils.clip_grad_norm_(self.learning, network.clip_norm)
        self.optimizer.step()
        return ranks.add(summed)

    def _validate(self) -> tuple[float, float | None]:
        """Loss, NaN where a logit isn't finite, and AUROC, None where validation has one class.

        Each class weighs half, as where training draws: else a rare class makes the first, unsure
        epochs seem the best. Where validation itself is drawn, it has that weight already.
        """
        logits, truth = self._logits(self.validation), self.validation.labels
        if not np.isfinite(logits).all():
            return math.nan, None
        losses = np.logaddexp(0, logits) - truth * logits
        by_class = [losses[truth == label].mean() for label in np.unique(truth)]
        is_drawn = self.task.recipe.validation == "drawn"
        by_patch = is_drawn or self.task.network.patches_per_epoch is None
        auroc = binary.auroc(truth, expit(logits)) if len(by_class) == 2 else None
        return float(np.mean(losses if by_patch else by_class)), auroc

    def test(self) -> np.ndarray:
        """Write the kept weights, and return the scores of the network with them, float64
        (n_test,)."""
        kept, task = self.kept, self.task
        if self.ranks.is_first:
            architecture = task.network.architecture
            facts = {"unit": task.unit, "architecture": architecture, "epoch": kept.epoch}
            metadata = {"training": json.dumps(facts)}  # one key: several have no order
            adapt.write_weights(self._file("safetensors"), kept.weights, metadata)
        self.model.load_state_dict(kept.weights, strict=False)
        return expit(self._logits(centred(task, "test")))

    def _logits(self, examples: Examples) -> np.ndarray:
        """Logits, float64 (n,), of patches' crops; the processes share the work."""
        self.ranks.share_buffers(self.model)
        share = self.ranks.share(slice(0, len(examples)))
        parts = (
            slice(start, min(start + EVALUATION_BATCH, share.stop))
            for start in range(share.start, share.stop, EVALUATION_BATCH)
        )
        batches = (crops(self.task, examples[part]) for part in parts)
        return self.ranks.join(self.forward.evaluate(self.model, batches))

    # ---- dropout ----

    def _dropout_seed(self, number: int, *more: int) -> int:
        return rng.stream_seed(self.task.seed, *self.task.stream, "dropout", number, *more)

    @contextlib.contextmanager
    def _dropout(self, number: int) -> Iterator[None]:
        """Torch's own draws inside are those of the epoch's dropout, from where the checkpoint left
        them; outside they go on as if none were."""
        with torch.random.fork_rng(devices=self.own_gpu):  # of all GPUs would touch each
            torch.manual_seed(self._dropout_seed(number))
            for state in self.position.generators[:1]:
                torch.set_rng_state(state.cpu())
            for gpu, state in zip(self.own_gpu, self.position.generators[1:], strict=False):
                torch.cuda.set_rng_state(state.cpu(), gpu)
            yield

    # ---- files ----

    def _file(self, suffix: str) -> Path:
        return self.folder / f"{self.task.unit}.{suffix}"

    def write_history(self) -> None:
        """Write the history as far as it goes."""
        if self.ranks.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            lines = "".join(json.dumps(line) + "\n" for line in self.history)
            self._file("jsonl").write_text(lines, encoding="utf-8")

    def save_in_time(self, loss: torch.Tensor | None = None) -> None:
        """Write a checkpoint where one is due; ``loss``: the epoch's summed so far, None between
        two epochs."""
        if not self.checkpoint.is_due:
            return
        if loss is not None:
            gpus = [torch.cuda.get_rng_state(gpu) for gpu in self.own_gpu]
            self.position.loss = loss.item()
            self.position.generators = [torch.get_rng_state(), *gpus]
        self.checkpoint.write(
            {
                "model": adapt.trained(self.model),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "kept": vars(self.kept),
                "position": vars(self.position),
                "history": self.history,
            }
        )

    def resume(self) -> None:
        """Go back to the checkpoint, where there is one."""
        if (state := self.checkpoint.read(self.device)) is None:
            return
        self.model.load_state_dict(state["model"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.kept, self.position = _Kept(**state["kept"]), _Position(**state["position"])
        self.history = state["history"]
