"""The sweep: a study's notebooks run by papermill, each run a job, as the Snakefile orders them,
here or on a cluster.

A job that fails, or is killed in every attempt, leaves a record with its reason and counts as
ended, so that the others go on; the sweep's exit status tells. Records of failure are removed when
the sweep starts again, and so those jobs run again.

How many cores there are changes no number but the last digits of what is trained. Slides, patches,
splits, embeddings by given weights, and probes and other heads on them are the same to the bit.
Networks trained end to end or by LoRA, pretrainings, the decoders of segmentation tasks, and what
rests on a pretrained encoder come of sums that more threads add in another order: after a few steps
they differ from the 6th or 7th digit on, and more with every step. A run records how many threads
it had.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mfcore import store
from mfcore.store import errors as store_errors
from mfcore.study import data as study_data, tasks as study_tasks
from mfcore.study.config import ConfigError, Settings, load_study
from mfcore.sweep import (
    COMMANDS,
    ROOT,
    inputs as sweep_inputs,
    progress,
    results as sweep_results,
    study_file,
)
from mfcore.sweep.jobs import SUPPLEMENT, Job, job_name, jobs_of, with_dependents, with_needs
from mfcore.sweep.run import KilledError, SweepError, killed, refuse_changed, run_job

INTERRUPTED = 130  # exit status, as a shell has it
LOOK_S = 1.0  # between two looks at what the jobs do
N_LINES = 12  # of Snakemake's, where it ended for another reason than a job's failure
# options of Snakemake that run no job but print
SHOW_ONLY = re.compile(
    r"-[A-Za-z]*n[A-Za-z]*|--(dry-?run|dag|d3dag|rulegraph|filegraph|summary|detailed-summary"
    r"|list-rules)"
)
PLAIN = re.compile(r"[\w./~+-]+")  # Snakemake reads settings as YAML, which leaves this as it is
MAX_SHARES = 1000


def paper(asked: argparse.Namespace) -> int:
    """Run a study and build its supplement; returns the exit status: 1 where any job failed."""
    study, begun = load_study(asked.study), time.monotonic()
    data = study_data.data_folder(study, asked.study, asked.data)
    for task, place in study_tasks.absent(study, data).items():
        print(
            f"{study.name}: task {task} has no data yet; "
            f"lay them into {place} before its turn comes, after the pretrainings "
            "(data/README.md says in which layout)",
            file=sys.stderr,
        )
    folder, status, failures = _sweep(study, asked, [SUPPLEMENT])
    if _shows_only(asked):
        return status
    if status or failures:
        n, mend = len(failures), "Mend the cause, then run" if failures else "Run"
        print(
            f"{study.name}: {n or 'no'} job{'s' * (n != 1)} failed, Snakemake's status {status}. "
            f"{mend} again to go on. "
            f"Logs: {folder / 'logs'}; of a cluster's jobs: {folder / '.snakemake'}",
            file=sys.stderr,
        )
    index = folder / "supplement" / "index.html"
    is_old = _is_older(folder / "jobs" / f"{SUPPLEMENT}.json", folder / "failures")
    if index.is_file() and is_old:
        print(f"{index} is of an earlier run", file=sys.stderr)
    elif index.is_file() and SUPPLEMENT not in failures and not status:
        if (arms := sweep_results.finding(folder)) and job_name("05") not in failures:
            print(f"{study.name} found: {arms}")
        print(f"{study.name}: {progress.span(time.monotonic() - begun)}. Supplement:\n{index}")
    return 1 if status or failures else 0


def _is_older(record: Path, failures: Path) -> bool:
    """Whether a job has failed since the one of this record ended, or it never did."""
    times = [file.stat().st_mtime_ns for file in failures.glob("*.json")]
    return not record.is_file() or record.stat().st_mtime_ns < max(times, default=0)


def embed(asked: argparse.Namespace) -> int:
    """Make a study's embeddings, or those asked for; returns the exit status: 0 if all are made."""
    study, chosen = load_study(asked.study), asked.encoders.replace(",", " ").split()
    if unknown := sorted(set(chosen) - set(study.encoders)):
        raise SweepError(
            f"study {study.name!r} has no encoder {', '.join(unknown)}; "
            f"it has: {', '.join(study.encoders)}"
        )
    encoders = [encoder for encoder in study.encoders if not chosen or encoder in chosen]
    targets = [job_name("02", encoder) for encoder in encoders]
    folder, status, failures = _sweep(study, asked, targets)
    there = [name for name in targets if (folder / "jobs" / f"{name}.json").is_file()]
    n_there = len(set(there) - failures)
    print(f"{study.name}: {n_there} of {len(targets)} embeddings are there, in {folder}")
    return 1 if status or failures else 0


