"""The arms of a study that a claim is about, and the pairs of them that are compared.

The arms are the paper's where the study has them, else arms that stand in.
"""

from dataclasses import dataclass, field, replace
from itertools import combinations, product

from mfcore.analysis.scores import percent
from mfcore.claims import rows
from mfcore.claims.material import DOMAIN_TITLES, NO_CROSS_DOMAIN, Material
from mfcore.claims.rows import Row
from mfcore.claims.rules import Pair
from mfcore.encoders.card import cards

CELLS = ("to two others", "there and back")  # of Fig. 2


@dataclass(frozen=True)
class Choice:
    """Arms that a claim is asked of.

    barred: why these arms cannot settle the claim. partial: which of the paper's arms are missing;
    the others can refute a statement about all of them, and cannot confirm the statement.
    """

    names: list[str] = field(default_factory=list)
    barred: list[str] = field(default_factory=list)
    partial: list[str] = field(default_factory=list)

    def __add__(self, other: "Choice") -> "Choice":
        names = list(dict.fromkeys(self.names + other.names))
        return Choice(names, self.barred + other.barred, self.partial + other.partial)


def choose(material: Material, named: str | list[str], stand_in: bool = True) -> Choice:
    """The arms of each name: a group of GROUPS or of the paper ("foundation"), "uni adapted" (by
    LoRA), or an encoder.
    """
    names = [named] if isinstance(named, str) else named
    return sum((_choose(material, name, stand_in) for name in names if name), Choice())


def _choose(material: Material, name: str, stand_in: bool) -> Choice:
    if name in GROUPS:
        return GROUPS[name](material)
    if name in rows.facts("arms"):
        return _of_the_paper(material, name, stand_in)
    encoder, _, is_adapted = name.partition(" ")
    if is_adapted:
        names = [
            arm for arm in lora(material).names if material.networks[arm].architecture == encoder
        ][:1]
        return Choice(names, [] if names else [f"{encoder} is not adapted by LoRA in this study"])
    return (
        Choice([encoder])
        if has_probe(material, encoder)
        else Choice([], [f"{encoder}: {material.missing(encoder)}"])
    )


def network(material: Material) -> Choice:
    """The first ResNet50 trained end to end, or else the first other network."""
    every = networks(material)
    resnets = [name for name in every.names if material.networks[name].architecture == "resnet50"]
    if every.names and not resnets:
        return Choice(
            every.names[:1], [f"no ResNet50 trained end to end here ({every.names[0]} stands in)"]
        )
    return replace(every, names=resnets[:1])


def networks(material: Material) -> Choice:
    """Every network trained end to end."""
    return _scored(
        material,
        [n.name for n in material.settings.networks if not n.lora],
        "network trained end to end",
    )


def lora(material: Material) -> Choice:
    """Every network adapted by LoRA."""
    return _scored(
        material, [n.name for n in material.settings.networks if n.lora], "network adapted by LoRA"
    )


def probes(material: Material) -> Choice:
    """Every probe but the controls with random weights."""
    return _scored(
        material,
        [name for name in material.settings.encoders if not _is_random(material, name)],
        "probe",
    )


def _scored(material: Material, names: list[str], kind: str) -> Choice:
    names = [name for name in names if name in material.arms]
    return Choice(names, [] if names else [f"no {kind} has scores here"])


def lora_of_the_paper(material: Material) -> Choice:
    """Every network adapted by LoRA, barred where none is a foundation model of the paper."""
    names = lora(material).names
    has_one = any(
        material.networks[name].architecture in rows.facts("arms")["foundation"] for name in names
    )
    return Choice(names, [] if has_one else ["no foundation model of the paper was adapted here"])


def adapted(material: Material) -> Choice:
    """The foundation models of pathology adapted by LoRA, or else the other networks adapted by
    LoRA, which stand in.
    """
    every = lora(material)
    names = [name for name in every.names if material.networks[name].architecture in pathology()]
    if every.names and not names:
        return Choice(
            every.names,
            [f"no foundation model was adapted here ({', '.join(every.names)} instead)"],
        )
    return replace(every, names=names)


def pathology() -> set[str]:
    """Names of the encoders that have learnt from slides."""
    return {
        name for name, card in cards().items() if card.learnt_from_slides and not card.variant_of
    }


def has_probe(material: Material, encoder: str) -> bool:
    """Whether an encoder's probe has scores; a network of that name is no probe."""
    return encoder in material.arms and encoder in material.settings.encoders


