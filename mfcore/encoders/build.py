"""From a card to its network: built by timm, filled with the card's weights, and checked against what the card says."""

import contextlib
import difflib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mfcore.encoders.card import EncoderCard
from mfcore.encoders.weights import EncoderError, read_weights
from mfcore.streams import stream_seed
from mfcore.study.config_networks import problems_of_arguments

if TYPE_CHECKING:
    import torch


def read_out(model: Any, this: EncoderCard, images: "torch.Tensor") -> "torch.Tensor":
    """The embedding (n, n_dims) of normalised ``images`` (n, 3, height, width), by the card's readout."""
    import torch

    if this.readout == "pooled":
        return model(images)
    if this.readout == "layer3":
        return model.forward_intermediates(images, indices=[3], intermediates_only=True)[0].mean(dim=(2, 3))
    tokens = model.forward_features(images)  # (n, n_tokens, width), prefix tokens first
    if this.readout == "class":
        return tokens[:, 0]
    # the registers hold no place in the image; the released code of Ganz et al. averages Virchow2's in
    n_left_out = 1 if this.readout == "class+rest" else this.n_prefix_tokens
    return torch.cat([tokens[:, 0], tokens[:, n_left_out:].mean(dim=1)], dim=1)


def build(this: EncoderCard, pretrained: bool, seed: int | None) -> tuple[Any, str]:
    """The network of a card without a classifier, checked against the card, and the revision of its weights."""
    if pretrained and this.source != "random":
        state, revision = read_weights(this)
        model = _with_weights(this, state)
    else:
        with seeded(seed, "weights", this.architecture):
            model, revision = create(this.architecture, this.arguments), f"seed {seed}"
    check_card(this, model)
    return model, revision


def _with_weights(this: EncoderCard, state: "dict[str, torch.Tensor]") -> Any:
    """The network with all tensors of ``state`` but a classifier's, and no others; timm resizes position embeddings."""
    import timm

    default = timm.get_pretrained_cfg(this.architecture)
    classifier = (default and default.classifier) or ()
    heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier))
    state = {key: tensor for key, tensor in state.items() if not (heads and key.startswith(heads))}
    if not state:  # timm would take it for none given, and fetch or read weights of its own
        raise EncoderError(f"encoder {this.name!r}: its weights hold no tensor of {this.architecture}")
    # timm loads strictly only where the weights' number of classes (here: none) is the model's
    overlay = {"state_dict": state, "num_classes": 0, "label_offset": 0, "custom_load": False}
    try:
        return create(this.architecture, this.arguments, pretrained=True, pretrained_cfg_overlay=overlay)
    except (RuntimeError, KeyError) as error:
        what = " ".join(str(error).split())[:400]
        raise EncoderError(f"encoder {this.name!r}: its weights don't fit {this.architecture}: {what}") from error


def create(architecture: str, arguments: Any, **more: Any) -> Any:
    """timm's model without classifier; layers named by a string are timm's or torch's classes.

    Raises EncoderError for a name that isn't among timm's own architectures, so that it reads none from a folder or hub, and
    for an argument that isn't among `config_networks.ARGUMENTS`.
    """
    import timm
    from torch import nn

    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        raise EncoderError(f"timm has no architecture {architecture!r}; the nearest names are {near}")
    if problems := problems_of_arguments(arguments, "arguments"):
        raise EncoderError("; ".join(problems))
    exact_norm = functools.partial(nn.LayerNorm, eps=1e-12)
    classes = {
        "SwiGLUPacked": timm.layers.SwiGLUPacked,
        "SiLU": nn.SiLU,
        "LayerNorm(eps=1e-12)": exact_norm,
        "ConvStem": _conv_stem(),
    }
    resolved = {key: classes.get(value, value) if isinstance(value, str) else value for key, value in dict(arguments).items()}
    return timm.create_model(architecture, num_classes=0, **resolved, **more)


@functools.cache
def _conv_stem() -> type:
    """CTransPath's patch embedding: two convolutions of stride 2 instead of one of stride 4 (Wang et al. 2022, section 3.1)."""
    from torch import nn

    class ConvStem(nn.Module):
        def __init__(self, img_size=224, patch_size=4, in_chans=3, embed_dim=96, norm_layer=None, **_ignored):
            super().__init__()
            side = img_size if isinstance(img_size, int) else img_size[0]
            self.grid_size = (side // 4, side // 4)
            narrow, middle = embed_dim // 8, embed_dim // 4
            self.proj = nn.Sequential(
                nn.Conv2d(in_chans, narrow, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU(),
                nn.Conv2d(narrow, middle, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(middle), nn.ReLU(),
                nn.Conv2d(middle, embed_dim, 1),
            )  # fmt: skip
            self.norm = norm_layer(embed_dim) if norm_layer else nn.Identity()

        def forward(self, images):
            return self.norm(self.proj(images).permute(0, 2, 3, 1))  # (n, height / 4, width / 4, embed_dim)

    return ConvStem


def check_card(this: EncoderCard, model: Any) -> None:
    """Compare a built network with its card."""
    built = {
        "n_parameters": n_parameters(model),
        "n_prefix_tokens": int(getattr(model, "num_prefix_tokens", 0)),
        "n_dims": width(model, this.readout),
    }
    said = {key: getattr(this, key) for key in built}
    wrong = [f"{key} is {built[key]}, the card says {said[key]}" for key in built if built[key] != said[key]]
    if wrong:
        raise EncoderError(f"encoder {this.name!r} isn't what its card says: {'; '.join(wrong)}")


def width(model: Any, readout: str) -> int:
    """Length of the embedding that a network gives under a readout."""
    if readout == "layer3":
        return model.feature_info[-2]["num_chs"]
    if readout == "pooled":
        return model.head_hidden_size
    return model.num_features * (1 if readout == "class" else 2)


def n_parameters(model: Any) -> int:
    """How many numbers a network has learnt."""
    return sum(parameter.numel() for parameter in model.parameters())


@contextlib.contextmanager
def seeded(seed: int | None, *stream: str) -> Iterator[None]:
    """Within it, torch's draws on the CPU come from a named stream, and afterwards go on as before; nothing for seed None."""
    import torch

    if seed is None:
        yield
        return
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(stream_seed(seed, *stream))
    try:
        yield
    finally:
        torch.set_rng_state(before)
