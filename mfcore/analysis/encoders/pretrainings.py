"""What a study pretrains: how each pretraining goes, and what each is worth beside others."""

import contextlib

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from mfcore import store
from mfcore.analysis.encoders import pretraining_run, representations, tasks
from mfcore.analysis.encoders.comparisons import (
    PANEL,
    SCORES,
    VARIED,
    by_way,
    compared,
    differences,
)
from mfcore.analysis.exhibit import (
    MARKERS,
    Exhibit,
    colours,
    finished,
    in_style,
    of_what,
    share_name,
    widely,
)
from mfcore.analysis.scores import once
from mfcore.study import tasks as study_tasks
from mfcore.study.config import as_dict
from mfcore.study.pretrained import METHODS, first_seeds
from mfcore.study.study import Study

SECTION = "Pretraining"
OVERVIEW = [
    "name", "method", "architecture", "start", "seed", "slides", "um_per_px", "n_steps",
    "batch_size", "n_patches",
]  # fmt: skip
NOTED = {
    "loss": "loss",
    "target_entropy": "entropy, mean target (nats)",
    "rankme": "RankMe of the teacher",
}


# ---- what was pretrained ----


@once
def runs(study: Study) -> dict[str, store.Run]:
    """The finished pretrainings, by name, in the study's order."""
    trained = {}
    for one in study.settings.pretraining:
        with contextlib.suppress(store.StoreError):
            trained[one.name] = study.pretraining(one.name)
    return trained


def missing_table(study: Study) -> pd.DataFrame:
    """Pretrainings and tasks that aren't there, with their reasons: ``what, name, reason``."""
    failed = [store.read_json(file) for file in study.folder.glob("failures/08_*.json")]
    reasons = {one["parameters"]["encoder"]: one["reason"] for one in failed}
    names = [one.name for one in study.settings.pretraining]
    lacking = [name for name in names if name not in runs(study)]
    rows = [("pretraining", name, reasons.get(name, "not run yet")) for name in lacking]
    for task in study.settings.tasks:
        refusals = study_tasks.refusals(study.folder, task.name)
        for encoder in study_tasks.encoders_of(study.settings, task):
            is_judged = (task.name, encoder) in tasks.runs(study)
            if encoder in refusals and not is_judged and encoder.partition("@")[0] not in lacking:
                rows.append(("task", f"{task.name}: {encoder}", refusals[encoder]))
    return pd.DataFrame(rows, columns=["what", "name", "reason"])


def histories_table(study: Study) -> pd.DataFrame:
    """How each finished pretraining went: `pretraining_run.read_history` with the ``name``."""
    tables = [pd.DataFrame(columns=["name", "step", *NOTED])]
    for name, run in runs(study).items():
        tables.append(pretraining_run.read_history(run).assign(name=name))
    return pd.concat(tables[1:] or tables, ignore_index=True)


def overview_table(study: Study) -> pd.DataFrame:
    """What was pretrained, on what and how it ended, a row a pretraining of the study.

    Columns: name, method, architecture, start, seed, slides, um_per_px, n_steps, batch_size,
    n_patches (seen, not distinct), loss, rankme, target_entropy, seconds (the last noted),
    patches_per_second (median), NaN where it isn't there; collapsed: why the teacher is taken to
    have collapsed, "" where it isn't.
    """
    rows = [
        as_dict(one)
        | {
            "method": METHODS[one.method].title,
            "slides": one.slides or "the study's own",
            "um_per_px": " / ".join(f"{value:g}" for value in one.patches.um_per_px),
            "n_patches": one.n_steps * one.batch_size,
        }
        for one in study.settings.pretraining
    ]
    histories = histories_table(study)
    ended = ["loss", "rankme", "target_entropy", "seconds", "patches_per_second"]
    groups = histories.reindex(columns=["name", *ended]).groupby("name")
    last = groups.last().assign(patches_per_second=groups["patches_per_second"].median())
    why = {name: run.record["facts"].get("collapsed") or "" for name, run in runs(study).items()}
    table = pd.DataFrame(rows, columns=OVERVIEW).join(last, on="name")
    return table.assign(collapsed=table["name"].map(why).fillna("").astype(str))


# ---- what they are worth ----


