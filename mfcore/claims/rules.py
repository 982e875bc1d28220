"""How numbers become a verdict: a handful of rules, the same for every claim and every study."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import pandas as pd

from mfcore.analysis import exhibit
from mfcore.claims.material import Material
from mfcore.claims.rows import Row
from mfcore.measures.statistics import Folds, holm, spread

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
UNCLEAR = "unclear"
NOT_TESTABLE = "not testable here"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, UNCLEAR, NOT_TESTABLE)
ALPHA = 0.05
TOO_FEW = "fewer than three folds in common, or one slide tested"


@dataclass(frozen=True)
class Finding:
    """What a study has to say about one claim.

    outcome: what the numbers alone say, one of VERDICTS. difference: what was found less what is
    expected, or the comparison that decides; NaN where there is no such number. value: what a check
    measured, before `by_value` judges. barred: why the numbers cannot test the claim even on its
    own data. why: what a reader must know besides the verdict. is_comparison: whether arms, sizes
    or domains were compared, which has a meaning on other data too; a printed number has none.
    """

    found: str = ""
    outcome: str = NOT_TESTABLE
    difference: float = math.nan
    value: float | bool | pd.DataFrame | None = None
    barred: list[str] = field(default_factory=list)
    why: list[str] = field(default_factory=list)
    is_comparison: bool = False


@dataclass(frozen=True)
class Pair:
    """Two arms (or sizes, or domains) that share folds: ``first`` less ``second``; ``is_crossed``
    as in `Material.test`.
    """

    name: str
    first: Folds
    second: Folds
    is_crossed: bool = False


class Rule(NamedTuple):
    """What confirms and what refutes a claim, of a table of tests and a margin; which estimate
    decides; both in words.
    """

    holds: Callable[[pd.DataFrame, float], bool]
    fails: Callable[[pd.DataFrame, float], bool]
    decides: Callable[[pd.Series], float]
    expected: str
    tolerance: str


def _are_within(tests: pd.DataFrame, margin: float) -> bool:
    return ((tests.low > -margin) & (tests.high < margin)).all()


def _largest(estimates: pd.Series) -> float:
    return max(estimates, key=abs)


# Columns of the tests: estimate, low, high, clear (of zero, after Holm), up and down (clear, and
# above or below zero), beyond (clearly farther from zero than the margin). "Not above" and "alike"
# need every interval inside the margin: that no difference was seen shows nothing.
RULES = {
    "above": Rule(
        lambda t, margin: t.up.all() and t.estimate.min() >= margin,
        lambda t, margin: t.down.any(),
        min,
        "above 0 in each",
        "differences above zero, p below 0.05 after Holm",
    ),
    "below": Rule(
        lambda t, margin: t.down.all(),
        lambda t, margin: t.up.any(),
        max,
        "below 0 in each",
        "differences below zero, p below 0.05 after Holm",
    ),
    "alike": Rule(
        _are_within,
        lambda t, margin: t.beyond.any(),
        _largest,
        "no difference",
        "intervals within ± {:g}",
    ),
    "not above": Rule(
        lambda t, margin: (t.high < margin).all(),
        lambda t, margin: t.up.any(),
        max,
        "not above 0",
        "intervals end below {:g}",
    ),
    "not below": Rule(
        lambda t, margin: (t.low > -margin).all(),
        lambda t, margin: (t.beyond & (t.estimate < 0)).any(),
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
    """The outcome of a table of tests: refuted, confirmed (as the rule says), else unclear."""
    up, down = (tests["clear"] & (sign * tests["estimate"] > 0) for sign in (1, -1))
    tests = tests.assign(up=up, down=down)
    if RULES[rule].fails(tests, margin):
        return NOT_REPRODUCED
    return REPRODUCED if RULES[rule].holds(tests, margin) else UNCLEAR


def by_pairs(rule: str, material: Material, pairs: list[Pair], margin: float = 0.0) -> Finding:
    """The finding of a comparison; not testable where one pair cannot be tested."""
    rows, untested = [], []
    for pair in pairs:
        difference = pair.first - pair.second
        test = material.test(difference, pair.is_crossed)
        if test is None:
            untested.append(pair.name)
            continue
        one, folds = test.interval, difference.values.index
        means = [f"{side.values[folds].mean():.2f}" for side in (pair.first, pair.second)]
        shift = math.copysign(margin, one.estimate)
        beyond = material.test(difference - shift, pair.is_crossed).p
        row = {"name": f"{pair.name}, {' against '.join(means)}", "drawn": test.drawn, "p": test.p}
        row["p_beyond"] = beyond if abs(one.estimate) > margin else 1.0
        rows.append(row | vars(one))
    if untested:
        return Finding(f"{TOO_FEW}, such as {', '.join(untested[:3])}")
    tests = pd.DataFrame(rows)
    tests["p_holm"] = holm(tests["p"])
    tests["clear"], tests["beyond"] = tests["p_holm"] < ALPHA, holm(tests["p_beyond"]) < ALPHA
    decisive = float(RULES[rule].decides(tests["estimate"]))
    return Finding(_text(tests), decide(rule, tests, margin), decisive, is_comparison=True)


def by_folds(
    material: Material,
    values: Folds,
    expected: float | list[float],
    tolerance: float,
    is_crossed: bool = False,
) -> Finding:
    """Whether a mean over folds is a printed number, or lies between the two ends of ``expected``.

    Reproduced: the mean is within the tolerance, and its 95 % interval is at most four tolerances
    wide. Not reproduced: the whole interval is outside. Else unclear. The difference is from the
    number, or from the middle of the range.
    """
    low, high = expected if isinstance(expected, list) else (expected, expected)
    measured, test = spread(values.values), material.test(values, is_crossed)
    difference = measured.mean - (low + high) / 2
    n_folds = exhibit.counted(measured.n, "fold")
    text = f"{exhibit.plus_minus(measured.mean, measured.sd)} ({n_folds})"
    if test is None:
        return Finding(text, difference=difference, barred=[TOO_FEW])
    interval, outcome = test.interval, UNCLEAR
    span = exhibit.bounds(interval.low, interval.high, ".3f") or "none"
    text += f", interval {span}{_by(test.drawn)}"
    is_near = abs(difference) <= (high - low) / 2 + tolerance
    if is_near and interval.high - interval.low <= 4 * tolerance:
        outcome = REPRODUCED
    elif interval.low > high + tolerance or interval.high < low - tolerance:
        outcome = NOT_REPRODUCED
    return Finding(text, outcome, difference)


def by_value(row: Row, finding: Finding) -> Finding:
    """The outcome of a check's number, truth ("holds") or table of tests; unchanged without one."""
    value = finding.value
    if value is None:
        return finding
    if row.rule in RULES:
        return replace(finding, outcome=decide(row.rule, value))
    if row.rule == "holds":
        return replace(finding, outcome=REPRODUCED if value else NOT_REPRODUCED)
    if pd.isna(value):
        return finding
    difference = float(value - row.expected)
    outcome = REPRODUCED if abs(difference) <= row.tolerance else NOT_REPRODUCED
    found = finding.found or (f"{value:.1%}" if row.unit == "%" else f"{value:,}")
    return replace(finding, found=found, outcome=outcome, difference=difference)


# ---- texts ----


def _by(drawn: str) -> str:
    """What an interval is over where it is not the folds' spread."""
    return f" over draws of {drawn}" if drawn else ""


def describe(test: pd.Series) -> str:
    """A test in words: a row with columns ``name, estimate, low, high, drawn, p_holm``."""
    p = "" if math.isnan(test["p_holm"]) else f", p {test['p_holm']:.3f}"
    if test["p_holm"] < 0.001:
        p = ", p < 0.001"
    span = exhibit.bounds(test["low"], test["high"], between=", ") or "no interval"
    return f"{test['name']}: {test['estimate']:+.3f} [{span}]{_by(test['drawn'])}{p}"


def _text(tests: pd.DataFrame) -> str:
    """Every test in words; of more than four a count, the lowest and the highest."""
    if len(tests) <= 4:
        return "; ".join(describe(test) for _, test in tests.iterrows())
    clear = tests.loc[tests["clear"], "estimate"]
    ordered = tests.sort_values("estimate")
    return (
        f"of {len(tests)} comparisons {(clear > 0).sum()} clearly above zero, {(clear < 0).sum()} "
        f"clearly below; lowest {describe(ordered.iloc[0])}; highest {describe(ordered.iloc[-1])}"
    )
