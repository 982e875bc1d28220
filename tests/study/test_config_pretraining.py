"""What a study may say of pretrainings and tasks: nonsense refused by name, defaults as published."""

import dataclasses
import re
from collections import Counter
from pathlib import Path

import pytest

from mfcore.pretraining.method import METHODS, SMALL, in_full, in_order
from mfcore.study import pretrained
from mfcore.study.config import ConfigError, Crops, Pretraining, load_study
from mfcore.study.tasks import encoders_of

STUDIES = Path(__file__).parents[2] / "studies"
GOOD = "name: t\ntitle: t\ndata: {source: midog}\nencoders: [a]\n"
VIT = "architecture: vit_tiny_patch16_224, arguments: {img_size: 64}, crops: {global_px: 64, local_px: 32}"


def load(tmp_path, text):
    file = tmp_path / "t.yaml"
    file.write_text(text)
    return load_study(file)


def one(what: str) -> str:
    return f"{GOOD}pretraining: [{{name: p, {what}}}]\n"


def task(what: str) -> str:
    return f"{GOOD}pretraining: [{{name: p}}]\ntasks: [{{{what}}}]\n"


def test_the_paper_s_pretraining_needs_a_name_alone(tmp_path):
    (which,) = load(tmp_path, GOOD + "pretraining: [{name: p}]\n").pretraining
    assert (which.architecture, which.n_steps, which.batch_size) == ("vit_small_patch16_224", 125_000, 256)
    assert which.patches.um_per_px == (0.25, 0.5, 1.0, 2.0) and which.patches.min_tissue == 0.4


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_said_is_as_published_and_what_is_said_stays(method):
    whole = in_full(Pretraining("p", method, crops=Crops(local_scale=(0.1, 0.3)), momentum=0.9))
    assert whole.momentum == 0.9 and whole.crops.local_scale == (0.1, 0.3)
    assert whole.crops.global_scale == METHODS[method].published["global_scale"]
    assert {f.name for f in dataclasses.fields(whole) if getattr(whole, f.name) is None} == set()
    for key in set(METHODS[method].published) - {"momentum", "global_scale", "local_scale"}:
        assert getattr(whole, key) == METHODS[method].published[key], key


@pytest.mark.parametrize("method", METHODS)
def test_shorter_trainings_than_published_have_them_too_but_the_published_head(method):
    shortest, short = (in_full(Pretraining("p", method, n_steps=n)) for n in (12_500, 12_499))
    assert {key: getattr(shortest, key) for key in SMALL} == {key: METHODS[method].published[key] for key in SMALL}
    assert short == dataclasses.replace(shortest, **SMALL, n_steps=12_499) and short.n_prototypes == 65_536


@pytest.mark.parametrize("method", METHODS)
def test_batches_smaller_than_published_have_defaults_of_their_own(method):
    smallest, small = (in_full(Pretraining("p", method, batch_size=n)) for n in (256, 255))
    changed = {f.name for f in dataclasses.fields(small) if getattr(small, f.name) != getattr(smallest, f.name)} - {
        "batch_size"
    }
    assert {"teacher_temperature", "n_prototypes"} <= changed <= {*SMALL, "n_prototypes"}
    assert small.n_prototypes == 510 and small.teacher_temperature == (0.02, 0.02) and small.koleo_weight == 0.1
    said = Pretraining(
        "p", method, batch_size=4, n_prototypes=99, centring="mean", koleo_weight=0.0, teacher_temperature=(1, 2)
    )
    assert in_full(said) == dataclasses.replace(in_full(said), **{key: getattr(said, key) for key in (*SMALL, "n_prototypes")})


OF_100_EPOCHS = {"warmup": 10, "temperature_warmup": 30, "n_frozen_last": 1}
OF_BOTH = {
    "n_prototypes": 65_536,
    "final_lr": 1e-6,
    "weight_decay": (0.04, 0.4),
    "clip_norm": 3.0,
    "teacher_temperature": (0.04, 0.07),
}
OF_ONE = {
    "dino": {"base_lr": 5e-4, "momentum": 0.996, "layer_decay": 1, "drop_path": 0.1, "centring": "mean", "ibot_weight": 0}
    | {"koleo_weight": 0, "global_scale": (0.4, 1), "local_scale": (0.05, 0.4)},
    "dinov2": {"base_lr": 4e-3, "momentum": 0.992, "layer_decay": 0.9, "drop_path": 0.3, "centring": "sinkhorn_knopp"}
    | {"ibot_weight": 1, "koleo_weight": 0.1, "global_scale": (0.32, 1), "local_scale": (0.05, 0.32)},
}


