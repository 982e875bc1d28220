"""Which patch trains, validates and tests, in each fold and at each size: made once, read by every arm; and their audit.

Two schemes. Data scaling (``train_domain`` "all"): the whole data set at every size. Cross-domain (``train_domain`` a
domain, size 1): train on one domain, test on its own test share and on all of every other domain. Both follow Ganz et
al., section 3: 20 % of all for testing, 20 % of the remainder for validation; sizes are shares of what testing leaves.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from mfcore import patches, store
from mfcore.config import Study, as_dict
from mfcore.rng import generator

ALL = "all"
ROLES = ("train", "val", "test")
N_PROPOSALS = 20  # draws of cases from which the best balanced is kept; many more, and few cases leave one answer


class SplitError(ValueError):
    """The data can't be split as the study asks; the message says at which fold and size, and what to do."""


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
    """Draw every fold at every size, of both schemes.

    labels: as `mfcore.labels.COLUMNS`, one row per patch. Returns ``patch_id, train_domain, fold, size, role``; a patch
    that has no role at a size has no row there. Raises SplitError where a size leaves a class empty, a stratum has too
    few slides, or (cross-domain) there is one domain only.
    """
    domains = sorted(labels["domain"].unique())
    tables = []
    for fold in range(study.splits.n_folds):
        tables += _draw(study, labels, ALL, fold, study.splits.sizes)
        if study.splits.by_domain and len(domains) == 1:
            raise SplitError(
                f"cross-domain needs two domains or more, there is only {domains[0]!r}; set splits.by_domain: false"
            )
        for domain in domains if study.splits.by_domain else ():
            within = labels[labels["domain"] == domain]
            elsewhere = labels.loc[labels["domain"] != domain, "patch_id"].to_numpy()
            tables += _draw(study, within, domain, fold, (1.0,))
            tables.append(_rows(domain, fold, 1.0, "test", elsewhere))
    table = pd.concat(tables, ignore_index=True)
    _refuse_empty(table, labels, study)
    return table


def _draw(study: Study, labels: pd.DataFrame, scheme: str, fold: int, sizes: tuple[float, ...]) -> list[pd.DataFrame]:
    """One fold of one scheme at each of ``sizes``."""
    if study.switches.split_by == "annotation" and not study.switches.stratified:
        return _draw_as_released(study, labels, scheme, fold, sizes)
    draw = _draw_slides if study.switches.split_by == "slide" else _draw_annotations
    test = draw(study, labels, study.splits.test_fraction, ("test", scheme, fold))
    pool = labels[~labels["patch_id"].isin(test)]
    val = draw(study, pool, study.splits.val_fraction, ("val", scheme, fold))
    train = pool.loc[~pool["patch_id"].isin(val), "patch_id"].to_numpy()
    tables = []
    for size in sizes:
        for role, ids in (("train", train), ("val", val)):
            subset = labels[labels["patch_id"].isin(ids)]
            rounding = np.rint if role == "train" else np.ceil  # a validation set of one class measures nothing
            tables.append(_rows(scheme, fold, size, role, _nested_subset(study, subset, size, rounding, (role, scheme, fold))))
        tables.append(_rows(scheme, fold, size, "test", test))
    return tables


def _draw_as_released(
    study: Study, labels: pd.DataFrame, scheme: str, fold: int, sizes: tuple[float, ...]
) -> list[pd.DataFrame]:
    """The released probe script's draws (seeds 42 to 46, row order): one generator for all sizes, in the study's order.

    Its further 20 %, which the probe leaves unused, is the end-to-end network's validation set here; the released
    training script draws its own splits with another generator, which contradicts the paper.
    """
    rng = np.random.default_rng(study.splits.seed + fold)
    rows = np.arange(len(labels))
    test = rng.choice(len(rows), size=int(len(rows) * study.splits.test_fraction), replace=False)
    pool = np.setdiff1d(rows, test)
    ids = labels["patch_id"].to_numpy()
    tables = []
    for size in sizes:
        drawn = rng.choice(pool, size=int(len(pool) * size), replace=False)
        train = rng.choice(drawn, size=int((1 - study.splits.val_fraction) * len(drawn)), replace=False)
        for role, chosen in (("train", train), ("val", np.setdiff1d(drawn, train)), ("test", test)):
            tables.append(_rows(scheme, fold, size, role, np.sort(ids[chosen])))
    return tables


