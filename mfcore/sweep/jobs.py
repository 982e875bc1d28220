"""The jobs of a study: which notebook runs with which parameters, and what each needs before it can.

Two kinds of job have no notebook, as they show nothing: a share of an embedding, and the measuring of a switch's effect.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mfcore import store
from mfcore.analysis import effects
from mfcore.encoders.card import variants_of
from mfcore.study import pretrained, tasks as study_tasks
from mfcore.study.config import Pretraining, Settings

ROOT = Path(__file__).resolve().parents[2]
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
}
READ_DATA = ("01", "04", "07", "08", "09")  # are told where the study's data folder is
SUM_UP = ("05", "06", "09", "10", "11")  # run with what there is
SHARE, MEASURE = "embed_share", "measure_switch"
# Snakemake's, by which profiles name what a job asks for
RULES = (*(notebook[3:] for notebook in STAGES.values()), SHARE, MEASURE)


@dataclass(frozen=True)
class Job:
    """One run of one notebook, or work without one, by its parameters: ``needs`` names the jobs to wait for.

    work: how much it is, in a unit that jobs of its rule share.
    """

    name: str
    notebook: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    work: float = 1.0

    @property
    def rule(self) -> str:
        """The job's rule, one of RULES."""
        if self.notebook:
            return self.notebook[3:]
        return SHARE if self.is_share else MEASURE

    @property
    def is_share(self) -> bool:
        """Whether it makes a share of an embedding, for another job to put together."""
        return "share" in self.parameters

    @property
    def goes_on(self) -> bool:
        """Whether it runs though jobs that it waits for have failed, with what there is."""
        return self.notebook in [STAGES[stage] for stage in SUM_UP] or self.rule == MEASURE

    @property
    def reads_data(self) -> bool:
        """Whether its notebook is told where the study's data folder is."""
        return self.notebook in [STAGES[stage] for stage in READ_DATA]

    @property
    def stage(self) -> str:
        """What the job's record calls its kind: the notebook, that of the embedding that it is a share of, or its rule."""
        return self.notebook or (STAGES["02"] if self.is_share else MEASURE)


def jobs_of(study: Settings, n_shares: int = 1) -> dict[str, Job]:
    """Every job of a study, by name, in an order in which each comes after those it needs.

    n_shares: with more than one, as many jobs make each encoder's embedding, and its own job only puts them together.
    """
    first = STAGES["01"]
    jobs = [Job(first, first)]
    for network in study.networks:
        for fold in range(study.splits.n_folds):
            name = f"{_job('04', network.name)}.fold{fold}"
            jobs.append(Job(name, STAGES["04"], {"network": network.name, "fold": fold}, (first,)))
    jobs += _pretraining_jobs(study)
    for encoder in (*study.encoders, *variants_of(study.conventions)):
        embedding, needs = embedding_job(encoder), (first, *_pretrained(study, [encoder]))
        shares = [
            Job(f"{embedding}.share{i}of{n_shares}", "", {"encoder": encoder, "share": i, "n_shares": n_shares}, needs)
            for i in range(n_shares if n_shares > 1 else 0)
        ]
        jobs += shares
        jobs.append(Job(embedding, STAGES["02"], {"encoder": encoder}, (*needs, *(share.name for share in shares))))
        jobs.append(Job(_job("03", encoder), STAGES["03"], {"encoder": encoder}, (embedding,)))
        for scheme in study.inflation.schemes if encoder == study.inflation.encoder else ():
            if scheme != study.switches.scheme:
                name = f"{_job('03', encoder)}.split_{scheme}"
                jobs.append(Job(name, STAGES["03"], {"encoder": encoder, "scheme": scheme}, (embedding,)))
    arms = tuple(job.name for job in jobs if job.notebook in (STAGES["03"], STAGES["04"]))
    jobs.append(Job(STAGES["05"], STAGES["05"], {}, arms))
    if study.splits.by_domain:
        jobs.append(Job(STAGES["06"], STAGES["06"], {}, arms))
    jobs += _judging_jobs(study, tuple(name for name in arms if name.startswith(STAGES["03"])))
    base = measuring_job(effects.BASE)
    for switch in effects.asked(study):  # after the study itself, whose patches and embedding they share
        needs = (first, *arms) if switch == effects.BASE else (base,)
        jobs.append(Job(measuring_job(switch), "", {"switch": switch}, needs))
    return {job.name: job for job in jobs}


