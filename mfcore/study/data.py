"""A study's data on disk: its data folder, and the runs with patches, twins, splits and the audit of splits."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from mfcore import store
from mfcore.data import downloads, patches, splits, splits_audit
from mfcore.data.labels import table as labels
from mfcore.data.options import SCHEMES
from mfcore.data.patches import Reading
from mfcore.data.splits_draw import BY_TRAINING_SCRIPT, Placing, Scheme, SplitError
from mfcore.store.options import as_dict
from mfcore.streams import stream_seed
from mfcore.study.config import Settings

# ---- the data folder ----


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
        downloads.fetch(study.source, folder, hosts)
    if not folder.is_dir():
        raise labels.LabelError(
            f"{folder}: no such folder; it must hold a label file ({', '.join(study.source.main_files)}) and the "
            f"slides it names, beside it or in images/; data that are published are fetched by: make data STUDY={study.name}"
        )
    labels.files_of(study.source, folder)
    return folder


def load_labels(study: Settings, folder: str | Path, check_files: bool = True) -> pd.DataFrame:
    """The label table of the study's data folder, as `labels.table.load`."""
    return labels.load(study.source, folder, study.data.label_values, check_files)


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
    )


def _is_black_outside(study: Settings) -> bool:
    return study.switches.border == "black" and study.source.has_slides


def patches_config(study: Settings) -> dict:
    """What decides the patches, and enters the hash: everything of data and patches but the names of the classes.

    Patches that come as images are neither resampled nor do they lie at a slide's border. The origin of labels enters only
    where it isn't the slide's.
    """
    left_out = ("positive", "negative") if study.data.origin == "scanned_area" else ("positive", "negative", "origin")
    data = {key: value for key, value in as_dict(study.data).items() if key not in left_out}
    stored = {**as_dict(study.patches), "stored_px": study.stored_px}
    border = {"border": "black"} if _is_black_outside(study) else {}
    resolution = study.switches.resolution if study.source.has_slides else "target"
    return {"data": data, "patches": stored, "resolution": resolution, **border}


def _patches_inputs(study: Settings, folder: Path, table: pd.DataFrame) -> dict[str, str]:
    """Stands for the data: the label files' checksums; names and fingerprints of the files that the table names."""
    files = {file.name: store.file_sha256(file) for file in labels.files_of(study.source, folder)}
    return {**files, "files": patches.slides_digest(table, folder)}


def extract(study: Settings, folder: str | Path, results: str | Path, n_workers: int = 1) -> store.Run:
    """Read the patches of the study's data folder into a run, as `patches.extract`; raises LabelError for bad labels."""
    folder = Path(folder)
    table = load_labels(study, folder)
    config, inputs = patches_config(study), _patches_inputs(study, folder, table)
    run = store.open_run(results, "patches", study.name, config, inputs)
    return run if run.done else patches.extract(table, folder, run, reading_of(study), n_workers)


def find_patches(study: Settings, results: str | Path) -> store.Run:
    """The study's finished patches; raises StoreError where there are none."""
    return store.find_run(results, "patches", study.name, patches_config(study))


# ---- twins ----


def write_twins(study: Settings, results: str | Path) -> store.Run:
    """Look for twins among the study's finished patches, once: ``twins.parquet``, columns ``patch_id`` and ``twin``.

    ``twin``: as `patches.twins`. Facts: ``n_groups`` of twins, ``n_cases_across_domains``. Raises as `patches.load`.
    """
    source = find_patches(study, results)
    run = store.open_run(results, "twins", study.name, {}, {"patches": source.key})
    if not run.done:
        table, images = patches.load(source)
        found = pd.DataFrame({"patch_id": table["patch_id"], "twin": patches.twins(images)})
        store.write_parquet(run.path("twins.parquet"), found)
        n_across = int((table.groupby("case_id")["domain"].nunique() > 1).sum())
        n_groups = int((found["twin"].value_counts() > 1).sum())
        run.finish(["twins.parquet"], n_groups=n_groups, n_cases_across_domains=n_across)
    return run


def find_twins(study: Settings, results: str | Path) -> store.Run | None:
    """The run of `write_twins` on the study's patches; None where nobody has looked for twins yet."""
    try:
        return store.find_run(results, "twins", study.name, {}, {"patches": find_patches(study, results).key})
    except store.StoreError:
        return None


def labels_with_twins(study: Settings, results: str | Path) -> pd.DataFrame:
    """The label table of the study's finished patches with a column ``twin``, as `write_twins`. Raises as `patches.load`."""
    found = pd.read_parquet(write_twins(study, results).path("twins.parquet"))
    return patches.load(find_patches(study, results))[0].merge(found, on="patch_id", validate="one_to_one")


# ---- splits ----


def under(study: Settings, scheme: str) -> Settings:
    """The study under ``scheme``, one of SCHEMES: itself where the scheme is its own, else without single domains."""
    if scheme not in SCHEMES:
        raise SplitError(f"scheme {scheme!r} is not one of {list(SCHEMES)}")
    if scheme == study.switches.scheme:
        return study
    switches = replace(study.switches, **SCHEMES[scheme])
    return replace(study, switches=switches, splits=replace(study.splits, by_domain=False))


