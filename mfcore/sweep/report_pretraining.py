"""The supplement's page on pretraining and tasks: what the study pretrained, how it went, and what its encoders are worth."""

from pathlib import Path

import pandas as pd

from mfcore import store
from mfcore.analysis import captions, compare, pretrainings, representations, tasks
from mfcore.study.config import Settings
from mfcore.study.study import Study
from mfcore.sweep import report_html
from mfcore.sweep.report_html import table
from mfcore.tasks import registry

# Each figure of notebook 11 with what is varied in it
STUDIES = {
    "11_start": ("What training starts from", ("start",)),
    "11_data": ("How many slides, how many patches", ("patches.slide_fraction", "patches.n_distinct")),
    "11_magnifications": ("One magnification or several", ("patches.um_per_px",)),
    "11_methods": ("DINO or DINOv2", ("method",)),
}


TASK_COLUMNS = ["task", "encoder", "split", "mean", "sd", "low", "high", "n_runs", "published", "difference"]


def page(study: Settings, results: Path) -> str:
    """The page, from the pretrainings' runs, what tasks judged and the figures of notebooks 07 to 11."""
    opened = Study(study, results)
    scores, overview = pretrainings.scores_table(opened), pretrainings.overview_table(opened)
    missing, runs, differences = (
        pretrainings.missing_table(opened),
        pretrainings.runs(opened),
        pretrainings.differences_table(opened),
    )
    return report_html.render(
        "pretraining.html",
        study=study,
        said=said(study, overview, scores) + shared(overview) if study.pretraining else "",
        missing=table(missing) if len(missing) else "",
        overview=table(readable_overview(overview)) if study.pretraining else "",
        left_out=_left_out(runs),
        drawn=_drawn(study, results),
        curves=report_html.figure(results, "11_histories"),
        single=_single(results, runs),
        studies=_studies(study, results),
        differences=table(readable_differences(differences)) if len(differences) else "",
        tasks=table(tasks.encoders_only(scores)[TASK_COLUMNS].round(3)) if len(scores) else "",
        judged=_judged(study, results, scores),
        notes=tasks.notes(opened),
        representations=_representations(opened),
    )


def said(study: Settings, overview: pd.DataFrame, scores: pd.DataFrame) -> str:
    """What was pretrained and whether it beats the network that nobody trained, in sentences computed from the tables."""
    done = overview[overview["loss"].notna()]
    n_patches, minutes = done["n_patches"].sum(), done["seconds"].sum() / 60
    text = f"{len(done)} of {len(overview)} encoders are pretrained"
    text += (
        f"; they were shown {n_patches:,} patches (one shown again counts again) in {minutes:.1f} minutes in all."
        if len(done)
        else "."
    )
    controls = pretrainings.controls(study, scores) if len(scores) else pd.DataFrame()
    for which in study.pretraining:
        if which.name not in study.encoders or not len(controls):
            continue
        control = controls[controls["of"] == which.name]
        mine = scores[scores["encoder"] == which.name]
        both = mine.merge(control, on=["task", "metric"], suffixes=("", "_of_control"))
        told = [f"{row.task} {row.mean:.3f} against {row.mean_of_control:.3f}" for row in both.itertuples()]
        if told:
            text += f" {which.name} against {control['name'].iloc[0]}, the same network untrained: {', '.join(told)}."
    return text


def readable_overview(overview: pd.DataFrame) -> pd.DataFrame:
    """`pretrainings.overview_table` for the eye, no wider than a page, without what `shared` says of all of them at once."""
    shown = overview.copy()
    numbers = {"seconds": "{:,.0f}", "loss": "{:.2f}", "rankme": "{:.1f}", "target_entropy": "{:.2f}"}
    for column, form in numbers.items():
        shown[column] = [form.format(value) if pd.notna(value) else "–" for value in shown[column]]
    shown["network, method"] = shown["architecture"] + ", " + shown["method"]
    shown["steps × batch"] = [f"{row.n_steps:,} × {row.batch_size:,}" for row in shown.itertuples()]
    order = ["name", "network, method", "start", "slides", "um_per_px", "steps × batch", *numbers, "collapsed"]
    said = {column for column, text in _of_all(overview).items() if text}
    names = {"um_per_px": "µm/px", "rankme": "RankMe", "target_entropy": "target entropy (nats)"}
    return shown[[column for column in order if column not in said]].rename(columns=names)


