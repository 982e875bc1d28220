"""From a patch to a network's input, the same to the last bit on every device and with every version of the libraries.

Models were trained and are published with Pillow's resizing (torchvision's Resize on PIL images), which works in whole
numbers; torch's own antialiased resizing differs from it in up to a fifth of the pixels.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mfcore.encoders.card import EncoderCard

if TYPE_CHECKING:
    import torch

_FIXED = 22  # Pillow keeps weights in fixed point with 22 binary digits
_LOW = 11  # the lower half of them


def transform(patches: "np.ndarray | torch.Tensor", card: EncoderCard, device: "torch.device") -> "torch.Tensor":
    """uint8 (n, height, width, 3) to float32 (n, 3, crop_px, crop_px), as the card's resize, crop, mean and std say.

    The same as torchvision's Resize, CenterCrop, ToTensor and Normalize on PIL images. The bytes go to the device, where
    the rest is done; from pinned memory they go while earlier work is still computed.
    """
    import torch

    images = patches if isinstance(patches, torch.Tensor) else torch.from_numpy(np.array(patches))
    if device.type == "cuda":
        images = images.to(device, non_blocking=True)
    height, width = images.shape[1:3]
    short = min(height, width)
    if short != card.resize_px:
        size = (card.resize_px * height // short, card.resize_px * width // short)
        images = (resize if device.type == "cuda" else _resize_by_pillow)(images, size, card.interpolation)
    top, left = (round((side - card.crop_px) / 2) for side in images.shape[1:3])
    images = images[:, top : top + card.crop_px, left : left + card.crop_px].to(device)
    return _normalise(images, card)


def resize(images: "torch.Tensor", size: tuple[int, int], interpolation: str) -> "torch.Tensor":
    """uint8 (n, height, width, 3) to uint8 (n, *size, 3) by Pillow's "bilinear" or "bicubic": antialiased, across then down.

    Fast on a GPU. Sums of whole numbers below 2 ** 24 are exact in float32, so each weight goes in two halves.
    """
    import torch

    for axis, n_out in ((2, size[1]), (1, size[0])):
        n_in = images.shape[axis]
        if n_in == n_out:
            continue
        high, low = (torch.from_numpy(half).to(images.device) for half in _weights(n_in, n_out, interpolation))  # (n_out, n_in)
        lines = images.transpose(1, 2) if axis == 2 else images  # (n, n_in, n_lines, 3)
        lines = lines.reshape(len(images), n_in, -1).float()
        with exact_float32(images.device):
            sums = ((high @ lines).int() << _LOW) + (low @ lines).int()  # (n, n_out, n_lines * 3)
        lines = ((sums + (1 << _FIXED - 1)) >> _FIXED).clamp(0, 255).to(torch.uint8).view(len(images), n_out, -1, 3)
        images = lines.transpose(1, 2) if axis == 2 else lines
    return images


@contextlib.contextmanager
def exact_float32(device: "torch.device") -> Iterator[None]:
    """Within it, a GPU computes float32 in float32: no TF32, which keeps 10 of the 23 binary digits."""
    import torch

    if device.type != "cuda":
        yield
        return
    settings = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [setting.allow_tf32 for setting in settings]
    try:
        for setting in settings:
            setting.allow_tf32 = False
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.allow_tf32 = value


def _resize_by_pillow(images: "torch.Tensor", size: tuple[int, int], interpolation: str) -> "torch.Tensor":
    """`resize` on a CPU: several times faster there than with matrices."""
    import torch

    kernel = Image.Resampling[interpolation.upper()]
    resized = np.empty((len(images), *size, 3), np.uint8)
    for into, image in zip(resized, images.numpy(), strict=True):
        into[:] = np.asarray(Image.fromarray(image).resize(size[::-1], kernel))
    return torch.from_numpy(resized)


def _normalise(images: "torch.Tensor", card: EncoderCard) -> "torch.Tensor":
    """uint8 (n, height, width, 3) to float32 (n, 3, height, width), each channel less its mean, by its std.

    One multiplication and one addition, along lines of pixels. The result lies in memory as the patches do, channels last,
    which convolutions on a CPU and in half precision take twice as fast and transformers as well as any.
    """
    import torch

    n, height, width, _ = images.shape
    factor, offset = _line(card.mean, card.std, width, images.device)
    lines = images.reshape(n, height, width * 3).to(torch.float32)
    torch.addcmul(offset, lines, factor, out=lines)
    return lines.view(n, height, width, 3).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=32)
def _line(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: "torch.device"
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """What a line of ``width`` pixels is multiplied by and what is added then, both float32 (width * 3,)."""
    import torch

    factor = [1 / (255 * of) for of in std]
    offset = [-middle / of for middle, of in zip(mean, std, strict=True)]
    with torch.inference_mode(False):  # what is kept must be of use in training, too
        return torch.tensor(factor).repeat(width).to(device), torch.tensor(offset).repeat(width).to(device)


@functools.lru_cache(maxsize=32)
def _weights(n_in: int, n_out: int, interpolation: str) -> tuple[np.ndarray, np.ndarray]:
    """How much of each of ``n_in`` pixels goes into each of ``n_out``, in units of 2 ** -22: upper and lower 11 digits.

    Both float32 (n_out, n_in), whole numbers. The kernel is a triangle, or Keys's cubic with a = -1/2, and as wide as an
    output pixel when it shrinks.
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
    whole = np.trunc(kernel * (1 << _FIXED) + np.copysign(0.5, kernel))
    high = np.floor(whole / (1 << _LOW) + 0.5)
    return high.astype(np.float32), (whole - high * (1 << _LOW)).astype(np.float32)
