"""Nothing that a user is given, or brings, is unpickled: every way in gets a file that would leave a mark if it were."""

import ast
import json
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
import yaml
from made_natural import cifar
from made_pretraining import settings, train
from made_training import UNIT, task, tiny
from pydantic import ValidationError
from tiny_encoders import tiny_card

from mfcore import encoders, store
from mfcore.analysis.encoders import representations
from mfcore.encoders import EncoderError, architecture, weights
from mfcore.encoders.card import ARGUMENTS, EncoderCard, wrong_arguments
from mfcore.pretraining import networks
from mfcore.study.config import ConfigError, OwnEncoder, Pretraining, load_study
from mfcore.tasks import registry, segmentation as tasks_segmentation
from mfcore.tasks.task import TaskError
from mfcore.training import loop as train_loop

PACKAGE = Path(store.__file__).parent
REFUSED = ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "pruned", "weight_init")
STUDY = {"name": "s", "title": "s", "data": {"source": "csv"}, "encoders": ["mine"]}
OWN = {"name": "mine", "architecture": "resnet10t", "weights": "random", "mean": [0.5] * 3, "std": [0.5] * 3}


class Mark:
    """Unpickling it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture
def mark(tmp_path):
    """What leaves a mark where it is unpickled; the test fails if anything did."""
    assert pickle.loads(pickle.dumps(Mark(tmp_path / "can"))) is None and (tmp_path / "can").exists()
    yield Mark(tmp_path / "ran")
    assert not (tmp_path / "ran").exists(), "a pickle was executed"


@pytest.fixture
def old_timm(monkeypatch):
    """timm's create_model reads ``checkpoint_path`` as versions below 1.0.26 do, which unpickle all that it holds."""
    load = timm.models._helpers.torch.load
    monkeypatch.setattr(timm.models._factory, "load_checkpoint", lambda _, path: load(path, weights_only=False))


@pytest.fixture
def poisoned(tmp_path, mark, old_timm) -> dict:
    """Arguments of an architecture that name a pickle."""
    torch.save({"weight": mark}, tmp_path / "poison.pth")
    return {"checkpoint_path": str(tmp_path / "poison.pth")}


# ---- what an architecture is told ----


def test_arguments_of_a_study_s_encoder(tmp_path, poisoned):
    content = {**STUDY, "encoders": [{**OWN, "arguments": poisoned}]}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"s\.yaml: encoders\[mine\]\.arguments\.checkpoint_path: an architecture isn't"):
        load_study(tmp_path / "s.yaml")
    with pytest.raises(ValidationError, match=r"arguments\.checkpoint_path"):  # in Python, past the file
        OwnEncoder(**OWN, arguments=poisoned)


def test_arguments_of_a_study_s_pretraining(tmp_path, poisoned):
    content = {**STUDY, "pretraining": [{"name": "mine", "architecture": "resnet10t", "arguments": poisoned}]}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"pretraining\[mine\]\.arguments\.checkpoint_path: an architecture isn't"):
        load_study(tmp_path / "s.yaml")
    with pytest.raises(ValidationError, match=r"arguments\.checkpoint_path"):  # in Python, past the file
        Pretraining("mine", architecture="resnet10t", arguments=poisoned)
    with pytest.raises(EncoderError, match=r"arguments\.checkpoint_path"):
        networks._encoder(Pretraining("mine", architecture="resnet10t"), poisoned, 0.0)


def test_arguments_of_a_card(tmp_path, poisoned):
    facts = {"n_dims": 512, "n_parameters": 1, "mean": [0.5] * 3, "std": [0.5] * 3, "licence": "", "facts": ""}
    content = {"architecture": "resnet10t", "readout": "pooled", "n_prefix_tokens": 0, "arguments": poisoned, **facts}
    (tmp_path / "card.json").write_text(json.dumps(content))
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(EncoderError, match=r"card\.json.*arguments\.checkpoint_path"):
        encoders.card_of(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match=r"arguments\.checkpoint_path"):
        EncoderCard("mine", "", **content)


