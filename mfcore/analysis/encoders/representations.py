"""Embeddings without a label: RankMe and ODCorr beside probes and tasks, and by sample size.

Embeddings of any other origin are measured by `of_file`, whatever made them.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from scipy import stats
from tqdm.auto import tqdm

from mfcore import store
from mfcore.analysis.encoders import tasks
from mfcore.analysis.exhibit import HOME_MADE, Exhibit, finished, in_style, look, of_what, widely
from mfcore.analysis.scores import full_size
from mfcore.measures.representation import (
    RepresentationError,
    Streaming,
    odcorr_abs_by_chance,
    odcorr_sq_by_chance,
)
from mfcore.measures.statistics import LEVEL, p_value, spread
from mfcore.streams import generator
from mfcore.study import pretrained
from mfcore.study.predictions import PROBE, load_arm, scores as scores_of
from mfcore.study.study import Study

SECTION = "Representations"
TITLES = {"rankme": "RankMe", "odcorr_abs": "ODCorr, mean |r|", "odcorr_sq": "ODCorr, mean r²"}
# sign of the papers' correlation with accuracy
EXPECTED = {"rankme": 1, "odcorr_abs": -1, "odcorr_sq": -1}
# independent dimensions
BY_CHANCE = {"odcorr_abs": odcorr_abs_by_chance, "odcorr_sq": odcorr_sq_by_chance}
MEASURED = ["n", "n_dims", "n_constant", *TITLES]
COLUMNS = ["encoder", "origin", *MEASURED, "auroc", "auroc_sd", "n_folds"]
ON_TASKS = ["task", "encoder", "origin", *MEASURED]
ON_SCORES = ["measured_on", "metric_of_task", "score", "score_sd", "n_runs"]
FEATURES = "features.h5"  # of a judging: the embedding of each of the task's images
N_FIRST = 64  # rows of the smallest subsample, doubled from there
N_DRAWS = 5  # of each subsample
CHUNK_ROWS = 4096
EXACT_UP_TO = 8  # encoders of which every order is tried for p
GREY = {"color": "0.55", "marker": "."}  # encoders that the study doesn't list


# ---- what is measured ----


def of_file(path: str | Path, dataset: str = "features") -> dict[str, float]:
    """RankMe and ODCorr of an HDF5 file's ``dataset`` (n, n_dims) or of a ``.npy`` file: MEASURED.

    The file is read in chunks. The layout of HDF5 is that of this package and of the field's tools;
    what else holds features goes as an array to `mfcore.measures.representation.rankme` and its
    like. Raises StoreError where there is no such file or dataset or it can't be read,
    RepresentationError for features that aren't finite numbers.
    """
    import h5py

    path = Path(path)
    with contextlib.ExitStack() as opened:
        try:
            features = (
                np.load(path, mmap_mode="r")
                if path.suffix == ".npy"
                else opened.enter_context(h5py.File(path))[dataset]
            )
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise store.StoreError(
                f"{path} can't be read ({error}); give an HDF5 file with a dataset {dataset!r}, or "
                "an array that numpy.save wrote as .npy"
            ) from error
        if len(getattr(features, "shape", ())) != 2:
            raise store.StoreError(
                f"{path} holds no array of two dimensions; features are (n, n_dims), a row a patch"
            )
        try:
            stream = Streaming(features.shape[1])
            for first in range(0, len(features), CHUNK_ROWS):
                stream.add(features[first : first + CHUNK_ROWS])
            row = {"n": stream.n, "n_dims": stream.n_dims}
            row["n_constant"] = int(stream.constant_dims().sum())
            return row | {name: getattr(stream, name)() for name in TITLES}
        except RepresentationError as error:
            raise RepresentationError(f"{path}: {error}") from None


def files(study: Study) -> dict[str, Path]:
    """The embedding file of each of the study's encoders: the probe's, else the current one."""
    stored, by_encoder = {run.key: run for run in store.runs(study.folder, "embeddings")}, {}
    for encoder in study.settings.encoders:
        with contextlib.suppress(store.StoreError, KeyError):  # not embedded yet
            read = study.runs[encoder].identity["inputs"] if encoder in study.runs else {}
            run = stored[read["embeddings"]] if read else study.embeddings(encoder)
            if run.path("embeddings.h5").is_file():
                by_encoder[encoder] = run.path("embeddings.h5")
    return by_encoder


@cache
def encoders_table(study: Study) -> pd.DataFrame:
    """A row an encoder of the study that has embeddings, in the study's order: columns COLUMNS.

    ``origin``: "pretrained here" or "". MEASURED: as `of_file`. ``auroc``, sample ``auroc_sd``,
    ``n_folds``: what its probe reaches with all the data; NaN and 0 without a probe.
    """
    rows = []
    for encoder, file in files(study).items():
        row = {"encoder": encoder, **of_file(file), "n_folds": 0}
        if encoder in study.runs:
            full = full_size(load_arm(study.runs[encoder], encoder, PROBE))
            over = spread(scores_of(full)["auroc"])
            row |= {"auroc": over.mean, "auroc_sd": over.sd, "n_folds": over.n}
        rows.append(row)
    return _with_origin(study, pd.DataFrame(rows, columns=COLUMNS))


def _with_origin(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    is_own = [pretrained.is_of(study.settings, encoder) for encoder in table["encoder"]]
    return table.assign(origin=np.where(is_own, HOME_MADE, ""))


@cache
def judged_table(study: Study) -> pd.DataFrame:
    """RankMe and ODCorr of a task's images, a row a task and encoder or snapshot: ON_TASKS.

    Of tasks of classification: decoders of segmentation learn from maps of features, which aren't
    kept.
    """
    rows = [
        {"task": task, "encoder": encoder, **of_file(run.path(FEATURES))}
        for (task, encoder), run in tasks.runs(study).items()
        if run.path(FEATURES).is_file()
    ]
    return _with_origin(study, pd.DataFrame(rows, columns=ON_TASKS))


def tasks_table(study: Study) -> pd.DataFrame:
    """`judged_table` beside the scores: ON_TASKS and ON_SCORES.

    ``score`` is the mean over runs of what the task reports, ``metric_of_task``; ``score_sd`` its
    SD. ``measured_on``: the task whose images RankMe and ODCorr are of, as the study has it. Of
    pretrainings that differ in their seed alone the first: they are no encoders of their own.
    """
    images = {task.name: task.measured_on for task in study.settings.tasks}
    firsts = pretrained.first_seeds(study.settings)
    scores = tasks.reported(tasks.scores_table(study))
    scores["metric_of_task"] = scores["metric"].map(tasks.TITLES)
    scores["measured_on"] = [images.get(name) or name for name in scores["task"]]
    stems = [encoder.partition("@")[0] for encoder in scores["encoder"]]
    is_first = np.array([firsts.get(stem, stem) == stem for stem in stems], dtype=bool)
    scores = scores[is_first].astype({"measured_on": str, "encoder": str})
    scores = scores.rename(columns={"mean": "score", "sd": "score_sd"})
    measured = judged_table(study).rename(columns={"task": "measured_on"})
    measured = measured.astype({"measured_on": str, "encoder": str})
    scores = scores[["task", "encoder", *ON_SCORES]].merge(measured, on=["measured_on", "encoder"])
    return scores[[*ON_TASKS, *ON_SCORES]]


def sizes_table(study: Study, n_draws: int = N_DRAWS) -> pd.DataFrame:
    """RankMe and ODCorr by number of patches: ``encoder, draw, n, n_dims``, both metrics.

    Of ``n_draws`` seeded orders of the patches, the same for every encoder, the first 64, 128 and
    so on: each subsample holds the one before it. The last is all patches, once (``draw`` 0).
    Raises StoreError where no encoder has embeddings.
    """
    rows = []
    for encoder, file in tqdm(files(study).items(), desc="subsamples", unit=" encoders"):
        features = store.read_embeddings(store.run_at(file.parent))[0]
        rows += [{"encoder": encoder} | row for row in subsampled(features, study.seed, n_draws)]
    if not rows:
        what = f"no encoder of study {study.name!r} has embeddings yet"
        raise store.StoreError(f"{study.folder}: {what}; run notebook 02")
    return pd.DataFrame(rows)


def subsampled(features: np.ndarray, seed: int, n_draws: int = N_DRAWS) -> Iterator[dict]:
    """The rows of `sizes_table` of one encoder's features (n, n_dims)."""
    sizes = sizes_of(len(features))
    for draw in range(n_draws):
        order = generator(seed, "representation", draw).permutation(len(features))
        stream = Streaming(features.shape[1])
        for n in sizes if draw == 0 else sizes[:-1]:
            stream.add(features[np.sort(order[stream.n : n])])
            measured = {name: getattr(stream, name)() for name in TITLES}
            yield {"draw": draw, "n": n, "n_dims": stream.n_dims} | measured


