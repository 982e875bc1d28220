"""The sweep: jobs in order, failures as rows with a reason, unknown parameters refused, one sweep at a time."""

from pathlib import Path

import nbformat
import pytest

from mfcore import store, sweep, sweep_jobs, sweep_run
from mfcore.config import load_study

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
    assert all((sweep_jobs.ROOT / "notebooks" / f"{job.notebook}.py").is_file() for job in jobs.values())
    assert sum(job.notebook == sweep_jobs.STAGES["04"] for job in jobs.values()) == 5
    assert set(jobs["05_data_scaling"].needs) == {n for n in names if n.startswith(("03", "04"))}


def test_every_job_s_parameters_are_known_to_its_notebook():
    import jupytext

    for job in sweep_jobs.jobs_of(load_study(DEMO)).values():
        known = sweep_run.known_parameters(jupytext.read(sweep_jobs.ROOT / "notebooks" / f"{job.notebook}.py"))
        assert set(job.parameters) | {"study_file", "results"} <= set(known), job.name


def test_a_parameter_is_handed_on_and_an_unknown_one_refused_before_a_kernel_starts(notebook, tmp_path):
    sweep_run.execute(notebook, tmp_path / "out.ipynb", {"number": 2})
    assert "number is 2" in nbformat.read(tmp_path / "out.ipynb", 4).cells[-1].outputs[0].text
    with pytest.raises(sweep_run.SweepError, match=r"tiny\.py has no parameter 'nunber'; its parameters: \['number'\]"):
        sweep_run.execute(notebook, tmp_path / "never.ipynb", {"nunber": 2})
    assert not (tmp_path / "never.ipynb").exists()


def test_a_failed_job_is_a_row_with_its_reason_and_its_notebook_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_run, "ROOT", tmp_path)
    (tmp_path / "notebooks").mkdir()
    source = NOTEBOOK.replace("number = 1", 'study_file = ""\nresults = ""\nencoder = ""\nnumber = 7')
    (tmp_path / "notebooks" / "02_embed.py").write_text(source)
    results = tmp_path / "results"
    assert not sweep_run.run_job(DEMO, "02_embed.vit_tiny_random", results, "", 1)
    failure = store.read_json(results / "failures" / "02_embed.vit_tiny_random.json")
    assert failure["reason"] == "AssertionError: number is too large"
    assert failure["parameters"] == {"encoder": "vit_tiny_random"}
    assert store.read_json(results / "jobs" / "02_embed.vit_tiny_random.json")["failed"]
    assert (results / failure["notebook"]).is_file()
    assert not sweep_run.run_job(DEMO, "03_linear_probe.vit_tiny_random", results, "", 1)
    after = store.read_json(results / "failures" / "03_linear_probe.vit_tiny_random.json")
    assert after["reason"] == "not run: 02_embed.vit_tiny_random failed"


def test_a_second_sweep_on_the_same_results_is_refused(tmp_path):
    with (
        store.alone(tmp_path / "demo", "sweep"),
        pytest.raises(store.StoreError, match="another sweep is at work"),
    ):
        sweep.paper("demo", results=str(tmp_path))


def test_an_unknown_study_ends_with_its_name_and_status_2(capsys):
    assert sweep.main(["paper", "--study", "demoo"]) == 2
    assert "demoo.yaml: no such study file; studies beside it" in capsys.readouterr().err
    assert sweep.study_file("a/b.yaml") == Path("a/b.yaml")
