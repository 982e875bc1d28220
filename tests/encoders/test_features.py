"""Embeddings made elsewhere: each format is matched with the right patches, and what doesn't fit is refused."""

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from mfcore import store
from mfcore.data.splits_draw import Placing
from mfcore.encoders import features
from mfcore.encoders.card import EncoderError

PLACING = Placing(224, 0.25)
N = 12


@pytest.fixture
def table():
    """Twelve patches of three slides, at 0.25 um/px but for the last slide's 0.5."""
    rng = np.random.default_rng(0)
    slides = np.array(["a.svs", "b.svs", "c.svs"])[np.arange(N) % 3]
    places = rng.integers(500, 5000, (N, 2)).astype(float)
    return pd.DataFrame(
        {
            "patch_id": np.arange(N) + 7,
            "slide_id": slides,
            "file": [f"images/{name}" for name in slides],
            "um_per_px": np.where(slides == "c.svs", 0.5, 0.25),
            "patch_x_l0_px": places[:, 0],
            "patch_y_l0_px": places[:, 1],
        }
    )


VECTORS = np.random.default_rng(1).standard_normal((N, 5)).astype(np.float32)


def write_slides(folder, table, vectors=VECTORS, says_side=True, batched=False, off_px=0.0, suffix=".h5"):
    """A file for each slide as TRIDENT (and, batched, as its readers of one slide) writes it; rows in another order."""
    folder.mkdir(exist_ok=True)
    for slide, rows in table.groupby("slide_id"):
        rows = rows.sample(frac=1, random_state=3)
        side = 224 * 0.25 / rows["um_per_px"].iloc[0]
        corners = rows[["patch_x_l0_px", "patch_y_l0_px"]].to_numpy() - side / 2 + off_px
        with h5py.File(folder / (slide.removesuffix(".svs") + suffix), "w") as out:
            values = vectors[rows.index]
            out["features"] = values[None] if batched else values
            coords = out.create_dataset("coords", data=corners[None] if batched else corners)
            if says_side:
                coords.attrs.update({"patch_size": 224, "patch_size_level0": side, "name": slide})


@pytest.mark.parametrize("says_side", [True, False])
@pytest.mark.parametrize("batched", [True, False])
def test_files_of_slides_are_matched_by_slide_and_place(tmp_path, table, says_side, batched):
    write_slides(tmp_path / "h5", table, says_side=says_side, batched=batched, off_px=0.5)
    matched = features.match(tmp_path / "h5", table, PLACING)
    np.testing.assert_array_equal(matched.features, VECTORS)
    assert matched.n_unused == 0 and matched.largest_px == pytest.approx(np.sqrt(0.5))


def test_patches_without_features_are_named_and_other_features_counted(tmp_path, table):
    write_slides(tmp_path / "h5", table)
    assert features.match(tmp_path / "h5", table.iloc[:10], PLACING).n_unused == 2
    moved = table.assign(patch_x_l0_px=table["patch_x_l0_px"] + np.where(table["patch_id"] == 9, 3.0, 0))
    with pytest.raises(EncoderError, match=r"1 of the study's 12 patches have no features within 2 level-0 px.*'patch_id': 9"):
        features.match(tmp_path / "h5", moved, PLACING)
    assert features.match(tmp_path / "h5", moved, PLACING, tolerance_px=4).largest_px == pytest.approx(3)
    (tmp_path / "h5" / "b.h5").unlink()
    with pytest.raises(EncoderError, match="4 of the study's 12 patches have no features"):
        features.match(tmp_path / "h5", table, PLACING)


def test_one_row_of_features_is_one_patch(tmp_path, table):
    write_slides(tmp_path / "h5", table)
    with pytest.raises(EncoderError, match="several patches of the study are matched by one row"):
        features.match(tmp_path / "h5", table.iloc[[0, 0]], PLACING)


