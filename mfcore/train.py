"""Networks trained end to end: one loop for every size, fold and domain; the weights that are tested are copies.

The recipe is that of Ganz et al. 2024, section 3: augmentation, Adam, the one-cycle learning rate, binary cross-entropy,
the best epoch chosen afterwards by its validation loss. Every random draw has a name (unit, purpose, epoch) instead of a
place in an order, so a training that was killed goes on to the result that it would have had (on a CPU, to the last bit).
"""

import contextlib
import functools
import json
import math
import time
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit
from tqdm.auto import tqdm

from mfcore import augment, encoders, metrics, patches, rng, splits, store, train_feed
from mfcore.config import Network, Study, as_dict

if typing.TYPE_CHECKING:
    import torch

EVALUATION_BATCH = 32
CHECKPOINT_SECONDS = 30.0  # three times the weights go to disk; a short training isn't worth it


class TrainingError(RuntimeError):
    """A network can't be trained on this, or its training diverged; the message names the unit and the remedy."""


def config_of(study: Study, network: Network, fold: int) -> dict:
    """What decides a training's result, besides the patches and the splits that it reads."""
    return {
        "network": as_dict(network),
        "card": encoders.of(study, network.architecture).identity(),
        "epoch": study.switches.epoch,
        "seed": study.splits.seed,
        "fold": fold,
    }


def find(study: Study, network_name: str, fold: int, results: str | Path) -> store.Run:
    """The finished training of one network on one fold; raises StoreError where there is none."""
    network = study.network(network_name)
    inputs = {"patches": patches.find(study, results).key, "splits": splits.find(study, results).key}
    return store.find_run(results, "train", f"{network.name}-fold{fold}", config_of(study, network, fold), inputs)


def train_study(study: Study, network_name: str, fold: int, results: str | Path, device: str = "cpu") -> store.Run:
    """Train one network of a study on every unit of one fold: each size, and each domain by itself.

    Reads the study's patches and splits; writes ``predictions.parquet`` (the test patches of every unit),
    ``history.jsonl`` and, in ``units/``, each unit's weights. Finished units aren't trained again. ``device``: as
    for `encoders.choose_device`. Raises StoreError where patches or splits aren't there, TrainingError where the splits
    have no such fold, or as `Task` and `train_network`.
    """
    network = study.network(network_name)
    patches_run, splits_run = patches.find(study, results), splits.find(study, results)
    inputs = {"patches": patches_run.key, "splits": splits_run.key}
    run = store.open_run(results, "train", f"{network.name}-fold{fold}", config_of(study, network, fold), inputs)
    if run.done:
        return run
    labels, stored = patches.load(patches_run)
    labels = labels.set_index("patch_id")
    table = splits.load(splits_run)
    units = [unit for unit in splits.units(table) if unit.fold == fold]
    if not units:
        raise TrainingError(f"the splits in {splits_run.folder} have no fold {fold}; they have {sorted(set(table['fold']))}")
    columns = {"labels": labels["label"].to_numpy(), "slide_ids": labels["slide_id"].to_numpy()}
    task_of = functools.partial(Task, network=network, seed=study.splits.seed, patches=stored, **columns)
    to_do = [unit for unit in units if not run.unit_file(unit.name).is_file()]
    tasks = {unit: task_of(unit=unit.name, roles=splits.select(table, unit)) for unit in to_do}
    n_patches = sum(network.n_epochs * task.n_per_epoch for task in tasks.values())
    with tqdm(total=n_patches, desc=run.identity["name"], unit="patch") as progress:
        for unit, task in tasks.items():
            progress.set_postfix_str(unit.name)
            start = rng.stream_seed(task.seed, *task.stream, "start")
            model = encoders.build_network(
                encoders.of(study, network.architecture), n_classes=1, pretrained=network.pretrained, seed=start
            )
            scores = train_network(task, model, run.path("units"), study.switches.epoch, device, progress=progress)
            store.write_parquet(run.unit_file(unit.name), splits.predictions(labels, unit, task.roles["test"], scores))
            run.unit_file(unit.name, ".checkpoint").unlink(missing_ok=True)
    return _finish(run, units, encoders.choose_device(device))


