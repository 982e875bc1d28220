"""MIDOG 2022's and MIDOG++'s labels: their forms, the domain and scanner of an image, and how the
two editions belong together.

MIDOG's JSON: ``images`` and ``annotations``, where a box is two corners [x1, y1, x2, y2], not
COCO's corner and size; category 1 is the mitotic figure, 2 the look-alike. MIDOG 2022's doesn't
name the tumour: its images come in blocks of numbers (Aubreville et al. 2023). From MIDOG 2022 to
MIDOG++ the numbers shift by 0, 50, 51 and, once, 43, so that only the annotations tell which image
of the one is which of the other; a constant shift would mislabel eight.
"""

import math
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from mfcore.data.labels import csv, sqlite
from mfcore.data.labels.schema import (
    SPLITS,
    LabelError,
    is_file_name,
    off_slide,
    read_text,
    refuse,
    wrong_domain,
)
from mfcore.store.text import TwiceError, parse_json

CATEGORIES = {1: 1, 2: 0}  # MIDOG's category -> label
# One name for one thing, however an edition writes it.
NAMES = {
    "canine lymphosarcoma": "canine lymphoma",
    "Hamammatsu XR": "Hamamatsu XR",
    "3D Histech": "3DHistech",
}
CASE_COLUMNS = {"Slide", "Dataset", "Tumor", "Scanner", "Origin", "Species"}
KEY = ["slide_id", "x", "y"]  # of an annotation, in half px
# of the annotations of two images that must stand at the same places, for the images to be the same
LEAST_SHARE = 0.5


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
    return read_json(file, needs_domain=False)


def read_json(file: Path, needs_domain: bool = True) -> pd.DataFrame:
    """The rows of a MIDOG JSON, without ``patch_id``; raises LabelError, with the images and
    annotations that can't be.

    An image may name, beyond MIDOG's keys, its ``case_id``, ``scanner``, ``lab``, ``species`` and
    ``split``.
    needs_domain: whether each image must name its ``tumor_type``; else the domain is empty where it
    doesn't.
    """
    images, annotations = _read_content(file, needs_domain)
    rows, problems, seen, places = [], [], set(), {}
    for annotation in annotations:
        name = f"annotation {annotation.get('id')!r}"
        image = images.get(_key(annotation.get("image_id")))
        if _key(annotation.get("id")) in seen:
            problems.append(f"{name}: this id stands there twice")
        elif image is None:
            problems.append(
                f"{name}: its image {annotation.get('image_id')!r} is not among the images"
            )
        elif problem := _problem(annotation, image):
            problems.append(f"{name} on {image['file_name']}: {problem}")
        else:
            x1, y1, x2, y2 = annotation["bbox"]
            place = image["file_name"], x1 + x2, y1 + y2
            if places.setdefault(place, name) != name:
                problems.append(
                    f"{name} on {image['file_name']}: its centre is that of {places[place]}"
                )
            rows.append(
                {
                    "slide_id": image["file_name"],
                    "case_id": _text(image, "case_id") or Path(image["file_name"]).stem,
                    "domain": _text(image, "tumor_type"),
                    **{key: _text(image, key) for key in ("scanner", "lab", "species")},
                    "official_split": _text(image, "split"),
                    "label": CATEGORIES[annotation["category_id"]],
                    "x_l0_px": (x1 + x2) / 2,
                    "y_l0_px": (y1 + y2) / 2,
                    "votes": np.array(
                        [CATEGORIES[vote] for vote in annotation.get("labels", [])], dtype=np.int8
                    ),
                }
            )
        seen.add(_key(annotation.get("id")))
    refuse(file, problems, "annotations that can't be used; correct or remove them:")
    if not rows:
        raise LabelError(f"{file}: no annotation in it; a study needs some of both classes")
    return pd.DataFrame(rows)


