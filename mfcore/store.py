"""Results that describe themselves: a folder for each run, written aside and renamed, done when ``run.json`` stands.

A run's folder is named ``<stage>-<name>-<key>``; the key is the hash of its config and of the keys of its inputs. A run
of several units of work (a fold at a size) keeps each finished unit, so that a kill loses the unit in hand and no more.
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd

from mfcore.config import digest
from mfcore.config_text import TwiceError, parse_json

PACKAGES = ("mfcore", "numpy", "pandas", "scikit-learn", "torch", "timm", "openslide-python", "openslide-bin", "snakemake")
WHOLE_BYTES = 32 * 2**20  # up to so many bytes, a file's fingerprint is of all its content
N_BLOCKS, BLOCK_BYTES = 32, 2**16  # of a larger file
MAX_WORDS = 60  # characters of a name that its file shows; what is written aside and ends of names must fit beside them
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # what such file systems say
_HOST = platform.node().replace(".", "_")  # processes of several machines may share a folder, and their numbers


class StoreError(RuntimeError):
    """A result is missing, unfinished or not what it should be; the message says which and what to do."""


def file_name(text: str) -> str:
    """A part of a file's name for any text, on every file system another for another text, also where case is ignored.

    Lower-case letters, digits and "_" are left as they are; any other text is cut to such words as it has and gets a digest. No
    dot stands in it, so that a dot divides such parts, and one "-" at most, before the digest.
    """
    words = _words(text).replace(".", "_").strip("_")
    if text and text == words.lower():
        return text
    return f"{words or 'name'}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def _words(text: str) -> str:
    """What of a text can stand in a file's name: another text may have the same."""
    return re.sub(r"[^A-Za-z0-9_.]+", "_", text)[:MAX_WORDS].strip("_")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; on success it takes the place of ``path`` in one step, on error it goes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.partial")
    try:
        yield aside
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_first(path: str | Path, content: bytes) -> None:
    """Write a file, whole or not at all, unless it is there: of several processes at once, on several machines, one does."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.partial")
    try:
        with aside.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        try:
            os.link(aside, path)
        except FileExistsError:
            return
        except OSError:  # a file system without links
            if not path.exists():
                aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(folder: str | Path, who: str) -> Iterator[None]:
    """Hold the folder's lock; the system lets it go however the process ends, so none is ever left behind.

    Raises StoreError where another process holds it; ``who`` names what both are, as in "sweep". Where the file system has no
    locks, nobody is refused.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    with (Path(folder) / ".lock").open("w") as lock:
        try:
            _lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"another {who} is at work on {folder}; wait for it, or stop it") from None
        yield


@contextlib.contextmanager
def in_turn(folder: str | Path, name: str) -> Iterator[None]:
    """Hold the lock ``name`` of a folder, once whoever holds it lets it go: several processes do the same work one by one.

    The system lets it go however a process ends. Where the file system has no locks, nobody waits.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    with (Path(folder) / f".{name}.lock").open("w") as lock:
        _lock(lock, fcntl.LOCK_EX)
        yield


def _lock(file: IO, how: int) -> None:
    """Lock a file where its file system can; raises BlockingIOError where another has it and ``how`` doesn't wait."""
    try:
        fcntl.flock(file, how)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise


def write_json(path: str | Path, content: object) -> None:
    """Write plain data as JSON, whole or not at all; NaN is refused."""
    with replacing(path) as aside:
        aside.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> dict:
    """Read a JSON file; raises StoreError where it isn't there, isn't JSON or says a key twice."""
    try:
        return parse_json(Path(path).read_text(encoding="utf-8"))
    except TwiceError as error:
        raise StoreError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except json.JSONDecodeError as error:
        raise StoreError(f"{path} is not JSON ({error}); remove it and run the step again") from None


def write_parquet(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet, whole or not at all."""
    with replacing(path) as aside:
        table.to_parquet(aside, index=False)


def write_csv(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, whole or not at all."""
    with replacing(path) as aside:
        table.to_csv(aside, index=False)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, as hex."""
    with Path(path).open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def file_fingerprint(path: str | Path) -> list[int | str]:
    """Size in bytes and SHA-256, as hex, of a file's content.

    Of a file of more than WHOLE_BYTES, 32 evenly spaced blocks of BLOCK_BYTES are read, the first and the last among them.
    Times and names don't enter: a copy has the fingerprint of its original.
    """
    path = Path(path)
    n_bytes = path.stat().st_size
    if n_bytes <= WHOLE_BYTES:
        return [n_bytes, file_sha256(path)]
    content = hashlib.sha256()
    with path.open("rb") as file:
        for i in range(N_BLOCKS):
            file.seek((n_bytes - BLOCK_BYTES) * i // (N_BLOCKS - 1))
            content.update(file.read(BLOCK_BYTES))
    return [n_bytes, content.hexdigest()]


class Run:
    """One run's folder. `open_run` makes or resumes one, `find_run` finds a finished one."""

    def __init__(self, folder: Path, identity: dict):
        self.folder = folder
        self.identity = identity
        self._started = time.monotonic()

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, done={self.done})"

    @property
    def key(self) -> str:
        """Eight hex digits of config and inputs; a later stage names this run by it."""
        return digest(self.identity)

    @property
    def done(self) -> bool:
        """Whether the run finished: its ``run.json`` is there."""
        return (self.folder / "run.json").is_file()

    @property
    def record(self) -> dict:
        """The finished run's ``run.json``."""
        return read_json(self.folder / "run.json")

    def path(self, *parts: str) -> Path:
        """A path inside the run's folder."""
        return self.folder.joinpath(*parts)

    def unit_file(self, unit: str, suffix: str = ".parquet") -> Path:
        """Where the result of one unit of work goes; write it with `replacing`, and it is done when it is there."""
        return self.folder / "units" / f"{unit}{suffix}"

    def finish(self, files: list[str], **facts: object) -> "Run":
        """Write ``run.json``: from what, by which code, in which environment, how long, and the checksums of ``files``.

        Raises StoreError where a file to be recorded isn't there.
        """
        for name in files:
            if not self.path(name).is_file():
                raise StoreError(f"{self.folder}: {name} was to be recorded but isn't there")
        write_json(
            self.path("run.json"),
            {
                **self.identity,
                "key": self.key,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": round(time.monotonic() - self._started, 3),
                "facts": facts,
                "files": {
                    name: {"sha256": file_sha256(self.path(name)), "bytes": self.path(name).stat().st_size} for name in files
                },
                "environment": {**environment(), "n_threads": n_threads()},
            },
        )
        return self

    def verify(self) -> "Run":
        """Check every recorded file against its checksum; raises StoreError naming the file that differs."""
        for name, facts in self.record["files"].items():
            path = self.path(name)
            if not path.is_file() or file_sha256(path) != facts["sha256"]:
                raise StoreError(f"{path} is missing or not as recorded; remove {self.folder} and run the step again")
        return self


