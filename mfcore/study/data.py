"""A study's data on disk: its data folder, and the runs with patches, twins, splits and the audit
of splits.
"""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from mfcore import store
from mfcore.data import downloads, patches, patches_read, splits, splits_audit
from mfcore.data.labels import table as labels
from mfcore.data.options import SCHEMES
from mfcore.data.patches import Reading
from mfcore.data.slides.slide import SAME_RESOLUTION
from mfcore.data.splits_draw import BY_TRAINING_SCRIPT, Placing, Scheme, SplitError
from mfcore.store.options import as_dict
from mfcore.streams import stream_seed
from mfcore.study.config import ConfigError, Settings

Identity = tuple[str, str, dict, dict[str, str]]  # of a run: stage, name, config, inputs

# ---- the data folder ----


def data_folder(study: Settings, file: Path, data: str | Path | None) -> Path:
    """Where the study's data lie: as asked, or where the notebooks look."""
    return Path(data).expanduser() if data else file.resolve().parent.parent / "data" / study.name


def prepare(study: Settings, folder: str | Path, n_workers: int = 1) -> Path:
    """The study's data folder: made (synthetic), downloaded (one archive), or as it is.

    Raises LabelError or DownloadError, with what is expected, where the data are missing.
    """
    folder, source, data = Path(folder), study.source, study.data
    if source.is_synthetic:
        from mfcore.data.synthetic import slides as synthetic

        size = {"n_slides": data.n_slides, "n_annotations": data.n_annotations}
        synthetic.make_dataset(folder, seed=data.seed, **size, n_workers=n_workers)
    elif source.archive and not (folder / source.main_files[0]).is_file():
        downloads.fetch(source, folder)
    if not folder.is_dir():
        raise labels.LabelError(
            f"{folder}: no such folder; it must hold a label file ({', '.join(source.main_files)}) "
            "and the slides it names, in the same folder or in images/; published data are "
            f"fetched by: make data STUDY={study.name}"
        )
    labels.files_of(source, folder)
    return folder


def load_labels(study: Settings, folder: str | Path, check_files: bool = True) -> pd.DataFrame:
    """The label table of the study's data folder, as `labels.table.load`."""
    data = study.data
    return labels.load(study.source, folder, data.written, check_files, data.slides)


# ---- patches ----


def placing_of(study: Settings) -> Placing:
    """Where the study's patches lie on their slides."""
    is_native = study.switches.resolution != "target"
    return Placing(study.patches.size_px, None if is_native else study.patches.um_per_px)


def reading_of(study: Settings) -> Reading:
    """How the study's patches are read."""
    data, is_black = study.data, _is_black_outside(study)
    return Reading(
        stored_px=study.stored_px,
        size_px=study.patches.size_px,
        um_per_px=placing_of(study).um_per_px,
        outside=0 if is_black else 255,
        shifts_inward=study.patches.at_border == "shift" and not is_black,
        are_images=not study.source.has_slides,
        slide_um_per_px=data.um_per_px,
        um_per_px_by_scanner=data.um_per_px_by_scanner,
        origin=data.origin,
        fit=study.patches.fit,
    )


def _is_black_outside(study: Settings) -> bool:
    return study.switches.border == "black" and study.source.has_slides


def patches_config(study: Settings) -> dict:
    """What decides the patches, and enters the hash: data and patches, without names of classes.

    Patch images are resampled by ``patches.fit`` alone and do not lie at a slide's border. The
    origin of labels enters only where it isn't the slide's corner, the slides only where the study
    names some.
    """
    data, patch = as_dict(study.data), as_dict(study.patches)
    del data["positive"], data["negative"]
    data["label_values"] = list(study.data.written)
    if study.data.origin != "scanned_area":
        del data["origin"]
    if not study.data.slides:
        del data["slides"]
    if study.patches.fit is None:
        del patch["fit"]
    is_resampled = study.source.has_slides or study.patches.fit
    return {
        "data": data,
        "patches": patch | {"stored_px": study.stored_px},
        "resolution": study.switches.resolution if is_resampled else "target",
        **({"border": "black"} if _is_black_outside(study) else {}),
    }


def extract(study: Settings, folder: str | Path, results: Path, n_workers: int = 1) -> store.Run:
    """Read the patches of the study's data folder into a run, as `patches.extract`.

    Raises LabelError for bad labels.
    """
    folder = Path(folder)
    table = load_labels(study, folder)
    inputs = {file.name: store.file_sha256(file) for file in labels.files_of(study.source, folder)}
    inputs["files"] = patches.slides_digest(table, folder)
    run = store.open_run(results, "patches", study.name, patches_config(study), inputs)
    return run if run.done else patches.extract(table, folder, run, reading_of(study), n_workers)


def find_patches(study: Settings, results: Path) -> store.Run:
    """The study's finished patches; raises StoreError where there are none."""
    return store.find_run(results, "patches", study.name, patches_config(study))


# ---- scales ----


