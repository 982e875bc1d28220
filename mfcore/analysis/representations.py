"""What embeddings are worth without a label: RankMe and ODCorr beside what probes and tasks reach, and by sample size.

Embeddings of any other origin are measured by `of_file`, whatever made them.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from scipy import stats

from mfcore import store
from mfcore.analysis import tasks
from mfcore.analysis.exhibit import HOME_MADE, WIDTH_INCH, Exhibit, finished, in_style, look, of_what, widely
from mfcore.measures.representation import RepresentationError, Streaming, odcorr_abs_by_chance, odcorr_sq_by_chance
from mfcore.measures.statistics import LEVEL, spread
from mfcore.streams import generator
from mfcore.study import predictions, pretrained
from mfcore.study.config import Settings
from mfcore.study.study import Study
from mfcore.tasks import registry

if TYPE_CHECKING:
    import h5py

SECTION = "Representations"
TITLES = {"rankme": "RankMe", "odcorr_abs": "ODCorr, mean |r|", "odcorr_sq": "ODCorr, mean r²"}
EXPECTED = {"rankme": 1, "odcorr_abs": -1, "odcorr_sq": -1}  # the sign of the papers' correlation with accuracy
BY_CHANCE = {"odcorr_abs": odcorr_abs_by_chance, "odcorr_sq": odcorr_sq_by_chance}  # of independent dimensions
MEASURED = ["n", "n_dims", "n_constant", *TITLES]
COLUMNS = ["encoder", "origin", *MEASURED, "auroc", "auroc_sd", "n_folds"]
ON_TASKS = ["task", "encoder", "origin", *MEASURED]
FEATURES = "features.h5"  # of a judging: the embedding of each of the task's images
N_FIRST, N_DRAWS = 64, 5  # rows of the smallest subsample, doubled from there; how often they are drawn
CHUNK_ROWS = 4096
EXACT_UP_TO = 8  # encoders of which every order is tried for p
GREY = {"color": "0.65", "marker": ".", "zorder": 1}  # encoders that the study doesn't list, and snapshots


# ---- what is measured ----


def of_file(path: str | Path, dataset: str = "features") -> dict[str, float]:
    """RankMe and ODCorr of an HDF5 file's ``dataset`` (n, n_dims), or of a ``.npy`` file's array, read in chunks: MEASURED.

    The layout of HDF5 is that of this package and of the field's tools; what else holds features goes as an
    array to `mfcore.measures.representation.rankme` and its like. Raises StoreError where there is no such file
    or dataset or it can't be read, RepresentationError for features that aren't finite numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise store.StoreError(f"{path} is missing; give an HDF5 or .npy file with the features of a row a patch")
    if path.suffix == ".npy":
        return _in_chunks(_array(path), path)
    import h5py

    try:
        content = h5py.File(path)
    except OSError as error:
        raise store.StoreError(
            f"{path} can't be read as HDF5 ({error}); make it again, or save an array of another format by numpy.save as .npy"
        ) from error
    with content:
        if dataset not in content or getattr(content[dataset], "ndim", 0) != 2:
            held = {name: getattr(item, "shape", "a group") for name, item in content.items()}
            raise store.StoreError(f"{path} has no dataset {dataset!r} of shape (n, n_dims); it holds {held}")
        return _in_chunks(content[dataset], path)


def _array(path: Path) -> np.ndarray:
    """A .npy file's array (n, n_dims), left on the disk until it is read; raises StoreError."""
    try:
        features = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise store.StoreError(f"{path} can't be read as an array of numpy's ({error}); make it again") from error
    if features.ndim != 2:
        raise store.StoreError(f"{path} holds an array of shape {features.shape}; features are (n, n_dims), a row a patch")
    return features


