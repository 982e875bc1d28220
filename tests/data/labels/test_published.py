"""MIDOG 2022, MIDOG++ and CCMCT: every form their authors publish gives the known counts, and none is read wrongly."""

import functools
import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mfcore.data.labels import table as labels
from mfcore.data.labels.source import SOURCES
from mfcore.data.labels.table import LabelError

REAL = Path(__file__).parents[3].parent / "shared" / "data" / "labels"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real labels of ../shared/data are not here")

MIDOG22 = {  # slides, mitotic figures, look-alikes
    "human breast cancer": (150, 1_721, 2_714),
    "canine lung cancer": (44, 855, 952),
    "canine lymphoma": (55, 3_959, 4_257),
    "canine cutaneous mast cell tumor": (50, 2_327, 1_366),
    "human neuroendocrine tumor": (55, 639, 1_762),
}
MIDOGPP = MIDOG22 | {
    "canine lung cancer": (44, 855, 951),
    "human neuroendocrine tumor": (55, 639, 1_761),
    "canine soft tissue sarcoma": (100, 1_286, 2_375),
    "human melanoma": (49, 1_150, 925),
}
CCMCT = {"canine cutaneous mast cell tumor": (32, 44_880, 27_965)}
SCANNERS = {"Hamamatsu XR": 105, "Hamamatsu S360": 50, "Aperio CS2": 100, "3DHistech": 99}

SCHEMA = """
CREATE TABLE Slides (uid INTEGER PRIMARY KEY, filename TEXT, width INTEGER, height INTEGER, directory TEXT);
CREATE TABLE Annotations (uid INTEGER PRIMARY KEY, slide INTEGER, guid TEXT, lastModified REAL, deleted INTEGER DEFAULT 0,
                          type INTEGER, agreedClass INTEGER);
CREATE TABLE Annotations_coordinates (uid INTEGER PRIMARY KEY, coordinateX INTEGER, coordinateY INTEGER, slide INTEGER,
                                      annoId INTEGER, orderIdx INTEGER);
CREATE TABLE Annotations_label (uid INTEGER PRIMARY KEY, person INTEGER, class INTEGER, annoId INTEGER);
CREATE TABLE Classes (uid INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE Persons (uid INTEGER PRIMARY KEY, name TEXT);
"""


def load(source, folder):
    return labels.load(SOURCES[source], folder, check_files=False)


@functools.cache
def real(source):
    return load(source, REAL)


def counts(table):
    by_domain = table.groupby("domain").agg(slides=("slide_id", "nunique"), mf=("label", "sum"), n=("label", "size"))
    return {domain: (row.slides, row.mf, row.n - row.mf) for domain, row in by_domain.iterrows()}


def rows_of(table):
    columns = ["x_l0_px", "y_l0_px", "label", "domain", "scanner", "lab", "species"]
    stems = table["slide_id"].str.replace(r"\.\w+$", "", regex=True)
    return sorted(map(tuple, table[columns].assign(stem=stems).to_numpy().tolist()))


def as_json(table, suffix):
    """The rows in the form of MIDOG 2022's JSON: boxes of 50 px as corners, images numbered, none named by its tumour."""
    number = table["slide_id"].str[:3].astype(int)
    images = [
        {"file_name": f"{n:03d}{suffix}", "id": int(n), "width": 7215, "height": 7000} for n in [*sorted(set(number)), 355]
    ]
    annotations = [
        {"bbox": [x - 25, y - 25, x + 25, y + 25], "category_id": 1 if label else 2, "image_id": int(n), "id": i + 1}
        for i, (n, x, y, label) in enumerate(zip(number, table["x_l0_px"], table["y_l0_px"], table["label"], strict=True))
    ]
    categories = [{"id": 1, "name": "mitotic figure"}, {"id": 2, "name": "not mitotic figure"}]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


