"""Every label file as one table: a row an annotation, the centre in level-0 px, label 1 for the positive class.

Two forms are read. MIDOG's JSON (MIDOG 2021, 2022, ++ and the synthetic set): ``images`` and ``annotations``, where a box is
two corners [x1, y1, x2, y2], not COCO's corner and size; category 1 is the mitotic figure, 2 the look-alike. AMi-Br's CSV:
a row a patch image.
"""

import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore.config import Study

COLUMNS = (
    "patch_id",
    "slide_id",
    "case_id",
    "domain",
    "scanner",
    "label",
    "x_l0_px",
    "y_l0_px",
    "um_per_px",
    "votes",
    "file",
)
MIDOG_FILES = ("annotations.json", "MIDOG++.json", "MIDOGpp.json", "MIDOG2022_training*.json")
AMIBR_FILE = "AMI-BR.csv"
CATEGORIES = {1: 1, 2: 0}  # MIDOG's category -> label
MAX_OFF_SLIDE_PX = 25.0  # level-0 px from the slide's edge to a centre outside: half of MIDOG's box; real labels need 5

# MIDOG 2022's JSON doesn't name the tumour: its images come in blocks of ids (Aubreville et al. 2023, table 1).
MIDOG22_DOMAINS = (
    (1, 150, "human breast cancer"),
    (151, 194, "canine lung cancer"),
    (195, 249, "canine lymphoma"),
    (250, 299, "canine cutaneous mast cell tumor"),
    (300, 354, "human neuroendocrine tumor"),
    (355, 405, "human melanoma"),
)


class LabelError(ValueError):
    """A label file says something that can't be; the message names the file, the annotation or line, and the remedy."""


def load(study: Study, folder: str | Path, check_files: bool = True) -> pd.DataFrame:
    """The study's labels, one row an annotation, columns `COLUMNS`; ``patch_id`` counts the rows.

    ``um_per_px`` is NaN: it is known when slides are read. ``check_files`` False reads labels where there are no slides.
    Raises LabelError, with up to ten problems at once.
    """
    folder = Path(folder)
    file = label_file(study, folder)
    table = _amibr(file, check_files) if study.data.source == "amibr" else _midog(file, check_files)
    if table["label"].nunique() < 2:
        raise LabelError(f"{file}: every annotation is of one class; a study needs both")
    table.insert(0, "patch_id", np.arange(len(table), dtype=np.int64))
    return table.astype({"label": np.int8, "x_l0_px": float, "y_l0_px": float, "um_per_px": float})[list(COLUMNS)]


def label_file(study: Study, folder: str | Path) -> Path:
    """The one label file of a data folder; raises LabelError where there is none, or more than one."""
    patterns = (AMIBR_FILE,) if study.data.source == "amibr" else MIDOG_FILES
    found = sorted(file for pattern in patterns for file in Path(folder).glob(pattern))
    if len(found) == 1:
        return found[0]
    if not found:
        raise LabelError(f"{folder}: no label file; expected one of {', '.join(patterns)} (source {study.data.source!r})")
    raise LabelError(f"{folder}: more than one label file: {', '.join(f.name for f in found)}; keep the one that is meant")


def _refuse(file: Path, problems: list[str], remedy: str) -> None:
    """Raise one LabelError for all ``problems``, the first ten in full."""
    if problems:
        more = f"\n  ... and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise LabelError(f"{file}: {remedy}\n  " + "\n  ".join(problems[:10]) + more)


