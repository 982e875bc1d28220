"""What a result was made from decides whether it is current: data, results, study and code that change, or only seem to."""

import json
import os
import shutil
from pathlib import Path

import made_sweep
import numpy as np
import pandas as pd
import pytest

from mfcore import store
from mfcore.store import files as store_files
from mfcore.study import data as study_data
from mfcore.study.config import load_study
from mfcore.study.study import Study
from mfcore.sweep import inputs as sweep_inputs, jobs as sweep_jobs, results as sweep_results

STUDY = """
name: small
title: small
data: {source: midog}
patches: {size_px: 24, um_per_px: 0.25}
splits: {sizes: [1.0], n_folds: 1, by_domain: false}
encoders: ["random:test_vit"]
"""
ENCODER = store.file_name("random:test_vit")
EVERYTHING = {
    "01_extract_patches",
    f"02_embed.{ENCODER}",
    f"03_linear_probe.{ENCODER}",
    "05_data_scaling",
    "12_explore",
    "supplement",
}


class Sweeps:
    """A small study, its data and results; `run` starts a sweep and gives which jobs ran and which runs were made."""

    def __init__(self, folder: Path):
        self.study, self.data = folder / "small.yaml", made_sweep.write_data(folder / "data")
        self.study.write_text(STUDY)
        self.all, self.results = folder / "results", folder / "results" / "small"
        self.all.mkdir()
        self.labels = self.data / "annotations.json"

    def state(self) -> dict[str, int]:
        files = [*self.results.glob("jobs/*.json"), *self.results.glob("*/run.json")]
        return {str(file.relative_to(self.results)): file.stat().st_mtime_ns for file in files}

    def run(self, *options: str, status: int = 0) -> tuple[set[str], set[str], str]:
        before = self.state()
        done = made_sweep.run(self.study, self.data, self.all, *options)
        assert done.returncode == status, done.stdout + done.stderr
        changed = [Path(name) for name, time in self.state().items() if before.get(name) != time]
        jobs = {name.stem for name in changed if name.parent.name == "jobs"}
        if not status:
            assert f"small: {len(jobs)} of {len(EVERYTHING)} jobs to do; " in done.stdout, "Snakemake ran others"
            assert "Job stats" not in done.stdout + done.stderr, "Snakemake's lines have a file"
        return jobs, {name.parent.name.split("-")[0] for name in changed if name.name == "run.json"}, done.stderr

    def page(self) -> str:
        return (self.results / "supplement" / "index.html").read_text()

    def flip(self, n: int) -> None:
        content = json.loads(self.labels.read_text())
        for each in content["annotations"][:n]:
            each["category_id"] = 3 - each["category_id"]
        self.labels.write_text(json.dumps(content))


@pytest.fixture
def sweeps(tmp_path):
    return Sweeps(tmp_path)


def test_paths_may_have_what_yaml_and_snakemake_take_for_their_own_and_a_removed_record_comes_back(tmp_path):
    sweeps = Sweeps(tmp_path / "x #y: {z} 'w'")
    assert sweeps.run()[0] == EVERYTHING
    (sweeps.results / "jobs" / f"03_linear_probe.{ENCODER}.json").unlink()
    assert sweeps.run()[0] == {f"03_linear_probe.{ENCODER}", "05_data_scaling", "12_explore", "supplement"}
    assert (sweeps.results / "jobs" / f"03_linear_probe.{ENCODER}.json").is_file()


