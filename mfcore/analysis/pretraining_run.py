"""One pretraining: where its patches lie, what they show, their crops, its settings, its cost and how it went.

A source of patches is a `mfcore.pretraining.source.Source`, which analysis is given and never imports.
"""

import math
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy import stats

from mfcore import store
from mfcore.analysis.exhibit import COLOURS, WIDTH_INCH, Exhibit, finished, in_style, of_what
from mfcore.study.config import Pretraining, as_dict
from mfcore.study.pretrained import METHODS, in_full
from mfcore.study.study import Study

SECTION = "Pretraining"
N_ACROSS = 6  # patches of one resolution
N_OUTLINED = 40  # patches whose outline is drawn; of the others the centre
LEAST_EXPECTED = 5  # draws of a slide, for the chi-square test to hold
OF_ONE = {
    "loss (parts unweighted)": {
        "loss": "all",
        "loss_dino": "DINO",
        "loss_ibot": "iBOT",
        "loss_koleo": "KoLeo",
    },
    "entropy (nats)": {"target_entropy": "mean of the targets", "teacher_entropy": "single targets", "uniform": "uniform"},
    "RankMe of the teacher": {"rankme": ""},
    "share of its highest value": {
        "learning_rate": "learning rate",
        "weight_decay": "weight decay",
        "teacher_temperature": "teacher's temperature",
        "left": "1 − momentum",
    },
}  # by axis, the columns of a history and their labels
DASHES = ("-", "--", ":", "-.")
SMOOTHED = 40  # parts into which a long history falls; each point of a line is the mean of one


def slides(study: Study, source) -> Exhibit:
    """The slides that patches are drawn from, their tissue, and what failed: as `Source.overview`."""
    table = source.overview()
    caption = (
        f"The slides, their tissue, and their share of the draws ({of_what(study.settings)}). Of {len(table)} slides "
        f"{(table['failure'] != '').sum()} failed, in part or as a whole; {table['tissue_mm2'].sum():.3g} mm² are tissue."
    )
    return Exhibit("07_online_slides", "Slides and their tissue", caption, table.drop(columns="file"), None, SECTION)


@in_style
def places(study: Study, source, n_drawn: int) -> Exhibit:
    """Where the first ``n_drawn`` patches of a source lie, none of them read: on a slide, and over the slides' tissue."""
    table, overview, size_px = source.table(range(n_drawn)), source.overview(), source.settings.size_px
    slide_id = str(table["slide_id"].mode()[0])
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH_INCH, 3.9), width_ratios=(1.15, 1))
    _on_slide(left, *source.thumbnail(slide_id), table[table["slide_id"] == slide_id], size_px)
    left.set_title(slide_id)
    counts = table["slide_id"].value_counts().reindex(overview["slide_id"], fill_value=0)
    right.plot(overview["tissue_mm2"], counts, "o", color=COLOURS[0], markersize=3.5)
    rate = len(table) / max(overview["tissue_mm2"].sum(), 1e-12)
    right.axline((0, 0), slope=rate, color="0.45", linestyle="--", label="in proportion to tissue")
    right.axhline(len(table) / len(overview), color="0.7", linestyle=":", label="the same for each slide")
    right.set(xlim=(0, None), ylim=(0, None), xlabel="tissue on the slide (mm²)", ylabel="patches drawn")
    right.set_title(f"{len(table):,} patches, {len(overview)} slides")
    figure = finished(study, figure, n_columns=3)
    caption = (
        f"Left: the patches that fell on {slide_id}, the outlines of some {N_OUTLINED} and the centres of the others, the "
        f"tissue outlined in black; right: draws by slide ({of_what(study.settings)}). {len(table):,} draws of {size_px} px, "
        f"uniform over {source.settings.uniform_over}, with {100 * table['tissue'].min():.0f} % tissue or more. "
        f"Draws by slide against what is asked: {against(table, overview)}."
    )
    return Exhibit("07_online_places", "Where patches are drawn", caption, table, figure, SECTION)


