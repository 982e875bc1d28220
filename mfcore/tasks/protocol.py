"""How eva judges an encoder by a task: what is trained on its frozen features, how long, and when it ends.

Facts of kaiko-ai/eva's configurations. They and eva's table of documentation disagree on the optimiser of a classification:
the table says weight decay 0 and a momentum, the configurations name AdamW, whose weight decay in PyTorch is 0.01. Here as in
eva's code goes the configuration. eva's heads have ConstantLR for a schedule unless told otherwise, which in PyTorch is a
third of the learning rate for five epochs.

Of MoNuSAC eva's decoders learn from random crops of the images, drawn anew at every step. Here, as of every other set, they
learn from one square of each, over its whole shorter side: maps of features are computed once.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from mfcore import store
from mfcore.store import files as store_files
from mfcore.store.records import digest
from mfcore.study import pretrained
from mfcore.study.config import Study, Task, as_dict
from mfcore.study.config_pretraining import SEGMENTATION
from mfcore.tasks.schema import TaskData, TaskError

N_STEPS, BATCH_SIZE, MAX_LR = (
    {"classification": 12_500, "segmentation": 2_000},
    {"classification": 256, "segmentation": 64},
    {"classification": 3e-4, "segmentation": 2e-3},
)
N_RUNS = {"pcam_10shot": 50}  # of others 5
N_SHOTS = {"pcam_10shot": 10}
# Validations without a better one; of what isn't here, or has other steps, batches or items than eva's: a fifth of all
PATIENCE = {"bach": 1250, "crc": 7, "pcam": 3, "pcam_10shot": 125, "consep": 200, "monusac": 100}
EPOCHS_A_VALIDATION = {"pcam_10shot": 10}
MIN_GAIN = {"pcam_10shot": 1e-4}
SELECTION = "val"  # the split on which training stops, and whose best weights are kept
REFUSALS = "judged_{}.csv"  # among the results, of a task
MIN_PX = 8  # sides of an image below which there is nothing to see


@dataclass(frozen=True)
class Protocol:
    """One task's protocol, for any encoder.

    kind: "classification" (one linear layer) or "segmentation" (a decoder). n_runs: heads from other seeds. n_steps of
    ``batch_size``. max_lr, weight_decay: AdamW's; the first ``n_slow_epochs`` go at ``slow_factor`` of the rate. patience:
    validations that bring no gain above ``min_gain`` after which training ends; None: a fifth of its epochs. n_per_class: drawn
    anew each run from the training split; None: all of it. size_px: side to which patches are resized first; None: as the
    encoder has it.
    """

    kind: str
    n_runs: int
    n_steps: int
    batch_size: int
    max_lr: float
    weight_decay: float = 0.01
    n_slow_epochs: int = 5
    slow_factor: float = 1 / 3
    patience: int | None = None
    epochs_a_validation: int = 1
    min_gain: float = 0.0
    n_per_class: int | None = None
    size_px: int | None = None

    def n_batches(self, n_train: int) -> int:
        """Steps of an epoch over so many items."""
        return -(-n_train // self.batch_size)

    def patience_of(self, n_train: int) -> int:
        """After how many validations without gain training on so many items ends."""
        if self.patience is not None:
            return self.patience
        return max(1, math.ceil(self.n_steps / 5 / self.n_batches(n_train) / self.epochs_a_validation))

    def learning_rate(self, step: int, n_train: int) -> float:
        """Of the step with that number, from 0."""
        slow = step < self.n_slow_epochs * self.n_batches(n_train)
        return self.max_lr * (self.slow_factor if slow else 1.0)


def of(task: Task) -> Protocol:
    """The protocol of a study's task: eva's, but for what the task says otherwise."""
    kind = "segmentation" if task.name in SEGMENTATION else "classification"
    evas = (N_STEPS[kind], BATCH_SIZE[kind], N_SHOTS.get(task.name))
    said = (task.n_steps, task.batch_size, task.n_per_class)
    n_steps, batch_size, n_per_class = (theirs if own is None else own for theirs, own in zip(evas, said, strict=True))
    return Protocol(
        kind=kind,
        n_runs=N_RUNS.get(task.name, 5) if task.n_runs is None else task.n_runs,
        n_steps=n_steps,
        batch_size=batch_size,
        max_lr=MAX_LR[kind] if task.max_lr is None else task.max_lr,
        patience=PATIENCE.get(task.name) if (n_steps, batch_size, n_per_class) == evas else None,  # epochs as long as eva's
        epochs_a_validation=EPOCHS_A_VALIDATION.get(task.name, 1),
        min_gain=MIN_GAIN.get(task.name, 0.0),
        n_per_class=n_per_class,
        size_px=task.size_px,
    )


def evas(name: str) -> Protocol:
    """eva's own protocol of a task, whatever a study says; a stand-in's is that of its kind."""
    return of(Task(name))


def encoders_of(study: Study, task: Task) -> list[str]:
    """Whom a task judges: its encoders, or the study's and all that it pretrains; each pretrained one after its snapshots.

    The last snapshot is the encoder itself, and is named once.
    """
    own = [which.name for which in study.pretraining]
    names = list(task.encoders) or [*study.encoders, *(name for name in own if name not in study.encoders)]
    if not task.snapshots:
        return names
    return [name for encoder in names for name in [*_earlier(study, encoder), encoder]]


def _earlier(study: Study, encoder: str) -> list[str]:
    return pretrained.snapshots_of(study.pretraining_of(encoder))[:-1] if pretrained.is_of(study, encoder) else []


def one_after_another(
    study: Study, task: str, results: str | Path, judge: Callable[[str], object], refused: type[Exception]
) -> pd.DataFrame:
    """Call ``judge`` with each of a task's encoders: ``encoder, judged, reason``; one that is ``refused`` stops no other.

    The reasons are kept, see `refusals`. Raises the last error where all were refused.
    """
    rows, last = [], None
    for name in encoders_of(study, study.task(task)):
        try:
            judge(name)
            rows.append((name, True, ""))
        except refused as error:
            last = error
            rows.append((name, False, " ".join(str(error).split())))
    table = pd.DataFrame(rows, columns=["encoder", "judged", "reason"])
    store.write_csv(Path(results) / REFUSALS.format(task), table)
    if last is not None and not table["judged"].any():
        raise last
    return table


def refusals(results: str | Path, task: str) -> dict[str, str]:
    """Why encoders weren't judged by a task, by their names."""
    file = Path(results) / REFUSALS.format(task)
    if not file.is_file():
        return {}
    table = pd.read_csv(file, keep_default_na=False)
    return dict(table.loc[~table["judged"], ["encoder", "reason"]].itertuples(index=False))


