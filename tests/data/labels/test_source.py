"""Every data source is one object, and no code asks for a source by its name."""

import ast
from pathlib import Path

import pandas as pd
import pytest

from mfcore.data.labels import table as labels
from mfcore.data.labels.source import SOURCES, Source
from mfcore.study import data as study_data
from mfcore.study.config import Data, Settings

ROOT = Path(__file__).parents[3]
MODULES = sorted((ROOT / "mfcore").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_code_compares_a_source_with_a_name(path):
    """A branch on a name would have to be found by whoever adds a source."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    compared = {
        part.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare) and ast.unparse(node.left).endswith("source")
        for side in node.comparators
        for part in ast.walk(side)
        if isinstance(part, ast.Constant)
    }
    assert not compared & set(SOURCES)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_source_is_whole(source):
    assert source is SOURCES[source.name]
    assert all((ROOT / "mfcore" / "analysis" / "published" / name).is_file() for name in source.published)
    assert not (source.is_synthetic and source.is_published)
    assert source.is_published or not source.archive


def test_a_new_source_is_one_entry(tmp_path, monkeypatch):
    """Its labels are found, read and located, and its patches known to be images, by the entry alone."""

    def read(files, values):
        names = [line for file in files for line in file.read_text().split()]
        return pd.DataFrame({"label": [0, 1], "x": 1.0, "y": 2.0, "file": names}, index=names)

    new = Source("new", "New", ("new*.txt",), read, beside=(("more.txt",),), has_slides=False, note=lambda t: f"{len(t)} rows")
    monkeypatch.setitem(SOURCES, "new", new)
    study = Settings("mine", "t", Data("new"))
    (tmp_path / "new_1.txt").write_text("a")
    (tmp_path / "more.txt").write_text("b")
    for name in "ab":
        (tmp_path / name).touch()
    table = study_data.load_labels(study, tmp_path)
    assert [file.name for file in labels.files_of(study.source, tmp_path)] == ["new_1.txt", "more.txt"]
    assert table["slide_id"].tolist() == ["a", "b"]
    assert study.source.note(table) == "2 rows"
    assert study_data.patches_config(study)["resolution"] == "target"
    assert study.source.title == "New"
