"""Multi-crop: distributions against torchvision's transforms, pixels against torchvision and Pillow image by image."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from mfcore.pretraining import crops
from mfcore.pretraining.method import in_full
from mfcore.study.config import Crops, Pretraining

SMALL = in_full(Pretraining("a", arguments={"patch_size": 12}, crops=Crops(global_px=24, local_px=12, n_local=3))).crops
MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def patches(n: int, patch_px: int = 40) -> torch.Tensor:
    """Smooth coloured noise, uint8 (n, 3, patch_px, patch_px), interleaved as patches are read."""
    generator = np.random.default_rng(3)
    noise = generator.integers(0, 256, (n, patch_px // 4, patch_px // 4, 3), dtype=np.uint8)
    images = np.stack([np.asarray(Image.fromarray(image).resize((patch_px, patch_px), Image.BICUBIC)) for image in noise])
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def but(drawn: np.recarray, **changed: object) -> np.recarray:
    """The same, but for some of the fields."""
    drawn = drawn.copy()
    for key, value in changed.items():
        drawn[key] = value
    return drawn


def plain(drawn: np.recarray) -> np.recarray:
    """The same cuts and flips, without any change of colour."""
    none = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, "grey": False, "blur_px": 0.0, "solarise": False}
    return but(drawn, **none)


# ---- what is drawn ----


def test_row_i_depends_on_its_number_alone():
    whole, shorter = crops.draw(SMALL, 20, 40, 5, "crops", 0), crops.draw(SMALL, 6, 40, 5, "crops", 0)
    other = crops.draw(SMALL, 20, 40, 5, "crops", 1)
    assert len(whole) == 20 and len(whole[4:6]) == 2
    assert whole.shape == (20, 5)
    for name in whole.dtype.names:
        np.testing.assert_array_equal(whole[name][4:6], getattr(shorter[4:6], name))
        np.testing.assert_array_equal(whole[name][[5, 2]], getattr(shorter[np.array([5, 2])], name))
        assert not np.array_equal(whole[name], other[name])


@pytest.mark.parametrize("group", ["global", "local"])
def test_cuts_are_distributed_as_torchvisions(group):
    """Area, aspect and place of RandomResizedCrop, of patches so small that not every attempt fits."""
    n, patch_px = 4000, 48
    settings = in_full(Pretraining("a", arguments={"patch_size": 12}, crops=Crops(24, 12, 1))).crops
    drawn = crops.draw(settings, n, patch_px, 1, "cuts")[:, 0 if group == "global" else 2]
    torch.manual_seed(8)
    blank, scale = (
        torch.zeros(3, patch_px, patch_px),
        list(settings.global_scale if group == "global" else settings.local_scale),
    )
    expected = np.array([RandomResizedCrop.get_params(blank, scale, [3 / 4, 4 / 3]) for _ in range(n)]).T
    ours = np.stack([drawn.top_px, drawn.left_px, drawn.height_px, drawn.width_px])
    compared = zip(
        ("top", "left", "height", "width", "area", "aspect"),
        [*ours, ours[2] * ours[3], ours[3] / ours[2]],
        [*expected, expected[2] * expected[3], expected[3] / expected[2]],
        strict=True,
    )
    for name, own, theirs in compared:
        assert stats.ks_2samp(own, theirs).pvalue > 1e-3, name
    assert (ours == np.rint(ours)).all() and ours[:2].min() >= 0
    assert (ours[0] + ours[2]).max() <= patch_px and (ours[1] + ours[3]).max() <= patch_px
    low, high = scale
    assert low * 0.9 < (ours[2] * ours[3]).min() / patch_px**2 and (ours[2] * ours[3]).max() <= (high + 0.03) * patch_px**2


def test_a_cut_that_never_fits_is_the_whole_patch():
    """torchvision's way out after ten attempts; every other share of the area fits sooner or later."""
    always = dataclasses.replace(SMALL, global_scale=(1.0, 1.0))
    drawn = crops.draw(always, 2000, 40, 1, "whole")[:, 0]
    assert (drawn.height_px == 40).all() and (drawn.width_px == 40).all() and not drawn.top_px.any()


