"""Opening a study: a notebook refuses a parameter that it doesn't know."""

import pytest

from mfcore import open_study
from mfcore.study.config import ConfigError

FILE = """
name: little
title: "A study small for testing"
data: {source: synthetic}
encoders: [resnet50]
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "little.yaml"
    path.write_text(FILE)
    return path


def test_a_study_is_opened_with_its_folder(file, tmp_path):
    study = open_study(file, tmp_path)
    assert study.name == "little" and study.folder == tmp_path / "little"


def test_what_papermill_sets_must_be_a_parameter_of_the_notebook(file, tmp_path):
    own = 'study_file = "a"  # what decides\nresults = "b"\nfold = 0\n'
    for given, is_known in ((["fold"], True), (["fold", "fol"], False)):
        injected = "# Parameters\n" + "".join(f"{name} = 1\n" for name in given)
        cells = {"In": ["", own, injected, "study = ..."], "fold": 1, "other": 2}
        if is_known:
            assert open_study(file, tmp_path, parameters=cells).name == "little"
            continue
        with pytest.raises(ConfigError, match="no parameter fol; it has study_file, results, fold"):
            open_study(file, tmp_path, parameters=cells)
    assert open_study(file, tmp_path, parameters={"study_file": 1, "other": 2}).name == "little"
