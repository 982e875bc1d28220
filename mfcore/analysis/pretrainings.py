"""What a study pretrains: how each pretraining goes, which of them form a comparison, and what their snapshots are worth.

A comparison is found from the configs: pretrainings that are equal in all but one thing, whatever their names.
"""

import json
import math
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.transforms import offset_copy

from mfcore import store
from mfcore.analysis import pretraining_run, representations, tasks
from mfcore.analysis.exhibit import COLOURS, MARKERS, WIDTH_INCH, Exhibit, finished, in_style, of_what, widely
from mfcore.encoders.card import cards
from mfcore.study.config import Pretraining, Settings, as_dict
from mfcore.study.pretrained import METHODS, in_full
from mfcore.study.study import Study

SECTION = "Pretraining"
# What the paper varies, one thing at a time, with the figure or table of kaiko 2024 that shows it
VARIED = {
    "start": "What training starts from (kaiko 2024, Fig. 1)",
    "patches.slide_fraction": "Share of the slides (kaiko 2024, Fig. 2, left)",
    "patches.n_distinct": "Number of distinct patches (kaiko 2024, Fig. 2, right)",
    "patches.um_per_px": "Magnifications, one or several",
    "method": "DINO or DINOv2 (kaiko 2024, Fig. 4)",
}
NO_DIFFERENCE = ("name", "seed", "n_snapshots")  # what training is called, its draws, and what is kept of it
OWN_SLIDES = "the study's own"
SCORES = ["name", "task", "metric", "split", "step", "mean", "sd", "n_runs"]
COMPARED = ["varied", "base", "value", *SCORES]
NOTED = {"loss": "loss", "target_entropy": "entropy of the mean target (nats)", "rankme": "RankMe of the teacher"}
MAX_LINES, N_ACROSS = 9, 3  # in colour in a panel; panels in a row


# ---- comparisons ----


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


def comparisons(settings: Settings, *varied: str) -> list[Comparison]:
    """All that the study's pretrainings allow of some keys of VARIED, of all where none is named.

    Methods are compared where all is equal that isn't the method's own: learning rate, schedules, losses, crops' scales.
    """
    found = []
    for key in varied or VARIED:
        groups: dict[str, list[Pretraining]] = {}
        for one in settings.pretraining:
            groups.setdefault(_but_for(one, key), []).append(one)
        for group in groups.values():
            values = tuple(value_of(one, key) for one in group)
            if len(set(values)) > 1:
                found.append(Comparison(key, tuple(one.name for one in group), values))
    return found


def _but_for(one: Pretraining, key: str) -> str:
    """All that decides a pretraining, as text, without ``key`` and what only names or keeps it."""
    left_out = {*NO_DIFFERENCE, key}
    if key == "method":
        own = METHODS["dino"].published.keys() - {"n_prototypes"}  # a head of another size is no method's own
        left_out |= {*own, "crops.global_scale", "crops.local_scale"}
    content = {name: value for name, value in pretraining_run.flattened(as_dict(in_full(one))).items() if name not in left_out}
    return json.dumps(content, sort_keys=True)


def value_of(one: Pretraining, key: str) -> str:
    """What a pretraining has for ``key``, a key of VARIED, in words."""
    patches = one.patches
    if key == "start":
        return "random" if one.start == "random" else f"from {one.start}"
    if key == "patches.slide_fraction":
        return f"{100 * patches.slide_fraction:g} % of slides"
    if key == "patches.n_distinct":
        return "every patch new" if patches.n_distinct is None else f"{patches.n_distinct:,} patches"
    if key == "patches.um_per_px":
        return f"{', '.join(f'{value:g}' for value in patches.um_per_px)} µm/px"
    return METHODS[one.method].title


def learnt_from(settings: Settings, start: str) -> str:
    """What images the weights of an encoder to start from learnt from, as the study's record or its card says; else empty."""
    record = next((record for record in settings.own_encoders if record.name == start), None)
    if record and (record.learnt_from or record.weights):
        return record.learnt_from or ""
    card = cards().get(record.like if record else start)
    return card.learnt_from if card else ""


# ---- what was pretrained ----


def runs(study: Study) -> dict[str, store.Run]:
    """The finished pretrainings, by name, in the study's order."""
    found = {}
    for one in study.settings.pretraining:
        try:
            found[one.name] = study.pretraining(one.name)
        except store.StoreError:
            continue
    return found


