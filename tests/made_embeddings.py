"""A small study whose embeddings are made, in a store as notebooks 01 and 02 leave one."""

import importlib.util
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pandas as pd

from mfcore import store
from mfcore.study import data as study_data
from mfcore.study.config import Data, Settings, Splits

STUDY = Settings(
    "made",
    "Made embeddings",
    Data("synthetic"),
    splits=Splits(n_folds=3, sizes=(0.2, 1.0), by_domain=False),
    encoders=("made",),
)


def benchmark(name: str) -> ModuleType:
    """A script of benchmarks/ as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", Path(__file__).parents[1] / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(results: Path, features: np.ndarray, labels: np.ndarray, study: Settings = STUDY) -> store.Run:
    """Patches without pixels, splits by slide (40 slides), and the finished embeddings of the encoder "made"."""
    n = len(features)
    table = pd.DataFrame({"patch_id": 100 + np.arange(n), "label": labels, "domain": "d", "um_per_px": 0.25})
    table["slide_id"] = [f"s{i % 40:02d}" for i in range(n)]
    table["case_id"] = table["slide_id"]
    run = store.open_run(results, "patches", study.name, study_data.patches_config(study), {})
    store.write_parquet(run.path("labels.parquet"), table)
    np.save(run.path("patches.npy"), np.zeros((n, 1, 1, 3), np.uint8))
    run.finish(["labels.parquet", "patches.npy"])
    study_data.write_splits(study, results)
    embeddings = store.open_run(results, "embeddings", "made", {}, {"patches": run.key})
    with h5py.File(embeddings.path("embeddings.h5"), "w") as out:
        out["features"], out["patch_id"] = features, table["patch_id"].to_numpy()
    return embeddings.finish(["embeddings.h5"])
