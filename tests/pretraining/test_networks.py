"""Student and teacher: what each sees, how the teacher follows, where they start, which weights decay."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from made_pretraining import DINOV2, STUDY, VIT, settings
from torch.nn import functional

from mfcore import encoders
from mfcore.encoders import EncoderError
from mfcore.encoders.card import EncoderCard
from mfcore.pretraining import networks
from mfcore.study import arms as study_arms, encoders as study_encoders, pretrained
from mfcore.study.config import Crops, OnlinePatches, Settings
from mfcore.training.processes import Ranks

HYBRID = {"architecture": "vit_tiny_r_s16_p8_224", "arguments": {"depth": 1}}  # convolutions before the patches


def images(*shape):
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


def build(**changed):
    this = settings(**changed)
    return networks.build(this, study_arms.start_of(STUDY, this, "nowhere"))


def test_student_and_teacher_are_equal_at_first_and_drawn_by_the_seed():
    pair, again, other = build(), build(), build(seed=1)
    mine, its = pair.student.state_dict(), pair.teacher.state_dict()
    assert set(mine) == set(its) and all(torch.equal(mine[name], its[name]) for name in its)
    assert all(torch.equal(tensor, again.student.state_dict()[name]) for name, tensor in mine.items())
    assert not torch.equal(mine["encoder.cls_token"], other.student.state_dict()["encoder.cls_token"])
    assert not any(parameter.requires_grad for parameter in pair.teacher.parameters())


def test_building_leaves_the_callers_draws_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    build()
    assert torch.equal(torch.rand(2), expected)


def test_logits_are_those_of_each_crops_class_token():
    """Crop by crop and image by image through timm's own network and the head, with local crops of another size."""
    pair = build(drop_path=0.0)
    student, big, small = pair.student.eval(), images(2, 3, 3, 32, 32), images(2, 3, 3, 16, 16)
    logits, classes, of_masked = student(big, small)
    assert logits.shape == (4, 3, 16) and classes.shape == (2, 3, 24) and of_masked is None
    for crop, views in enumerate([*big, *small]):
        for image in range(3):
            token = student.encoder.forward_features(views[image][None])[0, 0]
            torch.testing.assert_close(logits[crop, image], student.head(token), rtol=1e-4, atol=1e-5)
            if crop < 2:
                torch.testing.assert_close(classes[crop, image], token, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pair.teacher(big)[0], logits[:2], rtol=1e-4, atol=1e-5)


def test_a_masked_patch_is_not_seen_by_the_student_but_by_the_teacher():
    pair = build(**DINOV2, drop_path=0.0, arguments={**VIT, "init_values": 1.0})  # blocks that count from the first
    student, big, small = pair.student.eval(), images(2, 2, 3, 32, 32), images(2, 2, 3, 16, 16)
    masked = torch.zeros(4, 16, dtype=torch.bool)
    masked[1, 5] = masked[2, 0] = masked[2, 9] = True  # patches of second image, first crop; first image, second crop
    changed = big.clone()
    changed[0, 1, :, 8:16, 8:16] += 1.0  # patch 5
    before, after = student(big, small, masked), student(changed, small, masked)
    assert torch.equal(before[0], after[0]) and torch.equal(before[2], after[2]) and before[2].shape == (3, 16)
    whole = student(big, small)[0]
    same = torch.isclose(whole[:2], before[0][:2], atol=1e-7).all(-1)
    assert same.tolist() == [[True, False], [False, True]], "images without a mask are as they are"
    teacher = pair.teacher(big, masked)[1], pair.teacher(changed, masked)[1]
    assert not torch.allclose(teacher[0][0], teacher[1][0]) and torch.equal(teacher[0][1:], teacher[1][1:])
    tokens = pair.teacher.encoder.forward_features(big[1, 0][None])[0, 1:]  # without the class token
    torch.testing.assert_close(teacher[0][1:], pair.teacher.head(tokens[[0, 9]]), rtol=1e-4, atol=1e-5)


