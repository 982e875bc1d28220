"""Low-rank adaptation: what is trained, that it begins as the frozen network, and that it computes what it says."""

import dataclasses

import pytest
import torch
import yaml
from tiny_encoders import tiny_card
from torch import nn
from torch.nn import functional

from mfcore import encoders
from mfcore.encoders import EncoderError, architecture, weights
from mfcore.encoders.card import EncoderCard, cards
from mfcore.encoders.readout import READOUTS
from mfcore.study.config import ConfigError, Lora, load_study
from mfcore.training import adapt

FOCUS = cards()["dinov2_vits14_focus"]
SMALL = Lora(rank=4, alpha=6.0, dropout=0.0)
CONVOLUTIONAL = {"efficientnet_lite0", "resnet50"}
GATED = {"dinov3_vits16plus", "dinov3_vith16plus", "dinov3_vit7b16"}  # two layers in place of fc1


def shallow(card: EncoderCard, **arguments) -> EncoderCard:
    """``card`` with random weights, one block and the given arguments of its architecture."""
    depth = {"depths": (1, 1, 1, 1)} if "swin" in card.architecture else {"depth": 1}
    arguments = {**card.arguments, **depth, **arguments}
    with torch.device("meta"):
        built = architecture.create(card.architecture, arguments)
    n_dims = READOUTS[card.readout].width(built)
    said = {"arguments": arguments, "n_parameters": architecture.n_parameters(built), "n_dims": n_dims}
    return dataclasses.replace(card, source="random", revision="", sha256="", **said)


def swin(like: EncoderCard | None = None) -> EncoderCard:
    """A Swin transformer, small, without a class token; CTransPath's, which has batch norm, unless it is ``like`` another."""
    card = shallow(like or cards()["ctranspath"], img_size=64, embed_dim=16, depths=(1, 1), num_heads=(2, 2), window_size=4)
    return dataclasses.replace(card, resize_px=64, crop_px=64)


def images(n: int = 2, side_px: int = 32) -> torch.Tensor:
    """Noise, as normalised images."""
    return torch.randn(n, 3, side_px, side_px, generator=torch.Generator().manual_seed(1))


def as_if_trained(model: nn.Module, std: float = 0.05) -> nn.Module:
    """``model`` with noise in every B, in evaluation mode."""
    generator = torch.Generator().manual_seed(7)
    for name, tensor in adapt.trained(model).items():
        if ".lora_B." in name:
            tensor.normal_(std=std, generator=generator)
    return model.eval()


# ---- which layers, and how many numbers ----


@pytest.mark.parametrize("name", [name for name, card in cards().items() if not card.variant_of])
def test_every_transformer_with_a_card_has_the_layers_that_the_defaults_name(name):
    card = cards()[name]
    with torch.device("meta"):
        if name in GATED:
            with pytest.raises(EncoderError, match=r"fc1, which lora.targets names; .* fc1_g, fc1_x, "):
                adapt.build_network(shallow(card), Lora(), pretrained=False)
            return
        if name in CONVOLUTIONAL:
            with pytest.raises(EncoderError, match=f"'{name}' is a convolutional network"):
                adapt.build_network(card, Lora(), pretrained=False)
            return
        model = adapt.build_network(shallow(card), Lora(), pretrained=False)
    changed = {name.partition(".lora_")[0] for name in adapt.trained(model) if ".lora_" in name}
    blocks = [f"layers.{n}.blocks.0" for n in range(4)] if "swin" in card.architecture else ["blocks.0"]
    of_blocks = {f"{block}.{layer}" for block in blocks for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    # patch_embed.proj is a convolution whose name ends in proj: the released code adapts it, too
    assert changed - {"patch_embed.proj"} == of_blocks
    assert ("patch_embed.proj" in changed) == (name != "ctranspath")
    assert all(type(model.get_submodule(layer).base_layer) is nn.Linear for layer in of_blocks)


@pytest.mark.parametrize(
    ("name", "width", "hidden", "depth", "patch_px"),
    [
        ("virchow2", 1280, (6832, 3416), 32, 14),
        ("uni", 1024, (4096, 4096), 24, 16),
    ],  # Virchow2's SwiGLU halves its hidden layer
)
def test_how_many_numbers_are_trained(name, width, hidden, depth, patch_px):
    """Counted by hand: rank * (n_in + n_out) for a layer, and the head."""
    with torch.device("meta"):
        model = adapt.build_network(cards()[name], Lora(), pretrained=False)
    sides = [width + 3 * width, width + width, width + hidden[0], hidden[1] + width]
    expected = 16 * (depth * sum(sides) + 3 * patch_px**2 + width) + width + 1
    assert sum(tensor.numel() for tensor in adapt.trained(model).values()) == expected
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
    assert expected == {"virchow2": 10_521_025, "uni": 6_321_153}[name]


def test_a_target_is_a_whole_name_or_the_end_of_one_with_its_parent():
    model = adapt.build_network(tiny_card(), dataclasses.replace(SMALL, targets=("attn.proj", "fc1")))
    found = {name.partition(".lora_")[0] for name in adapt.trained(model)}
    assert found == {"blocks.0.attn.proj", "blocks.0.mlp.fc1", "head.weight", "head.bias"}
    with pytest.raises(EncoderError, match="no layers called c1"):
        adapt.build_network(tiny_card(), dataclasses.replace(SMALL, targets=("qkv", "c1")))


# ---- what it computes ----


def by_hand(model: nn.Module, lora: Lora, x: torch.Tensor, n_heads: int, patch_px: int) -> torch.Tensor:
    """Logits of a vision transformer with LoRA, written out: W x + b + alpha / rank B A x in every layer that is adapted."""
    state = model.state_dict()

    def layer(name: str, x: torch.Tensor) -> torch.Tensor:
        if f"{name}.base_layer.weight" not in state:
            return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]
        low, high = (state[f"{name}.lora_{side}.default.weight"].flatten(1) for side in "AB")
        frozen = x @ state[f"{name}.base_layer.weight"].flatten(1).T + state[f"{name}.base_layer.bias"]
        return frozen + lora.alpha / lora.rank * ((x @ low.T) @ high.T)

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    grid = x.shape[-1] // patch_px
    cut = x.unfold(2, patch_px, patch_px).unfold(3, patch_px, patch_px)  # (n, 3, grid, grid, patch_px, patch_px)
    tokens = layer("patch_embed.proj", cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2))
    places = state["pos_embed"][0, 1:]
    side, width = round(len(places) ** 0.5), places.shape[1]
    places = places.T.reshape(1, width, side, side)
    places = functional.interpolate(places, (grid, grid), mode="bicubic", antialias=True) if grid != side else places
    first = (state["cls_token"] + state["pos_embed"][:, :1]).expand(len(x), -1, -1)
    x = torch.cat([first, tokens + places.flatten(2).transpose(1, 2)], dim=1)
    for block in (f"blocks.{n}" for n in range(len(model.blocks))):
        q, k, v = layer(f"{block}.attn.qkv", norm(f"{block}.norm1", x)).unflatten(-1, (3, n_heads, -1)).permute(2, 0, 3, 1, 4)
        seen = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + layer(f"{block}.attn.proj", seen.transpose(1, 2).flatten(2)) * state.get(f"{block}.ls1.gamma", 1)
        hidden = functional.gelu(layer(f"{block}.mlp.fc1", norm(f"{block}.norm2", x)))
        x = x + layer(f"{block}.mlp.fc2", hidden) * state.get(f"{block}.ls2.gamma", 1)
    return layer("head", norm("norm", x)[:, 0])


