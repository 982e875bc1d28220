"""A pretraining: from slides to an encoder like any other.

Several processes, each with its own GPU, may share every batch. A second start of a pretraining at
work is refused.

Batches below 256 patches, and trainings below 12,500 steps, are smaller than the trainings that the
published settings were made for: in our trials the teacher soon gave all images the same target.
Our own defaults stand in for them (`method.SMALL`): a teacher's temperature of 0.02, which had the
largest effect, Sinkhorn-Knopp, KoLeo, and, in small batches, as many prototypes as a batch has
targets. Learning rates are scaled to the batch. If a teacher collapses all the same (`objective`),
the training stops and says what to change: the temperature where targets are uniform, or
``momentum`` towards 0.9995 where a few prototypes get all images (DINO's authors name it for a
batch of 256).
"""

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mfcore import encoders, store
from mfcore.data.options import Patches
from mfcore.encoders import architecture
from mfcore.encoders.card import EncoderCard
from mfcore.pretraining import crops, loop, networks, objective
from mfcore.pretraining.feed import batches
from mfcore.pretraining.method import Pretraining, in_full, snapshot_folder, steps_of
from mfcore.pretraining.objective import PretrainingError
from mfcore.pretraining.slides import SlideFile
from mfcore.pretraining.source import Source
from mfcore.store.files import Fingerprints
from mfcore.store.records import digest
from mfcore.training import processes

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

    The run holds ``history.jsonl`` (see `load_history`) and a folder for each snapshot
    (`method.snapshot_folder`), with ``card.json`` and ``weights.safetensors``; an unfinished run
    also holds a checkpoint and the tissue found so far. start: the encoder whose weights it starts
    from; None for random weights. stored: the patches that the encoder will embed. origin: from
    what it is pretrained, for its card. device: as for `encoders.choose_device`. n_workers: threads
    that read patches, in each process. watch: called with the history when it has a new line.
    Raises PatchingError (no slide can be read), EncoderError (the network, or the encoder to start
    from), StoreError (another process is at work on the run) and PretrainingError (the training
    diverged or collapsed, or this number of processes can't share a batch).
    """
    settings, ranks = in_full(settings), processes.here()
    loop.check_share(settings)
    key, done = ranks.as_first((run.key, run.done))
    if key != run.key:
        raise PretrainingError(
            f"pretraining[{settings.name}]: process {ranks.rank} finds other slides or another "
            "start than the first does; give all machines the same files"
        )
    if not done:
        pair = networks.build(settings, start)
        with store.alone(run.folder, "pretraining") if ranks.is_first else contextlib.nullcontext():
            if not ranks.as_first(run.done):  # meanwhile, another process may have finished it
                card = networks.card(pair, settings, stored, f"pretrained {origin}")
                with Source(slides, settings.patches, settings.seed, run.path(TISSUE)) as source:
                    history = _train(source, settings, pair, card, run, device, n_workers, watch)
                if ranks.is_first:
                    _finish(run, settings, pair, source, history, device)
    if ranks.is_first:
        if (checkpoint := run.path("checkpoint.pt")).exists():  # a read-only disk refuses unlink
            checkpoint.unlink()
        shutil.rmtree(run.path(TISSUE), ignore_errors=True)
    ranks.as_first(None)  # the others wait until the run is finished
    return run


def _train(
    source: Source,
    settings: Pretraining,
    pair: networks.Networks,
    card: EncoderCard,
    run: store.Run,
    device: str,
    n_workers: int,
    watch: Callable[[pd.DataFrame], None] | None,
) -> list[dict]:
    """Train from where the run stands; returns the history. card: what all snapshots' have."""
    ranks = processes.here()
    if settings.patches.uniform_over == "tissue":
        source.survey(n_workers)  # all processes at once, before any waits for another

    def export(step: int) -> None:
        steps = f"{step:,} of {settings.n_steps:,} steps of {settings.batch_size} patches"
        facts = f"{card.facts}: {settings.method}, {steps}, start: {settings.start}"
        snapshot = dataclasses.replace(card, facts=facts)
        networks.export(pair, snapshot, snapshot_folder(run.folder, step))

    shares = {"rank": ranks.rank, "n_ranks": ranks.n, "n_workers": n_workers}
    task = loop.Task(
        settings,
        partial(batches, source, batch_size=settings.batch_size, **shares),
        _watched(source, settings, n_workers) if ranks.is_first else None,
        dataclasses.replace(card, resize_px=max(settings.patches.size_px, card.crop_px)),
        export,
        tuple(steps_of(settings)),
    )
    return loop.train(task, pair, run.folder, encoders.choose_device(device), watch)


def _finish(
    run: store.Run,
    settings: Pretraining,
    pair: networks.Networks,
    source: Source,
    history: list[dict],
    device: str,
) -> None:
    """Close the run, with a warning where the teacher has collapsed too late to be stopped."""
    if collapsed := objective.collapse_of(history[-N_LAST:], settings):
        remedy = objective.remedy(settings)
        log.warning("pretraining[%s] ended collapsed: %s. %s", settings.name, collapsed, remedy)
    files = [
        str(snapshot_folder(Path(), step) / name)
        for step in steps_of(settings)
        for name in ("card.json", "weights.safetensors")
    ]
    left_out, seconds = source.left_out, history[-1]["seconds"]
    n_patches, where = settings.n_steps * settings.batch_size, encoders.choose_device(device)
    run.finish(
        ["history.jsonl", *files],
        n_parameters=architecture.n_parameters(pair.student),
        n_slides=len(source.slides),
        slides_left_out=left_out,
        slides_failed_in_part={k: v for k, v in source.failures.items() if k not in left_out},
        n_patches=n_patches,
        training_seconds=round(seconds, 1),
        patches_per_second=round(n_patches / seconds, 1),
        device=str(where),
        n_processes=processes.here().n,
        precision="bfloat16" if encoders.computes_bfloat16(where) else "float32",
        n_watched=N_WATCHED,
        collapsed=collapsed,
    )


def _watched(source: Source, settings: Pretraining, n_workers: int) -> np.ndarray:
    """N_WATCHED patches, uint8 (n, size_px, size_px, 3), from behind all that are learnt from."""
    first = max(settings.n_steps * settings.batch_size, settings.patches.n_distinct or 0)
    new = source.without_repeats()
    with contextlib.closing(batches(new, first, 1, N_WATCHED, n_workers=n_workers)) as one:
        return next(one).images


def example(
    slides: list[SlideFile], settings: Pretraining, n: int = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray, pd.DataFrame]:
    """The first ``n`` patches (a batch at most) of a pretraining, their crops, and their places.

    Patches: uint8 (n, size_px, size_px, 3). Crops, coloured as the network gets them: global ones,
    uint8 (2, n, g, g, 3), and local ones, uint8 (n_local, n, l, l, 3).
    """
    settings = in_full(settings)
    with Source(slides, settings.patches, settings.seed) as source:
        (batch,) = batches(source, 0, 1, min(n, settings.batch_size))
    images = torch.from_numpy(batch.images).permute(0, 3, 1, 2)
    drawn = loop.crops_of(settings, 0)[: len(images)]
    views = crops.make(images, drawn, settings.crops, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    to_bytes = ((view.clamp(0, 1) * 255).round().byte().movedim(2, -1).numpy() for view in views)
    return batch.images, *to_bytes, batch.drawn


def slides_digest(slides: Sequence[SlideFile]) -> str:
    """Digest of the slides' names, um/px and content; a missing file has no content."""
    content = Fingerprints().of_slide
    return digest(
        [
            [
                slide.slide_id,
                slide.um_per_px,
                content(slide.path) if Path(slide.path).exists() else None,
            ]
            for slide in slides
        ]
    )


def load_history(run: store.Run) -> pd.DataFrame:
    """How pretraining went, a row a line of ``history.jsonl``.

    ``step`` (steps done), ``loss`` and its parts ``loss_dino, loss_ibot, loss_koleo`` and
    ``teacher_entropy`` (in nats; means over the steps of the line), ``target_entropy`` (of the
    running mean of targets: log of n_prototypes when spread, 0 when collapsed), the schedules'
    ``learning_rate, weight_decay, momentum, teacher_temperature`` of the line's last step,
    ``rankme`` (of the teacher's embeddings of patches that aren't learnt from; NaN where it wasn't
    measured), ``patches_per_second`` and ``seconds`` (since the beginning, without what was lost by
    a kill).
    """
    return pd.read_json(run.path("history.jsonl"), lines=True, precise_float=True)
