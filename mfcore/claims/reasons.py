"""Why a number is not the printed one, computed from a study's settings, scores and training
histories.
"""

import numpy as np
from sklearn.metrics import roc_curve

from mfcore.claims import rows
from mfcore.claims.material import Material
from mfcore.encoders.card import cards
from mfcore.study import predictions
from mfcore.study.config import MODES
from mfcore.study.predictions import ALL

# of the benchmark on AMi-Br, and figures of its training file
PUBLISHED_NETWORK = "EfficientNetV2-M"
N_TRAINING_FILE = 2_894


def protocol(material: Material, arm: str, difference: float) -> list[str]:
    """How this study departs from the released code and from the published training of an arm."""
    settings, network, why = material.settings, material.networks.get(arm), []
    if settings.switches != MODES["paper"]:
        why = [f"not as the released code: {settings.mode_title}"]
    published = rows.facts("protocol") if network else {}
    departures = [
        f"{key} {getattr(network, key)} for {value}"
        for key, value in published.items()
        if getattr(network, key) != value
    ]
    return [*why, f"not as published: {', '.join(departures)}"] if departures else why


def benchmark(material: Material, arm: str, difference: float) -> list[str]:
    """How an arm was trained, against the benchmark's; where it scores less, what held it back."""
    network, mixed, size = material.networks[arm], material.mixed, material.sizes[-1]
    n_train = mixed.loc[(mixed["arm"] == arm) & (mixed["size"] == size), "n_train"].mean()
    n_seen = network.n_epochs * (network.patches_per_epoch or n_train)
    card = cards().get(network.architecture)
    of_size = f" of {card.n_parameters / 1e6:.1f}M parameters" if card else ""
    side, stored = network.input_px, material.settings.patches.size_px
    why = (
        f"on other test slides, {network.architecture}{of_size} stands for {PUBLISHED_NETWORK}: "
        f"{n_train:,.0f} training patches for {N_TRAINING_FILE:,}, {network.n_epochs} epochs, "
        f"{n_seen:,.0f} patches seen ({n_seen / n_train:.1f} times each), "
        f"{side} of {stored} px ({100 * side**2 / stored**2:.0f} % of a patch)"
    )
    if difference > 0:
        return [why]
    return [why, *_late(material, arm, size), *_best_threshold(material, arm, size)]


def _late(material: Material, arm: str, size: float) -> list[str]:
    """Whether training had ended: in how many folds the loss was lowest in the last two epochs."""
    folds, runs = range(material.settings.splits.n_folds), material.study.runs
    trainings = [(runs.get(f"{arm}-fold{fold}"), fold) for fold in folds]
    histories = [predictions.fit_history(run, fold, size) for run, fold in trainings if run]
    histories = [history for history in histories if len(history) >= 4]
    if not histories:
        return []
    n_late = sum(history["val_loss"].argmin() >= len(history) - 2 for history in histories)
    gains = [
        history["val_auroc"].iloc[-1] - history["val_auroc"].iloc[len(history) // 2 - 1]
        for history in histories
    ]
    return [
        "the validation loss was lowest in one of the last two epochs in "
        f"{n_late} of {len(gains)} folds "
        f"(validation AUROC {np.mean(gains):+.3f} over the second half)"
    ]


def _best_threshold(material: Material, arm: str, size: float) -> list[str]:
    """What the threshold of 0.5 costs, and how well the scores rank."""
    folds = material.predicted(arm, ALL, size, ALL).groupby("fold")
    if not len(folds):
        return []
    curves = [roc_curve(fold["label"], fold["score"]) for _, fold in folds]
    best = np.mean([(1 + (found - false).max()) / 2 for false, found, _ in curves])
    auroc, at_half = (
        material.at(arm, size, metric).values.mean() for metric in ("auroc", "balanced_accuracy")
    )
    return [
        f"AUROC is {auroc:.3f}, and the best threshold gives balanced accuracy {best:.3f}, "
        f"0.5 gives {at_half:.3f}"
    ]


def threshold(material: Material, arm: str, difference: float) -> list[str]:
    """What a probe that does not weigh the classes scores at the threshold of the benchmark's
    probe, which does.
    """
    value = material.at(arm, material.sizes[-1], "balanced_accuracy").values.mean()
    return [f"the benchmark's probe weighs the classes: at 0.5, {arm} would score {value:.2f}"]
