"""From stored predictions to tables: every metric is computed again from what each arm predicted, never read from a log."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore.data.splits import percent
from mfcore.measures import binary
from mfcore.measures.resampling import bootstrap
from mfcore.measures.statistics import Interval, spread
from mfcore.study import pretrained
from mfcore.study.config import Settings
from mfcore.study.predictions import (
    ALL as ALL,
    END_TO_END as END_TO_END,
    LORA as LORA,
    PROBE as PROBE,
    Collected as Collected,
    _by_its_card as _by_its_card,
    collect as collect,
    current_runs as current_runs,
    find_embeddings as find_embeddings,
    fit_history as fit_history,
    history as history,
    kind_of as kind_of,
    load_arm as load_arm,
    read_predictions as read_predictions,
    refuse_lost as refuse_lost,
    scores as scores,
    stored_labels as stored_labels,
    stored_splits as stored_splits,
)

HOME_MADE = "pretrained here"
IN_DOMAIN, OUT_OF_DOMAIN = "in domain", "out of domain"
PUBLISHED = Path(__file__).resolve().parents[2] / "data"


def shown_kind(study: Settings, arm: str, kind: str) -> str:
    """An arm's kind as figures, tables and captions show it: of an encoder that the study pretrained, it says so too."""
    return f"{kind}, {HOME_MADE}" if pretrained.is_of(study, arm) else kind


def shown_name(study: Settings, arm: str, kind: str) -> str:
    """An arm's name and, in brackets, its `shown_kind`."""
    return f"{arm} ({shown_kind(study, arm, kind)})"


def marked(table: pd.DataFrame, study: Settings) -> pd.DataFrame:
    """A table with columns ``arm, kind`` for the eye: each kind as `shown_kind` has it."""
    return table.assign(kind=[shown_kind(study, arm, kind) for arm, kind in zip(table["arm"], table["kind"], strict=True)])


