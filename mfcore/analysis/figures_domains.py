"""Fig. 2 and what belongs to it: scores by the domain trained on and the domain tested on, beside the published means."""

import math

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from mfcore.analysis import compare
from mfcore.analysis.figures import (
    LEGEND_ROW_INCH,
    WIDTH_INCH,
    best_of_each_kind,
    drawing,
    few,
    legend_below,
    look,
    title,
    two_lines,
)
from mfcore.analysis.figures_scaling import CHANCE, rater_lines
from mfcore.measures import raters
from mfcore.study import pretrained
from mfcore.study.config import Study

SCALE = (0.4, 1.0)  # of the shades, the same in every study
DARKEST = 0.6  # of the map "Blues": black numbers are to be read on it
PUBLISHED_COLOUR = "0.3"
TEXT_PT = ((10, 8.5), (16, 7.5), (math.inf, 6))  # of a cell's number, by the most cells side by side


def best_arms(study: Study, table: pd.DataFrame) -> list[str]:
    """Of each kind of arm in a `compare.domain_matrix` the one with the highest mean out of domain; probes come last.

    The encoders that the study pretrained are a kind of their own here, the very last, unless one is the best probe of all.
    """
    out = table[table["domain"] != table["train_domain"]]
    home = out[out["arm"].isin([arm for arm in out["arm"].unique() if pretrained.is_of(study, arm)])]
    return list(dict.fromkeys([*best_of_each_kind(out, "mean"), *best_of_each_kind(home, "mean")]))


def published(study: Study) -> pd.DataFrame:
    """Tab. 2 of Ganz et al. 2024 (`compare.published_table`); no row where the study's classes are others than theirs."""
    table = compare.published_table()
    return table if "published_ganz_2024.csv" in study.source.published else table.iloc[:0]


def cross_domain(study: Study, matrix: pd.DataFrame, means: pd.DataFrame, beside: pd.DataFrame) -> Figure:
    """Fig. 2: AUROC by training and test domain, a panel for the best arm of each kind, all on one scale; below, the means.

    The means in and out of domain are of every arm, then the `published` ones, ``beside``. matrix, means: as
    `compare.domain_matrix` and `compare.cross_domain_table` return them.
    """
    arms, domains = best_arms(study, matrix), sorted(matrix["domain"].unique())
    size_pt = next(size_pt for most, size_pt in TEXT_PT if len(arms) * len(domains) <= most)
    below = 0.2 * (len(means) + len(beside) + bool(len(beside))) + 0.7
    above = 0.42 * len(domains) + 1.75
    with drawing(study, 2, len(arms), (WIDTH_INCH, above + below), sharey="row", height_ratios=(above, below)) as (
        figure,
        axes,
    ):
        turned = {"rotation": 90 if len(domains) > 3 else 0, "ma": "right" if len(domains) > 3 else "center"}
        for axis, arm in zip(axes[0], arms, strict=True):
            part = matrix[matrix["arm"] == arm]
            image = _matrix(axis, part, domains, size_pt)
            axis.set_xticks(range(len(domains)), [two_lines(d) for d in domains], **turned)
            axis.set_yticks(range(len(domains)), [two_lines(d) for d in domains])
            axis.grid(False)
            axis.spines[:].set_visible(False)
            axis.tick_params(length=0)
            axis.set_title(f"{arm}\n({compare.shown_kind(study, arm, part['kind'].iloc[0])})", fontsize=8)
            axis.set_xlabel("tested on")
        axes[0][0].set_ylabel("trained on")
        figure.colorbar(image, ax=axes[0], shrink=0.85, aspect=30, pad=0.01, label="AUROC, mean over folds")
        grid = axes[1][0].get_gridspec()
        for axis in axes[1]:
            axis.remove()
        _means(study, figure.add_subplot(grid[1, :]), means, beside)
        title(figure, f"{study.title}; mean ± SD over n = {compare.folds(matrix)}")
    return figure


