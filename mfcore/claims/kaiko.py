"""What kaiko 2024 say of pretraining and of representations, asked of a study that pretrains: a ledger of its own.

Of the paper itself only the abstract and the figures' captions were at hand. What else stands here was read in summaries and
notes about it: those rows name it second-hand, and their words are no sentence of its authors.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from mfcore import store
from mfcore.analysis import compare_pretraining, compare_representation_tasks, compare_tasks
from mfcore.analysis.compare_representation import EXPECTED, TITLES
from mfcore.claims import ledger as claims
from mfcore.claims.judge import ALPHA, NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, UNCLEAR, Claim, Finding, Material
from mfcore.encoders.card import cards
from mfcore.measures.statistics import LEVEL, Interval, holm
from mfcore.study import pretrained
from mfcore.study.config import Pretraining, Study
from mfcore.study.config_pretraining import METHODS, steps_of

KAIKO = "kaiko 2024 (arXiv 2404.15217)"
NOTED = f"{KAIKO}, second-hand"
SUBJECT = "pretraining"
ODCORRS = ("odcorr_abs", "odcorr_sq")
RULE = (
    "Kaiko 2024's statements are of ways to pretrain: pretrainings that differ in one thing are compared on each task by the "
    "95 % interval over pretrainings (Welch's t). “More” needs every interval above zero, “lower” every one below; one wholly "
    "on the other side refutes. Where a way was pretrained once, the interval over what was tested is shown, and the verdict "
    "is unclear: what another draw would give is not in it. On synthetic data nothing is judged."
)
ONCE = "pretrained once for one of the values at least: the way can't be told from the draw"


def check(study: Study, results: str | Path) -> pd.DataFrame:
    """Every claim asked of the study's pretrainings and tasks, a row each, columns `mfcore.claims.ledger.COLUMNS`."""
    return claims.asked([(SUBJECT, claim) for claim in CLAIMS], Material(study, pd.DataFrame(), Path(results)))


def brief(ledger: pd.DataFrame) -> pd.DataFrame:
    """The ledger for a notebook."""
    return ledger[["claim", "paper", "where", "verdict", "here", "found", "why"]]


# ---- ways to pretrain, one thing apart ----


@dataclass(frozen=True)
class Ways:
    """Encoders pretrained in one way and in another, all else equal: several of a way differ by their draws alone."""

    first: tuple[str, ...]
    second: tuple[str, ...]

    @property
    def is_repeated(self) -> bool:
        """Whether each way was pretrained more than once, so that its draws are known to matter so much."""
        return min(len(self.first), len(self.second)) > 1

    def difference(self, scores: Mapping[str, float]) -> Interval:
        """First less second, with Welch's 95 % interval over pretrainings; no bounds where a way has only one."""
        first, second = ([scores[name] for name in names if name in scores] for names in (self.first, self.second))
        estimate, n = float(np.mean(first) - np.mean(second)), len(first) + len(second)
        if min(len(first), len(second)) < 2:
            return Interval(estimate, math.nan, math.nan, LEVEL, n)
        if np.ptp(first) == np.ptp(second) == 0:
            return Interval(estimate, estimate, estimate, LEVEL, n)
        bounds = stats.ttest_ind(first, second, equal_var=False).confidence_interval(LEVEL)
        return Interval(estimate, float(bounds.low), float(bounds.high), LEVEL, n)


def _more(material: Material, those: Sequence[Ways], barred: str = "") -> Finding:
    """Whether the first of each two ways scores more than the second on every task that judged both."""
    found, is_repeated = [], True
    there = compare_tasks.runs(material.study, material.results)
    scores = _scores(material) if any(ways.is_repeated for ways in those) else {}
    for ways in those:
        for task in material.study.tasks:
            judged = Ways(*(tuple(one for one in names if (task.name, one) in there) for names in (ways.first, ways.second)))
            if not (judged.first and judged.second):
                continue
            if judged.is_repeated:
                one = judged.difference(scores[task.name])
            else:
                one = compare_tasks.difference(material.study, material.results, task.name, judged.first[0], judged.second[0])
            is_repeated &= judged.is_repeated
            found.append((f"{task.name}, {_named(judged.first)} less {_named(judged.second)}", one))
    if not found:
        return Finding("nothing measured", barred=barred or "no task has judged two pretrainings that differ in this alone")
    text = "; ".join(f"{what} {one.estimate:+.3f}{_span(one)}" for what, one in found)
    once = f"{ONCE}; the intervals are over what was tested"
    return _judged_over(text, [one for _, one in found], is_repeated, 1, once, barred)


def _judged_over(text: str, found: Sequence[Interval], is_repeated: bool, sign: int, once: str, barred: str = "") -> Finding:
    """The outcome of intervals over pretrainings, expected on the side of ``sign``; open where a way has only one."""
    lows, highs = (sign * np.array([getattr(one, end) for one in found]) for end in ("low", "high")[::sign])
    outcome = REPRODUCED if (lows > 0).all() else NOT_REPRODUCED if (highs < 0).any() else UNCLEAR
    middle = float(np.median([one.estimate for one in found]))
    if not is_repeated:
        return Finding(text, UNCLEAR, middle, once, barred, True)
    return Finding(text, outcome, middle, barred=barred, is_comparison=True)


