"""Decoded tiles of a slide's file, kept until their last announced use; and the memory that all open slides share."""

import sys
import threading
from collections.abc import Callable, Iterable

import numpy as np

Key = tuple[int, int]  # level, number of the tile in it

MEMORY_BYTES = 512 << 20
SCRATCH_BYTES = 1 << 20


class Memory:
    """Bytes of decoded px that all slides opened with it hold together; `Tiles` and whole images count themselves in.

    Tiles may pass the limit by those in use; whoever adds one then drops others. A whole image waits for room.
    """

    def __init__(self, limit_bytes: int = MEMORY_BYTES):
        self.limit_bytes = limit_bytes
        self._used = 0
        self._changed = threading.Condition()

    @property
    def is_over(self) -> bool:
        """Whether more is held than the limit."""
        return self._used > self.limit_bytes

    def add(self, n_bytes: int) -> None:
        """Count bytes in, or out where negative."""
        with self._changed:
            self._used += n_bytes
            if n_bytes < 0:
                self._changed.notify_all()

    def wait_and_add(self, n_bytes: int) -> None:
        """Count bytes in as soon as they fit; what is larger than the limit waits until nothing else is held."""
        with self._changed:
            self._changed.wait_for(lambda: self._used == 0 or self._used + n_bytes <= self.limit_bytes)
            self._used += n_bytes

    def lift(self) -> None:
        """Take the limit off for whoever waits: the work is being given up, and must come to its end."""
        with self._changed:
            self.limit_bytes = sys.maxsize
            self._changed.notify_all()


class _Own(threading.local):
    """What a thread has to itself: bytes for the tile that it reads and nobody needs again; new ones take their time."""

    def __init__(self) -> None:
        self.scratch = bytearray(SCRATCH_BYTES)


_own = _Own()


class _Tile:
    """One tile: whoever decodes it holds ``decoding``; px: uint8 (height, width, 3), None until then."""

    __slots__ = ("decoding", "px")

    def __init__(self) -> None:
        self.decoding = threading.Lock()
        self.px: np.ndarray | None = None


class Tiles:
    """Tiles by key, each decoded once for all announced uses while memory lasts; beyond it, the one needed last is dropped.

    Safe for threads: of those that announced a tile and want it at once, one decodes it and the others wait. ``decode`` makes
    a tile from its key, uint8 (height, width, 3), in the bytes lent with it or where it likes, and raises what `get` then
    raises.
    """

    def __init__(self, decode: Callable[[Key, bytearray | None], np.ndarray], memory: Memory):
        self._decode = decode
        self._memory = memory
        self._lock = threading.Lock()
        self._kept: dict[Key, _Tile] = {}
        self._uses: dict[Key, list[int]] = {}  # by tile: when it is needed, the next time last
        self._n_expected = 0

    def expect(self, reads: Iterable[Iterable[Key]]) -> None:
        """Announce reads by the tiles each needs, in the order in which they come; adds to what was announced before."""
        with self._lock:
            added: dict[Key, list[int]] = {}
            for keys in reads:
                self._n_expected += 1
                for key in keys:
                    added.setdefault(key, []).append(self._n_expected)
            for key, when in added.items():
                self._uses[key] = when[::-1] + self._uses.get(key, [])

    def get(self, key: Key) -> np.ndarray:
        """One tile, this thread's until it gets another; not to be written to."""
        with self._lock:
            uses = self._uses.get(key)
            if uses:
                uses.pop()
            if not uses:
                self._uses.pop(key, None)
            tile = self._kept.get(key)
            if tile is None and uses:
                tile = self._kept[key] = _Tile()
        if tile is None:  # nobody needs it again
            return self._decode(key, _own.scratch)
        with tile.decoding:
            pixels = tile.px if tile.px is not None else self._fill(tile, key)
        with self._lock:
            if key not in self._uses:
                self._drop(key)
        return pixels

    def _fill(self, tile: _Tile, key: Key) -> np.ndarray:
        """Decode a tile that is to be kept; of a damaged one, whoever waits tries for himself."""
        try:
            pixels = self._decode(key, None)
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
        """Drop every tile and what was announced."""
        with self._lock:
            self._uses.clear()
            for key in list(self._kept):
                self._drop(key)

    def _make_room(self) -> None:
        """Drop tiles, the one whose next use is farthest first, until memory suffices or none is left to drop."""
        while self._memory.is_over:
            done = [key for key, tile in self._kept.items() if tile.px is not None]
            if not done:
                return
            self._drop(max(done, key=lambda key: self._uses[key][-1] if key in self._uses else self._n_expected + 1))

    def _drop(self, key: Key) -> None:
        """Forget a tile if it is there and decoded; who reads it still holds it."""
        tile = self._kept.get(key)
        if tile is not None and tile.px is not None:
            del self._kept[key]
            self._memory.add(-tile.px.nbytes)
