"""The arms of a study that a claim is about, and the pairs of them that are compared.

The arms are the paper's where the study has them, else arms that stand in.
"""

from collections.abc import Collection
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
        every = networks(material, by_lora=True).names
        names = [arm for arm in every if material.networks[arm].architecture == encoder][:1]
        return _known(names, f"{encoder} is not adapted by LoRA in this study")
    return _known(
        [encoder] * (encoder in material.probes), f"{encoder}: {material.missing(encoder)}"
    )


def _known(names: list[str], lacking: str) -> Choice:
    return Choice(names, [] if names else [lacking])


def networks(material: Material, by_lora: bool = False) -> Choice:
    """Every network that has scores: trained end to end, or adapted by LoRA."""
    every = material.networks.values()
    names = [n.name for n in every if n.name in material.scored and bool(n.lora) == by_lora]
    how = "adapted by LoRA" if by_lora else "trained end to end"
    return _known(names, f"no network {how} has scores here")


def _preferred(
    material: Material, every: Choice, architectures: Collection[str], lacking: str
) -> Choice:
    """Of networks those of some architectures, or else all, which stand in and settle nothing."""
    names = every.names
    preferred = [name for name in names if material.networks[name].architecture in architectures]
    if preferred or not names:
        return replace(every, names=preferred)
    return Choice(names, [f"{lacking} ({', '.join(names)} instead)"])


def _network(material: Material) -> Choice:
    """The first ResNet50 trained end to end, or else the first other network."""
    lacking = "no ResNet50 trained end to end here"
    choice = _preferred(material, networks(material), {"resnet50"}, lacking)
    return replace(choice, names=choice.names[:1])


def _adapted(material: Material) -> Choice:
    """The foundation models of pathology adapted by LoRA, or else the other networks adapted."""
    every = cards().values()
    pathology = {card.name for card in every if card.learnt_from_slides and not card.variant_of}
    lacking = "no foundation model was adapted here"
    return _preferred(material, networks(material, by_lora=True), pathology, lacking)


def _lora_of_the_paper(material: Material) -> Choice:
    """Every network adapted by LoRA, barred where none is a foundation model of the paper."""
    every, paper = networks(material, by_lora=True), rows.facts("arms")["foundation"]
    lacking = "no foundation model of the paper was adapted here"
    return replace(_preferred(material, every, paper, lacking), names=every.names)


def _probes(material: Material) -> Choice:
    """Every probe but the controls with random weights."""
    names = [name for name in material.probes if not _is_random(material, name)]
    return _known(names, "no probe has scores here")


def _is_random(material: Material, name: str) -> bool:
    described = {encoder.name: encoder for encoder in material.settings.own_encoders}.get(name)
    if described and described.weights:
        return described.weights == "random"
    card = cards().get(described.like if described else name)
    return card is not None and card.source == "random"


def _of_the_paper(material: Material, group: str, stand_in: bool) -> Choice:
    wanted = rows.facts("arms")[group]
    present = [name for name in wanted if name in material.probes]
    missing = [f"{name} ({material.missing(name)})" for name in wanted if name not in present]
    if present:
        return Choice(present, partial=[f"without {', '.join(missing)}"] * bool(missing))
    others = _probes(material).names if stand_in and group != "imagenet" else []
    text = f"none of {', '.join(wanted)} has scores here"
    return Choice(others, [text + f" ({', '.join(others)} instead)" * bool(others)])


GROUPS = {
    "network": _network,
    "networks": networks,
    "lora": lambda material: networks(material, by_lora=True),
    "lora of the paper": _lora_of_the_paper,
    "adapted": _adapted,
    "probes": _probes,
    "own probe": lambda material: Choice(),  # `pairs` takes the probe of each adapted encoder
}


# ---- where arms are compared ----


def no_domains(row: Row, material: Material) -> list[str]:
    """That a study has no fits on single domains where a row needs them; else empty."""
    is_across = {*DOMAIN_TITLES, *CELLS} & set(row.at if isinstance(row.at, list) else [row.at])
    return [NO_CROSS_DOMAIN] if is_across and material.crossed.empty else []


def trained_sizes(row: Row, material: Material, names: list[str]) -> tuple[list[float], Choice]:
    """The sizes at which all networks among ``names`` were trained; partial where some lack."""
    trained = [name for name in names if name in material.networks]
    sizes = [s for s in material.sizes if all(len(material.at(name, s)) for name in trained)]
    missing = [f"{percent(size)} %" for size in material.sizes if size not in sizes]
    is_partial = missing and row.at in ("each", "below full")
    text = f"{', '.join(trained)} not trained at {', '.join(missing)}"
    return sizes, Choice(partial=[text] if is_partial else [])


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
        "each": sizes,
        "below full": [size for size in sizes if size < every[-1]],
    }
    if material.crossed.empty:
        named |= dict.fromkeys(DOMAIN_TITLES, ())
    parts = at if isinstance(at, list) else [at]
    return [place for part in parts for place in named.get(part, [part])]


def pairs(
    row: Row, material: Material, first: list[str], second: list[str], sizes: list[float]
) -> list[Pair]:
    """The pairs of a row: of arms ``first`` with ``second``, or of ``first`` with one another."""
    if row.at in CELLS:
        return [pair for arm in first for pair in _cells(material, arm, row.at)]
    here, couples = places_of(material, row.at, sizes), combinations(first, 2)
    places = [(place, place) for place in here]
    if row.less:
        couples = [(arm, arm) for arm in first]
        places = product(here, places_of(material, row.less, sizes))
    elif row.second == "own probe":
        encoders = {arm: material.networks[arm].architecture for arm in first}
        couples = [couple for couple in encoders.items() if couple[1] in material.probes]
    elif row.second:
        couples = product(first, second)
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