def sizes_of(n: int) -> list[int]:
    """Numbers of rows to look at: N_FIRST doubled while well below ``n``, then ``n`` itself."""
    return [size for i in range(32) if (size := N_FIRST * 2**i) <= 0.75 * n] + [n]


# ---- correlation with what a label says ----


def correlate(table: pd.DataFrame, value: str = "auroc") -> pd.DataFrame:
    """Each metric against ``table[value]``: ``metric, rho, low, high, p, least_p, n``.

    rho: Spearman's; ``low, high`` its 95 % interval by Fisher's z with the variance (1 + rho^2 / 2)
    / (n - 3) of Bonett and Wright 2000 (Psychometrika 65), NaN for fewer than 4 encoders or a
    perfect order. p: two-sided, of every order of the encoders up to 8, by Student's t above.
    ``least_p``: the smallest that so many encoders could give. Snapshots (``NAME@STEP``) don't
    count: they are one encoder.
    """
    whole, rows = tasks.encoders_only(table), []
    for name in TITLES:  # fewer than two dimensions that vary have no ODCorr
        known = whole.dropna(subset=[name, value])
        rows.append({"metric": name, **_spearman(known[name].to_numpy(), known[value].to_numpy())})
    return pd.DataFrame(rows)


def correlate_tasks(table: pd.DataFrame) -> pd.DataFrame:
    """`correlate` with the score of each ``task``; table: as `tasks_table`."""
    groups = list(table.groupby("task", sort=False)) or [("", table)]
    return pd.concat(
        [correlate(part, "score").assign(task=task) for task, part in groups], ignore_index=True
    )