def _sweep(
    study: Settings, asked: argparse.Namespace, targets: list[str]
) -> tuple[Path, int, set[str]]:
    """Run jobs and what they need; returns the results' folder, Snakemake's status, who failed.

    Raises SweepError where it can't be begun as asked, where the study's file changes meanwhile and
    where the disk is full, StoreError where another sweep works on the same results.
    """
    _refuse(study, asked)
    with contextlib.suppress(AttributeError):  # a terminal may lack characters that a study has
        sys.stdout.reconfigure(errors="replace")
    folder = Path(asked.results).expanduser().resolve() / study.name
    jobs = with_needs(jobs_of(study, asked.shares), targets)
    data = study_data.data_folder(study, asked.study, asked.data)
    with store.alone(folder, "sweep"):
        command = _command(folder, asked, targets)
        if _shows_only(asked):
            sweep_inputs.write(study, folder, data, jobs.values())
            return folder, _run(command), set()
        again = sweep_results.check(folder, jobs, asked.verify)
        again |= {name for name in jobs if not (folder / "jobs" / f"{name}.json").is_file()}
        for failure in folder.glob("failures/*.json"):
            if failure.stem in jobs or ".share" in failure.stem:
                again.add(failure.stem)
                failure.unlink()
        # Snakemake makes a record that is missing only for who is to run
        for name in with_dependents(jobs, again):
            (folder / "jobs" / f"{name}.json").unlink(missing_ok=True)
        for note in folder.glob("running/*"):
            note.unlink()
        sweep_inputs.write(study, folder, data, jobs.values(), trusts=not asked.verify)
        log = folder / "logs" / "snakemake.txt"
        log.unlink(missing_ok=True)
        n_cores = asked.cores or len(os.sched_getaffinity(0))
        shared = 0 if asked.profile or _has_gpu() else n_cores
        told = progress.Progress(study, jobs, folder, targets, shared)
        before, status = None, 1
        while status not in (0, INTERRUPTED) and (now := _progress(folder, jobs)) != before:
            # Snakemake may stop at a job that was killed; others can go on
            before, status = now, _run(command, log, told)
            refuse_changed(load_study(asked.study), folder)
        told.end()
    failures = {file.stem for file in folder.glob("failures/*.json")} & jobs.keys()
    if status not in (0, INTERRUPTED) and not failures:
        _refuse_full(folder)
        words = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        print(*words.splitlines()[-N_LINES:], sep="\n", file=sys.stderr)
    return folder, status, failures


def _refuse(study: Settings, asked: argparse.Namespace) -> None:
    """Raise SweepError for what a sweep can't begin with."""
    if not 1 <= asked.shares <= MAX_SHARES or asked.gpus < 0:
        raise SweepError(
            f"SHARES={asked.shares}, GPUS={asked.gpus}: name 1 to {MAX_SHARES} shares, and 0 GPUs"
            " or more"
        )
    if asked.cores is not None and asked.cores < 1:
        raise SweepError(f"CORES={asked.cores}: name at least one core, or none for all")
    name = study.name
    if Path(name).name != name or " ".join(name.split()) != name or name in ("", ".."):
        raise SweepError(
            f"{asked.study}: the study's name {name!r} is to be that of a folder; leave out"
            " slashes, line breaks and blanks at its ends"
        )


