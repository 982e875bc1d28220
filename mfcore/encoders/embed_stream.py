"""The loop that embeds: patches read ahead of the models, a model a device, and all of a CPU's cores at work.

At most a few batches are in memory, however many patches there are.
"""

import contextlib
import ctypes
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np
import torch

from mfcore.encoders import embed_compile, preprocess
from mfcore.encoders.encoders import Encoder, EncoderError

FIRST_SIZE = {"cpu": 4, "cuda": 32}  # patches a batch, where the size is found by trying
WORTH = 1.05  # a batch twice as large stays if it is this much faster
N_MEASURED = 4  # batches of one size that are timed, a slot

Read = Callable[[range], np.ndarray]


def device_names(wanted: str) -> list[str]:
    """The devices that ``wanted`` names, with commas between; "auto" is every GPU there is, else the CPU."""
    if wanted == "auto":
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
    return [name.strip() for name in wanted.split(",") if name.strip()] or ["cpu"]


class BatchSize:
    """How many patches are embedded at once: as many as asked for, or found by trying, on the run's own patches.

    ``now`` doubles from ``first`` to at most ``largest``, as long as that is faster, and is halved for good where memory ends.
    """

    def __init__(self, wanted: int, first: int, largest: int, n_measured: int = N_MEASURED):
        if wanted < 0:
            raise ValueError(f"batch_size is {wanted}; it must be 1 or more, or 0 to find it by trying")
        self.now = min(wanted or first, largest)
        self.settled = bool(wanted)
        self._largest, self._n_measured = largest, n_measured
        self._best = 0.0  # patches a second of the size before
        self._done: list[float] = []  # when batches of this size ended
        self._lock = threading.Lock()

    def ended(self, n_patches: int, when_s: float) -> None:
        """Note that a batch of ``n_patches`` ended at a time."""
        with self._lock:
            if not self.settled and n_patches == self.now:
                self._done.append(when_s)
                self._judge()

    def too_large(self, n_patches: int) -> None:
        """Note that ``n_patches`` didn't fit into memory."""
        with self._lock:
            self.now, self.settled = min(self.now, max(n_patches // 2, 1)), True

    def _judge(self) -> None:
        if len(self._done) <= self._n_measured:  # the first only starts the clock
            return
        rate = self.now * self._n_measured / max(self._done[-1] - self._done[0], 1e-9)
        self._done = []
        if rate < WORTH * self._best:
            self.now, self.settled = max(self.now // 2, 1), True
        elif self.now * 2 > self._largest:
            self.settled = True
        else:
            self._best, self.now = rate, self.now * 2


@dataclass
class _Device:
    """One device's model. fixed_to: the batch that it was compiled for, 0 where it isn't compiled."""

    encoder: Encoder
    lock: threading.Lock = field(default_factory=threading.Lock)
    fixed_to: int = 0
    compiling: str = "not tried: what there was to do takes less time than to compile"


class Stream:
    """Patches through copies of one encoder, one a device; ``facts`` says afterwards how it was done."""

    def __init__(self, encoders: Sequence[Encoder], batch_size: int, largest: int):
        """encoders: one a device, of the same card. batch_size: 0 to find it by trying; at most ``largest``."""
        self._devices = [_Device(encoder) for encoder in encoders]
        on_cpu = [device for device in self._devices if device.encoder.device.type == "cpu"]
        # On a CPU a transformer runs in a thread a core, each with a batch of its own, that wait for none. A convolutional
        # network's speed is the cache's, so all cores share a batch. On a GPU a second thread queues work while the first
        # waits for its own to be done.
        self._shares_cores = bool(on_cpu) and len(encoders) == 1 and encoders[0].card.n_prefix_tokens == 0
        n_threads = max(1, torch.get_num_threads() // len(on_cpu)) if on_cpu else 2
        if on_cpu:
            keep_freed_memory()
        self._slots: queue.SimpleQueue[_Device] = queue.SimpleQueue()
        for _ in range(n_threads):
            for device in self._devices:
                self._slots.put(device)
        self._n_slots = n_threads * len(self._devices)
        first = max(FIRST_SIZE.get(device.encoder.device.type, 4) for device in self._devices)
        self.size = BatchSize(batch_size, first, largest, N_MEASURED * self._n_slots)
        self._n_done, self._n_left, self._begun_s, self._seconds = 0, 0, 0.0, 0.0

    def run(self, read: Read, pieces: Iterable[range], n_patches: int) -> Iterator[tuple[range, np.ndarray]]:
        """Embed the rows in ``pieces``; yields (rows, features float32 (n, n_dims)) of each batch, as they come.

        read: gives the patches of some rows, uint8 (n, height, width, 3), and is called in the caller's thread; no batch
        reaches over the end of a piece. n_patches: about how many there are, to judge what pays. Raises EncoderError
        for features that aren't finite, naming the rows, and where not even one patch fits into memory.
        """
        self._begun_s, self._n_left, n_threads = time.perf_counter(), n_patches, torch.get_num_threads()
        work: dict[Future[np.ndarray], range] = {}
        any_gpu = next((d.encoder.device for d in self._devices if d.encoder.device.type == "cuda"), torch.device("cpu"))
        if self._shares_cores:
            yield from self._with_all_cores(read, pieces)
            return
        pool = ThreadPoolExecutor(self._n_slots, "embed", torch.set_num_threads, (1,))
        try:
            with preprocess.exact_float32(any_gpu):
                for rows in self._batches(pieces):
                    work[pool.submit(self._embed, rows, self._read(read, rows))] = rows
                    if len(work) >= 2 * self._n_slots:  # one is computed and one read ahead, of each
                        yield from self._ended(work)
                while work:
                    yield from self._ended(work)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(n_threads)  # new threads of the caller's take after the last setting
            for device in self._devices:
                embed_compile.undo(device.encoder)
            self._seconds = time.perf_counter() - self._begun_s

    def _with_all_cores(self, read: Read, pieces: Iterable[range]) -> Iterator[tuple[range, np.ndarray]]:
        """`run` where the cores share a batch: one after another, as reading takes a hundredth of the time and a second thread
        would take a core's cache from the network.
        """
        device = self._devices[0]
        try:
            for rows in self._batches(pieces):
                features = device.encoder.checked(self._in_parts(device, self._read(read, rows)), rows)
                self._note(rows)
                yield rows, features
        finally:
            self._seconds = time.perf_counter() - self._begun_s

    @property
    def facts(self) -> dict[str, object]:
        """Devices, batch size, precision, whether compiled and why, number of patches and patches a second."""
        first = self._devices[0]
        return {
            "devices": [str(device.encoder.device) for device in self._devices],
            "n_threads": self._n_slots,
            "batch_size": self.size.now,
            "precision": first.encoder.precision,
            "compiled": first.compiling if first.encoder.device.type == "cuda" else "not tried: no GPU",
            "n_patches": self._n_done,
            "patches_per_s": round(self._n_done / max(self._seconds, 1e-9), 2),
        }

    def _batches(self, pieces: Iterable[range]) -> Iterator[range]:
        for piece in pieces:
            start = piece.start
            while start < piece.stop:
                rows = range(start, min(start + self.size.now, piece.stop))
                yield rows
                start = rows.stop

    def _read(self, read: Read, rows: range) -> torch.Tensor:
        """The patches of some rows, uint8 (n, height, width, 3), in memory that a GPU can copy from by itself."""
        view = read(rows)
        if view.dtype != np.uint8 or view.ndim != 4 or view.shape[-1] != 3:
            raise ValueError(f"patches must be uint8 (n, height, width, 3); these are {view.dtype} {view.shape}")
        pinned = self._devices[0].encoder.device.type == "cuda"
        patches = torch.empty(view.shape, dtype=torch.uint8, pin_memory=pinned)
        patches.numpy()[...] = view
        return patches

    def _ended(self, work: dict[Future[np.ndarray], range]) -> Iterator[tuple[range, np.ndarray]]:
        """Take from ``work`` what has ended, after waiting for at least one."""
        for future in wait(work, return_when=FIRST_COMPLETED).done:
            rows = work.pop(future)
            features = future.result()
            self._note(rows)
            yield rows, features

    def _note(self, rows: range) -> None:
        """Note that some rows have been embedded."""
        self.size.ended(len(rows), time.perf_counter())
        self._n_done += len(rows)
        self._n_left -= len(rows)

    def _embed(self, rows: range, patches: torch.Tensor) -> np.ndarray:
        """One batch on whichever device is free."""
        device = self._slots.get()
        try:
            return device.encoder.checked(self._in_parts(device, patches), rows)
        finally:
            self._slots.put(device)

    def _in_parts(self, device: _Device, patches: torch.Tensor) -> np.ndarray:
        """Features float32 (n, n_dims), in two halves where the whole doesn't fit into memory."""
        try:
            return self._compute(device, patches)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            what = str(error).partition("\n")[0][:200]
        # from here on the error, which holds on to the batch's memory, is gone
        if device.encoder.device.type == "cuda":
            embed_compile.undo(device.encoder)  # it would take batches of its one size
            device.fixed_to = 0
            torch.cuda.empty_cache()
        n, name = len(patches), device.encoder.card.name
        if n == 1:
            raise EncoderError(
                f"encoder {name!r}: not even one patch fits into the memory of {device.encoder.device} ({what}); free some, "
                "or use another device or a smaller encoder"
            )
        self.size.too_large(n)
        return np.concatenate([self._in_parts(device, part) for part in patches.split((n + 1) // 2)])

    def _compute(self, device: _Device, patches: torch.Tensor) -> np.ndarray:
        encoder, n = device.encoder, len(patches)
        if encoder.device.type != "cuda":
            return encoder.compute(patches).cpu().numpy()
        with device.lock, torch.cuda.device(encoder.device):
            self._compile(device, patches)
            short = device.fixed_to - n
            if short > 0:  # what is compiled takes batches of one size
                patches = torch.cat([patches, patches[-1:].expand(short, -1, -1, -1)])
            there = encoder.compute(patches)[:n]
            here = torch.empty(there.shape, dtype=there.dtype, pin_memory=True)
            here.copy_(there, non_blocking=True)
            copied = torch.cuda.current_stream().record_event()
        copied.synchronize()
        return here.numpy()

    def _compile(self, device: _Device, patches: torch.Tensor) -> None:
        """Compile the device's model, once, when the batch's size stands and so much is left to do that it may pay."""
        if device.compiling.startswith("not tried") and self.size.settled and len(patches) == self.size.now:
            seconds_left = self._n_left * (time.perf_counter() - self._begun_s) / max(self._n_done, 1)
            if seconds_left >= embed_compile.PAYS_FROM_S:
                kept, device.compiling = embed_compile.try_on(device.encoder, patches)
                device.fixed_to = len(patches) if kept else 0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ended, a GPU's or this machine's."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error).lower()


def keep_freed_memory() -> None:
    """Let this process keep up to 1 GB of freed memory, where the system's C library is glibc; elsewhere does nothing.

    glibc hands large blocks back when they are freed, and the kernel fills the next batch's with zeros anew, page by page:
    up to half of a small network's time.
    """
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(trim_threshold, 1 << 30)
        mallopt(mmap_threshold, 32 << 20)  # the most that it takes
        mallopt(arena_max, 1)
