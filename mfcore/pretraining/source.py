"""Patches drawn online from slides (kaiko 2024, Online Patching): slide, resolution and place at random, none ever stored.

**The stream.** Patch number i depends on the slides, the settings, the seed and i alone. Streams are endless; processes that
read different numbers read different patches; a training that was stopped goes on at its number.

**The draw.** First a resolution, each value of ``um_per_px`` as often as it is listed. Then, uniform over tissue: a centre,
uniform over all centres on all slides at which the patch lies on the slide and holds at least ``min_tissue``. Or, uniform over
slides: a slide, all slides that have such a centre with the same probability, and then one of its centres. Where a slide has a
level of the resolution (a level that JPEG decodes at a smaller size counts), the patch is cut from the level's grid; else the
patch is resampled as `mfcore.data.slides.slide` does, and enlarged by no more than half.

**Failures.** A slide that can't be opened, has no um/px or shows no tissue is left out. A slide without a centre at a
resolution is left out at that resolution. Where px are damaged, the draw is repeated, and other px of the slide may still be
read. Each slide that failed is named once, in the log and in `Source.failures`; training goes on.
"""

import collections
import copy
import dataclasses
import itertools
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from mfcore.data.slides.reader import Window
from mfcore.data.slides.slide import Slide, SlideError
from mfcore.pretraining import tissue
from mfcore.pretraining.method import OnlinePatches
from mfcore.pretraining.slides import Kept, OpenSlides, PatchingError, SlideFile, share_of
from mfcore.pretraining.tissue import MAX_ENLARGED, Look, Places, level_of, places_at
from mfcore.streams import generator

MAX_OPEN = 64
MEMORY_BYTES = 256 << 20  # of decoded tiles
GRID = 1e-3  # px of a level: a patch that is so near to whole px is cut from the level's grid
MAX_TRIES = 100_000  # draws for one patch
MAX_FAILED = 1000  # places for one patch, one after another, that can't be read

log = logging.getLogger(__name__)


