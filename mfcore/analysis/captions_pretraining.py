"""Captions of the figures that set pretrainings beside one another; every number is computed from the tables they show."""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mfcore.analysis import captions, compare
from mfcore.analysis.compare_pretraining import (
    VARIED,
    Comparison,
    apart,
    departures,
    differences,
    differing,
    last,
    learnt_from,
    watched,
)
from mfcore.analysis.figures_pretraining import AXES, followed
from mfcore.encoders.card import cards
from mfcore.study.config import Settings


def histories(study: Settings, history: pd.DataFrame) -> str:
    """Caption of `figures_pretraining.histories`."""
    if not len(history):
        return f"**Pretraining.** No pretraining of the study is finished ({captions.of_what(study)})."
    ended = history.groupby("name", sort=False).last()
    ranks = ended["rankme"].dropna() if "rankme" in ended else ended["loss"].iloc[:0]
    said = _ranks(study, ranks) if len(ranks) else ""
    least, most = f"{ended['step'].min():,.0f}", f"{ended['step'].max():,.0f}"
    steps = least if least == most else f"{least} to {most}"
    return (
        f"**How pretraining went.** {compare.counted(len(ended), 'pretraining')} ({captions.of_what(study)}), "
        f"{steps} steps. A mean target whose entropy falls to 0, or a RankMe "
        f"that falls towards 1, is a collapse.{said} Losses of different methods are sums of different parts and don't compare."
    )


def over_steps(study: Settings, parts: Sequence[tuple[Comparison, pd.DataFrame]], controls: pd.DataFrame) -> str:
    """Caption of `figures_pretraining.over_steps`."""
    heading = _heading(parts)
    if not any(len(table) for _, table in parts):
        return f"**{heading or 'Pretrainings.'}** Nothing to compare here ({captions.of_what(study)})."
    there = [(comparison, table) for comparison, table in parts if len(table)]
    told = zip(there, apart(study, [comparison for comparison, _ in there]), strict=True)
    said = [_said(comparison, table, followed(table), words) for (comparison, table), words in told]
    said += dict.fromkeys(text for comparison, _ in there if (text := _of_settings(study, comparison)))
    beaten = _against_control([(comparison, followed(table)) for comparison, table in there], controls)
    of_what = f"**{heading}** Scores of snapshots by step ({captions.of_what(study)})."
    return f"{of_what} {' '.join(said)}{beaten} {_bars(parts)} Lines are set a little apart along the steps."


def by_value(study: Settings, parts: Sequence[tuple[Comparison, pd.DataFrame]], controls: pd.DataFrame) -> str:
    """Caption of `figures_pretraining.by_value`."""
    there = [(comparison, table) for comparison, table in parts if len(table)]
    told = zip(there, apart(study, [comparison for comparison, _ in there]), strict=True)
    said = [_said(comparison, table, table, words) for (comparison, table), words in told]
    if not said:
        return f"**One magnification or several.** Nothing to compare here ({captions.of_what(study)})."
    heading = _heading(parts)
    beaten = _against_control(there, controls)
    return f"**{heading}** Scores after the last step ({captions.of_what(study)}). {' '.join(said)}{beaten} {_bars(parts)}"


def _heading(parts: Sequence[tuple[Comparison, pd.DataFrame]]) -> str:
    return " ".join(dict.fromkeys(f"{VARIED[comparison.varied]}." for comparison, _ in parts))


def _said(comparison: Comparison, table: pd.DataFrame, drawn: pd.DataFrame, words: str) -> str:
    """By task: which is best at the end, and how far the others are from the base; of what isn't ``drawn``, that it isn't.

    words: what tells the comparison from others of the same thing, see `compare_pretraining.apart`.
    """
    parts, ended, shown = [], last(table), set(zip(drawn["task"], drawn["metric"], strict=True))
    for (task, metric), part in ended.groupby(["task", "metric"], sort=False):
        once = "" if (task, metric) in shown else "; judged once, not drawn"
        what = f"{f'{task}, {words}' if words else task} ({AXES[metric]}{once})"
        if part["mean"].isna().all():  # the ODCorr of collapsed ones
            parts.append(f"{what}: none has one")
            continue
        best = part.loc[part["mean"].idxmin() if metric.startswith("odcorr") else part["mean"].idxmax()]
        text = f"{what}: {'lowest' if metric.startswith('odcorr') else 'highest'} {best['value']} with {best['mean']:.3f}"
        against = differences(comparison, part)
        told = [f"{row.value} {row.difference:+.3f}" for row in against.itertuples() if math.isfinite(row.difference)]
        base = dict(zip(comparison.names, comparison.values, strict=True))[comparison.base]
        parts.append(f"{text}; against {base}: {', '.join(told)}" if told else text)
    return "; ".join(parts) + "."


