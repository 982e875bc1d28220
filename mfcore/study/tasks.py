"""A study's downstream tasks: whom each judges, what decides a run, and the judging of one encoder or of all."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from mfcore import store
from mfcore.store.files import Fingerprints
from mfcore.store.options import as_dict
from mfcore.study import encoders, pretrained
from mfcore.study.config import Settings, TaskOptions
from mfcore.tasks import protocol, registry
from mfcore.tasks.task import TaskData, fingerprints as task_fingerprints

REFUSALS = "judged_{}.csv"  # among the results, of a task


def encoders_of(study: Settings, task: TaskOptions) -> list[str]:
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


def config_of(study: Settings, task: str, card: Mapping[str, object] | None) -> dict:
    """What decides a run, besides the images: protocol, seed, and what of the encoder's card decides an embedding."""
    return {
        "protocol": as_dict(protocol.of(study.task(task))),
        "seed": study.splits.seed,
        "card": card and json.loads(json.dumps(dict(card))),
    }


def fingerprint(data: TaskData, results: str | Path) -> str:
    """`protocol.fingerprint`; the fingerprints that it knows are kept in ``results``."""
    known = Fingerprints(Path(results) / "inputs" / f".task_{data.folder.name}.json")
    digest = protocol.fingerprint(data, known)
    known.write()
    return digest


def judge(
    study: Settings, task: str, encoder: str, data_folder: str | Path, results: str | Path, device: str = "cpu"
) -> store.Run:
    """Judge ``encoder``, which may be a snapshot ``NAME@STEP``, by ``task``; takes up again where an earlier call stopped.

    Raises TaskError, with all that is wrong, for a task whose data can't be judged by, and EncoderError where the encoder can't
    be had.
    """
    from mfcore.tasks import judge as classification, segment as segmentation

    by, card = protocol.of(study.task(task)), encoders.card_of(study, encoder, results)
    data = registry.load(task, registry.prepare(task, data_folder))
    protocol.check(data, by)
    stage = segmentation.STAGE if registry.get(task).is_segmentation else classification.STAGE
    config, inputs = config_of(study, task, card.identity()), {"items": fingerprint(data, results)}
    known = {key: value for key, value in config.items() if key != "card"}
    run = store.open_run(results, stage, f"{task}.{encoder}", config, inputs, known)
    if run.done:
        return run
    work = segmentation.segment if registry.get(task).is_segmentation else classification.judge
    return work(data, card, by, run, study.splits.seed, device)


def one_after_another(
    study: Settings, task: str, results: str | Path, work: Callable[[str], object], refused: type[Exception]
) -> pd.DataFrame:
    """Call ``work`` with each of a task's encoders: ``encoder, judged, reason``; one that is ``refused`` stops no other.

    The reasons are kept, see `refusals`. Raises the last error where all were refused.
    """
    rows, last = [], None
    for name in encoders_of(study, study.task(task)):
        try:
            work(name)
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