def _read_content(
    file: Path, needs_domain: bool
) -> tuple[dict[int | float | str, dict], list[dict]]:
    """Images by id, and annotations, of a MIDOG JSON."""
    try:
        content = parse_json(file.read_text(encoding="utf-8-sig"))
        images, annotations = list(content["images"]), list(content["annotations"])
        categories = list(content.get("categories", []))
        if not all(isinstance(entry, dict) for entry in (*images, *annotations, *categories)):
            raise TypeError("an entry is not an object")
    except TwiceError as error:
        raise LabelError(f"{file}: {error}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise LabelError(
            f"{file}: not MIDOG's JSON with 'images' and 'annotations' ({type(error).__name__}:"
            f" {error}); fetch the file again"
        ) from None
    for category in categories:
        if category.get("id") == 1 and not str(category.get("name")).lower().startswith("mitotic"):
            raise LabelError(
                f"{file}: category 1 is called {category.get('name')!r}; it must be the mitotic"
                " figure, 2 the rest"
            )
    problems, by_id, names = [], {}, set()
    for image in images:
        key, name = _key(image.get("id")), _key(image.get("file_name"))
        if key in by_id or name in names:
            problems.append(
                f"image {image.get('id')!r}, {name!r}: this id or name stands there twice"
            )
        elif wrong := _wrong_image(image, needs_domain):
            problems.append(f"image {wrong}")
        by_id[key] = image
        names.add(name)
    refuse(file, problems, "images that can't be used; correct them:")
    return by_id, annotations


def _wrong_image(image: dict, needs_domain: bool) -> str | None:
    """The problem of an image of a MIDOG JSON, None without one."""
    name, sides = image.get("file_name"), [image.get("width"), image.get("height")]
    if not is_file_name(name):
        return (
            f"{image.get('id')!r}: file_name is {name!r}, expected a file's name without a folder"
        )
    if not all(isinstance(side, int) and side > 0 for side in sides):
        return f"{name!r}: width and height are {sides[0]!r} and {sides[1]!r}, no size in px"
    if needs_domain and not _text(image, "tumor_type"):
        return f"{name!r}: no tumor_type, which is the domain"
    if wrong := wrong_domain(_text(image, "tumor_type")):
        return f"{name!r}: tumor_type, the {wrong}"
    if _text(image, "split") not in SPLITS:
        return f"{name!r}: split is {image['split']!r}, expected train, val, test or nothing"
    return None


def _key(value: object) -> int | float | str:
    """An id to look up by; a list or an object, which can't be one, is its text."""
    return value if isinstance(value, int | float | str) else repr(value)


def _text(image: dict, key: str) -> str:
    """What an image says of itself, empty where it says nothing or null."""
    return "" if image.get(key) is None else str(image[key]).strip()


def _problem(annotation: dict, image: dict) -> str | None:
    """What is wrong with one annotation of a MIDOG JSON, None if nothing."""
    box = annotation.get("bbox")
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(v, int | float) and math.isfinite(v) for v in box)
    ):
        return f"bbox is {box!r}, expected four finite numbers [x1, y1, x2, y2]"
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        return (
            f"bbox {box} isn't two corners [x1, y1, x2, y2] with x2 > x1 and y2 > y1 (is it COCO's"
            " [x, y, width, height]?)"
        )
    if annotation.get("category_id") not in (1, 2):
        return (
            f"category_id is {annotation.get('category_id')!r}, expected 1 (mitotic figure) or 2"
            " (look-alike)"
        )
    votes = annotation.get("labels", [])
    if not isinstance(votes, list) or not all(vote in (1, 2) for vote in votes):
        return f"labels (the raters' votes) are {votes!r}, expected a list of 1 and 2"
    return off_slide((x1 + x2) / 2, (y1 + y2) / 2, image["width"], image["height"])


def _by_number(table: pd.DataFrame, edition: str, file: Path) -> pd.DataFrame:
    """``table`` with what midog.yaml says of each image; a domain that the file names itself must
    be the same.
    """
    content = (resources.files("mfcore.data.labels") / "midog.yaml").read_text(encoding="utf-8")
    blocks, rows, problems = yaml.safe_load(content)[edition], {}, []
    for slide_id, domain in table[["slide_id", "domain"]].drop_duplicates().itertuples(index=False):
        stem = Path(slide_id).stem
        number = int(stem) if stem.isdigit() else -1
        block = next((block for block in blocks if block["first"] <= number <= block["last"]), None)
        named = NAMES.get(domain, domain)
        if block is None:
            problems.append(f"{slide_id}: no image of this data set by its number")
        elif named not in ("", block["domain"]):
            problems.append(
                f"{slide_id}: the file says {named!r}, by its number it is {block['domain']!r}"
            )
        else:
            rows[slide_id] = block
    refuse(file, problems, "images that aren't what their number says; fetch the file again:")
    facts = pd.DataFrame([rows[slide_id] for slide_id in table["slide_id"]], index=table.index)
    return table.assign(**facts[["domain", "species", "lab", "scanner"]], official_split="")


