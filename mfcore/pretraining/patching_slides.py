"""Slides to draw patches from: slides of a label table, of a folder, or a share of some slides."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mfcore.data.slides.openslide import NO_VOLUME, series_of
from mfcore.streams import stream_seed

SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".dcm", ".png")


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


def slides_of(table: pd.DataFrame, folder: str | Path, um_per_px_of: Callable[[str], float | None]) -> list[SlideFile]:
    """The slides of a label table (columns slide_id, file, scanner), whose files lie below ``folder``, in order of slide_id.

    um_per_px_of: called with a scanner; gives the um/px of its slides, None where the files state it.
    """
    rows = table.drop_duplicates("slide_id").sort_values("slide_id").itertuples()
    return [
        SlideFile(str(row.slide_id), str(Path(folder) / row.file), um_per_px_of(row.scanner), str(row.scanner)) for row in rows
    ]


def slides_in(place: str | Path, um_per_px: float | None = None) -> list[SlideFile]:
    """Every slide below a folder, named by its path below the folder, in order of name; or the one slide at ``place``.

    Links to folders are followed. Hidden files are left out. A DICOM series is one slide. Raises PatchingError where there is
    no slide, and where a folder can't be read.
    """
    place = Path(place).absolute()
    if not place.exists():
        raise PatchingError(f"{place}: there is no such folder; a relative path starts in the data folder")
    folder, files = (place, _files_below(place)) if place.is_dir() else (place.parent, [str(place)])
    files = [file for file in files if file.lower().endswith(SUFFIXES) and not Path(file).name.startswith(".")]
    if not (files := _one_a_series(files)):
        raise PatchingError(f"{place}: no slide below it; one ends in {', '.join(SUFFIXES)}")
    return [SlideFile(file.removeprefix(f"{folder}/"), file, um_per_px) for file in files]


def _files_below(folder: Path) -> list[str]:
    """The files below a folder, sorted; no folder is entered twice, so links may lead back up."""
    files, seen = [], set()
    for at, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(at)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()  # a folder with two links is entered by the same link on every machine
        files += [f"{at}/{name}" for name in names]
    return sorted(files)


def _refuse(error: OSError) -> None:
    """A folder that can't be read would silently leave out its slides."""
    raise PatchingError(f"{error.filename}: can't be listed ({error}); give this user the right to read it")


def _one_a_series(files: list[str]) -> list[str]:
    """The first file of each DICOM series, without labels and overviews; any other file is a slide by itself."""
    first: dict[str, str] = {}
    for file in files:
        series, kind = series_of(Path(file)) or (file, "")
        if kind not in NO_VOLUME:
            first.setdefault(series, file)
    return list(first.values())


def share_of(slides: Iterable[SlideFile], fraction: float, seed: int) -> list[SlideFile]:
    """A share of the slides, at least one, in random order; a smaller share's slides are among a larger share's slides."""
    ordered = sorted(slides, key=lambda file: (stream_seed(seed, "share of slides", file.slide_id), file.slide_id))
    return ordered[: max(1, round(fraction * len(ordered)))]
