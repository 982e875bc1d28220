"""How one fold is drawn: by slide, by the authors' own division, by annotation, and by annotation with a buffer of pixels.

Every way sets test patches aside first, then a share of the rest for validation; training at a size is a part of what is left.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from mfcore.config import Study
from mfcore.rng import generator

ALL = "all"  # the name of all domains together
BY_TRAINING_SCRIPT = "annotation_by_training_script"  # a way to split that networks alone have, see `splits.drawn_for`
N_PROPOSALS = 20  # draws of cases from which the best balanced is kept; many more, and few cases leave one answer

Roles = dict[str, np.ndarray]  # patch ids (int64, sorted) by role


class SplitError(ValueError):
    """The data can't be split as the study asks; the message says at which fold and size, and what to do."""


def draw(study: Study, labels: pd.DataFrame, train_domain: str, fold: int, sizes: tuple[float, ...]) -> dict[float, Roles]:
    """One fold, as ``study.switches`` say: for each of ``sizes`` the patch ids that train, validate and test.

    labels: the patches to divide, as `mfcore.labels.COLUMNS`. Raises SplitError where they can't be divided.
    """
    if study.switches.split_by == "annotation" and not study.switches.stratified:
        return _as_released(study, labels, fold, sizes)
    if study.switches.split_by == BY_TRAINING_SCRIPT:
        return _as_trained(study, labels, train_domain, fold, sizes)
    divide = _divide_officially if study.switches.split_by == "official" else _divide
    roles = divide(study, labels, train_domain, fold)
    if study.switches.split_by == "annotation_buffered":
        roles = _without_shared_px(study, labels, roles)
    found = {}
    for size in sizes:
        found[size] = {"test": roles["test"]}
        for role, rounding in (("train", np.rint), ("val", np.ceil)):  # a validation set of one class measures nothing
            subset = labels[labels["patch_id"].isin(roles[role])]
            found[size][role] = _nested_subset(study, subset, size, rounding, (role, train_domain, fold))
    return found


def _divide(study: Study, labels: pd.DataFrame, train_domain: str, fold: int) -> Roles:
    """Test, validation and training patches, drawn by slide or by annotation."""
    take = _take_slides if study.switches.split_by == "slide" else _take_annotations
    test = take(study, labels, study.splits.test_fraction, ("test", train_domain, fold))
    pool = labels[~labels["patch_id"].isin(test)]
    val = take(study, pool, study.splits.val_fraction, ("val", train_domain, fold))
    return {"test": test, "val": val, "train": pool.loc[~pool["patch_id"].isin(val), "patch_id"].to_numpy()}


def _divide_officially(study: Study, labels: pd.DataFrame, train_domain: str, fold: int) -> Roles:
    """The authors' test slides; their validation slides where they name any, else some of their training slides by fold."""
    official = labels["official_split"]
    ids = {name: labels.loc[official == name, "patch_id"].to_numpy() for name in ("train", "val", "test")}
    if not len(ids["test"]) or not len(ids["train"]):
        raise SplitError(
            f"the data name no official test slides for {train_domain!r} (the labels' column official_split); set "
            "switches.split_by: slide, or leave 'official' out of inflation.schemes"
        )
    if not len(ids["val"]):
        pool = labels[official == "train"]
        ids["val"] = _take_slides(study, pool, study.splits.val_fraction, ("val", train_domain, fold))
        ids["train"] = np.setdiff1d(ids["train"], ids["val"])
    return ids


