"""One encoder's embeddings under several estimators: what is the fold's doing and what the estimator's."""

import numpy as np
import pandas as pd

from mfcore.analysis import captions, compare, compare_probes
from mfcore.analysis.exhibit import Exhibit
from mfcore.analysis.figures import CHANCE, WIDTH_INCH, drawing, legend_below, title
from mfcore.study.config import Settings


def audit(study: Settings, scores: pd.DataFrame, titles: dict[str, str], encoder: str, name: str) -> Exhibit:
    """AUROC and balanced accuracy with all the data, a line a fold over the estimators, their mean and SD beside it.

    scores: as `compare_probes.scores` returns it; titles: of the estimators; name: of the exhibit's files.
    """
    full = scores[scores["size"] == scores["size"].max()]
    names = list(dict.fromkeys(full["estimator"]))
    places, n_folds = np.arange(len(names)), compare.counted(full["fold"].nunique(), "fold")
    with drawing(study, 1, 2, (WIDTH_INCH, 0.42 * len(names) + 1.35), sharey=True) as (figure, axes):
        for axis, metric in zip(axes[0], ("auroc", "balanced_accuracy"), strict=True):
            by_fold = full.pivot(index="estimator", columns="fold", values=metric).loc[names]
            for _, fold in by_fold.items():
                axis.plot(fold, places, color="0.72", linewidth=0.9, marker="o", markersize=2.5, label="a fold")
            style = {"fmt": "D", "color": "black", "capsize": 2.5, "markersize": 4, "linewidth": 1.2}
            axis.errorbar(by_fold.mean(axis=1), places - 0.16, xerr=by_fold.std(axis=1), label="mean ± SD", **style)
            axis.axvline(0.5, **CHANCE)
            axis.set_xlabel(compare_probes.TITLES[metric])
            axis.grid(axis="y", visible=False)
        axes[0][0].set_yticks(places, [titles[estimator] for estimator in names])
        axes[0][0].invert_yaxis()
        legend_below(figure, axes[0], 3)
        n_train, n_test = (f"{full[column].mean():,.0f}" for column in ("n_train", "n_test"))
        title(figure, f"{encoder}: {n_train} training and {n_test} test patches, {n_folds}")
    caption = (
        f"AUROC and balanced accuracy with all the data under each estimator ({captions.of_what(study)}). A grey line is a "
        f"fold, black the mean and sample SD of {n_folds}. Grey lines that run alike are folds in which slides, not "
        "estimators, decide; lines that cross, folds in which each estimator finds something else."
    )
    return Exhibit(name, f"Estimators on the embeddings of {encoder}", caption, scores, figure, "Audit of the probe")