def at_scales(study: Settings) -> dict[str, Settings]:
    """The study at each of its ``scales``, by the scale's name, such as "64px_0.25um".

    Each has patches, encoders, network, sizes and folds of its scale. Patch images are brought to
    the scale's um/px as a whole, and cropped then.
    """
    scales, studies = study.scales, {}
    for at in scales.patches:
        for side in at.size_px:
            is_trained = at.network_px is None or side in at.network_px
            network = scales.network if is_trained else ""
            this = study.narrowed(scales.encoders, network, scales.n_folds, scales.sizes)
            networks = tuple(replace(one, input_px=side) for one in this.networks)
            patch = {"size_px": side, "um_per_px": at.um_per_px, "stored_px": None}
            if not study.source.has_slides:
                patch["stored_px"] = study.side_at(at.um_per_px)
                ratio = at.um_per_px / study.patches.um_per_px
                patch["fit"] = study.patches.fit or (
                    "crop" if ratio > 1 + SAME_RESOLUTION else None
                )
            this = replace(this, patches=replace(study.patches, **patch), networks=networks)
            studies[f"{side}px_{at.um_per_px:g}um"] = this
    return studies


def refuse_enlarged(study: Settings, table: pd.DataFrame) -> None:
    """Raise one ConfigError for all resolutions of the study that are finer than the slides'.

    table: as for `patches_read.enlarged`, which says what is finer.
    """
    wanted = {"patches": placing_of(study).um_per_px}
    wanted |= {
        f"scales.patches[{at.um_per_px:g} um/px]": at.um_per_px for at in study.scales.patches
    }
    problems = [
        f"{name}: um_per_px is {um_per_px:g}; {coarse}; ask for a coarser resolution"
        for name, um_per_px in wanted.items()
        if um_per_px and (coarse := patches_read.enlarged(table, um_per_px))
    ]
    if problems:
        raise ConfigError(f"study {study.name}: " + "\n  ".join(problems))


def looked_at(study: Settings, folder: Path, n_workers: int = 1) -> pd.DataFrame:
    """The label table of the study's data folder, and what `patches_read.look` says of its rows.

    Reads no px. Raises LabelError and PatchError for data that can't be used, ConfigError as
    `refuse_enlarged`.
    """
    looked = patches_read.look(load_labels(study, folder), folder, reading_of(study), n_workers)
    refuse_enlarged(study, looked)
    return looked


# ---- twins ----


def _twins(study: Settings, results: Path) -> Identity:
    return "twins", study.name, {}, {"patches": find_patches(study, results).key}


def write_twins(study: Settings, results: Path) -> store.Run:
    """Look once for twins among the study's patches: ``twins.parquet``, ``patch_id`` and ``twin``.

    ``twin``: as `patches.twins`. Facts: ``n_groups`` of twins, ``n_cases_across_domains``. Raises
    as `patches.load`.
    """
    run = store.open_run(results, *_twins(study, results))
    if not run.done:
        source = find_patches(study, results)
        table, _ = patches.load(source)
        twins = table[["patch_id"]].assign(twin=patches.twins(patches.each(source)))
        store.write_parquet(run.path("twins.parquet"), twins)
        n_across = int((table.groupby("case_id")["domain"].nunique() > 1).sum())
        n_groups = int((twins["twin"].value_counts() > 1).sum())
        run.finish(["twins.parquet"], n_groups=n_groups, n_cases_across_domains=n_across)
    return run


def labels_with_twins(study: Settings, results: Path) -> pd.DataFrame:
    """The label table of the study's patches with a column ``twin``; raises as `patches.load`."""
    twins = pd.read_parquet(write_twins(study, results).path("twins.parquet"))
    table, _ = patches.load(find_patches(study, results))
    return table.merge(twins, on="patch_id", validate="one_to_one")


# ---- splits ----


def under(study: Settings, scheme: str) -> Settings:
    """The study under ``scheme``, one of SCHEMES.

    The study itself where the scheme is its own, else without single domains. Raises SplitError.
    """
    if scheme not in SCHEMES:
        raise SplitError(f"scheme {scheme!r} is not one of {list(SCHEMES)}")
    if scheme == study.switches.scheme:
        return study
    switches = replace(study.switches, **SCHEMES[scheme])
    return replace(study, switches=switches, splits=replace(study.splits, by_domain=False))


def scheme_of(study: Settings, networks: bool = False) -> Scheme:
    """The scheme of the study's probes, or of its ``networks``.

    They are the same unless ``switches.shared_splits`` is off. Networks then have folds of their
    own: drawn as the released training scripts draw, from the same seed, where probes are drawn as
    the released probe script draws; else drawn as the probes, from another seed.
    """
    switches, placing = study.switches, placing_of(study)
    split = {"split_by": switches.split_by, "stratified": switches.stratified}
    scheme = Scheme(**split, **vars(study.splits), placing=placing)
    if switches.shared_splits or not networks:
        return scheme
    if scheme.is_released:
        return replace(scheme, split_by=BY_TRAINING_SCRIPT)
    return replace(scheme, seed=stream_seed(scheme.seed, "networks") % 2**32)


