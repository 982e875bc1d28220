"""From the probe audit's predictions to tables: one encoder's embeddings under several estimators, side by side."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.analysis import compare
from mfcore.data import splits
from mfcore.measures import binary
from mfcore.measures.resampling import by_fold
from mfcore.measures.statistics import Folds, paired_difference, spread
from mfcore.study import data as study_data
from mfcore.study.config import Settings, as_dict

STAGE, OWN = "probes", "uni"
SLOW, FAST = "early_stopped_adam", "early_stopped_adam_fast"
AT_SHARE = "balanced_accuracy_at_share"
TITLES = {
    "auroc": "AUROC",
    "balanced_accuracy": "balanced accuracy",
    AT_SHARE: "at training share",
    "train_auroc": "AUROC in training",
}


def find(study: Settings, encoder: str, results: str | Path) -> store.Run:
    """The current audit of an encoder's probe on the study's splits; raises StoreError where none is finished."""
    known = {"probe": as_dict(study.probe), "splits": study_data.find_splits(study, Path(results)).key}
    try:
        return store.find_known(results, STAGE, encoder, known)
    except store.StoreError as error:
        raise store.StoreError(f"no finished audit of {encoder!r} on these splits: {error} Run notebook 03 with it") from None


def scores(run: store.Run) -> pd.DataFrame:
    """A row an estimator, size and fold: the columns of ``fits.csv``, the metrics on the test patches, and ``n_test``.

    ``auroc``, ``balanced_accuracy`` at a score of 0.5, and ``balanced_accuracy_at_share``. An estimator that doesn't weigh the
    classes scores the rarer one low; for it the last takes the share of class 1 among its training patches as the threshold,
    which needs no test label; for one that weighs them, 0.5 again.
    """
    fits = pd.read_csv(run.path("fits.csv"))
    predictions = store.read_parquet(run.path("predictions.parquet"))
    weighs = {name: facts["weighs_classes"] for name, facts in run.identity["config"]["estimators"].items()}
    groups, rows = dict(list(predictions.groupby(["estimator", "fold", "size"]))), []
    for fit in fits.itertuples():
        part = groups[fit.estimator, fit.fold, fit.size]
        label, score = part["label"].to_numpy(), part["score"].to_numpy()
        threshold = binary.THRESHOLD if weighs[fit.estimator] else fit.train_share
        rows.append(
            {
                "auroc": binary.auroc(label, score),
                "balanced_accuracy": binary.balanced_accuracy(label, score),
                AT_SHARE: binary.balanced_accuracy(label, (score > threshold).astype(float)),
                "n_test": len(part),
            }
        )
    return pd.concat([fits, pd.DataFrame(rows)], axis=1)


def titles_of(run: store.Run) -> dict[str, str]:
    """Title of each estimator of an audit, by its name."""
    return {name: facts["title"] for name, facts in run.identity["config"]["estimators"].items()}


def table(found: pd.DataFrame) -> pd.DataFrame:
    """Mean and sample SD over folds, a row an estimator and size, in the order of the audit.

    found: as `scores` returns it. Each of TITLES with ``_sd``; ``n_train``, ``n_steps`` and their like are means over folds;
    ``ended`` counts how the fits ended, in words; ``n_folds``.
    """
    rows = []
    for (estimator, size), part in found.groupby(["estimator", "size"], sort=False):
        row: dict = {"estimator": estimator, "size": size, "n_folds": len(part)}
        row |= {name: part[name].mean() for name in ("n_train", "n_test", "n_steps", "n_epochs", "best_epoch", "sklearn_c")}
        row["ended"] = ", ".join(f"{n} {how}" for how, n in part["ended"].value_counts(sort=False).items())
        for name in TITLES:
            over = spread(part[name])
            row |= {name: over.mean, f"{name}_sd": over.sd}
        rows.append(row)
    return pd.DataFrame(rows)


def folds(run: store.Run, seed: int) -> dict[str, Folds]:
    """AUROC by fold with all the data, of each estimator of an audit, as tests need it; ``seed`` draws the tested cases."""
    predictions = compare.read_predictions(run)
    full = predictions[predictions["size"] == predictions["size"].max()]
    return {name: by_fold(part, "auroc", seed, splits.ALL) for name, part in full.groupby("estimator", sort=False)}


def differences(found: pd.DataFrame, by_estimator: Mapping[str, Folds], base: str = OWN) -> pd.DataFrame:
    """AUROC of each estimator less one's, with all the data, paired over folds: ``estimator, difference, low, high``.

    found: as `scores`; by_estimator: as `folds`. The interval is that of `statistics.paired_test`.
    """
    full, rows = found[found["size"] == found["size"].max()], []
    n_train, n_test = full["n_train"].mean(), full["n_test"].mean()
    for estimator in (name for name in by_estimator if name != base):
        one = paired_difference(by_estimator[estimator], by_estimator[base], n_train, n_test)
        rows.append({"estimator": estimator, "difference": one.estimate, "low": one.low, "high": one.high})
    return pd.DataFrame(rows, columns=["estimator", "difference", "low", "high"])


def wide(rows: pd.DataFrame, titles: dict[str, str]) -> pd.DataFrame:
    """`table` with all the data for the eye: "mean ± SD" in the cells, how the fits ended. titles: of the estimators."""
    full = rows[rows["size"] == rows["size"].max()]
    shown = pd.DataFrame({"estimator": [titles[name] for name in full["estimator"]]})
    for name, title in TITLES.items():
        shown[title] = _cells(full, name)
    shown["steps"] = [
        f"{n:,.0f}" + (f" ({epochs:,.0f} epochs, tested at {best:,.0f})" if np.isfinite(epochs) else "")
        for n, epochs, best in zip(full["n_steps"], full["n_epochs"], full["best_epoch"], strict=True)
    ]
    shown["ended"] = full["ended"].to_list()
    return shown


def by_size(rows: pd.DataFrame, titles: dict[str, str], metric: str) -> pd.DataFrame:
    """One metric at every size for the eye: estimators down, sizes across. titles: of the estimators."""
    shown = (
        rows.assign(cell=_cells(rows, metric))
        .pivot(index="estimator", columns="size", values="cell")
        .loc[list(dict.fromkeys(rows["estimator"]))]
    )
    n_train = rows.groupby("size")["n_train"].mean()
    shown.columns = [f"{splits.percent(size)} % ({n_train[size]:,.0f} patches)" for size in shown.columns]
    shown.insert(0, "estimator", [titles[name] for name in shown.index])
    return shown.reset_index(drop=True)


def _cells(rows: pd.DataFrame, metric: str) -> list[str]:
    """ "0.84 ± 0.02" in one line."""
    pairs = zip(rows[metric], rows[f"{metric}_sd"], strict=True)
    return [compare.plus_minus(mean, sd).replace(" ", "\u00a0") for mean, sd in pairs]


def published() -> pd.DataFrame:
    """What Banerjee et al. report for AMi-Br's held-out part: ``arm, kind, balanced_accuracy, balanced_accuracy_sd, auroc``."""
    return pd.read_csv(compare.PUBLISHED / "published_amibr_probes.csv")