@pytest.mark.parametrize("method", METHODS)
def test_defaults_are_the_authors(method):
    """As their papers and configurations say it, lengths in epochs of 100: copied once more, so that a slip is seen."""
    expected = {key: n_epochs / 100 for key, n_epochs in OF_100_EPOCHS.items()} | OF_BOTH | OF_ONE[method]
    assert METHODS[method].published == expected
    whole = Pretraining("p", method)
    assert (whole.crops.global_px, whole.crops.local_px, whole.crops.n_local) == (224, 96, 8)
    assert (whole.head_hidden, whole.head_bottleneck, whole.student_temperature) == (2048, 256, 0.1)
    assert (whole.mask_probability, whole.mask_ratio) == (0.5, (0.1, 0.5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (one("method: mae"), "pretraining[p].method: 'mae' is not one of ['dino', 'dinov2']"),
        (
            GOOD + "pretraining: [{name: 'a:b'}]\n",
            "pretraining[a:b].name: 'a:b': an encoder's name isn't 'random' and has none of : @ /",
        ),
        (GOOD + "pretraining: [{name: random}]\n", "pretraining[random].name: 'random': an encoder's name isn't 'random'"),
        (GOOD + "pretraining: [{name: p}, {name: p}]\n", "pretraining: 'p' stands twice"),
        (GOOD + "pretraining: [{name: n}]\nnetworks: [{name: n}]\n", "an encoder or a network has that name"),
        (GOOD + "pretraining: [{name: uni}]\n", "pretraining[uni].name: an encoder or a network has that name"),
        (one("n_stebs: 3"), "unknown key pretraining[p].n_stebs; did you mean n_steps?"),
        (one("n_steps: 0"), "pretraining[p].n_steps: 0 should be greater than or equal to 1"),
        (one("base_lr: .nan"), "pretraining[p].base_lr: nan should be a finite number"),
        (one("warmup: 1.5"), "pretraining[p].warmup: 1.5 should be less than or equal to 1"),
        (one("teacher_temperature: [0.04]"), "pretraining[p].teacher_temperature: [0.04] should have at least 2 items, not 1"),
        (one("student_temperature: 0"), "pretraining[p].student_temperature: 0 should be greater than 0"),
        (one("n_prototypes: 1"), "pretraining[p].n_prototypes: 1 should be greater than or equal to 2"),
        (one("mask_ratio: [0.1, 2]"), "pretraining[p].mask_ratio[1]: 2 should be less than or equal to 1"),
        (one("mask_ratio: [0.5, 0.1]"), "pretraining[p].mask_ratio: [0.5, 0.1] should have the lesser first"),
        (one("weight_decay: [-1, 0]"), "pretraining[p].weight_decay[0]: -1 should be greater than or equal to 0"),
        (one("teacher_temperature: [0, 1]"), "pretraining[p].teacher_temperature[0]: 0 should be greater than 0"),
        (one("centring: median"), "pretraining[p].centring: 'median' should be 'mean' or 'sinkhorn_knopp'"),
        (one("n_steps: 5, n_snapshots: 6"), "pretraining[p].n_snapshots: 6 is more than n_steps 5"),
        (
            one("method: dinov2, batch_size: 1"),
            "pretraining[p].koleo_weight: KoLeo needs neighbours; say batch_size: 2 or more",
        ),
        (one("patches: {um_per_px: []}"), "pretraining[p].patches.um_per_px: [] should have at least 1 item"),
        (one("patches: {min_tissue: 1.2}"), "pretraining[p].patches.min_tissue: 1.2 should be less than or equal to 1"),
        (one("patches: {uniform_over: cases}"), "pretraining[p].patches.uniform_over: 'cases' should be 'tissue' or 'slides'"),
        (one("patches: {slide_fraction: 0}"), "pretraining[p].patches.slide_fraction: 0 should be greater than 0"),
        (one("patches: {n_distinct: 0}"), "pretraining[p].patches.n_distinct: 0 should be greater than or equal to 1"),
        (one("patches: {size_px: 200}"), "crops.global_px: 224 px from patches of 200 px would only be enlarged"),
        (one("crops: {global_px: 96, local_px: 112}"), "crops.local_px: 112 px is more than global_px 96"),
        (one("crops: {global_scale: [0.5, 0.2]}"), "crops.global_scale: [0.5, 0.2] should have the lesser first"),
        (one("crops: {global_px: 220}"), "global_px: 220 px is no multiple of the ViT's patches of 16 px"),
        (
            one("arguments: {patch_size: 12}, crops: {global_px: 220}"),
            "global_px: 220 px is no multiple of the ViT's patches of 12",
        ),
        (one("crops: {local_px: 10}"), "local_px: 10 px is no multiple of the ViT's patches of 16 px"),
        (
            one("arguments: {patch_size: 14}, crops: {local_px: 96}"),
            "local_px: 96 px is no multiple of the ViT's patches of 14",
        ),
        (one("arguments: {img_size: 96}"), "crops.global_px: 224 px, but arguments.img_size is 96 px; they are one size"),
        (one("start: 'timm:vit_base_patch16_224.x'"), "is a vit_base_patch16_224, this a vit_small_patch16_224"),
        (
            GOOD + "pretraining: [{name: p, start: 'q@5'}, {name: q, n_steps: 10, n_snapshots: 3}]\n",
            "pretraining[p].start: 'q@5', but snapshots of 'q' are kept after [3, 6, 10] steps",
        ),
        (one("start: p"), "start: 'p' is the encoder itself; start at random, or from another"),
        (
            GOOD + f"pretraining: [{{name: p, start: q, {VIT}}}, {{name: q, start: 'p@5', {VIT}}}]\n",
            "pretraining[q].start: 'p@5' starts in turn from 'q'; start one at random",
        ),
        (GOOD + f"pretraining: [{{name: p, start: q}}, {{name: q, {VIT}}}]\n", "weights fit the same architecture only"),
        (
            "name: t\ntitle: t\ndata: {source: midog}\nencoders: [{name: own, weights: random, architecture: resnet18, "
            "mean: [0, 0, 0], std: [1, 1, 1]}]\npretraining: [{name: p, start: own}]\n",
            "pretraining[p].start: 'own' is a resnet18, this a vit_small_patch16_224",
        ),
        (
            "name: t\ntitle: t\ndata: {source: midog}\nencoders: ['p@5', 'p@6']\npretraining: "
            "[{name: p, n_steps: 10, n_snapshots: 2}]\n",
            "encoders: 'p@6', but snapshots of 'p' are kept after [5, 10] steps",
        ),
        (task("name: bacg"), "tasks[bacg].name: 'bacg' is not one of ['bach'"),
        (task("name: bach}, {name: bach"), "tasks: 'bach' stands twice"),
        (task("name: bach, encoders: [b]"), "tasks[bach].encoders: ['b'] not among the study's ['a', 'p']"),
        (task("name: bach, encoders: [a, a]"), "tasks[bach].encoders: 'a' stands twice"),
        (task("name: bach, encoders: [a], snapshots: true"), "tasks[bach].snapshots: the study pretrains none of its encoders"),
        (task("name: bach, n_runs: 0"), "tasks[bach].n_runs: 0 should be greater than or equal to 1"),
        (
            task("name: bach, measured_on: crc"),
            "tasks[bach].measured_on: ['crc'] not among the study's ['bach']",
        ),
        (task("name: bach, measured_on: consep}, {name: consep"), "measured_on: ['consep'] not among the study's ['bach']"),
        (task("name: consep, n_per_class: 10"), "tasks[consep].n_per_class: 10, but this task segments nuclei"),
        (
            "name: t\ntitle: t\ndata: {source: midog}\nnetworks: [{name: n}]\ntasks: [{name: bach}]\n",
            "tasks[bach]: the study has no encoder to judge",
        ),
    ],
)
def test_nonsense_is_refused_with_its_key(tmp_path, text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(tmp_path, text)


def test_a_task_may_be_measured_on_another_s_images(tmp_path):
    bach, consep, _ = load(tmp_path, task("name: bach}, {name: consep, measured_on: bach}, {name: crc")).tasks
    assert (bach.measured_on, consep.measured_on) == ("", "bach")


def test_several_problems_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"2 problems:\n  pretraining\[p\].base_lr.*\n  pretraining\[p\].warmup"):
        load(tmp_path, one("base_lr: 0, warmup: 2"))


