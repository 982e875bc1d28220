"""Nuclei segmentation tasks: miniature copies of each published layout give the right masks pixel by pixel."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from mfcore.measures.masks import IGNORED
from mfcore.tasks import registry
from mfcore.tasks.segmentation import fill
from mfcore.tasks.task import TaskData, TaskError, TaskWarning

ANNOTATION = (
    '<Annotation><Attributes><Attribute Name="{name}" Id="0" Value=""/></Attributes>'
    "<Regions><RegionAttributeHeaders/>{}</Regions></Annotation>"
)
REGION = '<Region Id="1"><Attributes/><Vertices>{}</Vertices></Region>'
TRAIN, TEST = "MoNuSAC_images_and_annotations", "MoNuSAC Testing Data and Annotations"


def noise(seed: int, n_rows: int, n_columns: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n_rows, n_columns, 3), np.uint8)


def consep(folder, width: int = 600, height: int = 520) -> dict[str, np.ndarray]:
    """Two training images and one test image, every raw type in each; returns the raw type maps by image name."""
    types = {}
    for seed, (place, name) in enumerate((("Train", "train_1"), ("Train", "train_2"), ("Test", "test_1"))):
        for part in ("Images", "Labels", "Overlay"):
            (folder / place / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(seed, height, width)).save(folder / place / "Images" / f"{name}.png")
        raw = np.random.default_rng(seed).integers(0, 8, (height, width)).astype(float)  # as the set's: doubles
        savemat(folder / place / "Labels" / f"{name}.mat", {"type_map": raw, "inst_map": raw, "inst_type": [[1]]})
        types[name] = raw
    return types


def xml(**outlines) -> str:
    """A MoNuSAC file: of each class its regions, each a list of corners."""
    parts = []
    for name, regions in outlines.items():
        drawn = "".join(REGION.format("".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in corners)) for corners in regions)
        parts.append(ANNOTATION.format(drawn, name=name))
    return f'<?xml version="1.0"?><Annotations MicronsPerPixel="0.25">{"".join(parts)}</Annotations>'


def monusac(folder, place, patient, name, content: str, n_rows: int = 20, n_columns: int = 30) -> np.ndarray:
    base = folder / place / patient
    base.mkdir(parents=True, exist_ok=True)
    image = noise(len(name), n_rows, n_columns)
    Image.fromarray(image).save(base / f"{name}.tif")
    (base / f"{name}.svs").write_bytes(b"never read")
    (base / f"{name}.xml").write_text(content)
    return image


def load(name, folder) -> TaskData:
    with pytest.warns(TaskWarning, match="don't compare"):
        return registry.get(name).load(folder)


def test_consep_is_cut_into_evas_tiles_with_merged_classes(tmp_path):
    types = consep(tmp_path)
    data = load("consep", tmp_path)
    assert len(data) == 3 * 2 * 2  # 600 x 520 px: two tiles of 250 along each side, the rest is dropped
    assert data.table["split"].value_counts().to_dict() == {"train": 8, "val": 4}
    assert set(data.table.loc[data.table["split"] == "val", "file"]) == {"Test/Images/test_1.png"}
    assert set(data.table["label"]) == {-1} and data.table["item_id"].is_unique
    merged = {0: 0, 1: 1, 2: 2, 3: 3, 4: 3, 5: 4, 6: 4, 7: 4}
    for i in range(len(data)):
        row = data.table.iloc[i]
        stem = row["file"].rpartition("/")[2].removesuffix(".png")
        raw = types[stem][row["y_px"] : row["y_px"] + 250, row["x_px"] : row["x_px"] + 250]
        expected = np.vectorize(merged.get)(raw.astype(int))
        np.testing.assert_array_equal(data.mask(i), expected)
        assert data.mask(i).dtype == np.uint8
        whole = noise({"train_1": 0, "train_2": 1, "test_1": 2}[stem], 520, 600)
        np.testing.assert_array_equal(data.image(i), whole[row["y_px"] : row["y_px"] + 250, row["x_px"] : row["x_px"] + 250])
    assert sorted(set(zip(data.table["x_px"], data.table["y_px"], strict=True))) == [(0, 0), (0, 250), (250, 0), (250, 250)]


def test_tiles_without_tissue_are_kept_as_evas_configurations_do(tmp_path):
    """Their sampler is a plain grid; images aren't read for it."""
    consep(tmp_path)
    Image.fromarray(np.full((520, 600, 3), 200, np.uint8)).save(tmp_path / "Test" / "Images" / "test_1.png")
    assert len(load("consep", tmp_path).table.query("split == 'val'")) == 4


def test_a_mask_is_the_callers_to_change(tmp_path):
    consep(tmp_path)
    data = load("consep", tmp_path)
    data.mask(0)[:] = 9
    assert data.mask(0).max() <= 4


