"""One job of the sweep, wherever it runs: its notebook by papermill, or a process of its own, and the record it leaves.

A job that fails leaves a record with its reason and counts as ended, so that the others go on. One that is killed, with its
node or for its memory or time, can leave none: it leaves its note in ``running/``, which says how often it was begun.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mfcore import store
from mfcore.store import files as store_files, records as store_records
from mfcore.study.config import Settings, load_study
from mfcore.sweep import inputs as sweep_inputs, results as sweep_results
from mfcore.sweep.jobs import ROOT, SHARE, STAGES, SUPPLEMENT, Job, jobs_of

MAX_BEGUN = 3  # a job killed so often is given up
MAX_STARTS = 4  # of a kernel that dies before the first cell
MAX_SOCKET_BYTES = 100  # of a socket's path; Linux takes 107, macOS 103
FOREVER = 10**8  # seconds to wait for a kernel that is alive; one that isn't ends the wait


class SweepError(RuntimeError):
    """The sweep can't start or a notebook can't be run as asked; the message says why and what to do."""


class KilledError(RuntimeError):
    """A job's process was killed, which says nothing of the job: to be run again where there is an attempt left."""


def run_job(
    file: Path, name: str, results: Path, data: str, n_threads: int, n_shares: int = 1, record: Path | None = None
) -> bool:
    """Run one job of the study in ``file``; returns whether it succeeded.

    results: the study's own folder. Leaves the executed notebook in ``notebooks/``, a record in ``jobs/`` (or at ``record``)
    and, where it failed, one in ``failures/``. Raises KilledError, and leaves no record, where its process was killed.
    """
    study = load_study(file)
    job = jobs_of(study, n_shares)[name]
    record = record or results / "jobs" / f"{name}.json"
    if (results / "failures" / f"{name}.json").is_file():
        said = store.read_json(results / "failures" / f"{name}.json")  # it failed, it wasn't killed: no second try
        return end_job(results, job, said["reason"], said["seconds"], record)
    print(f"{name}: started", flush=True)
    note = results / "running" / f"{name}.json"
    n_begun = 1 + (store.read_json(note)["n_begun"] if note.is_file() else 0)
    store.write_json(note, {"n_begun": n_begun, "reason": "killed: with its node, or for its memory or time"})
    begun = time.monotonic()
    _notes(results, name).unlink(missing_ok=True)
    failed = [need for need in job.depends if (results / "failures" / f"{need}.json").is_file()]
    reason = None
    if failed and not job.goes_on:
        reason = f"not run: {failed[0]} failed"
    else:
        os.environ[store_records.NOTES] = str(_notes(results, name))  # the job's processes inherit it
        try:
            if job.notebook:
                _run_notebook(job, file, results, data, n_threads)
            elif job.stage == SUPPLEMENT:
                from mfcore.sweep.book import book

                book.build(study, results, jobs_of(study))
            else:
                _run_process(job, file, results, data, n_threads)
            if job.reads_data:
                sweep_inputs.write(study, results, data_folder(study, file, data), [job], anew=False)
        except KilledError as error:
            store.write_json(note, {"n_begun": n_begun, "reason": str(error)})
            raise
        except Exception as error:  # whatever went wrong in a notebook is that job's failure, not the sweep's
            reason = _reason(error)
            (results / "logs").mkdir(exist_ok=True)
            (results / "logs" / f"{name}.txt").write_text(_plain(traceback.format_exc()), encoding="utf-8")
        finally:
            del os.environ[store_records.NOTES]
    for share in {*job.needs} - {*job.depends}:  # what it failed to do, this job did, or failed to do for its own reason
        (results / "failures" / f"{share}.json").unlink(missing_ok=True)
    return end_job(results, job, reason, round(time.monotonic() - begun, 1), record)


def _run_notebook(job: Job, file: Path, results: Path, data: str, n_threads: int) -> None:
    parameters = {"study_file": str(file), "results": str(results.parent), **job.parameters}
    parameters |= {"n_workers": n_threads} if job.notebook == STAGES["01"] else {}
    parameters |= {"data_folder": data} if data and job.reads_data else {}
    from mfcore.analysis.exhibit import in_full

    source, target = ROOT / "notebooks" / f"{job.notebook}.py", results / "notebooks" / f"{job.name}.ipynb"
    of_what = f"*The outputs are those of the {in_full(load_study(file))}.*"
    execute(source, target, parameters, n_threads, of_what)


