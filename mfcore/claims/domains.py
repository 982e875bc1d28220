"""Claims on domain shift (Ganz et al. 2024: Tab. 2 row by row, Fig. 2, and what abstract and discussion make of them)."""

from dataclasses import replace
from itertools import combinations, permutations

import pandas as pd

from mfcore.analysis import compare
from mfcore.claims.arms import Choice, bound, end_to_end, foundation, imagenet, probe
from mfcore.claims.judge import (
    FOUNDATION,
    MIDOG22,
    REPRODUCED,
    UNCLEAR,
    Claim,
    Finding,
    Material,
    Measure,
    Pair,
    better,
    no_better,
    similar,
    some_differ,
)
from mfcore.claims.results import MARGIN, STRONG, WEAK, printed
from mfcore.claims.scores import INSIDE
from mfcore.measures.statistics import Folds

TOLERANCE = 0.03
NONE = "the study has no cross-domain fits"
COLUMNS = {"in_domain": ("inside", "AUROC In Domain"), "out_of_domain": ("outside", "AUROC Out of Domain")}
_HOLM = "differences above zero, p below 0.05 after Holm"


def _pairs(material: Material, first: tuple[str, ...], second: tuple[str, ...], columns: tuple[str, ...]) -> list[Pair]:
    """Each arm of ``first`` against each of ``second`` in each of ``inside``, ``outside``, ``drop``."""
    said = {"inside": "in domain", "outside": "out of domain", "drop": "loss out of domain"}
    return [
        Pair(
            f"{a} against {b}, {said[column]}",
            material.across(a)[column],
            material.across(b)[column],
            INSIDE,
        )
        for column in columns
        for a in first
        for b in second
        if a != b
    ]


def _crossed(material: Material, finding: Finding, *choices: Choice) -> Finding:
    """``finding``, or why there is none."""
    return bound(finding, *choices) if len(material.crossed) else Finding("nothing measured", barred=NONE)


def beats_everything(material: Material) -> Finding:
    """The end-to-end network above every probe of the paper, in domain and out of domain."""
    network, models, photographs = end_to_end(material), foundation(material), imagenet(material)
    others = tuple(dict.fromkeys((*models.names, *photographs.names)))
    compared = _pairs(material, network.names, others, ("inside", "outside"))
    return _crossed(material, better(material, compared), network, models, photographs)


def no_more_robust(material: Material) -> Finding:
    """No foundation model's probe loses less out of domain than the end-to-end network does."""
    network, models = end_to_end(material), foundation(material)
    compared = _pairs(material, network.names, models.names, ("drop",))
    why = "robust is read as losing little (who is ahead out of domain is a row of its own)"
    return _crossed(material, no_better(material, compared, MARGIN, why), network, models)


def strong_are_ahead(material: Material) -> Finding:
    """The four strong models above UNI and Phikon, in domain and out of domain."""
    strong, weak = (foundation(material, part) for part in (STRONG, WEAK))
    if strong.barred or weak.barred:
        return Finding("nothing to compare", barred=foundation(material).barred or strong.barred or weak.barred)
    return _crossed(material, better(material, _pairs(material, strong.names, weak.names, ("inside", "outside"))), strong, weak)


def printed_sd(columns: tuple[str, ...]) -> float:
    """The largest SD that Tab. 2 prints for a foundation model in ``inside`` or ``outside``: its own yardstick."""
    encoders = pd.read_csv(compare.PUBLISHED / "published_ganz_2024_models.csv").set_index("arm")["encoder"]
    table = compare.published_table()
    rows = table[table["arm"].map(encoders).isin(FOUNDATION)]
    return float(max(rows[f"{column}_sd"].max() for column, (own, _) in COLUMNS.items() if own in columns))


def all_alike(columns: tuple[str, ...]) -> Measure:
    """That all six models lie within the printed SD of each other."""

    def measure(material: Material) -> Finding:
        models = foundation(material, FOUNDATION)
        compared = [
            pair for a, b in combinations(models.names, 2) for pair in _pairs(material, (a,), (b,), columns) if len(pair.first)
        ]
        return _crossed(material, similar(material, compared, printed_sd(columns)), models)

    return measure


def all_lose(material: Material) -> Finding:
    """The end-to-end network and every foundation model's probe lose out of domain, and more than MARGIN."""
    network, models = end_to_end(material), foundation(material)
    names = (*network.names, *models.names)
    compared = [Pair(arm, material.across(arm)["inside"], material.across(arm)["outside"], INSIDE) for arm in names]
    finding = better(material, compared, "the paper's own losses are 0.12 to 0.15")
    if finding.outcome == REPRODUCED and finding.difference < MARGIN:  # clear, and not substantial
        finding = replace(finding, outcome=UNCLEAR)
    return _crossed(material, finding, network, models)


def _cells(material: Material, arm: str) -> dict[tuple[str, str], Folds]:
    """AUROC by fold of each cell of Fig. 2: trained on the first domain, tested on the second."""
    rows = material.crossed.loc[material.crossed["arm"] == arm, ["train_domain", "domain"]].drop_duplicates()
    return {way: material.cell(arm, *way) for way in sorted(rows.itertuples(index=False, name=None))}


