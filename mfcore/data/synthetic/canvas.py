"""What synthetic cells are drawn on and with: layers of stain, periodic noise, shapes by distance.

Shapes are signed distances in um (negative inside), roughened by noise and turned into soft masks.
"""

import functools
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mfcore import streams

GRAINS_UM = (0.25, 0.45, 0.8, 1.4, 2.6)
"""Correlation lengths, in um, of the noise that shapes are roughened and textured with."""


class Noise:
    """Periodic noise of unit variance at several grains; cut anywhere, flipped at random, so that
    no two cells are alike.
    """

    def __init__(self, seed: int, um_per_px: float, side_px: int = 640):
        self.side_px = side_px
        white = streams.generator(seed, "synthetic", "noise").standard_normal(
            (side_px, side_px), dtype=np.float32
        )
        self.tiles = {}
        for grain in GRAINS_UM:
            tile = ndimage.gaussian_filter(white, grain / um_per_px, mode="wrap")
            self.tiles[grain] = tile / tile.std()

    def cut(self, rng: np.random.Generator, grain_um: float, shape: tuple[int, int]) -> np.ndarray:
        """A random cut of one grain, float32 ``shape``: mean about 0, deviation about 1."""
        tile = self.tiles[grain_um]
        row = rng.integers(0, self.side_px - shape[0])
        column = rng.integers(0, self.side_px - shape[1])
        cut = tile[row : row + shape[0], column : column + shape[1]]
        flips = rng.integers(0, 4)
        return cut[:: 1 - 2 * (flips & 1), :: 1 - (flips & 2)]


@functools.lru_cache(maxsize=8)
def noise(seed: int, um_per_px: float) -> Noise:
    """The noise of a seed and resolution, made once per process."""
    return Noise(seed, um_per_px)


@dataclass
class Canvas:
    """Two layers, haematoxylin ``h`` and eosin ``e``: float32 (n_rows, n_columns), in amounts of
    stain.

    truth: uint8 (n_rows, n_columns), the value of what was painted at each px; 0 where nothing with
    a value was.
    """

    h: np.ndarray
    e: np.ndarray
    um_per_px: float
    grain: Noise
    truth: np.ndarray


class Window:
    """The part of the canvas within ``radius_um`` of a cell's centre, in um, clipped at the border.

    rng: the stream that draws the cell. value: of the cell in the canvas's ``truth``; 0 leaves
    ``truth`` as it is.
    """

    def __init__(
        self,
        canvas: Canvas,
        x_px: float,
        y_px: float,
        radius_um: float,
        rng: np.random.Generator,
        value: int = 0,
    ):
        reach = radius_um / canvas.um_per_px
        n_rows, n_columns = canvas.h.shape
        top, bottom = max(0, int(y_px - reach)), min(n_rows, int(y_px + reach) + 1)
        left, right = max(0, int(x_px - reach)), min(n_columns, int(x_px + reach) + 1)
        self.h, self.e, self.truth = (
            layer[top:bottom, left:right] for layer in (canvas.h, canvas.e, canvas.truth)
        )
        self.x = ((np.arange(left, right, dtype=np.float32) - x_px) * canvas.um_per_px)[None, :]
        self.y = ((np.arange(top, bottom, dtype=np.float32) - y_px) * canvas.um_per_px)[:, None]
        self.rng, self.grain, self.value = rng, canvas.grain, value

    def noise(self, grain_um: float) -> np.ndarray:
        """Noise of unit variance over the window."""
        return self.grain.cut(self.rng, grain_um, self.h.shape)

    def turn(self) -> float:
        """A random direction of an axis."""
        return self.rng.uniform(0, np.pi)

    def halo(self, share: float, low_um: float, high_um: float) -> float:
        """Width in um of the cleft around a cell; 0 except in a ``share`` of cells."""
        return self.rng.uniform(low_um, high_um) if self.rng.random() < share else 0.0

    def turned(
        self, angle: float, x_um: float = 0.0, y_um: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates (along, across) in um of axes turned by ``angle`` about a point."""
        dx, dy = self.x - np.float32(x_um), self.y - np.float32(y_um)
        cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return dx * cosine + dy * sine, dy * cosine - dx * sine

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


def cover(distance: np.ndarray, edge_um: float) -> np.ndarray:
    """Mask in [0, 1] of the inside of a shape; its edge is ``edge_um`` wide."""
    t = np.clip(0.5 - distance / np.float32(edge_um), 0, 1)
    return t * t * (3 - 2 * t)
