"""Patches drawn online, against plain random `read_region` and against the package wsistream, side by side in one run.

All draw patches of 256 px at 0.25, 0.5, 1 and 2 um/px alike, uniform over tissue, accepted at 40 % of the same mask. "plain"
keeps OpenSlide's slides open, draws until the mask accepts, reads from the best level and resizes with Pillow. wsistream keeps
its pool of slides open and its masks cached, its detector replaced by ours; it reads the level nearest to a resolution and
doesn't resample. Masks are made before the clock starts, for all three. Rounds alternate, so that a busy machine slows all
alike; the ratio of each round is what counts. A look-ahead goes on in one stream as a training's does, and each of its rounds
ends when it rests, so many patches further on. Slides: a file given, as it is; and larger ones that repeat it, mirrored so that
there is no seam, once with levels of half the side each, once as Aperio has them, of a quarter.

    python benchmarks/patching.py --image scan.tif                         # prints a table; some minutes
    pip install --no-deps --target FOLDER wsistream opencv-python-headless # not among mfcore's dependencies
    python benchmarks/patching.py --image scan.tif --wsistream FOLDER      # with wsistream's rows
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import tifffile
from PIL import Image

from mfcore import store
from mfcore.data.slides import tissue
from mfcore.data.synthetic import slides as synthetic, tissue as synthetic_tissue
from mfcore.pretraining.feed import batches
from mfcore.pretraining.slides import SlideFile
from mfcore.pretraining.source import Source
from mfcore.study.config import OnlinePatches

SETTINGS = OnlinePatches()
SIDE_PX, N_SLIDES = 12_288, 4
N_NAMES = 160  # of links to them
BATCH = 64
LONGER = 4  # patches a round of a look-ahead, in those of the others: it goes in windows


def image_of(file: Path | None) -> np.ndarray:
    """What the slides show, uint8 (n_rows, n_columns, 3): a TIFF's first image, or drawn tissue."""
    if file is not None:
        return tifffile.imread(file, key=0)
    (plan,) = synthetic.plan_slides(1, 1, 100)
    return synthetic_tissue.draw(1, plan, synthetic_tissue.lay_out(1, plan))


