"""The rule: each kind of claim comes out reproduced, not reproduced, unclear or not testable as its numbers ask."""

import made_claims
import numpy as np
import pandas as pd
import pytest

from mfcore.claims import rules
from mfcore.claims.ledger import out_of_scope
from mfcore.claims.rows import ANYWHERE, DIRECTION, Row
from mfcore.claims.rules import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, UNCLEAR, Finding, Pair, by_pairs
from mfcore.measures.statistics import Folds, holm, paired_test
from mfcore.study import predictions as study_predictions
from mfcore.study.config import Data, Settings

FITS = pd.DataFrame(
    [(name, name, 1.0, 64, 20) for name in ("all", "a")], columns=["train_domain", "domain", "size", "n_train", "n_test"]
)
MATERIAL = made_claims.material(made_claims.study(), FITS)
NOISE = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
LEVEL = Folds(pd.Series(np.full(5, 0.7)))


def pair(difference: float, spread: float = 0.001, name: str = "a against b") -> Pair:
    """Five folds whose differences have this mean, and a spread."""
    return Pair(name, Folds(pd.Series(0.7 + difference + spread * NOISE)), LEVEL)


def outcome(rule, *differences_and_spreads, margin=0.0):
    return by_pairs(rule, MATERIAL, [pair(d, s, str(i)) for i, (d, s) in enumerate(differences_and_spreads)], margin).outcome


CLEAR, VAGUE = 0.001, 0.2


@pytest.mark.parametrize(
    ("rule", "margin", "holds", "fails", "open_"),
    [
        ("above", 0, [(0.05, CLEAR), (0.02, CLEAR)], [(0.05, CLEAR), (-0.02, CLEAR)], [(0.05, CLEAR), (0.02, VAGUE)]),
        ("above", 0.03, [(0.05, CLEAR), (0.04, CLEAR)], [(0.05, CLEAR), (-0.02, CLEAR)], [(0.05, CLEAR), (0.02, CLEAR)]),
        ("below", 0, [(-0.05, CLEAR), (-0.02, CLEAR)], [(-0.05, CLEAR), (0.02, CLEAR)], [(-0.05, CLEAR), (-0.02, VAGUE)]),
        ("alike", 0.03, [(0.01, CLEAR), (-0.01, CLEAR)], [(0.0, CLEAR), (-0.05, CLEAR)], [(0.0, VAGUE)]),
        ("not above", 0.02, [(-0.1, CLEAR), (0.0, CLEAR)], [(-0.1, CLEAR), (0.01, CLEAR)], [(-0.01, VAGUE)]),
        ("not below", 0.03, [(-0.01, CLEAR), (0.2, CLEAR)], [(0.2, CLEAR), (-0.05, CLEAR)], [(0.0, VAGUE)]),
        ("some differ", 0.02, [(0.0, CLEAR), (0.05, CLEAR)], [(0.0, CLEAR), (0.0, CLEAR)], [(0.0, VAGUE)]),
    ],
)
def test_a_comparison_holds_fails_or_stays_open(rule, margin, holds, fails, open_):
    assert outcome(rule, *holds, margin=margin) == REPRODUCED
    assert outcome(rule, *fails, margin=margin) == NOT_REPRODUCED
    assert outcome(rule, *open_, margin=margin) == UNCLEAR
    single = Pair("a", Folds(pd.Series([0.8])), Folds(pd.Series([0.7])))
    finding = by_pairs(rule, MATERIAL, [pair(0.0), single], margin)
    assert finding.outcome == NOT_TESTABLE and finding.found.startswith("fewer than three folds in common")


def test_a_comparison_takes_holm_over_all_of_its_tests():
    """One difference that is clear by itself is not among twenty."""
    borderline = (0.02, 0.0045)
    test = paired_test(Folds(pd.Series(0.72 + 0.0045 * NOISE)), LEVEL, 0.64, 0.2)
    assert 0.01 < test.p < 0.05
    assert outcome("above", borderline) == REPRODUCED
    assert outcome("above", *[borderline] * 20) == UNCLEAR
    assert holm(pd.Series([test.p] * 20)).iloc[0] > 0.05


def test_no_better_needs_more_than_that_nothing_was_seen():
    """The difference is far from significant, and yet "no better" isn't shown: the folds leave too much open."""
    assert outcome("not above", (0.0, 0.02), margin=0.02) == UNCLEAR


