"""Cells of the synthetic slides, drawn into layers of haematoxylin and eosin on a window around
each cell.

Amounts of stain are optical densities. Mitotic figures and look-alikes get their `hard` in [0, 1]:
at 0 they are as in a textbook, towards 1 outline, focus, darkness and cytoplasm of both classes
meet in the middle.
"""

from collections.abc import Sequence

import numpy as np

from mfcore.data.synthetic.canvas import Canvas, Window, cover
from mfcore.data.synthetic.domains import Look


def tumour(w: Window) -> None:
    """A vesicular nucleus: uneven membrane, mottled chromatin, nucleoli; each as dark, as round and
    as sharp as it likes.
    """
    look = w.look
    radius = look.radius_um * np.exp(w.normal(0, look.radius_sd))
    stretch = np.exp(abs(w.normal(0, look.elongation)))
    distance = w.ellipse(radius * stretch**0.5, radius * stretch**-0.5, w.turn())
    distance = distance + np.float32(0.13 * radius) * w.noise(2.6) + 0.12 * w.noise(0.8)
    level = look.h * np.exp(w.normal(0, 0.25))
    mottle = np.clip(w.noise(look.grain_um), -0.9, 2.4) + 0.4 * w.noise(0.25)
    chromatin = level * (w.uniform(0.6, 0.95) + look.chromatin * w.uniform(0.5, 1.3) * mottle)
    rim = rim_of(distance, w.uniform(0.3, 0.5)) * np.clip(1 + 0.5 * w.noise(0.8), 0.2, 2)
    chromatin += level * look.rim * w.uniform(0.5, 1.2) * rim
    for _ in range(min(w.rng.poisson(look.n_nucleoli), 3)):
        place, size = w.aside(radius * 0.55 * w.random() ** 0.5), w.uniform(0.45, 0.9)
        spot = cover(w.ellipse(size, size * 0.85, *place), 0.6)
        chromatin += spot * np.float32(level * w.uniform(0.5, 1.0))
    focus = 0.5 + 1.3 * w.random() ** 2
    w.paint(cover(distance, focus), np.maximum(chromatin, 0.1), w.e * w.uniform(0.65, 0.95))


def lymphocyte(w: Window) -> None:
    """A small round dark nucleus with clumped chromatin and hardly any cytoplasm."""
    radius = w.uniform(2.3, 3.0)
    distance = w.ellipse(radius * w.uniform(1, 1.15), radius, w.turn()) + 0.18 * w.noise(1.4)
    level = w.look.dark * w.uniform(0.5, 0.72)
    w.paint(cover(distance, 0.6), level * (1 + 0.22 * np.clip(w.noise(0.45), -1.5, 1.5)), w.e * 0.7)


def spindle(w: Window) -> None:
    """A fibroblast's or endothelial nucleus, long and thin, along the fibres."""
    length, width = w.uniform(3.8, 7.5), w.uniform(0.9, 2.1)
    angle, pointed = w.angle + w.normal(0, 0.25), np.float32(w.uniform(0.4, 1))
    blunt = w.bar(length, width, angle, w.normal(0, 0.015))
    distance = pointed * w.ellipse(length, width, angle) + (1 - pointed) * blunt
    distance = distance + 0.3 * w.noise(1.4)
    level = w.look.h * w.uniform(0.8, 1.7)
    chromatin = level * (0.9 + 0.25 * np.clip(w.noise(0.45), -1.5, 2))
    w.paint(cover(distance, 0.6), chromatin + level * 0.3 * rim_of(distance, 0.35), w.e * 0.8)


def vessel(w: Window) -> None:
    """A small vessel: a clear space with red cells in it."""
    radius, n = w.uniform(5, 9), w.rng.integers(2, 9)
    squeeze, angle = w.uniform(0.45, 0.95), w.turn()
    lumen = cover(w.ellipse(radius, radius * squeeze, angle) + 0.5 * w.noise(2.6), 0.7)
    w.paint(lumen, 0.01, 0.03)
    for _ in range(n):
        _, along, across = w.aside(radius * 0.75 * w.random() ** 0.5)
        across *= squeeze
        x_um = along * np.cos(angle) - across * np.sin(angle)
        y_um = along * np.sin(angle) + across * np.cos(angle)
        distance = w.ellipse(w.uniform(1.9, 2.7), w.uniform(1.7, 2.4), w.turn(), x_um, y_um)
        hollow = 1 - 0.3 * np.exp(-(((distance + 2) / 0.9) ** 2))
        w.paint(cover(distance, 0.5), 0.02, w.uniform(0.5, 0.75) * hollow)


