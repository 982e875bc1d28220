"""One pretraining: where its patches lie, their crops, its settings, its cost and how it went.

A source of patches is a `mfcore.pretraining.source.Source`, given by the caller, never imported.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mfcore import store
from mfcore.analysis.exhibit import (
    WIDTH_INCH,
    Exhibit,
    finished,
    image_rows,
    in_style,
    label_ends,
    of_what,
)
from mfcore.study.config import Pretraining, as_dict
from mfcore.study.pretrained import METHODS, in_full
from mfcore.study.study import Study

SECTION = "Pretraining"
N_ACROSS = 6  # patches of one resolution
# by axis, the columns of a history and their labels
PANELS = {
    "loss (parts unweighted)": {
        "loss": "all",
        "loss_dino": "DINO",
        "loss_ibot": "iBOT",
        "loss_koleo": "KoLeo",
    },
    "entropy (nats)": {
        "target_entropy": "mean of the targets",
        "teacher_entropy": "single targets",
        "uniform": "uniform",
    },
    "RankMe of the teacher": {"rankme": "RankMe"},
    "share of its highest value": {
        "learning_rate": "learning rate",
        "weight_decay": "weight decay",
        "teacher_temperature": "teacher's temperature",
        "left": "1 − momentum",
    },
}
SMOOTHED = 40  # parts into which a long history falls; each point of a line is the mean of one


def slides(study: Study, source) -> Exhibit:
    """The slides that patches are drawn from, their tissue, and what failed."""
    table, title = source.overview(), "Slides and their tissue"
    caption = (
        f"The slides, their tissue, and their share of the draws ({of_what(study.settings)}). Of "
        f"{len(table)} slides {(table['failure'] != '').sum()} failed, in part or as a whole; "
        f"{table['tissue_mm2'].sum():.3g} mm² are tissue."
    )
    return Exhibit("07_online_slides", title, caption, table, None, SECTION)


@in_style
def places(study: Study, source, n_drawn: int) -> Exhibit:
    """Where the first ``n_drawn`` patches of a source lie, on one slide and by slide."""
    table, overview, options = source.table(range(n_drawn)), source.overview(), source.settings
    slide_id = str(table["slide_id"].mode()[0])
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH_INCH, 3.9), width_ratios=(1.15, 1))
    _on_slide(left, *source.thumbnail(slide_id), table[table["slide_id"] == slide_id])
    left.set_title(slide_id)
    counts = table["slide_id"].value_counts().reindex(overview["slide_id"], fill_value=0)
    right.plot(overview["tissue_mm2"], counts, "o", markersize=3.5)
    rate = n_drawn / max(overview["tissue_mm2"].sum(), 1e-12)
    right.axline((0, 0), slope=rate, color="0.45", linestyle="--", label="in proportion to tissue")
    right.set(xlim=(0, None), xlabel="tissue on the slide (mm²)")
    right.set(ylim=(0, None), ylabel="patches drawn")
    right.set_title(f"{n_drawn:,} patches, {len(overview)} slides")
    figure = finished(study, figure, n_columns=3)
    caption = (
        f"Left: centres of the patches that fell on {slide_id}, its tissue outlined; right: draws "
        f"by slide ({of_what(study.settings)}). {n_drawn:,} draws of {options.size_px} px, uniform "
        f"over {options.uniform_over}, with {100 * table['tissue'].min():.0f} % tissue or more."
    )
    return Exhibit("07_online_places", "Where patches are drawn", caption, table, figure, SECTION)


def _on_slide(
    axis: Axes, thumbnail: np.ndarray, tissue: np.ndarray, cell_um: float, drawn: pd.DataFrame
) -> None:
    """A slide with its tissue and the centres of the patches drawn there.

    thumbnail: uint8 (H, W, 3), tissue: bool (H, W), a px of either ``cell_um`` um wide. drawn:
    um_per_px, x_um, y_um.
    """
    height_um, width_um = np.multiply(tissue.shape, cell_um)
    extent = 0, width_um, height_um, 0
    axis.grid(visible=False)
    axis.imshow(thumbnail, extent=extent)
    if tissue.any() and not tissue.all():
        axis.contour(tissue, [0.5], colors="black", linewidths=0.7, origin="upper", extent=extent)
    drawn = drawn.sort_values("um_per_px", kind="stable")
    resolution = drawn["um_per_px"].map("{:g} µm/px".format)
    style = {"hue": resolution, "style": resolution, "s": 12}
    sns.scatterplot(drawn, x="x_um", y="y_um", ax=axis, **style)
    axis.get_legend().remove()
    axis.set(xlim=extent[:2], ylim=extent[2:], xlabel="x (µm)", ylabel="y (µm)")


@in_style
def patches(study: Study, images: np.ndarray, table: pd.DataFrame) -> Exhibit:
    """Patches as a network gets them: a row a resolution, N_ACROSS of each.

    images: uint8 (n, H, W, 3), row for row with ``table``, whose um_per_px is used.
    """
    side_px, rows = images.shape[1], {}
    for um_per_px in sorted(table["um_per_px"].unique()):
        name = f"{um_per_px:g} µm/px,\n{side_px * um_per_px:g} µm wide"
        rows[name] = images[table["um_per_px"] == um_per_px]
    caption = (
        f"Some of {len(table):,} patches as a network gets them, from "
        f"{table['slide_id'].nunique()} slides ({of_what(study.settings)}). None is stored."
    )
    figure, title = finished(study, image_rows(rows, N_ACROSS)), "Patches as they are drawn"
    return Exhibit("07_online_patches", title, caption, table, figure, SECTION)


@in_style
def crops(
    study: Study,
    encoder: str,
    images: np.ndarray,
    big: np.ndarray,
    small: np.ndarray,
    table: pd.DataFrame,
) -> Exhibit:
    """What student and teacher are shown: a column a patch, with its global and local crops.

    images: uint8 (n, size_px, size_px, 3). big: global crops, uint8 (2, n, g, g, 3); small: local
    crops, uint8 (n_local, n, l, l, 3). table: where the patches lie.
    """
    views = {"patch": images} | {f"global {i + 1}": crop for i, crop in enumerate(big)}
    views |= {f"local {i + 1}": crop for i, crop in enumerate(small)}
    rows = {f"{name}\n{crop.shape[2]} px": crop for name, crop in views.items()}
    figure = finished(study, image_rows(rows, len(images)), encoder)
    caption = (
        f"Patches of {encoder}, drawn online, and their crops, coloured as the network gets them "
        f"({of_what(study.settings)}). The teacher sees the global crops, the student these and "
        "the local ones."
    )
    name, title = f"08_crops_{store.file_name(encoder)}", f"What {encoder} is shown"
    return Exhibit(name, title, caption, table, figure, SECTION)


# ---- the training ----


def settings(study: Study, encoder: str) -> Exhibit:
    """How an encoder is pretrained: ``setting, value``, and ``from`` whom it is."""
    one, rows = study.settings.pretraining_of(encoder), []
    asked, full, plain = (
        flattened(as_dict(each)) for each in (one, in_full(one), Pretraining("-"))
    )
    method = METHODS[one.method]
    for key, value in full.items():
        origin = "default" if asked[key] == plain[key] else "the study"
        if asked[key] is None and value is not None:
            is_theirs = _text(method.published.get(key.rpartition(".")[2])) == _text(value)
            by = f"the authors of {method.title}"
            origin = by if is_theirs else "default for small trainings"
        rows.append((key, _text(value), origin))
    table = pd.DataFrame(rows, columns=["setting", "value", "from"])
    caption = f"How {encoder} is pretrained, and who says so ({of_what(study.settings)})."
    name = f"08_settings_{store.file_name(encoder)}"
    return Exhibit(name, f"Settings of {encoder}", caption, table, None, SECTION)


def _text(value: object) -> str:
    if isinstance(value, dict):
        value = "; ".join(f"{key}: {content}" for key, content in value.items())
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    return "–" if value in (None, "") else str(value)


def cost(study: Study, encoder: str) -> Exhibit:
    """What a finished pretraining took and from how much, as its record has it: ``fact, value``."""
    facts = pd.Series(study.pretraining(encoder).record["facts"], dtype=object)
    table = facts.map(_text).rename_axis("fact").reset_index(name="value")
    caption = f"What the pretraining of {encoder} took ({of_what(study.settings)})."
    name = f"08_cost_{store.file_name(encoder)}"
    return Exhibit(name, f"Cost of {encoder}", caption, table, None, SECTION)


def history(study: Study, encoder: str) -> Exhibit:
    """Loss, entropies of the targets, RankMe and schedules of a finished pretraining by step."""
    run = study.pretraining(encoder)
    table, one = read_history(run), study.settings.pretraining_of(encoder)
    caption = (
        f"{one.n_steps:,} steps of {one.batch_size} patches in "
        f"{table['seconds'].iloc[-1] / 60:.1f} minutes ({of_what(study.settings)}). The entropy "
        "of a single target lies below that of their mean by what the target tells of its image; "
        "RankMe is of patches of the same slides and resolutions that aren't learnt from, and "
        "compares with no other."
    )
    figure, title = draw_history(study, encoder, table), f"Pretraining of {encoder}"
    return Exhibit(f"08_{run.folder.name}", title, caption, table, figure, SECTION)


@in_style
def draw_history(study: Study, encoder: str, table: pd.DataFrame) -> Figure:
    """The figure of `history`, of as much as there is; table: as `read_history` returns it.

    Of a long history each point is a mean, so that a line has SMOOTHED of them at most.
    """
    one = in_full(study.settings.pretraining_of(encoder))
    table = table.assign(left=1 - table["momentum"], uniform=math.log(one.n_prototypes))
    schedules = list(PANELS["share of its highest value"])
    table[schedules] /= table[schedules].max().clip(lower=1e-12)
    if len(table) > 2 * SMOOTHED:
        table = table.groupby(np.arange(len(table)) * SMOOTHED // len(table)).mean()
    figure, axes = plt.subplots(2, 2, figsize=(WIDTH_INCH, 4.8), sharex=True)
    for axis, (label, columns) in zip(axes.flat, PANELS.items(), strict=True):
        long = table.rename(columns=columns).melt("step", columns.values(), "line", label).dropna()
        long = long[long.groupby("line")[label].transform("any")]  # no loss that a method lacks
        sns.lineplot(long, x="step", y=label, hue="line", style="line", errorbar=None, ax=axis)
        axis.set_ylim(0, 1.05 * axis.get_ylim()[1])
        label_ends(axis)
    text = f"{encoder}: {METHODS[one.method].title}, {one.n_steps:,} steps"
    return finished(study, figure, f"{text} of {one.batch_size} patches")


def read_history(run: store.Run) -> pd.DataFrame:
    """How a pretraining went, a row a noted step, as `mfcore.pretraining.pretrain` writes it."""
    return pd.read_json(run.path("history.jsonl"), lines=True, precise_float=True)


def flattened(content: dict) -> dict[str, object]:
    """A pretraining's settings by dotted names."""
    flat = {}
    for key, value in content.items():
        parts = value if key in ("patches", "crops") else {"": value}
        flat |= {f"{key}.{name}".rstrip("."): each for name, each in parts.items()}
    return flat
