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
from mfcore.data.labels.schema import (
    COLUMNS,
    DEFAULTS,
    MAX_OFF_SLIDE_PX,
    NAMES,
    LabelError,
    differing,
    problems_of,
    refuse,
)
from mfcore.data.labels.source import Source
from mfcore.data.slides.openslide import NO_VOLUME, series_of
from mfcore.store.options import nearest

__all__ = ["COLUMNS", "MAX_OFF_SLIDE_PX", "LabelError", "files_of", "load"]

ONE_DOMAIN = "one domain"
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
    rows = _whole(source.read(files, label_values))
    if (rows["domain"] == "").all():
        rows["domain"] = ONE_DOMAIN
    stems = rows["file"].map(lambda name: Path(name).stem)
    rows["case"] = rows["case"].mask(rows["case"] == "", stems)
    problems = problems_of(rows, source.has_slides)
    refuse(files[0], problems, "annotations that can't be used; correct or remove them:")
    if slides:
        rows = _of_slides(files[0], rows, source, slides)
    rows["file"] = _files(source, files[0], folder, rows["file"], check_files)
    if rows["label"].nunique() < 2:
        raise LabelError(f"{files[0]}: no annotation, or all are of one class; a study needs both")
    return _label_table(rows, ["downsample"] if rows["downsample"].notna().any() else [])


def _whole(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with all columns that rows may have; a slide without a name has its file's."""
    rows = rows.assign(**{name: DEFAULTS[name] for name in DEFAULTS if name not in rows})
    if "votes" not in rows:
        rows["votes"] = [np.empty(0, dtype=np.int8)] * len(rows)
    return rows.assign(slide=rows["slide"].mask(rows["slide"] == "", rows["file"]))


def _label_table(rows: pd.DataFrame, more: list[str]) -> pd.DataFrame:
    """Checked rows as a label table: its names, its types, its order; ``more`` columns behind."""
    table = rows.reset_index(drop=True).rename(columns=NAMES)
    table.insert(0, "patch_id", np.arange(len(table), dtype=np.int64))
    types = {"label": np.int8, "x_l0_px": float, "y_l0_px": float, "um_per_px": float}
    return table.astype(types)[[*COLUMNS, *more]]


def _of_slides(
    main: Path, rows: pd.DataFrame, source: Source, slides: tuple[str, ...]
) -> pd.DataFrame:
    """The rows of the slides named, ``attrs["left_out"]``: n_slides, n_positive, n_negative of the
    others; raises LabelError for names of no slide.
    """
    names, known = rows["slide"].map(source.bare), rows["slide"].unique()
    unknown = [name for name in slides if source.bare(name) not in set(names)]
    problems = [f"{name}{nearest(name, known)}" for name in unknown]
    refuse(main, problems, "data.slides names slides that have no annotation here; correct them:")
    is_kept = names.isin([source.bare(name) for name in slides])
    others, kept = rows[~is_kept], rows[is_kept]
    n_positive = int(others["label"].sum())
    kept.attrs["left_out"] = {
        "n_slides": others["slide"].nunique(),
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
    needed = ("file", "x", "y") if source.has_slides else ("file",)
    cells = csv.lines(file, needed)
    known = ["file", "x", "y", "slide", "domain", "scanner", "um_per_px"]
    rows = cells.reindex(columns=known, fill_value="")
    rows["slide"] = rows["slide"].mask(rows["slide"] == "", rows["file"])
    problems = [f"{line}: file is empty" for line in rows.index[rows["file"] == ""]]
    if source.has_slides:
        problems += differing(rows, "slide", ("file", "um_per_px"))
    refuse(file, problems, csv.LINES)
    rows = _whole(csv.numbers(file, rows, needed)).assign(label=0, case=rows["slide"])
    rows["file"] = _files(source, file, folder, rows["file"], True)
    return cells.reset_index(drop=True), _label_table(rows, [])


def place_of(source: Source, folder: Path, name: str) -> str | None:
    """Where a slide or image of that name lies, relative to ``folder``; None where it doesn't."""
    stems = (name, Path(name).stem) if source.bare(name) != name else (name,)
    alike = [name, *(stem + suffix for stem in stems for suffix in source.editions)]
    bases = SLIDE_FOLDERS if source.has_slides else ("",)
    places = [Path(base, one).as_posix() for one in alike for base in bases]
    return next((place for place in places if (folder / place).is_file()), None)


def _files(
    source: Source, main: Path, folder: Path, names: pd.Series, check_files: bool
) -> pd.Series:
    """The place of each row's file; raises LabelError for missing ones."""
    places = {name: place_of(source, folder, name) for name in names.unique()}
    if check_files:
        missing = [name for name, place in places.items() if not place]
        or_below = f", nor in {' or '.join(SLIDE_FOLDERS[::2])} in it" if source.has_slides else ""
        refuse(main, missing, f"files that are not in {folder}{or_below}; put them there:")
        if source.has_slides:
            refuse(
                main,
                _parts_of_slides(folder, places),
                "files that are no slide of their own; name one file a slide or DICOM series:",
            )
    return names.map(lambda name: places[name] or name)


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
