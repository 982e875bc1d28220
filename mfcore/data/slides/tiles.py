"""A cache of decoded tiles that knows the coming reads, and the memory budget that all open slides share."""

import sys
import threading
from collections.abc import Callable, Iterable

import numpy as np

Key = tuple[int, int]  # level, number of the tile in it

MEMORY_BYTES = 512 << 20


class Memory:
    """A memory budget in bytes of decoded pixels, shared by the slides that are opened with it.

    Tiles in use may exceed the limit; `Tiles` then drops others. A whole image waits until it fits.
    """

    def __init__(self, limit_bytes: int = MEMORY_BYTES):
        self.limit_bytes = limit_bytes
        self._used = 0
        self._changed = threading.Condition()

    @property
    def is_over(self) -> bool:
        """Whether more than the limit is held."""
        return self._used > self.limit_bytes

    def add(self, n_bytes: int) -> None:
        """Count bytes that are held now, or, where negative, given back."""
        with self._changed:
            self._used += n_bytes
            if n_bytes < 0:
                self._changed.notify_all()

    def wait_and_add(self, n_bytes: int) -> None:
        """Count bytes as soon as they fit; an image larger than the limit waits until nothing else is held."""
        with self._changed:
            self._changed.wait_for(lambda: self._used == 0 or self._used + n_bytes <= self.limit_bytes)
            self._used += n_bytes

    def lift(self) -> None:
        """Remove the limit, for threads that wait while the work is given up."""
        with self._changed:
            self.limit_bytes = sys.maxsize
            self._changed.notify_all()


class _Tile:
    """One tile: px, uint8 (height, width, 3), None until the thread that holds ``decoding`` has decoded it."""

    __slots__ = ("decoding", "px")

    def __init__(self) -> None:
        self.decoding = threading.Lock()
        self.px: np.ndarray | None = None


class Tiles:
    """Tiles by key, each decoded once for all announced uses. Where memory is short, the tile needed last is dropped.

    Safe for threads: of several that want one tile, one decodes it and the others wait. ``decode`` makes a tile from its
    key, uint8 (height, width, 3). `get` raises what ``decode`` raises.
    """

    def __init__(self, decode: Callable[[Key], np.ndarray], memory: Memory):
        self._decode = decode
        self._memory = memory
        self._lock = threading.Lock()
        self._kept: dict[Key, _Tile] = {}
        self._uses: dict[Key, list[int]] = {}  # by tile: numbers of the reads that need it, the next one last
        self._n_expected = 0

    def expect(self, reads: Iterable[Iterable[Key]]) -> None:
        """Announce reads, each by its tiles, in their order; they come after those announced before."""
        with self._lock:
            added: dict[Key, list[int]] = {}
            for keys in reads:
                self._n_expected += 1
                for key in keys:
                    added.setdefault(key, []).append(self._n_expected)
            for key, when in added.items():
                self._uses[key] = when[::-1] + self._uses.get(key, [])

    def get(self, key: Key) -> np.ndarray:
        """One tile, read-only."""
        with self._lock:
            uses = self._uses.get(key)
            if uses:
                uses.pop()
            if not uses:
                self._uses.pop(key, None)
            tile = self._kept.get(key)
            if tile is None and uses:
                tile = self._kept[key] = _Tile()
        if tile is None:  # no other read needs it
            return self._decode(key)
        with tile.decoding:
            pixels = tile.px if tile.px is not None else self._fill(tile, key)
        with self._lock:
            if key not in self._uses:
                self._drop(key)
        return pixels

    def _fill(self, tile: _Tile, key: Key) -> np.ndarray:
        """Decode a tile to keep; after an error each waiting thread tries again."""
        try:
            pixels = self._decode(key)
        except BaseException:
            with self._lock:
                if self._kept.get(key) is tile:
                    del self._kept[key]
            raise
        with self._lock:
            tile.px = pixels
            if self._kept.get(key) is tile:
                self._memory.add(pixels.nbytes)
                self._make_room()
        return pixels

    def close(self) -> None:
        """Drop every tile and every announced read."""
        with self._lock:
            self._uses.clear()
            for key in list(self._kept):
                self._drop(key)

    def _make_room(self) -> None:
        """Drop tiles, the one with the latest next use first, until memory suffices or none is left."""
        while self._memory.is_over:
            done = [key for key, tile in self._kept.items() if tile.px is not None]
            if not done:
                return
            self._drop(max(done, key=lambda key: self._uses[key][-1] if key in self._uses else self._n_expected + 1))

    def _drop(self, key: Key) -> None:
        """Drop a tile if it is decoded; a thread that reads it keeps its pixels."""
        tile = self._kept.get(key)
        if tile is not None and tile.px is not None:
            del self._kept[key]
            self._memory.add(-tile.px.nbytes)
