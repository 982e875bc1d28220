"""A study with embeddings made elsewhere: probes learn from them, and nothing pretends that they can be checked."""

import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from made_study import finish, opened

import mfcore
from mfcore.analysis.encoders import cards
from mfcore.encoders import embed, features
from mfcore.encoders.card import EncoderError
from mfcore.study import arms, data, encoders


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The little study with a second encoder, whose features are the first one's, exported as TRIDENT's."""
    folder = finish(tmp_path_factory.mktemp("features"))
    study = opened(folder)
    features.export(study.embeddings("tiny"), study.labels, folder / "h5", "trident", data.placing_of(study.settings))
    text = (folder / "little.yaml").read_text()
    (folder / "little.yaml").write_text(text.replace("networks:", "  - {name: elsewhere, features: ./h5}\nnetworks:"))
    study = opened(folder)
    run = encoders.embed(study.settings, "elsewhere", study.folder)
    arms.fit_probe(study.settings, run, study.folder)
    return folder


def test_the_probe_learns_the_same_from_the_same_features(made):
    study = opened(made)
    np.testing.assert_array_equal(embed.load(study.embeddings("elsewhere"))[0], embed.load(study.embeddings("tiny"))[0])
    both = {arm: study.predictions[study.predictions["arm"] == arm].reset_index(drop=True) for arm in ("tiny", "elsewhere")}
    pd.testing.assert_series_equal(both["tiny"]["score"], both["elsewhere"]["score"])


def test_a_finished_run_is_found_again_without_a_canary(made):
    study = opened(made)
    assert encoders.embed(study.settings, "elsewhere", study.folder).done


def test_the_page_of_encoders_says_that_nothing_can_be_checked(made):
    table = cards.encoders_table(opened(made))
    row = table[table["encoder"] == "elsewhere"].iloc[0]
    assert row["is"] == "embedded" and "made elsewhere; no canary" in row["weights"]


def test_other_features_are_another_run(made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    study = opened(tmp_path / "copy")
    first = study.embeddings("elsewhere").key
    with h5py.File(tmp_path / "copy" / "h5" / "0.h5", "r+") as content:
        content["features"][0, 0] += 1
    assert encoders.embed(study.settings, "elsewhere", study.folder).key != first


def test_candidates_cannot_be_scored_by_features_made_elsewhere(made):
    study = opened(made)
    (made / "new.csv").write_text("file,x,y\n0.tiff,40,40\n")
    with pytest.raises(EncoderError, match="made elsewhere; mfcore can't embed other patches by it"):
        mfcore.predict(study, "elsewhere", made / "new.csv", made / "data", "cpu")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{name: elsewhere, features: ./none}", "elsewhere.*no features; expected a folder"),
        ("{name: elsewhere, features: ./h5, architecture: resnet50}", "so that architecture mean nothing; remove"),
    ],
)
def test_a_record_that_cannot_be_is_refused(made, entry, message):
    text = (made / "little.yaml").read_text()
    (made / "wrong.yaml").write_text(text.replace("{name: elsewhere, features: ./h5}", entry))
    study = mfcore.open_study(made / "wrong.yaml", made / "results")
    with pytest.raises(EncoderError, match=message):
        study.card("elsewhere")
