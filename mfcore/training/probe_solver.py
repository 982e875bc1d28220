"""The minimum of UNI's probe objective for two classes, faster than by its own solver and at least as near.

Three facts about the objective make it cheap, none changes its minimum. Softmax over two classes sees only the difference w
of the two weight vectors, and of all pairs with that difference the one of least norm is -w/2, w/2, so that one vector of
norm sqrt(2) ||W|| is enough. The bias isn't penalised, so that features can be centred, which parts weights from bias. And
W = 0 is the minimum exactly if the loss's gradient there is no longer than the penalty's slope; elsewhere the objective is
smooth, and L-BFGS from below its value at zero never meets the kink.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from threadpoolctl import ThreadpoolController

BLOCK = 2**19  # numbers of a block of rows (2 MB), so that it is read from memory once for scores and gradient
N_CORRECTIONS = 100  # pairs that L-BFGS keeps, as UNI's solver does; ten need three times as many passes
SMALLEST_STEP = 1e-10  # of the objective, below which nothing more is to be had in float32


@dataclass(frozen=True)
class Solution:
    """Where the objective is least: ``weight`` float64 (n_dims,), ``bias``, of class 1 against class 0.

    residual: norm of the smallest subgradient there, as a share of the loss's gradient at zero; 0 at the minimum.
    """

    weight: np.ndarray
    bias: float
    objective: float
    n_iter: int
    residual: float


def solve(centred: np.ndarray, labels: np.ndarray, slope: float, max_iter: int) -> Solution:
    """Minimise ``mean log(1 + exp(-s (x w + b))) + slope ||w||``, s = 1 for class 1 and -1 for class 0.

    centred: float32 (n, n_dims), each column's mean 0; labels: (n,), 0 or 1, both there. L-BFGS of SciPy, in float64 but for
    the products with the features. The result is the same to the bit for any number of threads.
    """
    with _threads() as (pool, n_threads):
        return _solve(_Loss(centred, np.where(labels == 1, -1.0, 1.0), pool, n_threads), labels, slope, max_iter)


def _solve(loss: "_Loss", labels: np.ndarray, slope: float, max_iter: int) -> Solution:
    prior = float(np.mean(labels))
    bias = float(np.log(prior / (1 - prior)))
    value, gradient, _ = loss(np.zeros(loss.n_dims), bias)
    start = float(np.linalg.norm(gradient))
    if not start > slope:
        return Solution(np.zeros(loss.n_dims), bias, value, 0, 0.0)
    direction = -gradient / start
    along = loss.scores(direction)
    spread = float(np.sqrt(np.mean(along**2)))
    # The loss bends by a quarter of the scores' variance at most, so that here the objective is less than at zero.
    length = 4 * (start - slope) / spread**2
    scale = 1 / spread  # so that the solver's first step is of the order of one, whatever the features' unit

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weight = scale * parameters[:-1]
        value, gradient, by_bias = loss(weight, parameters[-1])
        norm = float(np.linalg.norm(weight))
        return value + slope * norm, np.append(scale * (gradient + slope / norm * weight), by_bias)

    found = minimize(
        objective,
        np.append(length / scale * direction, bias),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_iter, "maxfun": 100 * max_iter, "maxcor": N_CORRECTIONS, "ftol": SMALLEST_STEP, "gtol": 1e-9},
    )
    residual = float(np.linalg.norm(found.jac)) / (start * scale)
    return Solution(scale * found.x[:-1], float(found.x[-1]), float(found.fun), int(found.nit), residual)


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def _threads() -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """As many threads as BLAS may use, each with a BLAS of one: on rows by blocks its own threads mostly wait."""
    allowed = [pool["num_threads"] for pool in _controller().info() if pool["user_api"] == "blas"]
    n_threads = max(allowed, default=1)
    with _controller().limit(limits=1, user_api="blas"), ThreadPoolExecutor(n_threads) as pool:
        yield pool, n_threads


class _Loss:
    """Mean logistic loss and its gradient over rows taken a block at a time; ``away`` is -1 for class 1, 1 for class 0."""

    def __init__(self, features: np.ndarray, away: np.ndarray, pool: ThreadPoolExecutor, n_threads: int):
        self.n, self.n_dims = features.shape
        n_rows = max(1, BLOCK // self.n_dims)
        blocks = [(features[i : i + n_rows], away[i : i + n_rows]) for i in range(0, self.n, n_rows)]
        n_shares = min(n_threads, len(blocks))
        self.shares = [blocks[i * len(blocks) // n_shares : (i + 1) * len(blocks) // n_shares] for i in range(n_shares)]
        self.map = pool.map if n_shares > 1 else map

    def scores(self, weight: np.ndarray) -> np.ndarray:
        """Products of the rows with ``weight``, float64 (n,)."""
        single = weight.astype(np.float32)
        return np.concatenate([block @ single for share in self.shares for block, _ in share]).astype(np.float64)

    def __call__(self, weight: np.ndarray, bias: float) -> tuple[float, np.ndarray, float]:
        """The loss, its gradient by the weight (n_dims,) and by the bias, all float64."""
        single = weight.astype(np.float32)
        value, gradient, by_bias = 0.0, np.zeros(self.n_dims), 0.0
        for parts in self.map(lambda share: [_part(*block, single, bias) for block in share], self.shares):
            for part_value, part_gradient, part_by_bias in parts:  # always in the rows' order
                value += part_value
                gradient += part_gradient
                by_bias += part_by_bias
        return value / self.n, gradient / self.n, by_bias / self.n


def _part(features: np.ndarray, away: np.ndarray, weight: np.ndarray, bias: float) -> tuple[float, np.ndarray, float]:
    """Sums over one block of rows: the loss, its gradient by the weight, float32 (n_dims,), and by the bias."""
    margin = (features @ weight).astype(np.float64)
    margin += bias
    margin *= away
    pull = expit(margin) * away
    return float(np.logaddexp(0, margin).sum()), pull.astype(np.float32) @ features, float(pull.sum())
