"""Embeddings in the field's other formats: read from them for a study's patches, and written for
others.

Read are, by what lies at the place that a study names:

- TRIDENT's and CLAM's files: ``SLIDE.h5`` for each slide, ``features`` (n, n_dims) or (1, n,
  n_dims) and ``coords``, the patches' upper left corners in level-0 px; matched by slide and place;
- eva's: a folder with ``manifest.csv`` (``origin``, ``embeddings``) and a ``.pt`` for each image;
  matched by the image's path;
- ``NAME.npy``, (n, n_dims), and ``NAME.csv`` in the same folder, a line a row: ``patch_id``, or
  ``file`` and, on slides, ``x`` and ``y`` of the patch's centre in level-0 px.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import h5py
import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from mfcore import store
from mfcore.data.labels.table import SLIDE_FOLDERS
from mfcore.data.splits_draw import Placing, downsample_of
from mfcore.encoders.card import EncoderCard, EncoderError
from mfcore.encoders.features.files import (
    MAX_NAMED,
    files_of,
    read,
    refuse_widths,
    sides_l0_px,
    width,
    write_rows,
)
from mfcore.store.files import Fingerprints
from mfcore.store.records import digest

LAYOUTS = ("trident", "clam", "eva")
TOLERANCE_PX = 2.0  # level-0 px between a patch's centre and the features' own
CENTRE = ["patch_x_l0_px", "patch_y_l0_px"]  # columns of a label table
NAMED = ["patch_id", "file", *CENTRE]  # of a patch in a message
SAME_PLACE_PX = 0.5  # level-0 px between rows of features of one place
APART_PX = 1e9  # between slides, which lie one behind the other in a third dimension


def contract(place: Path) -> tuple[int, str]:
    """The width of the features at a place, and a checksum that stands for all of their files.

    Raises EncoderError as `files_of`.
    """
    files, prints = files_of(place), Fingerprints()
    named = {file.relative_to(place) if place.is_dir() else file.name: file for file in files}
    stands_for = digest({str(name): prints.of(file, whole=True) for name, file in named.items()})
    return width(files), hashlib.sha256(stands_for.encode()).hexdigest()


def fill(
    run: store.Run,
    card: EncoderCard,
    table: pd.DataFrame,
    placing: Placing,
    corners_l0_px: np.ndarray,
    tolerance_px: float = TOLERANCE_PX,
) -> store.Run:
    """Fill and finish a run of embeddings with those made elsewhere, as `embed.embed` would.

    table: labels of the patches, as `patches.load`. corners_l0_px: int (n_patches, 2), upper left
    corners in level-0 px. No canary is kept. Raises EncoderError as `match`.
    """
    matched = match(Path(card.identifier), table, placing, tolerance_px)
    with store.replacing(run.path("embeddings.h5")) as aside, h5py.File(aside, "w") as out:
        out.create_dataset("features", data=matched.features)
        write_rows(out, table, corners_l0_px, {"patch_size": placing.size_px})
        out.attrs["weights"] = "made elsewhere"
    facts = {"n_unused": matched.n_unused, "largest_px": round(matched.largest_px, 3)}
    return run.finish(["embeddings.h5"], weights="", n_patches=len(table), jobs=[], **facts)


@dataclass(frozen=True)
class Matched:
    """Features of a study's patches: float32 (n_patches, n_dims), in the order of the label table.

    n_unused: rows of the files that belong to no patch of the study. largest_px: the largest
    distance between a patch's centre and its features' own, level-0 px; 0 where ids match.
    """

    features: np.ndarray
    n_unused: int
    largest_px: float


def match(
    place: Path, table: pd.DataFrame, placing: Placing, tolerance_px: float = TOLERANCE_PX
) -> Matched:
    """The features at ``place`` of each patch of a label table, as `patches.load` gives it.

    Raises EncoderError where a patch has none, naming the first, or several; where features have
    several widths or aren't finite; where ids, files and places contradict each other; and for
    files that can't be read.
    """
    blocks = read(files_of(place), table, placing)
    parts = [block for _, block in blocks]
    refuse_widths(place, parts)
    features = np.concatenate(parts)
    rows = pd.concat([rows for rows, _ in blocks], ignore_index=True)
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        named = rows.iloc[bad[:MAX_NAMED]].to_dict("records")
        raise EncoderError(
            f"{place}: {len(bad):,} features aren't finite, the first of {named}; make them anew"
        )
    if "x" in rows:
        half = float(sides_l0_px(table, placing).fillna(placing.size_px).min()) / 2
        if not 0 <= tolerance_px <= half:
            raise EncoderError(
                f"{place}: tolerance_px is {tolerance_px:g}; expected 0 to {half:g}, half the side"
                " of the study's patches in level-0 px"
            )
        row_of, distances = _by_place(place, rows, table, tolerance_px)
    else:
        row_of, distances = _by_id(place, rows, table), np.zeros(len(table))
    lacking = table[(row_of < 0) | (distances > tolerance_px)]
    if len(lacking):
        named = lacking.reindex(columns=NAMED).head(MAX_NAMED).to_dict("records")
        raise EncoderError(
            f"{place}: {len(lacking):,} of the study's {len(table):,} patches have no features"
            f" within {tolerance_px:g} level-0 px, the first: {named}; there are features of"
            f" {len(rows):,} others, the first: {rows.head(3).to_dict('records')}"
        )
    if len(set(row_of)) < len(row_of):
        raise EncoderError(
            f"{place}: several patches of the study are matched by one row of features; give more"
            " exact places, or ids"
        )
    return Matched(features[row_of], len(rows) - len(row_of), float(distances.max(initial=0)))


def _is_same(one: str, other: str) -> bool:
    """Whether one path is the other's end."""
    a, b = PureWindowsPath(one).parts, PureWindowsPath(other).parts
    n = min(len(a), len(b))
    return a[-n:] == b[-n:]


