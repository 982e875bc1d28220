"""From a patch to a network's input, the same to the last bit on every device and with every version of the libraries.

Models were trained and are published with Pillow's resizing (torchvision's Resize on PIL images), which works in whole
numbers; torch's own antialiased resizing differs from it in up to a fifth of the pixels.
"""

import functools
from typing import TYPE_CHECKING

import numpy as np

from mfcore.cards import EncoderCard

if TYPE_CHECKING:
    import torch

_FIXED = 1 << 22  # Pillow keeps weights in fixed point with 22 binary digits


def transform(patches: np.ndarray, card: EncoderCard, device: "torch.device") -> "torch.Tensor":
    """uint8 (n, height, width, 3) to float32 (n, 3, crop_px, crop_px), as the card's resize, crop, mean and std say.

    The same as torchvision's Resize, CenterCrop, ToTensor and Normalize on PIL images.
    """
    import torch

    images = torch.from_numpy(np.array(patches)).to(device).permute(0, 3, 1, 2)  # (n, 3, height, width)
    height, width = images.shape[-2:]
    short = min(height, width)
    if short != card.resize_px:
        size = (card.resize_px * height // short, card.resize_px * width // short)
        images = resize(images, size, card.interpolation)
    top, left = (round((side - card.crop_px) / 2) for side in images.shape[-2:])
    images = images[..., top : top + card.crop_px, left : left + card.crop_px].float() / 255
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (card.mean, card.std))
    # channels last: twice as fast for convolutions on a CPU
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def resize(images: "torch.Tensor", size: tuple[int, int], interpolation: str) -> "torch.Tensor":
    """uint8 (n, 3, height, width) to uint8 (n, 3, *size) by Pillow's "bilinear" or "bicubic": antialiased, across then down."""
    import torch

    there = images.device
    work = images.cpu() if there.type == "mps" else images  # Apple's GPUs have no float64, which holds these sums exactly
    for axis, n_out in ((3, size[1]), (2, size[0])):
        n_in = work.shape[axis]
        if n_in == n_out:
            continue
        weights = torch.from_numpy(_weights(n_in, n_out, interpolation)).to(work.device)  # (n_out, n_in)
        sums = work.double() @ weights.T if axis == 3 else weights @ work.double()
        work = ((sums + _FIXED // 2) / _FIXED).floor().clamp(0, 255).to(torch.uint8)
    return work.to(there)


@functools.lru_cache(maxsize=32)
def _weights(n_in: int, n_out: int, interpolation: str) -> np.ndarray:
    """How much of each of ``n_in`` pixels goes into each of ``n_out``: float64 (n_out, n_in), whole numbers of 1 / _FIXED.

    The kernel is a triangle, or Keys's cubic with a = -1/2, and as wide as an output pixel when it shrinks.
    """
    scale = n_in / n_out
    stretch = max(scale, 1.0)
    reach = (1.0 if interpolation == "bilinear" else 2.0) * stretch
    centre = (np.arange(n_out)[:, None] + 0.5) * scale  # (n_out, 1), in px of the input
    pixel = np.arange(n_in)[None]  # (1, n_in)
    x = np.abs(pixel - centre + 0.5) * (1 / stretch)
    if interpolation == "bilinear":
        kernel = np.clip(1 - x, 0, None)
    else:
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * (x**3 - 5 * x**2 + 8 * x - 4)
        kernel = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    first, last = np.floor(np.clip(centre - reach + 0.5, 0, None)), np.floor(np.clip(centre + reach + 0.5, None, n_in))
    kernel = np.where((pixel >= first) & (pixel < last), kernel, 0.0)
    kernel /= kernel.sum(axis=1, keepdims=True)
    return np.trunc(kernel * _FIXED + np.copysign(0.5, kernel))
