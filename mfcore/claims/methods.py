"""Claims on how it was done (Ganz et al. 2024, section 3), asked of this study's own runs: were they made as the paper says?

A study that is designed otherwise can't say; what the released code does differently stands in ``why``.
"""

import pandas as pd

from mfcore import store
from mfcore.analysis import compare
from mfcore.analysis.compare import ALL
from mfcore.claims.judge import ANYWHERE, NOT_REPRODUCED, REPRODUCED, UNCLEAR, Claim, Finding, Material, exactly
from mfcore.data import splits

SIZES, N_FOLDS, N_DOMAINS = (0.001, 0.01, 0.1, 1.0), 5, 5
UNIT = ["train_domain", "fold", "size"]


def _patch_size(material: Material) -> Finding:
    side = material.study.patches.size_px
    return exactly(side, 224, barred="" if side == 224 else "this study's patches are of another size by design")


def _one_cycle(material: Material) -> Finding:
    """The highest learning rate that the histories of the end-to-end trainings record."""
    networks = {network.name: network for network in material.study.networks if network.lora is None}
    try:
        runs = compare.current_runs(material.study, material.results)
    except store.StoreError:
        runs = {}
    peaks: dict[str, float] = {}
    for run in runs.values():
        name = run.identity["config"].get("network", {}).get("name")
        if name in networks and run.path("history.jsonl").is_file():
            rates = pd.read_json(run.path("history.jsonl"), lines=True)["learning_rate"]
            peaks[name] = max(peaks.get(name, 0.0), float(rates.max()))
    if not peaks:
        return Finding("nothing measured", barred="no end-to-end training has left its history")
    text = ", ".join(f"{name} {peak:.3g} (asked for: {networks[name].max_lr:g})" for name, peak in peaks.items())
    as_published = [name for name in peaks if networks[name].max_lr == 1e-4]
    if not as_published:
        return Finding(text, barred="this study's networks have another learning rate by design")
    top = max(peaks[name] for name in as_published)  # at the ends of epochs, which needn't meet the peak
    outcome = REPRODUCED if 0.8e-4 <= top <= 1e-4 * (1 + 1e-6) else NOT_REPRODUCED
    return Finding(text, outcome, top - 1e-4, "read at the ends of epochs")


def _best_epoch(material: Material) -> Finding:
    epoch = material.study.switches.epoch
    why = "the released code tests the last epoch: its copy of the best weights isn't one"
    if not any(network.name in material.arms for network in material.study.networks):
        return Finding(f"epoch: {epoch}", why=why, barred="no network has scores here")
    return Finding(f"this study tests the {epoch} epoch", REPRODUCED if epoch == "best" else NOT_REPRODUCED, why=why)


def _augmentation(material: Material) -> Finding:
    """Which of the four kinds of augmentation the networks' settings have; flips always are."""
    kinds = {"colour jitter": "colour_probability", "blurring": "blur_probability", "rotations": "rotation_probability"}
    networks = [network for network in material.study.networks if network.lora is None and network.name in material.arms]
    if not networks:
        return Finding("nothing measured", barred="no network trained end to end has scores here")
    lacking = [f"{n.name} without {kind}" for n in networks for kind, key in kinds.items() if not getattr(n, key)]
    text = "; ".join(lacking) or f"all four, in {', '.join(network.name for network in networks)}"
    return Finding(text, NOT_REPRODUCED if lacking else REPRODUCED)


def _n_trainings(material: Material) -> Finding:
    """Fits on all domains of each arm."""
    found = material.mixed.drop_duplicates(["arm", "fold", "size"]).groupby("arm").size()
    study = material.study
    designed = tuple(study.splits.sizes) == SIZES and study.splits.n_folds == N_FOLDS
    return _fits(found, 20, "" if designed else _design(study.splits.n_folds, len(study.splits.sizes), "sizes"))


def _n_sessions(material: Material) -> Finding:
    """Fits on single domains of each arm."""
    found = material.crossed.drop_duplicates(["arm", "fold", "train_domain"]).groupby("arm").size()
    if found.empty:
        return Finding("0", barred="the study has no cross-domain fits")
    n_domains, n_folds = material.crossed["train_domain"].nunique(), material.study.splits.n_folds
    designed = (n_domains, n_folds) == (N_DOMAINS, N_FOLDS)
    return _fits(found, 25, "" if designed else _design(n_folds, n_domains, "domains"))


