"""A study's pretrainings: one run each, from slides to an encoder like any other.

The command is ``python -m mfcore.pretraining.pretrain --study FILE --encoder NAME --data FOLDER --results FOLDER``. With
``torchrun --nproc-per-node N -m mfcore.pretraining.pretrain ...`` N processes, each with its own GPU, share every batch. A
second start of a pretraining at work is refused.

Batches below 256 patches, and trainings below 12,500 steps, are smaller than the trainings that the published settings were
made for: in our trials the teacher soon gave all images the same target. Our own defaults stand in for them
(`config_pretraining.SMALL`): a teacher's temperature of 0.02, which had the largest effect, Sinkhorn-Knopp, KoLeo, and, in
small batches, as many prototypes as a batch has targets. Learning rates are scaled to the batch. If a teacher collapses all the
same (`objective`), the training stops and says what to change: the temperature where targets are uniform, or ``momentum``
towards 0.9995 where a few prototypes get all images (DINO's authors name it for a batch of 256).
"""

import argparse
import contextlib
import dataclasses
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from mfcore import encoders, store
from mfcore.data import patches
from mfcore.data.labels import table as labels
from mfcore.encoders.card import EncoderCard
from mfcore.pretraining import crops, loop, networks, objective
from mfcore.pretraining.feed import Batch, batches
from mfcore.pretraining.objective import PretrainingError
from mfcore.pretraining.slides import Kept, PatchingError, SlideFile, slides_in, slides_listed
from mfcore.pretraining.source import Source
from mfcore.store import errors as store_errors, files as store_files
from mfcore.store.records import digest
from mfcore.study import pretrained
from mfcore.study.config import ConfigError, Pretraining, Settings, load_study
from mfcore.study.config_pretraining import in_full
from mfcore.training import processes

__all__ = ["PretrainingError", "example", "load_history", "main", "pretrain", "slides_of"]

N_WATCHED = 512  # patches by which RankMe is measured on the way
TISSUE = "tissue"  # of a run that isn't finished: a folder with the tissue found so far
N_LAST = 20  # lines of the history by which a training is called collapsed

log = logging.getLogger(__name__)


def pretrain(
    study: Settings,
    name: str,
    data_folder: str | Path,
    results: str | Path,
    device: str = "auto",
    n_workers: int = 1,
    watch: Callable[[pd.DataFrame], None] | None = None,
) -> store.Run:
    """Pretrain the study's encoder ``name`` from slides; returns its run. A run that was stopped goes on.

    The run holds ``history.jsonl`` (see `load_history`), ``drawn.parquet`` (positions of the first 100,000 patches) and a
    folder for each snapshot (see `mfcore.study.pretrained`); an unfinished run also holds a checkpoint and the tissue found so
    far. data_folder: holds the study's own slides, which are made or fetched if possible; not read for a pretraining with other
    ``slides``. device: as for `encoders.choose_device`. n_workers: threads that read patches, in each process. watch: called
    with the history when it has a new line. Raises ConfigError, LabelError, PatchingError (no slide can be read), EncoderError
    (the network, or the encoder to start from), StoreError (another process is at work on the run) and PretrainingError (the
    training diverged or collapsed, or this number of processes can't share a batch).
    """
    settings, ranks = in_full(study.pretraining_of(name)), processes.here()
    if name in encoders.names():
        raise PretrainingError(f"pretraining[{name}].name: the name of a known encoder; call it something else")
    loop.check_share(settings)  # before slides are fetched and looked at
    if not settings.slides and ranks.is_first:
        patches.prepare(study, data_folder)
    ranks.as_first(None)  # the others wait for the slides
    slides = slides_of(study, settings, data_folder)
    inputs = {"slides": _digest_of(slides)}
    start = start_of(study, settings, results)
    if start is not None:
        inputs["start"] = digest(start.identity())
    run = store.open_run(results, pretrained.STAGE, name, pretrained.config_of(study, name), inputs)
    key, done = ranks.as_first((run.key, run.done))
    if key != run.key:
        raise PretrainingError(
            f"pretraining[{name}]: process {ranks.rank} finds other slides or another start than the first does; give all "
            "machines the same files"
        )
    if not done:
        where = encoders.choose_device(device)
        pair = networks.build(settings, start)
        with store.alone(run.folder, "pretraining") if ranks.is_first else contextlib.nullcontext():
            if not ranks.as_first(run.done):  # while this one looked, another may have finished it
                _train(study, settings, pair, slides, run, where, n_workers, watch)
    if ranks.is_first:
        _clear(run)
    ranks.as_first(None)  # the others wait until the run is finished
    return run


