"""Fig. 1 and what belongs to it: scores against the amount of data, the published values, the raters, the fitted curves."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mfcore.analysis import compare, compare_schemes
from mfcore.analysis.figures import LEGEND_ROW_INCH, MARKERS, WIDTH_INCH, drawing, legend_below, look, title
from mfcore.data import splits, splits_audit
from mfcore.measures import binary, raters
from mfcore.study.config import Study

N_COLUMNS = 3  # of learning curves
SHOWN = ("auroc", "balanced_accuracy")
CHANCE = {"color": "0.55", "linewidth": 0.9, "linestyle": ":", "label": "chance"}
DATA_SETS = {"midog22": "MIDOG 2022", "ccmct": "CCMCT"}  # by a study's source
PUBLISHED_LOOKS = {compare.END_TO_END: "^", compare.PROBE: "o", compare.LORA: "s"}  # open markers


def published(study: Study) -> pd.DataFrame:
    """Published values with all the data to stand beside a study's: ``arm, kind, data_set, metric, value, sd, where``.

    Of the study's own data set where there are any, else of both that Ganz et al. 2024 used, for orientation. Those of
    Ammeling et al. 2025 are known second-hand, and ``where`` says so.
    """
    if study.data.source == "amibr":
        table = pd.read_csv(compare.PUBLISHED / "published_amibr_probes.csv")
        table = table.assign(data_set="AMi-Br", where="Banerjee et al. 2025", auroc_sd=np.nan)
        parts = [table.assign(metric=metric, value=table[metric], sd=table[f"{metric}_sd"]) for metric in SHOWN]
    else:
        first = pd.read_csv(compare.PUBLISHED / "published_ganz_2024_full_size.csv")
        where = "Ganz et al. 2024, " + first["where"]
        first = first.assign(kind=compare.END_TO_END, metric="auroc", value=first["auroc"], sd=first["auroc_sd"], where=where)
        later = pd.read_csv(compare.PUBLISHED / "published_ammeling_2025.csv")
        later = later[(later["size"] == 1) & (later["quantity"] == "mixed") & later["metric"].isin(SHOWN)]
        later = later.assign(data_set=later["data_set"].map(DATA_SETS), where="Ammeling et al. 2025, second-hand")
        own = DATA_SETS.get(study.data.source)
        parts = [part[part["data_set"] == own] if own else part for part in (first, later)]
    return pd.concat(parts, ignore_index=True)[["arm", "kind", "data_set", "metric", "value", "sd", "where"]]


def data_scaling(
    study: Study, table: pd.DataFrame, human: pd.DataFrame | None = None, beside: pd.DataFrame | None = None
) -> Figure:
    """Fig. 1: AUROC and balanced accuracy against the number of training patches, a line an arm, bars the SD over folds.

    With raters' votes (``human``, as `mfcore.measures.raters.table` returns it) the second panel shows the raters. ``beside``:
    `published` values, open markers in a strip of their own, as they were measured on other patches. table: as
    `mfcore.analysis.compare.scaling_table` returns it.
    """
    arms = list(dict.fromkeys(table["arm"]))
    n_rows = -(-(len(arms) + 3 + (0 if beside is None else beside["kind"].nunique())) // 2)
    with drawing(study, 1, 2, (WIDTH_INCH, 3.3 + LEGEND_ROW_INCH * n_rows), sharey=True) as (figure, axes):
        sizes = table.groupby("size")["n_train"].mean().round().astype(int)
        for axis, metric in zip(axes[0], SHOWN, strict=True):
            for index, arm in enumerate(arms):
                part = table[table["arm"] == arm]
                nudge = 1.035 ** (index - (len(arms) - 1) / 2)  # so that bars of arms at one size stay apart
                sd, kind = part[f"{metric}_sd"].fillna(0), part["kind"].iloc[0]
                style = look(study, arm, kind) | {
                    "elinewidth": 1,
                    "capsize": 2,
                    "label": compare.shown_name(study, arm, kind),
                }
                axis.errorbar(part["n_train"] * nudge, part[metric], sd, **style)
            axis.set_xscale("log")
            axis.margins(x=0.08)
            start, stop = axis.get_xlim()
            if metric == "balanced_accuracy" and human is not None:
                rater_lines(axis, human, compare.ALL, (start, stop), named=True)
            axis.axhline(0.5, **CHANCE)
            axis.set_xlim(start, stop)
            ticks = {n: f"{n:,}\n({splits.percent(size)} %)" for size, n in sizes.items()}
            shown = None if beside is None else beside[beside["metric"] == metric]
            if shown is not None and len(shown):
                _published_strip(axis, shown, (start, stop))
            axis.set_xticks(list(ticks), list(ticks.values()))
            axis.minorticks_off()
            axis.set_xlabel("training patches, n (share of what testing leaves)")
            axis.set_ylabel(f"{binary.TITLES[metric]} (mean ± SD)")
        lows = [table[metric] - table[f"{metric}_sd"].fillna(0) for metric in SHOWN]
        axes[0][0].set_ylim(min(0.45, float(np.nanmin(lows)) - 0.02), 1.0)
        legend_below(figure, axes[0])
        title(figure, f"{study.title}; bars: SD over n = {compare.folds(table)}")
    return figure


def _published_strip(axis: Axes, shown: pd.DataFrame, ends: tuple[float, float]) -> None:
    """Published values as open markers right of ``ends``, by data set, then kind."""
    axis.axvline(ends[1], color="0.6", linewidth=0.8)
    data_sets, kinds = sorted(shown["data_set"].unique()), [kind for kind in PUBLISHED_LOOKS if (shown["kind"] == kind).any()]
    step = (ends[1] / ends[0]) ** (0.07 if len(data_sets) == 1 else 0.045)
    for (data_set, kind), part in shown.sort_values("value").groupby(["data_set", "kind"], sort=False):
        place = 1 + data_sets.index(data_set) * (len(kinds) + 0.5) + kinds.index(kind)
        aside = np.resize([0, 0.3, -0.3] if len(part) > 2 else [0], len(part))  # so that near values don't hide one another
        label = f"published: {kind}" + (" (second-hand)" if part["where"].str.contains("second-hand").all() else "")
        style = {"fmt": PUBLISHED_LOOKS[kind], "color": "0.25", "mfc": "white", "markersize": 5.5, "linestyle": "none"}
        x = ends[1] * step ** (place + aside)
        axis.errorbar(x, part["value"], part["sd"].fillna(0), capsize=2.5, linewidth=0.9, label=label, **style)
    last = ends[1] * step ** ((len(kinds) + 0.5) * len(data_sets) + 0.5)
    middle, across = np.sqrt(ends[1] * last), axis.get_xaxis_transform()
    axis.text(middle, 1.0, "published", ha="center", va="bottom", fontsize=7, transform=across)
    axis.set_xlim(ends[0], last)
    for i, data_set in enumerate(data_sets):
        place = 1 + i * (len(kinds) + 0.5) + (len(kinds) - 1) / 2
        style = {"rotation": 90, "ha": "center", "va": "bottom", "fontsize": 7}
        style["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # over the line of chance
        axis.text(ends[1] * step**place, 0.03, data_set, transform=across, **style)


def rater_lines(axis: Axes, human: pd.DataFrame, domain: str, ends: tuple[float, float], named: bool) -> None:
    """Balanced accuracy of the raters between two x: one against another, with its interval, and against the consensus."""
    line, upper = raters.reference(human, "balanced_accuracy", domain), raters.against_consensus(human, domain)
    said = {"one": "one rater against another", "consensus": "a rater against the consensus, own vote counted"}
    if named:
        said |= {"one": f"{said['one']}, {line.estimate:.2f}"} if line else {}
        said |= {"consensus": f"{said['consensus']}, {upper:.2f}"} if upper else {}
    if line:
        axis.fill_between(ends, line.low, line.high, color="0.87", linewidth=0, zorder=0.5)
        axis.plot(ends, [line.estimate] * 2, color="black", linewidth=1.3, linestyle=(0, (7, 3)), label=said["one"], zorder=1.5)
    if upper:
        axis.plot(ends, [upper] * 2, color="0.45", linewidth=1.1, linestyle="-.", label=said["consensus"], zorder=1.5)


def learning_curves(study: Study, table: pd.DataFrame, ahead: pd.DataFrame) -> Figure:
    """AUROC by training patches with each arm's curve drawn on to more, a panel an arm; dashed: what the best arm has.

    Where the data determine no curve, the last step drawn on over log n instead; bands are 95 % over resampled folds.
    table: as `compare.scaling_table` returns it; ahead: as `compare_curve.ahead` does.
    """
    arms = list(dict.fromkeys(table["arm"]))
    n_columns = 2 if len(arms) in (2, 4) else min(N_COLUMNS, len(arms))
    n_rows = -(-len(arms) // n_columns)
    full = table[table["size"] == table["size"].max()]
    best = full.loc[full["auroc"].idxmax()]
    size_inch = (WIDTH_INCH, 2.0 * n_rows + 1.1)
    with drawing(study, n_rows, n_columns, size_inch, sharex=True, sharey=True) as (figure, axes):
        for axis, arm in zip(axes.flat, arms, strict=False):
            part, on = table[table["arm"] == arm], ahead[ahead["arm"] == arm].sort_values("n_train")
            kind = part["kind"].iloc[0]
            style = look(study, arm, kind)
            points = {"color": style["color"], "marker": style["marker"], "linestyle": "none", "capsize": 2.5}
            axis.errorbar(part["n_train"], part["auroc"], part["auroc_sd"].fillna(0), label="mean ± SD over folds", **points)
            for how, line in (("curve", "-"), ("straight", (0, (1.5, 1.2)))):
                drawn = on[on["how"] == how]
                if not len(drawn):
                    continue
                label = "fitted curve" if how == "curve" else "as in the last tenfold step"
                axis.fill_between(drawn["n_train"], drawn["low"], drawn["high"], color="0.86", linewidth=0, label="95 % band")
                axis.plot(drawn["n_train"], drawn["expected"], color="0.25", linewidth=1.2, linestyle=line, label=label)
            axis.axhline(
                best["auroc"], color="black", linewidth=0.9, linestyle=(0, (7, 3)), label=f"{best['arm']}, all the data"
            )
            axis.axvline(part["n_train"].max(), color="0.6", linewidth=0.7)
            axis.axhline(0.5, **CHANCE)
            last = part.loc[part["n_train"].idxmax()]
            gap = f"gap {best['auroc'] - last['auroc']:.2f}" if arm != best["arm"] else "the best"
            axis.set_title(f"{arm}\n({compare.shown_kind(study, arm, kind)}; {gap})", fontsize=7.5)
        for axis in axes.flat[len(arms) :]:
            axis.set_axis_off()
        first = axes.flat[0]
        if table["n_train"].nunique() == 1:
            first.set_xlim(table["n_train"].iloc[0] / 2, table["n_train"].iloc[0] * 2)
        first.set_xscale("log")
        first.set_ylim(max(0.3, min(0.45, float((table["auroc"] - table["auroc_sd"].fillna(0)).min()) - 0.02)), 1.0)
        sizes = [*table.groupby("size")["n_train"].mean().round().astype(int)]
        if len(ahead):
            sizes.append(int(ahead["n_train"].max()))
        first.set_xticks(sizes, [f"{n:,}" for n in sizes])
        first.minorticks_off()
        for axis in axes.flat[max(0, len(arms) - n_columns) : len(arms)]:
            axis.set_xlabel("training patches, n")
            axis.tick_params(axis="x", labelbottom=True, labelsize=7)
        for line in axes:
            line[0].set_ylabel("AUROC")
        legend_below(figure, axes.flat[: len(arms)], 3)
        title(figure, f"{study.title}; right of the grey line no size was tried")
    return figure


def inflation(study: Study, table: pd.DataFrame) -> Figure:
    """One probe under each way to split, a line a scheme: what it leaks at the largest size, and the AUROC at every size.

    table: as `mfcore.analysis.compare_schemes.inflation` returns it.
    """
    schemes = list(dict.fromkeys(table["scheme"]))
    full = table[table["size"] == table["size"].max()].set_index("scheme").loc[schemes]
    places = np.arange(len(schemes))
    with drawing(study, 1, 2, (WIDTH_INCH, 0.42 * len(schemes) + 1.7), sharey=True, width_ratios=(1, 1.7)) as (figure, axes):
        leaks, scores = axes[0]
        shown = [
            ("test_on_train_cases", "0.95", "are of a case that training sees"),
            ("test_on_train_slides", "0.82", "lie on a slide that training sees"),
            ("test_overlapping_train", "0.35", "share pixels with a training patch"),
        ]
        if full["test_on_train_cases"].equals(full["test_on_train_slides"].rename("test_on_train_cases")):
            del shown[0]
        for i, (column, face, name) in enumerate(shown):
            at, height = places + 0.72 / len(shown) * (i - (len(shown) - 1) / 2), 0.68 / len(shown)
            leaks.barh(at, 100 * full[column], height, color=face, edgecolor="0.25", linewidth=0.6, label=name)
        leaks.set(xlabel="test patches, %", xlim=(0, 100), yticks=places, ylim=(len(schemes) - 0.5, -0.5))
        leaks.set_yticklabels([splits_audit.scheme_title(scheme) for scheme in schemes])
        sizes = sorted(table["size"].unique())
        for index, size in enumerate(sizes):
            part = table[table["size"] == size].set_index("scheme").reindex(schemes)
            at = places + 0.22 * (index - (len(sizes) - 1) / 2)
            label = f"{splits.percent(size)} % of what testing leaves"
            scores.errorbar(
                part["auroc"], at, xerr=part["auroc_sd"].fillna(0), fmt=MARKERS[index], linestyle="none", capsize=2, label=label
            )
        if compare_schemes.BASE in schemes:
            base, name = full.loc[compare_schemes.BASE, "auroc"], "by slide, with all of it"
            scores.axvline(base, color="0.4", linewidth=0.9, linestyle=(0, (5, 1.6)), zorder=0, label=name)
        scores.set_xlabel(f"AUROC, mean ± SD over {compare.folds(full)}")
        legend_below(figure, axes[0])
        title(figure, f"{study.inflation.encoder} (probe)")
    return figure
