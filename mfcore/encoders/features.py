"""Embeddings in the field's other formats: read from them for a study's patches, and written for
others.

Read are, by what lies at the place that a study names:

- TRIDENT's and CLAM's files: ``SLIDE.h5`` for each slide, ``features`` (n, n_dims) or (1, n,
  n_dims)
  and ``coords``, the patches' upper left corners in level-0 px; matched by slide and place;
- eva's: a folder with ``manifest.csv`` (``origin``, ``embeddings``) and a ``.pt`` for each image;
  matched by the image's path;
- ``NAME.npy``, (n, n_dims), with ``NAME.csv`` beside it, a line a row: ``patch_id``, or ``file``
  and,
  on slides, ``x`` and ``y`` of the patch's centre in level-0 px.

Formats as their writers have them: TRIDENT (WSI.extract_tissue_coords, extract_patch_features),
CLAM (save_hdf5) and eva (ManifestManager).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from mfcore import store
from mfcore.data.splits_draw import Placing
from mfcore.encoders.card import EncoderCard, EncoderError
from mfcore.store.files import Fingerprints
from mfcore.store.records import digest

LAYOUTS = ("trident", "clam", "eva")
MAX_NAMED = 10  # patches or files in a message
TOLERANCE_PX = 2.0  # level-0 px between a patch's centre and the features' own


def contract(place: Path) -> tuple[int, str]:
    """The width of the features at a place, and a checksum that stands for their files.

    Of a large file the checksum reads parts, as for slides. Raises EncoderError as `files_of`.
    """
    files = files_of(place)
    stands_for = digest({file.name: Fingerprints().of_slide(file) for file in files})
    return _width(files), hashlib.sha256(stands_for.encode()).hexdigest()


def _width(files: list[Path]) -> int:
    try:
        if files[0].suffix == ".npy":
            return int(np.load(files[0], mmap_mode="r").shape[-1])
        if files[0].suffix == ".h5":
            with h5py.File(files[0]) as content:
                return int(content["features"].shape[-1])
        return int(_of_eva(files[0])[1].shape[1])
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise EncoderError(f"{files[0]}: no features can be read ({error})") from None


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
        out.create_dataset("coords", data=corners_l0_px).attrs["patch_size"] = placing.size_px
        out.create_dataset("patch_id", data=table["patch_id"].to_numpy())
        names = table["slide_id"].astype(str).to_list()
        out.create_dataset("slide_id", data=names, dtype=h5py.string_dtype())
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


def files_of(place: Path) -> list[Path]:
    """The files that hold features; raises EncoderError where there are none."""
    if place.suffix == ".npy" and place.is_file():
        return [place, place.with_suffix(".csv")]
    if (place / "manifest.csv").is_file():
        return [place / "manifest.csv", *sorted(place.rglob("*.pt"))]
    found = [place] if place.suffix == ".h5" and place.is_file() else sorted(place.rglob("*.h5"))
    if not found:
        raise EncoderError(
            f"{place}: no features; expected a folder with an .h5 file a slide (TRIDENT, CLAM), a"
            " folder with eva's manifest.csv, or NAME.npy with NAME.csv beside it"
        )
    return found


def match(
    place: Path, table: pd.DataFrame, placing: Placing, tolerance_px: float = TOLERANCE_PX
) -> Matched:
    """The features at ``place`` of each patch of a label table, as `patches.load` gives it.

    Raises EncoderError where a patch has none, naming the first; where features have several widths
    or aren't finite; and for files that can't be read.
    """
    files = files_of(place)
    if files[0].suffix == ".npy":
        blocks = [_of_array(*files)]
    elif files[0].name == "manifest.csv":
        blocks = [_of_eva(files[0])]
    else:
        blocks = list(_of_slides(files, placing, table))
    features = np.concatenate([block for _, block in _same_width(place, blocks)])
    rows = pd.concat([rows for rows, _ in blocks], ignore_index=True)
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        named = rows.iloc[bad[:MAX_NAMED]].to_dict("records")
        raise EncoderError(f"{place}: {len(bad):,} features aren't finite, the first of {named}")
    row_of, distances = _by_id(rows, table) if "x" not in rows else _by_place(rows, table)
    lacking = table[(row_of < 0) | (distances > tolerance_px)]
    if len(lacking):
        columns = ["patch_id", "file", "patch_x_l0_px", "patch_y_l0_px"]
        named = lacking.reindex(columns=columns).head(MAX_NAMED).to_dict("records")
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


def _same_width(
    place: Path, blocks: list[tuple[pd.DataFrame, np.ndarray]]
) -> list[tuple[pd.DataFrame, np.ndarray]]:
    widths = sorted({block.shape[1] for _, block in blocks})
    if len(widths) > 1:
        raise EncoderError(
            f"{place}: features of {widths} dimensions; they are of several encoders"
        )
    return blocks


def _checked(file: Path, features: np.ndarray, n_rows: int) -> np.ndarray:
    """Features as float32 (n, n_dims); raises EncoderError for other shapes and numbers of rows."""
    features = np.asarray(features, dtype=np.float32)
    if features.ndim == 3 and features.shape[0] == 1:
        features = features[0]
    if features.ndim != 2 or len(features) != n_rows:
        raise EncoderError(
            f"{file}: features {features.shape} for {n_rows:,} rows; expected (n, n_dims)"
        )
    return features


def _of_array(file: Path, ids: Path) -> tuple[pd.DataFrame, np.ndarray]:
    if not ids.is_file():
        raise EncoderError(
            f"{file}: without {ids.name} beside it, which says whose features they are"
        )
    rows = pd.read_csv(ids)
    if "patch_id" in rows:
        rows = rows[["patch_id"]]
    elif "file" in rows:
        rows = rows[[name for name in ("file", "x", "y") if name in rows]].astype({"file": str})
    else:
        raise EncoderError(f"{ids}: needs a column patch_id, or file (and x, y on slides)")
    try:
        return rows, _checked(file, np.load(file, allow_pickle=False), len(rows))
    except ValueError as error:
        raise EncoderError(f"{file}: not an array of numbers ({error})") from None


def _of_eva(manifest: Path) -> tuple[pd.DataFrame, np.ndarray]:
    import torch

    rows = pd.read_csv(manifest, dtype=str)
    if missing := {"origin", "embeddings"} - set(rows):
        raise EncoderError(f"{manifest}: without the columns {sorted(missing)}, which eva writes")
    loaded: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(rows["embeddings"]):
        try:
            content = torch.load(manifest.parent / name, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError) as error:
            raise EncoderError(f"{manifest.parent / name}: can't be read ({error})") from None
        parts = content if isinstance(content, list) else [content]
        loaded[name] = np.concatenate([part.float().reshape(1, -1).numpy() for part in parts])
    several = [name for name, block in loaded.items() if len(block) != 1]
    if several:
        raise EncoderError(
            f"{manifest}: {several[0]} holds several embeddings; expected one an image"
        )
    features = np.concatenate([loaded[name] for name in rows["embeddings"]])
    return rows[["origin"]].rename(columns={"origin": "file"}), features


def _of_slides(
    files: list[Path], placing: Placing, table: pd.DataFrame
) -> Iterator[tuple[pd.DataFrame, np.ndarray]]:
    """Of each slide's file the centres of its patches, in level-0 px, and their features."""
    um_per_px = table.groupby("slide_id")["um_per_px"].first()
    stems = {
        Path(file).stem: slide for slide, file in zip(table["slide_id"], table["file"], strict=True)
    }
    for file in files:
        try:
            with h5py.File(file) as content:
                coords = content["coords"][:].reshape(-1, 2).astype(float)  # (n, 2)
                features = _checked(file, content["features"][:], len(coords))
                said = dict(content["coords"].attrs)
                own_slides = content["slide_id"].asstr()[:] if "slide_id" in content else None
        except (OSError, KeyError) as error:
            raise EncoderError(f"{file}: no features and coords can be read ({error})") from None
        slide = stems.get(file.stem, stems.get(Path(file.stem).stem, file.stem))
        side = said.get("patch_size_level0")
        if side is None:  # of the study's patches, which these must be
            target, own = placing.um_per_px, um_per_px.get(slide, np.nan)
            side = placing.size_px * (target / own if target and own > 0 else 1.0)
        centres = coords + float(side) / 2
        names = own_slides if own_slides is not None else np.repeat(slide, len(coords))
        yield pd.DataFrame({"slide_id": names, "x": centres[:, 0], "y": centres[:, 1]}), features


