"""Downstream tasks made in memory, small enough for tests, in place of those that lie in files."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_encoders import some_patches

from mfcore.study.config import Data, Settings, TaskOptions
from mfcore.tasks import registry
from mfcore.tasks.task import TaskData

SPLITS = ("train", "train", "train", "val", "test", "test")


@dataclass
class MadeTask(TaskData):
    """A task whose pixels and masks are arrays, row for row with its table."""

    pixels: list[np.ndarray] = field(default_factory=list)
    masks: list[np.ndarray] = field(default_factory=list)

    def image(self, i: int) -> np.ndarray:
        return self.pixels[i]

    def mask(self, i: int) -> np.ndarray:
        return self.masks[i]

    def fingerprints(self, known: object) -> dict[str, str]:
        return {"all.npy": hashlib.sha256(b"".join(part.tobytes() for part in [*self.pixels, *self.masks])).hexdigest()}


def table(labels: np.ndarray, splits: list[str], side_px: int) -> pd.DataFrame:
    n = len(labels)
    found = pd.DataFrame({"item_id": [f"item{i:03d}" for i in range(n)], "split": splits, "label": labels})
    found["group"] = [f"slide{i // 4}" for i in range(n)]
    return found.assign(file="all.npy", x_px=0, y_px=0, width_px=side_px, height_px=side_px)


def tissue(n: int = 72, n_classes: int = 3, side_px: int = 40, seed: int = 0, name: str = "synthetic_tissue") -> MadeTask:
    """Patches of smooth noise, each class a little brighter than the one before."""
    labels = np.arange(n) // len(SPLITS) % n_classes
    pixels = some_patches(n, side_px, seed).astype(int) // 2 + 40 * labels[:, None, None, None]
    splits = [SPLITS[i % len(SPLITS)] for i in range(n)]
    classes = tuple(f"class {i}" for i in range(n_classes))
    images = list(pixels.clip(0, 255).astype(np.uint8))
    return MadeTask(replace(registry.get(name), classes=classes), table(labels, splits, side_px), Path(), pixels=images)


def nuclei(n: int = 24, side_px: int = 32, seed: int = 0) -> MadeTask:
    """Noise with dark squares (class 1) and red ones (class 2)."""
    rng = np.random.default_rng(seed)
    images, masks = list(some_patches(n, side_px, seed) // 4 + 150), []
    for image in images:
        mask = np.zeros((side_px, side_px), np.uint8)
        for index, colour in ((1, (20, 20, 40)), (2, (250, 30, 30))):
            y, x = rng.integers(0, side_px - 12, 2)
            image[y : y + 12, x : x + 12], mask[y : y + 12, x : x + 12] = colour, index
        masks.append(mask)
    splits = [SPLITS[i % len(SPLITS)] for i in range(n)]
    classes = ("background", "dark", "red")
    found = table(np.full(n, -1), splits, side_px)
    task = replace(registry.get("synthetic_nuclei"), classes=classes)
    return MadeTask(task, found, Path(), pixels=images, masks=masks)


def study(*which: TaskOptions, encoders: tuple[str, ...] = ("tiny",), **more) -> Settings:
    """A synthetic study that judges by some tasks."""
    return Settings("t", "A test", Data("synthetic"), encoders=encoders, tasks=which, **more)


def use(monkeypatch: pytest.MonkeyPatch, *made: MadeTask) -> None:
    """Let `registry` give these for the length of a test."""
    by_name = {data.task.name: data for data in made}
    monkeypatch.setattr(registry, "load", lambda name, data_folder: by_name[name])
