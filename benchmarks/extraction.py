"""Extraction into the store against one `read_region(...).convert("RGB")` after another, side by side in one run.

A slide of 8,192 x 8,192 px (JPEG, tiles of 256 px, a pyramid) carries 1,500 annotations at random places. The baseline reads
their patches with OpenSlide, one after another, and keeps them in memory; `mfcore.data.patches.extract` does all that it does
for a study: labels read, slide checked, patches read, written and synced to disk, checksums made. Rounds alternate, so that a
busy machine slows both; the ratio of each pair is what counts. At the slide's own resolution the patches are compared px by px;
resampled ones (0.226 to 0.25 um/px), which the baseline resizes with Pillow, are not.

    python benchmarks/extraction.py                      # prints a table; a minute
    python benchmarks/extraction.py --image scan.tif     # a slide made from a real image instead of the synthetic one
    python benchmarks/extraction.py --full               # 72,845 annotations on 8 slides into one store: 11 GB for a while
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import tifffile

from mfcore import store
from mfcore.data import patches
from mfcore.data.slides.tiff import TiffReader
from mfcore.data.synthetic import slides as synthetic, tissue as synthetic_tissue
from mfcore.study import data as study_data
from mfcore.study.config import Data, Patches, Settings, Switches

SIDE_PX = 8192
PATCH_PX = 224
N_ANNOTATIONS = 1500
N_FULL, N_FULL_SLIDES = 72_845, 8  # as many annotations as MITOS_WSI_CCMCT has
UM_PER_PX = {"native": 0.25, "resampled": 0.226}


def image_of(file: Path | None) -> np.ndarray:
    """What the slides show, uint8 (n_rows, n_columns, 3): a TIFF's first image, or drawn tissue."""
    if file is not None:
        return tifffile.imread(file, key=0)
    (plan,) = synthetic.plan_slides(1, 1, 100)
    return synthetic_tissue.draw(1, plan, synthetic_tissue.lay_out(1, plan))


