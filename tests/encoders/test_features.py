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


def test_what_a_layout_cannot_state_is_refused(tmp_path, table, run):
    with pytest.raises(ValueError, match="layout is 'h5'; it must be one of trident, clam, eva"):
        features.export(run, table, tmp_path, "h5", PLACING)
    with pytest.raises(ValueError, match="of 12 patches the place or the um/px isn't known"):
        features.export(run, table.assign(um_per_px=np.nan), tmp_path, "trident", PLACING)
