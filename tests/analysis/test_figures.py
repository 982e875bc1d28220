"""Figures: written whole, the same twice, with their table, and with the word "synthetic" where it belongs."""

import functools
import sys
import types
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from mfcore.analysis import arms, domains as of_domains, exhibit, figures, scaling as of_scaling
from mfcore.measures import binary, raters
from mfcore.measures.statistics import Interval
from mfcore.study.config import Data, Network, Pretraining, Settings, Switches

NETWORKS = (Network("net", input_px=100), Network("low rank"))
MIDOG = Settings("t", "A test", Data("midog"), networks=NETWORKS, encoders=("good", "other"))
SYNTHETIC = replace(MIDOG, data=Data("synthetic"))
INTERVAL = Interval(0.83, 0.8, 0.86, 0.95, 12)
HOME = replace(MIDOG, pretraining=(Pretraining("other"),))  # where "other" is the home-made encoder
MEANS = ["arm", "kind", "in_domain", "in_domain_sd", "out_of_domain", "out_of_domain_sd", "n_folds"]
BINS = ["arm", "kind", "bin_low", "bin_high", "mean_score", "share_positive", "low", "high", "n", "n_units", "unit"]
SUMMARY = ["arm", "kind", "brier", "ece", "mean_score", "share_positive", "brier_of_share", "n_folds"]
STRATA = ["arm", "kind", "stratum", "value", "auroc", "low", "high", "balanced_accuracy", "n", "n_positive", "n_slides", "unit"]
KINDS = {"net": "end-to-end", "low rank": "LoRA", "good": "probe", "other": "probe"}


def scaling():
    rows = [(arm, kind, size, n, 5, 0.5 + size / 3, 0.02) for arm, kind in KINDS.items() for size, n in ((0.1, 10), (1.0, 100))]
    table = pd.DataFrame(rows, columns=["arm", "kind", "size", "n_train", "n_folds", "auroc", "auroc_sd"])
    return table.assign(balanced_accuracy=table["auroc"] - 0.05, balanced_accuracy_sd=0.03)


def scores(table=None):
    """Five folds of every arm and size whose means and SDs are those of ``table``, else of `scaling`."""
    table = scaling() if table is None else table
    folds = []
    for fold, step in enumerate(np.arange(-2, 3) / np.sqrt(2.5)):
        values = {name: table[name] + step * table[f"{name}_sd"] for name in ("auroc", "balanced_accuracy")}
        part = table[["arm", "kind", "size", "n_train"]].assign(**dict.fromkeys(binary.METRICS, 0.5)).assign(**values)
        folds.append(part.assign(fold=fold, tested=fold, n_test=25, train_domain="all", domain="all"))
    return pd.concat(folds, ignore_index=True)


def human(domains="xyz"):
    """Made-up rater statistics, each domain with values of its own."""
    rows = [
        {
            "domain": domain,
            "n": 100 + i,
            "n_slides": 10,
            "n_units": 10,
            "unit": "slide",
            "third_share": 0.3,
            "contested_share": 0.2,
        }
        | {
            f"{measure}{end}": 0.7 + 0.01 * i + add
            for measure in raters.MEASURES
            for end, add in (("", 0), ("_low", -0.02), ("_high", 0.03))
        }
        | {"rater1_vs_consensus": 0.9, "rater2_vs_consensus": 0.88}
        for i, domain in enumerate([*domains, "all"])
    ]
    return pd.DataFrame(rows)


def by_test_domain(domains="xyz"):
    rows = [
        (arm, kind, domain, where, mean, 0.02)
        for arm, kind in KINDS.items()
        for domain in domains
        for where, mean in (("in domain", 0.8), ("out of domain", 0.7))
    ]
    return pd.DataFrame(rows, columns=["arm", "kind", "domain", "where", "mean", "sd"]).assign(n_folds=5)


def matrix(domains="xyz"):
    rows = [
        (arm, kind, a, b, 0.8 - 0.1 * (a != b) - 0.1 * (arm == "other"), 0.02)
        for arm, kind in KINDS.items()
        for a in domains
        for b in domains
    ]
    return pd.DataFrame(rows, columns=["arm", "kind", "train_domain", "domain", "mean", "sd"]).assign(n_folds=5)


