"""Data scaling (Fig. 1 of Ganz et al. 2024): scores by amount of data, the raters, learning curves, other ways to split."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from mfcore import store
from mfcore.analysis import captions, compare
from mfcore.analysis.exhibit import Exhibit
from mfcore.analysis.figures import CHANCE, MARKERS, WIDTH_INCH, drawing, legend_below, look, rater_lines, title
from mfcore.data import splits, splits_audit
from mfcore.measures import binary, curves, raters
from mfcore.measures.statistics import Interval
from mfcore.study import data as study_data
from mfcore.study.config import SCHEMES, Settings

SECTION = "Data scaling"
SHOWN = ("auroc", "balanced_accuracy")
DATA_SETS = {"midog22": "MIDOG 2022", "ccmct": "CCMCT"}  # by a study's source
PUBLISHED_LOOKS = {compare.END_TO_END: "^", compare.PROBE: "o", compare.LORA: "s"}  # open markers
BASE = "slide"  # the scheme that the others are measured against
LEAKS = {  # name and shade of each leak's bars
    "test_on_train_cases": ("are of a case that training sees", "0.95"),
    "test_on_train_slides": ("lie on a slide that training sees", "0.82"),
    "test_overlapping_train": ("share pixels with a training patch", "0.35"),
}


def published(study: Settings) -> pd.DataFrame:
    """Published values with all the data to stand beside a study's: ``arm, kind, data_set, metric, value, sd, where``.

    Of the study's own data set where there are any, else of both that Ganz et al. 2024 used, for orientation. Those of
    Ammeling et al. 2025 are known second-hand, and ``where`` says so.
    """
    if "published_amibr_probes.csv" in study.source.published:
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


def figure_1(study: Settings, scores: pd.DataFrame, interval: Interval, human: pd.DataFrame | None = None) -> Exhibit:
    """AUROC and balanced accuracy against the number of training patches, beside the raters and the published values.

    scores: as `compare.scores`; interval: as `compare.best_interval`; human: as `raters.table`. The table is that of
    `compare.scaling_table`.
    """
    table, beside = compare.scaling_table(scores, study), published(study)
    sizes = table.groupby("size")["n_train"].mean().round().astype(int)
    mixed = scores[scores["train_domain"] == compare.ALL]
    mixed = mixed.assign(n_train=mixed["size"].map(sizes))
    arms = table[["arm", "kind"]].drop_duplicates()
    looks = [look(study, *arm) for arm in arms.itertuples(index=False)]
    style = {f"{name}s": [each[name] for each in looks] for name in ("marker", "linestyle")}
    style |= {"palette": [each["color"] for each in looks], "hue_order": list(arms["arm"]), "errorbar": "sd", "dodge": 0.25}
    with drawing(study, 1, 2, (WIDTH_INCH, 4.4), sharey=True) as (figure, axes):
        for axis, metric in zip(axes[0], SHOWN, strict=True):
            sns.pointplot(
                mixed, x="n_train", y=metric, hue="arm", native_scale=True, log_scale=(True, False), capsize=0.05,
                linewidth=1.4, markersize=4.5, err_kws={"linewidth": 1}, ax=axis, **style,
            )  # fmt: skip
            names = [compare.shown_name(study, *arm) for arm in arms.itertuples(index=False)]
            for handle, name in zip(axis.get_legend_handles_labels()[0], names, strict=True):
                handle.set_label(name)
            axis.get_legend().remove()
            ticks = {n: f"{n:,}\n({splits.percent(size)} %)" for size, n in sizes.items()}
            ends = axis.get_xlim()
            if metric == "balanced_accuracy" and human is not None:
                rater_lines(axis, human, compare.ALL, ends, named=True)
            axis.axhline(0.5, **CHANCE)
            ticks |= _published_marks(axis, beside[beside["metric"] == metric], ends)
            axis.set_xticks(list(ticks), list(ticks.values()))
            axis.minorticks_off()
            axis.set_xlabel("training patches, n (share of what testing leaves)")
            axis.set_ylabel(f"{binary.TITLES[metric]} (mean ± SD)", visible=True)  # seaborn hides one of two
        lows = [table[metric] - table[f"{metric}_sd"].fillna(0) for metric in SHOWN]
        axes[0][0].set_ylim(min(0.45, float(np.nanmin(lows)) - 0.02), 1.0)
        legend_below(figure, axes[0])
        title(figure, f"{study.title}; bars: SD over n = {compare.folds(table)}")
    caption = _caption_1(study, table, interval, human, beside)
    return Exhibit("05_data_scaling", "Fig. 1. Data scaling", caption, table, figure, SECTION)


def _published_marks(axis: Axes, beside: pd.DataFrame, ends: tuple[float, float]) -> dict[float, str]:
    """Published values as open markers right of ``ends``, a place a data set; returns the places' labels."""
    step, ticks = (ends[1] / ends[0]) ** 0.2, {}
    for data_set, of_set in beside.groupby("data_set"):
        middle = ends[1] * step ** (len(ticks) + 0.55)
        for kind, part in of_set.sort_values("value").groupby("kind"):
            shift = list(PUBLISHED_LOOKS).index(kind) - 1 + np.linspace(-0.3, 0.3, len(part) + 2)[1:-1]
            label = f"published: {kind}" + (" (second-hand)" if part["where"].str.contains("second-hand").all() else "")
            axis.errorbar(
                middle * step ** (0.28 * shift), part["value"], part["sd"].fillna(0), fmt=PUBLISHED_LOOKS[kind], color="0.25",
                mfc="white", capsize=2.5, linewidth=0.9, label=label,
            )  # fmt: skip
        ticks[middle] = str(data_set).replace(" ", "\n")
    if ticks:
        axis.axvline(ends[1], color="0.6", linewidth=0.8)
        axis.text(ends[1] * step**0.1, 1.0, "published", va="bottom", fontsize=7, transform=axis.get_xaxis_transform())
    axis.set_xlim(ends[0], ends[1] * step ** (len(ticks) + 0.1 * bool(ticks)))
    return ticks


