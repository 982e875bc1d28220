"""The data of one training: its patches by role, the draws of each epoch, and the label of each
drawn patch.

Every random draw has a name (unit, purpose, epoch), not a place in an order. It is the same in a
training that was killed and goes on, in each of several processes, and when other units are added.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from mfcore import streams as rng
from mfcore.data import augment
from mfcore.data.splits_draw import Placing, with_places
from mfcore.training.options import Network


class TrainingError(RuntimeError):
    """A network can't be trained on this, or its training diverged; the message names the unit and
    the remedy.
    """


@dataclass(frozen=True)
class Places:
    """Where patches and annotations lie on their slides.

    annotation_l0_px, patch_l0_px: centres, x and y in level-0 px, float64 (n, 2) each; they differ
    where a patch was moved inward at a border. l0_px_per_px: level-0 px that one px of the patch
    spans (n,).
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
    """How a network is trained where the released code of Ganz et al. differs from good practice (a
    study's `Switches`).

    epoch: "best" by validation loss, or "last". training_label: "annotation", or "window": positive
    where any positive lies in the crop. validation: "centre" crops, or "drawn" as training.
    clipping: "after_backward", or "before_backward", without effect. sampler: "annotations", or
    "released": random places on slides without class 0. augmentation: "as_said", or "released".
    """

    epoch: str = "best"
    training_label: str = "annotation"
    validation: str = "centre"
    clipping: str = "after_backward"
    sampler: str = "annotations"
    augmentation: str = "as_said"


@dataclass(frozen=True)
class Task:
    """One training: a network, its patches and its recipe.

    unit: name of its files. title: its name in random draws and in its history, if not ``unit``.
    patches: uint8 (n, stored_px, stored_px, 3), memory-mapped or not. labels: 0 or 1 (n,);
    slide_ids: (n,). roles: rows of the patches for each of "train", "val" and "test". read: gives
    centres and patches at random places by slide and shares, as `patches.read_anywhere`; needed
    where `slides_at_random` names any.
    """

    unit: str
    network: Network
    seed: int
    patches: np.ndarray
    labels: np.ndarray
    slide_ids: np.ndarray
    roles: Mapping[str, np.ndarray]
    places: Places
    recipe: Recipe = Recipe()
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
        return self.network.patches_per_epoch or len(self.roles["train"])

    @property
    def stream(self) -> tuple[str, str, str]:
        """The first names of this training's random streams."""
        return ("train", self.network.name, self.title or self.unit)

    @property
    def validates_one_class(self) -> bool:
        """Whether the best epoch is chosen by validation patches of a single class."""
        classes = np.unique(self.labels[self.roles["val"]])
        return self.recipe.epoch == "best" and len(classes) == 1

    def problems(self) -> list[str]:
        """Why it can't be trained, each with a remedy."""
        problems, n, batch_size = [], self.n_per_epoch, self.network.batch_size
        if n < batch_size:
            problems.append(
                f"the {n} patches of an epoch are too few for a batch of {batch_size}; raise "
                f"networks[{self.network.name}].patches_per_epoch, or lower its batch_size"
            )
        rows = np.concatenate(list(self.roles.values()))
        has_places = all(np.isfinite(values[rows]).all() for values in vars(self.places).values())
        if self.recipe.training_label == "window" and not has_places:
            problems.append(
                "switches.training_label: window needs the place of every annotation, x_l0_px and "
                "y_l0_px, which the labels don't all have; set it to annotation"
            )
        elif self.reads_slides and not has_places:
            problems.append(
                "switches.sampler: released labels patches at random places by the places of "
                "annotations, which some labels don't have; set it to annotations"
            )
        elif self.reads_slides and self.read is None:
            problems.append(
                "switches.sampler: released draws random places of slides without class 0; say in "
                "which folder the slides lie: data_folder in notebook 04_train_end_to_end, or "
                "--data of python -m mfcore train"
            )
        return problems


# ---- what a network is shown ----


@dataclass(frozen=True)
class Elsewhere:
    """Patches at random places, which aren't stored.

    patches: uint8 (k, stored_px, stored_px, 3); slide_ids: the slides that they lie on (k,);
    centres_l0_px: and where (k, 2).
    """

    patches: np.ndarray
    slide_ids: np.ndarray
    centres_l0_px: np.ndarray