def test_factors_and_rates_are_those_of_the_recipe():
    n = 4000
    drawn = crops.draw(dataclasses.replace(SMALL, global_px=224), n, 40, 2, "colours")
    coloured = drawn.brightness != 1
    assert coloured.mean(0) == pytest.approx(0.8, abs=0.03)
    torch.manual_seed(4)
    jitter = ColorJitter(0.4, 0.4, 0.2, 0.1)
    limits = jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
    expected = np.array([ColorJitter.get_params(*limits)[1:] for _ in range(3000)], float).T
    for name, theirs in zip(("brightness", "contrast", "saturation", "hue"), expected, strict=True):
        assert stats.ks_2samp(getattr(drawn, name)[:, 0][coloured[:, 0]], theirs).pvalue > 1e-3, name
    assert drawn.grey.mean(0) == pytest.approx(0.2, abs=0.03)
    np.testing.assert_allclose((drawn.blur_px > 0).mean(0), [1.0, 0.1, 0.5, 0.5, 0.5], atol=0.03)
    np.testing.assert_allclose(drawn.solarise.mean(0), [0, 0.2, 0, 0, 0], atol=0.03)
    for flips in (drawn.flip_x, drawn.flip_y):
        assert flips.mean(0) == pytest.approx(0.5, abs=0.03)
    assert stats.kstest(drawn.blur_px[:, 0], "uniform", (0.1, 1.9)).pvalue > 1e-3
    numbers = [drawn.brightness, drawn.contrast, drawn.hue, drawn.blur_px, drawn.flip_x, drawn.flip_y, drawn.grey, drawn.top_px]
    table = np.stack([values[:, c] for values in numbers for c in (0, 3)]).astype(float)
    assert np.abs(np.corrcoef(table) - np.eye(len(table))).max() < 0.08  # nothing goes with anything else, nor crop with crop


def test_narrow_crops_are_blurred_in_proportion():
    for side_px in (64, 224):
        drawn = crops.draw(dataclasses.replace(SMALL, global_px=side_px), 500, 40, 2, "blur")
        assert drawn.blur_px.max() == pytest.approx(2.0 * side_px / 224, rel=0.02)
    assert [crops.blur_kernel_px(*sides) for sides in ((224, 224), (224, 96), (64, 64), (64, 32), (4096, 8))] == [
        9,
        9,
        5,
        5,
        15,
    ]


# ---- what is made ----


@pytest.mark.parametrize("by", [crops._cut_singly, crops._cut_by_matrices])
@pytest.mark.parametrize("side_px", [12, 24, 50])
def test_cuts_are_resized_as_pillow_does(by, side_px):
    """Antialiased bicubic of the cut alone, down and up, flipped afterwards; DINO's transforms work on Pillow's images."""
    images, drawn = patches(12), crops.draw(SMALL, 12, 40, 3, "pixels")
    for number in (0, 4):
        cut = drawn[:, number]
        out = torch.empty(12, 3, side_px, side_px)
        by(images, cut, out)
        for i in range(12):
            top, left, height, width = (int(values[i]) for values in (cut.top_px, cut.left_px, cut.height_px, cut.width_px))
            image = Image.fromarray(images[i].permute(1, 2, 0).numpy()).crop((left, top, left + width, top + height))
            expected = np.asarray(image.resize((side_px, side_px), Image.BICUBIC), np.int16)
            expected = expected[:: -1 if cut.flip_y[i] else 1, :: -1 if cut.flip_x[i] else 1]
            found = (out[i] * 255).permute(1, 2, 0).numpy()
            apart = np.abs(found - expected)  # Pillow takes the vertical axis first where that is less work
            assert apart.max() <= 2.01 and apart.mean() < 0.25