def _of_the_paper(material: Material, group: str, stand_in: bool) -> Choice:
    wanted, is_imagenet = rows.facts("arms")[group], group == "imagenet"
    present = [name for name in wanted if has_probe(material, name)]
    missing = [f"{name} ({material.missing(name)})" for name in wanted if name not in present]
    if present:
        return Choice(present, partial=[f"without {', '.join(missing)}"] if missing else [])
    others = probes(material).names if stand_in and not is_imagenet else []
    kind = "ImageNet encoders" if is_imagenet else "foundation models"
    text = f" ({', '.join(others)} stand{'s' * (len(others) == 1)} in)" if others else ""
    return Choice(others, [f"none of the paper's {kind} has scores here{text}"])


def _is_random(material: Material, name: str) -> bool:
    described = {encoder.name: encoder for encoder in material.settings.own_encoders}.get(name)
    if described and described.weights:
        return described.weights == "random"
    card = cards().get(described.like if described else name)
    return card is not None and card.source == "random"


GROUPS = {
    "network": network,
    "networks": networks,
    "lora": lora,
    "lora of the paper": lora_of_the_paper,
    "adapted": adapted,
    "probes": probes,
    "own probe": lambda material: Choice(),  # `pairs` takes the probe of each adapted encoder
}


# ---- where arms are compared ----


def no_domains(row: Row, material: Material) -> list[str]:
    """That a study has no fits on single domains where a row needs them; else empty."""
    is_across = {*DOMAIN_TITLES, *CELLS} & set(row.at if isinstance(row.at, list) else [row.at])
    return [NO_CROSS_DOMAIN] if is_across and material.crossed.empty else []


def trained_sizes(row: Row, material: Material, names: list[str]) -> tuple[list[float], Choice]:
    """The sizes at which all networks among ``names`` were trained; partial where some lack."""
    networks = [name for name in names if name in material.networks]
    sizes = [
        size for size in material.sizes if all(len(material.at(name, size)) for name in networks)
    ]
    missing = [f"{percent(size)} %" for size in material.sizes if size not in sizes]
    if row.at not in ("each", "below full") or not missing:
        return sizes, Choice()
    return sizes, Choice(partial=[f"{', '.join(networks)} not trained at {', '.join(missing)}"])


def places_of(
    material: Material, at: str | float | list[str], sizes: list[float]
) -> list[str | float]:
    """Where arms are compared: sizes, "gain", or columns of Tab. 2; none that the study lacks."""
    every = material.sizes
    named = {
        "full": every[-1:],
        "first": every[:1],
        "before full": every[-2:-1],
        "gain": ["gain"] * (len(every) > 1),
    }
    named |= {"each": sizes, "below full": [size for size in sizes if size < every[-1]]}
    if material.crossed.empty:
        named |= dict.fromkeys(DOMAIN_TITLES, ())
    return [
        place
        for part in (at if isinstance(at, list) else [at])
        for place in named.get(part, [part])
    ]


def pairs(
    row: Row, material: Material, first: list[str], second: list[str], sizes: list[float]
) -> list[Pair]:
    """The pairs of a row: of arms ``first`` with ``second``, or of ``first`` with one another."""
    if row.at in CELLS:
        return [pair for arm in first for pair in _cells(material, arm, row.at)]
    couples = combinations(first, 2)
    if row.less:
        couples = [(arm, arm) for arm in first]
    elif row.second == "own probe":
        encoders = {arm: material.networks[arm].architecture for arm in first}
        couples = [couple for couple in encoders.items() if has_probe(material, couple[1])]
    elif row.second:
        couples = product(first, second)
    here = places_of(material, row.at, sizes)
    places = [(place, place) for place in here]
    if row.less:
        places = product(here, places_of(material, row.less, sizes))
    every = [
        Pair(
            one if row.less else f"{one} against {other}{_where(place)}",
            material.at(one, place, row.metric),
            material.at(other, less, row.metric),
            less in DOMAIN_TITLES,
        )
        for (place, less), (one, other) in product(places, couples)
        if (one, place) != (other, less)
    ]
    if row.skip_untrained:
        every = [pair for pair in every if len(pair.first) and len(pair.second)]
    return every


def _where(place: str | float) -> str:
    if isinstance(place, str):
        return f", {DOMAIN_TITLES.get(place, place)}"
    return f" at {percent(place)} %"


def _cells(material: Material, arm: str, at: str) -> list[Pair]:
    """Pairs of cells of Fig. 2: from one domain to two others, or to another one and back."""
    ways = sorted((train, domain) for train, domain in material.ways(arm) if train != domain)
    return [
        Pair(
            f"{' to '.join(one)} against {' to '.join(other)}",
            material.cell(arm, *one),
            material.cell(arm, *other),
            True,
        )
        for one, other in combinations(ways, 2)
        if (one == other[::-1] if at == "there and back" else one[0] == other[0])
    ]
