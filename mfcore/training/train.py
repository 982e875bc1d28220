"""A study's networks, trained end to end or by LoRA: one run for each network and fold, of every size and domain.

A step of its own process is ``python -m mfcore.training.train --study FILE --network NAME --fold K --results FOLDER``; with
``torchrun --nproc-per-node N -m mfcore.training.train ...`` N processes, each with a GPU of its own, share every batch.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from mfcore import encoders, store, streams as rng
from mfcore.data import patches, splits
from mfcore.store import errors as store_errors
from mfcore.study.config import ConfigError, Network, Study, as_dict, load_study
from mfcore.training import adapt, loop as train_loop, processes
from mfcore.training.task import Task, TrainingError, places_of

__all__ = ["TrainingError", "config_of", "find", "load_history", "main", "train_study", "units_of"]


def config_of(study: Study, network: Network, fold: int) -> dict:
    """What decides a training's result, besides the patches and the splits that it reads."""
    names = ["epoch", "training_label", "validation"] + (["clipping"] if network.clip_norm is not None else [])
    return {
        "network": as_dict(network),
        "card": encoders.of_network(study, network.architecture).identity(),
        **{name: getattr(study.switches, name) for name in names},
        **study.released_in_training(network),
        "seed": study.splits.seed,
        "fold": fold,
    }


def find(study: Study, network_name: str, fold: int, results: str | Path) -> store.Run:
    """The finished training of one network on one fold; raises StoreError where there is none."""
    network = study.network(network_name)
    inputs = {"patches": patches.find(study, results).key, "splits": splits.find(study, results, networks=True).key}
    return store.find_run(results, "train", f"{network.name}-fold{fold}", config_of(study, network, fold), inputs)


def units_of(study: Study, network: Network, table: pd.DataFrame, fold: int) -> list[splits.Unit]:
    """The units of a fold that a network is trained on: its ``sizes`` of all domains, and single domains ``by_domain``.

    table: as `splits.load` returns it. Raises TrainingError where the splits have no such fold, or nothing is left of it.
    """
    there = [unit for unit in splits.units(table) if unit.fold == fold]
    if not there:
        raise TrainingError(f"the splits of study {study.name!r} have no fold {fold}; they have {sorted(set(table['fold']))}")
    sizes = {unit.size for unit in there if unit.train_domain == splits.ALL}
    wanted = sizes if network.sizes is None else sizes & set(network.sizes)
    mine = [unit for unit in there if (unit.size in wanted if unit.train_domain == splits.ALL else network.by_domain)]
    if not mine:
        raise TrainingError(
            f"networks[{network.name}].sizes are {list(network.sizes or ())}, the splits of study {study.name!r} have "
            f"{sorted(sizes)}; name one of these"
        )
    return mine


def train_study(
    study: Study,
    network_name: str,
    fold: int,
    results: str | Path,
    device: str = "cpu",
    watch: Callable[[pd.DataFrame], None] | None = None,
    data: str | Path | None = None,
) -> store.Run:
    """Train one network of a study on its units of one fold: each size, and each domain by itself.

    Reads the study's patches and splits; writes ``predictions.parquet`` (the test patches of every unit),
    ``history.jsonl`` and, in ``units/``, each unit's weights. Finished units aren't trained again, a begun one goes on.
    ``device``: as for `encoders.choose_device`. ``watch`` is called after each epoch with the history so far, as
    `load_history` has it. ``data``: the study's data folder, which is looked into only where ``switches.sampler`` draws random
    places of slides. Raises StoreError where patches or splits aren't there, EncoderError where the network can't be
    built, TrainingError as `units_of`, `Task` (for all units at once) and `training.loop.train_network`.
    """
    network, ranks = study.network(network_name), processes.here()
    patches_run, splits_run = patches.find(study, results), splits.find(study, results, networks=True)
    inputs = {"patches": patches_run.key, "splits": splits_run.key}
    config = config_of(study, network, fold)
    known = {key: value for key, value in {**config, **inputs}.items() if key != "card"}
    run = store.open_run(results, "train", f"{network.name}-fold{fold}", config, inputs, known)
    if ranks.as_first(run.done):
        return run
    labels, stored = patches.load(patches_run)
    table = splits.load(splits_run)
    units = units_of(study, network, table, fold)
    tasks = _tasks(study, network, units, table, labels, stored, data)
    if any(task.reads_slides for task in tasks.values()):
        patches.refuse_other_slides(patches_run, study, Path(data or ""), labels)
    for_tables = labels.set_index("patch_id")
    to_do = ranks.as_first([unit for unit in units if not run.unit_file(unit.name).is_file()])
    n_patches = sum(network.n_epochs * tasks[unit].n_per_epoch for unit in to_do)
    tell = None if watch is None else lambda: watch(_history(run, units))
    with tqdm(total=n_patches, desc=run.identity["name"], unit="patch", disable=not ranks.is_first) as progress:
        for unit in to_do:
            progress.set_postfix_str(unit.name)
            task, begun_at = tasks[unit], progress.n
            card, start = encoders.of_network(study, network.architecture), rng.stream_seed(task.seed, *task.stream, "start")
            try:
                model = adapt.build_network(
                    card, network.lora, pretrained=network.pretrained, seed=start, input_px=network.input_px
                )
            except encoders.EncoderError as error:
                raise encoders.EncoderError(f"networks[{network.name}]: {error}") from error
            scores = train_loop.train_network(task, model, run.path("units"), device, progress=progress, after_epoch=tell)
            if ranks.is_first:
                store.write_parquet(run.unit_file(unit.name), splits.predictions(for_tables, unit, task.roles["test"], scores))
                run.unit_file(unit.name, ".checkpoint").unlink(missing_ok=True)
            if not progress.disable:  # what early stopping leaves out is done
                progress.total -= begun_at + network.n_epochs * task.n_per_epoch - progress.n
                progress.refresh()
    if ranks.is_first:
        notes = [
            f"{unit.name}: validation has one class, by whose loss alone the best epoch was chosen"
            for unit, task in tasks.items()
            if task.validates_one_class
        ]
        _finish(run, units, encoders.choose_device(device), notes)
    ranks.as_first(None)  # the others wait until the run is finished
    return run


