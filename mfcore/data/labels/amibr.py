"""AMi-Br's table of patch images: a row an image, whose folder must say what its row says."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore.data.labels.schema import LabelError, is_finite, read_text, refuse, wrong_domain

FILE = "AMI-BR.csv"


def read(file: Path, check_files: bool) -> pd.DataFrame:
    """The rows of AMi-Br's table, without ``patch_id``; raises LabelError, with the lines that
    can't be.
    """
    flags = [f"expert{i}_atypical" for i in (1, 2, 3)] + ["majority_atypical"]
    needed = ["slide", "dataset", "uid", "x", "y", *flags]
    rows = read_text(file)
    missing = [column for column in needed if column not in rows]
    if missing:
        raise LabelError(f"{file}: without the columns {missing}; fetch AMi-Br's {FILE} again")
    if rows.empty:
        raise LabelError(f"{file}: no line below the header; fetch the file again")
    lines = rows.index + 2  # the header is line 1
    problems = []
    for line, row in zip(lines, rows[needed].to_dict("records"), strict=True):
        bad = [
            f"{key} is {row[key]!r}, expected True or False"
            for key in flags
            if row[key] not in ("True", "False")
        ]
        bad += [
            f"{key} is {row[key]!r}, expected a number"
            for key in ("x", "y")
            if not is_finite(row[key])
        ]
        bad += [f"{key} is empty" for key in ("slide", "dataset", "uid") if not row[key]]
        bad += filter(None, [wrong_domain(row["dataset"])])
        problems += [f"line {line}: {problem}" for problem in bad]
    twice = rows.duplicated(["dataset", "uid"])
    problems += [
        f"line {line}: {d} uid {u} stands there twice"
        for line, d, u in zip(lines[twice], rows.dataset[twice], rows.uid[twice], strict=True)
    ]
    refuse(file, problems, "lines that can't be used; correct or remove them:")
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
            "label": label,
            "x_l0_px": rows["x"].astype(float),
            "y_l0_px": rows["y"].astype(float),
            "votes": list(atypical[flags[:3]].to_numpy(np.int8)),
            "file": files,
        }
    )


def _check_patches(file: Path, lines: pd.Index, files: pd.Series) -> None:
    """Refuse a CSV and patch folders that don't name the same patches with the same labels."""
    there = {
        path.relative_to(file.parent).as_posix()
        for path in (file.parent / "patches").glob("*/*.png")
    }
    other = {"normal": "atypical", "atypical": "normal"}
    problems = []
    for line, name in zip(lines, files, strict=True):
        _, folder, image = name.split("/")
        if name not in there:
            elsewhere = f"patches/{other[folder]}/{image}"
            found = (
                f"it lies in {other[folder]}, but majority_atypical says {folder}"
                if elsewhere in there
                else "it is missing"
            )
            problems.append(f"line {line}: {name}: {found}")
    problems += [f"{name}: no line of the table" for name in sorted(there - set(files))]
    refuse(
        file, problems, f"table and patch images don't agree; remove {FILE} and fetch both again:"
    )
