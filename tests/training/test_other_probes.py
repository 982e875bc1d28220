"""kNN, SimpleShot and an MLP as further arms: against scikit-learn by hand, on the same folds, and each under its name."""

import numpy as np
import pytest
from made_study import finish, opened
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from mfcore.analysis import scaling
from mfcore.study import arms
from mfcore.training import probe

RNG = np.random.default_rng(0)
LABELS = np.arange(120) % 2
FEATURES = (RNG.standard_normal((120, 8)) + 1.2 * LABELS[:, None]).astype(np.float32)
TRAIN, TEST = np.arange(80), np.arange(80, 120)
GIVEN = FEATURES[TRAIN], LABELS[TRAIN], FEATURES[TEST]


def cl2n(rows):
    moved = FEATURES[rows] - FEATURES[TRAIN].mean(axis=0)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def test_knn_and_simpleshot_are_scikit_learns_on_centred_features_of_length_1():
    scores = probe.METHODS["knn"](*GIVEN, 0)
    theirs = KNeighborsClassifier(20).fit(cl2n(TRAIN), LABELS[TRAIN]).predict_proba(cl2n(TEST))[:, 1]
    np.testing.assert_allclose(scores, theirs)
    nearest = NearestCentroid().fit(cl2n(TRAIN), LABELS[TRAIN]).predict(cl2n(TEST))
    np.testing.assert_array_equal(probe.METHODS["simpleshot"](*GIVEN, 0) > 0.5, nearest == 1)


@pytest.mark.parametrize("method", probe.METHODS)
def test_every_method_learns_and_gives_probabilities(method):
    scores = probe.METHODS[method](*GIVEN, 0)
    assert scores.min() >= 0 and scores.max() <= 1
    assert ((scores > 0.5) == LABELS[TEST]).mean() > 0.85
    np.testing.assert_array_equal(scores, probe.METHODS[method](*GIVEN, 0))


def test_few_training_patches_are_enough():
    few = np.array([0, 1, 2])
    assert np.isfinite(probe.METHODS["knn"](FEATURES[few], LABELS[few], FEATURES[TEST], 0)).all()


def test_further_probes_are_arms_of_their_own_and_leave_the_linear_one_as_it_is(tmp_path):
    folder = finish(tmp_path)
    linear = opened(folder).runs["tiny"].key
    file = folder / "little.yaml"
    file.write_text(file.read_text().replace("probe: {cost: 1000}", "probe: {cost: 1000, also: [knn, simpleshot, mlp]}"))
    study = opened(folder)
    embeddings, methods = study.embeddings("tiny"), study.settings.probe.also
    runs = [arms.fit_probe(study.settings, embeddings, study.folder, method) for method in methods]
    assert [run.identity["name"] for run in runs] == ["tiny knn", "tiny simpleshot", "tiny mlp"]
    assert study.runs["tiny"].key == linear and not len(study.failures)
    tested = study.predictions.groupby("arm")["patch_id"].apply(lambda ids: sorted(set(ids)))
    assert set(study.scores["arm"]) == {"tiny", "tiny knn", "tiny simpleshot", "tiny mlp", "net", "lora"}
    assert tested["tiny"] == tested["tiny knn"] == tested["tiny mlp"]
    assert set(scaling.figure_1(study).table["arm"]) == set(study.scores["arm"])
