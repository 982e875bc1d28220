"""How a claim is judged: the rule by which numbers from a study's folds become a verdict, the same for every claim."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from mfcore.analysis import compare
from mfcore.claims.scores import MIXED, Material
from mfcore.encoders.card import TABLE_1
from mfcore.measures import statistics
from mfcore.measures.statistics import Folds, spread
from mfcore.study.config import SOURCES, Study

REPRODUCED, NOT_REPRODUCED, UNCLEAR, NOT_TESTABLE = "reproduced", "not reproduced", "unclear", "not testable here"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, UNCLEAR, NOT_TESTABLE)
GANZ, ALPHA = "Ganz et al. 2024", 0.05
FOUNDATION, IMAGENET = TABLE_1[:6], TABLE_1[6:]

# What a claim is about. Only the data sets that are named can settle it; DIRECTION is settled by any real data that ask the
# paper's question, ANYWHERE by any study, synthetic ones too: what networks and designs are doesn't depend on the images.
MIDOG22, CCMCT, AMIBR, DIRECTION, ANYWHERE = "midog22", "ccmct", "amibr", "direction", "anywhere"
DATA_NAMES = {name: source.title for name, source in SOURCES.items()}
QUESTION = ("mitotic figure", "look-alike")
TOO_FEW = "fewer than three folds in common, or one slide tested"


@dataclass(frozen=True)
class Finding:
    """What a study has to say of one claim.

    outcome: what the numbers alone say, one of VERDICTS. barred: why they can't be taken as a test of the claim even on
    its own data, empty where they can. why: what a reader must know beside the verdict. difference: found less expected, or
    the comparison that decides; NaN where there is no such number. is_comparison: whether arms, sizes or domains were compared,
    which has a meaning on other data too, where a printed number has none.
    """

    found: str
    outcome: str = NOT_TESTABLE
    difference: float = math.nan
    why: str = ""
    barred: str = ""
    is_comparison: bool = False


Measure = Callable[[Material], Finding]


@dataclass(frozen=True)
class Claim:
    """One checkable sentence.

    quote: its own words, at most 30. test: what would show it. about: one or more of MIDOG22, CCMCT, AMIBR, or DIRECTION,
    or ANYWHERE. expected, tolerance: set before anything is measured. paper: whose; second-hand where it was read elsewhere.
    """

    quote: str
    where: str
    test: str
    expected: str
    tolerance: str
    measure: Measure
    about: tuple[str, ...] = (DIRECTION,)
    paper: str = GANZ


def out_of_scope(study: Study, about: tuple[str, ...]) -> str:
    """Why this study's data can't settle a claim about ``about``; empty where they can."""
    if about == (ANYWHERE,):
        return ""
    if study.synthetic:
        return "synthetic data can't tell"
    if about == (DIRECTION,):
        asked = (study.data.positive, study.data.negative)
        return "" if asked == QUESTION else f"another question: {asked[0]} against {asked[1]}"
    if study.data.source in about:
        return ""
    return f"other data: it is about {' and '.join(DATA_NAMES[name] for name in about)}, this study is {data_name(study)}"


def data_name(study: Study) -> str:
    """The study's data set by its name."""
    return study.source.title


# ---- from folds to an outcome ----


@dataclass(frozen=True)
class Pair:
    """Two arms (or sizes, or domains) that share folds: ``first`` less ``second``, by fold; ``tested`` as `Material.test`."""

    name: str
    first: Folds | pd.Series
    second: Folds | pd.Series | float
    tested: str = MIXED


def better(material: Material, pairs: list[Pair], why: str = "", barred: str = "") -> Finding:
    """Whether the first of every pair is above the second.

    REPRODUCED where every difference is above zero with a Holm-corrected p below ALPHA, NOT_REPRODUCED where one is below zero
    with such a p, UNCLEAR else. The difference is the lowest.
    """
    tests, found = _tests(material, pairs)
    if tests is None:
        return Finding(found, why=why, barred=barred)
    clear = tests["p_holm"] < ALPHA
    if (clear & (tests["difference"] < 0)).any():
        outcome = NOT_REPRODUCED
    else:
        outcome = REPRODUCED if (clear & (tests["difference"] > 0)).all() else UNCLEAR
    return Finding(found, outcome, float(tests["difference"].min()), why, barred, True)


