"""Every label file as one table: a row an annotation, the centre in level-0 px, label 1 for the positive class.

The rule for places, one for every file and for training and test alike: a box is its two corners [x1, y1, x2, y2], never
COCO's corner and size; the centre is their mean, half a px is kept, and so is a centre off the slide, by up to
MAX_OFF_SLIDE_PX. Places count from OpenSlide's corner of level 0 unless the study says ``data: {origin: scanned_area}``, as
QuPath counts on slides whose scanned area lies within a larger plane; that corner is known when slides are read. What a patch
shows beyond the slide's border is the study's ``patches.at_border``.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from mfcore.data.labels import (
    amibr as labels_amibr,
    csv as labels_csv,
    editions as labels_editions,
    midog as labels_midog,
    sqlite as labels_sqlite,
)
from mfcore.data.labels.schema import COLUMNS, MAX_OFF_SLIDE_PX, LabelError, refuse
from mfcore.data.slides.openslide import NO_VOLUME, series_of
from mfcore.study.config import Study

__all__ = ["COLUMNS", "MAX_OFF_SLIDE_PX", "LabelError", "files_of", "load", "published_note"]

CASES_FILE = "datasets_xvalidation.csv"
MIDOGPP = ("MIDOG++.json", "MIDOGpp.json")
# The file a source's labels are read from: the first of these that is there; files that match one pattern must be one.
MAIN_FILES = {
    "synthetic": ("annotations.json",),
    "midog": ("annotations.json", "MIDOG*.json"),
    "midog22": ("MIDOG2022_training*.json", "MIDOG2022_training*.sqlite", "MIDOG2022_training*.csv"),
    "midogpp": (*MIDOGPP, "MIDOGpp.sqlite", "MIDOGpp.csv"),
    "ccmct": (
        "MITOS_WSI_CCMCT_ODAEL.sqlite",
        "databases/MITOS_WSI_CCMCT_ODAEL.sqlite",
        "MITOS_WSI_CCMCT_ODAEL_binary_labels.csv",
    ),
    "amibr": (labels_amibr.FILE,),
    "csv": ("annotations.csv", "*.csv"),
}
FETCHED = ("midog22", "midogpp", "ccmct", "amibr")
SLIDE_FOLDERS = ("images", "", "WSI")
EDITIONS = (".tiff", ".tif", ".png")  # MIDOG's images are published in several formats, under one name


def files_of(study: Study, folder: str | Path) -> tuple[Path, ...]:
    """Every label file that `load` reads, the main one first; raises LabelError where there is none, or which is unclear."""
    folder, source = Path(folder), study.data.source
    for pattern in MAIN_FILES[source]:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise LabelError(f"{folder}: more than one label file: {names}; keep the one that is meant")
        if found:
            break
    else:
        fetch = f"; fetch it: make data STUDY={study.name}" if source in FETCHED else ""
        raise LabelError(f"{folder}: no label file; expected one of {', '.join(MAIN_FILES[source])} (source {source!r}){fetch}")
    cases = [folder / CASES_FILE] if source in ("midog22", "midogpp") and (folder / CASES_FILE).is_file() else []
    if source != "midog22":
        return (found[0], *cases)
    other = [folder / name for name in MIDOGPP if (folder / name).is_file()][:1]
    return (found[0], *other, *cases) if other else (found[0],)  # its cases are MIDOG++'s, matched by MIDOG++'s labels


def load(study: Study, folder: str | Path, check_files: bool = True) -> pd.DataFrame:
    """The study's labels, one row an annotation, columns `COLUMNS`; ``patch_id`` counts the rows.

    ``um_per_px`` is NaN: it is known when slides are read. ``votes`` has a rater's vote each, int8, 1 positive, and none
    where they aren't published; ``official_split`` the authors' own ("train", "val", "test" or empty); ``scanner``,
    ``lab`` and ``species`` are empty where unknown. ``check_files`` False reads labels where there are no slides.
    Raises LabelError, with up to ten problems at once.
    """
    folder = Path(folder)
    main, *beside = files_of(study, folder)
    table = _read(study, main, beside, check_files)
    for column in ("scanner", "lab", "species", "official_split"):
        if column not in table:
            table[column] = ""
    if "votes" not in table:
        table["votes"] = [np.empty(0, dtype=np.int8)] * len(table)
    if "file" not in table:
        suffixes = EDITIONS if study.data.source in ("midog22", "midogpp") else ()
        names = table.get("file_name", table["slide_id"])
        table["file"] = _files(main, folder, names, suffixes, check_files)
    if table["label"].nunique() < 2:
        raise LabelError(f"{main}: every annotation is of one class; a study needs both")
    table.insert(0, "patch_id", np.arange(len(table), dtype=np.int64))
    types = {"label": np.int8, "x_l0_px": float, "y_l0_px": float, "um_per_px": float}
    return table.assign(um_per_px=np.nan).astype(types)[list(COLUMNS)]


def _read(study: Study, main: Path, beside: list[Path], check_files: bool) -> pd.DataFrame:
    """The rows of a source's label file, with what the files beside it say."""
    source = study.data.source
    if source == "amibr":
        return labels_amibr.read(main, check_files)
    if source == "csv":
        return labels_csv.read(main, study.data.label_values)
    if source in ("synthetic", "midog"):
        return labels_midog.read_json(main)
    if source == "ccmct":
        if main.suffix == ".csv":
            return labels_sqlite.as_ccmct(labels_csv.read_as_released(main, ("0", "1")))
        return labels_sqlite.as_ccmct(labels_sqlite.read(main, positive=2, negative=7, left_out=(1, 3)))
    if source == "midogpp":
        return labels_midog.as_midogpp(_read_midog(main, ("2", "1")), main, next(iter(beside), None))
    table = labels_midog.as_midog22(_read_midog(main, ("0", "1")), main)
    if beside:
        cases = next((file for file in beside if file.name == CASES_FILE), None)
        table = labels_editions.carry(
            table, labels_midog.as_midogpp(_read_midog(beside[0], ("2", "1")), beside[0], cases), main
        )
    return table


