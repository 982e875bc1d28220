"""The tissue rule on what slides show besides tissue, and the mask's exact shares."""

from pathlib import Path

import numpy as np
import pytest

from mfcore.data.slides import tissue
from mfcore.data.slides.slide import open_slide
from mfcore.data.synthetic.slides import write_pyramid

REAL = Path(__file__).parents[3].parent / "shared" / "data" / "slides"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real slides of ../shared/data are not here")
GLASS, PINK, PURPLE = (244, 243, 245), (228, 160, 190), (120, 70, 150)
UM = 8.0  # a px of these thumbnails


def thumbnail(height=120, width=160, colour=GLASS, seed=0):
    """Glass with a scanner's noise."""
    noise = np.random.default_rng(seed).integers(-3, 4, (height, width, 1)) + np.zeros((1, 1, 3), int)
    return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)


def with_box(image, colour, rows=slice(30, 70), columns=slice(40, 100)):
    """The same with a box of one colour."""
    image[rows, columns] = thumbnail(colour=colour, seed=1)[rows, columns]
    return image


@pytest.mark.parametrize("colour", [PINK, PURPLE])
def test_stained_tissue_is_found_to_its_edge(colour):
    """A box of tissue on glass: all of it but for the reach of the averaging."""
    found = tissue.find(with_box(thumbnail(), colour), UM)
    assert found[30:70, 40:100].all()
    found[28:72, 38:102] = False
    assert not found.any()


@pytest.mark.parametrize(
    ("colour", "what"),
    [
        (GLASS, "glass"),
        ((255, 255, 255), "white"),
        ((10, 8, 12), "a black border"),
        ((150, 150, 150), "grey dust"),
        ((30, 150, 90), "green ink"),
        ((40, 60, 190), "blue ink"),
    ],
)
def test_what_is_no_tissue_isnt_found(colour, what):
    """Alone on a slide, and beside tissue."""
    assert not tissue.find(with_box(thumbnail(), colour), UM).any(), what
    both = with_box(with_box(thumbnail(), colour), PINK, slice(80, 110), slice(40, 100))
    found = tissue.find(both, UM)
    assert found[80:110, 40:100].all() and not found[:76].any(), what


def test_a_slide_all_of_tissue_is_not_parted_in_two():
    """Otsu alone would call the paler half glass."""
    image = with_box(thumbnail(colour=PINK), PURPLE)
    assert tissue.find(image, UM).all()


def test_tinted_glass_is_glass_beside_tissue():
    """What Otsu is for: the threshold moves above the tint."""
    tinted = (236, 218, 222)
    assert tissue.find(thumbnail(colour=tinted), UM).sum() == 0
    found = tissue.find(with_box(thumbnail(colour=tinted), PURPLE), UM)
    assert found[30:70, 40:100].all() and found.sum() < 64 * 44


def test_specks_go_and_small_holes_are_filled():
    """By their area in um2, not in px."""
    image = with_box(thumbnail(), PURPLE)
    image[10:12, 10:12] = PURPLE  # 16 um wide
    image[48:54, 60:66] = GLASS  # 48 um
    image[34:66, 74:94] = GLASS  # 256 x 160 um
    found = tissue.find(image, UM)
    assert not found[:20].any() and found[48:54, 60:66].all() and not found[40:60, 78:90].any()


def test_otsu_is_the_best_of_all_thresholds():
    """Against every threshold tried, by the variances within the two parts."""
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0.1, 0.03, 700), rng.normal(0.5, 0.1, 300)]).clip(0, 2.9)
    binned = (np.floor(values * 100) + 0.5) / 100
    tried = np.arange(1, 100) / 100
    within = [sum(part.var() * len(part) for part in (binned[binned < t], binned[binned >= t]) if len(part)) for t in tried]
    assert tissue.otsu(values) == pytest.approx(tried[int(np.argmin(within))], abs=0.011)


def test_shares_are_those_of_a_picture_drawn_finely():
    """Against the mask enlarged to whole px, over squares that also reach over its border."""
    rng = np.random.default_rng(0)
    cells = rng.random((13, 21)) < 0.5
    mask = tissue.Look(np.packbits(cells, axis=1), 21, 10.0, 0.25, (210, 130), (1.0,))
    fine = np.kron(cells, np.ones((10, 10)))  # a px a level-0 px
    for _ in range(200):
        side = int(rng.integers(3, 90))
        left, top = rng.integers(-20, 200, 2).tolist()
        expected = fine[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)].sum() / side**2
        assert mask.share(left + side / 2, top + side / 2, side) == pytest.approx(expected, abs=1e-9)
    np.testing.assert_array_equal(mask.cells, cells)


def test_a_slides_mask_lies_where_its_tissue_is(tmp_path):
    """From the file to the mask, whichever level the thumbnail comes from; glass alone is refused."""
    image = np.full((2000, 1501, 3), 245, np.uint8)
    image[400:1200, 500:1300] = PINK
    write_pyramid(tmp_path / "a.tif", image, 0.25)
    with open_slide(tmp_path / "a.tif") as slide:
        mask = tissue.look_at(slide)
        assert mask.share(900, 800, 780) > 0.999
        assert mask.share(250, 800, 400) == 0 and mask.share(900, 1500, 400) == 0
        assert mask.cells.sum() * mask.cell_l0_px**2 == pytest.approx(800**2, rel=0.2)
        thumbnail = tissue.thumbnail_of(slide, 16.0)
    assert thumbnail.shape == (32, 24, 3)
    assert np.abs(thumbnail[8:17, 9:19].astype(int) - PINK).max() < 12 and thumbnail[22:].min() > 225
    write_pyramid(tmp_path / "b.tif", np.full((600, 600, 3), 245, np.uint8), 0.25)
    with open_slide(tmp_path / "b.tif") as slide, pytest.raises(tissue.TissueError, match=r"b\.tif: no tissue"):
        tissue.look_at(slide)


@needs_real
def test_a_real_slide():
    """The strip: muscle at the bottom is tissue, glass at the top isn't; the mask takes what it says."""
    with open_slide(REAL / "canine_strip.tif") as slide:
        mask = tissue.look_at(slide)
    assert mask.share(3000, 5200, 400) > 0.95 and mask.share(3000, 1500, 2500) == 0
    assert 0.1 < mask.cells.mean() < 0.35
    assert mask.bits.nbytes <= tissue.N_CELLS**2 // 8