def _midog(file: Path, check_files: bool) -> pd.DataFrame:
    """MIDOG's JSON, without ``patch_id``."""
    images, annotations = _read_midog(file)
    rows, problems, seen = [], [], set()
    for annotation in annotations:
        name = f"annotation {annotation.get('id')!r}"
        image = images.get(annotation.get("image_id"))
        if annotation.get("id") in seen:
            problems.append(f"{name}: this id stands there twice")
        elif image is None:
            problems.append(f"{name}: its image {annotation.get('image_id')!r} is not among the images")
        elif problem := _midog_problem(annotation, image):
            problems.append(f"{name} on {image['file_name']}: {problem}")
        else:
            x1, y1, x2, y2 = annotation["bbox"]
            rows.append(
                {
                    "slide_id": image["file_name"],
                    "case_id": str(image.get("case_id", Path(image["file_name"]).stem)),
                    "domain": image["tumor_type"],
                    "scanner": image.get("scanner", ""),
                    "label": CATEGORIES[annotation["category_id"]],
                    "x_l0_px": (x1 + x2) / 2,
                    "y_l0_px": (y1 + y2) / 2,
                    "um_per_px": math.nan,
                    "votes": np.array([CATEGORIES[vote] for vote in annotation.get("labels", [])], dtype=np.int8),
                }
            )
        seen.add(annotation.get("id"))
    _refuse(file, problems, "annotations that can't be used; correct or remove them:")
    if not rows:
        raise LabelError(f"{file}: no annotation in it; a study needs some of both classes")
    table = pd.DataFrame(rows)
    places, missing = {}, []
    for slide_id in table["slide_id"].unique():
        candidates = (f"images/{slide_id}", slide_id)
        places[slide_id] = next((place for place in candidates if (file.parent / place).is_file()), slide_id)
        if not (file.parent / places[slide_id]).is_file():
            missing.append(f"{slide_id}: {(table['slide_id'] == slide_id).sum()} annotations")
    if check_files:
        _refuse(file, missing, f"slides that are neither in {file.parent} nor in {file.parent / 'images'}; fetch them:")
    return table.assign(file=table["slide_id"].map(places))


