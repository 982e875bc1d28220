"""How a claim is judged: the rule by which numbers from a study's folds become a verdict, the same for every claim."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from mfcore import cards, compare, patches, statistics, store
from mfcore.config import Network, Study
from mfcore.statistics import Test, paired_test, spread

REPRODUCED, NOT_REPRODUCED, UNCLEAR, NOT_TESTABLE = "reproduced", "not reproduced", "unclear", "not testable here"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, UNCLEAR, NOT_TESTABLE)
GANZ = "Ganz et al. 2024"
ALPHA = 0.05
FOUNDATION, IMAGENET = cards.TABLE_1[:6], cards.TABLE_1[6:]

# What a claim is about. Only the data sets that are named can settle it; DIRECTION is settled by any real data that ask the
# paper's question, ANYWHERE by any study, synthetic ones too: what networks and designs are doesn't depend on the images.
MIDOG22, CCMCT, AMIBR, DIRECTION, ANYWHERE = "midog22", "ccmct", "amibr", "direction", "anywhere"
DATA_NAMES = {
    MIDOG22: "MIDOG 2022",
    CCMCT: "CCMCT",
    AMIBR: "AMi-Br",
    "midogpp": "MIDOG++",
    "midog": "own slides",
    "csv": "own slides",
}
QUESTION = ("mitotic figure", "look-alike")
MIXED, INSIDE, OUTSIDE = "mixed", "inside", "outside"  # what is tested: all domains together, the one trained on, another


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


@dataclass(frozen=True)
class Material:
    """What claims are asked of: a study, its `compare.scores`, and its results folder, each file read once."""

    study: Study
    scores: pd.DataFrame
    results: Path

    @cached_property
    def labels(self) -> pd.DataFrame | None:
        """The study's stored label table, None where patches haven't been extracted."""
        try:
            return store.read_parquet(patches.find(self.study, self.results).path("labels.parquet"))
        except store.StoreError:
            return None

    @cached_property
    def collected(self) -> compare.Collected | None:
        """The study's predictions and failures, None where there are none."""
        try:
            return compare.collect(self.study, self.results)
        except store.StoreError:
            return None

    @cached_property
    def mixed(self) -> pd.DataFrame:
        """Scores of the fits on all domains (Fig. 1)."""
        return self.scores[self.scores["train_domain"] == compare.ALL]

    @cached_property
    def crossed(self) -> pd.DataFrame:
        """Scores of the fits on single domains (Tab. 2, Fig. 2)."""
        return self.scores[self.scores["train_domain"] != compare.ALL]

    @cached_property
    def sizes(self) -> list[float]:
        """The sizes that were trained at, ascending."""
        return sorted(self.mixed["size"].unique())

    @cached_property
    def arms(self) -> list[str]:
        """The arms that have scores, in the study's order."""
        present = set(self.scores["arm"])
        return [name for name in (*(n.name for n in self.study.networks), *self.study.encoders) if name in present]

    def folds(self, arm: str, size: float, metric: str = "auroc") -> pd.Series:
        """One arm's metric at one size by fold, trained and tested on all domains."""
        rows = self._mixed_of.get((arm, size))
        return pd.Series(dtype=float) if rows is None else rows[metric].dropna()

    @cached_property
    def _mixed_of(self) -> dict[tuple[str, float], pd.DataFrame]:
        return {key: rows.set_index("fold") for key, rows in self.mixed.groupby(["arm", "size"])}

    def across(self, arm: str, metric: str = "auroc") -> pd.DataFrame:
        """One arm's metric by fold, columns ``inside``, ``outside`` and ``drop``: the means over domains (Tab. 2)."""
        if (arm, metric) not in self._across:
            self._across[arm, metric] = self._means_over_domains(arm, metric)
        return self._across[arm, metric]

    @cached_property
    def _across(self) -> dict[tuple[str, str], pd.DataFrame]:
        return {}

    def _means_over_domains(self, arm: str, metric: str) -> pd.DataFrame:
        rows = self.crossed[self.crossed["arm"] == arm]
        own = rows["domain"] == rows["train_domain"]
        table = pd.DataFrame(
            {"inside": rows[own].groupby("fold")[metric].mean(), "outside": rows[~own].groupby("fold")[metric].mean()}
        ).dropna()
        return table.assign(drop=table["inside"] - table["outside"])

    def test(self, first: pd.Series, second: pd.Series | float, tested: str = MIXED) -> Test | None:
        """The corrected paired test over the folds that both have; None for fewer than two.

        tested: MIXED, INSIDE or OUTSIDE, whose patches the correction counts (`overlap`). Smaller training sets than the
        largest share less, so that there it is on the safe side.
        """
        if not isinstance(second, pd.Series):
            second = pd.Series(second, index=first.index)
        both = first.index.intersection(second.index)
        if len(both) < 2:
            return None
        return paired_test(first[both].to_numpy(), second[both].to_numpy(), *self.overlap(tested))

    def overlap(self, tested: str = MIXED) -> tuple[float, float]:
        """Patches that train and that test one fit, means: of fits on all domains at the largest size, else of single ones.

        Out of domain every fold is tested on all of the other domain, which is far more than in domain. Without such fits
        the shares of a fold.
        """
        rows = self.mixed if tested == MIXED else self.crossed
        if len(rows):
            at_home = rows["domain"] == rows["train_domain"]
            rows = rows[rows["size"] == self.sizes[-1]] if tested == MIXED else rows[at_home == (tested == INSIDE)]
        if rows.empty:
            share = self.study.splits.test_fraction
            return (1 - share) * (1 - self.study.splits.val_fraction), share
        return float(rows["n_train"].mean()), float(rows["n_test"].mean())

    def network(self, name: str) -> Network | None:
        """The network of an arm, None for a probe's."""
        return next((network for network in self.study.networks if network.name == name), None)

    def missing(self, arm: str) -> str:
        """Why an encoder's probe has no scores here."""
        if arm not in self.study.encoders:
            return "not in this study"
        failures = self.collected.failures if self.collected else None
        rows = failures[failures["arm"] == arm] if failures is not None else ()
        return str(rows["reason"].iloc[0]) if len(rows) else "no predictions yet"


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
    return "synthetic" if study.synthetic else DATA_NAMES[study.data.source]


