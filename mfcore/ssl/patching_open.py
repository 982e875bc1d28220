"""Slides kept open, a bounded number of them: the one not read for longest is closed for the next."""

import contextlib
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mfcore.slides import Memory, Slide, SlideError, open_slide
from mfcore.ssl.patching_slides import SlideFile


@dataclass
class _Entry:
    """One slide: open once somebody has needed it, closed when nobody does any more and others are."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    slide: Slide | None = None
    fetched: Path | None = None
    n_users: int = 0

    def close(self) -> None:
        if self.slide is not None:
            self.slide.close()
            self.slide = None
        if self.fetched is not None:
            shutil.rmtree(self.fetched, ignore_errors=True)
            self.fetched = None


class OpenSlides:
    """At most ``max_open`` slides open at once, but for those in use; safe for threads. Decoded tiles share one memory."""

    def __init__(self, max_open: int, memory_bytes: int):
        self._max_open = max_open
        self._memory = Memory(memory_bytes)
        self._lock = threading.Lock()
        self._entries: OrderedDict[SlideFile, _Entry] = OrderedDict()

    @property
    def n_open(self) -> int:
        """How many are open."""
        return len(self._entries)

    @contextlib.contextmanager
    def use(self, file: SlideFile) -> Iterator[Slide]:
        """The slide, open while it is used; raises SlideError where it can't be opened."""
        with self._lock:
            entry = self._entries.setdefault(file, _Entry())
            self._entries.move_to_end(file)
            entry.n_users += 1
        try:
            with entry.lock:
                if entry.slide is None:
                    entry.slide = self._open(file, entry)
            yield entry.slide
        finally:
            with self._lock:
                entry.n_users -= 1
                if entry.slide is None and not entry.n_users:
                    self._entries.pop(file, None)
                    entry.close()
                self._close_some()

    def is_open(self, file: SlideFile) -> bool:
        """Whether it is open now."""
        entry = self._entries.get(file)
        return entry is not None and entry.slide is not None

    def close(self) -> None:
        """Close all that nobody uses."""
        with self._lock:
            for file in [file for file, entry in self._entries.items() if not entry.n_users]:
                self._entries.pop(file).close()

    def _close_some(self) -> None:
        for file in list(self._entries):
            if len(self._entries) <= self._max_open:
                return
            if not self._entries[file].n_users:
                self._entries.pop(file).close()

    def _open(self, file: SlideFile, entry: _Entry) -> Slide:
        path = file.path
        if "://" in path:
            entry.fetched = Path(tempfile.mkdtemp(prefix="slide-"))
            path = fetch(path, entry.fetched)
        try:
            return open_slide(path, file.um_per_px, self._memory, with_reduced=True)
        except SlideError:
            raise
        except OSError as error:
            raise SlideError(f"{file.path}: can't be opened ({error})") from None


def fetch(address: str, folder: Path) -> Path:
    """Copy what fsspec finds at an address into a folder; raises SlideError where it can't be had."""
    import fsspec

    target = folder / address.rsplit("/", 1)[-1]
    try:
        filesystem, there = fsspec.core.url_to_fs(address)
        filesystem.get_file(there, str(target))
    except Exception as error:  # every file system has its own
        raise SlideError(f"{address}: can't be fetched ({type(error).__name__}: {error})") from None
    return target
