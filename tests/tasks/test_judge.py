"""Judging encoders by linear heads: the heads against independent code, the protocol, kills, and what is refused."""

import dataclasses
import time
import tracemalloc
import types
from concurrent.futures import ThreadPoolExecutor

import made_tasks
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from tiny_encoders import tiny_card, use

from mfcore import encoders, store
from mfcore.encoders import EncoderError, embed
from mfcore.study import tasks as study_tasks
from mfcore.study.config import TaskOptions
from mfcore.tasks import judge, protocol as tasks_protocol
from mfcore.tasks.task import TaskError
from mfcore.training import heads

TASK = TaskOptions("synthetic_tissue", n_runs=2, n_steps=60, batch_size=8, max_lr=0.05)


# ---- protocol ----


def patience(protocol, n_train):
    return protocol.schedule.patience(protocol.schedule.n_batches(n_train))


def test_the_protocol_is_evas():
    """Patience in epochs as eva's configurations have it: what a fifth of 12,500 steps comes to on the sets' own sizes."""
    for name, n_train in (("bach", 268), ("crc", 100_000), ("pcam", 262_144)):
        protocol = tasks_protocol.of(TaskOptions(name))
        assert (protocol.n_steps, protocol.batch_size, protocol.max_lr, protocol.weight_decay) == (12_500, 256, 3e-4, 0.01)
        assert patience(protocol, n_train) == patience(dataclasses.replace(protocol, patience=None), n_train)
        assert protocol.schedule.rate(0, n_train) == pytest.approx(1e-4)
        assert protocol.schedule.rate(5 * protocol.schedule.n_batches(n_train), n_train) == 3e-4
    assert (tasks_protocol.of(TaskOptions("bach")).n_runs, tasks_protocol.of(TaskOptions("pcam_10shot", n_runs=7)).n_runs) == (
        5,
        7,
    )
    few = tasks_protocol.of(TaskOptions("pcam_10shot"))
    assert few.n_runs == 50
    assert (few.n_per_class, patience(few, 20), few.epochs_a_validation, few.min_gain) == (10, 125, 10, 1e-4)
    nuclei = tasks_protocol.of(TaskOptions("monusac"))
    assert (nuclei.kind, nuclei.n_steps, nuclei.batch_size, nuclei.max_lr) == ("segmentation", 2_000, 64, 2e-3)
    assert patience(nuclei, 209) == 100 == patience(dataclasses.replace(nuclei, patience=None), 209)
    short = tasks_protocol.of(TaskOptions("bach", n_steps=100, max_lr=0.1))
    assert (patience(short, 268), short.max_lr) == (10, 0.1), "a shorter training stops sooner"
    shots = tasks_protocol.of(TaskOptions("pcam", n_per_class=10))
    assert patience(shots, 20) == 2_500, "three epochs of twenty items are three steps"
    large = tasks_protocol.of(TaskOptions("pcam", batch_size=4_096))
    assert patience(large, 262_144) * large.schedule.n_batches(262_144) > 2_400, "epochs of fewer steps, and more of them"


# ---- runs ----


@pytest.fixture
def made(monkeypatch):
    """A task and an encoder."""
    use(monkeypatch, tiny_card())
    data = made_tasks.tissue()
    made_tasks.use(monkeypatch, data)
    return data


def test_judging_keeps_predictions_that_can_be_scored_again(made, tmp_path):
    study = made_tasks.study(TASK)
    run = study_tasks.judge(study, "synthetic_tissue", "tiny", tmp_path, tmp_path / "results")
    predictions = pd.read_parquet(run.path("predictions.parquet"))
    tested = made.table[made.table["split"] != "train"]
    assert run.verify().done and set(predictions["run"]) == {0, 1} and not list(run.path("units").glob("*.npy"))
    for _, part in predictions.groupby("run"):
        assert (
            part[["item_id", "split", "label", "group"]]
            .reset_index(drop=True)
            .equals(tested[["item_id", "split", "label", "group"]].reset_index(drop=True))
        )
    scores = predictions[["score_0", "score_1", "score_2"]]
    assert scores.sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-6)
    right = scores.to_numpy().argmax(axis=1) == predictions["label"]
    assert right.mean() > 0.6, "the classes differ in brightness"
    fits = pd.read_csv(run.path("fits.csv"))
    part = predictions[(predictions["split"] == "val") & (predictions["run"] == 0)]
    again = balanced_accuracy_score(part["label"], part[["score_0", "score_1", "score_2"]].to_numpy().argmax(axis=1))
    assert fits["validation"][0] == pytest.approx(again), "the tested weights are the best on validation"
    assert not predictions[predictions["run"] == 0]["score_0"].equals(predictions[predictions["run"] == 1]["score_0"])


