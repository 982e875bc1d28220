"""Tiles among threads: decoded once, dropped after the last use, never waited for in vain."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from running import HANG_S

from mfcore.data.slides.tiles import Memory, Tiles


def tile_of(key):
    return np.full((8, 8, 3), key[1], np.uint8)


def test_threads_that_want_one_tile_wait_for_the_one_that_decodes_it():
    n_decoded, begun = [], threading.Barrier(8)

    def decode(key):
        n_decoded.append(key)
        time.sleep(0.05)
        return tile_of(key)

    memory = Memory()
    tiles = Tiles(decode, memory)
    tiles.expect([[(0, 5)]] * 8)

    def get(_):
        begun.wait()
        return tiles.get((0, 5))

    with ThreadPoolExecutor(8) as pool:
        assert all((tile == 5).all() for tile in pool.map(get, range(8)))
    assert n_decoded == [(0, 5)]
    assert memory._used == 0


def test_a_tile_is_kept_until_its_last_announced_use():
    decoded = []
    tiles = Tiles(lambda key: decoded.append(key) or tile_of(key), Memory())
    a, b = (0, 1), (0, 2)
    tiles.expect([[a, b], [a], [b], [a]])
    for key in (a, b, a, b, a):
        tiles.get(key)
    assert decoded == [a, b]
    tiles.get(a)  # not announced: as right, but not kept
    tiles.get(a)
    assert decoded == [a, b, a, a]
    tiles.expect([[a], [a]])
    tiles.expect([[a]])
    for _ in range(3):
        tiles.get(a)
    assert decoded == [a, b, a, a, a]


def test_the_tile_whose_next_use_is_farthest_is_dropped_first():
    decoded = []
    tiles = Tiles(lambda key: decoded.append(key[1]) or tile_of(key), Memory(2 * 192))
    order = [1, 2, 3, 1, 2, 1, 3]
    tiles.expect([[(0, k)] for k in order])
    for k in order:
        tiles.get((0, k))
    assert decoded == [1, 2, 3, 3]  # 3, needed last of the three, is not kept


def test_more_threads_than_cores_with_little_memory_come_to_an_end():
    memory = Memory(5 * 192)
    sources = [Tiles(tile_of, memory) for _ in range(3)]
    rng = random.Random(0)
    reads = [(tiles, [(0, rng.randrange(30)) for _ in range(6)]) for tiles in sources for _ in range(150)]
    for tiles in sources:
        tiles.expect(keys for one, keys in reads if one is tiles)
    rng.shuffle(reads)

    def read(each):
        tiles, keys = each
        return all((tiles.get(key) == key[1]).all() for key in keys)

    with ThreadPoolExecutor(24) as pool:
        assert all(pool.map(read, reads, timeout=HANG_S))
    assert memory._used == 0


def test_a_whole_image_waits_for_room_and_a_larger_one_for_all_of_it():
    memory = Memory(100)
    memory.add(60)
    done = []
    waiting = [threading.Thread(target=lambda n=n: (memory.wait_and_add(n), done.append(n)), daemon=True) for n in (50, 200)]
    for thread in waiting:
        thread.start()
    time.sleep(0.05)
    assert done == []
    memory.add(-10)  # 50 are free
    waiting[0].join(HANG_S)
    assert done == [50]
    memory.add(-100)
    waiting[1].join(HANG_S)
    assert done == [50, 200]


def test_nobody_waits_for_memory_when_the_work_is_given_up():
    memory = Memory(100)
    memory.add(100)
    thread = threading.Thread(target=memory.wait_and_add, args=(50,), daemon=True)
    thread.start()
    memory.lift()
    thread.join(HANG_S)
    assert not thread.is_alive()


def test_what_failed_to_decode_is_tried_again_by_who_asks_again():
    answers = iter([ValueError("damaged"), tile_of((0, 7))])

    def decode(key):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    tiles = Tiles(decode, Memory())
    with pytest.raises(ValueError, match="damaged"):
        tiles.get((0, 7))
    assert (tiles.get((0, 7)) == 7).all()


def test_those_who_wait_for_a_damaged_tile_try_it_themselves_and_one_of_them_may_have_it():
    tries, begun = [], threading.Barrier(3)

    def decode(key):
        tries.append(key)
        time.sleep(0.05)
        if len(tries) == 1:
            raise OSError("not now")
        return tile_of(key)

    memory = Memory()
    tiles = Tiles(decode, memory)
    tiles.expect([[(0, 7)]] * 4)

    def get(_):
        begun.wait()
        try:
            return tiles.get((0, 7))
        except OSError:
            return None

    with ThreadPoolExecutor(3) as pool:
        got = list(pool.map(get, range(3)))
    assert sum(tile is None for tile in got) == 1 and all((tile == 7).all() for tile in got if tile is not None)
    tiles.get((0, 7))
    assert memory._used == 0