def _in_chunks(features: "np.ndarray | h5py.Dataset", path: Path) -> dict[str, float]:
    try:
        stream = Streaming(features.shape[1])
        for first in range(0, len(features), CHUNK_ROWS):
            stream.add(features[first : first + CHUNK_ROWS])
        row = {"n": stream.n, "n_dims": stream.n_dims, "n_constant": int(stream.constant_dims().sum())}
        return row | {name: getattr(stream, name)() for name in TITLES}
    except RepresentationError as error:
        raise RepresentationError(f"{path}: {error}") from None


def files(study: Study) -> dict[str, Path]:
    """The embedding file of each of the study's encoders that has one: what its probe read, else the current one."""
    stored, found = {run.key: run for run in store.runs(study.folder, "embeddings")}, {}
    for encoder in study.settings.encoders:
        if encoder in study.runs:
            run = stored.get(study.runs[encoder].identity["inputs"].get("embeddings", ""))
        else:
            try:
                run = study.embeddings(encoder)
            except store.StoreError:
                run = None
        if run is not None and run.path("embeddings.h5").is_file():
            found[encoder] = run.path("embeddings.h5")
    return found


@cache
def encoders_table(study: Study) -> pd.DataFrame:
    """A row an encoder of the study that has embeddings, in the study's order: columns COLUMNS.

    ``origin``: "pretrained here" or "". MEASURED: as `of_file`. ``auroc``, sample ``auroc_sd``, ``n_folds``:
    what its probe reaches with all the data; NaN and 0 without a probe.
    """
    rows = [{"encoder": encoder, **of_file(file), **_probed(study, encoder)} for encoder, file in files(study).items()]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.assign(origin=_origins(study, table))


def _probed(study: Study, encoder: str) -> dict[str, float]:
    if encoder not in study.runs:
        return {"auroc": math.nan, "auroc_sd": math.nan, "n_folds": 0}
    rows = predictions.load_arm(study.runs[encoder], encoder, predictions.PROBE)
    rows = rows[rows["train_domain"] == predictions.ALL]
    over = spread(predictions.scores(rows[rows["size"] == rows["size"].max()])["auroc"])
    return {"auroc": over.mean, "auroc_sd": over.sd, "n_folds": over.n}


def _origins(study: Study, table: pd.DataFrame) -> list[str]:
    return [HOME_MADE if pretrained.is_of(study.settings, encoder) else "" for encoder in table["encoder"]]


@cache
def judged_table(study: Study) -> pd.DataFrame:
    """RankMe and ODCorr of all of a task's images, a row a task and encoder (or snapshot) that it judged: columns ON_TASKS.

    Of tasks of classification: decoders of segmentation learn from maps of features, which aren't kept.
    """
    rows = [
        {"task": task, "encoder": encoder, **of_file(run.path(FEATURES))}
        for (task, encoder), run in tasks.runs(study).items()
        if not registry.get(task).is_segmentation and run.path(FEATURES).is_file()
    ]
    table = pd.DataFrame(rows, columns=ON_TASKS)
    return table.assign(origin=_origins(study, table))


def tasks_table(study: Study) -> pd.DataFrame:
    """`judged_table` beside the scores, in the study's order, with ``metric_of_task, score, score_sd, n_runs``.

    ``score`` is the mean over runs of what the task reports, ``metric_of_task``, and ``score_sd`` its sample SD.
    """
    scores = tasks.reported(tasks.scores_table(study)).rename(columns={"mean": "score", "sd": "score_sd"})
    scores = scores.assign(metric_of_task=scores["metric"].map(tasks.TITLES))
    scores = scores[["task", "encoder", "metric_of_task", "score", "score_sd", "n_runs"]]
    return judged_table(study).merge(scores, "inner", ["task", "encoder"])


