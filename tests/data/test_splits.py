"""Splits: every rule that makes them fair, as properties; the released draws and their leak as golden numbers."""

import hashlib
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, example, given, settings, strategies as st

from mfcore import store
from mfcore.analysis import domains as of_domains, scores as analysis_scores, switches
from mfcore.data import splits, splits_audit
from mfcore.data.splits_draw import Placing
from mfcore.study import arms as study_arms, data as study_data, predictions as study_predictions
from mfcore.study.config import MODES, SCHEMES, Data, Patches, Settings, Splits, Switches

LABELS = Path(__file__).parents[2].parent / "shared" / "data" / "labels"
needs_real = pytest.mark.skipif(not LABELS.is_dir(), reason="the real labels of ../shared/data are not here")


def study(mode="strict", **changes):
    return Settings(
        "t", "t", Data("midog"), splits=replace(Splits(sizes=(0.1, 1.0)), **changes), mode=mode, switches=MODES[mode]
    )


def make(labels, asked):
    """The splits of a study's probes."""
    return splits.make(labels, study_data.scheme_of(asked))


def label_table(rng, n_domains=3, n_slides=8, n_per_slide=20):
    rows = []
    for domain in range(n_domains):
        for slide in range(n_slides):
            for _ in range(int(rng.integers(n_per_slide // 2, n_per_slide * 2))):
                rows.append((f"d{domain}", f"d{domain}s{slide}", int(rng.random() < 0.2 + 0.1 * (slide % 5))))
    table = pd.DataFrame(rows, columns=["domain", "slide_id", "label"])
    table["patch_id"] = np.arange(len(table))
    table["case_id"] = table["slide_id"]
    table["x_l0_px"], table["y_l0_px"] = rng.uniform(0, 5000, (2, len(table)))
    table["um_per_px"] = 0.25
    return table


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n_domains=st.integers(2, 4),
    n_slides=st.integers(4, 9),
    mode=st.sampled_from(["strict", "paper"]),
)
def test_no_patch_has_two_roles_and_strict_keeps_slides_apart(seed, n_domains, n_slides, mode):
    labels = label_table(np.random.default_rng(seed), n_domains, n_slides)
    table = make(labels, study(mode, n_folds=2, sizes=(0.2, 1.0)))
    slide = labels.set_index("patch_id")["slide_id"]
    for unit in splits.units(table):
        ids = splits.select(table, unit)
        everything = np.concatenate(list(ids.values()))
        assert len(everything) == len(set(everything))
        assert all(len(ids[role]) for role in splits.ROLES)
        if mode == "strict":
            slides = [set(slide.loc[ids[role]]) for role in splits.ROLES]
            assert not (slides[0] & slides[1] or slides[0] & slides[2] or slides[1] & slides[2])
        if unit.train_domain != splits.ALL:
            trained = labels.set_index("patch_id").loc[np.concatenate([ids["train"], ids["val"]]), "domain"]
            assert set(trained) == {unit.train_domain}
            elsewhere = labels.loc[labels["domain"] != unit.train_domain, "patch_id"]
            assert set(elsewhere) <= set(ids["test"])


def test_sizes_are_nested_and_keep_the_class_balance():
    labels = label_table(np.random.default_rng(1))
    table = make(labels, study(sizes=(0.05, 0.3, 1.0), n_folds=1, by_domain=False))
    label = labels.set_index("patch_id")["label"]
    small, middle, full = (splits.select(table, unit) for unit in splits.units(table))
    assert set(small["train"]) < set(middle["train"]) < set(full["train"])
    assert np.array_equal(small["test"], full["test"])
    for ids, share in ((small, 0.05), (middle, 0.3)):
        for c in (0, 1):
            assert abs((label.loc[ids["train"]] == c).sum() - share * (label.loc[full["train"]] == c).sum()) <= 0.5


def test_stratified_slides_hold_the_share_of_each_class_better_than_plain_ones():
    labels = label_table(np.random.default_rng(2), n_slides=12)

    def worst(stratified):
        asked = replace(study(n_folds=5, by_domain=False), switches=Switches(stratified=stratified))
        table = make(labels, asked).merge(labels, on="patch_id")
        test = table[(table["role"] == "test") & (table["size"] == 1.0)]
        return (test.groupby(["fold", "domain", "label"]).size() / labels.groupby(["domain", "label"]).size() - 0.2).abs().max()

    assert worst(True) < 0.1 < worst(False)


def test_slides_of_one_case_stay_together():
    labels = label_table(np.random.default_rng(6), n_slides=12)
    labels["case_id"] = labels["slide_id"].str.replace(r"s(\d+)$", lambda m: f"c{int(m[1]) // 2}", regex=True)
    table = make(labels, study(n_folds=3, by_domain=False)).merge(labels, on="patch_id")
    assert labels["case_id"].nunique() == 18
    assert table.groupby(["fold", "case_id"])["role"].nunique().max() == 1


def test_folds_differ_and_don_t_depend_on_the_other_folds_or_sizes():
    labels = label_table(np.random.default_rng(3))
    few = make(labels, study(n_folds=1, sizes=(1.0,)))
    many = make(labels, study(n_folds=3, sizes=(0.1, 0.5, 1.0)))
    for unit in splits.units(few):
        assert all(
            np.array_equal(a, b)
            for a, b in zip(splits.select(few, unit).values(), splits.select(many, unit).values(), strict=True)
        )
    tests = [set(splits.select(many, splits.Unit("all", fold, 1.0))["test"]) for fold in range(3)]
    assert tests[0] != tests[1] != tests[2]


def test_a_size_that_leaves_a_class_empty_is_refused_with_a_remedy():
    labels = label_table(np.random.default_rng(4))
    with pytest.raises(splits.SplitError, match=r"size 0\.001 leaves no positive patch in the train set .*splits\.sizes"):
        make(labels, study(sizes=(0.001, 1.0)))


def test_one_domain_cannot_be_crossed_and_two_slides_cannot_be_split():
    labels = label_table(np.random.default_rng(5), n_domains=1)
    with pytest.raises(splits.SplitError, match="by_domain: false"):
        make(labels, study())
    labels = label_table(np.random.default_rng(5), n_domains=2, n_slides=2)
    with pytest.raises(splits.SplitError, match="split_by: annotation"):
        make(labels, study())


def drawn(split_by, labels, **changes):
    """Roles of every unit as ``split_by`` draws them, by unit."""
    asked = replace(study(by_domain=False, n_folds=3, **changes), switches=Switches(split_by=split_by))
    table = make(labels, asked)
    return {unit: splits.select(table, unit) for unit in splits.units(table)}


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), extent=st.integers(1000, 20000))
def test_a_buffer_leaves_no_shared_pixel_and_takes_no_test_patch_away(seed, extent):
    labels = label_table(np.random.default_rng(seed))
    labels[["x_l0_px", "y_l0_px"]] *= extent / 5000
    plain, buffered = (drawn(split_by, labels, sizes=(1.0,)) for split_by in ("annotation", "annotation_buffered"))
    side = 224.0
    for unit, ids in buffered.items():
        assert np.array_equal(ids["test"], plain[unit]["test"])
        assert set(ids["train"]) <= set(plain[unit]["train"]) and set(ids["val"]) <= set(plain[unit]["val"])
        at = labels.set_index("patch_id")
        for a, b in (("train", "test"), ("val", "test"), ("train", "val")):
            there_of = dict(list(at.loc[ids[b]].groupby("slide_id")))
            for slide, here in at.loc[ids[a]].groupby("slide_id"):
                there = there_of.get(slide, here[:0])
                apart = [np.abs(np.subtract.outer(here[c].to_numpy(), there[c].to_numpy())) for c in ("x_l0_px", "y_l0_px")]
                assert not (np.maximum(*apart) < side).any()