def means():
    rows = [(arm, kind, 0.8, 0.02, 0.7, 0.03, 5) for arm, kind in KINDS.items()]
    return pd.DataFrame(rows, columns=MEANS)


def order(tied):
    """A ranking in which each pair of ``tied`` isn't told apart."""
    ties = {arm: ", ".join(other for other in KINDS if {arm, other} in tied) for arm in KINDS}
    rows = [
        (arm, kind, 0.9 - i / 20, 0.02, 5, i + 1, i + 2 if ties[arm] else i + 1, ties[arm])
        for i, (arm, kind) in enumerate(KINDS.items())
    ]
    table = pd.DataFrame(rows, columns=["arm", "kind", "mean", "sd", "n_folds", "rank_low", "rank_high", "tied_with"])
    return table.assign(over="folds")


def intervals():
    rows = [(arm, kind, 1.0, "auroc", 0.8, 0.7, 0.85, 12, "slide") for arm, kind in KINDS.items()]
    return pd.DataFrame(rows, columns=["arm", "kind", "size", "metric", "estimate", "low", "high", "n", "unit"])


def bins():
    rows = [
        (
            arm,
            kind,
            i / 5,
            (i + 1) / 5,
            i / 5 + 0.1,
            i / 6,
            np.nan if i == 4 else i / 6 - 0.05,
            i / 6 + 0.05,
            10 + i,
            6,
            "slides",
        )
        for arm, kind in KINDS.items()
        for i in range(5)
    ]
    return pd.DataFrame(rows, columns=BINS)


def calibration():
    rows = [(arm, kind, 0.2, 0.1 + i / 50, 0.4, 0.3, 0.21, 5) for i, (arm, kind) in enumerate(KINDS.items())]
    return pd.DataFrame(rows, columns=SUMMARY)


