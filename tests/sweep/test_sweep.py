"""The sweep: jobs in order, failures as rows with a reason, unknown parameters refused, one sweep at a time."""

import io
import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from running import HANG_S

from mfcore import store
from mfcore.store import machine
from mfcore.study.config import Effects, load_study
from mfcore.sweep import ROOT, __main__ as sweep, jobs as sweep_jobs, run as sweep_run

DEMO = sweep.study_file("demo")

NOTEBOOK = """
# %% tags=["parameters"]
number = 1

# %%
print("number is", number)
assert number < 3, "number is too large"
"""


@pytest.fixture
def notebook(tmp_path):
    source = tmp_path / "tiny.py"
    source.write_text(NOTEBOOK)
    return source


def test_every_job_comes_after_those_it_needs():
    jobs = sweep_jobs.jobs_of(load_study(DEMO))
    names = list(jobs)
    assert all(names.index(need) < names.index(job.name) for job in jobs.values() for need in job.needs)
    notebooks = [job.notebook for job in jobs.values() if job.notebook]
    assert all((ROOT / "notebooks" / f"{notebook}.py").is_file() for notebook in notebooks)
    n_trainings = load_study(DEMO).splits.n_folds * len(load_study(DEMO).networks)
    assert sum(job.notebook == sweep_jobs.STAGES["04"] for job in jobs.values()) == n_trainings
    assert set(jobs["05_data_scaling"].needs) == {n for n in names if n.startswith(("03", "04", "measure"))}
    assert jobs["supplement"].needs == tuple(names[:-1]) and names[-1] == "supplement"


def test_every_job_s_parameters_are_known_to_its_notebook():
    for job in filter(lambda job: job.notebook, sweep_jobs.jobs_of(load_study(DEMO)).values()):
        known = papermill.inspect_notebook(str(ROOT / "notebooks" / f"{job.notebook}.ipynb"))
        assert set(job.parameters) | {"study_file", "results"} <= set(known), job.name


def test_a_parameter_is_handed_on(notebook, tmp_path):
    sweep_run.execute(notebook, tmp_path / "out.ipynb", {"number": 2})
    assert "number is 2" in nbformat.read(tmp_path / "out.ipynb", 4).cells[-1].outputs[0].text


def test_braces_in_a_path_are_no_parameters(notebook, tmp_path):
    sweep_run.execute(notebook, tmp_path / "of {number}" / "{x}.ipynb", {"number": 2})
    assert (tmp_path / "of {number}" / "{x}.ipynb").is_file()


def test_a_long_path_of_scratch_is_no_failure(notebook, tmp_path, monkeypatch):
    """The kernel's sockets lie in a scratch folder, and a socket's path has 107 characters at most."""
    (tmp_path / ("s" * 100)).mkdir()
    monkeypatch.setattr(sweep_run.tempfile, "tempdir", str(tmp_path / ("s" * 100)))
    sweep_run.execute(notebook, tmp_path / "out.ipynb", {"number": 2})
    assert (tmp_path / "out.ipynb").is_file()


def test_a_reason_with_a_name_that_is_no_utf_8_is_told(tmp_path, monkeypatch):
    def execute(*_):
        raise RuntimeError("Pr\udce4parat.svs is damaged")

    monkeypatch.setattr(sweep_run, "execute", execute)
    assert not sweep_run.run_job(DEMO, "05_data_scaling", tmp_path, "", 1)
    reason = store.read_json(tmp_path / "failures" / "05_data_scaling.json")["reason"]
    assert reason == "RuntimeError: Pr\\udce4parat.svs is damaged"


def test_a_failed_job_is_a_row_with_its_reason_and_its_notebook_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_run, "ROOT", tmp_path)
    (tmp_path / "notebooks").mkdir()
    source = NOTEBOOK.replace("number = 1", 'study_file = ""\nresults = ""\nencoder = ""\nnumber = 7')
    (tmp_path / "notebooks" / "02_embed.py").write_text(source)
    results = tmp_path / "results"
    assert not sweep_run.run_job(DEMO, "02_embed.efficientnet_lite0", results, "", 1)
    failure = store.read_json(results / "failures" / "02_embed.efficientnet_lite0.json")
    assert failure["reason"] == "AssertionError: number is too large"
    assert failure["parameters"] == {"encoder": "efficientnet_lite0"}
    assert store.read_json(results / "jobs" / "02_embed.efficientnet_lite0.json")["failed"]
    assert (results / failure["notebook"]).is_file()
    assert not sweep_run.run_job(DEMO, "03_linear_probe.efficientnet_lite0", results, "", 1)
    after = store.read_json(results / "failures" / "03_linear_probe.efficientnet_lite0.json")
    assert after["reason"] == "not run: 02_embed.efficientnet_lite0 failed"


def paper(study, results, *options):
    """Run a sweep in this process; returns the exit status."""
    return sweep.main(["paper", "--study", str(study), "--results", str(results), *options])


