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
from collections.abc import Callable
from dataclasses import replace
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


# A fitted head: weight and bias, with the logit of class 1 ``features @ weight + bias``, and how
# the fit ended, plain data.
Fitted = tuple[np.ndarray, float, dict]


def _uni(features: np.ndarray, labels: np.ndarray, head: Head, settings: Probe) -> Fitted:
    fitted = probe.fit(features, labels, settings.cost, settings.max_iter, head.train)
    weight, bias = (both[1] - both[0] for both in (fitted.weight, fitted.bias))
    slope = 0.5 / fitted.cost / math.sqrt(2)
    facts = {
        "ended": "converged" if fitted.converged else "limit",
        "n_steps": fitted.n_iter,
        # where scikit-learn's squared penalty is as steep at the optimum, so that it has the same
        # one
        "sklearn_c": float(np.linalg.norm(weight)) / slope / len(head.train),
    }
    return weight, float(bias), facts


def _sklearn(
    features: np.ndarray,
    labels: np.ndarray,
    head: Head,
    settings: Probe,
    scaled: bool,
    cost: float | None,
) -> Fitted:
    # In float32, scikit-learn's L-BFGS gives up early.
    x, y = features[head.train].astype(np.float64), labels[head.train]
    scaler = StandardScaler(with_mean=scaled, with_std=scaled, copy=False).fit(x)
    cost = cost or features.shape[1] * probe.N_CLASSES / 100  # UNI's
    model = LogisticRegression(C=cost, max_iter=MAX_ITER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said in the facts
        model.fit(scaler.transform(x), y)
    n_iter, weight, bias = int(model.n_iter_[0]), model.coef_[0], float(model.intercept_[0])
    if scaled:
        weight = weight / scaler.scale_
        bias -= float(weight @ scaler.mean_)
    ended = "limit" if n_iter >= MAX_ITER else "converged"
    return weight.astype(np.float32), bias, {"ended": ended, "n_steps": n_iter, "sklearn_c": cost}


def _in_epochs(head: Head, schedule: Schedule) -> dict:
    """How a head's training ended, in finished epochs; the first is number 1."""
    progress, n_batches = head.progress, schedule.n_batches(len(head.train))
    n_epochs, n_more_steps = divmod(progress.n_steps, n_batches)
    # part of an epoch uses up no patience
    is_early = progress.ended == "early" and not n_more_steps
    return {
        "ended": "limit" if progress.ended == "early" and not is_early else progress.ended,
        "n_steps": progress.n_steps,
        "n_epochs": n_epochs,
        "best_epoch": max(1, progress.best_step // n_batches),
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

# By name, what fits a head on its rows of features and labels.
SOLVERS: dict[str, Callable[[np.ndarray, np.ndarray, Head, Probe], Fitted]] = {
    "uni": _uni,
    "sklearn_scaled": functools.partial(_sklearn, scaled=True, cost=1.0),
    "sklearn_unis_c": functools.partial(_sklearn, scaled=False, cost=None),
}
# By name, how heads are trained by steps, those of all folds together.
SCHEDULES = {"eva": EVA, "early_stopped_adam": ADAM, "early_stopped_adam_fast": ADAM_FAST}


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
    groups = [(name, size) for size in sizes for name in (*SOLVERS, *SCHEDULES)]
    predictions, fits = [], []
    for name, size in tqdm(groups, desc=f"audit {run.identity['name']}", unit="group"):
        file = run.unit_file(f"{name}-size{splits.shortest(size)}")
        if not file.is_file():
            of_size = [unit for unit in units if unit.size == size]
            rows, tested = _fit_group(material, seed, options, name, of_size)
            store.write_json(file.with_suffix(".json"), {"fits": rows})
            store.write_parquet(file, tested)
        predictions.append(store.read_parquet(file))
        fits += store.read_json(file.with_suffix(".json"))["fits"]
    predictions = pd.concat(predictions, ignore_index=True)
    store.write_parquet(run.path("predictions.parquet"), predictions)
    store.write_csv(run.path("fits.csv"), pd.DataFrame(fits))
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
    if name in SOLVERS:
        fits = [SOLVERS[name](features, labels, head, options) for head in heads]
    else:
        schedule, title = SCHEDULES[name], f"{name}, size {splits.shortest(units[0].size)}"
        train(features, labels, probe.N_CLASSES, heads, schedule, title)
        fits = [(each.weight[0], float(each.bias[0]), _in_epochs(each, schedule)) for each in heads]
    seconds = round((time.monotonic() - begun) / len(units), 3)
    rows, predictions = [], []
    for unit, head, (weight, bias, facts) in zip(units, heads, fits, strict=True):
        scores = expit((features @ weight).astype(np.float64) + bias)  # (n,)
        truth = labels[head.train]
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
                **facts,
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
