"""What was found of slides outlives a kill: the same stream without looking again, but at slides that changed or failed."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_pretraining import TINY, write_slides

from mfcore.data.slides import tissue
from mfcore.pretraining import loop, pretrain
from mfcore.pretraining.feed import batches
from mfcore.pretraining.slides import SlideFile
from mfcore.pretraining.source import Source
from mfcore.study import arms as study_arms
from mfcore.study.config import Data, OnlinePatches, Settings
from mfcore.training import processes

SETTINGS = OnlinePatches(size_px=40, um_per_px=(0.25, 0.5, 0.7))
IDS = ("s0", "s1", "s2")
REAL = Path(__file__).parents[2].parent / "shared" / "data" / "slides"


@pytest.fixture
def folder(tmp_path):
    """Three small slides."""
    return write_slides(tmp_path / "slides", 3)


@pytest.fixture
def looked(monkeypatch):
    """The names of slides that were looked at, in order."""
    names, original = [], tissue.look_at

    def look_at(slide):
        names.append(slide.path.stem)
        return original(slide)

    monkeypatch.setattr(tissue, "look_at", look_at)
    return names


def source_of(folder, kept=None, settings=SETTINGS):
    """A source of the slides in a folder, which keeps what it finds in the folder ``kept``."""
    slides = [SlideFile(name, f"{folder}/{name}.tiff") for name in IDS]
    return Source(slides, settings, 3, kept=kept)


def stream_of(source, n=48):
    """Where the first patches lie, and their px."""
    with source:
        (batch,) = batches(source, 0, 1, n)
    return batch.drawn, batch.images


def same(one, other):
    pd.testing.assert_frame_equal(one[0], other[0], check_exact=True)
    np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.parametrize("uniform_over", ["tissue", "slides"])
def test_the_stream_is_the_same_and_no_slide_is_looked_at_again(folder, tmp_path, looked, uniform_over):
    """Without a file, with one that is written, with one that is read: the same places to the last bit, and px."""
    settings, file = OnlinePatches(40, SETTINGS.um_per_px, uniform_over=uniform_over), tmp_path / "kept"
    without = stream_of(source_of(folder, settings=settings))
    same(stream_of(source_of(folder, file, settings)), without)
    assert sorted(looked) == sorted(2 * IDS)
    looked.clear()
    same(stream_of(source_of(folder, file, settings)), without)
    assert not looked
    pd.testing.assert_frame_equal(
        source_of(folder, file, settings).overview(), source_of(folder, settings=settings).overview(), check_exact=True
    )


@pytest.mark.skipif(not REAL.is_dir(), reason="the real slides of ../shared/data are not here")
def test_real_slides_are_kept_to_the_last_bit(tmp_path, looked):
    """Levels whose downsamples are no whole numbers, slides of another scanner."""
    slides = [SlideFile(path.stem, str(path)) for path in sorted(REAL.iterdir())]
    settings, file = OnlinePatches(64, (0.5, 1.0, 2.0)), tmp_path / "kept"
    fresh, kept, again = (Source(slides, settings, 0, kept=each) for each in (None, file, tmp_path / "none"))
    kept.survey()
    again.kept = file
    looked.clear()
    same(stream_of(again, 24), stream_of(fresh, 24))
    assert len(looked) == len(slides), "the source without a file looked, the other didn't"


def test_a_kill_in_the_middle_of_the_survey_keeps_what_was_found(folder, tmp_path, monkeypatch, looked):
    """Written as the survey goes on, not at its end."""

    class Killed(BaseException):
        pass

    look = tissue.look_at

    def dying(slide):
        if len(looked) == 2:
            raise Killed
        return look(slide)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(tissue, "look_at", dying)
        source_of(folder, tmp_path / "kept").survey()
    found = list(looked)
    looked.clear()
    same(stream_of(source_of(folder, tmp_path / "kept")), stream_of(source_of(folder)))
    assert len(found) == 2 and looked[0] not in found and sorted([*found, looked[0]]) == sorted(IDS)


def test_a_slide_that_failed_is_tried_again(folder, tmp_path, caplog):
    """Its disk was away; nothing of it is kept."""
    file, path = tmp_path / "kept", folder / "s1.tiff"
    path.rename(tmp_path / "away")
    first = source_of(folder, file).survey()
    assert set(first.left_out) == {"s1"}
    (tmp_path / "away").rename(path)
    second = source_of(folder, file).survey()
    assert not second.failures
    same(stream_of(second), stream_of(source_of(folder)))


def test_a_slide_that_fails_in_part_is_said_from_what_is_kept(folder, tmp_path):
    """At a resolution at which the slide has nothing to show."""
    settings, file = OnlinePatches(40, (0.1, 0.25)), tmp_path / "kept"
    first, second = (source_of(folder, file, settings).survey() for _ in range(2))
    assert first.failures == second.failures and "at 0.1 um/px on a slide of 0.25" in second.failures["s0"]


def test_processes_share_what_they_find(folder, tmp_path, looked):
    """Each writes whole files; the second process needn't look at a slide that the first one looked at."""
    first, second = (source_of(folder, tmp_path / "kept") for _ in range(2))
    assert first.places(0, 0.25) is not None
    second.survey()
    assert len(looked) == len(IDS)


@pytest.mark.parametrize("uniform_over", ["tissue", "slides"])
def test_a_pretraining_that_was_killed_looks_at_no_slide_again(folder, tmp_path, monkeypatch, looked, uniform_over):
    """Its run's folder keeps what was found, and has it no more when it is done."""
    monkeypatch.setattr(pretrain, "N_WATCHED", 16)
    patches = OnlinePatches(40, (0.25,), uniform_over=uniform_over)
    own = dataclasses.replace(TINY, slides=f"{folder}/", n_steps=2, patches=patches)
    study = Settings("t", "A test", Data("midog"), pretraining=(own,), encoders=("own",))

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(loop, "train", killed)
        study_arms.pretrain(study, "own", tmp_path, tmp_path / "results", "cpu")
    (file,) = (tmp_path / "results").rglob(pretrain.TISSUE)
    assert sorted(looked) == ["s0", "s1", "s2"]
    looked.clear()
    run = study_arms.pretrain(study, "own", tmp_path, tmp_path / "results", "cpu")
    assert run.done and not looked and not file.exists() and not run.path("checkpoint.pt").exists()


def test_a_second_process_removes_nothing(folder, tmp_path, monkeypatch):
    """It is done with its share before the first one has closed the run, which may yet be killed."""

    class Second(processes.Ranks):
        def as_first(self, content):
            return content

    left = []

    def trained(task, pair, run_folder, *_, **__):
        left.extend([run_folder / "checkpoint.pt", run_folder / pretrain.TISSUE / "first"])
        for file in left:
            file.write_text("the first one's")
        return []

    monkeypatch.setattr(processes, "here", lambda: Second(1, 2))
    monkeypatch.setattr(loop, "train", trained)
    own = dataclasses.replace(TINY, slides=f"{folder}/")
    study = Settings("t", "A test", Data("midog"), pretraining=(own,), encoders=("own",))
    study_arms.pretrain(study, "own", tmp_path, tmp_path / "results", "cpu")
    assert [file.read_text() for file in left] == ["the first one's"] * 2
