"""Files as inputs: fingerprints of their content, and the files that a slide is made of."""

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from mfcore import store
from mfcore.store.records import digest

WHOLE_BYTES = 32 * 2**20  # up to so many bytes, a file's fingerprint is of all its content
N_BLOCKS, BLOCK_BYTES = 32, 2**16  # of a larger file
IN_ONE_FOLDER = (".dcm", ".vms", ".vmu")  # slides whose parts lie in the folder of the named file


def fingerprint(path: str | Path) -> list[int | str]:
    """Size in bytes and SHA-256, as hex, of a file's content.

    Of a file of more than WHOLE_BYTES, 32 evenly spaced blocks of BLOCK_BYTES are read, the first
    and the last among them. Times and names don't enter: a copy has the fingerprint of its
    original.
    """
    path = Path(path)
    n_bytes = path.stat().st_size
    if n_bytes <= WHOLE_BYTES:
        return [n_bytes, store.file_sha256(path)]
    content = hashlib.sha256()
    with path.open("rb") as file:
        for i in range(N_BLOCKS):
            file.seek((n_bytes - BLOCK_BYTES) * i // (N_BLOCKS - 1))
            content.update(file.read(BLOCK_BYTES))
    return [n_bytes, content.hexdigest()]


def below(folder: str | Path) -> list[Path]:
    """Every file below a folder, links followed, sorted; hidden files and folders are left out."""
    paths = []
    for at, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [Path(at) / name for name in names if not name.startswith(".")]
    return sorted(paths)


def parts_of(slide: str | Path) -> list[Path]:
    """Every file of a slide: a folder's, those in an MRXS's folder, those next to a DICOM file."""
    slide = Path(slide)
    if slide.is_dir():
        return below(slide)
    if slide.suffix.lower() in IN_ONE_FOLDER:
        return [file for file in below(slide.parent) if file.parent == slide.parent]
    return [slide, *(below(slide.with_suffix("")) if slide.suffix.lower() == ".mrxs" else ())]


class Fingerprints:
    """Fingerprints of files; kept in ``file``, so that an unchanged file isn't read again.

    trusts: whether size and time are enough. A cache that can't be read or written costs time only.
    """

    def __init__(self, file: str | Path | None = None, trusts: bool = True):
        self._file, self._known, self._now = file and Path(file), {}, {}
        if self._file is not None and trusts:
            with contextlib.suppress(store.StoreError):
                self._known = store.read_json(self._file)

    def of(self, path: str | Path, whole: bool = False) -> list[int | str]:
        """A file's `fingerprint`; ``whole``: size and SHA-256 of all of it, however large."""
        path = Path(path)
        state, key = path.stat(), f"{'whole ' * whole}{path.absolute()}"
        at = [state.st_size, state.st_mtime_ns]
        known = self._now.get(key) or self._known.get(key)
        if known is None or known[:2] != at:
            known = [*at, store.file_sha256(path) if whole else fingerprint(path)[1]]
        self._now[key] = known
        return [known[0], known[2]]

    def of_slide(self, path: str | Path) -> list[int | str]:
        """A slide's fingerprint: its file's; of several files, their bytes and a digest."""
        path = Path(path)
        parts = self.of_all(parts_of(path), path.parent)
        if list(parts) == [path.name]:
            return self.of(path)
        return [sum(n_bytes for n_bytes, _ in parts.values()), digest(parts)]

    def of_all(self, paths: Iterable[Path], folder: Path) -> dict[str, list[int | str]]:
        """By their names below ``folder``."""
        return {path.relative_to(folder).as_posix(): self.of(path) for path in paths}

    def write(self) -> None:
        """Keep what was asked for since this was made; what wasn't is forgotten."""
        if self._file is not None and self._now != self._known:
            with contextlib.suppress(OSError):
                store.write_json(self._file, self._now)
