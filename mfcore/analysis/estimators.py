"""What a probe's numbers owe to how it is fitted, and to how libraries use the encoder."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import seaborn as sns

from mfcore import store
from mfcore.analysis.exhibit import (
    Exhibit,
    bounds,
    cells,
    finished,
    folds as over_folds,
    in_style,
    of_what,
    rounded,
)
from mfcore.analysis.first_look import class_colours
from mfcore.analysis.scores import (
    across_sizes,
    full_size,
    mean_sd,
    published,
    scaling_table,
)
from mfcore.data import splits
from mfcore.encoders.card import EncoderCard, conventions as known_ways
from mfcore.encoders.readout import READOUTS
from mfcore.measures import binary
from mfcore.measures.resampling import by_fold
from mfcore.measures.statistics import Folds, paired_test
from mfcore.study import data as study_data
from mfcore.study.predictions import PROBE, load_arm, scores as scores_of
from mfcore.study.study import Study

STAGE, OWN = "probes", "uni"
AT_SHARE = "balanced_accuracy_at_share"
TITLES = {
    "auroc": "AUROC",
    "balanced_accuracy": "balanced accuracy",
    AT_SHARE: "at training share",
    "train_auroc": "AUROC in training",
}
SHOWN = ("auroc", "balanced_accuracy")
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
    """How a probe's scores of the two classes lie, with all the data; ``run`` as above."""
    settings, full = study.settings, full_size(load_arm(run, encoder, PROBE))
    names, edges = {0: settings.data.negative, 1: settings.data.positive}, np.linspace(0, 1, 21)
    counts = [
        pd.DataFrame(
            {
                "label": label,
                "low": edges[:-1],
                "high": edges[1:],
                "n": np.histogram(part, edges)[0],
            }
        )
        for label, part in full.groupby("label")["score"]
    ]
    grid = sns.displot(
        full.assign(class_=full["label"].map(names)), x="score", hue="class_", bins=list(edges),
        palette=class_colours(settings), stat="proportion", common_norm=False, element="step",
        height=3, aspect=1.7,
    )  # fmt: skip
    grid.set_axis_labels("score", "share of the class")
    figure = finished(study, grid.figure, f"{encoder}, n = {len(full):,} scores of all folds")
    caption = (
        f"Scores of the two classes by the probe on {encoder}, with all the data "
        f"({of_what(settings)})."
    )
    return Exhibit(f"03_{run.folder.name}", "Scores", caption, pd.concat(counts), figure, "Probes")


# ---- audit: one encoder's embeddings under several estimators ----


def find(study: Study, encoder: str) -> store.Run:
    """The audit of an encoder's probe on the study's splits; else raises StoreError."""
    splits_run = study_data.find_splits(study.settings, study.folder)
    known = {"probe": study.settings.probe.linear, "splits": splits_run.key}
    return store.find_run(study.folder, STAGE, encoder, known)


def titles_of(run: store.Run) -> dict[str, str]:
    """Title of each estimator of an audit, by its name."""
    estimators = run.identity["config"]["estimators"]
    return {name: facts["title"] for name, facts in estimators.items()}


def scores(run: store.Run) -> pd.DataFrame:
    """The columns of ``fits.csv``, metrics on the test patches, ``n_test``: a row a fit.

    ``auroc``, ``balanced_accuracy`` at a score of 0.5, and AT_SHARE. An estimator that doesn't
    weigh the classes scores the rarer one low; for it AT_SHARE takes the share of class 1 among its
    training patches as the threshold, which needs no test label; for one that weighs them, 0.5
    again.
    """
    fits, by = pd.read_csv(run.path("fits.csv")), ["estimator", "fold", "size"]
    groups = dict(list(store.read_parquet(run.path("predictions.parquet")).groupby(by)))
    estimators, rows = run.identity["config"]["estimators"], []
    for fit in fits.itertuples():
        part, by_half = groups[fit.estimator, fit.fold, fit.size], binary.THRESHOLD
        label, score = part["label"].to_numpy(), part["score"].to_numpy()
        is_weighed = estimators[fit.estimator]["weighs_classes"]
        called = score > (by_half if is_weighed else fit.train_share)
        at_share = binary.balanced_accuracy(label, called.astype(float))
        balanced = binary.balanced_accuracy(label, score)
        rows.append((binary.auroc(label, score), at_share, len(part), balanced))
    columns = ["auroc", AT_SHARE, "n_test", "balanced_accuracy"]
    return fits.join(pd.DataFrame(rows, columns=columns))


