"""The patch store: every annotation's patch, row for row with the label table, in one memory-mappable array."""

from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import downloads, labels, store, store_files
from mfcore.config import Study, as_dict, digest
from mfcore.patches_read import Job, PatchError, look, read_all
from mfcore.slides import SAME_RESOLUTION

__all__ = ["PatchError", "centre_crop", "check", "config_of", "counts", "extract", "find", "load", "prepare"]


def prepare(study: Study, folder: str | Path, n_workers: int = 1, host: str = downloads.GITHUB) -> Path:
    """The study's data folder: made (synthetic), fetched unless it is there (amibr), or found (midog).

    Raises LabelError or DownloadError where it can't be had, saying what is expected.
    """
    folder = Path(folder)
    if study.data.source == "synthetic":
        from mfcore import synthetic

        data = study.data
        synthetic.make_dataset(
            folder, seed=data.seed, n_slides=data.n_slides, n_annotations=data.n_annotations, n_workers=n_workers
        )
    elif study.data.source == "amibr":
        downloads.amibr(folder, host)
    elif not folder.is_dir():
        raise labels.LabelError(
            f"{folder}: no such folder; it must hold a label file ({', '.join(labels.MAIN_FILES[study.data.source])}) and the "
            f"slides it names, beside it or in images/; data that are published are fetched by: make data STUDY={study.name}"
        )
    labels.files_of(study, folder)
    return folder


def config_of(study: Study) -> dict:
    """What decides the patches, and enters the hash: everything of data and patches but the names of the classes.

    Patches that come as images are neither resampled nor do they lie at a slide's border.
    """
    data = {key: value for key, value in as_dict(study.data).items() if key not in ("positive", "negative")}
    patches = {**as_dict(study.patches), "stored_px": study.stored_px}
    border = {"border": "black"} if _is_black_outside(study) else {}
    resolution = "target" if study.data.source == "amibr" else study.switches.resolution
    return {"data": data, "patches": patches, "resolution": resolution, **border}


def _is_black_outside(study: Study) -> bool:
    return study.switches.border == "black" and study.data.source != "amibr"


def find(study: Study, results: str | Path) -> store.Run:
    """The study's finished patches; raises StoreError where there are none."""
    return store.find_run(results, "patches", study.name, config_of(study))


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


def centre_crop(patches: np.ndarray, size_px: int) -> np.ndarray:
    """View of the central ``size_px`` of patches (..., H, W, 3); an odd margin leaves the extra px on the right and below."""
    height, width = patches.shape[-3:-1]
    if size_px > min(height, width):
        raise PatchError(f"a crop of {size_px} px doesn't fit into patches of {height} x {width} px")
    top, left = (height - size_px) // 2, (width - size_px) // 2
    return patches[..., top : top + size_px, left : left + size_px, :]


def counts(table: pd.DataFrame) -> pd.DataFrame:
    """A row a domain: n_slides, n_positive, n_negative, positive_share."""
    by_domain = table.groupby("domain", sort=True)
    positive = by_domain["label"].sum().astype(int)
    n = by_domain["label"].size()
    columns = {"n_slides": by_domain["slide_id"].nunique(), "n_positive": positive, "n_negative": n - positive}
    return pd.DataFrame({**columns, "positive_share": positive / n}).reset_index()


def check(patches: np.ndarray, table: pd.DataFrame, n_looked_at: int = 256) -> None:
    """Refuse patches that don't stand row for row with the table, and, among some looked at, patches of a single colour."""
    if patches.ndim != 4 or patches.dtype != np.uint8 or patches.shape[1] != patches.shape[2] or patches.shape[3] != 3:
        raise PatchError(f"patches are {patches.dtype} {patches.shape}, expected uint8 (n_patches, side, side, 3)")
    if len(patches) != len(table) or not np.array_equal(table["patch_id"], np.arange(len(table))):
        raise PatchError(f"{len(patches)} patches and {len(table)} labels don't stand row for row; extract the patches again")
    rows = np.unique(np.linspace(0, len(patches) - 1, min(n_looked_at, len(patches))).astype(int))
    empty = [int(row) for row in rows if (patches[row] == patches[row, 0, 0]).all()]
    if empty:
        where = table.loc[empty[:5], ["slide_id", "x_l0_px", "y_l0_px"]].to_dict("records")
        raise PatchError(f"{len(empty)} of {len(rows)} patches looked at are of a single colour, the first: {where}")


def extract(study: Study, folder: str | Path, results: str | Path, n_workers: int = 1) -> store.Run:
    """Read every annotation's patch: ``patches.npy``, uint8 (n_patches, stored_px, stored_px, 3), and ``labels.parquet``.

    The table is `labels.load`'s with um_per_px filled, and with ``patch_x_l0_px`` and ``patch_y_l0_px``, where the patch was
    centred; they differ from the annotation's centre where the study moves patches inward at the border. Goes on where it
    stopped. Raises LabelError for bad labels and PatchError, naming every bad slide at once and before anything is read, for
    slides that are damaged or without um/px.
    """
    folder = Path(folder)
    table = labels.load(study, folder)
    run = store.open_run(results, "patches", study.name, config_of(study), _fingerprint(study, folder, table))
    if run.done:
        return run
    jobs = _plan(study, folder, table)
    found = look(jobs, n_workers)
    if not run.path("patches.npy").is_file():
        partial = run.path("patches.partial.npy")
        read_all(partial, run.path("progress.txt"), jobs, found, study.stored_px, n_workers)
        partial.replace(run.path("patches.npy"))
    centres = np.empty((len(table), 2))
    for job, each in zip(jobs, found, strict=True):
        centres[job.rows] = each.centres
        table.loc[job.rows, "um_per_px"] = each.um_per_px
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
        n_patches_over_edge=sum(each.n_over_edge for each in found),
        n_patches_shifted=int(shifted.sum()),
    )
    run.path("progress.txt").unlink(missing_ok=True)
    return run


def _fingerprint(study: Study, folder: Path, table: pd.DataFrame) -> dict[str, str]:
    """Stands for the data: the label file's checksum; names and fingerprints of the files its rows name."""
    fingerprints = store_files.Fingerprints()
    files = {file: fingerprints.of_slide(folder / file) for file in sorted(table["file"].unique())}
    return {**{file.name: store.file_sha256(file) for file in labels.files_of(study, folder)}, "files": digest(files)}


def _plan(study: Study, folder: Path, table: pd.DataFrame) -> list[Job]:
    """One job a slide, in the table's order."""
    data, patches = study.data, study.patches
    are_images = data.source == "amibr"
    is_black = _is_black_outside(study)
    is_native = are_images or study.switches.resolution == "native"
    said = data.um_per_px, patches.um_per_px
    if (
        are_images
        and None not in said
        and abs(said[0] / said[1] - 1) > SAME_RESOLUTION
        and not study.switches.resolution == "native"
    ):
        raise PatchError(
            f"patch images are not resampled: data.um_per_px is {said[0]}, patches.um_per_px {said[1]}; make them equal"
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
                size_px=study.stored_px,
                um_per_px=None if is_native else patches.um_per_px,
                slide_um_per_px=data.um_per_px_by_scanner.get(scanner, data.um_per_px),
                inside_px=patches.size_px if patches.at_border == "shift" and not (are_images or is_black) else None,
                outside=0 if is_black else 255,
            )
        )
    return jobs