def _refuse_full(folder: Path) -> None:
    """Raise SweepError where nothing more can be written into a folder."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**16))
    except OSError as error:
        raise SweepError(f"{folder}: {error.strerror}; make room and run again") from None


def _shows_only(asked: argparse.Namespace) -> bool:
    """Whether Snakemake is asked to print what it would do, and to do nothing."""
    return any(map(SHOW_ONLY.fullmatch, asked.options))


def _progress(folder: Path, jobs: dict[str, Job]) -> set[str]:
    """What Snakemake changes if it gets anywhere: jobs with a record, how often others began."""
    begun = {f"{name}, {n} times" for name, n in killed(folder, jobs).items()}
    return begun | {file.name for file in folder.glob("jobs/*.json")}


def _command(folder: Path, asked: argparse.Namespace, targets: list[str]) -> list[str]:
    """Snakemake's command line."""
    snakefile = ROOT / "Snakefile"
    settings = {"study": asked.study.resolve(), "results": folder, "shares": asked.shares}
    settings |= {"data": Path(asked.data).expanduser().resolve()} if asked.data else {}
    if asked.profile:
        with store.replacing(folder / "Snakefile") as aside:  # from where it is carried to pods
            shutil.copyfile(snakefile, aside)
        snakefile = folder / "Snakefile"
        where = ["--workflow-profile", str(_profile(asked.profile))]
        where += ["--default-storage-prefix", str(folder)]
        where += ["--cores", str(asked.cores)] if asked.cores else []
        settings |= {"gpus": asked.gpus}
    else:
        n_cores = asked.cores or len(os.sched_getaffinity(0))
        n_gpus = 1 if _has_gpu() else n_cores  # jobs take turns, else share the cores
        where = ["--cores", str(n_cores), "--resources", f"gpu={n_gpus}"]
        settings |= {"cores": n_cores, "gpus": 1}
    command = [sys.executable, "-m", "snakemake", *(f"jobs/{target}.json" for target in targets)]
    command += ["--snakefile", str(snakefile), "--directory", str(folder)]
    command += ["--keep-going", "--rerun-incomplete", "--nolock"]
    command += ["--rerun-triggers", "mtime", "params", "--quiet", "host", "reason", "rules", *where]
    command.append("--config")
    for key, value in settings.items():
        quoted = f" {json.dumps(str(value))} "  # the blanks keep the quotes from being taken away
        command.append(f"{key}={value if PLAIN.fullmatch(str(value)) else quoted}")
    return command + asked.options


def _has_gpu() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _profile(name: str) -> Path:
    """The folder of a profile given by its name in ``profiles/`` or by its path."""
    folder = Path(name).expanduser().resolve() if os.sep in name else ROOT / "profiles" / name
    if not (folder / "config.yaml").is_file():
        known = sorted(file.parent.name for file in ROOT.glob("profiles/*/config.yaml"))
        raise SweepError(
            f"no profile {name!r}: {folder / 'config.yaml'} isn't there; "
            f"there are: {', '.join(known)}"
        )
    return folder


def _run(command: list[str], log: Path | None = None, told: progress.Progress | None = None) -> int:
    """Run Snakemake to its end; returns its status, or INTERRUPTED.

    log: the file that its lines are added to (None: they are shown). told: looks now and then.
    Ctrl-C reaches Snakemake as well, a request to end (SIGTERM, or SIGHUP where a terminal closes)
    is handed on to it; then it is waited for: it calls back the jobs that it sent to a cluster.
    """
    interrupted = False
    if log:
        log.parent.mkdir(exist_ok=True)
    # A job that a script began by & ignores SIGINT. Snakemake would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("a") if log else contextlib.nullcontext() as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    signal.signal(signal.SIGINT, before)

    def hand_on(*_: object) -> None:
        process.send_signal(signal.SIGINT)
        raise KeyboardInterrupt

    for request in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(request) != signal.SIG_IGN:  # as nohup has it
            signal.signal(request, hand_on)
    try:
        while True:
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = process.wait(LOOK_S)
                    return INTERRUPTED if interrupted else status
                if told:
                    told.look()
            except KeyboardInterrupt:
                if told and not interrupted:
                    told.stop()
                interrupted = True
    finally:
        if process.poll() is None:  # nobody reads any more what is printed
            process.send_signal(signal.SIGINT)
            process.wait()


