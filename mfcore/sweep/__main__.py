"""The sweep: a study's notebooks run by papermill, each run a job, as the Snakefile orders them, here or on a cluster.

A job that fails, or is killed in every attempt, leaves a record with its reason and counts as ended, so that the others go
on; the sweep's exit status tells. Records of failure are removed when the sweep starts again, and so those jobs run again.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mfcore import store
from mfcore.data import downloads
from mfcore.store import errors as store_errors
from mfcore.study.config import ConfigError, Settings, load_study
from mfcore.sweep import inputs as sweep_inputs, results as sweep_results
from mfcore.sweep.jobs import ROOT, SUPPLEMENT, Job, embedding_job, jobs_of, with_dependents, with_needs
from mfcore.sweep.run import KilledError, SweepError, data_folder, killed, run_job
from mfcore.tasks import registry


@dataclass(frozen=True)
class How:
    """How a sweep runs, not what it computes: nothing here changes a number but in the last digits of what is trained.

    Slides, patches, splits, embeddings by given weights, and probes and other heads on them are the same to the bit with any
    number of cores. Networks trained end to end or by LoRA, pretrainings, the decoders of segmentation tasks, and what rests on
    a pretrained encoder come of sums that more threads add in another order: after a few steps they differ from the 6th or 7th
    digit on, and more with every step. A run records how many threads it had.

    n_cores: of this machine; None: all. n_shares: jobs that make one encoder's embedding. profile: a folder of
    ``profiles/`` or a path, by which the jobs go to a cluster; "" keeps them here. n_gpus: what a job that can use a GPU asks
    a cluster for. options: handed on to Snakemake. verify: compare every checksum, of data and of results.
    """

    n_cores: int | None = None
    n_shares: int = 1
    profile: str = ""
    n_gpus: int = 1
    options: tuple[str, ...] = ()
    verify: bool = False


def study_file(name: str) -> Path:
    """The file of a study given by its name in ``studies/`` or by its path."""
    return Path(name).expanduser() if name.endswith((".yaml", ".yml")) else ROOT / "studies" / f"{name}.yaml"


def paper(name: str, data: str | None = None, results: str | None = None, how: How = How()) -> int:
    """Run a study and build its supplement; returns the exit status: 0, or 1 where any job failed.

    Raises SweepError where another sweep works on the same results or there is no such profile, ConfigError for a bad study.
    """
    study, folder = _open(name, results)
    tasks = [task.name for task in study.tasks]
    for task, place in registry.absent(tasks, data_folder(study, study_file(name), data)).items():
        print(
            f"{study.name}: task {task} has no data yet; lay them into {place} before its turn comes, after the pretrainings "
            "(data/README.md says in which layout)",
            file=sys.stderr,
        )
    begun = time.monotonic()
    status, failures = _sweep(study, study_file(name), folder, data, how, [SUPPLEMENT])
    if status or failures:
        n = len(failures)
        print(
            f"{study.name}: {n or 'no'} job{'s' * (n != 1)} failed, Snakemake's status {status}. Run again to go on. "
            f"Logs of Snakemake and of a cluster's jobs: {folder / '.snakemake'}",
            file=sys.stderr,
        )
    index = folder / "supplement" / "index.html"
    if index.is_file() and SUPPLEMENT not in [failure["name"] for failure in failures] and not status:
        print(f"{study.name}: {time.monotonic() - begun:.0f} s. Supplement:\n{index}")
    return 1 if status or failures else 0


def embed(
    name: str,
    chosen: Sequence[str] = (),
    data: str | None = None,
    results: str | None = None,
    how: How = How(),
) -> int:
    """Make the embeddings of a study's encoders, or of those ``chosen``, and nothing else; returns the exit status.

    It is 0 if every embedding is there; else those missing are said, each with its remedy. Raises SweepError for an encoder
    that the study hasn't got, and as `paper`.
    """
    study, folder = _open(name, results)
    unknown = sorted(set(chosen) - set(study.encoders))
    if unknown:
        raise SweepError(f"study {study.name!r} has no encoder {', '.join(unknown)}; it has: {', '.join(study.encoders)}")
    targets = [embedding_job(encoder) for encoder in study.encoders if not chosen or encoder in chosen]
    status, failures = _sweep(study, study_file(name), folder, data, how, targets)
    failed = {failure["name"] for failure in failures}
    there = [job for job in targets if job not in failed and (folder / "jobs" / f"{job}.json").is_file()]
    print(f"{study.name}: {len(there)} of {len(targets)} embeddings are there, in {folder}")
    return 1 if status or failures else 0


def _open(name: str, results: str | None) -> tuple[Settings, Path]:
    """The study of that name and the folder of its results."""
    study = load_study(study_file(name))
    folder = Path(results or ROOT / "results").expanduser().resolve() / study.name
    folder.mkdir(parents=True, exist_ok=True)
    return study, folder


def _sweep(study: Settings, file: Path, folder: Path, data: str | None, how: How, targets: list[str]) -> tuple[int, list[dict]]:
    """Run the jobs ``targets`` and what they need by Snakemake; returns its status and the failures."""
    if how.n_shares < 1 or how.n_gpus < 0:
        raise SweepError(
            f"SHARES={how.n_shares}, GPUS={how.n_gpus}: there is at least one share, and no negative number of GPUs"
        )
    jobs = with_needs(jobs_of(study, how.n_shares), targets)
    with store.alone(folder, "sweep"):
        command = _command(file, folder, data, how, targets)
        again = sweep_results.check(folder, jobs, how.verify)
        for failure in sorted(folder.glob("failures/*.json")):
            if failure.stem in jobs or ".share" in failure.stem:
                again.add(failure.stem)
                failure.unlink()
        for name in with_dependents(jobs, again):  # Snakemake makes a record that is missing only for who is to run
            (folder / "jobs" / f"{name}.json").unlink(missing_ok=True)
        for note in folder.glob("running/*"):
            note.unlink()
        sweep_inputs.write(study, folder, data_folder(study, file, data), jobs.values(), trusts=not how.verify)
        before, now = None, _progress(folder, jobs)
        interrupted, status = False, 1
        while status and not interrupted and now != before:  # Snakemake may stop at a job that was killed; others can go on
            before = now
            interrupted, status = _run(command)
            now = _progress(folder, jobs)
    failures = [store.read_json(failure) for failure in sorted(folder.glob("failures/*.json")) if failure.stem in jobs]
    for failure in failures:
        print(f"failed: {failure['name']}: {failure['reason']}", file=sys.stderr)
    return status, failures


def _progress(folder: Path, jobs: dict[str, Job]) -> set[str]:
    """What a call of Snakemake changes if it gets anywhere: which jobs have a record, how often others were begun."""
    begun = {f"{name}, {n} times" for name, n in killed(folder, jobs).items()}
    return begun | {file.name for file in folder.glob("jobs/*.json")}


def _command(file: Path, folder: Path, data: str | None, how: How, targets: list[str]) -> list[str]:
    """Snakemake's command line."""
    n_cores = how.n_cores or len(os.sched_getaffinity(0))
    has_gpu = any(Path("/dev").glob("nvidia[0-9]*"))  # its jobs take turns; without one they share the cores
    command = [sys.executable, "-m", "snakemake", *(f"jobs/{target}.json" for target in targets)]
    snakefile = ROOT / "Snakefile"
    if how.profile:  # beside the results, from where Snakemake carries it to pods
        with store.replacing(folder / "Snakefile") as aside:
            shutil.copyfile(snakefile, aside)
        snakefile = folder / "Snakefile"
    command += ["--snakefile", str(snakefile), "--directory", str(folder)]
    command += ["--keep-going", "--rerun-incomplete", "--nolock"]
    command += ["--rerun-triggers", "mtime", "params", "--quiet", "host", "reason", "rules"]
    settings = {"study": file.resolve(), "results": folder, "shares": how.n_shares}
    settings |= {"data": Path(data).expanduser().resolve()} if data else {}
    if how.profile:
        command += ["--workflow-profile", str(_profile(how.profile)), "--default-storage-prefix", str(folder)]
        command += ["--cores", str(how.n_cores)] if how.n_cores else []
        settings |= {"gpus": how.n_gpus}
    else:
        command += ["--cores", str(n_cores), "--resources", f"gpu={1 if has_gpu else n_cores}"]
        settings |= {"cores": n_cores, "gpus": 1}
    return [*command, "--config", *(f"{key}={value}" for key, value in settings.items()), *how.options]