def _matrix(axis: Axes, part: pd.DataFrame, domains: list[str], size_pt: float) -> AxesImage:
    """One arm's matrix, train rows, test columns: the mean in each cell, the SD under it, in domain bold and framed."""
    values, sds = (
        part.pivot(index="train_domain", columns="domain", values=name).reindex(index=domains, columns=domains).to_numpy()
        for name in ("mean", "sd")
    )
    shades = ListedColormap(colormaps["Blues"](np.linspace(0, DARKEST, 256)))
    image = axis.imshow(values, cmap=shades, vmin=SCALE[0], vmax=SCALE[1], aspect="auto")
    for i, j in np.ndindex(values.shape):
        if not np.isfinite(values[i, j]):
            axis.text(j, i, "–", ha="center", va="center")
            continue
        style = {"ha": "center", "va": "center", "textcoords": "offset points"}
        weight = "bold" if i == j else "normal"
        axis.annotate(f"{values[i, j]:.2f}", (j, i), (0, 4), fontsize=size_pt, fontweight=weight, **style)
        if np.isfinite(sds[i, j]):
            axis.annotate(f"±{sds[i, j]:.2f}".replace("0.", "."), (j, i), (0, -6), fontsize=min(7, size_pt), **style)
        if i == j:
            axis.add_patch(Rectangle((i - 0.48, i - 0.48), 0.96, 0.96, fill=False, edgecolor="black", linewidth=1.1))
    return image


def _means(study: Study, axis: Axes, means: pd.DataFrame, beside: pd.DataFrame) -> None:
    """A line an arm: its mean in domain (filled) and out of domain (open), with SD; the published ones below."""
    names = {}
    for place, row in enumerate([*means.itertuples(), *beside.itertuples()]):
        ours = place < len(means)
        style = look(study, row.arm, row.kind) if ours else {"color": PUBLISHED_COLOUR, "marker": "o"}
        style = {**style, "linestyle": "none", "capsize": 2, "markersize": 5, "linewidth": 1}
        place = place if ours else place + 1  # a line free between ours and the published
        names[place] = compare.shown_name(study, row.arm, row.kind) if ours else row.arm
        for shift, name, face in ((-0.17, "in_domain", style["color"]), (0.17, "out_of_domain", "white")):
            sd = np.nan_to_num(getattr(row, f"{name}_sd"))
            axis.errorbar(getattr(row, name), place + shift, xerr=sd, mfc=face, **style)
    if len(beside):
        said = "published: Ganz et al. 2024, Tab. 2, MIDOG 2022"
        axis.axhline(len(means) - 0.45, color="0.4", linewidth=0.8)
        axis.text(0.005, len(means) + 0.05, said, fontsize=8, va="center", transform=axis.get_yaxis_transform())
    axis.axvline(0.5, **CHANCE)
    axis.set_yticks(list(names), list(names.values()))
    axis.set_ylim(max(names) + 0.6, -0.6)
    axis.set_xlabel("AUROC in domain (filled) and out of domain (open), mean ± SD")
    axis.grid(axis="y", visible=False)


def by_test_domain(study: Study, tested: pd.DataFrame, human: pd.DataFrame | None = None) -> Figure:
    """Balanced accuracy by test domain, in domain (filled) and out of domain (open), with SD, and each domain's raters.

    tested: as `compare.by_test_domain` returns it; human: as `raters.table`. Of many arms, the best (`figures.few`).
    """
    arms, domains = few(tested, "mean"), sorted(tested["domain"].unique())
    step = 0.8 / (2 * len(arms))
    size_inch = (WIDTH_INCH, 3.1 + LEGEND_ROW_INCH * (len(arms) + 2))
    with drawing(study, 1, 1, size_inch) as (figure, axes):
        axis = axes[0][0]
        for place, arm in enumerate(arms):
            for side, where in enumerate((compare.IN_DOMAIN, compare.OUT_OF_DOMAIN)):
                part = tested[(tested["arm"] == arm) & (tested["where"] == where)]
                style = look(study, arm, part["kind"].iloc[0]) | {"linestyle": "none"} | ({"mfc": "white"} if side else {})
                part = part.set_index("domain").reindex(domains)
                x = np.arange(len(domains)) + (2 * place + side - len(arms) + 0.5) * step
                axis.errorbar(x, part["mean"], part["sd"].fillna(0), capsize=2.5, label=f"{arm}, {where}", **style)
        for i, domain in enumerate(domains):
            if raters.reference(human, "balanced_accuracy", domain):
                rater_lines(axis, human, domain, (i - 0.45, i + 0.45), named=False)
        axis.axhline(0.5, **CHANCE)
        axis.set_xticks(range(len(domains)), [two_lines(d) for d in domains])
        axis.grid(axis="x", visible=False)
        axis.set(xlabel="tested on", ylabel="balanced accuracy (mean ± SD)", xlim=(-0.5, len(domains) - 0.5), ylim=(None, 1.0))
        legend_below(figure, [axis])
        which = "" if len(arms) == tested["arm"].nunique() else "best arm of each kind, "
        title(figure, f"{study.title}; {which}SD over n = {compare.folds(tested)}")
    return figure
