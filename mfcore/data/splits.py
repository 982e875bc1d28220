"""Which patch trains, validates and tests, in each fold and at each size: made once, read by every
arm.

Two uses. Data scaling (``train_domain`` "all"): the whole data set at every size. Cross-domain
(``train_domain`` a domain, size 1): train on one domain, test on its own test share and on all of
every other domain (`splits_draw.across` says what is left out where domains share cases or pixels).
Both follow Ganz et al., section 3: 20 % of all patches test, 20 % of the others validate; sizes are
shares of the patches that don't test.
"""

from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.data.splits_draw import ALL, Scheme, SplitError, across, draw

ROLES = ("train", "val", "test")
UNIT = ["train_domain", "fold", "size"]  # what names a training
BLANKS = str.maketrans(" _", "_ ")


@dataclass(frozen=True, order=True)
class Unit:
    """One training: on which domain ("all" or one), in which fold, at which size."""

    train_domain: str
    fold: int
    size: float

    @property
    def name(self) -> str:
        """Name of its files, as "all-fold0-size0.02": another for another unit. A domain's single
        blanks become "_".
        """
        # Where "_" stands for a blank, a blank is what can't be shown
        swapped = self.train_domain.translate(BLANKS)
        return f"{store.file_name(swapped)}-{self._fold_and_size}"

    @property
    def title(self) -> str:
        """What its random draws and its history call it: as `name`, with all that the domain's name
        has.
        """
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

    labels: as `mfcore.data.labels.table.COLUMNS`, one row per patch; a column ``twin``, a number
    that patches of the same pixels share, keeps these on one side (`splits_draw`). Returns
    ``patch_id, train_domain, fold, size, role``; a patch that has no role at a size has no row
    there. Raises SplitError where a size leaves a class empty, a stratum has too few slides, or
    (cross-domain) there is one domain only.
    """
    domains = sorted(labels["domain"].unique())
    tables = []
    for fold in range(scheme.n_folds):
        for size, roles in draw(labels, scheme, ALL, fold, scheme.sizes).items():
            tables += [_rows(ALL, fold, size, role, ids) for role, ids in roles.items()]
        if scheme.by_domain and len(domains) == 1:
            raise SplitError(
                f"cross-domain needs two domains or more, there is only {domains[0]!r}; set"
                " splits.by_domain: false"
            )
        for domain in domains if scheme.by_domain else ():
            within = labels[labels["domain"] == domain]
            roles, elsewhere = across(
                labels, scheme, domain, draw(within, scheme, domain, fold, (1.0,))[1.0]
            )
            tables += [
                _rows(domain, fold, 1.0, role, ids)
                for role, ids in [*roles.items(), ("test", elsewhere)]
            ]
    table = pd.concat(tables, ignore_index=True)
    _refuse_empty(table, labels)
    return table


def _rows(
    train_domain: str, fold: int, size: float, role: str, patch_ids: np.ndarray
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "patch_id": patch_ids,
            "train_domain": train_domain,
            "fold": fold,
            "size": size,
            "role": role,
        }
    )


def _refuse_empty(table: pd.DataFrame, labels: pd.DataFrame) -> None:
    """Refuse a unit whose training or test set lacks a class, or whose validation set is empty."""
    label = table["patch_id"].map(labels.set_index("patch_id")["label"]).rename("label")
    counts = table.groupby([*UNIT, "role", label]).size().unstack(["role", "label"], fill_value=0)
    wanted = pd.MultiIndex.from_product([ROLES, (0, 1)])
    counts = counts.reindex(columns=wanted, fill_value=0)
    for role in ROLES:
        n = counts[role]
        empty = n[n.max(axis=1) == 0 if role == "val" else n.min(axis=1) == 0]
        for (domain, fold, size), row in empty.iterrows():
            missing = "positive" if row[1] == 0 else "negative"
            raise SplitError(
                f"size {shortest(size)} leaves no {missing} patch in the {role} set (fold {fold},"
                f" training on {domain!r}: {row[1]} positive, {row[0]} negative; {len(empty)} such"
                " sets in all): raise the smallest of splits.sizes, or give the study more data"
            )


def units(table: pd.DataFrame) -> list[Unit]:
    """Every training that a table of splits asks for, sorted."""
    keys = table[UNIT].drop_duplicates()
    return sorted(Unit(str(d), int(f), float(s)) for d, f, s in keys.itertuples(index=False))


def select(table: pd.DataFrame, unit: Unit) -> dict[str, np.ndarray]:
    """Patch ids (int64, sorted) of one unit by role."""
    rows = table[(table[UNIT] == [unit.train_domain, unit.fold, unit.size]).all(axis=1)]
    return {
        role: np.sort(rows.loc[rows["role"] == role, "patch_id"].to_numpy(dtype=np.int64))
        for role in ROLES
    }


def predictions(
    labels: pd.DataFrame, unit: Unit, patch_ids: np.ndarray, scores: np.ndarray
) -> pd.DataFrame:
    """The table of predictions of one unit, the same for every procedure.

    labels: indexed by patch_id; patch_ids (n,) int64; scores (n,), probability of class 1. Returns
    ``patch_id, slide_id, domain, label, score, fold, size, train_domain``. Raises ValueError,
    naming the patch, where a score isn't finite.
    """
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise ValueError(
            f"{unit.name}: {len(bad)} scores aren't finite, the first of patch {patch_ids[bad[0]]};"
            " look for a diverged training, or embed again"
        )
    table = labels.loc[patch_ids, ["slide_id", "domain", "label"]].reset_index()
    return table.assign(
        score=scores, fold=unit.fold, size=unit.size, train_domain=unit.train_domain
    )


def load(run: store.Run) -> pd.DataFrame:
    """The table of splits of a finished run, as `make` returns it."""
    return store.read_parquet(run.path("splits.parquet"))
