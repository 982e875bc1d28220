"""The arms of a study as their runs on disk have them: which runs are current, what they predicted,
and every score.

Every metric is computed again from what each arm predicted, never read from a log.
"""

import contextlib
import itertools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.data import splits
from mfcore.data.labels.schema import REST
from mfcore.encoders.card import EncoderError, cards
from mfcore.encoders.catalogue import OwnEncoder
from mfcore.measures import binary
from mfcore.store.options import as_dict
from mfcore.store.records import digest
from mfcore.study import data, encoders
from mfcore.study.config import ConfigError, Network, Settings, load_study

PROBE, END_TO_END, LORA = "probe", "end-to-end", "LoRA"
ALL = splits.ALL


@dataclass(frozen=True)
class Collected:
    """What a study's arms predicted, and which arms did not and why.

    predictions: as `mfcore.data.splits.predictions`, with ``arm``, ``kind`` (PROBE, END_TO_END or
    LORA), ``n_train`` and ``case_id``, as the study's labels have it.
    failures: ``arm, stage, reason``, a row for each run that failed or is missing.
    """

    predictions: pd.DataFrame
    failures: pd.DataFrame


def collect(study: Settings, results: Path) -> Collected:
    """Gather the predictions of every arm that were made on the study's splits by its settings.

    Sizes and domains that a network leaves out (``sizes, by_domain``) have no predictions, and are
    no failures. Raises StoreError where there are no splits, or no arm has predicted anything yet.
    """
    reasons, runs, tables, failures = _reasons(results), current_runs(study, results), [], []
    for arm in arms_of(study).values():
        for fold in range(1 if arm.encoder else study.splits.n_folds):
            stage, jobs = f"train, fold {fold}", [(arm.name, "04", fold)]
            if encoder := arm.encoder:
                pretraining = encoder.partition("@")[0], "08", None
                stage, jobs = "probe", [pretraining, (encoder, "02", None), (encoder, "03", None)]
            failed = [reasons[job] for job in jobs if job in reasons]
            run = runs.get(arm.run(fold))
            is_old = failed and encoder and not encoders.has_card_here(study, encoder)
            if run and not is_old:
                tables.append(load_arm(run, arm.name, arm.kind))
            else:
                failures.append((arm.name, stage, [*failed, "not run yet"][0]))
    if not tables:
        what = f"no arm of study {study.name!r} has predictions yet"
        raise store.StoreError(f"{results}: {what}; run notebooks 02 to 04 first")
    predictions = pd.concat(tables, ignore_index=True)
    return Collected(predictions, pd.DataFrame(failures, columns=["arm", "stage", "reason"]))


def _reasons(results: Path) -> dict[tuple[str | None, str, int | None], str]:
    """Why jobs failed, by encoder or network, number of the notebook, and fold."""
    reasons = {}
    for file in sorted(results.glob("failures/*.json")):
        failure = store.read_json(file)
        job = failure["parameters"]
        if "scheme" not in job:  # a job under another way to split is of no arm of the study
            name = job.get("encoder", job.get("network"))
            reasons[name, str(failure["stage"])[:2], job.get("fold")] = failure["reason"]
    return reasons


def history(run: store.Run) -> pd.DataFrame:
    """What a training noted of each epoch of each fit, as its ``history.jsonl``.

    Empty where the run left no history.
    """
    file = run.path("history.jsonl")
    if not file.is_file():
        return pd.DataFrame(columns=["unit", "epoch"])
    return pd.read_json(file, lines=True)


@dataclass(frozen=True)
class Arm:
    """An arm of a study: a probe of an encoder's embeddings, or a trained network.

    kind: PROBE, END_TO_END or LORA. encoder, method: of a probe; method is "" for the linear one.
    """

    name: str
    kind: str
    encoder: str = ""
    method: str = ""

    def run(self, fold: int) -> str:
        """The name of the run of a fold: a network has one for each, a probe one for all."""
        return self.name if self.kind == PROBE else f"{self.name}-fold{fold}"

    @property
    def suffix(self) -> str:
        """The ending of the file that a run keeps of each fit."""
        if self.kind != PROBE:
            return ".safetensors"
        return ".parquet" if self.method else ".npz"


def kind_of(network: Network) -> str:
    """END_TO_END where every weight is trained, else LORA."""
    return LORA if network.lora else END_TO_END


def arms_of(settings: Settings) -> dict[str, Arm]:
    """The arms that a study trains, by name, probes first."""
    arms = []
    for encoder in settings.encoders:
        arms.append(Arm(encoder, PROBE, encoder))
        for method in settings.probe.also:
            arms.append(Arm(f"{encoder} {method}", PROBE, encoder, method))
    arms += [Arm(network.name, kind_of(network)) for network in settings.networks]
    return {arm.name: arm for arm in arms}


# ---- the current runs ----


