"""The store: nothing half-written, nothing taken for done that isn't, nothing read that was made from something else."""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import unicodedata

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, strategies as st

from mfcore import store
from mfcore.store import files as store_files
from mfcore.streams import generator, stream_seed


def finished(results, config=None, inputs=None, content="x"):
    run = store.open_run(results, "stage", "name", config or {"a": 1}, inputs or {"up": "k"})
    run.path("file.txt").write_text(content)
    return run.finish(["file.txt"], n=3)


def as_file_systems_see(name):
    """The name on a file system that ignores case, normalises and drops dots and blanks at the end."""
    return unicodedata.normalize("NFC", name).casefold().rstrip(". ")


ALIKE = [
    *"aAß肺乳éﬁK\u212a\0 .\ud800",
    "",
    "a.",
    "a ",
    " a",
    "a_",
    "_a",
    "..",
    "a.b",
    "a_b",
    "a b",
    "a-b",
    "a/b",
    "a__b",
    "a\n",
]
ALIKE += ["e\u0301", "ss", "fi", "name", *("x" * n for n in (60, 61, 300, 301))]
ALIKE += [store.file_name(name) for name in ("a b", "肺", "A")]  # what one name's file is called is another's name


def test_names_that_look_alike_have_different_files():
    assert len(set(map(as_file_systems_see, map(store.file_name, ALIKE)))) == len(set(ALIKE)) > 30


@given(st.text(), st.text())
@example("uni", "UNI")
@example("e\u0301", "é")
@example("a", "a.")
def test_different_names_have_different_files(one, other):
    names = [store.file_name(text) for text in (one, other)]
    assert (as_file_systems_see(names[0]) == as_file_systems_see(names[1])) == (one == other)
    for name in names:
        assert name.isascii() and len(name) < 80 and not set(name) & set(". /\\")


@pytest.mark.parametrize("name", ["efficientnet_lite0_64px", "own_vits16_untrained", "h_optimus_0", "all", "__".join("ab")])
def test_plain_names_are_their_files(name):
    assert store.file_name(name) == name


def test_a_run_of_any_name_has_a_folder(tmp_path):
    folders = [
        store.open_run(tmp_path, "embeddings", name, {"a": 1}, {}).finish([]).folder for name in ALIKE if name != "\ud800"
    ]
    assert len(set(folders)) == len(set(ALIKE)) - 1
    assert store.open_run(tmp_path, "train", "net_64px-fold0", {}, {}).folder.name.startswith("train-net_64px_fold0-")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1,\n "b": {"a": 2},\n "a": 3}', "'a' in one object"),
        ('{"x": [{"a": "a:{"}, {"b": 1, "\\u0062": 2}]}', "'b' in one object"),
        ('{"a":\n1, "c": {"d\\"": 0,\n"d\\"": 1}, "a": 2}', "'d\"' in one object"),
    ],
)
def test_a_key_that_json_says_twice_is_refused_by_name(tmp_path, text, said):
    file = tmp_path / "card.json"
    file.write_text(text)
    with pytest.raises(store.StoreError, match=re.escape(f"card.json is not JSON (said twice: {said}; keep one of each)")):
        store.read_json(file)


def test_a_key_of_several_objects_is_read(tmp_path):
    (tmp_path / "f.json").write_text('[{"a": {"a": "a"}}, {"a": "{a: 1, a: 2}"}]')
    assert store.read_json(tmp_path / "f.json") == [{"a": {"a": "a"}}, {"a": "{a: 1, a: 2}"}]


