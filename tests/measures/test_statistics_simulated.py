"""How often tests and intervals are wrong where the truth is known: slides as random effects, many studies of each kind."""

import numpy as np
import pandas as pd
import pytest
from scipy import special

from mfcore.measures import binary, resampling, statistics

N_STUDIES, N_FOLDS, N_PATCHES = 1000, 5, 10
TRAIN_SHARE, TEST_SHARE = 0.64, 0.2


class Simulated:
    """Slides, and two arms that learn from some of them; the arms are equal but for ``better``.

    A patch's logit is the class times the arm's skill on the slide, plus the slide's own offset, plus noise, much of which the
    arms share. An arm's skill differs by slide (the same in all folds), by training and by both; ``common`` is the part of
    the training's variance that all folds have, as their training slides overlap.
    """

    def __init__(self, seed: int, n_slides: int, better: float = 0.0, common: float = TRAIN_SHARE):
        self.rng = np.random.default_rng(seed)
        self.n_slides, self.better, self.common = n_slides, better, common
        self.slide = np.repeat(np.arange(n_slides), N_PATCHES)
        self.label = (self.rng.random(len(self.slide)) < self.rng.beta(4, 5, n_slides)[self.slide]).astype(int)
        shared = self.rng.normal(0, 0.4, n_slides)
        self.skill = 1.3 + shared + self.rng.normal(0, 0.35, (2, n_slides))
        self.offset = self.rng.normal(0, 0.5, n_slides) + self.rng.normal(0, 0.25, (2, n_slides))
        self.noise = self.rng.normal(0, 0.8, len(self.slide)) + self.rng.normal(0, 0.3, (2, len(self.slide)))

    def arms(self, tested: np.ndarray | None = None) -> list[pd.DataFrame]:
        """Predictions of both arms: of ``tested`` slides (n_folds, n_slides), bool, or of all slides in every fold."""
        n_patches, tables = len(self.slide), []
        rows = np.ones((N_FOLDS, n_patches), dtype=bool) if tested is None else tested[:, self.slide]
        for arm in (0, 1):
            training = self.rng.normal(0, 0.06 * np.sqrt(self.common)) + self.rng.normal(
                0, 0.06 * np.sqrt(1 - self.common), (N_FOLDS, 1)
            )
            skill = self.skill[arm] + training + self.rng.normal(0, 0.07, (N_FOLDS, self.n_slides)) + self.better * (arm == 0)
            logit = (self.offset[arm] + self.rng.normal(0, 0.05, skill.shape))[:, self.slide] + self.noise[arm]
            logit = logit + skill[:, self.slide] * (self.label - 0.5) + self.rng.normal(0, 0.2, logit.shape)
            fold, patch = np.nonzero(rows)
            table = {"slide_id": self.slide[patch], "patch_id": patch, "label": self.label[patch], "fold": fold}
            tables.append(pd.DataFrame(table | {"score": special.expit(logit[rows])}))
        return tables


def by_fold(arms: list[pd.DataFrame], seed: int, test_set: str) -> list[statistics.Folds]:
    return [resampling.by_fold(arm, "auroc", seed, test_set, 150) for arm in arms]


def shared(seed: int, better: float = 0.0) -> list[statistics.Folds]:
    """Both arms, all folds tested on the same 20 slides, as by the authors' own division."""
    return by_fold(Simulated(seed, 20, better, common=0).arms(), seed, "all")


def out_of_domain(seed: int, better: float = 0.0) -> list[statistics.Folds]:
    """Both arms, trained on each of two domains, all folds tested on all of the other: the mean of both ways."""
    cells = [by_fold(Simulated(10**6 + 2 * seed + (n == 9), n, better).arms(), seed, f"of {n}") for n in (9, 16)]
    return [statistics.mean_of(of_arm) for of_arm in zip(*cells, strict=True)]


def in_domain(seed: int, better: float = 0.0) -> list[statistics.Folds]:
    """Both arms, each fold tested on a fifth of 60 slides, drawn anew."""
    study = Simulated(10**7 + seed, 60, better)
    tested = np.zeros((N_FOLDS, study.n_slides), dtype=bool)
    for row in tested:
        row[study.rng.choice(study.n_slides, round(study.n_slides * TEST_SHARE), replace=False)] = True
    return by_fold(study.arms(tested), seed, "all")


