"""kaiko's statements asked of made-up tasks and pretrainings: each is confirmed, refuted, and left open where it must be."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mfcore.claims import kaiko, ledger as claims
from mfcore.claims.rules import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, UNCLEAR
from mfcore.measures.statistics import Interval
from mfcore.study.config import Data, OnlinePatches, OwnEncoder, Pretraining, Settings, TaskOptions
from mfcore.study.study import Study

BASE = Pretraining("base", n_steps=100, n_snapshots=2)
ALL = (
    BASE,
    replace(BASE, name="from_imagenet", start="vit_in"),
    replace(BASE, name="one_slide", patches=OnlinePatches(slide_fraction=0.01)),
    replace(BASE, name="thousand", patches=OnlinePatches(n_distinct=1000)),
    replace(BASE, name="only_40x", patches=OnlinePatches(um_per_px=(0.25,))),
    replace(BASE, name="second", method="dinov2"),
)
STUDY = Settings(
    "t", "A test", Data("midog"), encoders=("base",), pretraining=ALL, tasks=(TaskOptions("bach"), TaskOptions("consep"))
)
CONVERGENCE, MAGNIFICATIONS, DIVERSITY, FORETELL = (
    "pretraining on ImageNet speeds convergence",
    "training with multiple magnifications improves robustness",
    "data diversity being crucial for out-of-distribution generalization",
    "unsupervised metrics (RankMe and ODCorr) that correlate with downstream performance",
)
INVERSE, DINOV2 = "An inverse correlation between the ODCorr and top-1 accuracy can be observed.", "DINOv2 has better ODCorr"
AGAIN = replace(
    STUDY, pretraining=tuple(replace(w, name=w.name + more, seed=s) for w in ALL for s, more in enumerate(("", "_2", "_3")))
)
PAIRS = {
    CONVERGENCE: {("from_imagenet@50", "base@50")},
    MAGNIFICATIONS: {("base", "only_40x")},
    DIVERSITY: {("base", "one_slide"), ("base", "thousand")},
}


OF_ONE = {"second": 0.2, "base": 0.3}  # ODCorr, lower DINOv2's


@pytest.fixture
def ask(monkeypatch, tmp_path):
    """Ask the ledger of a study, given each comparison's interval, correlations and ODCorr; keeps which pairs were compared."""

    def asked(
        study=STUDY,
        interval=(0.05, 0.02, 0.08),
        rho=(0.9, -0.9, -0.9),
        p=0.001,
        odcorr=OF_ONE,
        scores=None,
        judged=True,
        on="bach",
    ):
        compared = set()

        def difference(study, task, first, second):
            compared.add((first, second))
            return Interval(*(interval(task) if callable(interval) else interval), 30)

        pretrained = [which.name for which in study.pretraining]
        names = pretrained + [f"{name}@50" for name in pretrained]
        runs = {(task.name, name): None for task in study.tasks for name in names} if judged else {}
        metrics = list(kaiko.TITLES)
        related = pd.DataFrame({"metric": metrics, "task": on, "rho": rho, "p": p, "n": 12})
        measured = [
            {
                "name": name,
                "task": "bach",
                "metric": metric,
                "step": 100,
                "mean": mean,
                "sd": np.nan,
                "split": "all",
                "n_runs": 1,
            }
            for name, mean in odcorr.items()
            for metric in ("odcorr_abs", "odcorr_sq")
        ]
        columns = kaiko.of_pretraining.SCORES
        monkeypatch.setattr(kaiko.tasks, "runs", lambda study: runs)
        monkeypatch.setattr(kaiko.tasks, "difference", difference)
        reported = [(task, name, mean) for task in ("bach", "consep") for name, mean in (scores or {}).items()]
        reported = pd.DataFrame(reported, columns=["task", "encoder", "mean"])
        monkeypatch.setattr(kaiko.tasks, "scores_table", lambda study: reported)
        monkeypatch.setattr(kaiko.tasks, "reported", lambda table: table)
        correlations = related if judged else related.iloc[:0]
        monkeypatch.setattr(kaiko.representations, "tasks_table", lambda study: None)
        monkeypatch.setattr(kaiko.representations, "correlate_tasks", lambda _: correlations)
        table = pd.DataFrame(measured if judged else [], columns=columns)
        monkeypatch.setattr(kaiko.of_pretraining, "representations_table", lambda study: table)
        ledger = claims.judge(Study(study, tmp_path), [claims.PRETRAINING]).set_index("claim")
        return ledger, compared

    return asked


