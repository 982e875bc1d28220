"""Across domains (Fig. 2 and Tab. 2 of Ganz et al. 2024): by the domain trained on and the domain tested on."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle

from mfcore.analysis import captions, compare
from mfcore.analysis.exhibit import Exhibit
from mfcore.analysis.figures import (
    CHANCE,
    WIDTH_INCH,
    best_of_each_kind,
    drawing,
    few,
    legend_below,
    look,
    rater_lines,
    title,
    two_lines,
)  # fmt: skip
from mfcore.measures import raters
from mfcore.study import pretrained
from mfcore.study.config import Settings

SECTION = "Across domains"
SCALE = (0.4, 1.0)  # of the shades, the same in every study
SHADES = ListedColormap(colormaps["Blues"](np.linspace(0, 0.6, 256)))  # black numbers are to be read on the darkest


def best_arms(study: Settings, table: pd.DataFrame) -> list[str]:
    """Of each kind of arm in a `compare.domain_matrix` the one with the highest mean out of domain; probes come last.

    The encoders that the study pretrained are a kind of their own here, the very last, unless one is the best probe of all.
    """
    out = table[table["domain"] != table["train_domain"]]
    home = out[out["arm"].isin([arm for arm in out["arm"].unique() if pretrained.is_of(study, arm)])]
    return list(dict.fromkeys([*best_of_each_kind(out, "mean"), *best_of_each_kind(home, "mean")]))


def published(study: Settings) -> pd.DataFrame:
    """Tab. 2 of Ganz et al. 2024 (`compare.published_table`); no row where the study's classes are others than theirs."""
    table = compare.published_table()
    return table if "published_ganz_2024.csv" in study.source.published else table.iloc[:0]


def means(study: Settings, table: pd.DataFrame) -> Exhibit:
    """Tab. 2: every arm in domain and out of domain; ``table`` as `compare.cross_domain_table` returns it."""
    caption = (
        f"AUROC in domain and out of domain ({captions.of_what(study)}). Mean and sample SD over folds of the mean over "
        "training domains (and, out of domain, over the other domains); _sd_cells: the SD over all folds and domains, which "
        "the published ± most likely is."
    )
    return Exhibit("06_means", "Tab. 2. Means", caption, table, None, SECTION, compare.marked(table, study).round(3))


def cross_domain(study: Settings, matrix: pd.DataFrame, table: pd.DataFrame) -> Exhibit:
    """Fig. 2: AUROC by training and test domain, a panel for the best arm of each kind, all on one scale; below, the means.

    The means in and out of domain are of every arm, then the `published` ones. matrix, table: as `compare.domain_matrix` and
    `compare.cross_domain_table` return them.
    """
    arms, beside, n_domains = best_arms(study, matrix), published(study), matrix["domain"].nunique()
    heights = (0.42 * n_domains + 1.75, 0.2 * (len(table) + len(beside)) + 0.9)
    with drawing(study, 2, len(arms), (WIDTH_INCH, sum(heights)), height_ratios=heights) as (figure, axes):
        for axis, arm in zip(axes[0], arms, strict=True):
            part = matrix[matrix["arm"] == arm]
            _heatmap(axis, part, 8.5 if len(arms) * n_domains <= 10 else 7.5 if len(arms) * n_domains <= 16 else 6)
            axis.set_title(f"{arm}\n({compare.shown_kind(study, arm, part['kind'].iloc[0])})", fontsize=8)
            axis.set(xlabel="tested on", ylabel="trained on" if axis is axes[0][0] else "")
            axis.tick_params(labelleft=axis is axes[0][0])
        bar = {"shrink": 0.85, "aspect": 30, "pad": 0.01, "label": "AUROC, mean over folds"}
        figure.colorbar(axes[0][0].collections[0], ax=axes[0], **bar)
        grid = axes[1][0].get_gridspec()
        for axis in axes[1]:
            axis.remove()
        _means_panel(study, figure.add_subplot(grid[1, :]), table, beside)
        title(figure, f"{study.title}; mean ± SD over n = {compare.folds(matrix)}")
    best = table.loc[table["out_of_domain"].idxmax()]
    others = "published: Tab. 2, on MIDOG 2022, for orientation" if len(beside) else "the published Tab. 2 is of other classes"
    caption = (
        "Above: the best arm of each kind by the domain trained on and the domain tested on, framed where they are the same, "
        f"on held-out {captions.held_out(study)} ({captions.of_what(study)}); below: every arm, means over domains ({others}). "
        f"Mean ± SD of {compare.folds(table)}{captions.stars(study, table['arm'])}. Out of domain {best['arm']} is highest: "
        f"{best['out_of_domain']:.2f}, against {best['in_domain']:.2f} in domain."
    )
    return Exhibit("06_cross_domain", "Fig. 2. Cross-domain", caption, matrix, figure, SECTION)