def test_a_job_begins_without_what_only_its_notebook_needs():
    """Every job pays for what is loaded before its kernel starts."""
    code = "import sys, mfcore.sweep.__main__, nbformat; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    assert not {"torch", "sklearn", "scipy.stats", "matplotlib", "seaborn", "lark"} & {*loaded}


def test_a_job_s_record_says_what_it_and_its_process_cost(tmp_path, a_share):
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    before = sum(each.ru_utime + each.ru_stime for each in usage)
    assert a_share("import time\nwhile time.process_time() < 0.2: pass")
    record = store.read_json(tmp_path / "jobs" / "02_embed.efficientnet_lite0.share1of2.json")
    assert record["cpu_seconds"] >= round(before + 0.2, 2) and record["memory_mb"] > 50


def test_a_second_sweep_on_the_same_results_is_refused(tmp_path, capsys):
    with (
        store.alone(tmp_path / "demo", "sweep"),
    ):
        assert paper("demo", tmp_path) == 2
    assert "another sweep is at work" in capsys.readouterr().err


def test_an_unknown_study_ends_with_its_name_and_status_2(capsys):
    assert sweep.main(["paper", "--study", "demoo"]) == 2
    assert "demoo.yaml: no such study file; studies in its folder" in capsys.readouterr().err
    assert sweep.study_file("a/b.yaml") == Path("a/b.yaml")


def test_jobs_of_arms_that_look_alike_have_names_of_their_own():
    demo = load_study(DEMO)
    names = ("uni", "UNI", "u ni", "u_ni", "uni.", "uni.share0of2", "uni.split_released", "uni.fold0", "肺", "乳", "x" * 300)
    pretraining = tuple(replace(demo.pretraining[0], name=f"p{name}") for name in names)
    networks = tuple(replace(demo.networks[0], name=f"n{name}") for name in names)
    inflation = replace(demo.inflation, encoder="uni")
    study = replace(
        demo, encoders=names, networks=networks, pretraining=pretraining, inflation=inflation, effects=Effects(), tasks=()
    )
    jobs = sweep_jobs.jobs_of(study, n_shares=2)
    rules = Counter(job.rule for job in jobs.values())
    n = len(names)
    assert rules["train_end_to_end"] == n * study.splits.n_folds and rules["pretrain"] == n
    assert (rules["embed"], rules["embed_share"]) == (n, 2 * n)
    assert rules["linear_probe"] == n + sum(scheme != "slide" for scheme in inflation.schemes)
    assert len({name.casefold() for name in jobs}) == len(jobs)
    assert all((".share" in name) == (job.rule == "embed_share") for name, job in jobs.items()), "taken for a share's"
    assert max(len(f".{name}.ipynb.{'h' * 64}.1234567.partial") for name in jobs) <= 255


def test_shares_of_an_embedding_come_before_it_and_are_no_notebooks():
    jobs = sweep_jobs.jobs_of(load_study(DEMO), n_shares=3)
    names, embedding = list(jobs), jobs["02_embed.efficientnet_lite0"]
    shares = [f"02_embed.efficientnet_lite0.share{i}of3" for i in range(3)]
    assert embedding.needs == ("01_extract_patches", *shares) and embedding.depends == ("01_extract_patches",)
    assert not [need for need in jobs["supplement"].needs if jobs[need].stage == "embed_share"]
    assert all(names.index(share) < names.index(embedding.name) for share in shares)
    assert {jobs[share].rule for share in shares} == {"embed_share"} and {jobs[share].notebook for share in shares} == {""}
    assert [jobs[share].parameters["share"] for share in shares] == [0, 1, 2]
    assert {job.rule for job in jobs.values()} <= set(sweep_jobs.RULES)
    assert sweep_jobs.jobs_of(load_study(DEMO), n_shares=1) == sweep_jobs.jobs_of(load_study(DEMO))


@pytest.fixture
def a_share(tmp_path, monkeypatch):
    """Runs a share's job, or another without a notebook, with a stand-in for its process, `code`; gives what it returned."""
    begin = subprocess.run

    def run(code: str, name: str = "02_embed.efficientnet_lite0.share1of2", file: Path = DEMO, data: str = "") -> bool:
        def stand_in(command, **how):
            run.command = command
            return begin([sys.executable, "-c", code], **how)

        monkeypatch.setattr(sweep_run.subprocess, "run", stand_in)
        return sweep_run.run_job(file, name, tmp_path, data, 1, n_shares=2)

    return run


