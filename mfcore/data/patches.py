"""The patch store: every annotation's patch, row for row with the label table, in one
memory-mappable array.
"""

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.data.patches_read import (
    PLACED_AT,
    SCANNED_AT,
    PatchError,
    Reading,
    look,
    read_all,
)
from mfcore.data.slides.slide import SAME_RESOLUTION
from mfcore.data.splits_draw import Placing, downsample_of
from mfcore.store import files as store_files
from mfcore.store.records import digest

__all__ = [
    "PatchError", "Reading", "centre_crop", "check", "corners", "counts", "extract", "load",
    "read_anywhere", "refuse_other_slides", "slides_digest", "twins",
]  # fmt: skip

N_LOOKED_AT = 256  # patches by `check`
BLOCK = 512  # patches read at a time


def load(run: store.Run) -> tuple[pd.DataFrame, np.memmap]:
    """Label table and patches, uint8 (n_patches, stored_px, stored_px, 3), read from disk as they
    are used.

    Raises StoreError where the run isn't finished, or a file of it is missing or damaged.
    """
    if not run.done:
        raise store.StoreError(
            f"{run.folder} is not finished; run the extraction again, it goes on where it stopped"
        )
    try:
        images = np.load(run.path("patches.npy"), mmap_mode="r")
        return pd.read_parquet(run.path("labels.parquet")), images
    except PermissionError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise store.StoreError(
            f"{run.folder}: labels.parquet or patches.npy is missing or damaged ({error}); remove"
            " the folder and extract the patches again"
        ) from error


def each(run: store.Run) -> Iterator[np.ndarray]:
    """Every stored patch, uint8 (stored_px, stored_px, 3), in turn; few are in memory at a time.

    A map that is read from end to end would hold all of its file.
    """
    file = run.path("patches.npy")
    for first in range(0, len(np.load(file, mmap_mode="r")), BLOCK):
        yield from np.array(np.load(file, mmap_mode="r")[first : first + BLOCK])


def twins(patches: Iterable[np.ndarray]) -> np.ndarray:
    """For each patch the first one that has the same pixels, int64 (n_patches,): itself where it
    has no earlier twin.

    A patch of a single colour has no twin: patches of nothing but padding are equal without being
    copies of one another. patches: uint8 (side, side, 3) each.
    """
    first, seen = [], {}
    for i, patch in enumerate(patches):
        first.append(seen.setdefault(pixels(patch) or i, i))
    return np.array(first, dtype=np.int64)


def pixels(patch: np.ndarray) -> bytes:
    """A checksum of a patch's pixels; empty for a patch of a single colour."""
    is_plain = (patch == patch[0, 0]).all()
    return b"" if is_plain else hashlib.sha256(np.ascontiguousarray(patch)).digest()


def centre_crop(patches: np.ndarray, size_px: int) -> np.ndarray:
    """View of the central ``size_px`` of patches (..., H, W, 3); an odd margin leaves the extra px
    on the right and below. Raises PatchError for patches that are narrower.
    """
    height, width = patches.shape[-3:-1]
    if size_px > min(height, width):
        raise PatchError(
            f"a crop of {size_px} px doesn't fit into patches of {height} x {width} px; crop less,"
            " or store wider patches"
        )
    top, left = (height - size_px) // 2, (width - size_px) // 2
    return patches[..., top : top + size_px, left : left + size_px, :]


def corners(table: pd.DataFrame, stored_px: int, placing: Placing) -> np.ndarray:
    """The upper left corner of what `centre_crop` leaves of each patch, x and y in level-0 px,
    int64 (n_patches, 2).

    Exact where patches are cut on the slide's grid, to the nearest px where they are resampled;
    -1 for a patch image whose place isn't known. ``table`` is `load`'s.
    """
    scale = ((placing.um_per_px or np.nan) / table["um_per_px"]).fillna(1.0).to_numpy()
    is_cut = np.abs(scale - 1) < SAME_RESOLUTION
    scale = (np.where(is_cut, 1.0, scale) * downsample_of(table))[:, None]  # level-0 px a px
    stored = table[PLACED_AT].to_numpy() - stored_px * scale / 2
    stored[is_cut] = np.floor(stored[is_cut] + 0.5)
    margin_px = (stored_px - placing.size_px) // 2
    corner = np.floor(stored + margin_px * scale + 0.5)
    return np.where(np.isfinite(corner), corner, -1).astype(np.int64)


