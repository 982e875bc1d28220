"""What synthetic cells are drawn on and with: layers of stain, periodic noise, shapes by distance.

Shapes are signed distances in um (negative inside), roughened by noise and turned into soft masks.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mfcore import streams
from mfcore.data.synthetic.domains import Look

GRAINS_UM = (0.25, 0.45, 0.8, 1.4, 2.6)
"""Correlation lengths, in um, of the noise that shapes are roughened and textured with."""
NOISE_PX = 640


@functools.lru_cache(maxsize=8)
def noise(seed: int, um_per_px: float) -> dict[float, np.ndarray]:
    """Periodic noise of unit variance by grain, float32 (NOISE_PX, NOISE_PX); made once per
    process.
    """
    white = streams.generator(seed, "synthetic", "noise").standard_normal(
        (NOISE_PX, NOISE_PX), dtype=np.float32
    )
    tiles = {
        grain: ndimage.gaussian_filter(white, grain / um_per_px, mode="wrap") for grain in GRAINS_UM
    }
    return {grain: tile / tile.std() for grain, tile in tiles.items()}


@dataclass
class Canvas:
    """Two layers, haematoxylin ``h`` and eosin ``e``: float32 (n_rows, n_columns), in amounts of
    stain.

    grain: the `noise` that cells are textured with. truth: uint8 (n_rows, n_columns), the value of
    what was painted at each px; 0 where nothing with a value was.
    """

    h: np.ndarray
    e: np.ndarray
    um_per_px: float
    grain: dict[float, np.ndarray]
    truth: np.ndarray


class Window:
    """The part of the canvas within ``radius_um`` of a cell's centre (x, y in px), in um, clipped
    at the border.

    rng: the stream that draws the cell. look: of its domain. angle: of the fibres around it. hard:
    from 0, a textbook's cell, to 1, one of which the class can hardly be told. value: of the cell
    in the canvas's ``truth``; 0 leaves ``truth`` as it is.
    """

    def __init__(
        self,
        canvas: Canvas,
        centre_px: Sequence[float],
        radius_um: float,
        rng: np.random.Generator,
        look: Look,
        angle: float = 0.0,
        hard: float = 0.0,
        value: int = 0,
    ):
        self.look, self.angle, self.hard, self.value = look, angle, hard, value
        self.rng, self.random, self.uniform, self.normal = (
            rng, rng.random, rng.uniform, rng.normal
        )  # fmt: skip
        self.grain = canvas.grain
        part = around(centre_px, radius_um / canvas.um_per_px, canvas.h.shape)
        self.h, self.e, self.truth = (layer[part] for layer in (canvas.h, canvas.e, canvas.truth))
        rows, columns = (np.arange(each.start, each.stop, dtype=np.float32) for each in part)
        self.x = ((columns - centre_px[0]) * canvas.um_per_px)[None, :]
        self.y = ((rows - centre_px[1]) * canvas.um_per_px)[:, None]

    def noise(self, grain_um: float) -> np.ndarray:
        """Noise over the window, cut anywhere and flipped at random, so that no two cells are
        alike: mean about 0, deviation about 1.
        """
        n_rows, n_columns = self.h.shape
        row = self.rng.integers(0, NOISE_PX - n_rows)
        column = self.rng.integers(0, NOISE_PX - n_columns)
        cut = self.grain[grain_um][row : row + n_rows, column : column + n_columns]
        flips = self.rng.integers(0, 4)
        return cut[:: 1 - 2 * (flips & 1), :: 1 - (flips & 2)]

    def meet(self, easy: float, middle: float) -> float:
        """From the textbook's value to the one that both classes share, as ``hard`` says."""
        return easy + (middle - easy) * self.hard

    def turn(self) -> float:
        """A random direction of an axis."""
        return self.uniform(0, np.pi)

    def halo(self, share: float, low_um: float, high_um: float) -> float:
        """Width in um of the cleft around a cell; 0 except in a ``share`` of cells."""
        return self.uniform(low_um, high_um) if self.random() < share else 0.0

    def aside(self, far_um: float) -> tuple[float, float, float]:
        """A random direction, and the point (x, y) in um that lies ``far_um`` that way."""
        turn = self.uniform(0, 2 * np.pi)
        return turn, far_um * np.cos(turn), far_um * np.sin(turn)

    def turned(
        self, angle: float, x_um: float = 0.0, y_um: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates (along, across) in um of axes turned by ``angle`` about a point."""
        return rotated(self.x - np.float32(x_um), self.y - np.float32(y_um), angle)

    def ellipse(
        self, a: float, b: float, angle: float = 0.0, x_um: float = 0.0, y_um: float = 0.0
    ) -> np.ndarray:
        """Distance in um from an ellipse with half-axes ``a`` and ``b``, negative inside; exact on
        the outline only.
        """
        along, across = self.turned(angle, x_um, y_um)
        return (
            np.sqrt((along / np.float32(a)) ** 2 + (across / np.float32(b)) ** 2) - 1
        ) * np.float32(min(a, b))

    def bar(
        self,
        half_length: float,
        half_width: float,
        angle: float,
        bend: float = 0.0,
        x_um: float = 0.0,
        y_um: float = 0.0,
    ) -> np.ndarray:
        """Distance in um from a bar with round ends, bent by ``bend`` (1/um) across its length."""
        along, across = self.turned(angle, x_um, y_um)
        across = across + np.float32(bend) * (along**2 - np.float32(half_length**2 / 3))
        beyond = np.maximum(np.abs(along) - np.float32(max(half_length - half_width, 0.01)), 0)
        return np.sqrt(beyond**2 + across**2) - np.float32(half_width)

    def paint(self, mask: np.ndarray, h: np.ndarray | float, e: np.ndarray | float) -> None:
        """Replace the amounts of both stains where ``mask`` is 1, mix them where it is between 0
        and 1.

        A pixel has the cell's value where the cell covers at least half of it.
        """
        for layer, amount in ((self.h, h), (self.e, e)):
            layer += mask * (amount - layer)
        if self.value:
            self.truth[mask >= 0.5] = self.value


def around(
    centre_px: Sequence[float], reach_px: float, shape: tuple[int, int]
) -> tuple[slice, slice]:
    """Rows and columns of an array of ``shape`` within ``reach_px`` of a centre (x, y)."""
    return tuple(
        slice(max(0, int(at - reach_px)), min(n, int(at + reach_px) + 1))
        for at, n in zip(centre_px[::-1], shape, strict=True)
    )


def rotated(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (along, across) of axes turned by ``angle``."""
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * cosine + y * sine, y * cosine - x * sine


def cover(distance: np.ndarray, edge_um: float) -> np.ndarray:
    """Mask in [0, 1] of the inside of a shape; its edge is ``edge_um`` wide."""
    t = np.clip(0.5 - distance / np.float32(edge_um), 0, 1)
    return t * t * (3 - 2 * t)
