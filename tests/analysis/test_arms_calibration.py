"""Reliability: calibrated scores lie on the diagonal, shifted ones off it, and every bin by a loop over its rows."""

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import calibration_curve

from mfcore.analysis import arms
from mfcore.study.config import Data, Network, Settings
from mfcore.study.predictions import PROBE

STUDY = Settings("t", "A test", Data("midog"), encoders=("good", "sure"), networks=(Network("net"),))


def made(n=1500, seed=0):
    """Arm good is calibrated, sure too sure, net too high; fits at other sizes and on single domains must not count."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.05, 0.85, n)
    label = (rng.random(n) < truth).astype(int)
    logit = np.log(truth / (1 - truth))
    of_arm = {"good": truth, "sure": 1 / (1 + np.exp(-3 * logit)), "net": np.clip(truth + 0.15, 0, 1)}
    base = pd.DataFrame({"slide_id": rng.integers(0, 25, n).astype(str), "label": label, "fold": rng.integers(0, 3, n)})
    tables = []
    for arm, score in of_arm.items():
        whole = base.assign(arm=arm, kind=PROBE, train_domain="all", size=1.0, score=score)
        tables += [whole, whole.assign(size=0.1, score=0.01), whole.assign(train_domain="a", score=0.99)]
    return pd.concat(tables, ignore_index=True)


def test_bins_are_scikit_learns():
    table = made()
    found = arms.reliability(table)
    assert found.columns.tolist() == arms.BINS
    for arm, part in found.groupby("arm"):
        rows = table[(table["arm"] == arm) & (table["train_domain"] == "all") & (table["size"] == 1.0)]
        share, score = calibration_curve(rows["label"], rows["score"], n_bins=15)
        assert part["share_positive"].to_numpy() == pytest.approx(share)
        assert part["mean_score"].to_numpy() == pytest.approx(score)
        assert part["n"].sum() == len(rows) and (part["n_units"] <= 25).all()
        assert ((part["mean_score"] > part["bin_low"]) & (part["mean_score"] <= part["bin_high"])).all()


def test_a_calibrated_arm_lies_on_the_diagonal_and_a_shifted_one_does_not():
    found = arms.reliability(made(6000))
    many = found[found["n"] > 100]
    holds = ((many["low"] <= many["mean_score"]) & (many["mean_score"] <= many["high"])).groupby(many["arm"]).mean()
    assert holds["good"] > 0.8 and holds["net"] < 0.2
    assert ((many["low"] <= many["share_positive"]) & (many["share_positive"] <= many["high"])).all()


def test_intervals_resample_slides_and_few_of_them_have_none():
    """A bin of four slides or one class has none; where a slide is of one class, slides make it wider than patches."""
    table = made(600).query("arm == 'good' and train_domain == 'all' and size == 1.0")
    few, five = (table["slide_id"].isin([str(i) for i in range(*ends)]) for ends in ((0, 4), (4, 9)))
    bins = table.assign(score=np.select([few, five, table["label"] == 1], [0.99, 0.75, 0.4], 0.2))
    found = arms.reliability(bins)
    assert found["n_units"].tolist() == [16, 16, 5, 4]
    assert found["low"].isna().tolist() == found["high"].isna().tolist() == [True, True, False, True]
    alike = table.assign(label=(table["slide_id"].astype(int) % 2), score=0.5)
    by_slide = arms.reliability(alike).iloc[0]
    by_patch = arms.reliability(alike.assign(slide_id=np.arange(len(alike)).astype(str))).iloc[0]
    assert by_slide["high"] - by_slide["low"] > 3 * (by_patch["high"] - by_patch["low"])


def test_reliability_draws_cases_where_they_are_known():
    table = made(600).assign(case_id=lambda t: (t["slide_id"].astype(int) // 3).astype(str))
    found = arms.reliability(table)
    alike = arms.reliability(table.assign(slide_id=table["case_id"]))
    assert set(found["unit"]) == {"case"} and set(alike["unit"]) == {"slide"}
    pd.testing.assert_frame_equal(found.drop(columns="unit"), alike.drop(columns="unit"))