def _profile(name: str) -> Path:
    """The folder of a profile given by its name in ``profiles/`` or by its path."""
    known = sorted(file.parent.name for file in ROOT.glob("profiles/*/config.yaml"))
    folder = Path(name).expanduser().resolve() if os.sep in name else ROOT / "profiles" / name
    if not (folder / "config.yaml").is_file():
        raise SweepError(f"no profile {name!r}: {folder / 'config.yaml'} isn't there; there are: {', '.join(known)}")
    return folder


def _run(command: list[str]) -> tuple[bool, int]:
    """Run Snakemake to its end; returns whether it was interrupted, and its status.

    Ctrl-C reaches Snakemake as well, a request to end (SIGTERM) is handed on to it; then it is waited for: it calls back the
    jobs that it sent to a cluster.
    """
    interrupted = False
    process = subprocess.Popen(command)

    def hand_on(*_: object) -> None:
        process.send_signal(signal.SIGINT)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, hand_on)
    try:
        while True:
            try:
                return interrupted, process.wait()
            except KeyboardInterrupt:
                interrupted = True
    finally:
        signal.signal(signal.SIGTERM, before)


def data(name: str, folder: str | None, verify: bool) -> int:
    """Fetch what a study's data folder lacks and say what is there; returns the exit status: 0 if everything is.

    Raises DownloadError where there is nothing to fetch or nothing can be begun, ConfigError for a bad study.
    """
    study = load_study(study_file(name))
    try:
        table = downloads.fetch(study.source, data_folder(study, study_file(name), folder), verify=verify)
    except KeyboardInterrupt:
        print("mfcore: stopped; what came is kept, run it again to go on", file=sys.stderr)
        return 130
    print(downloads.summary(table))
    return int((table["state"] == "missing").any())


