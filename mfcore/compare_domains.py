"""What single-domain training says of domain shift: whether it costs as much there as back, and tumour against scanner."""

import math
from itertools import combinations

import numpy as np
import pandas as pd

from mfcore import compare, metrics
from mfcore.config import Study
from mfcore.statistics import paired_test

ASYMMETRY = ["arm", "first", "second", "there", "back", "difference", "lost_there", "lost_back"]
APART = ["arm", "comparison", "same_tumour", "same_scanner", "auroc_drop", "low", "high", "n", "n_folds", "why"]
TUMOUR, SCANNER, BOTH = "tumour alone", "scanner alone", "tumour and scanner"
CELL = ["arm", "fold", "train_domain", "domain", "scanner"]
WHY_NOT = {
    TUMOUR: "no two tumours share a scanner, so that another tumour is always another scanner too",
    SCANNER: "no tumour was scanned both by a scanner that another tumour's training has and by one that it hasn't, so that "
    "scanners can't be compared within a tumour",
    BOTH: "every training has every scanner",
}


def asymmetry(matrix: pd.DataFrame) -> pd.DataFrame:
    """Each pair of domains both ways, a row an arm and pair: trained on ``first`` and tested on ``second``, and back.

    ``there`` and ``back`` are means over folds, ``difference`` the first less the second, NaN where a way wasn't tested. One
    domain may be harder than the other for any training: ``lost_there`` and ``lost_back`` are what is lost against training
    on the tested domain itself, and free of that.

    matrix: as `compare.domain_matrix`.
    """
    rows = []
    for arm, part in matrix.groupby("arm", sort=False):
        mean = part.set_index(["train_domain", "domain"])["mean"].to_dict()
        for first, second in combinations(sorted({*part["train_domain"], *part["domain"]}), 2):
            there, back, home_first, home_second = (
                mean.get(way, math.nan) for way in ((first, second), (second, first), (first, first), (second, second))
            )
            rows.append((arm, first, second, there, back, there - back, home_second - there, home_first - back))
    return pd.DataFrame(rows, columns=ASYMMETRY)


def tumour_against_scanner(predictions: pd.DataFrame, labels: pd.DataFrame, study: Study) -> pd.DataFrame:
    """How much AUROC another tumour costs, and how much another scanner, from training on single domains: three rows an arm.

    A domain stands for its tumour. What training elsewhere costs on a tumour and scanner is the AUROC of training on that
    tumour less its own, in each fold on the very same patches: those that training at home leaves for testing.

    ``comparison``: "tumour alone" is that cost where the training had the tested scanner; "tumour and scanner" where it
    hadn't; "scanner alone" is the second less the first on one tested tumour from one training, so that only the scanner
    changes. ``auroc_drop``: mean over ``n`` pairs of training and tested tumour and scanner (tested tumour, for "scanner
    alone"), then over ``n_folds``; ``low`` to ``high``: corrected 95 % interval over folds (`statistics.paired_test`).
    Positive is a loss. NaN where the data have no such pair, which ``why`` says; one row without an arm where none can be.
    Scanners are told apart by their names; tumours that share one may share a laboratory and its stains too.

    predictions: as `compare.collect`. labels: the study's stored label table. Raises StoreError where it lacks a patch.
    """
    part = predictions[predictions["train_domain"] != compare.ALL]
    compare.refuse_lost(part, labels)
    scanners = labels[labels["scanner"] != ""].groupby("domain")["scanner"].agg(frozenset).to_dict()
    if why := _nothing(part, scanners):
        return pd.DataFrame([_row("", "tumour against scanner", why)], columns=APART)
    part = _as_at_home(part).merge(labels[["patch_id", "scanner"]], on="patch_id", validate="many_to_one")
    part = part[part["scanner"] != ""]
    cells = _cells(part, scanners)
    home = part[part["train_domain"] == part["domain"]]
    rows = []
    for arm in dict.fromkeys(compare.in_order(part[["arm"]].drop_duplicates(), study)["arm"]):
        mine, at_home = cells[cells["arm"] == arm], home[home["arm"] == arm].groupby(["fold", "domain"])
        n_train, n_test = at_home["n_train"].first().mean(), at_home.size().mean()
        seen = mine["same_scanner"].to_numpy(dtype=bool)
        way = ["train_domain", "domain"]
        by_way = [mine[of].groupby(["fold", *way])["drop"].mean() for of in (~seen, seen)]
        costs = {
            TUMOUR: mine[seen].set_index(["fold", *way, "scanner"])["drop"],
            SCANNER: by_way[0] - by_way[1],  # NaN but where both are
            BOTH: mine[~seen].set_index(["fold", *way, "scanner"])["drop"],
        }
        rows += [_measured(arm, comparison, cost.dropna(), n_train, n_test) for comparison, cost in costs.items()]
    return pd.DataFrame(rows, columns=APART)


