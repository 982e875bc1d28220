"""Data scaling (Fig. 1 of Ganz et al. 2024): scores by amount of data, raters, ways to split."""

import math
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from mfcore import store
from mfcore.analysis.exhibit import (
    CHANCE,
    MARKERS,
    WIDTH_INCH,
    Exhibit,
    finished,
    folds,
    in_panels,
    in_style,
    listed,
    looks_of,
    named,
    of_what,
    plus_minus,
    rounded,
    share_name,
)
from mfcore.analysis.scores import (
    across_sizes,
    by_size,
    common,
    external_scores,
    human,
    in_order,
    mean_sd,
    once,
    published as published_table,
    rater_lines,
)
from mfcore.data import splits, splits_audit
from mfcore.measures import binary, curves, raters as measured
from mfcore.study.config import SCHEMES, Settings
from mfcore.study.predictions import ALL, END_TO_END, LORA, PROBE, load_arm, scores as scores_of
from mfcore.study.study import Study

SECTION = "Data scaling"
SHOWN = ("auroc", "balanced_accuracy")
DATA_SETS = {"midog22": "MIDOG 2022", "ccmct": "CCMCT"}  # by a study's source
LINES = {"curve": ("-", "fitted curve"), "straight": (":", "as in the last tenfold step")}
# marker, and its place
PUBLISHED_LOOKS = {END_TO_END: ("^", 0.75), PROBE: ("o", 1.0), LORA: ("s", 1.33)}
PUBLISHED_COLUMNS = ["arm", "kind", "data_set", "metric", "value", "sd", "where"]
BASE = "slide"  # the scheme that the others are measured against
LEAKS = {  # what each leak's bars are
    "test_on_train_cases": "are of a case that training sees",
    "test_on_train_slides": "lie on a slide that training sees",
    "test_overlapping_train": "share pixels with a training patch",
}


def scores(study: Study) -> Exhibit:
    """AUROC of every arm at every size; the table has every metric (`scores.scaling_table`)."""
    table, settings = by_size(study), study.settings
    caption = (
        f"AUROC of every arm by the share of the training patches ({of_what(settings)}). "
        f"Mean ± sample SD of {folds(table)}."
    )
    readable = across_sizes(named(table, settings))
    return Exhibit("05_scores", "Scores", caption, table, None, SECTION, readable)


def raters(study: Study) -> Exhibit:
    """How far the raters agree with one another (`mfcore.measures.raters.table`)."""
    table, settings = human(study), study.settings
    if not len(table):
        caption = f"No votes on these annotations are published ({of_what(settings)})."
        return Exhibit("05_raters", "Raters", caption, table, None, "Raters")
    total = table[table["domain"] == ALL].iloc[0]
    one = measured.reference(table)
    caption = (
        "One rater against another, and each rater against the consensus, which counts the rater's "
        f"own vote ({of_what(settings)}); a rater is a position in the list of votes. In brackets: "
        f"95 % intervals (bootstrap of {total['n_units']} {total['unit']}s; {total['n']:,} "
        "annotations)."
    )
    if one:
        caption += f" One rater reaches a balanced accuracy of {one.estimate:.2f} against another."
    return Exhibit("05_raters", "Raters", caption, table, None, "Raters", measured.as_text(table))


# ---- Fig. 1 ----


def published(settings: Settings) -> pd.DataFrame:
    """Published values with all the data, to stand beside a study's: columns PUBLISHED_COLUMNS.

    Of the study's own data set where there are any, else of both that Ganz et al. 2024 used; none
    for a question of one's own. Those of Ammeling et al. 2025 are known second-hand, and ``where``
    says so.
    """
    if not settings.source.published:
        return pd.DataFrame(columns=PUBLISHED_COLUMNS)
    if "amibr_probes.csv" in settings.source.published:
        table = published_table("amibr_probes.csv")
        table = table.assign(data_set="AMi-Br", where="Banerjee et al. 2025", auroc_sd=np.nan)
        parts = [
            table.assign(metric=metric, value=table[metric], sd=table[f"{metric}_sd"])
            for metric in SHOWN
        ]
    else:
        first = published_table("ganz_2024_full_size.csv").rename(columns={"auroc": "value"})
        first = first.rename(columns={"auroc_sd": "sd"}).assign(kind=END_TO_END, metric="auroc")
        first["where"] = "Ganz et al. 2024, " + first["where"]
        later = published_table("ammeling_2025.csv")
        later = later.query("size == 1 and quantity == 'mixed' and metric in @SHOWN")
        later = later.assign(where="Ammeling et al. 2025, second-hand")
        later["data_set"] = later["data_set"].map(DATA_SETS)
        own = DATA_SETS.get(settings.data.source)
        parts = [part[part["data_set"] == own] if own else part for part in (first, later)]
    return pd.concat(parts, ignore_index=True)[PUBLISHED_COLUMNS]


