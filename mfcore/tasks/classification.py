"""Patch classification tasks in the form their authors publish them, with kaiko-ai/eva's splits,
and three sets of natural images.

Facts of eva's documentation and data-set classes (April 2026). What eva calls "val" is "val" here;
MHIST's official test split, by which eva also selects, is "val" too, so that every task has the
split that selects under that name. So is the test split of the natural images.
"""

import gzip
import re
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pandas as pd

from mfcore import store
from mfcore.tasks.task import CLASSIFICATION, Task, TaskError, read_image, whole_images

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10 as Reader

BACH_PHOTOS = "ICIAR2018_BACH_Challenge/Photos"
# of the files' names, by class
BACH_PREFIXES = {"Benign": "b", "InSitu": "is", "Invasive": "iv", "Normal": "n"}
BACH_PER_CLASS = 100
BACH_VAL = ((41, 59), (60, 90), (139, 169), (240, 258), (260, 273), (345, 368))
"""Positions, from and up to, that eva validates on, among the 400 photos by class and name."""
CRC_FOLDERS = {"train": "NCT-CRC-HE-100K", "val": "CRC-VAL-HE-7K"}
MHIST_COLUMNS = ("Image Name", "Majority Vote Label", "Partition")
PCAM_SPLITS = {"train": "train", "val": "valid", "test": "test"}  # ours, and in the files' names
OFFICIAL = {"train": "train", "val": "test"}  # ours, and torchvision's
CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
FOOD101_CLASSES = """
apple_pie baby_back_ribs baklava beef_carpaccio beef_tartare beet_salad beignets bibimbap
bread_pudding breakfast_burrito bruschetta caesar_salad cannoli caprese_salad carrot_cake ceviche
cheese_plate cheesecake chicken_curry chicken_quesadilla chicken_wings chocolate_cake
chocolate_mousse churros clam_chowder club_sandwich crab_cakes creme_brulee croque_madame cup_cakes
deviled_eggs donuts dumplings edamame eggs_benedict escargots falafel filet_mignon fish_and_chips
foie_gras french_fries french_onion_soup french_toast fried_calamari fried_rice frozen_yogurt
garlic_bread gnocchi greek_salad grilled_cheese_sandwich grilled_salmon guacamole gyoza hamburger
hot_and_sour_soup hot_dog huevos_rancheros hummus ice_cream lasagna lobster_bisque
lobster_roll_sandwich macaroni_and_cheese macarons miso_soup mussels nachos omelette onion_rings
oysters pad_thai paella pancakes panna_cotta peking_duck pho pizza pork_chop poutine prime_rib
pulled_pork_sandwich ramen ravioli red_velvet_cake risotto samosa sashimi scallops seaweed_salad
shrimp_and_grits spaghetti_bolognese spaghetti_carbonara spring_rolls steak strawberry_shortcake
sushi tacos takoyaki tiramisu tuna_tartare waffles
"""


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
        if not re.fullmatch(rf"{prefix}(0\d\d|100)", path.stem):
            expected = f"{prefix}001.tif to {prefix}100.tif, by which eva splits"
            problems.append(f"{path.relative_to(folder)}: expected {expected}")
            continue
        position = label * BACH_PER_CLASS + int(path.stem[-3:]) - 1
        is_val = any(first <= position < end for first, end in BACH_VAL)
        rows.append((path, label, "val" if is_val else "train"))
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
    meta, ids = folder / f"{stem}_meta.csv", [f"{split}_{i}" for i in range(n)]
    slides = pd.read_csv(meta, dtype=str).get("wsi", "") if meta.is_file() else ""
    rows = {"item_id": ids, "split": split, "label": labels.astype(np.int64), "group": slides}
    rows |= {"file": f"{stem}_x.h5", "width_px": width, "height_px": height}
    return pd.DataFrame(rows)


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


def load_cifar(name: str, task: Task, folder: Path) -> pd.DataFrame:
    """CIFAR-10 or CIFAR-100 in the layout of torchvision's reader ``name``; the official splits.

    Images of 32 px. The test split is "val" here. The files are pickles: torchvision reads only
    those that have the published MD5. Raises TaskError.
    """
    try:
        readers = {split: _cifar(name, folder, split) for split in OFFICIAL}
    except (RuntimeError, OSError) as error:
        task.refuse(folder, [f"what torchvision's {name} reads isn't there, or damaged ({error})"])
    tables = []
    for split, reader in readers.items():
        ids = [f"{split}_{i}" for i in range(len(reader))]
        rows = {"item_id": ids, "split": split, "label": np.asarray(reader.targets, np.int64)}
        tables.append(pd.DataFrame(rows | {"file": reader.base_folder}))
    return pd.concat(tables, ignore_index=True).assign(width_px=32, height_px=32)


