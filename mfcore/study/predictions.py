"""The arms of a study as their runs on disk have them: which runs are current, what they predicted, and every score.

Every metric is computed again from what each arm predicted, never read from a log.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.data import splits
from mfcore.encoders.card import EncoderCard, cards, released_cards
from mfcore.measures import binary
from mfcore.store.options import as_dict
from mfcore.study import data, pretrained
from mfcore.study.config import ConfigError, Network, Settings, Switches

PROBE, END_TO_END, LORA = "probe", "end-to-end", "LoRA"
ALL = splits.ALL


@dataclass(frozen=True)
class Collected:
    """What a study's arms predicted, and which arms did not and why.

    predictions: as `mfcore.data.splits.predictions`, with ``arm``, ``kind`` (PROBE, END_TO_END or LORA), ``n_train`` and
    ``case_id``, as the study's labels have it.
    failures: ``arm, stage, reason``, a row for each run that failed or is missing.
    """

    predictions: pd.DataFrame
    failures: pd.DataFrame


def collect(study: Settings, results: str | Path) -> Collected:
    """Gather the predictions of every arm of a study that were made on its current splits, with its current settings.

    Sizes and domains that a network leaves out (``sizes, by_domain``) have no predictions, and are no failures.
    Raises StoreError where there are no splits, or no arm has predicted anything yet.
    """
    results = Path(results)
    found = current_runs(study, results)
    reasons = {}
    for file in sorted(results.glob("failures/*.json")):
        failure = store.read_json(file)
        parameters = failure["parameters"]
        if "scheme" in parameters:  # another way to split: no arm of the study
            continue
        name = parameters.get("encoder", parameters.get("network"))
        stage = str(failure["stage"])[:2]
        reasons[name, stage, parameters.get("fold")] = failure["reason"]
    tables, failures = [], []
    for encoder in study.encoders:
        if encoder in found:
            tables.append(load_arm(found[encoder], encoder, PROBE))
        else:
            first = encoder.partition("@")[0], "08", None
            told = (reasons.get(key) for key in (first, (encoder, "02", None), (encoder, "03", None)))
            reason = next((reason for reason in told if reason), "not run yet")
            failures.append({"arm": encoder, "stage": "probe", "reason": reason})
    for network in study.networks:
        for fold in range(study.splits.n_folds):
            name = f"{network.name}-fold{fold}"
            if name in found:
                tables.append(load_arm(found[name], network.name, kind_of(network)))
            else:
                reason = reasons.get((network.name, "04", fold), "not run yet")
                failures.append({"arm": network.name, "stage": f"train, fold {fold}", "reason": reason})
    if not tables:
        raise store.StoreError(f"{results}: no arm of study {study.name!r} has predictions yet; run notebooks 02 to 04 first")
    predictions = pd.concat(tables, ignore_index=True)
    return Collected(predictions, pd.DataFrame(failures, columns=["arm", "stage", "reason"]))


def stored_labels(study: Settings, results: str | Path) -> pd.DataFrame:
    """The study's stored label table, a row for each patch; raises StoreError where no patches were extracted."""
    return store.read_parquet(data.find_patches(study, results).path("labels.parquet"))


def stored_splits(study: Settings, results: str | Path) -> pd.DataFrame:
    """The splits that the study's probes learn from, as `mfcore.data.splits.make`; raises StoreError where there are none."""
    return splits.load(data.find_splits(study, results))


def history(run: store.Run) -> pd.DataFrame:
    """What a training noted of each epoch of each fit, as its ``history.jsonl``; empty where the run left no history."""
    file = run.path("history.jsonl")
    return pd.read_json(file, lines=True) if file.is_file() else pd.DataFrame(columns=["unit", "epoch"])


def fit_history(run: store.Run, fold: int, size: float) -> pd.DataFrame:
    """The `history` of one fit on all domains, by epoch."""
    table = history(run)
    return table[table["unit"] == splits.Unit(ALL, fold, size).name].sort_values("epoch")