def _of_settings(study: Settings, comparison: Comparison) -> str:
    """What a reader must know of the pretrainings compared that their values don't say; empty where there is nothing."""
    if comparison.varied == "start":
        return _of_starts(study, comparison)
    if comparison.varied != "method":
        return ""
    told = []
    for key, of_value in differing(study, comparison).items():
        each = [f"{value} {' or '.join(map(_word, settings))}" for value, settings in of_value.items()]
        told.append(f"{key} ({', '.join(each)})")
    text = "Besides how the learning rate is scaled to the batch, they differ in " + captions.listed(told) + "." if told else ""
    own = {}
    for name, value in zip(comparison.names, comparison.values, strict=True):
        own.setdefault(value, departures(study.pretraining_of(name)))
    unlike = [
        f"{value} here has {captions.listed([f'{key} {_word(one)}' for key, one in changed.items()])}"
        for value, changed in own.items()
        if changed
    ]
    return " ".join([*([text] if text else []), *([f"Unlike its authors', {'; '.join(unlike)}."] if unlike else [])])


def _of_starts(study: Settings, comparison: Comparison) -> str:
    """Of starts that the study pretrained itself, for how many steps; of others, whose weights they have."""
    names, own, published = {which.name: which for which in study.pretraining}, [], []
    for start in dict.fromkeys(study.pretraining_of(name).start for name in comparison.names):
        name, _, step = start.partition("@")
        if name in names:
            own.append((start, f"{int(step or names[name].n_steps):,}"))
        elif weights := _weights(study, start):
            images = learnt_from(study, start)
            published.append(
                f"{start} has the weights of {weights}, {f'learnt from {images}, ' if images else ''}not learnt here."
            )
    if not own:
        return " ".join(published)
    (start, n_steps), *others = own
    more = "".join(f", and {other} for {n}" for other, n in others)
    come = "these come" if others else "which come"
    told = f"{start} was itself pretrained here, for {n_steps} steps{more}{':' if others else ','} {come} before those shown."
    return " ".join([told, *published])


def _weights(study: Settings, start: str) -> str:
    """Where an encoder's weights are from, as the study's record or its card has it; empty where neither says."""
    record = next((record for record in study.own_encoders if record.name == start), None)
    if record and record.weights == "random":
        return ""
    if record and record.weights:
        return Path(record.weights).name if Path(record.weights).is_absolute() else record.weights
    card = cards().get(record.like if record else start)
    if card is None or card.source == "random":
        return ""
    return " ".join(filter(None, ["the package" if card.source == "package" else "", card.identifier, card.revision]))


def _word(value: object) -> str:
    if isinstance(value, list | tuple):
        return " to ".join(map(_word, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _against_control(parts: Sequence[tuple[Comparison, pd.DataFrame]], controls: pd.DataFrame) -> str:
    """How many of the scores drawn end above the untrained network's; empty without one. parts: as drawn, none is empty."""
    ended = pd.concat([last(table) for _, table in parts]).drop_duplicates(["task", "metric", "name"])
    own = controls.rename(columns={"name": "control", "of": "name", "mean": "untrained"})
    both = ended.merge(own, on=["name", "task", "metric"])
    if not len(both):
        return ""
    n_above = int((both["mean"] > both["untrained"]).sum())
    return f" Dotted: the same network untrained; {n_above} of {len(both)} scores at the end lie above it."


def _bars(parts: Sequence[tuple[Comparison, pd.DataFrame]]) -> str:
    """What the bars are, over how many, and what isn't in them."""
    drawn = pd.concat([table for _, table in parts])
    n = sorted(drawn.loc[drawn["sd"].notna(), "n_runs"].unique())
    if not n:
        return "There are no bars, as of each there is one run."
    heads = " or ".join(f"{int(one):,}" for one in n)
    again = any((table.groupby("value")["name"].nunique() > 1).any() for _, table in parts)
    once = (
        "some values were pretrained more than once"
        if again
        else ("each encoder was pretrained once, so that what another draw of patches would give is not in them")
    )
    return f"Bars are the SD over {heads} heads trained from other seeds on the same encoder; {once}."


def _ranks(study: Settings, ranks: pd.Series) -> str:
    """RankMe at the end, and which of them are of the same patches; ranks: by name."""
    groups = watched(study, list(ranks.index))
    each = [captions.listed(f"{name} {ranks[name]:.1f}" for name in group) for group in groups]
    if len(groups) == 1:
        return f" RankMe at the end, all of the same patches, not learnt from: {each[0]}."
    told = "; ".join(f"{values} ({what})" for values, what in zip(each, groups.values(), strict=True))
    return f" RankMe at the end, of patches not learnt from; it compares only where these are the same: {told}."
