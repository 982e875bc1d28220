"""The columns of a label table, and what no row of a label file may say, whatever its format.

A reader returns rows as the file has them: an index that says where each stands ("line 3",
"annotation 5 on a.svs"), the columns ``file`` and ``label`` (0 or 1), and of `DEFAULTS` what the
file knows. `mfcore.data.labels.table.load` checks them (`problems_of`) and makes the label table.
"""

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from mfcore.measures.raters import ALL

COLUMNS = (
    "patch_id",
    "slide_id",
    "case_id",
    "domain",
    "scanner",
    "lab",
    "species",
    "label",
    "x_l0_px",
    "y_l0_px",
    "um_per_px",
    "votes",
    "official_split",
    "file",
)
# What a label table calls a column of a label file
NAMES = {
    "slide": "slide_id",
    "case": "case_id",
    "x": "x_l0_px",
    "y": "y_l0_px",
    "split": "official_split",
}
OF_A_SLIDE = ("case", "domain", "scanner", "lab", "species", "split")  # the same on all its rows
# What rows have where their file says nothing: width and height are the slide's, in level-0 px
DEFAULTS = dict.fromkeys(("slide", *OF_A_SLIDE), "") | dict.fromkeys(
    ("x", "y", "width", "height", "um_per_px", "downsample"), np.nan
)
SUM, FEW_CASES = "sum", "domains of one or two cases"
RESERVED = (ALL, SUM, FEW_CASES)  # what tables of splits and scores call something else
REST = "rest"  # as the name of a class: every label that isn't the other class's
SPLITS = ("", "train", "val", "test")
# level-0 px from the slide's edge to a centre outside: half of MIDOG's box; real labels need 5
MAX_OFF_SLIDE_PX = 25.0
# level-0 px between centres of two annotations; published ones lie 15 px apart and more
MIN_APART_PX = 1.0
FAR_L0_PX = 1e9  # farther than any two places on one slide


class LabelError(ValueError):
    """A label file says something that can't be; the message names the file, the annotation or
    line, and the remedy.
    """


def refuse(file: Path | str, problems: list[str], remedy: str) -> None:
    """Raise one LabelError for all ``problems``, the first ten in full; none is no error."""
    if problems:
        more = f"\n  ... and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise LabelError(f"{file}: {remedy}\n  " + "\n  ".join(problems[:10]) + more)


def say(rows: pd.DataFrame, is_wrong: pd.Series, text: str) -> list[str]:
    """A problem for each row that is wrong: where it stands, and ``text`` with its cells."""
    wrong = rows[is_wrong]
    cells = zip(wrong.index, wrong.to_dict("records"), strict=True)
    return [f"{place}: {text.format(**row)}" for place, row in cells]


def problems_of(rows: pd.DataFrame, has_slides: bool) -> list[str]:
    """What is wrong with rows that have all of `DEFAULTS`; for patch images, without their files
    and places.
    """
    first = rows.drop_duplicates("slide")
    problems = [
        *say(first, first["domain"] == "", "domain is empty; give each slide one, or none"),
        *say(
            first,
            first["domain"].isin(RESERVED),
            "domain is {domain!r}, a name that tables of results need; name the domain otherwise",
        ),
        *say(
            first,
            ~first["split"].isin(SPLITS),
            "split is {split!r}, expected train, val, test or nothing",
        ),
    ]
    if not has_slides:
        return problems + differing(rows, "slide", OF_A_SLIDE)
    off_px = off_slide_px(*(rows[name].to_numpy(float) for name in ("x", "y", "width", "height")))
    return [
        *say(
            first,
            ~first["file"].map(_is_file_name),
            "file is {file!r}, expected a file's name without a folder",
        ),
        *problems,
        *say(
            rows,
            off_px > MAX_OFF_SLIDE_PX,
            f"its centre ({{x:g}}, {{y:g}}) lies more than {MAX_OFF_SLIDE_PX:g} px off the slide",
        ),
        *differing(rows, "slide", ("file", *OF_A_SLIDE)),
        *differing(rows, "file", ("slide",)),
        *_near(rows),
    ]


def off_slide_px(x: Any, y: Any, width: Any, height: Any) -> Any:
    """How far centres lie off their slides, in level-0 px, numbers or arrays of one shape; a side
    that is NaN has no end.
    """
    return np.fmax.reduce([-x, -y, x - width, y - height])


def differing(rows: pd.DataFrame, by: str, columns: Sequence[str]) -> list[str]:
    """Rows that say something else of a slide than the first row of the same ``by`` does."""
    first = rows.assign(place=rows.index)[[by, "place", *columns]].groupby(by).transform("first")
    return [
        problem
        for name in columns
        for problem in say(
            rows.assign(place=first["place"], other=first[name]),
            rows[name] != first[name],
            f"{name} is {{{name}!r}}, {{place}} says {{other!r}} of the same slide",
        )
    ]


def _near(rows: pd.DataFrame) -> list[str]:
    """Annotations that lie less than MIN_APART_PX from another one on their slide."""
    slide = pd.factorize(rows["slide"])[0]
    tree = cKDTree(np.column_stack([rows[["x", "y"]], slide * FAR_L0_PX]))
    return [
        f"{rows.index[second]}: lies less than {MIN_APART_PX:g} px from {rows.index[first]} on the"
        " same slide; keep one of them"
        for first, second in sorted(tree.query_pairs(np.nextafter(MIN_APART_PX, 0)))
    ]


def _is_file_name(name: str) -> bool:
    """Whether ``name`` is a file's name without a folder, on any system."""
    return bool(name.strip(".")) and not {"/", "\\"} & set(name)


def as_classes(place: Path | str, labels: pd.Series, label_values: tuple[str, ...]) -> pd.Series:
    """The class of each label, 0 or 1; raises LabelError for other labels, and under REST for those
    that may be mistakes. The index says where a label stands.
    """
    others = labels[~labels.isin(label_values)].drop_duplicates()
    problems = [
        f"{label!r} ({(labels == label).sum():,}, first: {at}) {wrong}"
        for at, label in others.items()
        if (wrong := _not_rest(label, label_values))
    ]
    refuse(
        place,
        problems,
        f"labels that are neither {' nor '.join(map(repr, label_values))}; correct them, or name"
        " the classes under data as they are written here: positive and negative, in a table of"
        f" slides label_values; negative: {REST} compares one class with all others:",
    )
    index = {value: i for i, value in enumerate(label_values)}
    return labels.map(lambda label: index.get(label, index.get(REST)))


def plain(label: str) -> str:
    """A label without what people don't see: case, blanks around it and its parts, how an accent
    is written.
    """
    composed = unicodedata.normalize("NFC", label).casefold()
    return ": ".join(part.strip() for part in composed.split(":"))


def _not_rest(label: str, label_values: tuple[str, ...]) -> str | None:
    """Why a label can't be one of all the classes other than the one named, None if it can."""
    if REST not in label_values:
        return "is neither"
    named = next(value for value in label_values if value != REST)
    if not plain(label).strip(": "):
        return "is empty; give it a label"
    if plain(label) == plain(named) or plain(named) in plain(label).split(": "):
        return f"looks like {named!r}; write it so, or name it otherwise"
    if label.strip().endswith("*"):  # QuPath's mark of what is no object's class
        return "is no class of a cell, but QuPath's for an area; remove these"
    return None
