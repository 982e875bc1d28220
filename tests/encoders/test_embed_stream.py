"""The embedding loop: the same features however the work is cut up, the batch's size, memory's end, what is compiled."""

import re
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from running import HANG_S
from tiny_encoders import some_patches, tiny_card, use

from mfcore.encoders import embed_compile, embed_stream, encoders
from mfcore.encoders.card import EncoderCard
from mfcore.encoders.encoders import EncoderError

N = 37
PATCHES = some_patches(N, 40)


def read(rows: range) -> np.ndarray:
    return PATCHES[rows.start : rows.stop]


def tiny_cnn() -> EncoderCard:
    """A random convolutional network with batch norm and pooled features, small for testing."""
    facts = {"n_prefix_tokens": 0, "readout": "pooled", "n_dims": 256, "n_parameters": 99_196}
    return tiny_card(name="tiny cnn", identifier="test_efficientnet", architecture="test_efficientnet", arguments={}, **facts)


@pytest.fixture(scope="module")
def networks() -> dict[str, tuple[encoders.Encoder, np.ndarray]]:
    """Encoders, and what they give for `PATCHES` taken one by one."""
    made = {}
    patch = pytest.MonkeyPatch()
    for card in (tiny_card(), tiny_cnn()):
        encoder = encoders.load(use(patch, card))
        made[card.name] = encoder, np.concatenate([encoder.embed(PATCHES[i : i + 1]) for i in range(N)])
    patch.undo()
    return made


@pytest.fixture
def tiny(networks) -> encoders.Encoder:
    return networks["tiny"][0]


def gather(stream: embed_stream.Stream, pieces: list[range]) -> np.ndarray:
    """Features of all rows in ``pieces``, row for row; NaN where there are none."""
    out = np.full((N, stream._devices[0].encoder.card.n_dims), np.nan, np.float32)
    for rows, features in stream.run(read, pieces, sum(map(len, pieces))):
        assert np.isnan(out[rows.start : rows.stop]).all(), "embedded twice"
        out[rows.start : rows.stop] = features
    return out


@given(
    name=st.sampled_from(["tiny", "tiny cnn"]),
    batch_size=st.integers(0, 40),
    piece=st.integers(1, 40),
    n_devices=st.integers(1, 3),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=40, deadline=None)
def test_embeddings_are_the_same_for_any_batch_order_pieces_and_number_of_workers(
    networks, name, batch_size, piece, n_devices, order
):
    encoder, expected = networks[name]
    pieces = [range(first, min(first + piece, N)) for first in range(0, N, piece)]
    order.shuffle(pieces)
    found = gather(embed_stream.Stream([encoder] * n_devices, batch_size, 16), pieces)
    apart = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert apart.max() < 1e-5


