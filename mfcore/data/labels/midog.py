"""MIDOG 2022's and MIDOG++'s labels: their forms, the domain and scanner of an image, and how the
two editions belong together.

MIDOG's JSON: ``images`` and ``annotations``, where a box is two corners [x1, y1, x2, y2], not
COCO's corner and size; category 1 is the mitotic figure, 2 the look-alike. MIDOG 2022's doesn't
name the tumour: its images come in blocks of numbers (Aubreville et al. 2023). From MIDOG 2022 to
MIDOG++ the numbers shift by 0, 50, 51 and, once, 43, so that only the annotations tell which image
of the one is which of the other; a constant shift would mislabel eight.
"""

from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mfcore.data.labels import csv, sqlite
from mfcore.data.labels.schema import LabelError, refuse, say
from mfcore.store.options import Count, Number, problems_of
from mfcore.store.text import parse_json

# One name for one thing, however an edition writes it.
NAMES = {
    "canine lymphosarcoma": "canine lymphoma",
    "Hamammatsu XR": "Hamamatsu XR",
    "3D Histech": "3DHistech",
}
CASE_COLUMNS = ("Slide", "Dataset", "Tumor", "Scanner", "Origin", "Species")
KEY = ["file", "x", "y"]  # of an annotation, in half px
# of the annotations of two images that must stand at the same places, for the images to be the same
LEAST_SHARE = 0.5


def _corners(box: list[float]) -> list[float]:
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        raise ValueError(
            f"{box} isn't two corners [x1, y1, x2, y2] with x2 > x1 and y2 > y1 (is it COCO's"
            " [x, y, width, height]?)"
        )
    return box


def _mitotic(category: "Category") -> "Category":
    if category.id == 1 and not category.name.lower().startswith("mitotic"):
        raise ValueError(
            f"category 1 is called {category.name!r}; it must be the mitotic figure, 2 the rest"
        )
    return category


Id = Annotated[str, BeforeValidator(str)]
# What an image says with null it doesn't say
Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else str(value).strip())]
Box = Annotated[list[Number], Field(min_length=4, max_length=4), AfterValidator(_corners)]
Class = Literal[1, 2]  # mitotic figure, look-alike


class _Entry(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)


class Image(_Entry):
    """An image of MIDOG's JSON; the last five keys are ours."""

    id: Id
    file_name: str
    width: Count
    height: Count
    tumor_type: Text = ""
    case_id: Text = ""
    scanner: Text = ""
    lab: Text = ""
    species: Text = ""
    split: Text = ""


class Annotation(_Entry):
    """An annotation of MIDOG's JSON; ``labels`` are the raters' votes."""

    id: Id
    image_id: Id
    bbox: Box
    category_id: Class
    labels: list[Class] = []


class Category(_Entry):
    """A class of MIDOG's JSON."""

    id: int
    name: str


class Content(_Entry):
    """MIDOG's JSON; keys that it doesn't name are left out."""

    images: list[Image]
    annotations: list[Annotation]
    categories: list[Annotated[Category, AfterValidator(_mitotic)]] = []


def read_midog22(file: Path, other: Path | None = None, cases: Path | None = None) -> pd.DataFrame:
    """MIDOG 2022's rows, with domain, species, laboratory and scanner by each image's number.

    other, cases: labels of MIDOG++ and its table of cases, from which votes and the official split
    come.
    """
    table = _by_number(_read(file, ("0", "1")), "midog22", file)
    return table if other is None else carry(table, read_midogpp(other, cases), file)


def read_midogpp(file: Path, cases: Path | None = None) -> pd.DataFrame:
    """MIDOG++'s rows, with domain, species, laboratory, scanner and official split of each image.

    cases: MIDOG++'s table of cases, where there is one; else they come by the image's number, and
    there is no split.
    """
    table = _by_number(_read(file, ("2", "1")), "midogpp", file)
    return table if cases is None else _by_case(table, cases)


