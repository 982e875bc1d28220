"""Pretrainings beside one another: which of them form a comparison, how each went, and what its snapshots are worth on tasks.

A comparison is found from the configs: pretrainings that are equal in all but one thing, whatever their names.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.analysis import compare, compare_representation, compare_representation_tasks, compare_tasks
from mfcore.encoders.card import cards
from mfcore.study import pretrained
from mfcore.study.config import Pretraining, Settings, as_dict
from mfcore.study.pretrained import METHODS, in_full

# What the paper varies, one thing at a time, with the figure or table of kaiko 2024 that shows it
VARIED = {
    "start": "What training starts from (kaiko 2024, Fig. 1)",
    "patches.slide_fraction": "Share of the slides (kaiko 2024, Fig. 2, left)",
    "patches.n_distinct": "Number of distinct patches (kaiko 2024, Fig. 2, right)",
    "patches.um_per_px": "Magnifications, one or several",
    "method": "DINO or DINOv2 (kaiko 2024, Fig. 4)",
}
OBJECTIVE = ("centring", "ibot_weight", "koleo_weight")  # what makes a method one, apart from lengths, rates and crops
NO_DIFFERENCE = ("name", "seed", "n_snapshots")  # what training is called, its draws, and what is kept of it
OWN_SLIDES = "the study's own"
DIFFERENCES = ["varied", "task", "metric", "value", "name", "mean", "sd", "base", "difference", "n_runs"]
SCORES = ["name", "value", "task", "metric", "split", "step", "mean", "sd", "n_runs"]


@dataclass(frozen=True)
class Comparison:
    """Pretrainings equal in all but ``varied``, a key of VARIED; the first, of which the study speaks first, is the base.

    values: what each has for it, in words. Several may have the same: other draws, or another learning rate of a method.
    """

    varied: str
    names: tuple[str, ...]
    values: tuple[str, ...]

    @property
    def base(self) -> str:
        """What the others are compared with."""
        return self.names[0]


def comparisons(study: Settings, varied: str | None = None) -> list[Comparison]:
    """All that the study's pretrainings allow, in the order of VARIED; of one thing where ``varied`` names it.

    Methods are compared where all is equal that isn't the method's own: learning rate, schedules, losses, crops' scales.
    """
    found = []
    for key in VARIED if varied is None else [varied]:
        groups: dict[str, list[Pretraining]] = {}
        for which in study.pretraining:
            groups.setdefault(_but_for(which, key), []).append(which)
        for group in groups.values():
            values = [value_of(which, key) for which in group]
            if len(set(values)) > 1:
                found.append(Comparison(key, tuple(which.name for which in group), tuple(values)))
    return found


def _but_for(which: Pretraining, key: str) -> str:
    """All that decides a pretraining, as text, without ``key`` and what only names or keeps it."""
    left_out = {*NO_DIFFERENCE, key}
    if key == "method":
        own = METHODS["dino"].published.keys() - {"n_prototypes"}  # a head of another size is no method's own
        left_out |= {*own, "crops.global_scale", "crops.local_scale"}
    content = {name: value for name, value in _flat(as_dict(in_full(which))).items() if name not in left_out}
    return json.dumps(content, sort_keys=True)


def differing(study: Settings, comparison: Comparison) -> dict[str, dict[str, list]]:
    """In what a comparison's pretrainings differ besides what is varied: by key, of each value the settings it comes with."""
    every = [_flat(as_dict(in_full(study.pretraining_of(name)))) for name in comparison.names]
    found = {}
    for key in every[0]:
        if key not in (*NO_DIFFERENCE, comparison.varied) and any(one[key] != every[0][key] for one in every):
            found[key] = {value: [] for value in comparison.values}
            for value, one in zip(comparison.values, every, strict=True):
                found[key][value] += [one[key]] if one[key] not in found[key][value] else []
    return found


