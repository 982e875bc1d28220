"""A downstream task: its facts and published protocol (`Task`), and its images once they are read
(`TaskData`).

Protocols are those of kaiko-ai/eva's configurations. eva's documentation disagrees with the
configurations on the optimiser of a classification: the documentation says weight decay 0 and a
momentum, the configurations name AdamW, whose weight decay in PyTorch is 0.01. eva's code follows
the configurations, and so does `Protocol`. eva's heads have ConstantLR for a schedule unless the
configuration says otherwise; ConstantLR in PyTorch is a third of the learning rate for five epochs.
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from mfcore.store.files import Fingerprints, below
from mfcore.training.heads import Schedule

COLUMNS = ("item_id", "split", "label", "group", "file", "x_px", "y_px", "width_px", "height_px")
WHOLE = {"group": "", "x_px": 0, "y_px": 0}  # of an item whose table doesn't say it
SPLITS = ("train", "val", "test")
SELECTION = "val"  # the split on which training stops, and whose best weights are kept
MAX_HEADERS = 5_000  # of so many files each one's size is read, of more the first one's
# what Pillow raises on damaged images
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class TaskError(ValueError):
    """A task's data are missing or not as published; the message says what, where, and where to get
    it.
    """


class TaskWarning(UserWarning):
    """A task's data are usable, but not what was published."""


@dataclass(frozen=True)
class Protocol:
    """How encoders are judged by one task.

    kind: "classification" (one linear layer) or "segmentation" (a decoder). n_runs: heads from
    other seeds. n_steps of ``batch_size``. max_lr, weight_decay: AdamW's; the first
    ``n_slow_epochs`` go at ``slow_factor`` of the rate. patience: validations that bring no gain
    above ``min_gain`` after which training ends; None: a fifth of its epochs. n_per_class: drawn
    anew each run from the training split; None: all of it. size_px: side to which patches are
    resized first; None: as the encoder has it.
    """

    kind: str
    n_runs: int
    n_steps: int
    batch_size: int
    max_lr: float
    weight_decay: float = 0.01
    n_slow_epochs: int = 5
    slow_factor: float = 1 / 3
    patience: int | None = None
    epochs_a_validation: int = 1
    min_gain: float = 0.0
    n_per_class: int | None = None
    size_px: int | None = None

    @property
    def schedule(self) -> Schedule:
        """How each of the heads or decoders is trained."""
        return Schedule(
            self.max_lr,
            self.weight_decay,
            self.batch_size,
            lambda n_batches: (
                self.patience
                or max(1, math.ceil(self.n_steps / 5 / n_batches / self.epochs_a_validation))
            ),
            max_steps=self.n_steps,
            n_slow_epochs=self.n_slow_epochs,
            slow_factor=self.slow_factor,
            epochs_a_validation=self.epochs_a_validation,
            min_gain=self.min_gain,
        )


CLASSIFICATION = Protocol("classification", n_runs=5, n_steps=12_500, batch_size=256, max_lr=3e-4)
SEGMENTATION = Protocol("segmentation", n_runs=5, n_steps=2_000, batch_size=64, max_lr=2e-3)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except UNREADABLE as error:
        raise TaskError(f"{path}: not an image that can be read ({error}); get it again") from None


def read_image(path: Path) -> np.ndarray:
    """A whole image file: uint8 (n_rows, n_columns, 3); raises TaskError for a damaged one."""
    with _opened(path) as image:
        return np.asarray(image.convert("RGB"))  # (H, W, 3)


def read_item(folder: Path, row: pd.Series) -> np.ndarray:
    """The pixels of a row of a task's table, from its image file."""
    return part_of(read_image(folder / row["file"]), row)


def part_of(pixels: np.ndarray, row: pd.Series) -> np.ndarray:
    """The part of a whole image or mask (n_rows, n_columns, ...) that is an item."""
    return pixels[
        row["y_px"] : row["y_px"] + row["height_px"], row["x_px"] : row["x_px"] + row["width_px"]
    ]


