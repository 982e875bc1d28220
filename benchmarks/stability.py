"""Small trainings: does the teacher still tell images apart, with the defaults and with the settings as published?

A ViT of three blocks is pretrained from synthetic slides, by DINO and DINOv2, in batches of 64 patches and others; what isn't
named stays as it is by default. A row says, over the last tenth of the steps, how much a target tells of its image (the entropy
of the mean target less that of single ones, nats, and in per cent of the most there could be), and how RankMe of the teacher's
embeddings went. One training a row; of the defaults three, from three draws.

    python benchmarks/stability.py                     # prints a table; some four hours on two cores
    python benchmarks/stability.py --out stability.csv
"""

import argparse
import math
import tempfile
from pathlib import Path

import pandas as pd

from mfcore import store
from mfcore.pretraining import pretrain
from mfcore.pretraining.method import METHODS, SMALL, in_full
from mfcore.pretraining.objective import PretrainingError
from mfcore.study import arms as study_arms
from mfcore.study.config import Crops, Data, OnlinePatches, Pretraining, Settings

AS_PUBLISHED = {key: METHODS["dino"].published[key] for key in (*SMALL, "n_prototypes")}
TRIALS = {
    "DINO, defaults": {},
    "DINO, defaults, second draw": {"seed": 1},
    "DINO, defaults, third draw": {"seed": 2},
    "DINO, defaults, eight times as long": {"n_steps": 1200},
    "DINO, as published": AS_PUBLISHED,
    "DINO, published temperatures": {"teacher_temperature": AS_PUBLISHED["teacher_temperature"]},
    "DINO, published centring, no KoLeo": {key: AS_PUBLISHED[key] for key in ("centring", "koleo_weight")},
    "DINO, defaults, batches of 16": {"batch_size": 16},
    "DINO, defaults, batches of 128": {"batch_size": 128},
    "DINOv2, defaults": {"method": "dinov2"},
    "DINOv2, defaults, second draw": {"method": "dinov2", "seed": 1},
    "DINO, defaults, batches of 256": {"batch_size": 256},
    "DINO, defaults, batches of 256, 512 prototypes": {"batch_size": 256, "n_prototypes": 512},
    "DINO, as published, batches of 256": {**AS_PUBLISHED, "batch_size": 256},
    "DINOv2, defaults, batches of 256": {"method": "dinov2", "batch_size": 256, "n_steps": 30},  # a minute and more a step
}


def which(n_steps: int, changed: dict) -> Pretraining:
    """One trial's pretraining."""
    small = {"img_size": 64, "patch_size": 8, "embed_dim": 96, "depth": 3, "num_heads": 3}
    return Pretraining(
        "trial",
        architecture="vit_tiny_patch16_224",
        arguments=small,
        patches=OnlinePatches(64, (0.25,)),
        crops=Crops(64, 32, 2),
        **{"n_steps": n_steps, "batch_size": 64, **changed},
    )


def trial(name: str, this: Pretraining, folder: Path) -> dict:
    """A row: what the end of a pretraining's history says."""
    study = Settings(
        "trial", "Small batches, synthetic", Data("synthetic", n_slides=50, n_annotations=2000), pretraining=(this,)
    )
    try:
        run = study_arms.pretrain(study, "trial", folder / "data", folder / name)
        history, said = pretrain.load_history(run), run.record["facts"]["collapsed"]
    except PretrainingError as error:
        raise SystemExit(f"{name}: {error}") from error
    last, whole = history.tail(max(1, len(history) // 10)), in_full(this)
    told = float((last["target_entropy"] - last["teacher_entropy"]).mean())
    ranks = history["rankme"].dropna()
    return {
        "settings": name,
        "batch_size": whole.batch_size,
        "n_prototypes": whole.n_prototypes,
        "n_steps": whole.n_steps,
        "told_nats": round(told, 3),
        "told_percent": round(100 * told / math.log(whole.n_prototypes), 1),
        "rankme_first": round(float(ranks.iloc[0]), 1),
        "rankme_last": round(float(ranks.iloc[-1]), 1),
        "collapsed": said or "no",
    }


def main() -> None:
    """Pretrain once with each of the settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help="of a training that says nothing else (default 150)")
    parser.add_argument("--out", type=Path, help="also write the table to this CSV file, row by row")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, changed in TRIALS.items():
            rows.append(trial(name, which(arguments.steps, changed), Path(scratch)))
            print(pd.DataFrame(rows[-1:]).to_string(index=False), flush=True)
            if arguments.out:
                store.write_csv(arguments.out, pd.DataFrame(rows))


if __name__ == "__main__":
    main()
