"""A study small enough for a test, finished: slides of noise, a probe, a network and a LoRA network of one tiny transformer."""

from pathlib import Path

from made_sweep import write_data

import mfcore
from mfcore.study import arms, data, encoders

FILE = """
name: little
title: "A study small for testing"
data: {source: midog}
patches: {size_px: 32, um_per_px: 0.25, stored_px: 48}
splits: {n_folds: 2, sizes: [0.5, 1.0], by_domain: false}
probe: {cost: 1000}
encoders:
  - {name: tiny, weights: random, architecture: vit_tiny_patch16_224, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5],
     resize_px: 32, crop_px: 32, arguments: {img_size: 32, embed_dim: 24, num_heads: 3, depth: 1}}
networks:
  - {name: net, architecture: tiny, pretrained: false, input_px: 32, n_epochs: 1, patches_per_epoch: 16, batch_size: 8,
     max_lr: 0.01, shift_px: 0, sizes: [1.0]}
  - {name: lora, architecture: tiny, lora: {rank: 2}, input_px: 32, n_epochs: 1, patches_per_epoch: 16, batch_size: 8,
     max_lr: 0.01, shift_px: 0, sizes: [1.0]}
"""


def finish(folder: Path) -> Path:
    """Make the study ``little`` in a folder, with its slides in data/ and its runs in results/; returns the folder."""
    (folder / "little.yaml").write_text(FILE)
    write_data(folder / "data")
    study = opened(folder)
    data.extract(study.settings, folder / "data", study.folder)
    data.write_splits(study.settings, study.folder)
    arms.fit_probe(study.settings, encoders.embed(study.settings, "tiny", study.folder), study.folder)
    for name in ("net", "lora"):
        for fold in range(2):
            arms.train(study.settings, name, fold, study.folder)
    return folder


def opened(folder: Path):
    """The study ``little`` of a folder."""
    return mfcore.open_study(folder / "little.yaml", folder / "results")
