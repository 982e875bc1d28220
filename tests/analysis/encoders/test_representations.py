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
from mfcore.analysis.encoders import representations as compared, tasks
from mfcore.measures import representation
from mfcore.measures.representation import RepresentationError
from mfcore.study import arms as study_arms, predictions as study_predictions
from mfcore.study.config import Data, Pretraining, Settings, TaskOptions
from mfcore.study.study import Study

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
    (row,) = compared.encoders_table(Study(made_embeddings.STUDY, results)).to_dict("records")
    x = features()
    assert (row["encoder"], row["n"], row["n_dims"], row["n_constant"]) == ("made", 240, 10, 0)
    r = np.corrcoef(x.T.astype(np.float64))[~np.eye(10, dtype=bool)]
    expected = {"rankme": representation.rankme(x), "odcorr_abs": np.abs(r).mean(), "odcorr_sq": (r**2).mean()}
    assert {name: row[name] for name in compared.TITLES} == pytest.approx(expected, rel=1e-6)
    scores = study_predictions.scores(study_predictions.collect(made_embeddings.STUDY, results).predictions)
    means = scores.groupby("size")["auroc"].mean()
    assert row["auroc"] == pytest.approx(means[1.0]) and abs(means[1.0] - means[0.2]) > 0.005 and row["n_folds"] == 3


def test_03_s_row_is_that_of_the_table(results):
    study = Study(made_embeddings.STUDY, results)
    exhibit = compared.one(study, "made")
    assert exhibit.table.equals(compared.encoders_table(study)) and study.runs["made"].key in exhibit.name


def test_without_a_probe_the_current_embeddings_of_the_study_s_patches_count(results):
    study = replace(made_embeddings.STUDY, encoders=("made", "unprobed", "lacking"))
    patches = store.find_run(
        results, "patches", study.name, store.read_json(next(results.glob("patches-*/run.json")))["config"]
    )
    for seed, source in ((3, patches.key), (4, "others")):
        known = {"size_px": study.patches.size_px, "patches": source}
        config = {"seed": seed, "size_px": study.patches.size_px}
        run = store.open_run(results, "embeddings", "unprobed", config, {"patches": source}, known)
        with h5py.File(run.path("embeddings.h5"), "w") as out:
            out["features"] = features(seed=seed)
        run.finish(["embeddings.h5"])
    table = compared.encoders_table(Study(study, results)).set_index("encoder")
    assert list(table.index) == ["made", "unprobed"]
    assert table.loc["unprobed", "rankme"] == pytest.approx(representation.rankme(features(seed=3)), rel=1e-6)
    assert math.isnan(table.loc["unprobed", "auroc"]) and table.loc["unprobed", "n_folds"] == 0


def test_a_study_without_embeddings_has_an_empty_table_and_no_subsamples(results):
    study = replace(made_embeddings.STUDY, encoders=("lacking",))
    table = compared.encoders_table(Study(study, results))
    assert not len(table) and list(table) == compared.COLUMNS
    exhibit = compared.against_probes(Study(study, results))
    assert "no encoder" in exhibit.caption and exhibit.figure is None
    with pytest.raises(store.StoreError, match="run notebook 02"):
        compared.sizes_table(Study(study, results))


def test_any_hdf5_file_is_measured_in_chunks(tmp_path, monkeypatch):
    x = features(seed=5)
    with h5py.File(tmp_path / "any.h5", "w") as out:
        out["features"], out["coords"] = x, np.zeros((240, 2))
        out["embedding"] = x[:, :4]
    monkeypatch.setattr(compared, "CHUNK_ROWS", 100)
    found = compared.of_file(tmp_path / "any.h5")
    assert (found["n"], found["n_dims"]) == (240, 10)
    assert found["odcorr_sq"] == pytest.approx(representation.Streaming(x.shape[1]).add(x).odcorr_sq())
    assert compared.of_file(str(tmp_path / "any.h5"), "embedding")["n_dims"] == 4


