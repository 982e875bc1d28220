"""SlideRunner's databases, in which CCMCT and MIDOG are published too: the agreed class of each annotation, and each rater's.

An annotation has one coordinate (a spot) or two (the corners of an area or a circle); a polygon has no one centre.
"""

import sqlite3
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd

from mfcore.labels_schema import LabelError, off_slide, refuse

NEEDED = {
    "Slides": {"uid", "filename", "width", "height"},
    "Annotations": {"uid", "slide", "type", "agreedClass"},
    "Annotations_coordinates": {"coordinateX", "coordinateY", "annoId"},
    "Annotations_label": {"uid", "class", "annoId"},
}
N_COORDINATES = {1: (1,), 2: (2,), 4: (1,), 5: (2,)}  # by SlideRunner's type: spot, area, special spot, circle

# The 11 of CCMCT's 32 slides that its authors test on (Aubreville et al. 2019; their code at commit 0758f27).
CCMCT_TEST_SLIDES = frozenset(
    f"{name}.svs"
    for name in (
        "be10fa37ad6e88e1f406",
        "f3741e764d39ccc4d114",
        "c86cd41f96331adf3856",
        "552c51bfb88fd3e65ffe",
        "8c9f9618fcaca747b7c3",
        "c91a842257ed2add5134",
        "dd4246ab756f6479c841",
        "f26e9fcef24609b988be",
        "96274538c93980aad8d6",
        "add0a9bbc53d1d9bac4c",
        "1018715d369dd0df2fc0",
    )
)


def read(file: Path, positive: int, negative: int) -> pd.DataFrame:
    """The annotations whose agreed class is ``positive`` or ``negative``; deleted ones and other classes are left out.

    A rater's vote is 1 for ``positive``, 0 for anything else. Raises LabelError for a file that isn't such a database, and
    with the annotations that can't be used.
    """
    annotations, labels = _query(file, positive, negative)
    votes = (labels["class"] == positive).astype(np.int8).groupby(labels["annoId"]).apply(lambda v: v.to_numpy())
    problems = []
    for row in annotations.itertuples(index=False):
        if row.n not in N_COORDINATES.get(row.type, ()):
            wrong = f"{row.n} coordinates, type {row.type}; expected one of a spot, or two of an area or a circle"
        else:
            known = row.width and row.height
            wrong = off_slide(row.x, row.y, row.width, row.height) if known else None
        if wrong:
            problems.append(f"annotation {row.uid} on {row.filename}: {wrong}")
    refuse(file, problems, "annotations that can't be used; correct or remove them:")
    none = np.empty(0, dtype=np.int8)
    return pd.DataFrame(
        {
            "slide_id": annotations["filename"],
            "case_id": annotations["filename"].map(lambda name: Path(name).stem),
            "domain": "",
            "label": (annotations["agreedClass"] == positive).astype(np.int8),
            "x_l0_px": annotations["x"],
            "y_l0_px": annotations["y"],
            "votes": [votes.get(uid, none) for uid in annotations["uid"]],
        }
    )


def _query(file: Path, positive: int, negative: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Annotations with slide, number of coordinates and their mean; and the raters' classes in the order they were given."""
    try:
        database = sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)
    except sqlite3.Error as error:
        raise LabelError(f"{file}: can't be opened ({error}); check that it may be read") from None
    try:
        columns = {
            table: {column[1] for column in database.execute(f"PRAGMA table_info({table})").fetchall()} for table in NEEDED
        }
        missing = [f"{table}.{name}" for table, names in NEEDED.items() for name in sorted(names - columns[table])]
        if missing:
            raise LabelError(f"{file}: no database of SlideRunner's: without {', '.join(missing)}; fetch the file again")
        kept = "AND NOT coalesce(a.deleted, 0)" if "deleted" in columns["Annotations"] else ""
        annotations = pd.read_sql_query(
            f"""SELECT a.uid, a.type, a.agreedClass, s.filename, s.width, s.height,
                       count(c.annoId) AS n, avg(c.coordinateX) AS x, avg(c.coordinateY) AS y
                FROM Annotations a JOIN Slides s ON s.uid = a.slide LEFT JOIN Annotations_coordinates c ON c.annoId = a.uid
                WHERE a.agreedClass IN (?, ?) {kept} GROUP BY a.uid ORDER BY a.uid""",
            database,
            params=(positive, negative),
        )
        labels = pd.read_sql_query("SELECT annoId, class FROM Annotations_label ORDER BY annoId, uid", database)
    except (sqlite3.Error, pd.errors.DatabaseError) as error:
        raise LabelError(f"{file}: not a database that can be read ({error}); fetch the file again") from None
    finally:
        database.close()
    if annotations.empty:
        raise LabelError(f"{file}: no annotation whose agreed class is {positive} or {negative}; fetch the file again")
    return annotations, labels


def as_ccmct(table: pd.DataFrame) -> pd.DataFrame:
    """CCMCT's rows with the one tumour, scanner and laboratory of all its slides, and the authors' split."""
    test = table["slide_id"].isin(CCMCT_TEST_SLIDES)
    return table.assign(
        domain="canine cutaneous mast cell tumor",
        scanner="Aperio CS2",
        lab="FU Berlin",
        species="canine",
        official_split=np.where(test, "test", "train"),
    )