def write_data(folder: Path, image: np.ndarray, n_slides: int, n_annotations: int, um_per_px: float) -> Path:
    """Slides that repeat ``image``, mirrored so that it has no seam; annotations at random places, in MIDOG's JSON."""
    (folder / "images").mkdir(parents=True)
    mirrored = np.concatenate([image, image[:, ::-1]], axis=1)
    mirrored = np.concatenate([mirrored, mirrored[::-1]])
    n_down, n_across = (-(-SIDE_PX // side) for side in mirrored.shape[:2])
    pixels = np.tile(mirrored, (n_down, n_across, 1))[:SIDE_PX, :SIDE_PX]
    names = [f"{i + 1:03d}.tif" for i in range(n_slides)]
    synthetic.write_pyramid(folder / "images" / names[0], pixels, um_per_px, n_levels=4)
    for name in names[1:]:
        shutil.copyfile(folder / "images" / names[0], folder / "images" / name)
    rng = np.random.default_rng(0)
    corners = rng.integers(PATCH_PX, SIDE_PX - PATCH_PX, (n_annotations, 2)) - 25
    annotations = [
        {"id": i, "image_id": int(rng.integers(n_slides)), "bbox": [x, y, x + 50, y + 50], "category_id": 1 + i % 2}
        for i, (x, y) in enumerate(corners.tolist())
    ]
    images = [
        {"id": i, "file_name": name, "width": SIDE_PX, "height": SIDE_PX, "tumor_type": "made"} for i, name in enumerate(names)
    ]
    (folder / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder


def study_of(resolution: str) -> Settings:
    """The study whose patches are extracted."""
    switches = Switches(resolution="native" if resolution == "native" else "target")
    data, size = Data(source="midog"), Patches(size_px=PATCH_PX)
    return Settings(name=resolution, title="benchmark", data=data, patches=size, switches=switches)


def one_by_one(folder: Path, resolution: str) -> np.ndarray:
    """The baseline, uint8 (n_annotations, PATCH_PX, PATCH_PX, 3)."""
    content = json.loads((folder / "annotations.json").read_text())
    out = np.empty((len(content["annotations"]), PATCH_PX, PATCH_PX, 3), np.uint8)
    side = round(PATCH_PX * 0.25 / UM_PER_PX[resolution])
    with openslide.OpenSlide(folder / "images" / content["images"][0]["file_name"]) as slide:
        for i, annotation in enumerate(content["annotations"]):
            x, y = (corner + 25 - side // 2 for corner in annotation["bbox"][:2])
            patch = slide.read_region((x, y), 0, (side, side)).convert("RGB")
            out[i] = np.asarray(patch if side == PATCH_PX else patch.resize((PATCH_PX, PATCH_PX)))
    return out


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def count_tiles(folder: Path, results: Path, resolution: str) -> tuple[int, int]:
    """How many tiles an extraction decodes, and how many different ones; without the one tried on opening the slide."""
    decode, keys = TiffReader.decode, []
    TiffReader.decode = lambda reader, key: keys.append(key) or decode(reader, key)
    try:
        study_data.extract(study_of(resolution), folder, results, n_workers=os.cpu_count() or 1)
    finally:
        TiffReader.decode = decode
    n_opened = 2  # once to look at, once to read
    return len(keys) - n_opened, len(set(keys))


def measure(folder: Path, scratch: Path, resolution: str, n_rounds: int) -> Iterator[dict]:
    """For one thread and for as many as cores: patches a second of both, quartiles of the ratio over alternating rounds."""
    workers = sorted({1, os.cpu_count() or 1})
    base: list[float] = []
    own: dict[int, list[float]] = {n: [] for n in workers}
    expected = one_by_one(folder, resolution)
    n_decoded, n_needed = count_tiles(folder, scratch / "counted", resolution)
    array = patches.load(study_data.find_patches(study_of(resolution), scratch / "counted"))[1]
    same = bool((array == expected).all()) if resolution == "native" else None
    del array, expected
    for i in range(n_rounds + 1):
        base.append(seconds(partial(one_by_one, folder, resolution)))
        for n in workers:
            results = scratch / f"{n}-{i}"
            own[n].append(seconds(partial(study_data.extract, study_of(resolution), folder, results, n)))
            shutil.rmtree(results)
    shutil.rmtree(scratch)
    for n, times in own.items():
        low, ratio, high = np.quantile(np.array(base[1:]) / np.array(times[1:]), (0.25, 0.5, 0.75))  # the first warms up
        yield {
            "resolution": resolution,
            "n_threads": n,
            "patches_per_s": round(N_ANNOTATIONS / float(np.median(times[1:]))),
            "one_by_one_per_s": round(N_ANNOTATIONS / float(np.median(base[1:]))),
            "ratio": round(float(ratio), 1),
            "ratio_q25": round(float(low), 1),
            "ratio_q75": round(float(high), 1),
            "px_identical": same,
            "n_tiles_decoded": n_decoded,
            "n_tiles_needed": n_needed,
            "peak_mb": peak_mb(folder, resolution, n),
        }


ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
import extraction
extraction.patches.extract(extraction.study_of(sys.argv[3]), sys.argv[2], sys.argv[4], int(sys.argv[5]))
run = extraction.patches.find(extraction.study_of(sys.argv[3]), sys.argv[4])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_mb(folder: Path, resolution: str, n_workers: int, results: Path | None = None) -> int:
    """Peak resident memory in MB of a process that only extracts; its threads are all there is, it starts no others."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        place = str(results or scratch)
        command = [sys.executable, "-c", ALONE, str(Path(__file__).parent), str(folder), resolution, place, str(n_workers)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return round(int(done.stdout.split()[1]) / 1024)


def full(folder: Path, image: np.ndarray) -> dict:
    """All of `N_FULL` into one store, in a process of its own, which is killed once on the way and gone on with."""
    data, results, n = write_data(folder / "full", image, N_FULL_SLIDES, N_FULL, 0.25), folder / "store", os.cpu_count() or 1
    begun = time.perf_counter()
    command = [sys.executable, "-c", ALONE, str(Path(__file__).parent), str(data), "native", str(results), str(n)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    timer = threading.Timer(15, process.kill)
    timer.start()
    process.wait()
    timer.cancel()
    n_recorded = sum(int(np.fromfile(file, np.uint8)[1:].sum()) for file in results.glob("*/progress.bin"))
    first = time.perf_counter() - begun
    peak = peak_mb(data, "native", n, results)
    taken = time.perf_counter() - begun
    run = study_data.find_patches(study_of("native"), results).verify()
    table, array = patches.load(run)
    rows = np.random.default_rng(1).choice(N_FULL, 300, replace=False)
    slides = {file: openslide.OpenSlide(data / file) for file in table["file"].unique()}
    same = all(
        (
            np.asarray(slides[row.file].read_region(corner_of(row), 0, (PATCH_PX,) * 2).convert("RGB")) == array[row.patch_id]
        ).all()
        for row in table.loc[rows].itertuples()
    )
    return {
        "n_patches": len(array),
        "store_gb": round(array.nbytes / 1e9, 1),
        "seconds": round(taken),
        "patches_per_s": round(N_FULL / taken),
        "killed_after_s": round(first),
        "n_patches_kept": n_recorded,
        "peak_mb": peak,
        "px_identical_of_300": same,
    }


def corner_of(row: object) -> tuple[int, int]:
    """A patch's upper left corner, whole level-0 px."""
    return int(row.x_l0_px) - PATCH_PX // 2, int(row.y_l0_px) - PATCH_PX // 2


def main() -> None:
    """Measure at the slide's own resolution and resampled, or once at full size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="alternating rounds (default 7)")
    parser.add_argument("--image", type=Path, help="a TIFF whose first image the slides show (default: drawn tissue)")
    parser.add_argument("--folder", type=Path, help="where slides and stores go for a while (default: the system's)")
    parser.add_argument("--full", action="store_true", help="72,845 annotations into one store, killed once on the way")
    parser.add_argument("--out", type=Path, help="also write the table to this CSV file")
    arguments = parser.parse_args()
    image = image_of(arguments.image)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        if arguments.full:
            rows = [full(folder, image)]
        else:
            store.environment()  # asks git once
            data = {r: write_data(folder / r, image, 1, N_ANNOTATIONS, um) for r, um in UM_PER_PX.items()}
            rows = [row for r in data for row in measure(data[r], folder / "stores", r, arguments.rounds)]
    table = pd.DataFrame(rows).assign(machine=platform.machine(), n_cores=os.cpu_count())
    print(table.T.to_string(header=False) if arguments.full else table.to_string(index=False))
    if arguments.out:
        store.write_csv(arguments.out, table)


if __name__ == "__main__":
    main()
