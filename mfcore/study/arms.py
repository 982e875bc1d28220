"""A study's arms: probes of encoders, the probe audit, and networks trained end to end or by LoRA."""

import functools
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from mfcore import store
from mfcore.data import patches, splits
from mfcore.store.options import as_dict
from mfcore.study import data, encoders
from mfcore.study.config import Network, Settings

# ---- probes ----


def probe_inputs(study: Settings, embeddings: store.Run, results: str | Path) -> dict[str, str]:
    """Keys of the runs that an encoder's probes are made from."""
    found = {"patches": data.find_patches(study, results), "splits": data.find_splits(study, results), "embeddings": embeddings}
    return {name: run.key for name, run in found.items()}


def fit_probe(study: Settings, embeddings: store.Run, results: str | Path) -> store.Run:
    """Fit and test the probe on one encoder's finished embeddings, for every unit of the study's splits.

    As `mfcore.training.probe.fit_units`. Raises StoreError where an embedding can't be used.
    """
    from mfcore.training import probe

    config, inputs = as_dict(study.probe), probe_inputs(study, embeddings, results)
    known = {**config, "splits": inputs["splits"]}
    run = store.open_run(results, "probe", embeddings.identity["name"], config, inputs, known)
    return run if run.done else probe.fit_units(probe_material(study, embeddings, results), run, study.probe)


def probe_audit_config(study: Settings) -> dict:
    """What of the study decides the probe audit; the estimators stand there in words."""
    from mfcore.training import estimators

    return {"probe": as_dict(study.probe), "seed": study.splits.seed, "estimators": estimators.described()}


def audit_probe(study: Settings, embeddings: store.Run, results: str | Path) -> store.Run:
    """Fit and test every estimator on one encoder's finished embeddings, at every size of the study's data scaling.

    As `mfcore.training.estimators.audit`. Raises StoreError where an embedding can't be used.
    """
    from mfcore.training import estimators

    config, inputs = probe_audit_config(study), probe_inputs(study, embeddings, results)
    known = {"probe": config["probe"], "splits": inputs["splits"]}
    run = store.open_run(results, "probes", embeddings.identity["name"], config, inputs, known)
    return (
        run if run.done else estimators.audit(probe_material(study, embeddings, results), run, study.splits.seed, study.probe)
    )


def probe_material(study: Settings, embeddings: store.Run, results: str | Path):
    """The embeddings with the study's labels and splits, a `mfcore.training.probe.Material`."""
    from mfcore.training import probe

    labels, _ = patches.load(data.find_patches(study, results))
    return probe.read(embeddings, labels, splits.load(data.find_splits(study, results)))


# ---- networks ----


def training_config(study: Settings, network: Network, fold: int) -> dict:
    """The settings that decide a training, besides its patches and splits."""
    names = ["epoch", "training_label", "validation"] + (["clipping"] if network.clip_norm is not None else [])
    return {
        "network": as_dict(network),
        "card": encoders.training_card_of(study, network.architecture).identity(),
        **{name: getattr(study.switches, name) for name in names},
        **study.released_in_training(network),
        "seed": study.splits.seed,
        "fold": fold,
    }


def find_training(study: Settings, network_name: str, fold: int, results: str | Path) -> store.Run:
    """The finished training of one network on one fold; raises StoreError where there is none."""
    network = study.network(network_name)
    inputs = {"patches": data.find_patches(study, results).key, "splits": data.find_splits(study, results, networks=True).key}
    return store.find_run(results, "train", f"{network.name}-fold{fold}", training_config(study, network, fold), inputs)


def recipe_of(study: Settings, network: Network):
    """The `mfcore.training.task.Recipe` of one network by the study's switches."""
    from mfcore.training.task import Recipe

    named = {name: getattr(study.switches, name) for name in ("epoch", "training_label", "validation", "clipping")}
    return Recipe(**named, **study.released_in_training(network))


def train(
    study: Settings,
    network_name: str,
    fold: int,
    results: str | Path,
    device: str = "cpu",
    watch: Callable[[pd.DataFrame], None] | None = None,
    data_folder: str | Path | None = None,
) -> store.Run:
    """Train one network of a study on its units of one fold, from the study's patches and splits, as `train.train_units`.

    data_folder: of the study's data, needed only where ``switches.sampler`` draws random places of slides. Raises StoreError
    where patches or splits are missing, TrainingError as `train.units_of` and `train.tasks_of`, and as `train.train_units`.
    """
    from mfcore.training import processes, train as procedure
    from mfcore.training.task import places_of

    network = study.network(network_name)
    patches_run, splits_run = data.find_patches(study, results), data.find_splits(study, results, networks=True)
    inputs = {"patches": patches_run.key, "splits": splits_run.key}
    config = training_config(study, network, fold)
    known = {key: value for key, value in {**config, **inputs}.items() if key != "card"}
    run = store.open_run(results, "train", f"{network.name}-fold{fold}", config, inputs, known)
    if processes.here().as_first(run.done):
        return run
    labels, stored = patches.load(patches_run)
    table = splits.load(splits_run)
    read = None
    if data_folder:
        reading = data.reading_of(study)
        read = functools.partial(patches.read_anywhere, labels, data_folder, reading, seen_px=network.input_px)
    tasks = procedure.tasks_of(
        procedure.units_of(network, table, fold),
        table,
        network=network,
        seed=study.splits.seed,
        patches=stored,
        labels=labels["label"].to_numpy(),
        slide_ids=labels["slide_id"].to_numpy(),
        recipe=recipe_of(study, network),
        places=places_of(labels, data.placing_of(study)),
        read=read,
    )
    if any(task.reads_slides for task in tasks.values()):
        patches.refuse_other_slides(patches_run, data_folder or "", labels)
    procedure.train_units(tasks, encoders.training_card_of(study, network.architecture), labels, run, device, watch)
    return run
