"""What every downstream task's data look like, whatever form they are published in, and how a wrong folder is refused."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from mfcore.store.files import Fingerprints, below

COLUMNS = ("item_id", "split", "label", "group", "file", "x_px", "y_px", "width_px", "height_px")
SPLITS = ("train", "val", "test")
IGNORED = 255
"""Value of a mask's pixels that neither teach nor are judged."""
MAX_HEADERS = 5_000  # of so many files each one's size is read, of more the first one's
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow says of damaged images
SELECTED_ON_REPORTED = "val, which is also the split that is reported"


class TaskError(ValueError):
    """A task's data are missing or not as published; the message says what, where, and where to get it."""


class TaskWarning(UserWarning):
    """A task's data are usable, but not what was published."""


@dataclass
class TaskData:
    """One downstream task's images with labels or masks; images are read one at a time, when asked for.

    classes: their names by index; of a segmentation the first is the background. table: a row an item, columns `COLUMNS`:
    split "train", "val" or "test", as eva uses the set's own; label the class's index, -1 for a segmentation; group the
    patient or slide, "" where the set doesn't say; file relative to ``folder``; the item's place in it and its size in px.
    um_per_px: as eva's documentation has it, None where it says nothing. selected_on: the split on which eva stops and
    selects; where the set has no test split, the same split is reported, and this says so.
    notes: in what the data differ from what is published.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    table: pd.DataFrame
    folder: Path
    um_per_px: float | None
    selected_on: str = "val"
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.table)

    def image(self, i: int) -> np.ndarray:
        """Pixels of row ``i``, counted from 0: uint8 (height_px, width_px, 3). Raises TaskError, naming the file."""
        row = self.table.iloc[i]
        pixels = read_image(self.folder / row["file"])
        return pixels[row["y_px"] : row["y_px"] + row["height_px"], row["x_px"] : row["x_px"] + row["width_px"]]

    def fingerprints(self, known: Fingerprints) -> Mapping[str, object]:
        """What stands for each file of the task's data, by name (see `fingerprints`)."""
        return fingerprints(self.folder, known)

    def mask(self, i: int) -> np.ndarray:
        """Classes of row ``i``'s pixels: uint8 (height_px, width_px), 0 background, `IGNORED` where nothing is judged."""
        raise TaskError(f"task {self.name!r} is a {self.kind}: its items have labels, no masks")


def fingerprints(folder: Path, known: Fingerprints) -> dict[str, list[int | str] | None]:
    """Size and SHA-256 of every file of a task's data by name, None of what is still to be made or unpacked."""
    if (folder / "begun.json").is_file() and not (folder / "made.json").is_file():
        return {"made.json": None}
    found: dict[str, list[int | str] | None] = {}
    for path in below(folder):
        name = path.relative_to(folder).as_posix()
        if path.suffix != ".gz":
            found[name] = known.of(path, whole=True)
        elif not path.with_suffix("").is_file():
            found[name.removesuffix(".gz")] = None
    return found


def read_image(path: Path) -> np.ndarray:
    """A whole image file: uint8 (n_rows, n_columns, 3); raises TaskError where it can't be read."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))  # (H, W, 3)
    except UNREADABLE as error:
        raise TaskError(f"{path}: not an image that can be read ({error}); get it again") from None


def sizes_px(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Widths and heights of images, int64 (n,) each, from their headers; past `MAX_HEADERS` files all as the first."""
    read = paths if len(paths) <= MAX_HEADERS else paths[:1]
    sizes = []
    for path in read:
        try:
            with Image.open(path) as image:
                sizes.append(image.size)
        except UNREADABLE as error:
            raise TaskError(f"{path}: not an image that can be read ({error}); get it again") from None
    both = np.array(sizes if len(read) == len(paths) else sizes * len(paths), dtype=np.int64).reshape(-1, 2)  # (n, 2)
    return both[:, 0], both[:, 1]


def whole_images(folder: Path, paths: Sequence[Path], labels: Sequence[int], splits: Sequence[str]) -> pd.DataFrame:
    """The table of a task whose items are whole files."""
    width, height = sizes_px(paths)
    names = [path.relative_to(folder).as_posix() for path in paths]
    rows = pd.DataFrame(
        {"item_id": names, "split": list(splits), "label": np.asarray(labels, np.int64), "group": "", "file": names}
    )
    return rows.assign(x_px=0, y_px=0, width_px=width, height_px=height)[list(COLUMNS)]


def refuse(folder: Path, problems: Iterable[str], where: str) -> None:
    """Raise one TaskError for all problems, the first ten in full, with where the set is to be had; none is no error."""
    problems = list(problems)
    if problems:
        more = f"\n  ... and {len(problems) - 10} more" if len(problems) > 10 else ""
        lines = "\n  ".join(problems[:10])
        raise TaskError(f"{folder}: not the set as published:\n  {lines}{more}\nWhere to get it: {where}")


def compare_counts(folder: Path, found: dict[str, int], published: dict[str, int]) -> tuple[str, ...]:
    """Notes on the counts that aren't the published ones; each is also warned of."""
    notes = tuple(
        f"{what}: {found.get(what, 0):,} there, {n:,} published" for what, n in published.items() if found.get(what, 0) != n
    )
    if notes:
        warnings.warn(f"{folder}: {'; '.join(notes)}; scores don't compare with published ones", TaskWarning, stacklevel=2)
    return notes