def _by_case(table: pd.DataFrame, file: Path) -> pd.DataFrame:
    """``table`` with what MIDOG++'s table of cases says of each image."""
    cases = read_text(file, separator=";")
    if not set(cases.columns) >= CASE_COLUMNS:
        raise LabelError(
            f"{file}: expected the columns {sorted(CASE_COLUMNS)}, divided by semicolons; fetch it"
            " again"
        )
    cases = cases.replace(NAMES).set_index(cases["Slide"].str.zfill(3))
    number = table["slide_id"].map(lambda slide_id: Path(slide_id).stem)
    problems = [f"image {n}: no row" for n in sorted(set(number) - set(cases.index))]
    problems += [
        f"image {n}: more than one row" for n in sorted(set(cases.index[cases.index.duplicated()]))
    ]
    refuse(file, problems, "cases that don't fit the labels; fetch both again:")
    other = number.map(cases["Tumor"]) != table["domain"]
    problems = [
        f"image {n}: {cases.loc[n, 'Tumor']!r}, the labels say otherwise"
        for n in sorted(set(number[other]))
    ]
    problems += [
        f"image {n}: Dataset is {cases.loc[n, 'Dataset']!r}, expected {', '.join(SPLITS[1:])}"
        for n in sorted(set(number))
        if cases.loc[n, "Dataset"] not in SPLITS[1:]
    ]
    refuse(file, problems, "cases that don't fit the labels; fetch both again:")
    return table.assign(
        scanner=number.map(cases["Scanner"]),
        lab=number.map(cases["Origin"]),
        species=number.map(cases["Species"].str.lower()),
        official_split=number.map(cases["Dataset"]),
    )


def match_slides(first: pd.DataFrame, second: pd.DataFrame) -> dict[str, str]:
    """Slides of ``first`` by those of ``second`` that are the same: slide_id to slide_id.

    Both label tables. A slide's fingerprint is the set of its annotations' centres (level-0 px, to
    half a px). Two slides are the same where each shares more centres with the other than with any
    other slide, and these are at least LEAST_SHARE of the centres of either. Slides without a
    partner are left out.
    """
    places = [_at_halves(table)[KEY].drop_duplicates() for table in (first, second)]
    shared = (
        places[0]
        .merge(places[1], on=["x", "y"])
        .value_counts(["slide_id_x", "slide_id_y"])
        .reset_index(name="n")
    )
    is_same = np.ones(len(shared), dtype=bool)
    for side, place in zip(("slide_id_x", "slide_id_y"), places, strict=True):
        n_places = place["slide_id"].value_counts().reindex(shared[side]).to_numpy()
        has_most = (
            shared.groupby(side)["n"].rank(method="max", ascending=False) == 1
        )  # of a tie, neither has most
        is_same &= has_most & (shared["n"] >= LEAST_SHARE * n_places)
    return dict(
        zip(shared.loc[is_same, "slide_id_x"], shared.loc[is_same, "slide_id_y"], strict=True)
    )


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
    partner = table["slide_id"].map(partners)
    mine = _at_halves(table).assign(slide_id=partner)[KEY]
    theirs = _at_halves(other).drop_duplicates(KEY)[[*KEY, "label", "votes"]]
    joined = mine.merge(theirs, on=KEY, how="left", validate="many_to_one").set_index(table.index)
    differing = table[joined["label"].notna() & (joined["label"] != table["label"])]
    refuse(
        file,
        [
            f"{row.slide_id} at ({row.x_l0_px:g}, {row.y_l0_px:g}): another class"
            for row in differing.itertuples()
        ],
        "annotations that the other edition beside it gives another class; keep the edition that is"
        " meant:",
    )
    none = np.empty(0, dtype=np.int8)
    official = other.groupby("slide_id")["official_split"].first()
    return table.assign(
        votes=[votes if isinstance(votes, np.ndarray) else none for votes in joined["votes"]],
        official_split=partner.map(official).fillna(""),
    )


def _at_halves(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` with its centres as whole numbers of half px, ``x`` and ``y``."""
    return table.assign(
        **{axis: (2 * table[f"{axis}_l0_px"]).round().astype(np.int64) for axis in "xy"}
    )
