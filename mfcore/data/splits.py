"""Which patch trains, validates and tests, in each fold and at each size: made once, read by every arm.

Two uses. Data scaling (``train_domain`` "all"): the whole data set at every size. Cross-domain (``train_domain`` a
domain, size 1): train on one domain, test on its own test share and on all of every other domain (`splits_draw.across` says
what is left out where domains share cases or pixels). Both follow Ganz et al., section 3: 20 % of all patches test, 20 % of
the others validate; sizes are shares of the patches that don't test.
"""

from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.data import patches
from mfcore.data.splits_draw import ALL, BY_TRAINING_SCRIPT, Placing, Scheme, SplitError, across, draw
from mfcore.streams import stream_seed
from mfcore.study.config import SCHEMES, Settings, as_dict

ROLES = ("train", "val", "test")
BLANKS = str.maketrans(" _", "_ ")


@dataclass(frozen=True, order=True)
class Unit:
    """One training: on which domain ("all" or one), in which fold, at which size."""

    train_domain: str
    fold: int
    size: float

    @property
    def name(self) -> str:
        """Name of its files, as "all-fold0-size0.02": another for another unit. A domain's single blanks become "_"."""
        swapped = self.train_domain.translate(BLANKS)  # where "_" stands for a blank, a blank is what can't be shown
        return f"{store.file_name(swapped)}-{self._fold_and_size}"

    @property
    def title(self) -> str:
        """What its random draws and its history call it: as `name`, with all that the domain's name has."""
        return f"{self.train_domain.translate(BLANKS)}-{self._fold_and_size}"

    @property
    def _fold_and_size(self) -> str:
        return f"fold{self.fold}-size{shortest(self.size)}"


def shortest(size: float) -> str:
    """A size in as few digits as tell it from every other, as "0.02" or "1"."""
    text = f"{size:g}"
    return text if float(text) == size else repr(float(size))


def percent(size: float) -> str:
    """A size in per cent, without the sign, in as few digits as tell it from every other."""
    return f"{(100 * Decimal(repr(float(size)))).normalize():f}"


def make(labels: pd.DataFrame, scheme: Scheme) -> pd.DataFrame:
    """Draw every fold of a scheme at every size, for both uses (`splits_draw.draw`).

    labels: as `mfcore.data.labels.table.COLUMNS`, one row per patch; a column ``twin``, a number that patches of the same
    pixels share, keeps these on one side (`splits_draw`). Returns ``patch_id, train_domain, fold, size, role``; a patch
    that has no role at a size has no row there. Raises SplitError where a size leaves a class empty, a stratum has too
    few slides, or (cross-domain) there is one domain only.
    """
    domains = sorted(labels["domain"].unique())
    tables = []
    for fold in range(scheme.n_folds):
        tables += _tables(ALL, fold, draw(labels, scheme, ALL, fold, scheme.sizes))
        if scheme.by_domain and len(domains) == 1:
            raise SplitError(
                f"cross-domain needs two domains or more, there is only {domains[0]!r}; set splits.by_domain: false"
            )
        for domain in domains if scheme.by_domain else ():
            within = labels[labels["domain"] == domain]
            roles, elsewhere = across(labels, scheme, domain, draw(within, scheme, domain, fold, (1.0,))[1.0])
            tables += _tables(domain, fold, {1.0: roles})
            tables.append(_rows(domain, fold, 1.0, "test", elsewhere))
    table = pd.concat(tables, ignore_index=True)
    _refuse_empty(table, labels)
    return table


def _tables(train_domain: str, fold: int, drawn: dict[float, dict[str, np.ndarray]]) -> list[pd.DataFrame]:
    return [_rows(train_domain, fold, size, role, ids) for size, roles in drawn.items() for role, ids in roles.items()]


def _rows(train_domain: str, fold: int, size: float, role: str, patch_ids: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"patch_id": patch_ids, "train_domain": train_domain, "fold": fold, "size": size, "role": role})


def _refuse_empty(table: pd.DataFrame, labels: pd.DataFrame) -> None:
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
        missing = "positive" if row[1] == 0 else "negative"
        full = counts.loc[(domain, fold, slice(None), role)].to_numpy().min(axis=1).max()
        raise SplitError(
            f"size {shortest(size)} leaves no {missing} patch in the {role} set (fold {fold}, training on {domain!r}: {row[1]} "
            f"positive, {row[0]} negative; {len(empty)} such sets in all). The rarer class has {full} at the largest size: "
            f"raise the smallest of splits.sizes, or give the study more data"
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


def load(run: store.Run) -> pd.DataFrame:
    """The table of splits of a finished run, as `make` returns it."""
    return store.read_parquet(run.path("splits.parquet"))


# ---- of a study ----


def under(study: Settings, scheme: str) -> Settings:
    """The study under ``scheme``, one of `config.SCHEMES`: itself where the scheme is its own, else without single domains."""
    if scheme not in SCHEMES:
        raise SplitError(f"scheme {scheme!r} is not one of {list(SCHEMES)}")
    if scheme == study.switches.scheme:
        return study
    switches = replace(study.switches, **SCHEMES[scheme])
    return replace(study, switches=switches, splits=replace(study.splits, by_domain=False))


def placing_of(study: Settings) -> Placing:
    """Where the study's patches lie on their slides."""
    is_native = study.switches.resolution != "target"
    return Placing(study.patches.size_px, None if is_native else study.patches.um_per_px)


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
    """Every scheme of `config.SCHEMES`, trained on all domains, with the study's folds and sizes."""
    return {name: replace(scheme_of(under(study, name)), by_domain=False) for name in SCHEMES}


def config_of(study: Settings, networks: bool = False) -> dict:
    """The part of the study that decides the splits of its probes or ``networks``."""
    scheme = scheme_of(study, networks)
    switches = {"split_by": scheme.split_by, "stratified": scheme.stratified}
    return {"splits": {**as_dict(study.splits), "seed": scheme.seed}, "switches": switches}


def write(study: Settings, results: Path) -> store.Run:
    """Make and store the splits of the study's probes and of its networks (``splits.parquet``); returns those of the probes."""
    patches.write_twins(study, results)
    runs = []
    for networks in (False, True):
        run = store.open_run(results, "splits", _name(study, networks), config_of(study, networks), _inputs(study, results))
        if not run.done:
            table = make(patches.load_with_twins(study, results), scheme_of(study, networks))
            store.write_parquet(run.path("splits.parquet"), table)
            run.finish(["splits.parquet"], n_units=len(units(table)))
        runs.append(run)
    return runs[0]


def find(study: Settings, results: str | Path, networks: bool = False) -> store.Run:
    """The finished splits that the study's probes, or its ``networks``, learn from; raises StoreError where there are none."""
    return store.find_run(results, "splits", _name(study, networks), config_of(study, networks), _inputs(study, results))


def _inputs(study: Settings, results: str | Path) -> dict[str, str]:
    """The patches; and their twins, where twins change how the study is split."""
    inputs = {"patches": patches.find(study, results).key}
    twins = patches.find_twins(study, results)
    if twins is None or scheme_of(study).is_released:
        return inputs
    facts, by_case = twins.record["facts"], study.switches.split_by in ("slide", "official")
    return inputs | {"twins": twins.key} if facts["n_groups"] or (by_case and facts["n_cases_across_domains"]) else inputs


def _name(study: Settings, networks: bool) -> str:
    own = networks and not study.switches.shared_splits
    return f"{study.switches.scheme}_networks" if own else study.switches.scheme
