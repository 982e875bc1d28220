"""Figures of one pretraining: how it went, and what the network is shown of a patch."""

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mfcore.analysis.figures import WIDTH_INCH, drawing, title
from mfcore.study.config import Settings
from mfcore.study.pretrained import METHODS, in_full

PARTS = {"loss": "all", "loss_dino": "DINO", "loss_ibot": "iBOT", "loss_koleo": "KoLeo"}
DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
SMOOTHED = 40  # parts into which a long history falls; each point of a line is the mean of one


def history(study: Settings, table: pd.DataFrame, name: str) -> Figure:
    """Loss, entropies of the targets, RankMe and schedules over the steps; table: as
    `mfcore.pretraining.pretrain.load_history`'s."""
    which = in_full(study.pretraining_of(name))
    smooth = smoothed(table)
    with drawing(study, 2, 2, (WIDTH_INCH, 4.6), sharex=True) as (figure, ((loss, entropy), (rank, schedule))):
        has_parts = (table[["loss_ibot", "loss_koleo"]] != 0).any(axis=None)
        shown = [key for key in PARTS if key == "loss" or (has_parts and (table[key] != 0).any())]
        for key, dash in zip(shown, DASHES, strict=False):
            weight = {"loss_ibot": which.ibot_weight, "loss_koleo": which.koleo_weight}.get(key)
            label = PARTS[key] if weight is None else f"{PARTS[key]} (weight {weight:g})"
            loss.plot(smooth["step"], smooth[key], linestyle=dash, label=label)
        loss.set_ylabel("loss")
        if len(shown) > 1:
            loss.legend()
        highest = math.log(which.n_prototypes)
        entropy.axhline(highest, color="0.5", linewidth=0.8, linestyle=(0, (1, 1.5)))
        entropy.text(0.01, highest, "uniform", transform=entropy.get_yaxis_transform(), va="bottom", fontsize=7, color="0.35")
        entropy.plot(smooth["step"], smooth["target_entropy"], label="mean of the targets")
        entropy.plot(smooth["step"], smooth["teacher_entropy"], linestyle=(0, (5, 1.6)), label="single targets")
        entropy.fill_between(smooth["step"], smooth["teacher_entropy"], smooth["target_entropy"], color="0.9", linewidth=0)
        entropy.set(ylabel="entropy (nats)", ylim=(0, highest * 1.12))
        entropy.legend()
        measured = table[table["rankme"].notna()]
        rank.plot(measured["step"], measured["rankme"], marker="o", markersize=3)
        rank.set(xlabel="step", ylabel="RankMe of the teacher", ylim=(0, None))
        for (key, label), dash in zip(
            {
                "learning_rate": "learning rate",
                "weight_decay": "weight decay",
                "teacher_temperature": "teacher's temperature",
                "_left": "1 − momentum",
            }.items(),
            DASHES,
            strict=True,
        ):
            values = (1 - table["momentum"]) if key == "_left" else table[key]
            schedule.plot(table["step"], values / max(values.max(), 1e-12), linestyle=dash, label=label)
        schedule.set(xlabel="step", ylabel="share of its highest value", ylim=(0, 1.4), yticks=np.linspace(0, 1, 6))
        schedule.legend(fontsize=7, ncols=2, loc="upper center")
        title(figure, f"{name}: {METHODS[which.method].title}, {which.n_steps:,} steps of {which.batch_size} patches")
    return figure


def smoothed(table: pd.DataFrame) -> pd.DataFrame:
    """A long history with each run of lines replaced by its mean, SMOOTHED rows at most; a short one as it is."""
    if len(table) <= 2 * SMOOTHED:
        return table
    return table.groupby(np.arange(len(table)) * SMOOTHED // len(table)).mean()


def crops(study: Settings, name: str, patches: np.ndarray, global_crops: np.ndarray, local_crops: np.ndarray) -> Figure:
    """What student and teacher are shown: a row a patch, the patch, its two global and its local crops.

    patches: uint8 (n, size_px, size_px, 3). global_crops: uint8 (2, n, g, g, 3); local_crops: uint8 (n_local, n, l, l, 3).
    """
    views = [("patch", patches), *((f"global {i + 1}", crop) for i, crop in enumerate(global_crops))]
    views += [(f"local {i + 1}", crop) for i, crop in enumerate(local_crops)]
    side_inch = min(0.95, (WIDTH_INCH - 0.2) / len(views))
    size_inch = (side_inch * len(views) + 0.2, side_inch * len(patches) + 0.5)
    with drawing(study, len(patches), len(views), size_inch) as (figure, axes):
        for row, line in enumerate(axes):
            for axis, (label, images) in zip(line, views, strict=True):
                axis.imshow(images[row], interpolation="nearest")
                axis.set_axis_off()
                if row == 0:
                    axis.set_title(f"{label}\n{images.shape[1]} px", fontsize=7, fontweight="normal", loc="center")
        title(figure, name)
    return figure
