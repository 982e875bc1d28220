"""The tumour domains of the synthetic slides: tissue, stain and scanner of each."""

import functools
from importlib import resources

import pandas as pd
import yaml

from mfcore.store.options import options


@options
class Look:
    """How cells look in one domain.

    radius_um, radius_sd: tumour nuclei, mean and relative spread. chromatin: contrast of the
    clumps; grain_um: their size. rim: darkness of the nuclear membrane. n_nucleoli: mean number. h:
    amount of haematoxylin of an interphase nucleus. dark: amount of condensed chromatin.
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


@options
class Domain:
    """One tumour domain: its share of the annotations, its tissue, its stains, its scanner.

    share: of all annotations. positive: share of mitotic figures among them. spacing_um: smallest
    distance between tumour nuclei. stroma, gap: shares of the area. lymphocytes: share among the
    stroma's cells. cytoplasm: amounts (h, e); granules: contrast of its texture. haematoxylin,
    eosin: optical density of one unit of stain in red, green, blue. white: the scanner's
    background. blur_um: standard deviation of its blur. sharpen: its overshoot. look_alikes:
    weights of pyknotic, apoptotic, hyperchromatic, smudged, sliver.
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


@functools.cache
def all_domains() -> tuple[Domain, ...]:
    """The domains of ``domains.yaml``, in its order."""
    entries = yaml.safe_load(
        (resources.files("mfcore.data.synthetic") / "domains.yaml").read_text(encoding="utf-8")
    )
    return tuple(Domain(**entry) for entry in entries)


def scanned() -> pd.DataFrame:
    """``slide_id`` and ``um_per_px`` of the slides of each domain, a row a domain."""
    rows = [(f"those of {one.name}", one.um_per_px) for one in all_domains()]
    return pd.DataFrame(rows, columns=["slide_id", "um_per_px"])