@pytest.fixture
def measured(tmp_path):
    """A study that measures two switches."""
    content = yaml.safe_load(DEMO.read_text())
    content |= {
        "name": "measured",
        "networks": content["networks"][:1],
        "effects": {"encoder": "efficientnet_lite0", "switches": ["border", "split_by"]},
    }
    file = tmp_path / "measured.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_switches_are_measured_after_the_study_itself_and_the_base_first(measured):
    jobs = sweep_jobs.jobs_of(load_study(measured), 2)
    measuring = [job for job in jobs.values() if job.rule == "measure"]
    assert [job.name for job in measuring] == [f"measure.{name}" for name in ("base", "split_by", "border", "paper")]
    assert [job.parameters["switch"] for job in measuring] == ["base", "split_by", "border", "paper"]
    arms = {name for name in jobs if name.startswith(("03", "04"))}
    assert set(measuring[0].needs) == {"01_extract_patches", *arms}
    assert {job.needs for job in measuring[1:]} == {("measure.base",)}
    assert {job.name for job in measuring} <= set(jobs["05_data_scaling"].needs), "notebook 05 shows what they are worth"
    assert {(job.notebook, job.stage) for job in measuring} == {("", "measure")}
    assert not {job.rule for job in jobs.values()} - set(sweep_jobs.RULES)


def test_a_switch_that_cannot_be_measured_is_a_row_and_stops_no_other(tmp_path, measured, a_share):
    assert not a_share("import sys; sys.exit('mfcore: no such weights')", "measure.base", measured)
    failure = store.read_json(tmp_path / "failures" / "measure.base.json")
    assert (failure["reason"], failure["stage"]) == ("SweepError: mfcore: no such weights", "measure")
    assert a_share("pass", "measure.border", measured, data="there"), "it goes on without the base"
    assert store.read_json(tmp_path / "jobs" / "measure.border.json")["notebook"] == ""
    said = " ".join(a_share.command)
    assert "-m mfcore measure" in said and said.endswith("--switch=border --workers=1 --data=there")


def test_a_job_with_several_problems_says_them_all(tmp_path, measured, a_share):
    said = "mfcore: net: 2 problems:\n  no patches\n  one class\nmfcore: probe: no weights"
    assert not a_share(f"import sys; sys.exit('measuring: 9%|#\\r' + {said!r})", "measure.base", measured)
    failure = store.read_json(tmp_path / "failures" / "measure.base.json")
    assert failure["reason"] == f"SweepError: {said}"


def test_a_share_that_fails_says_its_last_line_and_the_embedding_makes_up_for_it(tmp_path, monkeypatch, a_share):
    assert a_share("pass")
    assert not a_share("import sys; sys.exit('embed:  10%|#\\rmfcore: no such encoder')")
    failure = store.read_json(tmp_path / "failures" / "02_embed.efficientnet_lite0.share1of2.json")
    assert (failure["reason"], failure["stage"]) == ("SweepError: mfcore: no such encoder", "02_embed")
    monkeypatch.setattr(sweep_run, "execute", lambda *_: None)
    assert sweep_run.run_job(DEMO, "02_embed.efficientnet_lite0", tmp_path, "", 1, n_shares=2)
    assert not list((tmp_path / "failures").iterdir()), "the embedding is there: no share of it failed for good"


def test_what_was_killed_leaves_a_note_and_no_record_and_is_given_up_the_third_time(tmp_path, a_share):
    jobs = sweep_jobs.jobs_of(load_study(DEMO), 2)
    name = "02_embed.efficientnet_lite0.share1of2"
    for n in (1, 2, 3):
        with pytest.raises(sweep_run.KilledError, match="killed by signal 9"):
            a_share("import os; os.kill(os.getpid(), 9)")
        assert not (tmp_path / "jobs" / f"{name}.json").exists() and not (tmp_path / "failures").exists()
        assert sweep_run.killed(tmp_path, jobs) == {name: n}
    assert store.read_json(tmp_path / "failures" / f"{name}.json")["reason"] == "killed by signal 9; out of memory? (3 times)"
    assert sweep_run.killed(tmp_path, jobs) == {}


def test_a_kernel_that_is_killed_is_no_failure_of_its_notebook(notebook, tmp_path):
    notebook.write_text(NOTEBOOK.replace("assert", "import os; os.kill(os.getpid(), 9)\nassert"))
    with pytest.raises(sweep_run.KilledError, match="kernel died"):
        sweep_run.execute(notebook, tmp_path / "out.ipynb", {})


def test_a_job_that_failed_is_not_tried_again_by_the_cluster(tmp_path, a_share):
    assert not a_share("import sys; sys.exit('bad')")
    assert not a_share("raise RuntimeError('it ran again')")
    assert "bad" in store.read_json(tmp_path / "failures" / "02_embed.efficientnet_lite0.share1of2.json")["reason"]


class Snakemake:
    """Stands in for it: each call does the next of ``steps`` with the results' folder and gives its status."""

    def __init__(self, monkeypatch, *steps):
        self.steps, self.commands = list(steps), []
        monkeypatch.setattr(sweep, "_run", self)

    def __call__(self, command, log=None, told=None):
        self.commands.append(command)
        return self.steps.pop(0)(Path(command[command.index("--directory") + 1]))


def _record(name, status=0):
    def step(folder):
        store.write_json(folder / "jobs" / f"{name}.json", {})
        return status

    return step


