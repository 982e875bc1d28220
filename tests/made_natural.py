"""Miniatures of CIFAR in the layout that torchvision reads, with few images and all classes."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from mfcore.tasks import registry


def cifar(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, n: int = 1) -> dict[str, np.ndarray]:
    """Write ``n`` images a class and file, and let torchvision know the files' MD5; returns images by split."""
    reader, task = getattr(datasets, name), registry.get(name.lower())
    (folder / reader.base_folder).mkdir(parents=True)
    key, rng, images = "labels" if name == "CIFAR10" else "fine_labels", np.random.default_rng(0), {}

    def write(file: str, content: dict) -> str:
        data = pickle.dumps(content)
        (folder / reader.base_folder / file).write_bytes(data)
        return hashlib.md5(data, usedforsecurity=False).hexdigest()

    for split, files in (("train", reader.train_list), ("test", reader.test_list)):
        written = []
        for file, _ in files:
            labels = rng.permutation(np.repeat(np.arange(len(task.classes)), n))
            pixels = rng.integers(0, 256, (len(labels), 3, 32, 32), np.uint8)
            pixels[:, 0] = labels[:, None, None]  # red says the class
            images.setdefault(split, []).append(pixels.transpose(0, 2, 3, 1))
            written.append([file, write(file, {"data": pixels.reshape(len(labels), -1), key: labels.tolist()})])
        monkeypatch.setattr(reader, f"{split}_list", written)
    meta = reader.meta | {"md5": write(reader.meta["filename"], {reader.meta["key"]: list(task.classes)})}
    monkeypatch.setattr(reader, "meta", meta)
    return {split: np.concatenate(parts) for split, parts in images.items()}
