"""Data sets that are fetched for the user: only what is missing, each file checked, recorded, then given its name.

Which files a source needs and where they lie stands in ``data/downloads.csv``. ``downloaded.json`` in the data folder
records each file that came: address, length, checksum, ETag, date, and whether the checksum was a published one.
"""

import fnmatch
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlsplit

import pandas as pd
import requests
from tqdm.auto import tqdm

from mfcore import store
from mfcore.data.downloads_amibr import GITHUB, amibr, amibr_rows
from mfcore.data.downloads_listing import published
from mfcore.data.downloads_transfer import (
    PATIENCE,
    DiskFullError,
    DownloadError,
    FileError,
    Part,
    Patience,
    Published,
    RefusedError,
    Whole,
    checksum_of,
    open_session,
    transfer,
)
from mfcore.data.labels.source import Source
from mfcore.data.labels.table import SLIDE_FOLDERS
from mfcore.study.config import Study

__all__ = ["COLUMNS", "GITHUB", "HOSTS", "PATIENCE", "DownloadError", "Patience", "amibr", "fetch", "summary"]

HOSTS = {
    "zenodo": "https://zenodo.org",
    "figshare": "https://ndownloader.figshare.com",  # figshare.com/ndownloader lets only browsers in
    "figshare_api": "https://api.figshare.com",
    "github": "https://github.com",
    "codeload": GITHUB,
}
RECORD = "downloaded.json"
FILES = Path(__file__).resolve().parents[2] / "data" / "downloads.csv"
COLUMNS = ("file", "kind", "state", "bytes", "checksum", "reason", "remedy")
N_IN_VAIN = 3  # files in a row that a host fails to give, after which it isn't asked for more


@dataclass(frozen=True)
class _Wanted:
    """One file of the list: where it goes, what it is, where it comes from."""

    file: str
    kind: str
    host: str
    record: str
    id: str

    def urls(self, hosts: Mapping[str, str]) -> list[str]:
        """Its addresses, the first to be tried first."""
        if self.host == "zenodo":  # the address in Zenodo's own list knows no ranges
            return [f"{hosts['zenodo']}/records/{self.record}/files/{quote(self.id)}?download=1"]
        if self.host == "figshare":
            return [f"{hosts['figshare']}/files/{self.id}", f"{hosts['figshare_api']}/v2/file/download/{self.id}"]
        repository, _, commit = self.record.rpartition("/")
        return [f"{hosts['github']}/{repository}/raw/{commit}/{quote(self.id)}"]

    @property
    def page(self) -> str:
        """Where a person gets it with a browser."""
        if self.host == "figshare":
            return f"https://figshare.com/ndownloader/files/{self.id}"
        return self.urls(HOSTS)[0]


def fetch(
    study: Study,
    folder: str | Path,
    hosts: Mapping[str, str] = HOSTS,
    verify: bool = False,
    patience: Patience = PATIENCE,
) -> pd.DataFrame:
    """Fetch what ``folder`` lacks of the study's data; a table with a row a file, columns COLUMNS, for `summary`.

    state: "there" (before), "fetched" (now) or "missing", whose reason and remedy are told; one file's failure doesn't stop
    the others. A file that was recorded is there while its length, with ``verify`` its checksum too, is the recorded one,
    else it is fetched anew. One laid there by hand is never overwritten. Raises DownloadError where nothing can be begun:
    a source with nothing to fetch, too little disk space, another fetch at work on the folder.
    """
    folder, source = Path(folder), study.source
    if not source.is_published:
        files, paper = " or ".join(source.main_files), f"make paper STUDY={study.name}"
        how = (
            f"its data are made, not fetched: {paper}"
            if source.is_synthetic
            else (
                f"its slides are your own: lay them into a folder with {files}, beside it or in images/, and name it: "
                f"{paper} DATA=folder"
            )
        )
        raise DownloadError(f"study {study.name!r}: {how}")
    if source.archive:
        rows = amibr_rows(folder, hosts["codeload"], verify, patience)
        return _named(pd.DataFrame(rows, columns=COLUMNS), study, folder)
    listed = pd.read_csv(FILES, dtype=str, keep_default_na=False).query("source == @source.name")
    wanted = [_Wanted(row.file, row.kind, row.host, row.record, row.id) for row in listed.itertuples()]
    try:
        with store.alone(folder, "fetch"):
            return _named(_fetch(wanted, listed, source, folder, hosts, verify, patience), study, folder)
    except store.StoreError as error:
        raise DownloadError(str(error)) from None
    except OSError as error:
        raise DownloadError(
            f"{error.filename or folder}: {error.strerror or error}; make it writable, or name another folder with DATA=folder"
        ) from None


