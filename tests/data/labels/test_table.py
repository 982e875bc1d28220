"""Labels: the real files give the known counts, and every way a label can be wrong is refused by name and place."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mfcore.data.labels import table as labels
from mfcore.data.labels.source import SOURCES
from mfcore.data.labels.table import LabelError

REAL = Path(__file__).parents[3].parent / "shared" / "data"
MIDOG = SOURCES["midog"]
AMIBR = SOURCES["amibr"]
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real labels of ../shared/data are not here")

GOOD = {
    "categories": [{"id": 1, "name": "mitotic figure"}, {"id": 2, "name": "hard negative"}],
    "images": [
        {"id": 7, "file_name": "007.tiff", "width": 400, "height": 300, "tumor_type": "melanoma", "scanner": "S1"},
        {"id": 8, "file_name": "008.tiff", "width": 400, "height": 300, "tumor_type": "lymphoma", "case_id": "C8"},
        {"id": 9, "file_name": "009.tiff", "width": 400, "height": 300, "tumor_type": "lymphoma"},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "bbox": [10, 20, 60, 70], "category_id": 1, "labels": [1, 2, 1]},
        {"id": 2, "image_id": 7, "bbox": [100, 100, 151, 150], "category_id": 2, "labels": [2, 2]},
        {"id": 5, "image_id": 8, "bbox": [-27, 200, 23, 250], "category_id": 2},
    ],
}
CSV = (
    ",slide,dataset,uid,x,y,expert1_label,expert2_label,expert1_atypical,expert2_atypical,expert3_atypical,majority_atypical\n"
    "0,003.tiff,MIDOG21,22,2199,822,NMF,NMF,False,False,True,False\n"
    "1,003.tiff,MIDOG21,25,1101,421,AMF,AMF,True,True,False,True\n"
    "2,03_stitched2.tif,TUPAC16,22,50,60,NMF,NMF,False,False,False,False\n"
)
PATCHES = ("normal/MIDOG21_22", "atypical/MIDOG21_25", "normal/TUPAC16_22")


def midog_folder(folder, content, slides=("images/007.tiff", "008.tiff"), name="annotations.json"):
    (folder / "images").mkdir(exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    for slide in slides:
        (folder / slide).write_bytes(b"")
    return folder


def amibr_folder(folder, csv=CSV, patches=PATCHES):
    (folder / "AMI-BR.csv").write_text(csv, encoding="utf-8")
    for patch in patches:
        (folder / "patches" / patch).parent.mkdir(parents=True, exist_ok=True)
        (folder / "patches" / f"{patch}.png").write_bytes(b"")
    return folder


def changed(path, value):
    """GOOD with one thing changed; ``path`` says where."""
    content = copy.deepcopy(GOOD)
    place = content
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


def test_midog_rows(tmp_path):
    table = labels.load(MIDOG, midog_folder(tmp_path, GOOD))
    assert tuple(table.columns) == labels.COLUMNS
    assert table["patch_id"].tolist() == [0, 1, 2]
    assert table["label"].tolist() == [1, 0, 0]
    assert table["slide_id"].tolist() == ["007.tiff", "007.tiff", "008.tiff"]
    assert table["case_id"].tolist() == ["007", "007", "C8"]
    assert table["domain"].tolist() == ["melanoma", "melanoma", "lymphoma"]
    assert table["scanner"].tolist() == ["S1", "S1", ""]
    assert table["x_l0_px"].tolist() == [35.0, 125.5, -2.0]  # the middle of two corners, half px kept
    assert table["y_l0_px"].tolist() == [45.0, 125.0, 225.0]
    assert [votes.tolist() for votes in table["votes"]] == [[1, 0, 1], [0, 0], []]
    assert table["file"].tolist() == ["images/007.tiff", "images/007.tiff", "008.tiff"]
    assert table["um_per_px"].isna().all()
    types = {"patch_id": np.int64, "label": np.int8, "x_l0_px": float, "y_l0_px": float, "um_per_px": float}
    assert {name: table[name].dtype for name in types} == types
    assert all(votes.dtype == np.int8 for votes in table["votes"])


def test_the_table_survives_parquet(tmp_path):
    table = labels.load(MIDOG, midog_folder(tmp_path, GOOD))
    table.to_parquet(tmp_path / "t.parquet", index=False)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), table)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("annotations", 1, "category_id"), 3, r"annotations\[2\]\.category_id: 3 should be 1 or 2"),
        (("annotations", 1, "category_id"), None, r"key annotations\[2\]\.category_id is missing"),
        (("annotations", 1, "bbox"), [100, 100, 50, 50], r"annotations\[2\]\.bbox: \[100.*\] isn't two corners.*COCO"),
        (("annotations", 1, "bbox"), [100, 100, 150, 100], r"annotations\[2\]\.bbox: .*isn't two corners"),
        (("annotations", 1, "bbox"), [100, 100, math.nan, 150], r"annotations\[2\]\.bbox\[2\]: nan should be a finite number"),
        (
            ("annotations", 1, "bbox"),
            [100, math.inf, 150, math.inf],
            r"annotations\[2\]\.bbox\[1\]: inf should be a finite number",
        ),
        (
            ("annotations", 1, "bbox"),
            [100, 100, 150],
            r"annotations\[2\]\.bbox: \[100, 100, 150\] should have at least 4 items",
        ),
        (("annotations", 1, "bbox"), ["100", 100, 150, 150], r"annotations\[2\]\.bbox\[0\]: '100' should be a number"),
        (("annotations", 1, "bbox"), None, r"key annotations\[2\]\.bbox is missing"),
        (
            ("annotations", 1, "bbox"),
            [-51, 100, -1, 150],
            r"annotation 2 .*centre \(-26, 125\) lies more than 25 px off the slide",
        ),
        (("annotations", 1, "bbox"), [401, 100, 451, 150], r"annotation 2 .*off the slide"),
        (("annotations", 1, "bbox"), [100, 301, 150, 351], r"annotation 2 .*off the slide"),
        (("annotations", 1, "bbox"), [100, -60, 150, -10], r"annotation 2 .*off the slide"),
        (("annotations", 1, "id"), 1, r"annotation 1: this id or name stands there twice"),
        (("annotations", 1, "image_id"), 70, r"annotation 2: its image 70 is not among the images"),
        (("annotations", 0, "labels"), [1, 3], r"annotations\[1\]\.labels\[1\]: 3 should be 1 or 2"),
        (("annotations", 0, "labels"), "1", r"annotations\[1\]\.labels: '1' should be a valid list"),
        (("images", 1, "id"), 7, r"image 7: this id or name stands there twice"),
        (("images", 1, "file_name"), "007.tiff", r"image 007\.tiff: this id or name stands there twice"),
        (
            ("images", 1, "file_name"),
            "../008.tiff",
            r"annotation 5 on \.\./008\.tiff: file is '\.\./008\.tiff', expected a file's name",
        ),
        (("images", 1, "file_name"), None, r"key images\[8\]\.file_name is missing"),
        (("images", 1, "file_name"), "sub\\008.tiff", r"file is 'sub.*expected a file's name"),
        (("images", 1, "file_name"), 8, r"images\[8\]\.file_name: 8 should be text"),
        (("images", 1, "id"), [8], "annotation 5: its image 8 is not among the images"),
        (("images", 1, "split"), "Test", r"annotation 5 on 008\.tiff: split is 'Test', expected train, val, test or nothing"),
        (
            ("annotations", 1, "bbox"),
            [10, 19, 60, 71],
            r"annotation 2 on 007\.tiff: lies less than 1 px from annotation 1 on 007\.tiff",
        ),
        (("annotations", 1, "category_id"), [1], r"annotations\[2\]\.category_id: \[1\] should be 1 or 2"),
        (("categories",), 3, "not MIDOG's JSON"),
        (("categories",), [3], r"categories\[0\]: 3 should be"),
        (("images", 1, "width"), None, r"key images\[8\]\.width is missing"),
        (("images", 1, "tumor_type"), None, r"annotation 5 on 008\.tiff: domain is empty; give each slide one"),
        (("images", 1, "tumor_type"), "  ", r"annotation 5 on 008\.tiff: domain is empty; give each slide one"),
        (
            ("images", 1, "tumor_type"),
            " all",
            r"annotation 5 on 008\.tiff: domain is 'all', a name that tables of results need",
        ),
        (("categories", 0, "name"), "not mitotic figure", r"category 1 is called 'not mitotic figure'"),
        (("annotations",), [], "no annotation"),
        (("annotations",), GOOD["annotations"][1:], "of one class"),
        (("annotations",), [3], r"annotations\[0\]: 3 should be"),
        (("annotations",), None, "not MIDOG's JSON"),
    ],
)
def test_a_wrong_midog_label_is_refused_by_name(tmp_path, path, value, message):
    midog_folder(tmp_path, changed(path, value))
    with pytest.raises(LabelError, match=rf"(?s)annotations\.json: .*{message}"):
        labels.load(MIDOG, tmp_path)


def test_a_midog_label_that_says_a_key_twice_is_refused(tmp_path):
    text = json.dumps(GOOD, indent=0).replace('"tumor_type": "melanoma"', '"tumor_type": "lung",\n"tumor_type": "melanoma"')
    with pytest.raises(LabelError, match=r"annotations\.json: .*\s+said twice: 'tumor_type' in one object;"):
        labels.load(MIDOG, midog_folder(tmp_path, text))


@pytest.mark.parametrize("box", [[-50, 100, 0, 150], [400, 100, 450, 150], [100, 300, 150, 350], [100, -50, 150, 0]])
def test_a_centre_may_lie_25_px_off_the_slide(tmp_path, box):
    midog_folder(tmp_path, changed(("annotations", 1, "bbox"), box))
    table = labels.load(MIDOG, tmp_path)
    assert (table["x_l0_px"][1], table["y_l0_px"][1]) == ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)


def test_all_problems_are_named_at_once_and_many_are_counted(tmp_path):
    content = copy.deepcopy(GOOD)
    content["annotations"] = [{"id": i, "image_id": 7, "bbox": [1, 1, 0, 0], "category_id": 1} for i in range(25)]
    midog_folder(tmp_path, content)
    with pytest.raises(LabelError, match=r"(?s)annotations\[0\].*annotations\[9\].*and 15 more") as error:
        labels.load(MIDOG, tmp_path)
    assert str(error.value).count("\n") == 11


def test_missing_slides_are_all_named_unless_labels_alone_are_wanted(tmp_path):
    midog_folder(tmp_path, GOOD, slides=())
    with pytest.raises(LabelError, match=r"(?s)put them there:\s+007\.tiff\s+008\.tiff$") as error:
        labels.load(MIDOG, tmp_path)
    assert "009" not in str(error.value)  # nothing is annotated on it, so that nobody needs it
    assert labels.load(MIDOG, tmp_path, check_files=False)["file"].tolist() == ["007.tiff", "007.tiff", "008.tiff"]


def test_a_broken_json_is_refused(tmp_path):
    midog_folder(tmp_path, '{"images": [')
    with pytest.raises(LabelError, match=r"annotations\.json: not MIDOG's JSON.*fetch"):
        labels.load(MIDOG, tmp_path)


def test_a_folder_needs_one_label_file(tmp_path):
    with pytest.raises(LabelError, match=r"no label file; expected one of annotations\.json"):
        labels.load(MIDOG, tmp_path)
    for name in ("MIDOG.json", "MIDOG++.json"):
        midog_folder(tmp_path, GOOD, name=name)
    with pytest.raises(LabelError, match=r"more than one label file: MIDOG\+\+\.json, MIDOG\.json"):
        labels.load(MIDOG, tmp_path)
    midog_folder(tmp_path, GOOD)
    assert len(labels.load(MIDOG, tmp_path)) == 3


def test_an_image_may_name_scanner_laboratory_species_and_split(tmp_path):
    content = copy.deepcopy(GOOD)
    content["images"][0] |= {"lab": "L", "species": "cat", "split": "test"}
    table = labels.load(MIDOG, midog_folder(tmp_path, content))
    assert table[["scanner", "lab", "species", "official_split"]].drop_duplicates().to_numpy().tolist() == [
        ["S1", "L", "cat", "test"],
        ["", "", "", ""],
    ]


def test_what_an_image_says_with_null_it_does_not_say(tmp_path):
    content = copy.deepcopy(GOOD)
    content["images"][0] |= dict.fromkeys(("case_id", "scanner", "lab", "species", "split"))
    first = labels.load(MIDOG, midog_folder(tmp_path, content)).iloc[0]
    assert first[["case_id", "scanner", "lab", "species", "official_split"]].tolist() == ["007", "", "", "", ""]


def test_a_json_may_begin_with_a_byte_order_mark(tmp_path):
    assert len(labels.load(MIDOG, midog_folder(tmp_path, "\ufeff" + json.dumps(GOOD)))) == 3


def test_amibr_rows(tmp_path):
    table = labels.load(AMIBR, amibr_folder(tmp_path))
    assert tuple(table.columns) == labels.COLUMNS
    assert table["label"].tolist() == [0, 1, 0]
    assert table["slide_id"].tolist() == ["MIDOG21/003.tiff", "MIDOG21/003.tiff", "TUPAC16/03_stitched2.tif"]
    assert table["case_id"].tolist() == ["MIDOG21/003", "MIDOG21/003", "TUPAC16/03"]  # stitched images of one case
    assert table["domain"].tolist() == ["MIDOG21", "MIDOG21", "TUPAC16"]
    assert [votes.tolist() for votes in table["votes"]] == [[0, 0, 1], [1, 1, 0], [0, 0, 0]]
    assert table["file"].tolist() == [f"patches/{patch}.png" for patch in PATCHES]
    assert table["um_per_px"].isna().all()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1101,421", "nan,421", "line 3: x is 'nan', expected a number"),
        ("1101,421", "1101,", "line 3: y is '', expected a number"),
        ("True,True,False,True", "True,True,False,2", "line 3: majority_atypical is '2', expected True or False"),
        ("True,True,False,True", "True,,False,True", "line 3: expert2_atypical is ''"),
        ("1,003.tiff,MIDOG21,25", "1,,MIDOG21,25", "line 3: slide is empty"),
        ("MIDOG21,25", "MIDOG21,22", "line 3: MIDOG21 uid 22 stands twice"),
        ("MIDOG21,25", "MIDOG21,26", r"put them there:\s+patches/atypical/MIDOG21_26\.png"),
        ("TUPAC16", "all", "line 4: domain is 'all', a name that tables of results need"),
        ("False,False,True,False", "False,True,True,True", r"put them there:\s+patches/atypical/MIDOG21_22\.png$"),
        ("True,True,False,True", "True,True,False,False", r"put them there:\s+patches/normal/MIDOG21_25\.png$"),
        ("majority_atypical", "majority", r"missing columns \['majority_atypical'\]"),
        (CSV[CSV.index("0,003") :], "", "no line below the header"),
        (CSV, "", "not a CSV file"),
    ],
)
def test_a_wrong_amibr_line_is_refused_by_line(tmp_path, old, new, message):
    assert old in CSV
    amibr_folder(tmp_path, CSV.replace(old, new))
    with pytest.raises(LabelError, match=rf"(?s)AMI-BR\.csv: .*{message}"):
        labels.load(AMIBR, tmp_path)


@needs_real
def test_the_real_amibr():
    table = labels.load(AMIBR, REAL / "amibr")
    published = pd.read_csv(REAL / "amibr" / "AMI-BR.csv")
    assert (len(table), table["label"].sum()) == (len(published), published["majority_atypical"].sum())
    assert table.groupby("domain").size().to_dict() == published.groupby("dataset").size().to_dict()
    assert ((np.stack(table["votes"].to_list()).sum(axis=1) >= 2) == (table["label"] == 1)).all()
