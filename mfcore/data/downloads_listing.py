"""What hosts publish of their files: length and MD5, from Zenodo's and figshare's lists.

Zenodo has one list for a record. Of a figshare collection there is a list of articles and for each of these one of its
files; they are kept in the data folder, since MIDOG++ has an article for every slide.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import requests
from tqdm.auto import tqdm

from mfcore.data.downloads_transfer import PATIENCE, Patience, Published, open_session, plain
from mfcore.store import StoreError, read_json, write_json

KEPT = ".published.json"
SAVE_EVERY = 50  # articles


def published(
    wanted: pd.DataFrame, folder: Path, hosts: Mapping[str, str], patience: Patience = PATIENCE
) -> tuple[dict[str, Published], list[str]]:
    """What is published of each file of ``wanted`` (a row a file: file, host, record, id, bytes, sha256), by its name.

    Also what could not be had, a line each: a file is fetched without, too, and what was seen is recorded.
    """
    found = {row.file: Published(int(row.bytes), f"sha256:{row.sha256}") for row in wanted.itertuples() if row.sha256}
    notes = []
    for (host, record), rows in wanted[~wanted["file"].isin(found)].groupby(["host", "record"], sort=False):
        files = dict(zip(rows["id"], rows["file"], strict=True))
        with tqdm(unit=" lists", leave=False, desc=f"{host} {record}: lengths and checksums") as bar:
            session = open_session(patience, bar, patience.n_tries, {403})  # so figshare answers who asks too often
            try:
                if host == "zenodo":
                    listed = _zenodo(session, hosts["zenodo"], record, patience)
                else:
                    listed = _figshare(session, hosts["figshare_api"], record, set(files), folder, patience, bar)
            except (requests.RequestException, ValueError, LookupError, TypeError) as error:
                not_json = isinstance(error, ValueError) or not isinstance(error, requests.RequestException)
                reason = "its list isn't as expected" if not_json else plain(error, patience)
                notes.append(f"{host} {record}: lengths and checksums can't be had ({reason}); what comes is only recorded")
                listed = _files(_kept(folder)) if host == "figshare" else {}
            finally:
                session.close()
        found |= {files[key]: what for key, what in listed.items() if key in files}
    return found, notes


def _get(session: requests.Session, url: str, patience: Patience) -> object:
    """A list in JSON."""
    response = session.get(url, timeout=(min(20.0, patience.silence_s), patience.silence_s))
    response.raise_for_status()
    return response.json()


def _zenodo(session: requests.Session, host: str, record: str, patience: Patience) -> dict[str, Published]:
    content = _get(session, f"{host}/api/records/{record}", patience)
    return {entry["key"]: Published(int(entry["size"]), entry["checksum"]) for entry in content["files"]}


def _figshare(
    session: requests.Session, host: str, collection: str, wanted: set[str], folder: Path, patience: Patience, bar: tqdm
) -> dict[str, Published]:
    """Files by id, from the lists of a collection's articles; those that are kept from before aren't asked for again."""
    articles = _kept(folder)
    if wanted <= set(_files(articles)):
        return _files(articles)
    # Beyond one page figshare repeats some articles and leaves others out.
    content = _get(session, f"{host}/v2/collections/{collection}/articles?page_size=1000", patience)
    missing = sorted({str(entry["id"]) for entry in content} - set(articles))
    bar.reset(total=len(missing))
    try:
        for n, article in enumerate(missing, start=1):
            articles[article] = {
                str(entry["id"]): [int(entry["size"]), entry.get("supplied_md5") or entry.get("computed_md5") or ""]
                for entry in _get(session, f"{host}/v2/articles/{article}/files?page_size=1000", patience)
            }
            bar.update()
            if n % SAVE_EVERY == 0:
                write_json(folder / KEPT, articles)
    finally:
        write_json(folder / KEPT, articles)
    return _files(articles)


def _kept(folder: Path) -> dict[str, dict[str, list]]:
    """figshare's lists as they were kept: by article, then by file's id, length and MD5."""
    try:
        return read_json(folder / KEPT)
    except StoreError:
        return {}


def _files(articles: Mapping[str, Mapping[str, list]]) -> dict[str, Published]:
    files = {key: what for listed in articles.values() for key, what in listed.items()}
    return {key: Published(n_bytes, md5 and f"md5:{md5}") for key, (n_bytes, md5) in files.items()}
