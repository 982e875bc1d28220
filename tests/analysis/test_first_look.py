"""First looks: what is drawn of patches, embeddings and trainings, against a second way to it."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from made_scores import MIDOG, SYNTHETIC, opened
from sklearn.decomposition import PCA

from mfcore import store
from mfcore.analysis import first_look
from mfcore.data import patches
from mfcore.study import predictions
from mfcore.study.config import Switches
from mfcore.study.study import Study

UNITS = ("all-fold0-size0.1", "canine_cutaneous_mast_cell_tumor-fold12-size1")
SETTINGS = {"real": MIDOG, "synthetic": SYNTHETIC}
FITS = opened().predictions


def history() -> pd.DataFrame:
    rows = [(u, e, 0.7 / e, 0.7 / e + 0.2 * (e == 3)) for u in UNITS for e in (1, 2, 3)]
    table = pd.DataFrame(rows, columns=["unit", "epoch", "train_loss", "val_loss"])
    return table.assign(seconds=60.0)


def labels(n=24) -> pd.DataFrame:
    columns = {"slide_id": "s", "domain": ["d1", "d2"] * (n // 2), "label": [0, 0, 1, 1] * (n // 4)}
    return pd.DataFrame({"patch_id": range(n), **columns})


def features(n=24) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 5)).astype(np.float32)


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Make an exhibit by its name and that of its study's settings."""
    run = store.open_run(tmp_path, "train", "net-fold0", {}, {})
    images = np.random.default_rng(0).integers(0, 255, (24, 120, 120, 3), dtype=np.uint8)
    monkeypatch.setattr(patches, "load", lambda _: (labels(), images))
    monkeypatch.setattr(Study, "embeddings", lambda *_: run)
    monkeypatch.setattr(predictions, "history", lambda _: history())

    def made(name: str, which: str = "synthetic"):
        study = opened(SETTINGS[which], FITS, labels=labels(), patches=run)
        monkeypatch.setattr(predictions, "load_arm", lambda *_: FITS.query("arm == 'net'"))
        return {
            "contact_sheet": lambda: first_look.contact_sheet(study),
            "embedding": lambda: first_look.embedding(study, "good", features()),
            "training": lambda: first_look.training(study, "net", run),
        }[name]()

    return made


@pytest.mark.parametrize("name", ["contact_sheet", "embedding", "training"])
def test_a_figure_says_whose_data_they_are_and_nothing_is_tiny_or_cut_off(make, name):
    exhibit, real = make(name), make(name, "real")
    assert exhibit.figure.get_suptitle().startswith(f"{SYNTHETIC.title}, synthetic data")
    assert "synthetic" not in real.figure.get_suptitle() and "synthetic" not in real.caption
    assert "synthetic data" in exhibit.caption and "nan" not in exhibit.caption
    figure = exhibit.figure
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox().extents * figure.dpi, figure.bbox.size
    assert max(-box[0], -box[1], box[2] - width, box[3] - height) < 1
    texts = figure.findobj(match=lambda artist: hasattr(artist, "get_fontsize"))
    sizes = [text.get_fontsize() for text in texts if text.get_visible() and text.get_text().strip()]
    assert min(sizes) >= 6 and plt.get_fignums() == []


def test_a_contact_sheet_has_a_row_for_each_class_of_each_domain(make):
    exhibit = make("contact_sheet")
    rows = [axis.texts[0].get_text() for axis in exhibit.figure.axes if axis.texts]
    names = ("mitotic figure", "look-alike")
    assert rows == [f"{domain}\n{name}" for domain in ("d1", "d2") for name in names]
    assert len(exhibit.figure.axes) == 4 * first_look.N_ACROSS
    assert exhibit.figure.axes[0].images[0].get_array().shape == (96, 96, 3)
    assert "12 of class mitotic figure, 12 of class look-alike" in exhibit.caption


def test_components_are_those_of_a_principal_component_analysis():
    found, wide = first_look.components(features(), labels()), features().astype(np.float64)
    reference = PCA(2).fit(wide)
    expected = np.abs(reference.transform(wide))
    assert np.abs(found[["pc1", "pc2"]]).to_numpy() == pytest.approx(expected, abs=1e-5)
    assert found["share1"].iloc[0] == pytest.approx(reference.explained_variance_ratio_[0], abs=1e-6)


def test_both_panels_of_an_embedding_show_every_patch(make):
    figure = make("embedding").figure
    points = [np.concatenate([dots.get_offsets() for dots in axis.collections]) for axis in figure.axes]
    assert [len(each) for each in points] == [24, 24]
    assert [axis.get_title("left") or axis.get_title() for axis in figure.axes] == [
        "by domain",
        "by class",
    ]


def ringed(settings) -> float:
    axis = first_look.draw_history(opened(settings), "net", history()).axes[0]
    return next(line for line in axis.lines if line.get_label() == "tested").get_xdata()[0]


def test_the_ring_marks_the_epoch_that_is_tested():
    assert ringed(MIDOG) == 2
    assert ringed(replace(MIDOG, switches=Switches(epoch="last"))) == 3


def test_a_training_says_when_the_loss_was_lowest_and_what_it_scores(make, monkeypatch):
    exhibit = make("training")
    assert "of 2 trainings" in exhibit.caption and "came in epoch 2 of 3." in exhibit.caption
    assert exhibit.readable["arm"].tolist() == ["net"] and "100 %" in exhibit.readable
    pd.testing.assert_frame_equal(exhibit.table, history())
    later = history().assign(val_loss=[0.5, 0.3, 0.4, 0.5, 0.4, 0.3])
    monkeypatch.setattr(predictions, "history", lambda _: later)
    assert "came in epoch 2 to 3 of 3." in make("training").caption


def test_a_panel_of_training_names_domain_fold_and_size_within_its_width():
    assert [first_look._panel(unit) for unit in (*UNITS, "x-foldable_thing-fold3-size0.1")] == [
        "all\nfold 0, 10 %",
        "canine cutaneous mast\ncell tumor\nfold 12, 100 %",
        "x-foldable thing\nfold 3, 10 %",
    ]


def test_a_way_to_split_that_is_not_drawn_has_its_reason_and_no_advice():
    reason = "the data name no official test slides; set switches.split_by: slide"
    words = first_look.not_drawn({"official": reason})
    assert words.endswith("(the data name no official test slides).")
