"""What a study's jobs made: how each job's record names it, and whether it is still there, as it was."""

import contextlib
import json
import os
import sys
from collections import defaultdict
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
    """Which jobs of those ``names`` must run again: a file of their runs is missing, or a figure or page was changed.

    whole: every checksum is compared, not only those of files of another size or time. Raises StoreError, before anything is
    changed, naming every file of a run that isn't as recorded, and what to do.
    """
    records = {}
    for name in names:
        with contextlib.suppress(store.StoreError):  # without a record the job runs anyway
            records[name] = store.read_json(results / "jobs" / f"{name}.json")
    again, lost, problems = set(), {}, []
    for folder, jobs in _makers(records, "runs").items():
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
    if problems:
        raise store.StoreError("\n".join(problems))
    _check_files(results, records, whole, again)
    for folder, missing in lost.items():
        print(f"{', '.join(map(str, missing))} is missing: made again, as far as it isn't kept", file=sys.stderr)
        (results / folder / "run.json").unlink()
        for file in missing:
            if file.parent.name == "units":  # its other files alone would pass for the whole unit
                for part in file.parent.glob(f"{file.stem}.*"):
                    part.unlink()
    return again


def _check_files(results: Path, records: dict[str, dict], whole: bool, again: set[str]) -> None:
    """Add to ``again`` the jobs whose figures or pages are missing or not as recorded; record changed times of the others.

    Whoever runs a notebook in JupyterLab writes its figures anew, so that these are made again where a run would be refused.
    """
    renewed = set()
    for file, jobs in _makers(records, "files").items():
        path, recorded = results / file, [records[name]["files"][file] for name in jobs]
        if not path.is_file():
            again.update(jobs)
        elif not any(store.is_as_recorded(path, facts, whole) for facts in recorded):
            print(f"{path} isn't as it was made: made again", file=sys.stderr)
            again.update(jobs)
        else:
            for name, facts in zip(jobs, recorded, strict=True):
                if facts["mtime_ns"] != path.stat().st_mtime_ns and facts["bytes"] == path.stat().st_size:
                    facts["mtime_ns"] = path.stat().st_mtime_ns
                    renewed.add(name)
    for name in renewed:
        _rewrite(results / "jobs" / f"{name}.json", records[name])


def _makers(records: dict[str, dict], what: str) -> dict[str, list[str]]:
    """The jobs by whose records each of the "runs" or "files" was made."""
    makers = defaultdict(list)
    for name, record in records.items():
        for made in record.get(what, ()):
            makers[made].append(name)
    return makers


def _rewrite(file: Path, record: dict) -> None:
    """Write a job's record anew with the time that it had, by which Snakemake knows whether the job is to run."""
    state = file.stat()
    with contextlib.suppress(OSError):  # results that may only be read
        store.write_json(file, record)
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
