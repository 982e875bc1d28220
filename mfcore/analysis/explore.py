"""Looking at single patches: a slide with its annotations, patches by score, an embedding's map,
two arms.

Each function makes a still exhibit; the functions ``browse_...`` show the same with controls, each
of which replaces the picture below them. They return a widget; None where nobody looks on.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from mfcore import store
from mfcore.analysis.exhibit import (
    WIDTH_INCH,
    Exhibit,
    counted,
    finished,
    image_rows,
    in_style,
    is_watched,
    of_what,
    show,
)
from mfcore.analysis.first_look import SHOWN_PX, by_group, class_colours, classes
from mfcore.analysis.scores import common, full_size
from mfcore.data import patches
from mfcore.data.slides.reader import SlideError
from mfcore.measures import raters
from mfcore.streams import generator
from mfcore.study import data as study_data
from mfcore.study.predictions import ALL
from mfcore.study.study import Study

ANY = "any"
N_ACROSS = 8  # patches in a row
N_MAPPED = 1500  # patches of a map; t-SNE takes a minute for more
POINTS = {"s": 9, "linewidth": 0, "alpha": 0.8}  # of a map
OVERVIEW_PX = 900  # longer side of a slide's picture
FIELDS_UM = (20, 50, 100, 200, 500, 1000, 2000)
SECTION = "Single patches"
# strata of `raters.stratum`
AGREEMENT = {ANY: "", "raters agree": raters.UNANIMOUS, "raters disagree": raters.CONTESTED}


def best_arms(study: Study) -> list[str]:
    """The arms by their mean AUROC with all the data, the best first."""
    means = common(study.scores).groupby("arm")["auroc"].mean()
    return means.sort_values(ascending=False).index.tolist()


# ---- a slide ----


def _annotations(study: Study, slide_id: str) -> pd.DataFrame:
    """The labels of a slide; raises ValueError for a slide that the study doesn't have."""
    rows = study.labels[study.labels["slide_id"] == slide_id]
    if rows.empty:
        example = study.labels["slide_id"].iloc[0]
        raise ValueError(
            f"study {study.name!r} has no slide {slide_id!r}; name one that it has, as {example!r}"
        )
    return rows


@in_style
def slide(
    study: Study,
    slide_id: str,
    folder: str | Path,
    centre_l0_px: tuple[float, float] | None = None,
    field_um: float | None = None,
) -> Exhibit:
    """A slide, or a field of ``field_um`` around a centre, with its annotations.

    folder: of the study's data. Raises SlideError where the slide can't be read, ValueError for a
    slide that the study doesn't have.
    """
    rows, names = _annotations(study, slide_id), classes(study.settings)
    with study_data.reading_of(study.settings).open(Path(folder), rows) as opened:
        if field_um is None or centre_l0_px is None:
            field_um = max(opened.size_px) * opened.um_per_px
            centre_l0_px = opened.size_px[0] / 2, opened.size_px[1] / 2
        image = opened.read(*centre_l0_px, OVERVIEW_PX, field_um / OVERVIEW_PX)
        half = field_um / opened.um_per_px / 2
    x, y = centre_l0_px
    inside = rows["x_l0_px"].between(x - half, x + half) & rows["y_l0_px"].between(
        y - half, y + half
    )
    shown = rows[inside].assign(label=rows["label"].map(names))
    figure, axis = plt.subplots(figsize=(WIDTH_INCH, WIDTH_INCH))
    axis.imshow(image, extent=(x - half, x + half, y + half, y - half))
    sns.scatterplot(
        shown, x="x_l0_px", y="y_l0_px", hue="label", palette=class_colours(study.settings), ax=axis
    )
    axis.legend_ = None  # `finished` sets one below the picture
    caption = (
        f"Slide {slide_id} with its annotations, a field of {field_um:,.0f} µm "
        f"({of_what(study.settings)}; {counted(len(shown), 'annotation')})."
    )
    table = shown[["patch_id", "x_l0_px", "y_l0_px", "label"]]
    name = f"12_slide_{store.file_name(slide_id)}_{field_um:.0f}um"
    return Exhibit(name, "A slide", caption, table, finished(study, figure), SECTION)


def slides(study: Study, folder: str | Path) -> Iterator[Exhibit]:
    """The slide with the most annotations, whole and around one of its figures.

    Nothing where the data are patch images, or their folder isn't there.
    """
    if not (study.settings.source.has_slides and Path(folder).is_dir()):
        return
    slide_id = str(study.labels["slide_id"].value_counts().index[0])
    rows = study.labels[study.labels["slide_id"] == slide_id].nlargest(1, "label", keep="all")
    places = rows[["x_l0_px", "y_l0_px"]]
    middle = ((places - places.mean()) ** 2).sum(axis=1).idxmin()  # not at the slide's edge
    yield slide(study, slide_id, folder)
    yield slide(study, slide_id, folder, tuple(places.loc[middle]), 200)


# ---- patches by score ----