def slides_of(study: Settings, settings: Pretraining, data_folder: str | Path) -> list[SlideFile]:
    """The slides that a pretraining draws from: the study's own, or the slides below ``settings.slides`` (in the data folder).

    Raises PatchingError for a study of patches without slides and a folder without any, LabelError as `labels.table.load`.
    """
    data = study.data
    if settings.slides:
        try:
            return slides_in(Path(data_folder) / Path(settings.slides).expanduser(), data.um_per_px)
        except PatchingError as error:
            raise PatchingError(f"pretraining[{settings.name}].slides: {error}") from None
    if not study.source.has_slides:
        raise PatchingError(
            f"study {study.name!r} has patches and no slides to draw from; name a folder in pretraining[{settings.name}].slides"
        )
    table = labels.load(study, data_folder)
    return slides_listed(table, data_folder, lambda scanner: data.um_per_px_by_scanner.get(scanner, data.um_per_px))


def start_of(study: Settings, settings: Pretraining, results: str | Path) -> EncoderCard | None:
    """The card of the encoder whose weights a pretraining starts from; None for random weights.

    Raises EncoderError where there is no such encoder.
    """
    if settings.start == "random":
        return None
    try:
        return encoders.of(study, settings.start, results)
    except encoders.EncoderError as error:
        raise encoders.EncoderError(f"pretraining[{settings.name}].start: {error}") from error


def _train(
    study: Settings,
    settings: Pretraining,
    pair: networks.Networks,
    slides: list[SlideFile],
    run: store.Run,
    device: torch.device,
    n_workers: int,
    watch: Callable[[pd.DataFrame], None] | None,
) -> None:
    """Train from where the run stands, and close it."""
    ranks = processes.here()
    if ranks.is_first and (warning := objective.warning_before(settings)):
        log.warning(warning)
    kept = Kept(run.path(TISSUE))
    with contextlib.closing(Source(slides, settings.patches, settings.seed, kept=kept)) as source:
        if settings.patches.uniform_over == "tissue":
            source.survey(n_workers)  # all processes at once, before any of them waits for another
        task = _task(study, settings, pair, source, n_workers, run.folder)
        n_patches = settings.n_steps * settings.batch_size
        tell = None if watch is None else lambda history: watch(pd.DataFrame(history))
        title = f"pretrain {settings.name}"
        with tqdm(total=n_patches, desc=title, unit="patch", disable=not ranks.is_first) as progress:
            history = loop.train(task, pair, run.folder, device, after_line=tell, progress=progress)
        if ranks.is_first:
            _finish(run, settings, pair, history, device, source)


def _task(
    study: Settings, settings: Pretraining, pair: networks.Networks, source: Source, n_workers: int, folder: Path
) -> loop.Task:
    """What the loop learns from, and the patches by which it is watched."""
    ranks = processes.here()
    watched = _watched(source, settings, n_workers) if ranks.is_first else None  # the first process alone measures
    card = _card(study, settings, pair, settings.n_steps)
    sees = dataclasses.replace(card, resize_px=max(settings.patches.size_px, card.crop_px))

    def read(first: int, n_batches: int) -> Iterator[Batch]:
        return batches(source, first, n_batches, settings.batch_size, ranks.rank, ranks.n, n_workers)

    def keep(step: int) -> None:
        networks.export(pair, _card(study, settings, pair, step), pretrained.snapshot_folder(folder, step))

    return loop.Task(settings, read, watched, sees, keep, tuple(pretrained.steps_of(settings)))


def _card(study: Settings, settings: Pretraining, pair: networks.Networks, step: int) -> EncoderCard:
    """The card of the encoder after ``step`` steps."""
    of_what = "synthetic slides" if study.synthetic and not settings.slides else "slides"
    facts = (
        f"pretrained in study {study.name!r} on {of_what}: {settings.method}, {step:,} of {settings.n_steps:,} steps of "
        f"{settings.batch_size} patches, start: {settings.start}"
    )
    return networks.card(pair, settings, study.patches, facts)


def _watched(source: Source, settings: Pretraining, n_workers: int) -> np.ndarray:
    """N_WATCHED patches, uint8 (n, size_px, size_px, 3), of the same slides, from behind all that are learnt from."""
    first = max(settings.n_steps * settings.batch_size, settings.patches.n_distinct or 0)
    with contextlib.closing(batches(source.without_repeats(), first, 1, N_WATCHED, n_workers=n_workers)) as one:
        return next(one).images


