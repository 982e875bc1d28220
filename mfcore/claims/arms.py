"""The arms of a study that a claim is about: the paper's where the study has them, else the arms that stand in."""

from dataclasses import dataclass

from mfcore.claims import rows
from mfcore.claims.scores import Material
from mfcore.encoders.card import cards


@dataclass(frozen=True)
class Choice:
    """Arms that a claim is asked of.

    barred: why these arms cannot settle the claim. partial: which of the paper's arms are missing; the others can refute a
    statement about all of them, and cannot confirm the statement.
    """

    names: tuple[str, ...] = ()
    barred: str = ""
    partial: str = ""


def choose(material: Material, named: str | list[str], stand_in: bool = True) -> list[Choice]:
    """One choice for each name: a group of GROUPS or of the paper ("foundation"), "uni adapted" (by LoRA), or an encoder."""
    names = [named] if isinstance(named, str) else named
    return [_choose(material, name, stand_in) for name in names if name]


def _choose(material: Material, name: str, stand_in: bool) -> Choice:
    if name in GROUPS:
        return GROUPS[name](material)
    if name in (groups := rows.facts("arms")):
        return _of_the_paper(material, name, groups[name], stand_in and name != "imagenet")
    encoder, _, is_adapted = name.partition(" ")
    if is_adapted:
        names = [arm for arm in lora(material).names if material.network(arm).architecture == encoder][:1]
        return Choice(tuple(names), "" if names else f"{encoder} is not adapted by LoRA in this study")
    return Choice((encoder,)) if has_probe(material, encoder) else Choice((), f"{encoder}: {material.missing(encoder)}")


def network(material: Material) -> Choice:
    """The first ResNet50 trained end to end, or else the first other network."""
    names = networks(material).names
    if not names:
        return Choice((), "no network trained end to end has scores here")
    resnets = [name for name in names if material.network(name).architecture == "resnet50"]
    if resnets:
        return Choice((resnets[0],))
    return Choice((names[0],), f"no ResNet50 trained end to end here ({names[0]} stands in)")


def networks(material: Material) -> Choice:
    """Every network trained end to end."""
    return _named(material, [n.name for n in material.study.networks if n.lora is None], "network trained end to end")


def lora(material: Material) -> Choice:
    """Every network adapted by LoRA."""
    return _named(material, [n.name for n in material.study.networks if n.lora is not None], "network adapted by LoRA")


def probes(material: Material) -> Choice:
    """Every probe but the controls with random weights."""
    return _named(material, [name for name in material.study.encoders if not _is_random(material, name)], "probe")


def _named(material: Material, names: list[str], what: str) -> Choice:
    names = [name for name in names if name in material.arms]
    return Choice(tuple(names), "" if names else f"no {what} has scores here")


def lora_of_the_paper(material: Material) -> Choice:
    """Every network adapted by LoRA, barred where none is a foundation model of the paper."""
    names = lora(material).names
    is_there = any(material.network(name).architecture in rows.facts("arms")["foundation"] for name in names)
    return Choice(names, "" if is_there else "no foundation model of the paper was adapted here")


def adapted(material: Material) -> Choice:
    """The foundation models of pathology adapted by LoRA, or else the other networks adapted by LoRA, which stand in."""
    every = lora(material)
    names = tuple(name for name in every.names if material.network(name).architecture in pathology())
    if names or not every.names:
        return Choice(names, every.barred)
    return Choice(every.names, f"no foundation model was adapted here ({', '.join(every.names)} instead)")


def pathology() -> set[str]:
    """Names of the encoders that have learnt from slides."""
    return {name for name, card in cards().items() if card.learnt_from_slides and not card.variant_of}


def has_probe(material: Material, encoder: str) -> bool:
    """Whether an encoder's probe has scores; a network of that name is no probe."""
    return encoder in material.arms and encoder in material.study.encoders


def _of_the_paper(material: Material, group: str, wanted: list[str], stand_in: bool) -> Choice:
    present = tuple(name for name in wanted if has_probe(material, name))
    reasons = [f"{name} ({material.missing(name)})" for name in wanted if name not in present]
    if present:
        return Choice(present, partial=f"without {', '.join(reasons)}" if reasons else "")
    others = probes(material).names if stand_in else ()
    kind = "ImageNet encoders" if group == "imagenet" else "foundation models"
    named = f" ({', '.join(others)} stand{'s' * (len(others) == 1)} in)" if others else ""
    return Choice(others, f"none of the paper's {kind} has scores here{named}")


def _is_random(material: Material, name: str) -> bool:
    record = next((encoder for encoder in material.study.own_encoders if encoder.name == name), None)
    if record is not None and record.weights:
        return record.weights == "random"
    card = cards().get(record.like if record is not None else name)
    return card is not None and card.source == "random"


GROUPS = {
    "network": network,
    "networks": networks,
    "lora": lora,
    "lora of the paper": lora_of_the_paper,
    "adapted": adapted,
    "probes": probes,
}
