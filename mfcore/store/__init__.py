"""Results that describe themselves: a folder for each run, done when it has its ``run.json``.

A run's folder is named ``<stage>-<name>-<key>``; the key is the hash of its config and of the keys
of its inputs. A run of several units of work (a fold at a size) keeps each finished unit, so that a
kill loses one unit at most.
"""

import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore.store.comparison import changes, differences as differences
from mfcore.store.errors import StoreError
from mfcore.store.locks import alone as alone, in_turn as in_turn
from mfcore.store.machine import environment, n_threads
from mfcore.store.names import file_name as file_name, words_of
from mfcore.store.records import (
    digest,
    file_sha256 as file_sha256,
    is_as_recorded,
    note_made,
    recorded,
)
from mfcore.store.text import parse_json

IDENTITY = ("stage", "name", "config", "inputs")  # of a run
LEFT_OVER_S = 86_400  # nobody writes an unfinished file any more that is as old


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to; on success it replaces ``path`` in one step.

    On error it is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield aside
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        aside.replace(path)
        note_made("file", path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: str | Path, content: object) -> None:
    """Write plain data as JSON, whole or not at all; NaN is refused."""
    with replacing(path) as aside:
        aside.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> dict:
    """Read a JSON file; raises StoreError where it isn't there, isn't JSON or says a key twice."""
    try:
        return parse_json(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except ValueError as error:
        raise StoreError(
            f"{path} is not JSON ({error}); remove it and run the step again"
        ) from None


def write_parquet(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet, whole or not at all."""
    with replacing(path) as aside:
        table.to_parquet(aside, index=False)


def read_parquet(path: str | Path) -> pd.DataFrame:
    """Read a table; raises StoreError where it is missing or damaged, with what to do."""
    path = Path(path)
    whole = path.with_suffix(".*") if path.parent.name == "units" else path.parent
    try:
        return pd.read_parquet(path)
    except PermissionError:
        raise
    except (ValueError, OSError) as error:  # pyarrow's errors are of these
        reason = " ".join(str(error).split())[:200]
        raise StoreError(
            f"{path} is missing or damaged ({reason}); remove {whole} and run the step again"
        ) from None


def write_csv(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, whole or not at all."""
    with replacing(path) as aside:
        table.to_csv(aside, index=False)


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
    def ended(self) -> tuple[str, int]:
        """When a finished run ended, to sort runs by."""
        return self.record["finished"], (self.folder / "run.json").stat().st_mtime_ns

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
        """The result of one unit of work, done when the file exists; write it with `replacing`."""
        return self.folder / "units" / f"{unit}{suffix}"

    def finish(self, files: list[str], **facts: object) -> "Run":
        """Write ``run.json``: inputs, code, environment, duration, checksums of ``files``."""
        write_json(
            self.path("run.json"),
            {
                **self.identity,
                "key": self.key,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": round(time.monotonic() - self._started, 3),
                "facts": facts,
                "files": {name: recorded(self.path(name)) for name in files},
                "environment": {**environment(), "n_threads": n_threads()},
            },
        )
        return self

    def examined(self, whole: bool = False) -> tuple[list[Path], list[Path]]:
        """The recorded files that are missing, and those that have another content.

        whole: compare checksums also where size and time are the same. The time of an unchanged
        file (a copy's) is recorded anew.
        """
        record, missing, differing = self.record, [], []
        for name, facts in record["files"].items():
            path = self.path(name)
            if not path.is_file():
                missing.append(path)
            elif is_as_recorded(path, facts, whole):
                facts["mtime_ns"] = path.stat().st_mtime_ns
            else:
                differing.append(path)
        if record != self.record:
            with contextlib.suppress(OSError):  # results that may only be read
                write_json(self.path("run.json"), record)
        return missing, differing

    def verify(self) -> "Run":
        """Raise StoreError, naming all recorded files that are missing or changed."""
        if wrong := [str(path) for paths in self.examined() for path in paths]:
            names = ", ".join(wrong)
            raise StoreError(
                f"{names} is missing or not as recorded; remove {self.folder} and run it again"
            )
        return self


def run_at(folder: str | Path) -> Run:
    """The finished run in a folder; raises StoreError where ``run.json`` is missing or damaged."""
    file = Path(folder) / "run.json"
    record = read_json(file)
    try:
        run = Run(file.parent, {key: record[key] for key in IDENTITY})
        is_whole = record["key"] == run.key
    except (KeyError, TypeError):
        is_whole = False
    if not is_whole:
        raise StoreError(f"{file} is damaged; remove {file.parent} and run the step again")
    return run


def runs(results: str | Path, stage: str = "*") -> list[Run]:
    """Every finished run of a stage; raises StoreError as `run_at`."""
    return [run_at(file.parent) for file in sorted(Path(results).glob(f"{stage}-*/run.json"))]


def run_by(
    results: str | Path, stage: str, name: str, config: Mapping, inputs: Mapping[str, str]
) -> Run:
    """The run of that identity, whatever there is of it."""
    identity = {"stage": stage, "name": name, "config": config, "inputs": inputs}
    identity = json.loads(json.dumps(identity, allow_nan=False))
    return Run(Path(results) / f"{stage}-{words_of(name)}-{digest(identity)}", identity)


def _pointer(results: str | Path, stage: str, name: str, known: Mapping) -> Path:
    """The file that names the current run among all that ``known`` describes."""
    return Path(results) / "current" / f"{digest([stage, name, known])}.json"


def open_run(
    results: str | Path,
    stage: str,
    name: str,
    config: Mapping,
    inputs: Mapping[str, str],
    known: Mapping | None = None,
) -> Run:
    """Open the folder of a run, new, begun or finished, and make it the current one.

    ``inputs`` names what the run reads: keys of earlier runs, checksums of files. known: what a
    reader who doesn't know all of config and inputs looks for (`last_opened`). Raises StoreError
    where the folder was made from something else, naming the keys that differ, and where a file of
    a finished run isn't as recorded.
    """
    run = run_by(results, stage, name, config, inputs)
    folder, identity = run.folder, run.identity
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):  # another process may be at work in the folder
        for aside in folder.rglob(".*.partial"):
            if time.time() - aside.stat().st_mtime > LEFT_OVER_S:
                aside.unlink()
    begun = folder / "begun.json"
    if begun.is_file():
        differing = changes(read_json(begun), identity)
        if differing:
            raise StoreError(
                f"{folder} was made from something else: {'; '.join(differing)}. Remove it."
            )
    else:
        write_json(begun, identity)
    if run.done:
        run_at(folder).verify()
    for what in (config, known or config):
        pointer, content = _pointer(results, stage, name, what), {"run": folder.name}
        if not pointer.is_file() or read_json(pointer) != content:
            write_json(pointer, content)
    note_made("run", folder)
    return run


def find_run(
    results: str | Path,
    stage: str,
    name: str,
    config: Mapping,
    inputs: Mapping[str, str] | None = None,
) -> Run:
    """The finished run of ``stage`` called ``name`` with this config and these inputs.

    Without inputs it is the one that was opened last with this config, or with this ``known``, as
    `last_opened`. Raises StoreError, naming what differs in the nearest run, where there is none.
    """
    if inputs is None:
        inputs, run = {}, last_opened(results, stage, name, config)
    else:
        run = run_by(results, stage, name, config, inputs)
    if run and run.done:
        return run_at(run.folder)
    known, nearest = {**inputs, **config}, "run the notebook that makes it first"
    for other in runs(results, stage):
        if other.identity["name"] == name:
            made_of = {**other.identity["inputs"], **other.identity["config"]}
            shared = {key: made_of[key] for key in known if key in made_of}
            reason = "; ".join(changes(shared, json.loads(json.dumps(known))))
            nearest = f"{other.folder.name} is there, but {reason or 'it has other keys'}"
    raise StoreError(f"no finished {stage!r} run {name!r} in {results}; {nearest}.")


def last_opened(results: str | Path, stage: str, name: str, known: Mapping) -> Run | None:
    """The run that was opened last with this ``known`` (see `open_run`), or with this config.

    None where there is none, or it isn't finished.
    """
    pointer = _pointer(results, stage, name, known)
    folder = pointer.is_file() and Path(results) / read_json(pointer)["run"]
    return run_at(folder) if folder and Run(folder, {}).done else None


def read_embeddings(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 (n_patches, n_dims) and patch ids int64 (n_patches,) of a finished run."""
    import h5py

    try:
        with h5py.File(run.path("embeddings.h5")) as content:
            return content["features"][:], content["patch_id"][:]
    except (OSError, KeyError) as error:
        file = run.path("embeddings.h5")
        remedy = f"remove {run.folder} and embed again"
        raise StoreError(f"{file} can't be read ({error}); {remedy}") from None