def vacuole(w: Window) -> None:
    """A clear round hole: fat, mucin, or a shrinkage artefact."""
    radius = w.uniform(1.5, 5.5)
    distance = w.ellipse(radius, radius * w.uniform(0.75, 1), w.turn())
    w.paint(cover(distance + 0.3 * w.noise(2.6), 0.8), 0.0, 0.02)


def rim_of(distance: np.ndarray, width_um: float) -> np.ndarray:
    """A nucleus's membrane, just inside its outline: 1 at its middle, towards 0 on both sides."""
    return np.exp(-(((distance + 0.3) / width_um) ** 2))


def _draw_body(
    w: Window, halo: float, a_um: float, b_um: float, angle: float, e: float, h: float
) -> None:
    """The cell around condensed chromatin: its cytoplasm, and the cleft of shrinkage around it.

    halo: width of the cleft in um. a_um, b_um, angle: half-axes and turn. e, h: eosin and
    haematoxylin relative to the surroundings.
    """
    distance = w.ellipse(a_um, b_um, angle) + 0.6 * w.noise(2.6) + 0.2 * w.noise(0.8)
    if halo > 0:
        along, across = w.turned(w.uniform(0, 2 * np.pi))
        # wider on one side
        side = along / (np.abs(along) + np.abs(across) + 1) + 0.7 * w.noise(2.6)
        cleft = cover(distance - np.float32(halo) * (np.float32(0.35) + side), 0.7) * (
            1 - cover(distance, 0.7)
        )
        w.paint(cleft * np.float32(w.uniform(0.6, 1)), 0.02, 0.04)
    inside = cover(distance, w.uniform(0.7, 1.8)) * np.clip(0.85 + 0.1 * w.noise(1.4), 0, 1)
    e_around, h_around = float(np.median(w.e)), float(np.median(w.h))
    speckle = 1 + 0.14 * w.noise(0.45) + 0.12 * w.noise(1.4)
    haematoxylin = np.clip(h_around * h, 0.03, 0.3)
    eosin = np.clip(e_around * w.meet(e, 1.0), 0.06, 0.85)
    w.paint(inside, haematoxylin * speckle, eosin * speckle)


def _draw_round_body(w: Window, reach_um: float, angle: float) -> None:
    """A dividing cell's body: rounded, its cytoplasm cleared, at times with a cleft around it."""
    b = max(reach_um * w.uniform(0.85, 1.0), 5.0)
    halo = w.halo(0.25, 0.4, 1.5)
    _draw_body(w, halo, max(reach_um, b), b, angle, w.uniform(0.4, 1.05), w.uniform(0.5, 1.1))


def _draw_chromatin(
    w: Window, distance: np.ndarray, *, ragged: float, density: float, edge: float, grain: float
) -> None:
    """Paint condensed chromatin: its outline roughened by ``ragged`` um, ``density`` of the
    domain's darkest.
    """
    rough = w.meet(ragged, 0.36)
    distance = distance + rough * w.noise(0.8) + rough * 0.5 * w.noise(0.45)
    level = w.look.dark * w.meet(density, 0.86) * np.exp(w.normal(0, 0.07))
    level = level * (1 + w.meet(grain, 0.13) * np.clip(w.noise(0.45), -2, 1.2))
    w.paint(cover(distance, w.meet(edge, 0.75)), level, w.e * 0.6)


def prometaphase(w: Window) -> None:
    """A knobbly clump of condensed chromosomes without a membrane, in places falling apart into
    threads.
    """
    radius = w.uniform(2.7, 3.9)
    _draw_round_body(w, radius + w.uniform(3.0, 4.4), w.turn())
    distance = w.ellipse(radius * w.uniform(1, 1.3), radius * w.uniform(0.75, 1), w.turn())
    distance = distance + 0.7 * (1 - 0.5 * w.hard) * w.noise(1.4)
    gaps = np.maximum(w.noise(0.8) - (0.5 + 1.2 * w.hard), 0)
    _draw_chromatin(w, distance + gaps * 1.3, ragged=0.5, density=0.97, edge=0.4, grain=0.14)


