"""Labels of patch images: a folder a class, or a table with a line an image.

FOLDER/CLASS/anything/a.png            a folder a class
FOLDER/DOMAIN/CLASS/anything/a.png     the same for several domains
FOLDER/train/CLASS/anything/a.png      the same, divided by its publishers into train, val, test
FOLDER/images.csv                      file,label and what is known besides
"""

import warnings
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from mfcore.data.labels import csv
from mfcore.data.labels.schema import (
    REST,
    SPLITS,
    LabelError,
    as_classes,
    is_finite,
    plain,
    refuse,
)

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
NOT_READ = (".bmp", ".gif", ".jp2", ".webp")
REQUIRED = ("file", "label")
OF_A_SLIDE = ("case", "domain", "scanner", "lab", "species", "split")  # the same on all its lines
NUMBERS = ("x", "y", "um_per_px", "downsample")
OPTIONAL = ("slide", *OF_A_SLIDE, "votes", *NUMBERS)


def read(place: Path, label_values: tuple[str, ...], check_files: bool) -> pd.DataFrame:
    """The rows of a table of patch images, or of a folder with a folder a class.

    A table needs the columns REQUIRED; ``file`` is a path relative to the table. Where known:
    ``slide`` (else each image counts as a slide of its own), ``case`` (else each slide is one),
    ``domain``, ``scanner``, ``lab``, ``species``, ``split``, ``votes`` as in `csv.read`, ``x`` and
    ``y`` (the patch's centre on its slide, level-0 px), ``um_per_px`` (of the image), and
    ``downsample`` (level-0 px of the slide to a px of the image, 1 unless said).
    label_values: how class 0 and class 1 are written, in the table or as folders; labels that are
    all 0 or 1 are the classes 0 and 1. REST stands for all labels but the other class's.
    Raises LabelError with all lines, files or classes that can't be used.
    """
    rows = _of_folders(place, label_values) if place.is_dir() else _of_table(place)
    folder = place if place.is_dir() else place.parent
    if set(rows["label"]) <= {"0", "1"} and not set(label_values) & {"0", "1"}:
        label_values = ("0", "1")
    named = rows["label"].set_axis(rows["file"])
    rows["label"] = as_classes(place, named, label_values).to_numpy()
    if REST in label_values:
        votes = rows["votes"].map(csv.cast).set_axis(rows["file"]).explode().dropna()
        as_classes(place, votes, label_values)
        votes = [[v if v in label_values else REST for v in csv.cast(v_)] for v_ in rows["votes"]]
        rows["votes"] = ["/".join(cell) for cell in votes]
    refuse(
        place, _problems(rows, label_values), "lines that can't be used; correct or remove them:"
    )
    if check_files:
        missing = [f"line {n}: {f}" for n, f in rows["file"].items() if not (folder / f).is_file()]
        refuse(place, missing, f"images that are not below {folder}; put them there:")
    is_placed = rows["x"] != ""
    if is_placed.any() and (rows.loc[is_placed, "downsample"] == "").all():
        warnings.warn(
            f"{place}: x and y are level-0 px, and a px of an image is taken for one of them; where"
            " images are from a smaller level, say in a column downsample how many",
            stacklevel=2,
        )
    slides = rows["slide"].where(rows["slide"] != "", rows["file"])
    table = {
        "slide_id": slides,
        "case_id": rows["case"].where(rows["case"] != "", slides),
        "domain": rows["domain"].where(rows["domain"] != "", csv.ONE_DOMAIN),
        **{name: rows[name] for name in ("scanner", "lab", "species", "file")},
        "label": rows["label"].map(label_values.index),
        "x_l0_px": pd.to_numeric(rows["x"]),
        "y_l0_px": pd.to_numeric(rows["y"]),
        "um_per_px": pd.to_numeric(rows["um_per_px"]),
        "downsample": pd.to_numeric(rows["downsample"]),
        "votes": [
            np.array([label_values.index(vote) for vote in csv.cast(cell)], dtype=np.int8)
            for cell in rows["votes"]
        ],
        "official_split": rows["split"],
    }
    return pd.DataFrame(table).reset_index(drop=True)