def test_consep_in_a_folder_of_its_own_name(tmp_path):
    consep(tmp_path / "CoNSeP")
    data = load("consep", tmp_path)
    assert data.table["file"].iloc[0] == "CoNSeP/Train/Images/train_1.png"
    assert data.mask(0).shape == (250, 250)


def test_a_wrong_consep_is_refused(tmp_path):
    with pytest.raises(TaskError, match=r"no images Train/Images/\*\.png(.|\n)*no images Test/Images(.|\n)*Warwick"):
        registry.get("consep").load(tmp_path)
    consep(tmp_path)
    (tmp_path / "Test" / "Labels" / "test_1.mat").unlink()
    with pytest.raises(TaskError, match=r"no test_1\.mat"):
        registry.get("consep").load(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"type_map": np.full((520, 600), 8.0)}, "of 0 to 7"),
        ({"inst_map": np.zeros((520, 600))}, "no label file with a type_map"),
    ],
)
def test_wrong_label_maps_are_refused_when_read(tmp_path, content, said):
    consep(tmp_path)
    savemat(tmp_path / "Train" / "Labels" / "train_1.mat", content)
    data = load("consep", tmp_path)
    with pytest.raises(TaskError, match=said):
        for i in range(len(data)):
            data.mask(i)


@pytest.mark.parametrize(
    "damaged", [lambda b: b"", lambda b: b"no such file", lambda b: b[:150], lambda b: b[:-30] + b"x" * 30]
)
def test_a_label_file_that_isnt_one_is_refused_by_name(tmp_path, damaged):
    consep(tmp_path)
    file = tmp_path / "Train" / "Labels" / "train_1.mat"
    savemat(file, {"type_map": np.zeros((520, 600))}, do_compression=True)
    file.write_bytes(damaged(file.read_bytes()))
    with pytest.raises(TaskError, match=r"train_1\.mat: no label file with a type_map of 0 to 7 \((.|\n)+\); get it again"):
        load("consep", tmp_path).mask(0)


def test_monusac_masks_pixel_by_pixel(tmp_path):
    square, triangle = [(2, 3), (6, 3), (6, 8), (2, 8)], [(10.5, 2.5), (18.5, 2.5), (10.5, 10.5)]
    first = xml(Epithelial=[square], Macrophage=[triangle])
    image = monusac(tmp_path, TRAIN, "TCGA-5P-A9K0-01Z-00-DX1", "TCGA-5P-A9K0-01Z-00-DX1_1", first)
    monusac(tmp_path, TRAIN, "TCGA-5P-A9K0-01Z-00-DX1", "TCGA-5P-A9K0-01Z-00-DX1_2", xml(Neutrophil=[]))
    second = xml(Lymphocyte=[square], Ambiguous=[[(5, 5), (9, 5), (9, 9), (5, 9)]])
    monusac(tmp_path, TEST, "TCGA-XX-0001-01Z-00-DX1", "TCGA-XX-0001-01Z-00-DX1_1", second)
    data = load("monusac", tmp_path)
    assert data.table["split"].tolist() == ["train", "train", "val"]
    assert data.table["group"].tolist() == ["TCGA-5P-A9K0", "TCGA-5P-A9K0", "TCGA-XX-0001"]
    assert data.table[["width_px", "height_px"]].drop_duplicates().values.tolist() == [[30, 20]]
    np.testing.assert_array_equal(data.image(0), image)
    expected = np.zeros((20, 30), np.uint8)
    for row in range(20):
        for column in range(30):
            if 2 <= column <= 6 and 3 <= row <= 8:
                expected[row, column] = 1
            elif column >= 10.5 and row >= 2.5 and column + row <= 21:
                expected[row, column] = 4
    np.testing.assert_array_equal(data.mask(0), expected)
    assert not data.mask(1).any()
    expected = np.zeros((20, 30), np.uint8)
    expected[3:9, 2:7] = 2
    expected[5:10, 5:10] = IGNORED  # the later region has what both enclose
    np.testing.assert_array_equal(data.mask(2), expected)


def test_both_sets_are_seen_as_by_eva_s_transform_of_224_px(tmp_path):
    """Whole images of MoNuSAC: neither tiles nor crops."""
    for name in ("consep", "monusac"):
        task = registry.get(name)
        assert (task.protocol.size_px, task.interpolation) == (224, "bilinear")
    for place in (TRAIN, TEST):
        monusac(tmp_path, place, f"{place[-5:]}", "a_1", xml(), n_rows=400, n_columns=600)
    data = load("monusac", tmp_path)
    assert len(data) == 2 and data.image(0).shape == (400, 600, 3)
    assert data.notes[-3:] == data.task.unsettled


