"""Schedules step by step against the papers' formulas, and which layer learns how fast."""

import dataclasses
import math

import numpy as np
import pytest

from mfcore.pretraining import objective
from mfcore.pretraining.method import in_full
from mfcore.study.config import Pretraining

DINO = Pretraining("a", method="dino", n_steps=1000, batch_size=512, teacher_temperature=(0.04, 0.07))
DINOV2 = dataclasses.replace(DINO, method="dinov2")


def schedules(settings: Pretraining) -> np.recarray:
    return objective.schedules(in_full(settings)).to_records(index=False)


def half_cosine(first: float, last: float, step: int, n_steps: int) -> float:
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * step / n_steps))


@pytest.mark.parametrize(("settings", "peak"), [(DINO, 0.0005 * 512 / 256), (DINOV2, 0.004 * math.sqrt(512 / 1024))])
def test_the_learning_rate_rises_to_its_scaled_peak_and_falls_to_its_end(settings, peak):
    rate = schedules(settings).learning_rate
    assert rate.shape == (1000,) and rate.dtype == np.float64
    expected = [peak * i / 99 for i in range(100)] + [half_cosine(peak, 1e-6, i, 900) for i in range(900)]
    np.testing.assert_allclose(rate, expected, rtol=1e-12)
    assert rate[0] == 0 and rate.max() == pytest.approx(peak) and rate[-1] == pytest.approx(1e-6, rel=0.01)


@pytest.mark.parametrize(("settings", "first"), [(DINO, 0.996), (DINOV2, 0.992)])
def test_momentum_ends_at_one_and_weight_decay_grows(settings, first):
    of = schedules(settings)
    np.testing.assert_allclose(of.momentum, [half_cosine(first, 1, i, 1000) for i in range(1000)], rtol=1e-12)
    assert of.momentum[0] == first and 1 - 1e-7 < of.momentum[-1] <= 1
    np.testing.assert_allclose(of.weight_decay, [half_cosine(0.04, 0.4, i, 1000) for i in range(1000)], rtol=1e-12)
    assert (np.diff(of.momentum) > 0).all() and (np.diff(of.weight_decay) > 0).all()


def test_the_teachers_temperature_rises_in_a_line_and_stays():
    of = schedules(DINO)
    np.testing.assert_allclose(of.teacher_temperature[:300], [0.04 + 0.03 * i / 299 for i in range(300)], rtol=1e-12)
    assert (of.teacher_temperature[300:] == 0.07).all()


def test_the_last_layer_waits_for_its_share_of_the_steps():
    assert schedules(DINO).last_layer.tolist() == [0.0] * 10 + [1.0] * 990


@pytest.mark.parametrize("n_steps", [1, 2, 3, 7, 50])
def test_short_trainings_have_a_value_for_every_step(n_steps):
    for settings in (DINO, DINOV2):
        of = schedules(dataclasses.replace(settings, n_steps=n_steps))
        assert len(of) == n_steps
        for name in of.dtype.names:
            assert np.isfinite(of[name]).all()


def test_a_warm_up_may_be_none_or_all_of_the_steps():
    without = schedules(dataclasses.replace(DINO, warmup=0.0, temperature_warmup=0.0, n_frozen_last=0.0))
    assert without.learning_rate[0] == 0.0005 * 512 / 256
    assert (without.teacher_temperature == 0.07).all() and without.last_layer.all()
    only = schedules(dataclasses.replace(DINO, warmup=1.0, temperature_warmup=1.0, n_frozen_last=1.0))
    assert only.learning_rate[-1] == 0.0005 * 512 / 256 and not only.last_layer.any()
    assert only.teacher_temperature[-1] == 0.07


def test_what_a_study_says_goes_before_what_is_published():
    settings = dataclasses.replace(
        DINO, base_lr=0.01, final_lr=0.001, weight_decay=(0.1, 0.1), momentum=0.9, teacher_temperature=(0.02, 0.05)
    )
    of = schedules(settings)
    assert of.learning_rate.max() == pytest.approx(0.02) and of.learning_rate[-1] == pytest.approx(0.001, rel=0.01)
    assert np.allclose(of.weight_decay, 0.1) and of.momentum[0] == 0.9
    assert of.teacher_temperature[[0, -1]].tolist() == [0.02, 0.05]


def vit_names() -> tuple[list[str], int]:
    import timm

    vit = timm.create_model("vit_tiny_patch16_224", depth=3, num_classes=0, reg_tokens=2)
    return [name for name, _ in vit.named_parameters()], len(vit.blocks)


def test_earlier_layers_of_timms_vit_learn_more_slowly():
    names, n_blocks = vit_names()
    settings = dataclasses.replace(DINOV2, layer_decay=0.5)
    for name in names:
        factor = objective.layer_factor(settings, name, n_blocks)
        if name.startswith("blocks."):
            expected = {"0": 0.5**3, "1": 0.5**2, "2": 0.5}[name.split(".")[1]]
        elif name.startswith("patch_embed."):
            expected = 0.2 * 0.5**4
        else:
            expected = 1.0 if name.startswith("norm.") else 0.5**4
        assert factor == expected, name
    assert {"cls_token", "reg_token", "pos_embed", "patch_embed.proj.weight", "norm.weight", "blocks.2.mlp.fc2.bias"} <= set(
        names
    )


def test_dino_has_one_rate_for_all_layers():
    names, n_blocks = vit_names()
    assert {objective.layer_factor(in_full(DINO), name, n_blocks) for name in names} == {1.0}
