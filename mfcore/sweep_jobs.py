"""The jobs of a study: which notebook runs with which parameters, and what each needs before it can."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

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
SHARE = "embed_share"
RULES = (*(notebook[3:] for notebook in STAGES.values()), SHARE)  # Snakemake's, by which profiles name what a job asks for


@dataclass(frozen=True)
class Job:
    """One run of one notebook, or, where it has none, a share of an embedding: ``needs`` names the jobs to wait for."""

    name: str
    notebook: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    @property
    def rule(self) -> str:
        """The job's rule, one of RULES."""
        return self.notebook[3:] if self.notebook else SHARE

    @property
    def stage(self) -> str:
        """What the job's record calls its kind: the notebook, or that of the embedding that it is a share of."""
        return self.notebook or STAGES["02"]


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
    return {job.name: job for job in jobs}


def embedding_job(encoder: str) -> str:
    """Name of the job that makes an encoder's embedding."""
    return _words(f"{STAGES['02']}.{encoder}")


def _words(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "_", name)