def apart(study: Settings, those: Sequence[Comparison]) -> list[str]:
    """Of each comparison, in words, what tells it from the others of the same thing; "" where it is the only one.

    That is the architecture where it is enough, else every setting in which their bases differ.
    """
    bases = [study.pretraining_of(comparison.base) for comparison in those]
    every = [_flat(as_dict(in_full(base))) for base in bases]
    told = []
    for comparison, base, mine in zip(those, bases, every, strict=True):
        alike = [one for other, one in zip(those, every, strict=True) if other.varied == comparison.varied]
        keys = [
            key
            for key in mine
            if key not in (*NO_DIFFERENCE, comparison.varied) and any(one[key] != mine[key] for one in alike)
        ]
        if sum(one["architecture"] == mine["architecture"] for one in alike) == 1:
            keys = [key for key in keys if key == "architecture"]
        words = [value_of(base, key) if key in VARIED else f"{key} {mine[key]}" for key in keys]
        told.append(", ".join(word.removeprefix("architecture ") for word in words))
    return told


def learnt_from(study: Settings, start: str) -> str:
    """What images the weights of an encoder to start from learnt from, as the study's record or its card says; else empty."""
    record = next((record for record in study.own_encoders if record.name == start), None)
    if record and (record.learnt_from or record.weights):
        return record.learnt_from or ""
    card = cards().get(record.like if record else start)
    return card.learnt_from if card else ""


def departures(which: Pretraining) -> dict[str, object]:
    """What of OBJECTIVE a pretraining has otherwise than its method's authors."""
    here, theirs = in_full(which), METHODS[which.method].published
    return {key: getattr(here, key) for key in OBJECTIVE if getattr(here, key) != theirs[key]}


def _flat(content: Mapping, where: str = "") -> dict[str, object]:
    """A nested mapping with dotted names, down to what isn't one of the config's own parts."""
    flat: dict[str, object] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{key}.") if key in ("patches", "crops") else {f"{where}{key}": value}
    return flat


def value_of(which: Pretraining, key: str) -> str:
    """What a pretraining has for ``key``, a key of VARIED, in words."""
    patches = which.patches
    if key == "start":
        return "random" if which.start == "random" else f"from {which.start}"
    if key == "patches.slide_fraction":
        return f"{100 * patches.slide_fraction:g} % of slides"
    if key == "patches.n_distinct":
        return "every patch new" if patches.n_distinct is None else f"{patches.n_distinct:,} patches"
    if key == "patches.um_per_px":
        return f"{', '.join(f'{value:g}' for value in patches.um_per_px)} µm/px"
    return METHODS[which.method].title


# ---- what was pretrained ----


def runs(study: Settings, results: str | Path) -> dict[str, store.Run]:
    """The finished pretrainings, by name, in the study's order."""
    found = {}
    for which in study.pretraining:
        try:
            found[which.name] = pretrained.find(study, which.name, results)
        except store.StoreError:
            continue
    return found


def missing(study: Settings, results: str | Path) -> pd.DataFrame:
    """Pretrainings and tasks that aren't there, with their reasons: ``what, name, reason``."""
    results = Path(results)
    told = {}
    for file in sorted(results.glob("failures/0[89]_*.json")):
        failure = store.read_json(file)
        parameters = failure["parameters"]
        told[str(failure["stage"])[:2], parameters.get("encoder", parameters.get("task"))] = failure["reason"]
    there = runs(study, results)
    rows = [
        ("pretraining", which.name, told.get(("08", which.name), "not run yet"))
        for which in study.pretraining
        if which.name not in there
    ]
    rows += [("task", task.name, told["09", task.name]) for task in study.tasks if ("09", task.name) in told]
    refused = compare_tasks.missing(study, results)
    failed, lacking = ({name for kind, name, _ in rows if kind == what} for what in ("task", "pretraining"))
    of = refused["encoder"].str.partition("@")[0] if len(refused) else refused["encoder"]
    refused = refused[(refused["reason"] != "not run yet") & ~refused["task"].isin(failed) & ~of.isin(lacking)]
    rows += [("task", f"{row.task}: {row.encoder}", row.reason) for row in refused.itertuples()]
    return pd.DataFrame(rows, columns=["what", "name", "reason"])


def histories(study: Settings, results: str | Path) -> pd.DataFrame:
    """How each finished pretraining went: ``name`` and the columns of its ``history.jsonl``, a row a step that was noted."""
    tables = [
        pd.read_json(run.path("history.jsonl"), lines=True).assign(name=name) for name, run in runs(study, results).items()
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["name", "step", "loss", "rankme"])


