"""The claims ledger: what Ganz et al. 2024 state, asked of a study's own predictions."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from mfcore import captions, cards, compare, store
from mfcore.compare import END_TO_END, PROBE
from mfcore.config import Study
from mfcore.statistics import paired_difference

HOLDS, FAILS, UNCLEAR, UNTESTED = "holds", "does not hold", "unclear", "not testable here"


def check(study: Study, scores: pd.DataFrame) -> pd.DataFrame:
    """Each statement with our numbers and a verdict: ``claim, where, how, found, verdict, data``.

    A difference between two arms, sizes or domains is judged by the corrected paired t interval over folds (Nadeau and
    Bengio 2003), with the test and training shares of a fold's division; at smaller sizes, whose training sets share
    less, that is on the safe side. It holds where the interval lies above zero, does not where below, is unclear else.
    scores: as `mfcore.compare.scores` returns it.
    """
    rows = []
    for claim, where, how, test in CLAIMS:
        verdict, found = test(study, scores)
        data = captions.of_what(study).replace("`", "")
        rows.append({"claim": claim, "where": where, "how": how, "found": found, "verdict": verdict, "data": data})
    return pd.DataFrame(rows)


def write(ledger: pd.DataFrame, folder: str | Path) -> pd.DataFrame:
    """Keep the ledger as ``claims.csv`` and ``claims.json`` in ``folder``; returns it."""
    store.write_csv(Path(folder) / "claims.csv", ledger)
    store.write_json(Path(folder) / "claims.json", ledger.to_dict("records"))
    return ledger


def _compare(study: Study, first: pd.DataFrame, second: pd.DataFrame) -> tuple[str, str]:
    """Verdict and text of "``first`` has the higher AUROC than ``second``", fold by fold."""
    a, b = (part.groupby("fold")["auroc"].mean() for part in (first, second))
    folds = a.index.intersection(b.index)
    if len(folds) < 2:
        return UNTESTED, "fewer than two folds"
    test = study.splits.test_fraction
    train = (1 - test) * (1 - study.splits.val_fraction)
    interval = paired_difference(a[folds].to_numpy(), b[folds].to_numpy(), n_train=train, n_test=test)
    difference = f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
    text = f"{a[folds].mean():.2f} vs {b[folds].mean():.2f}, difference {difference}"
    return (HOLDS if interval.low > 0 else FAILS if interval.high < 0 else UNCLEAR), text


def _all_of(verdicts: list[str]) -> str:
    """One verdict of several parts: holds where all do, fails where one does."""
    return next((v for v in (FAILS, UNCLEAR, UNTESTED) if v in verdicts), HOLDS) if verdicts else UNTESTED


def _end_to_end_beats_probes(study: Study, scores: pd.DataFrame) -> tuple[str, str]:
    mixed = scores[scores["train_domain"] == compare.ALL]
    verdicts, texts = [], []
    for size in sorted(mixed["size"].unique()):
        part = mixed[mixed["size"] == size]
        trained, probed = part[part["kind"] == END_TO_END], part[part["kind"] == PROBE]
        if trained.empty or probed.empty:
            return UNTESTED, "needs a probe and an end-to-end arm"
        arms = [frame.loc[frame["arm"] == frame.groupby("arm")["auroc"].mean().idxmax()] for frame in (trained, probed)]
        verdict, text = _compare(study, *arms)
        verdicts.append(verdict)
        texts.append(f"{100 * size:g} %: {text} ({verdict})")
    return _all_of(verdicts), "; ".join(texts)


def _more_data_helps(study: Study, scores: pd.DataFrame) -> tuple[str, str]:
    mixed = scores[scores["train_domain"] == compare.ALL]
    sizes = sorted(mixed["size"].unique())
    if len(sizes) < 2:
        return UNTESTED, "one size only"
    verdicts, texts = [], []
    for arm, part in mixed.groupby("arm", sort=False):
        verdict, text = _compare(study, part[part["size"] == sizes[-1]], part[part["size"] == sizes[0]])
        verdicts.append(verdict)
        texts.append(f"{arm}: {text} ({verdict})")
    return _all_of(verdicts), "; ".join(texts)


def _domain_shift_costs(study: Study, scores: pd.DataFrame) -> tuple[str, str]:
    crossed = scores[scores["train_domain"] != compare.ALL]
    if crossed.empty:
        return UNTESTED, "the study has no cross-domain runs"
    verdicts, texts = [], []
    for arm, part in crossed.groupby("arm", sort=False):
        own = part["domain"] == part["train_domain"]
        verdict, text = _compare(study, part[own], part[~own])
        verdicts.append(verdict)
        texts.append(f"{arm}: {text} ({verdict})")
    return _all_of(verdicts), "; ".join(texts)


def _probes_are_no_more_robust(study: Study, scores: pd.DataFrame) -> tuple[str, str]:
    out = scores[(scores["train_domain"] != compare.ALL) & (scores["domain"] != scores["train_domain"])]
    trained, probed = out[out["kind"] == END_TO_END], out[out["kind"] == PROBE]
    if trained.empty or probed.empty:
        return UNTESTED, "needs a probe and an end-to-end arm, across domains"
    arms = [frame.loc[frame["arm"] == frame.groupby("arm")["auroc"].mean().idxmax()] for frame in (trained, probed)]
    return _compare(study, *arms)


def _pathology_beats_imagenet(study: Study, scores: pd.DataFrame) -> tuple[str, str]:
    probes = scores[(scores["kind"] == PROBE) & (scores["train_domain"] == compare.ALL)]
    full = probes[probes["size"] == probes["size"].max()]
    known = [cards.CARDS[arm] for arm in full["arm"].unique() if arm in cards.CARDS]
    pathology = [card.name for card in known if card.um_per_px]
    natural = [card.name for card in known if not card.um_per_px and card.source != "random"]
    if not pathology or not natural:
        return UNTESTED, "needs a pathology encoder and one of natural images in the study"
    means = full.groupby("arm")["auroc"].mean()
    worst, best = means[pathology].idxmin(), means[natural].idxmax()
    return _compare(study, full[full["arm"] == worst], full[full["arm"] == best])


def _shift_is_not_symmetric(study: Study, scores: pd.DataFrame) -> tuple[str, str]:
    matrix = compare.domain_matrix(scores, study)
    trained = matrix[matrix["kind"] == END_TO_END]
    if trained.empty or trained["train_domain"].nunique() < 2:
        return UNTESTED, "needs an end-to-end arm, across domains"
    arm = trained["arm"].iloc[0]
    square = trained[trained["arm"] == arm].pivot(index="train_domain", columns="domain", values="mean")
    gaps = (square - square.T).abs().to_numpy()
    i, j = np.unravel_index(np.nanargmax(gaps), gaps.shape)
    pair = square.index[i], square.columns[j]
    if trained["sd"].isna().all():
        return UNTESTED, "needs two folds or more"
    spread = trained["sd"].mean()
    text = (
        f"{arm}: largest gap {pair[0]} to {pair[1]} {square.loc[pair]:.2f}, back {square.loc[pair[::-1]]:.2f}; "
        f"mean SD over folds {spread:.2f}"
    )
    return (HOLDS if gaps[i, j] > 2 * spread else UNCLEAR), text


Test = Callable[[Study, pd.DataFrame], tuple[str, str]]
CLAIMS: list[tuple[str, str, str, Test]] = [
    (
        "The end-to-end network beats every probe, at every size.",
        "section 4, Fig. 1",
        "best end-to-end arm minus best probe, at each size",
        _end_to_end_beats_probes,
    ),
    ("More data helps every arm.", "section 4, Fig. 1", "largest size minus smallest, each arm", _more_data_helps),
    (
        "Out of domain is worse than in domain, for every arm.",
        "section 4, Tab. 2",
        "in domain minus out of domain, each arm",
        _domain_shift_costs,
    ),
    (
        "Probes on frozen encoders are no more robust: out of domain the end-to-end network is ahead.",
        "section 5, Tab. 2",
        "best end-to-end arm minus best probe, out of domain",
        _probes_are_no_more_robust,
    ),
    (
        "Probes on pathology encoders beat probes on ImageNet encoders.",
        "section 4, Fig. 1",
        "lowest pathology encoder minus highest ImageNet encoder, full size",
        _pathology_beats_imagenet,
    ),
    (
        "Domain shift is not symmetric.",
        "section 4, Fig. 2",
        "largest of all pairs' gaps, there and back, against twice the SD over folds; as the largest of many, a lenient test",
        _shift_is_not_symmetric,
    ),
]
