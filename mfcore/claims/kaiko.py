"""What kaiko 2024 state about pretraining and representations: pretrainings that differ in one
thing, on each task.
"""

import math
from dataclasses import replace
from itertools import chain, product

import pandas as pd

from mfcore.analysis.encoders import (
    comparisons,
    pretrainings as of_pretraining,
    representations,
    tasks,
)
from mfcore.analysis.encoders.representations import EXPECTED, TITLES
from mfcore.claims.material import Material, Untestable
from mfcore.claims.rules import ALPHA, UNCLEAR, Finding, describe
from mfcore.encoders.card import cards
from mfcore.measures.statistics import MIN_FOLDS, Test, holm, p_value
from mfcore.study import pretrained
from mfcore.study.config import Settings
from mfcore.study.pretrained import METHODS, steps_of

ODCORRS = ("odcorr_abs", "odcorr_sq")
ONCE = "pretrained once or twice for one of the values, so other draws of the training may differ"
AMOUNTS = {
    "start": lambda one: one.start != "random",
    "patches.um_per_px": lambda one: len(set(one.patches.um_per_px)),
    "patches.slide_fraction": lambda one: one.patches.slide_fraction,
    "patches.n_distinct": lambda one: one.patches.n_distinct or math.inf,
}
# Encoders pretrained in one way and in another, all else but their draws equal
Ways = tuple[list[str], list[str]]


def pretrainings(material: Material, varied: list[str]) -> Finding:
    """Whether the most of what is ``varied`` scores more than less of it, on each task of both."""
    return _on_tasks(material, [ways for key in varied for ways in _ways(material.settings, key)])


def starts(material: Material) -> Finding:
    """Starts from ImageNet against random ones after the first snapshot; other starts stand in."""
    settings, from_imagenet, others, barred, assumed = material.settings, [], [], [], []
    for ways in _ways(settings, "start"):
        every = [settings.pretraining_of(name) for name in chain(*ways)]
        steps = set.intersection(*(set(steps_of(one)) - {one.n_steps} for one in every))
        if not steps:  # no snapshot on the way that all of them kept
            continue
        snapshots = [[f"{name}@{min(steps)}" for name in way] for way in ways]
        start, images = every[0].start, learnt_from(settings, every[0].start)
        if images and not images.startswith("ImageNet"):
            others.append(snapshots)
            why = f"training starts from {start}, which has learnt from {images}, not from ImageNet"
            barred.append(why)
            continue
        from_imagenet.append(snapshots)
        if not images:
            why = f"the study does not say what {start} has learnt from, so ImageNet is assumed"
            assumed.append(why)
    finding = _on_tasks(material, from_imagenet or others)
    return replace(finding, barred=[] if from_imagenet else barred, why=assumed + finding.why)


def learnt_from(settings: Settings, start: str) -> str:
    """What images a start's weights learnt from, as the study or a card says; else ""."""
    if pretrained.is_of(settings, start):
        return "this study's slides"
    record = {one.name: one for one in settings.own_encoders}.get(start)
    if record and (record.learnt_from or record.weights):
        return record.learnt_from or ""
    card = cards().get(record.like if record else start)
    if card is None:
        return ""
    return "slides" if card.learnt_from_slides else card.learnt_from


def decorrelation(material: Material) -> Finding:
    """ODCorr (both readings) of DINOv2 less that of DINO, on each task's images."""
    settings, tests = material.settings, []
    table = of_pretraining.representations_table(material.study)
    table = comparisons.last(settings, comparisons.compared(settings, table, "method"))
    table = table[table["metric"].isin(ODCORRS) & table["mean"].notna()]
    for (_, task, metric), part in table.groupby(["base", "task", "metric"], sort=False):
        by_method = {title: of["mean"] for title, of in part.set_index("name").groupby("value")}
        if len(by_method) == 2:
            new, old = (by_method[METHODS[name].title] for name in ("dinov2", "dino"))
            name = f"{task}, {TITLES[metric]} {new.mean():.3f} (DINOv2) against {old.mean():.3f}"
            tests.append((name, comparisons.over_seeds(settings, new, old)))
    return _over_pretrainings(tests, "no DINO and DINOv2 that are otherwise alike were judged here")


