"""Why a number is not the printed one, computed from a study's settings, scores and training histories."""

import numpy as np
from sklearn.metrics import roc_curve

from mfcore.claims import rows
from mfcore.claims.rules import REPRODUCED, Finding
from mfcore.claims.scores import Material
from mfcore.encoders.card import cards
from mfcore.measures import binary
from mfcore.study import predictions as study_predictions
from mfcore.study.config import MODES, as_dict

PUBLISHED_NETWORK, N_TRAINING_FILE = "EfficientNetV2-M", 2_894  # of the benchmark on AMi-Br, and figures of its training file


def protocol(material: Material, arm: str, finding: Finding) -> list[str]:
    """How this study departs from the released code and from the published training of an arm."""
    if finding.outcome == REPRODUCED:
        return []
    study, released = material.study, as_dict(MODES["paper"])
    other = [key for key, value in as_dict(study.switches).items() if value != released[key]]
    why = [f"not as the released code: {', '.join(other)}"] if other else []
    if len(other) == len(released):
        why = [f"{study.mode_title}, which makes none of the released code's departures"]
    network = material.network(arm)
    if network is None:
        return why
    published = {key: value for key, value in rows.facts("protocol").items() if getattr(network, key) != value}
    departures = [f"{key} {getattr(network, key)} for {value}" for key, value in published.items()]
    return [*why, f"not as published: {', '.join(departures)}"] if departures else why


def benchmark(material: Material, arm: str, finding: Finding) -> list[str]:
    """How an arm's training differs from the benchmark's on AMi-Br; where it scores less, also what held the arm back."""
    if finding.outcome == REPRODUCED:
        return []
    network, size = material.network(arm), material.sizes[-1]
    n_train = material.mixed.loc[(material.mixed["arm"] == arm) & (material.mixed["size"] == size), "n_train"].mean()
    n_seen = network.n_epochs * (network.patches_per_epoch or n_train)
    card = cards().get(network.architecture)
    of_size = f" of {card.n_parameters / 1e6:.1f}M parameters" if card else ""
    side, stored = network.input_px, material.study.patches.size_px
    facts = [
        f"on other test slides, {network.architecture}{of_size} stands for {PUBLISHED_NETWORK}: {n_train:,.0f} training "
        f"patches for {N_TRAINING_FILE:,}",
        f"{network.n_epochs} epochs, {n_seen:,.0f} patches seen ({n_seen / n_train:.1f} times each)",
        f"{side} of {stored} px ({100 * side**2 / stored**2:.0f} % of a patch)" if side < stored else "",
    ]
    held_back = [_curve(material, arm, size), _best_threshold(material, arm, size)] if finding.difference < 0 else []
    return [", ".join(filter(None, sentence)) for sentence in (facts, held_back) if any(sentence)]


def _curve(material: Material, arm: str, size: float) -> str:
    """Whether training had ended: in how many folds the validation loss was lowest in one of the last two epochs."""
    is_late, gains = [], []
    for fold in range(material.study.splits.n_folds):
        run = material.runs.get(f"{arm}-fold{fold}")
        history = study_predictions.fit_history(run, fold, size) if run else ()
        if len(history) >= 4:
            is_late.append(history["epoch"].iloc[int(np.argmin(history["val_loss"]))] >= history["epoch"].max() - 1)
            gains.append(history["val_auroc"].iloc[-1] - history["val_auroc"].iloc[len(history) // 2 - 1])
    if not gains:
        return ""
    return (
        f"the validation loss was lowest in one of the last two epochs in {sum(is_late)} of {len(gains)} folds (validation "
        f"AUROC {np.mean(gains):+.3f} over the second half)"
    )


def _best_threshold(material: Material, arm: str, size: float) -> str:
    """What the threshold of 0.5 costs, and how well the scores rank."""
    parts = [part for _, part in material.predicted(arm, size).groupby("fold") if part["label"].nunique() == 2]
    if not parts:
        return ""
    pairs = [(part["label"].to_numpy(), part["score"].to_numpy()) for part in parts]
    curves = [roc_curve(label, score) for label, score in pairs]
    best = np.mean([(1 + (found - false).max()) / 2 for false, found, _ in curves])
    at_half, auroc = (np.mean([of(*pair) for pair in pairs]) for of in (binary.balanced_accuracy, binary.auroc))
    return f"AUROC is {auroc:.3f}, and the best threshold gives balanced accuracy {best:.3f}, 0.5 gives {at_half:.3f}"


def threshold(material: Material, arm: str, finding: Finding) -> list[str]:
    """What a probe that does not weigh the classes scores at the threshold of the benchmark's probe, which does."""
    value = material.folds(arm, material.sizes[-1], "balanced_accuracy").values.mean()
    return [f"the benchmark's probe weighs the classes: at 0.5, {arm} would score {value:.2f}"]


EXPLAIN = {"protocol": protocol, "benchmark": benchmark, "threshold": threshold}
