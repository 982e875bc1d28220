"""Tables from predictions: each number against a second way to it, and what is missing as a row with its reason."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu

from mfcore import encoders, store
from mfcore.analysis import arms, domains, exhibit, scores as of_scores
from mfcore.data import splits
from mfcore.measures import binary
from mfcore.study import data as study_data, predictions as stored
from mfcore.study.config import Data, Lora, Network, Probe, Settings, Splits, as_dict

STUDY = Settings(
    "t",
    "A test",
    Data("midog"),
    splits=Splits(sizes=(0.5, 1.0), n_folds=3),
    encoders=("good", "random"),
    networks=(Network("net", input_px=100),),
)
SIGNAL = {"good": 0.5, "random": 0.0, "net": 4.0}


def fake_predictions(arm, kind, rng, folds=(0, 1, 2)):
    """Clearly made-up scores, whose signal grows with size and falls out of domain."""
    rows = []
    for fold in folds:
        units = [("all", size) for size in STUDY.splits.sizes] + [("a", 1.0), ("b", 1.0)]
        for train_domain, size in units:
            n = 120
            label, domain = rng.integers(0, 2, n), rng.choice(["a", "b"], n)
            gain = SIGNAL[arm] * size * np.where((train_domain == "all") | (domain == train_domain), 1.0, 0.3)
            score = 1 / (1 + np.exp(-(gain * (label - 0.5) + rng.normal(size=n))))
            slide = [f"{d}{i}" for d, i in zip(domain, rng.integers(0, 9, n), strict=True)]
            unit = {"fold": fold, "size": size, "train_domain": train_domain}
            rows.append(pd.DataFrame({"slide_id": slide, "domain": domain, "label": label, "score": score, **unit}))
    table = pd.concat(rows, ignore_index=True)
    return table.assign(patch_id=np.arange(len(table)), arm=arm, kind=kind, n_train=(100 * table["size"]).astype(int))


@pytest.fixture(scope="module")
def predictions():
    rng = np.random.default_rng(0)
    arms = [("net", "end-to-end"), ("good", "probe"), ("random", "probe")]
    return pd.concat([fake_predictions(arm, kind, rng) for arm, kind in arms], ignore_index=True)


def test_scores_are_those_of_each_fit_and_test_domain(predictions):
    scores = stored.scores(predictions)
    assert len(scores) == 3 * 3 * (2 + 2 * 2)
    row = scores[
        (scores["arm"] == "net") & (scores["fold"] == 1) & (scores["train_domain"] == "a") & (scores["domain"] == "b")
    ].iloc[0]
    part = predictions.query("arm == 'net' and fold == 1 and train_domain == 'a' and domain == 'b'")
    u = mannwhitneyu(part.loc[part["label"] == 1, "score"], part.loc[part["label"] == 0, "score"]).statistic
    assert row["auroc"] == pytest.approx(u / (part["label"].sum() * (part["label"] == 0).sum()))
    assert row["n_test"] == len(part) and row["n_test_slides"] == part["slide_id"].nunique()


def test_scaling_table_is_mean_and_sample_sd_over_folds_in_the_study_s_order(predictions):
    scores = stored.scores(predictions)
    table = of_scores.scaling_table(scores, STUDY)
    assert table["arm"].tolist() == ["net", "net", "good", "good", "random", "random"]
    values = scores.query("arm == 'good' and train_domain == 'all' and size == 0.5")["auroc"]
    row = table.query("arm == 'good' and size == 0.5").iloc[0]
    assert row["auroc"] == pytest.approx(np.mean(values)) and row["auroc_sd"] == pytest.approx(np.std(values, ddof=1))
    assert row["n_train"] == 50 and row["n_folds"] == 3
    wide = of_scores.across_sizes(table)
    assert list(wide.columns) == ["arm", "kind", "50 %", "100 %"] and wide["arm"].tolist() == ["net", "good", "random"]
    assert wide.loc[1, "50 %"] == f"{np.mean(values):.2f}\u00a0±\u00a0{np.std(values, ddof=1):.2f}"


def test_cross_domain_table_averages_domains_within_a_fold_then_folds(predictions):
    scores = stored.scores(predictions)
    table = domains.means_table(scores, STUDY).set_index("arm")
    crossed = scores.query("arm == 'net' and train_domain != 'all'")
    own = crossed[crossed["domain"] == crossed["train_domain"]]
    folds = own.groupby("fold")["auroc"].mean()
    assert table.loc["net", "in_domain"] == pytest.approx(folds.mean())
    assert table.loc["net", "in_domain_sd"] == pytest.approx(folds.std(ddof=1))
    assert table.loc["net", "in_domain_sd_cells"] == pytest.approx(own["auroc"].std(ddof=1))
    assert table.loc["net", "out_of_domain"] < table.loc["net", "in_domain"]
    matrix = domains.domain_matrix(scores, STUDY)
    cell = matrix.query("arm == 'net' and train_domain == 'a' and domain == 'b'").iloc[0]
    assert cell["mean"] == pytest.approx(crossed.query("train_domain == 'a' and domain == 'b'")["auroc"].mean())


def test_a_test_set_of_one_class_has_no_auroc_and_takes_no_other_fold_with_it(predictions):
    broken = predictions.copy()
    broken.loc[(broken["fold"] == 0) & (broken["train_domain"] == "all") & (broken["arm"] == "net"), "label"] = 1
    table = of_scores.scaling_table(stored.scores(broken), STUDY).query("arm == 'net'")
    assert table["auroc"].notna().all()


def test_published_numbers_are_those_of_table_2():
    table = domains.published(replace(STUDY, data=Data("midog22"))).set_index("arm")
    assert len(table) == 9
    assert table.loc["End-To-End ResNet50"].tolist() == [0.87, 0.04, 0.74, 0.07]
    assert table.loc["H-optimus-0", "out_of_domain"] == 0.66


def test_the_best_arm_s_interval_holds_its_mean(predictions):
    table = of_scores.scaling_table(stored.scores(predictions), STUDY)
    interval = of_scores.intervals(predictions, STUDY).query("arm == 'net'").iloc[0]
    assert interval["estimate"] == pytest.approx(table.query("arm == 'net' and size == 1.0")["auroc"].iloc[0])
    assert interval["low"] < interval["estimate"] < interval["high"] and interval["n"] == 18


@pytest.mark.parametrize(("n", "text"), [(1, "1 fold"), (5, "5 folds"), (0, "0 folds"), (1200, "1,200 folds")])
def test_one_is_spoken_of_as_one(n, text):
    assert exhibit.counted(n, "fold") == text
    assert exhibit.counted(n, "patch", "patches").split()[1] == ("patch" if n == 1 else "patches")


def finish(folder, stage, name, arm, config, inputs, predictions):
    """A finished run that predicted what ``arm`` did."""
    if stage == "train":
        inputs = {"patches": study_data.find_patches(STUDY, folder).key} | inputs
    known = {key: value for key, value in (config | inputs).items() if key not in ("card", "embeddings")}
    run = store.open_run(folder, stage, name, config, inputs, known)
    part = predictions[predictions["arm"] == arm]
    store.write_parquet(run.path("predictions.parquet"), part.drop(columns=["arm", "kind", "n_train"]))
    return run.finish(["predictions.parquet"])


def trained(network=None, **differing):
    """The config of a training of the study's network, as `mfcore.training.train` writes it."""
    network = STUDY.networks[0] if network is None else network
    said = {"epoch": "best", "training_label": "annotation", "validation": "centre"}
    card = encoders.card_of(network.architecture).identity()
    return {"network": as_dict(network), "card": card, **said, "seed": 42, "fold": 0} | differing


