"""The linear probe on frozen embeddings: UNI's estimator, as Ganz et al. use it (section 3), and nothing near it.

scikit-learn's ``LogisticRegression(C=...)`` is a different estimator: it sums the losses where this one takes their mean,
and penalises the squared norm where this one penalises the norm itself.
"""

import io
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from mfcore import patches, splits, store
from mfcore.config import Study, as_dict

RESIDUAL_TOLERANCE = 1e-2  # of a gradient whose norm at the start is of the features' order


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe: ``weight`` (n_classes, n_dims) and ``bias`` (n_classes,), float32, and how the fit ended.

    residual: norm of the smallest subgradient of the objective where the fit ended; 0 at the optimum.
    """

    weight: np.ndarray
    bias: np.ndarray
    cost: float
    objective: float
    n_iter: int
    residual: float

    @property
    def converged(self) -> bool:
        """Whether the fit ended at the optimum, as far as float32 tells."""
        return self.residual < RESIDUAL_TOLERANCE

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Probability of class 1, float32 (n,), of features (n, n_dims)."""
        logits = features @ self.weight.T + self.bias  # (n, n_classes)
        return (1 / (1 + np.exp(np.clip(logits[:, 0] - logits[:, 1], -80, 80)))).astype(np.float32)


def fit(features: np.ndarray, labels: np.ndarray, cost: float | None = None, max_iter: int = 1000) -> LinearProbe:
    """Fit the probe.

    Minimises ``mean cross-entropy + 1 / cost * 0.5 * ||W||`` over weights W (2, n_dims) and an unpenalised bias, with the
    Frobenius norm not squared, by L-BFGS with a strong-Wolfe line search from zero; cost is ``n_dims * n_classes / 100``
    unless given (Chen et al. 2024, UNI's released evaluation; facts of the released code of Ganz et al.). Where the penalty
    is so strong that the optimum is W = 0 (few dimensions), this solver can stop short of it, as theirs does; ``residual``
    tells.

    features: float32 (n, n_dims), used as they are; labels: (n,), 0 or 1. Raises ValueError where a feature isn't finite,
    lengths differ, or a class is missing.
    """
    import torch

    if features.ndim != 2 or len(features) != len(labels):
        raise ValueError(
            f"features {features.shape} and labels {labels.shape} don't belong together; expected (n, n_dims) and (n,)"
        )
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{len(bad)} embeddings aren't finite, the first in row {bad[0]}; embed again or leave those patches out"
        )
    if set(np.unique(labels)) != {0, 1}:
        raise ValueError(f"labels must hold both classes, 0 and 1; these hold {sorted(set(np.unique(labels).tolist()))}")
    n_classes = 2
    cost = features.shape[1] * n_classes / 100 if cost is None else cost
    x = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))  # (n, n_dims)
    y = torch.from_numpy(np.asarray(labels, dtype=np.int64))  # (n,)
    weight = torch.zeros(n_classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(n_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=max_iter, line_search_fn="strong_wolfe")

    def objective() -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, y)
        return loss + 0.5 / cost * weight.norm(p=2)  # its gradient at W = 0 is taken as 0, as torch does

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = objective()
        value.backward()
        return value

    optimizer.step(closure)
    n_iter = int(optimizer.state[weight]["n_iter"])
    closure()
    value = float(objective().detach())
    if not np.isfinite(value):
        raise ValueError(
            f"the probe's objective became {value}; the largest feature, {np.abs(features).max():.3g}, is too large"
        )
    # At W = 0 the norm has every gradient up to its slope; the penalty takes what it can of the loss's.
    slope = float(weight.grad.norm())
    from_weights = slope if weight.abs().max() > 0 else max(0.0, slope - 0.5 / cost)
    residual = float(np.hypot(from_weights, float(bias.grad.norm())))
    return LinearProbe(weight.detach().numpy(), bias.detach().numpy(), cost, value, n_iter, residual)


def fit_study(study: Study, embeddings: store.Run, results: Path) -> store.Run:
    """Fit and test the probe on one encoder's finished embeddings, for every unit of the study's splits.

    (weights and biases by unit); each unit's result is kept when it is done, so that a kill loses one fit.
    """
    patches_run, splits_run = patches.find(study, results), splits.find(study, results)
    encoder = embeddings.identity["name"]
    inputs = {"patches": patches_run.key, "splits": splits_run.key, "embeddings": embeddings.key}
    run = store.open_run(results, "probe", encoder, as_dict(study.probe), inputs)
    if run.done:
        return run
    labels, _ = patches.load(patches_run)
    labels = labels.set_index("patch_id")
    features, patch_ids = store.read_embeddings(embeddings)
    row_of = pd.Series(np.arange(len(patch_ids)), index=patch_ids)
    table = splits.load(splits_run)
    units = splits.units(table)
    for unit in tqdm(units, desc=f"probe {encoder}", unit="fit"):
        if not run.unit_file(unit.name).is_file():
            ids = splits.select(table, unit)
            train = row_of.loc[ids["train"]].to_numpy()
            test = row_of.loc[ids["test"]].to_numpy()
            begun = time.monotonic()
            probe = fit(features[train], labels.loc[ids["train"], "label"].to_numpy(), study.probe.cost, study.probe.max_iter)
            facts = {"n_train": len(train), "n_iter": probe.n_iter, "residual": probe.residual, "converged": probe.converged}
            store.write_json(
                run.unit_file(unit.name, ".json"),
                {
                    "unit": unit.name,
                    **facts,
                    "objective": probe.objective,
                    "cost": probe.cost,
                    "seconds": round(time.monotonic() - begun, 3),
                },
            )
            head = io.BytesIO()
            np.savez(head, weight=probe.weight, bias=probe.bias)
            with store.replacing(run.unit_file(unit.name, ".npz")) as aside:
                aside.write_bytes(head.getvalue())
            scores = splits.predictions(labels, unit, ids["test"], probe.predict(features[test]))
            store.write_parquet(run.unit_file(unit.name), scores)
    predictions = pd.concat([pd.read_parquet(run.unit_file(unit.name)) for unit in units], ignore_index=True)
    store.write_parquet(run.path("predictions.parquet"), predictions)
    fits = pd.DataFrame([store.read_json(run.unit_file(unit.name, ".json")) for unit in units])
    store.write_csv(run.path("fits.csv"), fits)
    return run.finish(["predictions.parquet", "fits.csv"], n_fits=len(fits), n_not_converged=int((~fits["converged"]).sum()))


def load_fits(run: store.Run) -> pd.DataFrame:
    """How each fit of a finished run ended: ``unit, n_train, n_iter, residual, converged, objective, cost,
    seconds``."""
    return pd.read_csv(run.path("fits.csv"))
