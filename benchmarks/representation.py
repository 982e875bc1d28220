"""How long, and in how much memory, do RankMe and ODCorr of a million embeddings take, and do they agree with the direct way?

A block of made embeddings (float32, its spectrum falling off as those of real ones do, or of 20 directions only, the worst for
a sum of products) lies in an HDF5 file. Streamed: the file is read as many times over as it takes to have the rows; repeating
rows changes neither metric, so that the direct way on the one block, a singular value decomposition and the correlations in
float64, says what a million rows must give. Each way runs in a process of its own, whose peak memory is the system's word.

    python benchmarks/representation.py                      # a minute: 25,600 rows, as RankMe's authors take
    python benchmarks/representation.py --full --out FILE    # and a million rows of 1536 dimensions: some minutes
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from mfcore import store

BLOCK = 25_600
CASES = ((BLOCK, 384, "falling"), (BLOCK, 1536, "falling"), (BLOCK, 1536, "20 directions"))
FULL = (40 * BLOCK, 1536, "falling")

ALONE = """
import json, sys, time
from pathlib import Path
import h5py
from mfcore.measures import representation

def peak_mb():
    status = Path("/proc/self/status").read_text()  # getrusage counts what the parent held, too
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

path, way, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
names, begun, begun_cpu, before_mb = ("rankme", "odcorr_abs", "odcorr_sq"), time.perf_counter(), time.process_time(), peak_mb()
with h5py.File(path) as content:
    features = content["features"]
    if way == "direct":
        whole = features[:]
        found = {name: getattr(representation, name)(whole) for name in names}
    else:
        stream, add_s = representation.Streaming(features.shape[1]), 0.0
        while stream.n < n:
            for first in range(0, len(features), representation.PIECE_ROWS):
                chunk = features[first : first + representation.PIECE_ROWS]
                started = time.perf_counter()
                stream.add(chunk)
                add_s += time.perf_counter() - started
        found = {name: getattr(stream, name)() for name in names} | {"n": stream.n, "add_s": add_s}
took = {"seconds": time.perf_counter() - begun, "cpu_s": time.process_time() - begun_cpu}
print(json.dumps(found | took | {"peak_mb": peak_mb(), "before_mb": before_mb}))
"""


def write_block(path: Path, n_dims: int, spectrum: str) -> None:
    """Made embeddings, float32 (BLOCK, n_dims), with a mean far from zero."""
    rng = np.random.default_rng(0)
    k = np.arange(1, n_dims + 1)
    scale = k**-0.55 if spectrum == "falling" else (k <= 20).astype(float)  # variances as k^-1.1, as an ImageNet network's
    turned = np.linalg.qr(rng.standard_normal((n_dims, n_dims)))[0]
    loadings = (scale[:, None] * turned).astype(np.float32)
    mean = rng.exponential(0.3, n_dims).astype(np.float32) if spectrum == "falling" else np.float32(0)
    with h5py.File(path, "w") as out:
        features = out.create_dataset("features", (BLOCK, n_dims), np.float32)
        for first in range(0, BLOCK, 4096):
            rows = min(4096, BLOCK - first)
            features[first : first + rows] = rng.standard_normal((rows, n_dims), dtype=np.float32) @ loadings + mean


def alone(path: Path, way: str, n: int) -> dict:
    """What one way finds, its seconds and its memory, in a process of its own."""
    command = [sys.executable, "-c", ALONE, str(path), way, str(n)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    return json.loads(done.stdout)


def measure(n: int, n_dims: int, spectrum: str) -> dict:
    """One case: the stream of ``n`` rows, a multiple of BLOCK, against the direct way on the block."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.h5"
        write_block(path, n_dims, spectrum)
        streamed, direct = alone(path, "streamed", n), alone(path, "direct", BLOCK)
    row = {
        "n": streamed["n"],
        "n_dims": n_dims,
        "spectrum": spectrum,
        "seconds": round(streamed["seconds"], 2),
        "cpu_s": round(streamed["cpu_s"], 2),  # which a busy machine changes less
        "rows_per_s": round(streamed["n"] / streamed["add_s"]),
        "peak_mb": round(streamed["peak_mb"]),
        "before_mb": round(streamed["before_mb"]),  # Python, numpy and h5py alone
        "direct_n": BLOCK,
        "direct_seconds": round(direct["seconds"], 2),
        "direct_cpu_s": round(direct["cpu_s"], 2),
        "direct_peak_mb": round(direct["peak_mb"]),
        "rankme": round(streamed["rankme"], 3),
        "odcorr_abs": round(streamed["odcorr_abs"], 6),
    }
    return row | {
        f"{name}_error": f"{streamed[name] / direct[name] - 1:+.1e}" for name in ("rankme", "odcorr_abs", "odcorr_sq")
    }


def main() -> None:
    """Measure each case; with --full a million rows too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="a million rows of 1536 dimensions too")
    parser.add_argument("--out", type=Path, help="also write the table to this CSV file")
    arguments = parser.parse_args()
    rows = [measure(*case) for case in (*CASES, *([FULL] if arguments.full else []))]
    threads = os.environ.get("OMP_NUM_THREADS", "")
    table = pd.DataFrame(rows).assign(machine=platform.machine(), n_cores=os.cpu_count(), omp_num_threads=threads)
    print(table.T.to_string(header=False))
    if arguments.out:
        store.write_csv(arguments.out, table)


if __name__ == "__main__":
    main()
