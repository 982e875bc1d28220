"""The audit: each estimator is what its description says, on one set of splits, and a kill loses one group."""

import dataclasses

import made_embeddings
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mfcore import store
from mfcore.measures import binary
from mfcore.study import arms as study_arms, config
from mfcore.training import estimators
from mfcore.training.heads import Schedule

STUDY = dataclasses.replace(made_embeddings.STUDY, probe_audit=("made",))


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Schedules of a few steps; the full ones take half a minute."""
    adam = {"max_epochs": 3}
    for name, full, change in (
        ("eva", estimators.EVA, {"max_steps": 40}),
        ("early_stopped_adam", estimators.ADAM, adam),
        ("early_stopped_adam_fast", estimators.ADAM_FAST, adam),
    ):
        schedule: Schedule = dataclasses.replace(full, **change)
        monkeypatch.setitem(estimators.SCHEDULES, name, schedule)


@pytest.fixture
def embeddings(tmp_path):
    """The folder of a study's results and its finished embeddings."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    features = (3 * rng.normal(size=(400, 150)) + 0.4 * labels[:, None] + 2).astype(np.float32)
    return tmp_path, made_embeddings.write(tmp_path, features, labels)


def test_every_estimator_predicts_every_test_patch_once(embeddings):
    folder, run = embeddings
    audit = study_arms.audit_probe(STUDY, run, folder)
    assert audit.folder.name.startswith("probes-made-")
    predictions, fits = pd.read_parquet(audit.path("predictions.parquet")), estimators.load_fits(audit)
    counts = predictions.groupby(["size", "fold", "estimator"]).size().unstack("estimator")
    assert list(counts.columns) == sorted([*estimators.SOLVERS, *estimators.SCHEDULES]) and (counts.nunique(axis=1) == 1).all()
    assert len(fits) == 6 * 3 * 2 and fits["train_share"].between(0.3, 0.7).all()
    assert (fits.loc[fits["n_epochs"].isna(), "train_auroc"] > 0.9).all() and (fits["n_val"] > 0).all()
    full = predictions[(predictions["size"] == 1) & predictions["estimator"].isin(["uni", "sklearn_scaled", "sklearn_unis_c"])]
    assert all(binary.auroc(part["label"], part["score"]) > 0.6 for _, part in full.groupby("estimator"))
    own = pd.read_parquet(study_arms.fit_probe(STUDY, run, folder).path("predictions.parquet"))
    both = own.merge(predictions[predictions["estimator"] == "uni"], on=["patch_id", "fold", "size"], validate="one_to_one")
    assert len(both) == len(own) and both["score_x"].to_numpy() == pytest.approx(both["score_y"].to_numpy(), abs=1e-6)
    assert set(audit.record["config"]["estimators"]["eva"]) >= {"title", "objective", "optimiser", "weighs_classes"}


def test_scikit_learns_are_its_own(embeddings):
    folder, run = embeddings
    material = study_arms.probe_material(STUDY, run, folder)
    predictions = pd.read_parquet(study_arms.audit_probe(STUDY, run, folder).path("predictions.parquet"))
    unit = estimators.splits.Unit("all", 1, 1.0)
    train, test = material.rows(unit, "train"), material.rows(unit, "test")
    x, y = material.features.astype(np.float64), material.labels
    models = {
        "sklearn_scaled": make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        "sklearn_unis_c": LogisticRegression(C=150 * 2 / 100, max_iter=1000),
    }
    full = predictions[(predictions["fold"] == 1) & (predictions["size"] == 1)]
    for name, model in models.items():
        expected = model.fit(x[train], y[train]).predict_proba(x[test])[:, 1]
        assert full.loc[full["estimator"] == name, "score"].to_numpy() == pytest.approx(expected, abs=1e-5)


def test_unis_minimum_is_scikit_learns_at_the_c_that_is_given(embeddings):
    folder, run = embeddings
    material, audit = study_arms.probe_material(STUDY, run, folder), study_arms.audit_probe(STUDY, run, folder)
    fits, predictions = estimators.load_fits(audit), pd.read_parquet(audit.path("predictions.parquet"))
    row = fits.query("estimator == 'uni' and fold == 0 and size == 1").iloc[0]
    unit = estimators.splits.Unit("all", 0, 1.0)
    train, test = material.rows(unit, "train"), material.rows(unit, "test")
    x = material.features.astype(np.float64)
    model = LogisticRegression(C=row["sklearn_c"], tol=1e-9, max_iter=10000).fit(x[train], material.labels[train])
    mine = predictions.query("estimator == 'uni' and fold == 0 and size == 1")["score"].to_numpy()
    assert mine == pytest.approx(model.predict_proba(x[test])[:, 1], abs=1e-3)


def test_a_kill_loses_one_group_and_a_second_run_gives_the_same(embeddings, monkeypatch, tmp_path_factory):
    folder, run = embeddings
    monkeypatch.setattr(estimators, "SOLVERS", {"uni": estimators.SOLVERS["uni"]})
    monkeypatch.setattr(estimators, "SCHEDULES", {"eva": estimators.SCHEDULES["eva"]})
    fit, calls = estimators.train, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(*arguments)

    monkeypatch.setattr(estimators, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        study_arms.audit_probe(STUDY, run, folder)
    audit = study_arms.audit_probe(STUDY, run, folder)
    assert len(calls) == 3, "a finished group was fitted again, or an unfinished one kept"
    elsewhere = tmp_path_factory.mktemp("again")
    features, _ = store.read_embeddings(run)
    material = study_arms.probe_material(STUDY, run, folder)
    again = study_arms.audit_probe(STUDY, made_embeddings.write(elsewhere, features, material.labels), elsewhere)
    first, second = (pd.read_parquet(r.path("predictions.parquet")) for r in (audit, again))
    assert np.array_equal(first["score"], second["score"])


def test_dimensions_without_variance_and_without_number_are_met(embeddings, tmp_path_factory):
    folder, run = embeddings
    labels = study_arms.probe_material(STUDY, run, folder).labels
    flat = tmp_path_factory.mktemp("flat")
    audit = study_arms.audit_probe(STUDY, made_embeddings.write(flat, np.full((400, 8), 0.5, np.float32), labels), flat)
    scores = pd.read_parquet(audit.path("predictions.parquet")).groupby(["estimator", "fold", "size"])["score"]
    assert (scores.max() - scores.min() < 1e-6).all(), "patches that are all alike can't be told apart"
    broken = tmp_path_factory.mktemp("broken")
    features = np.ones((400, 8), np.float32)
    features[5, 2] = np.nan
    with pytest.raises(store.StoreError, match=r"1 embeddings aren't finite, the first of patches \[105\]"):
        study_arms.audit_probe(STUDY, made_embeddings.write(broken, features, labels), broken)


def test_a_study_may_audit_its_own_encoders_only(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text("name: s\ntitle: S\ndata: {source: synthetic}\nencoders: [resnet50]\nprobe_audit: [resnet50, uni]\n")
    with pytest.raises(config.ConfigError, match=r"probe_audit: \['uni'\] not among the study's \['resnet50'\]"):
        config.load_study(file)
    file.write_text(file.read_text().replace(", uni]", "]"))
    assert config.load_study(file).probe_audit == ("resnet50",)