def made_splits(folder, study):
    """Splits of a study, with its patches, as the stages leave them."""
    patches_run = store.open_run(folder, "patches", STUDY.name, study_data.patches_config(STUDY), {"annotations": "x"})
    if not patches_run.done:
        cases = pd.DataFrame({"patch_id": np.arange(2000), "case_id": [f"c{i % 7}" for i in range(2000)]})
        store.write_parquet(patches_run.path("labels.parquet"), cases)
        patches_run.finish(["labels.parquet"])
    config = study_data.splits_config(study)
    run = store.open_run(folder, "splits", study.switches.scheme, config, {"patches": patches_run.key})
    units = [splits._rows("all", fold, size, "train", np.arange(round(100 * size))) for fold in range(3) for size in (0.5, 1.0)]
    units += [splits._rows(domain, fold, 1.0, "train", np.arange(40)) for fold in range(3) for domain in "ab"]
    store.write_parquet(run.path("splits.parquet"), pd.concat(units))
    return run.finish(["splits.parquet"])


@pytest.fixture
def results(tmp_path, predictions):
    """A results folder with splits, one probe and one fold of the network, as the stages leave them."""
    inputs = {"splits": made_splits(tmp_path, STUDY).key}
    of_fold = {fold: predictions[predictions["fold"] == fold] for fold in (0, 1)}
    other = replace(STUDY.networks[0], max_lr=1.0)
    finish(tmp_path, "probe", "good", "good", STUDY.probe.linear, inputs, predictions)
    finish(tmp_path, "train", "net-fold0", "net", trained(), inputs, of_fold[0])
    finish(tmp_path, "train", "net-fold1", "net", trained(other, fold=1), inputs, of_fold[1])
    finish(tmp_path, "probe", "random", "random", STUDY.probe.linear, {"splits": "other"}, predictions)
    failure = {"stage": "02_embed", "name": "02_embed.random", "parameters": {"encoder": "random"}, "reason": "no weights"}
    store.write_json(tmp_path / "failures" / "02_embed.random.json", failure)
    return tmp_path


