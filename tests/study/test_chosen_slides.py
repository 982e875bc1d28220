"""A study of chosen slides: only these are fetched and read, wrong names are refused at once, and what is left out is said."""

import dataclasses
import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from running import HANG_S
from unreliable_server import serving

from mfcore import cli, store
from mfcore.data import downloads, downloads_transfer, patches, splits
from mfcore.data.labels.source import SOURCES
from mfcore.data.labels.table import LabelError, load_candidates
from mfcore.store.options import ConfigError
from mfcore.study import data as study_data
from mfcore.study.config import Data, Patches, Settings, load_study

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real data of ../shared/data are not here")

STUDIES = {file.stem: file for file in (ROOT / "studies").glob("*.yaml")}
LEFT_OUT = {"n_slides": 482, "n_positive": 9_600, "n_negative": 12_420}  # of MIDOG++ by midog_mini
TILE_PX = 256


@pytest.fixture(scope="module")
def mini():
    return load_study(STUDIES["midog_mini"])


@pytest.fixture(scope="module")
def real_labels():
    """MIDOG++'s label file, as pandas reads its parts: images by id, and annotations."""
    content = json.loads((REAL / "labels" / "MIDOG++.json").read_text())
    return pd.DataFrame(content["images"]).set_index("id"), pd.DataFrame(content["annotations"])


def test_other_studies_have_the_config_that_they_had(mini):
    """The config decides the key of a study's patches, and so of all that comes from these."""
    configs = {name: study_data.patches_config(load_study(file))["data"] for name, file in STUDIES.items()}
    assert [name for name, config in configs.items() if "slides" in config] == ["midog_mini"]
    assert configs["midog_mini"]["slides"] == list(mini.data.slides)


@needs_real
def test_the_slides_are_the_densest_three_of_each_domain(mini, real_labels):
    """By annotations a px of the rarer class; about 2.2 GB, uncompressed."""
    images, annotations = real_labels
    rarer = annotations.groupby(["image_id", "category_id"]).size().unstack(fill_value=0).min(axis=1)
    images = images.assign(n_px=images["width"] * images["height"])
    ranked = images.assign(density=rarer / images["n_px"]).sort_values("density", ascending=False)
    densest = ranked.groupby("tumor_type").head(3)
    assert set(densest["file_name"]) == set(mini.data.slides)
    assert 3 * densest["n_px"].sum() == pytest.approx(2.18e9, rel=0.01)


@needs_real
@pytest.mark.parametrize("suffix", [".tiff", ".png"])
def test_only_the_annotations_of_these_slides_are_kept(mini, suffix):
    """Under the name of any edition."""
    names = tuple(name.replace(".tiff", suffix) for name in mini.data.slides)
    study = dataclasses.replace(mini, data=dataclasses.replace(mini.data, slides=names))
    table = study_data.load_labels(study, REAL / "labels", check_files=False)
    assert set(table["slide_id"]) == set(mini.data.slides)
    assert (table["label"] == 1).sum() == 2_337 and (table["label"] == 0).sum() == 1_929
    assert table.groupby("domain")["slide_id"].nunique().tolist() == [3] * 7
    assert table["patch_id"].tolist() == list(range(len(table)))
    assert table.attrs["left_out"] == LEFT_OUT


@needs_real
def test_folds_differ_and_each_domain_trains_alone(mini):
    table = study_data.load_labels(mini, REAL / "labels", check_files=False)
    drawn = splits.make(table, study_data.scheme_of(mini)).merge(table[["patch_id", "slide_id", "domain"]])
    assert len(splits.units(drawn)) == 5 * (3 + 7)
    full = drawn[(drawn["train_domain"] == splits.ALL) & (drawn["size"] == 1)]
    tested = full[full["role"] == "test"].groupby("fold")["slide_id"].agg(frozenset)
    assert tested.nunique() == 5 and set(tested.map(len)) == {7}
    learnt = drawn[drawn["role"] != "test"]
    assert not (learnt.merge(drawn[drawn["role"] == "test"], on=["train_domain", "fold", "size", "slide_id"])).size
    balanced = dataclasses.replace(study_data.scheme_of(mini), stratified=True, by_domain=False)
    full = splits.make(table, balanced).merge(table[["patch_id", "slide_id"]]).query("size == 1 and role == 'test'")
    assert full.groupby("fold")["slide_id"].agg(frozenset).nunique() == 1, "why the study isn't balanced"


