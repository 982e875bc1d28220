"""Patch classification tasks: miniature copies of each layout give its labels and splits; wrong ones are refused."""

import gzip
import json
import re
import zlib

import h5py
import numpy as np
import pandas as pd
import pytest
from made_natural import cifar
from PIL import Image
from torchvision.datasets import Food101

from mfcore.measures import task_scores
from mfcore.tasks import registry
from mfcore.tasks.classification import PCAM, unpack_pcam
from mfcore.tasks.task import COLUMNS, MAX_HEADERS, TaskData, TaskError, TaskWarning, read_image, sizes_px

BACH = {"Benign": "b", "InSitu": "is", "Invasive": "iv", "Normal": "n"}
CRC = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
MHIST_HEAD = "Image Name,Majority Vote Label,Number of Annotators who Selected SSA (Out of 7),Partition\n"


def pixels(seed: int, n_rows: int = 6, n_columns: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n_rows, n_columns, 3), np.uint8)


def save(path, seed: int, **size) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels(seed, **size)
    Image.fromarray(image).save(path)
    return image


def bach(folder, numbers=range(1, 101)) -> None:
    for order, (name, prefix) in enumerate(BACH.items()):
        for number in numbers:
            path = folder / "ICIAR2018_BACH_Challenge" / "Photos" / name / f"{prefix}{number:03d}.tif"
            save(path, 1000 * order + number, n_rows=3, n_columns=4)
        (folder / "ICIAR2018_BACH_Challenge" / "Photos" / name / "Thumbs.db").write_bytes(b"no image")


def crc(folder, n: int = 2) -> None:
    for seed, (place, tissue, i) in enumerate(
        (place, tissue, i) for place in ("NCT-CRC-HE-100K", "CRC-VAL-HE-7K") for tissue in CRC for i in range(n)
    ):
        save(folder / place / tissue / f"{tissue}-{i:08d}.tif", seed)


def mhist(folder, lines: str) -> None:
    (folder / "annotations.csv").write_text(MHIST_HEAD + lines, encoding="utf-8")


