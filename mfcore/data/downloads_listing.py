"""What hosts publish of their files: length and MD5, from Zenodo's and figshare's lists.

Zenodo has one list for a record. Of a figshare collection there is a list of articles, and for each
article a list of its files. MIDOG++ has an article for every slide, so lists are kept in the
folder.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import requests
from tqdm.auto import tqdm

from mfcore.data.downloads_transfer import TRY_AGAIN, Published, session
from mfcore.store import read_json, write_json

KEPT = ".listed.json"


def published(wanted: pd.DataFrame, folder: Path, hosts: Mapping[str, str]) -> dict[str, Published]:
    """What is published of each file of ``wanted``, by its name.

    wanted: a row a file: file, host, record, id, bytes, sha256. A host without a list that can be
    read is named and stops nothing: its files are fetched, and their checksums are recorded.
    """
    kept = read_json(folder / KEPT) if (folder / KEPT).is_file() else {}
    facts = dict.fromkeys(wanted["file"], Published())
    for row in wanted[wanted["sha256"] != ""].itertuples():
        facts[row.file] = Published(int(row.bytes), f"sha256:{row.sha256}")
    for (host, record), rows in wanted[wanted["sha256"] == ""].groupby(["host", "record"]):
        try:
            if record not in kept:
                kept[record] = (
                    _zenodo(hosts, record) if host == "zenodo" else _figshare(hosts, record)
                )
                write_json(folder / KEPT, kept)
        except (requests.RequestException, LookupError, TypeError, ValueError) as error:
            tqdm.write(
                f"{host} {record}: no lengths and checksums ({error}); what comes is recorded"
            )
            continue
        for file, key in zip(rows["file"], rows["id"], strict=True):
            facts[file] = Published(*kept[record].get(key, ()))
    return facts


def _get(client: requests.Session, url: str) -> object:
    response = client.get(url, timeout=60)
    response.raise_for_status()
    return response.json()


def _zenodo(hosts: Mapping[str, str], record: str) -> dict[str, tuple[int, str]]:
    """Length and checksum of a record's files, by name."""
    files = _get(session(), f"{hosts['zenodo']}/api/records/{record}")["files"]
    return {file["key"]: (file["size"], file["checksum"]) for file in files}


def _figshare(hosts: Mapping[str, str], collection: str) -> dict[str, tuple[int, str]]:
    """Length and checksum of the files of a collection's articles, by id."""
    client, api = session((*TRY_AGAIN, 403)), f"{hosts['figshare_api']}/v2"  # 403: asked too often
    # Beyond one page figshare repeats some articles and leaves others out.
    articles = _get(client, f"{api}/collections/{collection}/articles?page_size=1000")
    facts = {}
    for article in tqdm({entry["id"] for entry in articles}, desc="checksums", leave=False):
        for file in _get(client, f"{api}/articles/{article}/files?page_size=1000"):
            md5 = file.get("supplied_md5") or file.get("computed_md5")
            facts[str(file["id"])] = (file["size"], md5 and f"md5:{md5}")
    return facts
