"""One file over HTTP: gone on with where it broke, refused unless length and checksum agree, renamed when it is whole.

What has come so far lies beside the target with a small record of what it is a part of: ETag, date of change, length. It
is gone on with only while the host says that the file is still the same (RFC 9110, sections 13.1.5, 14.4 and 15.5.17).
"""

import errno
import hashlib
import os
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import requests
import urllib3
from tqdm import tqdm
from urllib3.util import Retry

from mfcore import __version__
from mfcore.store import StoreError, read_json, write_json

CHUNK_BYTES = 1 << 20
TRY_AGAIN = frozenset({429, 500, 502, 503, 504})
BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError)


class DownloadError(RuntimeError):
    """A data set can't be fetched; the message says why and what to do instead."""


class DiskFullError(DownloadError):
    """There is no space left for what comes; the part that came is kept."""


class FileError(DownloadError):
    """One file can't be had. ``of_host``: the host is at fault, so that its other files will fare alike."""

    def __init__(self, message: str, of_host: bool = False):
        super().__init__(message)
        self.of_host = of_host


class RefusedError(FileError):
    """What a host sends isn't the file that is published, not at the second time either."""


class _DisagreesError(Exception):
    """What came is not the file that was published."""


class _OtherLengthError(_DisagreesError):
    """What is about to come is not the file that was published, so that nothing of it was taken."""


class _ChangedError(Exception):
    """What the host has now doesn't go on where the part ends."""


@dataclass(frozen=True)
class Patience:
    """How long to go on with one file.

    n_tries: tries in a row that bring nothing new. first_wait_s: wait after the first of them, doubled after each, up to
    ``longest_wait_s``; a host that says how long to wait (Retry-After) is obeyed. silence_s: when a connection counts as dead.
    """

    n_tries: int = 7
    first_wait_s: float = 1.0
    longest_wait_s: float = 120.0
    silence_s: float = 60.0


PATIENCE = Patience()


@dataclass(frozen=True)
class Published:
    """What a host says of a file: its length, and its checksum as "md5:..." or "sha256:..."; None and "" where it doesn't."""

    n_bytes: int | None = None
    checksum: str = ""


@dataclass(frozen=True)
class Whole:
    """A file that came whole. ``checked``: its checksum is the published one, else only the one that was seen."""

    url: str
    n_bytes: int
    checksum: str
    checked: bool
    etag: str


class Part:
    """What has come of a file so far, beside its target, with the record of what it is a part of."""

    def __init__(self, target: Path):
        self.target = target
        self.file = target.with_name(f".{target.name}.part")
        self.record = target.with_name(f".{target.name}.part.json")

    @property
    def n_bytes(self) -> int:
        """Bytes so far."""
        return self.file.stat().st_size if self.file.is_file() else 0

    @property
    def facts(self) -> dict:
        """The record: url, etag, validator (for If-Range) and bytes (of the whole file, None where unknown); or empty."""
        try:
            return read_json(self.record)
        except StoreError:
            return {}

    @property
    def is_whole(self) -> bool:
        """Whether all of it came, unless the process ended before it was renamed."""
        return self.file.is_file() and self.n_bytes == self.facts.get("bytes")

    def begin(self, facts: Mapping) -> None:
        """Start anew. Emptied first: old bytes must never stand under a new record."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_bytes(b"")
        write_json(self.record, dict(facts))

    def appending(self) -> BinaryIO:
        """The file, open to go on at its end."""
        return self.file.open("ab")

    def drop(self) -> None:
        """Remove it."""
        self.file.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)

    def keep(self) -> None:
        """Give it its target's name, in one step."""
        self.file.replace(self.target)
        self.record.unlink(missing_ok=True)


