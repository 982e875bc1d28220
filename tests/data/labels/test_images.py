"""Labels of one's own patch images: a folder a class, or a table; and what is refused."""

import numpy as np
import pytest
from PIL import Image

from mfcore.data.labels import table as labels
from mfcore.data.labels.source import SOURCES
from mfcore.data.labels.table import LabelError
from mfcore.data.options import Data

FOUR = ("mitosis/1.png", "mitosis/more/2.PNG", "other/3.jpg", "other/4.tif")


def write_images(folder, names, side=8):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name, {".jpg": "JPEG", ".tif": "TIFF"}.get((folder / name).suffix, "PNG"))


def load(folder, text=None, **data):
    if text is not None:
        (folder / "images.csv").write_text(text)
    options = Data(source="images", **{"positive": "mitosis", "negative": "other", **data})
    return labels.load(SOURCES["images"], folder, options.written)


def test_a_folder_a_class(tmp_path):
    write_images(tmp_path, FOUR)
    table = load(tmp_path)
    assert tuple(table.columns) == labels.COLUMNS
    assert table["file"].tolist() == list(FOUR) and table["label"].tolist() == [1, 1, 0, 0]
    assert table["slide_id"].tolist() == table["case_id"].tolist() == list(FOUR)  # each image is its own slide
    assert set(table["domain"]) == {"one domain"} and table[["x_l0_px", "y_l0_px", "um_per_px"]].isna().all(axis=None)


def test_folders_above_the_classes_are_domains(tmp_path):
    write_images(tmp_path, [f"{domain}/{name}" for domain in ("breast", "lung") for name in FOUR])
    table = load(tmp_path)
    assert table["domain"].tolist() == ["breast"] * 4 + ["lung"] * 4 and table["label"].tolist() == [1, 1, 0, 0] * 2


def test_folders_of_a_published_split_are_no_domains(tmp_path):
    write_images(tmp_path, [f"{part}/{name}" for part in ("Train", "test") for name in FOUR])
    table = load(tmp_path)
    assert set(table["domain"]) == {"one domain"}
    assert table["official_split"].tolist() == ["train"] * 4 + ["test"] * 4


def test_classes_other_than_two_are_named_with_a_way_to_compare_one_with_the_rest(tmp_path):
    write_images(tmp_path, [*FOUR, "debris/5.png"])
    with pytest.raises(
        LabelError, match=r"neither 'other' nor 'mitosis'; .*negative: rest .*\s+'debris' \(1, first: debris/5.png\)"
    ):
        load(tmp_path)
    assert load(tmp_path, negative="rest")["label"].tolist() == [0, 1, 1, 0, 0]


def test_labels_that_may_be_mistakes_are_not_taken_for_the_rest(tmp_path):
    write_images(tmp_path, [*FOUR, "Mitosis/5.png"])
    with pytest.raises(LabelError, match=r"'Mitosis' \(1, first: Mitosis/5\.png\) looks like 'mitosis'"):
        load(tmp_path, negative="rest")
    text = "file,label,votes\nmitosis/1.png,mitosis,\nother/3.jpg,,\nother/4.tif,mitosis ;,other\n"
    with pytest.raises(LabelError, match=r"'' \(1, first: line 3\) is empty; give it a label"):
        load(tmp_path, text, negative="rest")
    text = "file,label,votes\nmitosis/1.png,mitosis,mitosis/Mitosis\nother/3.jpg,other,\n"
    with pytest.raises(LabelError, match=r"images\.csv, votes: .*\s+'Mitosis' \(1, first: line 2\) looks like 'mitosis'"):
        load(tmp_path, text, negative="rest")


def test_folders_of_classes_beside_folders_of_domains_are_refused(tmp_path):
    write_images(tmp_path, [*(f"breast/{name}" for name in FOUR), "mitosis/5.png"])
    for negative in ("rest", "other"):
        with pytest.raises(LabelError, match=r"folders of classes \['mitosis'\] beside \['breast/mitosis'"):
            load(tmp_path, negative=negative)


def test_hidden_folders_are_left_out_and_what_cannot_be_read_is_refused(tmp_path):
    hidden = ("mitosis/.ipynb_checkpoints/1.png", ".thumbs/1.png", "mitosis/._1.png", "__MACOSX/mitosis/1.png")
    write_images(tmp_path, [*FOUR, *hidden])
    assert load(tmp_path, negative="rest")["file"].tolist() == list(FOUR)
    (tmp_path / "mitosis" / "5.bmp").write_bytes(b"")
    with pytest.raises(LabelError, match=r"can't be read:\s+mitosis/5\.bmp: save it as PNG"):
        load(tmp_path)
    (tmp_path / "other" / "more").symlink_to(tmp_path / "mitosis")
    with pytest.raises(LabelError, match=r"other/more: a link to a folder isn't followed; put the folder there"):
        load(tmp_path)


