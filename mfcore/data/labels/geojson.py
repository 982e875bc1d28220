"""QuPath's GeoJSON: points and boxes with a classification as labels, and scores for QuPath to
show.

One file a slide, named as the slide: ``A.svs.geojson`` or ``A.geojson``. Where there is a table
``slides.csv``, it says what is known of the slides: ``file`` and any of OF_A_SLIDE. Form: QuPath's
own reader and writer (QuPathTypeAdapters.java of QuPath 0.5); places are px of the full resolution.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore.data.labels import csv
from mfcore.data.labels.schema import OF_A_SLIDE, LabelError, as_classes, refuse, say
from mfcore.store.text import parse_json

SLIDES = "slides.csv"
MAX_SIDE_PX = 400  # level-0 px of a cell's shape: 40 um at 0.1 um/px
# Corners of the boxes that are written, from their centre; 50 px a side, as MIDOG's
BOX_PX = np.array([[-25, -25], [25, -25], [25, 25], [-25, 25], [-25, -25]])
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
    folder, of_labels = files[0].parent, [file for file in files if file.name != SLIDES]
    problems = [
        f"{file.name}: name it {SLIDES} or {file.stem}.geojson"
        for file in sorted(folder.iterdir())
        if file.name != SLIDES
        and (file.name.lower() == SLIDES or file.suffix.lower() == ".geojson" != file.suffix)
    ]
    rows = []
    for file in of_labels:
        for i, feature in enumerate(_features(file)):
            place = f"{file.name}, feature {i}"
            try:
                label, centres = _annotation(feature)
            except LabelError as error:
                problems.append(f"{place}: {error}")
            except (AttributeError, KeyError, TypeError, ValueError):
                problems.append(
                    f"{place}: no GeoJSON feature with a geometry of px and a class that is text"
                )
            else:
                rows += [(place, file.stem, label, x, y) for x, y in centres]
    refuse(folder, problems, "what can't be used; correct or remove it in QuPath:")
    table = pd.DataFrame(rows, columns=["place", "file", "label", "x", "y"]).set_index("place")
    table["label"] = as_classes(folder, table["label"], label_values)
    if len(files) > len(of_labels):
        names = {file.stem for file in of_labels}
        table = table.join(_slides(folder / SLIDES, names), on="file")
    stems = table["file"].map(_without_suffix)
    return table.assign(
        case=table["case"].mask(table["case"] == "", stems) if "case" in table else stems
    )


def _without_suffix(name: str) -> str:
    return name[: -len(Path(name).suffix)] if name.lower().endswith(SUFFIXES) else name


def _features(file: Path) -> list:
    """The features of a collection, of a list, or a single one."""
    try:
        content = parse_json(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise LabelError(f"{file}: not GeoJSON ({error}); export it again") from None
    if isinstance(content, dict):
        content = content.get("features", [content])
    if not isinstance(content, list):
        raise LabelError(f"{file}: no GeoJSON with a list of features; export it again")
    return content


def _annotation(feature: dict) -> tuple[str, list[list[float]]]:
    """Label and centres of a feature; raises LabelError for what is no annotation, and another
    error for what is no feature.
    """
    classification = (feature.get("properties") or {}).get("classification") or {}
    label = classification.get("name") or ": ".join(classification.get("names", ()))
    kind, coordinates = feature["geometry"]["type"], feature["geometry"]["coordinates"]
    points = np.array(_points(coordinates), dtype=float).reshape(-1, 2)
    if not isinstance(label, str):
        raise TypeError
    if not label:
        raise LabelError("without a classification")
    if kind not in ("Point", "MultiPoint", "Polygon", "MultiPolygon"):
        raise LabelError(f"a {kind} is no annotation of a cell; expected a point or a box")
    if not points.size or not np.isfinite(points).all():
        raise LabelError("its geometry has no place")
    if kind in ("Point", "MultiPoint"):
        return label, points.tolist()
    if kind == "MultiPolygon" and len(coordinates) > 1:
        raise LabelError("several shapes in one, without a centre; split it in QuPath")
    if (side := np.ptp(points, axis=0).max()) > MAX_SIDE_PX:
        raise LabelError(f"a shape of {side:g} px is a region and no cell")
    return label, [((points.min(axis=0) + points.max(axis=0)) / 2).tolist()]


def _points(coordinates: list) -> list[list[float]]:
    """All points of a geometry's coordinates, however deep they lie."""
    if coordinates and not isinstance(coordinates[0], list):
        return [coordinates[:2]]
    return [point for inner in coordinates for point in _points(inner)]


def _slides(file: Path, names: set[str]) -> pd.DataFrame:
    """What the table of slides says, by the name of a slide's GeoJSON file without ``.geojson``."""
    rows = csv.lines(file, ["file"], OF_A_SLIDE)
    slides = rows["file"].map(lambda name: name if name in names else _without_suffix(name))
    problems = say(rows, slides.duplicated(), "{file} stands there twice")
    expected = (
        "there is no such .geojson as {file}; remove the line, or export the file, empty or not"
    )
    problems += say(rows, ~slides.isin(names), expected)
    problems += [f"without a line for {name}" for name in sorted(names - set(slides))]
    refuse(file, problems, csv.LINES)
    return rows.set_index(slides)[[*OF_A_SLIDE]]


def write(
    table: pd.DataFrame, file: Path, names: tuple[str, str], measurements: tuple[str, ...]
) -> None:
    """Write annotations of one slide as detections that QuPath imports by dragging the file onto
    it.

    table: ``x_l0_px``, ``y_l0_px``, ``label`` (0 or 1) and the columns ``measurements``, numbers;
    a NaN is left out.
    names: what class 0 and class 1 are called. Each annotation is a box of BOX_PX.
    """
    measured = table[[*measurements]].to_dict("records")
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [np.add(BOX_PX, [row.x_l0_px, row.y_l0_px]).tolist()],
            },
            "properties": {
                "objectType": "detection",
                "classification": {"name": names[row.label], "color": COLOURS[row.label]},
                "measurements": {name: x for name, x in values.items() if not np.isnan(x)},
            },
        }
        for row, values in zip(table.itertuples(), measured, strict=True)
    ]
    file.write_text(json.dumps({"type": "FeatureCollection", "features": features}) + "\n")