def full_size(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of predictions or scores that belong to fits on all domains, at the largest size there is."""
    part = table[table["train_domain"] == ALL]
    return part[part["size"] == part["size"].max()]


def in_order(table: pd.DataFrame, study: Settings, *then: str) -> pd.DataFrame:
    """A table's rows by ``arm``, networks first, as the study names them, then by the columns ``then``; a stable sort."""
    place = {name: i for i, name in enumerate([*(n.name for n in study.networks), *study.encoders])}
    key = {"key": lambda column: column.map(place) if column.name == "arm" else column}
    return table.sort_values(["arm", *then], **key, kind="stable", ignore_index=True) if len(table) else table


def scaling_table(table: pd.DataFrame, study: Settings) -> pd.DataFrame:
    """Mean and sample standard deviation over folds, a row an arm and size (Fig. 1): ``auroc``, ``auroc_sd``, and so on.

    table: as `scores` returns it. ``n_train`` is the mean number of training patches, ``n_folds`` how many folds there are.
    """
    rows = []
    for (arm, kind, size), group in table[table["train_domain"] == ALL].groupby(["arm", "kind", "size"], sort=False):
        row = {"arm": arm, "kind": kind, "size": size, "n_train": round(group["n_train"].mean()), "n_folds": len(group)}
        for name in binary.METRICS:
            found = spread(group[name])
            row |= {name: found.mean, f"{name}_sd": found.sd}
        rows.append(row)
    return in_order(pd.DataFrame(rows), study, "size")


def domain_matrix(table: pd.DataFrame, study: Settings, metric: str = "auroc") -> pd.DataFrame:
    """Mean over folds of one metric, a row an arm, training domain and test domain (Fig. 2), with its sample SD."""
    crossed = table[table["train_domain"] != ALL]
    grouped = crossed.groupby(["arm", "kind", "train_domain", "domain"], sort=False)[metric]
    rows = grouped.agg([("mean", lambda v: spread(v).mean), ("sd", lambda v: spread(v).sd), ("n_folds", "count")]).reset_index()
    return in_order(rows, study)


def cross_domain_table(table: pd.DataFrame, study: Settings, metric: str = "auroc") -> pd.DataFrame:
    """In-domain and out-of-domain performance, a row an arm (Tab. 2).

    In domain: on the test share of the training domain. Out of domain: on each other domain by itself. Each fold's value
    is the mean over domains (pairs of domains); ``in_domain`` and ``out_of_domain`` are the means over folds, ``_sd`` the
    sample SD over folds, ``_sd_cells`` that over all folds and domains (pairs). The paper doesn't say which SD it prints;
    its size speaks for the second.
    """
    crossed = table[table["train_domain"] != ALL]
    rows = []
    for (arm, kind), group in crossed.groupby(["arm", "kind"], sort=False):
        row: dict = {"arm": arm, "kind": kind}
        own = group["domain"] == group["train_domain"]
        for name, part in (("in_domain", group[own]), ("out_of_domain", group[~own])):
            over_folds, over_cells = spread(part.groupby("fold")[metric].mean()), spread(part[metric])
            row |= {name: over_folds.mean, f"{name}_sd": over_folds.sd, f"{name}_sd_cells": over_cells.sd}
        rows.append(row | {"n_folds": group["fold"].nunique()})
    return in_order(pd.DataFrame(rows), study)


def by_test_domain(table: pd.DataFrame, study: Settings, metric: str = "balanced_accuracy") -> pd.DataFrame:
    """One metric by the domain tested on, a row an arm, domain and ``where`` ("in domain" or "out of domain").

    Out of domain: the mean over the other training domains in each fold. ``mean`` and sample ``sd`` over folds, ``n_folds``.
    """
    crossed = table[table["train_domain"] != ALL]
    where = np.where(crossed["domain"] == crossed["train_domain"], IN_DOMAIN, OUT_OF_DOMAIN)
    folds = crossed.assign(where=where).groupby(["arm", "kind", "domain", "where", "fold"], sort=False)[metric].mean()
    grouped = folds.groupby(["arm", "kind", "domain", "where"], sort=False)
    rows = grouped.agg([("mean", lambda v: spread(v).mean), ("sd", lambda v: spread(v).sd), ("n_folds", "count")]).reset_index()
    return in_order(rows, study)


def published_table() -> pd.DataFrame:
    """Tab. 2 as Ganz et al. 2024 printed it: ``arm, in_domain, in_domain_sd, out_of_domain, out_of_domain_sd``."""
    table = pd.read_csv(PUBLISHED / "published_ganz_2024.csv")
    return table[table["where"] == "Tab. 2"].drop(columns="where").reset_index(drop=True)


def best_interval(predictions: pd.DataFrame, table: pd.DataFrame, study: Settings) -> Interval:
    """Interval over test slides or cases of the best arm's mean AUROC with all the data, as `compare_models.intervals` has it.

    table: as `scaling_table` returns it, which names the arm.
    """
    full = table[table["size"] == table["size"].max()]
    arm = full.loc[full["auroc"].idxmax(), "arm"]
    mine = predictions[(predictions["arm"] == arm) & (predictions["train_domain"] == ALL)]
    return bootstrap(mine[mine["size"] == full["size"].iloc[0]], "auroc", study.splits.seed, "intervals")


def wide(table: pd.DataFrame, value: str = "auroc") -> pd.DataFrame:
    """`scaling_table` for the eye: arms down, sizes across, "mean ± SD" in the cells."""
    cells = pd.DataFrame(
        {
            "arm": table["arm"],
            "kind": table["kind"],
            "size": [f"{percent(size)} %" for size in table["size"]],
            "cell": [plus_minus(mean, sd) for mean, sd in zip(table[value], table[f"{value}_sd"], strict=True)],
        }
    )
    sizes = [f"{percent(size)} %" for size in sorted(table["size"].unique())]
    table = cells.pivot(index=["arm", "kind"], columns="size", values="cell")[sizes].rename_axis(columns=None).fillna("–")
    return table.loc[list(dict.fromkeys(zip(cells["arm"], cells["kind"], strict=True)))].reset_index()


def unit(table: pd.DataFrame) -> str:
    """What the intervals of a table with a column ``unit`` draw, in the plural: cases where any row says so, else slides."""
    return "cases" if (table["unit"] == "case").any() else "slides"


def counted(n: int, what: str, several: str = "") -> str:
    """ "1 fold", "1,200 folds"; ``several``: of a word whose plural isn't made with an s."""
    return f"{n:,} {what if n == 1 else several or f'{what}s'}"


def folds(table: pd.DataFrame | Mapping, what: str = "fold") -> str:
    """Over how many folds the means of a table (or of one row) with ``n_folds`` are, most of any row: "5 folds"."""
    return counted(int(np.max(table["n_folds"])), what)


def bounds(low: float, high: float, form: str = "+.3f", between: str = " to ") -> str:
    """The interval of a difference of two scores, as "+0.010 to +0.020".

    Empty where there is none, or where it reaches beyond what two scores from 0 to 1 can differ by: it then says nothing.
    """
    return f"{low:{form}}{between}{high:{form}}" if -1 <= low <= high <= 1 else ""


def plus_minus(mean: float, sd: float) -> str:
    """ "0.84 ± 0.02"; without the second where there is no SD, a dash where there is no mean."""
    return "–" if not np.isfinite(mean) else f"{mean:z.2f}" + (f" ± {sd:.2f}" if np.isfinite(sd) else "")