def counts(table: pd.DataFrame) -> pd.DataFrame:
    """A row a domain: n_slides, n_positive, n_negative, positive_share."""
    counted = table.groupby("domain", as_index=False).agg(
        n_slides=("slide_id", "nunique"),
        n_positive=("label", "sum"),
        n_negative=("label", "size"),
        positive_share=("label", "mean"),
    )
    return counted.assign(n_negative=counted["n_negative"] - counted["n_positive"])


def check(patches: np.ndarray, table: pd.DataFrame) -> None:
    """Refuse patches of a single colour, among some looked at.

    ``patches`` and ``table`` are `load`'s. Raises PatchError; it names the scanned area of slides
    that have one of their own.
    """
    rows = np.unique(np.linspace(0, len(patches) - 1, min(N_LOOKED_AT, len(patches))).astype(int))
    empty = table.loc[[row for row in rows if (patches[row] == patches[row, 0, 0]).all()]]
    if len(empty):
        where = empty[["slide_id", "x_l0_px", "y_l0_px"]].head().to_dict("records")
        areas = _areas(empty)
        raise PatchError(
            f"{len(empty)} of {len(rows)} patches looked at are of a single colour, the first:"
            f" {where}" + (f"; {_remedy(areas)}" if len(areas) else "")
        )


def _areas(table: pd.DataFrame) -> pd.DataFrame:
    """Slides whose scanned area begins off the slide's corner: slide_id, x_l0_px, y_l0_px."""
    slides = table.reindex(columns=["slide_id", *SCANNED_AT]).drop_duplicates("slide_id")
    slides.columns = ["slide_id", "x_l0_px", "y_l0_px"]
    return slides[slides[["x_l0_px", "y_l0_px"]].fillna(0).any(axis=1)]


def _remedy(areas: pd.DataFrame) -> str:
    """Where slides' scanned areas begin, and how a study says from where its labels count."""
    named = ", ".join(
        f"{row.slide_id} at ({row.x_l0_px}, {row.y_l0_px})" for row in areas.head(10).itertuples()
    )
    return (
        "the scanned area begins off the slide's corner, by openslide.bounds-x, -y in level-0 px,"
        f" on {len(areas)} slides: {named}; say from which corner labels count, as data: {{origin:"
        " slide} or, as QuPath does, data: {origin: scanned_area}"
    )


