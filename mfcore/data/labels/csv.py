"""Labels in a table: one's own, and the tables of the released code of Ganz et al."""

import io
import re
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore.data.labels.schema import (
    MAX_OFF_SLIDE_PX,
    SPLITS,
    LabelError,
    is_file_name,
    is_finite,
    near_places,
    refuse,
    wrong_domain,
)

REQUIRED = ("file", "x", "y", "label")
OF_A_SLIDE = (
    "slide",
    "case",
    "domain",
    "scanner",
    "lab",
    "species",
    "split",
)  # the same on all lines of a file
OPTIONAL = (*OF_A_SLIDE, "votes")
ONE_DOMAIN = "one domain"


def read(file: Path, label_values: tuple[str, ...]) -> pd.DataFrame:
    """The rows of one's own table: a line an annotation, in any order of columns.

    Needed: ``file`` (or ``filename``: the slide's file name), ``x`` and ``y`` (its centre in
    level-0 px, from the upper left corner that ``data.origin`` says), ``label``. Where known:
    ``slide`` (its name, else the file's), ``case`` (else each slide is one), ``domain`` (for all or
    for none; then all are of ONE_DOMAIN), ``scanner``, ``lab``, ``species``, ``votes`` ("1/0/1" or
    "1;0;1", written as the labels are), ``split`` ("train", "val" or "test"). Divided by commas,
    semicolons or tabs; with the last two a comma may be the decimal point. label_values: how class
    0 and class 1 are written. Raises LabelError with the lines that can't be.
    """
    rows = lines(file)
    if "file" not in rows:
        rows = rows.rename(columns={"filename": "file"})
    missing = [name for name in REQUIRED if name not in rows]
    unknown = [name for name in rows if name not in REQUIRED + OPTIONAL]
    if missing or unknown:
        lacks = [f"without the columns {missing}"] if missing else []
        lacks += (
            [f"with columns that mean nothing here: {unknown} (rename or remove them)"]
            if unknown
            else []
        )
        raise LabelError(
            f"{file}: {' and '.join(lacks)}; needed are {list(REQUIRED)}, and there may be"
            f" {list(OPTIONAL)}, written so"
        )
    rows = rows.reindex(columns=[*REQUIRED, *OPTIONAL], fill_value="")
    refuse(file, _problems(rows, label_values), "lines that can't be used; correct or remove them:")
    return pd.DataFrame(
        {
            "slide_id": rows["slide"].where(rows["slide"] != "", rows["file"]),
            "case_id": (
                rows["case"].where(
                    rows["case"] != "", rows["file"].map(lambda name: Path(name).stem)
                )
            ),
            "domain": rows["domain"].where(rows["domain"] != "", ONE_DOMAIN),
            **{name: rows[name] for name in ("scanner", "lab", "species")},
            "label": rows["label"].map(label_values.index),
            "x_l0_px": rows["x"].astype(float),
            "y_l0_px": rows["y"].astype(float),
            "votes": [
                np.array([label_values.index(v) for v in cast(votes)], dtype=np.int8)
                for votes in rows["votes"]
            ],
            "official_split": rows["split"],
            "file_name": rows["file"],
        }
    ).reset_index(drop=True)


def cast(votes: str) -> list[str]:
    """The single votes of a cell."""
    return [vote.strip() for vote in re.split("[/;]", votes)] if votes else []


def _problems(rows: pd.DataFrame, label_values: tuple[str, ...]) -> list[str]:
    """What is wrong with one's own table, line by line."""
    problems: list[str] = []
    line_at: dict[tuple[str, float, float], int] = {}
    first_of: dict[str, tuple[int, dict]] = {}
    file_of: dict[str, str] = {}
    has_domains = (rows["domain"] != "").any()
    for line, row in zip(rows.index, rows.to_dict("records"), strict=True):
        wrong = [
            f"{key} is {row[key]!r}, expected a number such as 10233.5"
            for key in ("x", "y")
            if not is_finite(row[key])
        ]
        if not wrong:
            place = row["file"], float(row["x"]), float(row["y"])
            if min(place[1:]) < -MAX_OFF_SLIDE_PX:
                wrong.append(f"lies more than {MAX_OFF_SLIDE_PX:g} px off the slide")
            if line_at.setdefault(place, line) != line:
                wrong.append(
                    f"this place on this slide stands there twice, first on line {line_at[place]}"
                )
        if not is_file_name(row["file"]):
            wrong.append(f"file is {row['file']!r}, expected a file's name without a folder")
        wrong += wrong_values(row, label_values, has_domains)
        first_line, first = first_of.setdefault(row["file"], (line, row))
        wrong += [
            f"{key} is {row[key]!r}, on line {first_line} the same slide's is {first[key]!r}"
            for key in OF_A_SLIDE
            if row[key] != first[key]
        ]
        slide = row["slide"] or row["file"]
        if file_of.setdefault(slide, row["file"]) != row["file"]:
            wrong.append(
                f"slide {slide!r} is in {row['file']!r}, on another line in {file_of[slide]!r}"
            )
        problems += [f"line {line}: {problem}" for problem in wrong]
    is_placed = rows["x"].map(is_finite) & rows["y"].map(is_finite)
    names = [f"line {line}" for line in rows.index[is_placed]]
    places = rows.loc[is_placed, ["x", "y"]].to_numpy(float)
    return problems + near_places(rows.loc[is_placed, "file"], places, names)


