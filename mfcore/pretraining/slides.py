"""Slides to draw patches from: the list of slides, and slides kept open."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from mfcore.data.slides.openslide import NO_VOLUME, series_of
from mfcore.data.slides.slide import Memory, Slide, SlideError, open_slide
from mfcore.streams import stream_seed

MAX_OPEN = 128
MEMORY_BYTES = 256 << 20  # of decoded tiles
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
        SlideFile(
            str(row.slide_id),
            str(Path(folder) / row.file),
            um_per_px_of(row.scanner),
            str(row.scanner),
        )
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
    if place.is_file():
        folder, files = place.parent, [str(place)]
    else:
        folder, files = place, _files_below(place)
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

    def place(file: SlideFile) -> tuple[int, str]:
        return stream_seed(seed, "share of slides", file.slide_id), file.slide_id

    ordered = sorted(slides, key=place)
    return ordered[: max(1, round(fraction * len(ordered)))]


@dataclass
class _Entry:
    """One slide: opened by its first user; closed when it has no users and others are opened."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    slide: Slide | None = None
    n_users: int = 0


class OpenSlides:
    """At most MAX_OPEN slides open at once, plus slides in use; safe for threads.

    Decoded tiles of all slides share MEMORY_BYTES.
    """

    def __init__(self):
        self._memory = Memory(MEMORY_BYTES)
        self._lock = threading.Lock()
        self._entries: dict[SlideFile, _Entry] = {}  # the one that was used last comes last

    @contextlib.contextmanager
    def use(self, file: SlideFile) -> Iterator[Slide]:
        """The slide, open while it is used; raises SlideError where it can't be opened."""
        with self._lock:
            entry = self._entries[file] = self._entries.pop(file, None) or _Entry()
            entry.n_users += 1
        try:
            with entry.lock:
                entry.slide = entry.slide or self._open(file)
            yield entry.slide
        finally:
            with self._lock:
                entry.n_users -= 1
                self._close(len(self._entries) - MAX_OPEN)

    def close(self) -> None:
        """Close all slides that nobody uses."""
        with self._lock:
            self._close(len(self._entries))

    def _close(self, n: int) -> None:
        """Close up to ``n`` slides without users, those first that were used longest ago."""
        idle = [file for file, entry in self._entries.items() if not entry.n_users] if n > 0 else []
        for file in idle[:n]:
            if (slide := self._entries.pop(file).slide) is not None:
                slide.close()

    def _open(self, file: SlideFile) -> Slide:
        try:
            return open_slide(
                file.path, file.um_per_px, self._memory, with_reduced=True, scanner=file.scanner
            )
        except SlideError:
            raise
        except Exception as error:  # whatever a damaged header leads a reader to
            reason = f"{type(error).__name__}: {error}"
            raise SlideError(f"{file.path}: can't be opened ({reason})") from error
