"""One job of the sweep, wherever it runs: its notebook or process, and the record it leaves.

A job that fails leaves a record with its reason and counts as ended, so that the others go on. One
that is killed, with its node or for its memory or time, can leave none: it leaves its note in
``running/``, which says how often it was begun.
"""

import contextlib
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TextIO

from mfcore import store
from mfcore.store import files as store_files, records as store_records
from mfcore.study.config import Settings, as_dict, load_study
from mfcore.study.data import data_folder
from mfcore.sweep import ROOT, inputs as sweep_inputs, results as sweep_results
from mfcore.sweep.jobs import GO_ON, READ_DATA, SHARE, STAGES, SUPPLEMENT, Job, jobs_of

MAX_BEGUN = 3  # a job killed so often is given up
NOT_RUN = "not run: "  # how the reason begins of a job that another one's failure stopped
FOREVER = 10**8  # seconds to wait for a kernel that is alive; one that isn't ends the wait
MAX_SCRATCH = 70  # characters of a scratch folder's path; a socket's whole path has 107 at most


class SweepError(RuntimeError):
    """The sweep can't start or a job failed; the message says why and what to do."""


class KilledError(RuntimeError):
    """A job's process was killed, which says nothing of the job: it is begun again."""


def run_job(
    file: Path,
    name: str,
    results: Path,
    data: str,
    n_threads: int,
    n_shares: int = 1,
    record: Path | None = None,
) -> bool:
    """Run one job of the study in ``file``; returns whether it succeeded.

    results: the study's own folder. Leaves the executed notebook in ``notebooks/``, a record in
    ``jobs/`` (or at ``record``) and, where it failed, one in ``failures/``. Raises KilledError, and
    leaves no record, where its process was killed, and SweepError where the study has changed since
    the sweep began.
    """
    study = load_study(file)
    refuse_changed(study, results)
    job, failures = jobs_of(study, n_shares)[name], results / "failures"
    if (failures / f"{name}.json").is_file():  # it failed, it wasn't killed: no second try
        failure = store.read_json(failures / f"{name}.json")
        return end_job(results, job, failure["reason"], failure["seconds"], record)
    print(f"{name}: started", flush=True)
    begun = time.monotonic()
    failed = [need for need in job.depends if (failures / f"{need}.json").is_file()]
    if failed and job.stage not in GO_ON:
        reason = f"{NOT_RUN}{failed[0]} failed"
    else:
        reason = _attempt(job, study, file, results, data, n_threads)
    for share in {*job.needs} - {*job.depends}:  # what it failed to do was this job's to do
        (failures / f"{share}.json").unlink(missing_ok=True)
    return end_job(results, job, reason, round(time.monotonic() - begun, 1), record, _spent())


def _attempt(
    job: Job, study: Settings, file: Path, results: Path, data: str, n_threads: int
) -> str | None:
    """Do a job's work; returns why it failed, or None. Raises KilledError as `run_job`."""
    note, made = results / "running" / f"{job.name}.json", _notes(results, job.name)
    n_begun = 1 + (store.read_json(note)["n_begun"] if note.is_file() else 0)
    reason = "killed: with its node, or for its memory or time"
    store.write_json(note, {"n_begun": n_begun, "reason": reason})
    for old in (made, _log(results, job.name)):
        old.unlink(missing_ok=True)
    os.environ[store_records.NOTES] = str(made)  # the job's processes inherit it
    try:
        if job.notebook:
            _run_notebook(job, study, file, results, data, n_threads)
        elif job.stage == SUPPLEMENT:
            from mfcore.sweep.book import book

            book.build(study, results, jobs_of(study))
        else:
            _run_process(job, file, results, data, n_threads)
        if job.stage in READ_DATA:
            sweep_inputs.write(study, results, data_folder(study, file, data), [job], anew=False)
        return None
    except KilledError as error:
        store.write_json(note, {"n_begun": n_begun, "reason": str(error)})
        raise
    except Exception as error:  # whatever went wrong is that job's failure, not the sweep's
        with contextlib.suppress(OSError):  # such as of a full disk, which is then the reason
            _log(results, job.name).write_text(_plain(traceback.format_exc()), encoding="utf-8")
        name = getattr(error, "ename", type(error).__name__)  # of a cell's error, by papermill
        return _plain(f"{name}: {getattr(error, 'evalue', error)}").strip()
    finally:
        del os.environ[store_records.NOTES]