def watched(study: Settings, names: Sequence[str]) -> dict[tuple[str, ...], str]:
    """Pretrainings of which RankMe is followed on the same patches, each group with what tells its patches from the others'.

    Slides, settings, seed and place in the stream decide patches (`mfcore.pretraining.source`): those watched lie behind all
    that are learnt from.
    """
    groups: dict[str, list[str]] = {}
    of_group: dict[str, dict[str, str]] = {}
    for name in names:
        which = in_full(study.pretraining_of(name))
        facts = {key: f"{key} {value}" for key, value in as_dict(which.patches).items() if key != "n_distinct"}
        facts |= {key.partition(".")[2]: value_of(which, key) for key in ("patches.slide_fraction", "patches.um_per_px")}
        facts |= {"slides": f"slides of {which.slides}" if which.slides else "the study's slides", "seed": f"seed {which.seed}"}
        facts["first"] = f"from number {max(which.n_steps * which.batch_size, which.patches.n_distinct or 0):,} on"
        key = json.dumps(facts, sort_keys=True)
        groups.setdefault(key, []).append(name)
        of_group[key] = facts
    told = [key for key in next(iter(of_group.values()), {}) if len({facts[key] for facts in of_group.values()}) > 1]
    return {tuple(group): ", ".join(of_group[key][fact] for fact in told) for key, group in groups.items()}


def overview(study: Settings, results: str | Path) -> pd.DataFrame:
    """What was pretrained, on what and how it ended, a row a pretraining of the study.

    Columns: name, method, architecture, start, slides, um_per_px, n_steps, batch_size, n_patches (seen, not distinct),
    seconds, patches_per_second (median), loss, rankme, target_entropy (the last noted), NaN where it isn't there; collapsed:
    why the teacher is taken to have collapsed, "" where it isn't.
    """
    history, finished = histories(study, results), runs(study, results)
    rows = []
    for which in study.pretraining:
        mine = history[history["name"] == which.name]
        row = {
            "name": which.name,
            "method": METHODS[which.method].title,
            "architecture": which.architecture,
            "start": which.start,
            "slides": which.slides or OWN_SLIDES,
            "um_per_px": " / ".join(f"{value:g}" for value in which.patches.um_per_px),
            "n_steps": which.n_steps,
            "batch_size": which.batch_size,
            "n_patches": which.n_steps * which.batch_size,
        }
        ended = {key: _last(mine, key) for key in ("loss", "rankme", "target_entropy", "seconds")}
        rate = float(mine["patches_per_second"].median()) if "patches_per_second" in mine and len(mine) else np.nan
        facts = finished[which.name].record["facts"] if which.name in finished else {}
        rows.append(row | ended | {"patches_per_second": rate, "collapsed": str(facts.get("collapsed") or "")})
    return pd.DataFrame(rows)


def _last(history: pd.DataFrame, column: str) -> float:
    noted = history[column].dropna() if column in history else []
    return float(noted.iloc[-1]) if len(noted) else np.nan


# ---- what they are worth ----


def scores(study: Settings, results: str | Path) -> pd.DataFrame:
    """`compare_tasks.table` of the split that each task reports, with the ``name`` of the encoder that a snapshot is of."""
    table = compare_tasks.reported(compare_tasks.table(study, results))
    return table.assign(name=[encoder.partition("@")[0] for encoder in table["encoder"]])


def representations(study: Settings, results: str | Path) -> pd.DataFrame:
    """RankMe and ODCorr of each task's images as the encoders and snapshots that the study pretrains embed them.

    `compare_representation_tasks.measured`, a row a metric: columns as `over_steps` has them but for ``value``.
    """
    table = compare_representation_tasks.measured(study, results)
    table = table[table["origin"] == compare.HOME_MADE]
    table = table.assign(
        name=[encoder.partition("@")[0] for encoder in table["encoder"]],
        step=[compare_tasks.step_of(study, encoder) for encoder in table["encoder"]],
        split="all",
        sd=np.nan,
        n_runs=1,
    )
    keys = ["name", "task", "split", "step", "sd", "n_runs"]
    long = table.melt(keys, list(compare_representation.TITLES), "metric", "mean")
    return long[[column for column in SCORES if column != "value"]]


