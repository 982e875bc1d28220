"""The sweep: a study's notebooks run by papermill, each run a job, as the Snakefile orders them.

A job that fails leaves a record with its reason and counts as ended, so that the others go on; the sweep's exit status
tells. Records of failure are removed when the sweep starts again, and so those jobs run again.
"""

import argparse
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mfcore import downloads, store
from mfcore.config import ConfigError, Study, load_study

ROOT = Path(__file__).resolve().parents[1]
STAGES = {
    "01": "01_extract_patches",
    "02": "02_embed",
    "03": "03_linear_probe",
    "04": "04_train_end_to_end",
    "05": "05_data_scaling",
    "06": "06_cross_domain_analysis",
}


class SweepError(RuntimeError):
    """The sweep can't start or a notebook can't be run as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Job:
    """One run of one notebook: ``needs`` names the jobs whose results it reads."""

    name: str
    notebook: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


def jobs_of(study: Study) -> dict[str, Job]:
    """Every job of a study, by name, in an order in which each comes after those it needs."""
    jobs = [Job("01_extract_patches", STAGES["01"])]
    for network in study.networks:
        for fold in range(study.splits.n_folds):
            name = _words(f"04_train_end_to_end.{network.name}.fold{fold}")
            jobs.append(Job(name, STAGES["04"], {"network": network.name, "fold": fold}, ("01_extract_patches",)))
    for encoder in study.encoders:
        embedding = _words(f"02_embed.{encoder}")
        jobs.append(Job(embedding, STAGES["02"], {"encoder": encoder}, ("01_extract_patches",)))
        jobs.append(Job(_words(f"03_linear_probe.{encoder}"), STAGES["03"], {"encoder": encoder}, (embedding,)))
        for scheme in study.inflation.schemes if encoder == study.inflation.encoder else ():
            if scheme != study.switches.scheme:
                name = _words(f"03_linear_probe.{encoder}.split_{scheme}")
                jobs.append(Job(name, STAGES["03"], {"encoder": encoder, "scheme": scheme}, (embedding,)))
    arms = tuple(job.name for job in jobs if job.notebook in (STAGES["03"], STAGES["04"]))
    jobs.append(Job("05_data_scaling", STAGES["05"], {}, arms))
    if study.splits.by_domain:
        jobs.append(Job("06_cross_domain_analysis", STAGES["06"], {}, arms))
    return {job.name: job for job in jobs}


def _words(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "_", name)


def study_file(name: str) -> Path:
    """The file of a study given by its name in ``studies/`` or by its path."""
    return Path(name).expanduser() if name.endswith((".yaml", ".yml")) else ROOT / "studies" / f"{name}.yaml"


def paper(name: str, data: str | None, results: str | None, n_cores: int | None, options: list[str]) -> int:
    """Run a study and build its supplement; returns the exit status: 0, or 1 where any job failed.

    options: handed on to Snakemake (an executor, a cluster's settings). Raises SweepError where another sweep works on
    the same results, ConfigError for a bad study.
    """
    file = study_file(name)
    study = load_study(file)
    folder = Path(results or ROOT / "results").expanduser().resolve() / study.name
    folder.mkdir(parents=True, exist_ok=True)
    n_cores = n_cores or len(os.sched_getaffinity(0))
    has_gpu = any(Path("/dev").glob("nvidia[0-9]*"))  # its jobs take turns; without one they share the cores
    with store.alone(folder, "sweep"):
        for failure in sorted(folder.glob("failures/*.json")):
            (folder / "jobs" / failure.name).unlink(missing_ok=True)
            failure.unlink()
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
        command += [
            "--cores",
            str(n_cores),
            "--resources",
            f"gpu={1 if has_gpu else n_cores}",
            "--keep-going",
            "--rerun-incomplete",
            "--nolock",
        ]
        command += ["--rerun-triggers", "mtime", "input", "params", "--quiet", "host", "reason", "rules"]
        command += ["--config", f"study={file.resolve()}"]
        command += [f"data={Path(data).expanduser().resolve()}"] if data else []
        begun = time.monotonic()
        status = subprocess.run([*command, *options], check=False).returncode
    failures = [store.read_json(failure) for failure in sorted(folder.glob("failures/*.json"))]
    for failure in failures:
        print(f"failed: {failure['name']}: {failure['reason']}", file=sys.stderr)
    index = folder / "supplement" / "index.html"
    if status or failures:
        n = len(failures)
        print(
            f"{study.name}: {n or 'no'} job{'s' * (n != 1)} failed, Snakemake's status {status}. Run again to go on.",
            file=sys.stderr,
        )
    if index.is_file() and not (folder / "failures" / "supplement.json").is_file() and not status:
        print(f"{study.name}: {time.monotonic() - begun:.0f} s. Supplement:\n{index}")
    return 1 if status or failures else 0


def data(name: str, folder: str | None, verify: bool) -> int:
    """Fetch what a study's data folder lacks and say what is there; returns the exit status: 0 if everything is.

    Raises DownloadError where there is nothing to fetch or nothing can be begun, ConfigError for a bad study.
    """
    study = load_study(study_file(name))
    try:
        table = downloads.fetch(study, Path(folder).expanduser() if folder else ROOT / "data" / study.name, verify=verify)
    except KeyboardInterrupt:
        print("mfcore: stopped; what came is kept, run it again to go on", file=sys.stderr)
        return 130
    print(downloads.summary(table))
    return int((table["state"] == "missing").any())


def run_job(file: Path, name: str, results: Path, data: str, n_threads: int) -> bool:
    """Run one job of the study in ``file``; returns whether it succeeded.

    results: the study's own folder. Leaves the executed notebook in ``notebooks/``, a record in ``jobs/`` and, where it
    failed, one in ``failures/``.
    """
    study = load_study(file)
    job = jobs_of(study)[name]
    print(f"{name}: started", flush=True)
    begun = time.monotonic()
    failed = [need for need in job.needs if (results / "failures" / f"{need}.json").is_file()]
    reason = None
    if failed and job.notebook in (STAGES["02"], STAGES["03"], STAGES["04"]):
        reason = f"not run: {failed[0]} failed"
    else:
        parameters = {"study_file": str(file), "results": str(results.parent), **job.parameters}
        parameters |= {"n_workers": n_threads} if job.notebook == STAGES["01"] else {}
        parameters |= {"data_folder": data} if data and job.notebook == STAGES["01"] else {}
        try:
            execute(ROOT / "notebooks" / f"{job.notebook}.py", results / "notebooks" / f"{name}.ipynb", parameters, n_threads)
        except Exception as error:  # whatever went wrong in a notebook is that job's failure, not the sweep's
            reason = _reason(error)
            (results / "logs").mkdir(exist_ok=True)
            (results / "logs" / f"{name}.txt").write_text(_plain(traceback.format_exc()), encoding="utf-8")
    seconds = round(time.monotonic() - begun, 1)
    return end_job(results, name, job.notebook, dict(job.parameters), reason, seconds)


def build_supplement(file: Path, results: Path) -> bool:
    """Build the study's supplement, as the job ``supplement``; returns whether it succeeded."""
    from mfcore import report

    begun, reason = time.monotonic(), None
    try:
        report.build(load_study(file), results)
    except Exception as error:
        reason = _reason(error)
        traceback.print_exc()
    return end_job(results, "supplement", "supplement", {}, reason, round(time.monotonic() - begun, 1))


def end_job(results: Path, name: str, stage: str, parameters: dict, reason: str | None, seconds: float) -> bool:
    """Record how a job ended; ``reason`` says why it failed, None that it didn't. Returns whether it succeeded."""
    record = {"stage": stage, "name": name, "parameters": parameters, "notebook": f"notebooks/{name}.ipynb", "seconds": seconds}
    if reason is None:
        print(f"{name}: done in {seconds:.0f} s", flush=True)
    else:
        store.write_json(results / "failures" / f"{name}.json", {**record, "reason": reason})
        print(f"{name}: FAILED after {seconds:.0f} s: {reason}", file=sys.stderr, flush=True)
    store.write_json(results / "jobs" / f"{name}.json", {**record, "failed": reason is not None})
    return reason is None


def execute(source: Path, target: Path, parameters: Mapping[str, object], n_threads: int = 1) -> None:
    """Execute the notebook ``source`` (percent .py) with papermill into ``target`` (.ipynb), which is written even if it fails.

    Raises SweepError, before a kernel starts, for a parameter that the notebook doesn't know (papermill only warns), and
    papermill's error where a cell fails.
    """
    import jupytext
    import papermill

    notebook = jupytext.read(source)
    known = known_parameters(notebook)
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise SweepError(f"{source.name} has no parameter {unknown[0]!r}; its parameters: {known}")
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    target.parent.mkdir(parents=True, exist_ok=True)
    os.environ.update({name: str(n_threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")})
    aside = target.with_name(f".{target.stem}.partial.ipynb")
    try:
        papermill.execute_notebook(
            notebook,
            str(aside),
            dict(parameters),
            cwd=str(source.parent),
            progress_bar=False,
            start_timeout=300,
            extra_arguments=["--log-level=ERROR"],  # else each kernel warns that it listens on this machine's own address
        )
    finally:
        if aside.is_file():
            aside.replace(target)


def known_parameters(notebook: Mapping) -> list[str]:
    """Names assigned in the cell tagged ``parameters`` of a notebook."""
    import ast

    for cell in notebook["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            statements = ast.parse(cell["source"]).body
            return [s.targets[0].id for s in statements if isinstance(s, ast.Assign) and isinstance(s.targets[0], ast.Name)]
    raise SweepError("the notebook has no cell tagged 'parameters'")


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _reason(error: Exception) -> str:
    """One line that tells why a notebook failed."""
    name, value = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", None) or str(error)
    return _plain(f"{name}: {value}").strip()


def main(arguments: list[str] | None = None) -> int:
    """The command line: ``paper``, ``data``, and what the Snakefile calls."""
    parser = argparse.ArgumentParser(prog="python -m mfcore.sweep", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("paper", help="run a study through the notebooks and build its supplement")
    run.add_argument("--study", required=True, help="a study's name in studies/, or a YAML file")
    run.add_argument("--data", help="folder of the study's data")
    run.add_argument("--results", help="where results go (results/)")
    run.add_argument("--cores", type=int, help="how many cores to use (all)")
    files = commands.add_parser("data", help="fetch what a study's data folder lacks, and say what is there")
    files.add_argument("--study", required=True)
    files.add_argument("--data", help="folder of the study's data (data/ and the study's name)")
    files.add_argument("--verify", action="store_true", help="compare every file's checksum, not just its length")
    one = commands.add_parser("job", help="run one job of a study (the Snakefile calls this)")
    one.add_argument("--study", type=Path, required=True)
    one.add_argument("--name", required=True)
    one.add_argument("--results", type=Path, required=True)
    one.add_argument("--data", default="")
    one.add_argument("--threads", type=int, default=1)
    last = commands.add_parser("supplement", help="build a study's supplement (the Snakefile calls this)")
    last.add_argument("--study", type=Path, required=True)
    last.add_argument("--results", type=Path, required=True)
    commands.add_parser("notebooks", help="build the committed .ipynb from the .py beside them, on the study demo")
    chosen, options = parser.parse_known_args(arguments)
    if options and chosen.command != "paper":
        parser.error(f"unknown arguments: {' '.join(options)}")
    try:
        if chosen.command == "paper":
            return paper(chosen.study, chosen.data, chosen.results, chosen.cores, options)
        if chosen.command == "data":
            return data(chosen.study, chosen.data, chosen.verify)
        if chosen.command == "job":
            done = run_job(chosen.study, chosen.name, chosen.results.resolve(), chosen.data, chosen.threads)
            return 0 if done or chosen.name != "01_extract_patches" else 1  # without patches there is nothing to go on with
        if chosen.command == "supplement":
            return 0 if build_supplement(chosen.study, chosen.results.resolve()) else 1
        from mfcore import pairs

        return pairs.build(ROOT / "notebooks")
    except (ConfigError, SweepError, store.StoreError, downloads.DownloadError) as error:
        print(f"mfcore: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
