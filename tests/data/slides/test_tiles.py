"""Tiles among threads: decoded once, kept while memory lasts, never waited for in vain."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from running import HANG_S

from mfcore.data.slides.tiles import Memory


def tile_of(k):
    return np.full((8, 8, 3), k, np.uint8)


def test_threads_that_want_one_tile_wait_for_the_one_that_decodes_it():
    n_decoded, begun, memory = [], threading.Barrier(8), Memory()

    def decode():
        n_decoded.append(1)
        time.sleep(0.05)
        return tile_of(5)

    def get(_):
        begun.wait()
        return memory.tile(("a", 0, 5), decode)

    with ThreadPoolExecutor(8) as pool:
        assert all((tile == 5).all() for tile in pool.map(get, range(8)))
    assert n_decoded == [1]
    assert memory.n_bytes == 192
    memory.close("b")
    assert memory.n_bytes == 192
    memory.close("a")
    assert memory.n_bytes == 0


def test_beyond_the_limit_the_tile_unused_longest_goes():
    decoded, memory = [], Memory(2 * 192)
    for k in [1, 2, 1, 3, 1, 2]:
        tile = memory.tile(("a", 0, k), lambda k=k: decoded.append(k) or tile_of(k))
        assert (tile == k).all() and memory.n_bytes <= memory.limit_bytes
    assert decoded == [1, 2, 3, 2]


def test_a_tile_larger_than_the_limit_is_kept_until_the_next():
    memory = Memory(100)
    for k in (7, 7, 8):
        memory.tile(("a", 0, k), lambda k=k: tile_of(k))
        assert memory.n_bytes == 192
    assert (memory.tile(("a", 0, 8), lambda: tile_of(0)) == 8).all()


def test_more_threads_than_cores_with_little_memory_come_to_an_end():
    memory, rng = Memory(5 * 192), random.Random(0)
    keys = [(rng.randrange(3), 0, rng.randrange(30)) for _ in range(3000)]
    with ThreadPoolExecutor(24) as pool:
        tiles = pool.map(lambda key: memory.tile(key, lambda: tile_of(key[2])), keys, timeout=HANG_S)
        assert all((tile == key[2]).all() for tile, key in zip(tiles, keys, strict=True))
    assert 0 < memory.n_bytes <= memory.limit_bytes
    for reader in range(3):
        memory.close(reader)
    assert memory.n_bytes == 0


def test_all_who_wait_for_a_damaged_tile_hear_of_it_and_a_later_one_tries_again():
    begun, memory = threading.Barrier(3), Memory()

    def damaged():
        time.sleep(0.05)
        raise ValueError("damaged")

    def get(_):
        begun.wait()
        with pytest.raises(ValueError, match="damaged"):
            memory.tile(("a", 0, 7), damaged)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(get, range(3)))
    assert (memory.tile(("a", 0, 7), lambda: tile_of(7)) == 7).all()
