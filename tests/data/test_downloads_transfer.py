"""One file, from a host that breaks off, refuses, forgets ranges, changes the file: the same bytes in the end, or a reason."""

import errno
import hashlib
import io
import os
import sys
import tempfile
import threading
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings, strategies as st
from running import HANG_S, until
from tqdm import tqdm
from unreliable_server import serving

from mfcore.data import downloads_transfer
from mfcore.data.downloads_transfer import DownloadError, Published, checksum_of, n_bytes_of, part_of, transfer

CONTENT = bytes(range(256)) * 40  # 10,240 bytes
OTHER = bytes(reversed(CONTENT))
N_TRIES = 4
SAID = Published(len(CONTENT), f"md5:{hashlib.md5(CONTENT).hexdigest()}")


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Little of it; called with names and values of the module, it changes more."""

    def change(**values):
        for name, value in values.items():
            monkeypatch.setattr(downloads_transfer, name, value)

    change(N_TRIES=N_TRIES, FIRST_WAIT_S=0.001, SILENCE_S=HANG_S)
    return change


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as here:
        here.files["/a"] = CONTENT
        yield here


def bring(url, target, published=SAID):
    """Fetch ``url`` as `fetch` does; returns what `transfer` says and the bar's count."""
    part = part_of(target)
    with tqdm(file=io.StringIO(), initial=n_bytes_of(part)) as bar:
        facts = transfer([url], part, published, bar)
        part.replace(target)
        return facts, bar.n


def test_a_file_comes_whole_and_only_under_its_own_name(server, tmp_path):
    facts, n_counted = bring(server.url + "/a", tmp_path / "a.tiff")
    assert (tmp_path / "a.tiff").read_bytes() == CONTENT
    assert [file.name for file in tmp_path.iterdir()] == ["a.tiff"]
    assert (facts["bytes"], facts["checksum"], facts["checksum_is"]) == (len(CONTENT), SAID.checksum, "published")
    assert n_counted == len(CONTENT)


def test_what_is_not_published_is_seen_and_said_to_be_only_seen(server, tmp_path):
    facts, _ = bring(server.url + "/a", tmp_path / "a", Published())
    assert (facts["checksum"], facts["checksum_is"]) == (checksum_of(tmp_path / "a", "sha256"), "only seen")


def test_it_goes_on_where_it_broke(server, tmp_path):
    server.acts["/a"] = [{"n_sent": 3000}, {"n_sent": 2000}]
    _, n_counted = bring(server.url + "/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert [asked.range for asked in server.asked] == [None, "bytes=3000-", "bytes=5000-"]
    assert server.n_sent("/a") == n_counted == len(CONTENT)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4000), max_size=8), st.booleans())
def test_any_sequence_of_break_offs_ends_with_the_same_bytes(breaks, is_published):
    """As long as each try brings something, or nothing new comes for less than the tries that are allowed."""
    with serving() as server, tempfile.TemporaryDirectory() as folder:
        server.files["/a"] = CONTENT
        server.acts["/a"] = [{"n_sent": n} for n in breaks]
        with mock.patch.multiple(downloads_transfer, N_TRIES=4 if is_published else 10, FIRST_WAIT_S=0):
            bring(server.url + "/a", Path(folder) / "a", SAID if is_published else Published())
        assert (Path(folder) / "a").read_bytes() == CONTENT
        if is_published:
            assert server.n_sent("/a") == len(CONTENT)


