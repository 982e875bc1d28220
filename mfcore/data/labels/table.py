"""Every label file as one table: a row an annotation, the centre in level-0 px, label 1 for the
positive class.

The rule for places, one for every file and for training and test alike: a box is its two corners
[x1, y1, x2, y2], never COCO's corner and size; the centre is their mean, half a px is kept, and so
is a centre off the slide, by up to MAX_OFF_SLIDE_PX. Places count from OpenSlide's corner of level
0 unless the study says ``data: {origin: scanned_area}``, as QuPath counts on slides whose scanned
area lies within a larger plane; that corner is known when slides are read. What a patch shows
beyond the slide's border is the study's ``patches.at_border``.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from mfcore.data.labels import csv
from mfcore.data.labels.schema import COLUMNS, MAX_OFF_SLIDE_PX, LabelError, is_finite, refuse
from mfcore.data.labels.source import Source
from mfcore.data.slides.openslide import NO_VOLUME, series_of
from mfcore.store.options import nearest

__all__ = ["COLUMNS", "MAX_OFF_SLIDE_PX", "LabelError", "files_of", "load"]

SLIDE_FOLDERS = ("images", "", "WSI")


def files_of(source: Source, folder: str | Path) -> tuple[Path, ...]:
    """Every label file that `load` reads, the main one first; raises LabelError where there is
    none, or which is unclear.

    Empty where images lie in a folder a class, without a label file.
    """
    folder = Path(folder)
    for pattern in source.main_files:
        found = sorted(f for f in folder.glob(pattern) if not f.name.startswith("."))
        if len(found) > 1 and not source.has_file_per_slide:
            names = ", ".join(file.name for file in found)
            raise LabelError(
                f"{folder}: more than one label file: {names}; keep the one that is meant"
            )
        if found:
            break
    else:
        if source.has_class_folders and folder.is_dir():
            return ()
        fetch = "; it is published: make data fetches it" if source.is_published else ""
        expected = f"expected one of {', '.join(source.main_files)} (source {source.name!r})"
        raise LabelError(f"{folder}: no label file; {expected}{fetch}")
    for names in source.beside:
        there = [folder / name for name in names if (folder / name).is_file()][:1]
        if not there:
            break
        found += there
    return tuple(found)


def load(
    source: Source,
    folder: str | Path,
    label_values: tuple[str, ...] = ("0", "1"),
    check_files: bool = True,
    slides: tuple[str, ...] = (),
) -> pd.DataFrame:
    """The labels of a data source, one row an annotation, columns `COLUMNS`; ``patch_id`` counts
    the rows.

    label_values: how a table or folders (sources "csv", "images") write class 0 and class 1.
    ``um_per_px`` is NaN for slides: it is known when slides are read. ``votes`` has a rater's vote
    each, int8, 1 positive, and none where they aren't published; ``official_split`` the authors'
    own ("train", "val", "test" or empty); ``scanner``, ``lab`` and ``species`` are empty where
    unknown. ``downsample`` is there where a table of images has it, NaN where a line has none.
    ``check_files`` False reads labels where there are no slides. ``slides``: names of the
    slides to keep, empty for all; ``attrs["left_out"]`` counts the others. Raises LabelError, with
    up to ten problems at once.
    """
    folder = Path(folder)
    files = files_of(source, folder) or (folder,)
    main, table = files[0], source.read(files, label_values, check_files)
    if slides:
        table = _of_slides(main, table, source, slides)
    for column in ("scanner", "lab", "species", "official_split"):
        if column not in table:
            table[column] = ""
    if "um_per_px" not in table:
        table["um_per_px"] = np.nan
    if "votes" not in table:
        table["votes"] = [np.empty(0, dtype=np.int8)] * len(table)
    if "file" not in table:
        names = table.get("file_name", table["slide_id"])
        table["file"] = _files(main, folder, names, source.editions, check_files)
    if table["label"].nunique() < 2:
        raise LabelError(f"{main}: every annotation is of one class; a study needs both")
    table.insert(0, "patch_id", np.arange(len(table), dtype=np.int64))
    types = {"label": np.int8, "x_l0_px": float, "y_l0_px": float, "um_per_px": float}
    is_said = "downsample" in table and table["downsample"].notna().any()
    columns = [*COLUMNS, *(["downsample"] if is_said else [])]
    return table.astype(types)[columns]


def _of_slides(
    main: Path, table: pd.DataFrame, source: Source, slides: tuple[str, ...]
) -> pd.DataFrame:
    """The rows of the slides named, ``attrs["left_out"]``: n_slides, n_positive, n_negative of the
    others; raises LabelError for names of no slide.
    """
    names, known = table["slide_id"].map(source.bare), table["slide_id"].unique()
    unknown = [name for name in slides if source.bare(name) not in set(names)]
    problems = [f"{name}{nearest(name, known)}" for name in unknown]
    refuse(main, problems, "data.slides names slides that have no annotation here; correct them:")
    is_kept = names.isin([source.bare(name) for name in slides])
    others, kept = table[~is_kept], table[is_kept].reset_index(drop=True)
    n_positive = int(others["label"].sum())
    kept.attrs["left_out"] = {
        "n_slides": others["slide_id"].nunique(),
        "n_positive": n_positive,
        "n_negative": len(others) - n_positive,
    }
    return kept


def load_candidates(source: Source, file: Path, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of a table of unlabelled candidates, and the same as a label table of class 0.

    Needed: ``file``, and of slides ``x`` and ``y``; where known: ``slide``, ``domain``,
    ``scanner``, ``um_per_px`` (of images, and of slides that don't state theirs). Raises LabelError
    with the lines that can't be used.
    """
    rows = csv.lines(file)
    needed = ["file", "x", "y"] if source.has_slides else ["file"]
    if missing := [name for name in needed if name not in rows]:
        raise LabelError(f"{file}: without the columns {missing}; name them so")
    known = ["file", "x", "y", "slide", "domain", "scanner", "um_per_px"]
    cells = rows.reindex(columns=known, fill_value="")
    problems = [
        f"line {line}: {name} is {text!r}, expected a number"
        for name in ("x", "y", "um_per_px")
        for line, text in cells[name].items()
        if (text or name in needed) and not is_finite(text)
    ]
    problems += [f"line {line}: file is empty" for line in cells.index[cells["file"] == ""]]
    first_of: dict[str, tuple[int, str, str]] = {}
    for line, row in cells.iterrows() if source.has_slides else ():
        here = line, row["file"], row["um_per_px"]
        first = first_of.setdefault(row["slide"] or row["file"], here)
        problems += [
            f"line {line}: {name} is {one!r}, on line {first[0]} the same slide's is {other!r}"
            for name, one, other in zip(("file", "um_per_px"), here[1:], first[1:], strict=True)
            if one != other
        ]
    refuse(file, problems, "lines that can't be used; correct or remove them:")
    slides = cells["slide"].where(cells["slide"] != "", cells["file"])
    table = cells.assign(
        slide_id=slides,
        case_id=slides,
        lab="",
        species="",
        official_split="",
        label=np.int8(0),
        x_l0_px=pd.to_numeric(cells["x"]),
        y_l0_px=pd.to_numeric(cells["y"]),
        um_per_px=pd.to_numeric(cells["um_per_px"]),
        votes=[np.empty(0, dtype=np.int8)] * len(cells),
        file=_files(file, folder, cells["file"], source.editions, True),
        patch_id=np.arange(len(cells), dtype=np.int64),
    )
    return rows.reset_index(drop=True), table.reset_index(drop=True)[list(COLUMNS)]


