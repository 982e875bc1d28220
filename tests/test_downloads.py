"""AMi-Br's download, against a small server of our own: whole, or not there at all."""

import http.server
import io
import json
import threading
import zipfile

import pytest

from mfcore import downloads, patches
from mfcore.config import Data, Patches, Study
from mfcore.downloads import DownloadError
from mfcore.store import file_sha256

ROOT = f"AMi-Br-{downloads.AMIBR_COMMIT}"
ADDRESS = f"/DeepMicroscopy/AMi-Br/zip/{downloads.AMIBR_COMMIT}"
STUDY = Study(name="t", title="t", data=Data(source="amibr"), patches=Patches(size_px=128))
FILES = {
    "AMI-BR.csv": b"slide\n",
    "README.md": b"# AMi-Br\n",
    "images/example.jpg": b"not needed",
    "patches/normal/MIDOG21_22.png": b"normal" * 500,
    "patches/atypical/MIDOG21_25.png": b"atypical" * 500,
}


def archive(files=FILES, root=ROOT):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as target:
        for name, data in files.items():
            target.writestr(f"{root}/{name}", data)
    return content.getvalue()


@pytest.fixture
def server():
    """A server that answers the one address with ``server.content``, of which it sends ``server.n_sent`` bytes."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = self.server.content
            if content is None or self.path != ADDRESS:
                self.send_error(404)
                return
            self.send_response(200)
            if self.server.announced:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: self.server.n_sent])

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as here:
        here.content, here.n_sent, here.announced = archive(), None, True
        here.host = f"http://127.0.0.1:{here.server_port}"
        thread = threading.Thread(target=here.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield here
        here.shutdown()


def test_the_download_holds_table_patches_and_what_it_was(server, tmp_path):
    folder = patches.prepare(STUDY, tmp_path / "data" / "amibr", host=server.host)
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert there == {*FILES, "downloaded.json"} - {"images/example.jpg"}
    assert all((folder / name).read_bytes() == FILES[name] for name in there - {"downloaded.json"})
    (tmp_path / "archive.zip").write_bytes(server.content)
    record = json.loads((folder / "downloaded.json").read_text())
    assert record["sha256"] == file_sha256(tmp_path / "archive.zip")
    assert (record["url"], record["bytes"], record["n_patches"]) == (server.host + ADDRESS, len(server.content), 2)
    assert [file.name for file in folder.parent.iterdir()] == ["amibr"]


def test_what_is_there_is_not_fetched_again(server, tmp_path):
    downloads.amibr(tmp_path / "amibr", server.host)
    server.content = None
    assert downloads.amibr(tmp_path / "amibr", server.host) == tmp_path / "amibr"


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.99])
def test_a_transfer_that_breaks_leaves_nothing(server, tmp_path, announced, share):
    server.n_sent, server.announced = int(len(server.content) * share), announced
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1.*run it again"):
        downloads.amibr(tmp_path / "amibr", server.host)
    assert list(tmp_path.iterdir()) == []
    server.n_sent = None
    assert (downloads.amibr(tmp_path / "amibr", server.host) / "AMI-BR.csv").is_file()


def test_what_a_killed_download_left_is_cleared(server, tmp_path):
    (tmp_path / ".amibr.partial" / "patches").mkdir(parents=True)
    (tmp_path / ".amibr.partial" / "stale.png").write_bytes(b"")
    folder = downloads.amibr(tmp_path / "amibr", server.host)
    assert not (folder / "stale.png").exists()


def test_a_file_damaged_inside_the_archive_is_seen(server, tmp_path):
    at = server.content.index(b"atypicalatypical")
    server.content = server.content[:at] + b"A" + server.content[at + 1 :]
    with pytest.raises(DownloadError, match="damaged"):
        downloads.amibr(tmp_path / "amibr", server.host)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({name: data for name, data in FILES.items() if name != "AMI-BR.csv"}, r"no AMI-BR\.csv in the archive"),
        ({"AMI-BR.csv": b"slide\n"}, "no patches in the archive"),
    ],
)
def test_another_archive_is_refused(server, tmp_path, files, message):
    server.content = archive(files)
    with pytest.raises(DownloadError, match=message):
        downloads.amibr(tmp_path / "amibr", server.host)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_outside_the_folder(server, tmp_path):
    server.content = archive({**FILES, "patches/normal/../../../../escaped.png": b"x"})
    folder = downloads.amibr(tmp_path / "deep" / "amibr", server.host)
    assert {file.name for file in (folder / "patches" / "normal").iterdir()} == {"MIDOG21_22.png"}
    assert {path.name for path in tmp_path.iterdir()} == {"deep"}


def test_an_address_that_is_gone_says_what_to_do(server, tmp_path):
    server.content = None
    with pytest.raises(DownloadError, match=r"404.*by hand.*git clone"):
        downloads.amibr(tmp_path / "amibr", server.host)
    server.shutdown()
    with pytest.raises(DownloadError, match="by hand"):
        downloads.amibr(tmp_path / "amibr", "http://127.0.0.1:1")


def test_a_folder_with_something_else_is_left_alone(server, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DownloadError, match=r"holds no AMI-BR\.csv"):
        downloads.amibr(tmp_path, server.host)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
