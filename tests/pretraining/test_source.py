"""Patches drawn online: uniform as asked, the same whoever reads them, and going on where slides fail."""

import collections
import contextlib
import json
import re
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy import stats

from mfcore.analysis.encoders import pretraining_run
from mfcore.data.slides import tissue
from mfcore.data.slides.slide import open_slide
from mfcore.data.slides.tiff import TiffReader
from mfcore.data.synthetic.slides import write_pyramid
from mfcore.pretraining import feed, source as stream
from mfcore.pretraining.feed import batches
from mfcore.pretraining.slides import PatchingError, SlideFile
from mfcore.pretraining.source import Source
from mfcore.study import arms as study_arms
from mfcore.study.config import Data, OnlinePatches, Pretraining, Settings
from mfcore.study.study import Study

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "slides"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real slides of ../shared/data are not here")
PINK = (200, 120, 170)
CELL_PX = 16  # of the masks drawn here: 4 um at 0.25 um/px
BOXES = {"a": (6, 4, 30, 20), "b": (20, 10, 12, 30), "c": (0, 0, 16, 12)}  # column, row, width, height in cells
N_COLUMNS, N_ROWS = 64, 48


def textured(box, width=N_COLUMNS * CELL_PX, height=N_ROWS * CELL_PX):
    """Glass with a box of something pink to see, uint8 (height, width, 3)."""
    image = np.full((height, width, 3), 245, np.uint8)
    column, row, n_columns, n_rows = (value * CELL_PX for value in box)
    rng = np.random.default_rng(0)
    coarse = np.kron(rng.integers(-40, 40, (n_rows // 8, n_columns // 8, 3)), np.ones((8, 8, 1), int))
    image[row : row + n_rows, column : column + n_columns] = np.clip(np.array(PINK) + coarse, 0, 255)
    return image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three small slides."""
    place = tmp_path_factory.mktemp("slides")
    for name, box in BOXES.items():
        write_pyramid(place / f"{name}.tif", textured(box), 0.25)
    return place


def looked(slide, cells):
    """A look at a slide that has this mask."""
    bits, levels = np.packbits(cells, axis=1), tuple(slide.reader.downsamples)
    return tissue.Look(bits, cells.shape[1], CELL_PX, 0.25, slide.size_px, levels)


@pytest.fixture
def exact(monkeypatch):
    """Masks that are the boxes, so that what is expected can be worked out."""

    def look_at(slide):
        cells = np.zeros((N_ROWS, N_COLUMNS), bool)
        column, row, width, height = BOXES[slide.path.stem]
        cells[row : row + height, column : column + width] = True
        return looked(slide, cells)

    monkeypatch.setattr(tissue, "look_at", look_at)


def files(folder, names="abc"):
    return [SlideFile(name, str(folder / f"{name}.tif")) for name in names]


def admissible(box, side_px, min_tissue, step=2):
    """On a lattice of centres ``step`` px apart, which a patch of that side may have, bool (n_y, n_x), by overlaps alone."""
    x, y = (np.arange(step / 2, n * CELL_PX, step) for n in (N_COLUMNS, N_ROWS))
    column, row, width, height = (value * CELL_PX for value in box)

    def shared(at, start, length):
        return np.clip(np.minimum(at + side_px / 2, start + length) - np.maximum(at - side_px / 2, start), 0, None)

    enough = np.outer(shared(y, row, height), shared(x, column, width)) / side_px**2 >= min_tissue
    fits = [(at >= side_px / 2) & (at <= n * CELL_PX - side_px / 2) for at, n in ((y, N_ROWS), (x, N_COLUMNS))]
    return enough & np.outer(*fits)


SETTINGS = OnlinePatches(size_px=48, um_per_px=(0.25, 0.5, 0.5, 0.7), min_tissue=0.4)


@pytest.mark.parametrize("uniform_over", ["tissue", "slides"])
def test_draws_are_uniform_as_asked(folder, exact, uniform_over):
    """Slides, resolutions and places, each by chi-square against areas worked out by overlaps of rectangles."""
    settings = OnlinePatches(48, SETTINGS.um_per_px, 0.4, uniform_over)
    with Source(files(folder), settings, 3) as source:
        drawn = [source.draw(i) for i in range(4000)]
        names = [file.slide_id for file in source.slides]
    by_resolution = collections.Counter(one.um_per_px for one in drawn)
    assert stats.chisquare([by_resolution[r] for r in (0.25, 0.5, 0.7)], [1000, 2000, 1000]).pvalue > 0.01
    for um_per_px in (0.25, 0.5, 0.7):
        these = [one for one in drawn if one.um_per_px == um_per_px]
        maps = {name: admissible(box, 48 * um_per_px / 0.25, 0.4) for name, box in BOXES.items()}
        weights = np.array([maps[name].sum() if uniform_over == "tissue" else 1 for name in names], float)
        counts = np.bincount([one.slide for one in these], minlength=3)
        assert stats.chisquare(counts, weights / weights.sum() * len(these)).pvalue > 0.01
        for i, name in enumerate(names):
            here = [one for one in these if one.slide == i]
            x, y = (np.array([getattr(one, f"{axis}_l0_px") for one in here]) for axis in "xy")
            blocks = maps[name].reshape(N_ROWS // 4, 32, N_COLUMNS // 4, 32).sum((1, 3)).ravel()  # 64 px a side
            expected = blocks / blocks.sum() * len(here)
            found = np.bincount((y // 64).astype(int) * (N_COLUMNS // 4) + (x // 64).astype(int), minlength=len(blocks))
            rare = expected < 5
            observed, wanted = np.append(found[~rare], found[rare].sum()), np.append(expected[~rare], expected[rare].sum())
            kept = wanted > 0
            assert stats.chisquare(observed[kept], wanted[kept]).pvalue > 0.005
            assert found[blocks == 0].sum() <= 1  # the lattice is 2 px wide


def test_places_are_as_fine_as_px(folder, exact):
    """Within the mask's cells, too: where nothing is cut on a grid, both coordinates are uniform by Kolmogorov-Smirnov."""
    with Source(files(folder, "b"), OnlinePatches(8, (0.27,), 0.9), 0) as source:
        drawn = [source.draw(i) for i in range(1500)]
    for at, start, n in ((3, BOXES["b"][0], BOXES["b"][2]), (4, BOXES["b"][1], BOXES["b"][3])):
        inner = [one[at] for one in drawn if (start + 1) * CELL_PX < one[at] < (start + n - 1) * CELL_PX]
        assert len(inner) > 1000
        assert stats.kstest([value % CELL_PX / CELL_PX for value in inner], "uniform").pvalue > 0.01


def test_a_failure_elsewhere_doesnt_end_the_draw(folder, tmp_path, exact):
    """Every slide has failed at something; one still has places at this resolution."""
    write_pyramid(tmp_path / "a.tif", np.full((80, 80, 3), 245, np.uint8), 0.25)
    slides = [SlideFile("a", str(tmp_path / "a.tif")), SlideFile("b", str(folder / "b.tif"))]
    source = Source(slides, OnlinePatches(48, (0.25, 0.5), 0.4, "slides"), 0)
    source.failures["b"] = "damaged px"
    assert {source.slides[source.draw(i).slide].slide_id for i in range(30) if source.draw(i).um_per_px == 0.5} == {"b"}


def test_the_check_of_uniformity_can_fail(folder, exact):
    """Uniform over slides isn't uniform over tissue."""
    settings = OnlinePatches(48, (0.25,), 0.4, "slides")
    with Source(files(folder), settings, 3) as source:
        counts = np.bincount([source.draw(i).slide for i in range(1000)], minlength=3)
        weights = np.array([admissible(BOXES[file.slide_id], 48, 0.4).sum() for file in source.slides], float)
    assert stats.chisquare(counts, weights / weights.sum() * 1000).pvalue < 1e-6


def test_every_patch_has_its_share_of_tissue(folder, exact):
    """The share that is said is the share there is, and never less than asked; the patch lies on the slide."""
    with Source(files(folder), SETTINGS, 0) as source:
        for i in range(300):
            one = source.draw(i)
            side, box = 48 * one.um_per_px / 0.25, [v * CELL_PX for v in BOXES[source.slides[one.slide].slide_id]]
            shared = [
                max(0, min(at + side / 2, box[k] + box[k + 2]) - max(at - side / 2, box[k]))
                for k, at in enumerate((one.x_l0_px, one.y_l0_px))
            ]
            assert one.tissue == pytest.approx(shared[0] * shared[1] / side**2, abs=1e-6) and one.tissue >= 0.4 - 1e-6
            assert side / 2 <= one.x_l0_px <= N_COLUMNS * CELL_PX - side / 2


def test_a_place_is_found_where_there_is_but_one(folder, monkeypatch):
    """A slide whose tissue just suffices at one resolution is drawn from there, and left out at the others."""
    cells = np.zeros((N_ROWS, N_COLUMNS), bool)
    cells[10:12, 10:12] = True  # 32 px: 44 % of 48 px, 11 % of 96 px
    monkeypatch.setattr(tissue, "look_at", lambda slide: looked(slide, cells))
    with Source(files(folder, "a"), OnlinePatches(48, (0.25,), 0.4), 0) as source:
        assert all(source.draw(i).tissue >= 0.4 for i in range(20))
    source, said = (
        Source(files(folder, "a"), OnlinePatches(48, (0.5,), 0.4), 0),
        r"48 px with 40% tissue at 0\.5 um/px",
    )
    with pytest.raises(PatchingError, match=said):
        source.read(0)


def test_a_number_is_a_patch_whoever_reads_it(folder):
    """Alone, after others, by another source, in batches of one rank or two, by one or three threads: the same px."""
    fresh = Source(files(folder), SETTINGS, 5)
    alone = {i: fresh.read(i) for i in (37, 3, 20)}
    whole = list(batches(Source(files(folder), SETTINGS, 5), 0, 5, 8, n_workers=3))
    images = np.concatenate([batch.images for batch in whole])
    assert [n for batch in whole for n in batch.drawn["number"]] == list(range(40))
    for i, patch in alone.items():
        np.testing.assert_array_equal(images[i], patch.image)
        row = whole[i // 8].drawn.iloc[i % 8]
        assert (row["slide_id"], row["x_l0_px"], row["tissue"]) == (patch.slide_id, patch.x_l0_px, patch.tissue)
    ranks = [list(batches(Source(files(folder), SETTINGS, 5), 16, 3, 8, rank, 2)) for rank in range(2)]
    for k in range(3):
        both = np.concatenate([ranks[0][k].images, ranks[1][k].images])
        np.testing.assert_array_equal(both, whole[k + 2].images)
    other = Source(files(folder), SETTINGS, 6)
    assert other.draw(0)[1:] != fresh.draw(0)[1:]


def test_of_few_distinct_patches_each_comes_once_a_round(folder, exact):
    """In every round the first n draws of the endless stream, each time in another order."""
    endless = Source(files(folder), SETTINGS, 1)
    few = Source(files(folder), OnlinePatches(48, SETTINGS.um_per_px, 0.4, n_distinct=12), 1)
    wanted = sorted(endless.draw(i)[1:] for i in range(12))
    rounds = [[few.draw(12 * k + i)[1:] for i in range(12)] for k in range(3)]
    assert all(sorted(one) == wanted for one in rounds) and rounds[0] != rounds[1] != rounds[2]
    assert few.draw(14)[1:] == rounds[1][2]  # a round that is gone back to
    assert [few.without_repeats().draw(i) for i in (3, 14, 40)] == [endless.draw(i) for i in (3, 14, 40)]


def test_shares_of_the_slides_are_nested():
    """A smaller share's slides are among a larger one's; another seed chooses others."""
    slides = [SlideFile(f"{i:03d}", "x") for i in range(40)]
    chosen = {f: {s.slide_id for s in Source(slides, OnlinePatches(slide_fraction=f), 0).slides} for f in (0.01, 0.1, 0.3, 1.0)}
    assert [len(ids) for ids in chosen.values()] == [1, 4, 12, 40]
    assert chosen[0.01] < chosen[0.1] < chosen[0.3] < chosen[1.0]
    assert {s.slide_id for s in Source(slides, OnlinePatches(slide_fraction=0.1), 1).slides} != chosen[0.1]
    assert (
        Source(slides[::-1], OnlinePatches(slide_fraction=0.3), 0).slides
        == Source(slides, OnlinePatches(slide_fraction=0.3), 0).slides
    )


def test_px_are_cut_from_the_level_that_has_the_resolution(folder):
    """On the level's own grid, px for px; between levels as slides are read everywhere."""
    levels = [tifffile.imread(folder / "a.tif", key=k) for k in range(3)]
    source = Source(files(folder, "a"), OnlinePatches(48, (0.25, 0.5, 0.7, 1.0), 0.4), 0)
    seen = set()
    with open_slide(folder / "a.tif", with_reduced=True) as slide:
        for i in range(40):
            patch = source.read(i)
            seen.add(patch.um_per_px)
            scale = patch.um_per_px / 0.25
            if patch.um_per_px == 0.7:
                expected = slide.read(patch.x_l0_px, patch.y_l0_px, 48, 0.7)
            else:
                left, top = (centre / scale - 24 for centre in (patch.x_l0_px, patch.y_l0_px))
                assert left == int(left) and top == int(top)
                expected = levels[int(np.log2(scale))][int(top) : int(top) + 48, int(left) : int(left) + 48]
            np.testing.assert_array_equal(patch.image, expected)
    assert seen == {0.25, 0.5, 0.7, 1.0}


def test_a_resolution_between_levels_is_decoded_smaller(tmp_path):
    """From a file without levels, half and a quarter: near the mean over px, and less is decoded for it."""
    image = textured(BOXES["a"])
    write_pyramid(tmp_path / "a.tif", image, 0.25, n_levels=1)
    source = Source(files(tmp_path, "a"), OnlinePatches(48, (0.5, 1.0), 0.4), 0)
    slide = source.open(source.slides[0])
    assert tuple(slide.reader.downsamples) == (1, 2, 4, 8)
    assert slide.reader.level_sizes_px[1:] == ((512, 384), (256, 192), (128, 96))
    whole = tifffile.imread(tmp_path / "a.tif").astype(float)
    for i in range(20):
        patch = source.read(i)
        factor = round(patch.um_per_px / 0.25)
        left, top = (round(centre - 24 * factor) for centre in (patch.x_l0_px, patch.y_l0_px))
        expected = whole[top : top + 48 * factor, left : left + 48 * factor].reshape(48, factor, 48, factor, 3).mean((1, 3))
        difference = patch.image - expected
        assert np.abs(difference.mean()) < 1 and np.abs(difference).mean() < 4


def test_slides_that_fail_are_said_and_left_out(folder, tmp_path, caplog):
    """Missing, cut short, glass alone, of no resolution: each by its own reason; the others are drawn from."""
    content = (folder / "a.tif").read_bytes()
    (tmp_path / "short.tif").write_bytes(content[: len(content) * 2 // 3])
    write_pyramid(tmp_path / "glass.tif", np.full((500, 500, 3), 245, np.uint8), 0.25)
    tifffile.imwrite(tmp_path / "unstated.tif", textured(BOXES["a"]), tile=(64, 64), photometric="rgb")
    (tmp_path / "text.tif").write_text("no slide")
    bad = files(tmp_path, ["missing", "short", "glass", "unstated", "text"])
    for uniform_over in ("tissue", "slides"):
        source = Source([*bad, *files(folder)], OnlinePatches(48, (0.25,), 0.4, uniform_over), 0)
        batch = next(batches(source, 0, 1, 64, n_workers=2))
        assert set(batch.drawn["slide_id"]) == {"a", "b", "c"}
        said = {
            "missing": "no such slide",
            "short": "cut short",
            "glass": "no tissue",
            "unstated": "um/px",
            "text": "not a format",
        }
        assert source.failures.keys() == said.keys()
        assert all(reason in source.failures[name] for name, reason in said.items())
        assert source.left_out == source.failures
    assert "slide glass is left out" in caplog.text
    only = Source(bad, SETTINGS, 0)
    with pytest.raises(PatchingError, match=r"(?s)from 5 slides, 5 of them failed; .*glass\.tif: no tissue"):
        only.read(0)
    with pytest.raises(PatchingError, match="no slides"):
        Source([], SETTINGS, 0)


@pytest.mark.parametrize(
    ("where", "error"),
    [("mfcore.pretraining.slides.open_slide", TypeError), ("mfcore.data.slides.tissue.thumbnail_of", MemoryError)],
)
def test_a_header_that_says_nonsense_costs_its_slide_alone(folder, monkeypatch, where, error):
    """Readers raise whatever a damaged header leads them to: a size that is a list, an image of terabytes."""
    import importlib

    place, name = where.rsplit(".", 1)
    original = getattr(importlib.import_module(place), name)

    def nonsense(slide, *more, **others):
        if Path(getattr(slide, "path", slide)).stem == "a":
            raise error("a tuple, not a number")
        return original(slide, *more, **others)

    monkeypatch.setattr(where, nonsense)
    source = Source(files(folder), OnlinePatches(48, (0.25,), 0.4), 0)
    assert set(next(batches(source, 0, 1, 32)).drawn["slide_id"]) == {"b", "c"}
    assert "a tuple, not a number" in source.failures["a"]


def test_damaged_px_are_drawn_anew(folder, tmp_path, caplog):
    """A tile that can't be decoded costs its patches, not the training; the other numbers' patches stay as they were."""
    settings = OnlinePatches(48, (0.25,), 0.4)
    with tifffile.TiffFile(folder / "a.tif") as tiff:
        page = tiff.pages[0]
        k = int(np.argsort(page.databytecounts)[-2])  # not the one that is tried on opening
    content = bytearray((folder / "a.tif").read_bytes())
    content[page.dataoffsets[k] : page.dataoffsets[k] + page.databytecounts[k]] = bytes(page.databytecounts[k])
    (tmp_path / "a.tif").write_bytes(content)
    whole, damaged = (Source(files(place, "a"), settings, 0) for place in (folder, tmp_path))
    expected, got = (next(batches(source, 0, 1, 60)) for source in (whole, damaged))
    same = (expected.drawn["x_l0_px"] == got.drawn["x_l0_px"]).to_numpy()
    assert 0 < same.sum() < 60
    np.testing.assert_array_equal(expected.images[same], got.images[same])
    assert "damaged" in damaged.failures["a"] and damaged.left_out == {}
    assert "a has px that can't be read" in caplog.text and "left out" not in caplog.text
    again = damaged.read(int(np.flatnonzero(~same)[0]))
    np.testing.assert_array_equal(again.image, got.images[~same][0])


def test_where_no_px_can_be_read_the_draw_ends(folder, tmp_path, monkeypatch):
    """All tissue is damaged, or the disk has gone: said with its reasons, not tried for ever."""
    monkeypatch.setattr(stream, "MAX_FAILED", 20)
    slides = [SlideFile(name, str(tmp_path / f"{name}.tif")) for name in "ab"]
    for file in slides:
        Path(file.path).write_bytes((folder / f"{file.slide_id}.tif").read_bytes())
    source = Source(slides, OnlinePatches(48, (0.25,), 0.4), 0).survey()
    source.close()
    for file in slides:
        Path(file.path).unlink()
    for read in (lambda: source.read(0), lambda: next(batches(source, 0, 1, 8))):
        with pytest.raises(PatchingError, match=r"none of 20 places for patch \d .*[ab]\.tif: no such slide"):
            read()


def test_a_slide_too_coarse_is_not_enlarged(folder):
    """0.5 um/px has nothing to show at 0.25."""
    slides = [SlideFile("a", str(folder / "a.tif"))]
    source = Source(slides, OnlinePatches(48, (0.1, 0.25), 0.4, "slides"), 0)
    with pytest.raises(PatchingError, match=r"(?s)at 0\.1 um/px.*patches\.um_per_px"):
        [source.draw(i) for i in range(20)]
    assert "at 0.1 um/px on a slide of 0.25" in source.failures["a"] and source.left_out == {}


def test_what_a_slide_lacks_is_said_with_what_to_change(folder):
    """Too fine for it, or too wide for its tissue: each resolution by its own reason."""
    slides = [SlideFile("a", str(folder / "a.tif"))]
    source = Source(slides, OnlinePatches(48, (0.1, 0.25, 5.0), 0.4), 0).survey()
    assert re.search(
        r"no place for a patch of 48 px with 40% tissue at 0\.1, 5 um/px on a slide of 0\.25, which is enlarged 1\.5 times at "
        r"most; lower patches\.min_tissue or patches\.size_px, or name others in patches\.um_per_px$",
        source.failures["a"],
    )


def test_open_slides_are_bounded(folder, monkeypatch):
    """Two stay open of three, whichever are read; px are the same."""
    settings = OnlinePatches(48, (0.25,), 0.4)
    many = Source(files(folder), settings, 0)
    monkeypatch.setattr(stream, "MAX_OPEN", 2)
    two = Source(files(folder), settings, 0)
    for batch, other in zip(batches(many, 0, 4, 16), batches(two, 0, 4, 16, n_workers=2), strict=True):
        np.testing.assert_array_equal(batch.images, other.images)
    assert two.open.cache_info().currsize <= 2 and many.open.cache_info().currsize == 3
    many.close()
    two.close()
    assert not many.open.cache_info().currsize and not two.open.cache_info().currsize
    np.testing.assert_array_equal(many.read(0).image, two.read(0).image)


def test_a_slide_in_use_is_not_closed(folder, monkeypatch):
    """However many others are opened meanwhile; a slide that nobody uses is."""
    monkeypatch.setattr(stream, "MAX_OPEN", 1)
    closed, source = [], Source(files(folder), SETTINGS, 0)
    close = TiffReader.close
    monkeypatch.setattr(TiffReader, "close", lambda reader: (closed.append(reader), close(reader)))
    a, b, c = files(folder)
    slide = source.open(a)
    second = source.open(b).reader
    source.open(c)
    assert closed == [second] and slide.read(100, 100, 8).shape == (8, 8, 3)
    first = slide.reader
    del slide
    assert closed == [second, first]


def test_slides_of_a_study_are_its_own_or_those_named(folder, tmp_path):
    """By the label file, with what the study says of um/px; or every slide below a folder."""
    (tmp_path / "images").mkdir()
    for name in "ab":
        (tmp_path / "images" / f"{name}.tif").write_bytes((folder / f"{name}.tif").read_bytes())
    boxes = [
        {"id": i, "image_id": i % 2, "bbox": [100 + 60 * i, 100, 150 + 60 * i, 150], "category_id": 1 + i // 2, "labels": [1]}
        for i in range(4)
    ]
    images = [
        {"id": i, "file_name": f"{n}.tif", "width": 1024, "height": 768, "tumor_type": "t", "scanner": n}
        for i, n in enumerate("ab")
    ]
    (tmp_path / "annotations.json").write_text(json.dumps({"images": images, "annotations": boxes}))
    study = Settings(name="s", title="s", data=Data(source="midog", um_per_px=0.3, um_per_px_by_scanner={"b": 0.2}))
    own = study_arms.slides_of(study, Pretraining("p"), tmp_path)
    assert [(Path(file.path), file.um_per_px, file.scanner) for file in own] == [
        (tmp_path / "images" / "a.tif", 0.3, "a"),
        (tmp_path / "images" / "b.tif", 0.2, "b"),
    ]
    named = study_arms.slides_of(study, Pretraining("p", slides=str(folder)), tmp_path)
    assert [(file.slide_id, Path(file.path)) for file in named] == [(f"{n}.tif", folder / f"{n}.tif") for n in "abc"]
    assert {(file.um_per_px, file.scanner) for file in named} == {(0.3, "")}
    (tmp_path / "one" / "sub").mkdir(parents=True)
    for name in ("a.tif", "._a.tif", "sub/.a.tif"):  # macOS lays such files beside others
        (tmp_path / "one" / name).write_bytes((folder / "a.tif").read_bytes())
    for place in ("one/", "one/a.tif"):
        (only,) = study_arms.slides_of(study, Pretraining("p", slides=place), tmp_path)
        assert (only.slide_id, Path(only.path)) == ("a.tif", tmp_path / "one" / "a.tif"), "no machine's path is in its name"
    with pytest.raises(PatchingError, match="no slide below it"):
        (tmp_path / "empty").mkdir()
        study_arms.slides_of(study, Pretraining("p", slides=str(tmp_path / "empty")), tmp_path)


def test_what_is_said_of_a_folder_without_um_per_px_mends_it(tmp_path):
    """Slides below a folder are of no scanner that the study knows."""
    (tmp_path / "slides").mkdir()
    tifffile.imwrite(tmp_path / "slides" / "a.tif", textured(BOXES["a"]), photometric="rgb", tile=(256, 256))
    by_scanner, for_all = {"um_per_px_by_scanner": {"S": 0.25}}, {"um_per_px": 0.25}
    for said in (by_scanner, for_all):
        study = Settings(name="s", title="s", data=Data(source="csv", **said))
        slides = study_arms.slides_of(study, Pretraining("p", slides="slides/"), tmp_path)
        with Source(slides, SETTINGS, 0) as source:
            if said is for_all:
                assert source.read(0).slide_id == "a.tif" and not source.failures
            else:
                with pytest.raises(PatchingError, match=r"say it in the study: data: \{um_per_px: \.\.\.\} for all"):
                    source.survey()


def test_a_tile_is_decoded_once_for_all_its_patches(folder, monkeypatch):
    """Of a window, and of the next: 64 patches from a slide of few tiles."""
    decode, keys = TiffReader.decode, []
    monkeypatch.setattr(TiffReader, "decode", lambda reader, key: keys.append(key) or decode(reader, key))
    source = Source(files(folder, "a"), OnlinePatches(48, (0.25,), 0.4), 0).survey()
    keys.clear()
    for _ in batches(source, 0, 4, 16):
        pass
    assert len(keys) == len(set(keys)) <= 12


@pytest.mark.parametrize("n_workers", [1, 3])
def test_windows_of_any_length_give_the_same_batches_and_leave_those_kept_alone(folder, monkeypatch, n_workers):
    """A batch that was handed out keeps its px. Some pause between batches, some don't."""
    source = Source(files(folder), SETTINGS, 3).survey()
    expected = np.stack([source.read(number).image for number in range(120)])
    monkeypatch.setattr(feed, "FIRST_PATCHES", 8)
    monkeypatch.setattr(feed, "TASK_PATCHES", 5)
    for most in (1, 8, 24, 1000):
        monkeypatch.setattr(feed, "WINDOW_PATCHES", most)
        kept = []
        for batch in batches(source, 0, 15, 8, n_workers=n_workers):
            kept.append(batch)
            time.sleep(0.01 * (len(kept) % 3 == 0))
        assert [number for batch in kept for number in batch.drawn["number"]] == list(range(120))
        assert np.array_equal(np.concatenate([batch.images for batch in kept]), expected)


def test_no_thread_is_left_behind(folder):
    """Closed early, the iterator ends its threads."""
    source = Source(files(folder), SETTINGS, 0)
    before = threading.active_count()
    with contextlib.closing(batches(source, 0, 1000, 64, n_workers=2)) as stream:
        next(stream)
        assert threading.active_count() > before
    assert threading.active_count() == before


@needs_real
def test_real_slides_together():
    """Both real slides, of two makers and resolutions, in one stream."""
    slides = [SlideFile(path.name, str(path)) for path in sorted(REAL.glob("*.*")) if path.suffix in (".svs", ".tif")]
    source = Source(slides, OnlinePatches(128), 0)
    batch = next(batches(source, 0, 1, 64, n_workers=2))
    assert set(batch.drawn["slide_id"]) == {"CMU-1-Small-Region.svs", "canine_strip.tif"}
    assert batch.drawn.loc[batch.drawn["slide_id"].str.startswith("CMU"), "um_per_px"].min() == 0.5
    assert (batch.images.min((1, 2, 3)) < 200).all() and batch.drawn["tissue"].min() >= 0.4


def test_figures_and_captions_say_what_was_drawn(folder, exact):
    """Drawn from a real source; the numbers in words are those of the tables."""
    study = Settings(name="s", title="s", data=Data(source="synthetic"))
    source = Source([*files(folder), SlideFile("gone", "gone.tif")], SETTINGS, 0).survey()
    slides, drawn = source.overview(), source.table(range(300))
    assert slides["draw_share"].sum() == pytest.approx(1) and slides.set_index("slide_id").loc["gone", "failure"]
    assert slides.set_index("slide_id").loc["a", "tissue_mm2"] == pytest.approx(30 * 20 * 16e-6)
    thumbnail, cells, cell_um = source.thumbnail("a")
    assert thumbnail.shape[:2] == cells.shape == (48, 64) and cell_um == 4
    opened = Study(study, "nowhere")
    exhibit = pretraining_run.places(opened, source, 300)
    pd.testing.assert_frame_equal(exhibit.table, drawn)
    left, right = exhibit.figure.axes[:2]
    shown = left.get_title("left")
    assert sum(len(dots.get_offsets()) for dots in left.collections[-1:]) == (drawn["slide_id"] == shown).sum()
    assert sorted(right.get_lines()[0].get_ydata()) == sorted([0, *drawn["slide_id"].value_counts()])
    assert any("synthetic" in text.get_text() for text in exhibit.figure.texts)
    assert f"fell on {shown}" in exhibit.caption and "300 draws of 48 px" in exhibit.caption
    of_slides = pretraining_run.slides(opened, source)
    assert "1 failed" in of_slides.caption and list(of_slides.table["slide_id"]) == list(slides["slide_id"])
    read = next(batches(source, 0, 1, 16))
    sheet = pretraining_run.patches(opened, read.images, read.drawn)
    assert len(sheet.figure.axes) == read.drawn["um_per_px"].nunique() * pretraining_run.N_ACROSS
    assert "16 patches" in sheet.caption
