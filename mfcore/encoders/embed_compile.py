"""torch.compile for embedding: tried on one batch, kept where it is faster and gives the same features."""

import time

import torch

from mfcore.encoders.encoders import Encoder

PAYS_FROM_S = 300  # of work left for a device; compiling a large transformer takes a minute or two
WORTH = 1.05  # times as fast, to be kept
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-2}  # relative, of a batch's features
N_TIMED = 3


def try_on(encoder: Encoder, patches: torch.Tensor) -> tuple[bool, str]:
    """Compile ``encoder``'s model in place, for batches like ``patches``; gives whether it was kept, and why.

    patches: uint8 (n, height, width, 3). Never raises for what the compiler does: then the model stays as it was.
    """
    expected, before_s = _timed(encoder, patches)
    name = _method(encoder)
    try:
        setattr(encoder.model, name, torch.compile(getattr(encoder.model, name), dynamic=False))
        features, after_s = _timed(encoder, patches)
    except Exception as error:  # a compiler's errors are many and none of them matters
        undo(encoder)
        return False, f"not kept: {type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
    apart = float((features - expected).norm() / expected.norm().clamp_min(1e-12))
    if not apart <= TOLERANCE[encoder.precision]:
        undo(encoder)
        return False, f"not kept: its features lie {apart:.2g} apart (relative)"
    if before_s < WORTH * after_s:
        undo(encoder)
        return False, f"not kept: {before_s / after_s:.2f} times as fast"
    return True, f"kept: {before_s / after_s:.2f} times as fast"


def undo(encoder: Encoder) -> None:
    """Leave the model as it was before `try_on`."""
    encoder.model.__dict__.pop(_method(encoder), None)


def _method(encoder: Encoder) -> str:
    return "forward" if encoder.card.readout == "pooled" else "forward_features"


def _timed(encoder: Encoder, patches: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The features of a batch and the median seconds that it takes, after one that isn't timed."""
    times = []
    for _ in range(1 + N_TIMED):
        begun = time.perf_counter()
        features = encoder.compute(patches).cpu()  # waits for the device
        times.append(time.perf_counter() - begun)
    return features, sorted(times[1:])[N_TIMED // 2]
