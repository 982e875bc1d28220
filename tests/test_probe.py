"""The probe: its optimum against an independent solver, and that it isn't the estimator it is mistaken for."""

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from mfcore import probe


def problem(seed, n=200, n_dims=12, shift=0.8):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    features = rng.normal(size=(n, n_dims)) + shift * labels[:, None] * rng.normal(size=n_dims)
    return features.astype(np.float32), labels


def objective(parameters, features, labels, cost):
    """Mean cross-entropy + 0.5 / cost * ||W||, written again in float64 from the formula; parameters hold W, then b."""
    n_dims = features.shape[1]
    weight, bias = parameters[: 2 * n_dims].reshape(2, n_dims), parameters[2 * n_dims :]
    logits = features.astype(np.float64) @ weight.T + bias
    logits -= logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -log_p[np.arange(len(labels)), labels].mean() + 0.5 / cost * np.sqrt((weight**2).sum())


@pytest.mark.parametrize(
    ("seed", "n", "n_dims", "shift"), [(0, 300, 192, 0.1), (1, 60, 400, 0.2), (2, 500, 150, 0.2), (3, 13, 384, 0.5)]
)
def test_optimum_agrees_with_an_independent_solver(seed, n, n_dims, shift):
    features, labels = problem(seed, n, n_dims, shift)
    found = probe.fit(features, labels)
    assert found.converged and found.cost == pytest.approx(n_dims * 2 / 100)
    start = np.random.default_rng(seed).normal(scale=0.1, size=2 * n_dims + 2)  # not zero: the norm has no gradient there
    best = minimize(
        objective, start, args=(features, labels, found.cost), method="BFGS", options={"gtol": 1e-9, "maxiter": 20000}
    )
    mine = np.concatenate([found.weight.ravel(), found.bias])
    assert objective(mine, features, labels, found.cost) <= best.fun + 1e-5
    assert found.objective == pytest.approx(best.fun, abs=1e-5)
    weight, bias = best.x[: 2 * n_dims].reshape(2, n_dims), best.x[2 * n_dims :]
    independent = 1 / (1 + np.exp(-((features @ (weight[1] - weight[0])) + bias[1] - bias[0])))
    assert np.abs(found.predict(features) - independent).max() < 0.01


def test_it_is_neither_scikit_learns_estimator_nor_the_squared_norm():
    features, labels = problem(4, n=300, n_dims=50, shift=0.3)
    found = probe.fit(features, labels)
    other = LogisticRegression(C=found.cost, max_iter=10000).fit(features, labels).predict_proba(features)[:, 1]
    assert np.abs(found.predict(features) - other).max() > 0.05


def test_a_weak_penalty_separates_and_the_bias_is_not_penalised():
    features, labels = problem(5, n_dims=200, shift=0.2)
    sharp = probe.fit(features, labels, cost=1e4)
    assert ((sharp.predict(features) > 0.5) == labels).mean() > 0.95
    moved = features + 5.0  # what a shift of the features takes, the bias gives back
    assert probe.fit(moved, labels).objective == pytest.approx(probe.fit(features, labels).objective, abs=1e-3)


def test_a_fit_that_stops_short_of_the_optimum_says_so():
    features, labels = problem(6, n=500, n_dims=4)
    labels[:200] = 1  # unbalanced: the optimum under this penalty is W = 0 with the bias at the prior's log odds
    short = probe.fit(features, labels, cost=1e-3)
    prior = np.log(labels.mean() / (1 - labels.mean()))
    assert short.converged == (abs(short.bias[1] - short.bias[0] - prior) < 0.05)
    assert not probe.fit(*problem(0, n_dims=300), max_iter=2).converged


def test_it_is_deterministic():
    features, labels = problem(7)
    assert np.array_equal(probe.fit(features, labels).weight, probe.fit(features, labels).weight)


def test_bad_input_is_refused_by_row_and_name():
    features, labels = problem(8)
    broken = features.copy()
    broken[17, 3] = np.nan
    with pytest.raises(ValueError, match="first in row 17"):
        probe.fit(broken, labels)
    with pytest.raises(ValueError, match="both classes"):
        probe.fit(features, np.zeros(len(labels), dtype=int))
    with pytest.raises(ValueError, match="belong together"):
        probe.fit(features, labels[:-1])