def shared(overview: pd.DataFrame) -> str:
    """What `readable_overview` leaves out as all pretrainings have it in common, in a sentence; empty without any."""
    told = [text for text in _of_all(overview).values() if text]
    return f" Of these encoders {captions.listed(told)}." if told else ""


def _of_all(overview: pd.DataFrame) -> dict[str, str]:
    """By column of the overview, what all have in common, in words; empty where they differ."""
    own, *others = overview["slides"].unique()
    slides = f"all draw patches from {own} slides" if own == pretrainings.OWN_SLIDES else f"all draw patches from {own}"
    is_done = overview["loss"].notna()
    stand = "none has collapsed" if is_done.all() else "none that is pretrained has collapsed"
    return {"slides": "" if others else slides, "collapsed": stand if is_done.any() and not overview["collapsed"].any() else ""}


def readable_differences(differences: pd.DataFrame) -> pd.DataFrame:
    """`pretrainings.differences_table` for the eye."""
    shown = differences[["varied", "name", "value", "base"]].rename(columns={"name": "encoder"})
    shown["varied"] = [pretrainings.VARIED[key].partition(" (")[0] for key in shown["varied"]]
    shown["task, metric"] = [f"{row.task}, {tasks.TITLES[row.metric]}" for row in differences.itertuples()]
    columns = (differences["mean"], differences["sd"])
    shown["score"] = [compare.plus_minus(mean, sd) for mean, sd in zip(*columns, strict=True)]
    shown["less the base's"] = [f"{value:+.3f}" if pd.notna(value) else "–" for value in differences["difference"]]
    bounds = zip(differences["low"], differences["high"], strict=True)
    shown["95 % over what was tested"] = [f"{low:+.3f} to {high:+.3f}" if pd.notna(low) else "–" for low, high in bounds]
    return shown


def _studies(study: Settings, results: Path) -> list[tuple[str, str]]:
    """Title and figure of each comparison that the study's pretrainings allow."""
    return [
        (heading, report_html.figure(results, name))
        for name, (heading, varied) in STUDIES.items()
        if pretrainings.comparisons(study, *varied)
    ]


def _representations(study: Study) -> dict[str, str]:
    """The table of RankMe and ODCorr with its caption and figure; empty where there is no embedding yet."""
    try:
        rows = representations.rankme(study)
    except store.StoreError:
        return {}
    figure = report_html.figure(study.folder, "10_against_probes")
    return {"table": table(rows.table.round(3)), "said": report_html.rich(rows.text), "figure": figure}


def _left_out(runs: dict[str, store.Run]) -> list[tuple[str, str]]:
    """Slides that couldn't be read while an encoder was pretrained, or in part, and why."""
    said = []
    for name, run in runs.items():
        for key, what in (("slides_left_out", "left out"), ("slides_failed_in_part", "used, but for a part")):
            reasons = run.record["facts"].get(key, {})
            if reasons:
                told = "; ".join(f"{slide}: {reason}" for slide, reason in reasons.items())
                said.append((f"{name}: {len(reasons)} slide{'s were' if len(reasons) > 1 else ' was'} {what}", told))
    return said


def _drawn(study: Settings, results: Path) -> list[str]:
    """The figures of notebook 07 that are there."""
    told = {"07_online_places": "Where patches were drawn.", "07_online_patches": "Some of the patches."}
    there = {name: text for name, text in told.items() if (results / "figures" / f"{name}.png").is_file()}
    return [
        report_html.figure(results, name, f"**{text}** Of {captions.of_what(study)}; notebook 07 says more.")
        for name, text in there.items()
    ]


def _single(results: Path, runs: dict[str, store.Run]) -> list[tuple[str, str]]:
    """How each finished pretraining went, step by step."""
    names = {name: f"08_{run.folder.name}" for name, run in runs.items()}
    there = {name: file for name, file in names.items() if (results / "figures" / f"{file}.png").is_file()}
    return [(name, report_html.figure(results, file)) for name, file in there.items()]


def _judged(study: Settings, results: Path, scores: pd.DataFrame) -> list[str]:
    """Each task's figure of encoders, and of segmentations over the patches where it has them."""
    found = []
    for task in study.tasks:
        if (scores["task"] == task.name).any():
            found.append(report_html.figure(results, f"09_{task.name}"))
            found += [report_html.figure(results, f"09_{task.name}_masks")] if registry.get(task.name).is_segmentation else []
    return found
