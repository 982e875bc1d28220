"""Encoders and patches small enough for tests."""

import numpy as np
import pytest
from PIL import Image

from mfcore.encoders.card import EncoderCard, cards


def some_patches(n: int, size_px: int, seed: int = 0) -> np.ndarray:
    """Smooth coloured noise, uint8 (n, size_px, size_px, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 12, 12, 3), dtype=np.uint8)
    resized = [Image.fromarray(image).resize((size_px, size_px), Image.Resampling.BICUBIC) for image in coarse]
    return np.stack([np.asarray(image) for image in resized])


def tiny_card(**changes) -> EncoderCard:
    """A random vision transformer of one block with two register tokens, small for testing."""
    facts = {
        "name": "tiny",
        "source": "random",
        "identifier": "vit_tiny_patch16_224",
        "architecture": "vit_tiny_patch16_224",
        "arguments": {"img_size": 32, "embed_dim": 24, "num_heads": 3, "depth": 1, "reg_tokens": 2},
        "resize_px": 32,
        "crop_px": 32,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "n_prefix_tokens": 3,
        "n_dims": 24,
        "n_parameters": 25_968,
        "licence": "none",
        "facts": "made for a test",
    }
    return EncoderCard(**{**facts, **changes})


def use(monkeypatch: pytest.MonkeyPatch, card: EncoderCard) -> str:
    """Give ``card`` its name among the encoders for the length of a test; gives the name."""
    monkeypatch.setitem(cards(), card.name, card)
    return card.name
