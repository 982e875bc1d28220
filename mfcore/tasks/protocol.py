"""By which protocol an encoder is judged by a task, whether the task's data will do, and what a run
of several seeds leaves.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field, ValidationInfo, field_validator

from mfcore import store
from mfcore.store.files import Fingerprints
from mfcore.store.options import Count, Distinct, Flag, Positive, Whole, among, options
from mfcore.store.records import digest
from mfcore.tasks import registry
from mfcore.tasks.task import SELECTION, Protocol, TaskData, TaskError

MAX_PX = 4096  # side to which patches are resized


@options
class TaskOptions:
    """A downstream task and how encoders are judged by it: eva's protocol for its kind.

    name: one of `registry.TASKS`. encoders: which; empty for the study's and all that it pretrains.
    snapshots: judge those too.
    n_runs: heads trained from other seeds; None: 5, of pcam_10shot 50. n_steps, batch_size, max_lr:
    of the head; None as eva has it for the task's kind. size_px: side to which patches are resized
    before the encoder's own transform; None: as it has it. n_per_class: of the training split,
    drawn anew each run (few-shot); None: all, but for pcam_10shot's 10. measured_on: another task
    whose images RankMe and ODCorr are measured on, to be set against this task's scores; empty for
    this task's own images.
    """

    name: Annotated[str, among(registry.TASKS)]
    encoders: Annotated[tuple[str, ...], Distinct] = ()
    snapshots: Flag = False
    n_runs: Count | None = None
    n_steps: Count | None = None
    batch_size: Count | None = None
    max_lr: Positive | None = None
    size_px: Annotated[Whole, Field(ge=1, le=MAX_PX)] | None = None
    n_per_class: Count | None = None
    measured_on: str = ""

    @field_validator("n_per_class")
    @classmethod
    def _has_classes(cls, n: int | None, info: ValidationInfo) -> int | None:
        if n is not None and (name := info.data.get("name")) and registry.get(name).is_segmentation:
            raise ValueError(
                f"{n}, but this task segments nuclei and has no classes of patches; "
                "leave the key out"
            )
        return n


def of(task: TaskOptions) -> Protocol:
    """The protocol of a task: the published one, but for what the options say otherwise."""
    published = registry.get(task.name).protocol
    keys = ("n_runs", "n_steps", "batch_size", "max_lr", "n_per_class", "size_px")
    protocol = replace(
        published, **{key: value for key in keys if (value := getattr(task, key)) is not None}
    )
    epochs = [(each.n_steps, each.batch_size, each.n_per_class) for each in (published, protocol)]
    # it counts epochs of the published length
    return protocol if epochs[0] == epochs[1] else replace(protocol, patience=None)


def fingerprint(data: TaskData, known: Fingerprints) -> str:
    """Digest of a task's table and of all its files; those of size and time as ``known`` aren't
    read again.
    """
    table = json.loads(data.table.drop(columns="file").to_json(orient="values"))
    return digest([table, list(data.task.classes), data.fingerprints(known)])


def check(data: TaskData, protocol: Protocol) -> None:
    """Raise TaskError, with all that is wrong, where a task's data can't judge an encoder."""
    table, classes = data.table, data.task.classes
    splits = table["split"].unique()
    wrong = [
        f"no item is of the split {name!r}; it needs some"
        for name in ("train", SELECTION)
        if name not in splits
    ]
    if not data.task.is_segmentation:
        n_train = np.bincount(table.loc[table["split"] == "train", "label"], minlength=len(classes))
        wanted = protocol.n_per_class or 1
        if scarce := [
            f"{name} ({n})" for name, n in zip(classes, n_train, strict=True) if n < wanted
        ]:
            wrong.append(
                f"{wanted} training items of each class are needed; "
                f"there are fewer of {', '.join(scarce)}"
            )
        n_classes = table[table["split"] != "train"].groupby("split")["label"].nunique()
        wrong += [
            f"the split {split!r} holds one class only: balanced accuracy needs two"
            for split in n_classes.index[n_classes < 2]
        ]
    if wrong:
        raise TaskError(f"task {data.task.name!r}: {'; '.join(wrong)}")


def reported_split(splits: "pd.Series[str]") -> str:
    """The split whose scores are a task's result: "test", or that of selection where there is no
    other.
    """
    return "test" if (splits == "test").any() else SELECTION


# ---- what a run leaves ----


def missing(run: store.Run, n_runs: int) -> list[int]:
    """The seeds' numbers, from 0, whose training isn't done."""
    return [number for number in range(n_runs) if not _file(run, number, ".json").is_file()]


def keep(run: store.Run, number: int, tested: pd.DataFrame, fit: Mapping[str, object]) -> None:
    """Keep what came of one seed's training: what it says of the items that it didn't learn from,
    and how it ended.
    """
    store.write_parquet(_file(run, number), tested)
    store.write_json(_file(run, number, ".json"), {"run": number, **fit})


def finish(
    run: store.Run, data: TaskData, n_runs: int, table: str, files: list[str], **facts: object
) -> store.Run:
    """Put what was kept together, in ``table`` and ``fits.csv``, and close the run; ``files``: what
    else it records.
    """
    tables = [store.read_parquet(_file(run, number)) for number in range(n_runs)]
    store.write_parquet(run.path(table), pd.concat(tables, ignore_index=True))
    fits = [store.read_json(_file(run, number, ".json")) for number in range(n_runs)]
    store.write_csv(run.path("fits.csv"), pd.DataFrame(fits))
    facts |= {"n_items": len(data.table), "classes": list(data.task.classes)}
    facts |= {"selected_on": data.selected_on, "notes": list(data.notes)}
    return run.finish([table, "fits.csv", *files], **facts)


def _file(run: store.Run, number: int, suffix: str = ".parquet") -> Path:
    return run.unit_file(f"run{number:03d}", suffix)
