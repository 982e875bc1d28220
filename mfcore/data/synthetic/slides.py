"""The synthetic data set of the study `demo`: made from a seed, in the form of MIDOG++, small
enough for any machine::

    folder/images/001.tiff ...   tiled pyramidal JPEG TIFFs with their resolution
    folder/annotations.json      MIDOG++'s JSON: corner boxes of 50 px, classes 1 and 2, votes
    folder/truth.csv             what was drawn for each annotation, and how hard it is; no part
                                 of the study reads it
    folder/begun.json, made.json what it is made from; made.json is written last and means that
                                 all is there

The form, the domains, the scanners and the raters' agreement are those of MIDOG 2022 and MIDOG++
(Aubreville et al. 2023); every pixel is drawn by `mfcore.data.synthetic.tissue` and
`mfcore.data.synthetic.cells`.
"""

import functools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from mfcore import store, streams
from mfcore.data.synthetic.cells import MITOTIC
from mfcore.data.synthetic.domains import all_domains
from mfcore.data.synthetic.tissue import Plan, SyntheticError, draw, lay_out

VERSION = 4
"""Raised whenever the same seed would give other pixels or annotations."""
INFO = {
    "description": "Synthetic: drawn by mfcore in the form of MIDOG++; no tissue was seen",
    "version": str(VERSION),
}
LICENSES = [
    {"url": "https://creativecommons.org/publicdomain/zero/1.0/deed.de", "id": 1, "name": "CC0"}
]
CATEGORIES = [{"id": 1, "name": "mitotic figure"}, {"id": 2, "name": "not mitotic figure"}]
BOX_PX = 50
JITTER_PX = 4
"""A box is off its cell's centre by up to this much along each axis, in both classes alike."""
WITHOUT_MITOSES = 0.06
"""Share of slides without mitotic figures (22 of 354 in MIDOG 2022)."""
OFFICIAL_TEST = 0.25
"""Share of each domain's slides that are its official test slides (22 % of MIDOG++'s)."""
MAX_PER_SLIDE = 110
TASKS_FOLDER = "tasks"
"""May be in the folder before anything else: the data of the downstream tasks."""
RATER_ERRORS = (0.045, 0.28)
"""How often each of two raters errs on an easy and on a hard annotation.

They agree on 0.78 of annotations, as MIDOG++'s raters do.
"""
THIRD_RATER = 0.4
"""The third rater's errors, relative to the first two's: who settles a dispute looks twice."""


def make_dataset(
    folder: str | Path,
    *,
    seed: int,
    n_slides: int = 50,
    n_annotations: int = 2000,
    n_workers: int = 1,
) -> Path:
    """Make the synthetic data set in ``folder``, or finish one that was interrupted; returns the
    folder.

    The same seed and numbers give the same pixels and annotations with any ``n_workers``. Slides
    that are there are kept. Raises SyntheticError for numbers that can't be met, and where
    ``folder`` holds anything made otherwise.
    """
    if n_workers < 1:
        raise SyntheticError(f"n_workers is {n_workers}; it must be 1 or more")
    folder, plans = Path(folder), plan_slides(seed, n_slides, n_annotations)
    sizes = {"seed": seed, "n_slides": n_slides, "n_annotations": n_annotations}
    config = {**sizes, "generator": VERSION}
    _claim(folder, config)
    files = [folder / "images" / _file_name(plan) for plan in plans]
    record = folder / "made.json"
    made = [*files, folder / "annotations.json", folder / "truth.csv"]
    if all(file.is_file() for file in (*made, record)):
        return folder
    record.unlink(missing_ok=True)
    for leftover in folder.rglob(".*.partial"):
        leftover.unlink()

    missing = [pair for pair in zip(plans, files, strict=True) if not pair[1].is_file()]
    shown = {"total": n_slides, "initial": n_slides - len(missing), "unit": "slide"}
    make = functools.partial(_make_slide, seed)
    # a notebook's process may hold threads, which forking would break
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_workers, mp_context=context) as pool:
        each = map if n_workers == 1 else pool.map
        list(tqdm(each(make, missing), "synthetic slides", **shown))
    content, truth = annotate(seed, plans)
    store.write_json(folder / "annotations.json", content)
    store.write_csv(folder / "truth.csv", truth)
    n_bytes = {str(file.relative_to(folder)): file.stat().st_size for file in made}
    store.write_json(record, {**config, "bytes": n_bytes})
    return folder


