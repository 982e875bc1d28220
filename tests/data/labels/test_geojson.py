"""QuPath's GeoJSON as labels, and scores as GeoJSON that QuPath reads."""

import json
import re

import pandas as pd
import pytest

from mfcore.data.labels import geojson, table as labels
from mfcore.data.labels.source import SOURCES
from mfcore.data.labels.table import LabelError
from mfcore.data.options import Data


def feature(kind, coordinates, name="mitosis", **properties):
    classification = {"classification": {"name": name, "color": [200, 0, 0]}} if name else {}
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation", **classification, **properties}}


BOX = [[[100, 40], [150, 40], [150, 90], [100, 90], [100, 40]]]
A = [feature("Point", [10.5, 20]), feature("Polygon", BOX, "other"), feature("MultiPoint", [[1, 2], [3, 4]], "other")]
B = [feature("Point", [7, 8]), feature("MultiPolygon", [BOX], "other")]


def write(folder, **files):
    for name, features in files.items():
        (folder / f"{name}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        (folder / f"{name}.svs").write_bytes(b"")


def load(folder, **data):
    options = Data(source="geojson", **{"positive": "mitosis", "negative": "other", **data})
    return labels.load(SOURCES["geojson"], folder, options.written)


def test_points_and_boxes_of_all_slides(tmp_path):
    write(tmp_path, A=A, **{"TCGA-1.DX1": B})
    table = load(tmp_path)
    assert tuple(table.columns) == labels.COLUMNS
    assert table["file"].tolist() == ["A.svs"] * 4 + ["TCGA-1.DX1.svs"] * 2
    assert table["x_l0_px"].tolist() == [10.5, 125, 1, 3, 7, 125] and table["y_l0_px"].tolist() == [20, 65, 2, 4, 8, 65]
    assert table["label"].tolist() == [1, 0, 0, 0, 1, 0] and set(table["domain"]) == {"one domain"}
    assert table["case_id"].tolist() == ["A"] * 4 + ["TCGA-1.DX1"] * 2


def test_a_file_may_be_named_with_the_slides_suffix_and_hold_a_plain_list(tmp_path):
    (tmp_path / "A.svs.geojson").write_text(json.dumps(A))  # as QuPath exports without a collection
    (tmp_path / "A.svs").write_bytes(b"")
    table = load(tmp_path)
    assert set(table["file"]) == {"A.svs"} and set(table["case_id"]) == {"A"}


def test_a_table_says_what_is_known_of_the_slides(tmp_path):
    write(tmp_path, A=A, B=B)
    (tmp_path / "slides.csv").write_text("file,case,domain,split\nA.svs,patient 1,lung,train\nB,patient 2,skin,test\n")
    table = load(tmp_path)
    assert table["case_id"].unique().tolist() == ["patient 1", "patient 2"]
    assert table["domain"].unique().tolist() == ["lung", "skin"] and table["official_split"].unique().tolist() == [
        "train",
        "test",
    ]
    (tmp_path / "slides.csv").write_text("file,case\nA.svs,patient 1\n")
    with pytest.raises(LabelError, match="without a line for B"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (feature("Point", [1, 2], ""), "A.geojson, feature 3: without a classification"),
        (feature("LineString", [[1, 2], [3, 4]]), "feature 3: a LineString is no annotation of a cell"),
        (feature("Point", [-30, 2]), r"feature 3: its centre \(-30, 2\) lies more than 25 px off the slide"),
        (feature("Point", []), "feature 3: its geometry has no place"),
        (feature("Point", ["a", 2]), "feature 3: no GeoJSON feature"),
        (feature("Point", [1]), "feature 3: no GeoJSON feature"),
        (feature("Polygon", [[[0, 0], [500, 0], [500, 90], [0, 0]]]), "feature 3: a shape of 500 px is a region and no cell"),
        (feature("MultiPolygon", [BOX, BOX]), "feature 3: several shapes in one, .*; split it in QuPath"),
        (feature("Point", [1, 2], 3), "feature 3: no GeoJSON feature .* and a class that is text"),
        (feature("Point", [1, 2], ["a"]), "feature 3: no GeoJSON feature"),
        ({"type": "Feature"}, "feature 3: no GeoJSON feature"),
        ({"type": "Feature", "geometry": {"coordinates": [1, 2]}}, "feature 3: no GeoJSON feature"),
        (feature("Point", [10.5, 20], "other"), "feature 3: lies less than 1 px from A.geojson, feature 0 on the same slide"),
        (
            feature("Point", [11.0, 20.5]),
            "feature 3: lies less than 1 px from A.geojson, feature 0 on the same slide",
        ),
        (
            feature("Point", [50, 50], "debris"),
            r"neither 'other' nor 'mitosis'; .*negative: rest .*\s+'debris' \(1, first: A.geojson, feature 3\)",
        ),
    ],
)
def test_a_wrong_feature_is_refused_by_file_and_number(tmp_path, wrong, message):
    write(tmp_path, A=[*A, wrong], B=B)
    with pytest.raises(LabelError, match=message):
        load(tmp_path)


