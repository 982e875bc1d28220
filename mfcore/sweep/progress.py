"""What a sweep says while it runs: a line for each job, the job's progress, the time that is left.

All of it is read from the study's results (notes in ``running/``, records, logs), so that it is
the same wherever the jobs run.
"""

import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TextIO

from mfcore import store
from mfcore.study.config import Settings
from mfcore.sweep.inputs import FOLDER as INPUTS, states_of
from mfcore.sweep.jobs import MEASURE, Job, n_threads
from mfcore.sweep.run import NOT_RUN

QUIET_S = 60.0  # between two lines of progress in a log
TAIL_BYTES = 8192  # of a log, in which its last bar is looked for
START_S = 8.0  # CPU seconds of a job whatever its work: imports, the kernel
N_SHOWN = 8  # running jobs, on a terminal
# CPU seconds of a job by its rule: the mean in benchmarks/demo.csv, of the study demo. WORK
# is the work of such a job where it isn't 1 (`work_of`). Neither counts for a rule of which a job
# has ended, or runs and says how long it still takes.
SECONDS = {
    "extract_patches": 53.0,
    "embed_share": 20.0,
    "embed": 20.0,
    "linear_probe": 9.0,
    "train_end_to_end": 50.0,
    "measure": 20.0,
    "data_scaling": 25.0,
    "cross_domain_analysis": 13.0,
    "online_patching": 7.0,
    "pretrain": 43.0,
    "downstream_tasks": 43.0,
    "representations": 18.0,
    "pretraining_studies": 15.0,
    "explore": 25.0,
    "external_test": 30.0,
    "supplement": 9.0,
}
UNLIMITED = 10_000  # patches an epoch where all are taken, before they are counted
WORK = {"train_end_to_end": 480.0, "measure": 480.0, "pretrain": 2.5e7}
# of jobs of a kind: seconds and work of all, and how many
Known = dict[str, tuple[float, float, int]]
BAR = re.compile(
    r"(?P<what>[^\r\n]*?):? +(?P<percent>\d+)%\|.*\| *(?P<n>\S+)/(?P<total>\S+) "
    r"\[[\d:]+<(?P<left>[\d:]*)"
)


