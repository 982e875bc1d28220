"""Synthetic stand-ins for the downstream tasks, drawn by mfcore from a seed: small, with known labels and true masks.

folder/images/0000.png ...   patches of SIDE_PX px at 0.5 um/px
folder/masks/0000.png ...    classes of the pixels, the nuclei task only
folder/items.csv             a row a patch; made.json: what it was made from, written last
"""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from mfcore import store, streams
from mfcore.data.synthetic import fields
from mfcore.tasks.schema import COLUMNS, TaskData, TaskError, read_image

VERSION = 1
"""Raised whenever the same seed would give other pixels or labels."""
SEED = 2024
SIDE_PX = 96
PER_FIELD = 2  # a field is cut into so many patches along each side
N_SLIDES = {"synthetic_tissue": 30, "synthetic_nuclei": 36}
SHARES = (0.6, 0.2)  # of the slides: train, val; the rest is test
REMEDY = "tasks.prepare makes them anew"


def make(name: str, folder: Path, *, seed: int = SEED, n_slides: int | None = None) -> Path:
    """Make the stand-in ``name`` in ``folder``, unless it is there as asked; returns the folder.

    "synthetic_tissue": of each slide as many patches of each tissue; "synthetic_nuclei": of each slide one field of mixed
    tissue. Splits are by slide. The same seed and number give the same patches. What was made otherwise is made anew;
    raises TaskError for a folder that holds anything else.
    """
    folder = Path(folder)
    if name not in N_SLIDES:
        raise TaskError(f"{name!r} is no synthetic task; there are {list(N_SLIDES)}")
    n_slides = N_SLIDES[name] if n_slides is None else n_slides
    if n_slides < 3:
        raise TaskError(f"{name}: n_slides is {n_slides}; train, val and test need 3 or more")
    config = {"task": name, "seed": seed, "n_slides": n_slides, "side_px": SIDE_PX, "generator": VERSION}
    begun, made = folder / "begun.json", folder / "made.json"
    if made.is_file() and store.read_json(made) == config and not _missing(name, folder):
        return folder
    if folder.is_dir() and any(folder.iterdir()):
        if not begun.is_file():
            raise TaskError(f"{folder}: isn't empty and holds no synthetic task (no begun.json); give another folder")
        for part in ("made.json", "items.csv", "images", "masks"):
            _remove(folder / part)
    store.write_json(begun, config)
    rows = []
    for slide in tqdm(range(n_slides), desc=f"{name}: synthetic slides", unit="slide"):
        for label, image, mask in _patches(name, seed, slide):
            number = f"{len(rows):04d}.png"
            _write_png(folder / "images" / number, image)
            if name == "synthetic_nuclei":
                _write_png(folder / "masks" / number, mask)
            rows.append((f"{slide:03d}/{number}", slide, label, f"slide {slide:03d}", f"images/{number}"))
    splits = _splits(name, seed, n_slides)
    table = pd.DataFrame(rows, columns=["item_id", "slide", "label", "group", "file"])
    table["split"] = table.pop("slide").map(splits)
    table = table.assign(x_px=0, y_px=0, width_px=SIDE_PX, height_px=SIDE_PX)[list(COLUMNS)]
    store.write_csv(folder / "items.csv", table)
    store.write_json(made, config)
    return folder


def _patches(name: str, seed: int, slide: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Label, pixels and mask of every patch of one slide."""
    own = streams.stream_seed(seed, name)
    look = fields.slide_look(own, slide)
    tissues = list(fields.TISSUES.values()) if name == "synthetic_tissue" else [fields.MIXED]
    found = []
    for label, tissue in enumerate(tissues):
        image, mask = fields.draw_field(own, slide * len(tissues) + label, tissue, look, PER_FIELD * SIDE_PX)
        label = label if name == "synthetic_tissue" else -1
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


def _missing(name: str, folder: Path) -> list[str]:
    """Which of a stand-in's files aren't there."""
    if not (folder / "items.csv").is_file():
        return ["items.csv"]
    files = pd.read_csv(folder / "items.csv")["file"]
    parts = ("images",) if name == "synthetic_tissue" else ("images", "masks")
    wanted = [f"{part}/{Path(file).name}" for part in parts for file in files]
    return [file for file in wanted if not (folder / file).is_file()]


def _write_png(path: Path, pixels: np.ndarray) -> None:
    with store.replacing(path) as aside:
        Image.fromarray(pixels).save(aside, format="PNG")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class SyntheticTask(TaskData):
    """A synthetic task's data, as `make` wrote them."""

    def mask(self, i: int) -> np.ndarray:
        """See `TaskData.mask`: the nuclei as they were drawn."""
        if self.kind != "segmentation":
            return super().mask(i)
        path = self.folder / "masks" / Path(self.table["file"].iloc[i]).name
        return read_image(path)[..., 0].copy()  # (H, W)


def load(name: str, folder: Path) -> SyntheticTask:
    """The stand-in ``name`` that `make` wrote; raises TaskError where it isn't there or isn't whole."""
    folder = Path(folder)
    if not (folder / "made.json").is_file():
        raise TaskError(f"{folder}: no synthetic task, or one half made (no made.json); prepare it by tasks.prepare")
    config = store.read_json(folder / "made.json")
    if config.get("task") != name or config.get("generator") != VERSION:
        raise TaskError(
            f"{folder}: holds {config.get('task')!r} of generator {config.get('generator')}, not {name!r} of "
            f"{VERSION}; {REMEDY}"
        )
    if missing := _missing(name, folder):
        raise TaskError(f"{folder}: {len(missing)} files are gone, the first {missing[0]}; {REMEDY}")
    table = pd.read_csv(folder / "items.csv", dtype={"item_id": str, "group": str})
    is_tissue = name == "synthetic_tissue"
    return SyntheticTask(
        name=name,
        kind="classification" if is_tissue else "segmentation",
        classes=tuple(fields.TISSUES) if is_tissue else fields.NUCLEI,
        table=table[list(COLUMNS)],
        folder=folder,
        um_per_px=fields.UM_PER_PX,
    )