@dataclass(frozen=True)
class Examples:
    """Patches as a network is shown them, in order.

    rows: int64 (n,); from the number of stored patches on, rows of ``elsewhere``. shifts_px: of the
    crop, int64 (n, 2), x and y. labels: int8 (n,). drawn: what is done to each patch in training,
    the shift included; None for centre crops.
    """

    rows: np.ndarray
    shifts_px: np.ndarray
    labels: np.ndarray
    elsewhere: Elsewhere
    drawn: np.recarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> "Examples":
        """Some of them, without ``drawn``."""
        shown = self.rows[part], self.shifts_px[part], self.labels[part]
        return Examples(*shown, self.elsewhere)


def epoch_of(task: Task, number: int) -> Examples:
    """What epoch ``number`` trains on: patches drawn with replacement by their `chances`, or, with
    ``patches_per_epoch`` None, each once.
    """

    def stream(purpose: str) -> tuple:
        return (*task.stream, purpose, number)

    if task.network.patches_per_epoch is None:
        order = rng.generator(task.seed, *stream("draw")).permutation(task.roles["train"])
        rows, elsewhere = order, nowhere(task)
    else:
        rows, elsewhere = _drawn(task, "train", task.n_per_epoch, stream)
    is_released = task.recipe.augmentation == "released"
    drawn = augment.draw(
        task.network, len(rows), task.seed, *stream("augment"), released=is_released
    )
    return _labelled(task, "train", rows, drawn, elsewhere)


def validation_of(task: Task) -> Examples:
    """What a training is validated on: the centre crops of the validation patches under their own
    labels, or, where the study says so, one draw of as many.

    A draw is shifted and labelled as in training and else unchanged, the same in every epoch.
    """
    if task.recipe.validation == "centre":
        return centred(task, "val")

    def stream(purpose: str) -> tuple:
        return (*task.stream, "validation", purpose)

    rows, elsewhere = task.roles["val"], nowhere(task)
    if task.network.patches_per_epoch is not None:
        rows, elsewhere = _drawn(task, "val", len(rows), stream)
    drawn = augment.draw(task.network, len(rows), task.seed, *stream("augment"))
    return _labelled(task, "val", rows, drawn, elsewhere)


def centred(task: Task, role: str) -> Examples:
    """The centre crops of a role's patches under their own labels."""
    rows = task.roles[role]
    shifts_px = np.zeros((len(rows), 2), np.int64)
    return Examples(rows, shifts_px, task.labels[rows], nowhere(task))


def crops(task: Task, examples: Examples) -> np.ndarray:
    """The crops, shifted and nothing else, uint8 (n, input_px, input_px, 3)."""
    n, side_px = len(task.labels), task.network.input_px
    corners = (task.patches.shape[1] - side_px) // 2 + examples.shifts_px
    cut = []
    for row, (x, y) in zip(examples.rows, corners, strict=True):
        patch = task.patches[row] if row < n else examples.elsewhere.patches[row - n]
        cut.append(patch[y : y + side_px, x : x + side_px])
    return np.stack(cut)


# ---- draws ----