def test_one_wrong_value_hides_no_other(tmp_path):
    """Of a method that there isn't, of crops that don't fit the network, of a start that can't be: all in one go."""
    wrong = one("method: mae, n_steps: -1, crops: {global_px: 220}, patches: {min_tissue: 1.5}, start: p")
    with pytest.raises(ConfigError) as error:
        load(tmp_path, wrong + "tasks: [{name: bacg}]\n")
    for key in (".method: 'mae'", ".n_steps: -1", ".crops.global_px: 220", ".patches.min_tissue: 1.5", ".start: 'p'"):
        assert f"\n  pretraining[p]{key}" in str(error.value)
    assert "\n  tasks[bacg]" in str(error.value)


def test_an_encoder_that_the_study_pretrains_stands_among_its_encoders_and_starts_another(tmp_path):
    text = GOOD.replace("[a]", "[a, p]") + f"pretraining: [{{name: q, start: p, {VIT}}}, {{name: p, {VIT}}}]\n"
    study = load(tmp_path, text + "tasks: [{name: bach, encoders: [p], snapshots: true}]\n")
    assert study.encoders == ("a", "p") and in_order(study.pretraining) == ["p", "q"]
    from_hub = [Pretraining("r", start="hf-hub:o/r@0123"), *study.pretraining]
    assert in_order(from_hub) == ["r", "p", "q"], "a revision is no snapshot"