def published_values(study: Study) -> Exhibit:
    """The published values that Fig. 1 shows."""
    table = published(study.settings)
    caption = (
        f"Published scores with all the data, from {_papers(table)}. They were measured on "
        "other patches, so their distance from this study's scores has no meaning."
        if len(table)
        else f"Nothing is published for the question of study `{study.name}`."
    )
    return Exhibit("05_published", "Published values", caption, table, None, SECTION)


def _papers(table: pd.DataFrame) -> str:
    return listed(table["where"].str.extract(r"(.+? et al\. \d+)", expand=False).unique())


@in_style
def figure_1(study: Study) -> Exhibit:
    """AUROC and balanced accuracy against training patches, with raters and published values.

    Values that were published of real images aren't drawn on the axes of a synthetic study.
    """
    table, settings, beside = by_size(study), study.settings, published(study.settings)
    beside = beside.iloc[:0] if settings.synthetic else beside
    sizes = table.groupby("size")["n_train"].mean().round().astype(int)
    mixed = study.scores[study.scores["train_domain"] == ALL]
    mixed = mixed.assign(n_train=mixed["size"].map(sizes))
    mixed = named(in_order(mixed, settings), settings)
    shown = _with_external(study, mixed.melt(["name", "n_train"], SHOWN, "metric", "score"), sizes)
    arms = table[table["size"] == table["size"].max()]
    arms = arms.sort_values("auroc", ascending=False, kind="stable")
    looks, names = looks_of(settings, arms), list(named(arms, settings)["name"])
    grid = sns.catplot(
        shown, kind="point", x="n_train", y="score", col="metric", col_wrap=2, hue="name",
        hue_order=names, errorbar="sd", palette=list(looks["color"]), markers=list(looks["marker"]),
        linestyles=list(looks["linestyle"]), native_scale=True, log_scale=(True, False),
        dodge=0.25 * (len(arms) > 1), capsize=0.05, linewidth=1.4, markersize=4.5,
        err_kws={"linewidth": 1}, height=4, aspect=0.9,
    )  # fmt: skip
    places = {
        name: sizes.max() * 4.0 ** (i + 1) for i, name in enumerate(beside["data_set"].unique())
    }
    ticks = {n: f"{n:,}\n({splits.percent(size)} %)" for size, n in sizes.items()}
    ticks |= {x: name.replace(" ", "\n") for name, x in places.items()}
    for metric, axis in grid.axes_dict.items():
        if metric == "balanced_accuracy":
            rater_lines(axis.axhline, axis.axhspan, human(study))
        axis.axhline(0.5, **CHANCE)
        for kind, part in beside[beside["metric"] == metric].groupby("kind"):
            axis.axvline(2 * sizes.max(), color="0.6", linewidth=0.8)
            (form, shift), x = PUBLISHED_LOOKS[kind], part["data_set"].map(places)
            style = {"color": "0.25", "mfc": "white", "label": f"published: {kind}"}
            axis.plot(x * shift, part["value"], form, **style)
        axis.set_xticks(list(ticks), list(ticks.values()))
        axis.minorticks_off()
        title = binary.TITLES.get(metric, f"{binary.TITLES['auroc']} {metric}")
        axis.set(title=title, xlabel="training patches, n (share)", ylim=(None, 1))
    grid.set_ylabels("mean ± SD over folds")
    best, shaded = _best(study), "; shaded: 95 % interval of the raters" * bool(len(human(study)))
    caption = (
        "AUROC and balanced accuracy on the test patches against the number of training patches "
        f"({of_what(settings)}){_on_others(settings, beside)}. Points and bars: mean and sample SD "
        f"of {folds(table, 'Monte Carlo fold')}{shaded}. With all the "
        f"data {best['arm']} is highest: AUROC {plus_minus(best['auroc'], best['auroc_sd'])}."
    )
    share_name(grid, names, "other arms")
    figure = finished(study, grid.figure)
    return Exhibit("05_data_scaling", "Fig. 1. Data scaling", caption, table, figure, SECTION)


def _with_external(study: Study, shown: pd.DataFrame, sizes: pd.Series) -> pd.DataFrame:
    """What Fig. 1 shows, with AUROC on external sets as further metrics, "on NAME"."""
    table = external_scores(study)
    table = table.assign(n_train=table["size"].map(sizes), metric="on " + table["tested_on"])
    there = named(in_order(table, study.settings), study.settings).rename(
        columns={"auroc": "score"}
    )
    return pd.concat([shown, there[shown.columns]]) if len(there) else shown