def _as_released(study: Study, labels: pd.DataFrame, fold: int, sizes: tuple[float, ...]) -> dict[float, Roles]:
    """The released probe script's draws (seeds 42 to 46, row order): one generator for all sizes, in the study's order.

    Its further 20 %, which the probe leaves unused, is the end-to-end network's validation set where folds are shared.
    """
    rng = np.random.default_rng(study.splits.seed + fold)
    rows = np.arange(len(labels))
    test = rng.choice(len(rows), size=int(len(rows) * study.splits.test_fraction), replace=False)
    pool = np.setdiff1d(rows, test)
    ids = labels["patch_id"].to_numpy()
    found = {}
    for size in sizes:
        drawn = rng.choice(pool, size=int(len(pool) * size), replace=False)
        train = rng.choice(drawn, size=int((1 - study.splits.val_fraction) * len(drawn)), replace=False)
        chosen = {"train": train, "val": np.setdiff1d(drawn, train), "test": test}
        found[size] = {role: np.sort(ids[which]) for role, which in chosen.items()}
    return found


def _as_trained(
    study: Study, labels: pd.DataFrame, train_domain: str, fold: int, sizes: tuple[float, ...]
) -> dict[float, Roles]:
    """The released training scripts' draws (seeds 42 to 46, row order), by numpy's old generator, begun anew for each size.

    On all domains as ``train_classifier.py``, on one as ``train_classifier_tumor_specific.py``, which leaves the draws to
    pandas and begins the generator again for validation.
    """
    seed, held_out, validating = study.splits.seed + fold, study.splits.test_fraction, study.splits.val_fraction
    rows, ids, found = pd.Series(np.arange(len(labels))), labels["patch_id"].to_numpy(), {}
    for size in sizes:
        rng = np.random.RandomState(seed)
        if train_domain == ALL:
            test = rng.choice(rows, size=int(len(rows) * held_out), replace=False)
            pool = rows.drop(test)
            drawn = rng.choice(pool, size=int(len(pool) * size), replace=False)
            val = rng.choice(drawn, size=int(len(drawn) * validating), replace=False)
        else:
            test = rows.sample(frac=held_out, random_state=seed).to_numpy()
            drawn = rows.drop(test)
            val = drawn.sample(frac=validating, random_state=seed).to_numpy()
        found[size] = {"train": np.setdiff1d(drawn, val), "val": val, "test": test}
    return {size: {role: np.sort(ids[which]) for role, which in roles.items()} for size, roles in found.items()}


def _take_slides(study: Study, labels: pd.DataFrame, share: float, stream: tuple) -> np.ndarray:
    """Patches of slides drawn so that they hold about ``share`` of the annotations, a domain at a time.

    Slides of one case go together. A draw takes cases in random order up to the nearest to ``share``. Stratified, it is
    the best balanced of N_PROPOSALS such draws (rerandomisation, Morgan and Rubin 2012): the largest deviation from
    ``share`` in either class is least. Returns patch ids.
    """
    chosen = []
    for stratum, within in labels.groupby(_strata(labels), sort=True):
        names, case = np.unique(within["case_id"].to_numpy(), return_inverse=True)
        if len(names) < 2:
            raise SplitError(
                f"{stratum!r} has {len(names)} case left to divide ({stream[0]} of {stream[1]!r}, fold {stream[2]}); by slide "
                "it needs three or more. Leave the domain out, set splits.by_domain: false, or switches.split_by: annotation"
            )
        counts = np.stack(
            [np.bincount(case, weights=within["label"] == c, minlength=len(names)) for c in (0, 1)]
        )  # (2, n_cases)
        present = counts.sum(axis=1) > 0
        rng = generator(study.splits.seed, *stream, stratum)
        best = (np.inf, np.empty(0, dtype=int))
        for _ in range(N_PROPOSALS if study.switches.stratified else 1):
            order = rng.permutation(len(names))
            held = np.cumsum(counts.sum(axis=0)[order]) / counts.sum()
            n_taken = min(int(np.argmin(np.abs(held - share))) + 1, len(names) - 1)
            taken = order[:n_taken]
            deviation = np.abs(counts[present][:, taken].sum(axis=1) / counts[present].sum(axis=1) - share).max()
            if deviation < best[0]:
                best = (deviation, taken)
        chosen.append(within.loc[np.isin(case, best[1]), "patch_id"].to_numpy())
    return np.sort(np.concatenate(chosen))


