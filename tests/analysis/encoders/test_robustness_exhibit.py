"""RI and CRoMa of a study's encoders: only what labels can tell apart is measured."""

import h5py
import numpy as np
import pytest
from made_study import finish, opened

from mfcore.analysis.encoders import robustness


@pytest.fixture
def study(tmp_path):
    """The little study, with two scanners that lie across its two tumours."""
    study = opened(finish(tmp_path))
    labels = study.labels
    labels["scanner"] = np.where(labels["slide_id"].str[0].astype(int) % 4 < 2, "A", "B")
    labels["case_id"] = labels["slide_id"]
    return study


def test_an_embedding_of_the_scanner_alone_is_fragile_and_one_of_the_tumour_robust(study):
    file = study.embeddings("tiny").path("embeddings.h5")
    found = {}
    for name in ("scanner", "domain"):
        with h5py.File(file, "r+") as content:
            noise = np.random.default_rng(0).normal(0, 0.3, content["features"].shape)
            noise[:, 0] += np.where(study.labels[name] == study.labels[name].iloc[0], 5, -5)
            content["features"][:] = noise
        table = robustness.table(study)
        found[name] = table[(table["biology"] == "tumour") & (table["origin"] == "scanner")].iloc[0]
    assert found["scanner"]["ri"] < 0.2 and found["domain"]["ri"] > 0.8
    assert found["scanner"]["croma"] < 0 < found["domain"]["croma"]


def test_patches_of_an_unknown_origin_are_left_out(study):
    whole, known = robustness.table(study), study.labels["scanner"] == "A"
    known |= study.labels["slide_id"].str[0].astype(int) < 6
    study.labels.loc[~known, "scanner"] = ""
    table = robustness.table(study).query("origin == 'scanner'")
    assert (table["n"] == known.sum()).all() and known.sum() < whole["n"].max()


def test_what_labels_cannot_tell_apart_is_not_measured(study):
    study.labels["scanner"] = study.labels["domain"]  # each tumour has a scanner of its own
    pairs = set(robustness.table(study)[["biology", "origin"]].itertuples(index=False, name=None))
    assert pairs == {("class", "scanner")}
    study.labels["scanner"] = ""
    assert robustness.table(study).empty and "can't be measured" in robustness.exhibit(study).caption