def similar(material: Material, pairs: list[Pair], margin: float, why: str = "", barred: str = "") -> Finding:
    """Whether the two of every pair differ by no more than ``margin``.

    REPRODUCED where every interval lies within the margin, NOT_REPRODUCED where one difference is beyond it with a
    Holm-corrected p below ALPHA, UNCLEAR else. The difference is the largest.
    """
    tests, found = _tests(material, pairs)
    if tests is None:
        return Finding(found, why=why, barred=barred)
    low, high = tests["low"], tests["high"]
    if _beyond(material, pairs, tests, margin).any():
        outcome = NOT_REPRODUCED
    else:
        outcome = REPRODUCED if ((low > -margin) & (high < margin)).all() else UNCLEAR
    return Finding(found, outcome, float(tests["difference"].loc[tests["difference"].abs().idxmax()]), why, barred, True)


def no_better(material: Material, pairs: list[Pair], margin: float, why: str = "", barred: str = "") -> Finding:
    """Whether the first of no pair is above the second.

    NOT_REPRODUCED where one is, with a Holm-corrected p below ALPHA; REPRODUCED where every interval ends below ``margin``:
    that no difference was seen isn't enough; UNCLEAR else. The difference is the highest.
    """
    tests, found = _tests(material, pairs)
    if tests is None:
        return Finding(found, why=why, barred=barred)
    if ((tests["p_holm"] < ALPHA) & (tests["difference"] > 0)).any():
        outcome = NOT_REPRODUCED
    else:
        outcome = REPRODUCED if (tests["high"] < margin).all() else UNCLEAR
    return Finding(found, outcome, float(tests["difference"].max()), why, barred, True)


def not_behind(material: Material, pairs: list[Pair], margin: float, why: str = "", barred: str = "") -> Finding:
    """Whether the first of every pair is at most ``margin`` below the second.

    REPRODUCED where every interval begins above that, NOT_REPRODUCED where one difference is beyond it with a Holm-corrected p
    below ALPHA, UNCLEAR else. The difference is the lowest.
    """
    tests, found = _tests(material, pairs)
    if tests is None:
        return Finding(found, why=why, barred=barred)
    near = REPRODUCED if (tests["low"] > -margin).all() else UNCLEAR
    behind = _beyond(material, pairs, tests, margin) & (tests["difference"] < 0)
    outcome = NOT_REPRODUCED if behind.any() else near
    return Finding(found, outcome, float(tests["difference"].min()), why, barred, True)


def some_differ(material: Material, pairs: list[Pair], margin: float, why: str = "", barred: str = "") -> Finding:
    """Whether the two of at least one pair differ.

    REPRODUCED where one Holm-corrected p is below ALPHA, NOT_REPRODUCED where every interval lies within ``margin``, UNCLEAR
    else. The difference is the largest.
    """
    tests, found = _tests(material, pairs, most=3)
    if tests is None:
        return Finding(found, why=why, barred=barred)
    if (tests["p_holm"] < ALPHA).any():
        outcome = REPRODUCED
    else:
        outcome = NOT_REPRODUCED if ((tests["low"] > -margin) & (tests["high"] < margin)).all() else UNCLEAR
    return Finding(found, outcome, float(tests["difference"].loc[tests["difference"].abs().idxmax()]), why, barred, True)


def number(
    material: Material,
    values: Folds | pd.Series,
    expected: float,
    tolerance: float,
    why: str = "",
    barred: str = "",
    tested: str = MIXED,
    range_: float = 0.0,
) -> Finding:
    """Whether the mean of ``values`` over folds is a printed number, or within ``range_`` to both sides of it.

    REPRODUCED where the mean lies within the tolerance and its interval reaches no farther than twice the tolerance from it;
    NOT_REPRODUCED where the whole interval lies outside the tolerance; UNCLEAR else: the folds leave too much open.
    """
    found = spread(values.values)
    text = f"{compare.plus_minus(found.mean, found.sd)} ({compare.counted(found.n, 'fold')})"
    test = material.test(values, 0.0, tested)
    if test is None:
        return Finding(text, difference=found.mean - expected, why=why, barred=barred or TOO_FEW)
    interval, away = test.interval, found.mean - expected
    span = compare.bounds(interval.low, interval.high, ".3f") or "too wide to say anything"
    text += f", interval {span}{_by(test.drawn)}"
    if abs(away) <= range_ + tolerance and interval.high - interval.low <= 4 * tolerance:
        outcome = REPRODUCED
    elif interval.low > expected + range_ + tolerance or interval.high < expected - range_ - tolerance:
        outcome = NOT_REPRODUCED
    else:
        outcome = UNCLEAR
    return Finding(text, outcome, away, why, barred)