def _read_midog(file: Path, label_values: tuple[str, str]) -> pd.DataFrame:
    """A MIDOG label file of any of its forms; ``label_values``: how its CSV writes look-alike and mitotic figure."""
    if file.suffix == ".csv":
        return labels_csv.read_as_released(file, label_values)
    if file.suffix == ".sqlite":
        return labels_sqlite.read(file, positive=1, negative=2)
    return labels_midog.read_json(file, needs_domain=False)


def _files(main: Path, folder: Path, names: pd.Series, suffixes: tuple[str, ...], check_files: bool) -> pd.Series:
    """Where each row's slide, a file of that name, lies, relative to ``folder``; raises LabelError for missing ones."""
    places, missing = {}, []
    for name, n in names.value_counts(sort=False).items():
        alike = [name, *(Path(name).stem + suffix for suffix in suffixes)]
        candidates = [f"{base}/{file}".lstrip("/") for file in alike for base in SLIDE_FOLDERS]
        places[name] = next((place for place in candidates if (folder / place).is_file()), name)
        if not (folder / places[name]).is_file():
            missing.append(f"{name}: {n} annotations")
    if check_files:
        refuse(main, missing, f"slides that are neither in {folder} nor in its images/ or WSI/; put them there:")
        refuse(main, _parts_of_slides(folder, places), "files that are no slides by themselves; name one file a DICOM series:")
    return names.map(places)


def _parts_of_slides(folder: Path, places: dict[str, str]) -> list[str]:
    """Which files belong to a slide that another file stands for, or show no tissue of it."""
    problems, first = [], {}
    for name, place in places.items():
        series, kind = series_of(folder / place) or (name, "")
        if kind in NO_VOLUME:
            problems.append(f"{name}: the {kind.lower()} of a slide")
        elif first.setdefault(series, name) != name:
            problems.append(f"{name}: the slide of {first[series]}, series {series}")
    return problems


def published_note(study: Study, table: pd.DataFrame) -> str:
    """What the supplement must say of published counts that the label file contradicts; empty where there is nothing."""
    if study.data.source != "midog22":
        return ""
    n_positive = int(table["label"].sum())
    note = (
        f"Ganz et al. 2024 print MIDOG 2022's two counts the wrong way round: these labels have {n_positive:,} mitotic figures "
        f"and {len(table) - n_positive:,} look-alikes."
    )
    unmatched = table.loc[table["votes"].map(len) == 0, "slide_id"].value_counts(sort=False)
    if not 0 < unmatched.sum() < len(table):
        return note
    names = [f"{slide} ({n})" for slide, n in unmatched.items()]
    more = f" and {len(names) - 10} more slides" if len(names) > 10 else ""
    return f"{note} Not in MIDOG++, and so without raters' votes, are annotations of {', '.join(names[:10])}{more}."