def _caption_1(
    study: Settings, table: pd.DataFrame, interval: Interval, human: pd.DataFrame | None, beside: pd.DataFrame
) -> str:
    full = table[table["size"] == table["size"].max()]
    best = full.loc[full["auroc"].idxmax()]
    papers = captions.listed(dict.fromkeys(beside["where"].str.replace(r", (section|table|fig).*", "", case=False, regex=True)))
    shared = "the same for every arm" if study.switches.shared_splits else "networks and probes on folds of their own"
    people = ""
    if (line := raters.reference(human, "balanced_accuracy")) is not None:
        people = f"; shaded: 95 % interval over {line.n} {line.unit}s of one rater against another ({captions.whose(study)})"
    over = f"{interval.n} {interval.unit}s tested"
    over = (
        f"[{interval.low:.2f}, {interval.high:.2f}] over the {over}" if math.isfinite(interval.low) else f"none, of {over} only"
    )
    return (
        f"AUROC and balanced accuracy on held-out {captions.held_out(study)} against the number of training patches "
        f"({captions.of_what(study)}); open markers: published with all the data, on other patches ({papers}). Points and "
        f"bars: mean and sample SD of {compare.folds(table, 'Monte Carlo fold')}, {shared}, no confidence interval{people}"
        f"{captions.stars(study, full['arm'])}. With all the data {best['arm']} is highest: "
        f"{compare.plus_minus(best['auroc'], best['auroc_sd'])}, {100 * interval.level:.0f} % interval {over}."
    )


