"""What DINO and DINOv2 differ in, against their authors' code; no module of the room asks for a method's name."""

import ast
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mfcore.pretraining import method
from mfcore.pretraining.method import METHODS

ROOM = Path(method.__file__).parent


def test_every_method_stands_under_its_name():
    assert all(name == one.name for name, one in METHODS.items())


@pytest.mark.parametrize("path", sorted(ROOM.glob("*.py")), ids=lambda path: path.stem)
def test_no_module_asks_for_a_methods_name(path):
    """Names stand where the objects are made, nowhere else."""
    words = {node.value for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Constant)}
    assert path.stem == "method" or not words & set(METHODS)


def test_learning_rates_are_scaled_as_the_authors_do():
    assert [method.DINO.lr_factor(n) for n in (64, 512)] == [0.25, 2.0]
    assert [method.DINOV2.lr_factor(n) for n in (256, 1024)] == [0.5, 1.0]


def layers():
    """A network with parts named as a student's, and gradients of ones."""
    network = torch.nn.ModuleDict({"encoder": torch.nn.Linear(3, 2), "head": torch.nn.Linear(2, 5)})
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    return network


def test_dino_bounds_the_gradient_of_each_parameter():
    network = layers()
    method.DINO.clip(network, 1.5)
    norms = {name: parameter.grad.norm().item() for name, parameter in network.named_parameters()}
    assert norms.pop("encoder.bias") == pytest.approx(math.sqrt(2)), "a gradient within the bound stays as it is"
    assert list(norms.values()) == pytest.approx([1.5] * 3)


def test_dinov2_bounds_the_gradient_of_encoder_and_head():
    """By the norm over all of each, not parameter by parameter."""
    network = layers()
    method.DINOV2.clip(network, 0.01)
    for part in network.values():
        total = sum(parameter.grad.square().sum().item() for parameter in part.parameters())
        assert math.sqrt(total) == pytest.approx(0.01, rel=1e-3)


def test_the_objects_need_no_torch():
    code = "import sys, mfcore.pretraining.method; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOM.parents[1])