def correlations(material: Material, metrics: list[str], papers: tuple[str, ...] = ()) -> Finding:
    """Whether each of ``metrics`` goes with the score on every task as the papers state, p after
    Holm over all of them; other tasks stand in where none of ``papers``, if any, has scores.
    """
    table = representations.correlate_tasks(representations.tasks_table(material.study))
    table = table[table["metric"].isin(metrics) & table["rho"].notna()]
    is_theirs, barred = table["task"].isin(papers), []
    if is_theirs.any():
        table = table[is_theirs]
    elif papers:
        barred = [f"no scores on {', '.join(papers)}, which are the paper's tasks"]
    if table.empty:
        raise Untestable("fewer than three encoders are judged by a task of patches")
    p = holm(table["p"].astype(float))
    tests = pd.DataFrame({"estimate": table["rho"] * table["metric"].map(EXPECTED)})
    text = "; ".join(
        f"{one.task}, {TITLES[one.metric]} ρ {one.rho:+.2f}, {p_value(one.p)}"
        for one in table.assign(p=p).itertuples()
    )
    why = f"over {int(table['n'].max())} encoders, and many of them may be variants of one recipe"
    tests = tests.assign(clear=p < ALPHA)
    return Finding(text, value=tests, barred=barred, why=[why], is_comparison=True)


def _ways(settings: Settings, varied: str) -> list[Ways]:
    """In each comparison of ``varied``, the pretrainings with the most of it against those with
    each smaller amount.
    """
    ways, table = [], comparisons.comparisons(settings, varied)
    table["amount"] = [AMOUNTS[varied](settings.pretraining_of(name)) for name in table["name"]]
    for _, part in table.groupby("base", sort=False):
        groups = part.groupby(["amount", "value"], sort=False)["name"].agg(list)
        most = part["amount"].max()
        ways += [
            (names, others)
            for ((amount, _), names), ((less, _), others) in product(groups.items(), repeat=2)
            if less < amount == most
        ]
    return ways


def _on_tasks(material: Material, asked: list[Ways]) -> Finding:
    """Whether the first of each two ways scores more than the second, on every task that judged
    both.
    """
    study, settings, tests = material.study, material.settings, []
    runs, table = tasks.runs(study), tasks.reported(tasks.scores_table(study))
    scores = table.set_index(["task", "encoder"])["mean"]
    for ways, task in product(asked, [task.name for task in settings.tasks]):
        first, second = ([name for name in way if (task, name) in runs] for way in ways)
        if not (first and second):
            continue
        if len(first) == len(second) == 1:
            one = tasks.difference(study, task, first[0], second[0])
            test = Test(replace(one, n=1), math.nan)
        else:
            test = comparisons.over_seeds(settings, scores[task][first], scores[task][second])
        tests.append((f"{task}, {_named(first)} less {_named(second)}", test))
    return _over_pretrainings(
        tests, "no task has judged two pretrainings that differ in this alone"
    )


def _named(seeds: list[str]) -> str:
    return seeds[0] + f" ({len(seeds)} seeds)" * (len(seeds) > 1)


def _over_pretrainings(tests: list[tuple[str, Test]], lacking: str) -> Finding:
    """The finding of named tests over seeds, p after Holm; unclear with fewer than three seeds."""
    if not tests:
        raise Untestable(lacking)
    rows = [{"name": name, "p": test.p, **vars(test.interval)} for name, test in tests]
    table = pd.DataFrame(rows).assign(drawn="")
    table["p_holm"] = holm(table["p"].astype(float))
    table["clear"] = table["p_holm"] < ALPHA
    is_repeated = (table["n"] >= MIN_FOLDS).all()
    return Finding(
        "; ".join(describe(test) for _, test in table.iterrows()),
        UNCLEAR,
        float(table["estimate"].median()),
        value=table if is_repeated else None,
        why=[] if is_repeated else [ONCE],
        is_comparison=True,
    )