def open_run(results: str | Path, stage: str, name: str, config: Mapping, inputs: Mapping[str, str]) -> Run:
    """Open the folder of one run, new, begun or finished, under ``results``.

    ``inputs`` names what the run reads: keys of earlier runs, checksums of files. Raises StoreError where the folder was
    made from something else, naming the keys that differ.
    """
    identity = json.loads(json.dumps({"stage": stage, "name": name, "config": config, "inputs": dict(inputs)}, allow_nan=False))
    folder = Path(results) / f"{stage}-{_words(name)}-{digest(identity)}"
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):  # another process may be at work in the folder
        for aside in folder.rglob(".*.partial"):
            if _is_left_over(aside):
                aside.unlink(missing_ok=True)
    begun = folder / "begun.json"
    if begun.is_file():
        differing = changes(read_json(begun), identity)
        if differing:
            raise StoreError(f"{folder} was made from something else: {'; '.join(differing)}. Remove it to start anew.")
    else:
        write_json(begun, identity)
    return Run(folder, identity)


def _is_left_over(aside: Path) -> bool:
    """Whether nobody writes this file any more: the process that did is gone from this machine, or it is a day old."""
    *_, host, pid, _ = f"..{aside.name}".rsplit(".", 3)
    if host == _HOST and pid.isdigit():
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False
    with contextlib.suppress(FileNotFoundError):
        return time.time() - aside.stat().st_mtime > 86_400
    return False


def find_run(results: str | Path, stage: str, name: str, config: Mapping, inputs: Mapping[str, str] | None = None) -> Run:
    """The newest finished run of ``stage`` called ``name`` with this config (and, where given, these inputs).

    Raises StoreError, naming what differs in the nearest run there is, where there is none.
    """
    wanted = json.loads(json.dumps(dict(config)))
    found, nearest = [], ""
    for record_file in sorted(Path(results).glob(f"{stage}-*/run.json")):
        record = read_json(record_file)
        if record["name"] != name:
            continue
        differing = changes(record["config"], wanted)
        if inputs is not None:
            differing += changes(record["inputs"], dict(inputs))
        if differing:
            nearest = f" {record_file.parent.name} is there, but {'; '.join(differing)}."
        else:
            identity = {key: record[key] for key in ("stage", "name", "config", "inputs")}
            found.append((record["finished"], record_file.stat().st_mtime, Run(record_file.parent, identity)))
    if not found:
        raise StoreError(
            f"no finished {stage!r} run {name!r} in {results};{nearest or ' run the notebook that makes it first.'}"
        )
    return max(found, key=lambda item: item[:2])[2]


def read_embeddings(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 (n_patches, n_dims) and patch ids int64 (n_patches,) of a finished embedding run's HDF5 file."""
    import h5py

    with h5py.File(run.path("embeddings.h5")) as content:
        return content["features"][:], content["patch_id"][:]


def differences(left: Mapping, right: Mapping, where: str = "") -> list[str]:
    """Dotted names of the keys in which two nested mappings differ."""
    names = []
    for key in sorted(set(left) | set(right)):
        a, b = left.get(key), right.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            names += differences(a, b, f"{where}{key}.")
        elif a != b or (key in left) != (key in right):
            names.append(f"{where}{key}")
    return names


def changes(was: Mapping, now: Mapping) -> list[str]:
    """What became of each key in which two nested mappings differ, as in "card.interpolation was bicubic, is bilinear"."""

    def value(content: object, name: str) -> str:
        for part in name.split("."):
            if not isinstance(content, Mapping) or part not in content:
                return "not there"
            content = content[part]
        text = str(content)
        return text if len(text) <= 80 else f"{text[:77]}..."

    return [f"{name} was {value(was, name)}, is {value(now, name)}" for name in differences(was, now)]


def n_threads() -> int:
    """Threads that sums of this process are divided among, which decides the last digits of what is trained."""
    if (torch := sys.modules.get("torch")) is not None:
        return int(torch.get_num_threads())
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdigit() and int(said) else len(os.sched_getaffinity(0))


@cache
def environment() -> dict:
    """What the run ran in: Python, machine, versions of the packages that matter, commit and whether it was clean."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain", "--", str(here))
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "n_cores": os.cpu_count(),
        "packages": versions,
        "commit": git("rev-parse", "HEAD"),
        "uncommitted_changes": None if changes is None else bool(changes),
    }
