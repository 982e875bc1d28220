"""What a study trains: probes of encoders, their audit, networks end to end or by LoRA, and
encoders pretrained from slides; and what was trained, applied to other patches.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.data import patches, splits
from mfcore.encoders.card import EncoderCard, EncoderError
from mfcore.store.records import digest
from mfcore.study import data, encoders, pretrained
from mfcore.study.config import ConfigError, Network, OwnEncoder, Pretraining, Settings
from mfcore.study.predictions import (
    Arm,
    arms_of,
    probe_config,
    training_inputs,
    training_settings,
)

if TYPE_CHECKING:
    from mfcore.training import probe
    from mfcore.training.task import Recipe

# ---- probes ----


def fit_probe(study: Settings, embeddings: store.Run, results: Path, method: str = "") -> store.Run:
    """Fit and test a probe on one encoder's finished embeddings, for every unit of the splits.

    method: one of ``probe.also``; "" for the linear one. As `mfcore.training.probe.fit_others` and
    `fit_units`. Raises StoreError where an embedding can't be used.
    """
    from mfcore.training import probe

    config, name = probe_config(study, method), f"{embeddings.identity['name']} {method}".strip()
    run = _opened("probe", name, study, embeddings, results, config, config)
    if run.done:
        return run
    material = probe_material(study, embeddings, results)
    if method:
        return probe.fit_others(material, run, method, study.splits.seed)
    return probe.fit_units(material, run, study.probe)


def probe_audit_config(study: Settings) -> dict:
    """What of the study decides the audit of the probe, with the estimators in words."""
    from mfcore.training import estimators

    described = estimators.described()
    return {"probe": study.probe.linear, "seed": study.splits.seed, "estimators": described}


def audit_probe(study: Settings, embeddings: store.Run, results: Path) -> store.Run:
    """Fit and test every estimator on one encoder's finished embeddings, at every size.

    As `mfcore.training.estimators.audit`. Raises StoreError where an embedding can't be used.
    """
    from mfcore.training import estimators

    config, known = probe_audit_config(study), {"probe": study.probe.linear}
    name = embeddings.identity["name"]
    run = _opened("probes", name, study, embeddings, results, config, known)
    if run.done:
        return run
    material = probe_material(study, embeddings, results)
    return estimators.audit(material, run, study.splits.seed, study.probe)


def _opened(
    stage: str,
    name: str,
    study: Settings,
    embeddings: store.Run,
    results: Path,
    config: dict,
    known: dict,
) -> store.Run:
    """The run of a stage that reads an encoder's embeddings."""
    splits_key = data.find_splits(study, results).key
    inputs = {"patches": data.find_patches(study, results).key, "splits": splits_key}
    known = known | {"splits": splits_key}
    return store.open_run(
        results, stage, name, config, inputs | {"embeddings": embeddings.key}, known
    )


def probe_material(study: Settings, embeddings: store.Run, results: Path) -> "probe.Material":
    """The embeddings with the study's labels and splits, a `mfcore.training.probe.Material`."""
    from mfcore.training import probe

    labels, _ = patches.load(data.find_patches(study, results))
    return probe.read(embeddings, labels, splits.load(data.find_splits(study, results)))


# ---- networks ----


def training_config(study: Settings, network: Network, fold: int) -> dict:
    """The settings that decide a training, besides its patches and splits."""
    card = encoders.training_card_of(study, network.architecture)
    return {"card": card.identity(), **training_settings(study, network, fold)}


def recipe_of(study: Settings, network: Network) -> "Recipe":
    """The `mfcore.training.task.Recipe` of one network by the study's switches."""
    from mfcore.training.task import Recipe

    names = ("epoch", "training_label", "validation", "clipping")
    switches = {name: getattr(study.switches, name) for name in names}
    return Recipe(**switches, **study.released_in_training(network))