def read_cifar_item(name: str, folder: Path, row: pd.Series) -> np.ndarray:
    """The pixels of a row of CIFAR's table, uint8 (32, 32, 3)."""
    return _cifar(name, folder, row["split"]).data[int(row["item_id"].rpartition("_")[2])].copy()


@lru_cache(maxsize=2)
def _cifar(name: str, folder: Path, split: str) -> "Reader":
    """torchvision's reader of a split, which holds all its images."""
    from torchvision import datasets

    return getattr(datasets, name)(folder, train=split == "train")


def load_food101(task: Task, folder: Path) -> pd.DataFrame:
    """Food-101 in the layout of torchvision's reader, ``food-101/{meta,images}``; official splits.

    Images of up to 512 px; of their sides the table has the first image's. The test split is "val"
    here. Raises TaskError, also where the classes of the test split have unequal numbers of images:
    balanced accuracy is top-1 accuracy where the numbers are equal.
    """
    from torchvision.datasets import Food101

    rows, problems = [], []
    for split, theirs in OFFICIAL.items():
        try:
            listed = Food101(folder, theirs, loader=Path)  # which opens no image
        except (RuntimeError, OSError, ValueError) as error:
            task.refuse(folder, [f"food-101/meta and food-101/images can't be read ({error})"])
        if tuple(listed.classes) != task.classes:
            problems.append(f"food-101/meta/{theirs}.json has other classes")
        rows += [(*listed[i], split) for i in range(len(listed))]
    n = pd.Series([label for _, label, split in rows if split == "val"]).value_counts()
    if n.nunique() > 1:
        problems.append(f"food-101/meta/test.json: {n.min()} to {n.max()} images a class")
    problems += [
        f"{path.relative_to(folder)}: not there" for path, *_ in rows if not path.is_file()
    ]
    task.refuse(folder, problems)
    return whole_images(folder, *zip(*rows, strict=True))


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
    replace(CLASSIFICATION, patience=278),
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
OURS = (
    "kaiko 2024 name this set (Fig. 5) and top-1 accuracy; eva has no such task, so that the"
    " protocol is eva's for classification of patches",
    "the test split also selects, as in eva's sets without a third split",
    "each class has as many test images, so that balanced accuracy is top-1 accuracy",
)
CIFAR10 = Task(
    "cifar10",
    "CIFAR-10",
    CLASSIFICATION,
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    read=partial(load_cifar, "CIFAR10"),
    image=partial(read_cifar_item, "CIFAR10"),
    where=(
        "cs.toronto.edu/~kriz/cifar.html, cifar-10-python.tar.gz (no licence stated); unpack it"
        " here as cifar-10-batches-py/"
    ),
    counts={"train": 50_000, "val": 10_000},
    unsettled=OURS,
)
CIFAR100 = replace(
    CIFAR10,
    name="cifar100",
    title="CIFAR-100",
    classes=tuple(CIFAR100_CLASSES.split()),
    read=partial(load_cifar, "CIFAR100"),
    image=partial(read_cifar_item, "CIFAR100"),
    where=(
        "cs.toronto.edu/~kriz/cifar.html, cifar-100-python.tar.gz (no licence stated); unpack it"
        " here as cifar-100-python/"
    ),
)
FOOD101 = Task(
    "food101",
    "Food-101",
    CLASSIFICATION,
    tuple(FOOD101_CLASSES.split()),
    read=load_food101,
    image=lambda folder, row: read_image(folder / row["file"]),
    where=(
        "data.vision.ee.ethz.ch/cvl/datasets_extra/food-101, food-101.tar.gz (images of"
        " foodspotting.com, for research); unpack it here as food-101/"
    ),
    counts={"train": 75_750, "val": 25_250},
    unsettled=OURS,
)
TASKS = (BACH, CRC, MHIST, PCAM, PCAM_10SHOT, CIFAR10, CIFAR100, FOOD101)
