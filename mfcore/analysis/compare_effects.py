"""What each departure of the released code is worth on a study: arms with one switch flipped against the study as it is."""

from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.analysis import compare, effects
from mfcore.analysis.compare_defects import DEFECTS
from mfcore.analysis.effects import BASE, PAPER, RELEASED, Arm
from mfcore.measures import statistics
from mfcore.measures.resampling import by_fold
from mfcore.study import data as study_data
from mfcore.study.config import Settings, Switches

COLUMNS = ["switch", "as_released", "default", "arm", "kind", "n_folds", "auroc", "auroc_sd", "difference", "low", "high"]
COLUMNS += ["applies", "why"]
NOT_YET = "not measured yet"


def table(study: Settings, results: str | Path) -> pd.DataFrame:
    """A row a switch and arm of ``study.effects``, and a row each for departures that are no switch; none without switches.

    ``switch`` is "" for the study as it is and "paper" for all switches at once. ``as_released, default``: what the
    released code does, what this study does. ``auroc, auroc_sd``: at the full size, all domains, mean and sample SD over
    ``n_folds``. ``difference, low, high``: of the AUROC from the study as it is; paired over folds with the interval
    of `statistics.paired_test` where both are tested on the same patches, else unpaired, which ``why`` says.
    ``applies`` is False where the study can't show the effect, ``why`` then says why not; NaN where it isn't measured.
    """
    rows: list[dict] = []
    if study.effects.switches:
        for switch in (BASE, *Switches.CHOICES, PAPER):
            rows += rows_of(study, switch, results)
        rows += [_no_switch(defect.name, defect.why_no_switch) for defect in DEFECTS if defect.why_no_switch]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"applies": bool})


def rows_of(study: Settings, switch: str, results: str | Path) -> list[dict]:
    """The rows of `table` of one switch: an arm each."""
    return [_row(study, switch, arm, Path(results)) for arm in effects.arms(study)]


def said(row: dict) -> str:
    """One row in a sentence: what flipping the switch does to the arm, or why that isn't shown."""
    what = f"{row['arm']} ({row['kind']})" if row["arm"] else ""
    if not row["applies"] or not np.isfinite(row["auroc"]):
        return f"{what}: {row['why']}" if what else row["why"]
    score = f"AUROC {compare.plus_minus(row['auroc'], row['auroc_sd'])} over {compare.folds(row)}"
    if row["switch"] == BASE:
        return f"{what}: {score}"
    if not np.isfinite(row["difference"]):
        return f"{what}: {score}; {row['why']}"
    span = f" ({compare.bounds(row['low'], row['high']) or 'no interval'})"
    return f"{what}: {row['difference']:+.3f}{span}, {score}" + (f"; {row['why']}" if row["why"] else "")


def _row(study: Settings, switch: str, arm: Arm, results: Path) -> dict:
    is_one = switch in Switches.CHOICES
    row = {
        "switch": switch,
        "as_released": shown(getattr(RELEASED, switch)) if is_one else "",
        "default": shown(getattr(study.switches, switch)) if is_one else "",
        "arm": arm.name,
        "kind": _kind(study, arm),
        "n_folds": 0,
        **dict.fromkeys(("auroc", "auroc_sd", "difference", "low", "high"), np.nan),
    }
    why = effects.why_not(study, switch, arm)
    if is_one and switch not in study.effects.switches and not why:
        found = _predictions(study, switch, arm, results)  # measured by hand
        why = "the study doesn't ask for it (effects.switches)" if found is None else ""
    source = _found(study, results)
    if source is not None and not why:
        touched = effects.reach(study, switch, source)
        why = f"nothing here to change: {touched.words}" if touched.is_nothing else ""
    if why:
        return row | {"applies": False, "why": why}
    predictions = _predictions(study, switch, arm, results)
    if predictions is None:
        return row | {"applies": True, "why": _reason(switch, results)}
    scores = _by_fold(predictions)
    over = statistics.spread(scores["auroc"])
    row |= {"n_folds": over.n, "auroc": over.mean, "auroc_sd": over.sd, "applies": True, "why": ""}
    if switch == BASE:
        return row
    base = _predictions(study, BASE, arm, results)
    if base is None:
        return row | {"why": f"the study as it is, to compare with: {_reason(BASE, results)}"}
    return row | _difference(study, predictions, base, switch)


