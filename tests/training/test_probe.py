"""The probe: its optimum against independent solvers, and that it isn't the estimator it is mistaken for."""

import math
import tracemalloc

import made_embeddings
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from mfcore import store
from mfcore.data import splits
from mfcore.data.splits_draw import Scheme
from mfcore.measures import binary
from mfcore.study import arms as study_arms
from mfcore.training import probe
from mfcore.training.options import Probe


def problem(seed, n=200, n_dims=12, shift=0.8):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    features = rng.normal(size=(n, n_dims)) + shift * labels[:, None] * rng.normal(size=n_dims)
    return features.astype(np.float32), labels


def objective(parameters, features, labels, cost):
    """Mean cross-entropy + 0.5 / cost * ||W|| and its gradient, in float64 from the formula; parameters hold W, then b."""
    n_dims = features.shape[1]
    weight, bias = parameters[: 2 * n_dims].reshape(2, n_dims), parameters[2 * n_dims :]
    logits = features.astype(np.float64) @ weight.T + bias
    logits -= logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    norm = np.sqrt((weight**2).sum())
    excess = (np.exp(log_p) - np.eye(2)[labels]) / len(labels)  # (n, 2)
    by_weight = excess.T @ features + 0.5 / cost * weight / norm
    value = -log_p[np.arange(len(labels)), labels].mean() + 0.5 / cost * norm
    return value, np.concatenate([by_weight.ravel(), excess.sum(axis=0)])


@pytest.mark.parametrize(
    ("seed", "n", "n_dims", "shift"), [(0, 300, 192, 0.1), (1, 60, 200, 0.2), (2, 500, 150, 0.2), (3, 13, 150, 0.5)]
)
def test_optimum_agrees_with_an_independent_solver(seed, n, n_dims, shift):
    features, labels = problem(seed, n, n_dims, shift)
    found = probe.fit(features, labels)
    assert found.converged and found.cost == pytest.approx(n_dims * 2 / 100)
    start = np.random.default_rng(seed).normal(scale=0.1, size=2 * n_dims + 2)  # not zero: the norm has no gradient there
    best = minimize(
        objective, start, (features, labels, found.cost), method="BFGS", jac=True, options={"gtol": 1e-8, "maxiter": 20000}
    )
    mine = np.concatenate([found.weight.ravel(), found.bias])
    assert objective(mine, features, labels, found.cost)[0] <= best.fun + 1e-6
    assert found.objective == pytest.approx(best.fun, abs=1e-6)
    weight, bias = best.x[: 2 * n_dims].reshape(2, n_dims), best.x[2 * n_dims :]
    independent = 1 / (1 + np.exp(-((features @ (weight[1] - weight[0])) + bias[1] - bias[0])))
    assert np.abs(found.predict(features) - independent).max() < 1e-3


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


@pytest.mark.parametrize(("n", "n_dims"), [(60, 300), (1282, 320)])
def test_it_ends_no_higher_than_the_published_solver_and_ranks_alike(n, n_dims):
    published = made_embeddings.benchmark("probe")
    features, labels = published.make_features(3, 2 * n, n_dims)
    weight, bias, _ = published.published_fit(features[:n], labels[:n])
    found = probe.fit(features[:n], labels[:n])
    theirs = published.objective(features[:n], labels[:n], weight, bias)
    mine = published.objective(features[:n], labels[:n], found.weight, found.bias)
    assert mine <= theirs * (1 + 1e-6) and found.objective == pytest.approx(mine, rel=1e-6)
    scores = 1 / (1 + np.exp(-(features[n:] @ (weight[1] - weight[0]) + bias[1] - bias[0])))
    assert binary.auroc(labels[n:], found.predict(features[n:])) == pytest.approx(binary.auroc(labels[n:], scores), abs=1e-4)