def test_all_other_classes_may_be_the_negative_class(tmp_path):
    write(tmp_path, A=[*A, feature("Point", [50, 50], "debris")])
    assert load(tmp_path, negative="rest")["label"].tolist() == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("name", ["Mitosis", "mitosis ", "Tumor: mitosis", "Region*", "Ignore*"])
def test_what_is_no_other_class_of_cells_is_not_taken_for_the_rest(tmp_path, name):
    write(tmp_path, A=[*A, feature("Point", [50, 50], name)])
    with pytest.raises(LabelError, match=rf"correct them, .*\s+'{re.escape(name)}' \(1, first: A\.geojson, feature 3\)"):
        load(tmp_path, negative="rest")
    derived = feature("Point", [50, 50], "")
    derived["properties"]["classification"] = {"names": ["Tumor", "mitosis"]}
    write(tmp_path, A=[*A, derived])
    with pytest.raises(LabelError, match=r"'Tumor: mitosis' .* looks like 'mitosis'"):
        load(tmp_path, negative="rest")
    derived["properties"]["classification"] = {"names": ["", ""]}
    write(tmp_path, A=[*A, derived])
    with pytest.raises(LabelError, match=r"': ' \(1, .*\) is empty; give it a label"):
        load(tmp_path, negative="rest")


def test_two_files_of_one_slide_and_files_passed_over_are_refused(tmp_path):
    write(tmp_path, A=A, **{"A.svs": B})
    (tmp_path / "D.svs.GEOJSON").write_text("[]")
    (tmp_path / "Slides.csv").write_text("file\n")
    (tmp_path / "._A.geojson").write_bytes(b"resource fork")  # as macOS writes beside a file
    with pytest.raises(LabelError, match=r"(?s)name it .*D\.svs\.geojson.*Slides\.csv: name it slides\.csv"):
        load(tmp_path)
    (tmp_path / "D.svs.GEOJSON").unlink()
    (tmp_path / "Slides.csv").unlink()
    with pytest.raises(LabelError, match=r"name one file a slide .*\s+A\.svs: the slide of A$"):
        load(tmp_path)


def test_a_slide_is_found_by_its_whole_name(tmp_path):
    write(tmp_path, A=A, **{"A.2": B, "C.svs": A, "C.tif": B})
    (tmp_path / "A.2.svs").unlink()
    (tmp_path / "C.tif.svs").unlink()
    (tmp_path / "C.svs.svs").rename(tmp_path / "C.svs")
    with pytest.raises(LabelError, match=r"put them there:\s+A\.2$"):
        load(tmp_path)
    (tmp_path / "A.2.svs").write_bytes(b"")
    with pytest.raises(LabelError, match=r"C\.tif: the slide of C\.svs$"):
        load(tmp_path)


def test_a_slide_of_the_table_without_a_file_is_named(tmp_path):
    write(tmp_path, A=A, B=[])
    (tmp_path / "slides.csv").write_text("file,case\nA.svs,1\nB.svs,2\nC.svs,3\n")
    with pytest.raises(
        LabelError, match=r"correct or remove them:\s+line 4: there is no such \.geojson as C\.svs; remove the line"
    ):
        load(tmp_path)


def test_damaged_files_and_missing_slides_are_named(tmp_path):
    write(tmp_path, A=A)
    (tmp_path / "A.svs").unlink()
    with pytest.raises(LabelError, match=r"(?s)files that are not in .*images or WSI in it; put them there:\s+A$"):
        load(tmp_path)
    (tmp_path / "A.geojson").write_text("{")
    with pytest.raises(LabelError, match=r"A\.geojson: not GeoJSON"):
        load(tmp_path)
    for content in ("3", "null", '"abc"', '{"features": null}'):
        (tmp_path / "A.geojson").write_text(content)
        with pytest.raises(LabelError, match=r"A\.geojson: no GeoJSON with a list of features; export it again"):
            load(tmp_path)


def test_scores_are_written_as_qupath_reads_them_and_read_back(tmp_path):
    """Keys, colours and measurements as QuPathTypeAdapters.java reads them."""
    table = pd.DataFrame({"x_l0_px": [100.5, 300.0], "y_l0_px": [50.0, 60.5], "label": [1, 0], "score": [0.9, 0.2]})
    geojson.write(table, tmp_path / "A.geojson", ("other", "mitosis"), ("score",))
    first = json.loads((tmp_path / "A.geojson").read_text())["features"][0]
    assert first["properties"]["objectType"] == "detection" and first["properties"]["measurements"] == {"score": 0.9}
    assert first["properties"]["classification"] == {"name": "mitosis", "color": [213, 94, 0]}
    assert first["geometry"]["coordinates"][0][0] == [75.5, 25.0] == first["geometry"]["coordinates"][0][-1]
    (tmp_path / "A.svs").write_bytes(b"")
    back = load(tmp_path)
    assert back["x_l0_px"].tolist() == [100.5, 300.0] and back["y_l0_px"].tolist() == [50.0, 60.5]
    assert back["label"].tolist() == [1, 0]
