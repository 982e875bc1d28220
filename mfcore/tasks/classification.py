"""Patch classification tasks in the form their authors publish them, with kaiko-ai/eva's splits.

Facts of eva's documentation and data-set classes (April 2026). What eva calls "val" is "val" here;
MHIST's official test split, by which eva also selects, is "val" too, so that every task has the
split that selects under that name.
"""

import gzip
import re
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from mfcore import store
from mfcore.tasks.task import CLASSIFICATION, Task, TaskError, whole_images

BACH_PHOTOS = "ICIAR2018_BACH_Challenge/Photos"
# of the files' names, by class
BACH_PREFIXES = {"Benign": "b", "InSitu": "is", "Invasive": "iv", "Normal": "n"}
BACH_PER_CLASS = 100
BACH_VAL = ((41, 59), (60, 90), (139, 169), (240, 258), (260, 273), (345, 368))
"""Positions, from and up to, that eva validates on, among the 400 photos by class and name."""
CRC_FOLDERS = {"train": "NCT-CRC-HE-100K", "val": "CRC-VAL-HE-7K"}
MHIST_COLUMNS = ("Image Name", "Majority Vote Label", "Partition")
PCAM_SPLITS = {"train": "train", "val": "valid", "test": "test"}  # ours, and in the files' names


def load_bach(task: Task, folder: Path) -> pd.DataFrame:
    """BACH's photos, ``ICIAR2018_BACH_Challenge/Photos/<class>/*.tif``.

    Four classes, 2048 x 1536 px at 0.42 um/px. A photo's position in eva's split is that of its
    class and number (b001 is 0, is001 100, iv001 200, n001 300): a partial set is split as the
    whole. eva chose the positions so that no patient is on both sides; which photo is whose isn't
    said here. Raises TaskError.
    """
    problems, rows = [], []
    for path, label in _by_class(task, folder, BACH_PHOTOS, problems):
        prefix = BACH_PREFIXES[task.classes[label]]
        if re.fullmatch(rf"{prefix}(0\d\d|100)", path.stem):
            position = label * BACH_PER_CLASS + int(path.stem[-3:]) - 1
            is_val = any(first <= position < end for first, end in BACH_VAL)
            rows.append((path, label, "val" if is_val else "train"))
        else:
            problems.append(
                f"{path.relative_to(folder)}: expected {prefix}001.tif to {prefix}100.tif, "
                "by which eva splits"
            )
    task.refuse(folder, problems)
    return whole_images(folder, *zip(*rows, strict=True))


def load_crc(task: Task, folder: Path) -> pd.DataFrame:
    """CRC-100K, ``NCT-CRC-HE-100K/<class>/*.tif`` to train, ``CRC-VAL-HE-7K/<class>/*.tif`` as val.

    Nine classes, patches of 224 px at 0.5 um/px, stain-normalised by the authors; the sides of the
    first are taken for all. Raises TaskError.
    """
    problems, rows = [], []
    for split, name in CRC_FOLDERS.items():
        rows += [(*row, split) for row in _by_class(task, folder, name, problems)]
    task.refuse(folder, problems)
    return whole_images(folder, *zip(*rows, strict=True))


def _by_class(
    task: Task, folder: Path, name: str, problems: list[str]
) -> Iterator[tuple[Path, int]]:
    """Path and label of each TIFF in ``name``/<class>, by class and name.

    A class without any is added to ``problems``.
    """
    for label, part in enumerate(task.classes):
        files = (folder / name / part).glob("[!.]*")
        files = sorted(path for path in files if path.suffix.lower() in (".tif", ".tiff"))
        if not files:
            problems.append(f"no images in {name}/{part}")
        yield from ((path, label) for path in files)


def load_mhist(task: Task, folder: Path) -> pd.DataFrame:
    """MHIST, ``images/*.png`` and ``annotations.csv``: SSA and HP.

    Columns Image Name, Majority Vote Label, Partition. Patches of 224 px; eva's documentation says
    2 um/px now and said 0.25 before. Partition "test" is "val" here, as eva selects by the
    partition and reports it. Raises TaskError.
    """
    try:
        rows = pd.read_csv(
            folder / "annotations.csv", dtype=str, keep_default_na=False, usecols=MHIST_COLUMNS
        )
    except (OSError, ValueError) as error:
        task.refuse(folder, [f"annotations.csv: no table that can be read ({error})"])
    names, labels, partitions = (rows[column] for column in MHIST_COLUMNS)
    paths = [folder / "images" / name for name in names]
    problems = [
        f"images/{path.name}: not there, and named in annotations.csv"
        for path in paths
        if not path.is_file()
    ]
    for column, known in (("Majority Vote Label", task.classes), ("Partition", ("train", "test"))):
        problems += [
            f"annotations.csv: {value!r} is none of {known}"
            for value in set(rows[column]) - set(known)
        ]
    task.refuse(folder, problems)
    return whole_images(
        folder, paths, labels.map(task.classes.index), partitions.replace("test", "val")
    )


