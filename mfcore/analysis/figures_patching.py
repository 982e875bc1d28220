"""Figures of patches drawn online: where on a slide they lie, how they spread over the slides, and what they show."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mfcore.analysis import figures
from mfcore.study.config import Settings

N_ACROSS = 6  # patches of one resolution
N_OUTLINED = 40  # patches whose outline is drawn; of the others the centre


def places(
    study: Settings,
    thumbnail: np.ndarray,
    tissue: np.ndarray,
    cell_um: float,
    drawn: pd.DataFrame,
    slides: pd.DataFrame,
    slide_id: str,
    size_px: int,
) -> Figure:
    """On the left a slide, its tissue outlined, and the patches drawn there; on the right the draws by the slides' tissue.

    thumbnail: uint8 (H, W, 3), tissue: bool (H, W), a px of either ``cell_um`` um wide. drawn: slide_id, um_per_px, x_um, y_um
    of each draw. slides: slide_id, tissue_mm2.
    """
    with figures.drawing(study, 1, 2, (figures.WIDTH_INCH, 3.6), width_ratios=(1.15, 1)) as (figure, axes):
        left, right = axes[0]
        height, width = tissue.shape
        left.grid(visible=False)
        left.imshow(thumbnail, extent=(0, width * cell_um, height * cell_um, 0), interpolation="bilinear")
        if tissue.any() and not tissue.all():
            at = (np.arange(width) + 0.5) * cell_um, (np.arange(height) + 0.5) * cell_um
            left.contour(*at, tissue, levels=[0.5], colors="black", linewidths=0.7)
        here = drawn[drawn["slide_id"] == slide_id]
        for i, (um_per_px, these) in enumerate(here.groupby("um_per_px")):
            colour, side = figures.COLOURS[i % len(figures.COLOURS)], size_px * um_per_px
            name = f"{um_per_px:g} µm/px"
            left.plot(these["x_um"], these["y_um"], figures.MARKERS[i], color=colour, markersize=2.5, linestyle="", label=name)
            for x, y in these[["x_um", "y_um"]].head(N_OUTLINED // here["um_per_px"].nunique()).to_numpy():
                left.add_patch(Rectangle((x - side / 2, y - side / 2), side, side, fill=False, edgecolor=colour, linewidth=0.8))
        left.set(xlim=(0, width * cell_um), ylim=(height * cell_um, 0), xlabel="x (µm)", ylabel="y (µm)", title=slide_id)
        counts = drawn["slide_id"].value_counts().reindex(slides["slide_id"], fill_value=0)
        right.plot(slides["tissue_mm2"], counts, "o", color=figures.COLOURS[0], markersize=3.5, linestyle="")
        most = 1.05 * slides["tissue_mm2"].max()
        rate = len(drawn) / max(slides["tissue_mm2"].sum(), 1e-12)
        right.plot([0, most], [0, rate * most], color="0.45", linestyle=(0, (4, 2)), label="in proportion to tissue")
        right.axhline(len(drawn) / max(len(slides), 1), color="0.7", linestyle=(0, (1, 1.5)), label="the same for each slide")
        right.set(xlim=(0, most), ylim=(0, None), xlabel="tissue on the slide (mm²)", ylabel="patches drawn")
        right.set_title(f"{len(drawn):,} patches, {len(slides)} slides")
        figures.legend_below(figure, [left, right], 3)
    return figure


def contact_sheet(study: Settings, images: np.ndarray, drawn: pd.DataFrame) -> Figure:
    """Patches as a network gets them: a row a resolution, N_ACROSS of each, with a bar of a fifth of their side or so.

    images: uint8 (n, H, W, 3), row for row with ``drawn``, whose um_per_px is used.
    """
    resolutions = sorted(drawn["um_per_px"].unique())
    with figures.drawing(study, len(resolutions), N_ACROSS, (0.95 * N_ACROSS + 1.1, 0.95 * len(resolutions) + 0.3)) as (
        figure,
        axes,
    ):
        size_px = images.shape[1]
        for line, um_per_px in zip(axes, resolutions, strict=True):
            for axis in line:
                axis.set_axis_off()
            for axis, i in zip(line, np.flatnonzero(drawn["um_per_px"] == um_per_px), strict=False):
                axis.imshow(images[i], interpolation="lanczos")
            bar_um = nice(size_px * um_per_px / 4)
            figures.scale_bar(line[0], bar_um / um_per_px, size_px, f"{bar_um:g} µm")
            line[0].text(-0.08, 0.5, f"{um_per_px:g} µm/px", transform=line[0].transAxes, ha="right", va="center", fontsize=7)
    return figure


def nice(length: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is no longer."""
    power = 10.0 ** np.floor(np.log10(length))
    return float(max(step * power for step in (1, 2, 5) if step * power <= length * (1 + 1e-9)))
