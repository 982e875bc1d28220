"""A study's pretrainings: one run each, from slides to an encoder like any other."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.encoders import EncoderError
from mfcore.encoders.card import EncoderCard
from mfcore.store.records import digest
from mfcore.study import data, encoders, pretrained
from mfcore.study.config import Pretraining, Settings


def pretrain(
    study: Settings,
    name: str,
    data_folder: str | Path,
    results: Path,
    device: str = "auto",
    n_workers: int = 1,
    watch: Callable[[pd.DataFrame], None] | None = None,
) -> store.Run:
    """Pretrain the study's encoder ``name``, as `mfcore.pretraining.pretrain.pretrain`.

    data_folder: holds the study's own slides, which are made or downloaded if possible; not read
    for a pretraining with other ``slides``. Raises ConfigError, LabelError, PatchingError (no slide
    can be read), EncoderError (the network, or the encoder to start from), StoreError (another
    process is at work on the run) and PretrainingError.
    """
    from mfcore.pretraining import loop, pretrain as procedure
    from mfcore.training import processes

    settings, ranks = study.pretraining_of(name), processes.here()
    loop.check_share(settings)  # before slides are downloaded and looked at
    if not settings.slides and ranks.is_first:
        data.prepare(study, data_folder)
    ranks.as_first(None)  # the others wait for the slides
    slides = slides_of(study, settings, data_folder)
    inputs = {"slides": procedure.slides_digest(slides)}
    start = start_of(study, settings, results)
    if start is not None:
        inputs["start"] = digest(start.identity())
    config = pretrained.config_of(study, name)
    run = store.open_run(results, pretrained.STAGE, name, config, inputs)
    synthetic = "synthetic " if study.synthetic and not settings.slides else ""
    origin = f"in study {study.name!r} on {synthetic}slides"
    patches = study.patches
    return procedure.pretrain(
        slides, settings, run, start, patches, origin, device, n_workers, watch
    )


def slides_of(study: Settings, settings: Pretraining, data_folder: str | Path) -> list:
    """The slides that a pretraining draws from, each a `mfcore.pretraining.slides.SlideFile`.

    The study's own, or the slides below ``settings.slides`` (in the data folder). Raises
    PatchingError for a study of patches without slides and a folder without any, LabelError as
    `labels.table.load`.
    """
    from mfcore.pretraining.slides import PatchingError, slides_in, slides_listed

    data_folder, by_scanner = Path(data_folder), study.data.um_per_px_by_scanner
    place, um_per_px = f"pretraining[{settings.name}].slides", study.data.um_per_px
    if settings.slides:
        try:
            return slides_in(data_folder / Path(settings.slides).expanduser(), um_per_px)
        except PatchingError as error:
            raise PatchingError(f"{place}: {error}") from None
    if not study.source.has_slides:
        raise PatchingError(
            f"study {study.name!r} has patches and no slides to draw from; name a folder in {place}"
        )
    table = data.load_labels(study, data_folder)
    return slides_listed(table, data_folder, lambda scanner: by_scanner.get(scanner, um_per_px))


def start_of(study: Settings, settings: Pretraining, results: Path) -> EncoderCard | None:
    """The card of the encoder whose weights a pretraining starts from; None for random weights.

    Raises EncoderError where there is no such encoder.
    """
    if settings.start == "random":
        return None
    try:
        return encoders.card_of(study, settings.start, results)
    except EncoderError as error:
        raise EncoderError(f"pretraining[{settings.name}].start: {error}") from error


def example(
    study: Settings, name: str, data_folder: str | Path, n: int = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray, pd.DataFrame]:
    """The first patches of a pretraining, as `mfcore.pretraining.pretrain.example`.

    Raises as `pretrain` does for its slides.
    """
    from mfcore.pretraining import pretrain as procedure

    settings = study.pretraining_of(name)
    if not settings.slides:
        data.prepare(study, data_folder)
    return procedure.example(slides_of(study, settings, data_folder), settings, n)