def test_each_statement_compares_the_pretrainings_that_differ_in_its_one_thing(ask):
    ledger, compared = ask()
    assert compared == set().union(*PAIRS.values())
    for claim, pairs in PAIRS.items():
        for first, second in pairs:
            for task in ("bach", "consep"):
                assert f"{task}, {first} less {second}: +0.050 [+0.020, +0.080]" in ledger.loc[claim, "found"]


@pytest.mark.parametrize("claim", list(PAIRS))
@pytest.mark.parametrize("interval", [(0.05, 0.02, 0.08), (-0.05, -0.08, -0.02), (0.05, np.nan, np.nan)])
def test_what_was_pretrained_once_settles_nothing_about_the_way(ask, claim, interval):
    row = ask(interval=interval)[0].loc[claim]
    assert row["verdict"] == UNCLEAR and "pretrained once" in row["why"]
    assert ask(replace(STUDY, data=Data("synthetic")), interval=interval)[0].loc[claim, "here"] == "unclear"


def of_ways(better: float, noise: float = 0.001) -> dict[str, float]:
    """Scores of every pretraining of AGAIN and its snapshots: the base and the start from ImageNet against all others.

    ``noise`` moves the differences by seed: one SD of them over seeds.
    """
    more = {"base": better, "from_imagenet": better + better}
    scores = {}
    for which in AGAIN.pretraining:
        way = which.name.rstrip("_23")
        place = ["base", "from_imagenet"].index(way) + 1 if way in more else 0
        value = 0.5 + more.get(way, 0.0) + noise * which.seed * place
        scores |= {which.name: value, f"{which.name}@50": value}
    return scores


@pytest.mark.parametrize("claim", list(PAIRS))
@pytest.mark.parametrize(
    ("scores", "verdict"),
    [(of_ways(0.1), REPRODUCED), (of_ways(-0.1), NOT_REPRODUCED), (of_ways(0.1, noise=0.5), UNCLEAR), (of_ways(0.0), UNCLEAR)],
)
def test_ways_pretrained_again_are_judged_over_pretrainings(ask, claim, scores, verdict):
    ledger, compared = ask(AGAIN, scores=scores)
    assert ledger.loc[claim, "verdict"] == verdict and "once" not in ledger.loc[claim, "why"]
    assert not compared, "an interval over items says nothing of other draws"
    assert "bach, base (3 seeds) less only_40x (3 seeds): " in ledger.loc[MAGNIFICATIONS, "found"]
    assert "from_imagenet@50 (3 seeds) less base@50 (3 seeds): " in ledger.loc[CONVERGENCE, "found"]


@pytest.mark.parametrize("claim", list(PAIRS))
def test_two_seeds_settle_nothing(ask, claim):
    two = replace(AGAIN, pretraining=tuple(one for one in AGAIN.pretraining if one.seed < 2))
    row = ask(two, scores=of_ways(0.1))[0].loc[claim]
    assert row["verdict"] == UNCLEAR and "pretrained once or twice" in row["why"] and "[no interval]" in row["found"]


def test_what_one_task_alone_would_show_is_open_after_holm_over_two(ask):
    """Means of 0.02 with an SD of 0.006 over three seeds: p is 0.029 by itself, 0.057 after Holm over two tasks."""
    scores = of_ways(0.02 - 0.006, noise=0.006)
    found = ask(AGAIN, scores=scores)[0].loc[MAGNIFICATIONS]
    assert found["verdict"] == UNCLEAR and found["difference"] == pytest.approx(0.02) and "p 0.057" in found["found"]
    one_task = replace(AGAIN, tasks=AGAIN.tasks[:1])
    assert ask(one_task, scores=scores)[0].loc[MAGNIFICATIONS, "verdict"] == REPRODUCED