def pcam(folder, n=None, labels=None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, split in enumerate(("train", "valid", "test")):
        count = (n or {"train": 5, "valid": 3, "test": 4})[split]
        with h5py.File(folder / f"camelyonpatch_level_2_split_{split}_x.h5", "w") as file:
            file["x"] = np.random.default_rng(seed).integers(0, 256, (count, 96, 96, 3), np.uint8)
        with h5py.File(folder / f"camelyonpatch_level_2_split_{split}_y.h5", "w") as file:
            file["y"] = np.array(labels or [i % 2 for i in range(count)], np.uint8).reshape(-1, 1, 1, 1)


def load(name, folder) -> TaskData:
    with pytest.warns(TaskWarning, match="don't compare"):
        return registry.get(name).load(folder)


def test_bach_is_split_by_the_positions_of_its_400_photos(tmp_path, recwarn):
    bach(tmp_path)
    data = registry.get("bach").load(tmp_path)
    assert not recwarn.list and data.notes == ()  # all that is published is there
    assert tuple(data.table) == COLUMNS
    assert data.table["split"].value_counts().to_dict() == {"train": 268, "val": 132}
    assert data.table["label"].value_counts().to_dict() == {0: 100, 1: 100, 2: 100, 3: 100}
    stems = {path.rpartition("/")[2].removesuffix(".tif"): split for path, split in data.table[["file", "split"]].values}
    # the borders of eva's ranges, one step on either side: 41, 59, 60, 90, 139, 169, 240, 258, 260, 273, 345, 368
    val = {"b042", "b059", "b061", "b090", "is040", "is069", "iv041", "iv058", "iv061", "iv073", "n046", "n068"}
    train = {"b041", "b060", "b091", "is039", "is070", "iv040", "iv059", "iv060", "iv074", "n045", "n069", "n100"}
    assert {stems[name] for name in val} == {"val"} and {stems[name] for name in train} == {"train"}
    assert data.selected_on.startswith("val") and "reported" in data.selected_on
    row = data.table.index[data.table["file"].str.endswith("Invasive/iv007.tif")][0]
    np.testing.assert_array_equal(data.image(row), pixels(2007, 3, 4))
    assert data.table.loc[row, ["width_px", "height_px"]].tolist() == [4, 3]


def test_a_partial_bach_is_split_as_the_whole_and_said(tmp_path):
    bach(tmp_path, numbers=[41, 42, 59, 60])
    data = load("bach", tmp_path)
    expected = ("train val val train", "val val val val", "val val train train", "train train val val")  # a class each
    assert data.table["split"].tolist() == " ".join(expected).split()
    assert any("268" in note for note in data.notes) and len(data.notes) == 2


def test_bach_with_foreign_names_or_without_a_class_is_refused(tmp_path):
    with pytest.raises(TaskError, match=r"ICIAR2018_BACH_Challenge/Photos(.|\n)*Zenodo, record 3632035"):
        registry.get("bach").load(tmp_path)
    bach(tmp_path, numbers=[1])
    photos = tmp_path / "ICIAR2018_BACH_Challenge" / "Photos"
    save(photos / "Benign" / "b101.tif", 1)
    save(photos / "Benign" / "mine.tif", 1)
    (photos / "Normal" / "n001.tif").unlink()
    with pytest.raises(TaskError) as refused:
        registry.get("bach").load(tmp_path)
    for told in ("Benign/b101.tif", "Benign/mine.tif", "no images in ICIAR2018_BACH_Challenge/Photos/Normal"):
        assert told in str(refused.value)


def test_crc_trains_on_one_folder_and_validates_on_the_other(tmp_path):
    crc(tmp_path)
    data = load("crc", tmp_path)
    assert data.task.classes == CRC and len(data) == 36
    for _, row in data.table.iterrows():
        place, tissue, _ = row["file"].split("/")
        assert row["split"] == {"NCT-CRC-HE-100K": "train", "CRC-VAL-HE-7K": "val"}[place]
        assert CRC[row["label"]] == tissue
    np.testing.assert_array_equal(data.image(19), pixels(19))


def test_crc_without_a_class_is_refused(tmp_path):
    crc(tmp_path, n=1)
    for path in (tmp_path / "CRC-VAL-HE-7K" / "MUC").iterdir():
        path.unlink()
    with pytest.raises(TaskError) as refused:
        registry.get("crc").load(tmp_path)
    assert "no images in CRC-VAL-HE-7K/MUC" in str(refused.value) and "1214456" in str(refused.value)


def test_crc_keeps_one_header_of_many_files(tmp_path, monkeypatch):
    """A header a file takes minutes for 107,180 on a network; the first one's size stands for all."""
    crc(tmp_path)
    assert registry.get("crc").counts["train"] > MAX_HEADERS
    monkeypatch.setattr("mfcore.tasks.task.MAX_HEADERS", 10)
    opened = []
    true_open = Image.open
    monkeypatch.setattr("mfcore.tasks.task.Image.open", lambda path: opened.append(path) or true_open(path))
    data = load("crc", tmp_path)
    assert len(opened) == 1 and set(data.table["width_px"]) == {8} and set(data.table["height_px"]) == {6}


def test_images_are_read_when_asked_for(tmp_path):
    crc(tmp_path, n=1)
    data = load("crc", tmp_path)
    (tmp_path / data.table["file"].iloc[3]).write_bytes(b"torn")
    data.image(2)
    with pytest.raises(TaskError, match=re.escape(str(tmp_path / data.table["file"].iloc[3]))):
        data.image(3)


def test_an_image_with_a_damaged_header_is_refused_by_name(tmp_path, monkeypatch):
    """One that says too little of its size, and one that says more than any memory holds."""
    path, header = tmp_path / "b001.tif", b"IHDR\x00\x00"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\x02" + header + zlib.crc32(header).to_bytes(4, "big"))
    refused_by_name(path)
    save(path, 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    refused_by_name(path)


def refused_by_name(path):
    for read in (lambda: sizes_px([path]), lambda: read_image(path)):
        with pytest.raises(TaskError, match=r"b001\.tif: not an image that can be read"):
            read()


def test_mhist_has_its_labels_and_partitions(tmp_path):
    images = {name: save(tmp_path / "images" / name, seed) for seed, name in enumerate(("a.png", "b.png", "c.png"))}
    mhist(tmp_path, "b.png,HP,1,test\na.png,SSA,6,train\nc.png,HP,0,train\n")
    data = load("mhist", tmp_path)
    assert data.table["file"].tolist() == ["images/b.png", "images/a.png", "images/c.png"]
    assert data.table["label"].tolist() == [1, 0, 1]
    assert data.table["split"].tolist() == ["val", "train", "train"]  # eva selects by the official test split
    np.testing.assert_array_equal(data.image(0), images["b.png"])


def test_a_wrong_mhist_is_refused_with_every_problem(tmp_path):
    with pytest.raises(TaskError, match=r"annotations\.csv: no table(.|\n)*Research Use Agreement"):
        registry.get("mhist").load(tmp_path)
    (tmp_path / "annotations.csv").write_text("Image Name,Partition\na.png,train\n")
    with pytest.raises(TaskError, match="Majority Vote Label"):
        registry.get("mhist").load(tmp_path)
    save(tmp_path / "images" / "a.png", 1)
    (tmp_path / "annotations.csv").write_bytes(b"\xff\xfe\x00<html>not a table")
    with pytest.raises(TaskError, match=r"annotations\.csv: no table that can be read"):
        registry.get("mhist").load(tmp_path)
    (tmp_path / "annotations.csv").write_text("")
    with pytest.raises(TaskError, match=r"annotations\.csv: no table that can be read"):
        registry.get("mhist").load(tmp_path)
    mhist(tmp_path, "a.png,SSL,6,train\ngone.png,HP,6,test\na.png,HP,6,val\n")
    with pytest.raises(TaskError) as refused:
        registry.get("mhist").load(tmp_path)
    for told in (
        "images/gone.png: not there, and named in annotations.csv",
        "annotations.csv: 'SSL' is none of ('SSA', 'HP')",
        "annotations.csv: 'val' is none of ('train', 'test')",
    ):
        assert told in str(refused.value)


def test_pcam_has_three_splits(tmp_path):
    pcam(tmp_path)
    data = load("pcam", tmp_path)
    assert data.selected_on == "val"
    assert data.table["split"].tolist() == ["train"] * 5 + ["val"] * 3 + ["test"] * 4
    assert data.table["label"].tolist() == [0, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0, 1]
    assert data.table["item_id"].is_unique and set(data.table["group"]) == {""}
    assert data.table["width_px"].unique().tolist() == [96]
    expected = np.random.default_rng(1).integers(0, 256, (3, 96, 96, 3), np.uint8)[2]
    np.testing.assert_array_equal(data.image(7), expected)
    assert "262,144" in " ".join(data.notes) and "32,768" in " ".join(data.notes)


def test_pcam_10shot_is_the_same_data(tmp_path):
    pcam(tmp_path)
    ten, whole = load("pcam_10shot", tmp_path), load("pcam", tmp_path)
    assert ten.task.name == "pcam_10shot"
    pd.testing.assert_frame_equal(ten.table, whole.table)
    assert registry.folder_of("pcam_10shot", "data") == registry.folder_of("pcam", "data")


def test_pcam_names_its_slides_where_they_are_known(tmp_path):
    pcam(tmp_path)
    for split, slides in (("train", "aabbc"), ("valid", "dde"), ("test", "ffgg")):
        rows = "".join(f"{i},{slide}\n" for i, slide in enumerate(slides))
        (tmp_path / f"camelyonpatch_level_2_split_{split}_meta.csv").write_text(f",wsi\n{rows}")
    assert "".join(load("pcam", tmp_path).table["group"]) == "aabbcddeffgg"
    (tmp_path / "camelyonpatch_level_2_split_test_meta.csv").write_text(",wsi\n0,f\n")
    with pytest.raises(TaskError, match=r"split_test_x\.h5 and .*: .*length"):
        registry.get("pcam").load(tmp_path)


def test_packed_pcam_is_unpacked_once_and_torn_archives_are_refused(tmp_path):
    pcam(tmp_path)
    file = tmp_path / "camelyonpatch_level_2_split_valid_x.h5"
    content = file.read_bytes()
    packed = file.with_name(file.name + ".gz")
    packed.write_bytes(gzip.compress(content))
    file.unlink()
    with pytest.raises(TaskError, match=r"split_valid_x\.h5 and .*, maybe still to be unpacked"):
        registry.get("pcam").load(tmp_path)
    unpack_pcam(PCAM, tmp_path)
    assert file.read_bytes() == content
    packed.write_bytes(b"not asked for again")
    unpack_pcam(PCAM, tmp_path)
    file.unlink()
    whole = gzip.compress(content)
    packed.write_bytes(whole[:20] + b"damaged in the middle" + whole[41:])
    with pytest.raises(TaskError, match="can't be unpacked"):
        unpack_pcam(PCAM, tmp_path)
    packed.write_bytes(whole[:-20])
    with pytest.raises(TaskError, match="can't be unpacked"):
        unpack_pcam(PCAM, tmp_path)
    assert not file.exists() and not list(tmp_path.glob(".*partial"))


def test_a_wrong_pcam_is_refused(tmp_path):
    with pytest.raises(TaskError, match=r"camelyonpatch_level_2_split_valid_y\.h5(.|\n)*2546921"):
        registry.get("pcam").load(tmp_path)
    pcam(tmp_path, n={"train": 2, "valid": 3, "test": 2}, labels=[0, 1])
    with pytest.raises(TaskError, match=r"valid_y\.h5.*: .*same length"):
        registry.get("pcam").load(tmp_path)


def test_labels_of_pcam_that_are_not_0_and_1_are_refused(tmp_path):
    pcam(tmp_path, labels=[0, 1, 2, 0])
    with pytest.raises(TaskError, match="expected 0 and 1"):
        registry.get("pcam").load(tmp_path)


# ---- natural images ----


def food101(folder, n: int = 2) -> None:
    """Tiny pictures of both orientations, in the authors' layout: meta/{train,test}.json name images/<class>/<number>.jpg."""
    for seed, split in enumerate(("train", "test")):
        listed = {}
        for label, name in enumerate(registry.get("food101").classes):
            listed[name] = [f"{name}/{1000 * seed + i}" for i in range(n)]
            for i, path in enumerate(listed[name]):
                size = {"n_rows": 8, "n_columns": 6} if i else {"n_rows": 6, "n_columns": 9}
                save(folder / "food-101" / "images" / f"{path}.jpg", label, **size)
        (folder / "food-101" / "meta").mkdir(exist_ok=True)
        write_listed(folder, split, dict(reversed(listed.items())))


def write_listed(folder, split, listed) -> None:
    (folder / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(listed))


@pytest.mark.parametrize(("name", "n_files"), [("CIFAR10", 5), ("CIFAR100", 1)])
def test_cifar_has_its_official_splits(tmp_path, monkeypatch, name, n_files):
    images = cifar(tmp_path, name, monkeypatch)
    data = load(name.lower(), tmp_path)
    n_classes = len(data.task.classes)
    assert tuple(data.table) == COLUMNS and data.table["item_id"].is_unique
    assert data.table["split"].tolist() == ["train"] * n_files * n_classes + ["val"] * n_classes
    for i in range(len(data)):
        np.testing.assert_array_equal(data.image(i), np.concatenate([images["train"], images["test"]])[i])
        assert data.image(i)[0, 0, 0] == data.table["label"].iloc[i], "red says the class"
    data.image(0)[:] = 0
    assert data.image(0).any(), "an image is the caller's to change"
    assert "50,000 published" in data.notes[0] and any("no such task" in note for note in data.notes)


def test_cifar_of_another_folder_is_read_anew(tmp_path, monkeypatch):
    for i, name in enumerate("ab"):
        with monkeypatch.context() as patched:
            cifar(tmp_path / name, "CIFAR10", patched, n=i + 1)
            assert len(load("cifar10", tmp_path / name)) == 60 * (i + 1)


def test_food101_is_what_torchvision_reads(tmp_path):
    food101(tmp_path)
    data = load("food101", tmp_path)
    assert data.table["split"].value_counts().to_dict() == {"train": 202, "val": 202}
    theirs = [pair for split in ("train", "test") for pair in Food101(tmp_path, split)]
    for i, (image, label) in enumerate(theirs):
        assert data.table["label"].iloc[i] == label
        np.testing.assert_array_equal(data.image(i), np.asarray(image))
    assert {data.image(i).shape for i in range(4)} == {(6, 9, 3), (8, 6, 3)}, "each image is whole, whatever its sides"


def test_a_large_food101_is_whole_images_too(tmp_path, monkeypatch):
    """Of many files the first one's sides stand for all in the table."""
    food101(tmp_path)
    monkeypatch.setattr("mfcore.tasks.task.MAX_HEADERS", 10)
    data = load("food101", tmp_path)
    assert data.table["height_px"].nunique() == 1 and data.image(1).shape == (8, 6, 3)


def test_a_wrong_food101_is_refused_with_every_problem(tmp_path):
    with pytest.raises(TaskError, match=r"food-101/meta and food-101/images can't be read(.|\n)*food-101\.tar\.gz"):
        registry.get("food101").load(tmp_path)
    food101(tmp_path)
    listed = {name: [f"{name}/1000"] for name in registry.get("food101").classes[1:]}
    write_listed(tmp_path, "test", listed | {"soup": ["soup/1", "soup/2"]})
    with pytest.raises(TaskError) as refused:
        registry.get("food101").load(tmp_path)
    for told in ("meta/test.json has other classes", "meta/test.json: 1 to 2 images a class", "images/soup/2.jpg: not there"):
        assert told in str(refused.value)
    (tmp_path / "food-101" / "meta" / "test.json").write_text("{")
    with pytest.raises(TaskError, match="can't be read"):
        registry.get("food101").load(tmp_path)


def test_balanced_accuracy_of_natural_images_is_top_1_accuracy(tmp_path):
    """Each class of the official test splits has as many images."""
    food101(tmp_path)
    tested = load("food101", tmp_path).table.query("split == 'val'")
    scores = np.random.default_rng(0).random((2, len(tested), 101))
    scores[:, np.arange(len(tested)), tested["label"]] += 0.5
    runs = [
        pd.DataFrame(part, columns=[f"score_{i}" for i in range(101)]).assign(run=run, **tested.reset_index(drop=True))
        for run, part in enumerate(scores)
    ]
    top_1 = (scores.argmax(axis=2) == tested["label"].to_numpy()).mean(axis=1)
    assert top_1.min() > 0.1 and top_1.max() < 0.9
    assert task_scores.of_labels(pd.concat(runs)).values == pytest.approx(top_1)