def _named(table: pd.DataFrame, study: Study, folder: Path) -> pd.DataFrame:
    table.attrs["title"] = f"{study.name} ({study.data.source}) in {folder}"
    return table


def _fetch(
    wanted: list[_Wanted],
    listed: pd.DataFrame,
    source: Source,
    folder: Path,
    hosts: Mapping[str, str],
    verify: bool,
    patience: Patience,
) -> pd.DataFrame:
    record = store.read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    rows = {want.file: _recorded(want, folder, record, verify) for want in wanted}
    unknown = listed[[rows[file] is None or rows[file]["state"] != "there" for file in listed["file"]]]
    said, notes = published(unknown, folder, hosts, patience) if len(unknown) else ({}, [])
    for note in notes:
        tqdm.write(note)
    for want in wanted:
        if rows[want.file] is None:
            rows[want.file] = _by_hand(want, source, folder, said.get(want.file, Published()), verify)
    missing = [want for want in wanted if rows[want.file] is None or rows[want.file]["state"] == "anew"]
    for want in missing:
        if rows[want.file]:
            tqdm.write(f"{want.file}: {rows[want.file]['reason']}; it is fetched anew")
    _check_space(missing, said, folder)
    for want, row in _all_of(missing, said, folder, hosts, record, patience):
        rows[want.file] = row
    return pd.DataFrame([rows[want.file] for want in wanted], columns=COLUMNS)


def _row(want: _Wanted, state: str, n_bytes: int = 0, checksum: str = "", reason: str = "", remedy: str = "") -> dict:
    return dict(zip(COLUMNS, (want.file, want.kind, state, n_bytes, checksum, reason, remedy), strict=True))


def _recorded(want: _Wanted, folder: Path, record: Mapping, verify: bool) -> dict | None:
    """The row of a file that was fetched before, "anew" where it isn't any more what it was; None for any other."""
    path, facts = folder / want.file, record.get(want.file)
    if facts is None or not path.is_file():
        return None
    n_bytes = path.stat().st_size
    if n_bytes != facts["bytes"]:
        return _row(want, "anew", reason=f"it has {n_bytes:,} bytes, recorded are {facts['bytes']:,}")
    if verify and checksum_of(path, facts["checksum"].partition(":")[0]) != facts["checksum"]:
        return _row(want, "anew", reason="its checksum isn't the recorded one")
    how = "length and checksum as recorded" if verify else "length as recorded"
    return _row(want, "there", n_bytes, facts["checksum"], how)


def _by_hand(want: _Wanted, source: Source, folder: Path, said: Published, verify: bool) -> dict | None:
    """The row of a file laid there by hand, at any place and in any edition that the loader takes; None where there is none."""
    path = folder / want.file
    if not path.is_file():
        other = next((file for file in _elsewhere(want, source, folder) if file.is_file()), None)
        if other is None:
            return None
        if other.name != path.name:
            name = other.relative_to(folder).as_posix()
            return _row(want, "there", other.stat().st_size, "", f"laid there by hand as {name}")
        path = other
    n_bytes, wrong = path.stat().st_size, ""
    if said.n_bytes not in (None, n_bytes):
        wrong = f"laid there by hand with {n_bytes:,} bytes, published are {said.n_bytes:,}"
    elif verify and said.checksum and checksum_of(path, said.checksum.partition(":")[0]) != said.checksum:
        wrong = f"laid there by hand, its checksum isn't the published one, {said.checksum}"
    if wrong:
        return _row(want, "missing", n_bytes, "", wrong, f"{path} is left as it is: move it away, then run this again")
    return _row(want, "there", n_bytes, "", "laid there by hand" + (", length as published" if said.n_bytes else ""))


def _elsewhere(want: _Wanted, source: Source, folder: Path) -> Iterator[Path]:
    """Other places and names under which the loader would find the file."""
    path = Path(want.file)
    if want.kind == "slide":
        suffixes = (path.suffix, *source.editions)
        yield from (folder / base / f"{path.stem}{suffix}" for suffix in suffixes for base in SLIDE_FOLDERS)
        return
    for patterns in (*source.beside, source.main_files):
        alike = [pattern for pattern in patterns if pattern.endswith(path.suffix)]
        if any(fnmatch.fnmatch(want.file, pattern) for pattern in alike):
            yield from (file for pattern in alike for file in sorted(folder.glob(pattern)))


def _check_space(missing: list[_Wanted], said: Mapping[str, Published], folder: Path) -> None:
    """Refuse to begin what can't be finished, as far as lengths are known."""
    needed = sum(max(0, (said.get(want.file, Published()).n_bytes or 0) - Part(folder / want.file).n_bytes) for want in missing)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{folder}: {needed / 1e9:.2f} GB are still to be fetched, {free / 1e9:.2f} GB are free there; free "
            f"{(needed - free) / 1e9:.2f} GB, or name a folder on another disk with DATA=folder"
        )


