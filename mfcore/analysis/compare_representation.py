"""RankMe and ODCorr of a study's encoders beside what their probes reach: a row an encoder, by sample size, and related.

Embeddings of any other origin are measured by `of_file`, whatever made them.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from mfcore import store
from mfcore.analysis import compare
from mfcore.measures.representation import RepresentationError, Streaming, odcorr_abs_by_chance, odcorr_sq_by_chance
from mfcore.measures.statistics import LEVEL
from mfcore.streams import generator
from mfcore.study import pretrained
from mfcore.study.config import Settings

if TYPE_CHECKING:
    import h5py

TITLES = {"rankme": "RankMe", "odcorr_abs": "ODCorr, mean |r|", "odcorr_sq": "ODCorr, mean r²"}
EXPECTED = {"rankme": 1, "odcorr_abs": -1, "odcorr_sq": -1}  # the sign of the papers' correlation with accuracy
BY_CHANCE = {"odcorr_abs": odcorr_abs_by_chance, "odcorr_sq": odcorr_sq_by_chance}  # of independent dimensions
PROBED = {"auroc": math.nan, "auroc_sd": math.nan, "n_folds": 0}  # without a probe
COLUMNS = ["encoder", "origin", "n", "n_dims", "n_constant", *TITLES, *PROBED]
N_FIRST, N_DRAWS = 64, 5  # rows of the smallest subsample, doubled from there; how often they are drawn
CHUNK_ROWS = 4096
EXACT_UP_TO = 8  # encoders of which every order is tried for p


def of_file(path: str | Path, dataset: str = "features") -> dict[str, float]:
    """RankMe and ODCorr of an HDF5 file's ``dataset`` (n, n_dims), or of a ``.npy`` file's array, read in chunks: `measured`.

    The layout of HDF5 is that of this package and of the field's tools; what else holds features goes as an array to
    `mfcore.measures.representation.rankme` and its like. Raises StoreError where there is no such file or dataset or it
    can't be read, RepresentationError for features that aren't finite numbers.
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
    """`measured` of features (n, n_dims) of a file."""
    try:
        stream = Streaming(features.shape[1])
        for first in range(0, len(features), CHUNK_ROWS):
            stream.add(features[first : first + CHUNK_ROWS])
        return measured(stream)
    except RepresentationError as error:
        raise RepresentationError(f"{path}: {error}") from None


def measured(stream: Streaming) -> dict[str, float]:
    """What is known of the rows so far: ``n, n_dims, n_constant, rankme, odcorr_abs, odcorr_sq``."""
    return {
        "n": stream.n,
        "n_dims": stream.n_dims,
        "n_constant": int(stream.constant_dims().sum()),
        **{name: getattr(stream, name)() for name in TITLES},
    }


def find(study: Settings, results: str | Path) -> dict[str, Path]:
    """The embedding file of each of the study's encoders that has one: what its probe read, else the current one."""
    results = Path(results)
    files, probes = {}, compare.current_runs(study, results)
    made = {run.key: run for run in store.runs(results, "embeddings")}
    for encoder in study.encoders:
        if encoder in probes:
            run = made.get(probes[encoder].identity["inputs"]["embeddings"])
        else:
            try:
                run = compare.find_embeddings(study, encoder, results)
            except store.StoreError:
                run = None
        if run is not None and run.path("embeddings.h5").is_file():
            files[encoder] = run.path("embeddings.h5")
    return files


def table(study: Settings, results: str | Path) -> pd.DataFrame:
    """A row an encoder of the study that has embeddings, in the study's order.

    ``encoder, origin`` ("pretrained here" or ""), ``n, n_dims, n_constant, rankme, odcorr_abs, odcorr_sq`` (`of_file`), and
    what its probe reaches with all the data: ``auroc`` and sample ``auroc_sd`` over ``n_folds``; NaN and 0 without a probe.
    """
    return beside_probes(study, [{"encoder": name, **of_file(file)} for name, file in find(study, results).items()], results)


def of_run(study: Settings, embeddings: store.Run, scaling: pd.DataFrame) -> pd.Series:
    """One encoder's row of `table`, from its embedding run and its probe's `compare.scaling_table`."""
    encoder, full = embeddings.identity["name"], scaling.loc[scaling["size"].idxmax()]
    found = {"encoder": encoder, "origin": _origin(study, encoder), **of_file(embeddings.path("embeddings.h5"))}
    return pd.Series(found | {name: full[name] for name in PROBED})


def beside_probes(study: Settings, rows: Iterable[dict], results: str | Path) -> pd.DataFrame:
    """Rows with an ``encoder`` each, with ``origin`` and the probe's AUROC beside them as in `table`."""
    probes, whole = compare.current_runs(study, Path(results)), []
    for row in rows:
        encoder = row["encoder"]
        found = PROBED
        if encoder in probes:
            scores = compare.scores(compare.full_size(compare.load_arm(probes[encoder], encoder, compare.PROBE)))
            full = compare.scaling_table(scores, study).iloc[0]
            found = {name: full[name] for name in PROBED}
        whole.append({**row, "origin": _origin(study, encoder), **found})
    return pd.DataFrame(whole, columns=COLUMNS)


