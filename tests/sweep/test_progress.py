"""What a sweep says while it runs: each job's end once, how far the running ones are, the time that is left by cost."""

import io
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from tqdm import tqdm

from mfcore import store
from mfcore.study.config import load_study
from mfcore.sweep import ROOT, __main__ as sweep, jobs as sweep_jobs, progress, run as sweep_run
from mfcore.sweep.book.notebooks import without_progress

STUDY = """
name: small
title: small
data: {source: synthetic}
splits: {n_folds: 2, by_domain: false}
encoders: [uni, virchow]
networks:
  - {name: short, architecture: uni, n_epochs: 2, patches_per_epoch: 10}
  - {name: long, architecture: uni, n_epochs: 20, patches_per_epoch: 10}
"""
FIRST, SHORT, LONG = "01_extract_patches", "04_train_end_to_end.short.fold0", "04_train_end_to_end.long.fold0"


class Sweep:
    """A sweep's results, changed by hand, its clock, and the `progress.Progress` that follows it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        (folder / "small.yaml").write_text(STUDY)
        self.study, self.folder, self.now = load_study(folder / "small.yaml"), folder / "results", 0.0
        self.jobs = sweep_jobs.jobs_of(self.study)
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)

    def follow(self, n_cores: int = 1, targets: tuple[str, ...] = ("supplement",)) -> progress.Progress:
        return progress.Progress(self.study, self.jobs, self.folder, targets, n_cores)

    def begin(self, name: str, bar: str = "", n_begun: int = 1) -> None:
        (self.folder / "jobs" / f"{name}.json").unlink(missing_ok=True)  # as Snakemake does
        store.write_json(self.folder / "running" / f"{name}.json", {"n_begun": n_begun})
        (self.folder / "logs").mkdir(exist_ok=True)
        (self.folder / "logs" / f"{name}.txt").write_text(bar)

    def end(self, name: str, seconds: float = 1.0, reason: str | None = None) -> None:
        sweep_run.end_job(self.folder, self.jobs[name], reason, seconds)


@pytest.fixture
def small(tmp_path, monkeypatch):
    return Sweep(tmp_path, monkeypatch)


@pytest.fixture
def demo():
    return load_study(ROOT / "studies" / "demo.yaml")


def bar(n: int, total: int, desc: str = "short", inner: bool = False) -> str:
    """What tqdm writes of a loop that is there, after a second a step."""
    meter = tqdm.format_meter(n, total, n, prefix=desc, unit="epoch", ncols=60)
    return f"\r{meter}" + f"\n\r{tqdm.format_meter(1, 2, 1, prefix='inner')}\x1b[A" * inner


def lines(text: str) -> list[str]:
    """The lines without the time of day, which each has."""
    return [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in text.splitlines()]


def test_each_job_s_end_is_told_once_and_a_failure_with_its_reason_and_log(small, capsys):
    told = small.follow()
    small.begin(FIRST)
    told.look()
    small.end(FIRST, 12.0)
    small.begin("02_embed.uni", "Traceback")
    told.look()
    os.utime(small.folder / "jobs" / f"{FIRST}.json", ns=(0, 0))  # Snakemake sets the time of a record that a job wrote
    told.look()
    small.end("02_embed.uni", 3.0, "EncoderError: accept its licence")
    small.end("03_linear_probe.uni", 0.0, "not run: 02_embed.uni failed")
    told.look()
    told.end()
    said = capsys.readouterr()
    out = [line for line in lines(said.out) if not line.startswith("0")]  # `end_job`'s own, which go to Snakemake's log
    n = len(small.jobs)
    assert out[0].startswith(f"small: {n} of {n} jobs to do; about ")
    assert out[1] == f"started   {FIRST}" and out[2].startswith(f"done      {FIRST}, 12 s; 1 of {n} jobs, about ")
    assert out[3:] == ["started   02_embed.uni"]
    err = [line for line in lines(said.err) if not line.startswith("0")]
    log = small.folder / "logs" / "02_embed.uni.txt"
    assert err == [
        "FAILED    02_embed.uni, 3 s: EncoderError: accept its licence",
        f"    its log: {log}",
        "not run   03_linear_probe.uni: 02_embed.uni failed",
    ]


def test_a_job_that_was_killed_is_told_when_it_begins_again(small, capsys):
    told = small.follow()
    small.begin(FIRST)
    told.look()
    small.begin(FIRST, n_begun=2)
    told.look()
    assert lines(capsys.readouterr().out)[1:] == [
        f"started   {FIRST}",
        f"restarted {FIRST}: it was killed; attempt 2",
    ]


def test_a_record_that_is_half_written_is_read_at_the_next_look(small, capsys):
    told = small.follow()
    file = small.folder / "jobs" / f"{FIRST}.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"seconds": 1')
    told.look()
    assert "done" not in capsys.readouterr().out
    small.end(FIRST)
    told.look()
    assert f"done      {FIRST}" in capsys.readouterr().out


def test_a_log_gets_a_line_of_progress_a_minute_with_how_far_a_training_is(small, capsys):
    told = small.follow()
    small.begin(SHORT, bar(3, 12))
    for small.now in range(1, 150):
        told.look()
    said = [line for line in lines(capsys.readouterr().out) if line.startswith("running")]
    assert len(said) == 2
    assert said[0].startswith(f"running   {SHORT}, 60 s: short 3 of 12, 25 %; 0 of {len(small.jobs)} jobs, about ")


def screen(text: str) -> list[str]:
    """What a terminal shows after ``text``: that many lines up, and all below erased."""
    shown = []
    for n_up, line in re.findall(r"(?:\r\x1b\[(\d+)A\x1b\[J)|([^\n\r]*\n)", text):
        shown = shown[: len(shown) - int(n_up)] if n_up else [*shown, line.rstrip("\n")]
    return lines("\n".join(shown))


def test_on_a_terminal_running_jobs_are_refreshed_in_place_and_nothing_of_them_stays(small, monkeypatch):
    out = io.StringIO()
    out.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    told, n = small.follow(), len(small.jobs)
    small.begin(FIRST)
    small.begin(SHORT, bar(3, 12))
    for small.now in (1.0, 2.0, 3.0):
        told.look()
    assert [line[:59] for line in screen(out.getvalue())[1:]] == [
        f"running   {FIRST}, 2 s",
        f"running   {SHORT}, 2 s: short 3 of 12, 25 %"[:59],
        f"small: 0 of {n} jobs, about {told._left().split()[1]} min left (a first guess)"[:59],
    ]
    monkeypatch.setattr(sweep_run, "print", lambda *_, **__: None, raising=False)
    small.end(FIRST, 5.0)
    small.end(SHORT, 6.0, "it broke")
    told.end()
    assert screen(out.getvalue())[1:-1] == [f"done      {FIRST}, 5 s", f"FAILED    {SHORT}, 6 s: it broke"]


def test_the_remaining_time_is_by_cost_not_by_count(small):
    """A training of ten times the epochs counts ten times; jobs of a kind that has ended are no guess any more."""
    trainings = [name for name in small.jobs if name.startswith("04")]
    for name in set(small.jobs) - set(trainings):
        small.end(name, 7.0)
    small.end(SHORT, 30.0)
    told = small.follow()
    told.to_do = set(trainings) - {SHORT}
    assert told._left() == "about 8 min left", "30 s of the other short one, 228 s of each long one"
    told.n_cores, told.n_at_once = 0, 2
    assert told._left() == "about 4 min left", "two at a time, elsewhere"
    small.begin(LONG)
    told.look()
    small.now = 200.0
    assert told._spans()[LONG] == told._expected(LONG, told.known) - 200
    small.begin(LONG, bar(250, 500))
    assert round(told._spans()[LONG]) == 250, "its bar says that it is slower than it was to be"


def test_the_time_can_t_be_shorter_than_the_longest_chain_of_jobs(small):
    last = ("05_data_scaling", "12_explore", "supplement")
    for name in filter(lambda name: name not in last, small.jobs):
        small.end(name, 7.0)
    told = small.follow(n_cores=0)
    told.n_at_once = 50
    told.known = {small.jobs[name].rule: (100.0, 1.0, 1) for name in last}
    assert told._left() == "about 3 min left", "100 s, and then the supplement's"


def test_jobs_of_an_earlier_sweep_are_no_guess(small):
    assert "a first guess" in small.follow()._left()
    small.end(SHORT, 30.0)
    told, start_s = small.follow(), progress.START_S
    expected = pytest.approx(start_s + 10 * (30.0 - start_s))
    assert told._expected(LONG, told.known) == expected, "what a job takes to start isn't its work's"
    assert "a first guess" not in told._left()


def test_the_first_guess_of_a_training_is_by_its_work(small):
    """As benchmarks/demo.csv has it for 480 patches: 20 of them take little more than the start, 200 ten times the rest."""
    told = small.follow()
    start_s, seconds = progress.START_S, progress.SECONDS["train_end_to_end"]
    for name, n_patches in ((SHORT, 20), (LONG, 200)):
        assert told._expected(name, {}) == pytest.approx(start_s + (seconds - start_s) * n_patches / 480)


def test_a_running_training_s_bar_tells_of_the_others_of_its_kind(small):
    """The first guess of the long trainings is 31 s; a short one that needs 100 s says that they need far more."""
    told = small.follow()
    before = told._spans()[LONG]
    small.begin(SHORT)
    told.look()
    small.now = 40.0
    small.begin(SHORT, bar(60, 120))
    spans = told._spans()
    assert spans[SHORT] == pytest.approx(60, abs=1)
    assert before < 40 and spans[LONG] == pytest.approx(progress.START_S + 10 * (100 - progress.START_S), abs=10)
    small.end(SHORT, 70.0)
    told.look()
    assert told._spans()[LONG] == told._expected(LONG, told.known), "what ended counts, no bar any more"


def test_a_network_s_time_is_its_own_once_a_training_of_it_has_ended(small):
    small.end(SHORT, 500.0)
    small.end(LONG, 600.0)
    told = small.follow()
    times = [told._expected(name.replace("fold0", "fold1"), told.known) for name in (SHORT, LONG)]
    assert times == pytest.approx([500.0, 600.0]), "a step of LoRA is dearer than one of a small network"


def test_on_a_cluster_or_a_gpu_nothing_is_guessed_from_a_cpu_s_times(small):
    assert "left" not in small.follow(n_cores=0)._left()
    for name in filter(lambda name: name.startswith(("04", "12")), small.jobs):
        small.end(name, 300.0)
    assert "left" in small.follow(n_cores=0)._left()


def test_an_effect_and_a_scale_are_as_much_as_the_network_that_they_train(demo):
    jobs = sweep_jobs.jobs_of(demo)
    assert {progress.work_of(demo, job) for job in jobs.values() if job.rule == "measure"} == {480.0}


def test_every_kind_of_job_has_a_first_guess():
    assert set(progress.SECONDS) == set(sweep_jobs.RULES)


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (bar(3, 12), "short 3 of 12, 25 %"),
        (bar(3, 12, inner=True), "short 3 of 12, 25 %"),
        (bar(2, 4, "first") + "\n" + bar(1, 4, ""), "1 of 4, 25 %"),
        (bar(12, 12), None),
        ("a warning\n", None),
        ("", None),
    ],
    ids=["one", "another below it", "a second", "finished", "none", "empty"],
)
def test_the_last_bar_that_isn_t_below_another_is_read(tmp_path, log, words):
    (tmp_path / "log.txt").write_text(log)
    found = progress.read_bar(tmp_path / "log.txt")
    assert (found and found[0]) == words
    assert progress.read_bar(tmp_path / "none.txt") is None


def test_times_are_told_in_words():
    assert [progress.span(seconds) for seconds in (0.2, 99, 100, 5900, 8040)] == [
        "0 s",
        "99 s",
        "2 min",
        "98 min",
        "2 h 14 min",
    ]


NOTEBOOK = """
# %% tags=["parameters"]
number = 1

