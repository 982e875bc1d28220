"""The loop of a pretraining: a step against the papers' algorithm written out, going on after a kill, DDP, what is kept."""

import json
import math
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_pretraining import DINOV2, patches, settings, task, train
from running import HANG_S
from tqdm.auto import tqdm

from mfcore import store, streams as rng
from mfcore.pretraining import crops, loop, networks, objective
from mfcore.pretraining.objective import PretrainingError
from mfcore.training import processes
from mfcore.training.processes import Ranks

TIMES = ("seconds", "patches_per_second")
TESTS = Path(__file__).parents[1]
POOLS = {"architecture": "resnet10t", "arguments": {}}  # with batch norms, whose running means go on too


def without_times(history):
    return [{key: value for key, value in line.items() if key not in TIMES} for line in history]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def dino_by_hand(student, teacher, centre, temperature, student_temperature):
    """Caron et al. 2021, algorithm 1, image by image; logits (C, B, K), (2, B, K), float64."""
    total = []
    for image in range(student.shape[1]):
        for view in range(2):
            target = softmax((teacher[view, image] - centre) / temperature)
            for crop in range(len(student)):
                if crop != view:
                    total.append(-(target * np.log(softmax(student[crop, image] / student_temperature))).sum())
    return np.mean(total)


def views(this, pair, n):
    """The crops of batch n, as the loop makes them."""
    drawn = crops.draw(this.crops, this.batch_size, this.patches.size_px, this.seed, "pretraining", "crops", n)
    images = torch.from_numpy(patches(this, n * this.batch_size, this.batch_size)).permute(0, 3, 1, 2)
    return crops.make(images, drawn, this.crops, pair.mean, pair.std)


def test_dino_steps_are_the_papers_algorithm(tmp_path):
    """Losses of three steps and the teacher's weights after them, by another AdamW, numpy's losses, and the schedules."""
    this = settings(drop_path=0.0, n_snapshots=1, n_frozen_last=0.2, teacher_temperature=(0.2, 0.3), momentum=0.9)
    history, trained = train(this, tmp_path)
    pair, at = networks.build(this), objective.schedules(this)
    student, teacher = pair.student.train(), pair.teacher
    decayed = [p for name, p in student.named_parameters() if not name.endswith("bias") and p.ndim > 1]
    rest = [p for name, p in student.named_parameters() if name.endswith("bias") or p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": rest, "weight_decay": 0.0}], lr=1.0)
    centre = np.zeros(this.n_prototypes)
    for n in range(this.n_steps):
        big, small = views(this, pair, n)
        logits, _, _ = student(big, small)
        with torch.no_grad():
            targets = teacher(big)[0].double().numpy()
        expected = dino_by_hand(
            logits.detach().double().numpy(), targets, centre, at.teacher_temperature[n], this.student_temperature
        )
        assert history[n]["loss"] == pytest.approx(expected, rel=1e-4), f"step {n}"
        sharp = softmax((targets - centre) / at.teacher_temperature[n])
        assert history[n]["teacher_entropy"] == pytest.approx(-(sharp * np.log(sharp)).sum(-1).mean(), rel=1e-4)
        log_p = torch.log_softmax(logits / this.student_temperature, -1)
        pairs = [(torch.from_numpy(sharp[g]).float(), log_p[c]) for g in range(2) for c in range(len(logits)) if g != c]
        loss = torch.stack([-(p * q).sum(-1).mean() for p, q in pairs]).mean()
        optimizer.zero_grad()
        loss.backward()
        for parameter in student.parameters():  # each by itself
            parameter.grad *= min(1.0, this.clip_norm / (parameter.grad.norm().item() + 1e-6))
        last = student.head.last.weight
        before = last.detach().clone()
        for group in optimizer.param_groups:
            group["lr"] = at.learning_rate[n]
        optimizer.param_groups[0]["weight_decay"] = at.weight_decay[n]
        optimizer.step()
        if at.last_layer[n] == 0:
            last.data = before
        with torch.no_grad():
            for mine, its in zip(
                teacher.parameters(), [*student.encoder.parameters(), *student.head.parameters()], strict=True
            ):
                mine.mul_(at.momentum[n]).add_((1 - at.momentum[n]) * its)
        centre = 0.9 * centre + 0.1 * targets.mean((0, 1))
    for name, tensor in trained.teacher.state_dict().items():
        mine, its = tensor.numpy(), teacher.state_dict()[name].numpy()
        if name.endswith("attn.qkv.bias"):  # of a key, it changes no attention: its gradient is rounding
            mine, its = (np.delete(bias.reshape(3, -1), 1, axis=0) for bias in (mine, its))
        np.testing.assert_allclose(mine, its, rtol=2e-3, atol=2e-5, err_msg=name)
    moved = (trained.teacher.head.last.weight - networks.build(this).teacher.head.last.weight).abs().max()
    assert moved > 1e-4, "the teacher must have learnt something for this test"


def sinkhorn_by_hand(logits, temperature):
    q = np.exp(logits.astype(np.float64) / temperature).T  # (K, N)
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdims=True) * len(q)
        q /= q.sum(0, keepdims=True) * q.shape[1]
    return (q * q.shape[1]).T


