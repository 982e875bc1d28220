"""A network's tensors within a file, and those of other libraries under timm's names.

The other libraries are transformers, efficientnet_pytorch and ONNX.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfcore.encoders.card import EncoderError, Layout

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]


def _renamed(state: "Tensors", rules: Sequence[tuple[str, str]]) -> "Tensors":
    """``state`` with each key rewritten by the first rule (pattern, replacement) that fits it."""

    def name_of(key: str) -> str:
        for pattern, replacement in rules:
            if match := re.fullmatch(pattern, key):
                return match.expand(replacement)
        return key

    return {name_of(key): tensor for key, tensor in state.items()}


# ---- where in a file ----


def entry(content: object, key: str, path: Path) -> object:
    """What ``content`` of the file ``path`` holds under ``key``; all of it where that is "".

    Raises EncoderError, with the entries that there are, where it holds no such one.
    """
    if not key:
        return content
    if not isinstance(content, Mapping):
        raise EncoderError(
            f"{path} has no entry {key!r}: it is a {type(content).__name__}; leave tensors.key out"
        )
    if key not in content:
        raise EncoderError(f"{path} has no entry {key!r}; it has {some(content)}")
    return content[key]


def of_network(state: "Tensors", where: Layout, path: Path) -> "Tensors":
    """Of the tensors ``state`` in the file ``path`` those of the network, under its own names.

    Raises EncoderError, with names that there are, where none begins with the prefix, and where two
    chunks have a block of the same number.
    """
    prefix = where.prefix
    held = {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
    if prefix and not held:
        raise EncoderError(
            f"{path} has no tensor whose name begins with {prefix!r}; it has {some(state)}"
        )
    if not where.chunked:
        return held
    flat = {}
    for name, tensor in held.items():
        bare = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)
        if bare in flat:
            raise EncoderError(
                f"{path} has {bare} in two chunks; {prefix + name} is one of them; leave"
                " tensors.chunked out"
            )
        flat[bare] = tensor
    return flat


def some(names: Iterable[object]) -> str:
    """The first few of ``names``, as an error says them."""
    listed = [repr(name)[:80] for name in names]
    return ", ".join(listed[:5]) + f" and {len(listed) - 5} more" * (len(listed) > 5) or "none"


# ---- other libraries ----


# blocks in each of timm's stages; efficientnet_pytorch numbers them through
_LITE0_DEPTHS = (1, 2, 2, 3, 3, 4, 1)


def from_efficientnet_pytorch(state: "Tensors") -> "Tensors":
    """EfficientNet-Lite0's tensors from efficientnet_pytorch's names to timm's."""
    rules = [
        (r"_conv_stem\.(.*)", r"conv_stem.\1"),
        (r"_bn0\.(.*)", r"bn1.\1"),
        (r"_conv_head\.(.*)", r"conv_head.\1"),
        (r"_bn1\.(.*)", r"bn2.\1"),
        (r"_fc\.(.*)", r"classifier.\1"),
    ]
    places = [(stage, index) for stage, depth in enumerate(_LITE0_DEPTHS) for index in range(depth)]
    for number, (stage, index) in enumerate(places):
        theirs, ours = rf"_blocks\.{number}\._", f"blocks.{stage}.{index}."
        # the first stage doesn't expand, so that its names are one step behind
        last = "conv_pwl" if stage else "conv_pw"
        parts = {"expand": "conv_pw", "depthwise": "conv_dw", "project": last}
        rules += [(rf"{theirs}{part}_conv\.(.*)", rf"{ours}{parts[part]}.\1") for part in parts]
        rules += [(rf"{theirs}bn{i}\.(.*)", rf"{ours}bn{i + (stage > 0)}.\1") for i in range(3)]
    return _renamed(state, rules)


_FROM_TRANSFORMERS = [
    (r"embeddings\.cls_token", r"cls_token"),
    (r"embeddings\.register_tokens", r"reg_token"),
    (r"embeddings\.position_embeddings", r"pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(.*)", r"patch_embed.proj.\1"),
    (r"encoder\.layer\.(\d+)\.(?:layernorm_before|norm1)\.(.*)", r"blocks.\1.norm1.\2"),
    (
        r"encoder\.layer\.(\d+)\.attention\.attention\.([qkv])(?:uery|ey|alue)\.(.*)",
        r"blocks.\1.attn.\2.\3",
    ),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(.*)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.(\d+)\.(?:layernorm_after|norm2)\.(.*)", r"blocks.\1.norm2.\2"),
    (
        r"encoder\.layer\.(\d+)\.(?:intermediate\.dense|mlp\.fc1|mlp\.weights_in)\.(.*)",
        r"blocks.\1.mlp.fc1.\2",
    ),
    (
        r"encoder\.layer\.(\d+)\.(?:output\.dense|mlp\.fc2|mlp\.weights_out)\.(.*)",
        r"blocks.\1.mlp.fc2.\2",
    ),
    (r"layernorm\.(.*)", r"norm.\1"),
    # CLIPVisionModel
    (r"embeddings\.class_embedding", r"cls_token"),
    (r"embeddings\.position_embedding\.weight", r"pos_embed"),
    (r"embeddings\.patch_embedding\.(.*)", r"patch_embed.proj.\1"),
    (r"pre_layrnorm\.(.*)", r"norm_pre.\1"),
    (r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(.*)", r"blocks.\1.attn.\2.\3"),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(.*)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layers\.(\d+)\.layer_norm(\d)\.(.*)", r"blocks.\1.norm\2.\3"),
    (r"encoder\.layers\.(\d+)\.mlp\.(fc\d)\.(.*)", r"blocks.\1.mlp.\2.\3"),
    (r"post_layernorm\.(.*)", r"norm.\1"),
]