def kind_of(network: Network) -> str:
    """END_TO_END where every weight is trained, else LORA."""
    return LORA if network.lora else END_TO_END


def current_runs(study: Settings, results: Path) -> dict[str, store.Run]:
    """The current run by name, among those made on the study's splits and with the study's settings.

    Raises StoreError where there are no splits, or several runs of a name could be meant.
    """
    splits_of = {"probe": data.find_splits(study, results).key, "train": _splits_of_networks(study, results)}
    networks = {f"{n.name}-fold{fold}": _settings(study, n) for n in study.networks for fold in range(study.splits.n_folds)}
    found: dict[str, list[store.Run]] = {}
    for run in [*store.runs(results, "probe"), *store.runs(results, "train")]:
        name, config, stage = run.identity["name"], run.identity["config"], run.identity["stage"]
        if run.identity["inputs"].get("splits") != splits_of[stage]:
            continue
        if stage == "train":  # what a run's config leaves out didn't matter to it
            wanted = networks.get(name)
            config = {
                "sampler": "annotations",
                "augmentation": "as_said",
                **config,
            }  # which enter only where they are as released
            current = wanted is not None and all(config[key] == wanted[key] for key in wanted.keys() & config.keys())
        else:
            current = name in study.encoders and config == as_dict(study.probe) and _by_its_card(study, run.identity, results)
        if current:
            found.setdefault(name, []).append(run)
    says_most = {name: max(len(run.identity["config"]) for run in runs) for name, runs in found.items()}
    return {
        name: store.current([run for run in runs if len(run.identity["config"]) == says_most[name]], _known)
        for name, runs in found.items()
    }


def _known(run: store.Run) -> dict:
    """What is known of an arm's run without its encoder's card, as the procedure that made it has it."""
    all_of_it = {**run.identity["config"], **run.identity["inputs"]}
    left_out = ("card",) if run.identity["stage"] == "train" else ("embeddings", "patches")
    return {key: value for key, value in all_of_it.items() if key not in left_out}


def _splits_of_networks(study: Settings, results: Path) -> str | None:
    try:
        return data.find_splits(study, results, networks=True).key
    except store.StoreError:  # folds of their own that nobody has drawn yet
        return None


def _settings(study: Settings, network: Network) -> dict:
    """What a training's config must say to be the study's, as far as it says so (`mfcore.study.arms.training_config`)."""
    card = _card(study, network.architecture, released_cards("training"))
    switches = {name: getattr(study.switches, name) for name in Switches.CHOICES}
    switches |= {"sampler": "annotations", "augmentation": "as_said", **study.released_in_training(network)}
    return _plain({"network": as_dict(network), **switches} | ({"card": card.identity()} if card else {}))


def _by_its_card(study: Settings, record: dict, results: Path) -> bool:
    """Whether a probe read embeddings that were made as the study has them made; whether they are gone doesn't matter.

    Those of an encoder that the study pretrains were made by the weights that it has now.
    """
    card, key = _card(study, record["name"], released_cards("embedding")), record["inputs"].get("embeddings")
    made = next(results.glob(f"embeddings-*-{key}/run.json"), None)
    if pretrained.is_of(study, record["name"]) and made is not None:
        try:
            return store.read_json(made)["config"]["card"]["sha256"] == pretrained.sha256(study, record["name"], results)
        except (store.StoreError, ConfigError):  # pretrained by another config
            return False
    return card is None or made is None or store.read_json(made)["config"]["card"] == _plain(card.identity())


def _card(study: Settings, name: str, released: Mapping[str, str]) -> EncoderCard | None:
    """The card by which a study has an encoder now; None for its own and those it pretrains, which no switch changes."""
    if name in [own.name for own in study.own_encoders] or pretrained.is_of(study, name):
        return None
    return cards().get(released.get(name, name) if study.switches.encoder_input == "released" else name)


