"""Batch augmentation against torchvision's transforms one image at a time, side by side in one run on one core.

Both cut a crop from stored patches with the study's default recipe: rotation, flips, colour jitter, blur, each image with
its own draw. Rounds alternate, so that a busy machine slows both; the ratio of each pair is what counts.

    python benchmarks/augmentation.py            # prints a table
    python benchmarks/augmentation.py --out benchmarks/augmentation.csv
"""

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torchvision.transforms import v2

from mfcore import augment, store
from mfcore.config import Network


def one_by_one(network: Network) -> Callable[[torch.Tensor], torch.Tensor]:
    """Torchvision's transforms for ``network``, applied image by image and stacked."""
    jitter = network.colour_jitter
    transform = v2.Compose(
        [
            v2.RandomApply([v2.RandomRotation(180, v2.InterpolationMode.BILINEAR)], network.rotation_probability),
            v2.CenterCrop(network.input_px),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandomApply([v2.ColorJitter(jitter, jitter, jitter, jitter)], network.colour_probability),
            v2.RandomApply([v2.GaussianBlur(augment.BLUR_KERNEL_PX, augment.BLUR_SIGMA_PX)], network.blur_probability),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    return lambda images: torch.stack([transform(image) for image in images])


def seconds(work: Callable[[], torch.Tensor]) -> float:
    """Wall-clock seconds of one call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def measure(input_px: int, batch_size: int, n_rounds: int) -> dict:
    """Milliseconds per image of both, and quartiles of the ratio, over alternating rounds."""
    network = Network(name="benchmark", input_px=input_px)
    stored = np.random.default_rng(0).integers(0, 256, (batch_size, network.needed_px, network.needed_px, 3), dtype=np.uint8)
    images = torch.from_numpy(stored).permute(0, 3, 1, 2)  # (B, 3, stored_px, stored_px)
    drawn = augment.draw(network, batch_size * (n_rounds + 1), 0, "benchmark")
    transform = one_by_one(network)
    batch, single = [], []
    for i in range(n_rounds + 1):
        part = drawn[i * batch_size : (i + 1) * batch_size]
        batch.append(seconds(lambda part=part: augment.augment(images, part, input_px)))
        single.append(seconds(lambda: transform(images)))
    batch_ms, single_ms = (1e3 * np.array(times[1:]) / batch_size for times in (batch, single))  # the first round warms up
    low, ratio, high = np.quantile(single_ms / batch_ms, (0.25, 0.5, 0.75))
    return {
        "input_px": input_px,
        "batch_size": batch_size,
        "batch_ms_per_image": round(float(np.median(batch_ms)), 3),
        "one_by_one_ms_per_image": round(float(np.median(single_ms)), 3),
        "ratio": round(float(ratio), 1),
        "ratio_q25": round(float(low), 1),
        "ratio_q75": round(float(high), 1),
    }


def main() -> None:
    """Measure at the demo's and at the paper's crop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="alternating rounds at each setting (default 60)")
    parser.add_argument("--out", type=Path, help="also write the table to this CSV file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    table = pd.DataFrame([measure(px, size, arguments.rounds) for px, size in ((64, 16), (64, 32), (224, 16))])
    table = table.assign(machine=platform.machine(), torch=torch.__version__)
    print(table.to_string(index=False))
    if arguments.out:
        store.write_csv(arguments.out, table)


if __name__ == "__main__":
    main()
