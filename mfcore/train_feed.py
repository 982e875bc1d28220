"""Training batches: read from the patch store and augmented on the device, in the order of the epoch's draw."""

import typing
from collections.abc import Iterator

import numpy as np

from mfcore import augment

if typing.TYPE_CHECKING:
    import torch


def batches(
    patches: np.ndarray,
    rows: np.ndarray,
    drawn: augment.Parameters,
    slices: list[slice],
    device: "torch.device",
    input_px: int,
) -> "Iterator[torch.Tensor]":
    """Yield augmented batches, float32 (B, 3, input_px, input_px) in 0..1 on ``device``, one for each of ``slices``, in order.

    patches: uint8 (n, stored_px, stored_px, 3), memory-mapped or not. rows: the epoch's patches, int64 (n_epoch,); drawn:
    what is done to each of them. Raises ValueError as `augment.augment` does.
    """
    for part in slices:
        images = as_images(patches[rows[part]], device)
        yield augment.augment(images, drawn[part], input_px)


def as_images(patches_hwc: np.ndarray, device: "torch.device") -> "torch.Tensor":
    """Patches uint8 (B, H, W, 3) as a tensor (B, 3, H, W) on ``device``."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(patches_hwc)).to(device).permute(0, 3, 1, 2)
