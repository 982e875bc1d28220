"""Networks trained end to end or by LoRA: one run for each network and fold, with every size and
domain."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from scipy.special import expit
from tqdm.auto import tqdm

from mfcore import encoders, store, streams as rng
from mfcore.data import patches, splits
from mfcore.encoders.card import EncoderCard
from mfcore.training import adapt, loop, processes
from mfcore.training.options import Network
from mfcore.training.task import Task, TrainingError


def units_of(network: Network, table: pd.DataFrame, fold: int) -> list[splits.Unit]:
    """The units of a fold that a network is trained on: its ``sizes`` of all domains, and single
    domains ``by_domain``.

    table: as `splits.load` returns it. Raises TrainingError where the splits have no such fold, or
    none of the sizes.
    """
    of_fold = [unit for unit in splits.units(table) if unit.fold == fold]
    if not of_fold:
        raise TrainingError(
            f"the splits have no fold {fold}; they have {sorted(set(table['fold']))}"
        )

    def is_wanted(unit: splits.Unit) -> bool:
        if unit.train_domain != splits.ALL:
            return network.by_domain
        return network.sizes is None or unit.size in network.sizes

    units = [unit for unit in of_fold if is_wanted(unit)]
    if not units:
        sizes = sorted({unit.size for unit in of_fold if unit.train_domain == splits.ALL})
        raise TrainingError(
            f"networks[{network.name}].sizes are {list(network.sizes)}, the splits have {sizes}; "
            "name one of the latter"
        )
    return units


def tasks_of(
    units: Sequence[splits.Unit], table: pd.DataFrame, **options: Any
) -> dict[splits.Unit, Task]:
    """The task of every unit; raises one TrainingError for the problems of all units.

    table: the splits. options: the fields of `Task` that all units share.
    """
    tasks = {
        unit: Task(unit.name, title=unit.title, roles=splits.select(table, unit), **options)
        for unit in units
    }
    problems = [f"{task.unit}: {problem}" for task in tasks.values() for problem in task.problems()]
    if problems:
        raise TrainingError("\n  ".join(["not every unit can be trained:", *problems]))
    return tasks


def train_units(
    tasks: dict[splits.Unit, Task],
    card: EncoderCard,
    labels: pd.DataFrame,
    run: store.Run,
    device: str = "cpu",
    watch: Callable[[pd.DataFrame], None] | None = None,
) -> None:
    """Train a network on the tasks of its units and finish ``run``; trained units are kept, a begun
    unit goes on.

    Writes ``predictions.parquet`` (the test patches of every unit), ``history.jsonl`` and, in
    ``units/``, the weights of each unit. labels: as `patches.load` returns them. device: as for
    `encoders.choose_device`. watch: called after each epoch with the history so far, as
    `load_history` returns it. Raises EncoderError where the network can't be built, and as
    `training.loop.train_network`.
    """
    ranks, of_patches = processes.here(), labels.set_index("patch_id")
    to_do = [unit for unit in tasks if not run.unit_file(unit.name).is_file()]
    to_do = ranks.as_first(to_do)
    n_patches = sum(tasks[unit].network.n_epochs * tasks[unit].n_per_epoch for unit in to_do)
    after_epoch = None if watch is None else lambda: watch(_history(run, list(tasks)))
    with tqdm(
        total=n_patches, desc=run.identity["name"], unit="patch", disable=not ranks.is_first
    ) as progress:
        for unit in to_do:
            progress.set_postfix_str(unit.name)
            task, begun_at = tasks[unit], progress.n
            scores = loop.train_network(
                task, _build(task, card), run.path("units"), device, progress, after_epoch
            )
            if ranks.is_first:
                tested = splits.predictions(of_patches, unit, task.roles["test"], scores)
                store.write_parquet(run.unit_file(unit.name), tested)
                run.unit_file(unit.name, ".checkpoint").unlink(missing_ok=True)
            # The epochs that early stopping leaves out count as done.
            progress.total -= task.network.n_epochs * task.n_per_epoch - (progress.n - begun_at)
            progress.refresh()
    if ranks.is_first:
        _finish(run, tasks, encoders.choose_device(device))
    ranks.as_first(None)  # the other processes wait until the run is finished


def _build(task: Task, card: EncoderCard) -> torch.nn.Module:
    """The network of a task; raises EncoderError that names the network."""
    network, start = task.network, rng.stream_seed(task.seed, *task.stream, "start")
    try:
        return adapt.build_network(
            card,
            network.lora,
            pretrained=network.pretrained,
            seed=start,
            input_px=network.input_px,
        )
    except encoders.EncoderError as error:
        raise encoders.EncoderError(f"networks[{network.name}]: {error}") from error


def _finish(run: store.Run, tasks: dict[splits.Unit, Task], device: torch.device) -> None:
    """Gather the units' predictions and histories and close the run."""
    for checkpoint in run.path("units").glob("*.checkpoint"):  # left by a kill
        checkpoint.unlink()
    tables = [store.read_parquet(run.unit_file(unit.name)) for unit in tasks]
    store.write_parquet(run.path("predictions.parquet"), pd.concat(tables, ignore_index=True))
    lines = [run.unit_file(unit.name, ".jsonl").read_text(encoding="utf-8") for unit in tasks]
    with store.replacing(run.path("history.jsonl")) as aside:
        aside.write_text("".join(lines), encoding="utf-8")
    history = load_history(run)
    weights = [f"units/{unit.name}.safetensors" for unit in tasks]
    run.finish(
        ["predictions.parquet", "history.jsonl", *weights],
        training_seconds=round(float(history["seconds"].sum()), 1),
        device=str(device),
        n_processes=processes.here().n,
        precision="bfloat16" if encoders.computes_bfloat16(device) else "float32",
        stopped_early=history.loc[history["stopped"], "unit"].to_list(),
        notes=[
            f"{task.unit}: validation has one class, by whose loss alone the best epoch was chosen"
            for task in tasks.values()
            if task.validates_one_class
        ],
    )


