"""Labels in a table of one's own: what may stand in it, and how a wrong line is answered."""

import numpy as np
import pytest
from made_slides import write_dicom

from mfcore.data.labels import table as labels
from mfcore.data.labels.source import SOURCES
from mfcore.data.labels.table import LabelError

GOOD = (
    "file,x,y,label,domain,votes,split\na.svs,10,20,1,lung,1/1/0,train\na.svs,10.5,-3,0,lung,,train\nb.svs,7,8,0,skin,0,test\n"
)


def load(folder, text=GOOD, encoding="utf-8", name="annotations.csv", **changes):
    (folder / name).write_text(text, encoding=encoding)
    for slide in ("a.svs", "b.svs"):
        (folder / slide).write_bytes(b"")
    return labels.load(SOURCES["csv"], folder, **changes)


def test_rows_of_ones_own_table(tmp_path):
    table = load(tmp_path)
    assert tuple(table.columns) == labels.COLUMNS
    assert table["label"].tolist() == [1, 0, 0]
    assert table["x_l0_px"].tolist() == [10.0, 10.5, 7.0] and table["y_l0_px"].tolist() == [20.0, -3.0, 8.0]
    assert table["domain"].tolist() == ["lung", "lung", "skin"]
    assert table["case_id"].tolist() == ["a", "a", "b"]
    assert [votes.tolist() for votes in table["votes"]] == [[1, 1, 0], [], [0]]
    assert table["official_split"].tolist() == ["train", "train", "test"]
    assert table["file"].tolist() == ["a.svs", "a.svs", "b.svs"]


@pytest.mark.parametrize(
    "text",
    [
        "file;x;y;label\na.svs;10,5;2;1\nb.svs;3;4;0\n",
        "label\ty\tx\tfile\r\n1\t2\t10.5\ta.svs\r\n0\t4\t3\tb.svs\r\n",
        "file\tx\ty\tlabel\na.svs\t10,5\t2\t1\nb.svs\t3\t4\t0\n",
        "file;x;y;label;;\na.svs;10,5;2;1;;\n;;;;;\nb.svs;3;4;0;;\n;;;;;\n",
    ],
)
def test_what_a_spreadsheet_saves_is_read(tmp_path, text):
    table = load(tmp_path, text, encoding="utf-8-sig")
    assert table["x_l0_px"].tolist() == [10.5, 3.0] and table["label"].tolist() == [1, 0]


def test_classes_are_written_as_the_study_says_and_the_only_table_may_have_any_name(tmp_path):
    text = "file,x,y,label,votes\na.svs,1,2,AMF,AMF/NMF\nb.svs,3,4,NMF,NMF\n"
    table = load(tmp_path, text, name="ours.csv", label_values=("NMF", "AMF"))
    assert table["label"].tolist() == [1, 0] and table["votes"].iloc[0].tolist() == [1, 0]
    (tmp_path / "theirs.csv").write_text(text)
    with pytest.raises(LabelError, match=r"more than one label file: ours\.csv, theirs\.csv"):
        labels.load(SOURCES["csv"], tmp_path)


def test_votes_are_divided_by_slash_or_semicolon_and_classes_may_have_spaces(tmp_path):
    text = "file,x,y,label,votes\na.svs,1,2,mitotic figure,mitotic figure; other\nb.svs,3,4,other,other/mitotic figure/other\n"
    table = load(tmp_path, text, label_values=("other", "mitotic figure"))
    assert [votes.tolist() for votes in table["votes"]] == [[1, 0], [0, 1, 0]]