def _files(
    main: Path, folder: Path, names: pd.Series, suffixes: tuple[str, ...], check_files: bool
) -> pd.Series:
    """Where each row's slide, a file of that name, lies, relative to ``folder``; raises LabelError
    for missing ones.
    """
    places, missing = {}, []
    for name, n in names.value_counts(sort=False).items():
        bases = (name, Path(name).stem) if Path(name).suffix.lower() in suffixes else (name,)
        alike = [name, *(base + suffix for base in bases for suffix in suffixes)]
        candidates = [f"{base}/{file}".lstrip("/") for file in alike for base in SLIDE_FOLDERS]
        places[name] = next((place for place in candidates if (folder / place).is_file()), name)
        if not (folder / places[name]).is_file():
            missing.append(f"{name}: {n} annotations")
    if check_files:
        refuse(
            main,
            missing,
            f"slides that are neither in {folder} nor in its images/ or WSI/; put them there:",
        )
        refuse(
            main,
            _parts_of_slides(folder, places),
            "files that are no slides by themselves; name one file a DICOM series:",
        )
    return names.map(places)


def _parts_of_slides(folder: Path, places: dict[str, str]) -> list[str]:
    """Which files belong to a slide that another file stands for, or show no tissue of it."""
    problems, first = [], {}
    for name, place in places.items():
        series, kind = series_of(folder / place) or (place, "")
        if kind in NO_VOLUME:
            problems.append(f"{name}: the {kind.lower()} of a slide")
        elif first.setdefault(series, name) != name:
            of_series = f", series {series}" if series != place else ""
            problems.append(f"{name}: the slide of {first[series]}{of_series}")
    return problems
