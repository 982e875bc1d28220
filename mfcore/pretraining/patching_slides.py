"""Which slides patches are drawn from: a study's own, those of a folder or of an address, or a share of them."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mfcore.data.labels import table as labels
from mfcore.data.slides.openslide import NO_VOLUME, series_of
from mfcore.streams import stream_seed
from mfcore.study.config import Pretraining, Study

SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".dcm", ".png")

log = logging.getLogger(__name__)


class PatchingError(ValueError):
    """No patch can be drawn; the message says why of each slide."""


@dataclass(frozen=True)
class SlideFile:
    """A slide to draw patches from: its file, or an address that fsspec opens, and its um/px where the file doesn't say.

    scanner: by which the study may say its um/px; "" where it is known of no scanner.
    """

    slide_id: str
    path: str
    um_per_px: float | None = None
    scanner: str = ""


def share_of(slides: Iterable[SlideFile], fraction: float, seed: int) -> list[SlideFile]:
    """So large a share of the slides, at least one, in an order of their own; a smaller share's are among a larger one's."""
    ordered = sorted(slides, key=lambda file: (stream_seed(seed, "share of slides", file.slide_id), file.slide_id))
    return ordered[: max(1, round(fraction * len(ordered)))]


def slides_of(study: Study, which: Pretraining, data_folder: str | Path) -> list[SlideFile]:
    """The slides that a pretraining draws from: the study's own, or those below ``which.slides`` (in the data folder), by name.

    Raises PatchingError for a study of patches without slides and a folder without any, LabelError as `labels.table.load`.
    """
    data = study.data
    if which.slides:
        place = which.slides if "://" in which.slides else str(Path(data_folder) / Path(which.slides).expanduser())
        try:
            return _listed(place, data.um_per_px)
        except PatchingError as error:
            raise PatchingError(f"pretraining[{which.name}].slides: {error}") from None
    if not study.source.has_slides:
        raise PatchingError(
            f"study {study.name!r} has patches and no slides to draw from; name a folder in pretraining[{which.name}].slides"
        )
    table = labels.load(study, data_folder).drop_duplicates("slide_id").sort_values("slide_id")
    return [
        SlideFile(
            str(row.slide_id),
            str(Path(data_folder) / row.file),
            data.um_per_px_by_scanner.get(row.scanner, data.um_per_px),
            str(row.scanner),
        )
        for row in table.itertuples()
    ]


def _listed(place: str, um_per_px: float | None) -> list[SlideFile]:
    """Every slide below a folder, or an address that fsspec lists, by its path below it; hidden files aren't looked at.

    A slide of several files, as in DICOM, is listed once.
    """
    try:
        root, files, is_there = _at_address(place) if "://" in place else _in_folder(place)
    except ImportError as error:
        raise PatchingError(f"{place}: can't be listed ({error}); install that package beside mfcore") from None
    except Exception as error:  # every file system has its own
        remedy = "give this user the right to read it" if isinstance(error, PermissionError) else "check the address"
        raise PatchingError(f"{place}: can't be listed ({type(error).__name__}: {error}); {remedy}") from None
    if not is_there:
        raise PatchingError(f"{place}: there is no such folder; a path that isn't whole is taken from the data folder")
    found = [file for file in files if file.lower().endswith(SUFFIXES) and not file.rsplit("/", 1)[-1].startswith(".")]
    if "://" not in place and found != [root]:
        found = _one_a_slide(found, _channels(files))
    if not found:
        raise PatchingError(f"{place}: no slide below it; one ends in {', '.join(SUFFIXES)}")
    folder = root.rstrip("/")
    if found == [folder]:  # where it is a slide itself
        return [SlideFile(folder.rpartition("/")[2], place if "://" in place else folder, um_per_px)]
    below = [file.removeprefix(folder + "/") for file in found]
    paths = [_address(place, name) for name in below] if "://" in place else found
    return [SlideFile(name, path, um_per_px) for name, path in zip(below, paths, strict=True)]


def _one_a_slide(files: list[str], channels: set[str]) -> list[str]:
    """The files without those of a slide that another one stands for: of a DICOM series its first level.

    Labels and overviews of slides, and ``channels``, aren't slides. Raises PatchingError for a series in several folders.
    """
    first: dict[str, str] = {}
    kept = []
    for file in files:
        if file in channels:
            log.warning("%s is one channel of a slide in fluorescence, and no slide by itself; it is left out", file)
            continue
        series, kind = series_of(Path(file)) or ("", "")
        if kind in NO_VOLUME:
            continue
        other = first.setdefault(series or file, file)
        if other == file:
            kept.append(file)
        elif Path(other).parent != Path(file).parent:
            raise PatchingError(
                f"{file}: of the same DICOM series as {other}, in another folder; put the files of a slide into one folder, "
                "or remove those that are there twice"
            )
    return kept


def _channels(files: list[str]) -> set[str]:
    """The .ndpi files that an .ndpis names, which holds a slide's channels of fluorescence together."""
    found = set()
    for file in files:
        if file.lower().endswith(".ndpis"):
            lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
            names = (line.partition("=")[2].strip() for line in lines if line.lower().startswith("image"))
            found |= {str(Path(file).with_name(name)) for name in names if name}
    return found


def _at_address(place: str) -> tuple[str, list[str], bool]:
    """The path in its file system, the files below it, and whether there is anything."""
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(place)
    files = sorted(filesystem.find(root))
    return root, files, bool(files) or filesystem.exists(root)


def _in_folder(place: str) -> tuple[str, list[str], bool]:
    """As `_at_address` on this machine; links to folders are followed, and no folder is looked into twice."""
    root, files, seen = Path(place).absolute(), [], set()
    if not root.is_dir():
        return str(root), [str(root)] * root.is_file(), root.is_file()

    def refuse(error: OSError) -> None:
        raise error

    for at, folders, names in os.walk(root, followlinks=True, onerror=refuse):
        real = Path(at).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()  # so that what is there twice has the same name everywhere
        files += [str(Path(at) / name) for name in names]
    return str(root), sorted(files), True


def _address(place: str, name: str) -> str:
    """The address of the file ``name`` below the folder at an address, of fsspec's chained ones (``zip://a::s3://b``) too."""
    chain = place.split("::")
    i = next(i for i, part in enumerate(chain) if "://" in part)
    chain[i] += ("" if chain[i].endswith("/") else "/") + name
    return "::".join(chain)
