"""Labels of patch images: a folder a class, or a table with a line an image.

FOLDER/CLASS/anything/a.png            a folder a class
FOLDER/DOMAIN/CLASS/anything/a.png     the same for several domains
FOLDER/train/CLASS/anything/a.png      the same, divided by its publishers into train, val, test
FOLDER/images.csv                      file,label and what is known besides
"""

from pathlib import Path, PurePosixPath

import pandas as pd

from mfcore.data.labels import csv
from mfcore.data.labels.schema import SPLITS, LabelError, plain, refuse, say

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
NOT_READ = (".bmp", ".gif", ".jp2", ".webp")
REQUIRED = ("file", "label")
OPTIONAL = (*csv.OPTIONAL, "x", "y", *csv.SCALES)


def read(files: tuple[Path, ...], label_values: tuple[str, ...]) -> pd.DataFrame:
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
    place = files[0]
    if place.is_dir():
        rows = _of_folders(place, label_values)
    else:
        rows = csv.lines(place, REQUIRED, OPTIONAL)
    if set(rows["label"]) <= {"0", "1"} and not set(label_values) & {"0", "1"}:
        label_values = ("0", "1")
    rows["file"] = [str(PurePosixPath(name)) for name in rows["file"]]
    expected = "file is {file!r}, expected a path below the table's folder, divided by /"
    problems = say(rows, rows["file"].map(_is_elsewhere), expected)
    problems += say(rows, rows["file"].duplicated(), "{file} stands there twice")
    refuse(place, problems, csv.LINES)
    rows = csv.classes(place, csv.numbers(place, rows), label_values)
    slides = rows["slide"].mask(rows["slide"] == "", rows["file"])
    return rows.assign(slide=slides, case=rows["case"].mask(rows["case"] == "", slides))


def _is_elsewhere(name: str) -> bool:
    """Whether a path leads to no file below its folder, on any system."""
    path = PurePosixPath(name)
    return not path.name or path.is_absolute() or ".." in path.parts or "\\" in name


def _of_folders(folder: Path, label_values: tuple[str, ...]) -> pd.DataFrame:
    """A row an image below a folder, its label by the name of its class's folder.

    The first level holds the classes; where none of its folders is named as a class is, the first
    level holds domains, or train, val and test, and the second holds the classes.
    """
    parts = _images(folder)
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
    level = int(bool(at_second))
    outside = ["/".join(names) for names in parts if len(names) < level + 2]
    if len(outside) == len(parts):
        raise LabelError(
            f"{folder}: neither a table (images.csv: {', '.join(REQUIRED)}) nor a folder a class"
            f" with images ({', '.join(SUFFIXES)}) in it"
        )
    refuse(folder, outside, "images that lie in no class's folder; move them:")
    rows = pd.DataFrame(
        {"file": ["/".join(names) for names in parts], "label": [names[level] for names in parts]}
    )
    rows = rows.reindex(columns=[*REQUIRED, *OPTIONAL], fill_value="").set_axis(rows["file"])
    if level:
        firsts = pd.Series([names[0] for names in parts], index=rows.index)
        as_split = firsts.str.lower().replace({"validation": "val", "valid": "val"})
        is_split = as_split.isin(SPLITS).all()
        rows["split" if is_split else "domain"] = as_split if is_split else firsts
    return rows


def _images(folder: Path) -> list[tuple[str, ...]]:
    """The parts of the paths of all images below a folder, without what is hidden; raises
    LabelError for what isn't read.
    """
    found = [(file, file.relative_to(folder)) for file in sorted(folder.rglob("*"))]
    found = [
        (file, name)
        for file, name in found
        if not any(part.startswith(".") or part == "__MACOSX" for part in name.parts)
    ]
    problems = [
        f"{name}: a link to a folder isn't followed; put the folder there"
        for file, name in found
        if file.is_symlink() and file.is_dir()
    ]
    problems += [
        f"{name}: save it as PNG, or move it"
        for _, name in found
        if name.suffix.lower() in NOT_READ
    ]
    refuse(folder, problems, "images that can't be read:")
    return [name.parts for _, name in found if name.suffix.lower() in SUFFIXES]
