"""How an encoder is judged by a task in a study: by which protocol, which encoders, and what decides a run."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from mfcore import store
from mfcore.store import files as store_files
from mfcore.store.records import digest
from mfcore.study import pretrained
from mfcore.study.config import Settings, Task, as_dict
from mfcore.tasks import registry
from mfcore.tasks.task import SELECTION, Protocol, TaskData, TaskError

REFUSALS = "judged_{}.csv"  # among the results, of a task
MIN_PX = 8  # sides of an image below which there is nothing to see


def of(task: Task) -> Protocol:
    """The protocol of a study's task: the published one, but for what the study says otherwise."""
    published = registry.get(task.name).protocol
    keys = ("n_runs", "n_steps", "batch_size", "max_lr", "n_per_class", "size_px")
    protocol = replace(published, **{key: value for key in keys if (value := getattr(task, key)) is not None})
    epochs = [(each.n_steps, each.batch_size, each.n_per_class) for each in (published, protocol)]
    return protocol if epochs[0] == epochs[1] else replace(protocol, patience=None)  # it counts epochs of the published length


def encoders_of(study: Settings, task: Task) -> list[str]:
    """Whom a task judges: its encoders, or the study's and all that it pretrains; each pretrained one after its snapshots.

    The last snapshot is the encoder itself, and is named once.
    """
    own = [which.name for which in study.pretraining]
    names = list(task.encoders) or [*study.encoders, *(name for name in own if name not in study.encoders)]
    if not task.snapshots:
        return names
    return [name for encoder in names for name in [*_earlier(study, encoder), encoder]]


def _earlier(study: Settings, encoder: str) -> list[str]:
    return pretrained.snapshots_of(study.pretraining_of(encoder))[:-1] if pretrained.is_of(study, encoder) else []


def one_after_another(
    study: Settings, task: str, results: str | Path, judge: Callable[[str], object], refused: type[Exception]
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


def config_of(study: Settings, task: str, card: Mapping[str, object] | None) -> dict:
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
