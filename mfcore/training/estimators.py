"""Published ways to fit a linear head on frozen embeddings, each with what it is in words, and the probe audit by all of them.

Published scores of linear probes differ in the encoder and in how the head was fitted; in the audit only the latter differs.
All see the same embeddings and splits. What a description says is what the function does; it is kept with the results, and
the supplement prints it from there.
"""

import functools
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import resources

import numpy as np
import pandas as pd
import yaml
from scipy.special import expit
from tqdm.auto import tqdm

from mfcore import store, streams
from mfcore.data import splits
from mfcore.measures import binary
from mfcore.training import probe
from mfcore.training.heads import Head, Schedule, train
from mfcore.training.options import Probe

PATIENCE_STEPS = 2500  # eva's patience in steps: BACH 1250 epochs of 2, CRC 7 of 391, PCam 3 of 1024


@dataclass(frozen=True)
class Fold:
    """Rows of the features that train and validate one fold, and the fold's own random stream."""

    train: np.ndarray
    validation: np.ndarray
    generator: np.random.Generator


@dataclass(frozen=True)
class Fitted:
    """A fitted head: the logit of class 1 is ``features @ weight + bias``. facts: how the fit ended, plain data."""

    weight: np.ndarray
    bias: float
    facts: dict


def _uni(features: np.ndarray, labels: np.ndarray, folds: list[Fold], settings: Probe, _: str) -> list[Fitted]:
    found = []
    for fold in folds:
        fitted = probe.fit(features, labels, settings.cost, settings.max_iter, fold.train)
        weight = fitted.weight[1] - fitted.weight[0]
        slope = 0.5 / fitted.cost / math.sqrt(2)
        facts = {"ended": "converged" if fitted.converged else "limit", "n_steps": fitted.n_iter}
        # where scikit-learn's squared penalty is as steep at the optimum, so that it has the same one
        facts["sklearn_c"] = float(np.linalg.norm(weight)) / slope / len(fold.train)
        found.append(Fitted(weight, float(fitted.bias[1] - fitted.bias[0]), facts))
    return found


def _sklearn(scaled: bool, cost: float | None) -> Callable:
    def fit(features: np.ndarray, labels: np.ndarray, folds: list[Fold], settings: Probe, _: str) -> list[Fitted]:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        found = []
        for fold in folds:
            x, y = features[fold.train].astype(np.float64), labels[fold.train]  # in float32 its L-BFGS gives up early
            scaler = StandardScaler(with_mean=scaled, with_std=scaled, copy=False).fit(x)
            model = LogisticRegression(C=cost or features.shape[1] * probe.N_CLASSES / 100, max_iter=MAX_ITER)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # said in the facts
                model.fit(scaler.transform(x), y)
            n_iter = int(model.n_iter_[0])
            weight = model.coef_[0] / (scaler.scale_ if scaled else 1)
            bias = float(model.intercept_[0]) - (float(weight @ scaler.mean_) if scaled else 0)
            facts = {"ended": "limit" if n_iter >= MAX_ITER else "converged", "n_steps": n_iter, "sklearn_c": model.C}
            found.append(Fitted(weight.astype(np.float32), bias, facts))
        return found

    return fit


def _by_steps(schedule: Schedule) -> Callable:
    def fit(features: np.ndarray, labels: np.ndarray, folds: list[Fold], settings: Probe, title: str) -> list[Fitted]:
        heads = [Head(fold.train, fold.validation, fold.generator) for fold in folds]
        train(features, labels, probe.N_CLASSES, heads, schedule, title)
        return [Fitted(head.weight[0], float(head.bias[0]), _in_epochs(head, schedule)) for head in heads]

    return fit


