"""Why a number is not the printed one, computed from a study's settings and scores."""

from mfcore.claims import rows
from mfcore.claims.material import Material
from mfcore.study.config import MODES

# of the benchmark on AMi-Br, and figures of its training file
PUBLISHED_NETWORK = "EfficientNetV2-M"
N_TRAINING_FILE = 2_894


def protocol(material: Material, arm: str) -> list[str]:
    """How this study departs from the released code and from the published training of an arm."""
    settings, network = material.settings, material.networks.get(arm)
    departures = [
        f"{key} {getattr(network, key)} for {value}"
        for key, value in rows.facts("protocol").items()
        if network and getattr(network, key) != value
    ]
    why = []
    if settings.switches != MODES["paper"]:
        why.append(f"not as the released code: {settings.mode_title}")
    if departures:
        why.append(f"not as published: {', '.join(departures)}")
    return why


def benchmark(material: Material, arm: str) -> list[str]:
    """How an arm was trained, against the benchmark's."""
    network, mixed = material.networks[arm], material.mixed
    is_full = (mixed["arm"] == arm) & (mixed["size"] == material.sizes[-1])
    n_train = mixed.loc[is_full, "n_train"].mean()
    n_seen = network.n_epochs * (network.patches_per_epoch or n_train)
    side, stored = network.input_px, material.settings.patches.size_px
    return [
        f"on other test slides, {network.architecture} stands for {PUBLISHED_NETWORK}: "
        f"{n_train:,.0f} training patches for {N_TRAINING_FILE:,}, {network.n_epochs} epochs, "
        f"{n_seen:,.0f} patches seen, {side} of {stored} px"
    ]


def threshold(material: Material, arm: str) -> list[str]:
    """What a probe that does not weigh the classes scores at the threshold of the benchmark's
    probe, which does.
    """
    value = material.at(arm, material.sizes[-1], "balanced_accuracy").values.mean()
    return [f"the benchmark's probe weighs the classes: at 0.5, {arm} would score {value:.2f}"]
