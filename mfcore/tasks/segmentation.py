"""Nuclei segmentation tasks in the form their authors publish them, with the splits and classes that kaiko-ai/eva uses.

Facts of eva's documentation and data-set classes (April 2026). Both sets have a training and a test split; eva selects by the
test split and reports it, so it is "val" here. Each px has one class; where nuclei overlap, the later one in the file has it.
"""

from collections import Counter
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
from scipy.io import loadmat

from mfcore.measures.masks import IGNORED
from mfcore.tasks.task import COLUMNS, SEGMENTATION, Task, TaskData, TaskError, sizes_px, whole_images

CONSEP_MERGED = np.array([0, 1, 2, 3, 3, 4, 4, 4], np.uint8)
"""Class of each of the set's types 0 to 7: both epithelia are one, fibroblast, muscle and endothelium another."""
CONSEP_TILE_PX = 250
CONSEP_FOLDERS = {"train": "Train", "val": "Test"}

MONUSAC_FOLDERS = {
    "train": ("MoNuSAC_images_and_annotations",),
    "val": ("MoNuSAC Testing Data and Annotations", "MoNuSAC_Testing_Data_and_Annotations"),
}


class Consep(TaskData):
    """CoNSeP's data; masks come from the ``type_map`` of its .mat files."""

    def mask(self, i: int) -> np.ndarray:
        """See `TaskData.mask`."""
        row = self.table.iloc[i]
        image = self.folder / row["file"]
        whole = _consep_mask(image.parents[1] / "Labels" / f"{image.stem}.mat")
        part = whole[row["y_px"] : row["y_px"] + row["height_px"], row["x_px"] : row["x_px"] + row["width_px"]]
        if part.shape != (row["height_px"], row["width_px"]):
            raise TaskError(f"{image}: its label map of {whole.shape} (rows, columns) is smaller than it; get the set again")
        return part.copy()


def load_consep(task: Task, folder: Path) -> TaskData:
    """CoNSeP, ``{Train,Test}/Images/*.png`` with ``Labels/*.mat`` (inst_map, type_map), also in a folder CoNSeP.

    Images of 1000 px at 0.25 um/px, as eva's grid of 250 px without overlap, 16 tiles an image; what is left at the borders is
    dropped. Tiles without tissue stay: eva's data-set class would drop them, its configurations name a plain grid. Its seven
    types are four classes, as in Graham et al. 2019 (HoVer-Net). Which images share a patient isn't published with them.
    Raises TaskError.
    """
    root = folder / "CoNSeP" if (folder / "CoNSeP").is_dir() else folder
    problems, paths, splits = [], [], []
    for split, name in CONSEP_FOLDERS.items():
        images = sorted((root / name / "Images").glob("*.png"))
        if not images:
            problems.append(f"no images in {name}/Images")
        for path in images:
            if not (root / name / "Labels" / f"{path.stem}.mat").is_file():
                problems.append(f"{name}/Labels: no {path.stem}.mat for {name}/Images/{path.name}")
        paths += images
        splits += [split] * len(images)
    task.refuse(folder, problems)
    rows = []
    for path, split, width, height in zip(paths, splits, *sizes_px(paths), strict=True):
        if min(width, height) < CONSEP_TILE_PX:
            problems.append(f"{path.name}: {width} x {height} px, smaller than a tile of {CONSEP_TILE_PX}; published are 1000")
            continue
        name = path.relative_to(folder).as_posix()
        for x in range(0, width - CONSEP_TILE_PX + 1, CONSEP_TILE_PX):
            for y in range(0, height - CONSEP_TILE_PX + 1, CONSEP_TILE_PX):
                rows.append((f"{name}:{x},{y}", split, -1, "", name, x, y, CONSEP_TILE_PX, CONSEP_TILE_PX))
    task.refuse(folder, problems)
    return task.data(folder, pd.DataFrame(rows, columns=list(COLUMNS)), Consep, n_found=Counter(splits))


@lru_cache(maxsize=4)
def _consep_mask(path: Path) -> np.ndarray:
    """A whole image's classes: uint8 (n_rows, n_columns); the last few are kept, as one serves many tiles."""
    try:
        types = loadmat(path, variable_names=["type_map"])["type_map"]
    except Exception as error:  # whatever a damaged file leads its reader to
        raise TaskError(f"{path}: no label file with a type_map ({error}); get it again: {CONSEP.where}") from None
    if types.ndim != 2 or not np.isin(types, np.arange(len(CONSEP_MERGED))).all():
        raise TaskError(f"{path}: type_map has shape {types.shape} and values {np.unique(types)[:10]}, expected 0 to 7")
    return CONSEP_MERGED[types.astype(np.intp)]


class Monusac(TaskData):
    """MoNuSAC's data; masks are drawn from the outlines in its XML files."""

    def mask(self, i: int) -> np.ndarray:
        """See `TaskData.mask`."""
        row = self.table.iloc[i]
        mask = np.zeros((row["height_px"], row["width_px"]), np.uint8)  # (H, W)
        for value, outline in _outlines((self.folder / row["file"]).with_suffix(".xml")):
            fill(mask, outline, value)
        return mask


