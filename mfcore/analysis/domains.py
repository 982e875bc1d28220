"""Across domains (Fig. 2 and Tab. 2 of Ganz et al. 2024): by domain trained on and tested on."""

import textwrap

import numpy as np
import pandas as pd
import seaborn as sns

from mfcore.analysis.exhibit import (
    CHANCE,
    WIDTH_INCH,
    Exhibit,
    cells,
    finished,
    folds,
    in_panels,
    in_style,
    listed,
    named,
    of_what,
    rounded,
)
from mfcore.analysis.scores import (
    human,
    in_order,
    mean_sd,
    published as published_table,
    rater_lines,
)
from mfcore.measures.resampling import by_fold
from mfcore.measures.statistics import Folds, mean_of, paired_test
from mfcore.study.config import Settings
from mfcore.study.predictions import ALL, refuse_lost
from mfcore.study.study import Study

SECTION = "Across domains"
IN_DOMAIN, OUT_OF_DOMAIN = "in domain", "out of domain"
SCALE = (0.4, 1.0)  # of the shades, the same in every study
SHADES = sns.light_palette("#4a98c9", as_cmap=True)  # black is to be read on the darkest
COLUMNS = {IN_DOMAIN: "in_domain", OUT_OF_DOMAIN: "out_of_domain"}  # of Tab. 2
APART = ["arm", "comparison", "auroc_drop", "low", "high", "n", "n_folds", "over", "why"]
TUMOUR, SCANNER, BOTH = "tumour alone", "scanner alone", "tumour and scanner"
WHY_NOT = {
    TUMOUR: "no two tumours share a scanner, so that another tumour is always another scanner too",
    SCANNER: (
        "no tumour was scanned both by a scanner that another tumour's training has and by "
        "one that it hasn't, so that scanners can't be compared within a tumour"
    ),
    BOTH: "every training has every scanner",
}


