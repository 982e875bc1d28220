"""Domain shift with planted costs: of another tumour, of another scanner, of both; and what the data can't tell apart."""

import numpy as np
import pandas as pd
import pytest

from mfcore import store
from mfcore.analysis import domains
from mfcore.measures import binary, statistics
from mfcore.study.config import Data, Network, Settings
from mfcore.study.predictions import PROBE

STUDY = Settings("t", "A test", Data("midog"), encoders=("good",), networks=(Network("net"),))
SCANNERS = {"breast": ("X", "Y", "Z"), "neuro": ("X",), "lung": ("V",), "lymph": ("V",)}  # as MIDOG 2022's, less one
COST = {"tumour": 0.5, "scanner": 0.9}


def made_labels(scanners, n=90):
    rows = [
        {"domain": domain, "scanner": scanner, "slide_id": f"{domain}-{scanner}-{i % 3}", "label": i % 2}
        for domain, of_domain in scanners.items()
        for scanner in of_domain
        for i in range(n)
    ]
    return pd.DataFrame(rows).assign(patch_id=np.arange(len(rows)))


def made(scanners, tumour=COST["tumour"], scanner=COST["scanner"], n_folds=4, arms=("net", "good")):
    """Predictions whose signal loses ``tumour`` on another tumour and ``scanner`` on a scanner not in training."""
    labels, rng, tables = made_labels(scanners), np.random.default_rng(0), []
    for arm in arms:
        for fold in range(n_folds):
            at_home = rng.random(len(labels)) < 0.4
            for train_domain, of_training in scanners.items():
                own = labels["domain"] == train_domain
                part = labels[~own | at_home]
                same = part["domain"] == train_domain
                signal = 2.0 - tumour * ~same - scanner * ~part["scanner"].isin(of_training)
                score = 1 / (1 + np.exp(-(signal * (part["label"] - 0.5) + rng.normal(0, 0.7, len(part)))))
                unit = {"fold": fold, "train_domain": train_domain, "size": 1.0, "n_train": 60, "arm": arm}
                tables.append(part.drop(columns="scanner").assign(score=score, kind=PROBE, **unit))
    everything = tables[0].assign(train_domain="all", score=0.5)
    return pd.concat([*tables, everything], ignore_index=True), labels


def test_planted_costs_are_found_apart():
    predictions, labels = made(SCANNERS)
    found = domains.apart_table(predictions, labels, STUDY)
    assert found.columns.tolist() == domains.APART and found["arm"].tolist() == ["net"] * 3 + ["good"] * 3
    row = found[found["arm"] == "net"].set_index("comparison")
    assert row["auroc_drop"].is_monotonic_increasing  # 0.5 < 0.9 < 1.4 of signal
    assert (row["low"] > 0).all() and (row["why"] == "").all() and (row["n_folds"] == 4).all()
    # neuro to breast X, breast to neuro, lung to lymph and back; neuro to breast, X against Y and Z; all others but home
    assert row["n"].tolist() == [4, 1, 4 * 6 - 6 - 4]


@pytest.mark.parametrize(("tumour", "scanner", "clear"), [(0.0, 1.2, "scanner alone"), (1.2, 0.0, "tumour alone")])
def test_a_cost_that_is_not_there_is_not_found(tumour, scanner, clear):
    predictions, labels = made(SCANNERS, tumour, scanner)
    row = domains.apart_table(predictions, labels, STUDY).query("arm == 'net'").set_index("comparison")
    other = {"scanner alone": "tumour alone", "tumour alone": "scanner alone"}[clear]
    assert row.loc[clear, "low"] > 0 and row.loc[clear, "auroc_drop"] > 2 * abs(row.loc[other, "auroc_drop"])
    assert row.loc[other, "low"] < 0 < row.loc[other, "high"]