def find_embeddings(study: Settings, name: str, results: Path) -> store.Run:
    """The finished embeddings of the study's patches by an encoder: by its card where that is known here, else the current.

    Raises StoreError where there are none.
    """
    source, card = {"patches": data.find_patches(study, results).key}, _card(study, name, released_cards("embedding"))
    known = {"size_px": study.patches.size_px}
    if card is None:
        return store.find_known(results, "embeddings", name, {**known, **source})
    return store.find_run(results, "embeddings", name, {"card": _plain(card.identity()), **known}, source)


def _plain(content: dict) -> dict:
    """As it is read back from a file."""
    return json.loads(json.dumps(content))


def load_arm(run: store.Run, arm: str, kind: str) -> pd.DataFrame:
    """One finished run's predictions as a part of arm ``arm``, with ``case_id`` and each fit's ``n_train`` training patches.

    Raises StoreError where the splits or the patches that the run was made on are gone.
    """
    table = store.read_parquet(_run_of(run, "splits").path("splits.parquet"))
    unit = ["train_domain", "fold", "size"]
    n_train = table[table["role"] == "train"].groupby(unit).size().rename("n_train").reset_index()
    predictions = read_predictions(run).merge(n_train, on=unit, how="left", validate="many_to_one")
    return predictions.assign(arm=arm, kind=kind)


def read_predictions(run: store.Run) -> pd.DataFrame:
    """A finished run's ``predictions.parquet`` with each patch's ``case_id``: intervals draw cases where they are known.

    The case is the one in the labels of the patches that the run's splits divide. Raises StoreError where they are gone.
    """
    predictions = store.read_parquet(run.path("predictions.parquet"))
    labels = store.read_parquet(_run_of(_run_of(run, "splits"), "patches").path("labels.parquet"))
    refuse_lost(predictions, labels)
    return predictions.assign(case_id=predictions["patch_id"].map(labels.set_index("patch_id")["case_id"]))


def _run_of(run: store.Run, stage: str) -> store.Run:
    """The run of an earlier stage that ``run`` was made on; raises StoreError where it is gone."""
    folder = next(run.folder.parent.glob(f"{stage}-*-{run.identity['inputs'][stage]}"), None)
    if folder is None:
        raise store.StoreError(f"{run.folder}: the {stage} it was made on are gone; run notebook 01 and this arm again")
    return store.run_at(folder)


def scores(predictions: pd.DataFrame) -> pd.DataFrame:
    """Every metric of every fit: a row an arm, training domain, fold, size and test domain.

    Fits on all domains are tested on all at once (``domain`` "all"); fits on one domain, on each domain by itself. A
    metric that needs both classes is NaN where a test set has one. ``tested``: a number that is the same for the same patches.
    """
    predictions = predictions.assign(domain=predictions["domain"].where(predictions["train_domain"] != ALL, ALL))
    keys = ["arm", "kind", "train_domain", "fold", "size", "domain"]
    rows = []
    for values, group in predictions.groupby(keys, sort=False, observed=True):
        found = binary.evaluate(group["label"].to_numpy(), group["score"].to_numpy())
        counts = {"n_train": int(group["n_train"].iloc[0]), "n_test": len(group), "n_test_slides": group["slide_id"].nunique()}
        counts["tested"] = zlib.crc32(np.sort(group["patch_id"].to_numpy()).tobytes())
        rows.append(dict(zip(keys, values, strict=True)) | counts | found)
    return pd.DataFrame(rows)


def refuse_lost(predictions: pd.DataFrame, labels: pd.DataFrame) -> None:
    """Raise StoreError where a label table lacks a patch that was predicted."""
    unknown = ~predictions["patch_id"].isin(labels["patch_id"])
    if unknown.any():
        raise store.StoreError(f"{unknown.sum()} predictions are of patches that the label table lacks; run notebook 01 again")