def _scores(material: Material) -> dict[str, dict[str, float]]:
    """By task, what it reports of each encoder and snapshot, the mean over heads."""
    table = compare_tasks.reported(compare_tasks.table(material.study, material.results))
    return {task: dict(zip(part["encoder"], part["mean"], strict=True)) for task, part in table.groupby("task")}


def _named(names: Sequence[str]) -> str:
    said = [name.replace("@", " after ") + " steps" * ("@" in name) for name in names]
    return said[0] if len(said) == 1 else f"mean of {', '.join(said)}"


def _span(one: Interval) -> str:
    return f" [{one.low:+.3f}, {one.high:+.3f}]" if math.isfinite(one.low) else " (no interval)"


def _ways(study: Study, varied: str, is_more: Callable[[Pretraining], float]) -> list[Ways]:
    """Of each comparison of ``varied`` the most of it against each that is less, by ``is_more``; never across comparisons."""
    found = []
    for comparison in compare_pretraining.comparisons(study, varied):
        of_value: dict[str, list[Pretraining]] = {}
        for name, value in zip(comparison.names, comparison.values, strict=True):
            of_value.setdefault(value, []).append(study.pretraining_of(name))
        amounts = {value: is_more(alike[0]) for value, alike in of_value.items()}
        names = {value: tuple(which.name for which in alike) for value, alike in of_value.items()}
        most = [value for value, amount in amounts.items() if amount == max(amounts.values())]
        found += [Ways(names[one], names[other]) for one in most for other in names if other not in most]
    return found


def _early(study: Study, ways: Ways) -> Ways | None:
    """The same ways after the first step at which all of them kept a snapshot; None where they kept only the last."""
    every = [study.pretraining_of(name) for name in (*ways.first, *ways.second)]
    steps = set.intersection(*(set(steps_of(which)) for which in every)) - {which.n_steps for which in every}
    if not steps:
        return None
    return Ways(*(tuple(f"{name}@{min(steps)}" for name in names) for names in (ways.first, ways.second)))


def convergence(material: Material) -> Finding:
    """Started from other weights against from random ones, after the first snapshot; by ImageNet's where there are any."""
    study, others, unsaid = material.study, {}, []
    for ways in _ways(study, "start", lambda which: which.start != "random"):
        start = study.pretraining_of(ways.first[0]).start
        if early := _early(study, ways):
            why_not = _not_imagenet(study, start)
            others.setdefault(why_not, []).append(early)
            if not why_not and not compare_pretraining.learnt_from(study, start):
                unsaid.append(f"what {start} has learnt from isn't said here and is taken for ImageNet")
    barred = "; ".join(why for why in others if why) if "" not in others else ""
    found = _more(material, others.get("", [one for those in others.values() for one in those]), barred)
    return replace(found, why="; ".join(filter(None, [*unsaid, found.why])))


def _not_imagenet(study: Study, start: str) -> str:
    """Why a start is none from ImageNet's weights, as far as is known here; else empty."""
    if pretrained.is_of(study, start):
        return f"it starts from {start}, pretrained here, not from ImageNet weights"
    card = cards().get(start)
    if card is not None and card.learnt_from_slides:
        return f"it starts from {start}, which has learnt from slides, not from ImageNet weights"
    images = compare_pretraining.learnt_from(study, start)
    if images and not images.startswith("ImageNet"):
        return f"it starts from {start}, which has learnt from {images}, not from ImageNet weights"
    return ""


def magnifications(material: Material) -> Finding:
    """The most magnifications against fewer."""
    return _more(material, _ways(material.study, "patches.um_per_px", lambda which: len(set(which.patches.um_per_px))))


def diversity(material: Material) -> Finding:
    """All slides and ever new patches against fewer."""
    study = material.study
    slides = _ways(study, "patches.slide_fraction", lambda which: which.patches.slide_fraction)
    distinct = _ways(study, "patches.n_distinct", lambda which: which.patches.n_distinct or math.inf)
    return _more(material, [*slides, *distinct])


# ---- representations ----


def _judged(material: Material) -> pd.DataFrame:
    """RankMe and ODCorr against each task's score; none where nothing is judged yet."""
    try:
        rows = compare_representation_tasks.table(material.study, material.results)
    except store.StoreError:
        return pd.DataFrame(columns=["metric", "task", "rho", "p"])
    return compare_representation_tasks.correlations(rows)