def test_the_cost_is_that_of_the_patches_that_home_was_tested_on():
    predictions, labels = made(SCANNERS, arms=("good",))
    part = predictions[predictions["train_domain"] != "all"].merge(labels[["patch_id", "scanner"]], on="patch_id")
    drops = []
    for _, fold in part.groupby("fold"):
        of_fold = []
        for there, tested, scanner in (
            ("neuro", "breast", "X"), ("breast", "neuro", "X"), ("lung", "lymph", "V"), ("lymph", "lung", "V")
        ):  # fmt: skip
            home = fold[(fold["train_domain"] == tested) & (fold["domain"] == tested) & (fold["scanner"] == scanner)]
            away = fold[(fold["train_domain"] == there) & fold["patch_id"].isin(home["patch_id"])]
            of_fold.append(binary.auroc(home["label"], home["score"]) - binary.auroc(away["label"], away["score"]))
        drops.append(np.mean(of_fold))
    row = domains.apart_table(predictions, labels, STUDY).set_index("comparison").loc["tumour alone"]
    assert row["auroc_drop"] == pytest.approx(np.mean(drops))
    tested = part[part["train_domain"] == part["domain"]].groupby(["fold", "domain"]).size().mean()
    interval = statistics.paired_test(statistics.Folds(pd.Series(drops)), 0.0, 60, tested).interval
    assert [row["low"], row["high"]] == pytest.approx([interval.low, interval.high])


def test_where_each_tumour_has_one_scanner_the_scanner_alone_is_not_said():
    """As the synthetic data: lung and lymphoma share a scanner, nobody has two."""
    one_each = {"breast": ("Z",), "neuro": ("X",), "lung": ("V",), "lymph": ("V",)}
    found = domains.apart_table(*made(one_each), STUDY).query("arm == 'net'").set_index("comparison")
    assert "within a tumour" in found.loc["scanner alone", "why"] and np.isnan(found.loc["scanner alone", "auroc_drop"])
    assert found.loc["tumour alone", "n"] == 2 and found.loc["tumour and scanner", "n"] == 10
    own_each = {"breast": ("Z",), "neuro": ("X",), "lung": ("V",)}
    found = domains.apart_table(*made(own_each), STUDY).query("arm == 'net'").set_index("comparison")
    assert "no two tumours share a scanner" in found.loc["tumour alone", "why"] and found.loc["tumour alone", "n"] == 0


@pytest.mark.parametrize(
    ("scanners", "why"),
    [({"a": ("",), "b": ("",)}, "labels name no scanner"), ({"a": ("X",), "b": ("X",)}, "all slides are of one scanner")],
)
def test_labels_that_cannot_tell_give_one_row_with_the_reason(scanners, why):
    found = domains.apart_table(*made(scanners), STUDY)
    assert len(found) == 1 and why in found.loc[0, "why"] and found[["auroc_drop", "low", "high"]].isna().all(axis=None)


def test_without_single_domains_there_is_one_row_and_lost_labels_are_refused():
    predictions, labels = made(SCANNERS)
    found = domains.apart_table(predictions.query("train_domain == 'all'"), labels, STUDY)
    assert len(found) == 1 and "no arm was trained on single domains" in found.loc[0, "why"]
    with pytest.raises(store.StoreError, match="run notebook 01 again"):
        domains.apart_table(predictions, labels.iloc[::2], STUDY)


def test_a_fold_without_a_class_is_left_out_and_an_arm_without_domains_is_not_there():
    predictions, labels = made(SCANNERS)
    one_class = predictions.copy()
    one_class.loc[one_class["fold"] == 2, "label"] = 1
    one_class = one_class[(one_class["arm"] == "net") | (one_class["train_domain"] == "all")]
    found = domains.apart_table(one_class, labels, STUDY)
    assert found["arm"].unique().tolist() == ["net"] and (found["n_folds"] == 3).all()


def test_a_domain_with_slides_of_unknown_scanner_lacks_none():
    scanners = {domain: ("X", "Y") for domain in ("a", "b", "c")}
    predictions, labels = made(scanners)
    assert domains.apart_table(predictions, labels, STUDY).query("comparison == 'scanner alone'")["n"].tolist() == [0, 0]
    labels.loc[(labels["domain"] == "c") & (labels["scanner"] == "X"), "scanner"] = ""
    found = domains.apart_table(predictions, labels, STUDY)
    found = found[found["comparison"] != "tumour alone"]
    assert (found["n"] == 0).all() and found["why"].str.endswith("not all scanners of c are known").all()
