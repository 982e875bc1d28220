"""What a switch is worth, before anything is measured: the study with that switch alone as released, and what it touches.

A switch that doesn't touch an arm, or finds nothing on the data to touch, says why instead of a number.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from mfcore import store
from mfcore.data import splits_draw
from mfcore.data.slides.slide import SAME_RESOLUTION
from mfcore.encoders.card import released_cards
from mfcore.study import data as study_data
from mfcore.study.config import MODES, Effects, Inflation, Settings, Switches, as_dict

BASE, PAPER = "", "paper"  # beside the names of switches: none of them set, and all
RELEASED = MODES[PAPER]
NO_TRAINING = "of training alone; a probe has none of it"
OF_TRAINING = ("epoch", "training_label", "validation", "clipping", "sampler", "augmentation", "shared_splits")


@dataclass(frozen=True)
class Arm:
    """One of the two arms that effects are measured on: its name, and whether it is trained or a frozen encoder's probe."""

    name: str
    is_network: bool


def arms(study: Settings) -> tuple[Arm, ...]:
    """The arms that ``study.effects`` names."""
    named = (Arm(study.effects.network, True), Arm(study.effects.encoder, False))
    return tuple(arm for arm in named if arm.name)


def asked(study: Settings) -> tuple[str, ...]:
    """What is measured, in order: the study as it is, each switch of ``study.effects``, all of them; nothing without any."""
    switches = tuple(name for name in Switches.CHOICES if name in study.effects.switches)
    return (BASE, *switches, PAPER) if switches else ()


def derived(study: Settings, switch: str) -> Settings:
    """The study with one switch set as the released code has it, reduced to the arms of ``study.effects`` at the full size.

    switch: a name of `Switches`; "" sets none and "paper" all. Patches stay as wide as the study's, so that they are the
    same ones. Raises ValueError for another name.
    """
    if switch not in (BASE, PAPER, *Switches.CHOICES):
        raise ValueError(f"switch {switch!r} is not one of {[*Switches.CHOICES, PAPER]}")
    effects, full = study.effects, (max(study.splits.sizes),)
    changed = {switch: getattr(RELEASED, switch)} if switch in Switches.CHOICES else {}
    network = tuple(replace(study.network(name), sizes=full, by_domain=False) for name in [effects.network] if name)
    return replace(
        study,
        switches=RELEASED if switch == PAPER else replace(study.switches, **changed),
        patches=replace(study.patches, stored_px=study.stored_px),
        splits=replace(study.splits, sizes=full, by_domain=False, n_folds=effects.n_folds or study.splits.n_folds),
        encoders=(effects.encoder,) if effects.encoder else (),
        own_encoders=tuple(own for own in study.own_encoders if own.name in (effects.encoder, *_architectures(network))),
        networks=network,
        inflation=Inflation(),
        conventions="",
        probe_audit=(),
        effects=Effects(),
    )


def _architectures(networks: tuple) -> list[str]:
    return [network.architecture for network in networks]


# ---- records of what was measured ----


def config_of(study: Settings, switch: str) -> dict:
    """What of the study decides the measurement of a switch; what things are called is no part of it."""
    kept = ("data", "patches", "splits", "switches", "encoders", "own_encoders", "probe", "networks")
    found = {key: value for key, value in as_dict(derived(study, switch)).items() if key in kept}
    late = Switches()  # names that came after the first measurements enter where they aren't as by default
    found["switches"] = {
        name: value
        for name, value in found["switches"].items()
        if name not in ("sampler", "augmentation") or value != getattr(late, name)
    }
    found["data"] = {key: value for key, value in found["data"].items() if key not in ("positive", "negative")}
    return found


def record_name(switch: str) -> str:
    """What the record of a measurement is called."""
    return switch or "base"


def find(study: Settings, switch: str, results: str | Path) -> store.Run:
    """The current record of a switch's measurement; its inputs are the keys of the runs that show it, by stage and fold.

    Raises StoreError where there is none, or where patches have been made anew since.
    """
    run = store.find_run(results, "effect", record_name(switch), config_of(study, switch))
    if run.identity["inputs"]["patches"] != study_data.find_patches(derived(study, switch), results).key:
        raise store.StoreError(f"{run.folder} was measured on other patches; measure the switch again")
    return run


# ---- what a switch touches ----


