"""Linear heads trained by steps on mini-batches of frozen features, any number of classes, stopped
by validation.

All heads of a call go step by step together, so that one call of torch's optimizer serves them all.
Each head has its own rows, order and weights, and becomes what it would alone.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from mfcore.measures import binary


@dataclass(frozen=True)
class Schedule:
    """How a head or decoder is trained, whatever the number of its training items.

    learning_rate, weight_decay: as ``optimizer``, a class of torch.optim, takes them; the first
    ``n_slow_epochs`` go at ``slow_factor`` of the rate. batch_size: items a step, fewer where there
    are fewer. max_steps, or else max_epochs: where training ends at the latest.
    patience: from the number of batches an epoch, the number of validations without a gain above
    ``min_gain`` after which training ends. is_balanced: each epoch draws as many items as there
    are, with replacement, both classes alike; otherwise each item comes once.
    """

    learning_rate: float
    weight_decay: float
    batch_size: int
    patience: Callable[[int], int]
    max_steps: int | None = None
    max_epochs: int | None = None
    optimizer: str = "AdamW"
    n_slow_epochs: int = 0
    slow_factor: float = 1.0
    epochs_a_validation: int = 1
    min_gain: float = 0.0
    is_balanced: bool = False

    def n_batches(self, n_train: int) -> int:
        """Steps of an epoch over so many items."""
        return -(-n_train // self.batch_size)

    def rate(self, step: int, n_train: int) -> float:
        """Learning rate of the step with that number, from 0."""
        is_slow = step < self.n_slow_epochs * self.n_batches(n_train)
        return self.learning_rate * (self.slow_factor if is_slow else 1.0)

    def progress(self, n_train: int) -> "Progress":
        """The account of a training on so many items that is about to begin."""
        n_batches = self.n_batches(n_train)
        limit = self.max_steps or self.max_epochs * n_batches
        every = n_batches * self.epochs_a_validation
        return Progress(every, limit, self.patience(n_batches), self.min_gain)


@dataclass
class Progress:
    """How far one training has come, how well it did on validation, and how it ended.

    every: steps between validations. limit: the last step. patience: validations without a gain
    above ``min_gain`` over the score that last was such a gain (as Lightning's early stopping
    counts). best: the highest score, after ``best_step`` steps. ended: "early" or "limit", empty
    before the end.
    """

    every: int
    limit: int
    patience: int
    min_gain: float
    n_steps: int = 0
    best: float = -math.inf
    best_step: int = 0
    ended: str = ""
    _last_gain: float = -math.inf
    _n_without_gain: int = 0

    def step(self) -> bool:
        """Count a step; returns whether validation is due."""
        self.n_steps += 1
        return self.n_steps % self.every == 0 or self.n_steps == self.limit

    def validate(self, score: float) -> bool:
        """Count a validation, which may end the training; returns whether ``score`` is the best so
        far.
        """
        self._n_without_gain += 1
        if score > self._last_gain + self.min_gain:
            self._last_gain, self._n_without_gain = score, 0
        if is_best := score > self.best:
            self.best, self.best_step = score, self.n_steps
        if self._n_without_gain >= self.patience:
            self.ended = "early"
        elif self.n_steps == self.limit:
            self.ended = "limit"
        return is_best

    def facts(self) -> dict:
        """How the training ended, as plain data."""
        return {
            "n_steps": self.n_steps,
            "best_step": self.best_step,
            "validation": self.best,
            "ended": self.ended,
        }


@dataclass
class Head:
    """One head: the rows that it learns from and is validated on, its random stream, and what
    `train` makes of it.

    weight float32 (n_outputs, n_dims), bias (n_outputs,): those that did best on validation, or the
    last ones where validation holds one class only; one output for two classes.
    """

    train: np.ndarray
    validation: np.ndarray
    generator: np.random.Generator
    weight: np.ndarray = field(init=False)
    bias: np.ndarray = field(init=False)
    progress: Progress = field(init=False)

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Probability of each class, float32 (n, n_classes), of features (n, n_dims)."""
        p = _probabilities(features @ self.weight.T + self.bias)
        return np.concatenate([1 - p, p], axis=1) if p.shape[1] == 1 else p


