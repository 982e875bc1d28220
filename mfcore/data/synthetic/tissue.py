"""Tissue of the synthetic slides: where cells lie, what is between them, and the pixels from stain
to scanner.

A slide is two layers of optical density, haematoxylin and eosin (Beer-Lambert: intensity = white *
10^-(h * H + e * E)), then the scanner's blur, sharpening and noise. Compartments (tumour, stroma,
gaps) and cytoplasm are made at half the resolution, nuclei at the full one.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from mfcore import streams
from mfcore.data.synthetic import cells
from mfcore.data.synthetic.canvas import Canvas, around, noise, rotated
from mfcore.data.synthetic.domains import Domain

MARGIN_PX = 32
"""Annotated cells' distance from the border, so that the box of 50 px lies inside the slide."""
APART_UM = (36.0, 30.0, 25.0, 20.0, 17.0)
"""Smallest distances between two annotated cells; a slide takes the first that it has room for."""

PHASES = (0.30, 0.36, 0.14, 0.20)
"""Weights of `cells.MITOTIC`, the same in every domain."""
HARD_SHARE = 0.42
"""Share of annotated cells that are hard to classify."""


class SyntheticError(ValueError):
    """A synthetic data set can't be made as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """What is known of a slide before it is drawn."""

    index: int
    domain: Domain
    n_rows: int
    n_columns: int
    n_annotations: int
    positive: float


@dataclass(frozen=True)
class Layout:
    """Where a slide's cells lie, in level-0 px: float (n, 2) arrays of x, y; annotated cells with
    kind and hardness.
    """

    stroma: np.ndarray  # (n_rows / 8, n_columns / 8)
    gap: np.ndarray  # (n_rows / 8, n_columns / 8)
    tumour_px: np.ndarray
    stroma_px: np.ndarray
    annotated: np.ndarray  # indices into tumour_px
    kinds: list[str]
    hard: np.ndarray


def _field(rng: np.random.Generator, shape: tuple[int, int], length: float) -> np.ndarray:
    """Smooth noise of unit variance with correlation length ``length``, in its own pixels."""
    field = ndimage.gaussian_filter(
        rng.standard_normal(shape, dtype=np.float32), length, mode="wrap", truncate=3
    )
    return (field - field.mean()) / field.std()


def _enlarge(field: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """``field`` stretched to ``shape``, bilinear."""
    for axis, n in enumerate(shape):
        at = np.clip(
            (np.arange(n, dtype=np.float32) + 0.5) * field.shape[axis] / n - 0.5,
            0,
            field.shape[axis] - 1.001,
        )
        low = at.astype(np.intp)
        weight = np.expand_dims(at - low, 1 - axis).astype(np.float32)
        first = np.take(field, low, axis=axis)
        field = first + weight * (np.take(field, low + 1, axis=axis) - first)
    return field


def _apart(points: np.ndarray, distance: float) -> np.ndarray:
    """Indices of the points kept when each, in order, is dropped if an earlier kept one is nearer
    than ``distance``.
    """
    kept = np.ones(len(points), bool)
    for earlier, later in sorted(cKDTree(points).query_pairs(distance)):
        kept[later] &= not kept[earlier]
    return np.flatnonzero(kept)


def _scatter(rng: np.random.Generator, shape: tuple[int, int], distance_px: float) -> np.ndarray:
    """Random points (n, 2) of x, y on a slide of ``shape`` (rows, columns), none nearer to another
    than ``distance_px``.
    """
    n_rows, n_columns = shape
    points = rng.random((int(3 * n_rows * n_columns / distance_px**2), 2)) * (n_columns, n_rows)
    return points[_apart(points, distance_px)]


def coarse_at(field: np.ndarray, points_px: np.ndarray) -> np.ndarray:
    """Values, (n,), of a field on the coarse grid of 8 px at points (n, 2) of x, y."""
    column, row = np.minimum(
        (points_px / 8).astype(int), (field.shape[1] - 1, field.shape[0] - 1)
    ).T
    return field[row, column]


def lay_out(seed: int, plan: Plan) -> Layout:
    """Compartments and cells of a slide; quick, so that an interrupted data set finds its
    annotations again.

    Positions are drawn before classes: where an annotated cell lies says nothing about what it is.
    Raises SyntheticError where the slide has no room for its annotations.
    """
    domain, um = plan.domain, plan.domain.um_per_px
    rng = streams.generator(seed, "synthetic", "layout", plan.index)
    shape = (plan.n_rows, plan.n_columns)
    coarse = (plan.n_rows // 8, plan.n_columns // 8)

    def waves(length_um: float) -> np.ndarray:
        return _field(rng, coarse, length_um / (8 * um))

    amount = np.clip(domain.stroma * np.exp(rng.normal(0, 0.35)), 0.02, 0.6)
    stroma = waves(26) + 0.35 * waves(9)
    stroma = stroma - np.float32(np.quantile(stroma, 1 - amount))
    gap = waves(9) + 0.5 * waves(4)
    gap = gap + 0.9 * np.exp(-((stroma / 0.25) ** 2))  # clefts open where tumour and stroma meet
    amount = np.clip(domain.gap * np.exp(rng.normal(0, 0.4)), 0.01, 0.3)
    gap = gap - np.float32(np.quantile(gap, 1 - amount))

    points = _scatter(rng, shape, domain.spacing_um / um)
    points = points[coarse_at(gap, points) < -0.25]
    in_stroma = coarse_at(stroma, points) > 0
    tumour, others = points[~in_stroma], points[in_stroma]
    others = others[rng.random(len(others)) < 0.55]
    width = (plan.n_columns - MARGIN_PX, plan.n_rows - MARGIN_PX)
    inside = ((tumour > MARGIN_PX) & (tumour < width)).all(axis=1)
    solid = (coarse_at(gap, tumour) < -0.5) & (coarse_at(stroma, tumour) < -0.1)
    inside = rng.permutation(np.flatnonzero(inside & solid))
    for apart_um in APART_UM:
        room = inside[_apart(tumour[inside], apart_um / um)]
        if len(room) >= plan.n_annotations:
            break
    else:
        raise SyntheticError(
            f"slide {plan.index}: room for {len(room)} annotated cells, {plan.n_annotations}"
            " wanted; ask for fewer"
        )
    annotated = room[: plan.n_annotations]

    rng = streams.generator(seed, "synthetic", "kinds", plan.index)
    n = plan.n_annotations
    positive = rng.random(n) < plan.positive
    phase = rng.choice(list(cells.MITOTIC), n, p=PHASES)
    weights = np.array(domain.look_alikes) * rng.dirichlet(np.full(5, 12.0))
    other = rng.choice(list(cells.LOOK_ALIKE), n, p=weights / weights.sum())
    easy, difficult = rng.uniform(0, 0.4, n), rng.uniform(0.55, 0.95, n)
    hard = np.where(rng.random(n) < HARD_SHARE, difficult, easy)
    kinds = np.where(positive, phase, other).tolist()
    return Layout(stroma, gap, tumour, others, annotated, kinds, hard)


def _cytoplasm(
    centres_px: np.ndarray, shape: tuple[int, int], reach: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which cell each pixel belongs to, and distances to the nearest and second nearest cell, all
    in ``shape``'s pixels.

    Distances are those of ellipses, one per cell, so that cells are not all alike.
    """
    first = np.full(shape, reach, np.float32)
    second = np.full(shape, reach, np.float32)
    owner = np.full(shape, len(centres_px), np.int32)
    angle = rng.uniform(0, np.pi, len(centres_px))
    stretch = np.exp(rng.normal(0, 0.16, len(centres_px)))
    longer, shorter = stretch.astype(np.float32), (1 / stretch).astype(np.float32)
    for index, (x, y) in enumerate(centres_px):
        part = around((x, y), int(reach * 1.15) + 1, shape)
        rows, columns = (np.arange(each.start, each.stop, dtype=np.float32) for each in part)
        dx, dy = (columns - np.float32(x))[None, :], (rows - np.float32(y))[:, None]
        along, across = rotated(dx, dy, angle[index])
        distance = np.sqrt((along * longer[index]) ** 2 + (across * shorter[index]) ** 2)
        f, s = first[part], second[part]
        np.minimum(s, np.maximum(f, distance), out=s)
        owner[part][distance < f] = index
        np.minimum(f, distance, out=f)
    return owner, first, second


