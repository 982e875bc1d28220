"""The files of embeddings made elsewhere, read as rows that say whose they are, and features.

As their writers have them: TRIDENT (WSI.extract_tissue_coords, extract_patch_features), CLAM
(save_hdf5), eva (ManifestManager), and an array with a table of the same name.
"""

from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from mfcore.data.labels.geojson import SUFFIXES
from mfcore.data.splits_draw import Placing, downsample_of
from mfcore.encoders.card import EncoderError

MAX_NAMED = 10  # patches, lines or files in a message
SAME_SIDE = 0.05  # share of a patch's side by which features of the same field of view may differ
IDS = ("patch_id", "file", "x", "y")
Block = tuple[pd.DataFrame, np.ndarray]  # a line a row of features float32 (n, n_dims)


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
    try:
        if files[0].suffix == ".npy":
            return int(np.load(files[0], mmap_mode="r").shape[-1])
        if files[0].suffix == ".h5":
            with h5py.File(files[0]) as content:
                return int(content["features"].shape[-1])
    except (OSError, EOFError, LookupError, ValueError, AttributeError) as error:
        raise EncoderError(f"{files[0]}: no features can be read ({error}); make it anew") from None
    return int(_of_eva(files[0])[1].shape[1])


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
    if not {"patch_id", "file"} & set(rows):
        raise EncoderError(
            f"{ids}: needs a column patch_id, or file (and x, y on slides), divided by commas"
        )
    if ("x" in rows) != ("y" in rows):
        raise EncoderError(f"{ids}: has one of the columns x and y; give both, or neither")
    problems = []
    for name in rows:
        cells = rows[name] if name == "file" else pd.to_numeric(rows[name], errors="coerce")
        is_wrong = cells == "" if name == "file" else ~np.isfinite(cells)
        expected = "a file's name" if name == "file" else "a number"
        problems += [
            f"line {i + 2}: {name} is {rows[name][i]!r}, expected {expected}"
            for i in np.flatnonzero(is_wrong)
        ]
        rows = rows.assign(**{name: cells})
    refuse(ids, problems, "lines that can't be used; correct them:")
    try:
        return rows, _checked(np.load(file), len(rows))
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
        f"line {i + 2}: {name} is empty"
        for name in ("origin", "embeddings")
        for i in np.flatnonzero(rows[name] == "")
    ]
    problems += [
        f"line {i + 2}: {rows['embeddings'][i]} stands on another line too"
        for i in np.flatnonzero(rows["embeddings"].duplicated() & (rows["embeddings"] != ""))
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
    remedy = "files that don't hold one embedding, a tensor (d,) or (1, d); make them anew:"
    refuse(manifest, problems, remedy)
    refuse_widths(manifest, features)
    return rows[["origin"]].rename(columns={"origin": "file"}), np.stack(features)


def _embedding(file: Path) -> np.ndarray:
    """The one embedding of a ``.pt`` file, float32 (d,); raises ValueError for other content."""
    import torch

    content = torch.load(file, map_location="cpu", weights_only=True)
    parts = content if isinstance(content, list) else [content]
    if len(parts) != 1:
        raise ValueError(f"holds several embeddings or none ({len(parts)})")
    if not isinstance(parts[0], torch.Tensor):
        raise ValueError(f"holds a {type(parts[0]).__name__}, no tensor")
    if parts[0].ndim not in (1, 2) or parts[0].shape[:-1].numel() != 1:
        raise ValueError(f"holds several embeddings, {tuple(parts[0].shape)}")
    vector = parts[0].reshape(1, -1)
    return _checked((vector.float() if vector.is_floating_point() else vector).numpy(), 1)[0]


def _of_slides(files: list[Path], table: pd.DataFrame, placing: Placing) -> list[Block]:
    """Of each slide's file the centres of its patches, in level-0 px, and their features."""
    sides = sides_l0_px(table, placing).groupby(table["slide_id"]).first()
    named: dict[str, set[str]] = {}  # slides by what their files may be called
    for slide, file in table[["slide_id", "file"]].drop_duplicates().itertuples(index=False):
        for name in (slide, Path(file).name, Path(file).stem):
            named.setdefault(name, set()).add(slide)
    blocks, problems = [], []
    for file in files:
        try:
            with h5py.File(file) as content:
                coords = content["coords"][:].reshape(-1, 2).astype(float)  # (n, 2)
                features = _checked(content["features"][:], len(coords))
                attributes = content["coords"].attrs
                stated = attributes.get("patch_size_level0", np.nan)
                if attributes.get("patch_level") == 0:  # CLAM's, and TRIDENT's, which says both
                    stated = attributes.get("patch_size_level0", attributes["patch_size"])
                stated = float(stated)
                slides = content["slide_id"].asstr()[:] if "slide_id" in content else None
            if not np.isfinite(coords).all():
                raise ValueError("coords aren't finite")
        except (OSError, LookupError, ValueError, TypeError, AttributeError) as error:
            problems.append(f"{file}: no features and coords can be read ({error})")
            continue
        if slides is None:
            name = Path(file.stem)  # of the slide, with its suffix or without
            bare = name.stem if name.suffix.lower() in SUFFIXES else ""
            of_file = sorted(named.get(name.name) or named.get(bare) or {name.name})
            if len(of_file) > 1:
                problems.append(f"{file}: of {' or '.join(of_file)}; name it by the whole name")
            slides = np.repeat(of_file[0], len(coords))
        expected = pd.Series(slides).map(sides).to_numpy(float)  # NaN for others' slides
        other = np.flatnonzero(np.abs(expected - stated) > np.maximum(1.0, SAME_SIDE * expected))
        problems += [
            f"{file}: patch_size_level0 is {stated:g}, the study's patches on {slides[i]} are"
            f" {expected[i]:g} level-0 px wide; features of another field of view"
            for i in other[:1]
        ]
        side = np.nan_to_num(expected, nan=placing.size_px) if np.isnan(stated) else stated
        x, y = coords.T + side / 2
        rows = {"slide_id": slides, "x": x, "y": y, "in": str(file)}
        blocks.append((pd.DataFrame(rows), features))
    refuse(files[0].parent, problems, "files that can't be used; make them anew, or remove them:")
    return blocks
