"""The five tumour domains of the synthetic slides: tissue, stain and scanner of each.

Names, scanners, um/px, and the shares of annotations and mitotic figures follow MIDOG 2022 (Aubreville et al. 2023), whose
breast cancers came from three scanners, here one; stains, textures and nuclei were chosen by eye beside real patches.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """How cells look in one domain.

    radius_um, radius_sd: tumour nuclei, mean and relative spread. chromatin: contrast of the clumps; grain_um: their
    size. rim: darkness of the nuclear membrane. n_nucleoli: mean number. h: amount of haematoxylin of an interphase
    nucleus. dark: amount of condensed chromatin.
    """

    radius_um: float
    radius_sd: float
    elongation: float
    chromatin: float
    grain_um: float
    rim: float
    n_nucleoli: float
    h: float
    dark: float


@dataclass(frozen=True)
class Domain:
    """One tumour domain: its share of the annotations, its tissue, its stains, its scanner.

    share: of all annotations. positive: share of mitotic figures among them. spacing_um: smallest distance between tumour
    nuclei. stroma, gap: shares of the area. lymphocytes: share among the stroma's cells. cytoplasm: amounts (h, e);
    granules: contrast of its texture. haematoxylin, eosin: optical density of one unit of stain in red, green, blue.
    white: the scanner's background. blur_um: standard deviation of its blur. sharpen: its overshoot.
    look_alikes: weights of pyknotic, apoptotic, hyperchromatic, smudged, sliver.
    """

    name: str
    scanner: str
    um_per_px: float
    share: float
    positive: float
    spacing_um: float
    stroma: float
    gap: float
    lymphocytes: float
    cytoplasm: tuple[float, float]
    granules: float
    look: Look
    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    white: tuple[float, float, float]
    blur_um: float
    sharpen: float
    look_alikes: tuple[float, float, float, float, float]


DOMAINS = (
    Domain(
        name="human breast cancer",
        scanner="Hamamatsu S360",
        um_per_px=0.2294,
        share=0.22,
        positive=0.40,
        spacing_um=9.6,
        stroma=0.34,
        gap=0.06,
        lymphocytes=0.25,
        cytoplasm=(0.13, 0.30),
        granules=0.10,
        look=Look(4.3, 0.15, 0.13, 0.30, 0.8, 0.7, 1.2, 0.62, 1.42),
        haematoxylin=(0.62, 0.68, 0.34),
        eosin=(0.12, 0.72, 0.38),
        white=(244, 242, 245),
        blur_um=0.20,
        sharpen=0.0,
        look_alikes=(0.24, 0.20, 0.24, 0.18, 0.14),
    ),
    Domain(
        name="canine lung cancer",
        scanner="3DHistech Pannoramic Scan II",
        um_per_px=0.2483,
        share=0.15,
        positive=0.47,
        spacing_um=9.0,
        stroma=0.22,
        gap=0.13,
        lymphocytes=0.2,
        cytoplasm=(0.10, 0.34),
        granules=0.13,
        look=Look(4.0, 0.13, 0.10, 0.36, 0.45, 0.8, 1.0, 0.58, 1.35),
        haematoxylin=(0.72, 0.66, 0.28),
        eosin=(0.20, 0.70, 0.28),
        white=(238, 240, 246),
        blur_um=0.17,
        sharpen=0.6,
        look_alikes=(0.18, 0.28, 0.18, 0.16, 0.20),
    ),
    Domain(
        name="canine lymphoma",
        scanner="3DHistech Pannoramic Scan II",
        um_per_px=0.2483,
        share=0.28,
        positive=0.48,
        spacing_um=6.9,
        stroma=0.05,
        gap=0.03,
        lymphocytes=0.7,
        cytoplasm=(0.20, 0.26),
        granules=0.08,
        look=Look(3.1, 0.12, 0.08, 0.38, 0.45, 0.6, 1.4, 0.72, 1.38),
        haematoxylin=(0.66, 0.76, 0.38),
        eosin=(0.24, 0.62, 0.24),
        white=(241, 238, 246),
        blur_um=0.25,
        sharpen=0.3,
        look_alikes=(0.32, 0.30, 0.18, 0.16, 0.04),
    ),
    Domain(
        name="canine cutaneous mast cell tumor",
        scanner="Aperio ScanScope CS2",
        um_per_px=0.2533,
        share=0.19,
        positive=0.60,
        spacing_um=10.2,
        stroma=0.20,
        gap=0.07,
        lymphocytes=0.15,
        cytoplasm=(0.17, 0.34),
        granules=0.26,
        look=Look(4.0, 0.11, 0.07, 0.26, 0.8, 0.5, 0.7, 0.55, 1.45),
        haematoxylin=(0.55, 0.66, 0.42),
        eosin=(0.13, 0.70, 0.45),
        white=(240, 238, 233),
        blur_um=0.22,
        sharpen=0.4,
        look_alikes=(0.26, 0.16, 0.16, 0.24, 0.18),
    ),
    Domain(
        name="human neuroendocrine tumor",
        scanner="Hamamatsu XR",
        um_per_px=0.2263,
        share=0.16,
        positive=0.29,
        spacing_um=8.2,
        stroma=0.27,
        gap=0.05,
        lymphocytes=0.15,
        cytoplasm=(0.09, 0.26),
        granules=0.09,
        look=Look(3.5, 0.08, 0.08, 0.42, 0.45, 0.4, 0.2, 0.60, 1.22),
        haematoxylin=(0.58, 0.60, 0.27),
        eosin=(0.09, 0.60, 0.38),
        white=(247, 245, 243),
        blur_um=0.30,
        sharpen=0.0,
        look_alikes=(0.26, 0.10, 0.30, 0.22, 0.12),
    ),
)