def test_changed_data_run_what_depends_on_them_and_the_first_data_give_the_first_results_again(sweeps):
    made = {"patches", "twins", "splits", "embeddings", "probe"}
    assert sweeps.run()[:2] == (EVERYTHING, made)
    first, labels = sweeps.page(), sweeps.labels.read_text()
    os.utime(sweeps.study)
    os.utime(sweeps.labels)
    for slide in sweeps.data.glob("images/*"):
        os.utime(slide)
    assert sweeps.run()[:2] == (set(), set()), "touched, not changed"
    sweeps.flip(11)
    assert sweeps.run()[:2] == (EVERYTHING, made), "labels B"
    assert sweeps.page() != first
    sweeps.labels.write_text(labels)
    assert sweeps.run()[:2] == (EVERYTHING, set()), "labels A again: their finished runs are found"
    assert sweeps.page() == first
    slide = sweeps.data / "images" / "3.tiff"
    content, state = bytearray(slide.read_bytes()), slide.stat()
    content[-5000] ^= 1
    slide.write_bytes(content)
    assert slide.stat().st_size == state.st_size
    assert sweeps.run()[:2] == (EVERYTHING, made), "another slide of the same length"
    os.utime(slide, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert sweeps.run("--verify")[:2] == (set(), set())


def test_what_is_missing_is_made_again_and_what_was_edited_is_refused(sweeps):
    sweeps.run()
    first = sweeps.page()
    (embeddings,) = sweeps.results.glob("embeddings-*/embeddings.h5")
    embeddings.unlink()
    after_embedding = EVERYTHING - {"01_extract_patches"}
    assert sweeps.run()[:2] == (after_embedding, {"embeddings"})
    (sweeps.results / "figures" / "05_data_scaling.csv").unlink()
    (sweeps.results / "supplement" / "index.html").unlink()
    assert sweep_results.check(sweeps.results, EVERYTHING) == {"05_data_scaling", "supplement"}
    (predictions,) = sweeps.results.glob("probe-*/predictions.parquet")
    table = pd.read_parquet(predictions)
    store.write_parquet(predictions, table.assign(score=table["label"].astype(float)))
    jobs, runs, said = sweeps.run(status=2)
    assert not jobs | runs and f"{predictions} isn't as it was made; remove {predictions.parent} and run again" in said
    shutil.rmtree(predictions.parent)
    assert sweeps.run()[1] == {"probe"} and sweeps.page() == first, "the remedy helps"
    copy = sweeps.all / "copy"
    shutil.copytree(sweeps.results, copy, copy_function=shutil.copyfile)
    assert sweep_results.check(copy, EVERYTHING) == set(), "a copy, of other times"
    times = {facts["mtime_ns"] for run in store.runs(copy) for facts in run.record["files"].values()}
    assert {file.stat().st_mtime_ns for file in copy.glob("*-*/*.*") if file.name not in ("begun.json", "run.json")} == times
    state = predictions.stat()
    predictions.write_bytes(bytes(state.st_size))
    os.utime(predictions, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert sweep_results.check(sweeps.results, EVERYTHING) == set(), "of the same size and time"
    assert "isn't as it was made" in sweeps.run("--verify", status=2)[2]
    predictions.write_bytes(bytes(10))
    with pytest.raises(store.StoreError, match=r"predictions\.parquet isn't as it was made"):
        sweep_results.check(sweeps.results, EVERYTHING)


# ---- results ----


def _job(results, name, *runs, files=()):
    store.write_json(results / "jobs" / f"{name}.json", {"runs": [run.folder.name for run in runs], "files": dict(files)})


def _run(results, name, *files):
    run = store.open_run(results, "train", name, {}, {})
    for file in files:
        run.path(file).parent.mkdir(exist_ok=True)
        run.path(file).write_text(file)
    return run.finish(list(files))


def test_a_missing_file_of_a_unit_has_only_that_unit_done_again(tmp_path):
    run, other = _run(tmp_path, "net", "p", "units/a.safetensors", "units/b.safetensors"), _run(tmp_path, "x", "p")
    for unit in "ab":
        run.unit_file(unit).write_text("predictions")
    _job(tmp_path, "first", run)
    _job(tmp_path, "second", run, other)
    _job(tmp_path, "third", other)
    assert sweep_results.check(tmp_path, ["first", "second", "third", "never run"]) == set()
    run.path("units/a.safetensors").unlink()
    assert sweep_results.check(tmp_path, ["first", "second", "third"]) == {"first", "second"} and not run.done and other.done
    assert {file.name for file in run.path("units").iterdir()} == {"b.parquet", "b.safetensors"}


def test_nothing_is_changed_where_something_is_refused_and_all_that_is_wrong_is_said(tmp_path):
    run, lacking = _run(tmp_path, "net", "p", "q"), _run(tmp_path, "x", "p")
    _job(tmp_path, "job", run, lacking)
    lacking.path("p").unlink()
    for file in (run.path("p"), run.path("q")):
        file.write_text("edited")
    with pytest.raises(store.StoreError) as caught:
        sweep_results.check(tmp_path, ["job"])
    assert all(str(file) in str(caught.value) for file in (run.path("p"), run.path("q")))
    assert lacking.done


def test_figures_that_a_notebook_run_by_hand_wrote_anew_are_made_again(tmp_path, capfd):
    figure = tmp_path / "figure.csv"
    figure.write_text("0.1")
    _job(tmp_path, "job", files={figure.name: store.recorded(figure)})
    figure.write_text("0.10000000000000001")
    assert sweep_results.check(tmp_path, ["job"]) == {"job"}
    assert f"{figure} isn't as it was made: made again" in capfd.readouterr().err
    other = tmp_path / "other.csv"
    other.write_text("1")
    _job(tmp_path, "second", files={other.name: store.recorded(other)})
    other.write_text("2.0")
    assert sweep_results.check(tmp_path, ["job", "second"]) == {"job", "second"}
    (line,) = capfd.readouterr().err.splitlines()
    assert line == f"{figure} and 1 more file aren't as they were made: made again"


@pytest.mark.parametrize("content", ["[]", "{}", '{"stage": ', '{"stage": 1, "name": 2, "config": 3, "inputs": 4, "files": 5}'])
def test_a_damaged_record_of_a_run_is_named_with_what_to_do(tmp_path, content):
    run = _run(tmp_path, "net", "p")
    run.path("run.json").write_text(content)
    for call in (lambda: store.find_run(tmp_path, "train", "net", {}), lambda: store.runs(tmp_path, "train")):
        with pytest.raises(store.StoreError, match=r"run\.json is (damaged|not JSON).*; remove"):
            call()


def test_a_damaged_table_is_named_with_what_to_do(tmp_path):
    run = _run(tmp_path, "net", "predictions.parquet")
    with pytest.raises(store.StoreError, match=rf"predictions\.parquet is missing or damaged .*; remove {run.folder} and"):
        store.read_parquet(run.path("predictions.parquet"))


def test_damaged_embeddings_are_named_with_what_to_do(tmp_path):
    run = _run(tmp_path, "net", "embeddings.h5")
    with pytest.raises(store.StoreError, match=rf"embeddings\.h5 can't be read .*; remove {run.folder} and embed again"):
        store.read_embeddings(run)


# ---- finding ----


def test_the_run_that_was_opened_last_is_found_whichever_finished_last(tmp_path):
    for data in ("A", "B"):
        store.open_run(tmp_path, "patches", "s", {"size": 1}, {"labels": data}).finish([])
    assert store.find_run(tmp_path, "patches", "s", {"size": 1}).identity["inputs"] == {"labels": "B"}
    store.open_run(tmp_path, "patches", "s", {"size": 1}, {"labels": "A"})
    assert store.find_run(tmp_path, "patches", "s", {"size": 1}).identity["inputs"] == {"labels": "A"}
    store.open_run(tmp_path, "patches", "s", {"size": 1}, {"labels": "C"})
    with pytest.raises(store.StoreError, match="no finished 'patches' run 's'"):
        store.find_run(tmp_path, "patches", "s", {"size": 1})


# ---- states ----


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two modules, which a notebook reaches."""
    (tmp_path / "mfcore" / "analysis").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "mfcore" / "analysis" / "mfcore.mplstyle").touch()
    (tmp_path / "mfcore" / "__init__.py").write_text('LAZY = {"later": "mfcore.e"}\n')
    (tmp_path / "mfcore" / "e.py").write_text("def later():\n    return 1\n")
    (tmp_path / "mfcore" / "a.py").write_text("from mfcore.b import f\n\n\ndef g():\n    return f() + 1\n")
    (tmp_path / "mfcore" / "b.py").write_text('"""B."""\n\n\ndef f():\n    """One."""\n    return 1  # one\n')
    (tmp_path / "mfcore" / "c.py").write_text("X = 1\n")
    notebook = tmp_path / "notebooks" / "n.py"
    notebook.write_text("from mfcore import a\n\na.g()\n")
    monkeypatch.setattr(sweep_inputs, "ROOT", tmp_path)
    monkeypatch.setattr(sweep_inputs, "PACKAGE", tmp_path / "mfcore")
    return notebook


def _rewritten(file, old, new):
    file.write_text(file.read_text().replace(old, new))
    sweep_inputs._module.cache_clear()


def test_a_comment_a_docstring_and_a_move_are_no_change_of_the_code_and_a_function_is(package):
    first, modules = sweep_inputs.code_of(package), package.parents[1] / "mfcore"
    _rewritten(modules / "b.py", "# one", "# 1")
    _rewritten(modules / "b.py", '"""One."""', '"""The first number."""\n')
    _rewritten(modules / "b.py", "\n\n\ndef", "\n\n\n\n\ndef")
    _rewritten(modules / "c.py", "X = 1", "X = 2")
    assert sweep_inputs.code_of(package) == first
    (modules / "b.py").rename(modules / "moved.py")
    _rewritten(modules / "a.py", "mfcore.b", "mfcore.moved")
    assert sweep_inputs.code_of(package) == first
    _rewritten(modules / "moved.py", "return 1", "return 2")
    assert sweep_inputs.code_of(package) != first
    _rewritten(modules / "moved.py", "return 2", "return 1")
    _rewritten(package, "a.g()", "a.g() + 1")
    assert sweep_inputs.code_of(package) != first


def test_what_mfcore_gives_at_first_use_counts_as_code_of_who_asks_for_it(package):
    without, later = sweep_inputs.code_of(package), package.parents[1] / "mfcore" / "e.py"
    _rewritten(later, "return 1", "return 2")
    assert sweep_inputs.code_of(package) == without
    _rewritten(package, "from mfcore import a", "from mfcore import a, later")
    first = sweep_inputs.code_of(package)
    _rewritten(later, "return 2", "return 3")
    assert sweep_inputs.code_of(package) != first


def test_a_packages_face_and_its_facts_count_as_code(package):
    room = package.parents[1] / "mfcore" / "room"
    (room / "cards").mkdir(parents=True)
    (room / "__init__.py").write_text("from mfcore.room.d import h\n")
    (room / "d.py").write_text("def h():\n    return 1\n")
    (room / "cards" / "one.yaml").write_text("n_dims: 1\n")
    for name in ("book.css", "book.js", "conf.py"):  # Sphinx reads them, nobody imports them
        (room / name).write_text("x = 1\n")
    without = sweep_inputs.code_of(package)
    _rewritten(package.parents[1] / "mfcore" / "c.py", "X = 1", "X = 1\nfrom mfcore import room")
    _rewritten(package.parents[1] / "mfcore" / "b.py", '"""B."""', "from mfcore.c import X")
    first = sweep_inputs.code_of(package)
    assert first != without
    _rewritten(room / "d.py", "return 1", "return 2")
    second = sweep_inputs.code_of(package)
    digests = {first, second}
    for file in (room / "cards" / "one.yaml", room / "book.css", room / "book.js", room / "conf.py"):
        _rewritten(file, "1", "2")
        digests.add(sweep_inputs.code_of(package))
    assert len(digests) == 6


def _written(study, tmp_path, data, job, **how):
    sweep_inputs.write(study, tmp_path / "results", data, [job], **how)
    return {file.stem: file.stat().st_mtime_ns for file in (tmp_path / "results" / "inputs").glob("[!.]*.json")}


def test_data_that_a_job_makes_are_no_change_and_an_edit_before_the_next_sweep_is(tmp_path):
    study = load_study(_file(tmp_path))
    job = sweep_jobs.jobs_of(study)["01_extract_patches"]
    before = _written(study, tmp_path, tmp_path / "data", job)
    made_sweep.write_data(tmp_path / "data")
    assert _written(study, tmp_path, tmp_path / "data", job, anew=False) == before
    assert _written(study, tmp_path, tmp_path / "data", job) == before
    shutil.move(tmp_path / "data", tmp_path / "away")
    assert _written(study, tmp_path, tmp_path / "data", job) == before, "a disk that is away"
    shutil.move(tmp_path / "away", tmp_path / "data")
    slide = tmp_path / "data" / "images" / "1.tiff"
    slide.write_bytes(slide.read_bytes()[::-1])
    after = _written(study, tmp_path, tmp_path / "data", job)
    assert {name for name in after if after[name] != before[name]} == {"data"}
    (tmp_path / "data" / "annotations.json").write_text("damaged")
    assert _written(study, tmp_path, tmp_path / "data", job)["data"] != after["data"], "the job that reads them says it"


def _file(tmp_path, more=""):
    file = tmp_path / "small.yaml"
    file.write_text(STUDY + more)
    return file


def test_an_unchanged_file_is_only_looked_up(tmp_path, monkeypatch):
    study = load_study(_file(tmp_path))
    job = sweep_jobs.jobs_of(study)["01_extract_patches"]
    data = made_sweep.write_data(tmp_path / "data")
    before = _written(study, tmp_path, data, job)
    monkeypatch.setattr(store_files, "fingerprint", lambda path: pytest.fail("read again"))
    monkeypatch.setattr(store, "file_sha256", lambda path: "code" if path.suffix == ".py" else "style")
    assert _written(study, tmp_path, data, job)["data"] == before["data"]


def test_jobs_depend_on_what_they_read_alone(tmp_path):
    more = "tasks: [{name: pcam_10shot}]\npretraining: [{name: own, n_steps: 4}, {name: far, n_steps: 4, slides: ../others}]\n"
    study = load_study(_file(tmp_path, more))
    jobs = sweep_jobs.jobs_of(study)
    read = {name: set(sweep_inputs.states_of(study, job)[2:]) for name, job in jobs.items()}
    (others,) = read["08_pretrain.far"]
    assert others.startswith("slides_") and read["08_pretrain.own"] == read["01_extract_patches"] == {"data"}
    assert read["07_online_patching"] == {"data", others} and read["09_downstream_tasks.pcam_10shot"] == {"task_pcam"}
    assert read[f"02_embed.{ENCODER}"] == read["05_data_scaling"] == set()


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        ("networks: [{name: net, architecture: 'folder:WEIGHTS'}]\n", "04_train_end_to_end.net.fold0"),
        ("pretraining: [{name: own, n_steps: 4, start: 'folder:WEIGHTS'}]\n", "08_pretrain.own"),
    ],
    ids=["network", "start of a pretraining"],
)
def test_weights_in_a_folder_are_watched_wherever_a_study_names_them(tmp_path, more, rule):
    weights = tmp_path / "mine" / "weights.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"one")
    study = load_study(_file(tmp_path, more.replace("WEIGHTS", str(weights.parent))))
    job = sweep_jobs.jobs_of(study)[rule]
    before = _written(study, tmp_path, tmp_path / "data", job)
    weights.write_bytes(b"two")
    after = _written(study, tmp_path, tmp_path / "data", job)
    assert {name for name in after if after[name] != before[name]} == {"encoders"}


def test_a_task_whose_image_in_the_middle_is_replaced_is_another(tmp_path):
    study = load_study(_file(tmp_path, "tasks: [{name: crc}]\n"))
    job = sweep_jobs.jobs_of(study)["09_downstream_tasks.crc"]
    folder = tmp_path / "data" / "tasks" / "crc"
    folder.mkdir(parents=True)
    for i in range(9):
        (folder / f"{i}.png").write_bytes(bytes([i]) * 100)
    before = _written(study, tmp_path, tmp_path / "data", job)
    (folder / "4.png").write_bytes(b"x" * 100)
    after = _written(study, tmp_path, tmp_path / "data", job)
    assert {name for name in after if after[name] != before[name]} == {"task_crc"}


def test_a_slide_of_several_files_is_taken_whole(tmp_path):
    (tmp_path / "s").mkdir()
    for name in ("s.mrxs", "s/Slidedat.ini", "s/Data0001.dat"):
        (tmp_path / name).write_text(name)
    for slide in (tmp_path / "s.mrxs", tmp_path / "s"):
        first = store_files.Fingerprints().of_slide(slide)
        assert store_files.Fingerprints().of_slide(slide) == first
        (tmp_path / "s" / "Data0001.dat").write_text("s/Data0002.dat")
        assert store_files.Fingerprints().of_slide(slide) != first
        (tmp_path / "s" / "Data0001.dat").write_text("s/Data0001.dat")


def test_patches_of_a_derived_study_are_found_by_the_data_of_the_study_s_own(tmp_path):
    """What a switch was measured on before is not taken for today's."""
    from mfcore.sweep import switches

    settings = load_study(_file(tmp_path, "effects: {encoder: 'random:test_vit', switches: [border]}\n"))
    data = made_sweep.write_data(tmp_path / "data")
    study = Study(settings, tmp_path / "r")
    this = switches.derived(study, "border")

    def made():
        own = study_data.extract(settings, data, study.folder)
        switches._draw(study, this, data, 1)
        return own, study_data.find_patches(this.settings, study.folder)

    first = made()
    slide = data / "images" / "1.tiff"
    content = slide.read_bytes()
    slide.write_bytes(content[:-50] + bytes(np.frombuffer(content[-50:], np.uint8) ^ 1))
    second = made()
    assert first[1].key != second[1].key and second[1].identity["inputs"] == second[0].identity["inputs"]
    slide.write_bytes(content)
    assert made()[1].key == first[1].key


def test_a_record_that_names_nothing_counts_as_missing(tmp_path):
    store.write_json(tmp_path / "jobs" / "job.json", [])
    assert sweep_results.check(tmp_path, ["job"]) == {"job"}
