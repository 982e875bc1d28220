"""What a row compares: each arm, size or domain with another, in pairs that share folds."""

from itertools import combinations

from mfcore.analysis.scores import percent
from mfcore.claims.arms import Choice, has_probe
from mfcore.claims.rows import Row
from mfcore.claims.rules import Pair
from mfcore.claims.scores import DOMAIN_TITLES, INSIDE, MIXED, NO_CROSS_DOMAIN, Material

CELLS = ("to two others", "there and back")


def lacking(row: Row, material: Material) -> str:
    """Why a comparison across domains cannot be made: the study has no fits on single domains; else empty."""
    places = row.at if isinstance(row.at, list) else [row.at]
    is_across = any(place in (*DOMAIN_TITLES, *CELLS) for place in places)
    return NO_CROSS_DOMAIN if is_across and not len(material.crossed) else ""


def untrained(material: Material, row: Row, names: list[str]) -> tuple[list[float], Choice]:
    """The sizes at which all networks among ``names`` were trained, and a partial choice where they lack some sizes."""
    networks = [name for name in names if material.network(name)]
    sizes = [size for size in material.sizes if all(len(material.folds(name, size)) for name in networks)]
    missing = [f"{percent(size)} %" for size in material.sizes if size not in sizes]
    if row.at not in ("each", "below full") or not missing:
        return sizes, Choice()
    return sizes, Choice(partial=f"{', '.join(networks)} not trained at {', '.join(missing)}")


def places_of(material: Material, at: str | float | list[str], sizes: list[float]) -> list[str | float]:
    """Where arms are compared: sizes, "gain", or columns of Tab. 2; none that the study lacks."""
    every = material.sizes
    named = {"full": every[-1:], "first": every[:1], "before full": every[-2:-1], "gain": ["gain"] if every[1:] else []}
    named |= {"each": sizes, "below full": [size for size in sizes if size < every[-1]]}
    named |= {} if len(material.crossed) else {column: [] for column in DOMAIN_TITLES}
    return [place for part in (at if isinstance(at, list) else [at]) for place in named.get(part, [part])]


def of_row(row: Row, material: Material, first: list[str], second: list[str], sizes: list[float]) -> list[Pair]:
    """The pairs of a row between the arms ``first`` and ``second``, or among ``first``; none where the study lacks them."""
    if row.at in CELLS:
        return [pair for arm in first for pair in _cells(material, arm, row.at)]
    places = places_of(material, row.at, sizes)
    if row.less:
        others = places_of(material, row.less, sizes)
        sides = [(arm, arm, arm, one, other) for arm in first for one in places for other in others if one != other]
    else:
        couples = list(combinations(first, 2))
        if row.second == "own probe":
            couples = [(arm, encoder) for arm in first if has_probe(material, encoder := material.network(arm).architecture)]
        elif row.second:
            couples = [(one, other) for one in first for other in second if one != other]
        sides = [
            (f"{one} against {other}{_where(place, places)}", one, other, place, place)
            for place in places
            for one, other in couples
        ]
    pairs = [
        Pair(name, material.at(one, here, row.metric), material.at(other, there, row.metric), tested(there))
        for name, one, other, here, there in sides
    ]
    return [pair for pair in pairs if not row.skip_untrained or (len(pair.first) and len(pair.second))]


def tested(place: str | float) -> str:
    """Which patches the correction of `Material.test` counts."""
    return INSIDE if place in DOMAIN_TITLES else MIXED


def _where(place: str | float, places: list[str | float]) -> str:
    if isinstance(place, str):
        return f", {DOMAIN_TITLES.get(place, place)}"
    return f" at {percent(place)} %" if len(places) > 1 else ""


def _cells(material: Material, arm: str, at: str) -> list[Pair]:
    """Pairs of cells of Fig. 2: from one domain to two others, or from one domain to another and back."""
    rows = material.crossed.loc[material.crossed["arm"] == arm, ["train_domain", "domain"]].drop_duplicates()
    cells = {way: material.cell(arm, *way) for way in sorted(rows.itertuples(index=False, name=None))}
    domains = sorted({train for train, _ in cells})
    if at == "there and back":
        return [
            Pair(f"{a} to {b} against back", cells[a, b], cells[b, a], INSIDE)
            for a, b in combinations(domains, 2)
            if (a, b) in cells and (b, a) in cells
        ]
    return [
        Pair(f"from {train} to {a} against to {b}", cells[train, a], cells[train, b], INSIDE)
        for train in domains
        for a, b in combinations([domain for domain in domains if domain != train and (train, domain) in cells], 2)
    ]
