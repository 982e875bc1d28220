"""The columns of a label table, and how a label file is refused."""

import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path

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
SUM, FEW_CASES = "sum", "domains of one or two cases"
# What tables of splits and scores call something else, so that no domain may have the name
RESERVED = {
    ALL: "the whole data set",
    SUM: "the last row of a table",
    FEW_CASES: "the domains that are too small to divide",
}
REST = "rest"  # as the name of a class: every label that isn't the other class's
SPLITS = ("", "train", "val", "test")
# level-0 px from the slide's edge to a centre outside: half of MIDOG's box; real labels need 5
MAX_OFF_SLIDE_PX = 25.0
# level-0 px between centres of two annotations; published ones lie 15 px apart and more
MIN_APART_PX = 1.0


class LabelError(ValueError):
    """A label file says something that can't be; the message names the file, the annotation or
    line, and the remedy.
    """


def refuse(file: Path, problems: list[str], remedy: str) -> None:
    """Raise one LabelError for all ``problems``, the first ten in full; none is no error."""
    if problems:
        more = f"\n  ... and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise LabelError(f"{file}: {remedy}\n  " + "\n  ".join(problems[:10]) + more)


def as_classes(place: Path, labels: pd.Series, label_values: tuple[str, ...]) -> pd.Series:
    """Labels, with REST for all that it stands for; raises LabelError for other classes, and under
    REST for labels that may be mistakes. The index says where a label stands, for the message.
    """
    if REST in label_values:
        named = next(value for value in label_values if value != REST)
        first = labels[~labels.duplicated()]
        problems = [
            f"{label!r} ({(labels == label).sum():,}, first: {at}) {wrong}"
            for at, label in first.items()
            if label not in label_values and (wrong := _not_rest(label, named))
        ]
        refuse(place, problems, f"labels that can't be the {REST}; correct or remove them:")
        labels = labels.where(labels.isin(label_values), REST)
    if set(labels) - set(label_values):
        counts = ", ".join(f"{name!r} ({n:,})" for name, n in labels.value_counts().items())
        raise LabelError(
            f"{place}: expected the classes {' and '.join(map(repr, label_values))}, there are"
            f" {counts}; say data: {{positive: ..., negative: ...}} as they are written here, with"
            f" negative: {REST} to compare one class with all others"
        )
    return labels


def plain(label: str) -> str:
    """A label without what people don't see: case, blanks around it and its parts, how an accent
    is written.
    """
    composed = unicodedata.normalize("NFC", label).casefold()
    return ": ".join(part.strip() for part in composed.split(":"))


def _not_rest(label: str, named: str) -> str | None:
    """Why a label can't be one of all the classes other than ``named``, None if it can."""
    if not plain(label).strip(": "):
        return "is empty; give it a label"
    if plain(label) == plain(named) or plain(named) in plain(label).split(": "):
        return f"looks like {named!r}; write it so, or name it otherwise"
    if label.strip().endswith("*"):  # QuPath's mark of what is no object's class
        return "is no class of a cell, but QuPath's for an area; remove these"
    return None


def wrong_domain(domain: str) -> str | None:
    """What is wrong with a domain's name, with the remedy, None if nothing."""
    if domain in RESERVED:
        return (
            f"domain is {domain!r}, which is what {RESERVED[domain]} is called here; name the"
            " domain otherwise"
        )
    return None


def is_finite(text: str) -> bool:
    """Whether ``text`` is a finite number."""
    try:
        return "_" not in text and math.isfinite(float(text))
    except ValueError:
        return False


def is_file_name(name: object) -> bool:
    """Whether ``name`` is a file's name without a folder, on any system."""
    return isinstance(name, str) and bool(name.strip(".")) and not {"/", "\\"} & set(name)


def near_places(slides: Sequence[str], places: np.ndarray, names: Sequence[str]) -> list[str]:
    """Which annotations lie less than MIN_APART_PX from another one on their slide.

    places: float (n, 2) of x, y in level-0 px. names: what a message calls each. Annotations at the
    very same place are left out: readers name them.
    """
    problems = []
    for rows in pd.Series(range(len(slides))).groupby(np.asarray(slides)).indices.values():
        for one, other in sorted(cKDTree(places[rows]).query_pairs(MIN_APART_PX)):
            first, second = sorted((rows[one], rows[other]))
            apart = np.hypot(*(places[first] - places[second]))
            if 0 < apart < MIN_APART_PX:
                problems.append(
                    f"{names[second]}: lies {apart:.2g} px from {names[first]} on this slide; keep"
                    " one of them"
                )
    return problems


def off_slide(x: float, y: float, width: float, height: float) -> str | None:
    """What is wrong with a centre too far off a slide of ``width`` x ``height`` level-0 px, None if
    nothing.
    """
    if max(-x, -y, x - width, y - height) > MAX_OFF_SLIDE_PX:
        return (
            f"its centre ({x:g}, {y:g}) lies more than {MAX_OFF_SLIDE_PX:g} px off the slide of"
            f" {width} x {height} px"
        )
    return None


def read_text(file: Path, separator: str = ",") -> pd.DataFrame:
    """A CSV file that somebody published, every cell as text; raises LabelError where the file is
    none.
    """
    try:
        return pd.read_csv(file, sep=separator, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise LabelError(f"{file}: not a CSV file ({error}); fetch it again") from None
