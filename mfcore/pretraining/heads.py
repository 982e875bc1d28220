"""The projection head that DINO, iBOT and DINOv2 put on a ViT while it learns; it isn't part of the encoder."""

import torch
from torch import nn
from torch.nn import functional


class Head(nn.Module):
    """Embeddings (..., n_dims) to logits, float32 (..., n_prototypes): cosines between a bottleneck and the prototypes.

    A perceptron of three layers with GELU ends in the bottleneck, which is normalised to length 1; the last layer is
    weight-normalised with its lengths fixed at 1, and has no bias (Caron et al. 2021, section 3.1 and appendix C). Its
    prototypes are ``last.weight`` (n_prototypes, bottleneck), of which only the directions count.
    """

    def __init__(self, n_dims: int, n_prototypes: int, hidden: int = 2048, bottleneck: int = 256):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(n_dims, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for layer in self.mlp[::2]:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.last = nn.Linear(bottleneck, n_prototypes, bias=False)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Logits, float32 (..., n_prototypes), inside autocast too: a temperature of 0.04 would magnify bfloat16's steps."""
        inner = self.mlp(embeddings)  # (..., bottleneck)
        with torch.autocast(inner.device.type, enabled=False):
            inner = functional.normalize(inner.float(), dim=-1)
            return functional.linear(inner, functional.normalize(self.last.weight.float(), dim=-1))  # (..., n_prototypes)
