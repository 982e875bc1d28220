"""A study's training: every unit of a fold, once; which units a network has; the command line."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
import torch
from made_training import CARD, NETWORK, history_of, made, network, store_study, tiny

from mfcore import cli as command, encoders, store
from mfcore.data import splits
from mfcore.study import arms as study_arms, data as study_data
from mfcore.study.config import Data, Lora, Network, Patches, Settings, Switches
from mfcore.training import adapt, loop as train_loop, processes, train
from mfcore.training.task import Recipe

UNITS = ["all-fold0-size0.5", "all-fold0-size1", "odd-fold0-size1"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for one another cost more than they bring in networks as small as these."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


class Killed(Exception):
    """Stands for a kill."""


def study_of(*networks: Network, **changed: object) -> Settings:
    given = {"name": "small", "title": "Small", "data": Data("midog"), "patches": Patches(size_px=16), "networks": networks}
    return Settings(**{**given, **changed})


@pytest.fixture
def study(tmp_path, monkeypatch) -> Settings:
    """A study whose patches and splits lie finished in ``tmp_path``, with the tiny network for its architecture."""
    the_study = study_of(network(n_epochs=2))
    store_study(the_study, tmp_path, *made())
    monkeypatch.setattr(encoders, "card_of", lambda *_: CARD)
    monkeypatch.setattr(adapt, "build_network", lambda card, lora, pretrained, seed, input_px: tiny(seed))
    return the_study


def with_network(study: Settings, **changed: object) -> Settings:
    return dataclasses.replace(study, networks=(network(**{"n_epochs": 2, **changed}),))


# ---- one fold ----


def test_train_study_writes_every_unit_of_the_fold(tmp_path, study):
    run = study_arms.train(study, "tiny", 0, tmp_path)
    assert run.verify().done
    facts = run.record["facts"]
    assert facts["device"] == "cpu" and facts["precision"] == "float32" and facts["n_processes"] == 1
    assert facts["stopped_early"] == [] and facts["notes"] == []
    table = pd.read_parquet(run.path("predictions.parquet"))
    assert list(table.columns) == ["patch_id", "slide_id", "domain", "label", "score", "fold", "size", "train_domain"]
    assert set(table["fold"]) == {0} and sorted(set(table["train_domain"])) == ["all", "odd"]
    splits_table = splits.load(study_data.find_splits(study, tmp_path))
    tested = splits_table[(splits_table["role"] == "test") & (splits_table["fold"] == 0)]
    assert len(table) == len(tested)
    assert set(map(tuple, table[["patch_id", "size", "train_domain"]].to_numpy())) == set(
        map(tuple, tested[["patch_id", "size", "train_domain"]].to_numpy())
    )
    np.testing.assert_array_equal(table["label"], made()[1]["label"].to_numpy()[table["patch_id"]])
    assert table["score"].between(0, 1).all() and not table["score"].isna().any()
    history = train.load_history(run)
    assert history.groupby("unit", sort=False)["epoch"].agg(list).to_dict() == {unit: [1, 2] for unit in UNITS}
    assert sorted(file.name for file in run.path("units").iterdir()) == sorted(
        f"{unit}{suffix}" for unit in UNITS for suffix in (".jsonl", ".parquet", ".safetensors")
    )
    assert [stored.key for stored in store.runs(tmp_path, "train")] == [run.key]


def test_two_runs_agree_to_the_last_bit(tmp_path, study):
    for folder in ("one", "other"):
        store_study(study, tmp_path / folder, *made())
    one, other = (study_arms.train(study, "tiny", 0, tmp_path / folder) for folder in ("one", "other"))
    pd.testing.assert_frame_equal(*(pd.read_parquet(run.path("predictions.parquet")) for run in (one, other)), check_exact=True)
    for unit in UNITS:
        assert one.unit_file(unit, ".safetensors").read_bytes() == other.unit_file(unit, ".safetensors").read_bytes()


def test_finished_units_are_not_trained_again(tmp_path, study, monkeypatch):
    whole = pd.read_parquet(study_arms.train(study, "tiny", 1, tmp_path).path("predictions.parquet"))
    trained = []
    train_network = train_loop.train_network

    def failing(task, *arguments, **options):
        if len(trained) == 2:
            raise Killed
        trained.append(task.unit)
        return train_network(task, *arguments, **options)

    (run,) = store.runs(tmp_path, "train")
    for file in (*run.path("units").iterdir(), run.path("run.json"), run.path("predictions.parquet")):
        file.unlink()
    monkeypatch.setattr(train_loop, "train_network", failing)
    with pytest.raises(Killed):
        study_arms.train(study, "tiny", 1, tmp_path)
    assert not run.done
    run.unit_file(trained[0], ".checkpoint").touch()  # killed between a unit's result and its checkpoint's removal
    trained.remove(trained[0])
    again = study_arms.train(study, "tiny", 1, tmp_path)
    assert trained == ["all-fold1-size1", "odd-fold1-size1"]
    assert not list(again.path("units").glob("*.checkpoint"))
    pd.testing.assert_frame_equal(pd.read_parquet(again.path("predictions.parquet")), whole)
    monkeypatch.setattr(train_loop, "train_network", None)
    assert study_arms.train(study, "tiny", 1, tmp_path).done


@pytest.mark.parametrize(("dies_after", "done_before"), [(5, 33 + 8), (4, 33)])
def test_progress_ends_at_its_total(tmp_path, study, monkeypatch, dies_after, done_before):
    """Also where a training goes on from a checkpoint, in an epoch or between two: what was done before counts as done."""
    bars = []

    class Recorded(train.tqdm):
        def __init__(self, **options):
            super().__init__(**options)
            self.first = None
            bars.append(self)

        def update(self, n=1):
            self.first = n if self.first is None else self.first
            super().update(n)

    monkeypatch.setattr(train, "tqdm", Recorded)
    monkeypatch.setattr(processes, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(processes, "CHECKPOINT_SHARE", float("inf"))
    n_steps, step = 0, train_loop._Training._step

    def dying(self, *arguments):
        nonlocal n_steps
        if n_steps == dies_after:
            raise Killed
        n_steps += 1
        return step(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(train_loop._Training, "_step", dying)
        with pytest.raises(Killed):
            study_arms.train(study, "tiny", 0, tmp_path)
    study_arms.train(study, "tiny", 0, tmp_path)
    assert [bar.total for bar in bars] == [3 * 2 * 33] * 2 and [bar.n for bar in bars] == [done_before, 3 * 2 * 33]
    assert bars[1].first == done_before


def test_what_early_stopping_leaves_out_is_not_waited_for(tmp_path, study, monkeypatch):
    bars = []

    class Recorded(train.tqdm):
        def __init__(self, **options):
            super().__init__(**options)
            bars.append(self)

    monkeypatch.setattr(train, "tqdm", Recorded)
    stopping = with_network(study, n_epochs=12, max_lr=0.5, patience=1)
    run = study_arms.train(stopping, "tiny", 0, tmp_path)
    n_epochs = len(train.load_history(run))
    stopped = run.record["facts"]["stopped_early"]
    assert stopped and n_epochs < 36
    assert stopped == train.load_history(run).query("stopped")["unit"].to_list()
    assert bars[0].n == bars[0].total == n_epochs * 33


def test_the_history_can_be_watched(tmp_path, study):
    """After each epoch, with every unit's epochs so far, those of finished units too."""
    seen = []
    run = study_arms.train(study, "tiny", 0, tmp_path, watch=seen.append)
    assert [len(table) for table in seen] == [1, 2, 3, 4, 5, 6]
    pd.testing.assert_frame_equal(seen[-1], train.load_history(run))
    assert list(seen[3]["unit"]) == [UNITS[0]] * 2 + [UNITS[1]] * 2