def test_what_was_found_is_said_with_means_interval_and_p():
    finding = by_pairs("above", MATERIAL, [pair(0.05, 0.01)])
    test = paired_test(Folds(pd.Series(0.75 + 0.01 * NOISE)), LEVEL, 0.64, 0.2)
    interval = f"[{test.interval.low:+.3f}, {test.interval.high:+.3f}]"
    assert finding.found == f"a against b, 0.75 against 0.70: +0.050 {interval}, p {test.p:.3f}"
    assert finding.difference == pytest.approx(0.05) and finding.is_comparison
    many = by_pairs("above", MATERIAL, [pair(0.01 * i, name=f"n{i}") for i in range(-1, 9)])
    assert "of 10 comparisons 8 clearly above zero, 1 clearly below; lowest n-1" in many.found and "highest n8" in many.found


def test_a_difference_that_decides_is_the_reported_one():
    some = [(0.05, CLEAR), (-0.02, CLEAR), (0.01, CLEAR)]
    made = [pair(d, s) for d, s in some]
    reported = {rule: by_pairs(rule, MATERIAL, made, 1.0).difference for rule in rules.RULES}
    expected = {"above": -0.02, "below": 0.05, "alike": 0.05, "not above": 0.05, "not below": -0.02, "some differ": 0.05}
    assert reported == pytest.approx(expected)


@pytest.mark.parametrize(
    ("mean", "spread", "expected"),
    [
        (0.88, 0.001, REPRODUCED),
        (0.86, 0.001, REPRODUCED),
        (0.80, 0.001, NOT_REPRODUCED),
        (0.95, 0.001, NOT_REPRODUCED),
        (0.84, 0.02, UNCLEAR),  # outside, but the interval reaches in
        (0.87, 0.2, UNCLEAR),  # the very number, by folds that leave everything open
    ],
)
def test_a_printed_number(mean, spread, expected):
    finding = rules.by_folds(MATERIAL, Folds(pd.Series(mean + spread * NOISE)), 0.87, 0.02)
    assert finding.outcome == expected and finding.difference == pytest.approx(mean - 0.87)
    assert f"{mean:.2f} ± " in finding.found and "(5 folds)" in finding.found


@pytest.mark.parametrize("n_folds", [1, 2])
def test_a_printed_number_needs_three_folds(n_folds):
    """With two, the interval of an AUROC would reach below 0 and above 1."""
    finding = rules.by_folds(MATERIAL, Folds(pd.Series([0.87, 0.86][:n_folds])), 0.87, 0.02)
    assert finding.outcome == NOT_TESTABLE and finding.barred[0].startswith("fewer than three folds")
    assert "interval" not in finding.found


@pytest.mark.parametrize(
    ("rule", "value", "tolerance", "expected"),
    [
        ("equals", 354, 0, (REPRODUCED, 0)),
        ("equals", 353, 0, (NOT_REPRODUCED, -1)),
        ("within", 350, 5, (REPRODUCED, -4)),
        ("within", 360, 5, (NOT_REPRODUCED, 6)),
        ("holds", True, 0, (REPRODUCED, 7)),
        ("holds", False, 0, (NOT_REPRODUCED, 7)),
    ],
)
def test_a_value_is_the_printed_one_or_not(rule, value, tolerance, expected):
    row = Row("p", "data", "q", "here", "t", rule=rule, expected=354, tolerance=tolerance)
    finding = rules.by_value(row, Finding(value=value, difference=7))
    assert (finding.outcome, finding.difference) == expected
    assert rules.by_value(row, Finding("nothing", UNCLEAR)).outcome == UNCLEAR, "a check without a value has its outcome"


def test_the_correction_takes_the_shares_of_a_fold():
    first, second = Folds(pd.Series(0.8 + 0.01 * NOISE)), pd.Series(0.7 + 0.02 * NOISE)
    assert MATERIAL.test(first - Folds(second)) == paired_test(first, Folds(second), 0.64, 0.2)
    shifted = second.set_axis([2, 3, 4, 5, 6])  # three folds in common
    assert MATERIAL.test(first - Folds(shifted)).interval.n == 3
    assert MATERIAL.test(first - Folds(second.set_axis([3, 4, 5, 6, 7]))) is None, "two folds in common"
    assert MATERIAL.test(first - Folds(second.set_axis(range(9, 14)))) is None


@pytest.mark.parametrize(
    ("data", "about", "reason"),
    [
        (Data("midog22"), ("midog22",), ""),
        (Data("midog22"), ("midog22", "ccmct"), ""),
        (Data("ccmct"), ("midog22",), "it is about MIDOG 2022, and this study is CCMCT"),
        (Data("midogpp"), (DIRECTION,), ""),
        (Data("midogpp", slides=("1", "2")), (DIRECTION,), "2 chosen slides cannot settle it"),
        (Data("midog22", slides=("1",)), ("midog22",), "1 chosen slide cannot settle it"),
        (Data("amibr", "atypical", "normal"), (DIRECTION,), "another question: atypical against normal"),
        (Data("synthetic"), (DIRECTION,), "synthetic data cannot settle it"),
        (Data("synthetic"), ("midog22",), "synthetic data cannot settle it"),
        (Data("synthetic"), (ANYWHERE,), ""),
    ],
)
def test_which_data_can_settle_what(data, about, reason):
    assert out_of_scope(Settings("s", "t", data), about) == [reason] * bool(reason)


