"""An opened study with planted tables: four arms, three domains, five folds, two sizes, votes of two raters and a third."""

from dataclasses import replace

import numpy as np
import pandas as pd

from mfcore.study.config import Data, Network, Pretraining, Settings, Splits
from mfcore.study.predictions import Collected
from mfcore.study.study import Study

KINDS = {"net": "end-to-end", "low rank": "LoRA", "good": "probe", "other": "probe"}
SIGNAL = {"net": 3.0, "low rank": 1.5, "good": 1.0, "other": 0.0}
NETWORKS = (Network("net", input_px=100), Network("low rank"))
SPLITS = Splits(sizes=(0.1, 1.0))
MIDOG = Settings("t", "A test", Data("midog22"), splits=SPLITS, networks=NETWORKS, encoders=("good", "other"))
SYNTHETIC = replace(MIDOG, data=Data("synthetic"), pretraining=(Pretraining("other"),))  # "other" is pretrained here
DOMAINS = ("canine cutaneous mast cell tumor", "human breast cancer", "z")


def labels(n=240, seed=0) -> pd.DataFrame:
    """A label table as `Study.labels`, eight patches a slide, a slide of one domain and scanner."""
    rng = np.random.default_rng(seed)
    label, slide = np.arange(n) % 2, np.arange(n) // 8
    second = np.where(rng.random(n) < 0.8, label, 1 - label)
    votes = [np.array([a, b] if a == b else [a, b, a], np.int8) for a, b in zip(label, second, strict=True)]
    domain = np.array(DOMAINS)[slide % 3]
    table = pd.DataFrame({"patch_id": np.arange(n), "slide_id": slide.astype(str), "domain": domain, "label": label})
    return table.assign(case_id=table["slide_id"], scanner=np.where(slide % 2, "X", "Y"), votes=votes)


def predictions(table: pd.DataFrame, seed=1, n_folds=5) -> pd.DataFrame:
    """Predictions as `Study.predictions`, whose signal grows with the size and halves out of domain."""
    rng, tables = np.random.default_rng(seed), []
    for arm, kind in KINDS.items():
        for fold in range(n_folds):
            test = table[(table["slide_id"].astype(int) + fold) % 5 < 2]
            for train_domain, size in [("all", 0.1), ("all", 1.0), *((domain, 1.0) for domain in DOMAINS)]:
                near = (train_domain == "all") | (test["domain"] == train_domain)
                gain = SIGNAL[arm] * (0.4 + 0.6 * size) * np.where(near, 1, 0.5)
                score = 1 / (1 + np.exp(-(gain * (test["label"] - 0.5) + rng.normal(size=len(test)))))
                unit = {"fold": fold, "size": size, "train_domain": train_domain, "n_train": round(100 * size)}
                part = test[["patch_id", "slide_id", "case_id", "domain", "label"]]
                tables.append(part.assign(score=score, arm=arm, kind=kind, **unit))
    return pd.concat(tables, ignore_index=True)


def opened(settings: Settings = MIDOG, found: pd.DataFrame | None = None, folder="nowhere", **tables: pd.DataFrame) -> Study:
    """The study with these tables in the place of those that runs would have left; ``tables``: by the name of the property."""
    study, table = Study(settings, folder), tables.get("labels", labels())
    found = predictions(table) if found is None else found
    failures = pd.DataFrame(columns=["arm", "stage", "reason"])
    study.__dict__.update({"labels": table, "_collected": Collected(found, failures)} | tables)
    return study
