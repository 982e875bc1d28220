"""QuPath's GeoJSON: points and boxes with a classification as labels, and scores for QuPath to
show.

One file a slide, named as the slide: ``A.svs.geojson`` or ``A.geojson``. Where there is a table
``slides.csv``, it says what is known of the slides: ``file`` and any of OF_A_SLIDE. Form: QuPath's
own reader and writer (QuPathTypeAdapters.java of QuPath 0.5); places are px of the full resolution.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore.data.labels import csv
from mfcore.data.labels.schema import (
    MAX_OFF_SLIDE_PX,
    SPLITS,
    LabelError,
    as_classes,
    near_places,
    refuse,
    wrong_domain,
)
from mfcore.store.text import TwiceError, parse_json

OF_A_SLIDE = ("case", "domain", "scanner", "lab", "species", "split")
SLIDES = "slides.csv"
MAX_SIDE_PX = 400  # level-0 px of a cell's shape: 40 um at 0.1 um/px
BOX_PX = 50  # side of the boxes that are written, as MIDOG's
COLOURS = ((0, 114, 178), (213, 94, 0))  # of class 0 and class 1, Okabe and Ito 2008
SUFFIXES = (
    ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".svslide", ".dcm", ".png"
)  # fmt: skip


def read(files: tuple[Path, ...], label_values: tuple[str, ...]) -> pd.DataFrame:
    """The rows of GeoJSON files, a row a point or shape.

    A point is an annotation's centre; of any other shape the centre is that of its bounding box. A
    feature with several points is several annotations. The label is the classification's name.
    label_values: how class 0 and class 1 are written; `schema.REST` for all but the other class.
    Raises LabelError with all features and slides that can't be used.
    """
    of_slides = [file for file in files if file.name == SLIDES]
    of_labels = [file for file in files if file not in of_slides]
    folder = files[0].parent
    refuse(folder, _misnamed(folder, of_labels), "files that can't be used; rename or join them:")
    rows, problems = [], []
    for file in of_labels:
        for place, label, centre in _features(file):
            if isinstance(centre, str):
                problems.append(f"{place}: {centre}")
            else:
                rows.append((file.stem, place, label, *centre))
    refuse(folder, problems, "features that can't be used; correct or remove them in QuPath:")
    table = pd.DataFrame(rows, columns=["file_name", "place", "label", "x_l0_px", "y_l0_px"])
    if table.empty:
        raise LabelError(
            f"{folder}: no annotation in any .geojson; a study needs some of both classes"
        )
    named = table.set_index("place")["label"]
    table["label"] = as_classes(folder, named, label_values).to_numpy()
    places = table[table.duplicated(["file_name", "x_l0_px", "y_l0_px"])]
    twice = [f"{row.file_name}: ({row.x_l0_px:g}, {row.y_l0_px:g})" for row in places.itertuples()]
    centres = table[["x_l0_px", "y_l0_px"]].to_numpy(float)
    twice += near_places(table["file_name"], centres, named.index)
    refuse(folder, twice, "places that are annotated twice; remove one:")
    table["label"] = table["label"].map(label_values.index)
    names = {file.stem for file in of_labels}
    slides = _slides(of_slides[0], names) if of_slides else pd.DataFrame()
    slides = slides.reindex(index=table["file_name"], columns=OF_A_SLIDE, fill_value="")
    slides = slides.reset_index(drop=True)
    stems = table["file_name"].map(_without_suffix)
    return table.assign(
        slide_id=table["file_name"],
        case_id=slides["case"].where(slides["case"] != "", stems),
        domain=slides["domain"].where(slides["domain"] != "", csv.ONE_DOMAIN),
        official_split=slides["split"],
        **{name: slides[name] for name in ("scanner", "lab", "species")},
    )


def _misnamed(folder: Path, files: list[Path]) -> list[str]:
    """Files beside the labels that would be passed over, and two files of one slide."""
    names = {file.stem for file in files}
    problems = [
        f"{name}.geojson and {_without_suffix(name)}.geojson: both of one slide"
        for name in sorted(names)
        if _without_suffix(name) != name and _without_suffix(name) in names
    ]
    for name in sorted(file.name for file in folder.iterdir()):
        if name.lower() == SLIDES and name != SLIDES:
            problems.append(f"{name}: name it {SLIDES}")
        if name.lower().endswith(".geojson") and not name.endswith(".geojson"):
            problems.append(f"{name}: name it {Path(name).stem}.geojson")
    return problems


def _without_suffix(name: str) -> str:
    return name[: -len(Path(name).suffix)] if name.lower().endswith(SUFFIXES) else name


def _features(file: Path) -> Iterator[tuple[str, str, tuple[float, float] | str]]:
    """Place in the file, label, and centre of each annotation, or what is wrong with it."""
    try:
        content = parse_json(file.read_text(encoding="utf-8-sig"))
    except TwiceError as error:
        raise LabelError(f"{file}: {error}") from None
    except ValueError as error:
        raise LabelError(f"{file}: not GeoJSON ({error}); export it again") from None
    if isinstance(content, dict):  # a collection, or a single feature
        content = content.get("features", [content])
    if not isinstance(content, list):
        raise LabelError(f"{file}: no GeoJSON with a list of features; export it again")
    for i, feature in enumerate(content):
        place = f"{file.name}, feature {i}"
        try:
            classification = (feature.get("properties") or {}).get("classification") or {}
            label = classification.get("name") or ": ".join(classification.get("names", ()))
            kind, coordinates = feature["geometry"]["type"], feature["geometry"]["coordinates"]
            points = np.array(_points(coordinates), dtype=float)  # (n, 2)
            is_whole = isinstance(label, str) and (not points.size or points.shape[1] == 2)
        except (AttributeError, KeyError, TypeError, ValueError):
            is_whole = False
        if not is_whole:
            yield place, "", "no GeoJSON feature with a geometry of px and a class that is text"
        elif not points.size or not np.isfinite(points).all():
            yield place, "", "its geometry has no place"
        elif kind not in ("Point", "MultiPoint", "Polygon", "MultiPolygon"):
            yield place, "", f"a {kind} is no annotation of a cell; expected a point or a box"
        elif kind == "MultiPolygon" and len(coordinates) > 1:
            yield place, "", "several shapes in one, without a centre; split it in QuPath"
        elif not label:
            yield place, "", "without a classification"
        elif points.min() < -MAX_OFF_SLIDE_PX:
            yield place, "", f"lies more than {MAX_OFF_SLIDE_PX:g} px off the slide"
        elif kind.endswith("Polygon") and (side := np.ptp(points, axis=0).max()) > MAX_SIDE_PX:
            yield place, "", f"a shape of {side:g} px is a region and no cell"
        elif kind in ("Point", "MultiPoint"):
            for x, y in points.tolist():
                yield place, label, (x, y)
        else:
            x, y = ((points.min(axis=0) + points.max(axis=0)) / 2).tolist()
            yield place, label, (x, y)


def _points(coordinates: list) -> list[list[float]]:
    """All points of a geometry's coordinates, however deep they lie."""
    if coordinates and not isinstance(coordinates[0], list):
        return [coordinates[:2]]
    return [point for inner in coordinates for point in _points(inner)]