def test_a_buffer_drops_only_what_shares_pixels():
    labels = label_table(np.random.default_rng(7))
    labels["x_l0_px"] = 1000.0 * np.arange(len(labels))  # no two patches meet
    plain, buffered = (drawn(split_by, labels) for split_by in ("annotation", "annotation_buffered"))
    assert all(np.array_equal(plain[unit][role], buffered[unit][role]) for unit in plain for role in splits.ROLES)


GOLDEN = {  # of the table of `golden_table` as CSV, before twins were looked for
    "slide": "72109f6e4158ef00",
    "official": "5ad252e8b8082410",
    "annotation_buffered": "9d9517af8fce9cfb",
    "annotation": "c46febba8d294be1",
    "released": "5b6cb633a7fcfeb1",
}


def under(scheme, asked):
    """The study under a scheme, across domains too."""
    return replace(study_data.under(asked, scheme), splits=asked.splits)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_data_without_twins_are_split_as_ever(scheme):
    labels = official(label_table(np.random.default_rng(12)))
    asked = under(scheme, study(n_folds=2))
    for table in (
        make(labels, asked),
        make(labels.assign(twin=labels["patch_id"]), asked),
    ):
        assert hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()[:16] == GOLDEN[scheme]


def with_planted(seed, n_groups=4):
    """Labels in which some slides are of one case, some cases of two domains, and ``n_groups`` groups of patches are twins."""
    rng = np.random.default_rng(seed)
    labels = official(label_table(rng, n_slides=9), ("train", "train", "val", "test"))
    slides = rng.permutation(labels["slide_id"].unique())
    case = {slide: slide for slide in slides} | {second: first for first, second in zip(slides[:3], slides[3:6], strict=True)}
    twin = labels["patch_id"].to_numpy().copy()
    for _ in range(n_groups):
        group = rng.choice(len(labels), rng.integers(2, 4), replace=False)
        twin[np.isin(twin, twin[group])] = twin[group].min()
    return labels.assign(case_id=labels["slide_id"].map(case), twin=twin)


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "released"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), n_groups=st.integers(1, 6))
def test_no_twins_are_on_two_sides_and_by_slide_no_case_is(scheme, seed, n_groups):
    labels = with_planted(seed, n_groups)
    try:
        table = make(labels, under(scheme, study(n_folds=2, sizes=(0.3, 1.0))))
    except splits.SplitError:  # twins may leave a domain with too few cases
        assume(False)
    at = labels.set_index("patch_id")
    for unit in splits.units(table):
        ids = splits.select(table, unit)
        for column in ("twin", "case_id") if scheme == "slide" else ("twin",):
            sides = [set(at.loc[ids[role], column]) for role in splits.ROLES]
            assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2]), (unit, column)
        if unit.train_domain != splits.ALL:
            elsewhere = labels[labels["domain"] != unit.train_domain]
            if scheme == "slide":
                learnt = at.loc[np.concatenate([ids["train"], ids["val"]]), "case_id"]
                elsewhere = elsewhere[~elsewhere["case_id"].isin(set(learnt))]
            assert set(elsewhere["patch_id"]) <= set(ids["test"]), "a patch of another domain isn't tested"