@pytest.mark.parametrize("key", REFUSED)
def test_what_may_not_be_said_is_refused_with_what_may(key):
    problems = wrong_arguments({key: 1})
    assert list(problems) == [key] and "patch_size, " in problems[key]
    with pytest.raises(EncoderError, match=f"arguments.{key}: "):
        architecture.create("resnet10t", {key: 1})


def test_a_misspelt_argument_is_told_with_the_nearest_and_all_at_once():
    problems = wrong_arguments({"depht": 3, "img_size": "big", "act_layer": "a/b", "depth": {"a": 1}, "norm_eps": "1e-5"})
    assert list(problems) == ["depht", "img_size", "act_layer", "depth", "norm_eps"]
    assert "did you mean depth?" in problems["depht"] and "1.0e-5 a number" in problems["norm_eps"]
    whole = {"depth": [[1, 2], 3], "init_values": None, "qkv_bias": True, "norm_layer": "LayerNorm(eps=1e-12)"}
    assert wrong_arguments(whole) == {}


def test_no_argument_that_may_be_said_is_one_of_timm_s_for_files():
    """Those of the functions that build any model; `num_classes` is mfcore's."""
    import inspect

    for function in (timm.create_model, timm.models._builder.build_model_with_cfg):
        assert not set(inspect.signature(function).parameters) & set(ARGUMENTS)


@pytest.mark.parametrize("place", ["local-dir:{}", "local-dir:{}/resnet10t", "hf-hub:me/resnet10t", "{}/resnet10t"])
def test_an_architecture_is_a_name_and_no_place(tmp_path, poisoned, place):
    """timm would read a folder's config.json, whose arguments nobody has looked at."""
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet10t", "model_args": poisoned}))
    with pytest.raises(EncoderError, match="timm has no architecture"):
        architecture.create(place.format(tmp_path), {})


def test_timm_reads_no_weights_itself(monkeypatch, tmp_path, mark):
    """Weights without a tensor of the network are as none to timm, which would then fetch those that it knows of."""
    torch.save({"fc.weight": torch.zeros(2, 512)}, tmp_path / "head.pth")
    asked = []
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", lambda *what, **_: asked.append(what) or {})
    facts = {"arguments": {}, "architecture": "resnet10t", "n_prefix_tokens": 0, "readout": "pooled", "n_dims": 512}
    card = tiny_card(source="file", identifier=str(tmp_path / "head.pth"), n_parameters=4_923_936, **facts)
    with pytest.raises(EncoderError, match="hold no tensor of resnet10t"):
        encoders.load(card)
    assert not asked


# ---- files ----


def as_zip(file: Path, mark: Mark) -> None:
    torch.save({"weight": mark}, file)


def as_legacy(file: Path, mark: Mark) -> None:
    torch.save({"weight": mark}, file, _use_new_zipfile_serialization=False)


def as_bare_pickle(file: Path, mark: Mark) -> None:
    file.write_bytes(pickle.dumps({"weight": mark}, protocol=2))  # torch's own


WAYS = [as_zip, as_legacy, as_bare_pickle]


@pytest.mark.parametrize("write", WAYS)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".onnx"])
def test_weights(tmp_path, mark, write, suffix):
    write(tmp_path / f"weights{suffix}", mark)
    with pytest.raises(EncoderError, match=rf"weights{suffix} (holds more than tensors and isn't|can't be) read"):
        encoders.load(tiny_card(source="file", identifier=str(tmp_path / f"weights{suffix}")))