def test_the_sweep_goes_on_while_it_gets_anywhere(tmp_path, monkeypatch):
    """A kill may end Snakemake itself; what makes no headway, such as a refusal of the cluster, is not asked again."""
    calls = Snakemake(monkeypatch, _record("01_extract_patches", 1), _record("05_data_scaling"))
    assert paper("demo", tmp_path / "a") == 0 and not calls.steps
    calls = Snakemake(monkeypatch, lambda folder: 1, _record("05_data_scaling"))
    assert paper("demo", tmp_path / "b") == 1 and len(calls.steps) == 1


def test_the_end_says_what_was_found_and_where_the_supplement_is(tmp_path, monkeypatch, capsys):
    def step(folder):
        store.write_json(
            folder / "figures" / "05_arms.json", {"caption": "2 arms learned. AUROC: a 0.89 ± 0.02, b 0.71 ± 0.02."}
        )
        (folder / "supplement").mkdir()
        (folder / "supplement" / "index.html").touch()
        return _record("supplement")(folder)

    Snakemake(monkeypatch, step)
    assert paper("demo", tmp_path) == 0
    said = capsys.readouterr().out
    assert "\ndemo found: 2 arms learned. AUROC: a 0.89 ± 0.02, b 0.71 ± 0.02.\n" in said
    assert said.endswith(f" Supplement:\n{tmp_path}/demo/supplement/index.html\n")


def test_a_supplement_of_an_earlier_run_is_not_shown_as_this_ones(tmp_path, monkeypatch, capsys):
    """The extraction fails, so that Snakemake begins nothing else, and finds nothing to do at its second call."""
    (tmp_path / "demo" / "supplement").mkdir(parents=True)
    (tmp_path / "demo" / "supplement" / "index.html").touch()
    _record("supplement")(tmp_path / "demo")

    def fails(folder):
        store.write_json(folder / "failures" / "01_extract_patches.json", {"reason": "LabelError: category 7"})
        return 1

    Snakemake(monkeypatch, fails, lambda folder: 0)
    assert paper("demo", tmp_path) == 1
    said = capsys.readouterr()
    assert "Supplement:" not in said.out and f"{tmp_path}/demo/supplement/index.html is of an earlier run" in said.err


def test_what_was_found_before_is_not_shown_as_this_run_s_where_its_notebook_fails(tmp_path, monkeypatch, capsys):
    def step(folder):
        store.write_json(folder / "figures" / "05_arms.json", {"caption": "AUROC: a 0.99."})
        (folder / "supplement").mkdir()
        (folder / "supplement" / "index.html").touch()
        store.write_json(folder / "failures" / "05_data_scaling.json", {"reason": "ValueError: no"})
        return _record("supplement")(folder)

    Snakemake(monkeypatch, step)
    assert paper("demo", tmp_path) == 1
    said = capsys.readouterr().out
    assert "0.99" not in said and "Supplement:" in said


def test_a_record_that_somebody_removed_is_made_again(tmp_path, monkeypatch):
    """Snakemake makes what is missing only for who is to run, so those that depend on it are."""
    jobs, seen = sweep_jobs.jobs_of(load_study(DEMO)), []
    for name in set(jobs) - {"03_linear_probe.own_vit"}:
        _record(name)(tmp_path / "demo")
    Snakemake(monkeypatch, lambda folder: seen.extend(file.stem for file in folder.glob("jobs/*.json")) or 0)
    assert paper("demo", tmp_path) == 0
    gone = {name for name, job in jobs.items() if "03_linear_probe.own_vit" in job.depends}
    assert gone >= {"05_data_scaling", "12_explore", "supplement"} and gone.isdisjoint(seen)
    assert {"01_extract_patches", "02_embed.own_vit", "11_pretraining_studies"} <= set(seen)


def test_a_full_disk_is_said(tmp_path, monkeypatch, capsys):
    def full(**_):
        raise OSError(28, "No space left on device")

    Snakemake(monkeypatch, lambda folder: 1)
    monkeypatch.setattr(sweep.tempfile, "TemporaryFile", full)
    assert paper("demo", tmp_path) == 2
    assert f"{tmp_path}/demo: No space left on device; make room and run again" in capsys.readouterr().err


def test_a_study_file_that_changes_meanwhile_ends_the_sweep_and_its_jobs(tmp_path, monkeypatch, capsys):
    file = tmp_path / "s.yaml"
    file.write_text("name: s\ntitle: s\ndata: {source: synthetic}\nencoders: [uni]\n")

    def step(folder):
        file.write_text(file.read_text().replace("uni", "virchow"))
        return 1

    calls = Snakemake(monkeypatch, step, lambda folder: 0)
    assert paper(file, tmp_path / "r") == 2 and len(calls.steps) == 1
    said = "study s: its file changed while the sweep ran; run it again"
    assert said in capsys.readouterr().err
    with pytest.raises(sweep_run.SweepError, match=said):
        sweep_run.run_job(file, "02_embed.virchow", tmp_path / "r" / "s", "", 1)
    assert not (tmp_path / "r" / "s" / "failures").exists()


