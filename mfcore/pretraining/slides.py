"""Slides to draw patches from: the list of slides, and how one is opened."""

import os
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mfcore.data.slides.openslide import NO_VOLUME, series_of
from mfcore.data.slides.slide import Memory, Slide, SlideError, open_slide
from mfcore.streams import stream_seed

OPENSLIDES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide")
SUFFIXES = (*OPENSLIDES, ".dcm", ".png")


class PatchingError(ValueError):
    """No patch can be drawn; the message says why for each slide."""


@dataclass(frozen=True)
class SlideFile:
    """A slide to draw patches from: its file, and its um/px where the file doesn't state it.

    scanner: the scanner by which a study may state um/px; "" for an unknown scanner.
    """

    slide_id: str
    path: str
    um_per_px: float | None = None
    scanner: str = ""


def slides_listed(
    table: pd.DataFrame, folder: str | Path, um_per_px_of: Callable[[str], float | None]
) -> list[SlideFile]:
    """The slides of a label table (columns slide_id, file, scanner), in order of slide_id.

    folder: the files lie below. um_per_px_of: called with a scanner; gives the um/px of its
    slides, None where the files state it.
    """
    rows = table.drop_duplicates("slide_id").sort_values("slide_id").itertuples()
    return [
        SlideFile(str(row.slide_id), f"{folder}/{row.file}", um_per_px_of(row.scanner), row.scanner)
        for row in rows
    ]


def slides_in(place: str | Path, um_per_px: float | None = None) -> list[SlideFile]:
    """Every slide below a folder, named by its path below the folder, in order of name.

    A file is the one slide at ``place``. Links to folders are followed; no folder is entered
    twice. Hidden files are left out. A DICOM series is one slide, without labels and overviews.
    Raises PatchingError where there is no slide, and where a folder can't be read.
    """
    place = Path(place).absolute()
    if not place.exists():
        raise PatchingError(
            f"{place}: there is no such folder; a relative path starts in the data folder"
        )
    folder = place.parent if place.is_file() else place
    files = [str(place)] if place.is_file() else _files_below(place)
    first: dict[str, str] = {}  # file of each series; any other file is a slide by itself
    for file in sorted(files):
        if not file.lower().endswith(SUFFIXES) or Path(file).name.startswith("."):
            continue
        series, kind = series_of(Path(file)) or (file, "")
        if kind not in NO_VOLUME:
            first.setdefault(series, file)
    if not first:
        raise PatchingError(f"{place}: no slide below it; one ends in {', '.join(SUFFIXES)}")
    return [SlideFile(file.removeprefix(f"{folder}/"), file, um_per_px) for file in first.values()]


def _files_below(folder: Path) -> list[str]:
    """The files below a folder; no folder is entered twice, so links may lead back up."""
    files, seen = [], set()
    for at, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(at)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()  # a folder with two links is entered by the same link on every machine
        files += [f"{at}/{name}" for name in names]
    return files


def _refuse(error: OSError) -> None:
    """A folder that can't be read would silently leave out its slides."""
    raise PatchingError(
        f"{error.filename}: can't be listed ({error}); give this user the right to read it"
    )


def share_of(slides: Iterable[SlideFile], fraction: float, seed: int) -> list[SlideFile]:
    """A share of the slides, at least one, in random order.

    A smaller share's slides are among a larger share's slides.
    """
    ordered = sorted(slides, key=lambda file: stream_seed(seed, "share of slides", file.slide_id))
    return ordered[: max(1, round(fraction * len(ordered)))]


def opened(file: SlideFile, memory: Memory) -> Slide:
    """A slide, whose decoded tiles are in ``memory``; closed when nobody has it any more.

    Raises SlideError where it can't be opened.
    """
    try:
        slide = open_slide(
            file.path, file.um_per_px, memory, with_reduced=True, scanner=file.scanner
        )
    except SlideError:
        raise
    except Exception as error:  # whatever a damaged header leads a reader to
        reason = f"{type(error).__name__}: {error}"
        raise SlideError(f"{file.path}: can't be opened ({reason})") from error
    weakref.finalize(slide, slide.reader.close)
    return slide
