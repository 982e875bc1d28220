"""Claims on the data and the models (Ganz et al. 2024, sections 2 and 3, Tab. 1): counts, resolutions, sizes of networks."""

import re

import pandas as pd

from mfcore.analysis import compare
from mfcore.claims.judge import (
    ANYWHERE,
    CCMCT,
    FOUNDATION,
    IMAGENET,
    MIDOG22,
    NOT_REPRODUCED,
    NOT_TESTABLE,
    REPRODUCED,
    Claim,
    Finding,
    Material,
    Measure,
    exactly,
)
from mfcore.encoders.card import EncoderCard, cards

NO_LABELS = Finding("nothing measured", barred="patches haven't been extracted, so that there is no label table")
N_CLASSES = 1000  # of the classifier that an ImageNet network's printed size may count in
MIDOG22_DOMAINS = (
    "canine cutaneous mast cell tumor",
    "canine lung cancer",
    "canine lymphoma",
    "human breast cancer",
    "human neuroendocrine tumor",
)
TYPES = {"ViT-G": "vit_giant", "ViT-H": "vit_huge", "ViT-L": "vit_large", "ViT-B": "vit_base"}


# ---- counts, from the study's label table ----


def _annotations(label: int, expected: int, other: int) -> Measure:
    """The count of one class; ``other`` is what the paper prints for the other."""

    def measure(material: Material) -> Finding:
        if material.labels is None:
            return NO_LABELS
        found = int((material.labels["label"] == label).sum())
        swapped = found == other != expected
        why = "these labels have the paper's two counts the other way round: it prints them swapped" if swapped else ""
        finding = exactly(found, expected, why)
        names = (material.study.data.negative, material.study.data.positive)
        return Finding(f"{found:,} {names[label]}s", finding.outcome, finding.difference, why)

    return measure


def _slides(expected: int) -> Measure:
    def measure(material: Material) -> Finding:
        if material.labels is None:
            return NO_LABELS
        why = "slides that hold an annotation"
        return exactly(material.labels["slide_id"].nunique(), expected, why)

    return measure


def _domains(material: Material) -> Finding:
    """The five tumours by name."""
    if material.labels is None:
        return NO_LABELS
    found = sorted(material.labels["domain"].unique())
    outcome = REPRODUCED if tuple(found) == MIDOG22_DOMAINS else NOT_REPRODUCED
    return Finding(f"{len(found)}: {', '.join(found)}", outcome, float(len(found) - len(MIDOG22_DOMAINS)))


def _all_cell_types(material: Material) -> Finding:
    n = 0 if material.labels is None else len(material.labels)
    barred = "the label table keeps the two classes that are used, and no other cell types"
    return Finding(f"{n:,} annotations of the two classes" if n else "nothing measured", barred=barred)


def _less_than_other(material: Material) -> Finding:
    """This data set's annotations beside those that the paper prints for the other data set."""
    if material.labels is None:
        return NO_LABELS
    n, source = len(material.labels), material.study.data.source
    printed = {MIDOG22: ("CCMCT", 44_880 + 27_965, -1), CCMCT: ("MIDOG 2022", 11_051 + 9_501, 1)}
    if source not in printed:
        return Finding(f"{n:,} annotations")
    name, other, sign = printed[source]
    difference = n - other
    return Finding(f"{n:,}; printed for {name}: {other:,}", REPRODUCED if sign * difference > 0 else NOT_REPRODUCED, difference)


def _resolution(material: Material) -> Finding:
    """Level 0 of every slide, in µm/px: the released code reads it as it is."""
    if material.labels is None or material.labels["um_per_px"].isna().any():
        return NO_LABELS
    slides = material.labels.groupby("slide_id")["um_per_px"].first()
    away = (slides / 0.25 - 1).abs()
    n_near = int((away <= 0.01).sum())
    text = f"level 0 is at {slides.min():.4f} to {slides.max():.4f} µm/px; {n_near} of {len(slides)} slides within 1 % of 0.25"
    study = material.study
    said = study.data.um_per_px is not None or study.data.um_per_px_by_scanner
    why = "where a slide doesn't state its µm/px, the study's word is taken; " if said else ""
    resampled = study.switches.resolution == "target" and study.source.has_slides
    why += f"this study resamples to {study.patches.um_per_px} µm/px" if resampled else "this study reads patches as scanned"
    outcome = REPRODUCED if n_near == len(slides) else NOT_REPRODUCED
    barred = "" if study.source.has_slides else "its patches don't state their µm/px: 0.25 is taken for them"
    worst = slides.loc[away.idxmax()]
    return Finding(text, outcome, float(worst - 0.25), why, barred)


# ---- networks, from the registry's cards ----


