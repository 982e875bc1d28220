"""Training: the tested weights are copies of the best epoch, a kill changes nothing, the draws are fair."""

import dataclasses
import json
import types

import numpy as np
import pandas as pd
import pytest

from mfcore import encoders, metrics, patches, splits, store, train
from mfcore.config import Data, Network, Patches, Study, Switches

torch = pytest.importorskip("torch")

CARD = types.SimpleNamespace(mean=(0.5, 0.4, 0.6), std=(0.2, 0.25, 0.3), identity=lambda: {"name": "tiny"})
NETWORK = Network(
    name="tiny", architecture="tiny", input_px=12, n_epochs=4, patches_per_epoch=33, batch_size=8, max_lr=0.02, shift_px=1
)
N_PATCHES, N_SLIDES = 120, 8


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for one another cost more than they bring in networks as small as these."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def tiny(seed: int = 0) -> "torch.nn.Module":
    """A network with what makes resuming hard: batch norm's running means, and dropout."""
    with train.seeded(seed):
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, stride=2),
            torch.nn.BatchNorm2d(8),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
            torch.nn.Dropout(0.3),
            torch.nn.Linear(8, 1),
        )
    model.card = CARD
    return model


def made(seed: int = 1) -> tuple[np.ndarray, pd.DataFrame]:
    """Patches that are noise, a bit darker in class 1, and their label table."""
    draws = np.random.default_rng(seed)
    label = draws.integers(0, 2, N_PATCHES)
    slide = draws.integers(0, N_SLIDES, N_PATCHES)
    stored = draws.integers(40, 220, (N_PATCHES, NETWORK.needed_px, NETWORK.needed_px, 3)) - 12 * label[:, None, None, None]
    table = pd.DataFrame(
        {"patch_id": np.arange(N_PATCHES), "slide_id": [f"s{i}" for i in slide], "label": label.astype(np.int8)}
    )
    return stored.astype(np.uint8), table.assign(domain=np.where(slide % 2 == 0, "even", "odd"))


def task(unit: str = "all-fold0-size1", **changed: object) -> train.Task:
    """Training on the made patches: 60 train, 30 validate, 30 test."""
    stored, table = made()
    given = {
        "unit": unit,
        "network": NETWORK,
        "seed": 42,
        "patches": stored,
        "labels": table["label"].to_numpy(),
        "slide_ids": table["slide_id"].to_numpy(),
        "roles": {"train": np.arange(60), "val": np.arange(60, 90), "test": np.arange(90, N_PATCHES)},
    }
    return train.Task(**{**given, **changed})


def network(**changed: object) -> Network:
    return dataclasses.replace(NETWORK, **changed)


def scores_of(weights: dict, the_task: train.Task, role: str) -> np.ndarray:
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


def history_of(folder, unit: str = "all-fold0-size1") -> list[dict]:
    return [json.loads(line) for line in (folder / f"{unit}.jsonl").read_text().splitlines()]


def weights_of(folder, unit: str = "all-fold0-size1") -> dict:
    import safetensors.torch

    return safetensors.torch.load_file(folder / f"{unit}.safetensors")


# ---- which weights are tested ----


@pytest.fixture(scope="module")
def worsening() -> train.Task:
    """Training patches with wrong labels: validation gets worse with every epoch, so that best and last differ."""
    right = task()
    labels = right.labels.copy()
    labels[right.roles["train"]] = 1 - labels[right.roles["train"]]
    return task(labels=labels, network=network(max_lr=0.05))


def test_best_epoch_is_truly_restored(tmp_path, worsening):
    """The released code keeps references to the best weights, so that it tests the last ones."""
    scores = train.train_network(worsening, tiny(), tmp_path)
    history = history_of(tmp_path)
    losses = [line["val_loss"] for line in history]
    assert np.argmin(losses) < len(losses) - 1 and losses[-1] > min(losses) + 0.01, "the last epoch must differ for this test"
    validated = scores_of(weights_of(tmp_path), worsening, "val")
    loss = np.mean(losses_by_class(validated, worsening.labels[worsening.roles["val"]]))
    assert loss == pytest.approx(min(losses), abs=1e-5)
    np.testing.assert_allclose(scores, scores_of(weights_of(tmp_path), worsening, "test"), atol=1e-5)