def compared(seed: int, better: float = 0.0) -> dict[str, statistics.Test]:
    """One study of each kind, the arms compared."""
    found = {
        "in domain": in_domain(seed, better),
        "out of domain": out_of_domain(seed, better),
        "official": shared(seed, better),
    }
    found["loss out of domain"] = [home - away for home, away in zip(found["in domain"], found["official"], strict=True)]
    made = {kind: statistics.paired_test(*arms, TRAIN_SHARE, TEST_SHARE) for kind, arms in found.items()}
    by_spread = {
        f"{kind}, by the folds' spread": [statistics.Folds(arm.values) for arm in found[kind]]
        for kind in ("out of domain", "official")
    }
    return made | {kind: statistics.paired_test(*arms, TRAIN_SHARE, TEST_SHARE) for kind, arms in by_spread.items()}


@pytest.fixture(scope="module")
def equal() -> pd.DataFrame:
    """p of two arms that are equal in truth, a row a study."""
    return pd.DataFrame([{kind: test.p for kind, test in compared(seed).items()} for seed in range(N_STUDIES)])


@pytest.mark.parametrize("kind", ["in domain", "out of domain", "official"])
def test_equal_arms_are_told_apart_in_a_twentieth_of_studies(equal, kind):
    """Standard error of the share: 0.007."""
    assert equal[kind].notna().all() and 0.03 <= (equal[kind] < 0.05).mean() <= 0.08


def test_the_loss_out_of_domain_of_equal_arms_is_not_told_apart_more_often(equal):
    assert (equal["loss out of domain"] < 0.05).mean() <= 0.08


@pytest.mark.parametrize("kind", ["out of domain", "official"])
def test_the_spread_of_folds_that_share_their_test_slides_would_tell_equal_arms_apart(equal, kind):
    assert (equal[f"{kind}, by the folds' spread"] < 0.05).mean() > 0.25


@pytest.mark.parametrize("better", [1.0, -1.0])
def test_arms_that_differ_are_told_apart(better):
    found = [compared(seed, better) for seed in range(40)]
    for kind in ("in domain", "out of domain", "official"):
        right = [test[kind].p < 0.05 and test[kind].interval.estimate * better > 0 for test in found]
        assert np.mean(right) > 0.9, kind


# ---- intervals ----


def sample(rng: np.random.Generator, n_slides: int) -> pd.DataFrame:
    """Slides that differ in size, in their share of class 1, in skill and in offset."""
    slide = np.repeat(np.arange(n_slides), np.maximum(4, np.exp(rng.normal(2.8, 0.6, n_slides))).astype(int))
    label = (rng.random(len(slide)) < rng.beta(4, 5, n_slides)[slide]).astype(int)
    logit = rng.normal(0, 0.5, n_slides)[slide] + rng.normal(1.3, 0.45, n_slides)[slide] * (label - 0.5)
    score = special.expit(logit + rng.normal(0, 0.9, len(slide)))
    return pd.DataFrame({"slide_id": slide, "label": label, "score": score, "fold": 0})


def coverage(n_slides: int, n_studies: int, metric: str = "auroc", seed: int = 0) -> float:
    """Share of 95 % intervals over so many slides that hold the truth of a sample of 60,000."""
    rng = np.random.default_rng(seed)
    large = sample(rng, 60_000)
    truth = binary.METRICS[metric](large["label"].to_numpy(), large["score"].to_numpy())
    held = []
    for study in range(n_studies):
        found = resampling.bootstrap(sample(rng, n_slides), metric, study, "coverage", n_resamples=300)
        held.append(found.low <= truth <= found.high)
    return float(np.mean(held))


@pytest.mark.parametrize("n_slides", resampling.COVERAGE)
def test_intervals_hold_the_truth_as_often_as_is_said(n_slides):
    """Standard error: 0.007; what is said is from three times as many studies."""
    found = coverage(n_slides, N_STUDIES)
    assert 0.92 <= found <= 0.97 and abs(found - resampling.COVERAGE[n_slides]) < 0.02