def _nothing(part: pd.DataFrame, scanners: dict[str, frozenset]) -> str:
    """Why nothing at all can be said; empty where something may be."""
    if part.empty:
        return "no arm was trained on single domains (splits.by_domain, and by_domain of networks)"
    if not scanners:
        return "the labels name no scanner"
    if len(frozenset().union(*scanners.values())) == 1:
        return "all slides are of one scanner"
    return ""


def _as_at_home(part: pd.DataFrame) -> pd.DataFrame:
    """The rows, of any training, whose patch is tested in that fold by the arm's training on the patch's own domain."""
    kept = []
    for _, group in part.groupby(["arm", "fold"], sort=False):
        home = group.loc[group["train_domain"] == group["domain"], "patch_id"]
        kept.append(group[group["patch_id"].isin(home)])
    return pd.concat(kept, ignore_index=True)


def _cells(part: pd.DataFrame, scanners: dict[str, frozenset]) -> pd.DataFrame:
    """CELL, ``drop`` and ``same_scanner`` of every training elsewhere, on the patches of `_as_at_home`."""
    rows = [(*cell, metrics.auroc(group["label"].to_numpy(), group["score"].to_numpy())) for cell, group in part.groupby(CELL)]
    cells = pd.DataFrame(rows, columns=[*CELL, "auroc"])
    tested = ["arm", "fold", "domain", "scanner"]
    at_home = cells.loc[cells["train_domain"] == cells["domain"], [*tested, "auroc"]].rename(columns={"auroc": "home"})
    cells = cells[cells["train_domain"] != cells["domain"]].merge(at_home, on=tested, how="left", validate="many_to_one")
    same = [
        scanner in scanners.get(domain, ()) for domain, scanner in zip(cells["train_domain"], cells["scanner"], strict=True)
    ]
    return cells.assign(drop=cells["home"] - cells["auroc"], same_scanner=np.array(same, dtype=bool))


def _measured(arm: str, comparison: str, cost: pd.Series, n_train: float, n_test: float) -> dict[str, object]:
    """A row from what each pair costs in each fold, by fold first."""
    if cost.empty:
        return _row(arm, comparison, WHY_NOT[comparison])
    folds = cost.groupby(level="fold").mean()
    found = paired_test(folds, np.zeros(len(folds)), n_train, n_test).interval
    n = len(cost.droplevel("fold").index.unique())
    return _row(arm, comparison, "") | {
        "auroc_drop": found.estimate, "low": found.low, "high": found.high, "n": n, "n_folds": found.n
    }  # fmt: skip


def _row(arm: str, comparison: str, why: str) -> dict[str, object]:
    changed = {"same_tumour": comparison == SCANNER, "same_scanner": comparison == TUMOUR}
    numbers = dict.fromkeys(("auroc_drop", "low", "high"), math.nan)
    return {"arm": arm, "comparison": comparison, **changed, **numbers, "n": 0, "n_folds": 0, "why": why}