def test_a_killed_run_goes_on_and_two_runs_agree_bit_for_bit(made, tmp_path, monkeypatch):
    study = made_tasks.study(dataclasses.replace(TASK, n_runs=7))
    whole = study_tasks.judge(study, "synthetic_tissue", "tiny", tmp_path, tmp_path / "a")
    original, calls = heads.train, []

    def killed(*arguments):
        calls.append(len(arguments[3]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(heads, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        study_tasks.judge(study, "synthetic_tissue", "tiny", tmp_path, tmp_path / "b")
    monkeypatch.setattr(judge, "_embed", None)  # not again
    again = study_tasks.judge(study, "synthetic_tissue", "tiny", tmp_path, tmp_path / "b")
    assert calls == [5, 2, 2], "the first five heads were kept"
    assert again.path("predictions.parquet").read_bytes() == whole.path("predictions.parquet").read_bytes()
    monkeypatch.setattr(heads, "train", None)
    assert study_tasks.judge(study, "synthetic_tissue", "tiny", tmp_path, tmp_path / "b").done, (
        "a finished run is taken as it is"
    )


def test_features_are_computed_once_for_an_encoder_and_its_images(made, tmp_path, monkeypatch):
    """Another number of steps, or the few-shot task of the same images, embeds nothing again; another size does."""
    first = study_tasks.judge(made_tasks.study(TASK), "synthetic_tissue", "tiny", tmp_path, tmp_path)
    features, _ = store.read_json(first.folder / "run.json"), monkeypatch.setattr(judge, "_embed", None)
    longer = study_tasks.judge(
        made_tasks.study(dataclasses.replace(TASK, n_steps=5)), "synthetic_tissue", "tiny", tmp_path, tmp_path
    )
    assert longer.folder != first.folder
    assert longer.record["files"]["features.h5"]["sha256"] == features["files"]["features.h5"]["sha256"]
    assert longer.path("features.h5").samefile(first.path("features.h5")), "a large task's would fill the disk"
    other = made_tasks.study(dataclasses.replace(TASK, size_px=20))
    with pytest.raises(TypeError):  # there is nothing to embed with
        study_tasks.judge(other, "synthetic_tissue", "tiny", tmp_path, tmp_path)


def test_embeddings_are_the_encoders_whatever_the_images_sizes(made, tmp_path):
    made.pixels[3] = made.pixels[3][:, :36].copy()
    run = store.open_run(tmp_path, "judge", "x", {"protocol": {"size_px": None}, "card": {}}, {})
    features = judge.features_of(run, made, tiny_card(), "cpu", None)
    encoder = encoders.load(tiny_card())
    for i in (0, 3, 50):
        assert features[i] == pytest.approx(encoder.embed(made.pixels[i][None])[0], abs=1e-5)


def test_shards_are_put_together_in_order_one_at_a_time_and_leave_nothing(tmp_path, monkeypatch):
    """In memory there is a shard of a large task, not all; a kill may have left some beside the whole file."""
    n, card = 2000, tiny_card(n_dims=1000)
    table = pd.DataFrame({"item_id": [f"item{i}" for i in range(n)]})
    data = types.SimpleNamespace(task=types.SimpleNamespace(name="large"), table=table)
    encoder = encoders.Encoder(card, None, torch.device("cpu"), "")
    monkeypatch.setattr(judge, "SHARD", 64)

    def embedded(batches, read, shards, progress):
        return ((rows, np.repeat(np.float32(rows)[:, None], 1000, axis=1)) for rows in shards)

    monkeypatch.setattr(embed, "embedded", embedded)
    run = store.open_run(tmp_path, "judge", "x", {"protocol": {"size_px": None}, "card": {}}, {})
    tracemalloc.start()
    judge._embed(run, data, encoder, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n * 1000 * 4 / 2
    run.unit_file("features-000000064", ".npy").write_bytes(b"left by a kill")
    features = judge.features_of(run, data, card, "cpu", None)
    assert (features == np.arange(n)[:, None]).all() and features.shape == (n, 1000)
    assert not list(run.path("units").glob("*"))


def test_of_two_that_need_the_same_features_one_makes_them(made, tmp_path, monkeypatch):
    """Two processes on one task by mistake, or two tasks of the same images: neither takes the other's shards away."""
    read, original = [], type(made).image

    def slowly(data, i):
        read.append(i)
        time.sleep(0.001)
        return original(data, i)

    monkeypatch.setattr(type(made), "image", slowly)
    monkeypatch.setattr(judge, "SHARD", 32)
    runs = [store.open_run(tmp_path, "judge", name, {"protocol": {"size_px": None}, "card": {}}, {}) for name in "xxy"]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda run: judge.features_of(run, made, tiny_card(), "cpu", None), runs))
    assert read == list(range(len(made)))
    assert all(np.array_equal(features, found[0]) for features in found) and found[0].any(axis=1).all()


def test_few_shots_are_drawn_anew_each_run_and_are_the_same_for_every_encoder(made, tmp_path, monkeypatch):
    use(monkeypatch, tiny_card(name="other", mean=(0.4, 0.4, 0.4)))
    study = made_tasks.study(dataclasses.replace(TASK, n_per_class=3), encoders=("tiny", "other"))
    drawn, original = [], heads.train

    def noting(features, labels, n_classes, trained, *rest):
        drawn.append([head.train.tolist() for head in trained])
        original(features, labels, n_classes, trained, *rest)

    monkeypatch.setattr(heads, "train", noting)
    for name in study.encoders:
        study_tasks.judge(study, "synthetic_tissue", name, tmp_path, tmp_path)
    (first, second), again = drawn[0], drawn[1]
    assert first != second and again == [first, second]
    labels, splits = made.table["label"].to_numpy(), made.table["split"].to_numpy()
    assert np.bincount(labels[first]).tolist() == [3, 3, 3] and set(splits[first]) == {"train"}


def test_every_snapshot_is_judged_once():
    from mfcore.study.config import Pretraining

    own = Pretraining("home", n_steps=40, n_snapshots=4)
    study = made_tasks.study(TASK, TaskOptions("synthetic_nuclei", snapshots=True), pretraining=(own,))
    assert study_tasks.encoders_of(study, study.task("synthetic_tissue")) == ["tiny", "home"]
    judged = study_tasks.encoders_of(study, study.task("synthetic_nuclei"))
    assert judged == ["tiny", "home@10", "home@20", "home@30", "home"], "the last snapshot is the encoder"


def test_one_that_cant_be_had_leaves_the_others(tmp_path, monkeypatch):
    def judge(study, task, name, *_):
        if name != "good":
            raise EncoderError(f"{name} has no weights")

    monkeypatch.setattr(study_tasks, "judge", judge)
    table = study_tasks.judge_all(made_tasks.study(TASK, encoders=("bad", "good")), TASK.name, "data", tmp_path)
    assert table.values.tolist() == [["bad", False, "bad has no weights"], ["good", True, ""]]
    assert study_tasks.refusals(tmp_path, TASK.name) == {"bad": "bad has no weights"}
    assert study_tasks.refusals(tmp_path, "pcam") == {}
    with pytest.raises(EncoderError, match="worse has"):
        study_tasks.judge_all(made_tasks.study(TASK, encoders=("bad", "worse")), TASK.name, "data", tmp_path)


def broken(how: str) -> made_tasks.MadeTask:
    data = made_tasks.tissue()
    table = data.table.copy()
    if how == "class":
        table = table[(table["split"] != "train") | (table["label"] != 1)]
    elif how == "val":
        table.loc[table["split"] == "val", "split"] = "test"
    elif how == "one class":
        table = table[(table["split"] != "test") | (table["label"] == 0)]
    return dataclasses.replace(data, table=table)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("class", "1 training items of each class are needed; there are fewer of class 1 \\(0\\)"),
        ("val", "no item is of the split 'val'"),
        ("one class", "the split 'test' holds one class only"),
        ("shots", "13 training items of each class are needed; there are fewer of class 0 \\(12\\)"),
    ],
)
def test_what_cant_be_judged_by_is_refused(how, told, monkeypatch, tmp_path):
    use(monkeypatch, tiny_card())
    made_tasks.use(monkeypatch, broken(how))
    task = dataclasses.replace(TASK, n_per_class=13) if how == "shots" else TASK
    with pytest.raises(TaskError, match=told):
        study_tasks.judge(made_tasks.study(task), "synthetic_tissue", "tiny", tmp_path, tmp_path)
