"""A study's pretraining from slides to an encoder: its run, its card, its start, several processes, the command line."""

import dataclasses
import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from made_pretraining import DINOV2, TINY, VIT, write_slides
from running import HANG_S

from mfcore import cli as command, encoders, store
from mfcore.analysis import exhibit
from mfcore.analysis.encoders import pretraining_run
from mfcore.data.synthetic.slides import write_pyramid
from mfcore.encoders import EncoderError
from mfcore.pretraining import networks, pretrain
from mfcore.pretraining.method import in_full
from mfcore.pretraining.objective import PretrainingError
from mfcore.pretraining.slides import slides_in
from mfcore.study import arms as study_arms, data as study_data, encoders as study_encoders, pretrained
from mfcore.study.config import Data, OnlinePatches, Patches, Pretraining, Settings, load_study
from mfcore.study.study import Study
from mfcore.training import processes

ROOT = Path(__file__).parents[2]
SHORT = dataclasses.replace(TINY, n_steps=4)
YAML = """
name: shared
title: Two processes
data: {source: synthetic}
encoders: [vit_tiny_random]
pretraining:
  - &own
    name: own
    architecture: vit_tiny_patch16_224
    arguments: {patch_size: 8, embed_dim: 24, depth: 2, num_heads: 2}
    slides: SLIDES
    patches: {size_px: 40, um_per_px: [0.25, 0.5]}
    crops: {global_px: 32, local_px: 16, n_local: 2}
    n_steps: 4
    batch_size: 4
    base_lr: 0.2
    drop_path: 0.0
    n_prototypes: 16
    head_hidden: 12
    head_bottleneck: 8
    centring: mean
    koleo_weight: 0.0       # whose neighbours are those of a process
  - <<: *own
    name: second
    method: dinov2
    base_lr: 0.03
    centring: sinkhorn_knopp
"""


@pytest.fixture(autouse=True)
def few_watched(monkeypatch):
    monkeypatch.setattr(pretrain, "N_WATCHED", 32)


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    return write_slides(tmp_path_factory.mktemp("slides"))


def study_of(slides, **changed):
    """A study that pretrains ``own`` from the folder of slides."""
    own = dataclasses.replace(SHORT, slides=f"{slides}/", **changed)
    return Settings("t", "A test", Data("midog"), pretraining=(own,), encoders=("own",))


@pytest.fixture(scope="module")
def done(slides, tmp_path_factory):
    """A finished pretraining: study, results, run."""
    study, results = study_of(slides), tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pretrain, "N_WATCHED", 32)
        return study, results, study_arms.pretrain(study, "own", "nowhere", results, "cpu")


def test_a_run_holds_what_it_says(done):
    study, results, run = done
    facts = run.verify().record["facts"]
    assert run.folder == pretrained.find(study, "own", results).folder and run.done
    assert {"history.jsonl", "encoders/step0000004/card.json"} <= set(run.record["files"])
    assert facts["n_patches"] == 16 and facts["n_slides"] == 2 and facts["slides_left_out"] == {}
    assert facts["precision"] == "float32" and facts["n_processes"] == 1
    assert not run.path("checkpoint.pt").exists()
    history = pretrain.load_history(run)
    assert history["step"].tolist() == [1, 2, 3, 4] and history["rankme"].notna().any()


def test_a_finished_pretraining_is_not_repeated(done, monkeypatch):
    study, results, run = done
    monkeypatch.setattr(pretrain.loop, "train", None)
    assert study_arms.pretrain(study, "own", "nowhere", results, "cpu").folder == run.folder


