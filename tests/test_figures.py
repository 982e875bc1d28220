"""Figures: written whole, the same twice, with their table, and with the word "synthetic" where it belongs."""

import numpy as np
import pandas as pd
import pytest

from mfcore import captions, figures, raters
from mfcore.config import Data, Network, Study
from mfcore.statistics import Interval

MIDOG = Study("t", "A test", Data("midog"), networks=(Network("net", input_px=100),), encoders=("good",))
SYNTHETIC = Study("t", "A test", Data("synthetic"), networks=MIDOG.networks, encoders=MIDOG.encoders)


def scaling():
    rows = [
        (arm, kind, size, n, 5, 0.5 + size / 3, 0.02)
        for arm, kind in (("net", "end-to-end"), ("good", "probe"))
        for size, n in ((0.1, 10), (1.0, 100))
    ]
    table = pd.DataFrame(rows, columns=["arm", "kind", "size", "n_train", "n_folds", "auroc", "auroc_sd"])
    return table.assign(balanced_accuracy=table["auroc"] - 0.05, balanced_accuracy_sd=0.03)


def human(domains="xyz"):
    """Made-up rater statistics, each domain with values of its own."""
    rows = [
        {"domain": domain, "n": 100 + i, "n_slides": 10, "third_share": 0.3, "contested_share": 0.2}
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
        for arm, kind in (("net", "end-to-end"), ("other", "probe"), ("good", "probe"))
        for domain in domains
        for where, mean in (("in domain", 0.8), ("out of domain", 0.7))
    ]
    return pd.DataFrame(rows, columns=["arm", "kind", "domain", "where", "mean", "sd"])


def matrix(domains="xyz"):
    rows = [
        (arm, kind, a, b, 0.8 - 0.1 * (a != b), 0.02)
        for arm, kind in (("net", "end-to-end"), ("good", "probe"))
        for a in domains
        for b in domains
    ]
    return pd.DataFrame(rows, columns=["arm", "kind", "train_domain", "domain", "mean", "sd"])


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
        "scaling": lambda: figures.data_scaling(study, scaling()),
        "scaling_and_raters": lambda: figures.data_scaling(study, scaling(), human()),
        "cross_domain": lambda: figures.cross_domain(study, matrix()),
        "cross_domain_and_raters": lambda: figures.cross_domain(study, matrix(), tested=by_test_domain(), human=human()),
        "cross_domain_of_two": lambda: figures.cross_domain(study, matrix(("MIDOG21", "TUPAC16"))),
    }


NAMES = list(drawing(MIDOG))


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text")))


@pytest.mark.parametrize("name", NAMES)
def test_synthetic_figures_say_so_and_others_don_t(name):
    assert "synthetic" in texts(drawing(SYNTHETIC)[name]())
    assert "synthetic" not in texts(drawing(MIDOG)[name]())


