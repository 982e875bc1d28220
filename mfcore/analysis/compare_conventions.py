"""One encoder under the conventions of several libraries: how far apart its embeddings lie, and what that does to the probe."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.analysis import compare
from mfcore.data import splits
from mfcore.encoders.card import EncoderCard, conventions
from mfcore.encoders.readout import READOUTS
from mfcore.measures.resampling import by_fold
from mfcore.measures.statistics import paired_difference, spread
from mfcore.study import encoders as study_encoders
from mfcore.study.config import Settings

AUTHORS = "the authors' card"
SIDES = {"resize_px": "resized to {} px", "crop_px": "cropped to {} px"}


def table(study: Settings, results: str | Path) -> pd.DataFrame:
    """A row for the authors' card of ``study.conventions`` and for each library's way with it.

    ``library, card, departs`` (in words), ``n_dims``; ``distance_median`` and ``distance_max``: of a patch's embedding from
    that under the authors' card, relative to its norm, float, NaN where the two have no part in common (of a class token
    beside a mean, the class token counts); ``auroc, auroc_sd, balanced_accuracy, balanced_accuracy_sd``: of the probe with
    all the data, mean and sample SD over folds; ``difference, low, high``: of the AUROC from that under the authors' card,
    paired over folds, with its interval (`statistics.paired_difference`). NaN where embeddings or probe are not
    there yet, nor those of the authors' card where the study embeds otherwise (`embeds_otherwise`). Without
    ``study.conventions`` there is no row. Raises StoreError where there are no splits.
    """
    results, name = Path(results), study.conventions
    if not name:
        return pd.DataFrame()
    own, is_lacking = _by_authors(study, results), bool(embeds_otherwise(study, results))

    def found(card_name: str) -> tuple[np.ndarray | None, pd.DataFrame]:
        if is_lacking and card_name == name:  # what the study calls so was made by another card
            return None, pd.DataFrame()
        return _features(study, card_name, results), _full_size(study, card_name, results)

    rows, (base_features, base_predictions) = [], found(name)
    for library, card_name, note in [(AUTHORS, name, ""), *((c.library, c.card, c.note) for c in conventions().get(name, ()))]:
        this = own if card_name == name else study_encoders.card_of(study, card_name, results)
        row: dict[str, object] = {"library": library, "card": card_name, "n_dims": this.n_dims}
        row["departs"] = "; ".join(part for part in (differs(own, this), note) if part)
        features, predictions = found(card_name)
        row |= _distance(base_features, features, own, this)
        for metric in ("auroc", "balanced_accuracy"):
            over = spread(compare.scores(predictions)[metric] if len(predictions) else [])
            row |= {metric: over.mean, f"{metric}_sd": over.sd}
        rows.append(row | _difference(study, base_predictions, predictions))
    return pd.DataFrame(rows)


def _by_authors(study: Settings, results: Path) -> EncoderCard:
    """The card of ``study.conventions`` as its authors have it, whatever the study's own switch says."""
    theirs = dataclasses.replace(study, switches=dataclasses.replace(study.switches, encoder_input="card"))
    return study_encoders.card_of(theirs, study.conventions, results)


def embeds_otherwise(study: Settings, results: Path) -> str:
    """The card by which the study embeds the encoder where that isn't its authors'; "" where it is."""
    here = study_encoders.card_of(study, study.conventions, results).name
    return "" if here == _by_authors(study, results).name else here


def differs(own: EncoderCard, other: EncoderCard) -> str:
    """In words, in what of what decides an embedding ``other`` differs from ``own``; empty where in nothing."""
    left, right = own.identity(), other.identity()
    keys = [key for key in right if left.get(key) != right[key] and key not in ("n_dims", "n_parameters", "sha256")]
    values = right | {"readout": READOUTS[other.readout].title}
    return ", ".join(SIDES.get(key, f"{key.replace('_', ' ')} {{}}").format(values[key]) for key in keys)


def wide(rows: pd.DataFrame) -> pd.DataFrame:
    """`table` for the eye: distances in per cent, scores as "mean ± SD", the difference signed, with its interval."""
    shown = rows[["library", "departs", "n_dims"]].copy()
    shown["departs"] = shown["departs"].where(shown["departs"] != "", "in nothing")
    for name in ("distance_median", "distance_max"):
        shown[name] = [f"{100 * value:.1f} %" if np.isfinite(value) else "–" for value in rows[name]]
    for name, title in (("auroc", "AUROC"), ("balanced_accuracy", "balanced_accuracy")):
        cells = [compare.plus_minus(m, sd) for m, sd in zip(rows[name], rows[f"{name}_sd"], strict=True)]
        shown[title] = [cell.replace(" ", "\u00a0") for cell in cells]
    shown["AUROC_against_authors"] = [
        (f"{d:+.3f} ({span})" if (span := compare.bounds(low, high)) else f"{d:+.3f}") if np.isfinite(low) else "–"
        for d, low, high in zip(rows["difference"], rows["low"], rows["high"], strict=True)
    ]
    same = (rows["card"] == rows["card"].iloc[0]) & rows["auroc"].notna()
    shown.loc[same, "AUROC_against_authors"] = "the same card"
    shown.loc[rows["library"] == AUTHORS, ["departs", "AUROC_against_authors"]] = "–"
    return shown


def _features(study: Settings, card_name: str, results: Path) -> np.ndarray | None:
    """The finished embeddings of the study's patches under a card, float32 (n_patches, n_dims); None for none."""
    try:
        return store.read_embeddings(study_encoders.find_embeddings(study, card_name, results))[0]
    except store.StoreError:
        return None


def _full_size(study: Settings, card_name: str, results: Path) -> pd.DataFrame:
    """What the card's probe predicted with all the data; empty where it hasn't run."""
    run = compare.current_runs(dataclasses.replace(study, encoders=(card_name,)), results).get(card_name)
    return pd.DataFrame() if run is None else compare.full_size(compare.load_arm(run, card_name, compare.PROBE))


def _distance(base: np.ndarray | None, other: np.ndarray | None, own: EncoderCard, this: EncoderCard) -> dict[str, float]:
    """Median and largest distance of a patch's two embeddings, relative to the norm of the first."""
    alike = own.n_dims == this.n_dims or all(READOUTS[card.readout].begins_with_class_token for card in (own, this))
    if base is None or other is None or not alike:
        return {"distance_median": np.nan, "distance_max": np.nan}
    n = min(own.n_dims, this.n_dims)
    apart = np.linalg.norm(base[:, :n] - other[:, :n], axis=1) / np.linalg.norm(base[:, :n], axis=1)
    return {"distance_median": float(np.median(apart)), "distance_max": float(apart.max())}


def _difference(study: Settings, base: pd.DataFrame, other: pd.DataFrame) -> dict[str, float]:
    if not len(base) or not len(other):
        return {"difference": np.nan, "low": np.nan, "high": np.nan}
    first, second = (by_fold(part, "auroc", study.splits.seed, splits.ALL) for part in (other, base))
    found = paired_difference(first, second, base["n_train"].mean(), base.groupby("fold").size().mean())
    return {"difference": found.estimate, "low": found.low, "high": found.high}