def _tasks(
    study: Study,
    network: Network,
    units: list[splits.Unit],
    table: pd.DataFrame,
    labels: pd.DataFrame,
    stored: np.ndarray,
    data: str | Path | None,
) -> dict[splits.Unit, Task]:
    """Every unit's task; raises one TrainingError for all of which something is wrong."""
    columns = {"labels": labels["label"].to_numpy(), "slide_ids": labels["slide_id"].to_numpy()}
    released = study.released_in_training(network)
    switches = dataclasses.replace(study.switches, **{"sampler": "annotations", "augmentation": "as_said"} | released)
    needs_places = switches.training_label == "window" or switches.sampler == "released"
    read = functools.partial(patches.read_anywhere, study, data, labels, seen_px=network.input_px) if data else None
    task_of = functools.partial(
        Task,
        network=network,
        seed=study.splits.seed,
        patches=stored,
        **columns,
        switches=switches,
        places=places_of(study, labels) if needs_places else None,
        read=read,
    )
    tasks, problems = {}, []
    for unit in units:
        try:
            tasks[unit] = task_of(unit=unit.name, title=unit.title, roles=splits.select(table, unit))
        except TrainingError as error:
            problems += error.problems
    if problems:
        raise TrainingError(*problems)
    return tasks


def _finish(run: store.Run, units: list[splits.Unit], device: torch.device, notes: list[str]) -> None:
    """Gather the units' predictions and histories and close the run."""
    for left_by_a_kill in run.path("units").glob("*.checkpoint"):
        left_by_a_kill.unlink()
    tables = [store.read_parquet(run.unit_file(unit.name)) for unit in units]
    store.write_parquet(run.path("predictions.parquet"), pd.concat(tables, ignore_index=True))
    with store.replacing(run.path("history.jsonl")) as aside:
        lines = [run.unit_file(unit.name, ".jsonl").read_text(encoding="utf-8") for unit in units]
        aside.write_text("".join(lines), encoding="utf-8")
    weights = [str(run.unit_file(unit.name, ".safetensors").relative_to(run.folder)) for unit in units]
    history = load_history(run)
    run.finish(
        ["predictions.parquet", "history.jsonl", *weights],
        training_seconds=round(float(history["seconds"].sum()), 1),
        device=str(device),
        n_processes=processes.here().n,
        precision="bfloat16" if encoders.computes_bfloat16(device) else "float32",
        stopped_early=history.loc[history["stopped"], "unit"].to_list(),
        notes=notes,
    )


def load_history(run: store.Run) -> pd.DataFrame:
    """How training went, a row per epoch: ``unit, epoch, train_loss, val_loss, val_auroc, learning_rate, seconds, stopped``.

    ``learning_rate`` is that of the epoch's last step; ``val_auroc`` is NaN where validation has one class only; ``stopped``:
    whether training ended there for want of a lower validation loss (``patience``).
    """
    return pd.read_json(run.path("history.jsonl"), lines=True)


def _history(run: store.Run, units: list[splits.Unit]) -> pd.DataFrame:
    """The history of the units that are finished or begun, as `load_history`."""
    files = [run.unit_file(unit.name, ".jsonl") for unit in units]
    tables = [pd.read_json(file, lines=True) for file in files if file.is_file() and file.stat().st_size]
    return pd.concat(tables, ignore_index=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: train one network of a study on one fold; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mfcore.training.train", description=main.__doc__)
    parser.add_argument("--study", type=Path, required=True, help="a study's YAML file")
    parser.add_argument("--network", required=True, help="one of the study's networks")
    parser.add_argument("--fold", type=int, required=True, help="which fold, from 0")
    parser.add_argument("--results", type=Path, required=True, help="the folder that holds the study's")
    parser.add_argument("--data", type=Path, help="the folder of the study's data (data/<study> beside studies/)")
    parser.add_argument("--device", default="auto", help='"cpu", "cuda" or "auto": a GPU where there is one (auto)')
    chosen = parser.parse_args(arguments)
    try:
        study = load_study(chosen.study)
        data = chosen.data or chosen.study.resolve().parent.parent / "data" / study.name
        with processes.joined(chosen.device) as device:
            run = train_study(study, chosen.network, chosen.fold, chosen.results / study.name, device, data=data)
            if processes.here().is_first:
                print(run.folder)
    except (ConfigError, TrainingError, store.StoreError, encoders.EncoderError, ValueError, OSError) as error:
        print(f"mfcore: {store_errors.told(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