def test_a_validation_of_one_class_is_noted(tmp_path, study):
    stored, table = made()
    chosen = splits.load(study_data.find_splits(study, tmp_path)).query(
        "fold == 0 and role == 'val' and train_domain == 'all'"
    )["patch_id"]
    table.loc[table["patch_id"].isin(chosen), "label"] = 1
    store_study(study, tmp_path / "other", stored, table)
    run = study_arms.train(study, "tiny", 0, tmp_path / "other")
    assert [note.partition(":")[0] for note in run.record["facts"]["notes"]] == UNITS
    assert train.load_history(run)["val_auroc"].isna().all()


def test_start_follows_the_unit(tmp_path, study, monkeypatch):
    seeds = []

    def build(card, lora, pretrained, seed, input_px):
        seeds.append(seed)
        return tiny(seed)

    monkeypatch.setattr(adapt, "build_network", build)
    study_arms.train(study, "tiny", 0, tmp_path)
    assert len(set(seeds)) == 3


def test_lora_is_trained_like_any_network(tmp_path):
    """The real joint: a tiny transformer, of which only the matrices and the head are written."""
    lora = Lora(rank=2, alpha=2.0, targets=("qkv",))
    the_network = Network(
        "adapted",
        "random:test_vit",
        lora,
        16,
        1,
        16,
        8,
        pretrained=False,
        rotation_probability=0,
        sizes=(1.0,),
        by_domain=False,
    )
    study = study_of(the_network)
    store_study(study, tmp_path, *made())
    run = study_arms.train(study, "adapted", 0, tmp_path)
    assert list(train.load_history(run)["unit"]) == ["all-fold0-size1"]
    import safetensors

    with safetensors.safe_open(run.unit_file("all-fold0-size1", ".safetensors"), "pt") as content:
        assert content.keys() and all("lora_" in name or name.startswith("head") for name in content.keys())  # noqa: SIM118
    wrong = dataclasses.replace(the_network, lora=Lora(targets=("query",)))
    with pytest.raises(encoders.EncoderError, match=r"networks\[adapted\]: .* no layers called query"):
        study_arms.train(dataclasses.replace(study, networks=(wrong,)), "adapted", 0, tmp_path)