def test_a_twin_in_another_domain_leaves_training_and_a_case_there_leaves_the_test():
    labels = label_table(np.random.default_rng(13))
    plain = make(labels, study(n_folds=1))
    unit = splits.Unit("d0", 0, 1.0)
    trained = splits.select(plain, unit)["train"]
    other = labels.loc[labels["domain"] == "d1", "patch_id"].to_numpy()
    twin = labels["patch_id"].replace({int(other[0]): int(trained[0])})
    found = splits.select(make(labels.assign(twin=twin), study(n_folds=1)), unit)
    assert set(trained) - set(found["train"]) == {trained[0]} and other[0] in found["test"]
    slide = labels.set_index("patch_id").loc[trained[0], "slide_id"]
    scanned_twice = labels.assign(case_id=labels["slide_id"].replace({"d1s0": slide}))
    found = splits.select(make(scanned_twice, study(n_folds=1)), unit)
    again = labels.loc[labels["slide_id"] == "d1s0", "patch_id"]
    assert np.array_equal(found["train"], trained) and not set(again) & set(found["test"])


@pytest.mark.parametrize("networks", [False, True], ids=["probes", "networks"])
def test_the_released_draws_know_no_twins(networks):
    scheme = study_data.scheme_of(under("released", study("paper", n_folds=2)), networks)
    labels = with_planted(14)
    labels["twin"] = labels["twin"].where(labels.index % 3 > 0, labels["patch_id"].iloc[0])  # in every domain
    assert labels.groupby("twin")["domain"].nunique().max() > 1
    pd.testing.assert_frame_equal(splits.make(labels, scheme), splits.make(labels.drop(columns="twin"), scheme))


