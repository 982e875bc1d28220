"""Linear heads trained by steps on mini-batches, stopped by a validation set: several folds at once.

The folds' weights are rows of one tensor, so that one step of torch's optimizer serves them all; it treats every number by
itself, so that each fold trains as it would alone.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm


@dataclass(frozen=True)
class Schedule:
    """How a head is trained.

    optimizer: a class of torch.optim; weight_decay: as that class takes it. batch_size: patches a step, fewer where there
    are fewer. max_steps, max_epochs: where training ends at the latest, None for no such end. patience: of how many epochs
    without a better balanced accuracy on validation it ends, from the number of steps an epoch. balanced: each epoch draws as
    many patches as there are, with replacement, both classes alike; else each patch comes once.
    """

    optimizer: str
    learning_rate: float
    weight_decay: float
    batch_size: int
    patience: Callable[[int], int]
    max_steps: int | None = None
    max_epochs: int | None = None
    balanced: bool = False


@dataclass
class Head:
    """One fold's training: its rows, and what is found on the way.

    weight (n_dims,), bias: those of the epoch that did best on validation, of the last where validation can't tell; ended:
    "early", "limit", or "limit, no validation" with the reason. n_epochs counts finished ones, best_epoch from 1.
    """

    train: np.ndarray
    validation: np.ndarray
    generator: np.random.Generator
    weight: np.ndarray = field(default_factory=lambda: np.zeros(0))
    bias: float = 0.0
    ended: str = ""
    n_steps: int = 0
    n_epochs: int = 0
    best_epoch: int = 0


def train(features: np.ndarray, labels: np.ndarray, heads: list[Head], schedule: Schedule, title: str) -> None:
    """Train each of ``heads`` on its rows of features, float32 (n, n_dims), and labels (n,), 0 or 1, by mean cross-entropy.

    One logit, initialised as torch.nn.Linear is, from the head's generator. The heads are filled in place.
    """
    import torch

    n_dims = features.shape[1]
    bound = 1 / math.sqrt(n_dims)
    weight = torch.from_numpy(np.stack([h.generator.uniform(-bound, bound, n_dims) for h in heads]).astype(np.float32))
    bias = torch.from_numpy(np.array([h.generator.uniform(-bound, bound) for h in heads], np.float32))
    weight.grad, bias.grad = torch.zeros_like(weight), torch.zeros_like(bias)
    make = getattr(torch.optim, schedule.optimizer)
    optimizer = make([weight, bias], lr=schedule.learning_rate, weight_decay=schedule.weight_decay, fused=True)
    runs = [
        _Fold(features, labels, head, schedule, w.numpy(), b.numpy(), gw.numpy(), gb.numpy())
        for head, w, b, gw, gb in zip(heads, weight, bias, weight.grad, bias.grad, strict=True)
    ]
    with (
        threadpool_limits(1, user_api="blas"),
        tqdm(total=max(r.limit for r in runs), desc=title, unit="step", leave=False) as bar,
    ):
        while going := [run for run in runs if not run.head.ended]:
            for run in going:
                run.set_gradient()
            optimizer.step()
            for run in going:
                run.take_stock()
            bar.update()


class _Fold:
    """One fold on its way: views of its weights and gradients in the tensors of all folds."""

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        head: Head,
        schedule: Schedule,
        weight: np.ndarray,
        bias: np.ndarray,
        by_weight: np.ndarray,
        by_bias: np.ndarray,
    ):
        self.features, self.labels, self.head, self.schedule = features, labels.astype(np.float32), head, schedule
        self.weight, self.bias, self.by_weight, self.by_bias = weight, bias, by_weight, by_bias
        self.n_batches = -(-len(head.train) // schedule.batch_size)
        self.patience = schedule.patience(self.n_batches)
        ends = (schedule.max_steps, schedule.max_epochs and schedule.max_epochs * self.n_batches)
        self.limit = min(end for end in ends if end is not None)
        self.seen, self.positive = features[head.validation], labels[head.validation] == 1
        self.can_stop = bool(self.positive.any() and not self.positive.all())
        self.best, self.batches = -1.0, self._epochs()

    def _epochs(self) -> Iterator[np.ndarray]:
        """Rows of one batch after another."""
        rows, draw = self.head.train, self.head.generator
        odds = 1 / np.bincount(self.labels[rows].astype(int), minlength=2)[self.labels[rows].astype(int)]
        while True:
            order = draw.choice(rows, len(rows), p=odds / odds.sum()) if self.schedule.balanced else draw.permutation(rows)
            yield from np.array_split(order, range(self.schedule.batch_size, len(order), self.schedule.batch_size))

    def set_gradient(self) -> None:
        """Gradient of the next batch's mean cross-entropy."""
        rows = next(self.batches)
        batch = self.features[rows]
        excess = (_sigmoid(batch @ self.weight + self.bias) - self.labels[rows]) / len(rows)
        np.dot(excess, batch, out=self.by_weight)
        self.by_bias[...] = excess.sum()

    def take_stock(self) -> None:
        """Count the step; at an epoch's end ask validation, keep the best weights, and say whether this is the end."""
        head = self.head
        head.n_steps += 1
        at_limit, at_end_of_epoch = head.n_steps >= self.limit, head.n_steps % self.n_batches == 0
        if at_end_of_epoch or at_limit:
            head.n_epochs += int(at_end_of_epoch)
            score = self._balanced_accuracy() if self.can_stop else math.inf
            if score > self.best or not self.can_stop:
                self.best, head.best_epoch = score, max(1, head.n_epochs)
                head.weight, head.bias = self.weight.copy(), float(self.bias)
            if self.can_stop and head.n_epochs - head.best_epoch >= self.patience:
                head.ended = "early"
            elif at_limit:
                without = "no patches" if not len(self.positive) else "one class only"
                head.ended = "limit" if self.can_stop else f"limit, no validation: {without}"

    def _balanced_accuracy(self) -> float:
        called = self.seen @ self.weight + self.bias > 0
        return float(called[self.positive].mean() + (~called[~self.positive]).mean()) / 2


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logits, -80, 80)))
