"""What a study trained, applied to other patches: unlabelled candidates, and external test sets.

Other patches are cut and embedded as the study's own are, into runs of the results folder: a kill
loses one batch, and what is asked of a second arm is read once.

Candidates are the second stage of a detector. An external test set is another study file, named in
``test_on``: its labels and slides are taken, and every arm is tested on all of its patches.
"""

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.data import patches, splits
from mfcore.data.labels import table as labels
from mfcore.encoders.card import EncoderError
from mfcore.study import arms, data
from mfcore.study.predictions import (
    ALL,
    arms_of,
    external_config,
    external_sets,
    external_test,
    features_of,
    find_external,
    find_kept,
)
from mfcore.study.study import Study

SAME_UM_PER_PX = 0.05  # relative; slides of one scanner differ by 1 or 2 %
MAX_NAMED = 10  # shared cases or patches in a message


class CandidateError(ValueError):
    """Candidates that an arm can't score; the message says why and what to do."""


class SharedError(ValueError):
    """An external test set shares cases or patches with the study; the message lists them."""


# ---- candidates ----


@dataclass(frozen=True)
class Scored:
    """Scores of candidates, and what a user of them must know.

    table: the rows of the candidates' table, in its order and with all its columns, and ``score``
    (mean over the folds' probabilities of class 1), ``score_sd`` (their sample standard deviation,
    NaN for one fold) and ``score_fold0`` and so on. sentences: of the arm, and of what it has and
    hasn't seen.
    """

    table: pd.DataFrame
    sentences: list[str]


def predict(
    study: Study,
    arm: str,
    table: str | Path,
    folder: str | Path | None = None,
    device: str = "auto",
    size: float | None = None,
    n_workers: int = 1,
) -> Scored:
    """Score unlabelled candidates by every fold of one of a study's arms, trained on all domains.

    table: CSV with a line a candidate: ``file``, ``x`` and ``y`` (its centre, level-0 px) on
    slides, ``file`` alone of patch images; ``slide``, ``domain`` and ``scanner`` where known; other
    columns are kept. folder: where the files lie, the table's folder if None. size: of the training
    set, one of the study's; None for the largest. Raises ConfigError for an arm that the study
    doesn't have, StoreError for an arm or size that it hasn't trained, CandidateError for columns
    called score... and for another resolution, LabelError and PatchError for wrong tables and
    files, EncoderError where the encoder isn't any more the one that the arm learned from.
    """
    table, settings = Path(table), study.settings
    folder = table.parent if folder is None else Path(folder)
    size = max(settings.splits.sizes) if size is None else size
    units = [splits.Unit(ALL, fold, size) for fold in range(settings.splits.n_folds)]
    trained = {unit: arms.run_of(settings, study.runs, arm, unit) for unit in units}
    rows, candidates = labels.load_candidates(settings.source, table, folder)
    if taken := [name for name in rows if name.startswith("score")]:
        raise CandidateError(f"{table}: scores go into columns score...; rename {taken}")
    stored = _cut(study, table, candidates, folder, n_workers)
    refuse_other_resolution(study, store.read_parquet(stored.path("labels.parquet")), "candidates")
    scores = arms.score(settings, arm, trained, stored, study.folder, device)  # (n_folds, n)
    rows["score"], rows["score_sd"] = scores.mean(axis=0), np.nan
    if len(scores) > 1:
        rows["score_sd"] = scores.std(axis=0, ddof=1)
    for fold, of_fold in enumerate(scores):
        rows[f"score_fold{fold}"] = of_fold
    sentences = [
        (
            f"{len(rows):,} candidates scored by {arm} ({arms_of(settings)[arm].kind}), the mean of"
            f" {len(scores)} folds; a score is the probability of {settings.data.positive}."
        ),
        *_tested(study, arm, size),
    ]
    said = stored.record["facts"]["um_per_px_said_by_study"]
    if said and "um_per_px" not in rows:
        names = ", ".join(f"{one['slide_id']} ({one['um_per_px']:g})" for one in said[:MAX_NAMED])
        sentences.append(f"Slides that don't state their um/px have the study's: {names}.")
    if unseen := sorted({*candidates["domain"]} - {"", *study.labels["domain"]}):
        names = ", ".join(unseen)
        sentences.append(f"The arm has seen nothing of the domains {names}: expect worse scores.")
    return Scored(rows, sentences)