def test_scikit_learn_finds_it_where_its_squared_penalty_is_as_steep():
    """At the optimum the slope of C * sum + 0.5 ||w||^2 is that of mean + slope ||w|| for one C, so that both end there."""
    features, labels = problem(9, n=400, n_dims=100, shift=0.3)
    found = probe.fit(features, labels)
    w = (found.weight[1] - found.weight[0]).astype(np.float64)
    cost = np.linalg.norm(w) / (0.5 / found.cost / math.sqrt(2)) / len(labels)
    same = LogisticRegression(C=cost, tol=1e-10, max_iter=10000).fit(features.astype(np.float64), labels)
    assert np.abs(same.coef_[0] - w).max() < 1e-3 * np.abs(w).max()
    assert np.abs(found.predict(features) - same.predict_proba(features)[:, 1]).max() < 1e-4


def test_where_no_weights_are_worth_their_penalty_they_are_zero_exactly():
    features, labels = problem(6, n=500, n_dims=4)
    labels[:200] = 1
    found = probe.fit(features, labels, cost=1e-3)
    prior = labels.mean()
    assert not found.weight.any() and found.converged and found.residual == 0
    assert found.predict(features) == pytest.approx(prior)
    assert found.objective == pytest.approx(-prior * np.log(prior) - (1 - prior) * np.log(1 - prior))
    published = made_embeddings.benchmark("probe")
    weight, bias, _ = published.published_fit(features, labels)  # at the usual cost of 0.08 it doesn't end higher either
    mine = probe.fit(features, labels)
    theirs = published.objective(features, labels, weight, bias)
    assert published.objective(features, labels, mine.weight, mine.bias) <= theirs * (1 + 1e-6)


@pytest.mark.parametrize("times", [1.001, 0.999])
def test_the_kink_at_zero_is_told_from_a_minimum_close_to_it(times):
    features, labels = problem(10, n=300, n_dims=20)
    centred = features - features.mean(axis=0)
    slope = np.linalg.norm(centred.T.astype(np.float64) @ (labels.mean() - labels)) / len(labels)
    weight, _, _, n_iter, residual = probe.solve(centred, labels, slope * times, 1000)
    assert (n_iter == 0) == (times > 1) and residual < 1e-3
    assert np.linalg.norm(weight) < 0.1


def test_a_penalty_that_leaves_no_weight_is_said(tmp_path):
    """Embeddings of length 1, as image-text models give: separable, and worth less than their penalty."""
    features, labels = problem(3, n=400, n_dims=64, shift=1.0)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    run = made_embeddings.write(tmp_path, features.astype(np.float32), labels)
    with pytest.warns(UserWarning, match="in 6 of 6 fits the penalty leaves no weight, .* probe.cost, raised, weakens"):
        study_arms.fit_probe(made_embeddings.STUDY, run, tmp_path)


def test_features_that_are_not_finite_have_no_score():
    features, labels = problem(4)
    fitted = probe.fit(features, labels)
    features[3, 2] = np.nan
    with pytest.raises(ValueError, match="1 rows of features aren't finite, the first is row 3"):
        fitted.predict(features)


def test_features_without_variance_give_the_share_of_class_1():
    labels = np.array([0, 1, 1, 0, 1, 1, 1, 0])
    assert probe.fit(np.full((8, 3), 7.3, np.float32), labels).predict(np.ones((2, 3), np.float32)) == pytest.approx(5 / 8)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_features_of_any_unit_can_be_fitted(unit):
    features, labels = problem(11, n=200, n_dims=30)
    there, here = probe.fit(features * np.float32(unit), labels, cost=0.6 / unit), probe.fit(features, labels, cost=0.6)
    assert there.converged and there.objective == pytest.approx(here.objective, rel=1e-5)


def test_a_fit_that_stops_short_of_the_optimum_says_so():
    assert not probe.fit(*problem(0, n_dims=300), max_iter=2).converged