def uneven(material: Material) -> Finding:
    """Whether the network trained on one domain loses more on one of the others than on another."""
    network = end_to_end(material)
    compared = []
    for arm in network.names:
        cells = _cells(material, arm)
        domains = sorted({train for train, _ in cells})
        for train in domains:
            others = [domain for domain in domains if domain != train and (train, domain) in cells]
            compared += [
                Pair(f"from {train} to {a} against to {b}", cells[train, a], cells[train, b], INSIDE)
                for a, b in combinations(others, 2)
            ]
    if len(material.crossed) and network.names and not compared:
        return Finding("two domains only: there is one external domain", barred="it takes three domains")
    return _crossed(material, some_differ(material, compared, MARGIN), network)


def asymmetric(material: Material) -> Finding:
    """Whether some two domains differ in what is reached from one to the other, and back."""
    network = end_to_end(material)
    compared = []
    for arm in network.names:
        cells = _cells(material, arm)
        compared += [
            Pair(f"{a} to {b} against back", cells[a, b], cells[b, a], INSIDE)
            for a, b in permutations(sorted({train for train, _ in cells}), 2)
            if a < b and (b, a) in cells and (a, b) in cells
        ]
    why = "the two ways are tested on different domains, one of which may be harder by itself"
    return _crossed(material, some_differ(material, compared, MARGIN, why), network)


def _table_2(arm: str, encoder: str, column: str, expected: float, sd: float) -> Claim:
    """One cell of Tab. 2 as a claim. encoder: the card's name; "" for the end-to-end network."""
    own, title = COLUMNS[column]

    def measure(material: Material) -> Finding:
        if not len(material.crossed):
            return Finding("nothing measured", barred=NONE)
        choice = probe(material, encoder) if encoder else end_to_end(material)
        if not choice.names:
            return bound(Finding("nothing measured"), choice)
        name = choice.names[0]
        return bound(printed(material, material.across(name)[own], expected, TOLERANCE, name, own), choice)

    test = f"mean over folds of the mean AUROC {'in' if own == 'inside' else 'out of'} domain"
    quote, said = f"{arm}: {title} {expected:.2f} ± {sd:.2f}", f"{expected:.2f} (printed ± {sd:.2f})"
    return Claim(quote, "Tab. 2", test, said, f"± {TOLERANCE:g}", measure, (MIDOG22,))


def table_2() -> list[Claim]:
    """Every cell of Tab. 2."""
    encoders = pd.read_csv(compare.PUBLISHED / "published_ganz_2024_models.csv").set_index("arm")["encoder"]
    return [
        _table_2(row["arm"], encoders.get(row["arm"], ""), column, row[column], row[f"{column}_sd"])
        for row in compare.published_table().to_dict("records")
        for column in COLUMNS
    ]


CLAIMS = [
    Claim(
        "we did not observe the FM-based classifiers to be more robust against domain shifts",
        "abstract",
        "loss out of domain: the network's less each foundation model's probe's",
        "not above 0",
        f"intervals end below {MARGIN:g}",
        no_more_robust,
    ),
    Claim(
        "the end-to-end baseline clearly outperforms all other models, both in terms of in-domain performance but also in "
        "terms of out-of-domain performance",
        "section 4, Tab. 2",
        "AUROC of the network less that of each probe, in domain and out of domain",
        "above 0 in each",
        _HOLM,
        beats_everything,
    ),
    Claim(
        "better than those using the UNI and Phikon embeddings",
        "section 4, Tab. 2",
        "AUROC of each of the other four less that of UNI, of Phikon, in domain and out of domain",
        "above 0 in each",
        _HOLM,
        strong_are_ahead,
        (MIDOG22,),
    ),
    Claim(
        "given the standard deviations, the performance were relatively similar",
        "section 4, Tab. 2",
        "AUROC of each foundation model's probe less that of each other, in domain and out of domain",
        "no difference",
        f"intervals within ± {printed_sd(('inside', 'outside')):g}, the largest SD printed",
        all_alike(("inside", "outside")),
        (MIDOG22,),
    ),
    *table_2(),
    Claim(
        "Both the FM-based classifiers and the end-to-end baseline experienced substantial performance drops when the "
        "in-domain trained models were applied to different domains",
        "section 4, Tab. 2",
        "AUROC in domain less out of domain, of the network and of each foundation model's probe",
        f"above 0 in each, by {MARGIN:g} or more",
        _HOLM,
        all_lose,
    ),
    Claim(
        "this drop in performance was not evenly distributed across the external domains",
        "section 4, Fig. 2",
        "the network trained on one domain: AUROC on one other domain less that on another, all such pairs",
        "not 0 in one or more",
        "p below 0.05 after Holm",
        uneven,
    ),
    Claim(
        "domain shift is not a symmetrical phenomena",
        "section 4, Fig. 2",
        "the network's AUROC from one domain to another less that of the way back, all pairs of domains",
        "not 0 in one or more",
        "p below 0.05 after Holm",
        asymmetric,
    ),
    Claim(
        "We also did not find the FM-based classifiers to be more robust to domain shifts than one of our baselines.",
        "section 5",
        "loss out of domain: the network's less each foundation model's probe's",
        "not above 0",
        f"intervals end below {MARGIN:g}",
        no_more_robust,
    ),
    Claim(
        "the in-domain results of the FM-based classifiers in Table 2 show that all models performed quite similarly",
        "section 5, Tab. 2",
        "AUROC in domain of each foundation model's probe less that of each other",
        "no difference",
        f"intervals within ± {printed_sd(('inside',)):g}, the largest SD printed",
        all_alike(("inside",)),
        (MIDOG22,),
    ),
]