def metaphase(w: Window) -> None:
    """A plate seen edge-on: a bar with a ragged outline across a rounded cell."""
    angle, length, width = w.turn(), w.uniform(3.6, 5.6), w.uniform(0.95, 1.6)
    _draw_round_body(w, length + w.uniform(1.4, 2.8), angle + w.normal(0, 0.3))
    distance = w.bar(length, w.meet(width, 2.0), angle, w.normal(0, 0.016)) + 0.22 * w.noise(1.4)
    _draw_chromatin(w, distance, ragged=0.38, density=1.03, edge=0.4, grain=0.1)


def ring(w: Window) -> None:
    """A plate seen from its pole: a ring or a ragged disc."""
    radius, hole = w.uniform(3.0, 4.1), w.uniform(0.7, 1.5)
    _draw_round_body(w, radius + w.uniform(2.8, 4.0), w.turn())
    stretch = w.uniform(1, 1.2)
    outer = w.ellipse(radius * stretch, radius / stretch, w.turn()) + 0.35 * w.noise(1.4)
    aside = w.turn(), w.normal(0, 0.4), w.normal(0, 0.4)
    inner = w.ellipse(hole * stretch, hole / stretch, *aside)
    distance = np.maximum(outer, -inner - np.float32(1.2 * w.hard))
    _draw_chromatin(w, distance, ragged=0.45, density=0.93, edge=0.45, grain=0.16)


def anaphase(w: Window) -> None:
    """Two sets of chromosomes that have come apart, ana- to telophase; now and then one lags
    between them.
    """
    angle, late = w.turn(), w.random()
    apart, length = 1.9 + 2.8 * late, w.uniform(2.5, 3.9) * (1 - 0.15 * late)
    width, bend = w.meet(w.uniform(0.8, 1.3), 1.4), w.uniform(0.015, 0.06)
    _draw_round_body(w, apart + w.uniform(1.8, 2.6), angle + np.pi / 2)
    dx, dy = -np.sin(angle) * apart, np.cos(angle) * apart
    tilt = w.normal(0, 0.12 + 0.15 * w.hard)
    one = w.bar(length, width, angle + tilt, -bend, dx, dy)
    other = w.bar(length * w.uniform(0.85, 1.1), width, angle - tilt, bend, -dx, -dy)
    distance = np.minimum(one, other)
    if w.random() < 0.15:
        lagging = w.ellipse(0.7, 0.45, angle, w.normal(0, 1), w.normal(0, 0.5))
        distance = np.minimum(distance, lagging)
    distance = distance + 0.22 * w.noise(1.4)
    _draw_chromatin(w, distance, ragged=0.34, density=1.0, edge=0.45, grain=0.1)


def pyknotic(w: Window) -> None:
    """A shrunken nucleus: small, smooth, evenly dark, in shrunken pink cytoplasm."""
    radius, angle = w.meet(w.uniform(1.7, 2.7), w.uniform(2.5, 3.3)), w.turn()
    stretch = np.exp(abs(w.normal(0, 0.18 + 0.25 * w.hard)))
    body = radius + w.uniform(2.0, 3.4) + 0.6 * w.hard
    halo = w.halo(w.meet(0.4, 0.25), 0.4, 1.6)
    _draw_body(w, halo, body * 1.15, body, angle, w.uniform(0.9, 1.9), w.uniform(0.6, 1.2))
    distance = w.ellipse(radius * stretch, radius / stretch**0.5, angle)
    distance = distance + (0.15 + 0.5 * w.hard) * w.noise(1.4)
    _draw_chromatin(w, distance, ragged=0.04, density=1.0, edge=0.5, grain=0.03)


def apoptotic(w: Window) -> None:
    """A dying cell: round smooth globules of chromatin in a shrunken, deeply pink cell with a cleft
    around it.
    """
    angle, body = w.turn(), w.uniform(3.8, 5.6)
    halo, length = w.halo(w.meet(0.55, 0.25), 0.5, 1.8), body * w.uniform(1, 1.25)
    _draw_body(w, halo, length, body, angle, w.uniform(1.0, 2.2), w.uniform(0.6, 1.1))
    distance = np.inf
    for index in range(w.rng.integers(2, 6)):
        size = w.uniform(0.5, 1.3) if index else w.uniform(1.2, 2.2)
        place = w.aside(w.uniform(1.2, 2.9) if index else 0.5)
        distance = np.minimum(distance, w.ellipse(size * w.uniform(1, 1.2), size, *place))
    distance = distance + 0.3 * w.hard * w.noise(1.4)
    _draw_chromatin(w, distance, ragged=0.03, density=0.98, edge=0.45, grain=0.03)