class Progress:
    """Follows the jobs of one sweep and prints what happens to each.

    On a terminal the running jobs and the remaining time are refreshed in place; elsewhere they are
    one line a minute. jobs: those that the sweep may run. targets: those that it is asked for.
    n_cores: that the jobs share; 0 where the jobs take turns in another way, as on a cluster.
    """

    def __init__(
        self,
        study: Settings,
        jobs: Mapping[str, Job],
        folder: Path,
        targets: Iterable[str],
        n_cores: int,
    ):
        self.study, self.jobs, self.folder, self.n_cores = study, jobs, folder, n_cores
        self.work = {name: work_of(study, job) for name, job in jobs.items()}
        self.known: Known = {}
        self.records = _times(folder / "jobs")  # when each was written
        for name in self.records.keys() & jobs.keys():
            self._learn(name, _read(folder / "jobs" / f"{name}.json"))
        self.to_do = outdated(study, jobs, self.records, folder, targets)
        self.ended: set[str] = set()
        self.running: dict[str, tuple[int, float]] = {}  # how often begun, and when the last time
        self.is_live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.n_at_once, self.n_live, self.said_at = 1, 0, time.monotonic()
        self._say(f"{study.name}: {len(self.to_do)} of {len(jobs)} jobs to do; {self._left()}")

    def look(self) -> None:
        """Print what has happened since the last look."""
        try:
            self._see()
        except BrokenPipeError:
            raise
        except OSError:  # of a file system that hesitates; the next look sees it
            pass

    def _see(self) -> None:
        now, before = _times(self.folder / "jobs"), self.records
        self.records = {name: time_ns for name, time_ns in before.items() if name in now}
        for name in sorted(now.keys() & self.jobs.keys(), key=now.get):
            if before.get(name) == now[name] or name in self.ended:
                continue  # Snakemake sets the time of a record anew
            if record := _read(self.folder / "jobs" / f"{name}.json"):  # else it is on its way
                self.records[name] = now[name]
                self._end(name, record)
        for note in sorted((self.folder / "running").glob("*.json")):
            if note.stem in self.jobs and note.stem not in now:
                self._begin(note)
        self.n_at_once = max(self.n_at_once, len(self.running))
        self._refresh()

    def stop(self) -> None:
        """Print that the jobs are being ended."""
        self._say("stopping, until the running jobs have ended")

    def end(self) -> None:
        """Print what the last look hasn't seen, and leave no line that would be refreshed."""
        self.look()
        self._clear()

    def _begin(self, note: Path) -> None:
        """See that a job runs, for the first time or again after it was killed."""
        n_begun = _read(note).get("n_begun", 0)
        if n_begun and self.running.get(note.stem, (0,))[0] != n_begun:
            self.to_do.add(note.stem)
            self.ended.discard(note.stem)
            self.running[note.stem] = n_begun, time.monotonic()
            if n_begun > 1:
                self._say(f"restarted {note.stem}: it was killed; attempt {n_begun}")
            elif not self.is_live:
                self._say(f"started   {note.stem}")

    def _end(self, name: str, record: Mapping) -> None:
        """Print how a job ended: of a failure the reason and where to read on."""
        self.running.pop(name, None)
        self.to_do.add(name)
        self.ended.add(name)
        self._learn(name, record)
        seconds = span(record.get("seconds", 0.0))
        if not record.get("failed"):
            counted = "" if self.is_live else f"; {self._whole()}"
            return self._say(f"done      {name}, {seconds}{counted}")
        failure = _read(self.folder / "failures" / f"{name}.json")
        reason, log = failure.get("reason", ""), self.folder / "logs" / f"{name}.txt"
        if reason.startswith(NOT_RUN):
            return self._say(f"not run   {name}: {reason.removeprefix(NOT_RUN)}", sys.stderr)
        where = f"\n    its log: {log}" * log.is_file()
        return self._say(f"FAILED    {name}, {seconds}: {reason}{where}", sys.stderr)

    def _learn(self, name: str, record: Mapping) -> None:
        """Add the time of a job that ended to what is known."""
        if not record.get("failed", True):
            self._add(self.known, name, record.get("seconds", 0.0))

    def _add(self, known: Known, name: str, seconds: float) -> None:
        """Add a job's seconds and its work to ``known``, for its network and for its rule."""
        for key in self._keys(name):
            before = known.get(key, (0.0, 0.0, 0))
            known[key] = before[0] + seconds, before[1] + self.work[name], before[2] + 1

    def _keys(self, name: str) -> tuple[str, str]:
        """What tells of a job's time: jobs of its rule that train its network, else of its rule."""
        job = self.jobs[name]
        return f"{job.rule} of {job.parameters.get('network')}", job.rule

    # ---- time ----

    def _expected(self, name: str, known: Known) -> float:
        """Seconds that a job takes, by its work: as jobs of its kind in ``known``, else a guess."""
        kind, rule = self._keys(name)
        guess = SECONDS[rule], WORK.get(rule, 1.0), 1
        seconds, work, n = known.get(kind) or known.get(rule) or guess
        start = min(START_S, 0.9 * seconds / n)
        return start + (seconds - n * start) * self.work[name] / work

    def _spans(self) -> dict[str, float]:
        """The seconds that each job still takes."""
        bars, ran, known = {}, {}, dict(self.known)
        for name in self.running.keys() & self.to_do:
            ran[name] = time.monotonic() - self.running[name][1]
            if bar := read_bar(self.folder / "logs" / f"{name}.txt"):
                bars[name] = bar[1]
                if bar[1] and self._keys(name)[0] not in self.known:  # better than a guess
                    self._add(known, name, ran[name] + bar[1])
        spans = {name: self._expected(name, known) for name in self.to_do - self.ended}
        for name in ran:
            is_new = self._keys(name)[0] not in self.known
            rest = 0.0 if is_new and bars.get(name) else spans[name]
            spans[name] = max(0.0, rest - ran[name], bars.get(name, 0.0))
        return spans

    def _left(self) -> str:
        """The remaining time of the whole, in words."""
        spans, ends = self._spans(), {}
        for name, job in self.jobs.items():  # each comes after those it needs
            begins = max((ends.get(need, 0.0) for need in job.needs), default=0.0)
            ends[name] = begins + spans.get(name, 0.0)
        seconds = sum(spans.values()) / self.n_at_once
        if self.n_cores:
            threads = {name: n_threads(self.jobs[name], self.jobs, self.n_cores) for name in spans}
            seconds = sum(spans[name] * threads[name] for name in spans) / self.n_cores
        guessed = sum(spans[name] for name in spans if self.jobs[name].rule not in self.known)
        is_guess = guessed > sum(spans.values()) / 2
        if is_guess and not self.n_cores:  # SECONDS are a CPU's
            return "no guess of the time before the first jobs have ended"
        words = f"about {span(max(5.0, seconds, *ends.values()))} left"
        return words + " (a first guess)" * is_guess

    def _whole(self) -> str:
        return f"{len(self.ended)} of {len(self.to_do)} jobs, {self._left()}"

    # ---- lines ----

    def _refresh(self) -> None:
        """Show the running jobs and the remaining time: in place, or as a line once a minute."""
        now, lines = time.monotonic(), []
        for name, (_, begun) in self.running.items():
            bar = read_bar(self.folder / "logs" / f"{name}.txt")
            lines.append(f"running   {name}, {span(now - begun)}{f': {bar[0]}' if bar else ''}")
        if not self.is_live:
            if lines and now - self.said_at >= QUIET_S:
                self._say("; ".join([*lines, self._whole()]))
            return
        more = [f"          and {len(lines) - N_SHOWN} more"] if len(lines) > N_SHOWN else []
        lines = [*lines[:N_SHOWN], *more, f"{self.study.name}: {self._whole()}"]
        self._clear()
        width, self.n_live = shutil.get_terminal_size().columns - 1, len(lines)
        sys.stdout.write("".join(f"{line[:width]}\n" for line in lines))
        sys.stdout.flush()

    def _clear(self) -> None:
        """Take the lines away that are refreshed in place."""
        if self.n_live:
            sys.stdout.write(f"\r\x1b[{self.n_live}A\x1b[J")
            sys.stdout.flush()
        self.n_live = 0

    def _say(self, line: str, where: TextIO | None = None) -> None:
        """Print a line that stays."""
        self._clear()
        self.said_at = time.monotonic()
        print(f"{time.strftime('%H:%M:%S')}  {line}", file=where or sys.stdout, flush=True)


