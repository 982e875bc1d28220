"""The supplement's page on pretraining and tasks: what the study pretrained, how it went, and what its encoders are worth."""

from pathlib import Path

import pandas as pd

from mfcore import store
from mfcore.analysis import (
    captions,
    captions_pretrain,
    captions_pretraining,
    captions_representation,
    captions_tasks,
    compare,
    compare_masks,
    compare_pretraining,
    compare_representation,
    compare_tasks,
)
from mfcore.study.config import Settings
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


def page(study: Settings, results: Path) -> str:
    """The page, from the pretrainings' runs, what tasks judged and the figures of notebooks 07 to 11."""
    history = compare_pretraining.histories(study, results)
    scores = compare_pretraining.scores(study, results)
    overview = compare_pretraining.overview(study, results)
    missing = compare_pretraining.missing(study, results)
    runs = compare_pretraining.runs(study, results)
    differences = compare_pretraining.all_differences(study, results, scores)
    return report_html.render(
        "pretraining.html",
        study=study,
        said=said(study, overview, scores) + shared(overview) if study.pretraining else "",
        missing=table(missing) if len(missing) else "",
        overview=table(readable_overview(overview)) if study.pretraining else "",
        left_out=_left_out(runs),
        drawn=_drawn(study, results),
        curves=report_html.figure(results, "11_histories", captions_pretraining.histories(study, history)),
        single=_single(study, results, runs, history),
        studies=_studies(study, results, scores),
        differences=table(readable_differences(differences)) if len(differences) else "",
        tasks=table(compare_tasks.readable(compare_tasks.encoders_only(scores))) if len(scores) else "",
        judged=_judged(study, results, scores),
        notes=compare_tasks.notes(study, results),
        representations=_representations(study, results),
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
    controls = compare_pretraining.controls(study, scores) if len(scores) else pd.DataFrame()
    for which in study.pretraining:
        if which.name not in study.encoders or not len(controls):
            continue
        control = controls[controls["of"] == which.name]
        mine = compare_pretraining.last(scores[scores["name"] == which.name])
        both = mine.merge(control, on=["task", "metric"], suffixes=("", "_of_control"))
        told = [f"{row.task} {row.mean:.3f} against {row.mean_of_control:.3f}" for row in both.itertuples()]
        if told:
            text += f" {which.name} against {control['name'].iloc[0]}, the same network untrained: {', '.join(told)}."
    return text


def readable_overview(overview: pd.DataFrame) -> pd.DataFrame:
    """`compare_pretraining.overview` for the eye, no wider than a page, without what `shared` says of all of them at once."""
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
    slides = f"all draw patches from {own} slides" if own == compare_pretraining.OWN_SLIDES else f"all draw patches from {own}"
    is_done = overview["loss"].notna()
    stand = "none has collapsed" if is_done.all() else "none that is pretrained has collapsed"
    return {"slides": "" if others else slides, "collapsed": stand if is_done.any() and not overview["collapsed"].any() else ""}


def readable_differences(differences: pd.DataFrame) -> pd.DataFrame:
    """`compare_pretraining.all_differences` for the eye."""
    shown = differences[["varied", "name", "value", "base"]].rename(columns={"name": "encoder"})
    shown["varied"] = [compare_pretraining.VARIED[key].partition(" (")[0] for key in shown["varied"]]
    shown["task, metric"] = [f"{row.task}, {compare_tasks.TITLES[row.metric]}" for row in differences.itertuples()]
    columns = (differences["mean"], differences["sd"])
    shown["score"] = [compare.plus_minus(mean, sd) for mean, sd in zip(*columns, strict=True)]
    shown["less the base's"] = [f"{value:+.3f}" if pd.notna(value) else "–" for value in differences["difference"]]
    bounds = zip(differences["low"], differences["high"], strict=True)
    shown["95 % over what was tested"] = [f"{low:+.3f} to {high:+.3f}" if pd.notna(low) else "–" for low, high in bounds]
    return shown


def _studies(study: Settings, results: Path, scores: pd.DataFrame) -> list[tuple[str, str]]:
    """Title and figure of each comparison that the study's pretrainings allow."""
    controls, found = compare_pretraining.controls(study, scores), []
    measured = pd.concat([compare_pretraining.representations(study, results), scores], ignore_index=True)
    for name, (heading, varied) in STUDIES.items():
        parts = compare_pretraining.parts(study, measured if name == "11_methods" else scores, varied)
        if not parts:
            continue
        if name == "11_magnifications":
            caption = captions_pretraining.by_value(study, parts, controls)
        else:
            caption = captions_pretraining.over_steps(study, parts, controls)
        found.append((heading, report_html.figure(results, name, caption)))
    return found


def _representations(study: Settings, results: Path) -> dict[str, str]:
    """The table of RankMe and ODCorr with its caption and figure; empty where there is no embedding yet."""
    try:
        rows = compare_representation.table(study, results)
    except store.StoreError:
        return {}
    related = compare_representation.correlations(rows)
    caption = captions_representation.against_probes(study, rows, related)
    return {
        "table": table(compare_representation.readable(rows)),
        "said": report_html.rich(captions_representation.all_encoders(study, rows)),
        "figure": report_html.figure(results, "10_against_probes", caption),
    }


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


def _single(study: Settings, results: Path, runs: dict[str, store.Run], history: pd.DataFrame) -> list[tuple[str, str]]:
    """How each finished pretraining went, step by step."""
    return [
        (
            name,
            report_html.figure(
                results, f"08_{run.folder.name}", captions_pretrain.history(study, history[history["name"] == name], name)
            ),
        )
        for name, run in runs.items()
        if (results / "figures" / f"08_{run.folder.name}.png").is_file()
    ]


def _judged(study: Settings, results: Path, scores: pd.DataFrame) -> list[str]:
    """Each task's figure of encoders, and of segmentations over the patches where it has them."""
    found = []
    for task in study.tasks:
        mine = scores[scores["task"] == task.name]
        if not len(mine):
            continue
        found.append(report_html.figure(results, f"09_{task.name}", captions_tasks.scores(study, mine)))
        if registry.get(task.name).is_segmentation:
            shown = compare_masks.shown(study, results, task.name)
            found.append(report_html.figure(results, f"09_{task.name}_masks", captions_tasks.segmentations(study, shown)))
    return found
