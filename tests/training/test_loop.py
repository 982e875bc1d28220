"""The loop: the tested weights are copies of the best epoch, a kill changes nothing, a step is what it says."""

import dataclasses
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import made_training
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from made_training import CARD, NETWORK, UNIT, history_of, network, same, task, tiny, weights_of, worsening

from mfcore import encoders
from mfcore.data import augment
from mfcore.measures import binary
from mfcore.study.config import Lora
from mfcore.training import adapt, feed as train_feed, loop as train_loop, processes, task as train_task
from mfcore.training.task import Recipe, TrainingError

LAST = Recipe(epoch="last")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for one another cost more than they bring in networks as small as these."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def scores_of(weights: dict, the_task: train_task.Task, role: str) -> np.ndarray:
    """Probabilities by a second way: plain torch on the centre crop, one image at a time."""
    model = tiny()
    model.load_state_dict(weights)
    model.eval()
    start = (NETWORK.needed_px - NETWORK.input_px) // 2
    scores = []
    with torch.no_grad():
        for row in the_task.roles[role]:
            crop = the_task.patches[row, start : start + NETWORK.input_px, start : start + NETWORK.input_px] / 255.0
            image = torch.tensor((crop - CARD.mean) / CARD.std, dtype=torch.float32).permute(2, 0, 1)[None]
            scores.append(torch.sigmoid(model(image)[0, 0]).item())
    return np.array(scores)


def losses_by_class(scores: np.ndarray, truth: np.ndarray) -> list[float]:
    """Mean cross-entropy of each class."""
    losses = -np.log(np.where(truth == 1, scores, 1 - scores))
    return [losses[truth == label].mean() for label in (0, 1)]


class Killed(Exception):
    """Stands for a kill."""


def train_and_die(patched, folder: Path, the_task, saved_after: int, dies_in: int, model=None) -> None:
    """Train until step ``dies_in`` (from 1) begins; the last checkpoint is that after step ``saved_after``, 0 for none."""
    n_begun, step, save_in_time = 0, train_loop._Training._step, train_loop._Training.save_in_time

    def counted(self, *arguments):
        nonlocal n_begun
        n_begun += 1
        if n_begun == dies_in:
            raise Killed
        return step(self, *arguments)

    def at_once(self, loss=None):
        if n_begun == saved_after and loss is not None:
            save_in_time(self, loss)

    patched.setattr(train_loop._Training, "_step", counted)
    patched.setattr(train_loop._Training, "save_in_time", at_once)
    patched.setattr(processes, "CHECKPOINT_SECONDS", 0)
    with pytest.raises(Killed):
        train_loop.train_network(the_task, model or tiny(), folder)


# ---- which weights are tested ----


def test_best_epoch_is_truly_restored(tmp_path):
    """The released code keeps references to the best weights, so that it tests the last ones."""
    the_task = worsening()
    scores = train_loop.train_network(the_task, tiny(), tmp_path)
    losses = [line["val_loss"] for line in history_of(tmp_path)]
    assert np.argmin(losses) < len(losses) - 1 and losses[-1] > min(losses) + 0.01, "the last epoch must differ for this test"
    validated = scores_of(weights_of(tmp_path), the_task, "val")
    loss = np.mean(losses_by_class(validated, the_task.labels[the_task.roles["val"]]))
    assert loss == pytest.approx(min(losses), abs=1e-5)
    np.testing.assert_allclose(scores, scores_of(weights_of(tmp_path), the_task, "test"), atol=1e-5)


def test_last_epoch_when_the_study_says_so(tmp_path):
    the_task = worsening(recipe=LAST)
    train_loop.train_network(the_task, tiny(), tmp_path)
    validated = scores_of(weights_of(tmp_path), the_task, "val")
    loss = np.mean(losses_by_class(validated, the_task.labels[the_task.roles["val"]]))
    assert loss == pytest.approx(history_of(tmp_path)[-1]["val_loss"], abs=1e-5)


