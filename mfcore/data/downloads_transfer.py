"""One file over HTTP: a transfer that broke off goes on from what has come, and the whole is
checked.

What has come lies in the target's folder. Only a published checksum tells that parts of two answers
make one file: a file without one starts anew.
"""

import hashlib
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3 import Retry
from urllib3.exceptions import HTTPError

CHUNK_BYTES = 1 << 20
N_TRIES = 7  # in a row that bring nothing new
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 120.0  # each wait is twice as long as the one before
SILENCE_S = 60.0  # after which a connection counts as dead
TRY_AGAIN = (429, 500, 502, 503, 504)


class DownloadError(RuntimeError):
    """Data can't be fetched; the message says why and what to do instead."""


class Published(NamedTuple):
    """What a host says of a file: length, and checksum as "md5:..." or "sha256:...".

    None and "" where the host says nothing.
    """

    n_bytes: int | None = None
    checksum: str = ""


def part_of(target: Path) -> Path:
    """Where the bytes of a file lie until all of them have come."""
    return target.with_name(f".{target.name}.part")


def n_bytes_of(file: Path) -> int:
    """Length of a file; 0 where there is none."""
    return file.stat().st_size if file.is_file() else 0


def checksum_of(file: Path, like: str) -> str:
    """Checksum of a file as "md5:..." or "sha256:...", of the kind that ``like`` begins with."""
    kind = like.partition(":")[0]
    with file.open("rb") as content:
        return f"{kind}:{hashlib.file_digest(content, kind).hexdigest()}"


def session(try_again: Collection[int] = TRY_AGAIN) -> requests.Session:
    """A client that asks again where the host is busy (``try_again``: statuses), obeying
    Retry-After.
    """
    retry = Retry(
        N_TRIES - 1,
        status_forcelist=try_again,
        backoff_factor=FIRST_WAIT_S,
        backoff_max=LONGEST_WAIT_S,
        raise_on_status=False,
    )
    client = requests.Session()
    client.mount("http://", HTTPAdapter(max_retries=retry))
    client.mount("https://", HTTPAdapter(max_retries=retry))
    # Hosts block clients without a name; a compressed answer would have another length.
    client.headers.update({"User-Agent": "mfcore", "Accept-Encoding": "identity"})
    return client


def transfer(urls: Sequence[str], part: Path, published: Published, bar: tqdm) -> dict:
    """Bring ``part`` to the whole of a file, from the first of its addresses that gives it.

    ``bar`` counts bytes. Returns the file's record: url, bytes, checksum, checksum_is ("published"
    or "only seen"), downloaded (a date). The caller gives the part its name. A content with
    another checksum than the published one is removed and fetched once more. Raises DownloadError,
    with the part kept where a later call can go on with it, and OSError where it can't be written.
    """
    for _ in range(2):
        url = _bring(urls, part, published, bar)
        seen = checksum_of(part, published.checksum or "sha256")
        if published.checksum in ("", seen):
            return {
                "url": url,
                "bytes": n_bytes_of(part),
                "checksum": seen,
                "checksum_is": "published" if published.checksum else "only seen",
                "downloaded": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        _drop(part, bar)
    raise DownloadError(f"refused twice: its checksum is {seen}, published is {published.checksum}")


def _bring(urls: Sequence[str], part: Path, published: Published, bar: tqdm) -> str:
    """Transfer all bytes from the first address that gives them; returns the address."""
    client, reasons = session(), []
    for url in urls:
        most, n_vain = n_bytes_of(part), 0
        while n_vain < N_TRIES:
            try:
                if n_bytes_of(part) != published.n_bytes:
                    _attempt(client, url, part, published, bar)
                return url
            except (DownloadError, requests.RequestException) as error:
                reason = error
                break
            except HTTPError as error:  # broken off: another try may bring the rest
                reason = error
            n_vain = 0 if n_bytes_of(part) > most else n_vain + 1
            most = max(most, n_bytes_of(part))
            time.sleep(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**n_vain))
        reasons.append(f"{reason} ({urlsplit(url).netloc})")
    raise DownloadError("; ".join(reasons))


def _attempt(
    client: requests.Session, url: str, part: Path, published: Published, bar: tqdm
) -> None:
    """One request: for what the part lacks where a checksum will judge the whole, else for all."""
    offset = n_bytes_of(part) if published.checksum else 0
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    with client.get(url, headers=headers, stream=True, timeout=(SILENCE_S, SILENCE_S)) as response:
        if response.status_code not in (200, 206, 416):
            raise DownloadError(f"{response.status_code} {response.reason}")
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise DownloadError("the host sent a web page instead")
        goes_on = response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
        if response.status_code != 200 and not goes_on:
            _drop(part, bar)
            raise HTTPError("the host doesn't go on where the transfer broke off")
        length = response.headers.get("Content-Length")
        total = int(length) + offset * goes_on if length else published.n_bytes
        if published.n_bytes not in (None, total):
            raise DownloadError(
                f"the host sends {total:,} bytes, published are {published.n_bytes:,}"
            )
        if not goes_on:
            _drop(part, bar)
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as out:
            while chunk := response.raw.read1(CHUNK_BYTES):
                out.write(chunk)
                bar.update(len(chunk))
    if total not in (None, n_bytes_of(part)):
        raise HTTPError(f"{n_bytes_of(part):,} of {total:,} bytes came")


def _drop(part: Path, bar: tqdm) -> None:
    """Remove what has come, and take its bytes off the bar."""
    bar.update(-n_bytes_of(part))
    part.unlink(missing_ok=True)
