"""Data sets that are fetched for the user: only what is missing, each file checked, recorded, then given its name.

Which files a source needs and where they lie stands in ``data/downloads.csv``. ``downloaded.json`` in the data folder
records each file that came: address, length, checksum, date, and whether the checksum was a published one.
"""

import errno
import fnmatch
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pandas as pd
from tqdm.auto import tqdm

from mfcore import store
from mfcore.data.downloads_listing import published
from mfcore.data.downloads_transfer import DownloadError, FileError, Published, checksum_of, n_bytes_of, part_of, transfer
from mfcore.data.labels.source import Source
from mfcore.data.labels.table import SLIDE_FOLDERS
from mfcore.store.files import below

HOSTS = {
    "zenodo": "https://zenodo.org",
    "figshare": "https://ndownloader.figshare.com",  # figshare.com/ndownloader lets only browsers in
    "figshare_api": "https://api.figshare.com",
    "github": "https://github.com",
    "codeload": "https://codeload.github.com",
}
RECORD = "downloaded.json"
FILES = Path(__file__).resolve().parents[2] / "data" / "downloads.csv"
COLUMNS = ("file", "kind", "state", "bytes", "checksum", "reason", "remedy")
ONLY_SEEN = "no checksum published, the one seen is recorded"
N_IN_VAIN = 3  # files in a row that a host fails to give, after which it isn't asked for more


class Wanted(NamedTuple):
    """A file that a source needs: where it goes, what it is, and where it comes from, as the list FILES says."""

    file: str
    kind: str
    host: str = ""
    record: str = ""
    id: str = ""

    def row(self, state: str, reason: str, n_bytes: int = 0, checksum: str = "", remedy: str = "") -> dict:
        """The row of the file in the table that `fetch` returns."""
        return dict(zip(COLUMNS, (self.file, self.kind, state, n_bytes, checksum, reason, remedy), strict=True))


def _urls(want: Wanted, hosts: Mapping[str, str]) -> list[str]:
    """The addresses of a file, the first to be tried first."""
    if want.host == "zenodo":  # the address in Zenodo's own list knows no ranges
        return [f"{hosts['zenodo']}/records/{want.record}/files/{quote(want.id)}?download=1"]
    if want.host == "figshare":
        return [f"{hosts['figshare']}/files/{want.id}", f"{hosts['figshare_api']}/v2/file/download/{want.id}"]
    repository, _, commit = want.record.rpartition("/")
    return [f"{hosts['github']}/{repository}/raw/{commit}/{quote(want.id)}"]


def fetch(source: Source, folder: str | Path, hosts: Mapping[str, str] = HOSTS, verify: bool = False) -> pd.DataFrame:
    """Fetch what ``folder`` lacks of a source's data; a table with a row a file, columns COLUMNS, for `summary`.

    state: "there" (before), "fetched" (now) or "missing", with reason and remedy; one file's failure doesn't stop the
    others. A file that was recorded is there while its length, with ``verify`` its checksum too, is the recorded one, else
    it is fetched anew. One laid there by hand is never overwritten. Raises DownloadError where nothing can be begun: a
    source with nothing to fetch, too little disk space, another fetch at work on the folder.
    """
    folder = Path(folder)
    if source.is_synthetic:
        raise DownloadError(f"source {source.name!r}: its data are made, not fetched: make paper makes them")
    if not source.is_published:
        raise DownloadError(
            f"source {source.name!r}: its slides are your own: lay them into a folder with {' or '.join(source.main_files)}, "
            "beside it or in images/, and name it: make paper DATA=folder"
        )
    try:
        with store.alone(folder, "fetch"):
            rows = (_fetch_archive if source.archive else _fetch)(source, folder, hosts, verify)
    except store.StoreError as error:
        raise DownloadError(str(error)) from None
    except OSError as error:
        raise DownloadError(
            f"{error.filename or folder}: {error.strerror or error}; make it writable, or name another folder with DATA=folder"
        ) from None
    table = pd.DataFrame(rows, columns=COLUMNS)
    table.attrs["title"] = f"{source.title} ({source.name}) in {folder}"
    return table


def _fetch(source: Source, folder: Path, hosts: Mapping[str, str], verify: bool) -> list[dict]:
    listed = pd.read_csv(FILES, dtype=str, keep_default_na=False).query("source == @source.name")
    wanted = [Wanted(*line) for line in listed[list(Wanted._fields)].itertuples(index=False, name=None)]
    record, rows = _record_in(folder), {}
    for want in wanted:
        facts = record.get(want.file)
        rows[want.file] = facts and _recorded(want, folder, facts["bytes"], facts["checksum"], verify)
    unknown = listed[[rows[file] is None for file in listed["file"]]]
    said = dict.fromkeys(listed["file"], Published()) | published(unknown, folder, hosts)
    for want in wanted:
        rows[want.file] = rows[want.file] or _by_hand(want, source, folder, said[want.file], verify)
    missing = [want for want in wanted if rows[want.file] is None]
    _check_space(missing, said, folder)
    rows |= {row["file"]: row for row in _all_of(missing, said, folder, hosts, record)}
    return list(rows.values())


