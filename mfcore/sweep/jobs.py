"""The jobs of a study: which notebook runs with which parameters, and what each needs before it can.

Three kinds of job have no notebook: a share of an embedding, the measuring of a switch's effect, and the supplement.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mfcore import store
from mfcore.encoders.card import variants_of
from mfcore.study import pretrained, tasks as study_tasks
from mfcore.study.config import Pretraining, Settings, Switches

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
READ_DATA = tuple(STAGES[stage] for stage in ("01", "04", "07", "08", "09"))  # are told where the study's data folder is
SUM_UP = tuple(STAGES[stage] for stage in ("05", "06", "09", "10", "11"))  # show what there is
SHARE, MEASURE, SUPPLEMENT = "embed_share", "measure_switch", "supplement"  # stages without a notebook
# Snakemake's, by which profiles name what a job asks for
RULES = (*(notebook[3:] for notebook in STAGES.values()), SHARE, MEASURE, SUPPLEMENT)


@dataclass(frozen=True)
class Job:
    """One run of one notebook, or work without one, by its parameters: ``needs`` names the jobs to wait for.

    stage: a notebook of STAGES, or SHARE, MEASURE or SUPPLEMENT. work: how much it is, in a unit that jobs of its stage share.
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
    def is_share(self) -> bool:
        """Whether it makes a share of an embedding, for another job to put together."""
        return self.stage == SHARE

    @property
    def depends(self) -> tuple[str, ...]:
        """The jobs whose results it shows: all that it needs but shares of an embedding, for which it makes up."""
        return tuple(need for need in self.needs if ".share" not in need)

    @property
    def goes_on(self) -> bool:
        """Whether it runs though jobs that it waits for have failed, with what there is."""
        return self.stage in (*SUM_UP, MEASURE, SUPPLEMENT)

    @property
    def reads_data(self) -> bool:
        """Whether its notebook is told where the study's data folder is."""
        return self.stage in READ_DATA


def jobs_of(study: Settings, n_shares: int = 1) -> dict[str, Job]:
    """Every job of a study, by name, in an order in which each comes after those it needs; the supplement is the last.

    n_shares: with more than one, as many jobs make each encoder's embedding, and its own job only puts them together.
    """
    first = STAGES["01"]
    jobs = [_job("01")]
    for network in study.networks:
        for fold in range(study.splits.n_folds):
            jobs.append(_job("04", [first], network.name, f".fold{fold}", network=network.name, fold=fold))
    jobs += _pretraining_jobs(study)
    for encoder in (*study.encoders, *variants_of(study.conventions)):
        embedding, needs = embedding_job(encoder), (first, *_pretrained(study, [encoder]))
        shares = [
            Job(f"{embedding}.share{i}of{n_shares}", SHARE, {"encoder": encoder, "share": i, "n_shares": n_shares}, needs)
            for i in range(n_shares if n_shares > 1 else 0)
        ]
        jobs += [*shares, _job("02", [*needs, *_names(shares)], encoder, encoder=encoder)]
        jobs.append(_job("03", [embedding], encoder, encoder=encoder))
        for scheme in study.inflation.schemes if encoder == study.inflation.encoder else ():
            if scheme != study.switches.scheme:
                jobs.append(_job("03", [embedding], encoder, f".split_{scheme}", encoder=encoder, scheme=scheme))
    arms = _names(job for job in jobs if job.notebook in (STAGES["03"], STAGES["04"]))
    switches = list(_switch_jobs(study, (first, *arms)))
    jobs += [*switches, _job("05", [*arms, *_names(switches)])]
    jobs += [_job("06", arms)] if study.splits.by_domain else []
    jobs += _judging_jobs(study, [name for name in arms if name.startswith(STAGES["03"])])
    jobs.append(Job(SUPPLEMENT, SUPPLEMENT, {}, _names(job for job in jobs if not job.is_share)))
    return {job.name: job for job in jobs}


def _switch_jobs(study: Settings, needs: tuple[str, ...]) -> Iterator[Job]:
    """What measures the switches of ``study.effects``, after the study as it is, whose runs the switches share."""
    asked = [name for name in Switches.CHOICES if name in study.effects.switches]
    for switch in ("base", *asked, "paper") if asked else ():
        yield Job(f"{MEASURE}.{switch}", MEASURE, {"switch": switch}, needs)
        needs = (f"{MEASURE}.base",)


def _pretraining_jobs(study: Settings) -> Iterator[Job]:
    """What draws patches online and pretrains, each encoder after the one that it starts from; none without pretraining."""
    first = STAGES["01"]
    if study.pretraining:
        yield _job("07", [first])
    for name in pretrained.in_order(study):
        which = study.pretraining_of(name)
        yield _job("08", [first, *_pretrained(study, [which.start])], name, work=_n_px(which), encoder=name)


def _judging_jobs(study: Settings, probes: Sequence[str]) -> Iterator[Job]:
    """What judges encoders on tasks, sets representations beside ``probes`` and compares pretrainings; none without either."""
    judged = [
        _job("09", [STAGES["01"], *_pretrained(study, study_tasks.encoders_of(study, task))], task.name, task=task.name)
        for task in study.tasks
    ]
    yield from judged
    if probes and (study.pretraining or study.tasks):
        yield _job("10", [*probes, *_names(judged)])
    if study.pretraining:
        yield _job("11", [*(pretraining_job(which.name) for which in study.pretraining), *_names(judged)])


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
    """``names``, and those of ``jobs`` that depend on one, directly or through others."""
    found = set(names)
    for job in jobs.values():  # each comes after those it needs
        if not found.isdisjoint(job.depends):
            found.add(job.name)
    return found


def n_threads(job: Job, jobs: Mapping[str, Job], n_cores: int) -> int:
    """Cores for a job on one machine: alone it has all; it shares them with the jobs of its rule at least half as large."""
    beside = [other for other in jobs.values() if other.rule == job.rule and 2 * other.work >= job.work]
    return max(1, n_cores // len(beside))


def embedding_job(encoder: str) -> str:
    """Name of the job that makes an encoder's embedding."""
    return _job("02", of=encoder).name


def pretraining_job(name: str) -> str:
    """Name of the job that pretrains an encoder."""
    return _job("08", of=name).name


def _job(
    number: str, needs: Iterable[str] = (), of: str = "", suffix: str = "", work: float = 1.0, **parameters: object
) -> Job:
    """One run of the notebook of that number, on the whole study, or ``of`` an arm or a task; ``suffix`` ends its name."""
    name = f"{STAGES[number]}.{store.file_name(of)}{suffix}" if of else STAGES[number]
    return Job(name, STAGES[number], parameters, tuple(needs), work)


def _names(jobs: Iterable[Job]) -> tuple[str, ...]:
    return tuple(job.name for job in jobs)
