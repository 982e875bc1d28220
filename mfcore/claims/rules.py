"""How numbers become a verdict: a handful of rules, the same for every claim and every study."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import pandas as pd

from mfcore.analysis import exhibit
from mfcore.claims.rows import Row
from mfcore.claims.scores import MIXED, Material
from mfcore.measures import statistics
from mfcore.measures.statistics import Folds, spread

REPRODUCED, NOT_REPRODUCED, UNCLEAR, NOT_TESTABLE = "reproduced", "not reproduced", "unclear", "not testable here"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, UNCLEAR, NOT_TESTABLE)
ALPHA = 0.05
TOO_FEW = "fewer than three folds in common, or one slide tested"


@dataclass(frozen=True)
class Finding:
    """What a study has to say about one claim.

    outcome: what the numbers alone say, one of VERDICTS. difference: what was found less what is expected, or the comparison
    that decides; NaN where there is no such number. value: what a check measured, before `by_value` judges. barred: why the
    numbers cannot test the claim even on its own data. why: what a reader must know beside the verdict. is_comparison: whether
    arms, sizes or domains were compared, which has a meaning on other data too; a printed number has none.
    """

    found: str = "nothing measured"
    outcome: str = NOT_TESTABLE
    difference: float = math.nan
    value: float | bool | None = None
    barred: list[str] = field(default_factory=list)
    why: list[str] = field(default_factory=list)
    is_comparison: bool = False


@dataclass(frozen=True)
class Pair:
    """Two arms (or sizes, or domains) that share folds: ``first`` less ``second``; ``tested`` as in `Material.test`."""

    name: str
    first: Folds
    second: Folds
    tested: str = MIXED


class Rule(NamedTuple):
    """What confirms and what refutes a claim, of a table of tests and a margin; which difference decides; both in words."""

    holds: Callable[[pd.DataFrame, float], bool]
    fails: Callable[[pd.DataFrame, float], bool]
    decides: Callable[[pd.Series], float]
    expected: str
    tolerance: str


def _are_within(tests: pd.DataFrame, margin: float) -> bool:
    return bool(((tests["low"] > -margin) & (tests["high"] < margin)).all())


def _largest(differences: pd.Series) -> float:
    return max(differences, key=abs)


# Columns of the tests: difference, low, high, clear (of zero, after Holm), beyond (clearly farther from zero than the margin).
# "Not above" and "alike" need every interval inside the margin: that no difference was seen shows nothing.
RULES = {
    "above": Rule(
        lambda t, margin: (t.clear & (t.difference > 0)).all() and t.difference.min() >= margin,
        lambda t, margin: (t.clear & (t.difference < 0)).any(),
        min,
        "above 0 in each",
        "differences above zero, p below 0.05 after Holm",
    ),
    "below": Rule(
        lambda t, margin: (t.clear & (t.difference < 0)).all(),
        lambda t, margin: (t.clear & (t.difference > 0)).any(),
        max,
        "below 0 in each",
        "differences below zero, p below 0.05 after Holm",
    ),
    "alike": Rule(_are_within, lambda t, margin: t.beyond.any(), _largest, "no difference", "intervals within ± {:g}"),
    "not above": Rule(
        lambda t, margin: (t.high < margin).all(),
        lambda t, margin: (t.clear & (t.difference > 0)).any(),
        max,
        "not above 0",
        "intervals end below {:g}",
    ),
    "not below": Rule(
        lambda t, margin: (t.low > -margin).all(),
        lambda t, margin: (t.beyond & (t.difference < 0)).any(),
        min,
        "no lower",
        "intervals begin above -{:g}",
    ),
    "some differ": Rule(
        lambda t, margin: t.clear.any(),
        lambda t, margin: not t.clear.any() and _are_within(t, margin),
        _largest,
        "not 0 in one or more",
        "p below 0.05 after Holm",
    ),
}


def decide(rule: str, tests: pd.DataFrame, margin: float = 0.0) -> str:
    """The outcome of a table of tests: refuted by one, confirmed by all (as the rule says), else unclear."""
    if RULES[rule].fails(tests, margin):
        return NOT_REPRODUCED
    return REPRODUCED if RULES[rule].holds(tests, margin) else UNCLEAR


def by_pairs(rule: str, material: Material, pairs: list[Pair], margin: float = 0.0) -> Finding:
    """The finding of a comparison, every pair tested once; not testable where one pair cannot be tested."""
    tests = [material.test(pair.first, pair.second, pair.tested) for pair in pairs]
    short = [pair.name for pair, test in zip(pairs, tests, strict=True) if test is None]
    if short:
        return Finding(f"{TOO_FEW}: {', '.join(short[:3])}{' and others' * (len(short) > 3)}")
    table = pd.DataFrame(
        [(pair.name + _means(pair), *_numbers(test)) for pair, test in zip(pairs, tests, strict=True)],
        columns=["name", "difference", "low", "high", "p", "drawn"],
    )
    table["p_holm"] = statistics.holm(table["p"])
    table["clear"] = table["p_holm"] < ALPHA
    if rule in ("alike", "not below"):
        table["beyond"] = _are_beyond(material, pairs, table["difference"], margin)
    return Finding(
        _text(table), decide(rule, table, margin), float(RULES[rule].decides(table["difference"])), is_comparison=True
    )


def _numbers(test: statistics.Test) -> tuple:
    return test.interval.estimate, test.interval.low, test.interval.high, test.p, test.drawn


def _are_beyond(material: Material, pairs: list[Pair], differences: pd.Series, margin: float) -> pd.Series:
    """Which differences are clearly farther from zero than ``margin``: tested against the margin on their side, after Holm."""
    tests = [
        material.test(pair.first, pair.second + math.copysign(margin, difference), pair.tested)
        for pair, difference in zip(pairs, differences, strict=True)
    ]
    p = pd.Series([math.nan if test is None else test.p for test in tests], dtype=float)
    p[differences.abs() <= margin] = 1.0  # a difference inside the margin is not beyond the margin
    return statistics.holm(p) < ALPHA


def by_folds(
    material: Material, values: Folds, expected: float | list[float], tolerance: float, tested: str = MIXED
) -> Finding:
    """Whether a mean over folds is a printed number, or lies between the two ends of ``expected``.

    Reproduced: the mean is within the tolerance, and its 95 % interval is at most four tolerances wide. Not reproduced: the
    whole interval is outside. Else unclear. The difference is from the number, or from the middle of the range.
    """
    low, high = expected if isinstance(expected, list) else (expected, expected)
    measured = spread(values.values)
    difference = measured.mean - (low + high) / 2
    text = f"{exhibit.plus_minus(measured.mean, measured.sd)} ({exhibit.counted(measured.n, 'fold')})"
    test = material.test(values, 0.0, tested)
    if test is None:
        return Finding(text, difference=difference, barred=[TOO_FEW])
    interval = test.interval
    text += f", interval {exhibit.bounds(interval.low, interval.high, '.3f') or 'too wide to say anything'}{_by(test.drawn)}"
    outcome = UNCLEAR
    if abs(difference) <= (high - low) / 2 + tolerance and interval.high - interval.low <= 4 * tolerance:
        outcome = REPRODUCED
    elif interval.low > high + tolerance or interval.high < low - tolerance:
        outcome = NOT_REPRODUCED
    return Finding(text, outcome, difference)


def by_value(row: Row, finding: Finding) -> Finding:
    """The outcome of what a check measured, by the rules "equals", "within" and "holds"; unchanged without a value."""
    if finding.value is None:
        return finding
    if row.rule == "holds":
        return replace(finding, outcome=REPRODUCED if finding.value else NOT_REPRODUCED)
    difference = float(finding.value - row.expected)
    return replace(finding, outcome=REPRODUCED if abs(difference) <= row.tolerance else NOT_REPRODUCED, difference=difference)


# ---- texts ----


def _means(pair: Pair) -> str:
    """The means of the two over the folds that they share, as ", 0.88 against 0.66"."""
    both = pair.first.values.index.intersection(pair.second.values.index)
    return f", {pair.first.values[both].mean():.2f} against {pair.second.values[both].mean():.2f}"


def _by(drawn: str) -> str:
    """What an interval is over where it is not the folds' spread."""
    return f" over draws of {drawn}" if drawn else ""


def _one(row: pd.Series) -> str:
    p = "" if math.isnan(row["p_holm"]) else ", p < 0.001" if row["p_holm"] < 0.001 else f", p {row['p_holm']:.3f}"
    span = exhibit.bounds(row["low"], row["high"], between=", ") or "no interval"
    return f"{row['name']}: {row['difference']:+.3f} [{span}]{_by(row['drawn'])}{p}"


def _text(tests: pd.DataFrame) -> str:
    """Every test in words; of more than four a count, the lowest and the highest."""
    if len(tests) <= 4:
        return "; ".join(_one(row) for _, row in tests.iterrows())
    n_above, n_below = ((tests["clear"] & (sign * tests["difference"] > 0)).sum() for sign in (1, -1))
    ordered = tests.sort_values("difference")
    return (
        f"of {len(tests)} comparisons {n_above} clearly above zero, {n_below} clearly below; "
        f"lowest {_one(ordered.iloc[0])}; highest {_one(ordered.iloc[-1])}"
    )