def _record_in(folder: Path) -> dict:
    return store.read_json(folder / RECORD) if (folder / RECORD).is_file() else {}


def _recorded(want: Wanted, folder: Path, n_bytes: int, checksum: str, verify: bool) -> dict | None:
    """The row of a file that was fetched before; None where it is gone. One that isn't any more as recorded is removed."""
    path = folder / want.file
    if not path.is_file():
        return None
    if path.stat().st_size != n_bytes:
        wrong = f"it has {path.stat().st_size:,} bytes, recorded are {n_bytes:,}"
    elif verify and checksum_of(path, checksum) != checksum:
        wrong = "its checksum isn't the recorded one"
    else:
        how = "length and checksum as recorded" if verify else "length as recorded"
        return want.row("there", how, n_bytes, checksum)
    tqdm.write(f"{want.file}: {wrong}; it is fetched anew")
    path.unlink()
    return None


def _by_hand(want: Wanted, source: Source, folder: Path, said: Published, verify: bool) -> dict | None:
    """The row of a file laid there by hand, at any place and in any edition that the loader takes; None where there is none."""
    path = next((file for file in _places(want, source, folder) if file.is_file()), None)
    if path is None:
        return None
    n_bytes = path.stat().st_size
    if path.name != Path(want.file).name:
        return want.row("there", f"laid there by hand as {path.relative_to(folder).as_posix()}", n_bytes)
    if said.n_bytes not in (None, n_bytes):
        wrong = f"laid there by hand with {n_bytes:,} bytes, published are {said.n_bytes:,}"
    elif verify and said.checksum and checksum_of(path, said.checksum) != said.checksum:
        wrong = f"laid there by hand, its checksum isn't the published one, {said.checksum}"
    else:
        how = "laid there by hand" + (", length as published" if said.n_bytes else "")
        return want.row("there", how, n_bytes)
    remedy = f"{path} is left as it is: move it away, then run this again"
    return want.row("missing", wrong, n_bytes, remedy=remedy)


def _places(want: Wanted, source: Source, folder: Path) -> Iterator[Path]:
    """All places and names under which the loader would find the file, its own first."""
    path = folder / want.file
    yield path
    if want.kind == "slide":
        suffixes = (path.suffix, *source.editions)
        yield from (folder / base / f"{path.stem}{suffix}" for suffix in suffixes for base in SLIDE_FOLDERS)
        return
    for patterns in (*source.beside, source.main_files):
        alike = [pattern for pattern in patterns if pattern.endswith(path.suffix)]
        if any(fnmatch.fnmatch(want.file, pattern) for pattern in alike):
            yield from (file for pattern in alike for file in sorted(folder.glob(pattern)))


def _check_space(missing: Sequence[Wanted], said: Mapping[str, Published], folder: Path) -> None:
    """Refuse to begin what can't be finished, as far as lengths are known."""
    needed = sum(max(0, (said[want.file].n_bytes or 0) - n_bytes_of(part_of(folder / want.file))) for want in missing)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{folder}: {needed / 1e9:.2f} GB are still to be fetched, {free / 1e9:.2f} GB are free there; free "
            f"{(needed - free) / 1e9:.2f} GB, or name a folder on another disk with DATA=folder"
        )


def _all_of(
    missing: Sequence[Wanted], said: Mapping[str, Published], folder: Path, hosts: Mapping[str, str], record: dict
) -> Iterator[dict]:
    """Fetch one file after the other, under one bar over all their bytes; yields each one's row."""
    if not missing:
        return
    lengths = [said[want.file].n_bytes for want in missing]
    in_vain, stopped = Counter(), {}
    with tqdm(
        total=None if None in lengths else sum(lengths),
        initial=sum(n_bytes_of(part_of(folder / want.file)) for want in missing),
        unit="B",
        unit_scale=True,
        smoothing=0.05,  # the remaining time is that of hours, not of the last second
    ) as bar:
        for n, want in enumerate(missing, start=1):
            bar.set_description(f"file {n} of {len(missing)}")
            bar.set_postfix_str(want.file)
            page = _urls(want, HOSTS)[0]
            remedy = f"run this again to go on; or fetch it with a browser from {page} and lay it there as {want.file}"
            try:
                if want.host in stopped:
                    raise FileError(f"not tried, since {stopped[want.host]}")
                part = part_of(folder / want.file)
                facts = transfer(_urls(want, hosts), part, said[want.file], bar)
                record[want.file] = facts
                store.write_json(folder / RECORD, record)  # before the name: else it would pass for laid by hand
                part.replace(folder / want.file)
            except FileError as error:
                in_vain[want.host] += error.of_host
                if in_vain[want.host] == N_IN_VAIN:
                    stopped[want.host] = f"{want.host} failed {N_IN_VAIN} times in a row: {error}"
                yield want.row("missing", str(error), remedy=remedy)
            except OSError as error:
                reason = f"{error.filename or want.file}: {error.strerror or error}"
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    remedy = "make space, then run this again to go on"
                    stopped = dict.fromkeys(HOSTS, f"the disk was full: {reason}")
                yield want.row("missing", reason, remedy=remedy)
            else:
                in_vain[want.host] = 0
                how = "checksum as published" if facts["checksum_is"] == "published" else ONLY_SEEN
                yield want.row("fetched", how, facts["bytes"], facts["checksum"])