def test_an_array_of_numpy_s_is_measured_too(tmp_path, monkeypatch):
    x = features(seed=5)
    np.save(tmp_path / "any.npy", x.astype(np.float16))
    monkeypatch.setattr(compared, "CHUNK_ROWS", 100)
    assert compared.of_file(tmp_path / "any.npy")["rankme"] == pytest.approx(representation.rankme(x), rel=1e-3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (np.zeros(3), r"any\.npy holds no array of two dimensions; features are \(n, n_dims\)"),
        (np.array([["a", "b"]]), r"any\.npy: features hold <U1, no numbers"),
        (np.zeros((0, 3)), r"any\.npy: no rows"),
        (np.array([[1, None]]), r"any\.npy can't be read"),
    ],
)
def test_an_array_that_holds_no_features_is_refused(tmp_path, content, said):
    np.save(tmp_path / "any.npy", content)
    with pytest.raises((store.StoreError, RepresentationError), match=said):
        compared.of_file(tmp_path / "any.npy")


def test_a_file_that_has_no_such_features_is_refused(tmp_path):
    with pytest.raises(store.StoreError, match=r"none\.h5 can't be read"):
        compared.of_file(tmp_path / "none.h5")
    with h5py.File(tmp_path / "other.h5", "w") as out:
        out["feats"], out["features"] = np.zeros((3, 2)), np.zeros(3)
    with pytest.raises(store.StoreError, match="no array of two dimensions"):
        compared.of_file(tmp_path / "other.h5")
    with pytest.raises(store.StoreError, match=r"can't be read.*give an HDF5 file with a dataset 'embedding'"):
        compared.of_file(tmp_path / "other.h5", "embedding")
    with h5py.File(tmp_path / "nan.h5", "w") as out:
        out["features"] = np.full((3, 2), np.nan)
    with pytest.raises(RepresentationError, match=r"nan\.h5: 3 rows hold NaN"):
        compared.of_file(tmp_path / "nan.h5")


def test_a_file_that_is_cut_short_is_said(tmp_path):
    file = tmp_path / "torn.h5"
    with h5py.File(file, "w") as out:
        out["features"] = features()
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(store.StoreError, match=r"torn\.h5 can't be read"):
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
    row = compared.correlate(table).set_index("metric").loc["rankme"]
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
    row = compared.correlate(table).set_index("metric").loc["rankme"]
    assert row["p"] == pytest.approx(stats.spearmanr(table["rankme"], table["auroc"]).pvalue)
    assert row["low"] < row["rho"] < row["high"]


def test_few_encoders_have_no_interval_and_two_no_correlation():
    three = compared.correlate(made().iloc[:3]).iloc[0]
    assert three["rho"] == 1 and math.isnan(three["low"]) and three["p"] == pytest.approx(1 / 3) == three["least_p"]
    two = compared.correlate(made().iloc[:2])
    assert two[["rho", "p", "least_p"]].isna().all(axis=None) and set(two["n"]) == {2}
    alike = compared.correlate(made(rankme=(7, 7, 7, 7))).iloc[0]
    assert math.isnan(alike["rho"]) and alike["n"] == 4


def test_snapshots_and_encoders_without_a_probe_do_not_count():
    table = pd.concat([made(), made(encoders=("fourth@10", "fourth@20", "p", "q"), auroc=(0.5, 0.6, np.nan, 0.9))])
    assert set(compared.correlate(table)["n"]) == {5}


def test_an_encoder_without_a_metric_is_left_out_of_its_correlation_alone():
    """One whose dimensions are all constant but one has a RankMe and no ODCorr."""
    table = made()
    table.loc[3, "odcorr_abs"] = np.nan
    found = compared.correlate(table).set_index("metric")
    assert found["n"].to_dict() == {"rankme": 4, "odcorr_abs": 3, "odcorr_sq": 4}
    assert found.loc["odcorr_abs", "rho"] == -1 and found.loc["odcorr_abs", "p"] == pytest.approx(1 / 3)


def judged(tasks=("bach", "crc")):
    """A made-up table of encoders on tasks."""
    rows = [made().assign(task=task, score=made()["auroc"] - 0.1 * i, score_sd=0.01) for i, task in enumerate(tasks)]
    table = pd.concat(rows, ignore_index=True)
    return table.assign(measured_on=table["task"], metric_of_task="balanced accuracy", n_runs=5)


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
    monkeypatch.setattr(tasks, "scores_table", lambda study: table)
    monkeypatch.setattr(tasks, "runs", lambda study: runs)
    return tmp_path


