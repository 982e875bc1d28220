"""Cells of the synthetic slides, drawn into layers of haematoxylin and eosin on a window around
each cell.

Amounts of stain are optical densities. Mitotic figures and look-alikes get their `hard` in [0, 1]:
at 0 they are as in a textbook, towards 1 outline, focus, darkness and cytoplasm of both classes
meet in the middle.
"""

import numpy as np

from mfcore.data.synthetic.canvas import Window, cover
from mfcore.data.synthetic.domains import Look


def interphase(w: Window, look: Look) -> None:
    """A vesicular nucleus: uneven membrane, mottled chromatin, nucleoli; each as dark, as round and
    as sharp as it likes.
    """
    rng = w.rng
    radius = look.radius_um * np.exp(rng.normal(0, look.radius_sd))
    stretch = np.exp(abs(rng.normal(0, look.elongation)))
    angle = w.turn()
    distance = w.ellipse(radius * stretch**0.5, radius * stretch**-0.5, angle)
    distance = distance + np.float32(0.13 * radius) * w.noise(2.6) + 0.12 * w.noise(0.8)
    level = look.h * np.exp(rng.normal(0, 0.25))
    mottle = np.clip(w.noise(look.grain_um), -0.9, 2.4) + 0.4 * w.noise(0.25)
    chromatin = level * (rng.uniform(0.6, 0.95) + look.chromatin * rng.uniform(0.5, 1.3) * mottle)
    rim = np.exp(-(((distance + 0.3) / rng.uniform(0.3, 0.5)) ** 2)) * np.clip(
        1 + 0.5 * w.noise(0.8), 0.2, 2
    )
    chromatin += level * look.rim * rng.uniform(0.5, 1.2) * rim
    for _ in range(min(rng.poisson(look.n_nucleoli), 3)):
        far, turn = radius * 0.55 * rng.random() ** 0.5, rng.uniform(0, 2 * np.pi)
        size = rng.uniform(0.45, 0.9)
        spot = cover(
            w.ellipse(size, size * 0.85, turn, far * np.cos(turn), far * np.sin(turn)), 0.6
        )
        chromatin += spot * np.float32(level * rng.uniform(0.5, 1.0))
    focus = 0.5 + 1.3 * rng.random() ** 2
    w.paint(cover(distance, focus), np.maximum(chromatin, 0.1), w.e * rng.uniform(0.65, 0.95))


def lymphocyte(w: Window, look: Look) -> None:
    """A small round dark nucleus with clumped chromatin and hardly any cytoplasm."""
    rng = w.rng
    radius = rng.uniform(2.3, 3.0)
    distance = w.ellipse(radius * rng.uniform(1, 1.15), radius, w.turn()) + 0.18 * w.noise(1.4)
    level = look.dark * rng.uniform(0.5, 0.72)
    w.paint(cover(distance, 0.6), level * (1 + 0.22 * np.clip(w.noise(0.45), -1.5, 1.5)), w.e * 0.7)


def spindle(w: Window, look: Look, angle: float) -> None:
    """A fibroblast's or endothelial nucleus, long and thin, along the fibres."""
    rng = w.rng
    length, width = rng.uniform(3.8, 7.5), rng.uniform(0.9, 2.1)
    angle, pointed = angle + rng.normal(0, 0.25), np.float32(rng.uniform(0.4, 1))
    distance = pointed * w.ellipse(length, width, angle) + (1 - pointed) * w.bar(
        length, width, angle, rng.normal(0, 0.015)
    )
    distance = distance + 0.3 * w.noise(1.4)
    level = look.h * rng.uniform(0.8, 1.7)
    chromatin = level * (0.9 + 0.25 * np.clip(w.noise(0.45), -1.5, 2)) + level * 0.3 * np.exp(
        -(((distance + 0.3) / 0.35) ** 2)
    )
    w.paint(cover(distance, 0.6), chromatin, w.e * 0.8)


