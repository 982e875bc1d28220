"""What each switch is worth: the study with one switch as released, against the study itself.

A flipped switch is a derived study, of the arms and folds that ``effects`` in the study file names.
Its runs lie among the study's own and are found by their keys, so that what flipping leaves equal
is made once.
"""

from dataclasses import replace
from functools import cache
from importlib import resources

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import yaml
from matplotlib.figure import Figure
from scipy.spatial import cKDTree

from mfcore import store
from mfcore.analysis import exhibit
from mfcore.analysis.exhibit import Exhibit
from mfcore.data import splits_draw
from mfcore.data.slides.slide import SAME_RESOLUTION
from mfcore.encoders.card import released_cards
from mfcore.measures import statistics
from mfcore.measures.resampling import by_fold
from mfcore.study import data as study_data, predictions as study_predictions
from mfcore.study.config import MODES, Network, Settings, Switches
from mfcore.study.study import Study

BASE, PAPER = "base", "paper"  # besides the names of switches: none of them set, and all
RELEASED = MODES[PAPER]
NOT_YET = "not measured yet"
NUMBERS = ("auroc", "auroc_sd", "difference", "low", "high")
COLUMNS = ["switch", "as_released", "default", "arm", "kind", "n_folds", *NUMBERS, "why"]


@cache
def departures() -> dict[str, dict[str, str]]:
    """Where the released code departs, by name (``switches.yaml``), `BASE` and `PAPER` too."""
    return yaml.safe_load(
        resources.files("mfcore.analysis").joinpath("switches.yaml").read_text(encoding="utf-8")
    )


# ---- the derived study ----


def arms(settings: Settings) -> tuple[str, ...]:
    """The network and the encoder that switches are measured on."""
    return tuple(name for name in (settings.effects.network, settings.effects.encoder) if name)


def derived(study: Study, switch: str) -> Study:
    """The study with one switch as released, on the arms of its ``effects`` at the full size.

    switch: a name of `Switches`; `BASE` sets none and `PAPER` all. Patches stay as wide as the
    study's, so that they are the same ones. The name of a scale gives the study at that scale
    (`mfcore.study.data.at_scales`). Raises ValueError for another name.
    """
    at_scales = study_data.at_scales(study.settings)
    if switch in at_scales:
        return Study(at_scales[switch], study.folder)
    if switch not in (BASE, PAPER, *Switches.CHOICES):
        known = [*Switches.CHOICES, PAPER, *at_scales]
        raise ValueError(f"switch {switch!r} is not one of {known}")
    settings, effects = study.settings, study.settings.effects
    names = {BASE: (), PAPER: Switches.CHOICES}.get(switch, (switch,))
    released = {name: getattr(RELEASED, name) for name in names}
    encoders = (effects.encoder,) if effects.encoder else ()
    flipped = replace(
        settings.narrowed(encoders, effects.network, effects.n_folds),
        switches=replace(settings.switches, **released),
        patches=replace(settings.patches, stored_px=settings.stored_px),
    )
    return Study(flipped, study.folder)


def _network(settings: Settings, arm: str) -> Network | None:
    return next((network for network in settings.networks if network.name == arm), None)


def made_from(settings: Settings, arm: str) -> list:
    """What decides the runs of an arm, as far as a switch can change it, as plain data."""
    network, switches = _network(settings, arm), settings.switches
    purpose, encoder = ("embedding", arm) if network is None else ("training", network.architecture)
    card = released_cards(purpose).get(encoder) if switches.encoder_input == "released" else None
    patches, splits = study_data.patches_config(settings), study_data.splits_config
    made = [patches, splits(settings, networks=network is not None), card]
    if network is None:
        return made
    is_chosen = switches.epoch == "best" or network.patience is not None
    made += [switches.epoch, switches.training_label, settings.released_in_training(network)]
    made.append(switches.validation if is_chosen else None)
    return [*made, switches.clipping if network.clip_norm is not None else None]


def why_not(study: Study, switch: str, arm: str) -> str:
    """Why a switch changes nothing of an arm; empty where it changes something, and of a scale."""
    base, flipped = derived(study, BASE).settings, derived(study, switch).settings
    if switch not in (PAPER, *Switches.CHOICES):
        return ""
    if base.switches == flipped.switches:
        return "the study itself does as the released code"
    if made_from(base, arm) == made_from(flipped, arm):
        return departures()[switch]["untouched"]
    count = counted(study, switch)
    return f"nothing here to change: {count}" if count.startswith("0 of ") else ""


def counted(study: Study, switch: str) -> str:
    """How many patches or slides a switch changes, in words; empty where that isn't counted.

    Counted are ``border``, ``resolution`` and, for the network of ``effects``, ``training_label``,
    once the study has patches.
    """
    counts = {"border": _over_border, "resolution": _rescaled, "training_label": _sees_a_positive}
    if switch not in counts:
        return ""
    try:
        n, n_all = counts[switch](study)
    except store.StoreError:
        return ""
    return f"{n:,} of {n_all:,} {departures()[switch]['counted']}"