def test_without_domains_all_are_of_one_and_a_slide_may_have_a_name(tmp_path):
    table = load(tmp_path, "file,slide,x,y,label\na.svs,S1,1,2,1\nb.svs,,3,4,0\n")
    assert table["domain"].tolist() == ["one domain"] * 2
    assert table["slide_id"].tolist() == ["S1", "b.svs"] and table["case_id"].tolist() == ["a", "b"]
    assert table["file"].tolist() == ["a.svs", "b.svs"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("10,20,1", "ten,20,1", "line 2: x is 'ten', expected a number"),
        ("10,20,1", "1_0,20,1", "line 2: x is '1_0', expected a number"),
        ("10,20,1", "inf,20,1", "line 2: x is 'inf', expected a number"),
        ("10,20,1", "10,,1", "line 2: y is '', expected a number"),
        ("10,20,1", "10,20,2", r"neither '0' nor '1'; .*label_values.*'2' \(1, first: line 2\)"),
        ("10.5,-3", "10,20", "line 3: lies less than 1 px from line 2 on the same slide"),
        ("10.5,-3", "10.6,20.7", "line 3: lies less than 1 px from line 2 on the same slide; keep one of them"),
        ("10.5,-3", "10.5,-26", r"line 3: its centre \(10\.5, -26\) lies more than 25 px off the slide"),
        ("b.svs", "", "line 4: file is '', expected a file's name"),
        ("b.svs", "sub/b.svs", "line 4: file is 'sub/b.svs', expected a file's name without a folder"),
        ("b.svs", r"sub\\b.svs", r"line 4: file is .*, expected a file's name without a folder"),
        ("skin", "", "line 4: domain is empty"),
        ("skin", "all", "line 4: domain is 'all', a name that tables of results need; name the domain otherwise"),
        ("skin", "sum", "line 4: domain is 'sum', a name that tables of results need"),
        ("skin", "domains of one or two cases", "line 4: domain is 'domains of one or two cases', a name"),
        ("lung,,train", "lung,,test", "line 3: split is 'test', line 2 says 'train' of the same slide"),
        ("lung,,train", "skin,,train", "line 3: domain is 'skin', line 2 says 'lung' of the same slide"),
        ("10,20,1", "10,5,20,1", "not a CSV file .* in line 2, saw 8.* where a comma is the decimal point"),
        ("a.svs,10,20", "\n\na.svs,ten,20", "line 4: x is 'ten'"),
        ("a.svs", '"a.svs', "not a CSV file "),
        ("domain", "x", r"unknown or repeated columns \['x'\]"),
        ("b.svs", "c.svs", r"put them there:\s+c\.svs"),
        ("1/1/0", "1/2", r", votes: .*'2' \(1, first: line 2\)"),
        ("test", "holdout", "line 4: split is 'holdout', expected train, val, test or nothing"),
        ("label", "class", r"missing columns \['label'\], unknown .*\['class'\]; needed are"),
        ("votes", "raters", r"unknown or repeated columns \['raters'\]"),
        (GOOD[GOOD.index("a.svs") :], "", "no line below the header"),
        (GOOD, "", "not a CSV file"),
        (",0,", ",1,", "no annotation, or all are of one class"),
    ],
)
def test_a_wrong_line_is_refused_by_line(tmp_path, old, new, message):
    assert old in GOOD
    text = GOOD.replace(old, new) if "class" in message else GOOD.replace(old, new, 1)
    with pytest.raises(LabelError, match=rf"(?s)annotations\.csv.*{message}"):
        load(tmp_path, text)


def test_a_table_that_is_not_utf_8_is_refused(tmp_path):
    with pytest.raises(LabelError, match="not UTF-8 text; save it as CSV in UTF-8"):
        load(tmp_path, GOOD.replace("lung", "Brustdrüse"), encoding="latin-1")


def test_a_comma_that_may_divide_thousands_is_refused(tmp_path):
    with pytest.raises(LabelError, match=r"line 2: x is '10,233', expected a number such as 10233\.5"):
        load(tmp_path, "file;x;y;label\na.svs;10,233;2;1\nb.svs;3;4;0\n")


def test_a_slide_is_one_file(tmp_path):
    with pytest.raises(LabelError, match=r"line 3: file is 'b\.svs', line 2 says 'a\.svs' of the same slide"):
        load(tmp_path, "file,slide,x,y,label\na.svs,S,1,2,1\nb.svs,S,3,4,0\n")


def test_files_of_one_dicom_slide_are_one_slide(tmp_path):
    """Two levels of a slide would put it on both sides of a split; a label of it shows no tissue."""
    image = np.full((64, 64, 3), 200, np.uint8)
    levels, kinds = [image, image[::2, ::2], image[::4, ::4]], ("VOLUME", "VOLUME", "LABEL")
    write_dicom(tmp_path / "images", levels, name="{}.dcm", kinds=kinds)
    write_dicom(tmp_path / "images", [image], name="other.dcm", series="1.2.3.5")
    (tmp_path / "annotations.csv").write_text("file,x,y,label\n0.dcm,1,2,1\n1.dcm,3,4,0\n2.dcm,3,4,0\nother.dcm,3,4,0\n")
    with pytest.raises(LabelError) as refused:
        labels.load(SOURCES["csv"], tmp_path)
    assert "annotations.csv: files that are no slide of their own; name one file a slide or DICOM series:" in str(refused.value)
    assert "1.dcm: the slide of 0.dcm, series 1.2.3.4" in str(refused.value)
    assert "2.dcm: the label of a slide" in str(refused.value) and "other.dcm" not in str(refused.value)
    (tmp_path / "annotations.csv").write_text("file,x,y,label\n1.dcm,1,2,1\nother.dcm,3,4,0\n")
    table = labels.load(SOURCES["csv"], tmp_path)
    assert table["file"].tolist() == ["images/1.dcm", "images/other.dcm"]
