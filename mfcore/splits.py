"""Which patch trains, validates and tests, in each fold and at each size: made once, read by every arm.

Two uses. Data scaling (``train_domain`` "all"): the whole data set at every size. Cross-domain (``train_domain`` a
domain, size 1): train on one domain, test on its own test share and on all of every other domain. Both follow Ganz et
al., section 3: 20 % of all for testing, 20 % of the remainder for validation; sizes are shares of what testing leaves.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import patches, store
from mfcore.config import SCHEMES, Study, as_dict
from mfcore.rng import stream_seed
from mfcore.splits_draw import SplitError, draw

ALL = "all"
ROLES = ("train", "val", "test")


@dataclass(frozen=True, order=True)
class Unit:
    """One training: on which domain ("all" or one), in which fold, at which size."""

    train_domain: str
    fold: int
    size: float

    @property
    def name(self) -> str:
        """Name that can be a file's."""
        return f"{re.sub(r'[^A-Za-z0-9]+', '_', self.train_domain)}-fold{self.fold}-size{self.size:g}"


def make(study: Study, labels: pd.DataFrame) -> pd.DataFrame:
    """Draw every fold at every size, for both uses, as the study's switches say (`splits_draw.draw`).

    labels: as `mfcore.labels.COLUMNS`, one row per patch. Returns ``patch_id, train_domain, fold, size, role``; a patch
    that has no role at a size has no row there. Raises SplitError where a size leaves a class empty, a stratum has too
    few slides, or (cross-domain) there is one domain only.
    """
    domains = sorted(labels["domain"].unique())
    tables = []
    for fold in range(study.splits.n_folds):
        tables += _tables(ALL, fold, draw(study, labels, ALL, fold, study.splits.sizes))
        if study.splits.by_domain and len(domains) == 1:
            raise SplitError(
                f"cross-domain needs two domains or more, there is only {domains[0]!r}; set splits.by_domain: false"
            )
        for domain in domains if study.splits.by_domain else ():
            within = labels[labels["domain"] == domain]
            elsewhere = labels.loc[labels["domain"] != domain, "patch_id"].to_numpy()
            tables += _tables(domain, fold, draw(study, within, domain, fold, (1.0,)))
            tables.append(_rows(domain, fold, 1.0, "test", elsewhere))
    table = pd.concat(tables, ignore_index=True)
    _refuse_empty(table, labels, study)
    return table


def _tables(train_domain: str, fold: int, drawn: dict[float, dict[str, np.ndarray]]) -> list[pd.DataFrame]:
    return [_rows(train_domain, fold, size, role, ids) for size, roles in drawn.items() for role, ids in roles.items()]


def _rows(train_domain: str, fold: int, size: float, role: str, patch_ids: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"patch_id": patch_ids, "train_domain": train_domain, "fold": fold, "size": size, "role": role})


def _refuse_empty(table: pd.DataFrame, labels: pd.DataFrame, study: Study) -> None:
    """Refuse a unit whose training or test set lacks a class, or whose validation set is empty."""
    label = labels.set_index("patch_id")["label"]
    counts = (
        table.assign(label=table["patch_id"].map(label))
        .groupby(["train_domain", "fold", "size", "role", "label"], observed=True)
        .size()
        .unstack("label", fill_value=0)
        .reindex(columns=[0, 1], fill_value=0)
    )
    wanted = {(u.train_domain, u.fold, u.size, role) for u in units(table) for role in ROLES}
    counts = counts.reindex(pd.MultiIndex.from_tuples(sorted(wanted), names=counts.index.names), fill_value=0)
    is_val = counts.index.get_level_values("role") == "val"
    empty = counts[np.where(is_val, (counts == 0).all(axis=1), (counts == 0).any(axis=1))]
    if len(empty):
        (domain, fold, size, role), row = next(empty.iterrows())
        name = study.data.positive if row[1] == 0 else study.data.negative
        full = counts.loc[(domain, fold, slice(None), role)].to_numpy().min(axis=1).max()
        raise SplitError(
            f"size {size:g} leaves no {name!r} in the {role} set (fold {fold}, training on {domain!r}: {row[1]} positive, "
            f"{row[0]} negative; {len(empty)} such sets in all). The rarer class has {full} at the largest size: raise the "
            f"smallest of splits.sizes, or give the study more data"
        )