def write_slides(folder: Path, image: np.ndarray, step: int) -> list[Path]:
    """Slides that repeat ``image``, mirrored, each shifted by another amount; levels ``step`` times smaller each."""
    folder.mkdir(parents=True)
    mirrored = np.concatenate([image, image[:, ::-1]], axis=1)
    mirrored = np.concatenate([mirrored, mirrored[::-1]])
    n_down, n_across = (-(-SIDE_PX // side) + 1 for side in mirrored.shape[:2])
    pixels = np.tile(mirrored, (n_down, n_across, 1))
    paths = []
    for i in range(N_SLIDES):
        shift = 997 * i
        paths.append(folder / f"{i + 1:03d}.tif")
        write_pyramid(paths[-1], pixels[shift : shift + SIDE_PX, shift : shift + SIDE_PX], step)
    return paths


def linked(folder: Path, paths: list[Path]) -> list[Path]:
    """N_NAMES links to the slides."""
    folder.mkdir()
    links = [folder / f"{i:04d}.tif" for i in range(N_NAMES)]
    for i, link in enumerate(links):
        link.hardlink_to(paths[i % len(paths)])
    return links


def write_pyramid(path: Path, pixels: np.ndarray, step: int) -> None:
    """A tiled pyramidal TIFF (JPEG, 256 px) of 0.25 um/px, with levels down to about 700 px."""
    um_per_px = 0.25
    with tifffile.TiffWriter(path) as file:
        while True:
            file.write(
                pixels,
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 88},
                subfiletype=int(um_per_px > 0.25),
                resolution=(1e4 / um_per_px,) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )
            if max(pixels.shape) <= 768:
                return
            pixels = np.asarray(Image.fromarray(pixels).reduce(step))
            um_per_px *= step


class Plain:
    """Random reads as one writes them first: a slide and a place by area, the mask's word, `read_region`, a resize."""

    def __init__(self, paths: list[Path], masks: list[tissue.Look]):
        self.slides = [openslide.OpenSlide(path) for path in paths]
        self.masks = masks
        self.areas = np.cumsum([slide.dimensions[0] * slide.dimensions[1] for slide in self.slides])
        self.rng = np.random.default_rng(0)

    def patch(self) -> np.ndarray:
        """One patch, uint8 (size_px, size_px, 3)."""
        um_per_px = SETTINGS.um_per_px[self.rng.integers(len(SETTINGS.um_per_px))]
        scale, size_px = um_per_px / 0.25, SETTINGS.size_px
        side = size_px * scale
        while True:
            i = int(np.searchsorted(self.areas, self.rng.random() * self.areas[-1], side="right"))
            slide = self.slides[i]
            x, y = (int(self.rng.integers(0, max(1, length - side))) for length in slide.dimensions)
            if self.masks[i].share(x + side / 2, y + side / 2, side) >= SETTINGS.min_tissue:
                break
        level = slide.get_best_level_for_downsample(scale * 1.001)  # a level 2.0001 times smaller is one of half the size
        n_px = round(side / slide.level_downsamples[level])
        image = slide.read_region((x, y), level, (n_px, n_px)).convert("RGB")
        return np.asarray(image if n_px == size_px else image.resize((size_px, size_px), Image.Resampling.BICUBIC))

    def read(self, n: int) -> None:
        """Draw ``n`` patches."""
        for _ in range(n):
            self.patch()


def wsistream_of(paths: list[Path], folder: Path | None) -> Callable[[int], None] | None:
    """A function that draws n patches with wsistream; None where it isn't installed."""
    if folder is not None:
        sys.path.append(str(folder))
    try:
        from wsistream.backends import OpenSlideBackend
        from wsistream.pipeline import PatchPipeline
        from wsistream.sampling import MultiMagnificationSampler
        from wsistream.tissue.base import TissueDetector
    except ImportError as error:
        print(f"without wsistream ({error}); see --help for how to get it", file=sys.stderr)
        return None

    class Ours(TissueDetector):
        """The same mask as the others have."""

        def detect(self, thumbnail: np.ndarray, downsample: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
            return tissue.find(thumbnail, 0.25 * downsample[0])

    sampler = MultiMagnificationSampler(
        target_mpps=list(SETTINGS.um_per_px), patch_size=SETTINGS.size_px, tissue_threshold=SETTINGS.min_tissue
    )
    stream = iter(
        PatchPipeline(
            slide_paths=[str(path) for path in paths],
            backend=OpenSlideBackend(),
            tissue_detector=Ours(),
            sampler=sampler,
            pool_size=len(paths),
            patches_per_slide=10**9,
            cycle=True,
            seed=0,
            tissue_mask_cache_size=len(paths),
        )
    )
    next(stream)  # opens the slides, makes the masks

    def read(n: int) -> None:
        for _ in range(n):
            next(stream)

    return read


class Ours:
    """`mfcore.pretraining.feed`, by so many threads; one of ``n_ranks`` processes that share the stream."""

    def __init__(self, source: Source, n_workers: int, rank: int = 0, n_ranks: int = 1):
        self.stream = batches(source, 0, 10**5, n_ranks * BATCH, rank, n_ranks, n_workers)

    def read(self, n: int) -> None:
        """Draw ``n`` patches in batches, and let as many be read ahead for those that come next."""
        for _ in range(n // BATCH):
            next(self.stream)
        used = -1.0
        while time.process_time() - used > 0.002:  # in 0.02 s: its threads are reading yet
            used = time.process_time()
            time.sleep(0.02)


class OneByOne:
    """The same without looking ahead: no tile serves two patches but by chance."""

    def __init__(self, source: Source):
        self.source, self.at = source, 0

    def read(self, n: int) -> None:
        """Draw ``n`` patches."""
        for number in range(self.at, self.at + n):
            self.source.read(number)
        self.at += n


def measure(name: str, paths: list[Path], n: int, n_rounds: int, folder: Path | None) -> Iterator[dict]:
    """Patches a second of each, and our ratio to it, medians and quartiles over alternating rounds."""
    files = [SlideFile(path.name, str(path)) for path in paths]
    first = Source(files, SETTINGS, 0).survey()
    masks = {file.slide_id: first.places(i, SETTINGS.um_per_px[0]).look for i, file in enumerate(first.slides)}
    ways: dict[str, tuple[Callable[[int], None], int]] = {"mfcore": (Ours(first, 1).read, LONGER * n)}
    for k in range(2, (os.cpu_count() or 1) + 1):
        ways[f"mfcore, {k} threads"] = Ours(Source(files, SETTINGS, 0).survey(), k).read, LONGER * n
    ways["mfcore, no look-ahead"] = OneByOne(Source(files, SETTINGS, 0).survey()).read, n
    ways["plain read_region"] = Plain(paths, [masks[path.name] for path in paths]).read, n
    if (other := wsistream_of(paths, folder)) is not None:
        ways["wsistream"] = other, n
    wall: dict[str, list[float]] = {way: [] for way in ways}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    for i in range(n_rounds + 1):
        for way, (read, n_read) in ways.items():
            begun, begun_cpu = time.perf_counter(), time.process_time()
            read(n_read)
            if i:  # the first warms up
                wall[way].append(n_read / (time.perf_counter() - begun))
                cpu[way].append(n_read / (time.process_time() - begun_cpu))
    one = np.array(wall[next(iter(ways))])
    for way in ways:
        low, ratio, high = np.quantile(one / np.array(wall[way]), (0.25, 0.5, 0.75))
        yield {
            "slides": name,
            "way": way,
            "patches_per_s": round(float(np.median(wall[way]))),
            "patches_per_cpu_s": round(float(np.median(cpu[way]))),
            "mfcore_to_it": round(float(ratio), 2),
            "q25": round(float(low), 2),
            "q75": round(float(high), 2),
        }


PROCESS = """
import itertools, os, sys, time
sys.path.insert(0, sys.argv[1])
import patching as here
from mfcore.pretraining.slides import SlideFile
from mfcore.pretraining.source import Source
rank, n, core = map(int, sys.argv[2:5])
if core >= 0:
    os.sched_setaffinity(0, {core})
source = Source([SlideFile(path, path) for path in sys.argv[5:]], here.SETTINGS, 0).survey()
ours = here.Ours(source, 1, rank, 2)
for line in itertools.chain(["warm up"], iter(sys.stdin.readline, "")):
    begun = time.perf_counter()
    ours.read(n)
    print(n / (time.perf_counter() - begun), flush=True)
"""


def processes(paths: list[Path], n: int, n_rounds: int, cores: tuple[int, int] = (-1, -1)) -> float:
    """Patches a second of two processes at once, two ranks of one stream, to twice those of one alone; median of rounds.

    cores: that each is confined to; -1: none, and one alone takes more than one core, since batches are put together while
    its thread reads on.
    """

    def start(rank: int) -> subprocess.Popen:
        said = [str(each) for each in (rank, n, cores[rank], *paths)]
        command = [sys.executable, "-c", PROCESS, str(Path(__file__).parent), *said]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, text=True, bufsize=1, **pipes)

    def go(*ranks: subprocess.Popen) -> float:
        for each in ranks:
            each.stdin.write("go\n")
        return sum(float(each.stdout.readline()) for each in ranks)

    with start(0) as one, start(1) as other:
        for each in (one, other):
            each.stdout.readline()  # has warmed up
        ratios = []
        for _ in range(n_rounds):
            alone = go(one)
            ratios.append(go(one, other) / (2 * alone))
        one.stdin.close()
        other.stdin.close()
    return float(np.median(ratios))


def main() -> None:
    """Measure on the slide itself and on larger ones made of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="a pyramidal TIFF of 0.25 um/px (default: larger slides of drawn tissue)")
    parser.add_argument("--wsistream", type=Path, help="folder that wsistream was installed into")
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds (default 5)")
    parser.add_argument("--patches", type=int, default=1024, help="patches a round (default 1,024)")
    parser.add_argument("--out", type=Path, help="also write the table to this CSV file")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        image = image_of(arguments.image)
        sets = {} if arguments.image is None else {"as it is": [arguments.image]}
        for step in (2, 4):
            name = f"{N_SLIDES} of {SIDE_PX:,} px, levels 1:{step}"
            sets[name] = write_slides(Path(scratch) / str(step), image, step)
        sets[f"{N_NAMES} by name, levels 1:4"] = linked(Path(scratch) / "many", next(reversed(sets.values())))
        for name, paths in sets.items():
            found = list(measure(name, paths, arguments.patches, arguments.rounds, arguments.wsistream))
            scaling = {}
            if len(paths) <= N_SLIDES:
                n = 4 * LONGER * arguments.patches
                scaling["two_processes_to_twice_one"] = round(processes(paths, n, arguments.rounds), 2)
                if hasattr(os, "sched_setaffinity"):
                    cores = tuple(sorted(os.sched_getaffinity(0))[:2])
                    scaling["two_cores_to_twice_one"] = round(processes(paths, n, arguments.rounds, cores), 2)
            rows += [{**row, **scaling} for row in found]
            print(pd.DataFrame(rows[-len(found) :]).to_string(index=False), flush=True)
    table = pd.DataFrame(rows).assign(n_patches=arguments.patches, machine=platform.machine(), n_cores=os.cpu_count())
    if arguments.out:
        store.write_csv(arguments.out, table)


if __name__ == "__main__":
    main()
