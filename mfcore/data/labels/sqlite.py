"""SlideRunner's databases, in which CCMCT and MIDOG are published too: the agreed class of each
annotation, and each rater's.

An annotation has one coordinate (a spot) or two (the corners of an area or a circle); a polygon has
no one centre.
"""

import sqlite3
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import pandas as pd

from mfcore.data.labels import csv
from mfcore.data.labels.schema import LabelError, is_file_name, off_slide, refuse

NEEDED = {
    "Slides": {"uid", "filename", "width", "height"},
    "Annotations": {"uid", "slide", "type", "agreedClass"},
    "Annotations_coordinates": {"coordinateX", "coordinateY", "annoId"},
    "Annotations_label": {"uid", "class", "annoId"},
    "Classes": {"uid", "name"},
}
N_COORDINATES = {
    1: (1,),
    2: (2,),
    4: (1,),
    5: (2,),
}  # by SlideRunner's type: spot, area, special spot, circle

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
    """The annotations whose agreed class is ``positive`` or ``negative``, without ``patch_id``.

    Left out are deleted ones, those that the raters don't agree on and the classes ``left_out``. A
    rater's vote is 1 for ``positive``, 0 for anything else. Raises LabelError for a file that isn't
    such a database, for classes that are none of these, and with the annotations that can't be
    used.
    """
    annotations, labels, names = _query(file)
    known = annotations["agreedClass"].isin((positive, negative, NOT_AGREED, *left_out))
    refuse(
        file,
        [
            f"class {c!r} ({names.get(c, 'unnamed')}): {n} annotations"
            for c, n in annotations.agreedClass[~known].value_counts().items()
        ],
        f"agreed classes that mean nothing here ({positive}: mitotic figure, {negative}:"
        " look-alike); fetch the file again:",
    )
    annotations = annotations[annotations["agreedClass"].isin((positive, negative))]
    if annotations.empty:
        raise LabelError(
            f"{file}: no annotation whose agreed class is {positive} or {negative}; fetch the file"
            " again"
        )
    twice = annotations.duplicated(["filename", "x", "y"])
    refuse(
        file,
        [
            f"annotation {row.uid} {problem}"
            for row, again in zip(annotations.itertuples(), twice, strict=True)
            if (problem := _problem(row, again))
        ],
        "annotations that can't be used; correct or remove them:",
    )
    votes = (
        (labels["class"] == positive)
        .astype(np.int8)
        .groupby(labels["annoId"])
        .apply(lambda v: v.to_numpy())
    )
    none = np.empty(0, dtype=np.int8)
    return pd.DataFrame(
        {
            "slide_id": annotations["filename"],
            "case_id": annotations["filename"].map(lambda name: Path(name).stem),
            "domain": "",
            "label": (annotations["agreedClass"] == positive).astype(np.int8),
            "x_l0_px": annotations["x"].astype(float),
            "y_l0_px": annotations["y"].astype(float),
            "votes": [votes.get(uid, none) for uid in annotations["uid"]],
        }
    ).reset_index(drop=True)


def _problem(row: NamedTuple, again: bool) -> str | None:
    """What is wrong with one annotation of the database, None if nothing; ``again``: its place
    stands there twice.
    """
    if not is_file_name(row.filename):
        return (
            f"is of slide {row.slide}, whose filename is {row.filename!r}; expected a file's name"
            " without a folder"
        )
    if row.n not in N_COORDINATES.get(row.type, ()):
        return (
            f"on {row.filename}: {row.n} coordinates, type {row.type}; expected one of a spot, or"
            " two of an area or a circle"
        )
    if again:
        return f"on {row.filename}: its centre ({row.x:g}, {row.y:g}) is another one's too"
    wrong = off_slide(row.x, row.y, row.width, row.height) if row.width and row.height else None
    return wrong and f"on {row.filename}: {wrong}"


def _query(file: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict[int, str]]:
    """Annotations with slide, number of coordinates and their mean; the raters' classes in the
    order given; classes' names.
    """
    try:
        database = sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)
    except sqlite3.Error as error:
        raise LabelError(f"{file}: can't be opened ({error}); check that it may be read") from None
    try:
        columns = {
            table: {
                column[1] for column in database.execute(f"PRAGMA table_info({table})").fetchall()
            }
            for table in NEEDED
        }
        missing = [
            f"{table}.{name}"
            for table, names in NEEDED.items()
            for name in sorted(names - columns[table])
        ]
        if missing:
            raise LabelError(
                f"{file}: no database of SlideRunner's: without {', '.join(missing)}; fetch the"
                " file again"
            )
        kept = "AND NOT coalesce(a.deleted, 0)" if "deleted" in columns["Annotations"] else ""
        annotations = pd.read_sql_query(
            f"""SELECT a.uid, a.type, a.agreedClass, a.slide, s.filename, s.width, s.height,
                       count(c.annoId) AS n, avg(c.coordinateX) AS x, avg(c.coordinateY) AS y
                FROM Annotations a LEFT JOIN Slides s ON s.uid = a.slide
                LEFT JOIN Annotations_coordinates c ON c.annoId = a.uid
                     AND typeof(c.coordinateX) IN ('integer', 'real')
                     AND typeof(c.coordinateY) IN ('integer', 'real')
                WHERE a.agreedClass IS NOT NULL {kept} GROUP BY a.uid ORDER BY a.uid""",
            database,
        )
        labels = pd.read_sql_query(
            "SELECT annoId, class FROM Annotations_label ORDER BY annoId, uid", database
        )
        names = dict(database.execute("SELECT uid, name FROM Classes").fetchall())
    except (sqlite3.Error, pd.errors.DatabaseError) as error:
        raise LabelError(
            f"{file}: not a database that can be read ({error}); fetch the file again"
        ) from None
    finally:
        database.close()
    return annotations, labels, names


def read_ccmct(file: Path) -> pd.DataFrame:
    """CCMCT's rows with the one tumour, scanner and laboratory of all its slides, and the authors'
    split.
    """
    if file.suffix == ".csv":
        table = csv.read_as_released(file, ("0", "1"))
    else:
        table = read(file, positive=2, negative=7, left_out=(1, 3))
    test = table["slide_id"].isin(CCMCT_TEST_SLIDES)
    return table.assign(
        domain="canine cutaneous mast cell tumor",
        scanner="Aperio CS2",
        lab="FU Berlin",
        species="canine",
        official_split=np.where(test, "test", "train"),
    )
