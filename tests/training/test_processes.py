"""Several processes: shares that make the batch, and torchrun's result that is one process's."""

import contextlib
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st
from made_training import made, network, store_study, task, tiny
from running import HANG_S

from mfcore import cli as command, encoders, store
from mfcore.study.config import load_study
from mfcore.training import loop as train_loop, processes, train
from mfcore.training.processes import Ranks
from mfcore.training.task import TrainingError

ROOT = Path(__file__).parents[2]
STUDY = """
name: shared
title: Two processes
data: {source: midog}
patches: {size_px: 16, stored_px: 19}
splits: {n_folds: 2, sizes: [0.5, 1.0], by_domain: false}
networks:
  - name: vit
    architecture: random:test_vit     # layer norm, no dropout
    pretrained: false
    input_px: 16
    shift_px: 1
    rotation_probability: 0
    n_epochs: 2
    patches_per_epoch: 33
    batch_size: 5
    accumulate: 2
    clip_norm: 1.0
    max_lr: 0.001
    sizes: [1.0]
    by_domain: false
"""


@given(start=st.integers(0, 50), n_patches=st.integers(0, 40), n_ranks=st.integers(1, 9))
def test_shares_are_the_batch_and_nearly_equal(start, n_patches, n_ranks):
    shares = [Ranks(rank, n_ranks).share(slice(start, start + n_patches)) for rank in range(n_ranks)]
    assert [row for share in shares for row in range(share.start, share.stop)] == list(range(start, start + n_patches))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_one_process_changes_nothing():
    ranks, model, number = processes.here(), tiny(), torch.ones(1)
    assert ranks == Ranks(0, 1) and ranks.is_first
    assert ranks.wrap(model, torch.device("cpu")) is model and ranks.add(number) is number
    assert ranks.as_first("said") == "said" and ranks.join(np.arange(3)).tolist() == [0, 1, 2]
    with processes.joined("cpu") as device:
        assert device == "cpu" and not torch.distributed.is_initialized()


def test_a_batch_is_enough_for_every_process(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "here", lambda: Ranks(0, 5))
    with pytest.raises(TrainingError, match=r"a batch of 8 is too few patches for 5 processes; raise .*batch_size to 10"):
        train_loop.train_network(task(network=network(batch_size=8)), tiny(), tmp_path)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "100")
    monkeypatch.setenv("LOCAL_RANK", "99")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(encoders.EncoderError, match="device 'cuda:99' can't be used"), processes.joined("auto"):
        pass


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("auto", "nccl"), ("cuda", "nccl")])
def test_each_process_has_its_gpu_and_patience_with_the_first(device, backend, monkeypatch):
    """Which may be fetching slides for longer than NCCL's ten minutes."""
    joined, own = [], []
    for name, value in {"WORLD_SIZE": "4", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", own.append)
    monkeypatch.setattr(processes.encoders, "choose_device", torch.device)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, timeout: joined.append((backend, timeout)))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    with processes.joined(device) as mine:
        pass
    assert mine == ("cpu" if backend == "gloo" else "cuda:3") and own == [torch.device(mine)] * (backend == "nccl")
    assert [name for name, _ in joined] == [backend] and joined[0][1] >= timedelta(hours=1)


@pytest.mark.parametrize("fails", [False, True])
def test_a_process_that_fails_does_not_wait_for_the_others(fails, monkeypatch):
    """They may be in a collective that it will never reach, and NCCL takes its processes apart together."""
    ended = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: ended.append(True))
    with contextlib.suppress(KeyError), processes.joined("cpu"):
        if fails:
            raise KeyError("what one process alone meets")
    assert bool(ended) == (not fails)


def test_two_processes_train_as_one(tmp_path, started):
    """torchrun on this machine's CPU: the same predictions and history up to rounding, written once, by one of the two."""
    file = tmp_path / "shared.yaml"
    file.write_text(STUDY, encoding="utf-8")
    study, tables = load_study(file), {}
    said = ["--study", str(file), "--network", "vit", "--fold", "0", "--device", "cpu", "--results"]
    for name in ("one", "two"):
        store_study(study, tmp_path / name / "shared", *made())
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert command.main(["train", *said, str(tmp_path / "one")]) == 0
    torch.set_num_threads(n_threads)
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "mfcore",
        "train",
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = started([*launcher, *said, str(tmp_path / "two")], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)
    out, errors = both.communicate(timeout=HANG_S)
    assert both.returncode == 0, errors
    runs = {name: store.runs(tmp_path / name / "shared", "train")[0] for name in ("one", "two")}
    assert out.strip() == str(runs["two"].folder), "said once"
    assert runs["two"].verify().record["facts"]["n_processes"] == 2
    tables = {name: pd.read_parquet(run.path("predictions.parquet")) for name, run in runs.items()}
    pd.testing.assert_frame_equal(tables["one"], tables["two"], rtol=1e-4, atol=1e-5)
    assert tables["one"]["score"].std() > 1e-3, "the network must have learnt something for this test"
    columns = ["train_loss", "val_loss", "val_auroc", "learning_rate", "epoch"]
    histories = [train.load_history(run)[columns] for run in runs.values()]
    pd.testing.assert_frame_equal(*histories, rtol=1e-4)