def crossed(scores: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """The scores of fits on single domains, with ``where``: tested IN_DOMAIN or OUT_OF_DOMAIN."""
    single = in_order(scores[scores["train_domain"] != ALL], settings)
    is_own = single["domain"] == single["train_domain"]
    return single.assign(where=np.where(is_own, IN_DOMAIN, OUT_OF_DOMAIN))


def _nothing_crossed(study: Study, name: str, title: str, table: pd.DataFrame) -> Exhibit:
    caption = f"No arm was trained on single domains ({of_what(study.settings)})."
    return Exhibit(name, title, caption, table, None, SECTION)


# ---- Fig. 2 and Tab. 2 ----


def domain_matrix(scores: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Mean and sample SD of AUROC, a row an arm, training domain and test domain (Fig. 2).

    Columns: ``arm, kind, train_domain, domain, n_folds, mean, sd``.
    """
    table = mean_sd(crossed(scores, settings), ["arm", "kind", "train_domain", "domain"], ["auroc"])
    return table.rename(columns={"auroc": "mean", "auroc_sd": "sd"})


def means_table(scores: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """AUROC in domain and out of domain, a row an arm (Tab. 2).

    In domain: on the test share of the training domain. Out of domain: on each other domain by
    itself. Each fold's value is the mean over domains (pairs of domains); ``in_domain`` and
    ``out_of_domain`` are the means over folds, ``_sd`` the sample SD over folds, ``_sd_cells`` that
    over all folds and domains (pairs). The paper doesn't say which SD it prints; its size speaks
    for the second.
    """
    single, arm = crossed(scores, settings), ["arm", "kind"]
    table = single[arm].drop_duplicates()
    for where, name in COLUMNS.items():
        part = single[single["where"] == where]
        by_fold = part.groupby([*arm, "fold"])["auroc"].mean().rename(name).reset_index()
        over_folds = mean_sd(by_fold, arm, [name]).drop(columns="n_folds")
        over_cells = part.groupby(arm)["auroc"].std().rename(f"{name}_sd_cells")
        table = table.merge(over_folds, "left", arm).join(over_cells, on=arm)
    return table.join(single.groupby(arm)["fold"].nunique().rename("n_folds"), on=arm)


def published(settings: Settings) -> pd.DataFrame:
    """Tab. 2 as printed: ``arm``, and ``in_domain, out_of_domain`` with ``_sd``.

    No row where the study's classes are others than theirs.
    """
    table = published_table("ganz_2024.csv").drop(columns="where")
    return table if "ganz_2024.csv" in settings.source.published else table.iloc[:0]


@in_style
def means(study: Study) -> Exhibit:
    """Tab. 2: every arm in domain and out of domain (`means_table`), and the published means."""
    settings, name, title = study.settings, "06_means", "Tab. 2. Means"
    table, beside = means_table(study.scores, settings), published(settings)
    if not len(table):
        return _nothing_crossed(study, name, title, table)
    both = pd.concat(
        [named(table, settings).assign(of="this study"), beside.assign(name=beside["arm"])]
    )
    both["of"] = both["of"].fillna("published (real images of MIDOG 2022)")
    height = 1.2 + 0.2 * max(len(table), len(beside))
    grid = sns.FacetGrid(both, col="of", sharey=False, height=height, aspect=4.7 / height)
    for (label, column), form in zip(COLUMNS.items(), ("o", "D"), strict=True):
        style = {"fmt": form, "color": "C0", "mfc": "C0" if form == "o" else "white", "capsize": 2}
        for of, part in both.groupby("of"):
            sd = part[f"{column}_sd"].fillna(0)
            grid.axes_dict[of].errorbar(part[column], part["name"], xerr=sd, label=label, **style)
    for axis in grid.axes.flat:
        axis.invert_yaxis()
    grid.refline(x=0.5, **CHANCE)
    grid.set(xlim=(None, 1))
    in_panels(grid, "AUROC, mean ± SD", "")
    figure = finished(study, grid.figure, n_columns=3)
    best = table.loc[table["out_of_domain"].idxmax()]
    caption = (
        "AUROC of every arm in domain and out of domain, means over domains "
        f"({of_what(settings)}){_on_others(beside)}. Points and bars: mean and sample SD of "
        f"{folds(table)}; _sd_cells in the table: the SD over all folds and domains, which the "
        "published ± most likely is. "
        f"Out of domain {best['arm']} is highest: {best['out_of_domain']:.2f}, against "
        f"{best['in_domain']:.2f} in domain."
    )
    readable = rounded(named(table, settings).drop(columns="name"))
    return Exhibit(name, title, caption, table, figure, SECTION, readable)


def _on_others(beside: pd.DataFrame) -> str:
    return "; right: published values of other patches, not to be compared" * bool(len(beside))


@in_style
def cross_domain(study: Study) -> Exhibit:
    """Fig. 2: AUROC by training and test domain, a panel an arm, all on one scale."""
    name, title, settings = "06_cross_domain", "Fig. 2. Cross-domain", study.settings
    matrix = domain_matrix(study.scores, settings)
    if not len(matrix):
        return _nothing_crossed(study, name, title, matrix)
    shown = named(matrix, settings)
    domains = ["train_domain", "domain"]
    shown[domains] = shown[domains].map(lambda name: textwrap.fill(name, 20))
    n_arms = matrix["arm"].nunique()
    n_across = n_arms if n_arms < 3 else min(3, 2, key=lambda n: -n_arms % n)  # fewest gaps
    grid = sns.FacetGrid(
        shown, col="name", col_wrap=n_across, height=1.7 + 0.4 * matrix["domain"].nunique()
    )
    grid.figure.set_figwidth(1.4 * WIDTH_INCH)
    grid.map_dataframe(_heatmap)
    in_panels(grid, "tested on", "trained on")
    shades = grid.axes.flat[0].collections[0]
    figure = finished(study, grid.figure)
    scale = {"extend": "min", "shrink": 0.5, "label": "AUROC, mean over folds"}
    figure.colorbar(shades, ax=list(grid.axes.flat), **scale)
    out = matrix[matrix["domain"] != matrix["train_domain"]]
    best = out.loc[out["mean"].idxmax()]
    caption = (
        "AUROC of every arm by the domain trained on (rows) and the domain tested on (columns), on "
        f"patches that training did not see ({of_what(settings)}). Mean ± SD of {folds(matrix)}. "
        f"Out of domain {best['arm']} is highest from {best['train_domain']} to {best['domain']}: "
        f"{best['mean']:.2f}."
    )
    return Exhibit(name, title, caption, matrix, figure, SECTION)


def _heatmap(data: pd.DataFrame, color: object) -> None:
    """One arm's matrix on the current axes: mean and SD in each cell."""
    data = data.assign(text=cells(data.rename(columns={"sd": "mean_sd"}), "mean"))
    mean, text = (
        data.pivot(index="train_domain", columns="domain", values=name) for name in ("mean", "text")
    )
    sns.heatmap(
        mean, annot=text.replace("\u00a0±\u00a0", "\n±", regex=True), fmt="", cmap=SHADES,
        vmin=SCALE[0], vmax=SCALE[1], cbar=False, linewidths=1,
        annot_kws={"color": "black", "fontsize": 7},
    )  # fmt: skip


# ---- by test domain ----


def by_test_domain_folds(scores: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Balanced accuracy by fold and test domain; out of domain: mean over training domains."""
    by = ["arm", "kind", "domain", "where", "fold"]
    return (
        crossed(scores, settings).groupby(by, sort=False)["balanced_accuracy"].mean().reset_index()
    )


def by_test_domain_table(scores: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Mean and SD over folds: ``arm, kind, domain, where, n_folds, mean, sd``."""
    fits = by_test_domain_folds(scores, settings).rename(columns={"balanced_accuracy": "mean"})
    table = mean_sd(fits, ["arm", "kind", "domain", "where"], ["mean"])
    return table.rename(columns={"mean_sd": "sd"})


@in_style
def by_test_domain(study: Study) -> Exhibit:
    """Balanced accuracy by test domain, in domain and out of domain, and each domain's raters."""
    name, title, settings = "06_by_test_domain", "By test domain", study.settings
    table = by_test_domain_table(study.scores, settings)
    if not len(table):
        return _nothing_crossed(study, name, title, table)
    fits = named(by_test_domain_folds(study.scores, settings), settings)
    grid = sns.catplot(
        fits, kind="point", x="balanced_accuracy", y="name", hue="where", col="domain", col_wrap=2,
        hue_order=[IN_DOMAIN, OUT_OF_DOMAIN], col_order=sorted(fits["domain"].unique()),
        palette=["C0", "C1"], markers=["o", "D"], errorbar="sd",
        linestyle="none", dodge=0.4, markersize=4.5,
        height=0.9 + 0.25 * fits["name"].nunique(), aspect=1,
    )  # fmt: skip
    grid.figure.set_figwidth(1.2 * WIDTH_INCH)
    for domain, axis in grid.axes_dict.items():
        rater_lines(axis.axvline, axis.axvspan, human(study), domain)
        axis.axvline(0.5, **CHANCE)
    in_panels(grid, "balanced accuracy, mean ± SD", "")
    figure = finished(study, grid.figure)
    caption = (
        "Balanced accuracy of every arm on each domain, trained on that domain or on another (mean "
        f"over the other training domains; {of_what(settings)}). Points and bars: mean and sample "
        f"SD of {folds(table)}; lines: the raters, where votes are known (shaded: 95 % interval)."
    )
    return Exhibit(name, title, caption, table, figure, SECTION)


# ---- tumour against scanner ----


def apart_table(
    predictions: pd.DataFrame, labels: pd.DataFrame, settings: Settings
) -> pd.DataFrame:
    """How much AUROC another tumour and another scanner cost: three rows an arm, columns APART.

    A domain stands for its tumour. The cost of training elsewhere is the AUROC of training on the
    tested tumour less that of training elsewhere, in each fold on the same patches: those that
    training at home leaves for testing.

    ``comparison``: "tumour alone" is that cost where the training had the tested scanner; "tumour
    and scanner" where it hadn't; "scanner alone" is the second less the first on one tested tumour
    from one training, so that only the scanner changes. ``auroc_drop``: mean over ``n`` pairs of
    training and tested tumour and scanner (tested tumour, for "scanner alone"), then over
    ``n_folds``; ``low`` to ``high``: 95 % interval (`statistics.paired_test`); ``over``: "folds",
    or the "31 cases" that were drawn where all folds leave the same patches for testing. Positive
    is a loss. NaN where the data have no such pair, which ``why`` says; one row without an arm
    where none can be. Tumours that share a scanner may share a laboratory and its stains too.

    predictions, labels: as `Study` has them. Raises StoreError where labels lack a patch.
    """
    part = predictions[predictions["train_domain"] != ALL]
    refuse_lost(part, labels)
    scanners = labels[labels["scanner"] != ""].groupby("domain")["scanner"].agg(frozenset).to_dict()
    unknown_in = {*labels.loc[labels["scanner"] == "", "domain"]}  # domains with unknown scanners
    if why := _nothing(part, scanners):
        row = _row("", "tumour against scanner", [], 0, 0, why)
        return pd.DataFrame([row], columns=APART)
    part = part.merge(labels[["patch_id", "scanner"]], on="patch_id", validate="many_to_one")
    tested, is_home = ["arm", "fold", "patch_id"], part["train_domain"] == part["domain"]
    # what home leaves for testing
    part = part.merge(part.loc[is_home, tested].drop_duplicates(), on=tested)
    part, rows = part[part["scanner"] != ""], []
    home = part[part["train_domain"] == part["domain"]]
    for arm in in_order(part[["arm"]].drop_duplicates(), settings)["arm"]:
        at_home = home[home["arm"] == arm].groupby(["fold", "domain"])
        n_train, n_test = at_home["n_train"].first().mean(), at_home.size().mean()
        costs = _costs(part[part["arm"] == arm], scanners, unknown_in, settings.splits.seed)
        note = f"; not all scanners of {listed(sorted(unknown_in))} are known" if unknown_in else ""
        for name, cost in costs.items():
            rows.append(_row(arm, name, cost, n_train, n_test, WHY_NOT[name] + note))
    return pd.DataFrame(rows, columns=APART)


def _nothing(part: pd.DataFrame, scanners: dict[str, frozenset]) -> str:
    """Why nothing at all can be said; empty where something may be."""
    if part.empty:
        return "no arm was trained on single domains (splits.by_domain, and by_domain of networks)"
    known = frozenset().union(*scanners.values())
    if len(known) > 1:
        return ""
    return "all slides are of one scanner" if known else "the labels name no scanner"


def _costs(
    part: pd.DataFrame, scanners: dict[str, frozenset], unknown_in: set[str], seed: int
) -> dict[str, list[Folds]]:
    """What training elsewhere costs on the patches of home, by comparison, pair and fold.

    unknown_in: the domains of which not all scanners are known: none of them lacks a scanner.
    """
    measured = {
        cell: by_fold(group, "auroc", seed, f"{cell[1]}, {cell[2]}").defined()
        for cell, group in part.groupby(["train_domain", "domain", "scanner"])
    }
    ways: dict[tuple[str, str], dict[bool, list[Folds]]] = {}  # by whether training had the scanner
    for (train_domain, domain, scanner), away in measured.items():
        cost = measured[domain, domain, scanner] - away
        was_trained_on = scanner in scanners.get(train_domain, ())
        if (
            train_domain != domain
            and len(cost)
            and (was_trained_on or train_domain not in unknown_in)
        ):
            way = ways.setdefault((train_domain, domain), {True: [], False: []})
            way[was_trained_on].append(cost)
    alone = [
        mean_of(way[False]) - mean_of(way[True])
        for way in ways.values()
        if way[False] and way[True]
    ]
    return {
        TUMOUR: [cost for way in ways.values() for cost in way[True]],
        SCANNER: [cost for cost in alone if len(cost)],
        BOTH: [cost for way in ways.values() for cost in way[False]],
    }


def _row(
    arm: str, comparison: str, costs: list[Folds], n_train: float, n_test: float, why: str
) -> dict:
    """A row from what each pair costs in each fold; without a pair, the reason ``why``."""
    row = {"arm": arm, "comparison": comparison, "n": len(costs), "n_folds": 0, "over": ""}
    if not costs:
        return row | {"why": why}
    test = paired_test(mean_of(costs), 0.0, n_train, n_test)
    one, over = test.interval, test.drawn or "folds"
    row |= {"auroc_drop": one.estimate, "low": one.low, "high": one.high, "why": ""}
    return row | {"n_folds": one.n, "over": over}


def tumour_against_scanner(study: Study) -> Exhibit:
    """What another tumour and another scanner cost (`apart_table`)."""
    table = apart_table(study.predictions, study.labels, study.settings)
    over = listed(sorted(set(table["over"]) - {""}) or ["folds"])
    caption = (
        "AUROC lost by training elsewhere, against training on the tested tumour itself, on the "
        f"same patches ({of_what(study.settings)}). Means over n pairs of domains, with 95 % "
        f"intervals over {over}; where there is none, why says what the data lack."
    )
    name, title = "06_tumour_against_scanner", "Tumour or scanner"
    return Exhibit(name, title, caption, table, None, SECTION, rounded(table))