def test_a_task_s_row_is_of_its_own_images_beside_what_the_encoder_scores_there(judging):
    rows = compared.tasks_table(Study(STUDY, judging))
    assert list(rows) == [*compared.ON_TASKS, *compared.ON_SCORES] and set(rows["measured_on"]) == {"bach"}
    assert list(rows["encoder"]) == ["made", "second", "fourth"] and set(rows["task"]) == {"bach"}
    assert rows["rankme"][1] == pytest.approx(representation.rankme(features(seed=1)), rel=1e-6)
    assert list(rows["score"]) == pytest.approx([0.5, 0.6, 0.8]), "of the test split"
    assert list(rows["origin"]) == ["", "", "pretrained here"]


def test_a_study_without_tasks_has_an_empty_table_of_them(tmp_path):
    study = Study(STUDY, tmp_path)
    assert compared.tasks_table(study).empty and len(compared.task_correlations(study).table) == 3
    assert "no encoder with a score" in compared.against_tasks(study).caption


def test_another_seed_of_a_pretraining_is_no_encoder_to_correlate_over(judging):
    seeds = (Pretraining("fourth"), Pretraining("second", seed=1), Pretraining("made", n_steps=9))
    study = Study(replace(STUDY, pretraining=seeds), judging)
    assert list(compared.tasks_table(study)["encoder"]) == ["made", "fourth"]
    assert list(compared.judged_table(study)["encoder"]) == ["made", "second", "fourth"]


def test_a_task_s_scores_stand_beside_what_is_measured_on_the_images_that_the_study_names(judging):
    """kaiko's Fig. 5: ODCorr of patches, accuracy on natural images. Masks have scores and no features of their own."""
    on = (TaskOptions("bach"), TaskOptions("consep", measured_on="bach"))
    rows = compared.tasks_table(Study(replace(STUDY, tasks=on), judging))
    own, other = (rows[rows["task"] == task] for task in ("bach", "consep"))
    assert list(other["encoder"]) == list(own["encoder"]) == ["made", "second", "fourth"]
    assert list(other["rankme"]) == list(own["rankme"]) and set(rows["measured_on"]) == {"bach"}
    assert list(other["score"]) == pytest.approx([0.9, 1.0, 1.2])


def test_a_caption_says_of_which_images_a_metric_is(exhibits):
    caption = exhibits(STUDY)["against_tasks"].caption
    assert "of the same images, as kaiko 2024" in caption
    rows = judged().assign(measured_on="bach")
    caption = exhibits(STUDY, rows=rows)["against_tasks"].caption
    assert "of the same images, for crc of bach's images, as kaiko 2024" in caption


def test_tasks_are_correlated_each_by_itself():
    rows = judged()
    rows.loc[rows["task"] == "crc", "score"] = [0.1, 0.2, 0.3, 0.4]
    found = compared.correlate_tasks(rows).set_index(["task", "metric"])["rho"]
    assert found["bach", "rankme"] == pytest.approx(1) and found["crc", "rankme"] == pytest.approx(-1)
    assert len(compared.correlate_tasks(rows.iloc[:0])) == 3, "no task has no correlation, and no error"


@pytest.fixture
def exhibits(monkeypatch, tmp_path):
    """Every exhibit of made-up tables, by name, of a study."""

    def make(settings, table=None, rows=None):
        table, rows = (made() if table is None else table), (judged() if rows is None else rows)
        monkeypatch.setattr(compared, "encoders_table", lambda study: table)
        monkeypatch.setattr(compared, "tasks_table", lambda study: rows)
        monkeypatch.setattr(compared, "sizes_table", lambda study: subsamples())
        every = (
            compared.rankme,
            compared.against_probes,
            compared.probe_correlations,
            compared.against_tasks,
            compared.task_correlations,
            compared.by_sample_size,
        )
        return {exhibit.__name__: exhibit(Study(settings, tmp_path)) for exhibit in every}

    return make


