"""Figures: written whole, the same twice, with their table, and with the word "synthetic" where it belongs."""

import functools
import sys
import types
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from mfcore.analysis import captions, exhibit, figures
from mfcore.study.config import Data, Network, Pretraining, Settings, Switches

NETWORKS = (Network("net", input_px=100), Network("low rank"))
MIDOG = Settings("t", "A test", Data("midog"), networks=NETWORKS, encoders=("good", "other"))
SYNTHETIC = replace(MIDOG, data=Data("synthetic"))


def history():
    rows = [(u, e, 0.7 / e, 0.7 / e + 0.2 * (e == 3)) for u in ("all-fold0-size0.1", "all-fold0-size1") for e in (1, 2, 3)]
    return pd.DataFrame(rows, columns=["unit", "epoch", "train_loss", "val_loss"])


def labels(n=24):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"patch_id": range(n), "domain": ["d1", "d2"] * (n // 2), "label": [0, 0, 1, 1] * (n // 4), "um_per_px": 0.25}
    )
    return table, rng.integers(0, 255, (n, 120, 120, 3), dtype=np.uint8), rng.normal(size=(n, 5)).astype(np.float32)


def drawing(study):
    """How to draw each figure, by its name."""
    table, patches, features = labels()
    components = figures.embedding_table(features, table)
    return {
        "contact_sheet": lambda: figures.contact_sheet(study, patches, table),
        "embedding": lambda: figures.embedding(study, components, "good"),
        "history": lambda: figures.history(study, history(), "net"),
    }


NAMES = list(drawing(MIDOG))


@functools.cache
def drawn(synthetic, name):
    """One of these figures with its layout settled, drawn once for all tests that only look."""
    figure = drawing(SYNTHETIC if synthetic else MIDOG)[name]()
    figure.draw_without_rendering()
    return figure


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text")))


@pytest.mark.parametrize("name", NAMES)
def test_synthetic_figures_say_so_and_others_don_t(name):
    assert "synthetic" in texts(drawn(True, name))
    assert "synthetic" not in texts(drawn(False, name))


def test_a_figure_is_saved_whole_with_its_table_and_the_same_twice(tmp_path):
    written = [figures.save(figures.history(MIDOG, history(), "net"), history(), tmp_path / name, "f") for name in "ab"]
    assert [path.name for path in written[0]] == ["f.png", "f.pdf", "f.csv"]
    for first, second in zip(*written, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.suffix
    pd.testing.assert_frame_equal(pd.read_csv(written[0][2]), history())


def test_drawing_leaves_nothing_open_in_pyplot():
    import matplotlib.pyplot as plt

    for name in NAMES:
        drawn(False, name)
    assert plt.get_fignums() == []


def test_the_ring_marks_the_epoch_that_is_tested():
    def ringed(study):
        axis = figures.history(study, history(), "net").axes[0]
        return next(line for line in axis.lines if line.get_label() == "tested").get_xdata()[0]

    assert ringed(MIDOG) == 2
    assert ringed(replace(MIDOG, switches=Switches(epoch="last"))) == 3


def test_components_are_those_of_a_principal_component_analysis():
    from sklearn.decomposition import PCA

    table, _, features = labels()
    mine = figures.embedding_table(features, table)
    features = features.astype(np.float64)
    reference = PCA(2).fit(features)
    assert np.abs(mine[["pc1", "pc2"]]).to_numpy() == pytest.approx(np.abs(reference.transform(features)), abs=1e-5)
    assert mine["share1"].iloc[0] == pytest.approx(reference.explained_variance_ratio_[0], abs=1e-6)


def pixels_cut_off(figure):
    """How far anything drawn reaches over the edge of the figure as it is saved, in px."""
    box, (width, height) = figure.get_tightbbox().extents * figure.dpi, figure.bbox.size
    return max(0, -box[0], -box[1], box[2] - width, box[3] - height)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_cut_off(name):
    assert pixels_cut_off(drawn(False, name)) < 1


# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB: what protanopes and deuteranopes see.
PROTAN = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
DEUTAN = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]


def linear(colour):
    from matplotlib.colors import to_rgb

    value = np.array(to_rgb(colour))
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lightness(rgb):
    """CIE L*, 0 to 100."""
    y = float(np.clip(rgb, 0, 1) @ [0.2126, 0.7152, 0.0722])
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


def test_the_first_colours_stay_apart_in_grey_and_for_the_colour_blind():
    for seen in (np.eye(3), np.array(PROTAN), np.array(DEUTAN)):
        shades = sorted(lightness(seen @ linear(colour)) for colour in figures.COLOURS[:3])
        assert np.diff(shades).min() > 12, shades
    import matplotlib.pyplot as plt

    with plt.style.context(figures.STYLE):
        cycle = [f"#{colour.lstrip('#')}" for colour in plt.rcParams["axes.prop_cycle"].by_key()["color"]]
    assert tuple(cycle) == figures.COLOURS