@dataclass(frozen=True)
class Task:
    """One downstream task: its facts, known before its data are read, and how they are read.

    name: in study files, tables and folders. title: the authors' name. protocol: eva's; a synthetic
    task has that of its kind.
    classes: their names by index; of a segmentation the first is the background. read: the table of
    the data in a folder, a row an item, columns `COLUMNS`, those of `WHOLE` only where they differ:
    split "train", "val" or "test", as eva uses the set's own; label the class's index, -1 for a
    segmentation; group the patient or slide, "" where the set doesn't say; file relative to the
    folder; the item's place in it and its size
    in px. image, mask: a row's pixels, uint8 (height_px, width_px, 3), in classification of one
    size, and their classes, uint8 (height_px, width_px), 0 background, see `masks.IGNORED`; both
    raise TaskError, naming the file. prepare: unpacks or draws the data in a folder, where that is
    needed. where: where to get the data, and their licence; empty for a task that mfcore draws.
    counts: the published number of items by split. folder: its name below ``tasks`` of the data
    folder, where that isn't ``name``. interpolation: of its images, as
    `mfcore.encoders.preprocess.resized` names it; empty for the encoder's. labels_groups: whether a
    label is of a whole group; groups are then scored, too. unsettled: what of the protocol no
    source says, and what is done here; each run's notes have it.
    """

    name: str
    title: str
    protocol: Protocol
    classes: tuple[str, ...]
    read: Callable[["Task", Path], pd.DataFrame]
    image: Callable[[Path, pd.Series], np.ndarray] = read_item
    mask: Callable[[Path, pd.Series], np.ndarray] | None = None
    prepare: Callable[["Task", Path], None] | None = None
    where: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    folder: str = ""
    interpolation: str = ""
    labels_groups: bool = False
    unsettled: tuple[str, ...] = ()

    @property
    def is_segmentation(self) -> bool:
        """Whether pixels have classes; otherwise whole patches have."""
        return self.protocol.kind == "segmentation"

    def refuse(self, folder: Path, problems: list[str]) -> None:
        """Raise one TaskError for all problems, the first ten in full, with where to get the data;
        none is no error.
        """
        if problems:
            more = [f"... and {len(problems) - 10} more"] * (len(problems) > 10)
            raise TaskError(
                "\n  ".join([f"{folder}: not {self.title} as published:", *problems[:10], *more])
                + f"\nWhere to get it: {self.where}"
            )

    def load(self, folder: Path) -> "TaskData":
        """The data in ``folder``. Raises TaskError where they aren't as published, warns where
        there are fewer or more.
        """
        table = self.read(self, folder)
        missing = {name: value for name, value in WHOLE.items() if name not in table}
        table = table.assign(**missing).filter(COLUMNS)
        n = table["split"].value_counts()
        n_splits = table[table["group"] != ""].groupby("group")["split"].nunique()
        notes = [
            f"{split}: {n.get(split, 0):,} there, {published:,} published"
            for split, published in self.counts.items()
            if n.get(split, 0) != published
        ]
        if notes:
            message = f"{folder}: {'; '.join(notes)}; scores don't compare with published ones"
            warnings.warn(message, TaskWarning, stacklevel=2)
        if shared := list(n_splits.index[n_splits > 1]):
            notes.append(
                f"{len(shared)} patients or slides are in several splits: {', '.join(shared[:5])}"
            )
        return TaskData(self, table, folder, (*notes, *self.unsettled))


@dataclass
class TaskData:
    """A task's items, as `Task.read` lists them in ``folder``; images are read one at a time, when
    asked for.

    notes: in what the data differ from what is published, and what is unsettled.
    """

    task: Task
    table: pd.DataFrame
    folder: Path
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.table)

    @property
    def selected_on(self) -> str:
        """The split on which eva stops and selects; where the set has no test split, that the same
        split is reported.
        """
        return (
            SELECTION
            if (self.table["split"] == "test").any()
            else "val, which is also the split that is reported"
        )

    def image(self, i: int) -> np.ndarray:
        """Pixels of row ``i``, counted from 0 (`Task.image`)."""
        return self.task.image(self.folder, self.table.iloc[i])

    def mask(self, i: int) -> np.ndarray:
        """Classes of row ``i``'s pixels (`Task.mask`)."""
        return self.task.mask(self.folder, self.table.iloc[i])

    def fingerprints(self, known: Fingerprints) -> Mapping[str, object]:
        """What stands for each file of the task's data, by name (see `fingerprints`)."""
        return fingerprints(self.folder, known)


def fingerprints(folder: Path, known: Fingerprints) -> dict[str, list[int | str] | None]:
    """Size and SHA-256 of every file of a task's data by name, None of what is still to be made or
    unpacked. Of large slides in Aperio's format parts are read (`mfcore.store.files`).
    """
    if (folder / "begun.json").is_file() and not (folder / "made.json").is_file():
        return {"made.json": None}
    states: dict[str, list[int | str] | None] = {}
    for path in below(folder):
        if path.suffix != ".gz":
            states[path.relative_to(folder).as_posix()] = known.of(
                path, whole=path.suffix != ".svs"
            )
        elif not path.with_suffix("").is_file():
            states[path.with_suffix("").relative_to(folder).as_posix()] = None
    return states


def sizes_px(paths: Sequence[Path]) -> np.ndarray:
    """Widths and heights of images, int64 (2, n), from their headers.

    Past `MAX_HEADERS` files all are as the first. Raises TaskError for a damaged image.
    """
    sizes = []
    for path in paths if len(paths) <= MAX_HEADERS else paths[:1]:
        with _opened(path) as image:
            sizes.append(image.size)
    return np.broadcast_to(sizes, (len(paths), 2)).T


def whole_images(
    folder: Path,
    paths: Sequence[Path],
    labels: Sequence[int],
    splits: Sequence[str],
    groups: str | Sequence[str] = "",
) -> pd.DataFrame:
    """The table of a task whose items are whole files."""
    names = [path.relative_to(folder).as_posix() for path in paths]
    rows = {"item_id": names, "split": list(splits), "label": np.asarray(labels, np.int64)}
    width, height = sizes_px(paths)
    rows |= {"group": groups, "file": names, "width_px": width, "height_px": height}
    return pd.DataFrame(rows)