def test_collect_takes_what_belongs_to_the_study_and_lists_what_is_missing(results):
    collected = stored.collect(STUDY, results)
    assert set(collected.predictions["arm"]) == {"good", "net"}
    assert set(collected.predictions.query("arm == 'net'")["fold"]) == {0}, "a run with other settings was taken"
    assert set(collected.predictions.query("size == 0.5")["n_train"]) == {50}
    failures = collected.failures.set_index(["arm", "stage"])["reason"]
    assert failures["random", "probe"] == "no weights"
    assert failures["net", "train, fold 1"] == failures["net", "train, fold 2"] == "not run yet"


def test_intervals_of_collected_predictions_draw_the_labels_cases(results):
    """Predictions on disk name slides alone: their cases are the study's labels'."""
    collected = stored.collect(STUDY, results).predictions
    assert (collected["case_id"] == "c" + (collected["patch_id"] % 7).astype(str)).all()
    found = of_scores.intervals(collected, STUDY)
    assert set(found["n"]) == {7} and set(found["unit"]) == {"case"}
    store.write_parquet(next(results.glob("patches-*/labels.parquet")), pd.DataFrame({"patch_id": [0], "case_id": ["c0"]}))
    with pytest.raises(store.StoreError, match="run notebook 01 again"):
        stored.collect(STUDY, results)


def test_collect_says_what_to_run_when_there_is_nothing(results):
    with pytest.raises(store.StoreError, match="no finished 'splits' run"):
        stored.collect(replace(STUDY, splits=replace(STUDY.splits, seed=1)), results)
    with pytest.raises(store.StoreError, match="run notebooks 02 to 04 first"):
        stored.collect(replace(STUDY, encoders=("other",), networks=(), probe=Probe(max_iter=3)), results)


@pytest.mark.parametrize(
    ("differing", "switches"),
    [
        ({"epoch": "last"}, {"epoch": "last"}),
        ({"training_label": "window"}, {"training_label": "window"}),
        ({"validation": "drawn"}, {"validation": "drawn"}),
        ({"sampler": "released"}, {"sampler": "released"}),
        ({"augmentation": "released"}, {"augmentation": "released"}),
    ],
)
def test_a_training_under_another_switch_is_another_s(results, predictions, differing, switches):
    """A later run of the same name that says otherwise is left aside, and taken by the study that asks for it."""
    inputs = {"splits": study_data.find_splits(STUDY, results).key}
    own = stored.current_runs(STUDY, results)["net-fold0"].key
    other = finish(results, "train", "net-fold0", "net", trained(**differing), inputs, predictions).key
    assert stored.current_runs(STUDY, results)["net-fold0"].key == own
    flipped = replace(STUDY, switches=replace(STUDY.switches, **switches))
    assert stored.current_runs(flipped, results)["net-fold0"].key == other


