"""RankMe and ODCorr beside the probes: of which embeddings, by sample size, over encoders, and what is said of them."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import h5py
import made_embeddings
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mfcore import store
from mfcore.analysis import (
    captions_representation,
    compare,
    compare_representation as compared,
    compare_representation_tasks as on_tasks,
    figures_representation,
)
from mfcore.measures import representation
from mfcore.measures.representation import RepresentationError
from mfcore.study import arms as study_arms
from mfcore.study.config import Data, Pretraining, Settings

ENCODERS = ("made", "second", "third", "fourth")
STUDY = Settings("t", "A test", Data("midog"), encoders=ENCODERS, pretraining=(Pretraining("fourth"),))
SYNTHETIC = replace(STUDY, data=Data("synthetic"))


def features(n=240, n_dims=10, seed=0):
    rng = np.random.default_rng(seed)
    return 20 * (rng.normal(size=(n, n_dims)) @ rng.normal(size=(n_dims, n_dims)) + 3).astype(np.float32)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A study whose encoder is embedded and probed, with an older embedding of the same name beside it."""
    folder = tmp_path_factory.mktemp("results")
    x = features()
    run = made_embeddings.write(folder, x, (x[:, 0] + 20 * np.random.default_rng(1).normal(size=240) > 60).astype(int))
    study_arms.fit_probe(made_embeddings.STUDY, run, folder)
    other = store.open_run(folder, "embeddings", "made", {"other": 1}, run.identity["inputs"])
    with h5py.File(other.path("embeddings.h5"), "w") as out:
        out["features"] = features(seed=9)
    other.finish(["embeddings.h5"])
    return folder


def made(rankme=(40, 30, 20, 10), auroc=(0.8, 0.75, 0.7, 0.6), encoders=ENCODERS):
    """A made-up table of encoders."""
    rows = pd.DataFrame({"encoder": encoders, "origin": "", "n": 1000, "n_dims": 192, "n_constant": 0, "rankme": rankme})
    return rows.assign(
        odcorr_abs=1 / rows["rankme"], odcorr_sq=0.5 / rows["rankme"] ** 2, auroc=auroc, auroc_sd=0.02, n_folds=5
    )


def subsamples():
    rows = list(compared.subsampled(features(200), 1))
    return pd.concat([pd.DataFrame(rows).assign(encoder=name) for name in ("made", "fourth")], ignore_index=True)


def test_a_row_is_of_the_embeddings_that_the_probe_read_and_of_its_scores(results):
    (row,) = compared.table(made_embeddings.STUDY, results).to_dict("records")
    x = features()
    assert (row["encoder"], row["n"], row["n_dims"], row["n_constant"]) == ("made", 240, 10, 0)
    for name in compared.TITLES:
        assert row[name] == pytest.approx(getattr(representation, name)(x), rel=1e-6)
    scores = compare.scores(compare.collect(made_embeddings.STUDY, results).predictions)
    means = scores.groupby("size")["auroc"].mean()
    assert row["auroc"] == pytest.approx(means[1.0]) and abs(means[1.0] - means[0.2]) > 0.005 and row["n_folds"] == 3


def test_03_s_row_is_that_of_the_table(results):
    study = made_embeddings.STUDY
    embeddings = store.Run(compared.find(study, results)["made"].parent, {"name": "made"})
    scaling = compare.scaling_table(compare.scores(compare.collect(study, results).predictions), study)
    row, (expected,) = compared.of_run(study, embeddings, scaling), compared.table(study, results).to_dict("records")
    assert row.to_dict() == pytest.approx(expected)


