"""What a study may say of a network that it trains: numbers that can be, and patches wide enough for it."""

import math

from mfcore.config_schema import Lora, Network, Study

MAX_HUE_TURNS = 0.5  # half a turn of the colour circle reaches every hue


def problems_of(network: Network, study: Study) -> list[str]:
    """All that is wrong with one network of a study, each with its key and what it may be; empty where nothing is."""
    place = f"networks[{network.name}]"
    problems = [] if network.name.strip() else [f"{place}.name: an arm needs one"]
    for key in ("input_px", "n_epochs", "patches_per_epoch", "batch_size", "max_lr", "accumulate", "clip_norm", "patience"):
        value = getattr(network, key)
        if value is not None and not 0 < value < math.inf:
            problems.append(f"{place}.{key}: {value} must be a number above 0")
    if network.shift_px < 0:
        problems.append(f"{place}.shift_px: {network.shift_px} must be 0 or more")
    shares = dict.fromkeys(("colour_probability", "blur_probability", "rotation_probability"), 1)
    for key, most in {**shares, "colour_jitter": MAX_HUE_TURNS}.items():
        if not 0 <= getattr(network, key) <= most:
            problems.append(f"{place}.{key}: {getattr(network, key)} must lie in [0, {most}]")
    problems += [] if network.lora is None else _wrong_lora(network.lora, f"{place}.lora")
    foreign = sorted(set(network.sizes or ()) - set(study.splits.sizes))
    if foreign or network.sizes == ():
        problems.append(f"{place}.sizes: {foreign or 'none'}; name some of splits.sizes {list(study.splits.sizes)}")
    if not problems and network.needed_px > study.stored_px:
        problems.append(
            f"{place}: rotating and shifting a crop of {network.input_px} px needs stored patches of {network.needed_px} px, "
            f"these have {study.stored_px}; lower input_px or shift_px, or raise patches.stored_px"
        )
    return problems


def _wrong_lora(lora: Lora, place: str) -> list[str]:
    problems = [] if lora.rank >= 1 else [f"{place}.rank: {lora.rank} must be 1 or more; leave lora out to train every weight"]
    if not 0 < lora.alpha < math.inf:
        problems.append(f"{place}.alpha: {lora.alpha} must be a number above 0")
    if not 0 <= lora.dropout < 1:
        problems.append(f"{place}.dropout: {lora.dropout} must lie in [0, 1)")
    if not lora.targets or not all(target.strip() for target in lora.targets):
        default = list(Lora.targets)
        problems.append(f"{place}.targets: {list(lora.targets)} must name ends of layers' names, say {default}")
    return problems
