"""The canary: images that never change, and what tells a changed encoder."""

import dataclasses

import numpy as np
import pytest

from mfcore import canary, encoders
from mfcore.encoders import EncoderError


@pytest.fixture(scope="module")
def lite0() -> encoders.Encoder:
    return encoders.load("efficientnet_lite0")


def test_canary_images_never_change():
    images = canary.images()
    assert (images.shape, images.dtype) == ((2, 160, 160, 3), np.uint8)
    assert images.astype(np.int64).sum() == 18_840_381 and images[1, 3, 5].tolist() == [114, 120, 96]


def test_a_canary_tells_changed_weights_and_preprocessing_from_rounding(lite0):
    before = canary.embed(lite0)
    assert canary.check(lite0, before) < 1e-6
    assert canary.check(lite0, before * (1 + 1e-5)) < 1e-4
    for change in ({"mean": (0.485, 0.456, 0.406)}, {"interpolation": "bilinear"}):
        other = dataclasses.replace(lite0, card=dataclasses.replace(lite0.card, **change))
        with pytest.raises(EncoderError, match="canary"):
            canary.check(other, before)
    with pytest.raises(EncoderError, match="canary"):
        canary.check(lite0, np.full_like(before, np.nan))
