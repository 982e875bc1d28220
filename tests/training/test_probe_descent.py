"""Heads trained by steps: the same as torch's own loop, alone or together, and stopped as they say."""

import dataclasses

import numpy as np
import pytest
import torch

from mfcore.training import probe_descent
from mfcore.training.probe_descent import Head, Schedule
from mfcore.training.probe_estimators import ADAM, EVA

PLAIN = Schedule("AdamW", 1e-2, 0.01, 16, lambda n_batches: 4, max_steps=60)


def problem(seed=0, n=120, n_dims=20, share=0.5):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < share).astype(np.int64)
    return (rng.normal(size=(n, n_dims)) + 0.5 * labels[:, None]).astype(np.float32), labels


def head(train, validation, seed=0):
    return Head(np.asarray(train), np.asarray(validation, dtype=int), np.random.default_rng(seed))


@pytest.mark.parametrize("optimizer", ["AdamW", "Adam"])
def test_it_steps_as_torch_does_with_autograd(optimizer):
    features, labels = problem()
    schedule = dataclasses.replace(PLAIN, optimizer=optimizer)
    mine = head(range(100), [])  # no validation: trained to the limit
    probe_descent.train(features, labels, [mine], schedule, "test")
    draw, linear = np.random.default_rng(0), torch.nn.Linear(20, 1)
    with torch.no_grad():
        linear.weight[:] = torch.from_numpy(draw.uniform(-1, 1, 20) / np.sqrt(20))
        linear.bias[:] = float(draw.uniform(-1, 1) / np.sqrt(20))
    theirs = getattr(torch.optim, optimizer)(linear.parameters(), lr=1e-2, weight_decay=0.01)
    for step in range(60):
        if step % 7 == 0:
            order = draw.permutation(np.arange(100))
        rows = order[16 * (step % 7) :][:16]  # the seventh batch has four
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            linear(torch.from_numpy(features[rows]))[:, 0], torch.from_numpy(labels[rows]).float()
        )
        theirs.zero_grad()
        loss.backward()
        theirs.step()
    assert mine.weight == pytest.approx(linear.weight.detach().numpy()[0], abs=1e-5)
    assert mine.bias == pytest.approx(linear.bias.item(), abs=1e-5)


def test_folds_trained_together_are_those_trained_alone():
    features, labels = problem(1, n=200)
    rows = [(range(100), range(150, 200)), (range(20, 90), range(100, 150))]
    together = [head(*pair, seed=i) for i, pair in enumerate(rows)]
    probe_descent.train(features, labels, together, PLAIN, "test")
    for i, pair in enumerate(rows):
        alone = head(*pair, seed=i)
        probe_descent.train(features, labels, [alone], PLAIN, "test")
        assert alone.weight == pytest.approx(together[i].weight, abs=1e-6)
        assert (alone.n_steps, alone.ended) == (together[i].n_steps, together[i].ended)


def test_validation_stops_it_and_the_best_epoch_is_kept():
    features, labels = problem(2, n=300)
    labels[200:] = np.random.default_rng(0).integers(0, 2, 100)  # nothing to be learnt for these
    schedule = dataclasses.replace(PLAIN, max_steps=5000)
    stopped = head(range(200), range(200, 300))
    probe_descent.train(features, labels, [stopped], schedule, "test")
    assert stopped.ended == "early" and stopped.n_epochs == stopped.best_epoch + 4 and stopped.n_steps == 13 * stopped.n_epochs
    again = head(range(200), [])
    probe_descent.train(features, labels, [again], dataclasses.replace(PLAIN, max_steps=13 * stopped.best_epoch), "test")
    assert np.array_equal(again.weight, stopped.weight), "not the weights of the best epoch"


@pytest.mark.parametrize(("validation", "reason"), [([], "no patches"), ([3, 4], "one class only")])
def test_a_validation_set_that_cannot_tell_stops_nothing_and_is_named(validation, reason):
    features, labels = problem(3)
    labels[3:5] = 1
    found = head(range(60), validation)
    probe_descent.train(features, labels, [found], PLAIN, "test")
    assert found.ended == f"limit, no validation: {reason}" and found.n_steps == 60 and found.weight.any()


def test_fewer_patches_than_a_batch_are_one_batch():
    features, labels = problem(4)
    found = head(range(10), range(50, 100))
    probe_descent.train(features, labels, [found], dataclasses.replace(PLAIN, patience=lambda n: 100), "test")
    assert found.n_steps == found.n_epochs == 60 and found.ended == "limit"


def test_a_balanced_epoch_draws_both_classes_alike():
    features, labels = problem(5, n=2000, share=0.1)
    schedule = dataclasses.replace(PLAIN, balanced=True)
    fold = probe_descent._Fold(features, labels, head(range(2000), []), schedule, *np.zeros((4, 20)))
    rows = np.concatenate([next(fold.batches) for _ in range(fold.n_batches)])
    assert len(rows) == 2000 and labels[rows].mean() == pytest.approx(0.5, abs=0.05)
    plain = probe_descent._Fold(features, labels, head(range(2000), []), PLAIN, *np.zeros((4, 20)))
    assert sorted(np.concatenate([next(plain.batches) for _ in range(plain.n_batches)])) == list(range(2000))


def test_evas_patience_is_what_its_configurations_say():
    """BACH 268 patches (1250 epochs), CRC 100,000 (7), PCam 262,144 (3): batches of 256."""
    assert [EVA.patience(-(-n // EVA.batch_size)) for n in (268, 100_000, 262_144)] == [1250, 7, 3]
    assert (EVA.optimizer, EVA.learning_rate, EVA.batch_size, EVA.max_steps) == ("AdamW", 3e-4, 256, 12_500)
    assert (ADAM.optimizer, ADAM.learning_rate, ADAM.batch_size, ADAM.max_epochs, ADAM.balanced) == ("Adam", 5e-5, 8, 100, True)
    assert ADAM.patience(1) == ADAM.patience(1000) == 15
