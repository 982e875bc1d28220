"""Claims of the paper's successor on adaptation (LoRA), second-hand.

Words and numbers were read in notes about that paper, not in it; each row says so, and what stands as its claim is therefore
no sentence of its authors.
"""

import pandas as pd

from mfcore.analysis import compare
from mfcore.claims import arms as claims_arms
from mfcore.claims.arms import Choice, bound, end_to_end
from mfcore.claims.judge import CCMCT, DATA_NAMES, MIDOG22, Claim, Finding, Material, Measure, Pair, exactly, not_behind
from mfcore.claims.results import ALIKE, full, pairs, printed
from mfcore.claims.scores import INSIDE
from mfcore.encoders.card import cards

AMMELING = "Ammeling et al. 2025 (arXiv 2508.04441), second-hand"
TOLERANCE = 0.03
TENTH = 0.1
METRIC_TITLES = {"weighted_f1": "weighted F1", "auroc": "AUROC", "balanced_accuracy": "balanced accuracy"}


# ---- the successor ----


def _adapted(material: Material) -> Choice:
    """The foundation models adapted by LoRA, or else the study's other networks by LoRA, which only stand in for them."""
    choice = claims_arms.lora(material)
    pathology = {name for name, card in cards().items() if card.learnt_from_slides and not card.variant_of}
    own = [name for name in choice.names if (n := material.network(name)) and n.architecture in pathology]
    if own or not choice.names:
        return Choice(tuple(own), choice.barred)
    return Choice(choice.names, f"no foundation model was adapted here ({', '.join(choice.names)} instead)")


def tenth_is_enough(material: Material) -> Finding:
    """Every LoRA arm at 10 % no farther than ALIKE behind itself at the largest size."""
    adapted = _adapted(material)
    sizes = [size for size in material.sizes if abs(size - TENTH) < 1e-9 and size < material.sizes[-1]]
    compared = [
        Pair(name, material.folds(name, size), material.folds(name, material.sizes[-1]))
        for size in sizes
        for name in adapted.names
        if len(material.folds(name, size))
    ]
    barred = "" if compared or adapted.barred else "no network was adapted at 10 %"
    return bound(not_behind(material, compared, ALIKE, barred=barred), adapted)


def gap_is_closed(material: Material) -> Finding:
    """Every LoRA arm out of domain no farther than ALIKE behind itself in domain."""
    adapted = _adapted(material)
    tables = {name: material.across(name) for name in adapted.names} if len(material.crossed) else {}
    compared = [Pair(name, table["outside"], table["inside"], INSIDE) for name, table in tables.items() if len(table["drop"])]
    barred = "" if compared or adapted.barred else "no network was adapted on single domains"
    return bound(not_behind(material, compared, ALIKE, barred=barred), adapted)


def classic_is_competitive(material: Material) -> Finding:
    """The end-to-end network no farther than ALIKE behind every LoRA arm, at the largest size."""
    network, adapted = end_to_end(material), _adapted(material)
    return bound(not_behind(material, pairs(material, network.names, adapted.names, full(material)), ALIKE), network, adapted)


def _arm_of(material: Material, encoder: str, kind: str) -> Choice:
    """The arm that a published row speaks of."""
    if kind == "end-to-end":
        return end_to_end(material)
    if kind == "probe":
        return claims_arms.probe(material, encoder)
    adapted = claims_arms.lora(material).names
    names = tuple(name for name in adapted if (n := material.network(name)) and n.architecture == encoder)
    return Choice(names[:1], "" if names else f"{encoder} isn't adapted by LoRA in this study")


def _published(row: dict) -> Claim:
    """A row of the successor's numbers as a claim."""

    def measure(material: Material) -> Finding:
        choice = _arm_of(material, row["encoder"], row["kind"])
        if choice.barred and not choice.names:
            return bound(Finding("nothing measured"), choice)
        name = choice.names[0]
        if row["quantity"] == "mixed":
            values = material.folds(name, row["size"], row["metric"])
        else:
            values = material.across(name, row["metric"])[row["quantity"]]
        return bound(printed(material, values, row["value"], TOLERANCE, name, row["quantity"]), choice)

    title, said = (
        METRIC_TITLES[row["metric"]],
        "" if pd.isna(row["sd"]) else f" ± {row['sd']:.{3 if row['sd'] * 1000 % 10 else 2}f}",
    )
    where = {"mixed": f"{100 * row['size']:g} % of the data", "inside": "in domain", "outside": "out of domain"}[
        row["quantity"]
    ]
    return Claim(
        f"{row['arm']} on {DATA_NAMES[row['data_set']]}: {title} {row['value']:.2f}{said}, {where}",
        row["where"] if isinstance(row["where"], str) else "a note",
        f"mean {title} over folds of that arm",
        f"{row['value']:.2f}",
        f"± {TOLERANCE:g}",
        measure,
        ({"midog22": MIDOG22, "ccmct": CCMCT}[row["data_set"]],),
        AMMELING,
    )


def _count(column: str, expected: int) -> Measure:
    def measure(material: Material) -> Finding:
        if material.labels is None:
            return Finding("nothing measured", barred="patches haven't been extracted, so that there is no label table")
        if column == "slide_id":
            return exactly(
                material.labels["slide_id"].nunique(), expected, "images with an annotation; 51 more aren't labelled"
            )
        return exactly(int((material.labels["label"] == (column == "positive")).sum()), expected)

    return measure


def successor() -> list[Claim]:
    """Every number of the successor that a study can be held against."""
    return [_published(row) for row in pd.read_csv(compare.PUBLISHED / "published_ammeling_2025.csv").to_dict("records")]


_COUNT = "count of the study's label table"

CLAIMS = [
    Claim(
        "LoRA with 10 % data is close to 100 %",
        "abstract",
        "AUROC of each network adapted by LoRA at 10 % less that with all the data",
        "no lower",
        f"intervals begin above -{ALIKE:g}",
        tenth_is_enough,
        paper=AMMELING,
    ),
    Claim(
        "LoRA almost closes the out-of-domain gap for the newest foundation models",
        "abstract",
        "AUROC of each network adapted by LoRA out of domain less in domain",
        "no lower",
        f"intervals begin above -{ALIKE:g}",
        gap_is_closed,
        paper=AMMELING,
    ),
    Claim(
        "full fine-tuning of classic networks is still competitive",
        "abstract",
        "AUROC with all the data of the network trained end to end less that of each adapted by LoRA",
        "no lower",
        f"intervals begin above -{ALIKE:g}",
        classic_is_competitive,
        paper=AMMELING,
    ),
    Claim("9,501 mitotic figures", "a note", _COUNT, "9,501", "none", _count("positive", 9_501), (MIDOG22,), AMMELING),
    Claim("11,051 hard negatives", "a note", _COUNT, "11,051", "none", _count("negative", 11_051), (MIDOG22,), AMMELING),
    Claim("405 images", "a note", _COUNT, "405", "none", _count("slide_id", 405), (MIDOG22,), AMMELING),
    *successor(),
]
