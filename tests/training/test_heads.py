"""Linear heads trained by steps: the same as torch's own loop, alone or together, and stopped as the schedule says."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from mfcore.measures import binary
from mfcore.training import heads
from mfcore.training.estimators import ADAM, EVA, _in_epochs
from mfcore.training.heads import Head, Schedule

SLOW_START = Schedule(0.02, 0.01, 16, lambda n_batches: 12, max_steps=300, n_slow_epochs=5, slow_factor=1 / 3)
PLAIN = Schedule(0.01, 0.01, 16, lambda n_batches: 4, max_steps=60)


def problem(n_classes, n=150, n_dims=6, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n)
    features = rng.normal(size=(n, n_dims)) + 1.5 * rng.normal(size=(n_classes, n_dims))[labels]
    return features.astype(np.float32), labels, np.arange(0, n, 2), np.arange(1, n, 2)


def some(train, validation, n=1, seed=0):
    train, validation = np.asarray(train), np.asarray(validation, int)
    return [Head(train, validation, np.random.default_rng(seed + i)) for i in range(n)]


@pytest.mark.parametrize(
    ("n_classes", "change"),
    [
        (2, {}),
        (4, {}),
        (2, {"optimizer": "Adam", "slow_factor": 1.0}),
        (2, {"slow_factor": 1.0, "epochs_a_validation": 3}),
    ],
)
def test_a_head_is_torchs_linear_layer_trained_by_autograd(n_classes, change):
    """The same weights after the same steps as a plain torch loop over nn.Linear, with eva's losses."""
    features, labels, train, validation = problem(n_classes)
    schedule = dataclasses.replace(SLOW_START, max_steps=37, patience=lambda n_batches: 10**6, **change)
    (head,) = some(train, validation)
    heads.train(features, labels, n_classes, [head], schedule)

    draw, n_outputs, bound = np.random.default_rng(0), 1 if n_classes == 2 else n_classes, 6**-0.5
    layer = torch.nn.Linear(6, n_outputs)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(draw.uniform(-bound, bound, (n_outputs, 6))))
        layer.bias.copy_(torch.from_numpy(draw.uniform(-bound, bound, n_outputs)))
    optimizer = getattr(torch.optim, schedule.optimizer)(layer.parameters(), lr=0.02, weight_decay=0.01)
    rates = torch.optim.lr_scheduler.ConstantLR(optimizer, schedule.slow_factor, total_iters=5)
    x, y, best, n_steps, kept = torch.from_numpy(features), torch.from_numpy(labels), -1.0, 0, None
    for epoch in range(1, 9):  # of five batches; the last one ends early
        order = draw.permutation(train)
        for rows in (order[i : i + 16] for i in range(0, len(order), 16)):
            logits = layer(x[rows])
            if n_classes == 2:
                loss = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], y[rows].float())
            else:
                loss = torch.nn.functional.cross_entropy(logits, y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            n_steps += 1
            if n_steps == 37:
                break
        rates.step()
        if epoch % schedule.epochs_a_validation and n_steps < 37:
            continue
        logits = layer(x[validation]).detach()
        called = (logits[:, 0] > 0).long() if n_classes == 2 else logits.argmax(1)
        score = balanced_accuracy_score(labels[validation], called)
        if score > best:
            best, kept = score, (layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy(), n_steps)
    assert head.progress.n_steps == 37 and head.progress.ended == "limit" and head.progress.best == pytest.approx(best)
    assert head.progress.best_step == kept[2]
    assert head.weight == pytest.approx(kept[0], abs=1e-5) and head.bias == pytest.approx(kept[1], abs=1e-5)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_long_training_finds_scikit_learns_optimum(n_classes):
    """On full batches, without weight decay and validated at the end only, it is the unpenalised logistic regression."""
    features, labels, train, validation = problem(n_classes, n=240, n_dims=3)
    features /= 2  # so that the classes overlap
    schedule = Schedule(0.01, 0.0, 1000, lambda n_batches: 1, max_steps=6000, epochs_a_validation=10**6)
    (head,) = some(train, validation)
    heads.train(features, labels, n_classes, [head], schedule)
    other = LogisticRegression(C=np.inf, max_iter=5000, tol=1e-8).fit(features[train], labels[train])
    assert head.scores(features) == pytest.approx(other.predict_proba(features), abs=2e-3)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_heads_trained_together_are_those_trained_alone(n_classes):
    """Of different rows, too: the folds of a study."""
    features, labels, train, validation = problem(n_classes)
    rows = [(train, validation), (train, validation), (train[:50], validation[:20]), (validation, train)]

    def made():
        return [head for i, pair in enumerate(rows) for head in some(*pair, seed=i)]

    together = made()
    schedule = dataclasses.replace(SLOW_START, n_slow_epochs=0)
    heads.train(features, labels, n_classes, together, schedule)
    assert len({head.progress.n_steps for head in together}) > 1, "some stop before others"
    for head, alone in zip(together, made(), strict=True):
        heads.train(features, labels, n_classes, [alone], schedule)
        assert (head.weight == alone.weight).all() and (head.bias == alone.bias).all()
        assert head.progress == alone.progress


def test_heads_share_what_they_are_validated_on():
    """Of PatchCamelyon a copy is hundreds of MB."""
    features, labels, train, validation = problem(3, n=4000, n_dims=500)
    schedule = dataclasses.replace(SLOW_START, max_steps=2)
    heads.train(features, labels, 3, some(train[:40], validation), schedule)  # what torch imports when it first trains
    tracemalloc.start()
    heads.train(features, labels, 3, some(train[:40], validation, 5), schedule)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * features[validation].nbytes


def test_training_stops_when_validation_gains_nothing_and_keeps_its_best():
    features, labels, train, validation = problem(3, n=90)
    schedule = dataclasses.replace(SLOW_START, max_steps=3000, patience=lambda n_batches: 7)
    (head,) = some(train, validation)
    heads.train(features, labels, 3, [head], schedule)
    progress = head.progress
    assert progress.ended == "early" and progress.n_steps == progress.best_step + 7 * schedule.n_batches(len(train)) < 3000
    called = head.scores(features[validation]).argmax(axis=1)
    assert binary.mean_recall(labels[validation], called) == progress.best
    (again,) = some(train, [])
    heads.train(features, labels, 3, [again], dataclasses.replace(schedule, max_steps=progress.best_step))
    assert np.array_equal(again.weight, head.weight), "not the weights of the best validation"


def test_small_gains_add_up_to_one_that_counts(monkeypatch):
    """As Lightning's early stopping: a gain is over the score that last counted, so that a slow climb isn't a standstill."""
    features, labels, train, validation = problem(3, n=90)
    scores = iter(0.5 + 0.006 * i for i in range(100))
    monkeypatch.setattr(binary, "mean_recall", lambda *_: next(scores))
    schedule = dataclasses.replace(SLOW_START, max_steps=200, patience=lambda n_batches: 3, min_gain=0.01)
    (head,) = some(train, validation)
    heads.train(features, labels, 3, [head], schedule)
    progress = head.progress
    assert progress.ended == "limit" and progress.best_step == progress.n_steps == 200, (
        "every score is better, and the best kept"
    )
    scores = iter([0.5, *(0.5 + 0.002 * i for i in range(1, 4)), *[0.9] * 9])
    (head,) = some(train, validation)
    heads.train(features, labels, 3, [head], schedule)
    assert head.progress.ended == "early" and head.progress.best == pytest.approx(0.506), "three in a row brought too little"


def test_a_validation_set_that_cannot_tell_stops_nothing_and_is_named():
    features, labels, train, _ = problem(2)
    labels[3:5] = 1
    (head,) = some(train, [3, 4])
    heads.train(features, labels, 2, [head], PLAIN)
    assert head.progress.ended == "limit, no validation: one class only" and head.progress.n_steps == 60 and head.weight.any()
    assert _in_epochs(head, PLAIN)["best_epoch"] == 12


def test_fewer_items_than_a_batch_are_one_batch():
    features, labels, train, validation = problem(2)
    (head,) = some(train[:10], validation)
    schedule = dataclasses.replace(PLAIN, patience=lambda n_batches: 100)
    heads.train(features, labels, 2, [head], schedule)
    facts = _in_epochs(head, schedule)
    assert facts["n_steps"] == facts["n_epochs"] == 60 and facts["ended"] == "limit"


def test_part_of_an_epoch_at_the_limit_uses_up_no_epochs_of_patience(monkeypatch):
    """An audit's fits count epochs: the best is the second of them, and four more would have to end without a gain."""
    features, labels, train, validation = problem(2, n=160)  # five batches an epoch
    scores = iter([0.5, 0.9, *[0.6] * 9])
    monkeypatch.setattr(binary, "mean_recall", lambda *_: next(scores))
    (head,) = some(train, validation)
    schedule = dataclasses.replace(PLAIN, max_steps=27)
    heads.train(features, labels, 2, [head], schedule)
    assert _in_epochs(head, schedule) == {"ended": "limit", "n_steps": 27, "n_epochs": 5, "best_epoch": 2}


def test_a_balanced_epoch_draws_both_classes_alike():
    rng = np.random.default_rng(5)
    labels, features = (rng.random(2000) < 0.1).astype(np.int64), np.zeros((2000, 20), np.float32)
    for is_balanced in (True, False):
        schedule, (head,) = dataclasses.replace(PLAIN, is_balanced=is_balanced), some(range(2000), [])
        training = heads._Training(features, labels, 2, head, schedule)
        rows = np.concatenate([next(training.batches) for _ in range(schedule.n_batches(2000))])
        if is_balanced:
            assert len(rows) == 2000 and labels[rows].mean() == pytest.approx(0.5, abs=0.05)
        else:
            assert sorted(rows) == list(range(2000))


def test_evas_patience_is_what_its_configurations_say():
    """BACH 268 patches (1250 epochs), CRC 100,000 (7), PCam 262,144 (3): batches of 256."""
    assert [EVA.patience(EVA.n_batches(n)) for n in (268, 100_000, 262_144)] == [1250, 7, 3]
    assert (EVA.optimizer, EVA.learning_rate, EVA.batch_size, EVA.max_steps) == ("AdamW", 3e-4, 256, 12_500)
    assert (ADAM.optimizer, ADAM.learning_rate, ADAM.batch_size, ADAM.max_epochs) == ("Adam", 5e-5, 8, 100) and ADAM.is_balanced
    assert ADAM.patience(1) == ADAM.patience(1000) == 15
