"""Looking at single patches: a slide with its annotations, patches by score, an embedding's map,
two arms.

Each function makes a still exhibit; the functions ``browse_...`` show the same with controls.
"""

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from mfcore import store
from mfcore.analysis.exhibit import Exhibit, finished, image_rows, in_style, is_watched, of_what
from mfcore.analysis.first_look import SHOWN_PX, classes
from mfcore.analysis.scores import full_size
from mfcore.data import patches
from mfcore.measures import raters
from mfcore.streams import generator
from mfcore.study import data as study_data
from mfcore.study.predictions import ALL
from mfcore.study.study import Study

ANY = "any"
N_ACROSS = 8  # patches in a row
N_MAPPED = 1500  # patches of a map; t-SNE takes a minute for more
OVERVIEW_PX = 900  # longer side of a slide's picture
AGREEMENT = {
    ANY: "",
    "raters agree": raters.UNANIMOUS,
    "raters disagree": raters.CONTESTED,
}  # strata of `raters.stratum`


def best_arms(study: Study) -> list[str]:
    """The arms by their mean AUROC with all the data, the best first."""
    means = full_size(study.scores).groupby("arm")["auroc"].mean()
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
    order = [names[0], names[1]]  # colours as in `map_of`
    style |= {"hue_order": order, "style_order": order}
    sns.scatterplot(**style, s=22, linewidth=0.6, edgecolor="white", ax=axis)
    axis.set(xlabel="level-0 px", ylabel="level-0 px", xlim=(left, right), ylim=(bottom, top))
    axis.grid(visible=False)
    if legend := axis.get_legend():  # `finished` sets one below the picture
        legend.remove()
    caption = (
        f"Slide {slide_id} with its annotations, a field of {field_um / 1000:.1f} mm"
        f" ({of_what(study.settings)}; {int(shown['label'].eq(names[1]).sum())} {names[1]}s,"
        f" {int(shown['label'].eq(names[0]).sum())} {names[0]}s)."
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
        sns.scatterplot(shown, x="x", y="y", hue=hue, s=9, linewidth=0, alpha=0.8, ax=axis)
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


def browse_ranked(study: Study, arm: str) -> object:
    """`ranked` with controls for domain, fold and the raters' agreement; a widget of ipywidgets,
    None where nobody looks on.
    """
    if not is_watched():
        return None
    from ipywidgets import Dropdown, interactive

    domains = [ALL, *sorted(study.labels["domain"].unique())]
    folds = [("all", None), *((str(fold), fold) for fold in range(study.settings.splits.n_folds))]
    return interactive(
        lambda domain, fold, agreement: (
            ranked(study, arm, domain=domain, fold=fold, agreement=agreement).figure
        ),
        domain=Dropdown(options=domains),
        fold=Dropdown(options=folds),
        agreement=Dropdown(options=list(AGREEMENT)),
    )


def browse_slide(study: Study, folder: str | Path) -> object:
    """`slide` at any place and zoom, with controls; a widget of ipywidgets, None where nobody looks
    on.
    """
    if not is_watched():
        return None
    from ipywidgets import Dropdown, FloatLogSlider, IntSlider, interactive

    def show(slide_id: str, annotation: int, field_um: float) -> Figure:
        rows = _annotations(study, slide_id)
        at = rows.iloc[annotation % len(rows)]
        return slide(study, slide_id, folder, (at["x_l0_px"], at["y_l0_px"]), field_um).figure

    slides = sorted(study.labels["slide_id"].unique())
    most = int(study.labels["slide_id"].value_counts().max())
    return interactive(
        show,
        slide_id=Dropdown(options=slides, description="slide"),
        annotation=IntSlider(min=0, max=most - 1, description="annotation"),
        field_um=FloatLogSlider(value=200, base=10, min=1.3, max=4, description="field, µm"),
    )


def browse_map(study: Study, encoder: str) -> object:
    """`map_of` with the patches nearest to a chosen point; a widget of ipywidgets, None where
    nobody looks on.
    """
    if not is_watched():
        return None
    from ipywidgets import FloatSlider, interactive

    table, names = mapped(study, encoder), classes(study.settings)

    @in_style
    def show(x: float, y: float) -> Figure:
        at = np.hypot(table["x"] - x, table["y"] - y).sort_values().index[:N_ACROSS]
        figure, (axis, *places) = plt.subplots(
            1, 1 + N_ACROSS, figsize=(11, 2.6), width_ratios=[3, *[1] * N_ACROSS]
        )
        shown = table.assign(label=table["label"].map(names))
        sns.scatterplot(shown, x="x", y="y", hue="label", s=6, linewidth=0, ax=axis)
        axis.plot(x, y, "+k", markersize=12)
        axis.set(xlabel="", ylabel="")
        for place, image, label in zip(
            places, _images(study, table.loc[at]), table["label"][at], strict=True
        ):
            place.imshow(image)
            place.set_axis_off()
            place.set_title(names[label], fontsize=6)
        plt.close(figure)
        return figure

    low, high = table[["x", "y"]].min(), table[["x", "y"]].max()
    sliders = {axis: FloatSlider(min=low[axis], max=high[axis], value=0) for axis in ("x", "y")}
    return interactive(show, **sliders)