def _finish(run: store.Run, units: "list[splits.Unit]", device: "torch.device") -> store.Run:
    """Gather the units' predictions and histories and close the run."""
    for left_by_a_kill in run.path("units").glob("*.checkpoint"):
        left_by_a_kill.unlink()
    tables = [pd.read_parquet(run.unit_file(unit.name)) for unit in units]
    store.write_parquet(run.path("predictions.parquet"), pd.concat(tables, ignore_index=True))
    with store.replacing(run.path("history.jsonl")) as aside:
        lines = [run.unit_file(unit.name, ".jsonl").read_text(encoding="utf-8") for unit in units]
        aside.write_text("".join(lines), encoding="utf-8")
    weights = [str(run.unit_file(unit.name, ".safetensors").relative_to(run.folder)) for unit in units]
    facts = {"device": str(device), "precision": "bfloat16" if _computes_bfloat16(device) else "float32"}
    seconds = round(float(load_history(run)["seconds"].sum()), 1)
    return run.finish(["predictions.parquet", "history.jsonl", *weights], training_seconds=seconds, **facts)


def load_history(run: store.Run) -> pd.DataFrame:
    """How training went, a row per epoch: ``unit, epoch, train_loss, val_loss, val_auroc, learning_rate, seconds``.

    ``learning_rate`` is that of the epoch's last batch; ``val_auroc`` is NaN where validation has one class only.
    """
    return pd.read_json(run.path("history.jsonl"), lines=True)


@dataclass(frozen=True)
class Task:
    """One training: which network learns from which patches.

    unit: the name that its files and its random draws go by. patches: uint8 (n, stored_px, stored_px, 3), memory-mapped
    or not. labels: 0 or 1 (n,); slide_ids: (n,). roles: rows of these for each of "train", "val" and "test".

    Raises TrainingError where a role is empty or shares a patch with another, where training has one class, where patches
    are too narrow, or where an epoch or a batch has a single patch, which batch norm can't do.
    """

    unit: str
    network: Network
    seed: int
    patches: np.ndarray
    labels: np.ndarray
    slide_ids: np.ndarray
    roles: Mapping[str, np.ndarray]

    @property
    def n_per_epoch(self) -> int:
        """Patches that one epoch shows to the network."""
        drawn = self.network.patches_per_epoch
        return len(self.roles["train"]) if drawn is None else drawn

    @property
    def stream(self) -> tuple[str, str, str]:
        """What the names of this training's random streams begin with."""
        return ("train", self.network.name, self.unit)

    def __post_init__(self) -> None:
        if missing := [role for role in splits.ROLES if not len(self.roles[role])]:
            raise TrainingError(f"{self.unit}: there are no {missing[0]} patches; each of {list(splits.ROLES)} needs some")
        everyone = np.concatenate([self.roles[role] for role in splits.ROLES])
        if len(np.unique(everyone)) < len(everyone):
            raise TrainingError(f"{self.unit}: a patch has two of the roles {list(splits.ROLES)}; make the splits again")
        present = np.unique(self.labels[self.roles["train"]])
        if len(present) == 1:
            raise TrainingError(
                f"{self.unit}: all {len(self.roles['train'])} training patches are of class {present[0]}; leave this size out "
                "of splits.sizes, or set switches.stratified: true"
            )
        name = self.network.name
        if (stored_px := self.patches.shape[1]) < self.network.needed_px:
            needed = f"networks[{name}] needs {self.network.needed_px} px for its rotations and shifts"
            raise TrainingError(f"{self.unit}: patches are stored at {stored_px} px, {needed}; extract them again")
        if min(self.n_per_epoch, self.network.batch_size) < 2:
            found = f"networks[{name}] has {self.n_per_epoch} and {self.network.batch_size}"
            raise TrainingError(f"{self.unit}: batch norm needs two patches or more in an epoch and in a batch; {found}")


