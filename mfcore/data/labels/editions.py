"""Two editions of one data set: which slide of the one is which of the other, told by the annotations, never by the number.

From MIDOG 2022 to MIDOG++ the numbers shift by 0, 50, 51 and, once, 43; a constant shift would mislabel eight slides.
"""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore.data.labels.schema import LabelError, refuse

LEAST_SHARE = 0.5  # of the annotations of both slides that must stand at the same places


def match_slides(first: pd.DataFrame, second: pd.DataFrame) -> dict[str, str]:
    """Slides of ``first`` by those of ``second`` that are the same: slide_id to slide_id.

    Both label tables. A slide's fingerprint is the set of its annotations' centres (level-0 px, to half a px). Two slides
    are the same where each shares more centres with the other than with any other slide, and these are at least
    LEAST_SHARE of the centres of either. Slides without a partner are left out.
    """
    left, right = _fingerprints(first), _fingerprints(second)
    to_right, to_left = _nearest(left, right), _nearest(right, left)
    found = {}
    for slide, (other, n_shared) in to_right.items():
        mutual = to_left.get(other, ("", 0))[0] == slide
        if mutual and n_shared >= LEAST_SHARE * max(len(left[slide]), len(right[other])):
            found[slide] = other
    return found


def carry(table: pd.DataFrame, other: pd.DataFrame, file: Path) -> pd.DataFrame:
    """``table`` with the votes and the official split that ``other``, another edition, has for the same annotations.

    Annotations are the same where their slides are (`match_slides`) and their centres; those without a partner get no
    votes. file: the label file of ``table``. Raises LabelError where no slide has a partner, and where the same annotation
    has another class.
    """
    partners = match_slides(table, other)
    if not partners:
        raise LabelError(
            f"{file}: no slide has its annotations where the other edition beside it has them; remove the one that isn't meant"
        )
    partner = table["slide_id"].map(partners)
    key = ["slide_id", "x", "y"]
    mine = pd.DataFrame({"slide_id": partner, "x": _halves(table["x_l0_px"]), "y": _halves(table["y_l0_px"])})
    theirs = other.assign(x=_halves(other["x_l0_px"]), y=_halves(other["y_l0_px"]))
    theirs = theirs.drop_duplicates(key)[[*key, "label", "votes"]]
    joined = mine.merge(theirs, on=key, how="left", validate="many_to_one").set_index(table.index)
    differing = table[joined["label"].notna() & (joined["label"] != table["label"])]
    refuse(
        file,
        [f"{row.slide_id} at ({row.x_l0_px:g}, {row.y_l0_px:g}): another class" for row in differing.itertuples()],
        "annotations that the other edition beside it gives another class; keep the edition that is meant:",
    )
    none = np.empty(0, dtype=np.int8)
    official = other.groupby("slide_id")["official_split"].first()
    return table.assign(
        votes=[votes if isinstance(votes, np.ndarray) else none for votes in joined["votes"]],
        official_split=partner.map(official).fillna(""),
    )


def _halves(px: pd.Series) -> pd.Series:
    """Coordinates as whole numbers of half px."""
    return (2 * px).round().astype(np.int64)


def _fingerprints(table: pd.DataFrame) -> dict[str, set[tuple[int, int]]]:
    places = zip(_halves(table["x_l0_px"]), _halves(table["y_l0_px"]), strict=True)
    found: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for slide, place in zip(table["slide_id"], places, strict=True):
        found[slide].add(place)
    return dict(found)


def _nearest(left: dict[str, set], right: dict[str, set]) -> dict[str, tuple[str, int]]:
    """For each slide of ``left`` the slide of ``right`` that shares most places with it, and how many; ties have none."""
    slides_at = defaultdict(list)
    for slide, places in right.items():
        for place in places:
            slides_at[place].append(slide)
    found = {}
    for slide, places in left.items():
        shared = Counter(other for place in places for other in slides_at.get(place, ())).most_common(2)
        if shared and (len(shared) == 1 or shared[0][1] > shared[1][1]):
            found[slide] = shared[0]
    return found