def missing_table(study: Study) -> pd.DataFrame:
    """Pretrainings and tasks that aren't there, with their reasons: ``what, name, reason``."""
    reasons, finished = {}, runs(study)
    for file in sorted(study.folder.glob("failures/0[89]_*.json")):
        failure = store.read_json(file)
        parameters = failure["parameters"]
        reasons[str(failure["stage"])[:2], parameters.get("encoder", parameters.get("task"))] = failure["reason"]
    lacking = [one.name for one in study.settings.pretraining if one.name not in finished]
    failed = [task.name for task in study.settings.tasks if ("09", task.name) in reasons]
    rows = [("pretraining", name, reasons.get(("08", name), "not run yet")) for name in lacking]
    rows += [("task", name, reasons["09", name]) for name in failed]
    for row in tasks.missing_table(study).itertuples():
        if row.reason != "not run yet" and row.task not in failed and row.encoder.partition("@")[0] not in lacking:
            rows.append(("task", f"{row.task}: {row.encoder}", row.reason))
    return pd.DataFrame(rows, columns=["what", "name", "reason"])


def histories_table(study: Study) -> pd.DataFrame:
    """How each finished pretraining went: `pretraining_run.read_history` with the ``name``."""
    tables = [pretraining_run.read_history(run).assign(name=name) for name, run in runs(study).items()]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["name", "step", "loss", "rankme"])


def overview_table(study: Study) -> pd.DataFrame:
    """What was pretrained, on what and how it ended, a row a pretraining of the study.

    Columns: name, method, architecture, start, slides, um_per_px, n_steps, batch_size, n_patches (seen, not
    distinct), loss, rankme, target_entropy, seconds (the last noted), patches_per_second (median), NaN where it
    isn't there; collapsed: why the teacher is taken to have collapsed, "" where it isn't.
    """
    finished, rows = runs(study), []
    ended = ["loss", "rankme", "target_entropy", "seconds", "patches_per_second"]
    for one in study.settings.pretraining:
        row = {key: getattr(one, key) for key in ("name", "method", "architecture", "start", "slides")}
        row |= {"method": METHODS[one.method].title, "slides": one.slides or OWN_SLIDES}
        row["um_per_px"] = " / ".join(f"{value:g}" for value in one.patches.um_per_px)
        row |= {"n_steps": one.n_steps, "batch_size": one.batch_size, "n_patches": one.n_steps * one.batch_size}
        row |= dict.fromkeys(ended, math.nan) | {"collapsed": ""}
        if one.name in finished:
            history = pretraining_run.read_history(finished[one.name])
            row |= history.ffill().iloc[-1].reindex(ended).to_dict()
            row["patches_per_second"] = history["patches_per_second"].median()
            row["collapsed"] = str(finished[one.name].record["facts"].get("collapsed") or "")
        rows.append(row)
    return pd.DataFrame(rows)


# ---- what they are worth ----


def scores_table(study: Study) -> pd.DataFrame:
    """`tasks.scores_table` of the split that each task reports, with the ``name`` of the encoder that a snapshot is of."""
    table = tasks.reported(tasks.scores_table(study))
    return table.assign(name=[encoder.partition("@")[0] for encoder in table["encoder"]])


def representations_table(study: Study) -> pd.DataFrame:
    """RankMe and ODCorr of each task's images as the encoders and snapshots that the study pretrains embed them: SCORES."""
    table = representations.judged_table(study)
    table = table[table["origin"] == representations.HOME_MADE]
    table = table.assign(
        name=[encoder.partition("@")[0] for encoder in table["encoder"]],
        step=[tasks.step_of(study.settings, encoder) for encoder in table["encoder"]],
        split="all",
        sd=np.nan,
        n_runs=1,
    )
    return table.melt(["name", "task", "split", "step", "sd", "n_runs"], list(representations.TITLES), "metric", "mean")[SCORES]


def compared(settings: Settings, table: pd.DataFrame, *varied: str) -> pd.DataFrame:
    """Rows of `scores_table` or `representations_table` of all comparisons of some keys of VARIED: columns COMPARED.

    Of tasks that judged two pretrainings of a comparison or more: one alone is compared with nothing.
    """
    tables = [pd.DataFrame(columns=COMPARED)]
    for one in comparisons(settings, *varied):
        value = dict(zip(one.names, one.values, strict=True))
        part = table[table["name"].isin(value)]
        if len(part):
            part = part[part.groupby(["task", "metric"])["name"].transform("nunique") > 1]
            tables.append(part.assign(value=part["name"].map(value), varied=one.varied, base=one.base)[COMPARED])
    return pd.concat([part for part in tables if len(part)] or tables, ignore_index=True)