def test_rows_choose_the_training_set_and_no_more_than_that_is_copied():
    features, labels = problem(12, n=4000, n_dims=500)
    rows = np.arange(0, 4000, 2)
    alone = probe.fit(features[rows], labels[rows])
    tracemalloc.start()
    found = probe.fit(features, labels, rows=rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(found.weight, alone.weight)
    assert peak < 1.6 * features[rows].nbytes  # the copy, and what L-BFGS keeps


def test_it_is_deterministic():
    features, labels = problem(7)
    assert np.array_equal(probe.fit(features, labels).weight, probe.fit(features, labels).weight)


def test_probes_are_fitted_without_a_study(tmp_path):
    """What a library user does: embeddings, a label table, a scheme to split by, and a run to fill."""
    features, labels = problem(15, n=120)
    table = pd.DataFrame({"patch_id": np.arange(120), "label": labels, "domain": "d", "slide_id": "s", "case_id": "s"})
    made = store.open_run(tmp_path, "embeddings", "made", {}, {})
    with made_embeddings.h5py.File(made.path("embeddings.h5"), "w") as out:
        out["features"], out["patch_id"] = features, np.arange(120)
    made.finish(["embeddings.h5"])
    drawn = splits.make(table, Scheme(split_by="annotation", n_folds=2, sizes=(1.0,), by_domain=False))
    run = probe.fit_units(probe.read(made, table, drawn), store.open_run(tmp_path, "probe", "made", {}, {}), Probe(cost=100.0))
    assert probe.load_fits(run)["unit"].tolist() == ["all-fold0-size1", "all-fold1-size1"]
    tested = pd.read_parquet(run.path("predictions.parquet"))
    for unit in splits.units(drawn):
        ids = splits.select(drawn, unit)
        fitted = probe.fit(features, labels, 100.0, rows=ids["train"])
        mine = tested[tested["fold"] == unit.fold]
        assert mine["patch_id"].tolist() == ids["test"].tolist()
        np.testing.assert_array_equal(mine["score"], fitted.predict(features)[ids["test"]])


@pytest.fixture
def embeddings(tmp_path):
    """The folder of a finished study's results and its run of embeddings."""
    features, labels = problem(14, n=400, n_dims=200, shift=0.2)
    return tmp_path, made_embeddings.write(tmp_path, features, labels)


def test_a_study_is_fitted_in_one_call_each_unit_kept_as_it_is_done(embeddings, monkeypatch):
    folder, run = embeddings
    fit, seen = probe.fit, []

    def killed(*arguments):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(1)
        return fit(*arguments)

    monkeypatch.setattr(probe, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        study_arms.fit_probe(made_embeddings.STUDY, run, folder)
    monkeypatch.setattr(probe, "fit", lambda *arguments: (seen.append(1), fit(*arguments))[1])
    done = study_arms.fit_probe(made_embeddings.STUDY, run, folder)
    assert len(seen) == 6, "a finished fit was made again"
    fits, predictions = probe.load_fits(done), pd.read_parquet(done.path("predictions.parquet"))
    assert len(fits) == 6 and fits["converged"].all()
    material = study_arms.probe_material(made_embeddings.STUDY, run, folder)
    assert (material.labels == material.patches["label"]).all()
    assert not set(predictions.loc[predictions["fold"] == 0, "patch_id"]) & set(
        material.splits.query("fold == 0 and role == 'train'")["patch_id"]
    )
    assert binary.auroc(predictions["label"], predictions["score"]) > 0.6


def test_embeddings_that_cannot_be_used_are_named_by_patch(embeddings):
    folder, run = embeddings
    features, patch_ids = store.read_embeddings(run)
    for name, rows, keep in (("aren't finite", [7, 9], slice(None)), ("are missing", [], slice(2, None))):
        broken = features.copy()
        broken[rows, 0] = np.inf
        with made_embeddings.h5py.File(run.path("embeddings.h5"), "w") as out:
            out["features"], out["patch_id"] = broken[keep], patch_ids[keep]
        named = [107, 109] if rows else [100, 101]
        with pytest.raises(store.StoreError, match=rf"2 embeddings {name}, the first of patches \[{named[0]}, {named[1]}\]"):
            study_arms.fit_probe(made_embeddings.STUDY, run, folder)


def test_scores_of_large_features_do_not_tie():
    features, labels = problem(5, n=600)
    fitted = probe.fit(features * 1e3, labels, 1e3)
    scores = fitted.predict(60 * features * 1e3)
    logits = 60 * (features * 1e3).astype(np.float64) @ (fitted.weight[1] - fitted.weight[0]).astype(np.float64)
    assert (np.abs(logits) > 17).sum() > 10, "where float32 has no more digits"
    is_near = np.abs(logits) < 30
    assert len(np.unique(scores[is_near])) == is_near.sum()