def scheme_of(study: Settings, networks: bool = False) -> Scheme:
    """The scheme of the study's probes, or of its ``networks``: the same, unless ``switches.shared_splits`` is off.

    Networks then have folds of their own. Where probes are drawn as the released probe script draws, networks are drawn as
    the released training scripts draw, from the same seed; else they are drawn as the probes, from a seed of their own.
    """
    scheme = Scheme(
        split_by=study.switches.split_by,
        stratified=study.switches.stratified,
        seed=study.splits.seed,
        n_folds=study.splits.n_folds,
        test_fraction=study.splits.test_fraction,
        val_fraction=study.splits.val_fraction,
        sizes=study.splits.sizes,
        by_domain=study.splits.by_domain,
        placing=placing_of(study),
    )
    if study.switches.shared_splits or not networks:
        return scheme
    if scheme.is_released:
        return replace(scheme, split_by=BY_TRAINING_SCRIPT)
    return replace(scheme, seed=stream_seed(scheme.seed, "networks") % 2**32)


def schemes_of(study: Settings) -> dict[str, Scheme]:
    """Every scheme of SCHEMES, trained on all domains, with the study's folds and sizes."""
    return {name: replace(scheme_of(under(study, name)), by_domain=False) for name in SCHEMES}


def splits_config(study: Settings, networks: bool = False) -> dict:
    """The part of the study that decides the splits of its probes or ``networks``."""
    scheme = scheme_of(study, networks)
    switches = {"split_by": scheme.split_by, "stratified": scheme.stratified}
    return {"splits": {**as_dict(study.splits), "seed": scheme.seed}, "switches": switches}


def _splits_inputs(study: Settings, results: str | Path) -> dict[str, str]:
    """The patches; and their twins, where twins change how the study is split."""
    inputs = {"patches": find_patches(study, results).key}
    twins = find_twins(study, results)
    if twins is None or scheme_of(study).is_released:
        return inputs
    facts, by_case = twins.record["facts"], study.switches.split_by in ("slide", "official")
    return inputs | {"twins": twins.key} if facts["n_groups"] or (by_case and facts["n_cases_across_domains"]) else inputs


def _splits_name(study: Settings, networks: bool) -> str:
    own = networks and not study.switches.shared_splits
    return f"{study.switches.scheme}_networks" if own else study.switches.scheme


def write_splits(study: Settings, results: str | Path) -> store.Run:
    """Make and store the splits of the study's probes and of its networks (``splits.parquet``); returns those of the probes."""
    write_twins(study, results)
    runs = []
    for networks in (False, True):
        name, config = _splits_name(study, networks), splits_config(study, networks)
        run = store.open_run(results, "splits", name, config, _splits_inputs(study, results))
        if not run.done:
            table = splits.make(labels_with_twins(study, results), scheme_of(study, networks))
            store.write_parquet(run.path("splits.parquet"), table)
            run.finish(["splits.parquet"], n_units=len(splits.units(table)))
        runs.append(run)
    return runs[0]


def find_splits(study: Settings, results: str | Path, networks: bool = False) -> store.Run:
    """The finished splits that the study's probes, or its ``networks``, learn from; raises StoreError where there are none."""
    name, config = _splits_name(study, networks), splits_config(study, networks)
    return store.find_run(results, "splits", name, config, _splits_inputs(study, results))


# ---- the audit of splits ----


def write_audit(study: Settings, results: str | Path) -> store.Run:
    """Audit the study's splits, and those of every scheme: ``audit.csv``, ``schemes.csv`` and ``twins.csv``.

    The run's facts: ``not_drawn``, the schemes that can't split these data, with the reasons; ``networks``, the result of
    `splits_audit.between` where networks have splits of their own; ``remarks``, the result of `splits_audit.remarks`.
    """
    run = store.open_run(results, "audit", study.switches.scheme, _audit_config(study), _audit_inputs(study, results))
    if not run.done:
        table = labels_with_twins(study, results)
        own, networks = (splits.load(find_splits(study, results, networks)) for networks in (False, True))
        store.write_csv(run.path("audit.csv"), splits_audit.audit(own, table, placing_of(study)))
        schemes, reasons = splits_audit.audit_schemes(table, schemes_of(study))
        store.write_csv(run.path("schemes.csv"), schemes)
        store.write_csv(run.path("twins.csv"), splits_audit.twins(table))
        between = {} if study.switches.shared_splits else splits_audit.between(own, networks)
        files = ["audit.csv", "schemes.csv", "twins.csv"]
        run.finish(files, not_drawn=reasons, networks=between, remarks=splits_audit.remarks(table))
    return run


def find_audit(study: Settings, results: str | Path) -> store.Run:
    """The finished audit of the study's splits; raises StoreError where there is none."""
    return store.find_run(results, "audit", study.switches.scheme, _audit_config(study), _audit_inputs(study, results))


def _audit_config(study: Settings) -> dict:
    return {**splits_config(study), "size_px": study.patches.size_px, "counts": ["slides", "cases", "twins"]}


def _audit_inputs(study: Settings, results: str | Path) -> dict[str, str]:
    inputs = {"splits": find_splits(study, results).key}
    return inputs if study.switches.shared_splits else inputs | {"networks": find_splits(study, results, networks=True).key}


# ---- for a sweep ----


def label_files(study: Settings, folder: str | Path) -> tuple[Path, ...]:
    """The label files in the study's data folder; raises LabelError where they aren't there."""
    return labels.files_of(study.source, folder)


def fetch(study: Settings, folder: str | Path, verify: bool = False) -> tuple[str, bool]:
    """Fetch what the study's data folder lacks, as `downloads.fetch`.

    Returns in words what is there, and whether all is. Raises StoreError where there is nothing to
    fetch or nothing can be begun.
    """
    try:
        table = downloads.fetch(study.source, folder, verify=verify)
    except downloads.DownloadError as error:
        raise store.StoreError(str(error)) from None
    return downloads.summary(table), not (table["state"] == "missing").any()