def test_twins_that_leave_too_few_cases_are_named_in_the_refusal():
    labels = label_table(np.random.default_rng(15), n_domains=1, n_slides=3)
    first = labels.drop_duplicates("slide_id")["patch_id"]
    twins = labels.assign(twin=labels["patch_id"].where(~labels["patch_id"].isin(first), first.min()))
    with pytest.raises(splits.SplitError, match="cases that share identical patches count as one"):
        make(twins, study(by_domain=False))


def test_only_splits_that_twins_change_have_another_key(tmp_path):
    labels, asked = official(label_table(np.random.default_rng(16))), study(n_folds=1, by_domain=False)
    noise = np.random.default_rng(0).integers(0, 256, (len(labels), 2, 2, 3), dtype=np.uint8)
    copied = noise.copy()
    copied[-1] = copied[0]
    keys = {}
    for name, images in (("plain", noise), ("twins", copied)):
        stored(asked, labels, tmp_path / name, images)
        runs = {scheme: study_data.write_splits(study_data.under(asked, scheme), tmp_path / name) for scheme in SCHEMES}
        keys[name] = {scheme: run.key for scheme, run in runs.items()}
        assert study_data.find_splits(asked, tmp_path / name).key == keys[name]["slide"]
        assert {set(run.identity["inputs"]) == {"patches"} for run in runs.values()} >= {name == "plain"}
    assert [scheme for scheme in SCHEMES if keys["plain"][scheme] == keys["twins"][scheme]] == ["released"]
    role = splits.load(study_data.find_splits(asked, tmp_path / "twins")).set_index(["patch_id", "size"])["role"]
    assert role[0, 1.0] == role[len(labels) - 1, 1.0], "copies are on two sides"


def test_cases_of_several_domains_change_the_key_of_splits_by_case(tmp_path):
    labels, asked = official(label_table(np.random.default_rng(17))), study(n_folds=1, by_domain=False)
    stored(asked, labels.assign(case_id=labels["slide_id"].str[2:]), tmp_path)
    inputs = {
        scheme: study_data.write_splits(study_data.under(asked, scheme), tmp_path).identity["inputs"] for scheme in SCHEMES
    }
    assert [scheme for scheme, of in inputs.items() if "twins" in of] == ["slide", "official"]


def official(labels, names=("train", "train", "test")):
    slides = sorted(labels["slide_id"].unique())
    of = {slide: names[i % len(names)] for i, slide in enumerate(slides)}
    return labels.assign(official_split=labels["slide_id"].map(of))


def test_the_official_split_tests_the_authors_slides_in_every_fold():
    labels = official(label_table(np.random.default_rng(8), n_slides=18))
    test = set(labels.loc[labels["official_split"] == "test", "patch_id"])
    found = drawn("official", labels, sizes=(1.0,))
    assert len(found) == 3
    for ids in found.values():
        assert set(ids["test"]) == test
        slides = [set(labels.set_index("patch_id").loc[ids[role], "slide_id"]) for role in splits.ROLES]
        assert slides[1] and not (slides[0] & slides[1] or slides[0] & slides[2] or slides[1] & slides[2])
    assert len({tuple(ids["val"]) for ids in found.values()}) == 3  # folds differ by what validates