def test_evas_manifest_is_matched_by_image(tmp_path, table):
    images = table.assign(file=[f"patches/{i}.png" for i in range(N)])
    (tmp_path / "eva" / "train").mkdir(parents=True)
    lines = ["origin,embeddings,target,split"]
    for i in reversed(range(N)):
        tensor = torch.from_numpy(VECTORS[i])
        torch.save([tensor] if i % 2 else tensor[None], tmp_path / "eva" / "train" / f"{i}.pt")  # both of eva's forms
        lines.append(f"{i}.png,train/{i}.pt,0,train")
    (tmp_path / "eva" / "manifest.csv").write_text("\n".join(lines) + "\n")
    np.testing.assert_array_equal(features.match(tmp_path / "eva", images, PLACING).features, VECTORS)


@pytest.mark.parametrize("ids", ["patch_id", "place"])
def test_an_array_with_a_table_of_ids(tmp_path, table, ids):
    order = np.random.default_rng(5).permutation(N)
    np.save(tmp_path / "mine.npy", VECTORS[order])
    columns = {"x": table["patch_x_l0_px"], "y": table["patch_y_l0_px"], "file": table["file"]}
    rows = table[["patch_id"]] if ids == "patch_id" else pd.DataFrame(columns)
    rows.iloc[order].to_csv(tmp_path / "mine.csv", index=False)
    np.testing.assert_array_equal(features.match(tmp_path / "mine.npy", table, PLACING).features, VECTORS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v: np.where(np.arange(N)[:, None] == 3, np.nan, v),
            r"1 features aren't finite, the first of \[\{'patch_id': 10",
        ),
        (lambda v: v[:-1], r"features \(11, 5\) for 12 rows"),
        (lambda v: v.astype(object), "not an array of numbers"),
        (lambda v: v[:, :, None, None], "expected \\(n, n_dims\\)"),
    ],
)
def test_arrays_that_are_no_features_are_refused(tmp_path, table, change, message):
    np.save(tmp_path / "mine.npy", change(VECTORS))
    table[["patch_id"]].to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(EncoderError, match=message):
        features.match(tmp_path / "mine.npy", table, PLACING)


def test_other_encoders_beside_and_missing_files_are_refused(tmp_path, table):
    with pytest.raises(EncoderError, match=r"no features; expected a folder with an \.h5 file a slide"):
        features.match(tmp_path, table, PLACING)
    write_slides(tmp_path / "h5", table.iloc[:6])
    write_slides(tmp_path / "h5", table.iloc[6:], vectors=np.zeros((N, 7), np.float32), suffix=".second.h5")
    with pytest.raises(EncoderError, match=r"features of \[5, 7\] dimensions; they are of several encoders"):
        features.match(tmp_path / "h5", table, PLACING)
    (tmp_path / "h5" / "a.h5").write_bytes(b"no hdf5")
    with pytest.raises(EncoderError, match=r"a\.h5: no features and coords can be read"):
        features.match(tmp_path / "h5", table, PLACING)


def match_array(folder, table, rows, vectors=VECTORS, tolerance_px=2.0):
    """The features of an array with a table ``rows`` (or its text) beside it."""
    np.save(folder / "mine.npy", vectors)
    text = rows if isinstance(rows, str) else rows.to_csv(index=False)
    (folder / "mine.csv").write_text(text)
    return features.match(folder / "mine.npy", table, PLACING, tolerance_px).features


def placed(table, **changes):
    """The columns of a table beside an array: id, file and place."""
    columns = {"patch_x_l0_px": "x", "patch_y_l0_px": "y"}
    return table.rename(columns=columns)[["patch_id", "file", "x", "y"]].assign(**changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: placed(t, file=t["file"].to_numpy()[::-1]), "8 of the study's 12 patches have no features"),
        (lambda t: placed(t, x=t["patch_x_l0_px"] + 9), "12 of the study's 12 patches have no features"),
        (lambda t: placed(t).drop(columns=["patch_id", "y"]), r"mine\.csv: has one of the columns x and y"),
        (lambda t: placed(t, x=np.nan).drop(columns="patch_id"), "line 2: x is '', expected a number"),
        (lambda t: t[["patch_id"]].assign(patch_id="p"), "(?s)line 2: patch_id is 'p'.*line 3"),
        (lambda t: t[["file"]].assign(file=""), "line 2: file is '', expected a file's name"),
        (lambda t: t[["patch_id", "file"]], "file 'images/a.svs' stands there twice; .* with x and y or with patch_id"),
        (lambda t: "", r"mine\.csv: no table can be read .*; save it as CSV"),
        (lambda t: "file\na,1\n", r"mine\.csv: no table can be read \(lines longer than the header"),
        (lambda t: "file\na\nb,c,d\n", r"mine\.csv: no table can be read"),
        (lambda t: "file;x;y\n1;2;3\n", r"needs a column patch_id, or file .*, divided by commas"),
    ],
)
def test_tables_beside_arrays_that_cannot_be_are_refused(tmp_path, table, change, message):
    with pytest.raises(EncoderError, match=message):
        match_array(tmp_path, table, change(table))


