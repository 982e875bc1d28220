"""Weights out of an ONNX graph: the vision transformer in it, under the names that its exporter gave and took away.

PyTorch's exporter keeps the names of biases and norms, but folds a linear layer's weight into a transposed, nameless
constant of the MatMul that uses it, and adds constants up beforehand. The graph's nodes tell which constant is which.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PREFIX = "backbone."  # of the transformer's tensors; what stands beside it is a decoder
_EMBEDDINGS = "/backbone/embeddings/"


def read(path: Path, img_size_px: int | None = None) -> dict[str, "torch.Tensor"]:
    """The tensors of the transformer called ``backbone`` in the graph at ``path``, float32, under transformers' names.

    The position embedding is resized to images of ``img_size_px`` as the graph itself does: bicubic, not antialiased; None
    leaves it as it is. Raises ValueError where it isn't such a graph, and where it keeps tensors outside itself: they may name
    any file of this machine.
    """
    import onnx
    import torch

    try:
        graph = onnx.load(path, load_external_data=False).graph
        if outside := [c.name for c in graph.initializer if onnx.external_data_helper.uses_external_data(c)]:
            raise ValueError(f"it keeps {outside[0]!r} outside itself; save it in one file")
        constants = {c.name: torch.from_numpy(onnx.numpy_helper.to_array(c).copy()) for c in graph.initializer}
    except Exception as error:  # protobuf's own error class, which onnx doesn't hand on
        raise ValueError(f"no ONNX graph with all its weights inside: {error}") from error
    state = {name: tensor for name, tensor in constants.items() if name.startswith(PREFIX)}
    biases = {name: list(node.input) for node in graph.node if node.op_type == "Add" for name in node.input}
    for node in graph.node:
        weight = next((name for name in node.input if node.op_type == "MatMul" and name in constants), None)
        for bias in biases.get(node.output[0], []) if weight else []:
            if bias in state:  # (inputs, outputs) in the graph, (outputs, inputs) in a layer
                state[bias.removesuffix("bias") + "weight"] = constants[weight].T.contiguous()
    nameless = [
        (node.op_type, constants[name])
        for node in graph.node
        if node.name.startswith(_EMBEDDINGS)
        for name in node.input
        if name in constants and name not in state
    ]
    positions = dict(nameless)  # by what is done with them: the class token's are joined, the others' laid out as a grid
    projection = state.get(f"{PREFIX}embeddings.patch_embeddings.projection.weight")  # (width, 3, patch_px, patch_px)
    if len(nameless) != 2 or set(positions) != {"Concat", "Reshape"} or projection is None:
        raise ValueError(f"the graph has no vision transformer {PREFIX.rstrip('.')!r} with a position embedding")
    bare = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
    grid = positions["Reshape"]
    if img_size_px is not None:
        grid = resized(grid, img_size_px // projection.shape[-1])
    return {**bare, "embeddings.position_embeddings": torch.cat([positions["Concat"], grid], dim=1)}


def resized(positions: "torch.Tensor", n_cells: int) -> "torch.Tensor":
    """The position embedding (1, n * n, width) of n x n patches for n_cells x n_cells, (1, n_cells * n_cells, width)."""
    from torch.nn import functional

    side = round(positions.shape[1] ** 0.5)
    grid = positions.reshape(1, side, side, -1).permute(0, 3, 1, 2)  # (1, width, n, n)
    grid = functional.interpolate(grid, size=(n_cells, n_cells), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(1, n_cells * n_cells, -1)
