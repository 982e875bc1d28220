"""The patch store: every annotation's patch, row for row with the label table, in one memory-mappable array."""

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.data.patches_read import Job, PatchError, look, read_all
from mfcore.data.slides.slide import SAME_RESOLUTION, open_slide
from mfcore.data.splits_draw import Placing
from mfcore.store import files as store_files
from mfcore.store.records import digest

__all__ = [
    "PatchError", "Reading", "centre_crop", "check", "corners", "counts", "extract", "load", "read_anywhere",
    "refuse_other_slides", "slides_digest", "twins",
]  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """How patches are read.

    stored_px: side of a patch in px. size_px: side of its central part that encoders see. um_per_px: resolution to which slides
    are resampled; None: as scanned. outside: grey value of what lies outside a slide. shifts_inward: move a patch inward at
    its slide's border until its central part fits. are_images: the files are patch images, which are not resampled.
    slide_um_per_px, um_per_px_by_scanner: resolution of slides that don't state their own; that of the scanner goes first.
    origin: where labels count px from, one of `mfcore.data.options.ORIGINS`; None counts from the slide's corner, and warns.
    """

    stored_px: int = 224
    size_px: int = 224
    um_per_px: float | None = 0.25
    outside: int = 255
    shifts_inward: bool = False
    are_images: bool = False
    slide_um_per_px: float | None = None
    um_per_px_by_scanner: Mapping[str, float] = field(default_factory=dict)
    origin: str | None = None


def load(run: store.Run) -> tuple[pd.DataFrame, np.memmap]:
    """Label table and patches, uint8 (n_patches, stored_px, stored_px, 3), read from disk as they are used.

    Raises StoreError where the run isn't finished, or a file of it is missing or damaged.
    """
    if not run.done:
        raise store.StoreError(f"{run.folder} is not finished; run the extraction again, it goes on where it stopped")
    file = run.path("labels.parquet")
    try:
        table = pd.read_parquet(file)
        file = run.path("patches.npy")
        return table, np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, PermissionError):
            raise
        state = "missing" if isinstance(error, FileNotFoundError) else "damaged"
        raise store.StoreError(f"{file}: {state}; remove {run.folder} and extract the patches again") from error