def test_clipping_matters_only_to_a_network_that_clips(results, predictions):
    flipped = replace(STUDY, switches=replace(STUDY.switches, clipping="before_backward"))
    assert "net-fold0" in stored.current_runs(flipped, results)
    clips = (replace(STUDY.networks[0], clip_norm=0.1),)
    config, inputs = trained(clips[0], clipping="after_backward"), {"splits": study_data.find_splits(STUDY, results).key}
    finish(results, "train", "net-fold0", "net", config, inputs, predictions)
    assert "net-fold0" in stored.current_runs(replace(STUDY, networks=clips), results)
    assert "net-fold0" not in stored.current_runs(replace(flipped, networks=clips), results)


@pytest.mark.parametrize(("card", "is_current"), [(None, True), ({"mean": 0.1}, False)])
def test_a_probe_on_embeddings_of_another_card_is_another_s(results, predictions, card, is_current):
    study, name = replace(STUDY, encoders=("vit_tiny_random",)), "vit_tiny_random"
    config = {"card": card or encoders.card_of(name).identity(), "size_px": 224}
    patches_key = study_data.find_patches(STUDY, results).key
    made = store.open_run(results, "embeddings", name, config, {"patches": patches_key}).finish([])
    inputs = {"splits": study_data.find_splits(STUDY, results).key, "embeddings": made.key}
    finish(results, "probe", name, "good", STUDY.probe.linear, inputs, predictions)
    assert (name in stored.current_runs(study, results)) == is_current


def test_a_network_of_low_rank_is_of_its_own_kind_and_what_it_leaves_out_is_no_failure(results, predictions):
    network = Network("net", "vit_tiny_random", input_px=100, lora=Lora(rank=4), sizes=(1.0,), by_domain=False)
    study = replace(STUDY, encoders=("good",), networks=(network,))
    inputs = {"splits": study_data.find_splits(STUDY, results).key}
    part = predictions.query("train_domain == 'all' and size == 1.0")
    for fold in range(3):
        finish(results, "train", f"net-fold{fold}", "net", trained(network, fold=fold), inputs, part[part["fold"] == fold])
    collected = stored.collect(study, results)
    assert collected.failures.empty
    assert set(collected.predictions.query("arm == 'net'")["kind"]) == {stored.LORA}
    scores = stored.scores(collected.predictions)
    wide = of_scores.across_sizes(of_scores.scaling_table(scores, study))
    assert wide.loc[0, ["arm", "kind", "50 %"]].tolist() == ["net", "LoRA", "–"] and "±" in wide.loc[0, "100 %"]
    assert set(domains.means_table(scores, study)["arm"]) == {"good"}


def test_networks_are_looked_for_on_folds_of_their_own(results, predictions):
    own = replace(STUDY, switches=replace(STUDY.switches, shared_splits=False), encoders=("good",))
    assert set(stored.current_runs(own, results)) == {"good"}, "a network of the shared folds was taken"
    inputs = {"patches": study_data.find_patches(STUDY, results).key}
    config = study_data.splits_config(own, networks=True)
    run = store.open_run(results, "splits", f"{own.switches.scheme}_networks", config, inputs)
    shared = splits.load(study_data.find_splits(STUDY, results))
    store.write_parquet(run.path("splits.parquet"), shared)
    run.finish(["splits.parquet"])
    finish(results, "train", "net-fold0", "net", trained(), {"splits": run.key}, predictions.query("fold == 0"))
    assert set(stored.current_runs(own, results)) == {"good", "net-fold0"}
    assert set(stored.collect(own, results).predictions["arm"]) == {"good", "net"}


