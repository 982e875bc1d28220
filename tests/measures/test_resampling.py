"""The bootstrap over slides of each metric against the plain way: repeat each drawn slide's rows and compute again."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mfcore.measures import binary
from mfcore.measures.binary import MetricError
from mfcore.measures.resampling import RESAMPLED, bootstrap, resample
from mfcore.streams import generator


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


@pytest.mark.parametrize("metric", RESAMPLED)
@pytest.mark.parametrize("seed", range(3))
def test_bootstrap_equals_resampling_rows_slide_by_slide(metric, seed):
    table = fake_predictions(seed)
    if seed == 2:  # a fold whose positives lie on one slide: many resamples lack class 1
        only = table["slide_id"] == table.loc[table["fold"] == 0, "slide_id"].iloc[0]
        table.loc[(table["fold"] == 0) & ~only, "label"] = 0
    found = resample(table, metric, 7, "test", n_resamples=40)
    slides = np.unique(table["slide_id"])
    counts = generator(7, "bootstrap", "test").multinomial(len(slides), np.full(len(slides), 1 / len(slides)), 40)
    means = []
    for drawn in counts:
        repeated = table.loc[np.repeat(table.index, drawn[np.searchsorted(slides, table["slide_id"])])]
        folds = [binary.METRICS[metric](f["label"].to_numpy(), f["score"].to_numpy()) for _, f in repeated.groupby("fold")]
        means.append(np.nanmean(folds) if np.isfinite(folds).any() else np.nan)
    folds = [binary.METRICS[metric](f["label"].to_numpy(), f["score"].to_numpy()) for _, f in table.groupby("fold")]
    assert found == pytest.approx(np.array([np.nanmean(folds), *means]), abs=1e-12, nan_ok=True)
    interval = bootstrap(table, metric, 7, "test", n_resamples=40)
    assert interval.n == len(slides) and interval.estimate == found[0]
    n, share = len(slides), found[0]
    logit = np.log(share / (1 - share))  # by the delta method
    half = stats.t.ppf(0.975, n - 1) * np.nanstd(means, ddof=1) * np.sqrt(n / (n - 1)) / (share * (1 - share))
    expected = [1 / (1 + np.exp(-(logit + by))) for by in (-half, half)]
    assert [interval.low, interval.high] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", sorted(set(binary.METRICS) - set(RESAMPLED)))
def test_other_metrics_have_a_mean_over_folds_and_no_resamples(metric):
    table = fake_predictions()
    folds = [binary.METRICS[metric](f["label"].to_numpy(), f["score"].to_numpy()) for _, f in table.groupby("fold")]
    assert resample(table, metric, 7, n_resamples=0) == pytest.approx([np.mean(folds)])
    with pytest.raises(MetricError, match=f"'{metric}' is not known or can't be resampled"):
        bootstrap(table, metric, 7)


def test_the_interval_covers_as_often_as_it_says():
    """95 % intervals of balanced accuracy where slides differ, against the truth of a large sample."""
    rng = np.random.default_rng(5)

    def sample(n_slides):
        skill = np.repeat(rng.normal(0.3, 0.25, n_slides), 10)
        label = rng.integers(0, 2, 10 * n_slides)
        score = 1 / (1 + np.exp(-(skill * (2 * label - 1) + 0.5 * rng.normal(size=len(label)))))
        slide = np.repeat(np.arange(n_slides), 10).astype(str)
        return pd.DataFrame({"slide_id": slide, "label": label, "score": score, "fold": 0})

    large = sample(20_000)
    truth = binary.balanced_accuracy(large["label"].to_numpy(), large["score"].to_numpy())
    found = [bootstrap(sample(30), "balanced_accuracy", i, "c", n_resamples=200) for i in range(250)]
    assert 0.9 < np.mean([one.low <= truth <= one.high for one in found]) < 0.99


def test_bootstrap_depends_on_its_name_and_seed_only():
    table = fake_predictions()
    one = bootstrap(table, "auroc", 1, "arm", n_resamples=200)
    assert one == bootstrap(table.sample(frac=1, random_state=3), "auroc", 1, "arm", n_resamples=200)
    assert one != bootstrap(table, "auroc", 1, "other arm", n_resamples=200)
    assert one != bootstrap(table, "auroc", 2, "arm", n_resamples=200)


def test_slides_make_the_interval_wider_than_patches():
    """Where a slide's patches share an offset, drawing patches singly promises too much."""
    rng = np.random.default_rng(0)
    offset = rng.normal(0, 0.2, 10)
    label = rng.integers(0, 2, 400)
    slide = np.repeat(np.arange(10), 40)
    label = np.where(rng.random(400) < 0.8, slide % 2, label)  # slides differ in their share of positives
    score = np.clip(0.5 + offset[slide] + 0.05 * label, 0, 1)
    table = pd.DataFrame({"slide_id": slide.astype(str), "label": label, "score": score, "fold": 0})
    by_slide = bootstrap(table, "auroc", 1, "x", n_resamples=300)
    by_patch = bootstrap(table.assign(slide_id=np.arange(400).astype(str)), "auroc", 1, "x", n_resamples=300)
    assert by_slide.high - by_slide.low > 2 * (by_patch.high - by_patch.low)


