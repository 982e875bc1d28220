"""The raters: MIDOG++'s numbers as its votes give them, scikit-learn's values, and data that lack votes or a class."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, f1_score, roc_auc_score

from mfcore.measures import raters
from mfcore.streams import generator

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "labels" / "MIDOG++.json"
OF_MIDOG22 = 5  # the first five domains are MIDOG 2022's with labels

# From the label file, by other means: agreement, kappa, each rater's balanced accuracy against the consensus, third vote.
GOLDEN = {
    "all": (0.790, 0.575, 0.909, 0.878, 0.326),
    "MIDOG 2022": (0.782, 0.558, 0.906, 0.871, 0.317),
    "human breast": (0.791, 0.556, 0.915, 0.859, 0.209),
    "canine lung": (0.738, 0.463, 0.858, 0.873, 0.424),
    "canine lympho": (0.779, 0.556, 0.906, 0.872, 0.263),
    "canine cutaneous": (0.801, 0.591, 0.928, 0.882, 0.289),
    "human neuro": (0.776, 0.468, 0.816, 0.910, 0.663),
    "canine soft": (0.820, 0.624, 0.932, 0.897, 0.388),
    "human melanoma": (0.823, 0.647, 0.907, 0.919, 0.302),
}


def labels(seed=0, n=400, n_raters=2, domains="xy"):
    """Votes of raters who err one time in five, a third one settling what two dispute."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        truth, slide = int(rng.random() < 0.4), int(rng.integers(20))
        votes = [int(truth ^ (rng.random() < 0.2)) for _ in range(n_raters)]
        if len(set(votes)) == 2 and n_raters == 2:
            votes.append(truth)
        domain = domains[slide % len(domains)]
        label = int(np.mean(votes) > 0.5)
        rows.append((i, f"s{slide}", domain, label, np.array(votes, dtype=np.int8)))
    return pd.DataFrame(rows, columns=["patch_id", "slide_id", "domain", "label", "votes"])


@pytest.fixture(scope="module")
def midog():
    """MIDOG++'s published votes, read here and not by the package, so that one checks the other."""
    import json

    if not SHARED.is_file():
        pytest.skip("MIDOG++.json is not beside this checkout")
    content = json.loads(SHARED.read_text())
    domain = {image["id"]: image["tumor_type"] for image in content["images"]}
    rows = [
        (a["image_id"], domain[a["image_id"]], int(a["category_id"] == 1), (np.array(a["labels"]) == 1).astype(np.int8))
        for a in content["annotations"]
    ]
    return pd.DataFrame(rows, columns=["slide_id", "domain", "label", "votes"])


def of_midog22(table):
    return table[table["slide_id"] <= 404]


@pytest.fixture(scope="module")
def published(midog):
    return pd.concat(
        [raters.table(midog, 1), raters.table(of_midog22(midog), 1).query("domain == 'all'").assign(domain="MIDOG 2022")]
    )


@pytest.mark.parametrize("name", GOLDEN)
def test_midog_s_raters_agree_as_its_votes_say(published, name):
    (row,) = published[published["domain"].str.startswith(name)].to_dict("records")
    columns = ["agreement", "kappa", "rater1_vs_consensus", "rater2_vs_consensus", "third_share"]
    assert [round(row[column], 3) for column in columns] == list(GOLDEN[name])


def test_one_rater_against_another_has_a_balanced_accuracy_of_0_779_on_the_five_domains_of_midog_2022(midog, published):
    five = of_midog22(midog)
    assert five["domain"].nunique() == OF_MIDOG22 and len(five) == 20550
    first, second = (np.array([vote[i] for vote in five["votes"]]) for i in (0, 1))
    one_way, other_way = balanced_accuracy_score(first, second), balanced_accuracy_score(second, first)
    assert [round(one_way, 4), round(other_way, 4)] == [0.7790, 0.7786]  # either way is 0.779, and so is their mean
    row = published[published["domain"] == "MIDOG 2022"].iloc[0]
    assert row["balanced_accuracy"] == pytest.approx((one_way + other_way) / 2, abs=1e-12)
    assert row["balanced_accuracy_low"] < 0.7788 < row["balanced_accuracy_high"]


