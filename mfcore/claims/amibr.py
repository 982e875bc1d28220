"""Claims of the benchmark on AMi-Br, second-hand: its numbers as the outputs of its public notebooks have them.

What stands as its claim is no sentence of its authors. Where this study's network doesn't reach the published score, the
reasons are computed from its settings, its scores and its training histories.
"""

import numpy as np
import pandas as pd

from mfcore import store
from mfcore.analysis import compare, compare_probes
from mfcore.claims import arms as claims_arms
from mfcore.claims.arms import Choice, bound
from mfcore.claims.judge import (
    AMIBR,
    NOT_REPRODUCED,
    NOT_TESTABLE,
    REPRODUCED,
    UNCLEAR,
    Claim,
    Finding,
    Material,
    Measure,
    better,
    number,
)
from mfcore.claims.results import full, pairs
from mfcore.data import splits
from mfcore.encoders import cards
from mfcore.measures import binary
from mfcore.measures.resampling import by_fold
from mfcore.measures.statistics import Folds

BANERJEE = "Banerjee et al. 2025 (arXiv 2506.21444), second-hand"
TOLERANCE = 0.03
N_TRAINING_FILE = 2_894  # figures of the benchmark's training file
PUBLISHED_NETWORK = "EfficientNetV2-M"
AT_SHARE = "balanced accuracy with the threshold at the share of class 1"


def _networks(material: Material) -> Choice:
    """Every network trained end to end, whatever it is."""
    names = [n.name for n in material.study.networks if n.lora is None and n.name in material.arms]
    return Choice(tuple(names), "" if names else "no network trained end to end has scores here")


def _published(metric: str) -> float:
    """What the benchmark's EfficientNetV2-M reached."""
    return float(compare_probes.published().set_index("arm").loc[PUBLISHED_NETWORK, metric])


def near_published(metric: str, expected: float) -> Measure:
    """The best mean of the networks trained end to end near a published one, and what holds it back where it isn't."""

    def measure(material: Material) -> Finding:
        network = _networks(material)
        values = {name: material.folds(name, size, metric) for name in network.names for size in full(material)}
        values = {name: folds for name, folds in values.items() if len(folds)}
        if not values:
            return bound(Finding("nothing measured"), network)
        name = max(values, key=lambda arm: values[arm].values.mean())
        finding = number(material, values[name], expected, TOLERANCE)
        why = "" if finding.outcome == REPRODUCED else shortfall(material, name, finding.difference)
        return bound(Finding(f"{name} {finding.found}", finding.outcome, finding.difference, why, finding.barred), network)

    return measure


def shortfall(material: Material, name: str, difference: float) -> str:
    """What in an arm's training differs from the published one's, computed from its settings, scores and histories."""
    network, size = material.network(name), material.sizes[-1]
    if network is None:
        return ""
    mine = material.mixed[(material.mixed["arm"] == name) & (material.mixed["size"] == size)]
    n_train = mine["n_train"].mean()
    n_seen = network.n_epochs * (network.patches_per_epoch or n_train)
    card = cards.CARDS.get(network.architecture)
    of_size = f" of {card.n_parameters / 1e6:.1f}M parameters" if card else ""
    side, stored = network.input_px, material.study.patches.size_px
    said = [
        "other slides are tested than the held-out ones of the benchmark",
        f"{network.architecture}{of_size} in place of {PUBLISHED_NETWORK}",
        f"{n_train:,.0f} training patches, where the benchmark's training file has {N_TRAINING_FILE:,}",
        f"{network.n_epochs} epochs, {n_seen:,.0f} patches seen, {n_seen / n_train:.1f} times each",
    ]
    said += [f"it sees {side} of {stored} px ({100 * side**2 / stored**2:.0f} % of a patch's area)"] if side < stored else []
    if difference < 0:
        said += [text for text in (_curve(material, name, size), _threshold(material, name, size)) if text]
    return "; ".join(said)


