"""From a patch to a network's input: torchvision's transforms on PIL images, to the last bit."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mfcore.encoders.card import EncoderCard

if TYPE_CHECKING:
    import torch


def transform(
    patches: "np.ndarray | torch.Tensor", card: EncoderCard, device: "torch.device"
) -> "torch.Tensor":
    """uint8 (n, height, width, 3) to float32 (n, 3, crop_px, crop_px), as the card says.

    The same as torchvision's Resize, CenterCrop, ToTensor and Normalize on PIL images. Pillow
    resizes on the CPU; the bytes are normalised on the device. The result lies in memory as the
    patches do, channels last, which convolutions on a CPU and in half precision take twice as fast
    and transformers as well as any.
    """
    import torch

    images = patches if isinstance(patches, torch.Tensor) else torch.from_numpy(np.array(patches))
    if min(images.shape[1:3]) != card.resize_px:
        how = card.resize_px, card.interpolation
        images = torch.from_numpy(
            np.stack([resized(image, *how) for image in images.cpu().numpy()])
        )
    top, left = (round((side - card.crop_px) / 2) for side in images.shape[1:3])
    images = images[:, top : top + card.crop_px, left : left + card.crop_px]
    pixels = images.to(device, non_blocking=True).permute(0, 3, 1, 2).to(torch.float32)
    factor = torch.tensor([1 / (255 * std) for std in card.std], device=device)
    offset = torch.tensor(
        [-mean / std for mean, std in zip(card.mean, card.std, strict=True)], device=device
    )
    return torch.addcmul(offset.view(3, 1, 1), pixels, factor.view(3, 1, 1))


@contextlib.contextmanager
def exact_float32(device: "torch.device") -> Iterator[None]:
    """Within it, a GPU computes float32 without TF32, which keeps 10 of 23 binary digits."""
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


def resized(pixels: np.ndarray, short_px: int | None, interpolation: str) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3) with its shorter side of ``short_px``, by Pillow, antialiased.

    None: as it is. interpolation: "bilinear", "bicubic" or "nearest".
    """
    height, width = pixels.shape[:2]
    if short_px in (None, short := min(height, width)):
        return pixels
    size = short_px * width // short, short_px * height // short
    kernel = Image.Resampling[interpolation.upper()]
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, kernel))


def square(pixels: np.ndarray, size_px: int, interpolation: str) -> np.ndarray:
    """The central square of `resized` pixels, uint8 (size_px, size_px) or with colours.

    As eva's ResizeAndCrop does, but for masks: torchvision's "nearest" takes the pixel at the
    corner of each new one, Pillow's that at its middle, as bilinear interpolation of images does.
    """
    pixels = resized(pixels, size_px, interpolation)
    top, left = (round((side - size_px) / 2) for side in pixels.shape[:2])
    return pixels[top : top + size_px, left : left + size_px]
