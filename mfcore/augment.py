"""Batch augmentation: every image of a batch gets its own random parameters, in one pass over the whole batch.

What happens to an image depends on the stream's name and on the image's position in the epoch, not on the batch size.
The recipe is that of Ganz et al. 2024, section 3: colour jitter, Gaussian blur, flips and rotation. A rotated crop is cut
from a stored patch wide enough for it, so that it has no corner without image.
"""

import dataclasses
import typing
from dataclasses import dataclass

import numpy as np

from mfcore import rng
from mfcore.config import Network

if typing.TYPE_CHECKING:
    import torch

BLUR_KERNEL_PX = 5
BLUR_SIGMA_PX = (0.1, 2.0)  # torchvision's GaussianBlur; the paper names no sigma
GREY = (0.2989, 0.587, 0.114)  # ITU-R BT.601 luma, as torchvision rounds it


@dataclass(frozen=True)
class Parameters:
    """What is done to each of n images; every field is an array (n,).

    angle: rotation in radians, 0 for none. flip_x, flip_y: mirrored left to right, top to bottom. shift_x_px, shift_y_px: of
    the crop's centre in the stored patch, whole px. brightness, contrast, saturation: factors, 1 for none. hue: added, in
    turns of the colour circle, 0 for none. blur_px: sigma in px, 0 for none.
    """

    angle: np.ndarray
    flip_x: np.ndarray
    flip_y: np.ndarray
    shift_x_px: np.ndarray
    shift_y_px: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray
    hue: np.ndarray
    blur_px: np.ndarray

    def __len__(self) -> int:
        return len(self.angle)

    def __getitem__(self, part: slice) -> "Parameters":
        return Parameters(**{field.name: getattr(self, field.name)[part] for field in dataclasses.fields(self)})


def draw(network: Network, n_images: int, seed: int, *names: object) -> Parameters:
    """Parameters of the ``n_images`` of one epoch, from the stream ``names`` under ``seed``.

    Row i depends on the stream and on i alone: neither the batch size nor ``n_images`` changes it.
    """
    uniform = rng.generator(seed, *names).random((n_images, 13)).T  # (13, n_images)
    coloured = uniform[0] < network.colour_probability
    blurred = uniform[1] < network.blur_probability
    rotated = uniform[2] < network.rotation_probability
    jitter = np.where(coloured, network.colour_jitter * (2 * uniform[3:7] - 1), 0.0)  # (4, n_images)
    low, high = BLUR_SIGMA_PX
    shift_px = np.floor(uniform[11:13] * (2 * network.shift_px + 1)) - network.shift_px  # (2, n_images)
    return Parameters(
        angle=np.where(rotated, np.pi * (2 * uniform[7] - 1), 0.0),
        flip_x=uniform[8] < 0.5,
        flip_y=uniform[9] < 0.5,
        shift_x_px=shift_px[0],
        shift_y_px=shift_px[1],
        brightness=1 + jitter[0],
        contrast=1 + jitter[1],
        saturation=1 + jitter[2],
        hue=jitter[3],
        blur_px=np.where(blurred, low + (high - low) * uniform[10], 0.0),
    )


def augment(images: "torch.Tensor", parameters: Parameters, input_px: int) -> "torch.Tensor":
    """Augmented crops, float32 (B, 3, input_px, input_px) in 0..1, of stored patches (B, 3, stored_px, stored_px).

    ``images`` are uint8, or float in 0..1, on any device. Geometry comes first, then colour (in torchvision's order:
    brightness, contrast, saturation, hue), then blur. An image that isn't rotated keeps its pixels, nothing is resampled.
    Raises ValueError where the number of parameters is another than that of images, or where a crop would reach outside
    its stored patch.
    """
    import torch

    n_images, n_channels, height_px, width_px = images.shape
    if n_channels != 3 or height_px != width_px:
        raise ValueError(f"images are {tuple(images.shape)}; (B, 3, stored_px, stored_px) are needed")
    if n_images != len(parameters):
        raise ValueError(f"{n_images} images with parameters of {len(parameters)}")
    crops = _crop(images.to(torch.float32), parameters, input_px)
    if images.dtype == torch.uint8:
        crops /= 255
    jittered = np.flatnonzero(
        (parameters.brightness != 1) | (parameters.contrast != 1) | (parameters.saturation != 1) | (parameters.hue != 0)
    )
    if len(jittered):
        factors = np.stack([parameters.brightness, parameters.contrast, parameters.saturation, parameters.hue])[:, jittered]
        rows = torch.from_numpy(jittered).to(crops.device)
        crops[rows] = jitter_colour(crops[rows], *torch.from_numpy(factors).to(crops))
    blurred = np.flatnonzero(parameters.blur_px)
    if len(blurred):
        rows = torch.from_numpy(blurred).to(crops.device)
        crops[rows] = blur(crops[rows], torch.from_numpy(parameters.blur_px[blurred]).to(crops))
    return crops