def _read_midog(file: Path) -> tuple[dict[object, dict], list[dict]]:
    """Images by id, each with its domain, and annotations of a MIDOG JSON."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        images, annotations = list(content["images"]), list(content["annotations"])
        if not all(isinstance(entry, dict) for entry in (*images, *annotations)):
            raise TypeError("an entry is not an object")
    except (ValueError, TypeError, KeyError) as error:
        raise LabelError(
            f"{file}: not MIDOG's JSON with 'images' and 'annotations' ({type(error).__name__}: {error}); fetch the file again"
        ) from None
    for category in content.get("categories", []):
        if category.get("id") == 1 and not str(category.get("name")).lower().startswith("mitotic"):
            raise LabelError(
                f"{file}: category 1 is called {category.get('name')!r}; it must be the mitotic figure, 2 the rest"
            )
    problems, by_id, names = [], {}, set()
    for image in images:
        name = image.get("file_name")
        image = {**image, "tumor_type": image.get("tumor_type") or _midog22_domain(file, image)}
        if image.get("id") in by_id or name in names:
            problems.append(f"image {image.get('id')!r}, {name!r}: this id or name stands there twice")
        elif not name or Path(name).name != name:
            problems.append(f"image {image.get('id')!r}: file_name is {name!r}, expected a file's name without a folder")
        elif not all(isinstance(image.get(side), int) and image[side] > 0 for side in ("width", "height")):
            problems.append(
                f"image {name!r}: width and height are {image.get('width')!r} and {image.get('height')!r}, no size in px"
            )
        elif not image["tumor_type"]:
            problems.append(f"image {name!r}: no tumor_type, which is the domain")
        by_id[image.get("id")] = image
        names.add(name)
    _refuse(file, problems, "images that can't be used; correct them:")
    return by_id, annotations


def _midog22_domain(file: Path, image: dict) -> str | None:
    """Domain of an image of MIDOG 2022, by its id; None for any other file."""
    if not file.match("MIDOG2022_training*.json") or not isinstance(image.get("id"), int):
        return None
    return next((domain for first, last, domain in MIDOG22_DOMAINS if first <= image["id"] <= last), None)


def _midog_problem(annotation: dict, image: dict) -> str | None:
    """What is wrong with one annotation of a MIDOG JSON, None if nothing."""
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) and math.isfinite(v) for v in box):
        return f"bbox is {box!r}, expected four finite numbers [x1, y1, x2, y2]"
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        return f"bbox {box} isn't two corners [x1, y1, x2, y2] with x2 > x1 and y2 > y1 (is it COCO's [x, y, width, height]?)"
    if annotation.get("category_id") not in CATEGORIES:
        return f"category_id is {annotation.get('category_id')!r}, expected 1 (mitotic figure) or 2 (look-alike)"
    votes = annotation.get("labels", [])
    if not isinstance(votes, list) or not all(vote in (1, 2) for vote in votes):
        return f"labels (the raters' votes) are {votes!r}, expected a list of 1 and 2"
    x, y, width, height = (x1 + x2) / 2, (y1 + y2) / 2, image["width"], image["height"]
    if max(-x, -y, x - width, y - height) > MAX_OFF_SLIDE_PX:
        return f"its centre ({x:g}, {y:g}) lies more than {MAX_OFF_SLIDE_PX:g} px off the slide of {width} x {height} px"
    return None


def _amibr(file: Path, check_files: bool) -> pd.DataFrame:
    """AMi-Br's CSV, without ``patch_id``; a patch's folder must say what its line says."""
    flags = [f"expert{i}_atypical" for i in (1, 2, 3)] + ["majority_atypical"]
    needed = ["slide", "dataset", "uid", "x", "y", *flags]
    try:
        rows = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise LabelError(f"{file}: not a CSV file ({error}); fetch it again") from None
    missing = [column for column in needed if column not in rows]
    if missing:
        raise LabelError(f"{file}: without the columns {missing}; fetch AMi-Br's {AMIBR_FILE} again")
    if rows.empty:
        raise LabelError(f"{file}: no line below the header; fetch the file again")
    lines = rows.index + 2  # the header is line 1
    problems = []
    for line, row in zip(lines, rows[needed].to_dict("records"), strict=True):
        bad = [f"{key} is {row[key]!r}, expected True or False" for key in flags if row[key] not in ("True", "False")]
        bad += [f"{key} is {row[key]!r}, expected a number" for key in ("x", "y") if not _finite(row[key])]
        bad += [f"{key} is empty" for key in ("slide", "dataset", "uid") if not row[key]]
        problems += [f"line {line}: {problem}" for problem in bad]
    twice = rows.duplicated(["dataset", "uid"])
    problems += [
        f"line {line}: {d} uid {u} stands there twice"
        for line, d, u in zip(lines[twice], rows.dataset[twice], rows.uid[twice], strict=True)
    ]
    _refuse(file, problems, "lines that can't be used; correct or remove them:")
    atypical = rows[flags] == "True"
    label = atypical["majority_atypical"].astype(np.int8)
    folders = label.map({0: "normal", 1: "atypical"})
    files = "patches/" + folders + "/" + rows["dataset"] + "_" + rows["uid"] + ".png"
    if check_files:
        _check_patches(file, lines, files)
    slides = rows["dataset"] + "/" + rows["slide"]
    return pd.DataFrame(
        {
            "slide_id": slides,
            "case_id": slides.map(lambda slide: re.sub(r"(_stitched\d+)?\.\w+$", "", slide)),
            "domain": rows["dataset"],
            "scanner": "",
            "label": label,
            "x_l0_px": rows["x"].astype(float),
            "y_l0_px": rows["y"].astype(float),
            "um_per_px": math.nan,
            "votes": list(atypical[flags[:3]].to_numpy(np.int8)),
            "file": files,
        }
    )


def _finite(text: str) -> bool:
    """Whether ``text`` is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _check_patches(file: Path, lines: pd.Index, files: pd.Series) -> None:
    """Refuse a CSV and patch folders that don't name the same patches with the same labels."""
    there = {path.relative_to(file.parent).as_posix() for path in (file.parent / "patches").glob("*/*.png")}
    other = {"normal": "atypical", "atypical": "normal"}
    problems = []
    for line, name in zip(lines, files, strict=True):
        _, folder, image = name.split("/")
        if name not in there:
            elsewhere = f"patches/{other[folder]}/{image}"
            found = (
                f"it lies in {other[folder]}, but majority_atypical says {folder}" if elsewhere in there else "it is missing"
            )
            problems.append(f"line {line}: {name}: {found}")
    problems += [f"{name}: no line of the table" for name in sorted(there - set(files))]
    _refuse(file, problems, "table and patch images don't agree; fetch both again:")
