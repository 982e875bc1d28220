"""What a probe's numbers owe to how it is fitted, and to how the encoder is used: audit and conventions."""

import contextlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import seaborn as sns

from mfcore import store
from mfcore.analysis.exhibit import (
    CHANCE,
    Exhibit,
    bounds,
    cells,
    finished,
    folds as over_folds,
    in_style,
    listed,
    of_what,
)
from mfcore.analysis.scores import full_size, mean_sd, published as published_table, scaling_table, wide as across_sizes
from mfcore.data import splits
from mfcore.encoders.card import EncoderCard, conventions as known_ways
from mfcore.encoders.readout import READOUTS
from mfcore.measures import binary
from mfcore.measures.resampling import by_fold
from mfcore.measures.statistics import Folds, paired_test
from mfcore.study import data as study_data
from mfcore.study.config import as_dict
from mfcore.study.predictions import PROBE, load_arm, scores as scores_of
from mfcore.study.study import Study

STAGE, OWN = "probes", "uni"
SLOW, FAST = "early_stopped_adam", "early_stopped_adam_fast"
AT_SHARE = "balanced_accuracy_at_share"
TITLES = {
    "auroc": "AUROC",
    "balanced_accuracy": "balanced accuracy",
    AT_SHARE: "at training share",
    "train_auroc": "AUROC in training",
}
AUTHORS = "the authors' card"
SIDES = {"resize_px": "resized to {} px", "crop_px": "cropped to {} px"}
SECTION = "Audit of the probe"


# ---- one probe ----


def by_training_size(study: Study, encoder: str, run: store.Run) -> Exhibit:
    """What a probe scores at every size; ``run``: the probe's, under any way to split."""
    table = scaling_table(scores_of(load_arm(run, encoder, PROBE)), study.settings)
    caption = (
        f"AUROC of the probe on {encoder} by the share of the training patches "
        f"({of_what(study.settings)}). Mean ± sample SD of {over_folds(table)}."
    )
    name = f"03_{run.folder.name}_by_size"
    return Exhibit(name, "Probe", caption, table, None, "Probes", across_sizes(table))


@in_style
def score_histogram(study: Study, encoder: str, run: store.Run) -> Exhibit:
    """How a probe's scores of the two classes lie, with all the data; ``run`` as for `by_training_size`."""
    settings, full = study.settings, full_size(load_arm(run, encoder, PROBE))
    names = {0: settings.data.negative, 1: settings.data.positive}
    edges = np.linspace(0, 1, 21)
    bins = [
        pd.DataFrame({"label": label, "low": edges[:-1], "high": edges[1:], "n": np.histogram(part["score"], edges)[0]})
        for label, part in ((label, full[full["label"] == label]) for label in names)
    ]
    grid = sns.displot(
        full.assign(class_=full["label"].map(names)), x="score", hue="class_", bins=list(edges), stat="proportion",
        common_norm=False, element="step", height=3, aspect=1.7,
    )  # fmt: skip
    grid.set_axis_labels("score", "share of the class")
    figure = finished(study, grid.figure, f"{encoder}, n = {len(full):,} scores of all folds")
    caption = f"Scores of the two classes by the probe on {encoder}, with all the data ({of_what(settings)})."
    return Exhibit(f"03_{run.folder.name}", "Scores", caption, pd.concat(bins), figure, "Probes")


# ---- audit: one encoder's embeddings under several estimators ----


def find(study: Study, encoder: str) -> store.Run:
    """The audit of an encoder's probe on the study's splits; raises StoreError where none is finished."""
    key = study_data.find_splits(study.settings, study.folder).key
    try:
        known = {"probe": as_dict(study.settings.probe), "splits": key}
        return store.find_known(study.folder, STAGE, encoder, known)
    except store.StoreError as error:
        raise store.StoreError(f"no finished audit of {encoder!r} on these splits: {error} Run notebook 03 with it") from None


def titles_of(run: store.Run) -> dict[str, str]:
    """Title of each estimator of an audit, by its name."""
    return {name: facts["title"] for name, facts in run.identity["config"]["estimators"].items()}