def test_ids_files_and_places_that_agree_and_rows_of_no_patch(tmp_path, table):
    np.testing.assert_array_equal(match_array(tmp_path, table, placed(table)), VECTORS)
    np.testing.assert_array_equal(match_array(tmp_path, table, placed(table, file="/else/" + table["file"])), VECTORS)
    names = placed(table, file=table["slide_id"]).drop(columns="patch_id")  # without the folder
    np.testing.assert_array_equal(match_array(tmp_path, table, names), VECTORS)
    more = pd.concat([placed(table), pd.DataFrame({"patch_id": 7, "file": "images/a.svs", "x": [1, 2], "y": 0})])
    unused = np.concatenate([VECTORS, VECTORS[:2]])
    np.testing.assert_array_equal(match_array(tmp_path, table, more, unused), VECTORS)


def test_images_of_slides_are_found_by_slide_and_place(tmp_path, table):
    images = table.assign(file=[f"{i}.png" for i in range(N)], slide_id=table["slide_id"].str.replace(".svs", ".1"))
    rows = placed(images, file=images["slide_id"]).drop(columns="patch_id")
    np.testing.assert_array_equal(match_array(tmp_path, images, rows), VECTORS)
    write_slides(tmp_path / "h5", images, suffix=".svs.h5")
    np.testing.assert_array_equal(features.match(tmp_path / "h5", images, PLACING).features, VECTORS)


def test_names_that_stand_for_two_slides_are_refused(tmp_path, table):
    rows = placed(table, file=np.where(np.arange(N) < 6, "one/", "two/") + table["slide_id"]).drop(columns="patch_id")
    with pytest.raises(EncoderError, match=r"'a\.svs' stands there twice, for one/a\.svs and two/a\.svs"):
        match_array(tmp_path, table, rows)


def test_places_that_the_study_does_not_know_are_refused(tmp_path, table):
    rows = placed(table).drop(columns="patch_id")
    with pytest.raises(EncoderError, match=r"the first images/a\.svs, the place isn't known; give the study's table x and y"):
        match_array(tmp_path, table.assign(patch_x_l0_px=np.nan), rows)


@pytest.mark.parametrize("tolerance_px", [-1, 57, 1e9, np.inf, np.nan])
def test_a_tolerance_is_at_most_half_a_patch(tmp_path, table, tolerance_px):
    write_slides(tmp_path / "h5", table)
    assert features.match(tmp_path / "h5", table, PLACING, 56).largest_px == 0
    with pytest.raises(EncoderError, match=r"tolerance_px is .*; expected 0 to 56, half the side"):
        features.match(tmp_path / "h5", table, PLACING, tolerance_px)


@pytest.mark.parametrize("other", [np.float64, complex, str])
def test_damaged_arrays_are_refused(tmp_path, table, other):
    values = {np.float64: VECTORS[:, :0], complex: VECTORS.astype(complex), str: VECTORS.astype(str)}[other]
    with pytest.raises(EncoderError, match=r"mine\.npy: not an array of numbers with a row a line of mine\.csv"):
        match_array(tmp_path, table, table[["patch_id"]], values)
    (tmp_path / "mine.npy").write_bytes(b"")
    reads = (features.contract, lambda place: features.match(place, table, PLACING))
    for read in reads:
        with pytest.raises(EncoderError, match=r"mine\.npy: no.*anew"):
            read(tmp_path / "mine.npy")
    (tmp_path / "mine.csv").unlink()
    for read in reads:
        with pytest.raises(EncoderError, match=r"mine\.npy: without mine\.csv, .*; put it into the same folder"):
            read(tmp_path / "mine.npy")