def scores_table(study: Study) -> pd.DataFrame:
    """`tasks.scores_table` of the reported split; ``name``: the encoder, or a snapshot's."""
    table = tasks.reported(tasks.scores_table(study))
    return table.assign(name=_names(table))


def representations_table(study: Study) -> pd.DataFrame:
    """RankMe and ODCorr of each task's images by the study's own pretrainings: SCORES."""
    table = representations.judged_table(study)
    table = table[table["origin"] == representations.HOME_MADE]
    step = [tasks.step_of(study.settings, encoder) for encoder in table["encoder"]]
    table = table.assign(name=_names(table), step=step, split="all", sd=np.nan, n_runs=1)
    kept = [name for name in SCORES if name not in ("metric", "mean")]
    return table.melt(kept, list(representations.TITLES), "metric", "mean")[SCORES]


def _names(table: pd.DataFrame) -> list[str]:
    """The encoder of each row, also of its snapshots."""
    return [encoder.partition("@")[0] for encoder in table["encoder"]]


def differences_table(study: Study) -> pd.DataFrame:
    """`comparisons.differences` of every comparison of the study in scores on tasks.

    Of one seed each, ``low, high`` is the 95 % interval over the slides, patients or items tested
    (`tasks.difference`); what another pretraining with other draws would give is not in it. NaN
    where it isn't known.
    """
    rows = differences(study.settings, compared(study.settings, scores_table(study)))
    is_single = (rows[["n_seeds", "n_seeds_of_base"]] == 1).all(axis=1)
    for at, row in rows[is_single].iterrows():
        span = tasks.difference(study, row["task"], row["name"], row["base"])
        rows.loc[at, ["low", "high"]] = span.low, span.high
    return rows


# ---- exhibits of all pretrainings ----


def missing(study: Study) -> Exhibit:
    """Pretrainings and tasks that aren't there, and why."""
    table = missing_table(study)
    n = len(table) or "None"
    caption = f"{n} of the study's pretrainings and tasks are missing ({of_what(study.settings)})."
    return Exhibit("11_missing", "Missing", caption, table, None, SECTION)


def overview(study: Study) -> Exhibit:
    """What was pretrained, on what and how it ended."""
    table = overview_table(study)
    caption = (
        f"The study's pretrainings, and what was noted last of each ({of_what(study.settings)})."
    )
    return Exhibit("11_overview", "What was pretrained", caption, table, None, SECTION)


@in_style
def histories(study: Study) -> Exhibit:
    """Loss, entropy of the mean target and RankMe over steps, a line a way to pretrain."""
    table, title = histories_table(study), "How pretraining went"
    of, n = of_what(study.settings), table["name"].nunique()
    if not n:
        caption = f"No pretraining of the study is finished ({of})."
        return Exhibit("11_histories", title, caption, table, None, SECTION)
    caption = (
        f"Loss, entropy of the mean target and RankMe of the teacher by step ({of}): lines are "
        "means over seeds, bands go from the lowest to the highest. A mean target whose entropy "
        "falls to 0, or a RankMe that falls towards 1, is a collapse. Losses of different methods "
        "don't compare, nor does RankMe of patches of other slides, resolutions or seeds."
    )
    ways = table.assign(name=table["name"].map(first_seeds(study.settings)))
    noted = ways.melt(["name", "step"], list(NOTED), "noted").dropna()
    names = list(ways["name"].unique())
    grid = sns.relplot(
        noted, kind="line", errorbar=("pi", 100), x="step", y="value", hue="name", style="name",
        hue_order=names, style_order=names, palette=colours(len(names)), col="noted",
        height=3.6, aspect=0.7, linewidth=1.2, facet_kws={"sharey": False},
    )  # fmt: skip
    share_name(grid, names, "others")
    for key, axis in grid.axes_dict.items():
        axis.set(title="", ylabel=NOTED[key])
    widely(grid.axes_dict["rankme"], "y", table["rankme"])  # of networks of different width
    figure = finished(study, grid.figure, f"n = {n} pretrainings", 4)
    return Exhibit("11_histories", title, caption, table, figure, SECTION)


def starts(study: Study) -> Exhibit:
    """Fig. 1 of kaiko 2024: random weights, ImageNet's, or another encoder's."""
    return _over_steps(study, "11_start", scores_table(study), "start")


