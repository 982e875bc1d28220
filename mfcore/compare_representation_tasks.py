"""RankMe and ODCorr of downstream tasks' images, beside what each encoder scores on the task: kaiko's Fig. 5 with our tasks."""

from pathlib import Path

import pandas as pd

from mfcore import compare, compare_representation, compare_tasks, pretrained
from mfcore.config import Study

FILE = "features.h5"  # of a judging: the embedding of each of the task's images
COLUMNS = ["task", "encoder", "origin", "n", "n_dims", "n_constant", *compare_representation.TITLES]
COLUMNS += ["metric_of_task", "score", "score_sd", "n_runs"]


def table(study: Study, results: str | Path) -> pd.DataFrame:
    """A row a task of classification and encoder (or snapshot) that it judged: columns COLUMNS, in the study's order.

    RankMe and ODCorr are of all of the task's images. ``score`` is the mean over runs of what the task reports,
    ``metric_of_task``, and ``score_sd`` its sample SD. Decoders of segmentation learn from maps of features, which aren't kept.
    """
    scored, rows = compare_tasks.reported(compare_tasks.table(study, results)), []
    runs = compare_tasks.runs(study, results)
    for row in scored[scored["kind"] == "classification"].itertuples():
        file = runs[row.task, row.encoder].path(FILE)
        if not file.is_file():
            continue
        origin = compare.HOME_MADE if pretrained.is_of(study, row.encoder) else ""
        found = {"task": row.task, "encoder": row.encoder, "origin": origin, **compare_representation.of_file(file)}
        found |= {"metric_of_task": compare_tasks.TITLES[row.metric], "score": row.mean, "score_sd": row.sd}
        rows.append(found | {"n_runs": row.n_runs})
    return pd.DataFrame(rows, columns=COLUMNS)


def correlations(rows: pd.DataFrame) -> pd.DataFrame:
    """`compare_representation.correlations` of each task, with its ``task``; ``rows`` as `table` returns them."""
    parts = [
        compare_representation.correlations(part, "score").assign(task=task) for task, part in rows.groupby("task", sort=False)
    ]
    return pd.concat(parts, ignore_index=True) if parts else compare_representation.correlations(rows, "score").assign(task="")
