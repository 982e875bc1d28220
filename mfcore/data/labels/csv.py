"""Labels in a table: one's own, and the tables of the released code of Ganz et al."""

import io
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore.data.labels.schema import OF_A_SLIDE, LabelError, as_classes, refuse, say

REQUIRED = ("file", "x", "y", "label")
OPTIONAL = ("slide", *OF_A_SLIDE, "votes")
SCALES = ("um_per_px", "downsample")
# A comma that is a decimal point: of a place, whose comma may divide thousands, or of a scale
DECIMAL = dict.fromkeys(("x", "y"), r"^(-?\d+),(\d{1,2}|\d{4,})$")
DECIMAL |= dict.fromkeys(SCALES, r"^(\d+),(\d+)$")
LINES = "lines that can't be used; correct or remove them:"


def read(files: tuple[Path, ...], label_values: tuple[str, ...]) -> pd.DataFrame:
    """The rows of one's own table: a line an annotation, in any order of columns.

    Needed: ``file`` (the slide's file name), ``x`` and ``y`` (its centre in level-0 px, from the
    upper left corner that ``data.origin`` says), ``label``. Where known: ``slide`` (its name, else
    the file's), ``case`` (else each slide is one), ``domain`` (for all or for none), ``scanner``,
    ``lab``, ``species``, ``votes`` ("1/0/1" or "1;0;1", written as the labels are), ``split``
    ("train", "val" or "test"). Divided by commas, semicolons or tabs; with the last two a comma may
    be the decimal point. label_values: how class 0 and class 1 are written. Raises LabelError with
    the lines that can't be.
    """
    rows = numbers(files[0], lines(files[0], REQUIRED, OPTIONAL), ("x", "y"))
    return classes(files[0], rows, label_values)


def read_as_released(file: Path, label_values: tuple[str, str]) -> pd.DataFrame:
    """The rows of a table of the released code (``x, y, label, filename`` and, in some,
    ``tumortype``).

    Its column ``split`` is left out: it isn't the data sets' own, and the code that reads the table
    ignores it.
    label_values: how this table writes class 0 and class 1. Raises LabelError with the lines that
    can't be.
    """
    rows = lines(file, ("x", "y", "label", "filename"))
    rows = rows.rename(columns={"filename": "file", "tumortype": "domain"})
    rows = rows.reindex(columns=[*REQUIRED, "domain", "votes"], fill_value="")
    return classes(file, numbers(file, rows, ("x", "y")), label_values)


def numbers(file: Path, rows: pd.DataFrame, needed: Collection[str] = ()) -> pd.DataFrame:
    """Rows with places and scales as numbers, NaN for an empty cell; refuses what is no number, and
    an empty cell of the columns ``needed``.
    """
    typed, problems = rows.copy(), []
    for name in rows.columns.intersection(["x", "y", *SCALES]):
        is_number = rows[name].map(_is_finite)
        typed[name] = rows[name].where(is_number, "nan").astype(float)
        is_wrong = ~is_number & ((rows[name] != "") | (name in needed))
        expected = "expected a number such as 10233.5"
        if name in SCALES:
            is_wrong |= typed[name] <= 0
            expected = "expected a number above 0"
        problems += say(rows, is_wrong, f"{name} is {{{name}!r}}, {expected}")
    refuse(file, problems, LINES)
    return typed


def _is_finite(text: str) -> bool:
    try:
        return "_" not in text and math.isfinite(float(text))
    except ValueError:
        return False


def classes(place: Path, rows: pd.DataFrame, label_values: tuple[str, ...]) -> pd.DataFrame:
    """Rows with labels and votes as 0 and 1, by `as_classes`."""
    cast = rows.loc[rows["votes"] != "", "votes"].str.split("[/;]", regex=True).explode()
    votes = as_classes(f"{place}, votes", cast.str.strip(), label_values)
    votes_at = votes.groupby(level=0).agg(list)
    return rows.assign(
        label=as_classes(place, rows["label"], label_values),
        votes=[np.array(votes_at.get(line, []), dtype=np.int8) for line in rows.index],
    )


def lines(
    file: Path, needed: Collection[str], known: Collection[str] | None = None
) -> pd.DataFrame:
    """A table as text, divided by what its header has most of; the index is the line in the file.

    Empty lines, and empty columns that a spreadsheet writes behind the others, are left out.
    Raises LabelError without the columns ``needed``, and for columns that are not ``known``: all of
    these are returned. None knows any column.
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
    cells = cells.fillna("").map(str.strip).set_axis([f"line {i + 1}" for i in cells.index])
    cells = cells[(cells != "").any(axis=1)]
    if len(cells) < 2:
        raise LabelError(f"{file}: no line below the header; save or fetch the file again")
    cells = cells.loc[:, (cells != "").any()]
    header = cells.iloc[0]
    missing = sorted(set(needed) - set(header))
    wrong = header.duplicated() | (known is not None and ~header.isin([*needed, *(known or ())]))
    if missing or wrong.any():
        raise LabelError(
            f"{file}: missing columns {missing}, unknown or repeated columns"
            f" {header[wrong].tolist()}; needed are {list(needed)}, and there may be"
            f" {list(known or ())}; rename or remove the others, or fetch the file again"
        )
    rows = cells.iloc[1:].set_axis(header, axis=1).rename_axis(columns=None)
    if divider != ",":  # 10,5 is a half; 10,233 may be ten thousand, and stays what no number is
        rows = rows.replace(DECIMAL, r"\1.\2", regex=True)
    return rows if known is None else rows.reindex(columns=[*needed, *known], fill_value="")
