"""Named random streams: a draw depends on what it is for, never on what was drawn before it."""

import hashlib

import numpy as np


def stream_seed(seed: int, *names: object) -> int:
    """Integer seed in [0, 2**63) of the stream called ``names`` under the study's ``seed``."""
    text = "\x1f".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: object) -> np.random.Generator:
    """Generator of the stream called ``names``, e.g. ``generator(42, "split", "midog22", fold)``.

    Two streams with different names are independent, and adding a fold, a size or an arm changes no
    other's draws.
    """
    return np.random.default_rng(stream_seed(seed, *names))