def test_a_table_says_what_is_known(tmp_path):
    write_images(tmp_path, ["a/1.png", "a/2.png", "b/3.png"])
    text = "file,label,slide,case,domain,votes,split,x,y,um_per_px,downsample\n"
    text += "a/1.png,1,s1,c1,lung,1/0/1,train,10.5,20,0.25,1\n"
    text += "a/2.png,0,s1,c1,lung,0,train,,,,\nb/3.png,0,s2,c2,skin,,test,7,8,0.5,1\n"
    table = load(tmp_path, text)
    assert table["label"].tolist() == [1, 0, 0] and table["slide_id"].tolist() == ["s1", "s1", "s2"]
    assert table["case_id"].tolist() == ["c1", "c1", "c2"] and table["official_split"].tolist() == ["train", "train", "test"]
    assert [votes.tolist() for votes in table["votes"]] == [[1, 0, 1], [0], []]
    np.testing.assert_array_equal(table["x_l0_px"], [10.5, np.nan, 7])
    np.testing.assert_array_equal(table["um_per_px"], [0.25, np.nan, 0.5])


def test_label_values_go_before_the_classes_names(tmp_path):
    write_images(tmp_path, ["1.png", "2.png"])
    text = "file,label\n1.png,NMF\n2.png,AMF\n"
    assert load(tmp_path, text, label_values=("NMF", "AMF"))["label"].tolist() == [0, 1]
    assert load(tmp_path, text.replace("NMF", "other").replace("AMF", "mitosis"))["label"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("file,label\n1.png,1\n1.png,0\n", "line 3: 1.png stands there twice"),
        ("file,label\n1.png,1\n./1.png,0\n.//1.png,0\n", "line 3: 1.png stands there twice.*line 4"),
        ("file,label\n1.png,1\n9.png,0\n", r"put them there:\s+9.png$"),
        ("file,label\n../1.png,1\n2.png,0\n", "line 2: file is '../1.png', expected a path below"),
        ("file,label\n/1.png,1\n2.png,0\n", "line 2: file is '/1.png', expected a path below"),
        (
            "file,label,um_per_px\n1.png,1,-1\n2.png,0,a\n",
            "line 2: um_per_px is '-1', expected a number above 0.*line 3: um_per_px is 'a'",
        ),
        ("file,label,slide,case\n1.png,1,s,a\n2.png,0,s,b\n", "line 3: case is 'b', line 2 says 'a' of the same slide"),
        ("file,label,votes\n1.png,1,1/2\n2.png,0,\n", r"images\.csv, votes: .*'2' \(1, first: line 2\)"),
        ("name,label\n1.png,1\n", r"missing columns \['file'\], unknown or repeated columns \['name'\]"),
        ("file,label\n1.png,1\n2.png,1\n", "of one class"),
    ],
)
def test_a_wrong_line_is_refused_by_line(tmp_path, lines, message):
    write_images(tmp_path, ["1.png", "2.png"])
    with pytest.raises(LabelError, match=f"(?s){message}"):
        load(tmp_path, lines)


def test_images_outside_the_class_folders_and_no_images_are_refused(tmp_path):
    with pytest.raises(LabelError, match=r"neither a table .* nor a folder a class"):
        load(tmp_path)
    write_images(tmp_path, [*FOUR, "loose.png"])
    with pytest.raises(LabelError, match=r"lie in no class's folder; move them:\s+loose\.png"):
        load(tmp_path)


def test_a_place_on_the_slide_says_how_many_px_of_it_an_image_px_covers(tmp_path):
    write_images(tmp_path, ["1.png", "2.png"])
    table = load(tmp_path, "file,label,x,y\n1.png,mitosis,4,4\n2.png,other,40,4\n")
    assert "downsample" not in table
    table = load(tmp_path, "file,label,x,y,downsample\n1.png,mitosis,4,4,2\n2.png,other,40,4,2\n")
    assert table["downsample"].tolist() == [2, 2]
    with pytest.raises(LabelError, match="line 2: downsample is '-1', expected a number above 0"):
        load(tmp_path, "file,label,x,y,downsample\n1.png,mitosis,4,4,-1\n2.png,other,40,4,2\n")


def test_validation_is_a_part_of_a_published_split_and_no_domain(tmp_path):
    write_images(tmp_path, [f"{part}/{name}" for part in ("train", "Validation", "test") for name in FOUR])
    table = load(tmp_path)
    assert set(table["domain"]) == {"one domain"}
    assert table["official_split"].tolist() == ["val"] * 4 + ["test"] * 4 + ["train"] * 4


def test_a_decimal_comma_between_semicolons_is_one_in_every_column_of_numbers(tmp_path):
    write_images(tmp_path, ["1.png", "2.png"])
    table = load(tmp_path, "file;label;um_per_px\n1.png;mitosis;0,253\n2.png;other;0,5\n")
    assert table["um_per_px"].tolist() == [0.253, 0.5]


def test_an_accent_written_in_another_way_makes_no_other_class(tmp_path):
    write_images(tmp_path, ["1.png", "2.png"])
    with pytest.raises(LabelError, match=r"'mito\u0308se' .*line 2. looks like 'mit\u00f6se'; write it so"):
        load(tmp_path, "file,label\n1.png,mito\u0308se\n2.png,other\n", positive="mit\u00f6se", negative="rest")
