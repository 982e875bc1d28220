"""Patches drawn online from slides (kaiko 2024, Online Patching).

Slide, resolution and place are random, and no patch is stored.

**The stream.** Patch number i depends on the slides, the settings, the seed and i alone. Streams
are endless; processes that read different numbers read different patches; a training that was
stopped goes on at its number.

**The draw.** First a resolution, each value of ``um_per_px`` as often as it is listed. Then,
uniform over tissue: a centre, uniform over all centres on all slides at which the patch lies on the
slide and holds at least ``min_tissue``. Or, uniform over slides: a slide, all slides that have such
a centre with the same probability, and then one of its centres. Where a slide has a level of the
resolution (a level that JPEG decodes at a smaller size counts), the patch is cut from the level's
grid; else the patch is resampled as `mfcore.data.slides.slide` does, and enlarged by no more than
half.

**Failures.** A slide that can't be opened, has no um/px or shows no tissue is left out. A slide
without a centre at a resolution is left out at that resolution. Where px are damaged, the draw is
repeated, and other px of the slide may still be read. Each slide that failed is named once, in the
log and in `Source.failures`; training goes on.
"""

import copy
import dataclasses
import functools
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from mfcore import store
from mfcore.data.slides import tissue
from mfcore.data.slides.reader import Window
from mfcore.data.slides.slide import Memory, Slide, SlideError
from mfcore.data.slides.tissue import MAX_ENLARGED, Look, Places, level_of, places_at
from mfcore.pretraining.method import OnlinePatches
from mfcore.pretraining.slides import PatchingError, SlideFile, opened, share_of
from mfcore.store.records import digest
from mfcore.streams import generator

MAX_OPEN = 128  # slides, besides those in use
MEMORY_BYTES = 256 << 20  # of decoded tiles
GRID = 1e-3  # px of a level: a patch that is so near to whole px is cut from the level's grid
MAX_FAILED = 1000  # places for one patch, one after another, that can't be read

log = logging.getLogger(__name__)


class Drawn(NamedTuple):
    """A place: the patch's number, slide (index), resolution, centre, and share of tissue."""

    number: int
    slide: int
    um_per_px: float
    x_l0_px: float
    y_l0_px: float
    tissue: float


@dataclass(frozen=True)
class Patch:
    """One patch. image: uint8 (size_px, size_px, 3)."""

    image: np.ndarray
    slide_id: str
    um_per_px: float
    x_l0_px: float
    y_l0_px: float
    tissue: float