def chances(task: Task, role: str = "train") -> np.ndarray:
    """How likely a draw takes each patch of a role, float64 (n,), sum 1.

    A slide is drawn, each as likely, then one of its classes, each as likely, then a patch of that
    class on it (as the released code of Ganz et al.). Where random places are drawn, they have the
    rest of the sum (`slides_at_random`).
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
    """The role's slides of which random places are drawn, half of each one's draws: those without a
    patch of class 0.

    As the released code of Ganz et al. draws (``src/dataset.py``, ``sample_func``); none unless the
    study says so.
    """
    if task.recipe.sampler == "annotations" or task.network.patches_per_epoch is None:
        return np.empty(0, object)
    rows = task.roles[role]
    slides = task.slide_ids[rows]
    return np.setdiff1d(slides, slides[task.labels[rows] == 0])


def _drawn(
    task: Task, role: str, size: int, stream: Callable[[str], tuple]
) -> tuple[np.ndarray, Elsewhere]:
    """``size`` of a role's patches, drawn with replacement, and those at random places.

    stream: gives the names of the stream for "draw" and for "places".
    """
    n, rows, likely = len(task.labels), task.roles[role], chances(task, role)
    slides = slides_at_random(task, role)
    share = 0.5 / len(np.unique(task.slide_ids[rows]))
    draws = rng.generator(task.seed, *stream("draw"))
    chosen = draws.choice(
        np.concatenate([rows, n + np.arange(len(slides))]),
        size=size,
        p=np.concatenate([likely, np.full(len(slides), share)]),
    )
    random = np.flatnonzero(chosen >= n)
    if not len(random):
        return chosen, nowhere(task)
    asked = slides[chosen[random] - n]
    shares = rng.generator(task.seed, *stream("places")).random((len(random), 2))
    centres, stored = task.read(asked, shares)
    chosen[random] = n + np.arange(len(random))
    return chosen, Elsewhere(stored, asked, centres)


def nowhere(task: Task) -> Elsewhere:
    """No patch at a random place."""
    patches = np.empty((0, *task.patches.shape[1:]), np.uint8)
    return Elsewhere(patches, np.empty(0, object), np.empty((0, 2)))


# ---- labels ----


def _labelled(
    task: Task, role: str, rows: np.ndarray, drawn: np.recarray, elsewhere: Elsewhere
) -> Examples:
    shifts_px = np.stack([drawn.shift_x_px, drawn.shift_y_px], axis=1).astype(np.int64)
    labels = labels_of(task, role, rows, shifts_px, elsewhere)
    return Examples(rows, shifts_px, labels, elsewhere, drawn)


def labels_of(
    task: Task, role: str, rows: np.ndarray, shifts_px: np.ndarray, elsewhere: Elsewhere
) -> np.ndarray:
    """Labels int8 (n,) under which patches ``rows`` of a role are learnt, their crops shifted by
    ``shifts_px`` (n, 2) of the patch.

    Each annotation's own, or, where the study says so, 1 where the centre of any of the role's
    positive annotations lies inside the crop, as before it is rotated and mirrored (the released
    code of Ganz et al., ``src/dataset.py``). A patch at a random place, which has no annotation of
    its own, is always labelled so.
    """
    is_stored = rows < len(task.labels)
    labels = np.zeros(len(rows), np.int8)
    labels[is_stored] = task.labels[rows[is_stored]]
    by_window = np.ones(len(rows), bool)
    if task.recipe.training_label == "annotation":
        by_window = ~is_stored
    if by_window.any():
        seen = _sees_positive(task, role, rows[by_window], shifts_px[by_window], elsewhere)
        labels[by_window] = seen
    return labels


def _sees_positive(
    task: Task, role: str, rows: np.ndarray, shifts_px: np.ndarray, elsewhere: Elsewhere
) -> np.ndarray:
    """Whether the crops of patches ``rows``, so shifted (n, 2), hold the centre of one of the
    role's positives, bool (n,).
    """
    places, input_px = task.places, task.network.input_px
    positive = task.roles[role][task.labels[task.roles[role]] == 1]
    scale_of = dict(zip(task.slide_ids, places.l0_px_per_px, strict=True))
    slide_ids = np.concatenate([task.slide_ids, elsewhere.slide_ids])
    scales = np.append(places.l0_px_per_px, [scale_of[slide] for slide in elsewhere.slide_ids])
    centres = np.concatenate([places.patch_l0_px, elsewhere.centres_l0_px])[rows]
    centres = centres + shifts_px * scales[rows, None]
    # Slides lie side by side along a third axis, farther apart than any window is wide.
    slide = pd.factorize(slide_ids)[0] * (1.0 + input_px * places.l0_px_per_px.max())
    tree = cKDTree(np.column_stack([places.annotation_l0_px[positive], slide[positive]]))
    distance, _ = tree.query(np.column_stack([centres, slide[rows]]), p=np.inf)
    return distance < input_px * scales[rows] / 2


# ---- batches ----


def batches(n_patches: int, batch_size: int) -> list[slice]:
    """The batches of an epoch; a last one of a single patch, which batch norm can't do, joins the
    one before it.
    """
    starts = list(range(0, n_patches, batch_size))
    if len(starts) > 1 and n_patches - starts[-1] == 1:
        starts.pop()
    return [
        slice(start, stop) for start, stop in zip(starts, [*starts[1:], n_patches], strict=True)
    ]


def steps(n_patches: int, network: Network) -> list[list[slice]]:
    """The steps of an epoch, each the batches whose gradients it adds up; the last may have fewer
    of them.
    """
    parts, size = batches(n_patches, network.batch_size), network.accumulate
    return [parts[start : start + size] for start in range(0, len(parts), size)]
