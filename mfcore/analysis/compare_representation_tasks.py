"""RankMe and ODCorr of downstream tasks' images, beside what each encoder scores on the task: kaiko's Fig. 5 with our tasks."""

from pathlib import Path

import pandas as pd

from mfcore.analysis import compare, compare_representation, compare_tasks
from mfcore.study import pretrained
from mfcore.study.config import Settings
from mfcore.tasks import registry

FILE = "features.h5"  # of a judging: the embedding of each of the task's images
MEASURED = ["task", "encoder", "origin", "n", "n_dims", "n_constant", *compare_representation.TITLES]
COLUMNS = [*MEASURED, "metric_of_task", "score", "score_sd", "n_runs"]


def measured(study: Settings, results: str | Path) -> pd.DataFrame:
    """RankMe and ODCorr of all of a task's images, a row a task and encoder (or snapshot) that it judged: columns MEASURED.

    Of tasks of classification: decoders of segmentation learn from maps of features, which aren't kept.
    """
    rows = []
    for (task, encoder), run in compare_tasks.runs(study, results).items():
        file = run.path(FILE)
        if registry.get(task).is_segmentation or not file.is_file():
            continue
        origin = compare.HOME_MADE if pretrained.is_of(study, encoder) else ""
        rows.append({"task": task, "encoder": encoder, "origin": origin, **compare_representation.of_file(file)})
    return pd.DataFrame(rows, columns=MEASURED)


def table(study: Settings, results: str | Path) -> pd.DataFrame:
    """`measured` beside the scores: columns COLUMNS, in the study's order.

    ``score`` is the mean over runs of what the task reports, ``metric_of_task``, and ``score_sd`` its sample SD.
    """
    scored = compare_tasks.reported(compare_tasks.table(study, results))
    scored = scored.assign(metric_of_task=scored["metric"].map(compare_tasks.TITLES))
    scored = scored.rename(columns={"mean": "score", "sd": "score_sd"})
    return measured(study, results).merge(scored, "inner", ["task", "encoder"])[COLUMNS]


def correlations(rows: pd.DataFrame) -> pd.DataFrame:
    """`compare_representation.correlations` of each task, with its ``task``; ``rows`` as `table` returns them."""
    parts = [
        compare_representation.correlations(part, "score").assign(task=task) for task, part in rows.groupby("task", sort=False)
    ]
    return pd.concat(parts, ignore_index=True) if parts else compare_representation.correlations(rows, "score").assign(task="")