def test_last_epoch_when_the_study_says_so(tmp_path, worsening):
    train.train_network(worsening, tiny(), tmp_path, epoch="last")
    validated = scores_of(weights_of(tmp_path), worsening, "val")
    loss = np.mean(losses_by_class(validated, worsening.labels[worsening.roles["val"]]))
    assert loss == pytest.approx(history_of(tmp_path)[-1]["val_loss"], abs=1e-5)


def test_training_learns(tmp_path):
    """An easy task is learnt, so loss, labels and scores point the same way."""
    easy = task()
    bright = np.where(easy.labels == 1, 60, 200)[:, None, None, None]
    easy = dataclasses.replace(easy, patches=(0.2 * easy.patches + 0.8 * bright).astype(np.uint8))
    scores = train.train_network(easy, tiny(), tmp_path)
    assert metrics.auroc(easy.labels[easy.roles["test"]], scores) > 0.95
    assert scores.dtype == np.float64 and scores.min() >= 0 and scores.max() <= 1
    history = history_of(tmp_path)
    assert [line["epoch"] for line in history] == [1, 2, 3, 4]
    assert history[-1]["train_loss"] < history[0]["train_loss"] and history[-1]["val_auroc"] > 0.9
    assert history[-1]["learning_rate"] < 1e-6 < history[0]["learning_rate"]


def test_learning_rate_follows_torch(tmp_path):
    train.train_network(task(), tiny(), tmp_path)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=16)
    rates = []
    for _ in range(16):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert [line["learning_rate"] for line in history_of(tmp_path)] == pytest.approx(rates[3::4])