def _run_process(job: Job, file: Path, results: Path, data: str, n_threads: int) -> None:
    """Have a job without a notebook done by a process of its own."""
    command = [sys.executable, "-m", *(("mfcore", "embed") if job.is_share else ("mfcore.sweep.switches",))]
    command += ["--study", str(file), "--results", str(results.parent)]
    if job.is_share:
        command += ["--encoder", str(job.parameters["encoder"])]
        command += ["--share", str(job.parameters["share"]), "--shares", str(job.parameters["n_shares"])]
    else:
        command += ["--switch", str(job.parameters["switch"]), "--workers", str(n_threads)]
        command += ["--data", data] if data else []
    log = results / "logs" / f"{job.name}.txt"
    log.parent.mkdir(exist_ok=True)
    with log.open("w", encoding="utf-8") as written:  # to be watched while it goes on
        status = subprocess.run(command, stderr=written, env=os.environ | _threads(n_threads)).returncode
    if status < 0:
        raise KilledError(f"killed by signal {-status}; out of memory?")
    if status:
        raise SweepError(_told(log.read_text(encoding="utf-8")) or f"exit status {status}")


def _told(log: str) -> str:
    """Why a process failed: all that its command line says, a line for each problem; else the last line of its log."""
    lines = [line for line in re.split(r"[\r\n]+", log) if line.strip()]
    begins = [i for i, line in enumerate(lines) if line.startswith("mfcore: ")]
    return "\n".join(lines[begins[0] :] if begins else lines[-1:])


def end_job(results: Path, job: Job, reason: str | None, seconds: float, record: Path | None = None) -> bool:
    """Record how a job ended; ``reason`` says why it failed, None that it didn't. Returns whether it succeeded."""
    notebook = f"notebooks/{job.name}.ipynb" if job.notebook else ""
    stage = STAGES["02"] if job.stage == SHARE else job.stage
    facts = {"stage": stage, "name": job.name, "parameters": dict(job.parameters), "notebook": notebook, "seconds": seconds}
    if reason is None:
        print(f"{job.name}: done in {seconds:.0f} s", flush=True)
    else:
        store.write_json(results / "failures" / f"{job.name}.json", {**facts, "reason": reason})
        print(f"{job.name}: FAILED after {seconds:.0f} s: {reason}", file=sys.stderr, flush=True)
    wrote = [results / notebook] if notebook else []
    wrote += store_files.below(results / "supplement") if job.stage == SUPPLEMENT else []
    facts |= {"failed": reason is not None, **sweep_results.made(_notes(results, job.name), results, wrote)}
    store.write_json(record or results / "jobs" / f"{job.name}.json", facts)
    for note in (_notes(results, job.name), results / "running" / f"{job.name}.json"):
        note.unlink(missing_ok=True)
    return reason is None


def _notes(results: Path, name: str) -> Path:
    """Where a job's processes note what they make."""
    return results / "running" / f"{name}.made"


def data_folder(study: Settings, file: Path, data: str | Path | None) -> Path:
    """Where the study's data lie: as asked, or where the notebooks look."""
    return Path(data).expanduser() if data else file.resolve().parent.parent / "data" / study.name


def killed(results: Path, jobs: Mapping[str, Job]) -> dict[str, int]:
    """The jobs that were begun and never ended, now that none runs any more, and how often each was begun.

    One that was begun `MAX_BEGUN` times is recorded as failed, so that those that wait for it go on.
    """
    found = {}
    for note in sorted((results / "running").glob("*.json")):
        if note.stem in jobs and not (results / "jobs" / note.name).is_file():
            said = store.read_json(note)
            found[note.stem] = said["n_begun"]
            if said["n_begun"] >= MAX_BEGUN:
                end_job(results, jobs[note.stem], f"{said['reason']} ({said['n_begun']} times)", 0.0)
        else:
            note.unlink(missing_ok=True)
    return found