def _as_given(place: Path, given: pd.Series, wanted: pd.Series) -> pd.Series:
    """Paths that are ``wanted``, each as it stands in ``given``; itself where it doesn't.

    Where none stands there as it is, two paths are the same where one is the other's end, without
    the folder in which the study found a slide. Raises EncoderError where several paths end alike,
    in as many folders as the shortest path has.
    """
    if set(wanted) & set(given):
        return wanted
    folders = "|".join(filter(None, SLIDE_FOLDERS))
    bare = wanted.str.replace(rf"^({folders})[/\\]", "", regex=True)
    n = min(len(PureWindowsPath(path).parts) for path in {*bare, *given})
    unique = [pd.Series(paths.unique()) for paths in (bare, given)]
    of_end = [
        paths.groupby(paths.map(lambda path: "/".join(PureWindowsPath(path).parts[-n:]))).agg(
            sorted
        )
        for paths in unique
    ]
    pairs = pd.concat(of_end, axis=1, join="inner")  # by their common end, two lists of paths
    for end, *alike in pairs[(pairs.map(len) > 1).any(axis=1)].itertuples():
        names = " and ".join(max(alike, key=len)[:3])
        raise EncoderError(
            f"{place}: file {end!r} stands there twice, for {names}; give files by their paths as"
            " in the study's table"
        )
    same = {one: other for (one,), (other,) in pairs.to_numpy() if _is_same(one, other)}
    return bare.map(lambda path: same.get(path, path))


def _by_id(place: Path, rows: pd.DataFrame, table: pd.DataFrame) -> np.ndarray:
    """The row of each patch, -1 without one, by the file's path or else by ``patch_id``."""
    key = "file" if "file" in rows else "patch_id"
    given, wanted = rows[key], table[key]
    if key == "patch_id" and len(rows) != len(table):
        raise EncoderError(
            f"{place}: {len(rows):,} rows named by patch_id alone, the study has {len(table):,}"
            " patches; a patch_id counts the study's labels, which may have changed since: give the"
            " column file, too, and on slides x and y"
        )
    if key == "file":
        wanted = _as_given(place, given, _origins(table))
    if twice := set(given[given.duplicated()]) & {*table[key], *wanted}:
        raise EncoderError(
            f"{place}: {key} {min(twice)!r} stands there twice; give each patch one row of"
            " features, on slides with x and y or with patch_id"
        )
    return wanted.map(dict(zip(given, given.index, strict=True))).fillna(-1).to_numpy(int)


