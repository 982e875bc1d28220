"""Looking at single patches: a slide with its annotations, patches by score, an embedding's map,
two arms.

Each function makes a still exhibit; the functions ``browse_...`` show the same with controls, each
of which replaces the picture below them. They return a widget; None where nobody looks on.
"""

import functools
import importlib.util
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
    Exhibit,
    counted,
    finished,
    image_rows,
    in_style,
    is_watched,
    of_what,
    show,
)
from mfcore.analysis.first_look import SHOWN_PX, class_colours, classes
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
# strata of `raters.stratum`
AGREEMENT = {ANY: "", "raters agree": raters.UNANIMOUS, "raters disagree": raters.CONTESTED}


def best_arms(study: Study) -> list[str]:
    """The arms by their mean AUROC with all the data, the best first."""
    means = common(study.scores).groupby("arm")["auroc"].mean()
    return means.sort_values(ascending=False).index.tolist()


# ---- a slide ----


def view(
    study: Study,
    slide_id: str,
    folder: str | Path,
    centre_l0_px: tuple[float, float],
    field_um: float,
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """A square of a slide, uint8 (OVERVIEW_PX, OVERVIEW_PX, 3), and its borders left, right,
    bottom, top in level-0 px.

    folder: of the study's data. Raises SlideError where the slide can't be read, ValueError for a
    slide that the study doesn't have.
    """
    rows = _annotations(study, slide_id)
    with study_data.reading_of(study.settings).open(Path(folder), rows) as slide:
        image = slide.read(*centre_l0_px, OVERVIEW_PX, field_um / OVERVIEW_PX)
        half = field_um / slide.um_per_px / 2
    x, y = centre_l0_px
    return image, (x - half, x + half, y + half, y - half)


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

    folder: of the study's data. Raises as `view`.
    """
    rows = _annotations(study, slide_id)
    if field_um is None or centre_l0_px is None:
        with study_data.reading_of(study.settings).open(Path(folder), rows) as opened:
            width, height = opened.size_px
            field_um = max(width, height) * opened.um_per_px
        centre_l0_px = width / 2, height / 2
    image, borders = view(study, slide_id, folder, centre_l0_px, field_um)
    figure, axis = plt.subplots(figsize=(7.2, 7.2))
    axis.imshow(image, extent=borders)
    names = classes(study.settings)
    left, right, bottom, top = borders
    inside = rows["x_l0_px"].between(left, right) & rows["y_l0_px"].between(top, bottom)
    shown = rows[inside].assign(label=rows["label"].map(names))
    style = {"data": shown, "x": "x_l0_px", "y": "y_l0_px", "hue": "label", "style": "label"}
    order = [names[0], names[1]]
    style |= {"palette": class_colours(study.settings), "hue_order": order, "style_order": order}
    sns.scatterplot(**style, s=22, linewidth=0.6, edgecolor="white", ax=axis)
    axis.set(xlabel="level-0 px", ylabel="level-0 px", xlim=(left, right), ylim=(bottom, top))
    axis.grid(visible=False)
    if legend := axis.get_legend():  # `finished` sets one below the picture
        legend.remove()
    field = f"{field_um / 1000:.1f} mm" if field_um >= 1000 else f"{field_um:.0f} µm"
    found = [counted(int(shown["label"].eq(names[i]).sum()), names[i]) for i in (1, 0)]
    caption = (
        f"Slide {slide_id} with its annotations, a field of {field}"
        f" ({of_what(study.settings)}; {', '.join(found)})."
    )
    table = shown[["patch_id", "x_l0_px", "y_l0_px", "label"]]
    name = f"12_slide_{store.file_name(slide_id)}_{field_um:.0f}um"
    return Exhibit(name, "A slide", caption, table, finished(study, figure), "Single patches")


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
    tested = tested[tested["arm"] == arm]
    if fold is not None:
        tested = tested[tested["fold"] == fold]
    by_patch = tested.groupby("patch_id")
    table = by_patch.agg(score=("score", "mean"), n_folds=("fold", "nunique")).reset_index()
    columns = ["patch_id", "slide_id", "domain", "label", "votes"]
    table = table.merge(study.labels[columns], on="patch_id", validate="one_to_one")
    if domain != ALL:
        table = table[table["domain"] == domain]
    if stratum := AGREEMENT[agreement]:
        table = table[raters.stratum(table) == stratum]
    error = (table["score"] - table["label"]).abs()
    return table.drop(columns="votes").assign(error=error).reset_index(drop=True)


@in_style
def ranked(study: Study, arm: str, **filters: object) -> Exhibit:
    """The look-alikes with the highest scores, the figures with the lowest, and the surest of each
    class.

    filters: of `scored`.
    """
    table, names = scored(study, arm, **filters), classes(study.settings)
    rows = {}
    for label, wrong, right in ((0, "hard", "easy"), (1, "missed", "sure")):
        of_class = table[table["label"] == label].sort_values("error", ascending=False)
        rows[f"{wrong}\n{names[label]}s"] = _images(study, of_class.head(N_ACROSS))
        rows[f"{right}\n{names[label]}s"] = _images(study, of_class[::-1].head(N_ACROSS))
    chosen = ", ".join(
        f"{key}: {value}" for key, value in filters.items() if value not in (None, ALL, ANY)
    )
    caption = (
        f"Tested patches of the highest and the lowest error by {arm}, worst or surest first"
        f"{f' ({chosen})' if chosen else ''} ({of_what(study.settings)}; {len(table):,} patches)."
    )
    order = table.sort_values("error", ascending=False)
    name = f"12_ranked_{store.file_name(arm)}"
    figure = finished(study, image_rows(rows, N_ACROSS))
    return Exhibit(name, "Patches by score", caption, order, figure, "Single patches")


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
    table, names = mapped(study, encoder), classes(study.settings)
    shown = table.assign(label=table["label"].map(names))
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.6), sharex=True, sharey=True)
    for axis, hue in zip(axes, ("label", "domain"), strict=True):
        colours = class_colours(study.settings) if hue == "label" else None
        sns.scatterplot(shown, x="x", y="y", hue=hue, palette=colours, **POINTS, ax=axis)
        title = f"by {'class' if hue == 'label' else hue}"
        axis.set(xlabel="", ylabel="", xticks=[], yticks=[], title=title)
        sns.move_legend(axis, "upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, title="")
    caption = (
        f"The embedding of {encoder} in two dimensions by t-SNE, which keeps neighbours and not"
        f" distances ({of_what(study.settings)}; {len(table):,} patches)."
    )
    name = f"12_map_{store.file_name(encoder)}"
    return Exhibit(
        name, "Map of an embedding", caption, table, finished(study, figure), "Single patches"
    )


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
    return Exhibit("12_nearest", "Nearest patches", caption, near, figure, "Single patches")


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
        rows[f"{name}s\nhigher by\n{first}"] = _images(study, of_class[::-1].head(N_ACROSS))
        rows[f"{name}s\nhigher by\n{second}"] = _images(study, of_class.head(N_ACROSS))
    caption = (
        f"Tested patches on which {first} and {second} differ most, the largest difference first"
        f" ({of_what(study.settings)}; {len(table):,} patches, correlation of the scores"
        f" {table['score_1'].corr(table['score_2']):.2f})."
    )
    name = f"12_arms_{store.file_name(f'{first} {second}')}"
    figure = finished(study, image_rows(rows, N_ACROSS))
    return Exhibit(name, "Two arms", caption, table, figure, "Single patches")


# ---- with controls ----


def _where_watched(browse: Callable[..., object]) -> Callable[..., object]:
    """Of a function that makes controls: None where nobody looks on, a line where they lack."""

    @functools.wraps(browse)
    def made(*args: object) -> object:
        if not is_watched():
            return None
        if importlib.util.find_spec("ipywidgets") is None:
            return show("*Controls need a package: `pip install ipywidgets`.*")
        return browse(*args)

    return made


def _interactive(draw: Callable[..., object], *given: object, **controls: object) -> object:
    """Controls, widgets of ipywidgets, and below them what ``draw`` makes of their values."""
    from ipywidgets import interactive

    for control in controls.values():
        control.layout.width = "420px"  # long names of arms and domains
        if control.has_trait("continuous_update"):
            control.continuous_update = False  # else each step of a drag is drawn, late
    return interactive(lambda **values: draw(*given, **values), {"auto_display": True}, **controls)


@_where_watched
def browse_slide(study: Study, folder: str | Path) -> object:
    """`slide` around any annotation, 20 um to 2 mm; None where `slides` finds nothing."""
    if not (study.settings.source.has_slides and Path(folder).is_dir()):
        return None
    from ipywidgets import Dropdown, FloatLogSlider, IntSlider

    def draw(slide_id: str, annotation: int, field_um: float) -> object:
        rows = _annotations(study, slide_id)
        at = rows.iloc[min(annotation, len(rows)) - 1]
        try:
            return slide(study, slide_id, folder, (at["x_l0_px"], at["y_l0_px"]), field_um)
        except SlideError as error:  # as where some slides were not downloaded
            return show(str(error))

    counts = study.labels["slide_id"].value_counts()
    which = Dropdown(options=sorted(counts.index), value=counts.index[0], description="slide")
    place = IntSlider(min=1, max=int(counts.iloc[0]), description="annotation")
    field = FloatLogSlider(200, min=1.3, max=3.3, description="field, µm", readout_format=".0f")
    controls = _interactive(draw, slide_id=which, annotation=place, field_um=field)
    which.observe(lambda change: place.set_trait("max", int(counts[change["new"]])), "value")
    return controls


@_where_watched
def browse_ranked(study: Study, arm: str) -> object:
    """`ranked` with controls for arm, domain, fold and the raters' agreement."""
    from ipywidgets import Dropdown

    domains = [ALL, *sorted(study.labels["domain"].unique())]
    folds = [("all", None), *((str(fold), fold) for fold in range(study.settings.splits.n_folds))]
    return _interactive(
        ranked,
        study,
        arm=Dropdown(options=best_arms(study), value=arm),
        domain=Dropdown(options=domains),
        fold=Dropdown(options=folds),
        agreement=Dropdown(options=list(AGREEMENT)),
    )


@_where_watched
def browse_map(study: Study, table: pd.DataFrame) -> object:
    """A map with the patches nearest to a chosen point; table: of `mapped`."""
    from ipywidgets import FloatSlider

    def slider(axis: str) -> FloatSlider:
        low, middle, high = table[axis].quantile([0, 0.5, 1])
        return FloatSlider(middle, min=low, max=high, description=axis, readout_format=".0f")

    return _interactive(nearest, study, table, x=slider("x"), y=slider("y"))


@_where_watched
def browse_disagreement(study: Study, first: str, second: str) -> object:
    """`disagreement` of any two arms."""
    from ipywidgets import Dropdown

    def draw(first: str, second: str) -> object:
        is_one = first == second
        return show("Choose two different arms.") if is_one else disagreement(study, first, second)

    one, other = (Dropdown(options=best_arms(study), value=arm) for arm in (first, second))
    return _interactive(draw, first=one, second=other)