def test_who_comes_first_changes_nothing_between_raters():
    table = labels()
    swapped = table.assign(votes=[np.concatenate([vote[1::-1], vote[2:]]) for vote in table["votes"]])
    one, other = raters.table(table, 1), raters.table(swapped, 1)
    between = [column for column in one if not column.startswith("rater")]
    pd.testing.assert_frame_equal(one[between], other[between])
    assert one["rater1_vs_consensus"].tolist() == other["rater2_vs_consensus"].tolist()


def test_measures_are_scikit_learn_s():
    table = labels(domains="x")
    row = raters.table(table, 1).iloc[-1]
    first, second = (np.array([vote[i] for vote in table["votes"]]) for i in (0, 1))
    assert row["kappa"] == pytest.approx(cohen_kappa_score(first, second))
    ways = [(first, second), (second, first)]
    assert row["balanced_accuracy"] == pytest.approx(np.mean([balanced_accuracy_score(*way) for way in ways]))
    assert row["agreement"] == pytest.approx(np.mean([f1_score(*way, average="weighted") for way in ways]))
    assert row["rater1_vs_consensus"] == pytest.approx(balanced_accuracy_score(table["label"], first))
    assert row["balanced_accuracy"] == pytest.approx(np.mean([roc_auc_score(*way) for way in ways]))  # of a vote, no score


