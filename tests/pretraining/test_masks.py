"""Masks for iBOT: how many images and tokens, in blocks, and weights that give each image its mean."""

import numpy as np
import pytest

from mfcore import streams as rng
from mfcore.pretraining import crops

GRID = (14, 14)


def drawn(n_images: int = 200, grid: tuple[int, int] = GRID, probability: float = 0.5, ratio=(0.1, 0.5), name: object = 0):
    return crops.draw_masks(n_images, grid, probability, ratio, rng.generator(7, "masks", name))


@pytest.mark.parametrize(
    ("n_images", "probability", "n_masked"), [(200, 0.5, 100), (7, 0.5, 3), (9, 1.0, 9), (9, 0.0, 0), (1, 0.5, 0)]
)
def test_the_share_of_images_with_a_mask_is_exact(n_images, probability, n_masked):
    masked = drawn(n_images, probability=probability)
    assert masked.shape == (n_images, 196) and masked.dtype == bool
    assert masked.any(1).sum() == n_masked


def test_shares_of_masked_tokens_are_spread_evenly_over_the_ratio():
    counts = np.sort(drawn().sum(1))
    bounds = np.linspace(0.1, 0.5, 101) * 196
    assert not counts[:100].any()
    # One image from each hundredth of the ratio: never above its upper bound, and seldom short of its lower one.
    assert (counts[100:] <= bounds[1:]).all()
    assert (counts[100:] >= np.floor(bounds[:-1]) - 2).mean() > 0.95
    assert counts[100] >= 0.1 * 196 - 2 and counts[-1] <= 98


@pytest.mark.parametrize("grid", [(4, 4), (8, 8), (6, 16), (2, 2)])
def test_small_and_oblong_grids_keep_the_bounds(grid):
    n_tokens = grid[0] * grid[1]
    counts = drawn(400, grid, 1.0, (0.25, 0.5)).sum(1)
    assert counts.max() <= 0.5 * n_tokens and counts.min() >= 1
    assert counts.mean() == pytest.approx(0.375 * n_tokens, abs=0.06 * n_tokens + 0.5)


def test_masks_are_blocks():
    """Neighbours of a masked token are masked far more often than tokens drawn one by one would be, whatever the direction."""
    masked = drawn(400, probability=1.0, ratio=(0.3, 0.3)).reshape(-1, *GRID)
    assert masked.mean() == pytest.approx(0.3, abs=0.01)
    beside = (masked[:, :, 1:] & masked[:, :, :-1]).sum() / masked[:, :, :-1].sum()
    below = (masked[:, 1:] & masked[:, :-1]).sum() / masked[:, :-1].sum()
    assert min(beside, below) > 0.6 and abs(beside - below) < 0.05


def test_a_small_share_is_one_block_of_the_bounded_aspect():
    masked = drawn(300, (32, 32), 1.0, (0.02, 0.02)).reshape(-1, 32, 32)  # 20 tokens
    n_single = 0
    for mask in masked:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        if height * width == mask.sum():  # a single block
            n_single += 1
            assert 0.2 < height / width < 5  # 0.3 to 1 / 0.3, sides rounded
        assert mask.sum() <= 20
    assert n_single > 10


def test_every_token_is_masked_about_as_often_as_its_mirror_image():
    share = drawn(3000, (8, 8), 1.0).reshape(-1, 8, 8).mean(0)
    np.testing.assert_allclose(share, share[::-1], atol=0.05)
    np.testing.assert_allclose(share, share.T, atol=0.05)


def test_masks_follow_their_stream():
    assert np.array_equal(drawn(), drawn())
    assert not np.array_equal(drawn(), drawn(name=1))


def test_the_images_with_a_mask_are_drawn_at_random():
    often = sum(drawn(10, (4, 4), name=i).any(1) for i in range(400))
    assert often.min() > 150 and often.max() < 250  # 200 each, 10 the standard deviation


def test_weights_give_each_image_its_mean():
    masked = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 0]], bool)
    np.testing.assert_allclose(crops.mask_weights(masked), [1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3])
    weights = crops.mask_weights(drawn())
    assert weights.dtype == np.float32 and weights.sum() == pytest.approx(100, rel=1e-5)
    assert crops.mask_weights(np.zeros((3, 4), bool)).shape == (0,)
