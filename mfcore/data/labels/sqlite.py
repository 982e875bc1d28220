"""SlideRunner's databases, in which CCMCT and MIDOG are published too: the agreed class of each
annotation, and each rater's.

An annotation has one coordinate (a spot) or two (the corners of an area or a circle); a polygon has
no one centre.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd

from mfcore.data.labels import csv
from mfcore.data.labels.schema import LabelError, refuse, say

N_COORDINATES = {1: 1, 2: 2, 4: 1, 5: 2}  # by SlideRunner's type: spot, area, special spot, circle
NOT_AGREED = 0  # SlideRunner's class where the raters have no majority

# The 11 of CCMCT's 32 slides that its authors test on (Aubreville et al. 2019; their statistics at
# commit a088eea).
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


def read(file: Path, positive: int, negative: int, left_out: tuple[int, ...] = ()) -> pd.DataFrame:
    """The annotations whose agreed class is ``positive`` or ``negative``.

    Left out are deleted ones, those that the raters don't agree on and the classes ``left_out``. A
    rater's vote is 1 for ``positive``, 0 for anything else. Raises LabelError for a file that isn't
    such a database, for classes that are none of these, and with the annotations that can't be
    used.
    """
    rows, cast = _query(file)
    known = rows["agreedClass"].isin((positive, negative, NOT_AGREED, *left_out))
    unknown = rows.loc[~known, "agreedClass"].value_counts()
    refuse(
        file,
        [f"class {number}: {n} annotations" for number, n in unknown.items()],
        f"agreed classes that mean nothing here ({positive}: mitotic figure, {negative}:"
        " look-alike); fetch the file again:",
    )
    rows = rows[rows["agreedClass"].isin((positive, negative))].fillna({"file": ""})
    is_wrong = rows["n"] != rows["type"].map(N_COORDINATES)
    expected = "{n} coordinates, type {type}; expected one of a spot, two of an area or a circle"
    refuse(file, say(rows, is_wrong, expected), "annotations that can't be used; correct them:")
    votes = (cast["class"] == positive).astype(np.int8).groupby(cast["annoId"])
    votes_of = {uid: of_one.to_numpy() for uid, of_one in votes}
    return rows[["file", "x", "y", "width", "height"]].assign(
        domain="",
        label=(rows["agreedClass"] == positive).astype(int),
        votes=[votes_of.get(uid, np.empty(0, dtype=np.int8)) for uid in rows["uid"]],
    )


def _query(file: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Annotations with slide, number of coordinates and their mean; the raters' classes in the
    order given. A side of a slide that nobody knows is 0 or empty in the file, NaN here.
    """
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as database:
            columns = pd.read_sql_query("PRAGMA table_info(Annotations)", database)["name"]
            kept = "AND NOT coalesce(a.deleted, 0)" if "deleted" in set(columns) else ""
            annotations = pd.read_sql_query(
                f"""SELECT 'annotation ' || a.uid || ' on ' || coalesce(s.filename, a.slide)
                           AS place, a.uid, a.type, a.agreedClass, s.filename AS file,
                           nullif(s.width, 0) AS width, nullif(s.height, 0) AS height,
                           count(c.annoId) AS n, avg(c.coordinateX) AS x, avg(c.coordinateY) AS y
                    FROM Annotations a LEFT JOIN Slides s ON s.uid = a.slide
                    LEFT JOIN Annotations_coordinates c ON c.annoId = a.uid
                         AND typeof(c.coordinateX) IN ('integer', 'real')
                         AND typeof(c.coordinateY) IN ('integer', 'real')
                    WHERE a.agreedClass IS NOT NULL {kept} GROUP BY a.uid ORDER BY a.uid""",
                database,
                index_col="place",
            )
            order = "SELECT annoId, class FROM Annotations_label ORDER BY annoId, uid"
            return annotations, pd.read_sql_query(order, database)
    except (sqlite3.Error, pd.errors.DatabaseError) as error:
        raise LabelError(
            f"{file}: not a database of SlideRunner's that can be read ({error}); fetch the file"
            " again"
        ) from None


def read_ccmct(file: Path) -> pd.DataFrame:
    """CCMCT's rows with the one tumour, scanner and laboratory of all its slides, and the authors'
    split.
    """
    if file.suffix == ".csv":
        table = csv.read_as_released(file, ("0", "1"))
    else:
        table = read(file, positive=2, negative=7, left_out=(1, 3))
    test = table["file"].isin(CCMCT_TEST_SLIDES)
    return table.assign(
        domain="canine cutaneous mast cell tumor",
        scanner="Aperio CS2",
        lab="FU Berlin",
        species="canine",
        split=np.where(test, "test", "train"),
    )