def strata():
    values = {
        "domain": ["human breast cancer", "canine lung cancer"],
        "scanner": ["S1"],
        "agreement": ["unanimous", "contested"],
    }
    rows = [
        (arm, kind, stratum, value, 0.7 + 0.1 * i, 0.6 + 0.1 * i, np.nan if i else 0.75, 0.7, 50, 20, 4, "slide")
        for arm, kind in KINDS.items()
        for stratum in values
        for i, value in enumerate(values[stratum])
    ]
    return pd.DataFrame(
        rows,
        columns=STRATA,
    ).assign(n_units=lambda table: table["n_slides"])


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
    predictions = pd.DataFrame(
        {"train_domain": "all", "size": 1.0, "label": table["label"], "score": np.linspace(0, 1, len(table))}
    )
    return {
        "contact_sheet": lambda: figures.contact_sheet(study, patches, table),
        "embedding": lambda: figures.embedding(study, components, "good"),
        "scores": lambda: figures.score_histogram(study, figures.score_table(predictions), "good"),
        "history": lambda: figures.history(study, history(), "net"),
        "scaling": lambda: of_scaling.figure_1(study, scores(), INTERVAL).figure,
        "scaling_and_raters": lambda: of_scaling.figure_1(study, scores(), INTERVAL, human()).figure,
        "learning_curves": lambda: of_scaling.learning_curves(study, scores()).figure,
        "ranking": lambda: arms.ranking(study, order([{"net", "low rank"}]), intervals()).figure,
        "reliability": lambda: arms.reliability(study, bins(), calibration()).figure,
        "strata": lambda: arms.strata(study, strata()).figure,
        "cross_domain": lambda: of_domains.cross_domain(study, matrix(), means()).figure,
        "cross_domain_of_two": lambda: of_domains.cross_domain(study, matrix(("MIDOG21", "TUPAC16")), means()).figure,
        "by_test_domain": lambda: of_domains.by_test_domain(study, by_test_domain(), human()).figure,
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


def test_fig_2_shows_the_best_arm_of_each_kind():
    table = pd.concat([matrix(), matrix().query("arm == 'good'").assign(arm="better", mean=0.9)])
    assert of_domains.best_arms(MIDOG, table) == ["net", "low rank", "better"]
    assert of_domains.best_arms(MIDOG, table[table["kind"] == "probe"]) == ["better"]


def test_fig_2_shows_the_home_made_encoder_whether_it_is_the_best_or_not():
    assert of_domains.best_arms(HOME, matrix()) == ["net", "low rank", "good", "other"]
    best = replace(MIDOG, pretraining=(Pretraining("good"),))
    assert of_domains.best_arms(best, matrix()) == ["net", "low rank", "good"]
    figure = of_domains.cross_domain(HOME, matrix(), means()).figure
    panels = [axis.get_title("left") for axis in figure.axes[:4]]
    assert panels[-1] == "other\n(probe, pretrained here)" and "pretrained" not in "".join(panels[:-1])
    assert "other (probe, pretrained here)" in [label.get_text() for label in figure.axes[-1].get_yticklabels()]
    figure.draw_without_rendering()
    assert pixels_cut_off(figure) < 1


def test_the_home_made_encoder_has_a_star_and_says_so_in_fig_1():
    axis = of_scaling.figure_1(HOME, scores(), INTERVAL).figure.axes[0]
    drawn = {handle.get_label(): str(handle.get_marker()) for handle in axis.get_legend_handles_labels()[0][:4]}
    assert drawn.pop("other (probe, pretrained here)") == "*"
    assert "*" not in drawn.values() and not any("pretrained" in name for name in drawn)
    panel = of_scaling.learning_curves(HOME, scores()).figure.axes[3]
    assert panel.get_title("left").startswith("other\n(probe, pretrained here; gap")
    names = [label.get_text() for label in arms.ranking(HOME, order([]), intervals()).figure.axes[0].get_yticklabels()]
    assert names[-1].startswith("other (probe, pretrained here)")


def test_pretrained_encoders_and_their_snapshots_differ_by_shape_from_all_others():
    names = [f"p{i}" for i in range(4)]
    study = replace(MIDOG, encoders=("good", "p0"), pretraining=tuple(Pretraining(name) for name in names))
    shapes = [str(figures.look(study, name, "probe")["marker"].get_marker()) for name in names]
    assert len(set(shapes)) == 4 and not set(shapes) & set(figures.MARKERS)
    assert figures.look(study, "p1@100", "probe")["marker"].get_marker() == figures.HOME_MARKERS[1]
    assert len({figures.look(study, name, "probe")["color"] for name in names}) == 4
    assert figures.look(study, "good", "probe") == figures.look(MIDOG, "good", "probe")


def pixels_cut_off(figure):
    """How far anything drawn reaches over the edge of the figure as it is saved, in px."""
    box, (width, height) = figure.get_tightbbox().extents * figure.dpi, figure.bbox.size
    return max(0, -box[0], -box[1], box[2] - width, box[3] - height)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_cut_off(name):
    assert pixels_cut_off(drawn(False, name)) < 1


def lines(axis, name):
    return [line for line in axis.lines if str(line.get_label()).startswith(name)]


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


def test_the_cells_of_fig_2_are_on_one_scale_and_their_numbers_read_on_every_shade():
    panels = of_domains.cross_domain(MIDOG, matrix(), means()).figure.axes[:3]
    assert {axis.collections[0].get_clim() for axis in panels} == {of_domains.SCALE}
    assert {t.get_text() for t in panels[0].texts} == {"0.80\n±.02", "0.70\n±.02"}
    assert {t.get_color() for t in panels[0].texts} == {"black"}
    darkest = linear(of_domains.SHADES(1.0)[:3]) @ [0.2126, 0.7152, 0.0722]
    assert (darkest + 0.05) / 0.05 > 4.5, "black text on it, contrast as WCAG 2 asks"
    assert len({axis.get_xlabel() for axis in panels}) == 1 and panels[0].get_ylabel() == "trained on"


def test_fig_2_has_the_published_means_under_ours():
    axis = of_domains.cross_domain(MIDOG, matrix(), means()).figure.axes[-1]
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names[:4] == [f"{arm} ({kind})" for arm, kind in KINDS.items()] and names[-1] == "End-To-End ResNet50"
    place = dict(zip(names, axis.get_yticks(), strict=True))
    drawn = [(c.lines[0].get_xdata()[0], round(float(c.lines[0].get_ydata()[0]), 2)) for c in axis.containers]
    assert (0.87, round(place["End-To-End ResNet50"] - 0.17, 2)) in drawn
    assert (0.74, round(place["End-To-End ResNet50"] + 0.17, 2)) in drawn


def test_each_domain_s_raters_stand_beside_the_arms():
    axis = of_domains.by_test_domain(MIDOG, by_test_domain(), human()).figure.axes[0]
    drawn = {tuple(np.round(line.get_xdata(), 2)): line.get_ydata()[0] for line in lines(axis, "one rater")}
    assert drawn == pytest.approx({(-0.45, 0.45): 0.70, (0.55, 1.45): 0.71, (1.55, 2.45): 0.72})
    markers = {c.get_label(): c.lines[0] for c in axis.containers}
    assert list(markers) == [f"{arm}, {where}" for arm in KINDS for where in ("in domain", "out of domain")]
    assert markers["good, in domain"].get_marker() == figures.MARKERS[2], "an arm looks as it does in Fig. 1"
    assert markers["net, out of domain"].get_markerfacecolor() == "white" != markers["net, in domain"].get_markerfacecolor()
    for without in (None, human().assign(balanced_accuracy=np.nan)):
        assert not lines(of_domains.by_test_domain(MIDOG, by_test_domain(), without).figure.axes[0], "one rater")


def test_of_many_arms_the_best_of_each_kind_is_shown_by_domain():
    def more(table, value):
        return pd.concat([table, *(table[table["arm"] == "good"].assign(arm=f"e{i}", **{value: 0.1 * i}) for i in range(3))])

    assert figures.few(by_test_domain(), "mean") == list(KINDS)
    many = more(by_test_domain(), "mean")
    assert figures.few(many, "mean") == ["net", "low rank", "good"]
    figure = of_domains.by_test_domain(MIDOG, many).figure
    assert {c.get_label() for c in figure.axes[0].containers if "e0" in c.get_label()} == set() and "best arm" in texts(figure)
    assert "best arm" not in texts(of_domains.by_test_domain(MIDOG, by_test_domain()).figure)
    assert "best arm" in texts(arms.strata(MIDOG, more(strata(), "auroc")).figure)


def test_the_ranking_names_the_places_that_an_arm_can_hold():
    (axis,) = arms.ranking(MIDOG, order([{"net", "low rank"}]), intervals()).figure.axes
    assert [label.get_text().split("   ")[1].strip() for label in axis.get_yticklabels()] == ["1–2", "2–3", "3", "4"]
    assert "5 folds" in axis.get_xlabel() and "12 slides" in axis.get_xlabel()


@pytest.mark.parametrize("name", ["scaling", "scaling_and_raters", "by_test_domain", "strata", "learning_curves"])
def test_no_legend_covers_data(name):
    figure = drawn(True, name)
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert len(names) == len(set(names)), "each name once"
    top = legend.get_window_extent().y1
    assert all(top < axis.get_window_extent().y0 for axis in figure.axes if axis.axison)


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


def test_one_fold_or_size_draws_no_curve_and_one_stratum_sets_nothing_apart():
    one = of_scaling.learning_curves(MIDOG, scores().query("size == 1")).figure
    assert list(one.axes[0].get_xticks()) == [100]
    whole = arms.strata(SYNTHETIC, strata().iloc[:0]).figure
    assert "one stratum only" in texts(whole)


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


def test_the_legend_of_scores_covers_none_of_them():
    predictions = pd.DataFrame({"label": [0, 1] * 20, "score": np.linspace(0.4, 0.6, 40), "train_domain": "all", "size": 1.0})
    figure = figures.score_histogram(MIDOG, figures.score_table(predictions), "good")
    figure.draw_without_rendering()
    (axis,), (legend,) = figure.axes, figure.legends
    assert axis.get_legend() is None and legend.get_window_extent().y1 < axis.get_window_extent().y0


def test_figures_name_what_their_intervals_draw():
    by_case = arms.ranking(MIDOG, order([]), intervals().assign(unit="case", n=7)).figure.axes[0].get_xlabel()
    assert "7 cases" in by_case and "12 slides" in arms.ranking(MIDOG, order([]), intervals()).figure.axes[0].get_xlabel()
    assert "over cases" in arms.strata(MIDOG, strata().assign(unit="case")).figure.axes[-1].get_xlabel()
