"""Data sets that are fetched for the user: only what is missing, each file checked, recorded, then
given its name.

Which files a source needs and where they lie stands in ``data/downloads.csv``. ``downloaded.json``
in the data folder records each file that came: address, length, checksum, date, and whether the
checksum was a published one. Hosts publish lengths and checksums: Zenodo has one list for a record.
Of a figshare collection there is a list of articles, and for each article a list of its files;
MIDOG++ has an article for every slide, so lists are kept in the folder.
"""

import fnmatch
import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pandas as pd
import requests
from tqdm.auto import tqdm

from mfcore import store
from mfcore.data.downloads_transfer import (
    TRY_AGAIN,
    DownloadError,
    Published,
    checksum_of,
    n_bytes_of,
    part_of,
    session,
    transfer,
)
from mfcore.data.labels.source import Source
from mfcore.data.labels.table import place_of
from mfcore.store.files import below

__all__ = ["HOSTS", "DownloadError", "fetch", "summary"]

HOSTS = {
    "zenodo": "https://zenodo.org",
    # figshare.com/ndownloader lets only browsers in
    "figshare": "https://ndownloader.figshare.com",
    "figshare_api": "https://api.figshare.com",
    "github": "https://github.com",
    "codeload": "https://codeload.github.com",
}
RECORD, LISTS = "downloaded.json", ".listed.json"
FILES = Path(__file__).resolve().parents[2] / "data" / "downloads.csv"
ONLY_SEEN = "no checksum published, the one seen is recorded"


class File(NamedTuple):
    """What became of a file of a source: a row of the table that `fetch` returns.

    state: "there" (before), "fetched" (now) or "missing", with reason and remedy.
    """

    file: str
    kind: str
    state: str
    reason: str
    bytes: int = 0
    checksum: str = ""
    remedy: str = ""


def _urls(wanted: Any) -> list[str]:
    """The addresses of a row of FILES, the first to be tried first."""
    if wanted.host == "zenodo":  # the address in Zenodo's own list knows no ranges
        return [f"{HOSTS['zenodo']}/records/{wanted.record}/files/{quote(wanted.id)}?download=1"]
    if wanted.host == "figshare":
        return [
            f"{HOSTS['figshare']}/files/{wanted.id}",
            f"{HOSTS['figshare_api']}/v2/file/download/{wanted.id}",
        ]
    repository, _, commit = wanted.record.rpartition("/")
    return [f"{HOSTS['github']}/{repository}/raw/{commit}/{quote(wanted.id)}"]


def fetch(
    source: Source, folder: str | Path, verify: bool = False, *, slides: Sequence[str] = ()
) -> pd.DataFrame:
    """Fetch what ``folder`` lacks of a source's data; a row a file (`File`), for `summary`.

    One file's failure doesn't stop the others. A file that is there is compared with the recorded
    or published length, with ``verify`` with the checksum too; those of an archive with neither.
    One that differs counts as missing and is never overwritten. ``slides``: names of the slides to
    fetch, empty for all; an archive comes whole. Raises DownloadError where nothing can be begun: a
    source with nothing to fetch, slides that it doesn't have, too little disk space, another fetch
    at work on the folder.
    """
    folder = Path(folder)
    if source.is_synthetic:
        raise DownloadError(
            f"source {source.name!r}: its data are made, not fetched: make paper makes them"
        )
    if not source.is_published:
        raise DownloadError(
            f"source {source.name!r}: its slides are your own: lay them into a folder with"
            f" {' or '.join(source.main_files)}, or into its folder images/, and name the folder:"
            " make paper DATA=folder"
        )
    try:
        with store.alone(folder, "fetch"):
            if source.archive:
                rows = [_fetch_archive(source, folder)]
            else:
                rows = _fetch(source, folder, verify, slides)
    except store.StoreError as error:
        raise DownloadError(str(error)) from None
    except OSError as error:
        raise DownloadError(
            f"{error}; make room in {folder}, make it writable, or name another folder with "
            "DATA=folder; then run this again to go on"
        ) from None
    table = pd.DataFrame(rows)
    table.attrs["title"] = f"{source.title} ({source.name}) in {folder}"
    if slides and not source.archive:
        table.attrs["title"] += f", {len(slides)} slides; the study leaves out the others"
    return table


def _files_of(source: Source, slides: Sequence[str] = ()) -> pd.DataFrame:
    """The rows of FILES of a source: its label files and ``slides``, or all slides if empty.

    Raises DownloadError for slides that the source doesn't have.
    """
    files = pd.read_csv(FILES, dtype=str, keep_default_na=False).query("source == @source.name")
    names = files["file"].map(lambda file: source.bare(Path(file).name))
    names = names.where(files["kind"] == "slide")
    wanted = [source.bare(name) for name in slides]
    if unknown := sorted(set(wanted) - set(names)):
        raise DownloadError(
            f"source {source.name!r} has no slides {unknown}; correct data.slides in the study"
        )
    return files[names.isna() | names.isin(wanted)] if slides else files