def work_of(study: Settings, job: Job) -> float:
    """How much a job is, in a unit that the jobs of its rule share: of a training its patches."""
    measured = study.effects.network or study.scales.network if job.stage == MEASURE else ""
    for network in study.networks:
        if network.name == job.parameters.get("network", measured):
            return float(network.n_epochs * (network.patches_per_epoch or UNLIMITED))
    return WORK.get(job.rule, 1.0) if job.stage == MEASURE else job.work


def outdated(
    study: Settings,
    jobs: Mapping[str, Job],
    records: Mapping[str, int],
    folder: Path,
    targets: Iterable[str],
) -> set[str]:
    """The jobs that Snakemake will run, as far as the times of files tell.

    records: when the jobs' records were written, by name.
    """
    states, stale = _times(folder / INPUTS), set()
    for name, job in jobs.items():  # each comes after those it needs
        times = [states.get(state, 0) for state in states_of(study, job)]
        times += [records.get(need, 0) for need in job.depends]
        is_old = max(times) > records.get(name, 0)
        if is_old or name not in records or not stale.isdisjoint(job.depends):
            stale.add(name)
    wanted = set(targets)
    for name, job in reversed(jobs.items()):
        if name in wanted and name in stale:
            wanted.update(job.needs)
    return stale & wanted


def read_bar(log: Path) -> tuple[str, float] | None:
    """What a log's last bar of progress says, in words, and the seconds it still takes.

    Bars below another one, and finished ones, don't count: None where there is no other.
    """
    try:
        with log.open("rb") as content:
            content.seek(max(0, log.stat().st_size - TAIL_BYTES))
            parts = content.read().decode(errors="replace").split("\r")
    except OSError:  # there is none, or not yet
        return None
    matches = [BAR.match(part) for part in parts if "\x1b[A" not in part]
    bars = [bar for bar in matches if bar]
    if not bars or bars[-1]["n"] == bars[-1]["total"]:
        return None
    what, n, total, percent, left = bars[-1].group("what", "n", "total", "percent", "left")
    seconds = 0.0
    for part in left.split(":") if left else ():
        seconds = 60 * seconds + float(part)
    return f"{what} {n} of {total}, {percent} %".strip(), seconds


def span(seconds: float) -> str:
    """A time in words, as "40 s", "8 min" or "2 h 10 min"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _read(file: Path) -> dict:
    """What a JSON file holds; nothing where it is gone or not yet whole."""
    try:
        return store.read_json(file)
    except (store.StoreError, OSError):
        return {}


def _times(folder: Path) -> dict[str, int]:
    """When each JSON file of a folder was written, in ns, by its name without the ending."""
    times = {}
    for file in folder.glob("*.json"):
        with contextlib.suppress(FileNotFoundError):
            times[file.stem] = file.stat().st_mtime_ns
    return times
