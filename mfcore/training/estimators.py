"""Published ways to fit a linear head on frozen embeddings, each with what it is in words, and the
probe audit by all of them.

Published scores of linear probes differ in the encoder and in how the head was fitted; in the audit
only the latter differs. All see the same embeddings and splits. What a description says is what the
function does; it is kept with the results, and the supplement prints it from there.
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
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from mfcore import store, streams
from mfcore.data import splits
from mfcore.measures import binary
from mfcore.training import probe
from mfcore.training.heads import Head, Schedule, train
from mfcore.training.options import Probe

# eva's patience in steps: BACH 1250 epochs of 2, CRC 7 of 391, PCam 3 of 1024
PATIENCE_STEPS = 2500
MAX_ITER = 1000  # of scikit-learn's L-BFGS


@dataclass(frozen=True)
class Fitted:
    """A fitted head: the logit of class 1 is ``features @ weight + bias``. facts: how the fit
    ended, plain data."""

    weight: np.ndarray
    bias: float
    facts: dict


def _uni(
    features: np.ndarray, labels: np.ndarray, heads: list[Head], settings: Probe, _: str
) -> list[Fitted]:
    all_fitted = []
    for head in heads:
        fitted = probe.fit(features, labels, settings.cost, settings.max_iter, head.train)
        weight, bias = (both[1] - both[0] for both in (fitted.weight, fitted.bias))
        slope = 0.5 / fitted.cost / math.sqrt(2)
        facts = {
            "ended": "converged" if fitted.converged else "limit",
            "n_steps": fitted.n_iter,
            # where scikit-learn's squared penalty is as steep at the optimum, so that it has the
            # same one
            "sklearn_c": float(np.linalg.norm(weight)) / slope / len(head.train),
        }
        all_fitted.append(Fitted(weight, float(bias), facts))
    return all_fitted


def _sklearn(scaled: bool, cost: float | None) -> Callable[..., list[Fitted]]:
    def fit(
        features: np.ndarray, labels: np.ndarray, heads: list[Head], settings: Probe, _: str
    ) -> list[Fitted]:
        all_fitted, unis_cost = [], features.shape[1] * probe.N_CLASSES / 100
        for head in heads:
            # In float32, scikit-learn's L-BFGS gives up early.
            x, y = features[head.train].astype(np.float64), labels[head.train]
            scaler = StandardScaler(with_mean=scaled, with_std=scaled, copy=False).fit(x)
            model = LogisticRegression(C=cost or unis_cost, max_iter=MAX_ITER)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # said in the facts
                model.fit(scaler.transform(x), y)
            n_iter, weight, bias = int(model.n_iter_[0]), model.coef_[0], float(model.intercept_[0])
            if scaled:
                weight = weight / scaler.scale_
                bias -= float(weight @ scaler.mean_)
            ended = "limit" if n_iter >= MAX_ITER else "converged"
            facts = {"ended": ended, "n_steps": n_iter, "sklearn_c": model.C}
            all_fitted.append(Fitted(weight.astype(np.float32), bias, facts))
        return all_fitted

    return fit


def _by_steps(schedule: Schedule) -> Callable[..., list[Fitted]]:
    def fit(
        features: np.ndarray, labels: np.ndarray, heads: list[Head], settings: Probe, title: str
    ) -> list[Fitted]:
        train(features, labels, probe.N_CLASSES, heads, schedule, title)
        return [
            Fitted(head.weight[0], float(head.bias[0]), _in_epochs(head, schedule))
            for head in heads
        ]

    return fit


def _in_epochs(head: Head, schedule: Schedule) -> dict:
    """How a head's training ended, in finished epochs; the first is number 1."""
    progress, n_batches = head.progress, schedule.n_batches(len(head.train))
    n_epochs, n_more_steps = divmod(progress.n_steps, n_batches)
    ended = progress.ended
    if ended == "early" and n_more_steps:  # part of an epoch uses up no patience
        ended = "limit"
    best_epoch = max(1, progress.best_step // n_batches)
    return {
        "ended": ended,
        "n_steps": progress.n_steps,
        "n_epochs": n_epochs,
        "best_epoch": best_epoch,
    }


EVA = Schedule(
    3e-4,
    0.01,
    256,
    lambda n_batches: math.ceil(PATIENCE_STEPS / n_batches),
    max_steps=12_500,
)
ADAM = Schedule(
    5e-5, 0.0, 8, lambda n_batches: 15, max_epochs=100, optimizer="Adam", is_balanced=True
)
ADAM_FAST = replace(ADAM, learning_rate=1e-3)

# Name -> fits the heads of some folds; called with features, labels, heads, options and a title.
ESTIMATORS: Mapping[str, Callable[..., list[Fitted]]] = {
    "uni": _uni,
    "sklearn_scaled": _sklearn(scaled=True, cost=1.0),
    "sklearn_unis_c": _sklearn(scaled=False, cost=None),
    "eva": _by_steps(EVA),
    "early_stopped_adam": _by_steps(ADAM),
    "early_stopped_adam_fast": _by_steps(ADAM_FAST),
}


@functools.cache
def described() -> dict[str, dict]:
    """Every estimator in words, by name: what decides an audit, besides its options and seed.

    In words but for ``weighs_classes`` and ``uses_validation``.
    """
    file = resources.files("mfcore.training") / "estimators.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8"))


