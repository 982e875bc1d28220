"""Claims on the amount of data (Ganz et al. 2024: Fig. 1, and what abstract and discussion make of it)."""

from dataclasses import replace
from itertools import combinations

import pandas as pd

from mfcore.analysis import compare
from mfcore.claims import arms as claims_arms
from mfcore.claims.arms import Choice, bound, end_to_end, foundation, imagenet
from mfcore.claims.judge import (
    CCMCT,
    FOUNDATION,
    MIDOG22,
    NOT_REPRODUCED,
    REPRODUCED,
    Claim,
    Finding,
    Material,
    Measure,
    Pair,
    better,
    no_better,
    number,
    similar,
)
from mfcore.claims.scores import INSIDE, MIXED
from mfcore.data import splits
from mfcore.measures.statistics import Folds
from mfcore.study.config import MODES, as_dict

MARGIN, ALIKE = 0.02, 0.03  # of AUROC: what isn't worth calling better, and what the paper itself calls similar
STRONG, WEAK = FOUNDATION[:4], FOUNDATION[4:]


def full(material: Material) -> list[float]:
    """The largest size, in a list; empty where there are no fits on all domains."""
    return material.sizes[-1:]


def pairs(
    material: Material, first: tuple[str, ...], second: tuple[str, ...], sizes: list[float], metric: str = "auroc"
) -> list[Pair]:
    """Each arm of ``first`` against each of ``second`` at each size."""
    return [
        Pair(
            f"{a} against {b}" + (f" at {splits.percent(size)} %" if len(sizes) > 1 else ""),
            material.folds(a, size, metric),
            material.folds(b, size, metric),
        )
        for size in sizes
        for a in first
        for b in second
        if a != b
    ]


def _among(material: Material, arms: tuple[str, ...], size: float) -> list[Pair]:
    return [Pair(f"{a} against {b}", material.folds(a, size), material.folds(b, size)) for a, b in combinations(arms, 2)]


def _gains(material: Material, arms: tuple[str, ...]) -> dict[str, Folds]:
    """How much each arm gains from the smallest size to the largest, by fold."""
    sizes = material.sizes
    return {arm: material.folds(arm, sizes[-1]) - material.folds(arm, sizes[0]) for arm in arms} if len(sizes) > 1 else {}


def at_every_size(material: Material, network: Choice) -> tuple[list[float], Choice]:
    """The sizes at which a network was trained, and the choice of it: partial where it wasn't at every one."""
    sizes = [size for size in material.sizes if all(len(material.folds(name, size)) for name in network.names)]
    lacking = [f"{splits.percent(size)} %" for size in material.sizes if size not in sizes]
    said = f"{', '.join(network.names)} not trained at {', '.join(lacking)}"
    return (sizes, replace(network, partial=said)) if lacking else (sizes, network)


def beats_foundation(material: Material) -> Finding:
    """The end-to-end network against every foundation model's probe, at every size."""
    models = foundation(material)
    sizes, network = at_every_size(material, end_to_end(material))
    return bound(better(material, pairs(material, network.names, models.names, sizes)), network, models)


def beats_everything(material: Material) -> Finding:
    """The end-to-end network against every probe of the paper, at every size."""
    models, photographs = foundation(material), imagenet(material)
    sizes, network = at_every_size(material, end_to_end(material))
    others = tuple(dict.fromkeys((*models.names, *photographs.names)))
    return bound(better(material, pairs(material, network.names, others, sizes)), network, models, photographs)


def more_data_helps(material: Material) -> Finding:
    """Every arm of the paper at the largest size against itself at the smallest."""
    sizes, choices = material.sizes, (end_to_end(material), foundation(material), imagenet(material))
    if len(sizes) < 2:
        return Finding("one size only")
    arms = dict.fromkeys(name for choice in choices for name in choice.names)
    compared = [Pair(arm, material.folds(arm, sizes[-1]), material.folds(arm, sizes[0])) for arm in arms]
    why = f"largest ({splits.percent(sizes[-1])} %) against smallest size ({splits.percent(sizes[0])} %)"
    return bound(better(material, compared, why), *choices)