# ---- killed, and taken up again ----


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("dies_in", [1, 3])
@pytest.mark.parametrize("epoch", ["best", "last"])
def test_a_kill_changes_nothing(tmp_path, monkeypatch, worsening, dies_in, epoch):
    whole = train.train_network(worsening, tiny(), tmp_path / "whole", epoch)
    n_calls = 0
    forward = train._Training._forward

    def dying(self, images):
        nonlocal n_calls
        n_calls += self.model.training
        if n_calls > 4 * (dies_in - 1) + 2:  # four batches an epoch
            raise Killed
        return forward(self, images)

    with monkeypatch.context() as patched:
        patched.setattr(train._Training, "_forward", dying)
        with pytest.raises(Killed):
            train.train_network(worsening, tiny(), tmp_path / "killed", epoch, checkpoint_seconds=0)
    assert len(history_of(tmp_path / "killed")) == dies_in - 1
    assert (tmp_path / "killed" / "all-fold0-size1.checkpoint").is_file() == (dies_in > 1)
    n_epochs = 0
    run_epoch = train._Training.run_epoch

    def counting(self, **arguments):
        nonlocal n_epochs
        n_epochs += 1
        return run_epoch(self, **arguments)

    monkeypatch.setattr(train._Training, "run_epoch", counting)
    other_start = tiny(seed=dies_in - 1)  # a resumed network's weights come from the checkpoint
    torch.manual_seed(99)
    resumed = train.train_network(worsening, other_start, tmp_path / "killed", epoch)
    assert n_epochs == 4 - (dies_in - 1)
    np.testing.assert_array_equal(resumed, whole)
    for name, tensor in weights_of(tmp_path / "whole").items():
        assert torch.equal(tensor, weights_of(tmp_path / "killed")[name])
    for one, other in zip(history_of(tmp_path / "whole"), history_of(tmp_path / "killed"), strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_short_training_writes_no_checkpoint(tmp_path):
    train.train_network(task(), tiny(), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["all-fold0-size1.jsonl", "all-fold0-size1.safetensors"]


def test_the_unit_decides_the_draws_and_no_outer_seed_does(tmp_path):
    torch.manual_seed(1)
    one = train.train_network(task(), tiny(), tmp_path)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    np.testing.assert_array_equal(train.train_network(task(), tiny(), tmp_path), one)
    assert torch.equal(torch.get_rng_state(), before)
    assert not np.array_equal(train.train_network(task(unit="all-fold1-size1"), tiny(), tmp_path), one)


# ---- draws and batches ----


def test_draw_is_uniform_over_slides_then_classes():
    """A big slide weighs what a small one does; a slide without one class gives what it has, each patch as likely."""
    slides = np.array(["big"] * 80 + ["small"] * 3 + ["all 0"] * 10 + ["all 1"] * 7)
    labels = np.array([1] * 10 + [0] * 70 + [1, 0, 0] + [0] * 10 + [1] * 7, dtype=np.int8)
    roles = {"train": np.arange(100) + 20, "val": np.arange(20), "test": np.arange(120, 125)}
    everywhere = np.concatenate([np.full(20, "elsewhere"), slides, np.full(5, "elsewhere")])
    truth = np.concatenate([np.zeros(20, np.int8), labels, np.zeros(5, np.int8)])
    the_task = task(
        network=network(patches_per_epoch=30_000),
        roles=roles,
        slide_ids=everywhere,
        labels=truth,
        patches=np.zeros((125, NETWORK.needed_px, NETWORK.needed_px, 3), np.uint8),
    )
    rows = train.draw_epoch(the_task, 1)
    assert len(rows) == 30_000 and np.isin(rows, roles["train"]).all()
    shares = pd.Series(rows).groupby([everywhere[rows], truth[rows]]).size() / 30_000
    of_small = {("small", 0): 1 / 8, ("small", 1): 1 / 8}
    expected = {("big", 0): 1 / 8, ("big", 1): 1 / 8, **of_small, ("all 0", 0): 1 / 4, ("all 1", 1): 1 / 4}
    assert shares.to_dict() == pytest.approx(expected, abs=0.01)
    per_patch = np.bincount(rows, minlength=125)[20:120] / 30_000
    each = [1 / 80] * 10 + [1 / 560] * 70 + [1 / 8, 1 / 16, 1 / 16] + [1 / 40] * 10 + [1 / 28] * 7
    np.testing.assert_allclose(train.chances(the_task), each)
    np.testing.assert_allclose(per_patch, each, rtol=0.6)
    np.testing.assert_allclose(per_patch[80:], each[80:], rtol=0.2)
    np.testing.assert_array_equal(rows, train.draw_epoch(the_task, 1))
    assert not np.array_equal(rows, train.draw_epoch(the_task, 2))


def test_validation_weighs_classes_as_the_draw_does(tmp_path):
    """The validation loss is the mean of the classes' means where training draws; else that of the patches."""
    labels = np.where(np.arange(N_PATCHES) >= 64, 1, task().labels)  # few of class 0 among those that validate
    for per_epoch in (33, None):
        drawn = network(n_epochs=1, patches_per_epoch=per_epoch)
        the_task = task(network=drawn, labels=labels)
        train.train_network(the_task, tiny(), tmp_path)
        truth, scores = labels[the_task.roles["val"]], scores_of(weights_of(tmp_path), the_task, "val")
        by_class = losses_by_class(scores, truth)
        by_patch = np.average(by_class, weights=[(truth == 0).sum(), (truth == 1).sum()])
        assert abs(np.mean(by_class) - by_patch) > 1e-3, "the classes must differ for this test"
        expected = by_patch if per_epoch is None else np.mean(by_class)
        assert history_of(tmp_path)[0]["val_loss"] == pytest.approx(expected, abs=1e-5)


def test_every_training_patch_once():
    the_task = task(network=network(patches_per_epoch=None))
    rows = train.draw_epoch(the_task, 1)
    np.testing.assert_array_equal(np.sort(rows), the_task.roles["train"])
    assert not np.array_equal(rows, the_task.roles["train"]) and not np.array_equal(rows, train.draw_epoch(the_task, 2))


@pytest.mark.parametrize(
    ("n", "size", "expected"), [(16, 8, [8, 8]), (17, 8, [8, 9]), (18, 8, [8, 8, 2]), (2, 8, [2]), (9, 8, [9]), (3, 2, [3])]
)
def test_no_batch_of_one(n, size, expected):
    parts = train.batches(n, size)
    assert [part.stop - part.start for part in parts] == expected
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(n))


def test_a_single_patch_left_over_does_not_break_batch_norm(tmp_path):
    model = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1)
    )
    model.card = CARD
    roles = {"train": np.arange(17), "val": np.arange(60, 61), "test": np.arange(90, 91)}
    the_task = task(network=network(patches_per_epoch=None, n_epochs=2), roles=roles)
    assert train.train_network(the_task, model, tmp_path).shape == (1,)
    assert history_of(tmp_path)[0]["val_auroc"] is None


# ---- refusals ----


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
    said = (
        rf"all-fold0-size1: the {which} loss became nan in epoch {number} of 4, .* rate of 0\.0.*\[tiny\]\.max_lr \(now 0\.02"
    )
    with pytest.raises(train.TrainingError, match=said):
        train.train_network(task(), Diverging(), tmp_path)
    assert not (tmp_path / "all-fold0-size1.safetensors").exists()
    assert len(history_of(tmp_path)) == number - 1


