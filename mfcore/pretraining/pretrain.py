"""A pretraining: from slides to an encoder like any other.

Several processes, each with its own GPU, may share every batch. A second start of a pretraining at work is refused.

Batches below 256 patches, and trainings below 12,500 steps, are smaller than the trainings that the published settings were
made for: in our trials the teacher soon gave all images the same target. Our own defaults stand in for them
(`method.SMALL`): a teacher's temperature of 0.02, which had the largest effect, Sinkhorn-Knopp, KoLeo, and, in
small batches, as many prototypes as a batch has targets. Learning rates are scaled to the batch. If a teacher collapses all the
same (`objective`), the training stops and says what to change: the temperature where targets are uniform, or ``momentum``
towards 0.9995 where a few prototypes get all images (DINO's authors name it for a batch of 256).
"""

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from mfcore import encoders, store
from mfcore.data.options import Patches
from mfcore.encoders.card import EncoderCard
from mfcore.pretraining import crops, loop, networks, objective
from mfcore.pretraining.feed import Batch, batches
from mfcore.pretraining.method import Pretraining, in_full, snapshot_folder, steps_of
from mfcore.pretraining.objective import PretrainingError
from mfcore.pretraining.slides import Kept, SlideFile
from mfcore.pretraining.source import Source
from mfcore.store import files as store_files
from mfcore.store.records import digest
from mfcore.training import processes

__all__ = ["PretrainingError", "example", "load_history", "pretrain", "slides_digest"]

N_WATCHED = 512  # patches by which RankMe is measured on the way
TISSUE = "tissue"  # of a run that isn't finished: a folder with the tissue found so far
N_LAST = 20  # lines of the history by which a training is called collapsed

log = logging.getLogger(__name__)


def pretrain(
    slides: list[SlideFile],
    settings: Pretraining,
    run: store.Run,
    start: EncoderCard | None,
    stored: Patches,
    origin: str = "on slides",
    device: str = "auto",
    n_workers: int = 1,
    watch: Callable[[pd.DataFrame], None] | None = None,
) -> store.Run:
    """Pretrain an encoder from slides; fills and finishes ``run``. A run that was stopped goes on.

    The run holds ``history.jsonl`` (see `load_history`), ``drawn.parquet`` (positions of the first 100,000 patches) and a
    folder for each snapshot (`method.snapshot_folder`), with ``card.json`` and ``weights.safetensors``; an unfinished run also
    holds a checkpoint and the tissue found so far. start: the encoder whose weights it starts from; None for random weights.
    stored: the patches that the encoder will embed. origin: from what it is pretrained, for its card. device: as for
    `encoders.choose_device`. n_workers: threads that read patches, in each process. watch: called with the history when it has
    a new line. Raises PatchingError (no slide can be read), EncoderError (the network, or the encoder to start from),
    StoreError (another process is at work on the run) and PretrainingError (the training diverged or collapsed, or this number
    of processes can't share a batch).
    """
    settings, ranks = in_full(settings), processes.here()
    loop.check_share(settings)
    key, done = ranks.as_first((run.key, run.done))
    if key != run.key:
        raise PretrainingError(
            f"pretraining[{settings.name}]: process {ranks.rank} finds other slides or another start than the first does; give "
            "all machines the same files"
        )
    if not done:
        where = encoders.choose_device(device)
        pair = networks.build(settings, start)

        def card_of(step: int) -> EncoderCard:
            steps = f"{step:,} of {settings.n_steps:,} steps of {settings.batch_size} patches"
            facts = f"pretrained {origin}: {settings.method}, {steps}, start: {settings.start}"
            return networks.card(pair, settings, stored, facts)

        with store.alone(run.folder, "pretraining") if ranks.is_first else contextlib.nullcontext():
            if not ranks.as_first(run.done):  # while this one looked, another may have finished it
                _train(slides, settings, pair, card_of, run, where, n_workers, watch)
    if ranks.is_first:
        _clear(run)
    ranks.as_first(None)  # the others wait until the run is finished
    return run


def _train(
    slides: list[SlideFile],
    settings: Pretraining,
    pair: networks.Networks,
    card_of: Callable[[int], EncoderCard],
    run: store.Run,
    device: torch.device,
    n_workers: int,
    watch: Callable[[pd.DataFrame], None] | None,
) -> None:
    """Train from where the run stands, and close it."""
    ranks = processes.here()
    if ranks.is_first and (warning := objective.warning_before(settings)):
        log.warning(warning)
    card, kept = card_of(settings.n_steps), Kept(run.path(TISSUE))
    sees = dataclasses.replace(card, resize_px=max(settings.patches.size_px, card.crop_px))
    with contextlib.closing(Source(slides, settings.patches, settings.seed, kept=kept)) as source:
        if settings.patches.uniform_over == "tissue":
            source.survey(n_workers)  # all processes at once, before any of them waits for another
        watched = _watched(source, settings, n_workers) if ranks.is_first else None  # the first process alone measures

        def read(first: int, n_batches: int) -> Iterator[Batch]:
            return batches(source, first, n_batches, settings.batch_size, ranks.rank, ranks.n, n_workers)

        def keep(step: int) -> None:
            networks.export(pair, card_of(step), snapshot_folder(run.folder, step))

        task = loop.Task(settings, read, watched, sees, keep, tuple(steps_of(settings)))
        n_patches = settings.n_steps * settings.batch_size
        tell = None if watch is None else lambda history: watch(pd.DataFrame(history))
        title = f"pretrain {settings.name}"
        with tqdm(total=n_patches, desc=title, unit="patch", disable=not ranks.is_first) as progress:
            history = loop.train(task, pair, run.folder, device, after_line=tell, progress=progress)
        if ranks.is_first:
            _finish(run, settings, pair, history, device, source)


def _watched(source: Source, settings: Pretraining, n_workers: int) -> np.ndarray:
    """N_WATCHED patches, uint8 (n, size_px, size_px, 3), of the same slides, from behind all that are learnt from."""
    first = max(settings.n_steps * settings.batch_size, settings.patches.n_distinct or 0)
    with contextlib.closing(batches(source.without_repeats(), first, 1, N_WATCHED, n_workers=n_workers)) as one:
        return next(one).images


def example(
    slides: list[SlideFile], settings: Pretraining, n: int = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray, pd.DataFrame]:
    """The first ``n`` patches (a batch at most) that a pretraining learns from, their crops, and where the patches lie.

    Patches: uint8 (n, size_px, size_px, 3). Crops, coloured as the network gets them: global ones, uint8 (2, n, g, g, 3), and
    local ones, uint8 (n_local, n, l, l, 3).
    """
    settings = in_full(settings)
    n = min(n, settings.batch_size)
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
    folders = [snapshot_folder(run.folder, step) for step in steps_of(settings)]
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


def slides_digest(slides: Sequence[SlideFile]) -> str:
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
