"""The patch store: every annotation's patch, row for row with the label table, in one memory-mappable array."""

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.data import downloads
from mfcore.data.labels import table as labels
from mfcore.data.patches_read import Job, PatchError, look, read_all
from mfcore.data.slides.slide import SAME_RESOLUTION, open_slide
from mfcore.store import files as store_files
from mfcore.store.records import digest
from mfcore.study.config import Settings, as_dict

__all__ = [
    "PatchError", "centre_crop", "check", "config_of", "corners", "counts", "extract", "find", "find_twins", "load",
    "load_with_twins", "prepare", "twins", "write_twins",
]  # fmt: skip


def prepare(study: Settings, folder: str | Path, n_workers: int = 1, hosts: Mapping[str, str] = downloads.HOSTS) -> Path:
    """The study's data folder: made (synthetic), fetched unless it is there (one archive), or found (all else).

    Raises LabelError or DownloadError where it can't be had, saying what is expected.
    """
    folder = Path(folder)
    if study.source.is_synthetic:
        from mfcore.data.synthetic import slides as synthetic

        data = study.data
        synthetic.make_dataset(
            folder, seed=data.seed, n_slides=data.n_slides, n_annotations=data.n_annotations, n_workers=n_workers
        )
    elif study.source.archive and not (folder / study.source.main_files[0]).is_file():
        downloads.fetch(study, folder, hosts)
    if not folder.is_dir():
        raise labels.LabelError(
            f"{folder}: no such folder; it must hold a label file ({', '.join(study.source.main_files)}) and the "
            f"slides it names, beside it or in images/; data that are published are fetched by: make data STUDY={study.name}"
        )
    labels.files_of(study, folder)
    return folder


def config_of(study: Settings) -> dict:
    """What decides the patches, and enters the hash: everything of data and patches but the names of the classes.

    Patches that come as images are neither resampled nor do they lie at a slide's border. The origin of labels enters only
    where it isn't the slide's.
    """
    left_out = ("positive", "negative") if study.data.origin == "scanned_area" else ("positive", "negative", "origin")
    data = {key: value for key, value in as_dict(study.data).items() if key not in left_out}
    patches = {**as_dict(study.patches), "stored_px": study.stored_px}
    border = {"border": "black"} if _is_black_outside(study) else {}
    resolution = study.switches.resolution if study.source.has_slides else "target"
    return {"data": data, "patches": patches, "resolution": resolution, **border}


def _is_black_outside(study: Settings) -> bool:
    return study.switches.border == "black" and study.source.has_slides


def find(study: Settings, results: str | Path) -> store.Run:
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


def write_twins(study: Settings, results: str | Path) -> store.Run:
    """Look for twins among the study's finished patches, once: ``twins.parquet``, ``patch_id`` and ``twin`` as `twins` has it.

    Facts: ``n_groups`` of twins, ``n_cases_across_domains``. Raises as `load` does.
    """
    source = find(study, results)
    run = store.open_run(results, "twins", study.name, {}, {"patches": source.key})
    if not run.done:
        table, images = load(source)
        found = pd.DataFrame({"patch_id": table["patch_id"], "twin": twins(images)})
        store.write_parquet(run.path("twins.parquet"), found)
        n_across = int((table.groupby("case_id")["domain"].nunique() > 1).sum())
        n_groups = int((found["twin"].value_counts() > 1).sum())
        run.finish(["twins.parquet"], n_groups=n_groups, n_cases_across_domains=n_across)
    return run


def find_twins(study: Settings, results: str | Path) -> store.Run | None:
    """The run of `write_twins` on the study's patches; None where nobody has looked for twins yet."""
    try:
        return store.find_run(results, "twins", study.name, {}, {"patches": find(study, results).key})
    except store.StoreError:
        return None


def load_with_twins(study: Settings, results: str | Path) -> pd.DataFrame:
    """The label table of the study's finished patches with a column ``twin``: as `twins` has it. Raises as `load` does."""
    found = pd.read_parquet(write_twins(study, results).path("twins.parquet"))
    return load(find(study, results))[0].merge(found, on="patch_id", validate="one_to_one")


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


def corners(study: Settings, table: pd.DataFrame) -> np.ndarray:
    """The upper left corner of what `centre_crop` leaves of each patch, x and y in level-0 px, int64 (n_patches, 2).

    Exact where patches are cut on the slide's grid, to the nearest px where they are resampled. ``table`` is `load`'s.
    """
    target = study.patches.um_per_px if study.switches.resolution == "target" else None
    scale = np.ones(len(table)) if target is None else (target / table["um_per_px"]).fillna(1.0).to_numpy()
    is_cut = np.abs(scale - 1) < SAME_RESOLUTION
    scale = np.where(is_cut, 1.0, scale)[:, None]  # level-0 px a px
    stored = table[["patch_x_l0_px", "patch_y_l0_px"]].to_numpy() - study.stored_px * scale / 2
    stored[is_cut] = np.floor(stored[is_cut] + 0.5)
    margin_px = (study.stored_px - study.patches.size_px) // 2
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