class Drawn(NamedTuple):
    """A place: the patch's number, slide (index), resolution, centre, and the share of it that is tissue."""

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

    seed: decides the patches, and which slides are in a share (``settings.slide_fraction``). max_open: slides open at once.
    memory_bytes: of decoded tiles. kept: where the tissue found on slides is kept for another start. In memory stay for each
    slide its mask (a bit a cell, at most 128 KiB), 8 bytes for each run of cells in which centres may lie (one or two runs a
    row and resolution), and its index, see `OpenSlides`. Raises PatchingError where there is no slide.
    """

    def __init__(
        self,
        slides: Sequence[SlideFile],
        settings: OnlinePatches,
        seed: int,
        max_open: int = MAX_OPEN,
        memory_bytes: int = MEMORY_BYTES,
        kept: Kept | None = None,
    ):
        ids = [file.slide_id for file in slides]
        if twice := sorted(name for name, n in collections.Counter(ids).items() if n > 1):
            raise PatchingError(f"slides named twice: {', '.join(twice[:10])}; give each file a slide_id of its own")
        self.slides = share_of(slides, settings.slide_fraction, seed)
        if not self.slides:
            raise PatchingError("there are no slides to draw patches from")
        self.settings, self.seed, self.kept = settings, seed, kept
        self.failures: dict[str, str] = {}
        self._known: list[dict[float, Places] | None] = [None] * len(self.slides)  # places by resolution, of slides looked at
        self._weights: dict[float, np.ndarray] = {}
        self.open = OpenSlides(max_open, memory_bytes)
        self._lock = threading.Lock()
        self._locks = [threading.Lock() for _ in self.slides]
        self._order: tuple[int, np.ndarray] | None = None

    def close(self) -> None:
        """Close the slides; they open again where they are needed."""
        self.open.close()

    def without_repeats(self) -> "Source":
        """The stream in which every patch is new (``n_distinct`` None), of the same open slides."""
        other = copy.copy(self)
        other.settings = dataclasses.replace(self.settings, n_distinct=None)
        return other

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, number: int) -> Patch:
        """Patch ``number`` of the stream; raises PatchingError where no slide has any that can be read."""
        image = np.empty((self.settings.size_px, self.settings.size_px, 3), np.uint8)
        drawn = self.read_one(self.candidates(number), image)
        return Patch(image, self.slides[drawn.slide].slide_id, *drawn[2:])

    def read_one(self, candidates: Iterator[Drawn], out: np.ndarray) -> Drawn:
        """The first candidate that can be read; its px are written into ``out``, uint8 (size_px, size_px, 3).

        Raises PatchingError where MAX_FAILED candidates fail: the slides are damaged throughout, or their disk has gone.
        """
        for drawn in itertools.islice(candidates, MAX_FAILED):
            try:
                with self.open.use(self.slides[drawn.slide]) as slide:
                    self._write(slide, drawn, out)
                    return drawn
            except (SlideError, OSError) as error:
                last = str(error)
                self._fail(self.slides[drawn.slide].slide_id, last, "has px that can't be read, drawn anew elsewhere")
        raise PatchingError(
            f"none of {MAX_FAILED} places for patch {drawn.number} can be read; check the disk and whether slides are whole; "
            f"the last: {last}"
        )

    def _write(self, slide: Slide, drawn: Drawn, out: np.ndarray) -> None:
        """Write the px of a place on an open slide into ``out``; raises SlideError for damaged px."""
        window = self._cut(slide, drawn)
        if window is not None:
            out[:] = slide.reader.region(window)
        else:
            out[:] = slide.read(drawn.x_l0_px, drawn.y_l0_px, self.settings.size_px, drawn.um_per_px)

    def _cut(self, slide: Slide, drawn: Drawn) -> Window | None:
        """What is cut from a level that has the patch's resolution; None without such a level, or off its grid."""
        match = level_of(slide.reader.downsamples, drawn.um_per_px / slide.um_per_px)
        if match is None:
            return None
        level, downsample = match
        size_px = self.settings.size_px
        left, top = (round(centre / downsample - size_px / 2) for centre in (drawn.x_l0_px, drawn.y_l0_px))
        aside = [slide.reader.corner_l0_px(at, level) - at * downsample for at in (left, top)]
        return Window(level, left, top, size_px, size_px) if max(map(abs, aside)) < GRID * downsample else None

    def draw(self, number: int) -> Drawn:
        """Where patch ``number`` lies, unless its px can't be read."""
        return next(self.candidates(number))

    def candidates(self, number: int) -> Iterator[Drawn]:
        """Places for patch ``number``, endless: the second stands in where the first can't be read, and so on."""
        rng = generator(self.seed, "online patch", self._distinct(number))
        settings = self.settings
        um_per_px = settings.um_per_px[int(rng.integers(len(settings.um_per_px)))]
        draw = self._over_tissue if settings.uniform_over == "tissue" else self._over_slides
        while True:
            for _ in range(MAX_TRIES):
                place = draw(rng, um_per_px)
                if place is not None:
                    break
            else:
                raise self._none_left(um_per_px)
            slide, (x, y, share) = place
            yield Drawn(number, slide, um_per_px, x, y, share)

    def _distinct(self, number: int) -> int:
        """The draw that patch ``number`` is: the number itself; of n_distinct draws each once a round, in a new order."""
        n = self.settings.n_distinct
        if n is None:
            return number
        turn, place = divmod(number, n)
        order = self._order
        if order is None or order[0] != turn:
            order = self._order = (turn, generator(self.seed, "order of patches", n, turn).permutation(n))
        return int(order[1][place])

    def _over_tissue(self, rng: np.random.Generator, um_per_px: float) -> tuple[int, tuple[float, float, float]] | None:
        ends = self._areas(um_per_px)
        slide = min(int(np.searchsorted(ends, rng.random() * ends[-1], side="right")), len(ends) - 1)
        places = self.places(slide, um_per_px)
        place = None if places is None else places.propose(rng)
        return None if place is None else (slide, place)

    def _over_slides(self, rng: np.random.Generator, um_per_px: float) -> tuple[int, tuple[float, float, float]] | None:
        slide = int(rng.integers(len(self.slides)))
        places = self.places(slide, um_per_px)
        if places is None:
            if not self._any_has(um_per_px):
                raise self._none_left(um_per_px)
            return None
        for _ in range(MAX_TRIES):
            if (place := places.propose(rng)) is not None:
                return slide, place
        return None

    def _any_has(self, um_per_px: float) -> bool:
        """Whether a slide has places at a resolution, or a slide wasn't looked at yet."""
        return any(known is None or um_per_px in known for known in self._known)

    def _areas(self, um_per_px: float) -> np.ndarray:
        """Running sum over the slides of the area where centres may lie, um2, float (n_slides,)."""
        if um_per_px not in self._weights:
            self.survey()
            areas = [0.0 if places is None else places.area_um2 for places in self._places_at(um_per_px)]
            if not any(areas):
                raise self._none_left(um_per_px)
            self._weights[um_per_px] = np.cumsum(areas)
        return self._weights[um_per_px]

    def _places_at(self, um_per_px: float) -> Iterator[Places | None]:
        return (self.places(i, um_per_px) for i in range(len(self.slides)))

    def places(self, slide: int, um_per_px: float) -> Places | None:
        """Where patches of a resolution may lie on a slide; None for nowhere. Looks at the slide if that isn't done yet."""
        known = self._known[slide]
        if known is None:
            with self._locks[slide]:
                known = self._known[slide]
                if known is None:
                    known = self._known[slide] = self._look(self.slides[slide])
        return known.get(um_per_px)

    def table(self, numbers: Iterable[int]) -> pd.DataFrame:
        """Where patches lie, without reading them: number, slide_id, um_per_px, x_l0_px, y_l0_px, tissue, x_um, y_um."""
        drawn = [self.draw(number) for number in numbers]
        table = pd.DataFrame(drawn, columns=Drawn._fields)
        l0_um_per_px = [self.places(one.slide, one.um_per_px).mask.um_per_px for one in drawn]
        table.insert(1, "slide_id", [self.slides[one.slide].slide_id for one in drawn])
        return table.drop(columns="slide").assign(x_um=table["x_l0_px"] * l0_um_per_px, y_um=table["y_l0_px"] * l0_um_per_px)

    def thumbnail(self, slide_id: str) -> tuple[np.ndarray, np.ndarray, float]:
        """A slide's thumbnail, uint8 (H, W, 3), its tissue, bool (H, W), and the um/px of both."""
        i = [file.slide_id for file in self.slides].index(slide_id)
        mask = next(places.mask for um in self.settings.um_per_px if (places := self.places(i, um)) is not None)
        with self.open.use(self.slides[i]) as slide:
            cell_um = mask.cell_l0_px * mask.um_per_px
            return tissue.thumbnail_of(slide, cell_um), mask.cells, cell_um

    def overview(self) -> pd.DataFrame:
        """A row a slide: slide_id, file, tissue_mm2, tissue_share, draw_share, bytes, failure.

        tissue_share: of the slide's area. draw_share: of all draws, to within the cells of the mask at the border of where
        centres may lie. bytes: memory for the slide. failure: "" for none.
        """
        rows, asked = [], self.settings.um_per_px
        areas = np.array([[0.0 if p is None else p.area_um2 for p in self._places_at(um)] for um in asked])  # (n_um, n_slides)
        weights = areas if self.settings.uniform_over == "tissue" else (areas > 0).astype(float)
        shares = (weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)).mean(axis=0)
        for i, file in enumerate(self.slides):
            places = [each for um in dict.fromkeys(asked) if (each := self.places(i, um)) is not None]
            mask = places[0].mask if places else None
            rows.append(
                {
                    "slide_id": file.slide_id,
                    "file": file.path.rsplit("/", 1)[-1],
                    "tissue_mm2": mask.area_mm2 if mask else 0.0,
                    "tissue_share": mask.share_of_slide if mask else 0.0,
                    "draw_share": shares[i],
                    "bytes": sum(each.starts.nbytes + each.ends.nbytes for each in places) + (mask.bits.nbytes if mask else 0),
                    "failure": self.failures.get(file.slide_id, ""),
                }
            )
        return pd.DataFrame(rows)

    def survey(self, n_workers: int = 1) -> "Source":
        """Look at a thumbnail of every slide; raises PatchingError for no workers and where no slide has tissue."""
        if n_workers < 1:
            raise PatchingError(f"n_workers: {n_workers} must be 1 or more; slides are looked at by separate threads")
        unseen = [i for i, known in enumerate(self._known) if known is None]
        if unseen:
            with ThreadPoolExecutor(n_workers) as pool:
                looks = pool.map(lambda i: self.places(i, self.settings.um_per_px[0]), unseen)
                for _ in tqdm(looks, total=len(unseen), desc="tissue masks", unit="slide", leave=False):
                    pass
        if not any(self._known):
            raise self._none_left(None)
        return self

    def _look(self, file: SlideFile) -> dict[float, Places]:
        """Find a slide's tissue; returns by resolution where patches may lie."""
        settings, asked = self.settings, dict.fromkeys(self.settings.um_per_px)
        try:
            look = self._see(file) if self.kept is None else self.kept.look(file, lambda: self._see(file))
        except (SlideError, OSError, tissue.TissueError, MemoryError) as error:  # a damaged header may say terabytes
            self._fail(file.slide_id, f"{error}", "is left out")
            return {}
        places = {um_per_px: places_at(look, um_per_px, settings.size_px, settings.min_tissue) for um_per_px in asked}
        known = {um_per_px: each for um_per_px, each in places.items() if each is not None}
        if missing := [um_per_px for um_per_px in asked if um_per_px not in known]:
            so = "is left out at some resolutions" if known else "is left out"
            self._fail(file.slide_id, f"{file.path}: {_no_place(settings, missing, look.mask.um_per_px)}", so)
        return known

    def _see(self, file: SlideFile) -> Look:
        with self.open.use(file) as slide:
            return tissue.look_at(slide)

    def _fail(self, slide_id: str, reason: str, so: str) -> None:
        """Log why a slide failed and what follows, once a slide."""
        with self._lock:
            if slide_id in self.failures:
                return
            self.failures[slide_id] = reason
        log.warning("slide %s %s: %s", slide_id, so, reason)

    @property
    def left_out(self) -> dict[str, str]:
        """The `failures` of slides from which no patch is drawn, among the slides looked at."""
        nowhere = {file.slide_id for file, known in zip(self.slides, self._known, strict=True) if known == {}}
        return {slide_id: reason for slide_id, reason in self.failures.items() if slide_id in nowhere}

    def _none_left(self, um_per_px: float | None) -> PatchingError:
        at = "" if um_per_px is None else f" at {um_per_px:g} um/px"
        reasons = [f"{name}: {reason}" for name, reason in itertools.islice(self.failures.items(), 20)]
        more = f"\n  ... and {len(self.failures) - 20} more" if len(self.failures) > 20 else ""
        remedy = "mend one of the failures" if um_per_px is None else "leave the resolution out of patches.um_per_px"
        none = f"no patch can be drawn{at} from {len(self.slides)} slide{'s' * (len(self.slides) > 1)}; {remedy}"
        return PatchingError(f"{none}:\n  " + "\n  ".join(reasons) + more)


def _no_place(settings: OnlinePatches, missing: Sequence[float], slide_um_per_px: float) -> str:
    """Why a slide has no patch at the resolutions ``missing``, and what to change."""
    reasons = []
    if too_fine := [f"{um_per_px:g}" for um_per_px in missing if um_per_px * MAX_ENLARGED < slide_um_per_px]:
        reasons.append(
            f"{', '.join(too_fine)} um/px is finer than the slide's {slide_um_per_px:.3g}, which is enlarged {MAX_ENLARGED:g} "
            "times at most; name coarser ones in patches.um_per_px"
        )
    if bare := [f"{um_per_px:g}" for um_per_px in missing if um_per_px * MAX_ENLARGED >= slide_um_per_px]:
        reasons.append(
            f"no place for a patch of {settings.size_px} px with {settings.min_tissue:.0%} tissue at {', '.join(bare)} um/px "
            f"on a slide of {slide_um_per_px:.3g}; lower patches.min_tissue or patches.size_px"
        )
    return "; ".join(reasons)