def _fetch(source: Source, folder: Path, verify: bool, slides: Sequence[str]) -> list[File]:
    files = _files_of(source, slides)
    record = _read(folder / RECORD)
    places = {wanted.file: _place(wanted, source, folder) for wanted in files.itertuples()}
    expected = _published(files, folder, {file for file in record if places.get(file)})
    expected |= {
        file: Published(facts["bytes"], facts["checksum"])
        for file, facts in record.items()
        if places.get(file)
    }
    missing = [wanted for wanted in files.itertuples() if not places[wanted.file]]
    total = sum(expected[wanted.file].n_bytes or 0 for wanted in missing)
    n_there = sum(n_bytes_of(part_of(folder / wanted.file)) for wanted in missing)
    free = shutil.disk_usage(folder).free
    if total - n_there > free:
        raise DownloadError(
            f"{folder}: {(total - n_there) / 1e9:.2f} GB are still to be fetched, {free / 1e9:.2f}"
            " GB are free there; free more, or name a folder on another disk with DATA=folder"
        )
    rows = []
    bar = tqdm(total=total or None, initial=n_there, unit="B", unit_scale=True, disable=not missing)
    with bar:
        for wanted in files.itertuples():
            if place := places[wanted.file]:
                rows.append(_judge(wanted, place, expected[wanted.file], verify))
            else:
                bar.set_description(wanted.file)
                rows.append(_fetch_one(wanted, expected[wanted.file], folder, record, bar))
    return rows


def _read(file: Path) -> dict:
    return store.read_json(file) if file.is_file() else {}


def _published(files: pd.DataFrame, folder: Path, known: set[str]) -> dict[str, Published]:
    """What is published of the rows of FILES that aren't ``known``, by file.

    A host without a list that can be read is named and stops nothing: its files are fetched, and
    their checksums are recorded.
    """
    facts = {
        row.file: Published(int(row.bytes), f"sha256:{row.sha256}") if row.sha256 else Published()
        for row in files.itertuples()
    }
    lists, unknown = _read(folder / LISTS), files[~files["file"].isin(known)]
    for (host, record), rows in unknown[unknown["sha256"] == ""].groupby(["host", "record"]):
        try:
            if record not in lists:
                lists[record] = (_of_zenodo if host == "zenodo" else _of_figshare)(record)
                store.write_json(folder / LISTS, lists)
        except (requests.RequestException, LookupError, TypeError, ValueError) as error:
            tqdm.write(
                f"{host} {record}: no lengths and checksums ({error}); what comes is recorded"
            )
            continue
        for row in rows.itertuples():
            facts[row.file] = Published(*lists[record].get(row.id, ()))
    return facts


def _get(client: requests.Session, url: str) -> Any:
    response = client.get(url, timeout=60)
    response.raise_for_status()
    return response.json()


def _of_zenodo(record: str) -> dict[str, tuple[int, str]]:
    """Length and checksum of a record's files, by name."""
    files = _get(session(), f"{HOSTS['zenodo']}/api/records/{record}")["files"]
    return {file["key"]: (file["size"], file["checksum"]) for file in files}


def _of_figshare(collection: str) -> dict[str, tuple[int, str]]:
    """Length and checksum of the files of a collection's articles, by id."""
    client, api = session((*TRY_AGAIN, 403)), f"{HOSTS['figshare_api']}/v2"  # 403: asked too often
    # Beyond one page figshare repeats some articles and leaves others out.
    articles = _get(client, f"{api}/collections/{collection}/articles?page_size=1000")
    facts = {}
    for article in tqdm({entry["id"] for entry in articles}, desc="checksums", leave=False):
        for file in _get(client, f"{api}/articles/{article}/files?page_size=1000"):
            md5 = file.get("supplied_md5") or file.get("computed_md5")
            facts[str(file["id"])] = (file["size"], md5 and f"md5:{md5}")
    return facts


def _judge(wanted: Any, path: Path, expected: Published, verify: bool) -> File:
    """The row of a file that is there, under its own name or that of another edition."""
    n_bytes, seen = path.stat().st_size, expected.checksum
    missing = ""
    how = "length as expected" if expected.n_bytes else "nothing published to check it by"
    if path.name != Path(wanted.file).name:
        how, seen = f"another edition: {path.name}", ""
    elif expected.n_bytes not in (None, n_bytes):
        missing = f"it has {n_bytes:,} bytes, expected are {expected.n_bytes:,}"
    elif verify and expected.checksum:
        how, seen = "length and checksum as expected", checksum_of(path, expected.checksum)
        if seen != expected.checksum:
            missing = f"its checksum is {seen}, expected is {expected.checksum}"
    if not missing:
        return File(wanted.file, wanted.kind, "there", how, n_bytes, seen)
    remedy = f"{path} is left as it is: remove it, then run this again"
    return File(wanted.file, wanted.kind, "missing", missing, n_bytes, remedy=remedy)


