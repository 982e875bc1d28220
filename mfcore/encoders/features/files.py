"""The files of embeddings made elsewhere, read as rows that say whose they are, and features.

As their writers have them: TRIDENT (WSI.extract_tissue_coords, extract_patch_features), CLAM
(save_hdf5), eva (ManifestManager), and an array with a table of the same name.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from mfcore.data.labels.geojson import SUFFIXES
from mfcore.data.splits_draw import Placing, downsample_of
from mfcore.encoders.card import EncoderError

MAX_NAMED = 10  # patches, lines or files in a message
SAME_SIDE = 0.05  # share of a patch's side by which features of the same field of view may differ
IDS = {"patch_id": "a number", "file": "a file's name", "x": "a number", "y": "a number"}
Block = tuple[pd.DataFrame, np.ndarray]  # a line a row of features float32 (n, n_dims)


def write_rows(out: h5py.File, table: pd.DataFrame, corners: np.ndarray, facts: Mapping) -> None:
    """Write whose the features of an ``embeddings.h5`` are: ``coords, patch_id, slide_id``.

    corners: int (n_patches, 2), level-0 px; facts: their attributes.
    """
    out.create_dataset("coords", data=corners).attrs.update(facts)
    out.create_dataset("patch_id", data=table["patch_id"].to_numpy())
    names = table["slide_id"].astype(str).to_list()
    out.create_dataset("slide_id", data=names, dtype=h5py.string_dtype())


def refuse(place: Path, problems: list[str], remedy: str) -> None:
    """Raise one EncoderError for all ``problems``, MAX_NAMED of them in full; none is no error."""
    if problems:
        more = len(problems) - MAX_NAMED
        named = problems[:MAX_NAMED] + ([f"... and {more:,} more"] if more > 0 else [])
        raise EncoderError(f"{place}: {remedy}\n  " + "\n  ".join(named))


def refuse_widths(place: Path, features: Iterable[np.ndarray]) -> None:
    """Raise EncoderError where arrays of features, (..., n_dims), have several numbers of dims."""
    if len(widths := {array.shape[-1] for array in features}) > 1:
        raise EncoderError(
            f"{place}: features of {sorted(widths)} dimensions; they are of several encoders, keep"
            " those of one"
        )


def files_of(place: Path) -> list[Path]:
    """The files that hold features; raises EncoderError where there are none, or no ids."""
    if place.suffix == ".npy" and place.is_file():
        if not (ids := place.with_suffix(".csv")).is_file():
            raise EncoderError(
                f"{place}: without {ids.name}, which says whose features they are; put it into the"
                " same folder"
            )
        return [place, ids]
    if (place / "manifest.csv").is_file():
        return [place / "manifest.csv", *sorted(place.rglob("*.pt"))]
    h5_files = [place] if place.suffix == ".h5" and place.is_file() else sorted(place.rglob("*.h5"))
    if not h5_files:
        raise EncoderError(
            f"{place}: no features; expected a folder with an .h5 file a slide (TRIDENT, CLAM), a"
            " folder with eva's manifest.csv, or NAME.npy with NAME.csv in the same folder"
        )
    return h5_files


def width(files: list[Path]) -> int:
    """The dimensions of the features; raises EncoderError where the first file can't be read."""
    first = files[0]
    try:
        if first.suffix == ".npy":
            return np.load(first, mmap_mode="r").shape[-1]
        if first.suffix == ".csv":
            return len(_embedding(files[1]))
        with h5py.File(first) as content:
            return content["features"].shape[-1]
    except Exception as error:  # pickle's own too, which is imported nowhere
        raise EncoderError(f"{first}: no features can be read ({error}); make it anew") from None


def read(files: list[Path], table: pd.DataFrame, placing: Placing) -> list[Block]:
    """The rows and features of the files that `files_of` gives, all of one width.

    Raises EncoderError with what can't be read, all of it where there are several files.
    """
    if files[0].suffix == ".npy":
        return [_of_array(*files)]
    if files[0].name == "manifest.csv":
        return [_of_eva(files[0])]
    return _of_slides(files, table, placing)


def sides_l0_px(table: pd.DataFrame, placing: Placing) -> pd.Series:
    """The side of each patch in level-0 px, NaN where its resolution isn't known."""
    side = pd.Series(placing.size_px * downsample_of(table), index=table.index)
    if placing.um_per_px is None:
        return side
    return side * placing.um_per_px / table["um_per_px"].where(table["um_per_px"] > 0)


def _checked(features: np.ndarray, n_rows: int) -> np.ndarray:
    """Features as float32 (n, n_dims); raises ValueError for other shapes and numbers of rows."""
    if features.dtype.kind not in "fiu":
        raise ValueError(f"features of {features.dtype}, expected numbers")
    if features.ndim == 3 and features.shape[0] == 1:
        features = features[0]
    if features.ndim != 2 or len(features) != n_rows or not features.shape[1]:
        raise ValueError(f"features {features.shape} for {n_rows:,} rows; expected (n, n_dims)")
    with np.errstate(over="ignore"):  # what is infinite is refused, by the rows that it is of
        return features.astype(np.float32)


def _lines(file: Path) -> pd.DataFrame:
    """A table as text, its columns named as written."""
    try:
        rows = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        if not isinstance(rows.index, pd.RangeIndex):
            raise ValueError("lines longer than the header")
        return rows
    except (OSError, ValueError) as error:
        raise EncoderError(
            f"{file}: no table can be read ({error}); save it as CSV in UTF-8, divided by commas"
        ) from None