def test_without_a_probe_the_current_embeddings_of_the_study_s_patches_count(results):
    study = replace(made_embeddings.STUDY, encoders=("made", "unprobed", "lacking"))
    patches = store.find_run(
        results, "patches", study.name, store.read_json(next(results.glob("patches-*/run.json")))["config"]
    )
    for seed, source in ((3, patches.key), (4, "others")):
        run = store.open_run(
            results, "embeddings", "unprobed", {"seed": seed, "size_px": study.patches.size_px}, {"patches": source}
        )
        with h5py.File(run.path("embeddings.h5"), "w") as out:
            out["features"] = features(seed=seed)
        run.finish(["embeddings.h5"])
    table = compared.table(study, results).set_index("encoder")
    assert list(table.index) == ["made", "unprobed"]
    assert table.loc["unprobed", "rankme"] == pytest.approx(representation.rankme(features(seed=3)), rel=1e-6)
    assert math.isnan(table.loc["unprobed", "auroc"]) and table.loc["unprobed", "n_folds"] == 0
    assert compared.readable(table.reset_index())["AUROC of its probe"].iloc[1] == "–"


def test_a_study_without_embeddings_has_an_empty_table_and_no_subsamples(results):
    study = replace(made_embeddings.STUDY, encoders=("lacking",))
    table = compared.table(study, results)
    assert not len(table) and list(table) == compared.COLUMNS
    assert "No encoder" in captions_representation.all_encoders(study, table)
    with pytest.raises(store.StoreError, match="run notebook 02"):
        compared.by_sample_size(study, results)


def test_any_hdf5_file_is_measured_in_chunks(tmp_path, monkeypatch):
    x = features(seed=5)
    with h5py.File(tmp_path / "any.h5", "w") as out:
        out["features"], out["coords"] = x, np.zeros((240, 2))
        out["embedding"] = x[:, :4]
    monkeypatch.setattr(compared, "CHUNK_ROWS", 100)
    found = compared.of_file(tmp_path / "any.h5")
    assert (found["n"], found["n_dims"]) == (240, 10)
    assert found["odcorr_sq"] == pytest.approx(representation.odcorr_sq(x))
    assert compared.of_file(str(tmp_path / "any.h5"), "embedding")["n_dims"] == 4


def test_an_array_of_numpy_s_is_measured_too(tmp_path, monkeypatch):
    x = features(seed=5)
    np.save(tmp_path / "any.npy", x.astype(np.float16))
    monkeypatch.setattr(compared, "CHUNK_ROWS", 100)
    assert compared.of_file(tmp_path / "any.npy")["rankme"] == pytest.approx(representation.rankme(x), rel=1e-3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (np.zeros(3), r"any\.npy holds an array of shape \(3,\); features are \(n, n_dims\)"),
        (np.array([["a", "b"]]), r"any\.npy: features hold <U1, no numbers"),
        (np.zeros((0, 3)), r"any\.npy: no rows"),
        (np.array([[1, None]]), r"any\.npy can't be read as an array of numpy's"),
    ],
)
def test_an_array_that_holds_no_features_is_refused(tmp_path, content, said):
    np.save(tmp_path / "any.npy", content)
    with pytest.raises((store.StoreError, RepresentationError), match=said):
        compared.of_file(tmp_path / "any.npy")


def test_a_file_that_has_no_such_features_is_refused(tmp_path):
    with pytest.raises(store.StoreError, match="missing"):
        compared.of_file(tmp_path / "none.h5")
    with h5py.File(tmp_path / "other.h5", "w") as out:
        out["feats"], out["features"] = np.zeros((3, 2)), np.zeros(3)
    with pytest.raises(store.StoreError, match=r"'feats': \(3, 2\)"):
        compared.of_file(tmp_path / "other.h5")
    with h5py.File(tmp_path / "nan.h5", "w") as out:
        out["features"] = np.full((3, 2), np.nan)
    with pytest.raises(RepresentationError, match=r"nan\.h5: 3 rows hold NaN"):
        compared.of_file(tmp_path / "nan.h5")


def test_a_file_that_is_cut_short_is_said(tmp_path):
    file = tmp_path / "torn.h5"
    with h5py.File(file, "w") as out:
        out["features"] = features()
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(store.StoreError, match=r"torn\.h5 can't be read as HDF5"):
        compared.of_file(file)


