"""The linear probe on frozen embeddings: UNI's estimator, as Ganz et al. use it (section 3), and
nothing near it.

scikit-learn's ``LogisticRegression(C=...)`` is a different estimator: it sums the losses where this
one takes their mean, and penalises the squared norm where this one penalises the norm itself.
"""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import NearestNeighbors
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from mfcore import store
from mfcore.data import splits
from mfcore.streams import stream_seed
from mfcore.training.options import Probe

RESIDUAL_TOLERANCE = 1e-3
N_CLASSES = 2
# pairs that L-BFGS keeps, as UNI's solver does; ten need three times as many passes
N_CORRECTIONS = 100
SMALLEST_STEP = 1e-10  # of the objective, below which float32 products give no further gain


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe: ``weight`` (n_classes, n_dims) and ``bias`` (n_classes,), float32, and how
    the fit ended.

    residual: norm of the smallest subgradient of the objective where the fit ended, as a share of
    the loss's gradient at W = 0; 0 at the optimum.
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
        """Probability of class 1, float64 (n,), of features (n, n_dims).

        In float32 all scores above a logit of 17 would tie. Raises ValueError for features that
        aren't finite.
        """
        _refuse_infinite(features, np.arange(len(features)))
        scores = features @ (self.weight[1] - self.weight[0])  # (n,)
        return expit(scores.astype(np.float64) + (self.bias[1] - self.bias[0]))


def fit(
    features: np.ndarray,
    labels: np.ndarray | Sequence[int],
    cost: float | None = None,
    max_iter: int = 1000,
    rows: np.ndarray | None = None,
) -> LinearProbe:
    """Fit the probe.

    Minimises ``mean cross-entropy + 1 / cost * 0.5 * ||W||`` over weights W (2, n_dims) and an
    unpenalised bias, with the Frobenius norm not squared; cost is ``n_dims * n_classes / 100``
    unless given (Chen et al. 2024, UNI's released evaluation; facts of the released code of Ganz et
    al.). Where the penalty is so strong that the optimum is W = 0 (few dimensions, few patches)
    that is what it gives, and every patch scores the share of class 1.

    features: float32 (n, n_dims), finite, used as they are; labels: (n,), 0 or 1, both there. rows:
    which of them to fit on, int (n_train,), all unless given; memory is taken for one copy of
    these. Raises ValueError for arrays of other shapes, one class, and features that aren't finite.
    """
    features, labels = np.asarray(features), np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"features {features.shape} and labels {labels.shape} don't belong together; expected"
            " (n, n_dims) and (n,)"
        )
    rows = np.arange(len(features)) if rows is None else rows
    if set(labels[rows]) != {0, 1}:
        raise ValueError("labels must hold both classes, 0 and 1")
    cost = features.shape[1] * N_CLASSES / 100 if cost is None else cost
    if not 0 < cost < math.inf:
        raise ValueError(f"cost is {cost}; it must be positive, or None for n_dims * 2 / 100")
    x = features[rows].astype(np.float32, copy=False)  # (n_train, n_dims), a copy
    _refuse_infinite(x, rows)
    mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)  # (n_dims,)
    x -= mean
    weight, bias, *facts = solve(x, labels[rows], 0.5 / cost / math.sqrt(2), max_iter)
    both = np.stack([-weight / 2, weight / 2]).astype(np.float32)
    biases = (np.array([-0.5, 0.5]) * (bias - weight @ mean)).astype(np.float32)
    return LinearProbe(both, biases, cost, *facts)


def _refuse_infinite(features: np.ndarray, rows: np.ndarray) -> None:
    """Raise ValueError for features (n, n_dims) that aren't finite, naming the first row."""
    if len(bad := rows[~np.isfinite(features).all(axis=1)]):
        raise ValueError(f"{len(bad)} rows of features aren't finite, the first is row {bad[0]}")