@pytest.mark.parametrize(
    ("before", "threads", "n"),
    [
        ("import torch; torch.set_num_threads(3)", "1", 3),
        ("import torch", "2", 2),
        ("", "5", 5),
        ("import os; os.sched_getaffinity = lambda _: {0, 1, 2, 3}", "", 4),
    ],
)
def test_a_run_records_its_number_of_threads_which_is_no_part_of_its_key(tmp_path, before, threads, n):
    code = f"{before}\nfrom mfcore import store\nprint(store.open_run({str(tmp_path)!r}, 'a', 'b', {{}}, {{}}).finish([]).key)"
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment |= {"OMP_NUM_THREADS": threads} if threads else {}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (record,) = (store.read_json(file) for file in tmp_path.glob("a-*/run.json"))
    assert record["environment"]["n_threads"] == n
    assert done.stdout.strip() == record["key"] == store.open_run(tmp_path, "a", "b", {}, {}).key


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "f.json"
    store.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        store.write_json(path, {"a": float("nan")})
    with pytest.raises(KeyboardInterrupt), store.replacing(path) as aside:
        aside.write_text("half")
        raise KeyboardInterrupt
    assert store.read_json(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["f.json"]


def test_a_run_is_done_when_its_record_stands_and_not_before(tmp_path):
    run = store.open_run(tmp_path, "stage", "name", {"a": 1}, {"up": "k"})
    assert not run.done
    with pytest.raises(FileNotFoundError, match=r"absent\.txt"):
        run.finish(["absent.txt"])
    assert not run.done
    run = finished(tmp_path)
    assert run.done and run.record["facts"] == {"n": 3} and run.record["key"] == run.key
    assert run.record["environment"]["packages"]["numpy"] == np.__version__
    assert run.verify() is run
    run.path("file.txt").write_text("changed")
    with pytest.raises(store.StoreError, match=r"file\.txt is missing or not as recorded"):
        run.verify()


def test_another_config_or_input_is_another_folder(tmp_path):
    folders = {finished(tmp_path, *args).folder for args in [({"a": 1},), ({"a": 2},), ({"a": 1}, {"up": "other"})]}
    assert len(folders) == 3


def test_a_folder_made_from_something_else_names_the_keys_that_differ(tmp_path):
    run = finished(tmp_path)
    store.write_json(run.path("begun.json"), run.identity | {"config": {"a": 1, "b": {"c": 2}}, "inputs": {"up": "z"}})
    with pytest.raises(store.StoreError, match=r"config\.b was \{'c': 2\}, is not there; inputs\.up was z, is k"):
        store.open_run(tmp_path, "stage", "name", {"a": 1}, {"up": "k"})


def test_find_gives_the_matching_run_and_says_what_differs_in_the_nearest(tmp_path):
    with pytest.raises(store.StoreError, match="run the notebook that makes it first"):
        store.find_run(tmp_path, "stage", "name", {"a": 1})
    run = finished(tmp_path)
    assert store.find_run(tmp_path, "stage", "name", {"a": 1}).folder == run.folder
    assert store.find_run(tmp_path, "stage", "name", {"a": 1}, {"up": "k"}).key == run.key
    with pytest.raises(store.StoreError, match=r"is there, but a was 1, is 2; up was k, is j\."):
        store.find_run(tmp_path, "stage", "name", {"a": 2}, {"up": "j"})


def test_an_unfinished_run_is_not_found_and_its_old_leftovers_go_when_it_is_opened_again(tmp_path):
    run = store.open_run(tmp_path, "stage", "name", {"a": 1}, {})
    unit = run.unit_file("u.npy", "")
    code = (
        "import os, sys; from mfcore import store\n"
        "with store.replacing(sys.argv[1]) as aside: aside.write_text('half'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(unit)]).returncode == -signal.SIGKILL
    (leftover,) = unit.parent.iterdir()
    with pytest.raises(store.StoreError):
        store.find_run(tmp_path, "stage", "name", {"a": 1})
    store.open_run(tmp_path, "stage", "name", {"a": 1}, {})
    assert leftover.exists(), "another process may be writing it"
    os.utime(leftover, (1, 1))
    store.open_run(tmp_path, "stage", "name", {"a": 1}, {})
    assert not leftover.exists()


def test_what_a_process_at_work_is_writing_stays_when_another_opens_the_run(tmp_path):
    run = store.open_run(tmp_path, "stage", "name", {"a": 1}, {})
    with store.replacing(run.unit_file("u", "")) as aside:
        aside.write_text("half")
        store.open_run(tmp_path, "stage", "name", {"a": 1}, {})
        aside.write_text("whole")
    assert run.unit_file("u", "").read_text() == "whole"


def test_a_kill_in_mid_write_leaves_whole_files_only(tmp_path, started):
    code = (
        "import sys, pandas as pd; from mfcore import store\n"
        "for i in range(10**6): store.write_parquet(sys.argv[1], pd.DataFrame({'a': [i] * 200000})); print(flush=True)"
    )
    path = tmp_path / "t.parquet"
    process = started([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert [process.stdout.readline() for _ in range(5)] == [b"\n"] * 5
    process.kill()
    process.wait()
    table = pd.read_parquet(path)
    assert len(table) == 200000 and table["a"].nunique() == 1


def test_one_process_is_alone_until_it_ends_however_it_does(tmp_path, started):
    code = "import sys; from mfcore.store import alone\nwith alone(sys.argv[1], 'sweep'): print(flush=True); sys.stdin.read()"
    other = started([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"\n"
    with pytest.raises(store.StoreError, match=r"another sweep is at work on .*; wait for it, or stop it"):
        store.alone(tmp_path, "sweep").__enter__()
    other.kill()
    other.wait()
    with store.alone(tmp_path, "sweep"):
        pass


@pytest.mark.parametrize("n_bytes", [0, 5, store_files.WHOLE_BYTES + 12345])
def test_a_fingerprint_is_of_the_content_alone(tmp_path, n_bytes):
    content = bytearray(np.random.default_rng(0).bytes(n_bytes))
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "b").write_bytes(content)
    first = store_files.fingerprint(tmp_path / "a")
    assert first == store_files.fingerprint(tmp_path / "b") and first[0] == n_bytes
    for place in (0, n_bytes // 2, n_bytes - 1) if n_bytes == 5 else (0, n_bytes - 1) if n_bytes else ():
        other = bytearray(content)
        other[place] ^= 1
        (tmp_path / "b").write_bytes(other)
        assert store_files.fingerprint(tmp_path / "b") != first


@pytest.mark.parametrize("said", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_stops_nobody(tmp_path, monkeypatch, said):
    def lacking(*_):
        raise OSError(said, os.strerror(said))

    monkeypatch.setattr(fcntl, "flock", lacking)
    with store.alone(tmp_path, "sweep"), store.in_turn(tmp_path, "name"), store.alone(tmp_path, "sweep"):
        pass


def test_a_record_that_is_no_json_says_what_to_do(tmp_path):
    (tmp_path / "run.json").write_text('{"a": ')
    with pytest.raises(store.StoreError, match="remove it and run the step again"):
        store.read_json(tmp_path / "run.json")


def test_streams_depend_on_their_names_alone():
    first = generator(42, "split", "midog22", 0).random(4)
    generator(42, "anything").random(100)
    assert np.array_equal(first, generator(42, "split", "midog22", 0).random(4))
    seeds = {stream_seed(s, *n) for s, n in [(42, ("a", "b")), (42, ("ab",)), (42, ("a", "b", "")), (43, ("a", "b"))]}
    assert len(seeds) == 4 and all(0 <= s < 2**63 for s in seeds)
    assert stream_seed(42, "split") == 6166984413365038503  # the same on every machine and in every version
