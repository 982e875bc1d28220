"""Data sets that are fetched for the user: written aside, checked, renamed; a transfer that broke is never taken for done."""

import re
import shutil
import zipfile
from datetime import UTC, datetime
from pathlib import Path

from mfcore.labels_amibr import FILE as AMIBR_FILE
from mfcore.store import file_sha256, write_json

GITHUB = "https://codeload.github.com"
AMIBR_COMMIT = "0aaa85d57f134be6109340f1729f3ca354b96dea"


class DownloadError(RuntimeError):
    """A data set can't be fetched; the message names the address and what to do instead."""


def amibr(folder: str | Path, host: str = GITHUB) -> Path:
    """AMi-Br (DeepMicroscopy/AMi-Br at a fixed commit, 3,720 patches) in ``folder``, fetched unless its table is there.

    ``downloaded.json`` beside it records address, time and the archive's SHA-256. The host doesn't promise the same
    archive for ever, so that the archive's own checksums are what is checked. Raises DownloadError.
    """
    folder = Path(folder)
    if (folder / AMIBR_FILE).is_file():
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DownloadError(f"{folder} is there but holds no {AMIBR_FILE}; empty it, or name another folder for AMi-Br")
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        archive = aside / "archive.zip"
        url = f"{host}/DeepMicroscopy/AMi-Br/zip/{AMIBR_COMMIT}"
        _fetch(url, archive)
        facts = {"url": url, "sha256": file_sha256(archive), "bytes": archive.stat().st_size}
        n_patches = _unpack_amibr(archive, aside, url)
        archive.unlink()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(aside / "downloaded.json", {**facts, "n_patches": n_patches, "downloaded": now})
        aside.replace(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _fetch(url: str, file: Path) -> None:
    """Fetch ``url`` into ``file`` with a progress bar."""
    import pooch

    try:
        pooch.HTTPDownloader(progressbar=True, timeout=60)(url, str(file), None)
    except OSError as error:  # every error of the transfer is one
        by_hand = f"git clone https://github.com/DeepMicroscopy/AMi-Br, then checkout {AMIBR_COMMIT[:7]}"
        raise DownloadError(f"{url}: {error}; run it again, or fetch it by hand and name its folder: {by_hand}") from None


def _unpack_amibr(archive: Path, folder: Path, url: str) -> int:
    """Unpack table, patches and README; the zip's checksum of each file is compared while it is read. Returns n patches."""
    try:
        with zipfile.ZipFile(archive) as content:
            tables = [name for name in content.namelist() if re.fullmatch(rf"[^/]+/{re.escape(AMIBR_FILE)}", name)]
            if len(tables) != 1:
                raise DownloadError(f"{url}: no {AMIBR_FILE} in the archive, so it isn't AMi-Br; fetch it by hand")
            root = tables[0].removesuffix(AMIBR_FILE)
            kept = re.compile(re.escape(root) + rf"({re.escape(AMIBR_FILE)}|README\.md|patches/(normal|atypical)/[^/]+\.png)")
            names = [name for name in content.namelist() if kept.fullmatch(name)]
            for name in names:
                target = folder / name.removeprefix(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read(name))
    except zipfile.BadZipFile as error:
        raise DownloadError(f"{url}: the archive is damaged ({error}); run it again") from None
    n_patches = sum(name.endswith(".png") for name in names)
    if n_patches == 0:
        raise DownloadError(f"{url}: no patches in the archive; fetch AMi-Br by hand")
    return n_patches
