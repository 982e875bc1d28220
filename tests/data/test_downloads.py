"""Whole data sets, from hosts in miniature: only what is missing comes, what is there is judged, what isn't has a reason."""

import errno
import hashlib
import json
import re
import shutil
from collections import namedtuple
from pathlib import Path

import pandas as pd
import pytest
from running import HANG_S
from unreliable_server import serving

from mfcore import store
from mfcore.data import downloads, downloads_transfer
from mfcore.data.downloads import DownloadError
from mfcore.data.downloads_transfer import part_of
from mfcore.data.labels import table as labels
from mfcore.data.labels.source import SOURCES
from mfcore.sweep import __main__ as sweep

JSON, CASES, VOTES = "MIDOG2022_training_png.json", "datasets_xvalidation.csv", "MIDOG++.json"
SLIDES = [f"images/00{n}.png" for n in range(1, 6)]
CONTENT = {name: name.encode() * 500 for name in (JSON, VOTES, *SLIDES)}
RECORD = "/api/records/77"


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, value in {"N_TRIES": 2, "FIRST_WAIT_S": 0.001, "SILENCE_S": HANG_S}.items():
        monkeypatch.setattr(downloads_transfer, name, value)


@pytest.fixture
def server(monkeypatch, tmp_path_factory):
    """Hosts with a label file and five slides at Zenodo, the votes at GitHub, a database and two slides at figshare."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    votes = CONTENT[VOTES]
    rows = [("midog22", "label file", JSON, "zenodo", "77", JSON, "", "")]
    rows += [("midog22", "label file", VOTES, "github", "o/r/c0", f"d/{VOTES}", len(votes), hashlib.sha256(votes).hexdigest())]
    rows += [("midog22", "slide", name, "zenodo", "77", name[7:], "", "") for name in SLIDES]
    rows += [("ccmct", "label file", "databases/MITOS_WSI_CCMCT_ODAEL.sqlite", "figshare", "8", "100", "", "")]
    rows += [("ccmct", "slide", f"WSI/{name}.svs", "figshare", "8", str(n), "", "") for n, name in ((101, "a"), (102, "b"))]
    listed = tmp_path_factory.mktemp("list") / "downloads.csv"
    columns = ["source", "kind", "file", "host", "record", "id", "bytes", "sha256"]
    pd.DataFrame(rows, columns=columns).to_csv(listed, index=False)
    monkeypatch.setattr(downloads, "FILES", listed)
    with serving() as here:
        here.files |= {address(name): CONTENT[name] for name in (JSON, *SLIDES)}
        here.files["/o/r/raw/c0/d/MIDOG%2B%2B.json"] = votes
        at_zenodo = [JSON, *SLIDES]
        here.put_json(RECORD, {"files": [entry(name) for name in at_zenodo]})
        here.put_json("/v2/collections/8/articles", [{"id": 1}, {"id": 2}, {"id": 3}, {"id": 3}])
        for n in (100, 101, 102):
            here.files[f"/files/{n}"] = str(n).encode() * 400
            said = {"id": n, "size": 1200, "supplied_md5": "", "computed_md5": md5(str(n).encode() * 400)}
            here.put_json(f"/v2/articles/{n - 99}/files", [said])
        for host in downloads.HOSTS:
            monkeypatch.setitem(downloads.HOSTS, host, here.url)
        yield here


def address(name):
    return f"/records/77/files/{Path(name).name}"


def entry(name):
    return {"key": Path(name).name, "size": len(CONTENT[name]), "checksum": f"md5:{md5(CONTENT[name])}"}


def fetch(server, folder, source="midog22", **how):
    return downloads.fetch(SOURCES[source], folder, **how).set_index("file", drop=False)


def transfers(server):
    """Paths of files, not of lists, that were asked for."""
    return [asked.path for asked in server.asked if "/v2/" not in asked.path and asked.path != RECORD]


def test_everything_comes_checked_and_recorded(server, tmp_path):
    table = fetch(server, tmp_path)
    assert list(table["file"]) == [JSON, VOTES, *SLIDES]
    assert set(table["state"]) == {"fetched"}
    assert all((tmp_path / name).read_bytes() == content for name, content in CONTENT.items())
    record = json.loads((tmp_path / "downloaded.json").read_text())
    assert set(record) == set(CONTENT)
    facts = record[SLIDES[0]]
    assert facts["checksum"] == table.loc[SLIDES[0], "checksum"] == f"md5:{md5(CONTENT[SLIDES[0]])}"
    assert (facts["bytes"], facts["checksum_is"]) == (len(CONTENT[SLIDES[0]]), "published")
    assert facts["url"].startswith(server.url + address(SLIDES[0]))
    assert re.match(r"\d{4}-\d\d-\d\dT", facts["downloaded"])
    hidden = {".listed.json", ".fetch.lock"}
    assert {path.name for path in tmp_path.iterdir()} == {JSON, VOTES, "images", "downloaded.json", *hidden}


def test_a_second_call_asks_nobody(server, tmp_path):
    fetch(server, tmp_path)
    n_asked = len(server.asked)
    table = fetch(server, tmp_path)
    assert set(table["state"]) == {"there"}
    assert set(table["reason"]) == {"length as expected"}
    assert len(server.asked) == n_asked


def test_only_what_is_missing_comes(server, tmp_path):
    fetch(server, tmp_path)
    (tmp_path / SLIDES[2]).unlink()
    server.asked.clear()
    table = fetch(server, tmp_path)
    assert transfers(server) == [address(SLIDES[2])]
    assert table["state"].value_counts().to_dict() == {"there": 6, "fetched": 1}


def test_a_file_that_was_cut_is_missing_until_it_is_removed(server, tmp_path):
    fetch(server, tmp_path)
    (tmp_path / SLIDES[1]).write_bytes(b"cut")
    row = fetch(server, tmp_path).loc[SLIDES[1]]
    assert (row["state"], row["reason"]) == ("missing", "it has 3 bytes, expected are 7,000")
    assert "left as it is: remove it" in row["remedy"]
    (tmp_path / SLIDES[1]).unlink()
    assert fetch(server, tmp_path).loc[SLIDES[1], "state"] == "fetched"
    assert (tmp_path / SLIDES[1]).read_bytes() == CONTENT[SLIDES[1]]


def test_one_that_changed_inside_is_seen_by_verify_only(server, tmp_path):
    fetch(server, tmp_path)
    (tmp_path / SLIDES[1]).write_bytes(CONTENT[SLIDES[0]])
    assert set(fetch(server, tmp_path)["state"]) == {"there"}
    table = fetch(server, tmp_path, verify=True)
    assert table["state"].value_counts().to_dict() == {"there": 6, "missing": 1}
    assert table.loc[SLIDES[0], "reason"] == "length and checksum as expected"
    assert table.loc[SLIDES[1], "reason"].startswith("its checksum is md5:")


@pytest.mark.parametrize("place", ["images/001.png", "001.png", "images/001.tiff", "001.tif", "WSI/001.tiff"])
def test_a_slide_laid_there_by_hand_is_there_wherever_the_loader_finds_it(server, tmp_path, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_bytes(CONTENT[SLIDES[0]])
    table = fetch(server, tmp_path)
    assert table.loc[SLIDES[0], "state"] == "there"
    assert address(SLIDES[0]) not in transfers(server)
    assert SLIDES[0] not in store.read_json(tmp_path / "downloaded.json")


@pytest.mark.parametrize("name", ["MIDOG2022_training.json", "MIDOG2022_training_png.json"])
def test_a_label_file_of_another_edition_stays_the_only_one(server, tmp_path, name):
    """The loader refuses two."""
    (tmp_path / name).write_bytes(CONTENT[JSON])
    assert fetch(server, tmp_path).loc[JSON, "state"] == "there"
    (file,) = tmp_path.glob("MIDOG2022_training*.json")
    assert labels.files_of(SOURCES["midog22"], tmp_path)[0] == file


def test_the_votes_are_there_under_their_other_name(server, tmp_path):
    (tmp_path / "MIDOGpp.json").write_bytes(b"{}")
    assert fetch(server, tmp_path).loc[VOTES, "state"] == "there"


@pytest.mark.parametrize("place", ["images/001.png", "001.png"])
def test_one_laid_there_by_hand_with_another_length_is_told_and_left(server, tmp_path, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_bytes(b"mine")
    table = fetch(server, tmp_path)
    assert table.loc[SLIDES[0], "state"] == "missing"
    assert table.loc[SLIDES[0], "reason"] == "it has 4 bytes, expected are 7,000"
    assert "left as it is: remove it" in table.loc[SLIDES[0], "remedy"]
    assert (tmp_path / place).read_bytes() == b"mine"
    assert set(table["state"]) == {"missing", "fetched"}


def test_one_laid_there_by_hand_with_another_content_is_seen_by_verify(server, tmp_path):
    (tmp_path / "001.png").write_bytes(b"x" * len(CONTENT[SLIDES[0]]))
    assert fetch(server, tmp_path).loc[SLIDES[0], "state"] == "there"
    table = fetch(server, tmp_path, verify=True)
    assert table.loc[SLIDES[0], "state"] == "missing"
    assert f"expected is md5:{md5(CONTENT[SLIDES[0]])}" in table.loc[SLIDES[0], "reason"]


def test_lengths_that_can_not_be_had_stop_nothing(server, tmp_path, capsys):
    server.always[RECORD] = {"status": 404}
    (tmp_path / "001.png").write_bytes(b"any length")
    table = fetch(server, tmp_path)
    assert "zenodo 77: no lengths and checksums (404" in capsys.readouterr().out
    assert table["state"].value_counts().to_dict() == {"fetched": 6, "there": 1}
    assert table.loc[SLIDES[1], "checksum"] == f"sha256:{hashlib.sha256(CONTENT[SLIDES[1]]).hexdigest()}"
    assert table.loc[SLIDES[1], "reason"] == "no checksum published, the one seen is recorded"
    assert store.read_json(tmp_path / "downloaded.json")[SLIDES[1]]["checksum_is"] == "only seen"


def test_a_place_that_can_not_be_written_is_told(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match=r"file.*make it writable, or name another folder with"):
        fetch(server, tmp_path / "file" / "data")


@pytest.mark.parametrize("content", [b"no JSON", b"[]", b'{"files": [{"key": 1}]}'])
def test_a_list_that_is_not_as_expected_stops_nothing(server, tmp_path, capsys, content):
    server.files[RECORD] = content
    assert set(fetch(server, tmp_path)["state"]) == {"fetched"}
    assert "zenodo 77: no lengths and checksums" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ({"status": 404}, "404 Not Found"),
        ({"status": 403}, "403 Forbidden"),
        ({"content": b"x"}, "the host sends 1 bytes, published are 7,000"),
    ],
)
def test_one_file_that_can_not_be_had_is_a_row_and_the_others_come(server, tmp_path, act, reason):
    server.always[address(SLIDES[0])] = act
    table = fetch(server, tmp_path)
    assert table["state"].value_counts().to_dict() == {"fetched": 6, "missing": 1}
    row = table.loc[SLIDES[0]]
    assert row["state"] == "missing" and row["reason"].startswith(reason)
    assert f"{server.url}{address(SLIDES[0])}" in row["remedy"] and SLIDES[0] in row["remedy"]
    assert not (tmp_path / SLIDES[0]).exists()


def test_figshare_is_asked_for_lists_once_and_at_two_addresses(server, tmp_path):
    """Of each article once, though the collection's list names one twice and the call was stopped."""
    server.always["/files/101"] = {"status": 403}
    server.files["/v2/file/download/101"] = server.files["/files/101"]
    server.always["/files/102"] = {"status": 403}
    table = fetch(server, tmp_path, "ccmct")
    assert list(table["state"]) == ["fetched", "fetched", "missing"]
    host = f"127.0.0.1:{server.server_port}"
    assert table.loc["WSI/b.svs", "reason"] == f"403 Forbidden ({host}); 404 Not Found ({host})"
    assert f"{server.url}/files/102" in table.loc["WSI/b.svs", "remedy"]
    assert table.loc["WSI/a.svs", "checksum"] == f"md5:{md5(b'101' * 400)}"
    assert table.loc["WSI/a.svs", "reason"] == "checksum as published"
    server.asked.clear()
    server.always.clear()
    assert fetch(server, tmp_path, "ccmct").loc["WSI/b.svs", "state"] == "fetched"
    assert [asked.path for asked in server.asked] == ["/files/102"]