def _count_of_models(expected: int) -> Measure:
    def measure(_: Material) -> Finding:
        why = "" if expected == len(FOUNDATION) else "section 3 and Tab. 1 of the same paper have six"
        return exactly(len(FOUNDATION), expected, why)

    return measure


def _are_transformers(_: Material) -> Finding:
    architectures = [cards()[name].architecture for name in FOUNDATION]
    n = sum(name.startswith("vit_") for name in architectures)
    return Finding(f"{n} of {len(architectures)}", REPRODUCED if n == len(architectures) else NOT_REPRODUCED)


def _are_ordered(_: Material) -> Finding:
    sizes = [float(f"{cards()[name].n_parameters:.3g}") for name in FOUNDATION]
    text = ", ".join(f"{size / 1e6:,.0f}M" for size in sizes)
    return Finding(text, REPRODUCED if sizes == sorted(sizes, reverse=True) else NOT_REPRODUCED)


def parse_size(printed: str) -> tuple[float, float]:
    """A printed count of parameters, as "1.1B" or "632M", and one unit of its last digit."""
    number, unit = float(printed[:-1]), {"M": 1e6, "B": 1e9}[printed[-1]]
    return number * unit, unit / 10 ** len(printed[:-1].partition(".")[2])


def size_of(card: EncoderCard, printed: str, kind: str = "") -> Finding:
    """Whether a built architecture has the printed number of parameters, to one unit of the last digit, and the type.

    Cards count no classifier; an ImageNet network's printed size may count one of N_CLASSES in, and the nearer is taken.
    """
    expected, unit = parse_size(printed)
    counts = {"": card.n_parameters}
    if card.name in IMAGENET:
        counts[f" with a classifier of {N_CLASSES:,} classes"] = card.n_parameters + (card.n_dims + 1) * N_CLASSES
    nearest = min(counts.values(), key=lambda n: abs(n - expected))
    is_type = not kind or card.architecture.startswith(TYPES[kind])
    said = ", ".join(f"{n / 1e6:,.1f}M{what}" for what, n in counts.items())
    outcome = REPRODUCED if abs(nearest - expected) <= unit and is_type else NOT_REPRODUCED
    why = "" if is_type else f"not a {kind}"
    if is_type and outcome == NOT_REPRODUCED:
        why = f"the built network's size is {100 * (nearest / expected - 1):+.1f} % off the printed one, without classifier"
    return Finding(f"{card.architecture}: {said}", outcome, float(nearest - expected), why)


def _printed_size(row: dict) -> Claim:
    card, kind = cards()[row["encoder"]], row["type"] if isinstance(row["type"], str) else ""
    in_table = row["where"] == "Tab. 1"
    said = f"{row['arm']}: Model Type {kind}, Model Size {row['size']}"
    quote = said if in_table else {"vit_huge_in21k": "ViT-H 632M parameters", "resnet50": "ResNet50 with 25M"}[card.name]
    return Claim(
        quote,
        row["where"],
        "parameters of the architecture as built, which its card asserts",
        f"{row['size']}{', ' + kind if kind else ''}",
        "one unit of the last digit",
        lambda _: size_of(card, row["size"], kind),
        (ANYWHERE,),
    )


