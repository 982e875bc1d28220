"""The projection head against its layers written out, its fixed lengths, and where it computes in float32."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from mfcore.pretraining.networks import Head


def made(**changed: int) -> Head:
    torch.manual_seed(3)
    return Head(**{"n_dims": 6, "n_prototypes": 11, "hidden": 8, "bottleneck": 5} | changed)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * np.array([[(1 + math.erf(value / math.sqrt(2))) / 2 for value in row] for row in x])


def test_the_head_is_three_layers_a_unit_bottleneck_and_unit_prototypes():
    head, x = made(), torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    weights = {name: parameter.detach().double().numpy() for name, parameter in head.named_parameters()}
    inner = x.double().numpy()
    for layer in (0, 2, 4):
        inner = inner @ weights[f"mlp.{layer}.weight"].T + weights[f"mlp.{layer}.bias"]
        inner = inner if layer == 4 else gelu(inner)
    inner /= np.sqrt((inner**2).sum(1, keepdims=True))
    prototypes = weights["last.weight"] / np.sqrt((weights["last.weight"] ** 2).sum(1, keepdims=True))
    np.testing.assert_allclose(head(x).detach().numpy(), inner @ prototypes.T, atol=1e-5)
    assert set(weights) == {f"mlp.{layer}.{part}" for layer in (0, 2, 4) for part in ("weight", "bias")} | {"last.weight"}


def test_the_last_layer_is_torchs_weight_norm_with_lengths_of_one():
    head = made()
    reference = parametrizations.weight_norm(nn.Linear(5, 11, bias=False))
    with torch.no_grad():
        reference.parametrizations.weight.original0.fill_(1)
        reference.parametrizations.weight.original1.copy_(head.last.weight)
    inner = nn.functional.normalize(torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    head.mlp = nn.Identity()
    ours, theirs = head(inner), reference(inner)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn(4, 11, generator=torch.Generator().manual_seed(1))
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    torch.testing.assert_close(head.last.weight.grad, reference.parametrizations.weight.original1.grad)


def test_lengths_of_prototypes_and_embeddings_do_not_count():
    head, x = made(), torch.randn(4, 6)
    before = head(x).detach()
    assert before.abs().max() <= 1 + 1e-6  # cosines
    with torch.no_grad():
        head.last.weight *= torch.linspace(0.1, 9, 11)[:, None]
    torch.testing.assert_close(head(x).detach(), before)


def test_layers_start_as_published():
    head = made(n_dims=256, hidden=512, bottleneck=64)
    for layer in head.mlp[::2]:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05) and not layer.bias.any()


def test_any_leading_shape_goes_through_and_none_at_all():
    head = made()
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(head(x), head(x.flatten(0, 1)).view(2, 3, 11))
    assert head(torch.empty(0, 6)).shape == (0, 11)


def test_logits_are_float32_inside_autocast():
    """Cosines in bfloat16 have steps of 1/256 near 1; here they keep what the bottleneck gave them."""
    head, x = made(n_prototypes=500), torch.randn(64, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(x)
        inner = head.mlp(x)
    assert logits.dtype == torch.float32 and inner.dtype == torch.bfloat16
    inner, prototypes = (nn.functional.normalize(y.detach().float(), dim=-1) for y in (inner, head.last.weight))
    torch.testing.assert_close(logits, inner @ prototypes.T)