@pytest.fixture(scope="module")
def focus() -> nn.Module:
    """A real transformer with its real weights at 112 px, every B as if trained."""
    if not weights.state(FOCUS).is_here:
        pytest.skip(f"the weights of {FOCUS.name} aren't here: {weights.state(FOCUS).text}")
    return as_if_trained(adapt.build_network(FOCUS, SMALL, seed=0, input_px=112))


def test_logits_are_those_of_a_forward_pass_written_out(focus):
    with torch.no_grad():
        found, expected = focus(images(2, 112)), by_hand(focus, SMALL, images(2, 112), n_heads=6, patch_px=14)
        frozen = encoders.build_network(
            dataclasses.replace(FOCUS, arguments={"dynamic_img_size": True, "img_size": 224}), seed=0
        )
        far = (frozen.eval()(images(2, 112)) - found).abs().max()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert far > 0.02


def test_logits_are_those_written_out_without_any_weights_file():
    card = shallow(cards()["vit_tiny_random"], img_size=32, depth=2)
    model = as_if_trained(adapt.build_network(card, SMALL, n_classes=3, seed=0, input_px=48))
    with torch.no_grad():
        torch.testing.assert_close(
            model(images(2, 48)), by_hand(model, SMALL, images(2, 48), n_heads=3, patch_px=16), rtol=0, atol=1e-5
        )


def test_before_the_first_step_the_network_is_the_frozen_one():
    """To the last bit, head and all; also where the architecture was told to take any size."""
    for card in (tiny_card(), swin()):
        x = images(2, card.crop_px)
        plain = encoders.build_network(card, seed=5).eval()
        with torch.no_grad():
            assert torch.equal(adapt.build_network(card, SMALL, seed=5).eval()(x), plain(x))
            assert torch.equal(adapt.build_network(card, None, seed=5).eval()(x), plain(x))


# ---- how it is drawn, and what training changes ----


def test_what_is_drawn_follows_from_seed_and_name_alone():
    torch.manual_seed(1)
    one = adapt.trained(adapt.build_network(tiny_card(), SMALL, seed=3))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again = adapt.trained(adapt.build_network(tiny_card(), SMALL, seed=3))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], again[name]) for name in one)
    drawn = [name for name in one if ".lora_A." in name or name == "head.weight"]
    assert len(drawn) == 6
    for other in (adapt.build_network(tiny_card(), SMALL, seed=4), adapt.build_network(tiny_card(name="b"), SMALL, seed=3)):
        assert not any(torch.equal(one[name], adapt.trained(other)[name]) for name in drawn)
    assert not any(tensor.any() for name, tensor in one.items() if ".lora_B." in name)