def table(fits: pd.DataFrame) -> pd.DataFrame:
    """Mean and sample SD over folds, a row an estimator and size, in the order of the audit.

    fits: as `scores`. Each of TITLES with ``_sd``; ``n_train``, ``n_steps`` and their like are
    means over folds; ``ended`` counts how the fits ended, in words; ``n_folds``.
    """
    by = ["estimator", "size"]
    ended = fits.groupby([*by, "ended"], sort=False).size().reset_index("ended", name="n")
    ended = (ended["n"].astype(str) + " " + ended["ended"]).groupby(by).agg(", ".join)
    means = fits.groupby(by)[["n_test", "n_steps", "n_epochs", "best_epoch", "sklearn_c"]].mean()
    return (
        mean_sd(fits, by, TITLES, "n_train").join(means, on=by).join(ended.rename("ended"), on=by)
    )


def folds(run: store.Run, seed: int) -> dict[str, Folds]:
    """AUROC by fold with all the data, of each estimator; ``seed`` draws the tested cases."""
    rows = store.read_parquet(run.path("predictions.parquet"))
    groups = rows[rows["size"] == rows["size"].max()].groupby("estimator", sort=False)
    return {name: by_fold(part, "auroc", seed, splits.ALL) for name, part in groups}


def differences(fits: pd.DataFrame, by_estimator: Mapping[str, Folds]) -> pd.DataFrame:
    """AUROC of each estimator less OWN's, with all the data: ``estimator, difference, low, high``.

    Paired over folds, with the 95 % interval of `statistics.paired_test`. fits: as `scores`.
    by_estimator: as `folds`.
    """
    full, rows = fits[fits["size"] == fits["size"].max()], []
    for name, one in by_estimator.items():
        if name != OWN:
            counts = full[["n_train", "n_test"]].mean()
            span = paired_test(one, by_estimator[OWN], *counts).interval
            rows.append((name, span.estimate, span.low, span.high))
    return pd.DataFrame(rows, columns=["estimator", "difference", "low", "high"])