def _in_epochs(head: Head, schedule: Schedule) -> dict:
    """How a head's training ended, in finished epochs; the first is number 1."""
    progress, n_batches = head.progress, schedule.n_batches(len(head.train))
    n_epochs, n_more_steps = divmod(progress.n_steps, n_batches)
    ended = "limit" if progress.ended == "early" and n_more_steps else progress.ended  # part of an epoch uses up no patience
    best_epoch = max(1, progress.best_step // n_batches)
    return {"ended": ended, "n_steps": progress.n_steps, "n_epochs": n_epochs, "best_epoch": best_epoch}


MAX_ITER = 1000

EVA = Schedule(3e-4, 0.01, 256, lambda n_batches: math.ceil(PATIENCE_STEPS / n_batches), max_steps=12_500)
ADAM = Schedule(5e-5, 0.0, 8, lambda n_batches: 15, max_epochs=100, optimizer="Adam", is_balanced=True)
ADAM_FAST = replace(ADAM, learning_rate=1e-3)

ESTIMATORS: Mapping[str, Callable[..., list[Fitted]]] = {
    "uni": _uni,
    "sklearn_scaled": _sklearn(scaled=True, cost=1.0),
    "sklearn_unis_c": _sklearn(scaled=False, cost=None),
    "eva": _by_steps(EVA),
    "early_stopped_adam": _by_steps(ADAM),
    "early_stopped_adam_fast": _by_steps(ADAM_FAST),
}


# ---- the audit ----


@functools.cache
def _descriptions() -> str:
    return resources.files("mfcore.training").joinpath("estimators.yaml").read_text(encoding="utf-8")


def described() -> dict[str, dict]:
    """Every estimator in words, by name: what decides an audit, besides its options and seed.

    In words but for ``weighs_classes`` and ``uses_validation``.
    """
    return yaml.safe_load(_descriptions())


def audit(material: probe.Material, run: store.Run, seed: int, options: Probe) -> store.Run:
    """Fit and test every estimator on one encoder's embeddings, at every size of the splits; fills and finishes ``run``.

    Leaves ``predictions.parquet`` (as `splits.predictions`, with ``estimator``) and ``fits.csv`` (see `load_fits`). All folds
    of an estimator at a size are fitted together and kept when they are done, so that a kill loses these. Cross-domain units
    are left out. Raises ValueError, naming up to ten units, where a training set lacks a class.
    """
    units = [unit for unit in splits.units(material.splits) if unit.train_domain == splits.ALL]
    bad = [unit.name for unit in units if len(np.unique(material.labels[material.rows(unit, "train")])) < 2]
    if bad:
        raise ValueError(f"{len(bad)} training sets lack a class: {', '.join(bad[:10])}; raise the smallest of splits.sizes")
    sizes = material.splits.loc[material.splits["train_domain"] == splits.ALL, "size"].unique().tolist()
    groups = [(name, size) for size in sizes for name in ESTIMATORS]
    for name, size in tqdm(groups, desc=f"audit {run.identity['name']}", unit="group"):
        if not run.unit_file(_group(name, size)).is_file():
            _fit_group(material, run, seed, options, name, [unit for unit in units if unit.size == size])
    files = [run.unit_file(_group(name, size)) for name, size in groups]
    store.write_parquet(
        run.path("predictions.parquet"), pd.concat([store.read_parquet(file) for file in files], ignore_index=True)
    )
    fits = pd.DataFrame([row for file in files for row in store.read_json(file.with_suffix(".json"))["fits"]])
    store.write_csv(run.path("fits.csv"), fits)
    return run.finish(["predictions.parquet", "fits.csv"], n_fits=len(fits))


def _group(estimator: str, size: float) -> str:
    return f"{estimator}-size{splits.shortest(size)}"


def _fit_group(
    material: probe.Material, run: store.Run, seed: int, options: Probe, name: str, units: list[splits.Unit]
) -> None:
    """Fit one estimator on the folds of one size, and keep what they predict."""
    stream = (seed, "probe audit", name)
    folds = [
        Fold(material.rows(unit, "train"), material.rows(unit, "val"), streams.generator(*stream, unit.fold, unit.size))
        for unit in units
    ]
    begun = time.monotonic()
    fitted = ESTIMATORS[name](
        material.features, material.labels, folds, options, f"{name}, size {splits.shortest(units[0].size)}"
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