def train(
    study: Settings,
    network_name: str,
    fold: int,
    results: Path,
    device: str = "cpu",
    watch: Callable[[pd.DataFrame], None] | None = None,
    data_folder: str | Path | None = None,
) -> store.Run:
    """Train one network of a study on its units of one fold, as `train.train_units`.

    data_folder: of the study's data, needed only where ``switches.sampler`` draws random places of
    slides. Raises StoreError without patches or splits, TrainingError as `train.units_of` and
    `train.tasks_of`, and as `train.train_units`.
    """
    from mfcore.training import processes, train as procedure
    from mfcore.training.task import places_of

    network, patches_run = study.network(network_name), data.find_patches(study, results)
    splits_run = data.find_splits(study, results, networks=True)
    config, inputs = training_config(study, network, fold), training_inputs(study, results)
    known = training_settings(study, network, fold) | inputs
    run = store.open_run(results, "train", f"{network.name}-fold{fold}", config, inputs, known)
    if processes.here().as_first(run.done):
        return run
    table, (labels, stored) = splits.load(splits_run), patches.load(patches_run)
    read = None
    if data_folder:
        places = labels, data_folder, data.reading_of(study)
        read = functools.partial(patches.read_anywhere, *places, seen_px=network.input_px)
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
    card = encoders.training_card_of(study, network.architecture)
    procedure.train_units(tasks, card, labels, run, device, watch)
    return run


# ---- pretrainings ----


def pretrain(
    study: Settings,
    name: str,
    data_folder: str | Path,
    results: Path,
    device: str = "auto",
    n_workers: int = 1,
    watch: Callable[[pd.DataFrame], None] | None = None,
) -> store.Run:
    """Pretrain the study's encoder ``name``, as `mfcore.pretraining.pretrain.pretrain`.

    data_folder: holds the study's own slides, which are made or downloaded if possible; not read
    for a pretraining with other ``slides``. Raises ConfigError, LabelError, PatchingError (no slide
    can be read), EncoderError (the network, or the encoder to start from), StoreError (another
    process is at work on the run) and PretrainingError.
    """
    from mfcore.pretraining import loop, pretrain as procedure
    from mfcore.training import processes

    settings, ranks = study.pretraining_of(name), processes.here()
    loop.check_share(settings)  # before slides are downloaded and looked at
    if not settings.slides and ranks.is_first:
        data.prepare(study, data_folder)
    ranks.as_first(None)  # the others wait for the slides
    slides = slides_of(study, settings, data_folder)
    inputs = {"slides": procedure.slides_digest(slides)}
    start = start_of(study, settings, results)
    if start is not None:
        inputs["start"] = digest(start.identity())
    config = pretrained.config_of(study, name)
    run = store.open_run(results, pretrained.STAGE, name, config, inputs)
    synthetic = "synthetic " if study.synthetic and not settings.slides else ""
    origin = f"in study {study.name!r} on {synthetic}slides"
    patches = study.patches
    return procedure.pretrain(
        slides, settings, run, start, patches, origin, device, n_workers, watch
    )


def slides_of(study: Settings, settings: Pretraining, data_folder: str | Path) -> list:
    """The slides that a pretraining draws from, each a `mfcore.pretraining.slides.SlideFile`.

    The study's own, or the slides below ``settings.slides`` (in the data folder). Raises
    PatchingError for a folder without any, LabelError as `labels.table.load`.
    """
    from mfcore.pretraining.slides import PatchingError, slides_in, slides_listed

    data_folder, um_per_px = Path(data_folder), study.data.um_per_px
    if settings.slides:
        try:
            return slides_in(data_folder / Path(settings.slides).expanduser(), um_per_px)
        except PatchingError as error:
            raise PatchingError(f"pretraining[{settings.name}].slides: {error}") from None
    table, by_scanner = data.load_labels(study, data_folder), study.data.um_per_px_by_scanner
    return slides_listed(table, data_folder, lambda scanner: by_scanner.get(scanner, um_per_px))


def start_of(study: Settings, settings: Pretraining, results: Path) -> EncoderCard | None:
    """The card of the encoder whose weights a pretraining starts from; None for random weights.

    Raises EncoderError where there is no such encoder.
    """
    if settings.start == "random":
        return None
    try:
        return encoders.card_of(study, settings.start, results)
    except EncoderError as error:
        raise EncoderError(f"pretraining[{settings.name}].start: {error}") from error


