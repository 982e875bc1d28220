"""Linear heads trained by steps on mini-batches of frozen features, any number of classes and of heads, stopped by validation.

All heads of a call go step by step together, each with its own rows, order and weights, so that it becomes what it would alone.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from mfcore.measures import binary
from mfcore.tasks.protocol import Protocol


@dataclass
class Head:
    """One run's head: the rows that it learns from and its random stream, and what is found on the way.

    weight float32 (n_outputs, n_dims), bias (n_outputs,): those that did best on validation; one output for two classes. best:
    their balanced accuracy there, after ``best_step`` steps. ended: "early" or "limit".
    """

    train: np.ndarray
    generator: np.random.Generator
    weight: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    bias: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    best: float = -math.inf
    best_step: int = 0
    n_steps: int = 0
    ended: str = ""

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Probability of each class, float32 (n, n_classes), of features (n, n_dims)."""
        p = _probabilities(features @ self.weight.T + self.bias)
        return np.concatenate([1 - p, p], axis=1) if p.shape[1] == 1 else p


def train(
    features: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    heads: Sequence[Head],
    validation: np.ndarray,
    protocol: Protocol,
    title: str = "heads",
) -> None:
    """Train each of ``heads`` on its rows of features, float32 (n, n_dims), and labels int (n,), and fill it in place.

    Mean cross-entropy of a batch over the softmax, or of one logit's sigmoid where there are two classes; AdamW from torch's
    initialisation of a linear layer, drawn from the head's generator. Each epoch has every row once, in a new order. Judged by
    balanced accuracy on the rows ``validation`` when the protocol says, and at the end.
    """
    n_outputs = 1 if n_classes == 2 else n_classes
    seen = features[validation], labels[validation]  # once for all heads: of PatchCamelyon they are hundreds of MB
    trainings = [_Training(features, labels, n_outputs, head, seen, protocol) for head in heads]
    optimizer = torch.optim.AdamW(
        [parameter for training in trainings for parameter in (training.weight, training.bias)],
        lr=protocol.max_lr,
        weight_decay=protocol.weight_decay,
        fused=True,
    )
    n_train = len(heads[0].train)
    with (
        threadpool_limits(1, user_api="blas"),
        tqdm(total=protocol.n_steps, desc=title, unit="step", leave=False) as bar,
    ):
        for step in range(protocol.n_steps):
            if not (going := [training for training in trainings if not training.head.ended]):
                break
            for training in going:
                training.set_gradient()
            optimizer.param_groups[0]["lr"] = protocol.learning_rate(step, n_train)
            optimizer.step()
            for training in going:
                training.take_stock()
            bar.update()


class _Training:
    """One head on its way: its weights as torch's parameters, and views of them and of their gradients for numpy."""

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        n_outputs: int,
        head: Head,
        validation: tuple[np.ndarray, np.ndarray],
        protocol: Protocol,
    ):
        n_dims, draw = features.shape[1], head.generator.uniform
        bound = 1 / math.sqrt(n_dims)
        self.weight = torch.from_numpy(draw(-bound, bound, (n_outputs, n_dims)).astype(np.float32))
        self.bias = torch.from_numpy(draw(-bound, bound, n_outputs).astype(np.float32))
        self.weight.grad, self.bias.grad = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        self.w, self.b = self.weight.numpy(), self.bias.numpy()
        self.by_w, self.by_b = self.weight.grad.numpy(), self.bias.grad.numpy()
        self.features, self.labels, self.head, self.protocol = features, labels, head, protocol
        self.seen, self.truth = validation
        self.every = protocol.n_batches(len(head.train)) * protocol.epochs_a_validation  # steps
        self.patience, self.without_gain = protocol.patience_of(len(head.train)), 0
        self.gained = -math.inf  # the last score that was a gain
        self.batches = self._batches()

    def _batches(self) -> Iterator[np.ndarray]:
        """Rows of one batch after another, without end."""
        size = self.protocol.batch_size
        while True:
            order = self.head.generator.permutation(self.head.train)
            yield from (order[first : first + size] for first in range(0, len(order), size))

    def set_gradient(self) -> None:
        """Gradient of the next batch's mean cross-entropy."""
        rows = next(self.batches)
        batch, label = self.features[rows], self.labels[rows]  # (B, n_dims), (B,)
        excess = _probabilities(batch @ self.w.T + self.b)  # (B, n_outputs)
        if excess.shape[1] == 1:
            excess[:, 0] -= label
        else:
            excess[np.arange(len(rows)), label] -= 1
        excess /= len(rows)
        np.dot(excess.T, batch, out=self.by_w)
        excess.sum(axis=0, out=self.by_b)

    def take_stock(self) -> None:
        """Count the step; where validation is due, keep the weights that did best, and say whether this is the end."""
        head, protocol = self.head, self.protocol
        head.n_steps += 1
        at_limit = head.n_steps == protocol.n_steps
        if head.n_steps % self.every and not at_limit:
            return
        logits = self.seen @ self.w.T + self.b
        called = (logits[:, 0] > 0).astype(np.int64) if logits.shape[1] == 1 else logits.argmax(axis=1)
        score = binary.mean_recall(self.truth, called)
        self.without_gain += 1
        if score > self.gained + protocol.min_gain:
            self.gained, self.without_gain = score, 0
        if score > head.best:
            head.best, head.best_step = score, head.n_steps
            head.weight, head.bias = self.w.copy(), self.b.copy()
        if self.without_gain >= self.patience:
            head.ended = "early"
        elif at_limit:
            head.ended = "limit"


def _probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis of logits (n, n_outputs), or the sigmoid of a single one."""
    if logits.shape[1] == 1:
        return 1 / (1 + np.exp(-np.clip(logits, -80, 80)))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
