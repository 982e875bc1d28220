"""The jobs of a study: which notebook runs with which parameters, after which others.

Three kinds of job have no notebook: a share of an embedding, the measuring of a switch's effect or
of a scale, and the supplement.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mfcore import store
from mfcore.study import (
    data as study_data,
    encoders as study_encoders,
    pretrained,
    tasks as study_tasks,
)
from mfcore.study.config import Pretraining, Settings, Switches

STAGES = {
    "01": "01_extract_patches",
    "02": "02_embed",
    "03": "03_linear_probe",
    "04": "04_train_end_to_end",
    "05": "05_data_scaling",
    "06": "06_cross_domain_analysis",
    "07": "07_online_patching",
    "08": "08_pretrain",
    "09": "09_downstream_tasks",
    "10": "10_representations",
    "11": "11_pretraining_studies",
    "12": "12_explore",
    "13": "13_external_test",
}
# stages without a notebook
SHARE, MEASURE, SUPPLEMENT = "embed_share", "measure", "supplement"
# stages that are told where the study's data folder is
READ_DATA = tuple(STAGES[stage] for stage in ("01", "04", "07", "08", "09", "12", "13"))
# stages that show what others made: most of their work takes one core
SHOW = tuple(STAGES[stage] for stage in ("05", "06", "07", "10", "11", "12"))
# stages that run though jobs that they wait for have failed, with what there is
GO_ON = (
    *(STAGES[stage] for stage in ("05", "06", "09", "10", "11", "12", "13")),
    MEASURE,
    SUPPLEMENT,
)
# Snakemake's, by which profiles name what a job asks for
RULES = (*(notebook[3:] for notebook in STAGES.values()), SHARE, MEASURE, SUPPLEMENT)


# Memory of the sweep's own processes and, on a CPU, of a job of the demo, which has small networks
SWEEP_MB, JOB_MB = 400, 1300


@dataclass(frozen=True)
class Job:
    """One run of one notebook, or work without one, by its parameters.

    stage: a notebook of STAGES, or SHARE, MEASURE or SUPPLEMENT. needs: names of the jobs to wait
    for. work: how much it is, in a unit that jobs of its stage share.
    """

    name: str
    stage: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    work: float = 1.0

    @property
    def notebook(self) -> str:
        """The name of the notebook; empty for work without one."""
        return self.stage if self.stage in STAGES.values() else ""

    @property
    def rule(self) -> str:
        """The job's rule, one of RULES."""
        return self.notebook[3:] or self.stage

    @property
    def depends(self) -> tuple[str, ...]:
        """The jobs whose results it shows: not shares of an embedding, for which it makes up."""
        return tuple(need for need in self.needs if ".share" not in need)


def jobs_of(study: Settings, n_shares: int = 1) -> dict[str, Job]:
    """Every job of a study, by name, each after those it needs; the supplement is the last.

    n_shares: with more than one, as many jobs make each encoder's embedding, and its own job only
    puts them together.
    """
    jobs: dict[str, Job] = {}
    first, arms = _add(jobs, "01"), []
    for network in study.networks:
        for fold in range(study.splits.n_folds):
            parameters = {"network": network.name, "fold": fold}
            arms.append(_add(jobs, "04", [first], network.name, f".fold{fold}", **parameters))
    if study.pretraining:
        _add(jobs, "07", [first])
    for name in pretrained.in_order(study):
        one = study.pretraining_of(name)
        needs = [first, *_pretrained(study, [one.start])]
        _add(jobs, "08", needs, name, work=_n_px(one), encoder=name)
    for encoder in study_encoders.all_of(study):
        arms += _add_probes(jobs, study, encoder, n_shares)
    probes = [name for name in arms if name.startswith(STAGES["03"])]
    needs, measured = [first, *arms], []
    asked = [name for name in Switches.CHOICES if name in study.effects.switches]
    for switch in ("base", *asked, "paper") if asked else ():  # after the study as it is
        measured.append(_add(jobs, MEASURE, needs, suffix=f".{switch}", switch=switch))
        needs = measured[:1]
    measured += [_add(jobs, "13", arms)] if study.test_on else []  # Fig. 1 shows it
    _add(jobs, "05", [*arms, *measured])
    scales = [
        _add(jobs, MEASURE, [first, *arms], suffix=f".{scale}", switch=scale)
        for scale in study_data.at_scales(study)
    ]
    if study.splits.by_domain or scales:
        _add(jobs, "06", [*arms, *scales])
    _add(jobs, "12", arms)
    _add_judges(jobs, study, probes)
    _add(jobs, SUPPLEMENT, [name for name, job in jobs.items() if job.stage != SHARE])
    return jobs


