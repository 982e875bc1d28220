"""What the field of view and the resolution are worth: AUROC of the same annotations at the scales
that ``scales`` in a study names.

A scale is a derived study (`mfcore.study.data.at_scales`), measured as a switch is.
"""

import contextlib
from itertools import product

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from mfcore.analysis import exhibit
from mfcore.analysis.exhibit import Exhibit
from mfcore.analysis.scores import in_order
from mfcore.analysis.switches import derived, difference, not_yet, predictions_of
from mfcore.data.slides.slide import SAME_RESOLUTION
from mfcore.data.splits import percent
from mfcore.encoders.card import EncoderError
from mfcore.measures import statistics
from mfcore.measures.resampling import bootstrap
from mfcore.study import data as study_data
from mfcore.study.predictions import PROBE, Arm, arms_of
from mfcore.study.study import Study

SECTION = "Field of view"
SCALE = ("um_per_px", "field_um")
KEYS = ["scale", "arm", "kind", "size", *SCALE, "size_px"]
NUMBERS = ["auroc", "auroc_sd", "auroc_low", "auroc_high", "than", "difference", "low", "high"]
COLUMNS = [*KEYS, "seen_um", "seen_um_per_px", "n_folds", "unit", *NUMBERS, "why"]
LINES = ("-", "--", ":", "-.")  # by resolution, the finest first


def table(study: Study, only: str = "") -> pd.DataFrame:
    """A row a scale (of all or ``only`` one), arm and size of the training set, by field of view.

    ``field_um``: side of the tissue that a patch shows, ``size_px * um_per_px``. ``seen_um,
    seen_um_per_px``: what of the tissue the arm sees after its card has resized and cropped the
    patch, and at which resolution; NaN where the card isn't known. ``auroc, auroc_sd``: mean and
    sample SD over ``n_folds``; ``auroc_low, auroc_high``: 95 % interval over the tested ``unit``
    (`resampling.bootstrap`). ``difference, low, high``: the AUROC at the same field less that at
    the finest resolution that shows it, ``than`` (um/px), as `switches.difference`. ``why``: how
    these are to be read, or why they are missing.
    """
    rows, finest = [], {}  # finest: um/px and predictions by arm, size and field
    scales = study_data.at_scales(study.settings)
    for scale in sorted(scales, key=lambda name: scales[name].patches.um_per_px):
        this, patch = derived(study, scale), scales[scale].patches
        of = {"scale": scale, "um_per_px": patch.um_per_px, "size_px": patch.size_px}
        of["field_um"] = round(patch.size_px * patch.um_per_px, 6)
        arms = [arm for arm in arms_of(this.settings).values() if not arm.method]
        for arm, size in product(arms, this.settings.splits.sizes):
            row = of | {"arm": arm.name, "kind": arm.kind, "size": size}
            row |= _seen(study, arm, of)
            rows.append(row)
            predicted = predictions_of(this, arm.name)
            if predicted is None:
                row["why"] = not_yet(study, scale)
                continue
            part = predicted[predicted["size"] == size]
            row |= _score(study, this, part) | {"why": _enlarged(this)}
            place = arm.name, size, of["field_um"]
            than, base = finest.setdefault(place, (patch.um_per_px, part))
            if than < patch.um_per_px:
                row |= difference(study, part, base, row["why"]) | {"than": than}
    result = in_order(pd.DataFrame(rows, columns=COLUMNS), study.settings, "size", *SCALE)
    return result[result["scale"] == only] if only else result


def _seen(study: Study, arm: Arm, of: dict) -> dict[str, float]:
    """What of the tissue an arm sees, in um, and at which um/px."""
    if arm.kind != PROBE:  # a network sees px as they are
        return {"seen_um": of["field_um"], "seen_um_per_px": of["um_per_px"]}
    with contextlib.suppress(EncoderError):
        card = study.card(arm.name)
        um_per_px = of["field_um"] / card.resize_px
        return {"seen_um": um_per_px * card.crop_px, "seen_um_per_px": um_per_px}
    return {}


def _score(study: Study, this: Study, part: pd.DataFrame) -> dict:
    """AUROC of one arm at one scale and size, over folds and with its interval."""
    scores = this.scores.merge(part[["arm", "size"]].drop_duplicates())
    over = statistics.spread(scores["auroc"])
    one = bootstrap(part, "auroc", study.seed, "intervals")
    row = {"auroc": over.mean, "auroc_sd": over.sd, "n_folds": over.n, "unit": one.unit}
    return row | {"auroc_low": one.low, "auroc_high": one.high}


def _enlarged(this: Study) -> str:
    """Slides that are somewhat coarser than the scale, in words; empty for none."""
    scale = this.labels.groupby("slide_id")["um_per_px"].max() / this.settings.patches.um_per_px
    n, most = (scale > 1 + SAME_RESOLUTION).sum(), scale.max() - 1
    return f"{n} of {len(scale)} slides enlarged, by up to {most:.1%}" * bool(n)


# ---- the exhibit ----


@exhibit.in_style
def field_of_view(study: Study) -> Exhibit:
    """AUROC against the field of view, a line a resolution and arm, and what a resolution does."""
    rows, settings = table(study), study.settings
    name, title, measured = "06_field_of_view", "Field of view", rows[rows["auroc"].notna()]
    if measured.empty:
        why = exhibit.listed(sorted(set(rows["why"])) or ["the study names none"])
        caption = f"No scale is measured here ({exhibit.of_what(settings)}): {why}."
        return Exhibit(name, title, caption, rows, None, SECTION)
    caption = (
        "AUROC on the test patches by the side of the tissue that a patch shows, for each arm and "
        f"resolution ({exhibit.of_what(settings)}); an encoder resizes every patch to its own "
        f"input, a network sees px as they are. Points: means of {exhibit.folds(measured)}; "
        f"bars: 95 % intervals over the tested {exhibit.unit(measured)}. The table has what a "
        "coarser resolution changes at the same field of view."
    )
    readable = exhibit.rounded(measured.drop(columns=["scale", "unit"]))
    return Exhibit(name, title, caption, rows, _figure(study, measured), SECTION, readable)


def _figure(study: Study, measured: pd.DataFrame) -> Figure:
    """A panel a size of the training set, a line an arm and resolution."""
    shown = exhibit.named(measured, study.settings).sort_values("field_um", kind="stable")
    shown["share"] = [f"{percent(size)} % of the training patches" for size in shown["size"]]
    resolutions, fields = (sorted(shown[name].unique()) for name in SCALE)
    grid = sns.FacetGrid(shown, col="share", height=3.6, aspect=1.3)
    lines = ["share", "name", "um_per_px", "arm", "kind"]
    for (share, name, um_per_px, arm, kind), part in shown.groupby(lines, sort=False):
        look, i = exhibit.look(study.settings, arm, kind), resolutions.index(um_per_px)
        look |= {"linestyle": LINES[i % len(LINES)], "mfc": "white" if i else look["color"]}
        sides = part["auroc"] - part["auroc_low"], part["auroc_high"] - part["auroc"]
        look["label"] = f"{name}, {um_per_px:g} µm/px"
        axis = grid.axes_dict[share]
        axis.errorbar(part["field_um"], part["auroc"], sides, **look, capsize=2)
    grid.refline(y=0.5, **exhibit.CHANCE).set(xscale="log", ylim=(None, 1))
    for axis in grid.axes.flat:
        axis.set_xticks(fields, [f"{field:g}" for field in fields])
        axis.minorticks_off()
    exhibit.in_panels(grid, "field of view, µm", "AUROC, 95 % interval")
    return exhibit.finished(study, grid.figure)