def test_a_first_step_of_dinov2_is_the_sum_of_its_three_losses(tmp_path):
    """Sinkhorn-Knopp, iBOT on the masked tokens, KoLeo on both global crops; each written out in numpy."""
    visible = {**settings().arguments, "init_values": 1.0}  # at 1e-5, class tokens are so alike that KoLeo is rounding
    this = settings(**DINOV2, drop_path=0.0, mask_ratio=(0.2, 0.5), arguments=visible)
    line = train(this, tmp_path)[0][0]
    pair, temperature = networks.build(this), objective.schedules(this).teacher_temperature[0]
    big, small = views(this, pair, 0)
    stream = rng.generator(this.seed, "pretraining", "masks", 0)
    masked = crops.draw_masks(8, (4, 4), this.mask_probability, this.mask_ratio, stream)
    assert masked.any()
    with torch.no_grad():
        student, classes, of_masked = (part.double().numpy() for part in pair.student(big, small, torch.from_numpy(masked)))
        teacher, teacher_masked = (part.double().numpy() for part in pair.teacher(big, torch.from_numpy(masked)))
    targets = sinkhorn_by_hand(teacher.reshape(8, -1), temperature).reshape(teacher.shape)
    log_p = np.log(softmax(student / this.student_temperature))
    cross = [-(targets[g] * log_p[c]).sum(-1).mean() for g in range(2) for c in range(4) if g != c]
    assert line["loss_dino"] == pytest.approx(np.mean(cross), rel=1e-4)
    target, log_p = sinkhorn_by_hand(teacher_masked, temperature), np.log(softmax(of_masked / this.student_temperature))
    by_token, at, by_image = -(target * log_p).sum(-1), 0, []
    for image in masked:
        by_image.append(by_token[at : at + image.sum()].mean() if image.any() else 0.0)
        at += image.sum()
    assert line["loss_ibot"] == pytest.approx(np.mean(by_image), rel=1e-4)
    spread = 0.0
    for crop in classes:
        x = crop / np.linalg.norm(crop, axis=1, keepdims=True)
        nearest = [min(np.linalg.norm(x[i] - x[j]) for j in range(4) if j != i) for i in range(4)]
        spread -= np.log(nearest).mean()
    assert line["loss_koleo"] == pytest.approx(spread, rel=1e-3)
    whole = line["loss_dino"] + this.ibot_weight * line["loss_ibot"] + this.koleo_weight * line["loss_koleo"]
    assert line["loss"] == pytest.approx(whole, rel=1e-6)


def test_the_mean_target_is_that_of_the_last_batches(tmp_path, monkeypatch):
    kept = []
    original = loop._Training._learn

    def noted(self, batch):
        values, mean_target = original(self, batch)
        kept.append(mean_target.double().numpy())
        return values, mean_target

    monkeypatch.setattr(loop._Training, "_learn", noted)
    history = train(settings(), tmp_path)[0]
    mean = np.mean(kept, axis=0)  # of few steps: the plain mean
    assert history[-1]["target_entropy"] == pytest.approx(-(mean * np.log(mean)).sum(), rel=1e-4)