# %%
from tqdm.auto import tqdm

for _ in tqdm(range(3), desc="outer"):
    for _ in tqdm(range(4), desc="inner", leave=False):
        pass
"""


def test_a_notebook_s_bars_reach_its_log_and_none_stays_in_a_page(tmp_path):
    (tmp_path / "tiny.py").write_text(NOTEBOOK)
    with (tmp_path / "log.txt").open("w") as log:
        sweep_run.execute(tmp_path / "tiny.py", tmp_path / "out.ipynb", {}, log=log)
    text = (tmp_path / "log.txt").read_text()
    assert "outer:   0%|" in text and "outer: 100%|" in text and "inner:   0%|" in text
    assert without_progress(nbformat.read(tmp_path / "out.ipynb", 4)).cells[-1].outputs == []


def test_who_reads_no_more_ends_snakemake_too(tmp_path):
    """Else it would go on alone, and a second sweep beside it."""

    class Told:
        def look(self):
            if (tmp_path / "log").read_text():
                raise BrokenPipeError

    code = "import signal, sys; signal.signal(2, lambda *_: sys.exit(print('ended'))); print('begun', flush=True); "
    code += "[signal.pause() for _ in range(9)]"
    with pytest.raises(BrokenPipeError):
        sweep._run([sys.executable, "-c", code], tmp_path / "log", Told())
    assert (tmp_path / "log").read_text() == "begun\nended\n"


def test_a_file_system_that_hesitates_ends_nothing(small, monkeypatch, capsys):
    told = small.follow()
    small.begin(FIRST)
    with monkeypatch.context() as patch:
        patch.setattr(progress, "_times", lambda folder: Path("/dev/null/gone").stat())
        told.look()
    told.look()
    assert f"started   {FIRST}" in capsys.readouterr().out


def test_a_record_s_file_is_older_or_newer_not_its_content(small):
    """What is to do is decided as Snakemake does; tests/sweep/test_stale.py compares the two."""
    for name in small.jobs:
        small.end(name)
    assert small.follow().to_do == set()
    times = {name: (small.folder / "jobs" / f"{name}.json").stat().st_mtime_ns for name in small.jobs}
    time_ns = max(times.values()) + 10**9
    os.utime(small.folder / "jobs" / "03_linear_probe.uni.json", ns=(time_ns, time_ns))
    after = {"05_data_scaling", "12_explore", "supplement"}
    assert after <= small.follow().to_do and FIRST not in small.follow().to_do
    assert small.follow(targets=("02_embed.uni",)).to_do == set()