def test_dropout_drops_in_training_only():
    model = as_if_trained(adapt.build_network(tiny_card(), dataclasses.replace(SMALL, dropout=0.5), seed=0))
    without = as_if_trained(adapt.build_network(tiny_card(), SMALL, seed=0))
    with torch.no_grad():
        assert torch.equal(model(images()), without(images()))
        assert not torch.equal(model.train()(images()), model(images()))
        assert torch.equal(without.train()(images()), without(images()))
    assert adapt.build_network(tiny_card(), SMALL).training


@pytest.mark.parametrize("card", [tiny_card(), swin()], ids=["tiny", "with batch norm"])
def test_training_changes_what_trained_gives_and_nothing_else(card):
    model = adapt.build_network(card, SMALL, seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(2):  # while B is zero, A has no gradient
        optimizer.zero_grad()
        functional.softplus(model(images(4, card.crop_px))).mean().backward()
        optimizer.step()
    after = model.state_dict()
    assert {name for name in after if not torch.equal(before[name], after[name])} == set(adapt.trained(model))
    assert any("running_mean" in name for name in adapt.trained(model)) == (card.name == "ctranspath")


def test_what_trained_gave_brings_a_network_back():
    model = as_if_trained(adapt.build_network(tiny_card(), SMALL, seed=0))
    kept = {name: tensor.clone() for name, tensor in adapt.trained(model).items()}
    fresh = adapt.build_network(tiny_card(), SMALL, seed=9).eval()
    assert sum(tensor.numel() for tensor in kept.values()) < 0.2 * architecture.n_parameters(model)
    whole = adapt.build_network(tiny_card(), None, seed=9)
    assert set(adapt.trained(whole)) == set(whole.state_dict())
    with torch.no_grad():
        fresh.load_state_dict({**fresh.state_dict(), **{n: t for n, t in model.state_dict().items() if n not in kept}})
        fresh.load_state_dict(kept, strict=False)
        assert torch.equal(fresh(images()), model(images()))


def test_matrices_and_head_learn_while_the_rest_stays():
    model = adapt.build_network(tiny_card(), dataclasses.replace(SMALL, dropout=0.1), seed=0)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    x, truth, losses = images(8), torch.tensor([0.0, 1.0] * 4), []
    for _ in range(30):
        loss = functional.binary_cross_entropy_with_logits(model(x)[:, 0], truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


# ---- sizes, and what is refused ----


@pytest.mark.parametrize("lora", [None, SMALL])
def test_a_network_takes_images_of_other_sizes(lora):
    with_stem, plain = swin(), swin(encoders.card_of("random:swin_tiny_patch4_window7_224"))
    dino = shallow(cards()["dinov3_vits16"])
    for card, sizes in ((tiny_card(), (16, 48)), (with_stem, (32, 96)), (plain, (32, 100)), (dino, (64, 288))):
        model = adapt.build_network(card, lora, input_px=sizes[0])
        assert model.card is card
        with torch.no_grad():
            assert all(model(images(1, side_px)).shape == (1, 1) for side_px in sizes)


@pytest.mark.parametrize(
    ("card", "lora", "input_px", "message"),
    [
        (tiny_card(), SMALL, 40, r"'tiny' can't take input_px 40: .*40\) should be divisible by patch size \(16\)"),
        (tiny_card(), None, 40, r"'tiny' can't take input_px 40: .*40\) should be divisible by patch size \(16\)"),
        (
            tiny_card(),
            Lora(targets=("query", "qkv", "key")),
            None,
            r"no layers called query, key, .*proj, qkv",
        ),
        (cards()["efficientnet_lite0"], Lora(targets=("conv_pw",)), None, "is a convolutional network: .*leave lora out"),
    ],
)
def test_what_cant_be_is_refused_with_its_reason(card, lora, input_px, message):
    with pytest.raises(EncoderError, match=message):
        adapt.build_network(card, lora, pretrained=False, seed=0, input_px=input_px)


def test_a_layer_whose_code_passes_lora_by_is_refused():
    """BEiT takes the weight of its qkv without calling the layer: LoRA there would train, and do nothing."""
    card = shallow(encoders.card_of("random:beit_base_patch16_224"), embed_dim=24, num_heads=3)
    with pytest.raises(EncoderError, match=r"nothing in 1 layers .*; leave qkv out of lora.targets"):
        adapt.build_network(card, SMALL)
    adapt.build_network(card, dataclasses.replace(SMALL, targets=("proj", "fc1", "fc2")))


def test_a_study_file_gives_a_network_its_lora(tmp_path):
    said = {"rank": 8, "targets": ["qkv", "proj"]}
    network = {"name": "arm", "architecture": "dinov2_vits14_focus", "input_px": 112, "lora": said}
    content = {"name": "t", "title": "T", "data": {"source": "synthetic"}, "networks": [network]}
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(content))
    assert load_study(tmp_path / "t.yaml").network("arm").lora == Lora(8, 16.0, 0.1, ("qkv", "proj"))
    network["lora"] = {"rang": 8}
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="rang"):
        load_study(tmp_path / "t.yaml")
