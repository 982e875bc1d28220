"""The sweep on a real Slurm of one node, started here: two of its jobs are killed, and it ends right all the same."""

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from running import HANG_S, marked_by, until

from mfcore import store
from mfcore.study import arms as study_arms, data as study_data, encoders as study_encoders
from mfcore.study.config import Settings, load_study
from mfcore.sweep import jobs as sweep_jobs

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "squeue", "sinfo", "scontrol")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

STUDY = """
name: tiny
title: "Tiny: for testing"
data: {source: synthetic, seed: 3, n_slides: 10, n_annotations: 60}
patches: {size_px: 64, um_per_px: 0.25}
splits: {sizes: [1.0], n_folds: 1, by_domain: false}
encoders: ["random:test_vit"]
networks:
  - {name: tiny_end_to_end, architecture: "random:test_resnet", input_px: 32, n_epochs: 2, patches_per_epoch: 32, shift_px: 2}
"""

# The node claims more than the machine has, and GPUs, so that the profile's own requests can be met.
CONF = """
ClusterName=mfcore
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
KillWait=2
SchedulerParameters=sched_interval=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=32 RealMemory=200000 Gres=gpu:4 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def _free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _die_with_parent() -> None:
    """Run in a daemon before it starts: it ends when the tests do, however these end."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _processes(environment: dict[str, str], *variables: str) -> list[int]:
    """Processes of this cluster, told by its configuration in their environment, and by other variables there."""
    return marked_by(f"SLURM_CONF={environment['SLURM_CONF']}", *variables)


def _kill(processes: list[int]) -> list[int]:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return processes


@pytest.fixture
def slurm(tmp_path) -> Iterator[dict[str, str]]:
    """A cluster of one node, this machine; gives the environment in which its commands work. Nothing of it stays."""
    missing = [name for name in COMMANDS if shutil.which(name, path=PATH) is None]
    if missing:
        pytest.skip(f"no Slurm here: {', '.join(missing)} not found (Debian: apt-get install slurm-wlm munge)")
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="Snakemake's plugin for Slurm isn't installed (extra slurm)")
    folder = tmp_path / "slurm"
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir(parents=True)
    host, user = socket.gethostname().split(".")[0], pwd.getpwuid(os.getuid()).pw_name
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=host, user=user, folder=folder, ports=_free_ports(2)))
    devices = ("null", "zero", "full", "random")  # any that exist will do for GPUs that nothing computes on
    (folder / "gres.conf").write_text("".join(f"NodeName={host} Name=gpu File=/dev/{device}\n" for device in devices))
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    # the plugin starts srun without SLURM_CONF, as on most clusters the file is in /etc
    srun = folder / "bin" / "srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={conf} exec {shutil.which("srun", path=PATH)} "$@"\n')
    srun.chmod(0o755)
    outer = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PYTEST_"))}
    environment = outer | {"SLURM_CONF": str(conf), "PATH": f"{folder / 'bin'}{os.pathsep}{PATH}"}
    munge = ["munged", "--foreground", "--force", "--key-file=munge.key", "--socket=munge.socket", "--pid-file=munged.pid"]
    munge += ["--log-file=munged.log", "--seed-file=munged.seed"]
    munge = [part.replace("=", f"={folder}/", 1) for part in munge]
    daemons, done = [], None
    try:
        for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", host]):
            command[0] = shutil.which(command[0], path=PATH)
            log = (folder / f"{Path(command[0]).name}.out").open("w")
            daemons.append(
                subprocess.Popen(
                    command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_die_with_parent
                )
            )
            log.close()
            time.sleep(0.5)

        def ready() -> bool:
            nonlocal done
            if any(daemon.poll() is not None for daemon in daemons):
                return True
            done = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True)
            return done.stdout.strip() == "idle"

        until(ready)
        if done is None or done.stdout.strip() != "idle" or any(daemon.poll() is not None for daemon in daemons):
            said = [file.read_text().strip().splitlines()[-1:] for file in sorted(folder.glob("*.out"))]
            pytest.skip(f"Slurm is installed but doesn't start here: {said}; {done and done.stdout + done.stderr}")
        yield environment
        subprocess.run(["scancel", f"--user={user}"], env=environment)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        _kill(_processes(environment))


def _here(study: Settings, data: Path, folder: Path) -> list[store.Run]:
    """The study's arms, made in this process."""
    study_data.extract(study, study_data.prepare(study, data, 2), folder, 2)
    study_data.write_splits(study, folder)
    embedding = study_encoders.embed(study, study.encoders[0], folder)
    return [study_arms.fit_probe(study, embedding, folder), study_arms.train(study, study.networks[0].name, 0, folder, "cpu")]


def test_jobs_of_a_node_are_killed_and_the_sweep_ends_with_the_same_numbers(slurm, tmp_path, started):
    """A share of the embedding is cancelled and training killed, each while it runs; both run again."""
    file, results, data = tmp_path / "tiny.yaml", tmp_path / "results", tmp_path / "data"
    file.write_text(STUDY)
    command = [
        sys.executable,
        "-m",
        "mfcore.sweep",
        "paper",
        "--study",
        str(file),
        "--results",
        str(results),
        "--data",
        str(data),
    ]
    command += ["--profile", "slurm", "--shares", "2"]
    command += ["--slurm-no-account", "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "2"]
    command += ["--groups", "linear_probe=end", "data_scaling=end", "supplement=end"]  # one job for three, which saves time
    log = tmp_path / "sweep.txt"
    with log.open("w") as out:
        sweep = started(command, env=slurm, stdout=out, stderr=out)
    folder, asked = results / "tiny", {}
    to_kill = {
        f"{sweep_jobs.job_name('02', 'random:test_vit')}.share1of2": lambda job: subprocess.run(
            ["scancel", job], env=slurm, check=True
        ),
        "04_train_end_to_end.tiny_end_to_end.fold0": lambda job: _kill(_processes(slurm, f"SLURM_JOB_ID={job}")),
    }

    def running() -> list[str]:
        """Which of the jobs to be killed run; stops where the sweep has ended."""
        assert sweep.poll() is None, log.read_text()
        return [name for name in to_kill if (folder / "running" / f"{name}.json").is_file()]

    while to_kill:
        for name in until(running):
            (job,) = (file.stem for file in folder.glob(f".snakemake/slurm_logs/*/{name}/*.log"))
            shown = subprocess.run(["scontrol", "show", "job", job], env=slurm, capture_output=True).stdout
            asked[name] = shown.decode()
            assert to_kill.pop(name)(job) != [], "nothing was killed"
            assert not (folder / "jobs" / f"{name}.json").is_file(), f"{name} ended before it was killed"
    arms = _here(load_study(file), data, tmp_path / "here")  # the data are made; this while the cluster goes on
    status = sweep.wait(HANG_S)
    output = log.read_text()
    assert status == 0, output
    assert output.count("Trying to restart job") == 2, output
    assert not list(folder.glob("failures/*")) and not list(folder.glob("running/*"))
    assert (folder / "supplement" / "index.html").is_file()
    for shown in asked.values():
        assert "gres:gpu" in shown or "gres/gpu=1" in shown, "a job that can use a GPU asks for one"
    for arm in arms:
        there = pd.read_parquet(folder / arm.folder.name / "predictions.parquet")
        expected = pd.read_parquet(arm.path("predictions.parquet"))
        assert len(there) == len(expected)
        np.testing.assert_allclose(there["score"], expected["score"], atol=1e-5)