def test_features_of_two_encoders_at_one_place_are_refused(tmp_path, table):
    write_slides(tmp_path / "h5", table)
    (tmp_path / "h5" / "uni").mkdir()
    write_slides(tmp_path / "h5" / "uni", table, vectors=VECTORS + 100)
    with pytest.raises(EncoderError, match=r"12 of the study's patches have several rows .*h5/a\.h5.*uni/a\.h5"):
        features.match(tmp_path / "h5", table, PLACING)


def test_features_of_another_field_of_view_and_all_damaged_files_are_named(tmp_path, table):
    write_slides(tmp_path / "h5", table)
    with h5py.File(tmp_path / "h5" / "c.h5", "r+") as content:
        content["coords"].attrs["patch_size_level0"] = 256
    with h5py.File(tmp_path / "h5" / "b.h5", "r+") as content:
        content["coords"][0, 0] = np.nan
    with h5py.File(tmp_path / "h5" / "a.h5", "w") as content:
        content.create_group("features")
        content["coords"] = [[1, 2]]
    with pytest.raises(EncoderError) as error:
        features.match(tmp_path / "h5", table, PLACING)
    assert "a.h5: no features and coords can be read" in str(error.value)
    assert "b.h5: no features and coords can be read (coords aren't finite)" in str(error.value)
    assert "patch_size_level0 is 256, the study's patches on c.svs are 112 level-0 px wide" in str(error.value)


def test_a_file_that_may_be_of_two_slides_is_refused(tmp_path, table):
    write_slides(tmp_path / "h5", table)
    names = table["slide_id"].replace("b.svs", "a.tif")
    with pytest.raises(EncoderError, match=r"h5/a\.h5: of a\.svs or a\.tif; name it by the whole name"):
        features.match(tmp_path / "h5", table.assign(slide_id=names, file="images/" + names), PLACING)


TENSORS = [torch.from_numpy(vector) for vector in VECTORS]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (torch.stack(TENSORS[:2]), "0.pt", r"0\.pt: holds no single embedding"),
        (TENSORS[:2], "0.pt", r"0\.pt: holds no single embedding"),
        ({"a": TENSORS[0]}, "0.pt", r"0\.pt: holds no single embedding"),
        (VECTORS[0], "0.pt", r"one embedding, .*make anew:\s+0\.pt: UnpicklingError$"),
        (TENSORS[0][:3], "0.pt", r"features of \[3, 5\] dimensions"),
        (TENSORS[0], "", r"manifest\.csv: .*\s+: .*Is a directory"),
        (TENSORS[0], "1.pt", r"line 3: '1\.pt' stands on another line too"),
        (TENSORS[0], "gone.pt", r"gone\.pt: .*No such file"),
    ],
)
def test_evas_files_that_hold_no_single_embedding_are_refused(tmp_path, table, content, name, message):
    for i, tensor in enumerate([content, *TENSORS[1:]]):
        torch.save(tensor, tmp_path / f"{i}.pt")
    names = [name, *(f"{i}.pt" for i in range(1, N))]
    pd.DataFrame({"origin": [f"{i}.png" for i in range(N)], "embeddings": names}).to_csv(tmp_path / "manifest.csv")
    with pytest.raises(EncoderError, match=message):
        features.match(tmp_path, table.assign(file=[f"{i}.png" for i in range(N)]), PLACING)


@pytest.fixture
def run(tmp_path, table):
    """Finished embeddings, as `embed.embed` leaves them."""
    run = store.open_run(tmp_path / "results", "embeddings", "made", {}, {})
    side = 224 * 0.25 / table["um_per_px"].to_numpy()[:, None]
    with h5py.File(run.path("embeddings.h5"), "w") as out:
        out["features"] = VECTORS
        out["coords"] = np.floor(table[["patch_x_l0_px", "patch_y_l0_px"]].to_numpy() - side / 2 + 0.5).astype(np.int64)
    return run.finish(["embeddings.h5"])