def example(
    study: Settings, name: str, data_folder: str | Path, n: int = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray, pd.DataFrame]:
    """The first ``n`` patches (a batch at most) that a pretraining learns from, their crops, and where the patches lie.

    Patches: uint8 (n, size_px, size_px, 3). Crops, coloured as the network gets them: global ones, uint8 (2, n, g, g, 3), and
    local ones, uint8 (n_local, n, l, l, 3). Raises as `pretrain` does for its slides.
    """
    settings = in_full(study.pretraining_of(name))
    n = min(n, settings.batch_size)
    if not settings.slides:
        patches.prepare(study, data_folder)
    slides = slides_of(study, settings, data_folder)
    with (
        contextlib.closing(Source(slides, settings.patches, settings.seed)) as source,
        contextlib.closing(batches(source, 0, 1, n)) as one,
    ):
        batch = next(one)
    images = torch.from_numpy(batch.images).permute(0, 3, 1, 2)
    drawn = loop.crops_of(settings, 0)[:n]
    views = crops.make(images, drawn, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    crop_images = ((view.clamp(0, 1) * 255).round().byte().movedim(2, -1).numpy() for view in views)
    return batch.images, *crop_images, batch.drawn


def _finish(
    run: store.Run,
    settings: Pretraining,
    pair: networks.Networks,
    history: list[dict],
    device: torch.device,
    source: Source,
) -> None:
    """Close the run, and warn of a teacher that ended collapsed."""
    folders = [pretrained.snapshot_folder(run.folder, step) for step in pretrained.steps_of(settings)]
    files = [
        str((folder / name).relative_to(run.folder)) for folder in folders for name in ("card.json", "weights.safetensors")
    ]
    seconds = history[-1]["seconds"]
    if collapsed := objective.collapse_of(history[-N_LAST:], settings):  # a training too short to be stopped
        log.warning("pretraining[%s] ended collapsed: %s. %s", settings.name, collapsed, objective.remedy(settings))
    run.finish(
        ["history.jsonl", "drawn.parquet", *files],
        n_parameters=sum(parameter.numel() for parameter in pair.student.parameters()),
        n_slides=len(source.slides),
        slides_left_out=source.left_out,
        slides_failed_in_part={name: reason for name, reason in source.failures.items() if name not in source.left_out},
        n_patches=settings.n_steps * settings.batch_size,
        training_seconds=round(seconds, 1),
        patches_per_second=round(settings.n_steps * settings.batch_size / seconds, 1),
        device=str(device),
        n_processes=processes.here().n,
        precision="bfloat16" if encoders.computes_bfloat16(device) else "float32",
        n_watched=N_WATCHED,
        collapsed=collapsed,
    )


def _clear(run: store.Run) -> None:
    """Remove what only a run that isn't finished needs."""
    if (checkpoint := run.path("checkpoint.pt")).exists():  # a read-only disk refuses to remove a missing file, too
        checkpoint.unlink()
    shutil.rmtree(run.path(TISSUE), ignore_errors=True)


def _digest_of(slides: Sequence[SlideFile]) -> str:
    """Digest of the slides' names, um/px and content; a missing file has no content."""
    fingerprint = store_files.Fingerprints().of_slide
    contents = [fingerprint(slide.path) if Path(slide.path).exists() else None for slide in slides]
    return digest([[slide.slide_id, slide.um_per_px, content] for slide, content in zip(slides, contents, strict=True)])


def load_history(run: store.Run) -> pd.DataFrame:
    """How pretraining went, a row a line of ``history.jsonl``.

    ``step`` (steps done), ``loss`` and its parts ``loss_dino, loss_ibot, loss_koleo`` and ``teacher_entropy`` (in nats; means
    over the steps of the line), ``target_entropy`` (of the running mean of targets: log of n_prototypes when spread, 0 when
    collapsed), the schedules' ``learning_rate, weight_decay, momentum, teacher_temperature`` of the line's last step,
    ``rankme`` (of the teacher's embeddings of patches that aren't learnt from; NaN where it wasn't measured),
    ``patches_per_second`` and ``seconds`` (since the beginning, without what was lost by a kill).
    """
    return pd.read_json(run.path("history.jsonl"), lines=True, precise_float=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: pretrain one encoder of a study; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mfcore.pretraining.pretrain", description=main.__doc__)
    parser.add_argument("--study", type=Path, required=True, help="a study's YAML file")
    parser.add_argument("--encoder", required=True, help="one of the study's pretrainings")
    parser.add_argument("--data", type=Path, help="the folder of the study's data (data/<study> beside studies/)")
    parser.add_argument("--results", type=Path, required=True, help="the folder that holds the study's")
    parser.add_argument("--device", default="auto", help='"cpu", "cuda" or "auto": a GPU where there is one (auto)')
    parser.add_argument("--workers", type=int, default=1, help="threads that read patches, for each process (1)")
    chosen = parser.parse_args(arguments)
    try:
        study = load_study(chosen.study)
        data = chosen.data or chosen.study.parent.parent / "data" / study.name
        with processes.joined(chosen.device) as device:
            run = pretrain(study, chosen.encoder, data, chosen.results / study.name, device, chosen.workers)
            if processes.here().is_first:
                print(run.folder)
    except (
        ConfigError,
        PretrainingError,
        PatchingError,
        labels.LabelError,
        store.StoreError,
        encoders.EncoderError,
        ValueError,
        OSError,
    ) as error:
        print(f"mfcore: {store_errors.told(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
