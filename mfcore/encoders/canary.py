"""The canary: the embeddings of eight fixed images, kept to see whether an encoder changed."""

import importlib.metadata
from collections.abc import Mapping
from importlib import resources

import numpy as np
from PIL import Image

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
# Relative. Other machines and versions of torch stay well below; a GPU's half precision against a
# CPU's float32 does too.
TOLERANCE = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 6e-2}


def images() -> np.ndarray:
    """Eight made images, uint8 (8, 160, 160, 3); they never change.

    In ``canary.png`` they lie one below the other. Each reacts to something of its own that goes
    wrong: colours to mean, std and the order of channels, stripes and grains to interpolation and
    antialiasing, the frame and the dots to the crop, the flat field to anything that adds up.
    """
    with resources.files("mfcore.encoders").joinpath("canary.png").open("rb") as file:
        return np.array(Image.open(file)).reshape(len(TILES), 160, 160, 3)


def versions() -> dict[str, str]:
    """The versions of torch and timm in this environment, kept with a canary."""
    return {name: importlib.metadata.version(name) for name in ("torch", "timm")}


def embed(encoder: Encoder) -> np.ndarray:
    """Features float32 (8, n_dims) of `images`.

    They change when weights, preprocessing or precision do.
    """
    return encoder.embed(images())


def compare(
    encoder: Encoder,
    now: np.ndarray,
    expected: np.ndarray,
    made_with: Mapping[str, str],
) -> float:
    """The largest relative difference of a tile's features ``now`` from those ``expected``.

    Both are float32 (8, n_dims). Raises EncoderError above the tolerance of the card's precision:
    then features made now don't belong to the earlier ones, made with the versions ``made_with`` of
    torch and timm.
    """
    name, tolerance = encoder.card.name, TOLERANCE[encoder.card.precision]
    if expected.shape != now.shape:
        raise EncoderError(
            f"encoder {name!r} now gives {now.shape} for the canary, it gave {expected.shape};"
            " embed everything anew"
        )
    apart = np.linalg.norm(now - expected, axis=1) / np.maximum(
        np.linalg.norm(expected, axis=1), 1e-12
    )
    worst = int(np.argmax(apart))  # NaN counts as the largest
    if not apart[worst] <= tolerance:
        changed = ", ".join(
            f"{key} was {made_with.get(key)}, is {version}" for key, version in versions().items()
        )
        raise EncoderError(
            f"encoder {name!r} isn't the one of before: features of the canary's tile {worst} "
            f"({TILES[worst]}) lie {apart[worst]:.2g} apart (relative; {tolerance:g} is allowed). "
            f"Weights, preprocessing or versions changed ({changed}); embed everything anew."
        )
    return float(apart[worst])
