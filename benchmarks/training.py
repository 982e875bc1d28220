"""A training step through mfcore as a share of the bare step, side by side in one run.

The bare step is forward, backward and Adam of the same network, in the same precision, on one batch that is resident on the
device and normalised already. mfcore's is what `training.loop.train_network` does from the beginning of an epoch to the end of
its last step: the epoch drawn, patches read from a memory map, moved, augmented with the published recipe and normalised, the
step, the schedule. Rounds alternate, an epoch of a few steps and then as many bare ones, so that a busy machine slows both;
the share of each pair is what counts. Speed doesn't depend on the weights, which are drawn at random.

    python benchmarks/training.py                                 # prints a table; eight minutes on two cores
    python benchmarks/training.py --network efficientnet_lite0    # only one network; half a minute
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional
from tqdm.auto import tqdm

from mfcore import encoders, store
from mfcore.study.config import Network
from mfcore.training import adapt, loop as train_loop, processes, task as train_task

# Network, side of its input in px, steps a round.
NETWORKS = {
    "cpu": [("resnet50", 224, 4), ("random:vit_small_patch16_224", 224, 2), ("efficientnet_lite0", 64, 20)],
    "cuda": [("resnet50", 224, 50), ("random:vit_small_patch16_224", 224, 50), ("efficientnet_lite0", 64, 50)],
}
BATCH_SIZE = 16
N_PATCHES = 256  # in the memory map


class StepClock(tqdm):
    """A progress bar that isn't shown, and notes when the last step of an epoch was done."""

    def __init__(self, n_per_epoch: int, device: torch.device):
        super().__init__(disable=True)
        self.n_per_epoch, self.device, self.n_seen, self.ended = n_per_epoch, device, 0, 0.0

    def update(self, n: float | None = 1) -> None:
        """Called after each step with its number of patches."""
        self.n_seen += n or 0
        if self.n_seen % self.n_per_epoch == 0:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.ended = time.perf_counter()


def task_of(network: Network, folder: Path) -> train_task.Task:
    """A training on patches of noise in a memory map, two of them for validation and two for the test."""
    side = network.needed_px
    np.save(folder / "patches.npy", np.random.default_rng(0).integers(0, 256, (N_PATCHES, side, side, 3), dtype=np.uint8))
    rows = np.arange(N_PATCHES)
    return train_task.Task(
        unit="benchmark",
        network=network,
        seed=0,
        patches=np.load(folder / "patches.npy", mmap_mode="r"),
        labels=rows % 2,
        slide_ids=np.array([f"slide{row // 2 % 8}" for row in rows]),
        roles={"train": rows[:-4], "val": rows[-4:-2], "test": rows[-2:]},
        places=train_task.Places(*[np.zeros((N_PATCHES, 2))] * 2, np.ones(N_PATCHES)),
    )


def bare_steps(network: Network, device: torch.device, n_steps: int) -> Callable[[], None]:
    """``n_steps`` steps on one resident batch, to be called again and again."""
    model = adapt.build_network(network.architecture, None, 1, False, 0, network.input_px)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=network.max_lr, fused=True)
    images = torch.randn(network.batch_size, 3, network.input_px, network.input_px, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    truth = (torch.arange(network.batch_size, device=device) % 2).float()
    mixed = encoders.computes_bfloat16(device)

    def work() -> None:
        for _ in range(n_steps):
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
                logits = model(images)[:, 0].float()
            loss = functional.binary_cross_entropy_with_logits(logits, truth)
            loss.backward()
            optimizer.step()
        loss.item()  # waits for the device

    return work


def measure(architecture: str, input_px: int, n_steps: int, device: torch.device, n_rounds: int) -> dict:
    """Patches a second of both and quartiles of the share, over alternating rounds; the first round warms up."""
    network = Network(
        name="benchmark",
        architecture=architecture,
        input_px=input_px,
        batch_size=BATCH_SIZE,
        patches_per_epoch=BATCH_SIZE * n_steps,
        n_epochs=n_rounds + 1,
        pretrained=False,
    )
    clock, bare_work = StepClock(BATCH_SIZE * n_steps, device), bare_steps(network, device, n_steps)
    own, bare, begun = [], [], time.perf_counter()

    def after_epoch() -> None:
        nonlocal begun
        own.append(clock.ended - begun)
        bare_begun = time.perf_counter()
        bare_work()
        bare.append(time.perf_counter() - bare_begun)
        begun = time.perf_counter()

    with tempfile.TemporaryDirectory() as name:
        task = task_of(network, Path(name))
        model = adapt.build_network(architecture, None, 1, False, 0, input_px)
        processes.CHECKPOINT_SECONDS = float("inf")
        begun = time.perf_counter()
        train_loop.train_network(task, model, Path(name) / "run", str(device), clock, after_epoch)
    own_s, bare_s = np.array(own[1:]), np.array(bare[1:])
    low, share, high = np.quantile(bare_s / own_s, (0.25, 0.5, 0.75))
    return {
        "network": architecture,
        "input_px": input_px,
        "batch_size": BATCH_SIZE,
        "device": str(device),
        "precision": "bfloat16" if encoders.computes_bfloat16(device) else "float32",
        "n_rounds": n_rounds,
        "steps_a_round": n_steps,
        "bare_ms_per_step": round(1e3 * float(np.median(bare_s)) / n_steps, 2),
        "mfcore_ms_per_step": round(1e3 * float(np.median(own_s)) / n_steps, 2),
        "share": round(float(share), 3),
        "share_q25": round(float(low), 3),
        "share_q75": round(float(high), 3),
    }


def main() -> None:
    """Measure the three networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11, help="alternating rounds (default 11)")
    parser.add_argument("--network", action="append", help="only this one of them; may be given again")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: a GPU if there is one"
    )
    parser.add_argument("--out", type=Path, help="also write the table to this CSV file")
    arguments = parser.parse_args()
    device, rows = torch.device(arguments.device), []
    for architecture, input_px, n_steps in NETWORKS[device.type]:
        if arguments.network is None or architecture in arguments.network:
            rows.append(measure(architecture, input_px, n_steps, device, arguments.rounds))
            print(pd.DataFrame(rows[-1:]).to_string(index=False), flush=True)
    table = pd.DataFrame(rows).assign(machine=platform.machine(), n_cores=os.cpu_count(), torch=torch.__version__)
    print(table.to_string(index=False))
    if arguments.out:
        store.write_csv(arguments.out, table)


if __name__ == "__main__":
    main()