def wrong_values(
    row: dict[str, str], label_values: tuple[str, ...], has_domains: bool
) -> list[str]:
    """The problems of a row's ``label``, ``votes``, ``split`` and ``domain``.

    has_domains: whether any row of the table names a domain.
    """
    wrong = []
    if row["label"] not in label_values:
        wrong.append(
            f"label is {row['label']!r}, expected {' or '.join(label_values)} (data:"
            " {label_values: [...]})"
        )
    if not set(cast(row["votes"])) <= set(label_values):
        wrong.append(f"votes are {row['votes']!r}, expected such as {'/'.join(label_values)}")
    if row["split"] not in SPLITS:
        wrong.append(f"split is {row['split']!r}, expected train, val, test or nothing")
    if has_domains and not row["domain"]:
        wrong.append("domain is empty; give each line one, or leave the column out")
    wrong += filter(None, [wrong_domain(row["domain"])])
    return wrong


def read_as_released(file: Path, label_values: tuple[str, str]) -> pd.DataFrame:
    """The rows of a table of the released code (``x, y, label, filename`` and, in some,
    ``tumortype``).

    Its column ``split`` is left out: it isn't the data sets' own, and the code that reads the table
    ignores it.
    label_values: how this table writes class 0 and class 1. Raises LabelError with the lines that
    can't be.
    """
    rows = lines(file)
    needed = ("x", "y", "label", "filename")
    missing = [name for name in needed if name not in rows]
    if missing:
        raise LabelError(f"{file}: without the columns {missing}; fetch the file again")
    problems = [
        f"line {line}: x, y, label, filename are {x!r}, {y!r}, {label!r}, {name!r}, expected two"
        f" numbers, {' or '.join(label_values)} and a file's name"
        for line, x, y, label, name in zip(rows.index, *(rows[key] for key in needed), strict=True)
        if not (is_finite(x) and is_finite(y) and label in label_values and is_file_name(name))
    ]
    refuse(file, problems, "lines that can't be used; fetch the file again:")
    return pd.DataFrame(
        {
            "slide_id": rows["filename"],
            "case_id": rows["filename"].map(lambda name: Path(name).stem),
            "domain": rows.get("tumortype", ""),
            "label": rows["label"].map(label_values.index),
            "x_l0_px": rows["x"].astype(float),
            "y_l0_px": rows["y"].astype(float),
        }
    ).reset_index(drop=True)


def lines(file: Path) -> pd.DataFrame:
    """A table as text, divided by what its header has most of; the index is the line in the file.

    Empty lines, and empty columns that a spreadsheet writes behind the others, are left out.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise LabelError(f"{file}: not UTF-8 text; save it as CSV in UTF-8") from None
    divider = max(",;\t", key=text.strip().partition("\n")[0].count)
    options = {"sep": divider, "skipinitialspace": True, "skip_blank_lines": False}
    try:  # without a header, pandas refuses lines that are longer than the first
        cells = pd.read_csv(
            io.StringIO(text), header=None, dtype=str, keep_default_na=False, **options
        )
    except ValueError as error:
        raise LabelError(
            f"{file}: not a CSV file ({error}); where a comma is the decimal point, divide by "
            "semicolons; save or fetch the file again"
        ) from None
    cells = cells.fillna("").map(str.strip).set_axis(cells.index + 1)
    cells = cells[(cells != "").any(axis=1)]
    if len(cells) < 2:
        raise LabelError(f"{file}: no line below the header; save or fetch the file again")
    cells = cells.loc[:, (cells != "").any()]
    header, rows = cells.iloc[0], cells.iloc[1:]
    twice = sorted(header[header.duplicated()])
    if twice:
        raise LabelError(f"{file}: more than one column of the name {twice}; rename or remove one")
    rows = rows.set_axis(header, axis=1).rename_axis(columns=None)
    if divider != ",":  # 10,5 is a half; 10,233 may be ten thousand, and stays what no number is
        places = rows.columns.intersection(["x", "y"])
        decimal = r"^(-?\d+),(\d{1,2}|\d{4,})$"
        rows[places] = rows[places].replace(decimal, r"\1.\2", regex=True)
        scales = rows.columns.intersection(["um_per_px", "downsample"])  # of which none is 1,000
        rows[scales] = rows[scales].replace(r"^(\d+),(\d+)$", r"\1.\2", regex=True)
    return rows