def solve(
    centred: np.ndarray, labels: np.ndarray, slope: float, max_iter: int
) -> tuple[np.ndarray, float, float, int, float]:
    """Minimise ``mean log(1 + exp(-s (x w + b))) + slope ||w||``, s = 1 for class 1 and -1 for
    class 0.

    centred: float32 (n, n_dims), each column's mean 0; labels: (n,), 0 or 1, both there. Returns w,
    float64 (n_dims,), b, the objective, the number of iterations, and the residual as `LinearProbe`
    has it. L-BFGS of SciPy, in float64 but for the products with the features.

    Three facts make this minimum that of UNI's objective, and cheap. Softmax over two classes sees
    only the difference w of the two weight vectors, and of all pairs with that difference the one
    of least norm is -w/2, w/2: one vector of norm sqrt(2) ||W|| is enough. The bias isn't
    penalised: features can be centred, which parts weights from bias. W = 0 is the minimum exactly
    if the loss's gradient there is no longer than the penalty's slope; elsewhere the objective is
    smooth, and L-BFGS from below its value at zero never meets the kink.
    """
    n, n_dims = centred.shape
    sign = np.where(labels == 1, -1.0, 1.0)

    def scores(weight: np.ndarray) -> np.ndarray:
        return (centred @ weight.astype(np.float32)).astype(np.float64)  # (n,)

    def loss(weight: np.ndarray, bias: float) -> tuple[float, np.ndarray, float]:
        margin = sign * (scores(weight) + bias)  # (n,)
        pull = sign * expit(margin)  # (n,)
        gradient = (pull.astype(np.float32) @ centred).astype(np.float64) / n  # (n_dims,)
        return float(np.logaddexp(0, margin).mean()), gradient, float(pull.mean())

    prior = float(np.mean(labels))
    bias = math.log(prior / (1 - prior))
    value, gradient, _ = loss(np.zeros(n_dims), bias)
    start = float(np.linalg.norm(gradient))
    if not start > slope:
        return np.zeros(n_dims), bias, value, 0, 0.0
    direction = -gradient / start
    # So that the first step is of the order of one, whatever the features' unit.
    scale = 1 / float(np.sqrt(np.mean(scores(direction) ** 2)))
    # The loss bends by a quarter of the scores' variance at most, so that here the objective is
    # less than at zero.
    first = 4 * (start - slope) * scale * direction

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weight = scale * parameters[:-1]
        value, gradient, by_bias = loss(weight, parameters[-1])
        norm = float(np.linalg.norm(weight))
        by_weight = scale * (gradient + slope / norm * weight)
        return value + slope * norm, np.append(by_weight, by_bias)

    options = {"maxiter": max_iter, "maxfun": 100 * max_iter, "maxcor": N_CORRECTIONS}
    options |= {"ftol": SMALLEST_STEP, "gtol": 1e-9}
    result = minimize(
        objective, np.append(first, bias), jac=True, method="L-BFGS-B", options=options
    )
    residual = float(np.linalg.norm(result.jac)) / (start * scale)
    weight, bias = scale * result.x[:-1], float(result.x[-1])
    return weight, bias, float(result.fun), int(result.nit), residual


@dataclass(frozen=True)
class Material:
    """What probes of one encoder work on; see `read`.

    features: float32 (n, n_dims); labels: int64 (n,); row_of: row of each patch id; patches: the
    label table by patch id; splits: the table of splits.
    """

    features: np.ndarray
    labels: np.ndarray
    row_of: pd.Series
    patches: pd.DataFrame
    splits: pd.DataFrame

    def rows(self, unit: splits.Unit, role: str) -> np.ndarray:
        """Rows of ``features`` that have ``role`` in ``unit``, int64, in the order of their patch
        ids.
        """
        return self.row_of.loc[splits.select(self.splits, unit)[role]].to_numpy()

    def predictions(self, unit: splits.Unit, scores: np.ndarray) -> pd.DataFrame:
        """`splits.predictions` of the unit's test patches, from their scores (n_test,)."""
        tested = splits.select(self.splits, unit)["test"]
        return splits.predictions(self.patches, unit, tested, scores)


def read(embeddings: store.Run, labels: pd.DataFrame, table: pd.DataFrame) -> Material:
    """Read the finished embeddings of one encoder; labels: of the patches, as `patches.load`;
    table: the splits.

    Raises StoreError, naming the first patches, where an embedding is missing or isn't finite.
    """
    labels = labels.set_index("patch_id")
    features, patch_ids = store.read_embeddings(embeddings)
    lacking = np.setdiff1d(table["patch_id"].unique(), patch_ids)
    finite = np.isfinite(features.sum(axis=1))
    for ids, fault in ((lacking, "are missing"), (patch_ids[~finite], "aren't finite")):
        if len(ids):
            raise store.StoreError(
                f"{embeddings.folder}: {len(ids)} embeddings {fault}, the first of patches "
                f"{ids[:10].tolist()}; remove that folder and embed again"
            )
    truth = labels.loc[patch_ids, "label"].to_numpy(np.int64)
    row_of = pd.Series(np.arange(len(patch_ids)), index=patch_ids)
    return Material(features, truth, row_of, labels, table)


def fit_units(material: Material, run: store.Run, options: Probe) -> store.Run:
    """Fit and test the probe on every unit of the splits; fills and finishes ``run``, whose name
    the progress shows.

    Writes ``predictions.parquet``, ``fits.csv`` and one ``.npz`` (weight, bias) a unit; each unit's
    result is kept when it is done, so that a kill loses one fit.
    """

    def score(unit: splits.Unit) -> np.ndarray:
        train, begun = material.rows(unit, "train"), time.monotonic()
        probe = fit(material.features, material.labels, options.cost, options.max_iter, train)
        facts = {
            "unit": unit.name,
            "n_train": len(train),
            "n_iter": probe.n_iter,
            "residual": probe.residual,
            "converged": probe.converged,
            "objective": probe.objective,
            "cost": probe.cost,
            "seconds": round(time.monotonic() - begun, 3),
        }
        store.write_json(run.unit_file(unit.name, ".json"), facts)
        with store.replacing(run.unit_file(unit.name, ".npz")) as aside, aside.open("wb") as out:
            np.savez(out, weight=probe.weight, bias=probe.bias)
        return probe.predict(material.features)[material.rows(unit, "test")]

    units = _test_units(material, run, score)
    fits = pd.DataFrame([store.read_json(run.unit_file(unit.name, ".json")) for unit in units])
    store.write_csv(run.path("fits.csv"), fits)
    if n_zero := int((fits["n_iter"] == 0).sum()):
        warnings.warn(
            f"{run.identity['name']}: in {n_zero} of {len(fits)} fits the penalty leaves no weight,"
            " so that every patch has one score: the embeddings have few dimensions or vary little,"
            " as those of length 1 do; probe.cost, raised, weakens the penalty",
            stacklevel=2,
        )
    n_not_converged = int((~fits["converged"]).sum())
    files = ["predictions.parquet", "fits.csv"]
    return run.finish(files, n_fits=len(fits), n_not_converged=n_not_converged)


