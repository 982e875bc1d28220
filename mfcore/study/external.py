"""External test sets: every arm of a study, tested on all patches of data that it hasn't learned
from.

A study names other study files in ``test_on``. Of each the labels and slides are taken; the patches
are cut as this study's own, so that encoders and networks see what they learned from.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.data import patches, splits
from mfcore.data.labels import table as labels
from mfcore.study import candidates, data
from mfcore.study.config import ConfigError, Settings, load_study
from mfcore.study.predictions import ALL, PROBE, kind_of
from mfcore.study.study import Study

MAX_NAMED = 10  # shared cases or patches in a message


class SharedError(ValueError):
    """An external test set shares cases or patches with the study; the message lists them."""


def sets_of(settings: Settings) -> dict[str, Settings]:
    """The studies that a study is also tested on, by name.

    Raises ConfigError for a file that is wrong, and for two of one name.
    """
    found: dict[str, Settings] = {}
    for file in settings.test_on:
        other = load_study(file)
        if other.name in found or other.name == settings.name:
            raise ConfigError(
                f"test_on: {file}: a study {other.name!r} is there already; rename it"
            )
        found[other.name] = other
    return found


def folder_of(name: str, data_folder: str | Path) -> Path:
    """Where an external set's data lie: beside the study's own."""
    return Path(data_folder).resolve().parent / name


def cut(study: Study, name: str, data_folder: str | Path, n_workers: int = 1) -> store.Run:
    """The patches of an external set that the study shares nothing with; see `find`.

    Writes ``kept.parquet``: the patch ids to test on. Facts: ``shared_cases``, ``identical``
    patches. Raises SharedError where there are some, unless the study says ``shared: drop``;
    LabelError and PatchError as for a study's own data, CandidateError for another resolution.
    """
    settings, other = study.settings, sets_of(study.settings)[name]
    folder = data.prepare(other, folder_of(name, data_folder), n_workers)
    table = data.load_labels(other, folder)
    inputs = {file.name: store.file_sha256(file) for file in labels.files_of(other.source, folder)}
    inputs["files"] = patches.slides_digest(table, folder)
    run = store.open_run(study.folder, "external", name, _config(settings, other), inputs)
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
    candidates.refuse_other_resolution(study, store.read_parquet(run.path("labels.parquet")))
    return _keep(study, run)


def _config(settings: Settings, other: Settings) -> dict:
    own = data.patches_config(settings)
    return {"cut": {**own, "data": None}, "data": data.patches_config(other)["data"]}


def _keep(study: Study, run: store.Run) -> store.Run:
    """Which patches of an external set have neither case nor pixels in common with the study's."""
    name, inputs = run.identity["name"], {"external": run.key, "patches": study.patches.key}
    kept = store.open_run(study.folder, "external-kept", name, {}, inputs)
    if not kept.done:
        (own, _), (new, _) = patches.load(study.patches), patches.load(run)
        cases = sorted(set(own["case_id"]) & set(new["case_id"]))
        known = set(map(patches.pixels, patches.each(study.patches))) - {b""}
        is_same = np.array([patches.pixels(patch) in known for patch in patches.each(run)])
        is_shared = new["case_id"].isin(cases) | is_same
        store.write_parquet(kept.path("kept.parquet"), new.loc[~is_shared, ["patch_id"]])
        ids = new.loc[is_same, "patch_id"].tolist()
        kept.finish(
            ["kept.parquet"], shared_cases=cases, identical=ids, n_kept=int((~is_shared).sum())
        )
    facts = kept.record["facts"]
    if (facts["shared_cases"] or facts["identical"]) and study.settings.shared != "drop":
        cases, same = facts["shared_cases"], facts["identical"]
        raise SharedError(
            f"test_on: {name}: {len(cases)} cases are in study {study.name!r}, too"
            f" ({', '.join(cases[:MAX_NAMED])}), and {len(same)} patches have the pixels of one of"
            f" its patches ({', '.join(map(str, same[:MAX_NAMED]))}); leave them out by shared:"
            " drop, or, where other patients have the same names, rename the cases"
        )
    return kept


def test(study: Study, name: str, arm: str, device: str = "auto") -> store.Run:
    """Test an arm at every size and fold on an external set; ``predictions.parquet`` as
    `predictions`.

    Raises StoreError where `cut` hasn't been called, CandidateError where the arm isn't trained,
    and EncoderError where the encoder isn't any more the one that the arm learned from.
    """
    stored = find(study, name)
    made_of = {"external": stored.key, "patches": study.patches.key}
    kept = store.find_run(study.folder, "external-kept", name, {}, made_of)
    units = _units(study, arm)
    runs = [candidates.run_of(study, arm, unit) for unit in units]
    trained = {f"{run.identity['name']}": run.key for run in runs}
    inputs = {**trained, "external": stored.key, "kept": kept.key}
    run = store.open_run(
        study.folder, "external-test", f"{name}-{arm}", {"shared": study.settings.shared}, inputs
    )
    if not run.done:
        table = store.read_parquet(stored.path("labels.parquet"))
        is_kept = table["patch_id"].isin(store.read_parquet(kept.path("kept.parquet"))["patch_id"])
        scores = candidates.scores_of(study, arm, runs, units, stored, device)
        columns = ["patch_id", "slide_id", "case_id", "domain", "label"]
        tables = [
            table.loc[is_kept, columns].assign(
                score=of_unit[is_kept], fold=unit.fold, size=unit.size
            )
            for unit, of_unit in zip(units, scores, strict=True)
        ]
        store.write_parquet(run.path("predictions.parquet"), pd.concat(tables, ignore_index=True))
        run.finish(["predictions.parquet"], n_patches=int(is_kept.sum()))
    return run


def find(study: Study, name: str) -> store.Run:
    """The finished patches of an external set; raises StoreError where there are none."""
    config = _config(study.settings, sets_of(study.settings)[name])
    return store.find_run(study.folder, "external", name, config)


def _units(study: Study, arm: str) -> list[splits.Unit]:
    """What an arm was trained on over all domains: every size that it has, and every fold."""
    settings, sizes = study.settings, study.settings.splits.sizes
    if arm not in settings.encoders:
        sizes = settings.network(arm).sizes or sizes
    return [
        splits.Unit(ALL, fold, size) for size in sizes for fold in range(settings.splits.n_folds)
    ]


def predictions(study: Study) -> pd.DataFrame:
    """What all arms predict on all external sets: as `predictions.Collected`, with ``tested_on``.

    No rows where the study has no such set, or no arm was tested yet.
    """
    tables = []
    for name in sets_of(study.settings):
        for run in store.runs(study.folder, "external-test"):
            arm = run.identity["name"].removeprefix(f"{name}-")
            if run.identity["name"] == f"{name}-{arm}" and _is_current(study, run, name, arm):
                kind = (
                    PROBE
                    if arm in study.settings.encoders
                    else kind_of(study.settings.network(arm))
                )
                table = store.read_parquet(run.path("predictions.parquet"))
                tables.append(table.assign(arm=arm, kind=kind, tested_on=name))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _is_current(study: Study, run: store.Run, name: str, arm: str) -> bool:
    """Whether a test was made by the arm's current runs on the set's current patches."""
    arms = [*study.settings.encoders, *(network.name for network in study.settings.networks)]
    if arm not in arms:
        return False
    inputs = run.identity["inputs"]
    own = {key: run.key for key, run in study.runs.items() if key in inputs}
    return (
        inputs["external"] == find(study, name).key
        and all(inputs[key] == own[key] for key in own)
        and bool(own)
    )