def _draw_slides(study: Study, labels: pd.DataFrame, share: float, stream: tuple) -> np.ndarray:
    """Patches of slides drawn so that they hold about ``share`` of the annotations, a domain at a time.

    Slides of one case go together. A draw takes cases in random order up to the nearest to ``share``. Stratified, it is
    the best balanced of N_PROPOSALS such draws (rerandomisation, Morgan and Rubin 2012): the largest deviation from
    ``share`` in either class is least. Returns patch ids.
    """
    chosen = []
    for stratum, within in labels.groupby(_strata(labels), sort=True):
        names, case = np.unique(within["case_id"].to_numpy(), return_inverse=True)
        if len(names) < 2:
            raise SplitError(
                f"{stratum!r} has {len(names)} case left to divide ({stream[0]} of {stream[1]!r}, fold {stream[2]}); by slide "
                "it needs three or more. Leave the domain out, set splits.by_domain: false, or switches.split_by: annotation"
            )
        counts = np.stack(
            [np.bincount(case, weights=within["label"] == c, minlength=len(names)) for c in (0, 1)]
        )  # (2, n_cases)
        present = counts.sum(axis=1) > 0
        rng = generator(study.splits.seed, *stream, stratum)
        best = (np.inf, np.empty(0, dtype=int))
        for _ in range(N_PROPOSALS if study.switches.stratified else 1):
            order = rng.permutation(len(names))
            held = np.cumsum(counts.sum(axis=0)[order]) / counts.sum()
            n_taken = min(int(np.argmin(np.abs(held - share))) + 1, len(names) - 1)
            taken = order[:n_taken]
            deviation = np.abs(counts[present][:, taken].sum(axis=1) / counts[present].sum(axis=1) - share).max()
            if deviation < best[0]:
                best = (deviation, taken)
        chosen.append(within.loc[np.isin(case, best[1]), "patch_id"].to_numpy())
    return np.sort(np.concatenate(chosen))


def _strata(labels: pd.DataFrame) -> pd.Series:
    """The domain of each row; domains with fewer than three cases together form one stratum."""
    n_cases = labels.groupby("domain")["case_id"].nunique()
    return labels["domain"].where(labels["domain"].map(n_cases) >= 3, "domains of one or two cases")


def _draw_annotations(study: Study, labels: pd.DataFrame, share: float, stream: tuple) -> np.ndarray:
    """Single annotations, ``share`` of each class in each domain. Returns patch ids."""
    chosen = []
    for stratum, within in labels.groupby(["domain", "label"], sort=True):
        rng = generator(study.splits.seed, *stream, *stratum)
        chosen.append(rng.choice(within["patch_id"].to_numpy(), size=round(len(within) * share), replace=False))
    return np.sort(np.concatenate(chosen))


def _nested_subset(study: Study, labels: pd.DataFrame, size: float, rounding: Callable, stream: tuple) -> np.ndarray:
    """The share ``size`` of ``labels``; a smaller size is part of a larger one. Returns patch ids."""
    groups = labels.groupby("label") if study.switches.stratified else [(ALL, labels)]
    chosen = []
    for group, within in groups:
        order = generator(study.splits.seed, "size", *stream, group).permutation(within["patch_id"].to_numpy())
        chosen.append(order[: int(rounding(round(len(order) * size, 6)))])
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)


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


