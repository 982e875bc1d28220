"""Weights as others publish them: under an entry of the file, a prefix, in chunks, under CLIP's names; and what isn't there."""

import dataclasses
import io

import hub_server
import pytest
import torch
from hub_server import COMMIT, Repository
from tiny_encoders import some_patches, tiny_card
from torch.nn import functional as F

from mfcore import encoders
from mfcore.encoders import EncoderError, architecture
from mfcore.encoders.card import EncoderCard, Layout, cards
from mfcore.study import encoders as study_encoders
from mfcore.study.config import Data, OwnEncoder, Settings

SMALL = {"embed_dim": 24, "num_heads": 3}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that this process asks, with no login and an empty cache."""
    with hub_server.serving() as server:
        hub_server.use(monkeypatch, server.url, tmp_path / "cache")
        yield server


def small(name: str, side_px: int, **arguments) -> EncoderCard:
    """A known encoder's card, its network small, for images of ``side_px``."""
    card = cards()[name]
    arguments = {**card.arguments, **SMALL, "img_size": side_px, **arguments}
    with torch.device("meta"):
        n_parameters = architecture.n_parameters(architecture.create(card.architecture, arguments))
    said = {"arguments": arguments, "n_parameters": n_parameters, "n_dims": 24, "revision": "", "sha256": ""}
    return dataclasses.replace(card, **said, resize_px=side_px, crop_px=side_px)


def drawn(card: EncoderCard) -> torch.nn.Module:
    """The card's network with every number drawn, so that none is a zero or a one by chance."""
    model, generator = architecture.create(card.architecture, card.arguments).eval(), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2, generator=generator)
    return model


def published(hub: hub_server.HubServer, card: EncoderCard, content: object) -> EncoderCard:
    """The card, its weights in the hub's file as they were published."""
    file = io.BytesIO()
    torch.save(content, file)
    hub.repositories[card.identifier] = Repository({card.files[0]: file.getvalue()})
    return dataclasses.replace(card, revision=COMMIT)


def as_dinov2(model: torch.nn.Module, n_in_chunk: int = 0) -> dict[str, torch.Tensor]:
    """A network's tensors as DINOv2's code names them, blocks in chunks of so many; ``model`` has registers."""
    state = model.state_dict()
    named = {"mask_token": torch.zeros(1, 24), "register_tokens": state.pop("reg_token")}
    # each token has a position there; that of the class token is part of it here
    named["pos_embed"] = torch.cat([torch.full((1, 1, 24), 0.5), state.pop("pos_embed")], dim=1)
    named["cls_token"] = state.pop("cls_token") - 0.5
    for name, tensor in state.items():
        name = name.replace("mlp.fc1.", "mlp.w12.").replace("mlp.fc2.", "mlp.w3.")
        if n_in_chunk and name.startswith("blocks."):
            name = f"blocks.{int(name.split('.')[1]) // n_in_chunk}.{name.removeprefix('blocks.')}"
        named[name] = tensor
    return named


def check(card: EncoderCard, model: torch.nn.Module) -> None:
    """The loaded card embeds as ``model`` does."""
    loaded, patches = encoders.load(card), some_patches(2, card.crop_px)
    with torch.inference_mode():
        expected = encoders.read_out(model, card, loaded.transform(patches)).numpy()
    torch.testing.assert_close(torch.from_numpy(loaded.embed(patches)), torch.from_numpy(expected))


# ---- as each is published ----


def test_openmidnight_is_a_file_of_dinov2s_tensors(hub):
    card = small("openmidnight", 28, depth=2)
    model = drawn(card)
    check(published(hub, card, as_dinov2(model)), model)


def test_openpath_is_the_teachers_backbone_with_blocks_in_chunks(hub):
    card = small("openpath", 28, depth=4)
    model = drawn(card)
    state = as_dinov2(model, n_in_chunk=2)
    assert "blocks.1.3.mlp.w12.weight" in state and "blocks.0.1.norm1.bias" in state
    heads = {"dino_head.mlp.0.weight": torch.zeros(3, 24), "ibot_head.last_layer.weight_v": torch.zeros(4, 3)}
    content = {"teacher": {**{f"backbone.{name}": tensor for name, tensor in state.items()}, **heads}, "iteration": 316_250}
    check(published(hub, card, content), model)