def learning_curves(study: Settings, scores: pd.DataFrame) -> Exhibit:
    """AUROC by training patches with each arm's curve drawn on to more, a panel an arm (`curves.ahead`)."""
    table, expected = compare.scaling_table(scores, study), curves.ahead(scores, study.splits.seed)
    expected = compare.in_order(expected, study, "n_train")
    full, arms = table[table["size"] == table["size"].max()], list(dict.fromkeys(table["arm"]))
    best = full.loc[full["auroc"].idxmax()]
    n_columns = min(3, len(arms))
    n_rows = -(-len(arms) // n_columns)
    lines = {"curve": ("fitted curve", "-"), "straight": ("as in the last tenfold step", ":")}
    with drawing(study, n_rows, n_columns, (WIDTH_INCH, 2.0 * n_rows + 1.1), sharex=True, sharey=True) as (figure, axes):
        for axis, arm in zip(axes.flat, arms, strict=False):
            part = table[table["arm"] == arm]
            kind = part["kind"].iloc[0]
            points = look(study, arm, kind) | {"linestyle": "none", "capsize": 2.5, "label": "mean ± SD over folds"}
            axis.errorbar(part["n_train"], part["auroc"], part["auroc_sd"].fillna(0), **points)
            for how, on in expected[expected["arm"] == arm].groupby("how"):
                axis.fill_between(on["n_train"], on["low"], on["high"], color="0.86", linewidth=0, label="95 % band")
                label, line = lines[how]
                axis.plot(on["n_train"], on["expected"], color="0.25", linewidth=1.2, linestyle=line, label=label)
            axis.axhline(best["auroc"], color="black", linewidth=0.9, linestyle="--", label=f"{best['arm']}, all the data")
            axis.axvline(part["n_train"].max(), color="0.6", linewidth=0.7)
            axis.axhline(0.5, **CHANCE)
            gap = f"gap {best['auroc'] - full.loc[full['arm'] == arm, 'auroc'].sum():.2f}" if arm != best["arm"] else "the best"
            axis.set_title(f"{arm}\n({compare.shown_kind(study, arm, kind)}; {gap})", fontsize=7.5)
            axis.set_xlabel("training patches, n")
            axis.tick_params(axis="x", labelbottom=True, labelsize=7)
        for axis in axes.flat[len(arms) :]:
            axis.set_axis_off()
        sizes = [*table.groupby("size")["n_train"].mean().round().astype(int)]
        sizes += [int(expected["n_train"].max())] if len(expected) else []
        first, low = axes.flat[0], float((table["auroc"] - table["auroc_sd"].fillna(0)).min()) - 0.02
        first.set(xlim=(0.6 * min(sizes), 1.7 * max(sizes)), xscale="log", ylim=(np.clip(low, 0.3, 0.45), 1.0))
        first.set_xticks(sizes, [f"{n:,}" for n in sizes])
        first.minorticks_off()
        figure.supylabel("AUROC", fontsize=8.5)
        legend_below(figure, axes.flat[: len(arms)], 3)
        title(figure, f"{study.title}; right of the grey line no size was tried")
    is_bare = len(expected) > 0 and expected["low"].isna().all()
    bands = "none, as all folds are tested on the same patches" if is_bare else "95 % over resampled folds"
    caption = (
        f"AUROC by number of training patches n with each arm's curve a - b n^-c or, dotted, the last step drawn on where the "
        f"data determine no curve ({captions.of_what(study)}). Points and bars: mean and sample SD of {compare.folds(table)}; "
        f"bands: {bands}. Dashed: {best['arm']}, {best['auroc']:.2f} with {best['n_train']:,} patches."
    )
    return Exhibit("05_learning_curves", "Learning curves", caption, expected, figure, SECTION)


def patches_needed(study: Settings, scores: pd.DataFrame) -> Exhibit:
    """How many patches would close each arm's gap to the best one (`curves.fit`)."""
    fits = compare.in_order(curves.fit(scores, study.splits.seed), study)
    rows = []
    for row in fits.itertuples(index=False):
        bent = row.why_not == ""
        needed = (
            (row.n_needed, row.n_needed_low, row.n_needed_high)
            if bent
            else (row.n_straight, row.n_straight_low, row.n_straight_high)
        )
        gain = f"{row.per_tenfold:+.2f} {_between(row.per_tenfold_low, row.per_tenfold_high, '+.2f')}"
        levels = f"{row.asymptote:.2f} {_between(row.low, row.high, '.2f')}" if bent else f"no curve: {row.why_not}"
        rows.append((row.arm, row.kind, levels, gain if math.isfinite(row.per_tenfold) else "–", _patches(*needed)))
    names = ["arm", "kind", "AUROC levels off at", "per tenfold patches", "patches to close the gap"]
    caption = (
        f"What each arm's AUROC comes to with ever more patches, and the patches at which it reaches what the best arm has "
        f"({captions.of_what(study)}). Curves a - b n^-c through the means of {compare.folds(fits)}; where the data determine "
        "none, the last step drawn on, which needs the least where growth slows down. In brackets: 95 % over resampled folds."
    )
    return Exhibit("05_patches_needed", "Patches needed", caption, fits, None, SECTION, pd.DataFrame(rows, columns=names))


def _between(low: float, high: float, form: str) -> str:
    return f"[{low:{form}}, {high:{form}}]" if math.isfinite(low) else ""


def _patches(n: float, low: float, high: float) -> str:
    """A number of patches with its interval, two digits each; a dash where unknown."""
    text = [f"{float(f'{each:.2g}'):,.0f}" if math.isfinite(each) else "∞" for each in (n, low, high)]
    return "–" if math.isnan(n) else text[0] + ("" if math.isnan(low) else f" [{text[1]} to {text[2]}]")


def inflation_table(study: Settings, results: str | Path) -> pd.DataFrame:
    """A row a scheme of ``study.inflation`` and size: what the probe scores under it, and how much that is above by slide.

    ``scheme, size, n_train, n_folds, auroc, auroc_sd, balanced_accuracy, balanced_accuracy_sd``, the leaks of
    `splits_audit.LEAKS` (means over folds; sample SD over folds), ``auroc_inflation`` and ``balanced_accuracy_inflation``: the
    mean less that of splitting by slide at the same size, NaN where that is not run. Schemes not run yet have no row; without
    an encoder there is none at all. Raises StoreError where the splits have no audit.
    """
    results, encoder, tables = Path(results), study.inflation.encoder, []
    if not encoder:
        return pd.DataFrame()
    leaks = splits_audit.load_schemes(study_data.find_audit(study, results)).drop(columns="fold")
    leaks = leaks.groupby(["scheme", "size"])[list(splits_audit.LEAKS)].mean()
    for scheme in SCHEMES:
        if scheme not in (*study.inflation.schemes, study.switches.scheme):
            continue
        other = study_data.under(study, scheme)
        try:
            run = compare.current_runs(other, results).get(encoder)
        except store.StoreError:  # no splits of that scheme yet
            run = None
        if run is not None:
            scores = compare.scores(compare.load_arm(run, encoder, compare.PROBE))
            tables.append(compare.scaling_table(scores, other).assign(scheme=scheme))
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables, ignore_index=True).join(leaks, on=["scheme", "size"])
    for name in SHOWN:
        base = table[table["scheme"] == BASE].set_index("size")[name]
        table[f"{name}_inflation"] = table[name] - table["size"].map(base)
    kept = ["scheme", "size", "n_train", "n_folds", "auroc", "auroc_sd", "balanced_accuracy", "balanced_accuracy_sd"]
    return table[[*kept, *splits_audit.LEAKS, "auroc_inflation", "balanced_accuracy_inflation"]]


