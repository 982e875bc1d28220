"""The probe audit's figure: each fold under each estimator, to tell what is the fold's doing and what the estimator's."""

import pandas as pd
from matplotlib.figure import Figure

from mfcore.analysis import compare, compare_probes
from mfcore.analysis.figures import WIDTH_INCH, drawing, legend_below, title
from mfcore.measures.statistics import spread
from mfcore.study.config import Study


def estimators(study: Study, found: pd.DataFrame, titles: dict[str, str], encoder: str) -> Figure:
    """AUROC and balanced accuracy with all the data, a line a fold over the estimators, their mean and SD beside it.

    found: as `compare_probes.scores` returns it; titles: of the estimators.
    """
    full = found[found["size"] == found["size"].max()]
    names = list(dict.fromkeys(full["estimator"]))
    with drawing(study, 1, 2, (WIDTH_INCH, 0.42 * len(names) + 1.35), sharey=True) as (figure, axes):
        for axis, metric in zip(axes[0], ("auroc", "balanced_accuracy"), strict=True):
            wide = full.pivot(index="estimator", columns="fold", values=metric).loc[names]
            places = range(len(names))
            for fold in wide.columns:
                axis.plot(wide[fold], places, color="0.72", linewidth=0.9, marker="o", markersize=2.5, label="a fold")
            overs = [spread(wide.loc[name]) for name in names]
            axis.errorbar(
                [over.mean for over in overs],
                [place - 0.16 for place in places],
                xerr=[over.sd for over in overs],
                fmt="D",
                color="black",
                capsize=2.5,
                markersize=4,
                linewidth=1.2,
                label="mean ± SD",
            )
            axis.axvline(0.5, color="0.55", linewidth=0.9, linestyle=":", label="chance")
            axis.set_xlabel(compare_probes.TITLES[metric])
            axis.grid(axis="y", visible=False)
        axes[0][0].set_yticks(range(len(names)), [titles[name] for name in names])
        axes[0][0].invert_yaxis()
        legend_below(figure, axes[0], 3)
        n_train, n_test = (f"{full[name].mean():,.0f}" for name in ("n_train", "n_test"))
        n_folds = compare.counted(full["fold"].nunique(), "fold")
        title(figure, f"{encoder}: {n_train} training and {n_test} test patches, {n_folds}")
    return figure
