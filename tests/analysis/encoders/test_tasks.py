"""TaskOptions tables: computed again from predictions, with both intervals, and the published values beside."""

import dataclasses
import math

import made_tasks
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score
from tiny_encoders import tiny_card, use

from mfcore import store
from mfcore.analysis.encoders import pretrainings, tasks
from mfcore.encoders.card import EncoderError
from mfcore.measures import task_scores
from mfcore.study import tasks as study_tasks
from mfcore.study.config import OwnEncoder, Pretraining, TaskOptions
from mfcore.study.study import Study
from mfcore.tasks import registry

TISSUE = TaskOptions("synthetic_tissue", n_runs=3, n_steps=15, batch_size=16, max_lr=0.05)
NUCLEI = TaskOptions("synthetic_nuclei", n_runs=2, n_steps=4, batch_size=8, max_lr=0.02, size_px=16)
STUDY = made_tasks.study(TISSUE, NUCLEI, encoders=("tiny", "other"))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two encoders judged by two tasks."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        both(patch)
        for encoder in STUDY.encoders:
            study_tasks.judge(STUDY, "synthetic_tissue", encoder, folder, folder)
            study_tasks.judge(STUDY, "synthetic_nuclei", encoder, folder, folder)
    return folder


def both(patch):
    use(patch, tiny_card())
    use(patch, tiny_card(name="other", mean=(0.2, 0.2, 0.2)))
    made_tasks.use(patch, made_tasks.tissue(), made_tasks.nuclei(36))


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """The encoders of the results."""
    both(monkeypatch)


