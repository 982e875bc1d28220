"""A study's pretrainings: one run each, from slides to an encoder like any other.

A step of its own process is ``python -m mfcore.pretraining.pretrain --study FILE --encoder NAME --data FOLDER --results
FOLDER``; with
``torchrun --nproc-per-node N -m mfcore.pretraining.pretrain ...`` N processes, each with a GPU of its own, share every batch.
What is started on a pretraining that another is at work on is refused.

Batches below 256 patches, of one GPU say, and trainings of less than 12,500 steps are smaller than those that the published
settings were made with, and with these the teacher soon gave all images the same target in trials. What a study doesn't say of
them is therefore ours (`config_pretraining.SMALL`): a teacher's temperature of 0.02, which did most, Sinkhorn-Knopp and KoLeo,
and of small batches as many prototypes as a batch has targets. Learning rates are scaled to the batch already. If a teacher
collapses all the same, which its entropies and RankMe tell (`collapse`), the training stops and says what to change: the
temperature where targets are uniform, or ``momentum`` towards 0.9995 where a few prototypes get all images (DINO's authors
name that for a batch of 256).
"""

import argparse
import contextlib
import copy
import dataclasses
import logging
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
from mfcore.pretraining import collapse, crops, export, loop, networks, patching
from mfcore.pretraining.collapse import PretrainingError
from mfcore.store import errors as store_errors, files as store_files
from mfcore.store.records import digest
from mfcore.study import pretrained
from mfcore.study.config import ConfigError, Pretraining, Study, load_study
from mfcore.study.config_pretraining import in_full
from mfcore.training import processes

__all__ = ["PretrainingError", "example", "load_history", "main", "pretrain"]

N_WATCHED = 512  # patches of which RankMe is measured on the way
N_LAST = 20  # lines of the history by which a training is called collapsed

log = logging.getLogger(__name__)


def pretrain(
    study: Study,
    name: str,
    data_folder: str | Path,
    results: str | Path,
    device: str = "auto",
    n_workers: int = 1,
    watch: Callable[[pd.DataFrame], None] | None = None,
) -> store.Run:
    """Pretrain the study's encoder ``name`` from slides; returns its run, which is gone on with where it was begun.

    The run holds ``history.jsonl`` (see `load_history`), ``drawn.parquet`` (where patches lay, the first 100,000) and a folder
    for each snapshot, as `mfcore.study.pretrained` says; until it is done, also a checkpoint and the tissue found so far.
    data_folder: where the study's own slides lie, made or fetched where that can be done; not read where the pretraining names
    other ``slides``. device: as for `encoders.choose_device`. n_workers: threads that read patches, each process of a torchrun
    its own. ``watch`` is called with the history so far when it has a new line. Raises ConfigError, LabelError, PatchingError
    (no slide can be read), EncoderError (the network, or the encoder to start from), StoreError (another process is at work on
    the run) and PretrainingError (diverged, collapsed, or not to be shared by so many processes).
    """
    which, ranks = in_full(study.pretrained(name)), processes.here()
    if name in encoders.names():
        raise PretrainingError(f"pretraining[{name}].name: the name of a known encoder; call it something else")
    loop.check_share(which)  # before slides are fetched and looked at
    if not which.slides and ranks.is_first:
        patches.prepare(study, data_folder)
    ranks.as_first(None)  # the others wait for the slides
    slides = patching.slides_of(study, which, Path(data_folder))
    inputs = {"slides": digest([[slide.slide_id, slide.um_per_px, found] for slide, found in _fingerprints(slides)])}
    start = networks.start_of(which, study, results)
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
        pair = networks.build(which, study, results)
        with store.alone(run.folder, "pretraining") if ranks.is_first else contextlib.nullcontext():
            if not ranks.as_first(run.done):  # while this one looked, another may have finished it
                _train(study, which, pair, slides, run, where, n_workers, watch)
    if ranks.is_first:
        _clear(run)
    ranks.as_first(None)  # the others wait until the run is finished
    return run


def _train(
    study: Study,
    which: Pretraining,
    pair: networks.Networks,
    slides: list[patching.SlideFile],
    run: store.Run,
    device: torch.device,
    n_workers: int,
    watch: Callable[[pd.DataFrame], None] | None,
) -> None:
    """Train from where the run stands, and close it."""
    ranks = processes.here()
    if ranks.is_first and (outlook := collapse.outlook(which)):
        log.warning(outlook)
    kept = patching.Kept(run.path(patching.KEPT), ranks.is_first)
    with contextlib.closing(patching.Source(slides, which.patches, which.seed, kept=kept)) as source:
        if which.patches.uniform_over == "tissue":
            source.survey(n_workers)  # all processes at once, before any of them waits for another
        task = _task(study, which, pair, source, n_workers, run.folder)
        n_patches = which.n_steps * which.batch_size
        tell = None if watch is None else lambda history: watch(pd.DataFrame(history))
        title = f"pretrain {which.name}"
        with tqdm(total=n_patches, desc=title, unit="patch", disable=not ranks.is_first) as progress:
            history = loop.train(task, pair, run.folder, device, after_line=tell, progress=progress)
        if ranks.is_first:
            _finish(run, which, pair, history, device, source)