def as_sqlite(file, table, classes, n_corners, more=""):
    """The rows as SlideRunner keeps them: spots (one coordinate) or areas (two corners)."""
    names = list(dict.fromkeys(table["slide_id"]))
    uid = {name: i + 1 for i, name in enumerate(names)}
    with sqlite3.connect(file) as database:
        database.executescript(SCHEMA)
        database.executemany("INSERT INTO Slides VALUES (?, ?, 0, 0, '')", [(uid[name], name) for name in names])
        rows = list(enumerate(zip(table["slide_id"], table["label"], table["x_l0_px"], table["y_l0_px"], strict=True), 1))
        kind = {1: 1, 2: 2}[n_corners]
        database.executemany(
            "INSERT INTO Annotations (uid, slide, type, agreedClass) VALUES (?, ?, ?, ?)",
            [(i, uid[s], kind, classes[label]) for i, (s, label, _, _) in rows],
        )
        places = [(i, x + d, y + d, uid[s]) for i, (s, _, x, y) in rows for d in ([0] if n_corners == 1 else [-25, 25])]
        database.executemany(
            "INSERT INTO Annotations_coordinates (annoId, coordinateX, coordinateY, slide) VALUES (?, ?, ?, ?)", places
        )
        if "votes" in table:
            cast = [(i, classes[v]) for i, votes in enumerate(table["votes"], 1) for v in votes]
            database.executemany("INSERT INTO Annotations_label (annoId, class) VALUES (?, ?)", cast)
        database.executescript(more)


@needs_real
def test_midog_2022_has_its_counts_in_every_form(tmp_path):
    table = real("midog22")
    assert counts(table) == MIDOG22
    assert (len(table), table["label"].sum(), table["slide_id"].nunique()) == (20_552, 9_501, 354)
    assert table.groupby("scanner")["slide_id"].nunique().to_dict() == SCANNERS
    assert (table["x_l0_px"] % 1 == 0.5).sum() == 1_724 and (table["y_l0_px"] % 1 == 0.5).sum() == 1_710
    assert table[["x_l0_px", "y_l0_px"]].min().min() == -5
    for form in ("png.json", "tiff.json", "png.sqlite"):
        (tmp_path / form).mkdir()
        file = tmp_path / form / f"MIDOG2022_training_{form}"
        if form.endswith("json"):
            file.write_text(as_json(table, f".{form[:-5]}"))
        else:
            as_sqlite(file, table, {1: 1, 0: 2}, n_corners=2)
        assert rows_of(load("midog22", tmp_path / form)) == rows_of(table), form


@needs_real
def test_midog_plus_plus_has_its_counts_and_its_raters_in_every_form(tmp_path):
    table = real("midogpp")
    assert counts(table) == MIDOGPP
    assert (len(table), table["label"].sum(), table["slide_id"].nunique()) == (26_286, 11_937, 503)
    majority = np.array([votes.mean() for votes in table["votes"]])
    assert ((majority > 0.5) == (table["label"] == 1)).all()  # the class is the raters' majority, always
    assert table.groupby("official_split")["slide_id"].nunique().to_dict() == {"test": 111, "train": 392}
    assert table.groupby("lab")["slide_id"].nunique().to_dict() == {
        "AMC New York": 85, "FU Berlin": 50, "UMC Utrecht": 254, "VMU Vienna": 114,
    }  # fmt: skip
    assert set(table["species"]) == {"human", "canine"} and len(set(table["scanner"])) == 4
    shutil.copy(REAL / "MIDOGpp.csv", tmp_path)
    other = load("midogpp", tmp_path)  # the authors' CSV, made by other code, cuts half px off and calls the classes 1 and 2
    whole = table.assign(x_l0_px=np.trunc(table["x_l0_px"]), y_l0_px=np.trunc(table["y_l0_px"]))
    key = ["slide_id", "x_l0_px", "y_l0_px", "label", "domain", "scanner"]
    assert sorted(map(tuple, whole[key].to_numpy())) == sorted(map(tuple, other[key].to_numpy()))
    assert set(other["official_split"]) == {""} and not other["votes"].map(len).any()
    as_sqlite(tmp_path / "MIDOGpp.sqlite", table, {1: 1, 0: 2}, n_corners=2)  # goes before the CSV
    from_database = load("midogpp", tmp_path)
    assert from_database["votes"].map(tuple).tolist() == table["votes"].map(tuple).tolist()
    same = ["slide_id", "x_l0_px", "y_l0_px", "label", "domain", "scanner", "species"]
    pd.testing.assert_frame_equal(from_database[same], table[same])  # by number; the table has them from MIDOG++'s cases
    one_lab = table["domain"] != "canine soft tissue sarcoma"
    assert (from_database["lab"] == table["lab"].where(one_lab, "")).all()