def _design(n_folds: int, n: int, what: str) -> str:
    return f"this study has {n_folds} folds and {n} {what} by design"


def _fits(found: pd.Series, expected: int, barred: str) -> Finding:
    if found.empty:
        return Finding("0", barred="no arm has scores here")
    low, high = int(found.min()), int(found.max())
    text = f"{low if low == high else f'{low} to {high}'} for each of {len(found)} arms"
    short = [f"{arm} {n}" for arm, n in found.items() if n != expected]
    outcome = NOT_REPRODUCED if short else REPRODUCED
    why = f"not complete: {', '.join(short[:4])}" if short and not barred else ""
    return Finding(text, outcome, float(low - expected), why, barred)


def _share(material: Material, found: float, expected: float, tolerance: float, why: str) -> Finding:
    outcome = REPRODUCED if abs(found - expected) <= tolerance else NOT_REPRODUCED
    by_slide = material.study.switches.split_by not in ("annotation", "annotation_buffered")
    said = "whole slides are drawn here, so that shares of annotations vary" if by_slide else ""
    return Finding(f"{100 * found:.1f} %", outcome, found - expected, "; ".join(part for part in (said, why) if part))


def _full(material: Material) -> pd.DataFrame:
    return material.mixed[material.mixed["size"] == material.mixed["size"].max()]


def _test_share(material: Material) -> Finding:
    full = _full(material)
    if material.labels is None or full.empty:
        return Finding("nothing measured", barred="no label table, or no scores, in the results")
    per_fold = full.groupby("fold")["n_test"].first() / len(material.labels)
    why = f"folds from {100 * per_fold.min():.1f} % to {100 * per_fold.max():.1f} %"
    return _share(material, float(per_fold.mean()), 0.2, 0.02, why)


def _val_share(material: Material) -> Finding:
    """Validation patches among those that train or validate, at the largest size."""
    try:
        table = splits.load(splits.find(material.study, material.results))
    except store.StoreError:
        return Finding("nothing measured", barred="no splits in the results")
    full = table[(table["train_domain"] == ALL) & (table["size"] == table["size"].max())]
    n = full.groupby("role").size()
    why = "the probe leaves them unused, here as in the released code"
    return _share(material, float(n["val"] / (n["val"] + n["train"])), 0.2, 0.02, why)


def _percentages(material: Material) -> Finding:
    """Training patches at the largest size as a share of the data set's annotations."""
    full = _full(material)
    if material.labels is None or full.empty or full["size"].iloc[0] != 1:
        return Finding("nothing measured", barred="no label table, or no fits at 100 %, in the results")
    share = float(full["n_train"].mean() / len(material.labels))
    outcome = REPRODUCED if share > 0.98 else NOT_REPRODUCED
    why = "what tests and validates can't train: of 100 %, 80 % of 80 % are left, here as in the released code"
    return Finding(f"{100 * share:.1f} % of the annotations train at 100 %", outcome, share - 1, why)


def _in_domain_share(material: Material) -> Finding:
    own = material.crossed[material.crossed["train_domain"] == material.crossed["domain"]]
    if material.labels is None or own.empty:
        return Finding("nothing measured", barred="no label table, or no cross-domain fits, in the results")
    n = own["domain"].map(material.labels["domain"].value_counts())
    shares = (own["n_test"] / n).groupby(own["domain"]).mean()
    why = f"domains from {100 * shares.min():.1f} % to {100 * shares.max():.1f} %"
    return _share(material, float(shares.mean()), 0.2, 0.03, why)


def _one_domain_trains(material: Material) -> Finding:
    """Whether every fit on one domain is tested on each of all."""
    crossed = material.crossed
    if crossed.empty:
        return Finding("nothing measured", barred="the study has no cross-domain fits")
    n_domains = crossed["domain"].nunique()
    tested = crossed.groupby(["arm", "train_domain", "fold"])["domain"].nunique()
    n_all = int((tested == n_domains).sum())
    outcome = REPRODUCED if n_all == len(tested) else NOT_REPRODUCED
    return Finding(f"{n_all} of {len(tested)} fits tested on each of {n_domains} domains", outcome, float(n_all - len(tested)))