def test_without_a_checksum_to_know_the_file_by_it_starts_anew(server, tmp_path):
    server.acts["/a"] = [{"n_sent": 3000}]
    bring(server.url + "/a", tmp_path / "a", Published(len(CONTENT)))
    assert [asked.range for asked in server.asked] == [None, None]
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_host_that_knows_no_ranges_sends_all_of_it_anew(server, tmp_path):
    server.acts["/a"] = [{"n_sent": 3000}, {"no_range": True}]
    _, n_counted = bring(server.url + "/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert n_counted == len(CONTENT)


def test_a_host_that_knows_no_ranges_and_always_breaks_is_given_up(server, tmp_path):
    server.always["/a"] = {"n_sent": 3000, "no_range": True}
    with pytest.raises(DownloadError, match=r"3,000 of 10,240 bytes|IncompleteRead|broken"):
        bring(server.url + "/a", tmp_path / "a")
    assert len(server.asked) == 1 + N_TRIES  # the first one brings something


def test_a_rest_that_starts_elsewhere_is_not_appended(server, tmp_path):
    server.acts["/a"] = [{"n_sent": 3000}, {"start": 2000}]
    _, n_counted = bring(server.url + "/a", tmp_path / "a")
    assert [asked.range for asked in server.asked] == [None, "bytes=3000-", None]
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert n_counted == len(CONTENT)


def test_a_rest_that_starts_elsewhere_is_no_refusal(server, tmp_path, patience):
    """However often: the file itself has nothing wrong."""
    server.acts["/a"] = [{"n_sent": 3000}, {"start": 2000}, {"n_sent": 3000}, {"start": 2000}]
    patience(N_TRIES=5)
    bring(server.url + "/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_part_that_is_longer_than_the_file_is_dropped(server, tmp_path):
    part_of(tmp_path / "a").write_bytes(CONTENT + b"more")
    bring(server.url + "/a", tmp_path / "a")
    assert [asked.status for asked in server.asked] == [416, 200]
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_file_that_changed_between_tries_comes_anew(server, tmp_path):
    server.files["/a"], server.acts["/a"] = OTHER, [{"n_sent": 3000}, {"status": 404}]
    with pytest.raises(DownloadError, match="404"):
        bring(server.url + "/a", tmp_path / "a")
    server.files["/a"] = CONTENT
    bring(server.url + "/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert [asked.status for asked in server.asked] == [200, 404, 206, 200]


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The seconds for which the client would have waited between tries."""
    told = []
    monkeypatch.setattr("time.sleep", told.append)
    return told


def test_a_host_that_is_busy_is_asked_again_when_it_says(server, tmp_path, waits):
    server.acts["/a"] = [{"status": 429, "headers": {"Retry-After": "7"}}]
    bring(server.url + "/a", tmp_path / "a")
    assert waits == [7]
    assert [asked.status for asked in server.asked] == [429, 200]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_host_in_trouble_is_asked_again(server, tmp_path, status):
    server.acts["/a"] = [{"status": status}, {"status": status}]
    bring(server.url + "/a", tmp_path / "a")
    assert [asked.status for asked in server.asked] == [status, status, 200]


def test_trouble_without_end_is_told(server, tmp_path):
    server.always["/a"] = {"status": 503}
    with pytest.raises(DownloadError, match="503 Service Unavailable"):
        bring(server.url + "/a", tmp_path / "a")
    assert len(server.asked) == N_TRIES


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ({"status": 404}, "404 Not Found"),
        ({"status": 403}, "403 Forbidden"),
        ({"status": 202}, "202 Accepted"),
        ({"headers": {"Content-Type": "text/html; charset=utf-8"}}, "a web page instead"),
    ],
)
def test_what_is_no_file_is_not_asked_for_again(server, tmp_path, act, reason):
    """And what had come before stays."""
    server.acts["/a"] = [{"n_sent": 3000}, act]
    with pytest.raises(DownloadError, match=reason):
        bring(server.url + "/a", tmp_path / "a")
    assert len(server.asked) == 2
    assert n_bytes_of(part_of(tmp_path / "a")) == 3000


def test_a_host_that_can_not_be_reached_is_told(tmp_path):
    with pytest.raises(DownloadError, match="Connection refused"):
        bring("http://127.0.0.1:1/a", tmp_path / "a")


def test_a_host_that_falls_silent_counts_as_broken_off(server, tmp_path, patience):
    silent = threading.Event()
    server.acts["/a"] = [{"hold": (4000, silent)}]
    patience(N_TRIES=10**6, LONGEST_WAIT_S=1, SILENCE_S=0.3)
    bring(server.url + "/a", tmp_path / "a")
    silent.set()
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.asked[-1].range == "bytes=4000-"


@pytest.mark.parametrize("published", [SAID, Published(None, SAID.checksum)])
def test_another_content_is_refused_after_a_second_try(server, tmp_path, published):
    server.files["/a"] = OTHER
    with pytest.raises(DownloadError, match=r"refused twice: its checksum is md5:\w+, published is md5:"):
        bring(server.url + "/a", tmp_path / "a", published)
    assert len(server.asked) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_content_that_was_wrong_once_comes_anew(server, tmp_path):
    server.acts["/a"] = [{"content": OTHER}]
    _, n_counted = bring(server.url + "/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert n_counted == len(CONTENT)


def test_another_length_is_refused_before_it_comes(server, tmp_path):
    with pytest.raises(DownloadError, match=r"the host sends 10,240 bytes, published are 12"):
        bring(server.url + "/a", tmp_path / "a", Published(12))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("published", [SAID, Published(SAID.n_bytes), Published(None, SAID.checksum)])
def test_without_an_announced_length_what_is_published_tells_what_is_cut(server, tmp_path, published):
    server.acts["/a"] = [{"n_sent": 3000, "headers": {"Content-Length": None}}]
    bring(server.url + "/a", tmp_path / "a", published)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_a_notice_in_place_of_the_file_costs_nothing_of_what_came(server, tmp_path):
    server.acts["/a"] = [{"n_sent": 3000}]
    server.always["/a"] = {"content": b"closed for repairs", "no_range": True}
    with pytest.raises(DownloadError, match="the host sends 18 bytes, published are 10,240"):
        bring(server.url + "/a", tmp_path / "a")
    assert n_bytes_of(part_of(tmp_path / "a")) == 3000


def test_a_part_that_is_whole_needs_no_request(server, tmp_path):
    """As after a kill between its last byte and its name."""
    part_of(tmp_path / "a").write_bytes(CONTENT)
    bring(server.url + "/a", tmp_path / "a")
    assert server.asked == []
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_full_disk_is_named_and_the_part_kept(server, tmp_path, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file, self.room = file, 4000

        def write(self, chunk):
            self.file.write(chunk[: self.room])
            if len(chunk) > self.room:
                self.file.flush()
                raise OSError(errno.ENOSPC, "No space left on device")
            self.room -= len(chunk)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

    def opening(path, mode="r", *more, **others):
        file = normal(path, mode, *more, **others)
        return Full(file) if mode == "ab" else file

    with monkeypatch.context() as patched:
        normal = Path.open
        patched.setattr(Path, "open", opening)
        with pytest.raises(OSError, match="No space left on device"):
            bring(server.url + "/a", tmp_path / "a")
    assert n_bytes_of(part_of(tmp_path / "a")) == 4000
    bring(server.url + "/a", tmp_path / "a")
    assert server.asked[-1].range == "bytes=4000-"
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_place_that_can_not_be_written_is_told(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"(File exists|Not a directory)"):
        bring(server.url + "/a", tmp_path / "file" / "a")


KILLED = """
import sys
from pathlib import Path
from tqdm import tqdm
from mfcore.data.downloads_transfer import Published, part_of, transfer
transfer([sys.argv[1]], part_of(Path(sys.argv[2])), Published(None, "md5:" + "0" * 32), tqdm(disable=True))
"""


def test_a_killed_process_loses_little(server, tmp_path, started):
    """kill -9 in the middle: the next call asks for the rest only."""
    killed = threading.Event()
    content = CONTENT * 1000  # 10 MB, so that some of it leaves the buffers of any file system
    server.files["/a"] = content
    server.acts["/a"] = [{"hold": (len(content) - 1, killed)}]
    part = part_of(tmp_path / "a")
    process = started(
        [sys.executable, "-c", KILLED, server.url + "/a", str(tmp_path / "a")], env={**os.environ, "NO_PROXY": "127.0.0.1"}
    )
    until(lambda: n_bytes_of(part) >= 2000, process)
    process.kill()
    process.wait()
    killed.set()
    came = n_bytes_of(part)
    assert 2000 <= came < len(content)
    assert not (tmp_path / "a").exists()
    bring(server.url + "/a", tmp_path / "a", Published(None, f"md5:{hashlib.md5(content).hexdigest()}"))
    assert (tmp_path / "a").read_bytes() == content
    (rest,) = [asked for asked in server.asked if asked.range]
    assert (rest.range, rest.n_sent) == (f"bytes={came}-", len(content) - came)


def test_hosts_are_told_who_asks(server, tmp_path):
    """Zenodo blocks the library's own name."""
    bring(server.url + "/a", tmp_path / "a")
    assert server.asked[0].agent == "mfcore"