def _test_units(
    material: Material, run: store.Run, score: Callable[[splits.Unit], np.ndarray]
) -> list[splits.Unit]:
    """Write the predictions of every unit from the scores of its test patches, each unit's as it is
    done; returns the units."""
    units = splits.units(material.splits)
    for unit in tqdm(units, desc=f"probe {run.identity['name']}", unit="fit"):
        if not run.unit_file(unit.name).is_file():
            store.write_parquet(run.unit_file(unit.name), material.predictions(unit, score(unit)))
    tables = [store.read_parquet(run.unit_file(unit.name)) for unit in units]
    store.write_parquet(run.path("predictions.parquet"), pd.concat(tables, ignore_index=True))
    return units


def load_fits(run: store.Run) -> pd.DataFrame:
    """How each fit of a finished run ended: ``unit, n_train, n_iter, residual, converged,
    objective, cost, seconds``."""
    return pd.read_csv(run.path("fits.csv"))


def load_head(run: store.Run, unit: str) -> LinearProbe:
    """The probe that a finished run of `fit_units` fitted on the unit of that name."""
    fit = store.read_json(run.unit_file(unit, ".json"))
    facts = (fit[name] for name in ("cost", "objective", "n_iter", "residual"))
    with np.load(run.unit_file(unit, ".npz")) as head:
        return LinearProbe(head["weight"], head["bias"], *facts)


# ---- probes that are not linear ----

N_NEIGHBOURS = 20


def _centred(known: np.ndarray, asked: np.ndarray) -> list[np.ndarray]:
    """Both less the mean of the known features, each row of length 1: SimpleShot's CL2N."""
    moved = [features - known.mean(axis=0) for features in (known, asked)]
    return [each / np.linalg.norm(each, axis=1, keepdims=True).clip(1e-12) for each in moved]


def _knn(known: np.ndarray, labels: np.ndarray, asked: np.ndarray, seed: int) -> np.ndarray:
    """Share of class 1 among the 20 nearest training patches, as UNI's evaluation has it (CL2N)."""
    known, asked = _centred(known, asked)
    neighbours = NearestNeighbors(n_neighbors=min(N_NEIGHBOURS, len(known))).fit(known)
    return labels[neighbours.kneighbors(asked, return_distance=False)].mean(axis=1)


def _simpleshot(known: np.ndarray, labels: np.ndarray, asked: np.ndarray, seed: int) -> np.ndarray:
    """Nearest centroid (Wang et al. 2019, CL2N): 0.5 where both classes' are as far."""
    known, asked = _centred(known, asked)
    centroids = [known[labels == label].mean(axis=0) for label in (0, 1)]
    far = [np.linalg.norm(asked - centroid, axis=1) for centroid in centroids]
    return far[0] / (far[0] + far[1])


def _mlp(known: np.ndarray, labels: np.ndarray, asked: np.ndarray, seed: int) -> np.ndarray:
    """One hidden layer of 128 on standardised features, Adam, 200 epochs at most (scikit-learn)."""
    model = make_pipeline(StandardScaler(), MLPClassifier(128, max_iter=200, random_state=seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(known, labels).predict_proba(asked)[:, 1]


# Called with the training features and labels, the features to score, and a seed.
METHODS = {"knn": _knn, "simpleshot": _simpleshot, "mlp": _mlp}


def score_by(
    method: str, material: Material, unit: splits.Unit, asked: np.ndarray, seed: int
) -> np.ndarray:
    """Scores of class 1 (n,) of features asked for (n, n_dims) by a probe of METHODS that is fitted
    on a unit's training patches.
    """
    train = material.rows(unit, "train")
    number = stream_seed(seed, "probe", method, unit.title) % 2**32
    return METHODS[method](material.features[train], material.labels[train], asked, number)


def fit_others(material: Material, run: store.Run, method: str, seed: int) -> store.Run:
    """Fit and test a probe of METHODS on every unit of the splits; fills and finishes ``run``.

    Writes ``predictions.parquet``; a kill loses one fit.
    """

    def score(unit: splits.Unit) -> np.ndarray:
        asked = material.features[material.rows(unit, "test")]
        return score_by(method, material, unit, asked, seed)

    units = _test_units(material, run, score)
    return run.finish(["predictions.parquet"], n_fits=len(units))