def _on_others(settings: Settings, beside: pd.DataFrame) -> str:
    """What Fig. 1's caption says of published values; empty where there are none."""
    if settings.synthetic:
        return "; published values are of real images and stand in a table of their own"
    if beside.empty:
        return ""
    return (
        "; open markers, right of the line: published, with all the data, on other patches "
        f"({_papers(beside)})"
    )


def _best(study: Study) -> pd.Series:
    """`by_size` of the arm with the highest AUROC at the largest size, over folds of all arms."""
    table, means = by_size(study), common(study.scores).groupby("arm")["auroc"].mean()
    return table[(table["size"] == table["size"].max()) & (table["arm"] == means.idxmax())].iloc[0]


# ---- learning curves ----


@in_style
def learning_curves(study: Study) -> Exhibit:
    """AUROC by training patches, each arm's curve drawn on to more (`curves.ahead`)."""
    settings, best = study.settings, _best(study)
    expected = in_order(curves.ahead(study.scores, study.seed), settings, "n_train")
    mixed = study.scores[study.scores["train_domain"] == ALL]
    mixed = mixed.assign(n_train=mixed.groupby("size")["n_train"].transform("mean"))
    mixed = named(in_order(mixed, settings), settings)
    grid = sns.FacetGrid(mixed, col="name", col_wrap=3, height=2.1, aspect=1.15)
    points = {"errorbar": "sd", "err_style": "bars", "marker": "o", "linestyle": ""}
    grid.map_dataframe(sns.lineplot, "n_train", "auroc", label="mean ± SD over folds", **points)
    for (name, how), on in named(expected, settings).groupby(["name", "how"], sort=False):
        axis, (line, of) = grid.axes_dict[name], LINES[how]
        axis.fill_between(on["n_train"], on["low"], on["high"], color="0.86", label="95 % band")
        axis.plot(on["n_train"], on["expected"], line, color="0.25", label=of)
    label = f"{best['arm']}, all the data"
    grid.refline(y=best["auroc"], color="black", linestyle="--", label=label)
    grid.refline(y=0.5, **CHANCE)
    grid.set(xscale="log", ylim=(None, 1))
    in_panels(grid, "training patches, n", "AUROC")
    caption = (
        "AUROC by number of training patches n with each arm's curve a - b n^-c or, dotted, the "
        f"last step drawn on where the data determine no curve ({of_what(settings)}). Points and "
        f"bars: mean and sample SD of {folds(by_size(study))}; bands: 95 % over resampled folds, "
        f"none where all folds are tested on the same patches. Dashed: {best['arm']}, "
        f"{best['auroc']:.2f} with {best['n_train']:,} patches."
    )
    figure = finished(study, grid.figure)
    return Exhibit("05_learning_curves", "Learning curves", caption, expected, figure, SECTION)


def patches_needed(study: Study) -> Exhibit:
    """How many patches would close each arm's gap to the best one (`curves.fit`)."""
    fits, rows = in_order(curves.fit(study.scores, study.seed), study.settings), []
    ends = {"low": "asymptote_low", "high": "asymptote_high"}
    for row in fits.rename(columns=ends).to_dict("records"):
        none, way = row["why_not"], "n_straight" if row["why_not"] else "n_needed"
        shown = {"arm": row["arm"], "kind": row["kind"]}
        shown["AUROC levels off at"] = (
            f"no curve: {none}" if none else _span(row, "asymptote", ".2f")
        )
        shown["per tenfold patches"] = _span(row, "per_tenfold", "+.2f")
        rows.append(shown | {"patches to close the gap": _span(row, way, ",.0f")})
    caption = (
        "What each arm's AUROC comes to with ever more patches, and the patches at which it "
        f"reaches what the best arm has ({of_what(study.settings)}). Curves a - b n^-c through the "
        f"means of {folds(fits)}; where the data determine none, the last step drawn on, which "
        "needs the least. In brackets: 95 % over resampled folds."
    )
    title, readable = "Patches needed", pd.DataFrame(rows)
    return Exhibit("05_patches_needed", title, caption, fits, None, SECTION, readable)


def _span(row: Mapping[str, float], name: str, form: str) -> str:
    """ "0.80 [0.75, 0.84]"; without bounds where they are NaN, a dash without a value."""
    values = [row[f"{name}{end}"] for end in ("", "_low", "_high")]
    if form == ",.0f":  # counts, of which two digits are known
        values = [float(f"{value:.2g}") for value in values]
    value, low, high = (f"{value:{form}}".replace("inf", "∞") for value in values)
    bounds = "" if math.isnan(values[1]) else f" [{low}, {high}]"
    return "–" if math.isnan(values[0]) else f"{value}{bounds}"