def refuse_changed(study: Settings, results: Path) -> None:
    """Raise SweepError where ``study`` isn't the one that the sweep on ``results`` began with."""
    begun_with = results / sweep_inputs.FOLDER / "study.json"
    if begun_with.is_file() and store.read_json(begun_with).get("study") != as_dict(study):
        raise SweepError(f"study {study.name}: its file changed while the sweep ran; run it again")


def _run_notebook(
    job: Job, study: Settings, file: Path, results: Path, data: str, n_threads: int
) -> None:
    parameters = {"study_file": str(file), "results": str(results.parent), **job.parameters}
    parameters |= {"n_workers": n_threads} if job.notebook == STAGES["01"] else {}
    parameters |= {"data_folder": data} if data and job.stage in READ_DATA else {}
    of_what = f"*The outputs are those of the {study.in_full}.*"
    source, target = f"{job.notebook}.py", results / "notebooks" / f"{job.name}.ipynb"
    with _log(results, job.name).open("w", encoding="utf-8") as log:  # to be watched meanwhile
        execute(ROOT / "notebooks" / source, target, parameters, n_threads, of_what, log)


def _run_process(job: Job, file: Path, results: Path, data: str, n_threads: int) -> None:
    """Have a share or a switch done by a process of its own, whose stderr goes to the job's log."""
    command = [sys.executable, "-m", "mfcore", "embed" if job.stage == SHARE else "measure"]
    command += [f"--study={file}", f"--results={results.parent}"]
    command += [f"--{key}={value}" for key, value in job.parameters.items()]
    command += [f"--workers={n_threads}"] if job.stage != SHARE else []
    command += [f"--data={data}"] if data else []
    log, environment = _log(results, job.name), os.environ | _environment(n_threads)
    with log.open("w", encoding="utf-8") as written:  # to be watched meanwhile
        status = subprocess.run(command, stderr=written, env=environment).returncode
    if status < 0:
        raise KilledError(f"killed by signal {-status}; out of memory?")
    if status:
        words = log.read_text(encoding="utf-8").replace("\r", "\n").strip()
        told = re.search(
            r"^mfcore: .*|[^\n]*\Z", words, re.M | re.S
        )  # all it tells, or the last line
        raise SweepError(told[0] or f"exit status {status}")


def _log(results: Path, name: str) -> Path:
    log = results / "logs" / f"{name}.txt"
    log.parent.mkdir(exist_ok=True)
    return log


def end_job(
    results: Path,
    job: Job,
    reason: str | None,
    seconds: float,
    record: Path | None = None,
    spent: Mapping[str, float] = MappingProxyType({}),
) -> bool:
    """Record how a job ended, with the ``reason`` where it failed; returns whether it succeeded.

    spent: as `_spent`.
    """
    notebook = f"notebooks/{job.name}.ipynb" if job.notebook else ""
    facts = {
        "stage": STAGES["02"] if job.stage == SHARE else job.stage,
        "name": job.name,
        "parameters": dict(job.parameters),
        "notebook": notebook,
        "seconds": seconds,
        **spent,
    }
    if reason is None:
        print(f"{job.name}: done in {seconds:.0f} s", flush=True)
    else:
        store.write_json(results / "failures" / f"{job.name}.json", {**facts, "reason": reason})
        print(f"{job.name}: FAILED after {seconds:.0f} s: {reason}", file=sys.stderr, flush=True)
    wrote = [results / notebook] if notebook else []
    wrote += store_files.below(results / "supplement") if job.stage == SUPPLEMENT else []
    notes = _notes(results, job.name)
    facts |= {"failed": reason is not None, **sweep_results.made(notes, results, wrote)}
    store.write_json(record or results / "jobs" / f"{job.name}.json", facts)
    for note in (notes, notes.with_suffix(".json")):
        note.unlink(missing_ok=True)
    return reason is None