def test_figshare_refuses_who_asks_too_often_and_is_asked_again_later(server, tmp_path):
    server.acts["/v2/articles/2/files"] = [{"status": 403}]
    assert set(fetch(server, tmp_path, "ccmct")["reason"]) == {"checksum as published"}


def test_another_content_is_not_asked_for_at_the_other_address(server, tmp_path):
    """It would be the same file, after as many GB."""
    server.files["/files/101"] = b"x" * 1200
    table = fetch(server, tmp_path, "ccmct")
    assert list(table["state"]) == ["fetched", "missing", "fetched"]
    assert table.loc["WSI/a.svs", "reason"].startswith("refused twice: its checksum is md5:")
    assert "/v2/file/download/101" not in [asked.path for asked in server.asked]


def test_a_broken_file_is_gone_on_with_by_the_next_call(server, tmp_path):
    server.acts[address(SLIDES[0])] = [{"n_sent": 2500}, {"status": 404}]
    assert fetch(server, tmp_path).loc[SLIDES[0], "state"] == "missing"
    assert fetch(server, tmp_path).loc[SLIDES[0], "state"] == "fetched"
    assert server.asked[-1].range == "bytes=2500-"
    assert server.n_sent(address(SLIDES[0])) == len(CONTENT[SLIDES[0]])


