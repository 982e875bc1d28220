"""A pretraining small enough for a test: made patches, a ViT of two layers; and slides in a folder."""

import dataclasses
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mfcore import streams as rng
from mfcore.data.synthetic.slides import write_pyramid
from mfcore.pretraining import loop, networks
from mfcore.pretraining.method import METHODS, SMALL, in_full
from mfcore.study import pretrained
from mfcore.study.config import Crops, Data, OnlinePatches, Pretraining, Settings

VIT = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
TINY = Pretraining(
    "own",
    architecture="vit_tiny_patch16_224",
    arguments=VIT,
    patches=OnlinePatches(40, (0.25, 0.5)),
    crops=Crops(32, 16, 2),
    n_steps=6,
    batch_size=4,
    base_lr=0.2,
    n_prototypes=16,
    head_hidden=12,
    head_bottleneck=8,
    n_snapshots=2,
)
DINOV2 = {"method": "dinov2", "base_lr": 0.03}
STUDY = Settings("t", "A test", Data("synthetic"), pretraining=(TINY,))


def settings(**changed: object) -> Pretraining:
    """The small pretraining, changed, with nothing left None; with what `SMALL` would change as published."""
    as_published = {key: METHODS[changed.get("method", TINY.method)].published[key] for key in SMALL}
    return in_full(dataclasses.replace(TINY, **{**as_published, **changed}))


def patches(this: Pretraining, first: int, n: int) -> np.ndarray:
    """Patches ``first`` and so on of a made stream, uint8 (n, size_px, size_px, 3): blotches, other ones in each."""
    side = this.patches.size_px
    coarse = [rng.generator(this.seed, "made", i).integers(0, 256, (side // 8, side // 8, 3)) for i in range(first, first + n)]
    return np.stack(coarse).repeat(8, axis=1).repeat(8, axis=2).astype(np.uint8)


def task(this: Pretraining, pair: networks.Networks, exported: list[int] | None = None) -> loop.Task:
    """What `loop.train` learns from, without a slide."""

    def batches(first: int, n_batches: int) -> Iterator[types.SimpleNamespace]:
        for start in range(first, first + n_batches * this.batch_size, this.batch_size):
            numbers = np.arange(start, start + this.batch_size)
            drawn = pd.DataFrame({"number": numbers, "slide_id": "made", "x_l0_px": 1.0 * numbers})
            yield types.SimpleNamespace(images=patches(this, start, this.batch_size), drawn=drawn)

    card = dataclasses.replace(networks.card(pair, this, STUDY.patches, "made"), resize_px=this.patches.size_px)
    told = [] if exported is None else exported
    return loop.Task(this, batches, patches(this, 10_000, 24), card, told.append, tuple(pretrained.steps_of(this)))


def train(this: Pretraining, folder: Path, **more: object) -> tuple[list[dict], networks.Networks]:
    """Pretrain on the made patches, on the CPU; the history and the networks."""
    pair = networks.build(this)
    folder.mkdir(parents=True, exist_ok=True)
    return loop.train(task(this, pair), pair, folder, torch.device("cpu"), **more), pair


def write_slides(folder: Path, n: int = 2) -> Path:
    """``n`` small slides at 0.25 um/px, dark blotches of tissue throughout."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        draws = np.random.default_rng(i)
        coarse = draws.integers(90, 200, (48, 48, 3)) + np.array([20, -40, 30])
        pixels = coarse.clip(0, 255).astype(np.uint8).repeat(16, axis=0).repeat(16, axis=1)
        write_pyramid(folder / f"s{i}.tiff", pixels, 0.25)
    return folder
