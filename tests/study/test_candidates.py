"""Scores of candidates: the study's own test patches, asked as candidates, get the scores that the study's tests gave them."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from made_study import finish, opened

import mfcore
from mfcore.data.labels.schema import LabelError
from mfcore.encoders.card import EncoderError
from mfcore.store import StoreError
from mfcore.study import data, external
from mfcore.study.config import ConfigError
from mfcore.study.external import CandidateError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a finished little study, with its slides in data/."""
    return finish(tmp_path_factory.mktemp("candidates"))


@pytest.fixture
def table(made, tmp_path):
    """The study's own annotations as candidates, in another order, with a column of the detector's."""
    labels = opened(made).labels.sample(frac=1, random_state=1)
    rows = pd.DataFrame(
        {"file": labels["slide_id"], "x": labels["x_l0_px"], "y": labels["y_l0_px"], "patch_id": labels["patch_id"]}
    )
    rows.assign(detector=0.5).to_csv(tmp_path / "new.csv", index=False)
    return tmp_path / "new.csv"


@pytest.mark.parametrize("arm", ["tiny", "net", "lora"])
def test_test_patches_asked_as_candidates_get_their_own_scores(made, table, arm):
    study = opened(made)
    scored = mfcore.predict(study, arm, table, made / "data", device="cpu")
    rows = scored.table.astype({"patch_id": int}).set_index("patch_id")
    assert list(scored.table.columns) == [
        "file",
        "x",
        "y",
        "patch_id",
        "detector",
        "score",
        "score_sd",
        "score_fold0",
        "score_fold1",
    ]
    tested = study.predictions[(study.predictions["arm"] == arm) & (study.predictions["size"] == 1.0)]
    assert len(tested) > 10
    for fold, of_fold in tested.groupby("fold"):
        np.testing.assert_allclose(rows.loc[of_fold["patch_id"], f"score_fold{fold}"], of_fold["score"], atol=2e-6)
    np.testing.assert_allclose(rows["score"], rows[["score_fold0", "score_fold1"]].mean(axis=1))
    assert "the mean of 2 folds" in scored.sentences[0] and "Brier score 0." in scored.sentences[1]


def test_a_smaller_training_set_may_be_asked_and_one_that_isnt_trained_is_refused(made, table):
    study = opened(made)
    half = mfcore.predict(study, "tiny", table, made / "data", size=0.5).table["score"]
    whole = mfcore.predict(study, "tiny", table, made / "data").table["score"]
    assert not np.allclose(half, whole)
    with pytest.raises(StoreError, match=r"net isn't trained at size 0\.5; the study's sizes are \[0\.5, 1\.0\]"):
        mfcore.predict(study, "net", table, made / "data", size=0.5)


def test_unknown_arms_missing_files_and_bad_lines_are_refused(made, table):
    study = opened(made)
    with pytest.raises(ConfigError, match=r"no arm 'tinny'; it has \['tiny', 'net', 'lora'\]"):
        mfcore.predict(study, "tinny", table, made / "data")
    table.write_text("file,x,y\n0.tiff,ten,20\nnone.tiff,1,2\n")
    with pytest.raises(LabelError, match="line 2: x is 'ten'"):
        mfcore.predict(study, "tiny", table, made / "data")
    table.write_text("file,x,y\n0.tiff,10,20\nnone.tiff,1,2\n")
    with pytest.raises(LabelError, match=r"put them there:\s+none\.tiff$"):
        mfcore.predict(study, "tiny", table, made / "data")
    table.write_text("file,x,y,score\n0.tiff,10,20,0.5\n")
    with pytest.raises(CandidateError, match=r"scores go into columns score\.\.\.; rename \['score'\]"):
        mfcore.predict(study, "tiny", table, made / "data")
    table.write_text("file,x\n0.tiff,10\n")
    with pytest.raises(LabelError, match=r"missing columns \['y'\]"):
        mfcore.predict(study, "tiny", table, made / "data")


def test_an_encoder_that_has_changed_is_refused(made, table, tmp_path):
    """The probe's weights mean nothing on another encoder's features: here the canary's features are another's."""
    import h5py

    other = tmp_path / "copy"
    shutil.copytree(made, other)
    study = opened(other)
    with h5py.File(study.embeddings("tiny").path("embeddings.h5"), "r+") as content:
        content["canary"][:] = content["canary"][:] + 1
    with pytest.raises(EncoderError, match="isn't the one of before"):
        mfcore.predict(study, "tiny", table, other / "data")


def test_what_is_known_of_the_arm_is_said(made, table):
    rows = pd.read_csv(table)
    rows.assign(domain="z").to_csv(table, index=False)
    said = " ".join(mfcore.predict(opened(made), "tiny", table, made / "data").sentences)
    assert "80 candidates scored by tiny (probe), the mean of 2 folds" in said
    assert "probability of mitotic figure" in said and "Brier score" in said
    assert "seen nothing of the domains z" in said