def current_runs(study: Settings, results: Path) -> dict[str, store.Run]:
    """The current run of each probe (by arm) and training (``NETWORK-foldN``).

    Made on the study's splits and by the study's settings, and opened last. Raises StoreError where
    there are no splits.
    """
    splits_run, folds = data.find_splits(study, results), range(study.splits.n_folds)
    wanted = {
        arm.name: ("probe", probe_config(study, arm.method) | {"splits": splits_run.key})
        for arm in arms_of(study).values()
        if arm.encoder
    }
    with contextlib.suppress(store.StoreError):  # networks' own folds, which nobody has drawn yet
        inputs = training_inputs(study, results)
        for network, fold in itertools.product(study.networks, folds):
            known = training_settings(study, network, fold) | inputs
            wanted[f"{network.name}-fold{fold}"] = "train", known
    current = {}
    for name, (stage, known) in wanted.items():
        run = store.last_opened(results, stage, name, known)
        if run and _has_card(study, run):
            current[name] = run
    for network in study.networks:  # an encoder of the user's own may have changed between folds
        names = [f"{network.name}-fold{fold}" for fold in folds]
        runs = [current[name] for name in names if name in current]
        cards = [run.identity["config"]["card"] for run in sorted(runs, key=lambda run: run.ended)]
        for run in runs:
            if run.identity["config"]["card"] != cards[-1]:
                del current[run.identity["name"]]
    return current


def _has_card(study: Settings, run: store.Run) -> bool:
    """Whether a run was made with the card that the study has now.

    True also where that card isn't known here (`encoders.has_card_here`).
    """
    config = run.identity["config"]
    if run.identity["stage"] == "train":
        name = config["network"]["architecture"]
        return name not in cards() or digest(config["card"]) == digest(
            encoders.training_card_of(study, name).identity()
        )
    name = run.identity["name"].removesuffix(f" {config.get('method')}")  # of a further probe
    if not encoders.has_card_here(study, name):
        return True
    try:
        key = encoders.embeddings_run(study, name, run.folder.parent).key
    except EncoderError:  # pretrained by another config
        return False
    return run.identity["inputs"]["embeddings"] == key


# ---- predictions and scores ----


def load_arm(run: store.Run, arm: str, kind: str) -> pd.DataFrame:
    """A finished run's predictions as a part of arm ``arm``, with ``case_id`` and ``n_train``.

    ``n_train``: training patches of each fit. ``case_id``: the case in the labels of the patches
    that the run's splits divide; intervals draw cases. Raises StoreError where the run's splits or
    patches are gone.
    """
    splits_run = _run_of(run, "splits")
    table = store.read_parquet(splits_run.path("splits.parquet"))
    labels = store.read_parquet(_run_of(splits_run, "patches").path("labels.parquet"))
    predictions = store.read_parquet(run.path("predictions.parquet"))
    refuse_lost(predictions, labels)
    unit = ["train_domain", "fold", "size"]
    n_train = table[table["role"] == "train"].groupby(unit).size().reset_index(name="n_train")
    cases = predictions["patch_id"].map(labels.set_index("patch_id")["case_id"])
    predictions = predictions.assign(case_id=cases).merge(n_train, how="left", on=unit)
    return predictions.assign(arm=arm, kind=kind)


def _run_of(run: store.Run, stage: str) -> store.Run:
    """The run of an earlier stage that ``run`` was made on; raises StoreError where it is gone."""
    key = run.identity["inputs"][stage]
    folder = next(run.folder.parent.glob(f"{stage}-*-{key}"), None)
    if folder is None:
        raise store.StoreError(
            f"{run.folder}: the {stage} it was made on are gone; run notebook 01 and this arm again"
        )
    return store.run_at(folder)


def refuse_lost(predictions: pd.DataFrame, labels: pd.DataFrame) -> None:
    """Raise StoreError where a label table lacks a patch that was predicted."""
    if n_lost := (~predictions["patch_id"].isin(labels["patch_id"])).sum():
        what = f"{n_lost} predictions are of patches that the label table lacks"
        raise store.StoreError(f"{what}; run notebook 01 again")


def scores(predictions: pd.DataFrame) -> pd.DataFrame:
    """Every metric of every fit: a row an arm, training domain, fold, size and test domain.

    Fits on all domains are tested on all at once (``domain`` "all"); fits on one domain, on each
    domain by itself. A metric that needs both classes is NaN where a test set has one. ``tested``:
    a number that is the same for the same patches.
    """
    is_mixed = predictions["train_domain"] == ALL
    predictions = predictions.assign(domain=predictions["domain"].mask(is_mixed, ALL))
    keys = ["arm", "kind", "train_domain", "fold", "size", "domain"]
    rows = [
        {
            **dict(zip(keys, values, strict=True)),
            "n_train": int(fit["n_train"].iloc[0]),
            "n_test": len(fit),
            "n_test_slides": fit["slide_id"].nunique(),
            "tested": zlib.crc32(np.sort(fit["patch_id"].to_numpy()).tobytes()),
            **binary.evaluate(fit["label"].to_numpy(), fit["score"].to_numpy()),
        }
        for values, fit in predictions.groupby(keys, sort=False, observed=True)
    ]
    return pd.DataFrame(rows)


