"""What each switch is worth: the study with that switch alone as released, against the study as it is.

A flipped switch is a derived study, of the arms and folds that ``effects`` in the study file names. Its runs lie among the
study's own and are found by their keys, so that what flipping leaves equal is made once.
"""

from dataclasses import replace
from functools import cache
from importlib import resources

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure
from scipy.spatial import cKDTree

from mfcore import store
from mfcore.analysis import exhibit
from mfcore.analysis.exhibit import WIDTH_INCH, Exhibit, finished, in_style, of_what
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
    """Where the released code departs, by name, as ``switches.yaml`` says; `BASE` and `PAPER` are entries as well."""
    return yaml.safe_load(resources.files("mfcore.analysis").joinpath("switches.yaml").read_text(encoding="utf-8"))


# ---- the derived study ----


def arms(settings: Settings) -> tuple[str, ...]:
    """The network and the encoder that switches are measured on."""
    return tuple(name for name in (settings.effects.network, settings.effects.encoder) if name)


def derived(study: Study, switch: str) -> Study:
    """The study with one switch as the released code has it, on the arms of its ``effects`` at the full size.

    switch: a name of `Switches`; `BASE` sets none and `PAPER` all. Patches stay as wide as the study's, so that they are the
    same ones. Raises ValueError for another name.
    """
    if switch not in (BASE, PAPER, *Switches.CHOICES):
        raise ValueError(f"switch {switch!r} is not one of {[*Switches.CHOICES, PAPER]}")
    settings, full = study.settings, (max(study.settings.splits.sizes),)
    names = {BASE: (), PAPER: Switches.CHOICES}.get(switch, (switch,))
    n_folds = settings.effects.n_folds or settings.splits.n_folds
    network = _network(settings, settings.effects.network)
    flipped = replace(
        settings,
        switches=replace(settings.switches, **{name: getattr(RELEASED, name) for name in names}),
        patches=replace(settings.patches, stored_px=settings.stored_px),
        splits=replace(settings.splits, sizes=full, by_domain=False, n_folds=n_folds),
        encoders=(settings.effects.encoder,) if settings.effects.encoder else (),
        networks=(replace(network, sizes=full, by_domain=False),) if network else (),
    )
    return Study(flipped, study.folder)


def _network(settings: Settings, arm: str) -> Network | None:
    return next((network for network in settings.networks if network.name == arm), None)


def made_from(settings: Settings, arm: str) -> list:
    """What decides the runs of an arm, as far as a switch can change it: plain data, equal where the runs are the same."""
    network, switches = _network(settings, arm), settings.switches
    purpose, encoder = ("embedding", arm) if network is None else ("training", network.architecture)
    card = released_cards(purpose).get(encoder) if switches.encoder_input == "released" else None
    made = [study_data.patches_config(settings), study_data.splits_config(settings, networks=network is not None), card]
    if network is not None:
        chooses = switches.epoch == "best" or network.patience is not None
        made += [switches.epoch, switches.training_label, settings.released_in_training(network)]
        made += [switches.validation if chooses else None, switches.clipping if network.clip_norm is not None else None]
    return made


def why_not(study: Study, switch: str, arm: str) -> str:
    """Why a switch changes nothing of an arm, as the study file and the data tell; empty where it changes something."""
    base, flipped = derived(study, BASE).settings, derived(study, switch).settings
    if switch == BASE:
        return ""
    if base.switches == flipped.switches:
        return "the study itself does as the released code"
    if made_from(base, arm) == made_from(flipped, arm):
        return departures()[switch]["untouched"]
    count = counted(study, switch)
    return f"nothing here to change: {count}" if count.startswith("0 of ") else ""


def counted(study: Study, switch: str) -> str:
    """How many of the study's patches or slides a switch changes, in words; empty where that isn't counted.

    Counted are ``border``, ``resolution`` and, for the network of ``effects``, ``training_label``, once the study has patches.
    """
    count = {"border": _over_border, "resolution": _of_other_resolution, "training_label": _sees_a_positive}.get(switch)
    try:
        return "{:,} of {:,} ".format(*count(study)) + departures()[switch]["counted"] if count else ""
    except store.StoreError:
        return ""


def _over_border(study: Study) -> tuple[int, int]:
    facts = study.patches.record["facts"]
    return facts["n_patches_over_edge"] + facts["n_patches_shifted"], facts["n_patches"]


def _of_other_resolution(study: Study) -> tuple[int, int]:
    slides = study.labels.drop_duplicates("slide_id")
    is_same = (slides["um_per_px"] / study.settings.patches.um_per_px - 1).abs() < SAME_RESOLUTION
    return int((~is_same).sum()), len(slides)