@pytest.mark.parametrize("name", NAMES)
def test_no_text_is_tiny_and_none_lies_over_the_word_synthetic(name):
    figure = drawn(True, name)
    shown = [t for t in figure.findobj(match=lambda a: hasattr(a, "get_fontsize")) if t.get_visible() and t.get_text().strip()]
    assert min(text.get_fontsize() for text in shown) >= 6
    word = next(text for text in figure.texts if text.get_text() == "synthetic data")
    box = word.get_window_extent()
    over = [text.get_text() for text in shown if text is not word and text.get_window_extent().overlaps(box)]
    assert not over


class Shown:
    """What IPython's display would have shown and updated."""

    def __init__(self):
        self.first, self.updates = [], []

    def display(self, figure, display_id):
        self.first.append(figure)
        return types.SimpleNamespace(update=self.updates.append)


@pytest.fixture
def cell(monkeypatch):
    """A notebook's cell that somebody looks at."""
    shown = Shown()
    import IPython.display

    monkeypatch.setattr(IPython.display, "display", shown.display)
    monkeypatch.setattr(exhibit, "is_watched", lambda: True)
    return shown


def test_live_curves_stay_in_one_place_and_cost_a_small_share_of_the_training(cell, monkeypatch):
    clock = iter(np.cumsum([0, 1, 0.5, 100, 1, 0.5, 0.5]))  # asked before and after each drawing, and for each epoch
    monkeypatch.setattr(exhibit.time, "monotonic", lambda: float(next(clock)))
    live = exhibit.Live(lambda table: figures.history(MIDOG, table, "net"))
    for n in (2, 3, 4):
        live(history().iloc[:n])
    assert len(cell.first) == 1 and len(cell.updates) == 1, "the second epoch came too soon after"
    assert live(history().iloc[:0]) is None


def test_live_curves_do_nothing_where_nobody_looks(cell, monkeypatch):
    monkeypatch.setattr(exhibit, "is_watched", lambda: False)
    exhibit.Live(lambda table: figures.history(MIDOG, table, "net"))(history())
    assert not cell.first


def test_somebody_looks_in_a_notebook_server_s_kernel_only(monkeypatch):
    import IPython

    is_watched = exhibit.is_watched
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert not is_watched(), "no IPython at all"
    shell = types.SimpleNamespace(kernel=object(), user_ns={})
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    assert not is_watched(), "papermill's kernel"
    monkeypatch.setenv("JPY_SESSION_NAME", "04.ipynb")
    assert is_watched()
    monkeypatch.delenv("JPY_SESSION_NAME")
    shell.user_ns["__vsc_ipynb_file__"] = "04.ipynb"
    assert is_watched()
    monkeypatch.setitem(sys.modules, "IPython", None)
    assert not is_watched()


def test_a_scale_bar_and_its_label_keep_within_the_patch_and_are_edged_in_white():
    figure = Figure(figsize=(2, 1), dpi=200)
    axis = figure.subplots()
    axis.imshow(np.zeros((64, 64, 3), np.uint8))
    figures.scale_bar(axis, 4, 64, "1,000 µm")
    figure.draw_without_rendering()
    (line,), (text,) = axis.lines, axis.texts
    assert np.ptp(line.get_xdata()) == 4 and text.get_text() == "1,000 µm"
    assert text.get_window_extent().x1 <= axis.get_window_extent().x1, "a label wider than its bar"
    assert line.get_path_effects() and text.get_path_effects()


def test_a_panel_of_training_names_domain_fold_and_size_within_its_width():
    units = ("all-fold0-size0.01", "canine_cutaneous_mast_cell_tumor-fold12-size1", "x-foldable_thing-fold3-size0.1")
    assert [figures._unit_title(unit) for unit in units] == [
        "all\nfold 0, 1 %",
        "canine cutaneous\nmast cell tumor\nfold 12, 100 %",
        "x-foldable thing\nfold 3, 10 %",
    ]


# ---- captions ----


def test_slides_that_are_not_the_study_s_are_not_said_to_be_tested_on():
    elsewhere = Pretraining("other", method="dinov2", start="good", slides="s3://bucket/")
    study = replace(MIDOG, pretraining=(elsewhere, Pretraining("good")))
    one = captions.home_made(study, ["net", "other"])
    assert "by DINOv2 from good" in one and one.endswith("drawn from slides of its own.")
    both = captions.home_made(study, ["good", "other", "good"])
    assert both.startswith(" good and other (star) are home-made foundation models") and "seen without any label" in both


def test_the_lowest_loss_of_one_training_came_in_one_epoch():
    table = pd.DataFrame({"unit": "all-fold0-size1", "epoch": [1, 2, 3], "val_loss": [0.5, 0.3, 0.4], "seconds": 60.0})
    said = captions.history(MIDOG, table, "net")
    assert "of 1 training;" in said and "came in epoch 2 of 3 (" in said
    two = pd.concat([table, table.assign(unit="all-fold1-size1", val_loss=[0.5, 0.4, 0.3])])
    assert "came in epoch 2 to 3 of 3 (" in captions.history(MIDOG, two, "net")


def test_a_way_to_split_that_is_not_drawn_has_its_reason_and_no_advice():
    said = captions.not_drawn({"official": "the data name no official test slides; set switches.split_by: slide"})
    assert said.endswith("(the data name no official test slides).")