def test_changes_are_torchvisions_on_the_same_parameters():
    """Colour in the order that mfcore always takes; blur with torchvision's kernel; grey and solarised as its own."""
    images, drawn = patches(16), crops.draw(SMALL, 16, 40, 4, "change")
    blurred = np.where(np.arange(16)[:, None] % 2, 0.15 + np.linspace(0, 0.2, 16)[:, None], 0.0) * np.ones((1, 5))
    drawn = but(drawn, solarise=drawn.solarise | (np.arange(16) % 3 == 0)[:, None], blur_px=blurred)
    before, after = (crops.make(images, each, SMALL, MEAN, STD) for each in (plain(drawn), drawn))
    number = 0
    for plain_group, group in zip(before, after, strict=True):
        kernel_px = crops.blur_kernel_px(24, group.shape[-1])
        for plain_crops, made in zip(plain_group, group, strict=True):
            changes = drawn[:, number]
            number += 1
            for i in range(16):
                image = reference.adjust_brightness(plain_crops[i], changes.brightness[i])
                image = reference.adjust_contrast(image, changes.contrast[i])
                image = reference.adjust_saturation(image, changes.saturation[i])
                image = reference.adjust_hue(image, changes.hue[i])
                if changes.grey[i]:
                    image = reference.rgb_to_grayscale(image, num_output_channels=3)
                if changes.blur_px[i]:
                    image = reference.gaussian_blur(image, [kernel_px] * 2, [changes.blur_px[i]] * 2)
                if changes.solarise[i]:
                    edge = (image - 0.5).abs() < 1e-5  # where the last bit decides
                    image = torch.where(edge, made[i], reference.solarize(image, 0.5))
                torch.testing.assert_close(made[i], image, atol=2e-5, rtol=0)
    assert number == 5 and drawn.grey.any() and (drawn.brightness != 1).any()


def test_both_ways_of_cutting_agree():
    """A CPU cuts one after another, a GPU all at once."""
    images, drawn = patches(10), crops.draw(SMALL, 10, 40, 6, "ways")
    for number, side_px in ((0, 24), (3, 12)):
        one, other = torch.empty(2, 10, 3, side_px, side_px)
        crops._cut_singly(images, drawn[:, number], one)
        crops._cut_by_matrices(images, drawn[:, number], other)
        assert (one - other).abs().max() <= 2.01 / 255


def test_a_patch_has_the_same_crops_in_any_batch():
    images, drawn = patches(9), crops.draw(SMALL, 9, 40, 6, "batch")
    norms = (0.5,) * 3, (0.2,) * 3
    whole = crops.make(images, drawn, SMALL, *norms)
    slices = slice(0, 2), slice(2, 3), slice(3, 9)
    parts = [crops.make(images[part], drawn[part], SMALL, *norms) for part in slices]
    for group in range(2):
        assert torch.equal(torch.cat([part[group] for part in parts], 1), whole[group])


def test_shapes_normalisation_and_what_is_given_stays():
    images = patches(4)
    before, drawn = images.clone(), crops.draw(SMALL, 4, 40, 6, "shapes")
    wide, narrow = crops.make(images, drawn, SMALL, (0.5, 0.4, 0.3), (0.1, 0.2, 0.4))
    raw, _ = crops.make(images, drawn, SMALL, MEAN, STD)
    assert wide.shape == (2, 4, 3, 24, 24) and narrow.shape == (3, 4, 3, 12, 12) and wide.dtype == torch.float32
    assert torch.equal(images, before) and raw.min() >= 0 and raw.max() <= 1
    expected = (raw - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.1, 0.2, 0.4])[:, None, None]
    torch.testing.assert_close(wide, expected)
    interleaved = crops.make(images.contiguous(), drawn, SMALL, MEAN, STD)[0]
    assert torch.equal(interleaved, raw)


@pytest.mark.parametrize(("n", "n_local"), [(1, 2), (3, 0), (0, 1)])
def test_one_patch_no_patch_and_no_local_crops(n, n_local):
    settings = dataclasses.replace(SMALL, n_local=n_local)
    wide, narrow = crops.make(patches(4)[:n], crops.draw(settings, n, 40, 0), settings, MEAN, STD)
    assert wide.shape == (2, n, 3, 24, 24) and narrow.shape == (n_local, n, 3, 12, 12)