def test_the_mask_token_gets_a_gradient_where_no_patch_is_masked():
    """Else several processes would wait for it for ever."""
    student = build(**DINOV2).student
    logits, _, of_masked = student(images(2, 2, 3, 32, 32), images(0, 2, 3, 16, 16), torch.zeros(4, 16, dtype=torch.bool))
    (logits.sum() + of_masked.sum()).backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert student.mask_token.grad.abs().max() == 0


def test_the_teacher_follows_by_the_momentum():
    pair = build()
    with torch.no_grad():
        for parameter in pair.student.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = {name: tensor.clone() for name, tensor in pair.teacher.state_dict().items()}
    pair.teacher.follow(pair.student, 0.9)
    for name, tensor in pair.teacher.state_dict().items():
        expected = 0.9 * before[name].numpy() + (1 - 0.9) * pair.student.state_dict()[name].numpy()
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_only_the_student_drops_paths():
    pair = build(drop_path=0.5)
    big, small = images(2, 8, 3, 32, 32), images(0, 8, 3, 16, 16)
    pair.student.train()
    assert not torch.equal(pair.student(big, small)[0], pair.student(big, small)[0])
    assert torch.equal(pair.teacher(big)[0], pair.teacher(big)[0])


@pytest.mark.parametrize(("changed", "rates"), [({"drop_path": 0.4}, [0.0, 0.4]), ({**DINOV2, "drop_path": 0.4}, [0.4, 0.4])])
def test_drop_path_by_depth_is_the_methods(changed, rates):
    """DINO's grows with depth, DINOv2's is the same in every block."""
    blocks = build(**changed).student.encoder.blocks
    assert [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks] == pytest.approx(rates)


def test_dinov2_begins_with_its_authors_layer_scale_and_mask_token(tmp_path):
    """LayerScale of 1e-5 in each block, a mask token of zeros; DINO has no LayerScale; a start keeps its own blocks."""
    pair = build(**DINOV2)
    for part in (pair.student, pair.teacher):
        scales = [tensor for name, tensor in part.encoder.state_dict().items() if name.endswith((".ls1.gamma", ".ls2.gamma"))]
        assert len(scales) == 2 * len(part.encoder.blocks) and all((scale == np.float32(1e-5)).all() for scale in scales)
    assert pair.arguments["init_values"] == 1e-5 and (pair.student.mask_token == 0).all()
    assert build(**DINOV2, arguments={**VIT, "init_values": 0.1}).arguments["init_values"] == 0.1
    assert "init_values" not in build().arguments and not any("gamma" in name for name in build().student.state_dict())
    name, _ = write_encoder(tmp_path / "start", 32)
    assert "init_values" not in build(**DINOV2, start=name, arguments={}).arguments


def test_what_dinov2_exports_has_its_layer_scale(tmp_path):
    """The card builds the network whose weights lie beside it."""
    pair = build(**DINOV2)
    with torch.no_grad():
        for block in pair.teacher.encoder.blocks:
            block.ls1.gamma.uniform_(0.5, 2)
    networks.export(pair, networks.card(pair, settings(**DINOV2), STUDY.patches, "made"), tmp_path)
    loaded = encoders.load(encoders.card_of(f"folder:{tmp_path}")).model
    for key, tensor in pair.teacher.encoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor)


def test_only_dinov2s_key_holds_what_it_begins_with():
    def key_of(method):
        study = dataclasses.replace(STUDY, pretraining=(settings(method=method),))
        return pretrained.config_of(study, settings().name)["pretraining"]

    assert key_of("dinov2")["begins_with"] == {"layer_scale": 1e-5, "mask_token_sd": 0.0} and "begins_with" not in key_of(
        "dino"
    )


def write_encoder(folder, img_size, **more):
    """An encoder in a folder, of the same architecture, for images of another size."""
    torch.manual_seed(5)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=img_size, **VIT)
    folder.mkdir()
    safetensors.torch.save_file(model.state_dict(), folder / "weights.safetensors")
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    card = {"architecture": "vit_tiny_patch16_224", "arguments": {**VIT, "img_size": img_size}, "n_dims": 24}
    card |= {"n_parameters": n_parameters, "mean": [0.5] * 3, "std": [0.25] * 3, "licence": "none", "facts": "made"}
    card |= {"resize_px": img_size, "crop_px": img_size, **more}
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
    return f"folder:{folder}", model