def plan_slides(seed: int, n_slides: int, n_annotations: int) -> list[Plan]:
    """Domains in equal blocks as in MIDOG; sizes, shares of annotations and of mitotic figures
    uneven, as in MIDOG.

    Raises SyntheticError where the slides can't hold the annotations.
    """
    if n_slides < 1 or not 0 <= n_annotations <= MAX_PER_SLIDE * n_slides:
        raise SyntheticError(
            f"{n_annotations} annotations on {n_slides} slides: at least one slide and at most"
            f" {MAX_PER_SLIDE} annotations on each are needed; change data.n_slides or"
            " data.n_annotations"
        )
    rng = streams.generator(seed, "synthetic", "plan", n_slides, n_annotations)
    known = all_domains()
    domains = [known[index * len(known) // n_slides] for index in range(n_slides)]
    weights = np.array([domain.share for domain in domains]) * np.exp(rng.normal(0, 0.55, n_slides))
    counts = _shares(weights, n_annotations)
    expected = np.array([domain.positive for domain in domains])
    positive = np.clip(rng.beta(7 * expected, 7 * (1 - expected)), 0.06, 0.94)
    positive[rng.choice(n_slides, round(WITHOUT_MITOSES * n_slides), replace=False)] = 0
    sides = 8 * rng.integers(200, 270, (n_slides, 2))
    columns = sides[:, 0], sides[:, 1], counts, positive
    return list(map(Plan, range(n_slides), domains, *(column.tolist() for column in columns)))


def _shares(weights: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers that add up to ``total``, in proportion to ``weights``, none above
    MAX_PER_SLIDE.
    """
    counts = np.zeros(len(weights), int)
    while counts.sum() < total:
        free = counts < MAX_PER_SLIDE
        wanted = np.where(free, weights, 0) / weights[free].sum() * (total - counts.sum())
        added = np.minimum(wanted.astype(int), MAX_PER_SLIDE - counts)
        if not added.any():
            added[np.argsort(-wanted, kind="stable")[: min(total - counts.sum(), free.sum())]] = 1
        counts += added
    return counts


def annotate(seed: int, plans: list[Plan]) -> tuple[dict, pd.DataFrame]:
    """MIDOG++'s JSON for the planned slides; and the truth table: annotation_id, image_id, kind,
    mitotic, hard.
    """
    images, annotations, truth = [], [], []
    official = _official_split(seed, plans)
    for plan in plans:
        image = {
            "license": 1,
            "file_name": _file_name(plan),
            "id": plan.index + 1,
            "width": plan.n_columns,
            "height": plan.n_rows,
            "tumor_type": plan.domain.name,
            "scanner": plan.domain.scanner,
            "split": official[plan.index],
        }
        images.append(image)
        layout = lay_out(seed, plan)
        rng = streams.generator(seed, "synthetic", "raters", plan.index)
        jitter = rng.uniform(-JITTER_PX, JITTER_PX, (plan.n_annotations, 2))
        corners = (layout.tumour_px[layout.annotated] + jitter - BOX_PX / 2).round().astype(int)
        mitotic = np.array([kind in MITOTIC for kind in layout.kinds], bool)
        votes = _votes(rng, mitotic, layout.hard > 0.5, plan.positive > 0)
        for (left, top), vote in zip(corners.tolist(), votes, strict=True):
            annotation = {
                "bbox": [left, top, left + BOX_PX, top + BOX_PX],
                "category_id": 1 if 2 * vote.count(1) > len(vote) else 2,
                "image_id": image["id"],
                "labels": vote,
                "id": len(annotations) + 1,
            }
            annotations.append(annotation)
        drawn = {"kind": layout.kinds, "mitotic": mitotic, "hard": layout.hard.round(3)}
        truth.append(pd.DataFrame({"image_id": image["id"], **drawn}))
    content = {
        "info": INFO,
        "licenses": LICENSES,
        "images": images,
        "categories": CATEGORIES,
        "annotations": annotations,
    }
    table = pd.concat(truth, ignore_index=True)
    table.insert(0, "annotation_id", table.index + 1)
    return content, table


def _official_split(seed: int, plans: list[Plan]) -> dict[int, str]:
    """Of each slide, by index: "test" for OFFICIAL_TEST of a domain's (at least one where there are
    two), else "train".
    """
    split = {plan.index: "train" for plan in plans}
    for domain in dict.fromkeys(plan.domain.name for plan in plans):
        slides = [plan.index for plan in plans if plan.domain.name == domain]
        rng = streams.generator(seed, "synthetic", "official split", domain)
        n_test = max(round(OFFICIAL_TEST * len(slides)), len(slides) > 1)
        split |= dict.fromkeys(rng.permutation(slides)[:n_test].tolist(), "test")
    return split


def _votes(
    rng: np.random.Generator, mitotic: np.ndarray, hard: np.ndarray, has_mitoses: bool
) -> list[list[int]]:
    """Two raters' votes, 1 or 2, on each annotation, and a third one's where they differ; on a
    slide without mitoses only the first one errs.
    """
    often = np.array(RATER_ERRORS)[hard.astype(int), None] * (1, 1, THIRD_RATER)
    errs = (rng.random(often.shape) < often) & (True, has_mitoses, has_mitoses)
    votes = np.where(errs ^ mitotic[:, None], 1, 2).tolist()
    return [three if three[0] != three[1] else three[:2] for three in votes]


def _make_slide(seed: int, slide: tuple[Plan, Path]) -> None:
    """Draw and write a slide to its file."""
    plan, file = slide
    with store.replacing(file) as aside:
        write_pyramid(aside, draw(seed, plan, lay_out(seed, plan)), plan.domain.um_per_px)


def write_pyramid(path: Path, pixels: np.ndarray, um_per_px: float, n_levels: int = 3) -> None:
    """Write uint8 (n_rows, n_columns, 3) as a tiled pyramidal TIFF (JPEG, YCbCr) that OpenSlide
    opens with its um/px.
    """
    import tifffile

    with tifffile.TiffWriter(path) as file:
        for level in range(n_levels):
            file.write(
                pixels,
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 88},
                subfiletype=1 if level else 0,
                resolution=(1e4 / um_per_px / 2**level,) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )
            n_rows, n_columns = (side // 2 * 2 for side in pixels.shape[:2])
            pixels = np.asarray(Image.fromarray(pixels[:n_rows, :n_columns]).reduce(2))


def _file_name(plan: Plan) -> str:
    return f"{plan.index + 1:03d}.tiff"


def _claim(folder: Path, config: dict) -> None:
    """Note in ``folder`` what is made in it; refuse a folder that holds something else."""
    begun = folder / "begun.json"
    if begun.is_file():
        earlier = store.read_json(begun)
        differing = [
            f"{key} ({was!r}, wanted {wanted!r})"
            for key, was, wanted in store.differences(earlier, config)
        ]
        if differing:
            raise SyntheticError(
                f"{folder} holds a synthetic data set made with other settings:"
                f" {', '.join(differing)}. Remove it, or give another folder."
            )
        return
    if folder.exists() and any(place.name != TASKS_FOLDER for place in folder.iterdir()):
        raise SyntheticError(
            f"{folder} isn't empty and holds no synthetic data set (no begun.json); give another"
            " folder."
        )
    store.write_json(begun, config)
