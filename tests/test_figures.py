"""Figures: written whole, the same twice, with their table, and with the word "synthetic" where it belongs."""

import numpy as np
import pandas as pd
import pytest

from mfcore import figures
from mfcore.config import Data, Network, Study

MIDOG = Study("t", "A test", Data("midog"), networks=(Network("net", input_px=100),), encoders=("good",))
SYNTHETIC = Study("t", "A test", Data("synthetic"), networks=MIDOG.networks, encoders=MIDOG.encoders)


def scaling():
    rows = [
        (arm, kind, size, n, 5, 0.5 + size / 3, 0.02)
        for arm, kind in (("net", "end-to-end"), ("good", "probe"))
        for size, n in ((0.1, 10), (1.0, 100))
    ]
    return pd.DataFrame(rows, columns=["arm", "kind", "size", "n_train", "n_folds", "auroc", "auroc_sd"])


def matrix():
    rows = [
        (arm, kind, a, b, 0.8 - 0.1 * (a != b), 0.02)
        for arm, kind in (("net", "end-to-end"), ("good", "probe"))
        for a in "xyz"
        for b in "xyz"
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


def every_figure(study):
    table, patches, features = labels()
    components = figures.embedding_table(features, table)
    predictions = pd.DataFrame(
        {"train_domain": "all", "size": 1.0, "label": table["label"], "score": np.linspace(0, 1, len(table))}
    )
    return {
        "contact_sheet": figures.contact_sheet(study, patches, table),
        "embedding": figures.embedding(study, components, "good"),
        "scores": figures.score_histogram(study, figures.score_table(predictions), "good"),
        "history": figures.history(study, history(), "net"),
        "scaling": figures.data_scaling(study, scaling()),
        "cross_domain": figures.cross_domain(study, matrix()),
    }


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text")))


@pytest.mark.parametrize("name", every_figure(MIDOG))
def test_synthetic_figures_say_so_and_others_don_t(name):
    assert "synthetic" in texts(every_figure(SYNTHETIC)[name])
    assert "synthetic" not in texts(every_figure(MIDOG)[name])


def test_a_figure_is_saved_whole_with_its_table_and_the_same_twice(tmp_path):
    written = [figures.save(figures.data_scaling(MIDOG, scaling()), scaling(), tmp_path / name, "f") for name in "ab"]
    assert [path.name for path in written[0]] == ["f.png", "f.pdf", "f.csv"]
    for first, second in zip(*written, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.suffix
    pd.testing.assert_frame_equal(pd.read_csv(written[0][2]), scaling())


def test_drawing_leaves_nothing_open_in_pyplot():
    import matplotlib.pyplot as plt

    every_figure(MIDOG)
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