def last(table: pd.DataFrame) -> pd.DataFrame:
    """Of `compared`, the last step of each pretraining on each task, by each metric."""
    keys = ["varied", "base", "task", "metric", "name"]
    return table.loc[table.groupby(keys, sort=False)["step"].idxmax()].reset_index(drop=True) if len(table) else table


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """The `last` rows of `compared` without the bases, with the ``difference`` of each score from its base's."""
    keys, ended = ["varied", "base", "task", "metric"], last(table)
    base = ended.loc[ended["name"] == ended["base"], [*keys, "mean"]]
    rows = ended[ended["name"] != ended["base"]].merge(base, "left", keys, suffixes=("", "_of_base"))
    return rows.assign(difference=(rows["mean"] - rows.pop("mean_of_base")).astype(float).round(12) + 0.0)  # no rounding, no -0


def differences_table(study: Study) -> pd.DataFrame:
    """`differences` of every comparison of the study in scores on tasks, with ``low, high``.

    These are the 95 % interval over the slides, patients or items tested (`tasks.difference`): what another
    pretraining with other draws would give is not in it. NaN where it can't be computed.
    """
    rows, bounds = differences(compared(study.settings, scores_table(study))), []
    for row in rows.itertuples():
        interval = tasks.difference(study, row.task, row.name, row.base) if math.isfinite(row.difference) else None
        bounds.append((interval.low, interval.high) if interval else (math.nan, math.nan))
    rows[["low", "high"]] = np.array(bounds, float).reshape(-1, 2)
    return rows.drop(columns=["split", "step"])


def controls(settings: Settings, table: pd.DataFrame) -> pd.DataFrame:
    """What each pretraining's control (`tasks.control_of`) scores: ``of, name, task, metric, mean``; table: `scores_table`."""
    pairs = [(one.name, tasks.control_of(settings, one.name)) for one in settings.pretraining]
    return pd.DataFrame(pairs, columns=["of", "name"]).merge(table[["name", "task", "metric", "mean"]], on="name")


# ---- exhibits of all pretrainings ----


def missing(study: Study) -> Exhibit:
    """Pretrainings and tasks that aren't there, and why."""
    table = missing_table(study)
    caption = f"{len(table) or 'None'} of the study's pretrainings and tasks are missing ({of_what(study.settings)})."
    return Exhibit("11_missing", "Missing", caption, table, None, SECTION)


def overview(study: Study) -> Exhibit:
    """What was pretrained, on what and how it ended."""
    table = overview_table(study)
    caption = f"The study's pretrainings, and what was noted last of each ({of_what(study.settings)})."
    return Exhibit("11_overview", "What was pretrained", caption, table, None, SECTION)


@in_style
def histories(study: Study) -> Exhibit:
    """Loss, entropy of the mean target and RankMe over steps, a line a pretraining; of many, some are grey."""
    table, heading = histories_table(study), "How pretraining went"
    names = list(dict.fromkeys(table["name"]))
    if not names:
        caption = f"No pretraining of the study is finished ({of_what(study.settings)})."
        return Exhibit("11_histories", heading, caption, table, None, SECTION)
    bases = {one.base for one in comparisons(study.settings)}
    main = names
    if len(names) > MAX_LINES:
        main = [name for name in names if name in study.settings.encoders or name in bases][:MAX_LINES]
    noted = [key for key in NOTED if key in table and table[key].notna().any()]
    figure, axes = plt.subplots(1, len(noted), squeeze=False, figsize=(WIDTH_INCH, 3.4))
    for axis, key in zip(axes[0], noted, strict=True):
        for name in sorted(names, key=main.__contains__):
            part = table[(table["name"] == name) & table[key].notna()]
            style = {"label": name} if name in main else {"label": "others", "color": "0.75", "zorder": 1}
            axis.plot(part["step"], part[key], linewidth=1.2, **style)
        axis.set(xlabel="step", ylabel=NOTED[key])
        if key == "rankme":  # of networks of different width
            widely(axis, "y", table[key])
    figure = finished(study, figure, f"n = {len(names)} pretrainings", 4)
    caption = (
        f"Loss, entropy of the mean target and RankMe of the teacher by step ({of_what(study.settings)}). A mean target whose "
        "entropy falls to 0, or a RankMe that falls towards 1, is a collapse. Losses of different methods don't compare, nor "
        "does RankMe of patches of other slides, resolutions or seeds."
    )
    return Exhibit("11_histories", heading, caption, table, figure, SECTION)