# ---- the audit ----


def audit(material: probe.Material, run: store.Run, seed: int, options: Probe) -> store.Run:
    """Fit and test every estimator on one encoder's embeddings, at every size of the splits; fills
    and finishes ``run``.

    Leaves ``predictions.parquet`` (as `splits.predictions`, with ``estimator``) and ``fits.csv``
    (see `load_fits`). All folds of an estimator at a size are fitted together and kept when they
    are done, so that a kill loses these. Cross-domain units are left out.
    """
    table = material.splits
    units = [unit for unit in splits.units(table) if unit.train_domain == splits.ALL]
    sizes = table.loc[table["train_domain"] == splits.ALL, "size"].unique()
    files = {
        (name, size): run.unit_file(f"{name}-size{splits.shortest(size)}")
        for size in sizes
        for name in ESTIMATORS
    }
    progress = tqdm(files.items(), desc=f"audit {run.identity['name']}", unit="group")
    for (name, size), file in progress:
        if not file.is_file():
            of_size = [unit for unit in units if unit.size == size]
            rows, predictions = _fit_group(material, seed, options, name, of_size)
            store.write_json(file.with_suffix(".json"), {"fits": rows})
            store.write_parquet(file, predictions)
    predictions = pd.concat(map(store.read_parquet, files.values()), ignore_index=True)
    store.write_parquet(run.path("predictions.parquet"), predictions)
    kept = [store.read_json(file.with_suffix(".json")) for file in files.values()]
    fits = pd.DataFrame([row for each in kept for row in each["fits"]])
    store.write_csv(run.path("fits.csv"), fits)
    return run.finish(["predictions.parquet", "fits.csv"], n_fits=len(fits))


def _fit_group(
    material: probe.Material, seed: int, options: Probe, name: str, units: list[splits.Unit]
) -> tuple[list[dict], pd.DataFrame]:
    """Fit one estimator on the folds of one size: how each fit ended, and what it predicts."""
    features, labels, begun = material.features, material.labels, time.monotonic()
    heads = [
        Head(
            material.rows(unit, "train"),
            material.rows(unit, "val"),
            streams.generator(seed, "probe audit", name, unit.fold, unit.size),
        )
        for unit in units
    ]
    title = f"{name}, size {splits.shortest(units[0].size)}"
    all_fitted = ESTIMATORS[name](features, labels, heads, options, title)
    seconds = round((time.monotonic() - begun) / len(units), 3)
    rows, predictions = [], []
    for unit, head, fitted in zip(units, heads, all_fitted, strict=True):
        logits = (features @ fitted.weight).astype(np.float64) + fitted.bias  # (n,)
        scores, truth = expit(logits), labels[head.train]
        tested = material.predictions(unit, scores[material.rows(unit, "test")])
        predictions.append(tested.assign(estimator=name))
        rows.append(
            {
                "estimator": name,
                "fold": unit.fold,
                "size": unit.size,
                "n_train": len(head.train),
                "n_val": len(head.validation),
                "train_share": float(truth.mean()),
                "train_auroc": binary.auroc(truth, scores[head.train]),
                **fitted.facts,
                "seconds": seconds,
            }
        )
    return rows, pd.concat(predictions, ignore_index=True)


def load_fits(run: store.Run) -> pd.DataFrame:
    """How each fit ended: ``estimator, fold, size, n_train, n_val, train_share, train_auroc, ended,
    n_steps, sklearn_c, n_epochs, best_epoch, seconds``.

    train_share: of class 1 among the training patches; train_auroc: on these patches themselves.
    ended: "converged", "early" (stopped by validation) or "limit", with a reason where validation
    couldn't tell. n_steps: iterations of L-BFGS or steps on a batch. sklearn_c: scikit-learn's C,
    of UNI's the one with which it has the same minimum. seconds: a fold's share.
    """
    return pd.read_csv(run.path("fits.csv"))