@needs_real
def test_two_slides_a_domain_would_not_do(mini):
    """By slide, one trains, one validates and one tests."""
    two = [name for i, name in enumerate(mini.data.slides) if i % 3 < 2]
    study = dataclasses.replace(mini, data=dataclasses.replace(mini.data, slides=tuple(two)))
    table = study_data.load_labels(study, REAL / "labels", check_files=False)
    assert table["label"].value_counts().tolist() == [1_747, 1_309]
    with pytest.raises(splits.SplitError, match="by slide it needs three or more"):
        splits.make(table, study_data.scheme_of(study))


@needs_real
def test_all_wrong_names_are_refused_at_once(mini):
    data = dataclasses.replace(mini.data, slides=("134.tiff", "900.tiff", "13.tiff"))
    study = dataclasses.replace(mini, data=data)
    found = r"(?s)MIDOG\+\+\.json: data\.slides names slides .*correct them:\n  900\.tiff.*\n  13\.tiff; did you mean"
    with pytest.raises(LabelError, match=found):
        study_data.load_labels(study, REAL / "labels", check_files=False)


def test_wrong_names_are_refused_before_anything_is_fetched(tmp_path):
    with pytest.raises(downloads.DownloadError, match=r"has no slides \['13', '900'\]; correct data\.slides in the study"):
        downloads.fetch(SOURCES["midogpp"], tmp_path, slides=("134.tiff", "900.tiff", "13.png"))


@pytest.mark.parametrize(
    ("slides", "message"),
    [
        ("[134]", r"data\.slides\[0\]: 134 should be text"),
        ("[134.tiff, 094.tiff, 134.png]", r"data\.slides: \['134'\] stand twice; name each slide once"),
    ],
)
def test_a_list_that_can_not_be_is_refused(tmp_path, slides, message):
    (tmp_path / "s.yaml").write_text(f"name: s\ntitle: t\ndata: {{source: midogpp, slides: {slides}}}\nencoders: [uni]\n")
    with pytest.raises(ConfigError, match=message):
        load_study(tmp_path / "s.yaml")


def test_what_the_page_must_say(mini):
    assert mini.of_what.startswith("study `midog_mini`, 21 chosen slides")
    assert Settings("s", "t", Data("midogpp")).caveat == ""
    assert Settings("s", "t", Data("synthetic")).caveat == "synthetic data"
    assert Settings("s", "t", Data("synthetic", slides=("1.tiff",))).caveat == "synthetic data, 1 chosen slide"


def write_slide(path, size_px, seed):
    """A made-up TIFF of eight different tiles of one row each, so that a slide of MIDOG's size takes little time and room."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (8, TILE_PX * 3), dtype=np.uint8)
    encoded = [zlib.compress(row.tobytes() * TILE_PX) for row in rows]
    n_tiles = int(np.prod([-(-side // TILE_PX) for side in size_px]))
    options = {"tile": (TILE_PX, TILE_PX), "photometric": "rgb", "compression": "zlib", "metadata": None}
    tiles = (encoded[i] for i in rng.integers(0, 8, n_tiles))
    tifffile.imwrite(path, tiles, shape=(*size_px[::-1], 3), dtype=np.uint8, **options)


@pytest.fixture
def host(mini, real_labels, tmp_path, monkeypatch):
    """MIDOG++ as its hosts have it, but for the slides: made up, of the real sizes, and only those of the study."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name, value in {"N_TRIES": 2, "FIRST_WAIT_S": 0.001, "SILENCE_S": HANG_S}.items():
        monkeypatch.setattr(downloads_transfer, name, value)
    listed = downloads._files_of(SOURCES["midogpp"])
    sizes = real_labels[0].set_index("file_name")[["width", "height"]]
    with serving() as here:
        for row in listed[listed["kind"] == "label file"].itertuples():
            (address,) = downloads._urls(row)
            here.files[address.removeprefix(downloads.HOSTS["github"])] = (REAL / "labels" / row.file).read_bytes()
        slides = listed[listed["kind"] == "slide"].assign(name=lambda rows: rows["file"].map(lambda file: Path(file).name))
        here.put_json(f"/v2/collections/{slides['record'].iloc[0]}/articles", [{"id": 1}])
        facts = []
        for seed, row in enumerate(slides[slides["name"].isin(mini.data.slides)].itertuples()):
            write_slide(tmp_path / row.name, sizes.loc[row.name].tolist(), seed)
            content = here.files[f"/files/{row.id}"] = (tmp_path / row.name).read_bytes()
            facts.append({"id": int(row.id), "size": len(content), "supplied_md5": hashlib.md5(content).hexdigest()})
        here.put_json("/v2/articles/1/files", facts)
        for name in downloads.HOSTS:
            monkeypatch.setitem(downloads.HOSTS, name, here.url)
        yield here


