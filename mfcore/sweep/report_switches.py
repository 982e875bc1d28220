"""The supplement's page on switches: each departure of the released code, what this study does, and what that is worth."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.analysis import compare, compare_effects, effects
from mfcore.analysis.compare_defects import DEFECTS, RELEASED_CODE, Defect
from mfcore.analysis.effects import BASE, PAPER, RELEASED
from mfcore.data import splits
from mfcore.study import data as study_data
from mfcore.study.config import Settings, Switches
from mfcore.sweep import report_html
from mfcore.sweep.report_html import table


def page(study: Settings, results: Path) -> str:
    """The page, from what the sweep's jobs ``measure_switch`` left; a departure that isn't measured says why."""
    rows = compare_effects.table(study, results)
    source = _patches(study, results)
    base = rows[rows["switch"] == BASE]
    return report_html.render(
        "switches.html",
        study=study,
        code=RELEASED_CODE,
        said=said(rows, study),
        base=[compare_effects.said(row) for row in base.to_dict("records")],
        defects=[_entry(defect, rows, study, source) for defect in DEFECTS],
        paper=[compare_effects.said(row) for row in rows[rows["switch"] == PAPER].to_dict("records")],
        numbers=table(numbers(rows)) if len(rows) else "",
        n_folds=study.effects.n_folds or study.splits.n_folds,
        size=f"{splits.percent(max(study.splits.sizes))} %",
    )


def _patches(study: Settings, results: Path) -> store.Run | None:
    try:
        return study_data.find_patches(study, results)
    except store.StoreError:
        return None


def _entry(defect: Defect, rows: pd.DataFrame, study: Settings, source: store.Run | None) -> dict:
    """One departure for the page: its texts, how much of the data it touches, and a sentence an arm."""
    is_switch = defect.name in Switches.CHOICES
    mine = rows[rows["switch"] == defect.name].to_dict("records")
    applies = any(row["applies"] for row in mine)
    touched = effects.reach(study, defect.name, source).words if applies and source is not None else ""
    told = [row for row in mine if row["why"] != effects.NO_TRAINING] or mine
    worth = [compare_effects.said(row) for row in told] or [defect.why_no_switch or compare_effects.NOT_YET]
    found = {**vars(defect), "setting": setting(mine[0]) if is_switch and mine else "", "touched": touched, "worth": worth}
    name = {"lora_best": "epoch"}.get(defect.name, defect.name)
    if name in Switches.CHOICES and getattr(study.switches, name) == getattr(RELEASED, name):
        value = compare_effects.shown(getattr(RELEASED, name))
        return found | {"setting": "", "ours": f"does as the released code ({name}: {value})"}
    return found


def setting(row: Mapping) -> str:
    """What a row of `compare_effects.table` sets, beside what the study has."""
    return f"{row['switch']}: {row['as_released']} instead of {row['default']}"


def said(rows: pd.DataFrame, study: Settings) -> str:
    """What the page shows, in sentences computed from it."""
    if not study.effects.switches:
        return "The study measures none of them: its effects name no switches."
    one = rows[rows["switch"].isin(Switches.CHOICES)]
    measured = one[one["applies"] & one["difference"].notna()]
    if not one["applies"].any():
        return "Nothing here can show what any of them is worth; each row says why."
    if not len(measured):
        return "None of them is measured yet."
    clear = measured[(measured["low"] > 0) | (measured["high"] < 0)]
    text = f"Measured on this study: {measured['switch'].nunique()} of {one['switch'].nunique()} switches. "
    if len(clear):
        named = [f"{row.switch} for {row.arm} ({row.difference:+.3f})" for row in clear.itertuples()]
        text += f"The interval leaves out zero for {', '.join(named)}; with so many intervals, one in twenty does by chance."
    else:
        far = measured.loc[measured["difference"].abs().idxmax()]
        text += f"No interval leaves out zero; the largest difference is {far['switch']}'s for {far['arm']}, "
        text += f"{far['difference']:+.3f}: so few overlapping folds show large effects alone."
    return text


def numbers(rows: pd.DataFrame) -> pd.DataFrame:
    """`compare_effects.table` for the eye: scores as "mean ± SD", the difference signed, with its interval."""
    measured = rows[rows["applies"]]
    shown = measured[["switch", "arm", "n_folds"]].copy()
    whole = {BASE: "none: the study as it is", PAPER: "all (paper mode)"}
    shown["switch"] = [whole.get(row["switch"]) or setting(row) for row in measured.to_dict("records")]
    shown["arm"] = measured["arm"] + " (" + measured["kind"] + ")"
    shown["AUROC"] = [compare.plus_minus(m, sd) for m, sd in zip(measured["auroc"], measured["auroc_sd"], strict=True)]
    shown["difference"] = [f"{value:+.3f}" if np.isfinite(value) else "–" for value in measured["difference"]]
    intervals = zip(measured["low"], measured["high"], strict=True)
    shown["95 % interval"] = [compare.bounds(low, high) or "–" for low, high in intervals]
    return shown.assign(note=measured["why"])
