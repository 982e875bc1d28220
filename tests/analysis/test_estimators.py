"""The tables and exhibits of the probe audit, computed from the predictions."""

import dataclasses

import made_embeddings
import numpy as np
import pandas as pd
import pytest

from mfcore import store
from mfcore.analysis import estimators
from mfcore.data import patches, splits
from mfcore.measures.statistics import Folds
from mfcore.study import data as study_data
from mfcore.study.config import Data, Settings
from mfcore.study.study import Study

STUDY = dataclasses.replace(made_embeddings.STUDY, probe_audit=("made",))
FACTS = {"objective": "o", "optimiser": "p", "features": "f", "source": "s"}
ESTIMATORS = {
    name: {"title": f"<{name}>", **FACTS, "weighs_classes": steps, "uses_validation": steps}
    for name, steps in (
        ("uni", False),
        ("sklearn_unis_c", False),
        ("early_stopped_adam", True),
        ("early_stopped_adam_fast", True),
    )
}
SHIFT = {"uni": 1.5, "sklearn_unis_c": 1.4, "early_stopped_adam": 0.5, "early_stopped_adam_fast": 1.5}


def write(folder, study: Settings = STUDY) -> store.Run:
    """A finished audit whose estimators part the classes by SHIFT standard deviations; class 1 scores low but for Adam."""
    labels = np.tile([0, 0, 0, 1], 100)
    embeddings = made_embeddings.write(folder, np.ones((400, 2), np.float32), labels, study)
    splits_run = study_data.find_splits(study, folder)
    table, material = splits.load(splits_run), patches.load(study_data.find_patches(study, folder))[0].set_index("patch_id")
    config = {"probe": study.probe.linear, "seed": 42, "estimators": ESTIMATORS}
    inputs, known = {"splits": splits_run.key, "embeddings": embeddings.key}, {"probe": study.probe.linear}
    run = store.open_run(folder, "probes", "made", config, inputs, known | {"splits": splits_run.key})
    predictions, fits = [], []
    for unit in splits.units(table):
        rng, ids = np.random.default_rng(unit.fold), splits.select(table, unit)["test"]
        noise = rng.normal(size=len(ids))
        for name, facts in ESTIMATORS.items():
            logit = noise + SHIFT[name] * material.loc[ids, "label"].to_numpy() - (1 if facts["weighs_classes"] else 3)
            predictions.append(splits.predictions(material, unit, ids, 1 / (1 + np.exp(-logit))).assign(estimator=name))
            steps = {"n_epochs": 9.0, "best_epoch": 4.0} if facts["weighs_classes"] else {"sklearn_c": 0.25}
            ended = "early" if "n_epochs" in steps else "converged"
            ended = "limit" if (name, unit.fold) == ("early_stopped_adam", 0) else ended
            row = {"estimator": name, "fold": unit.fold, "size": unit.size, "n_train": 250, "n_val": 60, "train_share": 0.25}
            fits.append({**row, "train_auroc": 0.9, "ended": ended, "n_steps": 100, **steps})
    store.write_parquet(run.path("predictions.parquet"), pd.concat(predictions))
    store.write_csv(run.path("fits.csv"), pd.DataFrame(fits))
    return run.finish(["predictions.parquet", "fits.csv"])


@pytest.fixture
def found(tmp_path):
    """The scores of the made audit, and the folder that it is in."""
    return estimators.scores(write(tmp_path)), tmp_path


def by_estimator(scores: pd.DataFrame) -> dict[str, Folds]:
    full = scores[scores["size"] == 1]
    return {name: Folds(part.set_index("fold")["auroc"]) for name, part in full.groupby("estimator", sort=False)}


def test_folds_are_those_of_the_scores(found):
    run = estimators.find(Study(STUDY, found[1]), "made")
    folds, expected = estimators.folds(run, 1), by_estimator(found[0])
    assert list(folds) == list(expected) and all(folds[name].has_own_patches for name in folds)
    assert all(folds[name].values.tolist() == pytest.approx(expected[name].values.tolist()) for name in folds)


def test_the_threshold_of_who_does_not_weigh_classes_is_the_training_share(found):
    rows = estimators.table(found[0]).set_index(["estimator", "size"])
    own, weighed = rows.loc[("uni", 1.0)], rows.loc[("early_stopped_adam", 1.0)]
    assert own["balanced_accuracy"] < 0.6 < own[estimators.AT_SHARE]
    assert weighed["balanced_accuracy"] == weighed[estimators.AT_SHARE]
    assert own["ended"] == "3 converged" and weighed["ended"] == "1 limit, 2 early" and own["n_folds"] == 3
    one = found[0].query("estimator == 'uni' and size == 1")
    assert own["auroc"] == pytest.approx(one["auroc"].mean()) and own["auroc_sd"] == pytest.approx(one["auroc"].std())


def test_differences_are_of_the_scores(found):
    scores = found[0]
    rows = estimators.differences(scores, by_estimator(scores)).set_index("estimator")
    assert rows.loc["early_stopped_adam", "high"] < 0 and estimators.OWN not in rows.index
    alike = scores.assign(auroc=0.7 + 0.01 * scores["fold"])
    assert estimators.differences(alike, by_estimator(alike))["difference"].tolist() == pytest.approx([0, 0, 0])


def test_the_exhibits_have_every_estimator_and_say_synthetic(found):
    study = dataclasses.replace(STUDY, encoders=("made", "gone"), probe_audit=("made", "gone"))
    definitions, made = estimators.audits(Study(study, found[1]))
    assert definitions.table["estimator"].tolist() == [f"<{name}>" for name in ESTIMATORS] == made.table["estimator"].tolist()
    assert definitions.table["patches used"].iloc[0] == "training only" and made.name == "03_estimators_made"
    shown = made.table.set_index("estimator")["less this study's probe"]
    assert shown["<uni>"] == "–" and shown["<early_stopped_adam>"].startswith("-0.") and "synthetic data" in made.caption


def test_published_scores_stand_beside_those_of_amibr_alone(tmp_path):
    study = dataclasses.replace(STUDY, data=Data("amibr"))
    write(tmp_path, study)
    *_, exhibit = estimators.audits(Study(study, tmp_path))
    assert exhibit.name == "03_published_probes" and "Swin-B" in set(exhibit.table["arm"]) and "Banerjee" in exhibit.caption
    probes = exhibit.table.query("kind == 'probe'")["balanced_accuracy"]
    assert (probes.min(), probes.max(), len(probes)) == (0.594, 0.634, 7)


def test_another_splits_audit_is_not_this_studys(found):
    _, folder = found
    other = dataclasses.replace(STUDY, splits=dataclasses.replace(STUDY.splits, seed=43))
    study_data.write_splits(other, folder)
    with pytest.raises(store.StoreError, match=r"no finished 'probes' run 'made'.*splits"):
        estimators.find(Study(other, folder), "made")


def test_the_figure_has_a_line_a_fold(found):
    study = Study(STUDY, found[1])
    exhibit = estimators.audit(study, estimators.find(study, "made"))
    assert [sum(len(line.get_xdata()) == len(ESTIMATORS) for line in axis.lines) for axis in exhibit.figure.axes] == [4, 4], (
        "folds and mean"
    )
    assert "synthetic data" in exhibit.figure.get_suptitle() and "synthetic data" in exhibit.caption
    assert exhibit.section == "Audit of the probe"
