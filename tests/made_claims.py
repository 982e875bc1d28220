"""A study with every arm of the paper, and scores that are clearly made up, for which its statements hold or don't."""

import numpy as np
import pandas as pd

from mfcore.claims.material import CELL, Material
from mfcore.claims.rows import Row, load
from mfcore.encoders.card import TABLE_1
from mfcore.measures.statistics import Folds
from mfcore.streams import generator
from mfcore.study.config import MODES, Data, Lora, Network, Settings
from mfcore.study.predictions import ALL, Collected
from mfcore.study.study import Study

DOMAINS = (
    "canine cutaneous mast cell tumor",
    "canine lung cancer",
    "canine lymphoma",
    "human breast cancer",
    "human neuroendocrine tumor",
)
NETWORKS = (Network("net", "resnet50"), Network("adapted", "uni", lora=Lora()))
SIZES = (0.001, 0.01, 0.1, 1.0)
# AUROC with all the data; at each step down in size an arm loses what GAIN says
FULL = {"net": 0.89, "adapted": 0.85, "gigapath": 0.80, "h_optimus_0": 0.815, "virchow": 0.80, "virchow2": 0.80}
FULL |= {"uni": 0.76, "phikon": 0.76, "vit_huge_in21k": 0.66, "resnet50": 0.62}
GAIN = {"net": 0.08, "vit_huge_in21k": 0.04, "resnet50": 0.03}
# AUROC in domain and out of domain: Tab. 2's
ACROSS = {"net": (0.87, 0.74), "adapted": (0.86, 0.85), "gigapath": (0.79, 0.66), "h_optimus_0": (0.79, 0.66)}
ACROSS |= {"virchow": (0.79, 0.66), "virchow2": (0.79, 0.66), "uni": (0.76, 0.63), "phikon": (0.76, 0.61)}
ACROSS |= {"vit_huge_in21k": (0.68, 0.56), "resnet50": (0.63, 0.53)}


def study(source: str = "midog22", encoders: tuple[str, ...] = TABLE_1, networks=NETWORKS, **changes) -> Settings:
    """The study of the paper in paper mode, on one of its data sets."""
    return Settings(
        "made", "t", Data(source), mode="paper", switches=MODES["paper"], encoders=encoders, networks=networks, **changes
    )


def scores(
    of: Settings, full=None, gain=None, across=None, noise: float = 0.001, tilt: float = 0.04, seed: int = 0
) -> pd.DataFrame:
    """Scores as `mfcore.analysis.compare.scores` has them, every metric alike; ``tilt`` makes cells of Fig. 2 differ there and
    back."""
    rng = np.random.default_rng(seed)
    full, gain, across = FULL | (full or {}), GAIN | (gain or {}), ACROSS | (across or {})
    rows = []

    def add(arm, train_domain, fold, size, domain, value):
        value = float(np.clip(value + rng.normal(scale=noise), 0, 1))
        kind = "probe" if arm in of.encoders else "end-to-end"
        unit = {"arm": arm, "kind": kind, "train_domain": train_domain, "fold": fold, "size": size, "domain": domain}
        metrics = dict.fromkeys(("auroc", "balanced_accuracy", "weighted_f1"), value)
        rows.append(unit | {"n_train": round(13_153 * size), "n_test": 4_110, "tested": fold} | metrics)

    for arm in (*(network.name for network in of.networks), *of.encoders):
        for fold in range(of.splits.n_folds):
            for step, size in enumerate(reversed(of.splits.sizes)):
                add(arm, ALL, fold, size, ALL, full[arm] - step * gain.get(arm, 0.06))
            inside, outside = across[arm]
            for i, train in enumerate(DOMAINS if of.splits.by_domain else ()):
                for j, domain in enumerate(DOMAINS):
                    add(arm, train, fold, 1.0, domain, inside if i == j else outside + tilt * (i - j) / 4)
    return pd.DataFrame(rows)


def row(start: str) -> Row:
    """The only claim of the ledger whose quote begins so."""
    (found,) = [one for one in load() if one.quote.startswith(start)]
    return found


def opened(of: Settings, scored: pd.DataFrame | None = None, known: dict | None = None, **made) -> Study:
    """A study without a results folder that has predicted nothing; ``known`` in place of what would be read from files."""
    found = Study(of, "nowhere")
    nothing = Collected(pd.DataFrame(columns=[*CELL, "fold", "label", "score"]), pd.DataFrame(columns=["arm", "reason"]))
    read = {"scores": scores(of, **made) if scored is None else scored, "_collected": nothing, "runs": {}}
    vars(found).update(read | (known or {}))
    return found


def material(of: Settings, scored: pd.DataFrame | None = None, known: dict | None = None, **made) -> Material:
    """What claims are asked of, as `opened`."""
    return Material(opened(of, scored, known, **made))


def drawn(material, key: tuple, metric: str, values: pd.Series) -> Folds:
    """In place of `Material.drawn`, which needs predictions: out of domain a little noise by draw, the same in all folds."""
    _, train_domain, _, domain = key
    if domain in (ALL, train_domain):
        return Folds(values)
    moved = pd.DataFrame([generator(0, *key).normal(scale=0.001, size=200)] * len(values), values.index)
    return Folds(values, moved, False, {domain: 40})