def execute(source: Path, target: Path, parameters: Mapping[str, object], n_threads: int = 1, of_what: str = "") -> None:
    """Execute the notebook ``source`` (percent .py) with papermill into ``target`` (.ipynb), which is written even if it fails.

    of_what: a line that its text then begins with: what its outputs are of.
    A kernel that dies before the first cell is started again, a slow one is waited for as long as it lives. Raises SweepError,
    before a kernel starts, for a parameter that the notebook doesn't know (papermill only warns), and where every start
    failed; papermill's error where a cell fails, KilledError where the kernel died.
    """
    import jupytext
    import nbformat
    import papermill

    notebook = jupytext.read(source)
    known = known_parameters(notebook)
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise SweepError(f"{source.name} has no parameter {unknown[0]!r}; its parameters: {known}")
    if of_what:
        if notebook.cells[0].cell_type != "markdown":
            notebook.cells.insert(0, nbformat.v4.new_markdown_cell())
        notebook.cells[0].source = f"{of_what}\n\n{notebook.cells[0].source}".rstrip()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    target.parent.mkdir(parents=True, exist_ok=True)
    os.environ.update(_threads(n_threads))
    aside = target.with_name(f".{target.stem}.partial.ipynb")
    try:
        for n_starts in range(1, MAX_STARTS + 1):
            with tempfile.TemporaryDirectory(prefix="mf-", dir=_short_folder(), ignore_cleanup_errors=True) as folder:
                ready: list[bool] = []
                try:
                    papermill.execute_notebook(
                        notebook,
                        str(aside),
                        dict(parameters),
                        cwd=str(source.parent),
                        progress_bar=False,
                        start_timeout=FOREVER,
                        iopub_timeout=600,  # after a cell's end, for the last of its output
                        kernel_manager_class=_kernel_class(Path(folder)),
                        on_notebook_start=lambda ready=ready, **_: ready.append(True),
                    )
                    return
                except RuntimeError as error:
                    if type(error).__name__ == "DeadKernelError":  # nbclient's, which papermill brings
                        raise KilledError("its kernel was killed; out of memory?") from error
                    if ready:
                        raise
                    if n_starts == MAX_STARTS:
                        said = (Path(folder) / "stderr").read_text(encoding="utf-8", errors="replace")
                        reason = _told(said) or str(error)
                        raise SweepError(f"its kernel died before the first cell, {n_starts} times: {reason}") from error
                finally:
                    _hand_on(Path(folder) / "stderr")
    finally:
        if aside.is_file():
            aside.replace(target)


def _short_folder() -> str:
    """The folder for temporary files, or /tmp where the path of a kernel's socket in it would be too long."""
    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(f"{folder}/mf-12345678/k-ipc-1")) <= MAX_SOCKET_BYTES else "/tmp"


def _kernel_class(folder: Path) -> type:
    """What starts a kernel that talks over sockets in ``folder``, which must be its own; its stderr goes there, too.

    Over ports, as is usual, two kernels that start at once may choose the same one. The kernel's own files go into the folder
    as well: the home may not be writable, and what is set up in it would change the notebook.
    """
    from jupyter_client import AsyncKernelManager

    class Kernel(AsyncKernelManager):
        def __init__(self, **settings: Any):
            super().__init__(**settings)
            self.transport, self.connection_file = "ipc", str(folder / "k.json")

        async def start_kernel(self, **settings: Any) -> None:
            own = {name: str(folder) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR")}
            with (folder / "stderr").open("w", encoding="utf-8") as stderr:
                await super().start_kernel(**settings, stderr=stderr, env=os.environ | own)

    return Kernel


def _hand_on(stderr: Path) -> None:
    """Show what a kernel wrote past its notebook."""
    if stderr.is_file():
        sys.stderr.write(stderr.read_text(encoding="utf-8", errors="replace"))


def known_parameters(notebook: Mapping) -> list[str]:
    """Names assigned in the cell tagged ``parameters`` of a notebook."""
    import ast

    for cell in notebook["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            statements = ast.parse(cell["source"]).body
            return [s.targets[0].id for s in statements if isinstance(s, ast.Assign) and isinstance(s.targets[0], ast.Name)]
    raise SweepError("the notebook has no cell tagged 'parameters'")


def _threads(n: int) -> dict[str, str]:
    return {name: str(n) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _reason(error: Exception) -> str:
    """One line that tells why a notebook failed."""
    name, value = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", None) or str(error)
    return _plain(f"{name}: {value}").strip()