def test_subsamples_are_nested_seeded_and_the_same_patches_for_every_encoder(monkeypatch):
    x = features(200)
    marked = np.arange(200, dtype=np.float64)[:, None]  # which rows were taken can be read off sums of squares

    def rows_of(array, seed):
        return pd.DataFrame(compared.subsampled(array, seed, n_draws=2))

    table = rows_of(x, 1)
    assert list(table["n"]) == [64, 128, 200, 64, 128], "all patches once"
    pd.testing.assert_frame_equal(table, rows_of(x, 1))
    assert table["rankme"][0] != rows_of(x, 2)["rankme"][0] and table["rankme"][0] != table["rankme"][3]
    assert table["rankme"][2] == pytest.approx(representation.rankme(x), rel=1e-9)
    seen = []

    class Noting(representation.Streaming):
        def add(self, chunk):
            seen.append(set(chunk[:, 0].astype(int)))
            return super().add(chunk)

    monkeypatch.setattr(compared, "Streaming", Noting)
    rows_of(np.hstack([marked, x]), 1)
    first, seen = seen, []
    rows_of(np.hstack([marked, features(200, 7, 8)]), 1)
    assert first == seen, "another encoder has other rows"
    assert [len(part) for part in first] == [64, 64, 72, 64, 64] and len(set().union(*first[:3])) == 200


@pytest.mark.parametrize(
    ("n", "sizes"), [(1, [1]), (64, [64]), (85, [85]), (100, [64, 100]), (2000, [64, 128, 256, 512, 1024, 2000])]
)
def test_sizes_double_and_end_with_all(n, sizes):
    assert compared.sizes_of(n) == sizes


def test_the_correlation_is_spearman_s_with_the_p_of_all_orders_and_bonett_and_wright_s_interval():
    table = made(rankme=(40, 20, 30, 10, 5), auroc=(0.8, 0.75, 0.7, 0.6, 0.65), encoders=list("abcde"))
    row = compared.correlations(table).set_index("metric").loc["rankme"]
    first, second = table["rankme"], table["auroc"]
    rho = stats.spearmanr(first, second).statistic
    assert row["rho"] == pytest.approx(rho) and row["n"] == 5
    others = [stats.spearmanr(first, order).statistic for order in itertools.permutations(second)]
    assert row["p"] == pytest.approx(np.mean(np.abs(others) >= abs(rho) - 1e-9))
    half = 1.959964 * math.sqrt((1 + rho**2 / 2) / 2)
    assert (row["low"], row["high"]) == pytest.approx(
        (math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)), rel=1e-5
    )
    assert row["least_p"] == pytest.approx(2 / 120)


def test_a_correlation_over_many_encoders_has_student_s_p():
    rng = np.random.default_rng(0)
    table = made(rankme=rng.random(20), auroc=rng.random(20), encoders=[f"e{i}" for i in range(20)])
    row = compared.correlations(table).set_index("metric").loc["rankme"]
    assert row["p"] == pytest.approx(stats.spearmanr(table["rankme"], table["auroc"]).pvalue)
    assert row["low"] < row["rho"] < row["high"]


def test_few_encoders_have_no_interval_and_two_no_correlation():
    three = compared.correlations(made().iloc[:3]).iloc[0]
    assert three["rho"] == 1 and math.isnan(three["low"]) and three["p"] == pytest.approx(1 / 3) == three["least_p"]
    two = compared.correlations(made().iloc[:2])
    assert two[["rho", "p", "least_p"]].isna().all(axis=None) and set(two["n"]) == {2}
    alike = compared.correlations(made(rankme=(7, 7, 7, 7))).iloc[0]
    assert math.isnan(alike["rho"]) and alike["n"] == 4


def test_snapshots_and_encoders_without_a_probe_do_not_count():
    table = pd.concat([made(), made(encoders=("fourth@10", "fourth@20", "p", "q"), auroc=(0.5, 0.6, np.nan, 0.9))])
    assert set(compared.correlations(table)["n"]) == {5}