def by_size(rows: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """AUROC at every size for the eye: estimators down, sizes across."""
    n_train = rows.groupby("size")["n_train"].mean()
    shown = rows.assign(cell=cells(rows, "auroc"), estimator=rows["estimator"].map(titles))
    order = shown["estimator"].unique()
    shown = shown.pivot(index="estimator", columns="size", values="cell").loc[order]
    shown.columns = [f"{splits.percent(size)} % ({n_train[size]:,.0f} patches)" for size in shown]
    return shown.reset_index()


@in_style
def audit(study: Study, run: store.Run) -> Exhibit:
    """AUROC and balanced accuracy under each estimator: a line a fold, mean and SD."""
    encoder, fits, titles = run.identity["name"], scores(run), titles_of(run)
    full = fits[fits["size"] == fits["size"].max()]
    long = full.assign(estimator=full["estimator"].map(titles)).rename(columns=TITLES)
    long = long.melt(["estimator", "fold"], [TITLES[name] for name in SHOWN], "metric", "score")
    grid = sns.FacetGrid(long, col="metric", height=1.2 + 0.35 * len(titles))
    line = {"units": "fold", "estimator": None, "orient": "y", "sort": False, "marker": "o"}
    grid.map_dataframe(
        sns.lineplot, "score", "estimator", label="a fold", **line | {"color": "0.72"}
    )
    point = {"errorbar": "sd", "linestyle": "none", "color": "black", "legend": False}
    grid.map_dataframe(sns.pointplot, "score", "estimator", label="mean ± SD", **point)
    grid.set_titles("{col_name}").set_axis_labels("", "")
    n_train, n_test = full[["n_train", "n_test"]].mean()
    text = f"{encoder}: {n_train:,.0f} training and {n_test:,.0f} test patches"
    rows = table(fits)
    caption = (
        "AUROC and balanced accuracy with all the data under each estimator "
        f"({of_what(study.settings)}). A grey line is a fold, black the mean and sample SD of "
        f"{over_folds(rows)}. Parallel grey lines: slides, not estimators, decide."
    )
    title, figure = f"Estimators on the embeddings of {encoder}", finished(study, grid.figure, text)
    rows = rows[rows["size"] == rows["size"].max()]
    readable = rounded(rows.assign(estimator=rows["estimator"].map(titles)))
    return Exhibit(f"03_{run.folder.name}", title, caption, fits, figure, SECTION, readable)


def audits(study: Study) -> Iterator[Exhibit]:
    """The estimators of the probe audit, and the AUROC of each on every encoder audited."""
    settings, runs = study.settings, {}
    for encoder in settings.probe_audit:
        with contextlib.suppress(store.StoreError):
            runs[encoder] = find(study, encoder)
    if runs:
        yield _definitions(next(iter(runs.values())))
    for encoder, run in runs.items():
        titles, fits = titles_of(run), scores(run)
        shown = by_size(table(fits), titles)
        against = differences(fits, folds(run, study.seed))
        words = {}
        for row in against.itertuples():
            span = bounds(row.low, row.high) or "no interval"
            words[titles[row.estimator]] = f"{row.difference:+.3f} ({span})"
        shown["less this study's probe"] = shown["estimator"].map(words).fillna("–")
        caption = (
            f"AUROC of each estimator on the embeddings of {encoder} by size, mean ± SD over "
            "folds, and with all the data less that of this study's own probe, with its 95 % "
            f"interval ({of_what(settings)})."
        )
        name, title = f"03_estimators_{store.file_name(encoder)}", f"Estimators by size: {encoder}"
        yield Exhibit(name, title, caption, shown, section=SECTION)
    if runs and "amibr_probes.csv" in settings.source.published:
        caption = (
            "Published on AMi-Br, for orientation: Banerjee et al. 2025 (arXiv 2506.21444), from "
            "the outputs of their public notebooks, on its held-out 826 figures. These are other "
            "slides and splits than this study's."
        )
        theirs = published("amibr_probes.csv")
        yield Exhibit("03_published_probes", "Published", caption, theirs, section=SECTION)


def _definitions(run: store.Run) -> Exhibit:
    """What each estimator is, as the record of an audit describes it."""
    shown = pd.DataFrame(run.identity["config"]["estimators"].values())
    words = {
        "weighs_classes": {True: "both alike", False: "no"},
        "uses_validation": {True: "training, and validation for stopping", False: "training only"},
    }
    shown = shown.assign(**{name: shown[name].map(each) for name, each in words.items()})
    names = {"title": "estimator", "uses_validation": "patches used", "source": "after"}
    columns = [
        "title",
        "objective",
        "features",
        "optimiser",
        "weighs_classes",
        "uses_validation",
        "source",
    ]
    caption = (
        "What published work calls a linear probe, and one control, given the same embeddings and "
        "splits. D: dimensions of the embedding, K: classes, W: weights of K rows, w: their "
        "difference. An estimator that doesn't weigh the classes scores the rarer class low, which "
        "AUROC doesn't see."
    )
    table = shown[columns].rename(columns=names)
    return Exhibit("03_estimators", "The estimators", caption, table, section=SECTION)


# ---- conventions: one encoder as several libraries use it ----


def conventions_table(study: Study) -> pd.DataFrame:
    """A row for the authors' card of ``conventions`` and for each library's way with it.

    ``library, card, departs`` (in words), ``n_dims``; ``distance_median`` and ``distance_max``: of
    a patch's embedding from that under the authors' card, relative to its norm, NaN where the two
    have no part in common (of a class token beside a mean, the class token counts); ``auroc,
    auroc_sd, balanced_accuracy, balanced_accuracy_sd``: of the probe with all the data, mean and
    sample SD over folds; ``difference, low, high``: of the AUROC from that under the authors' card,
    paired over folds. NaN where embeddings or probe are not there yet. Without ``conventions``
    there is no row, nor where the study embeds the encoder otherwise than its authors
    (`embeds_otherwise`): there is nothing to compare with. Raises StoreError where there are no
    splits.
    """
    name = study.settings.conventions
    if not name or embeds_otherwise(study):
        return pd.DataFrame()
    ways = [(way.library, way.card, way.note) for way in known_ways().get(name, ())]
    metrics, rows = [column for score in SHOWN for column in (score, f"{score}_sd")], []
    first_card, (base, predicted) = study.card(name), _measured(study, name)
    for library, card, note in [(AUTHORS, name, ""), *ways]:
        this, (features, predictions) = study.card(card), _measured(study, card)
        departs = "; ".join(filter(None, [differs(first_card, this), note]))
        row = {"library": library, "card": card, "n_dims": this.n_dims, "departs": departs}
        row |= _distance(base, features, first_card, this) | dict.fromkeys(metrics, np.nan)
        if len(predictions):
            row |= scaling_table(scores_of(predictions), study.settings).iloc[0][metrics].to_dict()
        rows.append(row | _difference(study.seed, predicted, predictions))
    return pd.DataFrame(rows)


def _measured(study: Study, card: str) -> tuple[np.ndarray | None, pd.DataFrame]:
    """Embeddings (n_patches, n_dims) under a card, and what its probe predicted with all the data.

    None, and an empty table, where nothing has been made by it.
    """
    features, predictions = None, pd.DataFrame()
    alone = Study(replace(study.settings, encoders=(card,)), study.folder)
    with contextlib.suppress(store.StoreError):
        features = store.read_embeddings(alone.embeddings(card))[0]
    if run := alone.runs.get(card):
        predictions = full_size(load_arm(run, card, PROBE))
    return features, predictions


def embeds_otherwise(study: Study) -> str:
    """The study's card of the encoder where that isn't its authors'; "" where it is."""
    switches = replace(study.settings.switches, encoder_input="card")
    theirs = Study(replace(study.settings, switches=switches), study.folder)
    ours, authors = (one.card(study.settings.conventions).name for one in (study, theirs))
    return "" if ours == authors else ours


def differs(base: EncoderCard, other: EncoderCard) -> str:
    """In words, how ``other`` differs from ``base`` in what decides an embedding; else ""."""
    left, right = base.identity(), other.identity()
    values = right | {"readout": READOUTS[other.readout].title}
    return ", ".join(
        SIDES.get(key, f"{key.replace('_', ' ')} {{}}").format(values[key])
        for key in right
        if left.get(key) != right[key] and key not in ("n_dims", "n_parameters", "sha256")
    )


def _distance(
    base: np.ndarray | None, other: np.ndarray | None, authors: EncoderCard, this: EncoderCard
) -> dict[str, float]:
    """Median and largest distance of a patch's two embeddings, relative to the first's norm."""
    have_class_token = all(
        READOUTS[card.readout].begins_with_class_token for card in (authors, this)
    )
    if base is None or other is None or not (authors.n_dims == this.n_dims or have_class_token):
        return {"distance_median": np.nan, "distance_max": np.nan}
    n = min(authors.n_dims, this.n_dims)
    distance = np.linalg.norm(base[:, :n] - other[:, :n], axis=1) / np.linalg.norm(
        base[:, :n], axis=1
    )
    return {"distance_median": float(np.median(distance)), "distance_max": float(distance.max())}


def _difference(seed: int, base: pd.DataFrame, other: pd.DataFrame) -> dict[str, float]:
    if not len(base) or not len(other):
        return dict.fromkeys(("difference", "low", "high"), np.nan)
    first, second = (by_fold(part, "auroc", seed, splits.ALL) for part in (other, base))
    n_test = base.groupby("fold").size().mean()
    one = paired_test(first, second, base["n_train"].mean(), n_test).interval
    return {"difference": one.estimate, "low": one.low, "high": one.high}


def conventions(study: Study) -> Exhibit:
    """One encoder's weights as several libraries use them (`conventions_table`)."""
    rows, encoder = conventions_table(study), study.settings.conventions
    name, title = "05_conventions", "One encoder, several libraries"
    if not len(rows):
        why = f"This study embeds {encoder} otherwise than its authors (`switches.encoder_input`)"
        why = why if encoder else "This study compares no libraries"
        caption = f"{why} ({of_what(study.settings)})."
        return Exhibit(name, title, caption, rows, None, "Conventions")
    caption = (
        f"The same weights of {encoder} as several libraries use them: distance of a patch's "
        "embedding from that under the authors' card, and the probe with all the data "
        f"({of_what(study.settings)}). Mean ± sample SD over folds; differences are paired over "
        "folds, with their 95 % interval; a dash: not run here, or it failed."
    )
    return Exhibit(name, title, caption, rows, None, "Conventions", rounded(rows))