def load_pcam(task: Task, folder: Path) -> pd.DataFrame:
    """PatchCamelyon, ``camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5``; its own splits.

    96 px at about 1 um/px. A patch's group is its slide where ``..._meta.csv`` names it in ``wsi``
    (a form not verified here). ``pcam_10shot`` has the same data; each run draws its own ten
    patches of each class. Raises TaskError.
    """
    problems, tables = [], []
    for split, theirs in PCAM_SPLITS.items():
        stem = f"camelyonpatch_level_2_split_{theirs}"
        try:
            tables.append(_pcam_split(folder, stem, split))
        except (OSError, KeyError, ValueError) as error:
            problems.append(f"{stem}_x.h5 and {stem}_y.h5, maybe still to be unpacked: {error}")
    task.refuse(folder, problems)
    return pd.concat(tables, ignore_index=True)


def _pcam_split(folder: Path, stem: str, split: str) -> pd.DataFrame:
    with h5py.File(folder / f"{stem}_x.h5") as x, h5py.File(folder / f"{stem}_y.h5") as y:
        (n, height, width, _), labels = x["x"].shape, y["y"][:].reshape(-1)
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels are {np.unique(labels)[:5].tolist()}, expected 0 and 1")
    meta = folder / f"{stem}_meta.csv"
    rows = {
        "item_id": [f"{split}_{i}" for i in range(n)],
        "split": split,
        "label": labels.astype(np.int64),
        "group": pd.read_csv(meta, dtype=str).get("wsi", "") if meta.is_file() else "",
        "file": f"{stem}_x.h5",
    }
    return pd.DataFrame(rows | {"x_px": 0, "y_px": 0, "width_px": width, "height_px": height})


def read_pcam_item(folder: Path, row: pd.Series) -> np.ndarray:
    """The pixels of a row of PatchCamelyon's table, uint8 (96, 96, 3)."""
    path = folder / row["file"]
    try:
        return _pcam_images(path)[int(row["item_id"].rpartition("_")[2])]
    except (OSError, KeyError) as error:
        raise TaskError(f"{path}: can't be read ({error}); get it again: {PCAM.where}") from None


@lru_cache(maxsize=3)
def _pcam_images(path: Path) -> h5py.Dataset:
    """All images of a split, uint8 (n, 96, 96, 3); an open file unpacks a chunk once."""
    return h5py.File(path)["x"]


def unpack_pcam(task: Task, folder: Path) -> None:
    """Unpack every ``camelyonpatch_*.h5.gz`` whose ``.h5`` isn't in the folder yet.

    Each file is unpacked whole or not at all.
    """
    for packed in sorted(folder.glob("camelyonpatch_level_2_split_*.h5.gz")):
        target = packed.with_suffix("")
        if target.is_file():
            continue
        try:
            with (
                store.replacing(target) as aside,
                gzip.open(packed) as content,
                aside.open("wb") as out,
            ):
                shutil.copyfileobj(content, out, 1 << 22)
        except (OSError, EOFError, zlib.error) as error:
            raise TaskError(
                f"{packed}: can't be unpacked ({error}); get it again: {task.where}"
            ) from None


BACH = Task(
    "bach",
    "BACH",
    replace(CLASSIFICATION, patience=1250),
    tuple(BACH_PREFIXES),
    read=load_bach,
    where=(
        "Zenodo, record 3632035, ICIAR2018_BACH_Challenge.zip "
        "(CC BY-NC-ND 4.0 as eva prints it); unpack it here"
    ),
    counts={"train": 268, "val": 132},
)
CRC = Task(
    "crc",
    "CRC-100K",
    replace(CLASSIFICATION, patience=7),
    ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM"),
    read=load_crc,
    where=(
        "Zenodo, record 1214456, NCT-CRC-HE-100K.zip and CRC-VAL-HE-7K.zip "
        "(CC BY 4.0); unpack both here"
    ),
    counts={"train": 100_000, "val": 7_180},
)
MHIST = Task(
    "mhist",
    "MHIST",
    CLASSIFICATION,
    ("SSA", "HP"),
    read=load_mhist,
    where=(
        "the MHIST page of BMIRDS (Dartmouth), "
        "which asks for a Dataset Research Use Agreement and then mails links: "
        "annotations.csv, and images.zip to be unpacked as images/"
    ),
    counts={"train": 2_175, "val": 977},
)
PCAM = Task(
    "pcam",
    "PatchCamelyon",
    replace(CLASSIFICATION, patience=3),
    ("no_tumor", "tumor"),
    read=load_pcam,
    image=read_pcam_item,
    prepare=unpack_pcam,
    where=(
        "Zenodo, record 2546921, camelyonpatch_level_2_split_*.h5.gz (CC0); "
        "put all six here, as they are or unpacked"
    ),
    counts={"train": 262_144, "val": 32_768, "test": 32_768},
)
PCAM_10SHOT = replace(
    PCAM,
    name="pcam_10shot",
    title="PatchCamelyon, 10 shots",
    protocol=replace(
        CLASSIFICATION,
        n_runs=50,
        patience=125,
        epochs_a_validation=10,
        min_gain=1e-4,
        n_per_class=10,
    ),
    folder="pcam",
)
TASKS = (BACH, CRC, MHIST, PCAM, PCAM_10SHOT)