@needs_real
def test_the_first_form_that_is_there_is_read_and_named(tmp_path):
    table = real("midog22")
    forms = ("MIDOG2022_training_png.json", "MIDOG2022_training_png.sqlite", "MIDOG2022_training_tiff.csv")
    (tmp_path / forms[0]).write_text(as_json(table.iloc[:300], ".png"))
    as_sqlite(tmp_path / forms[1], table.iloc[:200], {1: 1, 0: 2}, n_corners=2)
    shutil.copy(REAL / forms[2], tmp_path)
    shutil.copy(REAL / "datasets_xvalidation.csv", tmp_path)
    for form, n in zip(forms, (300, 200, 20_552), strict=True):
        assert labels.files_of(SOURCES["midog22"], tmp_path) == (tmp_path / form,) and len(load("midog22", tmp_path)) == n
        (tmp_path / form).unlink()
    shutil.copy(REAL / forms[2], tmp_path)
    for name in ("MIDOGpp.json", "MIDOG++.json"):  # one of the two is read, with the cases that are its own
        (tmp_path / name).touch()
    names = [file.name for file in labels.files_of(SOURCES["midog22"], tmp_path)]
    assert names == [forms[2], "MIDOG++.json", "datasets_xvalidation.csv"]


@needs_real
def test_ccmct_has_its_counts_and_its_split_in_both_forms(tmp_path):
    shutil.copy(REAL / "MITOS_WSI_CCMCT_ODAEL_binary_labels.csv", tmp_path)
    table = load("ccmct", tmp_path)
    assert counts(table) == CCMCT and len(table) == 72_845
    official = table.groupby("official_split").agg(slides=("slide_id", "nunique"), mf=("label", "sum"), n=("label", "size"))
    assert official.loc["train"].tolist() == [21, 22_404, 36_744] and official.loc["test"].tolist() == [11, 22_476, 36_101]
    others = """
        INSERT INTO Annotations (slide, type, agreedClass) VALUES (1, 1, 1), (1, 1, 3), (1, 3, 3);
        INSERT INTO Annotations (slide, type, agreedClass, deleted) VALUES (1, 1, 2, 1);
        INSERT INTO Annotations_label (person, class, annoId) VALUES (2, 7, 1), (1, 2, 1), (1, 3, 1);
    """  # granulocyte, tumour cells, one as a polygon, a deleted mitotic figure
    (tmp_path / "databases").mkdir()
    as_sqlite(tmp_path / "databases" / "MITOS_WSI_CCMCT_ODAEL.sqlite", table, {1: 2, 0: 7}, n_corners=1, more=others)
    from_database = load("ccmct", tmp_path)
    assert counts(from_database) == CCMCT and rows_of(from_database) == rows_of(table)
    assert from_database["votes"].iloc[0].tolist() == [0, 1, 0]
    assert (from_database["votes"].map(len) > 0).sum() == 1


@needs_real
def test_midog_2022_takes_votes_and_split_of_the_other_edition_by_annotation(tmp_path):
    table = real("midog22")
    unmatched = table[table["votes"].map(len) == 0]
    assert sorted(zip(unmatched["slide_id"], unmatched["label"], strict=True)) == [("151.tiff", 0), ("353.tiff", 0)]
    voted = table.drop(unmatched.index)
    assert ((np.array([v.mean() for v in voted["votes"]]) > 0.5) == (voted["label"] == 1)).all()
    assert table.groupby("official_split")["slide_id"].nunique().to_dict() == {"test": 78, "train": 276}
    for name in ("MIDOG2022_training_tiff.csv", "datasets_xvalidation.csv"):  # without the other edition's labels
        shutil.copy(REAL / name, tmp_path)
    alone = load("midog22", tmp_path)
    assert not alone["votes"].map(len).any() and set(alone["official_split"]) == {""}
    assert rows_of(alone) == rows_of(table)


@needs_real
def test_an_edition_that_contradicts_the_other_is_refused(tmp_path):
    shutil.copy(REAL / "MIDOG2022_training_tiff.csv", tmp_path)
    content = json.loads((REAL / "MIDOG++.json").read_text())
    content["annotations"][0]["category_id"] = 1
    (tmp_path / "MIDOG++.json").write_text(json.dumps(content))
    with pytest.raises(LabelError, match=r"001\.tiff at \(4361, 371\): another class"):
        load("midog22", tmp_path)