def from_transformers(state: "Tensors") -> "Tensors":
    """A vision transformer's tensors from transformers' names to timm's.

    It may be a ViTModel, Dinov2Model, Dinov2WithRegistersModel or, without the ``vision_model.``
    before its names, a CLIPVisionModel. Query, key and value become one. Where there are registers,
    timm's class token has its position added already, and the position embedding is that of the
    patches alone.
    """
    import torch

    # no part of the embedding
    needless = r"(pooler|classifier)\..*|embeddings\.(mask_token|position_ids)"
    bare = {re.sub(r"^(vit|dinov2)\.", "", key): tensor for key, tensor in state.items()}
    renamed = _renamed(
        {key: tensor for key, tensor in bare.items() if not re.fullmatch(needless, key)},
        _FROM_TRANSFORMERS,
    )
    for key in [key for key in renamed if ".attn.q." in key]:
        parts = [renamed.pop(key.replace(".attn.q.", f".attn.{part}.")) for part in "qkv"]
        renamed[key.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    for key in {"cls_token", "pos_embed"} & set(renamed):  # CLIP's lack the leading axes
        renamed[key] = renamed[key].reshape(1, -1, renamed[key].shape[-1])
    if "reg_token" in renamed:
        positions = renamed["pos_embed"]  # (1, 1 + n_patches, width)
        renamed |= {
            "cls_token": renamed["cls_token"] + positions[:, :1],
            "pos_embed": positions[:, 1:],
        }
    return renamed


# ---- ONNX ----

# PyTorch's exporter keeps the names of biases and norms, but folds a linear layer's weight into a
# transposed, nameless constant of the MatMul that uses it, and adds constants up beforehand. The
# graph's nodes tell which constant is which.
PREFIX = "backbone."  # of the transformer's tensors; other names are a decoder's
_EMBEDDINGS = "/backbone/embeddings/"


def read_onnx(path: Path, img_size_px: int | None = None) -> "Tensors":
    """The transformer ``backbone`` of an ONNX graph: float32 tensors, transformers' names.

    The position embedding is resized to images of ``img_size_px`` as the graph itself does:
    bicubic, not antialiased; None leaves it as it is. Raises ValueError where it isn't such a
    graph, and where it keeps tensors outside itself: they may name any file of this machine.
    """
    import torch
    from timm.layers import resample_abs_pos_embed

    nodes, constants = _read_graph(path)
    state = {name: tensor for name, tensor in constants.items() if name.startswith(PREFIX)}
    added = [list(node.input) for node in nodes if node.op_type == "Add"]
    biases = {name: names for names in added for name in names}
    for node in nodes:
        weights = [name for name in node.input if node.op_type == "MatMul" and name in constants]
        for bias in biases.get(node.output[0], []) if weights else []:
            if bias in state:  # (inputs, outputs) in the graph, (outputs, inputs) in a layer
                weight = constants[weights[0]].T.contiguous()
                state[bias.removesuffix("bias") + "weight"] = weight
    nameless = [
        (node.op_type, constants[name])
        for node in nodes
        if node.name.startswith(_EMBEDDINGS)
        for name in node.input
        if name in constants and name not in state
    ]
    # by what is done with them: the class token's are joined, the others' laid out as a grid
    positions = dict(nameless)
    # (width, 3, patch_px, patch_px)
    projection = state.get(f"{PREFIX}embeddings.patch_embeddings.projection.weight")
    if len(nameless) != 2 or set(positions) != {"Concat", "Reshape"} or projection is None:
        raise ValueError(
            f"the graph has no vision transformer {PREFIX.rstrip('.')!r} with positions"
        )
    embedding = torch.cat([positions["Concat"], positions["Reshape"]], dim=1)
    if img_size_px is not None:
        n_cells = img_size_px // projection.shape[-1]
        embedding = resample_abs_pos_embed(embedding, [n_cells, n_cells], antialias=False)
    bare = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
    return {**bare, "embeddings.position_embeddings": embedding}


def _read_graph(path: Path) -> tuple[Sequence[Any], "Tensors"]:
    """The nodes of an ONNX graph, and its constants by name."""
    import onnx
    import torch

    try:
        graph = onnx.load(path, load_external_data=False).graph
        constants = graph.initializer
        is_outside = onnx.external_data_helper.uses_external_data
        if outside := [each.name for each in constants if is_outside(each)]:
            raise ValueError(f"it keeps {outside[0]!r} outside itself; save it in one file")
        arrays = {each.name: onnx.numpy_helper.to_array(each).copy() for each in constants}
    except Exception as error:  # protobuf's own error class, which onnx doesn't hand on
        raise ValueError(f"no ONNX graph with all its weights inside: {error}") from error
    return graph.node, {name: torch.from_numpy(array) for name, array in arrays.items()}
