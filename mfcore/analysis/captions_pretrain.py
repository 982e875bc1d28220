"""Captions of one pretraining's figures, with every number computed."""

import math

import pandas as pd

from mfcore.analysis.captions import of_what
from mfcore.store import Run
from mfcore.study.config import Pretraining, Settings
from mfcore.study.pretrained import METHODS, in_full


def settings(study: Settings, name: str) -> pd.DataFrame:
    """How an encoder is pretrained, for reading: ``setting, value, from``, the study, the method's authors or a default."""
    said, whole, plain = study.pretraining_of(name), in_full(study.pretraining_of(name)), Pretraining("-")
    rows = []
    for key, value in vars(whole).items():
        for inner, content in vars(value).items() if key in ("patches", "crops") else [("", value)]:
            own, default = (getattr(getattr(of, key), inner) if inner else getattr(of, key) for of in (said, plain))
            origin = "default" if own == default else "the study"
            if own is None and content is not None:
                key_said = inner or key
                is_theirs = METHODS[whole.method].published.get(key_said) == content
                origin = f"the authors of {METHODS[whole.method].title}" if is_theirs else "default for small trainings"
            rows.append((f"{key}.{inner}" if inner else key, _text(content), origin))
    return pd.DataFrame(rows, columns=["setting", "value", "from"])


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {content}" for key, content in value.items()) or "–"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str("–" if value is None or value == "" else value)


def cost(run: Run) -> pd.DataFrame:
    """What a finished pretraining took and from how much: ``fact, value``."""
    facts = run.record["facts"]
    left_out, in_part = facts["slides_left_out"], facts.get("slides_failed_in_part", {})
    n_slides = facts["n_slides"] - len(left_out)
    rows = {
        "patches": f"{facts['n_patches']:,} from {n_slides:,} slide{'s' * (n_slides != 1)}",
        "slides left out": "; ".join(left_out.values()) or "none",
        **({"slides that failed in part": "; ".join(in_part.values())} if in_part else {}),
        "time": f"{facts['training_seconds'] / 60:.1f} minutes, {facts['patches_per_second']:,.1f} patches a second",
        "on": f"{facts['n_processes']} process{'es' * (facts['n_processes'] > 1)}, {facts['device']}, {facts['precision']}",
        "teacher": f"collapsed: {facts['collapsed']}" if facts["collapsed"] else "its targets tell images apart",
        "parameters": f"{facts['n_parameters'] / 1e6:.2f} million, the head's included",
    }
    return pd.DataFrame({"fact": list(rows), "value": list(rows.values())})


def history(study: Settings, table: pd.DataFrame, name: str) -> str:
    """Caption of a pretraining's history; ``table`` as `mfcore.pretraining.pretrain.load_history` returns it."""
    which, last = in_full(study.pretraining_of(name)), table.iloc[-1]
    rank, n_patches = table.loc[table["rankme"].notna(), "rankme"], which.n_steps * which.batch_size
    single, mean, distinct = last["teacher_entropy"], last["target_entropy"], which.patches.n_distinct
    again = f", {distinct:,} different ones again and again" if distinct and distinct < n_patches else ""
    known = f"what lies between (shaded), {mean - single:.2f} nats, is what a target tells of its image"
    if mean < single:
        known = "the running mean trails behind, so that nothing is known of what a target tells of its image"
    return (
        f"**Pretraining of {name}.** {which.n_steps:,} steps of {which.batch_size} patches, {n_patches:,} in all{again}, in "
        f"{last['seconds'] / 60:.1f} minutes ({n_patches / last['seconds']:,.0f} patches a second; {of_what(study)}). The loss "
        f"went from {table['loss'].iloc[0]:.2f} to {last['loss']:.2f}. At the end a target's entropy is {single:.2f} nats and "
        f"that of their mean {mean:.2f}, of at most {math.log(which.n_prototypes):.2f}; {known}. "
        f"RankMe of the teacher's embeddings went from {rank.iloc[0]:.1f} to {rank.iloc[-1]:.1f}, over patches of the "
        "same slides and resolutions that it doesn't learn from: pretrainings on others are measured on others, and don't "
        "compare by it."
    )


def crops(study: Settings, name: str) -> str:
    """Caption of the crops."""
    which = in_full(study.pretraining_of(name))
    low, high = (f"{100 * share:.0f} %" for share in which.crops.global_scale)
    resolutions = " or ".join(f"{value:g}" for value in sorted(set(which.patches.um_per_px)))
    text = (
        f"**What {name} is shown.** Patches of {which.patches.size_px} px at {resolutions} µm/px, drawn online "
        f"({of_what(study)}); of each the teacher sees two global crops ({low} to {high} of the patch)"
    )
    if not which.crops.n_local:
        return f"{text}, and so does the student."
    low, high = (f"{100 * share:.0f} %" for share in which.crops.local_scale)
    return f"{text}, the student these and {which.crops.n_local} local ones ({low} to {high})."
