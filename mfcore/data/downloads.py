"""Data sets that are fetched for the user: only what is missing, each file checked, recorded, then
given its name.

Which files a source needs and where they lie stands in ``data/downloads.csv``. ``downloaded.json``
in the data folder records each file that came: address, length, checksum, date, and whether the
checksum was a published one.
"""

import fnmatch
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pandas as pd
from tqdm.auto import tqdm

from mfcore import store
from mfcore.data.downloads_listing import published
from mfcore.data.downloads_transfer import (
    DownloadError,
    Published,
    checksum_of,
    n_bytes_of,
    part_of,
    transfer,
)
from mfcore.data.labels.source import Source
from mfcore.data.labels.table import SLIDE_FOLDERS
from mfcore.store.files import below

__all__ = ["COLUMNS", "HOSTS", "DownloadError", "fetch", "summary"]

HOSTS = {
    "zenodo": "https://zenodo.org",
    # figshare.com/ndownloader lets only browsers in
    "figshare": "https://ndownloader.figshare.com",
    "figshare_api": "https://api.figshare.com",
    "github": "https://github.com",
    "codeload": "https://codeload.github.com",
}
RECORD = "downloaded.json"
FILES = Path(__file__).resolve().parents[2] / "data" / "downloads.csv"
COLUMNS = ("file", "kind", "state", "bytes", "checksum", "reason", "remedy")
ONLY_SEEN = "no checksum published, the one seen is recorded"


class Wanted(NamedTuple):
    """A file that a source needs: where it goes, what it is, and where it comes from, as the list
    FILES says.
    """

    file: str
    kind: str
    host: str = ""
    record: str = ""
    id: str = ""

    def row(
        self, state: str, reason: str, n_bytes: int = 0, checksum: str = "", remedy: str = ""
    ) -> dict:
        """The row of the file in the table that `fetch` returns."""
        return dict(
            zip(
                COLUMNS,
                (self.file, self.kind, state, n_bytes, checksum, reason, remedy),
                strict=True,
            )
        )


def _urls(want: Wanted, hosts: Mapping[str, str]) -> list[str]:
    """The addresses of a file, the first to be tried first."""
    if want.host == "zenodo":  # the address in Zenodo's own list knows no ranges
        return [f"{hosts['zenodo']}/records/{want.record}/files/{quote(want.id)}?download=1"]
    if want.host == "figshare":
        return [
            f"{hosts['figshare']}/files/{want.id}",
            f"{hosts['figshare_api']}/v2/file/download/{want.id}",
        ]
    repository, _, commit = want.record.rpartition("/")
    return [f"{hosts['github']}/{repository}/raw/{commit}/{quote(want.id)}"]