def test_the_correction_counts_the_patches_that_were_trained_and_tested_on():
    rows = [("all", "all", 1.0, 700, 300), ("all", "all", 0.1, 70, 300)]
    rows += [("a", "a", 1.0, 200, 60), ("a", "b", 1.0, 200, 500)]
    scores = pd.DataFrame(rows, columns=["train_domain", "domain", "size", "n_train", "n_test"])
    made = made_claims.material(made_claims.study(), scores)
    of = pair(0.05, 0.01)
    mixed, inside = (made.test(of.first - of.second, is_crossed) for is_crossed in (False, True))
    assert mixed == paired_test(of.first, of.second, 700, 300)
    assert inside == paired_test(of.first, of.second, 200, 60) and mixed.p > inside.p
    judged = by_pairs("above", made, [Pair("a", of.first, of.second, True)])
    assert f"{inside.interval.low:+.3f}" in judged.found


def test_folds_that_share_their_patches_are_judged_by_draws_of_cases_alone():
    """Out of domain: five folds that agree closely show nothing where other cases would have shown something else."""
    values = pair(0.05, 0.001).first.values
    moved = pd.DataFrame(np.tile(np.random.default_rng(0).normal(scale=0.04, size=300), (5, 1)), values.index)
    noisy = Folds(values, moved, False, {"b": 12}, "case")
    found = by_pairs("above", MATERIAL, [Pair("a", noisy, LEVEL, True)])
    assert found.outcome == UNCLEAR and "over draws of 12 cases" in found.found
    assert by_pairs("above", MATERIAL, [Pair("a", Folds(values, moved / 40, False, {"b": 12}), LEVEL)]).outcome == REPRODUCED
    alone = by_pairs("above", MATERIAL, [Pair("a", Folds(values, has_own_patches=False), LEVEL)])
    assert alone.outcome == NOT_TESTABLE, "the folds' spread can't stand in for draws"


@pytest.mark.parametrize("rule", ["alike", "not below"])
def test_one_of_many_beyond_the_margin_by_a_little_refutes_nothing(rule):
    outside = (-0.06, 0.01)
    test = MATERIAL.test(pair(*outside).first - LEVEL)
    assert test.interval.high < -0.02
    assert outcome(rule, outside, margin=0.02) == NOT_REPRODUCED
    assert outcome(rule, outside, *[(0.0, CLEAR)] * 19, margin=0.02) == UNCLEAR


def test_out_of_domain_the_predictions_say_which_cases_are_drawn():
    """Two domains, every fold tested on all of the other; in domain each fold is tested on patches of its own."""
    rng, tables = np.random.default_rng(0), []
    for arm in ("net", "uni"):
        for fold in range(5):
            for train in ("a", "b"):
                for domain in ("a", "b"):
                    patch_id = np.arange(120) + (120 * fold if train == domain else 0)
                    label = rng.integers(0, 2, 120) if train == domain else np.arange(120) % 2
                    table = pd.DataFrame({"patch_id": patch_id, "label": label, "slide_id": (patch_id // 10).astype(str)})
                    score = np.clip(0.4 + 0.2 * label + rng.normal(0, 0.2, 120), 0, 1)
                    tables.append(table.assign(score=score, arm=arm, fold=fold, train_domain=train, domain=domain))
    table = pd.concat(tables, ignore_index=True).assign(kind="probe", size=1.0, n_train=100)
    known = {"_collected": study_predictions.Collected(table, pd.DataFrame())}
    made = made_claims.material(made_claims.study(), study_predictions.scores(table), known)
    scores = {name: made.at(name, "outside") for name in ("net", "uni")}
    assert scores["net"].units == {"a": 12, "b": 12} and not scores["net"].has_own_patches
    rows = made.study.scores.query("arm == 'net' and train_domain != domain")
    assert scores["net"].values.tolist() == pytest.approx(rows.groupby("fold")["auroc"].mean().tolist())
    inside, drop = (made.at("net", name) for name in ("inside", "drop"))
    assert inside.has_own_patches and not inside.units and drop.has_own_patches and drop.units == scores["net"].units
    found = by_pairs("above", made, [Pair("a", scores["net"], scores["uni"], True)])
    assert "over draws of 24 slides" in found.found
    assert "draws" not in by_pairs("above", made, [Pair("a", inside, made.at("uni", "inside"), True)]).found
    one = by_pairs("above", made, [Pair("b", made.cell("net", "a", "b"), made.cell("uni", "a", "b"), True)])
    assert "over draws of 12 slides" in one.found