def load_history(run: store.Run) -> pd.DataFrame:
    """The history, a row an epoch: ``unit, epoch, train_loss, val_loss, val_auroc, learning_rate,
    seconds, stopped``.

    ``learning_rate`` is that of the epoch's last step; ``val_auroc`` is NaN where validation has
    one class only; ``stopped``: whether ``patience`` ended training after this epoch.
    """
    return pd.read_json(run.path("history.jsonl"), lines=True)


def _history(run: store.Run, units: Sequence[splits.Unit]) -> pd.DataFrame:
    """The history of the units that are finished or begun, as `load_history`."""
    files = [run.unit_file(unit.name, ".jsonl") for unit in units]
    tables = [pd.read_json(file, lines=True) for file in files if file.is_file()]
    return pd.concat(tables, ignore_index=True)


def score(
    unit: splits.Unit,
    network: Network,
    card: EncoderCard,
    seed: int,
    weights: Path,
    stored: np.ndarray,
    device: str = "cpu",
) -> np.ndarray:
    """Probabilities of class 1, float64 (n,), of patches by the weights that a training of ``unit``
    wrote.

    seed: of the training. stored: uint8 (n, stored_px, stored_px, 3); the network sees the centre,
    as in tests. Raises EncoderError where the network that LoRA adapts is missing, or where the
    weights are of another network.
    """
    start = rng.stream_seed(seed, "train", network.name, unit.title, "start")
    is_adapted = network.lora is not None  # else all weights are in the file
    model = adapt.build_network(
        card, network.lora, 1, network.pretrained and is_adapted, start, network.input_px
    )
    tensors = safetensors.torch.load_file(weights)
    if set(tensors) != set(adapt.trained(model)):
        raise encoders.EncoderError(
            f"{weights}: the weights are of another network than {card.name!r}"
        )
    model.load_state_dict(tensors, strict=False)  # of LoRA's network the rest is the encoder's own
    where = encoders.choose_device(device)
    model = model.to(where, memory_format=torch.channels_last).eval()
    mean, std = (
        torch.tensor(values, device=where)[:, None, None] for values in (card.mean, card.std)
    )
    logits = [np.empty(0)]
    with (
        torch.inference_mode(),
        torch.autocast(where.type, torch.bfloat16, enabled=encoders.computes_bfloat16(where)),
    ):
        for first in tqdm(
            range(0, len(stored), loop.EVALUATION_BATCH),
            desc=f"{network.name} {unit.name}",
            unit="batch",
        ):
            part = patches.centre_crop(
                stored[first : first + loop.EVALUATION_BATCH], network.input_px
            )
            images = torch.from_numpy(np.ascontiguousarray(part)).to(where).permute(0, 3, 1, 2)
            images = (images.float() / 255 - mean) / std
            images = images.contiguous(memory_format=torch.channels_last)
            logits.append(model(images)[:, 0].float().cpu().double().numpy())
    return expit(np.concatenate(logits))