def exactly(found: int, expected: int, why: str = "", barred: str = "") -> Finding:
    """Whether a count is the printed one."""
    outcome = REPRODUCED if found == expected else NOT_REPRODUCED
    return Finding(f"{found:,}", outcome, float(found - expected), why, barred)


def _tests(material: Material, pairs: list[Pair], most: int = 4) -> tuple[pd.DataFrame | None, str]:
    """The tests of pairs as a table, and as text; None where a pair can't be tested, or there is none."""
    if not pairs:
        return None, "nothing to compare"
    tests = [material.test(pair.first, pair.second, pair.tested) for pair in pairs]
    short = [pair.name for pair, test in zip(pairs, tests, strict=True) if test is None]
    if short:
        return None, f"{TOO_FEW}: {', '.join(short[:3])}{' and others' if len(short) > 3 else ''}"
    table = pd.DataFrame(
        [
            {
                "name": pair.name + _means(pair),
                "difference": t.interval.estimate,
                "low": t.interval.low,
                "high": t.interval.high,
                "p": t.p,
                "drawn": t.drawn,
            }
            for pair, t in zip(pairs, tests, strict=True)
            if t is not None
        ]
    )
    table["p_holm"] = statistics.holm(table["p"])
    return table, _text(table, most)


def _beyond(material: Material, pairs: list[Pair], tests: pd.DataFrame, margin: float) -> pd.Series:
    """Which differences are clearly farther from zero than ``margin``: tested against it on their side, p after Holm."""
    against = [
        material.test(pair.first, pair.second + (margin if difference > 0 else -margin), pair.tested)
        for pair, difference in zip(pairs, tests["difference"], strict=True)
    ]
    p = pd.Series([math.nan if test is None else test.p for test in against], dtype=float)
    p[tests["difference"].abs() <= margin] = 1.0  # clearly within is not beyond
    return statistics.holm(p) < ALPHA


def _means(pair: Pair) -> str:
    """The means of the two over the folds that they share, as ", 0.88 against 0.66"."""
    if not isinstance(pair.second, Folds | pd.Series):
        return ""
    first, second = (Folds(of) if isinstance(of, pd.Series) else of for of in (pair.first, pair.second))
    both = first.values.index.intersection(second.values.index)
    return f", {first.values[both].mean():.2f} against {second.values[both].mean():.2f}"


def _by(drawn: str) -> str:
    """What an interval is over where it isn't the folds' spread."""
    return f" over draws of {drawn}" if drawn else ""


def _text(tests: pd.DataFrame, most: int) -> str:
    """Every test in words; of more than ``most`` a count, and those that decide."""

    def one(row: pd.Series) -> str:
        p = "" if math.isnan(row["p_holm"]) else ", p < 0.001" if row["p_holm"] < 0.001 else f", p {row['p_holm']:.3f}"
        span = compare.bounds(row["low"], row["high"], between=", ") or "no interval"
        return f"{row['name']}: {row['difference']:+.3f} [{span}]{_by(row['drawn'])}{p}"

    if len(tests) <= most:
        return "; ".join(one(row) for _, row in tests.iterrows())
    clear = tests["p_holm"] < ALPHA
    n_above, n_below = int((clear & (tests["difference"] > 0)).sum()), int((clear & (tests["difference"] < 0)).sum())
    ordered = tests.sort_values("difference")
    return (
        f"of {len(tests)} comparisons {n_above} clearly above zero, {n_below} clearly below; "
        f"lowest {one(ordered.iloc[0])}; highest {one(ordered.iloc[-1])}"
    )