def test_a_start_from_what_the_study_pretrained_is_no_start_from_imagenet(ask):
    own = tuple(replace(which, start="base") if which.name == "from_imagenet" else which for which in ALL)
    row = ask(replace(STUDY, pretraining=own))[0].loc[CONVERGENCE]
    assert (
        row["verdict"] == NOT_TESTABLE
        and "from base, which has learnt from this study's slides" in row["why"]
        and row["here"] == "unclear"
    )


def test_starts_of_two_networks_are_compared_each_with_its_own_random_one_and_imagenet_s_is_what_is_judged(ask):
    cnn = replace(BASE, name="cnn_random", architecture="tf_efficientnet_lite0")
    own, published = (replace(BASE, name="on", start="base"), replace(cnn, name="cnn_imagenet", start="efficientnet_lite0"))
    for more in ((BASE, own, cnn, published), (cnn, published, BASE, own)):
        ledger, compared = ask(replace(STUDY, pretraining=more))
        row = ledger.loc[CONVERGENCE]
        assert compared == {("cnn_imagenet@50", "cnn_random@50")}, "one started from the study's own says nothing of ImageNet"
        assert row["verdict"] == UNCLEAR and "this study's slides" not in row["why"] and "on@50" not in row["found"]
    both = ask(
        replace(STUDY, pretraining=(BASE, replace(BASE, name="a", start="vit_a"), replace(BASE, name="b", start="vit_b")))
    )
    assert both[1] == {("a@50", "base@50"), ("b@50", "base@50")}, "each start against random ones"


def test_a_start_that_may_not_be_imagenet_s_is_told(ask):
    """A study's own record of weights needn't say what they learnt from."""
    for start, is_told in (("vit_in", True), ("efficientnet_lite0", False)):
        row = ask(replace(STUDY, pretraining=(BASE, replace(BASE, name="on", start=start))))[0].loc[CONVERGENCE]
        assert row["verdict"] == UNCLEAR and "pretrained once" in row["why"]
        assert (f"does not say what {start} has learnt from, so ImageNet is assumed" in row["why"]) == is_told


def test_what_the_weights_of_a_start_have_learnt_from_is_as_far_as_is_said():
    records = (
        OwnEncoder("hub", weights="timm/x.in1k"),
        OwnEncoder("alike", like="resnet50"),
        OwnEncoder("told", like="dinov2_vits14", weights="me/mine", learnt_from="ours"),
    )
    study = replace(STUDY, own_encoders=records)
    images = [kaiko.learnt_from(study, name) for name in ("hub", "alike", "told", "efficientnet_lite0", "unknown")]
    assert images == ["", "ImageNet-1k", "ours", "ImageNet-1k", ""], "other weights learnt from other images"


def test_a_start_from_an_encoder_of_slides_is_no_start_from_imagenet(ask):
    row = ask(replace(STUDY, pretraining=(BASE, replace(BASE, name="on", start="kaiko_vits16"))))[0].loc[CONVERGENCE]
    assert row["verdict"] == NOT_TESTABLE and "kaiko_vits16, which has learnt from slides" in row["why"]


def test_a_start_from_other_photographs_is_no_start_from_imagenet(ask):
    row = ask(replace(STUDY, pretraining=(BASE, replace(BASE, name="on", start="dinov2_vits14"))))[0].loc[CONVERGENCE]
    assert row["verdict"] == NOT_TESTABLE and "dinov2_vits14, which has learnt from LVD-142M, not" in row["why"]


def test_convergence_is_asked_after_the_first_step_of_which_both_kept_a_snapshot(ask):
    often, once = (replace(BASE, name="often", start="vit_in", n_snapshots=4), replace(BASE, name="once", n_snapshots=1))
    assert ask(replace(STUDY, pretraining=(BASE, often)))[1] == {("often@50", "base@50")}
    ledger, compared = ask(replace(STUDY, pretraining=(often, once)))
    assert not compared and ledger.loc[CONVERGENCE, "verdict"] == NOT_TESTABLE, "the end says nothing of the way there"


