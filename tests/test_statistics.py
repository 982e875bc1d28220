"""Spread, bootstrap and paired interval against other formulas and against their own simulations."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from mfcore import statistics
from mfcore.metrics import MetricError
from mfcore.rng import generator


def fake_predictions(seed=0, n_slides=12, n_folds=2, n_per_slide=8):
    """Random scores; every fold tests another half of the slides."""
    rng = np.random.default_rng(seed)
    tables = []
    for fold in range(n_folds):
        for slide in rng.choice(n_slides, n_slides // 2, replace=False):
            label = rng.integers(0, 2, n_per_slide)
            score = np.round(np.clip(rng.normal(0.4 + 0.2 * label, 0.2), 0, 1), 1)
            tables.append(pd.DataFrame({"slide_id": f"s{slide}", "label": label, "score": score, "fold": fold}))
    return pd.concat(tables, ignore_index=True)


def test_spread_is_mean_and_sample_sd():
    values = [0.7, 0.8, 0.75, 0.9]
    found = statistics.spread(values)
    assert (found.mean, found.sd, found.n) == (pytest.approx(np.mean(values)), pytest.approx(stats.tstd(values)), 4)


def test_spread_leaves_nan_out_and_counts():
    assert statistics.spread([0.5, np.nan, 0.7]).n == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, none = statistics.spread([0.5]), statistics.spread([np.nan])
    assert one.mean == 0.5
    assert np.isnan([one.sd, none.mean, none.sd]).all()
    assert none.n == 0


def test_bootstrap_equals_resampling_rows_slide_by_slide():
    """The quadratic form against the plain way: repeat each drawn slide's rows and rank them again."""
    table = fake_predictions()
    found = statistics.bootstrap_auroc(table, 7, "test", n_resamples=40)
    slides = np.unique(table["slide_id"])
    counts = generator(7, "bootstrap", "test").multinomial(len(slides), np.full(len(slides), 1 / len(slides)), 40)
    means = []
    for drawn in counts:
        repeated = table.loc[np.repeat(table.index, drawn[np.searchsorted(slides, table["slide_id"])])]
        means.append(
            np.mean([roc_auc_score(f["label"], f["score"]) for _, f in repeated.groupby("fold") if f["label"].nunique() == 2])
        )
    assert found.estimate == pytest.approx(np.mean([roc_auc_score(f["label"], f["score"]) for _, f in table.groupby("fold")]))
    assert [found.low, found.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1e-12)
    assert found.n == len(slides)


def test_bootstrap_depends_on_its_name_and_seed_only():
    table = fake_predictions()
    one = statistics.bootstrap_auroc(table, 1, "arm", n_resamples=200)
    assert one == statistics.bootstrap_auroc(table.sample(frac=1, random_state=3), 1, "arm", n_resamples=200)
    assert one != statistics.bootstrap_auroc(table, 1, "other arm", n_resamples=200)
    assert one != statistics.bootstrap_auroc(table, 2, "arm", n_resamples=200)


def test_slides_make_the_interval_wider_than_patches():
    """Where a slide's patches share an offset, drawing patches singly promises too much."""
    rng = np.random.default_rng(0)
    offset = rng.normal(0, 0.2, 10)
    label = rng.integers(0, 2, 400)
    slide = np.repeat(np.arange(10), 40)
    label = np.where(rng.random(400) < 0.8, slide % 2, label)  # slides differ in their share of positives
    score = np.clip(0.5 + offset[slide] + 0.05 * label, 0, 1)
    table = pd.DataFrame({"slide_id": slide.astype(str), "label": label, "score": score, "fold": 0})
    by_slide = statistics.bootstrap_auroc(table, 1, "x", n_resamples=300)
    by_patch = statistics.bootstrap_auroc(table.assign(slide_id=np.arange(400).astype(str)), 1, "x", n_resamples=300)
    assert by_slide.high - by_slide.low > 2 * (by_patch.high - by_patch.low)


def test_bootstrap_without_both_classes_is_nan():
    table = fake_predictions().assign(label=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = statistics.bootstrap_auroc(table, 1, "x", n_resamples=20)
    assert np.isnan([found.estimate, found.low, found.high]).all()


def test_bootstrap_refuses_nan_scores_and_levels():
    table = fake_predictions()
    with pytest.raises(MetricError, match="row 3 is no number"):
        statistics.bootstrap_auroc(table.assign(score=table["score"].where(table.index != 3)), 1, "x")
    with pytest.raises(statistics.StatisticsError, match="level is 95"):
        statistics.bootstrap_auroc(table, 1, "x", level=95)


def test_paired_difference_is_scipys_when_nothing_is_shared():
    """With a vanishing test share the correction vanishes, and the paired t interval remains."""
    first, second = np.array([0.8, 0.82, 0.79, 0.85, 0.81]), np.array([0.7, 0.75, 0.74, 0.73, 0.78])
    found = statistics.paired_difference(first, second, 1e12, 1)
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert [found.low, found.high] == pytest.approx([expected.low, expected.high], abs=1e-6)
    assert found.low > 0 or found.high < 0


def test_paired_difference_widens_as_nadeau_and_bengio_say():
    first, second = np.array([0.8, 0.82, 0.79, 0.85, 0.81]), np.array([0.7, 0.75, 0.74, 0.73, 0.78])
    plain = statistics.paired_difference(first, second, 1e12, 1)
    corrected = statistics.paired_difference(first, second, 64, 20)
    ratio = (corrected.high - corrected.low) / (plain.high - plain.low)
    assert ratio == pytest.approx(np.sqrt((1 / 5 + 20 / 64) / (1 / 5)), abs=1e-6)
    assert corrected.estimate == pytest.approx(np.mean(first - second))


def test_paired_difference_leaves_unfinished_folds_out():
    found = statistics.paired_difference([0.8, np.nan, 0.9], [0.7, 0.7, 0.85], 80, 20)
    assert found.n == 2
    assert np.isnan(statistics.paired_difference([0.8], [0.7], 80, 20).low)


@pytest.mark.parametrize(
    ("first", "second", "n_train", "message"),
    [([0.1], [0.1, 0.2], 5, "must be paired"), ([0.1, 0.2], [0.1, 0.2], 0, "must be positive")],
)
def test_paired_difference_refuses(first, second, n_train, message):
    with pytest.raises(statistics.StatisticsError, match=message):
        statistics.paired_difference(first, second, n_train, 5)
