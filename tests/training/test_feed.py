"""Training's batches: those of the plain way to the last bit, read ahead but not far, and no thread left behind."""

import contextlib
import signal
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from running import HANG_S, until

from mfcore.data import augment
from mfcore.study.config import Network
from mfcore.training import feed as train_feed

torch = pytest.importorskip("torch")

NETWORK = Network(name="test", input_px=24, shift_px=3, colour_probability=0.8, blur_probability=0.4)
CPU = torch.device("cpu")
N_PATCHES, N_DRAWN = 30, 21
PARTS = [slice(0, 4), slice(4, 10), slice(10, 12), slice(12, 21)]


@pytest.fixture
def stored(tmp_path):
    """A patch store's array, read-only and memory-mapped."""
    side = NETWORK.needed_px
    array = np.random.default_rng(0).integers(0, 256, (N_PATCHES, side, side, 3), dtype=np.uint8)
    np.save(tmp_path / "patches.npy", array)
    return np.load(tmp_path / "patches.npy", mmap_mode="r")


@pytest.fixture
def slow(monkeypatch):
    """Makes reading a batch wait for an event, and lists the rows that were asked for first."""
    begun, go, read = [], threading.Event(), train_feed._read

    def waiting(stored, rows, into, elsewhere):
        begun.append(int(rows[0]))
        assert go.wait(HANG_S)
        read(stored, rows, into, elsewhere)

    monkeypatch.setattr(train_feed, "_read", waiting)
    return begun, go


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert not readers()


def readers() -> list[threading.Thread]:
    """Threads that read for a feed."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("read")]


@pytest.fixture(params=[1, 2, 3])
def n_threads(request):
    """Torch's threads, as a machine of so many cores has them."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def feed(stored, parts=PARTS, rows=None):
    """The feed of a made epoch."""
    rows = np.random.default_rng(1).integers(0, N_PATCHES, N_DRAWN) if rows is None else rows
    return train_feed.batches(stored, rows, augment.draw(NETWORK, N_DRAWN, 2, "epoch"), parts, CPU, NETWORK.input_px)


@pytest.mark.parametrize("mapped", [True, False])
def test_batches_are_those_of_the_plain_way(stored, mapped, n_threads):
    stored = stored if mapped else np.array(stored)
    rows, drawn = np.random.default_rng(1).integers(0, N_PATCHES, N_DRAWN), augment.draw(NETWORK, N_DRAWN, 2, "epoch")
    found = list(feed(stored))
    assert len(found) == len(PARTS)
    for part, images in zip(PARTS, found, strict=True):
        plain = augment.augment(torch.from_numpy(stored[rows[part]]).permute(0, 3, 1, 2), drawn[part], NETWORK.input_px)
        assert images.dtype == torch.float32 and images.shape == (part.stop - part.start, 3, 24, 24)
        assert torch.equal(images, plain)


def test_a_batch_is_the_consumers_to_change(stored):
    """Reading ahead goes into memory of its own."""
    first, second = list(feed(stored)), []
    for images in feed(stored):
        second.append(images.clone())
        images.zero_()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_it_reads_ahead_but_not_far(stored, monkeypatch):
    begun, read = [], train_feed._read
    monkeypatch.setattr(train_feed, "_read", lambda *what: (begun.append(len(what[1])), read(*what)))
    parts = [slice(i, i + 1) for i in range(N_DRAWN)]
    with contextlib.closing(feed(stored, parts)) as batches:
        for n_taken in range(1, 4):
            next(batches)
            until(lambda n=n_taken: len(begun) >= n + train_feed.N_AHEAD)
            assert len(begun) == n_taken + train_feed.N_AHEAD


def test_no_batches_are_fine(stored):
    assert list(feed(stored, [])) == []


def test_torch_keeps_its_threads(stored, n_threads):
    """The caller's, those of its MKL, and what threads started later take."""
    found, before = [], torch.__config__.parallel_info()
    with contextlib.closing(feed(stored)) as batches:
        next(batches)
        assert len(readers()) == 1
        assert torch.__config__.parallel_info() == before
        later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        later.start()
        later.join()
    assert found == [n_threads]
    assert torch.__config__.parallel_info() == before


def test_leaving_early_ends_the_threads(stored, n_threads):
    with pytest.raises(ZeroDivisionError), contextlib.closing(feed(stored)) as batches:
        next(batches)
        assert readers()
        raise ZeroDivisionError
    assert not readers()


def test_an_error_of_reading_reaches_the_caller(stored):
    rows = np.arange(N_DRAWN)
    rows[11] = N_PATCHES
    with contextlib.closing(feed(stored, rows=rows)) as batches:
        next(batches)
        next(batches)
        with pytest.raises(IndexError, match="out of range"):
            next(batches)
        assert not readers()


def test_too_narrow_a_store_is_refused(stored, n_threads):
    with pytest.raises(ValueError, match="reaches outside its stored patch of 30 px"):
        list(feed(stored[:, :30, :30]))


def test_interrupt_while_waiting_for_the_disk_ends_it(stored, slow, monkeypatch):
    begun, go = slow
    interrupted = threading.Event()

    def once(*_) -> None:
        if not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, once)
    result, shutdown, waits = Future.result, ThreadPoolExecutor.shutdown, threading.Event()

    def ending(pool, wait=True, **more):
        shutdown(pool, wait=False, **more)
        go.set()  # what is being read is read to its end, what was asked for besides isn't
        shutdown(pool, wait=wait)

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", ending)
    monkeypatch.setattr(Future, "result", lambda future, *more: waits.set() or result(future, *more))

    def interrupt() -> None:
        assert waits.wait(HANG_S)
        until(lambda: begun)
        while not interrupted.wait(0.01):  # one that comes just before the wait doesn't end it
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    pressed = threading.Thread(target=interrupt)
    pressed.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            next(feed(stored))
    finally:
        go.set()
        pressed.join()
        signal.signal(signal.SIGINT, before)
    assert len(begun) == 1
    assert not readers()
