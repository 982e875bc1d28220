"""Small fields of one synthetic tissue, with the class of every nucleus px: what the synthetic
downstream tasks are made of.

Tissues differ in the size, spacing and kind of their cells; stains and scanner vary from slide to
slide more than the tissues differ in colour, so that colour alone doesn't tell them apart.
"""

from dataclasses import dataclass, replace

import numpy as np

from mfcore import streams
from mfcore.data.synthetic import cells
from mfcore.data.synthetic.domains import Domain, all_domains
from mfcore.data.synthetic.tissue import Plan, coarse_at, ground, lay_out, scan

UM_PER_PX = 0.5
RADIUS_UM = 4.2  # of tumour nuclei, in every tissue


@dataclass(frozen=True)
class Tissue:
    """One tissue: the smallest distance between its nuclei, and how often each kind is drawn.

    share: weights of "tumour", "lymphocyte", "spindle" and "dying" in tumour and in stroma. stroma:
    share of the area.
    """

    spacing_um: float
    stroma: float
    in_tumour: tuple[float, float, float, float]
    in_stroma: tuple[float, float, float, float]


KINDS = ("tumour", "lymphocyte", "spindle", "dying")
TISSUES = {
    "tumour": Tissue(9.4, 0.10, (0.90, 0.08, 0.0, 0.02), (0.0, 0.3, 0.7, 0.0)),
    "lymphoid": Tissue(7.4, 0.10, (0.14, 0.84, 0.0, 0.02), (0.0, 0.4, 0.6, 0.0)),
    "stroma": Tissue(7.6, 1.0, (0.0, 0.0, 1.0, 0.0), (0.06, 0.14, 0.78, 0.02)),
    "dying tumour": Tissue(9.4, 0.10, (0.52, 0.08, 0.0, 0.40), (0.0, 0.3, 0.7, 0.0)),
}
MIXED = Tissue(8.8, 0.40, (0.86, 0.14, 0.0, 0.0), (0.0, 0.35, 0.65, 0.0))
"""Tumour, stroma and lymphocytes side by side, for masks with every class."""


def slide_look(seed: int, index: int) -> Domain:
    """Stain, scanner and cell texture of slide ``index``: one of the domains', its stains' amounts
    and hues drawn anew.
    """
    rng = streams.generator(seed, "synthetic", "slide look", index)
    domain = all_domains()[int(rng.integers(len(all_domains())))]
    strength = np.exp(rng.normal(0, 0.30, (2, 1)))
    hues = np.exp(rng.normal(0, 0.16, (2, 3)))
    stains = np.array([domain.haematoxylin, domain.eosin]) * hues * strength
    haematoxylin, eosin = stains.tolist()
    white = np.clip(np.array(domain.white) - rng.uniform(0, 22, 3), 0, 255).tolist()
    return replace(
        domain,
        um_per_px=UM_PER_PX,
        haematoxylin=haematoxylin,
        eosin=eosin,
        white=white,
        blur_um=domain.blur_um * float(np.exp(rng.normal(0.2, 0.3))),
        sharpen=float(rng.choice([0.0, 0.3, 0.6])),
    )


def draw_field(
    seed: int, index: int, tissue: Tissue, look: Domain, side_px: int
) -> tuple[np.ndarray, np.ndarray]:
    """A square field: its pixels uint8 (side_px, side_px, 3), and its nuclei uint8 (side_px,
    side_px), values as in `cells.NUCLEI`.

    The same seed and index give the same field.
    """
    domain = replace(
        look,
        spacing_um=tissue.spacing_um,
        stroma=min(tissue.stroma, 0.6),
        gap=0.03,
        look=replace(look.look, radius_um=RADIUS_UM, radius_sd=0.14),
    )
    plan = Plan(index, domain, side_px, side_px, 0, 0.0)
    layout = lay_out(seed, plan)
    if tissue.stroma == 1:
        layout = replace(
            layout,
            stroma=np.abs(layout.stroma) + 1,
            stroma_px=np.concatenate([layout.tumour_px, layout.stroma_px]),
            tumour_px=layout.tumour_px[:0],
        )
    canvas, angles, rng = ground(seed, plan, layout, 9000)
    for places, share in (
        (layout.stroma_px, tissue.in_stroma),
        (layout.tumour_px, tissue.in_tumour),
    ):
        kinds = rng.choice(KINDS, len(places), p=share).tolist()
        cell_angles = coarse_at(angles, places)
        for at, kind, angle in zip(places.tolist(), kinds, cell_angles, strict=True):
            hard = 0.0
            if kind == "dying":
                kind = "apoptotic" if rng.random() < 0.6 else "pyknotic"
                hard = rng.uniform(0.1, 0.7)
            cells.draw(canvas, at, kind, rng, domain.look, angle, hard)
    return scan(canvas, domain, rng), canvas.truth