def extract(
    table: pd.DataFrame,
    folder: str | Path,
    run: store.Run,
    reading: Reading | None = None,
    n_workers: int = 1,
) -> store.Run:
    """Read every annotation's patch: ``patches.npy``, uint8 (n_patches, stored_px, stored_px, 3),
    and ``labels.parquet``.

    table: as `labels.table.load` returns it; its files lie in ``folder``, and its ``attrs`` become
    facts. run: is filled and finished, from where it stopped. The stored table has um_per_px
    filled, places counted from the slide's corner, and ``patch_x_l0_px`` and ``patch_y_l0_px``,
    where the patch was centred; they differ from the annotation's centre where patches are moved
    inward at the border. Where a slide's scanned area begins off its corner, SCANNED_AT say where;
    without ``origin`` a warning names these slides. Raises PatchError, naming every bad slide at
    once and before anything is read, for slides that are damaged or without um/px.
    """
    folder, table, reading = Path(folder), table.copy(), reading or Reading()
    looked = look(table, folder, reading, n_workers)
    facts = looked.sort_values("patch_id")
    table["um_per_px"] = facts["um_per_px"]
    if reading.origin == "scanned_area":
        table[["x_l0_px", "y_l0_px"]] += facts[SCANNED_AT].to_numpy()
    if facts[SCANNED_AT].to_numpy().any():
        table[SCANNED_AT] = facts[SCANNED_AT]
    areas = _areas(table)
    if len(areas) and reading.origin is None:
        warnings.warn(
            f"labels are taken to count from the slide's corner, but {_remedy(areas)}", stacklevel=2
        )
    table[PLACED_AT] = facts[PLACED_AT]
    shift = table[PLACED_AT].to_numpy() - table[["x_l0_px", "y_l0_px"]].to_numpy()
    if not run.path("patches.npy").is_file():
        partial = run.path("patches.partial.npy")
        read_all(partial, run.path("progress.bin"), looked, folder, reading, n_workers)
        partial.replace(run.path("patches.npy"))
    store.write_parquet(run.path("labels.parquet"), table)
    by_study = table[~facts["is_stated"] & (table["um_per_px"] > 0)].drop_duplicates(
        ["scanner", "um_per_px"] if reading.are_images else "slide_id"
    )
    run.finish(
        ["labels.parquet", "patches.npy"],
        n_patches=len(table),
        domains=counts(table).to_dict("records"),
        um_per_px_said_by_study=by_study[["slide_id", "scanner", "um_per_px"]].to_dict("records"),
        scanned_areas=areas.to_dict("records"),
        n_patches_over_edge=int(facts["is_over_edge"].sum()),
        n_patches_shifted=int((np.abs(shift) > 0).any(axis=1).sum()),
        **table.attrs,
    )
    run.path("progress.bin").unlink(missing_ok=True)
    return run


def read_anywhere(
    table: pd.DataFrame,
    folder: str | Path,
    reading: Reading,
    slide_ids: np.ndarray,
    shares: np.ndarray,
    seen_px: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Patches at other places than annotations, read as the stored ones are: centres and patches.

    table: as `load` returns it. slide_ids (n,): of which slides; shares, float (n, 2) in [0, 1):
    how far right and down, where 0 and 1 are the first and the last place whose central ``seen_px``
    lie inside the slide. Returns centres, float (n, 2) of x, y in level-0 px, and patches, uint8
    (n, stored_px, stored_px, 3). Raises SlideError for a slide that can't be read.
    """
    side_px, um_per_px = reading.stored_px, reading.um_per_px
    centres = np.empty((len(slide_ids), 2))
    stored = np.empty((len(slide_ids), side_px, side_px, 3), np.uint8)
    for slide_id in np.unique(slide_ids.astype(str)):
        places = np.flatnonzero(slide_ids == slide_id)
        with reading.open(Path(folder), table[table["slide_id"] == slide_id]) as slide:
            first, last = slide.inside(np.array([(0, 0), slide.size_px], float), seen_px, um_per_px)
            centres[places] = reading.moved(
                slide, first + np.floor(shares[places] * (last - first))
            )
            stored[places] = slide.read_many(centres[places], side_px, um_per_px)
    return centres, stored


def refuse_other_slides(run: store.Run, folder: str | Path, table: pd.DataFrame) -> None:
    """Raise PatchError unless the slides in ``folder`` are those that the patches of ``run`` were
    cut from.
    """
    missing = sorted({file for file in table["file"] if not (Path(folder) / file).is_file()})
    if missing:
        raise PatchError(
            f"{folder}: of the slides that the patches were cut from {len(missing)} aren't there,"
            f" the first: {missing[0]}; name the folder that holds them"
        )
    if slides_digest(table, folder) != run.identity["inputs"]["files"]:
        raise PatchError(
            f"{folder}: other slides lie here than those that {run.folder} was cut from; extract"
            " the patches again"
        )


def slides_digest(table: pd.DataFrame, folder: str | Path) -> str:
    """Stands for the slides that a label table names: names and fingerprints of their files."""
    fingerprints = store_files.Fingerprints()
    return digest(
        {
            file: fingerprints.of_slide(Path(folder) / file)
            for file in sorted(table["file"].unique())
        }
    )
