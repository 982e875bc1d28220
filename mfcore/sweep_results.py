"""What a study's jobs made: how each job's record names it, and whether it is still there, as it was."""

import contextlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from mfcore import store

OWN = ("jobs", "running", "failures", "logs", "inputs", "current")  # folders of the sweep itself, in a study's results


def made(notes: Path, results: Path, more: Iterable[Path] = ()) -> dict:
    """What a job's processes noted (`store_records.note_made`), for its record: ``runs``, finished ones, and other ``files``.

    more: files that it wrote besides. Paths are relative to ``results``.
    """
    lines = notes.read_text(encoding="utf-8").splitlines() if notes.is_file() else []
    noted = [json.loads(line) for line in lines if line.endswith("]")]  # a kill may have cut the last
    runs = {Path(path).name for kind, path in noted if kind == "run" and (Path(path) / "run.json").is_file()}
    files = {Path(path).resolve() for kind, path in noted if kind == "file"} | {path.resolve() for path in more}
    found = {}
    for file in sorted(files):
        if file.is_file() and file.is_relative_to(results):
            place = file.relative_to(results)
            top = place.parts[0]
            if top not in OWN and not top.startswith(".") and not (results / top / "begun.json").is_file():
                found[place.as_posix()] = store.recorded(file)
    return {"runs": sorted(runs), "files": found}


def check(results: Path, names: Iterable[str], whole: bool = False) -> set[str]:
    """Which jobs of those ``names`` must run again, as a file of their results is missing; what is left whole is kept.

    whole: every checksum is compared, not only those of files of another size or time. Raises StoreError, before anything is
    changed, naming every file that isn't as recorded, and what to do.
    """
    records = {}
    for name in names:
        with contextlib.suppress(store.StoreError):  # without a record the job runs anyway
            records[name] = store.read_json(results / "jobs" / f"{name}.json")
    again, lost, problems = set(), {}, []
    makers: dict[str, list[str]] = {}
    for name, record in records.items():
        for folder in record.get("runs", []):
            makers.setdefault(folder, []).append(name)
    for folder, jobs in makers.items():
        if not (results / folder / "run.json").is_file():
            again |= {*jobs}
            continue
        try:
            run = store.run_at(results / folder)
            missing, differing = run.examined(whole)
        except store.StoreError as error:
            problems.append(str(error))
            continue
        problems += [f"{file} isn't as it was made; remove {run.folder} and run again" for file in differing]
        if missing:
            again |= {*jobs}
            lost[folder] = missing
    problems += _files(results, records, whole, again)
    if problems:
        raise store.StoreError("\n".join(problems))
    for folder, missing in lost.items():
        print(f"{', '.join(map(str, missing))} is missing: made again, as far as it isn't kept", file=sys.stderr)
        (results / folder / "run.json").unlink()
        for file in missing:
            if file.parent.name == "units":  # its other files alone would pass for the whole unit
                for part in file.parent.glob(f"{file.stem}.*"):
                    part.unlink()
    return again


def _files(results: Path, records: dict[str, dict], whole: bool, again: set[str]) -> list[str]:
    """What is wrong with files outside runs; jobs of which one is missing are added to ``again``, times are recorded anew."""
    problems, renewed = [], set()
    said: dict[str, list[tuple[str, dict]]] = {}
    for name, record in records.items():
        for file, facts in record.get("files", {}).items():
            said.setdefault(file, []).append((name, facts))
    for file, told in said.items():
        path = results / file
        if not path.is_file():
            again |= {name for name, _ in told}
        elif not any(store.is_as_recorded(path, facts, whole) for _, facts in told):
            problems.append(f"{path} isn't as it was made; remove it and run again")
        else:
            for name, facts in told:
                if facts["mtime_ns"] != path.stat().st_mtime_ns and facts["bytes"] == path.stat().st_size:
                    facts["mtime_ns"] = path.stat().st_mtime_ns
                    renewed.add(name)
    for name in renewed:
        _rewrite(results / "jobs" / f"{name}.json", records[name])
    return problems


def _rewrite(file: Path, record: dict) -> None:
    """Write a job's record anew with the time that it had, by which Snakemake knows whether the job is to run."""
    state = file.stat()
    with contextlib.suppress(OSError):  # results that may only be read
        store.write_json(file, record)
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