def _tested(study: Study, arm: str, size: float) -> list[str]:
    """How well an arm scores the folds' own test patches, and those of other domains."""
    scores = study.scores[study.scores["arm"] == arm]
    is_mixed = scores["train_domain"] == ALL
    own = scores[is_mixed & (scores["size"] == size)]
    across = scores[~is_mixed & (scores["train_domain"] != scores["domain"])]["auroc"].mean()
    lines = [
        f"On the folds' own test patches: AUROC {own['auroc'].mean():.2f}, Brier score"
        f" {own['brier'].mean():.3f}, expected calibration error {own['ece'].mean():.3f}."
    ]
    if not np.isnan(across):
        lines.append(f"Trained on one domain and tested on another: AUROC {across:.2f}.")
    return lines


def _cut(
    study: Study, table: Path, candidates: pd.DataFrame, folder: Path, n_workers: int
) -> store.Run:
    """The candidates' patches, cut as the study's."""
    inputs = {
        "table": store.file_sha256(table),
        "files": patches.slides_digest(candidates, folder),
    }
    config = data.patches_config(study.settings)
    run = store.open_run(study.folder, "candidates", table.stem, config, inputs)
    reading = data.reading_of(study.settings)
    return run if run.done else patches.extract(candidates, folder, run, reading, n_workers)


def refuse_other_resolution(study: Study, table: pd.DataFrame, what: str) -> None:
    """Raise CandidateError for patches at other um/px than those that the study learned from.

    table: with their ``um_per_px``. what: what the message calls them, such as "candidates". Where
    patches are resampled to the study's um/px, all have one resolution.
    """
    if data.reading_of(study.settings).um_per_px is not None:
        return
    seen, new = np.unique(study.labels["um_per_px"].dropna()), table["um_per_px"].to_numpy()
    is_seen = (abs(new[:, None] / seen - 1) < SAME_UM_PER_PX).any(axis=1)
    if is_seen.all() or (not seen.size and np.isnan(new).all()):
        return
    values, of_study = (
        ", ".join(f"{value:g}" for value in np.unique(numbers)[:5]) or "nan"
        for numbers in (new[~is_seen], seen)
    )
    raise CandidateError(
        f"{(~is_seen).sum():,} {what} are at {values} um/px (nan: unknown), the study learned from"
        f" patches at {of_study}; bring them to that resolution"
    )


# ---- external test sets ----


def folder_of(name: str, data_folder: str | Path) -> Path:
    """Where an external set's data lie: in a folder next to the study's own."""
    return Path(data_folder).resolve().parent / name


def cut(study: Study, name: str, data_folder: str | Path, n_workers: int = 1) -> store.Run:
    """The patches of an external set that the study shares nothing with; see `find`.

    Writes ``kept.parquet``: the patch ids to test on. Facts: ``shared_cases``, ``identical``
    patches. Raises SharedError where there are some, unless the study says ``shared: drop``;
    LabelError and PatchError as for a study's own data, CandidateError for another resolution.
    """
    settings, other = study.settings, external_sets(study.settings)[name]
    folder = data.prepare(other, folder_of(name, data_folder), n_workers)
    table = data.load_labels(other, folder)
    inputs = {file.name: store.file_sha256(file) for file in labels.files_of(other.source, folder)}
    inputs["files"] = patches.slides_digest(table, folder)
    run = store.open_run(study.folder, "external", name, external_config(settings, other), inputs)
    if not run.done:
        of_other = {
            "are_images": not other.source.has_slides,
            "fit": other.patches.fit,
            "slide_um_per_px": other.data.um_per_px,
            "um_per_px_by_scanner": other.data.um_per_px_by_scanner,
            "origin": other.data.origin,
        }
        reading = dataclasses.replace(data.reading_of(settings), **of_other)
        patches.extract(table, folder, run, reading, n_workers)
    table = store.read_parquet(run.path("labels.parquet"))
    refuse_other_resolution(study, table, f"patches of test_on {name}")
    return _keep(study, run)


