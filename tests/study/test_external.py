"""Arms tested on another study's patches: the right scores on the right patches, and no shared case or pixel."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from made_study import FILE as LITTLE
from made_sweep import write_data
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

import mfcore
from mfcore.data import patches
from mfcore.study import arms, data, encoders, external, predictions
from mfcore.study.config import ConfigError
from mfcore.study.external import CandidateError, SharedError

# the little study without its network adapted by LoRA, under any name
FILE = LITTLE.partition("  - {name: lora")[0].replace("{", "{{").replace("}", "}}").replace("name: little", "name: {name}")


def write_other(folder, rename=True):
    """Data like the study's, of other cases (or not), the last half of whose slides have other pixels."""
    shutil.copytree(folder / "data" / "home", folder / "data" / "away")
    content = json.loads((folder / "data" / "away" / "annotations.json").read_text())
    import tifffile

    for i, image in enumerate(content["images"]):
        file = folder / "data" / "away" / "images" / image["file_name"]
        if i >= 5:
            pixels = tifffile.imread(file)[::-1]
            said = {"resolution": (4e4,) * 2, "resolutionunit": "CENTIMETER"}
            tifffile.imwrite(file, pixels, tile=(32, 32), photometric="rgb", **said)
        if rename:
            image["file_name"] = f"away{i}.tiff"
            file.rename(file.with_name(f"away{i}.tiff"))
    (folder / "data" / "away" / "annotations.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("external")
    (folder / "studies").mkdir()
    (folder / "studies" / "home.yaml").write_text(FILE.format(name="home") + "test_on: [away.yaml]\nshared: drop\n")
    (folder / "studies" / "strict.yaml").write_text(FILE.format(name="home") + "test_on: [away.yaml]\n")
    (folder / "studies" / "away.yaml").write_text(FILE.format(name="away"))
    write_data(folder / "data" / "home")
    write_other(folder)
    study = opened(folder)
    data.extract(study.settings, folder / "data" / "home", study.folder)
    data.write_splits(study.settings, study.folder)
    arms.fit_probe(study.settings, encoders.embed(study.settings, "tiny", study.folder), study.folder)
    for fold in range(2):
        arms.train(study.settings, "net", fold, study.folder)
    external.cut(study, "away", folder / "data" / "home")
    for arm in ("tiny", "net"):
        external.test(study, "away", arm, "cpu")
    return folder


def opened(folder, name="home"):
    return mfcore.open_study(folder / "studies" / f"{name}.yaml", folder / "results")


def test_every_arm_is_tested_at_every_size_and_fold_on_what_is_not_shared(made):
    table = opened(made).external_predictions
    assert set(table["tested_on"]) == {"away"} and set(table["arm"]) == {"tiny", "net"}
    units = table[["arm", "size", "fold"]].drop_duplicates()
    assert len(units) == 4 + 2  # the network has one size
    assert (table.groupby(["arm", "size", "fold"]).size() == 40).all()  # half of 80 patches have the pixels of home's
    assert set(table["slide_id"]) == {f"away{i}.tiff" for i in range(5, 10)}


def test_scores_are_those_of_the_arm_on_those_pixels(made):
    """The same network and probe, asked for candidates at the same places."""
    study = opened(made)
    labels, _ = patches.load(predictions.find_external(study.settings, "away", study.folder))
    rows = pd.DataFrame({"file": labels["slide_id"], "x": labels["x_l0_px"], "y": labels["y_l0_px"]})
    rows.to_csv(made / "away.csv", index=False)
    for arm in ("tiny", "net"):
        asked = mfcore.predict(study, arm, made / "away.csv", made / "data" / "away", "cpu").table
        table = study.external_predictions
        of_fold = table[(table["arm"] == arm) & (table["size"] == 1.0) & (table["fold"] == 1)]
        np.testing.assert_allclose(of_fold["score"], asked.loc[of_fold["patch_id"], "score_fold1"], atol=2e-6)


def test_shared_patches_stop_a_study_that_does_not_say_drop(made):
    with pytest.raises(
        SharedError, match=r"0 cases are in study 'home', too .*, and 40 patches have the pixels .*shared: drop"
    ):
        external.cut(opened(made, "strict"), "away", made / "data" / "home")


def test_shared_cases_are_listed(made, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    shutil.rmtree(copy / "data" / "away")
    write_other(copy, rename=False)
    with pytest.raises(SharedError, match="10 cases are in study 'home', too"):
        external.cut(opened(copy, "strict"), "away", copy / "data" / "home")


def test_a_study_cannot_be_tested_on_one_of_its_own_name_or_a_missing_file(made, tmp_path):
    for named, message in (("home.yaml", "is there already; rename it"), ("none.yaml", "no such study file")):
        (made / "studies" / "wrong.yaml").write_text(FILE.format(name="home") + f"test_on: [{named}]\n")
        with pytest.raises(ConfigError, match=message):
            predictions.external_sets(opened(made, "wrong").settings)


def test_a_test_by_an_earlier_training_is_not_shown(made, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    (copy / "studies" / "home.yaml").write_text(
        FILE.format(name="home").replace("cost: 1000", "cost: 10") + "test_on: [away.yaml]\nshared: drop\n"
    )
    assert set(opened(copy).external_predictions["arm"]) == {"net"}


def test_the_table_and_fig_1_show_every_arm_on_the_other_data(made):
    from mfcore.analysis import scaling, scores

    study = opened(made)
    table = scores.on_external_sets(study).table
    assert set(table["arm"]) == {"tiny", "net"} and (table["n_test"] == 40).all()
    for row in table.itertuples():
        one = study.external_predictions
        one = one[(one["arm"] == row.arm) & (one["size"] == row.size)]
        assert row.low <= row.auroc <= row.high or np.isnan(row.low)
    assert "40 patches with the pixels of one here are left out" in scores.on_external_sets(study).caption
    figure = scaling.figure_1(study).figure
    assert [axis.get_title("left") or axis.get_title() for axis in figure.axes] == [
        "AUROC",
        "balanced accuracy",
        "AUROC on away",
    ]


@pytest.mark.parametrize(
    "classes", ["positive: hard negative, negative: mitotic figure", "positive: tumour, negative: hard negative"]
)
def test_a_set_of_other_classes_is_refused(made, classes):
    """Swapped classes would turn every AUROC into 1 - AUROC."""
    other = FILE.format(name="swapped").replace("{source: midog}", "{source: midog, " + classes + "}")
    (made / "studies" / "swapped.yaml").write_text(other)
    (made / "studies" / "wrong.yaml").write_text(FILE.format(name="home") + "test_on: [swapped.yaml]\n")
    with pytest.raises(ConfigError, match=r"give classes that are the same the same names, and say by data.label_values"):
        predictions.external_sets(opened(made, "wrong").settings)


def test_tests_by_another_rule_for_shared_patches_are_not_shown(made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    assert opened(tmp_path / "copy", "strict").external_predictions.empty, "these were made with shared: drop"


def test_a_set_of_which_one_class_is_left_is_refused(made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "data" / "away")
    write_other(tmp_path / "copy", rename=False)
    with pytest.raises(SharedError, match="0 patches of the positive class and 0 of the negative are left"):
        external.cut(opened(tmp_path / "copy"), "away", tmp_path / "copy" / "data" / "home")


def test_the_patches_of_a_set_follow_how_its_images_are_made_to_fit(made):
    import dataclasses

    settings = opened(made).settings
    other = dataclasses.replace(settings, data=dataclasses.replace(settings.data, source="images"))
    fits = [dataclasses.replace(other, patches=dataclasses.replace(other.patches, fit=fit)) for fit in (None, "crop", "resize")]
    assert len({json.dumps(predictions.external_config(settings, each), default=str) for each in fits}) == 3


def test_another_resolution_is_told_of_the_external_set(tmp_path):
    """Patch images as they are: the study's at 0.25 um/px, those of the other set at 0.5."""
    from PIL import Image

    text = FILE.replace("source: midog", "source: images, positive: a, negative: b")
    text = text.replace("um_per_px: 0.25", "um_per_px: null")
    (tmp_path / "studies").mkdir()
    for name, um_per_px in (("home", 0.25), ("away", 0.5)):
        more = "test_on: [away.yaml]\n" if name == "home" else ""
        (tmp_path / "studies" / f"{name}.yaml").write_text(text.format(name=name) + more)
        folder, rows = tmp_path / "data" / name, []
        folder.mkdir(parents=True)
        for i in range(20):
            noise = np.random.default_rng([i, name == "home"]).integers(0, 256, (48, 48, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{name}{i}.png")
            rows.append((f"{name}{i}.png", "ab"[i % 2], um_per_px))
        pd.DataFrame(rows, columns=["file", "label", "um_per_px"]).to_csv(folder / "images.csv", index=False)
    study = opened(tmp_path)
    data.extract(study.settings, tmp_path / "data" / "home", study.folder)
    with pytest.raises(CandidateError, match=r"^20 patches of test_on away are at 0\.5 um/px .*learned from patches at 0\.25;"):
        external.cut(study, "away", tmp_path / "data" / "home")


def colours(folder, table):
    """An embedding that no mfcore made: the mean colours of nine parts of each patch, by patch id."""
    folder.mkdir()
    images = np.load(table.parent / "patches.npy").astype(np.float32)  # (n, size, size, 3)
    parts = [images[:, a : a + 16, b : b + 16].mean(axis=(1, 2)) for a in (0, 16, 32) for b in (0, 16, 32)]
    np.save(folder / "colours.npy", np.concatenate(parts, axis=1))
    pd.read_parquet(table)[["patch_id"]].to_csv(folder / "colours.csv", index=False)


def test_other_probes_and_embeddings_made_elsewhere_are_tested_there_too(made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    folder, study = tmp_path / "copy", opened(made)
    away = predictions.find_external(study.settings, "away", study.folder)
    colours(folder / "of_home", study.patches.path("labels.parquet"))
    colours(folder / "of_away", away.path("labels.parquet"))
    text = (folder / "studies" / "home.yaml").read_text()
    text = text.replace("probe: {cost: 1000}", "probe: {cost: 1000, also: [knn, mlp]}")
    entry = "encoders:\n  - {{name: colours, features: ../{}/colours.npy}}\n"
    (folder / "studies" / "home.yaml").write_text(text.replace("encoders:\n", entry.format("of_home")))
    study = opened(folder)
    for encoder in ("tiny", "colours"):
        embeddings = encoders.embed(study.settings, encoder, study.folder)
        arms.fit_probe(study.settings, embeddings, study.folder)
        for method in study.settings.probe.also:
            arms.fit_probe(study.settings, embeddings, study.folder, method)
    reasons = external.test_all(study, "cpu").set_index("arm")["reason"]
    assert list(reasons.index) == ["colours", "colours knn", "colours mlp", "tiny", "tiny knn", "tiny mlp", "net"]
    of_colours = reasons[reasons.index.str.startswith("colours")]
    assert of_colours.str.contains(r"that set's study file: encoders: \[\{name: colours, features: FOLDER").all()
    assert not reasons.drop(of_colours.index).any()

    text = (folder / "studies" / "away.yaml").read_text()
    (folder / "studies" / "away.yaml").write_text(text.replace("encoders:\n", entry.format("of_away")))
    study = opened(folder)
    assert not external.test_all(study, "cpu")["reason"].any()
    table = study.external_predictions
    assert set(table["arm"]) == set(reasons.index)
    assert (table.groupby(["arm", "size", "fold"]).size() == 40).all()

    # kNN by scikit-learn alone, on the same embeddings
    of_unit = table[(table["arm"] == "colours knn") & (table["fold"] == 1) & (table["size"] == 1.0)]
    known = study.splits.query("fold == 1 and size == 1 and role == 'train' and train_domain == 'all'")["patch_id"]
    ours, theirs = (np.load(folder / name / "colours.npy") for name in ("of_home", "of_away"))
    centre = ours[known].mean(axis=0)
    train, asked = (
        (rows - centre) / np.linalg.norm(rows - centre, axis=1, keepdims=True)
        for rows in (ours[known], theirs[of_unit["patch_id"]])
    )
    model = KNeighborsClassifier(20, algorithm="brute").fit(train, study.labels.set_index("patch_id").loc[known, "label"])
    np.testing.assert_allclose(of_unit["score"], model.predict_proba(asked)[:, 1], atol=0.051)  # ties: one neighbour of 20

    # features of other files are another test
    colours_of_away = folder / "of_away" / "colours.npy"
    np.save(colours_of_away, np.load(colours_of_away)[::-1])
    assert set(opened(folder).external_predictions["arm"]) == {"tiny", "tiny knn", "tiny mlp", "net"}
    np.save(colours_of_away, np.load(colours_of_away)[:, :5])
    reasons = external.test_all(opened(folder), "cpu").set_index("arm")["reason"]
    assert "features have 5 dimensions, those of colours in study 'home' have 27" in reasons["colours"]

    # features that are gone take no other arm's rows away
    colours_of_away.unlink()
    assert set(opened(folder).external_predictions["arm"]) == {"tiny", "tiny knn", "tiny mlp", "net"}


def test_candidates_are_scored_by_the_other_probes(made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    folder = tmp_path / "copy"
    text = (folder / "studies" / "home.yaml").read_text()
    (folder / "studies" / "home.yaml").write_text(text.replace("cost: 1000", "cost: 1000, also: [simpleshot]"))
    study = opened(folder)
    embeddings = encoders.embed(study.settings, "tiny", study.folder)
    for method in study.settings.probe.also:
        arms.fit_probe(study.settings, embeddings, study.folder, method)
    external.test(study, "away", "tiny simpleshot", "cpu")
    table = study.external_predictions
    of_fold = table[(table["arm"] == "tiny simpleshot") & (table["size"] == 1.0) & (table["fold"] == 1)]
    labels, _ = patches.load(predictions.find_external(study.settings, "away", study.folder))
    rows = pd.DataFrame({"file": labels["slide_id"], "x": labels["x_l0_px"], "y": labels["y_l0_px"]})
    rows.to_csv(folder / "away.csv", index=False)
    scored = mfcore.predict(study, "tiny simpleshot", folder / "away.csv", folder / "data" / "away", "cpu")
    np.testing.assert_allclose(of_fold["score"], scored.table.loc[of_fold["patch_id"], "score_fold1"], atol=2e-6)
    of_folds = scored.table[["score_fold0", "score_fold1"]]
    np.testing.assert_allclose(scored.table["score_sd"], of_folds.std(axis=1), atol=1e-12)


def test_images_of_the_same_name_are_no_shared_case(tmp_path):
    """Two hospitals number their images alike; only what has the same pixels is shared."""
    study = "title: T\ndata: {{source: images, positive: a, negative: b}}\npatches: {{size_px: 8, um_per_px: null}}\n"
    study += "splits: {{sizes: [1.0], by_domain: false, n_folds: 2}}\nencoders: [resnet50]\nname: {name}\n"
    (tmp_path / "studies").mkdir()
    for number, name in enumerate(("home", "away")):
        more = "test_on: [away.yaml]\n" if name == "home" else ""
        (tmp_path / "studies" / f"{name}.yaml").write_text(study.format(name=name) + more)
        rng = np.random.default_rng(number)
        for kind in "ab":
            (tmp_path / "data" / name / kind).mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(0, 255, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / name / kind / f"{i}.png")
    opened_ = opened(tmp_path)
    data.extract(opened_.settings, tmp_path / "data" / "home", opened_.folder)
    kept = external.cut(opened_, "away", tmp_path / "data" / "home")
    assert kept.record["facts"]["shared_cases"] == [] and kept.record["facts"]["n_kept"] == 8