def starts(study: Study) -> Exhibit:
    """Fig. 1 of kaiko 2024: random weights, ImageNet's, or another encoder's."""
    return _over_steps(study, "11_start", scores_table(study), "start")


def amounts(study: Study) -> Exhibit:
    """Fig. 2 of kaiko 2024: how many slides, how many patches."""
    return _over_steps(study, "11_data", scores_table(study), "patches.slide_fraction", "patches.n_distinct")


def magnifications(study: Study) -> Exhibit:
    """One magnification or several."""
    return _over_steps(study, "11_magnifications", scores_table(study), "patches.um_per_px")


def methods(study: Study) -> Exhibit:
    """Fig. 4 of kaiko 2024: DINO or DINOv2, in scores and in RankMe and ODCorr of the tasks' images."""
    table = pd.concat([representations_table(study), scores_table(study)], ignore_index=True)
    return _over_steps(study, "11_methods", table, "method")


@in_style
def _over_steps(study: Study, name: str, table: pd.DataFrame, *varied: str) -> Exhibit:
    """What snapshots score by step, a panel a comparison, task and metric, a line a pretraining; dotted: the control."""
    heading, rows = "; ".join(VARIED[key] for key in varied), compared(study.settings, table, *varied)
    panels = list(rows.groupby(["varied", "base", "task", "metric"], sort=False))
    if not panels:
        caption = f"No two judged pretrainings of the study differ in this alone ({of_what(study.settings)})."
        return Exhibit(name, heading, caption, rows, None, SECTION)
    untrained = controls(study.settings, scores_table(study)).set_index(["of", "task", "metric"])["mean"]
    looks = dict(zip(dict.fromkeys(rows["name"]), zip(COLOURS * 9, MARKERS * 9, strict=False), strict=False))
    n_columns = min(N_ACROSS, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure, axes = plt.subplots(n_rows, n_columns, squeeze=False, figsize=(WIDTH_INCH, 2.4 * n_rows + 1.1))
    for axis, ((_, base, task, metric), part) in zip(axes.flat, panels, strict=False):
        for i, ((pretraining, value), line) in enumerate(
            part.sort_values("step", kind="stable").groupby(["name", "value"], sort=False)
        ):
            colour, marker = looks[pretraining]
            style = {"color": colour, "marker": marker, "markersize": 4, "capsize": 2, "linewidth": 1.2}
            style["transform"] = offset_copy(axis.transData, figure, x=4 * i, units="points")  # bars at one step stay apart
            axis.errorbar(line["step"], line["mean"], line["sd"], label=f"{value} ({pretraining})", **style)
            for sign in (-1, 1):  # what is drawn aside sets no limits
                axis.update_datalim(np.column_stack([line["step"], line["mean"] + sign * line["sd"].fillna(0)]))
        axis.margins(x=0.2)  # room for the last step's bars
        axis.autoscale_view()
        if (base, task, metric) in untrained:
            axis.axhline(untrained[base, task, metric], color="0.45", linestyle=":", label="untrained network")
        axis.set(xlabel="step", ylabel=(tasks.TITLES | representations.TITLES)[metric])
        axis.set_xlim(left=0)
        axis.set_title(f"{task}\nbase: {base}", fontsize=7.5)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    figure = finished(study, figure, heading)
    ended = differences(rows[rows["metric"].isin(tasks.TITLES)]).dropna(subset="difference")
    finding = ""
    if len(ended):
        most = ended.loc[ended["difference"].abs().idxmax()]
        finding = (
            f" At the end {most['name']} is furthest from its base {most['base']}: {most['difference']:+.3f} ({most['task']})."
        )
    caption = (
        f"Scores of snapshots by step, a line a pretraining, dotted the same network untrained ({of_what(study.settings)}). "
        "Points and bars: mean and SD over heads trained from other seeds on one encoder, so that what another draw of patches "
        f"would give is not in them.{finding}"
    )
    return Exhibit(name, heading, caption, rows, figure, SECTION)


def against_base(study: Study) -> Exhibit:
    """By how much each pretraining's last score differs from its base's, of every comparison, with an interval."""
    table = differences_table(study)
    caption = (
        f"Score after the last step less that of the base, which differs in one thing only ({of_what(study.settings)}). low, "
        "high: 95 % bootstrap over the slides, patients or items tested; another draw of the pretraining is not in it."
    )
    return Exhibit("11_differences", "Differences from the base", caption, table, None, SECTION)
