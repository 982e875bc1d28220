# A study's jobs and what each needs. `make paper` runs it; mfcore/sweep/jobs.py says what the jobs are, mfcore/sweep/run.py
# what a job's failure means, profiles/ what each rule asks a cluster for.
import re
import sys

from mfcore.store.machine import memory_mb
from mfcore.study.config import load_study
from mfcore.sweep.inputs import states_of
from mfcore.sweep.jobs import RULES, jobs_of, n_threads

STUDY_FILE = config["study"]
RESULTS = config["results"]
DATA = ["--data", config["data"]] if config.get("data") else []
SHARES = int(config["shares"])
N_CORES = int(config.get("cores", 0))  # of this machine; 0: the jobs run elsewhere, with as many threads as the profile says
MEMORY_MB = memory_mb()
N_GPUS = int(config["gpus"])
ON_ONE_GPU = ("train_end_to_end", "measure", "pretrain", "downstream_tasks", "external_test")
EARLY = ("train_end_to_end", "pretrain", "measure", "downstream_tasks")  # long, or waited for
STUDY = load_study(STUDY_FILE)
JOBS = jobs_of(STUDY, SHARES)
PYTHON = sys.executable


def of_rule(rule):
    """The names of a rule's jobs."""
    return [name for name, job in JOBS.items() if job.rule == rule]


def states(job):
    """The files that say what of data, study and code a job depends on, below the results as all that Snakemake is told."""
    return [f"inputs/{name}.json" for name in states_of(STUDY, job)]


def needs(wildcards):
    """Records of the jobs that a job waits for. Those of shares don't date the embedding: it is the same without them."""
    job = JOBS[wildcards.job]
    return [f"jobs/{need}.json" if need in job.depends else ancient(f"jobs/{need}.json") for need in job.needs]


for rule_name in RULES:

    rule:
        name:
            rule_name
        wildcard_constraints:
            job="|".join(map(re.escape, of_rule(rule_name))) or "(?!)",
        input:
            lambda wildcards: states(JOBS[wildcards.job]),
            needs,
        output:
            "jobs/{job}.json",
        params:
            needs=lambda wildcards: list(JOBS[wildcards.job].depends),
            data=lambda wildcards: DATA,  # as it is: braces in a path are no wildcards
        priority: 1 if rule_name in EARLY else 0
        threads: lambda wildcards: n_threads(JOBS[wildcards.job], JOBS, N_CORES, MEMORY_MB)
        resources:
            **({"gpu": N_GPUS} if N_GPUS and rule_name in ("embed", "embed_share") else {}),
            **({"gpu": 1} if N_GPUS and rule_name in ON_ONE_GPU else {}),
        shell:
            "{PYTHON:q} -m mfcore.sweep job --study {STUDY_FILE:q} --name {wildcards.job:q} --results {RESULTS:q} "
            "--record {output:q} {params.data:q} --threads {threads} --shares {SHARES}"