def _task(
    study: Study, which: Pretraining, pair: networks.Networks, source: patching.Source, n_workers: int, folder: Path
) -> loop.Task:
    """What the loop learns from, and by which patches it is watched."""
    ranks = processes.here()
    watched = _watched(source, which, n_workers) if ranks.is_first else None  # who alone measures
    card = export.card(pair, which, study, which.n_steps)
    sees = dataclasses.replace(card, resize_px=max(which.patches.size_px, card.crop_px))

    def read(first: int, n_batches: int) -> Iterator[patching.Batch]:
        return patching.batches(source, first, n_batches, which.batch_size, ranks.rank, ranks.n, n_workers)

    def keep(step: int) -> None:
        export.write(pair, export.card(pair, which, study, step), pretrained.snapshot_folder(folder, step))

    return loop.Task(which, read, watched, sees, keep, tuple(pretrained.steps_of(which)))


def _watched(source: patching.Source, which: Pretraining, n_workers: int) -> np.ndarray:
    """N_WATCHED patches, uint8 (n, size_px, size_px, 3), of the same slides, from behind all that are learnt from."""
    aside = copy.copy(source)  # which knows the slides' tissue, and opens them for itself
    aside.kept = source.kept  # what it finds itself is found for good
    aside.settings = dataclasses.replace(source.settings, n_distinct=None)
    first = max(which.n_steps * which.batch_size, which.patches.n_distinct or 0)
    with (
        contextlib.closing(aside),
        contextlib.closing(patching.batches(aside, first, 1, N_WATCHED, n_workers=n_workers)) as one,
    ):
        return next(one).images


def example(
    study: Study, name: str, data_folder: str | Path, n: int = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray, pd.DataFrame]:
    """The first ``n`` patches (a batch at most) that a pretraining learns from, uint8 (n, size_px, size_px, 3), and its views.

    Besides: global crops, uint8 (2, n, g, g, 3), local ones (n_local, n, l, l, 3), coloured as the network gets them, and
    where the patches lie. Raises as `pretrain` does for its slides.
    """
    which = in_full(study.pretrained(name))
    n = min(n, which.batch_size)
    if not which.slides:
        patches.prepare(study, data_folder)
    slides = patching.slides_of(study, which, Path(data_folder))
    with (
        contextlib.closing(patching.Source(slides, which.patches, which.seed)) as source,
        contextlib.closing(patching.batches(source, 0, 1, n)) as one,
    ):
        batch = next(one)
    images = torch.from_numpy(batch.images).permute(0, 3, 1, 2)
    drawn = loop.crops_of(which, 0)[:n]
    views = crops.make(images, drawn, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    shown = ((view.clamp(0, 1) * 255).round().byte().movedim(2, -1).numpy() for view in views)
    return batch.images, *shown, batch.drawn


def _finish(
    run: store.Run,
    which: Pretraining,
    pair: networks.Networks,
    history: list[dict],
    device: torch.device,
    source: patching.Source,
) -> None:
    """Close the run, and say where its teacher ended collapsed."""
    folders = [pretrained.snapshot_folder(run.folder, step) for step in pretrained.steps_of(which)]
    files = [
        str((folder / name).relative_to(run.folder)) for folder in folders for name in ("card.json", "weights.safetensors")
    ]
    seconds = history[-1]["seconds"]
    if collapsed := collapse.state(history[-N_LAST:], which):  # of one too short to be stopped
        log.warning("pretraining[%s] ended collapsed: %s. %s", which.name, collapsed, collapse.remedy(which))
    run.finish(
        ["history.jsonl", "drawn.parquet", *files],
        n_parameters=sum(parameter.numel() for parameter in pair.student.parameters()),
        n_slides=len(source.slides),
        slides_left_out=source.left_out,
        slides_failed_in_part={name: reason for name, reason in source.failures.items() if name not in source.left_out},
        n_patches=which.n_steps * which.batch_size,
        training_seconds=round(seconds, 1),
        patches_per_second=round(which.n_steps * which.batch_size / seconds, 1),
        device=str(device),
        n_processes=processes.here().n,
        precision="bfloat16" if encoders.computes_bfloat16(device) else "float32",
        n_watched=N_WATCHED,
        collapsed=collapsed,
    )


def _clear(run: store.Run) -> None:
    """Remove what only a run that isn't finished needs."""
    for name in ("checkpoint.pt", patching.KEPT):
        if run.path(name).exists():  # a disk that is only read refuses to remove what isn't there, too
            run.path(name).unlink(missing_ok=True)


def _fingerprints(slides: Sequence[patching.SlideFile]) -> Iterator[tuple[patching.SlideFile, list[int | str] | None]]:
    """Slides and what stands for their content, None where their files aren't on this machine's disks."""
    known = store_files.Fingerprints()
    for slide in slides:
        yield slide, known.of_slide(slide.path) if Path(slide.path).exists() else None


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
        patching.PatchingError,
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