def test_the_command_writes_scores_and_a_file_for_qupath_of_each_slide(made, table, tmp_path, capsys):
    from mfcore import cli

    where = ["--study", str(made / "little.yaml"), "--results", str(made / "results")]
    asked = ["--arm", "net", "--table", str(table), "--data", str(made / "data"), "--geojson", str(tmp_path / "geo")]
    assert cli.main(["predict", *where, *asked]) == 0
    said = capsys.readouterr().out
    assert "80 candidates scored by net" in said and "10 files for QuPath" in said
    (file,) = (made / "results" / "little" / "scores").glob(f"{table.stem}-*.net.csv")
    scores = pd.read_csv(file)
    assert len(scores) == 80 and scores["score"].between(0, 1).all()
    features = json.loads((tmp_path / "geo" / "0.tiff.geojson").read_text())["features"]
    assert len(features) == 8 and set(features[0]["properties"]["measurements"]) == {"score", "score_sd"}


def test_no_scores_are_written_where_the_labels_of_the_study_lie(made, tmp_path, capsys):
    """There a CSV or GeoJSON would be read as labels, or replace them."""
    from mfcore import cli

    shutil.copytree(made, tmp_path / "copy")
    data_folder = tmp_path / "copy" / "data"
    before = {path: path.stat().st_mtime_ns for path in data_folder.rglob("*")}
    table = data_folder / "new.csv"
    table.write_text("file,x,y\n0.tiff,30,30\n")
    where = ["--study", str(tmp_path / "copy" / "little.yaml"), "--results", str(tmp_path / "copy" / "results")]
    asked = ["predict", *where, "--arm", "tiny", "--table", str(table)]
    values = [("--out", data_folder / "scores.csv"), ("--out", data_folder / "annotations.json"), ("--geojson", data_folder)]
    for option, value in values:
        assert cli.main([*asked, option, str(value)]) == 1
        assert f"{option} {value}: the labels of a study lie in {data_folder}" in capsys.readouterr().err
    table = shutil.copy(table, tmp_path / "new.csv")
    asked = [*asked[:-1], str(table), "--data", str(data_folder)]
    for _ in range(2):
        assert cli.main([*asked, "--out", str(tmp_path / "scores.csv")]) == 0, "elsewhere, again and again"
    assert cli.main(asked) == 0
    (written,) = (tmp_path / "copy/results/little/scores").glob("new-*.tiny.csv")
    assert capsys.readouterr().out.splitlines()[-1] == str(written)
    table.write_text("file,x,y\n1.tiff,30,30\n")
    assert cli.main(asked) == 0 and written.is_file()
    assert len(list(written.parent.glob("new-*.tiny.csv"))) == 2, "another table of that name loses no scores"
    assert {path: path.stat().st_mtime_ns for path in data_folder.rglob("*") if path.name != "new.csv"} == before


def test_the_command_exports_embeddings_for_slide_encoders(made, tmp_path, capsys):
    from mfcore import cli

    where = ["--study", str(made / "little.yaml"), "--results", str(made / "results")]
    assert cli.main(["export", *where, "--encoder", "tiny", "--layout", "trident", "--out", str(tmp_path / "h5")]) == 0
    study = opened(made)
    from mfcore.encoders import embed, features

    matched = features.match(tmp_path / "h5", study.labels, data.placing_of(study.settings))
    np.testing.assert_array_equal(matched.features, embed.load(study.embeddings("tiny"))[0])


def test_a_study_without_external_sets_says_so(made):
    from mfcore.analysis import scores

    study = opened(made)
    assert external.test_all(study).empty and study.external_predictions.empty
    assert "names no other data" in scores.on_external_sets(study).caption


def test_a_resolution_between_those_learned_from_is_refused(made):
    """Images of 0.25 and of 1 um/px say nothing of 0.5."""
    from types import SimpleNamespace

    settings = opened(made).settings
    own = dataclasses.replace(settings.patches, um_per_px=None)
    study = SimpleNamespace(
        settings=dataclasses.replace(settings, patches=own), labels=pd.DataFrame({"um_per_px": [0.25, 1.0]})
    )
    external.refuse_other_resolution(study, pd.DataFrame({"um_per_px": [0.252, 0.98]}), "candidates")
    with pytest.raises(CandidateError, match=r"1 candidates are at 0\.5 um/px .*learned from patches at 0\.25, 1;"):
        external.refuse_other_resolution(study, pd.DataFrame({"um_per_px": [0.25, 0.5]}), "candidates")


def test_lines_of_one_slide_name_one_file_and_one_resolution(made, tmp_path):
    files = sorted(opened(made).labels["slide_id"].unique())[:2]
    table = tmp_path / "new.csv"
    table.write_text(f"file,x,y,slide\n{files[0]},90,90,P9\n{files[1]},90,90,P9\n")
    with pytest.raises(LabelError, match=rf"line 3: file is '{files[1]}', line 2 says '{files[0]}' of the same slide"):
        mfcore.predict(opened(made), "tiny", table, made / "data", device="cpu")
    table.write_text(f"file,x,y,um_per_px\n{files[0]},90,90,0.25\n{files[0]},99,90,0.5\n")
    with pytest.raises(LabelError, match=r"line 3: um_per_px is '0\.5', line 2 says '0\.25' of the same slide"):
        mfcore.predict(opened(made), "tiny", table, made / "data", device="cpu")