def test_a_start_gives_its_weights_its_mean_and_its_arguments(tmp_path):
    name, model = write_encoder(tmp_path / "start", 32)
    pair = build(start=name, arguments={})
    assert pair.mean == (0.5,) * 3 and pair.std == (0.25,) * 3 and pair.arguments == {**VIT, "img_size": 32}
    for part in (pair.student, pair.teacher):
        for key, tensor in model.state_dict().items():
            assert torch.equal(part.encoder.state_dict()[key], tensor)


def test_a_starts_position_embedding_is_resized_to_the_crops(tmp_path):
    name, model = write_encoder(tmp_path / "start", 64)
    encoder = build(start=name).student.encoder
    assert torch.equal(encoder.state_dict()["blocks.0.attn.qkv.weight"], model.state_dict()["blocks.0.attn.qkv.weight"])
    assert torch.equal(encoder.pos_embed[:, 0], model.pos_embed[:, 0])
    old = model.pos_embed[:, 1:].unflatten(1, (8, 8)).permute(0, 3, 1, 2)
    new = functional.interpolate(old, (4, 4), mode="bicubic", antialias=True).flatten(2).mT
    torch.testing.assert_close(encoder.pos_embed[:, 1:], new)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"architecture": "resnet18", "arguments": {"depth": 3}},
            r"resnet18 can't be pretrained with .*depth.*; name one of timm's ViTs",
        ),
        ({"architecture": "resnet18", "arguments": {}, **DINOV2}, r"resnet18 .* is no ViT, .* DINOv2, .* are for; name one"),
        ({"architecture": "resnet18", "arguments": {}, "layer_decay": 0.9}, "no ViT, whose tokens .* layer_decay are for"),
        ({"architecture": "mixer_s32_224", "arguments": {}}, r"mixer_s32_224 can't be .* on crops of 32 and 16 px: .*height"),
        ({"architecture": "vit_tny"}, "timm has no architecture 'vit_tny'; did you mean gcvit_tiny"),
        ({"arguments": {**VIT, "num_heads": 5}}, "can't be pretrained with arguments"),
        ({"start": "vit_tiny_randon"}, r"^pretraining\[\w+\]\.start: unknown encoder.*vit_tiny_random"),
        (
            {"architecture": "vit_small_patch16_224", "start": "vit_tiny_random"},
            "a vit_tiny_patch16_224, don't fit vit_small_patch16_224",
        ),
        (
            {"start": "vit_tiny_random"},
            r"\.start: the weights of 'vit_tiny_random', .* don't fit .*; say no arguments but {.*}, or none",
        ),
        ({"arguments": {**VIT, "class_token": False, "reg_tokens": 4, "global_pool": "avg"}}, "isn't its class token"),
        ({"arguments": {**VIT, "global_pool": "avg"}}, "isn't its class token.* say global_pool: token"),
        (
            {"architecture": "deit_tiny_distilled_patch16_224"},
            "isn't its class token; say global_pool: token; name one of timm's ViTs",
        ),
        (HYBRID, "vit_tiny_r_s16_p8_224 can't be pretrained .* 16 px"),
    ],
)
def test_what_cannot_be_is_refused(changed, message):
    with pytest.raises(EncoderError, match=message):
        build(**changed)