def _same_splits(material: Material) -> Finding:
    """Whether every arm was tested on the same patches, and trained on as many, in each training that two arms share."""
    if material.collected is None:
        return Finding("nothing measured", barred="no predictions in the results")
    table = material.collected.predictions
    if table["arm"].nunique() < 2:
        return Finding("one arm only", barred="it takes two arms")
    ordered = table.sort_values("patch_id", kind="stable")
    of_arm = ordered.groupby([*UNIT, "arm"], observed=True, sort=False).agg(
        tested=("patch_id", lambda ids: hash(tuple(ids))), n_train=("n_train", "first")
    )
    of_unit = of_arm.groupby(UNIT, observed=True).agg(
        n_arms=("tested", "size"), n_tested=("tested", "nunique"), n_trained=("n_train", "nunique")
    )
    shared = of_unit[of_unit["n_arms"] > 1]
    same = int(((shared["n_tested"] == 1) & (shared["n_trained"] == 1)).sum())
    text = f"the same patches in {same} of {len(shared)} trainings that two or more arms share"
    why = "the released code's two scripts draw by different generators: for one seed, probes and networks get other splits"
    if shared.empty:
        return Finding(text, UNCLEAR, why=why)
    return Finding(text, REPRODUCED if same == len(shared) else NOT_REPRODUCED, float(same - len(shared)), why)


_OWN = "this study's own runs"

CLAIMS = [
    Claim(
        "we extracted patches of size 224 × 224 pixels",
        "section 3",
        f"side of the patches of {_OWN}",
        "224 px",
        "none",
        _patch_size,
        (ANYWHERE,),
    ),
    Claim(
        "random color jitter, Gaussian blurring, flipping, and random rotations",
        "section 3",
        "settings of the networks trained end to end",
        "all four",
        "none",
        _augmentation,
        (ANYWHERE,),
    ),
    Claim(
        "We used the one-cycle learning rate policy with a maximum learning rate of 10⁻⁴",
        "section 3",
        "highest learning rate in the histories of the end-to-end trainings",
        "1e-4",
        "reached to 80 %, never passed",
        _one_cycle,
        (ANYWHERE,),
    ),
    Claim(
        "the best-performing model was selected retrospectively based on its validation loss",
        "section 3",
        f"which epoch {_OWN} test",
        "best",
        "none",
        _best_epoch,
        (ANYWHERE,),
    ),
    Claim(
        "With four different training set sizes (0.1%, 1%, 10%, and 100%) a total of 20 trainings were performed per model.",
        "section 3",
        "fits on all domains that predicted, of each arm",
        "20",
        "none",
        _n_trainings,
        (ANYWHERE,),
    ),
    Claim(
        "20% of all annotations of the respective dataset were randomly selected as test set",
        "section 3",
        "test patches as a share of all annotations, mean over folds",
        "20 %",
        "± 2 percentage points",
        _test_share,
        (ANYWHERE,),
    ),
    Claim(
        "20% of the respective training annotations were selected for validation",
        "section 3",
        "validation patches as a share of those that train or validate",
        "20 %",
        "± 2 percentage points",
        _val_share,
        (ANYWHERE,),
    ),
    Claim(
        "all models were trained and evaluated using the same training and test sets",
        "section 3",
        "test patches of every arm, from its predictions, and the number it trained on, fold by fold and size by size",
        "the same in each",
        "none",
        _same_splits,
        (ANYWHERE,),
    ),
    Claim(
        "the percentages refer to the size of each dataset",
        "section 3",
        "training patches at 100 % as a share of all annotations",
        "100 %",
        "± 2 percentage points",
        _percentages,
        (ANYWHERE,),
    ),
    Claim(
        "one domain served as the training set, while the remaining domains were used for testing",
        "section 3",
        "domains that each fit on one domain was tested on",
        "every domain",
        "none",
        _one_domain_trains,
        (ANYWHERE,),
    ),
    Claim(
        "20% of the in-domain data was separated from the training set and included in the test set",
        "section 3",
        "in-domain test patches as a share of the domain's annotations, mean over domains",
        "20 %",
        "± 3 percentage points",
        _in_domain_share,
        (ANYWHERE,),
    ),
    Claim(
        "five training sessions were conducted per domain and per model, resulting in a total of 25 training sessions",
        "section 3",
        "fits on single domains that predicted, of each arm",
        "25",
        "none",
        _n_sessions,
        (ANYWHERE,),
    ),
]
