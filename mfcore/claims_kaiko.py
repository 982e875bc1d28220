"""What kaiko 2024 say of pretraining and of representations, asked of a study that pretrains: a ledger of its own.

Of the paper itself only the abstract and the figures' captions were at hand. What else stands here was read in summaries and
notes about it: those rows name it second-hand, and their words are no sentence of its authors.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import claims, compare_pretraining, compare_representation_tasks, compare_tasks, pretrained, store
from mfcore.claims_judge import ALPHA, NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, UNCLEAR, Claim, Finding, Material
from mfcore.compare_representation import EXPECTED, TITLES
from mfcore.config import Pretraining, Study
from mfcore.statistics import holm

KAIKO = "kaiko 2024 (arXiv 2404.15217)"
NOTED = f"{KAIKO}, second-hand"
SUBJECT = "pretraining"
RULE = (
    "Two pretrainings that differ in one thing are compared on each task by the 95 % interval over the slides, patients or "
    "items tested: “more” needs every interval above zero, one wholly below it refutes. What other draws of it would "
    "give is not in it. On synthetic data nothing is judged."
)


def check(study: Study, results: str | Path) -> pd.DataFrame:
    """Every claim asked of the study's pretrainings and tasks, a row each, columns `mfcore.claims.COLUMNS`."""
    return claims.asked([(SUBJECT, claim) for claim in CLAIMS], Material(study, pd.DataFrame(), Path(results)))


def brief(ledger: pd.DataFrame) -> pd.DataFrame:
    """The ledger for a notebook."""
    return ledger[["claim", "paper", "where", "verdict", "here", "found", "why"]]


# ---- two pretrainings, one thing apart ----


def _more(material: Material, pairs: Sequence[tuple[str, str]], barred: str = "") -> Finding:
    """Whether the first of each pair of encoders scores more than the second on every task that judged both."""
    found = []
    there = compare_tasks.runs(material.study, material.results)
    for first, second in pairs:
        for task in material.study.tasks:
            if (task.name, first) in there and (task.name, second) in there:
                one = compare_tasks.difference(material.study, material.results, task.name, first, second)
                found.append((f"{task.name}, {first} less {second}", one))
    if not found:
        return Finding("nothing measured", barred=barred or "no task has judged two pretrainings that differ in this alone")
    text = "; ".join(f"{what} {one.estimate:+.3f}{_span(one.low, one.high)}" for what, one in found)
    lows, highs = (np.array([getattr(one, end) for _, one in found]) for end in ("low", "high"))
    outcome = REPRODUCED if (lows > 0).all() else NOT_REPRODUCED if (highs < 0).any() else UNCLEAR
    middle = float(np.median([one.estimate for _, one in found]))
    return Finding(text, outcome, middle, barred=barred, is_comparison=True)


def _span(low: float, high: float) -> str:
    return f" [{low:+.3f}, {high:+.3f}]" if math.isfinite(low) else " (no interval)"


def _pairs(
    study: Study, varied: str, is_more: Callable[[Pretraining], float], at: Callable[[Pretraining], str]
) -> list[tuple[str, str]]:
    """Of each comparison of ``varied`` its most against each lesser, by ``is_more``; ``at`` names the encoder of each."""
    pairs = []
    for comparison in compare_pretraining.comparisons(study, varied):
        ranked = sorted((study.pretrained(name) for name in comparison.names), key=is_more)
        pairs += [(at(ranked[-1]), at(other)) for other in ranked[:-1] if is_more(other) < is_more(ranked[-1])]
    return pairs


def _last(which: Pretraining) -> str:
    return which.name


def _first(which: Pretraining) -> str:
    return pretrained.snapshots_of(which)[0]


def convergence(material: Material) -> Finding:
    """Started from other weights against from random ones, after the first snapshot."""
    pairs = _pairs(material.study, "start", lambda which: which.start != "random", _first)
    starts = {which.start for which in material.study.pretraining} - {"random"}
    own = [start for start in starts if pretrained.is_of(material.study, start)]
    barred = f"it starts from {', '.join(own)}, pretrained here, not from ImageNet weights" if own else ""
    return _more(material, pairs, barred)


def magnifications(material: Material) -> Finding:
    """Several magnifications against each single one."""
    return _more(material, _pairs(material.study, "patches.um_per_px", lambda which: len(set(which.patches.um_per_px)), _last))


def diversity(material: Material) -> Finding:
    """All slides and ever new patches against fewer."""
    study = material.study
    slides = _pairs(study, "patches.slide_fraction", lambda which: which.patches.slide_fraction, _last)
    distinct = _pairs(study, "patches.n_distinct", lambda which: which.patches.n_distinct or math.inf, _last)
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
    return Finding(text, outcome, float(related["rho"].iloc[0]), why, barred, True)


def both_foretell(material: Material) -> Finding:
    """RankMe with the scores, ODCorr against them."""
    return _foretells(material, list(TITLES))


def odcorr_foretells(material: Material) -> Finding:
    """ODCorr against the scores, in both of its readings."""
    barred = "the paper's are CIFAR-10, CIFAR-100 and Food101, which are no tasks here"
    return _foretells(material, ["odcorr_abs", "odcorr_sq"], barred)


def dinov2_decorrelates(material: Material) -> Finding:
    """ODCorr (both readings) of DINOv2 against DINO's, on each task's images."""
    rows = compare_pretraining.representations(material.study, material.results)
    found = []
    for comparison in compare_pretraining.comparisons(material.study, "method"):
        last = compare_pretraining.last(compare_pretraining.over_steps(comparison, rows))
        for (task, metric), part in last[last["metric"].isin(["odcorr_abs", "odcorr_sq"])].groupby(["task", "metric"]):
            means = part.groupby("value")["mean"].mean()
            if len(means) == 2:
                found.append((task, TITLES[metric], means["DINOv2"], means["DINO"]))
    if not found:
        return Finding("nothing measured", barred="no DINO and DINOv2 that are otherwise alike were judged here")
    text = "; ".join(f"{task}, {name} {new:.3f} (DINOv2) against {old:.3f}" for task, name, new, old in found)
    lower = [new < old for *_, new, old in found]
    outcome = REPRODUCED if all(lower) else NOT_REPRODUCED if not any(lower) else UNCLEAR
    difference = float(np.mean([new - old for *_, new, old in found]))
    return Finding(text, outcome, difference, "a pretraining each, so that the draw's part isn't known", is_comparison=True)


def _untestable(why: str) -> Callable[[Material], Finding]:
    def measure(material: Material) -> Finding:
        return Finding("nothing measured", NOT_TESTABLE, barred=why)

    return measure


_ABOVE = "every 95 % interval above 0"
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
        "score of each task, of several magnifications less each single one",
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
        "on every task, in both readings",
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