@pytest.mark.parametrize(
    ("rho", "p", "verdict"),
    [
        ((0.9, -0.9, -0.9), 0.001, REPRODUCED),
        ((0.9, -0.9, -0.9), 0.03, UNCLEAR),  # 0.09 after Holm over three
        ((0.9, 0.9, -0.9), 0.001, NOT_REPRODUCED),
        ((0.1, 0.1, -0.1), 0.8, UNCLEAR),
    ],
)
def test_that_metrics_foretell_is_judged_by_sign_and_corrected_p(ask, rho, p, verdict):
    ledger, _ = ask(rho=rho, p=p)
    assert ledger.loc[FORETELL, "verdict"] == verdict and np.isnan(ledger.loc[FORETELL, "difference"]), "a ρ is no difference"
    assert ledger.loc[INVERSE, "verdict"] == NOT_TESTABLE and "no scores on cifar10" in ledger.loc[INVERSE, "why"]
    assert "RankMe" in ledger.loc[FORETELL, "found"] and "RankMe" not in ledger.loc[INVERSE, "found"]


@pytest.mark.parametrize(
    ("rho", "p", "verdict"),
    [((0.9, -0.9, -0.9), 0.01, REPRODUCED), ((0.9, 0.9, 0.9), 0.01, NOT_REPRODUCED), ((0.9, -0.3, -0.3), 0.2, UNCLEAR)],
)
def test_the_inverse_correlation_is_judged_on_the_paper_s_sets_of_natural_images(ask, rho, p, verdict):
    row = ask(rho=rho, p=p, on="cifar100")[0].loc[INVERSE]
    assert row["verdict"] == verdict and "cifar100, ODCorr" in row["found"] and "no scores on" not in row["why"]


def test_dinov2_s_odcorr_stands_against_dino_s_and_one_of_each_settles_nothing(ask):
    row = ask()[0].loc[DINOV2]
    assert row["verdict"] == UNCLEAR and "pretrained once" in row["why"]
    assert row["found"].startswith(
        "bach, ODCorr, mean |r| 0.200 (DINOv2) against 0.300: -0.100 [no interval]; bach, ODCorr, mean r²"
    )


@pytest.mark.parametrize(
    ("dinov2", "verdict"),
    [((0.20, 0.21, 0.21), REPRODUCED), ((0.40, 0.41, 0.43), NOT_REPRODUCED), ((0.1, 0.5, 0.3), UNCLEAR)],
)
def test_dinov2_s_odcorr_is_judged_over_pretrainings(ask, dinov2, verdict):
    odcorr = {"base": 0.30, "base_2": 0.31, "base_3": 0.32} | dict(zip(("second", "second_2", "second_3"), dinov2, strict=True))
    row = ask(AGAIN, odcorr=odcorr, scores=of_ways(0.1))[0].loc[DINOV2]
    assert row["verdict"] == verdict and row["difference"] == pytest.approx(np.mean(dinov2) - 0.31)


def test_an_encoder_without_an_odcorr_is_compared_with_nothing(ask):
    """A collapsed one, of which fewer than two dimensions vary."""
    row = ask(odcorr={"second": 0.2, "base": np.nan})[0].loc[DINOV2]
    assert row["verdict"] == NOT_TESTABLE and row["found"] == "nothing measured"


def test_synthetic_data_settle_nothing_and_what_was_found_is_shown(ask):
    ledger, _ = ask(replace(STUDY, data=Data("synthetic")))
    assert set(ledger["verdict"]) == {NOT_TESTABLE}
    assert ledger.loc[FORETELL, "here"] == "as stated" and "synthetic" in ledger.loc[FORETELL, "why"]


def test_without_tasks_or_pretrainings_every_row_says_why(ask):
    for study in (STUDY, Settings("bare", "Bare", Data("midog"))):
        ledger, _ = ask(study, judged=False)
        assert set(ledger["verdict"]) == {NOT_TESTABLE} and (ledger["why"] != "").all() and (ledger["here"] == "").all()


def test_what_was_read_in_notes_says_so(ask):
    ledger = ask()[0].reset_index()
    noted = ledger["where"].str.contains("summary|note")
    assert (ledger["paper"].str.contains("second-hand") == noted).all() and noted.any() and not noted.all()
    assert ledger["claim"].str.split().str.len().max() <= 30