def test_sp22m_has_a_prefix(hub):
    card = small("sp22m", 32, depth=2)
    model = drawn(card)
    state = {f"encoder.{name}": tensor for name, tensor in model.state_dict().items()}
    check(published(hub, card, {**state, "head.weight": torch.zeros(3, 24)}), model)


def clip_embedding(state: dict, images: torch.Tensor, n_heads: int, patch_px: int) -> torch.Tensor:
    """CLIP's image tower written out under transformers' names: the class token before the projection."""

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def dense(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    tower, n_layers = "vision_model.", 1 + max(int(name.split(".")[3]) for name in state if ".layers." in name)
    x = F.conv2d(images, state[f"{tower}embeddings.patch_embedding.weight"], stride=patch_px).flatten(2).transpose(1, 2)
    x = torch.cat([state[f"{tower}embeddings.class_embedding"].expand(len(x), 1, -1), x], dim=1)
    x = norm(x + state[f"{tower}embeddings.position_embedding.weight"], f"{tower}pre_layrnorm")
    for number in range(n_layers):
        layer = f"{tower}encoder.layers.{number}."
        y = norm(x, f"{layer}layer_norm1")
        q, k, v = (dense(y, f"{layer}self_attn.{part}_proj").unflatten(-1, (n_heads, -1)).transpose(1, 2) for part in "qkv")
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + dense((weights @ v).transpose(1, 2).flatten(2), f"{layer}self_attn.out_proj")
        y = dense(norm(x, f"{layer}layer_norm2"), f"{layer}mlp.fc1")
        x = x + dense(y * torch.sigmoid(1.702 * y), f"{layer}mlp.fc2")
    return norm(x[:, 0], f"{tower}post_layernorm")


def clip_state(width: int, n_layers: int, patch_px: int, n_patches: int) -> dict[str, torch.Tensor]:
    """A whole CLIP under transformers' names, its numbers drawn, as an older version of transformers saved it."""
    tower, hidden = "vision_model.", 4 * width
    norms = ["pre_layrnorm", "post_layernorm"]
    dense = {}
    for number in range(n_layers):
        layer = f"encoder.layers.{number}."
        norms += [f"{layer}layer_norm1", f"{layer}layer_norm2"]
        dense |= {f"{layer}self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
        dense |= {f"{layer}mlp.fc1": (hidden, width), f"{layer}mlp.fc2": (width, hidden)}
    shapes = {f"{name}.weight": shape for name, shape in dense.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in dense.items()}
    shapes |= {f"{name}.{part}": (width,) for name in norms for part in ("weight", "bias")}
    shapes |= {"embeddings.class_embedding": (width,), "embeddings.position_embedding.weight": (1 + n_patches, width)}
    shapes |= {"embeddings.patch_embedding.weight": (width, 3, patch_px, patch_px)}
    generator = torch.Generator().manual_seed(0)
    state = {tower + name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state[f"{tower}embeddings.position_ids"] = torch.arange(1 + n_patches)[None]
    others = {"text_model.final_layer_norm.weight": (8,), "visual_projection.weight": (16, width), "logit_scale": ()}
    return state | {name: torch.ones(shape) for name, shape in others.items()}


def test_plips_tower_computes_what_clip_does(hub):
    card = small("plip_tower", 32, depth=2, patch_size=16)
    state = clip_state(24, n_layers=2, patch_px=16, n_patches=4)
    loaded, patches = encoders.load(published(hub, card, state)), some_patches(2, 32)
    with torch.inference_mode():
        expected = clip_embedding(state, loaded.transform(patches), n_heads=3, patch_px=16)
    torch.testing.assert_close(torch.from_numpy(loaded.embed(patches)), expected, atol=1e-4, rtol=1e-4)


# ---- what isn't there ----


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"key": "student"}, r"teacher_checkpoint\.pth has no entry 'student'; it has 'teacher', 'iteration'$"),
        ({"key": "iteration"}, r"teacher_checkpoint\.pth, entry 'iteration', isn't a file of named tensors"),
        ({"key": ""}, r"teacher_checkpoint\.pth isn't a file of named tensors"),
        (
            {"prefix": "encoder."},
            r"checkpoint\.pth has no tensor whose name begins with 'encoder\.'; it has 'backbone\.mask_token', .* more$",
        ),
        ({"prefix": ""}, "its weights don't fit vit_giant_patch14_reg4_dinov2: .*cls_token.*; they are 'backbone"),
        ({"chunked": False}, "its weights don't fit vit_giant_patch14_reg4_dinov2: .*blocks"),
    ],
)
def test_a_file_that_has_them_elsewhere_is_refused_with_what_it_has(hub, tensors, message):
    card = small("openpath", 28, depth=4)
    state = as_dinov2(drawn(card), n_in_chunk=2)
    content = {"teacher": {f"backbone.{name}": tensor for name, tensor in state.items()}, "iteration": 316_250}
    card = dataclasses.replace(card, tensors=dataclasses.replace(card.tensors, **tensors))
    with pytest.raises(EncoderError, match=message):
        encoders.load(published(hub, card, content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "has no entry 'teacher': it is a list; leave tensors.key out$"),
        ({"teacher": {0: torch.zeros(1)}}, "isn't a file of named tensors"),
    ],
)
def test_a_file_without_names_is_refused(hub, content, message):
    with pytest.raises(EncoderError, match=rf"teacher_checkpoint\.pth.* {message}"):
        encoders.load(published(hub, small("openpath", 28, depth=4), content))


