"""Studies: every way to say something that can't be, refused with file, key and remedy."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from mfcore.store.records import digest
from mfcore.study.config import MODES, ConfigError, Lora, Network, OwnEncoder, Switches, as_dict, load_study

STUDIES = Path(__file__).parents[2] / "studies"
GOOD = "name: t\ntitle: t\ndata: {source: midog}\nencoders: [a]\n"


AT = "patches: [{um_per_px: 0.5, size_px: [64]}]"
SCALES = {  # what a study can't say of them
    f"encoders: [b], {AT}": r"scales.encoders: \['b'\] not among the study's",
    f"network: a, {AT}": r"scales.network: \['a'\] not among the study's",
    AT: "scales: name patches, and in encoders or network the arms",
    "encoders: [a]": "scales: name patches, and in encoders or network the arms",
    f"encoders: [a], {AT}, n_folds: 6": "scales.n_folds: 6; the study has 5 folds",
    f"encoders: [a], {AT}, sizes: [0.5]": r"scales.sizes: \[0.5\] not among the study's",
    f"encoders: [a], {AT[:-1]}, {{um_per_px: 0.5, size_px: [32]}}]": "scales.patches: 0.5 um/px stands twice",
    "encoders: [a], patches: [{um_per_px: 0.5, size_px: [7]}]": r"patches\[0\].size_px\[0\]: 7 should be greater",
    "encoders: [a], patches: [{um_per_px: 0.5, size_px: [8, 8]}]": r"patches\[0\].size_px: 8 stands twice",
    "encoders: [a], patches: [{um_per_px: 0.5, size_px: [64], network_px: [32]}]": r"network_px: \[32\] not among",
}


def load(tmp_path, text):
    file = tmp_path / "t.yaml"
    file.write_text(text)
    return load_study(file)


def test_what_a_mapping_takes_over_it_may_say_anew(tmp_path):
    """Also where it takes over from one that has itself, before or after that one was read."""
    text = "networks:\n  - &a {name: a2, n_epochs: 3, input_px: 32}\n  - &b {<<: *a, name: b2, n_epochs: 4}\n"
    networks = load(tmp_path, GOOD + text + "  - {<<: *b, name: c2}\n  - {name: d2, <<: [*b, *a]}\n").networks
    assert [(network.name, network.n_epochs) for network in networks] == [("a2", 3), ("b2", 4), ("c2", 4), ("d2", 4)]


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_study_here_loads_and_is_named_like_its_file(file):
    assert load_study(file).name == file.stem


def test_all_slips_of_the_pen_are_told_at_once(tmp_path):
    file = tmp_path / "t.yaml"
    file.write_text(GOOD + "encodrs: [b]\nsplits: {n_folds: five, sizes: [1, x]}\nnetworks: [{nam: n, input_px: 3.5}]\n")
    with pytest.raises(ConfigError) as error:
        load_study(file)
    told = str(error.value).splitlines()
    assert told[0] == f"{file}: 6 problems:" and sorted(told[1:]) == sorted(
        [
            "  unknown key encodrs; did you mean encoders?",
            "  splits.n_folds: 'five' should be a whole number",
            "  splits.sizes[1]: 'x' should be a number",
            "  unknown key networks[0].nam; did you mean name?",
            "  key networks[0].name is missing",
            "  networks[0].input_px: 3.5 should be a whole number",
        ]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "encodrs: [b]\n", "unknown key encodrs; did you mean encoders?"),
        (GOOD + "patches: {sice_px: 3}\n", "unknown key patches.sice_px; did you mean size_px?"),
        (GOOD + "networks: [{name: n, foo: 1}]\n", r"unknown key networks\[n\].foo; known keys"),
        (GOOD + "splits: {n_folds: five}\n", "splits.n_folds: 'five' should be a whole number"),
        (GOOD + "splits: {n_folds: true}\n", "splits.n_folds: True should be a whole number"),
        (GOOD + "splits: {n_folds: '5'}\n", "splits.n_folds: '5' should be a whole number"),
        (GOOD + "splits: {n_folds: 5.0}\n", "splits.n_folds: 5.0 should be a whole number"),
        (GOOD + "splits: {val_fraction: '0.5'}\n", "splits.val_fraction: '0.5' should be a number"),
        (GOOD + "splits: {by_domain: 1}\n", "splits.by_domain: 1 should be true or false"),
        (GOOD + "probe: {max_iter: [1]}\n", r"probe.max_iter: \[1\] should be a whole number"),
        (GOOD + "splits: {sizes: [0.1, 2.0]}\n", r"splits.sizes\[1\]: 2.0 should be less than or equal to 1"),
        (GOOD + "splits: {sizes: [0.1, 0.1]}\n", "splits.sizes: 0.1 stands twice"),
        (GOOD + "splits: {sizes: []}\n", "splits.sizes: .* should have at least 1 item"),
        (GOOD + "splits: {sizes: 1.0}\n", "splits.sizes: 1.0 should be a list"),
        (GOOD + "splits: {test_fraction: 1.0}\n", "splits.test_fraction: 1.0 should be less than 1"),
        (GOOD + "conventions: [t]\n", r"conventions: \['t'\] should be text"),
        (GOOD + "mode: lax\n", "mode: 'lax' should be 'strict' or 'paper'"),
        (GOOD + "mode: [paper]\n", r"mode: \['paper'\] should be 'strict' or 'paper'"),
        (
            "name: t\ntitle: t\ndata: {source: synthetic}\nnetworks: [{name: n, input_px: 64, by_domain: false}]\n",
            "splits.by_domain: no arm learns from single domains",
        ),
        (GOOD + "switches: {epoch: first}\n", "switches.epoch: 'first' should be 'best' or 'last'"),
        ("name: t\ntitle: t\ndata: {source: csv, origin: qupath}\nencoders: [a]\n", "data.origin: 'qupath' is not one of"),
        ("name: t\ntitle: t\ndata: {source: amibr, origin: scanned_area}\nencoders: [a]\n", "data.origin: data.source amibr"),
        (GOOD + "switches: [epoch]\n", r"switches: \['epoch'\] should be a mapping of keys"),
        (GOOD + "networks: [{name: n, input_px: 100}, {name: n, input_px: 90}]\n", "named twice"),
        (GOOD + "networks: [{name: a knn, input_px: 100}]\nprobe: {also: [knn]}\n", "an arm is named twice: .'a knn'."),
        (GOOD + "networks: [{name: a, input_px: 100}]\n", "an arm is named twice: .'a'.; call networks otherwise, say a_224px"),
        (
            GOOD.replace("[a]", "[n-fold1]") + "networks: [{name: n}]\n",
            r"encoders: \['n-fold1'\] are what a network's trainings are called",
        ),
        (
            GOOD.replace("[a]", "[{name: random, weights: random}]"),
            r"encoders\[random\].name: 'random': an encoder's name isn't 'random'",
        ),
        (
            GOOD.replace("[a]", "[{name: a@5, weights: random}]"),
            r"encoders\[a@5\].name: 'a@5': an encoder's name .* none of : @",
        ),
        *(
            (
                GOOD.replace("[a]", f"[{{name: t, features: ./f, tolerance_px: {value}}}]"),
                rf"encoders\[t\].tolerance_px: {said}",
            )
            for value, said in (
                ("-1", "-1 should be greater than 0"),
                ("0", "0 should be greater than 0"),
                (".nan", "nan should be a finite number"),
                ("two", "'two' should be a number"),
            )
        ),
        (
            GOOD.replace("[a]", "[{name: t, features: ./f, tolerance_px: 113}]") + "switches: {resolution: native}\n",
            r"encoders\[t\].tolerance_px: 113 is more than 112, half the side of the study's patches",
        ),
        (
            GOOD.replace("[a]", "[{name: t, like: uni, tolerance_px: 9}]"),
            r"encoders\[t\].tolerance_px: 9 is for embeddings made elsewhere",
        ),
        (GOOD.replace("midog}", "midog, positive: cell, negative: cell}"), "both classes are called 'cell'"),
        (GOOD + "splits: {n_folds: 3}\n\nsplits: {n_folds: 2}\n", "said twice: 'splits' on lines 5 and 7; keep one of each"),
        (GOOD + "splits:\n  n_folds: 3\n  seed: 1\n  'n_folds': 2\n", "said twice: 'n_folds' on lines 6 and 8;"),
        (GOOD + "networks: [{name: n, name: m}]\nname: u\n", "said twice: 'name' on lines 5 and 5;"),
        (GOOD + "networks:\n  - &n {name: n}\n  - {<<: *n, <<: *n, name: m}\n", "said twice: '<<' on lines 7 and 7"),
        (GOOD + "patches: {um_per_px: 0}\n", "patches.um_per_px: 0 should be greater than or equal to 0.01"),
        (GOOD + "effects: {switches: [epoch]}\n", "effects.switches: neither effects.encoder nor effects.network names an arm"),
        (GOOD + "effects: {encoder: b}\n", r"effects.encoder: \['b'\] not among the study's"),
        (GOOD + "effects: {network: a}\n", r"effects.network: \['a'\] not among the study's"),
        (
            GOOD + "effects: {encoder: a, switches: [epochs]}\n",
            r"effects.switches\[0\]: 'epochs' is not one of .*; did you mean epoch\?",
        ),
        (GOOD + "effects: {encoder: a, switches: [epoch, epoch]}\n", "effects.switches: 'epoch' stands twice"),
        *((GOOD + f"scales: {{{said}}}\n", message) for said, message in SCALES.items()),
        (GOOD + "inflation: {encoder: a, schemes: [slides]}\n", r"inflation.schemes\[0\]: 'slides' .*; did you mean slide\?"),
        (GOOD + "probe_audit: [b]\n", r"probe_audit: \['b'\] not among the study's"),
        (GOOD.replace("midog}", "midog, label_values: ['1', '1']}"), "data.label_values: '1' stands twice"),
        (GOOD.replace("midog}", "midog, label_values: ['1']}"), "data.label_values: .* should have at least 2 items"),
        (GOOD.replace("midog}", "midog, um_per_px_by_scanner: {x: 0}}"), "data.um_per_px_by_scanner.x: 0 should be"),
        (GOOD + "patches: {size_px: 7}\n", "patches.size_px: 7 should be greater than or equal to 8"),
        (GOOD + "patches: {stored_px: 200}\n", "patches.stored_px: 200 is less than patches.size_px 224"),
        (GOOD + "patches: {at_border: black}\n", "patches.at_border: 'black' should be 'white' or 'shift'"),
        (GOOD + "patches: {um_per_px: null}\n", "patches.um_per_px: resolution 'target' needs a value"),
        (GOOD + "effects: {encoder: a, n_folds: 6}\n", "effects.n_folds: 6; the study has 5 folds"),
        (
            GOOD + "patches: {stored_px: 224}\nnetworks: [{name: n}]\n",
            "needs stored patches of 317 px, these have 224; lower input_px",
        ),
        (GOOD + "networks: [{name: n, lora: {rank: 0}}]\n", r"networks\[n\].lora.rank: 0 should be greater than or equal to 1"),
        (GOOD + "networks: [{name: n, lora: {alpha: -1}}]\n", r"networks\[n\].lora.alpha: -1 should be greater than 0"),
        (GOOD + "networks: [{name: n, lora: {dropout: 1}}]\n", r"networks\[n\].lora.dropout: 1 should be less than 1"),
        (
            GOOD + "networks: [{name: n, lora: {targets: []}}]\n",
            r"networks\[n\].lora.targets: \[\] should have at least 1 item",
        ),
        (GOOD + "networks: [{name: n, lora: {targets: ['']}}]\n", r"lora.targets\[0\]: '' should have at least 1 character"),
        (GOOD + "networks: [{name: n, max_lr: .nan}]\n", r"networks\[n\].max_lr: nan should be a finite number"),
        (GOOD + "networks: [{name: n, max_lr: .inf}]\n", r"networks\[n\].max_lr: inf should be a finite number"),
        (GOOD + "networks: [{name: n, clip_norm: 0}]\n", r"networks\[n\].clip_norm: 0 should be greater than 0"),
        (
            GOOD + "networks: [{name: n, patches_per_epoch: 0}]\n",
            r"networks\[n\].patches_per_epoch: 0 should be greater than or equal to 1",
        ),
        (GOOD + "networks: [{name: n, shift_px: -3}]\n", r"networks\[n\].shift_px: -3 should be greater than or equal to 0"),
        (
            GOOD + "networks: [{name: n, blur_probability: 1.5}]\n",
            r"networks\[n\].blur_probability: 1.5 should be less than or equal to 1",
        ),
        (
            GOOD + "networks: [{name: n, rotation_probability: .nan}]\n",
            r"networks\[n\].rotation_probability: nan should be a finite number",
        ),
        (
            GOOD + "networks: [{name: n, colour_jitter: 0.6}]\n",
            r"networks\[n\].colour_jitter: 0.6 should be less than or equal to 0.5",
        ),
        (GOOD + "networks: [{name: n, sizes: [0.5]}]\n", r"networks\[n\].sizes: \[0.5\] not among the study's"),
        (GOOD + "networks: [{name: ''}]\n", r"networks\[0\].name: an arm needs one"),
        ("name: t\ntitle: t\nencoders: [a]\n", "key data is missing"),
        ("name: t\ntitle: t\ndata: {source: midog}\n", "at least one entry in encoders or networks"),
        ("name: t\ntitle: t\ndata: {source: mars}\nencoders: [a]\n", "data.source: 'mars'"),
        ("- a\n", "a study is a mapping"),
        ("a: [\n", "not YAML"),
    ],
)
def test_what_a_study_cannot_say_is_refused_by_file_and_key(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, text)
    assert str(tmp_path / "t.yaml") in str(caught.value)


def test_all_that_is_wrong_with_networks_is_told_at_once(tmp_path):
    networks = "networks: [{name: n, lora: {rank: 0, dropout: 2}, shift_px: -3}, {name: m, max_lr: .nan, n_epochs: 0}]\n"
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD + networks)
    told = str(caught.value)
    assert told.count("\n") == 5 and "5 problems" in told
    assert all(key in told for key in ("[n].lora.rank", "[n].lora.dropout", "[n].shift_px", "[m].max_lr", "[m].n_epochs"))


def test_scales_need_slides_or_images_of_known_resolution_and_encoders_that_can_embed_again(tmp_path):
    scales = f"scales: {{encoders: [a, t, own], {AT}}}\npretraining: [{{name: own}}]\n"
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace("[a]", "[a, {name: t, features: ./f}, own]") + scales + "switches: {resolution: native}\n")
    told = str(caught.value)
    assert "embeddings by 't' were made elsewhere" in told and "embeddings by 'own' see the study's own patches" in told
    assert "scales: need patches of known um/px" in told and "3 problems" in told


def test_all_fields_that_patch_images_cannot_show_are_told_at_once(tmp_path):
    """Of 128 px at 0.25 um/px, 32 um: nothing beyond, nothing enlarged, and the room that a network needs."""
    text = (
        "name: t\ntitle: t\ndata: {source: amibr}\npatches: {size_px: 128}\nencoders: [a]\n"
        "networks: [{name: n, input_px: 64, shift_px: 4}]\nscales:\n  encoders: [a]\n  network: n\n  patches:\n"
        "    - {um_per_px: 0.25, size_px: [84, 128, 129], network_px: [84, 128]}\n"
        "    - {um_per_px: 0.5, size_px: [64, 65], network_px: []}\n    - {um_per_px: 0.24, size_px: [64]}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    told = str(caught.value).splitlines()[1:]
    assert [line.split(";")[0].strip() for line in told] == [
        "scales.patches[0.25 um/px].size_px: [129] px, the patch images have 128 px, 32 um",
        "scales.patches[0.25 um/px].network_px: to rotate and shift a crop of 128 px takes 190 px, "
        "the patch images have 128 px, 32 um",
        "scales.patches[0.5 um/px].size_px: [65] px, the patch images have 64 px, 32 um",
        "scales.patches[0.24 um/px]: the patch images have 0.25 um/px and would be enlarged",
    ]


def test_a_missing_study_names_those_there_are():
    with pytest.raises(ConfigError, match=r"no such study file; studies in its folder: \[.*'demo'"):
        load_study(STUDIES / "demoo.yaml")


def test_paper_mode_sets_every_switch_and_single_ones_can_be_flipped(tmp_path):
    strict, paper = as_dict(MODES["strict"]), as_dict(MODES["paper"])
    assert all(strict[name] != paper[name] for name in strict)
    assert set(Switches.CHOICES) == set(strict)
    study = load(tmp_path, GOOD + "mode: paper\nswitches: {epoch: best}\n")
    assert study.switches == dataclasses.replace(MODES["paper"], epoch="best")
    assert all(MODES["strict"].CHOICES[name][0] == strict[name] and paper[name] in Switches.CHOICES[name] for name in strict)


def test_patches_are_stored_wide_enough_for_every_network(tmp_path):
    study = load(tmp_path, GOOD + "networks: [{name: n, input_px: 64, shift_px: 4}, {name: m, shift_px: 22}]\n")
    assert study.networks[0].needed_px == 64 * 2**0.5 // 1 + 1 + 8
    assert study.stored_px == 317 + 44
    assert load(tmp_path, GOOD).stored_px == 224


def test_digest_is_that_of_the_content_not_of_its_order():
    assert digest({"a": 1, "b": [1.5, None]}) == digest({"b": [1.5, None], "a": 1}) != digest({"a": 1, "b": [1.5, 0]})
    assert re.fullmatch("[0-9a-f]{8}", digest({}))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{architecture: x}", r"key encoders\[0\].name is missing"),
        (
            "{name: x, interpolatoin: bicubic}",
            r"unknown key encoders\[x\].interpolatoin; did you mean interpolation\?",
        ),
        ("{name: x, resize_px: wide}", r"encoders\[x\].resize_px: 'wide' should be a whole number"),
        ("{name: x}, x", "an arm is named twice"),
        ("{name: 'timm:x'}", "name: 'timm:x': an encoder's name .* none of : @"),
        ("{name: x, arguments: {init_values: 1e-5}}", r"encoders\[x\].arguments.init_values: '1e-5' must be a number.* 1.0e-5"),
    ],
)
def test_an_encoder_of_ones_own_is_checked(tmp_path, entry, message):
    file = tmp_path / "s.yaml"
    file.write_text(f"name: s\ntitle: s\ndata: {{source: csv}}\nencoders: [{entry}]\n")
    with pytest.raises(ConfigError, match=message):
        load_study(file)


OWN = "{name: x, like: uni, weights: %s, mean: [0, 0.5, 1], arguments: {init_values: 1.0e-5}, um_per_px: [0.5], gated: true}"


def test_a_study_written_out_reads_back_the_same(tmp_path):
    (tmp_path / "s.yaml").write_text(f"name: s\ntitle: s\ndata: {{source: csv}}\nencoders: [uni, {OWN % 'me/mine'}]\n")
    for file in (*sorted(STUDIES.glob("*.yaml")), tmp_path / "s.yaml"):
        study = load_study(file)
        (tmp_path / "again.yaml").write_text(yaml.safe_dump(as_dict(study)))
        assert load_study(tmp_path / "again.yaml") == study
    assert study.encoders == ("uni", "x") and study.own_encoders[0].arguments == {"init_values": 1e-5}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("./our.safetensors", "{folder}/our.safetensors"),
        ("weights/our.safetensors", "{folder}/weights/our.safetensors"),
        ("our.pth", "{folder}/our.pth"),
        ("../models", "{parent}/models"),
        ("/data/our.bin", "/data/our.bin"),
        ("me/mine", "me/mine"),
        ("me/mine@0123", "me/mine@0123"),
        ("random", "random"),
    ],
)
def test_a_path_to_weights_is_from_the_study_file(tmp_path, written, meant):
    (tmp_path / "s.yaml").write_text(f"name: s\ntitle: s\ndata: {{source: csv}}\nencoders: [{OWN % written}]\n")
    expected = meant.format(folder=tmp_path, parent=tmp_path.parent)
    assert load_study(tmp_path / "s.yaml").own_encoders[0].weights == expected


def test_own_encoders_are_described_once_and_among_the_encoders(tmp_path):
    for own, message in (
        ("[{name: uni}, {name: uni}]", "own_encoders: 'uni' stands twice"),
        ("all", "own_encoders: .* should be a list"),
    ):
        (tmp_path / "s.yaml").write_text(f"name: s\ntitle: s\ndata: {{source: csv}}\nencoders: [uni]\nown_encoders: {own}\n")
        with pytest.raises(ConfigError, match=message):
            load_study(tmp_path / "s.yaml")


def test_conventions_are_of_one_of_the_encoders(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text("name: s\ntitle: s\ndata: {source: csv}\nencoders: [uni]\nconventions: virchow2\n")
    with pytest.raises(ConfigError, match=r"conventions: \['virchow2'\] not among the study's"):
        load_study(file)


def test_conventions_of_an_encoder_that_has_none_are_refused(tmp_path):
    """Nothing would be embedded otherwise, and the table of conventions would be empty."""
    file = tmp_path / "s.yaml"
    file.write_text("name: s\ntitle: s\ndata: {source: csv}\nencoders: [uni]\nconventions: uni\n")
    with pytest.raises(ConfigError, match=r"conventions: no library's way with 'uni' is listed; listed are .*virchow2"):
        load_study(file)


def test_a_study_that_is_not_utf_8_is_told_by_its_file(tmp_path):
    (tmp_path / "old.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"old\.yaml: not YAML in UTF-8: .* in position 9"):
        load_study(tmp_path / "old.yaml")


def test_patches_without_slides_pretrain_from_a_folder_alone(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text("name: s\ntitle: s\ndata: {source: amibr}\nencoders: [p]\npretraining: [{name: p}]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"pretraining\[p\].slides: data.source amibr has patches and no slides; name"):
        load_study(file)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Lora(rank=0),
        lambda: Lora(-1, float("nan"), 1.0),
        lambda: Lora(targets=()),
        lambda: Lora(targets=("qkv", "")),
        lambda: OwnEncoder("x", arguments={"depht": 3}),
        lambda: Network("n", n_epoch=3),
        lambda: dataclasses.replace(Network("n"), n_epochs=0),
        lambda: dataclasses.replace(Switches(), split_by="annotation_by_training_script"),
    ],
)
def test_options_are_checked_in_python_too(make):
    with pytest.raises(ValidationError):
        make()


def test_problems_of_one_section_and_of_all_entries_are_told_together(tmp_path):
    text = "encoders: [a, {weights: x}]\nprobe_audit: b\nmode: 3\n3: 4\n1.5: 4\nnetworks: [{name: n, lora: {rang: 1}}, 5]\n"
    text += "pretraining: [{name: q}, {name: q}]\n"
    with pytest.raises(ConfigError) as error:
        load(tmp_path, "name: t\ntitle: t\ndata: {source: midgo}\n" + text)
    for told in (
        "9 problems",
        "key encoders[0].name is missing",
        "data.source: 'midgo' is not one of",
        "did you mean midog?",
        "probe_audit: 'b' should be a list",
        "mode: 3 should be 'strict' or 'paper'",
        "unknown key [3]; known keys",
        "unknown key 1.5; known keys",
        "unknown key networks[n].lora.rang; did you mean rank?",
        "networks[1]: 5 should be a mapping of keys",
        "pretraining: 'q' stands twice",
    ):
        assert told in str(error.value), told
