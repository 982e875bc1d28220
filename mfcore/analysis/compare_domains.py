"""What single-domain training says of domain shift: whether it costs as much there as back, and tumour against scanner."""

import math
from itertools import combinations

import pandas as pd

from mfcore.analysis import compare
from mfcore.measures.resampling import by_fold
from mfcore.measures.statistics import Folds, mean_of, paired_test
from mfcore.study.config import Settings

ASYMMETRY = ["arm", "first", "second", "there", "back", "difference", "lost_there", "lost_back"]
APART = ["arm", "comparison", "same_tumour", "same_scanner", "auroc_drop", "low", "high", "n", "n_folds", "over", "why"]
TUMOUR, SCANNER, BOTH = "tumour alone", "scanner alone", "tumour and scanner"
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


def tumour_against_scanner(predictions: pd.DataFrame, labels: pd.DataFrame, study: Settings) -> pd.DataFrame:
    """How much AUROC another tumour costs, and how much another scanner, from training on single domains: three rows an arm.

    A domain stands for its tumour. What training elsewhere costs on a tumour and scanner is the AUROC of training on that
    tumour less its own, in each fold on the very same patches: those that training at home leaves for testing.

    ``comparison``: "tumour alone" is that cost where the training had the tested scanner; "tumour and scanner" where it
    hadn't; "scanner alone" is the second less the first on one tested tumour from one training, so that only the scanner
    changes. ``auroc_drop``: mean over ``n`` pairs of training and tested tumour and scanner (tested tumour, for "scanner
    alone"), then over ``n_folds``; ``low`` to ``high``: 95 % interval (`statistics.paired_test`); ``over``: "folds" that
    each have test patches of their own, or the "31 cases" that were drawn where all folds leave the same patches for testing.
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
    home = part[part["train_domain"] == part["domain"]]
    rows = []
    for arm in dict.fromkeys(compare.in_order(part[["arm"]].drop_duplicates(), study)["arm"]):
        at_home = home[home["arm"] == arm].groupby(["fold", "domain"])
        n_train, n_test = at_home["n_train"].first().mean(), at_home.size().mean()
        costs = _costs(part[part["arm"] == arm], scanners, study)
        rows += [_measured(arm, comparison, cost, n_train, n_test) for comparison, cost in costs.items()]
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


def _costs(part: pd.DataFrame, scanners: dict[str, frozenset], study: Settings) -> dict[str, list[Folds]]:
    """What training elsewhere costs on the patches of `_as_at_home`, by comparison: of each pair by fold."""
    cells = {
        cell: by_fold(group, "auroc", study.splits.seed, f"{cell[1]}, {cell[2]}").defined()
        for cell, group in part.groupby(["train_domain", "domain", "scanner"])
    }
    seen: dict[tuple[str, str], dict[bool, list[Folds]]] = {}  # of each way, by whether training had the scanner
    for (train_domain, domain, scanner), away in cells.items():
        cost = cells[domain, domain, scanner] - away
        if train_domain != domain and len(cost):
            way = seen.setdefault((train_domain, domain), {True: [], False: []})
            way[scanner in scanners.get(train_domain, ())].append(cost)
    alone = [mean_of(way[False]) - mean_of(way[True]) for way in seen.values() if way[False] and way[True]]
    return {
        TUMOUR: [cost for way in seen.values() for cost in way[True]],
        SCANNER: [cost for cost in alone if len(cost)],
        BOTH: [cost for way in seen.values() for cost in way[False]],
    }


def _measured(arm: str, comparison: str, costs: list[Folds], n_train: float, n_test: float) -> dict[str, object]:
    """A row from what each pair costs in each fold, by fold first."""
    if not costs:
        return _row(arm, comparison, WHY_NOT[comparison])
    test = paired_test(mean_of(costs), 0.0, n_train, n_test)
    found = test.interval
    numbers = {"auroc_drop": found.estimate, "low": found.low, "high": found.high, "n": len(costs), "n_folds": found.n}
    return _row(arm, comparison, "") | numbers | {"over": test.drawn or "folds"}


def _row(arm: str, comparison: str, why: str) -> dict[str, object]:
    changed = {"same_tumour": comparison == SCANNER, "same_scanner": comparison == TUMOUR}
    numbers = dict.fromkeys(("auroc_drop", "low", "high"), math.nan)
    return {"arm": arm, "comparison": comparison, **changed, **numbers, "n": 0, "n_folds": 0, "over": "", "why": why}
