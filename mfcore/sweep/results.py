"""What a study's jobs made: how their records name it, and whether it is there, as it was."""

import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from mfcore import store

# folders of the sweep itself, in a study's results
OWN = ("jobs", "running", "failures", "logs", "inputs", "current")


def made(notes: Path, results: Path, more: Iterable[Path] = ()) -> dict:
    """What a job's processes noted (`store_records.note_made`): ``runs``, and other ``files``.

    more: files that it wrote besides. Paths are relative to ``results``.
    """
    lines = notes.read_text(encoding="utf-8").splitlines() if notes.is_file() else []
    noted = [json.loads(line) for line in lines if line.endswith("]")]  # a kill may cut the last
    folders = {Path(path) for kind, path in noted if kind == "run"}
    runs = sorted(folder.name for folder in folders if (folder / "run.json").is_file())
    paths = {path.resolve() for path in more}
    paths |= {Path(path).resolve() for kind, path in noted if kind == "file"}
    files = {}
    for path in sorted(paths):
        if path.is_file() and path.is_relative_to(results):
            place = path.relative_to(results)
            top, is_run = place.parts[0], (results / place.parts[0] / "begun.json").is_file()
            if top not in OWN and not top.startswith(".") and not is_run:
                files[place.as_posix()] = store.recorded(path)
    return {"runs": runs, "files": files}


def check(results: Path, names: Iterable[str], whole: bool = False) -> set[str]:
    """Which jobs must run again: a file of their runs is missing, a figure or page changed, or the
    record names nothing.

    whole: every checksum is compared, not only those of files of another size or time. Raises
    StoreError, before anything is changed, naming every file of a run that isn't as recorded, and
    what to do.
    """
    files = {name: results / "jobs" / f"{name}.json" for name in names}
    records = {name: store.read_json(file) for name, file in files.items() if file.is_file()}
    again = {name for name, record in records.items() if not isinstance(record, dict)}
    for name in again:
        del records[name]
    lost, problems = {}, []
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
        remedy = f"remove {run.folder} and run again"
        problems += [f"{file} isn't as it was made; {remedy}" for file in differing]
        if missing:
            again |= {*jobs}
            lost[folder] = missing
    if problems:
        raise store.StoreError("\n".join(problems))
    changed = []
    for file, jobs in _makers(records, "files").items():
        path, facts = results / file, [records[name]["files"][file] for name in jobs]
        if not path.is_file():
            again.update(jobs)
        elif not any(store.is_as_recorded(path, each, whole) for each in facts):
            changed.append(path)  # whoever runs a notebook by hand writes its figures anew
            again.update(jobs)
    if changed:
        n_more = len(changed) - 1
        more = f" and {n_more} more file{'s' * (n_more > 1)}" * (n_more > 0)
        is_not = "aren't as they were" if more else "isn't as it was"
        print(f"{changed[0]}{more} {is_not} made: made again", file=sys.stderr)
    for folder, missing in lost.items():
        words = ", ".join(map(str, missing))
        print(f"{words} is missing: made again, as far as it isn't kept", file=sys.stderr)
        (results / folder / "run.json").unlink()
        for file in missing:
            if file.parent.name == "units":  # its other files alone would pass for the whole unit
                for part in file.parent.glob(f"{file.stem}.*"):
                    part.unlink()
    return again


def finding(results: Path) -> str:
    """What a study found, as the exhibit of its arms says it; empty where there is none."""
    file = results / "figures" / "05_arms.json"
    return store.read_json(file)["caption"] if file.is_file() else ""


def _makers(records: dict[str, dict], what: str) -> dict[str, list[str]]:
    """The jobs by whose records each of the "runs" or "files" was made."""
    makers = defaultdict(list)
    for name, record in records.items():
        for made in record.get(what, ()):
            makers[made].append(name)
    return makers
