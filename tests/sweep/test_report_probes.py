"""The probe audit's tables, sentences and page: computed from the predictions, honest about what they can't tell."""

import dataclasses
import re

import made_embeddings
import numpy as np
import pandas as pd
import pytest

from mfcore import store
from mfcore.analysis import estimators
from mfcore.data import patches, splits
from mfcore.measures.statistics import Folds
from mfcore.study.config import Data, Settings, as_dict
from mfcore.study.study import Study
from mfcore.sweep import report_probes

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
    splits_run = splits.find(study, folder)
    table, material = splits.load(splits_run), patches.load(patches.find(study, folder))[0].set_index("patch_id")
    config = {"probe": as_dict(study.probe), "seed": 42, "estimators": ESTIMATORS}
    run = store.open_run(folder, "probes", "made", config, {"splits": splits_run.key, "embeddings": embeddings.key})
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


def test_the_sentences_follow_the_numbers(found):
    scores, titles = found[0], {name: name for name in ESTIMATORS}
    text = report_probes.said(scores, titles, by_estimator(scores))
    full = estimators.table(scores).query("size == 1").set_index("estimator")["auroc"]
    assert f"lies between {full.min():.3f} (“early_stopped_adam”) and {full.max():.3f} (“" in text
    assert "more than one SD over folds" in text and "Of 12 fits that validation could stop, at all sizes, 2 ran to" in text
    assert "stopped before it has learnt" in text
    alike = scores.assign(auroc=0.7 + 0.01 * scores["fold"])
    text = report_probes.said(alike, titles, by_estimator(alike))
    assert "0.000 apart: no more than one SD over folds (0.010" in text and "of 3 such intervals none leave out zero" in text
    assert "the interval holds zero" in text and "stopped before" not in text
    first = scores[scores["fold"] == 0]
    single = report_probes.said(first, titles, by_estimator(first))
    assert "there is no SD to hold against it" in single and "nan" not in single


def test_the_page_shows_every_estimator_says_synthetic_and_what_is_missing(found):
    _, folder = found
    study = dataclasses.replace(STUDY, encoders=("made", "gone"), probe_audit=("made", "gone"))
    page = report_probes.page(study, folder).replace("\N{NO-BREAK SPACE}", " ")
    assert "synthetic data" in page and "The data are synthetic" in page
    assert all(page.count(f"&lt;{name}&gt;") >= 3 for name in ESTIMATORS), "text isn't escaped, or an estimator is missing"
    assert "hasn't run: gone." in page and "Banerjee" not in page
    assert "with C = 0.25 at 20 %, 0.25 at 100 %" in page
    text = re.sub(r"<[^>]+>", " ", page)
    assert not {"nan", "NaN", "None"} & set(re.sub(r"\{.*\}", "", text).split())


def test_published_scores_stand_beside_those_of_amibr_alone(tmp_path):
    study = dataclasses.replace(STUDY, data=Data("amibr"))
    write(tmp_path, study)
    page = report_probes.page(study, tmp_path).replace("\N{NO-BREAK SPACE}", " ")
    assert "Swin-B" in page and "0.81 ± 0.01" in page and "Banerjee" in page and "synthetic data" not in page
    probes = estimators.published().query("kind == 'probe'")["balanced_accuracy"]
    assert (probes.min(), probes.max(), len(probes)) == (0.594, 0.634, 7)


def test_another_splits_audit_is_not_this_studys(found):
    _, folder = found
    other = dataclasses.replace(STUDY, splits=dataclasses.replace(STUDY.splits, seed=43))
    splits.write(other, folder)
    with pytest.raises(store.StoreError, match="no finished audit of 'made' on these splits"):
        estimators.find(Study(other, folder), "made")


def test_the_figure_has_a_line_a_fold_and_is_shown_where_it_is_drawn(found):
    _, folder = found
    run = estimators.find(Study(STUDY, folder), "made")
    exhibit = estimators.audit(Study(STUDY, folder), run)
    figure = exhibit.figure
    grey = [[line for line in axis.lines if line.get_color() == "0.72" and len(line.get_xdata())] for axis in figure.axes]
    assert [len(lines) for lines in grey] == [3, 3]
    assert "synthetic data" in figure.get_suptitle()
    assert "<figure>" not in report_probes.page(STUDY, folder)
    exhibit.save(folder / "figures")
    assert f"figures/03_{run.folder.name}.png" in report_probes.page(STUDY, folder)


def test_a_probe_without_weights_is_named_beside_its_c():
    rows = pd.DataFrame({"estimator": estimators.OWN, "size": [0.1, 1.0], "sklearn_c": [0.02, 0.0]})
    assert "C = 0.02 at 10 %, 0 at 100 % (all its weights are 0)." in report_probes.said_of_c(rows)