def main(arguments: list[str] | None = None) -> int:
    """The command line: ``paper``, ``embed``, ``data``, and what the Snakefile calls."""
    parser = argparse.ArgumentParser(prog="python -m mfcore.sweep", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    study = argparse.ArgumentParser(add_help=False)
    study.add_argument("--study", required=True, help="a study's name in studies/, or a YAML file")
    study.add_argument("--data", help="folder of the study's data (data/ beside the study file's folder, and the study's name)")
    runs = argparse.ArgumentParser(add_help=False, parents=[study])
    runs.add_argument("--results", help="where results go (results/)")
    runs.add_argument("--shares", type=int, default=1, help="how many jobs make one encoder's embedding (1)")
    sweep = argparse.ArgumentParser(add_help=False, parents=[runs])
    sweep.add_argument("--cores", type=int, help="how many cores to use (all)")
    sweep.add_argument("--profile", default="", help="a folder of profiles/, or a path: where the jobs run (here)")
    sweep.add_argument("--gpus", type=int, default=1, help="GPUs that a job which can use one asks a cluster for (1)")
    sweep.add_argument("--verify", action="store_true", help="compare every checksum, of data and of results")
    commands.add_parser("paper", parents=[sweep], help="run a study through the notebooks and build its supplement")
    alone = commands.add_parser("embed", parents=[sweep], help="make the embeddings of a study's encoders, and nothing else")
    alone.add_argument("--encoders", default="", help="which of the study's encoders, separated by blanks or commas (all)")
    files = commands.add_parser("data", parents=[study], help="fetch what a study's data folder lacks, and say what is there")
    files.add_argument("--verify", action="store_true", help="compare every file's checksum, not just its length")
    one = commands.add_parser("job", parents=[runs], help="run one job of a study (the Snakefile calls this)")
    one.add_argument("--name", required=True)
    one.add_argument("--threads", type=int, default=1)
    one.add_argument("--record", type=Path, help="where the job's record goes (jobs/ in the results)")
    commands.add_parser("notebooks", help="build the committed .ipynb from the .py beside them, on the study demo")
    chosen, options = parser.parse_known_args(arguments)
    if options and chosen.command not in ("paper", "embed"):
        parser.error(f"unknown arguments: {' '.join(options)}")
    try:
        return _do(chosen, tuple(options))
    except KilledError as error:
        print(f"{chosen.name}: {error}", file=sys.stderr)
        return 1
    except (ConfigError, SweepError, store.StoreError, downloads.DownloadError, OSError) as error:
        print(f"mfcore: {store_errors.told(error)}", file=sys.stderr)
        return 2


def _do(chosen: argparse.Namespace, options: tuple[str, ...]) -> int:
    """Do what the command line says; returns the exit status."""
    if chosen.command == "notebooks":
        from mfcore.sweep import pairs

        return pairs.build(ROOT / "notebooks")
    if chosen.command == "data":
        return data(chosen.study, chosen.data, chosen.verify)
    if chosen.command == "job":
        file, results = study_file(chosen.study), Path(chosen.results).resolve()
        done = run_job(file, chosen.name, results, chosen.data or "", chosen.threads, chosen.shares, chosen.record)
        return 0 if done or chosen.name != "01_extract_patches" else 1  # without patches there is nothing to go on with
    how = How(chosen.cores, chosen.shares, chosen.profile, chosen.gpus, options, chosen.verify)
    if chosen.command == "paper":
        return paper(chosen.study, chosen.data, chosen.results, how)
    return embed(chosen.study, chosen.encoders.replace(",", " ").split(), chosen.data, chosen.results, how)


if __name__ == "__main__":
    sys.exit(main())