def test_official_validation_slides_are_used_where_there_are_any():
    labels = official(label_table(np.random.default_rng(9)), ("train", "val", "train", "test"))
    for ids in drawn("official", labels, sizes=(1.0,)).values():
        assert {role: set(ids[role]) for role in splits.ROLES} == {
            role: set(labels.loc[labels["official_split"] == role, "patch_id"]) for role in splits.ROLES
        }


def test_data_without_official_test_slides_cannot_be_split_officially():
    labels = official(label_table(np.random.default_rng(10)), ("train", "val"))
    with pytest.raises(splits.SplitError, match=r"no official test slides for 'all' .*split_by: slide"):
        drawn("official", labels)


@pytest.mark.parametrize(
    ("patches", "resolution", "expected"),
    [
        (Patches(224, 0.25), "target", Placing(224, 0.25)),
        (Patches(224, 0.25), "native", Placing(224, None)),
        (Patches(96, None), "target", Placing(96, None)),
    ],
)
def test_patches_of_a_study_that_reads_native_px_lie_at_the_slides_resolution(patches, resolution, expected):
    asked = replace(study(), patches=patches, switches=Switches(resolution=resolution))
    assert study_data.placing_of(asked) == study_data.scheme_of(asked).placing == expected


def test_a_study_under_a_scheme_differs_by_that_alone():
    asked = study("paper")
    assert {name: study_data.under(asked, name).switches.scheme for name in SCHEMES} == {name: name for name in SCHEMES}
    other = study_data.under(asked, "slide")
    assert other.switches.epoch == "last" and other.splits.seed == asked.splits.seed and not other.splits.by_domain
    with pytest.raises(splits.SplitError, match="'by_slide' is not one of"):
        study_data.under(asked, "by_slide")


def stored(study, labels, results, images=None):
    """The study's patches, all black but for what ``images`` has."""
    labels = labels.assign(file="f")
    run = store.open_run(results, "patches", study.name, study_data.patches_config(study), {})
    store.write_parquet(run.path("labels.parquet"), labels)
    np.save(run.path("patches.npy"), np.zeros((len(labels), 2, 2, 3), np.uint8) if images is None else images)
    run.finish(["labels.parquet", "patches.npy"])


A_UNIT = st.tuples(st.text(), st.integers(0, 20), st.floats(1e-9, 1))


@given(A_UNIT, A_UNIT)
@example(("a b", 0, 1.0), ("a_b", 0, 1.0))
@example(("肺", 0, 1.0), ("乳", 0, 1.0))
@example(("MIDOG21", 0, 1.0), ("midog21", 0, 1.0))
@example(("all", 0, 0.1234567), ("all", 0, 0.1234568))
@example(("a", 11, 1.0), ("a-fold1", 1, 1.0))
def test_units_have_files_and_draws_of_their_own(one, other):
    units = splits.Unit(*one), splits.Unit(*other)
    assert (units[0].name.casefold() == units[1].name.casefold()) == (one == other)
    assert (units[0].title == units[1].title) == (one == other)
    assert (splits.percent(one[2]) == splits.percent(other[2])) == (one[2] == other[2])
    assert max(len(unit.name) for unit in units) < 130


def test_units_of_plain_domains_keep_their_names_and_every_unit_its_draws():
    assert splits.Unit("all", 0, 0.02).name == splits.Unit("all", 0, 0.02).title == "all-fold0-size0.02"
    long = splits.Unit("canine cutaneous mast cell tumor", 12, 1.0)
    assert long.name == long.title == "canine_cutaneous_mast_cell_tumor-fold12-size1"
    assert splits.Unit("MIDOG21", 1, 1.0).title == "MIDOG21-fold1-size1", "other draws than those that are published"
    assert [splits.percent(size) for size in (1.0, 0.1, 0.02, 0.001, 1e-7, 0.07, np.float64(0.29))] == [
        *("100", "10", "2", "0.1", "0.00001", "7", "29")
    ]