def red_cells(w: Window, radius_um: float, n: int) -> None:
    """A small vessel: a clear space with ``n`` red cells in it."""
    rng = w.rng
    squeeze, angle = rng.uniform(0.45, 0.95), w.turn()
    lumen = cover(w.ellipse(radius_um, radius_um * squeeze, angle) + 0.5 * w.noise(2.6), 0.7)
    w.paint(lumen, 0.01, 0.03)
    for _ in range(n):
        far, turn = radius_um * 0.75 * rng.random() ** 0.5, rng.uniform(0, 2 * np.pi)
        along, across = far * np.cos(turn), far * np.sin(turn) * squeeze
        x_um = along * np.cos(angle) - across * np.sin(angle)
        y_um = along * np.sin(angle) + across * np.cos(angle)
        distance = w.ellipse(rng.uniform(1.9, 2.7), rng.uniform(1.7, 2.4), w.turn(), x_um, y_um)
        hollow = 1 - 0.3 * np.exp(-(((distance + 2) / 0.9) ** 2))
        w.paint(cover(distance, 0.5), 0.02, rng.uniform(0.5, 0.75) * hollow)


def vacuole(w: Window, radius_um: float) -> None:
    """A clear round hole: fat, mucin, or a shrinkage artefact."""
    distance = w.ellipse(radius_um, radius_um * w.rng.uniform(0.75, 1), w.turn())
    w.paint(cover(distance + 0.3 * w.noise(2.6), 0.8), 0.0, 0.02)


def _meet(easy: float, middle: float, hard: float) -> float:
    """From the textbook's value to the one that both classes share."""
    return easy + (middle - easy) * hard


def _draw_body(
    w: Window, a_um: float, b_um: float, angle: float, e: float, h: float, halo: float
) -> None:
    """The cell around condensed chromatin: its cytoplasm, and the cleft of shrinkage around it.

    a_um, b_um, angle: half-axes and turn. e, h: eosin and haematoxylin relative to the
    surroundings. halo: width in um.
    """
    distance = w.ellipse(a_um, b_um, angle) + 0.6 * w.noise(2.6) + 0.2 * w.noise(0.8)
    if halo > 0:
        along, across = w.turned(w.rng.uniform(0, 2 * np.pi))
        # wider on one side
        side = along / (np.abs(along) + np.abs(across) + 1) + 0.7 * w.noise(2.6)
        cleft = cover(distance - np.float32(halo) * (np.float32(0.35) + side), 0.7) * (
            1 - cover(distance, 0.7)
        )
        w.paint(cleft * np.float32(w.rng.uniform(0.6, 1)), 0.02, 0.04)
    inside = cover(distance, w.rng.uniform(0.7, 1.8)) * np.clip(0.85 + 0.1 * w.noise(1.4), 0, 1)
    e_around, h_around = float(np.median(w.e)), float(np.median(w.h))
    speckle = 1 + 0.14 * w.noise(0.45) + 0.12 * w.noise(1.4)
    w.paint(
        inside,
        np.clip(h_around * h, 0.03, 0.3) * speckle,
        np.clip(e_around * e, 0.06, 0.85) * speckle,
    )


def _chromatin(
    w: Window,
    look: Look,
    distance: np.ndarray,
    hard: float,
    *,
    ragged: float,
    density: float,
    edge: float,
    grain: float,
) -> None:
    """Paint condensed chromatin: its outline roughened by ``ragged`` um, ``density`` of the
    domain's darkest.
    """
    rough = _meet(ragged, 0.36, hard)
    distance = distance + rough * w.noise(0.8) + rough * 0.5 * w.noise(0.45)
    level = look.dark * _meet(density, 0.86, hard) * np.exp(w.rng.normal(0, 0.07))
    level = level * (1 + _meet(grain, 0.13, hard) * np.clip(w.noise(0.45), -2, 1.2))
    w.paint(cover(distance, _meet(edge, 0.75, hard)), level, w.e * 0.6)


def _round_body(w: Window, hard: float, reach_um: float, angle: float) -> None:
    """A dividing cell's body: rounded, its cytoplasm cleared, at times with a cleft around it."""
    rng = w.rng
    b = max(reach_um * rng.uniform(0.85, 1.0), 5.0)
    halo = w.halo(0.25, 0.4, 1.5)
    _draw_body(
        w,
        max(reach_um, b),
        b,
        angle,
        _meet(rng.uniform(0.4, 1.05), 1.0, hard),
        rng.uniform(0.5, 1.1),
        halo,
    )