def extract(study: Settings, folder: str | Path, results: str | Path, n_workers: int = 1) -> store.Run:
    """Read every annotation's patch: ``patches.npy``, uint8 (n_patches, stored_px, stored_px, 3), and ``labels.parquet``.

    The table is `labels.table.load`'s with um_per_px filled, places counted from the slide's corner, and with ``patch_x_l0_px``
    and
    ``patch_y_l0_px``, where the patch was centred; they differ from the annotation's centre where the study moves patches
    inward at the border. Where a slide's scanned area begins off its corner, ``scanned_x_l0_px`` and ``scanned_y_l0_px`` say
    where, and a study that doesn't say from which its labels count is warned, by the slides' names. Goes on where it stopped.
    Raises LabelError for bad labels and PatchError, naming every bad slide at once and before anything is read, for slides that
    are damaged or without um/px.
    """
    folder = Path(folder)
    table = labels.load(study, folder)
    run = store.open_run(results, "patches", study.name, config_of(study), _fingerprint(study, folder, table))
    if run.done:
        return run
    jobs = _plan(study, folder, table)
    found = look(jobs, n_workers)
    areas = [(job.slide_id, each.scanned_at_px) for job, each in zip(jobs, found, strict=True) if any(each.scanned_at_px)]
    if areas and study.data.origin is None:
        warnings.warn(f"labels are taken to count from the slide's corner, but {_offsets(areas)}", stacklevel=2)
    if not run.path("patches.npy").is_file():
        partial = run.path("patches.partial.npy")
        read_all(partial, run.path("progress.txt"), jobs, found, study.stored_px, n_workers)
        partial.replace(run.path("patches.npy"))
    centres, scanned_at = np.empty((len(table), 2)), np.zeros((len(table), 2), np.int64)
    for job, each in zip(jobs, found, strict=True):
        centres[job.rows] = each.centres
        table.loc[job.rows, "um_per_px"] = each.um_per_px
        scanned_at[job.rows] = each.scanned_at_px
    if study.data.origin == "scanned_area":
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
    study: Settings, folder: str | Path, table: pd.DataFrame, slide_ids: np.ndarray, shares: np.ndarray, seen_px: int
) -> tuple[np.ndarray, np.ndarray]:
    """Patches at other places than annotations, read as the stored ones are: centres and patches.

    table: as `load` returns it. slide_ids (n,): of which slides; shares, float (n, 2) in [0, 1): how far right and down,
    where 0 and 1 are the first and the last place whose central ``seen_px`` lie inside the slide. Returns centres, float
    (n, 2) of x, y in level-0 px, and patches, uint8 (n, stored_px, stored_px, 3). Raises SlideError for a slide that can't be
    read.
    """
    jobs = {job.slide_id: job for job in _plan(study, Path(folder), table[table["slide_id"].isin(slide_ids)])}
    centres, stored = np.empty((len(slide_ids), 2)), np.empty((len(slide_ids), *[study.stored_px] * 2, 3), np.uint8)
    for slide_id in np.unique(slide_ids.astype(str)):
        here, job = np.flatnonzero(slide_ids == slide_id), jobs[slide_id]
        with open_slide(job.files[0], job.slide_um_per_px, outside=job.outside, scanner=job.scanner) as slide:
            first, last = slide.inside(np.array([(0, 0), slide.size_px], float), seen_px, job.um_per_px)
            there = first + np.floor(shares[here] * (last - first))
            centres[here] = there if job.inside_px is None else slide.inside(there, job.inside_px, job.um_per_px)
            for i in here[slide.plan(centres[here], job.size_px, job.um_per_px)]:
                stored[i] = slide.read(*centres[i], job.size_px, job.um_per_px)
    return centres, stored


def refuse_other_slides(run: store.Run, study: Settings, folder: str | Path, table: pd.DataFrame) -> None:
    """Raise PatchError unless the slides in ``folder`` are those that the patches of ``run`` were cut from."""
    missing = sorted({file for file in table["file"] if not (Path(folder) / file).is_file()})
    if missing:
        raise PatchError(
            f"{folder}: of the slides that the patches were cut from {len(missing)} aren't there, the first: {missing[0]}"
        )
    if _fingerprint(study, Path(folder), table)["files"] != run.identity["inputs"]["files"]:
        raise PatchError(
            f"{folder}: other slides lie here than those that {run.folder} was cut from; extract the patches again"
        )


def _fingerprint(study: Settings, folder: Path, table: pd.DataFrame) -> dict[str, str]:
    """Stands for the data: the label file's checksum; names and fingerprints of the files its rows name."""
    fingerprints = store_files.Fingerprints()
    files = {file: fingerprints.of_slide(folder / file) for file in sorted(table["file"].unique())}
    return {**{file.name: store.file_sha256(file) for file in labels.files_of(study, folder)}, "files": digest(files)}


def _plan(study: Settings, folder: Path, table: pd.DataFrame) -> list[Job]:
    """One job a slide, in the table's order."""
    data, patches = study.data, study.patches
    are_images = not study.source.has_slides
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
                from_scanned_area=data.origin == "scanned_area",
            )
        )
    return jobs