def test_weights_that_are_no_named_tensors(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(EncoderError, match="named tensors"):
        weights._read_tensors(tmp_path / "list.pth")


@pytest.mark.parametrize("write", WAYS)
def test_the_checkpoint_of_a_pretraining(tmp_path, mark, write):
    write(tmp_path / "checkpoint.pt", mark)
    with pytest.raises(store.StoreError, match=r"checkpoint\.pt: can't be gone on from \(UnpicklingError"):
        train(settings(), tmp_path)


@pytest.mark.parametrize("write", WAYS)
def test_the_checkpoint_of_a_training(tmp_path, mark, write):
    write(tmp_path / f"{UNIT}.checkpoint", mark)
    with pytest.raises(store.StoreError, match=r"checkpoint: can't be gone on from \(UnpicklingError"):
        train_loop.train_network(task(), tiny(), tmp_path)


def test_the_arrays_of_features(tmp_path, mark):
    np.save(tmp_path / "objects.npy", np.array([[mark]], dtype=object), allow_pickle=True)
    (tmp_path / "bare.npy").write_bytes(pickle.dumps(mark))
    for name in ("objects", "bare"):
        with pytest.raises(store.StoreError, match=rf"{name}\.npy can't be read"):
            representations.of_file(tmp_path / f"{name}.npy")


@pytest.mark.parametrize("write", WAYS)
def test_the_label_files_of_a_task(tmp_path, mark, write):
    write(tmp_path / "train_1.mat", mark)
    with pytest.raises(TaskError, match=r"train_1\.mat: no label file"):
        tasks_segmentation._consep_mask(tmp_path / "train_1.mat")


@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "batches.meta"])
def test_the_batches_of_cifar(tmp_path, mark, monkeypatch, name):
    """These are pickles, of which torchvision reads those alone that have the published MD5."""
    cifar(tmp_path, "CIFAR10", monkeypatch)
    (tmp_path / "cifar-10-batches-py" / name).write_bytes(pickle.dumps({"data": mark, "labels": mark}))
    with pytest.raises(TaskError, match="what torchvision's CIFAR10 reads isn't there, or damaged"):
        registry.get("cifar10").load(tmp_path)


@pytest.mark.parametrize("location", ["secret.bin", "../secret.bin", "{}/secret.bin"])
def test_a_graph_reads_no_file_but_itself(tmp_path, monkeypatch, location):
    """What an ONNX file keeps outside itself may be any file of this machine."""
    (tmp_path / "secret.bin").write_bytes(np.ones((2, 2), np.float32).tobytes())
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below" if location.startswith("..") else tmp_path)
    weight = onnx.numpy_helper.from_array(np.ones((2, 2), np.float32), "backbone.w")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location.format(tmp_path))
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [weight])), tmp_path / "g.onnx")
    with pytest.raises(EncoderError, match=r"it keeps 'backbone\.w' outside itself"):
        weights._read_tensors(tmp_path / "g.onnx", 224)


@pytest.mark.parametrize("part", ["../../poison.bin", "/poison.bin", "a/../../poison.bin"])
def test_an_index_names_no_file_outside_its_repository(tmp_path, part):
    (tmp_path / weights.INDEX).write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": part}}))
    with pytest.raises(EncoderError, match="outside its repository"):
        weights._parts(tmp_path / weights.INDEX)


def test_no_module_has_another_way():
    """torch.load only with weights_only, YAML only by its safe loader, and nothing that unpickles by itself."""
    banned = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    found = []
    for path in sorted([*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "notebooks").glob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.name}, line {getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import) and banned & {alias.name.split(".")[0] for alias in node.names}:
                found.append(f"{where}: imports {ast.unparse(node)}")
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in banned:
                found.append(f"{where}: imports {node.module}")
            if not isinstance(node, ast.Call):
                continue
            name, said = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            if name == "torch.load" and said.get("weights_only") != "True":
                found.append(f"{where}: {name} without weights_only=True")
            if "allow_pickle" in said or name.endswith((".read_pickle", "yaml.load", ".unsafe_load", "hub.load")):
                found.append(f"{where}: {ast.unparse(node)}")
            if name.endswith("create_model") and path.name != "architecture.py":
                found.append(f"{where}: timm's create_model, past what architecture.create looks at")
    assert not found