@pytest.mark.parametrize("domains", [("肺", "乳"), ("a b", "a_b"), ("NA", "nan"), ("e\u0301", "é"), ("1", "01")])
def test_domains_that_look_alike_lose_and_double_no_row(tmp_path, domains):
    """A small study, from its labels to its tables."""
    rng = np.random.default_rng(3)
    named = label_table(rng, n_domains=2).replace({"domain": {"d0": domains[0], "d1": domains[1]}})
    labels = official(named)
    asked = replace(study(n_folds=2, sizes=(0.2, 0.2000001, 1.0)), encoders=("made",))
    stored(asked, labels, tmp_path)
    drawn = splits.load(study_data.write_splits(asked, tmp_path))
    units = splits.units(drawn)
    assert len(units) == 2 * (3 + 2) and {unit.train_domain for unit in units} == {"all", *domains}

    embeddings = store.open_run(tmp_path, "embeddings", "made", {}, {"patches": study_data.find_patches(asked, tmp_path).key})
    with h5py.File(embeddings.path("embeddings.h5"), "w") as out:
        features = 30 * rng.normal(labels["label"].to_numpy()[:, None], 1.0, (len(labels), 4))
        out["features"], out["patch_id"] = features.astype(np.float32), labels["patch_id"].to_numpy()
    study_arms.fit_probe(asked, embeddings.finish(["embeddings.h5"]), tmp_path)

    predictions = study_predictions.collect(asked, tmp_path).predictions
    key = ["train_domain", "fold", "size", "patch_id"]
    assert not predictions.duplicated(key).any()
    tested = drawn[drawn["role"] == "test"][key]
    assert len(tested.merge(predictions, on=key)) == len(tested) == len(predictions)
    scores = study_predictions.scores(predictions)
    assert len(scores) == 2 * (3 + 2 * 2), "a fit on one domain is tested on both"
    matrix = of_domains.domain_matrix(scores, asked)
    assert set(zip(matrix["train_domain"], matrix["domain"], strict=True)) == {(a, b) for a in domains for b in domains}
    assert len(analysis_scores.across_sizes(analysis_scores.scaling_table(scores, asked)).columns) == 2 + 3
    audited = splits_audit.load(study_data.write_audit(asked, tmp_path))
    assert set(audited["train_domain"]) == {"all", *domains} and len(audited) == 2 * (3 + 2)


def test_networks_have_folds_of_their_own_only_where_the_switch_says_so(tmp_path):
    labels = official(label_table(np.random.default_rng(11)))
    shared = study(n_folds=2, by_domain=False)
    apart = replace(shared, switches=Switches(shared_splits=False))
    stored(shared, labels, tmp_path)
    assert study_data.write_splits(shared, tmp_path).key == study_data.find_splits(shared, tmp_path, networks=True).key
    with pytest.raises(store.StoreError, match="no finished 'splits' run 'slide_networks'"):
        study_data.find_splits(apart, tmp_path, networks=True)
    probes = study_data.write_splits(apart, tmp_path)
    networks = study_data.find_splits(apart, tmp_path, networks=True)
    assert probes.key == study_data.find_splits(apart, tmp_path).key == study_data.find_splits(shared, tmp_path).key
    assert probes.key != networks.key and networks.folder.name.startswith("splits-slide_networks-")
    own, theirs = splits.load(probes), splits.load(networks)
    for unit in splits.units(own):
        mine, other = splits.select(own, unit), splits.select(theirs, unit)
        assert not np.array_equal(mine["test"], other["test"])
        assert abs(len(other["test"]) / len(mine["test"]) - 1) < 0.3  # drawn alike


# ---- the released scripts' draws, each by a loop of its own ----


def drawn_by_probe_script(n, seed, sizes):
    """Training rows at each size, and test rows, as ``linear_probing.py`` draws them."""
    rng = np.random.default_rng(seed)
    test = rng.choice(n, size=int(np.floor(n * 0.2)), replace=False)
    pool, train = np.setdiff1d(np.arange(n), test), []
    for size in sizes:
        some = rng.choice(pool, size=int(np.floor(len(pool) * size)), replace=False)
        train.append(rng.choice(some, size=int(0.8 * len(some)), replace=False))
    return train, [test] * len(sizes)


