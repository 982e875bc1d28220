"""A run that judges an encoder by a task, whatever is trained: how it begins, what each seed's training leaves, how it ends."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from mfcore import store
from mfcore.study.config import Settings
from mfcore.tasks import protocol as tasks_protocol, registry
from mfcore.tasks.task import TaskData


def begin(
    stage: str,
    study: Settings,
    task: str,
    encoder: str,
    identity: Mapping[str, object],
    data_folder: str | Path,
    results: str | Path,
) -> tuple[store.Run, TaskData]:
    """Open the run of an encoder by a task, new, begun or finished; returns it and the task's data, brought in order.

    identity: what of the encoder's card decides an embedding. Raises TaskError, with all that is wrong, for a task whose data
    can't be judged by.
    """
    protocol = tasks_protocol.of(study.task(task))
    data = registry.load(task, registry.prepare(task, data_folder))
    tasks_protocol.check(data, protocol)
    config = tasks_protocol.config_of(study, task, identity)
    inputs = {"items": tasks_protocol.fingerprint(data, results)}
    known = {key: value for key, value in config.items() if key != "card"}
    return store.open_run(results, stage, f"{task}.{encoder}", config, inputs, known), data


def missing(run: store.Run, n_runs: int) -> list[int]:
    """The seeds' numbers, from 0, whose training isn't done."""
    return [number for number in range(n_runs) if not _file(run, number, ".json").is_file()]


def keep(run: store.Run, number: int, tested: pd.DataFrame, fit: Mapping[str, object]) -> None:
    """Keep what came of one seed's training: what it says of the items that it didn't learn from, and how it ended."""
    store.write_parquet(_file(run, number), tested)
    store.write_json(_file(run, number, ".json"), {"run": number, **fit})


def finish(run: store.Run, data: TaskData, n_runs: int, table: str, files: list[str], **facts: object) -> store.Run:
    """Put what was kept together, in ``table`` and ``fits.csv``, and close the run; ``files``: what else it records."""
    tables = [store.read_parquet(_file(run, number)) for number in range(n_runs)]
    store.write_parquet(run.path(table), pd.concat(tables, ignore_index=True))
    store.write_csv(run.path("fits.csv"), pd.DataFrame([store.read_json(_file(run, i, ".json")) for i in range(n_runs)]))
    of_data = {"selected_on": data.selected_on, "notes": list(data.notes), "classes": list(data.classes)}
    return run.finish([table, "fits.csv", *files], n_items=len(data.table), **facts, **of_data)


def _file(run: store.Run, number: int, suffix: str = ".parquet") -> Path:
    return run.unit_file(f"run{number:03d}", suffix)