def open_session(patience: Patience, bar: tqdm, n_connections: int = 1, also: Collection[int] = ()) -> requests.Session:
    """A session that asks again, later, where a host answers one of TRY_AGAIN or ``also``; ``bar`` shows what it waits for.

    n_connections: how often a connection is tried. Once for `transfer`, which itself goes on where one broke.
    """

    class ToldRetry(Retry):
        def sleep(self, response: urllib3.BaseHTTPResponse | None = None) -> None:
            asked = self.get_retry_after(response) if response is not None else None
            wait_s = asked or self.get_backoff_time()
            bar.set_postfix_str(f"waiting {wait_s:.0f} s, the host answered {response.status if response else 'nothing'}")
            super().sleep(response)

    retry = ToldRetry(
        total=None,
        connect=n_connections - 1,
        read=n_connections - 1,
        other=0,
        status=patience.n_tries - 1,
        status_forcelist=TRY_AGAIN.union(also),
        backoff_factor=patience.first_wait_s,
        backoff_max=patience.longest_wait_s,
        raise_on_status=False,
    )
    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retry))
    session.mount("https://", requests.adapters.HTTPAdapter(max_retries=retry))
    # Hosts block clients without a name of their own; a compressed answer would have another length.
    session.headers.update({"User-Agent": f"mfcore/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"})
    return session


def transfer(session: requests.Session, url: str, part: Part, published: Published, patience: Patience, bar: tqdm) -> Whole:
    """Bring ``part`` to the whole of ``url``, checked; its ``keep`` is left to the caller. ``bar`` counts bytes.

    What disagrees with what is published is removed and tried once more. Raises FileError, with the part kept where it
    can be gone on with, and DiskFullError.
    """
    n_vain, longest, refused = 0, part.n_bytes, None
    while True:
        try:
            if not part.is_whole:
                _attempt(session, url, part, published, patience, bar)
            return _checked(part, published, url)
        except _DisagreesError as error:
            if not isinstance(error, _OtherLengthError):
                _drop(part, bar)
                longest = 0
            if refused:
                raise RefusedError(f"refused twice: {error}") from None
            refused = error
        except (_ChangedError, *BROKEN) as error:
            if isinstance(error, _ChangedError):
                _drop(part, bar)
            if part.n_bytes > longest:
                n_vain, longest = 0, part.n_bytes
            n_vain += 1
            if n_vain >= patience.n_tries:
                raise FileError(plain(error, patience), of_host=True) from None
            wait_s = min(patience.longest_wait_s, patience.first_wait_s * 2 ** (n_vain - 1))
            bar.set_postfix_str(f"{part.target.name}: waiting {wait_s:.0f} s, {plain(error, patience)}")
            time.sleep(wait_s)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFullError(f"no space left for {part.target}") from None
            raise FileError(f"{error.strerror or error}: {error.filename or part.file}") from None


def _drop(part: Part, bar: tqdm) -> None:
    bar.update(-part.n_bytes)
    part.drop()


def _attempt(session: requests.Session, url: str, part: Part, published: Published, patience: Patience, bar: tqdm) -> None:
    """One request: go on with the part if the host agrees that it is one, else start anew."""
    facts, offset, headers = part.facts, part.n_bytes, {}
    if not (facts.get("validator") or published.checksum):
        offset = 0  # nothing would tell whether the rest belongs to it
    if offset:
        headers["Range"] = f"bytes={offset}-"
    if offset and facts.get("validator"):
        headers["If-Range"] = facts["validator"]
    timeout = (min(20.0, patience.silence_s), patience.silence_s)
    with session.get(url, headers=headers, stream=True, timeout=timeout) as response:
        if response.ok and response.headers.get("Content-Type", "").startswith("text/html"):
            raise FileError("the host sent a web page instead", of_host=True)
        if response.status_code == 206 and offset:
            total = _total_of_rest(response, offset, facts)
        elif response.status_code in (206, 416):
            raise _ChangedError(f"answered {response.status_code}, which doesn't fit what came before")
        elif response.status_code == 200:
            encoded = response.headers.get("Content-Encoding", "identity") != "identity"
            length = response.headers.get("Content-Length", "")
            total, offset = int(length) if length.isdigit() and not encoded else None, 0
        else:
            raise _refusal(response)
        if total is not None and published.n_bytes not in (None, total):
            raise _OtherLengthError(f"the host sends {total:,} bytes, published are {published.n_bytes:,}")
        if not offset:
            bar.update(-part.n_bytes)
            part.begin(_facts(response, url, total))
        elif total != facts.get("bytes"):
            write_json(part.record, _facts(response, url, total))
        with part.appending() as out:
            while chunk := response.raw.read1(CHUNK_BYTES, decode_content=True):
                out.write(chunk)
                bar.update(len(chunk))
    if total is None:
        write_json(part.record, part.facts | {"bytes": part.n_bytes})
    elif part.n_bytes != total:
        raise _DisagreesError(f"{part.n_bytes:,} bytes came, announced were {total:,}")