def example(
    study: Settings, name: str, data_folder: str | Path, n: int = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray, pd.DataFrame]:
    """The first patches of a pretraining, as `mfcore.pretraining.pretrain.example`.

    Raises as `pretrain` does for its slides.
    """
    from mfcore.pretraining import pretrain as procedure

    settings = study.pretraining_of(name)
    if not settings.slides:
        data.prepare(study, data_folder)
    return procedure.example(slides_of(study, settings, data_folder), settings, n)


# ---- what was trained, applied ----


def run_of(
    study: Settings, runs: Mapping[str, store.Run], arm: str, unit: splits.Unit
) -> store.Run:
    """The finished run of an arm that trained a unit.

    runs: as `predictions.current_runs`. Raises ConfigError for an arm that the study doesn't have,
    StoreError where it isn't trained.
    """
    if arm not in (arms := arms_of(study)):
        raise ConfigError(f"study {study.name!r} has no arm {arm!r}; it has {list(arms)}")
    name = arms[arm].run(unit.fold)
    if name not in runs:
        raise store.StoreError(f"{name} isn't trained yet; run: make paper STUDY={study.name}")
    run = runs[name]
    if not run.unit_file(unit.name, arms[arm].suffix).is_file():
        raise store.StoreError(
            f"{arm} isn't trained at size {unit.size:g}; the study's sizes are"
            f" {list(study.splits.sizes)}"
        )
    return run


def score(
    study: Settings,
    arm: str,
    trained: Mapping[splits.Unit, store.Run],
    stored: store.Run,
    results: Path,
    device: str = "auto",
    elsewhere: OwnEncoder | None = None,
) -> np.ndarray:
    """Probabilities of class 1, float64 (n_units, n_patches), of patches cut as the study's.

    trained: of each unit its run (`run_of`). stored: the run of the patches. elsewhere: where their
    embeddings are, for an encoder whose embeddings were made elsewhere. Raises EncoderError where
    the encoder isn't the one that the arm learned from, or embeddings are missing.
    """
    if (probe := arms_of(study)[arm]).encoder:
        return _score_by_probe(study, probe, trained, stored, results, device, elsewhere)
    from mfcore.training import train

    network, (_, images) = study.network(arm), patches.load(stored)
    card = encoders.training_card_of(study, network.architecture)
    scores = [
        train.score(
            unit,
            network,
            card,
            study.splits.seed,
            run.unit_file(unit.name, ".safetensors"),
            images,
            device,
        )
        for unit, run in trained.items()
    ]
    return np.stack(scores)


def _score_by_probe(
    study: Settings,
    arm: Arm,
    trained: Mapping[splits.Unit, store.Run],
    stored: store.Run,
    results: Path,
    device: str,
    elsewhere: OwnEncoder | None,
) -> np.ndarray:
    """As `score`, by an encoder's probes; embeds into a run of its own."""
    from mfcore.training import probe

    source = encoders.find_embeddings(study, arm.encoder, results)
    card = encoders.card_of(study, arm.encoder, results)
    if {source.key} != {run.identity["inputs"]["embeddings"] for run in trained.values()}:
        raise EncoderError(
            f"{arm.name}: its probes learned from other embeddings than {source.folder}; run"
            " notebook 03 again"
        )
    if card.source == "features":
        features = encoders.read_elsewhere(study, card, stored, elsewhere)
    else:
        features = encoders.embed_others(study, card, source, stored, results, device)
    if not arm.method:
        heads = [probe.load_head(run, unit.name) for unit, run in trained.items()]
        return np.stack([head.predict(features) for head in heads]).astype(np.float64)
    material, seed = probe_material(study, source, results), study.splits.seed
    scores = [probe.score_by(arm.method, material, unit, features, seed) for unit in trained]
    return np.stack(scores).astype(np.float64)