def test_what_can_not_be_trained_on_is_refused():
    roles = task().roles
    for role in ("train", "val", "test"):
        with pytest.raises(train.TrainingError, match=f"all-fold0-size1: there are no {role} patches"):
            task(roles={**roles, role: np.array([], dtype=int)})
    with pytest.raises(train.TrainingError, match="a patch has two of the roles"):
        task(roles={**roles, "val": np.arange(59, 90)})
    with pytest.raises(train.TrainingError, match="all 60 training patches are of class 0; leave this size out"):
        task(labels=np.zeros(N_PATCHES, np.int8))
    with pytest.raises(train.TrainingError, match="stored at 19 px, networks\\[tiny\\] needs 32 px"):
        task(network=network(input_px=21))
    with pytest.raises(train.TrainingError, match="has 1 and 8"):
        task(network=network(patches_per_epoch=1))
    with pytest.raises(train.TrainingError, match="has 33 and 1"):
        task(network=network(batch_size=1))


# ---- a study ----


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    """A study whose patches and splits lie finished in ``tmp_path``, with the tiny network for its architecture."""
    the_study = Study(
        name="small", title="Small", data=Data("midog"), patches=Patches(size_px=16), networks=(network(n_epochs=2),)
    )
    stored, table = made()
    run = store.open_run(tmp_path, "patches", "small", patches.config_of(the_study), {})
    np.save(run.path("patches.npy"), stored)
    store.write_parquet(run.path("labels.parquet"), table)
    run.finish(["patches.npy", "labels.parquet"])
    rows = []
    for fold in (0, 1):
        for size, n_train in ((0.5, 30), (1.0, 60)):
            order = np.random.default_rng(fold).permutation(N_PATCHES)
            for role, ids in (("train", order[:n_train]), ("val", order[60:90]), ("test", order[90:])):
                given = {"patch_id": np.sort(ids), "train_domain": "all", "fold": fold, "size": size, "role": role}
                rows.append(pd.DataFrame(given))
        domain = table["domain"].to_numpy()[order]
        for role, ids in (
            ("train", order[:60][domain[:60] == "odd"]),
            ("val", order[60:90][domain[60:90] == "odd"]),
            ("test", np.concatenate([order[90:], order[:60][domain[:60] == "even"]])),
        ):
            rows.append(
                pd.DataFrame({"patch_id": np.sort(ids), "train_domain": "odd", "fold": fold, "size": 1.0, "role": role})
            )
    run = store.open_run(tmp_path, "splits", the_study.switches.scheme, splits.config_of(the_study), {"patches": run.key})
    store.write_parquet(run.path("splits.parquet"), pd.concat(rows, ignore_index=True))
    run.finish(["splits.parquet"])
    monkeypatch.setattr(encoders, "card", lambda name: CARD)
    monkeypatch.setattr(encoders, "build_network", lambda name, n_classes, pretrained, seed: tiny(seed))
    return the_study


def test_train_study_writes_every_unit_of_the_fold(tmp_path, study):
    run = train.train_study(study, "tiny", 0, tmp_path)
    assert run.verify().done
    assert run.record["facts"]["device"] == "cpu" and run.record["facts"]["precision"] == "float32"
    units = ["all-fold0-size0.5", "all-fold0-size1", "odd-fold0-size1"]
    table = pd.read_parquet(run.path("predictions.parquet"))
    assert list(table.columns) == ["patch_id", "slide_id", "domain", "label", "score", "fold", "size", "train_domain"]
    assert set(table["fold"]) == {0} and sorted(set(table["train_domain"])) == ["all", "odd"]
    splits_table = splits.load(splits.find(study, tmp_path))
    tested = splits_table[(splits_table["role"] == "test") & (splits_table["fold"] == 0)]
    assert len(table) == len(tested)
    assert set(map(tuple, table[["patch_id", "size", "train_domain"]].to_numpy())) == set(
        map(tuple, tested[["patch_id", "size", "train_domain"]].to_numpy())
    )
    np.testing.assert_array_equal(table["label"], made()[1]["label"].to_numpy()[table["patch_id"]])
    assert table["score"].between(0, 1).all() and not table["score"].isna().any()
    history = train.load_history(run)
    assert history.groupby("unit", sort=False)["epoch"].agg(list).to_dict() == {unit: [1, 2] for unit in units}
    assert sorted(file.name for file in run.path("units").iterdir()) == sorted(
        f"{unit}{suffix}" for unit in units for suffix in (".jsonl", ".parquet", ".safetensors")
    )
    assert train.find(study, "tiny", 0, tmp_path).key == run.key
    with pytest.raises(store.StoreError, match="no finished 'train' run 'tiny-fold1'"):
        train.find(study, "tiny", 1, tmp_path)