def _keep(study: Study, run: store.Run) -> store.Run:
    """Which patches of an external set have neither case nor pixels in common with the study's."""
    name, inputs = run.identity["name"], {"external": run.key, "patches": study.patches.key}
    kept = store.open_run(study.folder, "external-kept", name, {}, inputs)
    if not kept.done:
        (ours, _), (new, _) = patches.load(study.patches), patches.load(run)
        # A patch image of unknown case has its file's name for a case: equal names say nothing
        cases = [set(table["case_id"][table["case_id"] != table["file"]]) for table in (ours, new)]
        shared = sorted(set.intersection(*cases))
        known = set(map(patches.pixels, patches.each(study.patches))) - {b""}
        is_same = np.array([patches.pixels(patch) in known for patch in patches.each(run)])
        is_kept = ~(new["case_id"].isin(shared) | is_same)
        store.write_parquet(kept.path("kept.parquet"), new.loc[is_kept, ["patch_id"]])
        ids = new.loc[is_same, "patch_id"].tolist()
        facts = {"shared_cases": shared, "identical": ids, "n_kept": int(is_kept.sum())}
        kept.finish(["kept.parquet"], **facts)
    facts = kept.record["facts"]
    shared, ids = facts["shared_cases"], facts["identical"]
    if study.settings.shared == "drop":
        table, is_kept = _labels(run, kept)
        n_negative, n_positive = (int((table["label"][is_kept] == label).sum()) for label in (0, 1))
        if not (n_negative and n_positive):
            raise SharedError(
                f"test_on: {name}: without the cases and patches that study {study.name!r} has,"
                f" too, {n_positive:,} patches of the positive class and {n_negative:,} of the"
                " negative are left; both are needed. Where other patients have the same names,"
                " rename the cases"
            )
    elif shared or ids:
        raise SharedError(
            f"test_on: {name}: {len(shared)} cases are in study {study.name!r}, too"
            f" ({', '.join(shared[:MAX_NAMED])}), and {len(ids)} patches have the pixels of one of"
            f" its patches ({', '.join(map(str, ids[:MAX_NAMED]))}); leave them out by shared:"
            " drop, or, where other patients have the same names, rename the cases"
        )
    return kept


def _labels(run: store.Run, kept: store.Run) -> tuple[pd.DataFrame, pd.Series]:
    """The labels of an external set's patches, and whether each patch is kept to test on."""
    table = store.read_parquet(run.path("labels.parquet"))
    ids = store.read_parquet(kept.path("kept.parquet"))["patch_id"]
    return table, table["patch_id"].isin(ids)


def test(study: Study, name: str, arm: str, device: str = "auto") -> store.Run:
    """Test an arm at every size and fold on an external set; ``predictions.parquet`` as
    `predictions`.

    Raises StoreError where `cut` hasn't been called or the arm isn't trained, ConfigError for an
    arm that the study doesn't have, and EncoderError where the encoder isn't any more the one that
    the arm learned from.
    """
    settings, folder, known = study.settings, study.folder, arms_of(study.settings)
    sizes = [one.sizes for one in settings.networks if one.name == arm and one.sizes]
    folds = range(settings.splits.n_folds)
    of_all = itertools.product(*sizes or [settings.splits.sizes], folds)
    units = [splits.Unit(ALL, fold, size) for size, fold in of_all]
    trained = {unit: arms.run_of(settings, study.runs, arm, unit) for unit in units}
    run = store.open_run(folder, *external_test(settings, folder, study.runs, name, known[arm]))
    if run.done:
        return run
    stored = find_external(settings, name, folder)
    table, is_kept = _labels(stored, find_kept(settings, name, folder))
    elsewhere = features_of(external_sets(settings)[name], known[arm].encoder)
    scores = arms.score(settings, arm, trained, stored, folder, device, elsewhere)
    table = table.loc[is_kept, ["patch_id", "slide_id", "case_id", "domain", "label"]]
    tables = [
        table.assign(score=of_unit[is_kept], fold=unit.fold, size=unit.size)
        for unit, of_unit in zip(units, scores, strict=True)
    ]
    store.write_parquet(run.path("predictions.parquet"), pd.concat(tables, ignore_index=True))
    return run.finish(["predictions.parquet"], n_patches=len(table))


def test_all(study: Study, device: str = "auto") -> pd.DataFrame:
    """Test every trained arm on every external set: ``tested_on, arm, reason``.

    reason: why an arm isn't tested, empty where it is; one arm stops no other.
    """
    settings, rows = study.settings, []
    for name, arm in itertools.product(external_sets(settings), arms_of(settings)):
        try:
            test(study, name, arm, device)
            rows.append((name, arm, ""))
        except (EncoderError, store.StoreError) as error:
            rows.append((name, arm, str(error)))
    return pd.DataFrame(rows, columns=["tested_on", "arm", "reason"])