def config_of(study: Study, task: str, card: Mapping[str, object] | None) -> dict:
    """What decides a run, besides the images: protocol, seed, and what of the encoder's card decides an embedding."""
    return {
        "protocol": as_dict(of(study.task(task))),
        "seed": study.splits.seed,
        "card": card and json.loads(json.dumps(dict(card))),
    }


def fingerprint(data: TaskData, results: str | Path) -> str:
    """Digest of a task's table and of all its files; those of known size and time (``results`` keep it) aren't read again."""
    table = data.table.drop(columns="file")
    known = store_files.Fingerprints(Path(results) / "inputs" / f".task_{data.folder.name}.json")
    files = data.fingerprints(known)
    known.write()
    return digest([json.loads(table.to_json(orient="values")), list(data.classes), files])


def check(data: TaskData, protocol: Protocol) -> None:
    """Raise TaskError, with all that is wrong, where an encoder can't be judged by a task's data."""
    table, wrong = data.table, []
    if data.kind != protocol.kind:
        wrong.append(f"its data are of a {data.kind}, its protocol of a {protocol.kind}")
    counts = table["split"].value_counts()
    if unknown := sorted(set(counts.index) - {"train", "val", "test"}):
        wrong.append(f"splits {unknown}: an item is of train, val or test")
    wrong += [f"no item is of the split {name!r}; it needs some" for name in ("train", SELECTION) if name not in counts]
    twice = table["item_id"][table["item_id"].duplicated()]
    if len(twice):
        wrong.append(f"{len(twice)} item_ids stand there twice, the first {twice.iloc[0]!r}")
    small = table[table[["width_px", "height_px"]].min(axis=1) < MIN_PX]
    if len(small):
        wrong.append(f"{len(small)} images are less than {MIN_PX} px wide or high, the first {small['item_id'].iloc[0]!r}")
    if protocol.kind == "classification":
        wrong += _wrong_labels(data, protocol)
    if wrong:
        raise TaskError(f"task {data.name!r}: {'; '.join(wrong)}")


def _wrong_labels(data: TaskData, protocol: Protocol) -> list[str]:
    table, n_classes, wrong = data.table, len(data.classes), []
    outside = table[~table["label"].between(0, n_classes - 1)]
    if len(outside):
        first = outside.iloc[0]
        return [f"label {first['label']} of {first['item_id']!r}: there are {n_classes} classes, from 0"]
    n_train = np.bincount(table.loc[table["split"] == "train", "label"], minlength=n_classes)
    if absent := [data.classes[i] for i in np.flatnonzero(n_train == 0)]:
        wrong.append(f"no training item is of class {', '.join(absent)}")
    wanted = protocol.n_per_class or 0
    if few := [f"{data.classes[i]} ({n_train[i]})" for i in np.flatnonzero((n_train > 0) & (n_train < wanted))]:
        wrong.append(f"{wanted} training items of each class are asked for; there are fewer of {', '.join(few)}")
    for split in (SELECTION, "test"):
        of_split = table.loc[table["split"] == split, "label"]
        if len(of_split) and of_split.nunique() < 2:
            wrong.append(f"the split {split!r} holds one class only: balanced accuracy needs two")
    return wrong


def reported_split(splits: "pd.Series[str]") -> str:
    """The split whose scores are a task's result: "test", or that of selection where there is no other."""
    return "test" if (splits == "test").any() else SELECTION


def resized(pixels: np.ndarray, short_px: int, interpolation: str) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3) with its shorter side of ``short_px``, by Pillow's "bilinear", "bicubic" or "nearest"."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    if short == short_px:
        return pixels
    size = (short_px * width // short, short_px * height // short)
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling[interpolation.upper()]))