def _place(wanted: Any, source: Source, folder: Path) -> Path | None:
    """Where the loader would find the file, under any of its names; None where it is missing."""
    path = folder / wanted.file
    if wanted.kind == "slide":
        place = place_of(source, folder, path.name)
        return folder / place if place else None
    places = [path]
    for patterns in (*source.beside, source.main_files):
        alike = [pattern for pattern in patterns if pattern.endswith(path.suffix)]
        if any(fnmatch.fnmatch(wanted.file, pattern) for pattern in alike):
            places += [file for pattern in alike for file in sorted(folder.glob(pattern))]
    return next((place for place in places if place.is_file()), None)


def _fetch_one(wanted: Any, expected: Published, folder: Path, record: dict, bar: tqdm) -> File:
    """Fetch a row of FILES, and write what came into the record."""
    part = part_of(folder / wanted.file)
    try:
        facts = transfer(_urls(wanted), part, expected, bar)
    except DownloadError as error:
        remedy = (
            f"run this again to go on; or fetch it with a browser from {_urls(wanted)[0]} and lay"
            f" it there as {wanted.file}"
        )
        return File(wanted.file, wanted.kind, "missing", str(error), remedy=remedy)
    record[wanted.file] = facts
    store.write_json(folder / RECORD, record)
    part.replace(folder / wanted.file)
    how = "checksum as published" if facts["checksum_is"] == "published" else ONLY_SEEN
    return File(wanted.file, wanted.kind, "fetched", how, facts["bytes"], facts["checksum"])


def _fetch_archive(source: Source, folder: Path) -> File:
    """Fetch the one archive of a source unless its label file is there, and lay its files in place.

    The host doesn't promise the same archive for ever: zip's own checksums are what is checked.
    """
    archive, label_file = source.archive, source.main_files[0]
    if (folder / label_file).is_file():
        reason = "its label file is there; to fetch all again, remove it"
        n_bytes = sum(file.stat().st_size for file in below(folder))
        return File(label_file, "archive", "there", reason, n_bytes)
    if below(folder) and not (folder / RECORD).is_file():
        raise DownloadError(
            f"{folder} is there but holds no {label_file}; empty it, or name another folder for"
            f" {source.title}"
        )
    url = f"{HOSTS['codeload']}/{archive.repository}/zip/{archive.commit}"
    part = part_of(folder / "archive.zip")
    try:
        with tqdm(unit="B", unit_scale=True, desc=source.title) as bar:
            facts = transfer([url], part, Published(), bar)
        with zipfile.ZipFile(part) as content:
            files = {
                match[1]: content.read(name)
                for name in content.namelist()
                if (match := re.fullmatch(rf"[^/]+/({archive.kept})", name))
            }
        if label_file not in files or len(files) == 1:
            raise DownloadError(f"the archive lacks {label_file}, or all else")
    except (DownloadError, zipfile.BadZipFile) as error:
        raise DownloadError(
            f"{url}: {error}; run it again, or fetch it by hand and name its folder: git clone "
            f"https://github.com/{archive.repository}, then checkout {archive.commit[:7]}"
        ) from None
    store.write_json(folder / RECORD, facts)
    # The label file comes last: with it, the data pass for whole.
    for name in sorted(files, key=label_file.__eq__):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        partial = part_of(folder / name)
        partial.write_bytes(files[name])
        partial.replace(folder / name)
    part.unlink()
    return File(label_file, "archive", "fetched", ONLY_SEEN, facts["bytes"], facts["checksum"])


def summary(table: pd.DataFrame) -> str:
    """What `fetch` did, as text: how many files there are and how they were checked, and what is
    missing.
    """
    is_missing = table["state"] == "missing"
    counts = table[~is_missing].groupby(["state", "kind", "reason"], sort=False).size()
    lines = [table.attrs["title"], ""]
    lines += [f"{state}: {n} {kind}s, {reason}" for (state, kind, reason), n in counts.items()]
    for row in table[is_missing].itertuples():
        lines += [f"missing: {row.file}: {row.reason}", f"    {row.remedy}"]
    end = f"everything is there, {table['bytes'].sum() / 1e9:.3f} GB in {len(table)} files"
    if is_missing.any():
        end = f"{is_missing.sum()} of {len(table)} files are missing"
    return "\n".join([*lines, "", end])
