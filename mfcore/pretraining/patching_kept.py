"""Tissue that was found on slides, kept in a run's folder: a training that starts again need not look at every slide again."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mfcore import store
from mfcore.pretraining import tissue
from mfcore.pretraining.patching_slides import SlideFile
from mfcore.store import files as store_files
from mfcore.store.records import digest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Look:
    """What a look at a slide finds. size_px: (width, height) of level 0. downsamples: of the levels that its reader has."""

    mask: tissue.Mask
    size_px: tuple[int, int]
    downsamples: tuple[float, ...]


class Kept:
    """What looks at slides found, a file of about 15 KB for each slide in ``folder``; threads and processes may share it.

    A file's name stands for the slide, the sizes and times of its files, its stated um/px and the tissue rule: where one of
    them changes, the slide is looked at again. A slide that failed is not kept.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def look(self, slide: SlideFile, look: Callable[[], Look]) -> Look:
        """What is kept of a slide; else the result of ``look``, which is then kept. Raises as ``look`` does."""
        file = self._folder / f"{digest(slide.slide_id)}{_state(slide)}.npz"
        try:
            return _read(file)
        except FileNotFoundError:
            pass
        except Exception as error:  # whatever a damaged file leads its reader to
            log.warning("%s is damaged (%s); slide %s is looked at again", file, error, slide.slide_id)
        found = look()
        try:
            _write(file, found)
        except OSError as error:  # the training goes on without
            log.warning("the tissue of slide %s can't be kept for another start (%s)", slide.slide_id, error)
        return found


def _state(slide: SlideFile) -> str:
    """Digest of what decides a look at a slide."""
    parts = [part.stat() for part in store_files.parts_of(slide.path)] if Path(slide.path).exists() else []
    state = [[part.st_size, part.st_mtime_ns] for part in parts]
    return digest([state, slide.um_per_px, tissue.rule()])


def _read(file: Path) -> Look:
    with np.load(file) as kept:
        n_columns, cell_l0_px, um_per_px = kept["grid"].tolist()
        mask = tissue.Mask(kept["bits"], int(n_columns), cell_l0_px, um_per_px)
        width, height = kept["size_px"].tolist()
        return Look(mask, (width, height), tuple(kept["downsamples"].tolist()))


def _write(file: Path, found: Look) -> None:
    mask = found.mask
    grid = np.array([mask.n_columns, mask.cell_l0_px, mask.um_per_px])
    with store.replacing(file) as aside, aside.open("wb") as content:
        np.savez_compressed(content, bits=mask.bits, grid=grid, size_px=found.size_px, downsamples=found.downsamples)