def test_a_finished_pretraining_may_lie_on_a_disk_that_is_only_read(done, monkeypatch):
    study, results, run = done

    def refused(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("unlink", "touch", "write_text"):
        monkeypatch.setattr(Path, name, refused)
    assert study_arms.pretrain(study, "own", "nowhere", results, "cpu").folder == run.folder


AT_WORK = """
import sys
from mfcore.study.config import load_study
from mfcore.pretraining import loop, pretrain
from mfcore.study import arms as study_arms
pretrain.N_WATCHED = 8
def waiting(*_):
    print(flush=True)
    sys.stdin.read()
loop._Training.run_step = waiting
study_arms.pretrain(load_study(sys.argv[1]), "own", "nowhere", sys.argv[2], "cpu")
"""


def test_two_processes_are_not_at_work_on_one_pretraining(slides, tmp_path, started):
    """The second is refused until the first has ended, if by a kill; and then goes on."""
    file = tmp_path / "shared.yaml"
    file.write_text(YAML.replace("SLIDES", f"{slides}/"), encoding="utf-8")
    command, env = [sys.executable, "-c", AT_WORK, str(file), str(tmp_path)], {**os.environ, "OMP_NUM_THREADS": "1"}
    other = started(command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"\n"
    with pytest.raises(store.StoreError, match=r"another pretraining is at work on .*pretrain-own-.*; wait for it"):
        study_arms.pretrain(load_study(file), "own", "nowhere", tmp_path, "cpu")
    other.kill()
    other.wait()
    assert study_arms.pretrain(load_study(file), "own", "nowhere", tmp_path, "cpu").done


def test_one_that_was_finished_meanwhile_is_not_repeated(slides, tmp_path, monkeypatch):
    """By another process, while this one looked for the lock."""
    study, original = study_of(slides, n_steps=2), networks.build

    def meanwhile(*given):
        monkeypatch.setattr(pretrain.networks, "build", original)
        finished = study_arms.pretrain(study, "own", "nowhere", tmp_path, "cpu").record
        monkeypatch.setattr(pretrain.loop, "train", None)
        kept.append(finished)
        return original(*given)

    kept = []
    monkeypatch.setattr(pretrain.networks, "build", meanwhile)
    assert study_arms.pretrain(study, "own", "nowhere", tmp_path, "cpu").record == kept[0]


def test_too_many_processes_are_refused_before_slides_are_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "here", lambda: processes.Ranks(0, 3))
    monkeypatch.setattr(study_data, "prepare", None)
    with pytest.raises(PretrainingError, match="4 patches can't be shared evenly by 3 processes"):
        study_arms.pretrain(Settings("t", "A test", Data("midog"), pretraining=(SHORT,)), "own", "nowhere", tmp_path, "cpu")


def test_a_process_with_other_slides_than_the_first_is_refused(slides, tmp_path, monkeypatch):
    """On a machine of its own, with a copy of the slides that isn't whole."""

    class Second(processes.Ranks):
        def as_first(self, content):
            return ("0123abcd", False) if isinstance(content, tuple) else content

    monkeypatch.setattr(processes, "here", lambda: Second(1, 2))
    with pytest.raises(PretrainingError, match=r"process 1 finds other slides .*; give all machines the same files"):
        study_arms.pretrain(study_of(slides), "own", "nowhere", tmp_path, "cpu")


POOLS = {"architecture": "resnet10t", "arguments": {}}  # by the running means of what the teacher saw


@pytest.mark.parametrize(
    ("changed", "arguments", "readout"), [({}, {**VIT, "img_size": 32}, "class"), (POOLS, {}, "pooled")], ids=["ViT", "ResNet"]
)
def test_the_encoder_is_the_teacher(slides, tmp_path, monkeypatch, changed, arguments, readout):
    """Loaded strictly by its card, with the teacher's features."""
    kept, original = [], networks.build

    def building(*given):
        kept.append(original(*given))
        return kept[-1]

    monkeypatch.setattr(pretrain.networks, "build", building)
    study = study_of(slides, **changed)
    study_arms.pretrain(study, "own", "nowhere", tmp_path, "cpu")
    made = encoders.load(study_encoders.card_of(study, "own", tmp_path))
    patches = np.random.default_rng(0).integers(0, 256, (5, 224, 224, 3), dtype=np.uint8)
    centre = patches[:, 96:128, 96:128].transpose(0, 3, 1, 2) / 255.0
    mean, std = (np.array(values)[:, None, None] for values in (networks.IMAGENET_MEAN, networks.IMAGENET_STD))
    with torch.no_grad():
        expected = kept[0].teacher.eval().encoder(torch.from_numpy((centre - mean) / std).float())  # without a classifier
    np.testing.assert_allclose(made.embed(patches), expected.numpy(), rtol=0, atol=1e-5)
    assert (made.card.arguments, made.card.readout) == (arguments, readout) and made.card.um_per_px == (0.25, 0.5)
    student = study_encoders.card_of(study, "own@2", tmp_path)
    assert student.sha256 != made.card.sha256, "a snapshot is another encoder"


@pytest.mark.parametrize(
    ("patch_um_per_px", "taught", "expected"),
    [
        (0.25, (0.25, 0.5, 1.0, 2.0), (224, 32)),  # as taught: the centre
        (0.25, (0.5,), (112, 32)),  # resized to 0.5 um/px first
        (0.25, (2.0, 1.0), (56, 32)),
        (0.5, (0.25,), (448, 32)),
        (0.3, (0.25, 0.5), (269, 32)),
        (None, (0.5,), (224, 32)),
        (0.25, (4.0,), (32, 32)),  # no less than the crop
    ],
)
def test_a_card_shows_patches_as_they_were_taught(patch_um_per_px, taught, expected):
    own = dataclasses.replace(SHORT, patches=OnlinePatches(40, taught))
    study = Settings("t", "A test", Data("midog"), patches=Patches(224, patch_um_per_px), pretraining=(own,))
    assert networks.input_px(in_full(own), study.patches) == expected


def test_it_goes_on_from_an_encoder_of_the_study(done, slides):
    """Whose key enters the run's."""
    study, results, first = done
    second = Pretraining(**{**vars(study.pretraining[0]), **DINOV2, "name": "second", "start": "own", "n_steps": 2})
    both = dataclasses.replace(study, pretraining=(study.pretraining[0], second))
    pair = networks.build(in_full(second), study_arms.start_of(both, second, results))
    weights = encoders.load(study_encoders.card_of(study, "own", results)).model.state_dict()
    assert all(torch.equal(pair.student.encoder.state_dict()[name], tensor) for name, tensor in weights.items())
    run = study_arms.pretrain(both, "second", "nowhere", results, "cpu")
    assert "start" in run.record["inputs"] and "start" not in first.record["inputs"]
    assert f"start: {'own'}" in study_encoders.card_of(both, "second", results).facts


def test_a_start_that_is_not_pretrained_yet_is_said(slides, tmp_path):
    study = study_of(slides)
    second = dataclasses.replace(study.pretraining[0], name="second", start="own")
    both = dataclasses.replace(study, pretraining=(study.pretraining[0], second))
    with pytest.raises(EncoderError, match="encoder 'own' isn't there"):
        study_arms.pretrain(both, "second", "nowhere", tmp_path, "cpu")


def test_few_distinct_patches_are_drawn_again_but_not_watched(slides, tmp_path, monkeypatch):
    """RankMe is of other patches than those that are learnt from."""
    watched, original = [], pretrain._watched

    def noted(source, settings, n_workers):
        watched.append(original(source, settings, n_workers))
        return watched[-1]

    def learning(training, batch):
        learnt.extend(image.tobytes() for image in batch.images)
        return learn(training, batch)

    learnt, learn = [], pretrain.loop._Training._learn
    monkeypatch.setattr(pretrain.loop._Training, "_learn", learning)
    monkeypatch.setattr(pretrain, "_watched", noted)
    study = study_of(slides, patches=OnlinePatches(40, (0.25,), n_distinct=5))
    run = study_arms.pretrain(study, "own", "nowhere", tmp_path, "cpu")
    assert run.done and len(learnt) == 16 and len(set(learnt)) == 5
    assert len({image.tobytes() for image in watched[0]}) == 32


def test_the_history_is_watched(slides, tmp_path):
    seen = []
    study_arms.pretrain(study_of(slides), "own", "nowhere", tmp_path, "cpu", watch=seen.append)
    assert [len(table) for table in seen] == [1, 2, 3, 4] and {"step", "loss", "rankme"} <= set(seen[0])


def test_two_processes_pretrain_as_one(slides, tmp_path, started):
    """torchrun on this machine's CPU, DINO and DINOv2: history, positions and encoder up to rounding, written once."""
    file = tmp_path / "shared.yaml"
    file.write_text(YAML.replace("SLIDES", f"{slides}/"), encoding="utf-8")
    study, n_threads = load_study(file), torch.get_num_threads()
    script = """
import sys
from mfcore.training import processes
from mfcore.study.config import load_study
from mfcore.pretraining import pretrain
from mfcore.study import arms as study_arms
pretrain.N_WATCHED = 32
with processes.joined("cpu") as device:
    for name in ("own", "second"):
        run = study_arms.pretrain(load_study(sys.argv[1]), name, "nowhere", sys.argv[2], device)
"""
    said = [str(file), str(tmp_path / "two")]
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*launcher, str(tmp_path / "script.py"), *said]
    work = started(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output = work.communicate(timeout=HANG_S)[0]
    assert work.returncode == 0, output
    torch.set_num_threads(1)
    for name in ("own", "second"):
        one = study_arms.pretrain(study, name, "nowhere", tmp_path / "one", "cpu")
        two = pretrained.find(study, name, tmp_path / "two")
        assert two.verify().record["facts"]["n_processes"] == 2
        histories = [pretrain.load_history(run).drop(columns=["seconds", "patches_per_second"]) for run in (one, two)]
        pd.testing.assert_frame_equal(*histories, rtol=2e-3, atol=1e-5)
        weights = [
            encoders.load(study_encoders.card_of(study, name, tmp_path / where)).model.state_dict() for where in ("one", "two")
        ]
        for key, tensor in weights[0].items():
            torch.testing.assert_close(tensor, weights[1][key], rtol=1e-3, atol=1e-4)
    torch.set_num_threads(n_threads)


def test_every_process_looks_at_the_slides_before_it_waits_for_others(slides, tmp_path, monkeypatch):
    """Else those that don't measure RankMe would wait for the first one's look at thousands of slides, and give up."""

    class Second(processes.Ranks):
        def as_first(self, content):
            return content

    class Stop(Exception):
        pass

    looked = []

    def stopping(task, *_, **__):
        raise Stop

    monkeypatch.setattr(processes, "here", lambda: Second(1, 2))
    monkeypatch.setattr(pretrain.loop, "train", stopping)
    original = pretrain.Source.survey
    monkeypatch.setattr(
        pretrain.Source, "survey", lambda source, n_workers=1: looked.append(n_workers) or original(source, n_workers)
    )
    with pytest.raises(Stop):
        study_arms.pretrain(study_of(slides), "own", "nowhere", tmp_path, "cpu", n_workers=2)
    assert looked == [2]


def test_the_command_line_says_what_is_wrong(slides, tmp_path, capsys, monkeypatch):
    file = tmp_path / "shared.yaml"
    file.write_text(YAML.replace("SLIDES", f"{slides}/"), encoding="utf-8")
    said = ["--study", str(file), "--device", "cpu", "--results", str(tmp_path)]
    assert command.main(["pretrain", *said, "--encoder", "other"]) == 1
    assert "has ['own', 'second']" in capsys.readouterr().err
    several = tmp_path / "wrong.yaml"
    several.write_text(
        "name: t\ntitle: t\ndata: {source: midog}\npretraining: [{name: p, n_steps: 0, warmup: 2}]\nencoders: [a]"
    )
    assert command.main(["pretrain", *said, "--study", str(several), "--encoder", "p"]) == 1
    assert [line.strip().split(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "mfcore",
        "pretraining[p].n_steps",
        "pretraining[p].warmup",
    ], "a line each"

    def failing(*_, **__):
        raise PretrainingError("it collapsed")

    monkeypatch.setattr(study_arms, "pretrain", failing)
    assert command.main(["pretrain", *said, "--encoder", "own"]) == 1
    assert capsys.readouterr().err == "mfcore: it collapsed\n"


def test_no_slide_that_can_be_read_is_said_with_its_reason(tmp_path):
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "broken.tiff").write_bytes(b"no slide")
    with pytest.raises(ValueError, match=r"broken\.tiff"):
        study_arms.pretrain(study_of(tmp_path / "slides"), "own", "nowhere", tmp_path, "cpu")


# ---- what notebook 08 shows ----


def test_the_example_is_what_is_learnt_from(done, slides):
    study, _, run = done
    patches, big, small, drawn = study_arms.example(study, "own", "nowhere", 3)
    assert patches.shape == (3, 40, 40, 3) and big.shape == (2, 3, 32, 32, 3) and small.shape == (2, 3, 16, 16, 3)
    with pretrain.Source(slides_in(slides), SHORT.patches, SHORT.seed) as source:
        np.testing.assert_array_equal(patches, [source.read(number).image for number in range(3)])
    shown = pretraining_run.crops(Study(study, run.folder.parent), "own", patches, big, small, drawn)
    assert len(shown.figure.axes) == 3 * 5 and "own" in shown.caption


def test_the_figure_shows_entropies_between_zero_and_uniform(done):
    study, _, run = done
    opened = Study(study, run.folder.parent)
    shown, history = pretraining_run.history(opened, "own"), pretrain.load_history(run)
    pd.testing.assert_frame_equal(shown.table, history)
    entropy = shown.figure.axes[1]
    np.testing.assert_allclose(entropy.lines[0].get_ydata(), history["target_entropy"])
    np.testing.assert_allclose(entropy.lines[2].get_ydata(), np.log(16))
    np.testing.assert_allclose(shown.figure.axes[2].lines[0].get_ydata(), history["rankme"].dropna())
    assert "4 steps of 4 patches" in shown.caption
    exhibit.Live(lambda table: pretraining_run.draw_history(opened, "own", table))(history)  # shows nothing outside a notebook


def test_a_long_history_is_smoothed_and_a_short_one_is_not(done):
    study, _, run = done
    opened, history = Study(study, run.folder.parent), pretrain.load_history(run)
    long = pd.concat([history] * 250, ignore_index=True).assign(step=np.arange(250 * len(history)))
    lines = [pretraining_run.draw_history(opened, "own", table).axes[0].lines[0] for table in (history, long)]
    assert [len(line.get_xdata()) for line in lines] == [len(history), pretraining_run.SMOOTHED]
    assert lines[1].get_xdata()[0] == pytest.approx(np.mean(range(len(long) // pretraining_run.SMOOTHED)))


def test_settings_say_whose_they_are(done):
    table = pretraining_run.settings(Study(done[0], done[2].folder.parent), "own").table.set_index("setting")
    assert table.loc["momentum"].tolist() == ["0.996", "the authors of DINO"]
    assert table.loc["n_steps"].tolist() == ["4", "the study"]
    assert table.loc["crops.global_scale"].tolist() == ["0.4, 1.0", "the authors of DINO"]
    assert table.loc["patches.um_per_px"].tolist() == ["0.25, 0.5", "the study"]
    assert table.loc["head_bottleneck", "from"] == "the study" and table.loc["name", "from"] == "the study"
    assert table.loc["student_temperature"].tolist() == ["0.1", "default"]
    assert table.loc["patches.min_tissue"].tolist() == ["0.4", "default"]


def test_what_it_cost_says_what_was_left_out_and_whether_it_collapsed(done, tmp_path):
    study, _, finished = done
    table = pretraining_run.cost(Study(study, finished.folder.parent), "own").table.set_index("fact")["value"]
    assert table["n_patches"] == "16" and table["n_slides"] == "2" and table["slides_left_out"] == "–"
    run = store.open_run(tmp_path, "pretrain", "own", finished.identity["config"], {})
    facts = {**finished.record["facts"], "collapsed": "all alike", "slides_left_out": {"s0": "s0: torn"}}
    run.finish([], **facts)
    table = pretraining_run.cost(Study(study, tmp_path), "own").table.set_index("fact")["value"]
    assert table["collapsed"] == "all alike" and "s0: torn" in table["slides_left_out"]


def test_a_slide_without_a_place_at_one_resolution_counts_among_those_drawn_from(tmp_path):
    """At 2.5 um/px no patch of 40 px fits on a slide of 80 um; at 0.25 it does, and the slide isn't called left out."""
    folder = write_slides(tmp_path / "slides", 1)
    write_pyramid(folder / "small.tiff", np.full((320, 320, 3), (180, 100, 160), np.uint8), 0.25)
    (folder / "torn.tiff").write_bytes((folder / "s0.tiff").read_bytes()[:9000])
    study = study_of(folder, patches=OnlinePatches(40, (0.25, 2.5)), n_steps=2)
    study_arms.pretrain(study, "own", "nowhere", tmp_path, "cpu")
    table = pretraining_run.cost(Study(study, tmp_path), "own").table.set_index("fact")["value"]
    assert table["n_patches"] == "8" and table["n_slides"] == "3" and "torn.tiff" in table["slides_left_out"]
    assert "small.tiff" not in table["slides_left_out"] and "at 2.5 um/px" in table["slides_failed_in_part"]


def test_a_short_training_that_ends_collapsed_says_so(slides, tmp_path, monkeypatch, caplog):
    """Too short to be stopped; its record and the log say it, with what to change."""
    monkeypatch.setattr(pretrain.objective, "collapse_of", lambda lines, settings: "all images get the same target")
    run = study_arms.pretrain(study_of(slides, n_steps=2), "own", "nowhere", tmp_path, "cpu")
    assert run.record["facts"]["collapsed"] == "all images get the same target"
    assert "pretraining[own] ended collapsed: all images get the same target. Change" in caplog.text