def sizes_table(study: Study, n_draws: int = N_DRAWS) -> pd.DataFrame:
    """How RankMe and ODCorr depend on the number of patches: ``encoder, draw, n, n_dims, rankme, odcorr_abs, odcorr_sq``.

    Of ``n_draws`` seeded orders of the patches, the same for every encoder, the first 64, 128 and so on: each
    subsample holds the one before it. The last is all patches, once (``draw`` 0). Raises StoreError where no
    encoder has embeddings.
    """
    import h5py
    from tqdm.auto import tqdm

    rows = []
    for encoder, file in tqdm(files(study).items(), desc="subsamples", unit=" encoders"):
        with h5py.File(file) as content:
            rows += [{"encoder": encoder, **row} for row in subsampled(content["features"][:], study.seed, n_draws)]
    if not rows:
        raise store.StoreError(f"{study.folder}: no encoder of study {study.name!r} has embeddings yet; run notebook 02")
    return pd.DataFrame(rows)


def subsampled(features: np.ndarray, seed: int, n_draws: int = N_DRAWS) -> Iterator[dict]:
    """The rows of `sizes_table` of one encoder's features (n, n_dims)."""
    sizes = sizes_of(len(features))
    for draw in range(n_draws):
        order = generator(seed, "representation", draw).permutation(len(features))
        stream, at = Streaming(features.shape[1]), 0
        for n in sizes if draw == 0 else sizes[:-1]:
            stream.add(features[np.sort(order[at:n])])
            at = n
            yield {"draw": draw, "n": n, "n_dims": stream.n_dims, **{name: getattr(stream, name)() for name in TITLES}}


def sizes_of(n: int) -> list[int]:
    """Numbers of rows to look at: N_FIRST doubled as long as it stays well below ``n``, then ``n`` itself."""
    doubled = [N_FIRST * 2**i for i in range(n.bit_length())]
    return [size for size in doubled if size <= 0.75 * n] + [n]


# ---- correlation with what a label says ----


def correlate(table: pd.DataFrame, value: str = "auroc") -> pd.DataFrame:
    """Each metric against ``table[value]`` over encoders: ``metric, rho, low, high, p, least_p, n``.

    rho: Spearman's; ``low, high`` its 95 % interval by Fisher's z with the variance (1 + rho^2 / 2) / (n - 3) of
    Bonett and Wright 2000 (Psychometrika 65), NaN for fewer than 4 encoders or a perfect order. p: two-sided, of
    every order of the encoders up to 8, by Student's t above. ``least_p``: the smallest that so many encoders could
    give. Snapshots (``NAME@STEP``) don't count: they are one encoder.
    """
    whole = tasks.encoders_only(table)
    known = {name: whole.dropna(subset=[name, value]) for name in TITLES}  # fewer than two dimensions that vary have no ODCorr
    rows = [{"metric": name, **_spearman(part[name].to_numpy(), part[value].to_numpy())} for name, part in known.items()]
    return pd.DataFrame(rows)


def correlate_tasks(table: pd.DataFrame) -> pd.DataFrame:
    """`correlate` with the score of each task, with its ``task``; ``table`` as `tasks_table` returns it."""
    groups = list(table.groupby("task", sort=False)) or [("", table)]
    return pd.concat([correlate(part, "score").assign(task=task) for task, part in groups], ignore_index=True)