def test_finished_units_are_not_trained_again(tmp_path, study, monkeypatch):
    whole = pd.read_parquet(train.train_study(study, "tiny", 1, tmp_path).path("predictions.parquet"))
    trained = []
    train_network = train.train_network

    def failing(task, *arguments, **options):
        if len(trained) == 2:
            raise Killed
        trained.append(task.unit)
        return train_network(task, *arguments, **options)

    run = train.find(study, "tiny", 1, tmp_path)
    for file in (*run.path("units").iterdir(), run.path("run.json"), run.path("predictions.parquet")):
        file.unlink()
    monkeypatch.setattr(train, "train_network", failing)
    with pytest.raises(Killed):
        train.train_study(study, "tiny", 1, tmp_path)
    assert not run.done
    run.unit_file(trained[0], ".checkpoint").touch()  # killed between a unit's result and its checkpoint's removal
    trained.remove(trained[0])
    again = train.train_study(study, "tiny", 1, tmp_path)
    assert trained == ["all-fold1-size1", "odd-fold1-size1"]
    assert not list(again.path("units").glob("*.checkpoint"))
    pd.testing.assert_frame_equal(pd.read_parquet(again.path("predictions.parquet")), whole)
    monkeypatch.setattr(train, "train_network", None)
    assert train.train_study(study, "tiny", 1, tmp_path).done


def test_progress_ends_at_its_total(tmp_path, study, monkeypatch):
    """Also where a training goes on from a checkpoint: what was done before counts as done."""
    bars = []

    class Recorded(train.tqdm):
        def __init__(self, **options):
            super().__init__(**options)
            bars.append(self)

    monkeypatch.setattr(train, "tqdm", Recorded)
    monkeypatch.setattr(train.train_network, "__defaults__", ("best", "cpu", 0.0, None))
    run_epoch = train._Training.run_epoch

    def dying(self, **arguments):
        if len(self.history) == 1:
            raise Killed
        return run_epoch(self, **arguments)

    with monkeypatch.context() as patched:
        patched.setattr(train._Training, "run_epoch", dying)
        with pytest.raises(Killed):
            train.train_study(study, "tiny", 0, tmp_path)
    train.train_study(study, "tiny", 0, tmp_path)
    assert [(bar.n, bar.total) for bar in bars] == [(33, 3 * 2 * 33), (3 * 2 * 33, 3 * 2 * 33)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_a_gpu_comes_near_the_cpu(tmp_path):
    the_task = task(network=network(n_epochs=1, max_lr=1e-4))
    one, other = (train.train_network(the_task, tiny(), tmp_path / device, device=device) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(one, other, atol=0.02)  # bfloat16, and another dropout


def test_the_epoch_switch_is_part_of_the_run(tmp_path, study):
    last = dataclasses.replace(study, switches=Switches(epoch="last"))
    best, other = (train.config_of(each, NETWORK, 0) for each in (study, last))
    assert store.differences(best, other) == ["epoch"]


def test_an_unknown_fold_is_refused(tmp_path, study):
    with pytest.raises(train.TrainingError, match=r"no fold 7; they have \[0, 1\]"):
        train.train_study(study, "tiny", 7, tmp_path)


def test_start_follows_the_unit(tmp_path, study, monkeypatch):
    seeds = []
    monkeypatch.setattr(encoders, "build_network", lambda name, n_classes, pretrained, seed: seeds.append(seed) or tiny(seed))
    train.train_study(study, "tiny", 0, tmp_path)
    assert len(set(seeds)) == 3


def test_real_encoder_trains(tmp_path):
    """The smallest real joint: a timm network without its weights, one epoch."""
    the_network = network(architecture="random:test_efficientnet", input_px=32, n_epochs=1, patches_per_epoch=8, shift_px=0)
    model = encoders.build_network("random:test_efficientnet", pretrained=False, seed=1)
    stored = np.random.default_rng(0).integers(0, 256, (N_PATCHES, 46, 46, 3), dtype=np.uint8)
    scores = train.train_network(task(network=the_network, patches=stored), model, tmp_path)
    assert scores.shape == (30,) and np.isfinite(scores).all()