def _foretells(material: Material, metrics: Sequence[str], barred: str = "") -> Finding:
    """Whether each metric goes with the score on every task as the paper has it, p after Holm over all of the row."""
    related = _judged(material)
    related = related[related["metric"].isin(metrics) & related["rho"].notna()]
    if related.empty:
        return Finding("nothing measured", barred=barred or "fewer than three encoders are judged by a task of patches")
    p = holm(related["p"].astype(float))
    right = np.sign(related["rho"]) == related["metric"].map(EXPECTED)
    clear = p < ALPHA
    outcome = REPRODUCED if (clear & right).all() else NOT_REPRODUCED if (clear & ~right).any() else UNCLEAR
    text = "; ".join(
        f"{row.task}, {TITLES[row.metric]} ρ {row.rho:+.2f}, p {corrected:.2g}"
        for row, corrected in zip(related.itertuples(), p, strict=True)
    )
    why = f"over {int(related['n'].max())} encoders, most of them variants of one recipe where a study pretrains them"
    return Finding(text, outcome, why=why, barred=barred, is_comparison=True)


def both_foretell(material: Material) -> Finding:
    """RankMe with the scores, ODCorr against them."""
    return _foretells(material, list(TITLES))


def odcorr_foretells(material: Material) -> Finding:
    """ODCorr against the scores, in both of its readings."""
    barred = "the paper's are CIFAR-10, CIFAR-100 and Food101, which are no tasks here"
    return _foretells(material, ODCORRS, barred)


def dinov2_decorrelates(material: Material) -> Finding:
    """ODCorr (both readings) of DINOv2 less DINO's, on each task's images."""
    rows = compare_pretraining.representations(material.study, material.results)
    found, is_repeated = [], True
    for comparison in compare_pretraining.comparisons(material.study, "method"):
        last = compare_pretraining.last(compare_pretraining.over_steps(comparison, rows)).dropna(subset="mean")
        for (task, metric), part in last[last["metric"].isin(ODCORRS)].groupby(["task", "metric"]):
            new, old = (tuple(part.loc[part["value"] == METHODS[key], "name"]) for key in ("dinov2", "dino"))
            if new and old:
                ways, measured = Ways(new, old), dict(zip(part["name"], part["mean"], strict=True))
                is_repeated &= ways.is_repeated
                means = [np.mean([measured[name] for name in names]) for names in (new, old)]
                found.append((task, TITLES[metric], *means, ways.difference(measured)))
    if not found:
        return Finding("nothing measured", barred="no DINO and DINOv2 that are otherwise alike were judged here")
    text = "; ".join(
        f"{task}, {name} {new:.3f} (DINOv2) against {old:.3f}{_span(one) if is_repeated else ''}"
        for task, name, new, old, one in found
    )
    return _judged_over(text, [one for *_, one in found], is_repeated, -1, ONCE)


def _untestable(why: str) -> Callable[[Material], Finding]:
    def measure(material: Material) -> Finding:
        return Finding("nothing measured", NOT_TESTABLE, barred=why)

    return measure


_ABOVE = "every 95 % interval over pretrainings above 0"
CLAIMS = [
    Claim(
        "An inverse correlation between the ODCorr and top-1 accuracy can be observed.",
        "Fig. 5, caption",
        "Spearman's ρ between ODCorr, in both readings, and the score of each task, over encoders",
        "below 0",
        "p below 0.05 after Holm, all tasks and readings",
        odcorr_foretells,
        paper=KAIKO,
    ),
    Claim(
        "our models reach state-of-the-art performance on various patch-level downstream tasks",
        "abstract",
        "none: the models that it was compared with, and when, aren't a study's to choose",
        "",
        "",
        _untestable("which models are the state of the art is no result of a study"),
        paper=KAIKO,
    ),
    Claim(
        "pretraining on ImageNet speeds convergence",
        "a summary",
        "score of each task after the first snapshot, started from ImageNet weights less from random ones",
        "more",
        _ABOVE,
        convergence,
        paper=NOTED,
    ),
    Claim(
        "training with multiple magnifications improves robustness",
        "a summary",
        "score of each task, with the most magnifications less with fewer",
        "more",
        _ABOVE,
        magnifications,
        paper=NOTED,
    ),
    Claim(
        "data diversity being crucial for out-of-distribution generalization",
        "a summary",
        "score of each task, of all slides and ever new patches less each smaller share and number",
        "more",
        _ABOVE,
        diversity,
        paper=NOTED,
    ),
    Claim(
        "unsupervised metrics (RankMe and ODCorr) that correlate with downstream performance",
        "a summary",
        "Spearman's ρ between each metric and the score of each task, over encoders",
        "above 0 (RankMe), below 0 (ODCorr)",
        "p below 0.05 after Holm, all tasks and metrics",
        both_foretell,
        paper=NOTED,
    ),
    Claim(
        "DINOv2 has better ODCorr",
        "a note on appendix B",
        "ODCorr of each task's images, DINOv2 less DINO",
        "lower",
        "every 95 % interval over pretrainings below 0, in both readings",
        dinov2_decorrelates,
        paper=NOTED,
    ),
    Claim(
        "10^3 distinct patches already saturate OOD tasks",
        "a note on Tables III and IV",
        "none: that more brings nothing needs a margin, which the note doesn't say",
        "",
        "",
        _untestable("no margin is known within which scores count as saturated"),
        paper=NOTED,
    ),
]