def why_not(study: Settings, switch: str, arm: Arm) -> str:
    """Why a switch can't change an arm, as far as the study alone tells; empty where it can."""
    if switch == BASE:
        return ""
    if study.switches == RELEASED or (switch != PAPER and getattr(study.switches, switch) == getattr(RELEASED, switch)):
        return "the study itself does as the released code"
    if switch == PAPER:
        return ""
    if switch in OF_TRAINING and not arm.is_network:
        return NO_TRAINING
    if switch == "encoder_input":
        released = released_cards("training") if arm.is_network else released_cards("embedding")
        encoder = study.network(arm.name).architecture if arm.is_network else arm.name
        if encoder not in released:
            how = "trains" if arm.is_network else "embeds"
            return f"the released code {how} {', '.join(released)} in a way of its own, not {encoder}"
    if switch == "clipping" and study.network(arm.name).clip_norm is None:
        return "the network has no clip_norm: there is no clipping to do at the right place"
    if switch == "validation" and study.switches.epoch == "last" and study.network(arm.name).patience is None:
        return "the study tests the last epoch, whatever validation says"
    if not study.source.has_slides and switch == "sampler":
        return f"{study.source.title}'s patches are images: there is no slide to draw another place of"
    if switch == "sampler" and study.network(arm.name).patches_per_epoch is None:
        return "the network is shown every patch once: none is drawn"
    if switch == "augmentation" and not derived(study, switch).released_in_training(study.network(arm.name)):
        return "the network's crops are neither blurred nor turned"
    if not study.source.has_slides and switch in ("resolution", "border"):
        return f"{study.source.title}'s patches are images, cut before: nothing is resampled, nothing lies outside"
    return ""


@dataclass(frozen=True)
class Reach:
    """How much of the data a switch touches: ``n`` of ``n_all``, and the same in words; empty words where it isn't counted."""

    n: int = 0
    n_all: int = 0
    words: str = ""

    @property
    def is_nothing(self) -> bool:
        """Whether it was counted, and there is nothing."""
        return bool(self.words) and not self.n


def reach(study: Settings, switch: str, run: store.Run) -> Reach:
    """What a switch finds to touch on the study's finished patches ``run``; counted for resolution, border and label."""
    if switch == "border":
        facts = run.record["facts"]
        n, n_all = int(facts["n_patches_over_edge"] + facts["n_patches_shifted"]), int(facts["n_patches"])
        return Reach(n, n_all, f"{n:,} of {n_all:,} patches, as stored, reach over a slide's border")
    labels = store.read_parquet(run.path("labels.parquet"))
    if switch == "resolution" and study.patches.um_per_px is not None:
        other = ~((labels["um_per_px"] / study.patches.um_per_px - 1).abs() < SAME_RESOLUTION)
        n, n_all = int(labels.loc[other, "slide_id"].nunique()), int(labels["slide_id"].nunique())
        return Reach(
            n, n_all, f"{n:,} of {n_all:,} slides are scanned at another resolution than {study.patches.um_per_px:g} µm/px"
        )
    if switch == "training_label" and study.effects.network:
        network = study.network(study.effects.network)
        is_seen = _sees_a_positive(study, labels, network.input_px + 2 * network.shift_px)
        n, n_all = int(is_seen.sum()), len(is_seen)
        return Reach(
            n,
            n_all,
            f"{n:,} of {n_all:,} patches of class {study.data.negative!r} have the centre of a {study.data.positive} inside "
            f"the {network.input_px} px that training sees of them, shifted by up to {network.shift_px} px",
        )
    return Reach()


def _sees_a_positive(study: Settings, labels: pd.DataFrame, seen_px: int) -> np.ndarray:
    """Whether each negative patch's central ``seen_px`` hold the centre of a positive annotation, bool (n_negative,)."""
    labels = splits_draw.with_places(labels, study_data.placing_of(study))
    negative, positive = (labels[labels["label"] == label] for label in (0, 1))
    seen = np.zeros(len(negative), dtype=bool)
    half = (negative["side_l0_px"] / study.patches.size_px * seen_px / 2).to_numpy()
    for slide_id, there in positive.groupby("slide_id"):
        here = np.flatnonzero(negative["slide_id"].to_numpy() == slide_id)
        if len(here):
            centres = negative.iloc[here][["x_patch_l0_px", "y_patch_l0_px"]].to_numpy()
            distance, _ = cKDTree(there[["x_l0_px", "y_l0_px"]].to_numpy()).query(centres, p=np.inf)
            seen[here] = distance <= half[here]
    return seen
