"""What kaiko 2024 state about pretraining and representations: pretrainings that differ in one thing, on each task."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from mfcore import store
from mfcore.analysis.encoders import pretrainings as of_pretraining, representations, tasks
from mfcore.analysis.encoders.representations import EXPECTED, TITLES
from mfcore.claims.arms import pathology
from mfcore.claims.rows import Row
from mfcore.claims.rules import ALPHA, UNCLEAR, Finding, decide
from mfcore.claims.scores import Material, Untestable
from mfcore.encoders.card import cards
from mfcore.measures.statistics import LEVEL, Interval, holm
from mfcore.study import pretrained
from mfcore.study.config import Pretraining, Settings
from mfcore.study.pretrained import METHODS, steps_of
from mfcore.study.study import Study

ODCORRS = ("odcorr_abs", "odcorr_sq")
ONCE = "pretrained once for one of the values at least, so other draws of the training may differ"
AMOUNTS: dict[str, Callable[[Pretraining], float]] = {
    "start": lambda one: one.start != "random",
    "patches.um_per_px": lambda one: len(set(one.patches.um_per_px)),
    "patches.slide_fraction": lambda one: one.patches.slide_fraction,
    "patches.n_distinct": lambda one: one.patches.n_distinct or math.inf,
}


class Ways(NamedTuple):
    """Encoders pretrained in one way and in another, all else equal: encoders of one way differ by their draws alone."""

    first: tuple[str, ...]
    second: tuple[str, ...]

    @property
    def is_repeated(self) -> bool:
        """Whether each way was pretrained more than once, so that the spread over draws is known."""
        return min(len(self.first), len(self.second)) > 1


def difference(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Mean of ``first`` less mean of ``second``, with Welch's 95 % interval; no bounds where one has a single score."""
    estimate, n = float(np.mean(first) - np.mean(second)), len(first) + len(second)
    if min(len(first), len(second)) < 2:
        return Interval(estimate, math.nan, math.nan, LEVEL, n)
    if np.ptp(first) == np.ptp(second) == 0:
        return Interval(estimate, estimate, estimate, LEVEL, n)
    bounds = stats.ttest_ind(first, second, equal_var=False).confidence_interval(LEVEL)
    return Interval(estimate, float(bounds.low), float(bounds.high), LEVEL, n)


def _ways(study: Settings, varied: str) -> list[Ways]:
    """In each comparison of ``varied``, the pretrainings with the most of it against those with each smaller amount."""
    found = []
    for comparison in of_pretraining.comparisons(study, varied):
        of_value: dict[str, list[Pretraining]] = {}
        for name, value in zip(comparison.names, comparison.values, strict=True):
            of_value.setdefault(value, []).append(study.pretraining_of(name))
        amounts = {value: AMOUNTS[varied](alike[0]) for value, alike in of_value.items()}
        names = {value: tuple(one.name for one in alike) for value, alike in of_value.items()}
        most = [value for value, amount in amounts.items() if amount == max(amounts.values())]
        found += [Ways(names[one], names[other]) for one in most for other in names if other not in most]
    return found


def pretrainings(material: Material, row: Row) -> Finding:
    """Whether the most of what is ``varied`` scores more than less of it, on every task that judged both."""
    return _scored(material, row, [ways for varied in row.arguments["varied"] for ways in _ways(material.study, varied)])


def starts(material: Material, row: Row) -> Finding:
    """Started from ImageNet weights against random ones, after the first snapshot; else other starts stand in."""
    study, others, unsaid = material.study, {}, []
    for ways in _ways(study, "start"):
        start = study.pretraining_of(ways.first[0]).start
        if early := _early(study, ways):
            why_not = _not_imagenet(study, start)
            others.setdefault(why_not, []).append(early)
            if not why_not and not of_pretraining.learnt_from(study, start):
                unsaid.append(f"the study does not say what {start} has learnt from, so ImageNet is assumed")
    asked = others.get("", [ways for every in others.values() for ways in every])
    finding = _scored(material, row, asked)
    return replace(finding, barred=[] if "" in others else list(others), why=[*unsaid, *finding.why])


def _early(study: Settings, ways: Ways) -> Ways | None:
    """The same ways after the first step at which all of them kept a snapshot; None where they kept only the last."""
    every = [study.pretraining_of(name) for name in (*ways.first, *ways.second)]
    steps = set.intersection(*(set(steps_of(one)) for one in every)) - {one.n_steps for one in every}
    return Ways(*(tuple(f"{name}@{min(steps)}" for name in names) for names in ways)) if steps else None


def _not_imagenet(study: Settings, start: str) -> str:
    """Why a start is none from ImageNet weights, as far as the study and the cards know; else empty."""
    images = of_pretraining.learnt_from(study, start)
    card = cards().get(start)
    if pretrained.is_of(study, start):
        learnt = "was pretrained here"
    elif card and {card.name, card.variant_of} & pathology():
        learnt = "has learnt from slides"
    elif images and not images.startswith("ImageNet"):
        learnt = f"has learnt from {images}"
    else:
        return ""
    return f"training starts from {start}, which {learnt}, not from ImageNet weights"