def over_steps(comparison: Comparison, table: pd.DataFrame) -> pd.DataFrame:
    """The scores of a comparison's pretrainings after each of their snapshots: columns SCORES; table as `scores` gives it.

    Of tasks that judged two of them or more: one alone is compared with nothing.
    """
    value = dict(zip(comparison.names, comparison.values, strict=True))
    part = table[table["name"].isin(value)]
    part = part[part.groupby(["task", "metric"])["name"].transform("nunique") > 1] if len(part) else part
    return part.assign(value=part["name"].map(value))[SCORES].reset_index(drop=True)


def last(table: pd.DataFrame) -> pd.DataFrame:
    """Of `over_steps`, the last step of each pretraining on each task, by each metric."""
    if not len(table):
        return table
    return table.loc[table.groupby(["task", "metric", "name"], sort=False)["step"].idxmax()].reset_index(drop=True)


def parts(study: Settings, table: pd.DataFrame, varied: Sequence[str]) -> list[tuple[Comparison, pd.DataFrame]]:
    """The comparisons of some things, each with its rows of `over_steps`; ``table``: of `scores` or `representations`."""
    return [(comparison, over_steps(comparison, table)) for key in varied for comparison in comparisons(study, key)]


def joined(those: Sequence[tuple[Comparison, pd.DataFrame]]) -> pd.DataFrame:
    """The tables of `parts` as one, with a column ``varied``: what a figure shows."""
    tables = [table.assign(varied=comparison.varied) for comparison, table in those]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*SCORES, "varied"])


def differences(comparison: Comparison, table: pd.DataFrame) -> pd.DataFrame:
    """What each pretraining scores more than the base after its last step, a row a task, metric and pretraining.

    table: as `over_steps` gives it. Columns: varied, task, metric, value, name, mean, sd, base, difference, n_runs.
    """
    keys, ended = ["task", "metric"], last(table)
    base = ended.loc[ended["name"] == comparison.base, [*keys, "mean"]]
    rows = ended[ended["name"] != comparison.base].merge(base, "left", keys, suffixes=("", "_of_base"))
    difference = (rows["mean"] - rows["mean_of_base"]).round(12) + 0.0  # what rounding alone makes is none, nor is it below 0
    return rows.assign(varied=comparison.varied, base=comparison.base, difference=difference)[DIFFERENCES]


def all_differences(study: Settings, results: str | Path, table: pd.DataFrame) -> pd.DataFrame:
    """`differences` of every comparison of the study, with ``low, high``; ``table`` as `scores` gives it.

    These are the 95 % interval over the slides, patients or items tested (`compare_tasks.difference`): what another pretraining
    with other draws would give is not in it. NaN where it can't be computed.
    """
    tables = [differences(comparison, part) for comparison, part in parts(study, table, list(VARIED))]
    rows = pd.concat([table for table in tables if len(table)] or [pd.DataFrame(columns=DIFFERENCES)], ignore_index=True)
    bounds = [_bounds(study, results, row) for row in rows.to_dict("records")]
    return rows.assign(low=[low for low, _ in bounds], high=[high for _, high in bounds])


def _bounds(study: Settings, results: str | Path, row: dict) -> tuple[float, float]:
    if not np.isfinite(row["difference"]):
        return np.nan, np.nan
    found = compare_tasks.difference(study, results, row["task"], row["name"], row["base"])
    return found.low, found.high


def control_of(study: Settings, name: str) -> str:
    """The encoder of the study with the same network and no training at all, which a pretraining must beat; "" without one."""
    which = study.pretraining_of(name)
    for own in study.own_encoders:
        if own.weights == "random" and (own.architecture, own.arguments or {}) == (which.architecture, which.arguments):
            return own.name
    return ""


def controls(study: Settings, table: pd.DataFrame) -> pd.DataFrame:
    """What each pretraining's control scores: ``of, name, task, metric, mean``; ``table`` as `scores` gives it."""
    found = pd.DataFrame([(which.name, control_of(study, which.name)) for which in study.pretraining], columns=["of", "name"])
    return found.merge(table[["name", "task", "metric", "mean"]], on="name")