def test_a_file_whose_name_came_too_late_needs_no_transfer(server, tmp_path):
    """Killed between its record and its name."""
    fetch(server, tmp_path)
    (tmp_path / SLIDES[0]).replace(part_of(tmp_path / SLIDES[0]))
    server.asked.clear()
    assert fetch(server, tmp_path).loc[SLIDES[0], "state"] == "fetched"
    assert transfers(server) == []


def test_too_little_space_is_refused_before_anything_comes(server, tmp_path, monkeypatch):
    free = namedtuple("free", "free")
    needed = sum(map(len, CONTENT.values()))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free(needed - 1))
    with pytest.raises(DownloadError, match=r"GB are still to be fetched, .* GB are free there; free .*DATA=folder"):
        fetch(server, tmp_path)
    assert transfers(server) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free(needed))
    assert set(fetch(server, tmp_path)["state"]) == {"fetched"}


def test_a_full_disk_stops_it_and_says_so(server, tmp_path, monkeypatch):
    def full(urls, part, *others):
        if part == part_of(tmp_path / SLIDES[1]):
            raise OSError(errno.ENOSPC, "No space left on device")
        return transfer(urls, part, *others)

    transfer = downloads.transfer
    monkeypatch.setattr(downloads, "transfer", full)
    with pytest.raises(DownloadError, match="No space left on device; make room"):
        fetch(server, tmp_path)
    monkeypatch.setattr(downloads, "transfer", transfer)
    assert fetch(server, tmp_path)["state"].value_counts().to_dict() == {"there": 3, "fetched": 4}