# ---- units and identity ----


def test_a_network_may_have_some_sizes_and_no_domain(tmp_path, study):
    table = splits.load(study_data.find_splits(study, tmp_path))

    def names(**changed: object) -> list[str]:
        return [unit.name for unit in train.units_of(network(**changed), table, 0)]

    assert names() == UNITS
    assert names(sizes=(1.0,)) == UNITS[1:]
    assert names(sizes=(1.0,), by_domain=False) == UNITS[1:2]
    assert names(by_domain=False) == UNITS[:2]
    assert names(sizes=(0.1, 0.5), by_domain=False) == UNITS[:1]
    with pytest.raises(train.TrainingError, match=r"\[tiny\]\.sizes are \[0\.1\], the splits have \[0\.5, 1\.0\]"):
        names(sizes=(0.1,), by_domain=False)


def test_units_that_are_left_out_fail_nothing(tmp_path, study):
    run = study_arms.train(with_network(study, sizes=(1.0,), by_domain=False), "tiny", 0, tmp_path)
    assert (
        set(pd.read_parquet(run.path("predictions.parquet"))["size"]) == {1.0} and len(list(run.path("units").iterdir())) == 3
    )


def test_a_switch_is_part_of_the_run_where_it_matters(study):
    def differing(the_network: Network, **switches: str) -> list[str]:
        other = dataclasses.replace(study, switches=Switches(**switches))
        configs = (study_arms.training_config(each, the_network, 0) for each in (study, other))
        return [name for name, *_ in store.differences(*configs)]

    assert differing(NETWORK, epoch="last") == ["epoch"]
    assert differing(NETWORK, training_label="window") == ["training_label"]
    assert differing(NETWORK, validation="drawn") == ["validation"]
    assert differing(NETWORK, clipping="before_backward") == []
    assert differing(network(clip_norm=1.0), clipping="before_backward") == ["clipping"]
    assert differing(NETWORK, sampler="released") == ["sampler"]
    assert differing(network(patches_per_epoch=None), sampler="released") == [], "nothing is drawn"
    assert differing(NETWORK, augmentation="released") == ["augmentation"]
    assert differing(network(blur_probability=0.0, rotation_probability=0.0), augmentation="released") == []
    assert not {"sampler", "augmentation"} & set(study_arms.training_config(study, NETWORK, 0)), "keys of before stay"
    assert differing(NETWORK, border="black", split_by="annotation") == [], "patches and splits have keys of their own"


def test_a_recipe_has_the_released_sampler_only_where_the_network_draws(study):
    released = dataclasses.replace(study, switches=Switches(sampler="released", epoch="last"))
    assert study_arms.recipe_of(released, NETWORK) == Recipe(epoch="last", sampler="released")
    assert study_arms.recipe_of(released, network(patches_per_epoch=None)) == Recipe(epoch="last")


