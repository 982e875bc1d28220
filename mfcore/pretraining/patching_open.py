"""Slides kept open, a bounded number of them: the one not read for longest is closed for the next."""

import contextlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from mfcore.data.slides.slide import Memory, Slide, SlideError, open_slide
from mfcore.data.slides.tiff import TiffReader
from mfcore.pretraining.patching_fetched import Fetched
from mfcore.pretraining.patching_slides import SlideFile

INDEX_BYTES = 512 << 20  # 16 bytes a tile: 3 MB of the largest slides, a tenth of a common one


@dataclass
class _Entry:
    """One slide: open once somebody has needed it, closed when nobody does any more and others are."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    slide: Slide | None = None
    fetched: Fetched | None = None
    n_users: int = 0

    def close(self) -> None:
        if self.slide is not None:
            self.slide.close()
            self.slide = None
        if self.fetched is not None:
            self.fetched.close()
            self.fetched = None

    def told_by_address(self, error: ValueError, address: str) -> None:
        """Name the address of a slide that was fetched where the message names its copy, which will be gone."""
        if self.fetched is not None:
            error.args = tuple(str(part).replace(str(self.fetched.path), address) for part in error.args)


class OpenSlides:
    """At most ``max_open`` slides open at once, but for those in use; safe for threads. Decoded tiles share one memory.

    Of a slide that was closed its TIFF's index is kept, while all kept are no more than INDEX_BYTES: it opens again at once.
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
        """How many are open."""
        return len(self._entries)

    @property
    def n_dozing(self) -> int:
        """Of how many others the index is kept."""
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
                    entry.slide = self._open(file, entry)
            yield entry.slide
        except ValueError as error:  # SlideError, and what is said of a slide's content
            entry.told_by_address(error, file.path)
            raise
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
        """Close a slide but for its index, where it has one; drop the oldest of those that are too much."""
        slide = entry.slide
        if slide is None or entry.fetched is not None or not isinstance(slide.reader, TiffReader):
            entry.close()
            return
        slide.close()  # which keeps the index
        self._dozing[file] = slide
        self._n_bytes_dozing += _index_bytes(slide)
        while self._n_bytes_dozing > INDEX_BYTES:
            _, oldest = self._dozing.popitem(last=False)
            self._n_bytes_dozing -= _index_bytes(oldest)
            oldest.close()

    def _open(self, file: SlideFile, entry: _Entry) -> Slide:
        path = file.path
        if "://" in path:
            entry.fetched = entry.fetched or Fetched(path)  # there already where another thread couldn't open it
            path = str(entry.fetched.path)
        try:
            return open_slide(path, file.um_per_px, self._memory, with_reduced=True, scanner=file.scanner)
        except SlideError:
            raise
        except Exception as error:  # whatever a damaged header leads a reader to
            raise SlideError(f"{file.path}: can't be opened ({type(error).__name__}: {error})") from error


def _index_bytes(slide: Slide) -> int:
    """What a dozing slide holds."""
    return slide.reader.n_bytes_index if isinstance(slide.reader, TiffReader) else 0