def scored(
    study: Study,
    arm: str,
    domain: str = ALL,
    fold: int | None = None,
    agreement: str = ANY,
) -> pd.DataFrame:
    """Tested patches with their mean ``score`` over folds, by an arm trained on all domains with
    all the data.

    fold: one of them; None for all. agreement: a key of AGREEMENT. Columns ``patch_id, slide_id,
    domain, label, score, n_folds, error``; ``error``: distance of the score from the label. Raises
    ValueError for an arm that has predicted nothing.
    """
    tested = full_size(study.predictions)
    if arm not in (arms := list(tested["arm"].unique())):
        raise ValueError(f"arm {arm!r} has predicted nothing; choose one of {arms}")
    tested = tested[(tested["arm"] == arm) & ((fold is None) | (tested["fold"] == fold))]
    by_patch = tested.groupby("patch_id")
    table = by_patch.agg(score=("score", "mean"), n_folds=("fold", "nunique")).reset_index()
    columns = ["patch_id", "slide_id", "domain", "label", "votes"]
    table = table.merge(study.labels[columns], on="patch_id", validate="one_to_one")
    stratum = AGREEMENT[agreement]
    table = table[
        ((domain == ALL) | (table["domain"] == domain))
        & ((stratum == "") | (raters.stratum(table) == stratum))
    ]
    error = (table["score"] - table["label"]).abs()
    return table.drop(columns="votes").assign(error=error).reset_index(drop=True)


@in_style
def ranked(study: Study, arm: str, **filters: object) -> Exhibit:
    """The look-alikes with the highest scores, the figures with the lowest, and the surest of each
    class.

    filters: of `scored`.
    """
    table, names = scored(study, arm, **filters), classes(study.settings)
    order, rows = table.sort_values("error", ascending=False), {}
    for label, wrong, right in ((0, "hard", "easy"), (1, "missed", "sure")):
        of_class = order[order["label"] == label]
        rows[f"{wrong}\n{names[label]}s"] = of_class
        rows[f"{right}\n{names[label]}s"] = of_class[::-1]
    chosen = [f", {key} {value}" for key, value in filters.items() if value not in (None, ALL, ANY)]
    caption = (
        f"Tested patches of the highest and the lowest error by {arm}, worst or surest first "
        f"({of_what(study.settings)}; {len(table):,} patches{''.join(chosen)})."
    )
    name = f"12_ranked_{store.file_name(arm)}"
    return _patches(study, name, "Patches by score", caption, order, rows)


def _patches(
    study: Study,
    name: str,
    title: str,
    caption: str,
    table: pd.DataFrame,
    rows: dict[str, pd.DataFrame],
) -> Exhibit:
    """An exhibit of the first patches of each of ``rows``."""
    images = {of: _images(study, part.head(N_ACROSS)) for of, part in rows.items()}
    figure = finished(study, image_rows(images, N_ACROSS))
    return Exhibit(name, title, caption, table, figure, SECTION)


def _images(study: Study, rows: pd.DataFrame) -> np.ndarray:
    """The central px of some patches, uint8 (n, SHOWN_PX, SHOWN_PX, 3)."""
    labels, stored = patches.load(study.patches)
    at = pd.Series(np.arange(len(labels)), index=labels["patch_id"]).loc[rows["patch_id"]]
    side = min(SHOWN_PX, stored.shape[1])
    return patches.centre_crop(stored[at.to_numpy()], side)


# ---- the map of an embedding ----


def mapped(study: Study, encoder: str) -> pd.DataFrame:
    """Two dimensions of an embedding by t-SNE, of at most N_MAPPED patches: ``patch_id, slide_id,
    domain, label, x, y``.
    """
    features, patch_ids = store.read_embeddings(study.embeddings(encoder))
    rng = generator(study.seed, "map", encoder)
    rows = np.sort(rng.permutation(len(features))[:N_MAPPED])
    reduced = PCA(min(30, features.shape[1], len(rows)), random_state=0).fit_transform(
        features[rows]
    )
    perplexity = min(30, (len(rows) - 1) / 3)
    places = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(reduced)
    table = pd.DataFrame({"patch_id": patch_ids[rows], "x": places[:, 0], "y": places[:, 1]})
    return table.merge(study.labels[["patch_id", "slide_id", "domain", "label"]], on="patch_id")


@in_style
def map_of(study: Study, encoder: str) -> Exhibit:
    """An embedding in two dimensions, by class and by domain."""
    table = mapped(study, encoder)
    grid = by_group(study, table, "x", "y")
    caption = (
        f"The embedding of {encoder} in two dimensions by t-SNE, which keeps neighbours and not"
        f" distances ({of_what(study.settings)}; {len(table):,} patches)."
    )
    name, figure = f"12_map_{store.file_name(encoder)}", finished(study, grid.figure, encoder, 3)
    return Exhibit(name, "Map of an embedding", caption, table, figure, SECTION)


