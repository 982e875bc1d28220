"""What a run ran in."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

PACKAGES = (
    "mfcore",
    "numpy",
    "pandas",
    "scikit-learn",
    "torch",
    "timm",
    "openslide-python",
    "openslide-bin",
    "snakemake",
)
# Where Linux says how much memory a container may use, in its present and its older form
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@cache
def environment() -> dict:
    """What the run ran in: Python, machine, versions of packages, commit."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)

    def git(*arguments: str) -> str | None:
        command = ["git", *arguments]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            return subprocess.check_output(
                command, cwd=folder, stderr=subprocess.DEVNULL, text=True, timeout=10
            ).strip()
        return None

    folder = Path(__file__).parent
    changes = git("status", "--porcelain", "--", str(folder))
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "n_cores": os.cpu_count(),
        "packages": versions,
        "commit": git("rev-parse", "HEAD"),
        "uncommitted_changes": None if changes is None else bool(changes),
    }


def memory_mb() -> int:
    """Memory of this machine, or of the container that it may use less in."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            sizes.append(int(Path(file).read_text()))
    return min(sizes) // 2**20


def n_threads() -> int:
    """Threads of this process; they decide the last digits of what is trained."""
    if (torch := sys.modules.get("torch")) is not None:
        return int(torch.get_num_threads())
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdigit() and int(text) else len(os.sched_getaffinity(0))