@pytest.mark.parametrize("layout", ["trident", "clam"])
def test_a_file_for_each_slide_with_what_slide_encoders_ask_for(tmp_path, table, run, layout):
    """Attributes as TRIDENT's WSI.extract_tissue_coords writes and TITAN's and CLAM's examples read them."""
    features.export(run, table, tmp_path / "out", layout, PLACING)
    with h5py.File(tmp_path / "out" / ("h5_files/c.h5" if layout == "clam" else "c.h5")) as content:
        said = dict(content["coords"].attrs)
        assert content["features"].shape == (4, 5) and content["coords"].dtype == np.int64
    assert said["patch_size"] == 224 and said["patch_size_level0"] == 112 and said["patch_level"] == 0
    assert said["level0_magnification"] == 20 and said["target_magnification"] == 40 and said["name"] == "c"
    np.testing.assert_array_equal(features.match(tmp_path / "out", table, PLACING).features, VECTORS)
    if layout == "clam":
        assert torch.load(tmp_path / "out" / "pt_files" / "c.pt", weights_only=True).shape == (4, 5)


def test_evas_layout_has_a_tensor_for_each_patch(tmp_path, table, run):
    images = table.assign(file=[f"patches/{i}.png" for i in range(N)], label=0, official_split="")
    features.export(run, images, tmp_path / "out", "eva", PLACING)
    np.testing.assert_array_equal(features.match(tmp_path / "out", images, PLACING).features, VECTORS)


def test_evas_layout_of_slides_is_read_back_by_the_patches_ids(tmp_path, table, run):
    slides = table.assign(label=0, official_split="")
    slides.loc[0, ["slide_id", "file"]] = "d.svs"  # of a single patch
    features.export(run, slides, tmp_path / "out", "eva", PLACING)
    np.testing.assert_array_equal(features.match(tmp_path / "out", slides, PLACING).features, VECTORS)


@pytest.mark.parametrize("names", [("S1.svs", "S1.tif"), ("atypical/0.png", "normal/0.png")])
def test_slides_whose_files_would_have_one_name_are_refused_before_writing(tmp_path, table, run, names):
    slides = np.array([*names, "c.svs"])[np.arange(N) % 3]
    for layout in ("trident", "clam"):
        with pytest.raises(ValueError, match=f"slides '{names[0]}' and '{names[1]}' would both be written as"):
            features.export(run, table.assign(slide_id=slides, file=slides), tmp_path / "out", layout, PLACING)
    assert not (tmp_path / "out").exists()


def test_what_a_layout_cannot_state_is_refused(tmp_path, table, run):
    with pytest.raises(ValueError, match="layout is 'h5'; it must be one of trident, clam, eva"):
        features.export(run, table, tmp_path, "h5", PLACING)
    with pytest.raises(ValueError, match="of 12 patches the place or the um/px isn't known"):
        features.export(run, table.assign(um_per_px=np.nan), tmp_path, "trident", PLACING)


# ---- what would be matched with the wrong patches, or go unseen ----


def images(folders, n=3):
    """Patch images of the same numbers in several folders."""
    files = [f"{folder}/{i}.png" for folder in folders for i in range(n)]
    places = {"patch_x_l0_px": np.nan, "patch_y_l0_px": np.nan, "um_per_px": np.nan}
    return pd.DataFrame({"patch_id": np.arange(len(files)), "slide_id": files, "file": files, **places})


def write_array(folder, rows, vectors):
    np.save(folder / "f.npy", vectors)
    rows.to_csv(folder / "f.csv", index=False)
    return folder / "f.npy"