@pytest.mark.parametrize("name", ["..", "''", "a/b", "' a'", '"a\\nb"', "."])
def test_a_study_s_results_lie_in_a_folder_of_its_name(name, tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(f"name: {name}\ntitle: s\ndata: {{source: synthetic}}\nencoders: [uni]\n")
    assert paper(tmp_path / "s.yaml", tmp_path / "r" / "e") == 2
    assert "is to be that of a folder" in capsys.readouterr().err and not (tmp_path / "r").exists()


@pytest.mark.parametrize("option", ["--dry-run", "-n", "-np", "--list-rules"])
def test_who_only_looks_changes_nothing(option, tmp_path, monkeypatch, capsys):
    failure = tmp_path / "demo" / "failures" / "05_data_scaling.json"
    store.write_json(failure, {"reason": "no"})
    _record("05_data_scaling")(tmp_path / "demo")
    (tmp_path / "demo" / "supplement").mkdir()
    (tmp_path / "demo" / "supplement" / "index.html").touch()
    Snakemake(monkeypatch, lambda folder: 0)
    assert paper("demo", tmp_path, option) == 0
    assert failure.is_file() and (tmp_path / "demo" / "jobs" / failure.name).is_file()
    assert "earlier run" not in capsys.readouterr().err


def test_a_terminal_without_a_character_gets_another(tmp_path, monkeypatch):
    def step(folder):
        store.write_json(folder / "figures" / "05_arms.json", {"caption": "AUROC: 0.9 \N{MINUS SIGN}"})
        (folder / "supplement").mkdir()
        (folder / "supplement" / "index.html").touch()
        return _record("supplement")(folder)

    Snakemake(monkeypatch, step)
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert paper("demo", tmp_path) == 0
    terminal.flush()
    assert b"AUROC: 0.9 ?" in terminal.buffer.getvalue()


@pytest.mark.parametrize("options", [("--cores", "0"), ("--cores", "-1"), ("--shares", "1000000000")])
def test_impossible_numbers_are_refused(options, tmp_path):
    assert paper("demo", tmp_path, *options) == 2 and not list(tmp_path.iterdir())


def test_ctrl_c_before_the_first_job_is_no_traceback(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep.sweep_inputs, "write", interrupted)
    assert paper("demo", tmp_path) == sweep.INTERRUPTED
    assert capsys.readouterr().err == "mfcore: stopped\n"


def test_where_snakemake_ends_for_another_reason_its_last_lines_say_why(tmp_path, monkeypatch, capsys):
    def step(folder):
        (folder / "logs").mkdir()
        (folder / "logs" / "snakemake.txt").write_text("WorkflowError:\nsbatch: no such partition\n")
        return 1

    Snakemake(monkeypatch, step)
    assert paper("demo", tmp_path) == 1
    said = capsys.readouterr().err
    assert said.startswith("WorkflowError:\nsbatch: no such partition\ndemo: no jobs failed, Snakemake's status 1. Run again")


def test_a_task_without_data_is_said_before_days_of_pretraining(tmp_path, monkeypatch, capsys):
    file = tmp_path / "studies" / "t.yaml"
    file.parent.mkdir()
    file.write_text("name: t\ntitle: t\ndata: {source: synthetic}\nencoders: [a]\ntasks: [{name: bach}, {name: crc}]\n")
    Snakemake(monkeypatch, _record("05_data_scaling"))
    (tmp_path / "data" / "t" / "tasks" / "crc" / "NCT-CRC-HE-100K").mkdir(parents=True)
    assert paper(file, tmp_path / "r") == 0
    said = capsys.readouterr().err
    assert f"task bach has no data yet; lay them into {tmp_path}/data/t/tasks/bach" in said and "task crc" not in said
    Snakemake(monkeypatch, _record("05_data_scaling"))
    assert paper(file, tmp_path / "r2", "--data", str(tmp_path / "other")) == 0
    assert f"{tmp_path}/other/tasks/crc" in capsys.readouterr().err


def test_data_are_fetched_to_where_the_notebooks_look(tmp_path, monkeypatch):
    """Also those of a study file that lies elsewhere."""
    file, asked = tmp_path / "studies" / "t.yaml", []
    file.parent.mkdir()
    file.write_text("name: t\ntitle: t\ndata: {source: midog22}\nencoders: [a]\n")
    monkeypatch.setattr(sweep.study_data, "fetch", lambda study, folder, verify: asked.append(folder) or ("", True))
    assert all(sweep.main(["data", "--study", str(study)]) == 0 for study in (file, "midog22"))
    assert asked == [tmp_path / "data" / "t", sweep.ROOT / "data" / "midog22"]


def test_to_embed_is_to_do_that_alone_and_what_cannot_be_had_is_said(tmp_path, monkeypatch, capsys):
    def step(folder):
        _record("02_embed.efficientnet_lite0")(folder)
        for record in ("jobs", "failures"):
            told = {"name": "02_embed.own_vit_untrained", "reason": "accept its licence", "failed": True}
            store.write_json(folder / record / "02_embed.own_vit_untrained.json", told)
        return 0

    other = tmp_path / "demo" / "failures" / "04_train_end_to_end.x.json"
    store.write_json(other, {"name": "another job", "reason": "of before"})
    calls = Snakemake(monkeypatch, step)
    assert sweep.main(["embed", "--study", "demo", "--results", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "1 of 3 embeddings are there" in said.out
    assert said.err[8:] == "  FAILED    02_embed.own_vit_untrained, 0 s: accept its licence\n" and other.is_file()
    targets = [word for word in calls.commands[0] if word.startswith("jobs/")]
    assert targets == [f"jobs/02_embed.{encoder}.json" for encoder in load_study(DEMO).encoders]
    calls = Snakemake(monkeypatch, _record("02_embed.own_vit_untrained"))
    assert sweep.main(["embed", "--study", "demo", "--results", str(tmp_path), "--encoders", "own_vit_untrained"]) == 0
    assert not (tmp_path / "demo" / "failures" / "02_embed.own_vit_untrained.json").exists()
    assert [word for word in calls.commands[0] if word.startswith("jobs/")] == ["jobs/02_embed.own_vit_untrained.json"]
    assert sweep.main(["embed", "--study", "demo", "--results", str(tmp_path), "--encoders", "uni, own_vit_untrained"]) == 2
    assert "has no encoder uni; it has: efficientnet_lite0, own_vit" in capsys.readouterr().err


def test_a_profile_is_found_by_name_or_path_and_leaves_cores_and_threads_to_the_cluster(tmp_path, monkeypatch, capsys):
    calls = Snakemake(monkeypatch, lambda folder: 0, lambda folder: 0, lambda folder: 0)
    how = ["paper", "--study", "demo", "--results", str(tmp_path)]
    assert sweep.main([*how, "--profile", "slurm", "--gpus", "0", "--shares", "4", "--jobs", "7"]) == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").touch()
    assert sweep.main([*how, "--profile", str(tmp_path / "mine"), "--cores", "64"]) == 0
    assert sweep.main([*how, "--cores", "3"]) == 0
    slurm, mine, here = (" ".join(map(str, command)) for command in calls.commands)
    assert f"--workflow-profile {ROOT / 'profiles' / 'slurm'} " in slurm and slurm.endswith("shares=4 gpus=0 --jobs 7")
    assert "--cores" not in slurm and "cores=" not in slurm and "--resources" not in slurm
    assert f"--workflow-profile {tmp_path / 'mine'} " in mine and "--cores 64" in mine
    assert "--cores 3 --resources gpu=" in here and "cores=3" in here and "--workflow-profile" not in here
    assert sweep.main([*how, "--profile", "slrum"]) == 2
    assert "there are: kubernetes, slurm" in capsys.readouterr().err
    assert sweep.main([*how, "--shares", "0"]) == 2


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_who_ends_the_sweep_waits_for_snakemake_which_calls_its_jobs_back(how, started):
    """Killed at once it would leave its jobs running on the cluster, and the lock free for a second sweep."""
    code = "import signal, sys, time; signal.signal(2, lambda *_: (time.sleep(1), sys.exit(7))); print(flush=True); "
    code += "[signal.pause() for _ in range(9)]"
    # tests that are run in the background by a shell inherit that Ctrl-C is ignored
    waiting = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    waiting += f"from mfcore.sweep import __main__ as sweep; print(sweep._run([sys.executable, '-c', {code!r}]))"
    process = started([sys.executable, "-c", waiting], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    if how == "Ctrl-C":  # which the terminal sends to both
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    assert process.communicate(timeout=HANG_S)[0] == "130\n"


def test_what_a_script_began_in_the_background_can_be_ended(started):
    """It ignores Ctrl-C, which Snakemake is asked to end by and would ignore, too."""
    code = f"import time; print(flush=True); time.sleep({2 * HANG_S})"
    waiting = "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    waiting += f"from mfcore.sweep import __main__ as sweep; print(sweep._run([sys.executable, '-c', {code!r}]))"
    process = started([sys.executable, "-c", waiting], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    process.stdout.readline()
    process.terminate()
    assert process.communicate(timeout=HANG_S)[0] == "130\n"


@pytest.mark.parametrize("profile", ["", "slurm"])
def test_snakemake_takes_the_workflow_and_the_profile(profile, tmp_path, measured):
    """A dry run: every job once, GPUs only where they were asked for, threads by the profile or the cores."""
    if profile:
        pytest.importorskip("snakemake_executor_plugin_slurm", reason="Snakemake's plugin for Slurm isn't installed")
    command = [sys.executable, "-m", "mfcore.sweep", "paper", "--study", str(measured)]
    command += ["--results", str(tmp_path), "--shares", "2"]
    command += (
        ["--cores", "10"] if not profile else ["--profile", profile, "--gpus", "0", "--cores", "64"]
    )  # else a dry run takes one
    done = subprocess.run([*command, "--dry-run", "--quiet", "host"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in sweep_jobs.jobs_of(load_study(measured), 2):
        assert done.stdout.count(f"output: jobs/{name}.json\n") == 1, name
    (training,) = (
        part for part in done.stdout.split("\nrule ") if "job=04_train_end_to_end.efficientnet_lite0_64px.fold0" in part
    )
    assert f"threads: {8 if profile else 3}\n" in training
    assert ("gpu=1" in training) == (not profile)
    assert ("mem_mb=24000" in training) == bool(profile)
    (switch,) = (part for part in done.stdout.split("\nrule ") if "job=measure.border" in part)
    assert ("gpu=1" in switch) == (not profile) and ("mem_mb=24000" in switch) == bool(profile)
    assert "jobs/measure.base.json" in switch
    (large,) = (part for part in done.stdout.split("\nrule ") if "job=08_pretrain.own_vit\n" in part)
    assert f"threads: {16 if profile else 10}\n" in large and ("gpu=1" in large) == (not profile)


PRETRAINING = """
pretraining:
  - {name: late, start: own@20, n_steps: 30}
  - {name: own, n_steps: 40, n_snapshots: 2}
  - {name: large, n_steps: 3000}
tasks:
  - {name: bach}
  - {name: consep, encoders: [efficientnet_lite0, own]}
"""


@pytest.fixture
def pretraining(tmp_path):
    """A study that pretrains three encoders, one of which its own encoders are, and judges by two tasks."""
    file = tmp_path / "pretraining.yaml"
    head = "name: pretraining\ntitle: t\ndata: {source: synthetic}\nencoders: [efficientnet_lite0, own, 'own@20']\n"
    file.write_text(head + PRETRAINING)
    return file


def test_a_study_without_pretraining_and_tasks_has_none_of_their_jobs(measured):
    content = {key: value for key, value in yaml.safe_load(measured.read_text()).items() if key not in ("pretraining", "tasks")}
    content["encoders"] = ["efficientnet_lite0"]
    measured.write_text(yaml.safe_dump(content | {"probe_audit": [], "inflation": {}}))
    assert not {name[:2] for name in sweep_jobs.jobs_of(load_study(measured))} & {"07", "08", "09", "10", "11"}


def test_pretrainings_are_jobs_that_wait_for_their_start_and_are_waited_for(pretraining):
    jobs = sweep_jobs.jobs_of(load_study(pretraining), 2)
    names = list(jobs)
    assert all(names.index(need) < names.index(job.name) for job in jobs.values() for need in job.needs)
    first = "01_extract_patches"
    assert jobs["07_online_patching"].needs == (first,)
    assert jobs["08_pretrain.own"].needs == (first,) and jobs["08_pretrain.late"].needs == (first, "08_pretrain.own")
    assert jobs["08_pretrain.own"].parameters == {"encoder": "own"}
    assert jobs["02_embed.efficientnet_lite0"].needs[:2] == (first, "02_embed.efficientnet_lite0.share0of2")
    for encoder in ("own", store.file_name("own@20")):
        assert jobs[f"02_embed.{encoder}"].needs[:2] == (first, "08_pretrain.own")
        assert jobs[f"02_embed.{encoder}.share1of2"].needs == (first, "08_pretrain.own")
    assert jobs["09_downstream_tasks.consep"].needs == (first, "08_pretrain.own")
    everything = {"08_pretrain.own", "08_pretrain.late", "08_pretrain.large"}
    assert set(jobs["09_downstream_tasks.bach"].needs) == {first, *everything}
    probes = [f"03_linear_probe.{store.file_name(name)}" for name in ("efficientnet_lite0", "own", "own@20")]
    judged = {"09_downstream_tasks.bach", "09_downstream_tasks.consep"}
    assert set(jobs["10_representations"].needs) == {*probes, *judged}
    assert set(jobs["11_pretraining_studies"].needs) == everything | judged
    assert {job.rule for job in jobs.values()} <= set(sweep_jobs.RULES)
    goes_on = {job.notebook[:2] or job.stage for job in jobs.values() if job.stage in sweep_jobs.GO_ON}
    assert goes_on == {"05", "06", "09", "10", "11", "12", "supplement"}, "these make do with what there is"


def test_to_embed_an_encoder_is_to_pretrain_it_and_what_it_starts_from_and_no_more(pretraining):
    jobs = sweep_jobs.jobs_of(load_study(pretraining))
    found = sweep_jobs.with_needs(jobs, ["02_embed.own"])
    assert list(found) == ["01_extract_patches", "08_pretrain.own", "02_embed.own"]
    assert "08_pretrain.own" in sweep_jobs.with_needs(jobs, ["08_pretrain.late"])


def test_the_largest_pretraining_has_all_cores_and_small_ones_share_them(pretraining):
    jobs = sweep_jobs.jobs_of(load_study(pretraining))
    threads = {name: sweep_jobs.n_threads(jobs[name], jobs, 8) for name in jobs}
    assert (threads["08_pretrain.large"], threads["08_pretrain.own"], threads["08_pretrain.late"]) == (8, 2, 2)
    assert threads["01_extract_patches"] == 8 and threads["03_linear_probe.own"] == 2
    assert threads["05_data_scaling"] == threads["12_explore"] == 1, "what shows results runs side by side"
    assert {sweep_jobs.n_threads(job, jobs, 0) for job in jobs.values()} == {1}, "a cluster's profile says how many"


@pytest.mark.parametrize(("memory_mb", "at_once"), [(2048, 1), (4096, 2), (16_384, 8)])
def test_no_more_jobs_run_at_once_than_the_memory_holds(pretraining, memory_mb, at_once):
    jobs = sweep_jobs.jobs_of(load_study(pretraining))
    assert 8 // min(sweep_jobs.n_threads(job, jobs, 8, memory_mb) for job in jobs.values()) <= at_once
    assert {sweep_jobs.n_threads(job, jobs, 2, 2048) for job in jobs.values()} == {2}, "one after another"


@pytest.mark.parametrize(("limit", "expected_mb"), [("1073741824\n", 1024), ("max\n", None)])
def test_the_memory_is_the_container_s_where_it_has_less(tmp_path, monkeypatch, limit, expected_mb):
    monkeypatch.setattr(machine, "LIMITS", (tmp_path / "none", tmp_path / "limit"))
    whole = machine.memory_mb()
    (tmp_path / "limit").write_text(limit)
    assert machine.memory_mb() == (expected_mb or whole)


def test_notebooks_that_read_slides_are_told_where_the_data_are(pretraining, tmp_path, monkeypatch):
    told = {}
    monkeypatch.setattr(sweep_run, "execute", lambda source, target, parameters, *_: told.update({source.stem: parameters}))
    names = ["07_online_patching", "08_pretrain.own", "09_downstream_tasks.bach", "10_representations", "02_embed.own"]
    for name in names:
        assert sweep_run.run_job(pretraining, name, tmp_path / "results" / "pretraining", "there", 1)
    assert {stem for stem, parameters in told.items() if parameters.get("data_folder") == "there"} == {
        "07_online_patching",
        "08_pretrain",
        "09_downstream_tasks",
    }
    assert told["09_downstream_tasks"]["task"] == "bach" and told["08_pretrain"]["encoder"] == "own"


def test_an_executed_notebook_says_whose_outputs_it_has(notebook, tmp_path, monkeypatch):
    """Its study's, and "synthetic" only where they are; a notebook by itself says nothing of a study."""
    of_what = {}

    def execute(source, target, parameters, n_threads, line, log):
        of_what[target.stem] = line

    execute_really = sweep_run.execute
    monkeypatch.setattr(sweep_run, "execute", execute)
    text = "name: t\ntitle: t\ndata: {source: SOURCE}\nencoders: [uni]\nmode: paper\nswitches: {border: said}\n"
    for source in ("synthetic", "csv"):
        (tmp_path / f"{source}.yaml").write_text(text.replace("SOURCE", source))
        assert sweep_run.run_job(tmp_path / f"{source}.yaml", "02_embed.uni", tmp_path / source, "", 1)
        line = "study `t`, synthetic data," if source == "synthetic" else "study `t`,"
        assert of_what["02_embed.uni"] == f"*The outputs are those of the {line} paper mode, but border: said.*"
    notebook.write_text("# %% [markdown]\n# # A title\n" + NOTEBOOK)
    execute_really(notebook, tmp_path / "out.ipynb", {}, 1, "*Of this.*")
    assert nbformat.read(tmp_path / "out.ipynb", 4).cells[0].source == "*Of this.*\n\n# A title"
    execute_really(notebook, tmp_path / "out.ipynb", {})
    assert nbformat.read(tmp_path / "out.ipynb", 4).cells[0].source == "# A title"


def test_a_pretraining_that_fails_is_a_row_and_tasks_and_comparisons_go_on(pretraining, tmp_path, monkeypatch):
    results = tmp_path / "results" / "pretraining"

    def execute(source, *_):
        if source.stem == "08_pretrain":
            raise RuntimeError("the teacher collapsed")

    monkeypatch.setattr(sweep_run, "execute", execute)
    for name in ("08_pretrain.own", "08_pretrain.late", "02_embed.own"):
        assert not sweep_run.run_job(pretraining, name, results, "", 1)
    for name in ("09_downstream_tasks.bach", "10_representations", "11_pretraining_studies"):
        assert sweep_run.run_job(pretraining, name, results, "", 1), name
    reasons = {file.stem: store.read_json(file)["reason"] for file in (results / "failures").glob("*.json")}
    assert reasons == {
        "08_pretrain.own": "RuntimeError: the teacher collapsed",
        "08_pretrain.late": "not run: 08_pretrain.own failed",
        "02_embed.own": "not run: 08_pretrain.own failed",
    }


def test_a_study_that_is_refused_by_the_file_system_is_told(tmp_path, monkeypatch, capsys):
    def refused(*_):
        raise PermissionError(13, "Permission denied", "there.yaml")

    monkeypatch.setattr(sweep, "load_study", refused)
    assert sweep.main(["paper", "--study", "there.yaml", "--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("mfcore: there.yaml: Permission denied; give this user the right")