def test_captions_say_synthetic_and_hold_no_missing_number(exhibits):
    for name, exhibit in exhibits(STUDY, rows=judged().iloc[:0]).items():
        assert "synthetic" not in exhibit.caption and not {"nan", "inf"} & set(exhibit.caption.split()), name
    for exhibit in exhibits(SYNTHETIC).values():
        assert "synthetic data" in exhibit.caption and exhibit.caption.count(". ") <= 4


def test_captions_say_what_so_few_encoders_can_show_and_how_rankme_compares(exhibits):
    every = exhibits(STUDY)
    assert "Over 4 encoders a perfect order has p = 0.083." in every["against_probes"].caption
    assert "ranks encoders of one width" in every["rankme"].caption
    assert "count for fewer than they are" in every["task_correlations"].caption
    assert "no encoder with a score" in exhibits(STUDY, rows=judged().iloc[:0])["against_tasks"].caption


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text")))


@pytest.mark.parametrize("name", ["against_probes", "by_sample_size", "against_tasks"])
def test_figures_say_synthetic_and_are_whole(exhibits, name):
    figure = exhibits(SYNTHETIC)[name].figure
    assert "synthetic" in texts(figure) and "synthetic" not in texts(exhibits(STUDY)[name].figure)
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox().extents * figure.dpi, figure.bbox.size
    assert max(-box[0], -box[1], box[2] - width, box[3] - height) < 1, "something is cut off"
    (legend,) = figure.legends
    assert {"made", "fourth"} <= {text.get_text() for text in legend.get_texts()}
    assert legend.get_window_extent().y1 < min(axis.get_window_extent().y0 for axis in figure.axes)


def test_encoders_that_the_study_does_not_list_share_a_name_and_snapshots_are_in_the_table_alone(exhibits):
    table = judged(tasks=("bach",))
    some = [table.assign(encoder=[f"{name}{i}" for i in range(len(table))]) for name in ("fourth@1", "mini")]
    exhibit = exhibits(STUDY, rows=pd.concat([table, *some]))["against_tasks"]
    names = [text.get_text() for text in exhibit.figure.legends[0].get_texts()]
    assert sorted(names) == sorted([*ENCODERS, "others, pretrained here"])
    assert exhibit.table["encoder"].str.startswith("fourth@1").sum() == len(table)


def test_a_panel_shows_each_probed_encoder_where_it_lies(exhibits):
    table = made(auroc=(0.8, 0.75, 0.7, np.nan))
    figure = exhibits(STUDY, table)["against_probes"].figure
    for axis, metric in zip(figure.axes, compared.TITLES, strict=True):
        points = {c.get_label(): (c.lines[0].get_xdata()[0], c.lines[0].get_ydata()[0]) for c in axis.containers}
        assert points == {r.encoder: (getattr(r, metric), r.auroc) for r in table.iloc[:3].itertuples()}
        assert axis.get_xlabel() == compared.TITLES[metric]
    assert [axis.get_xscale() for axis in figure.axes] == ["linear"] * 3
    axes = exhibits(STUDY, made(rankme=(400, 30, 20, 10)))["against_probes"].figure.axes
    assert [axis.get_xscale() for axis in axes] == ["log", "linear", "linear"], "one has tens of times as much RankMe"
    assert figure.axes[0].get_title("left") == "ρ = +1.00" and figure.axes[1].get_title("left") == "ρ = \N{MINUS SIGN}1.00"
    few = exhibits(STUDY, table.iloc[:2])["against_probes"].figure
    assert few.axes[0].get_title("left") == "ρ: too few" and "n = 2 encoders" in texts(few)


def test_chance_is_drawn_where_it_gives_a_correlation(exhibits):
    axes = exhibits(STUDY)["by_sample_size"].figure.axes
    dotted = [[line for line in axis.lines if "chance" in str(line.get_label())] for axis in axes]
    assert [len(lines) for lines in dotted] == [0, 1, 1]
    assert list(dotted[2][0].get_ydata()) == pytest.approx([1 / 63, 1 / 127, 1 / 199])


def test_the_demo_s_embeddings_streamed_agree_with_a_singular_value_decomposition():
    files = sorted((Path(__file__).parents[3] / "results" / "demo").glob("embeddings-vit_tiny_random-*/embeddings.h5"))
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
