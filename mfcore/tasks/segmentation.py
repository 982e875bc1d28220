"""Nuclei segmentation tasks in the form their authors publish them, with the splits and classes
that kaiko-ai/eva uses.

Facts of eva's documentation, configurations and code (0.4.5, April 2026). Both sets have a training
and a test split; eva selects by the test split and reports it, so it is "val" here. Each px has one
class; where nuclei overlap, the later one in the file has it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd

from mfcore.measures.masks import IGNORED
from mfcore.tasks.task import COLUMNS, SEGMENTATION, Task, TaskError, part_of, whole_images

CONSEP_MERGED = np.array([0, 1, 2, 3, 3, 4, 4, 4], np.uint8)
"""Class of types 0 to 7: both epithelia are one, fibroblast, muscle and endothelium another."""
CONSEP_TILE_PX = 250
CONSEP_IMAGES = {"train": "Train/Images/*.png", "val": "Test/Images/*.png"}
MONUSAC_IMAGES = {
    "train": "MoNuSAC_images_and_annotations/**/*.tif",
    "val": "MoNuSAC[ _]Testing[ _]Data[ _]and[ _]Annotations/**/*.tif",
}

DECODERS = (
    "eva's documentation says that segmentation runs online only, yet eva has offline"
    " configurations with another decoder (ConvDecoderMS, without the image); here the decoder is"
    " the online one (ConvDecoderWithImage)"
)


def _images(
    task: Task, folder: Path, patterns: Mapping[str, str], labels_of: Callable[[Path], Path]
) -> tuple[list[Path], list[str]]:
    """Every image and its split; raises TaskError for a split without images and an image without
    its file of labels.
    """
    images = [(path, split) for split in patterns for path in sorted(folder.glob(patterns[split]))]
    present = {split for _, split in images}
    problems = [f"no images {patterns[split]}" for split in patterns if split not in present]
    problems += [
        f"{path.relative_to(folder)}: no {labels_of(path).name}"
        for path, _ in images
        if not labels_of(path).is_file()
    ]
    task.refuse(folder, problems)
    return [path for path, _ in images], [split for _, split in images]


def load_consep(task: Task, folder: Path) -> pd.DataFrame:
    """CoNSeP, ``{Train,Test}/Images/*.png`` with ``Labels/*.mat`` (inst_map, type_map), also in a
    folder CoNSeP.

    Images of 1000 px at 0.25 um/px, as eva's grid of 250 px without overlap, 16 tiles an image;
    what is left at the borders is dropped. Tiles without tissue stay: eva's data-set class would
    drop them, its configurations name a plain grid. Its seven types are four classes, as in Graham
    et al. 2019 (HoVer-Net). Which images share a patient isn't published with them. Raises
    TaskError.
    """
    root = folder / "CoNSeP" if (folder / "CoNSeP").is_dir() else folder
    paths, splits = _images(task, root, CONSEP_IMAGES, _consep_labels)
    images, side = whole_images(folder, paths, [-1] * len(paths), splits), CONSEP_TILE_PX
    tiles = [
        image | {"item_id": f"{image['file']}:{x},{y}", "x_px": x, "y_px": y}
        for image in images.to_dict("records")
        for x in range(0, image["width_px"] - side + 1, side)
        for y in range(0, image["height_px"] - side + 1, side)
    ]
    return pd.DataFrame(tiles, columns=COLUMNS).assign(width_px=side, height_px=side)


def _consep_labels(image: Path) -> Path:
    return image.parents[1] / "Labels" / f"{image.stem}.mat"


def read_consep_mask(folder: Path, row: pd.Series) -> np.ndarray:
    """The classes of a tile's pixels, from the ``type_map`` of its image's .mat file."""
    return part_of(_consep_mask(_consep_labels(folder / row["file"])), row).copy()


@lru_cache(maxsize=4)
def _consep_mask(path: Path) -> np.ndarray:
    """A whole image's classes: uint8 (n_rows, n_columns); the last few are kept, as one serves many
    tiles.
    """
    from scipy.io import loadmat

    try:
        return CONSEP_MERGED[loadmat(path, variable_names=["type_map"])["type_map"].astype(np.intp)]
    except Exception as error:  # whatever a damaged file leads its reader to
        raise TaskError(
            f"{path}: no label file with a type_map of 0 to 7 ({error}); "
            f"get it again: {CONSEP.where}"
        ) from None


def load_monusac(task: Task, folder: Path) -> pd.DataFrame:
    """MoNuSAC 2020, ``MoNuSAC_images_and_annotations/<patient>/*.tif`` and ``MoNuSAC Testing Data
    and Annotations/...``.

    Images of 81 to 2,162 px at 0.25 um/px, each with outlines in the .xml of its name; the .svs of
    the same name is the same image and isn't read. An image is one item: its shorter side is
    resized to the protocol's 224 px, and the central square of it is what is seen and scored. Four
    classes; what has another name, as the test split's "Ambiguous", is `IGNORED`, as eva ignores
    it. That the ambiguous regions lie in the XML files is read off eva's code; the set itself
    wasn't seen here. The group is the patient, of a TCGA barcode its first three parts. Raises
    TaskError.
    """
    paths, splits = _images(task, folder, MONUSAC_IMAGES, _monusac_labels)
    names = [path.parent.name for path in paths]
    patients = [
        "-".join(name.split("-")[:3]) if name.startswith("TCGA-") else name for name in names
    ]
    return whole_images(folder, paths, [-1] * len(paths), splits, patients)


def _monusac_labels(image: Path) -> Path:
    return image.with_suffix(".xml")


def read_monusac_mask(folder: Path, row: pd.Series) -> np.ndarray:
    """The classes of an image's pixels, drawn from the outlines in its XML file."""
    mask = np.zeros((row["height_px"], row["width_px"]), np.uint8)  # (H, W)
    for value, outline in _outlines(_monusac_labels(folder / row["file"])):
        fill(mask, outline, value)
    return mask


def _outlines(path: Path) -> list[tuple[int, np.ndarray]]:
    """Value and corners, float (n, 2) of x and y in px, of every region of an XML file, in its
    order.
    """
    try:
        regions = []
        for annotation in ElementTree.parse(path).iter("Annotation"):
            name = annotation.find("./Attributes/Attribute").get("Name").strip().lower()
            value = MONUSAC.classes.index(name) if name in MONUSAC.classes[1:] else IGNORED
            for region in annotation.iter("Region"):
                corners = [
                    (float(vertex.get("X")), float(vertex.get("Y")))
                    for vertex in region.iter("Vertex")
                ]
                regions.append((value, np.array(corners).reshape(-1, 2)))
        return regions
    except (ElementTree.ParseError, OSError, AttributeError, TypeError, ValueError) as error:
        raise TaskError(
            f"{path}: outlines that can't be read ({error}); get it again: {MONUSAC.where}"
        ) from None


def fill(mask: np.ndarray, outline: np.ndarray, value: int) -> None:
    """Set ``mask`` (n_rows, n_columns) to ``value`` where a px's integer place lies inside the
    outline or on it.

    outline: float (n, 2), x and y; a px at column x and row y lies at (x, y), as in the set's own
    reading code and eva's. Inside is by the even-odd rule; fewer than three corners enclose nothing
    but themselves.
    """
    if not len(outline):
        return
    n_rows, n_columns = mask.shape
    low = np.maximum(np.ceil(outline.min(axis=0)), 0).astype(int)
    high = np.clip(np.floor(outline.max(axis=0)), -1, (n_columns - 1, n_rows - 1)).astype(int)
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
    is_between = (x - x0) * (x - x1) + (y - y0) * (y - y1) <= 0  # the ends of an edge
    return inside | ((np.abs(across) < 1e-9) & is_between).any(axis=1)


CONSEP = Task(
    "consep",
    "CoNSeP",
    replace(SEGMENTATION, patience=200, size_px=224),
    ("background", "other", "inflammatory", "epithelial", "spindle-shaped"),
    read=load_consep,
    mask=read_consep_mask,
    where=(
        "the HoVer-Net page of the Tissue Image Analytics Centre, University of Warwick,"
        " consep_dataset.zip (Apache 2.0 as eva's documentation has it, which also says that it"
        " wasn't available for a time); unpack it here"
    ),
    counts={"train": 27 * 16, "val": 14 * 16},  # tiles
    interpolation="bilinear",
    unsettled=(DECODERS,),
)
MONUSAC = Task(
    "monusac",
    "MoNuSAC",
    replace(SEGMENTATION, patience=100, size_px=224),
    ("background", "epithelial", "lymphocyte", "neutrophil", "macrophage"),
    read=load_monusac,
    mask=read_monusac_mask,
    where=(
        "the Data page of the MoNuSAC 2020 challenge on Grand Challenge, "
        "training and testing data (CC BY-NC-SA 4.0); "
        "unpack both here"
    ),
    counts={"train": 209, "val": 85},
    interpolation="bilinear",
    unsettled=(
        DECODERS,
        "eva's online configuration learned from random resized crops (its versions of 2025); here,"
        " as by the offline one, decoders learn from whole images, resized and cropped",
        "eva's Dice leaves out pixels that are predicted as ambiguous, which its decoder of five"
        " classes never does, so that what it predicts in ambiguous regions counts against it, and"
        " its loss takes these for background; here ambiguous pixels count for nothing",
    ),
)
TASKS = (CONSEP, MONUSAC)