def _ground(
    plan: Plan, layout: Layout, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Haematoxylin and eosin of everything but nuclei, at half the resolution; and the fibres'
    angle on the coarse grid.
    """
    domain = plan.domain
    half = ((plan.n_rows + 1) // 2, (plan.n_columns + 1) // 2)
    um = 2 * domain.um_per_px
    fine, blotch = _field(rng, half, 0.5 / um), _field(rng, half, 1.6 / um)

    owner, first, second = _cytoplasm(
        layout.tumour_px / 2, half, domain.spacing_um * 1.15 / um, rng
    )
    tint = np.append(np.exp(rng.normal(0, 0.16, len(layout.tumour_px))), 0.75).astype(np.float32)[
        owner
    ]
    border = np.exp(-((((second - first) * um) / 1.1) ** 2))
    # borders show dark, or as fine clefts
    membrane = np.float32(rng.choice((-1, 1)) * rng.uniform(0.2, 0.55))
    far = np.clip((first * um - domain.spacing_um * 0.72) / 3, 0, 1)
    texture = 1 + domain.granules * fine + 0.12 * blotch
    tumour_e = domain.cytoplasm[1] * tint * texture * (1 + membrane * border) * (1 - 0.35 * far)
    tumour_h = (
        domain.cytoplasm[0] * (2 - tint) * (1 + 1.8 * domain.granules * fine) * (1 - 0.5 * far)
    )

    fibre, angles = _fibres(layout.stroma.shape, half, um, rng)
    stroma_e = domain.cytoplasm[1] * 1.05 * np.clip(1 + 0.42 * fibre, 0.06, 2)
    stroma_h = 0.05 + 0.015 * fine

    in_stroma = np.clip(_enlarge(layout.stroma, half) / 0.12 + 0.5 + 0.4 * blotch, 0, 1)
    in_gap = np.clip(_enlarge(layout.gap, half) / 0.12 + 0.5 + 0.25 * blotch, 0, 1)
    h = (tumour_h + in_stroma * (stroma_h - tumour_h)) * (1 - in_gap)
    e = (tumour_e + in_stroma * (stroma_e - tumour_e)) * (1 - in_gap) + 0.015 * in_gap
    thickness = 1 + 0.09 * _enlarge(_field(rng, layout.stroma.shape, 60 / (4 * um)), half)
    return np.maximum(h * thickness, 0.01), np.maximum(e * thickness, 0.01), angles


def _fibres(
    coarse: tuple[int, int], half: tuple[int, int], um: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Wavy collagen: noise of about unit variance on the half grid (``um`` a pixel), and its angle
    on the coarse grid.
    """
    bend_um = 32
    wave = _field(rng, coarse, 45 / (4 * um)) + 0.15 * _field(rng, coarse, 8 / (4 * um))
    angle = rng.uniform(0, np.pi)
    y, x = (np.arange(n, dtype=np.float32) for n in half)
    along, across = rotated(x[None, :], y[:, None], angle)
    across = across + _enlarge(wave, half) * (bend_um / um)

    def threads(across: np.ndarray, width_um: float, length_um: float) -> np.ndarray:
        """A periodic square of noise drawn out along its columns, of unit variance, laid along the
        fibres.
        """
        white = rng.standard_normal((512, 512), dtype=np.float32)
        tile = ndimage.gaussian_filter(white, (width_um / um, length_um / um), mode="wrap")
        places = (at.astype(np.int32) % len(tile) for at in (across, along))
        return (tile / tile.std())[tuple(places)]

    fibre = 0.6 * threads(across, 0.55, 9) + 0.8 * threads(across * 0.9, 1.7, 22)
    slope_y, slope_x = (slope * (bend_um / (4 * um)) for slope in np.gradient(wave))
    return fibre, np.arctan2(np.sin(angle) - slope_x, np.cos(angle) + slope_y)


def ground(
    seed: int, plan: Plan, layout: Layout, um2_a_vacuole: float
) -> tuple[Canvas, np.ndarray, np.random.Generator]:
    """A slide without its cells, but with vacuoles at random places, on average one in an area of
    ``um2_a_vacuole``: the canvas, the fibres' angles on the coarse grid, the stream that draws what
    comes next.
    """
    um = plan.domain.um_per_px
    rng = streams.generator(seed, "synthetic", "pixels", plan.index)
    shape = (plan.n_rows, plan.n_columns)
    h, e, angles = _ground(plan, layout, rng)
    fine = _field(rng, shape, 0.16 / um)
    # ridges of noise: a mesh, as cytoplasm has it
    threads = 0.45 - np.abs(_field(rng, shape, 0.42 / um))
    h = _enlarge(h, shape) * (1 + 0.1 * fine + 0.22 * threads)
    e = _enlarge(e, shape) * (1 + 0.09 * fine + 0.2 * threads)
    canvas = Canvas(h, e, um, noise(seed, um), np.zeros(shape, np.uint8))
    for _ in range(rng.poisson(h.size * um * um / um2_a_vacuole)):
        cells.draw(canvas, rng.random(2) * shape[::-1], "vacuole", rng, plan.domain.look)
    return canvas, angles, rng


def draw(seed: int, plan: Plan, layout: Layout) -> np.ndarray:
    """The slide's pixels: uint8 (n_rows, n_columns, 3)."""
    domain, look, tumour_px = plan.domain, plan.domain.look, layout.tumour_px
    canvas, angles, rng = ground(seed, plan, layout, 12000)
    for at, angle in zip(layout.stroma_px, coarse_at(angles, layout.stroma_px), strict=True):
        chance = rng.random()
        is_lymphocyte = chance < 0.02 + domain.lymphocytes
        kind = "vessel" if chance < 0.02 else "lymphocyte" if is_lymphocyte else "spindle"
        cells.draw(canvas, at, kind, rng, look, angle)
    strays = rng.random(len(tumour_px)) < 0.012
    for index in np.setdiff1d(np.arange(len(tumour_px)), layout.annotated):
        kind = "lymphocyte" if strays[index] else "tumour"
        cells.draw(canvas, tumour_px[index], kind, rng, look)
    for index, kind, hard in zip(layout.annotated, layout.kinds, layout.hard, strict=True):
        cells.draw(canvas, tumour_px[index], kind, rng, look, hard=float(hard))
    return scan(canvas, domain, rng)


def scan(canvas: Canvas, domain: Domain, rng: np.random.Generator) -> np.ndarray:
    """From amounts of stain to the scanner's uint8 RGB; each slide's staining and focus vary a
    little about the domain's.
    """
    strength = np.exp(rng.normal(0, 0.08, (2, 1)))
    hues = np.exp(rng.normal(0, 0.05, (2, 3)))
    stains = (np.array([domain.haematoxylin, domain.eosin]) * hues * strength).astype(np.float32)
    sigma = domain.blur_um / domain.um_per_px * np.exp(rng.normal(0, 0.1))
    image = np.empty((*canvas.h.shape, 3), np.uint8)
    for channel, (h, e) in enumerate(stains.T):
        density = canvas.h * h + canvas.e * e
        light = domain.white[channel] * np.exp(np.float32(-np.log(10)) * density)
        light = ndimage.gaussian_filter(light, sigma, truncate=3)
        if domain.sharpen:
            light += domain.sharpen * (
                light - ndimage.gaussian_filter(light, 2 * sigma, truncate=2.5)
            )
        light += rng.normal(0, 1.6) + 1.5 * rng.standard_normal(light.shape, dtype=np.float32)
        image[..., channel] = np.clip(light + 0.5, 0, 255)
    return image