def shown(value: object) -> str:
    """A switch's value as tables show it."""
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _kind(study: Settings, arm: Arm) -> str:
    return compare.kind_of(study.network(arm.name)) if arm.is_network else compare.PROBE


def _no_switch(name: str, why: str) -> dict:
    numbers = dict.fromkeys(("auroc", "auroc_sd", "difference", "low", "high"), np.nan)
    words = dict.fromkeys(("as_released", "default", "arm", "kind"), "")
    return {"switch": name, **words, "n_folds": 0, **numbers, "applies": False, "why": why}


def _found(study: Settings, results: Path) -> store.Run | None:
    """The study's patches, None where there are none yet."""
    try:
        return study_data.find_patches(effects.derived(study, BASE), results)
    except store.StoreError:
        return None


def _predictions(study: Settings, switch: str, arm: Arm, results: Path) -> pd.DataFrame | None:
    """What the arm predicted with the switch flipped, at the full size; None where that isn't measured."""
    try:
        keys = effects.find(study, switch, results).identity["inputs"]
    except store.StoreError:
        return None
    stage = "train" if arm.is_network else "probe"
    found = [_run(results, stage, key) for name, key in keys.items() if name == stage or name.startswith(f"{stage}-fold")]
    loaded = [compare.load_arm(run, arm.name, _kind(study, arm)) for run in found if run is not None]
    return pd.concat(loaded, ignore_index=True) if loaded else None


def _run(results: Path, stage: str, key: str) -> store.Run | None:
    return next((store.run_at(file.parent) for file in results.glob(f"{stage}-*-{key}/run.json")), None)


def _by_fold(predictions: pd.DataFrame) -> pd.DataFrame:
    """Every metric by fold."""
    return compare.scores(predictions).set_index("fold").sort_index()


def _difference(study: Settings, flipped: pd.DataFrame, base: pd.DataFrame, switch: str) -> dict:
    """How the AUROC differs, paired over the folds that test both on the same patches, else unpaired."""
    here, there = (by_fold(part, "auroc", study.splits.seed, compare.ALL) for part in (flipped, base))
    tested = [part.groupby("fold")["patch_id"].agg(frozenset) for part in (flipped, base)]
    n_test = max(part.groupby("fold").size().mean() for part in (flipped, base))
    if tested[0].equals(tested[1]):
        test, why = statistics.paired_test(here, there, base["n_train"].mean(), n_test), ""
    else:
        test = statistics.unpaired_test(here, there, flipped["n_train"].mean(), n_test)
        why = "unpaired: the two are tested on different patches"
    found = test.interval
    if test.drawn:
        why = "; ".join(part for part in (why, f"interval over draws of {test.drawn}") if part)
    if _predict_the_same(flipped, base):
        why = "the same predictions in every fold" + ("; the best epoch was the last" if switch == "epoch" else "")
    if not np.isfinite(found.low):
        why = "; ".join(part for part in (why, "too few folds for an interval") if part)
    return {"difference": found.estimate, "low": found.low, "high": found.high, "why": why}


def _predict_the_same(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    keys = ["fold", "patch_id"]
    one, other = (part.set_index(keys)["score"].sort_index() for part in (first, second))
    return one.equals(other)


def _reason(switch: str, results: Path) -> str:
    """Why a switch isn't measured: its job's failure, or that it hasn't run."""
    file = results / "failures" / f"measure_switch.{effects.record_name(switch)}.json"
    return f"failed: {store.read_json(file)['reason']}" if file.is_file() else NOT_YET