def inflation(study: Settings, table: pd.DataFrame) -> Exhibit:
    """One probe under each way to split: what a scheme leaks at the largest size, and its AUROC at every size."""
    name, heading = "05_inflation", "What the split is worth"
    if not len(table):
        caption = f"The study names no encoder to probe under other ways to split ({captions.of_what(study)})."
        return Exhibit(name, heading, caption, table, None, SECTION)
    full = table[table["size"] == table["size"].max()].set_index("scheme")
    with drawing(study, 1, 2, (WIDTH_INCH, 0.42 * len(full) + 1.7), sharey=True, width_ratios=(1, 1.7)) as (figure, axes):
        leaks, scores = axes[0]
        same = full["test_on_train_cases"].equals(full["test_on_train_slides"].rename("test_on_train_cases"))
        known = {name: LEAKS[name] for name in list(LEAKS)[same:]}
        long = full[list(known)].mul(100).rename(index=splits_audit.scheme_title, columns={k: v[0] for k, v in known.items()})
        long = long.melt(ignore_index=False, var_name="leak", value_name="share").reset_index()
        greys = {"palette": dict(known.values()), "saturation": 1, "edgecolor": "0.25", "linewidth": 0.6}
        sns.barplot(long, y="scheme", x="share", hue="leak", errorbar=None, ax=leaks, **greys)
        leaks.get_legend().remove()
        leaks.set(xlabel="test patches, %", xlim=(0, 100), ylabel="")
        for index, (size, part) in enumerate(table.groupby("size")):
            at = 0.22 * (index - (table["size"].nunique() - 1) / 2) + full.index.get_indexer(part["scheme"])
            look_of = {"fmt": MARKERS[index], "capsize": 2, "label": f"{splits.percent(size)} % of what testing leaves"}
            scores.errorbar(part["auroc"], at, xerr=part["auroc_sd"].fillna(0), **look_of)
        if BASE in full.index:
            style = {"color": "0.4", "linewidth": 0.9, "linestyle": "--", "zorder": 0}
            scores.axvline(full.loc[BASE, "auroc"], label="by slide, with all of it", **style)
        scores.set_xlabel(f"AUROC, mean ± SD over {compare.folds(full)}")
        legend_below(figure, axes[0])
        title(figure, f"{study.inflation.encoder} (probe)")
    most = full["auroc"].idxmax()
    above = f", {full.loc[most, 'auroc_inflation']:+.3f} against by slide" if BASE in full.index else ""
    caption = (
        f"What each way to split leaks from training to test (left), and the AUROC of the probe on {study.inflation.encoder} "
        f"under it ({captions.of_what(study)}). Points and bars: mean and sample SD of {compare.folds(full)}; the table has "
        f"the numbers of training patches. With all the data it is highest {splits_audit.scheme_title(most)}: "
        f"{compare.plus_minus(full.loc[most, 'auroc'], full.loc[most, 'auroc_sd'])}{above}."
    )
    return Exhibit(name, heading, caption, table, figure, SECTION, inflation_readable(table))


def inflation_readable(table: pd.DataFrame) -> pd.DataFrame:
    """`inflation_table` for the eye: scores as "mean ± SD", shares in per cent, inflation signed."""
    return pd.DataFrame(
        {
            "scheme": table["scheme"].map(splits_audit.scheme_title),
            "size": [f"{splits.percent(size)}\u00a0%" for size in table["size"]],
            "n_train": table["n_train"],
            **{leak: splits_audit.per_cent(table[leak]) for leak in splits_audit.LEAKS},
            "AUROC": [compare.plus_minus(*each) for each in table[["auroc", "auroc_sd"]].itertuples(index=False)],
            "above_by_slide": [f"{value:+.3f}" if pd.notna(value) else "–" for value in table["auroc_inflation"]],
        }
    )