def train(
    features: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    heads: Sequence[Head],
    schedule: Schedule,
    title: str = "heads",
) -> None:
    """Train each of ``heads`` on its rows of features, float32 (n, n_dims), and labels int (n,),
    and fill it in place.

    Mean cross-entropy of a batch over the softmax, or of one logit's sigmoid where there are two
    classes, from torch's initialisation of a linear layer, drawn from the head's generator. Each
    epoch has every row once, in a new order, unless the schedule is balanced. Validated by balanced
    accuracy when the schedule says, and at the end. A slow start is as long as the first head's
    epochs. Where a head's validation holds one class only, ``ended`` says so.
    """
    import torch  # not as this module is imported: `tasks.task` reads its schedules without torch

    trainings = [_Training(features, labels, n_classes, head, schedule) for head in heads]
    parameters = [each for training in trainings for each in (training.weight, training.bias)]
    rates = {"lr": schedule.learning_rate, "weight_decay": schedule.weight_decay}
    optimizer = getattr(torch.optim, schedule.optimizer)(parameters, **rates, fused=True)
    limit = max(head.progress.limit for head in heads)
    steps = tqdm(range(limit), desc=title, unit="step", leave=False)
    with threadpool_limits(1, user_api="blas"), steps:
        for step in steps:
            if not (going := [each for each in trainings if not each.head.progress.ended]):
                break
            for training in going:
                training.set_gradient()
            optimizer.param_groups[0]["lr"] = schedule.rate(step, len(heads[0].train))
            optimizer.step()
            for training in going:
                training.end_step()


class _Training:
    """One head in training: its weights as torch's parameters, in memory that numpy shares."""

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        n_classes: int,
        head: Head,
        schedule: Schedule,
    ):
        import torch

        n_dims, n_outputs = features.shape[1], 1 if n_classes == 2 else n_classes
        bound, draw = 1 / math.sqrt(n_dims), head.generator.uniform
        self.weight = torch.from_numpy(draw(-bound, bound, (n_outputs, n_dims)).astype(np.float32))
        self.bias = torch.from_numpy(draw(-bound, bound, n_outputs).astype(np.float32))
        self.weight.grad = torch.zeros_like(self.weight)
        self.bias.grad = torch.zeros_like(self.bias)
        self.features, self.labels, self.head, self.schedule = features, labels, head, schedule
        self.truth = labels[head.validation]
        head.progress = schedule.progress(len(head.train))
        self.batches = batches(self._epoch, schedule.batch_size)

    def _epoch(self) -> np.ndarray:
        """The rows of one epoch in a new order."""
        rows, draw = self.head.train, self.head.generator
        if not self.schedule.is_balanced:
            return draw.permutation(rows)
        odds = 1 / np.bincount(self.labels[rows])[self.labels[rows]]
        return draw.choice(rows, len(rows), p=odds / odds.sum())

    def _logits(self, rows: np.ndarray) -> np.ndarray:
        return self.features[rows] @ self.weight.numpy().T + self.bias.numpy()

    def set_gradient(self) -> None:
        """Gradient of the next batch's mean cross-entropy."""
        rows = next(self.batches)
        label, excess = self.labels[rows], _probabilities(self._logits(rows))  # (B, n_outputs)
        # where there is one output, of class 1: less the label; else less 1 at the label
        first, of_label = (0, label) if excess.shape[1] == 1 else (label, 1)
        excess[np.arange(len(rows)), first] -= of_label
        excess /= len(rows)
        np.dot(excess.T, self.features[rows], out=self.weight.grad.numpy())
        excess.sum(axis=0, out=self.bias.grad.numpy())

    def end_step(self) -> None:
        """Count the step; where validation is due, keep the weights that did best, and see whether
        training ends."""
        progress, head = self.head.progress, self.head
        if not progress.step():
            return
        if len(np.unique(self.truth)) > 1:
            logits = self._logits(head.validation)
            called = logits.argmax(axis=1) if logits.shape[1] > 1 else logits[:, 0] > 0
            is_kept = progress.validate(binary.mean_recall(self.truth, called.astype(np.int64)))
        elif is_kept := progress.n_steps == progress.limit:
            progress.best_step = progress.n_steps
            progress.ended = "limit, no validation: one class only"
        if is_kept:
            head.weight, head.bias = self.weight.numpy().copy(), self.bias.numpy().copy()


def batches(epoch: Callable[[], np.ndarray], batch_size: int) -> Iterator[np.ndarray]:
    """Rows of one batch after another, without end; ``epoch`` gives the rows of the next epoch in
    their order.
    """
    while True:
        order = epoch()
        yield from (order[first : first + batch_size] for first in range(0, len(order), batch_size))


def _probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis of logits (n, n_outputs), or the sigmoid of a single one."""
    if logits.shape[1] == 1:
        return 1 / (1 + np.exp(-np.clip(logits, -80, 80)))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