def gains_alike(material: Material) -> Finding:
    """What each foundation model's probe gains from the smallest size to the largest, against each other's."""
    models = foundation(material)
    gains = _gains(material, models.names)
    compared = [Pair(f"gain of {a} against {b}", gains[a], gains[b]) for a, b in combinations(gains, 2)]
    return bound(similar(material, compared, ALIKE), models)


def weak_lag(material: Material) -> Finding:
    """Phikon and UNI each below each of the other four, at the largest size."""
    strong, weak = (foundation(material, part) for part in (STRONG, WEAK))
    if strong.barred or weak.barred:
        return Finding("nothing to compare", barred=claims_arms.foundation(material).barred or strong.barred or weak.barred)
    return bound(better(material, pairs(material, strong.names, weak.names, full(material))), strong, weak)


def imagenet_is_outdone(material: Material) -> Finding:
    """The end-to-end network and every foundation model's probe above both ImageNet probes, at the largest size."""
    network, models, photographs = end_to_end(material), foundation(material), imagenet(material)
    compared = pairs(material, (*network.names, *models.names), photographs.names, full(material))
    return bound(better(material, compared), network, models, photographs)


def printed_full_size(data_set: str, tolerance: float) -> Claim:
    """The end-to-end network's AUROC with all the data, as the text prints it for one data set."""
    row = {"CCMCT": ("CCMCT", CCMCT), "MIDOG": ("MIDOG 2022", MIDOG22)}[data_set]
    table = pd.read_csv(compare.PUBLISHED / "published_ganz_2024_full_size.csv").set_index("data_set")
    expected, sd = float(table.loc[row[0], "auroc"]), float(table.loc[row[0], "auroc_sd"])

    def measure(material: Material) -> Finding:
        network = end_to_end(material)
        values = [material.folds(name, size) for name in network.names for size in full(material)]
        if not values:
            return bound(Finding("nothing measured"), network)
        return bound(printed(material, values[0], expected, tolerance, network.names[0]), network)

    first = "it achieved a mean AUROC of 0.87 ± 0.01 on the CCMCT dataset"
    quote = first if data_set == "CCMCT" else "0.89 ± 0.01 on the MIDOG dataset"
    test = "mean AUROC over folds of the ResNet50 trained end to end, with all the data"
    return Claim(quote, "section 4", test, f"{expected:.2f} (printed ± {sd:.2f})", f"± {tolerance:g}", measure, (row[1],))


def printed(material: Material, values: Folds, expected: float, tolerance: float, arm: str, tested: str = MIXED) -> Finding:
    """`number`, with in what the study departs from the paper's protocol wherever the number isn't the printed one."""
    finding = number(material, values, expected, tolerance, tested=tested)
    return finding if finding.outcome == REPRODUCED else replace(finding, why=departures(material, arm))


def departures(material: Material, arm: str) -> str:
    """In what this study does an arm otherwise than the released code and the paper, in words."""
    study, released = material.study, as_dict(MODES["paper"])
    other = [key for key, value in as_dict(study.switches).items() if value != released[key]]
    own = f"{study.mode_title}, which makes none of the released code's departures"
    said = [own if len(other) == len(released) else f"not as the released code: {', '.join(other)}"] if other else []
    network = material.network(arm)
    if network is not None:
        protocol = {"input_px": 224, "n_epochs": 100, "patches_per_epoch": 1280, "batch_size": 16, "max_lr": 1e-4}
        other = [
            f"{key} {getattr(network, key)} for {value}" for key, value in protocol.items() if getattr(network, key) != value
        ]
        said += [f"not as published: {', '.join(other)}"] if other else []
    return "; ".join(said)


def strong_alike(material: Material) -> Finding:
    """The four strong models within ALIKE of each other, at the largest size."""
    return _alike(material, STRONG)


def all_alike(material: Material) -> Finding:
    """The six models within ALIKE of each other, at the largest size."""
    return _alike(material, FOUNDATION)


def _alike(material: Material, wanted: tuple[str, ...]) -> Finding:
    models = foundation(material, wanted)
    compared = [pair for size in full(material) for pair in _among(material, models.names, size)]
    return bound(similar(material, compared, ALIKE), models)


def best_is(encoder: str) -> Measure:
    """That one encoder's probe is above every other foundation model's, at the largest size."""

    def measure(material: Material) -> Finding:
        models = foundation(material)
        if encoder not in models.names:
            return bound(Finding("nothing to compare", barred=f"{encoder}: {material.missing(encoder)}"), models)
        return bound(better(material, pairs(material, (encoder,), models.names, full(material))), models)

    return measure