def fetch(
    source: Source,
    folder: str | Path,
    hosts: Mapping[str, str] = HOSTS,
    verify: bool = False,
    *,
    slides: Sequence[str] = (),
) -> pd.DataFrame:
    """Fetch what ``folder`` lacks of a source's data; a row a file, columns COLUMNS, for `summary`.

    state: "there" (before), "fetched" (now) or "missing", with reason and remedy; one file's
    failure doesn't stop the others. A file that is there is compared with the recorded or published
    length, with ``verify`` with the checksum too; those of an archive with neither. One that
    differs counts as missing and is never overwritten. ``slides``: names of the slides to fetch,
    empty for all; an archive comes whole. Raises DownloadError where nothing can be begun: a source
    with nothing to fetch, slides that it doesn't have, too little disk space, another fetch at work
    on the folder.
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
                rows = _fetch_archive(source, folder, hosts)
            else:
                rows = _fetch(source, folder, hosts, verify, slides)
    except store.StoreError as error:
        raise DownloadError(str(error)) from None
    except OSError as error:
        raise DownloadError(
            f"{error}; make room in {folder}, make it writable, or name another folder with "
            "DATA=folder; then run this again to go on"
        ) from None
    table = pd.DataFrame(rows, columns=COLUMNS)
    table.attrs["title"] = f"{source.title} ({source.name}) in {folder}"
    if slides and not source.archive:
        n = int((_files_of(source)["kind"] == "slide").sum())
        table.attrs["title"] += f", {len(slides)} of {n} slides; the study leaves out the others"
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


def _fetch(
    source: Source,
    folder: Path,
    hosts: Mapping[str, str],
    verify: bool,
    slides: Sequence[str],
) -> list[dict]:
    files = _files_of(source, slides)
    wanted = [Wanted(*row) for row in files[list(Wanted._fields)].itertuples(index=False)]
    record = _record_in(folder)
    paths = {want.file: _place(want, source, folder) for want in wanted}
    recorded = {
        file: Published(facts["bytes"], facts["checksum"])
        for file, facts in record.items()
        if paths.get(file)
    }
    expected = recorded | published(files[~files["file"].isin(recorded)], folder, hosts)
    missing = [want for want in wanted if not paths[want.file]]
    _check_space(missing, expected, folder)
    fetched = _fetch_all(missing, expected, folder, hosts, record)
    return [
        (
            _judge(want, paths[want.file], expected[want.file], verify)
            if paths[want.file]
            else fetched[want.file]
        )
        for want in wanted
    ]


def _record_in(folder: Path) -> dict:
    return store.read_json(folder / RECORD) if (folder / RECORD).is_file() else {}


def _judge(want: Wanted, path: Path, expected: Published, verify: bool) -> dict:
    """The row of a file that is there, under its own name or that of another edition."""
    n_bytes = path.stat().st_size
    if path.name != Path(want.file).name:
        return want.row("there", f"another edition: {path.name}", n_bytes)
    remedy = f"{path} is left as it is: remove it, then run this again"
    if expected.n_bytes not in (None, n_bytes):
        reason = f"it has {n_bytes:,} bytes, expected are {expected.n_bytes:,}"
        return want.row("missing", reason, n_bytes, remedy=remedy)
    if not (verify and expected.checksum):
        how = "length as expected" if expected.n_bytes else "nothing published to check it by"
        return want.row("there", how, n_bytes, expected.checksum)
    if (seen := checksum_of(path, expected.checksum)) != expected.checksum:
        reason = f"its checksum is {seen}, expected is {expected.checksum}"
        return want.row("missing", reason, n_bytes, remedy=remedy)
    return want.row("there", "length and checksum as expected", n_bytes, seen)


def _place(want: Wanted, source: Source, folder: Path) -> Path | None:
    """Where the loader would find the file, under any of its names; None where it is missing."""
    path = folder / want.file
    places = [path]
    if want.kind == "slide":
        suffixes = (path.suffix, *source.editions)
        places += [folder / base / (path.stem + end) for end in suffixes for base in SLIDE_FOLDERS]
    for patterns in (*source.beside, source.main_files):
        alike = [pattern for pattern in patterns if pattern.endswith(path.suffix)]
        if any(fnmatch.fnmatch(want.file, pattern) for pattern in alike):
            places += [file for pattern in alike for file in sorted(folder.glob(pattern))]
    return next((place for place in places if place.is_file()), None)


def _check_space(
    missing: Sequence[Wanted], expected: Mapping[str, Published], folder: Path
) -> None:
    """Refuse to begin what can't be finished, as far as lengths are known."""
    needed = sum(
        (expected[want.file].n_bytes or 0) - n_bytes_of(part_of(folder / want.file))
        for want in missing
    )
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{folder}: {needed / 1e9:.2f} GB are still to be fetched, {free / 1e9:.2f} GB are free"
            " there; free more, or name a folder on another disk with DATA=folder"
        )


