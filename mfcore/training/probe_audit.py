"""The probe audit: the same embeddings and splits under several published estimators, so that a probe's score can be read.

Published scores of linear probes differ in the encoder and in how the head was fitted; here only the latter differs.
"""

import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit
from tqdm.auto import tqdm

from mfcore import store, streams as rng
from mfcore.data import splits
from mfcore.measures import binary
from mfcore.study.config import Settings, as_dict
from mfcore.training import probe
from mfcore.training.probe_estimators import ESTIMATORS, Fold

STAGE = "probes"


def config_of(study: Settings) -> dict:
    """What of the study decides the audit; the estimators stand there in words."""
    described = {name: description.as_dict() for name, (description, _) in ESTIMATORS.items()}
    return {"probe": as_dict(study.probe), "seed": study.splits.seed, "estimators": described}


def run(study: Settings, embeddings: store.Run, results: Path) -> store.Run:
    """Fit and test every estimator on one encoder's finished embeddings, at every size of the study's data scaling.

    Leaves ``predictions.parquet`` (as `splits.predictions`, with ``estimator``) and ``fits.csv`` (see `load_fits`). All folds
    of an estimator at a size are fitted together and kept when they are done, so that a kill loses these. Cross-domain units
    are left out. Raises StoreError where an embedding can't be used, ValueError, naming up to ten units, where a training set
    lacks a class.
    """
    encoder = embeddings.identity["name"]
    config, inputs = config_of(study), probe.inputs_of(study, embeddings, results)
    known = {"probe": config["probe"], "splits": inputs["splits"]}
    run = store.open_run(results, STAGE, encoder, config, inputs, known)
    if run.done:
        return run
    material = probe.read(study, embeddings, results)
    units = [unit for unit in splits.units(material.splits) if unit.train_domain == splits.ALL]
    bad = [unit.name for unit in units if len(np.unique(material.labels[material.rows(unit, "train")])) < 2]
    if bad:
        raise ValueError(f"{len(bad)} training sets lack a class: {', '.join(bad[:10])}; raise the smallest of splits.sizes")
    groups = [(name, size) for size in study.splits.sizes for name in ESTIMATORS]
    for name, size in tqdm(groups, desc=f"audit {encoder}", unit="group"):
        if not run.unit_file(_group(name, size)).is_file():
            _fit_group(study, run, material, name, [unit for unit in units if unit.size == size])
    files = [run.unit_file(_group(name, size)) for name, size in groups]
    store.write_parquet(
        run.path("predictions.parquet"), pd.concat([store.read_parquet(file) for file in files], ignore_index=True)
    )
    fits = pd.DataFrame([row for file in files for row in store.read_json(file.with_suffix(".json"))["fits"]])
    store.write_csv(run.path("fits.csv"), fits)
    return run.finish(["predictions.parquet", "fits.csv"], n_fits=len(fits))


def _group(estimator: str, size: float) -> str:
    return f"{estimator}-size{splits.shortest(size)}"


def _fit_group(study: Settings, run: store.Run, material: probe.Material, name: str, units: list[splits.Unit]) -> None:
    """Fit one estimator on the folds of one size, and keep what they predict."""
    stream = (study.splits.seed, "probe audit", name)
    folds = [
        Fold(material.rows(unit, "train"), material.rows(unit, "val"), rng.generator(*stream, unit.fold, unit.size))
        for unit in units
    ]
    begun = time.monotonic()
    fitted = ESTIMATORS[name][1](
        material.features, material.labels, folds, study.probe, f"{name}, size {splits.shortest(units[0].size)}"
    )
    seconds = round((time.monotonic() - begun) / len(units), 3)
    rows, predictions = [], []
    for unit, fold, head in zip(units, folds, fitted, strict=True):
        scores = expit((material.features @ head.weight).astype(np.float64) + head.bias)  # (n,)
        predictions.append(material.predictions(unit, scores).assign(estimator=name))
        own = material.labels[fold.train]
        row = {"estimator": name, "fold": unit.fold, "size": unit.size, "n_train": len(own), "n_val": len(fold.validation)}
        row |= {"train_share": float(own.mean()), "train_auroc": binary.auroc(own, scores[fold.train])}
        rows.append({**row, **head.facts, "seconds": seconds})
    file = run.unit_file(_group(name, units[0].size))
    store.write_json(file.with_suffix(".json"), {"fits": rows})
    store.write_parquet(file, pd.concat(predictions, ignore_index=True))


def load_fits(run: store.Run) -> pd.DataFrame:
    """How each fit ended: ``estimator, fold, size, n_train, n_val, train_share, train_auroc, ended, n_steps, sklearn_c,
    n_epochs, best_epoch, seconds``.

    train_share: of class 1 among the training patches; train_auroc: on these patches themselves. ended: "converged", "early"
    (stopped by validation) or "limit", with a reason where validation couldn't tell. n_steps: iterations of L-BFGS or steps on
    a batch. sklearn_c: scikit-learn's C, of UNI's the one with which it has the same minimum. seconds: a fold's share.
    """
    return pd.read_csv(run.path("fits.csv"))