def no_more_data_efficient(material: Material) -> Finding:
    """No foundation model's probe above the end-to-end network at any size below the largest."""
    models = foundation(material)
    sizes, network = at_every_size(material, end_to_end(material))
    compared = pairs(material, models.names, network.names, [size for size in sizes if size < material.sizes[-1]])
    return bound(no_better(material, compared, MARGIN), network, models)


def not_converged(material: Material) -> Finding:
    """Every arm still gains in the last step of size: judged as one statement about all the paper's arms."""
    sizes = material.sizes
    if len(sizes) < 2:
        return Finding("one size only")
    arms = (*end_to_end(material).names, *foundation(material).names)
    compared = [Pair(arm, material.folds(arm, sizes[-1]), material.folds(arm, sizes[-2])) for arm in arms]
    last = " % to ".join(splits.percent(size) for size in sizes[-2:])
    why = f"from {last} %; a further gain beyond the data isn't measured by this"
    return bound(better(material, compared, why), end_to_end(material), foundation(material))


def pretraining_on_slides_helps(material: Material) -> Finding:
    """Foundation models as large as the ImageNet ViT-H above it, at the largest size."""
    photographs, models = imagenet(material), foundation(material, ("virchow", "virchow2"))
    names = tuple(name for name in photographs.names if name == "vit_huge_in21k")
    if not names:
        return Finding("nothing to compare", barred=f"vit_huge_in21k: {material.missing('vit_huge_in21k')}")
    return bound(better(material, pairs(material, models.names, names, full(material))), models)


def fine_tuning_helps(material: Material) -> Finding:
    """Every network adapted by LoRA above the probe on the same encoder, at the largest size that both have."""
    adapted, compared, alone = claims_arms.lora(material), [], []
    for name in adapted.names:
        network = material.network(name)
        encoder = network.architecture if network else ""
        if claims_arms.has_probe(material, encoder):
            compared += pairs(material, (name,), (encoder,), full(material))
        else:
            alone.append(f"{name} has no probe on {encoder} beside it")
    of_paper = [p for p in adapted.names if (n := material.network(p)) and n.architecture in FOUNDATION]
    barred = "" if of_paper else "no foundation model of the paper was adapted here"
    return bound(better(material, compared, "; ".join(alone), barred), adapted)


def all_conclude(material: Material) -> Finding:
    """Both experiments at once: with all the data, and out of domain."""
    network, models = end_to_end(material), foundation(material)
    compared = pairs(material, network.names, models.names, full(material))
    compared += [
        Pair(f"{a} against {b}, out of domain", material.across(a)["outside"], material.across(b)["outside"], INSIDE)
        for a in network.names
        for b in models.names
        if len(material.crossed)
    ]
    missing = "" if len(material.crossed) else "no cross-domain fits in this study: the first experiment only"
    finding = bound(better(material, compared, missing), network, models)
    return replace(finding, barred=missing) if missing and finding.outcome not in (NOT_REPRODUCED,) else finding


_LOWEST = "differences above zero, p below 0.05 after Holm"

