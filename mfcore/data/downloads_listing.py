"""What hosts publish of their files: length and MD5, from Zenodo's and figshare's lists.

Zenodo has one list for a record. Of a figshare collection there is a list of articles and for each of these one of its
files; they are kept in the data folder, since MIDOG++ has an article for every slide.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from mfcore.data.downloads_transfer import TRY_AGAIN, FileError, Published, ask, persist
from mfcore.store import read_json, write_json

KEPT = ".published.json"
SAVE_EVERY = 50  # articles


def published(wanted: pd.DataFrame, folder: Path, hosts: Mapping[str, str]) -> dict[str, Published]:
    """What is published of each file of ``wanted`` (a row a file: file, host, record, id, bytes, sha256), by its name.

    A list that can't be had is told and stops nothing: a file is fetched without, too, and what was seen is recorded.
    """
    found = {row.file: Published(int(row.bytes), f"sha256:{row.sha256}") for row in wanted.itertuples() if row.sha256}
    for (host, record), rows in wanted[wanted["sha256"] == ""].groupby(["host", "record"], sort=False):
        files = dict(zip(rows["id"], rows["file"], strict=True))
        listed = _zenodo(hosts["zenodo"], record) if host == "zenodo" else _figshare(hosts, record, set(files), folder)
        try:
            for key, facts in listed:
                if key in files:
                    found[files[key]] = facts
        except (FileError, ValueError, LookupError, TypeError) as error:
            reason = error if isinstance(error, FileError) else "its list isn't as expected"
            tqdm.write(f"{host} {record}: lengths and checksums can't be had ({reason}); what comes is only recorded")
    return found


def _get(url: str) -> object:
    """A list in JSON."""
    also = TRY_AGAIN | {403}  # so figshare answers who asks too often
    return json.loads(persist(lambda: ask(url, try_again=also).content))


def _zenodo(host: str, record: str) -> Iterator[tuple[str, Published]]:
    for entry in _get(f"{host}/api/records/{record}")["files"]:
        yield entry["key"], Published(int(entry["size"]), entry["checksum"])


def _figshare(hosts: Mapping[str, str], collection: str, wanted: set[str], folder: Path) -> Iterator[tuple[str, Published]]:
    """Files by id, from the lists of a collection's articles; those that are kept from before aren't asked for again."""
    host, file = f"{hosts['figshare_api']}/v2", folder / KEPT
    articles = read_json(file) if file.is_file() else {}
    for files in articles.values():
        yield from _files(files)
    if wanted <= {key for files in articles.values() for key in files}:
        return
    # Beyond one page figshare repeats some articles and leaves others out.
    listed = _get(f"{host}/collections/{collection}/articles?page_size=1000")
    missing = sorted({str(entry["id"]) for entry in listed} - set(articles))
    try:
        for n, article in enumerate(tqdm(missing, unit=" lists", leave=False, desc="lengths and checksums"), start=1):
            entries = _get(f"{host}/articles/{article}/files?page_size=1000")
            articles[article] = {
                str(entry["id"]): [int(entry["size"]), entry.get("supplied_md5") or entry.get("computed_md5") or ""]
                for entry in entries
            }
            yield from _files(articles[article])
            if n % SAVE_EVERY == 0:
                write_json(file, articles)
    finally:
        write_json(file, articles)


def _files(listed: Mapping[str, list]) -> Iterator[tuple[str, Published]]:
    """Files by id, from an article's list as it is kept: length and MD5 by id."""
    for key, (n_bytes, md5) in listed.items():
        yield key, Published(n_bytes, md5 and f"md5:{md5}")