def test_two_blocks_of_one_number_are_refused(hub):
    card = small("openpath", 28, depth=4)
    twice = {f"backbone.blocks.{chunk}.0.norm1.bias": torch.zeros(24) for chunk in (0, 1)}
    with pytest.raises(EncoderError, match=r"has blocks\.0\.norm1\.bias in two chunks; backbone\.blocks\.1\.0\.norm1\.bias is"):
        encoders.load(published(hub, card, {"teacher": twice}))


# ---- in a study ----


def own(**said) -> EncoderCard:
    """The card of a study's own encoder."""
    study = Settings("t", "t", Data("csv"), own_encoders=(OwnEncoder("mine", **said),))
    return study_encoders.card_of(study, "mine")


def test_a_study_reads_a_training_of_its_own_as_it_was_saved(tmp_path):
    card = small("openpath", 28, depth=2)
    model, file = drawn(card), tmp_path / "teacher_checkpoint.pth"
    state = {f"backbone.{name}": tensor for name, tensor in as_dinov2(model, n_in_chunk=1).items()}
    torch.save({"teacher": state}, file)
    said = {key: getattr(card, key) for key in ("architecture", "arguments", "mean", "std", "resize_px", "crop_px")}
    check(own(weights=str(file), **said, tensors=Layout("teacher", "backbone.", True)), model)


def test_other_weights_lie_where_their_record_says(tmp_path):
    """A file has timm's names, whatever the known encoder's has; a repository of the hub is like the known one's."""
    (tmp_path / "mine.pth").write_bytes(b"")
    known, file = cards()["openpath"], str(tmp_path / "mine.pth")
    assert own(like="openpath", weights=file).tensors == own(like="openpath", weights="random").tensors == Layout()
    assert own(like="openpath", weights=file, tensors=known.tensors).tensors == known.tensors
    assert own(like="openpath", weights="me/mine").tensors == own(like="openpath", crop_px=196).tensors == known.tensors


def test_a_card_is_what_it_was_before_cards_could_say_where_tensors_are():
    assert "tensors" not in tiny_card().identity()
    chunked = dataclasses.replace(tiny_card(), tensors=Layout(chunked=True))
    assert chunked.identity()["tensors"] == {"key": "", "prefix": "", "chunked": True}
    assert EncoderCard(**{**dataclasses.asdict(chunked)}) == chunked  # as JSON has it
    with pytest.raises(ValueError, match=r"tensors\.prefx"):
        tiny_card(tensors={"prefx": "encoder."})