def test_an_edition_with_nothing_in_common_is_refused(tmp_path):
    midog22_json(tmp_path)
    image = {"id": 1, "file_name": "001.tiff", "width": 400, "height": 400, "tumor_type": "human breast cancer"}
    annotations = [{"id": i, "image_id": 1, "bbox": [99 + i, 9, 149, 59], "category_id": i} for i in (1, 2)]
    (tmp_path / "MIDOG++.json").write_text(json.dumps({"images": [image], "annotations": annotations}))
    with pytest.raises(LabelError, match=r"png\.json: no image has its annotations where the other edition .*remove the one"):
        load("midog22", tmp_path)


@needs_real
def test_the_swapped_counts_are_named_for_midog_2022_alone():
    note = SOURCES["midog22"].note(real("midog22"))
    assert "9,501 mitotic figures and 11,051 look-alikes" in note
    assert SOURCES["midogpp"].note(real("midogpp")) == ""


def slides(*rows):
    return pd.DataFrame(rows, columns=["slide_id", "x_l0_px", "y_l0_px"])


def small(tmp_path, more="", classes=None):
    table = slides(("1.svs", 10.0, 20.0), ("1.svs", 30.0, 40.0), ("2.svs", 50.0, 60.0)).assign(label=[1, 0, 1])
    as_sqlite(tmp_path / "MITOS_WSI_CCMCT_ODAEL.sqlite", table, classes or {1: 2, 0: 7}, 1, more)
    return tmp_path


def test_a_sqlite_label_file_is_not_written_to(tmp_path):
    file = small(tmp_path) / "MITOS_WSI_CCMCT_ODAEL.sqlite"
    before = file.read_bytes()
    assert load("ccmct", tmp_path)["label"].tolist() == [1, 0, 1]
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            "UPDATE Annotations SET type = 3 WHERE uid = 2",
            r"annotation 2 on 1\.svs: 1 coordinates, type 3; expected one of a spot",
        ),
        ("DELETE FROM Annotations_coordinates WHERE annoId = 3", r"annotation 3 on 2\.svs: 0 coordinates"),
        (
            "UPDATE Slides SET width = 25, height = 25 WHERE uid = 2",
            r"annotation 3 on 2\.svs: its centre \(50, 60\) lies more than",
        ),
        (
            "UPDATE Slides SET filename = 'a/b.svs' WHERE uid = 2",
            r"annotation 3 on a/b\.svs: file is 'a/b\.svs', expected a file's name",
        ),
        ("DELETE FROM Slides WHERE uid = 2", "annotation 3 on 2: file is '', expected a file's name"),
        ("UPDATE Annotations_coordinates SET coordinateX = 'x' WHERE annoId = 3", r"annotation 3 on 2\.svs: 0 coordinates"),
        (
            "UPDATE Annotations_coordinates SET coordinateX = 10, coordinateY = 20 WHERE annoId = 2",
            r"annotation 2 on 1\.svs: lies less than 1 px from annotation 1 on 1\.svs",
        ),
        (
            "INSERT INTO Classes VALUES (9, 'mast cell'); UPDATE Annotations SET agreedClass = 9 WHERE uid = 3",
            r"mean nothing here \(2: mitotic figure, 7: look-alike\).*\n  class 9: 1 annotations",
        ),
        ("UPDATE Annotations SET agreedClass = 3", "no annotation, or all are of one class"),
        ("UPDATE Annotations SET agreedClass = 2", "no annotation, or all are of one class"),
        (
            "DROP TABLE Annotations_label",
            r"not a database of SlideRunner's that can be read \(.*no such table: Annotations_label",
        ),
    ],
)
def test_a_wrong_database_is_refused(tmp_path, more, message):
    with pytest.raises(LabelError, match=message):
        load("ccmct", small(tmp_path, more))


def test_what_is_deleted_or_not_agreed_on_is_left_out_of_a_database(tmp_path):
    more = """
        INSERT INTO Annotations (slide, type, agreedClass, deleted) VALUES (1, 1, 2, 1), (1, 1, 9, 1);
        INSERT INTO Annotations (slide, type, agreedClass) VALUES (1, 1, 0), (1, 3, NULL), (1, 1, 1), (1, 3, 3);
    """
    assert load("ccmct", small(tmp_path, more))["label"].tolist() == [1, 0, 1]


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "MITOS_WSI_CCMCT_ODAEL.sqlite").write_text("<html>not found</html>" * 100)
    with pytest.raises(LabelError, match=r"not a database of SlideRunner's that can be read .*fetch the file\s+again"):
        load("ccmct", tmp_path)