def _sees_a_positive(study: Study) -> tuple[int, int]:
    """Negative patches that hold the centre of a positive annotation inside what training sees of them."""
    settings = study.settings
    network = settings.network(settings.effects.network)
    labels = splits_draw.with_places(study.labels, study_data.placing_of(settings))
    labels = labels.assign(slide=pd.factorize(labels["slide_id"])[0] * 1e12)  # no two slides are near each other
    negative, positive = (labels[labels["label"] == label] for label in (0, 1))
    share = (network.input_px + 2 * network.shift_px) / settings.patches.size_px
    tree = cKDTree(positive[["x_l0_px", "y_l0_px", "slide"]].to_numpy())
    distance, _ = tree.query(negative[["x_patch_l0_px", "y_patch_l0_px", "slide"]].to_numpy(), p=np.inf)  # (n_negative,)
    return int((distance <= negative["side_l0_px"] * share / 2).sum()), len(negative)


# ---- the table ----


def table(study: Study, switches: tuple[str, ...] = ()) -> pd.DataFrame:
    """A row a departure (of the named ``switches``, else of all) and arm; none where the study's ``effects`` name no switches.

    ``as_released, default``: what the released code does and what the study does. ``auroc, auroc_sd``: at the full size, mean
    and sample SD over ``n_folds``. ``difference, low, high``: of the AUROC from `BASE`; paired over folds
    (`statistics.paired_test`) where both are tested on the same patches, else unpaired, as ``why`` then says.
    ``why``: where numbers are missing, why; else how they are to be read, and what of the data the switch changes.
    """
    names = switches or (departures() if study.settings.effects.switches else ())
    base = derived(study, BASE)
    rows = [_row(study, base, name, arm) for name in names for arm in arms(study.settings)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(study: Study, base: Study, name: str, arm: str) -> dict:
    entry, network = departures()[name], _network(study.settings, arm)
    kind = study_predictions.kind_of(network) if network else study_predictions.PROBE
    row = {"switch": name, "arm": arm, "kind": kind, "n_folds": 0, **dict.fromkeys(NUMBERS, np.nan)}
    for column, switches in (("as_released", RELEASED), ("default", study.settings.switches)):
        value = getattr(switches, entry.get("switch", name), "")
        row[column] = {True: "yes", False: "no"}.get(value, value)
    if why := entry.get("no_switch") or why_not(study, name, arm):
        return row | {"why": why}
    flipped = base if name == BASE else derived(study, name)
    predictions, own = _predictions(flipped, arm), _predictions(base, arm)
    if predictions is None and name in set(Switches.CHOICES) - set(study.settings.effects.switches):
        return row | {"why": "the study doesn't ask for it (effects.switches)"}
    if predictions is None:
        return row | {"why": _not_yet(study, name)}
    if own is None:
        return row | {"why": f"the study as it is, to compare with: {_not_yet(study, BASE)}"}
    scores = flipped.scores
    over = statistics.spread(scores.loc[scores["arm"] == arm, "auroc"])
    row |= {"n_folds": over.n, "auroc": over.mean, "auroc_sd": over.sd, "why": ""}
    if name == BASE:
        return row
    interval, notes = _difference(study, predictions, own)
    row |= {"difference": interval.estimate, "low": interval.low, "high": interval.high}
    return row | {"why": "; ".join(filter(None, (counted(study, name), *notes)))}


def _predictions(study: Study, arm: str) -> pd.DataFrame | None:
    """What an arm of a derived study predicted; None unless every fold is there."""
    try:
        predictions, failures = study.predictions, study.failures
    except store.StoreError:
        return None
    return None if arm in set(failures["arm"]) else predictions[predictions["arm"] == arm]


def _not_yet(study: Study, name: str) -> str:
    """Why a switch isn't measured: the failure of its job, or that the job hasn't run."""
    file = study.folder / "failures" / f"measure_switch.{name}.json"
    return f"failed: {store.read_json(file)['reason']}" if file.is_file() else NOT_YET


def _difference(study: Study, flipped: pd.DataFrame, base: pd.DataFrame) -> tuple[statistics.Interval, list[str]]:
    """How the AUROC differs, with notes: paired over the folds that test both on the same patches, else unpaired."""
    here, there = (by_fold(part, "auroc", study.seed, study_predictions.ALL) for part in (flipped, base))
    tested = [part.groupby("fold")["patch_id"].agg(frozenset) for part in (flipped, base)]
    n_test = max(part.groupby("fold").size().mean() for part in (flipped, base))
    scores = [part.set_index(["fold", "patch_id"])["score"].sort_index() for part in (flipped, base)]
    if tested[0].equals(tested[1]):
        test = statistics.paired_test(here, there, base["n_train"].mean(), n_test)
        notes = ["the same predictions in every fold"] if scores[0].equals(scores[1]) else []
    else:
        test = statistics.unpaired_test(here, there, flipped["n_train"].mean(), n_test)
        notes = ["unpaired: the two are tested on different patches"]
    notes += [f"interval over draws of {test.drawn}"] if test.drawn else []
    return test.interval, notes + ([] if np.isfinite(test.interval.low) else ["too few folds for an interval"])


# ---- the exhibit ----


def sentence(row: dict) -> str:
    """What a row of `table` says the switch is worth to the arm, or why that isn't known."""
    if not np.isfinite(row["auroc"]):
        return row["why"]
    score = f"AUROC {exhibit.plus_minus(row['auroc'], row['auroc_sd'])} over {exhibit.folds(row)}"
    if np.isfinite(row["difference"]):
        score = f"{row['difference']:+.3f} ({exhibit.bounds(row['low'], row['high']) or 'no interval'}), {score}"
    return f"{score}; {row['why']}" if row["why"] else score


def worth(study: Study) -> Exhibit:
    """Every departure of the released code, what the study does instead, and what that is worth to each arm."""
    rows, settings = table(study), study.settings
    measured = rows[rows["difference"].notna()]
    n_folds = exhibit.counted(settings.effects.n_folds or settings.splits.n_folds, "fold")
    caption = (
        "What each departure of the released code of Ganz et al. is worth on the full training set: its switch alone as "
        f"released, against the study as it is ({of_what(settings)}). Differences of the mean AUROC of {n_folds}; "
        "bars: 95 % intervals, over folds and corrected for their overlap, or over draws of the tested slides or cases where "
        f"the table says so. {_finding(measured[measured['switch'] != PAPER])}"
    )
    figure = _figure(study, measured, n_folds) if len(measured) else None
    return Exhibit("05_switches", "What each switch is worth", caption, rows, figure, "Switches", _readable(rows))


def _finding(measured: pd.DataFrame) -> str:
    """What the differences of single switches show, in a sentence."""
    if not len(measured):
        return "No switch is measured here; each row says why."
    clear = measured[(measured["low"] > 0) | (measured["high"] < 0)]
    named = [f"{row.switch} for {row.arm} ({row.difference:+.3f})" for row in clear.itertuples()]
    count, which = measured["switch"].nunique(), ", ".join(named) or "none"
    return f"Of {count} switches measured, the interval excludes zero for {which}; by chance one in twenty does."


@in_style
def _figure(study: Study, measured: pd.DataFrame, n_folds: str) -> Figure:
    """The differences with their intervals, a line a switch and a panel an arm."""
    parts = measured.groupby(["arm", "kind"], sort=False)
    size_inch = (WIDTH_INCH, 0.3 * measured["switch"].nunique() + 1.4)
    figure, axes = plt.subplots(
        1, len(parts), squeeze=False, sharex=True, sharey=True, figsize=size_inch
    )
    for axis, ((arm, kind), part) in zip(axes[0], parts, strict=True):
        titles = [departures()[name]["title"] for name in part["switch"]]
        ends = [part["difference"] - part["low"], part["high"] - part["difference"]]
        axis.errorbar(part["difference"], titles, xerr=ends, fmt="o", capsize=2.5)
        axis.axvline(0, color="0.4", linewidth=0.9)
        axis.set_title(f"{arm}\n({kind})")
    axes[0, 0].invert_yaxis()
    figure.supxlabel(f"AUROC as released less the study's, {n_folds}", fontsize=8.5)
    return finished(study, figure)


def _readable(rows: pd.DataFrame) -> pd.DataFrame:
    """`table` for the eye: a row a departure, with a sentence an arm."""
    texts = pd.DataFrame(departures()).T[["title", "released", "where", "ours"]].fillna("")
    texts.columns = ["departure", "the released code", "where", "without the switch"]
    worth = rows.assign(arm=rows["arm"] + " (" + rows["kind"] + ")", worth=[sentence(row) for row in rows.to_dict("records")])
    values = rows.drop_duplicates("switch").set_index("switch")[["as_released", "default"]]
    return texts.join(values).join(worth.pivot(index="switch", columns="arm", values="worth")).reset_index(drop=True)