def test_training_learns(tmp_path):
    """An easy task is learnt, so loss, labels and scores point the same way."""
    easy = task()
    bright = np.where(easy.labels == 1, 60, 200)[:, None, None, None]
    easy = dataclasses.replace(easy, patches=(0.2 * easy.patches + 0.8 * bright).astype(np.uint8))
    scores = train_loop.train_network(easy, tiny(), tmp_path)
    assert binary.auroc(easy.labels[easy.roles["test"]], scores) > 0.95
    assert scores.dtype == np.float64 and scores.min() >= 0 and scores.max() <= 1
    history = history_of(tmp_path)
    assert [line["epoch"] for line in history] == [1, 2, 3, 4]
    assert history[-1]["train_loss"] < history[0]["train_loss"] and history[-1]["val_auroc"] > 0.9
    assert history[-1]["learning_rate"] < 1e-6 < history[0]["learning_rate"]


@pytest.mark.parametrize(("accumulate", "n_steps"), [(1, 4), (3, 2)])
def test_learning_rate_follows_torch(tmp_path, accumulate, n_steps):
    """One cycle over all steps, of which accumulation takes fewer; patience shortens no cycle."""
    train_loop.train_network(task(network=network(accumulate=accumulate, patience=3)), tiny(), tmp_path)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=4 * n_steps)
    rates = []
    for _ in range(4 * n_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    found = [line["learning_rate"] for line in history_of(tmp_path)]
    assert found == pytest.approx(rates[n_steps - 1 :: n_steps][: len(found)])


def test_training_stops_without_a_better_epoch(tmp_path):
    """The same epochs as without patience, up to the one that says that it was the last."""
    train_loop.train_network(worsening(), tiny(), tmp_path / "whole")
    whole = history_of(tmp_path / "whole")
    best = int(np.argmin([line["val_loss"] for line in whole]))
    assert best == 0 and not any(line["stopped"] for line in whole), "for this test, no epoch may be better than the first"
    train_loop.train_network(worsening(network=network(max_lr=0.05, patience=2)), tiny(), tmp_path / "short")
    short = history_of(tmp_path / "short")
    assert [line["stopped"] for line in short] == [False, False, True]
    assert [line["val_loss"] for line in short] == [line["val_loss"] for line in whole[:3]]
    train_loop.train_network(worsening(network=network(max_lr=0.05, patience=3)), tiny(), tmp_path / "end")
    assert [line["stopped"] for line in history_of(tmp_path / "end")] == 4 * [False], "it ended, it wasn't stopped"


def test_validation_weighs_classes_as_the_draw_does(tmp_path):
    """The validation loss is the mean of the classes' means where training draws; else that of the patches."""
    labels = task().labels.copy()
    labels[64:90] = 1  # few of class 0 among those that validate
    for per_epoch in (33, None):
        drawn = network(n_epochs=1, patches_per_epoch=per_epoch)
        the_task = task(network=drawn, labels=labels)
        train_loop.train_network(the_task, tiny(), tmp_path)
        truth, scores = labels[the_task.roles["val"]], scores_of(weights_of(tmp_path), the_task, "val")
        by_class = losses_by_class(scores, truth)
        by_patch = np.average(by_class, weights=[(truth == 0).sum(), (truth == 1).sum()])
        assert abs(np.mean(by_class) - by_patch) > 1e-3, "the classes must differ for this test"
        expected = by_patch if per_epoch is None else np.mean(by_class)
        assert history_of(tmp_path)[0]["val_loss"] == pytest.approx(expected, abs=1e-5)


def test_drawn_validation_chooses_the_epoch(tmp_path):
    """Its loss is that of the drawn, shifted crops, each patch as heavy; the draw is the same in every epoch."""
    the_task = task(recipe=Recipe(validation="drawn"), network=network(n_epochs=1))
    train_loop.train_network(the_task, tiny(), tmp_path)
    drawn = train_task.validation_of(the_task)
    crops = train_task.crops(the_task, drawn)
    wide = np.pad(crops, [(0, 0), (3, 4), (3, 4), (0, 0)])  # whose centre crops they are
    seen = types.SimpleNamespace(patches=wide, roles={"val": np.arange(30)})
    scores = scores_of(weights_of(tmp_path), seen, "val")
    loss = -np.log(np.where(drawn.labels == 1, scores, 1 - scores)).mean()
    assert history_of(tmp_path)[0]["val_loss"] == pytest.approx(loss, abs=1e-5)


# ---- one step ----


def test_accumulated_batches_make_the_step_of_a_large_one(tmp_path):
    """36 patches without batch norm: steps of 24 and 12, or of batches of 8, 8, 8 and of 8, 4, the last weighing less."""
    for name, sizes in {"large": (24, 1), "small": (8, 3)}.items():
        the_network = network(patches_per_epoch=36, batch_size=sizes[0], accumulate=sizes[1], n_epochs=2)
        train_loop.train_network(task(network=the_network), tiny(norm=False, dropout=0), tmp_path / name)
    large, small = weights_of(tmp_path / "large"), weights_of(tmp_path / "small")
    for name, tensor in large.items():
        np.testing.assert_allclose(tensor, small[name], rtol=1e-4, atol=1e-6)
    one, other = (history_of(tmp_path / name)[-1] for name in ("large", "small"))
    assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
    train_loop.train_network(
        task(network=network(patches_per_epoch=36, n_epochs=2)), tiny(norm=False, dropout=0), tmp_path / "each"
    )
    assert not np.allclose(weights_of(tmp_path / "each")["6.weight"], large["6.weight"], rtol=1e-4)


def gradients(folder: Path, **changed: object) -> list[float]:
    """Norms of the gradients that the optimiser sees, one a step."""
    seen, optimizer_step = [], torch.optim.Adam.step

    def watched(self, *arguments, **options):
        parts = [parameter.grad.norm() for group in self.param_groups for parameter in group["params"]]
        seen.append(torch.stack(parts).norm().item())
        return optimizer_step(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.optim.Adam, "step", watched)
        train_loop.train_network(task(**changed), tiny(), folder)
    return seen


def test_gradients_are_clipped_after_they_are_there(tmp_path):
    free = gradients(tmp_path / "free")
    assert min(free) > 0.01 and len(free) == 16, "gradients must be larger than the norm for this test"
    clipped = gradients(tmp_path / "clipped", network=network(clip_norm=0.01))
    np.testing.assert_allclose(clipped, 0.01, rtol=1e-3)
    released = Recipe(clipping="before_backward")
    assert gradients(tmp_path / "released", network=network(clip_norm=0.01), recipe=released) == free


def test_the_first_step_is_that_of_plain_torch(tmp_path):
    """Loss, gradient and Adam written out once more, by a second way."""
    the_task = task(network=network(patches_per_epoch=8))
    model, learnt = tiny(norm=False, dropout=0), tiny(norm=False, dropout=0)
    with pytest.MonkeyPatch.context() as patched:
        train_and_die(patched, tmp_path, the_task, saved_after=0, dies_in=2, model=learnt)
    examples = train_task.epoch_of(the_task, 1)
    images = augment.augment(torch.from_numpy(the_task.patches[examples.rows]).permute(0, 3, 1, 2), examples.drawn, 12)
    normal = (images - torch.tensor(CARD.mean)[:, None, None]) / torch.tensor(CARD.std)[:, None, None]
    logits, truth = model.train()(normal)[:, 0], torch.from_numpy(examples.labels).double()
    loss = (-truth * torch.nn.functional.logsigmoid(logits) - (1 - truth) * torch.nn.functional.logsigmoid(-logits)).mean()
    loss.backward()
    rate = 0.02 / 25  # where one cycle begins
    assert history_of(tmp_path)[0]["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    for before, after in zip(model.parameters(), learnt.parameters(), strict=True):
        expected = before - rate * before.grad / (before.grad.abs() + 1e-8)
        np.testing.assert_allclose(after.detach(), expected.detach(), atol=2e-6)


def test_labels_by_window_are_learnt(tmp_path):
    """All annotations of a slide in one place: every patch of it is positive, and the network learns to say so."""
    places = train_task.Places(*[np.zeros((120, 2))] * 2, np.ones(120))
    by_window = task(recipe=Recipe(training_label="window"), places=places, slide_ids=np.full(120, "s"))
    assert (
        train_loop.train_network(by_window, tiny(), tmp_path).min()
        > 0.5
        > train_loop.train_network(task(), tiny(), tmp_path / "own").min()
    )


# ---- killed, and taken up again ----


WAYS = {
    "best": {},
    "last": {"recipe": LAST},
    "accumulated": {"network": network(max_lr=0.05, accumulate=3)},
    "stopped": {"network": network(max_lr=0.05, patience=2)},
}


@pytest.fixture(scope="module", params=WAYS)
def whole(request, tmp_path_factory):
    """A training that nobody disturbed: task, folder, scores, steps."""
    folder, the_task = tmp_path_factory.mktemp("whole"), worsening(**WAYS[request.param])
    scores = train_loop.train_network(the_task, tiny(), folder)
    per_epoch = len(train_task.steps(the_task.n_per_epoch, the_task.network))
    return the_task, folder, scores, per_epoch * len(history_of(folder))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_kill_in_any_step_changes_nothing(whole, tmp_path_factory, data):
    """Whatever the last step that a checkpoint holds and the one that was killed: the same scores, weights and history."""
    the_task, folder, scores, n_steps = whole
    dies_in = data.draw(st.integers(1, n_steps), "dies in step")
    saved_after = data.draw(st.integers(max(0, dies_in - 6), dies_in - 1), "last checkpoint after step")
    killed = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patched:
        train_and_die(patched, killed, the_task, saved_after, dies_in)
    assert (killed / f"{UNIT}.checkpoint").is_file() == (saved_after > 0)
    torch.manual_seed(99)
    resumed = train_loop.train_network(the_task, tiny(seed=saved_after), killed)  # what a checkpoint holds is all that counts
    if saved_after:
        np.testing.assert_array_equal(resumed, scores)
        assert same(folder, killed)


def test_a_checkpoint_after_every_step_serves(tmp_path, monkeypatch):
    """Every batch position of every epoch, once each, one resumption after another."""
    the_task = worsening()
    scores = train_loop.train_network(the_task, tiny(), tmp_path / "whole")
    monkeypatch.setattr(processes, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(processes, "CHECKPOINT_SHARE", math.inf)
    step = train_loop._Training._step
    done = []

    def dying(self, *arguments):
        if len(done) and done[-1] == "begun":
            done[-1] = "killed"
            raise Killed
        done.append("begun")
        return step(self, *arguments)

    monkeypatch.setattr(train_loop._Training, "_step", dying)
    for _ in range(40):
        try:
            found = train_loop.train_network(the_task, tiny(), tmp_path / "killed")
            break
        except Killed:
            continue
    assert done.count("killed") == 15 and len(done) == 16, "16 steps, each but the last followed by a kill"
    np.testing.assert_array_equal(found, scores)
    assert same(tmp_path / "whole", tmp_path / "killed")


def test_killed_while_it_validates(tmp_path, monkeypatch):
    """The epoch's last step isn't taken twice."""
    scores = train_loop.train_network(worsening(), tiny(), tmp_path / "whole")
    monkeypatch.setattr(processes, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(processes, "CHECKPOINT_SHARE", math.inf)

    def killed(self):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(train_loop._Training, "_validate", killed)
        with pytest.raises(Killed):
            train_loop.train_network(worsening(), tiny(), tmp_path / "killed")
    np.testing.assert_array_equal(train_loop.train_network(worsening(), tiny(), tmp_path / "killed"), scores)
    assert same(tmp_path / "whole", tmp_path / "killed")


IN_A_PROCESS = """
import math, sys
from pathlib import Path
import torch, made_training
from mfcore.training import loop as train_loop, processes

torch.set_num_threads(1)
processes.CHECKPOINT_SECONDS, processes.CHECKPOINT_SHARE = 0, math.inf
step, n_steps = train_loop._Training._step, iter(range(7))

def stopping(self, *arguments):
    if next(n_steps) == 6:  # the third step of the second epoch's four
        print("here", flush=True)
        sys.stdin.read()
    return step(self, *arguments)

train_loop._Training._step = stopping
train_loop.train_network(made_training.worsening(), made_training.tiny(), Path(sys.argv[1]))
"""


def test_kill_9_in_the_middle_of_an_epoch(tmp_path, started):
    """A process that is truly killed, and another that goes on from what it left on disk."""
    scores = train_loop.train_network(worsening(), tiny(), tmp_path / "whole")
    paths = [str(Path(made_training.__file__).parent), str(Path(train_loop.__file__).parents[2])]
    process = started(
        [sys.executable, "-c", IN_A_PROCESS, str(tmp_path / "killed")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert process.stdout.readline() == b"here\n"
    process.kill()
    process.wait()
    state = torch.load(tmp_path / "killed" / f"{UNIT}.checkpoint", weights_only=True)
    assert len(state["history"]) == 1 and state["position"]["n_steps"] == 2
    torch.manual_seed(5)
    np.testing.assert_array_equal(train_loop.train_network(worsening(), tiny(seed=3), tmp_path / "killed"), scores)
    assert same(tmp_path / "whole", tmp_path / "killed")


def test_a_short_training_writes_no_checkpoint(tmp_path):
    train_loop.train_network(task(), tiny(), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{UNIT}.jsonl", f"{UNIT}.safetensors"]


def test_checkpoints_take_a_small_share_of_the_time(tmp_path, monkeypatch):
    """One that takes a second to write isn't written every second."""
    n_saved, write = 0, processes.Checkpoint.write

    def counted(self, state):
        nonlocal n_saved
        n_saved += 1
        write(self, state)

    monkeypatch.setattr(processes.Checkpoint, "write", counted)
    monkeypatch.setattr(processes, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(processes, "CHECKPOINT_SHARE", 1e-6)
    train_loop.train_network(task(), tiny(), tmp_path)
    assert n_saved == 1


def test_lora_goes_on_from_what_it_learnt(tmp_path, monkeypatch):
    """Only the matrices and the head are kept and checkpointed; the frozen rest is built anew."""
    lora = Lora(rank=2, alpha=2.0, dropout=0.1, targets=("qkv", "fc1"))
    the_network = network(input_px=16, shift_px=0, n_epochs=2, lora=lora, architecture="random:test_vit")
    the_task = task(network=the_network, patches=np.random.default_rng(0).integers(0, 256, (120, 23, 23, 3), np.uint8))

    def model() -> torch.nn.Module:
        return adapt.build_network("random:test_vit", lora, pretrained=False, seed=1, input_px=16)

    frozen = {name: p.detach().clone() for name, p in model().named_parameters() if not p.requires_grad}
    trained = model()
    scores = train_loop.train_network(the_task, trained, tmp_path / "whole")
    assert set(weights_of(tmp_path / "whole")) == set(adapt.trained(model())) and frozen
    assert all(torch.equal(dict(trained.named_parameters())[name], tensor) for name, tensor in frozen.items())
    n_begun, step = 0, train_loop._Training._step

    def dying(self, *arguments):
        nonlocal n_begun
        n_begun += 1
        if n_begun == 6:
            raise Killed
        return step(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(processes, "CHECKPOINT_SECONDS", 0)
        patched.setattr(processes, "CHECKPOINT_SHARE", math.inf)
        patched.setattr(train_loop._Training, "_step", dying)
        with pytest.raises(Killed):
            train_loop.train_network(the_task, model(), tmp_path / "killed")
    size = (tmp_path / "killed" / f"{UNIT}.checkpoint").stat().st_size
    assert size < 4 * sum(tensor.numel() for tensor in frozen.values()), "the frozen network is in the checkpoint"
    np.testing.assert_array_equal(train_loop.train_network(the_task, model(), tmp_path / "killed"), scores)
    assert same(tmp_path / "whole", tmp_path / "killed")


# ---- what else a training promises ----


def test_the_unit_decides_the_draws_and_no_outer_seed_does(tmp_path):
    """Two runs agree to the last bit, whatever was drawn before them."""
    torch.manual_seed(1)
    one = train_loop.train_network(task(), tiny(), tmp_path / "one")
    torch.manual_seed(2)
    before = torch.get_rng_state()
    np.testing.assert_array_equal(train_loop.train_network(task(), tiny(), tmp_path / "two"), one)
    assert torch.equal(torch.get_rng_state(), before) and same(tmp_path / "one", tmp_path / "two")
    assert not np.array_equal(train_loop.train_network(task(unit="all-fold1-size1"), tiny(), tmp_path), one)


def test_a_process_touches_no_other_gpu_than_its_own(tmp_path, monkeypatch):
    """Keeping the draws of all of them would leave something of each process on each."""
    kept, original = [], torch.random.fork_rng
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: kept.append(list(devices)) or original([]))
    the_task = task(network=network(n_epochs=1))
    train_loop.train_network(the_task, tiny(), tmp_path)
    assert len(kept) == 2 and not any(kept)


def test_the_feed_is_given_whole_epochs(tmp_path, monkeypatch):
    """The feed may read ahead: it is told the epoch's batches at once, and closed when the epoch ends before it."""
    told, closed, batches = [], [], train_feed.batches

    def watched(patches, rows, drawn, slices, device, input_px, elsewhere):
        told.append(slices)
        try:
            yield from batches(patches, rows, drawn, slices, device, input_px, elsewhere)
        finally:
            closed.append(True)

    monkeypatch.setattr(train_feed, "batches", watched)
    train_loop.train_network(task(network=network(n_epochs=2, accumulate=2)), tiny(), tmp_path)
    assert told == [train_task.batches(33, 8)] * 2 and len(closed) == 2
    train_and_die(monkeypatch, tmp_path / "killed", task(), saved_after=0, dies_in=2)
    assert len(closed) == 3


def test_a_single_patch_left_over_does_not_break_batch_norm(tmp_path):
    model = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1)
    )
    model.card = CARD
    labels = np.arange(120, dtype=np.int8) % 2
    roles = {"train": np.arange(17), "val": np.arange(60, 61), "test": np.arange(90, 92)}
    the_task = task(network=network(patches_per_epoch=None, n_epochs=2), roles=roles, labels=labels)
    assert train_loop.train_network(the_task, model, tmp_path).shape == (2,)
    assert history_of(tmp_path)[0]["val_auroc"] is None


@pytest.mark.parametrize(("which", "n_good"), [("training", 6), ("validation", 3)])
def test_a_loss_that_is_not_finite_stops(tmp_path, which, n_good):
    """Four batches an epoch: the seventh training batch, or validation after the first epoch's four."""

    class Diverging(torch.nn.Module):
        card = CARD

        def __init__(self):
            super().__init__()
            self.scale, self.n_seen = torch.nn.Parameter(torch.ones(1)), 0

        def forward(self, images):
            self.n_seen += self.training
            bad = self.n_seen > n_good and self.training == (which == "training")
            return images.mean((1, 2, 3))[:, None] * self.scale * (np.nan if bad else 1)

    number = 2 if which == "training" else 1
    said = rf"{UNIT}: the {which} loss became nan in epoch {number} of 4, .* rate of 0\.0.*\[tiny\]\.max_lr \(now 0\.02"
    with pytest.raises(TrainingError, match=said):
        train_loop.train_network(task(), Diverging(), tmp_path)
    assert not (tmp_path / f"{UNIT}.safetensors").exists()
    assert len(history_of(tmp_path)) == number - 1


def test_memory_that_is_too_small_is_said(tmp_path, monkeypatch):
    def full(self, *arguments):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(train_loop._Training, "_step", full)
    with pytest.raises(TrainingError, match=rf"{UNIT}: cpu has too little memory .* batches of 8; lower its batch_size"):
        train_loop.train_network(task(), tiny(), tmp_path)


def test_real_encoder_trains(tmp_path):
    """The smallest real joint: a timm network without its weights, one epoch."""
    the_network = network(architecture="random:test_efficientnet", input_px=32, n_epochs=1, patches_per_epoch=8, shift_px=0)
    model = adapt.build_network("random:test_efficientnet", pretrained=False, seed=1, input_px=32)
    stored = np.random.default_rng(0).integers(0, 256, (120, 46, 46, 3), dtype=np.uint8)
    scores = train_loop.train_network(task(network=the_network, patches=stored), model, tmp_path)
    assert scores.shape == (30,) and np.isfinite(scores).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_a_gpu_comes_near_the_cpu(tmp_path):
    the_task = task(network=network(n_epochs=1, max_lr=1e-4))
    one, other = (train_loop.train_network(the_task, tiny(), tmp_path / device, device) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(one, other, atol=0.02)  # bfloat16, and another dropout
    assert encoders.computes_bfloat16(encoders.choose_device("cuda")) or not torch.cuda.is_bf16_supported()