def _slides(file: Path, names: set[str]) -> pd.DataFrame:
    """What the table of slides says, by the name of a slide's GeoJSON file without ``.geojson``."""
    rows = csv.lines(file)
    unknown = [name for name in rows if name not in ("file", *OF_A_SLIDE)]
    if "file" not in rows or unknown:
        raise LabelError(
            f"{file}: needed is the column file, and there may be {list(OF_A_SLIDE)}; rename or"
            f" remove {unknown}"
        )
    rows = rows.reindex(columns=["file", *OF_A_SLIDE], fill_value="")
    has_domains = (rows["domain"] != "").any()
    problems = []
    for line, row in zip(rows.index, rows.to_dict("records"), strict=True):
        if row["split"] not in SPLITS:
            problems.append(f"line {line}: split is {row['split']!r}, expected train, val or test")
        if has_domains and not row["domain"]:
            problems.append(f"line {line}: domain is empty; give each slide one, or none")
        if wrong := wrong_domain(row["domain"]):
            problems.append(f"line {line}: {wrong}")
    rows["name"] = [n if n in names else _without_suffix(n) for n in rows["file"]]
    problems += [f"{name} stands there twice" for name in rows["name"][rows["name"].duplicated()]]
    problems += [f"without a line for {name}" for name in sorted(names - set(rows["name"]))]
    problems += [
        f"line {line}: no {name}.geojson; remove the line, or export the file, empty or not"
        for line, name in rows["name"].items()
        if name not in names
    ]
    refuse(file, problems, "lines that can't be used; correct them:")
    return rows.set_index("name")


def write(
    table: pd.DataFrame, file: Path, names: tuple[str, str], measurements: tuple[str, ...]
) -> None:
    """Write annotations of one slide as detections that QuPath imports by dragging the file onto
    it.

    table: ``x_l0_px``, ``y_l0_px``, ``label`` (0 or 1) and the columns ``measurements``, numbers;
    a NaN is left out.
    names: what class 0 and class 1 are called. Each annotation is a box of BOX_PX.
    """
    features = []
    for row in table.to_dict("records"):
        x, y, half = row["x_l0_px"], row["y_l0_px"], BOX_PX / 2
        corners = [(-half, -half), (half, -half), (half, half), (-half, half), (-half, -half)]
        classification = {"name": names[row["label"]], "color": COLOURS[row["label"]]}
        properties = {
            "objectType": "detection",
            "classification": classification,
            "measurements": {
                name: float(row[name]) for name in measurements if not np.isnan(row[name])
            },
        }
        ring = [[x + dx, y + dy] for dx, dy in corners]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    file.write_text(json.dumps({"type": "FeatureCollection", "features": features}) + "\n")