def schemes_of(study: Settings) -> dict[str, Scheme]:
    """Every scheme of SCHEMES, trained on all domains, with the study's folds and sizes."""
    return {name: replace(scheme_of(under(study, name)), by_domain=False) for name in SCHEMES}


def check_splits(study: Settings, table: pd.DataFrame) -> None:
    """Draw the splits of the study's probes and networks, but for twins, which only px tell.

    table: as `looked_at`. Raises SplitError where the study's sizes and folds ask for more.
    """
    for networks in {False, not study.switches.shared_splits}:
        splits.make(table.sort_values("patch_id"), scheme_of(study, networks))


def splits_config(study: Settings, networks: bool = False) -> dict:
    """The part of the study that decides the splits of its probes or ``networks``."""
    scheme = scheme_of(study, networks)
    switches = {"split_by": scheme.split_by, "stratified": scheme.stratified}
    return {"splits": as_dict(study.splits) | {"seed": scheme.seed}, "switches": switches}


def _splits(study: Settings, results: Path, networks: bool) -> Identity:
    """The inputs are the patches, and their twins where twins change how the study is split."""
    name = study.switches.scheme
    if networks and not study.switches.shared_splits:
        name += "_networks"
    identity = _twins(study, results)
    inputs, twins = dict(identity[-1]), store.run_by(results, *identity)
    if twins.done and not scheme_of(study).is_released:
        facts, by_case = twins.record["facts"], study.switches.split_by in ("slide", "official")
        if facts["n_groups"] or (by_case and facts["n_cases_across_domains"]):
            inputs["twins"] = twins.key
    return "splits", name, splits_config(study, networks), inputs


def write_splits(study: Settings, results: Path) -> store.Run:
    """Draw and store the splits of the study's probes and networks (``splits.parquet``).

    Returns the run with the splits of the probes.
    """
    table, runs = labels_with_twins(study, results), []
    for networks in (False, True):
        run = store.open_run(results, *_splits(study, results, networks))
        if not run.done:
            drawn = splits.make(table, scheme_of(study, networks))
            store.write_parquet(run.path("splits.parquet"), drawn)
            run.finish(["splits.parquet"], n_units=len(splits.units(drawn)))
        runs.append(run)
    return runs[0]


def find_splits(study: Settings, results: Path, networks: bool = False) -> store.Run:
    """The finished splits of the study's probes, or of its ``networks``.

    Raises StoreError where there are none.
    """
    return store.find_run(results, *_splits(study, results, networks))


# ---- the audit of splits ----


def _audit(study: Settings, results: Path) -> Identity:
    counted = {"size_px": study.patches.size_px, "counts": ["slides", "cases", "twins"]}
    inputs = {"splits": find_splits(study, results).key}
    if not study.switches.shared_splits:
        inputs["networks"] = find_splits(study, results, networks=True).key
    return "audit", study.switches.scheme, splits_config(study) | counted, inputs


def write_audit(study: Settings, results: Path) -> store.Run:
    """Audit the study's splits and every scheme: ``audit.csv``, ``schemes.csv``, ``twins.csv``.

    The run's facts: ``not_drawn``, the schemes that can't split these data, with the reasons;
    ``remarks``, as `splits_audit.remarks`.
    """
    run = store.open_run(results, *_audit(study, results))
    if not run.done:
        table = labels_with_twins(study, results)
        schemes, reasons = splits_audit.audit_schemes(table, schemes_of(study))
        tables = {
            "audit.csv": splits_audit.audit(
                splits.load(find_splits(study, results)), table, placing_of(study)
            ),
            "schemes.csv": schemes,
            "twins.csv": splits_audit.twins(table),
        }
        for name, content in tables.items():
            store.write_csv(run.path(name), content)
        run.finish(list(tables), not_drawn=reasons, remarks=splits_audit.remarks(table))
    return run


def find_audit(study: Settings, results: Path) -> store.Run:
    """The finished audit of the study's splits; raises StoreError where there is none."""
    return store.find_run(results, *_audit(study, results))


# ---- for a sweep ----


def label_files(study: Settings, folder: str | Path) -> tuple[Path, ...]:
    """The label files in the study's data folder; raises LabelError where they aren't there."""
    return labels.files_of(study.source, Path(folder))


def fetch(study: Settings, folder: str | Path, verify: bool = False) -> tuple[str, bool]:
    """Fetch what the study's data folder lacks, as `downloads.fetch`.

    Of the slides only those that the study names, if any. Returns in words what is there, and
    whether all is. Raises StoreError where there is nothing to fetch or nothing can be begun.
    """
    try:
        table = downloads.fetch(study.source, folder, verify=verify, slides=study.data.slides)
    except downloads.DownloadError as error:
        raise store.StoreError(str(error)) from None
    return downloads.summary(table), not (table["state"] == "missing").any()
