"""The canary: images that never change, and what tells a changed encoder."""

import dataclasses

import numpy as np
import pytest
import torch

from mfcore import encoders
from mfcore.encoders import EncoderError, canary

NOW = canary.versions()


@pytest.fixture(scope="module")
def lite0() -> encoders.Encoder:
    return encoders.load("efficientnet_lite0")


@pytest.fixture(scope="module")
def before(lite0) -> np.ndarray:
    return canary.embed(lite0)


def test_canary_images_never_change():
    images = canary.images()
    assert (images.shape, images.dtype) == ((8, 160, 160, 3), np.uint8) and len(canary.TILES) == 8
    sums = [9_748_480, 9_091_901, 7_334_400, 9_771_855, 6_457_785, 15_872_000, 14_352_028, 12_201_833]
    assert images.astype(np.int64).sum(axis=(1, 2, 3)).tolist() == sums
    weights = np.arange(images[0].size).reshape(images[0].shape) % 251  # sums alone don't see pixels that change places
    assert int((images * weights).astype(np.int64).sum()) == 10_603_031_419
    assert images[1, 3, 5].tolist() == [114, 120, 96]


def test_rounding_passes(lite0, before):
    assert canary.compare(lite0, canary.embed(lite0), before, NOW) < 1e-6
    assert canary.compare(lite0, before, before * np.float32(1 + 1e-5), NOW) < 1e-4


@pytest.mark.parametrize(
    "change",
    [{"mean": (0.485, 0.456, 0.406)}, {"std": (0.229, 0.224, 0.225)}, {"interpolation": "bilinear"}, {"resize_px": 256}],
)
def test_another_preprocessing_is_seen(lite0, before, change):
    other = dataclasses.replace(lite0, card=dataclasses.replace(lite0.card, **change))
    with pytest.raises(EncoderError, match=r"canary's tile \d \("):
        canary.compare(other, canary.embed(other), before, NOW)


def test_swapped_channels_and_a_resize_without_antialiasing_are_seen(lite0, before):
    resized = torch.nn.functional.interpolate(torch.from_numpy(canary.images()).permute(0, 3, 1, 2), (224, 224), mode="bicubic")
    for images in (canary.images()[..., ::-1], resized.permute(0, 2, 3, 1).numpy()):
        with pytest.raises(EncoderError, match="canary"):
            canary.compare(lite0, lite0.embed(images), before, NOW)


def test_other_weights_and_nan_are_seen_and_the_tile_and_versions_named(lite0, before):
    one_off = before.copy()
    one_off[5] *= 1.01
    with pytest.raises(EncoderError, match=r"tile 5 \(a flat field\) lie 0\.0099 apart .*torch was 1\.0, is "):
        canary.compare(lite0, before, one_off, {"torch": "1.0", "timm": "1.0"})
    with pytest.raises(EncoderError, match="lie nan apart"):
        canary.compare(lite0, before, np.full_like(before, np.nan), NOW)
    with pytest.raises(EncoderError, match=r"now gives \(8, 1280\) for the canary, it gave \(8, 12\)"):
        canary.compare(lite0, before, before[:, :12], NOW)