# ---- from folds to an outcome ----


@dataclass(frozen=True)
class Pair:
    """Two arms (or sizes, or domains) that share folds: ``first`` less ``second``, by fold; ``tested`` as `Material.test`."""

    name: str
    first: pd.Series
    second: pd.Series | float
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
    values: pd.Series,
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
    found = spread(values)
    text = f"{compare.plus_minus(found.mean, found.sd)} ({compare.counted(found.n, 'fold')})"
    test = material.test(values, 0.0, tested)
    if test is None:
        return Finding(text, difference=found.mean - expected, why=why, barred=barred or "fewer than two folds")
    interval, away = test.interval, found.mean - expected
    text += f", interval {compare.bounds(interval.low, interval.high, '.3f') or 'too wide to say anything'}"
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
    """The tests of pairs as a table, and as text; None where a pair has fewer than two folds, or there is none."""
    if not pairs:
        return None, "nothing to compare"
    tests = [material.test(pair.first, pair.second, pair.tested) for pair in pairs]
    short = [pair.name for pair, test in zip(pairs, tests, strict=True) if test is None]
    if short:
        return None, f"fewer than two folds in common: {', '.join(short[:3])}{' and others' if len(short) > 3 else ''}"
    table = pd.DataFrame(
        [
            {
                "name": pair.name + _means(pair),
                "difference": t.interval.estimate,
                "low": t.interval.low,
                "high": t.interval.high,
                "p": t.p,
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
    if not isinstance(pair.second, pd.Series):
        return ""
    both = pair.first.index.intersection(pair.second.index)
    return f", {pair.first[both].mean():.2f} against {pair.second[both].mean():.2f}"


def _text(tests: pd.DataFrame, most: int) -> str:
    """Every test in words; of more than ``most`` a count, and those that decide."""

    def one(row: pd.Series) -> str:
        p = "" if math.isnan(row["p_holm"]) else ", p < 0.001" if row["p_holm"] < 0.001 else f", p {row['p_holm']:.3f}"
        span = compare.bounds(row["low"], row["high"], between=", ") or "no interval"
        return f"{row['name']}: {row['difference']:+.3f} [{span}]{p}"

    if len(tests) <= most:
        return "; ".join(one(row) for _, row in tests.iterrows())
    clear = tests["p_holm"] < ALPHA
    n_above, n_below = int((clear & (tests["difference"] > 0)).sum()), int((clear & (tests["difference"] < 0)).sum())
    ordered = tests.sort_values("difference")
    return (
        f"of {len(tests)} comparisons {n_above} clearly above zero, {n_below} clearly below; "
        f"lowest {one(ordered.iloc[0])}; highest {one(ordered.iloc[-1])}"
    )