def note_on_midog22(table: pd.DataFrame) -> str:
    """What must be said of MIDOG 2022's labels: its published counts are swapped, and some
    annotations have no votes.
    """
    n_positive = int(table["label"].sum())
    note = (
        "Ganz et al. 2024 print MIDOG 2022's two counts the wrong way round: these labels have"
        f" {n_positive:,} mitotic figures and {len(table) - n_positive:,} look-alikes."
    )
    unmatched = table.loc[table["votes"].map(len) == 0, "slide_id"].value_counts(sort=False)
    if not 0 < unmatched.sum() < len(table):
        return note
    names = [f"{slide} ({n})" for slide, n in unmatched.items()]
    more = f" and {len(names) - 10} more slides" if len(names) > 10 else ""
    return (
        f"{note} Not in MIDOG++, and so without raters' votes, are annotations of"
        f" {', '.join(names[:10])}{more}."
    )


def _read(file: Path, label_values: tuple[str, str]) -> pd.DataFrame:
    """A label file of any form; ``label_values``: how its CSV writes class 0 and class 1."""
    if file.suffix == ".csv":
        return csv.read_as_released(file, label_values)
    if file.suffix == ".sqlite":
        return sqlite.read(file, positive=1, negative=2)
    return read_json(file)


def read_json(file: Path) -> pd.DataFrame:
    """The rows of a MIDOG JSON; raises LabelError, with the images and annotations that can't be.

    An image may name, beyond MIDOG's keys, its ``case_id``, ``scanner``, ``lab``, ``species`` and
    ``split``.
    """
    content = _content(file)
    images = {image.id: image for image in content.images}
    problems = [
        f"{kind} {name}: this id or name stands there twice"
        for kind, names in (
            ("image", [image.id for image in content.images]),
            ("image", [image.file_name for image in content.images]),
            ("annotation", [annotation.id for annotation in content.annotations]),
        )
        for name in pd.Series(names)[pd.Series(names).duplicated()]
    ]
    problems += [
        f"annotation {annotation.id}: its image {annotation.image_id} is not among the images"
        for annotation in content.annotations
        if annotation.image_id not in images
    ]
    refuse(file, problems, "images and annotations that can't be used; correct or remove them:")
    rows = []
    for annotation in content.annotations:
        image, (x1, y1, x2, y2) = images[annotation.image_id], annotation.bbox
        of_slide = ("scanner", "lab", "species", "split", "width", "height")
        rows.append(
            {
                "place": f"annotation {annotation.id} on {image.file_name}",
                "file": image.file_name,
                "case": image.case_id,
                "domain": image.tumor_type,
                **{name: getattr(image, name) for name in of_slide},
                "label": 2 - annotation.category_id,
                "x": (x1 + x2) / 2,
                "y": (y1 + y2) / 2,
                "votes": 2 - np.array(annotation.labels, dtype=np.int8),
            }
        )
    if not rows:
        raise LabelError(f"{file}: no annotation in it; a study needs some of both classes")
    return pd.DataFrame(rows).set_index("place")


def _content(file: Path) -> Content:
    read, problems = None, []
    try:
        read = parse_json(file.read_text(encoding="utf-8-sig"))
        content = Content.model_validate(read)
    except ValidationError as error:
        problems = problems_of(error, Content, read)
    except ValueError as error:
        problems = [str(error)]
    remedy = "not MIDOG's JSON with 'images' and 'annotations'; correct it, or fetch it again:"
    refuse(file, problems, remedy)
    return content


def _by_number(rows: pd.DataFrame, edition: str, file: Path) -> pd.DataFrame:
    """``rows`` with what midog.yaml says of each image; a domain that the file names itself must be
    the same.
    """
    content = (resources.files("mfcore.data.labels") / "midog.yaml").read_text(encoding="utf-8")
    blocks = pd.DataFrame(yaml.safe_load(content)[edition])
    stems = _stems(rows)
    numbers = stems.where(stems.str.isdigit(), "-1").astype(int)
    at = pd.IntervalIndex.from_arrays(blocks["first"], blocks["last"], "both").get_indexer(numbers)
    facts = blocks[["domain", "species", "lab", "scanner"]].iloc[at].set_axis(rows.index)
    expected = facts["domain"].where(at >= 0, "no image of this data set")
    named = rows["domain"].replace(NAMES) if "domain" in rows else ""
    slides = rows.assign(named=named, expected=expected)
    wrong = slides[(at < 0) | ((slides["named"] != "") & (slides["named"] != expected))]
    problems = [
        f"{row.file}: the file says {row.named!r}, by its number it is {row.expected!r}"
        for row in wrong.drop_duplicates("file").itertuples()
    ]
    refuse(file, problems, "images that aren't what their number says; fetch the file again:")
    return rows.assign(**facts, split="")


