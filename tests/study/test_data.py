"""A study's patches: the right px in the right row, resumed after a kill, and bad slides named before anything is read."""

import dataclasses
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from made_slides import off_by, pattern, write_scn
from PIL import Image

from mfcore import store
from mfcore.data import patches, patches_read
from mfcore.data.labels import table as labels
from mfcore.data.patches import PatchError
from mfcore.data.slides.slide import open_slide
from mfcore.study import data as study_data
from mfcore.study.config import Data, Network, Patches, Settings, Switches

REAL = Path(__file__).parents[2].parent / "shared" / "data"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real data of ../shared/data are not here")

STUDY = Settings(name="tiny", title="t", data=Data(source="midog"), patches=Patches(size_px=24, um_per_px=0.25))
NATIVE = dataclasses.replace(STUDY, switches=Switches(resolution="native"))
UM_PER_PX = {"001.tiff": 0.25, "002.tiff": 0.226, "003.tiff": 0.2}


def write_slide(path, seed, um_per_px):
    image = np.random.default_rng(seed).integers(0, 256, (140, 160, 3), dtype=np.uint8)
    said = {} if um_per_px is None else {"resolution": (1e4 / um_per_px,) * 2, "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, image, tile=(32, 32), photometric="rgb", **said)
    return image


@pytest.fixture
def folder(tmp_path):
    """Three slides of three resolutions and twelve annotations, out of order, one of them with its centre off the slide."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    for seed, (name, um_per_px) in enumerate(UM_PER_PX.items()):
        write_slide(folder / "images" / name, seed, um_per_px)
    places = np.random.default_rng(9).integers(20, 120, (12, 2)).tolist()
    places[4] = [-5, 60]
    annotations = [
        {"id": i, "image_id": i % 3, "bbox": [x - 25, y - 25, x + 25, y + 25], "category_id": 1 + i % 2, "labels": [1, 2]}
        for i, (x, y) in enumerate(places)
    ]
    images = [
        {"id": i, "file_name": name, "width": 160, "height": 140, "tumor_type": "ab"[i > 0], "scanner": "AAB"[i]}
        for i, name in enumerate(UM_PER_PX)
    ]
    (folder / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder


def write_images(folder, size=32, n=6, mode="RGB"):
    """AMi-Br in small: ``n`` patch images of two slides."""
    lines = ["slide,dataset,uid,x,y,expert1_atypical,expert2_atypical,expert3_atypical,majority_atypical"]
    rng = np.random.default_rng(4)
    for uid in range(n):
        atypical = uid % 3 == 0
        lines.append(f"{uid % 2}.tiff,MIDOG21,{uid},5,6" + f",{atypical}" * 4)
        file = folder / "patches" / ("atypical" if atypical else "normal") / f"MIDOG21_{uid}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).convert(mode).save(file)
    (folder / "AMI-BR.csv").write_text("\n".join(lines) + "\n")
    return folder


def image_study(size=32, **data):
    """Of patch images whose resolution isn't known, unless ``um_per_px`` says it."""
    patches = Patches(size_px=size, um_per_px=0.25 if data.get("um_per_px") else None)
    return Settings(name="images", title="t", data=Data(source="amibr", **data), patches=patches)


@pytest.mark.parametrize("study", [STUDY, NATIVE, dataclasses.replace(STUDY, patches=Patches(size_px=24, stored_px=40))])
def test_every_row_holds_its_annotations_patch(folder, tmp_path, study):
    run = study_data.extract(study, folder, tmp_path / "results")
    table, array = patches.load(run)
    assert array.shape == (12, study.stored_px, study.stored_px, 3)
    assert array.dtype == np.uint8
    patches.check(array, table)
    for row in table.itertuples():
        with open_slide(folder / row.file) as slide:
            um_per_px = None if study.switches.resolution == "native" else 0.25
            expected = slide.read(row.x_l0_px, row.y_l0_px, study.stored_px, um_per_px)
        np.testing.assert_array_equal(array[row.patch_id], expected)
    assert table["um_per_px"].to_numpy() == pytest.approx(table["slide_id"].map(UM_PER_PX).to_numpy(), rel=1e-4)
    np.testing.assert_array_equal(table["x_l0_px"], study_data.load_labels(study, folder)["x_l0_px"])


@pytest.mark.parametrize("study", [NATIVE, STUDY])
def test_a_place_without_an_annotation_is_read_as_a_stored_patch_is(folder, tmp_path, study):
    """What the network sees of it lies inside its slide; the first share is the first such place, the last the last."""
    run = study_data.extract(study, folder, tmp_path / "results")
    table, _ = patches.load(run)
    names = np.array(list(UM_PER_PX) * 3, object)
    shares = np.concatenate([np.zeros((3, 2)), np.full((3, 2), 1 - 1e-9), np.random.default_rng(3).random((3, 2))])
    centres, stored = patches.read_anywhere(table, folder, study_data.reading_of(study), names, shares, seen_px=16)
    assert stored.shape == (9, study.stored_px, study.stored_px, 3) and stored.dtype == np.uint8
    for name, centre, patch in zip(names, centres, stored, strict=True):
        um_per_px = None if study == NATIVE else study.patches.um_per_px
        with open_slide(folder / "images" / name) as slide:
            np.testing.assert_array_equal(patch, slide.read(*centre, study.stored_px, um_per_px))
            assert not slide.reaches_over(centre[None], 16, um_per_px).any()
            if study == NATIVE:
                x, y = (int(place) for place in centre)
                image = tifffile.imread(folder / "images" / name)
                np.testing.assert_array_equal(patches.centre_crop(patch, 16), image[y - 8 : y + 8, x - 8 : x + 8])
    if study == NATIVE:
        assert (centres[:3] == 8).all() and (centres[3:6] == [160 - 8 - 1, 140 - 8 - 1]).all()
    same = patches.refuse_other_slides(run, folder, table)
    assert same is None
    (folder / "images" / next(iter(UM_PER_PX))).unlink()
    with pytest.raises(PatchError, match=r"slides that the patches were cut from 1 aren't there, the first: images/001\.tiff"):
        patches.refuse_other_slides(run, folder, table)


def test_the_run_says_what_it_holds(folder, tmp_path):
    run = study_data.extract(STUDY, folder, tmp_path / "results")
    facts = run.verify().record["facts"]
    assert facts["n_patches"] == 12
    assert facts["domains"] == [
        {"domain": "a", "n_slides": 1, "n_positive": 2, "n_negative": 2, "positive_share": 0.5},
        {"domain": "b", "n_slides": 2, "n_positive": 4, "n_negative": 4, "positive_share": 0.5},
    ]
    assert facts["um_per_px_said_by_study"] == []
    assert facts["n_patches_over_edge"] >= 1
    assert {file.name for file in run.folder.iterdir()} == {"begun.json", "run.json", "labels.parquet", "patches.npy"}
    assert study_data.find_patches(STUDY, tmp_path / "results").folder == run.folder


def test_a_patch_over_the_edge_is_counted_to_the_px(tmp_path):
    """A patch of 24 px on a slide 160 px wide: centres from 12 to 148 are inside."""
    write_slide(tmp_path / "001.tiff", 0, 0.25)
    images = [{"id": 1, "file_name": "001.tiff", "width": 160, "height": 140, "tumor_type": "a"}]
    boxes = [[x - 25, 45, x + 25, 95] for x in (11, 12, 148, 149)]
    annotations = [{"id": i, "image_id": 1, "bbox": box, "category_id": 1 + i % 2} for i, box in enumerate(boxes)]
    (tmp_path / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    run = study_data.extract(STUDY, tmp_path, tmp_path / "results")
    assert run.record["facts"]["n_patches_over_edge"] == 2
    white = (patches.load(run)[1] == 255).all(axis=(1, 3))  # (n_patches, columns)
    assert white.sum(axis=1).tolist() == [1, 0, 0, 1]


def test_a_kill_between_the_rename_and_the_record_is_resumed(folder, tmp_path, monkeypatch):
    run = study_data.extract(STUDY, folder, tmp_path / "results")
    run.path("run.json").unlink()
    run.path("labels.parquet").unlink()
    monkeypatch.setattr(patches, "read_all", lambda *arguments: pytest.fail("nothing is left to read"))
    assert study_data.extract(STUDY, folder, tmp_path / "results").verify().done


def test_a_finished_run_reads_nothing_again(folder, tmp_path, monkeypatch):
    first = study_data.extract(STUDY, folder, tmp_path / "results")
    monkeypatch.setattr(patches, "look", lambda *arguments: pytest.fail("nothing is left to do"))
    assert study_data.extract(STUDY, folder, tmp_path / "results").key == first.key


def test_other_data_are_another_run(folder, tmp_path):
    first = study_data.extract(STUDY, folder, tmp_path / "results")
    write_slide(folder / "images" / "001.tiff", 5, 0.25)
    with (folder / "images" / "001.tiff").open("ab") as slide:
        slide.write(b"\0")
    second = study_data.extract(STUDY, folder, tmp_path / "results")
    content = json.loads((folder / "annotations.json").read_text())
    content["annotations"][0]["bbox"] = [30, 30, 80, 80]
    (folder / "annotations.json").write_text(json.dumps(content))
    third = study_data.extract(STUDY, folder, tmp_path / "results")
    assert len({first.folder, second.folder, third.folder}) == 3


def test_a_slide_of_the_same_length_is_another_run_and_a_copy_of_it_is_not(folder, tmp_path):
    first = study_data.extract(STUDY, folder, tmp_path / "results")
    slide = folder / "images" / "002.tiff"
    before = slide.read_bytes()
    write_slide(slide, 77, UM_PER_PX["002.tiff"])
    assert slide.stat().st_size == len(before)
    assert study_data.extract(STUDY, folder, tmp_path / "results").key != first.key
    slide.write_bytes(before)
    assert study_data.extract(STUDY, folder, tmp_path / "results").key == first.key


def test_what_decides_the_patches_is_in_the_hash():
    keys = {
        store.digest(study_data.patches_config(study))
        for study in (
            STUDY,
            NATIVE,
            dataclasses.replace(STUDY, patches=Patches(size_px=24, um_per_px=0.5)),
            dataclasses.replace(STUDY, patches=Patches(size_px=24, stored_px=30)),
            dataclasses.replace(STUDY, networks=(Network(name="n", input_px=24),)),  # which needs wider patches
            dataclasses.replace(STUDY, data=Data(source="midog", um_per_px=0.25)),
        )
    }
    assert len(keys) == 6
    renamed = dataclasses.replace(STUDY, data=Data(source="midog", positive="MF"), encoders=("e",))
    assert study_data.patches_config(renamed) == study_data.patches_config(STUDY)


@pytest.mark.parametrize(
    ("name", "content"), [("patches.npy", b"\x93NUMPY"), ("patches.npy", b"text"), ("labels.parquet", b"{")]
)
def test_a_finished_file_that_is_damaged_or_missing_is_told(folder, tmp_path, name, content):
    run = study_data.extract(STUDY, folder, tmp_path / "results")
    run.path(name).write_bytes(content)
    with pytest.raises(store.StoreError, match=rf"{run.folder}: .* missing or damaged .*; remove the folder"):
        patches.load(run)
    run.path(name).unlink()
    with pytest.raises(store.StoreError, match=r"missing or damaged .*; remove the folder"):
        patches.load(run)


def test_every_bad_slide_is_named_before_anything_is_read(folder, tmp_path, monkeypatch):
    images = folder / "images"
    images.joinpath("001.tiff").write_bytes(images.joinpath("001.tiff").read_bytes()[:-1000])
    write_slide(images / "003.tiff", 2, None)
    monkeypatch.setattr(patches, "read_all", lambda *arguments: pytest.fail("a patch was read"))
    said = r'(?s)2 files can.t be used.*001\.tiff: cut short.*003\.tiff: .*its um/px.*um_per_px_by_scanner: \{"B"'
    with pytest.raises(PatchError, match=said):
        study_data.extract(STUDY, folder, tmp_path / "results")
    assert not list((tmp_path / "results").rglob("*.npy"))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"um_per_px": 0.2}, 0.2),
        ({"um_per_px": 0.4, "um_per_px_by_scanner": {"A": 0.3, "B": 0.2}}, 0.2),  # a scanner's goes first
        ({"um_per_px": 0.2, "um_per_px_by_scanner": {"A": 0.3}}, 0.2),
    ],
)
def test_a_slide_without_resolution_takes_the_studys_for_its_scanner_and_the_run_says_so(folder, tmp_path, said, expected):
    write_slide(folder / "images" / "003.tiff", 2, None)
    study = dataclasses.replace(STUDY, data=Data(source="midog", **said))
    run = study_data.extract(study, folder, tmp_path / "results")
    assert run.record["facts"]["um_per_px_said_by_study"] == [{"slide_id": "003.tiff", "scanner": "B", "um_per_px": expected}]
    table, array = patches.load(run)
    assert table["um_per_px"].tolist() == pytest.approx([0.25, 0.226, 0.2] * 4, rel=1e-4)
    with open_slide(folder / table["file"][2], um_per_px=expected) as slide:
        np.testing.assert_array_equal(array[2], slide.read(table["x_l0_px"][2], table["y_l0_px"][2], 24, 0.25))