def prometaphase(w: Window, look: Look, hard: float) -> None:
    """A knobbly clump of condensed chromosomes without a membrane, in places falling apart into
    threads.
    """
    rng = w.rng
    radius = rng.uniform(2.7, 3.9)
    _round_body(w, hard, radius + rng.uniform(3.0, 4.4), w.turn())
    distance = w.ellipse(radius * rng.uniform(1, 1.3), radius * rng.uniform(0.75, 1), w.turn())
    distance = distance + 0.7 * (1 - 0.5 * hard) * w.noise(1.4)
    gaps = np.maximum(w.noise(0.8) - (0.5 + 1.2 * hard), 0)
    _chromatin(w, look, distance + gaps * 1.3, hard, ragged=0.5, density=0.97, edge=0.4, grain=0.14)


def metaphase(w: Window, look: Look, hard: float) -> None:
    """A plate seen edge-on: a bar with a ragged outline across a rounded cell."""
    rng = w.rng
    angle, length, width = w.turn(), rng.uniform(3.6, 5.6), rng.uniform(0.95, 1.6)
    width = _meet(width, 2.0, hard)
    _round_body(w, hard, length + rng.uniform(1.4, 2.8), angle + rng.normal(0, 0.3))
    distance = w.bar(length, width, angle, rng.normal(0, 0.016)) + 0.22 * w.noise(1.4)
    _chromatin(w, look, distance, hard, ragged=0.38, density=1.03, edge=0.4, grain=0.1)


def ring(w: Window, look: Look, hard: float) -> None:
    """A plate seen from its pole: a ring or a ragged disc."""
    rng = w.rng
    radius, hole = rng.uniform(3.0, 4.1), rng.uniform(0.7, 1.5)
    _round_body(w, hard, radius + rng.uniform(2.8, 4.0), w.turn())
    stretch = rng.uniform(1, 1.2)
    outer = w.ellipse(radius * stretch, radius / stretch, w.turn()) + 0.35 * w.noise(1.4)
    inner = w.ellipse(
        hole * stretch, hole / stretch, w.turn(), rng.normal(0, 0.4), rng.normal(0, 0.4)
    )
    _chromatin(
        w,
        look,
        np.maximum(outer, -inner - np.float32(1.2 * hard)),
        hard,
        ragged=0.45,
        density=0.93,
        edge=0.45,
        grain=0.16,
    )


def anaphase(w: Window, look: Look, hard: float) -> None:
    """Two sets of chromosomes that have come apart, ana- to telophase; now and then one lags
    between them.
    """
    rng = w.rng
    angle, late = w.turn(), rng.random()
    apart, length = 1.9 + 2.8 * late, rng.uniform(2.5, 3.9) * (1 - 0.15 * late)
    width, bend = _meet(rng.uniform(0.8, 1.3), 1.4, hard), rng.uniform(0.015, 0.06)
    _round_body(w, hard, apart + rng.uniform(1.8, 2.6), angle + np.pi / 2)
    dx, dy = -np.sin(angle) * apart, np.cos(angle) * apart
    tilt = rng.normal(0, 0.12 + 0.15 * hard)
    one = w.bar(length, width, angle + tilt, -bend, dx, dy)
    other = w.bar(length * rng.uniform(0.85, 1.1), width, angle - tilt, bend, -dx, -dy)
    distance = np.minimum(one, other)
    if rng.random() < 0.15:
        distance = np.minimum(
            distance, w.ellipse(0.7, 0.45, angle, rng.normal(0, 1), rng.normal(0, 0.5))
        )
    _chromatin(
        w,
        look,
        distance + 0.22 * w.noise(1.4),
        hard,
        ragged=0.34,
        density=1.0,
        edge=0.45,
        grain=0.1,
    )


def pyknotic(w: Window, look: Look, hard: float) -> None:
    """A shrunken nucleus: small, smooth, evenly dark, in shrunken pink cytoplasm."""
    rng = w.rng
    radius, angle = _meet(rng.uniform(1.7, 2.7), rng.uniform(2.5, 3.3), hard), w.turn()
    stretch = np.exp(abs(rng.normal(0, 0.18 + 0.25 * hard)))
    body = radius + rng.uniform(2.0, 3.4) + 0.6 * hard
    halo = w.halo(_meet(0.4, 0.25, hard), 0.4, 1.6)
    _draw_body(
        w,
        body * 1.15,
        body,
        angle,
        _meet(rng.uniform(0.9, 1.9), 1.0, hard),
        rng.uniform(0.6, 1.2),
        halo,
    )
    distance = w.ellipse(radius * stretch, radius / stretch**0.5, angle) + (
        0.15 + 0.5 * hard
    ) * w.noise(1.4)
    _chromatin(w, look, distance, hard, ragged=0.04, density=1.0, edge=0.5, grain=0.03)


