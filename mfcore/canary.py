"""The canary: what an encoder makes of a few fixed made images, kept with its embeddings to tell when it changes."""

import numpy as np

from mfcore.encoders import Encoder, EncoderError

TOLERANCE = {"float32": 1e-3, "float16": 3e-2}  # relative; other machines and versions of torch stay well below


def images() -> np.ndarray:
    """Two made images, uint8 (2, 160, 160, 3), by integer arithmetic: the same on every machine, forever."""
    y, x = np.mgrid[:160, :160]
    waves = [(x * (3 + c) + y * (5 - c)) % 256 for c in range(3)]
    rings = [((x - 80) ** 2 + (y - 80) ** 2) // (7 + 6 * c) % 256 for c in range(3)]
    return np.stack([np.stack(waves, -1), np.stack(rings, -1)]).astype(np.uint8)


def embed(encoder: Encoder) -> np.ndarray:
    """Features float32 (2, n_dims) of `images`: they change when weights, preprocessing or precision do."""
    return encoder.embed(images())


def check(encoder: Encoder, expected: np.ndarray) -> float:
    """Check that ``encoder`` still gives ``expected`` for the canary; gives the relative difference that there is.

    Raises EncoderError above the tolerance of the card's precision: then features made now don't belong to the earlier ones.
    """
    now = embed(encoder)
    tolerance = TOLERANCE[encoder.card.precision]
    if now.shape != np.shape(expected):
        raise EncoderError(f"encoder {encoder.card.name!r} now gives {now.shape} for the canary, it gave {np.shape(expected)}")
    difference = float(np.linalg.norm(now - expected) / max(np.linalg.norm(expected), 1e-12))
    if not difference <= tolerance:
        raise EncoderError(
            f"encoder {encoder.card.name!r} isn't the one of before: the canary's features differ by {difference:.2g} "
            f"(relative; {tolerance:g} is allowed). Weights, preprocessing or versions changed; embed everything anew."
        )
    return difference