def _fetch_all(
    missing: Sequence[Wanted],
    expected: Mapping[str, Published],
    folder: Path,
    hosts: Mapping[str, str],
    record: dict,
) -> dict[str, dict]:
    """Fetch one file after the other, under one bar over all their bytes; rows by file."""
    rows = {}
    total = sum(expected[want.file].n_bytes or 0 for want in missing)
    with tqdm(total=total or None, unit="B", unit_scale=True, disable=not missing) as bar:
        for n, want in enumerate(missing, start=1):
            bar.set_description(f"file {n} of {len(missing)}: {want.file}")
            part = part_of(folder / want.file)
            bar.update(n_bytes_of(part))
            try:
                facts = transfer(_urls(want, hosts), part, expected[want.file], bar)
                record[want.file] = facts
                store.write_json(folder / RECORD, record)
                part.replace(folder / want.file)
            except DownloadError as error:
                page = _urls(want, HOSTS)[0]
                remedy = (
                    f"run this again to go on; or fetch it with a browser from {page} and lay it"
                    f" there as {want.file}"
                )
                rows[want.file] = want.row("missing", str(error), remedy=remedy)
            else:
                how = "checksum as published" if facts["checksum_is"] == "published" else ONLY_SEEN
                rows[want.file] = want.row("fetched", how, facts["bytes"], facts["checksum"])
    return rows


def _fetch_archive(source: Source, folder: Path, hosts: Mapping[str, str]) -> list[dict]:
    """Fetch the one archive of a source unless its label file is there, and lay its files in place.

    The host doesn't promise the same archive for ever: zip's own checksums are what is checked.
    """
    archive, label_file = source.archive, source.main_files[0]
    want = Wanted(label_file, "archive")
    if (folder / label_file).is_file():
        reason = "its label file is there; to fetch all again, remove it"
        return [want.row("there", reason, sum(file.stat().st_size for file in below(folder)))]
    if below(folder) and not (folder / RECORD).is_file():
        raise DownloadError(
            f"{folder} is there but holds no {label_file}; empty it, or name another folder for"
            f" {source.title}"
        )
    url = f"{hosts['codeload']}/{archive.repository}/zip/{archive.commit}"
    part, aside = part_of(folder / "archive.zip"), folder / ".unpacked"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with tqdm(unit="B", unit_scale=True, desc=source.title) as bar:
            facts = transfer([url], part, Published(), bar)
        names = _unpack(part, archive.kept, aside)
        if label_file not in names or len(names) == 1:
            raise DownloadError(f"the archive lacks {label_file}, or all else")
    except (DownloadError, zipfile.BadZipFile) as error:
        raise DownloadError(
            f"{url}: {error}; run it again, or fetch it by hand and name its folder: git clone "
            f"https://github.com/{archive.repository}, then checkout {archive.commit[:7]}"
        ) from None
    store.write_json(folder / RECORD, facts)
    # The label file comes last: with it, the data pass for whole.
    for name in sorted(names, key=label_file.__eq__):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (aside / name).replace(folder / name)
    shutil.rmtree(aside)
    part.unlink()
    return [want.row("fetched", ONLY_SEEN, facts["bytes"], facts["checksum"])]


def _unpack(archive: Path, kept: str, folder: Path) -> list[str]:
    """Unpack what is kept of an archive, each file compared with zip's checksum; its names."""
    names = []
    with zipfile.ZipFile(archive) as content:
        for inside in content.namelist():
            if match := re.fullmatch(rf"[^/]+/({kept})", inside):
                target = folder / match[1]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read(inside))
                names.append(match[1])
    return names


def summary(table: pd.DataFrame) -> str:
    """What `fetch` did, as text: counts by kind, how files were checked, what is missing."""
    counts = pd.crosstab(table["kind"], table["state"], margins=True, margins_name="total")
    is_missing = table["state"] == "missing"
    checked = table[~is_missing].groupby(["state", "reason"], sort=False).size()
    lines = [table.attrs["title"], "", counts.rename_axis(index=None, columns=None).to_string(), ""]
    lines += [f"{state}: {n} {reason}" for (state, reason), n in checked.items()]
    for row in table[is_missing].itertuples():
        lines += [f"missing: {row.file}: {row.reason}", f"    {row.remedy}"]
    n_missing = int(is_missing.sum())
    end = (
        f"{n_missing} of {len(table)} files are missing"
        if n_missing
        else f"everything is there, {table['bytes'].sum() / 1e9:.3f} GB in {len(table)} files"
    )
    return "\n".join([*lines, "", end])
