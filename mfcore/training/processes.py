"""Several processes that train one network together (torchrun, DistributedDataParallel): who does
what, who tells whom; and the checkpoint from which they go on after a kill.

Each batch is shared out, gradients are added up, and every process draws the same patches; the
first one writes. Batch norm takes its means over the whole batch on GPUs; on a CPU, where torch
can't, over each process's share of it, and the running means are then the first process's. Dropout
differs from that of one process.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from mfcore import encoders, store

# With the first process, which makes or fetches slides; NCCL's own are ten minutes.
PATIENCE = timedelta(hours=1)
CHECKPOINT_SECONDS = 30.0  # between two; a short training isn't worth one
# Of the time, at most, goes into checkpoints; a large network's take seconds each.
CHECKPOINT_SHARE = 0.05


@dataclass(frozen=True)
class Ranks:
    """The processes at work on one training, and which of them this is; `here` gives it."""

    rank: int = 0
    n: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes results and shows progress."""
        return self.rank == 0

    def share(self, part: slice) -> slice:
        """This process's share of a batch, maybe an empty one; the shares of all, in order, are the
        batch.
        """
        n_patches = part.stop - part.start
        first, last = (
            part.start + n_patches * rank // self.n for rank in (self.rank, self.rank + 1)
        )
        return slice(first, last)

    def wrap(self, model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        """A network whose gradients are averaged over the processes as they come; the same one
        where this is the only process.

        Its batch norms are as `synced` has them.
        """
        if self.n == 1:
            return model
        model = self.synced(model, device)
        return torch.nn.parallel.DistributedDataParallel(
            model, device_ids=[device] if device.type == "cuda" else None
        )

    def synced(self, model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        """The network, its batch norms changed, in place, to those that take their means over all
        processes.

        On GPUs; on CPUs, where torch has none, each process takes those of its own share.
        """
        if self.n == 1 or device.type != "cuda":
            return model
        import timm

        return timm.layers.convert_sync_batchnorm(model)

    def add(self, values: torch.Tensor, how: str = "SUM") -> torch.Tensor:
        """The sum of every process's ``values``, or another reduction of torch's, in place."""
        if self.n > 1:
            distributed.all_reduce(values, getattr(distributed.ReduceOp, how))
        return values

    def join(self, mine: np.ndarray) -> np.ndarray:
        """Every process's array, one after another."""
        if self.n == 1:
            return mine
        gathered: list[Any] = [None] * self.n
        distributed.all_gather_object(gathered, mine)
        return np.concatenate(gathered)

    def as_first(self, content: Any) -> Any:
        """What the first process has for ``content`` (plain data)."""
        if self.n == 1:
            return content
        contents = [content]
        distributed.broadcast_object_list(contents)
        return contents[0]

    def share_buffers(self, model: torch.nn.Module) -> None:
        """Give every process the first one's running means."""
        for buffer in model.buffers() if self.n > 1 else ():
            distributed.broadcast(buffer, 0)


def here() -> Ranks:
    """The processes that `joined` brought together; the only one otherwise."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return Ranks()
    return Ranks(distributed.get_rank(), distributed.get_world_size())


@contextlib.contextmanager
def joined(device: str) -> Iterator[str]:
    """Join the processes that torchrun started, if it did; yields the name of this one's device.

    ``device`` as for `encoders.choose_device`; "auto" and "cuda" give each process a GPU of its
    own. After an error the process should end, and torchrun ends the others. Raises EncoderError
    where there are more processes than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        # before anything touches the first GPU, where each would leave something
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(encoders.choose_device(device))
    else:
        device = encoders.choose_device(device).type
    distributed.init_process_group(
        "nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE
    )
    yield device
    # not after an error: NCCL would wait for processes that wait for this one
    distributed.destroy_process_group()


class Checkpoint:
    """A training's checkpoint, written by the first process from time to time."""

    def __init__(self, file: Path):
        self.file, self._written, self._writing_seconds = file, time.monotonic(), 0.0

    @property
    def is_due(self) -> bool:
        """Whether it's time for another, in the first process."""
        wait = max(CHECKPOINT_SECONDS, self._writing_seconds / CHECKPOINT_SHARE)
        return here().is_first and time.monotonic() - self._written >= wait

    def write(self, state: dict) -> None:
        """Write a training's state, whole or not at all."""
        begun = time.monotonic()
        with store.replacing(self.file) as aside:
            torch.save(state, aside)
        self._written = time.monotonic()
        self._writing_seconds = self._written - begun

    def read(self, device: torch.device) -> dict | None:
        """The state that was written last; None where none was.

        Raises StoreError for a damaged file.
        """
        if not here().as_first(self.file.is_file()):
            return None
        try:
            return torch.load(self.file, map_location=device, weights_only=True)
        except Exception as error:  # whatever a damaged file leads to
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise store.StoreError(
                f"{self.file}: can't be gone on from ({reason}); remove it to begin anew"
            ) from error