def _add_probes(jobs: dict[str, Job], study: Settings, encoder: str, n_shares: int) -> list[str]:
    """Add what embeds by an encoder, in shares or not, and probes it; returns the probes."""
    needs = [STAGES["01"], *_pretrained(study, [encoder])]
    shares = []
    for i in range(n_shares if n_shares > 1 else 0):
        parameters = {"encoder": encoder, "share": i, "shares": n_shares}
        name = f"{job_name('02', encoder)}.share{i}of{n_shares}"
        jobs[name] = Job(name, SHARE, parameters, tuple(needs))
        shares.append(name)
    embedding = _add(jobs, "02", [*needs, *shares], encoder, encoder=encoder)
    probes = [_add(jobs, "03", [embedding], encoder, encoder=encoder)]
    for scheme in study.inflation.schemes if encoder == study.inflation.encoder else ():
        if scheme != study.switches.scheme:
            parameters = {"encoder": encoder, "scheme": scheme}
            probes.append(_add(jobs, "03", [embedding], encoder, f".split_{scheme}", **parameters))
    return probes


def _add_judges(jobs: dict[str, Job], study: Settings, probes: Sequence[str]) -> None:
    """Add what judges encoders on tasks, sets that beside ``probes`` and compares pretrainings."""
    judged = []
    for task in study.tasks:
        needs = [STAGES["01"], *_pretrained(study, study_tasks.encoders_of(study, task))]
        judged.append(_add(jobs, "09", needs, task.name, task=task.name))
    if probes and (study.pretraining or study.tasks):
        _add(jobs, "10", [*probes, *judged])
    if study.pretraining:
        pretrainings = [job_name("08", pretraining.name) for pretraining in study.pretraining]
        _add(jobs, "11", [*pretrainings, *judged])


def _add(
    jobs: dict[str, Job],
    stage: str,
    needs: Iterable[str] = (),
    of: str = "",
    suffix: str = "",
    work: float = 1.0,
    **parameters: object,
) -> str:
    """Add a job of a stage, one with a notebook by its number; returns the job's name."""
    name, stage = job_name(stage, of, suffix), STAGES.get(stage, stage)
    jobs[name] = Job(name, stage, parameters, tuple(needs), work)
    return name


def _pretrained(study: Settings, names: Iterable[str]) -> tuple[str, ...]:
    """The jobs that pretrain those of ``names`` that the study pretrains."""
    encoders = [name.partition("@")[0] for name in names if pretrained.is_of(study, name)]
    return tuple(job_name("08", encoder) for encoder in dict.fromkeys(encoders))


def _n_px(pretraining: Pretraining) -> float:
    """Pixels of all crops that a pretraining sees, by which its time goes."""
    crops = pretraining.crops
    px_a_patch = 2 * crops.global_px**2 + crops.n_local * crops.local_px**2
    return float(pretraining.n_steps * pretraining.batch_size * px_a_patch)


def with_needs(jobs: Mapping[str, Job], targets: Iterable[str]) -> dict[str, Job]:
    """Those of ``jobs`` that ``targets`` are or wait for, directly or through others."""
    needed = set(targets)
    for job in reversed(jobs.values()):  # each comes after those it needs
        if job.name in needed:
            needed.update(job.needs)
    return {name: job for name, job in jobs.items() if name in needed}


def with_dependents(jobs: Mapping[str, Job], names: Iterable[str]) -> set[str]:
    """``names``, and those of ``jobs`` that depend on one, directly or through others."""
    found = set(names)
    for job in jobs.values():  # each comes after those it needs
        if not found.isdisjoint(job.depends):
            found.add(job.name)
    return found


def n_threads(job: Job, jobs: Mapping[str, Job], n_cores: int, memory_mb: float = math.inf) -> int:
    """Cores for a job on one machine: shared with the jobs of its rule at least half as large.

    The stages of SHOW share as if of one rule. Where the memory is too small for so many jobs, each
    has more cores: fewer run at once.
    """
    alike = SHOW if job.stage in SHOW else (job.stage,)
    rivals = [other for other in jobs.values() if other.stage in alike]
    n_fitting = max(1, (memory_mb - SWEEP_MB) / JOB_MB)
    share = n_cores // sum(2 * rival.work >= job.work for rival in rivals)
    return max(1, share, math.ceil(n_cores / n_fitting))


def job_name(stage: str, of: str = "", suffix: str = "") -> str:
    """Name of a stage's job, on the whole study, or ``of`` an arm or a task."""
    return STAGES.get(stage, stage) + (f".{store.file_name(of)}" if of else "") + suffix