def edge_study(folder, at_border, stored_px=None):
    """A slide 160 px wide and 140 high, 0.25 um/px; the annotations' centres from left of it to its middle."""
    image = write_slide(folder / "001.tiff", 0, 0.25)
    images = [{"id": 1, "file_name": "001.tiff", "width": 160, "height": 140, "tumor_type": "a"}]
    boxes = [[x - 25, y - 25, x + 25, y + 25] for x, y in ((-4, 70), (11, 139), (12, 12), (80, 70))]
    annotations = [{"id": i, "image_id": 1, "bbox": box, "category_id": 1 + i % 2} for i, box in enumerate(boxes)]
    (folder / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return image, dataclasses.replace(STUDY, patches=Patches(size_px=24, stored_px=stored_px, at_border=at_border))


def test_white_at_the_border_leaves_a_patch_on_its_annotation(tmp_path):
    _, study = edge_study(tmp_path, "white")
    run = study_data.extract(study, tmp_path, tmp_path / "results")
    table, array = patches.load(run)
    assert table["patch_x_l0_px"].tolist() == table["x_l0_px"].tolist() == [-4, 11, 12, 80]
    assert table["patch_y_l0_px"].tolist() == table["y_l0_px"].tolist()
    assert [run.record["facts"][f"n_patches_{what}"] for what in ("over_edge", "shifted")] == [2, 0]
    assert (array[0, :, :16] == 255).all()


@pytest.mark.parametrize("stored_px", [None, 40])
def test_a_shift_at_the_border_moves_what_an_encoder_sees_inside(tmp_path, stored_px):
    """The centres move by as little as brings 24 px inside; a wider stored margin is white where it is outside."""
    image, study = edge_study(tmp_path, "shift", stored_px)
    run = study_data.extract(study, tmp_path, tmp_path / "results")
    table, array = patches.load(run)
    assert table[["patch_x_l0_px", "patch_y_l0_px"]].to_numpy().tolist() == [[12, 70], [12, 128], [12, 12], [80, 70]]
    assert table["x_l0_px"].tolist() == [-4, 11, 12, 80]
    n_over_edge = 0 if stored_px is None else 3
    assert [run.record["facts"][f"n_patches_{what}"] for what in ("over_edge", "shifted")] == [n_over_edge, 2]
    seen = patches.centre_crop(array, 24)
    for patch, (x, y) in zip(seen, [(0, 58), (0, 116), (0, 0), (68, 58)], strict=True):
        np.testing.assert_array_equal(patch, image[y : y + 24, x : x + 24])
    if stored_px:
        assert (array[2, :8] == 255).all()
        assert (array[2, :, :8] == 255).all()


@pytest.mark.parametrize("at_border", ["white", "shift"])
def test_black_at_the_border_is_as_released_whatever_at_border_says(tmp_path, at_border):
    """Nothing is moved, what is outside is black, what is inside as it was; the store is another."""
    image, study = edge_study(tmp_path, at_border)
    black = dataclasses.replace(study, switches=Switches(border="black"))
    run = study_data.extract(black, tmp_path, tmp_path / "results")
    table, array = patches.load(run)
    assert table["patch_x_l0_px"].tolist() == table["x_l0_px"].tolist()
    assert [run.record["facts"][f"n_patches_{what}"] for what in ("over_edge", "shifted")] == [2, 0]
    assert (array[0, :, :16] == 0).all()
    np.testing.assert_array_equal(array[0, :, 16:], image[58:82, :8])
    np.testing.assert_array_equal(array[3], image[58:82, 68:92])
    assert study_data.extract(study, tmp_path, tmp_path / "results").key != run.key
    patches.check(array, table)


def test_patch_images_have_no_border_to_blacken_and_are_not_resampled():
    said = dataclasses.replace(image_study(), switches=Switches(border="black", resolution="native"))
    assert study_data.patches_config(said) == study_data.patches_config(image_study())


def test_labels_of_another_image_are_refused(folder, tmp_path):
    tifffile.imwrite(
        folder / "images" / "002.tiff",
        np.zeros((32, 32, 3), np.uint8),
        tile=(32, 32),
        photometric="rgb",
        resolution=(40000, 40000),
        resolutionunit="CENTIMETER",
    )
    with pytest.raises(PatchError, match=r"002\.tiff: is 32 x 32 px, a label lies at .*of another image"):
        study_data.extract(STUDY, folder, tmp_path / "results")


def test_px_that_turn_out_damaged_stop_the_run_but_keep_the_others(folder, tmp_path):
    path = folder / "images" / "002.tiff"
    image = np.random.default_rng(1).integers(0, 256, (140, 160, 3), dtype=np.uint8)
    said = {"resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, image, tile=(32, 32), photometric="rgb", compression="jpeg", **said)
    whole = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        holes = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    with path.open("r+b") as slide:
        for offset, length in holes[1:]:  # OpenSlide looks at the first when it opens
            slide.seek(offset)
            slide.write(bytes(length))
    with pytest.raises(PatchError, match=r"1 files can't be used.*\n.*002\.tiff: damaged near level-0 px"):
        study_data.extract(STUDY, folder, tmp_path / "results")
    path.write_bytes(whole)  # fetched again: the same name and size
    run = study_data.extract(STUDY, folder, tmp_path / "results")
    table, array = patches.load(run)
    with open_slide(path) as slide:
        row = table[table["slide_id"] == "002.tiff"].iloc[0]
        np.testing.assert_array_equal(array[row.patch_id], slide.read(row.x_l0_px, row.y_l0_px, 24, 0.25))


def test_a_full_disk_is_seen_before(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(patches_read.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(PatchError, match=r"need 20,736 bytes, 1,000 are free"):
        study_data.extract(STUDY, folder, tmp_path / "results")


def test_patch_images_are_read_as_they_are(tmp_path):
    folder = write_images(tmp_path / "data")
    run = study_data.extract(image_study(), folder, tmp_path / "results")
    table, array = patches.load(run)
    assert array.shape == (6, 32, 32, 3)
    for row in table.itertuples():
        np.testing.assert_array_equal(array[row.patch_id], np.asarray(Image.open(folder / row.file)))
    assert table["um_per_px"].isna().all()
    assert run.record["facts"]["um_per_px_said_by_study"] == []
    said = study_data.extract(image_study(um_per_px=0.25), folder, tmp_path / "results")
    assert patches.load(said)[0]["um_per_px"].tolist() == [0.25] * 6
    assert said.record["facts"]["um_per_px_said_by_study"] == [
        {"slide_id": "MIDOG21/0.tiff", "scanner": "", "um_per_px": 0.25}  # one for each resolution
    ]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: Image.new("RGB", (32, 31)).save(file), "32 x 31 px, the study stores 32 px"),
        (lambda file: Image.new("L", (32, 32)).save(file), "L, 1 frames; save it as one image of 8 bit RGB"),
        (lambda file: file.write_bytes(b"not a PNG"), "not an image that can be read"),
        (lambda file: file.write_bytes(file.read_bytes()[:-800]), "damaged"),
    ],
)
def test_a_bad_patch_image_is_named(tmp_path, spoil, message):
    folder = write_images(tmp_path / "data")
    spoil(folder / "patches" / "normal" / "MIDOG21_4.png")
    with pytest.raises(PatchError, match=rf"(?s)1 files can't be used.*MIDOG21_4\.png: .*{message}"):
        study_data.extract(image_study(), folder, tmp_path / "results")


def test_patch_images_are_never_resampled(tmp_path):
    folder = write_images(tmp_path / "data")
    with pytest.raises(PatchError, match=r"images have 0\.5 um/px, patches\.um_per_px is 0\.25"):
        study_data.extract(image_study(um_per_px=0.5), folder, tmp_path / "results")
    with pytest.raises(PatchError, match=r"(?s)6 files.*32 x 32 px, the study stores 24 px.*input_px"):
        study_data.extract(image_study(size=24), folder, tmp_path / "results")


def test_a_wide_patchs_centre_is_the_narrow_patch(folder, tmp_path):
    wide = dataclasses.replace(NATIVE, patches=Patches(size_px=24, stored_px=40))
    narrow = patches.load(study_data.extract(NATIVE, folder, tmp_path / "narrow"))[1]
    cropped = patches.centre_crop(patches.load(study_data.extract(wide, folder, tmp_path / "wide"))[1], 24)
    np.testing.assert_array_equal(cropped, narrow)


def test_check_refuses_patches_of_a_single_colour(folder, tmp_path):
    table, array = patches.load(study_data.extract(STUDY, folder, tmp_path / "results"))
    patches.check(array, table)
    blank = np.array(array)
    blank[3] = 255
    with pytest.raises(PatchError, match=r"1 of 12 patches looked at are of a single colour.*001\.tiff"):
        patches.check(blank, table)


def test_prepare_finds_or_says_what_is_expected(folder, tmp_path):
    assert study_data.prepare(STUDY, folder) == folder
    with pytest.raises(
        labels.LabelError, match=r"nowhere: no such folder; it must hold a label file \(annotations\.json.*images/"
    ):
        study_data.prepare(STUDY, tmp_path / "nowhere")
    with pytest.raises(labels.LabelError, match="no label file"):
        study_data.prepare(STUDY, tmp_path)
    given = write_images(tmp_path / "given")
    assert study_data.prepare(image_study(), given) == given


def test_prepare_makes_the_synthetic_set_as_the_study_says(tmp_path, monkeypatch):
    asked = {}

    def make_dataset(folder, **arguments):
        asked.update(arguments)
        folder.mkdir()
        (folder / "annotations.json").write_text("{}")

    monkeypatch.setattr("mfcore.data.synthetic.slides.make_dataset", make_dataset)
    study = dataclasses.replace(STUDY, data=Data(source="synthetic", seed=3, n_slides=4, n_annotations=50))
    assert study_data.prepare(study, tmp_path / "made", n_workers=2) == tmp_path / "made"
    assert asked == {"seed": 3, "n_slides": 4, "n_annotations": 50, "n_workers": 2}


@needs_real
def test_real_patch_images(tmp_path):
    run = study_data.extract(image_study(size=128), REAL / "amibr", tmp_path)
    table, array = patches.load(run)
    published = pd.read_csv(REAL / "amibr" / "AMI-BR.csv")
    assert array.shape == (len(published), 128, 128, 3)
    patches.check(array, table)
    row = table.iloc[1234]
    np.testing.assert_array_equal(array[1234], np.asarray(Image.open(REAL / "amibr" / row.file)))
    assert patches.counts(table)["n_positive"].sum() == published["majority_atypical"].sum()


@needs_real
def test_a_real_slide(tmp_path):
    """MIDOG's JSON on the real strip: native patches are its px, and the file's own resolution is what the table says."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "canine_strip.tif").symlink_to(REAL / "slides" / "canine_strip.tif")
    images = [{"id": 1, "file_name": "canine_strip.tif", "width": 7215, "height": 5412, "tumor_type": "canine"}]
    boxes = [[4475, 3975, 4525, 4025], [2975, 3975, 3026, 4026]]
    annotations = [{"id": i, "image_id": 1, "bbox": box, "category_id": 1 + i} for i, box in enumerate(boxes)]
    (folder / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    study = dataclasses.replace(STUDY, patches=Patches(size_px=224))
    table, array = patches.load(study_data.extract(study, folder, tmp_path / "results"))
    whole = tifffile.imread(REAL / "slides" / "canine_strip.tif", key=0)
    np.testing.assert_array_equal(array[0], whole[3888:4112, 4388:4612])
    np.testing.assert_array_equal(array[1], whole[3889:4113, 2889:3113])  # the centre 3000.5 goes right and down
    assert table["um_per_px"].tolist() == pytest.approx([0.25, 0.25])
    assert not math.isclose(array[0].std(), 0)


def test_twins_of_stored_patches_are_looked_for_once(tmp_path, monkeypatch):
    study = Settings("t", "t", Data("midog"))
    run = store.open_run(tmp_path, "patches", "t", study_data.patches_config(study), {})
    table = pd.DataFrame({"patch_id": range(4), "case_id": list("aabb"), "domain": list("xyzz"), "label": [0, 1, 0, 1]})
    store.write_parquet(run.path("labels.parquet"), table)
    made = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    made[3] = made[0]
    np.save(run.path("patches.npy"), made)
    run.finish(["labels.parquet", "patches.npy"])
    assert study_data.labels_with_twins(study, tmp_path)["twin"].tolist() == [0, 1, 2, 0]
    facts = study_data.write_twins(study, tmp_path).record["facts"]
    assert facts == {"n_groups": 1, "n_cases_across_domains": 1}
    monkeypatch.setattr(patches, "twins", None)
    assert study_data.labels_with_twins(study, tmp_path)["twin"].tolist() == [0, 1, 2, 0]


SCANNED_AT = {"a.scn": (1000, 800), "b.scn": (30, 20)}  # the second one's offset leaves patches on tissue


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    """Two slides whose scanned area lies within a larger plane, marked as QuPath does; in a table and in MIDOG's JSON."""
    folder, image = tmp_path_factory.mktemp("scanned"), pattern(600, 500)
    for name, at in SCANNED_AT.items():
        write_scn(folder / name, [image], at)
    places = [(name, x, y) for name in SCANNED_AT for x, y in ((100, 90), (333, 250), (480, 410))]
    lines = [f"{name},{x},{y},{k % 2}" for k, (name, x, y) in enumerate(places)]
    (folder / "annotations.csv").write_text("file,x,y,label\n" + "\n".join(lines) + "\n")
    images = [{"id": name, "file_name": name, "width": 600, "height": 500, "tumor_type": "a"} for name in SCANNED_AT]
    boxes = [
        {"id": k, "image_id": name, "bbox": [x - 25, y - 25, x + 25, y + 25], "category_id": 1 + k % 2}
        for k, (name, x, y) in enumerate(places)
    ]
    (folder / "annotations.json").write_text(json.dumps({"images": images, "annotations": boxes}))
    return folder, [place[1:] for place in places]


def scanned_study(origin=None, source="csv"):
    return Settings("scanned", "t", Data(source, origin=origin), patches=Patches(size_px=48))


@pytest.mark.parametrize("source", ["csv", "midog"])
def test_labels_that_count_from_the_scanned_area_are_read_there(scanned, tmp_path, source):
    folder, places = scanned
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = study_data.extract(scanned_study("scanned_area", source), folder, tmp_path)
    table, array = patches.load(run)
    patches.check(array, table)
    for patch, place in zip(array, places, strict=True):
        assert np.abs(off_by(patch, place, 1)).max() < 0.1
    expected = [(x + SCANNED_AT[name][0], y + SCANNED_AT[name][1]) for name, (x, y) in zip(table["file"], places, strict=True)]
    for columns in (["x_l0_px", "y_l0_px"], ["patch_x_l0_px", "patch_y_l0_px"]):
        assert list(table[columns].itertuples(index=False, name=None)) == expected
    assert run.record["facts"]["n_patches_shifted"] == 0
    assert run.record["facts"]["scanned_areas"][1] == {"slide_id": "b.scn", "x_l0_px": 30, "y_l0_px": 20}
    assert run.record["config"]["data"]["origin"] == "scanned_area"


def test_a_scanned_area_of_its_own_is_said_where_the_study_says_no_origin(scanned, tmp_path):
    """A small offset passes every check: all patches show tissue, another one than was labelled."""
    found = r"slide's corner, but .*2 slides: a\.scn at \(1000, 800\), b\.scn at \(30, 20\); say"
    with pytest.warns(UserWarning, match=found) as said:
        run = study_data.extract(scanned_study(), scanned[0], tmp_path)
    assert "data: {origin: slide} or, as QuPath does, data: {origin: scanned_area}" in str(said[0].message)
    table, array = patches.load(run)
    with pytest.raises(PatchError, match=r"of a single colour.*openslide\.bounds-x, -y .* a\.scn at \(1000, 800\); say from"):
        patches.check(array, table)
    on_b = table[table["slide_id"] == "b.scn"].reset_index(drop=True)
    patches.check(array[3:], on_b.assign(patch_id=np.arange(3)))
    assert np.abs(off_by(array[3], scanned[1][3], 1) - (-30, -20)).max() < 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert study_data.extract(scanned_study("slide"), scanned[0], tmp_path).key == run.key
    assert "origin" not in run.record["config"]["data"]


def test_a_slide_without_such_an_area_is_as_it_was(folder, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = study_data.extract(STUDY, folder, tmp_path / "results")
    assert run.record["facts"]["scanned_areas"] == []
    assert "scanned_x_l0_px" not in patches.load(run)[0]
    counted = dataclasses.replace(STUDY, data=Data("midog", origin="scanned_area"))
    np.testing.assert_array_equal(
        patches.load(study_data.extract(counted, folder, tmp_path / "results"))[1], patches.load(run)[1]
    )
