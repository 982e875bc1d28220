"""The data of one training: its patches by role, the draws of each epoch, and the label of each drawn patch.

Every random draw has a name (unit, purpose, epoch), not a place in an order. It is the same in a training that was killed and
goes on, in each of several processes, and when other units are added.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from mfcore import streams as rng
from mfcore.data import augment, patches, splits
from mfcore.data.splits_draw import Placing, with_places
from mfcore.training.options import Network

MAX_PROBLEMS = 10  # in a message


class TrainingError(RuntimeError):
    """A network can't be trained on this, or its training diverged; the message names the unit and the remedy.

    problems: all of them; the message has the first ten.
    """

    def __init__(self, *problems: str):
        lines = list(problems[:MAX_PROBLEMS])
        if len(problems) > MAX_PROBLEMS:
            lines.append(f"... and {len(problems) - MAX_PROBLEMS} more")
        super().__init__(lines[0] if len(lines) == 1 else f"{len(problems)} problems:\n  " + "\n  ".join(lines))
        self.problems = problems


@dataclass(frozen=True)
class Places:
    """Where patches and annotations lie on their slides.

    annotation_l0_px, patch_l0_px: centres, x and y in level-0 px, float64 (n, 2) each; they differ where a patch was moved
    inward at a border. l0_px_per_px: level-0 px that one px of the patch spans (n,).
    """

    annotation_l0_px: np.ndarray
    patch_l0_px: np.ndarray
    l0_px_per_px: np.ndarray


def places_of(labels: pd.DataFrame, placing: Placing) -> Places:
    """The places of patches; ``labels`` as `patches.load` returns them."""
    table = with_places(labels, placing)
    return Places(
        table[["x_l0_px", "y_l0_px"]].to_numpy(float),
        table[["x_patch_l0_px", "y_patch_l0_px"]].to_numpy(float),
        table["side_l0_px"].to_numpy(float) / placing.size_px,
    )


@dataclass(frozen=True)
class Recipe:
    """How a network is trained where the released code of Ganz et al. differs from good practice (a study's `Switches`).

    epoch: "best" by validation loss, or "last". training_label: "annotation", or "window": positive where any positive lies in
    the crop. validation: "centre" crops, or "drawn" as training. clipping: "after_backward", or "before_backward", without
    effect. sampler: "annotations", or "released": random places on slides without class 0. augmentation: "as_said", or
    "released". stratified: whether the splits are; a message needs it.
    """

    epoch: str = "best"
    training_label: str = "annotation"
    validation: str = "centre"
    clipping: str = "after_backward"
    sampler: str = "annotations"
    augmentation: str = "as_said"
    stratified: bool = True


@dataclass(frozen=True)
class Task:
    """One training: a network, its patches and its recipe.

    unit: name of its files. title: its name in random draws and in its history, if not ``unit``. patches: uint8
    (n, stored_px, stored_px, 3), memory-mapped or not. labels: 0 or 1 (n,); slide_ids: (n,). roles: rows of the patches for
    each of "train", "val" and "test". places: needed for labels by window, and for patches at random places. read: gives
    centres and patches at random places by slide and shares, as `patches.read_anywhere`; needed where `slides_at_random`
    names any.

    Raises TrainingError, with all problems, where a role is empty or shares a patch with another, where training or test has
    one class, where patches are too narrow, or where there are too few for a batch.
    """

    unit: str
    network: Network
    seed: int
    patches: np.ndarray
    labels: np.ndarray
    slide_ids: np.ndarray
    roles: Mapping[str, np.ndarray]
    recipe: Recipe = Recipe()
    places: Places | None = None
    title: str = ""
    read: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None

    @property
    def reads_slides(self) -> bool:
        """Whether some of its patches lie at random places of slides."""
        roles = ("train", "val") if self.recipe.validation == "drawn" else ("train",)
        return any(len(slides_at_random(self, role)) for role in roles)

    @property
    def n_per_epoch(self) -> int:
        """Patches of one epoch."""
        drawn = self.network.patches_per_epoch
        return len(self.roles["train"]) if drawn is None else drawn

    @property
    def stream(self) -> tuple[str, str, str]:
        """The first names of this training's random streams."""
        return ("train", self.network.name, self.title or self.unit)

    @property
    def validates_one_class(self) -> bool:
        """Whether the best epoch is chosen by validation patches of a single class."""
        return self.recipe.epoch == "best" and len(np.unique(self.labels[self.roles["val"]])) == 1

    def __post_init__(self) -> None:
        if problems := [*self._wrong_roles(), *self._wrong_sizes()]:
            raise TrainingError(*(f"{self.unit}: {problem}" for problem in problems))

    def _wrong_roles(self) -> list[str]:
        problems = [
            f"there are no {role} patches; each of {list(splits.ROLES)} needs some"
            for role in splits.ROLES
            if not len(self.roles[role])
        ]
        everyone = np.concatenate([self.roles[role] for role in splits.ROLES])
        if len(np.unique(everyone)) < len(everyone):
            problems.append(f"a patch has two of the roles {list(splits.ROLES)}; make the splits again")
        if other := sorted(set(np.unique(self.labels[everyone]).tolist()) - {0, 1}):
            problems.append(f"labels must be 0 or 1, there is {other[0]}; correct the label table")
        problems += self._one_class(np.unique(self.labels[everyone]))
        if self.recipe.training_label == "window" and not self._knows_places(everyone):
            problems.append(
                "switches.training_label: window needs the place of every annotation, x_l0_px and y_l0_px, which the labels "
                "don't all have; set it to annotation"
            )
        return problems + ([] if problems else self._wrong_sampler(everyone))

    def _knows_places(self, rows: np.ndarray) -> bool:
        return self.places is not None and all(np.isfinite(part[rows]).all() for part in vars(self.places).values())

    def _wrong_sampler(self, everyone: np.ndarray) -> list[str]:
        """What random places lack: the slides they are read from, or the places of annotations, by which they are labelled."""
        if not self.reads_slides or ((are_known := self._knows_places(everyone)) and self.read):
            return []
        problem = (
            f"switches.sampler: released draws random places of {len(slides_at_random(self, 'train'))} training slides, which "
        )
        problem += "have no patch of class 0"
        if not are_known:
            return [
                f"{problem}, and labels them by the places of annotations, which some labels don't have; set it to annotations"
            ]
        return [
            f"{problem}; say in which folder the slides lie: data_folder in notebook 04_train_end_to_end, or --data of "
            "python -m mfcore train"
        ]

    def _one_class(self, everywhere: np.ndarray) -> list[str]:
        """What has patches of one class only, with what would help; ``everywhere``: the classes that all roles have."""
        if len(everywhere) == 1:
            return [f"there is no patch of class {1 - everywhere[0]} in any role; correct the label table"]
        fewer = "leave this size out of splits.sizes"
        if not self.unit.startswith(f"{splits.ALL}-fold"):
            fewer = f"set networks[{self.network.name}].by_domain: false"
        remedies = {"train": ("training", fewer), "test": ("test", "raise splits.test_fraction")}
        problems = []
        for role, (called, remedy) in remedies.items():
            present = np.unique(self.labels[self.roles[role]])
            if len(present) == 1:
                or_else = "" if self.recipe.stratified else ", or set switches.stratified: true"
                problems.append(f"all {len(self.roles[role])} {called} patches are of class {present[0]}; {remedy}{or_else}")
        return problems

    def _wrong_sizes(self) -> list[str]:
        problems, network = [], self.network
        name = f"networks[{network.name}]"
        if (stored_px := self.patches.shape[1]) < network.needed_px:
            needed = f"{name} needs {network.needed_px} px for input_px {network.input_px} with its rotations and shifts"
            problems.append(f"patches are stored at {stored_px} px, {needed}; extract them again, or lower its input_px")
        if network.batch_size < 2:
            problems.append(f"batch norm needs two patches or more in a batch; {name}.batch_size is {network.batch_size}")
        elif self.n_per_epoch < network.batch_size and len(self.roles["train"]):
            drawn = "raise" if network.patches_per_epoch else "draw with replacement by"
            problems.append(
                f"the {self.n_per_epoch} patches of an epoch are too few for a batch of {network.batch_size}; {drawn} {name}."
                "patches_per_epoch, or lower its batch_size"
            )
        return problems


@dataclass(frozen=True)
class Elsewhere:
    """Patches at random places: uint8 (k, stored_px, stored_px, 3), and the slides (k,) and level-0 places they lie at.

    Rows from the number of stored patches on count them.
    """

    patches: np.ndarray
    slide_ids: np.ndarray
    centres_l0_px: np.ndarray


@dataclass(frozen=True)
class Examples:
    """Patches as a network is shown them: rows int64 (n,), what is done to each, labels int8 (n,), and those not stored."""

    rows: np.ndarray
    drawn: augment.Parameters
    labels: np.ndarray
    elsewhere: Elsewhere | None = None

    def __len__(self) -> int:
        return len(self.rows)


def epoch_of(task: Task, number: int) -> Examples:
    """What epoch ``number`` trains on, in its order."""
    rows, elsewhere = _placed(task, "train", draw_epoch(task, number), *task.stream, "places", number)
    as_released = task.recipe.augmentation == "released"
    drawn = augment.draw(task.network, len(rows), task.seed, *task.stream, "augment", number, released=as_released)
    return Examples(rows, drawn, labels_of(task, "train", rows, drawn.shift_x_px, drawn.shift_y_px, elsewhere), elsewhere)


@dataclass(frozen=True)
class Validation:
    """What a training is validated on: rows int64 (n,), shifts of the crop in px int64 (n, 2), x and y, labels int8 (n,).

    elsewhere: those of the rows that aren't stored.
    """

    rows: np.ndarray
    shifts_px: np.ndarray
    labels: np.ndarray
    elsewhere: Elsewhere | None = None


def validation_of(task: Task) -> Validation:
    """The centre crops of the validation patches under their own labels, or, where the study says so, one draw of them.

    A draw takes as many, the way training draws, shifted and labelled as in training and else unchanged; it is the same in
    every epoch.
    """
    rows = task.roles["val"]
    if task.recipe.validation == "centre":
        return Validation(rows, np.zeros((len(rows), 2), np.int64), task.labels[rows])
    names, elsewhere = (*task.stream, "validation"), None
    if task.network.patches_per_epoch is not None:
        rows = _drawn(task, "val", len(rows), rng.generator(task.seed, *names, "draw"))
        rows, elsewhere = _placed(task, "val", rows, *names, "places")
    drawn = augment.draw(task.network, len(rows), task.seed, *names, "augment")
    shifts = np.stack([drawn.shift_x_px, drawn.shift_y_px], axis=1).astype(np.int64)
    return Validation(rows, shifts, labels_of(task, "val", rows, *shifts.T, elsewhere), elsewhere)


def crops(task: Task, rows: np.ndarray, shifts_px: np.ndarray, elsewhere: Elsewhere | None = None) -> np.ndarray:
    """What the network sees of patches ``rows`` when nothing but a shift (n, 2) is done: uint8 (n, input_px, input_px, 3)."""
    margin_px, side_px, n = task.network.shift_px, task.network.input_px, len(task.labels)
    stored = patches.centre_crop(task.patches, side_px + 2 * margin_px)
    beside = None if elsewhere is None else patches.centre_crop(elsewhere.patches, side_px + 2 * margin_px)
    wide = [stored[row] if beside is None or row < n else beside[row - n] for row in rows]
    corners = zip(wide, *(margin_px + shifts_px).T, strict=True)
    return np.stack([patch[y : y + side_px, x : x + side_px] for patch, x, y in corners])


def chances(task: Task, role: str = "train") -> np.ndarray:
    """How likely a draw takes each patch of a role, float64 (n,), sum 1.

    A slide is drawn, each as likely, then one of its classes, each as likely, then a patch of that class on it (as the
    released code of Ganz et al.). Where random places are drawn, they have the rest of the sum (`slides_at_random`).
    """
    rows = task.roles[role]
    names, slide = np.unique(task.slide_ids[rows], return_inverse=True)
    stratum = 2 * slide + task.labels[rows]  # slide and class as one number
    counts = np.bincount(stratum, minlength=2 * len(names))
    n_classes = np.count_nonzero(counts.reshape(-1, 2), axis=1)  # (n_slides,)
    if task.recipe.sampler == "released":
        n_classes[counts[::2] == 0] = 2
    return 1 / (len(names) * n_classes[slide] * counts[stratum])


def slides_at_random(task: Task, role: str) -> np.ndarray:
    """The role's slides of which random places are drawn, half of each one's draws: those without a patch of class 0.

    As the released code of Ganz et al. draws (``src/dataset.py``, ``sample_func``); none unless the study says so.
    """
    if task.recipe.sampler == "annotations" or task.network.patches_per_epoch is None:
        return np.empty(0, object)
    rows = task.roles[role]
    slides = task.slide_ids[rows]
    return np.setdiff1d(slides, slides[task.labels[rows] == 0])


def _drawn(task: Task, role: str, n: int, draws: np.random.Generator) -> np.ndarray:
    """``n`` of a role's patches, drawn with replacement; a row from the number of patches on is a slide of random places."""
    rows, likely, random = task.roles[role], chances(task, role), slides_at_random(task, role)
    if len(random):
        each = 0.5 / len(np.unique(task.slide_ids[rows]))
        rows = np.concatenate([rows, len(task.labels) + np.arange(len(random))])
        likely = np.concatenate([likely, np.full(len(random), each)])
    return draws.choice(rows, size=n, p=likely)


def _placed(task: Task, role: str, rows: np.ndarray, *names: object) -> tuple[np.ndarray, Elsewhere | None]:
    """Rows as `_drawn` gives them, each random place by its own row, and the patches there, from the stream ``names``."""
    n, random = len(task.labels), np.flatnonzero(rows >= len(task.labels))
    if not len(random) or task.read is None:
        return rows, None
    slides = slides_at_random(task, role)[rows[random] - n]
    centres, stored = task.read(slides, rng.generator(task.seed, *names).random((len(random), 2)))
    rows = rows.copy()
    rows[random] = n + np.arange(len(random))
    return rows, Elsewhere(stored, slides, centres)


def draw_epoch(task: Task, number: int) -> np.ndarray:
    """The training patches of epoch ``number`` in their order, rows int64 (n_per_epoch,).

    Drawn with replacement by their `chances`, or, with ``patches_per_epoch`` None, each once. A row from the number of
    patches on is a random place of one of `slides_at_random`.
    """
    draws = rng.generator(task.seed, *task.stream, "draw", number)
    if task.network.patches_per_epoch is None:
        return draws.permutation(task.roles["train"])
    return _drawn(task, "train", task.n_per_epoch, draws)


def labels_of(
    task: Task,
    role: str,
    rows: np.ndarray,
    shift_x_px: np.ndarray,
    shift_y_px: np.ndarray,
    elsewhere: Elsewhere | None = None,
) -> np.ndarray:
    """Labels int8 (n,) under which patches ``rows`` of a role are learnt, their crops shifted by so many px of the patch.

    Each annotation's own, or, where the study says so, 1 where the centre of any of the role's positive annotations lies
    inside the crop, as before it is rotated and mirrored (the released code of Ganz et al., ``src/dataset.py``). A patch at
    a random place, which has no annotation of its own, is always labelled so.
    """
    by_window = rows >= len(task.labels) if task.recipe.training_label == "annotation" else np.ones(len(rows), bool)
    if task.places is None or not by_window.any():
        return task.labels[rows].astype(np.int8)
    labels = np.zeros(len(rows), np.int8)
    labels[~by_window] = task.labels[rows[~by_window]]
    shifts = np.stack([shift_x_px, shift_y_px], axis=1)[by_window]
    labels[by_window] = _sees_positive(task, role, rows[by_window], shifts, elsewhere)
    return labels


def _sees_positive(task: Task, role: str, rows: np.ndarray, shifts_px: np.ndarray, elsewhere: Elsewhere | None) -> np.ndarray:
    """Whether the crops of patches ``rows``, so shifted (n, 2), hold the centre of one of the role's positives, bool (n,)."""
    places, positive = task.places, task.roles[role][task.labels[task.roles[role]] == 1]
    if not len(positive) or places is None:
        return np.zeros(len(rows), bool)
    slide_ids, centres, scales = task.slide_ids, places.patch_l0_px, places.l0_px_per_px
    if elsewhere is not None:
        slide_ids = np.concatenate([slide_ids, elsewhere.slide_ids])
        centres = np.concatenate([centres, elsewhere.centres_l0_px])
        of_slide = dict(zip(task.slide_ids, scales, strict=True))
        scales = np.concatenate([scales, [of_slide[slide] for slide in elsewhere.slide_ids]])
    scale = scales[rows]
    centre = centres[rows] + shifts_px * scale[:, None]
    # Slides lie side by side along a third axis, farther apart than any window is wide.
    slide = pd.factorize(slide_ids)[0] * (1.0 + task.network.input_px * places.l0_px_per_px.max())
    tree = cKDTree(np.column_stack([places.annotation_l0_px[positive], slide[positive]]))
    distance, _ = tree.query(np.column_stack([centre, slide[rows]]), p=np.inf)
    return distance < task.network.input_px * scale / 2


def batches(n_patches: int, batch_size: int) -> list[slice]:
    """The batches of an epoch; a last one of a single patch, which batch norm can't do, joins the one before it."""
    starts = list(range(0, n_patches, batch_size))
    if len(starts) > 1 and n_patches - starts[-1] == 1:
        starts.pop()
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], n_patches], strict=True)]


def steps(n_patches: int, network: Network) -> list[list[slice]]:
    """The steps of an epoch, each the batches whose gradients it adds up; the last may have fewer of them."""
    parts = batches(n_patches, network.batch_size)
    return [parts[start : start + network.accumulate] for start in range(0, len(parts), network.accumulate)]
