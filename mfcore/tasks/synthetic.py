"""Synthetic downstream tasks, drawn by mfcore from a seed: small, with known labels and true masks.

folder/images/0000.png ...   patches of SIDE_PX px at 0.5 um/px
folder/masks/0000.png ...    classes of the pixels, the nuclei task only
folder/items.csv             a row a patch; made.json: what it was made from, written last

The task of slides has ``slides.csv`` and ``slides/000.tiff ...`` in their place, in the layout of
`mfcore.tasks.slides`. Half of a mutated slide is full of lymphocytes; the other half is as a slide
of wild type, so that patches say less than patients do.
"""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from mfcore import store, streams
from mfcore.data.synthetic import cells, fields
from mfcore.data.synthetic.slides import write_pyramid
from mfcore.tasks import slides
from mfcore.tasks.task import CLASSIFICATION, COLUMNS, SEGMENTATION, Task, TaskError, read_image

VERSION = 1
"""Raised whenever the same seed would give other pixels or labels."""
SEED = 2024
SIDE_PX = 96
PER_FIELD = 2  # a field is cut into so many patches along each side
SHARES = (0.6, 0.2)  # of the slides: train, val; the rest is test


def make(
    n_slides: int,
    task: Task,
    folder: Path,
    draw: Callable[[Task, Path, int], pd.DataFrame],
    table: str = "items.csv",
) -> None:
    """Draw the synthetic task in ``folder``, unless it is there.

    "synthetic_tissue": of each slide as many patches of each tissue; "synthetic_nuclei": of each
    slide one field of mixed tissue; "synthetic_mutation": slides. draw: writes the images, and
    returns what is kept as ``table``. Splits are by slide; n_slides: 3 or more, 6 or more of
    slides. The same number gives the same patches. What was made otherwise, or not to its end, is
    made anew; raises TaskError for a folder that holds anything else.
    """
    config = {
        "task": task.name,
        "seed": SEED,
        "n_slides": n_slides,
        "side_px": SIDE_PX,
        "generator": VERSION,
    }
    begun, made = folder / "begun.json", folder / "made.json"
    with store.in_turn(folder.parent, task.name):
        if made.is_file() and store.read_json(made) == config:
            return
        if folder.is_dir() and any(folder.iterdir()) and not begun.is_file():
            raise TaskError(
                f"{folder}: isn't empty and holds no synthetic task (no begun.json); "
                "give another folder"
            )
        shutil.rmtree(folder, ignore_errors=True)
        store.write_json(begun, config)
        store.write_csv(folder / table, draw(task, folder, n_slides))
        store.write_json(made, config)


def draw_patches(task: Task, folder: Path, n_slides: int) -> pd.DataFrame:
    """Write every patch of the task, and its mask; returns the table of its items."""
    rows, splits = [], _splits(task.name, n_slides)
    for slide in tqdm(range(n_slides), desc=f"{task.name}: synthetic slides", unit="slide"):
        for label, image, mask in _patches(task, slide):
            number = f"{len(rows):04d}.png"
            _write_png(folder / "images" / number, image)
            if task.is_segmentation:
                _write_png(folder / "masks" / number, mask)
            item, group = f"{slide:03d}/{number}", f"slide {slide:03d}"
            rows.append((item, splits[slide], label, group, f"images/{number}", 0, 0))
    table = pd.DataFrame(rows, columns=COLUMNS[:7])
    return table.assign(width_px=SIDE_PX, height_px=SIDE_PX)


def _patches(task: Task, slide: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Label, pixels and mask of every patch of one slide."""
    seed = streams.stream_seed(SEED, task.name)
    look = fields.slide_look(seed, slide)
    tissues = list(enumerate(fields.TISSUES.values()))
    if task.is_segmentation:
        tissues = [(-1, fields.MIXED)]
    for i, (label, tissue) in enumerate(tissues, slide * len(tissues)):
        image, mask = fields.draw_field(seed, i, tissue, look, PER_FIELD * SIDE_PX)
        for top, left in np.ndindex(PER_FIELD, PER_FIELD):
            part = np.s_[top * SIDE_PX : (top + 1) * SIDE_PX, left * SIDE_PX : (left + 1) * SIDE_PX]
            yield label, image[part], mask[part]


def draw_slides(task: Task, folder: Path, n_slides: int) -> pd.DataFrame:
    """Write every slide of the task; returns ``slides.csv``, with a patient a slide.

    A wild type and a mutated slide in turn, each two in one split.
    """
    seed, splits, rows = streams.stream_seed(SEED, task.name), _splits(task.name, n_slides // 2), []
    look = fields.slide_look(seed, 0)  # of all: other stains would hide what so few slides show
    for slide in tqdm(range(n_slides), desc=f"{task.name}: synthetic slides", unit="slide"):
        is_mutated, parts = slide % 2, []
        for half, name in enumerate(("tumour", "lymphoid" if is_mutated else "tumour")):
            field = 2 * slide + half, fields.TISSUES[name], look, PER_FIELD * SIDE_PX
            parts.append(fields.draw_field(seed, *field)[0])
        file = folder / "slides" / f"{slide:03d}.tiff"
        file.parent.mkdir(parents=True, exist_ok=True)
        with store.replacing(file) as aside:
            write_pyramid(aside, np.hstack(parts), fields.UM_PER_PX)
        rows.append((file.name, f"patient {slide:03d}", is_mutated, splits[slide // 2]))
    return pd.DataFrame(rows, columns=slides.LISTED)


def _splits(name: str, n_slides: int) -> dict[int, str]:
    """Of each slide its split; every split has one at least."""
    order = streams.generator(SEED, name, "split").permutation(n_slides).tolist()
    n_train = min(round(SHARES[0] * n_slides), n_slides - 2)
    n_val = max(round(SHARES[1] * n_slides), 1)
    n_test = n_slides - n_train - n_val
    return dict(zip(order, ["train"] * n_train + ["val"] * n_val + ["test"] * n_test, strict=True))


def _write_png(path: Path, pixels: np.ndarray) -> None:
    with store.replacing(path) as aside:
        Image.fromarray(pixels).save(aside, format="PNG")


def load(task: Task, folder: Path) -> pd.DataFrame:
    """The table of the synthetic task that `make` wrote."""
    return pd.read_csv(folder / "items.csv", dtype={"item_id": str, "group": str})


def read_mask(folder: Path, row: pd.Series) -> np.ndarray:
    """The classes of a patch's pixels: the nuclei as they were drawn."""
    return read_image(folder / "masks" / Path(row["file"]).name)[..., 0].copy()  # (H, W)


TISSUE = Task(
    "synthetic_tissue",
    "synthetic tissue",
    CLASSIFICATION,
    tuple(fields.TISSUES),
    read=load,
    prepare=partial(make, 30, draw=draw_patches),
)
NUCLEI = Task(
    "synthetic_nuclei",
    "synthetic nuclei",
    SEGMENTATION,
    cells.NUCLEI,
    read=load,
    mask=read_mask,
    prepare=partial(make, 36, draw=draw_patches),
)
FROM_SLIDES = slides.Drawing(SIDE_PX, fields.UM_PER_PX, min_tissue=0.4, n_patches=8)
MUTATION = Task(
    "synthetic_mutation",
    "synthetic mutation",
    CLASSIFICATION,
    slides.TP53.classes,
    read=partial(slides.load, FROM_SLIDES),
    image=partial(slides.read_item, FROM_SLIDES.um_per_px),
    prepare=partial(make, 40, draw=draw_slides, table=slides.TABLE),
    labels_groups=True,
)
TASKS = (TISSUE, NUCLEI, MUTATION)
