"""Slides kept open, a bounded number: the slide that wasn't read for longest is closed first."""

import contextlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from mfcore.data.slides.slide import Memory, Slide, SlideError, open_slide
from mfcore.data.slides.tiff import TiffReader
from mfcore.pretraining.patching_slides import SlideFile

INDEX_BYTES = 512 << 20  # 16 bytes a tile: 3 MB of the largest slides, a tenth of a common one


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

    def is_open(self, file: SlideFile) -> bool:
        """Whether the slide is open now."""
        entry = self._entries.get(file)
        return entry is not None and entry.slide is not None

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
        slide.reader.doze()
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
