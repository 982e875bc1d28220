"""The examples of the pages of `docs/`: each is taken from the text and run, on a few dozen patches."""

import json
import re
import shlex
import shutil
from pathlib import Path

import hub_server
import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml
from PIL import Image

import mfcore
from mfcore import cli
from mfcore.analysis import arms as arms_exhibits
from mfcore.analysis.encoders import cards, robustness
from mfcore.study import arms, data, encoders, external
from mfcore.sweep import jobs, run

ROOT = Path(__file__).parents[1]
AMIBR = ROOT.parent / "shared" / "data" / "amibr" / "patches"
N = 24  # patches of each class


def blocks(page, kind):
    """The code blocks of one kind on a page of `docs/`."""
    return re.findall(rf"```{kind}\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL)


PAGES = sorted(page.stem for page in (ROOT / "docs").glob("*.md"))
YAML = [(page, block) for page in PAGES for block in blocks(page, "yaml")]
STUDIES = {yaml.safe_load(block)["name"]: block for _, block in YAML if "name" in yaml.safe_load(block)}
PARTS = {page: block for page, block in YAML if "name" not in yaml.safe_load(block)}


def write(folder, name):
    (folder / "studies").mkdir(exist_ok=True)
    file = folder / "studies" / f"{name}.yaml"
    file.write_text(STUDIES[name])
    return file


def write_images(folder, first=0):
    """Patches in a folder a class: AMi-Br's where they are here, else made ones."""
    for name in ("atypical", "normal"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        real = sorted((AMIBR / name).glob("*.png"))[first : first + N]
        for file in real:
            shutil.copy(file, folder / name / file.name)
        for i in range(first, first + N if not real else first):
            noise = np.random.default_rng(i).integers(0, 200, (128, 128, 3)) + 50 * (name == "normal")
            Image.fromarray(noise.astype(np.uint8)).save(folder / name / f"{name}{i}.png")


def write_slides(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    said = {"resolution": (4e4,) * 2, "resolutionunit": "CENTIMETER"}
    for i, name in enumerate(names):
        pixels = np.random.default_rng(i).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        tifffile.imwrite(folder / name, pixels, tile=(64, 64), photometric="rgb", **said)


def checked(file, folder, capsys, is_too_small=False):
    assert cli.main(["study", "check", str(file), "--data", str(folder)]) == is_too_small
    said = capsys.readouterr()
    assert ("left to divide" in said.err) == is_too_small
    return said.out


def trained(folder, name):
    """The study of a block, its patches cut, embedded and probed."""
    study = mfcore.open_study(write(folder, name), folder / "results")
    data.extract(study.settings, folder / "data" / name, study.folder)
    data.write_splits(study.settings, study.folder)
    for encoder in study.settings.encoders:
        embeddings = encoders.embed(study.settings, encoder, study.folder)
        arms.fit_probe(study.settings, embeddings, study.folder)
        for method in study.settings.probe.also:
            arms.fit_probe(study.settings, embeddings, study.folder, method)
    return mfcore.open_study(folder / "studies" / f"{name}.yaml", folder / "results")


def test_there_is_an_example_for_every_way_in():
    assert list(STUDIES) == ["my_slides", "my_qupath", "my_patches", "my_features", "my_hospital", "my_probes"]
    assert list(PARTS) == ["networks", "pretraining", "studies", "your-encoder"] and len(YAML) == len(STUDIES) + len(PARTS)
    code = {page: [len(blocks(page, kind)) for kind in ("bash", "python", "text")] for page in PAGES}
    code = {page: numbers for page, numbers in code.items() if any(numbers)}
    assert code == {
        "apply": [2, 0, 0],
        "explore": [0, 1, 0],
        "library": [0, 1, 0],
        "your-data": [0, 0, 1],
        "your-encoder": [0, 2, 0],
    }


def test_slides_and_a_table(tmp_path, capsys):
    (table,) = blocks("your-data", "text")
    folder = tmp_path / "data" / "my_slides"
    write_slides(folder, ["S1.svs", "S2.svs"])
    (folder / "annotations.csv").write_text(table)
    assert "2 files, 2 domains; mitotic figure: 1, look-alike: 1" in checked(write(tmp_path, "my_slides"), folder, capsys, True)


def test_slides_annotated_in_qupath(tmp_path, capsys):
    folder = tmp_path / "data" / "my_qupath"
    write_slides(folder, ["S1.svs", "S2.svs"])
    for slide, classes in (("S1.svs", ("mitosis", "debris")), ("S2", ("mitosis", "other"))):
        features = [
            {
                "type": "Feature",
                "geometry": {"type": "Point", "coordinates": [50 + 20 * i, 60]},
                "properties": {"classification": {"name": name}},
            }
            for i, name in enumerate(classes)
        ]
        (folder / f"{slide}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    assert "2 files, 1 domains; mitosis: 2, rest: 2" in checked(write(tmp_path, "my_qupath"), folder, capsys, True)


def test_patch_images(tmp_path, capsys):
    write_images(tmp_path / "data" / "my_patches")
    said = checked(write(tmp_path, "my_patches"), tmp_path / "data" / "my_patches", capsys)
    assert f"{2 * N} files, 1 domains; atypical: {N}, normal: {N}" in said
    study = trained(tmp_path, "my_patches")
    assert study.labels["um_per_px"].isna().all()
    assert set(study.scores["arm"]) == {"efficientnet_lite0"} and set(study.scores["size"]) == {0.2, 1.0}


def test_embeddings_made_elsewhere(tmp_path):
    write_images(tmp_path / "data" / "my_features")
    (tmp_path / "studies").mkdir()
    features, files = mfcore.embed(tmp_path / "data" / "my_features", "efficientnet_lite0", "cpu")
    place = tmp_path / "studies" / "features"  # eva's folder
    import torch

    rows = []
    for i, (vector, file) in enumerate(zip(features, files, strict=True)):
        place.mkdir(exist_ok=True)
        torch.save(torch.from_numpy(vector), place / f"{i}.pt")
        rows.append((file.name, f"{i}.pt", 0, ""))
    pd.DataFrame(rows, columns=["origin", "embeddings", "target", "split"]).to_csv(place / "manifest.csv", index=False)
    study = trained(tmp_path, "my_features")
    one, other = (study.scores[study.scores["arm"] == arm]["auroc"].to_numpy() for arm in ("efficientnet_lite0", "elsewhere"))
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_train_on_one_set_test_on_another(tmp_path):
    write_images(tmp_path / "data" / "my_hospital")
    write_images(tmp_path / "data" / "their_hospital", first=N - 4)  # four of each class are the same
    other = STUDIES["my_hospital"].replace("name: my_hospital", "name: their_hospital")
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "their_hospital.yaml").write_text(re.sub(r"(?m)^(test_on|shared):.*$", "", other))
    study = trained(tmp_path, "my_hospital")
    external.cut(study, "their_hospital", tmp_path / "data" / "my_hospital")
    assert not external.test_all(study, "cpu")["reason"].any()
    table = study.external_predictions
    assert (table.groupby(["size", "fold"]).size() == 2 * (N - 4)).all()


def test_scores_of_new_candidates(tmp_path, monkeypatch, capsys):
    command, _ = blocks("apply", "bash")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "my_slides"
    write_slides(folder, [f"S{i}.svs" for i in range(6)])
    places = [(f"S{i % 6}.svs", 60 + 8 * (i // 6), 100, i // 6 % 2) for i in range(60)]
    pd.DataFrame(places, columns=["file", "x", "y", "label"]).to_csv(folder / "annotations.csv", index=False)
    smaller = "input_px: 64, n_epochs: 1, patches_per_epoch: 16, pretrained: false, max_lr: 0.001, by_domain: false"
    text = STUDIES["my_slides"].replace("input_px: 64", smaller)
    text = text.replace("splits: {sizes: [0.2, 1.0]}", "splits: {n_folds: 1, sizes: [1.0], by_domain: false}")
    write(tmp_path, "my_slides").write_text(text)
    study = mfcore.open_study("studies/my_slides.yaml")
    data.extract(study.settings, folder, study.folder)
    data.write_splits(study.settings, study.folder)
    arms.train(study.settings, "small_network", 0, study.folder)
    shutil.move(folder, "slides")
    pd.DataFrame({"file": ["S0.svs"] * 3, "x": [50, 80, 90], "y": [50, 80, 90], "detector": 0.7}).to_csv(
        "candidates.csv", index=False
    )
    assert cli.main(shlex.split(command)[1:]) == 0
    assert "3 candidates scored by small_network (end-to-end)" in capsys.readouterr().out
    assert len(json.loads(Path("scores/S0.svs.geojson").read_text())["features"]) == 3
    (scores,) = Path("results/my_slides/scores").glob("candidates-*.small_network.csv")
    assert set(pd.read_csv(scores)) >= {"detector", "score", "score_sd"}


def test_an_own_encoder_in_python():
    values = {"patches": np.zeros((2, 224, 224, 3), np.uint8)}
    exec(compile(blocks("your-encoder", "python")[0], "your-encoder", "exec"), values)
    assert values["features"].shape == (2, 192)


def test_more_probes_on_the_same_folds(tmp_path, monkeypatch):
    """As printed, by the sweep's jobs: a hub refuses the gated encoder, whose rows say what to do; the others go on."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("NO_PROXY", "*")
    file, folder = write(tmp_path, "my_probes"), tmp_path / "data" / "my_probes"
    write_images(folder)
    results = tmp_path / "results" / "my_probes"
    encoders_ = mfcore.open_study(file).settings.encoders
    assert "openmidnight" in encoders_
    names = ["01_extract_patches", *(jobs.job_name(stage, encoder) for encoder in encoders_ for stage in ("02", "03"))]
    with hub_server.serving() as server:
        server.repositories["SophontAI/OpenMidnight"] = hub_server.Repository({}, is_gated=True)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        done = {name: run.run_job(file, name, results, str(folder), 1) for name in names}
    assert [name for name in names if not done[name]] == ["02_embed.openmidnight", "03_linear_probe.openmidnight"]
    study = mfcore.open_study(file, tmp_path / "results")
    also = ["knn", "simpleshot", "mlp"]
    assert set(study.scores["arm"]) == {"efficientnet_lite0", *(f"efficientnet_lite0 {name}" for name in also)}
    assert study.scores.groupby("arm")[["size", "fold"]].agg(tuple).nunique().eq(1).all()
    missing = arms_exhibits.missing(study).table.set_index("arm")["reason"]
    assert set(missing.index) == {"openmidnight", *(f"openmidnight {name}" for name in also)}
    state = cards.encoders_table(study).set_index("encoder").loc["openmidnight", "state"]
    for words in (*missing, state):
        assert f"{server.url}/SophontAI/OpenMidnight didn't give" in words
        assert "accept its licence there" in words and "`hf auth login`" in words


def test_robustness_of_an_encoder(tmp_path, monkeypatch):
    """The library's numbers on real patches of two data sets are those of a study with the same table."""
    if not AMIBR.is_dir():
        pytest.skip(f"no real patches: {AMIBR} is absent")
    folder = tmp_path / "data" / "my_patches"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    table = pd.read_csv(AMIBR.parent / "AMI-BR.csv").groupby(["dataset", "majority_atypical"]).head(N // 2)
    table["label"] = table["majority_atypical"].map({True: "atypical", False: "normal"})
    table["file"] = table["dataset"] + "_" + table["uid"].astype(str) + ".png"
    for label, file in zip(table["label"], table["file"], strict=True):
        shutil.copy(AMIBR / label / file, file)
    table["case"], table["lab"] = table["dataset"] + "/" + table["slide"], table["dataset"]
    table[["file", "label", "lab", "case"]].to_csv("images.csv", index=False)
    values = {}
    exec(compile(blocks("your-encoder", "python")[1], "your-encoder", "exec"), values)
    assert len(values["features"]) == 2 * N
    study = trained(tmp_path, "my_patches")
    rows = robustness.table(study).set_index(["encoder", "biology", "origin"])
    assert list(rows.index) == [("efficientnet_lite0", "class", "laboratory")]
    expected = values["found"].robustness_index, values["found"].croma
    np.testing.assert_allclose(rows[["ri", "croma"]].to_numpy()[0], expected, atol=0.01)
    assert 0 < expected[0] < 1 and np.isfinite(expected[1])


def test_embeddings_for_others_and_a_look_at_patches(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "data" / "my_patches")
    trained(tmp_path, "my_patches")
    assert cli.main(shlex.split(blocks("apply", "bash")[1])[1:]) == 0
    assert len(pd.read_csv("for_others/manifest.csv")) == len(list(Path("for_others").rglob("*.pt"))) == 2 * N
    found = {}
    exec(compile(*blocks("explore", "python"), "explore", "exec"), found)
    assert (found["missed"]["label"] == 1).all() and found["missed"]["score"].is_monotonic_increasing
    assert len(list(found["study"].figures.glob("12_*.png")))


def test_the_library(tmp_path, monkeypatch):
    (code,) = blocks("library", "python")
    monkeypatch.chdir(tmp_path)
    write_slides(tmp_path, ["slide.tiff"])
    (tmp_path / "images").mkdir()
    for i in range(4):
        noise = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / f"{i}.png")
    found = {}
    exec(compile(code, "library", "exec"), found)
    assert found["patches"].shape == (2, 64, 64, 3) and found["scores"].shape == (4,)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_of_the_text_is_right(tmp_path, name):
    (tmp_path / "studies").mkdir()
    assert mfcore.open_study(write(tmp_path, name), tmp_path).name == name


@pytest.mark.parametrize("page", PARTS)
def test_every_part_of_a_study_is_right(tmp_path, page):
    part = PARTS[page].replace("COMMIT", 40 * "0")
    whole = {"name": "part", "title": "Part", "data": {"source": "synthetic"}, "encoders": ["uni"], **yaml.safe_load(part)}
    (tmp_path / "part.yaml").write_text(yaml.safe_dump(whole))
    settings = mfcore.open_study(tmp_path / "part.yaml", tmp_path).settings
    assert all(getattr(settings, key) for key in yaml.safe_load(part))


def test_the_scales_of_the_text_show_the_fields_that_it_says(tmp_path):
    """16, 32 and 56 um at 0.25 um/px, 32, 56 and 112 at 0.5; the network at 16 and 32 um alone."""
    (tmp_path / "part.yaml").write_text("name: p\ntitle: P\ndata: {source: synthetic}\nencoders: [uni]\n" + PARTS["studies"])
    at = data.at_scales(mfcore.open_study(tmp_path / "part.yaml", tmp_path).settings).values()
    fields = [(one.patches.um_per_px, one.patches.size_px * one.patches.um_per_px, len(one.networks)) for one in at]
    expected = [(0.25, 16, 1), (0.25, 32, 0), (0.25, 56, 0), (0.5, 32, 1), (0.5, 56, 0), (0.5, 112, 0)]
    assert fields == expected and all(one.splits.n_folds == 3 and one.splits.sizes == (1.0,) for one in at)
    assert [one.networks[0].input_px for one in at if one.networks] == [64, 64]
