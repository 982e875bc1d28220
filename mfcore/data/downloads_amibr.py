"""AMi-Br: one archive, unpacked beside its place, checked, then renamed; a file that was damaged since comes anew from it."""

import contextlib
import re
import shutil
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from tqdm.auto import tqdm

from mfcore.data.downloads_transfer import PATIENCE, DownloadError, Part, Patience, Published, Whole, open_session, transfer
from mfcore.data.labels.amibr import FILE
from mfcore.data.labels.source import SOURCES
from mfcore.store import StoreError, alone, file_sha256, read_json, write_json

GITHUB = "https://codeload.github.com"
ARCHIVE = SOURCES["amibr"].archive
COMMIT = ARCHIVE.commit
BY_HAND = f"git clone https://github.com/DeepMicroscopy/AMi-Br, then checkout {COMMIT[:7]}"
RECORD = "downloaded.json"


def amibr(folder: str | Path, host: str = GITHUB, patience: Patience = PATIENCE) -> Path:
    """AMi-Br (DeepMicroscopy/AMi-Br at a fixed commit, 3,720 patches) in ``folder``, fetched unless its table is there.

    ``downloaded.json`` beside it records address, time, the archive's SHA-256 and each file's. The host doesn't promise
    the same archive for ever, so that the archive's own checksums are what is checked. Raises DownloadError.
    """
    folder = Path(folder)
    if (folder / FILE).is_file():
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DownloadError(f"{folder} is there but holds no {FILE}; empty it, or name another folder for AMi-Br")
    with _unpacked(folder, host, patience) as unpacked:
        unpacked.replace(folder)
    return folder


def amibr_rows(folder: Path, host: str, verify: bool, patience: Patience) -> list[dict]:
    """What `amibr` fetched or found, a row a file (the table, each patch), for the table of `downloads.fetch`.

    A file that isn't any more as recorded comes anew. Raises DownloadError.
    """
    was_there = (folder / FILE).is_file()
    amibr(folder, host, patience)
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    if "files" not in record:
        names = [FILE, *sorted(path.relative_to(folder).as_posix() for path in folder.glob("patches/*/*.png"))]
        return [_row(folder, name, "there", "laid there by hand") for name in names]
    files = {name: facts for name, facts in record["files"].items() if name == FILE or name.endswith(".png")}
    damaged = [name for name, facts in files.items() if was_there and not _is_as_recorded(folder / name, facts, verify)]
    if damaged:
        more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
        tqdm.write(f"missing or not as recorded: {', '.join(damaged[:3])}{more}; fetched anew")
        with _unpacked(folder, host, patience) as unpacked:
            for name in damaged:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (unpacked / name).replace(folder / name)
            (unpacked / RECORD).replace(folder / RECORD)
    how = "length and checksum as recorded" if verify else "length as recorded"
    return [
        _row(folder, name, "there", how, facts["sha256"])
        if was_there and name not in damaged
        else _row(folder, name, "fetched", "no checksum published, the one seen is recorded", facts["sha256"])
        for name, facts in files.items()
    ]


def _row(folder: Path, name: str, state: str, reason: str, sha256: str = "") -> dict:
    return {
        "file": name,
        "kind": "label file" if name == FILE else "patch image",
        "state": state,
        "bytes": (folder / name).stat().st_size,
        "checksum": sha256 and f"sha256:{sha256}",
        "reason": reason,
        "remedy": "",
    }


def _is_as_recorded(file: Path, facts: dict, verify: bool) -> bool:
    if not file.is_file() or file.stat().st_size != facts["bytes"]:
        return False
    return not verify or file_sha256(file) == facts["sha256"]


@contextlib.contextmanager
def _unpacked(folder: Path, host: str, patience: Patience) -> Iterator[Path]:
    """Fetch and unpack the archive beside ``folder``; yields the one folder with its files and their record, then clears up."""
    url = f"{host}/{ARCHIVE.repository}/zip/{COMMIT}"
    aside = folder.with_name(f".{folder.name}.partial")
    part = Part(aside / "archive.zip")
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(alone(aside, "fetch"))
        except StoreError as error:
            raise DownloadError(str(error)) from None
        try:
            shutil.rmtree(aside / "unpacked", ignore_errors=True)
            whole = _fetch(url, part, patience)
            part.keep()
            files = _unpack(part.target, aside / "unpacked", url)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            facts = {"url": url, "sha256": whole.checksum.removeprefix("sha256:"), "bytes": whole.n_bytes}
            n_patches = sum(name.endswith(".png") for name in files)
            write_json(aside / "unpacked" / RECORD, {**facts, "n_patches": n_patches, "downloaded": now, "files": files})
            yield aside / "unpacked"
        finally:
            if not (part.n_bytes and part.facts.get("validator")):  # else the next call goes on with it
                shutil.rmtree(aside, ignore_errors=True)


def _fetch(url: str, part: Part, patience: Patience) -> Whole:
    with tqdm(unit="B", unit_scale=True, initial=part.n_bytes, desc="AMi-Br") as bar, open_session(patience, bar) as session:
        try:
            return transfer(session, url, part, Published(), patience, bar)
        except DownloadError as error:
            raise DownloadError(f"{url}: {error}; run it again, or fetch it by hand and name its folder: {BY_HAND}") from None


def _unpack(archive: Path, folder: Path, url: str) -> dict[str, dict]:
    """Unpack table, patches and README, each compared with the zip's checksum of it; returns each one's facts."""
    try:
        with zipfile.ZipFile(archive) as content:
            tables = [name for name in content.namelist() if re.fullmatch(rf"[^/]+/{re.escape(FILE)}", name)]
            if len(tables) != 1:
                raise DownloadError(f"{url}: no {FILE} in the archive, so it isn't AMi-Br; fetch it by hand: {BY_HAND}")
            root = tables[0].removesuffix(FILE)
            kept = re.compile(re.escape(root) + rf"({ARCHIVE.kept})")
            names = [name for name in content.namelist() if kept.fullmatch(name)]
            for name in names:
                target = folder / name.removeprefix(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read(name))
    except zipfile.BadZipFile as error:
        raise DownloadError(f"{url}: the archive is damaged ({error}); run it again") from None
    if not any(name.endswith(".png") for name in names):
        raise DownloadError(f"{url}: no patches in the archive; fetch AMi-Br by hand: {BY_HAND}")
    files = [name.removeprefix(root) for name in names]
    return {n: {"bytes": (folder / n).stat().st_size, "sha256": file_sha256(folder / n)} for n in files}