def _spearman(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    n = len(first)
    rho, p, low, high = (math.nan,) * 4
    if n > 2 and min(len(np.unique(first)), len(np.unique(second))) > 1:
        rho, p = (float(value) for value in stats.spearmanr(first, second))
        if n <= EXACT_UP_TO:
            one, other = (stats.rankdata(values) - (n + 1) / 2 for values in (first, second))
            orders = np.array(list(itertools.permutations(other)))  # (n!, n)
            p = float(np.mean(np.abs(orders @ one) >= abs(other @ one) - 1e-9))
        if n > 3 and abs(rho) < 1 - 1e-9:
            half = stats.norm.isf((1 - LEVEL) / 2) * math.sqrt((1 + rho**2 / 2) / (n - 3))
            low, high = (math.tanh(math.atanh(rho) + sign * half) for sign in (-1, 1))
    least = 2 / math.factorial(n) if n > 2 else math.nan  # of a perfect order, two-sided
    return {"rho": rho, "low": low, "high": high, "p": p, "least_p": least, "n": n}


# ---- exhibits ----


def one(study: Study, encoder: str) -> Exhibit:
    """One encoder's row of `rankme`, beside its probe."""
    run, table = study.runs[encoder], encoders_table(study)
    caption = (
        "RankMe and ODCorr of the embeddings of all patches, beside the AUROC of the probe "
        f"({of_what(study.settings)})."
    )
    table = table[table["encoder"] == encoder]
    name = f"03_representation-{store.file_name(encoder)}-{run.key}"
    return Exhibit(name, f"{encoder} without a label", caption, table, None, SECTION)


def rankme(study: Study) -> Exhibit:
    """RankMe and ODCorr of every encoder beside what its probe reaches."""
    table = encoders_table(study)
    caption = (
        "RankMe and ODCorr of each encoder's embeddings of all patches; kaiko 2024 don't say which "
        f"reading of ODCorr is theirs ({of_what(study.settings)}). AUROC: of the probe with all "
        "the data, mean and SD over folds; constant dimensions are left out of ODCorr. RankMe "
        "can't exceed the number of dimensions, so that it ranks encoders of one width."
    )
    return Exhibit("10_representations", "Representations", caption, table, None, SECTION)


def probe_correlations(study: Study) -> Exhibit:
    """Spearman's correlation of each metric with the probes' AUROC, over encoders."""
    table = correlate(encoders_table(study))
    return _related(study, "10_correlations", "Correlation with AUROC", table)


def task_correlations(study: Study) -> Exhibit:
    """Spearman's correlation of each metric with the scores on each task, over encoders."""
    table = correlate_tasks(tasks_table(study))
    return _related(study, "10_task_correlations", "Correlation with scores on tasks", table)


def _related(study: Study, name: str, title: str, table: pd.DataFrame) -> Exhibit:
    caption = (
        f"Spearman's ρ over encoders with its 95 % interval ({of_what(study.settings)}); the "
        "papers saw RankMe rise and ODCorr fall with accuracy. Each p stands by itself, "
        "uncorrected for their number; least_p is that of a perfect order. "
        f"{int(table['n'].max())} encoders that share architectures or training data count for "
        "fewer than they are."
    )
    return Exhibit(name, title, caption, table, None, SECTION)


def against_probes(study: Study) -> Exhibit:
    """AUROC of each encoder's probe against RankMe and both ODCorr (Fig. 5 of kaiko 2024)."""
    table = encoders_table(study)
    rows = table.rename(columns={"auroc": "score", "auroc_sd": "score_sd"}).dropna(subset="score")
    rows = rows.assign(task="probe", measured_on="probe", metric_of_task="AUROC")
    return _against(study, "10_against_probes", "Metric against accuracy", table, rows)


def against_tasks(study: Study) -> Exhibit:
    """Scores on each task against RankMe and both ODCorr of the images that the study names."""
    table = tasks_table(study)
    return _against(study, "10_against_tasks", "Metric against a task's score", table, table)


@in_style
def _against(
    study: Study, name: str, heading: str, table: pd.DataFrame, rows: pd.DataFrame
) -> Exhibit:
    """Scores against metrics; rows: as `tasks_table`, those that are drawn of ``table``.

    Encoders that the study doesn't list are grey. Snapshots, which lie on their encoder, are in the
    table alone.
    """
    related, settings = correlate_tasks(rows), study.settings
    if rows.empty:
        caption = f"There is no encoder with a score yet ({of_what(settings)})."
        return Exhibit(name, heading, caption, table, None, SECTION)
    rows = tasks.encoders_only(rows)
    is_listed = rows["encoder"].isin(settings.encoders)
    shown = rows["encoder"].where(is_listed, f"others, {HOME_MADE}")
    looks = [look(settings, n, PROBE) if n in settings.encoders else GREY for n in shown.unique()]
    long = rows.assign(shown=shown).melt(
        ["shown", "task", "score", "score_sd"], list(TITLES), "metric"
    )
    grid = sns.FacetGrid(
        long, row="task", col="metric", hue="shown", sharex="col", sharey="row", height=2.8,
        hue_kws={key: [one[key] for one in looks] for key in GREY},
    )  # fmt: skip
    grid.map(plt.errorbar, "value", "score", "score_sd", linestyle="none", elinewidth=1, alpha=0.8)
    for row in related.itertuples():
        axis = grid.axes_dict[row.task, row.metric]
        axis.set_title("ρ: too few" if math.isnan(row.rho) else f"ρ = {row.rho:+.2f}")
        axis.set_xlabel(TITLES[row.metric])
    for axis, row in zip(grid.axes[:, 0], rows.drop_duplicates("task").itertuples(), strict=True):
        axis.set_ylabel(f"{row.task}:\n{row.metric_of_task}")
        widely(axis, "x", rows["rankme"])  # of encoders of different width
    figure = finished(study, grid.figure, f"n = {related['n'].max()} encoders", 3)
    others = rows[rows["measured_on"] != rows["task"]].drop_duplicates("task")
    but = [f", for {row.task} of {row.measured_on}'s images" for row in others.itertuples()]
    caption = (
        f"Score of each encoder against RankMe and ODCorr of the same images{''.join(but)}, as "
        "kaiko 2024, Fig. 5, set ODCorr against accuracy on natural images "
        f"({of_what(settings)}). Points and bars: mean and SD over folds of the probe, or over "
        "seeded runs of the heads; ρ: Spearman's over encoders, without snapshots. Over "
        f"{related['n'].max()} encoders a perfect order has {p_value(related['least_p'].min())}."
    )
    return Exhibit(name, heading, caption, table, figure, SECTION)


@in_style
def by_sample_size(study: Study) -> Exhibit:
    """RankMe and both ODCorr against the number of patches, a line an encoder."""
    table = sizes_table(study)
    sizes, names = np.unique(table["n"]), table["encoder"].unique()
    looks = pd.DataFrame([look(study.settings, name, PROBE) for name in names])
    grid = sns.relplot(
        table.melt(["encoder", "n"], list(TITLES), "metric"), kind="line", x="n", y="value",
        col="metric", hue="encoder", style="encoder", errorbar=("pi", 100),
        palette=list(looks["color"]), markers=list(looks["marker"]), dashes=False,
        height=3, aspect=0.8, facet_kws={"sharey": False},
    )  # fmt: skip
    for metric, axis in grid.axes_dict.items():
        axis.set(title=TITLES[metric], xlabel="patches, n", ylabel="", xscale="log")
        if metric in BY_CHANCE:
            chance = [BY_CHANCE[metric](n) for n in sizes]
            axis.plot(sizes, chance, ":", color="0.35", label="independent dimensions, by chance")
            axis.set_ylim(bottom=0)
    widely(grid.axes_dict["rankme"], "y", table["rankme"])
    draws = f"mean and range of {table['draw'].nunique()} draws"
    caption = (
        "RankMe and ODCorr of seeded, nested subsamples, the same patches for every encoder "
        f"({of_what(study.settings)}). Lines and bands: {draws}; dotted: what chance gives of so "
        "few patches. RankMe can't exceed the number of patches either, so that values of "
        "different numbers of patches don't compare."
    )
    figure = finished(study, grid.figure, draws, 3)
    return Exhibit("10_by_sample_size", "By sample size", caption, table, figure, SECTION)