def _of_folders(folder: Path, label_values: tuple[str, ...]) -> pd.DataFrame:
    """A row an image below a folder, its label by the name of its class's folder; the index counts.

    The first level holds the classes; where none of its folders is named as a class is, the first
    level holds domains, or train, val and test, and the second holds the classes.
    """
    images = _images(folder)
    parts = [file.relative_to(folder).parts for file in images]
    values = {plain(value) for value in label_values}
    at_first = {names[0] for names in parts if len(names) > 1 and plain(names[0]) in values}
    at_second = {
        f"{names[0]}/{names[1]}"
        for names in parts
        if len(names) > 2 and names[0] not in at_first and plain(names[1]) in values
    }
    if at_first and at_second:
        raise LabelError(
            f"{folder}: folders of classes {sorted(at_first)} beside {sorted(at_second)[:10]} in"
            " folders of domains; move the images so that all classes lie in domains, or none"
        )
    has_domains = bool(at_second)
    level = 1 if has_domains else 0
    outside = ["/".join(names) for names in parts if len(names) < level + 2]
    if not images or len(outside) == len(images):
        raise LabelError(
            f"{folder}: neither a table (images.csv: {', '.join(REQUIRED)}) nor a folder a class"
            f" with images ({', '.join(SUFFIXES)}) in it"
        )
    refuse(folder, outside, "images that lie in no class's folder; move them:")
    rows = pd.DataFrame({"file": ["/".join(names) for names in parts]}, dtype=str)
    rows["label"] = [names[level] for names in parts]
    rows = rows.reindex(columns=[*REQUIRED, *OPTIONAL], fill_value="")
    if has_domains:
        firsts = pd.Series([names[0] for names in parts])
        as_split = firsts.str.lower().replace({"validation": "val", "valid": "val"})
        is_split = as_split.isin(SPLITS).all()
        rows["split" if is_split else "domain"] = as_split if is_split else firsts
    return rows


def _images(folder: Path) -> list[Path]:
    """The images below a folder, without what is hidden; raises LabelError for what isn't read."""
    found = [
        file
        for file in sorted(folder.rglob("*"))
        if not any(p.startswith(".") or p == "__MACOSX" for p in file.relative_to(folder).parts)
    ]
    links = [str(f.relative_to(folder)) for f in found if f.is_symlink() and f.is_dir()]
    refuse(folder, links, "links to folders, which aren't followed; put the folders there:")
    others = [str(f.relative_to(folder)) for f in found if f.suffix.lower() in NOT_READ]
    remedy = f"images of other kinds than {', '.join(SUFFIXES)}; save them as PNG, or move them:"
    refuse(folder, others, remedy)
    return [file for file in found if file.suffix.lower() in SUFFIXES]


def _of_table(file: Path) -> pd.DataFrame:
    rows = csv.lines(file)
    missing = [name for name in REQUIRED if name not in rows]
    unknown = [name for name in rows if name not in REQUIRED + OPTIONAL]
    if missing or unknown:
        raise LabelError(
            f"{file}: missing columns {missing}, unknown columns {unknown}; needed are"
            f" {list(REQUIRED)}, and there may be {list(OPTIONAL)}; rename or remove the others"
        )
    rows["file"] = [str(PurePosixPath(name)) if name else "" for name in rows["file"]]
    return rows.reindex(columns=[*REQUIRED, *OPTIONAL], fill_value="")


def _problems(rows: pd.DataFrame, label_values: tuple[str, ...]) -> list[str]:
    """What is wrong with a table of images, line by line."""
    problems: list[str] = []
    line_of: dict[str, int] = {}
    first_of: dict[str, tuple[int, dict]] = {}
    has_domains = (rows["domain"] != "").any()
    for line, row in zip(rows.index, rows.to_dict("records"), strict=True):
        wrong = csv.wrong_values(row, label_values, has_domains)
        wrong += [
            f"{key} is {row[key]!r}, expected a number"
            for key in NUMBERS
            if row[key] and not is_finite(row[key])
        ]
        wrong += [
            f"{key} is {row[key]}, expected more than 0"
            for key in NUMBERS[2:]
            if is_finite(row[key]) and float(row[key]) <= 0
        ]
        path = PurePosixPath(row["file"])
        if not row["file"] or path.is_absolute() or ".." in path.parts or "\\" in row["file"]:
            wrong.append(
                f"file is {row['file']!r}, expected a path below the table's folder, divided by /"
            )
        if line_of.setdefault(row["file"], line) != line:
            wrong.append(f"this image stands there twice, first on line {line_of[row['file']]}")
        first_line, first = first_of.setdefault(row["slide"] or row["file"], (line, row))
        wrong += [
            f"{key} is {row[key]!r}, on line {first_line} the same slide's is {first[key]!r}"
            for key in OF_A_SLIDE
            if row[key] != first[key]
        ]
        problems += [f"line {line}: {problem}" for problem in wrong]
    return problems
