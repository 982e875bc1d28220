"""Which of a study's arms a claim speaks of: the paper's own where they are there, and what stands in for them else."""

from dataclasses import dataclass, replace

from mfcore.claims.judge import FOUNDATION, IMAGENET, REPRODUCED, UNCLEAR, Finding, Material
from mfcore.encoders.card import cards


@dataclass(frozen=True)
class Choice:
    """Arms that a claim is asked of.

    barred: why these can't settle it: they only stand in for the paper's. partial: which of the paper's are missing; the rest
    can refute a statement about all of them, and can't confirm it.
    """

    names: tuple[str, ...]
    barred: str = ""
    partial: str = ""


def end_to_end(material: Material) -> Choice:
    """The networks trained end to end: ResNet50s, or else the study's first of another kind."""
    networks = [network for network in material.study.networks if network.lora is None and network.name in material.arms]
    if own := [network.name for network in networks if network.architecture == "resnet50"]:
        return Choice((own[0],))
    if not networks:
        return Choice((), "no network trained end to end has scores here")
    return Choice((networks[0].name,), f"no ResNet50 trained end to end here ({networks[0].name} stands in)")


def lora(material: Material) -> Choice:
    """The networks adapted by LoRA."""
    names = [network.name for network in material.study.networks if network.lora is not None and network.name in material.arms]
    return Choice(tuple(names), "" if names else "no network adapted by LoRA has scores here")


def probes(material: Material) -> Choice:
    """Every probe but the controls with random weights."""
    names = [name for name in material.study.encoders if name in material.arms and not _is_random(material, name)]
    return Choice(tuple(names), "" if names else "no probe has scores here")


def has_probe(material: Material, encoder: str) -> bool:
    """Whether an encoder's probe has scores; a network of that name is none."""
    return encoder in material.arms and encoder in material.study.encoders


def probe(material: Material, encoder: str) -> Choice:
    """The probe on one encoder."""
    return Choice((encoder,)) if has_probe(material, encoder) else Choice((), f"{encoder}: {material.missing(encoder)}")


def foundation(material: Material, wanted: tuple[str, ...] = FOUNDATION) -> Choice:
    """Probes on the paper's foundation models ``wanted``; where there is none, on the study's other encoders."""
    return _of_the_paper(material, wanted, "foundation models")


def imagenet(material: Material) -> Choice:
    """Probes on the paper's two ImageNet encoders."""
    found = _of_the_paper(material, IMAGENET, "ImageNet encoders")
    return found if not found.barred else Choice((), found.barred.split(" (")[0])


def _of_the_paper(material: Material, wanted: tuple[str, ...], what: str) -> Choice:
    there = tuple(name for name in wanted if has_probe(material, name))
    gone = [name for name in wanted if name not in there]
    if not gone:
        return Choice(there)
    reasons = {name: material.missing(name) for name in gone}
    if there:
        said = ", ".join(f"{name} ({reason})" for name, reason in reasons.items())
        return Choice(there, partial=f"without {said}")
    others = probes(material).names
    named = f" ({', '.join(others)} stand{'s' * (len(others) == 1)} in)" if others else ""
    return Choice(others, f"none of the paper's {what} has scores here{named}")


def _is_random(material: Material, name: str) -> bool:
    own = next((encoder for encoder in material.study.own_encoders if encoder.name == name), None)
    if own is not None and own.weights:
        return own.weights == "random"
    card = cards().get(own.like if own is not None else name)
    return card is not None and card.source == "random"


def bound(finding: Finding, *choices: Choice) -> Finding:
    """A finding within what its arms can settle."""
    barred = "; ".join(dict.fromkeys(choice.barred for choice in choices if choice.barred))
    partial = "; ".join(dict.fromkeys(choice.partial for choice in choices if choice.partial))
    outcome = UNCLEAR if partial and finding.outcome == REPRODUCED else finding.outcome
    why = "; ".join(part for part in (partial, finding.why) if part)
    return replace(finding, outcome=outcome, why=why, barred="; ".join(part for part in (finding.barred, barred) if part))
