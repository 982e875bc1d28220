"""AMi-Br's download, against a small server of our own: whole, or not there at all."""

import io
import json
import zipfile

import pytest
from running import HANG_S
from unreliable_server import serving

from mfcore.data import downloads, downloads_transfer
from mfcore.data.downloads import DownloadError
from mfcore.data.labels.source import SOURCES
from mfcore.store import alone, file_sha256
from mfcore.store.files import below
from mfcore.study import data as study_data
from mfcore.study.config import Data, Patches, Settings

COMMIT = SOURCES["amibr"].archive.commit
ADDRESS = f"/DeepMicroscopy/AMi-Br/zip/{COMMIT}"
STUDY = Settings(name="t", title="t", data=Data(source="amibr"), patches=Patches(size_px=128))
FILES = {
    "AMI-BR.csv": b"slide\n",
    "README.md": b"# AMi-Br\n",
    "images/example.jpg": b"not needed",
    "patches/normal/MIDOG21_22.png": b"normal" * 500,
    "patches/atypical/MIDOG21_25.png": b"atypical" * 500,
}


def archive(files=FILES):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as target:
        for name, data in files.items():
            target.writestr(f"AMi-Br-{COMMIT}/{name}", data)
    return content.getvalue()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name, value in {"N_TRIES": 2, "FIRST_WAIT_S": 0.001, "SILENCE_S": HANG_S}.items():
        monkeypatch.setattr(downloads_transfer, name, value)
    with serving() as here:
        here.files[ADDRESS] = archive()
        monkeypatch.setitem(downloads.HOSTS, "codeload", here.url)
        yield here


def fetch(server, folder, verify=False):
    return downloads.fetch(STUDY.source, folder, verify)


def names(folder):
    """Files below it, without hidden ones."""
    return [path.relative_to(folder).as_posix() for path in below(folder)]


def test_the_download_holds_table_patches_and_what_it_was(server, tmp_path):
    folder = tmp_path / "data" / "amibr"
    fetch(server, folder)
    there = set(names(folder))
    assert there == {*FILES, "downloaded.json"} - {"images/example.jpg", "README.md"}
    assert all((folder / name).read_bytes() == FILES[name] for name in there - {"downloaded.json"})
    (tmp_path / "archive.zip").write_bytes(server.files[ADDRESS])
    record = json.loads((folder / "downloaded.json").read_text())
    assert record["checksum"] == f"sha256:{file_sha256(tmp_path / 'archive.zip')}"
    assert (record["url"], record["bytes"]) == (server.url + ADDRESS, len(server.files[ADDRESS]))
    assert [file.name for file in folder.parent.iterdir()] == ["amibr"]
    assert {file.name for file in folder.iterdir() if file.name.startswith(".")} == {".fetch.lock"}


def test_what_is_there_is_not_fetched_again_and_what_is_missing_is(server, tmp_path):
    """As where a call was killed while it moved the files: the label file comes last."""
    folder = tmp_path / "amibr"
    for _ in range(2):
        assert study_data.prepare(STUDY, folder) == folder
    assert len(server.asked) == 1
    assert list(fetch(server, folder)["state"]) == ["there"]
    for name in ("AMI-BR.csv", "patches/normal/MIDOG21_22.png"):
        (folder / name).unlink()
    study_data.prepare(STUDY, folder)
    assert (folder / "patches/normal/MIDOG21_22.png").is_file()
    assert len(server.asked) == 2


@pytest.mark.parametrize("share", [0.0, 0.4, 0.99])
def test_a_transfer_that_breaks_for_good_leaves_nothing_that_looks_whole(server, tmp_path, share):
    server.always[ADDRESS] = {"n_sent": int(len(server.files[ADDRESS]) * share)}
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1.*run it again"):
        fetch(server, tmp_path / "amibr")
    assert names(tmp_path) == []
    server.always.clear()
    fetch(server, tmp_path / "amibr")
    assert (tmp_path / "amibr" / "AMI-BR.csv").is_file()


def test_a_transfer_that_broke_starts_anew(server, tmp_path):
    """No checksum is published that would tell whether two parts belong together."""
    server.acts[ADDRESS] = [{"n_sent": 500}, {"status": 404}]
    with pytest.raises(DownloadError, match=r"404.*by hand.*git clone"):
        fetch(server, tmp_path / "amibr")
    assert names(tmp_path) == []
    fetch(server, tmp_path / "amibr")
    assert server.asked[-1].range is None
    assert [file.name for file in tmp_path.iterdir()] == ["amibr"]


def test_an_archive_that_was_cut_without_notice_is_seen(server, tmp_path):
    """GitHub announces no length."""
    server.acts[ADDRESS] = [{"n_sent": 1000, "headers": {"Content-Length": None}}]
    with pytest.raises(DownloadError, match="not a zip file; run it again"):
        fetch(server, tmp_path / "amibr")
    assert names(tmp_path) == []
    fetch(server, tmp_path / "amibr")


def test_two_at_once_are_refused(server, tmp_path):
    """And the second leaves what the first one has alone."""
    with alone(tmp_path, "fetch"):
        (tmp_path / ".archive.zip.part").write_bytes(b"part")
        with pytest.raises(DownloadError, match="another fetch is at work"):
            fetch(server, tmp_path)
        assert (tmp_path / ".archive.zip.part").read_bytes() == b"part"


def test_a_file_damaged_inside_the_archive_is_seen(server, tmp_path):
    content = server.files[ADDRESS]
    at = content.index(b"atypicalatypical")
    server.files[ADDRESS] = content[:at] + b"A" + content[at + 1 :]
    with pytest.raises(DownloadError, match="Bad CRC-32"):
        fetch(server, tmp_path / "amibr")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({name: data for name, data in FILES.items() if name != "AMI-BR.csv"}, r"lacks AMI-BR\.csv, or all else"),
        ({"AMI-BR.csv": b"slide\n"}, "or all else; run it again"),
    ],
)
def test_another_archive_is_refused(server, tmp_path, files, message):
    server.files[ADDRESS] = archive(files)
    with pytest.raises(DownloadError, match=message):
        fetch(server, tmp_path / "amibr")
    assert names(tmp_path) == []


def test_nothing_is_written_outside_the_folder(server, tmp_path):
    server.files[ADDRESS] = archive({**FILES, "patches/normal/../../../../escaped.png": b"x"})
    folder = tmp_path / "deep" / "amibr"
    fetch(server, folder)
    assert {file.name for file in (folder / "patches" / "normal").iterdir()} == {"MIDOG21_22.png"}
    assert {path.name for path in tmp_path.iterdir()} == {"deep"}


def test_a_host_that_can_not_be_reached_says_what_to_do(server, tmp_path, monkeypatch):
    monkeypatch.setitem(downloads.HOSTS, "codeload", "http://127.0.0.1:1")
    with pytest.raises(DownloadError, match=r"Connection refused.*; run it again, or fetch it by hand"):
        fetch(server, tmp_path / "amibr")


def test_a_folder_with_something_else_is_left_alone(server, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DownloadError, match=r"holds no AMI-BR\.csv"):
        fetch(server, tmp_path)
    assert names(tmp_path) == ["mine.txt"]