def test_an_encoder_without_a_metric_is_left_out_of_its_correlation_alone():
    """One whose dimensions are all constant but one has a RankMe and no ODCorr."""
    table = made()
    table.loc[3, "odcorr_abs"] = np.nan
    found = compared.correlations(table).set_index("metric")
    assert found["n"].to_dict() == {"rankme": 4, "odcorr_abs": 3, "odcorr_sq": 4}
    assert found.loc["odcorr_abs", "rho"] == -1 and found.loc["odcorr_abs", "p"] == pytest.approx(1 / 3)


def judged(tasks=("bach", "crc")):
    """A made-up table of encoders on tasks."""
    rows = [made().assign(task=task, score=made()["auroc"] - 0.1 * i, score_sd=0.01) for i, task in enumerate(tasks)]
    return pd.concat(rows, ignore_index=True).assign(metric_of_task="balanced accuracy", n_runs=5)


@pytest.fixture
def judging(tmp_path, monkeypatch):
    """Tasks whose runs left features, but for a segmentation's, with the scores that they are given here."""
    rows, runs = [], {}
    for i, (task, encoder) in enumerate(itertools.product(("bach", "consep"), ENCODERS)):
        run = store.open_run(tmp_path, "judge", f"{task}.{encoder}", {}, {})
        if task == "bach" and encoder != "third":
            with h5py.File(run.path("features.h5"), "w") as out:
                out["features"] = features(seed=i)
        runs[task, encoder] = run
        kind = "classification" if task == "bach" else "segmentation"
        for split in ("val", "test"):
            rows.append((task, kind, encoder, split, "balanced_accuracy", 0.5 + i / 10 + (split == "val"), 0.02, 5))
    table = pd.DataFrame(rows, columns=["task", "kind", "encoder", "split", "metric", "mean", "sd", "n_runs"])
    monkeypatch.setattr(on_tasks.compare_tasks, "table", lambda study, results: table)
    monkeypatch.setattr(on_tasks.compare_tasks, "runs", lambda study, results: runs)
    return tmp_path


def test_a_task_s_row_is_of_its_own_images_beside_what_the_encoder_scores_there(judging):
    rows = on_tasks.table(STUDY, judging)
    assert list(rows) == on_tasks.COLUMNS
    assert list(rows["encoder"]) == ["made", "second", "fourth"] and set(rows["task"]) == {"bach"}
    assert rows["rankme"][1] == pytest.approx(representation.rankme(features(seed=1)), rel=1e-6)
    assert list(rows["score"]) == pytest.approx([0.5, 0.6, 0.8]), "of the test split"
    assert list(rows["origin"]) == ["", "", "pretrained here"]


def test_tasks_are_correlated_each_by_itself():
    rows = judged()
    rows.loc[rows["task"] == "crc", "score"] = [0.1, 0.2, 0.3, 0.4]
    found = on_tasks.correlations(rows).set_index(["task", "metric"])["rho"]
    assert found["bach", "rankme"] == pytest.approx(1) and found["crc", "rankme"] == pytest.approx(-1)
    assert len(on_tasks.correlations(rows.iloc[:0])) == 3, "no task has no correlation, and no error"


def every_caption(study):
    table, rows = made(), subsamples()
    related = compared.correlations(table)
    return {
        "tasks": captions_representation.against_tasks(study, judged(), on_tasks.correlations(judged())),
        "no_tasks": captions_representation.against_tasks(study, judged().iloc[:0], on_tasks.correlations(judged().iloc[:0])),
        "one": captions_representation.one(study, table.iloc[0]),
        "all": captions_representation.all_encoders(study, table),
        "against": captions_representation.against_probes(study, table, related),
        "by_size": captions_representation.by_sample_size(study, rows),
    }