def voted(predictions, seed=0):
    """A label table for the predictions: two votes, a third where they differ, none for every tenth patch."""
    rng = np.random.default_rng(seed)
    rows = []
    for patch_id, label in zip(predictions["patch_id"], predictions["label"], strict=True):
        hard = rng.random() < 0.3
        votes = [label, 1 - label, label] if hard else [label, label]
        rows.append((patch_id, np.array(votes if patch_id % 10 else [], dtype=np.int8)))
    table = pd.DataFrame(rows, columns=["patch_id", "votes"])
    return table.assign(label=predictions["label"].to_numpy()).drop_duplicates("patch_id", keep="last")


@pytest.fixture(scope="module")
def one_arm(predictions):
    return predictions[predictions["arm"] == "good"].reset_index(drop=True)


def test_metrics_are_split_by_whether_the_raters_agreed(one_arm):
    labels = voted(one_arm)
    table = arms.by_agreement_table(one_arm, labels, STUDY)
    assert table["arm"].unique().tolist() == ["good"] and len(table) == 4
    part = one_arm.query("train_domain == 'all' and size == 1.0").merge(labels[["patch_id", "votes"]], on="patch_id")
    of_part = {
        "all": part["votes"].map(len) > 1,
        "unanimous": part["votes"].map(len) == 2,
        "contested": part["votes"].map(len) == 3,
    }
    for stratum, chosen in of_part.items():
        row = table[(table["annotations"] == stratum) & (table["against"] == "consensus")].iloc[0]
        folds = [binary.auroc(f["label"], f["score"]) for _, f in part[chosen].groupby("fold")]
        assert row["auroc"] == pytest.approx(np.mean(folds)) and row["auroc_sd"] == pytest.approx(np.std(folds, ddof=1))
        assert row["n_test"] == round(chosen.sum() / 3) and row["n_folds"] == 3
    row = table.query("against == 'one rater'").iloc[0]
    chosen = part[of_part["all"]]
    folds = [
        np.mean([binary.balanced_accuracy(np.array([v[i] for v in f["votes"]]), f["score"].to_numpy()) for i in (0, 1)])
        for _, f in chosen.groupby("fold")
    ]
    assert row["balanced_accuracy"] == pytest.approx(np.mean(folds))


def test_a_stratum_without_a_class_is_nan_and_a_lost_label_table_is_refused(one_arm):
    labels = voted(one_arm)
    contested = labels["votes"].map(len) == 3
    lost = contested & (labels["label"] == 0)
    one_class = labels.assign(votes=[vote[:0] if gone else vote for vote, gone in zip(labels["votes"], lost, strict=True)])
    row = arms.by_agreement_table(one_arm, one_class, STUDY).query("annotations == 'contested'").iloc[0]
    assert np.isnan([row["auroc"], row["balanced_accuracy"], row["auroc_sd"]]).all() and np.isfinite(row["accuracy"])
    with pytest.raises(store.StoreError, match="are of patches that the label table lacks"):
        arms.by_agreement_table(one_arm, labels.iloc[::2], STUDY)


def test_without_votes_no_arm_is_split(one_arm):
    none = voted(one_arm).assign(votes=[np.zeros(0, np.int8)] * one_arm["patch_id"].nunique())
    assert arms.by_agreement_table(one_arm, none, STUDY).empty


def test_each_test_domain_has_its_mean_in_and_out_of_domain(predictions):
    scores = stored.scores(predictions)
    table = domains.by_test_domain_table(scores, STUDY)
    assert len(table) == 3 * 2 * 2 and table["arm"].unique().tolist() == ["net", "good", "random"]
    row = table.query("arm == 'net' and domain == 'b' and where == 'out of domain'").iloc[0]
    values = scores.query("arm == 'net' and domain == 'b' and train_domain == 'a'")["balanced_accuracy"]
    assert row["mean"] == pytest.approx(values.mean()) and row["sd"] == pytest.approx(values.std(ddof=1))


def test_an_interval_that_reaches_beyond_what_scores_differ_by_is_not_written():
    assert exhibit.bounds(-0.01, 0.2) == "-0.010 to +0.200" and exhibit.bounds(-1.0, 1.0, "+.2f", ", ") == "-1.00, +1.00"
    assert exhibit.bounds(-1.6, 1.9) == exhibit.bounds(0.1, 1.01) == exhibit.bounds(np.nan, np.nan) == ""