def twins(patches: np.ndarray) -> np.ndarray:
    """For each patch the first one that has the same pixels, int64 (n_patches,): itself where it has no earlier twin.

    A patch of a single colour has no twin: patches of nothing but padding are equal without being copies of one another.
    patches: uint8 (n_patches, side, side, 3). Only those that are equal in their middle row are read whole.
    """
    patches = np.asarray(patches)
    alike, first, found = defaultdict(list), np.arange(len(patches)), {}
    for i, patch in enumerate(patches):
        alike[hashlib.sha256(patch[len(patch) // 2]).digest()].append(i)
    for i in (i for rows in alike.values() if len(rows) > 1 for i in rows):
        if not (patches[i] == patches[i, 0, 0]).all():
            first[i] = found.setdefault(hashlib.sha256(patches[i]).digest(), i)
    return first


def centre_crop(patches: np.ndarray, size_px: int) -> np.ndarray:
    """View of the central ``size_px`` of patches (..., H, W, 3); an odd margin leaves the extra px on the right and below."""
    height, width = patches.shape[-3:-1]
    if size_px > min(height, width):
        raise PatchError(f"a crop of {size_px} px doesn't fit into patches of {height} x {width} px")
    top, left = (height - size_px) // 2, (width - size_px) // 2
    return patches[..., top : top + size_px, left : left + size_px, :]


def corners(table: pd.DataFrame, stored_px: int, placing: Placing) -> np.ndarray:
    """The upper left corner of what `centre_crop` leaves of each patch, x and y in level-0 px, int64 (n_patches, 2).

    Exact where patches are cut on the slide's grid, to the nearest px where they are resampled. ``table`` is `load`'s.
    """
    target = placing.um_per_px
    scale = np.ones(len(table)) if target is None else (target / table["um_per_px"]).fillna(1.0).to_numpy()
    is_cut = np.abs(scale - 1) < SAME_RESOLUTION
    scale = np.where(is_cut, 1.0, scale)[:, None]  # level-0 px a px
    stored = table[["patch_x_l0_px", "patch_y_l0_px"]].to_numpy() - stored_px * scale / 2
    stored[is_cut] = np.floor(stored[is_cut] + 0.5)
    margin_px = (stored_px - placing.size_px) // 2
    return np.floor(stored + margin_px * scale + 0.5).astype(np.int64)


def counts(table: pd.DataFrame) -> pd.DataFrame:
    """A row a domain: n_slides, n_positive, n_negative, positive_share."""
    by_domain = table.groupby("domain", sort=True)
    positive = by_domain["label"].sum().astype(int)
    n = by_domain["label"].size()
    columns = {"n_slides": by_domain["slide_id"].nunique(), "n_positive": positive, "n_negative": n - positive}
    return pd.DataFrame({**columns, "positive_share": positive / n}).reset_index()


def check(patches: np.ndarray, table: pd.DataFrame, n_looked_at: int = 256) -> None:
    """Refuse patches that don't stand row for row with the table, and, among some looked at, patches of a single colour.

    ``table`` is `load`'s. Raises PatchError; it names the scanned area of slides that have one of their own.
    """
    if patches.ndim != 4 or patches.dtype != np.uint8 or patches.shape[1] != patches.shape[2] or patches.shape[3] != 3:
        raise PatchError(f"patches are {patches.dtype} {patches.shape}, expected uint8 (n_patches, side, side, 3)")
    if len(patches) != len(table) or not np.array_equal(table["patch_id"], np.arange(len(table))):
        raise PatchError(f"{len(patches)} patches and {len(table)} labels don't stand row for row; extract the patches again")
    rows = np.unique(np.linspace(0, len(patches) - 1, min(n_looked_at, len(patches))).astype(int))
    empty = [int(row) for row in rows if (patches[row] == patches[row, 0, 0]).all()]
    if empty:
        where = table.loc[empty[:5], ["slide_id", "x_l0_px", "y_l0_px"]].to_dict("records")
        found = f"{len(empty)} of {len(rows)} patches looked at are of a single colour, the first: {where}"
        concerned = table.loc[empty].drop_duplicates("slide_id")
        areas = [
            (row.slide_id, (row.scanned_x_l0_px, row.scanned_y_l0_px))
            for row in (concerned.itertuples() if "scanned_x_l0_px" in table else ())
            if row.scanned_x_l0_px or row.scanned_y_l0_px
        ]
        raise PatchError(f"{found}; {_offsets(areas)}" if areas else found)


def _offsets(areas: list[tuple[str, tuple[int, int]]]) -> str:
    """Where slides' scanned areas begin, and how a study says from where its labels count."""
    named = ", ".join(f"{slide_id} at ({x}, {y})" for slide_id, (x, y) in areas[:10])
    more = f" and {len(areas) - 10} more" if len(areas) > 10 else ""
    return (
        "the scanned area begins off the slide's corner, by openslide.bounds-x, -y in level-0 px, on "
        f"{named}{more}; say from which corner labels count, as data: {{origin: slide}} or, as QuPath does, "
        "data: {origin: scanned_area}"
    )


def extract(
    table: pd.DataFrame, folder: str | Path, run: store.Run, reading: Reading = Reading(), n_workers: int = 1
) -> store.Run:
    """Read every annotation's patch: ``patches.npy``, uint8 (n_patches, stored_px, stored_px, 3), and ``labels.parquet``.

    table: as `labels.table.load` returns it; its files lie in ``folder``. run: is filled and finished, from where it stopped.
    The stored table has um_per_px filled, places counted from the slide's corner, and ``patch_x_l0_px`` and ``patch_y_l0_px``,
    where the patch was centred; they differ from the annotation's centre where patches are moved inward at the border. Where a
    slide's scanned area begins off its corner, ``scanned_x_l0_px`` and ``scanned_y_l0_px`` say where; without ``origin`` a
    warning names these slides. Raises PatchError, naming every bad slide at once and
    before anything is read, for slides that are damaged or without um/px.
    """
    folder, table = Path(folder), table.copy()
    jobs = _plan(folder, table, reading)
    found = look(jobs, n_workers)
    areas = [(job.slide_id, each.scanned_at_px) for job, each in zip(jobs, found, strict=True) if any(each.scanned_at_px)]
    if areas and reading.origin is None:
        warnings.warn(f"labels are taken to count from the slide's corner, but {_offsets(areas)}", stacklevel=2)
    if not run.path("patches.npy").is_file():
        partial = run.path("patches.partial.npy")
        read_all(partial, run.path("progress.txt"), jobs, found, reading.stored_px, n_workers)
        partial.replace(run.path("patches.npy"))
    centres, scanned_at = np.empty((len(table), 2)), np.zeros((len(table), 2), np.int64)
    for job, each in zip(jobs, found, strict=True):
        centres[job.rows] = each.centres
        table.loc[job.rows, "um_per_px"] = each.um_per_px
        scanned_at[job.rows] = each.scanned_at_px
    if reading.origin == "scanned_area":
        table[["x_l0_px", "y_l0_px"]] += scanned_at
    if areas:
        table["scanned_x_l0_px"], table["scanned_y_l0_px"] = scanned_at.T
    shifted = (centres != table[["x_l0_px", "y_l0_px"]].to_numpy()).any(axis=1)
    table["patch_x_l0_px"], table["patch_y_l0_px"] = centres.T
    store.write_parquet(run.path("labels.parquet"), table)
    run.finish(
        ["labels.parquet", "patches.npy"],
        n_patches=len(table),
        domains=counts(table).to_dict("records"),
        um_per_px_said_by_study=[
            {"slide_id": job.slide_id, "scanner": job.scanner, "um_per_px": each.um_per_px}
            for job, each in zip(jobs, found, strict=True)
            if not each.is_stated and each.um_per_px > 0
        ],
        scanned_areas=[{"slide_id": slide_id, "x_l0_px": x, "y_l0_px": y} for slide_id, (x, y) in areas],
        n_patches_over_edge=sum(each.n_over_edge for each in found),
        n_patches_shifted=int(shifted.sum()),
    )
    run.path("progress.txt").unlink(missing_ok=True)
    return run


def read_anywhere(
    table: pd.DataFrame, folder: str | Path, reading: Reading, slide_ids: np.ndarray, shares: np.ndarray, seen_px: int
) -> tuple[np.ndarray, np.ndarray]:
    """Patches at other places than annotations, read as the stored ones are: centres and patches.

    table: as `load` returns it. slide_ids (n,): of which slides; shares, float (n, 2) in [0, 1): how far right and down,
    where 0 and 1 are the first and the last place whose central ``seen_px`` lie inside the slide. Returns centres, float
    (n, 2) of x, y in level-0 px, and patches, uint8 (n, stored_px, stored_px, 3). Raises SlideError for a slide that can't be
    read.
    """
    jobs = {job.slide_id: job for job in _plan(Path(folder), table[table["slide_id"].isin(slide_ids)], reading)}
    centres, stored = np.empty((len(slide_ids), 2)), np.empty((len(slide_ids), *[reading.stored_px] * 2, 3), np.uint8)
    for slide_id in np.unique(slide_ids.astype(str)):
        here, job = np.flatnonzero(slide_ids == slide_id), jobs[slide_id]
        with open_slide(job.files[0], job.slide_um_per_px, outside=job.outside, scanner=job.scanner) as slide:
            first, last = slide.inside(np.array([(0, 0), slide.size_px], float), seen_px, job.um_per_px)
            there = first + np.floor(shares[here] * (last - first))
            centres[here] = there if job.inside_px is None else slide.inside(there, job.inside_px, job.um_per_px)
            for i in here[slide.plan(centres[here], job.size_px, job.um_per_px)]:
                stored[i] = slide.read(*centres[i], job.size_px, job.um_per_px)
    return centres, stored


def refuse_other_slides(run: store.Run, folder: str | Path, table: pd.DataFrame) -> None:
    """Raise PatchError unless the slides in ``folder`` are those that the patches of ``run`` were cut from."""
    missing = sorted({file for file in table["file"] if not (Path(folder) / file).is_file()})
    if missing:
        raise PatchError(
            f"{folder}: of the slides that the patches were cut from {len(missing)} aren't there, the first: {missing[0]}"
        )
    if slides_digest(table, folder) != run.identity["inputs"]["files"]:
        raise PatchError(
            f"{folder}: other slides lie here than those that {run.folder} was cut from; extract the patches again"
        )


def slides_digest(table: pd.DataFrame, folder: str | Path) -> str:
    """Stands for the slides that a label table names: names and fingerprints of their files."""
    fingerprints = store_files.Fingerprints()
    return digest({file: fingerprints.of_slide(Path(folder) / file) for file in sorted(table["file"].unique())})


def _plan(folder: Path, table: pd.DataFrame, reading: Reading) -> list[Job]:
    """One job a slide, in the table's order."""
    stated, wanted, are_images = reading.slide_um_per_px, reading.um_per_px, reading.are_images
    if are_images and stated and wanted and abs(stated / wanted - 1) > SAME_RESOLUTION:
        raise PatchError(
            f"patch images are not resampled: data.um_per_px is {stated}, patches.um_per_px {wanted}; make them equal"
        )
    jobs = []
    for slide_id, rows in table.groupby("slide_id", sort=False):
        scanner = str(rows["scanner"].iloc[0])
        jobs.append(
            Job(
                slide_id=str(slide_id),
                scanner=scanner,
                files=tuple(folder / file for file in (rows["file"] if are_images else rows["file"].unique())),
                rows=rows["patch_id"].to_numpy(),
                centres=rows[["x_l0_px", "y_l0_px"]].to_numpy(),
                are_images=are_images,
                size_px=reading.stored_px,
                um_per_px=None if are_images else wanted,
                slide_um_per_px=reading.um_per_px_by_scanner.get(scanner, stated),
                inside_px=reading.size_px if reading.shifts_inward and not are_images else None,
                outside=reading.outside,
                from_scanned_area=reading.origin == "scanned_area",
            )
        )
    return jobs