@in_style
def nearest(study: Study, table: pd.DataFrame, x: float, y: float) -> Exhibit:
    """The patches nearest to a point of a map; table: of `mapped`."""
    names = classes(study.settings)
    near = table.loc[np.hypot(table["x"] - x, table["y"] - y).nsmallest(N_ACROSS).index]
    layout = [["map", *line] for line in np.arange(N_ACROSS).reshape(2, -1).tolist()]
    figure, axes = plt.subplot_mosaic(layout, figsize=(7.2, 3.4), width_ratios=[4, 1, 1, 1, 1])
    axis = axes.pop("map")
    shown = table.assign(label=table["label"].map(names))
    colours = class_colours(study.settings)
    sns.scatterplot(shown, x="x", y="y", hue="label", palette=colours, **POINTS, ax=axis)
    axis.scatter(near["x"], near["y"], s=30, facecolor="none", edgecolor="black", linewidth=0.8)
    axis.plot(x, y, "+k", markersize=12)
    axis.get_legend().remove()  # `finished` sets one below the picture
    for place in axes.values():
        place.set_axis_off()
    for number, image in enumerate(_images(study, near)):
        axes[number].imshow(image)
        axes[number].set_title(names[near["label"].iloc[number]], fontsize=7)
    caption = f"Patches nearest to the cross, circled on the map ({of_what(study.settings)})."
    finished(study, figure)
    return Exhibit("12_nearest", "Nearest patches", caption, near, figure, SECTION)


# ---- two arms ----


@in_style
def disagreement(study: Study, first: str, second: str) -> Exhibit:
    """Scores of two arms side by side, and the patches on which they differ most."""
    columns = ["patch_id", "slide_id", "domain", "label"]
    one, other = (scored(study, arm)[[*columns, "score"]] for arm in (first, second))
    table = one.merge(other, on=columns, suffixes=("_1", "_2"))
    table = table.assign(difference=table["score_1"] - table["score_2"]).sort_values("difference")
    rows = {}
    for label, name in classes(study.settings).items():
        of_class = table[table["label"] == label]
        rows[f"{name}s\nhigher by\n{first}"] = of_class[::-1]
        rows[f"{name}s\nhigher by\n{second}"] = of_class
    caption = (
        f"Tested patches on which {first} and {second} differ most, the largest difference first"
        f" ({of_what(study.settings)}; {len(table):,} patches, correlation of the scores"
        f" {table['score_1'].corr(table['score_2']):.2f})."
    )
    name = f"12_arms_{store.file_name(f'{first} {second}')}"
    return _patches(study, name, "Two arms", caption, table, rows)


# ---- with controls ----


def _interactive(draw: Callable[..., object], **controls: object) -> object:
    """Controls, as `ipywidgets.interactive` makes them, and below them what ``draw`` returns.

    None where nobody looks on.
    """
    if not is_watched():
        return None
    from ipywidgets import interactive

    widget = interactive(draw, {"auto_display": True}, **controls)
    for control in widget.children[:-1]:
        if control.has_trait("continuous_update"):
            control.continuous_update = False  # else each step of a drag is drawn, late
    return widget


def _arms(study: Study, first: str) -> list[str]:
    """The `best_arms`, with ``first`` before them, which a control then shows."""
    return sorted(best_arms(study), key=lambda arm: arm != first)


def browse_slide(study: Study, folder: str | Path) -> object:
    """`slide` around any annotation, 20 um to 2 mm; None where `slides` finds nothing."""
    if not (study.settings.source.has_slides and Path(folder).is_dir()):
        return None

    def draw(slide_id: str, annotation: int, field_um: float) -> object:
        rows = _annotations(study, slide_id)
        at = rows.iloc[min(annotation, len(rows)) - 1]
        try:
            return slide(study, slide_id, folder, (at["x_l0_px"], at["y_l0_px"]), field_um)
        except SlideError as error:  # as where some slides were not downloaded
            return show(str(error))

    counts = study.labels["slide_id"].value_counts()
    fields = sorted(FIELDS_UM, key=lambda field: field != 200)
    return _interactive(
        draw, slide_id=list(counts.index), annotation=(1, int(counts.iloc[0])), field_um=fields
    )


def browse_ranked(study: Study, arm: str) -> object:
    """`ranked` with controls for arm, domain, fold and the raters' agreement."""

    def draw(arm: str, **filters: object) -> Exhibit:
        return ranked(study, arm, **filters)

    folds = [("all", None), *((str(fold), fold) for fold in range(study.settings.splits.n_folds))]
    domains = [ALL, *sorted(study.labels["domain"].unique())]
    controls = {"domain": domains, "fold": folds, "agreement": list(AGREEMENT)}
    return _interactive(draw, arm=_arms(study, arm), **controls)


def browse_map(study: Study, table: pd.DataFrame) -> object:
    """A map with the patches nearest to a chosen point; table: of `mapped`."""
    ends = {axis: (float(table[axis].min()), float(table[axis].max())) for axis in "xy"}
    return _interactive(lambda x, y: nearest(study, table, x, y), **ends)


def browse_disagreement(study: Study, first: str, second: str) -> object:
    """`disagreement` of any two arms."""

    def draw(first: str, second: str) -> object:
        is_one = first == second
        return show("Choose two different arms.") if is_one else disagreement(study, first, second)

    return _interactive(draw, first=_arms(study, first), second=_arms(study, second))
