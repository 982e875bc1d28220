"""A training small enough for a test: made patches, a network of four layers; and a study whose patches and splits are made."""

import dataclasses
import json
import types
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mfcore import store
from mfcore.study import data as study_data
from mfcore.study.config import Network, Settings
from mfcore.training.task import Places, Task

CARD = types.SimpleNamespace(name="tiny", mean=(0.5, 0.4, 0.6), std=(0.2, 0.25, 0.3), identity=lambda: {"name": "tiny"})
NETWORK = Network(
    name="tiny", architecture="tiny", input_px=12, n_epochs=4, patches_per_epoch=33, batch_size=8, max_lr=0.02, shift_px=1
)
UNIT = "all-fold0-size1"
N_PATCHES, N_SLIDES = 120, 8


def network(**changed: object) -> Network:
    return dataclasses.replace(NETWORK, **changed)


def tiny(seed: int = 0, norm: bool = True, dropout: float = 0.3) -> torch.nn.Module:
    """A network with what makes resuming hard, unless told otherwise: batch norm's running means, and dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, stride=2),
            torch.nn.BatchNorm2d(8) if norm else torch.nn.Identity(),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
            torch.nn.Dropout(dropout),
            torch.nn.Linear(8, 1),
        )
    model.card = CARD
    return model


def made(seed: int = 1) -> tuple[np.ndarray, pd.DataFrame]:
    """Patches that are noise, a bit darker in class 1, and their label table; a slide's annotations lie 20 px apart."""
    draws = np.random.default_rng(seed)
    label = draws.integers(0, 2, N_PATCHES)
    slide = draws.integers(0, N_SLIDES, N_PATCHES)
    stored = draws.integers(40, 220, (N_PATCHES, NETWORK.needed_px, NETWORK.needed_px, 3)) - 12 * label[:, None, None, None]
    table = pd.DataFrame(
        {
            "patch_id": np.arange(N_PATCHES),
            "slide_id": [f"s{i}" for i in slide],
            "label": label.astype(np.int8),
            "x_l0_px": 100.0 + 20 * np.arange(N_PATCHES),
            "y_l0_px": 100.0,
            "um_per_px": 0.25,
        }
    )
    return stored.astype(np.uint8), table.assign(domain=np.where(slide % 2 == 0, "even", "odd"))


def task(**changed: object) -> Task:
    """Training on the made patches: 60 train, 30 validate, 30 test."""
    stored, table = made()
    centres = table[["x_l0_px", "y_l0_px"]].to_numpy()
    given = {
        "unit": UNIT,
        "network": NETWORK,
        "seed": 42,
        "patches": stored,
        "labels": table["label"].to_numpy(),
        "slide_ids": table["slide_id"].to_numpy(),
        "roles": {"train": np.arange(60), "val": np.arange(60, 90), "test": np.arange(90, N_PATCHES)},
        "places": Places(centres, centres, np.ones(N_PATCHES)),
    }
    return Task(**{**given, **changed})


def worsening(**changed: object) -> Task:
    """Training patches with wrong labels: validation gets worse with every epoch, so that best and last differ."""
    labels = task().labels.copy()
    labels[:60] = 1 - labels[:60]
    return task(**{"labels": labels, "network": network(max_lr=0.05), **changed})


def history_of(folder: Path, unit: str = UNIT) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{unit}.jsonl").read_text().splitlines()]


def weights_of(folder: Path, unit: str = UNIT) -> dict[str, torch.Tensor]:
    import safetensors.torch

    return safetensors.torch.load_file(folder / f"{unit}.safetensors")


def same(one: Path, other: Path) -> bool:
    """Whether two trainings left the same weights and history, to the last bit."""
    left, right = weights_of(one), weights_of(other)
    histories = ([{**line, "seconds": 0} for line in history_of(folder)] for folder in (one, other))
    return all(torch.equal(left[name], right[name]) for name in left | right) and next(histories) == next(histories)


def store_study(study: Settings, results: Path, stored: np.ndarray, table: pd.DataFrame) -> None:
    """Leave patches and two folds of splits as notebook 01 leaves them; "odd" trains by itself."""
    run = store.open_run(results, "patches", study.name, study_data.patches_config(study), {})
    np.save(run.path("patches.npy"), stored)
    store.write_parquet(run.path("labels.parquet"), table)
    run.finish(["patches.npy", "labels.parquet"])
    rows = []
    for fold in (0, 1):
        order = np.random.default_rng(fold).permutation(N_PATCHES)
        odd = table["domain"].to_numpy()[order] == "odd"
        roles = {
            ("all", 0.5): (order[:30], order[60:90], order[90:]),
            ("all", 1.0): (order[:60], order[60:90], order[90:]),
            ("odd", 1.0): (
                order[:60][odd[:60]],
                order[60:90][odd[60:90]],
                np.concatenate([order[90:], order[:60][~odd[:60]]]),
            ),
        }
        for (domain, size), parts in roles.items():
            for role, ids in zip(("train", "val", "test"), parts, strict=True):
                given = {"patch_id": np.sort(ids), "train_domain": domain, "fold": fold, "size": size, "role": role}
                rows.append(pd.DataFrame(given))
    run = store.open_run(results, "splits", study.switches.scheme, study_data.splits_config(study), {"patches": run.key})
    store.write_parquet(run.path("splits.parquet"), pd.concat(rows, ignore_index=True))
    run.finish(["splits.parquet"])
