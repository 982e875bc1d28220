"""Slides to draw patches from: the list of slides, slides kept open, and the tissue found on slides, kept for a restart."""

import contextlib
import itertools
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.data.slides.openslide import NO_VOLUME, series_of
from mfcore.data.slides.slide import Memory, Slide, SlideError, open_slide
from mfcore.data.slides.tiff import TiffReader
from mfcore.pretraining.tissue import Look, Mask, rule
from mfcore.store import files as store_files
from mfcore.store.records import digest
from mfcore.streams import stream_seed

SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".dcm", ".png")
INDEX_BYTES = 512 << 20  # 16 bytes a tile: 3 MB of the largest slides, a tenth of a common one

log = logging.getLogger(__name__)


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


def slides_listed(table: pd.DataFrame, folder: str | Path, um_per_px_of: Callable[[str], float | None]) -> list[SlideFile]:
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


# ---- open slides ----


@dataclass
class _Entry:
    """One slide: opened by its first user; closed when it has no users and other slides are opened."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    slide: Slide | None = None
    n_users: int = 0

    def close(self) -> None:
        if self.slide is not None:
            self.slide.close()
            self.slide = None


class OpenSlides:
    """At most ``max_open`` slides open at once, plus slides in use; safe for threads. Decoded tiles share one memory.

    The TIFF index of a closed slide is kept, up to INDEX_BYTES of all indices: the slide opens again at once.
    """

    def __init__(self, max_open: int, memory_bytes: int):
        self._max_open = max_open
        self._memory = Memory(memory_bytes)
        self._lock = threading.Lock()
        self._entries: OrderedDict[SlideFile, _Entry] = OrderedDict()
        self._dozing: OrderedDict[SlideFile, Slide] = OrderedDict()
        self._n_bytes_dozing = 0

    @property
    def n_open(self) -> int:
        """Number of open slides."""
        return len(self._entries)

    @property
    def n_dozing(self) -> int:
        """Number of closed slides whose index is kept."""
        return len(self._dozing)

    @contextlib.contextmanager
    def use(self, file: SlideFile) -> Iterator[Slide]:
        """The slide, open while it is used; raises SlideError where it can't be opened."""
        with self._lock:
            entry = self._entries.setdefault(file, _Entry())
            self._entries.move_to_end(file)
            entry.n_users += 1
            if entry.slide is None and file in self._dozing:
                entry.slide = self._dozing.pop(file)
                self._n_bytes_dozing -= _index_bytes(entry.slide)
        try:
            with entry.lock:
                if entry.slide is None:
                    entry.slide = self._open(file)
            yield entry.slide
        finally:
            with self._lock:
                entry.n_users -= 1
                if entry.slide is None and not entry.n_users:
                    self._entries.pop(file, None)
                self._close_some()

    def close(self) -> None:
        """Close all slides that nobody uses."""
        with self._lock:
            for file in [file for file, entry in self._entries.items() if not entry.n_users]:
                self._entries.pop(file).close()
            for slide in self._dozing.values():
                slide.close()
            self._dozing.clear()
            self._n_bytes_dozing = 0

    def _close_some(self) -> None:
        n_extra = len(self._entries) - self._max_open
        if n_extra > 0:
            idle = (file for file, entry in self._entries.items() if not entry.n_users)
            for file in list(itertools.islice(idle, n_extra)):
                self._put_by(file, self._entries.pop(file))

    def _put_by(self, file: SlideFile, entry: _Entry) -> None:
        """Close a slide, but keep its index where it has one; drop the oldest indices beyond INDEX_BYTES."""
        slide = entry.slide
        if slide is None or not isinstance(slide.reader, TiffReader):
            entry.close()
            return
        slide.close()  # which keeps the index
        self._dozing[file] = slide
        self._n_bytes_dozing += _index_bytes(slide)
        while self._n_bytes_dozing > INDEX_BYTES:
            _, oldest = self._dozing.popitem(last=False)
            self._n_bytes_dozing -= _index_bytes(oldest)
            oldest.close()

    def _open(self, file: SlideFile) -> Slide:
        try:
            return open_slide(file.path, file.um_per_px, self._memory, with_reduced=True, scanner=file.scanner)
        except SlideError:
            raise
        except Exception as error:  # whatever a damaged header leads a reader to
            raise SlideError(f"{file.path}: can't be opened ({type(error).__name__}: {error})") from error


def _index_bytes(slide: Slide) -> int:
    """Size of a dozing slide's index."""
    return slide.reader.n_bytes_index if isinstance(slide.reader, TiffReader) else 0


# ---- kept tissue ----


class Kept:
    """Results of looks at slides, a file of about 15 KB for each slide in ``folder``; threads and processes may share them.

    A file's name stands for the slide, the sizes and times of its files, its stated um/px and the tissue rule: where one of
    them changes, the slide is looked at again. A slide that failed is not kept.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def look(self, slide: SlideFile, look: Callable[[], Look]) -> Look:
        """The kept look at a slide; else the result of ``look``, which is then kept. Raises as ``look`` does."""
        file = self._folder / f"{digest(slide.slide_id)}{_state(slide)}.npz"
        try:
            return _read(file)
        except FileNotFoundError:
            pass
        except Exception as error:  # whatever a damaged file leads its reader to
            log.warning("%s is damaged (%s); slide %s is looked at again", file, error, slide.slide_id)
        result = look()
        try:
            _write(file, result)
        except OSError as error:  # the training goes on without
            log.warning("the tissue of slide %s can't be kept for another start (%s)", slide.slide_id, error)
        return result


def _state(slide: SlideFile) -> str:
    """Digest of what decides a look at a slide."""
    parts = [part.stat() for part in store_files.parts_of(slide.path)] if Path(slide.path).exists() else []
    state = [[part.st_size, part.st_mtime_ns] for part in parts]
    return digest([state, slide.um_per_px, rule()])


def _read(file: Path) -> Look:
    with np.load(file) as kept:
        n_columns, cell_l0_px, um_per_px = kept["grid"].tolist()
        mask = Mask(kept["bits"], int(n_columns), cell_l0_px, um_per_px)
        width, height = kept["size_px"].tolist()
        return Look(mask, (width, height), tuple(kept["downsamples"].tolist()))


def _write(file: Path, look: Look) -> None:
    mask = look.mask
    grid = np.array([mask.n_columns, mask.cell_l0_px, mask.um_per_px])
    with store.replacing(file) as aside, aside.open("wb") as content:
        np.savez_compressed(content, bits=mask.bits, grid=grid, size_px=look.size_px, downsamples=look.downsamples)
