"""What each job of a study that ran cost: CPU seconds, seconds and memory, from the records of its jobs.

CPU seconds are those of all processes of a job, loading included; those of the sweep itself (Snakemake, about 10) are in none.
Memory is the most that the job's own process and its notebook's each held, added up. On busy cores that two threads share, the
same work takes up to twice the CPU seconds: run it on quiet ones.

    make paper                                              # the study demo
    python benchmarks/demo.py --out benchmarks/demo.csv
"""

import argparse
import os
import platform
from pathlib import Path

import pandas as pd

from mfcore import store

ROOT = Path(__file__).parents[1]
COLUMNS = ["name", "cpu_seconds", "seconds", "memory_mb"]


def main() -> None:
    """Print a row a job, those that cost the most first, and a sum; write it with ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "demo", help="a study's results (results/demo)")
    parser.add_argument("--out", type=Path, help="CSV file to write (none)")
    asked = parser.parse_args()
    records = [store.read_json(file) for file in sorted(asked.results.glob("jobs/*.json"))]
    if not records:
        parser.error(f"{asked.results} has no records of jobs; run the study first")
    table = pd.DataFrame(records).reindex(columns=COLUMNS).rename(columns={"name": "job"})
    table = table.sort_values("cpu_seconds", ascending=False)
    table = table.assign(machine=platform.machine(), n_cores=os.cpu_count())
    print(table.to_string(index=False))
    print(f"{len(table)} jobs, {table['cpu_seconds'].sum():.0f} CPU seconds, at most {table['memory_mb'].max():.0f} MB a job")
    if asked.out:
        store.write_csv(asked.out, table)


if __name__ == "__main__":
    main()