def apoptotic(w: Window, look: Look, hard: float) -> None:
    """A dying cell: round smooth globules of chromatin in a shrunken, deeply pink cell with a cleft
    around it.
    """
    rng = w.rng
    angle, body = w.turn(), rng.uniform(3.8, 5.6)
    halo = w.halo(_meet(0.55, 0.25, hard), 0.5, 1.8)
    _draw_body(
        w,
        body * rng.uniform(1, 1.25),
        body,
        angle,
        _meet(rng.uniform(1.0, 2.2), 1.0, hard),
        rng.uniform(0.6, 1.1),
        halo,
    )
    distance = None
    for index in range(rng.integers(2, 6)):
        size = rng.uniform(1.2, 2.2) if index == 0 else rng.uniform(0.5, 1.3)
        far, turn = (0.5 if index == 0 else rng.uniform(1.2, 2.9)), rng.uniform(0, 2 * np.pi)
        globule = w.ellipse(
            size * rng.uniform(1, 1.2), size, turn, far * np.cos(turn), far * np.sin(turn)
        )
        distance = globule if distance is None else np.minimum(distance, globule)
    distance = distance + 0.3 * hard * w.noise(1.4)
    _chromatin(w, look, distance, hard, ragged=0.03, density=0.98, edge=0.45, grain=0.03)


def hyperchromatic(w: Window, look: Look, hard: float) -> None:
    """A large dark nucleus that keeps its membrane and smooth outline."""
    rng = w.rng
    radius, angle = look.radius_um * rng.uniform(0.75, 1.05), w.turn()
    radius = _meet(radius, 3.3, hard)
    stretch = np.exp(abs(rng.normal(0, 0.2 + 0.15 * hard)))
    if rng.random() < 0.35:
        _round_body(w, hard, radius * stretch + rng.uniform(1.2, 2.4), angle)
    distance = w.ellipse(radius * stretch, radius / stretch**0.5, angle) + (
        0.22 + 0.3 * hard
    ) * w.noise(1.4)
    _chromatin(
        w, look, distance, hard, ragged=0.08, density=rng.uniform(0.62, 0.8), edge=0.7, grain=0.22
    )
    w.h += np.exp(-(((distance + 0.3) / 0.4) ** 2)) * np.float32(0.3 * (1 - hard) * look.dark)


def smudged(w: Window, look: Look, hard: float) -> None:
    """A nucleus cut at its edge or crushed: homogeneous, blurred, its outline lost."""
    rng = w.rng
    radius, angle = rng.uniform(2.4, 3.6), w.turn()
    stretch = np.exp(abs(rng.normal(0, 0.35)))
    distance = w.ellipse(radius * stretch, radius / stretch, angle) + 0.5 * w.noise(1.4)
    _chromatin(
        w, look, distance, hard, ragged=0.15, density=rng.uniform(0.55, 0.8), edge=1.9, grain=0.06
    )


def sliver(w: Window, look: Look, hard: float) -> None:
    """A dark nucleus seen on its edge, long and smooth with pointed ends: a plate's double."""
    rng = w.rng
    angle, length, width = w.turn(), rng.uniform(3.6, 5.6), rng.uniform(1.0, 1.7)
    if rng.random() < 0.5:
        _round_body(w, hard, length + rng.uniform(0.6, 1.6), angle + rng.normal(0, 0.3))
    lens = w.ellipse(length * 1.1, width, angle)
    blunt = w.bar(length, _meet(width, 1.9, hard), angle, rng.normal(0, 0.02))
    distance = lens * np.float32(1 - hard) + blunt * np.float32(hard) + 0.15 * w.noise(1.4)
    _chromatin(
        w, look, distance, hard, ragged=0.08, density=rng.uniform(0.75, 0.95), edge=0.6, grain=0.1
    )


MITOTIC = {"prometaphase": prometaphase, "metaphase": metaphase, "ring": ring, "anaphase": anaphase}
LOOK_ALIKE = {
    "pyknotic": pyknotic,
    "apoptotic": apoptotic,
    "hyperchromatic": hyperchromatic,
    "smudged": smudged,
    "sliver": sliver,
}