def _of_array(file: Path, ids: Path) -> Block:
    rows = _lines(ids)
    rows = rows[[name for name in IDS if name in rows]]
    if "file" not in rows and set(rows) != {"patch_id"}:
        raise EncoderError(
            f"{ids}: needs a column patch_id, or file (and x, y on slides), divided by commas"
        )
    if ("x" in rows) != ("y" in rows):
        raise EncoderError(f"{ids}: has one of the columns x and y; give both, or neither")
    values = rows.copy()
    for name in set(rows) - {"file"}:
        values[name] = pd.to_numeric(rows[name], errors="coerce").replace([np.inf, -np.inf], np.nan)
    problems = [
        f"line {i + 2}: {name} is {rows[name][i]!r}, expected {IDS[name]}"
        for name in rows
        for i in np.flatnonzero(values[name].isna() | (values[name] == ""))
    ]
    refuse(ids, problems, "lines that can't be used; correct them:")
    try:
        return values, _checked(np.load(file), len(rows))
    except (OSError, EOFError, ValueError) as error:
        raise EncoderError(
            f"{file}: not an array of numbers with a row a line of {ids.name} ({error}); save it"
            " anew"
        ) from None


def _of_eva(manifest: Path) -> Block:
    rows = _lines(manifest)
    if missing := {"origin", "embeddings"} - set(rows):
        raise EncoderError(f"{manifest}: without the columns {sorted(missing)}, which eva writes")
    problems = [
        f"line {i + 2}: {rows['embeddings'][i]!r} stands on another line too"
        for i in np.flatnonzero(rows["embeddings"].duplicated())
    ]
    problems += [] if len(rows) else ["no line below the header"]
    refuse(manifest, problems, "lines that can't be used; correct them, or let eva write it anew:")
    features = []
    for name in rows["embeddings"]:
        try:
            features.append(_embedding(manifest.parent / name))
        except Exception as error:  # pickle's own too, which is imported nowhere
            is_own = isinstance(error, OSError | ValueError)  # torch's own are pages long
            problems.append(f"{name}: {error if is_own else type(error).__name__}")
    refuse(manifest, problems, "files that don't hold one embedding, (d,) or (1, d); make anew:")
    refuse_widths(manifest, features)
    return rows[["origin"]].rename(columns={"origin": "file"}), np.stack(features)


def _embedding(file: Path) -> np.ndarray:
    """The one embedding of a ``.pt`` file, float32 (d,); raises ValueError for other content."""
    import torch

    content = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(content, list) and len(content) == 1:
        content = content[0]
    if not isinstance(content, torch.Tensor) or content.numel() != content.shape[-1]:
        raise ValueError("holds no single embedding")
    return _checked(content.reshape(1, -1).float().numpy(), 1)[0]


def _of_slides(files: list[Path], table: pd.DataFrame, placing: Placing) -> list[Block]:
    """Of each slide's file the centres of its patches, in level-0 px, and their features."""
    sides = sides_l0_px(table, placing).groupby(table["slide_id"]).first()
    named: dict[str, set[str]] = {}  # slides by what their files may be called
    for slide, file in table[["slide_id", "file"]].drop_duplicates().itertuples(index=False):
        for name in (slide, Path(file).name, Path(file).stem):
            named.setdefault(name, set()).add(slide)
    blocks, problems = [], []
    for file in files:
        name = Path(file.stem)  # of the slide, with its suffix or without
        bare = name.stem if name.suffix.lower() in SUFFIXES else ""
        slide, *others = sorted(named.get(name.name) or named.get(bare) or {name.name})
        if others:
            problems.append(f"{file}: of {slide} or {others[0]}; name it by the whole name")
        expected = float(sides.get(slide, np.nan))  # NaN for others' slides
        try:
            corners, features, side = _of_slide(file)
        except (OSError, LookupError, ValueError, TypeError, AttributeError) as error:
            problems.append(f"{file}: no features and coords can be read ({error})")
            continue
        if side is None:
            side = placing.size_px if np.isnan(expected) else expected
        elif abs(expected - side) > max(1.0, SAME_SIDE * expected):
            problems.append(
                f"{file}: patch_size_level0 is {side:g}, the study's patches on {slide} are"
                f" {expected:g} level-0 px wide; features of another field of view"
            )
        x, y = corners.T + side / 2
        blocks.append(
            (pd.DataFrame({"slide_id": slide, "x": x, "y": y, "in": str(file)}), features)
        )
    refuse(files[0].parent, problems, "files that can't be used; make them anew, or remove them:")
    return blocks


def _of_slide(file: Path) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Corners (n, 2), features, and the side of the patches in level-0 px; None: not stated."""
    with h5py.File(file) as content:
        corners = content["coords"][:].reshape(-1, 2).astype(float)
        features = _checked(content["features"][:], len(corners))
        stated = dict(content["coords"].attrs)
    if not np.isfinite(corners).all():
        raise ValueError("coords aren't finite")
    side = stated.get("patch_size_level0")
    if side is None and stated.get("patch_level") == 0:  # CLAM's
        side = stated.get("patch_size")
        if side is None:
            raise ValueError("coords state patch_level 0 and no patch_size; add it")
    return corners, features, side and float(side)
