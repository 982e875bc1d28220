"""The probe against UNI's published solver: the same features and splits, in one run.

Features are made: a mean, a spectrum that falls off as that of real embeddings does, and a weak signal. Each round draws a fold
(64 % of the patches train, 20 % test) and fits it by both; each takes its own copy of the training set. Rounds alternate, so
that a busy machine slows both; the ratio of each pair is what counts. Objectives are computed again in float64 from both
solutions. How far float32 carries the published solver's AUROC from that of its own objective's minimum is shown by a further
fit, of the warming-up round: the same solver in float64, which is given longer (but for the largest set).

    python benchmarks/probe.py                  # prints a table; five minutes on two cores
    python benchmarks/probe.py --largest 13154  # without the largest sets; half a minute
    python benchmarks/probe.py --full           # a whole study, 72,845 x 2,560, 5 folds of 4 sizes; 2 GB of disk for a while
    python benchmarks/probe.py --study studies/amibr.yaml --results results/amibr    # on that study's own embeddings
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from tqdm.auto import tqdm

from mfcore import store
from mfcore.data import splits
from mfcore.measures import binary
from mfcore.study import arms as study_arms, data as study_data, encoders as study_encoders
from mfcore.study.config import Data, Settings, Splits, load_study
from mfcore.training import probe

SETS = ((128, 1280), (1_282, 1280), (13_154, 1280), (46_621, 2560))  # training patches, dimensions
TRAIN_SHARE, TEST_SHARE = 0.64, 0.2
LARGEST_IN_FLOAT64 = 13_154
N_FULL, N_FULL_DIMS = 72_845, 2560  # as many annotations as MITOS_WSI_CCMCT has


def published_fit(features: np.ndarray, labels: np.ndarray, dtype: type = np.float32, **options: float) -> tuple:
    """UNI's solver, written from its description: weight (2, n_dims) and bias (2,), and the number of iterations.

    L-BFGS of torch with a strong-Wolfe line search, from zero, on mean cross-entropy + 1 / cost * 0.5 * ||W||, the norm not
    squared, the bias free, cost = n_dims * n_classes / 100; the gradient by autograd, in float32 unless ``dtype`` says other.
    options: of torch.optim.LBFGS, beside max_iter 1000.
    """
    x = torch.from_numpy(np.ascontiguousarray(features, dtype=dtype))  # (n, n_dims)
    y = torch.from_numpy(np.asarray(labels, dtype=np.int64))  # (n,)
    cost = x.shape[1] * 2 / 100
    weight = torch.zeros(2, x.shape[1], dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(2, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], line_search_fn="strong_wolfe", **{"max_iter": 1000, **options})

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, y)
        value = loss + 0.5 / cost * weight.norm(p=2)
        value.backward()
        return value

    optimizer.step(closure)
    return weight.detach().numpy(), bias.detach().numpy(), int(optimizer.state[weight]["n_iter"])


def objective(features: np.ndarray, labels: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> float:
    """UNI's objective at a solution, every product and sum in float64."""
    weight, bias = weight.astype(np.float64), bias.astype(np.float64)
    blocks = [features[i : i + 4096].astype(np.float64) @ (weight[1] - weight[0]) for i in range(0, len(features), 4096)]
    margin = np.concatenate(blocks) + bias[1] - bias[0]
    loss = np.logaddexp(0, np.where(labels == 1, -margin, margin)).mean()
    return float(loss + 0.5 / (features.shape[1] * 2 / 100) * np.sqrt((weight**2).sum()))