def _pretraining_jobs(study: Settings) -> list[Job]:
    """What draws patches online and pretrains, each encoder after the one that it starts from; none without pretraining."""
    first, work = STAGES["01"], {which.name: _n_px(which) for which in study.pretraining}
    jobs = [Job(STAGES["07"], STAGES["07"], {}, (first,))] if study.pretraining else []
    for name in pretrained.in_order(study):
        needs = (first, *_pretrained(study, [study.pretraining_of(name).start]))
        jobs.append(Job(pretraining_job(name), STAGES["08"], {"encoder": name}, needs, work[name]))
    return jobs


def _judging_jobs(study: Settings, probes: tuple[str, ...]) -> Iterator[Job]:
    """What judges encoders on tasks, sets representations beside ``probes`` and compares pretrainings; none without either."""
    judged = []
    for task in study.tasks:
        needs = (STAGES["01"], *_pretrained(study, study_tasks.encoders_of(study, task)))
        judged.append(Job(_job("09", task.name), STAGES["09"], {"task": task.name}, needs))
    yield from judged
    if probes and (study.pretraining or study.tasks):
        yield Job(STAGES["10"], STAGES["10"], {}, (*probes, *(job.name for job in judged)))
    if study.pretraining:
        names = [pretraining_job(which.name) for which in study.pretraining]
        yield Job(STAGES["11"], STAGES["11"], {}, (*names, *(job.name for job in judged)))


def _pretrained(study: Settings, names: Iterable[str]) -> tuple[str, ...]:
    """The jobs that pretrain those of ``names`` that the study pretrains."""
    found = [pretraining_job(name.partition("@")[0]) for name in names if pretrained.is_of(study, name)]
    return tuple(dict.fromkeys(found))


def _n_px(which: Pretraining) -> float:
    """Pixels of all crops that a pretraining sees: what its time goes by, its architecture being another's."""
    crops = which.crops
    return float(which.n_steps * which.batch_size * (2 * crops.global_px**2 + crops.n_local * crops.local_px**2))


def with_needs(jobs: Mapping[str, Job], targets: Iterable[str]) -> dict[str, Job]:
    """Those of ``jobs`` that ``targets`` are or wait for, directly or through others."""
    needed, waiting = set(), list(targets)
    while waiting:
        name = waiting.pop()
        waiting += [need for need in jobs[name].needs if need not in needed]
        needed.add(name)
    return {name: job for name, job in jobs.items() if name in needed}


def with_dependents(jobs: Mapping[str, Job], names: Iterable[str]) -> set[str]:
    """``names``, those of ``jobs`` that wait for one, directly or through others, and the supplement; none for none.

    An embedding doesn't depend on its shares: it makes up for them.
    """
    found = set(names)
    for job in jobs.values():  # each comes after those it needs
        if any(need in found and ".share" not in need for need in job.needs):
            found.add(job.name)
    return found and found | {"supplement"}


def n_threads(job: Job, jobs: Mapping[str, Job], n_cores: int) -> int:
    """Cores for a job on one machine: alone it has all; it shares them with the jobs of its rule at least half as large."""
    beside = [other for other in jobs.values() if other.rule == job.rule and 2 * other.work >= job.work]
    return max(1, n_cores // len(beside))


def measuring_job(switch: str) -> str:
    """Name of the job that measures a switch's effect."""
    return f"{MEASURE}.{effects.record_name(switch)}"


def embedding_job(encoder: str) -> str:
    """Name of the job that makes an encoder's embedding."""
    return _job("02", encoder)


def pretraining_job(name: str) -> str:
    """Name of the job that pretrains an encoder."""
    return _job("08", name)


def _job(stage: str, name: str) -> str:
    return f"{STAGES[stage]}.{store.file_name(name)}"