def _scored(material: Material, row: Row, asked: list[Ways]) -> Finding:
    """Whether the first of each two ways scores more than the second, on every task that judged both."""
    study, found, is_repeated = material.study, [], True
    opened = Study(study, material.results)
    runs = tasks.runs(opened)
    scores = _scores(material) if any(ways.is_repeated for ways in asked) else {}
    for task, ways in [(task.name, ways) for ways in asked for task in study.tasks]:
        ways = Ways(*(tuple(name for name in names if (task, name) in runs) for names in ways))
        if not (ways.first and ways.second):
            continue
        if ways.is_repeated:
            one = difference(*([scores[task][name] for name in names if name in scores[task]] for names in ways))
        else:
            one = tasks.difference(opened, task, ways.first[0], ways.second[0])
        is_repeated &= ways.is_repeated
        span = f" [{one.low:+.3f}, {one.high:+.3f}]" if math.isfinite(one.low) else " (no interval)"
        found.append((f"{task}, {_named(ways.first)} less {_named(ways.second)} {one.estimate:+.3f}{span}", one))
    return _over_pretrainings(row, found, is_repeated, "no task has judged two pretrainings that differ in this alone")


def _scores(material: Material) -> dict[str, dict[str, float]]:
    """For each task, what the task reports of each encoder and snapshot: the mean over heads."""
    table = tasks.reported(tasks.scores_table(Study(material.study, material.results)))
    return {task: dict(zip(part["encoder"], part["mean"], strict=True)) for task, part in table.groupby("task")}


def _named(names: Sequence[str]) -> str:
    titles = [name.replace("@", " after ") + " steps" * ("@" in name) for name in names]
    return titles[0] if len(titles) == 1 else f"mean of {', '.join(titles)}"


def _over_pretrainings(row: Row, found: list[tuple[str, Interval]], is_repeated: bool, lacking: str) -> Finding:
    """The outcome of texts and intervals over pretrainings; unclear where a way was pretrained once."""
    if not found:
        raise Untestable(lacking)
    tests = pd.DataFrame([(one.estimate, one.low, one.high) for _, one in found], columns=["difference", "low", "high"])
    tests["clear"] = (tests["low"] > 0) | (tests["high"] < 0)
    return Finding(
        "; ".join(text for text, _ in found),
        decide(row.rule, tests) if is_repeated else UNCLEAR,
        float(tests["difference"].median()),
        why=[] if is_repeated else [ONCE],
        is_comparison=True,
    )


def decorrelation(material: Material, row: Row) -> Finding:
    """ODCorr (both readings) of DINOv2 less that of DINO, on each task's images."""
    table = of_pretraining.representations_table(Study(material.study, material.results))
    found, is_repeated = [], True
    last = of_pretraining.last(of_pretraining.compared(material.study, table, "method")).dropna(subset="mean")
    for _, comparison in last[last["metric"].isin(ODCORRS)].groupby("base", sort=False):
        for (task, metric), part in comparison.groupby(["task", "metric"]):
            new, old = (part.loc[part["value"] == METHODS[method].title, "mean"].tolist() for method in ("dinov2", "dino"))
            if new and old:
                is_repeated &= min(len(new), len(old)) > 1
                text = f"{task}, {TITLES[metric]} {np.mean(new):.3f} (DINOv2) against {np.mean(old):.3f}"
                found.append((text, difference(new, old)))
    if is_repeated:
        found = [(f"{text} [{one.low:+.3f}, {one.high:+.3f}]", one) for text, one in found]
    return _over_pretrainings(row, found, is_repeated, "no DINO and DINOv2 that are otherwise alike were judged here")


def correlations(material: Material, row: Row) -> Finding:
    """Whether each of ``metrics`` goes with the score on every task as the papers state, p after Holm over all of the row."""
    try:
        scored = representations.tasks_table(Study(material.study, material.results))
    except store.StoreError as error:
        raise Untestable("no task of patches has judged an encoder") from error
    table = representations.correlate_tasks(scored)
    table = table[table["metric"].isin(row.arguments["metrics"]) & table["rho"].notna()]
    if table.empty:
        raise Untestable("fewer than three encoders are judged by a task of patches")
    p = holm(table["p"].astype(float))
    tests = pd.DataFrame({"difference": table["rho"] * table["metric"].map(EXPECTED), "clear": p < ALPHA})
    text = "; ".join(
        f"{one.task}, {TITLES[one.metric]} ρ {one.rho:+.2f}, p {corrected:.2g}"
        for one, corrected in zip(table.itertuples(), p, strict=True)
    )
    why = f"over {int(table['n'].max())} encoders, and many of them may be variants of one recipe"
    return Finding(text, decide(row.rule, tests), why=[why], is_comparison=True)