def test_files_of_one_number_in_another_folder_are_no_match(tmp_path):
    given = pd.DataFrame({"file": [f"siteA/{i}.png" for i in range(3)]})
    place = write_array(tmp_path, given, VECTORS[:3])
    with pytest.raises(EncoderError, match="3 of the study's 3 patches have no features"):
        features.match(place, images(["siteB"]), PLACING)
    np.testing.assert_array_equal(features.match(place, images(["siteA"]), PLACING).features, VECTORS[:3])


@pytest.mark.parametrize("before", ["/data/x/", "C:\\x\\", ""])
def test_a_path_that_ends_as_the_studys_is_the_same_whatever_its_number_of_folders(tmp_path, before):
    table = images(["a/siteA", "a/siteB"])
    files = [before + file.removeprefix("" if before else "a/") for file in table["file"]]
    place = write_array(tmp_path, pd.DataFrame({"file": files}), VECTORS[:6])
    order = np.array([3, 1, 5, 0, 2, 4])
    matched = features.match(place, table.iloc[order].reset_index(drop=True), PLACING)
    np.testing.assert_array_equal(matched.features, VECTORS[order])


def test_ids_alone_of_another_number_of_patches_are_refused(tmp_path):
    table = images(["a"], 5)
    place = write_array(tmp_path, table[["patch_id"]], VECTORS[:5])
    assert features.match(place, table, PLACING).n_unused == 0
    with pytest.raises(EncoderError, match="5 rows named by patch_id alone, the study has 4 patches"):
        features.match(place, table.iloc[:4], PLACING)
    write_array(tmp_path, table[["patch_id", "file"]], VECTORS[:5])
    assert features.match(place, table.iloc[:4], PLACING).n_unused == 1


def test_the_checksum_is_of_every_file_and_of_all_of_it(tmp_path):
    for of_class in ("atypical", "normal"):
        (tmp_path / "eva" / of_class).mkdir(parents=True)
        torch.save(torch.ones(4), tmp_path / "eva" / of_class / "1.pt")
    lines = "origin,embeddings\na.png,atypical/1.pt\nb.png,normal/1.pt\n"
    (tmp_path / "eva" / "manifest.csv").write_text(lines)
    seen = [features.contract(tmp_path / "eva")[1]]
    for of_class in ("atypical", "normal"):
        torch.save(2 * torch.ones(4), tmp_path / "eva" / of_class / "1.pt")
        seen.append(features.contract(tmp_path / "eva")[1])
    assert len(set(seen)) == 3
    large = np.zeros((40_000, 256), np.float32)  # 41 MB
    place = write_array(tmp_path, pd.DataFrame({"patch_id": np.arange(len(large))}), large)
    before = features.contract(place)[1]
    large[1500:1510] = 1
    np.save(place, large)
    assert features.contract(place)[1] != before


def test_images_of_a_smaller_level_cover_more_of_their_slide(tmp_path):
    """Images of 32 px at 0.5 um/px, from slides of 0.25 um/px."""
    table = images(["a"], 4).assign(slide_id="s", um_per_px=0.5, downsample=2.0, patch_x_l0_px=100.0, patch_y_l0_px=100.0)
    np.testing.assert_array_equal(features.sides_l0_px(table, Placing(32, 0.5)), 64)
    np.testing.assert_array_equal(features.sides_l0_px(table, Placing(32, None)), 64)


def test_clams_files_of_another_side_are_refused(tmp_path, table):
    write_slides(tmp_path / "h5", table, says_side=False)
    for file in (tmp_path / "h5").iterdir():
        with h5py.File(file, "a") as content:
            content["coords"].attrs.update({"patch_size": 256, "patch_level": 0})
    with pytest.raises(EncoderError, match="features of another field of view"):
        features.match(tmp_path / "h5", table, PLACING)


def test_clams_files_that_state_no_side_are_refused_plainly(tmp_path, table):
    write_slides(tmp_path / "h5", table, says_side=False)
    with h5py.File(tmp_path / "h5" / "a.h5", "a") as content:
        content["coords"].attrs["patch_level"] = 0
    with pytest.raises(EncoderError, match=r"a\.h5: .*\(coords state patch_level 0 and no patch_size; add it"):
        features.match(tmp_path / "h5", table, PLACING)