def _spearman(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    n = len(first)
    least = 2 / math.factorial(n) if n > 2 else math.nan  # of a perfect order, two-sided
    row = {"rho": math.nan, "low": math.nan, "high": math.nan, "p": math.nan, "least_p": least, "n": n}
    if n < 3 or min(len(np.unique(first)), len(np.unique(second))) < 2:
        return row
    row["rho"], row["p"] = (float(value) for value in stats.spearmanr(first, second))
    if n <= EXACT_UP_TO:
        one, other = (stats.rankdata(values) - (n + 1) / 2 for values in (first, second))
        orders = np.array(list(itertools.permutations(other)))  # (n!, n)
        row["p"] = float(np.mean(np.abs(orders @ one) >= abs(other @ one) - 1e-9))
    if n > 3 and abs(row["rho"]) < 1 - 1e-9:
        half = stats.norm.isf((1 - LEVEL) / 2) * math.sqrt((1 + row["rho"] ** 2 / 2) / (n - 3))
        row["low"], row["high"] = (math.tanh(math.atanh(row["rho"]) + sign * half) for sign in (-1, 1))
    return row


# ---- exhibits ----


def one(study: Study, encoder: str) -> Exhibit:
    """One encoder's row of `rankme`, beside its probe."""
    run, table = study.runs[encoder], encoders_table(study)
    caption = f"RankMe and ODCorr of the embeddings of all patches, beside the AUROC of the probe ({of_what(study.settings)})."
    table = table[table["encoder"] == encoder]
    name = f"03_representation-{store.file_name(encoder)}-{run.key}"
    return Exhibit(name, f"{encoder} without a label", caption, table, None, SECTION)


def rankme(study: Study) -> Exhibit:
    """RankMe and ODCorr of every encoder beside what its probe reaches."""
    table = encoders_table(study)
    caption = (
        "RankMe and ODCorr of each encoder's embeddings of all patches; kaiko 2024 don't say which reading of ODCorr is theirs "
        f"({of_what(study.settings)}). AUROC: of the probe with all the data, mean and SD over folds; constant dimensions are "
        "left out of ODCorr. RankMe can't exceed the number of dimensions, so that it ranks encoders of one width."
    )
    return Exhibit("10_representations", "Representations", caption, table, None, SECTION)


def probe_correlations(study: Study) -> Exhibit:
    """Spearman's correlation of each metric with the probes' AUROC, over encoders."""
    table = correlate(encoders_table(study))
    return Exhibit("10_correlations", "Correlation with AUROC", _related(study, table), table, None, SECTION)


def task_correlations(study: Study) -> Exhibit:
    """Spearman's correlation of each metric with the scores on each task, over encoders."""
    table = correlate_tasks(tasks_table(study))
    name, heading = "10_task_correlations", "Correlation with scores on tasks"
    return Exhibit(name, heading, _related(study, table), table, None, SECTION)


def _related(study: Study, table: pd.DataFrame) -> str:
    return (
        f"Spearman's ρ over encoders with its 95 % interval ({of_what(study.settings)}); the papers saw RankMe rise and ODCorr "
        "fall with accuracy. Each p stands by itself, uncorrected for their number; least_p is that of a perfect order. "
        f"{int(table['n'].max())} encoders that share architectures or training data count for fewer than they are."
    )


def against_probes(study: Study) -> Exhibit:
    """AUROC of each encoder's probe against RankMe and both ODCorr, a panel each (Fig. 5 of kaiko 2024)."""
    table = encoders_table(study)
    rows = table.rename(columns={"auroc": "score", "auroc_sd": "score_sd"}).dropna(subset="score")
    rows = rows.assign(task="probe", metric_of_task="AUROC")
    return _against(study, "10_against_probes", "Metric against accuracy", table, rows)


def against_tasks(study: Study) -> Exhibit:
    """What each encoder scores on a task against RankMe and both ODCorr of the task's own images, a row of panels a task."""
    table = tasks_table(study)
    return _against(study, "10_against_tasks", "Metric against a task's score", table, table)


@in_style
def _against(study: Study, name: str, heading: str, table: pd.DataFrame, rows: pd.DataFrame) -> Exhibit:
    """Scores against metrics; rows: as `tasks_table`, those that are drawn of ``table``."""
    names, related = list(dict.fromkeys(rows["task"])), correlate_tasks(rows)
    if not names:
        caption = f"There is no encoder with a score yet ({of_what(study.settings)})."
        return Exhibit(name, heading, caption, table, None, SECTION)
    size_inch = (WIDTH_INCH, 2.1 * len(names) + 1.4)
    figure, axes = plt.subplots(len(names), len(TITLES), squeeze=False, figsize=size_inch, sharey="row", sharex="col")
    for line, task in zip(axes, names, strict=True):
        part = rows[rows["task"] == task]
        _panels(study.settings, line, part, related[related["task"] == task])
        line[0].set_ylabel(f"{task}:\n{part['metric_of_task'].iloc[0]}")
    figure = finished(study, figure, f"n = {related['n'].max()} encoders", 3)
    caption = (
        "Score of each encoder against RankMe and ODCorr of the same images, as kaiko 2024, Fig. 5, set ODCorr against "
        f"accuracy on natural images ({of_what(study.settings)}). Points and bars: mean and SD over folds of the probe, or "
        "over seeded runs of the heads; ρ: Spearman's over encoders, without snapshots. "
        f"Over {related['n'].max()} encoders a perfect order has p = {related['least_p'].min():.2g}."
    )
    return Exhibit(name, heading, caption, table, figure, SECTION)


def _panels(settings: Settings, line: Sequence[Axes], rows: pd.DataFrame, related: pd.DataFrame) -> None:
    """``score, score_sd`` of each encoder against each metric; those that the study doesn't list, and snapshots, are grey."""
    rho = related.set_index("metric")["rho"]
    for axis, (metric, name) in zip(line, TITLES.items(), strict=True):
        for row in rows.itertuples():
            style = GREY | {"label": "snapshots on the way" if "@" in row.encoder else f"others, {HOME_MADE}", "markersize": 3}
            if row.encoder in settings.encoders:
                style = look(settings, row.encoder, predictions.PROBE) | {"label": row.encoder}
            elif "@" not in row.encoder:
                style |= {"markersize": 8, "color": "0.45"}
            bar = math.nan if "@" in row.encoder else row.score_sd
            axis.errorbar(getattr(row, metric), row.score, bar, **style | {"linestyle": "none", "elinewidth": 1})
        axis.set_xlabel(name)
        if metric == "rankme":  # of encoders of different width
            widely(axis, "x", rows[metric])
        axis.set_title(f"ρ = {rho[metric]:+.2f}" if math.isfinite(rho[metric]) else "ρ: too few", fontweight="normal")


@in_style
def by_sample_size(study: Study) -> Exhibit:
    """RankMe and both ODCorr against the number of patches, a line an encoder; dotted: independent dimensions."""
    table = sizes_table(study)
    sizes, names = sorted(table["n"].unique()), list(dict.fromkeys(table["encoder"]))
    looks = pd.DataFrame([look(study.settings, name, predictions.PROBE) for name in names])
    style = {"errorbar": ("pi", 100), "palette": list(looks["color"]), "markers": list(looks["marker"]), "dashes": False}
    figure, axes = plt.subplots(1, len(TITLES), figsize=(WIDTH_INCH, 3.5), sharex=True)
    for axis, (metric, name) in zip(axes, TITLES.items(), strict=True):
        sns.lineplot(table, x="n", y=metric, hue="encoder", style="encoder", ax=axis, legend=metric == "rankme", **style)
        if metric in BY_CHANCE:
            chance = [BY_CHANCE[metric](n) for n in sizes]
            axis.plot(sizes, chance, color="0.35", linestyle=":", label="independent dimensions, by chance")
            axis.set_ylim(bottom=0)
        else:
            axis.get_legend().remove()
            widely(axis, "y", table[metric])
        axis.set(title=name, xlabel="patches, n", ylabel="", xscale="log")
        axis.xaxis.set_major_formatter("{x:,.0f}")
    figure = finished(study, figure, f"mean and range of {table['draw'].nunique()} draws", 3)
    caption = (
        f"RankMe and ODCorr of seeded, nested subsamples, the same patches for every encoder ({of_what(study.settings)}). "
        f"Lines and bands: mean and range of {table['draw'].nunique()} draws; dotted: what chance gives of so few patches. "
        "RankMe can't exceed the number of patches either, so that values of different numbers of patches don't compare."
    )
    return Exhibit("10_by_sample_size", "By sample size", caption, table, figure, SECTION)
