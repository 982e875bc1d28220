"""Masks over tested patches, true ones and those that decoders made (Fig. 3 of kaiko 2024)."""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mfcore import store
from mfcore.analysis.encoders import tasks
from mfcore.analysis.exhibit import Exhibit, finished, image_rows, in_style, of_what
from mfcore.measures import masks
from mfcore.study import pretrained
from mfcore.study.config import Settings
from mfcore.study.study import Study
from mfcore.tasks import registry

MAX_MASKS = 3  # encoders side by side
# Okabe and Ito's colours, the first four differ in grey too; the background is white
OF_CLASSES = ("#0072b2", "#e69f00", "#d55e00", "#f0e442", "#009e73", "#56b4e9", "#cc79a7")
IGNORED_GREY = "0.75"
MASK_COLUMNS = ["item_id", "encoder", "class", "n_px", "dice"]


def chosen(settings: Settings, order: Sequence[str]) -> list[str]:
    """At most MAX_MASKS encoders, the best first in ``order``.

    These are the best, the study's first encoder that is pretrained here (or the best such), the
    same network untrained, and the worst.
    """
    mine = [name for name in (*settings.encoders, *order) if pretrained.is_of(settings, name)]
    home = [name for name in mine if name in order][:1]
    controls = [tasks.control_of(settings, name) for name in home]
    names = dict.fromkeys([order[0], *home, *controls, order[-1]])
    return [name for name in names if name in order][:MAX_MASKS]


@in_style
def over_patches(study: Study, task: str) -> Exhibit:
    """Some tested patches with their true masks and what the first run's decoders made of them.

    The table has the Dice of each patch, encoder and class: columns MASK_COLUMNS.
    """
    title = "Segmentations (kaiko 2024, Fig. 3)"
    table = tasks.encoders_only(tasks.reported(tasks.scores_table(study)))
    table = table[table["task"] == task].sort_values("mean", ascending=False, kind="stable")
    if not registry.get(task).is_segmentation:
        caption = f"A task of classification has no masks ({of_what(study.settings)})."
        table = pd.DataFrame(columns=MASK_COLUMNS)
        return Exhibit(f"09_{task}_masks", title, caption, table, section=tasks.SECTION)
    if table.empty:
        return tasks.exhibit(study, task, "_masks", title, table, "")
    first, columns, tables = {}, {}, []
    for encoder in chosen(study.settings, [*table["encoder"]]):
        run = tasks.runs(study)[task, encoder]
        with np.load(run.path("masks.npz")) as content:
            made = dict(content)
        first = first or made
        columns = columns or {"true mask": made["true"]}
        columns[encoder] = made["predicted"]
        dice = store.read_parquet(run.path(tasks.FILES["segmentation"])).set_index("item_id")
        dice = dice[dice["run"] == dice["run"].min()].assign(encoder=encoder)
        tables.append(dice.loc[made["item_id"]].reset_index()[MASK_COLUMNS])
    table, classes = pd.concat(tables, ignore_index=True), run.record["facts"]["classes"]
    caption = (
        f"Tested patches of {task}, drawn at random among those with nuclei, their true masks, and "
        "what the first run's decoder on frozen features made of them "
        f"({of_what(study.settings)}). Encoders, at most {MAX_MASKS}: the best, one pretrained "
        "here, the same network untrained, the worst. So few patches are no measurement."
    )
    figure = finished(study, draw_masks(first["image"], columns, table, classes), task, 4)
    return tasks.exhibit(study, task, "_masks", title, table, caption, figure=figure)


def draw_masks(
    images: np.ndarray,
    columns: Mapping[str, np.ndarray],
    table: pd.DataFrame,
    classes: Sequence[str],
) -> Figure:
    """Patches, and below them each mask over them with the patch's Dice, mean over its classes.

    images: uint8 (n, H, W, 3). columns: masks uint8 (n, H, W) by name. table: MASK_COLUMNS, of the
    columns that are encoders'. classes: with the background first.
    """
    colours = dict(zip(classes[1:], OF_CLASSES, strict=False))
    if masks.IGNORED in columns["true mask"]:
        colours["not judged"] = IGNORED_GREY
    palette = 255 * np.array([(0, 0, 0), *map(to_rgb, colours.values())])  # by class
    rows, grey = {"patch": images}, 128 + images.mean(axis=3, keepdims=True) / 2
    for name, shown in columns.items():
        at = np.where(shown == masks.IGNORED, len(colours), shown)  # (n, H, W)
        coloured = np.where(at[..., None] > 0, 0.25 * grey + 0.75 * palette[at], grey)
        rows[name] = coloured.astype(np.uint8)
    figure = image_rows(rows, len(images), 1.4)
    dice = table.groupby(["encoder", "item_id"], sort=False)["dice"].mean()
    for (name, i), axis in zip(product(rows, range(len(images))), figure.axes, strict=True):
        if name in dice:
            axis.set_title(f"Dice {dice[name].iloc[i]:.2f}", fontsize=6.5)
    handles = [Patch(facecolor=of, edgecolor="0.3", label=name) for name, of in colours.items()]
    figure.legend(handles=handles)
    return figure
