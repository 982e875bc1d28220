"""The embedding loop: the same features however the work is cut up, reading ahead, the end of memory."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from running import HANG_S
from tiny_encoders import some_patches, tiny_card, use
from tqdm import tqdm

from mfcore import encoders
from mfcore.encoders import embed, network
from mfcore.encoders.embed import Batches

N = 37
PATCHES = some_patches(N, 40)


def read(rows: range) -> torch.Tensor:
    return torch.from_numpy(PATCHES[rows.start : rows.stop])


def tiny_cnn() -> encoders.EncoderCard:
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


def run(batches: Batches, pieces: list[range], read=read) -> Iterator[tuple[range, np.ndarray]]:
    with tqdm(disable=True) as progress:
        yield from embed.embedded(batches, read, pieces, progress)


def gather(batches: Batches, pieces: list[range]) -> np.ndarray:
    """Features of all rows in ``pieces``, row for row; NaN where there are none."""
    out = np.full((N, batches.encoder.card.n_dims), np.nan, np.float32)
    for rows, features in run(batches, pieces):
        assert np.isnan(out[rows.start : rows.stop]).all(), "embedded twice"
        out[rows.start : rows.stop] = features
    return out


@given(
    name=st.sampled_from(["tiny", "tiny cnn"]),
    batch_size=st.integers(1, 40),
    piece=st.integers(1, 40),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=15, deadline=None)
def test_embeddings_are_the_same_for_any_batch_order_and_pieces(networks, name, batch_size, piece, order):
    encoder, expected = networks[name]
    pieces = [range(first, min(first + piece, N)) for first in range(0, N, piece)]
    order.shuffle(pieces)
    found = gather(Batches(encoder, batch_size), pieces)
    apart = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert apart.max() < 1e-5


def test_one_shard_is_read_ahead_by_another_thread(tiny):
    pieces, n_read, n_done = [range(i, i + 4) for i in range(0, 32, 4)], 0, 0
    began_second = threading.Event()

    def counting(rows):
        nonlocal n_read
        assert threading.current_thread() is not threading.main_thread()
        n_read += 1
        assert n_read - n_done <= 2  # one is computed while one is read
        if n_read == 2:
            began_second.set()
        return read(rows)

    for _ in run(Batches(tiny, 4), pieces, counting):
        assert began_second.wait(HANG_S)
        n_done += 1
    assert n_read == n_done == len(pieces)


def test_an_error_in_reading_or_in_the_network_comes_out(tiny, monkeypatch):
    def broken(rows):
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(run(Batches(tiny, 4), [range(4)], broken))
    monkeypatch.setattr(network, "read_out", lambda model, card, images: torch.full((len(images), 24), torch.nan))
    with pytest.raises(encoders.EncoderError, match=r"NaN or infinity for patches \[8, 9, 10, 11\]"):
        list(run(Batches(tiny, 4), [range(8, 12)]))


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
    batches = Batches(encoder, 16)
    np.testing.assert_allclose(gather(batches, [range(20), range(20, N)]), expected, atol=1e-5)
    assert batches.size == 4 and tried[:3] == [16, 8, 4] and max(tried[2:]) == 4
    assert sum(n for n in tried if n <= 5) == N


def test_where_not_even_one_patch_fits_it_is_said_and_other_errors_are_not_taken_for_it(tiny, monkeypatch):
    with monkeypatch.context() as patch:
        scarce(patch, 0, CPU_ERROR)
        message = r"'tiny': not even one patch fits into the memory of cpu .*DefaultCPUAllocator"
        with pytest.raises(encoders.EncoderError, match=message):
            gather(Batches(tiny, 4), [range(N)])
    tried = scarce(monkeypatch, 0, RuntimeError("shapes don't match"))
    with pytest.raises(RuntimeError, match="shapes don't match"):
        gather(Batches(tiny, 4), [range(4)])
    assert tried == [4]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_gpu_gives_what_the_cpu_does(networks, monkeypatch, precision):
    for name, (encoder, expected) in networks.items():
        card = tiny_card(precision=precision) if name == "tiny" else encoder.card
        there = encoders.load(use(monkeypatch, card), "cuda")
        found = gather(Batches(there, 16), [range(12), range(12, 24), range(24, N)])
        apart = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert apart.max() < (1e-2 if card.precision != "float32" else 1e-4)