def test_three_raters_who_saw_everything_are_compared_in_pairs():
    table = labels(n_raters=3, domains="x")
    row = raters.table(table, 1).iloc[-1]
    votes = np.stack(table["votes"])
    pairs = [(votes[:, i], votes[:, j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert row["kappa"] == pytest.approx(np.mean([cohen_kappa_score(*pair) for pair in pairs]))
    assert row["rater3_vs_consensus"] == pytest.approx(balanced_accuracy_score(table["label"], votes[:, 2]))
    assert row["third_share"] == 1 and row["contested_share"] == np.mean(np.ptp(votes, axis=1))


def test_a_third_who_saw_a_part_is_no_rater_to_compare():
    columns = raters.table(labels(), 1).columns
    assert "rater2_vs_consensus" in columns and "rater3_vs_consensus" not in columns


def test_the_interval_is_that_of_drawing_whole_slides():
    table = labels(domains="x")
    row = raters.table(table, 7).iloc[0]
    slides = np.unique(table["slide_id"])
    counts = generator(7, "bootstrap", "raters", "x").multinomial(len(slides), np.full(len(slides), 1 / len(slides)), 2000)
    first, second = (np.array([vote[i] for vote in table["votes"]]) for i in (0, 1))
    weights = counts[:, np.searchsorted(slides, table["slide_id"])]  # (2000, n)
    equal, one, other = (np.average(np.tile(v, (2000, 1)), axis=1, weights=weights) for v in (first == second, first, second))
    chance = one * other + (1 - one) * (1 - other)
    kappas = (equal - chance) / (1 - chance)
    assert kappas[0] == pytest.approx(cohen_kappa_score(first, second, sample_weight=weights[0]))
    share, n = (1 + row["kappa"]) / 2, len(slides)  # kappa lies between -1 and 1
    half = stats.t.ppf(0.975, n - 1) * kappas.std(ddof=1) / 2 * np.sqrt(n / (n - 1)) / (share * (1 - share))
    ends = [2 / (1 + np.exp(-(np.log(share / (1 - share)) + by))) - 1 for by in (-half, half)]
    assert [row["kappa_low"], row["kappa_high"]] == pytest.approx(ends, abs=1e-12)
    assert raters.table(table, 8).iloc[0]["kappa_low"] != row["kappa_low"]
    assert raters.table(table.sample(frac=1, random_state=2), 7).iloc[0]["kappa_low"] == row["kappa_low"]


def test_cases_of_several_slides_are_drawn_whole():
    table = labels()
    cases = table.assign(case_id=table["slide_id"].str[:-1] + "_")
    found, alike = (raters.table(of, 0).set_index("domain") for of in (cases, cases.assign(slide_id=cases["case_id"])))
    assert set(found["unit"]) == {"case"} and (found["n_units"] == alike["n_slides"]).all()
    values = [f"{measure}{end}" for measure in raters.MEASURES for end in ("", "_low", "_high")]
    pd.testing.assert_frame_equal(found[values], alike[values])
    assert raters.reference(found.reset_index()).unit == "case"
    assert "cases" in raters.as_text(found.reset_index()) and "cases" not in raters.as_text(alike.reset_index())


def test_votes_of_one_slide_that_stray_together_widen_the_interval():
    """Patches that err together by slide, as they do: taking them singly would promise twice the precision and more."""
    table = labels(domains="x")
    together = table["slide_id"].isin([f"s{i}" for i in range(5)])
    strayed = [
        np.array([1 - vote[0], vote[0]]) if t else vote[[0, 0]] for t, vote in zip(together, table["votes"], strict=True)
    ]
    table = table.assign(votes=strayed)
    singly = table.assign(slide_id=np.arange(len(table)).astype(str))
    by_slide, by_patch = (raters.table(t, 1).iloc[-1] for t in (table, singly))
    assert np.diff(by_slide[["agreement_low", "agreement_high"]]) > 2 * np.diff(by_patch[["agreement_low", "agreement_high"]])


def test_a_domain_without_votes_or_of_one_class_is_nan_and_no_error():
    table = labels(domains="xyz")
    table.loc[table["domain"] == "y", "votes"] = pd.Series([np.zeros(0, np.int8)] * len(table), dtype=object)
    only_second = [np.array([1, i % 2], dtype=np.int8) for i in range(len(table))]  # the first rater knows one class
    table.loc[table["domain"] == "z", "votes"] = pd.Series(only_second, dtype=object)
    found = raters.table(table, 1).set_index("domain")
    assert found.loc["y", "n"] == 0 and found.loc["y"].drop(["n", "n_slides", "n_units", "unit"]).isna().all()
    assert 0.3 < found.loc["z", "agreement"] < 0.7
    assert np.isnan(found.loc["z", ["kappa", "balanced_accuracy"]].astype(float)).all()
    assert found.loc["all", "n"] == (table["domain"] != "y").sum() and np.isfinite(found.loc["all", "kappa"])
    assert raters.reference(found.reset_index(), "z") is None
    shown = raters.as_text(found.reset_index()).set_index("domain")
    assert shown.loc["y", "kappa"] == "–" and shown.loc["all", "kappa"].startswith(f"{found.loc['all', 'kappa']:.2f} [")
    each = [found.loc["all", f"rater{i}_vs_consensus"] for i in (1, 2)]
    assert shown.loc["all", raters.EACH] == f"{each[0]:.2f} / {each[1]:.2f}"


def test_without_any_votes_there_is_no_reference():
    table = labels().assign(votes=[np.zeros(0, np.int8)] * 400)
    human = raters.table(table, 1)
    assert human.empty and raters.reference(human) is raters.against_consensus(human) is None
    assert set(raters.stratum(table)) == {""}


def test_the_reference_is_balanced_accuracy_between_raters_and_lies_below_that_against_the_consensus():
    human = raters.table(labels(), 1)
    total = human[human["domain"] == "all"].iloc[0]
    found = raters.reference(human)
    assert (found.estimate, found.low, found.n) == (total["balanced_accuracy"], total["balanced_accuracy_low"], 20)
    mean = (total["rater1_vs_consensus"] + total["rater2_vs_consensus"]) / 2
    assert raters.against_consensus(human) == pytest.approx(mean) and mean > found.estimate


def test_strata_are_of_one_mind_or_not():
    given = [[1, 1], [0, 1, 1], [0, 0, 0], [1], [], [0, 0, 1]]
    table = pd.DataFrame({"votes": [np.array(vote, dtype=np.int8) for vote in given]}, index=list("abcdef"))
    expected = ["unanimous", "contested", "unanimous", "", "", "contested"]
    assert raters.stratum(table).to_dict() == dict(zip("abcdef", expected, strict=True))