def _by_id(rows: pd.DataFrame, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The row of each patch, -1 without one, by ``patch_id`` or by the file's path or name."""
    key = "patch_id" if "patch_id" in rows else "file"
    given, wanted = rows[key], table[key]
    if key == "file" and not set(wanted) & set(given):  # paths from another folder
        given, wanted = (
            given.map(lambda name: Path(name).name),
            wanted.map(lambda name: Path(name).name),
        )
    twice = sorted(set(given[given.duplicated()]) & set(wanted)) + sorted(
        set(wanted[wanted.duplicated()])
    )
    if twice:
        raise EncoderError(
            f"{key} {twice[0]!r} stands there twice; give each image one row of features"
        )
    position = pd.Series(np.arange(len(given)), index=given)
    return position.reindex(wanted).fillna(-1).to_numpy(int), np.zeros(len(table))


def _by_place(rows: pd.DataFrame, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The nearest row on the same slide to each patch, and its distance in level-0 px."""
    key = "slide_id" if "slide_id" in rows else "file"
    row_of, distances = np.full(len(table), -1), np.full(len(table), np.inf)
    of_slide = rows.groupby(key).indices
    for slide, places in table.groupby(key).indices.items():
        if slide in of_slide:
            there = of_slide[slide]
            tree = cKDTree(rows[["x", "y"]].to_numpy(float)[there])
            centres = table[["patch_x_l0_px", "patch_y_l0_px"]].to_numpy(float)[places]
            distances[places], nearest = tree.query(centres)
            row_of[places] = there[nearest]
    return row_of, distances


def export(
    run: store.Run, table: pd.DataFrame, folder: Path, layout: str, placing: Placing
) -> list[Path]:
    """Write finished embeddings as other tools read them; returns the files.

    table: labels of the patches, as `patches.load` returns them. layout: "trident" and "clam" write
    ``SLIDE.h5`` for each slide (``features`` float32 (n, n_dims), ``coords`` int64 (n, 2), the
    upper left corner in level-0 px, with their attributes), "clam" as ``h5_files/`` and
    ``pt_files/``; "eva" writes a ``.pt`` for each patch and ``manifest.csv``. Raises ValueError for
    other layouts, and where the patches' places or resolution aren't known, which h5 files must
    state.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; it must be one of {', '.join(LAYOUTS)}")
    with h5py.File(run.path("embeddings.h5")) as content:
        features, coords = content["features"][:], content["coords"][:]
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "eva":
        return _export_eva(features, table, folder)
    unknown = table["um_per_px"].isna() | table["patch_x_l0_px"].isna()
    if unknown.any():
        raise ValueError(
            f"of {int(unknown.sum()):,} patches the place or the um/px isn't known, which"
            f" {layout}'s files state; export them as eva's"
        )
    files = []
    for slide, rows in table.reset_index(drop=True).groupby("slide_id"):
        um_per_px = float(rows["um_per_px"].iloc[0])
        target = placing.um_per_px or um_per_px
        name = Path(str(slide)).name
        name = (
            name[: -len(Path(name).suffix)]
            if Path(rows["file"].iloc[0]).suffix == Path(name).suffix
            else name
        )
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
        at = features[rows.index], coords[rows.index]
        file = (folder / "h5_files" if layout == "clam" else folder) / f"{name}.h5"
        file.parent.mkdir(exist_ok=True)
        with store.replacing(file) as aside, h5py.File(aside, "w") as out:
            out.create_dataset("features", data=at[0]).attrs.update({"name": name})
            out.create_dataset("coords", data=at[1]).attrs.update(attributes)
        files.append(file)
        if layout == "clam":
            files.append(_save_tensor(folder / "pt_files" / f"{name}.pt", at[0]))
    return files


def _export_eva(features: np.ndarray, table: pd.DataFrame, folder: Path) -> list[Path]:
    names = [f"embeddings/{patch_id}.pt" for patch_id in table["patch_id"]]
    files = [_save_tensor(folder / name, row) for name, row in zip(names, features, strict=True)]
    origins = table["file"].where(
        ~table["file"].duplicated(keep=False), table["patch_id"].astype(str)
    )
    manifest = pd.DataFrame(
        {
            "origin": origins,
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