def units(table: pd.DataFrame) -> list[Unit]:
    """Every training that a table of splits asks for, sorted."""
    keys = table[["train_domain", "fold", "size"]].drop_duplicates()
    return sorted(Unit(str(d), int(f), float(s)) for d, f, s in keys.itertuples(index=False))


def select(table: pd.DataFrame, unit: Unit) -> dict[str, np.ndarray]:
    """Patch ids (int64, sorted) of one unit by role."""
    mine = table[(table["train_domain"] == unit.train_domain) & (table["fold"] == unit.fold) & (table["size"] == unit.size)]
    return {role: np.sort(mine.loc[mine["role"] == role, "patch_id"].to_numpy(dtype=np.int64)) for role in ROLES}


def predictions(labels: pd.DataFrame, unit: Unit, patch_ids: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    """The table of predictions of one unit, the same for every procedure.

    labels: indexed by patch_id; patch_ids (n,) int64; scores (n,), probability of class 1. Returns ``patch_id, slide_id,
    domain, label, score, fold, size, train_domain``. Raises ValueError, naming the patch, where a score isn't finite.
    """
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise ValueError(f"{unit.name}: {len(bad)} scores aren't finite, the first of patch {patch_ids[bad[0]]}")
    table = labels.loc[patch_ids, ["slide_id", "domain", "label"]].reset_index()
    return table.assign(score=scores, fold=unit.fold, size=unit.size, train_domain=unit.train_domain)


def under(study: Study, scheme: str) -> Study:
    """The study as it is where ``scheme`` (one of `config.SCHEMES`) is its own; else split so, for data scaling only."""
    if scheme not in SCHEMES:
        raise SplitError(f"scheme {scheme!r} is not one of {list(SCHEMES)}")
    if scheme == study.switches.scheme:
        return study
    switches = replace(study.switches, **SCHEMES[scheme])
    return replace(study, switches=switches, splits=replace(study.splits, by_domain=False))


def drawn_for(study: Study, networks: bool) -> Study:
    """The study as its probes, or its networks, are split: the same, unless ``switches.shared_splits`` is off.

    Networks then have folds of their own, drawn alike by a seed of their own, as the released training script, whose
    generator is another than its probe's, draws others for the same seed.
    """
    if study.switches.shared_splits or not networks:
        return study
    seed = stream_seed(study.splits.seed, "networks") % 2**32
    return replace(study, splits=replace(study.splits, seed=seed))


def config_of(study: Study) -> dict:
    """What of the study decides its splits."""
    switches = {key: getattr(study.switches, key) for key in ("split_by", "stratified")}
    return {"splits": as_dict(study.splits), "switches": switches}


def write(study: Study, results: Path) -> store.Run:
    """Make and store the splits of the study's patches (``splits.parquet``), and its networks' where these are others.

    Returns the probes'.
    """
    runs = []
    for networks in (False, True):
        drawn = drawn_for(study, networks)
        patches_run = patches.find(study, results)
        run = store.open_run(results, "splits", _name(study, networks), config_of(drawn), {"patches": patches_run.key})
        if not run.done:
            labels, _ = patches.load(patches_run)
            table = make(drawn, labels)
            store.write_parquet(run.path("splits.parquet"), table)
            run.finish(["splits.parquet"], n_units=len(units(table)))
        runs.append(run)
    return runs[0]


def find(study: Study, results: str | Path, networks: bool = False) -> store.Run:
    """The finished splits that the study's probes, or its ``networks``, learn from; raises StoreError where there are none."""
    inputs = {"patches": patches.find(study, results).key}
    return store.find_run(results, "splits", _name(study, networks), config_of(drawn_for(study, networks)), inputs)


def _name(study: Study, networks: bool) -> str:
    own = networks and not study.switches.shared_splits
    return f"{study.switches.scheme}_networks" if own else study.switches.scheme


def load(run: store.Run) -> pd.DataFrame:
    """The table of splits of a finished run, as `make` returns it."""
    return store.read_parquet(run.path("splits.parquet"))