def _strata(labels: pd.DataFrame) -> pd.Series:
    """The domain of each row; domains with fewer than three cases together form one stratum."""
    n_cases = labels.groupby("domain")["case_id"].nunique()
    return labels["domain"].where(labels["domain"].map(n_cases) >= 3, "domains of one or two cases")


def _take_annotations(study: Study, labels: pd.DataFrame, share: float, stream: tuple) -> np.ndarray:
    """Single annotations, ``share`` of each class in each domain. Returns patch ids."""
    chosen = []
    for stratum, within in labels.groupby(["domain", "label"], sort=True):
        rng = generator(study.splits.seed, *stream, *stratum)
        chosen.append(rng.choice(within["patch_id"].to_numpy(), size=round(len(within) * share), replace=False))
    return np.sort(np.concatenate(chosen))


def _nested_subset(study: Study, labels: pd.DataFrame, size: float, rounding: Callable, stream: tuple) -> np.ndarray:
    """The share ``size`` of ``labels``; a smaller size is part of a larger one. Returns patch ids."""
    groups = labels.groupby("label") if study.switches.stratified else [("all", labels)]
    chosen = []
    for group, within in groups:
        order = generator(study.splits.seed, "size", *stream, group).permutation(within["patch_id"].to_numpy())
        chosen.append(order[: int(rounding(round(len(order) * size, 6)))])
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)


def _without_shared_px(study: Study, labels: pd.DataFrame, roles: Roles) -> Roles:
    """``roles`` less the validation patches that share a px with a test patch, and the training patches with either."""
    indexed = with_places(study, labels).set_index("patch_id")
    test, val, train = (indexed.loc[roles[role]] for role in ("test", "val", "train"))
    val = val[~overlapping(test, val)]
    train = train[~overlapping(pd.concat([test, val]), train)]
    return {"test": roles["test"], "val": val.index.to_numpy(), "train": train.index.to_numpy()}


def with_places(study: Study, labels: pd.DataFrame) -> pd.DataFrame:
    """``labels`` with where each patch lies: its centre ``x_patch_l0_px``, ``y_patch_l0_px`` and its ``side_l0_px``.

    Squares of ``study.patches.size_px`` at its um/px; native where the study reads so, or where the slide's own um/px is
    unknown. The centre is the annotation's, or, where patches have been moved inward at a border, where they were read.
    """
    side = np.full(len(labels), float(study.patches.size_px))
    if study.switches.resolution == "target" and study.patches.um_per_px is not None:
        side = np.where(np.isfinite(labels["um_per_px"]), side * study.patches.um_per_px / labels["um_per_px"], side)
    moved = "patch_x_l0_px" in labels
    x, y = (labels[f"patch_{axis}_l0_px" if moved else f"{axis}_l0_px"] for axis in "xy")
    return labels.assign(x_patch_l0_px=x, y_patch_l0_px=y, side_l0_px=side)


def overlapping(seen: pd.DataFrame, asked: pd.DataFrame) -> np.ndarray:
    """Whether each of the patches ``asked`` shares a px with one of ``seen`` on its slide, bool (n_asked,).

    Both as `with_places` returns them: patches share px where their centres are nearer than a side on both axes.
    """
    shared = np.zeros(len(asked), dtype=bool)
    slide = asked["slide_id"].to_numpy()
    centre = ["x_patch_l0_px", "y_patch_l0_px"]
    for slide_id, there in seen.groupby("slide_id"):
        here = np.flatnonzero(slide == slide_id)
        if len(here):
            distance, _ = cKDTree(there[centre].to_numpy()).query(asked.iloc[here][centre].to_numpy(), p=np.inf)
            shared[here] = distance < asked["side_l0_px"].to_numpy()[here]
    return shared
