"""Scores of unlabelled candidates by what a study trained: the second stage of a detector.

The candidates' patches are cut and embedded as the study's own are, into runs of the results
folder: a kill loses one batch, and the same table asked of a second arm is read once.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.data import patches, splits
from mfcore.data.labels import table as labels
from mfcore.encoders.card import EncoderError
from mfcore.study import data
from mfcore.study.predictions import ALL, PROBE, kind_of
from mfcore.study.study import Study

SAME_UM_PER_PX = 0.05  # relative; slides of one scanner differ by 1 or 2 %
MEASURED = ("auroc", "brier", "ece")


class CandidateError(ValueError):
    """Candidates that an arm can't score; the message says why and what to do."""


@dataclass(frozen=True)
class Scored:
    """Scores of candidates, and what is known of the arm that gave them.

    table: the rows of the candidates' table, in its order and with all its columns, and ``score``
    (mean over the folds' probabilities of class 1), ``score_sd`` (their standard deviation) and
    ``score_fold0`` and so on. facts: ``arm``, ``kind``, ``size``, ``n_folds``, ``positive``; by
    metric of MEASURED the mean over the folds' own test patches; ``domains`` that the arm learned
    from, ``other_domains`` of the candidates; ``auroc_across``: the mean over pairs of one domain
    learned and another tested, NaN where the study has none.
    """

    table: pd.DataFrame
    facts: dict

    @property
    def sentences(self) -> list[str]:
        """What a user of the scores must know."""
        facts = self.facts
        said = [
            (
                f"{len(self.table):,} candidates scored by {facts['arm']} ({facts['kind']}), the"
                f" mean of {facts['n_folds']} folds; a score is the probability of"
                f" {facts['positive']}."
            ),
            (
                f"On the folds' own test patches: AUROC {facts['auroc']:.2f}, Brier score"
                f" {facts['brier']:.3f}, expected calibration error {facts['ece']:.3f}."
            ),
        ]
        if not np.isnan(facts["auroc_across"]):
            across = facts["auroc_across"]
            said.append(f"Trained on one domain and tested on another: AUROC {across:.2f}.")
        if facts["other_domains"]:
            names = ", ".join(facts["other_domains"])
            said.append(f"The arm has seen nothing of the domains {names}: expect worse scores.")
        return said


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
    set, one of the study's; None for the largest. Raises CandidateError for an arm or size that the
    study hasn't trained and for another resolution, LabelError and PatchError for wrong tables and
    files, EncoderError where the encoder isn't any more the one that the arm learned from.
    """
    table, settings = Path(table), study.settings
    folder = table.parent if folder is None else Path(folder)
    size = max(settings.splits.sizes) if size is None else size
    units = [splits.Unit(ALL, fold, size) for fold in range(settings.splits.n_folds)]
    runs = [run_of(study, arm, unit) for unit in units]
    rows, candidates = labels.load_candidates(settings.source, table, folder)
    stored = _cut(study, table, candidates, folder, n_workers)
    refuse_other_resolution(study, store.read_parquet(stored.path("labels.parquet")))
    scores = scores_of(study, arm, runs, units, stored, device)  # (n_folds, n_candidates)
    rows["score"], rows["score_sd"] = scores.mean(axis=0), scores.std(axis=0)
    for fold, of_fold in enumerate(scores):
        rows[f"score_fold{fold}"] = of_fold
    return Scored(rows, _facts(study, arm, size, len(scores), candidates))


def run_of(study: Study, arm: str, unit: splits.Unit) -> store.Run:
    """The finished run of an arm that trained a unit; raises CandidateError where there is none."""
    settings = study.settings
    arms = [*settings.encoders, *(network.name for network in settings.networks)]
    if arm not in arms:
        raise CandidateError(f"study {study.name!r} has no arm {arm!r}; it has {arms}")
    is_probe = arm in settings.encoders
    name = arm if is_probe else f"{arm}-fold{unit.fold}"
    if name not in study.runs:
        raise CandidateError(
            f"{study.folder}: {name} isn't trained yet; run: make paper STUDY={study.name}"
        )
    run = study.runs[name]
    if not run.unit_file(unit.name, ".npz" if is_probe else ".safetensors").is_file():
        raise CandidateError(
            f"{arm} isn't trained at size {unit.size:g}; the study's sizes are"
            f" {list(settings.splits.sizes)}"
        )
    return run


def scores_of(
    study: Study,
    arm: str,
    runs: list[store.Run],
    units: list[splits.Unit],
    stored: store.Run,
    device: str,
) -> np.ndarray:
    """Probabilities of class 1, float64 (n_units, n_patches), of patches cut as the study's.

    stored: their run. Raises EncoderError where the encoder isn't the one that the arm learned
    from.
    """
    score = _by_probe if arm in study.settings.encoders else _by_network
    return score(study, arm, runs, units, stored, device)


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


def refuse_other_resolution(study: Study, candidates: pd.DataFrame) -> None:
    """Raise CandidateError for candidates at other um/px than the patches that the arm learned
    from.

    Where patches are resampled to the study's um/px, all have one resolution.
    """
    if data.reading_of(study.settings).um_per_px is not None:
        return
    known, new = study.labels["um_per_px"].dropna(), candidates["um_per_px"]
    if known.empty and new.isna().all():
        return
    low, high = known.min() / (1 + SAME_UM_PER_PX), known.max() * (1 + SAME_UM_PER_PX)
    other = candidates[~new.between(low, high)]
    if len(other):
        values = ", ".join(f"{value:g}" for value in np.unique(other["um_per_px"])[:5])
        raise CandidateError(
            f"{len(other):,} candidates are at {values} um/px (nan: unknown), the study learned"
            f" from {known.min():g} to {known.max():g}; bring them to that resolution"
        )


def _by_probe(
    study: Study,
    arm: str,
    runs: list[store.Run],
    units: list[splits.Unit],
    stored: store.Run,
    device: str,
) -> np.ndarray:
    """Probabilities of class 1, float64 (n_folds, n_candidates), by an encoder's probes."""
    from mfcore.encoders import embed
    from mfcore.study.encoders import embeddings_config
    from mfcore.training import probe

    embeddings, config = study.embeddings(arm), embeddings_config(study.settings, arm, study.folder)
    if embeddings.key != runs[0].identity["inputs"]["embeddings"]:
        raise EncoderError(
            f"{arm}: its probes learned from other embeddings than {embeddings.folder}; run"
            " notebook 03 again"
        )
    card = study.card(arm)
    embed.check_finished(embeddings, card, device)  # the contract, and the canary where weights are
    inputs = {"candidates": stored.key, "embeddings": embeddings.key}
    run = store.open_run(study.folder, "candidate-embeddings", arm, config, inputs)
    if not run.done:
        table = store.read_parquet(stored.path("labels.parquet"))
        placing = data.placing_of(study.settings)
        embed.embed(stored.path("patches.npy"), table, card, run, placing, device)
    features, _ = embed.load(run)
    heads = [probe.load_head(run_, unit.name) for run_, unit in zip(runs, units, strict=True)]
    return np.stack([head.predict(features) for head in heads]).astype(np.float64)


