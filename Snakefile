# A study's jobs and what each needs. `make paper` runs it; mfcore/sweep.py says what a job is and what its failure means.
import sys

from mfcore.config import load_study
from mfcore.sweep import ROOT, jobs_of

STUDY_FILE = config["study"]
DATA = config.get("data", "")
STUDY = load_study(STUDY_FILE)
JOBS = jobs_of(STUDY)
PYTHON = sys.executable


def n_threads(name):
    """All cores for a job that runs alone; else the cores are shared among the jobs of its stage."""
    beside = [job for job in JOBS.values() if job.notebook == JOBS[name].notebook]
    return max(1, workflow.cores // len(beside))


rule supplement:
    input:
        sorted(ROOT.glob("mfcore/report*.py")),
        sorted(ROOT.glob("mfcore/templates/*.html")),
        [f"jobs/{name}.json" for name in JOBS],
    output:
        "jobs/supplement.json",
    shell:
        "{PYTHON:q} -m mfcore.sweep supplement --study {STUDY_FILE:q} --results ."


for name, job in JOBS.items():

    rule:
        name:
            name
        input:
            STUDY_FILE,
            ROOT / "notebooks" / f"{job.notebook}.py",
            [f"jobs/{need}.json" for need in job.needs],
        output:
            f"jobs/{name}.json",
        params:
            name=name,
            data=["--data", DATA] if DATA else [],
        priority: 1 if job.notebook.startswith("04") else 0  # the longest first
        threads: n_threads(name)
        resources:
            gpu=int(job.notebook.startswith(("02", "04"))),
        shell:
            "{PYTHON:q} -m mfcore.sweep job --study {STUDY_FILE:q} --name {params.name:q} --results . {params.data:q} "
            "--threads {threads}"