def _over_border(study: Study) -> tuple[int, int]:
    facts = study.patches.record["facts"]
    return facts["n_patches_over_edge"] + facts["n_patches_shifted"], facts["n_patches"]


def _rescaled(study: Study) -> tuple[int, int]:
    scale = study.labels.groupby("slide_id")["um_per_px"].first() / study.settings.patches.um_per_px
    return int((~((scale - 1).abs() < SAME_RESOLUTION)).sum()), len(scale)


def _sees_a_positive(study: Study) -> tuple[int, int]:
    """Negative patches with the centre of a positive annotation in what training sees of them."""
    settings = study.settings
    network = settings.network(settings.effects.network)
    labels = splits_draw.with_places(study.labels, study_data.placing_of(settings))
    labels["slide"] = pd.factorize(labels["slide_id"])[0] * 1e12  # no two are near each other
    negative, positive = (labels[labels["label"] == label] for label in (0, 1))
    share = (network.input_px + 2 * network.shift_px) / settings.patches.size_px
    tree = cKDTree(positive[["x_l0_px", "y_l0_px", "slide"]].to_numpy())
    # (n_negative,)
    distance, _ = tree.query(
        negative[["x_patch_l0_px", "y_patch_l0_px", "slide"]].to_numpy(), p=np.inf
    )
    return int((distance <= negative["side_l0_px"] * share / 2).sum()), len(negative)


# ---- the table ----


def table(study: Study, switches: tuple[str, ...] = ()) -> pd.DataFrame:
    """A row a departure (of the named ``switches``, else of all) and arm.

    None where the study's ``effects`` name no switches. ``as_released, default``: what the released
    code does and what the study does. ``auroc, auroc_sd``: at the full size, mean and sample SD
    over ``n_folds``. ``difference, low, high``: of the AUROC from `BASE`; paired over folds
    (`statistics.paired_test`) where both are tested on the same patches, else unpaired, as ``why``
    then says. ``why``: where numbers are missing, why; else how they are to be read, and what of
    the data the switch changes.
    """
    names = switches or (departures() if study.settings.effects.switches else ())
    base, rows = derived(study, BASE), []
    for name in names:
        switch = departures()[name].get("switch", name)
        values = [getattr(of, switch, "") for of in (RELEASED, study.settings.switches)]
        released, default = ({True: "yes", False: "no"}.get(value, value) for value in values)
        for arm in arms(study.settings):
            network = _network(study.settings, arm)
            kind = study_predictions.kind_of(network) if network else study_predictions.PROBE
            row = {"switch": name, "arm": arm, "kind": kind, "n_folds": 0}
            row |= {"as_released": released, "default": default}
            rows.append(row | _measured(study, base, name, arm))
    return pd.DataFrame(rows, columns=COLUMNS)


def _measured(study: Study, base: Study, name: str, arm: str) -> dict:
    """Of a row of `table` the numbers and ``why``, or ``why`` alone."""
    if why := departures()[name].get("no_switch") or why_not(study, name, arm):
        return {"why": why}
    flipped = base if name == BASE else derived(study, name)
    predictions, of_base = predictions_of(flipped, arm), predictions_of(base, arm)
    if predictions is None and name in set(Switches.CHOICES) - set(study.settings.effects.switches):
        return {"why": "the study doesn't ask for it (effects.switches)"}
    if predictions is None:
        return {"why": not_yet(study, name)}
    if of_base is None:
        return {"why": f"the study as it is, to compare with: {not_yet(study, BASE)}"}
    over = statistics.spread(flipped.scores["auroc"][flipped.scores["arm"] == arm])
    row = {"n_folds": over.n, "auroc": over.mean, "auroc_sd": over.sd, "why": ""}
    return (
        row if name == BASE else row | difference(study, predictions, of_base, counted(study, name))
    )


def predictions_of(study: Study, arm: str) -> pd.DataFrame | None:
    """What an arm of a derived study predicted; None unless every fold is there."""
    try:
        predictions, failures = study.predictions, study.failures
    except store.StoreError:
        return None
    return None if arm in set(failures["arm"]) else predictions[predictions["arm"] == arm]


def not_yet(study: Study, name: str) -> str:
    """Why a switch or scale isn't measured: the failure of its job, or that the job hasn't run."""
    file = study.folder / "failures" / f"measure.{name}.json"
    return f"failed: {store.read_json(file)['reason']}" if file.is_file() else NOT_YET