def _fetch_archive(source: Source, folder: Path, hosts: Mapping[str, str], verify: bool) -> list[dict]:
    """Fetch the one archive of a source where files of it are missing, and lay these files in their places.

    The record holds each file's length and SHA-256. The host doesn't promise the same archive for ever, so that the archive's
    own checksums are what is checked.
    """
    archive, record = source.archive, _record_in(folder)
    label_file, names = source.main_files[0], [path.relative_to(folder).as_posix() for path in below(folder)]
    is_there = label_file in names
    if names and not (is_there or record):
        raise DownloadError(f"{folder} is there but holds no {label_file}; empty it, or name another folder for {source.title}")
    if is_there and "files" not in record:
        kept = [name for name in names if re.fullmatch(archive.kept, name)]
        return [_in_archive(name).row("there", "laid there by hand", (folder / name).stat().st_size) for name in kept]
    rows = {
        name: _recorded(_in_archive(name), folder, facts["bytes"], f"sha256:{facts['sha256']}", verify)
        for name, facts in record.get("files", {}).items()
    }
    if all(rows.values()) and rows:
        return list(rows.values())
    url = f"{hosts['codeload']}/{archive.repository}/zip/{archive.commit}"
    part, aside = part_of(folder / "archive.zip"), folder / ".unpacked"
    try:
        with tqdm(unit="B", unit_scale=True, initial=n_bytes_of(part), desc=source.title) as bar:
            facts = transfer([url], part, Published(), bar)
        files = _unpack(part, archive.kept, aside)
        if label_file not in files or len(files) == 1:
            raise FileError(f"the archive lacks {label_file}, or all else")
        missing = [name for name in files if not rows.get(name)]
        store.write_json(folder / RECORD, facts | {"files": files})
        for name in sorted(missing, key=label_file.__eq__):  # the label file last: with it, the data pass for whole
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (aside / name).replace(folder / name)
        part.unlink()
    except (FileError, zipfile.BadZipFile) as error:
        raise DownloadError(
            f"{url}: {error}; run it again, or fetch it by hand and name its folder: git clone "
            f"https://github.com/{archive.repository}, then checkout {archive.commit[:7]}"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return [
        rows.get(name) or _in_archive(name).row("fetched", ONLY_SEEN, facts["bytes"], f"sha256:{facts['sha256']}")
        for name, facts in files.items()
    ]


def _in_archive(name: str) -> Wanted:
    return Wanted(name, "patch image" if name.endswith(".png") else "label file")


def _unpack(archive: Path, kept: str, folder: Path) -> dict[str, dict]:
    """Unpack what is kept of an archive, each file compared with the zip's checksum of it; returns length and SHA-256."""
    files = {}
    with zipfile.ZipFile(archive) as content:
        for inside in content.namelist():
            if match := re.fullmatch(rf"[^/]+/({kept})", inside):
                target = folder / match[1]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read(inside))
                files[match[1]] = {"bytes": target.stat().st_size, "sha256": store.file_sha256(target)}
    return files


def summary(table: pd.DataFrame) -> str:
    """What `fetch` found and did, as text: counts and GB by kind, how the files that are there were judged, what is missing."""
    titles = {"total": "wanted", "there": "there before", "fetched": "fetched now", "missing": "missing"}
    is_there, kinds = table["state"] != "missing", table["kind"] + "s"
    counts = pd.crosstab(kinds, table["state"], margins=True, margins_name="total").reindex(columns=list(titles), fill_value=0)
    size = (table["bytes"] * is_there).groupby(kinds).sum() / 1e9
    counts["GB"] = [*size, size.sum()]
    counts = counts.rename(columns=titles).rename_axis(index=None, columns=None)
    lines = [table.attrs["title"], "", counts.to_string(float_format="{:.3f}".format), ""]
    judged = table[is_there].groupby(["state", "reason"], sort=False).size()
    lines += [f"{state}: {n} {reason}" for (state, reason), n in judged.items()]
    for row in table[~is_there].itertuples():
        lines += [f"missing: {row.file}: {row.reason}", f"    {row.remedy}"]
    n_missing = int((~is_there).sum())
    end = f"{n_missing} of {len(table)} files are missing" if n_missing else f"everything is there, {len(table)} files"
    return "\n".join([*lines, "", end])