def test_monusac_warns_of_a_partial_set_and_of_a_patient_on_both_sides(tmp_path):
    for place in (TRAIN, TEST.replace(" ", "_")):
        monusac(tmp_path, place, "TCGA-5P-A9K0-01Z-00-DX1", "a_1", xml())
    data = load("monusac", tmp_path)
    assert "209" in data.notes[0] and "85" in data.notes[1] and "TCGA-5P-A9K0" in data.notes[2]


def test_a_wrong_monusac_is_refused(tmp_path):
    with pytest.raises(TaskError, match=rf"no images {TRAIN}(.|\n)*no images MoNuSAC\[ _\]Testing(.|\n)*Grand Challenge"):
        registry.get("monusac").load(tmp_path)
    monusac(tmp_path, TRAIN, "p1", "a", "<broken")
    monusac(tmp_path, TEST, "p2", "b", xml())
    with pytest.raises(TaskError, match=r"a\.xml: outlines that can't be read"):
        load("monusac", tmp_path).mask(0)
    (tmp_path / TEST / "p2" / "b.xml").unlink()
    with pytest.raises(TaskError, match=r"p2/b\.tif: no b\.xml"):
        registry.get("monusac").load(tmp_path)


@pytest.mark.parametrize("attributes", ["<Attributes/>", '<Attributes><Attribute Name="Epithelial"/></Attributes>'])
def test_an_outline_without_class_or_number_is_refused(tmp_path, attributes):
    region = REGION.format('<Vertex X="1"/>')
    content = f"<Annotations><Annotation>{attributes}<Regions>{region}</Regions></Annotation></Annotations>"
    monusac(tmp_path, TRAIN, "p1", "a", content)
    monusac(tmp_path, TEST, "p2", "b", xml())
    with pytest.raises(TaskError, match=r"a\.xml: outlines that can't be read"):
        load("monusac", tmp_path).mask(0)


def drawn(outline, shape=(12, 14), value: int = 1) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    fill(mask, np.array(outline, float).reshape(-1, 2), value)
    return mask


def test_a_concave_outline_is_filled_on_its_own_side():
    """An L: two rectangles, borders included; either way round."""
    corners = [(1, 1), (4, 1), (4, 6), (9, 6), (9, 9), (1, 9)]
    expected = np.zeros((12, 14), np.uint8)
    expected[1:10, 1:5] = 1
    expected[6:10, 1:10] = 1
    np.testing.assert_array_equal(drawn(corners), expected)
    np.testing.assert_array_equal(drawn(corners[::-1]), expected)


def test_a_wide_outline_of_many_corners_takes_no_more_memory():
    """An ambiguous region over half an image: a place in memory for each of its px and corners would be gigabytes."""
    angle = np.linspace(0, 2 * np.pi, 300, endpoint=False)
    tracemalloc.start()
    mask = drawn(np.stack([200 + 180 * np.cos(angle), 200 + 180 * np.sin(angle)], axis=1), (400, 400))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6 and mask.sum() == pytest.approx(np.pi * 180**2, rel=2e-3)


def test_an_outline_beyond_the_border_is_cut_there():
    expected = np.zeros((12, 14), np.uint8)
    expected[:4, :3] = 1
    np.testing.assert_array_equal(drawn([(-5, -5), (2.5, -5), (2.5, 3.5), (-5, 3.5)]), expected)
    expected = np.zeros((12, 14), np.uint8)
    expected[10:, 12:] = 1
    np.testing.assert_array_equal(drawn([(11.5, 9.5), (99, 9.5), (99, 99), (11.5, 99)]), expected)


@pytest.mark.parametrize("outline", [[], [(50, 50), (60, 50), (60, 60)], [(2.2, 2.2), (2.4, 2.2), (2.4, 2.4)]])
def test_an_outline_around_no_pixel_draws_none(outline):
    assert not drawn(outline).any()


@pytest.mark.parametrize("seed", range(6))
def test_random_outlines_agree_with_counting_crossings_one_by_one(seed):
    """Against a plain loop: a ray from each pixel downwards, the other way than the code's."""
    rng = np.random.default_rng(seed)
    outline = (rng.random((7, 2)) * (14, 12)).tolist()
    expected = np.zeros((12, 14), np.uint8)
    for row in range(12):
        for column in range(14):
            n = 0
            for (x0, y0), (x1, y1) in zip(outline, outline[1:] + outline[:1], strict=True):
                if min(x0, x1) <= column < max(x0, x1):
                    n += y0 + (column - x0) / (x1 - x0) * (y1 - y0) > row
            expected[row, column] = n % 2
    np.testing.assert_array_equal(drawn(outline), expected)
