"""Labels in a table: one's own, and the tables of the released code of Ganz et al."""

from pathlib import Path

import numpy as np
import pandas as pd

from mfcore.labels_schema import MAX_OFF_SLIDE_PX, LabelError, is_finite, refuse

REQUIRED = ("file", "x", "y", "label")
OPTIONAL = ("case", "domain", "scanner", "lab", "species", "votes", "split")
SPLITS = ("", "train", "val", "test")
ONE_DOMAIN = "one domain"


def read(file: Path, label_values: tuple[str, ...]) -> pd.DataFrame:
    """The rows of one's own table: a line an annotation, in any order of columns.

    Needed: ``file`` (the slide's file name), ``x`` and ``y`` (its centre in level-0 px, from the slide's upper left
    corner), ``label``. Where known: ``case``, ``domain`` (without it all are of one), ``scanner``, ``lab``, ``species``,
    ``votes`` ("1/0/1", written as the labels are), ``split`` ("train", "val" or "test"). Divided by commas, semicolons
    (then a comma may be the decimal point) or tabs. label_values: how class 0 and class 1 are written.
    Raises LabelError with the lines that can't be.
    """
    rows = _lines(file)
    missing = [name for name in REQUIRED if name not in rows]
    unknown = [name for name in rows if name not in REQUIRED + OPTIONAL]
    if missing or unknown:
        what = f"without the columns {missing}" if missing else f"with columns that mean nothing here: {unknown}"
        raise LabelError(f"{file}: {what}; needed are {list(REQUIRED)}, and there may be {list(OPTIONAL)}")
    problems, votes = [], []
    for line, row in zip(rows.index + 2, rows.to_dict("records"), strict=True):
        cast = row.get("votes", "").replace(" ", "").split("/") if row.get("votes") else []
        votes.append(np.array([label_values.index(v) for v in cast if v in label_values], dtype=np.int8))
        problems += [f"line {line}: {key} is {row[key]!r}, expected a number" for key in ("x", "y") if not is_finite(row[key])]
        if row["label"] not in label_values:
            problems.append(
                f"line {line}: label is {row['label']!r}, expected {' or '.join(label_values)} (data: {{label_values: [...]}})"
            )
        if not row["file"] or Path(row["file"]).name != row["file"]:
            problems.append(f"line {line}: file is {row['file']!r}, expected a file's name without a folder")
        if len(votes[-1]) != len(cast):
            problems.append(f"line {line}: votes are {row['votes']!r}, expected such as {'/'.join(label_values)}")
        if row.get("split", "") not in SPLITS:
            problems.append(f"line {line}: split is {row['split']!r}, expected train, val, test or nothing")
    refuse(file, problems, "lines that can't be used; correct or remove them:")
    rows = rows.assign(x=rows["x"].astype(float), y=rows["y"].astype(float))
    twice = rows.index[rows.duplicated(["file", "x", "y"])] + 2
    off = rows.index[(rows[["x", "y"]].min(axis=1) < -MAX_OFF_SLIDE_PX)] + 2
    problems = [f"line {line}: this place on this slide stands there twice" for line in twice]
    problems += [f"line {line}: lies more than {MAX_OFF_SLIDE_PX:g} px off the slide" for line in off]
    refuse(file, problems, "lines that can't be used; correct or remove them:")
    optional = {name: rows.get(name, "") for name in ("scanner", "lab", "species")}
    domain = rows["domain"] if "domain" in rows else pd.Series(ONE_DOMAIN, rows.index)
    bare = rows["file"].map(lambda name: Path(name).stem)
    return pd.DataFrame(
        {
            "slide_id": rows["file"],
            "case_id": rows["case"].where(rows["case"] != "", bare) if "case" in rows else bare,
            "domain": domain.where(domain != "", ONE_DOMAIN),
            **optional,
            "label": rows["label"].map(label_values.index),
            "x_l0_px": rows["x"],
            "y_l0_px": rows["y"],
            "votes": votes,
            "official_split": rows.get("split", ""),
        }
    )


def read_as_released(file: Path, label_values: tuple[str, str]) -> pd.DataFrame:
    """The rows of a table of the released code (``x, y, label, filename`` and, in some, ``tumortype``).

    Its column ``split`` is left out: it isn't the data sets' own, and the code that reads the table ignores it.
    label_values: how this table writes class 0 and class 1. Raises LabelError with the lines that can't be.
    """
    rows = _lines(file)
    needed = ("x", "y", "label", "filename")
    missing = [name for name in needed if name not in rows]
    if missing:
        raise LabelError(f"{file}: without the columns {missing}; fetch the file again")
    problems = [
        f"line {line}: x, y, label are {x!r}, {y!r}, {label!r}, expected two numbers and {' or '.join(label_values)}"
        for line, x, y, label in zip(rows.index + 2, rows["x"], rows["y"], rows["label"], strict=True)
        if not (is_finite(x) and is_finite(y) and label in label_values)
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
    )


def _lines(file: Path) -> pd.DataFrame:
    """A table as text, whatever divides its columns."""
    try:
        header = file.read_text(encoding="utf-8-sig").partition("\n")[0]
        divider = max(",;\t", key=header.count)
        rows = pd.read_csv(file, sep=divider, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise LabelError(f"{file}: not UTF-8 text; save it as CSV in UTF-8") from None
    except ValueError as error:
        raise LabelError(f"{file}: not a CSV file ({error}); save or fetch it again") from None
    if rows.empty:
        raise LabelError(f"{file}: no line below the header; fetch the file again")
    rows = rows.rename(columns=str.strip).apply(lambda column: column.str.strip())
    if divider == ";":
        rows = rows.assign(**{key: rows[key].str.replace(",", ".") for key in ("x", "y") if key in rows})
    return rows