def hyperchromatic(w: Window) -> None:
    """A large dark nucleus that keeps its membrane and smooth outline."""
    radius, angle = w.look.radius_um * w.uniform(0.75, 1.05), w.turn()
    radius = w.meet(radius, 3.3)
    stretch = np.exp(abs(w.normal(0, 0.2 + 0.15 * w.hard)))
    if w.random() < 0.35:
        _draw_round_body(w, radius * stretch + w.uniform(1.2, 2.4), angle)
    distance = w.ellipse(radius * stretch, radius / stretch**0.5, angle)
    distance = distance + (0.22 + 0.3 * w.hard) * w.noise(1.4)
    _draw_chromatin(w, distance, ragged=0.08, density=w.uniform(0.62, 0.8), edge=0.7, grain=0.22)
    w.h += rim_of(distance, 0.4) * np.float32(0.3 * (1 - w.hard) * w.look.dark)


def smudged(w: Window) -> None:
    """A nucleus cut at its edge or crushed: homogeneous, blurred, its outline lost."""
    radius, angle = w.uniform(2.4, 3.6), w.turn()
    stretch = np.exp(abs(w.normal(0, 0.35)))
    distance = w.ellipse(radius * stretch, radius / stretch, angle) + 0.5 * w.noise(1.4)
    _draw_chromatin(w, distance, ragged=0.15, density=w.uniform(0.55, 0.8), edge=1.9, grain=0.06)


def sliver(w: Window) -> None:
    """A dark nucleus seen on its edge, long and smooth with pointed ends: a plate's double."""
    angle, length, width = w.turn(), w.uniform(3.6, 5.6), w.uniform(1.0, 1.7)
    if w.random() < 0.5:
        _draw_round_body(w, length + w.uniform(0.6, 1.6), angle + w.normal(0, 0.3))
    lens = w.ellipse(length * 1.1, width, angle)
    blunt = w.bar(length, w.meet(width, 1.9), angle, w.normal(0, 0.02))
    distance = lens * np.float32(1 - w.hard) + blunt * np.float32(w.hard) + 0.15 * w.noise(1.4)
    _draw_chromatin(w, distance, ragged=0.08, density=w.uniform(0.75, 0.95), edge=0.6, grain=0.1)


MITOTIC = {"prometaphase": prometaphase, "metaphase": metaphase, "ring": ring, "anaphase": anaphase}
LOOK_ALIKE = {
    "pyknotic": pyknotic,
    "apoptotic": apoptotic,
    "hyperchromatic": hyperchromatic,
    "smudged": smudged,
    "sliver": sliver,
}
SHAPES = {
    **MITOTIC,
    **LOOK_ALIKE,
    "tumour": tumour,
    "lymphocyte": lymphocyte,
    "spindle": spindle,
    "vessel": vessel,
    "vacuole": vacuole,
}
REACH_UM = {"lymphocyte": 5, "spindle": 9, "vessel": 12, "vacuole": 14}  # of the rest: 11
NUCLEI = ("background", "tumour", "lymphocyte", "spindle")
"""Classes of a canvas's ``truth`` by their value; what isn't named is background."""


def draw(
    canvas: Canvas,
    centre_px: Sequence[float],
    kind: str,
    rng: np.random.Generator,
    look: Look,
    angle: float = 0.0,
    hard: float = 0.0,
) -> None:
    """Draw a cell at (x, y), one of `SHAPES`, and its nucleus into the canvas's ``truth``.

    angle: of the fibres there. Dying and dividing cells are background in ``truth``: their
    chromatin has no outline.
    """
    reach_um = look.radius_um * 2.2 if kind == "tumour" else REACH_UM.get(kind, 11)
    value = NUCLEI.index(kind) if kind in NUCLEI else 0
    SHAPES[kind](Window(canvas, centre_px, reach_um, rng, look, angle, hard, value))