def data(asked: argparse.Namespace) -> int:
    """Fetch what a study's data folder lacks; returns the exit status: 0 if everything is there."""
    study = load_study(asked.study)
    folder = study_data.data_folder(study, asked.study, asked.data)
    try:
        words, is_whole = study_data.fetch(study, folder, asked.verify)
    except KeyboardInterrupt:
        print("mfcore: stopped; what came is kept, run it again to go on", file=sys.stderr)
        return INTERRUPTED
    print(words)
    return int(not is_whole)


def job(asked: argparse.Namespace) -> int:
    """Run one job; returns the exit status: 0 also where it failed, if others can go on."""
    where = Path(asked.results).resolve(), asked.data or ""
    how = asked.threads, asked.shares, asked.record
    try:
        done = run_job(asked.study, asked.name, *where, *how)
    except KilledError as error:
        print(f"{asked.name}: {error}", file=sys.stderr)
        return 1
    return int(not done and asked.name == "01_extract_patches")


def notebooks(_: argparse.Namespace) -> int:
    """Build the committed notebooks, and what README and docs say of the studies' results."""
    from mfcore.sweep import pairs

    folder = ROOT / "notebooks"
    pairs.build(folder)
    for page in ("README.md", "docs/studies.md"):
        written = pairs.update_page(ROOT / page, ROOT / "results", folder / "figures")
        print(f"{page}: found", *written)
    return 0


def add_commands(commands: "argparse._SubParsersAction") -> None:
    """Add the commands of a user, COMMANDS, to those of a command line."""
    study, runs, sweep, verify = (argparse.ArgumentParser(add_help=False) for _ in range(4))
    _add_study(study)
    study.add_argument("--data", help="folder of the study's data (data/NAME)")
    _add_runs(runs)
    sweep.add_argument("--cores", type=int, help="how many cores to use (all)")
    sweep.add_argument("--profile", default="", help="of a cluster: in profiles/, or a path (none)")
    sweep.add_argument("--gpus", type=int, default=1, help="GPUs that a job asks a cluster for (1)")
    verify.add_argument("--verify", action="store_true", help="compare every checksum")
    parents = {paper: (study, runs, sweep, verify), data: (study, verify)}
    parents[embed] = parents[paper]
    for work, needed in parents.items():
        name = work.__name__
        command = commands.add_parser(name, parents=needed, help=COMMANDS[name])
        command.set_defaults(work=work, hands_on=work is not data)
    commands.choices["embed"].add_argument(
        "--encoders", default="", help="which of the study's, by blanks or commas (all)"
    )


def _add_study(parser: argparse.ArgumentParser) -> None:
    words = "a study's name in studies/, or a YAML file"
    parser.add_argument("--study", type=study_file, required=True, help=words)


def _add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", default=ROOT / "results", help="where results go (results/)")
    parser.add_argument("--shares", type=int, default=1, help="jobs that make one embedding (1)")


def main(arguments: list[str] | None = None) -> int:
    """The command line; options that it doesn't know are Snakemake's."""
    parser = argparse.ArgumentParser(prog="python -m mfcore.sweep", description=__doc__)
    commands = parser.add_subparsers(required=True)
    add_commands(commands)
    one = commands.add_parser("job", help="run one job of a study (the Snakefile calls this)")
    _add_study(one)
    one.add_argument("--data", help="folder of the study's data (data/NAME)")
    _add_runs(one)
    one.add_argument("--name", required=True)
    one.add_argument("--threads", type=int, default=1)
    one.add_argument("--record", type=Path, help="file for the job's record (jobs/NAME.json)")
    one.set_defaults(work=job, hands_on=False)
    build = commands.add_parser("notebooks", help="build the committed .ipynb on study demo_full")
    build.set_defaults(work=notebooks, hands_on=False)
    asked, options = parser.parse_known_args(arguments)
    if options and not asked.hands_on:
        parser.error(f"unknown arguments: {' '.join(options)}")
    asked.options = options
    try:
        return asked.work(asked)
    except (ConfigError, SweepError, store.StoreError, OSError) as error:
        print(f"mfcore: {store_errors.told(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mfcore: stopped", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
