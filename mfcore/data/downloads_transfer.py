"""One file over HTTP, checked when it is whole; a transfer that broke off goes on from what has come.

What has come lies beside the target. Only a published checksum tells that parts of two answers make one file: a file without
one starts anew.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import requests
import urllib3
from tqdm import tqdm

from mfcore import __version__

CHUNK_BYTES = 1 << 20
N_TRIES = 7  # in a row that bring nothing new
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 120.0  # between tries; each wait is twice as long as the one before
SILENCE_S = 60.0  # after which a connection counts as dead
TRY_AGAIN = frozenset({429, 500, 502, 503, 504})
BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError)

T = TypeVar("T")


class DownloadError(RuntimeError):
    """A data set can't be fetched; the message says why and what to do instead."""


class FileError(DownloadError):
    """One file can't be had. ``of_host``: the host is at fault, so that its other files will fare alike."""

    def __init__(self, message: str, of_host: bool = False):
        super().__init__(message)
        self.of_host = of_host


class _BrokenError(requests.RequestException):
    """An answer that is not, or not all of, the file; another try may bring it."""


@dataclass(frozen=True)
class Published:
    """What a host says of a file: its length, and its checksum as "md5:..." or "sha256:..."; None and "" where it doesn't."""

    n_bytes: int | None = None
    checksum: str = ""


def part_of(target: Path) -> Path:
    """Where the bytes of a file lie until all of them have come."""
    return target.with_name(f".{target.name}.part")


def n_bytes_of(file: Path) -> int:
    """Length of a file; 0 where there is none."""
    return file.stat().st_size if file.is_file() else 0


def transfer(urls: Sequence[str], part: Path, published: Published, bar: tqdm) -> dict:
    """Bring ``part`` to the whole of a file, from the first of its addresses that gives it; ``bar`` counts bytes.

    Returns the file's record: url, bytes, checksum, checksum_is ("published" or "only seen"), downloaded (a date). The caller
    gives the part its name. A content with another checksum than the published one is removed and fetched once more.
    Raises FileError, with the part kept where a later call can go on with it, and OSError where it can't be written.
    """
    for _ in range(2):
        url = _bring(urls, part, published, bar)
        with part.open("rb") as content:
            os.fsync(content.fileno())
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
    raise FileError(f"refused twice: its checksum is {seen}, published is {published.checksum}")


def _bring(urls: Sequence[str], part: Path, published: Published, bar: tqdm) -> str:
    """Transfer all bytes from the first address that gives them; returns the address."""
    reasons, of_host = [], False
    for url in urls:
        try:
            if n_bytes_of(part) != published.n_bytes:
                persist(partial(_attempt, url, part, published, bar), partial(n_bytes_of, part), bar.set_postfix_str)
            return url
        except FileError as error:
            reasons.append(f"{error} ({urlsplit(url).netloc})")
            of_host = of_host or error.of_host
    raise FileError("; ".join(reasons), of_host)


def persist(attempt: Callable[[], T], came: Callable[[], int] = int, say: Callable[[str], object] = str) -> T:
    """Call ``attempt`` until it succeeds; a host that says how long to wait (Retry-After) is obeyed.

    came: how much there is so far. say: is told what is waited for. Raises FileError after N_TRIES in a row with nothing new.
    """
    n_vain, most = 0, came()
    while True:
        try:
            return attempt()
        except BROKEN as error:
            n_vain, most = (1, came()) if came() > most else (n_vain + 1, most)
            if n_vain >= N_TRIES:
                raise FileError(_plain(error), of_host=True) from None
            wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (n_vain - 1))
            response = getattr(error, "response", None)
            if response is not None and "Retry-After" in response.headers:
                wait_s = urllib3.Retry().parse_retry_after(response.headers["Retry-After"])
            say(f"waiting {wait_s:.0f} s, {_plain(error)}")
            time.sleep(wait_s)


def ask(url: str, headers: dict[str, str] | None = None, try_again: Collection[int] = TRY_AGAIN) -> requests.Response:
    """A host's answer with content still to come; raises HTTPError for a status of ``try_again``, FileError for a refusal."""
    # Hosts block clients without a name of their own; a compressed answer would have another length.
    always = {"User-Agent": f"mfcore/{__version__}", "Accept-Encoding": "identity"}
    timeout = (min(20.0, SILENCE_S), SILENCE_S)
    response = requests.get(url, headers=always | (headers or {}), stream=True, timeout=timeout)
    status = response.status_code
    if status in (200, 206, 416):
        return response
    response.close()
    reason = f"{status} {response.reason or ''}".strip()
    if status in try_again:
        raise requests.HTTPError(reason, response=response)
    if response.headers.get("x-amzn-waf-action"):  # some hosts answer 202 with nothing in it to whom they take for a robot
        reason += ", the host lets only browsers in"
    raise FileError(reason, of_host=status not in (404, 410))


def _attempt(url: str, part: Path, published: Published, bar: tqdm) -> None:
    """One request: for what the part lacks, where a checksum will tell whether both belong together; else for all of it."""
    offset = n_bytes_of(part) if published.checksum else 0
    with ask(url, {"Range": f"bytes={offset}-"} if offset else {}) as response:
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise FileError("the host sent a web page instead", of_host=True)
        goes_on = response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
        if response.status_code != 200 and not goes_on:
            _drop(part, bar)
            raise _BrokenError("what the host sends doesn't go on where it broke off")
        length, is_coded = response.headers.get("Content-Length", ""), "Content-Encoding" in response.headers
        total = int(length) + offset * goes_on if length.isdigit() and not is_coded else None
        if None not in (total, published.n_bytes) and total != published.n_bytes:
            raise _BrokenError(f"the host sends {total:,} bytes, published are {published.n_bytes:,}")
        if not goes_on:
            _drop(part, bar)
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as out:
            while chunk := response.raw.read1(CHUNK_BYTES, decode_content=True):
                out.write(chunk)
                bar.update(len(chunk))
    expected = published.n_bytes if total is None else total
    if expected not in (None, n_bytes_of(part)):
        raise _BrokenError(f"{n_bytes_of(part):,} bytes came, expected were {expected:,}")


def _drop(part: Path, bar: tqdm) -> None:
    """Remove what has come, and take its bytes off the bar."""
    bar.update(-n_bytes_of(part))
    part.unlink(missing_ok=True)


def checksum_of(file: Path, like: str) -> str:
    """Checksum of a file as "md5:..." or "sha256:...", of the kind that ``like`` begins with."""
    kind = like.partition(":")[0]
    with file.open("rb") as content:
        return f"{kind}:{hashlib.file_digest(content, kind).hexdigest()}"


def _plain(error: Exception) -> str:
    """An error of a transfer in a few words."""
    text = str(error)
    if "timed out" in text:
        return f"no answer within {SILENCE_S:.0f} s"
    if "IncompleteRead" in text or "Connection broken" in text:
        return "the connection broke off"
    said_by_system = re.search(r"\[Errno -?\d+\] ([^'\")]+)", text)
    return said_by_system[1] if said_by_system else text
