"""Decoded tiles of a slide's file, kept until their last announced use; and the memory that all open slides share."""

import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future

import numpy as np

Key = tuple[int, int]  # level, number of the tile in it

MEMORY_BYTES = 512 << 20


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


class Tiles:
    """Tiles by key, each decoded once for all announced uses while memory lasts; beyond it, the one needed last is dropped.

    Safe for threads: of those that want a tile at once, one decodes it and the others wait. ``decode`` makes a tile from its
    key, uint8 (height, width, 3), and raises what `get` then raises.
    """

    def __init__(self, decode: Callable[[Key], np.ndarray], memory: Memory):
        self._decode = decode
        self._memory = memory
        self._lock = threading.Lock()
        self._kept: dict[Key, Future[np.ndarray]] = {}
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
        """One tile; not to be written to."""
        with self._lock:
            uses = self._uses.get(key)
            if uses:
                uses.pop()
            if not uses:
                self._uses.pop(key, None)
            tile = self._kept.get(key)
            is_mine = tile is None
            if tile is None:
                tile = self._kept[key] = Future()
        if is_mine:
            try:
                decoded = self._decode(key)
            except BaseException as error:
                with self._lock:
                    del self._kept[key]
                tile.set_exception(error)
                raise
            with self._lock:
                self._memory.add(decoded.nbytes)
                tile.set_result(decoded)
                self._make_room()
        result = tile.result()
        with self._lock:
            if key not in self._uses:
                self._drop(key)
        return result

    def close(self) -> None:
        """Drop every tile and what was announced."""
        with self._lock:
            self._uses.clear()
            for key in [key for key, tile in self._kept.items() if tile.done()]:
                self._drop(key)

    def _make_room(self) -> None:
        """Drop tiles, the one whose next use is farthest first, until memory suffices or none is left to drop."""
        while self._memory.is_over:
            done = [key for key, tile in self._kept.items() if tile.done()]
            if not done:
                return
            self._drop(max(done, key=lambda key: self._uses[key][-1] if key in self._uses else self._n_expected + 1))

    def _drop(self, key: Key) -> None:
        """Forget a tile if it is there and decoded; who reads it still holds it."""
        tile = self._kept.get(key)
        if tile is not None and tile.done():
            del self._kept[key]
            self._memory.add(-tile.result().nbytes)