def test_on_a_cpu_every_core_has_a_thread_and_the_callers_own_setting_stays(tiny):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        stream = embed_stream.Stream([tiny], 2, 16)
        threads, compute = set(), encoders.Encoder.compute
        with pytest.MonkeyPatch.context() as patch:
            barrier = threading.Barrier(3, timeout=HANG_S)

            def seen(self, batch):
                me = threading.get_ident(), torch.get_num_threads()
                if me not in threads:
                    threads.add(me)
                    barrier.wait()  # passes only when three threads are at work at once
                return compute(self, batch)

            patch.setattr(encoders.Encoder, "compute", seen)
            gather(stream, [range(N)])
        assert len(threads) == 3 and {n for _, n in threads} == {1} and torch.get_num_threads() == 3
        asked = []
        other = threading.Thread(target=lambda: asked.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert asked == [3]
    finally:
        torch.set_num_threads(before)


def test_few_batches_are_read_ahead_of_those_that_are_done(tiny):
    n_read, n_done = 0, 0

    def counting(rows):
        nonlocal n_read
        n_read += 1
        assert n_read - n_done <= 2 * stream._n_slots
        return read(rows)

    stream = embed_stream.Stream([tiny], 1, 16)
    for _ in stream.run(counting, [range(N)], N):
        n_done += 1
    assert n_read == n_done == N


def test_what_goes_wrong_in_a_worker_or_in_reading_comes_out(tiny, monkeypatch):
    with pytest.raises(ValueError, match=r"uint8.*float64 \(2, 3\)"):
        list(embed_stream.Stream([tiny], 4, 16).run(lambda rows: np.zeros((2, 3)), [range(4)], 4))
    monkeypatch.setattr(encoders, "read_out", lambda model, card, images: torch.full((len(images), 24), torch.nan))
    with pytest.raises(EncoderError, match=r"NaN or infinity for patches \[8, 9, 10, 11\]"):
        list(embed_stream.Stream([tiny], 4, 16).run(read, [range(8, 12)], 4))


def test_devices_are_named_with_commas_and_auto_is_every_gpu_or_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert embed_stream.device_names("auto") == ["cuda:0", "cuda:1"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert embed_stream.device_names("auto") == ["cpu"]
    assert embed_stream.device_names("cuda:1, cpu") == ["cuda:1", "cpu"]


def test_another_c_library_is_no_obstacle(monkeypatch):
    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    for library in (absent, lambda name: object()):
        monkeypatch.setattr(embed_stream.ctypes, "CDLL", library)
        embed_stream.keep_freed_memory()


# ---- the batch's size ----


def simulate(rate_of: dict[int, float], largest: int = 256) -> embed_stream.BatchSize:
    """The size that is found where batches of each size run at the given patches a second."""
    size, now = embed_stream.BatchSize(0, 8, largest), 0.0
    for _ in range(200):
        n = size.now
        now += n / rate_of.get(n, 1000.0)
        size.ended(n, now)
    return size


def test_the_batch_grows_as_long_as_that_is_faster():
    assert simulate({8: 100, 16: 150, 32: 200, 64: 202}).now == 32
    assert simulate({8: 100, 16: 90}).now == 8
    assert simulate({8: 100, 16: 150, 32: 200, 64: 300}, largest=64).now == 64
    assert simulate({8: 100, 16: 150, 32: 200}).settled


def test_a_size_that_is_asked_for_stays_and_batches_of_other_sizes_dont_count():
    size = embed_stream.BatchSize(24, 8, 256)
    for i in range(50):
        size.ended(24, i)
    assert size.now == 24 and size.settled
    assert embed_stream.BatchSize(1000, 8, 256).now == 256
    size = embed_stream.BatchSize(0, 8, 256)
    for i in range(50):
        size.ended(3, i)
    assert size.now == 8 and not size.settled
    with pytest.raises(ValueError, match="batch_size is -2"):
        embed_stream.BatchSize(-2, 8, 256)


def scarce(monkeypatch, fits: int, error: Exception) -> list[int]:
    """Let batches of more than ``fits`` patches end with ``error``; gives the sizes of those that were tried."""
    tried, compute = [], encoders.Encoder.compute

    def limited(self, batch):
        tried.append(len(batch))
        if len(batch) > fits:
            raise error
        return compute(self, batch)

    monkeypatch.setattr(encoders.Encoder, "compute", limited)
    return tried


CPU_ERROR = RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to ...")


@pytest.mark.parametrize("error", [CPU_ERROR, torch.cuda.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_a_batch_that_memory_doesnt_hold_is_halved_and_stays_so(networks, monkeypatch, error):
    encoder, expected = networks["tiny"]
    tried = scarce(monkeypatch, 5, error)
    stream = embed_stream.Stream([encoder], 16, 16)
    np.testing.assert_allclose(gather(stream, [range(N)]), expected, atol=1e-5)
    assert stream.facts["batch_size"] == 4 and max(tried[-3:]) <= 4
    assert sum(n for n in tried if n <= 5) == N


def test_a_batch_that_grew_too_large_goes_back(networks, monkeypatch):
    encoder, expected = networks["tiny"]
    tried = scarce(monkeypatch, 5, CPU_ERROR)
    stream = embed_stream.Stream([encoder], 0, 64)
    monkeypatch.setattr(stream, "size", embed_stream.BatchSize(0, 4, 64, 1))
    monkeypatch.setattr(embed_stream, "WORTH", 0.0)  # every size is worth it
    np.testing.assert_allclose(gather(stream, [range(N)]), expected, atol=1e-5)
    assert max(tried) == 8 and stream.size.now <= 4 and stream.size.settled


def test_where_not_even_one_patch_fits_it_is_said_and_other_errors_are_not_taken_for_it(tiny, monkeypatch):
    with monkeypatch.context() as patch:
        scarce(patch, 0, CPU_ERROR)
        with pytest.raises(EncoderError, match=r"'tiny': not even one patch fits into the memory of cpu .*DefaultCPUAllocator"):
            gather(embed_stream.Stream([tiny], 4, 16), [range(N)])
    tried = scarce(monkeypatch, 0, RuntimeError("shapes don't match"))
    with pytest.raises(RuntimeError, match="shapes don't match"):
        gather(embed_stream.Stream([tiny], 4, 16), [range(4)])
    assert tried == [4]


# ---- compiling ----


def pretend(monkeypatch, what) -> None:
    monkeypatch.setattr(torch, "compile", what)


@pytest.mark.parametrize("name", ["tiny", "tiny cnn"])
def test_a_compiled_model_is_kept_where_it_is_faster_and_agrees(networks, monkeypatch, name):
    encoder, expected = networks[name]
    ticks = iter([0, 10, 10, 20, 20, 30, 30, 40, *(40 + i for i in range(20))])  # seconds: 10 a batch, then 1
    monkeypatch.setattr(embed_compile.time, "perf_counter", lambda: next(ticks))
    called = []

    def faster(method, **options):
        return lambda images: (called.append(options), method(images))[1]

    pretend(monkeypatch, faster)
    kept, why = embed_compile.try_on(encoder, torch.from_numpy(PATCHES[:4]))
    assert kept and why == "kept: 10.00 times as fast" and len(called) == 4
    np.testing.assert_allclose(encoder.embed(PATCHES[:4]), expected[:4], atol=1e-5)
    assert len(called) == 5
    embed_compile.undo(encoder)
    encoder.embed(PATCHES[:4])
    assert len(called) == 5


def broken(method, **_):
    def refuse(images):
        raise RuntimeError("BackendCompilerFailed: no compiler\nand a long story")

    return refuse


@pytest.mark.parametrize(
    ("compiler", "why"),
    [
        (broken, r"^not kept: RuntimeError: BackendCompilerFailed: no compiler$"),
        (lambda method, **_: lambda images: method(images) * 1.01, r"^not kept: its features lie 0\.01 apart"),
        (lambda method, **_: lambda images: method(images) * torch.nan, r"^not kept: its features lie nan apart"),
        (lambda method, **_: method, r"^not kept: 1\.00 times as fast"),
    ],
)
def test_a_model_that_doesnt_compile_agree_or_gain_stays_as_it_was(networks, monkeypatch, compiler, why):
    encoder, expected = networks["tiny"]
    ticks = iter(range(100))  # a second a batch, before and after
    monkeypatch.setattr(embed_compile.time, "perf_counter", lambda: next(ticks))
    pretend(monkeypatch, compiler)
    kept, said = embed_compile.try_on(encoder, torch.from_numpy(PATCHES))
    assert not kept and re.search(why, said), said
    np.testing.assert_allclose(encoder.embed(PATCHES), expected, atol=1e-5)


# ---- on a GPU ----


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_gpu_gives_what_the_cpu_does(networks, monkeypatch, precision):
    for name, (encoder, expected) in networks.items():
        card = tiny_card(precision=precision) if name == "tiny" else encoder.card
        there = encoders.load(use(monkeypatch, card), "cuda")
        stream = embed_stream.Stream([there], 0, 16)
        monkeypatch.setattr(embed_compile, "PAYS_FROM_S", 0)
        found = gather(stream, [range(20), range(20, N)])
        apart = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert apart.max() < (1e-2 if card.precision != "float32" else 1e-4)
        assert stream.facts["precision"] == card.precision