def _by_network(
    study: Study,
    arm: str,
    runs: list[store.Run],
    units: list[splits.Unit],
    stored: store.Run,
    device: str,
) -> np.ndarray:
    """Probabilities of class 1, float64 (n_folds, n_candidates), by a network of each fold."""
    from mfcore.study.encoders import training_card_of
    from mfcore.training import train

    settings, network = study.settings, study.settings.network(arm)
    card = training_card_of(settings, network.architecture)
    _, images = patches.load(stored)
    return np.stack(
        [
            train.score(
                unit,
                network,
                card,
                settings.splits.seed,
                run.unit_file(unit.name, ".safetensors"),
                images,
                device,
            )
            for run, unit in zip(runs, units, strict=True)
        ]
    )


def _facts(study: Study, arm: str, size: float, n_folds: int, candidates: pd.DataFrame) -> dict:
    """What is known of an arm; see `Scored`."""
    settings, scores = study.settings, study.scores[study.scores["arm"] == arm]
    tested = scores[(scores["train_domain"] == ALL) & (scores["size"] == size)]
    across = scores[(scores["train_domain"] != ALL) & (scores["train_domain"] != scores["domain"])]
    learned, new = sorted(set(study.labels["domain"])), set(candidates["domain"]) - {""}
    is_probe = arm in settings.encoders
    return {
        "arm": arm,
        "kind": PROBE if is_probe else kind_of(settings.network(arm)),
        "size": size,
        "n_folds": n_folds,
        "positive": settings.data.positive,
        **{name: float(tested[name].mean()) for name in MEASURED},
        "auroc_across": float(across["auroc"].mean()),
        "domains": learned,
        "other_domains": sorted(new - set(learned)),
    }