def test_two_at_once_are_refused(server, tmp_path):
    with store.alone(tmp_path, "fetch"), pytest.raises(DownloadError, match=f"another fetch is at work on {tmp_path}"):
        fetch(server, tmp_path)
    assert server.asked == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("synthetic", "its data are made, not fetched: make paper makes them"),
        ("midog", r"annotations\.json or MIDOG\*\.json, or into its folder images/.*make paper DATA=folder"),
        ("csv", r"annotations\.csv or \*\.csv"),
    ],
)
def test_a_source_with_nothing_to_fetch_says_what_to_do(tmp_path, source, message):
    with pytest.raises(DownloadError, match=message):
        downloads.fetch(SOURCES[source], tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_the_summary_counts_judges_and_names(server, tmp_path):
    fetch(server, tmp_path)
    (tmp_path / SLIDES[0]).unlink()
    (tmp_path / SLIDES[1]).unlink()
    server.always[address(SLIDES[0])] = {"status": 404}
    text = downloads.summary(fetch(server, tmp_path))
    lines = text.splitlines()
    assert lines[0] == f"MIDOG 2022 (midog22) in {tmp_path}"
    assert "there: 2 label files, length as expected" in lines
    assert "there: 3 slides, length as expected" in lines
    assert "fetched: 1 slides, checksum as published" in lines
    assert any(line.startswith(f"missing: {SLIDES[0]}: 404 Not Found") for line in lines)
    assert lines[-1] == "1 of 7 files are missing"
    server.always.clear()
    assert downloads.summary(fetch(server, tmp_path)).endswith("everything is there, 0.000 GB in 7 files")


def test_the_command_s_status_says_whether_everything_is_there(server, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\ntitle: t\ndata: {source: midog22}\nencoders: [uni]\n")
    command = ["data", "--study", str(file), "--data", str(tmp_path / "data")]
    server.always[address(SLIDES[0])] = {"status": 404}
    assert sweep.main(command) == 1
    assert f"missing: {SLIDES[0]}: 404 Not Found" in capsys.readouterr().out
    server.always.clear()
    assert sweep.main([*command, "--verify"]) == 0
    assert "everything is there" in capsys.readouterr().out
    assert sweep.main(["data", "--study", "demo"]) == 2
    assert "made, not fetched" in capsys.readouterr().err


LISTED = pd.read_csv(Path(__file__).parents[2] / "data" / "downloads.csv", dtype=str, keep_default_na=False)


def test_the_list_has_what_each_study_needs_and_no_more():
    """Not MIDOG 2022's unlabelled melanoma (355 to 405), nor CCMCT's other databases."""
    counts = LISTED.groupby(["source", "kind"]).size().to_dict()
    assert counts == {
        ("midog22", "label file"): 4,
        ("midog22", "slide"): 354,
        ("midogpp", "label file"): 2,
        ("midogpp", "slide"): 503,
        ("ccmct", "label file"): 1,
        ("ccmct", "slide"): 32,
    }
    assert not LISTED.duplicated(["source", "file"]).any()
    assert not LISTED[LISTED["kind"] == "slide"].duplicated("id").any()
    numbers = LISTED[LISTED["source"] == "midog22"]["file"].str.extract(r"images/(\d+)\.png")[0].dropna().astype(int)
    assert list(numbers) == list(range(1, 355))


def test_the_list_lays_files_where_the_loader_looks():
    for row in LISTED.itertuples():
        source, folder = SOURCES[row.source], row.file.rpartition("/")[0]
        if row.kind == "slide":
            assert folder in labels.SLIDE_FOLDERS
        else:
            patterns = (*source.main_files, *(name for names in source.beside for name in names))
            assert any(Path(row.file).match(pattern) for pattern in patterns)


def test_what_comes_from_github_is_fixed_by_its_checksum():
    shared = Path(__file__).parents[2].parent / "shared" / "data" / "labels"
    if not shared.is_dir():
        pytest.skip("../shared/data/labels isn't there")
    rows = LISTED[LISTED["host"] == "github"]
    assert len(rows) == 4
    for row in rows.itertuples():
        file = shared / Path(row.file).name
        assert (int(row.bytes), row.sha256) == (file.stat().st_size, store.file_sha256(file))
        assert re.fullmatch(r"DeepMicroscopy/MIDOGpp/[0-9a-f]{40}", row.record)


def test_addresses_are_those_that_give_ranges_and_need_no_browser():
    """Zenodo's API serves no ranges; figshare.com/ndownloader lets only browsers in."""
    urls = {}
    for row in LISTED.drop_duplicates("host").itertuples():
        urls[row.host] = downloads._urls(row)
    assert urls["zenodo"] == [f"https://zenodo.org/records/6547151/files/{JSON}?download=1"]
    assert urls["github"][0].startswith("https://github.com/DeepMicroscopy/MIDOGpp/raw/bd26c8")
    assert urls["github"][0].endswith("/databases/MIDOG%2B%2B.json")
    assert urls["figshare"] == [
        "https://ndownloader.figshare.com/files/40282099",
        "https://api.figshare.com/v2/file/download/40282099",
    ]