def test_cases_of_several_slides_are_drawn_whole():
    """Where a case's slides share an offset, the interval is that of drawing cases, and far wider than that of slides."""
    rng = np.random.default_rng(0)
    n_cases, per_case, per_slide = 20, 8, 6
    slide = np.repeat(np.arange(n_cases * per_case), per_slide)
    case = slide // per_case
    label = rng.integers(0, 2, len(slide))
    hit = rng.random(len(slide)) < np.where(rng.random(n_cases) < 0.5, 0.95, 0.35)[case]  # a case is easy or hard
    table = pd.DataFrame({"slide_id": slide.astype(str), "label": label, "score": np.where(hit, label, 1 - label), "fold": 0})
    found = bootstrap(table.assign(case_id=case.astype(str)), "balanced_accuracy", 1, "x", n_resamples=1000)
    as_slides = bootstrap(table.assign(slide_id=case.astype(str)), "balanced_accuracy", 1, "x", n_resamples=1000)
    assert (found.n, found.unit) == (n_cases, "case") and as_slides.unit == "slide"
    assert (found.low, found.high) == (as_slides.low, as_slides.high)
    spread_of_cases = hit.reshape(n_cases, -1).mean(axis=1).std() / np.sqrt(n_cases)
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread_of_cases, rel=0.1)
    by_slide = bootstrap(table, "balanced_accuracy", 1, "x", n_resamples=1000)
    assert found.high - found.low > 1.5 * (by_slide.high - by_slide.low)


def test_a_case_a_slide_changes_no_draw():
    table = fake_predictions()
    renamed = table.assign(case_id=table["slide_id"].map(lambda name: f"case {name[::-1]}"))
    assert bootstrap(renamed, "auroc", 1, "arm", n_resamples=200) == bootstrap(table, "auroc", 1, "arm", n_resamples=200)


def test_bootstrap_without_both_classes_is_nan():
    table = fake_predictions().assign(label=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = bootstrap(table, "auroc", 1, "x", n_resamples=20)
    assert np.isnan([found.estimate, found.low, found.high]).all()


def test_few_slides_have_no_interval():
    table = fake_predictions(n_slides=8, n_folds=1)
    assert table["slide_id"].nunique() == 4
    found = bootstrap(table, "auroc", 1, "x")
    assert found.estimate == pytest.approx(binary.auroc(table["label"], table["score"])) and found.n == 4
    assert np.isnan([found.low, found.high]).all()


def test_bootstrap_refuses_nan_scores_and_other_metrics():
    table = fake_predictions()
    with pytest.raises(MetricError, match="row 3 is no number"):
        bootstrap(table.assign(score=table["score"].where(table.index != 3)), "auroc", 1, "x")
    with pytest.raises(MetricError, match="'auc' is not known"):
        bootstrap(table, "auc", 1, "x")
