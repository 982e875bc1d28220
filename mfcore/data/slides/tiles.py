"""The decoded tiles of open slides, kept for the next reads that need them."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np

Key = tuple[object, int, int]  # the reader, the level, the number of the tile in the level

MEMORY_BYTES = 128 << 20


class Memory:
    """Decoded tiles of all slides opened with it; beyond the limit, the tile unused longest goes.

    The newest tile stays, whatever its size.

    Safe for threads: of several that want one tile, one decodes it and the others wait.
    """

    def __init__(self, limit_bytes: int = MEMORY_BYTES):
        self.limit_bytes = limit_bytes
        self.n_bytes = 0
        self._tiles: OrderedDict[Key, Future] = OrderedDict()
        self._lock = threading.Lock()

    def tile(self, key: Key, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """A tile, uint8 (height, width, 3), read-only; ``decode`` makes it, and raises its errors,
        if it isn't kept.
        """
        with self._lock:
            is_kept = key in self._tiles
            tile = self._tiles.setdefault(key, Future())
            self._tiles.move_to_end(key)
        if is_kept:
            return tile.result()
        try:
            pixels = decode()
        except BaseException as error:
            with self._lock:
                self._drop(key)
            tile.set_exception(error)
            raise
        with self._lock:
            tile.set_result(pixels)
            if self._tiles.get(key) is tile:
                self.n_bytes += pixels.nbytes
            while self.n_bytes > self.limit_bytes and len(self._tiles) > 1:
                self._drop(next(iter(self._tiles)))
        return pixels

    def close(self, reader: object) -> None:
        """Drop the tiles of a reader."""
        with self._lock:
            for key in [key for key in self._tiles if key[0] is reader]:
                self._drop(key)

    def _drop(self, key: Key) -> None:
        tile = self._tiles.pop(key, None)
        if tile is not None and tile.done():
            self.n_bytes -= tile.result().nbytes
