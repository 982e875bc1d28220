"""timm's architectures, without weights or filled with them; no argument runs code."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from mfcore.encoders.card import EncoderError, wrong_arguments
from mfcore.encoders.readout import READOUTS
from mfcore.store.options import nearest
from mfcore.streams import stream_seed


def create(architecture: str, arguments: Any, **more: Any) -> Any:
    """timm's model without classifier; layers named by a string are timm's or torch's classes.

    Raises EncoderError for a name that isn't among timm's own architectures, so that it reads none
    from a folder or hub, and for an argument that isn't among `card.ARGUMENTS`.
    """
    import timm
    from torch import nn

    check_name(architecture)
    if problems := wrong_arguments(arguments):
        raise EncoderError("; ".join(f"arguments.{key}: {text}" for key, text in problems.items()))
    classes = {
        "SwiGLUPacked": timm.layers.SwiGLUPacked,
        "SiLU": nn.SiLU,
        "LayerNorm(eps=1e-12)": functools.partial(nn.LayerNorm, eps=1e-12),
        "ConvStem": _conv_stem(),
    }
    resolved = {
        key: classes.get(value, value) if isinstance(value, str) else value
        for key, value in arguments.items()
    }
    return timm.create_model(architecture, num_classes=0, **resolved, **more)


def takes(name: str, arguments: Any) -> bool:
    """Whether timm's architecture knows all arguments; convolutional networks know no size."""
    import torch

    try:
        with torch.device("meta"):
            create(name, arguments)
    except TypeError:
        return False
    return True


def check_name(architecture: str) -> None:
    """Raise EncoderError, with the nearest name, for an architecture that timm doesn't have."""
    import timm

    if not timm.is_model(architecture):
        raise EncoderError(
            f"timm has no architecture {architecture!r}{nearest(architecture, timm.list_models())}"
        )


@functools.cache
def _conv_stem() -> type:
    """CTransPath's patch embedding (Wang et al. 2022, section 3.1).

    Two convolutions of stride 2 stand for one of stride 4.
    """
    from torch import nn

    class ConvStem(nn.Module):
        def __init__(
            self, img_size=224, patch_size=4, in_chans=3, embed_dim=96, norm_layer=None, **_ignored
        ):
            super().__init__()
            side = img_size if isinstance(img_size, int) else img_size[0]
            self.grid_size = (side // 4, side // 4)
            narrow, middle = embed_dim // 8, embed_dim // 4
            self.proj = nn.Sequential(
                nn.Conv2d(in_chans, narrow, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(narrow),
                nn.ReLU(),
                nn.Conv2d(narrow, middle, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(middle),
                nn.ReLU(),
                nn.Conv2d(middle, embed_dim, 1),
            )
            self.norm = norm_layer(embed_dim) if norm_layer else nn.Identity()

        def forward(self, images):
            # (n, height / 4, width / 4, embed_dim)
            return self.norm(self.proj(images).permute(0, 2, 3, 1))

    return ConvStem


def facts_of(model: Any, readout: str) -> dict[str, int]:
    """What a card says of a network: its parameters, prefix tokens and length of an embedding."""
    return {
        "n_parameters": n_parameters(model),
        "n_prefix_tokens": int(getattr(model, "num_prefix_tokens", 0)),
        "n_dims": READOUTS[readout].width(model),
    }


def n_parameters(model: Any) -> int:
    """How many numbers a network has learnt."""
    return sum(parameter.numel() for parameter in model.parameters())


@contextlib.contextmanager
def seeded(seed: int | None, *stream: str) -> Iterator[None]:
    """Within it, torch's draws on the CPU come from a named stream.

    Afterwards they go on as before. A seed of None changes nothing.
    """
    import torch

    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(stream_seed(seed, *stream))
        yield