def test_a_figure_is_saved_whole_with_its_table_and_the_same_twice(tmp_path):
    written = [figures.save(figures.data_scaling(MIDOG, scaling()), scaling(), tmp_path / name, "f") for name in "ab"]
    assert [path.name for path in written[0]] == ["f.png", "f.pdf", "f.csv"]
    for first, second in zip(*written, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.suffix
    pd.testing.assert_frame_equal(pd.read_csv(written[0][2]), scaling())


def test_drawing_leaves_nothing_open_in_pyplot():
    import matplotlib.pyplot as plt

    for draw in drawing(MIDOG).values():
        draw()
    assert plt.get_fignums() == []


def test_the_ring_marks_the_epoch_that_is_tested():
    from dataclasses import replace

    from mfcore.config import Switches

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


def test_fig_2_shows_the_end_to_end_arms_and_the_best_probe():
    table = pd.concat([matrix(), matrix().query("arm == 'good'").assign(arm="better", mean=0.9)])
    assert figures.best_arms(table) == ["net", "better"]


def pixels_cut_off(figure):
    """How far anything drawn reaches over the edge of the figure as it is saved, in px."""
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox().extents * figure.dpi, figure.bbox.size
    return max(0, -box[0], -box[1], box[2] - width, box[3] - height)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_cut_off(name):
    assert pixels_cut_off(drawing(MIDOG)[name]()) < 1


def lines(axis, name):
    return [line for line in axis.lines if str(line.get_label()).startswith(name)]


def test_fig_1_has_the_raters_where_the_metric_allows_and_one_panel_without_votes():
    auroc, accuracy = figures.data_scaling(MIDOG, scaling(), human()).axes
    assert (auroc.get_ylabel(), accuracy.get_ylabel()) == ("AUROC", "balanced accuracy")
    (line,) = lines(accuracy, "one rater against another, 0.73")
    assert set(line.get_ydata()) == {0.73} and tuple(line.get_xdata()) == accuracy.get_xlim()
    (band,) = accuracy.collections[-1:]
    assert band.get_datalim(accuracy.transData).intervaly == pytest.approx([0.71, 0.76])
    (upper,) = lines(accuracy, "a rater against the consensus")
    assert upper.get_ydata()[0] == pytest.approx(0.89)
    assert not lines(auroc, "one rater") and not lines(auroc, "a rater")
    for without in (None, human().iloc[:0], human().assign(balanced_accuracy=np.nan)):
        assert len(figures.data_scaling(MIDOG, scaling(), without).axes) == 1


def test_fig_2_has_each_domain_s_raters_beside_the_arms_shown():
    figure = figures.cross_domain(MIDOG, matrix(), tested=by_test_domain(), human=human())
    below = figure.axes[-1]
    drawn = {tuple(np.round(line.get_xdata(), 2)): line.get_ydata()[0] for line in lines(below, "one rater")}
    assert drawn == pytest.approx({(-0.45, 0.45): 0.70, (0.55, 1.45): 0.71, (1.55, 2.45): 0.72})
    markers = {c.get_label(): c.lines[0] for c in below.containers}
    assert list(markers) == [f"{arm}, {where}" for arm in ("net", "good") for where in ("in domain", "out of domain")]
    assert markers["good, in domain"].get_marker() == figures.MARKERS[2], "an arm looks as it does in Fig. 1"
    assert markers["net, out of domain"].get_markerfacecolor() == "white" != markers["net, in domain"].get_markerfacecolor()
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert len(names) == len(set(names)) == 7, "each name once"
    nothing = human().assign(balanced_accuracy=np.nan)
    for given in ({"tested": by_test_domain()}, {"human": human()}, {"tested": by_test_domain(), "human": nothing}):
        assert len(figures.cross_domain(MIDOG, matrix(), **given).axes) == 3


@pytest.mark.parametrize("name", ["scaling", "scaling_and_raters", "cross_domain_and_raters"])
def test_no_legend_covers_data(name):
    figure = drawing(SYNTHETIC)[name]()
    figure.draw_without_rendering()
    (legend,) = figure.legends
    top = legend.get_window_extent().y1
    assert all(top < axis.get_window_extent().y0 for axis in figure.axes)


def agreement():
    rows = [
        ("good", "all", "consensus", 100, 0.8),
        ("good", "all", "one rater", 100, 0.75),
        ("good", "unanimous", "consensus", 80, 0.85),
        ("good", "contested", "consensus", 20, 0.6),
    ]
    table = pd.DataFrame(rows, columns=["arm", "annotations", "against", "n_test", "balanced_accuracy"])
    return table.assign(balanced_accuracy_sd=0.01)


def crossed():
    return pd.DataFrame([{"arm": "good", "in_domain": 0.8, "out_of_domain": 0.7, "n_folds": 5}])


def test_captions_say_what_the_raters_reach_and_whose_votes_they_are():
    interval = Interval(0.83, 0.8, 0.86, 0.95, 12)
    fig_1 = captions.data_scaling(MIDOG, scaling(), interval, human(), agreement())
    assert "one rater against another, balanced accuracy 0.73 [0.71, 0.76] (95% bootstrap of 10 slides, shaded)" in fig_1
    assert "on 103 annotations" in fig_1 and "a rater against the consensus, 0.89, flattered" in fig_1
    assert "good with all the data has 0.75 instead of 0.80" in fig_1
    fig_2 = captions.cross_domain(MIDOG, crossed(), human())
    assert "x 0.70 [0.68, 0.73], y 0.71 [0.69, 0.74], z 0.72 [0.70, 0.75]" in fig_2 and "(303 annotations)" in fig_2
    table = captions.raters_table(MIDOG, human())
    assert "Cohen's kappa 0.73" in table and "103 annotations" in table and "the 2 raters" in table and "30.0%" in table
    split = captions.by_agreement(MIDOG, agreement())
    assert "unanimous labels (80 tested a fold) 0.85 ± 0.01, contested labels (20 tested a fold) 0.60 ± 0.01" in split
    for text in (fig_1, fig_2, table, split):
        assert "synthetic" not in text and "the data set's own raters" in text
    made_up = captions.data_scaling(SYNTHETIC, scaling(), interval, human())
    for text in (made_up, captions.raters_table(SYNTHETIC, human()), captions.by_agreement(SYNTHETIC, agreement())):
        assert "synthetic raters" in text


def test_captions_without_votes_say_so_or_say_nothing():
    interval, none = Interval(0.83, 0.8, 0.86, 0.95, 12), human().iloc[:0]
    assert captions.data_scaling(MIDOG, scaling(), interval, none, agreement().iloc[:0]) == captions.data_scaling(
        MIDOG, scaling(), interval
    )
    assert captions.cross_domain(MIDOG, crossed(), none) == captions.cross_domain(MIDOG, crossed())
    assert "no human reference" in captions.raters_table(MIDOG, none)
    without_interval = human().assign(balanced_accuracy_low=np.nan, balanced_accuracy_high=np.nan)
    assert "nan" not in captions.cross_domain(MIDOG, crossed(), without_interval)
    assert "can't be told apart" in captions.by_agreement(MIDOG, agreement().iloc[:0])