@pytest.mark.parametrize("name", ["one", "all", "against", "by_size", "tasks", "no_tasks"])
def test_a_caption_of_synthetic_data_says_so_and_holds_no_missing_number(name):
    assert "synthetic data" in every_caption(SYNTHETIC)[name] and "synthetic" not in every_caption(STUDY)[name]
    text = every_caption(STUDY)[name]
    assert "nan" not in text.split() and "inf" not in text.split() and "  " not in text and text.startswith("**")


def test_captions_say_what_was_found():
    tasks = every_caption(STUDY)["tasks"]
    assert "bach: RankMe +1.00 (no interval), p = 0.083" in tasks and "crc: RankMe +1.00" in tasks and "of them" not in tasks
    home = replace(STUDY, pretraining=(Pretraining("second"), Pretraining("fourth")))
    rows = judged().assign(origin=["", "pretrained here"] * 4)
    said = captions_representation.against_tasks(home, rows, on_tasks.correlations(rows))
    assert said.endswith("2 of them were pretrained here, and are variants of few recipes.")
    assert "made has RankMe 40.0 (at most 192)" in every_caption(STUDY)["one"]
    assert "its probe's AUROC is 0.80" in every_caption(STUDY)["one"]
    assert "home-made foundation model" in every_caption(STUDY)["against"]
    assert "RankMe +1.00 (no interval), p = 0.083, in the direction that the papers saw" in every_caption(STUDY)["against"]
    assert "dimensions differ" not in every_caption(STUDY)["all"]
    wide = captions_representation.all_encoders(STUDY, made().assign(n_dims=[192, 192, 1280, 192], n_constant=[0, 3, 0, 0]))
    assert "dimensions differ (192 to 1,280)" in wide and "left out of ODCorr: second 3." in wide
    mixed = made().assign(n_dims=[192, 192, 1280, 192])
    said = captions_representation.against_probes(STUDY, mixed, compared.correlations(mixed))
    assert "it ranks encoders of one width" in said and "each p by itself, uncorrected" in said
    unlike = judged(["bach"]).assign(n_dims=mixed["n_dims"])
    said = captions_representation.against_tasks(STUDY, unlike, on_tasks.correlations(unlike))
    assert "it ranks encoders of one width" in said and "each p by itself, uncorrected" in said
    assert "one width" not in every_caption(STUDY)["against"] + every_caption(STUDY)["tasks"]
    unprobed = made().iloc[0].copy()
    unprobed["auroc"], unprobed["odcorr_abs"], unprobed["n_constant"] = np.nan, np.nan, 191
    said = captions_representation.one(STUDY, unprobed)
    assert "AUROC" not in said and "fewer than two dimensions vary" in said and "191 constant" in said
    against = made(rankme=(10, 20, 30, 40))
    assert "RankMe -1.00 (no interval), p = 0.083, not in" in captions_representation.against_probes(
        STUDY, against, compared.correlations(against)
    )


@pytest.mark.parametrize(
    ("n", "said"),
    [
        (1, "With 1 encoder there is nothing to correlate."),
        (2, "two always lie on a line"),
        (3, "p = 0.33 and no interval: the figure is an illustration"),
        (4, "even a perfect order has p = 0.08, so that no correlation can be told from chance"),
        (7, "7 encoders that share"),
        (20, "The 20 encoders share"),
    ],
)
def test_one_plain_sentence_says_what_so_few_encoders_can_show(n, said):
    rng = np.random.default_rng(1)
    table = made(rankme=rng.random(n), auroc=rng.random(n), encoders=[f"e{i}" for i in range(n)])
    text = captions_representation.what_encoders_show(compared.correlations(table))
    assert said in text and text.endswith(".") and text.count(". ") == 0


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text")))


def figures_of(study):
    table = made()
    return {
        "tasks": lambda: figures_representation.against_tasks(study, judged(), on_tasks.correlations(judged())),
        "against": lambda: figures_representation.against_probes(study, table, compared.correlations(table)),
        "by_size": lambda: figures_representation.by_sample_size(study, subsamples()),
    }