def _on_slide(axis: Axes, thumbnail: np.ndarray, tissue: np.ndarray, cell_um: float, drawn: pd.DataFrame, size_px: int) -> None:
    """A slide with its tissue and the patches drawn there.

    thumbnail: uint8 (H, W, 3), tissue: bool (H, W), a px of either ``cell_um`` um wide. drawn: um_per_px, x_um, y_um.
    """
    height, width = tissue.shape
    axis.grid(visible=False)
    axis.imshow(thumbnail, extent=(0, width * cell_um, height * cell_um, 0), interpolation="bilinear")
    if tissue.any() and not tissue.all():
        at = (np.arange(width) + 0.5) * cell_um, (np.arange(height) + 0.5) * cell_um
        axis.contour(*at, tissue, levels=[0.5], colors="black", linewidths=0.7)
    drawn = drawn.assign(resolution=drawn["um_per_px"].map("{:g} µm/px".format)).sort_values("um_per_px", kind="stable")
    colours = dict(zip(drawn["resolution"].unique(), COLOURS, strict=False))
    sns.scatterplot(drawn, x="x_um", y="y_um", hue="resolution", style="resolution", palette=colours, s=12, ax=axis)
    axis.get_legend().remove()
    for row in drawn.groupby("resolution").head(N_OUTLINED // len(colours)).itertuples():
        side = size_px * row.um_per_px
        corner, style = (row.x_um - side / 2, row.y_um - side / 2), {"fill": False, "edgecolor": colours[row.resolution]}
        axis.add_patch(Rectangle(corner, side, side, linewidth=0.8, **style))
    axis.set(xlim=(0, width * cell_um), ylim=(height * cell_um, 0), xlabel="x (µm)", ylabel="y (µm)")


def against(drawn: pd.DataFrame, overview: pd.DataFrame) -> str:
    """How the draws by slide compare with what is asked: chi-square against each slide's ``draw_share``."""
    overview = overview[overview["tissue_mm2"] > 0]
    expected = (overview["draw_share"] / overview["draw_share"].sum() * len(drawn)).to_numpy()
    counts = drawn["slide_id"].value_counts().reindex(overview["slide_id"], fill_value=0).to_numpy()
    if len(expected) < 2 or expected.min() < LEAST_EXPECTED:
        return "too few for a test"
    test = stats.chisquare(counts, expected)
    return f"chi-square {test.statistic:.1f} at {len(expected) - 1} degrees of freedom (p = {test.pvalue:.2f})"


@in_style
def patches(study: Study, images: np.ndarray, table: pd.DataFrame) -> Exhibit:
    """Patches as a network gets them: a row a resolution, N_ACROSS of each.

    images: uint8 (n, H, W, 3), row for row with ``table``, whose um_per_px is used.
    """
    resolutions, size_px = sorted(table["um_per_px"].unique()), images.shape[1]
    size_inch = (0.95 * N_ACROSS + 1.1, 0.95 * len(resolutions) + 0.6)
    figure, axes = plt.subplots(len(resolutions), N_ACROSS, squeeze=False, figsize=size_inch)
    for line, um_per_px in zip(axes, resolutions, strict=True):
        for axis in line:
            axis.set_axis_off()
        for axis, i in zip(line, np.flatnonzero(table["um_per_px"] == um_per_px), strict=False):
            axis.imshow(images[i], interpolation="lanczos")
        text = f"{um_per_px:g} µm/px,\n{size_px * um_per_px:g} µm wide"
        line[0].text(-0.08, 0.5, text, transform=line[0].transAxes, ha="right", va="center", fontsize=7)
    caption = (
        f"Some of {len(table):,} patches as a network gets them, from {table['slide_id'].nunique()} slides "
        f"({of_what(study.settings)}). None is stored."
    )
    return Exhibit("07_online_patches", "Patches as they are drawn", caption, table, finished(study, figure), SECTION)


@in_style
def crops(study: Study, encoder: str, images: np.ndarray, big: np.ndarray, small: np.ndarray, table: pd.DataFrame) -> Exhibit:
    """What student and teacher are shown: a row a patch, the patch, its two global and its local crops.

    images: uint8 (n, size_px, size_px, 3). big: global crops, uint8 (2, n, g, g, 3); small: local crops, uint8
    (n_local, n, l, l, 3). table: where the patches lie.
    """
    views = {"patch": images} | {f"global {i + 1}": crop for i, crop in enumerate(big)}
    views |= {f"local {i + 1}": crop for i, crop in enumerate(small)}
    side_inch = min(0.95, WIDTH_INCH / len(views))
    size_inch = (max(5, side_inch * len(views)), side_inch * len(images) + 0.6)
    figure, axes = plt.subplots(len(images), len(views), squeeze=False, figsize=size_inch)
    for column, (label, crop) in zip(axes.T, views.items(), strict=True):
        for axis, image in zip(column, crop, strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set_axis_off()
        column[0].set_title(f"{label}\n{crop.shape[2]} px", fontsize=7, fontweight="normal", loc="center")
    figure = finished(study, figure, encoder)
    caption = (
        f"Patches of {encoder}, drawn online, and their crops, coloured as the network gets them "
        f"({of_what(study.settings)}). The teacher sees the global crops, the student these and the local ones."
    )
    return Exhibit(f"08_crops_{store.file_name(encoder)}", f"What {encoder} is shown", caption, table, figure, SECTION)


# ---- the training ----


def settings(study: Study, encoder: str) -> Exhibit:
    """How an encoder is pretrained: ``setting, value, from``, the study, the method's authors or a default."""
    one, rows = study.settings.pretraining_of(encoder), []
    said, full, plain = (flattened(as_dict(each)) for each in (one, in_full(one), Pretraining("-")))
    for key, value in full.items():
        origin = "default" if said[key] == plain[key] else "the study"
        if said[key] is None and value is not None:
            is_theirs = _text(METHODS[one.method].published.get(key.rpartition(".")[2])) == _text(value)
            origin = f"the authors of {METHODS[one.method].title}" if is_theirs else "default for small trainings"
        rows.append((key, _text(value), origin))
    table = pd.DataFrame(rows, columns=["setting", "value", "from"])
    caption = f"How {encoder} is pretrained, and who says so ({of_what(study.settings)})."
    return Exhibit(f"08_settings_{store.file_name(encoder)}", f"Settings of {encoder}", caption, table, None, SECTION)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {content}" for key, content in value.items()) or "–"
    return (
        ", ".join(map(str, value)) if isinstance(value, list | tuple) else str("–" if value is None or value == "" else value)
    )


def cost(study: Study, encoder: str) -> Exhibit:
    """What a finished pretraining took and from how much, as its record has it: ``fact, value``."""
    facts = study.pretraining(encoder).record["facts"]
    table = pd.DataFrame([(fact, _text(value)) for fact, value in facts.items()], columns=["fact", "value"])
    caption = f"What the pretraining of {encoder} took ({of_what(study.settings)})."
    return Exhibit(f"08_cost_{store.file_name(encoder)}", f"Cost of {encoder}", caption, table, None, SECTION)


def history(study: Study, encoder: str) -> Exhibit:
    """Loss, entropies of the targets, RankMe and schedules of one finished pretraining over the steps."""
    run = study.pretraining(encoder)
    table, one = read_history(run), study.settings.pretraining_of(encoder)
    rank, minutes = table["rankme"].dropna(), table["seconds"].iloc[-1] / 60
    caption = (
        f"{one.n_steps:,} steps of {one.batch_size} patches in {minutes:.1f} minutes ({of_what(study.settings)}). The entropy "
        "of a single target lies below that of their mean by what the target tells of its image; RankMe is of patches of the "
        "same slides and resolutions that aren't learnt from, and compares with no other. The loss went from "
        f"{table['loss'].iloc[0]:.2f} to {table['loss'].iloc[-1]:.2f}, RankMe from {rank.iloc[0]:.1f} to {rank.iloc[-1]:.1f}."
    )
    return Exhibit(
        f"08_{run.folder.name}", f"Pretraining of {encoder}", caption, table, draw_history(study, encoder, table), SECTION
    )


@in_style
def draw_history(study: Study, encoder: str, table: pd.DataFrame) -> Figure:
    """The figure of `history`, of as much as there is; table: as `read_history` returns it.

    Of a long history each point is a mean, so that a line has SMOOTHED of them at most.
    """
    one = in_full(study.settings.pretraining_of(encoder))
    table = table.assign(left=1 - table["momentum"], uniform=math.log(one.n_prototypes))
    schedules = list(OF_ONE["share of its highest value"])
    table[schedules] /= table[schedules].max().clip(lower=1e-12)
    if len(table) > 2 * SMOOTHED:
        table = table.groupby(np.arange(len(table)) * SMOOTHED // len(table)).mean()
    figure, axes = plt.subplots(2, 2, figsize=(WIDTH_INCH, 4.8), sharex=True)
    for axis, (label, columns) in zip(axes.flat, OF_ONE.items(), strict=True):
        known = {key: part for key in columns if ((part := table.dropna(subset=key))[key] != 0).any()}
        lines = [
            axis.plot(part["step"], part[key], linestyle=dash)[0]
            for dash, (key, part) in zip(DASHES, known.items(), strict=False)
        ]
        axis.set(xlabel="step", ylabel=label, ylim=(0, None))
        if len(columns) > 1:
            axis.set_ylim(0, 1.45 * axis.get_ylim()[1])  # the legend stands above the lines
            axis.legend(lines, [columns[key] for key in known], fontsize=7, loc="upper center", ncols=2)
    text = f"{encoder}: {METHODS[one.method].title}, {one.n_steps:,} steps of {one.batch_size} patches"
    return finished(study, figure, text)


def read_history(run: store.Run) -> pd.DataFrame:
    """How a pretraining went, a row a step that was noted, as `mfcore.pretraining.pretrain` writes ``history.jsonl``."""
    return pd.read_json(run.path("history.jsonl"), lines=True, precise_float=True)


def flattened(content: Mapping, where: str = "") -> dict[str, object]:
    """A nested mapping with dotted names, down to what isn't one of the config's own parts."""
    flat: dict[str, object] = {}
    for key, value in content.items():
        flat |= flattened(value, f"{key}.") if key in ("patches", "crops") else {f"{where}{key}": value}
    return flat