def _all_of(
    missing: list[_Wanted],
    said: Mapping[str, Published],
    folder: Path,
    hosts: Mapping[str, str],
    record: dict,
    patience: Patience,
) -> Iterator[tuple[_Wanted, dict]]:
    """Fetch one file after the other, under one bar over all their bytes; yields each one's row."""
    if not missing:
        return
    lengths = [said.get(want.file, Published()).n_bytes for want in missing]
    in_vain, why, is_full = Counter(), {}, ""
    with tqdm(
        total=None if None in lengths else sum(lengths),
        initial=sum(Part(folder / want.file).n_bytes for want in missing),
        unit="B",
        unit_scale=True,
        smoothing=0.05,  # the remaining time is that of hours, not of the last second
    ) as bar:
        session = open_session(patience, bar)
        for n, want in enumerate(missing, start=1):
            bar.set_description(f"file {n} of {len(missing)}")
            remedy = f"run this again to go on; or fetch it with a browser from {want.page} and lay it there as {want.file}"
            try:
                if is_full:
                    raise FileError(f"not tried, since the disk was full: {is_full}")
                if in_vain[want.host] >= N_IN_VAIN:
                    raise FileError(f"not tried, since {want.host} failed {N_IN_VAIN} times in a row: {why[want.host]}")
                whole = _one(session, want, said.get(want.file, Published()), folder, hosts, record, patience, bar)
                in_vain[want.host] = 0
                state = "checksum as published" if whole.checked else "no checksum published, the one seen is recorded"
                yield want, _row(want, "fetched", whole.n_bytes, whole.checksum, state)
            except DiskFullError as error:
                is_full = str(error)
                yield want, _row(want, "missing", reason=is_full, remedy="make space, then run this again to go on")
            except FileError as error:
                if error.of_host:
                    in_vain[want.host] += 1
                    why[want.host] = str(error)
                yield want, _row(want, "missing", reason=str(error), remedy=remedy)
        bar.set_postfix_str("")
        session.close()


def _one(
    session: requests.Session,
    want: _Wanted,
    said: Published,
    folder: Path,
    hosts: Mapping[str, str],
    record: dict,
    patience: Patience,
    bar: tqdm,
) -> Whole:
    """Fetch one file from the first of its addresses that gives it, record it and give it its name."""
    part, reasons, of_host = Part(folder / want.file), {}, False
    for url in want.urls(hosts):
        bar.set_postfix_str(want.file)
        try:
            whole = transfer(session, url, part, said, patience, bar)
            break
        except FileError as error:
            if isinstance(error, RefusedError):
                raise
            reasons.setdefault(str(error), []).append(urlsplit(url).netloc)
            of_host = of_host or error.of_host
    else:
        raise FileError("; ".join(f"{why} ({', '.join(places)})" for why, places in reasons.items()), of_host)
    record[want.file] = {
        "url": whole.url,
        "bytes": whole.n_bytes,
        "checksum": whole.checksum,
        "checksum_is": "published" if whole.checked else "only seen",
        "etag": whole.etag,
        "downloaded": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    store.write_json(folder / RECORD, record)  # before the name: what is named without a record passes for laid by hand
    part.keep()
    return whole


def summary(table: pd.DataFrame) -> str:
    """What `fetch` found and did, as text: counts and GB by kind, how the files that are there were judged, what is missing."""
    lines = [table.attrs["title"], "", f"{'':<12}{'wanted':>8}{'there before':>14}{'fetched now':>13}{'missing':>9}{'GB':>10}"]
    groups = [(kind, rows) for kind, rows in table.groupby("kind", sort=False)]
    for kind, rows in [*groups, ("total", table)]:
        there, fetched, missing = (int((rows["state"] == state).sum()) for state in ("there", "fetched", "missing"))
        size = rows.loc[rows["state"] != "missing", "bytes"].sum() / 1e9
        name = kind if kind == "total" else f"{kind}s"
        lines.append(f"{name:<12}{len(rows):>8}{there:>14}{fetched:>13}{missing:>9}{size:>10.3f}")
    judged = table[table["state"] != "missing"].groupby(["state", "reason"], sort=False).size()
    lines += ["", *(f"{state}: {n} {reason}" for (state, reason), n in judged.items())] if len(judged) else []
    missing = table[table["state"] == "missing"]
    lines += [""] if len(missing) else []
    for row in missing.itertuples():
        lines += [f"missing: {row.file}: {row.reason}", f"    {row.remedy}"]
    end = f"{len(missing)} of {len(table)} files are missing" if len(missing) else f"everything is there, {len(table)} files"
    return "\n".join([*lines, "", end])