@pytest.mark.parametrize("name", ["against", "by_size", "tasks"])
def test_figures_say_synthetic_are_whole_and_mark_the_home_made_encoder(name):
    figure = figures_of(SYNTHETIC)[name]()
    assert "synthetic" in texts(figure) and "synthetic" not in texts(figures_of(STUDY)[name]())
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox().extents * figure.dpi, figure.bbox.size
    assert max(-box[0], -box[1], box[2] - width, box[3] - height) < 1, "something is cut off"
    (legend,) = figure.legends
    assert "fourth (probe, pretrained here)" in [text.get_text() for text in legend.get_texts()]
    assert legend.get_window_extent().y1 < min(axis.get_window_extent().y0 for axis in figure.axes)


def test_snapshots_share_a_name_in_the_legend():
    table = judged(tasks=("bach",))
    some = table.assign(encoder=[f"fourth@{10 * i}" for i in range(len(table))])
    figure = figures_representation.against_tasks(STUDY, pd.concat([table, some]), on_tasks.correlations(table))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(names) == len(table) + 1 and figures_representation.SNAPSHOTS in names
    assert len(figure.axes[0].containers) == len(table), "errors are drawn for whole encoders"


def test_a_panel_shows_each_probed_encoder_where_it_lies():
    table = made(auroc=(0.8, 0.75, 0.7, np.nan))
    figure = figures_representation.against_probes(STUDY, table, compared.correlations(table))
    for axis, metric in zip(figure.axes, compared.TITLES, strict=True):
        points = {c.get_label(): (c.lines[0].get_xdata()[0], c.lines[0].get_ydata()[0]) for c in axis.containers}
        assert points == {f"{r.encoder} (probe)": (getattr(r, metric), r.auroc) for r in table.iloc[:3].itertuples()}
        assert axis.get_xlabel() == compared.TITLES[metric]
    assert [axis.get_xscale() for axis in figure.axes] == ["linear"] * 3
    wide = made(rankme=(400, 30, 20, 10))
    axes = figures_representation.against_probes(STUDY, wide, compared.correlations(wide)).axes
    assert [axis.get_xscale() for axis in axes] == ["log", "linear", "linear"], "one has tens of times as much RankMe"
    assert figure.axes[0].get_title("left") == "ρ = +1.00" and figure.axes[1].get_title("left") == "ρ = -1.00"
    few = figures_representation.against_probes(STUDY, table.iloc[:2], compared.correlations(table.iloc[:2]))
    assert few.axes[0].get_title("left") == "ρ: too few" and "n = 2 encoders" in texts(few)


def test_chance_is_drawn_where_it_gives_a_correlation():
    axes = figures_representation.by_sample_size(STUDY, subsamples()).axes
    dotted = [[line for line in axis.lines if "chance" in str(line.get_label())] for axis in axes]
    assert [len(found) for found in dotted] == [0, 1, 1]
    assert list(dotted[2][0].get_ydata()) == pytest.approx([1 / 63, 1 / 127, 1 / 199])


def test_the_demo_s_embeddings_streamed_agree_with_a_singular_value_decomposition():
    files = sorted((Path(__file__).parents[2] / "results" / "demo").glob("embeddings-vit_tiny_random-*/embeddings.h5"))
    if not files:
        pytest.skip("the demo study has not been run: no embeddings of vit_tiny_random")
    with h5py.File(files[0]) as content:
        x = content["features"][:].astype(np.float64)
    share = np.linalg.svd(x, compute_uv=False)
    share = share / share.sum() + 1e-7
    assert compared.of_file(files[0])["rankme"] == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-6)
    r = np.corrcoef(x.T)[~np.eye(x.shape[1], dtype=bool)]
    assert compared.of_file(files[0])["odcorr_abs"] == pytest.approx(np.abs(r).mean(), rel=1e-9)
    assert compared.of_file(files[0])["odcorr_sq"] == pytest.approx((r**2).mean(), rel=1e-9)