def scores(run: store.Run) -> pd.DataFrame:
    """A row an estimator, size and fold: the columns of ``fits.csv``, metrics on the test patches, ``n_test``.

    ``auroc``, ``balanced_accuracy`` at a score of 0.5, and AT_SHARE. An estimator that doesn't weigh the
    classes scores the rarer one low; for it AT_SHARE takes the share of class 1 among its training
    patches as the threshold, which needs no test label; for one that weighs them, 0.5 again.
    """
    fits = pd.read_csv(run.path("fits.csv"))
    predictions = store.read_parquet(run.path("predictions.parquet"))
    facts = run.identity["config"]["estimators"]
    groups, rows = dict(list(predictions.groupby(["estimator", "fold", "size"]))), []
    for fit in fits.itertuples():
        part = groups[fit.estimator, fit.fold, fit.size]
        label, score = part["label"].to_numpy(), part["score"].to_numpy()
        threshold = binary.THRESHOLD if facts[fit.estimator]["weighs_classes"] else fit.train_share
        at_share = binary.balanced_accuracy(label, (score > threshold).astype(float))
        row = {"auroc": binary.auroc(label, score), AT_SHARE: at_share, "n_test": len(part)}
        rows.append(row | {"balanced_accuracy": binary.balanced_accuracy(label, score)})
    return pd.concat([fits, pd.DataFrame(rows)], axis=1)


def table(fits: pd.DataFrame) -> pd.DataFrame:
    """Mean and sample SD over folds, a row an estimator and size, in the order of the audit.

    fits: as `scores`. Each of TITLES with ``_sd``; ``n_train``, ``n_steps`` and their like are means over
    folds; ``ended`` counts how the fits ended, in words; ``n_folds``.
    """
    by = ["estimator", "size"]
    groups = fits.groupby(by, sort=False)
    means = groups[["n_train", "n_test", "n_steps", "n_epochs", "best_epoch", "sklearn_c"]].mean()
    means["ended"] = groups["ended"].agg(lambda of: ", ".join(f"{n} {how}" for how, n in of.value_counts(sort=False).items()))
    return mean_sd(fits, by, list(TITLES), "size").join(means, on=by)


def folds(run: store.Run, seed: int) -> dict[str, Folds]:
    """AUROC by fold with all the data, of each estimator of an audit; ``seed`` draws the tested cases."""
    predictions = store.read_parquet(run.path("predictions.parquet"))
    full = predictions[predictions["size"] == predictions["size"].max()]
    return {name: by_fold(part, "auroc", seed, splits.ALL) for name, part in full.groupby("estimator", sort=False)}


def differences(fits: pd.DataFrame, by_estimator: Mapping[str, Folds], base: str = OWN) -> pd.DataFrame:
    """AUROC of each estimator less one's, with all the data: ``estimator, difference, low, high``.

    Paired over folds, with the 95 % interval of `statistics.paired_test`. fits: as `scores`.
    by_estimator: as `folds`.
    """
    full, rows = fits[fits["size"] == fits["size"].max()], []
    counts = full["n_train"].mean(), full["n_test"].mean()
    for estimator in (name for name in by_estimator if name != base):
        one = paired_test(by_estimator[estimator], by_estimator[base], *counts).interval
        rows.append((estimator, one.estimate, one.low, one.high))
    return pd.DataFrame(rows, columns=["estimator", "difference", "low", "high"])


