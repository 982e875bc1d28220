"""What was found of slides, kept in a file of its run: a training of thousands that was killed needn't look at each again.

Only what was found is kept. A slide that failed is tried again, its disk may be back.
"""

import json
import logging
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.pretraining import tissue
from mfcore.pretraining.patching_slides import SlideFile
from mfcore.store import files as store_files
from mfcore.store.records import digest

KEPT = "tissue.parquet"  # of a run
WRITE_SECONDS = 30.0  # a kill loses what was found since
WRITE_SHARE = 0.05  # of the time, at most, goes into writing: 15 KB a slide, or twice that where its tissue is ragged

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """What a look at a slide finds. size_px: (width, height) of level 0. downsamples: of the levels that its reader has."""

    mask: tissue.Mask
    size_px: tuple[int, int]
    downsamples: tuple[float, ...]


class Kept:
    """What was found of slides, by their slide_id, in ``file``; threads may share it.

    It holds for a slide while size and time of its file (of one at an address, its size), what is said of its um/px and the
    rule for tissue are the same. writes:
    whether this process, of those at work on a run, is the one that writes. A file that can't be read, or isn't of this kind,
    is passed over with a warning and written anew.
    """

    def __init__(self, file: Path, writes: bool):
        self._file, self._writes = file, writes
        self._rows = _read(file)
        self._lock = threading.Lock()
        self._n_new, self._written, self._seconds = 0, time.monotonic(), 0.0

    def seen(self, slide: SlideFile, look: Callable[[], Seen]) -> Seen:
        """What is kept of a slide; where nothing that still holds is, what ``look`` finds, which is kept. Raises as it does."""
        state = _state(slide)  # before the look: a file that is still being copied will have another size
        found = self._find(slide.slide_id, state)
        if found is None:
            found = look()
            if state is not None and self._writes:
                self._add(slide.slide_id, state, found)
        return found

    def write(self) -> None:
        """Write the file, whole or not at all, where something new was found; a disk that is full is said, not raised."""
        with self._lock:
            self._write()

    def _find(self, slide_id: str, state: str | None) -> Seen | None:
        known, content = self._rows.get(slide_id, (None, b""))
        if state is None or known != state:
            return None
        try:
            return _unpacked(content)
        except (zlib.error, ValueError, KeyError, TypeError) as error:
            log.warning("%s: what is kept of slide %s is damaged (%s); it is looked at again", self._file, slide_id, error)
            return None

    def _add(self, slide_id: str, state: str, seen: Seen) -> None:
        row = (state, _packed(seen))
        with self._lock:
            self._rows[slide_id] = row
            self._n_new += 1
            if time.monotonic() - self._written >= max(WRITE_SECONDS, self._seconds / WRITE_SHARE):
                self._write()

    def _write(self) -> None:
        if not self._n_new:
            return
        begun = time.monotonic()
        rows = [(slide_id, *row) for slide_id, row in self._rows.items()]
        try:
            store.write_parquet(self._file, pd.DataFrame(rows, columns=["slide_id", "state", "content"]))
        except OSError as error:  # the training can do without
            log.warning("what was found of slides can't be kept for another start (%s)", error)
        self._n_new, self._written = 0, time.monotonic()
        self._seconds = self._written - begun


def _read(file: Path) -> dict[str, tuple[str, bytes]]:
    """The rows of a file, by slide_id; none where it isn't there or can't be read."""
    if not file.is_file():
        return {}
    try:
        table = pd.read_parquet(file, columns=["slide_id", "state", "content"])
    except Exception as error:  # whatever a damaged file leads the reader to
        reason = " ".join(str(error).split())[:200]
        log.warning("%s can't be read (%s: %s); slides are looked at again", file, type(error).__name__, reason)
        return {}
    return {slide_id: (state, content) for slide_id, state, content in table.itertuples(index=False)}


def _state(slide: SlideFile) -> str | None:
    """Digest of what decides a look, None where the state of the slide's file isn't known."""
    state = _state_of(slide.path)
    return None if state is None else digest([state, slide.um_per_px, tissue.rule()])


def _state_of(path: str) -> list[int] | int | None:
    """Size in bytes and time (mtime_ns) of each of a slide's files on this machine; the size of one at an address."""
    if "://" not in path:
        parts = [part.stat() for part in store_files.parts_of(path)] if Path(path).exists() else []
        return [number for part in parts for number in (part.st_size, part.st_mtime_ns)] or None
    import fsspec

    try:
        filesystem, there = fsspec.core.url_to_fs(path)
        return filesystem.size(there)
    except Exception:  # every file system has its own; to fetch the slide will say why
        return None


def _packed(seen: Seen) -> bytes:
    """As bytes, whose damage is seen when they are unpacked."""
    mask = seen.mask
    facts = {"size_px": seen.size_px, "downsamples": seen.downsamples, "n_columns": mask.n_columns}
    facts |= {"cell_l0_px": mask.cell_l0_px, "um_per_px": mask.um_per_px}
    return zlib.compress(json.dumps(facts).encode() + b"\n" + mask.bits.tobytes(), 1)


def _unpacked(content: bytes) -> Seen:
    head, _, bits = zlib.decompress(content).partition(b"\n")
    facts = json.loads(head)
    rows = np.frombuffer(bits, np.uint8).reshape(-1, -(-facts["n_columns"] // 8))
    mask = tissue.Mask(rows, facts["n_columns"], facts["cell_l0_px"], facts["um_per_px"])
    return Seen(mask, (facts["size_px"][0], facts["size_px"][1]), tuple(facts["downsamples"]))
