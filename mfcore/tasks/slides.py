"""Tasks whose labels are of slides: patches drawn inside the tissue of each slide, each with the
slide's label, for a linear head.

folder/slides.csv    slide, patient, mutated (0 or 1), split; put there by the user
folder/slides/...    the slides, at any depth, or a link to their folder
folder/.places/...   where patches were drawn, a file a slide; made here

No patch is stored: each is read from its slide when it is embedded. kaiko 2024 judge by TP53 on
TCGA (Fig. 1, right); cohort, labels, patches and split of theirs are in no source that was read
here. The task takes the public definition by its own name.
"""

import warnings
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from mfcore import store
from mfcore.data.slides import tissue
from mfcore.data.slides.slide import SlideError, open_slide
from mfcore.store.files import below
from mfcore.store.records import digest
from mfcore.streams import generator
from mfcore.tasks.task import CLASSIFICATION, SPLITS, Task, TaskError, TaskWarning

TABLE = "slides.csv"
LISTED = ("slide", "patient", "mutated", "split")
SEED = 2024
N_TRIED = 10_000  # draws for one patch


@dataclass(frozen=True)
class Drawing:
    """Which patches stand for a slide: ``n_patches`` of ``size_px`` at ``um_per_px``, each with
    ``min_tissue`` of tissue.
    """

    size_px: int
    um_per_px: float
    min_tissue: float
    n_patches: int


def load(drawing: Drawing, task: Task, folder: Path) -> pd.DataFrame:
    """The patches of the slides in ``slides.csv``; ``x_px, y_px``: the centre, px of level 0.

    The label is the slide's, the group the patient. The places are drawn once and kept. Warns of
    slides on which no patch can be drawn. Raises TaskError, with all that is wrong, for a table
    with other columns or values, and for slides that aren't there.
    """
    listed, files = _listed(task, folder), _files(folder)
    absent = [name for name in listed["slide"] if name not in files]
    task.refuse(folder, [f"slides/{name}: not there" for name in absent])
    parts, without = [], []
    for row in tqdm(listed.itertuples(), f"{task.name}: places", len(listed), unit="slide"):
        try:
            places = _places(drawing, task.name, folder, files[row.slide])
        except (SlideError, tissue.TissueError, OSError) as error:
            without.append(f"{row.slide}: {error}")
            continue
        facts = {"item_id": [f"{row.slide}:{i}" for i in range(len(places))], "group": row.patient}
        facts |= {"label": int(row.mutated), "split": row.split}
        facts["file"] = files[row.slide].relative_to(folder).as_posix()
        parts.append(pd.DataFrame(places, columns=["x_px", "y_px"]).assign(**facts))
    if without:
        message = f"{len(without)} slides give no patch: {'; '.join(without[:5])}"
        warnings.warn(f"{folder}: {message}", TaskWarning, stacklevel=2)
    if not parts:
        task.refuse(folder, [f"no slide gives a patch; {without[0]}"])
    table = pd.concat(parts, ignore_index=True)
    return table.assign(width_px=drawing.size_px, height_px=drawing.size_px)


def _listed(task: Task, folder: Path) -> pd.DataFrame:
    """The table of slides; raises TaskError with all that is wrong in it."""
    try:
        table = pd.read_csv(folder / TABLE, dtype=str, keep_default_na=False, usecols=LISTED)
    except (OSError, ValueError) as error:
        task.refuse(folder, [f"{TABLE}: no table with columns {LISTED} ({error})"])
    problems = [] if len(table) else [f"{TABLE}: no line"]
    for column, known in (("mutated", ("0", "1")), ("split", SPLITS)):
        others = sorted(set(table[column]) - set(known))
        problems += [f"{TABLE}: {column} {value!r} is none of {known}" for value in others]
    twice = sorted(set(table["slide"][table["slide"].duplicated()]))
    problems += [f"{TABLE}: slide {name!r} stands twice" for name in twice]
    problems += [f"{TABLE}: a line without a patient"] * ("" in set(table["patient"]))
    n_labels = table.groupby("patient")["mutated"].nunique()
    both = n_labels.index[n_labels > 1]
    problems += [f"{TABLE}: patient {name!r} is mutated and isn't" for name in both]
    task.refuse(folder, problems)
    return table


def _files(folder: Path) -> dict[str, Path]:
    """Every file of slides, by its name with and without its ending."""
    files = below(folder / "slides")
    return {path.stem: path for path in files} | {path.name: path for path in files}


def _places(drawing: Drawing, name: str, folder: Path, path: Path) -> list[list[float]]:
    """Centres x, y of a slide's patches, px of level 0; drawn once, then read from their file."""
    made_of = [asdict(drawing), SEED, path.name, path.stat().st_size]
    kept = folder / ".places" / f"{digest(made_of)}.json"
    if not kept.is_file():
        rng = generator(SEED, name, "places", path.name)
        store.write_json(kept, {"slide": path.name, "centres": _drawn(drawing, path, rng)})
    return store.read_json(kept)["centres"]


def _drawn(drawing: Drawing, path: Path, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Centres uniform over where patches may lie.

    Raises SlideError for a slide that can't be read, or without room for a patch, and TissueError
    for a slide without tissue.
    """
    with open_slide(path) as slide:
        look = tissue.look_at(slide)
    options = drawing.um_per_px, drawing.size_px, drawing.min_tissue
    if (places := tissue.places_at(look, *options)) is None:
        raise SlideError(
            f"no place for a patch of {drawing.size_px} px at {drawing.um_per_px} um/px with"
            f" {drawing.min_tissue:.0%} tissue"
        )
    proposed = (places.propose(rng) for _ in range(drawing.n_patches * N_TRIED))
    return [place[:2] for place in islice(filter(None, proposed), drawing.n_patches)]


def read_item(um_per_px: float, folder: Path, row: pd.Series) -> np.ndarray:
    """The patch around a row's centre, uint8 (height_px, width_px, 3)."""
    path = folder / row["file"]
    try:
        with open_slide(path) as slide:
            return slide.read(row["x_px"], row["y_px"], row["width_px"], um_per_px)
    except (SlideError, OSError) as error:
        raise TaskError(f"{path}: a patch can't be read ({error}); get the slide again") from None


AS_PUBLISHED = Drawing(size_px=256, um_per_px=0.5, min_tissue=0.4, n_patches=16)
TP53 = Task(
    "pancancer_tp53_mut_tcga",
    "pancancer-tp53-mut.tcga",
    CLASSIFICATION,
    ("wild type", "mutated"),
    read=partial(load, AS_PUBLISHED),
    image=partial(read_item, AS_PUBLISHED.um_per_px),
    where=(
        "lists of slides with TP53 status and split: kaczmarj/pancancer-tp53-mut.tcga on the"
        " Hugging Face hub (CC BY 4.0), to be written as slides.csv (slide, patient, mutated,"
        " split); TCGA's diagnostic slides: the GDC portal; put or link their folder here as"
        " slides/"
    ),
    counts={
        split: n * AS_PUBLISHED.n_patches
        for split, n in {"train": 8_736, "val": 1_061, "test": 1_069}.items()
    },
    labels_groups=True,
    unsettled=(
        "kaiko 2024 judge by TP53 on TCGA, of cohort, labels, patches and split no source says"
        " more; this is another set, by its own name, whose scores don't compare with theirs",
        "the set's patches have 128 um; ours: 256 px at 0.5 um/px, 16 a slide, 40 % tissue or"
        " more, places uniform over the tissue",
        "ours: the protocol, which is eva's for patches; a patient's score is the mean over the"
        " patient's patches",
    ),
)
TASKS = (TP53,)