def _total_of_rest(response: requests.Response, offset: int, facts: Mapping) -> int | None:
    """Length of the whole file of which a 206 brings the rest; raises _ChangedError where it is the rest of another."""
    said = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if said and int(said[1]) == offset:
        total = None if said[2] == "*" else int(said[2])
        etag = response.headers.get("ETag", "")
        if facts.get("bytes") in (None, total) and facts.get("etag", "") in ("", etag):
            return total
    raise _ChangedError("what the host sends doesn't go on where it broke")


def _facts(response: requests.Response, url: str, total: int | None) -> dict:
    etag = response.headers.get("ETag", "")
    strong = "" if etag.startswith("W/") else etag  # a weak one doesn't promise the same bytes
    return {
        "url": url,
        "etag": etag,
        "validator": strong or response.headers.get("Last-Modified", ""),
        "bytes": total,
    }


def _refusal(response: requests.Response) -> FileError:
    """Why an answer is no file. Some hosts answer 202 with nothing in it to whom they take for a robot."""
    said = f"{response.status_code} {response.reason or ''}".strip()
    if response.headers.get("x-amzn-waf-action"):
        said += ", the host lets only browsers in"
    return FileError(said, of_host=response.status_code not in (404, 410))


def _checked(part: Part, published: Published, url: str) -> Whole:
    """The finished part's facts; raises _DisagreesError where length or checksum isn't the published one."""
    if published.n_bytes not in (None, part.n_bytes):
        raise _DisagreesError(f"{part.n_bytes:,} bytes came, published are {published.n_bytes:,}")
    etag = part.facts.get("etag", "")
    expected = published.checksum or etag.strip('"') * bool(re.fullmatch(r'"md5:[0-9a-f]{32}"', etag))  # as Zenodo's are
    with part.file.open("rb") as came:
        os.fsync(came.fileno())
    seen = checksum_of(part.file, expected.partition(":")[0] or "sha256")
    if expected and seen != expected:
        raise _DisagreesError(f"its checksum is {seen}, published is {expected}")
    return Whole(url, part.n_bytes, seen, bool(expected), etag)


def checksum_of(file: Path, kind: str) -> str:
    """Checksum of a file as "md5:..." or "sha256:..."."""
    with file.open("rb") as content:
        return f"{kind}:{hashlib.file_digest(content, kind).hexdigest()}"


def plain(error: BaseException, patience: Patience) -> str:
    """An error of a transfer in a few words."""
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return f"no answer within {patience.silence_s:.0f} s"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, urllib3.exceptions.IncompleteRead):
            return "the connection broke off"
        if isinstance(cause, OSError) and cause.strerror and not isinstance(cause, requests.RequestException):
            return cause.strerror
        inner = [a for a in (getattr(cause, "reason", None), *cause.args) if isinstance(a, BaseException)]
        cause = cause.__cause__ or next(iter(inner), None) or cause.__context__
    return str(error)