def _by_place(
    place: Path, rows: pd.DataFrame, table: pd.DataFrame, tolerance_px: float
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest row on the same slide to each patch, and its distance in level-0 px.

    Raises EncoderError where two rows within the tolerance are of one place, and where the study
    knows no places.
    """
    unknown = table[table[CENTRE].isna().any(axis=1)]
    if len(unknown):
        raise EncoderError(
            f"{place}: features by place, but of {len(unknown):,} of the study's patches, the first"
            f" {unknown['file'].iloc[0]}, the place isn't known; give the study's table x and y, or"
            " the features without them"
        )
    given, wanted = rows["slide_id" if "slide_id" in rows else "file"], table["slide_id"]
    for paths in (table["slide_id"], table["file"]):
        if not set(given) & set(wanted):
            wanted = _as_given(place, given, paths)
    slides = APART_PX * pd.factorize(pd.concat([given, wanted]))[0]
    at = np.column_stack([rows[["x", "y"]], slides[: len(rows)]])  # (n, 3)
    tree = cKDTree(at)
    distances, row_of = tree.query(np.column_stack([table[CENTRE], slides[len(rows) :]]), k=[1, 2])
    at = np.vstack([at, np.full(3, np.inf)])  # the last where there is no second
    apart = np.linalg.norm(at[row_of[:, 0]] - at[row_of[:, 1]], axis=1)
    twice = (distances[:, 0] <= tolerance_px) & (apart < SAME_PLACE_PX)
    if twice.any():
        named = rows.iloc[sorted(row_of[twice][0])].to_dict("records")
        raise EncoderError(
            f"{place}: {int(twice.sum()):,} of the study's patches have several rows of features"
            f" at one place, the first: {named}; keep those of one encoder"
        )
    return row_of[:, 0], distances[:, 0]


def export(
    run: store.Run, table: pd.DataFrame, folder: Path, layout: str, placing: Placing
) -> list[Path]:
    """Write finished embeddings as other tools read them; returns the files.

    table: labels of the patches, as `patches.load` returns them. layout: "trident" and "clam" write
    ``SLIDE.h5`` for each slide (``features`` float32 (n, n_dims), ``coords`` int64 (n, 2), the
    upper left corner in level-0 px, with their attributes), "clam" as ``h5_files/`` and
    ``pt_files/``; "eva" writes a ``.pt`` for each patch and ``manifest.csv``. Raises ValueError for
    other layouts, where two slides' files would have one name, and where the patches' places or
    resolution aren't known, which h5 files must state.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; it must be one of {', '.join(LAYOUTS)}")
    with h5py.File(run.path("embeddings.h5")) as content:
        features, coords = content["features"][:], content["coords"][:]
    if layout == "eva":
        return _export_eva(features, table, folder)
    unknown = table["um_per_px"].isna() | table["patch_x_l0_px"].isna()
    if unknown.any():
        raise ValueError(
            f"of {int(unknown.sum()):,} patches the place or the um/px isn't known, which"
            f" {layout}'s files state; export them as eva's"
        )
    files, name_of = [], _names_of_files(table)
    folder.mkdir(parents=True, exist_ok=True)
    for slide, rows in table.reset_index(drop=True).groupby("slide_id"):
        at_image, name = float(rows["um_per_px"].iloc[0]), name_of[slide]
        um_per_px = at_image / downsample_of(rows)[0]  # of level 0
        target = placing.um_per_px or at_image
        attributes = {
            "patch_size": placing.size_px,
            "patch_size_level0": round(placing.size_px * target / um_per_px),
            "patch_level": 0,
            "level0_magnification": round(10 / um_per_px),
            "target_magnification": round(10 / target),
            "overlap": 0,
            "name": name,
            "savetodir": str(folder),
        }
        file = (folder / "h5_files" if layout == "clam" else folder) / f"{name}.h5"
        file.parent.mkdir(exist_ok=True)
        with store.replacing(file) as aside, h5py.File(aside, "w") as out:
            out.create_dataset("features", data=features[rows.index]).attrs["name"] = name
            out.create_dataset("coords", data=coords[rows.index]).attrs.update(attributes)
        files.append(file)
        if layout == "clam":
            files.append(_save_tensor(folder / "pt_files" / f"{name}.pt", features[rows.index]))
    return files


def _names_of_files(table: pd.DataFrame) -> dict[str, str]:
    """What each slide's file is called, without a suffix; raises ValueError for equal names."""
    slide_of: dict[str, str] = {}
    for slide, file in table.groupby("slide_id")["file"].first().items():
        path = Path(str(slide))
        name = path.stem if Path(file).suffix == path.suffix else path.name
        if name in slide_of:
            raise ValueError(
                f"slides {slide_of[name]!r} and {slide!r} would both be written as {name}.h5;"
                " rename one slide, or export them as eva's"
            )
        slide_of[name] = slide
    return {slide: name for name, slide in slide_of.items()}


def _origins(table: pd.DataFrame) -> pd.Series:
    """How eva's manifest names each patch: by its file, or its id where files hold more."""
    return table["file"] if table["file"].is_unique else table["patch_id"].astype(str)


def _export_eva(features: np.ndarray, table: pd.DataFrame, folder: Path) -> list[Path]:
    names = [f"embeddings/{patch_id}.pt" for patch_id in table["patch_id"]]
    files = [_save_tensor(folder / name, row) for name, row in zip(names, features, strict=True)]
    manifest = pd.DataFrame(
        {
            "origin": _origins(table),
            "embeddings": names,
            "target": table["label"],
            "split": table["official_split"],
            "wsi_id": table["slide_id"],
        }
    )
    store.write_csv(folder / "manifest.csv", manifest)  # last: the sign that all is there
    return [*files, folder / "manifest.csv"]


def _save_tensor(file: Path, values: np.ndarray) -> Path:
    import torch

    file.parent.mkdir(parents=True, exist_ok=True)
    with store.replacing(file) as aside:
        torch.save(torch.from_numpy(np.array(values)), aside)
    return file