def affine(parameters: Parameters, stored_px: int, input_px: int) -> np.ndarray:
    """Matrices (n, 2, 3) from a crop's coordinates to the stored patch's, both -1 to 1 between outermost pixel centres.

    The crop is mirrored, rotated and shifted about the patch's centre; one that isn't rotated stays on whole pixels, as
    the centre crop does. Raises ValueError, naming the width that would do, where a crop would reach outside.
    """
    half_crop_px, half_stored_px = (input_px - 1) / 2, (stored_px - 1) / 2
    cosine, sine = np.cos(parameters.angle), np.sin(parameters.angle)
    # A patch and a crop of which one is even and one is odd have no common centre; the centre crop rounds down.
    aside_px = np.where(parameters.angle == 0, -((stored_px - input_px) % 2) / 2, 0.0)
    centre_px = np.stack([parameters.shift_x_px + aside_px, parameters.shift_y_px + aside_px])  # (2, n)
    reach_px = np.abs(centre_px) + half_crop_px * (np.abs(cosine) + np.abs(sine))  # (2, n)
    if reach_px.size and reach_px.max() > half_stored_px + 1e-6:
        raise ValueError(
            f"a crop of {input_px} px, as rotated and shifted, reaches outside its stored patch of {stored_px} px; "
            f"store patches of {int(np.ceil(2 * reach_px.max() + 1))} px or more (Network.needed_px)"
        )
    mirror_x, mirror_y = 1 - 2.0 * parameters.flip_x, 1 - 2.0 * parameters.flip_y
    scale = half_crop_px / half_stored_px
    rows_x = [cosine * mirror_x * scale, -sine * mirror_y * scale, centre_px[0] / half_stored_px]
    rows_y = [sine * mirror_x * scale, cosine * mirror_y * scale, centre_px[1] / half_stored_px]
    return np.stack([np.stack(rows_x, axis=-1), np.stack(rows_y, axis=-1)], axis=-2)  # (n, 2, 3)


def _crop(images: "torch.Tensor", parameters: Parameters, input_px: int) -> "torch.Tensor":
    """Mirrored, rotated and shifted crops (B, 3, input_px, input_px): one bilinear sampling for all of it."""
    import torch
    from torch.nn import functional

    theta = torch.from_numpy(affine(parameters, images.shape[-1], input_px)).to(images)
    grid = functional.affine_grid(theta, [len(images), 3, input_px, input_px], align_corners=True)  # (B, px, px, 2)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def jitter_colour(
    images: "torch.Tensor",
    brightness: "torch.Tensor",
    contrast: "torch.Tensor",
    saturation: "torch.Tensor",
    hue: "torch.Tensor",
) -> "torch.Tensor":
    """Images (B, 3, H, W), float in 0..1, with brightness, contrast, saturation and hue changed, each by its own (B,).

    The four operations and their order are those of torchvision's ColorJitter, which has one factor for a whole batch.
    """
    import torch

    def each(values: "torch.Tensor") -> "torch.Tensor":
        return values[:, None, None, None]

    grey = torch.tensor(GREY, device=images.device, dtype=images.dtype)
    images = (images * each(brightness)).clamp_(0, 1)
    mean = torch.einsum("bchw,c->b", images, grey) / images[0, 0].numel()
    images = (images * each(contrast) + each((1 - contrast) * mean)).clamp_(0, 1)
    luma = torch.einsum("bchw,c->bhw", images, grey)[:, None]  # (B, 1, H, W)
    images = (images * each(saturation) + luma * each(1 - saturation)).clamp_(0, 1)
    return _turn_hue(images, each(hue)[:, 0])


def _turn_hue(images: "torch.Tensor", turns: "torch.Tensor") -> "torch.Tensor":
    """Images (B, 3, H, W) with the hue of HSV turned by ``turns`` (B, 1, 1); saturation and value stay."""
    import torch

    red, green, blue = images.unbind(1)  # (B, H, W) each
    value = images.amax(1)
    chroma = value - images.amin(1)
    divisor = torch.where(chroma == 0, 1, chroma)
    sextant = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )  # -1..5, the hue in sixths of a turn
    # HSV to RGB in closed form: channel = value - chroma * clamp(min(k, 4 - k), 0, 1), k = (offset + sextant) mod 6.
    offset = torch.tensor([5.0, 3.0, 1.0], device=images.device, dtype=images.dtype)[:, None, None]
    k = torch.remainder((sextant + 6 * turns)[:, None] + offset, 6)  # (B, 3, H, W)
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)


def blur(images: "torch.Tensor", sigma_px: "torch.Tensor") -> "torch.Tensor":
    """Images (B, 3, H, W) blurred with Gaussian kernels of 5 x 5 px, each with its own sigma (B,); edges are mirrored."""
    import torch
    from torch.nn import functional

    n_images, _, height_px, width_px = images.shape
    half = BLUR_KERNEL_PX // 2
    distance_px = torch.arange(-half, half + 1, device=images.device, dtype=images.dtype)
    kernels = torch.exp(-0.5 * (distance_px / sigma_px[:, None]) ** 2)  # (B, 5)
    kernels = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(3, dim=0)  # (3 B, 5)
    planes = functional.pad(images, [half] * 4, mode="reflect").reshape(
        1, 3 * n_images, height_px + 2 * half, width_px + 2 * half
    )
    planes = functional.conv2d(planes, kernels[:, None, None, :], groups=3 * n_images)
    planes = functional.conv2d(planes, kernels[:, None, :, None], groups=3 * n_images)
    return planes.reshape(n_images, 3, height_px, width_px)