def amounts(study: Study) -> Exhibit:
    """Fig. 2 of kaiko 2024: how many slides, how many patches."""
    varied = "patches.slide_fraction", "patches.n_distinct"
    return _over_steps(study, "11_data", scores_table(study), *varied)


def magnifications(study: Study) -> Exhibit:
    """One magnification or several."""
    return _over_steps(study, "11_magnifications", scores_table(study), "patches.um_per_px")


def methods(study: Study) -> Exhibit:
    """Fig. 4 of kaiko 2024: DINO or DINOv2, in scores, RankMe and ODCorr of the tasks' images."""
    table = pd.concat([representations_table(study), scores_table(study)], ignore_index=True)
    return _over_steps(study, "11_methods", table, "method")


@in_style
def _over_steps(study: Study, name: str, table: pd.DataFrame, *varied: str) -> Exhibit:
    """What snapshots score by step, a panel a comparison, task and metric; dotted: the control.

    A line a way to pretrain; table: SCORES, as `scores_table`.
    """
    title, of = "; ".join(VARIED[key] for key in varied), of_what(study.settings)
    rows = by_way(compared(study.settings, table, *varied))
    if rows.empty:
        caption = f"No two judged pretrainings of the study differ in this alone ({of})."
        return Exhibit(name, title, caption, rows, None, SECTION)
    n_seeds = rows.groupby("name")["n_seeds"].transform("max")
    label = rows["value"] + " (" + rows["name"] + ")"
    label += (", " + n_seeds.astype(str) + " seeds").where(n_seeds > 1, "")
    shown = rows.assign(panel=rows.groupby(PANEL, sort=False).ngroup(), label=label)
    shown = shown.sort_values(["panel", "step"], kind="stable")
    names, of_line = list(rows["name"].unique()), shown.drop_duplicates("label")["name"]
    at = [names.index(name) for name in of_line]  # a pretraining looks the same in all panels
    looks = {"color": [f"C{i}" for i in at], "marker": [MARKERS[i % len(MARKERS)] for i in at]}
    grid = sns.FacetGrid(
        shown, col="panel", col_wrap=min(3, shown["panel"].nunique()), hue="label", hue_kws=looks,
        sharex=False, sharey=False, height=3, aspect=0.9,
    )  # fmt: skip
    grid.map(_bars, "step", "mean", "low", "high").set(xlim=(0, None))
    key = ["name", "task", "metric"]
    scores = scores_table(study).drop_duplicates(key).set_index(key)["mean"]
    for axis, part in zip(grid.axes.flat, rows.drop_duplicates(PANEL).itertuples(), strict=True):
        control = tasks.control_of(study.settings, part.base), part.task, part.metric
        if control in scores:
            axis.axhline(scores[control], color="0.45", linestyle=":", label="untrained network")
        axis.set(xlabel="step", ylabel=(tasks.TITLES | representations.TITLES)[part.metric])
        axis.set_title(f"{part.task}\nbase: {part.base}", fontsize=7.5)
    figure = finished(study, grid.figure, title.replace("; ", "\n"))
    caption = (
        "Scores of snapshots by step, a line a way to pretrain, dotted the same network untrained "
        f"({of}). Points and bars: of several seeds of the pretraining the mean, the lowest and "
        "the highest; of one seed mean and SD over heads trained on one encoder, so that what "
        "another draw of patches would give is not in them."
    )
    return Exhibit(name, title, caption, rows, figure, SECTION)


def _bars(at: pd.Series, mean: pd.Series, low: pd.Series, high: pd.Series, **look: object) -> None:
    """Means joined by a line, with bars from ``low`` to ``high``."""
    plt.errorbar(at, mean, (abs(mean - low), abs(high - mean)), markersize=4, capsize=2, **look)


def against_base(study: Study) -> Exhibit:
    """By how much each pretraining's last score differs from its base's, with an interval."""
    table = differences_table(study)
    caption = (
        "Score after the last step less that of the base, which differs in one thing only "
        f"({of_what(study.settings)}). low, high: from three seeds on 95 % over seeds (Student's "
        "t, paired by seed, and wide for three), of one seed 95 % bootstrap over the slides, "
        "patients or items tested; neither has what the other is over."
    )
    return Exhibit("11_differences", "Differences from the base", caption, table, None, SECTION)