def test_n_seeds_repeats_a_pretraining_and_whom_a_task_judges(tmp_path):
    text = (
        GOOD + f"pretraining: [{{name: p, n_seeds: 3, {VIT}}}, {{name: q, seed: 4, n_seeds: 2, {VIT}}}, {{name: r, {VIT}}}]\n"
    )
    study = load(tmp_path, text + "tasks: [{name: bach, encoders: [a, q, r]}, {name: crc}]\n")
    names = ["p", "p_seed1", "p_seed2", "q", "q_seed5", "r"]
    assert [(one.name, one.seed) for one in study.pretraining] == list(zip(names, [0, 1, 2, 4, 5, 0], strict=True))
    assert [encoders_of(study, task) for task in study.tasks] == [["a", "q", "q_seed5", "r"], ["a", *names]]
    assert study.encoders == ("a",), "an encoder that is probed stays one"
    once = load(tmp_path, text.replace("n_seeds: 3, ", "").replace("n_seeds: 2, ", ""))
    for name in ("p", "q", "r"):
        assert pretrained.config_of(study, name) == pretrained.config_of(once, name), "its runs stay its own"
    assert pretrained.config_of(study, "p_seed1") != pretrained.config_of(study, "p")


@pytest.mark.parametrize("n", ["0", "true", "2.0", "x", "[2]"])
def test_a_number_of_seeds_is_a_number(tmp_path, n):
    with pytest.raises(ConfigError, match=r"t\.yaml: pretraining\[p\].n_seeds: .* should be a whole number above 0"):
        load(tmp_path, one(f"n_seeds: {n}, base_lr: 0"))
    with pytest.raises(ConfigError, match="'p_seed1' stands twice"):
        load(tmp_path, GOOD + "pretraining: [{name: p, n_seeds: 2}, {name: p_seed1}]\n")


def test_kaiko_s_dinov2_begins_as_its_authors_have_it():
    """Fig. 4: LayerScale and a mask token of zeros are in the keys of DINOv2's four, and of no DINO's."""
    study = load_study(STUDIES / "kaiko.yaml")
    begins = {p.name: pretrained.config_of(study, p.name)["pretraining"].get("begins_with") for p in study.pretraining}
    asked = {name for name, first in begins.items() if first == {"layer_scale": 1e-5, "mask_token_sd": 0.0}}
    assert asked == {"dinov2", "dinov2_lr_001", "dinov2_lr_002", "dinov2_lr_008"}
    assert {first is None for name, first in begins.items() if name not in asked} == {True}


def test_every_comparison_of_demo_full_has_three_seeds():
    study = load_study(STUDIES / "demo_full.yaml")
    firsts = Counter(pretrained.first_seeds(study).values())
    assert firsts.pop("own_vit") == 1 and set(firsts.values()) == {3} and len(firsts) == 11
    assert all(one.start in ("random", "efficientnet_lite0", "own_vit") for one in study.pretraining)
