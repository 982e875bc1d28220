"""Pretrainings beside one another: comparisons read off configs, snapshots' scores, differences, exhibits and page."""

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t, ttest_ind, ttest_rel

from mfcore import store
from mfcore.analysis.encoders import comparisons as between, pretrainings, tasks
from mfcore.analysis.encoders.comparisons import comparisons
from mfcore.measures.statistics import Interval
from mfcore.study import pretrained
from mfcore.study.config import Data, OnlinePatches, OwnEncoder, Pretraining, Settings, TaskOptions
from mfcore.study.study import Study

BASE = Pretraining("base", n_steps=100, batch_size=8, n_snapshots=2, arguments={"depth": 2})
FOUR, ONE = OnlinePatches(), OnlinePatches(um_per_px=(0.5,))
UNTRAINED = OwnEncoder("untrained", weights="random", architecture=BASE.architecture, arguments={"depth": 2})
OTHER = OwnEncoder("other", weights="random", architecture=BASE.architecture, arguments={"depth": 3})
STUDY = Settings(
    "t",
    "T: made",
    Data("synthetic"),
    encoders=("base", "untrained", "other"),
    own_encoders=(OTHER, UNTRAINED),
    pretraining=(
        BASE,
        replace(BASE, name="from_photographs", start="timm:x"),
        replace(BASE, name="few", patches=OnlinePatches(slide_fraction=0.1)),
        replace(BASE, name="fewer", patches=OnlinePatches(slide_fraction=0.01)),
        replace(BASE, name="thousand", patches=OnlinePatches(n_distinct=1000)),
        replace(BASE, name="few_thousand", patches=OnlinePatches(n_distinct=1000, slide_fraction=0.1)),
        replace(BASE, name="single", patches=ONE),
        replace(BASE, name="two", method="dinov2", base_lr=0.001),
        replace(BASE, name="two_again", method="dinov2", base_lr=0.002),
        replace(BASE, name="longer", n_steps=300),
    ),
    tasks=(TaskOptions("bach", snapshots=True), TaskOptions("consep")),
)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Results with the histories of three pretrainings, a failure, and made-up scores of their snapshots."""
    for i, name in enumerate(("base", "few", "two")):
        run = store.open_run(tmp_path, pretrained.STAGE, name, pretrained.config_of(STUDY, name), {"slides": "made"})
        rows = [
            {"step": step, "loss": 5.0 - step / 50, "target_entropy": 3.0, "rankme": 4.0 + i + step / 50, "seconds": 6.0 * step,
             "patches_per_second": 10.0 + step}
            for step in (50, 100)
        ]  # fmt: skip
        pd.DataFrame(rows).to_json(run.path("history.jsonl"), orient="records", lines=True)
        of_few = {"slides_left_out": {"bad.svs": "no um/px"}, "slides_failed_in_part": {"small.svs": "no place at 2 um/px"}}
        of_few = of_few | {"collapsed": "RankMe 1.0 of 4"} if name == "few" else {}
        run.finish(["history.jsonl"], **of_few)
    failure = {"stage": "08_pretrain", "parameters": {"encoder": "single"}, "reason": "PretrainingError: it collapsed"}
    store.write_json(tmp_path / "failures" / "08_pretrain.single.json", failure)
    rows, worth = [], {"base": 0.7, "few": 0.6, "two": 0.75, "untrained": 0.5, "other": 0.4}
    for name, mean in worth.items():
        for encoder, gain in ((f"{name}@50", 0.05), (name, 0.0)) if name in ("base", "few", "two") else ((name, 0.0),):
            for split in ("val", "test"):
                known = {"metric": "balanced_accuracy", "kind": "classification", "n_runs": 5, "published": np.nan}
                known |= {"difference": np.nan, "low": 0.1, "high": 0.9, "n_items": 9, "n_clusters": 9, "published_by": ""}
                score = mean - gain + (0.1 if split == "val" else 0.0)
                rows.append({"task": "bach", "encoder": encoder, "split": split, "mean": score, "sd": 0.03} | known)
    table = pd.DataFrame(rows).assign(step=[tasks.step_of(STUDY, row["encoder"]) for row in rows])
    monkeypatch.setattr(tasks, "scores_table", lambda study: table)
    monkeypatch.setattr(tasks, "difference", lambda *_: Interval(0.0, -0.1, 0.2, 9))
    return tmp_path


def compared(scores, *varied, settings=STUDY):
    """`pretrainings.compared` by comparison: base, and its rows."""
    return list(between.compared(settings, scores, *varied).groupby(["varied", "base"], sort=False))


@pytest.fixture
def drawn(made, monkeypatch):
    """An exhibit of made-up scores of snapshots, of some things that are varied."""

    def exhibit(scores, *varied, settings=STUDY):
        monkeypatch.setattr(pretrainings, "scores_table", lambda study: scores)
        return pretrainings._over_steps(Study(settings, made), "11_made", scores, *varied)

    return exhibit


def of_each(study, *varied):
    """Of each comparison what is varied, and the pretrainings."""
    names = comparisons(study, *varied).groupby(["varied", "base"], sort=False)["name"].agg(tuple)
    return [(varied, of) for (varied, _), of in names.items()]


def test_a_comparison_is_of_pretrainings_equal_in_all_else():
    assert of_each(STUDY) == [
        ("start", ("base", "from_photographs")),
        ("patches.slide_fraction", ("base", "few", "fewer")),
        ("patches.slide_fraction", ("thousand", "few_thousand")),
        ("patches.n_distinct", ("base", "thousand")),
        ("patches.n_distinct", ("few", "few_thousand")),
        ("patches.um_per_px", ("base", "single")),
        ("method", ("base", "two", "two_again")),
    ]
    start = comparisons(STUDY, "start")
    assert set(start["base"]) == {"base"} and start["value"].tolist() == ["random", "from timm:x"]


def test_names_seeds_and_snapshots_make_no_difference():
    again = replace(BASE, name="again", seed=7, n_snapshots=1, start="timm:x")
    study = replace(STUDY, pretraining=(BASE, replace(BASE, name="zweitens", seed=3), again))
    assert of_each(study) == [("start", ("base", "zweitens", "again"))]
    assert comparisons(replace(STUDY, pretraining=(BASE, replace(BASE, name="b", seed=1)))).empty
    other = replace(BASE, name="other", method="dinov2", n_prototypes=8)
    assert comparisons(replace(STUDY, pretraining=(BASE, other))).empty, "a head of another size is no method's own"


def test_what_was_scored_of_one_alone_is_compared_with_nothing(made):
    scores = pretrainings.scores_table(Study(STUDY, made))
    alone = scores[scores["name"] == "base"].assign(task="consep", metric="dice")
    both = pd.concat([scores, alone], ignore_index=True)
    for varied, of in (("method", {"bach"}), ("start", set())):
        assert set(between.compared(STUDY, both, varied)["task"]) == of, varied


def test_no_difference_is_none():
    """The last digit of a mean is no difference: 0.1 + 0.2 and 0.3 are one score."""
    table = pd.DataFrame({"name": ["base", "few"], "mean": [0.3, 0.1 + 0.2], "step": 100.0, "sd": 0.1, "n_runs": 5})
    table = table.assign(task="bach", metric="balanced_accuracy", split="test", varied="patches.slide_fraction")
    for base in ("base", "few"):
        (row,) = between.differences(STUDY, table.assign(base=base, value="", way=table["name"])).to_dict("records")
        assert f"{row['difference']:+.3f}" == "+0.000" and row["name"] != base


def test_an_earlier_step_doesn_t_stand_for_a_last_one_that_lacks():
    rows = [("base", 50, 0.5), ("base", 100, 0.7), ("few", 50, 0.6)]
    table = pd.DataFrame(rows, columns=["name", "step", "mean"]).assign(sd=0.1, n_runs=5, task="bach", metric="dice")
    table = table.assign(split="test", varied="patches.slide_fraction", base="base", value="", way=table["name"])
    assert between.differences(STUDY, table).empty
    assert between.last(STUDY, table)[["name", "step"]].to_numpy().tolist() == [["base", 100]]


def test_values_are_said_in_words():
    which = {which.name: which for which in STUDY.pretraining}
    said = {key: between.value_of(which["few_thousand"], key) for key in between.VARIED}
    assert said["patches.slide_fraction"] == "10 % of slides" and said["patches.n_distinct"] == "1,000 patches"
    assert said["patches.um_per_px"] == "0.25, 0.5, 1, 2 µm/px" and said["method"] == "DINO" and said["start"] == "random"
    assert between.value_of(BASE, "patches.n_distinct") == "every patch new"


def test_scores_are_those_of_the_reported_split_with_the_snapshot_s_step(made):
    table = pretrainings.scores_table(Study(STUDY, made))
    assert set(table["split"]) == {"test"}
    assert table.loc[table["name"] == "base", ["step", "mean"]].to_numpy() == pytest.approx(np.array([[50, 0.65], [100, 0.7]]))
    assert table.loc[table["name"] == "untrained", "step"].isna().all()


def test_differences_are_from_the_first_and_after_the_last_step(made):
    found = pretrainings.differences_table(Study(STUDY, made)).set_index(["varied", "name"])
    assert found.loc[("patches.slide_fraction", "few"), "difference"] == pytest.approx(-0.1)
    assert found.loc[("method", "two"), "difference"] == pytest.approx(0.05)
    assert found.loc[("method", "two"), ["low", "high"]].tolist() == [-0.1, 0.2] and set(found["base"]) == {"base"}
    assert len(found) == 2, "what has no score has no difference"


def test_the_control_is_the_same_network_untrained():
    assert tasks.control_of(STUDY, "base") == "untrained"
    assert tasks.control_of(replace(STUDY, own_encoders=(OTHER,)), "base") == ""
    deeper = replace(STUDY, pretraining=(BASE, replace(BASE, name="deeper", arguments={"depth": 3}, start="timm:x")))
    assert [tasks.control_of(deeper, name) for name in ("base", "deeper")] == ["untrained", "other"]


def test_what_is_not_there_says_why(made):
    table = pretrainings.missing_table(Study(STUDY, made)).set_index("name")
    assert (
        table.loc["single", "reason"] == "PretrainingError: it collapsed" and table.loc["thousand", "reason"] == "not run yet"
    )
    assert not {"base", "few", "two"} & set(table.index)
    overview = pretrainings.overview_table(Study(STUDY, made)).set_index("name")
    assert overview.loc["few", ["loss", "rankme", "seconds", "patches_per_second"]].tolist() == [3.0, 7.0, 600.0, 85.0]
    assert overview.loc["few", "collapsed"] == "RankMe 1.0 of 4" and overview.loc["base", "collapsed"] == ""
    assert np.isnan(overview.loc["single", "loss"]) and overview.loc["base", "n_patches"] == 800


def titles(figure):
    return [text for axis in figure.axes for where in ("left", "center") if (text := axis.get_title(where))]


def test_histories_have_a_line_for_each(made):
    exhibit = pretrainings.histories(Study(STUDY, made))
    drawn = [[line for line in axis.lines if len(line.get_xdata())] for axis in exhibit.figure.axes]
    assert [len(lines) for lines in drawn] == [3, 3, 3] and "synthetic data" in exhibit.caption
    assert "(nats)" in exhibit.figure.axes[1].get_ylabel()
    legend = exhibit.figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["base", "few", "two"]


def test_figures_show_a_line_for_each_pretraining_and_the_control(drawn, made):
    scores = pretrainings.scores_table(Study(STUDY, made))
    exhibit = drawn(scores, "patches.slide_fraction", "method")
    labels = exhibit.figure.axes[0].get_legend_handles_labels()[1]
    assert labels == ["untrained network", "100 % of slides (base)", "10 % of slides (few)"]
    assert titles(exhibit.figure) == ["bach\nbase: base"] * 2 and exhibit.figure.axes[0].get_gridspec().nrows == 1
    assert list(dict.fromkeys(exhibit.table["varied"])) == ["patches.slide_fraction", "method"] and len(exhibit.table) == 8
    assert "another draw of patches would give" in exhibit.caption and "synthetic data" in exhibit.caption
    for axis in exhibit.figure.axes:
        (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
        assert left == 0 and right > 100 and low < 0.52 and high > 0.73, "all of the lines lie within the panel"


def test_nothing_of_a_figure_is_cut_off(drawn, made):
    scores = pretrainings.scores_table(Study(STUDY, made))
    few = scores.assign(mean=scores["mean"] / 2.3)  # its ticks change with the panel's height, and with them the label's place
    figure = drawn(few, "patches.slide_fraction", "method").figure
    figure.savefig(io.BytesIO(), dpi=300)
    legend = figure.legends[0].get_tightbbox()
    assert legend.x0 >= 0 and legend.y0 >= 0 and legend.x1 <= figure.bbox.x1
    assert all(axis.yaxis.label.get_tightbbox().x0 >= 0 for axis in figure.axes)


# ---- over seeds ----

SEEDS = replace(
    STUDY,
    pretraining=tuple(
        replace(one, name=one.name + more, seed=seed, n_snapshots=2 if seed else one.n_snapshots)
        for one in (BASE, replace(BASE, name="few", patches=OnlinePatches(slide_fraction=0.1)))
        for seed, more in enumerate(("", "_seed1", "_seed2"))
    ),
)
BASES, FEWS = {"base": 0.6, "base_seed1": 0.8, "base_seed2": 0.7}, {"few": 0.5, "few_seed1": 0.6, "few_seed2": 0.3}


def of_seeds(**of: float) -> pd.DataFrame:
    """Scores of SEEDS after their last step and, 0.1 lower, after their first snapshot."""
    rows = [(name, step, mean - less) for name, mean in of.items() for step, less in ((50.0, 0.1), (100.0, 0.0))]
    table = pd.DataFrame(rows, columns=["name", "step", "mean"])
    return table.assign(task="bach", metric="balanced_accuracy", split="test", sd=0.03, n_runs=5)


def test_what_differs_in_its_seed_alone_is_one_way_and_no_comparison():
    assert pretrained.first_seeds(SEEDS) == {one.name: one.name.partition("_seed")[0] for one in SEEDS.pretraining}
    assert set(pretrained.first_seeds(STUDY).items()) == {(one.name, one.name) for one in STUDY.pretraining}
    assert set(comparisons(SEEDS)["base"]) == {"base"}
    alone = between.compared(SEEDS, of_seeds(**BASES), "patches.slide_fraction")
    assert alone.empty, "three seeds of one way are compared with nothing"


def test_three_seeds_of_each_are_paired():
    """By hand: differences of 0.1, 0.2 and 0.4."""
    test = between.over_seeds(SEEDS, pd.Series(BASES), pd.Series(FEWS).sample(frac=1, random_state=0))
    half = t.ppf(0.975, 2) * np.std([0.1, 0.2, 0.4], ddof=1) / np.sqrt(3)
    assert [test.interval.estimate, test.interval.low, test.interval.high] == pytest.approx(
        [7 / 30, 7 / 30 - half, 7 / 30 + half]
    )
    assert test.p == pytest.approx(ttest_rel([0.6, 0.8, 0.7], [0.5, 0.6, 0.3]).pvalue) and test.interval.n == 3
    snapshots = (pd.Series({f"{name}@50": value for name, value in side.items()}) for side in (BASES, FEWS))
    assert between.over_seeds(SEEDS, *snapshots) == test


def test_other_seeds_are_compared_by_welch_and_fewer_than_three_have_no_interval():
    other = replace(SEEDS, pretraining=tuple(replace(p, seed=p.seed + 9 * ("few" in p.name)) for p in SEEDS.pretraining))
    one = between.over_seeds(other, pd.Series(BASES), pd.Series(FEWS)).interval
    expected = ttest_ind(list(BASES.values()), list(FEWS.values()), equal_var=False).confidence_interval(0.95)
    assert (one.low, one.high) == pytest.approx(tuple(expected))
    two = between.over_seeds(SEEDS, pd.Series(BASES)[:2], pd.Series(FEWS)[:2]).interval
    assert np.isnan(two.low) and two.n == 2 and two.estimate == pytest.approx(0.15)


def test_learning_rates_of_one_seed_are_no_seeds():
    two = [one for one in STUDY.pretraining if one.method == "dinov2"]
    assert len(two) == 2 and len({pretrained.first_seeds(STUDY)[one.name] for one in two}) == 2
    one = between.over_seeds(STUDY, pd.Series({"two": 0.6, "two_again": 0.8}), pd.Series({"base": 0.5})).interval
    assert one.n == 1 and one.estimate == pytest.approx(0.2) and np.isnan(one.low)


def test_tables_and_figures_show_mean_and_range_of_the_seeds(drawn, made):
    exhibit = drawn(of_seeds(**BASES, **FEWS), "patches.slide_fraction", settings=SEEDS)
    last = exhibit.table[exhibit.table["step"] == 100].set_index("name")
    assert last.loc["base", ["mean", "low", "high", "n_seeds"]].tolist() == pytest.approx([0.7, 0.6, 0.8, 3])
    assert last.loc["few", ["mean", "low", "high"]].tolist() == pytest.approx([7 / 15, 0.3, 0.6]) and len(last) == 2
    (axis,) = exhibit.figure.axes
    labels = axis.get_legend_handles_labels()[1]
    assert labels == ["100 % of slides (base), 3 seeds", "10 % of slides (few), 3 seeds"]
    bars = [bar.get_segments() for bar in axis.collections]
    assert bars[0][-1][:, 1] == pytest.approx([0.6, 0.8]), "a bar goes from the lowest seed to the highest"
    assert "of several seeds of the pretraining the mean, the lowest and the highest" in exhibit.caption
    (row,) = pretrainings.differences_table(Study(SEEDS, made)).to_dict("records")
    assert row["difference"] == pytest.approx(-7 / 30) and (row["n_seeds"], row["n_seeds_of_base"]) == (3, 3)
    assert row["low"] < -0.6 < 0 < row["high"], "an interval over three seeds is wide"


def test_one_seed_alone_has_the_heads_spread_and_the_items_interval(drawn, made):
    exhibit = drawn(of_seeds(base=0.7, few=0.5), "patches.slide_fraction", settings=SEEDS)
    assert exhibit.table.loc[1, ["low", "high", "n_seeds"]].tolist() == pytest.approx([0.67, 0.73, 1])
    (row,) = pretrainings.differences_table(Study(SEEDS, made)).to_dict("records")
    assert (row["low"], row["high"]) == (-0.1, 0.2), "as `tasks.difference` has it"
    drawn(of_seeds(**BASES, few=0.5), "patches.slide_fraction", settings=SEEDS)
    (row,) = pretrainings.differences_table(Study(SEEDS, made)).to_dict("records")
    assert np.isnan(row["low"]) and row["difference"] == pytest.approx(-0.2), "neither holds for three against one"


def test_the_history_of_seeds_is_one_line_with_a_band(made, monkeypatch):
    rows = [(name, step, 5.0 - value, 3.0, 4.0) for name, value in (BASES | FEWS).items() for step in (50, 100)]
    table = pd.DataFrame(rows, columns=["name", "step", "loss", "target_entropy", "rankme"])
    monkeypatch.setattr(pretrainings, "histories_table", lambda study: table)
    exhibit = pretrainings.histories(Study(SEEDS, made))
    axis, legend = exhibit.figure.axes[0], exhibit.figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["base", "few"] and len(exhibit.table) == 12
    assert axis.lines[0].get_ydata() == pytest.approx([4.3, 4.3])
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((4.2, 4.4)) and "from the lowest to the highest" in exhibit.caption


CNN = replace(BASE, name="cnn_random", architecture="tf_efficientnet_lite0", arguments={})
TWO_PAIRS = replace(
    STUDY,
    own_encoders=(OwnEncoder("drawn", weights="random", architecture=CNN.architecture),),
    pretraining=(
        BASE,
        replace(BASE, name="longer", n_steps=300),
        replace(BASE, name="on", start="longer"),
        CNN,
        replace(CNN, name="cnn_imagenet", start="efficientnet_lite0"),
    ),
)


def test_two_networks_from_random_and_other_weights_are_two_pairs_and_never_mixed(drawn):
    assert of_each(TWO_PAIRS, "start") == [("start", ("base", "on")), ("start", ("cnn_random", "cnn_imagenet"))]
    rows = [
        (n, s, m)
        for i, n in enumerate(("base", "on", "cnn_random", "cnn_imagenet"))
        for s, m in ((50, 0.5), (100, 0.6 + i / 10))
    ]
    scores = pd.DataFrame([*rows, ("drawn", np.nan, 0.4)], columns=["name", "step", "mean"]).assign(
        task="bach", metric="balanced_accuracy", split="test", sd=0.1, n_runs=5
    )
    exhibit = drawn(scores, "start", settings=TWO_PAIRS)
    assert titles(exhibit.figure) == ["bach\nbase: base", "bach\nbase: cnn_random"]
    assert [axis.get_legend_handles_labels()[1] for axis in exhibit.figure.axes] == [
        ["random (base)", "from longer (on)"],
        ["untrained network", "random (cnn_random)", "from efficientnet_lite0 (cnn_imagenet)"],
    ]
    found = between.differences(TWO_PAIRS, between.compared(TWO_PAIRS, scores, "start")).set_index("name")
    assert found["base"].to_dict() == {"on": "base", "cnn_imagenet": "cnn_random"}


def test_rankme_of_networks_of_other_widths_is_drawn_on_a_logarithmic_axis(made, monkeypatch):
    study = Study(STUDY, made)
    history = pretrainings.histories_table(study)
    wide = history.assign(rankme=history["rankme"].where(history["name"] != "two", 11 * history["rankme"].max()))
    scales = []
    for each in (history, wide):
        monkeypatch.setattr(pretrainings, "histories_table", lambda study, each=each: each)
        scales.append(pretrainings.histories(study).figure.axes[2].get_yscale())
    assert scales == ["linear", "log"]


def test_every_task_has_a_panel_however_many_there_are(drawn, made):
    scores = pretrainings.scores_table(Study(STUDY, made))
    many = pd.concat([scores.assign(task=f"task {i}") for i in range(6)], ignore_index=True)
    shown = titles(drawn(many, "patches.slide_fraction", "method").figure)
    assert shown == [f"task {i}\nbase: base" for i in range(6)] * 2, "two comparisons, each in two rows"


def test_without_scores_captions_say_so(tmp_path, monkeypatch):
    study = Study(STUDY, tmp_path)
    for exhibit in (pretrainings.starts, pretrainings.amounts, pretrainings.magnifications, pretrainings.methods):
        assert "No two judged pretrainings" in exhibit(study).caption and exhibit(study).figure is None
    assert not len(pretrainings.against_base(study).table)
    assert "No pretraining" in pretrainings.histories(study).caption
