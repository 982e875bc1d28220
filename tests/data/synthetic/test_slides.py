"""The synthetic data set: opens in OpenSlide, is the same with any number of workers, resumes, refuses, and is fair."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
from scipy.stats import ttest_ind
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mfcore.data.synthetic import slides as synthetic
from mfcore.data.synthetic.canvas import Canvas, noise
from mfcore.data.synthetic.cells import LOOK_ALIKE, MITOTIC, draw as draw_cell
from mfcore.data.synthetic.domains import all_domains
from mfcore.data.synthetic.slides import SyntheticError, make_dataset, plan_slides
from mfcore.data.synthetic.tissue import APART_UM, MARGIN_PX, _apart, draw, lay_out

DOMAINS = all_domains()
SETTINGS = {"seed": 3, "n_slides": 5, "n_annotations": 300}
"""A slide of each domain, crowded, so that a few slides hold enough annotations to count."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("synthetic") / "data", **SETTINGS, n_workers=2)


@pytest.fixture(scope="module")
def content(folder) -> dict:
    return json.loads((folder / "annotations.json").read_text())


@pytest.fixture(scope="module")
def truth(folder) -> pd.DataFrame:
    return pd.read_csv(folder / "truth.csv")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def windows(folder: Path, content: dict, size_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Around every annotation that is far enough from the border: pixels as decoded, class 1 or 0, slide, annotation id."""
    pixels, classes, slides, ids = [], [], [], []
    for image in content["images"]:
        with openslide.OpenSlide(folder / "images" / image["file_name"]) as slide:
            whole = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]
        for annotation in content["annotations"]:
            x, y = (annotation["bbox"][0] + 25 - size_px // 2, annotation["bbox"][1] + 25 - size_px // 2)
            inside = x >= 0 and y >= 0 and x + size_px <= image["width"] and y + size_px <= image["height"]
            if annotation["image_id"] == image["id"] and inside:
                pixels.append(whole[y : y + size_px, x : x + size_px])
                classes.append(int(annotation["category_id"] == 1))
                slides.append(image["id"])
                ids.append(annotation["id"])
    return np.array(pixels), np.array(classes), np.array(slides), np.array(ids)


def test_slides_open_in_openslide_with_levels_and_resolution(folder, content):
    um_per_px = {domain.name: domain.um_per_px for domain in DOMAINS}
    for image in content["images"]:
        with openslide.OpenSlide(folder / "images" / image["file_name"]) as slide:
            expected = um_per_px[image["tumor_type"]]
            assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(expected, rel=1e-3)
            assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(expected, rel=1e-3)
            assert slide.dimensions == (image["width"], image["height"])
            assert slide.level_downsamples == pytest.approx((1, 2, 4), rel=0.01)
            assert slide.properties["openslide.level[0].tile-width"] == "256"
            small = np.asarray(slide.read_region((0, 0), 2, slide.level_dimensions[2]).convert("L"), float)
            shrunk = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("L").reduce(4), float)
            n_rows, n_columns = small.shape
            assert np.abs(small - shrunk[:n_rows, :n_columns]).mean() < 6, "a level shows something else than level 0"


def test_slides_are_tiled_jpeg_in_ycbcr(folder):
    import tifffile

    with tifffile.TiffFile(folder / "images" / "001.tiff") as file:
        assert [int(page.subfiletype) for page in file.pages] == [0, 1, 1]
        assert all(
            page.is_tiled and page.compression.name == "JPEG" and page.photometric.name == "YCBCR" for page in file.pages
        )


def test_annotations_have_midogs_form(folder, content):
    images = {image["id"]: image for image in content["images"]}
    assert len(content["annotations"]) == SETTINGS["n_annotations"]
    assert [annotation["id"] for annotation in content["annotations"]] == list(range(1, 301))
    assert content["categories"] == [{"id": 1, "name": "mitotic figure"}, {"id": 2, "name": "not mitotic figure"}]
    assert [image["tumor_type"] for image in content["images"]] == [domain.name for domain in DOMAINS]
    assert "ynthetic" in content["info"]["description"]
    for annotation in content["annotations"]:
        left, top, right, bottom = annotation["bbox"]
        image = images[annotation["image_id"]]
        assert (right - left, bottom - top) == (50, 50)
        assert min(left, top) >= 0 and right <= image["width"] and bottom <= image["height"]
    assert {annotation["category_id"] for annotation in content["annotations"]} == {1, 2}


def test_votes_are_those_of_midog(content):
    for annotation in content["annotations"]:
        votes = annotation["labels"]
        assert len(votes) == (2 if votes[0] == votes[1] else 3), "a third rater is asked where two differ, and only there"
        assert Counter(votes).most_common(1)[0][0] == annotation["category_id"]


def test_a_quarter_of_each_domain_is_its_official_test_set():
    images = pd.DataFrame(synthetic.annotate(1, plan_slides(1, 50, 2000))[0]["images"])
    assert (images.groupby("tumor_type")["split"].apply(lambda split: (split == "test").sum()) == 2).all()  # of ten
    assert set(images["split"]) == {"train", "test"}


def test_raters_agree_as_in_midog_and_err_on_hard_cells():
    annotated, truth = synthetic.annotate(1, plan_slides(1, 50, 2000))
    agree = np.array([len(annotation["labels"]) == 2 for annotation in annotated["annotations"]])
    assert agree.mean() == pytest.approx(0.78, abs=0.025)
    hard = (truth["hard"] > 0.5).to_numpy()
    assert agree[~hard].mean() > 0.85 > 0.65 > agree[hard].mean()
    wrong = np.array([annotation["category_id"] == 1 for annotation in annotated["annotations"]]) != truth["mitotic"]
    assert 0.02 < wrong.mean() < 0.13


def test_plan_is_uneven_as_midog():
    plans = plan_slides(1, 50, 2000)
    counts = np.array([plan.n_annotations for plan in plans])
    assert counts.sum() == 2000 and counts.max() > 4 * np.median(counts[counts <= np.median(counts)]) and counts.min() > 0
    assert Counter(plan.domain.name for plan in plans) == {domain.name: 10 for domain in DOMAINS}
    assert len({domain.um_per_px for domain in DOMAINS}) >= 4
    assert all(0.226 <= domain.um_per_px <= 0.2534 for domain in DOMAINS)
    annotated, _ = synthetic.annotate(1, plans)
    with_mitoses = {annotation["image_id"] for annotation in annotated["annotations"] if annotation["category_id"] == 1}
    assert {plan.index + 1 for plan in plans if plan.positive == 0} == {plan.index + 1 for plan in plans} - with_mitoses
    assert len(plans) - len(with_mitoses) == 3


def test_same_seed_gives_the_same_bytes_with_any_workers_and_another_seed_others(folder, tmp_path):
    alone = make_dataset(tmp_path / "alone", **SETTINGS, n_workers=1)
    assert bytes_of(alone) == bytes_of(folder)
    plan = plan_slides(3, 5, 300)[0]
    assert not np.array_equal(lay_out(3, plan).tumour_px[:50], lay_out(4, plan).tumour_px[:50])


def test_a_slide_doesnt_depend_on_what_was_drawn_before():
    first, second = (replace(plan, n_rows=400, n_columns=400, n_annotations=3) for plan in plan_slides(3, 5, 300)[:2])
    alone = draw(3, second, lay_out(3, second))
    draw(3, first, lay_out(3, first))
    assert np.array_equal(alone, draw(3, second, lay_out(3, second)))


def test_an_interrupted_data_set_is_finished_and_finished_slides_are_kept(folder, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    before = bytes_of(copy)
    (copy / "images" / "002.tiff").unlink()
    (copy / "made.json").unlink()
    (copy / "images" / ".004.tiff.99.partial").write_bytes(b"cut short")
    kept = (copy / "images" / "003.tiff").stat().st_mtime_ns
    drawn = []
    monkeypatch.setattr(synthetic, "draw", lambda seed, plan, layout: drawn.append(plan.index) or draw(seed, plan, layout))
    make_dataset(copy, **SETTINGS)
    assert drawn == [1]
    assert bytes_of(copy) == before
    assert (copy / "images" / "003.tiff").stat().st_mtime_ns == kept
    make_dataset(copy, **SETTINGS)
    assert drawn == [1], "a finished data set was drawn again"


def test_a_slide_missing_after_the_end_is_made_again(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    before = bytes_of(copy)
    (copy / "images" / "001.tiff").unlink()
    make_dataset(copy, **SETTINGS)
    assert bytes_of(copy) == before


def test_a_kill_leaves_no_half_slide(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "write_pyramid", killed)
    with pytest.raises(KeyboardInterrupt):
        make_dataset(tmp_path / "data", seed=1, n_slides=1, n_annotations=3)
    assert [file.name for file in (tmp_path / "data").rglob("*") if file.is_file()] == ["begun.json"]


def test_other_settings_are_refused_by_name(folder):
    with pytest.raises(SyntheticError, match=r"n_annotations \(300, wanted 200\), seed \(3, wanted 4\)"):
        make_dataset(folder, seed=4, n_slides=5, n_annotations=200)


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.docx").write_text("mine")
    with pytest.raises(SyntheticError, match=r"no begun\.json"):
        make_dataset(tmp_path, seed=1)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.docx"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"n_slides": 0}, "at least one slide"),
        ({"n_slides": 2, "n_annotations": 500}, "data.n_annotations"),
        ({"n_annotations": -1}, "-1 annotations"),
        ({"n_workers": 0}, "n_workers is 0"),
    ],
)
def test_numbers_that_cant_be_met_are_refused(tmp_path, asked, said):
    with pytest.raises(SyntheticError, match=said):
        make_dataset(tmp_path / "data", seed=1, **asked)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("domain", range(len(DOMAINS)))
def test_every_slide_has_room_for_the_most_annotations(domain):
    plan = plan_slides(7, 5, 5 * synthetic.MAX_PER_SLIDE)[domain]
    layout = lay_out(7, plan)
    centres = layout.tumour_px[layout.annotated]
    assert plan.n_annotations == len(layout.kinds) == synthetic.MAX_PER_SLIDE
    assert (centres > MARGIN_PX).all() and (centres < (plan.n_columns - MARGIN_PX, plan.n_rows - MARGIN_PX)).all()
    distances = np.hypot(*(centres[:, None] - centres[None]).transpose(2, 0, 1)) + np.eye(len(centres)) * 1e9
    assert distances.min() >= APART_UM[-1] / plan.domain.um_per_px


def test_points_are_kept_apart_as_one_by_one():
    points = np.random.default_rng(0).random((400, 2))
    kept = []
    for index, point in enumerate(points):
        if all(np.hypot(*(point - points[other])) > 0.05 for other in kept):
            kept.append(index)
    assert _apart(points, 0.05).tolist() == kept


@pytest.mark.parametrize("kind", [*MITOTIC, *LOOK_ALIKE])
@pytest.mark.parametrize("hard", [0.0, 1.0])
def test_every_kind_is_dark_and_centred(kind, hard):
    offsets = []
    for seed in range(12):
        layers = np.full((121, 121), 0.1, np.float32), np.full((121, 121), 0.3, np.float32)
        canvas = Canvas(*layers, 0.25, noise(0, 0.25), np.zeros((121, 121), np.uint8))
        draw_cell(canvas, (60, 60), kind, np.random.default_rng(seed), DOMAINS[0].look, hard=hard)
        dark = np.argwhere(canvas.h > 0.7)
        assert 50 < len(dark) < 3000, "no chromatin, or far too much"
        offsets.append((dark.mean(axis=0) - 60) * 0.25)
    assert np.abs(np.mean(offsets, axis=0)).max() < 1.0, "drawn off its centre"


def test_every_annotation_holds_a_dark_nucleus_in_both_classes(folder, content):
    pixels, classes, _, ids = windows(folder, content, 64)
    density = -np.log10(np.maximum(pixels[..., 0], 1) / 245)  # red, where haematoxylin absorbs
    y, x = np.mgrid[:64, :64] - 31.5
    centre, around = np.hypot(x, y) < 18, np.hypot(x, y) > 26
    darkest = np.quantile(density[:, centre], 0.9, axis=1)
    surroundings = np.median(density[:, around], axis=1)
    for value in (0, 1):
        holds = (darkest > surroundings + 0.1)[classes == value]
        assert holds.all(), f"class {value}: nothing dark at annotations {ids[classes == value][~holds]}"


def within_slides(features: np.ndarray, slides: np.ndarray) -> np.ndarray:
    """Features less their slide's mean: slides differ in colour and in their share of mitotic figures, as real ones do."""
    return features - np.array([features[slides == slide].mean(axis=0) for slide in slides])


def largest_difference(pixels: np.ndarray, classes: np.ndarray, slides: np.ndarray) -> float:
    """Largest |t| between the classes of blocks of 10 px, and of rings, outside the central 64 of 160 px."""
    y, x = np.mgrid[:160, :160] - 79.5
    far = np.maximum(abs(x), abs(y))
    grey = pixels.mean(axis=3)
    blocks = grey.reshape(-1, 16, 10, 16, 10).mean(axis=(2, 4)).reshape(-1, 256)
    blocks = blocks[:, far.reshape(16, 10, 16, 10).min(axis=(1, 3)).ravel() > 32]
    rings = np.column_stack([grey[:, (far > low) & (far < low + 8)].mean(axis=1) for low in range(32, 80, 8)])
    values = within_slides(np.column_stack([blocks, rings]), slides)
    return float(np.abs(ttest_ind(values[classes == 0], values[classes == 1]).statistic).max())


def test_surroundings_dont_give_the_class_away(folder, content):
    """Outside the central 64 px neither colour and contrast, nor any place, nor any ring differs between the classes."""
    pixels, classes, slides, _ = windows(folder, content, 160)
    outside = np.ones((160, 160), bool)
    outside[48:112, 48:112] = False
    periphery = pixels[:, outside].astype(float)
    features = within_slides(np.column_stack([periphery.mean(axis=1), periphery.std(axis=1)]), slides)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    scores = cross_val_predict(model, features, classes, cv=5, method="predict_proba")[:, 1]
    for score in (scores, *features.T):
        assert abs(roc_auc_score(classes, score) - 0.5) < 0.12

    assert largest_difference(pixels, classes, slides) < 4.2  # 230 values: by chance 3 or so
    given_away = pixels.copy()
    given_away[classes == 1, 76:84, 20:28] = 255  # 2 um of white, always at the same place
    assert largest_difference(given_away, classes, slides) > 5, "the test is blind"


def test_positions_are_drawn_before_classes(content):
    classes = np.array([annotation["category_id"] for annotation in content["annotations"]])
    boxes = np.array([annotation["bbox"] for annotation in content["annotations"]])
    for axis in (0, 1):
        assert abs(roc_auc_score(classes == 1, boxes[:, axis]) - 0.5) < 0.12


def test_domains_differ_in_colour_and_sharpness(folder, content):
    colours, sharpness = [], []
    for image in content["images"]:
        with openslide.OpenSlide(folder / "images" / image["file_name"]) as slide:
            pixels = np.asarray(slide.read_region((200, 200), 0, (1000, 1000)).convert("RGB"), float)
        colours.append(pixels.mean(axis=(0, 1)))
        sharpness.append(np.abs(np.diff(pixels[..., 1], axis=1)).mean() / pixels[..., 1].std())
    distances = [np.abs(a - b).max() for i, a in enumerate(colours) for b in colours[:i]]
    assert min(distances) > 6
    assert max(sharpness) > 1.3 * min(sharpness)


def test_every_kind_is_drawn_and_hard_ones_are_among_both_classes(truth):
    assert set(truth["kind"]) == set(MITOTIC) | set(LOOK_ALIKE)
    share = truth.groupby("mitotic")["hard"].apply(lambda hard: (hard > 0.5).mean())
    assert share.between(0.3, 0.55).all()