def test_history_has_a_line_for_some_steps_with_their_means(tmp_path, monkeypatch):
    this = settings(n_steps=7)
    every = train(this, tmp_path / "every")[0]
    monkeypatch.setattr(loop, "N_LINES", 3)
    some = train(this, tmp_path / "some")[0]
    assert [line["step"] for line in some] == [2, 4, 6, 7]
    for line, first, last in zip(some, (0, 2, 4, 6), (2, 4, 6, 7), strict=True):
        for key in loop.AVERAGED:
            assert line[key] == pytest.approx(np.mean([one[key] for one in every[first:last]]), abs=1e-9)
        assert line["learning_rate"] == every[last - 1]["learning_rate"]
    lines = (tmp_path / "some" / "history.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [line["loss"] for line in some]


@pytest.mark.parametrize("changed", [{}, POOLS], ids=["class tokens", "pooled, batch norms as in use"])
def test_rankme_is_that_of_the_teachers_embeddings(tmp_path, changed):
    from mfcore.encoders import preprocess

    this = settings(**changed)
    history, pair = train(this, tmp_path)
    card = task(this, pair).card
    images = preprocess.transform(patches(this, 10_000, 24), card, torch.device("cpu"))
    with torch.no_grad():
        features = pair.teacher.eval().encoder(images).double().numpy()  # without a classifier
    sigma = np.linalg.svd(features, compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    assert history[-1]["rankme"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)


def test_snapshots_are_exported_after_their_steps(tmp_path):
    exported = []
    this = settings(n_steps=5, n_snapshots=2)
    pair = networks.build(this)
    loop.train(task(this, pair, exported), pair, tmp_path, torch.device("cpu"))
    assert exported == [2, 5]


def test_the_history_is_told_as_it_grows(tmp_path):
    seen = []
    train(settings(), tmp_path, watch=lambda history: seen.append(len(history)))
    assert seen == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("changed", [{}, DINOV2, POOLS], ids=["dino", "dinov2", "a convolutional network"])
@pytest.mark.parametrize("lines", [100, 2])
def test_a_stopped_training_goes_on_to_the_same_losses(tmp_path, monkeypatch, changed, lines):
    """To the last bit, wherever it stops, within a line of the history too; drop path draws and centres included."""
    monkeypatch.setattr(loop, "N_LINES", lines)
    this = settings(**changed, drop_path=0.3, n_steps=5)
    whole, expected = train(this, tmp_path / "whole")
    original, bars = loop._Training.run_step, []
    monkeypatch.setattr(loop, "tqdm", lambda **options: bars.append(tqdm(**options)) or bars[-1])

    def stopping(self, batch):
        if self.n_done == stop:
            raise KeyboardInterrupt
        return original(self, batch)

    for stop in (1, 3, 4):
        folder = tmp_path / f"stopped{stop}"
        with monkeypatch.context() as patched:
            patched.setattr(loop._Training, "run_step", stopping)
            patched.setattr(processes, "CHECKPOINT_SECONDS", 0.0)
            patched.setattr(processes, "CHECKPOINT_SHARE", math.inf)  # after every step, however long it takes
            with pytest.raises(KeyboardInterrupt):
                train(this, folder)
        assert torch.load(folder / "checkpoint.pt", weights_only=True)["n_done"] == stop
        again, pair = train(this, folder)
        assert without_times(again) == without_times(whole), f"stopped after {stop}"
        bar = bars[-1]
        assert (bar.initial, bar.n) == (stop * this.batch_size, bar.total), "patches of before say nothing of the rate now"
        for name, tensor in pair.teacher.state_dict().items():
            assert torch.equal(tensor, expected.teacher.state_dict()[name]), name


@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")  # of the switch below
@pytest.mark.parametrize("changed", [{}, DINOV2, POOLS], ids=["dino", "dinov2", "a convolutional network"])
def test_bfloat16_gives_nearly_the_losses_of_float32(tmp_path, monkeypatch, changed):
    """As on GPUs that have it: products in bfloat16, weights, targets and losses in float32."""
    this = settings(**changed, drop_path=0.0)
    exact, _ = train(this, tmp_path / "float32")
    monkeypatch.setattr(loop.encoders, "computes_bfloat16", lambda device: True)
    with torch.backends.mkldnn.flags(enabled=False):  # its bfloat16 gradients of padded 1 x 1 maps are now and then garbage
        history, pair = train(this, tmp_path / "bfloat16")
    for one, other in zip(exact, history, strict=True):
        assert one["loss"] != other["loss"], "computed alike"
        for key in ("loss_dino", "loss_ibot", "target_entropy"):
            assert other[key] == pytest.approx(one[key], rel=0.02, abs=1e-3), key
    weights = [*pair.student.parameters(), *pair.teacher.parameters()]
    assert {tensor.dtype for tensor in weights} == {torch.float32} and all(tensor.isfinite().all() for tensor in weights)


KILLED = """
import os, sys, threading
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from made_pretraining import train, settings
from mfcore.pretraining import loop
from mfcore.training import processes
processes.CHECKPOINT_SECONDS, processes.CHECKPOINT_SHARE = 0.0, float("inf")
original = loop._Training.run_step
def killing(self, batch):
    if self.n_done == 7:
        threading.Thread(target=os.kill, args=(os.getpid(), 9)).start()
    elif self.n_done == 30:
        threading.Event().wait()
    return original(self, batch)
loop._Training.run_step = killing
train(settings(n_steps=40, drop_path=0.2), Path(sys.argv[2]))
"""


def test_a_killed_training_goes_on_to_the_same_losses(tmp_path, started):
    """kill -9 of a process in the middle, at no chosen place."""
    this = settings(n_steps=40, drop_path=0.2)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the process that is killed: sums of several threads round otherwise
    whole = train(this, tmp_path / "whole")[0]
    folder = tmp_path / "killed"
    work = started(
        [sys.executable, "-c", KILLED, str(TESTS), str(folder)], cwd=TESTS.parent, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert work.wait(HANG_S) == -signal.SIGKILL
    assert 0 < torch.load(folder / "checkpoint.pt", weights_only=True)["n_done"] < 40
    again = train(this, folder)[0]
    torch.set_num_threads(n_threads)
    assert without_times(again) == without_times(whole)


def test_a_loss_that_is_no_number_stops_the_training_with_its_history_kept(tmp_path):
    with pytest.raises(PretrainingError, match=r"became nan .* lower base_lr"):
        train(settings(base_lr=1e30, clip_norm=1e30), tmp_path)
    assert (tmp_path / "history.jsonl").is_file()


def test_a_collapse_stops_the_training(tmp_path, monkeypatch):
    """A teacher whose weights are all zero gives every image the same target."""
    monkeypatch.setattr(objective, "GRACE", (0.0, 2))
    monkeypatch.setattr(objective, "PATIENCE", (0.0, 2))
    this = settings(n_steps=50)
    pair = networks.build(this)
    with torch.no_grad():
        for parameter in [*pair.student.head.mlp.parameters(), *pair.teacher.head.mlp.parameters()]:
            parameter.zero_()
    with pytest.raises(PretrainingError, match=r"collapsed by step [4-9] of 50: all images get the same target.*momentum"):
        loop.train(task(this, pair), pair, tmp_path, torch.device("cpu"))


@pytest.mark.parametrize(
    ("changed", "n", "said"),
    [
        ({}, 3, "batch_size: 4 patches can't be shared evenly by 3 processes"),
        (DINOV2, 4, r"batch_size: 4 patches over 4 processes .* KoLeo .* start fewer"),
    ],
)
def test_what_processes_cannot_share_is_refused(monkeypatch, changed, n, said):
    """Unequal shares; and one patch a process, which leaves KoLeo no neighbour."""
    monkeypatch.setattr(processes, "here", lambda: Ranks(0, n))
    with pytest.raises(PretrainingError, match=said):
        loop.check_share(settings(**changed))


def test_a_process_touches_no_other_gpu_than_its_own(tmp_path, monkeypatch):
    """Keeping the draws of all of them would leave something of each process on each."""
    kept, original = [], torch.random.fork_rng
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices, **_: kept.append(list(devices)) or original([]))
    train(settings(n_steps=1, n_snapshots=1), tmp_path)
    assert kept and not any(kept)


@pytest.mark.parametrize("content", [b"", b"no checkpoint"])
def test_a_checkpoint_that_cant_be_read_is_said_with_what_to_do(tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(store.StoreError, match=r"checkpoint\.pt: can't be gone on from .*; remove it to begin anew"):
        train(settings(), tmp_path)


def test_training_leaves_the_callers_draws_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train(settings(n_steps=2), tmp_path)
    assert torch.equal(torch.rand(2), expected)