def test_the_switches_reach_the_training(tmp_path, study, monkeypatch):
    tasks = []

    def taken(task, *arguments, **options):
        tasks.append(task)
        raise Killed

    monkeypatch.setattr(train_loop, "train_network", taken)
    by_window = dataclasses.replace(study, switches=Switches(training_label="window"))
    with pytest.raises(Killed):
        study_arms.train(by_window, "tiny", 0, tmp_path)
    assert tasks[0].recipe.training_label == "window"
    np.testing.assert_array_equal(tasks[0].places.annotation_l0_px[:, 0], 100 + 20 * np.arange(120))


def test_networks_may_have_folds_of_their_own(tmp_path, study):
    """Where folds aren't shared, a network is trained on its own, which must be there."""
    own = dataclasses.replace(study, switches=Switches(shared_splits=False))
    with pytest.raises(store.StoreError, match=r"splits.*slide_networks"):
        study_arms.train(own, "tiny", 0, tmp_path)


# ---- refusals ----


def test_an_unknown_fold_is_refused(tmp_path, study):
    with pytest.raises(train.TrainingError, match=r"no fold 7; they have \[0, 1\]"):
        study_arms.train(study, "tiny", 7, tmp_path)


def test_every_unit_that_can_not_be_trained_is_named_before_anything_is_trained(tmp_path, study):
    with pytest.raises(train.TrainingError) as refused:
        study_arms.train(with_network(study, patches_per_epoch=None, batch_size=64), "tiny", 0, tmp_path)
    first, *problems = str(refused.value).splitlines()
    assert first == "not every unit can be trained:" and len(problems) == 3
    assert problems[0].startswith("  all-fold0-size0.5: the 30 patches of an epoch are too few for a batch of 64")
    assert problems[1].startswith("  all-fold0-size1: the 60 patches of an epoch are too few for a batch of 64")


# ---- the command line ----


def arguments(tmp_path, **changed: object) -> list[str]:
    said = {"study": tmp_path / "small.yaml", "network": "tiny", "fold": 0, "results": tmp_path, "device": "cpu", **changed}
    return ["train", *(part for name, value in said.items() for part in (f"--{name}", str(value)))]


def test_the_command_line_trains(tmp_path, study, monkeypatch, capsys):
    monkeypatch.setattr("mfcore.study.config.load_study", lambda file: study)
    store_study(study, tmp_path / "small", *made())
    assert command.main(arguments(tmp_path)) == 0
    (run,) = store.runs(tmp_path / "small", "train")
    assert capsys.readouterr().out.strip() == str(run.folder)
    assert [line["epoch"] for line in history_of(run.path("units"), UNITS[0])] == [1, 2]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"network": "other"}, r"no network 'other'; it has \['tiny'\]"),
        ({"fold": 9}, "no fold 9"),
        ({"device": "cuda:77"}, "device 'cuda:77' can't be used"),
        ({"results": "/nowhere"}, "no finished 'patches' run"),
    ],
)
def test_the_command_line_refuses_in_one_line(tmp_path, study, monkeypatch, capsys, changed, said):
    monkeypatch.setattr("mfcore.study.config.load_study", lambda file: study)
    store_study(study, tmp_path / "small", *made())
    assert command.main(arguments(tmp_path, **changed)) == 1
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("mfcore: ")]
    assert re.search(said, line) and not captured.out


def test_the_command_line_says_a_line_for_each_unit_that_can_not_be_trained(tmp_path, study, monkeypatch, capsys):
    monkeypatch.setattr("mfcore.study.config.load_study", lambda file: with_network(study, patches_per_epoch=7))
    store_study(study, tmp_path / "small", *made())
    assert command.main(arguments(tmp_path)) == 1
    first, *units = [line for line in capsys.readouterr().err.splitlines() if "UserWarning" not in line]
    assert first == "mfcore: not every unit can be trained:"
    assert {unit.split(":")[0] for unit in units} == {f"  {name}" for name in UNITS}


def test_a_study_file_that_is_not_there_is_refused(tmp_path, capsys):
    assert command.main(arguments(tmp_path)) == 1
    assert "small.yaml" in capsys.readouterr().err
