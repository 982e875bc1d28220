"""Which patch tokens of a student's global crops are masked for iBOT."""

import math

import numpy as np

LEAST_TOKENS = 4  # of a block, unless fewer are left to mask
MOST_SHARE = 0.5  # of the grid, that one block may cover
ASPECT = (0.3, 1 / 0.3)
N_ATTEMPTS = 10  # to place a block


def draw(
    n_images: int, grid: tuple[int, int], probability: float, ratio: tuple[float, float], generator: np.random.Generator
) -> np.ndarray:
    """Masks, bool (n_images, rows * columns of ``grid``), of blocks (Bao et al. 2022, algorithm 1).

    int(probability * n_images) images, drawn at random, get a mask; the shares of tokens to mask are one from each of as many
    equal parts of ``ratio``, so that every batch has about the same number of masked tokens (as DINOv2's authors do; Zhou et
    al. 2021 draw them freely). A mask may fall short of its share where no further block fits, never exceed it.
    A batch is drawn as a whole: processes that share it draw it alike, from the same stream, and take their rows.
    """
    rows, columns = grid
    masked = np.zeros((n_images, rows, columns), bool)
    n_masked = int(n_images * probability)
    bounds = np.linspace(*ratio, n_masked + 1)
    for i, image in enumerate(generator.permutation(n_images)[:n_masked]):
        _mask(masked[image], int(rows * columns * generator.uniform(bounds[i], bounds[i + 1])), generator)
    return masked.reshape(n_images, rows * columns)


def weights(masked: np.ndarray) -> np.ndarray:
    """Weights, float32 (N,), of the N masked tokens of ``masked`` (n_images, n_tokens), in order: 1 / those of the image."""
    per_image = masked.sum(1, keepdims=True).clip(1)
    return np.broadcast_to(1 / per_image, masked.shape)[masked].astype(np.float32)


def _mask(masked: np.ndarray, n_tokens: int, generator: np.random.Generator) -> None:
    """Mask blocks of ``masked``, bool (rows, columns), until ``n_tokens`` are masked or no block fits any more."""
    while (left := n_tokens - int(masked.sum())) > 0:
        for _ in range(N_ATTEMPTS):
            block = _block(masked.shape, left, generator)
            if block is not None and 0 < masked[block].size - masked[block].sum() <= left:
                masked[block] = True
                break
        else:
            return


def _block(grid: tuple[int, ...], left: int, generator: np.random.Generator) -> tuple[slice, slice] | None:
    """Rows and columns of a block somewhere in the grid, None for one that is no smaller than the grid on a side."""
    most = min(left, MOST_SHARE * math.prod(grid))
    low, high, top, side = generator.random(4)
    area = min(LEAST_TOKENS, most) + low * (most - min(LEAST_TOKENS, most))
    aspect = math.exp(math.log(ASPECT[0]) + high * math.log(ASPECT[1] / ASPECT[0]))
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if not (0 < height < grid[0] and 0 < width < grid[1]):
        return None
    first, left_most = int(top * (grid[0] - height + 1)), int(side * (grid[1] - width + 1))
    return slice(first, first + height), slice(left_most, left_most + width)
