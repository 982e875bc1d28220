"""Strata: each is a selection of rows, computed again here; what labels leave out has no row."""

import numpy as np
import pandas as pd
import pytest

from mfcore import store
from mfcore.analysis import arms
from mfcore.measures import binary
from mfcore.study.config import Data, Network, Settings
from mfcore.study.predictions import PROBE

STUDY = Settings("t", "A test", Data("midog"), encoders=("good",), networks=(Network("net"),))


@pytest.fixture(scope="module")
def labels():
    rng = np.random.default_rng(0)
    n = 300
    slide = rng.integers(0, 20, n)
    label = rng.integers(0, 2, n)
    votes = [np.array(v, dtype=np.int8) for v in (([y, y] if rng.random() < 0.6 else [y, 1 - y, y]) for y in label)]
    return pd.DataFrame(
        {
            "patch_id": np.arange(n),
            "slide_id": [f"s{i}" for i in slide],
            "domain": np.where(slide < 8, "a", "b"),
            "scanner": np.select([slide < 4, slide < 12], ["X", "Y"], ""),
            "label": label,
            "votes": [vote[: 1 if i % 10 == 0 else 3] for i, vote in enumerate(votes)],
        }
    )


@pytest.fixture(scope="module")
def predictions(labels):
    rng = np.random.default_rng(1)
    tables = []
    for arm, signal in (("good", 0.6), ("net", 1.5)):
        for fold in range(3):
            part = labels.loc[rng.permutation(len(labels))[:150], ["patch_id", "slide_id", "domain", "label"]]
            hard = np.where(part["domain"] == "b", 0.2, 1.0)
            score = 1 / (1 + np.exp(-(signal * hard * (2 * part["label"] - 1) + rng.normal(size=len(part)))))
            tables.append(part.assign(arm=arm, kind=PROBE, fold=fold, train_domain="all", size=1.0, score=score))
    table = pd.concat(tables)
    return pd.concat([table, table.assign(size=0.1, score=0.5), table.assign(train_domain="a")], ignore_index=True)


def test_every_stratum_is_its_rows(predictions, labels):
    found = arms.by_stratum(predictions, labels, STUDY)
    assert found.columns.tolist() == arms.BY_STRATUM and found["arm"].unique().tolist() == ["net", "good"]
    values = found.groupby("stratum", sort=False)["value"].unique().map(list).to_dict()
    assert values == {"domain": ["a", "b"], "scanner": ["X", "Y"], "agreement": ["contested", "unanimous"]}
    n_votes = labels["votes"].map(len)
    chosen = {
        ("domain", "b"): labels["domain"] == "b",
        ("scanner", "Y"): labels["scanner"] == "Y",
        ("agreement", "contested"): n_votes == 3,
        ("agreement", "unanimous"): n_votes == 2,
    }
    full = predictions.query("arm == 'good' and train_domain == 'all' and size == 1.0")
    for (stratum, value), mask in chosen.items():
        part = full[full["patch_id"].isin(labels.loc[mask, "patch_id"])]
        row = found[(found["arm"] == "good") & (found["stratum"] == stratum) & (found["value"] == value)].iloc[0]
        for metric in ("auroc", "balanced_accuracy"):
            folds = [binary.METRICS[metric](f["label"].to_numpy(), f["score"].to_numpy()) for _, f in part.groupby("fold")]
            assert row[metric] == pytest.approx(np.mean(folds))
        assert row["low"] < row["auroc"] < row["high"]
        different = labels[mask & labels["patch_id"].isin(part["patch_id"])]
        assert [row["n"], row["n_positive"], row["n_slides"]] == [
            len(different), different["label"].sum(), different["slide_id"].nunique()
        ]  # fmt: skip
    by_domain = found[(found["arm"] == "net") & (found["stratum"] == "domain")].set_index("value")["auroc"]
    assert by_domain["a"] > by_domain["b"] + 0.1


def test_intervals_of_strata_draw_cases_where_they_are_known(predictions, labels):
    cases = predictions.assign(case_id="c" + (predictions["slide_id"].str[1:].astype(int) // 4).astype(str))
    found, by_slide = (arms.by_stratum(of, labels, STUDY) for of in (cases, predictions))
    assert set(found.query("stratum == 'agreement'")["unit"]) == {"case"} and set(by_slide["unit"]) == {"slide"}
    alike = arms.by_stratum(predictions.assign(slide_id=cases["case_id"]), labels, STUDY)
    part, same = (table.query("stratum == 'agreement'")[["auroc", "low", "high"]] for table in (found, alike))
    pd.testing.assert_frame_equal(part, same)


def test_what_labels_leave_out_or_have_once_is_no_stratum(predictions, labels):
    plain = labels.assign(scanner="", domain="a", votes=[vote[:1] for vote in labels["votes"]])
    one_domain = predictions.assign(domain="a")
    assert arms.by_stratum(one_domain, plain, STUDY).empty
    one_scanner = arms.by_stratum(one_domain, plain.assign(scanner="X"), STUDY)
    assert one_scanner.columns.tolist() == arms.BY_STRATUM and one_scanner.empty


def test_a_stratum_of_one_class_is_nan_and_a_lost_label_table_refused(predictions, labels):
    one_class = predictions.assign(label=predictions["label"].where(predictions["domain"] == "a", 1))
    found = arms.by_stratum(one_class, labels, STUDY).query("stratum == 'domain'").set_index("value")
    assert np.isnan(found.loc["b", ["auroc", "low", "high", "balanced_accuracy"]].astype(float)).all(axis=None)
    assert found.loc["a", "auroc"].notna().all()
    with pytest.raises(store.StoreError, match="run notebook 01 again"):
        arms.by_stratum(predictions, labels.iloc[::2], STUDY)