def _heatmap(axis: Axes, part: pd.DataFrame, size_pt: float) -> None:
    """One arm's matrix, train rows, test columns: mean and SD in each cell, in domain framed."""
    domains = sorted(part["domain"].unique())
    mean, sd = (
        part.pivot(index="train_domain", columns="domain", values=name).reindex(domains, columns=domains)
        for name in ("mean", "sd")
    )
    text = mean.map("{:.2f}".format) + sd.map(lambda value: f"\n±{value:.2f}".replace("0.", ".") if np.isfinite(value) else "")
    style = {"annot_kws": {"color": "black", "fontsize": size_pt, "linespacing": 1.1}, "linewidths": 1, "cbar": False}
    sns.heatmap(mean, vmin=SCALE[0], vmax=SCALE[1], cmap=SHADES, annot=text, fmt="", ax=axis, **style)
    for i in range(len(domains)):
        axis.add_patch(Rectangle((i + 0.03, i + 0.03), 0.94, 0.94, fill=False, edgecolor="black", linewidth=1.1))
    names = [two_lines(domain) for domain in domains]
    axis.set_xticklabels(names, rotation=90 if len(domains) > 3 else 0)
    axis.set_yticklabels(names, rotation=0)
    axis.tick_params(length=0)


def _means_panel(study: Settings, axis: Axes, table: pd.DataFrame, beside: pd.DataFrame) -> None:
    """A line an arm: its mean in domain (filled) and out of domain (open), with SD; the published ones below."""
    names = {}
    for place, row in enumerate([*table.itertuples(), *beside.itertuples()]):
        ours = place < len(table)
        style = look(study, row.arm, row.kind) if ours else {"color": "0.3", "marker": "o"}
        style = {**style, "linestyle": "none", "capsize": 2, "markersize": 5, "linewidth": 1}
        place += not ours  # a line free between ours and the published
        names[place] = compare.shown_name(study, row.arm, row.kind) if ours else row.arm
        for shift, name, face in ((-0.17, "in_domain", style["color"]), (0.17, "out_of_domain", "white")):
            sd = np.nan_to_num(getattr(row, f"{name}_sd"))
            axis.errorbar(getattr(row, name), place + shift, xerr=sd, mfc=face, **style)
    if len(beside):
        said = "published: Ganz et al. 2024, Tab. 2, MIDOG 2022"
        axis.axhline(len(table) - 0.45, color="0.4", linewidth=0.8)
        axis.text(0.005, len(table) + 0.05, said, fontsize=8, va="center", transform=axis.get_yaxis_transform())
    axis.axvline(0.5, **CHANCE)
    axis.set_yticks(list(names), list(names.values()))
    axis.set_ylim(max(names) + 0.6, -0.6)
    axis.set_xlabel("AUROC in domain (filled) and out of domain (open), mean ± SD")
    axis.grid(axis="y", visible=False)


