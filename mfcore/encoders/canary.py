"""The canary: what an encoder makes of a few fixed made images, kept with its embeddings to tell when it changes."""

import importlib.metadata
from collections.abc import Mapping

import numpy as np

from mfcore.encoders.card import EncoderError
from mfcore.encoders.network import Encoder

TILES = (
    "coloured waves",
    "coloured rings",
    "blocks of single colours",
    "fine stripes",
    "a frame and dots off the centre",
    "a flat field",
    "purple nuclei on pink",
    "pink and purple grains",
)
# Relative. Other machines and versions of torch stay well below; a GPU's half precision beside a CPU's float32 does too.
TOLERANCE = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 6e-2}
SIDE_PX = 160


def images() -> np.ndarray:
    """Eight made images, uint8 (8, 160, 160, 3), by integer arithmetic: the same on every machine, forever.

    Each reacts to something of its own that goes wrong: colours to mean, std and the order of channels, stripes and grains
    to interpolation and antialiasing, the frame and the dots to the crop, the flat field to anything that adds up.
    """
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX]
    waves = [(x * (3 + c) + y * (5 - c)) % 256 for c in range(3)]
    rings = [((x - 80) ** 2 + (y - 80) ** 2) // (7 + 6 * c) % 256 for c in range(3)]
    number = x // 40 + 4 * (y // 40)  # of 16 blocks: every corner of the colour cube, dark and bright
    blocks = [(number >> c & 1) * (127 + 128 * (number >> 3)) for c in range(3)]
    width = 1 + (x // 80) + 2 * (y // 80)  # 1 to 4 px, a quadrant each
    stripes = [255 * ((line // width) % 2) for line in (x, y, x + y)]
    frame = np.minimum.reduce([x, y, SIDE_PX - 1 - x, SIDE_PX - 1 - y])
    dots = [(x - 25 - 50 * c) ** 2 + (y - 20 - 45 * c) ** 2 < 49 for c in range(3)]
    framed = [np.where(frame < 4 + 6 * c, 250 - 60 * c, np.where(dots[c], 255, 40 + 20 * c)) for c in range(3)]
    flat = [np.full_like(x, value) for value in (224, 186, 210)]
    nucleus = np.minimum.reduce(
        [(x - 19 * i % 160) ** 2 * (1 + i % 3) + (y - 47 * i % 160) ** 2 * (1 + i % 2) for i in range(1, 15)]
    )
    nuclei = [np.where(nucleus < 150, purple, pink) for purple, pink in ((88, 232), (52, 176), (138, 208))]
    grain = ((x * 73_856_093 + y * 19_349_663) % 65_521 * 40_503 >> 5) % 97  # a small hash of each pixel's place
    grains = [low + grain * span // 97 for low, span in ((120, 120), (60, 130), (130, 90))]
    tiles = (waves, rings, blocks, stripes, framed, flat, nuclei, grains)
    return np.stack([np.stack(tile, -1) for tile in tiles]).astype(np.uint8)


def versions() -> dict[str, str]:
    """The versions of torch and timm in this environment, to stand beside a canary."""
    return {name: importlib.metadata.version(name) for name in ("torch", "timm")}


def embed(encoder: Encoder) -> np.ndarray:
    """Features float32 (8, n_dims) of `images`: they change when weights, preprocessing or precision do."""
    return encoder.embed(images())


def check(encoder: Encoder, expected: np.ndarray) -> float:
    """Check that ``encoder`` still gives ``expected`` for the canary; see `compare`."""
    return compare(encoder, embed(encoder), expected)


def compare(encoder: Encoder, now: np.ndarray, expected: np.ndarray, made_with: Mapping[str, str] | None = None) -> float:
    """The largest relative difference of a tile's features, between ``now`` and ``expected``, float32 (8, n_dims) both.

    ``expected`` may have fewer tiles, the first ones. Raises EncoderError above the tolerance of the card's precision:
    then features made now don't belong to the earlier ones, made with the versions ``made_with`` of torch and timm.
    """
    name, tolerance = encoder.card.name, TOLERANCE[encoder.card.precision]
    expected = np.asarray(expected)
    if expected.ndim != 2 or expected.shape[1:] != now.shape[1:] or not 0 < len(expected) <= len(now):
        raise EncoderError(f"encoder {name!r} now gives {now.shape} for the canary, it gave {expected.shape}")
    apart = np.linalg.norm(now[: len(expected)] - expected, axis=1) / np.maximum(np.linalg.norm(expected, axis=1), 1e-12)
    worst = int(np.argmax(apart))  # NaN counts as the largest
    if not apart[worst] <= tolerance:
        changed = [f"{key} was {made_with.get(key)}, is {is_now}" for key, is_now in versions().items()] if made_with else []
        raise EncoderError(
            f"encoder {name!r} isn't the one of before: features of the canary's tile {worst} ({TILES[worst]}) lie "
            f"{apart[worst]:.2g} apart (relative; {tolerance:g} is allowed), {int((~(apart <= tolerance)).sum())} of "
            f"{len(apart)} tiles are too far. Weights, preprocessing or versions changed"
            f"{' (' + ', '.join(changed) + ')' if changed else ''}; embed everything anew."
        )
    return float(apart[worst])