def _spent() -> dict[str, float]:
    """CPU seconds and, at most, the memory of this process and of those that it waited for."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_seconds = sum(each.ru_utime + each.ru_stime for each in usage)
    peak = sum(each.ru_maxrss for each in usage)  # of each its own, whether or not at one time
    kb = peak / 1024 if sys.platform == "darwin" else peak
    return {"cpu_seconds": round(cpu_seconds, 2), "memory_mb": round(kb / 1024)}


def _notes(results: Path, name: str) -> Path:
    """Where a job's processes note what they make."""
    return results / "running" / f"{name}.made"


def killed(results: Path, jobs: Mapping[str, Job]) -> dict[str, int]:
    """The jobs that were begun and never ended, now that none runs, and how often each was begun.

    One that was begun `MAX_BEGUN` times is recorded as failed: those that wait for it go on.
    """
    found = {}
    for note in sorted((results / "running").glob("*.json")):
        if note.stem in jobs and not (results / "jobs" / note.name).is_file():
            content = store.read_json(note)
            n = found[note.stem] = content["n_begun"]
            if n >= MAX_BEGUN:
                end_job(results, jobs[note.stem], f"{content['reason']} ({n} times)", 0.0)
        else:
            note.unlink(missing_ok=True)
    return found


def execute(
    source: Path,
    target: Path,
    parameters: Mapping[str, object],
    n_threads: int = 1,
    of_what: str = "",
    log: TextIO | None = None,
) -> None:
    """Execute a notebook (percent .py) with papermill into ``target`` (.ipynb), also if it fails.

    of_what: a line that its text then begins with: what its outputs are of. log: gets what the
    notebook writes to stderr, such as bars of progress, as it comes. Raises papermill's
    error where a cell fails, KilledError where the kernel died, or didn't start. The kernel talks
    over sockets in a folder of its own: over ports, as is usual, two kernels that start at once may
    choose the same one. Its own files go into that folder too: the home may not be writable, and
    what is set up in it would change the notebook.
    """
    import jupytext
    import papermill
    from nbformat.v4 import new_markdown_cell
    from traitlets.config import Config

    notebook = jupytext.read(source)
    if of_what:
        if notebook.cells[0].cell_type != "markdown":
            notebook.cells.insert(0, new_markdown_cell())
        notebook.cells[0].source = f"{of_what}\n\n{notebook.cells[0].source}".rstrip()
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata["kernelspec"] = kernel
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.stem}.partial.ipynb")
    scratch = "/tmp" if len(tempfile.gettempdir()) > MAX_SCRATCH else None
    with tempfile.TemporaryDirectory("", "mf-", scratch, ignore_cleanup_errors=True) as folder:
        sockets = {"transport": "ipc", "connection_file": f"{folder}/k.json"}
        os.environ.update(_environment(n_threads), IPYTHONDIR=folder, JUPYTER_RUNTIME_DIR=folder)
        try:
            papermill.execute_notebook(
                notebook,
                re.sub("([{}])", r"\1\1", str(aside)),  # papermill fills in what is in braces
                dict(parameters),
                cwd=str(source.parent),
                progress_bar=False,
                stderr_file=log,
                start_timeout=FOREVER,
                iopub_timeout=600,  # after a cell's end, for the last of its output
                config=Config(KernelManager=sockets),
            )
        except RuntimeError as error:
            if "Kernel died" in str(error):  # in a cell, or before it answered
                raise KilledError("its kernel died; out of memory?") from error
            raise
        finally:
            if aside.is_file():
                aside.replace(target)


def _environment(n_threads: int) -> dict[str, str]:
    """What a job's processes find in their environment: how many threads, and bars as text.

    tqdm draws widgets in a notebook, which no log holds, but not where a variable begins as the
    second last does; a line each five seconds keeps days of training short.
    """
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    bars = {"SPYDER_BARS_AS_TEXT": "1", "TQDM_MININTERVAL": "5"}
    return dict.fromkeys(threads, str(n_threads)) | bars


def _plain(text: str) -> str:
    """Without colours, and in characters that every file takes."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text).encode("utf-8", "backslashreplace").decode()