def wide(rows: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """`table` with all the data for the eye: "mean ± SD" in the cells, how the fits ended."""
    full = rows[rows["size"] == rows["size"].max()]
    stopped = [
        f" ({epochs:,.0f} epochs, tested at {best:,.0f})" if np.isfinite(epochs) else ""
        for epochs, best in zip(full["n_epochs"], full["best_epoch"], strict=True)
    ]
    shown = {"estimator": full["estimator"].map(titles)}
    shown |= {title: cells(full, name) for name, title in TITLES.items()}
    shown |= {"steps": [f"{n:,.0f}" for n in full["n_steps"]], "ended": full["ended"]}
    return pd.DataFrame(shown).assign(steps=lambda shown: shown["steps"] + stopped)


def by_size(rows: pd.DataFrame, titles: Mapping[str, str], metric: str) -> pd.DataFrame:
    """One metric at every size for the eye: estimators down, sizes across."""
    n_train = rows.groupby("size")["n_train"].mean()
    shown = rows.assign(cell=cells(rows, metric), estimator=rows["estimator"].map(titles))
    order = shown["estimator"].unique()
    shown = shown.pivot(index="estimator", columns="size", values="cell").loc[order]
    shown.columns = [f"{splits.percent(size)} % ({n_train[size]:,.0f} patches)" for size in shown]
    return shown.reset_index()


@in_style
def audit(study: Study, run: store.Run) -> Exhibit:
    """AUROC and balanced accuracy with all the data under each estimator, a line a fold, mean and SD."""
    encoder, fits, titles = run.identity["name"], scores(run), titles_of(run)
    full = fits[fits["size"] == fits["size"].max()]
    long = full.assign(estimator=full["estimator"].map(titles)).melt(
        ["estimator", "fold"], ["auroc", "balanced_accuracy"], "metric", "score"
    )
    grid = sns.catplot(
        long, kind="point", x="score", y="estimator", col="metric", errorbar="sd", color="black",
        markers="D", linestyle="none", capsize=0.2, linewidth=1.2, markersize=4,
        height=1.2 + 0.35 * len(titles), aspect=1, label="mean ± SD",
    )  # fmt: skip
    for metric, axis in grid.axes_dict.items():
        sns.lineplot(
            long[long["metric"] == metric], x="score", y="estimator", units="fold", estimator=None,
            orient="y", sort=False, color="0.72", zorder=1, linewidth=0.9, marker="o", markersize=3, ax=axis,
            label="a fold",
        )  # fmt: skip
        axis.legend_ = None
        axis.axvline(0.5, **CHANCE)
        axis.set_title(TITLES[metric])
    grid.set_axis_labels("", "")
    n_train, n_test = (f"{full[column].mean():,.0f}" for column in ("n_train", "n_test"))
    text = f"{encoder}: {n_train} training and {n_test} test patches"
    figure = finished(study, grid.figure, text, 3)
    rows = table(fits)
    caption = (
        f"AUROC and balanced accuracy with all the data under each estimator "
        f"({of_what(study.settings)}). A grey line is a fold, black the mean and sample SD of "
        f"{over_folds(rows)}. Parallel grey lines: slides, not estimators, decide."
    )
    title = f"Estimators on the embeddings of {encoder}"
    name = f"03_{run.folder.name}"
    return Exhibit(name, title, caption, fits, figure, "Audit of the probe", wide(rows, titles))


def published() -> pd.DataFrame:
    """What Banerjee et al. 2025 report for AMi-Br's held-out part: ``arm, kind``, scores with ``_sd``."""
    return published_table("amibr_probes.csv")


# ---- conventions: one encoder as several libraries use it ----


def conventions_table(study: Study) -> pd.DataFrame:
    """A row for the authors' card of ``conventions`` and for each library's way with it.

    ``library, card, departs`` (in words), ``n_dims``; ``distance_median`` and ``distance_max``: of a
    patch's embedding from that under the authors' card, relative to its norm, NaN where the two have no
    part in common (of a class token beside a mean, the class token counts); ``auroc, auroc_sd,
    balanced_accuracy, balanced_accuracy_sd``: of the probe with all the data, mean and sample SD over
    folds; ``difference, low, high``: of the AUROC from that under the authors' card, paired over folds.
    NaN where embeddings or probe are not there yet, nor those of the authors' card where the study
    embeds otherwise (`embeds_otherwise`). Without ``conventions`` there is no row. Raises StoreError
    where there are no splits.
    """
    name = study.settings.conventions
    if not name:
        return pd.DataFrame()
    lacking, own = name if embeds_otherwise(study) else "", _by_authors(study)
    ways = [(AUTHORS, name, ""), *((way.library, way.card, way.note) for way in known_ways().get(name, ()))]
    measured = {card: _measured(study, card, lacking) for _, card, _ in ways}
    base_features, base_predictions = measured[name]
    rows = []
    for library, card_name, note in ways:
        card, (features, predictions) = own, measured[card_name]
        if card_name != name:
            card = study.card(card_name)
        row: dict = {"library": library, "card": card_name, "n_dims": card.n_dims}
        row["departs"] = "; ".join(filter(None, [differs(own, card), note]))
        row |= _distance(base_features, features, own, card)
        for metric in ("auroc", "balanced_accuracy"):
            row |= {metric: np.nan, f"{metric}_sd": np.nan}
        if len(predictions):
            row |= (
                scaling_table(scores_of(predictions), study.settings)
                .iloc[0][["auroc", "auroc_sd", "balanced_accuracy", "balanced_accuracy_sd"]]
                .to_dict()
            )
        rows.append(row | _difference(study.seed, base_predictions, predictions))
    return pd.DataFrame(rows)


def _measured(study: Study, card: str, lacking: str) -> tuple[np.ndarray | None, pd.DataFrame]:
    """Embeddings (n_patches, n_dims) under a card, and what its probe predicted with all the data.

    None, and an empty table, where the card is ``lacking`` or nothing has been made by it.
    """
    features, predictions = None, pd.DataFrame()
    if card == lacking:  # what the study calls so was made by another card
        return features, predictions
    alone = Study(replace(study.settings, encoders=(card,)), study.folder)
    with contextlib.suppress(store.StoreError):
        features = store.read_embeddings(alone.embeddings(card))[0]
    if run := alone.runs.get(card):
        predictions = full_size(load_arm(run, card, PROBE))
    return features, predictions


def _by_authors(study: Study) -> EncoderCard:
    """The card of ``conventions`` as its authors have it, whatever the study's own switch says."""
    switches = replace(study.settings.switches, encoder_input="card")
    theirs = Study(replace(study.settings, switches=switches), study.folder)
    return theirs.card(study.settings.conventions)


def embeds_otherwise(study: Study) -> str:
    """The card by which the study embeds the encoder where that isn't its authors'; "" where it is."""
    here = study.card(study.settings.conventions).name
    return "" if here == _by_authors(study).name else here


def differs(own: EncoderCard, other: EncoderCard) -> str:
    """In words, in what ``other`` differs from ``own`` that decides an embedding; empty where in nothing."""
    left, right = own.identity(), other.identity()
    values = right | {"readout": READOUTS[other.readout].title}
    return ", ".join(
        SIDES.get(key, f"{key.replace('_', ' ')} {{}}").format(values[key])
        for key in right
        if left.get(key) != right[key] and key not in ("n_dims", "n_parameters", "sha256")
    )


def _distance(base: np.ndarray | None, other: np.ndarray | None, own: EncoderCard, this: EncoderCard) -> dict[str, float]:
    """Median and largest distance of a patch's two embeddings, relative to the norm of the first."""
    have_class_token = all(READOUTS[card.readout].begins_with_class_token for card in (own, this))
    if base is None or other is None or not (own.n_dims == this.n_dims or have_class_token):
        return {"distance_median": np.nan, "distance_max": np.nan}
    n = min(own.n_dims, this.n_dims)
    apart = np.linalg.norm(base[:, :n] - other[:, :n], axis=1) / np.linalg.norm(base[:, :n], axis=1)
    return {"distance_median": float(np.median(apart)), "distance_max": float(apart.max())}


def _difference(seed: int, base: pd.DataFrame, other: pd.DataFrame) -> dict[str, float]:
    if not len(base) or not len(other):
        return dict.fromkeys(("difference", "low", "high"), np.nan)
    first, second = (by_fold(part, "auroc", seed, splits.ALL) for part in (other, base))
    n_test = base.groupby("fold").size().mean()
    one = paired_test(first, second, base["n_train"].mean(), n_test).interval
    return {"difference": one.estimate, "low": one.low, "high": one.high}


def conventions_readable(rows: pd.DataFrame) -> pd.DataFrame:
    """`conventions_table` for the eye: distances in per cent, scores as "mean ± SD", the difference signed."""
    shown = rows[["library", "departs", "n_dims"]].copy()
    shown["departs"] = shown["departs"].where(shown["departs"] != "", "in nothing")
    for name in ("distance_median", "distance_max"):
        shown[name] = [f"{100 * value:.1f} %" if np.isfinite(value) else "–" for value in rows[name]]
    shown = shown.assign(AUROC=cells(rows, "auroc"), balanced_accuracy=cells(rows, "balanced_accuracy"))
    shown["AUROC_against_authors"] = [
        f"{row.difference:+.3f} ({bounds(row.low, row.high)})".replace(" ()", "") if np.isfinite(row.low) else "–"
        for row in rows.itertuples()
    ]
    same = (rows["card"] == rows["card"].iloc[0]) & rows["auroc"].notna()
    shown.loc[same, "AUROC_against_authors"] = "the same card"
    shown.loc[rows["library"] == AUTHORS, ["departs", "AUROC_against_authors"]] = "–"
    return shown


def conventions(study: Study) -> Exhibit:
    """One encoder's weights as several libraries use them (`conventions_table`)."""
    rows, encoder = conventions_table(study), study.settings.conventions
    caption = (
        f"The same weights of {encoder or 'no encoder'} as several libraries use them: distance of a "
        f"patch's embedding from that under the authors' card, and the probe with all the data "
        f"({of_what(study.settings)}). Mean ± sample SD over folds; differences are paired over folds, "
        "with their 95 % interval; a dash: not run here."
    )
    otherwise = embeds_otherwise(study) if encoder else ""
    if otherwise:
        caption += (
            f" This study embeds {encoder} as the released code does (card {otherwise}), and has nothing by the "
            "authors' card to compare with: set `switches.encoder_input: card`."
        )
    elif len(rows) and len(absent := sorted(set(rows.loc[rows["auroc"].isna(), "card"]))):
        caption += f" Embedding or probe failed or hasn't run: {listed(absent)}."
    readable = conventions_readable(rows) if len(rows) else None
    return Exhibit("05_conventions", "One encoder, several libraries", caption, rows, None, "Conventions", readable)
