"""A study's downstream tasks: whom each judges, what decides a run, and the judging of encoders."""

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from mfcore import store
from mfcore.encoders.card import EncoderError
from mfcore.store.files import Fingerprints
from mfcore.store.options import as_dict
from mfcore.study import encoders, pretrained
from mfcore.study.config import Settings, TaskOptions
from mfcore.tasks import protocol, registry
from mfcore.tasks.task import fingerprints as task_fingerprints

REFUSALS = "judged_{}.csv"  # among the results, of a task


def encoders_of(study: Settings, task: TaskOptions) -> list[str]:
    """Whom a task judges: its encoders, or the study's and all that it pretrains.

    Each pretrained one comes after its snapshots; the last snapshot is the encoder itself, and is
    named once.
    """
    earlier = {one.name: pretrained.snapshots_of(one)[:-1] for one in study.pretraining}
    names = list(task.encoders or dict.fromkeys([*study.encoders, *earlier]))
    if task.snapshots:
        return [each for name in names for each in (*earlier.get(name, ()), name)]
    return names


def config_of(study: Settings, task: str, card: Mapping[str, object] | None) -> dict:
    """What decides a run, besides the images: protocol, seed, and the encoder's card."""
    return {
        "protocol": as_dict(protocol.of(study.task(task))),
        "seed": study.splits.seed,
        "card": card and json.loads(json.dumps(dict(card))),
    }


def judge(
    study: Settings,
    task: str,
    encoder: str,
    data_folder: str | Path,
    results: Path,
    device: str = "cpu",
) -> store.Run:
    """Judge ``encoder``, which may be a snapshot ``NAME@STEP``, by ``task``.

    Goes on where an earlier call stopped. Raises TaskError, with all that is wrong, for data that
    no encoder can be judged by, and EncoderError without the encoder.
    """
    from mfcore.tasks import judge as classification, segment as segmentation

    by, card = protocol.of(study.task(task)), encoders.card_of(study, encoder, results)
    data = registry.load(task, data_folder)
    protocol.check(data, by)
    files = Fingerprints(results / "inputs" / f".task_{data.folder.name}.json")
    inputs = {"items": protocol.fingerprint(data, files)}
    files.write()
    config = config_of(study, task, card.identity())
    known = {key: value for key, value in config.items() if key != "card"}
    is_segmentation = registry.get(task).is_segmentation
    stage = (segmentation if is_segmentation else classification).STAGE
    work = segmentation.segment if is_segmentation else classification.judge
    run = store.open_run(results, stage, f"{task}.{encoder}", config, inputs, known)
    return run if run.done else work(data, card, by, run, study.splits.seed, device)


def judge_all(
    study: Settings,
    task: str,
    data_folder: str | Path,
    results: Path,
    device: str = "cpu",
) -> pd.DataFrame:
    """Judge each of a task's encoders: ``encoder, judged, reason``.

    An encoder without weights stops no other; the reasons are kept, see `refusals`. Raises the
    last EncoderError where no encoder can be had, and as `judge`.
    """
    reasons, last = {}, None
    for name in encoders_of(study, study.task(task)):
        reasons[name] = ""
        try:
            judge(study, task, name, data_folder, results, device)
        except EncoderError as error:
            reasons[name], last = " ".join(str(error).split()), error
    table = pd.DataFrame(reasons.items(), columns=["encoder", "reason"])
    table.insert(1, "judged", table["reason"] == "")
    store.write_csv(results / REFUSALS.format(task), table)
    if last and not table["judged"].any():
        raise last
    return table


def refusals(results: Path, task: str) -> dict[str, str]:
    """Why encoders weren't judged by a task, by their names."""
    file = results / REFUSALS.format(task)
    if not file.is_file():
        return {}
    table = pd.read_csv(file, keep_default_na=False)
    return table[~table["judged"]].set_index("encoder")["reason"].to_dict()


# ---- for a sweep ----


def absent(study: Settings, data_folder: str | Path) -> dict[str, Path]:
    """The study's tasks whose data aren't there, and the folder for each; others may be in part."""
    return registry.absent([task.name for task in study.tasks], data_folder)


def data_name(task: str) -> str:
    """The name under which a task's data lie; tasks that share their data share it."""
    return registry.folder_of(task, "").name


def data_fingerprints(name: str, data_folder: str | Path, known: Fingerprints) -> dict:
    """Fingerprints of the data of that name, as `mfcore.tasks.task.fingerprints`."""
    return task_fingerprints(registry.folder_of(name, data_folder), known)
