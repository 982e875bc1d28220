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
    height, width = images.shape[1:3]
    short = min(height, width)
    if short != card.resize_px:
        size = (card.resize_px * height // short, card.resize_px * width // short)
        images = _resized(images, size, card.interpolation)
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


def _resized(images: "torch.Tensor", size: tuple[int, int], interpolation: str) -> "torch.Tensor":
    """uint8 (n, height, width, 3) to uint8 (n, *size, 3) by Pillow, antialiased."""
    import torch

    kernel = Image.Resampling[interpolation.upper()]
    resized = np.empty((len(images), *size, 3), np.uint8)
    for into, image in zip(resized, images.cpu().numpy(), strict=True):
        into[:] = np.asarray(Image.fromarray(image).resize(size[::-1], kernel))
    return torch.from_numpy(resized)