@pytest.mark.parametrize("architecture", ["resnet18", "tf_efficientnet_lite0"])
def test_a_network_that_pools_learns_by_its_pooled_features(architecture):
    """Against timm's own network without classifier; batch norms take the batch's means, as DINO's authors' teacher does."""
    pair = build(architecture=architecture, arguments={}, drop_path=0.0)
    assert "img_size" not in pair.arguments
    pair.student.encoder.double(), pair.teacher.encoder.double()  # means over few px magnify rounding
    big, small = images(2, 3, 3, 64, 64).double(), images(2, 3, 3, 32, 32).double()
    own = timm.create_model(architecture, num_classes=0).double()
    own.load_state_dict(pair.teacher.encoder.state_dict())
    own.train()
    pair.student.head.double(), pair.teacher.head.double()
    logits, embeddings, of_masked = pair.student(big, small)
    assert logits.shape == (4, 3, 16) and of_masked is None
    expected = own(big.flatten(0, 1)).unflatten(0, (2, 3))
    torch.testing.assert_close(embeddings, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits[:2], pair.student.head(expected), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        logits[2:], pair.student.head(own(small.flatten(0, 1))).unflatten(0, (2, 3)), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(pair.teacher(big)[0], logits[:2], rtol=1e-5, atol=1e-5)


def test_a_network_of_one_size_that_pools_keeps_it(tmp_path):
    """EVA is none of timm's ViTs and has positions all the same: its card must say for what size."""
    pair = build(
        architecture="eva02_tiny_patch14_224", arguments={"depth": 1}, crops=Crops(56, 28, 1), patches=OnlinePatches(56)
    )
    assert pair.arguments == {"depth": 1, "img_size": 56}
    made = timm.create_model("eva02_tiny_patch14_224", num_classes=0, **pair.arguments)
    made.load_state_dict(pair.teacher.encoder.state_dict(), strict=True)
    big, small = images(2, 2, 3, 56, 56), images(1, 2, 3, 28, 28)
    torch.testing.assert_close(pair.student.eval()(big, small)[1][0], made.eval()(big[0]), rtol=1e-4, atol=1e-5)


def test_a_teachers_running_means_are_those_of_what_it_saw():
    """In use it normalises by them; the student's weights, which it follows, have others."""
    pair = build(architecture="resnet18", arguments={})
    first = pair.teacher.encoder.bn1.running_mean.clone()
    pair.teacher(images(2, 3, 3, 32, 32) + 1.0)
    seen = pair.teacher.encoder.bn1.running_mean.clone()
    pair.teacher.eval()
    pair.teacher(images(2, 3, 3, 32, 32))
    pair.teacher.follow(pair.student, 0.5)
    assert not torch.equal(first, seen) and torch.equal(seen, pair.teacher.encoder.bn1.running_mean)


def test_on_gpus_batch_norms_take_the_means_of_all_processes():
    """They only compute there; what they are, and that all else stays as it was, shows here too."""
    pair = build(architecture="resnet10t", arguments={})
    for part in (pair.student, pair.teacher):
        before = part.eval().encoder(big := images(2, 3, 32, 32))
        parameters, names = dict(part.named_parameters()), list(part.state_dict())
        synced = Ranks(0, 2).synced(part, torch.device("cuda")).train()
        norms = [module for module in synced.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
        assert norms and all(isinstance(norm, torch.nn.SyncBatchNorm) and norm.training for norm in norms)
        assert list(synced.state_dict()) == names
        assert all(parameter is parameters[name] for name, parameter in synced.named_parameters())
        torch.testing.assert_close(synced.eval().encoder(big), before)


def test_biases_and_norms_do_not_decay_and_layers_have_their_factor():
    """Against the two methods' rules, written out by name."""
    this = settings(**DINOV2)
    student = build(**DINOV2).student
    groups, seen = networks.parameter_groups(student, this), {}
    for group in groups:
        seen |= {id(parameter): (group["factor"], group["decays"], group["is_last"]) for parameter in group["params"]}
    assert len(seen) == sum(len(group["params"]) for group in groups) == len(list(student.parameters()))
    for name, parameter in student.named_parameters():
        factor, decays, is_last = seen[id(parameter)]
        assert decays == (not (name.endswith(("bias", "gamma")) or "norm" in name)), name
        assert is_last == (name == "head.last.weight")
        depth = 3 if name.startswith(("head", "encoder.norm")) else 0
        if name.startswith("encoder.blocks"):
            depth = int(name.split(".")[2]) + 1
        expected = 0.9 ** (3 - depth) * (0.2 if "patch_embed" in name else 1)
        assert factor == pytest.approx(expected), name


def test_an_encoder_of_the_study_can_be_the_start(tmp_path):
    """By its record, as any arm's name."""
    assert isinstance(study_encoders.card_of(STUDY, "vit_tiny_random"), EncoderCard) and isinstance(STUDY, Settings)
    pair = build(start="vit_tiny_random", arguments={})
    assert pair.student.encoder.embed_dim == 192