# ---- what decides a probe and a training ----


def probe_config(study: Settings, method: str) -> dict:
    """What decides a probe, besides its embeddings and splits; method: "" for the linear one."""
    return {"method": method} if method else study.probe.linear


def training_inputs(study: Settings, results: Path) -> dict[str, str]:
    """The patches and splits that networks learn from, by their keys."""
    splits_run = data.find_splits(study, results, networks=True)
    return {"patches": data.find_patches(study, results).key, "splits": splits_run.key}


def training_settings(study: Settings, network: Network, fold: int) -> dict:
    """What decides a training, besides its patches, its splits and its card."""
    names = ["epoch", "training_label", "validation", *["clipping"] * bool(network.clip_norm)]
    return {
        "network": as_dict(network),
        **{name: getattr(study.switches, name) for name in names},
        **study.released_in_training(network),
        "seed": study.splits.seed,
        "fold": fold,
    }


# ---- external test sets ----


def external_sets(settings: Settings) -> dict[str, Settings]:
    """The studies that a study is also tested on, by name.

    Raises ConfigError for a file that is wrong, for two of one name, and for other classes.
    """
    ours = settings.data
    sets: dict[str, Settings] = {}
    for file in settings.test_on:
        other = load_study(file)
        if other.name in sets or other.name == settings.name:
            raise ConfigError(
                f"test_on: {file}: a study {other.name!r} is there already; rename it"
            )
        named = other.data.positive, other.data.negative
        if named[0] != ours.positive or named[1] not in (ours.negative, REST):
            raise ConfigError(
                f"test_on: {file}: positive is {named[0]!r} and negative is {named[1]!r}, the study"
                f" learns {ours.positive!r} against {ours.negative!r}; give classes that are"
                " the same the same names, and say by data.label_values how that set's labels are"
                " written"
            )
        sets[other.name] = other
    return sets


def external_config(settings: Settings, other: Settings) -> dict:
    """What decides the patches of an external set: how the study cuts, and the set's data."""
    ours = data.patches_config(settings)
    config = {"cut": {**ours, "data": None}, "data": data.patches_config(other)["data"]}
    return config | ({"fit": other.patches.fit} if other.patches.fit else {})


def find_external(study: Settings, name: str, results: Path) -> store.Run:
    """The finished patches of an external set; raises StoreError where there are none."""
    config = external_config(study, external_sets(study)[name])
    return store.find_run(results, "external", name, config)


def find_kept(study: Settings, name: str, results: Path) -> store.Run:
    """Which patches of an external set are tested on; raises StoreError before `external.cut`.

    Facts: what it has in common with the study, ``shared_cases`` and ``identical``, and ``n_kept``.
    """
    patches, external = data.find_patches(study, results), find_external(study, name, results)
    inputs = {"external": external.key, "patches": patches.key}
    return store.find_run(results, "external-kept", name, {}, inputs)


def features_of(settings: Settings, encoder: str) -> OwnEncoder | None:
    """The embeddings made elsewhere that a study file has under an encoder's name, or None."""
    entries = (own for own in settings.own_encoders if own.name == encoder and own.features)
    return next(entries, None)


def external_test(
    study: Settings, results: Path, current: Mapping[str, store.Run], name: str, arm: Arm
) -> data.Identity:
    """The identity of the run that tests an arm on an external set.

    current: as `current_runs`. Raises KeyError where the arm isn't trained, StoreError before
    `external.cut`, and EncoderError where embeddings made elsewhere can't be read.
    """
    from mfcore.encoders import features

    trained = [arm.run(fold) for fold in range(study.splits.n_folds)]
    inputs = {one: current[one].key for one in trained}
    inputs["external"] = find_external(study, name, results).key
    inputs["kept"] = find_kept(study, name, results).key
    own = features_of(external_sets(study)[name], arm.encoder)
    if own and features_of(study, arm.encoder):
        inputs["features"] = features.contract(Path(own.features))[1]
    return "external-test", f"{name}-{arm.name}", {"shared": study.shared}, inputs


def on_external_sets(study: Settings, results: Path) -> pd.DataFrame:
    """What all arms predict on all external sets: as `Collected.predictions`, with ``tested_on``.

    Of an arm's current runs on a set's current patches. No rows where the study has no such set, or
    no arm was tested yet.
    """
    names, tables = external_sets(study), []
    current = current_runs(study, results) if names else {}
    for name, arm in itertools.product(names, arms_of(study).values()):
        with contextlib.suppress(KeyError, store.StoreError, EncoderError):  # not tested yet
            test = store.find_run(results, *external_test(study, results, current, name, arm))
            table = store.read_parquet(test.path("predictions.parquet"))
            tables.append(table.assign(arm=arm.name, kind=arm.kind, tested_on=name))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def shared_with_external(study: Settings, results: Path) -> dict[str, dict]:
    """By external set what it has in common with the study, as the facts of `find_kept`."""
    return {name: find_kept(study, name, results).record["facts"] for name in external_sets(study)}
