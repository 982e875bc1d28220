"""What the field of view and the resolution are worth: AUROC of the same annotations at the scales
that ``scales`` in a study names.

A scale is a derived study (`mfcore.study.data.at_scales`), measured as a switch is.
"""

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from mfcore.analysis import exhibit
from mfcore.analysis.exhibit import Exhibit
from mfcore.analysis.scores import in_order
from mfcore.analysis.switches import derived, difference, not_yet, predictions_of
from mfcore.data.slides.slide import SAME_RESOLUTION
from mfcore.data.splits import percent
from mfcore.encoders.card import EncoderError, cards
from mfcore.measures import statistics
from mfcore.measures.resampling import bootstrap
from mfcore.study import data as study_data
from mfcore.study.config import Settings
from mfcore.study.predictions import PROBE, arms_of
from mfcore.study.study import Study

SECTION = "Field of view"
SCALE = ("um_per_px", "field_um")
KEYS = ["scale", "arm", "kind", "size", *SCALE, "size_px"]
NUMBERS = ["auroc", "auroc_sd", "auroc_low", "auroc_high", "than", "difference", "low", "high"]
COLUMNS = [*KEYS, "seen_um", "seen_um_per_px", "n_folds", "unit", *NUMBERS, "why"]
LINES = ("-", "--", ":", "-.")  # by resolution, the finest first
APART = 1.012  # factor of two arms' places on the axis, so that no bar hides another


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
        for arm in arms_of(this.settings).values():
            if arm.method:
                continue
            predicted, row = predictions_of(this, arm.name), of | {"arm": arm.name}
            row |= {"kind": arm.kind, **_seen(study, arm.name, arm.kind, of)}
            for size in this.settings.splits.sizes:
                if predicted is None:
                    rows.append(row | {"size": size, "why": not_yet(study, scale)})
                    continue
                part = predicted[predicted["size"] == size]
                rows.append(
                    row | _score(study, this, part) | {"size": size, "why": _enlarged(this)}
                )
                place = arm.name, size, of["field_um"]
                than, base = finest.setdefault(place, (patch.um_per_px, part))
                if than < patch.um_per_px:
                    rows[-1] |= difference(study, part, base, rows[-1]["why"]) | {"than": than}
    result = in_order(pd.DataFrame(rows, columns=COLUMNS), study.settings, "size", *SCALE)
    return result[result["scale"] == only] if only else result


def _seen(study: Study, arm: str, kind: str, of: dict) -> dict[str, float]:
    """What of the tissue an arm sees, in um, and at which um/px."""
    if kind != PROBE:  # a network sees px as they are
        return {"seen_um": of["field_um"], "seen_um_per_px": of["um_per_px"]}
    try:
        card = study.card(arm)
    except EncoderError:
        return {}
    um_per_px = of["field_um"] / card.resize_px
    return {"seen_um": um_per_px * card.crop_px, "seen_um_per_px": um_per_px}


def _score(study: Study, this: Study, part: pd.DataFrame) -> dict:
    """AUROC of one arm at one scale and size, over folds and with its interval."""
    scores = this.scores
    is_it = (scores["arm"] == part["arm"].iloc[0]) & (scores["size"] == part["size"].iloc[0])
    over, one = (
        statistics.spread(scores["auroc"][is_it]),
        bootstrap(part, "auroc", study.seed, "intervals"),
    )
    row = {"auroc": over.mean, "auroc_sd": over.sd, "n_folds": over.n, "unit": one.unit}
    return row | {"auroc_low": one.low, "auroc_high": one.high}


def _enlarged(this: Study) -> str:
    """Slides that are somewhat coarser than the scale, in words; empty for none."""
    scale = this.labels.groupby("slide_id")["um_per_px"].max() / this.settings.patches.um_per_px
    coarser = scale[scale > 1 + SAME_RESOLUTION]
    if coarser.empty:
        return ""
    return f"{len(coarser)} of {len(scale)} slides enlarged, by up to {coarser.max() - 1:.1%}"


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
        f"bars: 95 % intervals over the tested {exhibit.unit(measured)}. "
        f"{_change(measured, settings)}"
    )
    readable = exhibit.rounded(measured.drop(columns=["scale", "unit"]))
    return Exhibit(name, title, caption, rows, _figure(study, measured), SECTION, readable)


def _change(measured: pd.DataFrame, settings: Settings) -> str:
    """What the coarser of two resolutions changes for each arm at the largest field of both."""
    shared = measured[measured["difference"].notna() & (measured["size"] == measured["size"].max())]
    if shared.empty:
        return "No two resolutions show the same field of view."
    coarse, fine = shared["um_per_px"].min(), shared["than"].min()
    shared = shared[(shared["um_per_px"] == coarse) & (shared["than"] == fine)]
    largest = shared.sort_values("field_um", kind="stable").drop_duplicates("arm", keep="last")
    learnt = [card.um_per_px for card in cards().values() if card.um_per_px]
    n = sum(coarse in values and fine not in values for values in learnt)
    changes = [
        f"{row.difference:+.3f} ({exhibit.bounds(row.low, row.high) or 'no interval'}) for "
        f"{row.arm} at {row.field_um:g} µm"
        for row in in_order(largest, settings).itertuples()
    ]
    return (
        f"Of {len(learnt)} encoders whose resolution is known, {n} learnt at {coarse:g} and not at "
        f"{fine:g} µm/px; at the same field of view, {coarse:g} instead of {fine:g} µm/px changes "
        f"the AUROC by {exhibit.listed(changes)}."
    )


def _figure(study: Study, measured: pd.DataFrame) -> Figure:
    """A panel a size of the training set, a line an arm and resolution."""
    shown = exhibit.named(measured, study.settings)
    shown["share"] = [f"{percent(size)} % of the training patches" for size in shown["size"]]
    resolutions = sorted(shown["um_per_px"].unique())
    grid = sns.FacetGrid(shown, col="share", height=3.6, aspect=1.3)
    groups = shown.groupby(["share", "name", "um_per_px"], sort=False)
    lines = shown[["name", "um_per_px"]].drop_duplicates().apply(tuple, axis=1).tolist()
    for (share, name, um_per_px), part in groups:
        part, i = part.sort_values("field_um"), lines.index((name, um_per_px))
        look = exhibit.look(study.settings, part["arm"].iloc[0], part["kind"].iloc[0])
        look |= {"linestyle": LINES[resolutions.index(um_per_px) % len(LINES)]}
        look |= {"mfc": look["color"] if um_per_px == resolutions[0] else "white"}
        place = part["field_um"] * APART ** (i - (len(lines) - 1) / 2)
        sides = part["auroc"] - part["auroc_low"], part["auroc_high"] - part["auroc"]
        label = f"{name}, {um_per_px:g} µm/px"
        grid.axes_dict[share].errorbar(place, part["auroc"], sides, **look, label=label, capsize=2)
    fields = sorted(shown["field_um"].unique())
    grid.set(xscale="log", ylim=(None, 1))
    for axis in grid.axes.flat:
        axis.set_xticks(fields, [f"{field:g}" for field in fields])
        axis.minorticks_off()
    grid.refline(y=0.5, **exhibit.CHANCE)
    exhibit.in_panels(grid, "field of view, µm", "AUROC, 95 % interval")
    return exhibit.finished(study, grid.figure)
