"""Synthetic downstream tasks, drawn by mfcore from a seed: small, with known labels and true masks.

folder/images/0000.png ...   patches of SIDE_PX px at 0.5 um/px
folder/masks/0000.png ...    classes of the pixels, the nuclei task only
folder/items.csv             a row a patch; made.json: what it was made from, written last
"""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from mfcore import store, streams
from mfcore.data.synthetic import fields
from mfcore.tasks.task import CLASSIFICATION, COLUMNS, SEGMENTATION, Task, TaskData, TaskError, read_image

VERSION = 1
"""Raised whenever the same seed would give other pixels or labels."""
SEED = 2024
SIDE_PX = 96
PER_FIELD = 2  # a field is cut into so many patches along each side
SHARES = (0.6, 0.2)  # of the slides: train, val; the rest is test
REMEDY = "registry.prepare makes them anew"


def make(task: Task, folder: Path, n_slides: int, *, seed: int = SEED) -> Path:
    """Draw the synthetic task in ``folder``, unless it is there as asked; returns the folder.

    "synthetic_tissue": of each slide as many patches of each tissue; "synthetic_nuclei": of each slide one field of mixed
    tissue. Splits are by slide. The same seed and number give the same patches. What was made otherwise is made anew;
    raises TaskError for a folder that holds anything else.
    """
    folder = Path(folder)
    if n_slides < 3:
        raise TaskError(f"{task.name}: n_slides is {n_slides}; train, val and test need 3 or more")
    config = {"task": task.name, "seed": seed, "n_slides": n_slides, "side_px": SIDE_PX, "generator": VERSION}
    begun, made = folder / "begun.json", folder / "made.json"
    if made.is_file() and store.read_json(made) == config and not _missing(task, folder):
        return folder
    if folder.is_dir() and any(folder.iterdir()):
        if not begun.is_file():
            raise TaskError(f"{folder}: isn't empty and holds no synthetic task (no begun.json); give another folder")
        made.unlink(missing_ok=True)
        for part in ("images", "masks"):
            shutil.rmtree(folder / part, ignore_errors=True)
    store.write_json(begun, config)
    rows = []
    for slide in tqdm(range(n_slides), desc=f"{task.name}: synthetic slides", unit="slide"):
        for label, image, mask in _patches(task, seed, slide):
            number = f"{len(rows):04d}.png"
            _write_png(folder / "images" / number, image)
            if task.is_segmentation:
                _write_png(folder / "masks" / number, mask)
            rows.append((f"{slide:03d}/{number}", slide, label, f"slide {slide:03d}", f"images/{number}"))
    splits = _splits(task.name, seed, n_slides)
    table = pd.DataFrame(rows, columns=["item_id", "slide", "label", "group", "file"])
    table["split"] = table.pop("slide").map(splits)
    table = table.assign(x_px=0, y_px=0, width_px=SIDE_PX, height_px=SIDE_PX)[list(COLUMNS)]
    store.write_csv(folder / "items.csv", table)
    store.write_json(made, config)
    return folder


def _patches(task: Task, seed: int, slide: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Label, pixels and mask of every patch of one slide."""
    own = streams.stream_seed(seed, task.name)
    look = fields.slide_look(own, slide)
    tissues = [fields.MIXED] if task.is_segmentation else list(fields.TISSUES.values())
    found = []
    for label, tissue in enumerate(tissues):
        image, mask = fields.draw_field(own, slide * len(tissues) + label, tissue, look, PER_FIELD * SIDE_PX)
        label = -1 if task.is_segmentation else label
        for top in range(0, PER_FIELD * SIDE_PX, SIDE_PX):
            for left in range(0, PER_FIELD * SIDE_PX, SIDE_PX):
                part = np.s_[top : top + SIDE_PX, left : left + SIDE_PX]
                found.append((label, image[part], mask[part]))
    return found


def _splits(name: str, seed: int, n_slides: int) -> dict[int, str]:
    """Of each slide its split; every split has one at least."""
    order = streams.generator(seed, name, "split").permutation(n_slides).tolist()
    n_train = min(max(round(SHARES[0] * n_slides), 1), n_slides - 2)
    n_val = min(max(round(SHARES[1] * n_slides), 1), n_slides - n_train - 1)
    return {
        slide: "train" if rank < n_train else "val" if rank < n_train + n_val else "test" for rank, slide in enumerate(order)
    }


def _missing(task: Task, folder: Path) -> list[str]:
    """The files of a synthetic task that aren't there."""
    if not (folder / "items.csv").is_file():
        return ["items.csv"]
    files = pd.read_csv(folder / "items.csv")["file"]
    parts = ("images", "masks") if task.is_segmentation else ("images",)
    wanted = [f"{part}/{Path(file).name}" for part in parts for file in files]
    return [file for file in wanted if not (folder / file).is_file()]


def _write_png(path: Path, pixels: np.ndarray) -> None:
    with store.replacing(path) as aside:
        Image.fromarray(pixels).save(aside, format="PNG")


class SyntheticTask(TaskData):
    """A synthetic task's data, as `make` wrote them."""

    def mask(self, i: int) -> np.ndarray:
        """See `TaskData.mask`: the nuclei as they were drawn."""
        if self.kind != "segmentation":
            return super().mask(i)
        path = self.folder / "masks" / Path(self.table["file"].iloc[i]).name
        return read_image(path)[..., 0].copy()  # (H, W)


def load(task: Task, folder: Path) -> TaskData:
    """The synthetic task that `make` wrote; raises TaskError where it isn't there or isn't whole."""
    if not (folder / "made.json").is_file():
        raise TaskError(f"{folder}: no synthetic task, or one half made (no made.json); prepare it by registry.prepare")
    config = store.read_json(folder / "made.json")
    if config.get("task") != task.name or config.get("generator") != VERSION:
        raise TaskError(
            f"{folder}: holds {config.get('task')!r} of generator {config.get('generator')}, not {task.name!r} of "
            f"{VERSION}; {REMEDY}"
        )
    if missing := _missing(task, folder):
        raise TaskError(f"{folder}: {len(missing)} files are gone, the first {missing[0]}; {REMEDY}")
    table = pd.read_csv(folder / "items.csv", dtype={"item_id": str, "group": str})
    return task.data(folder, table[list(COLUMNS)], SyntheticTask)


def _prepare(n_slides: int, task: Task, folder: Path) -> None:
    with store.in_turn(folder.parent, task.name):
        make(task, folder, n_slides)


TISSUE = Task(
    "synthetic_tissue",
    "synthetic tissue",
    CLASSIFICATION,
    tuple(fields.TISSUES),
    um_per_px=fields.UM_PER_PX,
    read=load,
    prepare=partial(_prepare, 30),
)
NUCLEI = Task(
    "synthetic_nuclei",
    "synthetic nuclei",
    SEGMENTATION,
    fields.NUCLEI,
    um_per_px=fields.UM_PER_PX,
    read=load,
    prepare=partial(_prepare, 36),
)
TASKS = (TISSUE, NUCLEI)
