"""Runs of the user's own encoder, whose weights a study doesn't look at: old and new ones aren't mixed."""

import made_study
import pytest
import safetensors.torch
import timm
import torch
from made_sweep import write_data

from mfcore import store
from mfcore.study import arms, data, encoders
from mfcore.training import train as procedure

FILE = made_study.FILE.replace("weights: random, ", "weights: ./w.safetensors, ").partition("  - {name: lora")[0]


def write_weights(folder, seed):
    torch.manual_seed(seed)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, embed_dim=24, num_heads=3, depth=1)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(tensors, folder / "w.safetensors")


@pytest.fixture
def study(tmp_path):
    """A finished study with a probe of an encoder and two folds of a network, both of the weights in a file."""
    (tmp_path / "little.yaml").write_text(FILE)
    write_weights(tmp_path, 0)
    write_data(tmp_path / "data")
    study = made_study.opened(tmp_path)
    data.extract(study.settings, tmp_path / "data", study.folder)
    data.write_splits(study.settings, study.folder)
    arms.fit_probe(study.settings, encoders.embed(study.settings, "tiny", study.folder), study.folder)
    for fold in (0, 1):
        arms.train(study.settings, "net", fold, study.folder)
    write_weights(tmp_path, 1)
    return made_study.opened(tmp_path)


def kill(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("is_begun", [False, True])
def test_a_fold_of_other_weights_is_missing(study, tmp_path, monkeypatch, is_begun):
    assert {"net-fold0", "net-fold1", "tiny"} == set(study.runs)
    arms.train(study.settings, "net", 0, study.folder)
    if is_begun:
        monkeypatch.setattr(procedure, "train_units", kill)
        with pytest.raises(KeyboardInterrupt):
            arms.train(study.settings, "net", 1, study.folder)
    again = made_study.opened(tmp_path)
    assert {"net-fold0", "tiny"} == set(again.runs)
    assert again.failures["stage"].tolist() == ["train, fold 1"] and set(again.scores.query("arm == 'net'")["fold"]) == {0}


def test_a_probe_of_weights_that_can_t_be_embedded_any_more_is_missing(study, tmp_path):
    failure = {"stage": "02_embed", "parameters": {"encoder": "tiny"}, "reason": "EncoderError: other weights"}
    store.write_json(study.folder / "failures" / "02_embed.tiny.json", failure)
    again = made_study.opened(tmp_path)
    assert again.failures[["arm", "reason"]].to_numpy().tolist() == [["tiny", "EncoderError: other weights"]]
    assert set(again.scores["arm"]) == {"net"}