def by_test_domain(study: Settings, table: pd.DataFrame, human: pd.DataFrame | None = None) -> Exhibit:
    """Balanced accuracy by test domain, in domain (filled) and out of domain (open), with SD, and each domain's raters.

    table: as `compare.by_test_domain` returns it; human: as `raters.table`. Of many arms, the best (`figures.few`).
    """
    arms, domains, n_arms = few(table, "mean"), sorted(table["domain"].unique()), table["arm"].nunique()
    step = 0.8 / (2 * len(arms))
    with drawing(study, 1, 1, (WIDTH_INCH, 4.6)) as (figure, axes):
        axis = axes[0][0]
        for place, arm in enumerate(arms):
            for side, where in enumerate((compare.IN_DOMAIN, compare.OUT_OF_DOMAIN)):
                part = table[(table["arm"] == arm) & (table["where"] == where)]
                style = look(study, arm, part["kind"].iloc[0]) | {"linestyle": "none"} | ({"mfc": "white"} if side else {})
                part = part.set_index("domain").reindex(domains)
                x = np.arange(len(domains)) + (2 * place + side - len(arms) + 0.5) * step
                axis.errorbar(x, part["mean"], part["sd"].fillna(0), capsize=2.5, label=f"{arm}, {where}", **style)
        for i, domain in enumerate(domains):
            if raters.reference(human, "balanced_accuracy", domain):
                rater_lines(axis, human, domain, (i - 0.45, i + 0.45), named=False)
        axis.axhline(0.5, **CHANCE)
        axis.set_xticks(range(len(domains)), [two_lines(domain) for domain in domains])
        axis.grid(axis="x", visible=False)
        axis.set(xlabel="tested on", ylabel="balanced accuracy (mean ± SD)", xlim=(-0.5, len(domains) - 0.5), ylim=(None, 1.0))
        legend_below(figure, [axis])
        which = "" if len(arms) == n_arms else "best arm of each kind, "
        title(figure, f"{study.title}; {which}SD over n = {compare.folds(table)}")
    drawn = "every arm" if len(arms) == n_arms else f"the best arm of each kind (of {n_arms})"
    people = ""
    if any(raters.reference(human, "balanced_accuracy", domain) for domain in domains):
        people = (
            f"; lines: {captions.whose(study)}, one against another (shaded: 95 % interval over {compare.unit(human)}) and "
            "against the consensus, own vote counted"
        )
    caption = (
        f"Balanced accuracy of {drawn} in domain (filled) and out of domain (open, mean over the other training domains) "
        f"({captions.of_what(study)}). Points and bars: mean and sample SD of {compare.folds(table)}{people}."
    )
    return Exhibit("06_by_test_domain", "By test domain", caption, table, figure, SECTION)


def asymmetry(study: Settings, table: pd.DataFrame) -> Exhibit:
    """Each pair of domains there and back; ``table`` as `compare_domains.asymmetry` returns it."""
    known = table[table["difference"].notna()]
    caption = f"Without two domains there is no way back ({captions.of_what(study)})."
    if len(known):
        most = known.loc[known["difference"].abs().idxmax()]
        caption = (
            f"AUROC from a first domain to a second, and back, means over folds ({captions.of_what(study)}). The largest of "
            f"{compare.counted(len(known), 'difference')} is {most['arm']}, {most['first']} to {most['second']} "
            f"{most['there']:.2f}, back {most['back']:.2f}; the largest of several is larger than chance alone makes a single "
            "one."
        )
    return Exhibit("06_asymmetry", "There and back", caption, table, None, SECTION, table.round(3))


def tumour_against_scanner(study: Settings, table: pd.DataFrame) -> Exhibit:
    """What another tumour and another scanner cost; ``table`` as `compare_domains.tumour_against_scanner` returns it."""
    over = sorted(
        {"folds" if what == "folds" else f"draws of {what}" for what in table.loc[table["auroc_drop"].notna(), "over"]}
    )
    caption = (
        f"AUROC lost by training elsewhere, against training on the tested tumour itself, on the same patches "
        f"({captions.of_what(study)}). Means over n pairs of domains, with 95 % intervals over "
        f"{captions.listed(over or ['folds'])}; where there is none, why says what the data lack."
    )
    return Exhibit("06_tumour_against_scanner", "Tumour or scanner", caption, table, None, SECTION, table.round(3))