class Source:
    """The stream of patches of some slides; see above. Threads may share a source.

    seed: decides the patches, and which slides are in a share (``settings.slide_fraction``).
    kept: a folder that keeps the tissue of each slide for another start on the same slides. For
    each slide stay in memory its mask (a bit a cell, at most 128 KiB), and 8 bytes for each run of
    cells in which centres may lie (one or two runs a row and resolution). Raises PatchingError
    where there is no slide.
    """

    def __init__(
        self,
        slides: Sequence[SlideFile],
        settings: OnlinePatches,
        seed: int,
        kept: Path | None = None,
    ):
        self.slides = share_of(slides, settings.slide_fraction, seed)
        if not self.slides:
            raise PatchingError("there are no slides to draw patches from")
        self.settings, self.seed, self.kept = settings, seed, kept
        self.failures: dict[str, str] = {}
        # By slide that was looked at, its places by resolution; none for a slide left out.
        self._known: dict[int, dict[float, Places]] = {}
        self._areas: dict[float, np.ndarray] = {}
        self.open = functools.lru_cache(MAX_OPEN)(partial(opened, memory=Memory(MEMORY_BYTES)))

    def close(self) -> None:
        """Close the slides; they open again where they are needed."""
        self.open.cache_clear()

    def without_repeats(self) -> "Source":
        """The stream in which every patch is new (``n_distinct`` None), of the same open slides."""
        other = copy.copy(self)
        other.settings = dataclasses.replace(self.settings, n_distinct=None)
        return other

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- px ----

    def read(self, number: int) -> Patch:
        """Patch ``number`` of the stream; raises PatchingError where no slide has any to read."""
        image = np.empty((self.settings.size_px, self.settings.size_px, 3), np.uint8)
        drawn = self.read_one(self.candidates(number), image)
        return Patch(image, self.slides[drawn.slide].slide_id, *drawn[2:])

    def read_one(self, candidates: Iterator[Drawn], out: np.ndarray) -> Drawn:
        """The first candidate that can be read; ``out``, uint8 (size_px, size_px, 3), gets its px.

        Raises PatchingError where MAX_FAILED candidates fail: the slides are damaged throughout,
        or their disk has gone.
        """
        for drawn in itertools.islice(candidates, MAX_FAILED):
            try:
                out[:] = self._px(self.open(self.slides[drawn.slide]), drawn)
                return drawn
            except (SlideError, OSError) as error:
                last, so = str(error), "has px that can't be read, drawn anew elsewhere"
                self._fail(self.slides[drawn.slide].slide_id, last, so)
        raise PatchingError(
            f"none of {MAX_FAILED} places for patch {drawn.number} can be read; check the disk and "
            f"whether slides are whole; the last: {last}"
        )

    def _px(self, slide: Slide, drawn: Drawn) -> np.ndarray:
        """A patch's px: as a level on whose grid it lies has them, else resampled."""
        size_px, centre = self.settings.size_px, (drawn.x_l0_px, drawn.y_l0_px)
        match = level_of(slide.reader.downsamples, drawn.um_per_px / slide.um_per_px)
        if match is not None:
            level, downsample = match
            corner = [round(at / downsample - size_px / 2) for at in centre]
            aside = [slide.reader.corner_l0_px(at, level) - at * downsample for at in corner]
            if max(map(abs, aside)) < GRID * downsample:
                return slide.reader.region(Window(level, *corner, size_px, size_px))
        return slide.read(*centre, size_px, drawn.um_per_px)

    # ---- places ----

    def draw(self, number: int) -> Drawn:
        """Where patch ``number`` lies, unless its px can't be read."""
        return next(self.candidates(number))

    def candidates(self, number: int) -> Iterator[Drawn]:
        """Places for patch ``number``, endless: the second for where the first can't be read.

        Raises PatchingError where no slide has a place at the patch's resolution.
        """
        rng = generator(self.seed, "online patch", self._distinct(number))
        asked, by_tissue = self.settings.um_per_px, self.settings.uniform_over == "tissue"
        um_per_px = asked[int(rng.integers(len(asked)))]
        while True:
            if by_tissue:
                ends = self._ends(um_per_px)
                slide = int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))
                slide = min(slide, len(ends) - 1)
            else:
                slide = int(rng.integers(len(self.slides)))
            if (places := self.places(slide, um_per_px)) is None:
                seen = (self._known.get(i, (um_per_px,)) for i in range(len(self.slides)))
                if not any(um_per_px in resolutions for resolutions in seen):
                    raise self._none_left(um_per_px)
                continue
            place = places.propose(rng)
            while place is None and not by_tissue:
                place = places.propose(rng)
            if place is not None:
                yield Drawn(number, slide, um_per_px, *place)

    def _distinct(self, number: int) -> int:
        """The draw that patch ``number`` is; of n_distinct draws each once a round, reordered."""
        n = self.settings.n_distinct
        if n is None:
            return number
        turn, place = divmod(number, n)
        return int(_order(self.seed, n, turn)[place])

    def _ends(self, um_per_px: float) -> np.ndarray:
        """Running sum over the slides of the area of their places, um2, float (n_slides,)."""
        if um_per_px not in self._areas:
            self.survey()
            self._areas[um_per_px] = np.cumsum(self._area_um2(um_per_px))
        ends = self._areas[um_per_px]
        if not ends[-1]:
            raise self._none_left(um_per_px)
        return ends

    def _area_um2(self, um_per_px: float) -> list[float]:
        """Area of each slide's places at a resolution."""
        every = (self.places(i, um_per_px) for i in range(len(self.slides)))
        return [0.0 if places is None else places.area_um2 for places in every]

    def places(self, slide: int, um_per_px: float) -> Places | None:
        """Where patches of a resolution may lie on a slide; None for nowhere.

        Looks at the slide if that isn't done yet.
        """
        if slide not in self._known:
            self._known[slide] = self._look(self.slides[slide])
        return self._known[slide].get(um_per_px)

    def survey(self, n_workers: int = 1) -> "Source":
        """Look at a thumbnail of every slide; raises PatchingError where no slide has tissue."""
        unseen = [i for i in range(len(self.slides)) if i not in self._known]
        with ThreadPoolExecutor(n_workers) as pool:
            looks = pool.map(lambda i: self.places(i, self.settings.um_per_px[0]), unseen)
            list(tqdm(looks, "tissue masks", len(unseen), unit="slide", leave=False))
        if not any(self._known.values()):
            raise self._none_left()
        return self

    def _look(self, file: SlideFile) -> dict[float, Places]:
        """Find a slide's tissue; returns by resolution where patches may lie."""
        settings, asked = self.settings, dict.fromkeys(self.settings.um_per_px)
        try:
            look = self._kept_or_new(file)
        except (SlideError, OSError, tissue.TissueError, MemoryError) as error:
            self._fail(file.slide_id, f"{error}", "is left out")  # a header may say terabytes
            return {}
        every = {um: places_at(look, um, settings.size_px, settings.min_tissue) for um in asked}
        known = {um_per_px: places for um_per_px, places in every.items() if places is not None}
        if missing := ", ".join(f"{um_per_px:g}" for um_per_px in asked if um_per_px not in known):
            reason = (
                f"{file.path}: no place for a patch of {settings.size_px} px with "
                f"{settings.min_tissue:.0%} tissue at {missing} um/px on a slide of "
                f"{look.um_per_px:.3g}, which is enlarged {MAX_ENLARGED:g} times at most; lower "
                "patches.min_tissue or patches.size_px, or name others in patches.um_per_px"
            )
            so = "is left out at some resolutions" if known else "is left out"
            self._fail(file.slide_id, reason, so)
        return known

    def _kept_or_new(self, file: SlideFile) -> Look:
        """The look at a slide, as it was kept; else a new one, which is then kept."""
        kept = self.kept and self.kept / f"{digest(file.slide_id)}.npz"
        if kept and kept.is_file():
            with np.load(kept) as content:
                bits, *facts = content.values()
                return Look(bits, *(fact.tolist() for fact in facts))
        look = tissue.look_at(self.open(file))
        if kept:
            with store.replacing(kept) as aside, aside.open("wb") as content:
                np.savez_compressed(content, **vars(look))
        return look

    # ---- tables ----

    def table(self, numbers: Iterable[int]) -> pd.DataFrame:
        """Where patches lie, without reading them.

        Columns number, slide_id, um_per_px, x_l0_px, y_l0_px, tissue, x_um, y_um.
        """
        drawn = [self.draw(number) for number in numbers]
        l0_um = np.array([self.places(one.slide, one.um_per_px).look.um_per_px for one in drawn])
        table = self.table_of(drawn)
        return table.assign(x_um=table["x_l0_px"] * l0_um, y_um=table["y_l0_px"] * l0_um)

    def table_of(self, drawn: Sequence[Drawn]) -> pd.DataFrame:
        """A row a place: number, slide_id, um_per_px, x_l0_px, y_l0_px, tissue."""
        table = pd.DataFrame(drawn, columns=Drawn._fields).rename(columns={"slide": "slide_id"})
        return table.assign(slide_id=[self.slides[one.slide].slide_id for one in drawn])

    def thumbnail(self, slide_id: str) -> tuple[np.ndarray, np.ndarray, float]:
        """The thumbnail of a slide with tissue, uint8 (H, W, 3), its tissue, bool (H, W), and the
        um/px of both."""
        slide = [file.slide_id for file in self.slides].index(slide_id)
        look = self._look_of(slide)
        cell_um = look.cell_l0_px * look.um_per_px
        return tissue.thumbnail_of(self.open(self.slides[slide]), cell_um), look.cells, cell_um

    def _look_of(self, slide: int) -> Look | None:
        """The look at a slide that is drawn from; None for a slide that was left out."""
        self.places(slide, self.settings.um_per_px[0])
        return next((places.look for places in self._known[slide].values()), None)

    def overview(self) -> pd.DataFrame:
        """A row a slide: slide_id, tissue_mm2, tissue_share, draw_share, failure.

        tissue_share: of the slide's area. draw_share: of all draws, to within the cells of the
        mask at the border of where centres may lie. failure: "" for none.
        """
        weights = np.array([self._area_um2(um_per_px) for um_per_px in self.settings.um_per_px])
        if self.settings.uniform_over == "slides":
            weights = weights > 0  # (n_um, n_slides)
        shares = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
        rows = []
        for slide, file in enumerate(self.slides):
            tissue_mm2, tissue_share = 0.0, 0.0
            if look := self._look_of(slide):
                tissue_share = look.cells.mean()
                tissue_mm2 = look.cells.sum() * (look.cell_l0_px * look.um_per_px / 1000) ** 2
            failure = self.failures.get(file.slide_id, "")
            rows.append((file.slide_id, tissue_mm2, tissue_share, shares[:, slide].mean(), failure))
        columns = ["slide_id", "tissue_mm2", "tissue_share", "draw_share", "failure"]
        return pd.DataFrame(rows, columns=columns)

    # ---- failures ----

    def _fail(self, slide_id: str, reason: str, so: str) -> None:
        """Log why a slide failed and what follows, once a slide."""
        if self.failures.setdefault(slide_id, reason) is reason:
            log.warning("slide %s %s: %s", slide_id, so, reason)

    @property
    def left_out(self) -> dict[str, str]:
        """The `failures` of slides from which no patch is drawn, among the slides looked at."""
        slide_ids = [
            file.slide_id for i, file in enumerate(self.slides) if self._known.get(i) == {}
        ]
        return {slide_id: self.failures[slide_id] for slide_id in slide_ids}

    def _none_left(self, um_per_px: float | None = None) -> PatchingError:
        at = "" if um_per_px is None else f" at {um_per_px:g} um/px"
        reasons = "".join(f"\n  {name}: {why}" for name, why in list(self.failures.items())[:20])
        return PatchingError(
            f"no patch can be drawn{at} from {len(self.slides)} slides, {len(self.failures)} of "
            "them failed; mend a failure, or leave the resolution out of patches.um_per_px:"
            f"{reasons}"
        )


@functools.lru_cache(2)
def _order(seed: int, n: int, turn: int) -> np.ndarray:
    """The order of ``n`` distinct draws in one of their rounds."""
    return generator(seed, "order of patches", n, turn).permutation(n)