def load_monusac(task: Task, folder: Path) -> TaskData:
    """MoNuSAC 2020, ``MoNuSAC_images_and_annotations/<patient>/*.tif`` and ``MoNuSAC Testing Data and Annotations/...``.

    Images of 81 to 2,162 px at 0.25 um/px, each with outlines in the .xml of its name; the .svs of the same name is the same
    image and isn't read. Four classes; what has another name, as the test split's "Ambiguous", is `IGNORED`, as eva ignores
    it. That the ambiguous regions lie in the XML files is read off eva's code; the set itself wasn't seen here. The group is
    the patient, of a TCGA barcode its first three parts. Raises TaskError.
    """
    problems, paths, splits, groups = [], [], [], []
    for split, names in MONUSAC_FOLDERS.items():
        root = next((folder / name for name in names if (folder / name).is_dir()), None)
        images = sorted(root.rglob("*.tif")) if root else []
        if not images:
            problems.append(f"no *.tif in {names[0]}/<patient>" if root else f"no folder {names[0]}")
        for path in images:
            if not path.with_suffix(".xml").is_file():
                problems.append(f"{path.relative_to(folder)}: no outlines, {path.stem}.xml, beside it")
        paths += images
        splits += [split] * len(images)
        groups += [_patient(path.parent.name) for path in images]
    task.refuse(folder, problems)
    pairs = set(zip(splits, groups, strict=True))
    shared = {group for split, group in pairs if split == "train" and ("val", group) in pairs}
    note = f"{len(shared)} patients are in both splits: {', '.join(sorted(shared)[:5])}"
    table = whole_images(folder, paths, [-1] * len(paths), splits).assign(group=groups)
    return task.data(folder, table, Monusac, notes=(note,) if shared else ())


def _patient(name: str) -> str:
    """A patient's folder or TCGA barcode to the patient."""
    return "-".join(name.split("-")[:3]) if name.startswith("TCGA-") else name


def _outlines(path: Path) -> list[tuple[int, np.ndarray]]:
    """Value and corners, float (n, 2) of x and y in px, of every region of an XML file, in its order."""
    try:
        root = ElementTree.parse(path).getroot()
        found = []
        for annotation in root.iter("Annotation"):
            attribute = annotation.find("./Attributes/Attribute")
            if attribute is None:
                raise ValueError("an Annotation without an Attribute that names its class")
            name = attribute.get("Name", "").strip().lower()
            value = MONUSAC.classes.index(name) if name in MONUSAC.classes[1:] else IGNORED
            for region in annotation.iter("Region"):
                corners = [(float(vertex.get("X")), float(vertex.get("Y"))) for vertex in region.iter("Vertex")]
                if not np.isfinite(corners).all():
                    raise ValueError("a Vertex that lies nowhere")
                found.append((value, np.array(corners, float).reshape(-1, 2)))
        return found
    except (ElementTree.ParseError, OSError, TypeError, ValueError) as error:
        raise TaskError(f"{path}: outlines that can't be read ({error}); get it again: {MONUSAC.where}") from None


def fill(mask: np.ndarray, outline: np.ndarray, value: int) -> None:
    """Set ``mask`` (n_rows, n_columns) to ``value`` where a px's integer place lies inside the outline or on it.

    outline: float (n, 2), x and y; a px at column x and row y lies at (x, y), as in the set's own reading code and eva's.
    Inside is by the even-odd rule; fewer than three corners enclose nothing but themselves.
    """
    if not len(outline):
        return
    n_rows, n_columns = mask.shape
    low = np.maximum(np.ceil(outline.min(axis=0)), 0).astype(int)
    high = np.minimum(np.floor(outline.max(axis=0)), (n_columns - 1, n_rows - 1)).astype(int)
    if (low > high).any():
        return
    x = np.arange(low[0], high[0] + 1, dtype=float)
    for row in range(low[1], high[1] + 1):
        mask[row, low[0] : high[0] + 1][_inside(outline, x, row)] = value


def _inside(outline: np.ndarray, x: np.ndarray, y: float) -> np.ndarray:
    """Whether each column ``x`` (W,) of row ``y`` lies inside ``outline`` or on it, bool (W,)."""
    x, (x0, y0), (x1, y1) = x[:, None], outline.T, np.roll(outline, -1, axis=0).T  # (n,) each
    spans = (y0 > y) != (y1 > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
    inside = (spans & (x < crossing)).sum(axis=1) % 2 == 1
    across = (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)  # (W, n)
    within = (np.minimum(x0, x1) <= x) & (x <= np.maximum(x0, x1))
    within &= (np.minimum(y0, y1) <= y) & (y <= np.maximum(y0, y1))
    return inside | ((np.abs(across) < 1e-9) & within).any(axis=1)


CONSEP = Task(
    "consep",
    "CoNSeP",
    replace(SEGMENTATION, patience=200),
    ("background", "other", "inflammatory", "epithelial", "spindle-shaped"),
    um_per_px=0.25,
    read=load_consep,
    where="the HoVer-Net page of the Tissue Image Analytics Centre, University of Warwick, consep_dataset.zip (Apache 2.0 "
    "as eva's documentation has it, which also says that it wasn't to be had for a time); unpack it here",
    counts={"train": 27, "val": 14},
)
MONUSAC = Task(
    "monusac",
    "MoNuSAC",
    replace(SEGMENTATION, patience=100),
    ("background", "epithelial", "lymphocyte", "neutrophil", "macrophage"),
    um_per_px=0.25,
    read=load_monusac,
    where="the Data page of the MoNuSAC 2020 challenge on Grand Challenge, training and testing data (CC BY-NC-SA 4.0); "
    "unpack both here",
    counts={"train": 209, "val": 85},
)
TASKS = (CONSEP, MONUSAC)