def drawn_by_training_script(n, seed, sizes):
    """Training rows at each size, and test rows, as ``train_classifier.py`` draws them: each size begins the seed again."""
    table, train, tested = pd.DataFrame({"row": range(n)}), [], []
    for size in sizes:
        np.random.seed(seed)
        test = np.random.choice(table.index, size=int(len(table) * 0.2), replace=False)
        rest = table.drop(test)
        some = rest.loc[np.random.choice(rest.index, size=int(len(rest) * size), replace=False)]
        val = np.random.choice(some.index, size=int(len(some) * 0.2), replace=False)
        train.append(some.drop(val).index.to_numpy())
        tested.append(test)
    return train, tested


def test_networks_in_paper_mode_have_the_training_scripts_folds(tmp_path):
    """On all domains and on one; probes keep the probe script's, from the same seed."""
    labels = label_table(np.random.default_rng(12))
    asked = study("paper", n_folds=2, sizes=(0.1, 1.0))
    stored(asked, labels, tmp_path)
    study_data.write_splits(asked, tmp_path)
    for networks, script in ((False, drawn_by_probe_script), (True, drawn_by_training_script)):
        table = splits.load(study_data.find_splits(asked, tmp_path, networks=networks))
        for fold in (0, 1):
            train, test = script(len(labels), 42 + fold, asked.splits.sizes)
            for k, size in enumerate(asked.splits.sizes):
                roles = splits.select(table, splits.Unit("all", fold, size))
                np.testing.assert_array_equal(roles["train"], np.sort(train[k]))
                np.testing.assert_array_equal(roles["test"], np.sort(test[k]))
    within = labels[labels["domain"] == "d1"]
    test = within.sample(frac=0.2, replace=False, random_state=43)  # as train_classifier_tumor_specific.py draws
    rest = within.drop(test.index)
    val = rest.sample(frac=0.2, replace=False, random_state=43)
    roles = splits.select(table, splits.Unit("d1", 1, 1.0))
    elsewhere = labels.loc[labels["domain"] != "d1", "patch_id"]
    np.testing.assert_array_equal(roles["test"], np.sort([*test["patch_id"], *elsewhere]))
    np.testing.assert_array_equal(roles["val"], np.sort(val["patch_id"]))
    np.testing.assert_array_equal(roles["train"], np.sort(rest.drop(val.index)["patch_id"]))


@needs_real
def test_each_script_trains_on_as_many_patches_and_positives_as_is_said_of_it():
    """MIDOG 2022's own label file at 0.1 %: what the page on switches says stands with the script of which it is true."""
    labels = pd.read_csv(LABELS / "MIDOG2022_training_tiff.csv")["label"].to_numpy()
    sizes, said = (0.001, 0.01, 0.1, 1.0), {}
    for script in (drawn_by_probe_script, drawn_by_training_script):
        drawn = [script(len(labels), seed, sizes)[0] for seed in range(42, 47)]
        (counts,) = {tuple(len(train) for train in each) for each in drawn}
        shares = [labels[each[0]].mean() for each in drawn]
        said[script] = counts, f"{100 * min(shares):.0f} % to {100 * max(shares):.0f} %"
    (of_probe, probe_share), (of_training, training_share) = said.values()
    assert (of_probe, of_training) == ((12, 131, 1315, 13153), (13, 132, 1316, 13154))
    departure = switches.departures()["stratified"]
    probe_text, training_text = departure["released"].split(";")
    assert f"{of_probe[0]} patches" in probe_text and probe_share in probe_text and "linear_probing.py" in probe_text
    assert f"{of_training[0]}" in training_text and training_share in training_text and "train_classifier.py" in training_text
    assert set(departure["where"].split(", ")) == {"linear_probing.py", "train_classifier.py"}