def train_network(
    task: Task,
    model: "torch.nn.Module",
    folder: Path,
    epoch: str = "best",
    device: str = "cpu",
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: tqdm | None = None,
) -> np.ndarray:
    """Train ``model``, which gives one logit, and return its scores of the test patches: probabilities, float64 (n_test,).

    ``model`` is as `encoders.build_network` gives it. ``epoch``: "best" tests the epoch with the lowest validation loss
    (the first of equals), "last" the last. Validation and test see the centre crop; every label is the annotation's own.
    Writes into ``folder``, named by the unit: the tested weights as safetensors, the history as JSON lines, and, after an
    epoch when ``checkpoint_seconds`` have gone by, a checkpoint. Where there is a checkpoint, training goes on from it.
    Raises TrainingError where the loss stops being finite.
    """
    import safetensors.torch

    training = _Training(task, model, encoders.choose_device(device))
    progress = tqdm(disable=True) if progress is None else progress
    history_file, checkpoint = folder / f"{task.unit}.jsonl", folder / f"{task.unit}.checkpoint"
    folder.mkdir(parents=True, exist_ok=True)
    if checkpoint.is_file():
        training.load(checkpoint)
        progress.update(len(training.history) * task.n_per_epoch)
    history_file.write_text("".join(json.dumps(line) + "\n" for line in training.history), encoding="utf-8")
    saved = time.monotonic()
    while len(training.history) < task.network.n_epochs:
        line = training.run_epoch(keep_always=epoch == "last", progress=progress)
        with history_file.open("a", encoding="utf-8") as history:
            history.write(json.dumps(line) + "\n")
        if time.monotonic() - saved >= checkpoint_seconds:
            training.save(checkpoint)
            saved = time.monotonic()
    kept = training.kept
    facts = {"unit": task.unit, "architecture": task.network.architecture, "epoch": str(kept.epoch)}
    with store.replacing(folder / f"{task.unit}.safetensors") as aside:
        safetensors.torch.save_file({name: tensor.cpu().contiguous() for name, tensor in kept.weights.items()}, aside, facts)
    training.model.load_state_dict(kept.weights)
    return expit(training.logits(task.roles["test"]))


@dataclass
class _Kept:
    """The weights to be tested: copies, which further training doesn't reach."""

    epoch: int = 0
    val_loss: float = math.inf
    weights: dict[str, "torch.Tensor"] = field(default_factory=dict)