def _origin(study: Settings, encoder: str) -> str:
    return compare.HOME_MADE if pretrained.is_of(study, encoder) else ""


def by_sample_size(study: Settings, results: str | Path, n_draws: int = N_DRAWS) -> pd.DataFrame:
    """How RankMe and ODCorr depend on the number of patches: ``encoder, draw, n, n_dims, rankme, odcorr_abs, odcorr_sq``.

    Of ``n_draws`` seeded orders of the patches, the same for every encoder, the first 64, 128 and so on: each subsample holds
    the one before it. The last is all patches, once (``draw`` 0). Raises StoreError where no encoder has embeddings.
    """
    import h5py
    from tqdm.auto import tqdm

    files, rows = find(study, results), []
    if not files:
        raise store.StoreError(f"{results}: no encoder of study {study.name!r} has embeddings yet; run notebook 02")
    for encoder, file in tqdm(files.items(), desc="subsamples", unit=" encoders"):
        with h5py.File(file) as content:
            features = content["features"][:]
        rows += [{"encoder": encoder, **row} for row in subsampled(features, study.splits.seed, n_draws)]
    return pd.DataFrame(rows)


def subsampled(features: np.ndarray, seed: int, n_draws: int = N_DRAWS) -> Iterator[dict]:
    """The rows of `by_sample_size` of one encoder's features (n, n_dims)."""
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


def correlations(table: pd.DataFrame, value: str = "auroc") -> pd.DataFrame:
    """Each metric against ``table[value]`` over encoders: ``metric, rho, low, high, p, least_p, n``.

    rho: Spearman's; ``low, high`` its 95 % interval by Fisher's z with the variance (1 + rho^2 / 2) / (n - 3) of Bonett and
    Wright 2000 (Psychometrika 65), NaN for fewer than 4 encoders or a perfect order. p: two-sided, of every order of the
    encoders up to 8, by Student's t above. ``least_p``: the smallest that so many encoders could give. Snapshots
    (``NAME@STEP``) don't count: they are one encoder.
    """
    whole = table[~table["encoder"].str.contains("@", regex=False)]
    known = {name: whole.dropna(subset=[name, value]) for name in TITLES}  # fewer than two dimensions that vary have no ODCorr
    rows = [{"metric": name, **_spearman(part[name].to_numpy(), part[value].to_numpy())} for name, part in known.items()]
    return pd.DataFrame(rows)


def _spearman(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    n = len(first)
    row = {"rho": math.nan, "low": math.nan, "high": math.nan, "p": math.nan, "least_p": least_p(n), "n": n}
    if n < 3 or min(len(np.unique(first)), len(np.unique(second))) < 2:
        return row
    ranks = [stats.rankdata(values) - (n + 1) / 2 for values in (first, second)]
    norm = math.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    rho = float(ranks[0] @ ranks[1] / norm)
    row["rho"] = rho
    if n <= EXACT_UP_TO:
        all_orders = np.array(list(itertools.permutations(ranks[1])))  # (n!, n)
        row["p"] = float(np.mean(np.abs(all_orders @ ranks[0]) / norm >= abs(rho) - 1e-9))
    else:
        row["p"] = float(stats.spearmanr(first, second).pvalue)
    if n > 3 and abs(rho) < 1 - 1e-9:
        half = stats.norm.isf((1 - LEVEL) / 2) * math.sqrt((1 + rho**2 / 2) / (n - 3))
        row["low"], row["high"] = (math.tanh(math.atanh(rho) + sign * half) for sign in (-1, 1))
    return row


def least_p(n: int) -> float:
    """The two-sided p of a perfect order of ``n`` encoders: 2 / n!; NaN for fewer than 3."""
    return 2 / math.factorial(n) if n > 2 else math.nan


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """`table` for the eye: one column a metric by its title, "mean ± SD" of the AUROC."""
    shown = table[["encoder", "origin", "n", "n_dims", "n_constant"]].copy()
    shown["RankMe"] = [f"{value:.1f}" for value in table["rankme"]]
    for name in ("odcorr_abs", "odcorr_sq"):
        shown[TITLES[name]] = [f"{value:.3f}" if math.isfinite(value) else "–" for value in table[name]]
    pairs = zip(table["auroc"], table["auroc_sd"], strict=True)
    shown["AUROC of its probe"] = [compare.plus_minus(mean, sd) for mean, sd in pairs]
    return shown.rename(columns={"n": "patches", "n_dims": "dimensions", "n_constant": "constant ones"})