CLAIMS = [
    Claim(
        "the end-to-end-trained baseline outperformed all FM-based classifiers, regardless of the amount of data provided",
        "abstract",
        "AUROC of the network less that of each foundation model's probe, at each size",
        "above 0 in each",
        _LOWEST,
        beats_foundation,
    ),
    Claim(
        "for all models, performance improved significantly as the size of the available training data increased",
        "section 4, Fig. 1",
        "AUROC of each arm at the largest size less that at the smallest",
        "above 0 in each",
        _LOWEST,
        more_data_helps,
    ),
    Claim(
        "On the CCMCT dataset, the performance increase in relation to the amount of training data was similar across all "
        "FM-based classifiers.",
        "section 4, Fig. 1",
        "gain from the smallest to the largest size, each foundation model's less each other's",
        "no difference",
        f"intervals within ± {ALIKE:g}",
        gains_alike,
        (CCMCT,),
    ),
    Claim(
        "on the MIDOG dataset, classifiers using embeddings from Phikon and UNI lagged behind the other FM-based approaches",
        "section 4, Fig. 1",
        "AUROC with all the data of each of the other four less that of Phikon, of UNI",
        "above 0 in each",
        _LOWEST,
        weak_lag,
        (MIDOG22,),
    ),
    Claim(
        "The two ImageNet baselines were significantly outperformed by both the end-to-end trained ResNet50 and the FM-based "
        "classifiers on both datasets.",
        "section 4, Fig. 1",
        "AUROC with all the data of the network and of each foundation model's probe less that of each ImageNet probe",
        "above 0 in each",
        _LOWEST,
        imagenet_is_outdone,
        (MIDOG22, CCMCT),
    ),
    Claim(
        "Across data set sizes, the end-to-end trained baseline model outperformed all other models across both datasets.",
        "section 4, Fig. 1",
        "AUROC of the network less that of each probe, at each size",
        "above 0 in each",
        _LOWEST,
        beats_everything,
        (MIDOG22, CCMCT),
    ),
    printed_full_size("CCMCT", 0.02),
    printed_full_size("MIDOG", 0.02),
    Claim(
        "the H-optimus-0, Prov-GigaPath, Virchow, and Virchow2 models demonstrated similar performance",
        "section 4, Fig. 1",
        "AUROC with all the data of each of the four less that of each other",
        "no difference",
        f"intervals within ± {ALIKE:g}",
        strong_alike,
        (MIDOG22, CCMCT),
    ),
    Claim(
        "on the CCMCT dataset, Virchow2 embeddings had a slight advantage over the other FMs",
        "section 4, Fig. 1",
        "AUROC with all the data of Virchow2's probe less that of each other foundation model's",
        "above 0 in each",
        _LOWEST,
        best_is("virchow2"),
        (CCMCT,),
    ),
    Claim(
        "on the MIDOG dataset, H-optimus-0 embeddings delivered the best performance among the FMs",
        "section 4, Fig. 1",
        "AUROC with all the data of H-optimus-0's probe less that of each other foundation model's",
        "above 0 in each",
        _LOWEST,
        best_is("h_optimus_0"),
        (MIDOG22,),
    ),
    Claim(
        "In both experiments, the end-to-end-trained ResNet50 baseline outperformed the FM-based classifiers.",
        "section 5",
        "AUROC of the network less that of each foundation model's probe, with all the data and out of domain",
        "above 0 in each",
        _LOWEST,
        all_conclude,
    ),
    Claim(
        "better results might be achievable if the FMs were fine-tuned for the specific task",
        "section 5",
        "AUROC with all the data of each network adapted by LoRA less that of the probe on the same encoder",
        "above 0 in each",
        _LOWEST,
        fine_tuning_helps,
    ),
    Claim(
        "the ViT-H based classifier, which, despite having a comparable number of parameters, achieved lower performance",
        "section 5, Fig. 1",
        "AUROC with all the data of Virchow's and Virchow2's probes, as large, less that of the ImageNet ViT-H's",
        "above 0 in each",
        _LOWEST,
        pretraining_on_slides_helps,
    ),
    Claim(
        "The FM-based classifiers didn't turn out to be more data-efficient in comparison to our end-to-end trained ResNet50 "
        "model.",
        "section 5",
        "AUROC of each foundation model's probe less that of the network, at each size below the largest",
        "not above 0",
        f"intervals end below {MARGIN:g}",
        no_more_data_efficient,
    ),
    Claim(
        "the performance on both datasets in Fig. 1 does not seem to have converged yet",
        "section 5, Fig. 1",
        "AUROC of the network and of each foundation model's probe at the largest size less that at the one before",
        "above 0 in each",
        _LOWEST,
        not_converged,
    ),
    Claim(
        "the Uni and Phikon-based models performed slightly worse on the MIDOG dataset compared to the other FMs",
        "section 5",
        "AUROC with all the data of each of the other four less that of Phikon, of UNI",
        "above 0 in each",
        _LOWEST,
        weak_lag,
        (MIDOG22,),
    ),
    Claim(
        "the CCMCT dataset, where all FM-based classifiers performed similarly",
        "section 5",
        "AUROC with all the data of each foundation model's probe less that of each other",
        "no difference",
        f"intervals within ± {ALIKE:g}",
        all_alike,
        (CCMCT,),
    ),
]