class _Training:
    """One network on its way: weights, optimiser, schedule and history, which is what a checkpoint holds."""

    def __init__(self, task: Task, model: "torch.nn.Module", device: "torch.device"):
        import torch

        network = task.network
        self.task, self.device = task, device
        self.model = model.to(device, memory_format=torch.channels_last)
        self.mean, self.std = (
            torch.tensor(values, device=device)[:, None, None] for values in (model.card.mean, model.card.std)
        )
        self.autocast = _computes_bfloat16(device)
        n_steps = network.n_epochs * len(batches(task.n_per_epoch, network.batch_size))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=network.max_lr, fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, max_lr=network.max_lr, total_steps=n_steps)
        self.kept = _Kept()
        self.history: list[dict] = []

    def run_epoch(self, keep_always: bool, progress: tqdm) -> dict:
        """Train for one epoch, validate, keep the weights where they are the best so far; returns the line of history."""
        begun, number, network = time.monotonic(), len(self.history) + 1, self.task.network
        train_loss, rate = self._train(number, progress)
        val_loss, val_auroc = self._validate() if math.isfinite(train_loss) else (math.nan, None)
        for which, loss in (("training", train_loss), ("validation", val_loss)):
            if not math.isfinite(loss):
                raise TrainingError(
                    f"{self.task.unit}: the {which} loss became {loss} in epoch {number} of {network.n_epochs}, at a learning "
                    f"rate of {rate:.3g}; lower networks[{network.name}].max_lr (now {network.max_lr:g})"
                )
        if keep_always or val_loss < self.kept.val_loss:
            weights = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
            self.kept = _Kept(number, val_loss, weights)
        line = {
            "unit": self.task.unit,
            "epoch": number,
            "train_loss": train_loss,
            "val_loss": val_loss,
            "val_auroc": val_auroc,
            "learning_rate": rate,
            "seconds": round(time.monotonic() - begun, 3),
        }
        self.history.append(line)
        return line

    def _train(self, number: int, progress: tqdm) -> tuple[float, float]:
        """One pass over the epoch's draw; returns the mean loss per patch, and the last batch's learning rate."""
        import torch
        from torch.nn import functional

        task, network = self.task, self.task.network
        rows = draw_epoch(task, number)
        drawn = augment.draw(network, len(rows), task.seed, *task.stream, "augment", number)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.model.train()
        with seeded(rng.stream_seed(task.seed, *task.stream, "dropout", number)):
            parts = batches(len(rows), network.batch_size)
            feed = train_feed.batches(task.patches, rows, drawn, parts, self.device, network.input_px)
            for part, images in zip(parts, feed, strict=True):
                truth = torch.from_numpy(task.labels[rows[part]].astype(np.float32)).to(self.device)
                loss = functional.binary_cross_entropy_with_logits(self._forward(images), truth)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                rate = self.schedule.get_last_lr()[0]
                self.schedule.step()
                total += loss.detach() * len(truth)
                progress.update(len(truth))
        return total.item() / len(rows), rate

    def _validate(self) -> tuple[float, float | None]:
        """Loss, NaN where a logit isn't finite, and AUROC, None where validation has one class only.

        Each class weighs half, as where training draws: else a rare class makes the first, unsure epochs seem the best.
        """
        logits, truth = self.logits(self.task.roles["val"]), self.task.labels[self.task.roles["val"]]
        if not np.isfinite(logits).all():
            return math.nan, None
        losses = np.logaddexp(0, logits) - truth * logits
        by_class = [losses[truth == label].mean() for label in np.unique(truth)]
        loss = float(np.mean(losses if self.task.network.patches_per_epoch is None else by_class))
        return loss, metrics.auroc(truth, expit(logits)) if len(by_class) == 2 else None

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """Logits, float64 (n,), of the centre crops of patches ``rows``; nothing is drawn."""
        import torch

        crops, logits = patches.centre_crop(self.task.patches, self.task.network.input_px), []
        self.model.eval()
        with torch.inference_mode():
            for start in range(0, len(rows), EVALUATION_BATCH):
                images = (
                    train_feed.as_images(crops[rows[start : start + EVALUATION_BATCH]], self.device).to(torch.float32) / 255
                )
                logits.append(self._forward(images).cpu().double())
        return torch.cat(logits).numpy()

    def _forward(self, images: "torch.Tensor") -> "torch.Tensor":
        """Logits float32 (B,) of images (B, 3, input_px, input_px) in 0..1."""
        import torch

        images = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            return self.model(images)[:, 0].float()

    def save(self, file: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        import torch

        parts = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "schedule")}
        with store.replacing(file) as aside:
            torch.save({**parts, "kept": vars(self.kept), "history": self.history}, aside)

    def load(self, file: Path) -> None:
        """Go back to a checkpoint. Random draws have no state in it: each epoch's have a name."""
        import torch

        state = torch.load(file, map_location=self.device, weights_only=True)
        for name in ("model", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.kept, self.history = _Kept(**state["kept"]), state["history"]


def chances(task: Task) -> np.ndarray:
    """How likely a draw takes each training patch, float64 (n_train,), sum 1.

    A slide is drawn, each as likely, then one of its classes, each as likely, then a patch of that class on it (as the
    released code of Ganz et al.).
    """
    rows = task.roles["train"]
    names, slide = np.unique(task.slide_ids[rows], return_inverse=True)
    stratum = 2 * slide + task.labels[rows]  # slide and class as one number
    counts = np.bincount(stratum, minlength=2 * len(names))
    n_classes = np.count_nonzero(counts.reshape(-1, 2), axis=1)  # (n_slides,)
    return 1 / (len(names) * n_classes[slide] * counts[stratum])


def draw_epoch(task: Task, number: int) -> np.ndarray:
    """The training patches of epoch ``number`` in their order, rows int64 (n_per_epoch,).

    Drawn with replacement by their `chances`, or, with ``patches_per_epoch`` None, each once.
    """
    draws = rng.generator(task.seed, *task.stream, "draw", number)
    if task.network.patches_per_epoch is None:
        return draws.permutation(task.roles["train"])
    return draws.choice(task.roles["train"], size=task.n_per_epoch, p=chances(task))


def batches(n_patches: int, batch_size: int) -> list[slice]:
    """The batches of an epoch; a last one of a single patch, which batch norm can't do, joins the one before it."""
    starts = list(range(0, n_patches, batch_size))
    if len(starts) > 1 and n_patches - starts[-1] == 1:
        starts.pop()
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], n_patches], strict=True)]


def _computes_bfloat16(device: "torch.device") -> bool:
    """Whether to train in bfloat16: on a GPU that has it. Others train in float32, as float16 would need its loss scaled."""
    import torch

    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's own draws inside (dropout) follow ``seed``; outside they go on as if none had been made."""
    import torch

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