def _stems(rows: pd.DataFrame) -> pd.Series:
    return rows["file"].map(lambda name: Path(name).stem)


def _by_case(rows: pd.DataFrame, file: Path) -> pd.DataFrame:
    """``rows`` with what MIDOG++'s table of cases says of each image."""
    cases = csv.lines(file, CASE_COLUMNS).replace(NAMES)
    cases = cases.set_index(cases["Slide"].str.zfill(3))
    cases = cases[~cases.index.duplicated(keep=False)].reindex(_stems(rows)).set_axis(rows.index)
    pairs = rows.assign(case=cases["Tumor"].fillna("no row, or several"))
    wrong = pairs[pairs["case"] != pairs["domain"]].drop_duplicates("file")
    problems = say(wrong, wrong["file"] != "", "the cases have {case!r}, the labels {domain!r}")
    refuse(file, problems, "cases that don't fit the labels; fetch both again:")
    return rows.assign(
        scanner=cases["Scanner"],
        lab=cases["Origin"],
        species=cases["Species"].str.lower(),
        split=cases["Dataset"],
    )


def match_slides(first: pd.DataFrame, second: pd.DataFrame) -> dict[str, str]:
    """Slides of ``first`` by those of ``second`` that are the same: file to file.

    Both as readers return them. A slide's fingerprint is the set of its annotations' centres
    (level-0 px, to half a px). Two slides are the same where each shares more centres with the
    other than with any other slide, and these are at least LEAST_SHARE of the centres of either.
    Slides without a partner are left out.
    """
    places = [_at_halves(table)[KEY].drop_duplicates() for table in (first, second)]
    shared = (
        places[0]
        .merge(places[1], on=["x", "y"])
        .value_counts(["file_x", "file_y"])
        .reset_index(name="n")
    )
    is_same = np.ones(len(shared), dtype=bool)
    for side, place in zip(("file_x", "file_y"), places, strict=True):
        n_places = place["file"].value_counts().reindex(shared[side]).to_numpy()
        has_most = (
            shared.groupby(side)["n"].rank(method="max", ascending=False) == 1
        )  # of a tie, neither has most
        is_same &= has_most & (shared["n"] >= LEAST_SHARE * n_places)
    return dict(zip(shared.loc[is_same, "file_x"], shared.loc[is_same, "file_y"], strict=True))


def carry(table: pd.DataFrame, other: pd.DataFrame, file: Path) -> pd.DataFrame:
    """``table`` with the votes and the official split that ``other``, another edition, has for the
    same annotations.

    Annotations are the same where their slides are (`match_slides`) and their centres; those
    without a partner get no votes. file: the label file of ``table``. Raises LabelError where no
    slide has a partner, and where the same annotation has another class.
    """
    partners = match_slides(table, other)
    if not partners:
        raise LabelError(
            f"{file}: no slide has its annotations where the other edition beside it has them;"
            " remove the one that isn't meant"
        )
    partner = table["file"].map(partners)
    mine = _at_halves(table).assign(file=partner)[KEY]
    theirs = _at_halves(other)[[*KEY, "label", "votes"]]
    joined = mine.merge(theirs, on=KEY, how="left", validate="many_to_one").set_index(table.index)
    is_other = joined["label"].notna() & (joined["label"] != table["label"])
    refuse(
        file,
        say(table, is_other, "{file} at ({x:g}, {y:g}): another class"),
        "annotations that the other edition beside it gives another class; keep the edition that is"
        " meant:",
    )
    none = np.empty(0, dtype=np.int8)
    official = other.groupby("file")["split"].first()
    return table.assign(
        votes=[votes if isinstance(votes, np.ndarray) else none for votes in joined["votes"]],
        split=partner.map(official).fillna(""),
    )


def _at_halves(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` with its centres as whole numbers of half px, ``x`` and ``y``."""
    return table.assign(**{axis: (2 * table[axis]).round().astype(np.int64) for axis in "xy"})
