"""How one fold is drawn: by slide, by the authors' own division, by annotation, and by annotation
with a buffer of pixels.

Every way sets test patches aside first, then a share of the rest for validation; training at a size
is a part of what is left.

Twins are patches of the same pixels (`mfcore.data.patches.twins`). A label table may name them in a
column ``twin``, a number that all patches of one group share. Every way but the released one keeps
a group on one side: by slide, cases that share a twin are one case; by annotation, a group goes
where its first patch goes; by the authors' division, test patches stay where they are, and their
twins neither train nor validate.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import DisjointSet
from scipy.spatial import cKDTree

from mfcore.data.labels.schema import ALL, FAR_L0_PX, FEW_CASES
from mfcore.data.options import Splits
from mfcore.store.options import options
from mfcore.streams import generator

BY_TRAINING_SCRIPT = (  # as the released training scripts draw, for networks alone
    "annotation_by_training_script"
)
# draws of cases from which the best balanced is kept; many more, and few cases leave one answer
N_PROPOSALS = 20

Roles = dict[str, np.ndarray]  # patch ids (int64, sorted) by role


class SplitError(ValueError):
    """The scheme can't split the data; the message names the fold and the size, and says what to
    do.
    """


@dataclass(frozen=True)
class Placing:
    """The square of the slide that a patch shows.

    size_px: its side. um_per_px: its resolution; None is the slide's own.
    """

    size_px: int = 224
    um_per_px: float | None = 0.25


@options
class Scheme(Splits):
    """How patches are split into training, validation and test sets.

    split_by: "slide", "official", "annotation", "annotation_buffered" or `BY_TRAINING_SCRIPT`.
    stratified: whether the classes are balanced. placing: of the patches, for
    "annotation_buffered".
    """

    split_by: str = "slide"
    stratified: bool = True
    placing: Placing = Placing()

    @property
    def is_released(self) -> bool:
        """Whether patches are drawn as one of the released scripts draws."""
        return self.split_by == BY_TRAINING_SCRIPT or (
            self.split_by == "annotation" and not self.stratified
        )


def draw(
    labels: pd.DataFrame, scheme: Scheme, train_domain: str, fold: int, sizes: tuple[float, ...]
) -> dict[float, Roles]:
    """One fold of a scheme: for each of ``sizes`` the patch ids that train, validate and test.

    labels: the patches to divide, as `mfcore.data.labels.table.COLUMNS`. Raises SplitError where
    they can't be divided.
    """
    if scheme.is_released:
        by_script = _as_trained if scheme.split_by == BY_TRAINING_SCRIPT else _as_released
        rows_of = by_script(len(labels), scheme, train_domain, scheme.seed + fold, sizes)
        ids = labels["patch_id"].to_numpy()
        return {
            size: {role: np.sort(ids[rows]) for role, rows in roles.items()}
            for size, roles in rows_of.items()
        }
    divide = _divide_officially if scheme.split_by == "official" else _divide
    roles = divide(labels, scheme, train_domain, fold)
    if scheme.split_by == "annotation_buffered":
        roles = _drop_touching(with_places(labels, scheme.placing), roles, overlapping)
    drawn = {}
    for size in sizes:
        drawn[size] = {"test": roles["test"]}
        # a validation set of one class measures nothing
        for role, rounding in (("train", np.rint), ("val", np.ceil)):
            subset = labels[labels["patch_id"].isin(roles[role])]
            drawn[size][role] = _nested_subset(
                subset, scheme, size, rounding, (role, train_domain, fold)
            )
    return drawn


def across(
    labels: pd.DataFrame, scheme: Scheme, train_domain: str, roles: Roles
) -> tuple[Roles, np.ndarray]:
    """The roles of a training on ``train_domain``, and the test patches of the other domains.

    Training and validation patches with a twin in another domain are left out of the roles. All
    patches of the other domains test; by slide, without the cases that train or validate. As
    released, nothing is left out.

    labels: the patches of all domains. roles: one fold's within ``train_domain``, as `draw` returns
    them.
    """
    elsewhere = labels[labels["domain"] != train_domain]
    if scheme.is_released:
        return roles, elsewhere["patch_id"].to_numpy()
    if scheme.split_by == "slide":
        learnt = labels["patch_id"].isin(np.concatenate([roles["train"], roles["val"]]))
        elsewhere = elsewhere[~elsewhere["case_id"].isin(labels.loc[learnt, "case_id"])]
    ids = elsewhere["patch_id"].to_numpy()
    apart = _without_twins(labels, roles | {"test": np.concatenate([roles["test"], ids])})
    return apart | {"test": roles["test"]}, ids


def _divide(labels: pd.DataFrame, scheme: Scheme, train_domain: str, fold: int) -> Roles:
    """Test, validation and training patches, drawn by slide or by annotation."""
    take = _take_slides if scheme.split_by == "slide" else _take_annotations
    test = take(labels, scheme, scheme.test_fraction, ("test", train_domain, fold))
    pool = labels[~labels["patch_id"].isin(test)]
    val = take(pool, scheme, scheme.val_fraction, ("val", train_domain, fold))
    return {
        "test": test,
        "val": val,
        "train": pool.loc[~pool["patch_id"].isin(val), "patch_id"].to_numpy(),
    }


def _divide_officially(labels: pd.DataFrame, scheme: Scheme, train_domain: str, fold: int) -> Roles:
    """The authors' test slides; their validation slides where they name any, else some of their
    training slides by fold.
    """
    official = labels["official_split"]
    ids = {
        name: labels.loc[official == name, "patch_id"].to_numpy()
        for name in ("train", "val", "test")
    }
    if not (len(ids["test"]) and len(ids["train"])):
        raise SplitError(
            f"the data name no official test slides for {train_domain!r} (the labels' column"
            " official_split); set switches.split_by: slide, or leave 'official' out of"
            " inflation.schemes"
        )
    if not len(ids["val"]):
        pool = labels[official == "train"]
        ids["val"] = _take_slides(pool, scheme, scheme.val_fraction, ("val", train_domain, fold))
        ids["train"] = np.setdiff1d(ids["train"], ids["val"])
    return _without_twins(labels, ids)


def _as_released(
    n: int, scheme: Scheme, train_domain: str, seed: int, sizes: tuple[float, ...]
) -> dict[float, Roles]:
    """The released probe script's draws (seeds 42 to 46) as rows of ``n``: one generator for all
    sizes, in the order of ``sizes``.

    Its further 20 %, which the probe leaves unused, is the end-to-end network's validation set
    where folds are shared.
    """
    rng, roles_of = np.random.default_rng(seed), {}
    test = rng.choice(n, size=int(n * scheme.test_fraction), replace=False)
    pool = np.setdiff1d(np.arange(n), test)
    for size in sizes:
        drawn = rng.choice(pool, size=int(len(pool) * size), replace=False)
        train = rng.choice(drawn, size=int((1 - scheme.val_fraction) * len(drawn)), replace=False)
        roles_of[size] = {"train": train, "val": np.setdiff1d(drawn, train), "test": test}
    return roles_of


def _as_trained(
    n: int, scheme: Scheme, train_domain: str, seed: int, sizes: tuple[float, ...]
) -> dict[float, Roles]:
    """The released training scripts' draws (seeds 42 to 46) as rows of ``n``, by numpy's old
    generator, begun anew for each size.

    On all domains as ``train_classifier.py``, on one as ``train_classifier_tumor_specific.py``,
    which leaves the draws to pandas and begins the generator again for validation.
    """
    held_out, validating = scheme.test_fraction, scheme.val_fraction
    rows, roles_of = pd.Series(np.arange(n)), {}
    for size in sizes:
        rng = np.random.RandomState(seed)
        if train_domain == ALL:
            test = rng.choice(rows, size=int(n * held_out), replace=False)
            pool = rows.drop(test)
            drawn = rng.choice(pool, size=int(len(pool) * size), replace=False)
            val = rng.choice(drawn, size=int(len(drawn) * validating), replace=False)
        else:
            test = rows.sample(frac=held_out, random_state=seed).to_numpy()
            drawn = rows.drop(test)
            val = drawn.sample(frac=validating, random_state=seed).to_numpy()
        roles_of[size] = {"train": np.setdiff1d(drawn, val), "val": val, "test": test}
    return roles_of


def _take_slides(labels: pd.DataFrame, scheme: Scheme, share: float, stream: tuple) -> np.ndarray:
    """Patches of slides drawn so that they hold about ``share`` of the annotations, a domain at a
    time.

    Slides of one case go together, and so do cases that share a twin; domains that share a case are
    drawn as one. A draw takes cases in random order up to the nearest to ``share``. Stratified, it
    is the best balanced of N_PROPOSALS such draws (rerandomisation, Morgan and Rubin 2012): the
    largest deviation from ``share`` in either class is least. Returns patch ids.
    """
    chosen = []
    if "twin" in labels:
        labels = labels.assign(case_id=_one_where_linked(labels["case_id"], labels["twin"]))
    for stratum, within in labels.groupby(_strata(labels), sort=True):
        names, case = np.unique(within["case_id"].to_numpy(), return_inverse=True)
        if len(names) < 2:
            raise SplitError(
                f"{stratum!r} has {len(names)} case left to divide ({stream[0]} of {stream[1]!r},"
                f" fold {stream[2]}; cases that share identical patches count as one); by slide it"
                " needs three or more. Leave the domain out, set splits.by_domain: false, or"
                " switches.split_by: annotation"
            )
        # Shape: (2, n_cases)
        counts = np.stack(
            [np.bincount(case, weights=within["label"] == c, minlength=len(names)) for c in (0, 1)]
        )
        present = counts.sum(axis=1) > 0
        rng = generator(scheme.seed, *stream, stratum)
        best = (np.inf, np.empty(0, dtype=int))
        for _ in range(N_PROPOSALS if scheme.stratified else 1):
            order = rng.permutation(len(names))
            held = np.cumsum(counts.sum(axis=0)[order]) / counts.sum()
            n_taken = min(int(np.argmin(np.abs(held - share))) + 1, len(names) - 1)
            taken = order[:n_taken]
            deviation = np.abs(
                counts[present][:, taken].sum(axis=1) / counts[present].sum(axis=1) - share
            ).max()
            if deviation < best[0]:
                best = (deviation, taken)
        chosen.append(within.loc[np.isin(case, best[1]), "patch_id"].to_numpy())
    return np.sort(np.concatenate(chosen))


def _strata(labels: pd.DataFrame) -> pd.Series:
    """The domain of each row; domains that share a case form one stratum, and so do all with fewer
    than three cases.
    """
    domain = _one_where_linked(labels["domain"], labels["case_id"])
    n_cases = labels.groupby(domain)["case_id"].nunique()
    return domain.where(domain.map(n_cases) >= 3, FEW_CASES)


def _one_where_linked(names: pd.Series, links: pd.Series) -> pd.Series:
    """``names``, where those that meet in one of ``links``, directly or over others, have the first
    one's name.
    """
    first = names.groupby(links).transform("first")
    sets = DisjointSet(names)
    for linked in set(zip(names, first, strict=True)):
        sets.merge(*linked)
    return names.map({name: min(linked) for linked in sets.subsets() for name in linked})


def _take_annotations(
    labels: pd.DataFrame, scheme: Scheme, share: float, stream: tuple
) -> np.ndarray:
    """Single annotations, ``share`` of each class in each domain, twins together. Returns patch
    ids.
    """
    chosen = []
    for stratum, within in labels.groupby(["domain", "label"], sort=True):
        rng = generator(scheme.seed, *stream, *stratum)
        chosen.append(
            rng.choice(
                within["patch_id"].to_numpy(), size=round(len(within) * share), replace=False
            )
        )
    taken = np.sort(np.concatenate(chosen))
    if "twin" not in labels:
        return taken
    first = labels.groupby("twin")["patch_id"].transform("min")
    return np.sort(labels.loc[first.isin(taken), "patch_id"].to_numpy())


def _nested_subset(
    labels: pd.DataFrame, scheme: Scheme, size: float, rounding: Callable, stream: tuple
) -> np.ndarray:
    """Patch ids of the share ``size`` of ``labels``; a smaller size is part of a larger."""
    groups = labels.groupby("label") if scheme.stratified else [("all", labels)]
    chosen = []
    for group, within in groups:
        order = generator(scheme.seed, "size", *stream, group).permutation(
            within["patch_id"].to_numpy()
        )
        chosen.append(order[: int(rounding(round(len(order) * size, 6)))])
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)


def _without_twins(labels: pd.DataFrame, roles: Roles) -> Roles:
    """``roles`` less the validation patches that are twins of a test patch, and the training
    patches that are of either.
    """
    if "twin" not in labels:
        return roles
    return _drop_touching(
        labels, roles, lambda seen, asked: asked["twin"].isin(seen["twin"]).to_numpy()
    )


def _drop_touching(
    labels: pd.DataFrame, roles: Roles, touch: Callable[[pd.DataFrame, pd.DataFrame], np.ndarray]
) -> Roles:
    """``roles`` less the validation patches that touch a test patch, and the training patches that
    touch either.
    """
    indexed = labels.set_index("patch_id")
    test, val, train = (indexed.loc[roles[role]] for role in ("test", "val", "train"))
    val = val[~touch(test, val)]
    train = train[~touch(pd.concat([test, val]), train)]
    return roles | {"val": val.index.to_numpy(), "train": train.index.to_numpy()}


def with_places(labels: pd.DataFrame, placing: Placing) -> pd.DataFrame:
    """``labels`` with the place of each patch: its centre ``x_patch_l0_px``, ``y_patch_l0_px`` and
    its ``side_l0_px``.

    A slide of unknown um/px is read at its own; a px of a patch image is as many level-0 px as its
    ``downsample`` says, or one. The centre is the annotation's, or that of a patch
    moved inward at a border.
    """
    side = np.full(len(labels), float(placing.size_px))
    if placing.um_per_px is not None:
        side = np.where(
            np.isfinite(labels["um_per_px"]), side * placing.um_per_px / labels["um_per_px"], side
        )
    side = side * downsample_of(labels)
    moved = "patch_x_l0_px" in labels
    x, y = (labels[f"patch_{axis}_l0_px" if moved else f"{axis}_l0_px"] for axis in "xy")
    return labels.assign(x_patch_l0_px=x, y_patch_l0_px=y, side_l0_px=side)


def downsample_of(labels: pd.DataFrame) -> np.ndarray:
    """Level-0 px to a px of each slide or patch image, (n,): 1 where labels don't say it."""
    if "downsample" not in labels:
        return np.ones(len(labels))
    return labels["downsample"].fillna(1.0).to_numpy(float)


def overlapping(seen: pd.DataFrame, asked: pd.DataFrame) -> np.ndarray:
    """Whether each of the patches ``asked`` shares a px with one of ``seen`` on its slide, bool
    (n_asked,).

    Both as `with_places` returns them: patches share px where their centres are nearer than a side
    on both axes. A patch whose place is unknown (NaN) is seen to share none.
    """
    patches = pd.concat([seen, asked])
    slide = pd.factorize(patches["slide_id"])[0]
    places = np.column_stack([patches[["x_patch_l0_px", "y_patch_l0_px"]], slide * FAR_L0_PX])
    known = np.isfinite(places).all(axis=1)
    is_seen = np.arange(len(patches)) < len(seen)
    shared = np.zeros(len(patches), dtype=bool)
    if (known & is_seen).any():
        here = known & ~is_seen
        distance, _ = cKDTree(places[known & is_seen]).query(places[here], p=np.inf)
        shared[here] = distance < patches["side_l0_px"].to_numpy()[here]
    return shared[len(seen) :]