def n_patch_tokens(card: EncoderCard) -> int:
    """Patch tokens of a vision transformer at its card's crop: those that are no class or register token."""
    found = re.search(r"patch(\d+)", card.architecture)
    side = card.arguments.get("patch_size") or (int(found[1]) if found else 0)
    if not isinstance(side, int) or not side:
        raise ValueError(f"{card.name}: its architecture {card.architecture!r} names no patch size")
    return (card.crop_px // side) ** 2


def _tokens(material: Material) -> Finding:
    """Patch tokens of Virchow and Virchow2, and whether their cards' mean is over these alone."""
    found = {name: n_patch_tokens(cards()[name]) for name in ("virchow", "virchow2")}
    registers = cards()["virchow2"].n_prefix_tokens - 1
    text = ", ".join(f"{name} {n}" for name, n in found.items())
    why = f"the released code's mean for Virchow2 is over {found['virchow2'] + registers}: it counts the registers in"
    if material.study.switches.encoder_input == "released":
        why += ", and so does this study"
    right = all(n == 256 and cards()[name].readout == "class+mean" for name, n in found.items())
    outcome = REPRODUCED if right else NOT_REPRODUCED
    return Finding(text, outcome, float(max(found.values()) - 256), why)


def _class_token_only(_: Material) -> Finding:
    others = [name for name in (*FOUNDATION, "vit_huge_in21k") if name not in ("virchow", "virchow2")]
    readouts = {name: cards()[name].readout for name in others}
    outcome = REPRODUCED if set(readouts.values()) == {"class"} else NOT_REPRODUCED
    text = ", ".join(f"{name} {readout}" for name, readout in readouts.items())
    return Finding(text, outcome, why="ResNet50 has no class token: its last map's mean is taken")


def _pretraining_data(_: Material) -> Finding:
    return Finding("nothing measured", NOT_TESTABLE, barred="it is about how others trained, of which no weights tell")


def models() -> list[Claim]:
    """The sizes of Tab. 1 and of the two ImageNet baselines."""
    table = pd.read_csv(compare.PUBLISHED / "published_ganz_2024_models.csv")
    return [_printed_size(row) for row in table.to_dict("records")]


_COUNT = "count of the study's label table"

CLAIMS = [
    Claim(
        "we compared linear probing of five publicly available FMs",
        "abstract",
        "foundation models that the paper's own Tab. 1 has",
        "5",
        "none",
        _count_of_models(5),
        (ANYWHERE,),
    ),
    Claim("which consists of 11,051 MFs", "section 2", _COUNT, "11,051", "none", _annotations(1, 11_051, 9_501), (MIDOG22,)),
    Claim("9,501 MF look-alikes", "section 2", _COUNT, "9,501", "none", _annotations(0, 9_501, 11_051), (MIDOG22,)),
    Claim("on 354 regions of interests", "section 2", _COUNT, "354", "none", _slides(354), (MIDOG22,)),
    Claim(
        "from five different domains, including human breast cancer (domain 1), canine lung cancer (domain 2), canine lymphoma",
        "section 2",
        "domains of the study's label table",
        "these five",
        "none",
        _domains,
        (MIDOG22,),
    ),
    Claim(
        "The second dataset comprises 32 whole slide images (WSIs)", "section 2", _COUNT, "32", "none", _slides(32), (CCMCT,)
    ),
    Claim(
        "originally contains 262,481 annotations of different cell types",
        "section 2",
        "annotations of every class in the published file",
        "262,481",
        "none",
        _all_cell_types,
        (CCMCT,),
    ),
    Claim(
        "we only used 44,880 annotations representing MFs",
        "section 2",
        _COUNT,
        "44,880",
        "none",
        _annotations(1, 44_880, 27_965),
        (CCMCT,),
    ),
    Claim(
        "27,965 annotations belonging to MF look-alikes",
        "section 2",
        _COUNT,
        "27,965",
        "none",
        _annotations(0, 27_965, 44_880),
        (CCMCT,),
    ),
    Claim(
        "We compared six different models in this work",
        "section 3",
        "foundation models that the paper's own Tab. 1 has",
        "6",
        "none",
        _count_of_models(6),
        (ANYWHERE,),
    ),
    Claim(
        "All of the models are Vision Transformers (ViTs) of varying sizes.",
        "section 3",
        "architectures of the six models' cards",
        "6 of 6",
        "none",
        _are_transformers,
        (ANYWHERE,),
    ),
    *models(),
    Claim(
        "Foundation models compared in this study, ordered by the size of the respective model.",
        "Tab. 1",
        "parameters of the architectures as built, in the table's order",
        "none above the one before",
        "three digits",
        _are_ordered,
        (ANYWHERE,),
    ),
    Claim(
        "Most of the compared models were trained using DINOv2",
        "section 3",
        "how each model was pretrained",
        "most",
        "none",
        _pretraining_data,
        (ANYWHERE,),
    ),
    Claim(
        "170K | 1.3B",
        "Tab. 1",
        "slides and tiles that each model was pretrained on (the first row's are quoted)",
        "as printed",
        "none",
        _pretraining_data,
        (ANYWHERE,),
    ),
    Claim(
        "at a resolution of 0.25 microns per pixel",
        "section 3",
        "resolution of every slide at level 0, in µm/px, which the released code reads as it is",
        "0.25 µm/px",
        "± 1 % for every slide",
        _resolution,
        (MIDOG22, CCMCT),
    ),
    Claim(
        "concatenating the class token and the mean across all 256 patch tokens",
        "section 3",
        "tokens at the cards' input, less class and register tokens; the cards' readouts",
        "256",
        "none",
        _tokens,
        (ANYWHERE,),
    ),
    Claim(
        "For all other models, only the class token was used",
        "section 3",
        "readouts of the other transformers' cards",
        "class token",
        "none",
        _class_token_only,
        (ANYWHERE,),
    ),
    Claim(
        "substantially less data was available for the respective training set sizes in the MIDOG dataset compared to the "
        "CCMCT dataset",
        "section 3",
        "annotations of this data set beside those that the paper prints for the other",
        "MIDOG below CCMCT",
        "none",
        _less_than_other,
        (MIDOG22, CCMCT),
    ),
]