@needs_real
def test_the_study_runs_on_what_is_fetched_and_nothing_else_is_fetched(mini, host, tmp_path, capsys):
    """Real labels on made-up images, in patches of 24 px to be quick: what is fetched, is read and is split."""
    folder = tmp_path / "data"
    words, is_whole = study_data.fetch(mini, folder)
    assert is_whole and words.splitlines()[0].endswith("21 slides; the study leaves out the others")
    assert words.endswith("in 23 files")
    asked = sorted(asked.path for asked in host.asked if not asked.path.startswith("/v2/"))
    assert asked == sorted(path for path in host.files if not path.startswith("/v2/")) and len(asked) == 23
    assert sorted(file.name for file in (folder / "images").iterdir()) == sorted(mini.data.slides)
    assert cli.main(["study", "check", str(STUDIES["midog_mini"]), "--data", str(folder)]) == 0
    assert "data.slides leaves out: 482 slides" in capsys.readouterr().out
    small = dataclasses.replace(mini, patches=Patches(size_px=24), networks=())
    run = study_data.extract(small, study_data.prepare(small, folder), tmp_path / "results")
    table, array = patches.load(run)
    assert array.shape == (4_266, 24, 24, 3) and run.record["facts"]["left_out"] == LEFT_OUT
    patches.check(array, table)
    assert len(run.record["facts"]["um_per_px_said_by_study"]) == 21
    drawn = splits.load(study_data.write_splits(small, tmp_path / "results"))
    assert len(splits.units(drawn)) == 50


def darkest(squares):
    """The darkest tenth of each square, as a grey value (n_squares,)."""
    return np.quantile(squares.mean(axis=-1), 0.1, axis=(1, 2))


LOOK_ALIKES = [(3334, 4849), (3462, 4537), (2234, 4979), (2193, 5278), (1779, 5374), (1670, 5410)]  # the last at the border


@needs_real
@pytest.mark.parametrize("at_border", ["white", "shift"])
def test_real_look_alikes_of_a_real_slide(tmp_path, at_border):
    """Their labels, by people who looked at the slide, fall on dark nuclei; 100 px to the left and right there is none.

    MITOS_WSI_CMC's slide 2191a7aa287ce1d5dbc0, as tassomoraes/yolo26-mitoses-detection has it; all are of one class, so that
    they are read as candidates are.
    """
    folder = REAL / "slides"
    lines = [f"canine_strip.tif,{x},{y}" for x, y in LOOK_ALIKES]
    (tmp_path / "look_alikes.csv").write_text("\n".join(["file,x,y", *lines]) + "\n")
    _, table = load_candidates(SOURCES["csv"], tmp_path / "look_alikes.csv", folder)
    study = Settings("strip", "t", Data("csv"), Patches(size_px=64, at_border=at_border))
    run = store.open_run(tmp_path, "patches", "strip", {}, {})
    table, array = patches.load(patches.extract(table, folder, run, study_data.reading_of(study)))
    facts, image = run.record["facts"], tifffile.imread(folder / "canine_strip.tif", key=0)
    is_moved = at_border == "shift"
    assert image.shape == (5412, 7215, 3)
    assert (facts["n_patches_over_edge"], facts["n_patches_shifted"]) == ((0, 1) if is_moved else (1, 0))
    padded = np.pad(image, [(0, 64), (0, 0), (0, 0)], constant_values=255)
    for patch, (x, y) in zip(array, LOOK_ALIKES, strict=True):
        top = min(y - 32, 5412 - 64) if is_moved else y - 32
        np.testing.assert_array_equal(patch, padded[top : top + 64, x - 32 : x + 32])
    assert table["um_per_px"].tolist() == pytest.approx([0.25] * 6)
    if not is_moved:
        aside = np.stack([image[y - 10 : y + 10, x + d - 10 : x + d + 10] for x, y in LOOK_ALIKES[:5] for d in (-100, 100)])
        assert darkest(array[:5, 22:42, 22:42]).max() < 80 < darkest(aside).min()
    is_white = (array[5] == 255).all(axis=(1, 2))  # (n_rows,)
    assert is_white.sum() == (0 if is_moved else 5410 + 32 - 5412)