def _curve(material: Material, name: str, size: float) -> str:
    """Whether training had ended: in how many folds the validation loss was lowest in one of the last two epochs."""
    try:
        runs = compare.current_runs(material.study, material.results)
    except store.StoreError:
        return ""
    late, changes = 0, []
    for fold in range(material.study.splits.n_folds):
        run = runs.get(f"{name}-fold{fold}")
        if run is None or not run.path("history.jsonl").is_file():
            continue
        history = pd.read_json(run.path("history.jsonl"), lines=True)
        history = history[history["unit"] == splits.Unit(compare.ALL, fold, size).name].sort_values("epoch")
        if len(history) >= 4:
            late += int(history["epoch"].iloc[int(np.argmin(history["val_loss"]))] >= history["epoch"].max() - 1)
            changes.append(history["val_auroc"].iloc[-1] - history["val_auroc"].iloc[len(history) // 2 - 1])
    if not changes:
        return ""
    still = "the curve was still falling" if late > len(changes) / 2 else "the curve had turned"
    return (
        f"validation loss lowest in one of the last two epochs in {late} of {len(changes)} folds: {still} (validation AUROC "
        f"{np.mean(changes):+.3f} over the second half)"
    )


def _predicted(material: Material, name: str, size: float) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Fold, labels and scores of each test set that has both classes, trained on all domains at one size."""
    if material.collected is None:
        return []
    table = material.collected.predictions
    table = table[(table["arm"] == name) & (table["size"] == size) & (table["train_domain"] == compare.ALL)]
    parts = [(fold, part["label"].to_numpy(), part["score"].to_numpy()) for fold, part in table.groupby("fold")]
    return [part for part in parts if 0 < part[1].mean() < 1]


def _threshold(material: Material, name: str, size: float) -> str:
    """What the threshold of 0.5 costs, and how well the scores rank."""
    best, own, ranks = [], [], []
    for _, label, score in _predicted(material, name, size):
        candidates = [*np.unique(score), -np.inf]
        best.append(max(_balanced(label, score > threshold) for threshold in candidates))
        own.append(binary.balanced_accuracy(label, score))
        ranks.append(binary.auroc(label, score))
    if not best:
        return ""
    return (
        f"AUROC {np.mean(ranks):.3f}, published {_published('auroc'):.3f}: no threshold would give more than "
        f"{np.mean(best):.3f} balanced accuracy, 0.5 gives {np.mean(own):.3f}"
    )


def _balanced(label: np.ndarray, called: np.ndarray) -> float:
    """Mean of sensitivity and specificity of ``called``, bool (n,)."""
    return float((called[label == 1].mean() + (~called[label == 0]).mean()) / 2)


def at_share(material: Material, name: str, size: float) -> Folds:
    """Balanced accuracy by fold where a patch is called class 1 if its score is above the share of class 1.

    For a classifier that doesn't weigh the classes this is what 0.5 is for one that does.
    """
    if material.labels is None or material.collected is None:
        return Folds(pd.Series(dtype=float))
    table = material.collected.predictions
    table = table[(table["arm"] == name) & (table["size"] == size) & (table["train_domain"] == compare.ALL)]
    called = (table["score"] > material.labels["label"].mean()).astype(float)
    return by_fold(table.assign(score=called), "balanced_accuracy", material.study.splits.seed, compare.ALL).defined()


def _range(kind: str, metric: str) -> tuple[float, float]:
    """Lowest and highest published score of one kind of arm."""
    table = compare_probes.published()
    values = table.loc[table["kind"] == kind, metric]
    return float(values.min()), float(values.max())


def in_published_range(kind: str, metric: str) -> Measure:
    """Every probe's (or every LoRA arm's) score in the published range of its kind, to TOLERANCE."""

    def measure(material: Material) -> Finding:
        choice = claims_arms.probes(material) if kind == "probe" else claims_arms.lora(material)
        low, high = _range(kind, metric)
        unweighed = kind == "probe" and metric == "balanced_accuracy"
        findings = {}
        for name in choice.names:
            for size in full(material):
                values = at_share(material, name, size) if unweighed else material.folds(name, size, metric)
                if len(values):
                    findings[name] = number(material, values, (low + high) / 2, TOLERANCE, range_=(high - low) / 2)
        why = ["other encoders and other slides than the benchmark's"]
        if unweighed and findings:
            at_half = ", ".join(
                f"{name} {material.folds(name, material.sizes[-1], metric).values.mean():.2f}" for name in findings
            )
            why.append(f"its probe weighs the classes, this study's doesn't: at 0.5 it would be {at_half}")
        return _together(findings, "; ".join(why), choice)

    return measure


def _together(findings: dict[str, Finding], why: str, choice: Choice) -> Finding:
    """One finding of several arms, each of which was asked for the same: the worst of their outcomes."""
    if not findings:
        return bound(Finding("nothing measured"), choice)
    outcomes = {finding.outcome for finding in findings.values()}
    worst = next(o for o in (NOT_TESTABLE, NOT_REPRODUCED, UNCLEAR, REPRODUCED) if o in outcomes)
    text = "; ".join(f"{name} {finding.found}" for name, finding in findings.items())
    far = max((finding.difference for finding in findings.values()), key=abs)
    barred = next((finding.barred for finding in findings.values() if finding.barred), "")
    return bound(Finding(text, worst, far, why, barred), choice)


def trained_beats_probed(material: Material) -> Finding:
    """The networks trained end to end above every probe."""
    network, probed = _networks(material), claims_arms.probes(material)
    return bound(better(material, pairs(material, network.names, probed.names, full(material))), network, probed)


def adapted_beats_probed(material: Material) -> Finding:
    """Every network adapted by LoRA above the probe on the same encoder."""
    adapted = claims_arms.lora(material)
    compared = [
        pair
        for name in adapted.names
        if (network := material.network(name)) and claims_arms.has_probe(material, network.architecture)
        for pair in pairs(material, (name,), (network.architecture,), full(material))
    ]
    return bound(better(material, compared, "other encoders than the benchmark's may be adapted here"), adapted)


def _spread(kind: str, metric: str) -> str:
    low, high = _range(kind, metric)
    return f"{low:.3f} to {high:.3f}"


def _of_range(claim: str, kind: str, metric: str, test: str) -> Claim:
    said = _spread(kind, metric)
    measure = in_published_range(kind, metric)
    return Claim(f"{claim} of {said}", "public notebooks", test, said, f"± {TOLERANCE:g}", measure, (AMIBR,), BANERJEE)


CLAIMS = [
    Claim(
        "end to end: EfficientNetV2-M reaches balanced accuracy 0.747 ± 0.017",
        "public notebooks",
        "highest mean balanced accuracy over folds of a network trained end to end, with all the data",
        "0.75",
        f"± {TOLERANCE:g}",
        near_published("balanced_accuracy", 0.75),
        (AMIBR,),
        BANERJEE,
    ),
    Claim(
        "end to end: EfficientNetV2-M reaches AUROC 0.832",
        "public notebooks",
        "highest mean AUROC over folds of a network trained end to end, with all the data",
        "0.832",
        f"± {TOLERANCE:g}",
        near_published("auroc", 0.832),
        (AMIBR,),
        BANERJEE,
    ),
    _of_range(
        "linear probes reach balanced accuracies",
        "probe",
        "balanced_accuracy",
        f"{AT_SHARE}, mean over folds, of each probe but the random control, with all the data",
    ),
    _of_range("linear probes reach AUROCs", "probe", "auroc", "mean AUROC over folds of each probe but the random control"),
    _of_range(
        "foundation models adapted by LoRA reach balanced accuracies",
        "LoRA",
        "balanced_accuracy",
        "mean balanced accuracy over folds of each network adapted by LoRA, with all the data",
    ),
    _of_range(
        "foundation models adapted by LoRA reach AUROCs",
        "LoRA",
        "auroc",
        "mean AUROC over folds of each network adapted by LoRA, with all the data",
    ),
    Claim(
        "every network trained end to end is above every linear probe",
        "public notebooks",
        "AUROC with all the data of each network less that of each probe but the random control",
        "above 0 in each",
        "differences above zero, p below 0.05 after Holm",
        trained_beats_probed,
        (AMIBR,),
        BANERJEE,
    ),
    Claim(
        "every foundation model is better adapted by LoRA than probed",
        "public notebooks",
        "AUROC with all the data of each network adapted by LoRA less that of the probe on the same encoder",
        "above 0 in each",
        "differences above zero, p below 0.05 after Holm",
        adapted_beats_probed,
        (AMIBR,),
        BANERJEE,
    ),
]
