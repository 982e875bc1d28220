"""Stand-ins for notebooks and supplement: the same runs and files by plain calls, without kernels and networks.

``run`` starts a sweep whose jobs import this; Snakemake, the Snakefile and `mfcore.sweep` are the real ones.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CUSTOMISED = """
import sys
if "mfcore.sweep" in sys.orig_argv and "job" in sys.orig_argv:
    import made_sweep
    made_sweep.stand_in()
"""


def stand_in() -> None:
    """Put the stand-ins in place of papermill and of the supplement's builder."""
    import types

    from mfcore.sweep import run as sweep_run

    sweep_run.execute = execute
    import mfcore.sweep.book

    sys.modules["mfcore.sweep.book.book"] = mfcore.sweep.book.book = types.SimpleNamespace(build=build)


def execute(source: Path, target: Path, parameters: dict, n_threads: int = 1, of_what: str = "", log: object = None) -> None:
    """Do what the notebook does, as far as a test needs it."""
    import h5py

    from mfcore import store
    from mfcore.data import patches
    from mfcore.study import (
        arms as study_arms,
        data as study_data,
        encoders as study_encoders,
        predictions as study_predictions,
    )
    from mfcore.study.config import load_study

    study = load_study(parameters["study_file"])
    folder = Path(parameters["results"]) / study.name
    if source.stem == "01_extract_patches":
        study_data.extract(study, parameters["data_folder"], folder)
        study_data.write_splits(study, folder)
    elif source.stem == "02_embed":
        labels, images = patches.load(study_data.find_patches(study, folder))
        inputs, config = {"patches": study_data.find_patches(study, folder).key}, {"size_px": study.patches.size_px}
        run = store.open_run(folder, "embeddings", parameters["encoder"], config, inputs, {**config, **inputs})
        if not run.done:
            with store.replacing(run.path("embeddings.h5")) as aside, h5py.File(aside, "w") as out:
                out["features"] = images.reshape(len(images), -1)[:, ::97].astype("float32")
                out["patch_id"] = labels["patch_id"].to_numpy()
            run.finish(["embeddings.h5"])
    elif source.stem == "03_linear_probe":
        study_arms.fit_probe(study, study_encoders.find_embeddings(study, parameters["encoder"], folder), folder)
    elif source.stem == "05_data_scaling":
        store.write_csv(
            folder / "figures" / "05_data_scaling.csv",
            study_predictions.scores(study_predictions.collect(study, folder).predictions),
        )
    target.parent.mkdir(exist_ok=True)
    target.write_text("executed")


def build(study: object, results: Path, jobs: dict) -> None:
    """A page with the AUROC of the study's probe."""
    from mfcore.study import predictions as study_predictions

    scores = study_predictions.scores(study_predictions.collect(study, results).predictions)
    (results / "supplement").mkdir(exist_ok=True)
    (results / "supplement" / "index.html").write_text(f"{scores['auroc'].iloc[0]:.6f}")


def run(study: Path, data: Path, results: Path, *options: str) -> subprocess.CompletedProcess:
    """A whole sweep."""
    hook = results.parent / "hook"
    hook.mkdir(exist_ok=True)
    (hook / "sitecustomize.py").write_text(CUSTOMISED)
    paths = [str(hook), str(HERE), str(HERE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mfcore.sweep", "paper", "--study", str(study), "--data", str(data)]
    command += ["--results", str(results), "--cores", "2", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def write_data(folder: Path, n_slides: int = 10, n_annotations: int = 80) -> Path:
    """Slides of noise, and MIDOG's JSON of annotations on them."""
    import numpy as np
    import tifffile

    (folder / "images").mkdir(parents=True)
    rng, images = np.random.default_rng(0), []
    for i in range(n_slides):
        pixels = rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)
        said = {"resolution": (4e4,) * 2, "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(folder / "images" / f"{i}.tiff", pixels, tile=(32, 32), photometric="rgb", **said)
        images.append({"id": i, "file_name": f"{i}.tiff", "width": 80, "height": 80, "tumor_type": "ab"[i % 2], "scanner": "A"})
    places = rng.integers(20, 60, (n_annotations, 2)).tolist()
    annotations = [
        {"id": i, "image_id": i % n_slides, "bbox": [x - 25, y - 25, x + 25, y + 25], "category_id": 1 + i // n_slides % 2}
        for i, (x, y) in enumerate(places)
    ]
    (folder / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder
