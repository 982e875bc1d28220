"""The jobs of a study: which notebook runs with which parameters, and what each needs before it can.

Two kinds of job have no notebook, as they show nothing: a share of an embedding, and the measuring of a switch's effect.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mfcore import effects
from mfcore.config import Study
from mfcore.conventions import variants_of

ROOT = Path(__file__).resolve().parents[1]
STAGES = {
    "01": "01_extract_patches",
    "02": "02_embed",
    "03": "03_linear_probe",
    "04": "04_train_end_to_end",
    "05": "05_data_scaling",
    "06": "06_cross_domain_analysis",
}
SHARE, MEASURE = "embed_share", "measure_switch"
# Snakemake's, by which profiles name what a job asks for
RULES = (*(notebook[3:] for notebook in STAGES.values()), SHARE, MEASURE)


@dataclass(frozen=True)
class Job:
    """One run of one notebook, or work without one, by its parameters: ``needs`` names the jobs to wait for."""

    name: str
    notebook: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

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
        return self.notebook in (STAGES["05"], STAGES["06"]) or self.rule == MEASURE

    @property
    def stage(self) -> str:
        """What the job's record calls its kind: the notebook, that of the embedding that it is a share of, or its rule."""
        return self.notebook or (STAGES["02"] if self.is_share else MEASURE)


def jobs_of(study: Study, n_shares: int = 1) -> dict[str, Job]:
    """Every job of a study, by name, in an order in which each comes after those it needs.

    n_shares: with more than one, as many jobs make each encoder's embedding, and its own job only puts them together.
    """
    first = STAGES["01"]
    jobs = [Job(first, first)]
    for network in study.networks:
        for fold in range(study.splits.n_folds):
            name = _words(f"{STAGES['04']}.{network.name}.fold{fold}")
            jobs.append(Job(name, STAGES["04"], {"network": network.name, "fold": fold}, (first,)))
    for encoder in (*study.encoders, *variants_of(study.conventions)):
        embedding = embedding_job(encoder)
        shares = [
            Job(f"{embedding}.share{i}of{n_shares}", "", {"encoder": encoder, "share": i, "n_shares": n_shares}, (first,))
            for i in range(n_shares if n_shares > 1 else 0)
        ]
        jobs += shares
        jobs.append(Job(embedding, STAGES["02"], {"encoder": encoder}, (first, *(share.name for share in shares))))
        jobs.append(Job(_words(f"{STAGES['03']}.{encoder}"), STAGES["03"], {"encoder": encoder}, (embedding,)))
        for scheme in study.inflation.schemes if encoder == study.inflation.encoder else ():
            if scheme != study.switches.scheme:
                name = _words(f"{STAGES['03']}.{encoder}.split_{scheme}")
                jobs.append(Job(name, STAGES["03"], {"encoder": encoder, "scheme": scheme}, (embedding,)))
    arms = tuple(job.name for job in jobs if job.notebook in (STAGES["03"], STAGES["04"]))
    jobs.append(Job(STAGES["05"], STAGES["05"], {}, arms))
    if study.splits.by_domain:
        jobs.append(Job(STAGES["06"], STAGES["06"], {}, arms))
    base = measuring_job(effects.BASE)
    for switch in effects.asked(study):  # after the study itself, whose patches and embedding they share
        needs = (first, *arms) if switch == effects.BASE else (base,)
        jobs.append(Job(measuring_job(switch), "", {"switch": switch}, needs))
    return {job.name: job for job in jobs}


def measuring_job(switch: str) -> str:
    """Name of the job that measures a switch's effect."""
    return f"{MEASURE}.{effects.record_name(switch)}"


def embedding_job(encoder: str) -> str:
    """Name of the job that makes an encoder's embedding."""
    return _words(f"{STAGES['02']}.{encoder}")


def _words(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "_", name)
