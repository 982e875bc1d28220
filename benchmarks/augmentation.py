"""Batch augmentation against torchvision's transforms, and training's feed against a DataLoader that reads a slide.

Two questions, each answered by rounds that alternate, so that a busy machine slows both; the ratio of each pair is what counts.
The recipe is the study's default: rotation, flips, colour jitter, blur, each image with its own draw.

1. How much faster is a batch augmented than by torchvision's transforms, one stored image (a tensor) after another? One core.
2. How many augmented patches a second does training get from the store (`training.feed`), against a ``DataLoader`` whose
   dataset reads each annotation's patch with OpenSlide and transforms it with PIL and torchvision, with the best of 0, 1 and 2
   workers? Both on one core, the loader's workers too, and then both on all. Both read a margin, so that no crop has a corner
   without image. The loader's workers and slides stay open from round to round; it rotates by the nearest pixel, torchvision's
   default and faster, and crops before it changes colours. The store is made once for all epochs and trainings, which is left
   out.

    python benchmarks/augmentation.py            # prints two tables; eight minutes on two cores
    python benchmarks/augmentation.py --image scan.tif      # reads from that slide instead of a synthetic one
"""

import argparse
import contextlib
import dataclasses
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import embedding
import extraction
import numpy as np
import openslide
import pandas as pd
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import v2

from mfcore import store
from mfcore.data import augment, patches
from mfcore.study import data as study_data
from mfcore.study.config import Network, Patches
from mfcore.training import feed as train_feed, task as train_task

BATCH_SIZE = 16


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
        batch.append(extraction.seconds(lambda part=part: augment.augment(images, part, input_px)))
        single.append(extraction.seconds(lambda: transform(images)))
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


def recipe(network: Network) -> transforms.Compose:
    """The published transforms of a PIL image, as torchvision has them, with the crop out of the margin; a float32 tensor."""
    jitter = transforms.ColorJitter(*[network.colour_jitter] * 4)
    blur = transforms.GaussianBlur(augment.BLUR_KERNEL_PX, augment.BLUR_SIGMA_PX)
    return transforms.Compose(
        [
            transforms.RandomApply([transforms.RandomRotation(180)], network.rotation_probability),
            transforms.CenterCrop(network.input_px),
            transforms.RandomApply([jitter], network.colour_probability),
            transforms.RandomApply([blur], network.blur_probability),
            transforms.RandomHorizontalFlip(),
            transforms.RandomVerticalFlip(),
            transforms.ToTensor(),
        ]
    )


class Annotations(torch.utils.data.Dataset):
    """A patch an annotation, read by OpenSlide when it is asked for and transformed as a PIL image."""

    def __init__(self, file: Path, corners: np.ndarray, network: Network):
        self.file, self.corners, self.side_px, self.slide = str(file), corners, network.needed_px, None
        self.transform = recipe(network)

    def __len__(self) -> int:
        return len(self.corners)

    def read(self, i: int) -> Image.Image:
        """The patch as it stands on the slide."""
        if self.slide is None:  # each worker opens it for itself
            self.slide = openslide.OpenSlide(self.file)
        x, y = self.corners[i].tolist()
        return self.slide.read_region((x, y), 0, (self.side_px, self.side_px)).convert("RGB")

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.transform(self.read(i))


@contextlib.contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """This process, its threads and the processes that it starts inside, on these cores only."""
    before, n_threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        torch.set_num_threads(n_threads)


def consume(batches: Iterable[torch.Tensor]) -> None:
    """Take every batch, and nothing else."""
    for _ in batches:
        pass


def epoch(network: Network, stored: np.ndarray, number: int) -> Iterator[torch.Tensor]:
    """Every stored patch once, augmented, as training gets it."""
    rows = np.random.default_rng(number).permutation(len(stored))
    drawn = augment.draw(network, len(rows), 0, "benchmark", number)
    parts = train_task.batches(len(rows), BATCH_SIZE)
    return train_feed.batches(stored, rows, drawn, parts, torch.device("cpu"), network.input_px)


