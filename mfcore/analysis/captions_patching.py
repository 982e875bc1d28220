"""Captions of the figures of patches drawn online, every number computed."""

import pandas as pd
from scipy import stats

from mfcore.analysis.captions import of_what
from mfcore.study.config import OnlinePatches, Settings

LEAST_EXPECTED = 5  # of a slide, for the chi-square test to hold


def places(study: Settings, settings: OnlinePatches, drawn: pd.DataFrame, slides: pd.DataFrame, slide_id: str) -> str:
    """Caption of where patches lie. drawn: slide_id, tissue of each draw; slides: as `Source.overview`."""
    whole = slides[slides["tissue_mm2"] > 0]
    n_failed = len(slides) - len(whole)
    failed = f" {n_failed} slide{'s were' if n_failed > 1 else ' was'} left out." if n_failed else ""
    n_here, mm2 = int((drawn["slide_id"] == slide_id).sum()), whole["tissue_mm2"].sum()
    return (
        f"**Where patches are drawn** ({of_what(study)}). Left: slide {slide_id}, its tissue outlined where glass borders on "
        f"it, and the {n_here} patches drawn there. Right: how many of {len(drawn):,} draws "
        f"fell on each of {len(whole)} slides, {mm2:.3g} mm² of tissue. Patches of {settings.size_px} px hold "
        f"{100 * drawn['tissue'].min():.0f} % tissue or more ({100 * settings.min_tissue:.0f} % asked), uniform over "
        f"{settings.uniform_over}; "
        f"{against(drawn, whole)}.{failed}"
    )


def against(drawn: pd.DataFrame, slides: pd.DataFrame) -> str:
    """How the draws by slide compare with what is asked: chi-square against each slide's ``draw_share``."""
    expected = (slides["draw_share"] / slides["draw_share"].sum() * len(drawn)).to_numpy()
    counts = drawn["slide_id"].value_counts().reindex(slides["slide_id"], fill_value=0).to_numpy()
    if len(expected) < 2 or expected.min() < LEAST_EXPECTED:
        return "too few draws for a test by slide"
    found = stats.chisquare(counts, expected)
    return f"by slide, chi-square {found.statistic:.1f} at {len(expected) - 1} degrees of freedom (p = {found.pvalue:.2f})"


def contact_sheet(study: Settings, drawn: pd.DataFrame, seconds: float) -> str:
    """Caption of the patches themselves; ``seconds``: that reading all of ``drawn`` took."""
    resolutions = ", ".join(f"{value:g}" for value in sorted(drawn["um_per_px"].unique()))
    return (
        f"**Patches as they are drawn**, {resolutions} µm/px ({of_what(study)}). {len(drawn):,} patches from "
        f"{drawn['slide_id'].nunique()} slides were read in {seconds:.1f} s, {len(drawn) / max(seconds, 1e-9):,.0f} a second; "
        "none is stored."
    )


def slides_table(slides: pd.DataFrame) -> pd.DataFrame:
    """What is kept of the slides, all together, and those that failed: a table of two columns to show."""
    failed = slides[slides["failure"] != ""]
    rows = [
        ("slides", f"{len(slides)}"),
        ("tissue", f"{slides['tissue_mm2'].sum():.3g} mm², {100 * slides['tissue_share'].mean():.0f} % of a slide on average"),
        ("kept of a slide", f"{slides['bytes'].mean():,.0f} bytes on average, {slides['bytes'].max():,} at most"),
        *(
            (f"{'failed in part' if row.tissue_mm2 else 'left out'}: {row.slide_id}", row.failure)
            for row in failed.itertuples()
        ),
    ]
    return pd.DataFrame(rows, columns=["what", "value"])