def make_features(seed: int, n: int, n_dims: int, n_factors: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Made embeddings, float32 (n, n_dims), and labels, int64 (n,), of which 40 % are 1.

    Variances along principal axes fall off as k^-1.1, as those of an ImageNet network's embeddings of AMi-Br's patches do.
    """
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(np.int64)
    k = np.arange(1, n_factors + 1)
    loadings = (
        rng.standard_normal((n_factors, n_dims), dtype=np.float32) * np.float32(0.125) * (k**-0.55).astype(np.float32)[:, None]
    )
    signal = (np.where((k > 4) & (k <= 100), 0.15, 0) * rng.choice([-1, 1], n_factors)).astype(np.float32)
    mean = rng.exponential(0.3, n_dims).astype(np.float32)
    features = np.empty((n, n_dims), np.float32)
    for i in range(0, n, 4096):
        here = slice(i, min(n, i + 4096))
        factors = rng.standard_normal((here.stop - i, n_factors), dtype=np.float32) + labels[here, None] * signal
        features[here] = factors @ loadings
        features[here] += mean + np.float32(0.05) * rng.standard_normal((here.stop - i, n_dims), dtype=np.float32)
    return features, labels


def seconds_and(work: object, *arguments: object) -> tuple[float, object]:
    """Wall-clock seconds of one call, and what it returned."""
    begun = time.perf_counter()
    found = work(*arguments)
    return time.perf_counter() - begun, found


def measure(n_train: int, n_dims: int, n_rounds: int) -> dict:
    """One size of training set: seconds of both, quartiles of the ratio, and how far apart objectives and AUROCs are."""
    features, labels = make_features(0, round(n_train / TRAIN_SHARE), n_dims)
    rows = []
    for i in range(n_rounds + 1):
        order = np.random.default_rng(i).permutation(len(features))
        train, test = np.sort(order[:n_train]), np.sort(order[-round(TEST_SHARE * len(order)) :])
        base_s, (weight, bias, n_iter) = seconds_and(lambda train: published_fit(features[train], labels[train]), train)
        own_s, own = seconds_and(probe.fit, features, labels, None, 1000, train)
        x = features[train]
        base, mine = objective(x, labels[train], weight, bias), objective(x, labels[train], own.weight, own.bias)
        solutions = [(weight, bias), (own.weight, own.bias)]
        if i == 0 and n_train <= LARGEST_IN_FLOAT64:
            solutions.append(published_fit(x, labels[train], np.float64, max_iter=10_000, tolerance_change=1e-14)[:2])
        aurocs = [binary.auroc(labels[test], expit(features[test] @ (w[1] - w[0]) + b[1] - b[0])) for w, b in solutions]
        if i == 0:
            from_minimum = [f"{abs(auroc - aurocs[2]):.1e}" if len(aurocs) > 2 else "" for auroc in aurocs[:2]]
        rows.append((base_s, own_s, mine / base - 1, aurocs[1] - aurocs[0], n_iter, own.n_iter))
    base_s, own_s, objectives, aurocs, base_iter, own_iter = np.array(rows[1:]).T  # the first warms up
    low, ratio, high = np.quantile(base_s / own_s, (0.25, 0.5, 0.75))
    return {
        "n_train": n_train,
        "n_dims": n_dims,
        "seconds": round(float(np.median(own_s)), 4),
        "published_seconds": round(float(np.median(base_s)), 4),
        "ratio": round(float(ratio), 1),
        "ratio_q25": round(float(low), 1),
        "ratio_q75": round(float(high), 1),
        "n_iter": round(float(np.median(own_iter))),
        "published_n_iter": round(float(np.median(base_iter))),
        "objective_highest": f"{objectives.max():+.1e}",  # relative to the published solver's, in the worst round
        "auroc_farthest": f"{np.abs(aurocs).max():.1e}",
        "auroc_from_minimum": from_minimum[1],
        "published_auroc_from_minimum": from_minimum[0],
    }


def write_study(folder: Path) -> tuple[Settings, store.Run]:
    """A study with made embeddings in the store, its splits drawn as every study's are."""
    study = Settings(name="made", title="benchmark", data=Data("csv"), splits=Splits(by_domain=False), encoders=("made",))
    features, labels = make_features(0, N_FULL, N_FULL_DIMS)
    table = pd.DataFrame({"patch_id": np.arange(N_FULL), "label": labels, "domain": "made"})
    table["slide_id"] = [f"{i:03d}" for i in np.random.default_rng(0).integers(0, 350, N_FULL)]
    table["case_id"] = table["slide_id"]
    run = store.open_run(folder, "patches", study.name, study_data.patches_config(study), {})
    store.write_parquet(run.path("labels.parquet"), table)
    np.save(run.path("patches.npy"), np.zeros((1, 1), np.uint8))
    run.finish(["labels.parquet", "patches.npy"])
    study_data.write_splits(study, folder)
    embeddings = store.open_run(folder, "embeddings", "made", {}, {"patches": run.key})
    with h5py.File(embeddings.path("embeddings.h5"), "w") as out:
        out["features"], out["patch_id"] = features, table["patch_id"].to_numpy()
    return study, embeddings.finish(["embeddings.h5"])


ALONE = """
import sys, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from mfcore.training import probe
from mfcore import store
from mfcore.study.config import Data, Splits, Study
peak = [0]
def watch():
    while True:
        content = Path("/proc/self/smaps_rollup").read_text()
        peak[0] = max(peak[0], int(content.split("Pss:")[1].split()[0]))
        time.sleep(0.02)
threading.Thread(target=watch, daemon=True).start()
study = Study(name="made", title="benchmark", data=Data("csv"), splits=Splits(by_domain=False), encoders=("made",))
embeddings = store.find_run(sys.argv[2], "embeddings", "made", {})
begun = time.perf_counter()
study_arms.fit_probe(study, embeddings, Path(sys.argv[2]))
print(time.perf_counter() - begun, peak[0])
"""


def full() -> Iterator[dict]:
    """A whole study in a process of its own, and the published solver on each of its training sets, by size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study, embeddings = write_study(folder)
        command = [sys.executable, "-c", ALONE, str(Path(__file__).parent), str(folder)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        whole_s, peak_kb = (float(word) for word in done.stdout.split())
        run = study_arms.fit_probe(study, embeddings, folder)
        fits, predictions = probe.load_fits(run).set_index("unit"), pd.read_parquet(run.path("predictions.parquet"))
        material = study_arms.probe_material(study, embeddings, folder)
    for size in study.splits.sizes:
        rows = []
        for unit in (unit for unit in splits.units(material.splits) if unit.size == size):
            train = material.rows(unit, "train")
            base_s, (weight, bias, _) = seconds_and(published_fit, material.features[train], material.labels[train])
            base = objective(material.features[train], material.labels[train], weight, bias)
            mine = predictions[(predictions["fold"] == unit.fold) & (predictions["size"] == size)]
            logits = material.features[material.rows(unit, "test")] @ (weight[1] - weight[0]) + bias[1] - bias[0]
            aurocs = [binary.auroc(mine["label"], score) for score in (expit(logits), mine["score"])]
            fit = fits.loc[unit.name]
            rows.append((base_s, fit["seconds"], fit["objective"] / base - 1, aurocs[1] - aurocs[0], len(train)))
        base_s, own_s, objectives, aurocs, n_train = np.array(rows).T
        yield {
            "n_train": round(n_train.mean()),
            "n_dims": N_FULL_DIMS,
            "n_folds": len(rows),
            "seconds": round(own_s.sum(), 2),
            "published_seconds": round(base_s.sum(), 2),
            "objective_highest": f"{objectives.max():+.1e}",
            "auroc_farthest": f"{np.abs(aurocs).max():.1e}",
            "whole_study_s": round(whole_s, 1),
            "peak_pss_mb": round(peak_kb / 1024),
        }


def of_study(study: Settings, results: Path) -> Iterator[dict]:
    """A study's finished probes against the published solver, in float32 as published and in float64 to the very minimum.

    A row an encoder and kind of unit: the worst of its units. AUROCs are of all the patches that a unit tests.
    """
    for encoder in study.encoders:
        embeddings = study_encoders.find_embeddings(study, encoder, results)
        material = study_arms.probe_material(study, embeddings, results)
        run = study_arms.fit_probe(study, embeddings, results)
        fits = probe.load_fits(run).set_index("unit")
        predictions = pd.read_parquet(run.path("predictions.parquet"))
        rows = []
        for unit in tqdm(splits.units(material.splits), desc=encoder, unit=" units"):
            train, test = (material.rows(unit, role) for role in ("train", "test"))
            x, y = material.features[train], material.labels[train]
            keys = {"fold": unit.fold, "size": unit.size, "train_domain": unit.train_domain}
            own = predictions[(predictions[list(keys)] == pd.Series(keys)).all(axis=1)]
            as_published = published_fit(x, y)[:2]
            minimum = published_fit(x, y, np.float64, max_iter=20_000, tolerance_change=1e-15, tolerance_grad=1e-10)[:2]
            scores = [expit(material.features[test] @ (w[1] - w[0]) + b[1] - b[0]) for w, b in (as_published, minimum)]
            mine, published, lowest = (
                binary.auroc(labels, score)
                for labels, score in ((own["label"], own["score"]), *((material.labels[test], score) for score in scores))
            )
            base, least = (objective(x, y, *solution) for solution in (as_published, minimum))
            found = fits.loc[unit.name, "objective"]
            apart = abs(mine - lowest), abs(published - lowest), abs(mine - published)
            which = f"size {unit.size:g}" if unit.train_domain == splits.ALL else "one domain"
            rows.append((which, found / base - 1, found / least - 1, *apart))
        columns = ["units", "objective_highest", "objective_above_minimum"]
        columns += ["auroc_from_minimum", "published_auroc_from_minimum", "auroc_farthest"]
        table = pd.DataFrame(rows, columns=columns)
        for which, part in table.groupby("units"):
            worst = part.iloc[:, 1:].max()
            yield {"encoder": encoder, "units": which, "n_units": len(part), **{name: f"{v:.1e}" for name, v in worst.items()}}


def main() -> None:
    """Measure over sizes, or a whole study at full size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds (default 5)")
    parser.add_argument("--largest", type=int, default=SETS[-1][0], help="leave out larger training sets than this")
    parser.add_argument("--full", action="store_true", help="a whole study of 72,845 patches, with its peak memory")
    parser.add_argument("--study", type=Path, help="a study's file: its own embeddings and splits")
    parser.add_argument("--results", type=Path, help="with --study: the folder of its results")
    parser.add_argument("--out", type=Path, help="also write the table to this CSV file")
    arguments = parser.parse_args()
    if arguments.study:
        if arguments.results is None:
            parser.error("--study needs --results, the folder that its embeddings lie in")
        rows = list(of_study(load_study(arguments.study), arguments.results))
    elif arguments.full:
        rows = list(full())
    else:
        rows = [measure(n, n_dims, arguments.rounds) for n, n_dims in SETS if n <= arguments.largest]
    table = pd.DataFrame(rows).assign(machine=platform.machine(), n_cores=os.cpu_count(), n_threads=torch.get_num_threads())
    print(table.T.to_string(header=False))
    if arguments.out:
        store.write_csv(arguments.out, table)


if __name__ == "__main__":
    main()