def against_loader(slide: Path | None, scratch: Path, input_px: int, n_patches: int, n_rounds: int) -> Iterator[dict]:
    """The second question for one crop: a row for one core, and one for all of them."""
    network = Network(name="benchmark", input_px=input_px)
    side_px = network.needed_px
    sizes = Patches(size_px=input_px, stored_px=side_px)
    study = dataclasses.replace(extraction.study_of("native"), patches=sizes)
    data = embedding.write_data(scratch / "data", slide, n_patches, side_px)
    table, stored = patches.load(study_data.extract(study, data, scratch / "results", os.cpu_count() or 1))
    corners = table[["x_l0_px", "y_l0_px"]].to_numpy().astype(int) - side_px // 2
    annotations = Annotations(data / "images" / "001.tif", corners, network)
    same = all((np.asarray(annotations.read(i)) == stored[i]).all() for i in range(32))
    annotations.slide = None  # not to be shared with the workers
    everything = os.sched_getaffinity(0)
    for cores in sorted({1, len(everything)}):
        with on_cores(set(sorted(everything)[:cores])):
            loaders = {
                n: torch.utils.data.DataLoader(
                    annotations,
                    BATCH_SIZE,
                    shuffle=True,
                    num_workers=n,
                    persistent_workers=n > 0,
                    multiprocessing_context="fork" if n else None,
                )
                for n in embedding.WORKERS
            }
            works: dict[str, Callable[[], object]] = {f"{n}_workers": partial(consume, loaders[n]) for n in loaders}
            numbers = iter(range(n_rounds + 1))
            works["feed"] = lambda numbers=numbers: consume(epoch(network, stored, next(numbers)))
            times = embedding.rounds(works, n_rounds)
            del loaders, works  # ends the workers
        best = min(embedding.WORKERS, key=lambda n: times[f"{n}_workers"].median())
        yield {
            "input_px": input_px,
            "stored_px": side_px,
            "n_cores": cores,
            "n_patches": len(stored),
            "batch_size": BATCH_SIZE,
            "n_rounds": n_rounds,
            "n_workers": best,
            "loader_per_s_and_core": round(len(stored) / cores / float(times[f"{best}_workers"].median()), 1),
            "feed_per_s_and_core": round(len(stored) / cores / float(times["feed"].median()), 1),
            **embedding.ratio("ratio", times[f"{best}_workers"], times["feed"]),
            "px_identical": same,
        }


def main() -> None:
    """Measure both at the demo's, AMi-Br's and the paper's crop, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="alternating rounds of the first question (default 60)")
    parser.add_argument("--loader-rounds", type=int, default=7, help="alternating rounds of the second (default 7)")
    parser.add_argument("--patches", type=int, default=512, help="annotations on the slide (default 512)")
    parser.add_argument("--px", type=int, action="append", help="only this crop for the second question; may be given again")
    parser.add_argument(
        "--image", type=Path, default=embedding.REAL_SLIDE, help="a slide (default: a real one, or drawn tissue)"
    )
    parser.add_argument("--out", type=Path, help="also write the tables to FILE.csv and FILE_loader.csv")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # two workers on one core are asked for
    store.environment()  # asks git once
    slide = arguments.image if arguments.image.is_file() else None
    machine = {"machine": platform.machine(), "torch": torch.__version__}
    torch.manual_seed(0)
    with on_cores(set(sorted(os.sched_getaffinity(0))[:1])):
        first = pd.DataFrame([measure(px, size, arguments.rounds) for px, size in ((64, 16), (64, 32), (224, 16))])
    second = []
    for px in arguments.px or (64, 128, 224):
        with tempfile.TemporaryDirectory() as name:
            for row in against_loader(slide, Path(name), px, arguments.patches, arguments.loader_rounds):
                print(row, flush=True)
                second.append(row)
    tables = {"": first, "_loader": pd.DataFrame(second).assign(slide=slide.name if slide else "drawn")}
    for suffix, table in tables.items():
        table = table.assign(**machine)
        print(table.to_string(index=False), end="\n\n")
        if arguments.out:
            store.write_csv(arguments.out.with_name(f"{arguments.out.stem}{suffix}.csv"), table)


if __name__ == "__main__":
    main()