def audit(table: pd.DataFrame, labels: pd.DataFrame, size_px: int, um_per_px: float | None) -> pd.DataFrame:
    """What the splits are worth: one row per unit.

    n_train, n_val, n_test; share of positives in each; ``test_on_train_slides``: share of test patches on a slide that
    training sees; ``test_overlapping_train``: share of test patches with at least one pixel in common with a training
    patch (squares of ``size_px`` at ``um_per_px``, or native where None or where the slide's own is unknown). Training
    means the role "train" alone.
    """
    side = np.full(len(labels), float(size_px))
    if um_per_px is not None:
        side = np.where(np.isfinite(labels["um_per_px"]), size_px * um_per_px / labels["um_per_px"], size_px)
    indexed = labels.assign(side_l0_px=side).set_index("patch_id")
    rows = []
    for unit in units(table):
        ids = select(table, unit)
        train, test = indexed.loc[ids["train"]], indexed.loc[ids["test"]]
        rows.append(
            {
                "train_domain": unit.train_domain,
                "fold": unit.fold,
                "size": unit.size,
                **{f"n_{role}": len(ids[role]) for role in ROLES},
                **{f"positives_{role}": float(indexed.loc[ids[role], "label"].mean()) for role in ROLES},
                "n_train_slides": train["slide_id"].nunique(),
                "n_test_slides": test["slide_id"].nunique(),
                "test_on_train_slides": float(test["slide_id"].isin(train["slide_id"]).mean()),
                "test_overlapping_train": float(_overlapping(train, test).mean()),
            }
        )
    return pd.DataFrame(rows)


def audit_summary(table: pd.DataFrame) -> pd.DataFrame:
    """An audit for the eye: means over folds, a row a training domain and size, shares in per cent.

    table: as `audit` returns it.
    """
    means = table.drop(columns="fold").groupby(["train_domain", "size"]).mean().reset_index()
    means = means.iloc[np.argsort(means["train_domain"] != ALL, kind="stable")]
    sizes = [f"{100 * size:g}\u00a0%" for size in means["size"]]  # a space that doesn't break
    shown = {"trained on": means["train_domain"].to_numpy(), "size": sizes}
    shown |= {name: means[name].round().astype(int).to_numpy() for name in ("n_train", "n_val", "n_test")}
    shares = ("positives_train", "positives_test", "test_on_train_slides", "test_overlapping_train")
    return pd.DataFrame(shown | {name: [f"{share:.1%}" for share in means[name]] for name in shares})


def _overlapping(train: pd.DataFrame, test: pd.DataFrame) -> np.ndarray:
    """Whether each test patch shares a pixel with a training patch of its slide: centres nearer than a side on both axes."""
    shared = np.zeros(len(test), dtype=bool)
    slide_of_test = test["slide_id"].to_numpy()
    for slide, seen in train.groupby("slide_id"):
        here = np.flatnonzero(slide_of_test == slide)
        if len(here):
            centres = test.iloc[here][["x_l0_px", "y_l0_px"]].to_numpy()
            distance, _ = cKDTree(seen[["x_l0_px", "y_l0_px"]].to_numpy()).query(centres, p=np.inf)
            shared[here] = distance < test["side_l0_px"].to_numpy()[here]
    return shared


def config_of(study: Study) -> dict:
    """What of the study decides its splits."""
    switches = {key: getattr(study.switches, key) for key in ("split_by", "stratified")}
    return {"splits": as_dict(study.splits), "switches": switches}


def write(study: Study, results: Path) -> store.Run:
    """Make and store the splits of the study's patches, with their audit (``splits.parquet``, ``audit.csv``)."""
    patches_run = patches.find(study, results)
    run = store.open_run(results, "splits", study.mode, config_of(study), {"patches": patches_run.key})
    if not run.done:
        labels, _ = patches.load(patches_run)
        table = make(study, labels)
        store.write_parquet(run.path("splits.parquet"), table)
        um_per_px = None if study.switches.resolution == "native" else study.patches.um_per_px
        store.write_csv(run.path("audit.csv"), audit(table, labels, study.patches.size_px, um_per_px))
        run.finish(["splits.parquet", "audit.csv"], n_units=len(units(table)))
    return run


def find(study: Study, results: Path) -> store.Run:
    """The study's finished splits; raises StoreError where there are none."""
    return store.find_run(results, "splits", study.mode, config_of(study), {"patches": patches.find(study, results).key})


def load(run: store.Run) -> pd.DataFrame:
    """The table of splits of a finished run, as `make` returns it."""
    return pd.read_parquet(run.path("splits.parquet"))


def load_audit(run: store.Run) -> pd.DataFrame:
    """The audit of a finished run's splits, as `audit` returns it."""
    return pd.read_csv(run.path("audit.csv"))