def midog22_json(tmp_path, names=("150.png", "151.png"), **image):
    images = [{"id": i, "file_name": name, "width": 400, "height": 400, **image} for i, name in enumerate(names)]
    annotations = [
        {"id": i, "image_id": i % len(names), "bbox": [9, 9, 59, 59 + i], "category_id": 1 + i % 2} for i in range(4)
    ]
    content = {"images": images, "annotations": annotations}
    (tmp_path / "MIDOG2022_training_png.json").write_text(json.dumps(content))
    return tmp_path


def test_the_domain_comes_from_the_image_number(tmp_path):
    table = load("midog22", midog22_json(tmp_path))
    assert table.groupby("slide_id")["domain"].first().tolist() == ["human breast cancer", "canine lung cancer"]


@pytest.mark.parametrize(
    ("names", "image", "message"),
    [
        (("355.png",), {}, r"355\.png: .* by its number it is 'no image there is'"),
        (("slide_7.png",), {}, r"slide_7\.png: .* by its number it is 'no image there is'"),
        (("007.png",), {"tumor_type": "human melanoma"}, r"007\.png: the labels say 'human melanoma', by its number .*breast"),
    ],
)
def test_an_image_that_is_not_what_its_number_says_is_refused(tmp_path, names, image, message):
    with pytest.raises(LabelError, match=message):
        load("midog22", midog22_json(tmp_path, names, **image))


def test_a_slide_of_two_tumours_is_refused(tmp_path):
    text = "x,y,label,filename,tumortype\n1,2,1,001.tiff,human breast cancer\n3,4,0,001.tiff,canine lung cancer\n"
    (tmp_path / "MIDOG2022_training.csv").write_text(text)
    with pytest.raises(LabelError, match=r"001\.tiff: the labels say 'canine lung cancer', by its number .*breast"):
        load("midog22", tmp_path)


def test_either_edition_of_the_images_will_do(tmp_path):
    midog22_json(tmp_path, ("150.tiff", "151.tiff"))
    (tmp_path / "images").mkdir()
    for name in ("images/150.png", "151.tiff"):
        (tmp_path / name).write_bytes(b"")
    table = labels.load(SOURCES["midog22"], tmp_path)
    assert table.groupby("slide_id")["file"].first().to_dict() == {"150.tiff": "images/150.png", "151.tiff": "151.tiff"}


def test_what_is_not_there_says_how_to_fetch_it(tmp_path):
    for source in ("midog22", "midogpp", "ccmct", "amibr"):
        with pytest.raises(LabelError, match=rf"no label file; expected one of .*source '{source}'\); .*make data fetches it"):
            load(source, tmp_path)


def test_cases_that_do_not_fit_the_labels_are_refused(tmp_path):
    content = {
        "images": [{"id": 1, "file_name": "001.tiff", "width": 400, "height": 400, "tumor_type": "human breast cancer"}],
        "annotations": [{"id": i, "image_id": 1, "bbox": [9 + 4 * i, 9, 59, 59], "category_id": i} for i in (1, 2)],
    }
    (tmp_path / "MIDOGpp.json").write_text(json.dumps(content))
    header = "Slide;Dataset;Tumor;Scanner;Origin;Species\n"
    for text, message in (
        (
            header + "2;train;human breast cancer;X;Y;Human\n",
            r"001\.tiff: the labels say 'human breast cancer', by its number it is 'no image",
        ),
        (
            header + "1;train;human melanoma;X;Y;Human\n",
            r"001\.tiff: the labels say 'human breast cancer', by its number it is 'human melanoma'",
        ),
        (header + "1;Test;human breast cancer;X;Y;Human\n", r"on 001\.tiff: split is 'Test', expected train, val, test"),
        (header + "1;a;b;c;d;e\n1;a;b;c;d;e\n", r"001\.tiff: .* by its number it is 'no image"),
        ("Slide,Dataset\n1,train\n", r"missing columns \['Origin'"),
    ):
        (tmp_path / "datasets_xvalidation.csv").write_text(text)
        with pytest.raises(LabelError, match=message):
            load("midogpp", tmp_path)
    (tmp_path / "datasets_xvalidation.csv").write_text(header + "1;train;human breast cancer;Hamammatsu XR;Y;Human\n")
    assert load("midogpp", tmp_path)[["scanner", "lab", "species", "official_split"]].iloc[0].tolist() == [
        "Hamamatsu XR", "Y", "human", "train",
    ]  # fmt: skip
