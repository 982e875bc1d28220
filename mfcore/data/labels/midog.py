"""MIDOG 2022's and MIDOG++'s labels: their forms, the domain and scanner of an image, and how the
two editions belong together.

MIDOG's JSON: ``images`` and ``annotations``, where a box is two corners [x1, y1, x2, y2], not
COCO's corner and size; category 1 is the mitotic figure, 2 the look-alike. MIDOG 2022's doesn't
name the tumour: its images come in blocks of numbers (Aubreville et al. 2023). From MIDOG 2022 to
MIDOG++ the numbers shift by 0, 50, 51 and, once, 43 (the annotations tell: midog.yaml has it).
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
COLUMNS = {"file_name": "file", "case_id": "case", "tumor_type": "domain"}  # of MIDOG's JSON
CASES = {  # columns of MIDOG++'s table of cases, and what they say
    "Slide": "Slide",
    "Dataset": "split",
    "Tumor": "domain",
    "Scanner": "scanner",
    "Origin": "lab",
    "Species": "species",
}


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
    rows = _with_facts(_read(file, ("0", "1")), _of_edition("midog22"), file)
    return rows if other is None else carry(rows, read_midogpp(other, cases), file)


def read_midogpp(file: Path, cases: Path | None = None) -> pd.DataFrame:
    """MIDOG++'s rows, with domain, species, laboratory, scanner and official split of each image.

    cases: MIDOG++'s table of cases, where there is one; else they come by the image's number, and
    there is no split.
    """
    rows = _with_facts(_read(file, ("2", "1")), _of_edition("midogpp"), file)
    return rows if cases is None else _with_facts(rows, _of_cases(cases), cases)


def note_on_midog22(table: pd.DataFrame) -> str:
    """What must be said of MIDOG 2022's labels: its published counts are swapped."""
    n_positive = int(table["label"].sum())
    return (
        "Ganz et al. 2024 print MIDOG 2022's two counts the wrong way round: these labels have"
        f" {n_positive:,} mitotic figures and {len(table) - n_positive:,} look-alikes."
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
    content = _content(file).model_dump()
    if not content["annotations"]:
        raise LabelError(f"{file}: no annotation in it; a study needs some of both classes")
    annotations = pd.DataFrame(content["annotations"])
    images = pd.DataFrame(content["images"], columns=[*Image.model_fields])
    problems = [
        f"{kind} {name}: this id or name stands there twice"
        for kind, names in (
            ("image", images["id"]),
            ("image", images["file_name"]),
            ("annotation", annotations["id"]),
        )
        for name in names[names.duplicated()]
    ]
    images = images.rename(columns={"id": "image_id"} | COLUMNS)
    rows = annotations.merge(images, "left", "image_id")
    problems += [
        f"annotation {row.id}: its image {row.image_id} is not among the images"
        for row in rows[rows["file"].isna()].itertuples()
    ]
    refuse(file, problems, "images and annotations that can't be used; correct or remove them:")
    boxes = np.array(rows["bbox"].tolist())  # (n, 4)
    x, y = ((boxes[:, :2] + boxes[:, 2:]) / 2).T
    rows = rows.set_index("annotation " + rows["id"] + " on " + rows["file"])
    return rows.assign(
        label=2 - rows["category_id"],
        votes=[2 - np.array(votes, dtype=np.int8) for votes in rows["labels"]],
        x=x,
        y=y,
    )


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


def _of_edition(edition: str) -> pd.DataFrame:
    """What midog.yaml says of each image of an edition, by its number."""
    content = (resources.files("mfcore.data.labels") / "midog.yaml").read_text(encoding="utf-8")
    blocks = yaml.safe_load(content)[edition]
    numbers = {n: block for block in blocks for n in range(block["first"], block["last"] + 1)}
    return pd.DataFrame.from_dict(numbers, "index").drop(columns=["first", "last"]).assign(split="")


def _of_cases(file: Path) -> pd.DataFrame:
    """What MIDOG++'s table of cases says of each image, by its number; of one that has several
    lines, nothing.
    """
    cases = csv.lines(file, CASES)[[*CASES]].replace(NAMES).rename(columns=CASES)
    cases = cases.set_index(pd.to_numeric(cases.pop("Slide")))
    cases["species"] = cases["species"].str.lower()
    return cases[~cases.index.duplicated(keep=False)]


def _numbers(rows: pd.DataFrame) -> pd.Series:
    """The number that names each row's image, -1 for none."""
    stems = rows["file"].map(lambda name: Path(name).stem)
    return stems.where(stems.str.isdigit(), "-1").astype(int)


def _with_facts(rows: pd.DataFrame, facts: pd.DataFrame, file: Path) -> pd.DataFrame:
    """``rows`` with ``facts`` of their images, by number; a domain that they name themselves must
    be the same.
    """
    facts = facts.reindex(_numbers(rows)).set_axis(rows.index)
    named, expected = rows["domain"].replace(NAMES), facts["domain"].fillna("no image there is")
    is_wrong = facts["domain"].isna() | ((named != "") & (named != expected))
    wrong = rows.assign(named=named, expected=expected)[is_wrong].drop_duplicates("file")
    problems = [
        f"{row.file}: the labels say {row.named!r}, by its number it is {row.expected!r}"
        for row in wrong.itertuples()
    ]
    refuse(file, problems, "images that aren't what their number says; fetch the file again:")
    return rows.assign(**facts)


def carry(rows: pd.DataFrame, other: pd.DataFrame, file: Path) -> pd.DataFrame:
    """``rows`` with the votes and the official split that ``other``, another edition, has for the
    same annotations.

    Annotations are the same where their images are, by ``shift`` (number in ``other`` less number
    in ``rows``), and their centres, to half a px; those without a partner get no votes. file: the
    label file of ``rows``. Raises LabelError where no annotation has a partner, and where one has
    another class.
    """
    key = ["number", "x", "y"]
    mine, theirs = (
        table.assign(
            number=_numbers(table) + shift,
            **{axis: (2 * table[axis]).round().astype(np.int64) for axis in "xy"},
        )
        for table, shift in ((rows, rows["shift"].astype(int)), (other, 0))
    )
    joined = mine[key].merge(theirs[[*key, "label", "votes"]], "left", key, validate="many_to_one")
    joined = joined.set_axis(rows.index)
    if joined["label"].isna().all():
        raise LabelError(
            f"{file}: no image has its annotations where the other edition beside it has them;"
            " remove the one that isn't meant"
        )
    is_other = joined["label"].notna() & (joined["label"] != rows["label"])
    refuse(
        file,
        say(rows, is_other, "{file} at ({x:g}, {y:g}): another class"),
        "annotations that the other edition beside it gives another class; keep the edition that is"
        " meant:",
    )
    none, split_of = np.empty(0, dtype=np.int8), theirs.groupby("number")["split"].first()
    return rows.assign(
        votes=[votes if isinstance(votes, np.ndarray) else none for votes in joined["votes"]],
        split=mine["number"].map(split_of).fillna(""),
    )