def difference(study: Study, flipped: pd.DataFrame, base: pd.DataFrame, count: str) -> dict:
    """How the AUROC differs: paired over folds tested on the same patches, else unpaired.

    flipped, base: predictions of one arm at one size. Returns ``difference, low, high, why``.
    """
    changed, unchanged = (
        by_fold(part, "auroc", study.seed, study_predictions.ALL) for part in (flipped, base)
    )
    n_test = max(part.groupby("fold").size().mean() for part in (flipped, base))
    scores, base_scores = (
        part.set_index(["fold", "patch_id"])["score"].sort_index() for part in (flipped, base)
    )
    if scores.index.equals(base_scores.index):
        test = statistics.paired_test(changed, unchanged, base["n_train"].mean(), n_test)
        note = "the same predictions in every fold" if scores.equals(base_scores) else ""
    else:
        test = statistics.unpaired_test(changed, unchanged, flipped["n_train"].mean(), n_test)
        note = "unpaired: the two are tested on different patches"
    one = test.interval
    drawn = f"interval over draws of {test.drawn}" if test.drawn else ""
    few = "too few folds" if one.n < statistics.MIN_FOLDS else "no spread over folds or cases"
    lacking = "" if np.isfinite(one.low) else f"{few} for an interval"
    why = "; ".join(filter(None, (count, note, drawn, lacking)))
    return {"difference": one.estimate, "low": one.low, "high": one.high, "why": why}


# ---- the exhibit ----


def sentence(row: dict) -> str:
    """What a row of `table` says the switch is worth to the arm, or why that isn't known."""
    if not np.isfinite(row["auroc"]):
        return row["why"]
    score = f"AUROC {exhibit.plus_minus(row['auroc'], row['auroc_sd'])} over {exhibit.folds(row)}"
    if np.isfinite(row["difference"]):
        span = exhibit.bounds(row["low"], row["high"]) or "no interval"
        score = f"{row['difference']:+.3f} ({span}), {score}"
    return f"{score}; {row['why']}" if row["why"] else score


@exhibit.in_style
def worth(study: Study) -> Exhibit:
    """Every departure of the released code, and what it is worth to each arm."""
    rows, settings = table(study), study.settings
    measured = rows[rows["difference"].notna()]
    single = measured[measured["switch"] != PAPER]
    clear = single[(single["low"] > 0) | (single["high"] < 0)]
    named = [f"{row.switch} for {row.arm} ({row.difference:+.3f})" for row in clear.itertuples()]
    finding = (
        f"Of {single['switch'].nunique()} switches measured, the interval excludes zero for "
        f"{', '.join(named) or 'none'}; by chance one in twenty does."
        if len(single)
        else "No switch is measured here; each row says why."
    )
    n_folds = exhibit.counted(settings.effects.n_folds or settings.splits.n_folds, "fold")
    caption = (
        "What each departure of the released code of Ganz et al. is worth on the full training "
        "set: its switch alone as released, against the study as it is "
        f"({exhibit.of_what(settings)}). Differences of the mean AUROC of {n_folds}; bars: 95 % "
        "intervals, over folds and corrected for their overlap, or over draws of the tested slides "
        f"or cases where the table says so. {finding}"
    )
    figure = _figure(study, measured) if len(measured) else None
    name, title = "05_switches", "What each switch is worth"
    return Exhibit(name, title, caption, rows, figure, "Switches", _readable(rows))


def _figure(study: Study, measured: pd.DataFrame) -> Figure:
    """The differences with their intervals, a line a switch and a panel an arm."""
    titles = [departures()[name]["title"] for name in measured["switch"]]
    shown = measured.assign(title=titles, name=measured["arm"] + " (" + measured["kind"] + ")")
    height = 0.3 * measured["switch"].nunique() + 1.2
    grid = sns.FacetGrid(shown, col="name", height=height, aspect=3.6 / height)
    label = "AUROC as released less the study's"
    grid.map(plt.plot, "difference", "title", marker="o", linestyle="", label=label)
    grid.map(plt.hlines, "title", "low", "high", label="95 % interval").refline(x=0, color="0.4")
    grid.axes.flat[0].invert_yaxis()
    exhibit.in_panels(grid, "difference in AUROC", "")
    return exhibit.finished(study, grid.figure)


def _readable(rows: pd.DataFrame) -> pd.DataFrame:
    """`table` for the eye: a row a departure, with a sentence an arm."""
    texts = pd.DataFrame(departures()).T[["title", "released", "where", "ours"]].fillna("")
    texts.columns = ["departure", "the released code", "where", "without the switch"]
    sentences = [sentence(row) for row in rows.to_dict("records")]
    worth = rows.assign(arm=rows["arm"] + " (" + rows["kind"] + ")", worth=sentences)
    values = rows.drop_duplicates("switch").set_index("switch")[["as_released", "default"]]
    worth = worth.pivot(index="switch", columns="arm", values="worth")
    return texts.join(values).join(worth).reset_index(drop=True)