def test_every_score_is_computed_again_from_what_was_predicted(results):
    study = Study(STUDY, results)
    table = tasks.scores_table(study)
    assert table.columns.tolist() == tasks.COLUMNS
    assert table[["task", "encoder", "split"]].values.tolist() == [
        [task, encoder, split]
        for task in ("synthetic_tissue", "synthetic_nuclei")
        for encoder in ("tiny", "other")
        for split in ("val", "test")
    ]
    found = tasks.runs(study)
    row = table[(table["task"] == "synthetic_tissue") & (table["encoder"] == "other") & (table["split"] == "test")].iloc[0]
    predictions = pd.read_parquet(found["synthetic_tissue", "other"].path("predictions.parquet"))
    values = []
    for _, part in predictions[predictions["split"] == "test"].groupby("run"):
        called = part[["score_0", "score_1", "score_2"]].to_numpy().argmax(axis=1)
        values.append(balanced_accuracy_score(part["label"], called))
    assert (row["mean"], row["sd"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert (row["metric"], row["n_runs"], row["n_items"], row["n_clusters"]) == ("balanced_accuracy", 3, 24, 12)
    assert row["low"] < row["mean"] < row["high"] and math.isnan(row["published"]) and math.isnan(row["step"])

    row = table[(table["metric"] == "dice") & (table["encoder"] == "tiny") & (table["split"] == "test")].iloc[0]
    dice = pd.read_parquet(found["synthetic_nuclei", "tiny"].path("dice.parquet"))
    by_run = [part.groupby("item_id")["dice"].mean().mean() for _, part in dice[dice["split"] == "test"].groupby("run")]
    assert row["mean"] == pytest.approx(np.mean(by_run)) and row["n_items"] == 12
    assert (tasks.reported(table)["split"] == "test").all()


def test_items_are_their_own_clusters_where_no_slide_is_named(results):
    predictions = pd.read_parquet(tasks.runs(Study(STUDY, results))["synthetic_tissue", "tiny"].path("predictions.parquet"))
    part = predictions[predictions["split"] == "test"]
    alone = task_scores.of_labels(part.assign(group=""))
    assert len(alone.clusters) == 24 and len(task_scores.of_labels(part).clusters) == 12


def test_two_encoders_are_compared_on_the_same_resamples(results):
    """Against itself an encoder differs by 0 to 0; the other way round it changes its sign."""
    for task in ("synthetic_tissue", "synthetic_nuclei"):
        none = tasks.difference(Study(STUDY, results), task, "tiny", "tiny")
        assert (none.estimate, none.low, none.high) == (0, 0, 0)
        found = tasks.difference(Study(STUDY, results), task, "tiny", "other")
        back = tasks.difference(Study(STUDY, results), task, "other", "tiny")
        assert back.estimate == pytest.approx(-found.estimate) and (back.low, back.high) == pytest.approx(
            (-found.high, -found.low), abs=0.02
        )
    table = tasks.reported(tasks.scores_table(Study(STUDY, results)))
    means = table[table["task"] == "synthetic_nuclei"].set_index("encoder")["mean"]
    assert found.estimate == pytest.approx(means["tiny"] - means["other"])
    with pytest.raises(store.StoreError, match="hasn't judged \\['third'\\]"):
        third = Study(dataclasses.replace(STUDY, encoders=("tiny", "third")), results)
        tasks.difference(third, "synthetic_tissue", "tiny", "third")


def test_only_runs_by_todays_protocol_and_card_count(results, monkeypatch):
    longer = dataclasses.replace(STUDY, tasks=(dataclasses.replace(TISSUE, n_steps=16), NUCLEI))
    assert set(tasks.scores_table(Study(longer, results))["task"]) == {"synthetic_nuclei"}
    use(monkeypatch, tiny_card(mean=(0.3, 0.3, 0.3)))
    assert set(tasks.scores_table(Study(STUDY, results))["encoder"]) == {"other"}
    store.write_csv(
        results / study_tasks.REFUSALS.format("synthetic_nuclei"),
        pd.DataFrame({"encoder": ["tiny"], "judged": [False], "reason": ["no permission"]}),
    )
    missing = pretrainings.missing_table(Study(STUDY, results))
    assert missing.to_numpy().tolist() == [["task", "synthetic_nuclei: tiny", "no permission"]]


def test_a_run_of_the_study_s_own_encoder_counts_by_todays_card_where_it_can_be_known(results, tmp_path):
    """Of another record of the same name the run is another's; a record whose file lies on another machine decides nothing."""
    own = OwnEncoder(
        "tiny_own", weights="random", architecture="test_vit", mean=(0.5,) * 3, std=(0.5,) * 3, crop_px=32, resize_px=32
    )
    study = dataclasses.replace(STUDY, encoders=("tiny_own",), own_encoders=(own,), tasks=(TISSUE,))
    study_tasks.judge(study, "synthetic_tissue", "tiny_own", tmp_path, tmp_path)
    assert set(tasks.scores_table(Study(study, tmp_path))["encoder"]) == {"tiny_own"}
    darker = dataclasses.replace(study, own_encoders=(dataclasses.replace(own, mean=(0.9,) * 3),))
    assert tasks.scores_table(Study(darker, tmp_path)).empty, "judged by another card"
    study_tasks.judge(darker, "synthetic_tissue", "tiny_own", tmp_path, tmp_path)
    both = [tasks.runs(Study(which, tmp_path))["synthetic_tissue", "tiny_own"].folder for which in (study, darker)]
    assert both[0] != both[1], "the newest isn't the study's"
    elsewhere = dataclasses.replace(study, own_encoders=(dataclasses.replace(own, weights="./gone.pth"),))
    assert len(tasks.scores_table(Study(elsewhere, tmp_path))) == 2


def test_what_of_a_set_is_not_as_published_is_kept(tmp_path, monkeypatch):
    part = made_tasks.tissue()
    part.notes = ("train: 36 there, 2,175 published",)
    made_tasks.use(monkeypatch, part)
    facts = study_tasks.judge(STUDY, "synthetic_tissue", "tiny", tmp_path, tmp_path).record["facts"]
    assert facts["selected_on"] == part.selected_on
    assert facts["notes"] == ["train: 36 there, 2,175 published"]


def test_published_scores_stand_beside_and_evas_go_first(results, monkeypatch):
    rows = [
        ("eva", "Tiny", "tiny", "synthetic_tissue", "test", "balanced_accuracy", 0.9, "a board"),
        ("kaiko", "Tiny", "tiny", "synthetic_tissue", "test", "balanced_accuracy", 0.7, "a page"),
        ("kaiko", "Tiny", "tiny", "synthetic_nuclei", "test", "dice", 0.5, "a page"),
        ("eva", "Nobody", "", "synthetic_nuclei", "val", "dice", 0.4, "a board"),
    ]
    columns = ["source", "arm", "encoder", "task", "split", "metric", "value", "where"]
    monkeypatch.setattr(registry, "published", lambda: pd.DataFrame(rows, columns=columns))
    table = tasks.scores_table(Study(STUDY, results))
    beside = table[table["published"].notna()]
    assert beside[["task", "encoder", "split", "published", "published_by"]].values.tolist() == [
        ["synthetic_tissue", "tiny", "test", 0.9, "eva, a board"],
        ["synthetic_nuclei", "tiny", "test", 0.5, "kaiko, a page"],
    ]
    assert beside["difference"].to_numpy() == pytest.approx((beside["mean"] - beside["published"]).to_numpy())


def test_published_scores_stand_beside_no_fewer_shots(tmp_path, monkeypatch):
    """What an encoder reaches with all of a set is no measure of what it reaches with three items of a class."""
    rows = [("tiny", "synthetic_tissue", split, 0.9, "eva, a board") for split in ("val", "test")]
    columns = ["encoder", "task", "split", "published", "published_by"]
    monkeypatch.setattr(tasks, "published", lambda: pd.DataFrame(rows, columns=columns))
    for n_per_class, beside in ((None, 2), (3, 0)):
        study = dataclasses.replace(STUDY, tasks=(dataclasses.replace(TISSUE, n_per_class=n_per_class),))
        study_tasks.judge(study, "synthetic_tissue", "tiny", tmp_path, tmp_path)
        assert tasks.scores_table(Study(study, tmp_path))["published"].notna().sum() == beside


def test_the_published_tables_are_found_by_the_encoders_names():
    """Real ones: two sources of one encoder, of which eva's leaderboard stands."""
    known = tasks.published().set_index(["encoder", "task", "split"])
    assert known.loc[("kaiko_vits16", "bach", "val")].tolist() == [0.812, "eva, leaderboard at 0.4.5"]
    assert known.loc[("kaiko_vitb8", "pcam_10shot", "test"), "published"] == 0.799
    assert known.index.is_unique and "" not in known.index.get_level_values("encoder")


def test_snapshots_have_their_steps():
    study = made_tasks.study(TISSUE, pretraining=(Pretraining("home", n_steps=40),))
    assert [tasks.step_of(study, name) for name in ("home@10", "home")] == [10, 40]
    table = pd.DataFrame({"encoder": ["tiny", "home@10", "home"]})
    assert tasks.encoders_only(table)["encoder"].tolist() == ["tiny", "home"]


def test_without_any_run_there_is_an_empty_table(tmp_path):
    table = tasks.scores_table(Study(STUDY, tmp_path))
    assert table.empty and table.columns.tolist() == tasks.COLUMNS and tasks.reported(table).empty


def test_scores_on_other_data_of_a_task_are_missing_and_not_set_beside_the_new_ones(tmp_path, monkeypatch):
    """The task's data are corrected; then one of two encoders can't be had."""
    both(monkeypatch)
    study_tasks.judge_all(STUDY, "synthetic_tissue", tmp_path, tmp_path)
    assert len({name for name, _ in tasks.runs(Study(STUDY, tmp_path))}) == 1
    new = made_tasks.tissue()
    new.pixels[0] = new.pixels[0].copy()
    new.pixels[0][0, 0, 0] ^= 1
    made_tasks.use(monkeypatch, new)
    judge = study_tasks.judge

    def refusing(study, task, name, *rest):
        if name == "other":
            raise EncoderError("the hub refuses")
        return judge(study, task, name, *rest)

    monkeypatch.setattr(study_tasks, "judge", refusing)
    study_tasks.judge_all(STUDY, "synthetic_tissue", tmp_path, tmp_path)
    study = Study(STUDY, tmp_path)
    assert set(tasks.scores_table(study)["encoder"]) == {"tiny"}
    missing = pretrainings.missing_table(study)
    assert missing[["name", "reason"]].to_numpy().tolist() == [["synthetic_tissue: other", "the hub refuses"]]