# ---- other ways to split ----


@once
def _under_schemes(study: Study) -> pd.DataFrame:
    """Scores of the study's probe under each way to split that has been run, with ``scheme``."""
    encoder, tables = study.settings.inflation.encoder, []
    wanted = (*study.settings.inflation.schemes, study.settings.switches.scheme)
    for scheme in (name for name in SCHEMES if encoder and name in wanted):
        try:
            run = study.under(scheme).runs.get(encoder)
        except store.StoreError:  # no splits of that scheme yet
            continue
        if run is not None:
            fits = scores_of(load_arm(run, encoder, PROBE)).assign(scheme=scheme)
            tables.append(fits[fits["train_domain"] == ALL].sort_values("size", kind="stable"))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def inflation_table(study: Study) -> pd.DataFrame:
    """What the probe of ``inflation.encoder`` scores, a row a way to split and size.

    Columns: ``scheme, size, n_train, n_folds``; each of SHOWN with ``_sd`` over folds; the leaks of
    `splits_audit.LEAKS` (means over folds); ``auroc_inflation, balanced_accuracy_inflation``: the
    mean less that of splitting by slide at the same size, NaN where that has not been run. Schemes
    that have not been run have no row. Raises StoreError where the splits have no audit.
    """
    fits, by = _under_schemes(study), ["scheme", "size"]
    if not len(fits):
        return pd.DataFrame()
    table = mean_sd(fits, by, SHOWN, "n_train")
    leaks = splits_audit.load(study.audit, "schemes.csv")
    table = table.join(leaks.groupby(by)[list(splits_audit.LEAKS)].mean(), on=by)
    for name in SHOWN:
        base = table[table["scheme"] == BASE].set_index("size")[name]
        table[f"{name}_inflation"] = table[name] - table["size"].map(base)
    return table


@in_style
def split_schemes(study: Study) -> Exhibit:
    """One probe under each way to split: what the split leaks, and the AUROC."""
    name, title, table = "05_inflation", "What the split is worth", inflation_table(study)
    of, encoder = of_what(study.settings), study.settings.inflation.encoder
    if not len(table):
        caption = f"No encoder was probed under other ways to split ({of})."
        return Exhibit(name, title, caption, table, None, SECTION)
    shown = table.assign(scheme=table["scheme"].map(splits_audit.scheme_title))
    full = shown[shown["size"] == shown["size"].max()]
    best = full.loc[full["auroc"].idxmax()]
    caption = (
        "What each way to split leaks from training to test with all the data (left), and the "
        f"AUROC of the probe on {encoder} (right; {of}). Points and bars: mean and sample SD of "
        f"{folds(full)}. With all the data AUROC is highest {best['scheme']}: "
        f"{plus_minus(best['auroc'], best['auroc_sd'])}."
    )
    figure = finished(study, _draw_schemes(full, _under_schemes(study)), f"{encoder} (probe)")
    return Exhibit(name, title, caption, table, figure, SECTION, rounded(shown))


def _draw_schemes(full: pd.DataFrame, fits: pd.DataFrame) -> Figure:
    """Leaks and AUROC, a line a scheme; full: of `inflation_table` with all the data, by title."""
    leaks = full[["scheme", *LEAKS]].rename(columns=LEAKS)
    leaks = leaks.melt("scheme", var_name="leak", value_name="share")
    share = fits["size"].map(lambda size: f"{splits.percent(size)} % of the training patches")
    fits = fits.assign(scheme=fits["scheme"].map(splits_audit.scheme_title), size=share)
    size_inch, n_sizes = (WIDTH_INCH, 1.7 + 0.42 * len(full)), share.nunique()
    figure, axes = plt.subplots(1, 2, figsize=size_inch, sharey=True, width_ratios=(1, 1.7))
    sns.barplot(leaks, x="share", y="scheme", hue="leak", palette="Greys", ax=axes[0])
    axes[0].set(xlabel="test patches, share", xlim=(0, 1), ylabel="")
    sns.pointplot(
        fits, x="auroc", y="scheme", hue="size", errorbar="sd", markers=list(MARKERS[:n_sizes]),
        linestyle="none", dodge=0.4 * (n_sizes > 1), capsize=0.1, linewidth=1.2, markersize=5,
        ax=axes[1],
    )  # fmt: skip
    axes[1].set_xlabel("AUROC, mean ± SD over folds")
    for base in full.loc[full["scheme"] == splits_audit.scheme_title(BASE), "auroc"]:
        axes[1].axvline(base, color="0.4", linestyle="--", label="by slide, all the data")
    for axis in axes:
        axis.legend_ = None  # `finished` has one for both
    return figure
